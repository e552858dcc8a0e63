//! The thread that writes (`events/LOG_FORMAT.md` §4): takes the appends that wait, decides each, writes them as one
//! group, makes them durable with one sync, answers.
//!
//! A thread of its own rather than `spawn_blocking` per append: the file, its length and the decisions have one
//! owner, so nothing is locked while a disk is slow, and whatever arrives during a sync becomes the next group.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::index::Index;
use super::record::{Codec, LogId, encoded_len};
use super::recovery::Tail;
use super::segment::{self, Header};
use crate::error::AppendError;
use crate::limits::{GROUP_APPENDS, GROUP_BYTES};
use crate::position::{Position, StreamName};

/// What the writer is asked.
pub(crate) enum Request {
    Append(Append),
    Batch(Batch),
    /// Finish; the answer comes when the lock has been released.
    Close(oneshot::Sender<()>),
}

/// One append that waits for its decision.
pub(crate) struct Append {
    pub(crate) stream: StreamName,
    pub(crate) expected: Option<Position>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) answer: oneshot::Sender<Result<Position, AppendError>>,
    /// Returned with the request's memory.
    pub(crate) _room: OwnedSemaphorePermit,
}

/// Records that are appended together.
pub(crate) struct Batch {
    /// What this stream has to end with; `None`: whatever streams end with.
    pub(crate) expected: Option<(StreamName, Option<Position>)>,
    pub(crate) records: Vec<(StreamName, Vec<u8>)>,
    /// The position of the last of them.
    pub(crate) answer: oneshot::Sender<Result<Position, AppendError>>,
    /// Returned with the request's memory.
    pub(crate) _room: OwnedSemaphorePermit,
}

/// Owns the last segment.
pub(crate) struct Writer {
    pub(crate) dir: PathBuf,
    pub(crate) log: LogId,
    pub(crate) codec: Codec,
    pub(crate) segment_bytes: u64,
    /// Whether what is written is made durable before it is answered.
    pub(crate) sync: bool,
    pub(crate) tail: Tail,
    pub(crate) index: Arc<RwLock<Index>>,
    /// The last durable position, `None` once the log is closed.
    pub(crate) last: Arc<watch::Sender<Option<Position>>>,
    /// Why nothing more is written.
    pub(crate) poisoned: Option<String>,
    /// Held as long as this process may write.
    pub(crate) lock: File,
    pub(crate) faults: Faults,
}

/// Failures that tests ask for and a healthy disk does not deliver. Always off outside this crate's own tests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    #[cfg(test)]
    pub(crate) sync: Arc<std::sync::atomic::AtomicBool>,
}

impl Faults {
    fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.sync.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(io::Error::other("a failing disk"));
        }
        Ok(())
    }
}

/// Appends that have been decided and not yet been made durable.
#[derive(Default)]
struct Group {
    buffer: Vec<u8>,
    records: Vec<(StreamName, Position, u64)>,
    /// Streams whose last record is in this group.
    last_of_stream: HashMap<StreamName, Position>,
    verdicts: Vec<(Append, Result<Position, Conflict>)>,
}

/// An append that this group refuses.
struct Conflict {
    actual: Option<Position>,
    /// `actual` is in this group, so the verdict holds only if the group does.
    provisional: bool,
}

/// Why a group was not stored.
#[derive(Debug, Clone)]
enum Refusal {
    NoSpace(String),
    Io(io::ErrorKind, Option<i32>, String),
    Unknown(String),
    Poisoned(String),
}

