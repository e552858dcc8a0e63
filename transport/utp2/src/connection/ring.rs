//! A queue in parts of fixed size: it grows without copying, and what a peak needed is given back after it.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

/// Entries of a part: small enough for a small device, large enough that allocating is rare.
const PART: usize = 64;

/// A double-ended queue with access by index, all in constant time. Parts that fall empty are used again, so a queue
/// of steady length allocates nothing.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    parts: VecDeque<Box<[T]>>,
    /// Where the first entry lies in the first part.
    head: usize,
    len: usize,
    /// Empty parts to use next; at most an eighth of those in use and one.
    spare: Vec<Box<[T]>>,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self { parts: VecDeque::new(), head: 0, len: 0, spare: Vec::new() }
    }
}

impl<T: Copy + Default> Ring<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn new_part(&mut self) -> Box<[T]> {
        self.spare.pop().unwrap_or_else(|| vec![T::default(); PART].into_boxed_slice())
    }

    #[inline]
    pub(crate) fn push_back(&mut self, value: T) {
        let at = self.head + self.len;
        if at == self.parts.len() * PART {
            let part = self.new_part();
            self.parts.push_back(part);
        }
        self.parts[at / PART][at % PART] = value;
        self.len += 1;
    }

    pub(crate) fn push_front(&mut self, value: T) {
        if self.head == 0 {
            let part = self.new_part();
            self.parts.push_front(part);
            self.head = PART;
        }
        self.head -= 1;
        self.parts[0][self.head] = value;
        self.len += 1;
    }

    #[inline]
    pub(crate) fn pop_front(&mut self) -> Option<T> {
        let value = *self.front()?;
        self.head += 1;
        self.len -= 1;
        if self.head == PART {
            self.head = 0;
            if let Some(part) = self.parts.pop_front() {
                self.spare.push(part);
            }
            self.spare.truncate(1 + self.parts.len() / 8);
        }
        Some(value)
    }

    #[inline]
    pub(crate) fn front(&self) -> Option<&T> {
        self.get(0)
    }

    #[inline]
    pub(crate) fn get(&self, i: usize) -> Option<&T> {
        let at = self.head + i;
        (i < self.len).then(|| &self.parts[at / PART][at % PART])
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, i: usize) -> Option<&mut T> {
        let at = self.head + i;
        if i < self.len { Some(&mut self.parts[at / PART][at % PART]) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn behaves_like_a_plain_queue_and_gives_back_what_a_peak_took() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let (mut ring, mut plain) = (Ring::default(), VecDeque::new());
        for round in 0..100_000u32 {
            // Grows for a while, then shrinks.
            let grow = round % 20_000 < 11_000;
            match rng.next_u32() % 8 {
                0 => {
                    ring.push_front(round);
                    plain.push_front(round);
                }
                1..5 if grow => {
                    ring.push_back(round);
                    plain.push_back(round);
                }
                _ => assert_eq!(ring.pop_front(), plain.pop_front()),
            }
            assert_eq!(
                (ring.len(), ring.is_empty(), ring.front()),
                (plain.len(), plain.is_empty(), plain.front())
            );
            let i = rng.next_u32() as usize % (plain.len() + 1);
            assert_eq!(ring.get(i), plain.get(i));
            if let Some(v) = ring.get_mut(i) {
                *v += 1;
                plain[i] += 1;
            }
        }
        (0..100_000).for_each(|n| ring.push_back(n));
        while ring.len() > 10 {
            ring.pop_front();
        }
        assert!(ring.parts.len() + ring.spare.len() <= 4, "{} {}", ring.parts.len(), ring.spare.len());
    }
}
