//! What agents told of their progress, kept for a while (`control/TELEMETRY_FORMAT.md`).
//!
//! Not facts and never on the log: a store of its own beside it, which may be lost without anything else being wrong.
//! Samples are added up per run and agent in buckets of a second, a minute and a quarter of an hour; what is complete is
//! written every few seconds to append-only files of each width, which are deleted as they grow old. `row` is one
//! bucket, `gather` adds up, `file` holds the bytes, `folder` the files; this file has the thread that writes.

mod file;
mod folder;
mod gather;
mod row;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent_proto::link::Progress;
use event_schema::{AgentId, RunId, Timestamp};

use folder::Folder;
use gather::Gatherer;
pub(crate) use row::{Row, Width};

/// How often rows are written: what a killed process loses.
const WRITE_EVERY: Duration = Duration::from_secs(5);

/// How long telemetry is kept, by default.
pub const KEEP: Duration = Duration::from_secs(90 * 86_400);

/// Bytes of all files, by default.
pub const MAX_BYTES: u64 = 2_000_000_000;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// How long the widest buckets are kept; narrower ones go sooner. 1 hour to 10 years.
    pub time: Duration,
    /// Bytes of all files; at least 1 MB. The narrowest and oldest go first.
    pub max_bytes: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self { time: KEEP, max_bytes: MAX_BYTES }
    }
}

/// What agents told, by the beginning of each bucket.
pub(crate) type Rows = BTreeMap<AgentId, BTreeMap<u64, Bucket>>;

/// A row and how long its time is, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) row: Row,
    pub(crate) seconds: u64,
}

/// The store. Closed when it is dropped.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    /// Dropped to stop the thread.
    stop: Mutex<Option<SyncSender<()>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    gatherer: Mutex<Gatherer>,
    folder: Folder,
    /// Held while rows go from memory to files, and by those who read both.
    passage: RwLock<()>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens or makes the store in a folder, by a clock. What is damaged is set aside.
    ///
    /// # Errors
    /// If the folder cannot be made or read, or no thread can be had.
    pub fn open(path: &Path, keep: Keep, clock: fn() -> Timestamp) -> std::io::Result<Self> {
        Self::open_by(path, keep, clock)
    }

    fn open_by(
        path: &Path,
        keep: Keep,
        clock: impl Fn() -> Timestamp + Send + 'static,
    ) -> std::io::Result<Self> {
        let folder = Folder::open(path, keep)?;
        let mut gatherer = Gatherer::default();
        // Wider buckets that were not complete yet are added up again.
        let (rows, written) = folder.unfinished();
        gatherer.resume(&rows, &written, clock().0 / 1000);
        let shared = Arc::new(Shared { gatherer: Mutex::new(gatherer), folder, passage: RwLock::default() });
        let (stop, stopped) = mpsc::sync_channel(0);
        let own = Arc::clone(&shared);
        let writer = std::thread::Builder::new().name("telemetry".into()).spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(WRITE_EVERY) {
                own.write(clock());
            }
            own.end(clock());
        })?;
        Ok(Self { shared, stop: Mutex::new(Some(stop)), writer: Mutex::new(Some(writer)) })
    }

    /// Takes what an agent told.
    pub fn take(&self, agent: AgentId, progress: &Progress, now: Timestamp) {
        locked(&self.shared.gatherer).take(agent, progress, now);
    }

    /// Writes what is complete, ends the thread and closes the files.
    pub fn close(&self) {
        locked(&self.stop).take();
        if let Some(writer) = locked(&self.writer).take() {
            // It does not panic; if it did, there is nothing left to do.
            let _ = writer.join();
        }
    }

    /// Rows of a run, from a time (seconds since 1970) up to before another, added up to buckets of `step` seconds: a
    /// multiple of a width or shorter than all. Reads files.
    ///
    /// Where narrow buckets are not kept any more, the next wider ones stand, at their beginnings.
    pub(crate) fn rows(
        &self,
        run: RunId,
        agents: Option<&BTreeSet<AgentId>>,
        (from, to): (u64, u64),
        step: u64,
    ) -> Rows {
        let _passage = self.shared.passage.read().unwrap_or_else(PoisonError::into_inner);
        let mut all = Rows::new();
        let mut to = to;
        for width in Width::for_step(step) {
            let recent = locked(&self.shared.gatherer).recent(width, run);
            // Where rows of this width begin, in files or in memory; what was before stands in wider ones.
            let unwritten = recent.iter().map(|(_, row)| row.start).min();
            let first = self.shared.folder.begins(width).into_iter().chain(unwritten).min();
            let seconds = step.max(width.seconds());
            // A bucket that began before is told as well.
            let covered = (from / seconds * seconds).max(first.unwrap_or(u64::MAX).min(to));
            let mut add = |agent: AgentId, row: Row| {
                let is_wanted = agents.is_none_or(|wanted| wanted.contains(&agent));
                if !is_wanted || row.start < covered || row.start >= to {
                    return;
                }
                let start = row.start / seconds * seconds;
                let first = Bucket { row: Row { start, ..row }, seconds };
                let rows = all.entry(agent).or_default();
                rows.entry(start).and_modify(|known| known.row.add(&row)).or_insert(first);
            };
            if covered < to {
                self.shared.folder.read(width, run, covered, to, &mut add);
                recent.into_iter().for_each(|(agent, row)| add(agent, row));
            }
            to = covered;
            if to <= from {
                break;
            }
        }
        all
    }

    /// Since when anything is kept (seconds since 1970).
    pub(crate) fn begins(&self) -> Option<u64> {
        Width::ALL.into_iter().filter_map(|width| self.shared.folder.begins(width)).min()
    }

    /// Samples taken, samples and rows that there was no room for, and bytes on disk.
    pub fn figures(&self) -> (u64, u64, u64) {
        let (taken, dropped) = locked(&self.shared.gatherer).figures();
        (taken, dropped + self.shared.folder.lost(), self.shared.folder.bytes())
    }

    /// Where the files are.
    pub fn path(&self) -> PathBuf {
        self.shared.folder.path().to_owned()
    }

    /// Writes what is complete at a time; the thread does so by itself.
    #[cfg(test)]
    fn write(&self, now: Timestamp) {
        self.shared.write(now);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn write(&self, now: Timestamp) {
        let start = Instant::now();
        let seconds = now.0 / 1000;
        let passage = self.passage.write().unwrap_or_else(PoisonError::into_inner);
        let mut ready = locked(&self.gatherer).complete(seconds);
        // Wide ones first: after a crash in between they are found to be written, and not added up once more.
        for width in Width::ALL.into_iter().rev() {
            if let Some(rows) = ready.remove(&width).filter(|rows| !rows.is_empty()) {
                self.folder.append(width, rows);
            }
        }
        drop(passage);
        self.folder.forget(seconds);
        let took = start.elapsed();
        if took > WRITE_EVERY {
            tracing::warn!(?took, "telemetry is written slowly");
        }
    }

    /// Before the process ends: wide buckets that are not complete are made again from the narrow ones at the next start.
    fn end(&self, now: Timestamp) {
        self.write(now);
        let _passage = self.passage.write().unwrap_or_else(PoisonError::into_inner);
        let narrow = locked(&self.gatherer).narrow();
        if !narrow.is_empty() {
            self.folder.append(Width::Second, narrow);
        }
        self.folder.close();
    }
}
