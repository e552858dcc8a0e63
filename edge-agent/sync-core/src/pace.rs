//! How fast a peer delivers, and how many blocks to keep asked of it.

use core::time::Duration;

use timebase::Instant;

use crate::config::FetchConfig;

/// Assumed until the transport has measured.
const RTT_ASSUMED: Duration = Duration::from_millis(50);
/// A sample spans at least this much …
const SAMPLE_MIN: Duration = Duration::from_millis(100);
/// … and so many blocks, or this much.
const SAMPLE_BLOCKS: u32 = 4;
const SAMPLE_MAX: Duration = Duration::from_secs(1);

/// The delivery rate of one peer.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    pub(crate) rtt: Duration,
    since: Option<Instant>,
    blocks: u32,
    /// Thousandths of blocks a second.
    rate: u64,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { rtt: RTT_ASSUMED, since: None, blocks: 0, rate: 0 }
    }

    /// A block arrived.
    pub(crate) fn arrived(&mut self, now: Instant) {
        let Some(since) = self.since else {
            self.since = Some(now);
            return;
        };
        self.blocks += 1;
        let elapsed = now - since;
        if elapsed >= SAMPLE_MIN && (self.blocks >= SAMPLE_BLOCKS || elapsed >= SAMPLE_MAX) {
            let sample = u64::from(self.blocks) * 1_000_000_000 / (elapsed.as_micros() as u64).max(1);
            // Up at once, so that a pipeline grows by doubling; down slowly, so that a pause costs little.
            self.rate = sample.max((3 * self.rate + sample) / 4);
            (self.since, self.blocks) = (Some(now), 0);
        }
    }

    /// Nothing is asked any more: the time until the next request says nothing about the peer.
    pub(crate) fn rest(&mut self) {
        (self.since, self.blocks) = (None, 0);
    }

    /// How many blocks to keep asked: what arrives in two round trips and the lookahead, so that the
    /// number can double every round trip while the peer keeps up.
    pub(crate) fn target(&self, config: &FetchConfig, min: u32, max: u32) -> u32 {
        let blocks = self.within(2 * self.rtt + config.lookahead);
        u32::try_from(blocks + 1).unwrap_or(u32::MAX).clamp(min.min(max), max)
    }

    /// Blocks that come in such a time.
    pub(crate) fn within(&self, time: Duration) -> u64 {
        self.rate.saturating_mul(time.as_micros() as u64) / 1_000_000_000
    }

    /// The usual time between two blocks; zero while unknown.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_micros(1_000_000_000u64.checked_div(self.rate).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_rate() {
        let config = FetchConfig::default();
        let mut pace = Pace::new();
        assert_eq!(pace.target(&config, 4, 1024), 4);
        let mut now = Instant::ZERO;
        for _ in 0..1000 {
            now += Duration::from_millis(1);
            pace.arrived(now);
        }
        // 1000 blocks a second, 250 ms ahead.
        assert!((245..=260).contains(&pace.target(&config, 4, 1024)), "{}", pace.target(&config, 4, 1024));
        assert_eq!(pace.target(&config, 4, 100), 100);
        assert_eq!(pace.interval(), Duration::from_millis(1));
        for _ in 0..100 {
            now += Duration::from_millis(500);
            pace.arrived(now);
        }
        assert_eq!(pace.target(&config, 4, 1024), 4);
    }
}
