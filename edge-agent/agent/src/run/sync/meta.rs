//! Metadata of what is synchronized: how it is encoded in statements, read, and set, and when two encodings are the same
//! to this system (SYNC.md §2, §7).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use agent_proto::limits::XATTRS_MAX;
use agent_proto::sync::META_MAX;
use event_schema::{decode_exact, encode};
use rustix::fs::Stat;
use rustix::io::Result;
use serde::{Deserialize, Serialize};
use sync_core::manifest::{Entry, Kind, Mtime, Owner, Xattr};

use crate::disk::{Owners, Restorer, mtime, xattrs};

/// Version of the encoding.
const VERSION: u8 = 1;

/// Set-user-id and set-group-id: only who gives files away can keep them.
const SET_IDS: u32 = 0o6000;

/// What a statement says beside content. Owners are told by agents that run as root alone: to whom a file belongs at
/// anybody else says nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    version: u8,
    /// 0 for symlinks.
    mode: u32,
    /// None for folders, whose time changes with what is in them.
    mtime: Option<Mtime>,
    owner: Option<Owner>,
    xattrs: Vec<Xattr>,
}

impl Meta {
    fn decode(bytes: &[u8]) -> Option<Self> {
        decode_exact::<Self>("metadata", bytes).ok().filter(|meta| meta.version == VERSION)
    }
}

/// Reads, sets and compares metadata as this agent can.
pub(super) struct Metadata {
    root: bool,
    /// The file system has extended attributes.
    attributes: bool,
    restorer: Restorer,
    owners: std::sync::Mutex<Owners>,
}

impl Metadata {
    /// For a folder.
    pub(super) fn new(folder: &OwnedFd) -> Self {
        let attributes = match rustix::fs::flistxattr(folder, &mut [0u8; 0][..]) {
            Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS) => false,
            Ok(_) | Err(_) => true,
        };
        Self {
            root: rustix::process::geteuid().is_root(),
            attributes,
            restorer: Restorer::new(),
            owners: std::sync::Mutex::default(),
        }
    }

    /// The metadata of what `stat` is of; `file` is it, opened, unless it is a symlink.
    pub(super) fn read(&self, stat: &Stat, kind: What, file: Option<impl AsFd>) -> Result<Vec<u8>> {
        let owner = self.root.then(|| {
            let mut owners = self.owners.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            Owner::clone(&owners.of(stat))
        });
        let mut meta = Meta {
            version: VERSION,
            mode: if kind == What::Link { 0 } else { stat.st_mode & 0o7777 },
            mtime: (kind != What::Folder).then(|| mtime(stat)),
            owner,
            xattrs: match &file {
                Some(file) if self.attributes => xattrs(file.as_fd())?,
                _ => Vec::new(),
            },
        };
        let mut bytes = encode(&meta);
        if bytes.len() > META_MAX || meta.xattrs.len() > XATTRS_MAX {
            // More than a statement holds: they stay where they are.
            meta.xattrs.clear();
            bytes = encode(&meta);
        }
        Ok(bytes)
    }

    /// Whether two encodings say the same as far as this agent can tell or set.
    pub(super) fn same(&self, a: &[u8], b: &[u8]) -> bool {
        if a == b {
            return true;
        }
        let (Some(a), Some(b)) = (Meta::decode(a), Meta::decode(b)) else { return false };
        let owners = match (&a.owner, &b.owner) {
            (Some(a), Some(b)) if self.root => self.restorer.owner_of(a) == self.restorer.owner_of(b),
            _ => true,
        };
        let told = a.owner.is_some() && b.owner.is_some();
        let bits = if self.root && told { 0o7777 } else { 0o7777 & !SET_IDS };
        let times = match (a.mtime, b.mtime) {
            (Some(a), Some(b)) => same_time(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        let attributes = |meta: &Meta| -> Vec<Xattr> {
            let mine = |x: &&Xattr| self.root || !x.name.starts_with(b"security.");
            meta.xattrs.iter().filter(mine).cloned().collect()
        };
        owners
            && times
            && a.mode & bits == b.mode & bits
            && (!self.attributes || attributes(&a) == attributes(&b))
    }

    /// Sets the metadata of an opened file or folder. Empty: nobody said which, and it stays as it is.
    pub(super) fn set(&self, file: impl AsFd, path: &[u8], bytes: &[u8]) -> Result<()> {
        let Some(entry) = self.entry(path, bytes, Some(&rustix::fs::fstat(&file)?)) else { return Ok(()) };
        self.restorer.restore(file, &entry)
    }

    /// Sets the metadata of a symlink.
    pub(super) fn set_link(&self, folder: impl AsFd, name: &[u8], path: &[u8], bytes: &[u8]) -> Result<()> {
        let Some(entry) = self.entry(path, bytes, None) else { return Ok(()) };
        self.restorer.restore_link(folder, name, &entry)
    }

    /// What cannot be read changes nothing: content is worth more than its metadata.
    fn entry(&self, path: &[u8], bytes: &[u8], now: Option<&Stat>) -> Option<Entry> {
        let meta = Meta::decode(bytes)?;
        let time = meta.mtime.or_else(|| now.map(mtime)).unwrap_or_default();
        let mut entry = Entry::new(path, meta.mode, time, Kind::Folder);
        entry.owner = meta.owner.map(Arc::new);
        entry.xattrs = meta.xattrs;
        // What no agent tells by itself is somebody's making: as bad as what cannot be read.
        entry.check_metadata(false).ok()?;
        entry.xattrs.retain(|x| self.attributes && (self.root || !x.name.starts_with(b"security.")));
        Some(entry)
    }
}

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    File,
    Folder,
    Link,
}

