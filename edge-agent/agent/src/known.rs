//! The folders of this agent's jobs, the latest first: where content may be that another job wants, so that it is not
//! fetched again. Kept in `known-folders` in the data folder; what cannot be read or written costs transfers only.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use event_schema::{decode_exact, encode};

/// Folders that are remembered: each is walked when something is missing.
const FOLDERS_MAX: usize = 32;

/// Version of the file, its first byte.
const VERSION: u8 = 1;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct KnownFolders {
    /// None if the owner does not want one job to look into another's folder.
    file: Option<PathBuf>,
    /// One writer at a time.
    writing: Arc<Mutex<()>>,
}

impl KnownFolders {
    /// Of the agent with this data folder; `wanted`: its owner lets jobs share what is there.
    pub(crate) fn new(data: &Path, wanted: bool) -> Self {
        let file = data.join("known-folders");
        // Once it was called like the folder that relative folders of jobs lie in if nobody says where, and was in its way.
        let old = data.join("folders");
        if old.symlink_metadata().is_ok_and(|old| old.is_file())
            && let Err(error) = std::fs::rename(&old, &file)
        {
            tracing::warn!(file = %old.display(), %error, "relative folders of jobs have no place while this file is there");
        }
        Self { file: wanted.then_some(file), writing: Arc::default() }
    }

    fn read(&self) -> Vec<Vec<u8>> {
        let bytes = self.file.as_ref().and_then(|file| std::fs::read(file).ok()).unwrap_or_default();
        match bytes.split_first() {
            Some((&VERSION, body)) => decode_exact("folders", body).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// All but this one and what is in it: that is looked through anyway.
    pub(crate) fn besides(&self, path: &Path) -> Vec<PathBuf> {
        let known = self.read().into_iter().filter_map(|bytes| crate::restrict::to_path(&bytes));
        known.filter(|known| !known.starts_with(path)).take(FOLDERS_MAX).collect()
    }

    /// A job works on this folder.
    pub(crate) fn note(&self, path: &Path) {
        let Some(file) = &self.file else { return };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.read();
        let path = path.as_os_str().as_encoded_bytes();
        if known.first().is_some_and(|first| first == path) {
            return;
        }
        known.retain(|other| other != path);
        known.insert(0, path.to_vec());
        known.truncate(FOLDERS_MAX);
        let bytes = [&[VERSION][..], &encode(&known)].concat();
        if let Err(error) = crate::folder::write_private(file, &bytes) {
            tracing::warn!(%error, "cannot remember a job's folder");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_come_first_and_damage_is_nothing() {
        let data = tempfile::tempdir().expect("a folder");
        let known = KnownFolders::new(data.path(), true);
        assert_eq!(known.besides(Path::new("/a")), [] as [PathBuf; 0]);
        for path in ["/a", "/b", "/a", "/a/deep"] {
            known.note(Path::new(path));
        }
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(known.besides(Path::new("/c")), paths(&["/a/deep", "/a", "/b"]));
        assert_eq!(known.besides(Path::new("/a")), paths(&["/b"]));
        (0..100).for_each(|n| known.note(Path::new(&format!("/n{n}"))));
        assert_eq!(known.besides(Path::new("/c")).len(), FOLDERS_MAX);
        std::fs::write(data.path().join("known-folders"), b"\x01\xff\xff").expect("written");
        assert_eq!(known.besides(Path::new("/c")), [] as [PathBuf; 0]);
        known.note(Path::new("/a"));
        assert_eq!(known.besides(Path::new("/c")), paths(&["/a"]));
        assert_eq!(KnownFolders::new(data.path(), false).besides(Path::new("/c")), [] as [PathBuf; 0]);
    }

    #[test]
    fn the_place_of_relative_folders_is_left_free() {
        let (data, old) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let known = KnownFolders::new(data.path(), true);
        known.note(Path::new("/a"));
        std::fs::create_dir(data.path().join("folders")).expect("free");
        known.note(Path::new("/b"));
        assert_eq!(known.besides(Path::new("/c")), [Path::new("/b"), Path::new("/a")]);
        // What an earlier release left there.
        std::fs::rename(data.path().join("known-folders"), old.path().join("folders")).expect("moved");
        let known = KnownFolders::new(old.path(), true);
        assert_eq!(known.besides(Path::new("/c")), [Path::new("/b"), Path::new("/a")]);
        std::fs::create_dir(old.path().join("folders")).expect("free");
        // And a folder stays where it is.
        KnownFolders::new(old.path(), true);
        assert!(old.path().join("folders").is_dir());
    }
}
