//! Data that need not be kept: every byte of every block is a function of its place, so a sender makes it
//! up and a receiver checks it, however large the transfer is.

use std::collections::VecDeque;

use utp2::RangeSet;

/// Fills `buf` with the bytes of block `tag` from `offset` on.
pub fn fill(tag: u64, offset: u32, buf: &mut [u8]) {
    let base = base(tag);
    let (index, skip) = (u64::from(offset) / 8, offset as usize % 8);
    let head = word(base, index).to_le_bytes();
    let n = if skip == 0 { 0 } else { (8 - skip).min(buf.len()) };
    let (first, rest) = buf.split_at_mut(n);
    first.copy_from_slice(&head[skip..skip + n]);
    let index = index + u64::from(skip != 0);
    let (words, tail) = rest.as_chunks_mut::<8>();
    for (i, to) in (index..).zip(words.iter_mut()) {
        *to = word(base, i).to_le_bytes();
    }
    let last = word(base, index + words.len() as u64).to_le_bytes();
    tail.copy_from_slice(&last[..tail.len()]);
}

/// Whether `data` is what [`fill`] gives for this place.
#[must_use]
pub fn matches(tag: u64, offset: u32, data: &[u8]) -> bool {
    let base = base(tag);
    let (index, skip) = (u64::from(offset) / 8, offset as usize % 8);
    let head = word(base, index).to_le_bytes();
    let n = if skip == 0 { 0 } else { (8 - skip).min(data.len()) };
    let (first, rest) = data.split_at(n);
    let index = index + u64::from(skip != 0);
    let (words, tail) = rest.as_chunks::<8>();
    // Differences are gathered, not looked for one by one: that is what the compiler makes fast.
    let differs = (index..).zip(words).fold(0, |d, (i, w)| d | (u64::from_le_bytes(*w) ^ word(base, i)));
    let last = word(base, index + words.len() as u64).to_le_bytes();
    differs == 0 && *first == head[skip..skip + n] && *tail == last[..tail.len()]
}

