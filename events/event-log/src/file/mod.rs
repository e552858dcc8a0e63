//! The embedded backend: one folder of segment files, one writing process, nothing to install.
//!
//! Owns the folder, its lock and the handle that callers hold. Read `events/LOG_FORMAT.md` first; then `record.rs`
//! (bytes), `segment.rs` (files), `recovery.rs` (opening), `writer.rs` (appending), `reader.rs` (reading), `base.rs`
//! (a log whose beginning is in an archive).

mod base;
mod index;
mod reader;
mod record;
mod recovery;
mod segment;
mod stored;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use self::index::Index;
use self::record::Codec;
use self::writer::{Append, Batch, Faults, Request, Writer};
use crate::contract::{BoxFuture, EventLog};
use crate::error::{AppendError, OpenError, ReadError, ShortenError};
use crate::limits::{
    DEFAULT_SEGMENT_BYTES, MAX_BATCH_BYTES, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, QUEUE_APPENDS, QUEUE_BYTES,
};
use crate::position::{Entry, Position, ReadLimit, StreamName};

pub use self::base::Base;
pub use self::index::ClosedSegment;
pub use self::record::LogId;
pub use self::recovery::{Recovery, TornTail};
pub use self::segment::file_name as segment_file_name;
pub use self::stored::{SegmentReader, StoredRecord};

/// How a log folder is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLogOptions {
    /// Bytes after which a new segment is begun; 4 KiB to 1 GiB, 64 MiB by default. May differ from one opening to
    /// the next.
    pub segment_bytes: u64,
    /// Takes no lock, changes nothing, and opens a damaged log too: reads reach up to the damage. Shows the log as it
    /// was when opened; works beside a running writer. Off by default.
    pub read_only: bool,
    /// Makes records durable before they are acknowledged. On by default. Off is for a copy of a log that can be had
    /// again from elsewhere: records are written and not synced, so a power cut may tear its end or damage it.
    pub sync: bool,
}

impl Default for FileLogOptions {
    fn default() -> FileLogOptions {
        FileLogOptions { segment_bytes: DEFAULT_SEGMENT_BYTES, read_only: false, sync: true }
    }
}

/// A log in a folder.
///
/// Dropping it finishes the appends already asked for and releases the lock, as [`EventLog::close`] does.
#[derive(Debug)]
pub struct FileLog {
    dir: PathBuf,
    log: LogId,
    codec: Codec,
    /// Set when the log does not begin with its first record; locked while that changes.
    base: Mutex<Option<Arc<Base>>>,
    index: Arc<RwLock<Index>>,
    /// The last durable position, `None` once closed.
    last: Arc<watch::Sender<Option<Position>>>,
    /// To the writer; `None` when read-only.
    requests: Option<mpsc::Sender<Request>>,
    /// Payload bytes that may still be queued.
    room: Arc<Semaphore>,
    closed: AtomicBool,
    writer: Mutex<Option<JoinHandle<()>>>,
    recovery: Recovery,
}

impl FileLog {
    /// Opens the log in `dir`, making folder and log if there is none, and verifies all of it. Reads every segment:
    /// expect about a second per gigabyte from a warm disk.
    ///
    /// # Errors
    /// [`OpenError::Locked`] when another writer has it, [`OpenError::Damaged`] when something is wrong beyond what an
    /// interrupted append leaves; nothing has been changed then.
    pub async fn open(dir: impl Into<PathBuf>, options: FileLogOptions) -> Result<FileLog, OpenError> {
        let dir = dir.into();
        let at = dir.clone();
        match tokio::task::spawn_blocking(move || FileLog::open_blocking(&dir, options)).await {
            Ok(opened) => opened,
            Err(error) => {
                Err(OpenError::Io { doing: "open", path: at, source: std::io::Error::other(error) })
            }
        }
    }

    /// The same for callers that may block.
    ///
    /// # Errors
    /// As [`FileLog::open`].
    pub fn open_blocking(dir: &Path, options: FileLogOptions) -> Result<FileLog, OpenError> {
        FileLog::open_with(dir, options, Faults::default())
    }

