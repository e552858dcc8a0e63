//! Finding members on the same network: when to announce oneself to the multicast group, when to answer a
//! newcomer, and whom to believe (`PROTOCOL.md` §6, §7).
//!
//! Left out: the sockets, groups and interfaces (the agent's `discovery` module). Driven like
//! [`Client`](crate::Client); a datagram from [`LanAnnouncer::poll_transmit`] goes out on every interface.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;

use crate::book::{Peer, PeerBook, Refusal};
use crate::entry::{Address, Entry, EntryFlags};
use crate::jitter::stretched;
use crate::key::{AgentId, PeerId, SwarmId, SwarmKey};
use crate::limits::{
    EVENTS, LAN_ANSWER_DELAY, LAN_ANSWER_PAUSE, LAN_ASKS, LAN_INTERVAL_FIRST, LAN_INTERVAL_MAX, SWARMS,
};
use crate::message::LanAnnounce;

/// What a [`LanAnnouncer`] counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LanStats {
    /// Announcements sent.
    pub sent: u64,
    /// Announcements of other members heard.
    pub heard: u64,
    /// Datagrams that were no message, or of swarms that we are not in.
    pub ignored: u64,
    /// Entries that no member made.
    pub forged: u64,
    /// Entries older than what was known.
    pub stale: u64,
}

/// The LAN side of one agent.
#[derive(Debug)]
pub struct LanAnnouncer {
    rng: ChaCha8Rng,
    sequence: u64,
    addresses: Vec<Address>,
    relay: bool,
    swarms: BTreeMap<SwarmId, Swarm>,
    farewells: VecDeque<Vec<u8>>,
    found: VecDeque<(SwarmId, Peer)>,
    stats: LanStats,
}

#[derive(Debug)]
struct Swarm {
    key: SwarmKey,
    me: PeerId,
    book: PeerBook,
    /// Announcements so far; paces and marks the first ones.
    announced: u32,
    /// When the next regular announcement is due.
    next: Instant,
    /// When a newcomer is to be answered.
    answer: Option<Instant>,
    last: Option<Instant>,
}

impl LanAnnouncer {
    /// An announcer in no swarm. `seed`: 32 unpredictable bytes, or a fixed value in simulations;
    /// `first_sequence`: wall clock in milliseconds, so that it grows over restarts.
    pub fn new(seed: [u8; 32], first_sequence: u64) -> Self {
        Self {
            rng: ChaCha8Rng::from_seed(seed),
            sequence: first_sequence,
            addresses: Vec::new(),
            relay: false,
            swarms: BTreeMap::new(),
            farewells: VecDeque::new(),
            found: VecDeque::new(),
            stats: LanStats::default(),
        }
    }

    /// Sets where the agent can be reached, best first; a change is announced at once.
    pub fn set_addresses(&mut self, now: Instant, addresses: Vec<Address>) {
        if self.addresses != addresses {
            self.addresses = addresses;
            self.announce_all(now);
        }
    }

    /// Says that we are a relay, or not, from the next announcement on.
    pub fn set_relay(&mut self, relay: bool) {
        self.relay = relay;
    }

    /// Starts over with quick announcements that ask for answers: the network has changed.
    pub fn announce_all(&mut self, now: Instant) {
        for swarm in self.swarms.values_mut() {
            (swarm.announced, swarm.next) = (0, now);
        }
    }

    /// Joins a swarm as `agent`. Joining again starts over. False if there are [`SWARMS`] already.
    pub fn join(&mut self, now: Instant, key: SwarmKey, agent: &AgentId) -> bool {
        let id = key.swarm();
        if self.swarms.len() >= SWARMS && !self.swarms.contains_key(&id) {
            return false;
        }
        let me = key.peer_id(agent);
        let book = PeerBook::default();
        self.swarms.insert(id, Swarm { key, me, book, announced: 0, next: now, answer: None, last: None });
        true
    }

