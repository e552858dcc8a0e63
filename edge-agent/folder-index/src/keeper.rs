//! The thread that keeps one folder's index current (§8.2): a scan at the start, then what the watcher
//! notices, and a scan of everything now and then.

use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_schema::Problem;
use portable_atomic::AtomicU64;

use crate::guard::{Guard, Suspicion};
use crate::ignores::IGNORE_FILE;
use crate::index::{Counters, Index, IndexError};
use crate::record::FolderId;
use crate::scan::{Observer, Outcome, Progress, ScanOptions, Scope, scan_guarded};
use crate::watch::{How, Inotify, Notice, Settle, SettleConfig, Watched, Watcher};

/// How a folder is kept.
#[derive(Clone, Debug)]
pub struct KeeperConfig {
    /// How it is scanned.
    pub scan: ScanOptions,
    /// When changes have come to rest.
    pub settle: SettleConfig,
    /// Time between scans of everything, ± a fifth at random. Default one hour: what a watcher misses.
    pub rescan: Duration,
    /// The same while not all folders are watched, but at least twenty times what a scan takes. Default
    /// one minute.
    pub rescan_unwatched: Duration,
    /// Whether changes are watched. Default true.
    pub watch: bool,
    /// Folders watched at most, beside the system's own limit; further ones are found by scans. Default
    /// no limit.
    pub watches_max: usize,
}

impl Default for KeeperConfig {
    fn default() -> Self {
        Self {
            scan: ScanOptions::default(),
            settle: SettleConfig::default(),
            rescan: Duration::from_secs(3600),
            rescan_unwatched: Duration::from_secs(60),
            watch: true,
            watches_max: usize::MAX,
        }
    }
}

/// What a keeper is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// The folder is read for the first time: what is missing in the index may be there.
    #[default]
    Indexing,
    /// Everything is compared. What the index holds can be used meanwhile.
    Scanning,
    /// It waits for changes.
    Current,
    /// It stopped: the index cannot be read or written.
    Failed,
}

/// A keeper's state, for people and programs.
#[derive(Clone, Debug, Default)]
pub struct KeeperStatus {
    /// What it is doing.
    pub phase: Phase,
    /// What the index holds.
    pub counters: Counters,
    /// Entries looked at by the scan that is going on, or was last.
    pub entries: u64,
    /// Files hashed since the start, and bytes read for that.
    pub hashed: u64,
    /// See `hashed`.
    pub bytes: u64,
    /// Folders whose changes are noticed at once, and those that only scans see.
    pub watched: u64,
    /// See `watched`.
    pub unwatched: u64,
    /// Scans of everything that came to their end, and how long the last one took.
    pub scans: u64,
    /// See `scans`.
    pub scan_took: Duration,
    /// How often notices were lost and everything was scanned for that.
    pub overflows: u64,
    /// What the last scan of everything could not take in, and how much more.
    pub problems: Vec<Problem>,
    /// See `problems`.
    pub more_problems: u64,
    /// What is missing and not taken for deleted before [`Keeper::accept`].
    pub suspicion: Option<Suspicion>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Keeps an index current until it is dropped.
pub struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    index: Arc<Index>,
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
    inbox: Mutex<Inbox>,
    wake: Condvar,
    status: Mutex<KeeperStatus>,
}

#[derive(Default)]
struct Inbox {
    settle: Settle,
    /// Scan everything.
    rescan: bool,
    /// And take what is missing for deleted.
    accept: bool,
    stop: bool,
    overflows: u64,
}

