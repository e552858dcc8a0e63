//! Whole transfers in virtual time. Each prints its outcome (`--nocapture`); run one alone to see its cost.

mod common;

use std::time::Duration;

use utp2_sim::{FlowConfig, Loss, Outcome, Scenario, Stop};

const MBIT: u64 = 1_000_000;
const GBIT: u64 = 1_000_000_000;
const MB: u64 = 1_000_000;

/// Runs it to its end, in which everything has arrived.
fn run(what: &str, scenario: &Scenario) -> Outcome {
    let outcome = common::run(what, scenario);
    assert_eq!(outcome.stop, Stop::Done, "{outcome}");
    outcome
}

#[test]
fn a_gigabyte_over_5_percent_loss_and_100_ms() {
    let scenario = Scenario::new(GBIT, Duration::from_millis(100), 0.05, 1000 * MB);
    let outcome = run("1 GB, 1 Gbit/s, 100 ms, 5 %", &scenario);
    assert!(outcome.utilization > 0.90, "{outcome}");
    assert!(outcome.retransmit_ratio < 0.12, "{outcome}");
}

#[test]
fn a_long_fat_path_with_1_percent_loss() {
    let scenario = Scenario::new(GBIT, Duration::from_millis(200), 0.01, 1000 * MB);
    let outcome = run("1 GB, 1 Gbit/s, 200 ms, 1 %", &scenario);
    assert!(outcome.utilization > 0.90, "{outcome}");
}

#[test]
fn a_clean_path_is_filled_and_not_flooded() {
    let scenario = Scenario::new(100 * MBIT, Duration::from_millis(50), 0.0, 200 * MB);
    let outcome = run("200 MB, 100 Mbit/s, 50 ms, clean", &scenario);
    assert!(outcome.utilization > 0.95, "{outcome}");
    assert!(outcome.retransmit_ratio < 0.05, "{outcome}");
}

#[test]
fn a_third_lost() {
    let scenario = Scenario::new(20 * MBIT, Duration::from_millis(60), 0.30, 20 * MB);
    run("20 MB, 20 Mbit/s, 60 ms, 30 %", &scenario);
}

#[test]
fn bursts_of_loss() {
    let mut scenario = Scenario::new(50 * MBIT, Duration::from_millis(40), 0.0, 50 * MB);
    scenario.forward.loss = Loss::GilbertElliott { to_bad: 0.005, to_good: 0.1, good: 0.0, bad: 0.7 };
    scenario.reverse.loss = scenario.forward.loss;
    run("50 MB, 50 Mbit/s, 40 ms, bursts of 3.3 %", &scenario);
}

#[test]
fn reordered_duplicated_and_corrupted() {
    let mut scenario = Scenario::new(100 * MBIT, Duration::from_millis(30), 0.01, 50 * MB);
    for link in [&mut scenario.forward, &mut scenario.reverse] {
        link.reorder = 0.25;
        link.reorder_by = Duration::from_millis(5);
        link.duplicate = 0.01;
        link.corrupt = 0.01;
    }
    let outcome = run("50 MB, 100 Mbit/s, 30 ms, everything", &scenario);
    assert!(outcome.forward.reordered > 1000 && outcome.forward.duplicated > 100, "{outcome:?}");
    assert!(outcome.forward.corrupted > 100, "{outcome:?}");
}

#[test]
fn two_flows_share_the_bottleneck() {
    let mut scenario = Scenario::new(100 * MBIT, Duration::from_millis(40), 0.0, 0);
    scenario.flows = vec![
        FlowConfig::new(150 * MB),
        FlowConfig { start: Duration::from_secs(2), ..FlowConfig::new(150 * MB) },
    ];
    let outcome = run("2 × 150 MB, 100 Mbit/s, 40 ms", &scenario);
    assert!(outcome.jain > 0.8, "{outcome}");
}

#[test]
fn nothing_is_left_to_chance() {
    let mut scenario = Scenario::new(50 * MBIT, Duration::from_millis(20), 0.03, 5 * MB);
    scenario.forward.reorder = 0.1;
    scenario.forward.reorder_by = Duration::from_millis(3);
    let first = scenario.run();
    assert_eq!(first, scenario.run(), "the same seed gives the same outcome");
    scenario.seed += 1;
    assert_ne!(first.forward, scenario.run().forward, "another seed gives another");
}

#[test]
fn a_dead_path_is_told_from_a_slow_one() {
    let mut scenario = Scenario::new(50 * MBIT, Duration::from_millis(20), 1.0, MB);
    scenario.time_max = Duration::from_secs(60);
    let outcome = scenario.run();
    assert!(!outcome.intact);
    assert!(outcome.flows[0].fault.as_deref().is_some_and(|f| f.contains("handshake")), "{outcome}");
}
