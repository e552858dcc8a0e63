//! SpeedProbe: empty the queue, then see whether a long train just below the rate found passes (PROTOCOL.md §9.6).

use core::time::Duration;

use timebase::Instant;

use super::interval::Interval;
use super::{AckSample, Change, Shared};

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
    /// Longest delay of the present train beyond the minimum.
    longest: Duration,
    epoch: u32,
}

/// How a queue is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Drain {
    /// When what is in flight too much has gone, at half the rate.
    pub(super) until: Instant,
    /// The first ACK, (receiver's clock µs, bytes delivered), since which the queue was seen to stand: what arrives
    /// from there on is the path's rate.
    pub(super) since: Option<(u64, u64)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Drain(Drain),
    Train,
}

/// Packets of a train.
const TRAIN: f64 = 300.0;
/// A path whose queue grew to this much delay shows it well before it overflows.
const VISIBLE: Duration = Duration::from_millis(6);
/// Share of the rate found that is tested.
const SHARE: f64 = 0.95;

impl SpeedProbe {
    pub(super) fn new(now: Instant, drain: Option<Drain>) -> Self {
        Self {
            began: now,
            step: drain.map_or(Step::Train, Step::Drain),
            cuts: 0,
            sent: 0.0,
            lost: 0.0,
            loss_before: 0.0,
            empty_since_cut: false,
            longest: Duration::ZERO,
            epoch: 0,
        }
    }

    /// An ACK was taken in: measures the path while the queue stands, and ends the drain in time.
    pub(super) fn on_ack(&mut self, now: Instant, s: &mut Shared, ack: &AckSample) {
        let Step::Drain(drain) = &self.step else { return };
        let Some((rtt, _)) = ack.rtt else { return };
        let queue = rtt.saturating_sub(s.rtt_min);
        let standing = queue > s.rtt_min / 32 + Duration::from_millis(2);
        if standing && !s.is_limited(now) {
            let least = (s.rtt_min / 3).max(Duration::from_millis(8)).as_micros() as u64;
            if let Some(d) = drain.since.and_then(|b| s.delivery.rate_since(b, least)) {
                let r = d / (1.0 - s.base_loss.estimate());
                s.remembered = r.clamp(s.remembered * 0.7, s.remembered * 1.5);
            }
        }
        let least = s.rtt().mul_f64(0.9);
        let fits = (ack.in_flight as f64) < s.remembered * s.rtt_min.as_secs_f64();
        let drained = fits || !standing && now.saturating_since(self.began) > least;
        if now >= drain.until || drained {
            self.test(now, s);
        }
    }

    fn test(&mut self, now: Instant, s: &mut Shared) {
        self.step = Step::Train;
        self.began = now;
        let rate = SHARE * s.remembered;
        s.cut(now, rate);
    }

    pub(super) fn judge(&mut self, now: Instant, s: &mut Shared, i: &Interval, queue: Duration) -> Change {
        if i.epoch != s.epoch || self.step != Step::Train {
            return Change::Stay;
        }
        if self.epoch != s.epoch {
            (self.epoch, self.sent, self.lost) = (s.epoch, 0.0, 0.0);
            self.empty_since_cut = false;
            self.longest = Duration::ZERO;
        }
        self.empty_since_cut |= i.rtt_min.is_some() && queue < s.empty_below();
        if i.rtt_min.is_some() {
            self.longest = self.longest.max(i.rtt_max.saturating_sub(s.rtt_min));
        }
        let age = now.saturating_since(self.began);
        self.sent += f64::from(i.sent);
        self.lost += f64::from(i.lost);
        let late = age > s.rtt() * 3;
        if self.sent < TRAIN && !(late && self.sent >= 20.0) {
            return Change::Stay;
        }
        let loss = self.lost / self.sent;
        let excess = loss - s.base_loss.estimate();
        if excess <= s.base_loss.noise(self.sent) {
            s.sent_slower(self.sent, self.lost);
            return Change::Avoid;
        }
        // A queue that overflows shows first, where one was seen to hold so much: this one was empty all along.
        let peak = s.buffer.peak();
        let unseen = !s.is_local() && peak >= VISIBLE && self.longest < peak / 4;
        // Or sending less did not lose less, and no queue stands. Either way the loss is not ours.
        if unseen || self.cuts > 0 && self.empty_since_cut && loss > 0.85 * self.loss_before {
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
