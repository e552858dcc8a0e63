//! Whether the path itself has become longer (PROTOCOL.md §9.7): a delay that appears from one packet to the next, and
//! stays although less is sent than arrives, is no queue.
//!
//! A queue can be told from a longer way by emptying it. Until that is done both look the same, and what the phases do
//! against a queue is done; this only watches. Who shares the path may fill what we leave: so the delay must have come
//! as no queue grows, must not lie beyond what came then, and must not move at all while we hold back.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::time::Duration;

use timebase::Instant;

use super::fast_start::FastStart;
use super::{Controller, Phase, Shared};
use crate::Mode;

/// Delays nearer to each other are not told apart; a 128th of the round trip and four times the noise come on top.
const GRAIN: Duration = Duration::from_millis(1);
/// Steps below this are left to the rate law.
const SMALLEST: Duration = Duration::from_millis(2);
/// By more than this no queue is expected to grow while nothing is heard.
const GROWTH: Duration = Duration::from_millis(10);
/// What is held back must make that much of a queue go at least, before its standing still means anything.
const WITHHELD: Duration = Duration::from_millis(40);
/// The share of what arrived that is taken for granted when counting what is held back.
const CERTAIN: f64 = 0.93;
/// Samples of a delay that stands still, at least.
const SAMPLES: u32 = 4;
/// Packets that arrive in a round trip or 100 ms, at least, of a sender whose holding back means something.
const BUSY: f64 = 8.0;
/// How long a step stays in doubt at least; else 20 round trips.
const PATIENCE: Duration = Duration::from_secs(4);
/// Points of the sender's course that are kept.
const POINTS: usize = 256;

/// What the path was before it seemed to change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    /// The rate to come back to.
    pub(super) rate: f64,
    /// [`Shared::learned`]; 0 while the first search lasted.
    pub(super) learned: f64,
    pub(super) jitter: Duration,
    /// The longest queue seen in the last minute.
    peak: Duration,
}

/// The path is longer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conclusion {
    /// Its round trip.
    pub(super) rtt: Duration,
    /// What arrived over it, bytes/s.
    pub(super) arrived: f64,
    pub(super) before: Before,
}

#[derive(Debug, Default)]
pub(super) struct Longer {
    /// The sample before: when its packet left, and its round trip.
    last: Option<(Instant, Duration)>,
    /// Mean difference between one sample and the next, beyond what a queue may have changed meanwhile.
    noise: Duration,
    /// The last samples.
    recent: [Duration; 4],
    doubt: Option<Box<Doubt>>,
}

#[derive(Debug)]
struct Doubt {
    before: Before,
    /// What was waited for beyond the minimum before.
    queue: Duration,
    /// The last step, and when the first packet behind the first one left.
    stepped: Instant,
    since: Instant,
    /// Round trip before the first step, and how much longer it was behind the last.
    level: Duration,
    rise: Duration,
    /// What had arrived at the first step: (receiver's clock µs, bytes).
    point: (u64, u64),
    /// Best rate at which data arrived since, 0 while unknown.
    arrived: f64,
    /// Bytes sent since the doubt began, and how many by when.
    sent: u64,
    course: VecDeque<(Instant, u64)>,
    still: Option<Still>,
}

/// A delay that does not move.
#[derive(Clone, Copy, Debug)]
struct Still {
    since: Instant,
    /// Seconds of what arrives that were held back when it began.
    withheld: f64,
    least: Duration,
    most: Duration,
    samples: u32,
}

