//! What one direction of the link does to a packet: a drop-tail queue before a bottleneck of a given rate, chance
//! loss behind it, and a delay.
//!
//! The same model as the links of `utp2-sim`, in real time: it is told when a packet came and how long it is, and
//! answers with its fate. It holds no packets (`carrier` does) and reads no clock. Times are picoseconds since the
//! link began, because at 10 Gbit/s a packet takes 1.2 µs and rounding each to whole nanoseconds would change
//! the rate.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde::Serialize;

/// Picoseconds in a second.
pub(crate) const SECOND: u64 = 1_000_000_000_000;

/// How packets are lost by chance, apart from a full queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Never.
    #[default]
    None,
    /// Each packet alone, with this probability (0 to 1).
    Independent(f64),
    /// In bursts: a state in which every packet is lost, left after `burst` packets on average and entered as often
    /// as makes `mean` of all packets lost.
    Bursts {
        /// Share of all packets lost, 0 to 1.
        mean: f64,
        /// Mean length of a burst in packets, at least 1.
        burst: f64,
    },
}

impl Loss {
    /// Share of packets lost in the long run.
    #[must_use]
    pub fn mean(self) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Independent(p) => p,
            Self::Bursts { mean, .. } => mean,
        }
    }
}

/// As a number, not as seconds and nanoseconds apart.
fn milliseconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64() * 1e3)
}

/// What one direction is like. As JSON, times are in milliseconds and named so.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shape {
    /// Bits per second at the bottleneck, counting IP bytes and `overhead`.
    pub rate_bps: u64,
    /// One-way delay behind the bottleneck.
    #[serde(rename = "delay_ms", serialize_with = "milliseconds")]
    pub delay: Duration,
    /// Room of the drop-tail queue, in bytes on the wire. One packet is always let in.
    pub queue_bytes: u64,
    /// Chance loss, behind the bottleneck: a lost packet has used its share of the rate.
    pub loss: Loss,
    /// Up to so much more delay, uniformly, without changing the order.
    #[serde(rename = "jitter_ms", serialize_with = "milliseconds")]
    pub jitter: Duration,
    /// Share of packets that are held back by `reorder_by`, so that later ones overtake them.
    pub reorder: f64,
    /// How long a reordered packet is held back.
    #[serde(rename = "reorder_by_ms", serialize_with = "milliseconds")]
    pub reorder_by: Duration,
    /// Bytes on the wire beyond each IP packet: 0, or 38 for Ethernet (header, checksum, preamble, gap).
    pub overhead: u32,
}

impl Shape {
    /// A clean direction with a queue of one bandwidth-delay product, if the way back has the same delay.
    #[must_use]
    pub fn new(rate_bps: u64, delay: Duration) -> Self {
        let shape = Self {
            rate_bps,
            delay,
            queue_bytes: 0,
            loss: Loss::None,
            jitter: Duration::ZERO,
            reorder: 0.0,
            reorder_by: Duration::ZERO,
            overhead: 0,
        };
        shape.with_queue(delay * 2)
    }

    /// The same with a queue that takes `time` to drain.
    #[must_use]
    pub fn with_queue(mut self, time: Duration) -> Self {
        self.queue_bytes = self.bytes_in(time);
        self
    }

    /// Bytes that pass the bottleneck in `time`.
    #[must_use]
    pub fn bytes_in(&self, time: Duration) -> u64 {
        u64::try_from(u128::from(self.rate_bps) * time.as_micros() / 8_000_000).unwrap_or(u64::MAX)
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The queue was full.
    QueueDrop,
    /// Lost by chance.
    Lost,
    /// It arrives.
    Delivered {
        /// When its last bit leaves the bottleneck.
        leaves: u64,
        /// When it arrives.
        due: u64,
        /// Held back: others may overtake it.
        held: bool,
    },
}

/// A change of the rate: what waits before the bottleneck leaves earlier or later than was foretold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    at: u64,
    /// Bits per second before and after.
    from: u64,
    to: u64,
}

