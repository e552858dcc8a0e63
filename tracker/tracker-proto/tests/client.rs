//! The client in virtual time against a small tracker that can die, restart and lie.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;
use tracker_proto::limits::{DATAGRAM_MAX, IN_FLIGHT, TRACKERS};
use tracker_proto::message::{COOKIE_REPLY_LEN, Cookie};
use tracker_proto::{
    Address, Announce, Client, ClientConfig, CookieReply, Entry, EntryFlags, Event, ListedPeer, PeersReply,
    Ring, SwarmId, SwarmKey, ToTracker, Usable,
};

const RTT: Duration = Duration::from_millis(50);

fn key(run: u8) -> SwarmKey {
    SwarmKey::from_run_secret(&[run; 32])
}

fn addr(s: &str) -> SocketAddr {
    s.parse().unwrap()
}

fn tracker_addr(i: usize) -> SocketAddr {
    addr(&format!("192.0.2.{}:7000", i + 1))
}

/// A tracker of the test: lists what it heard, by the address of the announcer.
struct FakeTracker {
    alive: bool,
    cookie: Cookie,
    fresh_cookie_each_time: bool,
    listed: BTreeMap<(SwarmId, SocketAddr), Entry>,
    announces: Vec<(Instant, Announce, usize)>,
}

impl FakeTracker {
    fn new() -> Self {
        Self {
            alive: true,
            cookie: [1; 16],
            fresh_cookie_each_time: false,
            listed: BTreeMap::new(),
            announces: vec![],
        }
    }

    /// As after a kill and a start: nothing listed, another server key.
    fn restart(&mut self) {
        self.listed.clear();
        self.cookie[0] += 1;
        self.alive = true;
    }

    fn handle(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
        let message = ToTracker::parse(bytes).expect("clients send announces and calls");
        if !self.alive {
            return None;
        }
        match message {
            ToTracker::Announce(announce) => {
                self.announced(now, from, announce, bytes.len()).map(|b| (from, b))
            }
            ToTracker::Call(call) => {
                assert_eq!(call.cookie, self.cookie, "clients call with a cookie");
                let named = |e: &Entry| e.peer() == call.callee;
                let (_, to) = *self.listed.iter().find(|((s, _), e)| *s == call.swarm && named(e))?.0;
                let mut out = Vec::new();
                Ring { swarm: call.swarm, observed: from, entry: call.entry }.emit(&mut out);
                Some((to, out))
            }
        }
    }

    fn announced(
        &mut self,
        now: Instant,
        from: SocketAddr,
        announce: Announce,
        len: usize,
    ) -> Option<Vec<u8>> {
        self.announces.push((now, announce.clone(), len));
        let mut out = Vec::new();
        let (transaction, cookie) = (announce.transaction, self.cookie);
        if announce.cookie != cookie || self.fresh_cookie_each_time {
            CookieReply { transaction, cookie }.emit(&mut out);
            return Some(out);
        }
        let place = (announce.swarm, from);
        if announce.entry.flags().leaving {
            self.listed.remove(&place);
        } else {
            self.listed.insert(place, announce.entry);
        }
        let others = self.listed.iter().filter(|((s, a), _)| *s == place.0 && *a != from);
        let peers = others.map(|((_, a), e)| ListedPeer { observed: *a, entry: e.clone() }).collect();
        let interval = Duration::from_secs(30);
        PeersReply { transaction, cookie, interval, full: false, observed: from, peers }.emit(&mut out);
        Some(out)
    }
}

/// Clients and trackers with half an RTT between them.
struct World {
    now: Instant,
    trackers: Vec<FakeTracker>,
    clients: Vec<Client>,
    events: Vec<Vec<(Instant, Event)>>,
    in_air: Vec<(Instant, bool, SocketAddr, SocketAddr, Vec<u8>)>,
}

impl World {
    fn new(trackers: usize, clients: u8) -> Self {
        let addrs: Vec<_> = (0..trackers).map(tracker_addr).collect();
        let mut world = Self {
            now: Instant::ZERO,
            trackers: (0..trackers).map(|_| FakeTracker::new()).collect(),
            clients: (0..clients).map(|i| Client::new(ClientConfig::new([i; 32], 1000))).collect(),
            events: vec![vec![]; clients.into()],
            in_air: vec![],
        };
        for (i, client) in world.clients.iter_mut().enumerate() {
            client.set_trackers(world.now, &addrs);
            client.set_addresses(world.now, vec![Address::reflexive(4000 + i as u16).unwrap()], Usable::NONE);
        }
        world
    }