impl Longer {
    /// Another path: nothing before it counts.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Whether a delay has lately come that no queue of ours makes, and it is not known what it is.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.doubt.is_some()
    }

    /// The rate at which data arrived since the step, if that was lately: what arrived less in between was a gap in
    /// which everything was on its way. `Some(None)` while too little of it was seen.
    pub(super) fn arrived(&self, now: Instant, rtt: Duration) -> Option<Option<f64>> {
        let d = self.doubt.as_ref()?;
        let lately = now.saturating_since(d.stepped) < rtt * 3 / 2 + Duration::from_millis(50);
        lately.then_some((d.arrived > 0.0).then_some(d.arrived))
    }

    /// By how much a sample may differ from the one before without a step, if a queue may change by `moves` meanwhile:
    /// it seldom grows by a quarter of the time that passes, and shrinks by less than that.
    fn usual(&self, s: &Shared, moves: Duration) -> Duration {
        // On a local path, steps of many milliseconds are a scheduler's.
        let smallest = if s.is_local() { SMALLEST * 10 } else { SMALLEST };
        smallest + moves + self.noise * 6
    }

    /// Whether a sample, not yet told of, is shorter than the one before as no queue shrinks.
    pub(super) fn is_step_down(&self, s: &Shared, sample: (Instant, Duration)) -> bool {
        self.last.is_some_and(|(left, rtt)| {
            rtt.saturating_sub(sample.1) > self.usual(s, sample.0.saturating_since(left) * 7 / 10)
        })
    }

    pub(super) fn on_sent(&mut self, now: Instant, bytes: usize, rtt: Duration) {
        let Some(d) = &mut self.doubt else { return };
        let apart = (rtt / 32).max(Duration::from_millis(1));
        if d.course.back().is_none_or(|&(at, _)| now.saturating_since(at) >= apart) {
            if d.course.len() == POINTS
                && let Some(oldest) = d.course.pop_front()
                && let Some(next) = d.course.front_mut()
                // Of two, the one from which more was held back since.
                && ahead(oldest, oldest.0, d.arrived) >= ahead(*next, oldest.0, d.arrived)
            {
                *next = oldest;
            }
            d.course.push_back((now, d.sent));
        }
        d.sent += bytes as u64;
    }

    /// A round trip of `rtt` was measured with a packet that left at `left`; `point` is what had arrived then.
    pub(super) fn on_sample(
        &mut self,
        now: Instant,
        s: &Shared,
        (left, rtt): (Instant, Duration),
        point: (u64, u64),
    ) -> Option<Conclusion> {
        let last = self.last;
        if last.is_some_and(|l| left <= l.0) {
            return None;
        }
        self.last = Some((left, rtt));
        if let Some(last) = last {
            self.look_for_a_step(now, s, (left, rtt), last, point);
        } else {
            self.recent = [rtt; 4];
        }
        let d = self.doubt.as_mut()?;
        let excess = rtt.saturating_sub(s.rtt_min);
        // Delays nearer to each other are not told apart.
        let noise = GRAIN + rtt / 128 + self.noise * 4;
        let over = now.saturating_since(d.stepped) > (rtt * 20).max(PATIENCE);
        if over || d.rise.is_zero() || excess <= d.queue.max(SMALLEST) {
            self.doubt = None;
            return None;
        }
        d.measure(s, point);
        // Who sends a packet now and then holds nothing back.
        let busy = d.arrived * s.rtt.as_secs_f64().max(0.1) >= BUSY * s.packet;
        if left < d.since || !busy {
            return None;
        }
        let withheld = d.withheld(left);
        let still = match d.still {
            Some(p) if p.most.max(rtt).saturating_sub(p.least.min(rtt)) <= noise => Still {
                least: p.least.min(rtt),
                most: p.most.max(rtt),
                samples: p.samples + 1,
                // What was sent too much meanwhile has to be held back as well.
                withheld: p.withheld.min(withheld),
                since: p.since,
            },
            _ => Still { since: left, withheld, least: rtt, most: rtt, samples: 1 },
        };
        d.still = Some(still);
        let enough = WITHHELD.max(rtt / 8) + noise * 4;
        if still.samples < SAMPLES || withheld - still.withheld < enough.as_secs_f64() {
            return None;
        }
        let floor = still.least.saturating_sub(s.rtt_min);
        // Who shares the path may hold up a queue at which our holding back shows only at first.
        let long = s.mode != Mode::Background
            && left.saturating_since(still.since) >= (rtt * 10).max(Duration::from_secs(2));
        let least = if long { d.rise / 4 } else { d.rise * 3 / 4 };
        let slack = noise / 2;
        let fits = floor + slack >= least && floor <= d.rise * 5 / 4 + slack;
        // What a queue has been before, it can be again.
        let known = floor <= d.before.peak * 11 / 10 || floor <= s.target() / 2;
        if noise > d.rise / 2 || !fits || known {
            return None;
        }
        let conclusion = Conclusion { rtt: still.least, arrived: d.arrived, before: d.before };
        self.doubt = None;
        Some(conclusion)
    }

    /// A queue grows and shrinks in time: what differs by more between packets that left one after the other is the way.
    fn look_for_a_step(
        &mut self,
        now: Instant,
        s: &Shared,
        (left, rtt): (Instant, Duration),
        last: (Instant, Duration),
        point: (u64, u64),
    ) {
        let apart = left.saturating_since(last.0);
        let moves = if rtt > last.1 { (apart / 4).min(GROWTH) } else { apart * 7 / 10 };
        let usual = self.usual(s, moves);
        let differs = rtt.abs_diff(last.1);
        if self.doubt.is_none() {
            self.noise = (self.noise * 15 + differs.min(usual).saturating_sub(moves)) / 16;
        }
        let recently = self.recent.iter().copied().min().unwrap_or(rtt);
        self.recent.rotate_right(1);
        self.recent[0] = rtt;
        if differs <= usual {
            return;
        }
        if rtt < last.1 && self.doubt.is_none() {
            return;
        }
        let d = self.doubt.get_or_insert_with(|| {
            Box::new(Doubt {
                before: Before {
                    rate: if s.learned > 0.0 { s.learned } else { s.rate },
                    learned: s.learned,
                    jitter: s.jitter,
                    peak: s.buffer.peak(),
                },
                queue: last.1.saturating_sub(s.rtt_min),
                level: recently,
                stepped: now,
                since: left,
                rise: Duration::ZERO,
                point,
                arrived: 0.0,
                sent: 0,
                course: VecDeque::new(),
                still: None,
            })
        });
        d.stepped = now;
        d.rise = rtt.saturating_sub(d.level);
        d.still = None;
    }
}

