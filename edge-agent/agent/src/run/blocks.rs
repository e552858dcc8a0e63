//! The blocks of one run as the transport sees them: read piece by piece when sent, put together from
//! pieces when they arrive.
//!
//! Both sides are called by the transport's driver with its lock held: memory and cached files only. A
//! block goes on to the run's task when it is whole; nothing here is checked yet, and a peer can fill
//! [`BYTES_BEGUN`] at most.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use agent_proto::limits::BLOCK_LEN;
use agent_proto::peer::BlockAddress;
use sync_core::{BlockMap, manifest_block_len};
use tokio::sync::mpsc;
use utp2_tokio::{BlockSink, BlockSource, Handle};

use super::limits::{BLOCK_COST, BYTES_BEGUN, BYTES_HELD, PIECES_APART, PIECES_PATIENCE, REPEATS};
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

/// A buffer that counts until it is dropped.
struct Held {
    all: Arc<AtomicUsize>,
    cost: usize,
}

impl Held {
    /// Room for a block; `None` if too much is held already.
    fn take(all: &Arc<AtomicUsize>, len: usize) -> Option<Self> {
        let cost = len + BLOCK_COST;
        let held = Self { all: all.clone(), cost };
        (all.fetch_add(cost, Ordering::Relaxed) < BYTES_HELD).then_some(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.cost, Ordering::Relaxed);
    }
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

struct Assembly {
    data: Arc<[u8]>,
    /// What came, as sorted ranges with gaps between them.
    have: Vec<(u32, u32)>,
    touched: Instant,
    held: Held,
}

/// What comes from one connection.
#[derive(Default)]
struct Inbox {
    open: HashMap<BlockAddress, Assembly>,
    /// What those cost.
    begun: usize,
    /// Blocks that were whole lately.
    done: HashMap<BlockAddress, Instant>,
    order: VecDeque<BlockAddress>,
}

/// One run's blocks.
pub(super) struct Blocks {
    corrupt: bool,
    manifest: Mutex<Option<ManifestPart>>,
    content: OnceLock<Content>,
    inboxes: Mutex<HashMap<Handle, Inbox>>,
    arrivals: mpsc::UnboundedSender<Arrived>,
    held: Arc<AtomicUsize>,
    /// Pieces dropped because they fit nowhere or there was no room.
    pub(super) dropped: AtomicU64,
}

impl Blocks {
    /// `corrupt` makes it lie about content, for tests.
    pub(super) fn new(corrupt: bool) -> (Arc<Self>, mpsc::UnboundedReceiver<Arrived>) {
        let (arrivals, receiver) = mpsc::unbounded_channel();
        let blocks = Self {
            corrupt,
            manifest: Mutex::default(),
            content: OnceLock::new(),
            inboxes: Mutex::default(),
            arrivals,
            held: Arc::default(),
            dropped: AtomicU64::new(0),
        };
        (Arc::new(blocks), receiver)
    }

    /// Takes blocks from a connection from now on.
    pub(super) fn admit(&self, handle: Handle) {
        lock(&self.inboxes).entry(handle).or_default();
    }

    /// Takes nothing more from a connection and forgets what came in part.
    pub(super) fn forget(&self, handle: Handle) {
        lock(&self.inboxes).remove(&handle);
    }

    /// A block that was whole is wanted again from the same peer.
    pub(super) fn expect_again(&self, handle: Handle, address: BlockAddress) {
        if let Some(inbox) = lock(&self.inboxes).get_mut(&handle) {
            inbox.done.remove(&address);
        }
    }

