//! When a backup is started without anybody asking for it.
//!
//! A start is due at a time that follows from facts on the log: when the job was made, when it was started last, and what
//! its sources told. So every replica comes to the same, a service that was away sees at once what it missed, and makes it
//! up with one start. Clocks are believed except where they were set back: see [`Schedule::due`].

use event_schema::{Timestamp, When};

use super::calendar::Calendar;
use crate::Rejection;
use crate::limits::{CLOCK_SET_BACK_MS, QUIET_SECONDS_MAX, SCHEDULE_MINUTES_MAX};

/// What is on the log that a schedule depends on. Of what happened last, in the log's order, whatever the clocks said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// When the job was made.
    pub created: Timestamp,
    /// When it was started last, by hand or by schedule; of a continuous backup: with this source.
    pub started: Option<Timestamp>,
    /// Whether the source told of a change after that.
    pub changed: bool,
}

/// A [`When`] that was read and makes sense.
#[derive(Clone, Debug)]
pub struct Schedule(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Manual,
    Every { minutes: u32 },
    Calendar(Calendar),
    Continuous { minutes: u32 },
}

const MINUTE_MS: u64 = 60_000;

impl Schedule {
    /// Reads what the owner said.
    ///
    /// # Errors
    /// If a time is out of its range, or the expression has not five fields, is not understood or names no time there is.
    pub fn parse(when: &When) -> Result<Self, Rejection> {
        let minutes_fit = |minutes: u32| {
            if (1..=SCHEDULE_MINUTES_MAX).contains(&minutes) {
                return Ok(());
            }
            Err(Rejection::Invalid(format!(
                "between two starts are 1 minute to {} days",
                SCHEDULE_MINUTES_MAX / 24 / 60
            )))
        };
        match when {
            When::Manual => Ok(Self(Kind::Manual)),
            When::Every { minutes } => {
                minutes_fit(*minutes)?;
                Ok(Self(Kind::Every { minutes: *minutes }))
            }
            When::Calendar { expression } => {
                let calendar = Calendar::parse(expression).map_err(|why| {
                    Rejection::Invalid(format!("{} is no calendar: {why}", shown(expression)))
                })?;
                Ok(Self(Kind::Calendar(calendar)))
            }
            When::Continuous { quiet_seconds, minutes } => {
                minutes_fit(*minutes)?;
                if !(1..=QUIET_SECONDS_MAX).contains(quiet_seconds) {
                    return Err(Rejection::Invalid(format!(
                        "a source is quiet for 1 to {QUIET_SECONDS_MAX} seconds"
                    )));
                }
                Ok(Self(Kind::Continuous { minutes: *minutes }))
            }
        }
    }

    /// When the next start is due; a time that has come means now. None if it is not known: it is started by hand, no
    /// change was told, or the calendar ends (with the year 9999).
    ///
    /// What was missed is due once, not once for each time. If the last start is more than [`CLOCK_SET_BACK_MS`] ahead of
    /// `now`, the clock was set back, or was wrong then: that start counts as one of before, as soon as a time of the
    /// schedule lies between. So a clock that once was in the wrong year stops no backup, and one that is set by seconds
    /// starts none twice.
    pub fn due(&self, facts: Facts, now: Timestamp) -> Option<Timestamp> {
        let from = facts.started.unwrap_or(facts.created);
        let set_back = from.0.saturating_sub(now.0) > CLOCK_SET_BACK_MS;
        match &self.0 {
            Kind::Manual => None,
            Kind::Continuous { .. } if !facts.changed => None,
            Kind::Continuous { minutes } => match facts.started {
                Some(started) if !set_back => Some(plus(started, *minutes)),
                Some(_) | None => Some(now),
            },
            Kind::Every { .. } | Kind::Calendar(_) if set_back => {
                self.next(facts.created, now).map(|next| if next <= from { now } else { next })
            }
            Kind::Every { .. } | Kind::Calendar(_) => self.next(facts.created, from),
        }
    }

    /// The first time of the schedule after this one.
    fn next(&self, created: Timestamp, after: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Kind::Manual | Kind::Continuous { .. } => None,
            Kind::Every { minutes } => {
                let step = u64::from(*minutes) * MINUTE_MS;
                // The same steps before the job was made, for clocks that are set back.
                let ahead = if after >= created {
                    step - (after.0 - created.0) % step
                } else {
                    match (created.0 - after.0) % step {
                        0 => step,
                        ahead => ahead,
                    }
                };
                after.0.checked_add(ahead).map(Timestamp)
            }
            Kind::Calendar(calendar) => calendar.next(after),
        }
    }
}

fn plus(time: Timestamp, minutes: u32) -> Timestamp {
    Timestamp(time.0.saturating_add(u64::from(minutes) * MINUTE_MS))
}

