//! Addresses that change, links that fail, windows that close, and who goes first.

use core::net::SocketAddr;
use core::time::Duration;
use std::format;
use std::vec::Vec;

use super::pair::{Link, Pair};
use crate::{Config, Event, Mode};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;
const BLOCK: u32 = 32 * 1024;

/// 100 Mbit/s with a queue of half a round trip.
fn link(delay_ms: u64) -> Link {
    Link { bottleneck: Some((12.5e6, 12.5e3 * delay_ms as f64)), ..Link::with_delay(delay_ms) }
}

/// A transfer from 0 to 1 at full speed.
fn busy(delay_ms: u64, seed: u64, blocks: u64) -> Pair {
    let config = Config { max_queued_blocks: 100_000, ..Config::default() };
    let mut pair = Pair::connected(&config, &link(delay_ms), seed);
    pair.nodes[1].blocks.count_only = true;
    pair.nodes[0].blocks.count_only = true;
    for tag in 0..blocks {
        pair.nodes[0].connection().send_block(tag, BLOCK, 0).unwrap();
    }
    pair.run(SECONDS(3), |_| false);
    pair
}

/// Time until data flows again: 100 packets more than were there.
#[track_caller]
fn until_it_flows(pair: &mut Pair, limit: Duration) -> Duration {
    let before = pair.nodes[1].blocks.fresh;
    pair.run_until(limit, |p| p.nodes[1].blocks.fresh > before + 150_000)
}

fn elsewhere(i: u8, port: u16) -> SocketAddr {
    ([10, 0, 1, i], port).into()
}

#[test]
#[cfg_attr(not(feature = "control"), ignore = "as fast as that is only the control of §9")]
fn an_address_change_costs_two_round_trips_and_a_fifth_of_a_second() {
    for delay in [5, 50, 150] {
        for mover in [0, 1] {
            for same_host in [false, true] {
                let mut pair = busy(delay, 1, 8000);
                let old = pair.nodes[mover].address;
                // What was under way reaches the old address, where nobody is.
                let new = if same_host { (old.ip(), 77).into() } else { elsewhere(mover as u8, 2000) };
                pair.nodes[mover].address = new;
                let took = until_it_flows(&mut pair, SECONDS(20));
                let budget = MS(delay) * 4 + MS(200);
                assert!(took <= budget, "{mover} moved at {delay} ms, same host {same_host}: {took:?}");
                let s = pair.nodes[0].connection().stats();
                std::println!("{} ms RTT, {mover} moves: {took:?}, lost {}", delay * 2, s.lost_packets);
                pair.run(SECONDS(1), |_| false);
                assert_eq!(pair.nodes[1 - mover].connection().remote(), new);
            }
        }
    }
}

#[test]
#[cfg_attr(not(feature = "control"), ignore = "as fast as that is only the control of §9")]
fn a_longer_path_is_used_as_fully_as_the_one_before() {
    let mut pair = busy(10, 1, 20_000);
    pair.nodes.iter_mut().for_each(|n| n.link.delay = MS(60));
    pair.nodes[1].address = elsewhere(1, 2000);
    pair.run(SECONDS(3), |_| false);
    let before = pair.nodes[1].blocks.fresh;
    pair.run(SECONDS(10), |_| false);
    let used = (pair.nodes[1].blocks.fresh - before) as f64 / 10.0 / 12.5e6;
    assert!(used > 0.9, "{used:.3} of the rate");
}

/// `mbit`, a queue of half a round trip, and a transfer of `seconds` at most that has lasted three of them.
fn busier(mbit: u64, rtt_ms: u64, loss: f64, mode: Mode, seconds: u64) -> Pair {
    let bytes = mbit as f64 * 1e6 / 8.0;
    let delay = MS(rtt_ms) / 2;
    let queue = bytes * rtt_ms as f64 / 2e3;
    let link = Link { delay, loss, bottleneck: Some((bytes, queue)), max_datagram: 1472, ..Link::default() };
    let config = Config { mode, max_queued_blocks: 100_000, ..Config::default() };
    let mut pair = Pair::connected(&config, &link, 1);
    pair.nodes.iter_mut().for_each(|n| n.blocks.count_only = true);
    let blocks = (bytes * seconds as f64 / f64::from(BLOCK)) as u64;
    for tag in 0..blocks {
        pair.nodes[0].connection().send_block(tag, BLOCK, 0).unwrap();
    }
    pair.run(SECONDS(3), |_| false);
    pair
}

