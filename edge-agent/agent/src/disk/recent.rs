//! The blocks that were read or written last, as many as fit into a number of bytes: of small files those are many.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// What a block costs beside its bytes.
const COST: usize = 128;

/// Blocks by their number; the one that came first goes first.
#[derive(Debug)]
pub(super) struct Recent {
    blocks: HashMap<u64, Arc<[u8]>>,
    order: VecDeque<u64>,
    bytes: usize,
    max: usize,
}

impl Recent {
    /// At most so many bytes, with what blocks cost beside.
    pub(super) fn new(max: usize) -> Self {
        Self { blocks: HashMap::new(), order: VecDeque::new(), bytes: 0, max }
    }

    pub(super) fn get(&self, index: u64) -> Option<Arc<[u8]>> {
        self.blocks.get(&index).cloned()
    }

    pub(super) fn insert(&mut self, index: u64, block: Arc<[u8]>) {
        self.bytes += block.len() + COST;
        match self.blocks.insert(index, block) {
            Some(old) => self.bytes -= old.len() + COST,
            None => self.order.push_back(index),
        }
        while self.bytes > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            if let Some(old) = self.blocks.remove(&oldest) {
                self.bytes -= old.len() + COST;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_ones_within_its_bytes() {
        let mut recent = Recent::new(10 * (100 + COST));
        let block = |len: usize| -> Arc<[u8]> { vec![0; len].into() };
        (0..15).for_each(|index| recent.insert(index, block(100)));
        recent.insert(14, block(100));
        assert_eq!(
            (0..20).filter(|&i| recent.get(i).is_some()).collect::<Vec<_>>(),
            (5..15).collect::<Vec<_>>()
        );
        recent.insert(99, block(9 * (100 + COST) - COST));
        assert_eq!((0..100).filter(|&i| recent.get(i).is_some()).collect::<Vec<_>>(), [14, 99]);
        recent.insert(100, block(1 << 20));
        assert!(recent.get(99).is_none() && recent.bytes == 0);
    }
}
