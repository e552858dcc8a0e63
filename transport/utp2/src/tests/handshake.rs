//! Handshakes that succeed, and the many that must not.

use core::net::SocketAddr;
use core::time::Duration;
use std::boxed::Box;
use std::vec;
use std::vec::Vec;

use super::pair::{Allow, CONTEXT, Link, Pair, SECRET, everybody, node};
use crate::wire::Cid;
use crate::wire::handshake::{Alert, Init};
use crate::wire::header::VERSION;
use crate::{CloseReason, Config, ConnectError, ContextId, Event, HandshakeFailure, Identity};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

fn quick() -> Config {
    Config { handshake_timeout: SECONDS(2), ..Config::default() }
}

fn failure(pair: &Pair) -> Option<HandshakeFailure> {
    pair.nodes[0].events.iter().find_map(|e| match e.1 {
        Event::Closed(CloseReason::HandshakeFailed(f)) => Some(f),
        _ => None,
    })
}

/// Nothing was established anywhere, and the responder forgets.
#[track_caller]
fn no_session(pair: &mut Pair) {
    pair.run(SECONDS(5), |_| false);
    assert!(pair.nodes.iter().all(|n| n.events.iter().all(|e| e.1 != Event::Connected)));
    assert!(pair.nodes[1].events.is_empty());
    assert_eq!(pair.nodes.each_ref().map(|n| n.endpoint.connection_count()), [0, 0]);
}

#[test]
fn both_sides_learn_who_the_other_is() {
    let mut pair = Pair::with(&Config::default(), &Link::with_delay(20), 1);
    let handle = pair.connect();
    let took = pair.run_until(SECONDS(3), |p| p.nodes.iter().all(|n| !n.events.is_empty()));
    assert_eq!(took, Duration::from_millis(100), "two round trips and a half");
    assert_eq!(pair.nodes[0].events, [(handle, Event::Connected)]);
    for (i, other) in [(0, 2u8), (1, 1)] {
        let address = pair.nodes[1 - i].address;
        let c = pair.nodes[i].connection();
        let peer = c.peer().unwrap();
        assert_eq!(peer.public_key, Identity::new([other; 32], vec![]).public_key());
        assert_eq!(peer.credential, [other; 100]);
        assert_eq!((c.context(), c.remote(), c.is_initiator()), (CONTEXT, address, i == 0));
    }
}

#[test]
fn a_long_credential_takes_two_datagrams_and_survives_loss() {
    for seed in 0..10 {
        let config = Config { handshake_timeout: SECONDS(30), ..Config::default() };
        let mut pair = Pair::with(&config, &Link { loss: 0.3, ..Link::default() }, seed);
        for (n, i) in pair.nodes.iter_mut().zip(1..) {
            let identity = Identity::new([i; 32], vec![i; Identity::MAX_CREDENTIAL]);
            n.endpoint = crate::Endpoint::new(config.clone(), identity, everybody(), [i; 32]);
            n.endpoint.add_context(CONTEXT, &SECRET);
        }
        pair.connect();
        pair.run_until(SECONDS(30), |p| p.nodes.iter().all(|n| !n.events.is_empty()));
        assert!(pair.nodes.iter_mut().all(|n| n.events[0].1 == Event::Connected));
        assert_eq!(pair.nodes[1].connection().peer().unwrap().credential.len(), 2048);
    }
}

