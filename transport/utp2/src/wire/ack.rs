//! The ACK frame: received ranges, newest first, as numbers or partly as bits (PROTOCOL.md §8.2).

use alloc::vec::Vec;

use super::{Malformed, Reader, put_varint, varint_len};
use crate::connection::ecn::Counts;

/// Inclusive range of packet numbers.
pub(crate) type Range = (u64, u64);

/// Flags of the frame's type.
pub(crate) const COUNTS: u8 = 0x01;
pub(crate) const BITS: u8 = 0x02;

/// A parsed ACK; its ranges are read where they lie and were all checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ack<'a> {
    pub(crate) largest: u64,
    /// Microseconds the receiver held the largest packet before it sent this.
    pub(crate) hold_us: u64,
    /// When the largest arrived, µs on the receiver's clock.
    pub(crate) arrival_us: u64,
    /// Packets received by ECN mark.
    pub(crate) counts: Option<Counts>,
    first: u64,
    /// Bit i of byte j tells of the (8j + i + 1)th number below the first range.
    bits: &'a [u8],
    more: u64,
    rest: &'a [u8],
}

impl<'a> Ack<'a> {
    /// Reads what follows the type byte; of that the flags count.
    pub(crate) fn parse(flags: u8, r: &mut Reader<'a>) -> Result<Self, Malformed> {
        let largest = r.varint()?;
        let hold_us = r.varint()?;
        let arrival_us = r.varint()?;
        let counts = if flags & COUNTS != 0 {
            Some(Counts { ect0: r.varint()?, ect1: r.varint()?, ce: r.varint()? })
        } else {
            None
        };
        let first = r.varint()?;
        let mut low = largest.checked_sub(first).ok_or(Malformed)?;
        let mut bits: &[u8] = &[];
        if flags & BITS != 0 {
            let n = usize::try_from(r.varint()?).map_err(|_| Malformed)?;
            bits = r.bytes(n)?;
            low = low.checked_sub(n as u64 * 8).ok_or(Malformed)?;
        }
        let more = r.varint()?;
        let before = *r;
        // Behind bits a range may follow at once; else a missing number lies between.
        let mut touching = !bits.is_empty();
        for _ in 0..more {
            let gap = r.varint()? + if touching { 1 } else { 2 };
            touching = false;
            let high = low.checked_sub(gap).ok_or(Malformed)?;
            low = high.checked_sub(r.varint()?).ok_or(Malformed)?;
        }
        // What the loop has read is what the iterator will read.
        let mut rest = before;
        let rest = rest.rest();
        Ok(Self { largest, hold_us, arrival_us, counts, first, bits, more, rest })
    }

    /// The ranges, newest first. Two may touch where bits end.
    pub(crate) fn ranges(&self) -> Ranges<'a> {
        Ranges {
            low: self.largest - self.first,
            first: Some((self.largest - self.first, self.largest)),
            bits: self.bits,
            at: 0,
            more: self.more,
            rest: Reader::new(self.rest),
        }
    }
}

/// See [`Ack::ranges`].
#[derive(Clone, Debug)]
pub(crate) struct Ranges<'a> {
    first: Option<Range>,
    /// The smallest number told so far; before the bits are through, that of the first range.
    low: u64,
    bits: &'a [u8],
    at: u64,
    more: u64,
    rest: Reader<'a>,
}

impl Ranges<'_> {
    fn bit(&self, i: u64) -> bool {
        self.bits[(i / 8) as usize] >> (i % 8) & 1 != 0
    }

    /// The next run of ones.
    fn run(&mut self) -> Option<Range> {
        let end = self.bits.len() as u64 * 8;
        while self.at < end && !self.bit(self.at) {
            self.at += 1;
        }
        if self.at == end {
            return None;
        }
        let from = self.at;
        while self.at < end && self.bit(self.at) {
            self.at += 1;
        }
        Some((self.low - self.at, self.low - from - 1))
    }
}

impl Iterator for Ranges<'_> {
    type Item = Range;

    fn next(&mut self) -> Option<Range> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let mut gap = 2;
        if !self.bits.is_empty() {
            if let Some(run) = self.run() {
                return Some(run);
            }
            self.low -= self.bits.len() as u64 * 8;
            self.bits = &[];
            gap = 1;
        }
        if self.more == 0 {
            return None;
        }
        self.more -= 1;
        let high = self.low.checked_sub(self.rest.varint().ok()? + gap)?;
        self.low = high.checked_sub(self.rest.varint().ok()?)?;
        Some((self.low, high))
    }
}