impl Writer {
    /// Runs until closed or until nobody can ask any more.
    pub(crate) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut closing = None;
        while closing.is_none()
            && let Some(first) = requests.blocking_recv()
        {
            let mut appends = Vec::new();
            let mut bytes = 0;
            let mut batch = None;
            let mut next = Some(first);
            while let Some(request) = next {
                match request {
                    Request::Append(append) => {
                        bytes += append.bytes.len();
                        appends.push(append);
                    }
                    // Ends the group, so that what was asked first comes first.
                    Request::Batch(asked) => {
                        batch = Some(asked);
                        break;
                    }
                    Request::Close(done) => {
                        closing = Some(done);
                        break;
                    }
                }
                let full = appends.len() >= GROUP_APPENDS || bytes >= GROUP_BYTES;
                next = if full { None } else { requests.try_recv().ok() };
            }
            self.commit(appends);
            if let Some(batch) = batch {
                self.commit_batch(batch);
            }
        }
        // Whoever still waits learns it by the closed channel; nothing of theirs has been written. That the end is
        // announced first is how they tell it from a panic.
        self.last.send_replace(None);
        drop(requests);
        drop(self.lock);
        if let Some(done) = closing {
            // Whoever asked may have gone.
            let _ = done.send(());
        }
    }

    fn commit(&mut self, appends: Vec<Append>) {
        let mut group = Group::default();
        for append in appends {
            let len = encoded_len(append.stream.as_str().len(), append.bytes.len()) as u64;
            let used = self.tail.len + group.buffer.len() as u64;
            if used + len > self.segment_bytes && used > segment::HEADER_BYTES as u64 {
                self.flush(std::mem::take(&mut group));
                if let Err(refusal) = self.rotate() {
                    group.verdicts.push((append, Err(Conflict { actual: None, provisional: true })));
                    Self::refuse(std::mem::take(&mut group), &refusal);
                    continue;
                }
            }
            self.decide(append, len, &mut group);
        }
        self.flush(group);
    }

    /// Decides one append against the log and what the group has so far.
    fn decide(&self, append: Append, len: u64, group: &mut Group) {
        let in_group = group.last_of_stream.get(&append.stream).copied();
        let (actual, mut position) = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            (in_group.or_else(|| index.last_of_stream(&append.stream)), index.last())
        };
        if actual != append.expected {
            group.verdicts.push((append, Err(Conflict { actual, provisional: in_group.is_some() })));
            return;
        }
        position.0 += group.records.len() as u64 + 1;
        self.codec.encode(&mut group.buffer, position, &append.stream, &append.bytes);
        group.records.push((append.stream.clone(), position, len));
        group.last_of_stream.insert(append.stream.clone(), position);
        group.verdicts.push((append, Ok(position)));
    }

    /// Stores a group and answers everyone in it.
    fn flush(&mut self, group: Group) {
        if group.verdicts.is_empty() {
            return;
        }
        if !group.buffer.is_empty()
            && let Err(refusal) = self.store(&group.buffer)
        {
            tracing::error!(appends = group.records.len(), ?refusal, "a group of appends was not stored");
            return Self::refuse(group, &refusal);
        }
        self.announce(group.records);
        for (append, verdict) in group.verdicts {
            let verdict = verdict.map_err(|conflict| conflict.error(append.expected));
            // Nobody listens if the caller dropped its future.
            let _ = append.answer.send(verdict);
        }
    }

    /// Stores a batch whole, in one segment, and answers it.
    fn commit_batch(&mut self, batch: Batch) {
        let Batch { expected, records, answer, _room } = batch;
        if let Some((stream, expected)) = expected {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let actual = index.last_of_stream(&stream);
            if actual != expected {
                // Nobody listens if the caller dropped its future.
                let _ = answer.send(Err(AppendError::Conflict { expected, actual }));
                return;
            }
        }
        let mut last = self.index.read().unwrap_or_else(PoisonError::into_inner).last();
        let mut group = Group::default();
        for (stream, bytes) in records {
            last = last.next();
            self.codec.encode(&mut group.buffer, last, &stream, &bytes);
            let len = encoded_len(stream.as_str().len(), bytes.len()) as u64;
            group.records.push((stream, last, len));
        }
        let used = self.tail.len;
        let full = used + group.buffer.len() as u64 > self.segment_bytes;
        let room = if full && used > segment::HEADER_BYTES as u64 { self.rotate() } else { Ok(()) };
        let stored = room.and_then(|()| self.store(&group.buffer));
        if let Err(refusal) = &stored {
            tracing::error!(records = group.records.len(), ?refusal, "a batch of records was not stored");
        } else {
            self.announce(group.records);
        }
        // Nobody listens if the caller dropped its future.
        let _ = answer.send(stored.map(|()| last).map_err(|refusal| refusal.error()));
    }

    /// Makes records that have been stored readable.
    fn announce(&self, records: Vec<(StreamName, Position, u64)>) {
        let Some(&(_, last, _)) = records.last() else { return };
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for (stream, position, len) in records {
            index.add_record(stream, position, len);
        }
        drop(index);
        self.last.send_replace(Some(last));
    }

    /// Answers a group that was not stored. Conflicts with what is durable stay conflicts.
    fn refuse(group: Group, refusal: &Refusal) {
        for (append, verdict) in group.verdicts {
            let error = match verdict {
                Err(conflict) if !conflict.provisional => conflict.error(append.expected),
                _ => refusal.error(),
            };
            let _ = append.answer.send(Err(error));
        }
    }

    /// Writes at the end of the segment and syncs if that is wanted.
    fn store(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.usable()?;
        let file = &mut self.tail.file;
        let written = file.seek(SeekFrom::Start(self.tail.len)).and_then(|_| file.write_all(bytes));
        if let Err(error) = written {
            // Cut back and make that durable: a refused record must not turn up after a power cut.
            if let Err(undo) = file.set_len(self.tail.len).and_then(|()| file.sync_all()) {
                let reason = format!("a write failed ({error}), and so did cutting the file back ({undo})");
                return Err(Refusal::Unknown(self.poison(reason)));
            }
            return Err(Refusal::from(error));
        }
        if self.sync
            && let Err(error) = self.faults.sync().and_then(|()| self.tail.file.sync_data())
        {
            return Err(Refusal::Unknown(self.poison(format!("a sync failed: {error}"))));
        }
        self.tail.len += bytes.len() as u64;
        Ok(())
    }

    /// Goes on in a new segment.
    fn rotate(&mut self) -> Result<(), Refusal> {
        self.usable()?;
        let first = self.index.read().unwrap_or_else(PoisonError::into_inner).last().next();
        match segment::create(&self.dir, Header { first, log: self.log }, self.sync) {
            Ok((file, path)) => {
                let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
                index.add_segment(first, path.clone());
                self.tail = Tail { file, path, len: segment::HEADER_BYTES as u64 };
                Ok(())
            }
            Err((error, None)) => Err(Refusal::from(error)),
            Err((error, Some(undo))) => {
                let reason = format!("no new segment ({error}), nor could its remains be removed ({undo})");
                Err(Refusal::Poisoned(self.poison(reason)))
            }
        }
    }

    fn usable(&self) -> Result<(), Refusal> {
        self.poisoned.clone().map_or(Ok(()), |reason| Err(Refusal::Poisoned(reason)))
    }

    fn poison(&mut self, reason: String) -> String {
        tracing::error!(segment = %self.tail.path.display(), reason, "the log refuses appends until it is opened anew");
        self.poisoned = Some(reason.clone());
        reason
    }
}

impl Conflict {
    fn error(&self, expected: Option<Position>) -> AppendError {
        AppendError::Conflict { expected, actual: self.actual }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Refusal::NoSpace(error.to_string()),
            kind => Refusal::Io(kind, error.raw_os_error(), error.to_string()),
        }
    }
}

impl Refusal {
    fn error(&self) -> AppendError {
        match self.clone() {
            Refusal::NoSpace(reason) => AppendError::NoSpace { reason },
            Refusal::Io(_, Some(code), _) => AppendError::Io(io::Error::from_raw_os_error(code)),
            Refusal::Io(kind, None, text) => AppendError::Io(io::Error::new(kind, text)),
            Refusal::Unknown(reason) => AppendError::Unknown { reason },
            Refusal::Poisoned(reason) => AppendError::Poisoned { reason },
        }
    }
}
