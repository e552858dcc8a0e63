//! Whether a queue has begun to grow, told from single round trips (PROTOCOL.md §9.5).
//!
//! Intervals answer a round trip and a half late; while the rate doubles that is too late. Delays that only vary are
//! told from those that grow by how often they fall.

use core::time::Duration;

/// Round trips looked at together when delays vary.
const WINDOW: usize = 6;

/// Round trips after which the noise of delays is taken to be known.
const LEAST: u32 = 6;

#[derive(Debug, Default)]
pub(super) struct Onset {
    last: [Duration; WINDOW],
    seen: u32,
    /// How much delays vary: by how far they fell lately. A growing queue does not fall.
    noise: Duration,
    /// Where the present run of long delays began: (receiver's clock µs, bytes delivered).
    began: Option<(u64, u64)>,
    run: usize,
}

impl Onset {
    /// Adds a round trip that ended at `point`; true once a queue beyond `limit` grows.
    pub(super) fn add(&mut self, rtt: Duration, base: Duration, limit: Duration, point: (u64, u64)) -> bool {
        let before = self.last[0];
        if self.seen > 0 {
            let fall = before.saturating_sub(rtt);
            self.noise = if fall > self.noise { (self.noise + fall) / 2 } else { self.noise * 31 / 32 };
        }
        self.last.rotate_right(1);
        self.last[0] = rtt;
        self.seen = self.seen.saturating_add(1);
        let queue = rtt.saturating_sub(base);
        if queue > limit / 2 + self.noise {
            self.began.get_or_insert(point);
            self.run += 1;
        } else {
            (self.began, self.run) = (None, 0);
        }
        // Quiet delays convince in pairs, restless ones only all together.
        let wanted = if self.noise > limit / 4 { WINDOW } else { 2 };
        let bar = base + limit + self.noise * 3 / 2;
        let grows = rtt + Duration::from_millis(1) >= before;
        // Of the first few, noise is not known yet.
        let known = self.seen >= LEAST || queue > base / 4;
        known && self.run >= wanted && grows && self.last[..wanted].iter().all(|&r| r > bar)
    }

    /// Where the run of long delays began, if there is one.
    pub(super) fn began(&self) -> Option<(u64, u64)> {
        self.began
    }

    pub(super) fn noise(&self) -> Duration {
        self.noise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(100);
    const LIMIT: Duration = Duration::from_millis(6);

    fn feed(delays_us: impl IntoIterator<Item = u64>) -> Option<usize> {
        let mut onset = Onset::default();
        delays_us.into_iter().enumerate().position(|(i, d)| {
            onset.add(BASE + Duration::from_micros(d), BASE, LIMIT, (i as u64 * 12_500, 0))
        })
    }

    #[test]
    fn a_growing_queue_is_seen_in_two_samples() {
        assert_eq!(feed([0, 100, 50, 0, 2000, 5000, 8000, 12_000, 20_000]), Some(7));
        assert_eq!(feed([0, 0, 0, 40_000, 90_000]), Some(4), "the path is far slower");
    }

    #[test]
    fn a_stall_and_jitter_are_no_queue() {
        assert_eq!(feed([0, 0, 9000, 0, 0, 15_000, 8000, 2000, 0]), None);
        // Uniform between 0 and 30 ms.
        let mut x = 12345u64;
        let mut jitter = move || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) % 30_000
        };
        assert_eq!(feed((0..2000).map(|_| jitter())), None);
    }
}
