//! Coming back with a ticket, all that may be wrong with one, and a peer that lost its memory.

use core::time::Duration;
use std::boxed::Box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::vec;
use std::vec::Vec;

use timebase::Instant;

use super::pair::{Allow, CONTEXT, Link, Pair, SECRET, everybody, node};
use crate::wire::handshake::Alert;
use crate::wire::header::{Kind, emit_handshake};
use crate::{CloseReason, Config, ContextId, Event, HandshakeFailure, Resumption};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;

fn config() -> Config {
    Config { accept_early: true, handshake_timeout: SECONDS(4), ..Config::default() }
}

/// A pair that was connected once, 100 ms apart, and the ticket of that time.
fn acquainted(config: &Config) -> (Pair, Resumption) {
    let mut pair = Pair::with(config, &Link::with_delay(50), 1);
    let handle = pair.connect();
    let resumption = ticket(&mut pair);
    pair.nodes[0].endpoint.connection_mut(handle).unwrap().close(0, "");
    pair.run(SECONDS(3), |_| false);
    assert_eq!(pair.nodes.each_ref().map(|n| n.endpoint.connection_count()), [0, 0]);
    pair.nodes.iter_mut().for_each(|n| n.events.clear());
    (pair, resumption)
}

#[track_caller]
fn ticket(pair: &mut Pair) -> Resumption {
    let find = |p: &Pair| {
        p.nodes[0].events.iter().find_map(|e| match &e.1 {
            Event::Resumption(r) => Some(r.clone()),
            _ => None,
        })
    };
    pair.run_until(SECONDS(10), |p| find(p).is_some());
    find(pair).unwrap()
}

fn come_back(pair: &mut Pair, resumption: &Resumption, early: &[&[u8]]) {
    let (now, to) = (pair.now, pair.nodes[1].address);
    pair.nodes[0].endpoint.connect_resumed(now, to, resumption.clone(), early).unwrap();
}

fn early(pair: &Pair) -> Vec<Vec<u8>> {
    let message = |e: &(crate::Handle, Event)| match &e.1 {
        Event::EarlyMessage(m) => Some(m.clone()),
        _ => None,
    };
    pair.nodes[1].events.iter().filter_map(message).collect()
}

fn connected(pair: &Pair, i: usize) -> bool {
    pair.nodes[i].count(|e| *e == Event::Connected) > 0
}

#[track_caller]
fn falls_back(pair: &mut Pair, resumption: &Resumption) {
    come_back(pair, resumption, &[b"question"]);
    pair.run_until(SECONDS(8), |p| p.nodes[1].messages() == [b"question"]);
    assert!(!pair.nodes[0].connection().is_resumed() && early(pair).is_empty());
}

#[test]
#[cfg_attr(not(feature = "control"), ignore = "as fast as that is only the control of §9")]
fn round_trips_until_the_first_data() {
    let (mut pair, resumption) = acquainted(&config());
    // Full: 2 RTT to be connected, half a one for the data.
    pair.connect();
    let took = pair.run_until(SECONDS(2), |p| connected(p, 0));
    assert_eq!(took, MS(200));
    pair.nodes[0].connection().send_message(b"x").unwrap();
    let took = took + pair.run_until(SECONDS(2), |p| !p.nodes[1].messages().is_empty());
    assert!((MS(250)..MS(270)).contains(&took), "{took:?}");

    let (mut pair, resumption2) = acquainted(&config());
    assert_eq!(resumption.peer(), resumption2.peer());
    come_back(&mut pair, &resumption2, &[]);
    let took = pair.run_until(SECONDS(2), |p| connected(p, 0));
    assert_eq!(took, MS(100));
    pair.nodes[0].connection().send_message(b"x").unwrap();
    let took = took + pair.run_until(SECONDS(2), |p| !p.nodes[1].messages().is_empty());
    assert!((MS(150)..MS(170)).contains(&took), "{took:?}");
    assert!(pair.nodes.iter_mut().all(|n| n.connection().is_resumed()));
    let again = ticket(&mut pair);
    assert_ne!(again, resumption2, "a new ticket for the next time");

    let (mut pair, resumption) = acquainted(&config());
    come_back(&mut pair, &resumption, &[b"what is new?", b"and else?"]);
    let took = pair.run_until(SECONDS(2), |p| early(p).len() == 2);
    assert_eq!(took, MS(50));
    // The answer is there after one round trip in all.
    pair.nodes[1].connection().send_message(b"nothing").unwrap();
    let more = pair.run_until(SECONDS(2), |p| p.nodes[0].messages() == [b"nothing"]);
    assert_eq!(took + more, MS(100));
    pair.run(SECONDS(1), |_| false);
    assert_eq!(pair.nodes[0].connection().early_taken(), 2);
    assert!(pair.nodes[1].messages().is_empty(), "not told twice");
    assert!(pair.nodes.iter_mut().all(|n| n.connection().is_established()));
}

