//! Changing the folder, all or nothing, without overwriting anybody's bytes (SYNC.md §7).
//!
//! What is to come is made ready in the stage's folder under a name `x-…`, durable, with its metadata; then one rename
//! brings it: one that replaces nothing, or one that exchanges. What comes out is compared with what was expected, and
//! put back if somebody else changed it in between. Left there by a crash it goes to the archive ([`Changer::recover`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use portable_atomic::AtomicU64;
use rustix::fs::{self, AtFlags, Dir, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use sync_core::sync::{Displaced, Expected, Make, Outcome, Stamp};

use super::attic::Attic;
use super::meta::Metadata;
use super::stage::Stages;
use super::tree::{Tree, is_folder, is_renamed, open_file_at, rename_new, stat_at};
use crate::disk::sync_file_system;

/// Folders synced one by one after a batch of changes; of more, the file system is.
const SYNCED_APART: usize = 8;

/// Staged files synced one by one before they are put in place; of more, the file system is.
const FILES_SYNCED_APART: usize = 3;

/// What the machine asks for (`sync_core::sync::Action::Change`).
#[derive(Debug)]
pub(super) struct Order {
    pub(super) change: u32,
    pub(super) path: Vec<u8>,
    pub(super) expected: Expected,
    pub(super) displaced: Displaced,
    pub(super) make: Make,
}

impl Order {
    /// Every path that it touches.
    pub(super) fn paths(&self) -> impl Iterator<Item = &[u8]> {
        let from = match &self.make {
            Make::Moved { from, .. } => Some(from.as_slice()),
            _ => None,
        };
        let to = match &self.displaced {
            Displaced::Keep(to) => Some(to.as_slice()),
            _ => None,
        };
        [Some(self.path.as_slice()), from, to].into_iter().flatten()
    }
}

/// Why nothing was changed.
#[derive(Debug, PartialEq, Eq)]
enum Fail {
    Refused,
    NotEmpty,
    System(Errno),
}

impl From<Errno> for Fail {
    fn from(errno: Errno) -> Self {
        match errno {
            // Something came, went, or is another.
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::EXIST | Errno::ISDIR => Self::Refused,
            Errno::NOTEMPTY => Self::NotEmpty,
            other => Self::System(other),
        }
    }
}

type Done<T> = Result<T, Fail>;

/// Folders that were changed and are not durable yet.
#[derive(Default)]
struct Dirty(BTreeMap<(u64, u64), Arc<OwnedFd>>);

impl Dirty {
    fn add(&mut self, folder: &Arc<OwnedFd>) {
        if let Ok(stat) = fs::fstat(folder) {
            self.0.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| folder.clone());
        }
    }
}

/// See the module.
pub(super) struct Changer {
    tree: Arc<Tree>,
    stages: Arc<Stages>,
    metadata: Arc<Metadata>,
    attic: Arc<Attic>,
    /// Names in the stage's folder.
    next: AtomicU64,
    /// The last error that the file system gave, for people.
    trouble: std::sync::Mutex<Option<String>>,
}

/// Something that is ready to be renamed into place, or came out of it.
struct Ready {
    folder: Arc<OwnedFd>,
    name: Vec<u8>,
    /// It is where the user had it: to go back there is to undo.
    moved: bool,
}

impl Changer {
    pub(super) fn new(
        tree: Arc<Tree>,
        stages: Arc<Stages>,
        metadata: Arc<Metadata>,
        attic: Arc<Attic>,
    ) -> Self {
        let (next, trouble) = (AtomicU64::new(1), std::sync::Mutex::default());
        Self { tree, stages, metadata, attic, next, trouble }
    }

