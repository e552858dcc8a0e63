//! FastStart: grow as fast as the evidence allows until the path stops following (PROTOCOL.md §9.5).
//!
//! Packet trains ([`super::train`]) and a remembered path say roughly where the path's rate lies: far below it the
//! rate grows eightfold per round trip, near it by a quarter. Nobody's word but the path's ends the growth: a queue
//! that grows ([`super::onset`]), loss beyond that of slower intervals, or arrivals that no longer follow.

use alloc::vec::Vec;
use core::time::Duration;

use timebase::Instant;

use super::interval::Interval;
use super::onset::Onset;
use super::speed_probe::Drain;
use super::train::Trains;
use super::{Change, Shared};
use crate::control::{AckSample, PathMemory};

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
    /// More was lost in the interval before than in slower ones.
    high_before: bool,
    pub(super) trains: Trains,
    onset: Onset,
    /// The rate of a path met before.
    known: Option<f64>,
    /// Base loss known before the start.
    known_loss: Option<f64>,
    /// Not the first search on this path: there may be others on it, who must not be run over.
    again: bool,
    /// The last train found a queue: others begin too, or the path is full.
    crowded: bool,
    /// More arrived than trains and memory promised.
    surpassed: bool,
}

/// Intervals remembered; older ones are far slower than what matters.
const MAX_PAST: usize = 32;
/// On shorter round trips there are no trains: a queue of half a round trip would not hold them, and the rate is found
/// within milliseconds without.
pub(super) const SHORT: Duration = Duration::from_millis(5);
/// Intervals in a row with loss and without growth that end the start, if nothing slower is known.
const STUCK: usize = 3;

impl FastStart {
    pub(super) fn new() -> Self {
        Self {
            past: Vec::new(),
            before: (Duration::ZERO, false),
            high_before: false,
            trains: Trains::default(),
            onset: Onset::default(),
            known: None,
            known_loss: None,
            again: false,
            crowded: false,
            surpassed: false,
        }
    }

    /// The path is taken to be the remembered one: begin at `share` of its rate.
    pub(super) fn resume(now: Instant, s: &mut Shared, memory: &PathMemory, share: f64) -> Self {
        let rate = memory.rate as f64;
        s.base_loss.set(memory.base_loss());
        s.remembered = rate;
        let begin = s.rate.max(share * rate);
        s.cut(now, begin);
        Self { known: Some(rate), known_loss: Some(memory.base_loss()), ..Self::new() }
    }

    /// The path has become longer and is thought to carry `rate`: goes on with nearly that. Where nothing was learned
    /// yet, the search begins from there.
    pub(super) fn lengthened(now: Instant, s: &mut Shared, rate: f64) -> Self {
        s.remembered = rate;
        s.cut(now, super::RESUME_SHARE * rate);
        let known = (s.learned > 0.0).then_some(rate);
        Self { known, known_loss: Some(s.base_loss.estimate()), ..Self::new() }
    }

    /// The path carries more than it did: search anew from the present rate.
    pub(super) fn again(s: &Shared) -> Self {
        Self { known_loss: Some(s.base_loss.estimate()), again: true, ..Self::new() }
    }

    /// Where the path's rate is thought to lie.
    fn expected(&self) -> Option<f64> {
        if self.surpassed {
            return None;
        }
        self.known.or_else(|| self.trains.rate())
    }

