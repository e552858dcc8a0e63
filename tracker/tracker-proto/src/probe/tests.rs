use std::collections::BTreeSet;
use std::time::Duration;
use std::vec;

use super::*;

fn key() -> SwarmKey {
    SwarmKey::from_run_secret(&[7; 32])
}

fn addr(s: &str) -> SocketAddr {
    s.parse().unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(ms)
}

fn id(n: u8) -> PeerId {
    key().peer_id(&[n; 16])
}

fn prober(n: u8) -> Prober {
    let mut p = Prober::new([n; 32]);
    assert!(p.join(key(), &[n; 16]));
    p
}

/// A NAT in front of one agent: lets in only from where it sent to, and shows one address to all, or one to each.
struct Nat {
    outside: SocketAddr,
    one_for_each: bool,
    sent_to: BTreeSet<SocketAddr>,
}

impl Nat {
    fn new(outside: &str, one_for_each: bool) -> Self {
        Self { outside: addr(outside), one_for_each, sent_to: BTreeSet::new() }
    }

    fn address_towards(&self, to: SocketAddr) -> SocketAddr {
        let shift = if self.one_for_each { to.port() } else { 0 };
        SocketAddr::new(self.outside.ip(), self.outside.port().wrapping_add(shift))
    }

    fn takes(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.sent_to.contains(&from) && self.address_towards(from) == to
    }
}

/// Carries what two agents behind NATs send, 20 ms each way, for five seconds; returns what both have reached.
fn world(nats: [Nat; 2], knows: [&str; 2]) -> [Vec<Reached>; 2] {
    let (mut nats, mut agents) = (nats, [prober(1), prober(2)]);
    let mut reached = [vec![], vec![]];
    let mut on_the_way: Vec<(Instant, usize, SocketAddr, SocketAddr, Vec<u8>)> = vec![];
    agents[0].probe(at(0), key().swarm(), id(2), &[addr(knows[1])]);
    for ms in 0..5000 {
        // The ring takes its time.
        if ms == 150 {
            agents[1].probe(at(ms), key().swarm(), id(1), &[addr(knows[0])]);
        }
        let (come, rest) = on_the_way.into_iter().partition::<Vec<_>, _>(|d| d.0 <= at(ms));
        on_the_way = rest;
        for (_, to, from, dest, bytes) in come {
            if nats[to].takes(from, dest) {
                agents[to].handle_datagram(at(ms), from, &bytes);
            }
        }
        for i in 0..2 {
            while let Some((to, bytes)) = agents[i].poll_transmit(at(ms)) {
                let from = nats[i].address_towards(to);
                nats[i].sent_to.insert(to);
                on_the_way.push((at(ms + 20), 1 - i, from, to, bytes));
            }
            reached[i].extend(core::iter::from_fn(|| agents[i].poll_event()));
        }
    }
    assert!(agents.iter().all(|a| a.stats().questions <= PROBES_AT.len() as u64));
    reached
}

#[test]
fn two_nats_that_show_one_address_are_passed() {
    let (a, b) = ("192.0.2.1:1000", "192.0.2.2:2000");
    let reached = world([Nat::new(a, false), Nat::new(b, false)], [a, b]);
    assert!(
        reached[0].contains(&Reached { swarm: key().swarm(), peer: id(2), addr: addr(b) }),
        "{reached:?}"
    );
    assert!(
        reached[1].contains(&Reached { swarm: key().swarm(), peer: id(1), addr: addr(a) }),
        "{reached:?}"
    );
}

#[test]
fn nats_that_show_another_address_to_each_are_not() {
    let (a, b) = ("192.0.2.1:1000", "192.0.2.2:2000");
    let reached = world([Nat::new(a, true), Nat::new(b, true)], [a, b]);
    assert_eq!(reached, [vec![], vec![]], "this is what relays are for");
}

/// One question and its answers, by hand.
fn exchange(a: &mut Prober, b: &mut Prober) -> Vec<Vec<u8>> {
    let (at_a, at_b) = (addr("192.0.2.1:1"), addr("192.0.2.2:2"));
    a.probe(at(0), key().swarm(), id(2), &[at_b]);
    let question = a.poll_transmit(at(0)).unwrap().1;
    b.handle_datagram(at(0), at_a, &question);
    let answer = b.poll_transmit(at(0)).unwrap().1;
    assert_eq!(b.poll_event(), None, "a question may be a copy from anywhere");
    a.handle_datagram(at(0), at_b, &answer);
    assert_eq!(a.poll_event().unwrap().addr, at_b);
    let last = a.poll_transmit(at(0)).unwrap().1;
    b.handle_datagram(at(0), at_a, &last);
    assert_eq!(b.poll_event().unwrap().addr, at_a);
    assert_eq!((a.poll_transmit(at(9000)), b.poll_transmit(at(9000))), (None, None), "no end of answers");
    vec![question, answer, last]
}