    /// The last error that the file system gave, since it was asked last.
    pub(super) fn take_trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    /// Makes changes, each of them or nothing of it, durable on return.
    pub(super) fn make(&self, orders: &[Order]) -> Vec<Outcome> {
        if !self.tree.is_there() {
            return orders.iter().map(|_| Outcome::Failed).collect();
        }
        let durable = self.contents_durable(orders);
        let mut dirty = Dirty::default();
        let mut outcomes: Vec<Outcome> = orders
            .iter()
            .zip(durable)
            .map(|(order, durable)| {
                let made = match durable {
                    Ok(()) => self.one(order, &mut dirty),
                    Err(error) => Err(Fail::System(error)),
                };
                self.outcome(order, made)
            })
            .collect();
        if let Err(error) = self.durable(dirty) {
            // Made, but nobody knows whether it stays: looked at again after the next start.
            self.note(b"", error, "syncing the folder");
            outcomes.iter_mut().for_each(|outcome| *outcome = Outcome::Failed);
        }
        outcomes
    }

    fn outcome(&self, order: &Order, made: Done<(Stamp, Option<Stamp>)>) -> Outcome {
        match made {
            Ok((stamp, kept)) => Outcome::Done { stamp, kept },
            Err(Fail::Refused) => Outcome::Refused,
            Err(Fail::NotEmpty) => Outcome::NotEmpty,
            Err(Fail::System(error)) => {
                self.note(&order.path, error, "changing the folder");
                Outcome::Failed
            }
        }
    }

    fn note(&self, path: &[u8], error: Errno, doing: &str) {
        let text = crate::disk::problem(error, path, doing).detail;
        tracing::warn!(path = %path.escape_ascii(), "{text}");
        *self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(format!("{}: {text}", path.escape_ascii()));
    }

    /// Content is durable before it gets its name: whether it is, of each order.
    fn contents_durable(&self, orders: &[Order]) -> Vec<Result<(), Errno>> {
        let mut durable = vec![Ok(()); orders.len()];
        let mut files = Vec::new();
        for (nth, order) in orders.iter().enumerate() {
            if let Make::Staged { transfer, meta } = &order.make
                && let Some(staged) = self.stages.get(*transfer)
            {
                // What others ask for does not wait for one whose metadata cannot be set.
                durable[nth] = self.metadata.set(staged.file(), &order.path, meta);
                files.push((nth, staged));
            }
        }
        let together = (files.len() > FILES_SYNCED_APART).then(|| sync_file_system(self.tree.root()));
        for (nth, staged) in files {
            let synced = together.unwrap_or_else(|| fs::fsync(staged.file()));
            if let Err(error) = synced {
                // The system tells this once: from here on its memory says what the disk does not have.
                staged.lose();
                durable[nth] = Err(error);
            }
        }
        durable
    }

    fn durable(&self, dirty: Dirty) -> Result<(), Errno> {
        if dirty.0.len() > SYNCED_APART {
            return sync_file_system(self.tree.root());
        }
        dirty.0.values().try_for_each(fs::fsync)
    }

    fn one(&self, order: &Order, dirty: &mut Dirty) -> Done<(Stamp, Option<Stamp>)> {
        let Order { path, expected, displaced, make, .. } = order;
        let (parent, name) = self.tree.parent(path)?;
        let there = stat_at(&parent, name)?;
        self.check(&there, *expected, make)?;
        if let Make::Meta { meta } = make {
            self.set_metadata(&parent, name, path, meta, *expected)?;
            dirty.add(&parent);
            return Ok((self.stamp_at(&parent, name)?, None));
        }
        let keep = match displaced {
            Displaced::Keep(to) => {
                let (folder, new) = self.tree.parent(to)?;
                if stat_at(&folder, new)?.is_some() {
                    return Err(Fail::Refused);
                }
                Some((folder, new))
            }
            Displaced::Nothing | Displaced::Archive => None,
        };
        dirty.add(&parent);
        if *make == Make::Nothing {
            let kept = match expected {
                Expected::Folder => {
                    fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?;
                    None
                }
                Expected::File(stamp) => self.put_away(&parent, name, path, stamp, &keep, dirty)?,
                Expected::Absent => None,
            };
            return Ok((Stamp::default(), kept));
        }
        let ready = self.ready(order)?;
        let brought = self.bring(order, &parent, name, &ready, &there, &keep, dirty);
        if brought.is_err() && !ready.moved {
            self.unready(order, &ready);
        }
        let kept = brought?;
        if ready.moved {
            dirty.add(&ready.folder);
            if let Make::Moved { meta, .. } = make {
                self.set_metadata(&parent, name, path, meta, *expected)?;
            }
        }
        if let Make::Staged { transfer, .. } = make {
            self.stages.placed(*transfer);
        }
        Ok((self.stamp_at(&parent, name)?, kept))
    }

