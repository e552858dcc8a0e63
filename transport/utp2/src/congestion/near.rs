//! Near paths: queues of a fraction of a millisecond (PROTOCOL.md §9.3, *near*).
//!
//! A round trip of less than half the shortest interval, and a queue that holds no more than what a percent too much
//! makes in a few of them: what moves the rate has to be in proportion to that room, and what else delays (hosts, the
//! size of a packet) may be as long as the queue. So it is measured while the queue is surely empty, and a delay that
//! does not answer is not believed.

use core::time::Duration;

use timebase::Instant;

use super::Shared;
use super::interval::Interval;

/// The queue comes to its target in so many intervals, of which two pass before any change is seen; and the rate is
/// never moved by more than this for it.
const PULL: f64 = 0.25;
const MOST_PULL: f64 = 0.02;
/// How often what else delays is measured, and how much less is sent for it at most.
const GLANCE_EVERY: Duration = Duration::from_secs(3);
const DEEPEST_GLANCE: f64 = 0.2;
/// What else delays is at most this part of what the queue holds.
const IDLE_PART: u32 = 4;
/// A delay that stays although less was sent by so many times what the queue holds is no queue.
const UNANSWERED: f64 = 3.0;

#[derive(Debug, Default)]
pub(super) struct Near {
    /// What arrived when a queue beyond its target was first seen, bytes/s, and what was sent less since, s.
    unanswered: Option<(f64, f64)>,
    /// What delays when no queue does.
    idle: Duration,
    last_glance: Option<Instant>,
}

impl Near {
    /// What of a delay is the queue's, which holds `room`.
    pub(super) fn queue(&self, delay: Duration, room: Duration) -> Duration {
        delay.saturating_sub(self.idle.min(room / IDLE_PART))
    }

    /// A glance has met this delay.
    pub(super) fn on_glance(&mut self, delay: Duration) {
        self.idle = if self.idle.is_zero() { delay } else { (self.idle * 3 + delay) / 4 };
    }

    /// By which part of the rate less to send for an interval, if it is time for a glance: so much that twice the queue
    /// aimed at is gone, which costs next to nothing where that queue is so short.
    pub(super) fn glance(&mut self, now: Instant, s: &Shared) -> Option<f64> {
        if self.last_glance.is_some_and(|t| now.saturating_since(t) < GLANCE_EVERY) || s.is_limited(now) {
            return None;
        }
        self.last_glance = Some(now);
        let depth = (2.0 * s.target().as_secs_f64() / s.rtt().as_secs_f64()).max(0.01);
        if depth > DEEPEST_GLANCE {
            // So long a queue is not mistaken for something else, nor gone so soon.
            self.idle = Duration::ZERO;
            return None;
        }
        Some(depth)
    }

