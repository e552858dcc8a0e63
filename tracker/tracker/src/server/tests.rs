use std::time::Duration;

use tracker_proto::message::{COOKIE_REPLY_LEN, NO_COOKIE};
use tracker_proto::{
    Address, Call, Client, ClientConfig, Entry, EntryFlags, Event, FromTracker, PeerId, SwarmKey, Usable,
};

use super::*;

fn key() -> SwarmKey {
    SwarmKey::from_run_secret(&[7; 32])
}

fn addr(s: &str) -> SocketAddr {
    s.parse().unwrap()
}

fn at(s: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(s)
}

fn server() -> Server {
    Server::new(Limits::default(), [5; 32])
}

fn announce(cookie: Cookie, peer: u8, flags: EntryFlags, pad_to: usize) -> Vec<u8> {
    let addresses = [Address::reflexive(4000).unwrap()];
    let entry = Entry::sign(&key(), PeerId([peer; 16]), 1, flags, &addresses);
    let mut out = Vec::new();
    Announce { transaction: [peer; 8], cookie, swarm: key().swarm(), entry }.emit(&mut out, pad_to);
    out
}

fn cookie_for(s: &mut Server, now: Instant, from: SocketAddr) -> Cookie {
    let bytes = announce(NO_COOKIE, 1, EntryFlags::default(), 0);
    match FromTracker::parse(&answer(s, now, from, &bytes).unwrap()).unwrap() {
        FromTracker::Cookie(reply) => reply.cookie,
        other => panic!("{other:?}"),
    }
}

fn peers(s: &mut Server, now: Instant, from: SocketAddr, bytes: &[u8]) -> Option<PeersReply> {
    match FromTracker::parse(&answer(s, now, from, bytes)?).unwrap() {
        FromTracker::Peers(reply) => Some(reply),
        FromTracker::Cookie(_) | FromTracker::Ring(_) => None,
    }
}

/// The answer to the sender.
fn answer(s: &mut Server, now: Instant, from: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    s.handle_datagram(now, from, bytes).into_iter().find(|(to, _)| *to == from).map(|(_, b)| b)
}

fn call(cookie: Cookie, caller: u8, callee: u8, sequence: u64, pad_to: usize) -> Vec<u8> {
    let addresses = [Address::reflexive(4000).unwrap()];
    let flags = EntryFlags { observed_usable: true, ..EntryFlags::default() };
    let entry = Entry::sign(&key(), PeerId([caller; 16]), sequence, flags, &addresses);
    let mut out = Vec::new();
    let (swarm, callee) = (key().swarm(), PeerId([callee; 16]));
    Call { transaction: [1; 8], cookie, swarm, callee, entry }.emit(&mut out, pad_to);
    out
}

fn enter(s: &mut Server, now: Instant, from: SocketAddr, peer: u8) -> Cookie {
    let cookie = cookie_for(s, now, from);
    peers(s, now, from, &announce(cookie, peer, EntryFlags::default(), 0)).unwrap();
    cookie
}

#[test]
fn a_call_rings_whoever_is_listed_under_that_name_and_nobody_else() {
    let mut s = server();
    let [a, b, c] = ["192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3"].map(addr);
    let cookie = enter(&mut s, at(0), a, 1);
    enter(&mut s, at(0), b, 2);
    enter(&mut s, at(0), c, 3);
    let bytes = call(cookie, 1, 2, 5, DATAGRAM_MAX);
    let rung = s.handle_datagram(at(1), a, &bytes);
    assert_eq!(rung.len(), 1);
    assert_eq!(rung[0].0, b);
    let FromTracker::Ring(ring) = FromTracker::parse(&rung[0].1).unwrap() else { panic!("a ring") };
    assert_eq!((ring.observed, ring.entry.peer(), ring.entry.verify(&key())), (a, PeerId([1; 16]), true));
    assert!(s.handle_datagram(at(1), b, &bytes).is_empty(), "another's cookie");
    assert!(s.handle_datagram(at(1), a, &call(NO_COOKIE, 1, 2, 5, 300)).is_empty(), "none");
    assert!(s.handle_datagram(at(1), a, &call(cookie, 1, 9, 5, 300)).is_empty(), "nobody of that name");
    assert!(s.handle_datagram(at(1), a, &call(cookie, 1, 1, 5, 300)).is_empty(), "oneself");
    assert_eq!(s.stats().rings, 1);
    let cookie = cookie_for(&mut s, at(91), a);
    assert!(s.handle_datagram(at(91), a, &call(cookie, 1, 2, 6, 300)).is_empty(), "expired");
}

