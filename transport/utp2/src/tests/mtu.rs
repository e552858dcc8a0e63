//! Which datagram size a connection ends up with, on paths that carry less than the ends would.

use core::time::Duration;

use super::pair::{Link, Pair};
use crate::{Config, Event};

const BLOCK: u32 = 32 * 1024;

fn transfer(pair: &mut Pair, from: u64, blocks: u64) -> Duration {
    for tag in from..from + blocks {
        pair.nodes[0].connection().send_block(tag, BLOCK, 0).unwrap();
    }
    let sent = (from + blocks) as usize;
    let done = move |p: &Pair| p.nodes[0].count(|e| matches!(e, Event::BlockSent { .. })) == sent;
    let took = pair.run_until(Duration::from_secs(60), done);
    assert!((from..from + blocks).all(|tag| pair.nodes[1].blocks.is_whole(tag, BLOCK)));
    took
}

fn link(mtu: usize, loss: f64) -> Link {
    Link { max_datagram: mtu - 28, bottleneck: Some((12.5e6, 20e6)), loss, ..Link::with_delay(10) }
}

#[test]
fn the_largest_size_that_passes_is_found_at_the_start() {
    for (mtu, expect) in
        [(1228, 1200), (1280, 1252), (1400, 1372), (1500, 1472), (9000, 8972), (12_000, 8972)]
    {
        for loss in [0.0, 0.05] {
            let mut pair = Pair::connected(&Config::default(), &link(mtu, loss), 3);
            transfer(&mut pair, 0, 200);
            let s = pair.nodes[0].connection().stats();
            assert_eq!(s.datagram, expect, "MTU {mtu}, loss {loss}");
            if loss == 0.0 && mtu >= 1500 {
                assert_eq!((s.lost_packets, s.probe_timeouts), (0, 0), "a lost probe is no lost packet");
            }
        }
    }
}

#[test]
#[cfg_attr(not(feature = "control"), ignore = "as fast as that is only the control of §9")]
fn bulk_runs_at_full_size_after_three_round_trips() {
    let mut pair = Pair::connected(&Config::default(), &link(1500, 0.0), 1);
    for tag in 0..100 {
        pair.nodes[0].connection().send_block(tag, BLOCK, 0).unwrap();
    }
    pair.run(Duration::from_millis(65), |_| false);
    assert_eq!(pair.nodes[0].connection().stats().datagram, 1472);
    pair.nodes[0].captured = Some(std::vec::Vec::new());
    pair.run(Duration::from_millis(100), |_| false);
    let captured = pair.nodes[0].captured.take().unwrap();
    let full = captured.iter().filter(|d| d.len() == 1472).count();
    assert!(full * 100 > captured.len() * 90, "{full} of {}", captured.len());
}

#[test]
fn an_mtu_that_falls_in_the_middle_of_a_transfer_stops_it_for_a_moment_only() {
    for (falls_to, expect) in [(1300, 1252), (1228, 1200), (1492, 1464)] {
        for loss in [0.0, 0.05] {
            let mut pair = Pair::connected(&Config::default(), &link(1500, loss), 5);
            let usual = transfer(&mut pair, 0, 300);
            assert_eq!(pair.nodes[0].connection().stats().datagram, 1472);
            pair.nodes[0].link.max_datagram = falls_to - 28;
            let took = transfer(&mut pair, 300, 300);
            std::println!("MTU 1500 -> {falls_to}, loss {loss}: {took:?}, before the change {usual:?}");
            assert_eq!(pair.nodes[0].connection().stats().datagram, expect, "MTU {falls_to}, loss {loss}");
            assert!(took < usual + Duration::from_millis(600), "{took:?} after {usual:?}");
        }
    }
}

#[test]
fn what_the_host_refuses_is_not_tried_again_soon() {
    let mut pair = Pair::connected(&Config::default(), &link(1500, 0.0), 1);
    let now = pair.now;
    pair.nodes[0].connection().on_too_large(now, 4052);
    pair.nodes[0].captured = Some(std::vec::Vec::new());
    transfer(&mut pair, 0, 100);
    let captured = pair.nodes[0].captured.take().unwrap();
    assert_eq!(captured.iter().map(std::vec::Vec::len).max(), Some(1472));
    let now = pair.now;
    pair.nodes[0].connection().on_too_large(now, 1472);
    assert_eq!(pair.nodes[0].connection().stats().datagram, 1200);
    transfer(&mut pair, 100, 100);
    assert_eq!(pair.nodes[0].connection().stats().datagram, 1464);
}
