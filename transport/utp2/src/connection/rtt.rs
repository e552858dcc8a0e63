//! Round trip time: smoothed, its deviation, and the minimum of the last minute (PROTOCOL.md §8.4).

use core::time::Duration;

use timebase::Instant;

use super::received::{MAX_ACK_INTERVAL, MIN_ACK_INTERVAL};

/// Buckets of the minimum filter; each lasts [`BUCKET`].
const BUCKETS: usize = 12;
const BUCKET: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(crate) struct Rtt {
    smoothed: Duration,
    deviation: Duration,
    latest: Duration,
    /// Minimum per bucket; the newest first.
    minima: [Duration; BUCKETS],
    bucket_began: Instant,
    /// Nothing was measured on this path yet.
    is_guess: bool,
}

impl Rtt {
    /// From the handshake's round trip, which includes the peer's arithmetic and so is an upper bound.
    pub(crate) fn new(now: Instant, first: Duration) -> Self {
        let mut minima = [Duration::MAX; BUCKETS];
        minima[0] = first;
        Self {
            smoothed: first,
            deviation: first / 2,
            latest: first,
            minima,
            bucket_began: now,
            is_guess: false,
        }
    }

    pub(crate) fn sample(&mut self, now: Instant, rtt: Duration) {
        let rtt = rtt.max(Duration::from_micros(1));
        if self.is_guess {
            *self = Self::new(now, rtt);
            return;
        }
        self.latest = rtt;
        let difference = self.smoothed.abs_diff(rtt);
        self.deviation = (self.deviation * 3 + difference) / 4;
        self.smoothed = (self.smoothed * 7 + rtt) / 8;
        if now.saturating_since(self.bucket_began) >= BUCKET {
            self.minima.rotate_right(1);
            self.minima[0] = Duration::MAX;
            self.bucket_began = now;
        }
        self.minima[0] = self.minima[0].min(rtt);
    }

    /// Another path (§10.3): the old one's time is a guess until the first sample, and then forgotten.
    pub(crate) fn reset(&mut self, now: Instant) {
        *self = Self { is_guess: true, ..Self::new(now, self.smoothed) };
    }

    /// The same path has become longer (§9.7): its minimum is now `min`.
    pub(crate) fn lengthen(&mut self, now: Instant, min: Duration) {
        self.minima = [Duration::MAX; BUCKETS];
        self.minima[0] = min;
        self.bucket_began = now;
    }

    pub(crate) fn smoothed(&self) -> Duration {
        self.smoothed
    }

    pub(crate) fn min(&self) -> Duration {
        self.minima.iter().copied().min().unwrap_or(self.smoothed)
    }

    /// How long to wait for a packet's acknowledgement beyond which it is unlikely to come, without the peer's holding.
    pub(crate) fn patience(&self) -> Duration {
        self.smoothed.max(self.latest) + (self.deviation * 4).max(Duration::from_millis(1))
    }

    /// How often either side should acknowledge (§8.1).
    pub(crate) fn ack_interval(&self) -> Duration {
        (self.smoothed / 8).clamp(MIN_ACK_INTERVAL, MAX_ACK_INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minimum_is_forgotten_after_a_minute() {
        let ms = Duration::from_millis;
        let mut now = Instant::ZERO;
        let mut rtt = Rtt::new(now, ms(50));
        rtt.sample(now, ms(20));
        for i in 0..70 {
            now += Duration::from_secs(1);
            rtt.sample(now, ms(30));
            assert_eq!(rtt.min(), if i < 59 { ms(20) } else { ms(30) }, "after {} s", i + 1);
        }
        assert!(rtt.smoothed().abs_diff(ms(30)) < ms(1));
    }

    #[test]
    fn a_longer_path_is_not_measured_against_the_old_one() {
        let ms = Duration::from_millis;
        let mut rtt = Rtt::new(Instant::ZERO, ms(20));
        rtt.reset(Instant::ZERO);
        assert_eq!((rtt.smoothed(), rtt.min()), (ms(20), ms(20)), "the best guess so far");
        rtt.sample(Instant::ZERO, ms(80));
        assert_eq!((rtt.smoothed(), rtt.min()), (ms(80), ms(80)));
        rtt.sample(Instant::ZERO, ms(90));
        assert_eq!(rtt.min(), ms(80));
    }
}
