//! What a file is besides its bytes: read at a source, restored at a destination (PROTOCOL.md §4.2, §4.8).
//!
//! Owners are restored by an agent that runs as root, by name where the system knows the name, otherwise by number.
//! What could give rights to a program (set-user-id, set-group-id, capabilities) is restored only where its owner is
//! the one that the manifest names: another user's program must not become ours.

use std::collections::HashMap;
use std::hash::Hash;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_proto::limits::{EXTENTS_MAX, OWNER_NAME_LEN_MAX};
use event_schema::Problem;
use rustix::fs::{self, AtFlags, Gid, Mode, SeekFrom, Stat, Uid, XattrFlags};
use rustix::io::{Errno, Result};
use sync_core::manifest::{Entry, Extent, Owner, Xattr, xattr_may_travel};

use super::folder::timestamps;
use super::problem;

/// Users, groups or owners remembered, so that not every entry asks the system's directory. More are forgotten at once.
const NAMES_KEPT: usize = 4096;

/// Bytes of a list of attributes, or of a value, that are asked for at first. Most have less.
const XATTR_LEN_FIRST: usize = 1024;

/// How often a list or value that grows meanwhile is asked for.
const XATTR_TRIES: u32 = 4;

/// Set-user-id and set-group-id.
const SET_IDS: u32 = 0o6000;

const CAPABILITY: &[u8] = b"security.capability";
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";

/// What somebody was once told.
struct Known<K, V>(HashMap<K, V>);

impl<K: Eq + Hash, V: Clone> Known<K, V> {
    fn of(&mut self, key: K, ask: impl FnOnce(&K) -> V) -> V {
        if let Some(value) = self.0.get(&key) {
            return value.clone();
        }
        if self.0.len() >= NAMES_KEPT {
            self.0.clear();
        }
        let value = ask(&key);
        self.0.insert(key, value.clone());
        value
    }
}

impl<K, V> Default for Known<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

// --- at a source ---

/// Owners by number.
#[derive(Default)]
pub(crate) struct Owners(Known<(u32, u32), Arc<Owner>>);

impl Owners {
    /// Whose the file is that `stat` is of.
    pub(crate) fn of(&mut self, stat: &Stat) -> Arc<Owner> {
        self.0.of((stat.st_uid, stat.st_gid), |&(uid, gid)| {
            // A directory of people that does not answer leaves the number.
            let user = nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name);
            let group = nix::unistd::Group::from_gid(gid.into()).ok().flatten().map(|group| group.name);
            let fits = |name: &String| name.len() <= OWNER_NAME_LEN_MAX && !name.contains(['\0', ':', '\n']);
            Arc::new(Owner {
                uid,
                gid,
                user: user.filter(fits).unwrap_or_default(),
                group: group.filter(fits).unwrap_or_default(),
            })
        })
    }
}

