//! The agent's side of a tracker, as a state machine: keeps the agent listed in its swarms at every
//! tracker, whatever happens to them, and tells what peers they name (`PROTOCOL.md` §5, §6).
//!
//! Left out: sockets and clocks; names (trackers are given as addresses). The LAN is in [`crate::lan`].
//!
//! Drive order: after any input ([`Client::handle_datagram`], [`Client::handle_timeout`] when
//! [`Client::poll_timeout`] is due, [`Client::join`] and its like), call [`Client::poll_transmit`] until
//! `None`, then [`Client::poll_event`] until `None`, then ask [`Client::poll_timeout`] anew.

mod tracker;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::net::SocketAddr;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;

use crate::book::{Peer, PeerBook, Refusal};
use crate::entry::{Address, Entry, EntryFlags};
use crate::key::{AgentId, PeerId, SwarmId, SwarmKey};
use crate::limits::{CALLS_WAITING, DATAGRAM_MAX, EVENTS, SWARMS, TRACKERS};
use crate::message::{Announce, Call, FromTracker, PeersReply, Ring};
use tracker::{Answer, Tracker};

/// How a [`Client`] behaves.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Seed of jitter and transactions; 32 unpredictable bytes, or a fixed value in simulations.
    pub seed: [u8; 32],
    /// Start of the sequence of entries; wall clock in milliseconds, so that it grows over restarts.
    pub first_sequence: u64,
    /// Size that announcements are padded to, which bounds the answer: [`DATAGRAM_MAX`] by default,
    /// less where bytes are dear.
    pub answer_room: usize,
}

impl ClientConfig {
    /// The defaults, with what has none.
    pub fn new(seed: [u8; 32], first_sequence: u64) -> Self {
        Self { seed, first_sequence, answer_room: DATAGRAM_MAX }
    }
}

/// What a [`Client`] has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A tracker named these members of a swarm. Comes with each answer that names any, so peers repeat.
    Peers {
        /// The swarm that was asked for.
        swarm: SwarmId,
        /// Who answered.
        tracker: SocketAddr,
        /// Verified to come from members; at least one.
        peers: Vec<Peer>,
    },
    /// A member calls: it wants us to send to its addresses, so that its packets get through to us.
    Ring {
        /// The swarm of both.
        swarm: SwarmId,
        /// Who passed it on.
        tracker: SocketAddr,
        /// Verified to come from a member, and for the first time.
        peer: Peer,
    },
    /// Where a tracker sees us; comes when it changes.
    Observed {
        /// Who sees us.
        tracker: SocketAddr,
        /// Our address there.
        addr: SocketAddr,
    },
    /// A tracker answered for the first time, or again after it was down.
    TrackerUp {
        /// Which.
        tracker: SocketAddr,
    },
    /// A tracker has left several requests unanswered; it is probed for ever.
    TrackerDown {
        /// Which.
        tracker: SocketAddr,
    },
}

/// What a [`Client`] counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Requests sent.
    pub sent: u64,
    /// Answers taken.
    pub answers: u64,
    /// Requests given up.
    pub timeouts: u64,
    /// Datagrams that were no message, or no answer to anything we asked.
    pub ignored: u64,
    /// Entries that no member made.
    pub forged: u64,
    /// Entries older than what was known.
    pub stale: u64,
    /// Calls sent, one per tracker.
    pub calls: u64,
    /// Rings taken.
    pub rings: u64,
    /// Events dropped as nobody polled.
    pub events_dropped: u64,
}

/// The tracker client of one agent. See the module's documentation for how to drive it.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    rng: ChaCha8Rng,
    sequence: u64,
    addresses: Vec<Address>,
    observed_usable: Usable,
    relay: bool,
    swarms: BTreeMap<SwarmId, Swarm>,
    trackers: Vec<Tracker>,
    calls: VecDeque<(SwarmId, PeerId, SocketAddr)>,
    events: VecDeque<Event>,
    stats: ClientStats,
}

/// With trackers of which IP version the µTP2 socket itself speaks, so that what they observe is a µTP2 address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usable {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Usable {
    /// Neither.
    pub const NONE: Self = Self { v4: false, v6: false };

    /// Whether it holds for this tracker.
    pub fn at(self, tracker: SocketAddr) -> bool {
        if tracker.ip().to_canonical().is_ipv4() { self.v4 } else { self.v6 }
    }
}

#[derive(Debug)]
struct Swarm {
    key: SwarmKey,
    me: PeerId,
    book: PeerBook,
    leaving: bool,
}

impl Client {
    /// A client without trackers and swarms.
    pub fn new(config: ClientConfig) -> Self {
        Self {
            rng: ChaCha8Rng::from_seed(config.seed),
            sequence: config.first_sequence,
            config,
            addresses: Vec::new(),
            observed_usable: Usable::NONE,
            relay: false,
            swarms: BTreeMap::new(),
            trackers: Vec::new(),
            calls: VecDeque::new(),
            events: VecDeque::new(),
            stats: ClientStats::default(),
        }
    }

