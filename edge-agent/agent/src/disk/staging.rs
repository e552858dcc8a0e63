//! A destination's disk: blocks are kept in `.flotilla/<run>/<entry number>` inside the destination
//! folder until a file is whole, then the file is renamed into place.
//!
//! A block counts only after it matched its hash. After a restart every block that the journal or the
//! disk claims is read and checked again, so nothing is trusted that power loss could have damaged.

mod arrivals;
mod reuse;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use agent_proto::limits::BLOCK_LEN;
use event_schema::{Problem, ProblemClass, RunId};
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use sync_core::BlockMap;
use sync_core::manifest::{Entry, Kind, STAGING_FOLDER};
use sync_core::merkle::{Hash, block_hash};

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
    /// That folder, open: every small file is made in it and renamed out of it.
    staging: Arc<OwnedFd>,
    /// Entries that have an unfinished file from an earlier life.
    partial: BlockMap,
    inner: Mutex<Inner>,
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
    /// Bytes of blocks that are wanted and not here.
    missing: u64,
    files: HashMap<u64, Arc<File>>,
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
        let io =
            |e: &std::io::Error, doing| problem(Errno::from_io_error(e).unwrap_or(Errno::IO), shown, doing);
        std::fs::create_dir_all(root).map_err(|e| io(&e, "making the destination folder"))?;
        std::fs::create_dir_all(state).map_err(|e| io(&e, "making the run's state folder"))?;
        let folder = Folder::open(root).map_err(|e| problem(e, shown, "opening the destination folder"))?;
        let mut fresh = Fresh::default();
        if is_empty(folder.root()) {
            fresh.made(b"");
        }
        let staging_path = [STAGING_FOLDER, b"/", run.to_string().as_bytes()].concat();
        for path in [STAGING_FOLDER, &staging_path] {
            folder.make_folder(path).map_err(|e| problem(e, path, "making the staging folder"))?;
        }
        let unusable = |e| problem(e, &staging_path, "opening the staging folder");
        let opened = folder.walk(&staging_path).map_err(unusable)?;
        let partial = partials(opened.as_fd(), manifest.entries()).map_err(unusable)?;
        let (entries, blocks) = (manifest.entries(), manifest.blocks());
        let (mut fetched, mut copied) = (BlockMap::new(blocks), BlockMap::new(blocks));
        let open = |name: &str, noted: &mut BlockMap| {
            let opened = Journal::open(&state.join(name), |block| _ = noted.insert(block));
            opened.map_err(|e| io(&e, "opening the resume journal"))
        };
        let journal = open("blocks.journal", &mut fetched)?;
        let copies = open("copied.journal", &mut copied)?;
        let staging = Self {
            placed: BlockReader::new(folder, manifest.clone()),
            restorer: Restorer::new(),
            staging_path,
            staging: opened,
            partial,
            inner: Mutex::new(Inner {
                journal,
                copied: copies,
                have: BlockMap::new(blocks),
                placed: BlockMap::new(entries),
                given_up: BlockMap::new(entries),
                missing: manifest.bytes(),
                files: HashMap::new(),
            }),
            manifest,
        };
        let (mut reused, mut problems, mut unwanted) = (0, Problems::default(), BlockMap::new(blocks));
        let mut shared = HashSet::new();
        for page in 0..staging.manifest.pages() {
            if !go_on() {
                break;
            }
            let page = staging.manifest.page(page).map_err(unreadable)?;
            for (entry, e) in page.entries() {
                let range = page.blocks_of_entry(entry);
                let noted = (&mut fetched, &copied);
                match staging.recover(entry, e, range.clone(), noted, &mut shared, &mut fresh) {
                    Ok(found) => {
                        reused += found.iter().filter(|&&block| !fetched.contains(block)).count() as u64;
                    }
                    Err(full) if full.class == ProblemClass::DiskFull => return Err(full),
                    Err(problem) => {
                        problems.push(problem);
                        unwanted.insert_range(range.clone());
                        staging.give_up(entry, range);
                    }
                }
            }
        }
        reused += staging.reuse(others, go_on)?;
        let inner = staging.lock();
        let (verified, bytes) = (inner.have.clone(), staging.manifest.bytes() - inner.missing);
        drop(inner);
        Ok(Opened { staging, verified, bytes, reused, problems: problems.into_vec(), unwanted })
    }

    /// Looks for an entry's blocks on disk: the finished file, else the unfinished one, else an
    /// older file of the same name, whose matching blocks are copied. `shared` are files with further names that are
    /// in place as another entry.
    fn recover(
        &self,
        entry: u64,
        e: &Entry,
        range: Range<u64>,
        (fetched, copied): (&mut BlockMap, &BlockMap),
        shared: &mut HashSet<(u64, u64)>,
        fresh: &mut Fresh,
    ) -> Result<Vec<u64>, Problem> {
        let Kind::File { size, .. } = e.kind else {
            if e.is_folder() {
                let made = self.folder().make_folder(&e.path);
                if made.map_err(|err| problem(err, &e.path, "making the folder"))? {
                    fresh.made(&e.path);
                }
            }
            return Ok(Vec::new());
        };
        let existing = if fresh.holds(&e.path) { None } else { self.folder().open_file(&e.path).ok() };
        let existing_len = existing.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
        let partial = match self.partial.contains(entry).then(|| self.open_partial(entry, false)) {
            None | Some(Err(Errno::NOENT)) => None,
            Some(Ok(file)) => Some(file),
            // Nothing that we made.
            Some(Err(_)) => {
                self.remove_partial(entry);
                None
            }
        };
        let (mut found, mut unnoted) = (Vec::new(), Vec::new());
        let mut only_existing = existing_len == size && existing.as_ref().is_some_and(|f| holes_fit(f, e));
        for block in range.clone() {
            let info = self.block(block)?;
            let staged = partial.as_ref().is_some_and(|f| read_block(f, &info).is_ok());
            let here = match &existing {
                Some(file) if info.offset < existing_len => read_block(file, &info).is_ok(),
                _ => false,
            };
            only_existing &= here;
            if staged || here || is_zeros(&info) {
                found.push(block);
            }
            if staged && !fetched.contains(block) && !copied.contains(block) {
                unnoted.push(block);
            }
        }
        if only_existing
            && let Some(stat) = existing.as_ref().and_then(|f| fs::fstat(f).ok())
            && stat.st_nlink > 1
        {
            // What is changed under this name would change under others, which may be no business of ours; and what
            // are two files at the source must not be one here.
            only_existing = self.restorer.fits(&stat, e) && shared.insert((stat.st_dev, stat.st_ino));
        }
        if only_existing {
            // Whole already: only its metadata are set again.
            let restored = self.folder().open_file(&e.path).and_then(|file| self.restorer.restore(&file, e));
            restored.map_err(|err| problem(err, &e.path, "restoring the file's metadata"))?;
            self.remove_partial(entry);
            self.found(entry, &found, true)?;
            return Ok(found);
        }
        // Written before a kill, which came before they were noted.
        let noting = self.lock().journal.push_all(unnoted.iter().copied());
        noting.map_err(|err| cannot_note(&err))?;
        unnoted.iter().for_each(|&block| _ = fetched.insert(block));
        let mut copies = Vec::new();
        for &block in &found {
            let info = self.block(block)?;
            if partial.as_ref().is_some_and(|f| read_block(f, &info).is_ok()) {
                continue;
            }
            let data = match &existing {
                _ if is_zeros(&info) => vec![0; info.len as usize].into(),
                Some(file) => read_block(file, &info).map_err(|_| changed(e))?,
                None => return Err(changed(e)),
            };
            self.write_at(entry, e, info.offset, &data)
                .map_err(|err| problem(err, &e.path, "copying what is here already"))?;
            copies.push(block);
        }
        self.note_copies(&copies)?;
        self.found(entry, &found, false)?;
        if found.len() as u64 == range.end - range.start {
            self.place(entry, e).map_err(|err| problem(err, &e.path, "putting the file in place"))?;
        }
        Ok(found)
    }

    fn note_copies(&self, blocks: &[u64]) -> Result<(), Problem> {
        let noting = self.lock().copied.push_all(blocks.iter().copied());
        noting.map_err(|err| cannot_note(&err))
    }

    /// Notes that blocks of an entry are here.
    fn found(&self, entry: u64, blocks: &[u64], in_place: bool) -> Result<(), Problem> {
        for &block in blocks {
            let len = self.block(block)?.len;
            let mut inner = self.lock();
            if inner.have.insert(block) {
                inner.missing -= u64::from(len);
            }
        }
        if in_place {
            self.lock().placed.insert(entry);
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
        let info = self.manifest.block(index).map_err(ReadError::Io)?.ok_or(ReadError::NotHere)?;
        let staged = {
            let inner = self.lock();
            if !inner.have.contains(index) {
                return Err(ReadError::NotHere);
            }
            !inner.placed.contains(info.entry)
        };
        if staged {
            let file = self.open_partial(info.entry, false).map_err(ReadError::Io);
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
        let room = fs::fstatvfs(self.folder().root()).map_or(u64::MAX, |v| v.f_bavail * v.f_frsize);
        needed.checked_sub(room).filter(|&short| short > 0)
    }

    /// Puts everything in place that is whole: files left over, links, then modes and times of
    /// folders from the deepest up, and removes the staging folder. Then everything is on the disk
    /// for good (`syncfs`).
    ///
    /// Gives the problems of single entries; files of which blocks are missing are not touched and
    /// are not among them.
    pub(crate) fn finalize(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        let doing = "putting the entry in place";
        self.each_entry(false, &mut problems, doing, |entry, e, blocks| match &e.kind {
            Kind::File { .. } if self.is_whole_but_not_placed(entry, blocks) => self.place(entry, e),
            Kind::File { .. } | Kind::Folder => Ok(()),
            Kind::Symlink { target } => self.place_link(e, target),
            Kind::HardLink { to } => self.place_hard_link(e, *to),
        });
        self.remove_staging();
        let doing = "restoring the folder's metadata";
        self.each_entry(true, &mut problems, doing, |_, e, _| match e.kind {
            Kind::Folder => self.restorer.restore(self.folder().walk(&e.path)?, e),
            _ => Ok(()),
        });
        self.restorer.problems().into_iter().for_each(|problem| problems.push(problem));
        if let Err(err) = fs::syncfs(self.folder().root()) {
            problems.push(problem(err, b"", "writing everything to the disk"));
        }
        problems.into_vec()
    }

    /// Does something with every entry, from the first to the last or backwards.
    fn each_entry(
        &self,
        backwards: bool,
        problems: &mut Problems,
        doing: &str,
        act: impl Fn(u64, &Entry, Range<u64>) -> rustix::io::Result<()>,
    ) {
        let pages = self.manifest.pages();
        for nth in 0..pages {
            let index = if backwards { pages - 1 - nth } else { nth };
            let page = match self.manifest.page(index) {
                Ok(page) => page,
                Err(err) => {
                    problems.push(unreadable(err));
                    continue;
                }
            };
            let mut one = |(entry, e): (u64, &Entry)| {
                if let Err(err) = act(entry, e, page.blocks_of_entry(entry)) {
                    problems.push(problem(err, &e.path, doing));
                }
            };
            if backwards {
                page.entries().rev().for_each(&mut one)
            } else {
                page.entries().for_each(&mut one)
            }
        }
    }

    /// Removes unfinished files: after the run was stopped for good.
    pub(crate) fn remove_staging(&self) {
        self.lock().files.clear();
        self.folder().forget();
        match self.try_remove_staging() {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => tracing::warn!(%error, "cannot remove the staging folder"),
        }
        self.folder().forget();
        // Other runs may be using theirs.
        let _ = fs::unlinkat(self.folder().root(), STAGING_FOLDER, AtFlags::REMOVEDIR);
    }

    /// Gets there name by name as everything else does: whoever may write to the destination must not
    /// have us remove something elsewhere by laying a symlink.
    fn try_remove_staging(&self) -> rustix::io::Result<()> {
        let staging = &self.staging;
        loop {
            let mut names = Vec::new();
            for item in Dir::read_from(staging)? {
                let item = item?;
                if item.file_name() != c"." && item.file_name() != c".." {
                    names.push(item.file_name().to_owned());
                }
                if names.len() >= NAMES_HELD {
                    break;
                }
            }
            if names.is_empty() {
                break;
            }
            for name in names {
                fs::unlinkat(staging, name, AtFlags::empty())?;
            }
        }
        let (parent, name) = self.folder().parent(&self.staging_path)?;
        fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)
    }

    fn is_whole_but_not_placed(&self, entry: u64, blocks: Range<u64>) -> bool {
        let inner = self.lock();
        !inner.placed.contains(entry) && !inner.given_up.contains(entry) && inner.has_all(blocks)
    }

    /// Sets the metadata of an unfinished file and renames it to its name.
    fn place(&self, entry: u64, e: &Entry) -> rustix::io::Result<()> {
        // One with content that is gone, whoever removed it, is not to be taken for one of zeros.
        let file = self.open_partial(entry, e.kind.blocks() == 0)?;
        fs::ftruncate(&file, e.kind.size())?;
        self.restorer.restore(&file, e)?;
        self.give_name(entry, e)
    }

    /// Renames an unfinished file to its name, in place of what is there.
    fn give_name(&self, entry: u64, e: &Entry) -> rustix::io::Result<()> {
        let partial = partial_name(entry);
        let rename = || {
            let (parent, name) = self.folder().parent(&e.path)?;
            fs::renameat(&self.staging, partial.as_bytes(), &parent, name)
        };
        match rename() {
            Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
                self.folder().clear_folder_at(&e.path)?;
                rename()?;
            }
            done => done?,
        }
        let mut inner = self.lock();
        inner.files.remove(&entry);
        inner.placed.insert(entry);
        Ok(())
    }

    fn place_link(&self, e: &Entry, target: &[u8]) -> rustix::io::Result<()> {
        let (parent, name) = self.folder().parent(&e.path)?;
        let same = fs::readlinkat(&parent, name, Vec::new()).is_ok_and(|there| there.as_bytes() == target);
        if !same {
            self.folder().clear_folder_at(&e.path)?;
            // Made under another name and renamed, so that the old entry is there until the new one is.
            let staging = self.free_link_name()?;
            fs::symlinkat(target, staging, LINK_NAME)?;
            fs::renameat(staging, LINK_NAME, &parent, name)?;
        }
        self.restorer.restore_link(&parent, name, e)
    }

    /// Makes an entry another name of a file, if that is in place. If not, that was told.
    fn place_hard_link(&self, e: &Entry, to: u64) -> rustix::io::Result<()> {
        if !self.lock().placed.contains(to) {
            return Ok(());
        }
        let file = self.manifest.entry(to)?;
        let is_same = |a: &Stat, b: &Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
        let stat = self.folder().stat(&file.path)?;
        if file_type(&stat) != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        // Renaming one name of a file to another one does nothing at all.
        if self.folder().stat(&e.path).is_ok_and(|there| is_same(&there, &stat)) {
            return Ok(());
        }
        self.folder().clear_folder_at(&e.path)?;
        let staging = self.free_link_name()?;
        let (parent, name) = self.folder().parent(&file.path)?;
        fs::linkat(&parent, name, staging, LINK_NAME, AtFlags::empty())?;
        let (parent, name) = self.folder().parent(&e.path)?;
        fs::renameat(staging, LINK_NAME, &parent, name)
    }

    /// The staging folder, with nothing under [`LINK_NAME`].
    fn free_link_name(&self) -> rustix::io::Result<&OwnedFd> {
        match fs::unlinkat(&self.staging, LINK_NAME, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(&self.staging),
            Err(e) => Err(e),
        }
    }

    /// Writes what is data of a block, and leaves its holes.
    fn write_at(&self, entry: u64, e: &Entry, offset: u64, data: &[u8]) -> rustix::io::Result<()> {
        let file = self.open_partial(entry, true)?;
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
    fn open_partial(&self, entry: u64, create: bool) -> rustix::io::Result<Arc<File>> {
        if let Some(file) = self.lock().files.get(&entry) {
            return Ok(file.clone());
        }
        let mut flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if create {
            flags |= OFlags::CREATE;
        }
        let fd =
            fs::openat(self.staging.as_fd(), partial_name(entry).as_bytes(), flags, Mode::RUSR | Mode::WUSR)?;
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
        inner.files.insert(entry, file.clone());
        Ok(file)
    }

    fn remove_partial(&self, entry: u64) {
        self.lock().files.remove(&entry);
        let _ = fs::unlinkat(&self.staging, partial_name(entry).as_bytes(), AtFlags::empty());
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
struct Fresh(Option<Vec<u8>>);

impl Fresh {
    fn made(&mut self, path: &[u8]) {
        if !self.holds(path) {
            self.0 = Some(path.to_vec());
        }
    }

    fn holds(&self, path: &[u8]) -> bool {
        self.0.as_ref().is_some_and(|fresh| {
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

fn partial_name(entry: u64) -> String {
    entry.to_string()
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

/// The journals are the agent's own files: their trouble is no entry's.
fn cannot_note(error: &std::io::Error) -> Problem {
    problem(Errno::from_io_error(error).unwrap_or(Errno::IO), b"", "writing the resume journal")
}

fn changed(e: &Entry) -> Problem {
    problem(Errno::IO, &e.path, "the file changed while it was compared")
}

/// The manifest is in the agent's own folder: if it cannot be read, that is not the fault of an entry.
fn unreadable(error: Errno) -> Problem {
    problem(error, b"", "reading the manifest that was kept")
}
