//! How long the bottleneck's queue can get, learned where it overflowed (PROTOCOL.md §9.2).

use core::time::Duration;

use timebase::Instant;

/// How long the largest delay is remembered.
const MEMORY: Duration = Duration::from_secs(60);
/// Queues shorter than this cannot be told from noise.
const SHORTEST: Duration = Duration::from_millis(2);
/// A queue this part of what was seen at an overflow bears it out.
const AGAIN: f64 = 0.9;
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
            // All flows on the path see this, also those that lost nothing: what they believe stays the same.
            let full = room.full.max(delay);
            *room = Room { delay: full, full, seen: now, grown: now };
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

    fn learn(&mut self, now: Instant, full: Duration) {
        self.room = Some(Room { delay: full, full, seen: now, grown: now });
    }

    /// Packets were lost by more than chance, if only a few, while the longest delay was `delay`.
    pub(super) fn on_loss(&mut self, now: Instant, delay: Duration) {
        let peak = self.peak();
        if delay >= SHORTEST && delay >= peak.mul_f64(0.8) {
            self.learn(now, peak.max(delay));
        }
    }

    /// The largest delay of the last half to whole minute.
    pub(super) fn peak(&self) -> Duration {
        self.peak[0].max(self.peak[1])
    }

    /// Packets were lost beyond the base loss in an interval whose longest delay was `delay`. Tells whether the queue
    /// can have overflowed.
    pub(super) fn on_excess_loss(&mut self, now: Instant, delay: Duration) -> bool {
        let full = delay >= SHORTEST && delay >= self.peak().mul_f64(0.7);
        if full {
            self.learn(now, self.peak().max(delay));
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
        b.on_loss(now, MS(15));
        assert_eq!(b.room(), None, "far below the longest delay no queue overflows");
        b.on_loss(now, MS(21));
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
        b.on_loss(now, MS(24));
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
        b.on_loss(now, MS(20));
        b.on_shorter(MS(5));
        assert_eq!(b.room(), Some(MS(25)), "all delays were longer than they seemed");
        for _ in 0..45 {
            now += MS(1000);
            b.observe(now, MS(10));
        }
        assert!(b.room() > Some(MS(35)));
        b.observe(now, MS(23));
        assert_eq!(b.room(), Some(MS(25)));
        b.observe(now, MS(28));
        assert_eq!(b.room(), Some(MS(28)));
    }
}
