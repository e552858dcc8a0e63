//! Peers and strangers that do not play by the rules.

use core::time::Duration;
use std::vec;
use std::vec::Vec;

use rand_core::Rng;

use super::pair::{Link, Pair};
use crate::{CloseReason, Config, Event};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

#[test]
fn random_datagrams_and_mutated_packets_do_nothing() {
    let mut pair = Pair::connected(&Config::default(), &Link::default(), 1);
    pair.nodes[0].captured = Some(Vec::new());
    for tag in 0..20 {
        pair.nodes[0].connection().send_block(tag, 32 * 1024, 0).unwrap();
    }
    pair.run(Duration::from_millis(50), |_| false);
    let real = pair.nodes[0].captured.clone().unwrap();
    for i in 0..3000 {
        let mut d = match i % 3 {
            0 => vec![0; pair.random.next_u32() as usize % 1600],
            _ => real[i % real.len()].clone(),
        };
        if i % 3 == 0 {
            pair.random.fill_bytes(&mut d);
        } else if !d.is_empty() {
            let at = pair.random.next_u32() as usize % d.len();
            d[at] ^= 1 << (i % 8);
            if i % 3 == 2 {
                d.truncate(at);
            }
        }
        let (to, from) = (i % 2, pair.nodes[1 - i % 2].address);
        pair.inject(to, from, d);
    }
    pair.run_until(SECONDS(10), |p| p.nodes[0].count(|e| matches!(e, Event::BlockSent { .. })) == 20);
    assert!(pair.nodes.iter().all(|n| n.count(|e| matches!(e, Event::Closed(_))) == 0));
    assert!(pair.nodes[1].connection().stats().rejected_packets > 500);
}

#[test]
fn a_replayed_packet_reaches_the_sink_once() {
    let mut pair = Pair::connected(&Config::default(), &Link { duplicate: 1.0, ..Link::default() }, 1);
    pair.nodes[1].blocks.count_only = true;
    pair.nodes[0].connection().send_block(1, 320_000, 0).unwrap();
    pair.run_until(SECONDS(5), |p| p.nodes[0].count(|e| matches!(e, Event::BlockSent { .. })) == 1);
    assert_eq!(pair.nodes[1].blocks.fresh, 320_000);
}

#[test]
fn memory_of_a_sender_is_bounded_while_nothing_is_acknowledged() {
    let config = Config { max_in_flight_packets: 100, idle_timeout: SECONDS(300), ..Config::default() };
    let mut pair = Pair::connected(&config, &Link::default(), 1);
    for tag in 0..4000 {
        pair.nodes[0].connection().send_block(tag, 32 * 1024, 0).unwrap();
    }
    pair.nodes[1].link.loss = 1.0;
    for _ in 0..20 {
        pair.run(SECONDS(5), |_| false);
        // Probes go beyond the limit, two at a time, ever more slowly.
        assert!(pair.nodes[0].connection().stats().bytes_in_flight < 160 * 1452);
    }
    pair.nodes[1].link.loss = 0.0;
    pair.run_until(SECONDS(200), |p| p.nodes[0].count(|e| matches!(e, Event::BlockSent { .. })) == 4000);
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_closes() {
    use crate::connection::session::{Fault, Session};
    use crate::crypto::kdf::Secret;
    use crate::handshake::Established;
    use crate::wire::Reader;
    use crate::wire::ack::{self, Ack};
    use crate::wire::handshake::Params;
    use crate::{Handle, PeerIdentity};
    use timebase::Instant;

    let params = Params {
        max_datagram: 1452,
        receive_window: 1 << 24,
        message_limit: 1 << 20,
        max_message: 1 << 20,
        idle_timeout_ms: 30_000,
    };
    let established = Established {
        seal: Secret([1; 32]),
        open: Secret([2; 32]),
        remote_cid: [3; 8],
        remote: "127.0.0.1:1".parse().unwrap(),
        peer: PeerIdentity { public_key: [0; 32], credential: vec![] },
        params,
        rtt: Duration::from_millis(10),
    };
    let handle = Handle { slot: 0, generation: 0 };
    let mut session = Session::new(Instant::ZERO, handle, &Config::default(), established, [5; 32]);
    let mut out = Vec::new();
    assert!(ack::emit(&mut out, 0, 0, [(0, 0)].into_iter(), 100));
    let ack = Ack::parse(&mut Reader::new(&out)).unwrap();
    assert!(matches!(session.on_ack(Instant::ZERO, &ack), Err(Fault::Violation(_))));
}

#[test]
fn a_violation_closes_both_sides_with_the_reason() {
    // A peer whose messages are longer than it agreed to: its own limit is raised by force.
    let small = Config { max_message: 100, ..Config::default() };
    let mut pair = Pair::with(&Config::default(), &Link::default(), 1);
    pair.nodes[1] = super::pair::node(small, 2, super::pair::everybody());
    pair.connect();
    pair.run_until(SECONDS(3), |p| p.nodes.iter().all(|n| !n.events.is_empty()));
    pair.nodes[0].connection().force_max_message(1000);
    pair.nodes[0].connection().send_message(&[0; 500]).unwrap();
    pair.run_until(SECONDS(3), |p| p.nodes.iter().all(|n| n.events.len() == 2));
    assert_eq!(pair.nodes[1].events[1].1, Event::Closed(CloseReason::ProtocolViolation("message too long")));
    assert!(matches!(pair.nodes[0].events[1].1, Event::Closed(CloseReason::Peer { code: 0xff03, .. })));
}