    fn open_with(dir: &Path, options: FileLogOptions, faults: Faults) -> Result<FileLog, OpenError> {
        if !(MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&options.segment_bytes) {
            return Err(OpenError::Setting(format!(
                "segment_bytes is {}, it must be {MIN_SEGMENT_BYTES} to {MAX_SEGMENT_BYTES}",
                options.segment_bytes
            )));
        }
        let lock = if options.read_only { None } else { Some(lock_folder(dir)?) };
        let found = match options.read_only {
            true => recovery::recover_beside(dir)?,
            false => recovery::recover(dir, true, options.sync)?,
        };
        FileLog::of(dir, &options, lock, found, faults)
    }

    /// Opens segments that left their log's folder (`events/LOG_FORMAT.md` §8), for reading: those of the folder whose
    /// first positions are in `firsts`, from the first one on that is there. Damage is told as for a log that is
    /// read-only, a torn tail included. Blocks.
    ///
    /// # Errors
    /// As [`FileLog::open`].
    pub fn open_archived(dir: &Path, firsts: RangeInclusive<Position>) -> Result<FileLog, OpenError> {
        let options = FileLogOptions { read_only: true, ..FileLogOptions::default() };
        FileLog::of(dir, &options, None, recovery::recover_archived(dir, &firsts)?, Faults::default())
    }

    fn of(
        dir: &Path,
        options: &FileLogOptions,
        lock: Option<File>,
        found: recovery::Found,
        faults: Faults,
    ) -> Result<FileLog, OpenError> {
        let codec = Codec::new(found.log);
        let last = Arc::new(watch::Sender::new(Some(found.index.last())));
        let index = Arc::new(RwLock::new(found.index));
        let mut requests = None;
        let mut thread = None;
        if let (Some(lock), Some(tail)) = (lock, found.tail) {
            let writer = Writer {
                dir: dir.to_path_buf(),
                log: found.log,
                codec: codec.clone(),
                segment_bytes: options.segment_bytes,
                sync: options.sync,
                tail,
                index: Arc::clone(&index),
                last: Arc::clone(&last),
                poisoned: None,
                lock,
                faults,
            };
            let (sender, receiver) = mpsc::channel(QUEUE_APPENDS);
            let spawned = std::thread::Builder::new()
                .name("event-log-writer".to_owned())
                .spawn(move || writer.run(receiver))
                .map_err(io("start the writer of", dir))?;
            (requests, thread) = (Some(sender), Some(spawned));
        }
        Ok(FileLog {
            dir: dir.to_path_buf(),
            log: found.log,
            base: Mutex::new(found.base.map(Arc::new)),
            codec,
            index,
            last,
            requests,
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            closed: AtomicBool::new(false),
            writer: Mutex::new(thread),
            recovery: found.recovery,
        })
    }

    /// What opening found.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// The log's identity.
    pub fn log_id(&self) -> LogId {
        self.log
    }

    /// The first position that can be read, without waiting; what [`EventLog::first`] says.
    pub fn first_stored(&self) -> Position {
        self.index().first()
    }

    /// Where the log begins in its folder, unless that is at its first record.
    pub fn base(&self) -> Option<Arc<Base>> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The segments to which nothing is written any more, in the order of the log: all but the last one.
    pub fn closed_segments(&self) -> Vec<ClosedSegment> {
        self.index().closed()
    }

    /// What the log's folder will say once it begins behind `position`, the end of a closed segment, with this `note`.
    ///
    /// # Errors
    /// [`ShortenError::NotAnEnd`].
    pub fn base_after(&self, position: Position, note: Vec<u8>) -> Result<Base, ShortenError> {
        let index = self.index();
        if !index.closed().iter().any(|segment| segment.last == position) {
            return Err(ShortenError::NotAnEnd { position });
        }
        Ok(Base { position, log: self.log, streams: index.streams_until(position), note })
    }

