//! When to stop waiting for peers and ask the origin for blocks by number.
//!
//! The origin sends each block to one destination and trusts that the others get it from there. If that one
//! is dead, or cannot be reached from here, nothing tells us: there is just no progress. Progress is a block
//! verified here, or one announced by a peer that nobody had before. How long is too long depends on what is
//! usual: over a thin link the origin may send a block every few seconds.

use core::time::Duration;

use timebase::Instant;

use crate::config::FetchConfig;

pub(super) struct Patience {
    last: Instant,
    /// Smoothed time between two pieces of progress.
    usual: Duration,
    asking: bool,
}

impl Patience {
    pub(super) fn new(now: Instant, config: &FetchConfig) -> Self {
        Self { last: now, usual: config.patience_min / 2, asking: false }
    }

    /// Fetching begins, or begins again.
    pub(super) fn start(&mut self, now: Instant, config: &FetchConfig) {
        *self = Self::new(now, config);
    }

    pub(super) fn progress(&mut self, now: Instant) {
        self.usual = (7 * self.usual + (now - self.last)) / 8;
        self.last = now;
    }

    /// The origin sends blocks of its choice: it has some that nobody was sent.
    pub(super) fn origin_chooses(&mut self) {
        self.asking = false;
    }

    pub(super) fn is_over(&self, now: Instant, config: &FetchConfig, rtt: Option<Duration>) -> bool {
        let Some(rtt) = rtt else { return false };
        let patience = config.patience_min.max(4 * rtt).max(8 * self.usual).min(config.patience_max);
        now - self.last >= patience
    }

    pub(super) fn ask_origin(&mut self) {
        self.asking = true;
    }

    pub(super) fn is_asking(&self) -> bool {
        self.asking
    }

    /// Nothing is left that only the origin can give.
    pub(super) fn satisfied(&mut self, now: Instant) {
        (self.asking, self.last) = (false, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_as_long_as_is_usual() {
        let config = FetchConfig::default();
        let (rtt, mut now) = (Some(Duration::from_millis(20)), Instant::ZERO);
        let mut patience = Patience::new(now, &config);
        for _ in 0..50 {
            now += Duration::from_millis(10);
            patience.progress(now);
        }
        assert!(!patience.is_over(now + Duration::from_millis(999), &config, rtt));
        assert!(patience.is_over(now + Duration::from_millis(1000), &config, rtt));
        assert!(!patience.is_over(now + Duration::from_secs(100), &config, None), "no origin, no asking");
        for _ in 0..50 {
            now += Duration::from_secs(1);
            patience.progress(now);
        }
        assert!(!patience.is_over(now + Duration::from_secs(7), &config, rtt));
        assert!(patience.is_over(now + Duration::from_secs(9), &config, rtt));
    }
}