#[test]
fn rings_are_few_and_together_no_longer_than_the_call() {
    let mut s = server();
    let a = addr("198.51.100.1:1");
    let cookie = enter(&mut s, at(0), a, 1);
    for port in 1..=50 {
        enter(&mut s, at(0), addr(&format!("192.0.2.{port}:1")), 2);
    }
    for pad_to in [0, 200, 400, DATAGRAM_MAX] {
        let bytes = call(cookie, 1, 2, 5, pad_to);
        let rung = s.handle_datagram(at(1), a, &bytes);
        assert!((1..=4).contains(&rung.len()), "{}", rung.len());
        assert!(rung.iter().map(|(_, b)| b.len()).sum::<usize>() <= bytes.len());
    }
    // One that is called by many.
    let victim = addr("203.0.113.1:1");
    enter(&mut s, at(0), victim, 7);
    let mut rung = 0;
    for host in 1..=200 {
        let from = addr(&format!("198.51.100.{host}:5"));
        let cookie = cookie_for(&mut s, at(2), from);
        rung += s.handle_datagram(at(2), from, &call(cookie, 3, 7, host, 0)).len();
    }
    assert!(rung <= 17, "{rung}");
}

#[test]
fn many_behind_one_nat_are_rung_and_nobody_uses_up_the_rings_of_another() {
    let mut s = server();
    let nat = |port: u16| addr(&format!("203.0.113.1:{port}"));
    let caller = addr("198.51.100.1:1");
    let cookie = enter(&mut s, at(0), caller, 255);
    for n in 1..=100u8 {
        enter(&mut s, at(0), nat(u16::from(n)), n);
    }
    // One of them calls itself, by two sockets.
    let own = cookie_for(&mut s, at(1), nat(1));
    for sequence in 0..90 {
        s.handle_datagram(at(1), nat(1), &call(own, 77, 2, 10 + sequence, 0));
    }
    let rung =
        (3..=100u8).filter(|n| !s.handle_datagram(at(2), caller, &call(cookie, 255, *n, 5, 0)).is_empty());
    assert_eq!(rung.count(), 98, "in the same second");
}

#[test]
fn without_a_cookie_nothing_is_stored_and_the_answer_is_small() {
    let mut s = server();
    let bytes = announce(NO_COOKIE, 1, EntryFlags::default(), 0);
    let answer = answer(&mut s, at(0), addr("192.0.2.1:1"), &bytes).unwrap();
    assert_eq!((answer.len(), s.stats().entries, s.stats().cookies), (COOKIE_REPLY_LEN, 0, 1));
}

#[test]
fn a_cookie_is_good_for_one_address_and_some_minutes() {
    let mut s = server();
    let from = addr("192.0.2.1:1");
    let cookie = cookie_for(&mut s, at(100), from);
    let bytes = announce(cookie, 1, EntryFlags::default(), DATAGRAM_MAX);
    assert!(peers(&mut s, at(100), addr("192.0.2.1:2"), &bytes).is_none(), "another port");
    assert!(peers(&mut s, at(100), addr("192.0.2.2:1"), &bytes).is_none(), "another host");
    assert!(peers(&mut s, at(100), from, &bytes).is_some());
    assert!(peers(&mut s, at(239), from, &bytes).is_some(), "the bucket before");
    assert!(peers(&mut s, at(240), from, &bytes).is_none(), "too old");
    let mut restarted = Server::new(Limits::default(), [6; 32]);
    assert!(peers(&mut restarted, at(100), from, &bytes).is_none(), "another server key");
}

#[test]
fn an_ipv4_sender_on_an_ipv6_socket_is_an_ipv4_sender() {
    let mut s = server();
    let cookie = cookie_for(&mut s, at(0), addr("[::ffff:192.0.2.1]:1"));
    let bytes = announce(cookie, 1, EntryFlags::default(), DATAGRAM_MAX);
    let reply = peers(&mut s, at(0), addr("192.0.2.1:1"), &bytes).unwrap();
    assert_eq!(reply.observed, addr("192.0.2.1:1"));
}

#[test]
fn answers_are_never_longer_than_requests() {
    let mut s = server();
    for host in 1..=100 {
        let from = addr(&format!("192.0.2.{host}:1"));
        let cookie = cookie_for(&mut s, at(0), from);
        let bytes = announce(cookie, host, EntryFlags::default(), 0);
        assert!(answer(&mut s, at(0), from, &bytes).unwrap().len() <= bytes.len());
    }
    let from = addr("198.51.100.1:1");
    let cookie = cookie_for(&mut s, at(0), from);
    for pad_to in 0..=DATAGRAM_MAX {
        let bytes = announce(cookie, 200, EntryFlags::default(), pad_to);
        if let Some(answer) = answer(&mut s, at(10 * pad_to as u64 / 1000), from, &bytes) {
            assert!(answer.len() <= bytes.len(), "{} for {}", answer.len(), bytes.len());
        }
    }
    let bytes = announce(cookie, 200, EntryFlags::default(), DATAGRAM_MAX);
    assert_eq!(peers(&mut s, at(60), from, &bytes).unwrap().peers.len(), 22, "52 bytes each");
}