fn goodput(pair: &mut Pair, over: Duration) -> f64 {
    let before = pair.nodes[1].blocks.fresh;
    pair.run(over, |_| false);
    (pair.nodes[1].blocks.fresh - before) as f64 / over.as_secs_f64()
}

#[test]
#[cfg_attr(not(feature = "control"), ignore = "as fast as that is only the control of §9")]
fn a_path_that_becomes_longer_under_way_is_used_as_fully_as_before() {
    const STEPS: [(u64, u64); 5] = [(20, 40), (20, 120), (50, 80), (100, 250), (200, 600)];
    // `background` keeps less of a path of its own, and no better of the longer one.
    let ways = [
        (0.0, Mode::Full, false, 0.88),
        (0.01, Mode::Full, true, 0.88),
        (0.01, Mode::Fair, false, 0.88),
        (0.0, Mode::Background, false, 0.6),
    ];
    for (mbit, steps) in [(10, &STEPS[..]), (100, &STEPS[1..2])] {
        for &(from, to) in steps {
            for (loss, mode, moves, least) in ways {
                let rate = mbit as f64 * 1e6 / 8.0 * (1.0 - loss);
                let mut pair = busier(mbit, from, loss, mode, 18);
                if mode == Mode::Background {
                    // Not in the middle of a drain: of a step of half a round trip up one then may take this for the
                    // queue, until the smallest round trip expires (one moment in twenty).
                    pair.run(MS(100), |_| false);
                }
                pair.nodes.iter_mut().for_each(|n| n.link.delay = MS(to) / 2);
                if moves {
                    // The side that sends: nobody tells it.
                    pair.nodes[0].address = elsewhere(0, 2000);
                }
                // A share of 0.6 is what `background` keeps over several of its drains; in two seconds it may be 0.51 to
                // 0.67, by how many of them fall there.
                let over = SECONDS(if mode == Mode::Background { 4 } else { 2 });
                pair.run(SECONDS(2).max(MS(to) * 10), |_| false);
                let used = goodput(&mut pair, over) / rate;
                let what = format!("{mbit} Mbit/s, {from} to {to} ms, loss {loss}, {mode:?}, moves {moves}");
                assert!(used > least, "{what}: {used:.3} of the rate");
                // And back: nothing that was learned is in the way. Packets overtake each other meanwhile, which mode
                // `fair` may take for a competitor's loss for some seconds.
                let least = if mode == Mode::Fair { 0.4 } else { least };
                pair.nodes.iter_mut().for_each(|n| n.link.delay = MS(from) / 2);
                pair.run(SECONDS(1), |_| false);
                let used = goodput(&mut pair, over) / rate;
                assert!(used > least, "{what}, and back: {used:.3} of the rate");
            }
        }
    }
}

#[test]
#[cfg_attr(not(feature = "control"), ignore = "as fast as that is only the control of §9")]
fn a_longer_path_that_is_slower_as_well_is_found_out() {
    for (from, to, share) in [(20, 120, 0.2), (50, 150, 0.5), (20, 500, 1.0)] {
        let mut pair = busier(100, from, 0.0, Mode::Full, 20);
        for n in &mut pair.nodes {
            n.link.delay = MS(to) / 2;
            n.link.bottleneck = n.link.bottleneck.map(|(rate, queue)| (rate * share, queue));
        }
        pair.run(SECONDS(4).max(MS(to) * 10), |_| false);
        let used = goodput(&mut pair, SECONDS(2)) / (12.5e6 * share);
        assert!(used > 0.88, "{from} to {to} ms, {share} of the rate: {used:.3} of it");
    }
}

#[test]
fn challenges_are_repeated_when_they_get_lost() {
    for seed in 0..8 {
        let mut pair = busy(50, seed, 8000);
        pair.nodes.iter_mut().for_each(|n| n.link.loss = 0.3);
        pair.nodes[1].address = elsewhere(1, 2000);
        let before = pair.nodes[1].blocks.fresh;
        pair.run_until(SECONDS(8), |p| p.nodes[1].blocks.fresh > before + 20_000);
    }
}

