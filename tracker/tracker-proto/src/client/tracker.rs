//! One tracker as a client sees it: its cookie, who waits for an answer, and when to ask again
//! (`PROTOCOL.md` §5). Knows nothing of keys and entries.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use rand_core::Rng;
use timebase::Instant;

use crate::jitter::stretched;
use crate::key::SwarmId;
use crate::limits::{
    BACKOFF_MAX, COOKIE_ROUNDS, DOWN_AFTER, IN_FLIGHT, INTERVAL_FIRST, REQUEST_TIMEOUT_MAX,
    REQUEST_TIMEOUT_MIN,
};
use crate::message::{Cookie, FromTracker, NO_COOKIE, PeersReply, Transaction};

/// How often a leaving announcement is sent at most.
const LEAVE_TRIES: u8 = 2;

#[derive(Debug)]
pub(super) struct Tracker {
    addr: SocketAddr,
    cookie: Option<Cookie>,
    swarms: BTreeMap<SwarmId, Slot>,
    flights: Vec<Flight>,
    /// It has answered with peers at least once.
    answered: bool,
    /// Failures since the last answer with peers.
    failures: u32,
    /// When the last failure was counted.
    failed_at: Instant,
    /// No request before this.
    not_before: Instant,
    rtt: Duration,
    observed: Option<SocketAddr>,
}

/// A swarm's place at this tracker.
#[derive(Debug)]
struct Slot {
    /// When to announce; meaningless while a request is in flight.
    next: Instant,
    in_flight: bool,
    /// Successful announcements since joining; paces the first ones.
    announced: u32,
    cookie_rounds: u8,
    phase: Phase,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Member,
    Leaving { tries_left: u8 },
}

/// A request that waits for its answer.
#[derive(Debug)]
struct Flight {
    transaction: Transaction,
    swarm: SwarmId,
    sent: Instant,
    deadline: Instant,
}

/// A request to be sent.
pub(super) struct Request {
    pub(super) swarm: SwarmId,
    pub(super) transaction: Transaction,
    pub(super) cookie: Cookie,
    /// There is a cookie, so the answer may hold peers.
    pub(super) wants_peers: bool,
}

/// What an answer meant.
pub(super) struct Answer {
    pub(super) swarm: SwarmId,
    pub(super) came_up: bool,
    pub(super) observed_changed: bool,
}

