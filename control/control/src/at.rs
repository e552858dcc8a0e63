//! A place in history that somebody asks for: a position of the log or a time (`events/AUDIT_FORMAT.md` §10.6).

use std::fmt;
use std::str::FromStr;
use std::time::UNIX_EPOCH;

use event_schema::Timestamp;

/// A position, or the time that names one: that of the last record before the first later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// After this record; 0 is before the first.
    Position(u64),
    /// At this time.
    Time(Timestamp),
}

impl At {
    /// Whether a record at `position` with this time is beyond the place.
    pub(crate) fn is_before(self, position: u64, time: Timestamp) -> bool {
        match self {
            Self::Position(last) => last < position,
            Self::Time(last) => last < time,
        }
    }
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(position) = text.parse() {
            return Ok(Self::Position(position));
        }
        let time = humantime::parse_rfc3339_weak(text)
            .map_err(|_| format!("{text} is neither a position nor a time such as 2026-03-01T12:00:00Z"))?;
        let since = time.duration_since(UNIX_EPOCH).map_err(|_| format!("{text} is before 1970"))?;
        Ok(Self::Time(Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))))
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Position(position) => write!(f, "position {position}"),
            Self::Time(time) => time.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        assert_eq!("17".parse(), Ok(At::Position(17)));
        let time = Timestamp(1_795_300_496_123);
        for text in ["2026-11-21T22:34:56.123Z", "2026-11-21 22:34:56.123"] {
            assert_eq!(text.parse(), Ok(At::Time(time)), "{text}");
        }
        assert_eq!(At::Time(time).to_string().parse(), Ok(At::Time(time)));
        for bad in
            ["", "-1", "yesterday", "1969-12-31T23:59:59Z", "2026-13-01T00:00:00Z", "18446744073709551616"]
        {
            assert!(bad.parse::<At>().is_err(), "{bad}");
        }
    }
}
