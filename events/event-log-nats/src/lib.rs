//! The event log over NATS JetStream: [`NatsLog`] keeps `event-log`'s contract with one JetStream stream, for control
//! services that run as several replicas.
//!
//! | contract | JetStream |
//! |---|---|
//! | commit | one message, a *frame*: records that were appended at about the same time |
//! | position | counted over the records of all frames, from 1; each frame says where it begins |
//! | `expected_last` | compared with the local copy, which the header `Nats-Expected-Last-Sequence` proves to be up to date: the server stores a frame only as the successor of the last one that the copy holds |
//! | reading | from the local copy, a segment log that holds what was verified |
//!
//! What makes it safe, and where: a frame whose answer is lost is looked up by its commit id before it is sent again
//! (`commit.rs`); every message is checked for its place, its checksum and its count before it is applied, and the
//! stream's leader is asked when a replica's answer looks wrong (`applier.rs`, `catch_up.rs`); the copy is compared with
//! the servers when it is opened and whenever asked (`copy.rs`, `scrub.rs`); the stream is made so that nothing expires
//! or can be deleted, and one that was made otherwise is reported with what it can lose (`setup.rs`, `settings.rs`).
//!
//! What it cannot see: whether the server syncs before it acknowledges. Configure `jetstream { sync_interval: always }`
//! on every server; by default a power cut loses up to two minutes of acknowledged records.
//!
//! Read `event-log/src/contract.rs` first, then `events/NATS_FORMAT.md`.

mod applier;
mod bus;
mod catch_up;
mod commit;
mod connection;
mod copy;
mod error;
mod follow;
mod frame;
mod limits;
mod message;
mod options;
mod queue;
mod replicas;
mod scrub;
mod servers;
mod settings;
mod setup;
mod shared;
mod vault;

pub mod testing;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use event_log::{AppendError, BoxFuture, Entry, EventLog, Position, ReadError, ReadLimit, StreamName};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

pub use bus::NatsBus;
pub use error::NatsOpenError;
pub use options::NatsLogOptions;
pub use scrub::{Difference, Scrub};
pub use settings::Finding;
pub use vault::{NatsVault, VaultError};

use commit::Committer;
use connection::{Connection, rest};
use queue::Queue;
use servers::Servers;
use shared::Shared;

/// A log kept by a JetStream stream. Any number of them, in any number of processes, may share one stream.
///
/// Reads follow the stream's leader as the server knows it. A server that is cut off from its cluster and has not
/// noticed yet may answer from an older state; an append never succeeds on that basis.
#[derive(Debug)]
pub struct NatsLog {
    shared: Arc<Shared>,
    /// To the committer; `None` once the log is closed.
    queue: Mutex<Option<Queue>>,
    committer: Mutex<Option<JoinHandle<()>>>,
    /// Watches the stream's end; stopped with the log.
    follower: AbortHandle,
    findings: Vec<Finding>,
    made: bool,
}

impl NatsLog {
    /// Connects, makes the stream if there is none, checks it, compares it with the local copy, and fetches into the copy
    /// what it lacks. A stream of format 1 is raised to format 2, after which older releases refuse it.
    ///
    /// What a server or a stream that was set up otherwise may lose is logged as a warning and can be had from
    /// [`NatsLog::findings`].
    ///
    /// # Errors
    /// [`NatsOpenError`]: no connection within `open_timeout`, a server older than 2.10 or without JetStream, a stream
    /// that does not fit or has lost records, a copy that is not of this log or longer than it.
    pub async fn open(options: NatsLogOptions) -> Result<NatsLog, NatsOpenError> {
        options.check()?;
        let connection = Connection::open(&options).await?;
        let (copy, folder) = copy::open(&options).await?;
        let held = copy.last_stored();
        let shorter = (held > Position::ZERO).then(|| NatsOpenError::Shorter {
            stream: options.stream.clone(),
            dir: folder.path().to_path_buf(),
            servers: Position::ZERO,
            copy: held,
        });
        let opened = setup::open_stream(&options, &connection, shorter).await?;
        for finding in &opened.findings {
            tracing::warn!(stream = options.stream, setting = finding.setting, "{finding}");
        }
        let servers = Servers {
            options,
            connection,
            context: opened.context,
            stream: opened.stream,
            is_replicated: opened.info.config.num_replicas > 1,
            unanswered: Mutex::default(),
        };
        setup::check_whole(&servers, &opened.info).await?;
        let applier = copy::join(&servers, copy, &folder).await?;
        let shared = Arc::new(Shared::new(servers, applier, folder));
        fill(&shared).await?;
        check_leader(&shared.servers).await?;
        tracing::info!(
            stream = shared.servers.options.stream,
            copy_held = %held,
            last = %shared.copy.last_stored(),
            "event log on NATS; make sure every server has `jetstream {{ sync_interval: always }}`: a client can't see \
             it, and without it a power cut loses acknowledged records"
        );
        let (queue, asked) = Queue::new();
        let committer = tokio::spawn(Committer::new(Arc::clone(&shared), opened.frame_bytes).run(asked));
        let follower = tokio::spawn(follow::follow(Arc::clone(&shared))).abort_handle();
        Ok(NatsLog {
            shared,
            queue: Mutex::new(Some(queue)),
            committer: Mutex::new(Some(committer)),
            follower,
            findings: opened.findings,
            made: opened.made,
        })
    }

    /// What was found at opening that can lose records, worst first. Empty for a stream that this crate made, on a
    /// recent server, with three replicas.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Where the programs that share this log hear each other, beside it.
    pub fn bus(&self) -> NatsBus {
        NatsBus::new(&self.shared)
    }

