//! Beside a sender that only loss stops (mode *fair*): a window like CUBIC's, RFC 9438 (PROTOCOL.md §9.9).
//!
//! A flow that keeps to a queue target is starved by one that fills the queue. While such a one is there, this window
//! decides: it grows and shrinks as the other's does, so both get about the same. Whether the other is gone is found
//! out now and then by draining: [`super::avoid`] does that, and decides when to enter and to leave.

use core::time::Duration;

use timebase::Instant;

use super::Shared;
use super::interval::Interval;
use super::math::cube_root;

/// What is left of the window after a loss.
const BETA: f64 = 0.7;
/// The same where the other did not shrink: paced packets meet a full queue more often than those that a packet
/// leaving it has called for, and would yield to them without end.
const BETA_ALONE: f64 = 0.9;
/// The round trip, of what it was before a loss, above which only our window can have shrunk.
const ALONE: f64 = 0.82;
/// Growth, packets per cubic second: twice CUBIC's, since paced packets lose more of what is lost than their share.
const C: f64 = 0.8;
/// Growth at least, packets per round trip: as much as Reno's on average with its own BETA.
const RENO: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
/// The first time to listen whether the other is gone, and the longest.
const LISTEN: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(60)];

#[derive(Debug)]
pub(super) struct Compete {
    /// Bytes.
    window: f64,
    /// The window at the last loss; less if that one was smaller than the one before.
    window_max: f64,
    /// Since the last loss: when growth began, seconds until `window_max`, and Reno's window.
    epoch: Option<(Instant, f64, f64)>,
    /// The last cut, until it is known whether the other shrank as well: when, the window and the round trip before.
    cut: Option<(Instant, f64, Duration)>,
    /// When to listen next.
    pub(super) listen_at: Instant,
    pub(super) period: Duration,
}

impl Compete {
    /// Begins at `rate`; `period` is what the last competition ended with, if it ended lately.
    pub(super) fn new(now: Instant, s: &Shared, rate: f64, period: Option<Duration>) -> Self {
        let window = rate * s.rtt.as_secs_f64();
        let period = period.map_or(LISTEN[0], |p| (p * 2).min(LISTEN[1]));
        Self { window, window_max: window, epoch: None, cut: None, listen_at: now + period, period }
    }

    /// Goes on at `rate` after having listened.
    pub(super) fn resume(&mut self, now: Instant) {
        self.cut = None;
        self.listen_at = now + self.period;
    }

    pub(super) fn rate(&self, s: &Shared) -> f64 {
        self.window / s.rtt.as_secs_f64().max(1e-4)
    }

    /// A round trip after a cut the queue tells whether others shrank too: if not, it is as good as full again, and most
    /// of what was yielded is taken back.
    fn judge_cut(&mut self, s: &Shared, i: &Interval) {
        let (Some((at, window, rtt)), Some(seen)) = (self.cut, i.rtt_min) else { return };
        if i.began.saturating_since(at) < s.rtt {
            return;
        }
        self.cut = None;
        if seen > rtt.mul_f64(ALONE) && self.window < BETA_ALONE * window {
            self.window = BETA_ALONE * window;
            self.epoch = None;
        }
    }

    /// Takes in an interval; tells whether it called for a cut.
    pub(super) fn judge(&mut self, now: Instant, s: &Shared, i: &Interval) -> bool {
        let (sent, lost) = (f64::from(i.sent), f64::from(i.lost));
        let p = s.base_loss.estimate();
        let chance = if p > 0.0 { sent * (p + 3.5 * s.base_loss.sigma(p, sent)) + 1.0 } else { 0.0 };
        if lost > chance || i.marked > 0 {
            self.window_max =
                if self.window < self.window_max { self.window * (1.0 + BETA) / 2.0 } else { self.window };
            self.cut = Some((now, self.window, i.rtt_max.max(s.rtt)));
            self.window = (self.window * BETA).max(4.0 * s.packet);
            self.epoch = None;
            return true;
        }
        self.judge_cut(s, i);
        if i.limited {
            return false;
        }
        if self.epoch.is_none() {
            let missing = (self.window_max - self.window).max(0.0) / s.packet;
            self.window_max = self.window_max.max(self.window);
            self.epoch = Some((now, cube_root(missing / C), self.window));
        }
        let rtt = s.rtt.as_secs_f64().max(1e-3);
        if let Some((began, k, reno)) = &mut self.epoch {
            let rounds = (i.duration().as_secs_f64() / rtt).min(4.0);
            *reno += RENO * s.packet * rounds;
            let t = now.saturating_since(*began).as_secs_f64() + rtt - *k;
            let target = C * t * t * t * s.packet + self.window_max;
            let grown = target.min(self.window * (1.0 + 0.5 * rounds));
            self.window = self.window.max(grown).max(*reno);
        }
        false
    }
}
