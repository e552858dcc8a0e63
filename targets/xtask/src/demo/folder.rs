//! Where the demonstration keeps its data, and that it is gone afterwards.
//!
//! Owns the folder (a temporary one below the target folder, or the one the user wants kept), the names in it and
//! its removal. The tree it holds is `tree`'s.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, test_kill_process};
use walkdir::WalkDir;

/// The folder of one demonstration; dropped, it is removed unless it is to be kept.
pub(crate) struct Folder {
    path: PathBuf,
    keep: bool,
    /// The parent, if it was made for us: it goes as well.
    made: Option<PathBuf>,
}

impl Folder {
    /// A folder in `parent` that is removed afterwards. What demonstrations that were killed left there goes as
    /// well.
    pub(crate) fn temporary(parent: &Path) -> Result<Self> {
        let made = (!parent.exists()).then(|| parent.to_owned());
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        let parent = parent.canonicalize()?;
        for entry in fs::read_dir(&parent)?.filter_map(Result::ok) {
            if owner(&entry.file_name().to_string_lossy())
                .is_some_and(|owner| test_kill_process(owner).is_err())
            {
                remove(&entry.path());
            }
        }
        let path = parent.join(format!("run-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { path, keep: false, made })
    }

    /// The user's folder, which must be new or empty: nothing of theirs is written over.
    pub(crate) fn kept(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        let path = path.canonicalize()?;
        ensure!(fs::read_dir(&path)?.next().is_none(), "{} is not empty", path.display());
        Ok(Self { path, keep: true, made: None })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it, made if it isn't there.
    pub(crate) fn make(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }

    /// Fails if the disk has no room for `bytes` more.
    pub(crate) fn has_room(&self, bytes: u64) -> Result<()> {
        let disk = rustix::fs::statvfs(&self.path).context("asking for free space")?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let [needed, free] = [bytes, free].map(|n| n.div_ceil(1_000_000));
        ensure!(
            needed <= free,
            "{} has {free} MB free, the copies need {needed} MB; choose another place with --keep-data",
            self.path.display()
        );
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.path);
            if let Some(parent) = &self.made {
                // Only if nobody else's is left in it.
                let _ = fs::remove_dir(parent);
            }
        }
    }
}

/// The process that a folder's name tells.
fn owner(name: &str) -> Option<Pid> {
    Pid::from_raw(name.strip_prefix("run-")?.parse().ok()?)
}

/// Removes all of it, also folders that their modes protect.
fn remove(path: &Path) {
    if fs::remove_dir_all(path).is_ok() {
        return;
    }
    // Parents come before their children: each folder can be opened when it is its turn.
    for entry in WalkDir::new(path).into_iter().filter_map(Result::ok).filter(|e| e.file_type().is_dir()) {
        let _ = fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700));
    }
    if let Err(error) = fs::remove_dir_all(path) {
        // Not eprintln: a closed terminal must not turn the removal into a panic.
        let _ = writeln!(std::io::stderr(), "could not remove {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_folder_goes_and_takes_its_predecessors_along() {
        let target = tempfile::tempdir().unwrap();
        // No process has this number: it is above the kernel's limit.
        let parent = target.path().join("demo");
        let stale = parent.join("run-2000000000/inner");
        fs::create_dir_all(&stale).unwrap();
        let other = parent.join("notes");
        fs::create_dir_all(&other).unwrap();
        let folder = Folder::temporary(&parent).unwrap();
        assert!(!stale.exists() && other.exists());
        let inner = folder.make("a").unwrap();
        fs::write(inner.join("file"), "x").unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o500)).unwrap();
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists() && parent.exists());
        let new = target.path().join("new");
        drop(Folder::temporary(&new).unwrap());
        assert!(!new.exists());
    }

    #[test]
    fn a_kept_folder_stays_and_must_be_empty() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let folder = Folder::kept(&path).unwrap();
        folder.make("control").unwrap();
        drop(folder);
        assert!(path.join("control").exists());
        assert!(Folder::kept(&path).is_err());
    }
}