impl Doubt {
    /// Takes in how fast data arrives: over long enough that a few packets make no difference.
    fn measure(&mut self, s: &Shared, now: (u64, u64)) {
        let packets = Duration::from_secs_f64((32.0 * s.packet / self.before.rate.max(1.0)).min(0.1));
        let window = (s.rtt / 8).max(Duration::from_millis(20)).max(packets).as_micros() as u64;
        if now.0.saturating_sub(self.point.0) < window {
            return;
        }
        let lately = s.delivery.rate(window).filter(|_| now.0.saturating_sub(self.point.0) >= window * 3 / 2);
        let all = s.delivery.rate_since(self.point, window);
        self.arrived = lately.into_iter().chain(all).fold(self.arrived, f64::max);
    }

    /// Seconds of what arrives that had not been sent when a packet left at `left`, since when most was sent too much.
    fn withheld(&self, left: Instant) -> f64 {
        let until = self.course.partition_point(|&(at, _)| at <= left);
        let mut past = self.course.iter().take(until).map(|&p| ahead(p, left, self.arrived));
        let last = past.next_back().unwrap_or(0.0);
        past.fold(last, f64::max) - last
    }
}

/// How far what had been sent by a point was ahead of a path that carries `rate`, in seconds against any other point
/// (`at` only keeps the numbers small).
fn ahead(point: (Instant, u64), at: Instant, rate: f64) -> f64 {
    point.1 as f64 / (CERTAIN * rate).max(1.0) + at.saturating_since(point.0).as_secs_f64()
}

impl Controller {
    /// Looks at a round trip, not of a train, for a path that has become longer; gives its round trip.
    pub(super) fn watch(
        &mut self,
        now: Instant,
        sample: (Instant, Duration),
        point: (u64, u64),
    ) -> Option<Duration> {
        let mut longer = core::mem::take(&mut self.shared.longer);
        let conclusion = longer.on_sample(now, &self.shared, sample, point);
        self.shared.longer = longer;
        conclusion.map(|c| {
            self.lengthen(now, &c);
            c.rtt
        })
    }