    /// Moves the beginning of the log behind `position` and removes the segments before it (`events/LOG_FORMAT.md` §8),
    /// keeping `note`, at most [`MAX_BASE_NOTE_BYTES`](crate::limits::MAX_BASE_NOTE_BYTES). That they are safe elsewhere
    /// is the caller's to know. Appends and reads go on meanwhile. Blocks.
    ///
    /// # Errors
    /// [`ShortenError`]: nothing was removed. A file that cannot be removed afterwards is warned about, and removed when
    /// the log is opened next.
    pub fn begin_after(&self, position: Position, note: Vec<u8>) -> Result<(), ShortenError> {
        if self.requests.is_none() {
            return Err(ShortenError::ReadOnly);
        }
        let mut current = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        let base = self.base_after(position, note)?;
        let path = base::path(&self.dir);
        base::store(&self.dir, &base).map_err(|source| ShortenError::Io { path, source })?;
        *current = Some(Arc::new(base));
        let gone = self.index.write().unwrap_or_else(PoisonError::into_inner).begin_after(position);
        let removed = gone.iter().try_for_each(fs::remove_file).and_then(|()| segment::sync_dir(&self.dir));
        if let Err(error) = removed {
            tracing::warn!(dir = %self.dir.display(), %error, "archived segments are removed at the next opening");
        }
        Ok(())
    }

    /// The position of the log's last record, without waiting for anything; what [`EventLog::last_position`] says.
    pub fn last_stored(&self) -> Position {
        self.index().last()
    }

    /// The position of the stream's last record, without waiting; what [`EventLog::last_of_stream`] says.
    pub fn last_stored_of(&self, stream: &StreamName) -> Option<Position> {
        self.index().last_of_stream(stream)
    }

    /// Appends records of any streams, in this order, whatever those streams end with, and returns the position of the
    /// last one: for a copy of a log whose order somebody else has decided. All of them are stored, or none is; at most
    /// [`MAX_BATCH_BYTES`] of payload and names in sum. No records: nothing is written.
    ///
    /// # Errors
    /// As [`EventLog::append`], never `Conflict`.
    pub async fn append_all(&self, records: Vec<(StreamName, Vec<u8>)>) -> Result<Position, AppendError> {
        self.batch(None, records).await
    }

    async fn append_commit(
        &self,
        stream: &StreamName,
        expected: Option<Position>,
        records: Vec<Vec<u8>>,
    ) -> Result<Position, AppendError> {
        AppendError::check_commit(&records)?;
        let others = records.len() as u64 - 1;
        let records = records.into_iter().map(|bytes| (stream.clone(), bytes)).collect();
        let last = self.batch(Some((stream.clone(), expected)), records).await?;
        Ok(Position(last.0 - others))
    }

    async fn batch(
        &self,
        expected: Option<(StreamName, Option<Position>)>,
        records: Vec<(StreamName, Vec<u8>)>,
    ) -> Result<Position, AppendError> {
        self.check_open().map_err(|_| AppendError::Closed)?;
        let requests = self.requests.as_ref().ok_or(AppendError::ReadOnly)?;
        let size = records.iter().map(|(stream, bytes)| stream.as_str().len() + bytes.len()).sum();
        if size > MAX_BATCH_BYTES {
            return Err(AppendError::TooLarge { size, max: MAX_BATCH_BYTES });
        }
        records.iter().try_for_each(|(_, bytes)| AppendError::check_size(bytes))?;
        // Far below u32::MAX: checked above.
        let room = Arc::clone(&self.room).acquire_many_owned(size as u32).await;
        let room = room.map_err(|_| AppendError::Closed)?;
        let (answer, answered) = oneshot::channel();
        let batch = Batch { expected, records, answer, _room: room };
        requests.send(Request::Batch(batch)).await.map_err(|_| self.writer_gone(false))?;
        answered.await.unwrap_or_else(|_| Err(self.writer_gone(true)))
    }

    async fn append_one(
        &self,
        stream: &StreamName,
        expected: Option<Position>,
        bytes: Vec<u8>,
    ) -> Result<Position, AppendError> {
        AppendError::check_size(&bytes)?;
        self.check_open().map_err(|_| AppendError::Closed)?;
        let requests = self.requests.as_ref().ok_or(AppendError::ReadOnly)?;
        // Far below u32::MAX: checked above.
        let room = Arc::clone(&self.room).acquire_many_owned(bytes.len() as u32).await;
        let room = room.map_err(|_| AppendError::Closed)?;
        let (answer, answered) = oneshot::channel();
        let append = Append { stream: stream.clone(), expected, bytes, answer, _room: room };
        requests.send(Request::Append(append)).await.map_err(|_| self.writer_gone(false))?;
        // The writer answers everything it takes; what it did not take when it closed was not written.
        answered.await.unwrap_or_else(|_| Err(self.writer_gone(true)))
    }