#[test]
fn a_ticket_that_is_not_taken_costs_a_round_trip_and_nothing_is_lost() {
    let (mut pair, resumption) = acquainted(&config());
    // The responder started anew, with other keys.
    pair.nodes[1].endpoint = node(config(), 3, everybody()).endpoint;
    come_back(&mut pair, &resumption, &[b"question"]);
    let took = pair.run_until(SECONDS(2), |p| connected(p, 0));
    assert_eq!(took, MS(300));
    pair.run_until(SECONDS(2), |p| p.nodes[1].messages() == [b"question"]);
    assert!(!pair.nodes[0].connection().is_resumed());
}

#[test]
fn wrong_tickets_fall_back_to_the_full_handshake() {
    let (_, resumption) = acquainted(&config());
    let n = resumption.ticket.len();
    for byte in [0, 3, 4, 19, 20, 100, n - 17, n - 1] {
        let (mut pair, mut resumption) = acquainted(&config());
        resumption.ticket[byte] ^= 1;
        falls_back(&mut pair, &resumption);
    }
    for len in [0, 1, 19, 20, 36, n - 1] {
        let (mut pair, mut resumption) = acquainted(&config());
        resumption.ticket.truncate(len);
        falls_back(&mut pair, &resumption);
    }
    let (mut pair, mut resumption) = acquainted(&config());
    resumption.secret.0[0] ^= 1;
    falls_back(&mut pair, &resumption);
    // One of another context: both know both.
    let (mut pair, mut resumption) = acquainted(&config());
    let other = ContextId([7; 16]);
    pair.nodes.iter_mut().for_each(|n| n.endpoint.add_context(other, &[8; 32]));
    resumption.context = other;
    falls_back(&mut pair, &resumption);
    // Too old.
    let (mut pair, resumption) = acquainted(&config());
    pair.now += SECONDS(12 * 3600);
    falls_back(&mut pair, &resumption);
}

#[test]
fn a_changed_context_secret_voids_its_tickets() {
    let (mut pair, resumption) = acquainted(&config());
    pair.nodes[1].endpoint.add_context(CONTEXT, &[1; 32]);
    come_back(&mut pair, &resumption, &[b"x"]);
    let refused = Event::Closed(CloseReason::HandshakeFailed(HandshakeFailure::Refused));
    pair.run_until(SECONDS(4), |p| p.nodes[0].events.iter().any(|e| e.1 == refused));
    assert!(pair.nodes[1].events.is_empty());
    let (mut pair, resumption) = acquainted(&config());
    pair.nodes[1].endpoint.remove_context(CONTEXT);
    come_back(&mut pair, &resumption, &[b"x"]);
    pair.run_until(SECONDS(4), |p| p.nodes[0].events.iter().any(|e| e.1 == refused));
}

#[test]
fn a_revoked_identity_does_not_come_back_by_a_ticket() {
    for (side, failure) in [(0, HandshakeFailure::Unauthorized), (1, HandshakeFailure::Refused)] {
        let welcome = Arc::new(AtomicBool::new(true));
        let flag = welcome.clone();
        let allow: Box<dyn crate::Authorizer + Send> =
            Box::new(Allow(Box::new(move |_| flag.load(Ordering::Relaxed))));
        let mut pair = Pair::with(&config(), &Link::with_delay(50), 1);
        pair.nodes[side] = node(config(), side as u8 + 1, allow);
        pair.connect();
        let resumption = ticket(&mut pair);
        pair.nodes[0].connection().close(0, "");
        pair.run(SECONDS(3), |_| false);
        pair.nodes.iter_mut().for_each(|n| n.events.clear());
        welcome.store(false, Ordering::Relaxed);
        come_back(&mut pair, &resumption, &[b"let me in"]);
        pair.run(SECONDS(6), |_| false);
        let closed = Event::Closed(CloseReason::HandshakeFailed(failure));
        assert!(pair.nodes[0].events.iter().any(|e| e.1 == closed), "{:?}", pair.nodes[0].events);
        assert!(pair.nodes[1].events.is_empty());
    }
}

