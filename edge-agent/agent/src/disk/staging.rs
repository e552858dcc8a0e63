//! A destination's disk: blocks are kept in `.flotilla/<run>/<entry number>` inside the destination
//! folder until a file is whole, then the file is renamed into place.
//!
//! A block counts only after it matched its hash. After a restart every block that the journal or the
//! disk claims is read and checked again, so nothing is trusted that power loss could have damaged.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use agent_proto::limits::BLOCK_LEN;
use event_schema::{Problem, ProblemClass, RunId};
use rustix::fs::{self, AtFlags, Dir, DirEntry, FileType, Mode, OFlags};
use rustix::io::Errno;
use sync_core::manifest::{Entry, Kind, Manifest, STAGING_FOLDER};
use sync_core::merkle::block_hash;

use super::folder::{Folder, file_type, timestamps};
use super::journal::Journal;
use super::problem;
use super::reader::{BlockReader, ReadError, read_block};

/// Unfinished files kept open between writes.
const FILES_OPEN: usize = 128;

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
    /// Numbers of the blocks that are here and verified.
    pub(crate) verified: Vec<u64>,
    /// How many of them came from the disk as it was before the run, not from peers.
    pub(crate) reused: u64,
    /// What is wrong with single entries, which were given up.
    pub(crate) problems: Vec<Problem>,
    /// Blocks of those entries: not to be fetched.
    pub(crate) unwanted: Vec<u64>,
}

/// What a destination has of one run.
pub(crate) struct Staging {
    manifest: Arc<Manifest>,
    /// Reads finished files for others.
    placed: BlockReader,
    staging_path: Vec<u8>,
    inner: Mutex<Inner>,
}

struct Inner {
    journal: Journal,
    /// Blocks still missing, per entry that is not in place yet.
    missing: HashMap<usize, Missing>,
    files: HashMap<usize, Arc<File>>,
    given_up: HashSet<usize>,
}

struct Missing {
    blocks: u64,
    have: Vec<bool>,
}

