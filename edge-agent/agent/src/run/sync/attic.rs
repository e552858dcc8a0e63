//! Where displaced files go: the folder's archive, a group for each run and day, kept for some days and within a limit of
//! bytes (SYNC.md §7; `archive.rs` deletes what is over).

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use event_schema::{RunId, Timestamp};
use rustix::fs::{self, AtFlags, Dir, Mode};
use rustix::io::{Errno, Result};
use sha2::{Digest, Sha256};

use super::tree::{Tree, is_folder, rename_new, stat_at};
use crate::archive::{self, Archive};
use crate::clock::FleetClock;
use crate::disk::Folder;

/// Milliseconds of a day.
const DAY: u64 = 24 * 3600 * 1000;

/// Further names tried for one that is taken: versions of one file that were displaced on one day.
const VERSIONS: u32 = 10_000;

/// How long and how much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keep {
    /// Days; none: for ever.
    pub(crate) days: Option<u32>,
    /// Bytes; what was displaced today stays even so. None: no limit.
    pub(crate) bytes: Option<u64>,
}

/// The archive of one job's folder.
pub(super) struct Attic {
    tree: Arc<Tree>,
    run: RunId,
    keep: Option<Keep>,
    clock: Arc<FleetClock>,
    data: PathBuf,
    /// The group that was begun last.
    begun: Mutex<Option<String>>,
}

impl Attic {
    pub(super) fn new(
        tree: Arc<Tree>,
        run: RunId,
        keep: Option<Keep>,
        clock: Arc<FleetClock>,
        data: PathBuf,
    ) -> Self {
        Self { tree, run, keep, clock, data, begun: Mutex::default() }
    }

    fn prefix(&self) -> String {
        format!("sync-{}-", self.run)
    }

    /// Today's group, which is there on return.
    fn group(&self) -> Result<String> {
        let now = self.clock.now().0;
        let group = format!("{}{:06}", self.prefix(), now / DAY);
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.as_ref() != Some(&group) {
            let folder = Folder::open(self.tree.path())?;
            let until = match self.keep {
                Some(Keep { days: None, .. }) => Timestamp(u64::MAX),
                Some(Keep { days: Some(days), .. }) => {
                    Timestamp(now.saturating_add(u64::from(days).saturating_mul(DAY)))
                }
                None => Timestamp(now.saturating_add(DAY)),
            };
            Archive::of(&folder).begin(&group, until)?;
            archive::register(&self.data, self.tree.path())
                .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
            *begun = Some(group.clone());
        }
        Ok(group)
    }