    /// Forgets blocks that will never be whole.
    pub(super) fn sweep(&self) {
        for inbox in lock(&self.inboxes).values_mut() {
            inbox.open.retain(|_, a| a.touched.elapsed() < PIECES_PATIENCE);
            inbox.begun = inbox.open.values().map(|a| a.held.cost).sum();
        }
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

    /// Puts a piece in its place; gives the block if that makes it whole.
    fn put(&self, inbox: &mut Inbox, address: BlockAddress, offset: u32, piece: &[u8]) -> Option<Assembly> {
        let drop_it = || {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        };
        if !inbox.open.contains_key(&address) {
            if inbox.done.get(&address).is_some_and(|at| at.elapsed() < REPEATS) {
                return None;
            }
            let begun = (inbox.begun < BYTES_BEGUN).then(|| self.begin(address)).flatten();
            let Some(assembly) = begun else {
                drop_it();
                return None;
            };
            inbox.begun += assembly.held.cost;
            inbox.open.insert(address, assembly);
        }
        let assembly = inbox.open.get_mut(&address)?;
        if !assembly.put(offset, piece) {
            drop_it();
            return None;
        }
        if !assembly.is_whole() {
            return None;
        }
        inbox.note_done(address);
        let whole = inbox.open.remove(&address)?;
        inbox.begun -= whole.held.cost;
        Some(whole)
    }

    fn begin(&self, address: BlockAddress) -> Option<Assembly> {
        let len = self.len_of(address)? as usize;
        let held = Held::take(&self.held, len)?;
        let data = std::iter::repeat_n(0, len).collect();
        Some(Assembly { data, have: Vec::new(), touched: Instant::now(), held })
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
        let address = BlockAddress(tag);
        let mut inboxes = lock(&self.inboxes);
        let Some(inbox) = inboxes.get_mut(&handle) else { return };
        if let Some(Assembly { data, held, .. }) = self.put(inbox, address, offset, data) {
            // The receiver is gone only when the run is.
            let _ = self.arrivals.send(Arrived { handle, address, data, _held: held });
        }
    }
}

impl Inbox {
    fn note_done(&mut self, address: BlockAddress) {
        if self.done.insert(address, Instant::now()).is_none() {
            self.order.push_back(address);
        }
        while let Some(oldest) = self.order.front() {
            match self.done.get(oldest) {
                Some(at) if at.elapsed() < REPEATS => break,
                _ => {
                    self.done.remove(oldest);
                    self.order.pop_front();
                }
            }
        }
    }
}

impl Assembly {
    /// Puts a piece in its place; false if it does not fit.
    fn put(&mut self, offset: u32, piece: &[u8]) -> bool {
        if piece.is_empty() || self.have.len() >= PIECES_APART {
            return false;
        }
        let Some(data) = Arc::get_mut(&mut self.data) else { return false };
        let Some(place) = data.get_mut(offset as usize..).and_then(|d| d.get_mut(..piece.len())) else {
            return false;
        };
        place.copy_from_slice(piece);
        self.touched = Instant::now();
        let (mut start, mut end) = (offset, offset + piece.len() as u32);
        self.have.retain(|&(s, e)| {
            let apart = e < start || s > end;
            if !apart {
                (start, end) = (start.min(s), end.max(e));
            }
            apart
        });
        let at = self.have.partition_point(|&(s, _)| s < start);
        self.have.insert(at, (start, end));
        true
    }

    fn is_whole(&self) -> bool {
        self.have == [(0, self.data.len() as u32)]
    }
}

/// What the locks protect is never half changed where a panic could come from.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembly(len: usize) -> Assembly {
        let held = Held::take(&Arc::default(), len).expect("room");
        let data = std::iter::repeat_n(0, len).collect();
        Assembly { data, have: Vec::new(), touched: Instant::now(), held }
    }

    #[test]
    fn pieces_in_any_order_and_twice_become_a_block() {
        let block: Vec<u8> = (0..10_000u32).map(|i| (i * 7) as u8).collect();
        // Every third piece first, then all again: repeats and overlaps.
        let pieces: Vec<_> = (0..10_000).step_by(700).collect();
        let mut a = assembly(block.len());
        for &start in pieces.iter().step_by(3).chain(&pieces) {
            assert!(!a.is_whole() || start > 0);
            let end = (start + 900).min(block.len());
            assert!(a.put(start as u32, &block[start..end]));
        }
        assert!(a.is_whole());
        assert_eq!(a.data[..], block[..]);
    }

    #[test]
    fn one_peer_does_not_take_the_room_of_all() {
        let (blocks, _arrivals) = Blocks::new(false);
        let file = tempfile::tempfile().expect("room");
        blocks.expect_manifest(4000 * u64::from(BLOCK_LEN), file);
        let (mut liar, mut honest) = (Inbox::default(), Inbox::default());
        let begin = |inbox: &mut Inbox, block| {
            assert!(blocks.put(inbox, BlockAddress::manifest(block), 0, &[1]).is_none());
        };
        (0..4000).for_each(|block| begin(&mut liar, block));
        (0..900).for_each(|block| begin(&mut honest, block));
        let cost = agent_proto::limits::BLOCK_LEN as usize + BLOCK_COST;
        assert_eq!((liar.open.len(), honest.open.len()), (BYTES_BEGUN.div_ceil(cost), 900));
        drop(liar);
        assert_eq!(blocks.held.load(Ordering::Relaxed), 900 * cost);
    }

    #[test]
    fn a_block_in_dust_is_not_kept() {
        let mut a = assembly(32 * 1024);
        let taken = (0..16 * 1024).filter(|i| a.put(2 * i, &[1])).count();
        assert_eq!(taken, PIECES_APART);
    }

    #[test]
    fn pieces_that_do_not_fit_change_nothing() {
        let mut a = assembly(100);
        assert!(!a.put(90, &[1; 11]));
        assert!(!a.put(u32::MAX, &[1]));
        assert!(a.have.is_empty());
        assert!(!a.put(50, &[]) && a.have.is_empty());
        assert!(a.put(0, &[1; 100]) && a.is_whole());
    }
}