    /// Is it as expected?
    fn check(&self, there: &Option<Stat>, expected: Expected, make: &Make) -> Done<()> {
        let good = match (expected, there) {
            (Expected::Absent, None) => true,
            // A name that the file system takes for that of the file to be moved.
            (Expected::Absent, Some(stat)) => {
                matches!(make, Make::Moved { stamp, .. } if stamp.is(&self.tree.stamp(stat)))
            }
            (Expected::File(stamp), Some(stat)) => !is_folder(stat) && stamp.is(&self.tree.stamp(stat)),
            (Expected::Folder, Some(stat)) => is_folder(stat),
            (Expected::File(_) | Expected::Folder, None) => false,
        };
        if good { Ok(()) } else { Err(Fail::Refused) }
    }

    fn stamp_at(&self, folder: &OwnedFd, name: &[u8]) -> Done<Stamp> {
        match stat_at(folder, name)? {
            Some(stat) => Ok(self.tree.stamp(&stat)),
            // Somebody took it at once: what comes next is told by the watcher.
            None => Ok(Stamp::default()),
        }
    }

    fn fresh(&self) -> Vec<u8> {
        format!("x-{:x}-{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// Makes what is to come ready, in the stage's folder.
    fn ready(&self, order: &Order) -> Done<Ready> {
        let stage = self.tree.stage().clone();
        let name = self.fresh();
        let failed = |errno| Fail::System(errno);
        match &order.make {
            Make::Moved { from, stamp, .. } => {
                let (folder, old) = self.tree.parent(from)?;
                let stat = stat_at(&folder, old)?.ok_or(Fail::Refused)?;
                if is_folder(&stat) || !stamp.is(&self.tree.stamp(&stat)) {
                    return Err(Fail::Refused);
                }
                Ok(Ready { folder, name: old.to_vec(), moved: true })
            }
            Make::Staged { transfer, .. } => {
                let staged = self.stages.get(*transfer).ok_or(Fail::System(Errno::NOENT))?;
                // From now on what has this name may be somebody's: it is no stage any more.
                fs::renameat(&stage, staged.name(), &stage, name.as_slice()).map_err(failed)?;
                Ok(Ready { folder: stage, name, moved: false })
            }
            Make::Folder { meta } => {
                let mode = if meta.is_empty() { Mode::from_raw_mode(0o777) } else { Mode::RWXU };
                fs::mkdirat(&stage, name.as_slice(), mode).map_err(failed)?;
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
                let set = fs::openat(&stage, name.as_slice(), flags, Mode::empty())
                    .and_then(|folder| self.metadata.set(folder, &order.path, meta));
                self.ready_if(set, order, Ready { folder: stage, name, moved: false })
            }
            Make::Link { target, meta } => {
                fs::symlinkat(target.as_slice(), &stage, name.as_slice()).map_err(failed)?;
                let set = self.metadata.set_link(&stage, &name, &order.path, meta);
                self.ready_if(set, order, Ready { folder: stage, name, moved: false })
            }
            Make::Nothing | Make::Meta { .. } => Err(Fail::System(Errno::INVAL)),
        }
    }

    /// Of what has no metadata nothing stays.
    fn ready_if(&self, set: Result<(), Errno>, order: &Order, ready: Ready) -> Done<Ready> {
        set.map_err(|error| {
            self.unready(order, &ready);
            Fail::System(error)
        })?;
        Ok(ready)
    }

    /// Takes back what [`Self::ready`] made.
    fn unready(&self, order: &Order, ready: &Ready) {
        let result = match &order.make {
            Make::Staged { transfer, .. } => match self.stages.get(*transfer) {
                Some(staged) => {
                    fs::renameat(&ready.folder, ready.name.as_slice(), &ready.folder, staged.name())
                }
                None => Ok(()),
            },
            Make::Folder { .. } => fs::unlinkat(&ready.folder, ready.name.as_slice(), AtFlags::REMOVEDIR),
            _ => fs::unlinkat(&ready.folder, ready.name.as_slice(), AtFlags::empty()),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "something stays in the stage's folder until the next start");
        }
    }

    /// Brings what is ready; tells how what was displaced to another name looks there.
    fn bring(
        &self,
        order: &Order,
        parent: &Arc<OwnedFd>,
        name: &[u8],
        ready: &Ready,
        there: &Option<Stat>,
        keep: &Option<(Arc<OwnedFd>, &[u8])>,
        dirty: &mut Dirty,
    ) -> Done<Option<Stamp>> {
        let from = (&ready.folder, ready.name.as_slice());
        if order.expected == Expected::Absent {
            match there {
                // The same file under a name that is the same to the file system.
                Some(_) => fs::renameat(from.0, from.1, parent, name)?,
                None => rename_new(from.0, from.1, parent, name)?,
            }
            if let Make::Moved { stamp, .. } = &order.make
                && !stat_at(parent, name)?.is_some_and(|s| is_renamed(stamp, &self.tree.stamp(&s)))
            {
                // Another one came there in between: back.
                rename_new(parent, name, from.0, from.1)?;
                return Err(Fail::Refused);
            }
            return Ok(None);
        }
        match fs::renameat_with(from.0, from.1, parent, name, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                return self.bring_without_exchange(order, parent, name, ready, keep, dirty);
            }
            Err(error) => return Err(error.into()),
        }
        let settled = self.settle_exchanged(order, parent, name, ready, keep, dirty);
        if settled.is_err() {
            // What came out goes back, and what came in comes out.
            fs::renameat_with(from.0, from.1, parent, name, RenameFlags::EXCHANGE)?;
        }
        settled
    }