    /// The bucket for small secrets beside the log, made if there is none.
    ///
    /// # Errors
    /// If the servers do not answer, or refuse it.
    pub async fn vault(&self) -> Result<NatsVault, VaultError> {
        NatsVault::open(&self.shared).await
    }

    /// Whether opening made the stream, since the servers held none. For a log that should hold records it says that they
    /// are lost: without a local copy nothing else could. With a copy that holds records no stream is made.
    pub fn was_made(&self) -> bool {
        self.made
    }

    /// Compares every message that the servers hold with the local copy: as the log is read, then on every server of the
    /// stream by itself. Reads the log that often; appends and reads go on meanwhile. Nothing is changed.
    ///
    /// # Errors
    /// When the servers don't answer, the copy can't be read, or the log is closed: nothing can be said then.
    pub async fn scrub(&self) -> Result<Scrub, ReadError> {
        scrub::scrub(&self.shared).await
    }

    fn queue(&self) -> Option<Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Fetches what the copy lacks, as long as that gets on.
async fn fill(shared: &Arc<Shared>) -> Result<(), NatsOpenError> {
    let patience = shared.servers.options.open_timeout;
    let (mut reached, mut deadline, mut attempt) = (shared.applied(), Instant::now() + patience, 0);
    loop {
        let reason = match shared.catch_up(None).await {
            Ok(()) => return Ok(()),
            Err(ReadError::Damaged(damage)) => return Err(NatsOpenError::Damaged(damage)),
            Err(error) => error.to_string(),
        };
        if shared.applied() > reached {
            (reached, deadline, attempt) = (shared.applied(), Instant::now() + patience, 0);
        } else if Instant::now() >= deadline {
            return Err(NatsOpenError::JetStream { servers: shared.servers.options.shown_servers(), reason });
        }
        rest(&mut attempt, deadline).await;
    }
}

/// Refuses a leader that ends before one of its own followers: it has lost what was acknowledged, and would take new
/// records in its place (`events/NATS_FORMAT.md` §8).
async fn check_leader(servers: &Servers) -> Result<(), NatsOpenError> {
    let ends = match servers.ends().await {
        Ok(ends) => ends,
        Err(error) => {
            tracing::warn!(%error, "the servers of the stream could not be compared");
            return Ok(());
        }
    };
    let Some((server, end)) = ends.into_iter().max_by_key(|(_, end)| *end) else { return Ok(()) };
    let (deadline, mut attempt) = (Instant::now() + limits::LEADER_LAG, 0);
    loop {
        let (stream, shown) = (servers.options.stream.clone(), || servers.options.shown_servers());
        match servers.last_sequence().await {
            Ok(leader) if leader >= end => return Ok(()),
            Ok(leader) if Instant::now() >= deadline => {
                return Err(NatsOpenError::LeaderShorter { stream, leader, server, end });
            }
            Err(error) if Instant::now() >= deadline => {
                return Err(NatsOpenError::JetStream { servers: shown(), reason: error.to_string() });
            }
            _ => rest(&mut attempt, deadline).await,
        }
    }
}

impl EventLog for NatsLog {
    fn append_batch<'a>(
        &'a self,
        stream: &'a StreamName,
        expected_last: Option<Position>,
        records: Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<Position, AppendError>> {
        Box::pin(async move {
            let queue = self.queue().ok_or(AppendError::Closed)?;
            queue.append(&self.shared, stream, expected_last, records).await
        })
    }

    fn read(&self, from: Position, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>> {
        Box::pin(async move {
            self.shared.check_open()?;
            if from > self.shared.copy.last_stored() {
                // What lies before a failure can be read all the same.
                let fresh = self.shared.freshen().await;
                if from > self.shared.copy.last_stored() {
                    return fresh.map(|()| Vec::new());
                }
            }
            match self.shared.copy.read(from, limit).await {
                // What rotted here is still there.
                Err(ReadError::Damaged(damage)) => {
                    copy::read_around(&self.shared.servers, from, limit, damage).await
                }
                page => page,
            }
        })
    }

    /// Always 1: nothing leaves the stream.
    fn first(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move {
            self.shared.check_open()?;
            Ok(Position(1))
        })
    }

    fn last_position(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move {
            self.shared.freshen().await?;
            self.shared.copy.last_position().await
        })
    }

    fn last_of_stream<'a>(
        &'a self,
        stream: &'a StreamName,
    ) -> BoxFuture<'a, Result<Option<Position>, ReadError>> {
        Box::pin(async move {
            self.shared.freshen().await?;
            self.shared.copy.last_of_stream(stream).await
        })
    }

    fn wait_beyond(&self, position: Position) -> BoxFuture<'_, Result<Position, ReadError>> {
        let mut last = self.shared.last.subscribe();
        Box::pin(async move {
            let reached = last.wait_for(|last| last.is_none_or(|last| last > position)).await;
            reached.ok().and_then(|last| *last).ok_or(ReadError::Closed)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.shared.closed.store(true, Ordering::Release);
            self.shared.last.send_replace(None);
            self.follower.abort();
            // The committer ends when it has answered what was asked before.
            self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
            let committer = self.committer.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(committer) = committer
                && let Err(error) = committer.await
            {
                tracing::error!(%error, "the log's committer had panicked");
            }
            self.shared.copy.close().await;
        })
    }
}

impl Drop for NatsLog {
    fn drop(&mut self) {
        // The follower holds the connection and the copy; without it both end with the last handle, when the committer has
        // answered what was asked.
        self.follower.abort();
    }
}