    fn client_addr(i: usize) -> SocketAddr {
        addr(&format!("198.51.100.{}:9000", i + 1))
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            for i in 0..self.clients.len() {
                self.clients[i].handle_timeout(self.now);
                while let Some((to, bytes)) = self.clients[i].poll_transmit(self.now) {
                    self.in_air.push((self.now + RTT / 2, true, Self::client_addr(i), to, bytes));
                }
                while let Some(event) = self.clients[i].poll_event() {
                    self.events[i].push((self.now, event));
                }
            }
            let timers = self.clients.iter().filter_map(Client::poll_timeout);
            let next = timers.chain(self.in_air.iter().map(|f| f.0)).min().unwrap_or(end);
            if next > end {
                self.now = end;
                return;
            }
            assert!(next >= self.now, "time goes on");
            self.now = next;
            let (arrived, rest) = std::mem::take(&mut self.in_air).into_iter().partition(|f| f.0 <= next);
            self.in_air = rest;
            for (_, to_tracker, from, to, bytes) in arrived {
                self.arrive(to_tracker, from, to, &bytes);
            }
            if next == end && self.in_air.iter().all(|f| f.0 > end) {
                return;
            }
        }
    }

    fn arrive(&mut self, to_tracker: bool, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        if to_tracker {
            let tracker = (0..self.trackers.len()).find(|i| tracker_addr(*i) == to).expect("known");
            if let Some((dest, reply)) = self.trackers[tracker].handle(self.now, from, bytes) {
                assert!(reply.len() <= bytes.len() || bytes.len() < DATAGRAM_MAX);
                self.in_air.push((self.now + RTT / 2, false, to, dest, reply));
            }
        } else {
            let client = (0..self.clients.len()).find(|i| Self::client_addr(*i) == to).expect("known");
            self.clients[client].handle_datagram(self.now, from, bytes);
        }
    }

    fn join(&mut self, client: usize, run: u8) {
        assert!(self.clients[client].join(self.now, key(run), &[client as u8; 16]));
    }

    /// Addresses that a client was told of since `since`.
    fn found(&self, client: usize, since: Instant) -> Vec<SocketAddr> {
        let mut addrs: Vec<_> = self.events[client]
            .iter()
            .filter(|(at, _)| *at >= since)
            .filter_map(|(_, e)| match e {
                Event::Peers { peers, .. } => Some(peers.iter().flat_map(|p| p.addrs.clone())),
                _ => None,
            })
            .flatten()
            .collect();
        addrs.sort();
        addrs.dedup();
        addrs
    }

    fn count(&self, client: usize, what: impl Fn(&Event) -> bool) -> usize {
        self.events[client].iter().filter(|(_, e)| what(e)).count()
    }
}

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

#[test]
fn members_of_a_swarm_find_each_other_and_nobody_else() {
    let mut w = World::new(1, 3);
    w.join(0, 1);
    w.join(1, 1);
    w.join(2, 2);
    w.run_for(secs(5));
    assert_eq!(w.found(0, Instant::ZERO), [addr("198.51.100.2:4001")]);
    assert_eq!(w.found(1, Instant::ZERO), [addr("198.51.100.1:4000")]);
    assert!(w.found(2, Instant::ZERO).is_empty());
    assert_eq!(w.count(0, |e| matches!(e, Event::TrackerUp { .. })), 1);
    let observed = Event::Observed { tracker: tracker_addr(0), addr: World::client_addr(0) };
    assert_eq!(w.count(0, |e| *e == observed), 1);
}

#[test]
fn announcements_slow_down_to_the_interval() {
    let mut w = World::new(1, 1);
    w.join(0, 1);
    w.run_for(secs(600));
    let heard: Vec<_> = w.trackers[0].announces.iter().map(|a| a.0).collect();
    // One for the cookie, then at 0, 3, 9, 21, 45 s and every 30 s after.
    assert!((22..=27).contains(&heard.len()), "{}", heard.len());
    let pauses: Vec<_> = heard.windows(2).skip(6).map(|p| (p[1] - p[0]).as_millis()).collect();
    assert!(pauses.iter().all(|p| (27_000..=33_100).contains(p)), "{pauses:?}");
    assert!(pauses.iter().any(|p| *p != pauses[0]), "with jitter");
}

#[test]
fn the_first_request_is_small_and_the_others_leave_room_for_the_answer() {
    let mut w = World::new(1, 1);
    w.join(0, 1);
    w.run_for(secs(1));
    let sizes: Vec<_> = w.trackers[0].announces.iter().map(|a| a.2).collect();
    assert_eq!(sizes, [60 + 26 + 3 + 16, DATAGRAM_MAX]);
    assert!(sizes[0] >= COOKIE_REPLY_LEN);
}

