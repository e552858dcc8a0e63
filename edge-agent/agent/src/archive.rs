//! The archive of a folder: `.flotilla/archive/<group>/…` in the folder itself, so that putting a file there is a rename.
//!
//! A group is what was put there for one reason, a run say; beside it `<group>.until` tells when it may go, in
//! milliseconds since 1970 by the fleet's clock. Which folders have archives is kept in `archives/` of the agent's data
//! folder, so that [`sweep`] finds them without looking everywhere. Everything is reached from the opened folder, name by
//! name: a symlink in place of `.flotilla` leads nowhere.
//!
//! Left out: what goes into an archive and why (`disposal.rs`). That no scan takes it for content is `disk/index.rs`'s.

use std::fs::{self as std_fs, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use event_schema::Timestamp;
use rustix::fs::{self, AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, Result};
use sha2::{Digest, Sha256};
use sync_core::manifest::STAGING_FOLDER;

use crate::disk::{Folder, file_type};
use crate::restrict::to_path;

/// The archives' folder below the staging folder.
const NAME: &[u8] = b"archive";

/// What stands behind a group's name in that of the file with its time.
const UNTIL: &str = ".until";

/// Bytes of that file: a number and a line break.
const UNTIL_LEN_MAX: u64 = 32;

/// Where the agent's data folder keeps which folders have archives.
const REGISTRY: &str = "archives";

/// The archive of one folder.
pub(crate) struct Archive<'f> {
    folder: &'f Folder,
}

impl<'f> Archive<'f> {
    pub(crate) fn of(folder: &'f Folder) -> Self {
        Self { folder }
    }

    /// Makes a group and tells until when it is kept. One that is there keeps its time.
    ///
    /// # Errors
    /// Whatever the system says.
    pub(crate) fn begin(&self, group: &str, until: Timestamp) -> Result<()> {
        let base = base();
        self.folder.make_folder(STAGING_FOLDER)?;
        self.folder.make_folder(&base)?;
        let archive = self.folder.walk(&base)?;
        let name = format!("{group}{UNTIL}");
        if fs::statat(&archive, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_err() {
            let beside = format!("{group}.tmp");
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(fs::openat(&archive, beside.as_str(), flags, Mode::RUSR | Mode::WUSR)?);
            let written = writeln!(file, "{}", until.0).and_then(|()| file.sync_all());
            written.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
            fs::renameat(&archive, beside.as_str(), &archive, name.as_str())?;
            fs::fsync(&archive)?;
        }
        self.folder.make_folder(&self.path(group, b"")).map(|_| ())
    }

    /// Moves the entry at `path` into a group, below the same path.
    ///
    /// # Errors
    /// Whatever the system says; `XDEV` if it lies on another file system than the folder.
    pub(crate) fn take(&self, group: &str, path: &[u8]) -> Result<()> {
        let target = self.path(group, path);
        let group_len = self.path(group, b"").len();
        for (at, byte) in target.iter().enumerate().skip(group_len + 1) {
            if *byte == b'/' {
                self.folder.make_folder(&target[..at])?;
            }
        }
        let (from, name) = self.folder.parent(path)?;
        let (to, new) = self.folder.parent(&target)?;
        fs::renameat(&from, name, &to, new)
    }

    /// Where an entry of a group lies in the folder.
    pub(crate) fn path(&self, group: &str, path: &[u8]) -> Vec<u8> {
        let mut at = base();
        at.push(b'/');
        at.extend_from_slice(group.as_bytes());
        if !path.is_empty() {
            at.push(b'/');
            at.extend_from_slice(path);
        }
        at
    }

    /// Puts an entry of a group back, if nothing has taken its place.
    ///
    /// # Errors
    /// `EXIST` if something has; whatever else the system says.
    pub(crate) fn give_back(&self, group: &str, path: &[u8]) -> Result<()> {
        let target = self.path(group, path);
        let (from, name) = self.folder.parent(&target)?;
        let (to, old) = self.folder.parent(path)?;
        rename_new(&from, name, &to, old)
    }

    /// Removes what is left of a group from which everything was taken again; what is in it still stays, and its time.
    ///
    /// # Errors
    /// Whatever the system says.
    pub(crate) fn end(&self, group: &str) -> Result<()> {
        self.folder.forget();
        let archive = self.folder.walk(&base())?;
        if remove_empty(&archive, group.as_bytes())? {
            fs::unlinkat(&archive, format!("{group}{UNTIL}").as_str(), AtFlags::empty())?;
        }
        self.folder.forget();
        Ok(())
    }

    /// Deletes the groups whose time is over at `now`; says how many, and how many there are still.
    ///
    /// # Errors
    /// If the archive cannot be read, or a group not be deleted.
    pub(crate) fn expire(&self, now: Timestamp) -> Result<Expired> {
        let mut expired = Expired::default();
        let archive = match self.folder.walk(&base()) {
            Err(Errno::NOENT) => return Ok(expired),
            walked => walked?,
        };
        for name in names(&archive)? {
            let Some(group) = name.strip_suffix(UNTIL.as_bytes()) else { continue };
            // One that cannot be read is kept: whoever looks finds it.
            let over = read_until(&archive, &name).is_some_and(|until| until <= now);
            if !over {
                expired.kept += 1;
                continue;
            }
            remove_tree(&archive, group)?;
            fs::unlinkat(&archive, name.as_slice(), AtFlags::empty())?;
            expired.removed += 1;
        }
        self.folder.forget();
        Ok(expired)
    }
}

/// What a look at an archive came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expired {
    /// Groups that were deleted.
    pub(crate) removed: u64,
    /// Groups that are still kept.
    pub(crate) kept: u64,
}

