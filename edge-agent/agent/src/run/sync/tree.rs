//! The job's folder: paths below it walked name by name without following symlinks, stamps, and whether the folder is
//! (still) the one that is meant.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_proto::limits::BLOCK_LEN;
use event_schema::RunId;
use folder_index::Time;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::{Errno, Result};
use sync_core::manifest::STAGING_FOLDER;
use sync_core::sync::Stamp;

use crate::disk::{Folder, file_type};

/// Groups of paths that are changed and looked at one after the other.
const STRIPES: usize = 64;

/// Why a folder cannot be used now.
#[derive(Debug, thiserror::Error)]
pub(super) enum TreeError {
    #[error("the folder: {0}")]
    System(#[from] Errno),
    #[error("the folder is not the one of this job: its mark is missing; is a disk not mounted?")]
    NotMarked,
}

/// See the module.
pub(super) struct Tree {
    path: PathBuf,
    root: Arc<OwnedFd>,
    stage: Arc<OwnedFd>,
    identity: (u64, u64),
    /// How long after a change another one may leave the same times.
    granularity: Duration,
    stripes: [Mutex<()>; STRIPES],
}

/// The folder for stages of a run, whose being there marks the job's folder.
pub(super) fn stage_path(run: RunId) -> Vec<u8> {
    [STAGING_FOLDER, b"/sync-", run.to_string().as_bytes()].concat()
}

impl Tree {
    /// Opens the folder of a job. `new`: nothing is known of it yet, so it is made if need be, and marked.
    ///
    /// # Errors
    /// If it cannot be opened, or is known and another one stands in its place.
    pub(super) fn open(path: &Path, run: RunId, new: bool) -> std::result::Result<Self, TreeError> {
        if new {
            std::fs::create_dir_all(path).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        }
        let folder = Folder::open(path)?;
        let mark = stage_path(run);
        if new {
            folder.make_folder(STAGING_FOLDER)?;
            folder.make_folder(&mark)?;
        }
        let stage = match folder.walk(&mark) {
            Ok(stage) => stage,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(TreeError::NotMarked),
            Err(error) => return Err(error.into()),
        };
        let root = folder.walk(b"")?;
        let stat = fs::fstat(&root)?;
        Ok(Self {
            path: path.to_owned(),
            identity: (stat.st_dev, stat.st_ino),
            granularity: folder_index::scan::time_granularity(&root),
            root,
            stage,
            stripes: std::array::from_fn(|_| Mutex::default()),
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder itself.
    pub(super) fn root(&self) -> &Arc<OwnedFd> {
        &self.root
    }

    /// The folder for stages.
    pub(super) fn stage(&self) -> &Arc<OwnedFd> {
        &self.stage
    }

    /// How long after a change another one may leave the same times.
    pub(super) fn granularity(&self) -> Duration {
        self.granularity
    }

    /// Whether the folder that was opened is at its path still: a disk that went takes everything with it, which is no
    /// deletion.
    pub(super) fn is_there(&self) -> bool {
        fs::stat(&self.path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.identity)
            && fs::fstat(&self.stage).is_ok_and(|stat| stat.st_nlink > 0)
    }

    /// Keeps others from changing, or telling what is at, these paths meanwhile.
    pub(super) fn hold<'t>(&'t self, paths: impl IntoIterator<Item = &'t [u8]>) -> Vec<MutexGuard<'t, ()>> {
        let stripe = |path: &[u8]| {
            let hash = path.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
            (hash >> 32) as usize % STRIPES
        };
        let mut stripes: Vec<usize> = paths.into_iter().map(stripe).collect();
        // Everybody in the same order.
        stripes.sort_unstable();
        stripes.dedup();
        stripes.into_iter().map(|i| self.stripes[i].lock().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    /// Opens the folder at a path; the empty path is the folder itself.
    pub(super) fn walk(&self, path: &[u8]) -> Result<Arc<OwnedFd>> {
        let mut at = self.root.clone();
        for name in path.split(|&b| b == b'/').filter(|_| !path.is_empty()) {
            if name.is_empty() || name == b"." || name == b".." {
                return Err(Errno::INVAL);
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
            at = Arc::new(fs::openat(&at, name, flags, Mode::empty())?);
        }
        Ok(at)
    }

    /// The folder that holds a path, and the last name of it. Nothing is remembered: what was moved away meanwhile is
    /// not found where it was.
    pub(super) fn parent<'p>(&self, path: &'p [u8]) -> Result<(Arc<OwnedFd>, &'p [u8])> {
        match path.iter().rposition(|&b| b == b'/') {
            Some(slash) => Ok((self.walk(&path[..slash])?, &path[slash + 1..])),
            None => Ok((self.root.clone(), path)),
        }
    }

    /// What is at a path; none if nothing is.
    pub(super) fn stat(&self, path: &[u8]) -> Result<Option<Stat>> {
        match self.parent(path) {
            Ok((folder, name)) => stat_at(&folder, name),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the regular file at a path for reading.
    pub(super) fn open_file(&self, path: &[u8]) -> Result<File> {
        let (folder, name) = self.parent(path)?;
        open_file_at(&folder, name)
    }

    /// How something looks now.
    pub(super) fn stamp(&self, stat: &Stat) -> Stamp {
        let nanos = |seconds: i64, nanos: i64| {
            i64::try_from(i128::from(seconds) * 1_000_000_000 + i128::from(nanos)).unwrap_or(i64::MAX)
        };
        let now = Time::now();
        let far = |seconds: i64, nanos: i64| {
            let time = Time { seconds, nanos: nanos as u32 };
            now.nanos_since(time).unsigned_abs() >= self.granularity.as_nanos()
        };
        let (mtime, ctime) =
            ((stat.st_mtime, stat.st_mtime_nsec as i64), (stat.st_ctime, stat.st_ctime_nsec as i64));
        Stamp {
            file: stat.st_ino,
            size: if is_folder(stat) { 0 } else { stat.st_size as u64 },
            mtime_ns: nanos(mtime.0, mtime.1),
            ctime_ns: nanos(ctime.0, ctime.1),
            // What is in a folder is looked at apart.
            settled: is_folder(stat) || far(mtime.0, mtime.1) && far(ctime.0, ctime.1),
        }
    }
}

/// What is at a name, a symlink itself and not what it leads to; none if nothing is.
pub(super) fn stat_at(folder: impl AsFd, name: &[u8]) -> Result<Option<Stat>> {
    match fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a regular file for reading; a pipe does not block.
pub(super) fn open_file_at(folder: impl AsFd, name: &[u8]) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::openat(folder, name, flags, Mode::empty())?;
    match file_type(&fs::fstat(&file)?) {
        FileType::RegularFile => Ok(file.into()),
        _ => Err(Errno::INVAL),
    }
}

/// Whether it is a folder.
pub(super) fn is_folder(stat: &Stat) -> bool {
    file_type(stat) == FileType::Directory
}

/// Renames without replacing anything.
pub(super) fn rename_new(from: impl AsFd, name: &[u8], to: impl AsFd, new: &[u8]) -> Result<()> {
    match fs::renameat_with(&from, name, &to, new, RenameFlags::NOREPLACE) {
        // Not every file system knows how.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match stat_at(&to, new)? {
            Some(_) => Err(Errno::EXIST),
            None => fs::renameat(from, name, to, new),
        },
        renamed => renamed,
    }
}

/// Whether two stamps are of the same state of the same file, but for the time of its last change, which renaming sets.
pub(super) fn is_renamed(a: &Stamp, b: &Stamp) -> bool {
    (a.file, a.size, a.mtime_ns) == (b.file, b.size, b.mtime_ns)
}

/// Blocks of a file of this size, and the length of one of them; 0 if there is no such one.
pub(super) fn block_len(size: u64, block: u32) -> u32 {
    let start = u64::from(block) * u64::from(BLOCK_LEN);
    size.saturating_sub(start).min(u64::from(BLOCK_LEN)) as u32
}

/// Number of blocks of a file of this size.
pub(super) fn blocks_of(size: u64) -> u32 {
    u32::try_from(size.div_ceil(u64::from(BLOCK_LEN))).unwrap_or(u32::MAX)
}
