//! A destination's disk: blocks are kept in `.flotilla/<run>/<entry number>` inside the destination
//! folder until a file is whole and on the disk for good, then the file is renamed into place (`staging/naming.rs`).
//!
//! A block counts only after it matched its hash. After a restart every block that the journal or the
//! disk claims is read and checked again, so nothing is trusted that power loss could have damaged.

mod arrivals;
mod aside;
mod before;
mod bundles;
mod finalize;
mod naming;
mod reuse;
mod shown;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard};

use agent_proto::limits::BLOCK_LEN;
use event_schema::{Problem, ProblemClass, RunId};
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use sync_core::BlockMap;
use sync_core::manifest::{Entry, Kind, STAGING_FOLDER};
use sync_core::merkle::{Hash, block_hash};

use self::aside::Aside;
pub(crate) use self::aside::KEEPS;
pub(crate) use self::before::Before;
use self::bundles::Gathering;
use self::naming::{DOUBTFUL, Waiting};
pub(crate) use self::shown::HOLDS;
use super::folder::{Folder, file_type};
use super::journal::Journal;
use super::manifest::{BlockInfo, EntryRef, ManifestFile};
use super::metadata::Restorer;
use super::reader::{BlockReader, ReadError, read_block};
use super::{Problems, problem};

/// Unfinished files kept open between writes.
const FILES_OPEN: usize = 128;

/// Names of a folder that is emptied, held at a time.
const NAMES_HELD: usize = 1024;

/// Blocks of one file that are looked at before it is asked whether to go on.
const LOOKED_AT_ONCE: u64 = 128;

/// Copied blocks that are noted at once.
const NOTED_AT_ONCE: usize = 1024;

/// Copies into one file that are begun only where there is room for them.
const COPIED_BLINDLY: u64 = 64 << 20;

/// The name in the staging folder under which links are made before they are renamed into place.
const LINK_NAME: &[u8] = b"link";

/// Hash of a block of zeros: nobody needs to send one.
static ZEROS: LazyLock<Hash> = LazyLock::new(|| block_hash(&[0; BLOCK_LEN as usize]));

/// Why a block was not kept.
#[derive(Clone, Debug)]
pub(crate) enum StoreError {
    /// It does not match its hash, or has no place in the manifest: whoever sent it lied.
    Corrupt,
    /// No room; the run can go on when there is some.
    Full(Problem),
    /// The system refuses this entry; it was given up, its other blocks are not wanted any more.
    Entry(Problem),
    /// The block's entry was given up before.
    GivenUp,
}

/// What [`Staging::open`] found.
pub(crate) struct Opened {
    /// The store.
    pub(crate) staging: Staging,
    /// The blocks that are here and verified.
    pub(crate) verified: BlockMap,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// How many of them came from the disk as it was before the run, not from peers.
    pub(crate) reused: u64,
    /// What is wrong with single entries, which were given up.
    pub(crate) problems: Vec<Problem>,
    /// Blocks of those entries: not to be fetched.
    pub(crate) unwanted: BlockMap,
}

/// What a destination has of one run. In memory are a bit for each block and two for each entry, and less where long
/// stretches are alike.
pub(crate) struct Staging {
    manifest: Arc<ManifestFile>,
    /// Reads finished files for others.
    placed: BlockReader,
    restorer: Restorer,
    staging_path: Vec<u8>,
    aside: Aside,
    /// That folder, open: every small file is made in it and renamed out of it.
    staging: Arc<OwnedFd>,
    /// The version before, where this is to be a version of a folder.
    before: Option<Before>,
    /// Entries that have an unfinished file from an earlier life.
    partial: BlockMap,
    /// Files that get their names together, in order (`bundles.rs`).
    bundles: Vec<Range<u64>>,
    /// The agent's folder for this run.
    state: PathBuf,
    inner: Mutex<Inner>,
    /// Rung when something waits to be written down.
    bell: Condvar,
    /// Held by who gives names.
    naming: Mutex<()>,
    /// Held by who makes a file that is to be named together with others.
    making: Mutex<()>,
    /// Nothing gets its name: a hook is to see all of it before (`shown.rs`).
    held_back: AtomicBool,
    /// What the next `syncfs` says.
    #[cfg(test)]
    failing_sync: Mutex<Option<Errno>>,
}

/// What an unfinished file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// To read, if its mode lets us.
    Peek,
    /// To read, whatever its mode becomes by that.
    Read,
    Write,
    /// To write; it may have to be made.
    Create,
}