#[test]
fn a_wrong_secret_and_an_unknown_context_look_alike_and_come_to_nothing() {
    let mut seen = Vec::new();
    for known in [true, false] {
        let mut pair = Pair::with(&quick(), &Link::default(), 1);
        pair.nodes[1].endpoint.remove_context(CONTEXT);
        if known {
            pair.nodes[1].endpoint.add_context(CONTEXT, &[1; 32]);
        }
        pair.nodes[1].captured = Some(Vec::new());
        pair.connect();
        pair.run_until(SECONDS(3), |p| failure(p).is_some());
        assert_eq!(failure(&pair), Some(HandshakeFailure::Refused));
        no_session(&mut pair);
        let sent = pair.nodes[1].captured.take().unwrap();
        seen.push(sent.iter().map(|d| (d[0], d.len())).collect::<Vec<_>>());
    }
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn the_salt_does_not_tell_known_contexts_from_unknown_ones() {
    let mut pair = Pair::with(&quick(), &Link::default(), 1);
    let other = ContextId([9; 16]);
    pair.nodes[0].endpoint.add_context(other, &SECRET);
    pair.nodes[1].captured = Some(Vec::new());
    let to = pair.nodes[1].address;
    for context in [CONTEXT, other, other, CONTEXT] {
        pair.nodes[0].endpoint.connect(pair.now, to, context).unwrap();
    }
    pair.run(SECONDS(1), |_| false);
    let sent = pair.nodes[1].captured.take().unwrap();
    let salts: Vec<_> = sent.iter().filter(|d| d[0] == 0x83).map(|d| d[54..70].to_vec()).collect();
    assert!(salts.len() == 4 && salts.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn an_identity_that_is_not_authorized_gets_no_session_on_either_side() {
    for (side, expected) in [(1, HandshakeFailure::Refused), (0, HandshakeFailure::Unauthorized)] {
        let mut nodes = [1, 2].map(|i| {
            let allow = usize::from(i - 1) != side;
            node(quick(), i, Box::new(Allow(Box::new(move |_| allow))))
        });
        nodes.iter_mut().for_each(|n| n.link = Link::default());
        let [a, b] = nodes;
        let mut pair = Pair::new(a, b, 1);
        pair.connect();
        pair.run_until(SECONDS(3), |p| failure(p).is_some());
        assert_eq!(failure(&pair), Some(expected));
        no_session(&mut pair);
    }
}

#[test]
fn nobody_there_is_a_timeout() {
    let mut pair = Pair::with(&quick(), &Link { loss: 1.0, ..Link::default() }, 1);
    pair.connect();
    let took = pair.run_until(SECONDS(3), |p| failure(p).is_some());
    assert_eq!((failure(&pair), took), (Some(HandshakeFailure::Timeout), SECONDS(2)));
    no_session(&mut pair);
}

#[test]
fn any_changed_byte_of_a_handshake_means_no_session_or_is_harmless() {
    // (direction, which of its datagrams, bytes that are padding or the like)
    for (from, which) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        for byte in (0..330).step_by(7) {
            let mut pair = Pair::with(
                &Config { handshake_timeout: Duration::from_millis(400), ..quick() },
                &Link::default(),
                1,
            );
            let (mut count, mut kind) = ([0, 0], None);
            pair.tamper = Some(Box::new(move |f, d| {
                let n = count[f];
                count[f] += 1;
                if d[0] & 0x80 == 0 {
                    return true;
                }
                if f == from && n >= which {
                    let first = *kind.get_or_insert(d[0]);
                    if n == which && byte < d.len() {
                        d[byte] ^= 0x04;
                    }
                    // Only the changed one arrives, never its repetition.
                    return n == which || d[0] != first;
                }
                true
            }));
            pair.connect();
            pair.run(SECONDS(1), |_| false);
            let connected = pair.nodes.iter().any(|n| n.events.iter().any(|e| e.1 == Event::Connected));
            // Padding of INIT, and bytes beyond the datagram; nothing else may pass.
            let harmless = byte >= [[328, 326], [297, 297]][which][from];
            assert_eq!(connected, harmless, "datagram {which} from {from}, byte {byte}");
        }
    }
}

#[test]
fn replayed_handshake_packets_change_nothing() {
    let mut pair = Pair::with(&Config::default(), &Link::default(), 1);
    pair.nodes[0].captured = Some(Vec::new());
    pair.nodes[1].captured = Some(Vec::new());
    pair.connect();
    pair.run_until(SECONDS(3), |p| p.nodes.iter().all(|n| !n.events.is_empty()));
    let sent = pair.nodes.each_mut().map(|n| n.captured.take().unwrap());
    for (i, datagrams) in sent.iter().enumerate() {
        for d in datagrams.iter().chain(datagrams) {
            let from = pair.nodes[i].address;
            pair.inject(1 - i, from, d.clone());
            pair.inject(1 - i, SocketAddr::from(([9, 9, 9, 9], 9)), d.clone());
        }
    }
    pair.nodes[0].connection().send_message(b"still here").unwrap();
    pair.run_until(SECONDS(3), |p| p.nodes[1].messages() == [b"still here"]);
    // A copy of the INIT from elsewhere is a handshake of its own, which gets no further.
    assert_eq!(pair.nodes.each_ref().map(|n| n.endpoint.connection_count()), [1, 2]);
    pair.run(Config::default().handshake_timeout, |_| false);
    assert_eq!(pair.nodes.each_ref().map(|n| n.endpoint.connection_count()), [1, 1]);
    assert!(pair.nodes.iter().all(|n| n.count(|e| matches!(e, Event::Closed(_))) == 0));
}

#[test]
fn truncated_oversized_and_bad_public_values_are_dropped() {
    let mut pair = Pair::with(&quick(), &Link::default(), 1);
    pair.nodes[0].captured = Some(Vec::new());
    pair.connect();
    pair.tamper = Some(Box::new(|_, _| false));
    pair.run(Duration::from_millis(100), |_| false);
    let init = pair.nodes[0].captured.take().unwrap().remove(0);
    let from = pair.nodes[0].address;
    let parsed = Init::parse(&init).unwrap();
    for (i, a) in [[0; 256], [0xff; 256]].iter().enumerate() {
        let mut bad = Vec::new();
        Init { nonce: [i as u8; 32], a, ..parsed.clone() }.emit(&mut bad);
        pair.inject(1, from, bad);
    }
    for len in [0, 1, 12, 13, 326, 1199] {
        pair.inject(1, from, init[..len].to_vec());
    }
    let mut long = init.clone();
    long[326..328].copy_from_slice(&60_000u16.to_be_bytes());
    pair.inject(1, from, long);
    let mut huge = init.clone();
    huge.resize(65_000, 7);
    huge[1] = 0; // and of another version
    pair.inject(1, from, huge);
    pair.run(Duration::from_millis(100), |_| false);
    assert_eq!(pair.nodes[1].endpoint.connection_count(), 0);
}

#[test]
fn many_strangers_need_a_cookie_and_half_open_handshakes_are_limited() {
    let config =
        Config { retry_threshold: 2, max_handshakes: 5, handshake_timeout: SECONDS(2), ..Config::default() };
    let mut pair = Pair::with(&config, &Link::default(), 1);
    pair.nodes[0].captured = Some(Vec::new());
    pair.nodes[1].captured = Some(Vec::new());
    let to = pair.nodes[1].address;
    // Spoofed: their REPLY and RETRY never arrive.
    pair.tamper = Some(Box::new(|from, _| from == 0));
    for _ in 0..20 {
        pair.nodes[0].endpoint.connect(pair.now, to, CONTEXT).unwrap();
    }
    pair.run(Duration::from_millis(400), |_| false);
    assert_eq!(pair.nodes[1].endpoint.connection_count(), 2);
    let answers = pair.nodes[1].captured.take().unwrap();
    let bytes = |d: &[Vec<u8>]| d.iter().map(Vec::len).sum::<usize>();
    assert!(answers.iter().filter(|d| d[0] == 0x82).count() >= 18);
    assert!(bytes(&answers) < bytes(pair.nodes[0].captured.as_ref().unwrap()), "nothing is amplified");
    // An honest one comes through with its cookie, once the spoofed ones timed out or before.
    pair.run(SECONDS(3), |_| false);
    pair.nodes[0].events.clear();
    pair.tamper = None;
    for _ in 0..4 {
        pair.nodes[0].endpoint.connect(pair.now, to, CONTEXT).unwrap();
    }
    pair.run_until(SECONDS(2), |p| p.nodes[1].count(|e| *e == Event::Connected) == 4);
}

#[test]
fn limits_and_unknown_contexts_are_errors_of_connect() {
    let mut pair = Pair::with(&Config { max_connections: 1, ..quick() }, &Link::default(), 1);
    let (now, to) = (pair.now, pair.nodes[1].address);
    let e = &mut pair.nodes[0].endpoint;
    assert_eq!(e.connect(now, to, ContextId([0; 16])), Err(ConnectError::UnknownContext));
    let first = e.connect(now, to, CONTEXT).unwrap();
    assert_eq!(e.connect(now, to, CONTEXT), Err(ConnectError::TooManyConnections));
    e.connection_mut(first).unwrap().close(1, "");
    assert_eq!(e.poll_event(), Some((first, Event::Closed(CloseReason::Local))));
    assert!(e.connection(first).is_none());
    let second = e.connect(now, to, CONTEXT).unwrap();
    assert_ne!(first, second, "a handle is never used again");
}

/// The version before ours.
const OLD: u32 = VERSION - 1;

/// To either side, the other speaks the version before.
fn speak_other_versions(pair: &mut Pair) {
    pair.tamper = Some(Box::new(|_, d| {
        if d[0] & 0x80 != 0 {
            let version = u32::from_be_bytes(d[1..5].try_into().unwrap());
            let swapped = if version == VERSION { OLD } else { VERSION };
            d[1..5].copy_from_slice(&swapped.to_be_bytes());
        }
        true
    }));
}

#[test]
fn an_initiator_of_another_version_is_told_in_its_own_at_once() {
    let mut pair = Pair::with(&quick(), &Link::default(), 1);
    pair.nodes[1].captured = Some(Vec::new());
    speak_other_versions(&mut pair);
    pair.connect();
    let took = pair.run_until(SECONDS(1), |p| failure(p).is_some());
    assert_eq!((failure(&pair), took), (Some(HandshakeFailure::Version), Duration::from_millis(20)));
    let answers = pair.nodes[1].captured.take().unwrap();
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].len(), &answers[0][1..5]), (14, &OLD.to_be_bytes()[..]));
    no_session(&mut pair);
}

