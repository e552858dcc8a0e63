//! What to acknowledge and when (PROTOCOL.md §8.1–§8.3).

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use timebase::Instant;

use super::ranges::RangeSet;
use crate::wire::ack;

/// ACKs sent and not known to have arrived; older ones are forgotten, which only delays forgetting ranges.
const MAX_PENDING: usize = 256;

#[derive(Debug)]
pub(crate) struct Received {
    ranges: RangeSet,
    max_ranges: usize,
    largest: Option<(u64, Instant)>,
    /// When the ACK that is owed should leave.
    due: Option<Instant>,
    last_sent: Option<Instant>,
    bytes_since: u64,
    /// Something arrived that the last ACK did not tell, eliciting or not.
    news: bool,
    /// (our packet number, largest it told of) per ACK in flight.
    pending: VecDeque<(u64, u64)>,
}

impl Received {
    pub(crate) fn new(max_ranges: usize) -> Self {
        Self {
            ranges: RangeSet::default(),
            max_ranges,
            largest: None,
            due: None,
            last_sent: None,
            bytes_since: 0,
            news: false,
            pending: VecDeque::new(),
        }
    }

    /// Notes an authentic packet.
    pub(crate) fn insert(&mut self, number: u64, now: Instant) {
        self.ranges.insert(number, number + 1);
        while self.ranges.as_slice().len() > self.max_ranges {
            self.ranges.drop_first();
        }
        if self.largest.is_none_or(|(l, _)| number > l) {
            self.largest = Some((number, now));
        }
        self.news = true;
    }

    /// Notes that the packet wants an acknowledgement. `urgent` asks for it now, as does a quarter of `window`.
    pub(crate) fn elicit(
        &mut self,
        now: Instant,
        bytes: usize,
        interval: Duration,
        window: u64,
        urgent: bool,
    ) {
        self.bytes_since += bytes as u64;
        let due = match self.last_sent {
            _ if urgent || self.bytes_since >= window / 4 => now,
            Some(last) => (last + interval).max(now),
            None => now,
        };
        self.due = Some(self.due.map_or(due, |d| d.min(due)));
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether an ACK should ride along with a packet that leaves anyway.
    pub(crate) fn wants_ride(&self, now: Instant, interval: Duration) -> bool {
        self.news && self.last_sent.is_none_or(|t| now.saturating_since(t) >= interval)
    }

    /// Appends type and fields of an ACK for our packet `number`; false if nothing was appended.
    pub(crate) fn emit(&mut self, out: &mut Vec<u8>, room: usize, number: u64, now: Instant) -> bool {
        let Some((largest, at)) = self.largest else { return false };
        if room < 2 {
            return false;
        }
        let start = out.len();
        out.push(crate::wire::frame::ACK);
        let hold = now.saturating_since(at).as_micros() as u64;
        let ranges = self.ranges.as_slice().iter().rev().map(|r| (r.0, r.1 - 1));
        if !ack::emit(out, hold, at.as_micros() & crate::wire::VARINT_MAX, ranges, room - 1) {
            out.truncate(start);
            return false;
        }
        self.due = None;
        self.last_sent = Some(now);
        self.bytes_since = 0;
        self.news = false;
        if self.pending.len() == MAX_PENDING {
            self.pending.pop_front();
        }
        self.pending.push_back((number, largest));
        true
    }

    /// Our packet `number` was acknowledged: what it told of need not be told again. The largest stays.
    pub(crate) fn on_ack_of(&mut self, number: u64) {
        while let Some(&(n, told)) = self.pending.front() {
            if n > number {
                break;
            }
            self.pending.pop_front();
            if n == number {
                self.ranges.remove_below(told);
            }
        }
    }

    /// The newest of our packets in `low..=high` that carried an ACK still of interest.
    pub(crate) fn pending_within(&self, low: u64, high: u64) -> Option<u64> {
        let end = self.pending.partition_point(|p| p.0 <= high);
        let (number, _) = *self.pending.get(end.checked_sub(1)?)?;
        (number >= low).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Reader;
    use crate::wire::ack::Ack;

    #[test]
    fn ranges_repeat_until_their_ack_was_acknowledged() {
        let mut r = Received::new(16);
        let now = Instant::from_micros(1000);
        let told = |r: &mut Received, number| {
            let mut out = Vec::new();
            assert!(r.emit(&mut out, 1000, number, now));
            let ack = Ack::parse(&mut Reader::new(&out[1..])).unwrap();
            ack.ranges().collect::<Vec<_>>()
        };
        for n in [0, 1, 4, 5] {
            r.insert(n, now);
        }
        assert_eq!(told(&mut r, 10), [(4, 5), (0, 1)]);
        r.insert(8, now);
        assert_eq!(told(&mut r, 11), [(8, 8), (4, 5), (0, 1)]);
        assert_eq!((r.pending_within(0, 10), r.pending_within(0, 9)), (Some(10), None));
        assert_eq!(r.pending_within(11, 99), Some(11));
        r.on_ack_of(10);
        assert_eq!(told(&mut r, 12), [(8, 8), (5, 5)]);
        (20..200).step_by(2).for_each(|n| r.insert(n, now));
        assert_eq!(told(&mut r, 13).len(), 16, "memory is bounded");
    }

    #[test]
    fn the_first_is_acknowledged_at_once_and_the_rest_per_interval() {
        let mut r = Received::new(16);
        let ms = Duration::from_millis;
        let t = |ms: u64| Instant::from_micros(ms * 1000);
        r.insert(0, t(100));
        r.elicit(t(100), 1000, ms(10), 1 << 20, false);
        assert_eq!(r.due(), Some(t(100)));
        assert!(r.emit(&mut Vec::new(), 100, 0, t(100)));
        assert_eq!(r.due(), None);
        r.insert(1, t(101));
        r.elicit(t(101), 1000, ms(10), 1 << 20, false);
        assert_eq!(r.due(), Some(t(110)));
        r.insert(2, t(102));
        r.elicit(t(102), 1000, ms(10), 4000, false);
        assert_eq!(r.due(), Some(t(102)), "a quarter of the window");
    }
}
