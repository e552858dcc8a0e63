//! What CUBIC makes of simulated paths, so that it may be a measure for others.

mod common;

use std::time::Duration;

use common::run;
use utp2_sim::{FlowConfig, Scenario};

const MBIT: u64 = 1_000_000;

fn cubic(rate: u64, rtt_ms: u64, loss: f64, seconds: u64) -> Scenario {
    let mut s = Scenario::new(rate, Duration::from_millis(rtt_ms), loss, 0).for_seconds(seconds);
    s.flows = vec![FlowConfig::cubic(Duration::ZERO)];
    s
}

#[test]
fn a_clean_link_is_filled() {
    let outcome = run("100 Mbit/s, 50 ms, clean", &cubic(100 * MBIT, 50, 0.0, 60));
    assert!(outcome.utilization > 0.97, "{outcome}");
    // A queue of one round trip stands most of the time, as it does before TCP.
    assert!(outcome.steady.queue.mean_ms > 20.0, "{outcome}");
    assert!(outcome.steady.self_loss < 0.002, "{outcome}");
}

#[test]
fn a_hundredth_of_loss_is_its_end() {
    // RFC 9438 §4.3: about sqrt(3/2 / p) segments a round trip where Reno's law holds: 1.4 Mbit/s.
    let outcome = run("100 Mbit/s, 100 ms, 1 %", &cubic(100 * MBIT, 100, 0.01, 120));
    let mbit = outcome.steady.goodput * 8.0 / 1e6;
    assert!((0.9..2.6).contains(&mbit), "{outcome}");
}

#[test]
fn what_was_asked_for_arrives_once() {
    let mut s = cubic(20 * MBIT, 30, 0.02, 0);
    s.seconds = None;
    s.flows[0].bytes = 2_000_000;
    let outcome = run("2 MB, 20 Mbit/s, 30 ms, 2 %", &s);
    assert_eq!(outcome.flows[0].received, 2_000_000);
}

#[test]
fn two_share() {
    let mut s = cubic(100 * MBIT, 40, 0.0, 120);
    s.flows.push(FlowConfig::cubic(Duration::from_secs(5)));
    s.steady_from = Some(Duration::from_secs(60));
    let outcome = run("2 flows, 100 Mbit/s, 40 ms", &s);
    assert!(outcome.jain > 0.9 && outcome.utilization > 0.95, "{outcome}");
}

#[test]
fn marks_do_for_losses() {
    let mut s = cubic(100 * MBIT, 40, 0.0, 60);
    s.forward.discipline = utp2_sim::Discipline::codel(true);
    s.cubic_ecn = true;
    let outcome = run("CoDel with ECN, 100 Mbit/s, 40 ms", &s);
    assert!(outcome.forward.marked > 10 && outcome.steady.self_loss < 0.001, "{outcome}");
    assert!(outcome.utilization > 0.8 && outcome.steady.queue.mean_ms < 15.0, "{outcome}");
}

#[test]
fn one_beside_utp2() {
    let mut s = cubic(50 * MBIT, 40, 0.0, 30);
    s.flows.push(FlowConfig { mode: utp2::Mode::Fair, ..FlowConfig::endless() });
    let outcome = run("CUBIC and µTP2 fair", &s);
    assert!(outcome.utilization > 0.9, "{outcome}");
    assert!(outcome.flows.iter().all(|f| f.received > 1_000_000), "{outcome}");
}
