//! Names of versions, as times that can be compared and counted by.

use std::fmt;
use std::str::FromStr;

use event_schema::Timestamp;
use time::{Date, Month, OffsetDateTime, Time};

/// The greatest number behind a time.
pub const NUMBER_MAX: u16 = 9_999;

/// `2026-11-23T013000Z`, and `-2` to `-9999` behind it from the second one of a time on. Ordered by time, then by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionName {
    at: OffsetDateTime,
    number: u16,
}

impl VersionName {
    /// The first name of a time, whose milliseconds are left out; none beyond the year 9999.
    pub fn at(time: Timestamp) -> Option<Self> {
        let seconds = i64::try_from(time.0 / 1_000).ok()?;
        Some(Self { at: OffsetDateTime::from_unix_timestamp(seconds).ok()?, number: 1 })
    }

    /// The next name of the same time; none behind the last.
    pub fn next(self) -> Option<Self> {
        Some(Self { number: self.number.checked_add(1).filter(|number| *number <= NUMBER_MAX)?, ..self })
    }

    /// The first name of the next second; none beyond the year 9999.
    pub(crate) fn a_second_later(self) -> Option<Self> {
        let at = self.at.checked_add(time::Duration::SECOND).filter(|at| at.year() <= 9_999)?;
        Some(Self { at, number: 1 })
    }

    /// The time in it; none before 1970.
    pub fn timestamp(self) -> Option<Timestamp> {
        u64::try_from(self.at.unix_timestamp()).ok().map(|seconds| Timestamp(seconds * 1_000))
    }

    /// The time in it, UTC, to the second.
    pub(crate) fn time(self) -> OffsetDateTime {
        self.at
    }
}

impl fmt::Display for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.at.to_calendar_date();
        let (hour, minute, second) = self.at.to_hms();
        write!(f, "{year:04}-{:02}-{day:02}T{hour:02}{minute:02}{second:02}Z", u8::from(month))?;
        if self.number > 1 { write!(f, "-{}", self.number) } else { Ok(()) }
    }
}

/// It is not the name of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of a version is a time such as 2026-11-23T013000Z, and perhaps a number behind it such as -2"
)]
pub struct NoVersionName;

impl FromStr for VersionName {
    type Err = NoVersionName;

    fn from_str(text: &str) -> Result<Self, NoVersionName> {
        let named = parse(text).ok_or(NoVersionName)?;
        // One text for each name: `-1`, `-02` and signs are none.
        if named.to_string() == text { Ok(named) } else { Err(NoVersionName) }
    }
}

/// The name that may be meant.
fn parse(text: &str) -> Option<VersionName> {
    const FORM_LEN: usize = "0000-00-00T000000Z".len();
    let (time, number) = text.split_at_checked(FORM_LEN)?;
    let part = |from: usize, to: usize| time.get(from..to)?.parse::<u16>().ok();
    let small = |from, to| part(from, to).and_then(|part| u8::try_from(part).ok());
    let month = Month::try_from(small(5, 7)?).ok()?;
    let date = Date::from_calendar_date(i32::from(part(0, 4)?), month, small(8, 10)?).ok()?;
    let time = Time::from_hms(small(11, 13)?, small(13, 15)?, small(15, 17)?).ok()?;
    let number = match number.strip_prefix('-') {
        None => 1,
        Some(number) => number.parse().ok().filter(|number| (2..=NUMBER_MAX).contains(number))?,
    };
    Some(VersionName { at: OffsetDateTime::new_utc(date, time), number })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_read_as_written_and_nothing_else_is_one() {
        let names = [
            "1970-01-01T000000Z",
            "2024-02-29T235959Z",
            "2026-11-23T013000Z",
            "2026-11-23T013000Z-2",
            "2026-11-23T013000Z-10",
            "2026-11-23T013001Z",
            "9999-12-31T235959Z-9999",
        ];
        let parsed: Vec<VersionName> = names.iter().map(|name| name.parse().expect("a name")).collect();
        assert!(parsed.is_sorted(), "by time, then by number");
        for (name, parsed) in names.iter().zip(&parsed) {
            assert_eq!(parsed.to_string(), *name);
        }
        assert_eq!(parsed[2].next(), Some(parsed[3]));
        assert_eq!(parsed[6].next(), None);
        for bad in [
            "",
            "..",
            "2026-11-23T013000",
            "2026-11-23t013000Z",
            "2026-11-23T013000Z-",
            "2026-11-23T013000Z-0",
            "2026-11-23T013000Z-1",
            "2026-11-23T013000Z-02",
            "2026-11-23T013000Z-+2",
            "2026-11-23T013000Z-10000",
            "2026-11-23T013000Z-99999999999",
            "2026-11-23T013000Zx",
            "2026-02-29T013000Z",
            "2026-13-01T013000Z",
            "2026-11-23T240000Z",
            "2026-11-23T016000Z",
            "2026-11-23T013060Z",
            "+026-11-23T013000Z",
            "2026-1-123T013000Z",
            "2026-11-23T01300\u{0}Z",
            "2026-11-2３T013000Z",
            "../2026-11-23T013000Z",
        ] {
            assert_eq!(bad.parse::<VersionName>(), Err(NoVersionName), "{bad:?}");
        }
        assert_eq!(VersionName::at(Timestamp::NEVER), None);
    }

    proptest! {
        #[test]
        fn a_time_is_in_its_name(ms in 0..253_402_300_800_000u64) {
            let name = VersionName::at(Timestamp(ms)).expect("before the year 10000");
            prop_assert_eq!(name.to_string().parse::<VersionName>(), Ok(name));
            prop_assert_eq!(name.time().unix_timestamp(), i64::try_from(ms / 1_000).expect("small"));
            let text = Timestamp(ms).to_string();
            prop_assert_eq!(name.to_string(), format!("{}Z", text[..19].replace(':', "")));
        }

        #[test]
        fn any_text_is_a_name_or_none(text in "[0-9TZ+:-]{0,24}|\\PC{0,24}") {
            if let Ok(name) = text.parse::<VersionName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