#[test]
fn a_dead_tracker_is_probed_for_ever_and_hurts_nobody() {
    let mut w = World::new(2, 2);
    w.trackers[0].alive = false;
    w.join(0, 1);
    w.join(1, 1);
    w.run_for(secs(3));
    assert_eq!(w.found(0, Instant::ZERO).len(), 1, "through the other tracker");
    w.run_for(secs(24 * 3600));
    assert_eq!(w.count(0, |e| *e == Event::TrackerDown { tracker: tracker_addr(0) }), 1);
    let sent = w.clients[0].stats().timeouts;
    assert!((24 * 3600 / 90..24 * 3600 / 45).contains(&sent), "one probe a minute or so: {sent}");
    // Back after a day: found within the longest pause and what its jitter and a timeout add.
    let back = w.now;
    w.trackers[0].restart();
    w.trackers[1].alive = false;
    w.run_for(secs(60 + 15 + 10));
    assert_eq!(w.trackers[0].listed.len(), 2);
    w.run_for(secs(10));
    assert_eq!(w.found(0, back), [addr("198.51.100.2:4001")]);
    assert_eq!(w.count(0, |e| *e == Event::TrackerUp { tracker: tracker_addr(0) }), 1);
}

#[test]
fn a_restarted_tracker_lists_everybody_within_an_interval() {
    let mut w = World::new(1, 2);
    w.join(0, 1);
    w.join(1, 1);
    w.run_for(secs(120));
    w.trackers[0].restart();
    let restarted = w.now;
    w.run_for(secs(34));
    assert_eq!(w.trackers[0].listed.len(), 2);
    w.run_for(secs(34));
    assert!(!w.found(0, restarted).is_empty() && !w.found(1, restarted).is_empty());
    assert_eq!(w.clients[0].stats().timeouts, 0, "a new cookie costs no timeout");
}

#[test]
fn a_tracker_that_gives_nothing_but_cookies_is_left_alone() {
    let mut w = World::new(1, 1);
    w.trackers[0].fresh_cookie_each_time = true;
    w.join(0, 1);
    w.run_for(secs(3600));
    let heard = w.trackers[0].announces.len();
    assert!((60..400).contains(&heard), "{heard} requests in an hour");
    assert_eq!(w.count(0, |e| matches!(e, Event::TrackerDown { .. })), 1);
}

#[test]
fn leaving_is_told_and_then_forgotten() {
    let mut w = World::new(2, 2);
    w.trackers[1].alive = false;
    w.join(0, 1);
    w.join(1, 1);
    w.run_for(secs(20));
    assert_eq!(w.trackers[0].listed.len(), 2);
    let now = w.now;
    w.clients[0].leave(now, key(1).swarm());
    w.run_for(secs(1));
    assert_eq!(w.trackers[0].listed.len(), 1);
    assert_eq!(w.clients[0].poll_timeout(), None, "nothing left to do");
    // A tracker that died in the meantime is told twice, then the swarm is forgotten too.
    w.trackers[0].alive = false;
    let now = w.now;
    w.clients[1].leave(now, key(1).swarm());
    w.run_for(secs(30));
    assert_eq!(w.clients[1].poll_timeout(), None);
}

#[test]
fn joining_again_while_leaving_stays() {
    let mut w = World::new(1, 1);
    w.join(0, 1);
    w.run_for(secs(5));
    let now = w.now;
    w.clients[0].leave(now, key(1).swarm());
    w.join(0, 1);
    w.run_for(secs(100));
    assert_eq!(w.trackers[0].listed.len(), 1);
}

#[test]
fn a_changed_address_is_announced_at_once() {
    let mut w = World::new(1, 1);
    w.join(0, 1);
    w.run_for(secs(100));
    let (now, before) = (w.now, w.trackers[0].announces.len());
    let new = Address::socket(addr("203.0.113.5:4444")).unwrap();
    w.clients[0].set_addresses(now, vec![new], Usable { v4: true, v6: true });
    w.clients[0].set_addresses(now, vec![new], Usable { v4: true, v6: true });
    w.run_for(secs(1));
    assert_eq!(w.trackers[0].announces.len(), before + 1);
    let entry = &w.trackers[0].announces[before].1.entry;
    assert_eq!(entry.addresses(), [new]);
    assert!(entry.flags().observed_usable && entry.verify(&key(1)));
}

