//! Wall time of this machine, and how far the fleet's clock is from it.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use event_schema::Timestamp;

/// Wall time by this machine.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The fleet's clock as far as we know it: ours, until the gateway told its own.
#[derive(Debug, Default)]
pub(crate) struct FleetClock {
    offset: AtomicI64,
    known: AtomicBool,
}

impl FleetClock {
    /// The gateway says it is `theirs` now.
    pub(crate) fn set(&self, theirs: Timestamp) {
        let offset = i128::from(theirs.0) - i128::from(now().0);
        self.offset.store(i64::try_from(offset).unwrap_or(0), Ordering::Relaxed);
        self.known.store(true, Ordering::Relaxed);
    }

    /// Wall time by the fleet's clock.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(now().0.saturating_add_signed(self.offset.load(Ordering::Relaxed)))
    }

    /// Whether the gateway told the time since this program started.
    pub(crate) fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// Milliseconds that our clock is behind (positive) or ahead (negative).
    pub(crate) fn offset_ms(&self) -> i64 {
        self.offset.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_gateway() {
        let clock = FleetClock::default();
        assert!(!clock.is_known());
        for shift in [3_600_000_i64, -3_600_000] {
            clock.set(Timestamp(now().0.saturating_add_signed(shift)));
            assert!((clock.offset_ms() - shift).abs() < 5_000);
            assert!(clock.now().0.abs_diff(now().0) > 3_590_000);
        }
    }
}
