//! How fast the peer receives, by its own clock.

use alloc::collections::VecDeque;

/// Points kept: at one ACK a millisecond, a quarter of a second.
const MAX_POINTS: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// Bytes known to have arrived.
    total: u64,
    /// (receiver's clock µs, total), rising in both.
    points: VecDeque<(u64, u64)>,
    /// Nothing is measured until a packet sent after a pause arrives.
    waiting: bool,
    /// When such a one arrived, µs: what was measured before must not be put beside what is measured after.
    since: u64,
}

impl Delivery {
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.total += bytes;
    }

    /// An ACK told that its largest packet arrived at `arrival_us`.
    pub(super) fn mark(&mut self, arrival_us: u64, keep_us: u64) {
        if self.waiting {
            return;
        }
        match self.points.back_mut() {
            Some(last) if arrival_us < last.0 => return,
            Some(last) if arrival_us == last.0 => last.1 = self.total,
            _ => self.points.push_back((arrival_us, self.total)),
        }
        while self.points.len() > MAX_POINTS || self.points.get(1).is_some_and(|p| p.0 + keep_us < arrival_us)
        {
            self.points.pop_front();
        }
    }

    /// Bytes per second over the last `window_us`; `None` while less than half of it was seen.
    pub(super) fn rate(&self, window_us: u64) -> Option<f64> {
        let last = self.points.back()?;
        let from = self.points.partition_point(|p| p.0 + window_us < last.0);
        // The point just before the window's edge makes the span at least the window.
        let first = self.points.get(from.saturating_sub(1))?;
        let span = last.0 - first.0;
        (span * 2 >= window_us && span > 0).then(|| (last.1 - first.1) as f64 * 1e6 / span as f64)
    }

    /// Bytes per second from a point seen before to the newest, if `least_us` lie between.
    pub(super) fn rate_since(&self, point: (u64, u64), least_us: u64) -> Option<f64> {
        let last = *self.points.back()?;
        self.between(point, last).filter(|_| last.0 - point.0 >= least_us)
    }

    /// Bytes per second from one point to another; `None` where nothing was sent in between, or the order is a lie.
    pub(super) fn between(&self, a: (u64, u64), b: (u64, u64)) -> Option<f64> {
        let usual = !self.waiting && a.0 >= self.since && b.0 > a.0 && b.1 >= a.1;
        usual.then(|| (b.1 - a.1) as f64 * 1e6 / (b.0 - a.0) as f64)
    }

    pub(super) fn clear_points(&mut self) {
        self.points.clear();
        self.waiting = false;
    }

    /// Nothing was sent for a while: what arrives is measured from the first packet sent since, of which
    /// [`Delivery::resume`] tells.
    pub(super) fn pause(&mut self) {
        self.points.clear();
        self.waiting = true;
    }

    /// A packet sent after the pause has arrived.
    pub(super) fn resume(&mut self, arrival_us: u64) {
        if core::mem::take(&mut self.waiting) {
            self.since = arrival_us;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_flow_is_measured_exactly_whatever_the_spacing_of_acks() {
        let mut d = Delivery::default();
        let mut t = 1_000_000;
        for i in 0..100 {
            let step = 5_000 + (i % 7) * 3_000;
            t += step;
            d.add(step * 10);
            d.mark(t, 400_000);
        }
        assert!((d.rate(100_000).unwrap() - 1e7).abs() < 1.0);
        let before = (t - 50_000, d.total() - 500_000);
        assert!((d.rate_since(before, 50_000).unwrap() - 1e7).abs() < 1.0);
        assert_eq!(d.rate_since(before, 50_001), None, "not yet long enough");
        d.mark(t - 1000, 400_000);
        assert!((d.rate(100_000).unwrap() - 1e7).abs() < 1.0, "a late ACK changes nothing");
        d.clear_points();
        assert_eq!(d.rate(100_000), None);
    }

    #[test]
    fn a_pause_is_no_measure() {
        let mut d = Delivery::default();
        let at = |d: &mut Delivery, t| {
            d.add(10_000);
            d.mark(t, 400_000);
            (t, d.total())
        };
        let before = at(&mut d, 1_000);
        at(&mut d, 100_000);
        assert!(d.rate_since(before, 50_000).is_some());
        d.pause();
        let told = at(&mut d, 110_000);
        assert_eq!((d.rate(50_000), d.rate_since(before, 1)), (None, None), "of what was sent before");
        d.resume(200_000);
        let first = at(&mut d, 200_000);
        let last = at(&mut d, 260_000);
        assert_eq!((d.rate_since(before, 1), d.between(told, last)), (None, None));
        assert!((d.between(first, last).unwrap() - 1e10 / 60_000.0).abs() < 1.0);
        assert_eq!(d.between(last, first), None);
    }
}
