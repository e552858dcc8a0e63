//! Every bound of this backend in one place, with its reason.

use std::time::Duration;

/// Oldest server that is accepted: `sync_interval` came with 2.10, so nothing older can be made durable.
pub(crate) const OLDEST_SERVER: (u64, u64) = (2, 10);

/// Oldest server that is not warned about: 2.15 keeps `sync_interval: always` affordable with replicas and fixes
/// compaction that ignored it.
pub(crate) const RECOMMENDED_SERVER: (u64, u64) = (2, 15);

/// What headers and subject add to a record, at most: the server counts headers against its `max_payload`.
pub(crate) const MESSAGE_OVERHEAD_BYTES: usize = 4 * 1024;

/// How long one publish waits for its answer before it counts as unknown. A sync on a busy disk takes tens of
/// milliseconds, a leader election a few seconds.
pub(crate) const ACK_TIMEOUT: Duration = Duration::from_secs(5);

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

/// Readers that can go on where they stopped. Each holds a consumer on the server (some 40 KiB there) and up to a page
/// here.
pub(crate) const MAX_CURSORS: usize = 4;

/// Reads of no more entries than this ask for them one by one instead of making a consumer.
pub(crate) const SINGLES: usize = 2;

/// How long the server keeps a consumer that nobody uses.
pub(crate) const CONSUMER_IDLE: Duration = Duration::from_secs(60);

/// How long one pull of the follower stays open. After it the end of the stream is asked for, so this also bounds how
/// late news can be when a consumer was lost.
pub(crate) const FOLLOW_PULL: Duration = Duration::from_secs(10);

/// Messages in one pull of the follower.
pub(crate) const FOLLOW_BATCH: usize = 1_000;
