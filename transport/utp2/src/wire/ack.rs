//! The ACK frame: received ranges, newest first (PROTOCOL.md §8.2).

use alloc::vec::Vec;

use super::{Malformed, Reader, put_varint, varint_len};

/// Inclusive range of packet numbers.
pub(crate) type Range = (u64, u64);

/// A parsed ACK; its ranges are read where they lie and were all checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ack<'a> {
    pub(crate) largest: u64,
    /// Microseconds the receiver held the largest packet before it sent this.
    pub(crate) hold_us: u64,
    /// When the largest arrived, µs on the receiver's clock.
    pub(crate) arrival_us: u64,
    more: u64,
    first: u64,
    rest: &'a [u8],
}

impl<'a> Ack<'a> {
    pub(crate) fn parse(r: &mut Reader<'a>) -> Result<Self, Malformed> {
        let largest = r.varint()?;
        let hold_us = r.varint()?;
        let arrival_us = r.varint()?;
        let more = r.varint()?;
        let first = r.varint()?;
        let before = *r;
        let mut low = largest.checked_sub(first).ok_or(Malformed)?;
        for _ in 0..more {
            let high = low.checked_sub(r.varint()? + 2).ok_or(Malformed)?;
            low = high.checked_sub(r.varint()?).ok_or(Malformed)?;
        }
        // What the loop has read is what the iterator will read.
        let mut rest = before;
        let rest = rest.rest();
        Ok(Self { largest, hold_us, arrival_us, more, first, rest })
    }

    /// The ranges, newest first.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range> + 'a {
        let mut r = Reader::new(self.rest);
        let mut more = self.more;
        let mut next = Some((self.largest - self.first, self.largest));
        core::iter::from_fn(move || {
            let range = next.take()?;
            if more > 0 {
                more -= 1;
                next = (|| {
                    let high = range.0.checked_sub(r.varint().ok()? + 2)?;
                    Some((high.checked_sub(r.varint().ok()?)?, high))
                })();
            }
            Some(range)
        })
    }
}

/// Appends the ACK's fields after its type byte, at most `room` bytes. `ranges` are newest first, not empty, with
/// at least one missing number between neighbours. Returns false, and appends nothing, if not even one range fits.
pub(crate) fn emit(
    out: &mut Vec<u8>,
    hold_us: u64,
    arrival_us: u64,
    ranges: impl Iterator<Item = Range> + Clone,
    room: usize,
) -> bool {
    let Some((first_low, largest)) = ranges.clone().next() else { return false };
    // The count is written before the ranges, so count first what fits; its own length is taken at its worst.
    let mut used = varint_len(largest) + varint_len(hold_us) + varint_len(arrival_us) + 4;
    used += varint_len(largest - first_low);
    if used > room {
        return false;
    }
    let mut more = 0;
    let mut low = first_low;
    for (l, h) in ranges.clone().skip(1) {
        used += varint_len(low - h - 2) + varint_len(h - l);
        if used > room {
            break;
        }
        more += 1;
        low = l;
    }
    for v in [largest, hold_us, arrival_us, more, largest - first_low] {
        put_varint(out, v);
    }
    let mut low = first_low;
    for (l, h) in ranges.skip(1).take(more as usize) {
        put_varint(out, low - h - 2);
        put_varint(out, h - l);
        low = l;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_survive_the_round_trip_and_fit_the_room() {
        let ranges: Vec<Range> = (0..200u64).rev().map(|i| (i * 1000 + 5, i * 1000 + 5 + i % 90)).collect();
        for room in [40, 100, 500, 5000] {
            let mut out = Vec::new();
            assert!(emit(&mut out, 77, 1 << 40, ranges.iter().copied(), room));
            assert!(out.len() <= room);
            let mut r = Reader::new(&out);
            let ack = Ack::parse(&mut r).unwrap();
            assert!(r.is_empty());
            assert_eq!((ack.largest, ack.hold_us, ack.arrival_us), (ranges[0].1, 77, 1 << 40));
            let got: Vec<Range> = ack.ranges().collect();
            assert_eq!(got[..], ranges[..got.len()]);
            assert!(got.len() == 200 || room < 5000);
        }
        assert!(!emit(&mut Vec::new(), 0, 0, ranges.iter().copied(), 6));
    }

    #[test]
    fn ranges_below_zero_are_malformed() {
        let parse = |v: &[u64]| {
            let mut out = Vec::new();
            v.iter().for_each(|v| put_varint(&mut out, *v));
            Ack::parse(&mut Reader::new(&out)).map(|a| a.ranges().count())
        };
        assert_eq!(parse(&[5, 0, 0, 0, 5]), Ok(1));
        assert_eq!(parse(&[5, 0, 0, 0, 6]), Err(Malformed));
        assert_eq!(parse(&[5, 0, 0, 1, 3, 0, 0]), Ok(2));
        assert_eq!(parse(&[5, 0, 0, 1, 3, 1, 0]), Err(Malformed));
        assert_eq!(parse(&[5, 0, 0, 1 << 60, 0, 0]), Err(Malformed));
    }
}
