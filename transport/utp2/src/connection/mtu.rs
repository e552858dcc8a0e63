//! How large a datagram the path carries: packetization-layer path MTU discovery after RFC 8899 (PROTOCOL.md §3.1).
//!
//! Keeps no packets: probes are known by their numbers. What they contain and when they leave is decided in
//! [`super::send`].

use core::time::Duration;

use timebase::Instant;

use crate::config::MIN_DATAGRAM;

/// Sizes worth trying, UDP payload: common MTUs less the headers of IPv4 or IPv6. What both sides accept comes on top.
const SIZES: [u16; 18] = [
    1232, 1252, 1312, 1352, 1372, 1392, 1402, 1422, 1432, 1444, 1452, 1464, 1472, 4052, 8152, 8952, 8972,
    32_000,
];
/// Largest that ordinary Ethernet carries. Larger ones are tried only once this one is known to pass.
const ETHERNET: u16 = 1472;
/// Sizes tried at a time: narrows a range of 13 to one in three rounds, for a few kilobytes.
const AT_ONCE: usize = 4;
/// Probes of one size lost before it counts as too large.
const TRIES: u8 = 3;
/// When to try again what was too large: routes change.
const AGAIN: Duration = Duration::from_secs(600);
/// Packets above the smallest size lost in a row, while smaller ones arrived, that mean a black hole.
const BLACK_HOLE: u32 = 6;

#[derive(Clone, Copy, Debug)]
struct Probe {
    number: u64,
    size: u16,
    sent: Instant,
}

#[derive(Clone, Debug)]
pub(crate) struct Mtu {
    /// What both sides accept.
    ceiling: u16,
    /// Confirmed.
    current: u16,
    /// The smallest size known not to pass, or one more than the ceiling.
    too_large: u16,
    probes: [Option<Probe>; AT_ONCE],
    /// Sizes to be sent in this round.
    round: [Option<u16>; AT_ONCE],
    /// Lost probes of sizes tried lately.
    tries: [(u16, u8); AT_ONCE],
    /// Set once the search has ended.
    again: Option<Instant>,
    /// Full packets lost since the last one acknowledged, and that one's number.
    lost_in_a_row: u32,
    newest_full: u64,
    /// Larger packets below this number, and above `newest_full`, fell into a black hole.
    hole_below: u64,
}

/// What the loss of a packet says about its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Nothing.
    Usual,
    /// The path has ceased to carry such packets; the size is the smallest again, and a search begins.
    HoleFound,
    /// Lost to the hole that was found, not to congestion.
    InHole,
}

impl Mtu {
    pub(crate) fn new(ceiling: u16) -> Self {
        Self {
            ceiling,
            current: MIN_DATAGRAM.min(ceiling),
            too_large: ceiling.saturating_add(1),
            probes: [None; AT_ONCE],
            round: [None; AT_ONCE],
            tries: [(0, 0); AT_ONCE],
            again: None,
            lost_in_a_row: 0,
            newest_full: 0,
            hole_below: 0,
        }
    }

    /// Bytes of a full datagram now.
    pub(crate) fn current(&self) -> usize {
        usize::from(self.current)
    }

    /// Begins anew: another path, or this one swallows what it carried.
    pub(crate) fn reset(&mut self) {
        *self =
            Self { newest_full: self.newest_full, hole_below: self.hole_below, ..Self::new(self.ceiling) };
    }

    /// Sizes that may pass and were not tried, ascending.
    fn candidates(&self) -> impl Iterator<Item = u16> + use<> {
        let (above, below, ceiling) = (self.current, self.too_large, self.ceiling);
        let stage = if above < ETHERNET { ETHERNET } else { u16::MAX };
        let top = (!SIZES.contains(&ceiling)).then_some(ceiling);
        SIZES.into_iter().chain(top).filter(move |s| *s > above && *s < below && *s <= ceiling && *s <= stage)
    }

    /// The size of the probe to send now, if any: its number goes to [`Mtu::on_sent`].
    pub(crate) fn next_probe(&mut self, now: Instant) -> Option<usize> {
        if self.again.is_some_and(|at| at <= now) {
            self.again = None;
            self.too_large = self.ceiling.saturating_add(1);
            self.tries = [(0, 0); AT_ONCE];
        }
        if self.again.is_some() {
            return None;
        }
        let busy = self.probes.iter().any(Option::is_some);
        if !busy && self.round.iter().all(Option::is_none) {
            let n = self.candidates().count();
            if n == 0 {
                self.again = Some(now + AGAIN);
                return None;
            }
            // Spread over the range, the largest first and always among them.
            let take = n.min(AT_ONCE);
            for i in 0..take {
                self.round[i] = self.candidates().nth(n - 1 - i * n / take);
            }
        }
        let free = self.probes.iter().any(Option::is_none);
        self.round.iter().flatten().next().filter(|_| free).map(|s| usize::from(*s))
    }

