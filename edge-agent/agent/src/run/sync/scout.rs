//! Learning what is in the folder: the thread that turns what the folder's index finds (its scans and its watcher,
//! `folder_index::Keeper`), and what the machine asks to be looked at, into what the machine is told (SYNC.md §6).
//!
//! Everything that is told was true while nobody changed the path on the machine's behalf ([`Tree::hold`]), and is told
//! before the next change of it begins.

use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use agent_proto::sync::Value;
use event_schema::Selection;
use folder_index::{Change, Gone, IGNORE_FILE, Ignores, Record, Snapshot, rules_in};
use rustix::fs::{self, Dir, FileType, OFlags, Stat};
use rustix::io::Errno;
use sync_core::manifest::{STAGING_FOLDER, check_path};
use sync_core::merkle::{Hash, tree_root};
use sync_core::sync::{Disk, Row, Stamp};
use tokio::sync::mpsc::Sender;

use super::attic::Attic;
use super::engine::Event;
use super::meta::{Metadata, What};
use super::stage::root_of_file;
use super::store::{Reader, Rows, StoreError};
use super::tree::{Tree, is_folder, stat_at};
use crate::disk::file_type;

/// Changes of the index taken at once.
const CHANGES: usize = 256;

/// Rows read at once when what is gone is looked for.
const ROWS: usize = 512;

/// A file that somebody is writing to is looked at again after so long.
const AGAIN: Duration = Duration::from_millis(500);

/// Bytes of a file with rules that are read.
const IGNORES_MAX: u64 = 1 << 20;

/// Granularity of times that is waited for before reading; a coarser one is not, and the file is read again.
const WAITED_FOR: Duration = Duration::from_millis(60);

/// What a scout is asked.
#[derive(Debug)]
pub(super) enum Ask {
    /// Look at a path, and at everything below it.
    Look(Vec<u8>),
    /// Look at a path that the machine changed, alone. The machine takes what is there for settled with this stamp; for
    /// this path it was asked so often before.
    Peek(Vec<u8>, Option<Stamp>, u32),
    /// The folder's index has found something.
    Changed,
    /// Compare the whole index of the folder with the rows.
    Compare,
    /// Keep the archive within its limit.
    Trim,
}

/// What is left out, shared with whoever needs to know.
pub(super) type Rules = Arc<RwLock<Arc<Chosen>>>;

/// What of the tree is wanted here.
#[derive(Debug)]
pub(super) struct Chosen {
    ignores: Ignores,
    /// What alone is wanted, and what is above that; everything if there is no such rule.
    wanted: Option<(Ignores, Ignores)>,
}

impl Chosen {
    /// From the text of the folder's own file and what the job says.
    pub(super) fn new(file: &[u8], selection: &Selection) -> Self {
        let says = |line: &&String| !line.trim().is_empty() && !line.starts_with('#');
        let wanted = || selection.wanted.iter().filter(says);
        let above: Vec<String> = wanted().flat_map(|line| folders_above(line)).collect();
        let rules = |lines: &[String]| Ignores::new(b"", lines).0;
        let some = wanted().next().is_some();
        Self {
            ignores: Ignores::new(file, &selection.ignore).0,
            wanted: some.then(|| (rules(&selection.wanted), rules(&above))),
        }
    }

    /// Whether a path is synchronized: neither it nor a folder above it is left out, and if only some is wanted, it is
    /// that, below it, or a folder that it may be in.
    pub(super) fn wants(&self, path: &[u8], folder: bool) -> bool {
        // What agents keep in their folders is no content at any depth, and what a folder's owner leaves out is not for
        // others to say.
        if path.split(|b| *b == b'/').any(|name| name == STAGING_FOLDER) || rules_in(path).is_some() {
            return false;
        }
        let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        let mut above = slashes.map(|at| &path[..at]);
        if above.clone().any(|above| self.ignores.ignores(above, true)) || self.ignores.ignores(path, folder)
        {
            return false;
        }
        let Some((wanted, leading)) = &self.wanted else { return true };
        above.any(|above| wanted.ignores(above, true))
            || wanted.ignores(path, folder)
            || folder && leading.ignores(path, true)
    }
}