#[test]
fn many_swarms_do_not_burst() {
    let mut w = World::new(1, 1);
    for run in 1..=100 {
        w.join(0, run);
    }
    w.run_for(RTT);
    assert_eq!(w.trackers[0].announces.len(), 1, "no cookie yet");
    w.run_for(RTT / 2);
    assert_eq!(w.trackers[0].announces.len(), 1 + IN_FLIGHT);
    w.run_for(secs(2));
    assert_eq!(w.trackers[0].listed.len(), 100);
}

#[test]
fn forged_entries_are_counted_and_dropped() {
    let mut w = World::new(1, 1);
    let swarm = key(1).swarm();
    let forged = Entry::sign(
        &key(2),
        key(1).peer_id(&[9; 16]),
        u64::MAX,
        EntryFlags::default(),
        &[Address::reflexive(1).unwrap()],
    );
    w.trackers[0].listed.insert((swarm, addr("203.0.113.66:66")), forged);
    w.join(0, 1);
    w.run_for(secs(2));
    assert!(w.found(0, Instant::ZERO).is_empty());
    assert_eq!(w.clients[0].stats().forged, 1);
}

#[test]
fn answers_from_others_and_made_up_answers_are_ignored() {
    let mut w = World::new(1, 1);
    w.join(0, 1);
    let now = w.now;
    let (to, bytes) = w.clients[0].poll_transmit(now).unwrap();
    let transaction = Announce::parse(&bytes).unwrap().transaction;
    let mut reply = Vec::new();
    CookieReply { transaction, cookie: [9; 16] }.emit(&mut reply);
    w.clients[0].handle_datagram(now, addr("203.0.113.66:7000"), &reply);
    let mut guess = Vec::new();
    CookieReply { transaction: [0; 8], cookie: [9; 16] }.emit(&mut guess);
    w.clients[0].handle_datagram(now, to, &guess);
    w.clients[0].handle_datagram(now, to, b"FT");
    assert_eq!(w.clients[0].stats().ignored, 3);
    assert_eq!(w.clients[0].poll_transmit(now), None, "still waiting");
    w.clients[0].handle_datagram(now, to, &reply);
    w.clients[0].handle_datagram(now, to, &reply);
    assert_eq!(w.clients[0].stats().ignored, 4, "an answer counts once");
}

#[test]
fn trackers_can_be_changed_and_are_limited() {
    let mut w = World::new(2, 1);
    w.join(0, 1);
    w.run_for(secs(2));
    let now = w.now;
    w.clients[0].set_trackers(now, &[tracker_addr(1), tracker_addr(1)]);
    let before = w.trackers[0].announces.len();
    w.run_for(secs(100));
    assert_eq!(w.trackers[0].announces.len(), before);
    assert_eq!(w.clients[0].trackers().collect::<Vec<_>>(), [(tracker_addr(1), true)]);
    let many: Vec<_> = (10..10 + 2 * TRACKERS).map(tracker_addr).collect();
    w.clients[0].set_trackers(now, &many);
    assert_eq!(w.clients[0].trackers().count(), TRACKERS);
    w.clients[0].set_trackers(now, &[]);
    assert_eq!(w.clients[0].poll_timeout(), None);
}

/// Joins, leaves, deaths, restarts and new trackers in any order: no panic, no busy loop, and once all is
/// quiet everybody is found.
#[test]
fn any_order_of_events_ends_well() {
    for seed in 0..20 {
        let mut rng = ChaCha8Rng::from_seed([seed; 32]);
        let mut w = World::new(3, 3);
        for _ in 0..300 {
            let now = w.now;
            let client = rng.next_u32() as usize % 3;
            let run = (rng.next_u32() % 3) as u8 + 1;
            let tracker = rng.next_u32() as usize % 3;
            match rng.next_u32() % 8 {
                0 | 1 => w.join(client, run),
                2 => w.clients[client].leave(now, key(run).swarm()),
                3 => w.trackers[tracker].alive = false,
                4 => w.trackers[tracker].restart(),
                5 => w.clients[client].set_trackers(now, &[tracker_addr(tracker), tracker_addr(2)]),
                6 => w.clients[client].set_trackers(now, &[0, 1, 2].map(tracker_addr)),
                _ => {
                    let port = rng.next_u32() as u16 | 1;
                    let addresses = vec![Address::reflexive(port).unwrap()];
                    w.clients[client].set_addresses(now, addresses, Usable { v4: port > 9, v6: false });
                }
            }
            w.run_for(Duration::from_millis(u64::from(rng.next_u32() % 5000)));
        }
        let quiet = w.now;
        w.trackers.iter_mut().for_each(|t| t.alive = true);
        for client in 0..3 {
            w.clients[client].set_trackers(quiet, &[0, 1, 2].map(tracker_addr));
            w.join(client, 1);
        }
        w.run_for(secs(200));
        assert!((0..3).all(|c| w.found(c, quiet).len() >= 2), "seed {seed}");
        let sent: u64 = w.clients.iter().map(|c| c.stats().sent).sum();
        assert!(sent < 20_000, "seed {seed}: {sent} requests");
    }
}

