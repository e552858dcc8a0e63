//! When the next packet may leave: a shallow token bucket at the controller's rate (PROTOCOL.md §8.7).

use core::time::Duration;

use timebase::Instant;

/// How far unused time may be made up for: what a timer of 1 ms grain is late by.
const DEPTH_US: u64 = 2_000;
/// How much is gathered before it is worth waking up.
const QUANTUM_US: u64 = 500;

#[derive(Clone, Debug)]
pub(crate) struct Pacer {
    rate: u64,
    /// Bytes that may leave now, in millionths, so that slow rates lose nothing to rounding.
    tokens: i64,
    updated: Instant,
}

const SCALE: i64 = 1_000_000;

impl Pacer {
    pub(crate) fn new(now: Instant, rate: u64) -> Self {
        Self { rate, tokens: 0, updated: now }
    }

    pub(crate) fn set_rate(&mut self, now: Instant, rate: u64, packet: usize) {
        self.refill(now, packet);
        self.rate = rate.max(1);
    }

    fn refill(&mut self, now: Instant, packet: usize) {
        let elapsed = now.saturating_since(self.updated).as_micros().min(10_000_000) as u64;
        self.updated = now;
        // A microsecond at `rate` bytes/s is `rate` millionths of a byte.
        self.tokens =
            self.tokens.saturating_add(i64::try_from(self.rate.saturating_mul(elapsed)).unwrap_or(i64::MAX));
        self.tokens = self.tokens.min(self.depth(packet));
    }

    fn depth(&self, packet: usize) -> i64 {
        i64::try_from(self.rate.saturating_mul(DEPTH_US)).unwrap_or(i64::MAX).max(packet as i64 * SCALE)
    }

    /// Whether a packet of `packet` bytes may leave now.
    pub(crate) fn is_ready(&mut self, now: Instant, packet: usize) -> bool {
        self.refill(now, packet);
        self.tokens >= packet as i64 * SCALE
    }

    pub(crate) fn on_sent(&mut self, bytes: usize) {
        // Debt (probes, acknowledgements) is limited, so that it never silences for long.
        self.tokens = (self.tokens - bytes as i64 * SCALE).max(-64 * SCALE * 1500);
    }

    /// When to look again: once a quantum, and one packet at least, has gathered.
    pub(crate) fn next(&self, packet: usize) -> Instant {
        let quantum = i64::try_from(self.rate.saturating_mul(QUANTUM_US)).unwrap_or(i64::MAX);
        let wanted = quantum.max(packet as i64 * SCALE).min(self.depth(packet));
        let missing = wanted.saturating_sub(self.tokens).max(0) as u64;
        self.updated + Duration::from_micros(missing.div_ceil(self.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent_in_a_second(rate: u64, packet: usize, late: Duration) -> u64 {
        let mut now = Instant::ZERO;
        let mut pacer = Pacer::new(now, rate);
        let mut sent = 0;
        while now < Instant::from_micros(1_000_000) {
            let mut burst = 0;
            while pacer.is_ready(now, packet) {
                pacer.on_sent(packet);
                burst += packet as u64;
            }
            assert!(burst <= (rate * DEPTH_US / 1_000_000).max(packet as u64));
            sent += burst;
            now = pacer.next(packet).max(now) + late;
        }
        sent
    }

    #[test]
    fn the_rate_is_kept_for_slow_and_fast_and_late_timers() {
        for rate in [3_000, 100_000, 12_500_000, 125_000_000, 1_250_000_000] {
            let got = sent_in_a_second(rate, 1452, Duration::ZERO);
            assert!(got.abs_diff(rate) < rate / 50 + 2 * 1452, "{got} of {rate}");
        }
        let got = sent_in_a_second(125_000_000, 1452, Duration::from_millis(1));
        assert!(got > 121_000_000, "{got}");
    }
}
