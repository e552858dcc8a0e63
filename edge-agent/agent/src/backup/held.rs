//! Versions that somebody reads: thinning leaves them alone (`edge-agent/BACKUP.md` §5).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{self, Stat};

/// Versions in use, by device and inode of their folders, so that it does not matter by which path they are reached; how
/// many times.
static HELD: Mutex<BTreeMap<(u64, u64), usize>> = Mutex::new(BTreeMap::new());

/// A version that is in use until this is dropped.
#[derive(Debug)]
pub(crate) struct Held((u64, u64));

impl Held {
    /// Of the folder that `stat` is of.
    pub(crate) fn new(stat: &Stat) -> Self {
        let folder = (stat.st_dev, stat.st_ino);
        *all().entry(folder).or_default() += 1;
        Self(folder)
    }

    /// Of the folder at a path; none if nothing is there.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        fs::stat(path).ok().map(|stat| Self::new(&stat))
    }

    /// Whether somebody uses the folder.
    pub(crate) fn is_held(stat: &Stat) -> bool {
        all().contains_key(&(stat.st_dev, stat.st_ino))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut all = all();
        if let Some(count) = all.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.0);
            }
        }
    }
}

fn all() -> MutexGuard<'static, BTreeMap<(u64, u64), usize>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}
