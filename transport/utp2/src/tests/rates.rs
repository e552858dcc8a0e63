//! How fast, on links with a bottleneck: the honest figures of this controller, kept from getting worse.

use core::time::Duration;
use std::println;

use super::pair::{Link, Pair};
use crate::{Config, Event, Mode};

/// Share of the ceiling reached in the second half of `seconds`.
fn steady(mbit: f64, rtt_ms: u64, loss: f64, bdp: f64, seconds: u64) -> f64 {
    let rate = mbit * 1e6 / 8.0;
    let queue = (rate * rtt_ms as f64 / 1e3 * bdp).max(30_000.0);
    let link = Link { bottleneck: Some((rate, queue)), loss, ..Link::with_delay(rtt_ms / 2) };
    steady_on(link, Duration::ZERO, seconds)
}

/// As [`steady`], on any link with a bottleneck, between machines that stall.
fn steady_on(link: Link, stall: Duration, seconds: u64) -> f64 {
    let (rate, queue) = link.bottleneck.unwrap();
    let loss = link.loss;
    let config = Config {
        max_datagram: 1452,
        receive_window: 1 << 28,
        max_queued_blocks: 1 << 20,
        ..Config::default()
    };
    let mut pair = Pair::connected(&config, &link.clone(), 1);
    pair.nodes.iter_mut().for_each(|n| n.blocks.count_only = true);
    pair.stall = stall;
    pair.segments = 64;
    let mut tag = 0;
    let mut half = 0;
    for step in 0..seconds * 20 {
        let c = pair.nodes[0].connection();
        let ahead = rate * (0.3 + 4.0 * link.delay.as_secs_f64() * 2.0);
        while c.queued_blocks() < 2 + (ahead / 32768.0) as usize {
            c.send_block(tag, 32 * 1024, 0).unwrap();
            tag += 1;
        }
        pair.run(Duration::from_millis(50), |_| false);
        pair.nodes[0].events.truncate(1);
        if step == seconds * 10 - 1 {
            half = pair.nodes[1].blocks.fresh;
        }
        if std::env::var_os("UTP2_TRACE").is_some() && step % 10 == 0 {
            let s = pair.nodes[0].connection().stats();
            println!(
                "{:6.2}s {:?} rate {:.1} delivered {:.1} Mbit/s rtt {:?} min {:?} lost {} spurious {} base loss {} ppm flight {}",
                step as f64 / 20.0,
                s.state,
                s.rate as f64 * 8e-6,
                s.delivered_rate as f64 * 8e-6,
                s.rtt,
                s.rtt_min,
                s.lost_packets,
                s.spurious_losses,
                s.base_loss_ppm,
                s.bytes_in_flight
            );
        }
    }
    let fresh = pair.nodes[1].blocks.fresh - half;
    let s = pair.nodes[0].connection().stats();
    assert_eq!(pair.nodes[0].count(|e| matches!(e, Event::Closed(_))), 0);
    let ceiling = rate * (1452.0 - 37.0) / 1452.0 * (1.0 - loss);
    let share = fresh as f64 / (seconds as f64 / 2.0) / ceiling;
    println!(
        "{} Mbit/s {:?} loss {loss} queue {:.1} ms jitter {:?} stall {stall:?}: {:.1} %, {} dropped of {}, rtt {:?}, spurious {}",
        rate * 8e-6,
        s.rtt_min,
        queue / rate * 1e3,
        link.jitter,
        share * 100.0,
        pair.nodes[0].link.dropped,
        s.sent_packets,
        s.rtt,
        s.spurious_losses
    );
    share
}

#[test]
fn slow_link_with_and_without_loss() {
    assert!(steady(20.0, 50, 0.0, 1.0, 20) > 0.9);
    assert!(steady(20.0, 50, 0.02, 1.0, 20) > 0.85);
}

#[test]
fn a_hundred_megabits_with_five_percent_loss() {
    assert!(steady(100.0, 100, 0.05, 0.5, 20) > 0.85);
}

#[test]
fn a_gigabit_over_200_ms_with_one_percent_loss() {
    assert!(steady(1000.0, 200, 0.01, 0.5, 16) > 0.85);
}

#[test]
#[ignore = "a table for people, half a minute"]
fn table() {
    let ms = Duration::from_millis;
    for (mbit, rtt, loss, bdp) in [
        (1000.0, 200, 0.0, 0.02),
        (1000.0, 200, 0.01, 0.02),
        (1000.0, 200, 0.01, 0.1),
        (1000.0, 200, 0.05, 0.5),
        (1000.0, 20, 0.0, 0.1),
        (1000.0, 20, 0.01, 0.5),
        (100.0, 100, 0.0, 0.1),
        (100.0, 100, 0.05, 0.1),
        (100.0, 100, 0.05, 2.0),
        (10.0, 600, 0.0, 0.5),
        (10.0, 600, 0.05, 0.5),
        (100.0, 2, 0.0, 1.0),
        (100.0, 2, 0.01, 5.0),
        (5.0, 40, 0.1, 1.0),
    ] {
        steady(
            mbit,
            rtt,
            loss,
            bdp,
            if rtt > 300 {
                60
            } else if mbit > 500.0 {
                12
            } else {
                20
            },
        );
    }
    for (jitter, loss) in [(2, 0.0), (2, 0.01), (10, 0.0), (10, 0.01), (30, 0.0), (30, 0.01)] {
        let link =
            Link { bottleneck: Some((12.5e6, 600e3)), loss, jitter: ms(jitter), ..Link::with_delay(50) };
        steady_on(link, Duration::ZERO, 20);
    }
    for stall in [0, 2, 5, 10, 20, 40] {
        let link =
            Link { bottleneck: Some((400e6, 4e6)), delay: Duration::from_micros(50), ..Link::default() };
        steady_on(link, ms(stall), 3);
    }
}