/// Rules for the folders that what a rule names may be in: any, if it begins nowhere.
fn folders_above(line: &str) -> Vec<String> {
    let line = line.trim();
    if line.starts_with('!') {
        return Vec::new();
    }
    let names: Vec<&str> = line.trim_matches('/').split('/').collect();
    if names.len() == 1 && !line.starts_with('/') {
        return vec!["*".into()];
    }
    (1..names.len()).map(|count| format!("/{}", names[..count].join("/"))).collect()
}

/// The rules of the folder's own file and of the job.
pub(super) fn read_rules(tree: &Tree, job: &Selection) -> Chosen {
    let mut text = Vec::new();
    if let Ok(file) = tree.open_file(IGNORE_FILE) {
        let read = std::io::Read::read_to_end(&mut std::io::Read::take(file, IGNORES_MAX), &mut text);
        if let Err(error) = read {
            tracing::warn!(%error, "the rules for what is left out cannot be read");
        }
    }
    Chosen::new(&text, job)
}

/// Nobody listens any more.
struct Over;

/// See the module.
pub(super) struct Scout {
    pub(super) tree: Arc<Tree>,
    pub(super) index: Option<Arc<folder_index::Index>>,
    pub(super) metadata: Arc<Metadata>,
    pub(super) rows: Reader,
    pub(super) rules: Rules,
    pub(super) attic: Arc<Attic>,
    pub(super) out: Sender<Event>,
}

impl Scout {
    /// Works until nobody asks or listens any more.
    pub(super) fn run(self, asks: &Receiver<Ask>) {
        let mut at = 0;
        while let Ok(ask) = asks.recv() {
            if self.answer(ask, asks, &mut at).is_err() {
                return;
            }
        }
    }

    fn answer(&self, ask: Ask, asks: &Receiver<Ask>, at: &mut u64) -> Result<(), Over> {
        match ask {
            Ask::Look(path) => self.look(path)?,
            Ask::Peek(path, settled, tries) => self.peek(path, settled, tries)?,
            Ask::Changed => self.follow(at)?,
            Ask::Compare => self.compare(asks, at)?,
            Ask::Trim => self.attic.trim(),
        }
        Ok(())
    }

    fn send(&self, event: Event) -> Result<(), Over> {
        self.out.blocking_send(event).map_err(|_| Over)
    }

    fn trouble(&self, doing: &str, error: impl std::fmt::Display) -> Result<(), Over> {
        self.send(Event::Trouble(format!("{doing}: {error}")))
    }

    /// What the folder's index found since.
    fn follow(&self, at: &mut u64) -> Result<(), Over> {
        let Some(index) = &self.index else { return Ok(()) };
        loop {
            let read = || {
                let snapshot = index.snapshot()?;
                let changes = snapshot.changes(*at, CHANGES)?;
                Ok::<_, folder_index::IndexError>((snapshot.changes_kept_from(), changes))
            };
            let (kept_from, changes) = match read() {
                Ok(read) => read,
                Err(error) => return self.trouble("reading the folder's index", error),
            };
            if *at < kept_from {
                // Deletions were forgotten meanwhile.
                return self.send(Event::Compare);
            }
            let Some(last) = changes.last() else { return Ok(()) };
            let up_to = last.sequence();
            for change in changes {
                match change {
                    Change::There(entry) if entry.path.is_empty() => {}
                    Change::There(entry) => self.observe(&entry.path, Some(&entry.record))?,
                    Change::Gone { path, how: Gone::Deleted, .. } => self.observe(&path, None)?,
                    // The rules say so, and the machine is told of them.
                    Change::Gone { how: Gone::Ignored, .. } => {}
                }
            }
            *at = up_to;
        }
    }