    /// Whether another train would tell something.
    pub(super) fn wants_train(&self, s: &Shared) -> bool {
        !s.is_local()
            && s.rtt_min >= SHORT
            && !self.surpassed
            && self.known.is_none()
            && (self.trains.is_coarse() || self.trains.rate().is_none_or(|r| s.rate < r / 2.0))
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

    /// Every acknowledged byte adds to the rate.
    fn grow(&mut self, now: Instant, s: &mut Shared, acked: u64) {
        // An application that sends little must not drive the rate beyond what the path was seen to carry.
        let limited =
            s.last_limited.is_some_and(|t| now.saturating_since(t) < s.rtt + Duration::from_millis(2));
        if limited && s.delivered().is_none_or(|d| s.rate > 2.0 * d) {
            return;
        }
        // The gain of this step, and the rate at which another one begins.
        let (gain, until) = match self.expected() {
            _ if s.is_local() => (1.0, f64::INFINITY),
            None if self.again || self.surpassed && !self.trains.is_coarse() => (0.5, f64::INFINITY),
            None => (1.0, f64::INFINITY),
            Some(e) if s.rate < e / 2.0 && (self.again || self.crowded) => (1.0, e / 2.0),
            Some(e) if s.rate < e / 8.0 => (7.0, e / 8.0),
            Some(e) if s.rate < e / 2.0 => (3.0, e / 2.0),
            Some(_) if self.trains.is_coarse() => (1.0, f64::INFINITY),
            Some(e) if s.rate < 0.8 * e && (self.again || self.crowded) => (0.5, 0.8 * e),
            Some(e) if s.rate < 0.8 * e => (2.0, 0.8 * e),
            Some(e) if s.rate < 0.95 * e => (1.0, 0.95 * e),
            // Slowly beyond it, and not far beyond what is seen to arrive.
            Some(e) => {
                let window = (s.rtt / 2).max(Duration::from_millis(10));
                let d = s.delivery.rate(window.as_micros() as u64).unwrap_or(0.0);
                (0.25, 1.2 * e.max(d))
            }
        };
        // Growth runs ahead of what arrives by its gain; further ahead, something else limits the sender.
        // Where a round trip is shorter than anything else takes, what arrives is the better guide.
        let ahead = if s.is_local() { 2.5 } else { 4.0 * (gain + 1.0f64).max(1.5) };
        let rounds = if s.is_local() { 2 } else { 1 };
        let window = (s.rtt * rounds).max(Duration::from_millis(20));
        let fed = self.known.is_some()
            || s.delivery.rate(window.as_micros() as u64).is_none_or(|d| s.rate <= ahead * d);
        if !fed {
            return;
        }
        // The acknowledgement interval is part of the loop.
        let round = s.rtt.as_secs_f64() + 0.002;
        s.rate = (s.rate + gain * acked as f64 / round).min(until.max(s.rate));
    }

    /// An ACK was taken in. `train` tells that its largest packet was of a train, in whose own queue it waited.
    pub(super) fn on_ack(&mut self, now: Instant, s: &mut Shared, ack: &AckSample, train: bool) -> Change {
        if let Some(e) = self.expected() {
            let window = (s.rtt / 2).max(Duration::from_millis(10));
            self.surpassed = s.delivery.rate(window.as_micros() as u64).is_some_and(|d| d > 1.15 * e);
        }
        self.grow(now, s, ack.acked_bytes);
        let Some((rtt, interval)) = ack.rtt else { return Change::Stay };
        let point = (ack.arrival_us, s.delivery.total());
        let limit = (s.rtt_min / 16).clamp(Duration::from_millis(4), Duration::from_millis(12));
        if train && self.trains.is_first(interval) {
            self.crowded = rtt > s.rtt_min + limit + self.onset.noise();
        }
        if self.trains.on_ack(interval, point, s.packet)
            && let Some(e) = self.expected()
            && self.onset.began().is_none()
            && !self.high_before
            && !self.crowded
        {
            // What one round trip bears out is enough for eight times as much, far below the path's rate.
            let step = if self.again { 2.0 } else { 8.0 };
            s.rate = s.rate.max((step * self.trains.rate_before()).min(e / 2.0));
        }
        if train || s.is_local() {
            return Change::Stay;
        }
        if self.onset.add(rtt, s.rtt_min, limit, point) {
            return self.leave(now, s, None, ack.in_flight);
        }
        Change::Stay
    }

    pub(super) fn judge(
        &mut self,
        now: Instant,
        s: &mut Shared,
        i: &Interval,
        queue: Duration,
        delivered: Option<f64>,
    ) -> Change {
        if i.epoch != s.epoch || i.train {
            return Change::Stay;
        }
        let (sent, lost, rate) = (f64::from(i.sent), f64::from(i.lost), i.send_rate());
        let slower = |p: &&Past| p.rate <= 0.6 * rate;
        let pool = self.past.iter().filter(slower).fold((0.0, 0.0), |a, p| (a.0 + p.sent, a.1 + p.lost));
        let known_loss = self.known_loss;
        let p0 = if pool.0 >= 150.0 { pool.1 / pool.0 } else { known_loss.unwrap_or(0.0) };
        let judged = pool.0 >= 150.0 || known_loss.is_some();
        let p_noise = p0.max(1.0 / pool.0.max(20.0));
        let sigma = super::math::sqrt(3.0 * p_noise * (1.0 - p_noise) / sent.max(1.0));
        let d = delivered.or_else(|| s.delivered()).or_else(|| s.capacity()).unwrap_or(0.0);

        let limit = s.rtt_min / 8;
        let limit = if s.is_local() {
            Duration::from_millis(10)
        } else {
            limit.clamp(Duration::from_millis(4), Duration::from_millis(16)) + self.onset.noise()
        };
        // A queue that grows makes the luckiest packet of an interval wait longer than all of the one before;
        // delays that only vary do not. Seen twice in a row it counts all the same.
        let long = queue > limit + s.jitter.min(limit);
        let rising = i.rtt_min.is_some_and(|m| m + Duration::from_millis(1) >= self.before.0);
        let queued = i.rtt_min.is_some() && long && (rising || self.before.1);
        self.before = (i.rtt_max, long);
        // Bursts happen: one interval convinces only if a tenth is lost, two in a row do with less.
        let expected = p0.max(1.0 / pool.0.max(20.0)) * sent;
        let excess = lost - p0 * sent;
        let high = judged
            && excess > (4.0 * super::math::sqrt(3.0 * (expected + 1.0))).max(0.02 * sent)
            && d < 0.97 * (1.0 - p0) * rate;
        let lossy = high && (self.high_before || excess > 0.1 * sent);
        self.high_before = high;
        let collapsed = sent >= 20.0 && i.loss() > 0.4;
        let plateau = !i.limited && delivered.is_some() && {
            let old = i.began - s.rtt().mul_f64(0.9);
            let before = self.past.iter().rev().find(|p| p.began <= old && p.rate <= 0.6 * rate);
            before.is_some_and(|p| p.delivered > 0.0 && rate > 1.6 * p.rate && d < 1.15 * p.delivered)
        };
        // So short a round trip that there are no slower intervals: the rate does not get any further, and much is lost.
        // Whether by chance is for SpeedProbe to find out.
        let stuck = !judged && lost > 0.02 * sent && sent >= 20.0 && {
            let last = self.past.iter().rev().take(STUCK);
            last.filter(|p| p.rate > 0.9 * rate && p.lost > 0.02 * p.sent).count() == STUCK
        };
        if queued || lossy || collapsed || plateau || stuck {
            // The best of the last three intervals is what the path carries.
            let last = self.past.iter().rev().take(2).map(|p| p.delivered).fold(d, f64::max);
            let seen = last.max(s.delivered().unwrap_or(0.0));
            let in_flight = s.in_flight;
            return self.leave(now, s, Some((seen / (1.0 - p0), p0, sigma)), in_flight);
        }
        if !i.limited && sent > 0.0 {
            if self.past.len() == MAX_PAST {
                self.past.remove(0);
            }
            self.past.push(Past { began: i.began, rate, delivered: d, sent, lost });
        }
        Change::Stay
    }

    /// What was sent and lost in intervals at no more than 0.6 × `rate`.
    fn sent_below(&self, rate: f64) -> (f64, f64) {
        let slower = self.past.iter().filter(|p| p.rate <= 0.6 * rate);
        slower.fold((0.0, 0.0), |a, p| (a.0 + p.sent, a.1 + p.lost))
    }

    /// Loss of intervals sent at no more than 0.6 × `rate`, and its standard deviation.
    fn loss_below(&self, rate: f64) -> (f64, f64) {
        let (sent, lost) = self.sent_below(rate);
        if sent < 150.0 {
            return (self.known_loss.unwrap_or(0.0), 0.0);
        }
        let p: f64 = lost / sent;
        (p, super::math::sqrt(3.0 * p * (1.0 - p) / sent))
    }

    /// The path is full: drain what was sent too much, then see.
    fn leave(
        &mut self,
        now: Instant,
        s: &mut Shared,
        found: Option<(f64, f64, f64)>,
        in_flight: u64,
    ) -> Change {
        s.is_loss_known = self.known_loss.is_some() || self.sent_below(s.rate).0 >= 150.0;
        let (rate, p0, sigma) = found.unwrap_or_else(|| {
            let (p0, sigma) = self.loss_below(s.rate);
            let window = (s.rtt_min / 3).max(Duration::from_millis(8));
            let since = self.onset.began().and_then(|b| s.delivery.rate_since(b, window.as_micros() as u64));
            let d = since.or_else(|| s.delivery.rate(window.as_micros() as u64)).or_else(|| s.delivered());
            let d = d.or_else(|| s.capacity());
            (d.unwrap_or(s.rate / 2.0) / (1.0 - p0), p0, sigma)
        });
        let p = self.least_loss(p0);
        s.base_loss.set(if p > 0.0 { p + sigma } else { 0.0 });
        s.remembered = rate.max(8.0 * s.packet / s.rtt().as_secs_f64());
        if s.is_near() {
            // The start was shorter than what arrives is measured over.
            s.delivery.clear_points();
            s.best = [rate * (1.0 - p0), 0.0, 0.0, 0.0];
        }
        let excess = in_flight as f64 - s.remembered * s.rtt_min.as_secs_f64();
        // At half the rate, half the rate drains.
        let lasts = (2.0 * excess / s.remembered).clamp(0.0, 1.5 * s.rtt().as_secs_f64());
        let drain = Drain { until: now + Duration::from_secs_f64(lasts), since: self.onset.began() };
        let rate = 0.5 * s.remembered;
        s.cut(now, rate);
        Change::SpeedProbe { drain: Some(drain) }
    }
}
