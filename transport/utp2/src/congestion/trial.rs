//! Whether sending less helps: tells loss of our own making from loss by chance (PROTOCOL.md §9.4).
//!
//! Where no queue shows, loss beyond the base loss may still be congestion: a very short queue, a policer. The rate
//! is cut once, by somewhat more than what was lost, and held. If the loss goes away it was ours; what stays is not.

use core::time::Duration;

use timebase::Instant;

use super::Shared;
use super::interval::Interval;

#[derive(Debug)]
pub(super) struct Trial {
    /// The rate before the cut.
    pub(super) rate: f64,
    /// The loss before the cut, and the base loss then believed.
    loss: f64,
    base: f64,
    sent: f64,
    lost: f64,
    began: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    /// Not enough packets yet.
    Waiting,
    /// A queue shows: delay tells more than the trial could.
    Queue,
    /// The loss went away; sent and lost meanwhile.
    Own(f64, f64),
    /// The loss, so much of it, stayed.
    Chance(f64),
}

impl Trial {
    pub(super) fn new(rate: f64, loss: f64, base: f64) -> Self {
        Self { rate, loss, base, sent: 0.0, lost: 0.0, began: None }
    }

    /// The rate to try with.
    pub(super) fn slower(&self) -> f64 {
        let cut = (1.25 * (self.loss - self.base) + 0.02).clamp(0.03, 0.2);
        self.rate * (1.0 - cut)
    }

    pub(super) fn judge(&mut self, s: &Shared, i: &Interval, queue: Duration) -> Verdict {
        let longest = i.rtt_max.saturating_sub(s.rtt_min);
        let swings = s.jitter <= Duration::from_millis(1) && longest > s.empty_below() * 2;
        if i.rtt_min.is_some() && (swings || queue > s.target() && queue > s.empty_below()) {
            return Verdict::Queue;
        }
        let began = *self.began.get_or_insert(i.began);
        self.sent += f64::from(i.sent);
        self.lost += f64::from(i.lost);
        let excess = (self.loss - self.base).max(0.005);
        let p = 0.5 * (self.loss + self.base);
        let sigma = s.base_loss.sigma(p, 1.0);
        let wanted = (36.0 * sigma * sigma / (excess * excess)).clamp(300.0, 20_000.0);
        let age = i.ended.unwrap_or(i.began).saturating_since(began);
        let gone = self.lost == 0.0 && self.sent * excess > 8.0 * s.base_loss.burst();
        if !gone && self.sent < wanted && age < s.rtt() * 20 || age < s.rtt() / 2 {
            return Verdict::Waiting;
        }
        let seen = self.lost / self.sent.max(1.0);
        let above = seen - self.base;
        if above > (0.35 * excess).max(2.0 * s.base_loss.sigma(seen, self.sent)) {
            Verdict::Chance(seen)
        } else {
            Verdict::Own(self.sent, self.lost)
        }
    }
}