    /// What stood before the bottleneck was no queue: the path has become longer (§9.7). What it bore it still does, as
    /// far as as much arrived since.
    fn lengthen(&mut self, now: Instant, c: &Conclusion) {
        let s = &mut self.shared;
        s.forget_path(now);
        s.rtt_min = c.rtt;
        s.jitter = c.before.jitter;
        s.learned = c.before.learned;
        let rate = c.before.rate.min(c.arrived / (1.0 - s.base_loss.estimate()));
        self.phase = Phase::FastStart(Box::new(FastStart::lengthened(now, s, rate)));
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const PACKET: u64 = 1000;

    /// A packet of 1000 bytes each millisecond over a path of 20 ms, `rtt(ms, sent less by so many)`; from 300 ms on
    /// only every second one leaves. What is concluded in the end.
    fn watch(mode: Mode, rtt: impl Fn(u64, u64) -> Duration) -> Option<Conclusion> {
        let mut c = Controller::new(Instant::from_micros(1), MS(20), PACKET as usize, mode);
        let mut s = c.shared;
        (s.rtt_min, s.learned, s.rate) = (MS(20), 1e6, 1e6);
        let mut events = Vec::new();
        for ms in 0..1000u64 {
            let less = ms.saturating_sub(300) / 2;
            if ms > 300 && ms % 2 == 1 {
                continue;
            }
            let left = Instant::from_micros(1_000_000 + ms * 1000);
            events.push((left, None));
            let rtt = rtt(ms, less);
            events.push((left + rtt, Some((left, rtt))));
        }
        events.sort_by_key(|e| e.0);
        for (now, sample) in events {
            let mut longer = core::mem::take(&mut s.longer);
            let mut conclusion = None;
            if let Some((left, rtt)) = sample {
                s.rtt = rtt;
                s.delivery.add(PACKET);
                let arrival = now.as_micros();
                s.delivery.mark(arrival, 1_000_000);
                let point = (arrival, s.delivery.total());
                conclusion = longer.on_sample(now, &s, (left, rtt), point);
            } else {
                longer.on_sent(now, PACKET as usize, s.rtt);
            }
            s.longer = longer;
            if conclusion.is_some() {
                return conclusion;
            }
        }
        c.shared = s;
        None
    }

    #[test]
    fn what_came_at_once_and_stays_while_less_is_sent_is_the_way() {
        for mode in [Mode::Full, Mode::Fair, Mode::Background] {
            for to in [40, 70, 220] {
                let c = watch(mode, |ms, _| MS(if ms < 200 { 20 } else { to }));
                let c = c.unwrap_or_else(|| panic!("20 to {to} ms, {mode:?}"));
                assert_eq!((c.rtt, c.before.rate), (MS(to), 1e6));
                assert!((0.9e6..1.1e6).contains(&c.arrived), "{c:?}");
            }
        }
    }

    #[test]
    fn a_queue_that_shrinks_as_less_is_sent_is_none() {
        // After a pause of 60 ms; alone, or with others who have nine tenths of the path.
        for part in [1, 2, 10] {
            let c = watch(Mode::Full, |ms, less| {
                let queue = if ms < 200 { 0 } else { 60_000 - (less * 1000 / part).min(60_000) };
                MS(20) + Duration::from_micros(queue)
            });
            assert!(c.is_none(), "1/{part} of the path: {c:?}");
        }
    }

    #[test]
    fn what_grows_in_time_and_what_was_there_before_is_none() {
        let grown = watch(Mode::Full, |ms, _| MS(20 + ms.clamp(100, 250) * 2 / 5));
        assert!(grown.is_none(), "{grown:?}");
        // A queue of 80 ms that others keep up, and a burst of theirs.
        let kept = watch(Mode::Background, |ms, _| MS(if ms < 200 { 100 } else { 110 }));
        assert!(kept.is_none(), "{kept:?}");
        let spike = watch(Mode::Full, |ms, _| MS(if (200..320).contains(&ms) { 90 } else { 20 }));
        assert!(spike.is_none(), "{spike:?}");
    }

    #[test]
    fn two_steps_are_one_and_one_down_counts_against_it() {
        let c = watch(Mode::Full, |ms, _| MS([20, 60, 120][usize::from(ms >= 200) + usize::from(ms >= 215)]));
        assert_eq!(c.map(|c| c.rtt), Some(MS(120)));
        let c = watch(Mode::Full, |ms, _| MS([20, 120, 70][usize::from(ms >= 200) + usize::from(ms >= 260)]));
        assert_eq!(c.map(|c| c.rtt), Some(MS(70)));
    }
}