impl Step {
    /// When a packet leaves the bottleneck that would have left at `leaves`.
    pub(crate) fn moved(self, leaves: u64) -> u64 {
        let bits = u128::from(leaves.saturating_sub(self.at)) * u128::from(self.from);
        // Half of all time is left for what comes on top.
        let left = u64::try_from(bits / u128::from(self.to)).unwrap_or(u64::MAX / 2);
        leaves.min(self.at).saturating_add(left).min(u64::MAX / 2)
    }
}

/// One direction in motion. The same shape, seed and input give the same fates.
pub(crate) struct Bottleneck {
    shape: Shape,
    rng: ChaCha8Rng,
    /// When everything queued has been sent.
    busy_until: u64,
    /// Jitter keeps the order: nothing is due before this.
    last_due: u64,
    in_burst: bool,
}

impl Bottleneck {
    pub(crate) fn new(shape: Shape, seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self { shape, rng, busy_until: 0, last_due: 0, in_burst: false }
    }

    /// Changes the rate from `now` on. The bytes that wait stay as many, and whoever keeps the packets has to move
    /// their times by what is returned.
    pub(crate) fn set_rate(&mut self, now: u64, rate_bps: u64) -> Step {
        let step = Step { at: now, from: self.shape.rate_bps, to: rate_bps.max(1) };
        self.shape.rate_bps = step.to;
        // What is due last moves as what leaves last.
        let busy_until = step.moved(self.busy_until);
        self.last_due = (self.last_due + busy_until).saturating_sub(self.busy_until);
        self.busy_until = busy_until;
        step
    }

    /// Hands over a packet of `len` IP bytes at `now`, which must not go backwards.
    pub(crate) fn admit(&mut self, now: u64, len: usize) -> Fate {
        let wire = len as u64 + u64::from(self.shape.overhead);
        let wait = self.busy_until.saturating_sub(now);
        let queued = u128::from(wait) * u128::from(self.shape.rate_bps) / (8 * u128::from(SECOND));
        if wait > 0 && queued + u128::from(wire) > u128::from(self.shape.queue_bytes) {
            return Fate::QueueDrop;
        }
        self.busy_until = now.max(self.busy_until) + wire * 8 * SECOND / self.shape.rate_bps;
        if self.is_lost() {
            return Fate::Lost;
        }
        let leaves = self.busy_until;
        let mut due = leaves + picos(self.shape.delay);
        if self.chance(self.shape.reorder) {
            return Fate::Delivered { leaves, due: due + picos(self.shape.reorder_by), held: true };
        }
        if !self.shape.jitter.is_zero() {
            due += (self.unit() * picos(self.shape.jitter) as f64) as u64;
            due = due.max(self.last_due);
            self.last_due = due;
        }
        Fate::Delivered { leaves, due, held: false }
    }

    fn is_lost(&mut self) -> bool {
        match self.shape.loss {
            Loss::None => false,
            Loss::Independent(p) => self.chance(p),
            Loss::Bursts { mean, burst } => {
                let flip = if self.in_burst { 1.0 / burst } else { mean / (burst * (1.0 - mean)) };
                self.in_burst ^= self.chance(flip);
                self.in_burst
            }
        }
    }

