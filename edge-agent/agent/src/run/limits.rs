//! Every limit of the run engine, with its reason. Those of the swarm are in `sync_core::config`. What means memory is for a
//! machine that has some; a small one has a part of it (`memory.rs`).

use std::time::Duration;

/// Bytes of blocks of one run held in memory, each counted with [`BLOCK_COST`]: arriving, or waiting to be checked
/// and written. Twice what a run asks for at a time (`FetchConfig::outstanding_max` and `want_max`), so only a peer
/// that sends unasked meets it.
pub(super) const BYTES_HELD: usize = 96 << 20;

/// Bytes of blocks of one connection that are there in part, counted alike. Above what we ask of a peer (32 MiB by
/// number and 16 of its choice) and below [`BYTES_HELD`]: one that sends unasked does not take the room of the others.
pub(super) const BYTES_BEGUN: usize = 64 << 20;

/// What a block that is being put together takes beside its bytes.
pub(super) const BLOCK_COST: usize = 512;

/// Separate ranges of one block: honest peers make some 25 pieces of a block.
pub(super) const PIECES_APART: usize = 256;

/// Pieces of a block that was whole a moment ago are late repeats and not the beginning of another one.
pub(super) const REPEATS: Duration = Duration::from_secs(2);

/// A block of which nothing came for so long never becomes whole: its rest was cancelled.
pub(super) const PIECES_PATIENCE: Duration = Duration::from_secs(30);

/// Blocks of full length of one run given to the transport and not acknowledged, for one peer and for all: 16 MiB
/// are 1 Gbit/s at 130 ms. Just below what the disk's cache keeps (32 MiB), so that the transport reads from memory.
pub(super) const SENDING: (usize, usize) = (512, 896);

/// Threads that check and write blocks of one run.
pub(super) const WRITERS: usize = 2;

/// Blocks that a thread takes, and tells of, at a time: one message and one record of the journal for all of them.
pub(super) const JOBS: usize = 64;

/// Connections of one run that this agent makes itself. A swarm is well connected with fewer.
pub(super) const PEERS_DIALLED: usize = 64;

/// Connections of one run in all; further ones are turned away and come back later.
pub(super) const PEERS_MAX: usize = 160;

/// Addresses remembered for one peer; the oldest hint gives way.
pub(super) const ADDRESSES: usize = 12;

/// Pause between the starts of attempts at a peer's different addresses.
pub(super) const STAGGER: Duration = Duration::from_millis(250);

/// First and longest pause before a peer is tried again.
pub(super) const REDIAL: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(20));

/// Two connections with a peer that are no further apart are a crossing, not a restart.
pub(super) const CROSSING: Duration = Duration::from_secs(3);

/// Bytes of messages waiting for a peer that does not take them; then its connection is closed.
pub(super) const MESSAGES_WAITING: usize = 32 << 20;

/// What a message that waits costs beside its bytes.
pub(super) const MESSAGE_COST: usize = 64;

/// Blocks of one peer that wait to be looked up on the disk. Far above [`SENDING`] of the shortest blocks: only a peer
/// that asks and takes back all the time gets there, and loses its connection.
pub(super) const READS_WAITING: usize = 16_384;

/// Things that may wait for a run's task; who brings more waits.
pub(super) const EVENTS_WAITING: usize = 4096;

/// How often a full disk is looked at again.
pub(super) const DISK_RETRY: Duration = Duration::from_secs(3);

/// Problems of one run that are reported; the rest is counted in the log.
pub(super) const PROBLEMS_REPORTED: usize = 1000;

/// A destination whose disk was full before all was looked at is looked at again after so many times as long as that
/// took, and at the latest after this.
pub(super) const LOOK_AGAIN: u32 = 10;
pub(super) const LOOK_AGAIN_MAX: Duration = Duration::from_secs(300);

/// How often figures are written down: what a kill may cost of them.
pub(super) const RECORD_INTERVAL: Duration = Duration::from_secs(2);

/// How often the run's task looks at redialling, telemetry and timeouts of its own.
pub(super) const TICK: Duration = Duration::from_millis(200);

/// Shortest time between two pieces of telemetry of a run.
pub(super) const TELEMETRY: Duration = Duration::from_millis(500);

/// How often round trip times are passed to the swarm.
pub(super) const RTT_INTERVAL: Duration = Duration::from_secs(1);

/// Trackers used at a time, over all runs.
pub(super) const TRACKERS: usize = 8;

/// How often the limit of the agent's sending rate is divided anew.
pub(super) const RATE_INTERVAL: Duration = Duration::from_millis(250);

/// How long a stopped run waits for work on blocking threads to end before it removes files.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(10);
