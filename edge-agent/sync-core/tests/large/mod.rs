//! Large swarms in virtual time: up to ten thousand receivers, each with a bounded set of neighbours.
//!
//! Those marked as measuring take minutes: `cargo test -p sync-core --test swarm -- --ignored --nocapture NAME`.

use std::time::Duration;

use sync_core::NeighbourConfig;

use crate::world::{BLOCK, Link, Step, World};

const MBIT: u64 = 125_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Everybody with the same rate; one-way delays to the middle of the network of 2 to 30 ms.
fn even(n: usize, mbit: u64) -> Vec<Link> {
    let delay = |i: u64| ms(2 + i * 17 % 29);
    (0..=n as u64).map(|i| Link { up: mbit * MBIT, down: mbit * MBIT, delay: delay(i) }).collect()
}

/// A run from one to `n`, everybody limited to the same rate.
#[derive(Clone, Copy)]
struct Case {
    n: usize,
    mib: u64,
    mbit: u64,
    seed: u64,
    /// Every so many-th receiver leaves once, for a while, and returns.
    leave: Option<usize>,
}

/// What came of it.
struct Outcome {
    /// Time of the last receiver, less what it was away itself, as a multiple of size ÷ rate.
    time: f64,
    /// Copies that the source sent.
    copies: f64,
    /// Bytes of messages as a share of what was received.
    messages: f64,
}

fn one_to(case: Case) -> Outcome {
    let Case { n, mib, mbit, seed, leave } = case;
    let blocks = mib * 32;
    let mut world = World::new(seed, blocks, &even(n, mbit));
    world.neighbours = Some(NeighbourConfig::default());
    (0..=n).for_each(|i| world.at(ms(i as u64 % 100), Step::Start(i)));
    let bound = (blocks * BLOCK) as f64 / (mbit * MBIT) as f64;
    let mut away = vec![0.0; n + 1];
    for i in (1..=n).filter(|i| leave.is_some_and(|every| i % every == 0)) {
        // Somewhere in the first three quarters, for up to a fifth of the least time.
        let random = |salt: u64| (seed * 7919 + i as u64 * 104_729 + salt * 1_299_709) % 1000;
        let from = 0.75 * bound * random(1) as f64 / 1000.0 + 0.2;
        away[i] = 0.2 * bound * random(2) as f64 / 1000.0 + 0.1;
        world.at(Duration::from_secs_f64(from), Step::Kill(i));
        world.at(Duration::from_secs_f64(from + away[i]), Step::Start(i));
    }
    let began = std::time::Instant::now();
    let done = std::cell::Cell::new(1);
    world.run(Duration::from_secs(3600), |w| {
        while done.get() <= n && w.done_at(done.get()).is_some() {
            done.set(done.get() + 1);
        }
        done.get() > n
    });
    let time = |i: usize| world.done_at(i).expect("done").as_secs_f64() - away[i];
    let mut times: Vec<f64> = (1..=n).map(|i| time(i) / bound).collect();
    times.sort_by(f64::total_cmp);
    let content = n as f64 * (blocks * BLOCK) as f64;
    let outcome = Outcome {
        time: times[n - 1],
        copies: world.sent[0] as f64 / blocks as f64,
        messages: world.message_bytes as f64 / content,
    };
    let most = (1..=n).map(|i| world.degree(i)).max().expect("one");
    println!(
        "1 → {n}, {mib} MiB at {mbit} Mbit/s{}: size ÷ rate {bound:.2} s; last {:.3} ×, half {:.3} ×, first {:.3} ×; source {:.3} copies until {:.3} ×; {:.2} % twice; messages {:.2} % ({} each); at most {most} neighbours, source {}; {:.0} s",
        if leave.is_some() { ", some leave" } else { "" },
        outcome.time,
        times[n / 2],
        times[0],
        outcome.copies,
        world.source_idle.as_secs_f64() / bound,
        world.duplicates as f64 * 100.0 / n as f64 / blocks as f64,
        outcome.messages * 100.0,
        world.messages / n as u64,
        world.degree(0),
        began.elapsed().as_secs_f64(),
    );
    outcome
}

