//! What acknowledgements cost the way back, and what reordering, repetition and ECN marks do to a transfer. Prints its
//! figures (`--nocapture`).

use std::time::Duration;

use utp2_sim::{Discipline, Outcome, Scenario, Stop};

const MBIT: u64 = 1_000_000;

fn run(what: &str, scenario: &Scenario) -> Outcome {
    let outcome = scenario.run();
    let s = &outcome.flows[0].counters;
    println!(
        "{what}: {:.1} % whole, {:.1} % steady, reverse {:.2} % of forward, sent again {:.2} %, lost {}, spurious {:.3} %, in {:.2} s",
        outcome.utilization_whole * 100.0,
        outcome.utilization * 100.0,
        reverse_share(&outcome) * 100.0,
        outcome.retransmit_ratio * 100.0,
        s.lost_packets,
        s.spurious_losses as f64 / s.sent_packets as f64 * 100.0,
        outcome.seconds,
    );
    assert_eq!(outcome.stop, Stop::Done, "{outcome}");
    assert!(outcome.intact, "{outcome}");
    outcome
}

/// Bytes on the wire of the way back per byte on the way there.
fn reverse_share(outcome: &Outcome) -> f64 {
    let wire = |bytes: u64, datagrams: u64| (bytes + datagrams * 66) as f64;
    let (f, r) = (outcome.forward, outcome.reverse);
    wire(r.bytes, r.datagrams) / wire(f.bytes, f.datagrams)
}

fn cells(cells: &[(u64, u64, f64, u64)]) {
    for &(mbit, rtt, loss, megabytes) in cells {
        let scenario = Scenario::new(mbit * MBIT, Duration::from_millis(rtt), loss, megabytes * 1_000_000)
            .with_queue_bdp(0.5);
        let what = format!("{mbit} Mbit/s, {rtt} ms, {} %", loss * 100.0);
        let outcome = run(&what, &scenario);
        assert!(reverse_share(&outcome) < 0.01, "{what}: {}", reverse_share(&outcome));
    }
}

#[test]
fn acknowledgements_cost_less_than_one_percent() {
    cells(&[
        (20, 1, 0.0, 10),
        (20, 1, 0.05, 10),
        (20, 50, 0.01, 10),
        (20, 500, 0.0, 20),
        (20, 500, 0.05, 30),
        (100, 1, 0.01, 20),
        (100, 200, 0.05, 60),
        (1000, 1, 0.01, 100),
        (1000, 50, 0.05, 100),
    ]);
}

#[test]
#[ignore = "measures gigabytes for minutes, for people"]
fn acknowledgements_of_fast_paths() {
    cells(&[
        (1000, 200, 0.05, 500),
        (10_000, 1, 0.0, 1000),
        (10_000, 50, 0.05, 1500),
        (10_000, 200, 0.01, 3000),
    ]);
}

fn reordering(mbit: u64, rtt: u64, share: f64, by_ms: u64, megabytes: u64) -> Outcome {
    let mut scenario = Scenario::new(mbit * MBIT, Duration::from_millis(rtt), 0.0, megabytes * 1_000_000)
        .with_queue_bdp(0.5);
    scenario.forward.reorder = share;
    scenario.forward.reorder_by = Duration::from_millis(by_ms);
    let what = format!("{mbit} Mbit/s, {rtt} ms, {} % late by {by_ms} ms", share * 100.0);
    run(&what, &scenario)
}

fn spurious(outcome: &Outcome) -> f64 {
    let s = &outcome.flows[0].counters;
    s.spurious_losses as f64 / s.sent_packets as f64
}

#[test]
fn reordered_packets_are_rarely_sent_again_and_are_no_congestion() {
    for rtt in [50, 200] {
        let outcome = reordering(200, rtt, 0.02, 10, 120);
        assert!(spurious(&outcome) < 0.01, "{outcome}");
        assert!(outcome.utilization > 0.95, "{outcome}");
    }
    let outcome = reordering(100, 20, 0.25, 5, 50);
    assert!(spurious(&outcome) < 0.01 && outcome.utilization > 0.9, "{outcome}");
}

#[test]
#[ignore = "measures a gigabyte, for people"]
fn reordering_at_a_gigabit() {
    for rtt in [50, 200] {
        let outcome = reordering(1000, rtt, 0.02, 10, 1000);
        assert!(spurious(&outcome) < 0.01 && outcome.utilization > 0.95, "{outcome}");
    }
}

#[test]
fn repeated_packets_and_lost_acknowledgements_change_little() {
    let mut scenario =
        Scenario::new(100 * MBIT, Duration::from_millis(50), 0.0, 60_000_000).with_queue_bdp(0.5);
    scenario.forward.duplicate = 0.01;
    scenario.reverse = scenario.reverse.clone().with_loss(0.05);
    let outcome = run("100 Mbit/s, 50 ms, 1 % twice, 5 % of ACKs lost", &scenario);
    assert!(spurious(&outcome) < 0.001, "{outcome}");
    assert!(outcome.utilization > 0.95 && outcome.retransmit_ratio < 0.03, "{outcome}");
}

#[test]
fn the_last_round_trip_is_not_slow() {
    // The rate is given, so that only the repair of losses makes the difference.
    let seconds = |loss: f64| {
        let mut scenario =
            Scenario::new(100 * MBIT, Duration::from_millis(100), loss, 8_000_000).with_queue_bdp(1.0);
        scenario.flows[0].rate_limit = Some(4_000_000);
        let per_seed = (0..16).map(|seed| {
            let flow = &Scenario { seed, ..scenario.clone() }.run().flows[0];
            (flow.completed.expect("it ended") - flow.connected.expect("it began")).as_secs_f64()
        });
        per_seed.sum::<f64>() / 16.0
    };
    let (clean, lossy) = (seconds(0.0), seconds(0.05));
    let tail = lossy - clean - 0.05 * 2.0;
    println!(
        "8 MB at 4 MB/s, 100 ms: {clean:.2} s clean, {lossy:.2} s with 5 % loss: the end took {tail:.2} s"
    );
    assert!(tail < 0.25, "{lossy} {clean}");
}

#[test]
fn congestion_marks_replace_drops_on_a_path_that_marks() {
    let mut scenario =
        Scenario::new(50 * MBIT, Duration::from_millis(40), 0.0, 30_000_000).with_queue_bdp(4.0);
    scenario.forward.discipline = Discipline::codel(true);
    let outcome = run("50 Mbit/s, 40 ms, CoDel that marks", &scenario);
    println!("marked {}, dropped {}", outcome.forward.marked, outcome.forward.aqm_drops);
    assert!(outcome.forward.marked > 0 && outcome.forward.aqm_drops == 0, "{outcome}");
}
