//! The contract that every backend keeps. `conformance.rs` is its executable form.

use std::future::Future;
use std::pin::Pin;

use crate::error::{AppendError, ReadError};
use crate::position::{Entry, Position, ReadLimit, StreamName};

/// A boxed future. The trait's methods return it so that `Arc<dyn EventLog>` works: which backend is used is chosen
/// when the service starts. One allocation per call is nothing beside a sync or a network round trip.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One append-only log of records in streams.
///
/// What holds for every backend:
/// - Positions count from 1 over the whole log, without gaps, in the order in which records became readable.
/// - An acknowledged append is durable, is read back byte for byte, and is there exactly once.
/// - Of several appends with the same expectation on one stream exactly one succeeds; the others get
///   [`AppendError::Conflict`].
/// - A record can be read as soon as its append is acknowledged, by this handle and (for a shared backend) by others.
/// - Dropping a future does not undo what it asked for: a dropped append may still be stored.
pub trait EventLog: Send + Sync + 'static {
    /// Appends one record to `stream` if the stream's last record is `expected_last` (`None`: the stream is empty),
    /// and returns its position once it is durable.
    ///
    /// `bytes` may be empty; at most [`MAX_RECORD_BYTES`](crate::limits::MAX_RECORD_BYTES).
    ///
    /// # Errors
    /// See [`AppendError`]; only after [`AppendError::Unknown`] may the record have been stored.
    fn append<'a>(
        &'a self,
        stream: &'a StreamName,
        expected_last: Option<Position>,
        bytes: Vec<u8>,
    ) -> BoxFuture<'a, Result<Position, AppendError>> {
        self.append_batch(stream, expected_last, vec![bytes])
    }

    /// Appends several records to `stream` as one commit: all of them, one after the other and with nothing between,
    /// or none. The stream's last record has to be `expected_last`, as for [`EventLog::append`]; returns the position
    /// of the first one.
    ///
    /// If the embedded log's process is killed before it answers, the first records of the commit may be there without
    /// the others; nobody was told of any. So each record of a commit has to be right without those behind it.
    ///
    /// What follows from a record that is on its way must go through here: a second append that names the first one's
    /// position would also succeed behind somebody else's record at that position.
    ///
    /// One record is always taken; more than one only up to [`MAX_COMMIT_RECORDS`](crate::limits::MAX_COMMIT_RECORDS)
    /// and [`MAX_COMMIT_BYTES`](crate::limits::MAX_COMMIT_BYTES) of payload.
    ///
    /// # Errors
    /// See [`AppendError`]; [`AppendError::TooLarge`] also for too much at once, or for nothing.
    fn append_batch<'a>(
        &'a self,
        stream: &'a StreamName,
        expected_last: Option<Position>,
        records: Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<Position, AppendError>>;

    /// Returns records from `from` on (0 counts as 1), contiguous, at most `limit` of them; at least one unless the
    /// log ends before `from`.
    ///
    /// # Errors
    /// [`ReadError::Archived`] when `from` stands before [`EventLog::first`].
    /// [`ReadError::Damaged`] when the record at `from` is damaged or missing. If the damage lies further on, the
    /// entries before it are returned first, and the next read, from there, fails.
    fn read(&self, from: Position, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>>;

    /// The position of the first record that can be read, or that will be the first one of an empty log: 1, unless the
    /// log's beginning was moved to an archive. It only grows. Fences and last positions hold all the same for streams
    /// whose records are in the archive.
    ///
    /// # Errors
    /// When the log is closed.
    fn first(&self) -> BoxFuture<'_, Result<Position, ReadError>>;

    /// The position of the log's last record, [`Position::ZERO`] if it is empty.
    ///
    /// # Errors
    /// When the backend can't say.
    fn last_position(&self) -> BoxFuture<'_, Result<Position, ReadError>>;

    /// The position of the stream's last record, `None` if it is empty: what the next append to it expects.
    ///
    /// # Errors
    /// When the backend can't say.
    fn last_of_stream<'a>(
        &'a self,
        stream: &'a StreamName,
    ) -> BoxFuture<'a, Result<Option<Position>, ReadError>>;

    /// Waits until the log's last position is beyond `position`, and returns it. At once if it is so already.
    ///
    /// Waits as long as it takes: use a timeout around it where that matters. It may be dropped at any time.
    ///
    /// # Errors
    /// [`ReadError::Closed`] when the log is closed meanwhile.
    fn wait_beyond(&self, position: Position) -> BoxFuture<'_, Result<Position, ReadError>>;

    /// Finishes the appends already asked for and releases what the log holds (its lock, its connection).
    /// Afterwards every call is answered with `Closed`. Closing twice is fine.
    fn close(&self) -> BoxFuture<'_, ()>;
}
