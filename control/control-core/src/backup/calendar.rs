//! Times by the calendar: the five fields of `crontab`, in UTC.
//!
//! Not a crate's: those that are kept bring a dozen others and read more than is wanted here (`L`, `W`, `#`, names of
//! schedules, zones), in ways that differ. What is stored has to mean the same in ten years, at every replica.

use event_schema::Timestamp;
use time::Date;

use crate::limits::CALENDAR_LEN_MAX;

/// Which minutes are named. A bit for each value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Calendar {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Neither of the two fields of days begins with `*`: either is enough.
    either_day: bool,
}

/// What a field's values are.
struct Field {
    what: &'static str,
    first: u8,
    last: u8,
    /// Names of the values from the first on.
    names: &'static [&'static str],
}

const MINUTE: Field = Field { what: "minute", first: 0, last: 59, names: &[] };
const HOUR: Field = Field { what: "hour", first: 0, last: 23, names: &[] };
const DAY: Field = Field { what: "day of the month", first: 1, last: 31, names: &[] };
const MONTH: Field = Field {
    what: "month",
    first: 1,
    last: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
/// Sunday is 0 and 7.
const WEEKDAY: Field = Field {
    what: "day of the week",
    first: 0,
    last: 7,
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
};

/// The Gregorian calendar repeats itself, weekdays included: what is not in these days never is.
const DAYS_OF_400_YEARS: i32 = 146_097;
/// Day number of 1970-01-01 in [`Date`]'s count.
const JULIAN_DAY_OF_1970: i32 = 2_440_588;
const MINUTES_OF_DAY: u64 = 24 * 60;
const MINUTE_MS: u64 = 60_000;

impl Calendar {
    /// Reads minute, hour, day of the month, month and day of the week: `30 2 * * mon-fri`. Each is `*`, a value, a range
    /// `2-5`, or several of them between commas; after `*` or a range may stand `/` and a step. Months and days of the
    /// week have their English names in three letters too.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub(crate) fn parse(expression: &str) -> Result<Self, String> {
        if expression.len() > CALENDAR_LEN_MAX {
            return Err(format!("it has more than {CALENDAR_LEN_MAX} bytes"));
        }
        let fields: Vec<&str> = expression.split(' ').filter(|field| !field.is_empty()).collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err("it has five fields: minute, hour, day of the month, month, day of the week".into());
        };
        let mut weekdays = WEEKDAY.parse(weekday)?;
        weekdays |= weekdays >> 7;
        let calendar = Self {
            minutes: MINUTE.parse(minute)?,
            hours: HOUR.parse(hour)?,
            days: DAY.parse(day)?,
            months: MONTH.parse(month)?,
            weekdays,
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
        };
        match calendar.next(Timestamp(0)) {
            Some(_) => Ok(calendar),
            None => Err("it names no day that there is".into()),
        }
    }

    /// The first minute that it names after this time; none after the year 9999.
    pub(crate) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let minute = after.0 / MINUTE_MS + 1;
        let first_day = i32::try_from(minute / MINUTES_OF_DAY).ok()?;
        let mut from = minute % MINUTES_OF_DAY;
        for day in first_day..first_day.checked_add(DAYS_OF_400_YEARS + 1)? {
            let date = Date::from_julian_day(JULIAN_DAY_OF_1970.checked_add(day)?).ok()?;
            if self.has_day(date)
                && let Some(minute) = (from..MINUTES_OF_DAY).find(|minute| self.has_minute(*minute))
            {
                let day = u64::try_from(day).ok()?;
                return Some(Timestamp((day * MINUTES_OF_DAY + minute) * MINUTE_MS));
            }
            from = 0;
        }
        None
    }

    fn has_day(&self, date: Date) -> bool {
        let has = |bits: u64, value: u8| bits >> value & 1 == 1;
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().number_days_from_sunday());
        let days = if self.either_day { day || weekday } else { day && weekday };
        days && has(self.months, date.month().into())
    }

    fn has_minute(&self, of_day: u64) -> bool {
        self.hours >> (of_day / 60) & 1 == 1 && self.minutes >> (of_day % 60) & 1 == 1
    }
}