#[test]
fn leaving_removes_and_tells_of_nobody() {
    let mut s = server();
    let (a, b) = (addr("192.0.2.1:1"), addr("192.0.2.2:1"));
    for (from, peer) in [(a, 1), (b, 2)] {
        let cookie = cookie_for(&mut s, at(0), from);
        peers(&mut s, at(0), from, &announce(cookie, peer, EntryFlags::default(), 0)).unwrap();
    }
    let cookie = cookie_for(&mut s, at(1), a);
    let flags = EntryFlags { leaving: true, ..EntryFlags::default() };
    let reply = peers(&mut s, at(1), a, &announce(cookie, 1, flags, DATAGRAM_MAX)).unwrap();
    assert!(reply.peers.is_empty());
    assert_eq!((s.stats().entries, s.stats().leaves), (1, 1));
}

#[test]
fn entries_expire() {
    let mut s = server();
    let from = addr("192.0.2.1:1");
    let cookie = cookie_for(&mut s, at(0), from);
    peers(&mut s, at(0), from, &announce(cookie, 1, EntryFlags::default(), 0)).unwrap();
    assert_eq!(s.poll_timeout(), Some(at(90)));
    s.handle_timeout(at(90));
    assert_eq!((s.stats().entries, s.stats().swarms, s.stats().expired), (0, 0, 1));
}

#[test]
fn a_flood_in_someone_elses_name_does_not_silence_him() {
    let mut s = server();
    let victim = addr("192.0.2.1:1");
    let cookie = cookie_for(&mut s, at(0), victim);
    let spoofed = announce(NO_COOKIE, 66, EntryFlags::default(), 0);
    let answered = (0..10_000).filter(|_| answer(&mut s, at(0), victim, &spoofed).is_some()).count();
    assert!(answered < 400, "the victim gets little of it: {answered}");
    assert!(peers(&mut s, at(0), victim, &announce(cookie, 1, EntryFlags::default(), 0)).is_some());
}

#[test]
fn the_table_stays_within_its_limits_when_real_sources_flood_it() {
    let limits = Limits { max_entries: 50, max_entries_per_source: 10, ..Limits::default() };
    let mut s = Server::new(limits, [5; 32]);
    for i in 0..2000u16 {
        let from = addr(&format!("192.0.2.{}:{}", i % 100, 1 + i));
        // A second each, so that the rate limit is not what stops them; the table must.
        let cookie = cookie_for(&mut s, at(u64::from(i) / 100), from);
        let reply =
            peers(&mut s, at(u64::from(i) / 100), from, &announce(cookie, 1, EntryFlags::default(), 1200));
        assert!(reply.is_some() && s.stats().entries <= 50);
    }
    assert!(s.stats().full > 1900);
}

#[test]
fn junk_is_counted_and_unanswered() {
    let mut s = server();
    let mut rng = ChaCha8Rng::from_seed([9; 32]);
    for _ in 0..20_000 {
        let mut bytes = vec![0; rng.next_u32() as usize % 1500];
        rng.fill_bytes(&mut bytes);
        assert_eq!(answer(&mut s, at(0), addr("192.0.2.1:1"), &bytes), None);
    }
    assert_eq!((s.stats().invalid, s.stats().entries), (20_000, 0));
}

/// The real client and the real server, in virtual time and without a network between them.
#[test]
fn five_hundred_clients_find_each_other_and_survive_a_restart() {
    let mut s = server();
    let tracker = addr("192.0.2.250:7");
    let from = |i: usize| addr(&format!("10.0.{}.{}:99", i / 250, i % 250 + 1));
    let mut clients: Vec<_> = (0..500)
        .map(|i| {
            let mut agent = [0; 16];
            agent[..8].copy_from_slice(&u64::to_be_bytes(i));
            let seed = [agent, agent].concat().try_into().unwrap();
            let mut c = Client::new(ClientConfig::new(seed, 1));
            c.set_trackers(at(0), &[tracker]);
            c.set_addresses(at(0), vec![Address::reflexive(4000).unwrap()], Usable::NONE);
            assert!(c.join(at(0), key(), &agent));
            c
        })
        .collect();
    let mut found = vec![std::collections::BTreeSet::new(); clients.len()];
    let mut now = at(0);
    let mut restarted = false;
    while now < at(600) {
        if now >= at(300) && !restarted {
            restarted = true;
            s = Server::new(Limits::default(), [6; 32]);
            found.iter_mut().for_each(|f| f.clear());
        }
        for (i, c) in clients.iter_mut().enumerate() {
            c.handle_timeout(now);
            while let Some((_, bytes)) = c.poll_transmit(now) {
                if let Some(answer) = answer(&mut s, now, from(i), &bytes) {
                    c.handle_datagram(now, tracker, &answer);
                }
            }
            while let Some(event) = c.poll_event() {
                if let Event::Peers { peers, .. } = event {
                    found[i].extend(peers.iter().flat_map(|p| p.addrs.clone()));
                }
            }
        }
        now = clients.iter().filter_map(Client::poll_timeout).min().unwrap().max(now);
    }
    assert_eq!(s.stats().entries, 500);
    let least = found.iter().map(|f| f.len()).min().unwrap();
    assert!(least > 100, "each has heard of many since the restart: {least}");
    assert!(clients.iter().all(|c| c.stats().forged == 0 && c.stats().timeouts == 0));
}
