//! Every bound of this backend in one place, with its reason.

use std::time::Duration;

use event_log::limits::{MAX_BATCH_BYTES, MAX_RECORD_BYTES};

/// Oldest server that is accepted: `sync_interval` came with 2.10, so nothing older can be made durable.
pub(crate) const OLDEST_SERVER: (u64, u64) = (2, 10);

/// Oldest server that is not warned about: 2.15 keeps `sync_interval: always` affordable with replicas and fixes
/// compaction that ignored it.
pub(crate) const RECOMMENDED_SERVER: (u64, u64) = (2, 15);

/// What headers, stream name and lengths add to a record, at most: the server counts headers against its `max_payload`.
pub(crate) const MESSAGE_OVERHEAD_BYTES: usize = 4 * 1024;

/// Payload of a frame of several records, at most: large enough that the sync and the round trip are shared by hundreds
/// of records, small enough to be replicated in a few milliseconds. One record alone may be larger.
pub(crate) const FRAME_BYTES: usize = 256 * 1024;

/// Records in one frame, at most: bounds what a reader holds for a frame of tiny ones.
pub(crate) const FRAME_RECORDS: usize = 4_096;

/// Appends queued for the committer; callers wait beyond that. Two frames of the smallest records.
pub(crate) const QUEUE_APPENDS: usize = 2 * FRAME_RECORDS;

/// Payload bytes queued for the committer; callers wait beyond that.
pub(crate) const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// How long one publish waits for its answer before it counts as unknown. A sync on a busy disk takes tens of
/// milliseconds, a leader election a few seconds.
pub(crate) const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long connecting to one server may take: a server that is cut off answers nothing, and the next one is tried.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long any other request to the server may take.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a pull may stay silent before its consumer counts as gone.
pub(crate) const PULL_STALL: Duration = Duration::from_secs(3);

/// First pause before something is tried again; doubles up to [`LONGEST_PAUSE`], and a random half of it is taken off
/// so that many clients do not come back at once.
pub(crate) const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// Longest pause before something is tried again.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Acknowledgements that may time out in a row before another server is tried: a server that is cut off from its
/// cluster keeps its connections and answers nothing.
pub(crate) const TIMEOUTS_BEFORE_RECONNECT: u32 = 2;

/// Missing messages up to this number are asked for one by one instead of making a consumer (three requests).
pub(crate) const SINGLES: u64 = 4;

/// Messages in one pull.
pub(crate) const PULL_MESSAGES: usize = 1_000;

/// Bytes in one pull, at most, with room for a message of any size: what the client holds at once.
pub(crate) const PULL_BYTES: usize = 8 * 1024 * 1024;

/// Bytes that go to the copy in one write. With one more frame they stay below what the copy takes at once.
pub(crate) const COPY_BATCH_BYTES: usize = MAX_BATCH_BYTES / 2;
const _: () = assert!(COPY_BATCH_BYTES + MAX_RECORD_BYTES + MESSAGE_OVERHEAD_BYTES <= MAX_BATCH_BYTES);

/// Consumers that are made at most to meet a certain replica, or all: the server places each at random. A replica of
/// three is missed by chance once in 17,000 times.
pub(crate) const REPLICA_TRIES: u32 = 24;

/// Consumers of those that may fail: a replica that does not answer takes [`REQUEST_TIMEOUT`] each.
pub(crate) const REPLICA_FAILURES: u32 = 2;

/// How often a replica that delivers nothing is asked again before its end counts as lost: it may be catching up.
pub(crate) const REPLICA_QUIET: u32 = 4;

/// How long a leader may lag behind its own followers: a new one is still applying what it has.
pub(crate) const LEADER_LAG: Duration = Duration::from_secs(5);

/// How long the server keeps a consumer that nobody uses.
pub(crate) const CONSUMER_IDLE: Duration = Duration::from_secs(60);

/// How long one pull of the follower stays open. After it the end of the stream is asked for, so this also bounds how
/// late news can be when a consumer was lost.
pub(crate) const FOLLOW_PULL: Duration = Duration::from_secs(10);

/// Messages in one pull of the follower.
pub(crate) const FOLLOW_BATCH: usize = 1_000;

/// Differences that a comparison with the servers names one by one; more are only counted.
pub(crate) const SCRUB_DIFFERENCES: usize = 1_000;

/// Damaged copies that are kept beside a new one, for whoever wants to look at them.
pub(crate) const DAMAGED_COPIES: usize = 3;
