//! Bringing an index up to date (§3): walking the folder, comparing with what is known, hashing what
//! changed.
//!
//! A scan is a loop of short transactions. Between any two of them the index is a true, if older, picture,
//! so a scan can end at any moment. What is missing is only noted while it runs; whether that is a
//! deletion is decided at its end ([`crate::GuardConfig`]).

mod disk;
mod effort;
mod hash;
mod root;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use event_schema::{Problem, ProblemClass};
use portable_atomic::AtomicU64;
use rustix::io::Errno;

pub use effort::Effort;

use crate::guard::{Guard, GuardConfig, Suspicion};
use crate::ignores::{IGNORE_FILE, Ignores};
use crate::index::{Index, IndexError};
use crate::limits::{CHANGES_PER_COMMIT, COMMIT_INTERVAL, HASHING_MAX, IGNORE_LEN_MAX, PROBLEMS_MAX};
use crate::record::{FolderId, Kind, Record, Stamp};
use crate::snapshot::Gone;
use crate::tables::Tables;
pub use disk::time_granularity;
use disk::{identity, open_root, problem};
use hash::Hashers;
use walk::{Frame, Pending};

/// How a folder is scanned.
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    /// How hard it may work.
    pub effort: Effort,
    /// From where on many deletions are asked about.
    pub guard: GuardConfig,
    /// Take whatever is missing for deleted and the folder for the one that is meant: somebody said so, or
    /// nothing depends on it.
    pub accept: bool,
    /// Do not enter file systems that are mounted below the folder.
    pub one_file_system: bool,
    /// How long after a change another one may leave the same times behind; default by the file system.
    pub granularity: Option<Duration>,
    /// The job's rules for what is left out, as in a `.gitignore`; they win over the folder's own file.
    pub ignore: Vec<String>,
}

/// What is scanned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// These folders with all below them.
    Trees(Vec<FolderId>),
    /// These names in these folders, and all below those that are new.
    Names(Vec<(FolderId, Vec<Vec<u8>>)>),
}

impl Scope {
    /// These names, each in its folder.
    pub fn of_names(names: impl IntoIterator<Item = (FolderId, Vec<u8>)>) -> Self {
        let mut folders = BTreeMap::<FolderId, Vec<Vec<u8>>>::new();
        for (folder, name) in names {
            folders.entry(folder).or_default().push(name);
        }
        Self::Names(folders.into_iter().collect())
    }
}

/// How far a scan is; shared with whoever wants to know.
#[derive(Debug, Default)]
pub struct Progress {
    /// Entries looked at.
    pub entries: AtomicU64,
    /// Files hashed.
    pub hashed: AtomicU64,
    /// Bytes read for that.
    pub bytes: AtomicU64,
    /// Files that wait to be hashed.
    pub waiting: AtomicU64,
}

/// How a scan ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Entries looked at.
    pub entries: u64,
    /// Files hashed.
    pub hashed: u64,
    /// Bytes read for that.
    pub bytes: u64,
    /// Entries found gone, and taken out.
    pub gone: u64,
    /// What could not be taken in, at most 1000.
    pub problems: Vec<Problem>,
    /// Problems beyond those.
    pub more_problems: u64,
    /// Something is missing that is not taken for deleted before somebody says so; it is still in the
    /// index. A scan with [`ScanOptions::accept`] takes it out.
    pub suspicion: Option<Suspicion>,
    /// It was stopped before its end.
    pub stopped: bool,
    /// Files that changed while they were read, or just before: to be looked at again, by folder and name.
    pub unsettled: Vec<(FolderId, Vec<u8>)>,
}

