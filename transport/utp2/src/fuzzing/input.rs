//! Bytes as decisions: what a target reads from the fuzzer's input. At the end of the bytes everything reads as zero,
//! so that a cut input means nearly the same and corpora can be minimised.

use core::time::Duration;

/// The decisions not taken yet.
#[derive(Clone, Debug)]
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `n` bytes, as many as are left.
    pub(crate) fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n.min(self.0.len()));
        self.0 = tail;
        head
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let got = self.bytes(N);
        out[..got.len()].copy_from_slice(got);
        out
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// Any number, small ones and those near powers of two with few bytes.
    pub(crate) fn number(&mut self) -> u64 {
        let kind = self.u8();
        match kind >> 6 {
            0 => u64::from(kind & 0x3f),
            1 => u64::from(kind & 0x3f) << 8 | u64::from(self.u8()),
            2 => (1u64 << (kind & 0x3f)).wrapping_add(u64::from(self.u8())).wrapping_sub(128),
            _ => self.u64(),
        }
    }

    /// From nothing to about a minute, finer the shorter it is: the byte's upper half is a power of two.
    pub(crate) fn time(&mut self) -> Duration {
        let b = self.u8();
        let mantissa = u64::from(b & 0x0f) + u64::from(b >> 4 > 0) * 16;
        Duration::from_micros(mantissa << (u32::from(b >> 4).saturating_sub(1) * 3 / 2))
    }
}
