//! Names of versions (`edge-agent/BACKUP.md` §1): a time and a number, never a path.

use std::fmt;
use std::str::FromStr;

/// The greatest number behind a name.
const NUMBER_MAX: u16 = 9999;

/// `YYYY-MM-DDTHHMMSSZ`, and `-2` to `-9999` behind it from the second one on. Ordered by time, then by number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VersionName {
    time: String,
    number: u16,
}

impl VersionName {
    /// The next one of the same time.
    pub(crate) fn next(&self) -> Option<Self> {
        let number = self.number.checked_add(1).filter(|number| *number <= NUMBER_MAX)?;
        Some(Self { time: self.time.clone(), number })
    }
}

impl fmt::Display for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            1 => f.write_str(&self.time),
            number => write!(f, "{}-{number}", self.time),
        }
    }
}

/// It is not the name of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoVersion;

impl FromStr for VersionName {
    type Err = NoVersion;

    fn from_str(text: &str) -> Result<Self, NoVersion> {
        /// `0` stands for any digit.
        const FORM: &[u8] = b"0000-00-00T000000Z";
        let (time, rest) = text.split_at_checked(FORM.len()).ok_or(NoVersion)?;
        let fits = |(byte, form): (u8, &u8)| match form {
            b'0' => byte.is_ascii_digit(),
            form => byte == *form,
        };
        if !time.bytes().zip(FORM).all(fits) {
            return Err(NoVersion);
        }
        let number = match rest.strip_prefix('-') {
            None if rest.is_empty() => 1,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0') => {
                digits.parse().map_err(|_| NoVersion)?
            }
            _ => return Err(NoVersion),
        };
        if rest.is_empty() || (2..=NUMBER_MAX).contains(&number) {
            Ok(Self { time: time.to_owned(), number })
        } else {
            Err(NoVersion)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_written_and_nothing_else_is_one() {
        let names =
            ["2026-11-23T013000Z", "2026-11-23T013000Z-2", "2026-11-23T013000Z-10", "2026-11-23T013001Z"];
        let parsed: Vec<VersionName> = names.iter().map(|name| name.parse().expect("a name")).collect();
        assert!(parsed.is_sorted(), "by time, then by number");
        for (name, parsed) in names.iter().zip(&parsed) {
            assert_eq!(parsed.to_string(), *name);
        }
        assert_eq!(parsed[0].next(), Some(parsed[1].clone()));
        let last: VersionName = "2026-11-23T013000Z-9999".parse().expect("the last one");
        assert_eq!(last.next(), None);
        for bad in [
            "",
            ".",
            "..",
            "/",
            ".flotilla",
            "../2026-11-23T013000Z",
            "2026-11-23T013000Z/..",
            "2026-11-23T013000Z/",
            "2026-11-23T013000",
            "2026-11-23t013000Z",
            "2026-11-23T013000Z-",
            "2026-11-23T013000Z-1",
            "2026-11-23T013000Z-02",
            "2026-11-23T013000Z-+2",
            "2026-11-23T013000Z-10000",
            "2026-11-23T013000Z-99999999999",
            "2026-11-23T013000Z.gone",
            "2026-11-23T01300\u{0}Z",
            "2026-11-2３T013000Z",
        ] {
            assert_eq!(bad.parse::<VersionName>(), Err(NoVersion), "{bad:?}");
        }
    }
}