struct Inner {
    journal: Journal,
    /// Blocks of unfinished files that were copied from the disk: they are not to be taken for fetched.
    copied: Journal,
    /// Blocks that are here and verified, in place or not.
    have: BlockMap,
    /// Entries that are in place.
    placed: BlockMap,
    given_up: BlockMap,
    /// Entries whose unfinished file waits with the others of its folder.
    bundled: BlockMap,
    /// Entries under whose names there was a file when the run began here.
    older: BlockMap,
    /// Bytes of blocks that are wanted and not here.
    missing: u64,
    /// Unfinished files that are open; whether they can be written to.
    files: HashMap<u64, (Arc<File>, bool)>,
    waiting: Waiting,
    /// The system could not write something down: what waits for its name is read again first.
    doubtful: bool,
    /// Files whose content went that way, and those in whose place somebody's rules stay.
    lost: Problems,
    /// The folder's own rules are other ones than those of the run.
    spared: bool,
}

impl Staging {
    /// Opens the destination `root` (made if it is not there) for `manifest`, finds what is there
    /// already, and makes all folders. `state` is the agent's folder for this run; `others` are folders of other jobs,
    /// where missing content may be.
    ///
    /// # Errors
    /// The problem that keeps the run from starting here.
    pub(crate) fn open(
        root: &Path,
        state: &Path,
        run: RunId,
        manifest: Arc<ManifestFile>,
        others: &[PathBuf],
        go_on: &dyn Fn() -> bool,
    ) -> Result<Opened, Problem> {
        let shown = root.as_os_str().as_encoded_bytes();
        std::fs::create_dir_all(root).map_err(|e| io_problem(&e, shown, "making the destination folder"))?;
        let folder = Folder::open(root).map_err(|e| problem(e, shown, "opening the destination folder"))?;
        Self::open_in(folder, state, run, manifest, (others, None), Restorer::new(), go_on)
    }