#[test]
fn any_changed_byte_of_a_resumed_handshake_costs_the_resumption_at_most() {
    for from in [0, 1] {
        for byte in (0..460).step_by(9) {
            let (mut pair, resumption) = acquainted(&config());
            let mut first = true;
            pair.tamper = Some(Box::new(move |f, d| {
                if f == from && core::mem::take(&mut first) && byte < d.len() {
                    d[byte] ^= 4;
                }
                true
            }));
            come_back(&mut pair, &resumption, &[b"question"]);
            pair.run_until(SECONDS(8), |p| connected(p, 0));
            pair.run(SECONDS(1), |_| false);
            let told = early(&pair).len() + pair.nodes[1].messages().len();
            assert!(told >= 1, "byte {byte} from {from}");
            assert!(early(&pair).iter().chain(&pair.nodes[1].messages()).all(|m| m == b"question"));
        }
    }
}

#[test]
fn early_data_is_taken_once_however_often_it_comes() {
    let (mut pair, resumption) = acquainted(&config());
    pair.nodes[0].captured = Some(Vec::new());
    come_back(&mut pair, &resumption, &[b"once"]);
    pair.run_until(SECONDS(2), |p| connected(p, 0));
    let resume = pair.nodes[0].captured.take().unwrap().remove(0);
    assert_eq!((resume[0], resume.len()), (0x86, 1200));
    let home = pair.nodes[0].address;
    let stranger = "10.9.9.9:9".parse().unwrap();
    for from in [home, stranger] {
        pair.inject(1, from, resume.clone());
    }
    pair.run(SECONDS(1), |_| false);
    assert_eq!(early(&pair), [b"once"]);
    // After that connection is gone its nonce is forgotten, but not the ticket.
    pair.nodes[0].connection().close(0, "");
    pair.run(SECONDS(5), |_| false);
    assert_eq!(pair.nodes[1].endpoint.connection_count(), 0);
    pair.nodes[1].captured = Some(Vec::new());
    for _ in 0..5 {
        pair.inject(1, stranger, resume.clone());
        pair.run(SECONDS(5), |_| false);
    }
    assert_eq!(early(&pair), [b"once"]);
    assert_eq!(pair.nodes[1].count(|e| *e == Event::Connected), 1, "the application hears nothing of it");
    let sent: usize = pair.nodes[1].captured.take().unwrap().iter().map(Vec::len).sum();
    assert!(sent <= 5 * 300, "{sent} bytes for 6000");
    // The honest owner may use it again; its early data then comes late.
    pair.nodes.iter_mut().for_each(|n| n.events.clear());
    come_back(&mut pair, &resumption, &[b"twice"]);
    pair.run_until(SECONDS(2), |p| p.nodes[1].messages() == [b"twice"]);
    assert!(pair.nodes[0].connection().is_resumed() && early(&pair).is_empty());
    assert_eq!(pair.nodes[0].connection().early_taken(), 0);
}

#[test]
fn an_alert_from_anybody_does_not_end_who_resumes() {
    let (mut pair, resumption) = acquainted(&config());
    pair.nodes[1].captured = Some(Vec::new());
    come_back(&mut pair, &resumption, &[b"early"]);
    pair.run_until(SECONDS(1), |p| early(p).len() == 1);
    // On the path its CID is seen; the address is as easily forged.
    let resumed = pair.nodes[1].captured.take().unwrap().remove(0);
    let mut alert = Vec::new();
    Alert::Refused.emit(resumed[13..21].try_into().unwrap(), &mut alert);
    let from = pair.nodes[0].address;
    pair.inject(1, from, alert);
    pair.run_until(SECONDS(1), |p| connected(p, 0));
    pair.nodes[0].connection().send_message(b"later").unwrap();
    pair.run_until(SECONDS(2), |p| p.nodes[1].messages() == [b"later"]);
}

