//! One direction of a link: a bottleneck of a given rate with a drop-tail queue before it, a propagation
//! delay behind it, and the misfortunes of real paths (loss, reordering, duplication, corruption).
//!
//! A link does not carry bytes: it is told the size of a datagram and answers with its [`Fate`]. The
//! datagram itself is kept by [`crate::Network`]. Time inside is counted in picoseconds, because at
//! 10 Gbit/s a datagram takes 1.2 µs and rounding each to whole microseconds would change the rate.

use core::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;

/// Bytes that Ethernet and IPv4 add to every datagram on the wire: UDP 8, IPv4 20, Ethernet header and
/// checksum 18, preamble 8, gap 12.
pub const ETHERNET_OVERHEAD: u32 = 66;

const PICOS_PER_MICRO: u64 = 1_000_000;

/// How a link loses datagrams by chance, that is apart from a full queue.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Loss {
    /// Never.
    #[default]
    None,
    /// Each datagram alone, with this probability (0 to 1).
    Bernoulli(f64),
    /// Two states with a loss probability each: bursts, as on radio links.
    GilbertElliott {
        /// Probability, per datagram, to go from the good to the bad state.
        to_bad: f64,
        /// Probability, per datagram, to go from the bad to the good state.
        to_good: f64,
        /// Loss probability in the good state.
        good: f64,
        /// Loss probability in the bad state.
        bad: f64,
    },
}

impl Loss {
    /// The share of datagrams lost in the long run, 0 to 1.
    #[must_use]
    pub fn mean(self) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Bernoulli(p) => p,
            Self::GilbertElliott { to_bad, to_good, good, bad } => {
                let in_bad = if to_bad + to_good > 0.0 { to_bad / (to_bad + to_good) } else { 0.0 };
                good * (1.0 - in_bad) + bad * in_bad
            }
        }
    }
}

/// What one direction of a link is like.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkConfig {
    /// Bits per second at the bottleneck, overhead included. 0 means unlimited: no queue, no
    /// serialisation time.
    pub rate_bps: u64,
    /// Propagation delay, one way.
    pub delay: Duration,
    /// Room of the drop-tail queue before the bottleneck, in bytes on the wire. At least one datagram is
    /// always let in.
    pub queue_bytes: u64,
    /// Chance loss, behind the bottleneck (a lost datagram has used its share of the rate).
    pub loss: Loss,
    /// Probability that a datagram is held back by [`LinkConfig::reorder_by`], so that later ones
    /// overtake it.
    pub reorder: f64,
    /// How long a reordered datagram is held back.
    pub reorder_by: Duration,
    /// Probability that a datagram arrives twice.
    pub duplicate: f64,
    /// Probability that one bit of a datagram is flipped on the way.
    pub corrupt: f64,
    /// The largest UDP payload that passes; larger ones vanish, as where ICMP is filtered.
    pub max_datagram: usize,
    /// Bytes on the wire beyond each datagram's payload. [`ETHERNET_OVERHEAD`] by default.
    pub overhead: u32,
}

impl LinkConfig {
    /// A clean link of `rate_bps` and a one-way delay of `delay`, with room for 2 × `delay` in its queue
    /// (one bandwidth-delay product if the way back is alike), an MTU of 1500 and Ethernet's overhead.
    #[must_use]
    pub fn new(rate_bps: u64, delay: Duration) -> Self {
        let config = Self {
            rate_bps,
            delay,
            queue_bytes: 0,
            loss: Loss::None,
            reorder: 0.0,
            reorder_by: Duration::ZERO,
            duplicate: 0.0,
            corrupt: 0.0,
            max_datagram: 1472,
            overhead: ETHERNET_OVERHEAD,
        };
        config.with_queue(delay.saturating_mul(2))
    }

    /// The same with a queue that takes `time` to drain.
    #[must_use]
    pub fn with_queue(mut self, time: Duration) -> Self {
        let bits = u128::from(self.rate_bps) * time.as_micros() / 1_000_000;
        self.queue_bytes = u64::try_from(bits / 8).unwrap_or(u64::MAX);
        self
    }

    /// The same with independent loss of probability `p`.
    #[must_use]
    pub fn with_loss(mut self, p: f64) -> Self {
        self.loss = if p > 0.0 { Loss::Bernoulli(p) } else { Loss::None };
        self
    }
}

