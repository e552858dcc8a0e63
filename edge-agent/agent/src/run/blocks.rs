//! The blocks of one run as the transport sees them: read piece by piece when sent, put together from
//! pieces when they arrive.
//!
//! Both sides are called by the transport's driver with its lock held: memory and cached files only. A
//! block goes on to the run's task when it is whole (`assembly.rs`); nothing here is checked yet.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use agent_proto::limits::BLOCK_LEN;
use agent_proto::peer::BlockAddress;
use sync_core::{BlockMap, manifest_block_len};
use tokio::sync::mpsc;
use utp2_tokio::{BlockSink, BlockSource, Handle};

use super::assembly::{Held, Inboxes};
use crate::disk::{BlockReader, ManifestFile, ReadError, Staging};

/// Where the content is.
pub(super) enum Content {
    /// All in its place: at the source, or where the run was completed before.
    Placed {
        /// What it is.
        manifest: Arc<ManifestFile>,
        /// Reads it.
        reader: Box<BlockReader>,
    },
    /// Coming in.
    Staged {
        /// What it will be.
        manifest: Arc<ManifestFile>,
        /// What is there of it.
        staging: Arc<Staging>,
    },
}

impl Content {
    pub(super) fn manifest(&self) -> &Arc<ManifestFile> {
        match self {
            Self::Placed { manifest, .. } | Self::Staged { manifest, .. } => manifest,
        }
    }

    /// A verified block.
    pub(super) fn read(&self, block: u64) -> Result<Arc<[u8]>, ReadError> {
        match self {
            Self::Placed { reader, .. } => reader.read(block),
            Self::Staged { staging, .. } => staging.read(block),
        }
    }

    pub(super) fn staging(&self) -> Option<&Arc<Staging>> {
        match self {
            Self::Staged { staging, .. } => Some(staging),
            Self::Placed { .. } => None,
        }
    }
}

/// The encoded manifest as far as it is here.
struct ManifestPart {
    file: Arc<File>,
    len: u64,
    have: BlockMap,
}

/// A block that came in whole.
pub(super) struct Arrived {
    /// From where.
    pub(super) handle: Handle,
    /// Which.
    pub(super) address: BlockAddress,
    /// Its bytes, not checked.
    pub(super) data: Arc<[u8]>,
    _held: Held,
}

/// One run's blocks.
pub(super) struct Blocks {
    corrupt: bool,
    manifest: Mutex<Option<ManifestPart>>,
    content: OnceLock<Content>,
    inboxes: Inboxes,
    arrivals: mpsc::UnboundedSender<Arrived>,
}

impl Blocks {
    /// `corrupt` makes it lie about content, for tests.
    pub(super) fn new(corrupt: bool) -> (Arc<Self>, mpsc::UnboundedReceiver<Arrived>) {
        let (arrivals, receiver) = mpsc::unbounded_channel();
        let blocks = Self {
            corrupt,
            manifest: Mutex::default(),
            content: OnceLock::new(),
            inboxes: Inboxes::default(),
            arrivals,
        };
        (Arc::new(blocks), receiver)
    }

    /// Takes blocks from a connection from now on.
    pub(super) fn admit(&self, handle: Handle) {
        self.inboxes.admit(handle);
    }

    /// Takes nothing more from a connection and forgets what came in part.
    pub(super) fn forget(&self, handle: Handle) {
        self.inboxes.forget(handle);
    }

    /// A block that was whole is wanted again from the same peer.
    pub(super) fn expect_again(&self, handle: Handle, address: BlockAddress) {
        self.inboxes.expect_again(handle, address.0);
    }

    /// Forgets blocks that will never be whole.
    pub(super) fn sweep(&self) {
        self.inboxes.sweep();
    }

    /// Whether it is known how long the manifest will be.
    pub(super) fn expects_manifest(&self) -> bool {
        lock(&self.manifest).is_some()
    }

    /// The manifest will have so many bytes and come together in this file.
    pub(super) fn expect_manifest(&self, len: u64, file: File) {
        let have = BlockMap::new(sync_core::manifest::blocks_of(len));
        *lock(&self.manifest) = Some(ManifestPart { file: Arc::new(file), len, have });
    }

    /// Keeps a verified block of the manifest.
    pub(super) fn keep_manifest_block(&self, block: u64, data: &[u8]) -> io::Result<()> {
        let mut manifest = lock(&self.manifest);
        let Some(part) = manifest.as_mut() else { return Ok(()) };
        part.file.write_all_at(data, block * u64::from(BLOCK_LEN))?;
        part.have.insert(block);
        Ok(())
    }

    /// This file holds the whole manifest.
    pub(super) fn set_manifest(&self, len: u64, file: Arc<File>) {
        let have = BlockMap::full(sync_core::manifest::blocks_of(len));
        *lock(&self.manifest) = Some(ManifestPart { file, len, have });
    }

    /// The file with the encoded manifest, if every block of it is here.
    pub(super) fn manifest_file(&self) -> Option<Arc<File>> {
        let manifest = lock(&self.manifest);
        manifest.as_ref().filter(|part| part.have.is_complete()).map(|part| part.file.clone())
    }

    /// The content is known from now on; once.
    pub(super) fn set_content(&self, content: Content) {
        assert!(self.content.set(content).is_ok(), "a run has one content");
    }

    pub(super) fn content(&self) -> Option<&Content> {
        self.content.get()
    }

    /// Bytes of a block; `None` if there is no such block.
    pub(super) fn len_of(&self, address: BlockAddress) -> Option<u32> {
        if address.is_manifest() {
            let len = lock(&self.manifest).as_ref()?.len;
            Some(manifest_block_len(len, address.index())).filter(|&len| len > 0)
        } else {
            Some(self.content()?.manifest().place(address.index()).ok()??.len)
        }
    }
}

impl BlockSource for Blocks {
    fn read(&self, _: Handle, tag: u64, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        let address = BlockAddress(tag);
        if address.is_manifest() {
            let (file, block) = {
                let manifest = lock(&self.manifest);
                let part = manifest.as_ref().filter(|part| part.have.contains(address.index()));
                (part.ok_or(io::ErrorKind::NotFound)?.file.clone(), address.index())
            };
            return file.read_exact_at(buf, block * u64::from(BLOCK_LEN) + u64::from(offset));
        }
        let read = self.content().map(|c| c.read(address.index()));
        let read = read.transpose().map_err(|e| io::Error::other(e.to_string()))?;
        let block = read.ok_or(io::ErrorKind::NotFound)?;
        let start = offset as usize;
        buf.copy_from_slice(block.get(start..start + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        if self.corrupt && offset == 0 {
            buf[0] ^= 0xff;
        }
        Ok(())
    }
}

impl BlockSink for Blocks {
    fn write(&self, handle: Handle, tag: u64, offset: u32, _fin: bool, data: &[u8]) {
        let len_of = |tag| self.len_of(BlockAddress(tag));
        if let Some((data, held)) = self.inboxes.put(handle, tag, offset, data, len_of) {
            // The receiver is gone only when the run is.
            let _ = self.arrivals.send(Arrived { handle, address: BlockAddress(tag), data, _held: held });
        }
    }
}

/// What the locks protect is never half changed where a panic could come from.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
