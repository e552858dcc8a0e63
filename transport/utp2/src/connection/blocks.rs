//! Blocks to send: which pieces are next, and which bytes were acknowledged. No block's bytes are kept.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use super::ranges::RangeSet;

/// Names a block of the queue; goes stale when the block leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockRef {
    slot: u32,
    generation: u32,
}

#[derive(Debug, Default)]
struct Block {
    generation: u32,
    live: bool,
    tag: u64,
    len: u32,
    /// First byte never sent.
    next: u32,
    /// Bytes acknowledged, each counted once.
    acked: u32,
    acked_ranges: RangeSet,
    order: (u8, u64),
}

/// A piece to send for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) block: BlockRef,
    pub(crate) tag: u64,
    pub(crate) offset: u32,
    /// Bytes left from `offset` on.
    pub(crate) left: u32,
}

#[derive(Debug, Default)]
pub(crate) struct BlockQueue {
    slots: Vec<Block>,
    free: Vec<u32>,
    by_tag: BTreeMap<u64, u32>,
    /// Blocks with bytes never sent, by (255 − priority, sequence).
    unsent: BTreeMap<(u8, u64), u32>,
    sequence: u64,
    /// Tags wholly acknowledged and not yet told.
    done: VecDeque<u64>,
}

impl BlockQueue {
    pub(crate) fn len(&self) -> usize {
        self.by_tag.len()
    }

    pub(crate) fn contains(&self, tag: u64) -> bool {
        self.by_tag.contains_key(&tag)
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Queues a block that is not queued.
    pub(crate) fn push(&mut self, tag: u64, len: u32, priority: u8) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Block::default());
            self.slots.len() as u32 - 1
        });
        self.sequence += 1;
        let b = &mut self.slots[slot as usize];
        b.acked_ranges.clear();
        b.live = true;
        (b.tag, b.len, b.next, b.acked) = (tag, len, 0, 0);
        b.order = (u8::MAX - priority, self.sequence);
        self.by_tag.insert(tag, slot);
        self.unsent.insert(b.order, slot);
    }

    /// Forgets a block; returns whether it was there.
    pub(crate) fn remove(&mut self, tag: u64) -> bool {
        let Some(slot) = self.by_tag.remove(&tag) else { return false };
        let b = &mut self.slots[slot as usize];
        self.unsent.remove(&b.order);
        b.live = false;
        b.generation = b.generation.wrapping_add(1);
        self.free.push(slot);
        true
    }

    /// The next piece never sent.
    pub(crate) fn peek(&self) -> Option<Piece> {
        let (_, &slot) = self.unsent.first_key_value()?;
        let b = &self.slots[slot as usize];
        let block = BlockRef { slot, generation: b.generation };
        Some(Piece { block, tag: b.tag, offset: b.next, left: b.len - b.next })
    }

    /// Whether the next piece never sent is of a higher priority than `block`.
    pub(crate) fn is_next_above(&self, block: BlockRef) -> bool {
        match (self.unsent.first_key_value(), self.get(block)) {
            (Some((next, _)), Some(b)) => next.0 < b.order.0,
            _ => false,
        }
    }

    /// `len` bytes of the piece [`BlockQueue::peek`] gave were sent.
    pub(crate) fn advance(&mut self, piece: &Piece, len: u32) {
        let b = &mut self.slots[piece.block.slot as usize];
        b.next += len;
        if b.next == b.len {
            let order = b.order;
            self.unsent.remove(&order);
        }
    }

    fn get(&self, block: BlockRef) -> Option<&Block> {
        self.slots.get(block.slot as usize).filter(|b| b.live && b.generation == block.generation)
    }

    /// Tag and length of a block, if it is still wanted and the range is not acknowledged yet.
    pub(crate) fn wanted(&self, block: BlockRef, offset: u32, len: u32) -> Option<(u64, u32)> {
        let b = self.get(block)?;
        let (start, end) = (u64::from(offset), u64::from(offset) + u64::from(len));
        (!b.acked_ranges.contains(start, end)).then_some((b.tag, b.len))
    }

    pub(crate) fn on_acked(&mut self, block: BlockRef, offset: u32, len: u32) {
        if self.get(block).is_none() {
            return;
        }
        let b = &mut self.slots[block.slot as usize];
        b.acked += b.acked_ranges.insert(u64::from(offset), u64::from(offset) + u64::from(len)) as u32;
        if b.acked == b.len {
            let tag = b.tag;
            self.remove(tag);
            self.done.push_back(tag);
        }
    }

    pub(crate) fn pop_done(&mut self) -> Option<u64> {
        self.done.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_and_the_order_of_queueing_decide() {
        let mut q = BlockQueue::default();
        q.push(1, 10, 0);
        q.push(2, 10, 5);
        q.push(3, 10, 5);
        let mut order = Vec::new();
        while let Some(p) = q.peek() {
            let n = p.left.min(6);
            q.advance(&p, n);
            order.push((p.tag, p.offset));
        }
        assert_eq!(order, [(2, 0), (2, 6), (3, 0), (3, 6), (1, 0), (1, 6)]);
        assert_eq!(q.len(), 3);
    }

    #[test]
    fn a_byte_acknowledged_twice_counts_once_and_stale_references_count_nothing() {
        let mut q = BlockQueue::default();
        q.push(7, 10, 0);
        let p = q.peek().unwrap();
        q.advance(&p, 10);
        q.on_acked(p.block, 0, 6);
        q.on_acked(p.block, 0, 6);
        q.on_acked(p.block, 2, 4);
        assert_eq!((q.pop_done(), q.wanted(p.block, 0, 6)), (None, None));
        assert_eq!(q.wanted(p.block, 5, 2), Some((7, 10)));
        q.on_acked(p.block, 5, 5);
        assert_eq!((q.pop_done(), q.len()), (Some(7), 0));
        q.push(8, 10, 0);
        assert_eq!(q.peek().unwrap().block.slot, p.block.slot, "slots are used again");
        q.on_acked(p.block, 0, 10);
        assert_eq!((q.pop_done(), q.wanted(p.block, 0, 1)), (None, None));
        assert!(q.remove(8) && !q.remove(8) && !q.has_unsent());
    }
}
