//! SpeedProbe: empty the queue, then see whether a packet train just below the rate found passes (PROTOCOL.md §9).

use core::time::Duration;

use timebase::Instant;

use super::interval::Interval;
use super::{Change, Shared};

#[derive(Debug)]
pub(super) struct SpeedProbe {
    began: Instant,
    step: Step,
    cuts: u32,
    /// Packets and losses of the present train, and the loss of the train before the last cut.
    sent: f64,
    lost: f64,
    loss_before: f64,
    empty_since_cut: bool,
    epoch: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Drain,
    Train,
}

/// Packets of a train.
const TRAIN: f64 = 300.0;

impl SpeedProbe {
    pub(super) fn new(now: Instant, drain: bool) -> Self {
        Self {
            began: now,
            step: if drain { Step::Drain } else { Step::Train },
            cuts: 0,
            sent: 0.0,
            lost: 0.0,
            loss_before: 0.0,
            empty_since_cut: false,
            epoch: 0,
        }
    }

    pub(super) fn judge(&mut self, now: Instant, s: &mut Shared, i: &Interval, queue: Duration) -> Change {
        if i.epoch != s.epoch {
            return Change::Stay;
        }
        if self.epoch != s.epoch {
            (self.epoch, self.sent, self.lost) = (s.epoch, 0.0, 0.0);
            self.empty_since_cut = false;
        }
        self.empty_since_cut |= i.rtt_min.is_some() && queue < s.empty_below();
        let age = now.saturating_since(self.began);
        if self.step == Step::Drain {
            // What arrives while the queue drains is the path's capacity.
            if let Some(d) = s.delivered().filter(|_| !s.is_limited(now)) {
                let r = d / (1.0 - s.base_loss.estimate());
                if queue > s.empty_below() {
                    s.remembered = s.remembered.max(r.min(s.remembered * 1.5));
                }
            }
            let drained = i.rtt_min.is_some() && queue < (s.target() / 2).max(s.empty_below());
            if drained || age > s.rtt() * 8 {
                self.step = Step::Train;
                self.began = now;
                let rate = 0.93 * s.remembered;
                s.cut(now, rate);
            }
            return Change::Stay;
        }
        self.sent += f64::from(i.sent);
        self.lost += f64::from(i.lost);
        let late = age > s.rtt() * 3;
        if self.sent < TRAIN && !(late && self.sent >= 20.0) {
            return Change::Stay;
        }
        let loss = self.lost / self.sent;
        let excess = loss - s.base_loss.estimate();
        if excess <= s.base_loss.noise(self.sent) {
            return Change::Avoid;
        }
        if self.cuts > 0 && self.empty_since_cut && loss > 0.85 * self.loss_before {
            // Sending less did not lose less, and no queue stands: the loss is not ours.
            s.base_loss.set(1.03 * loss);
            s.rate = 0.97 * s.remembered;
            return Change::Avoid;
        }
        if self.cuts >= 6 {
            return Change::Avoid;
        }
        self.cuts += 1;
        self.loss_before = loss;
        self.began = now;
        let rate = 0.85 * s.rate;
        if let Some(r) = s.sustainable().filter(|_| !s.is_limited(now)) {
            s.remembered = rate.max(s.remembered.min(1.05 * r));
        }
        s.cut(now, rate);
        Change::Stay
    }
}
