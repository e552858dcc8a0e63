//! The archive of a folder: `.flotilla/archive/<group>/…` in the folder itself, so that putting a file there is a rename.
//!
//! A group is what was put there for one reason, a run say; beside it `<group>.until` tells when it may go, in
//! milliseconds since 1970 by the fleet's clock. Which folders have archives is kept in `archives/` of the agent's data
//! folder, so that [`sweep`] finds them without looking everywhere. Everything is reached from the opened folder, name by
//! name: a symlink in place of `.flotilla` leads nowhere.
//!
//! Left out: what goes into an archive and why (`disposal.rs`). That no scan takes it for content is `disk/index.rs`'s.
//! `browse.rs` brings things back, when their owner says so on the machine itself (`cli.rs`).

mod browse;
pub(crate) mod cli;

use std::collections::BTreeSet;
use std::fs::{self as std_fs, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use event_schema::Timestamp;
use rustix::fs::{self, AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, Result};
use sha2::{Digest, Sha256};
use sync_core::manifest::STAGING_FOLDER;

use crate::disk::{Folder, chmod_at, file_type};
use crate::restrict::to_path;

/// The archives' folder below the staging folder.
const NAME: &[u8] = b"archive";

/// What stands behind a group's name in that of the file with its time.
const UNTIL: &str = ".until";

/// Bytes of that file: a number and a line break.
const UNTIL_LEN_MAX: u64 = 32;

/// Entries that were at one path, one after the other, and are kept in one group.
const KEPT_OF_ONE: u32 = 1000;

/// Where the agent's data folder keeps which folders have archives.
const REGISTRY: &str = "archives";

/// Levels of folders below which what is deleted is first moved up: each level holds a descriptor.
const LEVELS_MAX: usize = 64;

/// Groups that somebody works with: nobody deletes them meanwhile.
static HELD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static LET_GO: Condvar = Condvar::new();

/// A group that is one's own until this is dropped.
pub(crate) struct Held(String);

fn held() -> MutexGuard<'static, BTreeSet<String>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until nobody works with a group of this name.
pub(crate) fn hold(group: &str) -> Held {
    let mut all = held();
    while !all.insert(group.to_owned()) {
        all = LET_GO.wait(all).unwrap_or_else(PoisonError::into_inner);
    }
    Held(group.to_owned())
}

fn try_hold(group: &str) -> Option<Held> {
    held().insert(group.to_owned()).then(|| Held(group.to_owned()))
}

impl Drop for Held {
    fn drop(&mut self) {
        held().remove(&self.0);
        LET_GO.notify_all();
    }
}

/// The archive of one folder.
pub(crate) struct Archive<'f> {
    folder: &'f Folder,
}

impl<'f> Archive<'f> {
    pub(crate) fn of(folder: &'f Folder) -> Self {
        Self { folder }
    }

    /// Makes a group and tells until when it is kept. One that is there is kept until the later time; says whether it
    /// was.
    ///
    /// # Errors
    /// Whatever the system says; `PERM` if somebody else may write there.
    pub(crate) fn begin(&self, group: &str, until: Timestamp) -> Result<bool> {
        self.folder.make_private(STAGING_FOLDER)?;
        self.folder.make_private(&base())?;
        self.extend(group, until)?;
        self.folder.make_folder(&self.path(group, b"")).map(|new| !new)
    }

    /// Keeps a group until this time at least.
    ///
    /// # Errors
    /// Whatever the system says.
    pub(crate) fn extend(&self, group: &str, until: Timestamp) -> Result<()> {
        let archive = self.folder.walk(&base())?;
        let name = format!("{group}{UNTIL}");
        if read_until(&archive, name.as_bytes()).is_none_or(|before| before < until) {
            let beside = format!("{group}.tmp");
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(fs::openat(&archive, beside.as_str(), flags, Mode::RUSR | Mode::WUSR)?);
            let written = writeln!(file, "{}", until.0).and_then(|()| file.sync_all());
            written.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
            fs::renameat(&archive, beside.as_str(), &archive, name.as_str())?;
            fs::fsync(&archive)?;
        }
        Ok(())
    }