    /// Why there is no writer any more, for an append that it may have `taken`.
    fn writer_gone(&self, taken: bool) -> AppendError {
        let reason = "the writer panicked".to_owned();
        match (self.last.borrow().is_none(), taken) {
            (true, _) => AppendError::Closed,
            (false, true) => AppendError::Unknown { reason },
            (false, false) => AppendError::Poisoned { reason },
        }
    }

    async fn read_from(&self, from: Position, limit: ReadLimit) -> Result<Vec<Entry>, ReadError> {
        self.check_open()?;
        let (index, codec) = (Arc::clone(&self.index), self.codec.clone());
        let page = tokio::task::spawn_blocking(move || reader::read_page(&index, &codec, from, limit)).await;
        page.unwrap_or_else(|error| Err(ReadError::Unavailable { reason: error.to_string() }))
    }

    fn check_open(&self) -> Result<(), ReadError> {
        if self.closed.load(Ordering::Acquire) { Err(ReadError::Closed) } else { Ok(()) }
    }

    fn index(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventLog for FileLog {
    fn append<'a>(
        &'a self,
        stream: &'a StreamName,
        expected_last: Option<Position>,
        bytes: Vec<u8>,
    ) -> BoxFuture<'a, Result<Position, AppendError>> {
        Box::pin(self.append_one(stream, expected_last, bytes))
    }

    fn append_batch<'a>(
        &'a self,
        stream: &'a StreamName,
        expected_last: Option<Position>,
        records: Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<Position, AppendError>> {
        Box::pin(self.append_commit(stream, expected_last, records))
    }

    fn read(&self, from: Position, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>> {
        Box::pin(self.read_from(from, limit))
    }

    fn first(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move { self.check_open().map(|()| self.index().first()) })
    }

    fn last_position(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move { self.check_open().map(|()| self.index().last()) })
    }

    fn last_of_stream<'a>(
        &'a self,
        stream: &'a StreamName,
    ) -> BoxFuture<'a, Result<Option<Position>, ReadError>> {
        Box::pin(async move { self.check_open().map(|()| self.index().last_of_stream(stream)) })
    }

    fn wait_beyond(&self, position: Position) -> BoxFuture<'_, Result<Position, ReadError>> {
        let mut last = self.last.subscribe();
        Box::pin(async move {
            let reached = last.wait_for(|last| last.is_none_or(|last| last > position)).await;
            reached.ok().and_then(|last| *last).ok_or(ReadError::Closed)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.closed.store(true, Ordering::Release);
            if let Some(requests) = &self.requests {
                let (done, finished) = oneshot::channel();
                if requests.send(Request::Close(done)).await.is_ok() {
                    // An error: someone else's request to close came first, and the writer is gone.
                    let _ = finished.await;
                }
            } else {
                self.last.send_replace(None);
            }
        })
    }
}

impl Drop for FileLog {
    fn drop(&mut self) {
        // The writer ends when nobody can ask any more. Waiting for it means that the lock is free afterwards; it has
        // at most one group to finish.
        self.requests = None;
        if let Some(writer) = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take()
            && writer.join().is_err()
        {
            tracing::error!("the log's writer had panicked");
        }
    }
}

/// Makes the folder and takes its lock; the lock lasts as long as the file is open, whatever ends the process.
fn lock_folder(dir: &Path) -> Result<File, OpenError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(io("make the folder", dir))?;
    let path = dir.join("lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    segment::owner_only(&mut options);
    let mut file = options.open(&path).map_err(io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if known { holder.trim().to_owned() } else { "another process".to_owned() };
            return Err(OpenError::Locked { dir: dir.to_path_buf(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(OpenError::Io { doing: "lock", path, source }),
    }
    let named = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "process {}", std::process::id()));
    if let Err(error) = named {
        // A full disk must not keep a log from being read; only the name in the message is lost.
        tracing::warn!(lock = %path.display(), %error, "cannot write the process id into the lock file");
    }
    Ok(file)
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    move |source| OpenError::Io { doing, path: path.to_path_buf(), source }
}