#[test]
#[cfg_attr(not(feature = "control"), ignore = "as fast as that is only the control of §9")]
fn who_replays_packets_from_elsewhere_gets_thrice_their_bytes_and_no_more() {
    let mut pair = busy(50, 1, 8000);
    let (home, thief) = (pair.nodes[1].address, elsewhere(9, 9));
    let rate = pair.nodes[0].connection().stats().rate;
    pair.nodes[1].captured = Some(Vec::new());
    let mut forwarded = 0;
    for _ in 0..500 {
        // The thief's copy is faster than the packet itself.
        for d in pair.nodes[1].captured.as_mut().unwrap().split_off(0) {
            forwarded += d.len();
            pair.inject(0, thief, d);
        }
        pair.run(MS(1), |_| false);
    }
    let stolen: usize = pair.astray.iter().filter(|a| a.0 == thief).map(|a| a.1).sum();
    assert!(forwarded > 1000 && stolen <= 3 * forwarded, "{stolen} of {forwarded}");
    pair.nodes[1].captured = None;
    pair.run(MS(200), |_| false);
    assert_eq!(pair.nodes[0].connection().remote(), home);
    let after = pair.nodes[0].connection().stats().rate;
    assert!(after > rate / 4, "{after} after {rate}");
    until_it_flows(&mut pair, SECONDS(1));
}

#[test]
fn a_spoofed_address_that_never_answers_is_left_again() {
    let mut pair = busy(50, 1, 0);
    let home = pair.nodes[1].address;
    // One newest packet comes from elsewhere, and then nothing does: the peer is quiet.
    pair.nodes[1].captured = Some(Vec::new());
    pair.nodes[1].connection().send_message(b"hello").unwrap();
    pair.run(MS(1), |_| false);
    let d = pair.nodes[1].captured.take().unwrap().remove(0);
    pair.inject(0, elsewhere(9, 9), d);
    pair.run(MS(10), |_| false);
    assert_eq!(pair.nodes[0].connection().remote(), elsewhere(9, 9));
    pair.run_until(SECONDS(3), |p| {
        p.nodes[0].endpoint.connection(p.nodes[0].handle()).unwrap().remote() == home
    });
    pair.nodes[0].connection().send_message(b"still here?").unwrap();
    pair.run_until(SECONDS(3), |p| p.nodes[1].messages() == [b"still here?"]);
}

#[test]
#[cfg_attr(not(feature = "control"), ignore = "as fast as that is only the control of §9")]
fn after_thirty_seconds_of_outage_it_goes_on_within_a_second() {
    for delay in [10, 100, 250] {
        let mut pair = busy(delay, 1, 20_000);
        pair.nodes[0].captured = Some(Vec::new());
        pair.nodes.iter_mut().for_each(|n| n.link.loss = 1.0);
        pair.run(SECONDS(15), |_| false);
        pair.nodes[0].connection().send_message(b"urgent").unwrap();
        pair.run(SECONDS(15), |_| false);
        let sent: usize = pair.nodes[0].captured.as_ref().unwrap().iter().map(Vec::len).sum();
        // Beside what was under way: some probes with data, then 30 bytes each, often at first, later thrice a second.
        let probes = pair.nodes[0].connection().stats().probe_timeouts;
        assert!((120..240).contains(&probes), "{probes} probes, {sent} bytes");
        pair.nodes.iter_mut().for_each(|n| n.link.loss = 0.0);
        let took = until_it_flows(&mut pair, SECONDS(20));
        std::println!("{} ms RTT: {took:?} after the outage", 2 * delay);
        assert!(took <= SECONDS(1), "{took:?} at {delay} ms");
        pair.run_until(SECONDS(1), |p| p.nodes[1].messages() == [b"urgent"]);
        let handshakes = pair.nodes[0].captured.take().unwrap().iter().filter(|d| d[0] & 0x80 != 0).count();
        assert_eq!(handshakes, 0, "no new handshake");
    }
}

