//! The loss that does not come from our own sending: learned only while the queue was seen empty (PROTOCOL.md §9.1).

use alloc::collections::VecDeque;
use core::time::Duration;

use timebase::Instant;

use super::math::sqrt;

/// Base loss is never believed to be higher.
const CAP: f64 = 0.25;
const MEMORY: Duration = Duration::from_secs(20);
const MAX_WINDOWS: usize = 128;

/// A stretch of sending through an empty queue.
#[derive(Clone, Copy, Debug)]
struct Window {
    at: Instant,
    packets: f64,
    lost: f64,
    /// Bytes/s sent.
    rate: f64,
}

#[derive(Debug)]
pub(super) struct BaseLoss {
    estimate: f64,
    windows: VecDeque<Window>,
    began: Option<Instant>,
    sent: f64,
    lost: f64,
    /// Σ packets × rate of the window under way.
    weighted_rate: f64,
    /// Whether the queue was seen empty in all intervals of the window, and in any.
    all_empty: bool,
    any_empty: bool,
    /// How much more the loss of a group varies than independent losses would.
    dispersion: f64,
    mean: f64,
    observed: f64,
    /// Packets sent and lost in the last deep probes, older ones weighing less.
    probed: (f64, f64),
    /// The same of what was sent slower for other reasons: before the start came to the path's rate, in trials.
    slower: (f64, f64),
}

impl BaseLoss {
    pub(super) fn new() -> Self {
        Self {
            estimate: 0.0,
            windows: VecDeque::new(),
            began: None,
            sent: 0.0,
            lost: 0.0,
            weighted_rate: 0.0,
            all_empty: true,
            any_empty: false,
            dispersion: 1.5,
            mean: 0.0,
            observed: 0.0,
            probed: (0.0, 0.0),
            slower: (0.0, 0.0),
        }
    }

    pub(super) fn estimate(&self) -> f64 {
        self.estimate
    }

    pub(super) fn set(&mut self, loss: f64) {
        self.estimate = loss.clamp(0.0, self.ceiling());
    }

    /// No more than what was lost when sending much slower, as far as that is known.
    fn ceiling(&self) -> f64 {
        let (sent, lost) = (self.probed.0 + self.slower.0, self.probed.1 + self.slower.1);
        if sent < if self.slower.0 > 0.0 { 150.0 } else { 300.0 } {
            return CAP;
        }
        let loss = lost / sent;
        CAP.min(loss + 2.5 * self.sigma(loss, sent))
    }

    /// A deep probe lost `lost` of `sent`.
    pub(super) fn add_probe(&mut self, sent: f64, lost: f64) {
        self.probed.0 += sent;
        self.probed.1 += lost;
        self.set(self.estimate);
    }

    /// Slower than what the path was seen to bear, `lost` of `sent` were lost. What was lost before was of our own making,
    /// and so was its unevenness.
    pub(super) fn add_slower(&mut self, sent: f64, lost: f64) {
        self.dispersion = (self.dispersion / 2.0).max(1.0);
        self.slower.0 += sent;
        self.slower.1 += lost;
        self.set(self.estimate);
    }

    /// Whether no deep probe has confirmed it yet.
    pub(super) fn is_unproven(&self) -> bool {
        self.probed.0 < 300.0
    }

    /// A deep probe begins.
    pub(super) fn begin_probe(&mut self) {
        for p in [&mut self.probed, &mut self.slower] {
            *p = (p.0 / 2.0, p.1 / 2.0);
        }
    }

    /// A trial has shown what the loss is; what was seen before it is out of date.
    pub(super) fn replace(&mut self, loss: f64) {
        self.windows.clear();
        (self.probed, self.slower) = ((0.0, 0.0), (0.0, 0.0));
        self.set(loss);
    }

    /// About how many packets are lost together.
    pub(super) fn burst(&self) -> f64 {
        (self.dispersion + 1.0) / 2.0
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

    /// Learns how bursty losses are from a group of packets that met no queue.
    pub(super) fn observe_dispersion(&mut self, sent: f64, lost: f64) {
        if sent < 20.0 {
            return;
        }
        self.observed = (self.observed + 1.0).min(50.0);
        let gain = 1.0 / self.observed;
        self.mean += gain * (lost / sent - self.mean);
        let expected = sent * self.mean * (1.0 - self.mean);
        if expected > 0.5 {
            let difference = lost - sent * self.mean;
            let ratio = (difference * difference / expected).min(100.0);
            self.dispersion = (self.dispersion + gain * (ratio - self.dispersion)).clamp(1.0, 60.0);
        }
    }

    /// Adds an interval sent at `rate`; `empty` tells whether its queue was seen empty, `noisy` that delays vary so
    /// much by themselves that one such interval must do for a window.
    pub(super) fn add(
        &mut self,
        now: Instant,
        rtt: Duration,
        (sent, lost, rate): (f64, f64, f64),
        empty: bool,
        noisy: bool,
    ) {
        let began = *self.began.get_or_insert(now);
        self.sent += sent;
        self.lost += lost;
        self.weighted_rate += sent * rate;
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
            let rate = self.weighted_rate / self.sent.max(1.0);
            self.windows.push_back(Window { at: now, packets: self.sent, lost: self.lost, rate });
        }
        while self.windows.front().is_some_and(|w| now.saturating_since(w.at) > MEMORY) {
            self.windows.pop_front();
        }
        self.restart(now);
        self.learn();
    }

    /// From the slower half of the windows: loss of our own making is in the faster ones. Chosen by their loss instead,
    /// the windows would teach too little wherever losses come in bursts.
    fn learn(&mut self) {
        let n = self.windows.len();
        if n == 0 {
            return;
        }
        let mut sorted = [(0.0, 0.0, 0.0); MAX_WINDOWS];
        let mut packets = 0.0;
        for (s, w) in sorted.iter_mut().zip(&self.windows) {
            *s = (w.rate, w.packets, w.lost);
            packets += w.packets;
        }
        let sorted = &mut sorted[..n];
        sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let (mut sent, mut lost) = (0.0, 0.0);
        for s in sorted.iter() {
            sent += s.1;
            lost += s.2;
            if sent >= 0.5 * packets {
                break;
            }
        }
        let mean = lost / sent.max(1.0);
        self.set(mean + if mean > 0.0 { 0.8 * self.sigma(mean, sent / 2.0) } else { 0.0 });
    }

    /// Starts the present window anew: what was gathered belongs to another rate.
    pub(super) fn restart(&mut self, now: Instant) {
        (self.began, self.sent, self.lost, self.weighted_rate) = (Some(now), 0.0, 0.0, 0.0);
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
            b.add(now, rtt, (500.0, if standing { 60.0 } else { 10.0 }, 1e6), !(standing && queue), false);
        }
        assert!((0.019..0.03).contains(&b.estimate()), "{}", b.estimate());
        assert!(b.noise(500.0) < 0.04);
    }
}