    /// Leaves a swarm and says so once, if it was ever announced.
    pub fn leave(&mut self, swarm: SwarmId) {
        let Some(state) = self.swarms.remove(&swarm) else { return };
        if state.announced > 0 && self.farewells.len() < SWARMS {
            let flags = EntryFlags { leaving: true, ..EntryFlags::default() };
            let bytes = self.datagram(swarm, &state, flags);
            self.farewells.push_back(bytes);
        }
    }

    /// Takes a datagram from the group.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let Ok(message) = LanAnnounce::parse(bytes) else {
            self.stats.ignored += 1;
            return;
        };
        let Some(swarm) = self.swarms.get_mut(&message.swarm) else {
            self.stats.ignored += 1;
            return;
        };
        let on_loopback = from.ip().is_loopback();
        match swarm.book.accept(now, &swarm.key, swarm.me, &message.entry, from, on_loopback) {
            Ok(peer) => {
                self.stats.heard += 1;
                let flags = message.entry.flags();
                if flags.answer_me && !flags.leaving {
                    swarm.answer_soon(now, &mut self.rng);
                }
                if !flags.leaving && self.found.len() < EVENTS {
                    self.found.push_back((message.swarm, peer));
                }
            }
            Err(Refusal::Forged) => self.stats.forged += 1,
            Err(Refusal::Stale) => self.stats.stale += 1,
            Err(Refusal::Own) => {}
        }
    }

    /// The next datagram for the group.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        if let Some(bytes) = self.farewells.pop_front() {
            self.stats.sent += 1;
            return Some(bytes);
        }
        let (&id, _) = self.swarms.iter().find(|(_, s)| s.due() <= now)?;
        let mut swarm = self.swarms.remove(&id).expect("just seen");
        let flags = EntryFlags { answer_me: swarm.announced < LAN_ASKS, ..EntryFlags::default() };
        let bytes = self.datagram(id, &swarm, flags);
        swarm.announced_at(now, &mut self.rng);
        self.swarms.insert(id, swarm);
        self.stats.sent += 1;
        Some(bytes)
    }

    /// When to call [`LanAnnouncer::poll_transmit`] again; `None`: only after other input.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.swarms.values().map(Swarm::due).min()
    }

    /// The next member that was heard. Comes with each announcement, so peers repeat.
    pub fn poll_event(&mut self) -> Option<(SwarmId, Peer)> {
        self.found.pop_front()
    }

    /// Counters since the start.
    pub fn stats(&self) -> LanStats {
        self.stats
    }

    fn datagram(&mut self, id: SwarmId, swarm: &Swarm, flags: EntryFlags) -> Vec<u8> {
        self.sequence = self.sequence.saturating_add(1);
        let flags = EntryFlags { relay: self.relay, ..flags };
        let entry = Entry::sign(&swarm.key, swarm.me, self.sequence, flags, &self.addresses);
        let mut bytes = Vec::new();
        LanAnnounce { swarm: id, entry }.emit(&mut bytes);
        bytes
    }
}

impl Swarm {
    fn due(&self) -> Instant {
        self.answer.map_or(self.next, |a| a.min(self.next))
    }

    fn answer_soon(&mut self, now: Instant, rng: &mut impl Rng) {
        if self.answer.is_some() {
            return;
        }
        let (start, end) = (LAN_ANSWER_DELAY.start, LAN_ANSWER_DELAY.end);
        let spread = (end - start).as_micros() as u64;
        let soon = now + start + Duration::from_micros(rng.next_u64() % spread);
        self.answer = Some(self.last.map_or(soon, |l| soon.max(l + LAN_ANSWER_PAUSE)));
    }

    fn announced_at(&mut self, now: Instant, rng: &mut impl Rng) {
        // An answer says what the next regular one would, which therefore can wait its full turn.
        let pause = (LAN_INTERVAL_FIRST * (1 << self.announced.min(16))).min(LAN_INTERVAL_MAX);
        self.next = now + stretched(pause, 80..=120, rng);
        self.announced = self.announced.saturating_add(1);
        self.answer = None;
        self.last = Some(now);
    }
}