impl Keeper {
    /// Begins. `changed` is called with the index's sequence whenever that has moved on; it is to be quick.
    pub fn start(index: Arc<Index>, config: KeeperConfig, changed: impl Fn(u64) + Send + 'static) -> Self {
        let inbox = Inbox { settle: Settle::new(config.settle), ..Inbox::default() };
        let shared = Arc::new(Shared {
            index,
            stop: Arc::default(),
            progress: Arc::default(),
            inbox: Mutex::new(inbox),
            wake: Condvar::new(),
            status: Mutex::default(),
        });
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            config.scan.effort.apply_to_thread();
            let mut work = Work::new(of_thread.clone(), config, Box::new(changed));
            if let Err(error) = work.run() {
                tracing::error!(root = %of_thread.index.root().display(), %error, "an index fails");
                let mut status = of_thread.status();
                status.phase = Phase::Failed;
                status.error = Some(error.to_string());
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// The index that it keeps.
    pub fn index(&self) -> &Arc<Index> {
        &self.shared.index
    }

    /// Scans everything now.
    pub fn rescan(&self) {
        self.shared.inbox().rescan = true;
        self.shared.wake.notify_all();
    }

    /// Scans everything now and takes what is missing for deleted: somebody looked at
    /// [`KeeperStatus::suspicion`] and said that it is right.
    pub fn accept(&self) {
        let mut inbox = self.shared.inbox();
        (inbox.rescan, inbox.accept) = (true, true);
        self.shared.wake.notify_all();
    }

    /// What it is doing.
    pub fn status(&self) -> KeeperStatus {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let progress = &self.shared.progress;
        let overflows = self.shared.inbox().overflows;
        let mut status = self.shared.status().clone();
        (status.entries, status.overflows) = (of(&progress.entries), overflows);
        (status.hashed, status.bytes) = (of(&progress.hashed), of(&progress.bytes));
        if let Ok(counters) = self.shared.index.counters() {
            status.counters = counters;
        }
        status
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.inbox().stop = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> MutexGuard<'_, KeeperStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notice for Shared {
    fn name(&self, now: Instant, folder: FolderId, name: &[u8], how: How) {
        let mut inbox = self.inbox();
        if name == sync_core::manifest::STAGING_FOLDER {
            return;
        }
        // Other rules for what is left out concern everything.
        if folder == FolderId::ROOT && name == IGNORE_FILE && how == How::Done {
            inbox.rescan = true;
        }
        inbox.settle.notice(now, folder, name, how);
        drop(inbox);
        self.wake.notify_all();
    }

    fn everything(&self) {
        let mut inbox = self.inbox();
        inbox.overflows += 1;
        inbox.settle.everything();
        drop(inbox);
        self.wake.notify_all();
    }
}

/// Puts watches on folders as a scan comes to them.
struct Watching<'w> {
    watcher: Option<&'w mut Box<dyn Watcher>>,
    root: PathBuf,
    refused: u64,
}

impl Observer for Watching<'_> {
    fn enter(&mut self, folder: FolderId, file: BorrowedFd<'_>, path: &[u8]) {
        let path = self.root.join(std::ffi::OsStr::from_bytes(path));
        let watched = self.watcher.as_mut().map_or(Watched::No, |w| w.watch(folder, file, &path));
        if watched == Watched::No {
            self.refused += 1;
        }
    }

    fn watches(&self, folder: FolderId) -> bool {
        self.watcher.as_ref().is_none_or(|w| w.watches(folder))
    }
}

struct Work {
    shared: Arc<Shared>,
    config: KeeperConfig,
    watcher: Option<Box<dyn Watcher>>,
    guard: Guard,
    changed: Box<dyn Fn(u64) + Send>,
    told: u64,
}

enum Next {
    Stop,
    Everything { accept: bool },
    Names(Vec<(FolderId, Vec<u8>)>),
}

impl Work {
    fn new(shared: Arc<Shared>, config: KeeperConfig, changed: Box<dyn Fn(u64) + Send>) -> Self {
        let watcher: Option<Box<dyn Watcher>> = match config.watch {
            true => match Inotify::new(shared.clone(), config.watches_max) {
                Ok(watcher) => Some(Box::new(watcher)),
                Err(error) => {
                    tracing::warn!(root = %shared.index.root().display(), %error, "changes are found by scans only");
                    None
                }
            },
            false => None,
        };
        let guard = Guard::new(config.scan.guard);
        Self { shared, config, watcher, guard, changed, told: 0 }
    }

    fn run(&mut self) -> Result<(), IndexError> {
        self.told = self.shared.index.counters()?.sequence;
        let mut next = Next::Everything { accept: false };
        let mut rescan_at = Instant::now();
        loop {
            match next {
                Next::Stop => return Ok(()),
                Next::Everything { accept } => {
                    let begin = Instant::now();
                    self.scan_everything(accept)?;
                    rescan_at = Instant::now() + self.pause(begin.elapsed());
                }
                Next::Names(names) => self.scan_names(names)?,
            }
            self.tell()?;
            next = self.wait(rescan_at);
        }
    }