fn base() -> Vec<u8> {
    [STAGING_FOLDER, b"/", NAME].concat()
}

fn read_until(archive: &OwnedFd, name: &[u8]) -> Option<Timestamp> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(fs::openat(archive, name, flags, Mode::empty()).ok()?);
    let mut text = String::new();
    file.take(UNTIL_LEN_MAX).read_to_string(&mut text).ok()?;
    text.trim_end().parse().ok().map(Timestamp)
}

/// Renames without replacing anything.
fn rename_new(from: &OwnedFd, name: &[u8], to: &OwnedFd, new: &[u8]) -> Result<()> {
    match fs::renameat_with(from, name, to, new, RenameFlags::NOREPLACE) {
        // Not every file system knows how.
        Err(Errno::INVAL | Errno::NOSYS) => match fs::statat(to, new, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => fs::renameat(from, name, to, new),
            Err(error) => Err(error),
        },
        renamed => renamed,
    }
}

fn names(folder: impl AsFd) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for item in Dir::read_from(folder)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Deletes the folder at `name` if nothing but empty folders is in it; says whether it is gone.
fn remove_empty(parent: &OwnedFd, name: &[u8]) -> Result<bool> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let folder = match fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(true),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        folder => folder?,
    };
    let mut is_empty = true;
    for name in names(&folder)? {
        is_empty &= remove_empty(&folder, &name)?;
    }
    if is_empty {
        fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    }
    Ok(is_empty)
}

/// Deletes what is at `name` and all below it, following no symlink.
fn remove_tree(parent: &OwnedFd, name: &[u8]) -> Result<()> {
    let stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        stat => stat?,
    };
    if file_type(&stat) != fs::FileType::Directory {
        return fs::unlinkat(parent, name, AtFlags::empty());
    }
    // What was archived with a folder that nobody may read can be deleted all the same.
    let _ = fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty());
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let folder = fs::openat(parent, name, flags, Mode::empty())?;
    for name in names(&folder)? {
        remove_tree(&folder, &name)?;
    }
    drop(folder);
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Remembers that a folder has an archive.
///
/// # Errors
/// Whatever the system says.
pub(crate) fn register(data: &Path, folder: &Path) -> io::Result<()> {
    let registry = data.join(REGISTRY);
    std_fs::create_dir_all(&registry)?;
    let bytes = folder.as_os_str().as_encoded_bytes();
    let digest = Sha256::digest(bytes);
    let name: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let path = registry.join(name);
    if std_fs::read(&path).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    crate::folder::write_private(&path, bytes)
}

/// Deletes what is over in every archive that is known. A folder that is not there, a medium that was taken out, is looked
/// for again.
pub(crate) fn sweep(data: &Path, now: Timestamp) {
    let Ok(entries) = std_fs::read_dir(data.join(REGISTRY)) else { return };
    for entry in entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_none()) {
        let Some(place) = std_fs::read(&entry).ok().and_then(|bytes| to_path(&bytes)) else { continue };
        match expire(&place, now) {
            Ok(Expired { removed, kept }) => {
                if removed > 0 {
                    tracing::info!(folder = %place.display(), removed, kept, "archives that were over are deleted");
                }
                if kept == 0 {
                    let _ = std_fs::remove_file(&entry);
                }
            }
            Err(Errno::NOENT) => {}
            Err(error) => {
                tracing::warn!(folder = %place.display(), %error, "an archive cannot be looked through")
            }
        }
    }
}

