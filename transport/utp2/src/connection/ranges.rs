//! A set of numbers kept as sorted, disjoint, non-touching half-open ranges.

use alloc::vec::Vec;

/// A set of numbers that grows with the number of its holes only: filled in order it is one range. Nothing limits
/// the holes; look at [`RangeSet::as_slice`] where a stranger makes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<(u64, u64)>);

/// So many ranges are inserted one by one.
const FEW: usize = 16;

impl RangeSet {
    /// Forgets everything but its room in memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds `start..end` and returns how many numbers of it were new. Cheap at the end, a binary search elsewhere.
    pub fn insert(&mut self, start: u64, end: u64) -> u64 {
        if start >= end {
            return 0;
        }
        // The usual case first: at or after the end.
        match self.0.last_mut() {
            None => {
                self.0.push((start, end));
                return end - start;
            }
            Some(last) if start == last.1 => {
                last.1 = end;
                return end - start;
            }
            Some(last) if start > last.1 => {
                self.0.push((start, end));
                return end - start;
            }
            Some(_) => {}
        }
        // All ranges that touch start..end are merged into one.
        let from = self.0.partition_point(|r| r.1 < start);
        let to = self.0.partition_point(|r| r.0 <= end);
        if from == to {
            self.0.insert(from, (start, end));
            return end - start;
        }
        let merged = (start.min(self.0[from].0), end.max(self.0[to - 1].1));
        let had: u64 = self.0[from..to].iter().map(|r| r.1 - r.0).sum();
        self.0[from] = merged;
        self.0.drain(from + 1..to);
        merged.1 - merged.0 - had
    }

    /// Adds all of `ranges`, in whatever order, and empties the list. However many there are and wherever they lie,
    /// it costs one pass over the set, not one each.
    pub fn insert_all(&mut self, ranges: &mut Vec<(u64, u64)>) {
        if ranges.len() <= FEW {
            for (start, end) in ranges.drain(..) {
                self.insert(start, end);
            }
            return;
        }
        ranges.retain(|r| r.0 < r.1);
        self.0.append(ranges);
        self.0.sort_unstable();
        self.0.dedup_by(|next, last| {
            let touch = next.0 <= last.1;
            if touch {
                last.1 = last.1.max(next.1);
            }
            touch
        });
    }

    /// Whether all of `start..end` is in the set.
    #[must_use]
    pub fn contains(&self, start: u64, end: u64) -> bool {
        let i = self.0.partition_point(|r| r.1 < end);
        start >= end || self.0.get(i).is_some_and(|r| r.0 <= start && end <= r.1)
    }

    /// Forgets everything below `limit`.
    pub fn remove_below(&mut self, limit: u64) {
        let gone = self.0.partition_point(|r| r.1 <= limit);
        if gone > 0 {
            self.0.drain(..gone);
        }
        if let Some(first) = self.0.first_mut() {
            first.0 = first.0.max(limit);
        }
    }

    /// End of the range that begins at or below `at` and reaches it; `at` if there is none.
    pub(crate) fn reach(&self, at: u64) -> u64 {
        match self.0.first() {
            Some(r) if r.0 <= at && r.1 > at => r.1,
            _ => at,
        }
    }

    /// The ranges, smallest first, each with its end excluded.
    #[must_use]
    pub fn as_slice(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// Drops the `n` smallest ranges.
    pub(crate) fn drop_first(&mut self, n: usize) {
        self.0.drain(..n.min(self.0.len()));
    }

    /// The end of the range that holds `at`.
    ///
    /// # Errors
    /// The start of the next range, if there is one, where none holds `at`.
    pub fn end_of(&self, at: u64) -> Result<u64, Option<u64>> {
        let i = self.0.partition_point(|r| r.1 <= at);
        match self.0.get(i) {
            Some(r) if r.0 <= at => Ok(r.1),
            Some(r) => Err(Some(r.0)),
            None => Err(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand_chacha::ChaCha8Rng;
    use rand_core::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn many_at_once_are_the_same_as_one_by_one() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for count in [0, 1, FEW, FEW + 1, 200] {
            let (mut one_by_one, mut at_once) = (RangeSet::default(), RangeSet::default());
            for _ in 0..20 {
                let mut ranges: Vec<_> = (0..count)
                    .map(|_| (u64::from(rng.next_u32() % 2000), u64::from(rng.next_u32() % 9)))
                    .map(|(start, len)| (start, start + len))
                    .collect();
                for &(start, end) in &ranges {
                    one_by_one.insert(start, end);
                }
                at_once.insert_all(&mut ranges);
                assert_eq!((&at_once, ranges.len()), (&one_by_one, 0));
            }
        }
    }

    #[test]
    fn behaves_like_a_plain_set() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for _ in 0..300 {
            let (mut ranges, mut plain) = (RangeSet::default(), BTreeSet::new());
            for _ in 0..40 {
                let start = u64::from(rng.next_u32() % 100);
                let end = start + u64::from(rng.next_u32() % 12);
                let new = (start..end).filter(|n| plain.insert(*n)).count() as u64;
                assert_eq!(ranges.insert(start, end), new);
                assert!(ranges.0.windows(2).all(|w| w[0].1 < w[1].0), "{ranges:?}");
                let (a, b) = (u64::from(rng.next_u32() % 100), u64::from(rng.next_u32() % 100));
                assert_eq!(ranges.contains(a, b), (a..b).all(|n| plain.contains(&n)), "{ranges:?} {a} {b}");
            }
            for at in 0..112 {
                let run = |is: bool| (at..).find(|n| plain.contains(n) == is);
                let next = plain.range(at..).next().copied();
                let want = if plain.contains(&at) { Ok(run(false).unwrap()) } else { Err(next) };
                assert_eq!(ranges.end_of(at), want);
            }
            ranges.remove_below(50);
            plain.retain(|n| *n >= 50);
            assert_eq!(ranges.0.iter().map(|r| r.1 - r.0).sum::<u64>(), plain.len() as u64);
            let mut end = 50;
            while plain.contains(&end) {
                end += 1;
            }
            assert_eq!(ranges.reach(50), end);
        }
    }
}