#[test]
fn a_fast_local_path_between_machines_that_stall() {
    // Each is awake two thirds of the time, so four ninths are the most without a buffer.
    let link = Link { bottleneck: Some((100e6, 4e6)), delay: Duration::from_micros(50), ..Link::default() };
    assert!(steady_on(link, Duration::from_millis(20), 3) > 0.35);
}

/// Bytes each of several connections between the same two nodes got through in the last third; they start one
/// after the other.
fn shares(link: &Link, modes: &[Mode], seconds: u64) -> std::vec::Vec<f64> {
    let config = Config {
        max_datagram: 1452,
        receive_window: 1 << 28,
        max_queued_blocks: 1 << 20,
        ..Config::default()
    };
    let mut pair = Pair::connected(&config, link, 1);
    pair.nodes.iter_mut().for_each(|n| n.blocks.count_only = true);
    let mut handles = std::vec![pair.nodes[0].handle()];
    let mut before = std::vec::Vec::new();
    for step in 0..seconds * 20 {
        if step > 0 && step % 40 == 0 && handles.len() < modes.len() {
            handles.push(pair.connect());
        }
        for (h, mode) in handles.iter().zip(modes) {
            let c = pair.nodes[0].endpoint.connection_mut(*h).unwrap();
            c.set_mode(*mode);
            for tag in 0..200 {
                // Not yet established ones refuse.
                let _ = c.send_block(step << 16 | tag, 32 * 1024, 0);
                if c.queued_blocks() > 100 {
                    break;
                }
            }
        }
        pair.run(Duration::from_millis(50), |_| false);
        pair.nodes.iter_mut().for_each(|n| n.events.truncate(1));
        if step == seconds * 40 / 3 {
            let sent = |h: &_| pair.nodes[0].endpoint.connection(*h).unwrap().stats();
            before = handles.iter().map(|h| sent(h).data_bytes_sent - sent(h).retransmitted_bytes).collect();
        }
    }
    let stats = handles.iter().map(|h| pair.nodes[0].endpoint.connection(*h).unwrap().stats());
    let got = stats.zip(before).map(|(s, b)| (s.data_bytes_sent - s.retransmitted_bytes - b) as f64);
    let got: std::vec::Vec<f64> = got.collect();
    println!(
        "{modes:?}: {:?} MB, {} dropped",
        got.iter().map(|g| g / 1e6).collect::<std::vec::Vec<_>>(),
        pair.nodes[0].link.dropped
    );
    got
}

/// Jain's index: 1 when all have the same, 1/n when one has it all.
fn jain(got: &[f64]) -> f64 {
    let (sum, squares) = got.iter().fold((0.0, 0.0), |a, g| (a.0 + g, a.1 + g * g));
    sum * sum / (squares * got.len() as f64)
}

#[test]
fn connections_of_one_endpoint_share_a_link() {
    let link = Link { bottleneck: Some((5e6, 300e3)), ..Link::with_delay(20) };
    let got = shares(&link, &[Mode::Full; 3], 30);
    assert!(jain(&got) > 0.7, "{got:?}");
    assert!(got.iter().sum::<f64>() > 5e6 * 10.0 * 0.9 * 0.9);
}

#[test]
fn background_yields_to_full_and_takes_all_when_alone() {
    let link = Link { bottleneck: Some((5e6, 300e3)), ..Link::with_delay(20) };
    for modes in [[Mode::Background, Mode::Full], [Mode::Full, Mode::Background]] {
        let got = shares(&link, &modes, 30);
        let full = got[usize::from(modes[0] == Mode::Background)];
        assert!(full > 0.75 * got.iter().sum::<f64>(), "{modes:?} {got:?}");
    }
    assert!(shares(&link, &[Mode::Background], 12)[0] > 5e6 * 4.0 * 0.8);
}

#[test]
fn a_rate_limit_holds_from_the_first_packet_and_can_be_lifted() {
    let link = Link { bottleneck: Some((12.5e6, 300e3)), ..Link::with_delay(10) };
    let config = Config { rate_limit: Some(1_000_000), ..Config::default() };
    let mut pair = Pair::connected(&config, &link, 1);
    for tag in 0..1500 {
        pair.nodes[0].connection().send_block(tag, 32 * 1024, 0).unwrap();
    }
    for second in 1..=4u64 {
        pair.run(Duration::from_secs(1), |_| false);
        let fresh = pair.nodes[1].blocks.fresh;
        assert!((second * 900_000..=second * 1_010_000).contains(&fresh), "{fresh} after {second} s");
    }
    pair.nodes[0].connection().set_rate_limit(None);
    pair.run_until(Duration::from_secs(8), |p| {
        p.nodes[0].count(|e| matches!(e, Event::BlockSent { .. })) == 1500
    });
}
