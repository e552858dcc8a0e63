//! quinn's controllers on simulated paths, beside each other and beside ours.

mod common;

use std::time::Duration;

use common::run;
use utp2_sim::{FlowConfig, Protocol, Scenario};

const MBIT: u64 = 1_000_000;

fn of(protocol: Protocol, rate: u64, rtt_ms: u64, loss: f64, seconds: u64) -> Scenario {
    let mut s = Scenario::new(rate, Duration::from_millis(rtt_ms), loss, 0).for_seconds(seconds);
    s.flows[0].protocol = protocol;
    s
}

#[test]
fn the_small_cubic_does_as_quinns() {
    // A clean link is filled by both; a hundredth of loss takes nearly all from both.
    for (loss, seconds, share) in [(0.0, 20, 0.9..1.1), (0.01, 60, 0.01..0.08)] {
        let [ours, quinns] = [Protocol::Cubic, Protocol::QuinnCubic].map(|p| {
            let outcome = run(p.name(), &of(p, 50 * MBIT, 60, loss, seconds));
            assert!(share.contains(&outcome.utilization), "{outcome}");
            outcome.utilization
        });
        assert!((0.4..2.5).contains(&(ours / quinns)), "{ours} {quinns}");
    }
}

#[test]
fn bbr_keeps_its_rate_under_loss_and_a_full_queue() {
    let outcome = run("quinn-bbr", &of(Protocol::QuinnBbr, 50 * MBIT, 40, 0.01, 20));
    assert!(outcome.utilization > 0.8, "{outcome}");
    assert!(outcome.self_loss > 0.02, "{outcome}");
}

#[test]
fn a_counted_transfer_ends() {
    let mut s = of(Protocol::QuinnNewReno, 20 * MBIT, 30, 0.002, 0);
    s.seconds = None;
    s.flows[0].bytes = 3_000_001;
    let outcome = run("quinn-newreno", &s);
    assert_eq!(outcome.flows[0].received, 3_000_001);
}

#[test]
fn the_same_seed_gives_the_same() {
    let mut s = of(Protocol::QuinnBbr, 20 * MBIT, 20, 0.02, 5);
    s.flows.push(FlowConfig::cubic(Duration::from_secs(1)));
    assert_eq!(s.run(), s.run());
}