    pub(crate) fn on_sent(&mut self, now: Instant, number: u64, size: usize) {
        let Ok(size) = u16::try_from(size) else { return };
        self.round.iter_mut().filter(|r| **r == Some(size)).for_each(|r| *r = None);
        if let Some(slot) = self.probes.iter_mut().find(|p| p.is_none()) {
            *slot = Some(Probe { number, size, sent: now });
        }
    }

    /// The packets `low..=high` were acknowledged, probes perhaps among them. Returns whether the size grew.
    pub(crate) fn on_probe_acked(&mut self, low: u64, high: u64) -> bool {
        let mut size = 0;
        for probe in &mut self.probes {
            if let Some(p) = probe.filter(|p| (low..=high).contains(&p.number)) {
                size = size.max(p.size);
                *probe = None;
            }
        }
        let grew = size > self.current && size < self.too_large;
        if grew {
            self.current = size;
            self.lost_in_a_row = 0;
            // Smaller ones are settled by it.
            let moot = |s: u16| s <= size;
            self.round.iter_mut().filter(|r| r.is_some_and(moot)).for_each(|r| *r = None);
            self.probes.iter_mut().filter(|p| p.is_some_and(|p| moot(p.size))).for_each(|p| *p = None);
        }
        grew
    }

    /// When the first probe under way counts as lost.
    pub(crate) fn deadline(&self, patience: Duration) -> Option<Instant> {
        self.probes.iter().flatten().map(|p| p.sent + patience).min()
    }

    /// Gives up probes that were not acknowledged in time. That is no sign of congestion.
    pub(crate) fn on_timeout(&mut self, now: Instant, patience: Duration) {
        for i in 0..AT_ONCE {
            let Some(p) = self.probes[i].filter(|p| p.sent + patience <= now) else { continue };
            self.probes[i] = None;
            let known = self.tries.iter().position(|t| t.0 == p.size);
            // A place of a size that is decided by now, else of the one tried least.
            let place = known.unwrap_or_else(|| {
                let decided = |t: &(u16, u8)| t.0 <= self.current || t.0 >= self.too_large;
                let least = || (0..AT_ONCE).min_by_key(|i| self.tries[*i].1);
                self.tries.iter().position(decided).or_else(least).unwrap_or(0)
            });
            if known.is_none() {
                self.tries[place] = (p.size, 0);
            }
            self.tries[place].1 += 1;
            if self.tries[place].1 >= TRIES {
                self.too_large = self.too_large.min(p.size);
                let too_large = self.too_large;
                self.round.iter_mut().filter(|r| r.is_some_and(|s| s >= too_large)).for_each(|r| *r = None);
            } else if p.size > self.current
                && p.size < self.too_large
                && let Some(free) = self.round.iter_mut().find(|r| r.is_none())
            {
                *free = Some(p.size);
            }
        }
    }

    /// The host refused a datagram of this size. Only a hint, but what did not leave cannot arrive.
    /// Returns whether the present size changed.
    pub(crate) fn on_refused(&mut self, size: usize) -> bool {
        let Ok(size) = u16::try_from(size) else { return false };
        if size <= MIN_DATAGRAM || size >= self.too_large {
            return false;
        }
        self.too_large = size;
        let gone = |s: u16| s >= size;
        self.round.iter_mut().filter(|r| r.is_some_and(gone)).for_each(|r| *r = None);
        self.probes.iter_mut().filter(|p| p.is_some_and(|p| gone(p.size))).for_each(|p| *p = None);
        let shrinks = self.current >= size;
        if shrinks {
            self.current = MIN_DATAGRAM;
            self.again = None;
        }
        shrinks
    }

    /// A packet with data was acknowledged.
    pub(crate) fn on_acked(&mut self, number: u64, size: u16) {
        if size > MIN_DATAGRAM {
            self.newest_full = self.newest_full.max(number);
            self.lost_in_a_row = 0;
        }
    }

