//! What a link is like, and how that changes with time.

use core::time::Duration;

/// Bytes that Ethernet and IPv4 add to every datagram on the wire: UDP 8, IPv4 20, Ethernet header and
/// checksum 18, preamble 8, gap 12.
pub const ETHERNET_OVERHEAD: u32 = 66;

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
    /// Bursts of `burst` datagrams on average, all of each lost and nothing between them, so that `mean`
    /// (0 to 1) of all are lost in the long run. `burst` is at least 1.
    #[must_use]
    pub fn bursts(mean: f64, burst: f64) -> Self {
        if mean <= 0.0 {
            return Self::None;
        }
        let mean = mean.min(0.99);
        let to_good = 1.0 / burst.max(1.0);
        // The share of time in the bad state is to_bad / (to_bad + to_good), which shall be the mean.
        Self::GilbertElliott { to_bad: to_good * mean / (1.0 - mean), to_good, good: 0.0, bad: 1.0 }
    }

    /// Independent loss of probability `p`; none for 0.
    #[must_use]
    pub fn independent(p: f64) -> Self {
        if p > 0.0 { Self::Bernoulli(p) } else { Self::None }
    }

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

/// Delay that differs from datagram to datagram, on top of [`LinkConfig::delay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Jitter {
    /// None.
    #[default]
    None,
    /// Any value up to this one, all alike.
    Uniform(Duration),
}

/// Who is dropped, or marked, before the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Discipline {
    /// Nobody: the queue drops its tail, and only that.
    #[default]
    DropTail,
    /// CoDel (RFC 8289): drops from the head once the wait has stood above `target` for `interval`.
    CoDel {
        /// The wait that is no reason to drop. RFC 8289 recommends 5 ms.
        target: Duration,
        /// How long it may be exceeded: a usual round trip. RFC 8289 recommends 100 ms.
        interval: Duration,
        /// Mark datagrams that can be marked instead of dropping them.
        ecn: bool,
    },
}

impl Discipline {
    /// CoDel with the parameters that RFC 8289 recommends.
    #[must_use]
    pub const fn codel(ecn: bool) -> Self {
        Self::CoDel { target: Duration::from_millis(5), interval: Duration::from_millis(100), ecn }
    }
}

/// A token bucket that drops what comes faster than its rate, without any queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policer {
    /// Bits per second on the wire that pass in the long run.
    pub rate_bps: u64,
    /// Bytes on the wire that pass at once after a pause.
    pub burst_bytes: u64,
}

/// One thing about a link that becomes different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The bottleneck's rate, bits per second; also for what waits in the queue.
    Rate(u64),
    /// The propagation delay. What is under way keeps its own.
    Delay(Duration),
    /// The link goes down. What waits in its queue is lost, and what is handed to it.
    Down,
    /// The link comes back.
    Up,
}

/// A [`Change`] and its time after the beginning of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When.
    pub at: Duration,
    /// What.
    pub change: Change,
}