#[test]
fn a_responder_that_says_so_in_another_version_is_understood_and_nobody_else_is() {
    let alert = |alert: Alert, cid: &Cid| {
        let mut out = Vec::new();
        alert.emit(cid, &mut out);
        out[1..5].copy_from_slice(&OLD.to_be_bytes());
        out
    };
    // (from the one asked, for our CID, what, whether it ends the attempt)
    let cases = [
        (true, true, Alert::Version, true),
        (false, true, Alert::Version, false),
        (true, false, Alert::Version, false),
        (true, true, Alert::Refused, false),
    ];
    for (asked, ours, what, ends) in cases {
        let mut pair = Pair::with(&quick(), &Link::default(), 1);
        pair.nodes[0].captured = Some(Vec::new());
        pair.tamper = Some(Box::new(|_, _| false));
        pair.connect();
        pair.run(Duration::from_millis(1), |_| false);
        let cid = Init::parse(&pair.nodes[0].captured.take().unwrap()[0]).unwrap().source;
        let from = if asked { pair.nodes[1].address } else { SocketAddr::from(([9, 9, 9, 9], 9)) };
        pair.inject(0, from, alert(what, if ours { &cid } else { &[7; 8] }));
        pair.run(Duration::from_millis(1), |_| false);
        let expected = ends.then_some(HandshakeFailure::Version);
        assert_eq!(failure(&pair), expected, "{asked} {ours} {what:?}");
    }
    // Who has answered in our version speaks it.
    let mut pair = Pair::with(&quick(), &Link::default(), 1);
    pair.nodes[0].captured = Some(Vec::new());
    pair.connect();
    pair.run(Duration::from_millis(25), |_| false);
    let sent = pair.nodes[0].captured.take().unwrap();
    assert_eq!(sent.last().unwrap()[0], 0x84, "PROVE has left");
    let cid = Init::parse(&sent[0]).unwrap().source;
    let from = pair.nodes[1].address;
    pair.inject(0, from, alert(Alert::Version, &cid));
    pair.run_until(SECONDS(1), |p| p.nodes.iter().all(|n| n.count(|e| *e == Event::Connected) == 1));
}

#[test]
fn what_is_shorter_than_an_init_and_other_packets_of_another_version_are_not_answered() {
    let mut pair = Pair::with(&quick(), &Link::default(), 1);
    pair.nodes[1].captured = Some(Vec::new());
    let from = pair.nodes[0].address;
    for kind in 0..=0x7f {
        let mut datagram = vec![0; 1200];
        datagram[0] = 0x80 | kind;
        pair.inject(1, from, datagram[..1199].to_vec());
        // Of an INIT or RESUME only where its sender's CID lies is known.
        datagram[13..].fill(0xff);
        pair.inject(1, from, datagram);
    }
    pair.run(Duration::from_millis(50), |_| false);
    let answers = pair.nodes[1].captured.take().unwrap();
    assert_eq!(answers.len(), 2);
    for a in answers {
        assert_eq!(a, [&[0x85, 0, 0, 0, 0][..], &[0xff; 8], &[3]].concat());
    }
}