    /// A packet with data was lost. `newest_acked_size`: of the acknowledged packet sent last; `next`: the number of the
    /// packet sent next.
    pub(crate) fn on_lost(&mut self, number: u64, size: u16, newest_acked_size: u16, next: u64) -> Loss {
        if size <= MIN_DATAGRAM || number < self.newest_full {
            return Loss::Usual;
        }
        if number < self.hole_below {
            return Loss::InHole;
        }
        self.lost_in_a_row += 1;
        if self.current <= MIN_DATAGRAM || self.lost_in_a_row < BLACK_HOLE || newest_acked_size > MIN_DATAGRAM
        {
            return Loss::Usual;
        }
        self.hole_below = next;
        self.reset();
        Loss::HoleFound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches on a path that carries `most`, losing every `nth` probe besides; returns the size found and the rounds.
    fn search(mtu: &mut Mtu, most: usize, nth: u64) -> (usize, u32) {
        let patience = Duration::from_millis(100);
        let mut now = Instant::from_micros(1);
        let (mut number, mut rounds) = (0, 0);
        while mtu.again.is_none() {
            let mut flying = std::vec::Vec::new();
            while let Some(size) = mtu.next_probe(now) {
                number += 1;
                mtu.on_sent(now, number, size);
                flying.push((number, size));
            }
            if flying.is_empty() {
                break;
            }
            rounds += 1;
            assert!(rounds < 40, "{mtu:?}");
            for (number, size) in flying {
                if size <= most && number % nth != 0 {
                    mtu.on_probe_acked(number, number);
                }
            }
            now += patience;
            mtu.on_timeout(now, patience);
        }
        (mtu.current(), rounds)
    }

    #[test]
    fn finds_the_largest_size_that_passes_in_a_few_rounds() {
        for (most, expect) in
            [(1200, 1200), (1252, 1252), (1272, 1252), (1372, 1372), (1400, 1392), (1472, 1472), (8972, 8972)]
        {
            for nth in [1000, 7] {
                let (found, rounds) = search(&mut Mtu::new(8972), most, nth);
                assert_eq!(found, expect, "path of {most}");
                assert!(rounds <= 14, "{rounds} rounds for {most}");
            }
        }
        assert_eq!(search(&mut Mtu::new(1452), 9000, 1000), (1452, 1), "one round where all is well");
        assert_eq!(search(&mut Mtu::new(1300), 9000, 1000).0, 1300, "what the peer accepts is tried");
        assert_eq!(search(&mut Mtu::new(1200), 9000, 1000), (1200, 0));
        assert_eq!(search(&mut Mtu::new(65_000), 65_000, 1000).0, 65_000);
    }

    #[test]
    fn a_black_hole_needs_full_packets_lost_in_a_row_and_small_ones_arriving() {
        let mut m = Mtu::new(1472);
        search(&mut m, 1472, 1000);
        for n in 0..100 {
            assert_eq!(m.on_lost(n, 1472, 1472, 200), Loss::Usual, "a full one arrived later");
        }
        m.on_acked(100, 1472);
        for n in 0..50 {
            assert_eq!(m.on_lost(n, 1472, 1200, 200), Loss::Usual, "a later one arrived");
        }
        for n in 101..106 {
            assert_eq!(m.on_lost(n, 1472, 1200, 200), Loss::Usual);
            assert_eq!(m.on_lost(n, 900, 1200, 200), Loss::Usual);
        }
        assert_eq!(m.on_lost(106, 1472, 1200, 200), Loss::HoleFound);
        assert_eq!(m.on_lost(107, 1472, 1200, 200), Loss::InHole);
        assert_eq!(m.on_lost(200, 1232, 1200, 210), Loss::Usual);
        assert_eq!(m.current(), 1200);
        assert_eq!(search(&mut m, 1300, 1000).0, 1252);
    }

    #[test]
    fn a_refusal_by_the_host_bounds_the_search_and_ten_minutes_later_it_is_tried_again() {
        let mut m = Mtu::new(8972);
        let now = Instant::from_micros(5);
        assert!(!m.on_refused(1473));
        assert_eq!(search(&mut m, 1472, 1000).0, 1472);
        assert!(m.on_refused(1472));
        assert_eq!(m.current(), 1200);
        assert_eq!(search(&mut m, 1471, 1000).0, 1464);
        assert_eq!(m.next_probe(now + AGAIN - Duration::from_secs(1)), None);
        assert_eq!(m.next_probe(now + AGAIN * 2), Some(1472), "the next size up comes first");
    }
}
