//! Links alone: what goes in, when it comes out.

use super::*;

const SEED: [u8; 32] = [7; 32];

fn at(us: u64) -> Instant {
    Instant::from_micros(us)
}

/// A link and the numbers of what came out of it, with the time.
struct Bench {
    link: Link<u32>,
    pool: Pool,
    sent: u32,
    got: Vec<(u64, u32)>,
    marks: u64,
}

impl Bench {
    fn new(config: LinkConfig) -> Self {
        let link = Link::new(config, SEED).with_timeline(Duration::from_millis(10));
        Self { link, pool: Pool::default(), sent: 0, got: Vec::new(), marks: 0 }
    }

    fn send(&mut self, us: u64, len: usize) {
        self.collect(us);
        let packet = Packet { data: vec![0; len], ecn: Ecn::Ect0, label: self.sent };
        self.sent += 1;
        self.link.send(at(us), packet, &mut self.pool);
    }

    fn collect(&mut self, until: u64) {
        while let Some(next) = self.link.next_event().filter(|&t| t <= at(until)) {
            while let Some(packet) = self.link.pop(next, &mut self.pool) {
                self.marks += u64::from(packet.ecn == Ecn::Ce);
                self.got.push((next.as_micros(), packet.label));
            }
        }
    }

    fn finish(&mut self) -> &[(u64, u32)] {
        self.collect(u64::MAX / PICOS_PER_MICRO / 4);
        &self.got
    }

    /// Full datagrams, one every `gap_us`, for `len_ms`; gives the rate on the wire that arrived, Mbit/s.
    fn flood(&mut self, gap_us: u64, len_ms: u64) -> f64 {
        for i in 0..len_ms * 1000 / gap_us {
            self.send(i * gap_us, 1472);
        }
        self.finish();
        let (first, last) = (self.got[0].0, self.got[self.got.len() - 1].0);
        (self.got.len() - 1) as f64 * 1538.0 * 8.0 / (last - first) as f64
    }
}

#[test]
fn a_datagram_takes_its_serialisation_time_and_the_delay() {
    // 1434 + 66 bytes at 1 Mbit/s are 12 ms.
    let mut b = Bench::new(LinkConfig::new(1_000_000, Duration::from_millis(50)));
    b.send(0, 1434);
    b.send(0, 1434);
    b.send(100_000, 1434);
    assert_eq!(b.finish(), [(62_000, 0), (74_000, 1), (162_000, 2)]);
}

#[test]
fn the_queue_drops_its_tail_and_no_more_than_its_rate_gets_through() {
    let config = LinkConfig::new(100_000_000, Duration::from_millis(10)).with_queue(Duration::from_millis(5));
    let mut b = Bench::new(config);
    let rate = b.flood(60, 1000);
    assert!((99.0..=100.1).contains(&rate), "{rate}");
    let s = b.link.stats();
    assert!(s.queue_max_us <= 5_000, "{s:?}");
    assert_eq!(s.queue_drops + b.got.len() as u64, 16_666);
    let q = b.link.queue_summary(at(100_000), at(900_000));
    assert!((4.5..=5.0).contains(&q.standing_ms) && (0.48..0.53).contains(&q.congestion_loss), "{q:?}");
}

#[test]
fn chances_come_out_as_configured() {
    let mut config = LinkConfig::new(0, Duration::from_millis(10)).with_loss(0.05);
    config.duplicate = 0.01;
    config.corrupt = 0.02;
    config.reorder = 0.25;
    config.reorder_by = Duration::from_millis(5);
    let mut b = Bench::new(config);
    (0..200_000).for_each(|i| b.send(i, 100));
    b.finish();
    let s = b.link.stats();
    let near = |n: u64, p: f64| (n as f64 / 200_000.0 - p).abs() < p * 0.1;
    assert!(near(s.lost, 0.05), "{s:?}");
    assert!(near(s.duplicated, 0.0095), "{s:?}");
    assert!(near(s.corrupted, 0.019), "{s:?}");
    assert!(near(s.reordered, 0.2375), "{s:?}");
    assert_eq!(b.got.len() as u64, s.delivered + s.duplicated);
}

#[test]
fn bursts_have_the_mean_and_the_length_they_announce() {
    let mut b =
        Bench::new(LinkConfig { loss: Loss::bursts(0.02, 20.0), ..LinkConfig::new(0, Duration::ZERO) });
    (0..1_000_000).for_each(|i| b.send(i, 50));
    let got: Vec<u32> = b.finish().iter().map(|g| g.1).collect();
    let gaps: Vec<u32> = got.windows(2).map(|w| w[1] - w[0] - 1).filter(|&g| g > 0).collect();
    let lost: u32 = gaps.iter().sum();
    assert!((f64::from(lost) / 1e6 - 0.02).abs() < 0.003, "{lost}");
    let mean = f64::from(lost) / gaps.len() as f64;
    assert!((mean - 20.0).abs() < 2.0, "{mean}");
}

#[test]
fn loss_before_the_queue_leaves_the_rate_to_the_others() {
    let mut config = LinkConfig::new(100_000_000, Duration::from_millis(10));
    config.loss_before = Loss::Bernoulli(0.3);
    assert!((99.0..100.1).contains(&Bench::new(config.clone()).flood(60, 500)));
    (config.loss, config.loss_before) = (config.loss_before, Loss::None);
    assert!((68.0..72.0).contains(&Bench::new(config).flood(60, 500)));
}

