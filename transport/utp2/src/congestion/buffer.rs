//! How long the bottleneck's queue can get, learned where it overflowed (PROTOCOL.md §9.2).

use core::time::Duration;

use timebase::Instant;

/// How long the largest delay is remembered.
const MEMORY: Duration = Duration::from_secs(60);
/// Queues shorter than this cannot be told from noise.
const SHORTEST: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
pub(super) struct Buffer {
    room: Option<(Duration, Instant)>,
    /// Largest delay of the present and the previous half of a minute.
    peak: [Duration; 2],
    peak_began: Instant,
}

impl Buffer {
    /// Delay of the queue when it is full; `None` while it was not seen to overflow.
    pub(super) fn room(&self) -> Option<Duration> {
        self.room.map(|r| r.0)
    }

    /// The longest packet of an interval waited `delay`.
    pub(super) fn observe(&mut self, now: Instant, delay: Duration) {
        if now.saturating_since(self.peak_began) > MEMORY / 2 {
            self.peak = [Duration::ZERO, self.peak[0]];
            self.peak_began = now;
        }
        self.peak[0] = self.peak[0].max(delay);
        if let Some((room, since)) = &mut self.room {
            *room = (*room).max(delay);
            // Flows that came later may not know it: to share equally, all must forget it where nothing is lost.
            if now.saturating_since(*since) > MEMORY / 2 {
                self.room = None;
            }
        }
    }

    fn peak(&self) -> Duration {
        self.peak[0].max(self.peak[1])
    }

    /// Packets were lost beyond the base loss in an interval whose longest delay was `delay`. Tells whether the queue
    /// can have overflowed.
    pub(super) fn on_excess_loss(&mut self, now: Instant, delay: Duration) -> bool {
        let full = delay >= SHORTEST && delay >= self.peak().mul_f64(0.7);
        if full {
            self.room = Some((self.peak(), now));
        }
        full
    }
}
