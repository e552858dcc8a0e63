//! Giving others what is here: blocks are read and checked against what was indexed, then kept in memory until they are
//! acknowledged, so that what is sent again is the same (SYNC.md §5). Hashes come from the folder's index, or by reading
//! the file once more where that does not know it yet.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_proto::limits::BLOCK_LEN;
use agent_proto::sync::{Hashes, PAGE_BLOCKS, SyncMessage, Unavailable, WEAK_PAGE, of_block_tag, pack_weak};
use sync_core::merkle::{Hash, block_hash, tree_root};
use sync_core::weak::weak_hash;
use tokio::sync::mpsc;
use utp2_tokio::{BlockSink, BlockSource, Handle};

use super::super::assembly::{Held, Inboxes};
use super::stage::{Stages, hashes_of};
use super::tree::{Tree, block_len, blocks_of};

/// Hashes of files that the folder's index does not know yet, kept at a time: 16 MiB.
const HASHES_KEPT: usize = 512 * 1024;

/// Blocks of the largest file that is hashed anew to serve it: 4 GiB. Larger ones wait for the index.
const HASHED_ANEW: u32 = 128 * 1024;

/// A whole block that arrived, not checked.
pub(super) struct Arrived {
    pub(super) handle: Handle,
    pub(super) transfer: u32,
    pub(super) block: u32,
    pub(super) data: Arc<[u8]>,
    _held: Held,
}

/// Blocks that are being sent, by connection and tag.
type Sending = HashMap<(Handle, u64), Arc<[u8]>>;

/// The blocks of one job as the transport sees them. Called with its lock held: memory only.
pub(in crate::run) struct Blocks {
    stages: Mutex<Option<Arc<Stages>>>,
    inboxes: Inboxes,
    arrivals: mpsc::UnboundedSender<Arrived>,
    sending: Mutex<Sending>,
    /// Bytes in `sending`.
    bytes: AtomicUsize,
}