    /// Moves what is at a name in a folder to where the path's displaced versions lie; says where that is, so that it can
    /// be taken back.
    ///
    /// # Errors
    /// Whatever the system says; nothing is moved then.
    pub(super) fn take(&self, from: impl AsFd, name: &[u8], path: &[u8]) -> Result<(Arc<OwnedFd>, Vec<u8>)> {
        let group = self.group()?;
        let top = [b".flotilla/archive/", group.as_bytes()].concat();
        let mut folder = match self.tree.walk(&top) {
            Err(Errno::NOENT) => {
                // Somebody cleared it away meanwhile.
                *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = None;
                self.group()?;
                self.tree.walk(&top)?
            }
            walked => walked?,
        };
        let mut names = path.split(|&b| b == b'/').peekable();
        while let Some(part) = names.next() {
            if names.peek().is_some() {
                folder = enter(&folder, part)?;
                continue;
            }
            for version in 0..VERSIONS {
                let new = versioned(part, version);
                match rename_new(&from, name, &folder, &new) {
                    Ok(()) => return Ok((folder, new)),
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Err(Errno::EXIST)
    }

    /// Whether nothing that is displaced is to be kept.
    pub(super) fn keeps_nothing(&self) -> bool {
        self.keep.is_none()
    }

    /// Deletes the oldest groups of this job until the rest is within the limit; today's stays.
    pub(super) fn trim(&self) {
        let Some(limit) = self.keep.and_then(|keep| keep.bytes) else { return };
        if let Err(error) = self.try_trim(limit) {
            tracing::warn!(folder = %self.tree.path().display(), %error, "an archive cannot be kept within its limit");
        }
    }

    fn try_trim(&self, limit: u64) -> Result<()> {
        let archive = match self.tree.walk(b".flotilla/archive") {
            Err(Errno::NOENT) => return Ok(()),
            walked => walked?,
        };
        let prefix = self.prefix();
        let mut groups: Vec<String> = Vec::new();
        for item in Dir::read_from(&archive)? {
            let name = item?.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix) && !name.contains('.') {
                groups.push(name);
            }
        }
        groups.sort();
        groups.reverse();
        let mut total = 0;
        for (i, group) in groups.iter().enumerate() {
            total += bytes_below(&archive, group.as_bytes())?;
            if i > 0 && total > limit {
                tracing::info!(folder = %self.tree.path().display(), group, "the archive's limit: the oldest are deleted");
                archive::remove_tree(&archive, group.as_bytes())?;
                fs::unlinkat(&archive, format!("{group}.until").as_str(), AtFlags::empty())?;
            }
        }
        Ok(())
    }
}

/// The `version`th name for what is displaced; what would be too long is named by its hash.
fn versioned(name: &[u8], version: u32) -> Vec<u8> {
    if version == 0 {
        return name.to_vec();
    }
    let mark = format!("~{version}");
    if name.len() + mark.len() <= 255 {
        return [name, mark.as_bytes()].concat();
    }
    let hash = Sha256::digest(name);
    let hex: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}{mark}").into_bytes()
}

/// Opens a folder in the archive, which is made if need be; beside a file of this name it gets another.
fn enter(folder: &OwnedFd, name: &[u8]) -> Result<Arc<OwnedFd>> {
    for version in 0..VERSIONS {
        let name = versioned(name, version);
        match fs::mkdirat(folder, name.as_slice(), Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        match open_folder(folder, &name) {
            Ok(folder) => return Ok(Arc::new(folder)),
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EXIST)
}

fn open_folder(folder: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = fs::OFlags::DIRECTORY | fs::OFlags::NOFOLLOW | fs::OFlags::RDONLY | fs::OFlags::CLOEXEC;
    fs::openat(folder, name, flags, Mode::empty())
}

fn bytes_below(folder: &OwnedFd, name: &[u8]) -> Result<u64> {
    let Some(stat) = stat_at(folder, name)? else { return Ok(0) };
    if !is_folder(&stat) {
        return Ok(stat.st_size as u64);
    }
    let inner = open_folder(folder, name)?;
    let mut total = 0;
    for item in Dir::read_from(&inner)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name != b"." && name != b".." {
            total += bytes_below(&inner, name)?;
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_stand_beside_each_other_and_the_oldest_days_go() {
        let (data, root) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let run = RunId([1; 16]);
        let tree = Arc::new(Tree::open(root.path(), run, true).expect("opened"));
        let keep = Some(Keep { days: Some(3), bytes: Some(10) });
        let attic = Attic::new(tree.clone(), run, keep, Arc::default(), data.path().to_owned());
        let take = |path: &str, text: &str| {
            let at = root.path().join("x");
            std::fs::write(at, text).expect("written");
            let (folder, name) = attic.take(tree.root(), b"x", path.as_bytes()).expect("taken");
            super::super::tree::open_file_at(folder, &name).expect("there");
            String::from_utf8(name).expect("text")
        };
        assert_eq!(take("a", "one"), "a");
        assert_eq!(take("a", "two"), "a~1");
        assert_eq!(take("a/b", "below what is a file there"), "b");
        let long = "l".repeat(255);
        assert_eq!(take(&long, "1"), long);
        assert_eq!(take(&long, "2").len(), 34);
        let archive = root.path().join(".flotilla/archive");
        let today = attic.group().expect("there");
        for (day, bytes) in [(1, 4), (2, 4)] {
            let name = format!("{}{day:06}", attic.prefix());
            std::fs::create_dir(archive.join(&name)).expect("made");
            std::fs::write(archive.join(&name).join("f"), vec![0; bytes]).expect("written");
            std::fs::write(archive.join(format!("{name}.until")), "1\n").expect("written");
        }
        attic.trim();
        let left = std::fs::read_dir(&archive).expect("there").count();
        assert_eq!(left, 2, "today's is more than the limit, and stays");
        assert!(archive.join(today).join("a~1").exists());
    }
}
