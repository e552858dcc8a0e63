//! Which of a run's blocks are there, and how many peers have each.
//!
//! Both types keep 4096 blocks a chunk (128 MiB of content). A chunk that is all alike costs 16 bytes, so a
//! peer that has everything, or nothing, costs almost nothing whatever the size of the run.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

const WORDS: usize = 64;
const CHUNK: u64 = 64 * WORDS as u64;

/// A set of block numbers below a fixed length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMap {
    len: u64,
    count: u64,
    chunks: Vec<Chunk>,
}

/// `Some` never holds nothing or everything, so that equal sets are equal values.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    Empty,
    Full,
    Some(Box<Bits>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Bits {
    count: u16,
    words: [u64; WORDS],
}

impl BlockMap {
    /// None of `len` blocks.
    pub fn new(len: u64) -> Self {
        let chunks = alloc::vec![Chunk::Empty; len.div_ceil(CHUNK) as usize];
        Self { len, count: 0, chunks }
    }

    /// All of `len` blocks.
    pub fn full(len: u64) -> Self {
        let chunks = alloc::vec![Chunk::Full; len.div_ceil(CHUNK) as usize];
        Self { len, count: len, chunks }
    }

    /// The blocks of these ranges; what lies beyond `len` is left out.
    pub fn from_ranges(len: u64, ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut map = Self::new(len);
        for range in ranges {
            map.insert_range(range);
        }
        map
    }

    /// How many blocks there could be.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no block is there.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many blocks are there.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether every block is there; true for a length of 0.
    pub fn is_complete(&self) -> bool {
        self.count == self.len
    }

    /// Whether the block is there; false beyond the length.
    pub fn contains(&self, block: u64) -> bool {
        block < self.len && self.word(block / 64) >> (block % 64) & 1 == 1
    }

    /// Adds a block; false if it was there or lies beyond the length.
    pub fn insert(&mut self, block: u64) -> bool {
        if block >= self.len {
            return false;
        }
        let capacity = self.capacity(block / CHUNK);
        let chunk = &mut self.chunks[(block / CHUNK) as usize];
        if let Chunk::Empty = chunk {
            *chunk = Chunk::Some(Box::new(Bits { count: 0, words: [0; WORDS] }));
        }
        let Chunk::Some(bits) = chunk else { return false };
        let (word, bit) = position(block);
        if bits.words[word] & bit != 0 {
            return false;
        }
        bits.words[word] |= bit;
        bits.count += 1;
        if u64::from(bits.count) == capacity {
            *chunk = Chunk::Full;
        }
        self.count += 1;
        true
    }

    /// Takes a block out; false if it was not there.
    pub fn remove(&mut self, block: u64) -> bool {
        if block >= self.len {
            return false;
        }
        let capacity = self.capacity(block / CHUNK);
        let chunk = &mut self.chunks[(block / CHUNK) as usize];
        if let Chunk::Full = chunk {
            let words = core::array::from_fn(|i| valid_bits(capacity, i));
            *chunk = Chunk::Some(Box::new(Bits { count: capacity as u16, words }));
        }
        let Chunk::Some(bits) = chunk else { return false };
        let (word, bit) = position(block);
        if bits.words[word] & bit == 0 {
            return false;
        }
        bits.words[word] &= !bit;
        bits.count -= 1;
        if bits.count == 0 {
            *chunk = Chunk::Empty;
        }
        self.count -= 1;
        true
    }

    /// Adds the blocks of a range; what lies beyond the length is left out. Gives the number added.
    pub fn insert_range(&mut self, range: Range<u64>) -> u64 {
        let (mut at, end, before) = (range.start, range.end.min(self.len), self.count);
        while at < end {
            let chunk = at / CHUNK;
            let (first, capacity) = (chunk * CHUNK, self.capacity(chunk));
            if at == first && end >= first + capacity {
                self.count += capacity - self.chunk_count(chunk);
                self.chunks[chunk as usize] = Chunk::Full;
                at = first + capacity;
            } else {
                let stop = end.min(first + capacity);
                for block in at..stop {
                    self.insert(block);
                }
                at = stop;
            }
        }
        self.count - before
    }

    /// Adds all blocks of another map of the same length.
    pub(crate) fn insert_all(&mut self, other: &Self) {
        for index in 0..self.chunks.len() {
            let (number, theirs) = (index as u64, &other.chunks[index]);
            let (before, capacity) = (self.chunk_count(number), self.capacity(number));
            let ours = &mut self.chunks[index];
            match (&mut *ours, theirs) {
                (Chunk::Full, _) | (_, Chunk::Empty) => {}
                (ours, Chunk::Full) => *ours = Chunk::Full,
                (ours @ Chunk::Empty, theirs) => *ours = theirs.clone(),
                (Chunk::Some(bits), Chunk::Some(theirs)) => {
                    bits.words.iter_mut().zip(theirs.words).for_each(|(word, their)| *word |= their);
                    bits.count = bits.words.iter().map(|word| word.count_ones() as u16).sum();
                    if u64::from(bits.count) == capacity {
                        *ours = Chunk::Full;
                    }
                }
            }
            self.count += self.chunk_count(number) - before;
        }
    }

    /// How many blocks are here and not in `other`, a map of the same length.
    pub(crate) fn count_not_in(&self, other: &Self) -> u64 {
        let chunks = self.chunks.iter().zip(&other.chunks).enumerate();
        let counts = chunks.map(|(index, chunks)| match chunks {
            (Chunk::Empty, _) | (_, Chunk::Full) => 0,
            (_, Chunk::Empty) => self.chunk_count(index as u64),
            (_, Chunk::Some(_)) => {
                let first = index as u64 * WORDS as u64;
                let open = |word| u64::from((self.word(word) & !other.word(word)).count_ones());
                (first..first + WORDS as u64).map(open).sum()
            }
        });
        counts.sum()
    }

    /// The blocks that are there, as ranges in ascending order with gaps between them.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs(true)
    }

    /// The blocks that are not there, as ranges in ascending order.
    pub fn gaps(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs(false)
    }

    /// The blocks of a range that are not there, as ranges in ascending order.
    pub(crate) fn gaps_in(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let (mut at, end) = (range.start, range.end.min(self.len));
        core::iter::from_fn(move || {
            let start = self.next(false, at).filter(|start| *start < end)?;
            let stop = self.next(true, start).unwrap_or(end).min(end);
            at = stop;
            Some(start..stop)
        })
    }

    fn runs(&self, present: bool) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        core::iter::from_fn(move || {
            let start = self.next(present, at)?;
            let end = self.next(!present, start).unwrap_or(self.len);
            at = end;
            Some(start..end)
        })
    }

    /// The first block from `from` on that is not there.
    pub fn next_clear(&self, from: u64) -> Option<u64> {
        self.next(false, from)
    }

    /// The first block from `from` on that is (not) there.
    fn next(&self, present: bool, from: u64) -> Option<u64> {
        let hopeless = if present { Chunk::Empty } else { Chunk::Full };
        self.search(
            from,
            |chunk| self.chunks[chunk] != hopeless,
            |word| {
                if present { self.word(word) } else { !self.word(word) }
            },
        )
    }

    /// The first block from `from` on that is here and not in `other`, a map of the same length.
    pub fn next_not_in(&self, other: &Self, from: u64) -> Option<u64> {
        self.search(
            from,
            |chunk| {
                !matches!((&self.chunks[chunk], &other.chunks[chunk]), (Chunk::Empty, _) | (_, Chunk::Full))
            },
            |word| self.word(word) & !other.word(word),
        )
    }

    /// The first block from `from` on that is here and in none of the others, maps of the same length.
    pub(crate) fn next_in_none_of(&self, others: &[&Self], from: u64) -> Option<u64> {
        self.search(
            from,
            |chunk| {
                self.chunks[chunk] != Chunk::Empty
                    && others.iter().all(|other| other.chunks[chunk] != Chunk::Full)
            },
            |word| others.iter().fold(self.word(word), |left, other| left & !other.word(word)),
        )
    }

    /// The first block from `from` on that is neither here nor in `other`, a map of the same length.
    pub fn next_in_neither(&self, other: &Self, from: u64) -> Option<u64> {
        self.search(
            from,
            |chunk| {
                !matches!((&self.chunks[chunk], &other.chunks[chunk]), (Chunk::Full, _) | (_, Chunk::Full))
            },
            |word| !self.word(word) & !other.word(word),
        )
    }

    /// The first bit set in what `word` gives, from block `from` on, leaving out chunks without hope.
    fn search(&self, from: u64, hope: impl Fn(usize) -> bool, word: impl Fn(u64) -> u64) -> Option<u64> {
        let mut at = from;
        while at < self.len {
            let chunk = at / CHUNK;
            if !hope(chunk as usize) {
                at = (chunk + 1) * CHUNK;
                continue;
            }
            let found = word(at / 64) & (u64::MAX << (at % 64));
            if found != 0 {
                let block = at / 64 * 64 + u64::from(found.trailing_zeros());
                return (block < self.len).then_some(block);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    fn word(&self, word: u64) -> u64 {
        let chunk = word / WORDS as u64;
        match self.chunks.get(chunk as usize) {
            None | Some(Chunk::Empty) => 0,
            Some(Chunk::Full) => valid_bits(self.capacity(chunk), (word % WORDS as u64) as usize),
            Some(Chunk::Some(bits)) => bits.words[(word % WORDS as u64) as usize],
        }
    }

    fn capacity(&self, chunk: u64) -> u64 {
        (self.len - chunk * CHUNK).min(CHUNK)
    }

    fn chunk_count(&self, chunk: u64) -> u64 {
        match &self.chunks[chunk as usize] {
            Chunk::Empty => 0,
            Chunk::Full => self.capacity(chunk),
            Chunk::Some(bits) => u64::from(bits.count),
        }
    }

    /// A short byte form for journals: the length, then the lengths of alternating runs, absent first, all as
    /// variable-length integers (LEB128).
    pub fn to_summary(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, self.len);
        let mut at = 0;
        for range in self.ranges() {
            put_varint(&mut bytes, range.start - at);
            put_varint(&mut bytes, range.end - range.start);
            at = range.end;
        }
        bytes
    }

    /// Reads [`Self::to_summary`] back; `None` if the bytes are none, or not of a map of `len` blocks.
    pub fn from_summary(len: u64, mut bytes: &[u8]) -> Option<Self> {
        if take_varint(&mut bytes)? != len {
            return None;
        }
        let (mut map, mut at) = (Self::new(len), 0u64);
        while !bytes.is_empty() {
            let start = at.checked_add(take_varint(&mut bytes)?)?;
            at = start.checked_add(take_varint(&mut bytes)?)?;
            if at > len {
                return None;
            }
            map.insert_range(start..at);
        }
        Some(map)
    }
}

fn position(block: u64) -> (usize, u64) {
    ((block % CHUNK / 64) as usize, 1 << (block % 64))
}

/// The bits of the `word`-th word of a chunk that stand for one of its `capacity` blocks.
fn valid_bits(capacity: u64, word: usize) -> u64 {
    match capacity.saturating_sub(word as u64 * 64) {
        0 => 0,
        n if n >= 64 => u64::MAX,
        n => (1 << n) - 1,
    }
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let low = u64::from(byte & 0x7f);
        if shift == 63 && low > 1 {
            return None;
        }
        value |= low << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A small number for each block: how many have it.
#[derive(Clone, Debug)]
pub(crate) struct BlockCounts {
    len: u64,
    chunks: Vec<Counts>,
}

#[derive(Clone, Debug)]
enum Counts {
    Same(u16),
    Each(Box<[u16; CHUNK as usize]>),
}

impl BlockCounts {
    pub(crate) fn new(len: u64) -> Self {
        Self { len, chunks: alloc::vec![Counts::Same(0); len.div_ceil(CHUNK) as usize] }
    }

    pub(crate) fn at(&self, block: u64) -> u16 {
        match self.chunks.get((block / CHUNK) as usize) {
            None => 0,
            Some(Counts::Same(n)) => *n,
            Some(Counts::Each(each)) => each[(block % CHUNK) as usize],
        }
    }

    /// Counts one more for a block and gives the new number.
    pub(crate) fn add(&mut self, block: u64) -> u16 {
        let n = self.each(block);
        *n += 1;
        *n
    }

    /// Counts one less for a block and gives the new number.
    pub(crate) fn sub(&mut self, block: u64) -> u16 {
        let n = self.each(block);
        *n -= 1;
        *n
    }

    fn each(&mut self, block: u64) -> &mut u16 {
        debug_assert!(block < self.len);
        let chunk = &mut self.chunks[(block / CHUNK) as usize];
        if let Counts::Same(n) = chunk {
            *chunk = Counts::Each(Box::new([*n; CHUNK as usize]));
        }
        match chunk {
            Counts::Each(each) => &mut each[(block % CHUNK) as usize],
            Counts::Same(_) => unreachable!("made one by one above"),
        }
    }

    pub(crate) fn add_map(&mut self, map: &BlockMap) {
        self.change(map, |n| *n += 1);
    }

    pub(crate) fn sub_map(&mut self, map: &BlockMap) {
        self.change(map, |n| *n -= 1);
    }

    fn change(&mut self, map: &BlockMap, change: impl Fn(&mut u16)) {
        for (i, (counts, chunk)) in self.chunks.iter_mut().zip(&map.chunks).enumerate() {
            match (chunk, counts) {
                (Chunk::Empty, _) => {}
                (Chunk::Full, Counts::Same(n)) => change(n),
                (Chunk::Full, Counts::Each(each)) => {
                    each[..map.capacity(i as u64) as usize].iter_mut().for_each(&change);
                }
                (Chunk::Some(bits), counts) => {
                    if let Counts::Same(n) = counts {
                        *counts = Counts::Each(Box::new([*n; CHUNK as usize]));
                    }
                    let Counts::Each(each) = counts else { unreachable!("made one by one above") };
                    for (word, &set) in bits.words.iter().enumerate() {
                        let mut left = set;
                        while left != 0 {
                            change(&mut each[word * 64 + left.trailing_zeros() as usize]);
                            left &= left - 1;
                        }
                    }
                }
            }
        }
    }
}

/// Of each class of blocks, those that come after it, where classes come one after the other and then the rest. Of classes
/// that have a block in common the first one has it.
pub(crate) fn later(classes: &[BlockMap]) -> Vec<BlockMap> {
    let mut until_here = BlockMap::new(classes.first().map_or(0, BlockMap::len));
    let after = |class: &BlockMap| {
        class.ranges().for_each(|range| _ = until_here.insert_range(range));
        BlockMap::from_ranges(until_here.len(), until_here.gaps())
    };
    classes.iter().map(after).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::vec;

    #[test]
    fn behaves_like_a_set() {
        let mut chance = crate::chance::Chance::new(7);
        for len in [0, 1, 63, 64, 65, 4095, 4096, 4097, 10_000] {
            let (mut map, mut set) = (BlockMap::new(len), BTreeSet::new());
            for _ in 0..400 {
                let a = chance.below(len + 10);
                match chance.below(4) {
                    0 => assert_eq!(map.remove(a), set.remove(&a), "{len} {a}"),
                    1 => assert_eq!(map.insert(a), a < len && set.insert(a), "{len} {a}"),
                    _ => {
                        let b = a + chance.below(6000);
                        let before = set.len();
                        set.extend(a..b.min(len));
                        assert_eq!(map.insert_range(a..b), (set.len() - before) as u64);
                    }
                }
                if chance.below(40) == 0 {
                    (map, set) = (BlockMap::new(len), BTreeSet::new());
                }
                assert_eq!(map.count(), set.len() as u64);
            }
            assert_eq!(map.ranges().flatten().collect::<BTreeSet<_>>(), set);
            assert_eq!(map.gaps().flatten().count(), (len as usize) - set.len());
            let (from, to) = (len / 3, len + 7);
            let gaps: Vec<u64> = map.gaps_in(from..to).flatten().collect();
            assert_eq!(gaps, (from..len).filter(|i| !set.contains(i)).collect::<Vec<_>>());
            assert!((0..len + 70).all(|i| map.contains(i) == set.contains(&i)));
            assert_eq!(BlockMap::from_ranges(len, map.ranges()), map);
            assert_eq!(BlockMap::from_summary(len, &map.to_summary()), Some(map));
        }
    }

    #[test]
    fn equal_sets_are_equal_values() {
        let mut map = BlockMap::new(5000);
        assert_eq!(map.insert_range(0..5000), 5000);
        assert_eq!(map, BlockMap::full(5000));
        assert!(map.is_complete());
        (0..5000).for_each(|i| assert!(map.remove(i)));
        assert_eq!(map, BlockMap::new(5000));
    }

    #[test]
    fn searches_two_maps_at_once() {
        let here = BlockMap::from_ranges(9000, [10..20, 8000..8999]);
        let other = BlockMap::from_ranges(9000, [0..15, 18..8500]);
        assert_eq!(here.next_not_in(&other, 0), Some(15));
        assert_eq!(here.next_not_in(&other, 18), Some(8500));
        assert_eq!(here.next_not_in(&other, 8999), None);
        assert_eq!(here.next_in_neither(&other, 0), Some(8999));
        assert_eq!(BlockMap::full(9000).next_in_neither(&other, 0), None);
        let third = BlockMap::from_ranges(9000, [15..16, 8500..8700]);
        assert_eq!(here.next_in_none_of(&[&other, &third], 0), Some(16));
        assert_eq!(here.next_in_none_of(&[&other, &third], 18), Some(8700));
        assert_eq!(here.next_in_none_of(&[&other, &BlockMap::full(9000)], 0), None);
    }

    #[test]
    fn refuses_bad_summaries() {
        let good = BlockMap::from_ranges(5000, [3..400, 4000..4500]).to_summary();
        assert!(BlockMap::from_summary(4999, &good).is_none());
        assert!(BlockMap::from_summary(5000, &good[..good.len() - 1]).is_none());
        let too_far = [vec![136, 39], vec![0], vec![137, 39]].concat();
        assert!(BlockMap::from_summary(5000, &too_far).is_none());
        assert!(BlockMap::from_summary(5000, &[0xff; 11]).is_none());
    }

    #[test]
    fn counts_follow_maps() {
        let maps = [
            BlockMap::full(9000),
            BlockMap::from_ranges(9000, [5..4200, 8000..8100]),
            BlockMap::from_ranges(9000, [0..1, 4096..8192]),
        ];
        let mut counts = BlockCounts::new(9000);
        maps.iter().for_each(|m| counts.add_map(m));
        for i in 0..9000 {
            assert_eq!(usize::from(counts.at(i)), maps.iter().filter(|m| m.contains(i)).count());
        }
        maps.iter().for_each(|m| counts.sub_map(m));
        assert!((0..9000).all(|i| counts.at(i) == 0));
        assert_eq!((counts.add(8999), counts.sub(8999)), (1, 0));
    }
}