    /// The rate law for a queue of `x` targets. `r` is the rate that would just be delivered, and `acceleration` the
    /// growth of growth while new capacity shows.
    pub(super) fn steer(
        &mut self,
        now: Instant,
        s: &mut Shared,
        i: &Interval,
        x: f64,
        r: Option<f64>,
        acceleration: &mut f64,
    ) {
        let pull = (PULL * s.target().as_secs_f64() / s.rtt().as_secs_f64()).min(MOST_PULL);
        let seen = s.sent_rate(i);
        if x < 0.5 {
            self.unanswered = None;
            if seen > 1.04 * s.remembered && r.is_some_and(|r| r > 1.02 * s.remembered) {
                *acceleration = (*acceleration * 1.5).min(16.0);
            }
            // Half of the way to what was borne, and not further beyond it than what shows in time.
            let least = (pull * *acceleration).min(0.25);
            let g = (0.5 * (s.remembered / seen - 1.0)).clamp(least, 0.25);
            let most = r.map_or(f64::INFINITY, |r| r * (1.0 + pull * *acceleration));
            s.rate = (s.rate * (1.0 + g)).min(most.max(s.rate * (1.0 - pull)));
            return;
        }
        let Some(r) = r else { return };
        let towards = r * (1.0 + pull * (1.0 - x));
        if x < 1.0 {
            self.unanswered = None;
            s.rate = towards.clamp(s.rate * (1.0 - pull), s.rate * (1.0 + pull));
            return;
        }
        s.rate = s.rate.min(towards);
        s.remembered = r;
        *acceleration = 1.0;
        // What was sent less should have emptied the queue by now: if the delay stays, it is none of ours.
        let (before, less) = self.unanswered.unwrap_or((r, 0.0));
        let less = (less + (1.0 - seen / before) * i.duration().as_secs_f64()).max(0.0);
        self.unanswered = Some((before, less));
        if s.buffer.room().is_some_and(|room| less > UNANSWERED * room.as_secs_f64()) {
            s.buffer.deny(now, s.last_queue);
            self.unanswered = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::interval::{Intervals, Purpose};
    use super::*;
    use crate::Mode;

    const US: fn(u64) -> Duration = Duration::from_micros;
    const RATE: f64 = 1e8;

    /// A path of 1 ms whose queue was seen to overflow at 500 µs.
    fn path() -> (Instant, Shared) {
        let now = Instant::from_micros(1_000_000);
        let mut s = Shared::new(now, US(1000), 1452.0, Mode::Full);
        s.rate = RATE;
        s.remembered = RATE;
        s.best = [RATE; 4];
        s.buffer.observe(now, US(500));
        s.buffer.on_loss(now, US(500), s.visible());
        (now, s)
    }

    /// An interval of 10 ms sent at `rate`.
    fn interval(began: Instant, rate: f64) -> Interval {
        let mut intervals = Intervals::new();
        let id = intervals.on_sent(began, 1000, US(10_000), (US(10_000), 1), Purpose::Normal, 0, false);
        let mut i = intervals.get_mut(id).expect("just begun").clone();
        i.ended = Some(began + US(10_000));
        i.sent_bytes = (rate / 100.0) as u64;
        i
    }

    #[test]
    fn the_target_leaves_room_for_what_leaves_at_once() {
        let (_, s) = path();
        assert_eq!(s.target(), US(125));
        assert_eq!(s.visible(), US(250));
    }

    #[test]
    fn a_queue_of_the_path_is_led_to_its_target() {
        let (mut now, mut s) = path();
        let mut near = Near::default();
        let (mut queue, mut acceleration) = (0.0f64, 1.0);
        let target = s.target().as_secs_f64();
        s.rate = 0.95 * RATE;
        // What is seen is one interval old.
        let mut seen = 0.0;
        for n in 0..100 {
            let i = interval(now, s.rate);
            near.steer(now, &mut s, &i, seen / target, Some(RATE), &mut acceleration);
            seen = queue;
            queue = (queue + (s.rate / RATE - 1.0) * 0.01).max(0.0);
            now += US(10_000);
            assert!(queue < 0.000_25, "{queue} overflows with what leaves at once");
            assert!(n < 20 || s.rate > 0.99 * RATE, "{} after {n} intervals", s.rate);
        }
        assert!((0.5..1.5).contains(&(queue / target)), "{queue} of {target}");
        assert!(s.buffer.room().is_some());
    }

    #[test]
    fn a_delay_that_does_not_answer_is_no_queue() {
        let (mut now, mut s) = path();
        let mut near = Near::default();
        let mut acceleration = 1.0;
        s.last_queue = US(300);
        let mut intervals = 0;
        while s.buffer.room().is_some() {
            let i = interval(now, s.rate);
            // All that is sent arrives, and the delay stays.
            let r = s.rate;
            near.steer(now, &mut s, &i, 2.4, Some(r), &mut acceleration);
            now += US(10_000);
            intervals += 1;
            assert!(intervals < 100);
        }
        assert!(s.rate > 0.9 * RATE, "{} is what it cost", s.rate);
        assert!(!s.buffer.on_excess_loss(now, US(500), s.visible()), "nor is twice that");
        assert!(s.buffer.on_excess_loss(now, US(700), s.visible()));
    }

    #[test]
    fn a_machine_that_is_late_or_a_slow_path_has_no_short_queue() {
        let (_, mut s) = path();
        assert!(s.is_near());
        let usual = (US(2000), Duration::from_millis(100));
        s.late = true;
        assert!(!s.is_near() && s.room().is_none());
        assert_eq!((s.visible(), s.window()), usual);
        s.late = false;
        s.best = [2e6; 4];
        assert!(!s.is_near() && s.room().is_none());
        assert_eq!((s.visible(), s.window()), usual);
    }

    #[test]
    fn what_else_delays_is_left_out_up_to_a_quarter_of_the_room() {
        let (mut now, mut s) = path();
        let mut near = Near::default();
        assert!((near.glance(now, &s).expect("at once") - 0.025).abs() < 1e-9);
        assert_eq!(near.glance(now, &s), None, "not again so soon");
        near.on_glance(US(100));
        assert_eq!(near.queue(US(250), US(500)), US(150));
        near.on_glance(US(500));
        assert_eq!(near.queue(US(250), US(500)), US(125));
        now += Duration::from_secs(4);
        s.buffer.on_loss(now, US(40_000), s.visible());
        assert_eq!(near.glance(now, &s), None, "it would take too long to empty this one");
        assert_eq!(near.queue(US(250), US(500)), US(250));
    }
}