impl Blocks {
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Arrived>) {
        let (arrivals, receiver) = mpsc::unbounded_channel();
        let blocks = Self {
            stages: Mutex::default(),
            inboxes: Inboxes::default(),
            arrivals,
            sending: Mutex::default(),
            bytes: AtomicUsize::new(0),
        };
        (Arc::new(blocks), receiver)
    }

    /// What arrives belongs to these from now on, or to nothing.
    pub(super) fn set_stages(&self, stages: Option<Arc<Stages>>) {
        *self.stages.lock().unwrap_or_else(PoisonError::into_inner) = stages;
    }

    fn sending(&self) -> MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes blocks from a connection from now on.
    pub(super) fn admit(&self, handle: Handle) {
        self.inboxes.admit(handle);
    }

    /// A connection is gone.
    pub(super) fn forget(&self, handle: Handle) {
        self.inboxes.forget(handle);
        let mut sending = self.sending();
        sending.retain(|(of, _), data| {
            let stays = *of != handle;
            if !stays {
                self.bytes.fetch_sub(data.len(), Ordering::Relaxed);
            }
            stays
        });
    }

    /// Forgets blocks that will never be whole.
    pub(super) fn sweep(&self) {
        self.inboxes.sweep();
    }

    /// Keeps a block until it is acknowledged; false if it is kept already.
    pub(super) fn keep(&self, handle: Handle, tag: u64, data: Arc<[u8]>) -> bool {
        let len = data.len();
        let new = self.sending().insert((handle, tag), data);
        self.bytes.fetch_add(len, Ordering::Relaxed);
        if let Some(old) = &new {
            self.bytes.fetch_sub(old.len(), Ordering::Relaxed);
        }
        new.is_none()
    }

    /// A block is acknowledged, or not to be sent: how long it was.
    pub(super) fn sent(&self, handle: Handle, tag: u64) -> Option<u32> {
        let data = self.sending().remove(&(handle, tag))?;
        self.bytes.fetch_sub(data.len(), Ordering::Relaxed);
        Some(data.len() as u32)
    }

    /// Bytes that wait to be acknowledged.
    pub(super) fn bytes_sending(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl BlockSource for Blocks {
    fn read(&self, handle: Handle, tag: u64, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        let data = self.sending().get(&(handle, tag)).cloned().ok_or(io::ErrorKind::NotFound)?;
        let start = offset as usize;
        buf.copy_from_slice(data.get(start..start + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl BlockSink for Blocks {
    fn write(&self, handle: Handle, tag: u64, offset: u32, _fin: bool, data: &[u8]) {
        let (transfer, block) = of_block_tag(tag);
        let len_of = |_| {
            let stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
            stages.as_ref()?.block_len(transfer, block)
        };
        if let Some((data, held)) = self.inboxes.put(handle, tag, offset, data, len_of) {
            // The receiver is gone only when the job is.
            let _ = self.arrivals.send(Arrived { handle, transfer, block, data, _held: held });
        }
    }
}

/// Blocks whose weak hashes are made at once, and for how long all of a page may take: who waits asks others after 16 s.
const WEAK_BLOCKS: u32 = 256;
const WEAK_TIME: Duration = Duration::from_secs(8);

/// Weak hashes of a page that are being made: what is missing when their time is over stays zero (SYNC.md §5).
pub(super) struct Weak {
    transfer: u32,
    path: Vec<u8>,
    root: Hash,
    size: u64,
    /// As asked.
    page: u32,
    made: Vec<u32>,
    until: Instant,
}

impl Weak {
    pub(super) fn new(transfer: u32, path: Vec<u8>, (root, size): (Hash, u64), page: u32) -> Self {
        Self { transfer, path, root, size, page, made: Vec::new(), until: Instant::now() + WEAK_TIME }
    }
}

/// Reads files for others; of one thread.
pub(super) struct Server {
    tree: Arc<Tree>,
    index: Option<Arc<folder_index::Index>>,
    last: Option<(Vec<u8>, File)>,
    hashed: VecDeque<(Hash, Arc<Vec<Hash>>)>,
}

impl Server {
    pub(super) fn new(tree: Arc<Tree>, index: Option<Arc<folder_index::Index>>) -> Self {
        Self { tree, index, last: None, hashed: VecDeque::new() }
    }

    /// A block of a file, if it is still what was indexed.
    pub(super) fn block(&mut self, path: &[u8], content: (&Hash, u64), block: u32) -> Option<Arc<[u8]>> {
        self.read(path, content, block).or_else(|| {
            // The file that was open may not be the one that is there now.
            self.last.take()?;
            self.read(path, content, block)
        })
    }

    fn read(&mut self, path: &[u8], (root, size): (&Hash, u64), block: u32) -> Option<Arc<[u8]>> {
        let file = self.open(path, size)?;
        let len = block_len(size, block) as usize;
        if len == 0 {
            return None;
        }
        let mut data: Arc<[u8]> = std::iter::repeat_n(0, len).collect();
        file.read_exact_at(Arc::get_mut(&mut data)?, u64::from(block) * u64::from(BLOCK_LEN)).ok()?;
        let expected = self.hashes(path, root, size, block..block + 1)?;
        (expected == [block_hash(&data)]).then_some(data)
    }

    /// Opens a file that has this size: one of another is not what was indexed, and need not be hashed to know.
    fn open(&mut self, path: &[u8], size: u64) -> Option<&File> {
        if self.last.as_ref().is_none_or(|(open, _)| open != path) {
            self.last = Some((path.to_vec(), self.tree.open_file(path).ok()?));
        }
        let (_, file) = self.last.as_ref()?;
        (file.metadata().ok()?.len() == size).then_some(file)
    }

    /// Forgets the file that is open.
    pub(super) fn rest(&mut self) {
        self.last = None;
    }

    /// The answer to a question for hashes.
    pub(super) fn answer(
        &mut self,
        transfer: u32,
        path: &[u8],
        content: (&Hash, u64),
        page: Option<u32>,
    ) -> SyncMessage {
        match self.page(path, content, page) {
            Some(hashes) => Hashes { transfer, page, hashes }.into(),
            None => Unavailable { transfer }.into(),
        }
    }

    /// Makes some more weak hashes; with the last ones, the answer.
    ///
    /// The file is the one that was indexed; its bytes are not looked at again: who looks by them believes strong ones only.
    pub(super) fn more_weak(&mut self, mut weak: Weak) -> Result<Weak, SyncMessage> {
        let unavailable = Unavailable { transfer: weak.transfer };
        let size = weak.size;
        if self.open(&weak.path, size).is_none() {
            return Err(unavailable.into());
        }
        let page = of_page(weak.page & !WEAK_PAGE, blocks_of(size));
        let Some(page) = page.filter(|_| self.hashes(&weak.path, &weak.root, size, 0..1).is_some()) else {
            return Err(unavailable.into());
        };
        let first = page.start + weak.made.len() as u32;
        let end = page.end.min(first.saturating_add(WEAK_BLOCKS));
        let mut buffer = vec![0; BLOCK_LEN as usize];
        for block in first..end {
            let part = &mut buffer[..block_len(size, block) as usize];
            let at = u64::from(block) * u64::from(BLOCK_LEN);
            let read = self.last.as_ref().is_some_and(|(_, file)| file.read_exact_at(part, at).is_ok());
            weak.made.push(if read { weak_hash(part) } else { 0 });
        }
        if end < page.end && Instant::now() < weak.until {
            return Ok(weak);
        }
        weak.made.resize(page.len(), 0);
        let hashes = pack_weak(&weak.made);
        Err(Hashes { transfer: weak.transfer, page: Some(weak.page), hashes }.into())
    }

    fn page(&mut self, path: &[u8], (root, size): (&Hash, u64), page: Option<u32>) -> Option<Vec<Hash>> {
        self.last = None;
        self.open(path, size)?;
        let blocks = blocks_of(size);
        match page {
            Some(page) => self.hashes(path, root, size, of_page(page, blocks)?),
            None => {
                let pages = 0..blocks.div_ceil(PAGE_BLOCKS);
                let mut roots = Vec::with_capacity(pages.len());
                for page in pages {
                    roots.push(tree_root(&self.hashes(path, root, size, of_page(page, blocks)?)?));
                }
                Some(roots)
            }
        }
    }

    /// Hashes of some blocks of a content.
    fn hashes(&mut self, path: &[u8], root: &Hash, size: u64, blocks: Range<u32>) -> Option<Vec<Hash>> {
        if blocks_of(size) == 1 {
            return Some(vec![*root]);
        }
        let range = blocks.start as usize..blocks.end as usize;
        if let Some((_, all)) = self.hashed.iter().find(|(of, _)| of == root) {
            return all.get(range).map(<[Hash]>::to_vec);
        }
        if let Some(hashes) = self.indexed(path, root, size, blocks.clone()) {
            return Some(hashes);
        }
        if blocks_of(size) > HASHED_ANEW {
            return None;
        }
        let (_, file) = self.last.as_ref()?;
        let mut all = Vec::with_capacity(blocks_of(size) as usize);
        hashes_of(file, size, |_, hash| {
            all.push(hash);
            true
        });
        if tree_root(&all) != *root {
            return None;
        }
        let wanted = all.get(range).map(<[Hash]>::to_vec);
        self.hashed.push_back((*root, Arc::new(all)));
        while self.hashed.iter().map(|(_, all)| all.len()).sum::<usize>() > HASHES_KEPT {
            self.hashed.pop_front();
        }
        wanted
    }

    fn indexed(&self, path: &[u8], root: &Hash, size: u64, blocks: Range<u32>) -> Option<Vec<Hash>> {
        let snapshot = self.index.as_ref()?.snapshot().ok()?;
        let record = snapshot.entry(path).ok()??;
        let folder_index::Kind::File(Some(content)) = &record.kind else { return None };
        if content.root != *root || record.stamp.size != size {
            return None;
        }
        let count = blocks.len();
        let range = u64::from(blocks.start)..u64::from(blocks.end);
        snapshot.some_blocks(size, content, range).ok().filter(|hashes| hashes.len() == count)
    }
}

/// The blocks of a page.
fn of_page(page: u32, blocks: u32) -> Option<Range<u32>> {
    let first = page.checked_mul(PAGE_BLOCKS).filter(|first| *first < blocks)?;
    Some(first..first.saturating_add(PAGE_BLOCKS).min(blocks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::RunId;

    /// A log that grows is asked for as it was indexed: nobody reads the whole of it to say that it is another.
    #[test]
    fn a_file_of_another_size_is_not_looked_into() {
        let root = tempfile::tempdir().expect("a folder");
        let tree = Arc::new(Tree::open(root.path(), RunId([1; 16]), true).expect("opened"));
        let mut server = Server::new(tree, None);
        let of = block_hash(b"some");
        std::fs::write(root.path().join("log"), b"some").expect("written");
        let hashes = SyncMessage::from(Hashes { transfer: 1, page: Some(0), hashes: vec![of] });
        assert_eq!(server.answer(1, b"log", (&of, 4), Some(0)), hashes);
        assert_eq!(server.block(b"log", (&of, 4), 0).as_deref(), Some(&b"some"[..]));
        std::fs::write(root.path().join("log"), b"some more").expect("written");
        let unavailable = SyncMessage::from(Unavailable { transfer: 1 });
        assert_eq!(server.answer(1, b"log", (&of, 4), Some(0)), unavailable);
        let weak = Weak::new(1, b"log".to_vec(), (of, 4), WEAK_PAGE);
        assert_eq!(server.more_weak(weak).err(), Some(unavailable));
        assert_eq!(server.block(b"log", (&of, 4), 0), None);
    }
}