    /// Moves the entry at `path` into a group, below the same path.
    ///
    /// # Errors
    /// Whatever the system says; `XDEV` if it lies on another file system than the folder, `EXIST` if something is in
    /// the group under this path.
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
        rename_new(&from, name, &to, new)
    }

    /// Moves the entry at `path` into a group, where it takes nothing's place: another one that was at the same path before
    /// stays, and this gets a number behind its name.
    ///
    /// # Errors
    /// Whatever the system says; `XDEV` if it lies on another file system than the folder, `EXIST` if too many were there.
    pub(crate) fn keep(&self, group: &str, path: &[u8]) -> Result<()> {
        let (from, name) = self.folder.parent(path)?;
        for nth in 0..=KEPT_OF_ONE {
            let mut target = self.path(group, path);
            if nth > 0 {
                target.extend_from_slice(format!(".{nth}").as_bytes());
            }
            for (at, byte) in target.iter().enumerate() {
                if *byte == b'/' {
                    match self.folder.stat(&target[..at]) {
                        Ok(there) if file_type(&there) == fs::FileType::Directory => {}
                        Ok(_) => return Err(Errno::EXIST),
                        Err(Errno::NOENT) => drop(self.folder.make_folder(&target[..at])?),
                        Err(error) => return Err(error),
                    }
                }
            }
            let (to, new) = self.folder.parent(&target)?;
            match rename_new(&from, name, &to, new) {
                Err(Errno::EXIST) => {}
                moved => return moved,
            }
        }
        Err(Errno::EXIST)
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

    /// Deletes the groups whose time is over at `now`; says how many, and how many there are still: one that cannot be
    /// deleted is no reason to keep the others.
    ///
    /// # Errors
    /// If the archive cannot be read.
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
            // Somebody may be putting files there, or about to look whether it gets another time.
            let Some(_held) = over.then(|| try_hold(&String::from_utf8_lossy(group))).flatten() else {
                expired.kept += 1;
                continue;
            };
            // It may have got another time until it was ours.
            if read_until(&archive, &name).is_none_or(|until| until > now) {
                expired.kept += 1;
                continue;
            }
            let removed = remove_tree(&archive, group)
                .and_then(|()| fs::unlinkat(&archive, name.as_slice(), AtFlags::empty()));
            match removed {
                Ok(()) => expired.removed += 1,
                Err(error) => {
                    tracing::warn!(group = %group.escape_ascii(), %error, "an archive that is over cannot be deleted");
                    expired.kept += 1;
                }
            }
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
pub(crate) fn rename_new(from: &OwnedFd, name: &[u8], to: &OwnedFd, new: &[u8]) -> Result<()> {
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
pub(crate) fn remove_tree(parent: &OwnedFd, name: &[u8]) -> Result<()> {
    let Some(top) = open_to_remove(parent, name)? else { return Ok(()) };
    let mut moved_up = 0;
    loop {
        let names = names(&top)?;
        if names.is_empty() {
            drop(top);
            return fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
        for name in names {
            remove_below(&top, &top, &name, 0, &mut moved_up)?;
        }
    }
}

/// The same for something that lies so many levels below `top`; what is too deep is moved there instead.
fn remove_below(
    top: &OwnedFd,
    parent: &OwnedFd,
    name: &[u8],
    level: usize,
    moved_up: &mut u64,
) -> Result<()> {
    if level == LEVELS_MAX {
        loop {
            *moved_up += 1;
            match rename_new(parent, name, top, format!("deep-{moved_up}").as_bytes()) {
                Err(Errno::EXIST) => {}
                renamed => return renamed,
            }
        }
    }
    let Some(folder) = open_to_remove(parent, name)? else { return Ok(()) };
    for name in names(&folder)? {
        remove_below(top, &folder, &name, level + 1, moved_up)?;
    }
    drop(folder);
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Opens a folder that is to be emptied; what is no folder is deleted, and none.
fn open_to_remove(parent: &OwnedFd, name: &[u8]) -> Result<Option<OwnedFd>> {
    let stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        stat => stat?,
    };
    if file_type(&stat) != fs::FileType::Directory {
        return fs::unlinkat(parent, name, AtFlags::empty()).map(|()| None);
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    // What was archived with a folder that nobody may read or change can be deleted all the same.
    if !Mode::from_raw_mode(stat.st_mode).contains(Mode::RWXU) {
        let _ = chmod_at(parent, name, Mode::RWXU);
    }
    fs::openat(parent, name, flags, Mode::empty()).map(Some)
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
        archive.begin("one", Timestamp(500)).expect("it keeps its time, which is later");
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
    fn what_is_kept_takes_the_place_of_nothing() {
        let root = tempfile::tempdir().expect("a folder");
        let at = |path: &str| root.path().join(path);
        let folder = Folder::open(root.path()).expect("opened");
        let archive = Archive::of(&folder);
        archive.begin("one", Timestamp::NEVER).expect("begun");
        for content in ["first", "second", "third"] {
            std_fs::create_dir_all(at("day")).expect("made");
            std_fs::write(at("day/a"), content).expect("written");
            archive.keep("one", b"day/a").expect("kept");
        }
        let kept =
            |name: &str| std_fs::read_to_string(at(&format!(".flotilla/archive/one/{name}"))).expect("there");
        assert_eq!([kept("day/a"), kept("day/a.1"), kept("day/a.2")], ["first", "second", "third"]);
        // A folder where a file was: the file stays, and so does what is to be moved.
        std_fs::create_dir_all(at("day/a")).expect("made");
        std_fs::write(at("day/a/b"), "x").expect("written");
        assert_eq!(archive.keep("one", b"day/a/b"), Err(Errno::EXIST));
        assert!(at("day/a/b").exists() && kept("day/a") == "first");
        archive.expire(Timestamp(u64::MAX - 1)).expect("looked through");
        assert_eq!(kept("day/a"), "first", "for good");
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
    fn a_deep_tree_goes_and_one_that_cannot_keeps_no_other() {
        let (root, elsewhere) =
            (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let folder = Folder::open(root.path()).expect("opened");
        let archive = Archive::of(&folder);
        for group in ["a", "b", "c"] {
            archive.begin(group, Timestamp(1)).expect("begun");
        }
        let mut path = archive.path("c", b"");
        for _ in 0..1500 {
            path.extend_from_slice(b"/d");
            folder.make_folder(&path).expect("room");
            folder.make_folder(&[&path[..], b"e"].concat()).expect("room");
        }
        symlink(elsewhere.path(), root.path().join(".flotilla/archive/c/out")).expect("linked");
        std_fs::write(elsewhere.path().join("precious"), "x").expect("written");
        // The first of them cannot go, where the file system knows how to say so.
        let fixed = root.path().join(".flotilla/archive/a/fixed");
        std_fs::write(&fixed, "x").expect("written");
        let change = |how: &str| {
            let status = std::process::Command::new("chattr").arg(how).arg(&fixed).status();
            status.is_ok_and(|status| status.success())
        };
        let is_fixed = change("+i");
        let expired = archive.expire(Timestamp(1)).expect("readable");
        change("-i");
        let kept = u64::from(is_fixed);
        assert_eq!(expired, Expired { removed: 3 - kept, kept });
        assert_eq!(archive.expire(Timestamp(1)).expect("readable"), Expired { removed: kept, kept: 0 });
        assert!(elsewhere.path().join("precious").exists());
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
