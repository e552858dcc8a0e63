//! The weak hash beside each block's strong one: cheap to move along a file byte by byte, so that a destination
//! finds blocks that it has at another offset (PROTOCOL.md §4.4).
//!
//! The bytes of a window are the coefficients of a polynomial, evaluated at a fixed point modulo the prime
//! 2^31 - 1. Two different windows agree with a probability of about 2^-31, also where content repeats itself
//! with a period of a power of two, which a modulus of 2^32 and rotating hashes tell apart badly.

/// The modulus, a Mersenne prime: reducing takes a shift and an addition.
const PRIME: u64 = (1 << 31) - 1;

/// Where the polynomial is evaluated. Below 2^30, so that a sum that is folded once stays below 2^33 for ever.
const POINT: u64 = 0x2545_f491;

/// Bytes taken at a time where the hash need not roll.
const STRIDE: usize = 8;

/// `POINT` to the powers 0 to [`STRIDE`].
const POWERS: [u64; STRIDE + 1] = {
    let mut powers = [1; STRIDE + 1];
    let mut i = 1;
    while i <= STRIDE {
        powers[i] = powers[i - 1] * POINT % PRIME;
        i += 1;
    }
    powers
};

/// The weak hash of a block.
pub fn weak_hash(block: &[u8]) -> u32 {
    reduce(evaluate(block))
}

/// The weak hash of a window that moves along a file.
#[derive(Clone)]
pub struct Rolling {
    value: u64,
    /// For each byte what it takes to cancel it when it leaves the window.
    leaving: [u64; 256],
}

impl Rolling {
    /// Begins with this window; it keeps its length.
    pub fn new(window: &[u8]) -> Self {
        let power = power(window.len() as u64);
        let leaving = core::array::from_fn(|byte| PRIME - byte as u64 * power % PRIME);
        Self { value: evaluate(window), leaving }
    }

    /// Moves on by one byte: `out` was the window's first, `into` follows its last.
    #[inline]
    pub fn roll(&mut self, out: u8, into: u8) {
        let add = self.leaving[usize::from(out)] + u64::from(into);
        self.value = fold(self.value * POINT + add);
    }

    /// Starts anew with another window of the same length.
    pub fn restart(&mut self, window: &[u8]) {
        self.value = evaluate(window);
    }

    /// The hash of the window.
    #[inline]
    pub fn value(&self) -> u32 {
        reduce(self.value)
    }
}

/// The same number modulo the prime, smaller.
#[inline]
const fn fold(x: u64) -> u64 {
    (x & PRIME) + (x >> 31)
}

/// The canonical remainder of a number below 2^33.
#[inline]
fn reduce(x: u64) -> u32 {
    (x % PRIME) as u32
}

fn power(mut exponent: u64) -> u64 {
    let (mut result, mut square) = (1, POINT);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result * square % PRIME;
        }
        square = square * square % PRIME;
        exponent >>= 1;
    }
    result
}

fn evaluate(bytes: &[u8]) -> u64 {
    let strides = bytes.chunks_exact(STRIDE);
    let rest = strides.remainder();
    let mut value = 0;
    for stride in strides {
        // Products that do not wait for one another: several times faster than byte after byte.
        let mut sum = 0;
        for (i, &byte) in stride.iter().enumerate() {
            sum += u64::from(byte) * POWERS[STRIDE - 1 - i];
        }
        value = fold(fold(value * POWERS[STRIDE] + sum));
    }
    for &byte in rest {
        value = fold(value * POINT + u64::from(byte));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use std::collections::BTreeSet;

    fn noise(len: usize) -> Vec<u8> {
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        let step = |_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        };
        (0..len).map(step).collect()
    }

    /// The definition: the value of the polynomial, in plain arithmetic.
    fn by_definition(bytes: &[u8]) -> u32 {
        let value =
            bytes.iter().fold(0u128, |v, &b| (v * u128::from(POINT) + u128::from(b)) % u128::from(PRIME));
        value as u32
    }

    #[test]
    fn a_window_that_rolled_is_the_window_hashed_anew() {
        let bytes = noise(9000);
        for len in [1, 7, 8, 9, 1000, 4096] {
            let mut rolling = Rolling::new(&bytes[..len]);
            for start in 0..bytes.len() - len {
                assert_eq!(rolling.value(), by_definition(&bytes[start..start + len]), "{start} of {len}");
                rolling.roll(bytes[start], bytes[start + len]);
            }
            assert_eq!(weak_hash(&bytes[..len]), by_definition(&bytes[..len]));
        }
        let mut extreme = Rolling::new(&[255; 4096]);
        (0..100_000).for_each(|_| extreme.roll(255, 255));
        assert_eq!(extreme.value(), by_definition(&[255; 4096]));
        assert_eq!(weak_hash(&[]), 0);
    }

    #[test]
    fn repetition_is_told_apart() {
        // Blocks of 32 KiB of records of 16 bytes that differ in one byte, of one byte repeated, and of pages in
        // another order: structure that weak hashes are known to confuse.
        let mut seen = BTreeSet::new();
        let mut count = 0;
        for byte in 0..=255u8 {
            let mut record = [0; 16];
            record[5] = byte;
            for block in [record.repeat(2048), [byte].repeat(32 * 1024)] {
                count += 1;
                seen.insert(weak_hash(&block));
            }
        }
        let bytes = noise(32 * 1024);
        let pages: Vec<&[u8]> = bytes.chunks(4096).collect();
        for first in 0..8 {
            for second in 0..first {
                let mut order = pages.clone();
                order.swap(first, second);
                count += 1;
                seen.insert(weak_hash(&order.concat()));
            }
        }
        // All zeros is made twice.
        assert_eq!(seen.len(), count - 1);
    }
}