/// The finaliser of splitmix64: every bit depends on every bit of the tag.
fn base(tag: u64) -> u64 {
    let mut z = tag.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Cheap, since it is made twice for every eight bytes simulated. No word of a block is like another.
fn word(base: u64, index: u64) -> u64 {
    base.wrapping_add(index.wrapping_mul(0xd134_2543_de82_ef95))
}

/// Bytes of a transfer without an end.
pub const ENDLESS: u64 = u64::MAX;

/// What has come of one block.
#[derive(Default)]
struct Block {
    complete: bool,
    ranges: RangeSet,
}

/// What a receiver has of a transfer, in blocks tagged 0, 1, 2…; checks every byte. Keeps nothing of the
/// blocks before the first that is not complete.
pub struct Ledger {
    bytes: u64,
    block_len: u32,
    /// Blocks below are complete; the first of `open` has this tag.
    first: u64,
    open: VecDeque<Block>,
    spare: Vec<RangeSet>,
    received: u64,
    duplicate: u64,
    fault: Option<String>,
}

/// Blocks beyond the first incomplete one that may be under way: 4 GiB of 32 KiB each.
const OPEN_MAX: u64 = 1 << 17;

impl Ledger {
    /// Expects `bytes` bytes (or [`ENDLESS`]) in blocks of `block_len`, the last one shorter.
    ///
    /// # Panics
    /// If `block_len` is zero.
    #[must_use]
    pub fn new(bytes: u64, block_len: u32) -> Self {
        assert!(block_len > 0, "blocks have bytes");
        Self {
            bytes,
            block_len,
            first: 0,
            open: VecDeque::new(),
            spare: Vec::new(),
            received: 0,
            duplicate: 0,
            fault: None,
        }
    }

    /// The length of block `tag`; 0 beyond the end.
    #[must_use]
    pub fn len_of(&self, tag: u64) -> u32 {
        let rest = self.bytes.saturating_sub(tag.saturating_mul(u64::from(self.block_len)));
        u32::try_from(rest).unwrap_or(u32::MAX).min(self.block_len)
    }

    /// Takes a piece of block `tag`.
    pub fn write(&mut self, tag: u64, offset: u32, fin: bool, data: &[u8]) {
        let end = u64::from(offset) + data.len() as u64;
        let len = self.len_of(tag);
        if end > u64::from(len) || data.is_empty() {
            return self.fail(format!("block {tag}: piece {offset}..{end} of a block of {len}"));
        }
        if fin != (end == u64::from(len)) {
            return self.fail(format!("block {tag}: piece {offset}..{end} of {len} has fin {fin}"));
        }
        if !matches(tag, offset, data) {
            return self.fail(format!("block {tag}: wrong bytes in {offset}..{end}"));
        }
        let Some(ahead) = tag.checked_sub(self.first) else {
            self.duplicate += data.len() as u64;
            return;
        };
        if ahead >= OPEN_MAX {
            return self.fail(format!("block {tag} came while {} is not complete", self.first));
        }
        while self.open.len() as u64 <= ahead {
            self.open.push_back(Block { complete: false, ranges: self.spare.pop().unwrap_or_default() });
        }
        let block = &mut self.open[ahead as usize];
        if block.complete {
            self.duplicate += data.len() as u64;
            return;
        }
        let new = block.ranges.insert(u64::from(offset), end);
        self.received += new;
        self.duplicate += data.len() as u64 - new;
        block.complete = block.ranges.contains(0, u64::from(len));
        while self.open.front().is_some_and(|b| b.complete) {
            let mut done = self.open.pop_front().expect("just seen").ranges;
            done.clear();
            self.spare.push(done);
            self.first += 1;
        }
    }

    /// Bytes received, each counted once.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes received again.
    #[must_use]
    pub fn duplicate(&self) -> u64 {
        self.duplicate
    }

    /// Whether every byte of every block has come.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.received == self.bytes
    }

    /// The first thing that was wrong with what came.
    #[must_use]
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    fn fail(&mut self, what: String) {
        self.fault.get_or_insert(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_depend_on_their_place_alone() {
        let mut whole = [0; 100];
        fill(5, 0, &mut whole);
        for start in 0..100u32 {
            let mut part = vec![0; 100 - start as usize];
            fill(5, start, &mut part);
            assert_eq!(part, whole[start as usize..]);
            assert!(matches(5, start, &part));
            assert!(!matches(6, start, &part) && !matches(5, start + 1, &part));
        }
    }

    #[test]
    fn a_ledger_counts_each_byte_once() {
        let mut ledger = Ledger::new(2500, 1000);
        let mut piece = |tag: u64, from: u32, to: u32| {
            let mut data = vec![0; (to - from) as usize];
            fill(tag, from, &mut data);
            ledger.write(tag, from, to == ledger.len_of(tag), &data);
            (ledger.received(), ledger.duplicate(), ledger.is_complete())
        };
        assert_eq!(piece(0, 500, 1000), (500, 0, false));
        assert_eq!(piece(0, 0, 600), (1000, 100, false));
        assert_eq!(piece(0, 0, 600), (1000, 700, false));
        assert_eq!(piece(2, 0, 500), (1500, 700, false));
        for (from, to) in [(0, 100), (300, 400), (900, 1000), (100, 300), (350, 950)] {
            piece(1, from, to);
        }
        assert_eq!(piece(1, 0, 1), (2500, 700 + 100 + 1, true));
        assert_eq!(ledger.fault(), None);
    }

    #[test]
    fn wrong_bytes_places_and_ends_are_noticed() {
        let check = |tag, offset, fin, data: &[u8], says: &str| {
            let mut ledger = Ledger::new(2500, 1000);
            ledger.write(tag, offset, fin, data);
            assert!(ledger.fault().is_some_and(|f| f.contains(says)), "{:?}", ledger.fault());
        };
        let mut right = [0; 500];
        fill(2, 0, &mut right);
        check(2, 0, false, &right, "fin");
        check(2, 1, true, &right, "piece");
        check(3, 0, true, &right, "piece");
        right[499] ^= 1;
        check(2, 0, true, &right, "wrong bytes");
    }
}
