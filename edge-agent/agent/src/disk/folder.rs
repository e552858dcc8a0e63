//! A folder as the only thing that can be reached: every path below it is opened name by name, and no
//! symlink on the way is ever followed.
//!
//! That is stricter than `openat2(RESOLVE_BENEATH)` and works on kernels that lack it (before 5.6),
//! as NAS boxes have them.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::{Errno, Result};
use sync_core::manifest::Mtime;

/// Folders on the way to the one walked to last that are kept open: entries come sorted, so the next one is near.
const LEVELS_KEPT: usize = 32;

/// A file that is made and removed to see whose it is.
const PROBE: &str = "probe";

/// An opened folder with the folders on the way that was walked last.
pub(crate) struct Folder {
    root: Arc<OwnedFd>,
    walked: Mutex<Walked>,
}

/// A way that was walked: folders that are open, from the top down, each with the length of its path. Where the way is
/// long, some above the last one are left out.
#[derive(Default)]
struct Walked {
    path: Vec<u8>,
    open: Vec<(usize, Arc<OwnedFd>)>,
}

impl Folder {
    /// Opens a folder that the agent's owner named; symlinks in this path are the owner's business.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let root = fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { root: Arc::new(root), walked: Mutex::default() })
    }

    /// The same folder for another thread, which walks elsewhere.
    pub(crate) fn again(&self) -> Self {
        Self { root: self.root.clone(), walked: Mutex::default() }
    }

    /// The folder at `path` below this one, from then on the only thing that can be reached.
    pub(crate) fn below(&self, path: &[u8]) -> Result<Self> {
        Ok(Self { root: self.walk(path)?, walked: Mutex::default() })
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens the folder at `path` below this one; the empty path is this one.
    pub(crate) fn walk(&self, path: &[u8]) -> Result<Arc<OwnedFd>> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        let mut walked = self.walked.lock().unwrap_or_else(|e| e.into_inner());
        let Walked { path: before, open } = &mut *walked;
        let is_on_way =
            |len: usize| path.get(..len) == before.get(..len) && path.get(len).is_none_or(|&b| b == b'/');
        open.truncate(open.iter().take_while(|(len, _)| is_on_way(*len)).count());
        let (mut len, mut at) = open.last().map_or((0, self.root.clone()), |(len, fd)| (*len, fd.clone()));
        before.truncate(len);
        while len < path.len() {
            let start = if len == 0 { 0 } else { len + 1 };
            let name = path[start..].split(|&b| b == b'/').next().unwrap_or_default();
            if name.is_empty() || name == b"." || name == b".." {
                return Err(Errno::INVAL);
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
            at = Arc::new(fs::openat(&at, name, flags, Mode::empty())?);
            len = start + name.len();
            if open.len() == LEVELS_KEPT {
                open.pop();
            }
            open.push((len, at.clone()));
            before.clear();
            before.extend_from_slice(&path[..len]);
        }
        Ok(at)
    }

    /// Forgets the folders that are open; after some were replaced or removed.
    pub(crate) fn forget(&self) {
        *self.walked.lock().unwrap_or_else(|e| e.into_inner()) = Walked::default();
    }

    /// The folder that holds `path`, and the last name of it.
    pub(crate) fn parent<'p>(&self, path: &'p [u8]) -> Result<(Arc<OwnedFd>, &'p [u8])> {
        match path.iter().rposition(|&b| b == b'/') {
            Some(slash) => Ok((self.walk(&path[..slash])?, &path[slash + 1..])),
            None => Ok((self.root.clone(), path)),
        }
    }

    /// What is at `path`, a symlink itself and not what it leads to.
    pub(crate) fn stat(&self, path: &[u8]) -> Result<Stat> {
        if path.is_empty() {
            return fs::fstat(&self.root);
        }
        let (parent, name) = self.parent(path)?;
        fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Opens the regular file at `path` for reading; anything else is refused, and a pipe does not
    /// block.
    pub(crate) fn open_file(&self, path: &[u8]) -> Result<File> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // That agents read a file is no use of it worth a write. Only its owner may say so.
        let fd = match fs::openat(&parent, name, flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => fs::openat(&parent, name, flags, Mode::empty())?,
            opened => opened?,
        };
        match file_type(&fs::fstat(&fd)?) {
            FileType::RegularFile => Ok(fd.into()),
            _ => Err(Errno::INVAL),
        }
    }

    /// Makes sure a folder that can be written to is at `path`; true if it is new and nothing is in it. A file or
    /// symlink in its place is replaced: the manifest says that a folder belongs there.
    pub(crate) fn make_folder(&self, path: &[u8]) -> Result<bool> {
        match self.make_free_folder(path) {
            Err(Errno::NOTDIR) if !path.is_empty() => {
                let (parent, name) = self.parent(path)?;
                fs::unlinkat(&parent, name, AtFlags::empty())?;
                self.forget();
                fs::mkdirat(&parent, name, Mode::RWXU).map(|()| true)
            }
            made => made,
        }
    }

    /// The same, but `NOTDIR` if something else is in its place.
    pub(crate) fn make_free_folder(&self, path: &[u8]) -> Result<bool> {
        if path.is_empty() {
            return Ok(false);
        }
        let (parent, name) = self.parent(path)?;
        match fs::mkdirat(&parent, name, Mode::RWXU) {
            Err(Errno::EXIST) => {}
            other => return other.map(|()| true),
        }
        let stat = fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if file_type(&stat) != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let mode = Mode::from_raw_mode(stat.st_mode);
        if !mode.contains(Mode::RWXU) {
            // Of what lies there by now: no rights of whatever lay there before, and none that run as others.
            let others = mode & (Mode::RWXG | Mode::RWXO | Mode::SVTX);
            chmod_at(&parent, name, others | Mode::RWXU)?;
        }
        Ok(false)
    }

    /// Makes sure that a folder is at `path` in which nobody else may make or rename anything. One that somebody else
    /// made, or opened to others, becomes ours if we may take it.
    ///
    /// # Errors
    /// Whatever the system says; `PERM` if it cannot be made ours.
    pub(crate) fn make_private(&self, path: &[u8]) -> Result<Arc<OwnedFd>> {
        self.make_folder(path)?;
        let folder = self.walk(path)?;
        let stat = fs::fstat(&folder)?;
        let is_open = |stat: &Stat| stat.st_mode & 0o022 != 0;
        if stat.st_uid == rustix::process::geteuid().as_raw() && !is_open(&stat) {
            return Ok(folder);
        }
        // Some file systems know no owners or modes: what we make there is no more ours than this.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let _ = fs::unlinkat(&folder, PROBE, AtFlags::empty());
        let made = fs::fstat(fs::openat(&folder, PROBE, flags, Mode::RUSR | Mode::WUSR)?)?;
        fs::unlinkat(&folder, PROBE, AtFlags::empty())?;
        if stat.st_uid != made.st_uid {
            let owner = Some(rustix::process::geteuid());
            fs::fchown(&folder, owner, None).map_err(|_| Errno::PERM)?;
        }
        if is_open(&stat) && !is_open(&made) {
            fs::fchmod(&folder, Mode::RWXU).map_err(|_| Errno::PERM)?;
        }
        Ok(folder)
    }

    /// Removes what is at `path` so that a file or symlink can take its place. A folder goes only if
    /// it is empty: what is in it is not ours.
    pub(crate) fn clear_folder_at(&self, path: &[u8]) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        match fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if file_type(&stat) == FileType::Directory => {
                self.forget();
                fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)
            }
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// Sets the mode of what is called `name`, and of nothing that it points to: `fchmodat` follows symlinks, and who may write
/// to the folder can lay one there at any moment.
///
/// # Errors
/// Whatever the system says, `NOTSUP` for a symlink.
pub(crate) fn chmod_at(parent: impl AsFd, name: &[u8], mode: Mode) -> Result<()> {
    let found = fs::openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if file_type(&fs::fstat(&found)?) == FileType::Symlink {
        return Err(Errno::NOTSUP);
    }
    // Such a descriptor knows no `fchmod`; its name below /proc leads to what was opened and nowhere else.
    match fs::chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), mode) {
        // A root without /proc.
        Err(Errno::NOENT) => {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fs::fchmod(fs::openat(&parent, name, flags, Mode::empty())?, mode)
        }
        done => done,
    }
}

/// Kind of file that `stat` tells.
pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Modification time that `stat` tells.
pub(crate) fn mtime(stat: &Stat) -> Mtime {
    Mtime { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 }
}

/// Times for `utimensat`: this modification time, access time left alone.
pub(crate) fn timestamps(mtime: Mtime) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() },
    }
}