/// What becomes of a datagram that was handed to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The queue was full.
    QueueDrop,
    /// Lost by chance.
    Lost,
    /// Larger than [`LinkConfig::max_datagram`].
    TooBig,
    /// It arrives.
    Delivered {
        /// When.
        at: Instant,
        /// When its duplicate arrives, if there is one.
        again: Option<Instant>,
        /// Whether [`Link::corrupt`] has to be applied to it.
        corrupted: bool,
    },
}

/// What a link has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Datagrams handed to the link.
    pub datagrams: u64,
    /// Their bytes, without the wire's overhead.
    pub bytes: u64,
    /// Datagrams refused by the full queue.
    pub queue_drops: u64,
    /// Datagrams lost by chance.
    pub lost: u64,
    /// Datagrams too large for the link.
    pub too_big: u64,
    /// Datagrams that arrived twice.
    pub duplicated: u64,
    /// Datagrams that were held back.
    pub reordered: u64,
    /// Datagrams with a flipped bit.
    pub corrupted: u64,
    /// The longest wait in the queue, in microseconds.
    pub queue_max_us: u64,
}

/// One direction of a link in motion. Two links with the same configuration, seed and input do the same.
pub struct Link {
    config: LinkConfig,
    rng: ChaCha8Rng,
    /// When the bottleneck has sent everything it holds, picoseconds since [`Instant::ZERO`].
    busy_until: u64,
    in_bad_state: bool,
    stats: LinkStats,
}

impl Link {
    /// An idle link. `seed` decides its chances.
    #[must_use]
    pub fn new(config: LinkConfig, seed: [u8; 32]) -> Self {
        Self {
            config,
            rng: ChaCha8Rng::from_seed(seed),
            busy_until: 0,
            in_bad_state: false,
            stats: LinkStats::default(),
        }
    }

    /// What the link is like.
    #[must_use]
    pub fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// Changes what the link is like from now on: a capacity step, an outage, a new path. What is queued
    /// keeps its time of departure.
    pub fn set_config(&mut self, config: LinkConfig) {
        self.config = config;
    }

    /// What the link has done so far.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        self.stats
    }

    /// Hands a datagram of `len` bytes to the link at `now`, which must not go backwards.
    pub fn send(&mut self, now: Instant, len: usize) -> Fate {
        self.stats.datagrams += 1;
        self.stats.bytes += len as u64;
        if len > self.config.max_datagram {
            self.stats.too_big += 1;
            return Fate::TooBig;
        }
        let now_ps = now.as_micros().saturating_mul(PICOS_PER_MICRO);
        let Some(departs) = self.enqueue(now_ps, len) else {
            self.stats.queue_drops += 1;
            return Fate::QueueDrop;
        };
        if self.is_lost() {
            self.stats.lost += 1;
            return Fate::Lost;
        }
        let mut arrives = departs.saturating_add(picos(self.config.delay));
        if self.chance(self.config.reorder) {
            self.stats.reordered += 1;
            arrives = arrives.saturating_add(picos(self.config.reorder_by));
        }
        let at = Instant::from_micros(arrives.div_ceil(PICOS_PER_MICRO));
        let again = self.chance(self.config.duplicate).then(|| {
            self.stats.duplicated += 1;
            at + Duration::from_micros(1)
        });
        let corrupted = self.chance(self.config.corrupt);
        self.stats.corrupted += u64::from(corrupted);
        Fate::Delivered { at, again, corrupted }
    }

    /// Flips one bit of `datagram`, for those whose fate it is.
    pub fn corrupt(&mut self, datagram: &mut [u8]) {
        if datagram.is_empty() {
            return;
        }
        let r = self.rng.next_u64();
        let at = (r >> 3) as usize % datagram.len();
        datagram[at] ^= 1 << (r & 7);
    }

    /// When a datagram of `len` bytes leaves the bottleneck, or `None` if the queue has no room for it.
    fn enqueue(&mut self, now: u64, len: usize) -> Option<u64> {
        if self.config.rate_bps == 0 {
            return Some(now);
        }
        let wire = len as u64 + u64::from(self.config.overhead);
        let wait = self.busy_until.saturating_sub(now);
        if wait > 0 {
            let queued = u128::from(wait) * u128::from(self.config.rate_bps) / 8_000_000_000_000;
            if queued + u128::from(wire) > u128::from(self.config.queue_bytes) {
                return None;
            }
        }
        self.stats.queue_max_us = self.stats.queue_max_us.max(wait / PICOS_PER_MICRO);
        self.busy_until = now.max(self.busy_until) + wire * 8_000_000_000_000 / self.config.rate_bps;
        Some(self.busy_until)
    }

    fn is_lost(&mut self) -> bool {
        match self.config.loss {
            Loss::None => false,
            Loss::Bernoulli(p) => self.chance(p),
            Loss::GilbertElliott { to_bad, to_good, good, bad } => {
                let flip = if self.in_bad_state { to_good } else { to_bad };
                self.in_bad_state ^= self.chance(flip);
                self.chance(if self.in_bad_state { bad } else { good })
            }
        }
    }

    /// True with probability `p`. Draws no number when there is nothing to decide.
    fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && (self.rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64) < p
    }
}