impl Field {
    fn parse(&self, text: &str) -> Result<u64, String> {
        let parts = text.split(',').map(|part| self.part(part));
        parts.collect::<Option<Vec<u64>>>().map(|parts| parts.into_iter().fold(0, |all, part| all | part)).ok_or_else(
            || {
                let Self { what, first, last, .. } = self;
                format!("a {what} is `*`, {first} to {last}, a range such as {first}-{last}, or some of them with commas")
            },
        )
    }

    fn part(&self, text: &str) -> Option<u64> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, Some(number(step).filter(|step| *step > 0)?)),
            None => (text, None),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (self.first, self.last),
            Some((from, to)) => {
                let (from, to) = (self.value(from)?, self.value(to)?);
                // A week may end with its Sunday: `fri-sun`.
                (from, if to == 0 && from > 0 && self.last == 7 { 7 } else { to })
            }
            // A step needs to know where it ends.
            None if step.is_some() => return None,
            None => (self.value(range)?, self.value(range)?),
        };
        // `*` of the week ends with Saturday: a step would else count Sunday twice.
        let to = if range == "*" && self.last == 7 { 6 } else { to };
        if from > to {
            return None;
        }
        let values = (from..=to).step_by(usize::from(step.unwrap_or(1)));
        Some(values.fold(0, |bits, value| bits | 1 << value))
    }

    fn value(&self, text: &str) -> Option<u8> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let value = match named {
            Some(place) => u8::try_from(place).ok()? + self.first,
            None => number(text)?,
        };
        (self.first..=self.last).contains(&value).then_some(value)
    }
}