fn rings(w: &World, client: usize) -> Vec<(SocketAddr, Vec<SocketAddr>)> {
    let ring = |e: &Event| match e {
        Event::Ring { tracker, peer, .. } => Some((*tracker, peer.addrs.clone())),
        _ => None,
    };
    w.events[client].iter().filter_map(|(_, e)| ring(e)).collect()
}

#[test]
fn a_call_rings_through_every_tracker_that_is_up_and_each_once() {
    let mut w = World::new(3, 2);
    let (caller, callee) = (key(1).peer_id(&[0; 16]), key(1).peer_id(&[1; 16]));
    w.trackers[2].alive = false;
    w.join(0, 1);
    assert_eq!(w.clients[0].call(key(1).swarm(), callee), 0, "no tracker knows us yet");
    w.join(1, 1);
    w.clients[0].set_addresses(w.now, vec![], Usable { v4: true, v6: false });
    w.run_for(secs(30));
    assert_eq!(w.clients[0].call(key(1).swarm(), caller), 0, "nobody calls himself");
    assert_eq!(w.clients[0].call(key(9).swarm(), callee), 0, "nor in another swarm");
    assert_eq!(w.clients[0].call(key(1).swarm(), callee), 2);
    w.run_for(secs(1));
    let rung = rings(&w, 1);
    assert_eq!(rung.len(), 2, "each call has a sequence of its own: {rung:?}");
    assert!(rung.iter().all(|(_, addrs)| *addrs == [World::client_addr(0)]), "{rung:?}");
    assert!(rings(&w, 0).is_empty());
}

#[test]
fn rings_that_are_repeated_forged_or_not_from_a_tracker_do_nothing() {
    let mut w = World::new(1, 1);
    w.join(0, 1);
    w.run_for(secs(5));
    let me = World::client_addr(0);
    let ring = |run: u8, sequence: u64, flags: EntryFlags| {
        let entry = Entry::sign(&key(run), key(run).peer_id(&[9; 16]), sequence, flags, &[]);
        let mut out = Vec::new();
        Ring { swarm: key(1).swarm(), observed: addr("203.0.113.5:7"), entry }.emit(&mut out);
        out
    };
    let flags = EntryFlags { observed_usable: true, ..EntryFlags::default() };
    let leaving = EntryFlags { leaving: true, ..flags };
    let good = ring(1, 50, flags);
    let (tracker, now) = (tracker_addr(0), w.now);
    w.clients[0].handle_datagram(now, me, &good);
    w.clients[0].handle_datagram(now, tracker, &ring(2, 60, flags));
    w.clients[0].handle_datagram(now, tracker, &ring(1, 60, leaving));
    w.clients[0].handle_datagram(now, tracker, &good[..good.len() - 1]);
    w.run_for(secs(1));
    assert!(rings(&w, 0).is_empty());
    for _ in 0..3 {
        w.clients[0].handle_datagram(now, tracker, &good);
        w.clients[0].handle_datagram(now, tracker, &ring(1, 49, flags));
    }
    w.run_for(secs(1));
    assert_eq!(rings(&w, 0), [(tracker, vec![addr("203.0.113.5:7")])]);
    assert!(w.clients[0].trackers().all(|(_, up)| up), "none of it counts against the tracker");
}

#[test]
fn of_several_trackers_any_may_be_away_restart_or_expire_and_answers_are_merged() {
    let mut w = World::new(3, 3);
    (0..3).for_each(|c| w.join(c, 1));
    let everybody = |w: &World, client: usize, since: Instant| w.found(client, since).len() == 2;
    w.run_for(secs(10));
    assert!((0..3).all(|c| everybody(&w, c, Instant::ZERO)));
    for round in 0..6 {
        w.trackers.iter_mut().for_each(|t| t.alive = false);
        w.trackers[round % 3].restart();
        let since = w.now;
        // A minute of backoff at most, then an announcement.
        w.run_for(secs(150));
        assert!((0..3).all(|c| everybody(&w, c, since)), "round {round}: one tracker is enough");
    }
    w.trackers.iter_mut().for_each(FakeTracker::restart);
    let since = w.now;
    w.run_for(secs(150));
    assert!((0..3).all(|c| everybody(&w, c, since)));
    for client in &w.clients {
        assert!(client.trackers().all(|(_, up)| up), "all three are back");
    }
}
