//! With whom an agent keeps connections in a run: a bounded set of neighbours (`edge-agent/PROTOCOL.md` §3.6).
//!
//! In a small run everybody is everybody's neighbour. In a large one an agent calls a few near ones (its
//! site, its local network) and, always, some far ones chosen at random: random edges are what keeps the
//! graph in one piece and a block's way through it short. Others call us as well, up to a bound. A neighbour
//! of no use gives its place to another.
//!
//! Participants are numbers, the same for as long as the run lasts; what they stand for is the driver's
//! affair. What is remembered grows with those that were met, not with the run.
//!
//! How to drive it: tell what happens with `handle_*`; ask [`Neighbours::poll_call`] and
//! [`Neighbours::poll_drop`] until `None`, now and then at least; ask [`Neighbours::accept`] about whoever
//! calls.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use timebase::Instant;

use crate::chance::Chance;

/// How many neighbours, and how long to wait for what. Why these numbers: `docs/decisions/0015`.
#[derive(Clone, Debug)]
pub struct NeighbourConfig {
    /// A run of so many participants or fewer knows no bound: everybody connects to everybody. Default 32.
    pub everybody: u32,
    /// Near ones to have. Default 24.
    pub near: usize,
    /// Far ones to have, whoever called. Default 16.
    pub far: usize,
    /// Connections in all, those included that others made. Default 48.
    pub most: usize,
    /// Calls at a time. Default 8.
    pub calls: usize,
    /// Pause before somebody is called again who did not answer; doubles each time. Default 5 s …
    pub pause_min: Duration,
    /// … up to this. Default 2 min.
    pub pause_max: Duration,
    /// A neighbour with whom nothing was exchanged for so long may lose its place. Default 15 s.
    pub useless_after: Duration,
    /// At most one neighbour loses its place in so long, so that the graph changes slowly. Default 5 s.
    pub review: Duration,
}

impl Default for NeighbourConfig {
    fn default() -> Self {
        Self {
            everybody: 32,
            near: 24,
            far: 16,
            most: 48,
            calls: 8,
            pause_min: Duration::from_secs(5),
            pause_max: Duration::from_secs(120),
            useless_after: Duration::from_secs(15),
            review: Duration::from_secs(5),
        }
    }
}

/// Participants remembered before those are forgotten of whom nothing matters any more.
const MET_MAX: usize = 1024;