impl Tracker {
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            cookie: None,
            swarms: BTreeMap::new(),
            flights: Vec::new(),
            answered: false,
            failures: 0,
            failed_at: Instant::ZERO,
            not_before: Instant::ZERO,
            rtt: Duration::ZERO,
            observed: None,
        }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn is_down(&self) -> bool {
        self.failures >= DOWN_AFTER
    }

    pub(super) fn is_up(&self) -> bool {
        self.answered && !self.is_down()
    }

    pub(super) fn knows(&self, swarm: SwarmId) -> bool {
        self.swarms.contains_key(&swarm)
    }

    pub(super) fn join(&mut self, now: Instant, swarm: SwarmId) {
        self.flights.retain(|f| f.swarm != swarm);
        self.swarms.insert(swarm, Slot::member(now));
    }

    /// Announces the leaving if this tracker can have listed us, else forgets the swarm.
    pub(super) fn leave(&mut self, now: Instant, swarm: SwarmId) {
        self.flights.retain(|f| f.swarm != swarm);
        let up = self.is_up();
        match self.swarms.get_mut(&swarm) {
            Some(slot) if up => {
                slot.phase = Phase::Leaving { tries_left: LEAVE_TRIES };
                (slot.next, slot.in_flight, slot.cookie_rounds) = (now, false, 0);
            }
            _ => drop(self.swarms.remove(&swarm)),
        }
    }

    /// Announces every swarm at once; what is in flight has become old.
    pub(super) fn announce_all(&mut self, now: Instant) {
        let leaving = |s: &Slot| s.phase != Phase::Member;
        self.flights.retain(|f| self.swarms.get(&f.swarm).is_some_and(leaving));
        self.swarms.values_mut().filter(|s| !leaving(s)).for_each(|s| *s = Slot::member(now));
    }

    /// The next request whose time has come.
    pub(super) fn poll_request(&mut self, now: Instant, rng: &mut impl Rng) -> Option<Request> {
        if now < self.not_before || !self.has_room() {
            return None;
        }
        let due = self.swarms.iter_mut().filter(|(_, s)| !s.in_flight && s.next <= now);
        let (&swarm, slot) = due.min_by_key(|(_, s)| s.next)?;
        slot.in_flight = true;
        let mut transaction = [0; 8];
        rng.fill_bytes(&mut transaction);
        let deadline = now + self.timeout();
        self.flights.push(Flight { transaction, swarm, sent: now, deadline });
        let cookie = self.cookie.unwrap_or(NO_COOKIE);
        Some(Request { swarm, transaction, cookie, wants_peers: self.cookie.is_some() })
    }

    /// Takes an answer; `None` if it answers nothing that waits.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        message: &FromTracker,
        rng: &mut impl Rng,
    ) -> Option<Answer> {
        let transaction = message.transaction()?;
        let i = self.flights.iter().position(|f| f.transaction == transaction)?;
        let flight = self.flights.swap_remove(i);
        self.rtt = now - flight.sent;
        match message {
            FromTracker::Cookie(reply) => {
                self.handle_cookie(now, flight.swarm, reply.cookie, flight.sent, rng);
                Some(Answer { swarm: flight.swarm, came_up: false, observed_changed: false })
            }
            FromTracker::Peers(reply) => Some(self.handle_peers(now, flight.swarm, reply, rng)),
            // Has no transaction.
            FromTracker::Ring(_) => None,
        }
    }

    /// The cookie, if this tracker can be asked to ring somebody now.
    pub(super) fn cookie_for_calls(&self, swarm: SwarmId) -> Option<Cookie> {
        self.cookie.filter(|_| self.is_up() && self.knows(swarm))
    }

    /// Gives up requests whose time is over; returns how many.
    pub(super) fn handle_timeout(&mut self, now: Instant, rng: &mut impl Rng) -> u64 {
        let (late, waiting) =
            core::mem::take(&mut self.flights).into_iter().partition::<Vec<_>, _>(|f| f.deadline <= now);
        self.flights = waiting;
        for flight in &late {
            self.request_failed(now, flight.swarm, flight.sent, rng);
        }
        late.len() as u64
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let deadline = self.flights.iter().map(|f| f.deadline).min();
        let due = self.swarms.values().filter(|s| !s.in_flight).map(|s| s.next).min();
        let due = due.filter(|_| self.has_room()).map(|d| d.max(self.not_before));
        [deadline, due].into_iter().flatten().min()
    }

    fn handle_cookie(
        &mut self,
        now: Instant,
        swarm: SwarmId,
        cookie: Cookie,
        sent: Instant,
        rng: &mut impl Rng,
    ) {
        self.cookie = Some(cookie);
        let slot = self.swarms.get_mut(&swarm).expect("a flight belongs to a swarm");
        slot.cookie_rounds += 1;
        (slot.next, slot.in_flight) = (now, false);
        if slot.cookie_rounds > COOKIE_ROUNDS {
            // A NAT that gives us another port each time, or a tracker gone mad: no hurry then.
            self.request_failed(now, swarm, sent, rng);
        }
    }

    fn handle_peers(
        &mut self,
        now: Instant,
        swarm: SwarmId,
        reply: &PeersReply,
        rng: &mut impl Rng,
    ) -> Answer {
        let came_up = !self.is_up();
        self.answered = true;
        self.failures = 0;
        self.not_before = now;
        self.cookie = Some(reply.cookie);
        let observed_changed = self.observed.replace(reply.observed) != Some(reply.observed);
        let slot = self.swarms.get_mut(&swarm).expect("a flight belongs to a swarm");
        if slot.phase == Phase::Member {
            let pause = (INTERVAL_FIRST * (1 << slot.announced.min(16))).min(reply.interval);
            slot.next = now + stretched(pause, 90..=110, rng);
            slot.announced = slot.announced.saturating_add(1);
            (slot.in_flight, slot.cookie_rounds) = (false, 0);
        } else {
            self.swarms.remove(&swarm);
        }
        Answer { swarm, came_up, observed_changed }
    }

    fn request_failed(&mut self, now: Instant, swarm: SwarmId, sent: Instant, rng: &mut impl Rng) {
        // Requests of one volley fail together and count once.
        if self.failures == 0 || sent >= self.failed_at {
            self.failures = self.failures.saturating_add(1);
            self.failed_at = now;
            if self.failures >= 2 {
                let pause = Duration::from_secs(1 << (self.failures - 1).min(16)).min(BACKOFF_MAX);
                self.not_before = now + stretched(pause, 75..=125, rng);
            }
            if self.is_down() {
                self.cookie = None;
            }
        }
        let slot = self.swarms.get_mut(&swarm).expect("a flight belongs to a swarm");
        (slot.next, slot.in_flight, slot.cookie_rounds) = (now, false, 0);
        if let Phase::Leaving { tries_left } = &mut slot.phase {
            *tries_left -= 1;
            if *tries_left == 0 {
                self.swarms.remove(&swarm);
            }
        }
    }

    fn has_room(&self) -> bool {
        self.flights.len() < if self.cookie.is_some() { IN_FLIGHT } else { 1 }
    }

    fn timeout(&self) -> Duration {
        let base = REQUEST_TIMEOUT_MIN.max(self.rtt * 3);
        (base * (1 << self.failures.min(3))).min(REQUEST_TIMEOUT_MAX)
    }
}

impl Slot {
    fn member(now: Instant) -> Self {
        Self { next: now, in_flight: false, announced: 0, cookie_rounds: 0, phase: Phase::Member }
    }
}