#[test]
fn three_packets_prove_a_way() {
    let sent = exchange(&mut prober(1), &mut prober(2));
    assert!(sent.iter().all(|b| b.len() == crate::message::PROBE_LEN));
}

#[test]
fn copies_from_elsewhere_prove_nothing() {
    let (mut a, mut b) = (prober(1), prober(2));
    let sent = exchange(&mut a, &mut b);
    let elsewhere = addr("198.51.100.9:9");
    for bytes in &sent {
        for (agent, own) in [(&mut a, id(1)), (&mut b, id(2))] {
            agent.handle_datagram(at(10), elsewhere, bytes);
            assert_eq!(agent.poll_event(), None);
            while let Some((to, answer)) = agent.poll_transmit(at(10)) {
                // Only a question is answered, with no more bytes than came.
                assert_eq!((to, own, answer.len()), (elsewhere, id(2), bytes.len()));
            }
        }
    }
}

#[test]
fn what_was_copied_proves_a_way_neither_twice_nor_later() {
    let (mut a, mut b) = (prober(1), prober(2));
    let (at_a, at_b) = (addr("192.0.2.1:1"), addr("192.0.2.2:2"));
    let sent = exchange(&mut a, &mut b);
    // The third one, from the same address: somebody has made it up.
    b.handle_datagram(at(10), at_a, &sent[2]);
    assert_eq!(b.poll_event(), None, "once");
    // One that was held back.
    a.probe(at(5_000), key().swarm(), id(2), &[at_b]);
    let question = a.poll_transmit(at(5_000)).unwrap().1;
    b.handle_datagram(at(5_000), at_a, &question);
    let answer = b.poll_transmit(at(5_000)).unwrap().1;
    a.handle_datagram(at(5_000), at_b, &answer);
    let last = a.poll_transmit(at(5_000)).unwrap().1;
    for late in [25_000, 60_000, 86_400_000] {
        b.handle_datagram(at(late), at_a, &last);
        assert_eq!(b.poll_event(), None, "{late} ms later");
    }
    let mut c = prober(2);
    c.handle_datagram(at(9_900), at_a, &question);
    let answer = c.poll_transmit(at(9_900)).unwrap().1;
    a.probe(at(9_900), key().swarm(), id(2), &[at_b]);
    a.handle_datagram(at(9_900), at_b, &answer);
    let slow = Probe::sign(
        &key(),
        id(1),
        id(2),
        Probe::parse(&question).unwrap().mine,
        Probe::parse(&answer).unwrap().mine,
    );
    c.handle_datagram(at(10_100), at_a, &emit(&slow));
    assert!(c.poll_event().is_some(), "in the next period, for a path that is slow");
}

#[test]
fn whoever_is_said_to_be_at_an_address_it_gets_little() {
    let mut a = prober(1);
    let victim = addr("192.0.2.9:9");
    let mut sent = 0;
    for ms in 0..60_000 {
        // A member tells of 32 others there, every ten seconds; trackers and rings as well.
        if ms % 1000 == 0 {
            (0..32).for_each(|n| a.probe(at(ms), key().swarm(), id(100 + n), &[victim]));
        }
        sent += core::iter::from_fn(|| a.poll_transmit(at(ms))).count();
    }
    assert!(sent <= (QUESTIONS_PER_ADDRESS.1 + 60 * QUESTIONS_PER_ADDRESS.0) as usize, "{sent}");
}

#[test]
fn lies_in_one_swarm_leave_others_their_room() {
    let mut a = prober(1);
    let other = SwarmKey::from_run_secret(&[8; 32]);
    assert!(a.join(other.clone(), &[1; 16]));
    for n in 0..100u8 {
        let lies: Vec<_> = (0..12u16).map(|i| addr(&std::format!("192.0.2.{n}:{}", 1000 + i))).collect();
        a.probe(at(0), key().swarm(), id(100 + n), &lies);
    }
    assert_eq!(a.series.len(), PROBED_PER_SWARM);
    assert!(a.stats().passed_over > 0);
    let true_one = addr("198.51.100.1:1");
    a.probe(at(0), other.swarm(), other.peer_id(&[2; 16]), &[true_one]);
    let first: Vec<_> = core::iter::from_fn(|| a.poll_transmit(at(0))).map(|(to, _)| to).collect();
    assert!(first.contains(&true_one), "{} sent", first.len());
}

