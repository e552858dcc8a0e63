//! Several flows on one bottleneck in virtual time (PROTOCOL.md §9.2, §9.9): own ones, and a TCP CUBIC beside one.

use std::time::Duration;

use utp2::Mode;
use utp2_sim::{FlowConfig, Outcome, Scenario};

const MBIT: u64 = 1_000_000;
const SEEDS: [u64; 3] = [1, 2, 3];

fn run(what: &str, mut scenario: Scenario, from: u64, seconds: u64) -> Outcome {
    scenario.steady_from = Some(Duration::from_secs(from));
    let outcome = scenario.for_seconds(seconds).run();
    let rates: Vec<f64> = outcome.flows.iter().map(|f| (f.steady * 8.0 / 1e5).round() / 10.0).collect();
    println!("{what}: {outcome} {rates:?}");
    outcome
}

fn path(seed: u64, queue_bdp: f64, loss: f64) -> Scenario {
    let mut s = Scenario::new(50 * MBIT, Duration::from_millis(50), loss, 0).with_queue_bdp(queue_bdp);
    s.seed = seed;
    s
}

#[test]
fn own_flows_share_equally() {
    for seed in SEEDS {
        for flows in [2, 4] {
            let mut s = path(seed, 0.5, 0.0);
            s.flows = (0..flows)
                .map(|i| FlowConfig { start: Duration::from_secs(i), ..FlowConfig::endless() })
                .collect();
            let o = run(&format!("{flows} flows, seed {seed}"), s, 25, 45);
            assert!(o.jain >= 0.95, "{o}");
            assert!(o.utilization > 0.95, "{o}");
            assert!(o.self_loss < 0.02, "{o}");
        }
    }
}

/// Each learns what the queue holds, whatever it was doing when that overflowed: who does not know it would take several
/// times the share of those who do. Whether all lose something at a moment when they look differs by when they begin.
#[test]
fn flows_that_begin_one_after_the_other_share_equally() {
    for gap in [700, 950, 1050] {
        let mut s = path(1, 0.5, 0.0);
        (s.forward.rate_bps, s.reverse.rate_bps) = (100 * MBIT, 100 * MBIT);
        s = s.with_queue_bdp(0.5);
        let start = |i: u64| Duration::from_millis(gap * i);
        s.flows = (0..4).map(|i| FlowConfig { start: start(i), ..FlowConfig::endless() }).collect();
        let o = run(&format!("4 flows, {gap} ms apart"), s, 25, 40);
        assert!(o.jain >= 0.95, "{o}");
        assert!(o.utilization > 0.98, "{o}");
    }
}

/// Many flows, each with a few dozen packets in flight, behind queues shorter and longer than they would aim at. Each
/// begins while those before it hold a queue, and has to find out how long the path is without.
#[test]
fn sixteen_flows_share_equally() {
    for (seed, bdp) in [(1, 0.5), (2, 0.5), (3, 1.0), (3, 2.0)] {
        let mut s = path(seed, bdp, 0.0);
        (s.forward.rate_bps, s.reverse.rate_bps) = (100 * MBIT, 100 * MBIT);
        s = s.with_queue_bdp(bdp);
        s.flows =
            (0..16).map(|i| FlowConfig { start: Duration::from_secs(i), ..FlowConfig::endless() }).collect();
        let o = run(&format!("16 flows, queue {bdp} BDP, seed {seed}"), s, 76, 106);
        assert!(o.jain >= 0.95, "{o}");
        assert!(o.utilization > 0.97, "{o}");
        assert!(o.steady.self_loss < 0.01, "{o}");
    }
}

/// While the others begin, one flow is driven down to two packets in a round trip. It gets its share again: what it
/// takes for a queue to come must not be the grain of its own packets.
#[test]
fn a_flow_at_the_lowest_rate_gets_its_share_again() {
    let mut s = path(3, 0.5, 0.0);
    (s.forward.rate_bps, s.reverse.rate_bps) = (100 * MBIT, 100 * MBIT);
    s = s.with_queue_bdp(0.5);
    s.flows =
        (0..16).map(|i| FlowConfig { start: Duration::from_secs(i), ..FlowConfig::endless() }).collect();
    let o = run("16 flows, one at the lowest rate", s, 60, 75);
    assert!(o.jain >= 0.95, "{o}");
    assert!(o.steady.self_loss < 0.01, "{o}");
}

fn beside_cubic(seed: u64, mode: Mode, ours_first: bool) -> (f64, Outcome) {
    let mut s = path(seed, 1.0, 0.0);
    let late = Duration::from_secs(5);
    let (ours, theirs) = if ours_first { (Duration::ZERO, late) } else { (late, Duration::ZERO) };
    s.flows = vec![FlowConfig { mode, start: ours, ..FlowConfig::endless() }, FlowConfig::cubic(theirs)];
    let o = run(&format!("{mode:?}, ours first {ours_first}, seed {seed}"), s, 40, 100);
    (o.flows[0].steady / (o.flows[0].steady + o.flows[1].steady), o)
}

#[test]
fn fair_shares_with_cubic_whoever_begins() {
    for seed in SEEDS {
        for ours_first in [true, false] {
            let (share, o) = beside_cubic(seed, Mode::Fair, ours_first);
            assert!((0.25..0.75).contains(&share), "{share}: {o}");
        }
    }
}

#[test]
fn background_leaves_the_link_to_cubic() {
    for ours_first in [true, false] {
        let (share, o) = beside_cubic(1, Mode::Background, ours_first);
        assert!(share < 0.1, "{share}: {o}");
    }
    let mut s = path(1, 1.0, 0.0);
    s.flows = vec![FlowConfig { mode: Mode::Background, ..FlowConfig::endless() }];
    let o = run("background alone", s, 10, 30);
    assert!(o.utilization > 0.85, "{o}");
}