#[test]
fn who_only_begins_handshakes_displaces_himself() {
    let config = Config { max_handshakes: 16, retry_threshold: 16, ..Config::default() };
    let mut pair = Pair::with(&config, &Link::with_delay(50), 1);
    let mut init = Vec::new();
    pair.nodes[0].captured = Some(Vec::new());
    pair.connect();
    pair.run_until(SECONDS(1), |p| !p.nodes[0].captured.as_ref().unwrap().is_empty());
    init.extend(pair.nodes[0].captured.take().unwrap().remove(0));
    pair.run_until(SECONDS(1), |p| connected(p, 1));
    let mut flood = |pair: &mut Pair| {
        for port in 1..=40 {
            init[22] = init[22].wrapping_add(1);
            pair.inject(1, ([9, 9, 9, 9], port).into(), init.clone());
        }
    };
    pair.nodes[1].captured = Some(Vec::new());
    flood(&mut pair);
    pair.run(MS(100), |_| false);
    // Proofs that prove nothing change nothing. The CID they need is in the REPLY.
    for reply in pair.nodes[1].captured.take().unwrap().iter().filter(|d| d[0] == 0x83) {
        let mut prove = Vec::new();
        emit_handshake(&mut prove, Kind::Prove, reply[13..21].try_into().unwrap());
        prove.extend_from_slice(&[0, 1]);
        prove.resize(400, 7);
        (1..=40).for_each(|port| pair.inject(1, ([9, 9, 9, 9], port).into(), prove.clone()));
    }
    pair.run(MS(200), |_| false);
    pair.nodes.iter_mut().for_each(|n| n.events.clear());
    pair.connect();
    for _ in 0..5 {
        pair.run(MS(100), |_| false);
        flood(&mut pair);
    }
    assert!(connected(&pair, 0) && connected(&pair, 1));
}

#[test]
fn early_data_is_refused_unless_asked_for_and_what_is_too_long_comes_later() {
    let (mut pair, resumption) = acquainted(&Config { accept_early: false, ..config() });
    come_back(&mut pair, &resumption, &[b"question"]);
    pair.run_until(SECONDS(2), |p| p.nodes[1].messages() == [b"question"]);
    assert!(pair.nodes[0].connection().is_resumed() && early(&pair).is_empty());
    let (mut pair, resumption) = acquainted(&config());
    let long = vec![1; 5000];
    come_back(&mut pair, &resumption, &[b"short", &long]);
    pair.run_until(SECONDS(2), |p| p.nodes[1].messages() == [long.clone()]);
    assert_eq!((early(&pair), pair.nodes[0].connection().early_taken()), (vec![b"short".to_vec()], 1));
}

#[test]
fn until_its_address_is_proven_a_resumed_peer_gets_thrice_its_bytes() {
    let (mut pair, resumption) = acquainted(&config());
    pair.nodes[1].captured = Some(Vec::new());
    // It never hears an answer: spoofed.
    pair.tamper = Some(Box::new(|from, _| from == 0));
    come_back(&mut pair, &resumption, &[b"much, please"]);
    pair.run_until(SECONDS(1), |p| early(p).len() == 1);
    for tag in 0..100 {
        pair.nodes[1].connection().send_block(tag, 30_000, 0).unwrap();
    }
    pair.run(MS(300), |_| false);
    let sent: usize = pair.nodes[1].captured.as_ref().unwrap().iter().map(Vec::len).sum();
    assert!(sent <= 3600, "{sent}");
    // And it is forgotten soon, with the full handshake that was tried after it.
    pair.run(SECONDS(8), |_| false);
    assert_eq!(pair.nodes[1].endpoint.connection_count(), 0);
}

#[test]
fn under_load_a_ticket_needs_a_cookie_as_well() {
    let config = Config { retry_threshold: 0, ..config() };
    let (mut pair, resumption) = acquainted(&config);
    pair.nodes[1].captured = Some(Vec::new());
    come_back(&mut pair, &resumption, &[b"question"]);
    let took = pair.run_until(SECONDS(2), |p| connected(p, 0));
    assert_eq!(took, MS(200), "one round trip more");
    assert_eq!(pair.nodes[1].captured.take().unwrap()[0][0], 0x82);
    assert_eq!(early(&pair), [b"question"]);
}