/// The extended attributes that travel, sorted by name.
pub(crate) fn xattrs(file: BorrowedFd<'_>) -> Result<Vec<Xattr>> {
    let mut found = Vec::new();
    for name in travelling(file)? {
        match grown(|buf| fs::fgetxattr(file, name.as_slice(), buf)) {
            Ok(value) => found.push(Xattr { name, value }),
            // Removed between the list and now.
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Names of the extended attributes that travel; none where the file system has none.
fn travelling(file: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let list = match grown(|buf| fs::flistxattr(file, buf)) {
        Ok(list) => list,
        Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    Ok(list.split(|&b| b == 0).filter(|name| xattr_may_travel(name)).map(<[u8]>::to_vec).collect())
}

/// Asks for something of unknown length until there is room for it.
fn grown(mut ask: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buf = vec![0; XATTR_LEN_FIRST];
    for _ in 0..XATTR_TRIES {
        match ask(&mut buf) {
            Ok(len) => {
                buf.truncate(len);
                return Ok(buf);
            }
            // Linux has no longer ones than 64 KiB.
            Err(Errno::RANGE) => buf.resize(buf.len() * 8, 0),
            Err(e) => return Err(e),
        }
    }
    Err(Errno::RANGE)
}

/// Where a file of this size has data; `None` if it has no holes. Leaves the file's position anywhere.
pub(super) fn extents(file: BorrowedFd<'_>, stat: &Stat) -> Result<Option<Vec<Extent>>> {
    let size = stat.st_size as u64;
    // Whoever has room for all bytes has no holes worth looking for.
    if size == 0 || stat.st_blocks as u64 * 512 >= size {
        return Ok(None);
    }
    let (mut data, mut at) = (Vec::new(), 0);
    while at < size {
        let start = match fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            // The file system does not tell.
            Err(Errno::INVAL) => return Ok(None),
            Err(e) => return Err(e),
        };
        let end = fs::seek(file, SeekFrom::Hole(start))?.min(size);
        if end <= start {
            break;
        }
        data.push(Extent { start, len: end - start });
        if data.len() >= 4 * EXTENTS_MAX {
            fill_short_holes(&mut data);
        }
        at = end;
    }
    if data.len() > EXTENTS_MAX {
        fill_short_holes(&mut data);
    }
    let whole = matches!(data.as_slice(), [only] if only.len == size);
    Ok((!whole).then_some(data))
}

/// Takes the shortest holes for data, so that at most [`EXTENTS_MAX`] stretches are left.
fn fill_short_holes(data: &mut Vec<Extent>) {
    let mut holes: Vec<u64> = data.windows(2).map(|pair| pair[1].start - pair[0].end()).collect();
    // The longest are kept; of those as long as the last one that may stay, none is.
    holes.sort_unstable_by(|a, b| b.cmp(a));
    let Some(&short) = holes.get(EXTENTS_MAX - 1) else { return };
    let mut merged: Vec<Extent> = Vec::new();
    for extent in data.iter() {
        match merged.last_mut() {
            Some(last) if extent.start - last.end() <= short => last.len = extent.end() - last.start,
            _ => merged.push(*extent),
        }
    }
    *data = merged;
}

// --- at a destination ---

/// Restores metadata, and counts what this system does not take.
pub(crate) struct Restorer {
    /// May give files away.
    root: bool,
    /// What is restored has to be readable by who restores it, whatever its mode.
    readable: bool,
    users: Mutex<Known<(u32, String), Uid>>,
    groups: Mutex<Known<(u32, String), Gid>>,
    lost: Mutex<[Lost; 2]>,
}

/// Something that could not be restored.
#[derive(Default)]
struct Lost {
    entries: u64,
    first: Option<(Errno, Vec<u8>)>,
}

#[derive(Clone, Copy)]
enum What {
    Owner,
    Xattr,
}

impl Restorer {
    /// For this process.
    pub(crate) fn new() -> Self {
        Self {
            root: rustix::process::geteuid().is_root(),
            readable: false,
            users: Mutex::default(),
            groups: Mutex::default(),
            lost: Mutex::default(),
        }
    }

    /// For this process, of versions of a backup: who may not read everything keeps them so that he can give them back.
    /// Their manifests have the true modes.
    pub(crate) fn of_versions() -> Self {
        let restorer = Self::new();
        Self { readable: !restorer.root, ..restorer }
    }

    /// The mode that an entry gets.
    fn mode(&self, e: &Entry, owned: bool) -> u32 {
        let mode = if owned { e.mode } else { e.mode & !SET_IDS };
        match self.readable {
            true if e.is_folder() => mode | 0o700,
            true => mode | 0o400,
            false => mode,
        }
    }

    /// Restores all that an entry says about a file or folder, its time last. What is as it should be is not touched.
    ///
    /// # Errors
    /// If mode or time cannot be set. Owners and attributes that cannot be are told by [`Self::problems`].
    pub(crate) fn restore(&self, file: impl AsFd, e: &Entry) -> Result<()> {
        let file = file.as_fd();
        let stat = fs::fstat(file)?;
        let (owned, given) = self.give(&stat, e, |user, group| fs::fchown(file, user, group));
        let mode = self.mode(e, owned);
        let acl_changed = self.restore_xattrs(file, &stat, e, owned)?;
        // Giving a file away takes its set-id bits; an attribute may have needed another mode.
        let now = if given || acl_changed { fs::fstat(file)?.st_mode } else { stat.st_mode };
        if now & 0o7777 != mode {
            fs::fchmod(file, Mode::from_raw_mode(mode))?;
        }
        // The list says more than the mode, and the mode's group is the list's mask: the list comes last.
        if let Some(acl) = e.xattrs.iter().find(|x| x.name == ACL_ACCESS)
            && (acl_changed || now & 0o7777 != mode)
        {
            self.note(What::Xattr, e, fs::fsetxattr(file, ACL_ACCESS, &acl.value, XattrFlags::empty()));
        }
        let there = (stat.st_mtime, stat.st_mtime_nsec as u32);
        if there != (e.mtime.seconds, e.mtime.nanos) {
            fs::futimens(file, &timestamps(e.mtime))?;
        }
        Ok(())
    }

    /// Restores owner and time of the symlink `name` in a folder.
    pub(crate) fn restore_link(&self, parent: impl AsFd, name: &[u8], e: &Entry) -> Result<()> {
        let parent = parent.as_fd();
        let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        self.give(&stat, e, |user, group| fs::chownat(parent, name, user, group, AtFlags::SYMLINK_NOFOLLOW));
        fs::utimensat(parent, name, &timestamps(e.mtime), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Gives a file to its owner; says whether it is his now, and whether it was not before.
    fn give(
        &self,
        stat: &Stat,
        e: &Entry,
        chown: impl FnOnce(Option<Uid>, Option<Gid>) -> Result<()>,
    ) -> (bool, bool) {
        let Some((user, group)) = self.owner(e) else { return (false, false) };
        if (stat.st_uid, stat.st_gid) == (user.as_raw(), group.as_raw()) {
            return (true, false);
        }
        if !self.root {
            return (false, false);
        }
        let given = self.note(What::Owner, e, chown(Some(user), Some(group)));
        (given, given)
    }

    /// Whether a file has the mode and the owner that [`Self::restore`] would give it.
    pub(super) fn fits(&self, stat: &Stat, e: &Entry) -> bool {
        let owner = self.owner(e).map(|(user, group)| (user.as_raw(), group.as_raw()));
        let owned = owner == Some((stat.st_uid, stat.st_gid));
        stat.st_mode & 0o7777 == self.mode(e, owned) && (owned || !self.root || owner.is_none())
    }

    /// Whose an entry is to be on this system.
    fn owner(&self, e: &Entry) -> Option<(Uid, Gid)> {
        e.owner.as_ref().map(|owner| self.owner_of(owner))
    }

    /// Who an owner is on this system.
    pub(crate) fn owner_of(&self, owner: &Owner) -> (Uid, Gid) {
        let user = lock(&self.users).of((owner.uid, owner.user.clone()), |(uid, name)| {
            let known = (!name.is_empty()).then(|| nix::unistd::User::from_name(name).ok().flatten());
            Uid::from_raw(known.flatten().map_or(*uid, |user| user.uid.as_raw()))
        });
        let group = lock(&self.groups).of((owner.gid, owner.group.clone()), |(gid, name)| {
            let known = (!name.is_empty()).then(|| nix::unistd::Group::from_name(name).ok().flatten());
            Gid::from_raw(known.flatten().map_or(*gid, |group| group.gid.as_raw()))
        });
        (user, group)
    }

    /// Makes the extended attributes those of the entry, but for the access list, which is only removed here. Says
    /// whether that list changed, or the mode.
    fn restore_xattrs(&self, file: BorrowedFd<'_>, stat: &Stat, e: &Entry, owned: bool) -> Result<bool> {
        let there = xattrs(file)?;
        let wanted: Vec<&Xattr> = e.xattrs.iter().filter(|x| owned || x.name != CAPABILITY).collect();
        if wanted.iter().copied().eq(&there) {
            return Ok(false);
        }
        // Only who may write to a file may change what users note about it.
        let mode = Mode::from_raw_mode(stat.st_mode);
        if !self.root && !mode.contains(Mode::WUSR) {
            fs::fchmod(file, mode | Mode::WUSR)?;
        }
        for extra in there.iter().filter(|x| !wanted.iter().any(|w| w.name == x.name)) {
            let removed = fs::fremovexattr(file, extra.name.as_slice());
            self.note(What::Xattr, e, removed);
        }
        for &xattr in wanted.iter().filter(|x| x.name != ACL_ACCESS && !there.contains(x)) {
            let set = fs::fsetxattr(file, xattr.name.as_slice(), &xattr.value, XattrFlags::empty());
            self.note(What::Xattr, e, set);
        }
        Ok(true)
    }

    /// Counts what does not succeed; true if it did.
    fn note(&self, what: What, e: &Entry, outcome: Result<()>) -> bool {
        let Err(error) = outcome else { return true };
        let lost = &mut lock(&self.lost)[what as usize];
        lost.entries += 1;
        lost.first.get_or_insert_with(|| (error, e.path.clone()));
        false
    }

    /// What could not be restored, a line for each kind; then it is forgotten.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let doing = ["giving the entry to its owner", "setting its extended attributes"];
        let lost = std::mem::take(&mut *lock(&self.lost));
        let tell = |(lost, doing): (Lost, &str)| {
            let (error, path) = lost.first?;
            let mut problem = problem(error, &path, doing);
            if lost.entries > 1 {
                problem.detail =
                    format!("{}; the same with {} more entries", problem.detail, lost.entries - 1);
            }
            Some(problem)
        };
        lost.into_iter().zip(doing).filter_map(tell).collect()
    }
}

/// What the locks protect is never half changed where a panic could come from.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use sync_core::manifest::{Kind, Mtime};

    fn entry(mode: u32, owner: Option<(u32, &str)>) -> Entry {
        let owner = owner
            .map(|(uid, user)| Arc::new(Owner { uid, gid: uid, user: user.into(), group: String::new() }));
        Entry { owner, ..Entry::new(b"f", mode, Mtime { seconds: 5, nanos: 6 }, Kind::file(0)) }
    }

    #[test]
    fn rights_of_programs_are_kept_for_their_owner_alone() {
        let file = tempfile::tempfile().expect("room");
        let meta = || file.metadata().expect("there");
        let me = rustix::process::geteuid().as_raw();
        // By somebody who may not give files away.
        let plain = Restorer { root: false, ..Restorer::new() };
        plain.restore(&file, &entry(0o6755, Some((me + 1, "")))).expect("restored");
        assert_eq!((meta().mode() & 0o7777, meta().uid()), (0o755, me));
        plain.restore(&file, &entry(0o6755, None)).expect("restored");
        assert_eq!(meta().mode() & 0o7777, 0o755);
        assert!(plain.problems().is_empty(), "nothing was tried");
        if meta().gid() == me {
            plain.restore(&file, &entry(0o4755, Some((me, "")))).expect("restored");
            assert_eq!(meta().mode() & 0o7777, 0o4755, "his own");
        }
        assert_eq!((meta().mtime(), meta().mtime_nsec()), (5, 6));
        // What is kept to be given back can be read.
        let keeper = Restorer { root: false, readable: true, ..Restorer::new() };
        keeper.restore(&file, &entry(0o200, None)).expect("restored");
        assert_eq!(meta().mode() & 0o7777, 0o600);
        assert!(keeper.fits(&fs::fstat(&file).expect("there"), &entry(0o200, None)));
        assert!(!keeper.fits(&fs::fstat(&file).expect("there"), &entry(0o644, None)));
        if me != 0 {
            return;
        }
        let root = Restorer::new();
        root.restore(&file, &entry(0o6750, Some((1234, "")))).expect("restored");
        assert_eq!((meta().mode() & 0o7777, meta().uid(), meta().gid()), (0o6750, 1234, 1234));
        // The name says more than the number.
        root.restore(&file, &entry(0o4711, Some((4321, "root")))).expect("restored");
        assert_eq!((meta().mode() & 0o7777, meta().uid(), meta().gid()), (0o4711, 0, 4321));
        root.restore(&file, &entry(0o600, Some((99, "no such user here")))).expect("restored");
        assert_eq!(meta().uid(), 99);
        assert!(root.problems().is_empty());
    }

    #[test]
    fn attributes_become_those_of_the_entry() {
        let file = tempfile::tempfile_in("/var/tmp").expect("room");
        let set = |name: &str, value: &[u8]| fs::fsetxattr(&file, name, value, XattrFlags::empty());
        if let Err(error) = set("user.old", b"1") {
            assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "extended attributes: {error}");
            eprintln!("SKIPPED attributes_become_those_of_the_entry: {error}");
            return;
        }
        set("user.same", &[7; 3000]).expect("room");
        let xattr = |name: &[u8], value: &[u8]| Xattr { name: name.to_vec(), value: value.to_vec() };
        let mut e = entry(0o440, None);
        e.xattrs = vec![
            xattr(b"security.capability", b"never"),
            xattr(b"user.new", b""),
            xattr(b"user.same", &[7; 3000]),
        ];
        let restorer = Restorer::new();
        restorer.restore(&file, &e).expect("restored");
        e.xattrs.remove(0);
        assert_eq!(xattrs(file.as_fd()).expect("there"), e.xattrs);
        assert_eq!(file.metadata().expect("there").mode() & 0o7777, 0o440);
        // Something that this file system cannot hold is told once.
        e.xattrs.push(xattr(b"user.too large", &vec![1; 100_000]));
        for _ in 0..3 {
            restorer.restore(&file, &e).expect("restored");
        }
        let problems = restorer.problems();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].detail.contains("2 more"), "{}", problems[0].detail);
        assert!(restorer.problems().is_empty());
    }

    #[test]
    fn holes_are_found_and_too_many_filled() {
        let file = tempfile::tempfile_in("/var/tmp").expect("room");
        let extents = |file: &File| {
            extents(file.as_fd(), &fs::fstat(file).expect("there")).expect("a file system that tells")
        };
        assert_eq!(extents(&file), None);
        file.set_len(1 << 20).expect("room");
        assert_eq!(extents(&file), Some(Vec::new()));
        file.write_all_at(&[1; 4096], 1 << 19).expect("room");
        let data = extents(&file).expect("holes");
        assert!(data.iter().all(|e| e.end() <= 1 << 20) && !data.is_empty());
        file.write_all_at(&vec![1; 1 << 20], 0).expect("room");
        assert_eq!(extents(&file), None);
        let count = EXTENTS_MAX as u64 + 10;
        let mut many: Vec<Extent> = (0..count).map(|i| Extent { start: i * 100 + i % 7, len: 50 }).collect();
        let (first, last) = (many[0].start, many[many.len() - 1].end());
        fill_short_holes(&mut many);
        assert!((EXTENTS_MAX / 2..=EXTENTS_MAX).contains(&many.len()), "{}", many.len());
        assert_eq!((many[0].start, many[many.len() - 1].end()), (first, last));
        assert!(many.windows(2).all(|pair| pair[0].end() < pair[1].start));
    }
}