/// The expression as an error may show it.
fn shown(expression: &str) -> String {
    expression.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: u64 = 60 * MINUTE_MS;
    const DAY: u64 = 24 * HOUR;
    /// 2026-11-23T01:00:00Z, a Monday.
    const START: u64 = 1_795_395_600_000;

    fn every(minutes: u32) -> Schedule {
        Schedule::parse(&When::Every { minutes }).expect("a schedule")
    }

    fn cron(expression: &str) -> Result<Schedule, Rejection> {
        Schedule::parse(&When::Calendar { expression: expression.into() })
    }

    fn facts(created: u64, started: Option<u64>) -> Facts {
        Facts { created: Timestamp(created), started: started.map(Timestamp), changed: false }
    }

    fn due(schedule: &Schedule, facts: Facts, now: u64) -> bool {
        schedule.due(facts, Timestamp(now)).is_some_and(|at| at.0 <= now)
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let long = format!("{} * * * *", vec!["1"; 200].join(","));
        for bad in ["", "0 0 30 2 *", "@daily", &long] {
            assert!(matches!(cron(bad), Err(Rejection::Invalid(_))), "{bad:?}");
        }
        for (minutes, fits) in
            [(0, false), (1, true), (SCHEDULE_MINUTES_MAX, true), (SCHEDULE_MINUTES_MAX + 1, false)]
        {
            assert_eq!(Schedule::parse(&When::Every { minutes }).is_ok(), fits, "{minutes}");
            assert_eq!(
                Schedule::parse(&When::Continuous { quiet_seconds: 1, minutes }).is_ok(),
                fits,
                "{minutes}"
            );
        }
        for quiet_seconds in [0, QUIET_SECONDS_MAX + 1] {
            assert!(Schedule::parse(&When::Continuous { quiet_seconds, minutes: 1 }).is_err());
        }
    }

    #[test]
    fn what_was_missed_is_made_up_once() {
        let hourly = every(60);
        assert!(!due(&hourly, facts(START, None), START + HOUR - 1));
        assert!(due(&hourly, facts(START, None), START + HOUR));
        // A service that was away for ten hours and a half.
        let now = START + 10 * HOUR + HOUR / 2;
        assert!(due(&hourly, facts(START, Some(START)), now));
        let after = facts(START, Some(now));
        assert_eq!(
            hourly.due(after, Timestamp(now)),
            Some(Timestamp(START + 11 * HOUR)),
            "in the job's own step"
        );
        assert_eq!(Schedule(Kind::Manual).due(facts(START, None), Timestamp(now)), None);
    }

    #[test]
    fn clocks_that_are_set() {
        let hourly = every(60);
        let daily = cron("0 2 * * *").expect("a calendar");
        // By seconds, back over the time at which it was started: not again.
        let started = START + HOUR + 3_000;
        for schedule in [&hourly, &daily] {
            let facts = facts(START, Some(started));
            assert!(!due(schedule, facts, started - 5_000));
            assert!(!due(schedule, facts, started + 1));
        }
        // From a year ahead: as soon as a time of the schedule lies between, so at once; and then as usual.
        let ahead = facts(START, Some(START + 365 * DAY));
        for schedule in [&hourly, &daily] {
            assert!(due(schedule, ahead, START + 1));
            assert!(!due(schedule, facts(START, Some(START + 1)), START + 2));
        }
        // From further ahead than the calendar goes.
        assert!(due(&hourly, facts(START, Some(u64::MAX)), START + 1));
        assert!(due(&daily, facts(START, Some(u64::MAX)), START + 1));
        // The job was made by a clock that was ahead.
        assert!(due(&hourly, facts(START + 365 * DAY, None), START));
        // Forward by a year: once.
        assert!(due(&hourly, facts(START, Some(started)), started + 365 * DAY));
        assert!(!due(&hourly, facts(START, Some(started + 365 * DAY)), started + 365 * DAY + 1));
    }

    #[test]
    fn a_continuous_backup_waits_for_a_change_and_its_pause() {
        let schedule =
            Schedule::parse(&When::Continuous { quiet_seconds: 5, minutes: 10 }).expect("a schedule");
        let told = |started: Option<u64>| Facts { changed: true, ..facts(START, started) };
        assert_eq!(schedule.due(facts(START, None), Timestamp(START + DAY)), None, "nothing was told");
        assert!(due(&schedule, told(None), START), "never started: at once");
        assert!(!due(&schedule, told(Some(START)), START + 10 * MINUTE_MS - 1));
        assert!(due(&schedule, told(Some(START)), START + 10 * MINUTE_MS));
        assert!(due(&schedule, told(Some(START + 365 * DAY)), START), "the clock was set back");
        assert!(!due(&schedule, told(Some(START + 60_000)), START), "by a minute: it waits");
    }

    proptest! {
        /// A service looks at any times; what starts is one start for each look that has a time of the schedule behind it.
        #[test]
        fn one_start_for_all_that_was_missed(
            minutes in 1..3_000u32, looks in prop::collection::vec(1..10 * DAY, 1..40)
        ) {
            let schedule = every(minutes);
            let step = u64::from(minutes) * MINUTE_MS;
            let (mut now, mut started) = (START, None);
            for look in looks {
                let steps_before = (started.unwrap_or(START) - START) / step;
                now += look;
                let missed = (now - START) / step > steps_before;
                prop_assert_eq!(due(&schedule, facts(START, started), now), missed);
                if missed {
                    started = Some(now);
                    prop_assert!(!due(&schedule, facts(START, started), now), "asked twice");
                }
            }
        }

        /// Whatever clocks do: a start at `now` is not followed by another one at once, and each schedule starts again
        /// within its step and what a clock may be off.
        #[test]
        fn no_clock_stops_a_schedule_or_makes_it_run_wild(
            minutes in 1..3_000u32, created in 0..3 * START, started in prop::option::of(0..3 * START), now in 0..3 * START
        ) {
            let step = u64::from(minutes) * MINUTE_MS;
            for schedule in [every(minutes), cron("0 2 * * *").expect("a calendar")] {
                let step = if matches!(schedule.0, Kind::Calendar(_)) { DAY } else { step };
                let at = schedule.due(facts(created, started), Timestamp(now)).expect("it goes on");
                prop_assert!(at.0 <= now + CLOCK_SET_BACK_MS + step);
                let again = schedule.due(facts(created, Some(now)), Timestamp(now)).expect("it goes on");
                prop_assert!(again.0 > now && again.0 <= now + step);
            }
        }
    }
}
