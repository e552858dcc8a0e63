//! When the kernel received a datagram, on the endpoint's clock.
//!
//! The kernel stamps datagrams with the wall clock, the core counts monotonic time. What carries over is the *age*
//! of a datagram at the moment it is read: the wall clock then, less the stamp. An age is only believed if the wall
//! clock ran as fast as the monotonic one since the last look; after a step (somebody set the clock, the machine
//! slept, a virtual machine moved) datagrams count as received when they were read. So a stamp can make a datagram
//! older than its reading, never newer, and a wrong clock costs precision, never time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use timebase::Instant;

/// Beyond this the two clocks have not run alike.
const STEP_MIN: Duration = Duration::from_micros(500);

/// Readings of the two clocks that lie further apart than this were interrupted, and are made again so many times.
const APART_MAX: Duration = Duration::from_micros(100);
const TRIES: usize = 3;

/// How much faster or slower than the monotonic clock a wall clock may be made to run while it is corrected: 1/512,
/// four times what Linux allows in its ordinary discipline.
const SLEW_SHIFT: u32 = 9;

/// Ages beyond this are not believed whatever the clocks say: no receive buffer holds a datagram so long while its
/// owner lives.
const AGE_MAX: Duration = Duration::from_secs(10);

/// Ages of datagrams. One for each socket; asked once for each batch.
#[derive(Debug, Default)]
pub(crate) struct Ages {
    /// Monotonic and wall time when last looked.
    last: Option<(Instant, Duration)>,
}

impl Ages {
    /// Reads both clocks, right after a batch was read from the socket. Gives the monotonic time too.
    pub(crate) fn look(&mut self, clock: impl Fn() -> Instant) -> (Instant, Reading) {
        let mut now = clock();
        for _ in 0..TRIES {
            let before = now;
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            now = clock();
            if now.saturating_since(before) <= APART_MAX {
                return (now, self.look_at(now, wall));
            }
        }
        (now, Reading { wall: None })
    }

    fn look_at(&mut self, now: Instant, wall: Duration) -> Reading {
        let Some((then, wall_then)) = self.last.replace((now, wall)) else { return Reading { wall: None } };
        let elapsed = now.saturating_since(then);
        let expected = wall_then + elapsed;
        let tolerance = STEP_MIN + elapsed / (1 << SLEW_SHIFT);
        Reading { wall: (wall.abs_diff(expected) <= tolerance).then_some(wall) }
    }
}

/// The wall clock as a batch was read, if it is to be believed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    wall: Option<Duration>,
}

impl Reading {
    /// When a datagram read at `now` and stamped `stamp` by the kernel was received.
    pub(crate) fn received(self, now: Instant, stamp: Option<Duration>) -> Instant {
        let age = self.wall.zip(stamp).and_then(|(wall, stamp)| wall.checked_sub(stamp));
        match age {
            Some(age) if age <= AGE_MAX => now - age,
            _ => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u64) -> Instant {
        Instant::from_micros(ms * 1000)
    }

    #[test]
    fn a_datagram_is_as_old_as_its_stamp_says() {
        let mut ages = Ages::default();
        let wall = Duration::from_secs(1_700_000_000);
        ages.look_at(at(1000), wall);
        let reading = ages.look_at(at(1100), wall + MS * 100);
        assert_eq!(reading.received(at(1100), Some(wall + MS * 60)), at(1060));
        assert_eq!(reading.received(at(1100), None), at(1100), "no stamp");
        assert_eq!(reading.received(at(1100), Some(wall + MS * 130)), at(1100), "from the future");
        assert_eq!(reading.received(at(1100), Some(MS)), at(1100), "decades old");
    }

    #[test]
    fn a_step_of_the_wall_clock_is_not_an_age() {
        let wall = Duration::from_secs(1_700_000_000);
        for step in [MS * 20, Duration::from_secs(3600)] {
            for back in [false, true] {
                let stepped = |t: Duration| if back { t - step } else { t + step };
                let mut ages = Ages::default();
                ages.look_at(at(0), wall);
                let reading = ages.look_at(at(10), stepped(wall + MS * 10));
                assert_eq!(reading.received(at(10), Some(wall + MS * 9)), at(10), "{step:?}, back: {back}");
                let reading = ages.look_at(at(20), stepped(wall + MS * 20));
                assert_eq!(reading.received(at(20), Some(stepped(wall + MS * 17))), at(17), "believed again");
            }
        }
    }

    #[test]
    fn the_first_look_and_a_slewed_clock() {
        let wall = Duration::from_secs(1_700_000_000);
        let mut ages = Ages::default();
        assert_eq!(
            ages.look_at(at(5), wall).received(at(5), Some(wall - MS)),
            at(5),
            "nothing to compare with"
        );
        // A minute later the clock has gained 30 ms: 500 ppm.
        let later = wall + Duration::from_secs(60) + MS * 30;
        assert_eq!(ages.look_at(at(60_005), later).received(at(60_005), Some(later - MS)), at(60_004));
    }
}