    /// Compares everything that the folder's index knows with the rows, and the other way round. Reads nothing of the
    /// folder but what differs. What is asked meanwhile is answered in between.
    fn compare(&self, asks: &Receiver<Ask>, at: &mut u64) -> Result<(), Over> {
        let opened = || {
            let snapshot = self.index.as_ref().map(|index| index.snapshot()).transpose()?;
            Ok::<_, folder_index::IndexError>(snapshot)
        };
        let snapshot = match opened() {
            Ok(Some(snapshot)) => snapshot,
            // Without an index the folder itself is looked through.
            Ok(None) => return self.look(Vec::new()),
            Err(error) => return self.trouble("reading the folder's index", error),
        };
        let began = std::time::Instant::now();
        // What changes after the picture was taken is told in between. If this comes to no end, it is told again. What
        // changed before it and was not told yet, the comparison may not see: it has the rows as they were last stored,
        // and what was told since may be the opposite.
        let untold = *at > 0 && *at >= snapshot.changes_kept_from();
        let mut since = if untold { *at } else { snapshot.counters().sequence };
        match self.compare_with(&snapshot, asks, &mut since) {
            Ok(result) => result?,
            Err(error) => return self.trouble("comparing the indexes", error),
        }
        *at = since;
        self.send(Event::Compared(began.elapsed()))?;
        self.follow(at)
    }

    fn compare_with(
        &self,
        snapshot: &Snapshot,
        asks: &Receiver<Ask>,
        at: &mut u64,
    ) -> Result<Result<(), Over>, CompareError> {
        let mut rows = self.rows.rows()?;
        for (i, entry) in snapshot.walk().enumerate() {
            let entry = entry?;
            if i % 256 == 255 {
                if self.between(asks, at).is_err() {
                    return Ok(Err(Over));
                }
                if i % (1 << 16) == (1 << 16) - 1 {
                    rows = self.rows.rows()?;
                }
            }
            let differs = |row: Option<Row>| row.is_none_or(|row| !is_as_indexed(&row, &entry.record));
            if !entry.path.is_empty()
                && differs(rows.row(&entry.path)?)
                && self.observe(&entry.path, Some(&entry.record)).is_err()
            {
                return Ok(Err(Over));
            }
        }
        let mut after = Vec::new();
        loop {
            rows = self.rows.rows()?;
            let (paths, last) = rows.on_disk(&after, b"", ROWS)?;
            for path in paths {
                if snapshot.entry(&path)?.is_none() && self.observe(&path, None).is_err() {
                    return Ok(Err(Over));
                }
            }
            match last {
                Some(last) => after = last,
                None => return Ok(Ok(())),
            }
            if self.between(asks, at).is_err() {
                return Ok(Err(Over));
            }
        }
    }

