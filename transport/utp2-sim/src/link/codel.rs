//! The decision of CoDel (RFC 8289 §5): whether the datagram at the head of the queue has to go.

/// State of one queue. Times are picoseconds.
#[derive(Debug, Default)]
pub(super) struct CoDel {
    /// When the wait will have stood above the target for an interval; 0 if it is below.
    first_above: u64,
    dropping: bool,
    drop_next: u64,
    count: u32,
    last_count: u32,
}

impl CoDel {
    /// Told of each datagram that comes to the head at `now`, and whether a queue `stands`: the datagram has waited for
    /// the target or longer, and more than the largest datagram waits behind it.
    pub(super) fn should_drop(&mut self, now: u64, stands: bool, interval: u64) -> bool {
        let mut ok_to_drop = false;
        if !stands {
            self.first_above = 0;
        } else if self.first_above == 0 {
            self.first_above = now + interval;
        } else {
            ok_to_drop = now >= self.first_above;
        }
        if self.dropping {
            if !ok_to_drop {
                self.dropping = false;
            } else if now >= self.drop_next {
                self.count += 1;
                self.drop_next = control_law(self.drop_next, interval, self.count);
                return true;
            }
            return false;
        }
        if !ok_to_drop {
            return false;
        }
        self.dropping = true;
        // Goes on where it stopped if that is not long ago.
        let delta = self.count.saturating_sub(self.last_count);
        let recent = now.saturating_sub(self.drop_next) < 16 * interval;
        self.count = if delta > 1 && recent { delta } else { 1 };
        self.last_count = self.count;
        self.drop_next = control_law(now, interval, self.count);
        true
    }
}

fn control_law(at: u64, interval: u64, count: u32) -> u64 {
    at + (interval as f64 / f64::from(count).sqrt()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000_000;

    #[test]
    fn a_short_burst_is_let_through_and_a_standing_queue_is_not() {
        let mut codel = CoDel::default();
        let mut at = |ms: u64, stands: bool| codel.should_drop(ms * MS, stands, 100 * MS);
        assert!((0..99).all(|ms| !at(ms, true)));
        assert!(!at(99, false), "the queue went below the target");
        assert!((100..200).all(|ms| !at(ms, true)));
        let dropped: Vec<u64> = (200..600).filter(|&ms| at(ms, true)).collect();
        assert_eq!(dropped[..4], [200, 300, 371, 429], "ever faster");
    }
}
