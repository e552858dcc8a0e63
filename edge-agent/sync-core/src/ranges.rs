//! Block numbers and the ranges in which messages carry them.

use alloc::vec::Vec;
use core::ops::Range;

use agent_proto::limits::RANGES_MAX;
use agent_proto::peer::{BlockAddress, BlockRange};

/// The two spaces of block numbers a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Blocks of the encoded manifest.
    Manifest,
    /// Blocks of the files.
    Content,
}

impl Space {
    /// The address of a block of this space.
    pub fn address(self, block: u64) -> BlockAddress {
        match self {
            Self::Manifest => BlockAddress::manifest(block),
            Self::Content => BlockAddress::content(block),
        }
    }

    /// The space an address belongs to.
    pub fn of(address: BlockAddress) -> Self {
        if address.is_manifest() { Self::Manifest } else { Self::Content }
    }
}

/// Splits ranges of blocks over as few messages as limits allow: each item is one message's ranges.
pub(crate) fn messages(space: Space, ranges: impl Iterator<Item = Range<u64>>) -> Vec<Vec<BlockRange>> {
    let mut messages: Vec<Vec<BlockRange>> = Vec::new();
    for range in ranges {
        let mut first = range.start;
        while first < range.end {
            let count = u32::try_from(range.end - first).unwrap_or(u32::MAX);
            let part = BlockRange { first: space.address(first), count };
            match messages.last_mut() {
                Some(last) if last.len() < RANGES_MAX => last.push(part),
                _ => messages.push(alloc::vec![part]),
            }
            first += u64::from(count);
        }
    }
    messages
}

/// Merges block numbers, in any order, into ranges.
pub(crate) fn merge(mut blocks: Vec<u64>) -> impl Iterator<Item = Range<u64>> {
    blocks.sort_unstable();
    blocks.dedup();
    let mut at = 0;
    core::iter::from_fn(move || {
        let start = *blocks.get(at)?;
        let mut end = start;
        while blocks.get(at) == Some(&end) {
            (at, end) = (at + 1, end + 1);
        }
        Some(start..end)
    })
}

/// The block numbers of one space that a message's ranges name, clipped to `len`. Ranges beyond the
/// limit are ignored.
pub(crate) fn of_space(ranges: &[BlockRange], space: Space, len: u64) -> impl Iterator<Item = Range<u64>> {
    ranges.iter().take(RANGES_MAX).filter(move |r| Space::of(r.first) == space).filter_map(move |r| {
        let start = r.first.index();
        let end = start.saturating_add(u64::from(r.count)).min(len);
        (start < end).then_some(start..end)
    })
}

/// The same blocks as [`of_space`] in disjoint ranges in ascending order: a message that names everything
/// thousands of times costs no more than one that names it once.
pub(crate) fn disjoint(ranges: &[BlockRange], space: Space, len: u64) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = of_space(ranges, space, len).collect();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn merges_and_splits() {
        assert_eq!(merge(vec![5, 3, 4, 9, 3]).collect::<Vec<_>>(), [3..6, 9..10]);
        let two = messages(Space::Content, core::iter::once(1..(1 << 32) + 5));
        assert_eq!(two[0].len(), 2);
        assert_eq!(two[0][1], BlockRange { first: BlockAddress::content(1 << 32), count: 5 });
        let many = messages(Space::Manifest, (0..10_000).map(|i| 2 * i..2 * i + 1));
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [8192, 1808]);
        let back: Vec<_> = of_space(&many[1], Space::Manifest, 19_000).collect();
        assert_eq!((back.len(), &back[0]), (1308, &(16384..16385)));
        assert_eq!(of_space(&many[1], Space::Content, 1 << 40).count(), 0);
        let range = |first, count| BlockRange { first: BlockAddress::content(first), count };
        let messy = [range(9, 2), range(0, 4), range(2, 1), range(4, 1), range(10, 90), range(7, 0)];
        assert_eq!(disjoint(&messy, Space::Content, 50), [0..5, 9..50]);
    }
}