    /// After the exchange: is what came out what was expected, and where does it go?
    fn settle_exchanged(
        &self,
        order: &Order,
        parent: &Arc<OwnedFd>,
        name: &[u8],
        ready: &Ready,
        keep: &Option<(Arc<OwnedFd>, &[u8])>,
        dirty: &mut Dirty,
    ) -> Done<Option<Stamp>> {
        if let Make::Moved { stamp, .. } = &order.make
            && !stat_at(parent, name)?.is_some_and(|s| is_renamed(stamp, &self.tree.stamp(&s)))
        {
            return Err(Fail::Refused);
        }
        match order.expected {
            Expected::File(stamp) => {
                self.put_away(&ready.folder, &ready.name, &order.path, &stamp, keep, dirty)
            }
            Expected::Folder => {
                let out = stat_at(&ready.folder, &ready.name)?;
                if !out.is_some_and(|stat| is_folder(&stat)) {
                    return Err(Fail::Refused);
                }
                fs::unlinkat(&ready.folder, ready.name.as_slice(), AtFlags::REMOVEDIR)?;
                Ok(None)
            }
            Expected::Absent => Err(Fail::Refused),
        }
    }

    /// Moves a file to the archive, or to the name where it is kept, if it is the one that was expected.
    fn put_away(
        &self,
        folder: &Arc<OwnedFd>,
        name: &[u8],
        path: &[u8],
        expected: &Stamp,
        keep: &Option<(Arc<OwnedFd>, &[u8])>,
        dirty: &mut Dirty,
    ) -> Done<Option<Stamp>> {
        let (to, new) = match keep {
            Some((to, new)) => {
                rename_new(folder, name, to, new)?;
                (to.clone(), new.to_vec())
            }
            None => self.attic.take(folder, name, path)?,
        };
        let stat = stat_at(&to, &new)?.ok_or(Fail::Refused)?;
        let stamp = self.tree.stamp(&stat);
        if is_folder(&stat) || !is_renamed(expected, &stamp) {
            rename_new(&to, &new, folder, name)?;
            return Err(Fail::Refused);
        }
        if keep.is_none() && self.attic.keeps_nothing() {
            fs::unlinkat(&to, new.as_slice(), AtFlags::empty())?;
        }
        dirty.add(&to);
        Ok(keep.is_some().then_some(stamp))
    }