    /// Waits for the next thing to do.
    fn wait(&self, rescan_at: Instant) -> Next {
        let mut inbox = self.shared.inbox();
        loop {
            let now = Instant::now();
            if inbox.stop {
                return Next::Stop;
            }
            if inbox.settle.take_everything() || std::mem::take(&mut inbox.rescan) || rescan_at <= now {
                inbox.rescan = false;
                return Next::Everything { accept: std::mem::take(&mut inbox.accept) };
            }
            let due = inbox.settle.take_due(now);
            if !due.is_empty() {
                return Next::Names(due);
            }
            let until = inbox.settle.next_due().map_or(rescan_at, |due| due.min(rescan_at));
            let pause = until.saturating_duration_since(now).max(Duration::from_millis(1));
            inbox = self.shared.wake.wait_timeout(inbox, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn scan_everything(&mut self, accept: bool) -> Result<(), IndexError> {
        let begin = Instant::now();
        self.shared.progress.entries.store(0, Ordering::Relaxed);
        let complete = self.shared.index.is_complete()?;
        self.shared.status().phase = if complete { Phase::Scanning } else { Phase::Indexing };
        let (outcome, refused) = self.scan(&Scope::All, accept)?;
        let mut status = self.shared.status();
        status.unwatched = refused;
        status.scan_took = begin.elapsed();
        status.scans += u64::from(!outcome.stopped);
        status.problems = outcome.problems.clone();
        status.more_problems = outcome.more_problems;
        status.suspicion = outcome.suspicion.clone();
        status.phase = Phase::Current;
        drop(status);
        self.look_again(outcome);
        Ok(())
    }

    fn scan_names(&mut self, names: Vec<(FolderId, Vec<u8>)>) -> Result<(), IndexError> {
        let (outcome, refused) = self.scan(&Scope::of_names(names.iter().cloned()), false)?;
        let mut status = self.shared.status();
        status.unwatched += refused;
        if outcome.suspicion.is_some() {
            status.suspicion = outcome.suspicion.clone();
        }
        drop(status);
        // Notices from folders that are not in the index any more: moved elsewhere with their watches.
        let snapshot = self.shared.index.snapshot()?;
        for (folder, _) in names {
            if !snapshot.has_folder(folder)?
                && let Some(watcher) = &mut self.watcher
            {
                watcher.unwatch(folder);
            }
        }
        self.look_again(outcome);
        Ok(())
    }

    fn scan(&mut self, scope: &Scope, accept: bool) -> Result<(Outcome, u64), IndexError> {
        let Shared { index, progress, stop, .. } = &*self.shared;
        let options = ScanOptions { accept: accept || self.config.scan.accept, ..self.config.scan.clone() };
        let mut observer =
            Watching { watcher: self.watcher.as_mut(), root: index.root().to_owned(), refused: 0 };
        let outcome = scan_guarded(index, &options, scope, &mut observer, progress, stop, &mut self.guard)?;
        let refused = observer.refused;
        self.shared.status().watched = self.watcher.as_ref().map_or(0, |w| w.count() as u64);
        Ok((outcome, refused))
    }

    /// What was changed while it was read, or just before, is looked at once more.
    fn look_again(&self, outcome: Outcome) {
        let now = Instant::now();
        let mut inbox = self.shared.inbox();
        for (folder, name) in outcome.unsettled {
            inbox.settle.put_off(now, folder, &name, Duration::from_millis(2200));
        }
    }

    fn tell(&mut self) -> Result<(), IndexError> {
        let sequence = self.shared.index.counters()?.sequence;
        if sequence != self.told {
            self.told = sequence;
            (self.changed)(sequence);
        }
        Ok(())
    }

    /// Time until everything is scanned again, given what that took.
    fn pause(&self, took: Duration) -> Duration {
        let status = self.shared.status();
        let pause = if status.unwatched > 0 || self.watcher.is_none() {
            self.config.rescan_unwatched.max(took * 20).min(self.config.rescan)
        } else {
            self.config.rescan
        };
        let mut random = [0; 4];
        // Without randomness there is no jitter.
        let _ = getrandom::fill(&mut random);
        let share = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
        pause.mul_f64(0.8 + 0.4 * share)
    }
}
