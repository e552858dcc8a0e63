//! FastStart: double per round trip until the path stops following (PROTOCOL.md §9).

use alloc::vec::Vec;
use core::time::Duration;

use timebase::Instant;

use super::interval::Interval;
use super::{Change, Shared};

/// What an earlier, slower interval showed.
#[derive(Clone, Copy, Debug)]
struct Past {
    began: Instant,
    rate: f64,
    delivered: f64,
    sent: f64,
    lost: f64,
}

#[derive(Debug)]
pub(super) struct FastStart {
    past: Vec<Past>,
    /// Largest round trip of the interval before, and whether a queue showed in it.
    before: (Duration, bool),
}

/// Intervals remembered; older ones are far slower than what matters.
const MAX_PAST: usize = 32;

impl FastStart {
    pub(super) fn new() -> Self {
        Self { past: Vec::new(), before: (Duration::ZERO, false) }
    }

    /// The least loss of the slowest intervals together: chance loses as much at any rate, and so no more than this.
    fn least_loss(&self, most: f64) -> f64 {
        let (mut sent, mut lost, mut least) = (0.0, 0.0, most);
        for p in &self.past {
            (sent, lost) = (sent + p.sent, lost + p.lost);
            if sent >= 150.0 {
                least = f64::min(least, lost / sent);
            }
        }
        least
    }

    /// Every acknowledged byte adds to the rate, so that it doubles per round trip.
    pub(super) fn grow(&mut self, now: Instant, s: &mut Shared, acked: u64) {
        // An application that sends little must not drive the rate beyond what the path was seen to carry.
        let limited =
            s.last_limited.is_some_and(|t| now.saturating_since(t) < s.rtt + Duration::from_millis(2));
        if limited && s.delivered().is_none_or(|d| s.rate > 2.0 * d) {
            return;
        }
        // Doubling runs ahead of what arrives by two round trips; further ahead, something else limits the sender.
        // Where a round trip is shorter than anything else takes, what arrives is the better guide.
        let ahead = if s.is_local() { 2.5 } else { 6.0 };
        let window = (s.rtt * 2).max(Duration::from_millis(20));
        if s.delivery.rate(window.as_micros() as u64).is_some_and(|d| s.rate > ahead * d) {
            return;
        }
        // The acknowledgement interval is part of the loop.
        let round = s.rtt.as_secs_f64() + 0.002;
        s.rate += acked as f64 / round;
    }

    pub(super) fn judge(
        &mut self,
        now: Instant,
        s: &mut Shared,
        i: &Interval,
        queue: Duration,
        delivered: Option<f64>,
    ) -> Change {
        let (sent, lost, rate) = (f64::from(i.sent), f64::from(i.lost), i.send_rate());
        let slower = |p: &&Past| p.rate <= 0.6 * rate;
        let pool = self.past.iter().filter(slower).fold((0.0, 0.0), |a, p| (a.0 + p.sent, a.1 + p.lost));
        let p0: f64 = if pool.0 >= 150.0 { pool.1 / pool.0 } else { 0.0 };
        let p_noise = p0.max(1.0 / pool.0.max(20.0));
        let sigma = super::math::sqrt(3.0 * p_noise * (1.0 - p_noise) / sent.max(1.0));
        let d = delivered.or_else(|| s.delivered()).unwrap_or(0.0);

        let limit = s.rtt_min / 8;
        let limit = if s.is_local() {
            Duration::from_millis(10)
        } else {
            limit.clamp(Duration::from_millis(4), Duration::from_millis(16))
        };
        // A queue that grows makes the luckiest packet of an interval wait longer than all of the one before;
        // delays that only vary do not. Seen twice in a row it counts all the same.
        let long = queue > limit + s.jitter.min(limit);
        let rising = i.rtt_min.is_some_and(|m| m + Duration::from_millis(1) >= self.before.0);
        let queued = i.rtt_min.is_some() && long && (rising || self.before.1);
        self.before = (i.rtt_max, long);
        let lossy = pool.0 >= 150.0
            && sent >= 20.0
            && i.loss() - p0 > (4.0 * sigma).max(0.02)
            && d < 0.97 * (1.0 - p0) * rate;
        let collapsed = sent >= 20.0 && i.loss() > 0.4;
        let plateau = !i.limited && delivered.is_some() && {
            let old = i.began - s.rtt().mul_f64(0.9);
            let before = self.past.iter().rev().find(|p| p.began <= old && p.rate <= 0.6 * rate);
            before.is_some_and(|p| p.delivered > 0.0 && rate > 1.6 * p.rate && d < 1.15 * p.delivered)
        };
        if queued || lossy || collapsed || plateau {
            // The best of the last three intervals is what the path carries.
            let last = self.past.iter().rev().take(2).map(|p| p.delivered).fold(d, f64::max);
            let seen = last.max(s.delivered().unwrap_or(0.0));
            let p = self.least_loss(p0);
            s.base_loss.set(p + if p > 0.0 { sigma } else { 0.0 });
            s.remembered = (seen / (1.0 - p0)).max(8.0 * s.packet / s.rtt().as_secs_f64());
            let rate = 0.5 * s.remembered;
            s.cut(now, rate);
            return Change::SpeedProbe { drain: true };
        }
        if !i.limited && sent > 0.0 {
            if self.past.len() == MAX_PAST {
                self.past.remove(0);
            }
            self.past.push(Past { began: i.began, rate, delivered: d, sent, lost });
        }
        Change::Stay
    }
}
