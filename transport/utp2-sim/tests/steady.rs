//! The steady part of transfers in virtual time (PROTOCOL.md §9): how much of a path is used, and what is lost of our
//! own making. Small scale; the same at full scale is a command (docs/transport-performance.md).

use std::time::Duration;

use utp2_sim::{FlowConfig, Jitter, Loss, Outcome, Scenario};

const MBIT: u64 = 1_000_000;
const SEEDS: [u64; 3] = [1, 2, 3];

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Runs for `seconds` and looks at the part from the fifth on.
fn steady(what: &str, scenario: &Scenario, seconds: u64) -> Outcome {
    let mut scenario = scenario.clone();
    scenario.steady_from = Some(Duration::from_secs(5).max(scenario.steady_from()));
    let outcome = scenario.for_seconds(seconds).run();
    println!("{what}: {outcome}");
    outcome
}

#[test]
fn half_a_bdp_of_queue_is_enough_whatever_is_lost() {
    for seed in SEEDS {
        for loss in [0.0, 0.01, 0.05] {
            let mut s = Scenario::new(100 * MBIT, ms(50), loss, 0).with_queue_bdp(0.5);
            s.seed = seed;
            let o = steady(&format!("{loss}, seed {seed}"), &s, 15);
            assert!(o.utilization > 0.97, "{o}");
            assert!(o.self_loss < 0.005, "{o}");
            assert!(o.steady.retransmit_ratio < loss + 0.01, "{o}");
        }
    }
}

/// A queue of half a millisecond or so, half of which is one burst; and the same where delays vary by themselves.
#[test]
fn a_near_path_is_filled_by_the_queue_it_has() {
    for (rtt_us, loss, jitter_us, least) in [
        (1000, 0.0, 0, 0.998),
        (1000, 0.01, 0, 0.99),
        (1000, 0.05, 0, 0.985),
        (1000, 0.01, 100, 0.985),
        (3000, 0.01, 0, 0.985),
    ] {
        let mut s = Scenario::new(1000 * MBIT, Duration::from_micros(rtt_us), loss, 0).with_queue_bdp(0.5);
        if jitter_us > 0 {
            s.forward.jitter = Jitter::Uniform(Duration::from_micros(jitter_us));
        }
        s.steady_from = Some(Duration::from_secs(1));
        let o = s.for_seconds(4).run();
        let what = format!("{rtt_us} µs, loss {loss}, jitter {jitter_us} µs: {o}");
        println!("{what}");
        assert!(o.utilization > least, "{what}");
        assert!(o.steady.self_loss < 0.005, "{what}");
    }
}

#[test]
fn bursts_are_chance_too() {
    for seed in SEEDS {
        let mut s = Scenario::new(100 * MBIT, ms(50), 0.0, 0).with_queue_bdp(0.5);

        s.forward.loss = Loss::bursts(0.02, 20.0);
        s.seed = seed;
        s.steady_from = Some(Duration::from_secs(12));
        let o = steady(&format!("bursts, seed {seed}"), &s, 22);
        assert!(o.utilization > 0.90, "{o}");
    }
}

#[test]
fn a_short_queue_is_used_and_a_long_one_is_not_filled() {
    for seed in SEEDS {
        let mut s = Scenario::new(100 * MBIT, ms(100), 0.0, 0).with_queue_bdp(0.02);
        s.seed = seed;
        let o = steady(&format!("2 % of a BDP, seed {seed}"), &s, 15);
        assert!(o.utilization > 0.95, "{o}");
        assert!(o.self_loss < 0.01, "{o}");

        let mut s = Scenario::new(100 * MBIT, ms(50), 0.0, 0).with_queue_bdp(10.0);
        s.flows = vec![FlowConfig { mode: utp2::Mode::Fair, ..FlowConfig::endless() }];
        s.seed = seed;
        let o = steady(&format!("10 BDP, seed {seed}"), &s, 15);
        assert!(o.utilization > 0.97, "{o}");
        assert!(o.steady.queue.standing_ms < 30.0, "{o}");
    }
}

/// Growth alone once seemed to make a queue, and R sank with every cut: 60 % after half a minute.
#[test]
fn a_queue_too_short_to_see_does_not_make_the_rate_sink() {
    let s = Scenario::new(1000 * MBIT, ms(100), 0.01, 0).with_queue_bdp(0.02);
    let o = steady("1 Gbit/s, 2 % of a BDP, 1 %", &s, 18);
    assert!(o.utilization > 0.95, "{o}");
    assert!(o.steady.self_loss < 0.005, "{o}");
}

/// Deep probes that ask for the loss take long on a slow path: they are seldom.
#[test]
fn a_slow_path_loses_little_to_deep_probes() {
    for seed in SEEDS {
        let mut s = Scenario::new(20 * MBIT, ms(50), 0.05, 0).with_queue_bdp(0.5);
        s.seed = seed;
        let o = steady(&format!("20 Mbit/s, seed {seed}"), &s, 20);
        assert!(o.utilization > 0.97, "{o}");
        assert!(o.steady.self_loss < 0.005, "{o}");
    }
}

/// A burst on the way back swallows answers until so many were sent: something has to call for them, and the pause
/// behind it says nothing of the path.
#[test]
fn a_burst_on_the_way_back_is_over_soon() {
    let mut sum = 0.0;
    // Beside the usual ones those that were worst.
    let seeds = [1, 2, 3, 12, 13, 15, 31, 35, 39];
    for seed in seeds {
        let mut s = Scenario::new(100 * MBIT, ms(50), 0.0, 0).with_queue_bdp(0.5);
        (s.forward.loss, s.reverse.loss) = (Loss::bursts(0.02, 20.0), Loss::bursts(0.02, 20.0));
        s.seed = seed;
        let o = steady(&format!("bursts both ways, seed {seed}"), &s, 20);
        assert!(o.utilization > 0.90, "{o}");
        sum += o.utilization;
    }
    let mean = sum / seeds.len() as f64;
    assert!(mean > 0.93, "{mean:.3} on average");
}

/// Half a millisecond of queue, which no delay shows: loss alone bounds the rate.
#[test]
fn a_near_host_behind_a_short_queue_gets_the_rate_and_floods_nobody() {
    for (rate, least, most) in [(20, 0.75, 0.06), (100, 0.92, 0.025), (1000, 0.92, 0.01)] {
        for loss in [0.0, 0.01, 0.05] {
            let s = Scenario::new(rate * MBIT, ms(1), loss, 0).with_queue_bdp(0.5);
            let seconds = if rate == 1000 { 6 } else { 10 };
            let o = steady(&format!("{rate} Mbit/s, 1 ms, {loss}"), &s, seconds);
            assert!(o.utilization > least, "{o}");
            assert!(o.steady.self_loss < most, "{o}");
        }
    }
}

#[test]
fn a_rate_limit_is_kept() {
    for limit in [500_000u64, 5_000_000] {
        let mut s = Scenario::new(100 * MBIT, ms(50), 0.01, 0).with_queue_bdp(0.5);
        s.flows[0].rate_limit = Some(limit);
        let o = steady(&format!("limit {limit}"), &s, 15);
        let sent = o.forward.bytes as f64 / o.seconds;
        assert!(sent < 1.02 * limit as f64, "{sent} of {limit}: {o}");
        assert!(sent > 0.95 * limit as f64, "{sent} of {limit}: {o}");
    }
}