#[test]
fn one_to_ten() {
    for seed in 1..=3 {
        for leave in [None, Some(3)] {
            let outcome = one_to(Case { n: 10, mib: 64, mbit: 50, seed, leave });
            assert!(outcome.time <= 1.15, "seed {seed}: {} × the bound", outcome.time);
            assert!(outcome.copies <= 1.1, "seed {seed}: {} copies", outcome.copies);
        }
    }
}

#[test]
fn one_to_two_hundred() {
    for leave in [None, Some(3)] {
        let outcome = one_to(Case { n: 200, mib: 24, mbit: 20, seed: 1, leave });
        assert!(outcome.time <= 1.3, "{} × the bound", outcome.time);
        assert!(outcome.copies <= 1.1, "{} copies", outcome.copies);
        assert!(outcome.messages <= 0.01, "{} of the content", outcome.messages);
    }
}

#[test]
#[ignore = "measures for minutes"]
fn one_to_a_thousand() {
    for leave in [None, Some(3)] {
        let outcome = one_to(Case { n: 1000, mib: 24, mbit: 20, seed: 1, leave });
        let most = if leave.is_some() { 1.35 } else { 1.3 };
        assert!(outcome.time <= most && outcome.copies <= 1.1 && outcome.messages <= 0.01);
    }
}

#[test]
#[ignore = "measures for many minutes, and takes 1 GB of memory"]
fn one_to_ten_thousand() {
    let outcome = one_to(Case { n: 10_000, mib: 24, mbit: 20, seed: 1, leave: None });
    assert!(outcome.time <= 1.3 && outcome.copies <= 1.1 && outcome.messages <= 0.01);
}

/// `sites` sites of `each` agents on local networks of 1 Gbit/s, each site behind a link of `mbit` both ways, and the
/// source alone behind another such link. Gives the time of the last receiver as a multiple of size ÷ rate of a link, and
/// the most copies that came into a site.
fn sites(sites: usize, each: usize, mib: u64, mbit: u64, seed: u64) -> (f64, f64) {
    let n = sites * each;
    let local =
        |i: u64| Link { up: 1000 * MBIT, down: 1000 * MBIT, delay: Duration::from_micros(100 + i % 7 * 50) };
    let links: Vec<Link> = (0..=n as u64).map(local).collect();
    let blocks = mib * 32;
    let mut world = World::new(seed, blocks, &links);
    world.neighbours = Some(NeighbourConfig::default());
    world.site(mbit * MBIT, mbit * MBIT, [0]);
    for site in 0..sites {
        world.site(mbit * MBIT, mbit * MBIT, (0..each).map(|i| 1 + site * each + i));
    }
    (0..=n).for_each(|i| world.at(ms(i as u64 * 37 % 1000), Step::Start(i)));
    let done = std::cell::Cell::new(1);
    world.run(Duration::from_secs(3600), |w| {
        while done.get() <= n && w.done_at(done.get()).is_some() {
            done.set(done.get() + 1);
        }
        done.get() > n
    });
    let bound = (blocks * BLOCK) as f64 / (mbit * MBIT) as f64;
    let last = (1..=n).filter_map(|i| world.done_at(i)).max().expect("one").as_secs_f64() / bound;
    let copies = world.copies_in();
    let most = copies[1..].iter().copied().fold(0.0, f64::max);
    println!(
        "{sites} sites of {each}, {mib} MiB, links of {mbit} Mbit/s: size ÷ rate {bound:.2} s; last {last:.3} ×; into a site {:.3} to {most:.3} copies; source {:.3} copies; {:.2} % twice; messages {:.2} %",
        copies[1..].iter().copied().fold(f64::MAX, f64::min),
        world.sent[0] as f64 / blocks as f64,
        world.duplicates as f64 * 100.0 / n as f64 / blocks as f64,
        world.message_bytes as f64 * 100.0 / (n as u64 * blocks * BLOCK) as f64,
    );
    (last, most)
}

#[test]
fn a_site_fetches_one_copy_from_afar() {
    let (time, copies) = sites(10, 20, 16, 20, 1);
    assert!(time <= 1.7, "{time} × the bound");
    assert!(copies <= 1.1, "{copies} copies");
}

#[test]
#[ignore = "measures for minutes"]
fn a_site_fetches_one_copy_of_much_from_afar() {
    let (time, copies) = sites(10, 20, 128, 20, 1);
    assert!(time <= 1.5 && copies <= 1.1, "{time} {copies}");
}