    /// Answers what was asked during long work, which is a comparison: that once is enough. What the folder's index
    /// finds meanwhile cannot wait for its end, which may be minutes away.
    fn between(&self, asks: &Receiver<Ask>, at: &mut u64) -> Result<(), Over> {
        loop {
            match asks.try_recv() {
                Ok(Ask::Compare) => {}
                Ok(ask) => self.answer(ask, asks, at)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Over),
            }
        }
    }

    /// Looks at what was changed by the machine until the folder's index has it: what goes before that, the index would
    /// never tell of.
    fn peek(&self, path: Vec<u8>, settled: Option<Stamp>, tries: u32) -> Result<(), Over> {
        let there = self.tree.stat(&path).ok().flatten();
        let seen = there.is_some_and(|stat| self.is_indexed(&path, &stat));
        let as_told = |stat: Stat| settled.is_some_and(|told| told.is(&self.tree.stamp(&stat)));
        if !there.is_some_and(as_told) {
            self.observe(&path, None)?;
        }
        if there.is_some()
            && !seen
            && self.index.is_some()
            && self.wants(&path, there.is_some_and(|s| is_folder(&s)))
        {
            return self.send(Event::Unseen { path, tries: tries + 1 });
        }
        Ok(())
    }

    /// Whether the folder's index has this very entry.
    fn is_indexed(&self, path: &[u8], stat: &Stat) -> bool {
        let record = || self.index.as_ref()?.snapshot().ok()?.entry(path).ok()?;
        record().is_some_and(|record| record.stamp.ino == stat.st_ino)
    }

    /// Looks at a path and everything below it, on disk and in the rows. If what it is in is gone, that is looked at:
    /// a change below it that was refused can succeed only when that is known.
    fn look(&self, mut path: Vec<u8>) -> Result<(), Over> {
        while let Some(above) = path.iter().rposition(|b| *b == b'/')
            && matches!(self.tree.stat(&path[..above]), Ok(None))
        {
            path.truncate(above);
        }
        if !path.is_empty() {
            self.observe(&path, None)?;
        }
        let mut folders = vec![path.clone()];
        while let Some(folder) = folders.pop() {
            let Ok(Some(stat)) = self.stat(&folder) else { continue };
            if file_type(&stat) != FileType::Directory {
                continue;
            }
            let names = match self.tree.walk(&folder).and_then(|fd| names(&fd)) {
                Ok(names) => names,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => {
                    self.trouble("reading a folder", error)?;
                    continue;
                }
            };
            for (name, is_folder) in names {
                let child = if folder.is_empty() { name } else { [&folder[..], b"/", &name].concat() };
                self.observe(&child, None)?;
                if is_folder && self.wants(&child, true) {
                    folders.push(child);
                }
            }
        }
        let prefix = if path.is_empty() { Vec::new() } else { [&path[..], b"/"].concat() };
        let mut after = prefix.clone();
        loop {
            let read = self.rows.rows().and_then(|rows: Rows| rows.on_disk(&after, &prefix, ROWS));
            let (paths, last) = match read {
                Ok(read) => read,
                Err(error) => return self.trouble("reading the index", error),
            };
            for path in paths {
                if matches!(self.tree.stat(&path), Ok(None)) {
                    self.observe(&path, None)?;
                }
            }
            match last {
                Some(last) => after = last,
                None => return Ok(()),
            }
        }
    }

    fn stat(&self, path: &[u8]) -> Result<Option<Stat>, Errno> {
        if path.is_empty() { fs::fstat(self.tree.root()).map(Some) } else { self.tree.stat(path) }
    }

    fn wants(&self, path: &[u8], folder: bool) -> bool {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).wants(path, folder)
    }

    /// Tells what is at one path, if it is to be synchronized.
    fn observe(&self, path: &[u8], known: Option<&Record>) -> Result<(), Over> {
        if path == IGNORE_FILE {
            self.send(Event::Rules)?;
        }
        let (folder, other) = match check_path(path) {
            Ok(()) => (self.wants(path, true), self.wants(path, false)),
            Err(_) => return Ok(()),
        };
        if !folder && !other {
            return Ok(());
        }
        let stat = match self.tree.stat(path) {
            Ok(stat) => stat,
            Err(error) => return self.trouble(&format!("looking at {}", path.escape_ascii()), error),
        };
        let Some(stat) = stat else { return self.gone(path) };
        if !(if is_folder(&stat) { folder } else { other }) {
            return Ok(());
        }
        let read = match self.read(path, &stat, known) {
            Ok(Some(read)) => read,
            // Nothing that is synchronized.
            Ok(None) => return Ok(()),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::AGAIN) => return self.again(path, AGAIN),
            Err(error) => {
                let doing = format!("reading {}", path.escape_ascii());
                return self.trouble(&doing, crate::disk::problem(error, path, "reading").detail);
            }
        };
        let (value, stamp) = read;
        let _held = self.tree.hold([path]);
        let now = self.tree.stat(path).ok().flatten().map(|stat| self.tree.stamp(&stat));
        // What is in a folder may change its times all the while.
        let folder = matches!(value, Value::Folder { .. });
        if !now.is_some_and(|now| now.is(&stamp) || folder && now.file == stamp.file) {
            return self.again(path, AGAIN);
        }
        let (settled, is_file) = (stamp.settled, matches!(value, Value::File { .. }));
        self.send(Event::Found { path: path.to_vec(), value, stamp })?;
        if !settled && is_file {
            return self.again(path, self.tree.granularity() * 3 / 2);
        }
        Ok(())
    }

    fn again(&self, path: &[u8], after: Duration) -> Result<(), Over> {
        self.send(Event::Again { path: path.to_vec(), after })
    }

    fn gone(&self, path: &[u8]) -> Result<(), Over> {
        let _held = self.tree.hold([path]);
        if !matches!(self.tree.stat(path), Ok(None)) {
            return self.again(path, AGAIN);
        }
        // Of all that is gone with its disk nothing was deleted.
        if !self.tree.is_there() {
            return self.send(Event::FolderGone);
        }
        self.send(Event::Gone { path: path.to_vec() })
    }

    /// What is at a path.
    fn read(
        &self,
        path: &[u8],
        stat: &Stat,
        known: Option<&Record>,
    ) -> Result<Option<(Value, Stamp)>, Errno> {
        let stamp = self.tree.stamp(stat);
        match file_type(stat) {
            FileType::Directory => {
                let folder = self.tree.walk(path)?;
                let meta = self.metadata.read(stat, What::Folder, Some(&folder))?;
                Ok(Some((Value::Folder { meta, implied: false }, stamp)))
            }
            FileType::Symlink => {
                let (folder, name) = self.tree.parent(path)?;
                let target = fs::readlinkat(&folder, name, Vec::new())?.into_bytes();
                let meta = self.metadata.read(stat, What::Link, None::<std::fs::File>)?;
                Ok(Some((Value::Link { target, meta }, stamp)))
            }
            FileType::RegularFile => {
                let mut stamp = stamp;
                if !stamp.settled && self.tree.granularity() <= WAITED_FOR {
                    // Cheaper than reading it again later.
                    std::thread::sleep(self.tree.granularity());
                }
                let file = self.tree.open_file(path)?;
                let stat = fs::fstat(&file)?;
                if !stamp.is(&self.tree.stamp(&stat)) {
                    return Err(Errno::AGAIN);
                }
                stamp = self.tree.stamp(&stat);
                let root = match self.known_root(path, &stat, known) {
                    Some(root) => root,
                    None => root_of_file(&file, stamp.size).ok_or(Errno::AGAIN)?,
                };
                let meta = self.metadata.read(&stat, What::File, Some(file.as_fd()))?;
                if !stamp.is(&self.tree.stamp(&fs::fstat(&file)?)) {
                    return Err(Errno::AGAIN);
                }
                Ok(Some((Value::File { size: stamp.size, root, meta }, stamp)))
            }
            _ => Ok(None),
        }
    }

    /// The content's root, if the folder's index has read this state of the file.
    fn known_root(&self, path: &[u8], stat: &Stat, known: Option<&Record>) -> Option<Hash> {
        if stat.st_size == 0 {
            return Some(tree_root(&[]));
        }
        let device = fs::fstat(self.tree.root()).ok()?.st_dev;
        let now = folder_index::Stamp::of(stat, device);
        let of = |record: &Record| {
            let content = record.content()?;
            record.stamp.same_content(&now).then_some(content.root)
        };
        known.and_then(of).or_else(|| {
            let snapshot = self.index.as_ref()?.snapshot().ok()?;
            of(&snapshot.entry(path).ok()??)
        })
    }
}

