//! Reading blocks back for others: each is checked against the manifest before a byte of it leaves,
//! so that a file changed after indexing is noticed here and not blamed on us by the receiver.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use agent_proto::limits::BLOCK_LEN;
use rustix::fs::{self, SeekFrom};
use rustix::io::Errno;
use sync_core::manifest::{Kind, blocks_of};
use sync_core::merkle::block_hash;

use super::cache::Cache;
use super::folder::Folder;
use super::manifest::{BlockInfo, ManifestFile};
use super::recent::Recent;
use crate::memory::share;

/// Blocks kept in memory: pieces of a block leave one after the other, and several receivers ask for
/// the same block at about the same time. Just above what is given to the transport at a time (`SENDING`).
const BYTES_CACHED: usize = 32 << 20;

/// Bytes read at a time where nothing but zeros is expected.
const ZEROS: u64 = BLOCK_LEN as u64;

/// Files kept open. Blocks of a large file are read in a row; a handful of receivers read elsewhere.
const FILES_OPEN: usize = 64;

/// Why a block cannot be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadError {
    /// There is no such block, or not yet.
    NotHere,
    /// The file is not what it was.
    Changed,
    /// The system says no.
    Io(Errno),
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotHere => f.write_str("the block is not here"),
            Self::Changed => f.write_str("the file is not what it was when it was indexed"),
            Self::Io(e) => e.fmt(f),
        }
    }
}

/// Reads verified blocks of a manifest's files below one folder.
pub(crate) struct BlockReader {
    folder: Folder,
    manifest: Arc<ManifestFile>,
    blocks: Mutex<Recent>,
    files: Mutex<Cache<u64, Arc<File>>>,
}

impl BlockReader {
    /// For a source at `path`: the folder that was indexed, or the single file.
    pub(crate) fn for_source(path: &Path, manifest: Arc<ManifestFile>) -> rustix::io::Result<Self> {
        let whole_folder = manifest.entry(0).is_ok_and(|e| e.path.is_empty());
        let folder = match (whole_folder, path.parent()) {
            (false, Some(parent)) if !parent.as_os_str().is_empty() => Folder::open(parent)?,
            (false, _) => Folder::open(Path::new("."))?,
            (true, _) => Folder::open(path)?,
        };
        Ok(Self::new(folder, manifest))
    }

    /// For a destination folder in which everything is in place.
    pub(crate) fn below(root: &Path, manifest: Arc<ManifestFile>) -> rustix::io::Result<Self> {
        Ok(Self::new(Folder::open(root)?, manifest))
    }

    /// For a folder that is open.
    pub(crate) fn new(folder: Folder, manifest: Arc<ManifestFile>) -> Self {
        let (blocks, files) =
            (Mutex::new(Recent::new(share(BYTES_CACHED))), Mutex::new(Cache::new(FILES_OPEN)));
        Self { folder, manifest, blocks, files }
    }

    /// The folder that is read.
    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// A content block, whole and verified.
    pub(crate) fn read(&self, index: u64) -> Result<Arc<[u8]>, ReadError> {
        if let Some(block) = self.kept(index) {
            return Ok(block);
        }
        let info = self.manifest.block(index).map_err(ReadError::Io)?.ok_or(ReadError::NotHere)?;
        let cached = lock(&self.files).get(&info.entry);
        let block = match cached {
            Some(file) => read_block(&file, &info),
            None => self.open(info.entry).and_then(|file| read_block(&file, &info)),
        };
        let block = match block {
            // A file that was replaced is worth a second look under its name.
            Err(ReadError::Changed) => {
                lock(&self.files).remove(&info.entry);
                self.open(info.entry).and_then(|file| read_block(&file, &info))?
            }
            other => other?,
        };
        self.keep(index, block.clone());
        Ok(block)
    }

    /// A block that is in memory.
    pub(super) fn kept(&self, index: u64) -> Option<Arc<[u8]>> {
        lock(&self.blocks).get(index)
    }

    /// Keeps a block that was just verified, since others will ask for it soon.
    pub(super) fn keep(&self, index: u64, block: Arc<[u8]>) {
        lock(&self.blocks).insert(index, block);
    }

    fn open(&self, entry: u64) -> Result<Arc<File>, ReadError> {
        let e = self.manifest.entry(entry).map_err(ReadError::Io)?;
        let file = match self.folder.open_file(&e.path) {
            Ok(file) => Arc::new(file),
            Err(Errno::NOENT | Errno::INVAL | Errno::LOOP | Errno::NOTDIR) => return Err(ReadError::Changed),
            Err(e) => return Err(ReadError::Io(e)),
        };
        lock(&self.files).insert(entry, file.clone());
        Ok(file)
    }
}

/// Reads one block and checks it.
pub(crate) fn read_block(file: &File, info: &BlockInfo) -> Result<Arc<[u8]>, ReadError> {
    let mut block = vec![0; info.len as usize];
    match file.read_exact_at(&mut block, info.offset) {
        Ok(()) if block_hash(&block) == info.hash => Ok(block.into()),
        Ok(()) => Err(ReadError::Changed),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(ReadError::Changed),
        Err(e) => Err(ReadError::Io(Errno::from_io_error(&e).unwrap_or(Errno::IO))),
    }
}

/// A poisoned lock means a panic elsewhere while a cache was touched; caches hold nothing that could
/// be half done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Whether nothing but zeros is in those blocks of a file that its manifest has no hash for.
pub(crate) fn holes_hold_nothing(file: &File, kind: &Kind) -> bool {
    let mut next = 0;
    let len = u64::from(BLOCK_LEN);
    let last = blocks_of(kind.size());
    for stretch in kind.file_blocks().chain(std::iter::once(last..last)) {
        let (mut at, end) = (next * len, (stretch.start * len).min(kind.size()));
        while at < end {
            // A file system that cannot tell has data everywhere.
            at = match fs::seek(file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => end,
                Err(_) => at,
            };
            if at >= end {
                break;
            }
            let mut bytes = vec![0; (end - at).min(ZEROS) as usize];
            if file.read_exact_at(&mut bytes, at).is_err() || bytes.iter().any(|byte| *byte != 0) {
                return false;
            }
            at += bytes.len() as u64;
        }
        next = stretch.end;
    }
    true
}
