//! Peers and strangers that do not play by the rules.

use core::time::Duration;
use std::vec;
use std::vec::Vec;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;

use super::pair::{Blocks, Link, Pair};
use crate::connection::session::{Fault, Session};
use crate::crypto::aead::PacketKey;
use crate::crypto::kdf::Secret;
use crate::handshake::{Established, Role};
use crate::wire::ack::{self, Ack};
use crate::wire::frame::{self, Frame};
use crate::wire::handshake::Params;
use crate::wire::{Reader, VARINT_MAX, header, put_varint};
use crate::{Arrival, CloseReason, Config, Ecn, Event, Handle, PeerIdentity};

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

/// A session as if after a handshake; what it opens is sealed under [`PEER_SECRET`].
fn session(now: Instant) -> Session {
    let params = Params {
        max_datagram: 1452,
        receive_window: 1 << 24,
        message_limit: 1 << 16,
        max_message: 1 << 16,
        idle_timeout_ms: 30_000,
        reset_token: [6; 16],
    };
    let established = Established {
        seal: Secret([1; 32]),
        open: PEER_SECRET,
        remote_cid: [3; 8],
        remote: "127.0.0.1:1".parse().unwrap(),
        peer: PeerIdentity { public_key: [0; 32], credential: vec![] },
        params,
        rtt: Duration::from_millis(10),
        resumption: Secret([4; 32]),
        role: Role::Initiator,
        resumed: false,
        proved: None,
    };
    let config = Config { message_buffer: 1 << 16, max_message: 1 << 14, ..Config::default() };
    Session::new(now, Handle { slot: 0, generation: 0 }, &config, established, [5; 32])
}

const PEER_SECRET: Secret = Secret([2; 32]);

#[test]
fn an_acknowledgement_of_what_was_never_sent_closes() {
    let mut session = session(Instant::ZERO);
    let mut out = Vec::new();
    assert!(ack::emit(&mut out, frame::ACK, &ack::Times::default(), &[(0, 1)], 100));
    let ack = Ack::parse(out[0], &mut Reader::new(&out[1..])).unwrap();
    assert!(matches!(session.on_ack(Instant::ZERO, Instant::ZERO, &ack), Err(Fault::Violation(_))));
}

#[test]
fn acknowledging_what_was_given_up_costs_no_square() {
    const PACKETS: u64 = 200_000;
    let (mut now, mut session) = (Instant::ZERO, session(Instant::ZERO));
    for i in 0..PACKETS {
        session.pretend_to_send(now, 100);
        now += Duration::from_micros(u64::from(i % 10 == 0));
    }
    let mut tell = |now: Instant, low: u64| {
        let mut out = Vec::new();
        let ranges = [(low, PACKETS)];
        assert!(ack::emit(&mut out, frame::ACK, &ack::Times::default(), &ranges, 100));
        session.on_ack(now, now, &Ack::parse(out[0], &mut Reader::new(&out[1..])).unwrap()).unwrap();
        session.losses()
    };
    // The newest only: all before are lost. Then all of them, and again: they were not.
    now += Duration::from_millis(10);
    let lost = tell(now, PACKETS - 1).0;
    assert!(lost > PACKETS / 2, "{lost}");
    let began = std::time::Instant::now();
    assert_eq!(tell(now, 0), (0, lost));
    for _ in 0..1000 {
        assert_eq!(tell(now, 0).0, 0);
    }
    // Every other one of as many more, and then those between.
    let first = session.losses().0 + PACKETS;
    for _ in 0..PACKETS {
        session.pretend_to_send(now, 100);
    }
    for odd in [0, 1] {
        let ranges: Vec<_> = (first / 2..PACKETS).map(|i| (2 * i + odd, 2 * i + odd + 1)).collect();
        for part in ranges.chunks(30_000) {
            let mut out = Vec::new();
            ack::emit(&mut out, frame::ACK, &ack::Times::default(), part, 1 << 20);
            session.on_ack(now, now, &Ack::parse(out[0], &mut Reader::new(&out[1..])).unwrap()).unwrap();
        }
    }
    // A fraction of a second; by their square minutes.
    assert!(began.elapsed() < SECONDS(10), "{:?}", began.elapsed());
}

