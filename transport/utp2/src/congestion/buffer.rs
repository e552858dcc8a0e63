//! How long the bottleneck's queue can get, learned where it overflowed (PROTOCOL.md §9.2).

use core::time::Duration;

use timebase::Instant;

/// How long the largest delay is remembered.
const MEMORY: Duration = Duration::from_secs(60);
/// A queue this part of what was seen at an overflow bears it out.
const AGAIN: f64 = 0.97;
/// How fast what is known grows when nothing bears it out any more: by e in this time.
const GROWS_IN: Duration = Duration::from_secs(30);
/// Queues longer than this need not be known.
const FORGOTTEN: Duration = Duration::from_millis(300);

/// What a queue holds, as far as it is known.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// What is believed, and what was seen: the former grows when the latter was not borne out for long.
    delay: Duration,
    full: Duration,
    /// The longest delay with which something was lost.
    taught: Duration,
    /// When the queue was last that long.
    seen: Instant,
    /// Until when it has grown since.
    grown: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Buffer {
    room: Option<Room>,
    /// Largest delay of the present and the previous half of a minute.
    peak: [Duration; 2],
    peak_began: Instant,
    /// Delays up to this are known not to be the queue's; and when that was seen.
    other: Option<(Duration, Instant)>,
}

impl Buffer {
    /// Delay of the queue when it is full; `None` while it was not seen to overflow.
    pub(super) fn room(&self) -> Option<Duration> {
        self.room.map(|r| r.delay)
    }

    /// The longest packet of an interval waited `delay`.
    pub(super) fn observe(&mut self, now: Instant, delay: Duration) {
        if now.saturating_since(self.peak_began) > MEMORY / 2 {
            self.peak = [Duration::ZERO, self.peak[0]];
            self.peak_began = now;
        }
        self.peak[0] = self.peak[0].max(delay);
        let Some(room) = &mut self.room else { return };
        if delay >= room.full.mul_f64(AGAIN) {
            // All flows on the path see this, also those that lost nothing: what they believe stays the same. But those
            // who do not know it yet learn nothing by a queue that is long and does not overflow: hence so near the top.
            let full = room.full.max(delay);
            *room = Room { delay: full, full, seen: now, grown: now, ..*room };
            return;
        }
        // Flows that came later may not know it: to share equally, all must forget it where the queue stays short. Not at
        // once, for who is the first to forget would outgrow the others.
        let still = room.seen + MEMORY / 2;
        if now > still {
            let time = now.saturating_since(room.grown.max(still));
            room.delay = room.delay.mul_f64(1.0 + (time.as_secs_f64() / GROWS_IN.as_secs_f64()).min(1.0));
            room.grown = now;
            if room.delay > FORGOTTEN {
                self.room = None;
            }
        }
    }

    /// The path without a queue turned out to be shorter `by` this: so much longer was every delay seen.
    pub(super) fn on_shorter(&mut self, by: Duration) {
        for delay in self.peak.iter_mut().filter(|d| !d.is_zero()) {
            *delay += by;
        }
        if let Some(room) = &mut self.room {
            room.delay += by;
            room.full += by;
        }
    }

    /// A delay of `delay` did not shrink although less was sent: what was taken for the queue was something else, and
    /// delays no longer than twice that tell nothing for a while.
    pub(super) fn deny(&mut self, now: Instant, delay: Duration) {
        self.room = None;
        self.other = Some((delay * 2, now));
    }

    /// Whether a queue of `delay` can be told from what else delays.
    fn is_visible(&self, now: Instant, delay: Duration, visible: Duration) -> bool {
        let other = self.other.filter(|o| now.saturating_since(o.1) < MEMORY);
        delay >= visible && other.is_none_or(|o| delay > o.0)
    }

    fn learn(&mut self, now: Instant, full: Duration, delay: Duration) {
        let taught = self.room.map_or(delay, |r| r.taught.max(delay));
        self.room = Some(Room { delay: full, full, taught, seen: now, grown: now });
    }

    /// The longest delay that taught the room.
    pub(super) fn taught(&self) -> Duration {
        self.room.map_or(Duration::ZERO, |r| r.taught)
    }

    /// Packets were lost by more than chance, if only a few, while the longest delay was `delay`; a queue shorter than
    /// `visible` cannot be told from noise.
    pub(super) fn on_loss(&mut self, now: Instant, delay: Duration, visible: Duration) {
        let peak = self.peak();
        if self.is_visible(now, delay, visible) && delay >= peak.mul_f64(0.8) {
            self.learn(now, peak.max(delay), delay);
        }
    }

    /// The largest delay of the last half to whole minute.
    pub(super) fn peak(&self) -> Duration {
        self.peak[0].max(self.peak[1])
    }

    /// Packets were lost beyond the base loss in an interval whose longest delay was `delay`. Tells whether the queue
    /// can have overflowed.
    pub(super) fn on_excess_loss(&mut self, now: Instant, delay: Duration, visible: Duration) -> bool {
        let full = self.is_visible(now, delay, visible) && delay >= self.peak().mul_f64(0.7);
        if full {
            self.learn(now, self.peak().max(delay), delay);
        }
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn any_loss_at_the_top_teaches_and_time_lets_it_grow() {
        let mut b = Buffer::default();
        let mut now = Instant::ZERO;
        b.observe(now, MS(25));
        b.on_loss(now, MS(15), MS(2));
        assert_eq!(b.room(), None, "far below the longest delay no queue overflows");
        b.on_loss(now, MS(21), MS(2));
        assert_eq!(b.room(), Some(MS(25)));
        for _ in 0..29 {
            now += MS(1000);
            b.observe(now, MS(10));
        }
        assert_eq!(b.room(), Some(MS(25)));
        for _ in 0..31 {
            now += MS(1000);
            b.observe(now, MS(10));
        }
        let grown = b.room().expect("still known");
        assert!((MS(60)..MS(70)).contains(&grown), "{grown:?}");
        b.observe(now, MS(25));
        b.on_loss(now, MS(24), MS(2));
        assert_eq!(b.room(), Some(MS(25)), "borne out");
        for _ in 0..120 {
            now += MS(1000);
            b.observe(now, MS(10));
        }
        assert_eq!(b.room(), None);
    }

    #[test]
    fn a_long_queue_without_loss_bears_it_out_for_all_who_know() {
        let mut b = Buffer::default();
        let mut now = Instant::ZERO;
        b.observe(now, MS(20));
        b.on_loss(now, MS(20), MS(2));
        b.on_shorter(MS(5));
        assert_eq!(b.room(), Some(MS(25)), "all delays were longer than they seemed");
        for _ in 0..45 {
            now += MS(1000);
            b.observe(now, MS(10));
        }
        assert!(b.room() > Some(MS(35)));
        let grown = b.room();
        b.observe(now, MS(24));
        assert!(b.room() >= grown, "no overflow taught that to others");
        b.observe(now, Duration::from_micros(24_300));
        assert_eq!(b.room(), Some(MS(25)));
        b.observe(now, MS(28));
        assert_eq!(b.room(), Some(MS(28)));
    }
}