#[test]
fn an_urgent_block_overtakes_thousands_within_a_round_trip() {
    let mut pair = busy(50, 1, 0);
    pair.nodes.iter_mut().for_each(|n| n.blocks.count_only = false);
    for tag in 0..6000 {
        pair.nodes[0].connection().send_block(tag, BLOCK, 0).unwrap();
    }
    pair.run(SECONDS(2), |_| false);
    pair.nodes[0].connection().send_block(1 << 40, BLOCK, 9).unwrap();
    let took = pair.run_until(SECONDS(2), |p| p.nodes[1].blocks.is_whole(1 << 40, BLOCK));
    assert!(took <= MS(100), "{took:?}");
    assert!(pair.nodes[0].connection().queued_blocks() > 3000, "others wait");
    // A message does not wait for blocks either.
    pair.nodes[0].connection().send_message(b"now").unwrap();
    let took = pair.run_until(SECONDS(2), |p| p.nodes[1].messages() == [b"now"]);
    assert!(took <= MS(100), "{took:?}");
}

#[test]
fn a_receiver_of_four_kibibytes_works_and_reopening_needs_no_timer() {
    let mut pair = Pair::with(&Config::default(), &Link::default(), 1);
    let small = Config {
        max_datagram: 1200,
        receive_window: 4096,
        max_message: 1000,
        message_buffer: 2048,
        ..Config::default()
    };
    pair.nodes[1] = super::pair::node(small, 2, super::pair::everybody());
    pair.connect();
    pair.run_until(SECONDS(3), |p| p.nodes.iter().all(|n| !n.events.is_empty()));
    for tag in 0..6 {
        pair.nodes[0].connection().send_block(tag, BLOCK, 0).unwrap();
    }
    for _ in 0..20 {
        pair.run(MS(20), |_| false);
        let s = pair.nodes[0].connection().stats();
        assert!(s.bytes_in_flight <= 4096, "{s:?}");
    }
    assert!(pair.nodes[1].blocks.fresh > 3 * u64::from(BLOCK) / 2, "{}", pair.nodes[1].blocks.fresh);
    pair.nodes[1].connection().set_receive_window(0);
    pair.run(SECONDS(1), |_| false);
    let (before, probes) = (pair.nodes[1].blocks.fresh, pair.nodes[0].connection().stats().probe_timeouts);
    pair.run(SECONDS(5), |_| false);
    assert_eq!(pair.nodes[1].blocks.fresh, before, "halted");
    pair.nodes[1].connection().set_receive_window(4096);
    let took = pair.run_until(SECONDS(1), |p| p.nodes[1].blocks.fresh > before);
    assert!(took <= MS(22), "{took:?}");
    assert_eq!(pair.nodes[0].connection().stats().probe_timeouts, probes);
    pair.run_until(SECONDS(10), |p| p.nodes[0].count(|e| matches!(e, Event::BlockSent { .. })) == 6);
}

#[test]
#[cfg_attr(not(feature = "control"), ignore = "as fast as that is only the control of §9")]
fn what_was_learned_of_a_path_is_told_however_the_connection_ends() {
    for way in 0..3 {
        let config = Config { idle_timeout: SECONDS(2), ..Config::default() };
        let mut pair = Pair::connected(&config, &link(20), 1);
        pair.nodes.iter_mut().for_each(|n| n.blocks.count_only = true);
        for tag in 0..3000 {
            pair.nodes[0].connection().send_block(tag, 32 * 1024, 0).unwrap();
        }
        pair.run(SECONDS(6), |_| false);
        match way {
            0 => pair.nodes[0].connection().close(0, ""),
            1 => pair.nodes[1].connection().close(0, ""),
            _ => pair.nodes.iter_mut().for_each(|n| n.link.loss = 1.0),
        }
        pair.run_until(SECONDS(5), |p| matches!(p.nodes[0].events.last().unwrap().1, Event::Closed(_)));
        let events = &pair.nodes[0].events;
        let (_, Event::PathLearned(memory)) = &events[events.len() - 2] else {
            panic!("{way}: nothing was told before the end");
        };
        assert!((9e6..13e6).contains(&(memory.rate as f64)), "{way}: {memory:?}");
        assert_eq!(pair.nodes[1].count(|e| matches!(e, Event::PathLearned(_))), 0, "it sent nothing");
    }
}