#[test]
fn jitter_keeps_or_changes_the_order() {
    for reorders in [false, true] {
        let mut config = LinkConfig::new(0, Duration::from_millis(10));
        (config.jitter, config.jitter_reorders) = (Jitter::Uniform(Duration::from_millis(8)), reorders);
        let mut b = Bench::new(config);
        (0..10_000).for_each(|i| b.send(i * 100, 100));
        b.finish();
        assert_eq!(b.got.is_sorted_by_key(|g| g.1), !reorders);
        assert!(b.got.is_sorted_by_key(|g| g.0));
        let delays: Vec<u64> = b.got.iter().map(|g| g.0 - u64::from(g.1) * 100 - 10_000).collect();
        assert!(delays.iter().all(|&d| d <= 8_000));
        let mean = delays.iter().sum::<u64>() as f64 / 1e4;
        // In order, each waits for the slowest before it.
        assert_eq!(reorders, mean < 5_000.0, "{mean}");
    }
}

#[test]
fn a_rate_step_changes_what_waits_too() {
    // 1500 bytes take 1.2 ms at first and 12 ms after the step, in the middle of the third one.
    let step = Change::Rate(1_000_000);
    let config =
        LinkConfig::new(10_000_000, Duration::from_millis(50)).with_step(Duration::from_micros(3000), step);
    let mut b = Bench::new(config);
    (0..4).for_each(|_| b.send(0, 1434));
    assert_eq!(b.finish(), [(51_200, 0), (52_400, 1), (59_000, 2), (71_000, 3)]);
}

#[test]
fn an_outage_loses_what_waits_and_what_comes() {
    let config = LinkConfig::new(10_000_000, Duration::from_millis(50))
        .with_outage(Duration::from_micros(1500), Duration::from_secs(1));
    let mut b = Bench::new(config);
    (0..4).for_each(|_| b.send(0, 1434));
    b.send(500_000, 1434);
    b.send(1_001_500, 1434);
    assert_eq!(b.finish(), [(51_200, 0), (1_052_700, 5)]);
    assert_eq!(b.link.stats().down_drops, 4);
}

#[test]
fn codel_keeps_the_queue_short_or_marks() {
    let mut config =
        LinkConfig::new(100_000_000, Duration::from_millis(10)).with_queue(Duration::from_secs(1));
    config.discipline = Discipline::codel(false);
    let mut b = Bench::new(config.clone());
    // 1.7 % too much, by somebody who does not listen: drop-tail would have 50 to 85 ms here.
    b.flood(121, 5000);
    let q = b.link.queue_summary(at(3_000_000), at(5_000_000));
    assert!(q.mean_ms < 30.0 && b.link.stats().aqm_drops > 100, "{q:?} {:?}", b.link.stats());
    config.discipline = Discipline::codel(true);
    let mut b = Bench::new(config);
    b.flood(121, 5000);
    assert!(b.marks > 50 && b.link.stats().aqm_drops == 0, "{:?}", b.link.stats());
}

#[test]
fn codel_leaves_the_last_datagram_of_a_queue() {
    // 12.3 ms each, and one more comes whenever one leaves: each waits longer than the target behind the one being
    // sent. Without it the link would stand still.
    let mut config = LinkConfig::new(1_000_000, Duration::from_millis(10)).with_queue(Duration::from_secs(1));
    config.discipline = Discipline::codel(false);
    for behind in 1..=3 {
        let mut b = Bench::new(config.clone());
        (0..behind).for_each(|_| b.send(0, 1472));
        (0..500).for_each(|i| b.send(i * 12_304, 1472));
        b.finish();
        // With two more behind it the one at the head may go.
        assert_eq!(b.link.stats().aqm_drops > 0, behind == 3, "{behind}: {:?}", b.link.stats());
    }
}

#[test]
fn a_policer_passes_its_rate_and_its_burst() {
    let mut config = LinkConfig::new(1_000_000_000, Duration::from_millis(10));
    config.policer = Some(Policer { rate_bps: 50_000_000, burst_bytes: 100_000 });
    let mut b = Bench::new(config);
    b.flood(61, 2000);
    let passed = b.got.len() as f64 * 1538.0;
    assert!((passed - 100_000.0 - 12_500_000.0).abs() < 20_000.0, "{passed}");
    assert_eq!(b.link.queue_summary(at(0), at(2_000_000)).standing_ms, 0.0);
}

#[test]
fn too_large_vanishes_and_corruption_flips_one_bit() {
    let mut config = LinkConfig::new(0, Duration::ZERO);
    config.corrupt = 1.0;
    let mut b = Bench::new(config);
    b.send(0, 1473);
    assert_eq!(b.link.stats().too_big, 1);
    b.send(0, 64);
    let packet = b.link.pop(at(0), &mut b.pool).unwrap();
    assert_eq!(packet.data.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
    b.send(0, 0);
    assert_eq!(b.finish().len(), 1);
}

#[test]
fn same_seed_same_fate() {
    let config = LinkConfig::new(10_000_000, Duration::from_millis(1)).with_loss(0.3);
    let (mut a, mut b) = (Bench::new(config.clone()), Bench::new(config));
    for i in 0..1000 {
        a.send(i * 500, 500);
        b.send(i * 500, 500);
    }
    assert_eq!(a.finish(), b.finish());
}
