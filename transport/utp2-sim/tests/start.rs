//! How a connection finds its rate: cold, on a remembered path, after a step, an outage, a change of address
//! (PROTOCOL.md §9.5–§9.8). Small cases of what `utp2 sim` shows at full size; each runs with several seeds.

use std::time::Duration;

use timebase::Instant;
use utp2::{PathMemory, Stats};
use utp2_sim::flow::FlowNode;
use utp2_sim::network::{Network, address_of};
use utp2_sim::pattern::ENDLESS;
use utp2_sim::progress::Load;
use utp2_sim::{Change, Jitter, Loss, Scenario};

const MBIT: u64 = 1_000_000;

/// One flow for `seconds` of virtual time over the scenario's links; more bytes are offered than can pass.
struct Run {
    net: Network<FlowNode>,
    scenario: Scenario,
    bucket: Duration,
}

fn seed_bytes(seed: u64, salt: u8) -> [u8; 32] {
    let mut bytes = [salt; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    bytes
}

impl Run {
    fn new(scenario: &Scenario, memory: Option<PathMemory>, flows: usize) -> Self {
        let bucket = scenario.rtt();
        let mut net = Network::new();
        let seed = scenario.seed;
        let forward = net.add_link(scenario.forward.clone(), seed_bytes(seed, 1), bucket);
        let reverse = net.add_link(scenario.reverse.clone(), seed_bytes(seed, 2), bucket);
        for flow in 0..flows {
            let start = scenario.flows.get(flow).map_or(Duration::ZERO, |f| f.start);
            let load =
                Load { bytes: ENDLESS, block_len: 32 * 1024, start: Instant::ZERO + start, step: bucket };
            let (from, to) = (2 * flow, 2 * flow + 1);
            let secret = seed_bytes(seed, 10 + flow as u8);
            let config = scenario.config.clone();
            net.add_node(FlowNode::sender(
                config.clone(),
                &secret,
                seed_bytes(seed, 60 + flow as u8),
                address_of(to),
                load,
            ));
            net.add_node(FlowNode::receiver(config, &secret, seed_bytes(seed, 120 + flow as u8), load));
            net.add_route(from, to, &[forward]);
            net.add_route(to, from, &[reverse]);
        }
        let mut run = Self { net, scenario: scenario.clone(), bucket };
        if let Some(memory) = memory {
            // The connection exists once the first INIT has left.
            run.net.run(Instant::from_micros(1), |_, _| false);
            run.net.node_mut(0).connection_mut().expect("has begun to connect").recall_path(memory);
        }
        run
    }

    fn advance(&mut self, by: Duration) {
        let end = self.net.now() + by;
        self.net.run(end, |_, _| false);
    }

    fn stats(&self, flow: usize) -> Stats {
        self.net.nodes()[2 * flow].stats()
    }

    fn timeline(&self, flow: usize) -> &[u64] {
        self.net.nodes()[2 * flow + 1].progress().expect("receives").timeline()
    }

    /// Goodput of whole buckets `from..to` as a share of the ceiling of `forward`.
    fn share(&self, from: usize, to: usize) -> f64 {
        let flows = self.net.nodes().len() / 2;
        let sum: u64 = (0..flows).flat_map(|f| self.timeline(f).iter().take(to).skip(from)).sum();
        sum as f64 / (self.scenario.ceiling() * self.bucket.as_secs_f64() * (to - from) as f64)
    }

    fn rtts_to(&self, share: f64) -> Option<usize> {
        (0..self.timeline(0).len()).find(|&b| self.share(b, b + 1) >= share).map(|b| b + 1)
    }

    fn self_loss(&self) -> f64 {
        let s = self.net.links()[0].stats();
        s.queue_drops as f64 / s.datagrams as f64
    }
}

fn scenario(mbit: u64, rtt_ms: u64, loss: f64, bdp: f64, seed: u64) -> Scenario {
    let rtt = Duration::from_millis(rtt_ms);
    let mut s = Scenario::new(mbit * MBIT, rtt, loss, 0);
    s.forward = s.forward.with_queue(rtt.mul_f64(bdp));
    s.seed = seed;
    s
}

fn memory_of(s: &Scenario) -> PathMemory {
    let datagram = f64::from(s.config.max_datagram);
    let share = datagram / (datagram + f64::from(s.forward.overhead));
    PathMemory {
        rate: (s.forward.rate_bps as f64 / 8.0 * share * 0.985) as u64,
        rtt_min: s.rtt(),
        base_loss_ppm: (s.forward.loss.mean() * 1e6) as u32,
    }
}

const SEEDS: std::ops::RangeInclusive<u64> = 1..=5;

#[test]
fn cold_the_rate_is_found_within_12_round_trips_and_without_a_flood() {
    for (mbit, rtt, loss) in
        [(100, 100, 0.0), (100, 100, 0.01), (100, 100, 0.05), (20, 200, 0.01), (400, 50, 0.01)]
    {
        for seed in SEEDS {
            let mut run = Run::new(&scenario(mbit, rtt, loss, 0.5, seed), None, 1);
            let rtts = 60;
            run.advance(run.bucket * rtts as u32);
            let what = format!("{mbit} Mbit/s, {rtt} ms, {loss}, seed {seed}");
            let found = run.rtts_to(0.9);
            assert!(found.is_some_and(|n| n <= 11), "{what}: 90 % after {found:?} round trips");
            assert!(run.self_loss() < 0.005, "{what}: self loss {}", run.self_loss());
            // Handshake and growth cost about 6 round trips.
            assert!(run.share(0, rtts) > 0.86, "{what}: {} of the whole", run.share(0, rtts));
        }
    }
}

#[test]
fn on_a_remembered_path_the_rate_is_found_within_4_round_trips() {
    for (mbit, rtt, loss) in
        [(100, 100, 0.0), (100, 100, 0.01), (100, 100, 0.05), (20, 200, 0.01), (400, 50, 0.01)]
    {
        for seed in SEEDS {
            let s = scenario(mbit, rtt, loss, 0.5, seed);
            let mut run = Run::new(&s, Some(memory_of(&s)), 1);
            run.advance(run.bucket * 60);
            let what = format!("{mbit} Mbit/s, {rtt} ms, {loss}, seed {seed}");
            let found = run.rtts_to(0.9);
            assert!(found.is_some_and(|n| n <= 4), "{what}: 90 % after {found:?} round trips");
            assert!(run.self_loss() < 0.005, "{what}: self loss {}", run.self_loss());
            let learned = run.net.node_mut(0).connection_mut().and_then(|c| c.path_memory());
            let learned = learned.expect("a minute is enough to learn").rate as f64;
            assert!((learned / memory_of(&s).rate as f64 - 1.0).abs() < 0.06, "{what}: learned {learned}");
        }
    }
}

#[test]
fn jitter_bursts_reordering_and_shallow_queues_do_not_fool_the_start() {
    let plain = |seed| scenario(100, 100, 0.01, 0.5, seed);
    let ms = Duration::from_millis;
    for seed in SEEDS {
        let mut jitter = plain(seed);
        (jitter.forward.jitter, jitter.reverse.jitter) = (Jitter::Uniform(ms(5)), Jitter::Uniform(ms(5)));
        let mut bursts = scenario(100, 100, 0.02, 0.5, seed);
        bursts.forward.loss = Loss::bursts(0.02, 20.0);
        let mut reorder = plain(seed);
        (reorder.forward.reorder, reorder.forward.reorder_by) = (0.02, ms(10));
        let shallow = scenario(100, 100, 0.01, 0.02, seed);
        for (what, s, most) in [
            ("jitter", jitter, 14),
            ("bursts", bursts, 12),
            ("reordering", reorder, 11),
            ("shallow", shallow, 12),
        ] {
            let mut run = Run::new(&s, None, 1);
            run.advance(run.bucket * 60);
            let found = run.rtts_to(0.9);
            assert!(
                found.is_some_and(|n| n <= most),
                "{what}, seed {seed}: 90 % after {found:?} round trips"
            );
            // Six seconds of which one is the search; 16 packets of queue lose up to 3.2 % in them.
            let bound = if what == "shallow" { 0.04 } else { 0.03 };
            assert!(run.self_loss() < bound, "{what}, seed {seed}: self loss {}", run.self_loss());
        }
    }
}

#[test]
fn a_wrong_memory_does_little_harm() {
    for seed in SEEDS {
        let s = scenario(100, 100, 0.01, 0.5, seed);
        let right = memory_of(&s);
        let mut cold = Run::new(&s, None, 1);
        cold.advance(cold.bucket * 30);
        // Another round trip is another path: as if nothing had been remembered.
        let other = PathMemory { rate: right.rate * 10, rtt_min: Duration::from_millis(30), ..right };
        let mut run = Run::new(&s, Some(other), 1);
        run.advance(run.bucket * 30);
        assert_eq!(run.timeline(0), cold.timeline(0), "seed {seed}");
        // Ten times too high: one round trip of it, and then the rate is found all the same.
        let mut run = Run::new(&s, Some(PathMemory { rate: right.rate * 10, ..right }), 1);
        run.advance(run.bucket * 30);
        let drops = run.net.links()[0].stats().queue_drops as f64 * 1500.0;
        let bdp = 12.5e6 * 0.1;
        assert!(
            drops < 14.0 * bdp,
            "seed {seed}: {} products of rate and round trip were dropped",
            drops / bdp
        );
        assert!(run.share(4, 30) > 0.88, "seed {seed}: {}", run.share(4, 30));
        // Ten times too low.
        let mut run = Run::new(&s, Some(PathMemory { rate: right.rate / 10, ..right }), 1);
        run.advance(run.bucket * 30);
        let found = run.rtts_to(0.9);
        assert!(found.is_some_and(|n| n <= 15), "seed {seed}: 90 % after {found:?} round trips");
    }
}

#[test]
fn a_path_five_times_slower_and_faster_again_is_settled_within_20_round_trips() {
    for (rtt, loss) in [(100, 0.0), (100, 0.01), (50, 0.01)] {
        for seed in SEEDS {
            let mut s = scenario(100, rtt, loss, 0.5, seed);
            let trip = s.rtt();
            let (down, up) = (trip * 60, trip * 140);
            s.forward =
                s.forward.with_step(down, Change::Rate(20 * MBIT)).with_step(up, Change::Rate(100 * MBIT));
            let mut run = Run::new(&s, None, 1);
            run.advance(down + trip * 4);
            let mut least = Duration::MAX;
            for _ in 4..20 {
                run.advance(trip);
                least = least.min(run.stats(0).rtt.saturating_sub(trip));
            }
            let what = format!("{rtt} ms, {loss}, seed {seed}");
            let slow = run.share(80 - 10, 80) * 5.0;
            assert!(slow > 0.93, "{what}: {slow} of the slower path");
            assert!(least < trip * 3 / 10, "{what}: a queue of {least:?} stands");
            run.advance(up + trip * 26 - (down + trip * 20));
            let fast = run.share(140 + 20, 140 + 26);
            assert!(fast > 0.9, "{what}: {fast} of the faster path");
        }
    }
}

#[test]
fn after_an_outage_of_30_s_the_rate_is_back_within_a_second_and_a_few_round_trips() {
    for seed in SEEDS {
        let mut s = scenario(100, 100, 0.01, 0.5, seed);
        s.config.idle_timeout = Duration::from_secs(120);
        let (at, len) = (Duration::from_secs(6), Duration::from_secs(30));
        s.forward = s.forward.with_outage(at, len);
        s.reverse = s.reverse.with_outage(at, len);
        let mut run = Run::new(&s, None, 1);
        // What was under way still arrives.
        run.advance(at + s.rtt() * 2);
        let memory = |run: &mut Run| run.net.node_mut(0).connection_mut().and_then(|c| c.path_memory());
        let before = memory(&mut run).expect("six seconds are enough to learn");
        run.advance(len - s.rtt() * 2);
        assert_eq!(memory(&mut run).map(|m| m.rate), Some(before.rate), "silence teaches nothing");
        run.advance(Duration::from_secs(3));
        let back = (360..).find(|&b| run.share(b, b + 1) > 0.01).expect("it comes back") - 360;
        assert!(back <= 10, "seed {seed}: data flows after {back} round trips");
        let found = (360..385).find(|&b| run.share(b, b + 1) > 0.9).map(|b| b - 360);
        assert!(found.is_some_and(|n| n <= 16), "seed {seed}: 90 % after {found:?} round trips");
    }
}

#[test]
fn who_joins_a_full_link_does_not_flood_it() {
    for seed in SEEDS {
        let mut s = scenario(100, 100, 0.0, 0.5, seed);
        let late = utp2_sim::FlowConfig { start: Duration::from_secs(6), ..utp2_sim::FlowConfig::endless() };
        s.flows = vec![utp2_sim::FlowConfig::endless(), late];
        let mut run = Run::new(&s, None, 2);
        run.advance(Duration::from_secs(16));
        assert!(run.self_loss() < 0.02, "seed {seed}: self loss {}", run.self_loss());
        let first: u64 = run.timeline(0)[65..].iter().sum();
        let both = first + run.timeline(1)[65..].iter().sum::<u64>();
        let part = first as f64 / both as f64;
        assert!((0.25..0.85).contains(&part), "seed {seed}: the first keeps {part}");
        assert!(run.share(80, 155) > 0.9, "seed {seed}: {}", run.share(80, 155));
    }
}