    /// Where the file system knows no exchange: the old one goes aside first, with a note of where it was, so that it can
    /// be put back after a crash.
    fn bring_without_exchange(
        &self,
        order: &Order,
        parent: &Arc<OwnedFd>,
        name: &[u8],
        ready: &Ready,
        keep: &Option<(Arc<OwnedFd>, &[u8])>,
        dirty: &mut Dirty,
    ) -> Done<Option<Stamp>> {
        let stamp = match order.expected {
            Expected::File(stamp) => stamp,
            Expected::Folder => {
                fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
                rename_new(&ready.folder, &ready.name, parent, name)?;
                return Ok(None);
            }
            Expected::Absent => return Err(Fail::Refused),
        };
        let stage = self.tree.stage();
        let aside = self.fresh();
        let note = [b"n", &aside[..]].concat();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(fs::openat(stage, note.as_slice(), flags, Mode::RUSR | Mode::WUSR)?);
        let noted = file.write_all(&order.path).and_then(|()| file.sync_all());
        noted.map_err(|e| Fail::System(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        fs::fsync(stage)?;
        rename_new(parent, name, stage, &aside)?;
        let brought = (|| {
            let out = stat_at(stage, &aside)?.ok_or(Fail::Refused)?;
            if is_folder(&out) || !is_renamed(&stamp, &self.tree.stamp(&out)) {
                return Err(Fail::Refused);
            }
            rename_new(&ready.folder, &ready.name, parent, name)?;
            self.put_away(stage, &aside, &order.path, &stamp, keep, dirty).inspect_err(|_| {
                let _ = rename_new(parent, name, &ready.folder, &ready.name);
            })
        })();
        if brought.is_err() {
            rename_new(stage, &aside, parent, name)?;
        }
        fs::unlinkat(stage, note.as_slice(), AtFlags::empty())?;
        brought
    }

    fn set_metadata(
        &self,
        folder: &OwnedFd,
        name: &[u8],
        path: &[u8],
        meta: &[u8],
        expected: Expected,
    ) -> Done<()> {
        let Some(stat) = stat_at(folder, name)? else { return Err(Fail::Refused) };
        match crate::disk::file_type(&stat) {
            fs::FileType::Symlink => self.metadata.set_link(folder, name, path, meta)?,
            fs::FileType::Directory => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
                self.metadata.set(fs::openat(folder, name, flags, Mode::empty())?, path, meta)?;
            }
            _ => {
                let file = match open_file_at(folder, name) {
                    // Ours, and we took the right to read it from ourselves.
                    Err(Errno::ACCESS) if matches!(expected, Expected::File(_)) => {
                        crate::disk::chmod_at(folder, name, Mode::RUSR | Mode::WUSR)?;
                        open_file_at(folder, name)?
                    }
                    opened => opened?,
                };
                self.metadata.set(file, path, meta)?;
            }
        }
        Ok(())
    }

    /// What a crash left in the stage's folder: what was aside goes back to its place, if nothing has taken that, else to
    /// the archive, as everything that may be somebody's.
    ///
    /// # Errors
    /// If the folder cannot be read; single entries that cannot be moved stay.
    pub(super) fn recover(&self) -> Result<(), Errno> {
        let stage = self.tree.stage();
        let mut left = Vec::new();
        for item in Dir::read_from(stage)? {
            let name = item?.file_name().to_bytes().to_vec();
            if name.starts_with(b"x-") || name.starts_with(b"nx-") {
                left.push(name);
            }
        }
        // Notes first: they sort before what they are of.
        left.sort();
        for name in left {
            if let Err(error) = self.recover_one(stage, &name) {
                tracing::warn!(%error, name = %name.escape_ascii(), "left by a crash, and cannot be put anywhere");
            }
        }
        Ok(())
    }

    fn recover_one(&self, stage: &Arc<OwnedFd>, name: &[u8]) -> Result<(), Errno> {
        if let Some(aside) = name.strip_prefix(b"n") {
            let mut path = Vec::new();
            let read = open_file_at(stage, name)?.take(8192).read_to_end(&mut path);
            read.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
            if sync_core::manifest::check_path(&path).is_ok()
                && !path.is_empty()
                && stat_at(stage, aside)?.is_some()
                && let Ok((parent, last)) = self.tree.parent(&path)
            {
                match rename_new(stage, aside, &parent, last) {
                    Ok(()) => fs::fsync(&parent)?,
                    Err(Errno::EXIST) => drop(self.attic.take(stage, aside, &path)?),
                    Err(error) => return Err(error),
                }
            }
            return fs::unlinkat(stage, name, AtFlags::empty());
        }
        match stat_at(stage, name)? {
            None => Ok(()),
            Some(stat) if is_folder(&stat) => match fs::unlinkat(stage, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY) => self.attic.take(stage, name, b"left by a crash").map(drop),
                other => other,
            },
            Some(_) => self.attic.take(stage, name, b"left by a crash").map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::meta::of;
    use super::*;
    use event_schema::RunId;

    /// Whoever may write states times that no system takes, or attributes that none may give: its files come without, and
    /// nobody else's wait for them.
    #[test]
    fn metadata_that_nobody_may_state_are_passed_over() {
        let (data, root) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let tree = Arc::new(Tree::open(root.path(), RunId([1; 16]), true).expect("opened"));
        let stages = Arc::new(Stages::open(tree.clone(), None).expect("opened"));
        let clock = Arc::default();
        let attic = Attic::new(tree.clone(), RunId([1; 16]), None, clock, data.path().to_owned());
        let metadata = Arc::new(Metadata::new(tree.root()));
        let changer = Changer::new(tree.clone(), stages.clone(), metadata, Arc::new(attic));
        let order = |change: u32, path: &str, make| Order {
            change,
            path: path.into(),
            expected: Expected::Absent,
            displaced: Displaced::Nothing,
            make,
        };
        let good = of(0o640, (1, 5), &[]);
        let bad = [
            of(0o751, (1, 2_000_000_000), &[]),
            of(0o10_000, (1, 0), &[]),
            of(0o751, (1, 0), &[("trusted.overlay.opaque", "y")]),
            of(0o751, (1, 0), &[("security.ima", "x")]),
        ];
        let mut orders: Vec<Order> = Vec::new();
        for (nth, meta) in (0..).zip(bad.iter().chain([&good])) {
            stages.begin(nth, b"f", sync_core::merkle::tree_root(&[]), 0, None).expect("begun");
            let staged = Make::Staged { transfer: nth, meta: meta.clone() };
            orders.push(order(nth, &format!("file{nth}"), staged));
            orders.push(order(nth, &format!("folder{nth}"), Make::Folder { meta: meta.clone() }));
            let link = Make::Link { target: b"file4".to_vec(), meta: of(0, (1, 2_000_000_000), &[]) };
            orders.push(order(nth, &format!("link{nth}"), link));
        }
        let outcomes = changer.make(&orders);
        assert!(outcomes.iter().all(|o| matches!(o, Outcome::Done { .. })), "{outcomes:?}");
        assert_eq!(changer.take_trouble(), None);
        let mode = |name: &str| {
            let meta = std::fs::metadata(root.path().join(name)).expect("there");
            std::os::unix::fs::MetadataExt::mode(&meta) & 0o7777
        };
        for nth in 0..bad.len() {
            assert_eq!((mode(&format!("file{nth}")), mode(&format!("folder{nth}"))), (0o600, 0o700), "{nth}");
            let file = File::open(root.path().join(format!("file{nth}"))).expect("there");
            assert_eq!(crate::disk::xattrs(std::os::fd::AsFd::as_fd(&file)).expect("read"), []);
        }
        assert_eq!(mode("file4"), 0o640);
    }
}