/// What to do with a connection that somebody else made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Keep it.
    Yes,
    /// Keep it, and end the one with this neighbour.
    InsteadOf(u32),
    /// Turn it away: there are enough.
    No,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Not connected, and not to be called before.
    Away(Instant),
    Called,
    Connected {
        /// Last use: a block sent or received, or the beginning.
        used: Instant,
        complete: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Known {
    state: State,
    near: bool,
    /// Calls in a row that came to nothing.
    failures: u32,
}

/// The neighbours of one agent in one run.
#[derive(Debug)]
pub struct Neighbours {
    config: NeighbourConfig,
    me: u32,
    count: u32,
    source: u32,
    chance: Chance,
    known: BTreeMap<u32, Known>,
    /// Near participants, connected or not.
    near: BTreeSet<u32>,
    near_connected: usize,
    connected: usize,
    called: usize,
    complete: bool,
    /// Whether the source is called before others.
    source_first: bool,
    reviewed: Instant,
}

impl Neighbours {
    /// Of `count` participants, `me` is this one and `source` the run's source (maybe the same).
    pub fn new(config: NeighbourConfig, me: u32, source: u32, count: u32, seed: u64, now: Instant) -> Self {
        let mut chance = Chance::new(seed);
        // In a large run only about twice as many call the source at once as it takes.
        let source_first = me != source
            && chance.below(u64::from(count)) < (2 * config.most as u64).max(u64::from(config.everybody));
        Self {
            me,
            count,
            source,
            chance,
            known: BTreeMap::new(),
            near: BTreeSet::new(),
            near_connected: 0,
            connected: 0,
            called: 0,
            complete: false,
            source_first,
            reviewed: now,
            config,
        }
    }

    /// Whether everybody connects to everybody.
    pub fn is_small(&self) -> bool {
        self.count <= self.config.everybody
    }

    /// How many are connected.
    pub fn connected(&self) -> usize {
        self.connected
    }

    /// Whether this one is connected, or being called as was asked.
    pub fn is_chosen(&self, n: u32) -> bool {
        matches!(self.known.get(&n), Some(Known { state: State::Called | State::Connected { .. }, .. }))
    }

    /// A participant was found to be near: at the same site, or heard on the local network.
    pub fn handle_near(&mut self, n: u32) {
        if n == self.me || n >= self.count || !self.near.insert(n) {
            return;
        }
        if let Some(known) = self.known.get_mut(&n) {
            known.near = true;
            self.near_connected += usize::from(matches!(known.state, State::Connected { .. }));
        }
    }

    /// Somebody said where a participant can be reached: it may be called again at once.
    pub fn handle_hint(&mut self, now: Instant, n: u32) {
        if let Some(Known { state: State::Away(until), .. }) = self.known.get_mut(&n) {
            *until = now.min(*until);
        }
    }

    /// We have everything: there is nobody to be called any more, but whoever calls is served.
    pub fn handle_complete(&mut self) {
        self.complete = true;
    }

    /// A neighbour has everything.
    pub fn handle_peer_complete(&mut self, n: u32) {
        if let Some(Known { state: State::Connected { complete, .. }, .. }) = self.known.get_mut(&n) {
            *complete = true;
        }
    }

    /// A block went to, or came from, a neighbour.
    pub fn handle_use(&mut self, now: Instant, n: u32) {
        if let Some(Known { state: State::Connected { used, .. }, .. }) = self.known.get_mut(&n) {
            *used = now;
        }
    }

    /// Whether to keep a connection that somebody else made. Tell [`Self::handle_connected`] if it is kept.
    pub fn accept(&mut self, n: u32) -> Accept {
        if self.is_small() || self.is_connected(n) || self.connected < self.config.most {
            return Accept::Yes;
        }
        // A seat is freed for one who needs it: two that have everything have nothing to say to each other.
        let idle = self.complete.then(|| self.connections().find(|(_, _, complete, _)| *complete)).flatten();
        // The near ones that we seek find room, too.
        let wanted = || self.near.contains(&n) && self.near_connected < self.config.near;
        let far = || self.connections().filter(|(_, near, ..)| !near).min_by_key(|(_, _, _, used)| *used);
        match idle.or_else(|| if wanted() { far() } else { None }) {
            Some((other, ..)) => Accept::InsteadOf(other),
            None => Accept::No,
        }
    }

    /// A connection is up, whoever made it.
    pub fn handle_connected(&mut self, now: Instant, n: u32) {
        let known = self.entry(n);
        let (before, near) = (known.state, known.near);
        (known.state, known.failures) = (State::Connected { used: now, complete: false }, 0);
        match before {
            State::Called => self.called -= 1,
            State::Connected { .. } => return,
            State::Away(_) => {}
        }
        self.connected += 1;
        self.near_connected += usize::from(near);
    }

    /// A call came to nothing: no answer, or `refused` as the other has enough.
    pub fn handle_failed(&mut self, now: Instant, n: u32, refused: bool) {
        let small = self.is_small();
        let (least, most) = (self.config.pause_min, self.config.pause_max);
        let random = self.chance.below(1 << 16) as u32;
        let known = self.entry(n);
        if !matches!(known.state, State::Called) {
            return;
        }
        // Who refused is alive: others will ask it too, and it may have room later.
        let pause = if refused { 2 * least } else { (least * (1 << known.failures.min(8))).min(most) };
        known.failures += u32::from(!refused);
        // In a small run there is nobody else to be called; the caller's own pauses do.
        let pause = if small { Duration::ZERO } else { pause / 2 + pause * random / (1 << 16) };
        known.state = State::Away(now + pause);
        self.called -= 1;
        self.forget(now);
    }

    /// Forgets those that may be called again anyway, when many were met.
    fn forget(&mut self, now: Instant) {
        if self.known.len() > MET_MAX {
            self.known.retain(|_, known| !matches!(known.state, State::Away(until) if until <= now));
        }
    }

    /// A connection ended.
    pub fn handle_disconnected(&mut self, now: Instant, n: u32) {
        let pause = if self.is_small() { Duration::ZERO } else { self.config.pause_min };
        let known = self.entry(n);
        if !matches!(known.state, State::Connected { .. }) {
            return;
        }
        let near = known.near;
        known.state = State::Away(now + pause);
        self.connected -= 1;
        self.near_connected -= usize::from(near);
    }

    /// Somebody to be called now.
    pub fn poll_call(&mut self, now: Instant) -> Option<u32> {
        if self.complete && self.me != self.source && !self.is_small() || self.called >= self.config.calls {
            return None;
        }
        let n = self.choose(now)?;
        self.entry(n).state = State::Called;
        self.called += 1;
        Some(n)
    }

    /// Somebody whose connection is to be ended now, for want of use.
    pub fn poll_drop(&mut self, now: Instant) -> Option<u32> {
        if self.is_small() || now - self.reviewed < self.config.review {
            return None;
        }
        let done = self.complete;
        let useless_after = self.config.useless_after;
        let idle = |used: Instant| now - used >= useless_after;
        // Two that have everything part; else a far one without use, if that leaves enough.
        let crowded = self.connected > self.config.near.min(self.near_connected) + self.config.far / 2;
        let found = self
            .connections()
            .filter(|(_, near, complete, used)| (done && *complete) || (crowded && !near && idle(*used)))
            .min_by_key(|(.., used)| *used)
            .map(|(n, ..)| n);
        // Parting for want of anything to say may go faster than what changes the graph.
        if found.is_none() || !done {
            self.reviewed = now;
        }
        found
    }

    fn choose(&mut self, now: Instant) -> Option<u32> {
        let free = |s: &Self, n: u32| match s.known.get(&n) {
            None => n != s.me,
            Some(Known { state: State::Away(until), .. }) => *until <= now,
            Some(_) => false,
        };
        if self.source_first && free(self, self.source) {
            self.source_first = false;
            return Some(self.source);
        }
        if self.is_small() {
            let from = self.chance.below(u64::from(self.count)) as u32;
            return (0..self.count).map(|i| (from + i) % self.count).find(|&n| free(self, n));
        }
        let room = self.config.most.saturating_sub(self.connected + self.called);
        if room == 0 {
            return None;
        }
        let near_called = self.near.iter().filter(|n| self.is_called(**n)).count();
        if self.near_connected + near_called < self.config.near {
            let near: Vec<u32> = self.near.iter().copied().filter(|&n| free(self, n)).collect();
            if !near.is_empty() {
                return Some(near[self.chance.below(near.len() as u64) as usize]);
            }
        }
        let far = self.connected - self.near_connected + self.called - near_called;
        if far >= self.config.far {
            return None;
        }
        // Most participants are free: a few guesses find one.
        for _ in 0..16 {
            let n = self.chance.below(u64::from(self.count)) as u32;
            if !self.near.contains(&n) && free(self, n) {
                return Some(n);
            }
        }
        None
    }

    fn is_connected(&self, n: u32) -> bool {
        matches!(self.known.get(&n), Some(Known { state: State::Connected { .. }, .. }))
    }

    fn is_called(&self, n: u32) -> bool {
        matches!(self.known.get(&n), Some(Known { state: State::Called, .. }))
    }

    /// Number, whether near, whether it has everything, last use.
    fn connections(&self) -> impl Iterator<Item = (u32, bool, bool, Instant)> + '_ {
        self.known.iter().filter_map(|(&n, known)| match known.state {
            State::Connected { used, complete } => Some((n, known.near, complete, used)),
            _ => None,
        })
    }

    fn entry(&mut self, n: u32) -> &mut Known {
        let near = self.near.contains(&n);
        self.known.entry(n).or_insert(Known { state: State::Away(Instant::ZERO), near, failures: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn of(me: u32, count: u32, seed: u64) -> Neighbours {
        Neighbours::new(NeighbourConfig::default(), me, 0, count, seed, at(0))
    }

    #[test]
    fn in_a_small_run_everybody_is_called_and_taken() {
        let mut small = of(3, 20, 1);
        let mut called = BTreeSet::new();
        while called.len() < 19 {
            let n = small.poll_call(at(0)).expect("somebody left");
            assert!(called.insert(n), "twice: {n}");
            small.handle_connected(at(0), n);
        }
        assert!(!called.contains(&3) && small.poll_call(at(0)).is_none());
        assert_eq!(small.poll_drop(at(1000)), None);
        small.handle_complete();
        small.handle_disconnected(at(1000), 7);
        assert_eq!(small.poll_call(at(1000)), Some(7), "complete or not");
        small.handle_failed(at(1000), 7, false);
        assert_eq!(small.poll_call(at(1000)), Some(7), "pauses are the caller's");
    }

    #[test]
    fn near_ones_and_some_far_ones_are_called_a_few_at_a_time() {
        let mut large = of(3, 5000, 2);
        (100..140).for_each(|n| large.handle_near(n));
        let mut called = Vec::new();
        while let Some(n) = large.poll_call(at(0)) {
            called.push(n);
        }
        assert_eq!(called.len(), 8, "calls at a time");
        while let Some(n) = called.pop() {
            large.handle_connected(at(0), n);
            called.extend(large.poll_call(at(0)));
        }
        let near = (100..140).filter(|n| large.is_chosen(*n)).count();
        assert_eq!((near, large.connected()), (24, 40), "24 near ones, 16 far ones");
        // Others call as well, up to a bound.
        let mut taken = 0;
        for n in 4000..4100 {
            if !large.is_chosen(n) && large.accept(n) == Accept::Yes {
                large.handle_connected(at(1), n);
                taken += 1;
            }
        }
        assert_eq!((taken, large.connected()), (8, 48));
    }

    #[test]
    fn who_does_not_answer_wastes_no_place() {
        let mut large = of(3, 5000, 3);
        let mut met = BTreeMap::new();
        for second in 0..10 {
            for _ in 0..50 {
                let n = large.poll_call(at(second)).expect("there is always somebody else");
                let before = met.insert(n, second);
                assert!(before.is_none_or(|before| second - before >= 2), "{n} was called a moment ago");
                large.handle_failed(at(second), n, false);
            }
        }
        assert!(met.len() > 450 && large.connected() == 0);
    }

    #[test]
    fn places_go_to_those_who_need_them() {
        let mut full = of(3, 5000, 4);
        (100..148).for_each(|n| full.handle_connected(at(0), n));
        assert_eq!(full.accept(4000), Accept::No);
        assert_eq!(full.accept(100), Accept::Yes, "a new connection of a neighbour");
        (101..148).for_each(|n| full.handle_use(at(10), n));
        full.handle_near(4000);
        assert_eq!(full.accept(4000), Accept::InsteadOf(100), "a near one before the far one used least");
        // Without use for long: one at a time gives way.
        assert_eq!(full.poll_drop(at(20)), Some(100));
        full.handle_disconnected(at(20), 100);
        assert_eq!(full.poll_drop(at(20)), None);
        // Who has everything keeps none who has everything.
        full.handle_complete();
        full.handle_peer_complete(120);
        full.handle_use(at(29), 120);
        full.handle_connected(at(29), 4001);
        assert_eq!(full.accept(4002), Accept::InsteadOf(120));
        assert_eq!(full.poll_drop(at(30)), Some(101));
        assert_eq!(full.poll_call(at(30)), None, "and seeks nobody");
    }

    #[test]
    fn the_graph_is_in_one_piece_even_when_sites_keep_to_themselves() {
        // 1000 participants in sites of 50: each knows the near ones, and everybody acts at once.
        let count = 1000;
        let mut all: Vec<Neighbours> = (0..count).map(|me| of(me, count, u64::from(me))).collect();
        for me in 0..count {
            let site = me / 50 * 50;
            (site..site + 50).for_each(|n| all[me as usize].handle_near(n));
        }
        for second in 0..30 {
            for me in 0..count {
                while let Some(n) = all[me as usize].poll_call(at(second)) {
                    match all[n as usize].accept(me) {
                        Accept::No => all[me as usize].handle_failed(at(second), n, true),
                        accepted => {
                            if let Accept::InsteadOf(other) = accepted {
                                all[n as usize].handle_disconnected(at(second), other);
                                all[other as usize].handle_disconnected(at(second), n);
                            }
                            all[n as usize].handle_connected(at(second), me);
                            all[me as usize].handle_connected(at(second), n);
                        }
                    }
                }
            }
        }
        // Also when every third has left.
        for here in [|_: u32| true, |n: u32| n % 3 != 2] {
            let (mut seen, mut next) = (BTreeSet::from([0]), vec![0]);
            while let Some(n) = next.pop() {
                let neighbours = all[n as usize].connections().map(|(n, ..)| n).filter(|n| here(*n));
                next.extend(neighbours.filter(|n| seen.insert(*n)).collect::<Vec<_>>());
            }
            assert_eq!(seen.len(), (0..count).filter(|n| here(*n)).count());
        }
        for one in &all {
            let far = one.connected - one.near_connected;
            assert!(one.connected <= 48 && one.near_connected >= 12 && far >= 10, "{} {far}", one.connected);
        }
    }
}