/// Why indexes cannot be compared.
#[derive(Debug, thiserror::Error)]
enum CompareError {
    #[error(transparent)]
    Folder(#[from] folder_index::IndexError),
    #[error(transparent)]
    Rows(#[from] StoreError),
}

/// Whether a row says of the disk what the folder's index says, as far as both can be compared without looking.
fn is_as_indexed(row: &Row, record: &Record) -> bool {
    let Disk::Present(here) = &row.disk else { return false };
    let nanos = |time: folder_index::Time| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let (stamp, now) = (&here.stamp, &record.stamp);
    let same = stamp.file == now.ino
        && i128::from(stamp.mtime_ns) == nanos(now.mtime)
        && i128::from(stamp.ctime_ns) == nanos(now.ctime)
        && here.dot.is_some();
    same && match (&here.value, &record.kind) {
        (Value::Folder { .. }, folder_index::Kind::Folder(_)) => true,
        (Value::Link { target, .. }, folder_index::Kind::Symlink(now)) => target == now,
        (Value::File { root, size, .. }, folder_index::Kind::File(Some(content))) => {
            content.settled && stamp.settled && (content.root, now.size) == (*root, *size)
        }
        _ => false,
    }
}

/// Names in a folder, and which are folders themselves.
fn names(folder: &std::os::fd::OwnedFd) -> Result<Vec<(Vec<u8>, bool)>, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let own = fs::openat(folder, ".", flags, fs::Mode::empty())?;
    let mut names = Vec::new();
    for item in Dir::read_from(&own)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name == b"." || name == b".." || name == STAGING_FOLDER {
            continue;
        }
        let is_folder = match item.file_type() {
            FileType::Unknown => {
                stat_at(folder, name)?.is_some_and(|stat| file_type(&stat) == FileType::Directory)
            }
            kind => kind == FileType::Directory,
        };
        names.push((name.to_vec(), is_folder));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use event_schema::RunId;
    use folder_index::Catalog;
    use folder_index::scan::{ScanOptions, Scope, Unobserved, scan};
    use tokio::sync::mpsc;

    use super::super::store::Store;
    use super::*;
    use crate::clock::FleetClock;

    #[test]
    fn what_is_below_something_left_out_is_left_out() {
        let rules = Chosen::new(b"*.tmp\nbuild/\n", &Selection::default());
        for (path, wanted) in [
            (&b"a"[..], true),
            (b"a.tmp", false),
            (b"deep/a.tmp", false),
            (b"build", true),
            (b"build/x", false),
            (b"deep/build/er/x", false),
            (b"builds/x", true),
        ] {
            assert_eq!(rules.wants(path, false), wanted, "{}", path.escape_ascii());
        }
        assert!(!rules.wants(b"build", true) && rules.wants(b"builds", true));
    }

    #[test]
    fn only_what_is_wanted_what_is_above_it_and_below_it() {
        let wanted = vec!["/docs/reports".into(), "photos/20*/raw".into()];
        let rules = Chosen::new(b"*.tmp\n", &Selection { ignore: Vec::new(), wanted });
        for (path, wanted) in [
            (&b"docs"[..], false),
            (b"docs/reports", true),
            (b"docs/reports/a/b", true),
            (b"docs/reports/a.tmp", false),
            (b"docs/other", false),
            (b"doc", false),
            (b"photos", false),
            (b"photos/2024/raw/1", true),
            (b"photos/2024/small", false),
        ] {
            assert_eq!(rules.wants(path, false), wanted, "{}", path.escape_ascii());
        }
        for (path, wanted) in [
            (&b"docs"[..], true),
            (b"docs/reports", true),
            (b"docs/other", false),
            (b"photos", true),
            (b"photos/2024", true),
            (b"photos/2024/small", false),
            (b"music", false),
        ] {
            assert_eq!(rules.wants(path, true), wanted, "the folder {}", path.escape_ascii());
        }
        // What says nothing, and what only takes away, brings no folders.
        let of = |lines: &[&str]| {
            let wanted = lines.iter().map(|line| (*line).into()).collect();
            Chosen::new(b"", &Selection { ignore: Vec::new(), wanted })
        };
        let some = of(&["# plans", "", "/docs/", "!old"]);
        assert!(some.wants(b"docs", true) && some.wants(b"docs/a", false) && !some.wants(b"other", true));
        assert!(of(&["# plans", " "]).wants(b"other", true), "no rule is no choice");
    }

    /// What is named by its end alone may be in any folder that is not left out.
    #[test]
    fn what_may_be_anywhere_brings_folders_and_nothing_else_in_them() {
        let wanted = vec!["*.pdf".into(), "/docs/**/*.txt".into()];
        let rules = Chosen::new(b"build/\n", &Selection { ignore: Vec::new(), wanted });
        for (path, wanted) in [
            (&b"a.pdf"[..], true),
            (b"deep/er/a.pdf", true),
            (b"deep/er/a.txt", false),
            (b"docs/er/a.txt", true),
            (b"docs/er/a.doc", false),
            (b"build/a.pdf", false),
        ] {
            assert_eq!(rules.wants(path, false), wanted, "{}", path.escape_ascii());
        }
        for (path, wanted) in [(&b"deep"[..], true), (b"deep/er", true), (b"docs", true), (b"build", false)] {
            assert_eq!(rules.wants(path, true), wanted, "the folder {}", path.escape_ascii());
        }
    }

    /// A folder with an index, rows, and a scout that looks at them.
    struct Scene {
        data: tempfile::TempDir,
        folder: tempfile::TempDir,
        index: Arc<folder_index::Index>,
        store: Store,
        committed: std::sync::mpsc::Receiver<Result<(), String>>,
    }

    impl Scene {
        fn new() -> Self {
            let made = || tempfile::tempdir_in("/var/tmp").expect("room");
            let (data, folder) = (made(), made());
            let index = Catalog::open(data.path()).expect("room").index(folder.path()).expect("room");
            let (done, committed) = std::sync::mpsc::channel();
            let told = move |result| drop(done.send(result));
            let (store, _) =
                Store::open(&data.path().join("rows"), Arc::new(|_: &[u8]| None), told).expect("room");
            Self { data, folder, index, store, committed }
        }

        fn at(&self, path: &[u8]) -> std::path::PathBuf {
            self.folder.path().join(std::str::from_utf8(path).expect("text"))
        }

        /// Has the folder's index see what is there now.
        fn scan(&self) {
            let (progress, stop) = (Arc::default(), Arc::default());
            let options = ScanOptions::default();
            let done = scan(&self.index, &options, &Scope::All, &mut Unobserved, &progress, &stop);
            done.expect("a folder that can be read");
        }

        fn scout(&self, told: usize) -> (Scout, mpsc::Receiver<Event>) {
            let tree = Arc::new(Tree::open(self.folder.path(), RunId([1; 16]), true).expect("a folder"));
            let (out, events) = mpsc::channel(told);
            let clock = Arc::<FleetClock>::default();
            let scout = Scout {
                index: Some(self.index.clone()),
                metadata: Arc::new(Metadata::new(tree.root())),
                rows: self.store.reader(),
                rules: Arc::new(RwLock::new(Arc::new(Chosen::new(b"", &Selection::default())))),
                attic: Arc::new(Attic::new(
                    tree.clone(),
                    RunId([1; 16]),
                    None,
                    clock,
                    self.data.path().into(),
                )),
                tree,
                out,
            };
            (scout, events)
        }

        /// Stores as rows what was told.
        fn store(&mut self, events: &mut mpsc::Receiver<Event>) {
            let mut batch = sync_core::sync::Batch::default();
            while let Ok(event) = events.try_recv() {
                let Event::Found { path, value, stamp } = event else { continue };
                let dot = agent_proto::sync::Dot {
                    replica: agent_proto::sync::ReplicaId([1; 8]),
                    counter: 1 + batch.rows.len() as u64,
                };
                let here = sync_core::sync::OnDisk { value, stamp, dot: Some(dot) };
                batch.rows.push(Row {
                    path,
                    statements: Vec::new(),
                    disk: Disk::Present(here),
                    context: Vec::new(),
                    depth: 0,
                    holders: Vec::new(),
                    sequence: dot.counter,
                    work: sync_core::sync::Work::None,
                });
            }
            sync_core::sync::Index::put(&mut self.store, batch);
            self.store.commit();
            let result = self.committed.recv().expect("it goes on");
            self.store.committed(result).expect("stored");
        }
    }

    /// What was told of paths: whether something is there.
    fn told(events: &mut mpsc::Receiver<Event>) -> Vec<(Vec<u8>, bool)> {
        std::iter::from_fn(|| events.try_recv().ok())
            .filter_map(|event| match event {
                Event::Found { path, .. } => Some((path, true)),
                Event::Gone { path } => Some((path, false)),
                _ => None,
            })
            .collect()
    }

    /// A folder that goes and comes back keeps its stamps. Where its going was told and not stored yet, the rows look as
    /// if nothing had happened.
    #[test]
    fn what_comes_back_before_its_going_is_stored_is_told() {
        let mut scene = Scene::new();
        std::fs::create_dir(scene.at(b"x")).expect("room");
        std::fs::write(scene.at(b"x/f"), "content").expect("room");
        scene.scan();
        let (scout, mut events) = scene.scout(1000);
        let (_asks, asked) = std::sync::mpsc::channel();
        let mut at = 0;
        assert!(scout.compare(&asked, &mut at).is_ok());
        scene.store(&mut events);
        std::fs::rename(scene.at(b"x"), scene.at(b"w")).expect("renamed");
        scene.scan();
        assert!(scout.follow(&mut at).is_ok());
        let there = told(&mut events);
        assert!(
            there.contains(&(b"x/f".to_vec(), false)) && there.contains(&(b"w/f".to_vec(), true)),
            "{there:?}"
        );
        // Nothing of that is stored when it comes back.
        std::fs::rename(scene.at(b"w"), scene.at(b"x")).expect("renamed");
        scene.scan();
        assert!(scout.compare(&asked, &mut at).is_ok());
        let there = told(&mut events);
        assert!(
            there.contains(&(b"x/f".to_vec(), true)) && there.contains(&(b"w/f".to_vec(), false)),
            "{there:?}"
        );
    }

    #[test]
    fn who_looks_for_what_is_below_something_gone_learns_that_it_is_gone() {
        let mut scene = Scene::new();
        std::fs::create_dir_all(scene.at(b"w/y")).expect("room");
        std::fs::write(scene.at(b"w/y/f"), "content").expect("room");
        let (scout, mut events) = scene.scout(1000);
        assert!(scout.look(Vec::new()).is_ok());
        scene.store(&mut events);
        std::fs::remove_dir_all(scene.at(b"w")).expect("removed");
        assert!(scout.look(b"w/y/another".to_vec()).is_ok());
        let mut gone = told(&mut events);
        gone.sort();
        assert_eq!(gone, [(b"w".to_vec(), false), (b"w/y".to_vec(), false), (b"w/y/f".to_vec(), false)]);
    }

    /// What the machine takes to be there is looked at if it is another, stored or not.
    #[test]
    fn what_was_changed_is_looked_at_unless_it_is_what_the_machine_has() {
        let scene = Scene::new();
        std::fs::write(scene.at(b"f"), "content").expect("room");
        scene.scan();
        let (scout, mut events) = scene.scout(1000);
        let stat = scout.tree.stat(b"f").expect("there").expect("there");
        let stamp = scout.tree.stamp(&stat);
        assert!(scout.peek(b"f".to_vec(), Some(stamp), 0).is_ok());
        assert_eq!(told(&mut events), []);
        assert!(scout.peek(b"f".to_vec(), None, 0).is_ok());
        assert_eq!(told(&mut events), [(b"f".to_vec(), true)]);
        assert!(scout.peek(b"f".to_vec(), Some(Stamp { size: 9, ..stamp }), 0).is_ok());
        assert_eq!(told(&mut events), [(b"f".to_vec(), true)]);
        // Nor read again and again until the folder's index comes to it, which without a watch is at the next scan.
        std::fs::write(scene.at(b"g"), "content").expect("room");
        let stamp = scout.tree.stamp(&scout.tree.stat(b"g").expect("there").expect("there"));
        assert!(scout.peek(b"g".to_vec(), Some(stamp), 0).is_ok());
        assert_eq!(told(&mut events), []);
    }

    /// Comparing a very large folder takes minutes.
    #[test]
    fn what_changes_while_indexes_are_compared_is_told_in_between() {
        let scene = Scene::new();
        let name = |n: usize| format!("f{n:04}");
        (0..2000).for_each(|n| std::fs::write(scene.folder.path().join(name(n)), name(n)).expect("room"));
        scene.scan();
        let (scout, mut told) = scene.scout(1);
        let (asks, asked) = std::sync::mpsc::channel();
        asks.send(Ask::Compare).expect("it listens");
        let scouting = std::thread::spawn(move || scout.run(&asked));
        let mut next = || loop {
            match told.blocking_recv().expect("it goes on") {
                Event::Found { path, value: Value::File { size, .. }, .. } => return Some((path, size)),
                Event::Compared(_) => return None,
                _ => {}
            }
        };
        let (first, size) = next().expect("nothing of it is in the rows");
        assert_eq!(size, 5);
        std::fs::write(scene.at(&first), "longer than before").expect("room");
        scene.scan();
        asks.send(Ask::Changed).expect("it listens");
        let mut compared = 1;
        while let Some((path, size)) = next() {
            compared += 1;
            if path == first && size == 18 {
                break;
            }
        }
        assert!(compared < 1000, "told after {compared} others");
        // It ends when nobody listens.
        drop(told);
        drop(asks);
        scouting.join().expect("no panic");
    }
}
