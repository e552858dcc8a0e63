//! What the owner of this machine allows jobs to touch. The console cannot override it.

use std::io;
use std::path::{Component, Path, PathBuf};

/// Folders that jobs may touch.
pub(crate) struct Restrictions {
    /// Where relative paths of jobs lie.
    storage: PathBuf,
    /// Resolved; empty means whatever this user may.
    allowed: Vec<PathBuf>,
}

impl Restrictions {
    /// `allowed` that do not exist are kept as they are: they may come later.
    pub(crate) fn new(storage: &Path, allowed: &[PathBuf]) -> Self {
        let allowed = allowed.iter().map(|path| resolve(path).unwrap_or_else(|_| path.clone())).collect();
        Self { storage: storage.to_owned(), allowed }
    }

    /// Whether a job may work on `path`: no `..`, and, if the owner named folders, below one of them
    /// after all symlinks on the way. What lies deeper is walked without following any.
    pub(crate) fn allow(&self, path: &[u8]) -> bool {
        let Some(path) = to_path(path) else { return false };
        let path = self.storage.join(path);
        if path.components().any(|part| matches!(part, Component::ParentDir)) {
            return false;
        }
        if self.allowed.is_empty() {
            return true;
        }
        resolve(&path).is_ok_and(|real| self.allowed.iter().any(|folder| real.starts_with(folder)))
    }
}

/// The path with symlinks resolved as far as it exists.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A dangling symlink would be followed by whoever makes the folder.
            if path.symlink_metadata().is_ok() {
                return Err(error);
            }
            match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => Ok(resolve(parent)?.join(name)),
                _ => Err(error),
            }
        }
        resolved => resolved,
    }
}

#[cfg(unix)]
pub(crate) fn to_path(bytes: &[u8]) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    (!bytes.contains(&0)).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(bytes)))
}

#[cfg(not(unix))]
pub(crate) fn to_path(bytes: &[u8]) -> Option<PathBuf> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).map(PathBuf::from)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_below_what_the_owner_named() {
        let root = tempfile::tempdir().expect("a folder");
        let at = |path: &str| root.path().join(path);
        for folder in ["storage", "srv/media", "etc"] {
            fs::create_dir_all(at(folder)).expect("made");
        }
        symlink(at("etc"), at("srv/out")).expect("linked");
        symlink(at("nowhere"), at("srv/dangling")).expect("linked");
        symlink(at("srv"), at("alias")).expect("linked");
        let bytes = |path: &Path| path.as_os_str().as_encoded_bytes().to_vec();
        let open = Restrictions::new(&at("storage"), &[]);
        assert!(open.allow(b"in") && open.allow(b"") && open.allow(&bytes(&at("etc"))));
        assert!(!open.allow(b"../etc") && !open.allow(b"a/../../etc") && !open.allow(b"a\0b"));
        let narrow = Restrictions::new(&at("storage"), &[at("srv")]);
        for (path, allowed) in [
            ("srv", true),
            ("srv/media", true),
            ("srv/media/new/deep", true),
            ("alias/media", true),
            ("srv/out", false),
            ("srv/out/passwd", false),
            ("srv/dangling", false),
            ("srv/dangling/x", false),
            ("srvx", false),
            ("etc", false),
        ] {
            assert_eq!(narrow.allow(&bytes(&at(path))), allowed, "{path}");
        }
        assert!(!narrow.allow(b"in"), "the storage folder is not below /srv");
        assert!(Restrictions::new(&at("storage"), &[at("storage")]).allow(b"in"));
    }
}
