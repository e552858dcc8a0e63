//! The event log over NATS JetStream: [`NatsLog`] keeps `event-log`'s contract with one JetStream stream, for control
//! services that run as several replicas.
//!
//! | contract | JetStream |
//! |---|---|
//! | position | the stream's sequence number, from 1, no gaps: nothing is ever deleted |
//! | stream name | subject `flotilla.ev.<encoded name>`, see `subject.rs` |
//! | `expected_last` | header `Nats-Expected-Last-Subject-Sequence`: the server compares, atomically |
//! | record | the payload, with a version, a checksum and a commit id in headers, see `message.rs` |
//!
//! What makes it safe, and where: an append whose answer is lost is looked up by its commit id before it is tried
//! again (`append.rs`); reads insist on contiguity and checksums and ask the stream's leader when a replica's answer
//! looks wrong (`read.rs`); the stream is made so that nothing expires or can be deleted, and one that was made
//! otherwise is reported with what it can lose (`setup.rs`).
//!
//! What it cannot see: whether the server syncs before it acknowledges. Configure `jetstream { sync_interval: always }`
//! on every server; by default a power cut loses up to two minutes of acknowledged records.
//!
//! Read `event-log/src/contract.rs` first.

mod append;
mod connection;
mod error;
mod follow;
mod limits;
mod message;
mod options;
mod read;
mod setup;
mod subject;

pub mod testing;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::jetstream;
use event_log::{AppendError, BoxFuture, Entry, EventLog, Position, ReadError, ReadLimit, StreamName};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use error::NatsOpenError;
pub use options::NatsLogOptions;
pub use setup::Finding;

use connection::{Connection, rest};

/// A log kept by a JetStream stream. Any number of them, in any number of processes, may share one stream.
///
/// Reads follow the stream's leader as the server knows it. A server that is cut off from its cluster and has not
/// noticed yet may answer from an older state; an append never succeeds on that basis.
#[derive(Debug)]
pub struct NatsLog {
    shared: Arc<Shared>,
    /// Watches the stream's end; stopped with the log.
    follower: AbortHandle,
    findings: Vec<Finding>,
}

/// What the parts of the log have in common.
#[derive(Debug)]
struct Shared {
    options: NatsLogOptions,
    connection: Connection,
    context: jetstream::Context,
    stream: jetstream::stream::Stream<()>,
    /// The last position known, `None` once the log is closed.
    last: watch::Sender<Option<Position>>,
    /// Consumers that can go on where a reader stopped.
    cursors: Mutex<Vec<read::Cursor>>,
    closed: AtomicBool,
}

impl NatsLog {
    /// Connects, makes the stream if there is none, and checks it.
    ///
    /// What a server or a stream that was set up otherwise may lose is logged as a warning and can be had from
    /// [`NatsLog::findings`].
    ///
    /// # Errors
    /// [`NatsOpenError`]: no connection within `open_timeout`, a server older than 2.10 or without JetStream, a stream
    /// that does not fit or has lost records.
    pub async fn open(options: NatsLogOptions) -> Result<NatsLog, NatsOpenError> {
        options.check()?;
        let connection = Connection::open(&options).await?;
        let opened = setup::open_stream(&options, &connection).await?;
        for finding in &opened.findings {
            tracing::warn!(stream = options.stream, setting = finding.setting, "{finding}");
        }
        tracing::info!(
            stream = options.stream,
            last = %opened.last,
            "event log on NATS; make sure every server has `jetstream {{ sync_interval: always }}`: a client can't see \
             it, and without it a power cut loses acknowledged records"
        );
        let shared = Arc::new(Shared {
            connection,
            context: opened.context,
            stream: opened.stream,
            last: watch::Sender::new(Some(opened.last)),
            cursors: Mutex::default(),
            closed: AtomicBool::new(false),
            options,
        });
        let follower = tokio::spawn(follow::follow(Arc::clone(&shared))).abort_handle();
        Ok(NatsLog { shared, follower, findings: opened.findings })
    }

    /// What was found at opening that can lose records, worst first. Empty for a stream that this crate made, on a
    /// recent server, with three replicas.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }
}

impl Shared {
    fn check_open(&self) -> Result<(), ReadError> {
        if self.closed.load(Ordering::Acquire) { Err(ReadError::Closed) } else { Ok(()) }
    }

    /// Asks until there is an answer: a server that restarts or a cluster that elects is not the caller's concern.
    async fn patiently<T, F>(&self, ask: impl Fn() -> F) -> Result<T, ReadError>
    where
        F: Future<Output = Result<T, ReadError>>,
    {
        let deadline = Instant::now() + self.options.read_timeout;
        let mut attempt = 0;
        loop {
            let answer = if self.connection.is_up() {
                ask().await
            } else {
                Err(ReadError::Unavailable { reason: "not connected".to_owned() })
            };
            match answer {
                Err(ReadError::Unavailable { reason }) if Instant::now() < deadline => {
                    self.check_open()?;
                    tracing::debug!(reason, "NATS did not answer a read, trying again");
                    rest(&mut attempt, deadline).await;
                }
                answer => return answer,
            }
        }
    }

    /// The log is known to reach at least this position.
    fn saw(&self, position: Position) {
        self.last.send_if_modified(|last| match last {
            Some(last) if *last < position => {
                *last = position;
                true
            }
            _ => false,
        });
    }
}

impl EventLog for NatsLog {
    fn append<'a>(
        &'a self,
        stream: &'a StreamName,
        expected_last: Option<Position>,
        bytes: Vec<u8>,
    ) -> BoxFuture<'a, Result<Position, AppendError>> {
        Box::pin(async move {
            self.shared.check_open().map_err(|_| AppendError::Closed)?;
            self.shared.append(stream, expected_last, bytes).await
        })
    }

    fn read(&self, from: Position, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>> {
        Box::pin(async move {
            self.shared.check_open()?;
            let from = Position(from.0.max(1));
            self.shared.patiently(|| self.shared.read_page(from, limit.clamped())).await
        })
    }

    fn last_position(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move {
            self.shared.check_open()?;
            self.shared.patiently(|| self.shared.leader_last_position()).await
        })
    }

    fn last_of_stream<'a>(
        &'a self,
        stream: &'a StreamName,
    ) -> BoxFuture<'a, Result<Option<Position>, ReadError>> {
        Box::pin(async move {
            self.shared.check_open()?;
            let subject = subject::encode(&self.shared.options.subject_prefix, stream);
            self.shared.patiently(|| self.shared.leader_last_of_subject(&subject)).await
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
            self.shared.cursors.lock().unwrap_or_else(PoisonError::into_inner).clear();
        })
    }
}

impl Drop for NatsLog {
    fn drop(&mut self) {
        // The follower holds the connection; without it the connection ends with the last handle.
        self.follower.abort();
    }
}
