//! Which content blocks nobody else has, and in which order to hand them out.

use alloc::collections::{BTreeMap, VecDeque};
use core::ops::Range;

use agent_proto::peer::UnavailableReason;

use crate::block_map::{BlockCounts, BlockMap, later};

/// A peer's present stretch of consecutive blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stretch {
    next: u64,
    left: u32,
}

/// Claims on blocks: one for each connected peer that has a block or was promised it.
pub(super) struct Spread {
    claims: BlockCounts,
    /// Claimed or unreadable: not to be chosen.
    closed: BlockMap,
    failed: BTreeMap<u64, UnavailableReason>,
    /// Where the next stretch begins: behind those handed out, so that the file is read in one sweep.
    frontier: u64,
    /// Of each class of blocks that comes before others and is not handed out yet, those that come after it.
    later: VecDeque<BlockMap>,
}

impl Spread {
    pub(super) fn new(blocks: u64) -> Self {
        Self {
            claims: BlockCounts::new(blocks),
            closed: BlockMap::new(blocks),
            failed: BTreeMap::new(),
            frontier: 0,
            later: VecDeque::new(),
        }
    }

    /// These come before the rest, in this order.
    pub(super) fn prefer(&mut self, classes: &[BlockMap]) {
        self.later = later(classes).into();
    }

    /// How many connected peers have a block, or were promised it.
    pub(super) fn claims(&self, block: u64) -> u16 {
        self.claims.at(block)
    }

    pub(super) fn claim(&mut self, block: u64) {
        self.claims.add(block);
        self.closed.insert(block);
    }

    pub(super) fn release(&mut self, block: u64) {
        if self.claims.sub(block) == 0 && !self.failed.contains_key(&block) {
            self.closed.remove(block);
        }
    }

    pub(super) fn forget_holder(&mut self, have: &BlockMap) {
        have.ranges().flatten().for_each(|block| self.release(block));
    }

    /// Whether some block is had by nobody.
    pub(super) fn has_free(&self) -> bool {
        !self.closed.is_complete()
    }

    /// Notes that a block cannot be read; false if that was known.
    pub(super) fn fail(&mut self, block: u64, reason: UnavailableReason) -> bool {
        if block >= self.closed.len() || self.failed.contains_key(&block) {
            return false;
        }
        self.closed.insert(block);
        self.failed.insert(block, reason);
        true
    }

    pub(super) fn failed(&self, block: u64) -> Option<UnavailableReason> {
        self.failed.get(&block).copied()
    }

    /// Ranges of the blocks that can be read.
    pub(super) fn readable(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let (mut at, mut failed, len) = (0, self.failed.keys().copied(), self.closed.len());
        core::iter::from_fn(move || {
            while at < len {
                let (start, end) = (at, failed.next().unwrap_or(len));
                at = end + 1;
                if start < end {
                    return Some(start..end);
                }
            }
            None
        })
    }

    /// A free block for a peer: the next of its stretch, or the first of a new one.
    pub(super) fn choose(&mut self, stretch: &mut Stretch, len: u32) -> Option<u64> {
        if stretch.left == 0 || self.is_closed(stretch.next) || stretch.next >= self.closed.len() {
            let next = self.first_open()?;
            *stretch = Stretch { next, left: len };
            self.frontier = next + u64::from(len);
        }
        let block = stretch.next;
        *stretch = Stretch { next: block + 1, left: stretch.left - 1 };
        Some(block)
    }

    fn is_closed(&self, block: u64) -> bool {
        self.closed.contains(block) || self.later.front().is_some_and(|later| later.contains(block))
    }

    /// Where the next stretch begins: in what comes first as long as there is something of it.
    fn first_open(&mut self) -> Option<u64> {
        while let Some(later) = self.later.front() {
            let next = |from| self.closed.next_in_neither(later, from);
            if let Some(next) = next(self.frontier).or_else(|| next(0)) {
                return Some(next);
            }
            self.later.pop_front();
            self.frontier = 0;
        }
        self.closed.next_clear(self.frontier).or_else(|| self.closed.next_clear(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn hands_out_each_block_once_in_stretches() {
        let mut spread = Spread::new(100);
        let (mut a, mut b) = (Stretch::default(), Stretch::default());
        let take = |spread: &mut Spread, stretch: &mut Stretch| {
            let block = spread.choose(stretch, 8)?;
            spread.claim(block);
            Some(block)
        };
        let first: Vec<_> =
            (0..8).flat_map(|_| [take(&mut spread, &mut a), take(&mut spread, &mut b)]).collect();
        assert_eq!(first[0], Some(0));
        assert_eq!(first[1], Some(8));
        assert_eq!(first[14..], [Some(7), Some(15)]);
        let mut all: Vec<_> = first.into_iter().flatten().collect();
        while let Some(block) = take(&mut spread, &mut a) {
            all.push(block);
        }
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert!(!spread.has_free());
        spread.release(50);
        assert_eq!(take(&mut spread, &mut b), Some(50));
    }

    #[test]
    fn what_comes_first_is_handed_out_first() {
        let mut spread = Spread::new(100);
        let of = |range| BlockMap::from_ranges(100, core::iter::once(range));
        spread.prefer(&[of(50..54), of(52..60), of(10..12)]);
        let (mut a, mut b) = (Stretch::default(), Stretch::default());
        let mut order = Vec::new();
        while spread.has_free() {
            for stretch in [&mut a, &mut b] {
                let Some(block) = spread.choose(stretch, 8) else { break };
                spread.claim(block);
                order.push(block);
            }
        }
        let sorted = |some: &[u64]| {
            let mut some = some.to_vec();
            some.sort_unstable();
            some
        };
        assert_eq!(sorted(&order[..4]), (50..54).collect::<Vec<_>>());
        assert_eq!(sorted(&order[4..10]), (54..60).collect::<Vec<_>>());
        assert_eq!(sorted(&order[10..12]), [10, 11]);
        assert_eq!(sorted(&order), (0..100).collect::<Vec<_>>());
        // One that is free again is handed out again, though its class is over.
        spread.release(51);
        assert_eq!(spread.choose(&mut a, 8), Some(51));
    }

    #[test]
    fn leaves_out_what_cannot_be_read() {
        let mut spread = Spread::new(10);
        assert!(spread.fail(0, UnavailableReason::Changed) && spread.fail(4, UnavailableReason::ReadError));
        assert!(!spread.fail(4, UnavailableReason::Changed));
        assert_eq!(spread.readable().collect::<Vec<_>>(), [1..4, 5..10]);
        assert_eq!(spread.choose(&mut Stretch::default(), 4), Some(1));
        assert_eq!(spread.failed(4), Some(UnavailableReason::ReadError));
        assert_eq!(Spread::new(0).readable().count(), 0);
    }
}
