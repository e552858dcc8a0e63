//! The system calls of a scan: names, stamps and attributes, never through a symlink.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use event_schema::{Problem, ProblemClass};
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, Result};
use sha2::{Digest, Sha256};
use sync_core::manifest::xattr_may_travel;

use crate::limits::FOLDER_NAMES_MAX;
use crate::tables::Identity;

/// Longest list of names of attributes, and longest value, that the kernel gives out.
const ATTRIBUTES_MAX: usize = 64 << 10;

/// Opens the folder that the agent's owner named; symlinks in this path are the owner's business.
pub(super) fn open_root(path: &Path) -> Result<OwnedFd> {
    fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a folder in a folder.
pub(super) fn open_folder(above: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    fs::openat(above, name, flags, Mode::empty())
}

/// Opens the folder at a path, name by name.
pub(super) fn walk(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd> {
    let mut at = root.try_clone().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
        at = open_folder(&at, name)?;
    }
    Ok(at)
}

/// What is at a name, a symlink itself and not what it leads to.
pub(super) fn stat(folder: impl AsFd, name: &[u8]) -> Result<Stat> {
    fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Opens a regular file for reading; a pipe does not block. Reading it leaves no trace in its times if
/// it is ours.
pub(super) fn open_file(folder: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match fs::openat(&folder, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => fs::openat(folder, name, flags, Mode::empty()),
        other => other,
    }
}

pub(super) fn identity(root: &OwnedFd) -> Result<Identity> {
    let stat = fs::fstat(root)?;
    let file_system = fs::fstatvfs(root).map_or(0, |system| system.f_fsid);
    Ok(Identity { ino: stat.st_ino, dev: stat.st_dev, file_system })
}

/// How long after a change another one may leave the same time behind (§3): some clock ticks on file
/// systems of this machine, else two seconds, which is what FAT and servers far away can tell apart.
pub fn time_granularity(root: &OwnedFd) -> Duration {
    // Magic numbers of statfs(2): ext2/3/4, XFS, Btrfs, tmpfs, F2FS, overlayfs, ZFS, bcachefs.
    const PRECISE: [u64; 8] =
        [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0xF2F5_2010, 0x794C_7630, 0x2FC1_2FC1, 0xCA45_1A4E];
    match fs::fstatfs(root) {
        Ok(system) if PRECISE.contains(&(system.f_type as u64 & 0xFFFF_FFFF)) => PRECISE_TIMES,
        _ => COARSE_TIMES,
    }
}

pub(super) const PRECISE_TIMES: Duration = Duration::from_millis(50);
pub(super) const COARSE_TIMES: Duration = Duration::from_millis(2100);

/// Names of a folder, sorted, in one piece of memory.
#[derive(Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    /// Where each begins, and whether it is a folder to go into.
    starts: Vec<(u32, u16, bool)>,
}

impl Names {
    /// Reads the names of a folder, at most [`FOLDER_NAMES_MAX`]; beyond, `E2BIG`.
    pub(super) fn read(folder: &OwnedFd) -> Result<Self> {
        let mut names = Self::default();
        let mut dir = Dir::read_from(folder)?;
        while let Some(item) = dir.read() {
            let item = item?;
            let name: &CStr = item.file_name();
            let name = name.to_bytes();
            if name != b"." && name != b".." {
                names.push(name);
            }
            if names.memory() > FOLDER_NAMES_MAX {
                return Err(Errno::TOOBIG);
            }
        }
        names.sort();
        Ok(names)
    }

    pub(super) fn of(list: Vec<Vec<u8>>) -> Self {
        let mut names = Self::default();
        for name in list {
            names.push(&name);
        }
        names.sort();
        names
    }

    fn push(&mut self, name: &[u8]) {
        self.starts.push((self.bytes.len() as u32, name.len() as u16, false));
        self.bytes.extend_from_slice(name);
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        let name =
            |&(start, len, _): &(u32, u16, bool)| &bytes[start as usize..start as usize + len as usize];
        self.starts.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        self.starts.dedup_by(|a, b| name(a) == name(b));
    }

    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    pub(super) fn get(&self, i: usize) -> Option<&[u8]> {
        self.starts.get(i).map(|&(start, len, _)| &self.bytes[start as usize..start as usize + len as usize])
    }

    pub(super) fn enter(&mut self, i: usize) {
        self.starts[i].2 = true;
    }

    /// The next one at or after `from` that is to be gone into.
    pub(super) fn next_entered(&self, from: usize) -> Option<usize> {
        (from..self.starts.len()).find(|&i| self.starts[i].2)
    }

    /// Bytes of memory.
    pub(super) fn memory(&self) -> usize {
        self.bytes.len() + self.starts.len() * 8
    }
}

/// First half of a hash over the extended attributes and ACLs that travel; none if there are none, or
/// the file system knows none.
pub(super) fn attributes(file: &OwnedFd) -> Result<Option<[u8; 16]>> {
    let mut list = [0; 1024];
    let names = match fs::flistxattr(file, &mut list[..]) {
        Ok(0) | Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(None),
        Ok(len) => list[..len].to_vec(),
        Err(Errno::RANGE) => {
            let mut long = vec![0; ATTRIBUTES_MAX];
            let len = fs::flistxattr(file, &mut long[..])?;
            long.truncate(len);
            long
        }
        Err(e) => return Err(e),
    };
    let mut names: Vec<&[u8]> = names.split(|&b| b == 0).filter(|name| xattr_may_travel(name)).collect();
    if names.is_empty() {
        return Ok(None);
    }
    names.sort_unstable();
    let mut digest = Sha256::new();
    let mut value = vec![0; ATTRIBUTES_MAX];
    for name in names {
        let len = match fs::fgetxattr(file, name, &mut value[..]) {
            Ok(len) => len,
            // It went away meanwhile, which shows in ctime.
            Err(Errno::NODATA) => continue,
            Err(e) => return Err(e),
        };
        digest.update((name.len() as u32).to_le_bytes());
        digest.update(name);
        digest.update((len as u32).to_le_bytes());
        digest.update(&value[..len]);
    }
    let mut half = [0; 16];
    half.copy_from_slice(&digest.finalize()[..16]);
    Ok(Some(half))
}

pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The problem that a system error on an entry amounts to.
pub(super) fn problem(errno: Errno, path: Vec<u8>, doing: &str) -> Problem {
    let (class, hint) = match errno {
        Errno::ACCESS | Errno::PERM => {
            (ProblemClass::PermissionDenied, "; allow the agent's user to read it")
        }
        Errno::NOENT => (ProblemClass::NotFound, ""),
        Errno::TOOBIG => (ProblemClass::LimitExceeded, "; too many entries in one folder"),
        _ => (ProblemClass::Io, ""),
    };
    Problem { class, path, detail: format!("{doing}: {errno}{hint}") }
}