/// A number that is small, or at some edge.
fn odd_number(random: &mut ChaCha8Rng) -> u64 {
    match random.next_u32() % 6 {
        0 => VARINT_MAX - u64::from(random.next_u32() % 3),
        1 => 1 << (random.next_u32() % 62),
        2 => u64::from(random.next_u32() % 70_000),
        _ => u64::from(random.next_u32() % 60),
    }
}

/// Frames that parse, with odd numbers in them.
fn odd_frames(random: &mut ChaCha8Rng, out: &mut Vec<u8>) {
    for _ in 0..1 + random.next_u32() % 3 {
        let n = |r: &mut ChaCha8Rng| odd_number(r);
        match random.next_u32() % 12 {
            0..=4 => {
                // Now and then one never sent.
                let largest = if random.next_u32().is_multiple_of(64) { n(random) } else { n(random) % 8 };
                out.push(frame::ACK);
                for v in [largest, n(random), n(random), largest.min(n(random)), 0] {
                    put_varint(out, v);
                }
            }
            5 | 6 => {
                let len = random.next_u32() as usize % 40;
                let offset = if random.next_u32().is_multiple_of(64) { n(random) } else { n(random) % 500 };
                frame::emit_message_head(out, offset, len);
                out.extend((0..len).map(|i| if i < 3 { 0 } else { i as u8 }));
            }
            7 => Frame::Window { bytes: n(random), message_limit: n(random) }.emit_control(out),
            8 => Frame::PathChallenge([7; 8]).emit_control(out),
            9 => Frame::PathResponse([7; 8]).emit_control(out),
            10 => Frame::Ping.emit_control(out),
            _ => {
                frame::emit_data_head(out, random.next_u64(), random.next_u32(), true, Some(3));
                out.extend_from_slice(b"abc");
            }
        }
    }
}

#[test]
fn an_authentic_peer_that_says_odd_things_causes_no_panic() {
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let key = PacketKey::of_traffic(&PEER_SECRET);
    let mut blocks = Blocks { count_only: true, ..Blocks::default() };
    let (mut closed, mut survived) = (0, 0);
    for _ in 0..1500 {
        let mut now = Instant::from_micros(1_000_000);
        let mut s = session(now);
        for tag in 0..20 {
            s.send_block(tag, 9000, 0).unwrap();
        }
        let mut number = 0;
        for _ in 0..40 {
            number += 1 + odd_number(&mut random) % 3;
            let mut p = Vec::new();
            let short = header::ShortNumber::of(number, Some(number), 0);
            header::emit_protected(&mut p, &[0; 8], false, short);
            odd_frames(&mut random, &mut p);
            let tag = key.seal(number, &mut p, short.header());
            p.extend_from_slice(&tag);
            let from = if random.next_u32() % 20 == 0 { "10.0.0.9:9" } else { "127.0.0.1:1" };
            let packet = (false, short);
            let arrival = Arrival { remote: from.parse().unwrap(), at: now, ecn: Ecn::NotEct };
            if s.receive(now, arrival, packet, &mut p, &mut blocks).is_err() {
                closed += 1;
                break;
            }
            let mut buf = Vec::new();
            while let Ok(Some(_)) = s.transmit(now, 8, &mut buf, &mut blocks) {
                buf.clear();
            }
            let next = s.next_timeout().unwrap();
            now = if random.next_u32() & 1 == 0 { now.max(next) } else { now + Duration::from_micros(700) };
            if !s.on_timeout(now) {
                break;
            }
            survived += 1;
        }
    }
    assert!(closed > 300 && survived > 1000, "{closed} {survived}");
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
    pair.run_until(SECONDS(3), |p| p.nodes.iter().all(|n| n.count(|e| matches!(e, Event::Closed(_))) == 1));
    assert_eq!(
        pair.nodes[1].events.last().unwrap().1,
        Event::Closed(CloseReason::ProtocolViolation("message too long"))
    );
    let last = &pair.nodes[0].events.last().unwrap().1;
    assert!(matches!(last, Event::Closed(CloseReason::Peer { code: 0xff03, .. })));
}
