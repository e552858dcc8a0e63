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

#[cfg(test)]
mod tests {
    use super::super::interval::{Intervals, Purpose};
    use super::*;

    /// An interval of 100 ms in which `sent` packets of 1000 bytes left and as many bytes as `missed` did not.
    fn interval(at_ms: u64, sent: u64, missed: u64) -> Interval {
        let began = Instant::from_micros(at_ms * 1000);
        let mut intervals = Intervals::new();
        let long = Duration::from_millis(200);
        let id = intervals.on_sent(began, 1000, long, (long / 2, 1), Purpose::Normal, 0, false);
        let mut interval = intervals.get_mut(id).expect("just begun").clone();
        interval.ended = Some(began + Duration::from_millis(100));
        interval.sent_bytes = sent * 1000;
        interval.missed_bytes = missed;
        interval
    }

    #[test]
    fn what_was_missed_lately_is_put_beside_what_was_sent() {
        let mut held = Held::default();
        let window = Duration::from_millis(200);
        assert!((held.factor() - 1.0).abs() < 1e-9);
        held.add(&interval(0, 100, 0), window);
        assert!((held.factor() - 1.0).abs() < 1e-9);
        held.add(&interval(100, 80, 20_000), window);
        assert!((held.factor() - 1.25).abs() < 1e-9, "{}", held.factor());
        held.add(&interval(200, 100, 0), window);
        assert!((1.1..1.13).contains(&held.factor()), "{}", held.factor());
        held.add(&interval(300, 10, 500_000), window);
        assert!((held.factor() - 2.0).abs() < 1e-9, "no more than twice");
        for at in 4..8 {
            held.add(&interval(at * 100, 100, 0), window);
        }
        assert!((held.factor() - 1.0).abs() < 1e-9, "long ago: {}", held.factor());
    }
}
