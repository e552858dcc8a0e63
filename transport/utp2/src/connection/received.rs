//! What to acknowledge and when (PROTOCOL.md §8.1–§8.3).

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use timebase::Instant;

use super::ecn::Counts;
use super::ranges::RangeSet;
use crate::Ecn;
use crate::wire::ack::{self, Times};

/// Shortest and longest time between two acknowledgements of a steady flow, whatever is asked for.
pub(crate) const MIN_ACK_INTERVAL: Duration = Duration::from_millis(1);
pub(crate) const MAX_ACK_INTERVAL: Duration = Duration::from_millis(25);

/// Bytes that are not left unacknowledged although [`MIN_ACK_INTERVAL`] has not passed: within one host they take
/// less, and what is in flight there is limited.
const FAST_BYTES: u64 = 256 << 10;

/// What a range takes in an ACK, about: one lost packet between two runs of up to 63, rarely longer ones.
const RANGE_BYTES: usize = 2;

/// ACKs sent and not known to have arrived; older ones are forgotten, which only delays forgetting ranges.
const MAX_PENDING: usize = 256;

/// When acknowledgements are sent (§8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rhythm {
    /// Least time between two.
    pub(crate) interval: Duration,
    /// Packets that have to arrive between two, unless that takes [`MAX_ACK_INTERVAL`].
    pub(crate) packets: u32,
}

impl Rhythm {
    /// As asked for by the peer, within limits.
    pub(crate) fn clamped(interval_us: u64, packets: u64) -> Self {
        let interval = Duration::from_micros(interval_us.min(1 << 30));
        Self {
            interval: interval.clamp(MIN_ACK_INTERVAL, MAX_ACK_INTERVAL),
            packets: packets.clamp(1, 64) as u32,
        }
    }
}

/// Packets between two ACKs unless the peer asks for more: a sender that begins wants to hear soon.
pub(crate) const FIRST_PACKETS: u32 = 2;
/// The same for a steady flow: about 1 % of its rate.
pub(crate) const STEADY_PACKETS: u32 = 10;