    /// Sets where the agent can be reached, best first, and announces the change at once.
    pub fn set_addresses(&mut self, now: Instant, addresses: Vec<Address>, observed_usable: Usable) {
        if self.addresses == addresses && self.observed_usable == observed_usable {
            return;
        }
        self.addresses = addresses;
        self.observed_usable = observed_usable;
        for tracker in &mut self.trackers {
            tracker.announce_all(now);
        }
    }

    /// Says that we are a relay, or not, from the next announcement on.
    pub fn set_relay(&mut self, relay: bool) {
        self.relay = relay;
    }

    /// Asks every tracker that is up and knows us to tell a member that we are calling it. Returns how many are asked.
    /// At most [`CALLS_WAITING`] calls wait to be sent; more are dropped.
    pub fn call(&mut self, swarm: SwarmId, peer: PeerId) -> usize {
        if !self.swarms.get(&swarm).is_some_and(|s| !s.leaving && s.me != peer) {
            return 0;
        }
        let able = self.trackers.iter().filter(|t| t.cookie_for_calls(swarm).is_some());
        let room = CALLS_WAITING.saturating_sub(self.calls.len());
        let before = self.calls.len();
        self.calls.extend(able.take(room).map(|t| (swarm, peer, t.addr())));
        self.calls.len() - before
    }

    /// Sets the trackers; those that were there before keep their state. Past [`TRACKERS`] the rest is
    /// left out.
    pub fn set_trackers(&mut self, now: Instant, addrs: &[SocketAddr]) {
        let mut old = core::mem::take(&mut self.trackers);
        for &addr in addrs {
            if self.trackers.len() == TRACKERS || self.trackers.iter().any(|t| t.addr() == addr) {
                continue;
            }
            let tracker = match old.iter().position(|t| t.addr() == addr) {
                Some(i) => old.swap_remove(i),
                None => {
                    let mut tracker = Tracker::new(addr);
                    let joined = self.swarms.iter().filter(|(_, s)| !s.leaving);
                    joined.for_each(|(id, _)| tracker.join(now, *id));
                    tracker
                }
            };
            self.trackers.push(tracker);
        }
        self.forget_left();
    }

    /// Joins a swarm as `agent`: announces it to every tracker at once, and from then on.
    /// Joining again announces again. False if there are [`SWARMS`] already.
    pub fn join(&mut self, now: Instant, key: SwarmKey, agent: &AgentId) -> bool {
        let id = key.swarm();
        if self.swarms.len() >= SWARMS && !self.swarms.contains_key(&id) {
            return false;
        }
        let me = key.peer_id(agent);
        self.swarms.insert(id, Swarm { key, me, book: PeerBook::default(), leaving: false });
        for tracker in &mut self.trackers {
            tracker.join(now, id);
        }
        true
    }

    /// Leaves a swarm: trackers that are up are told, once or twice.
    pub fn leave(&mut self, now: Instant, swarm: SwarmId) {
        let Some(state) = self.swarms.get_mut(&swarm) else { return };
        state.leaving = true;
        for tracker in &mut self.trackers {
            tracker.leave(now, swarm);
        }
        self.forget_left();
    }

