//! The loss that does not come from our own sending: learned only while the queue was seen empty (PROTOCOL.md §9).

use alloc::collections::VecDeque;
use core::time::Duration;

use timebase::Instant;

use super::math::sqrt;

/// Base loss is never believed to be higher.
const CAP: f64 = 0.25;
const MEMORY: Duration = Duration::from_secs(20);
const MAX_WINDOWS: usize = 128;

#[derive(Debug)]
pub(super) struct BaseLoss {
    estimate: f64,
    /// (when, loss, packets) of windows with an empty queue.
    windows: VecDeque<(Instant, f64, f64)>,
    began: Option<Instant>,
    sent: f64,
    lost: f64,
    /// Whether the queue was seen empty in all intervals of the window, and in any.
    all_empty: bool,
    any_empty: bool,
    /// How much more the loss of a group varies than independent losses would.
    dispersion: f64,
    mean: f64,
}

impl BaseLoss {
    pub(super) fn new() -> Self {
        Self {
            estimate: 0.0,
            windows: VecDeque::new(),
            began: None,
            sent: 0.0,
            lost: 0.0,
            all_empty: true,
            any_empty: false,
            dispersion: 1.5,
            mean: 0.0,
        }
    }

    pub(super) fn estimate(&self) -> f64 {
        self.estimate
    }

    pub(super) fn set(&mut self, loss: f64) {
        self.estimate = loss.clamp(0.0, CAP);
    }

    /// Standard deviation of the loss of `n` packets when the true loss is `p`.
    pub(super) fn sigma(&self, p: f64, n: f64) -> f64 {
        let p = p.max(1.0 / n.max(1.0)).min(0.5);
        sqrt(self.dispersion * p * (1.0 - p) / n.max(1.0))
    }

    /// Loss of `n` packets up to this much above the estimate is no news.
    pub(super) fn noise(&self, n: f64) -> f64 {
        (3.5 * self.sigma(self.estimate, n)).max(0.005)
    }

    /// Learns how bursty losses are from a group of packets.
    pub(super) fn observe_dispersion(&mut self, sent: f64, lost: f64) {
        if sent < 20.0 {
            return;
        }
        self.mean += 0.02 * (lost / sent - self.mean);
        let expected = sent * self.mean * (1.0 - self.mean);
        if expected > 0.5 {
            let difference = lost - sent * self.mean;
            let ratio = (difference * difference / expected).min(60.0);
            self.dispersion = (self.dispersion + 0.02 * (ratio - self.dispersion)).clamp(1.0, 30.0);
        }
    }

    /// Adds an interval; `empty` tells whether its queue was seen empty, `noisy` that delays vary so much by
    /// themselves that one such interval must do for a window.
    pub(super) fn add(
        &mut self,
        now: Instant,
        rtt: Duration,
        (sent, lost): (f64, f64),
        empty: bool,
        noisy: bool,
    ) {
        let began = *self.began.get_or_insert(now);
        self.sent += sent;
        self.lost += lost;
        self.all_empty &= empty;
        self.any_empty |= empty;
        let age = now.saturating_since(began);
        if !(age >= rtt && self.sent >= 500.0 || age >= rtt * 4 && self.sent >= 40.0) {
            return;
        }
        if self.all_empty || noisy && self.any_empty {
            if self.windows.len() == MAX_WINDOWS {
                self.windows.pop_front();
            }
            self.windows.push_back((now, self.lost / self.sent, self.sent));
        }
        while self.windows.front().is_some_and(|w| now.saturating_since(w.0) > MEMORY) {
            self.windows.pop_front();
        }
        self.restart(now);
        self.learn();
    }

    /// The lower half of the windows, so that self-made loss in some of them does not teach.
    fn learn(&mut self) {
        let n = self.windows.len();
        if n == 0 {
            return;
        }
        let mut losses = [(0.0, 0.0); MAX_WINDOWS];
        for (l, w) in losses.iter_mut().zip(&self.windows) {
            *l = (w.1, w.2);
        }
        let losses = &mut losses[..n];
        losses.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let half = &losses[..n.div_ceil(2)];
        let packets: f64 = half.iter().map(|l| l.1).sum();
        let mean = half.iter().map(|l| l.0 * l.1).sum::<f64>() / packets.max(1.0);
        let one_window = packets / half.len() as f64;
        self.set(mean + if mean > 0.0 { 0.8 * self.sigma(mean, one_window) } else { 0.0 });
    }

    /// Starts the present window anew: what was gathered belongs to another rate.
    pub(super) fn restart(&mut self, now: Instant) {
        (self.began, self.sent, self.lost) = (Some(now), 0.0, 0.0);
        (self.all_empty, self.any_empty) = (true, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_with_a_queue_teaches_nothing() {
        let mut b = BaseLoss::new();
        let rtt = Duration::from_millis(50);
        let mut now = Instant::ZERO;
        for i in 0..200 {
            now += rtt / 2;
            let queue = i % 2 == 0;
            // 2 % always, 12 % where a queue stands for a whole window.
            let standing = (i / 20) % 2 == 1;
            b.observe_dispersion(500.0, 10.0);
            b.add(now, rtt, (500.0, if standing { 60.0 } else { 10.0 }), !(standing && queue), false);
        }
        assert!((0.019..0.03).contains(&b.estimate()), "{}", b.estimate());
        assert!(b.noise(500.0) < 0.04);
    }
}