#[test]
fn resumption_survives_loss() {
    for seed in 0..20 {
        let (mut pair, resumption) = acquainted(&Config { handshake_timeout: SECONDS(30), ..config() });
        pair.random = rand_core::SeedableRng::seed_from_u64(seed);
        pair.nodes.iter_mut().for_each(|n| n.link.loss = 0.4);
        come_back(&mut pair, &resumption, &[b"question"]);
        pair.run_until(SECONDS(30), |p| connected(p, 0) && connected(p, 1));
        pair.run_until(SECONDS(30), |p| early(p).len() + p.nodes[1].messages().len() > 0);
    }
}

/// Starts the responder anew, with the secret that outlives it or with another.
fn restart(pair: &mut Pair, secret: &[u8; 32], seed: u8) {
    let mut fresh = node(config(), 2, everybody());
    fresh.endpoint =
        crate::Endpoint::new(config(), crate::Identity::new([2; 32], vec![2; 100]), everybody(), [seed; 32]);
    fresh.endpoint.add_context(CONTEXT, &SECRET);
    fresh.endpoint.set_lasting_secret(secret, pair.now, clock(pair.now));
    pair.nodes[1].endpoint = fresh.endpoint;
    pair.nodes[1].events.clear();
}

fn clock(now: Instant) -> Duration {
    SECONDS(1_700_000_000) + now.saturating_since(Instant::ZERO)
}

#[test]
fn a_restarted_peer_is_noticed_at_once_and_takes_its_old_tickets() {
    let mut pair = Pair::with(&config(), &Link::with_delay(50), 1);
    restart(&mut pair, &[5; 32], 70);
    pair.connect();
    let resumption = ticket(&mut pair);
    restart(&mut pair, &[5; 32], 71);
    pair.nodes[0].captured = Some(Vec::new());
    pair.nodes[1].captured = Some(Vec::new());
    pair.nodes[0].connection().send_message(b"still there?").unwrap();
    let reset = Event::Closed(CloseReason::Reset);
    let took = pair.run_until(SECONDS(1), |p| p.nodes[0].events.iter().any(|e| e.1 == reset));
    assert_eq!(took, MS(100));
    let sizes = |n: &super::pair::Node| n.captured.as_ref().unwrap().iter().map(Vec::len).collect::<Vec<_>>();
    assert!(sizes(&pair.nodes[1]).iter().all(|s| *s == 29), "shorter than any packet it answers");
    // Keys survived the restart, the register did not: resumed, but nothing early.
    pair.nodes[0].events.clear();
    come_back(&mut pair, &resumption, &[b"question"]);
    let took = pair.run_until(SECONDS(1), |p| connected(p, 0));
    assert_eq!(took, MS(100));
    pair.run_until(SECONDS(1), |p| p.nodes[1].messages() == [b"question"]);
    assert!(early(&pair).is_empty());
}

#[test]
fn forged_resets_and_floods_do_nothing() {
    let mut pair = Pair::connected(&config(), &Link::default(), 1);
    pair.nodes[0].captured = Some(Vec::new());
    pair.nodes[0].connection().send_message(b"x").unwrap();
    pair.run(SECONDS(1), |_| false);
    let packet = pair.nodes[0].captured.take().unwrap().remove(0);
    let mut cid = [0; 8];
    cid.copy_from_slice(&packet[1..9]);
    let peer = pair.nodes[1].address;
    for i in 0..255 {
        let mut forged = Vec::new();
        crate::wire::handshake::emit_reset(&cid, &[i; 16], &mut forged);
        pair.inject(0, peer, forged);
    }
    // Packets for nobody are answered 16 times per 100 ms, and never at greater length.
    pair.nodes[1].captured = Some(Vec::new());
    let from = pair.nodes[0].address;
    for len in [13, 29, 30, 31].into_iter().cycle().take(2000) {
        let mut stray = vec![0; len];
        stray[1..9].copy_from_slice(b"nobody's");
        pair.inject(1, from, stray);
    }
    pair.run(MS(50), |_| false);
    let answers = pair.nodes[1].captured.take().unwrap();
    assert!(answers.len() <= 18 && answers.iter().all(|d| d.len() == 29), "{}", answers.len());
    pair.nodes[0].connection().send_message(b"y").unwrap();
    pair.run_until(SECONDS(1), |p| p.nodes[1].messages().len() == 2);
}