    /// The same in a folder that is open. With a version `before`, what this has in common with it is taken from there:
    /// its files are taken for what was in the folder, and linked to instead of copied where they are the same.
    pub(crate) fn open_in(
        folder: Folder,
        state: &Path,
        run: RunId,
        manifest: Arc<ManifestFile>,
        (others, before): (&[PathBuf], Option<Before>),
        restorer: Restorer,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Opened, Problem> {
        let io = |e: &std::io::Error, doing| io_problem(e, b"", doing);
        std::fs::create_dir_all(state).map_err(|e| io(&e, "making the run's state folder"))?;
        let mut fresh = Fresh::default();
        if is_empty(folder.root()) {
            fresh.made(b"");
        }
        let staging_path = [STAGING_FOLDER, b"/", run.to_string().as_bytes()].concat();
        let unusable =
            |e| problem(e, &staging_path, "making the staging folder, which must be the agent's own");
        folder.make_private(STAGING_FOLDER).map_err(unusable)?;
        let opened = folder.make_private(&staging_path).map_err(unusable)?;
        bundles::take_apart(&opened, &manifest).map_err(unusable)?;
        let partial = partials(opened.as_fd(), manifest.entries()).map_err(unusable)?;
        let (entries, blocks) = (manifest.entries(), manifest.blocks());
        let (mut fetched, mut copied) = (BlockMap::new(blocks), BlockMap::new(blocks));
        let open = |name: &str, noted: &mut BlockMap| {
            let opened = Journal::open(&state.join(name), |block| _ = noted.insert(block));
            opened.map_err(|e| io(&e, "opening the resume journal"))
        };
        let journal = open("blocks.journal", &mut fetched)?;
        let copies = open("copied.journal", &mut copied)?;
        let mut staging = Self {
            placed: BlockReader::new(folder, manifest.clone()),
            restorer,
            staging_path,
            aside: Aside::of(state, run),
            staging: opened,
            before,
            partial,
            bundles: Vec::new(),
            state: state.to_owned(),
            bell: Condvar::new(),
            naming: Mutex::new(()),
            making: Mutex::new(()),
            held_back: AtomicBool::new(state.join(HOLDS).exists()),
            #[cfg(test)]
            failing_sync: Mutex::default(),
            inner: Mutex::new(Inner {
                journal,
                copied: copies,
                have: BlockMap::new(blocks),
                placed: BlockMap::new(entries),
                given_up: BlockMap::new(entries),
                bundled: BlockMap::new(entries),
                older: BlockMap::new(entries),
                missing: manifest.bytes(),
                files: HashMap::new(),
                waiting: Waiting::default(),
                doubtful: state.join(DOUBTFUL).exists(),
                lost: Problems::default(),
                spared: false,
            }),
            manifest,
        };
        let (mut reused, mut problems, mut unwanted) = (0, Problems::default(), BlockMap::new(blocks));
        let (mut shared, mut gathering) = (HashSet::new(), Gathering::default());
        for page in 0..staging.manifest.pages() {
            if !go_on() {
                break;
            }
            let page = staging.manifest.page(page).map_err(unreadable)?;
            for (entry, e) in page.entries() {
                let range = page.blocks_of_entry(entry);
                let noted = (&mut fetched, &mut copied);
                if !go_on() {
                    break;
                }
                match staging.recover(entry, e, range.clone(), noted, &mut shared, &mut fresh, go_on) {
                    Ok(found) => reused += found,
                    Err(full) if full.class == ProblemClass::DiskFull => return Err(full),
                    Err(problem) => {
                        problems.push(problem);
                        unwanted.insert_range(range.clone());
                        staging.give_up(entry, range);
                    }
                }
                gathering.see(entry, e, fresh.last == Some(entry));
            }
        }
        if go_on() {
            staging.bundles = gathering.finish(entries);
        }
        reused += staging.reuse(others, go_on)?;
        staging.name_waiting(&mut |problem| tracing::warn!("not in place yet: {}", problem.detail));
        let inner = staging.lock();
        let (verified, bytes) = (inner.have.clone(), staging.manifest.bytes() - inner.missing);
        drop(inner);
        Ok(Opened { staging, verified, bytes, reused, problems: problems.into_vec(), unwanted })
    }

    /// Looks for an entry's blocks on disk: the finished file, else the unfinished one, else an
    /// older file of the same name, whose matching blocks are copied. `shared` are files with further names that are
    /// in place as another entry.
    ///
    /// Gives the number of blocks that were found and not fetched. If it is not to go on, what was found does not count.
    fn recover(
        &self,
        entry: u64,
        e: &Entry,
        range: Range<u64>,
        (fetched, copied): (&mut BlockMap, &mut BlockMap),
        shared: &mut HashSet<(u64, u64)>,
        fresh: &mut Fresh,
        go_on: &dyn Fn() -> bool,
    ) -> Result<u64, Problem> {
        let Kind::File { size, .. } = e.kind else {
            if e.is_folder() {
                match self.folder().make_free_folder(&e.path) {
                    Ok(true) => fresh.made_entry(entry, &e.path),
                    // What lies where a folder belongs stays until something is there to be put into that.
                    Ok(false) | Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => {}
                    Err(err) => return Err(problem(err, &e.path, "making the folder")),
                }
            }
            return Ok(0);
        };
        let mut existing = if fresh.holds(&e.path) { None } else { self.folder().open_file(&e.path).ok() };
        let in_place = existing.is_some();
        if let Some(before) = self.before.as_ref().filter(|_| !in_place) {
            if self.link_before(before, e, range.clone(), shared)? {
                if self.partial.contains(entry) {
                    self.remove_partial(entry);
                }
                self.found(range.clone())?;
                self.lock().placed.insert(entry);
                return Ok(range.filter(|block| !fetched.contains(*block)).count() as u64);
            }
            existing = before.file(&e.path);
        }
        if existing.is_some() {
            self.lock().older.insert(entry);
        }
        let existing_len = existing.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
        let mut partial = match self.partial.contains(entry).then(|| self.open_partial(entry, Access::Read)) {
            None | Some(Err(Errno::NOENT)) => None,
            Some(Ok(file)) => Some(file),
            // Nothing that we made.
            Some(Err(_)) => {
                self.remove_partial(entry);
                None
            }
        };
        if partial.is_none()
            && let Some(file) = existing.as_ref().filter(|_| !in_place)
            && self.clone_before(entry, e, range.clone(), file)?
        {
            copied.insert_range(range.clone());
            partial = self.open_partial(entry, Access::Read).ok();
        }
        // Blocks that are in the unfinished file, and those that are elsewhere; counted from the file's first.
        let count = range.end - range.start;
        let (mut staged, mut elsewhere, mut to_copy) = (BlockMap::new(count), BlockMap::new(count), 0);
        let mut only_existing =
            in_place && existing_len == size && existing.as_ref().is_some_and(|f| holes_fit(f, e));
        for nth in 0..count {
            if nth % LOOKED_AT_ONCE == LOOKED_AT_ONCE - 1 && !go_on() {
                return Ok(0);
            }
            let info = self.block(range.start + nth)?;
            let here = match &existing {
                Some(file) if info.offset < existing_len => read_block(file, &info).is_ok(),
                _ => false,
            };
            only_existing &= here;
            if partial.as_ref().is_some_and(|f| read_block(f, &info).is_ok()) {
                staged.insert(nth);
            } else if here || is_zeros(&info) {
                elsewhere.insert(nth);
                to_copy += u64::from(info.len);
            }
        }
        let in_run = |nth: u64| range.start + nth;
        let reused = |found: &BlockMap, fetched: &BlockMap| {
            found.ranges().flatten().filter(|&nth| !fetched.contains(in_run(nth))).count() as u64
        };
        if only_existing
            && let Some(stat) = existing.as_ref().and_then(|f| fs::fstat(f).ok())
            && stat.st_nlink > 1
        {
            // What is changed under this name would change under others, which may be no business of ours; and what
            // are two files at the source must not be one here.
            only_existing = self.restorer.fits(&stat, e) && shared.insert((stat.st_dev, stat.st_ino));
        }
        if let Some(file) = existing.as_ref().filter(|_| only_existing) {
            // Whole already: only its metadata are set again.
            let restored = self.restorer.restore(file, e);
            restored.map_err(|err| problem(err, &e.path, "restoring the file's metadata"))?;
            self.remove_partial(entry);
            self.found(range.clone())?;
            self.lock().placed.insert(entry);
            return Ok(reused(&BlockMap::full(count), fetched));
        }
        // Written before a kill, which came before they were noted.
        let mut unnoted = staged.ranges().flatten().map(in_run).filter(|block| !copied.contains(*block));
        loop {
            let is_new = |block: &u64| !fetched.contains(*block);
            let some: Vec<u64> = unnoted.by_ref().filter(is_new).take(NOTED_AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            let noting = self.lock().journal.push_all(some.iter().copied());
            noting.map_err(|err| cannot_note(&err))?;
            some.iter().for_each(|&block| _ = fetched.insert(block));
        }
        if to_copy > COPIED_BLINDLY && self.room() < to_copy {
            return Err(problem(Errno::NOSPC, &e.path, "copying what is here already"));
        }
        let mut copies = Vec::new();
        for nth in elsewhere.ranges().flatten() {
            if nth % LOOKED_AT_ONCE == LOOKED_AT_ONCE - 1 && !go_on() {
                return self.note_copies(&copies).map(|()| 0);
            }
            let info = self.block(in_run(nth))?;
            let data = match &existing {
                _ if is_zeros(&info) => vec![0; info.len as usize].into(),
                Some(file) => read_block(file, &info).map_err(|_| changed(e))?,
                None => return Err(changed(e)),
            };
            self.write_at(entry, e, info.offset, &data)
                .map_err(|err| problem(err, &e.path, "copying what is here already"))?;
            copies.push(in_run(nth));
            if copies.len() >= NOTED_AT_ONCE {
                self.note_copies(&copies)?;
                copies.clear();
            }
        }
        self.note_copies(&copies)?;
        self.found(staged.ranges().chain(elsewhere.ranges()).flatten().map(in_run))?;
        if staged.count() + elsewhere.count() == count {
            self.wait_for_name(entry, e).map_err(|err| problem(err, &e.path, "putting the file in place"))?;
        }
        Ok(reused(&staged, fetched) + reused(&elsewhere, fetched))
    }

    fn note_copies(&self, blocks: &[u64]) -> Result<(), Problem> {
        let noting = self.lock().copied.push_all(blocks.iter().copied());
        noting.map_err(|err| cannot_note(&err))
    }

    /// Notes that blocks are here.
    fn found(&self, blocks: impl IntoIterator<Item = u64>) -> Result<(), Problem> {
        for block in blocks {
            let place = self.manifest.place(block).map_err(unreadable)?;
            let len = place.ok_or(Errno::NOENT).map_err(unreadable)?.len;
            let mut inner = self.lock();
            if inner.have.insert(block) {
                inner.missing = inner.missing.saturating_sub(u64::from(len));
            }
        }
        Ok(())
    }

    fn refused(&self, entry: u64, e: &EntryRef, problem: Problem) -> StoreError {
        if problem.class == ProblemClass::DiskFull {
            return StoreError::Full(problem);
        }
        self.give_up(entry, e.blocks());
        StoreError::Entry(problem)
    }

    fn give_up(&self, entry: u64, blocks: Range<u64>) {
        let wanted = |inner: &Inner, block| !inner.have.contains(block);
        let lens: u64 = blocks
            .filter(|&block| wanted(&self.lock(), block))
            .filter_map(|block| self.manifest.place(block).ok().flatten())
            .map(|place| u64::from(place.len))
            .sum();
        let mut inner = self.lock();
        if inner.given_up.insert(entry) {
            inner.missing = inner.missing.saturating_sub(lens);
        }
        inner.files.remove(&entry);
    }

    /// A verified content block, for others.
    ///
    /// # Errors
    /// If it is not here, was changed on disk, or cannot be read.
    pub(crate) fn read(&self, index: u64) -> Result<Arc<[u8]>, ReadError> {
        if !self.lock().have.contains(index) {
            return Err(ReadError::NotHere);
        }
        if let Some(block) = self.placed.kept(index) {
            return Ok(block);
        }
        let info = self.manifest.block(index).map_err(ReadError::Io)?.ok_or(ReadError::NotHere)?;
        if !self.lock().placed.contains(info.entry) {
            let file = self.open_partial(info.entry, Access::Peek).map_err(ReadError::Io);
            // Between the look and the read the file may have been put in place.
            if let Ok(block) = file.and_then(|file| read_block(&file, &info)) {
                return Ok(block);
            }
        }
        self.placed.read(index)
    }

    /// Blocks ever fetched from peers for this run, over all restarts.
    pub(crate) fn blocks_fetched(&self) -> u64 {
        self.lock().journal.records()
    }

    /// How many bytes the file system lacks for what is still missing; `None` if there is room.
    pub(crate) fn shortfall(&self) -> Option<u64> {
        let needed = self.lock().missing;
        needed.checked_sub(self.room()).filter(|&short| short > 0)
    }

    /// Bytes that there is room for.
    fn room(&self) -> u64 {
        fs::fstatvfs(self.folder().root()).map_or(u64::MAX, |v| v.f_bavail.saturating_mul(v.f_frsize))
    }

    /// Writes what is data of a block, and leaves its holes.
    fn write_at(&self, entry: u64, e: &Entry, offset: u64, data: &[u8]) -> rustix::io::Result<()> {
        let file = self.open_partial(entry, Access::Create)?;
        for part in e.kind.data_in(offset..offset + data.len() as u64) {
            let bytes = &data[(part.start - offset) as usize..(part.end - offset) as usize];
            file.write_all_at(bytes, part.start)
                .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        }
        Ok(())
    }

    fn block(&self, block: u64) -> Result<BlockInfo, Problem> {
        self.manifest.block(block).and_then(|info| info.ok_or(Errno::NOENT)).map_err(unreadable)
    }

    /// The unfinished file of an entry.
    fn open_partial(&self, entry: u64, access: Access) -> rustix::io::Result<Arc<File>> {
        let writes = matches!(access, Access::Write | Access::Create);
        if let Some((file, _)) = self.lock().files.get(&entry).filter(|(_, writable)| *writable || !writes) {
            return Ok(file.clone());
        }
        let name = self.partial_path(entry)?;
        let mut flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        flags |= if writes { OFlags::RDWR } else { OFlags::RDONLY };
        if access == Access::Create {
            flags |= OFlags::CREATE;
        }
        let open = || fs::openat(self.staging.as_fd(), &name[..], flags, Mode::RUSR | Mode::WUSR);
        let fd = match open() {
            // It had its metadata already, and nobody may write to it, or read it.
            Err(Errno::ACCESS) if access != Access::Peek => {
                let stat = fs::statat(&self.staging, &name[..], AtFlags::SYMLINK_NOFOLLOW)?;
                if file_type(&stat) != FileType::RegularFile || stat.st_nlink != 1 {
                    return Err(Errno::INVAL);
                }
                let mode = Mode::from_raw_mode(stat.st_mode) | Mode::RUSR | Mode::WUSR;
                fs::chmodat(&self.staging, &name[..], mode, AtFlags::empty())?;
                open()?
            }
            opened => opened?,
        };
        let stat = fs::fstat(&fd)?;
        // One with another name is somebody else's file, laid here to be written to.
        if file_type(&stat) != FileType::RegularFile || stat.st_nlink != 1 {
            return Err(Errno::INVAL);
        }
        let file = Arc::new(File::from(fd));
        let mut inner = self.lock();
        // Which one goes is unimportant: a file that is opened again costs one system call.
        if inner.files.len() >= FILES_OPEN
            && let Some(&victim) = inner.files.keys().next()
        {
            inner.files.remove(&victim);
        }
        inner.files.insert(entry, (file.clone(), writes));
        Ok(file)
    }

    fn remove_partial(&self, entry: u64) {
        self.lock().files.remove(&entry);
        if let Ok(path) = self.partial_path(entry) {
            let _ = fs::unlinkat(&self.staging, &path[..], AtFlags::empty());
        }
        // Another one waits by itself.
        self.lock().bundled.remove(entry);
    }

    fn folder(&self) -> &Folder {
        self.placed.folder()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Inner {
    fn has_all(&self, blocks: Range<u64>) -> bool {
        self.have.next_clear(blocks.start).is_none_or(|missing| missing >= blocks.end)
    }
}

/// The folder made last in which nothing was before: there is nothing to look at in it. Entries come sorted, so those in
/// it follow.
#[derive(Default)]
struct Fresh {
    /// Where nothing was.
    within: Option<Vec<u8>>,
    /// The entry of the folder that was made last.
    last: Option<u64>,
}

impl Fresh {
    fn made(&mut self, path: &[u8]) {
        if !self.holds(path) {
            self.within = Some(path.to_vec());
        }
    }

    fn made_entry(&mut self, entry: u64, path: &[u8]) {
        self.last = Some(entry);
        self.made(path);
    }

    fn holds(&self, path: &[u8]) -> bool {
        self.within.as_ref().is_some_and(|fresh| {
            fresh.is_empty() || path.strip_prefix(&fresh[..]).is_some_and(|rest| rest.first() == Some(&b'/'))
        })
    }
}

/// Whether nothing is in a folder.
fn is_empty(folder: BorrowedFd<'_>) -> bool {
    let is_itself = |name: &CStr| name == c"." || name == c"..";
    let all_are = |mut names: Dir| names.all(|name| name.is_ok_and(|name| is_itself(name.file_name())));
    Dir::read_from(folder).is_ok_and(all_are)
}

/// The entries that have an unfinished file in the staging folder.
fn partials(staging: BorrowedFd<'_>, entries: u64) -> rustix::io::Result<BlockMap> {
    let mut found = BlockMap::new(entries);
    for item in Dir::read_from(staging)? {
        let item = item?;
        let entry = item.file_name().to_str().ok().and_then(|name| name.parse::<u64>().ok());
        if let Some(entry) = entry.filter(|entry| *entry < entries) {
            found.insert(entry);
        }
    }
    Ok(found)
}

fn is_zeros(info: &BlockInfo) -> bool {
    info.len == BLOCK_LEN && info.hash == *ZEROS
}

/// Whether a file has no data where the entry has holes. What is in them is no block, and so is not compared.
fn holes_fit(file: &File, e: &Entry) -> bool {
    let Kind::File { size, data: Some(_) } = e.kind else { return true };
    let mut at = 0;
    while at < size {
        let start = match fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return true,
            Err(_) => return false,
        };
        let Ok(end) = fs::seek(file, SeekFrom::Hole(start)) else { return false };
        if start < size && !e.kind.data_in(start..end.min(size)).eq(std::iter::once(start..end.min(size))) {
            return false;
        }
        at = end;
    }
    true
}

pub(crate) fn io_problem(error: &std::io::Error, path: &[u8], doing: &str) -> Problem {
    problem(Errno::from_io_error(error).unwrap_or(Errno::IO), path, doing)
}

/// The journals are the agent's own files: their trouble is no entry's.
fn cannot_note(error: &std::io::Error) -> Problem {
    io_problem(error, b"", "writing the resume journal")
}

fn changed(e: &Entry) -> Problem {
    problem(Errno::IO, &e.path, "the file changed while it was compared")
}

/// The manifest is in the agent's own folder: if it cannot be read, that is not the fault of an entry.
fn unreadable(error: Errno) -> Problem {
    problem(error, b"", "reading the manifest that was kept")
}