fn picos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos().saturating_mul(1000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: [u8; 32] = [7; 32];

    fn at(us: u64) -> Instant {
        Instant::from_micros(us)
    }

    fn arrival(fate: Fate) -> Option<u64> {
        match fate {
            Fate::Delivered { at, .. } => Some(at.as_micros()),
            _ => None,
        }
    }

    #[test]
    fn a_datagram_takes_its_serialisation_time_and_the_delay() {
        // 1434 + 66 bytes at 1 Mbit/s are 12 ms.
        let mut link = Link::new(LinkConfig::new(1_000_000, Duration::from_millis(50)), SEED);
        assert_eq!(arrival(link.send(at(0), 1434)), Some(62_000));
        assert_eq!(arrival(link.send(at(0), 1434)), Some(74_000), "the second waits for the first");
        assert_eq!(arrival(link.send(at(100_000), 1434)), Some(162_000), "the queue has drained");
    }

    #[test]
    fn the_queue_drops_its_tail_and_no_more_than_its_rate_gets_through() {
        let config =
            LinkConfig::new(100_000_000, Duration::from_millis(10)).with_queue(Duration::from_millis(5));
        let mut link = Link::new(config, SEED);
        let (mut got, mut last) = (0u64, 0);
        // Twice the rate for a second: a full datagram every 60 µs where 123 µs are needed.
        for i in 0..16_666u64 {
            if let Some(t) = arrival(link.send(at(i * 60), 1472)) {
                got += 1;
                last = t;
            }
        }
        let rate = got as f64 * 1538.0 * 8.0 / ((last - 10_000) as f64 / 1e6);
        assert!((99.0e6..=100.1e6).contains(&rate), "{rate}");
        assert!(link.stats().queue_max_us <= 5_000, "{}", link.stats().queue_max_us);
        assert_eq!(link.stats().queue_drops + got, 16_666);
    }

    #[test]
    fn chances_come_out_as_configured() {
        let mut config = LinkConfig::new(0, Duration::from_millis(10)).with_loss(0.05);
        config.duplicate = 0.01;
        config.corrupt = 0.02;
        config.reorder = 0.25;
        config.reorder_by = Duration::from_millis(5);
        let mut link = Link::new(config, SEED);
        for i in 0..200_000 {
            link.send(at(i), 1000);
        }
        let s = link.stats();
        let near = |n: u64, p: f64| (n as f64 / 200_000.0 - p).abs() < p * 0.1;
        assert!(near(s.lost, 0.05), "{s:?}");
        assert!(near(s.duplicated, 0.0095), "{s:?}");
        assert!(near(s.corrupted, 0.019), "{s:?}");
        assert!(near(s.reordered, 0.2375), "{s:?}");
    }

    #[test]
    fn bursts_have_the_mean_they_announce() {
        let loss = Loss::GilbertElliott { to_bad: 0.01, to_good: 0.2, good: 0.001, bad: 0.5 };
        let config = LinkConfig { loss, ..LinkConfig::new(0, Duration::ZERO) };
        let mut link = Link::new(config, SEED);
        for i in 0..400_000 {
            link.send(at(i), 100);
        }
        let seen = link.stats().lost as f64 / 400_000.0;
        assert!((seen - loss.mean()).abs() < 0.003, "{seen} {}", loss.mean());
    }

    #[test]
    fn too_large_vanishes_and_corruption_flips_one_bit() {
        let mut link = Link::new(LinkConfig::new(0, Duration::ZERO), SEED);
        assert_eq!(link.send(at(0), 1473), Fate::TooBig);
        let mut data = [0u8; 64];
        link.corrupt(&mut data);
        assert_eq!(data.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
        link.corrupt(&mut []);
    }

    #[test]
    fn same_seed_same_fate() {
        let config = LinkConfig::new(10_000_000, Duration::from_millis(1)).with_loss(0.3);
        let (mut a, mut b) = (Link::new(config.clone(), SEED), Link::new(config, SEED));
        for i in 0..1000 {
            assert_eq!(a.send(at(i * 500), 500), b.send(at(i * 500), 500));
        }
    }
}