/// Digits alone, at most two: no sign.
fn number(text: &str) -> Option<u8> {
    if text.len() > 2 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::OffsetDateTime;

    use super::*;
    use crate::backup::version::VersionName;

    /// 2026-11-23T01:00:00Z, a Monday.
    const START: Timestamp = Timestamp(1_795_395_600_000);

    /// The times after the start, as names.
    fn times(expression: &str, count: usize) -> Vec<String> {
        let calendar = Calendar::parse(expression).expect("a calendar");
        let times = std::iter::successors(calendar.next(START), |last| calendar.next(*last)).take(count);
        times.map(|at| VersionName::at(at).expect("in our days").to_string()).collect()
    }

    #[test]
    fn it_is_that_of_crontab_in_utc() {
        for (expression, expected) in [
            ("30 2 * * *", ["2026-11-23T023000Z", "2026-11-24T023000Z"]),
            ("0 1 * * *", ["2026-11-24T010000Z", "2026-11-25T010000Z"]),
            ("1 1 * * *", ["2026-11-23T010100Z", "2026-11-24T010100Z"]),
            ("*/20 * * * *", ["2026-11-23T012000Z", "2026-11-23T014000Z"]),
            ("5-15/5,50 1 * * *", ["2026-11-23T010500Z", "2026-11-23T011000Z"]),
            ("0  22 * *  mon-FRI", ["2026-11-23T220000Z", "2026-11-24T220000Z"]),
            ("0 0 * * 0", ["2026-11-29T000000Z", "2026-12-06T000000Z"]),
            ("0 0 * * 7", ["2026-11-29T000000Z", "2026-12-06T000000Z"]),
            ("0 0 * * fri-sun", ["2026-11-27T000000Z", "2026-11-28T000000Z"]),
            ("0 0 * * sun-sun", ["2026-11-29T000000Z", "2026-12-06T000000Z"]),
            ("0 0 * * */3", ["2026-11-25T000000Z", "2026-11-28T000000Z"]),
            ("0 0 29 feb *", ["2028-02-29T000000Z", "2032-02-29T000000Z"]),
            ("0 0 31 * *", ["2026-12-31T000000Z", "2027-01-31T000000Z"]),
            // Either day is enough; with a `*` in front both count.
            ("0 0 1 * tue", ["2026-11-24T000000Z", "2026-12-01T000000Z"]),
            ("0 0 */2 * tue", ["2026-12-01T000000Z", "2026-12-15T000000Z"]),
            // A Sunday that is a 29th of February.
            ("0 0 29 2 */7", ["2032-02-29T000000Z", "2060-02-29T000000Z"]),
        ] {
            assert_eq!(times(expression, 2), expected, "{expression}");
        }
        let calendar = Calendar::parse("59 23 31 12 *").expect("a calendar");
        let end = Timestamp(253_402_300_799_999);
        assert_eq!(calendar.next(Timestamp(end.0 - 60_000)), Some(Timestamp(end.0 - 59_999)));
        assert_eq!(calendar.next(end), None, "the year 9999 is over");
        assert_eq!(calendar.next(Timestamp::NEVER), None);
    }

    #[test]
    fn what_is_none_is_refused() {
        for bad in [
            "",
            "     ",
            "* * * *",
            "* * * * * *",
            "0 0 30 2 *",
            "0 0 31 4,6,9,11 *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "5-2 * * * *",
            "*/0 * * * *",
            "5/10 * * * *",
            "1, * * * *",
            ",1 * * * *",
            "1-2-3 * * * *",
            "1-*/2 * * * *",
            "*/2/2 * * * *",
            "+5 * * * *",
            "005 * * * *",
            "999 * * * *",
            "@daily",
            "0 0 L * *",
            "0 0 15W * *",
            "0 0 * * mon#2",
            "0 0 ? * *",
            "0 0 * * friday",
            "0 0 * mon *",
            "- - - - -",
            "* * * * \u{2028}",
            "0\t0 * * * *",
            "٣ * * * *",
        ] {
            assert!(Calendar::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Calendar::parse(&format!("{} * * * *", vec!["1"; 200].join(","))).is_err());
    }

    /// A field's text, and the values that it means.
    fn field(first: u8, last: u8) -> impl Strategy<Value = (String, Vec<u8>)> {
        let list = prop::collection::vec(first..=last, 1..4).prop_map(|values| {
            let text: Vec<String> = values.iter().map(ToString::to_string).collect();
            (text.join(","), values)
        });
        let range = (first..=last, first..=last, 1..5u8).prop_map(|(a, b, step)| {
            let (from, to) = (a.min(b), a.max(b));
            (format!("{from}-{to}/{step}"), (from..=to).step_by(step.into()).collect())
        });
        prop_oneof![1 => Just(("*".to_owned(), (first..=last).collect::<Vec<u8>>())), 1 => list, 1 => range]
    }

    proptest! {
        /// Minute by minute, by another calendar's words.
        #[test]
        fn the_next_time_is_one_and_none_is_before_it(
            minute in field(0, 59), hour in field(0, 23), day in field(1, 31), month in field(10, 12),
            weekday in field(0, 7), ms in 0..60_000u64
        ) {
            let expression = format!("{} {} {} {} {}", minute.0, hour.0, day.0, month.0, weekday.0);
            let calendar = match Calendar::parse(&expression) {
                Ok(calendar) => calendar,
                Err(why) => {
                    // The 31st of November.
                    prop_assert!(why.contains("no day"), "{}: {}", expression, why);
                    return Ok(());
                }
            };
            let either = !day.0.starts_with('*') && !weekday.0.starts_with('*');
            let named = |ms: u64| {
                let at = OffsetDateTime::from_unix_timestamp(i64::try_from(ms / 1_000).expect("small")).expect("a time");
                let is_day = day.1.contains(&at.day());
                let from_monday = at.weekday().number_from_monday();
                let is_weekday = weekday.1.iter().any(|day| (*day + 6) % 7 + 1 == from_monday);
                minute.1.contains(&at.minute())
                    && hour.1.contains(&at.hour())
                    && month.1.contains(&u8::from(at.month()))
                    && if either { is_day || is_weekday } else { is_day && is_weekday }
            };
            let next = calendar.next(Timestamp(START.0 + ms)).expect("there is a next one").0;
            prop_assert!(named(next) && next % 60_000 == 0, "{}", expression);
            let earlier = (START.0 + 60_000..next).step_by(60_000).take(20_000);
            for before in earlier {
                prop_assert!(!named(before), "{} names {}", expression, Timestamp(before));
            }
        }

        #[test]
        fn any_text_is_one_or_refused(text in "[0-9*,/ a-z-]{0,40}|\\PC{0,40}") {
            if let Ok(calendar) = Calendar::parse(&text) {
                prop_assert!(calendar.next(START).is_some_and(|next| next > START));
            }
        }
    }
}