/// What watches folders while they are scanned.
pub trait Observer {
    /// This folder is about to be read: what changes in it from now on has to be noticed.
    fn enter(&mut self, folder: FolderId, file: BorrowedFd<'_>, path: &[u8]);

    /// Whether changes in this folder are noticed; else it is gone into whenever its name is looked at.
    fn watches(&self, folder: FolderId) -> bool;
}

/// Watches nothing.
pub struct Unobserved;

impl Observer for Unobserved {
    fn enter(&mut self, _: FolderId, _: BorrowedFd<'_>, _: &[u8]) {}

    /// Whoever asks for names knows what changed.
    fn watches(&self, _: FolderId) -> bool {
        true
    }
}

/// Scans a folder, or a part of it, on the calling thread and those it starts. A scan of the same folder
/// that is going on is waited for.
///
/// # Errors
/// If the index cannot be read or written. What is wrong with the folder is in the outcome.
pub fn scan(
    index: &Index,
    options: &ScanOptions,
    scope: &Scope,
    observer: &mut dyn Observer,
    progress: &Arc<Progress>,
    stop: &Arc<AtomicBool>,
) -> Result<Outcome, IndexError> {
    let mut guard = Guard::new(options.guard);
    scan_guarded(index, options, scope, observer, progress, stop, &mut guard)
}

/// As [`scan`], counting what goes together with earlier scans.
pub(crate) fn scan_guarded(
    index: &Index,
    options: &ScanOptions,
    scope: &Scope,
    observer: &mut dyn Observer,
    progress: &Arc<Progress>,
    stop: &Arc<AtomicBool>,
    guard: &mut Guard,
) -> Result<Outcome, IndexError> {
    let _alone = index.scanning();
    index.set_activity(Some(progress.clone()));
    let outcome = scan_alone(index, options, scope, observer, progress, stop, guard);
    index.set_activity(None);
    outcome
}

fn scan_alone(
    index: &Index,
    options: &ScanOptions,
    scope: &Scope,
    observer: &mut dyn Observer,
    progress: &Arc<Progress>,
    stop: &Arc<AtomicBool>,
    guard: &mut Guard,
) -> Result<Outcome, IndexError> {
    let mut outcome = Outcome::default();
    let known = index.counters()?.entries();
    let root = match open_root(index.root()) {
        Ok(root) => root,
        Err(errno) => {
            let path = index.root().as_os_str().as_encoded_bytes().to_vec();
            outcome.problems.push(problem(errno, path, "opening the folder"));
            if known > 0 {
                outcome.suspicion = Some(Suspicion::RootGone);
            }
            return Ok(outcome);
        }
    };
    let here = match identity(&root) {
        Ok(here) => here,
        Err(errno) => {
            outcome.problems.push(problem(errno, Vec::new(), "reading the folder"));
            return Ok(outcome);
        }
    };
    let before = index.identity()?;
    if before.is_some_and(|before| !before.same_root(&here)) && known > 0 && !options.accept {
        outcome.suspicion = Some(Suspicion::OtherRoot);
        return Ok(outcome);
    }
    let mut scan = Scan::new(root, here.dev, options, progress.clone(), stop.clone(), observer);
    scan.load_ignores();
    let counted = Counted::of(progress);
    index.write(|tables| {
        tables.meta.root = Some(here);
        scan.begin(tables, scope)
    })?;
    loop {
        let end = index.write(|tables| scan.work(tables))?;
        index.merge_contents(false)?;
        if end {
            break;
        }
    }
    outcome.stopped = stop.load(Ordering::Relaxed);
    if !outcome.stopped {
        let now = Instant::now();
        remove(index, Gone::Ignored)?;
        // What was only moved is not missed under the name it had.
        let limit = guard.limit(now, known).saturating_add(scan.moved_entries);
        let (missing, examples) = index.write(|tables| tables.count_gone(limit.saturating_add(1)))?;
        if let Some(path) = scan.lost_mount.take().filter(|_| !options.accept && missing > 0) {
            outcome.suspicion = Some(Suspicion::MountGone { path });
        } else if missing > limit && !options.accept {
            outcome.suspicion = Some(Suspicion::ManyGone { missing, known, examples });
        } else {
            let before = index.counters()?.entries();
            remove(index, Gone::Deleted)?;
            outcome.gone = before.saturating_sub(index.counters()?.entries());
            if options.accept {
                guard.reset();
            } else {
                guard.gone(now, known, outcome.gone.saturating_sub(scan.moved_entries));
            }
            if *scope == Scope::All {
                index.write(|tables| {
                    tables.meta.complete = true;
                    Ok(())
                })?;
            }
        }
        index.merge_contents(true)?;
    }
    let now = Counted::of(progress);
    outcome.entries = now.entries - counted.entries;
    outcome.hashed = now.hashed - counted.hashed;
    outcome.bytes = now.bytes - counted.bytes;
    outcome.problems = std::mem::take(&mut scan.problems);
    outcome.more_problems = scan.more_problems;
    outcome.unsettled = std::mem::take(&mut scan.unsettled);
    Ok(outcome)
}

/// Takes out what was noted as gone, in transactions of bounded size.
fn remove(index: &Index, how: Gone) -> Result<(), IndexError> {
    while !index.write(|tables| tables.remove_gone(how, CHANGES_PER_COMMIT))? {}
    Ok(())
}

struct Counted {
    entries: u64,
    hashed: u64,
    bytes: u64,
}

impl Counted {
    fn of(progress: &Progress) -> Self {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self { entries: of(&progress.entries), hashed: of(&progress.hashed), bytes: of(&progress.bytes) }
    }
}

struct Scan<'a> {
    root: Arc<OwnedFd>,
    root_dev: u64,
    granularity: Duration,
    options: &'a ScanOptions,
    ignores: Ignores,
    observer: &'a mut dyn Observer,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    hashers: Hashers,
    next_token: u64,
    /// Files being hashed.
    pending: HashMap<u64, Pending>,
    /// Which of them is to be what the index has under a name.
    latest: HashMap<FolderId, HashMap<Vec<u8>, u64>>,
    /// What is to be walked yet, the last first.
    tasks: Vec<Task>,
    /// The folders that the walk is inside of.
    stack: Vec<Frame>,
    /// Path of the innermost.
    path: Vec<u8>,
    problems: Vec<Problem>,
    more_problems: u64,
    lost_mount: Option<Vec<u8>>,
    /// New folders with the inode of one that the index knows elsewhere.
    moved: HashMap<FolderId, FolderId>,
    /// Entries found to be so, files below included.
    moved_entries: u64,
    /// Folders on which a file system was mounted that is not there now.
    unmounted: HashSet<FolderId>,
    unsettled: Vec<(FolderId, Vec<u8>)>,
}

enum Task {
    Tree(FolderId),
    Names(FolderId, Vec<Vec<u8>>),
}

impl<'a> Scan<'a> {
    fn new(
        root: OwnedFd,
        root_dev: u64,
        options: &'a ScanOptions,
        progress: Arc<Progress>,
        stop: Arc<AtomicBool>,
        observer: &'a mut dyn Observer,
    ) -> Self {
        Self {
            granularity: options.granularity.unwrap_or_else(|| time_granularity(&root)),
            root: Arc::new(root),
            root_dev,
            options,
            ignores: Ignores::none(),
            observer,
            hashers: Hashers::new(&options.effort, progress.clone(), stop.clone()),
            progress,
            stop,
            next_token: 0,
            pending: HashMap::new(),
            latest: HashMap::new(),
            tasks: Vec::new(),
            stack: Vec::new(),
            path: Vec::new(),
            problems: Vec::new(),
            more_problems: 0,
            lost_mount: None,
            moved: HashMap::new(),
            moved_entries: 0,
            unmounted: HashSet::new(),
            unsettled: Vec::new(),
        }
    }