/// What one direction of a link is like.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkConfig {
    /// Bits per second at the bottleneck, overhead included. 0 means unlimited: no queue, no
    /// serialisation time.
    pub rate_bps: u64,
    /// Propagation delay, one way.
    pub delay: Duration,
    /// Room of the queue before the bottleneck, in bytes on the wire. At least one datagram is always let
    /// in.
    pub queue_bytes: u64,
    /// What the queue does before it is full.
    pub discipline: Discipline,
    /// What comes faster than this is dropped before it reaches the queue.
    pub policer: Option<Policer>,
    /// Chance loss before the queue (a lost datagram takes nothing of the rate).
    pub loss_before: Loss,
    /// Chance loss behind the bottleneck (a lost datagram has used its share of the rate).
    pub loss: Loss,
    /// Delay that varies.
    pub jitter: Jitter,
    /// Whether a datagram with little jitter may overtake one with much. If not, it waits behind it.
    pub jitter_reorders: bool,
    /// Probability that a datagram is held back by up to [`LinkConfig::reorder_by`], so that later ones
    /// overtake it.
    pub reorder: f64,
    /// How long a reordered datagram is held back at most; any time up to this, all alike.
    pub reorder_by: Duration,
    /// Probability that a datagram arrives twice.
    pub duplicate: f64,
    /// Probability that one bit of a datagram is flipped on the way.
    pub corrupt: f64,
    /// The largest UDP payload that passes; larger ones vanish, as where ICMP is filtered.
    pub max_datagram: usize,
    /// Bytes on the wire beyond each datagram's payload. [`ETHERNET_OVERHEAD`] by default.
    pub overhead: u32,
    /// What becomes different in the course of time, in order of time.
    pub schedule: Vec<Step>,
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
            discipline: Discipline::DropTail,
            policer: None,
            loss_before: Loss::None,
            loss: Loss::None,
            jitter: Jitter::None,
            jitter_reorders: false,
            reorder: 0.0,
            reorder_by: Duration::ZERO,
            duplicate: 0.0,
            corrupt: 0.0,
            max_datagram: 1472,
            overhead: ETHERNET_OVERHEAD,
            schedule: Vec::new(),
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

    /// The same with independent loss of probability `p` behind the bottleneck.
    #[must_use]
    pub fn with_loss(mut self, p: f64) -> Self {
        self.loss = Loss::independent(p);
        self
    }

    /// The same with one more change at `at` after the beginning of the run.
    #[must_use]
    pub fn with_step(mut self, at: Duration, change: Change) -> Self {
        let behind = self.schedule.partition_point(|s| s.at <= at);
        self.schedule.insert(behind, Step { at, change });
        self
    }

    /// The same, but down for `len` from `at` on.
    #[must_use]
    pub fn with_outage(self, at: Duration, len: Duration) -> Self {
        self.with_step(at, Change::Down).with_step(at + len, Change::Up)
    }

    /// The rate at `at` after the beginning of the run; 0 while the link is down.
    #[must_use]
    pub fn rate_at(&self, at: Duration) -> u64 {
        let (mut rate, mut up) = (self.rate_bps, true);
        for step in self.schedule.iter().take_while(|s| s.at <= at) {
            match step.change {
                Change::Rate(bps) => rate = bps,
                Change::Down => up = false,
                Change::Up => up = true,
                Change::Delay(_) => {}
            }
        }
        if up { rate } else { 0 }
    }

    /// The mean rate over a span of time, bits per second.
    #[must_use]
    pub fn mean_rate(&self, from: Duration, until: Duration) -> f64 {
        let mut edges = vec![from];
        edges.extend(self.schedule.iter().map(|s| s.at).filter(|&at| from < at && at < until));
        edges.push(until);
        let bits: f64 =
            edges.windows(2).map(|w| self.rate_at(w[0]) as f64 * (w[1] - w[0]).as_secs_f64()).sum();
        let len = until.saturating_sub(from).as_secs_f64();
        if len > 0.0 { bits / len } else { self.rate_at(from) as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_announce_the_mean_that_was_asked_for() {
        for (mean, burst) in [(0.02, 20.0), (0.5, 3.0), (0.001, 1.0)] {
            assert!((Loss::bursts(mean, burst).mean() - mean).abs() < 1e-12);
        }
        assert_eq!(Loss::bursts(0.0, 20.0), Loss::None);
    }

    #[test]
    fn rates_follow_the_schedule() {
        let s = Duration::from_secs;
        let link = LinkConfig::new(1000, s(1))
            .with_step(s(20), Change::Rate(1000))
            .with_step(s(10), Change::Rate(200))
            .with_outage(s(30), s(10));
        assert_eq!(
            [0, 10, 19, 20, 30, 39, 40].map(|t| link.rate_at(s(t))),
            [1000, 200, 200, 1000, 0, 0, 1000]
        );
        assert_eq!(link.mean_rate(s(0), s(20)), 600.0);
        assert_eq!(link.mean_rate(s(5), s(5)), 1000.0);
    }
}