#[derive(Debug)]
pub(crate) struct Received {
    ranges: RangeSet,
    max_ranges: usize,
    largest: Option<(u64, Instant)>,
    counts: Counts,
    /// CE marks told by the last ACK.
    told_ce: u64,
    /// When the ACK that is owed should leave.
    due: Option<Instant>,
    last_sent: Option<Instant>,
    bytes_since: u64,
    packets_since: u32,
    /// Ranges begun since the last ACK.
    ranges_since: u32,
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
            counts: Counts::default(),
            told_ce: 0,
            due: None,
            last_sent: None,
            bytes_since: 0,
            packets_since: 0,
            ranges_since: 0,
            news: false,
            pending: VecDeque::new(),
        }
    }

    /// Notes an authentic packet that arrived `at`.
    pub(crate) fn insert(&mut self, number: u64, at: Instant, ecn: Ecn) {
        let before = self.ranges.as_slice().len();
        self.ranges.insert(number, number + 1);
        let ranges = self.ranges.as_slice().len();
        self.ranges_since += u32::from(ranges > before);
        if ranges > self.max_ranges {
            // Several at a time: the rest has to move.
            self.ranges.drop_first(1 + self.max_ranges / 8);
        }
        if self.largest.is_none_or(|(l, _)| number > l) {
            self.largest = Some((number, at));
        }
        self.counts.add(ecn);
        self.news = true;
    }

    /// Notes that the packet wants an acknowledgement. `urgent` asks for it by then; a quarter of `window`, a mark after
    /// an ACK without, and so many new ranges that four ACKs of `room` bytes could not repeat them ask for it now.
    pub(crate) fn elicit(
        &mut self,
        now: Instant,
        bytes: usize,
        rhythm: Rhythm,
        window: u64,
        room: usize,
        urgent: Option<Instant>,
    ) {
        self.bytes_since += bytes as u64;
        self.packets_since += 1;
        let marked = self.counts.ce > self.told_ce;
        let fast = if rhythm.interval <= MIN_ACK_INTERVAL { FAST_BYTES } else { u64::MAX };
        let due = match self.last_sent {
            None => now,
            Some(_) if self.bytes_since >= (window / 4).min(fast) => now,
            Some(_) if self.ranges_since as usize * RANGE_BYTES * 4 >= room => now,
            Some(last) if marked => (last + MIN_ACK_INTERVAL).max(now),
            Some(last) if self.packets_since >= rhythm.packets => (last + rhythm.interval).max(now),
            Some(last) => (last + MAX_ACK_INTERVAL).max(now),
        };
        let due = urgent.map_or(due, |at| at.min(due));
        self.due = Some(self.due.map_or(due, |d| d.min(due)));
    }

    /// Whether nothing is missing of what the peer sent: then it waits for nothing that an ACK could tell.
    pub(crate) fn is_gapless(&self) -> bool {
        self.ranges.as_slice().len() <= 1
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether an ACK should ride along with a packet that leaves anyway.
    pub(crate) fn wants_ride(&self, now: Instant, rhythm: Rhythm) -> bool {
        self.news && self.last_sent.is_none_or(|t| now.saturating_since(t) >= rhythm.interval)
    }

    /// Appends an ACK for our packet `number`; false if nothing was appended.
    pub(crate) fn emit(&mut self, out: &mut Vec<u8>, room: usize, number: u64, now: Instant) -> bool {
        let Some((largest, at)) = self.largest else { return false };
        let times = Times {
            hold_us: now.saturating_since(at).as_micros() as u64,
            arrival_us: at.as_micros() & crate::wire::VARINT_MAX,
            counts: self.counts,
        };
        if !ack::emit(out, crate::wire::frame::ACK, &times, self.ranges.as_slice(), room) {
            return false;
        }
        self.due = None;
        self.last_sent = Some(now);
        self.told_ce = self.counts.ce;
        (self.bytes_since, self.packets_since, self.ranges_since) = (0, 0, 0);
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
            let ack = Ack::parse(out[0], &mut Reader::new(&out[1..])).unwrap();
            ack.ranges().collect::<Vec<_>>()
        };
        for n in [0, 1, 4, 5] {
            r.insert(n, now, Ecn::NotEct);
        }
        assert_eq!(told(&mut r, 10), [(4, 5), (0, 1)]);
        r.insert(8, now, Ecn::NotEct);
        assert_eq!(told(&mut r, 11), [(8, 8), (4, 5), (0, 1)]);
        assert_eq!((r.pending_within(0, 10), r.pending_within(0, 9)), (Some(10), None));
        assert_eq!(r.pending_within(11, 99), Some(11));
        r.on_ack_of(10);
        assert_eq!(told(&mut r, 12), [(8, 8), (5, 5)]);
        (1000..20_000).step_by(100).for_each(|n| r.insert(n, now, Ecn::NotEct));
        assert!((13..=16).contains(&told(&mut r, 13).len()), "memory is bounded");
    }

    #[test]
    fn the_first_is_acknowledged_at_once_and_the_rest_in_the_rhythm_asked_for() {
        let mut r = Received::new(16);
        let t = |ms: u64| Instant::from_micros(ms * 1000);
        let rhythm = Rhythm { interval: Duration::from_millis(10), packets: 3 };
        let arrive = |r: &mut Received, number, at, window, ecn| {
            r.insert(number, at, ecn);
            r.elicit(at, 1000, rhythm, window, 1000, None);
            r.due()
        };
        let (wide, plain) = (1 << 20, Ecn::NotEct);
        assert_eq!(arrive(&mut r, 0, t(100), wide, plain), Some(t(100)));
        assert!(r.emit(&mut Vec::new(), 100, 0, t(100)));
        assert_eq!(r.due(), None);
        assert_eq!(arrive(&mut r, 1, t(101), wide, plain), Some(t(125)), "one packet waits for others");
        assert_eq!(arrive(&mut r, 2, t(102), wide, plain), Some(t(125)));
        assert_eq!(arrive(&mut r, 3, t(103), wide, plain), Some(t(110)), "three wait for the interval");
        assert_eq!(arrive(&mut r, 4, t(104), 16_000, plain), Some(t(104)), "a quarter of the window");
        assert!(r.emit(&mut Vec::new(), 100, 1, t(104)));
        assert_eq!(arrive(&mut r, 5, t(104), wide, Ecn::Ce), Some(t(105)), "a mark");
        assert!(r.emit(&mut Vec::new(), 100, 2, t(105)));
        for i in 0..125 {
            assert_eq!(arrive(&mut r, 10 + 2 * i, t(106), wide, plain) == Some(t(106)), i == 124, "{i} gaps");
        }
        assert_eq!(Rhythm::clamped(1, 0), Rhythm { interval: MIN_ACK_INTERVAL, packets: 1 });
        assert_eq!(Rhythm::clamped(u64::MAX, u64::MAX), Rhythm { interval: MAX_ACK_INTERVAL, packets: 64 });
    }
}