impl Staging {
    /// Opens the destination `root` (made if it is not there) for `manifest`, finds what is there
    /// already, and makes all folders. `state` is the agent's folder for this run.
    ///
    /// # Errors
    /// The problem that keeps the run from starting here.
    pub(crate) fn open(
        root: &Path,
        state: &Path,
        run: RunId,
        manifest: Arc<Manifest>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Opened, Problem> {
        let shown = root.as_os_str().as_encoded_bytes();
        let io =
            |e: &std::io::Error, doing| problem(Errno::from_io_error(e).unwrap_or(Errno::IO), shown, doing);
        std::fs::create_dir_all(root).map_err(|e| io(&e, "making the destination folder"))?;
        std::fs::create_dir_all(state).map_err(|e| io(&e, "making the run's state folder"))?;
        let folder = Folder::open(root).map_err(|e| problem(e, shown, "opening the destination folder"))?;
        let staging_path = [STAGING_FOLDER, b"/", run.to_string().as_bytes()].concat();
        for path in [STAGING_FOLDER, &staging_path] {
            folder.make_folder(path).map_err(|e| problem(e, path, "making the staging folder"))?;
        }
        let (journal, fetched) =
            Journal::open(&state.join("blocks.journal")).map_err(|e| io(&e, "opening the resume journal"))?;
        let staging = Self {
            placed: BlockReader::new(folder, manifest.clone()),
            staging_path,
            inner: Mutex::new(Inner {
                journal,
                missing: HashMap::new(),
                files: HashMap::new(),
                given_up: HashSet::new(),
            }),
            manifest,
        };
        let mut claimed = vec![false; usize::try_from(staging.manifest.blocks()).unwrap_or(0)];
        for block in fetched {
            if let Some(claimed) = usize::try_from(block).ok().and_then(|b| claimed.get_mut(b)) {
                *claimed = true;
            }
        }
        let (mut verified, mut reused, mut problems, mut unwanted) = (Vec::new(), 0, Vec::new(), Vec::new());
        for entry in 0..staging.manifest.entries().len() {
            if !go_on() {
                break;
            }
            match staging.recover(entry) {
                Ok(found) => {
                    reused += found.iter().filter(|&&block| !claimed[block as usize]).count() as u64;
                    verified.extend(found);
                }
                Err(full) if full.class == ProblemClass::DiskFull => return Err(full),
                Err(problem) => {
                    problems.push(problem);
                    unwanted.extend(staging.manifest.blocks_of_entry(entry));
                    staging.give_up(entry);
                }
            }
        }
        Ok(Opened { staging, verified, reused, problems, unwanted })
    }

    /// Looks for an entry's blocks on disk: the finished file, else the unfinished one, else an
    /// older file of the same name, whose matching blocks are copied.
    fn recover(&self, entry: usize) -> Result<Vec<u64>, Problem> {
        let e = &self.manifest.entries()[entry];
        let Kind::File { size, blocks } = &e.kind else {
            if e.kind == Kind::Folder {
                self.folder()
                    .make_folder(&e.path)
                    .map_err(|err| problem(err, &e.path, "making the folder"))?;
            }
            return Ok(Vec::new());
        };
        let range = self.manifest.blocks_of_entry(entry);
        let mut missing = Missing { blocks: blocks.len() as u64, have: vec![false; blocks.len()] };
        let existing = self.folder().open_file(&e.path).ok();
        let existing_len = existing.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
        let partial = match self.open_partial(entry, false) {
            Ok(file) => Some(file),
            Err(Errno::NOENT) => None,
            // Nothing that we made.
            Err(_) => {
                self.remove_partial(entry);
                None
            }
        };
        let mut found = Vec::new();
        let mut only_existing = existing.is_some() && existing_len == *size;
        for (nth, block) in range.clone().enumerate() {
            let info = self.manifest.block(block).expect("a block of the entry");
            let staged = partial.as_ref().is_some_and(|f| read_block(f, &info).is_ok());
            let here = match &existing {
                Some(file) if info.offset < existing_len => read_block(file, &info).ok(),
                _ => None,
            };
            only_existing &= here.is_some();
            if staged || here.is_some() {
                missing.have[nth] = true;
                missing.blocks -= 1;
                found.push(block);
            }
        }
        if only_existing {
            // Whole already: only mode and time are set again.
            self.restore_file(e).map_err(|err| problem(err, &e.path, "restoring mode and time"))?;
            self.remove_partial(entry);
            return Ok(found);
        }
        for &block in &found {
            let info = self.manifest.block(block).expect("a block of the entry");
            let staged = partial.as_ref().is_some_and(|f| read_block(f, &info).is_ok());
            if !staged && let Some(file) = &existing {
                let data = read_block(file, &info).map_err(|_| changed(e))?;
                self.write_at(entry, info.offset, &data)
                    .map_err(|err| problem(err, &e.path, "copying what is here already"))?;
            }
        }
        let whole = missing.blocks == 0;
        self.lock().missing.insert(entry, missing);
        if whole {
            self.place(entry).map_err(|err| problem(err, &e.path, "putting the file in place"))?;
        }
        Ok(found)
    }

    /// Keeps a content block that arrived, if it matches its hash. Puts its file in place when that
    /// was the last one. A block that is here already is ignored.
    ///
    /// # Errors
    /// Why the block does not count.
    pub(crate) fn write(&self, index: u64, data: Arc<[u8]>) -> Result<(), StoreError> {
        let info = self.manifest.block(index).ok_or(StoreError::Corrupt)?;
        if data.len() != info.len as usize || block_hash(&data) != info.hash {
            return Err(StoreError::Corrupt);
        }
        let nth = (info.offset / u64::from(BLOCK_LEN)) as usize;
        {
            let inner = self.lock();
            if inner.given_up.contains(&info.entry) {
                return Err(StoreError::GivenUp);
            }
            if inner.missing.get(&info.entry).is_none_or(|m| m.have[nth]) {
                return Ok(());
            }
        }
        let path = &self.manifest.entries()[info.entry].path;
        self.write_at(info.entry, info.offset, &data)
            .map_err(|e| self.refused(info.entry, problem(e, path, "writing a block")))?;
        let mut inner = self.lock();
        if let Err(e) = inner.journal.push(index) {
            // The journal is the agent's own file: its trouble is not this entry's.
            let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
            return Err(StoreError::Full(problem(errno, path, "writing the resume journal")));
        }
        let missing =
            inner.missing.get_mut(&info.entry).expect("looked up above, never removed while missing");
        missing.have[nth] = true;
        missing.blocks -= 1;
        let whole = missing.blocks == 0;
        drop(inner);
        self.placed.keep(index, data);
        // A file that is whole but cannot be put in place now is tried again by `finalize`.
        if whole && let Err(e) = self.place(info.entry) {
            tracing::warn!(path = %path.escape_ascii(), error = %e, "cannot put the file in place yet");
        }
        Ok(())
    }

    fn refused(&self, entry: usize, problem: Problem) -> StoreError {
        if problem.class == ProblemClass::DiskFull {
            return StoreError::Full(problem);
        }
        self.give_up(entry);
        StoreError::Entry(problem)
    }

    fn give_up(&self, entry: usize) {
        let mut inner = self.lock();
        inner.missing.remove(&entry);
        inner.files.remove(&entry);
        inner.given_up.insert(entry);
    }

    /// A verified content block, for others.
    ///
    /// # Errors
    /// If it is not here, was changed on disk, or cannot be read.
    pub(crate) fn read(&self, index: u64) -> Result<Arc<[u8]>, ReadError> {
        let info = self.manifest.block(index).ok_or(ReadError::NotHere)?;
        let nth = (info.offset / u64::from(BLOCK_LEN)) as usize;
        let staged = match self.lock().missing.get(&info.entry) {
            Some(missing) if !missing.have[nth] => return Err(ReadError::NotHere),
            Some(_) => true,
            None => false,
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
        let inner = self.lock();
        let mut needed = 0u64;
        for (&entry, missing) in &inner.missing {
            needed += missing.blocks * u64::from(BLOCK_LEN).min(entry_size(&self.manifest.entries()[entry]));
        }
        drop(inner);
        let room = fs::fstatvfs(self.folder().root()).map_or(u64::MAX, |v| v.f_bavail * v.f_frsize);
        needed.checked_sub(room).filter(|&short| short > 0)
    }

    /// Puts everything in place that is whole: files left over, symlinks, then modes and times of
    /// folders from the deepest up, and removes the staging folder. Then everything is on the disk
    /// for good (`syncfs`).
    ///
    /// Gives the problems of single entries; files of which blocks are missing are not touched and
    /// are not among them.
    pub(crate) fn finalize(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let entries = self.manifest.entries();
        for (i, e) in entries.iter().enumerate() {
            let done = match &e.kind {
                Kind::File { .. } if self.is_whole_but_not_placed(i) => self.place(i),
                Kind::File { .. } => Ok(()),
                Kind::Symlink { target } => self.place_link(e, target),
                Kind::Folder => Ok(()),
            };
            if let Err(err) = done {
                problems.push(problem(err, &e.path, "putting the entry in place"));
            }
        }
        self.remove_staging();
        for e in entries.iter().rev().filter(|e| e.kind == Kind::Folder) {
            if let Err(err) = self.restore_folder(e) {
                problems.push(problem(err, &e.path, "restoring the folder's mode and time"));
            }
        }
        if let Err(err) = fs::syncfs(self.folder().root()) {
            problems.push(problem(err, b"", "writing everything to the disk"));
        }
        problems
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
        let staging = self.staging_folder()?;
        let names: Vec<_> = Dir::read_from(&staging)?.collect::<rustix::io::Result<_>>()?;
        for name in names.iter().map(DirEntry::file_name).filter(|name| *name != c"." && *name != c"..") {
            fs::unlinkat(&staging, name, AtFlags::empty())?;
        }
        let (parent, name) = self.folder().parent(&self.staging_path)?;
        fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)
    }

    fn is_whole_but_not_placed(&self, entry: usize) -> bool {
        self.lock().missing.get(&entry).is_some_and(|missing| missing.blocks == 0)
    }

    /// Sets mode and time of an unfinished file and renames it to its name.
    fn place(&self, entry: usize) -> rustix::io::Result<()> {
        let e = &self.manifest.entries()[entry];
        let file = self.open_partial(entry, true)?;
        fs::ftruncate(&file, entry_size(e))?;
        fs::fchmod(&file, Mode::from_raw_mode(e.mode))?;
        fs::futimens(&file, &timestamps(e.mtime))?;
        self.folder().clear_folder_at(&e.path)?;
        let (parent, name) = self.folder().parent(&e.path)?;
        let (staging, partial) = (self.staging_folder()?, partial_name(entry));
        fs::renameat(&staging, partial.as_bytes(), &parent, name)?;
        let mut inner = self.lock();
        inner.files.remove(&entry);
        inner.missing.remove(&entry);
        Ok(())
    }

    fn place_link(&self, e: &Entry, target: &[u8]) -> rustix::io::Result<()> {
        let (parent, name) = self.folder().parent(&e.path)?;
        let same = fs::readlinkat(&parent, name, Vec::new()).is_ok_and(|there| there.as_bytes() == target);
        if !same {
            self.folder().clear_folder_at(&e.path)?;
            // Made under another name and renamed, so that the old entry is there until the new one is.
            let staging = self.staging_folder()?;
            match fs::unlinkat(&staging, b"link".as_slice(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
            fs::symlinkat(target, &staging, b"link".as_slice())?;
            fs::renameat(&staging, b"link".as_slice(), &parent, name)?;
        }
        fs::utimensat(&parent, name, &timestamps(e.mtime), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Mode and time of a file that was whole before.
    fn restore_file(&self, e: &Entry) -> rustix::io::Result<()> {
        let file = self.folder().open_file(&e.path)?;
        let stat = fs::fstat(&file)?;
        if stat.st_mode & 0o7777 != e.mode {
            fs::fchmod(&file, Mode::from_raw_mode(e.mode))?;
        }
        fs::futimens(&file, &timestamps(e.mtime))
    }

    fn restore_folder(&self, e: &Entry) -> rustix::io::Result<()> {
        let folder = self.folder().walk(&e.path)?;
        fs::fchmod(&folder, Mode::from_raw_mode(e.mode))?;
        fs::futimens(&folder, &timestamps(e.mtime))
    }

    fn write_at(&self, entry: usize, offset: u64, data: &[u8]) -> rustix::io::Result<()> {
        let file = self.open_partial(entry, true)?;
        file.write_all_at(data, offset).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
    }

    /// The unfinished file of an entry.
    fn open_partial(&self, entry: usize, create: bool) -> rustix::io::Result<Arc<File>> {
        if let Some(file) = self.lock().files.get(&entry) {
            return Ok(file.clone());
        }
        let mut flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if create {
            flags |= OFlags::CREATE;
        }
        let staging = self.staging_folder()?;
        let fd = fs::openat(staging.as_fd(), partial_name(entry).as_bytes(), flags, Mode::RUSR | Mode::WUSR)?;
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

    fn remove_partial(&self, entry: usize) {
        self.lock().files.remove(&entry);
        if let Ok(staging) = self.staging_folder() {
            let _ = fs::unlinkat(&staging, partial_name(entry).as_bytes(), AtFlags::empty());
        }
    }

    fn staging_folder(&self) -> rustix::io::Result<Arc<std::os::fd::OwnedFd>> {
        self.folder().walk(&self.staging_path)
    }

    fn folder(&self) -> &Folder {
        self.placed.folder()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn partial_name(entry: usize) -> String {
    entry.to_string()
}

fn entry_size(e: &Entry) -> u64 {
    match e.kind {
        Kind::File { size, .. } => size,
        _ => 0,
    }
}

fn changed(e: &Entry) -> Problem {
    problem(Errno::IO, &e.path, "the file changed while it was compared")
}
