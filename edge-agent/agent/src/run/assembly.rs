//! Blocks put together from the pieces in which they arrive, apart for each connection, so that none can take the room
//! of the others. Nothing here is checked; a peer can fill [`BYTES_BEGUN`] at most, all of them [`BYTES_HELD`], and less
//! where there is little memory (`memory.rs`).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use portable_atomic::AtomicU64;
use utp2_tokio::Handle;

use super::limits::{BLOCK_COST, BYTES_BEGUN, BYTES_HELD, PIECES_APART, PIECES_PATIENCE, REPEATS};
use crate::memory::share;

/// A buffer that counts until it is dropped.
pub(super) struct Held {
    all: Arc<AtomicUsize>,
    cost: usize,
}

impl Held {
    /// Room for a block; `None` if too much is held already.
    fn take(all: &Arc<AtomicUsize>, len: usize) -> Option<Self> {
        let cost = len + BLOCK_COST;
        let held = Self { all: all.clone(), cost };
        (all.fetch_add(cost, Ordering::Relaxed) < share(BYTES_HELD)).then_some(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.cost, Ordering::Relaxed);
    }
}

/// A block that is coming in.
struct Assembly {
    data: Arc<[u8]>,
    /// What came, as sorted ranges with gaps between them.
    have: Vec<(u32, u32)>,
    touched: Instant,
    held: Held,
}

/// What comes from one connection, by the blocks' tags.
#[derive(Default)]
struct Inbox {
    open: HashMap<u64, Assembly>,
    /// What those cost.
    begun: usize,
    /// Blocks that were whole lately.
    done: HashMap<u64, Instant>,
    order: VecDeque<u64>,
}

/// What comes from all connections of a run.
#[derive(Default)]
pub(super) struct Inboxes {
    inboxes: Mutex<HashMap<Handle, Inbox>>,
    held: Arc<AtomicUsize>,
    /// Pieces dropped because they fit nowhere or there was no room.
    dropped: AtomicU64,
}

impl Inboxes {
    fn lock(&self) -> MutexGuard<'_, HashMap<Handle, Inbox>> {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes blocks from a connection from now on.
    pub(super) fn admit(&self, handle: Handle) {
        self.lock().entry(handle).or_default();
    }

    /// Takes nothing more from a connection and forgets what came in part.
    pub(super) fn forget(&self, handle: Handle) {
        self.lock().remove(&handle);
    }

    /// A block that was whole is wanted again from the same peer.
    pub(super) fn expect_again(&self, handle: Handle, tag: u64) {
        if let Some(inbox) = self.lock().get_mut(&handle) {
            inbox.done.remove(&tag);
        }
    }

    /// Forgets blocks that will never be whole.
    pub(super) fn sweep(&self) {
        for inbox in self.lock().values_mut() {
            inbox.open.retain(|_, a| a.touched.elapsed() < PIECES_PATIENCE);
            inbox.begun = inbox.open.values().map(|a| a.held.cost).sum();
        }
    }

    /// Puts a piece in its place; gives the block, and what counts it, if that makes it whole. `len_of` tells how long
    /// a block is that begins; `None`: there is no such one.
    pub(super) fn put(
        &self,
        handle: Handle,
        tag: u64,
        offset: u32,
        piece: &[u8],
        len_of: impl FnOnce(u64) -> Option<u32>,
    ) -> Option<(Arc<[u8]>, Held)> {
        let mut inboxes = self.lock();
        let whole = self.put_in(inboxes.get_mut(&handle)?, tag, offset, piece, len_of)?;
        Some((whole.data, whole.held))
    }

    fn put_in(
        &self,
        inbox: &mut Inbox,
        tag: u64,
        offset: u32,
        piece: &[u8],
        len_of: impl FnOnce(u64) -> Option<u32>,
    ) -> Option<Assembly> {
        let drop_it = || {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        };
        if !inbox.open.contains_key(&tag) {
            if inbox.done.get(&tag).is_some_and(|at| at.elapsed() < REPEATS) {
                return None;
            }
            let begun = (inbox.begun < share(BYTES_BEGUN)).then(|| self.begin(len_of(tag)?)).flatten();
            let Some(assembly) = begun else {
                drop_it();
                return None;
            };
            inbox.begun += assembly.held.cost;
            inbox.open.insert(tag, assembly);
        }
        let assembly = inbox.open.get_mut(&tag)?;
        if !assembly.put(offset, piece) {
            drop_it();
            return None;
        }
        if !assembly.is_whole() {
            return None;
        }
        inbox.note_done(tag);
        let whole = inbox.open.remove(&tag)?;
        inbox.begun -= whole.held.cost;
        Some(whole)
    }

    fn begin(&self, len: u32) -> Option<Assembly> {
        let held = Held::take(&self.held, len as usize)?;
        let data = std::iter::repeat_n(0, len as usize).collect();
        Some(Assembly { data, have: Vec::new(), touched: Instant::now(), held })
    }
}

impl Inbox {
    fn note_done(&mut self, tag: u64) {
        if self.done.insert(tag, Instant::now()).is_none() {
            self.order.push_back(tag);
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
        const LEN: u32 = agent_proto::limits::BLOCK_LEN;
        let all = Inboxes::default();
        let (mut liar, mut honest) = (Inbox::default(), Inbox::default());
        let begin = |inbox: &mut Inbox, tag| {
            let len_of = |tag| (tag < 4000).then_some(LEN);
            assert!(all.put_in(inbox, tag, 0, &[1], len_of).is_none());
        };
        (0..5000).for_each(|tag| begin(&mut liar, tag));
        (0..900).for_each(|tag| begin(&mut honest, tag));
        let cost = LEN as usize + BLOCK_COST;
        assert_eq!((liar.open.len(), honest.open.len()), (share(BYTES_BEGUN).div_ceil(cost), 900));
        drop(liar);
        assert_eq!(all.held.load(Ordering::Relaxed), 900 * cost);
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
