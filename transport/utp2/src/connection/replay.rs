//! Which packet numbers were seen, over a sliding window (PROTOCOL.md §7.2).

use alloc::vec;
use alloc::vec::Vec;

#[derive(Clone, Debug)]
pub(crate) struct ReplayWindow {
    /// Bit `n % window` tells whether number `n` of the window was seen.
    bits: Vec<u64>,
    /// The largest number seen, plus one.
    end: u64,
}

impl ReplayWindow {
    /// Remembers `window` numbers, rounded up to a multiple of 64.
    pub(crate) fn new(window: u32) -> Self {
        Self { bits: vec![0; window.div_ceil(64) as usize], end: 0 }
    }

    fn len(&self) -> u64 {
        self.bits.len() as u64 * 64
    }

    fn place(&self, number: u64) -> (usize, u64) {
        let i = number % self.len();
        ((i / 64) as usize, 1 << (i % 64))
    }

    pub(crate) fn largest(&self) -> Option<u64> {
        self.end.checked_sub(1)
    }

    /// Whether the number was seen, or is too old to tell. To be asked before a packet is opened.
    #[inline]
    pub(crate) fn is_replay(&self, number: u64) -> bool {
        if number >= self.end {
            return false;
        }
        let (word, bit) = self.place(number);
        number + self.len() < self.end || self.bits[word] & bit != 0
    }

    /// Notes an authentic packet.
    #[inline]
    pub(crate) fn insert(&mut self, number: u64) {
        if number >= self.end {
            // The numbers between are unseen; their places still tell of the numbers a window before.
            if number - self.end >= self.len() {
                self.bits.fill(0);
            } else {
                let mut n = self.end;
                while n < number {
                    let (word, bit) = self.place(n);
                    if bit == 1 && number - n >= 64 {
                        self.bits[word] = 0;
                        n += 64;
                    } else {
                        self.bits[word] &= !bit;
                        n += 1;
                    }
                }
            }
            self.end = number + 1;
        }
        let (word, bit) = self.place(number);
        self.bits[word] |= bit;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand_chacha::ChaCha8Rng;
    use rand_core::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn every_number_passes_once_and_old_ones_never() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut w = ReplayWindow::new(256);
        let mut seen = BTreeSet::new();
        let mut top = 0u64;
        for i in 0..50_000 {
            let step = if i % 997 == 0 { 1000 } else { u64::from(rng.next_u32() % 90) };
            let n = (top + step).saturating_sub(u64::from(rng.next_u32() % 300));
            let old = !seen.is_empty() && n + 256 < top + 1;
            assert_eq!(w.is_replay(n), old || seen.contains(&n), "{n}, top {top}");
            if !w.is_replay(n) {
                w.insert(n);
                seen.insert(n);
                top = top.max(n);
                assert!(w.is_replay(n));
                assert_eq!(w.largest(), Some(top));
            }
        }
    }
}
