//! How much of what the rate allowed a busy machine really sent (PROTOCOL.md §9.1).
//!
//! What arrives tells of the path only if it was sent. The pacer makes up for a few milliseconds it missed (§8.7) and
//! tells of the rest; here that is put beside what was sent in the same time.

use core::time::Duration;

use timebase::Instant;

use super::interval::Interval;

/// Intervals looked at; they last half a round trip, and two round trips are enough.
const INTERVALS: usize = 8;
/// No less than this part is taken to have been sent: what is not seen for long is not known.
const LEAST: f64 = 0.5;

#[derive(Clone, Copy, Debug)]
struct Part {
    ended: Instant,
    sent: f64,
    missed: f64,
}

#[derive(Debug, Default)]
pub(super) struct Held {
    /// The newest first.
    parts: [Option<Part>; INTERVALS],
    factor: f64,
}

impl Held {
    /// An interval is judged; what arrives is measured over `window`.
    pub(super) fn add(&mut self, i: &Interval, window: Duration) {
        let Some(ended) = i.ended else { return };
        self.parts.rotate_right(1);
        let (sent, missed) = (i.sent_bytes as f64, i.missed_bytes as f64);
        self.parts[0] = Some(Part { ended, sent, missed });
        // Which intervals the delivered rate is of is known to half an interval only: the one that was held back most
        // excuses it.
        let narrow = self.over(ended, window / 2);
        self.factor = narrow.max(self.over(ended, window)).max(self.over(ended, window * 3 / 2));
    }

    fn over(&self, until: Instant, window: Duration) -> f64 {
        let recent = self.parts.iter().flatten().filter(|p| until.saturating_since(p.ended) < window);
        let (sent, missed) = recent.fold((0.0, 0.0), |a, p| (a.0 + p.sent, a.1 + p.missed));
        if sent > 0.0 { ((sent + missed) / sent).min(1.0 / LEAST) } else { 1.0 }
    }

    /// By how much more would have been sent: 1 and above.
    pub(super) fn factor(&self) -> f64 {
        self.factor.max(1.0)
    }
}
