//! All indexes of an agent: one per folder, found by the folder's path, and the look-up of a content in
//! all of them (§2.3).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use sync_core::merkle::Hash;

use crate::index::{Counters, Index, IndexError};

/// An index that was not asked for by its path for so long is forgotten at the next start: its job is
/// gone, or it is soon made again.
const UNUSED: Duration = Duration::from_secs(90 * 24 * 3600);

/// In the folder of an index: the path of the folder that it is of.
const ROOT: &str = "root";

/// A file with a content that was asked for, as of when it was indexed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The folder.
    pub root: PathBuf,
    /// Path inside of it.
    pub path: Vec<u8>,
    /// What was known of it: a reader can see whether it changed since.
    pub record: crate::Record,
}

impl Place {
    /// Where the file is.
    pub fn file(&self) -> PathBuf {
        self.root.join(OsStr::from_bytes(&self.path))
    }
}

/// How an index stands, for people and programs.
#[derive(Clone, Debug)]
pub struct IndexStatus {
    /// The folder.
    pub root: PathBuf,
    /// What is in the index.
    pub counters: Counters,
    /// Whether a scan ever came to its end.
    pub complete: bool,
    /// Entries looked at, files hashed and bytes read for that, by a scan that is going on.
    pub scanning: Option<(u64, u64, u64)>,
}

/// See the module. Clones share everything.
#[derive(Clone)]
pub struct Catalog {
    folder: PathBuf,
    open: Arc<Mutex<BTreeMap<PathBuf, Arc<Index>>>>,
}

impl Catalog {
    /// The indexes that lie in `folder`, which is made if need be. One that cannot be opened is passed
    /// over; it is made anew when it is asked for.
    ///
    /// # Errors
    /// If `folder` cannot be used.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let catalog = Self { folder: folder.to_owned(), open: Arc::default() };
        for item in fs::read_dir(folder)? {
            let path = item?.path();
            let root = match fs::read(path.join(ROOT)) {
                Ok(root) => PathBuf::from(OsStr::from_bytes(&root)),
                Err(_) => continue,
            };
            let used = fs::metadata(path.join(ROOT)).and_then(|stat| stat.modified());
            if used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age > UNUSED)) {
                tracing::info!(root = %root.display(), "an index that nobody used for long is forgotten");
                fs::remove_dir_all(&path)?;
            } else if catalog.place_of(&root) == path
                && let Err(error) = catalog.index_at(&root, false)
            {
                tracing::warn!(root = %root.display(), %error, "an index cannot be opened");
            }
        }
        Ok(catalog)
    }

    /// The index of the folder `root`, as its owner writes the path. One that is new is empty until it is
    /// scanned.
    ///
    /// # Errors
    /// If its files cannot be used.
    pub fn index(&self, root: &Path) -> Result<Arc<Index>, IndexError> {
        self.index_at(root, true)
    }

    fn index_at(&self, root: &Path, used: bool) -> Result<Arc<Index>, IndexError> {
        let mut open = self.opened();
        let place = self.place_of(root);
        let index = match open.get(root) {
            Some(index) => index.clone(),
            None => Arc::new(Index::open(&place, root)?),
        };
        if used {
            // Its time tells when the index was last used.
            fs::write(place.join(ROOT), root.as_os_str().as_bytes())?;
        }
        open.insert(root.to_owned(), index.clone());
        Ok(index)
    }

    /// How all indexes stand.
    pub fn status(&self) -> Vec<IndexStatus> {
        let indexes: Vec<_> = self.opened().values().cloned().collect();
        let of = |index: Arc<Index>| {
            let load = |counter: &portable_atomic::AtomicU64| counter.load(Ordering::Relaxed);
            IndexStatus {
                root: index.root().to_owned(),
                counters: index.counters().unwrap_or_default(),
                complete: index.is_complete().unwrap_or_default(),
                scanning: index.activity().map(|p| (load(&p.entries), load(&p.hashed), load(&p.bytes))),
            }
        };
        indexes.into_iter().map(of).collect()
    }

    /// Folders that have an index.
    pub fn roots(&self) -> Vec<PathBuf> {
        self.opened().keys().cloned().collect()
    }

    /// Forgets the index of a folder. Who has it open may use it on; its files are gone.
    ///
    /// # Errors
    /// If its files cannot be removed.
    pub fn forget(&self, root: &Path) -> io::Result<()> {
        let mut open = self.opened();
        open.remove(root);
        match fs::remove_dir_all(self.place_of(root)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Files anywhere on the agent that had this content when they were indexed. Who reads one verifies
    /// its blocks.
    pub fn find(&self, content: &Hash, size: u64) -> Vec<Place> {
        let indexes: Vec<_> = self.opened().values().cloned().collect();
        let mut places = Vec::new();
        for index in indexes {
            match index.find_content(content, size) {
                Ok(entries) => places.extend(entries.into_iter().map(|entry| Place {
                    root: index.root().to_owned(),
                    path: entry.path,
                    record: entry.record,
                })),
                Err(error) => {
                    tracing::warn!(root = %index.root().display(), %error, "an index cannot be read");
                }
            }
        }
        places
    }

    fn place_of(&self, root: &Path) -> PathBuf {
        let hash = Sha256::digest(root.as_os_str().as_bytes());
        let name: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(name)
    }

    fn opened(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<Index>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use sync_core::merkle::block_hash;

    use super::*;
    use crate::scan::{ScanOptions, Scope, Unobserved, scan};

    #[test]
    fn a_file_of_another_folder_is_found_by_its_content() {
        let data = tempfile::tempdir().expect("a folder");
        let of = |name: &str| data.path().join(name);
        let open = || Catalog::open(&of("indexes")).expect("opened");
        let catalog = open();
        for name in ["one", "two"] {
            fs::create_dir_all(of(name).join("sub")).expect("a folder");
            fs::write(of(name).join("sub/both"), b"the same").expect("a file");
            fs::write(of(name).join("own"), name).expect("a file");
            let index = catalog.index(&of(name)).expect("opened");
            let (options, progress, stop) = (ScanOptions::default(), Arc::default(), Arc::default());
            scan(&index, &options, &Scope::All, &mut Unobserved, &progress, &stop).expect("scanned");
        }
        let find = |catalog: &Catalog, bytes: &[u8]| {
            let places = catalog.find(&block_hash(bytes), bytes.len() as u64);
            places.iter().map(Place::file).collect::<Vec<_>>()
        };
        assert_eq!(find(&catalog, b"the same"), [of("one/sub/both"), of("two/sub/both")]);
        assert_eq!(find(&catalog, b"two"), [of("two/own")]);
        drop(catalog);
        let catalog = open();
        assert_eq!(catalog.roots(), [of("one"), of("two")]);
        assert_eq!(find(&catalog, b"one"), [of("one/own")], "after a restart");
        catalog.forget(&of("one")).expect("forgotten");
        assert!(find(&catalog, b"one").is_empty());
        let status = &catalog.status()[0];
        assert_eq!((status.counters.files, status.complete, status.scanning), (2, true, None));
        let place = catalog.place_of(&of("two"));
        drop(catalog);
        assert_eq!(open().roots(), [of("two")]);
        let long_ago = std::time::SystemTime::now() - 2 * UNUSED;
        let file = fs::File::options().write(true).open(place.join(ROOT)).expect("there");
        file.set_modified(long_ago).expect("set");
        assert!(open().roots().is_empty() && !place.exists(), "not used for long");
    }
}
