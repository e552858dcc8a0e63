//! Wall time of this machine, and the fleet's time as the gateway told it.
//!
//! What was told goes on by the time since boot, which nobody sets: a board without a clock of its own is put decades
//! forward by the first server that it asks, and nothing that is kept until a day of the fleet's may go for that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use event_schema::Timestamp;
use portable_atomic::AtomicI64;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;

/// Wall time by this machine.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds since this machine was started, those asleep included.
fn since_boot() -> u64 {
    let since = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(since.tv_sec), u64::try_from(since.tv_nsec));
    seconds.unwrap_or(0).saturating_mul(1000).saturating_add(nanos.unwrap_or(0) / 1_000_000)
}

/// The fleet's clock as far as we know it: this machine's, until the gateway told its own.
#[derive(Debug, Default)]
pub(crate) struct FleetClock {
    /// The fleet's time when this machine was started, in milliseconds since 1970; it may well be before.
    started: AtomicI64,
    known: AtomicBool,
    told: Notify,
}

impl FleetClock {
    /// The gateway says it is `theirs` now.
    pub(crate) fn set(&self, theirs: Timestamp) {
        self.set_at(theirs, since_boot());
        self.told.notify_waiters();
    }

    fn set_at(&self, theirs: Timestamp, since_boot: u64) {
        let started = i128::from(theirs.0) - i128::from(since_boot);
        self.started.store(i64::try_from(started).unwrap_or(i64::MAX), Ordering::Relaxed);
        self.known.store(true, Ordering::Release);
    }

    /// Wall time by the fleet's clock.
    pub(crate) fn now(&self) -> Timestamp {
        self.at(now(), since_boot())
    }

    fn at(&self, system: Timestamp, since_boot: u64) -> Timestamp {
        if !self.is_known() {
            return system;
        }
        Timestamp(since_boot.saturating_add_signed(self.started.load(Ordering::Relaxed)))
    }

    /// Whether the gateway told the time since this program started.
    pub(crate) fn is_known(&self) -> bool {
        self.known.load(Ordering::Acquire)
    }

    /// Waits until the gateway has told the time.
    pub(crate) async fn known(&self) {
        loop {
            let told = self.told.notified();
            if self.is_known() {
                return;
            }
            told.await;
        }
    }

    /// Milliseconds that this machine's clock is behind (positive) or ahead (negative) now.
    pub(crate) fn offset_ms(&self) -> i64 {
        let (system, boot) = (now(), since_boot());
        let offset = i128::from(self.at(system, boot).0) - i128::from(system.0);
        i64::try_from(offset).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_gateway() {
        let clock = FleetClock::default();
        assert!(!clock.is_known() && clock.offset_ms() == 0);
        for shift in [3_600_000_i64, -3_600_000] {
            clock.set(Timestamp(now().0.saturating_add_signed(shift)));
            assert!((clock.offset_ms() - shift).abs() < 5_000);
            assert!(clock.now().0.abs_diff(now().0) > 3_590_000);
        }
    }

    /// A board that wakes up in 1970, is told the time by its gateway, and then by a server of its own.
    #[test]
    fn setting_this_machines_clock_does_not_move_the_fleets() {
        const YEARS_55: u64 = 55 * 365 * 86_400_000;
        let clock = FleetClock::default();
        assert_eq!(clock.at(Timestamp(77), 20_000), Timestamp(77), "all there is to go by");
        clock.set_at(Timestamp(YEARS_55), 20_000);
        for system in [77, YEARS_55, 3 * YEARS_55] {
            assert_eq!(clock.at(Timestamp(system), 50_000), Timestamp(YEARS_55 + 30_000));
        }
        // A machine that runs for longer than the fleet's clock says there has been time.
        clock.set_at(Timestamp(5), 20_000);
        assert_eq!(clock.at(Timestamp(0), 20_010), Timestamp(15));
    }

    #[tokio::test]
    async fn who_waits_for_the_time_is_told() {
        let clock = std::sync::Arc::new(FleetClock::default());
        let waiting = tokio::spawn({
            let clock = clock.clone();
            async move { clock.known().await }
        });
        tokio::task::yield_now().await;
        clock.set(Timestamp(1));
        waiting.await.expect("it was told");
        clock.known().await;
    }
}