    /// True with probability `p`. Draws no number when there is nothing to decide.
    fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.unit() < p
    }

    /// 0 to 1, without 1.
    fn unit(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

pub(crate) fn picos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().saturating_mul(1000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = SECOND / 1000;

    fn due(fate: Fate) -> Option<u64> {
        match fate {
            Fate::Delivered { due, .. } => Some(due),
            _ => None,
        }
    }

    #[test]
    fn a_packet_takes_its_serialisation_time_and_the_delay() {
        // 1500 bytes at 1 Mbit/s are 12 ms.
        let mut link = Bottleneck::new(Shape::new(1_000_000, Duration::from_millis(50)), 1);
        assert_eq!(due(link.admit(0, 1500)), Some(62 * MS));
        assert_eq!(due(link.admit(0, 1500)), Some(74 * MS), "the second waits for the first");
        assert_eq!(due(link.admit(100 * MS, 1500)), Some(162 * MS), "the queue has drained");
    }

    #[test]
    fn overhead_takes_time_on_the_wire() {
        let shape = Shape { overhead: 38, ..Shape::new(1_000_000, Duration::ZERO) };
        assert_eq!(due(Bottleneck::new(shape, 1).admit(0, 1462)), Some(12 * MS));
    }

    #[test]
    fn the_queue_drops_its_tail_and_passes_its_rate() {
        let shape = Shape::new(1_000_000_000, Duration::from_millis(10)).with_queue(Duration::from_millis(5));
        let mut link = Bottleneck::new(shape, 1);
        let (mut passed, mut longest) = (0u64, 0);
        // Twice the rate for a second: a packet every 6 µs where 12 µs are needed.
        for i in 0..166_667u64 {
            let now = i * 6_000_000;
            if let Some(due) = due(link.admit(now, 1500)) {
                passed += 1;
                longest = longest.max(due - now);
            }
        }
        assert!((83_333..83_333 + 500).contains(&passed), "{passed}");
        assert!((15 * MS - 13_000_000..=15 * MS).contains(&longest), "{longest}");
    }

    #[test]
    fn a_step_of_the_rate_keeps_the_bytes_that_wait() {
        // 1 Gbit/s with a queue of 100 ms: 12.5 MB, which is half a second at 200 Mbit/s.
        let shape = Shape::new(1_000_000_000, Duration::ZERO).with_queue(Duration::from_millis(100));
        let mut link = Bottleneck::new(shape, 1);
        let mut full = 0;
        while let Fate::Delivered { due, .. } = link.admit(0, 1250) {
            full = due;
        }
        assert_eq!(full, 100 * MS);
        let slower = link.set_rate(50 * MS, 200_000_000);
        // What has left has left; the half that still waits takes five times as long.
        assert_eq!(
            (slower.moved(50 * MS), slower.moved(60 * MS), slower.moved(full)),
            (50 * MS, 100 * MS, 300 * MS)
        );
        // Half of the queue is free, whatever the rate.
        let mut passed = 0;
        let mut last = 0;
        while let Fate::Delivered { due, .. } = link.admit(50 * MS, 1250) {
            (passed, last) = (passed + 1, due);
        }
        assert_eq!((passed, last), (5_000, 550 * MS));
        assert_eq!(link.admit(50 * MS + MS / 25, 1250), Fate::QueueDrop, "a packet takes MS / 20 now");
        // And back: 10 MB wait at 150 ms.
        let faster = link.set_rate(150 * MS, 1_000_000_000);
        assert_eq!(faster.moved(last), 230 * MS);
        assert_eq!(due(link.admit(150 * MS, 1250)), Some(230 * MS + MS / 100));
    }

    #[test]
    fn chances_come_out_as_configured() {
        for loss in [Loss::Independent(0.05), Loss::Bursts { mean: 0.02, burst: 20.0 }] {
            let shape = Shape { loss, ..Shape::new(1_000_000_000, Duration::ZERO) };
            let mut link = Bottleneck::new(shape, 7);
            let (mut lost, mut bursts, mut before) = (0u32, 0u32, false);
            for i in 0..1_000_000u64 {
                let now = link.admit(i * SECOND / 1000, 100) == Fate::Lost;
                lost += u32::from(now);
                bursts += u32::from(now && !before);
                before = now;
            }
            let seen = f64::from(lost) / 1e6;
            assert!((seen / loss.mean() - 1.0).abs() < 0.1, "{loss:?}: {seen}");
            let length = f64::from(lost) / f64::from(bursts);
            let wanted = if let Loss::Bursts { burst, .. } = loss { burst } else { 1.0 / 0.95 };
            assert!((length / wanted - 1.0).abs() < 0.1, "{loss:?}: bursts of {length}");
        }
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_does_not() {
        let jitter = Duration::from_millis(10);
        let clean = Shape::new(100_000_000, Duration::from_millis(10));
        let mut link = Bottleneck::new(Shape { jitter, ..clean.clone() }, 3);
        let dues: Vec<u64> = (0..10_000).filter_map(|i| due(link.admit(i * MS, 1500))).collect();
        assert!(dues.len() == 10_000 && dues.is_sorted());
        let shape = Shape { reorder: 0.02, reorder_by: jitter, ..clean };
        let mut link = Bottleneck::new(shape, 3);
        let held =
            (0..10_000).filter(|i| matches!(link.admit(i * MS, 1500), Fate::Delivered { held: true, .. }));
        let held = held.count();
        assert!((140..260).contains(&held), "{held}");
    }
}