    /// Reads the folder's own rules.
    fn load_ignores(&mut self) {
        let text = match disk::open_file(&self.root, IGNORE_FILE) {
            Ok(file) => {
                let mut text = Vec::new();
                let file = std::fs::File::from(file);
                let read =
                    std::io::Read::read_to_end(&mut std::io::Read::take(file, IGNORE_LEN_MAX + 1), &mut text);
                match read {
                    Ok(len) if len as u64 > IGNORE_LEN_MAX => {
                        self.problem(Problem {
                            class: ProblemClass::LimitExceeded,
                            path: IGNORE_FILE.to_vec(),
                            detail: format!("the rules are longer than {IGNORE_LEN_MAX} bytes; not used"),
                        });
                        Vec::new()
                    }
                    Ok(_) => text,
                    Err(e) => {
                        let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
                        self.problem(problem(errno, IGNORE_FILE.to_vec(), "reading the rules"));
                        Vec::new()
                    }
                }
            }
            Err(Errno::NOENT) => Vec::new(),
            Err(errno) => {
                self.problem(problem(errno, IGNORE_FILE.to_vec(), "reading the rules"));
                Vec::new()
            }
        };
        let (ignores, bad) = Ignores::new(&text, &self.options.ignore);
        self.ignores = ignores;
        for line in bad {
            self.problem(Problem {
                class: ProblemClass::Internal,
                path: IGNORE_FILE.to_vec(),
                detail: format!("a rule that is none is passed over: {line}"),
            });
        }
    }

    /// Notes what is to be walked; a whole scan also takes in the root and forgets what was noted as
    /// missing before.
    fn begin(&mut self, tables: &mut Tables<'_>, scope: &Scope) -> Result<(), IndexError> {
        tables.forget_unfinished_blocks()?;
        let known = tables.entry(FolderId::ABOVE, b"")?;
        if known.is_none() || *scope == Scope::All {
            tables.clear_gone()?;
            match rustix::fs::fstat(&self.root) {
                Ok(stat) => {
                    let stamp = Stamp::of(&stat, self.root_dev);
                    let attributes = disk::attributes(&self.root).unwrap_or_default();
                    let kind = Kind::Folder(FolderId::ROOT);
                    let record = Record { sequence: 0, stamp, attributes, kind };
                    if known
                        .as_ref()
                        .is_none_or(|known| known.stamp != stamp || known.attributes != attributes)
                    {
                        tables.put(FolderId::ABOVE, b"", record)?;
                    }
                }
                Err(errno) => self.problem(problem(errno, Vec::new(), "reading the folder")),
            }
        }
        self.tasks = match scope {
            Scope::All => vec![Task::Tree(FolderId::ROOT)],
            Scope::Trees(folders) => folders.iter().rev().map(|&folder| Task::Tree(folder)).collect(),
            Scope::Names(names) => {
                names.iter().rev().map(|(folder, names)| Task::Names(*folder, names.clone())).collect()
            }
        };
        Ok(())
    }

    /// Works until a transaction is full. Returns whether all is done.
    fn work(&mut self, tables: &mut Tables<'_>) -> Result<bool, IndexError> {
        let began = Instant::now();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(true);
            }
            self.take_told(tables, Duration::ZERO)?;
            let full = tables.changed >= CHANGES_PER_COMMIT;
            if full || tables.changed > 0 && began.elapsed() >= COMMIT_INTERVAL {
                return Ok(false);
            }
            if self.pending.len() >= HASHING_MAX {
                self.take_told(tables, Duration::from_millis(50))?;
            } else if let Some(frame) = self.stack.pop() {
                self.advance(tables, frame)?;
            } else if let Some(task) = self.tasks.pop() {
                self.start(tables, task)?;
            } else if self.pending.is_empty() {
                return Ok(true);
            } else {
                self.take_told(tables, Duration::from_millis(50))?;
            }
        }
    }

    fn problem(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.more_problems += 1;
        }
    }
}