    /// Takes a datagram. Whatever is not an awaited answer from a tracker is counted and ignored.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let Some(tracker) = self.trackers.iter_mut().find(|t| t.addr() == from) else {
            self.stats.ignored += 1;
            return;
        };
        if let Ok(FromTracker::Ring(ring)) = FromTracker::parse(bytes) {
            return self.handle_ring(now, from, &ring);
        }
        let was_down = tracker.is_down();
        let answer = match FromTracker::parse(bytes) {
            Ok(message) => tracker.handle_answer(now, &message, &mut self.rng).map(|a| (a, message)),
            Err(_) => None,
        };
        let went_down = tracker.is_down() && !was_down;
        let Some((answer, message)) = answer else {
            self.stats.ignored += 1;
            return;
        };
        if went_down {
            self.emit(Event::TrackerDown { tracker: from });
        }
        self.stats.answers += 1;
        if answer.came_up {
            self.emit(Event::TrackerUp { tracker: from });
        }
        if let FromTracker::Peers(reply) = message {
            self.handle_peers(now, from, &answer, &reply);
        }
        self.forget_left();
    }

    /// Gives up requests whose time is over. Harmless at any time.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut went_down = Vec::new();
        for tracker in &mut self.trackers {
            let before = tracker.is_down();
            self.stats.timeouts += tracker.handle_timeout(now, &mut self.rng);
            if tracker.is_down() && !before {
                went_down.push(tracker.addr());
            }
        }
        for tracker in went_down {
            self.emit(Event::TrackerDown { tracker });
        }
        self.forget_left();
    }

    /// The next datagram to send, and the tracker to send it to.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(SocketAddr, Vec<u8>)> {
        if let Some(call) = self.poll_call() {
            return Some(call);
        }
        for tracker in &mut self.trackers {
            let Some(request) = tracker.poll_request(now, &mut self.rng) else { continue };
            let swarm = self.swarms.get(&request.swarm).expect("trackers hold joined swarms only");
            let flags = EntryFlags {
                leaving: swarm.leaving,
                answer_me: false,
                observed_usable: self.observed_usable.at(tracker.addr()),
                relay: self.relay,
            };
            self.sequence = self.sequence.saturating_add(1);
            let announce = Announce {
                transaction: request.transaction,
                cookie: request.cookie,
                swarm: request.swarm,
                entry: Entry::sign(&swarm.key, swarm.me, self.sequence, flags, &self.addresses),
            };
            // Without a cookie there can be no list in the answer, when leaving there is none.
            let room = if request.wants_peers && !swarm.leaving { self.config.answer_room } else { 0 };
            let mut bytes = Vec::new();
            announce.emit(&mut bytes, room);
            self.stats.sent += 1;
            return Some((tracker.addr(), bytes));
        }
        None
    }

    /// When to call [`Client::handle_timeout`] and [`Client::poll_transmit`] again; `None`: only after
    /// other input, calls included.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.trackers.iter().filter_map(Tracker::poll_timeout).min()
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Counters since the start.
    pub fn stats(&self) -> ClientStats {
        self.stats
    }

    /// The trackers, and whether each is up: answered, and not down since.
    pub fn trackers(&self) -> impl Iterator<Item = (SocketAddr, bool)> {
        self.trackers.iter().map(|t| (t.addr(), t.is_up()))
    }

    fn poll_call(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        while let Some((id, callee, to)) = self.calls.pop_front() {
            let Some(swarm) = self.swarms.get(&id).filter(|s| !s.leaving) else { continue };
            let tracker = self.trackers.iter().find(|t| t.addr() == to);
            let Some(cookie) = tracker.and_then(|t| t.cookie_for_calls(id)) else { continue };
            let flags = EntryFlags {
                observed_usable: self.observed_usable.at(to),
                relay: self.relay,
                ..EntryFlags::default()
            };
            self.sequence = self.sequence.saturating_add(1);
            let entry = Entry::sign(&swarm.key, swarm.me, self.sequence, flags, &self.addresses);
            let mut transaction = [0; 8];
            self.rng.fill_bytes(&mut transaction);
            let mut bytes = Vec::new();
            Call { transaction, cookie, swarm: id, callee, entry }.emit(&mut bytes, self.config.answer_room);
            self.stats.calls += 1;
            return Some((to, bytes));
        }
        None
    }

    fn handle_ring(&mut self, now: Instant, from: SocketAddr, ring: &Ring) {
        let swarm = self.swarms.get_mut(&ring.swarm).filter(|s| !s.leaving && !ring.entry.flags().leaving);
        let Some(swarm) = swarm else {
            self.stats.ignored += 1;
            return;
        };
        match swarm.book.accept_ring(now, &swarm.key, swarm.me, &ring.entry, ring.observed) {
            Ok(peer) => {
                self.stats.rings += 1;
                self.emit(Event::Ring { swarm: ring.swarm, tracker: from, peer });
            }
            Err(Refusal::Forged) => self.stats.forged += 1,
            Err(Refusal::Stale) => self.stats.stale += 1,
            Err(Refusal::Own) => {}
        }
    }

    fn handle_peers(&mut self, now: Instant, from: SocketAddr, answer: &Answer, reply: &PeersReply) {
        if answer.observed_changed {
            self.emit(Event::Observed { tracker: from, addr: reply.observed });
        }
        let Some(swarm) = self.swarms.get_mut(&answer.swarm).filter(|s| !s.leaving) else { return };
        let on_loopback = reply.observed.ip().is_loopback();
        let mut peers = Vec::new();
        for listed in reply.peers.iter().filter(|p| !p.entry.flags().leaving) {
            match swarm.book.accept(now, &swarm.key, swarm.me, &listed.entry, listed.observed, on_loopback) {
                Ok(peer) => peers.push(peer),
                Err(Refusal::Forged) => self.stats.forged += 1,
                Err(Refusal::Stale) => self.stats.stale += 1,
                Err(Refusal::Own) => {}
            }
        }
        if !peers.is_empty() {
            self.emit(Event::Peers { swarm: answer.swarm, tracker: from, peers });
        }
    }

    fn forget_left(&mut self) {
        let trackers = &self.trackers;
        self.swarms.retain(|id, s| !s.leaving || trackers.iter().any(|t| t.knows(*id)));
    }

    fn emit(&mut self, event: Event) {
        if self.events.len() >= EVENTS {
            self.events.pop_front();
            self.stats.events_dropped += 1;
        }
        self.events.push_back(event);
    }
}