fn expire(place: &Path, now: Timestamp) -> Result<Expired> {
    Archive::of(&Folder::open(place)?).expire(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_archived_goes_when_its_time_is_over() {
        let (data, root) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let at = |path: &str| root.path().join(path);
        std_fs::create_dir_all(at("day/1")).expect("made");
        for name in ["day/1/a", "day/1/b", "c"] {
            std_fs::write(at(name), name).expect("written");
        }
        let folder = Folder::open(root.path()).expect("opened");
        let archive = Archive::of(&folder);
        archive.begin("one", Timestamp(1_000)).expect("begun");
        archive.begin("one", Timestamp(9_000)).expect("it keeps its time");
        archive.begin("two", Timestamp(2_000)).expect("begun");
        archive.take("one", b"day/1/a").expect("moved");
        archive.take("two", b"c").expect("moved");
        archive.take("one", b"day/1/b").expect("moved");
        archive.give_back("one", b"day/1/b").expect("moved back");
        assert!(at("day/1/b").exists() && !at("day/1/a").exists() && !at("c").exists());
        std_fs::write(at("day/1/a"), "new").expect("written");
        assert_eq!(archive.give_back("one", b"day/1/a"), Err(Errno::EXIST), "nothing is replaced");
        assert_eq!(std_fs::read(at(".flotilla/archive/one/day/1/a")).expect("there"), b"day/1/a");
        register(data.path(), root.path()).expect("registered");
        register(data.path(), root.path()).expect("once");
        let known = || std_fs::read_dir(data.path().join(REGISTRY)).expect("there").count();
        sweep(data.path(), Timestamp(999));
        assert!(at(".flotilla/archive/one").exists());
        sweep(data.path(), Timestamp(1_000));
        assert!(!at(".flotilla/archive/one").exists() && at(".flotilla/archive/two/c").exists());
        assert_eq!(known(), 1);
        sweep(data.path(), Timestamp(2_000));
        assert_eq!((known(), names(folder.walk(&base()).expect("there")).expect("read").len()), (0, 0));
        assert!(at("day/1/a").exists() && at("day/1/b").exists());
        // A medium that is not there is not forgotten.
        register(data.path(), &at("gone")).expect("registered");
        sweep(data.path(), Timestamp(u64::MAX));
        assert_eq!(known(), 1);
    }

    #[test]
    fn what_is_left_of_a_group_stays_and_empty_folders_go() {
        let root = tempfile::tempdir().expect("a folder");
        let at = |path: &str| root.path().join(path);
        std_fs::create_dir_all(at("day/1")).expect("made");
        for name in ["day/1/a", "day/b"] {
            std_fs::write(at(name), name).expect("written");
        }
        let folder = Folder::open(root.path()).expect("opened");
        let archive = Archive::of(&folder);
        archive.begin("one", Timestamp(1_000)).expect("begun");
        for name in [&b"day/1/a"[..], b"day/b"] {
            archive.take("one", name).expect("moved");
        }
        std_fs::remove_file(at(".flotilla/archive/one/day/1/a")).expect("removed");
        archive.end("one").expect("looked through");
        assert!(at(".flotilla/archive/one/day/b").exists() && !at(".flotilla/archive/one/day/1").exists());
        assert!(at(".flotilla/archive/one.until").exists());
        std_fs::remove_file(at(".flotilla/archive/one/day/b")).expect("removed");
        archive.end("one").expect("looked through");
        assert_eq!(std_fs::read_dir(at(".flotilla/archive")).expect("there").count(), 0);
    }

    #[test]
    fn nothing_outside_is_touched() {
        let (root, elsewhere) =
            (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let at = |path: &str| root.path().join(path);
        std_fs::write(elsewhere.path().join("precious"), "x").expect("written");
        std_fs::write(at("a"), "a").expect("written");
        symlink(elsewhere.path(), at(".flotilla")).expect("linked");
        let folder = Folder::open(root.path()).expect("opened");
        let archive = Archive::of(&folder);
        archive.begin("one", Timestamp(1)).expect("begun");
        symlink(elsewhere.path(), at(".flotilla/archive/one/out")).expect("linked");
        archive.take("one", b"a").expect("moved");
        assert!(!elsewhere.path().join("archive").exists());
        // A time that cannot be read, or that is none, keeps its group.
        std_fs::write(at(".flotilla/archive/two.until"), "soon").expect("written");
        std_fs::create_dir(at(".flotilla/archive/two")).expect("made");
        assert_eq!(archive.expire(Timestamp(u64::MAX)), Ok(Expired { removed: 1, kept: 1 }));
        assert!(elsewhere.path().join("precious").exists() && !at(".flotilla/archive/one").exists());
    }
}