#[test]
fn strangers_and_foreign_members_get_no_answer() {
    let mut a = prober(1);
    let from = addr("192.0.2.2:2");
    let other = SwarmKey::from_run_secret(&[8; 32]);
    let mut probes = vec![
        Probe::sign(&other, id(2), id(1), [1; 8], NOTHING),
        Probe::sign(&key(), id(2), id(3), [1; 8], NOTHING),
        Probe::sign(&key(), id(1), id(1), [1; 8], NOTHING),
        Probe::sign(&key(), id(2), id(1), [1; 8], [9; 8]),
    ];
    let mut forged = Probe::sign(&key(), id(2), id(1), [1; 8], NOTHING);
    forged.mac[3] ^= 1;
    probes.push(forged);
    for probe in &probes {
        a.handle_datagram(at(0), from, &emit(probe));
        assert_eq!((a.poll_transmit(at(0)), a.poll_event()), (None, None), "{probe:?}");
    }
    assert_eq!(a.stats().ignored, probes.len() as u64);
}

#[test]
fn every_changed_bit_and_cut_is_noticed() {
    let good = emit(&Probe::sign(&key(), id(2), id(1), [1; 8], NOTHING));
    let mut a = prober(1);
    for i in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[i] ^= 1 << bit;
            a.handle_datagram(at(0), addr("192.0.2.2:2"), &bad);
        }
        a.handle_datagram(at(0), addr("192.0.2.2:2"), &good[..i]);
    }
    assert_eq!(a.poll_transmit(at(0)), None);
    assert_eq!(a.stats().ignored, good.len() as u64 * 9);
}

#[test]
fn who_wants_us_to_send_to_many_gets_little() {
    let mut a = prober(1);
    let victims: Vec<_> = (0..2000u16).map(|i| addr(&std::format!("192.0.2.1:{}", 1000 + i))).collect();
    for (i, chunk) in victims.chunks(100).enumerate() {
        a.probe(at(0), key().swarm(), id(10 + i as u8), chunk);
    }
    let mut sent = 0;
    for ms in 0..60_000 {
        // Told of them again and again.
        if ms % 100 == 0 {
            a.probe(at(ms), key().swarm(), id(10 + (ms / 100 % 20) as u8), &victims[..100]);
        }
        while let Some((_, bytes)) = a.poll_transmit(at(ms)) {
            sent += bytes.len();
        }
        assert!(a.series.len() <= PROBED);
    }
    let limit = (QUESTIONS.1 + 60 * QUESTIONS.0) as usize * crate::message::PROBE_LEN;
    assert!(sent <= limit, "{sent} of {limit}");
    let mut one = prober(2);
    one.probe(at(0), key().swarm(), id(1), &victims[..100]);
    assert_eq!(one.series.len(), PROBED_PER_PEER);
    one.stop(key().swarm(), id(1));
    assert_eq!(one.poll_timeout(), None);
}

#[test]
fn a_flood_of_questions_is_answered_in_measure() {
    let mut a = prober(1);
    let question = emit(&Probe::sign(&key(), id(2), id(1), [1; 8], NOTHING));
    let mut answers = 0;
    for ms in 0..1000 {
        for _ in 0..10 {
            a.handle_datagram(at(ms), addr("192.0.2.2:2"), &question);
        }
        answers += core::iter::from_fn(|| a.poll_transmit(at(ms))).count();
    }
    assert!(answers <= (ANSWERS.0 + ANSWERS.1) as usize, "{answers}");
    assert!(a.stats().limited > 9000);
}

#[test]
fn nobody_is_asked_at_an_address_that_is_none() {
    let mut a = prober(1);
    let bad = [
        "0.0.0.0:1",
        "10.0.0.1:0",
        "224.0.0.1:9",
        "255.255.255.255:9",
        "[ff02::1]:9",
        "[fe80::1]:9",
        "[100::7]:9",
    ]
    .map(addr);
    a.probe(at(0), key().swarm(), id(2), &bad);
    a.probe(at(0), key().swarm(), id(1), &[addr("10.0.0.1:5")]);
    a.probe(at(0), SwarmKey::from_run_secret(&[1; 32]).swarm(), id(2), &[addr("10.0.0.1:5")]);
    assert_eq!(a.poll_transmit(at(0)), None);
}