/// What an ACK tells beside ranges.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    pub(crate) hold_us: u64,
    pub(crate) arrival_us: u64,
    pub(crate) counts: Counts,
}

/// How many bytes of bits are worth it: they replace ranges that would take more.
fn worthwhile_bits(older: &[(u64, u64)], low: u64, room: usize) -> usize {
    let (mut cost, mut best, mut bytes) = (0, 24, 0);
    let mut l = low;
    for &(start, end) in older.iter().rev() {
        cost += varint_len(l - end - 1) + varint_len(end - start - 1);
        l = start;
        let span = low - start;
        let n = span.div_ceil(8).min(low / 8) as usize;
        if n > room || cost > 4 * room {
            break;
        }
        // Ranges take `cost` bytes, bits take n.
        if cost as i64 * 8 - n as i64 * 8 > best {
            best = cost as i64 * 8 - n as i64 * 8;
            bytes = n;
        }
    }
    bytes
}

/// Appends an ACK with its type byte `kind`, at most `room` bytes. `ranges` are half-open, oldest first, with at least
/// one missing number between neighbours. Returns false, and appends nothing, if not even one range fits.
pub(crate) fn emit(out: &mut Vec<u8>, kind: u8, t: &Times, ranges: &[(u64, u64)], room: usize) -> bool {
    let Some((&(mut low, end), older)) = ranges.split_last() else { return false };
    let largest = end - 1;
    let with_counts = !t.counts.is_zero();
    let counts = [t.counts.ect0, t.counts.ect1, t.counts.ce];
    // The count is written before the ranges, so count first what fits; its own length is taken at its worst.
    let mut used = 1 + varint_len(largest) + varint_len(t.hold_us) + varint_len(t.arrival_us) + 4;
    used += varint_len(largest - low);
    if with_counts {
        used += counts.iter().map(|c| varint_len(*c)).sum::<usize>();
    }
    if used > room {
        return false;
    }
    let bits = worthwhile_bits(older, low, (room - used).saturating_sub(4));
    let flags = if with_counts { COUNTS } else { 0 } | if bits > 0 { BITS } else { 0 };
    out.push(kind | flags);
    for v in [largest, t.hold_us, t.arrival_us] {
        put_varint(out, v);
    }
    if with_counts {
        counts.iter().for_each(|c| put_varint(out, *c));
    }
    put_varint(out, largest - low);
    if bits > 0 {
        put_varint(out, bits as u64);
        used += varint_len(bits as u64) + bits;
        let at = out.len();
        out.resize(at + bits, 0);
        let floor = low - bits as u64 * 8;
        for &(start, end) in older.iter().rev() {
            if end <= floor {
                break;
            }
            for number in start.max(floor)..end {
                let i = low - 1 - number;
                out[at + (i / 8) as usize] |= 1 << (i % 8);
            }
        }
        low = floor;
    }
    // What is left of the ranges below the bits.
    let rest = move || {
        let below = older.iter().rev().filter(move |r| r.0 < low).map(move |r| (r.0, r.1.min(low)));
        let mut l = low;
        let mut gap = u64::from(bits == 0);
        below.map(move |(start, end)| {
            let pair = (l - end - gap, end - start - 1);
            (l, gap) = (start, 1);
            pair
        })
    };
    let mut more = 0;
    for (gap, len) in rest() {
        used += varint_len(gap) + varint_len(len);
        if used > room {
            break;
        }
        more += 1;
    }
    put_varint(out, more);
    for (gap, len) in rest().take(more as usize) {
        put_varint(out, gap);
        put_varint(out, len);
    }
    true
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::{Rng, SeedableRng};

    use super::*;

    const KIND: u8 = crate::wire::frame::ACK;

    fn parse(out: &[u8]) -> (Ack<'_>, Vec<(u64, u64)>) {
        let mut r = Reader::new(out);
        let kind = r.u8().unwrap();
        assert_eq!(kind & !(COUNTS | BITS), KIND);
        let ack = Ack::parse(kind, &mut r).unwrap();
        assert!(r.is_empty());
        // Touching ranges are one.
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (low, high) in ack.ranges() {
            match ranges.last_mut() {
                Some(last) if last.0 == high + 1 => last.0 = low,
                _ => ranges.push((low, high + 1)),
            }
        }
        ranges.reverse();
        (ack, ranges)
    }

    #[test]
    fn ranges_survive_the_round_trip_and_fit_the_room() {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let mut shorter = 0;
        for round in 0..2000u32 {
            // Sparse at times, dense at others, and both.
            let mut at = u64::from(rng.next_u32() % 40);
            let mut ranges = Vec::new();
            for i in 0..1 + rng.next_u32() % 300 {
                let dense = match round % 3 {
                    0 => false,
                    1 => true,
                    _ => i > 100,
                };
                let len = 1 + u64::from(rng.next_u32()) % if dense { 9 } else { 3000 };
                ranges.push((at, at + len));
                at += len + 1 + u64::from(rng.next_u32() % if dense { 3 } else { 2000 });
            }
            let counts = Counts { ect0: u64::from(round % 2) * 77, ect1: 0, ce: 0 };
            let times = Times { hold_us: 77, arrival_us: 1 << 40, counts };
            for room in [40, 100, 500, 1400, 9000] {
                let mut out = Vec::new();
                assert!(emit(&mut out, KIND, &times, &ranges, room));
                assert!(out.len() <= room, "{} > {room}", out.len());
                let (ack, got) = parse(&out);
                assert_eq!(
                    (ack.largest, ack.hold_us, ack.arrival_us),
                    (ranges.last().unwrap().1 - 1, 77, 1 << 40)
                );
                assert_eq!(ack.counts, (!counts.is_zero()).then_some(counts));
                let want = &ranges[ranges.len() - got.len()..];
                assert_eq!(got[1..], want[1..], "{room}");
                assert_eq!(got[0].1, want[0].1);
                // The bits may end within the oldest range that is told.
                assert!(got[0].0 >= want[0].0);
                assert!(room < 9000 || got == ranges);
                shorter += usize::from(out[0] & BITS != 0);
            }
        }
        assert!(shorter > 1000, "{shorter}");
        assert!(!emit(&mut Vec::new(), KIND, &Times::default(), &[(3, 4)], 6));
    }

    #[test]
    fn many_gaps_cost_a_bit_a_packet_and_few_cost_three_bytes_each() {
        let size = |every: u64| {
            let ranges: Vec<_> = (0..8000 / every).map(|i| (i * every, (i + 1) * every - 1)).collect();
            let mut out = Vec::new();
            assert!(emit(&mut out, KIND, &Times::default(), &ranges, 10_000));
            assert_eq!(parse(&out).1, ranges);
            out.len()
        };
        assert!(size(2) < 1040, "{}", size(2));
        assert!(size(8) < 1040, "{}", size(8));
        assert!(size(100) < 250, "{}", size(100));
    }

    #[test]
    fn ranges_below_zero_are_malformed() {
        let parse = |flags: u8, v: &[u64]| {
            let mut out = Vec::new();
            v.iter().for_each(|v| put_varint(&mut out, *v));
            Ack::parse(flags, &mut Reader::new(&out)).map(|a| a.ranges().count())
        };
        assert_eq!(parse(0, &[5, 0, 0, 5, 0]), Ok(1));
        assert_eq!(parse(0, &[5, 0, 0, 6, 0]), Err(Malformed));
        assert_eq!(parse(0, &[5, 0, 0, 0, 1, 3, 0]), Ok(2));
        assert_eq!(parse(0, &[5, 0, 0, 0, 1, 3, 1]), Err(Malformed));
        assert_eq!(parse(0, &[5, 0, 0, 0, 1 << 60, 0, 0]), Err(Malformed));
        assert_eq!(parse(COUNTS, &[5, 0, 0, 1, 2, 3, 0, 0]), Ok(1));
        // Bits: one byte (0x15: three runs) down to number 1, and a range that touches.
        assert_eq!(parse(BITS, &[10, 0, 0, 1, 1, 0x15, 0]), Ok(4));
        assert_eq!(parse(BITS, &[10, 0, 0, 1, 1, 0x15, 1, 0, 0]), Ok(5));
        assert_eq!(parse(BITS, &[10, 0, 0, 1, 1, 0x15, 1, 1, 0]), Err(Malformed));
        assert_eq!(parse(BITS, &[7, 0, 0, 0, 1, 0x15, 0]), Err(Malformed));
        assert_eq!(parse(BITS, &[7, 0, 0, 0, 2, 0x15]), Err(Malformed));
    }
}