/// Some file systems keep whole seconds only.
fn same_time(a: Mtime, b: Mtime) -> bool {
    a == b || a.seconds == b.seconds && (a.nanos == 0 || b.nanos == 0)
}

/// Makes a file usable by who owns the agent alone until its metadata is set.
pub(super) fn private(file: &File) -> Result<()> {
    rustix::fs::fchmod(file, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
}

/// Encoded metadata as somebody may state them: mode, time, attributes.
#[cfg(test)]
pub(super) fn of(mode: u32, (seconds, nanos): (i64, u32), xattrs: &[(&str, &str)]) -> Vec<u8> {
    let xattrs = xattrs.iter().map(|(name, value)| Xattr { name: (*name).into(), value: (*value).into() });
    let mtime = Some(Mtime { seconds, nanos });
    encode(&Meta { version: VERSION, mode, mtime, owner: None, xattrs: xattrs.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_read_can_be_set_elsewhere_and_is_the_same_then() {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let root: OwnedFd = File::open(dir.path()).expect("there").into();
        let metadata = Metadata::new(&root);
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, name).expect("written");
            File::open(path).expect("there")
        };
        let (a, b) = (file("a"), file("b"));
        a.set_permissions(std::fs::Permissions::from_mode(0o751)).expect("ours");
        a.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5)).expect("ours");
        let read = |file: &File| {
            let stat = rustix::fs::fstat(file).expect("there");
            metadata.read(&stat, What::File, Some(file)).expect("read")
        };
        assert!(!metadata.same(&read(&a), &read(&b)));
        metadata.set(&b, b"b", &read(&a)).expect("set");
        assert!(metadata.same(&read(&a), &read(&b)));
        let folder = rustix::fs::fstat(&root).expect("there");
        let before = metadata.read(&folder, What::Folder, Some(&root)).expect("read");
        file("c");
        let folder = rustix::fs::fstat(&root).expect("there");
        assert!(metadata.same(&before, &metadata.read(&folder, What::Folder, Some(&root)).expect("read")));
        assert!(!metadata.same(b"damaged", &before));
        metadata.set(&a, b"a", b"damaged").expect("nothing is set");
    }

    #[test]
    fn what_a_file_system_cannot_keep_is_no_difference() {
        let whole = Mtime { seconds: 7, nanos: 0 };
        assert!(same_time(whole, Mtime { seconds: 7, nanos: 9 }));
        assert!(!same_time(whole, Mtime { seconds: 8, nanos: 0 }));
        assert!(!same_time(Mtime { seconds: 7, nanos: 1 }, Mtime { seconds: 7, nanos: 9 }));
    }
}
