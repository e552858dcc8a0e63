//! The units people write: rates, sizes, times, shares. One spelling for every program and every file.
//!
//! | what | units, in any case |
//! |---|---|
//! | bytes | none, `B`, `k` `kB`, `M` `MB`, `G` `GB`, `T` `TB` (powers of 1000), `KiB`, `MiB`, `GiB`, `TiB` |
//! | bits, of a rate alone | `bit`, `kbit`, `mbit`, `gbit`, `tbit` |
//! | time | `us`, `ms`, `s`, `m` `min`, `h` |
//! | share | none, `%` |
//!
//! A rate is per second, with `/s` behind it or without. Blanks between number and unit do no harm. `Mb` is a
//! megabyte: who means bits writes them out.

use std::ops::RangeInclusive;
use std::time::Duration;

const BYTES: &[(&str, f64)] = &[
    ("", 1.0),
    ("b", 1.0),
    ("k", 1e3),
    ("kb", 1e3),
    ("m", 1e6),
    ("mb", 1e6),
    ("g", 1e9),
    ("gb", 1e9),
    ("t", 1e12),
    ("tb", 1e12),
    ("kib", 1024.0),
    ("mib", 1_048_576.0),
    ("gib", 1_073_741_824.0),
    ("tib", 1_099_511_627_776.0),
];

const BITS: &[(&str, f64)] = &[("bit", 1.0), ("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9), ("tbit", 1e12)];

const MICROSECONDS: &[(&str, f64)] =
    &[("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 60e6), ("min", 60e6), ("h", 3600e6)];

/// Bits per second from `80mbit`, `1.5 gbit/s`, `10MB` (80,000,000), `100000` (800,000).
///
/// # Errors
/// What is wrong with the text, with what would be right. A rate outside `range` is.
pub fn rate(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let unit = unit.strip_suffix("/s").unwrap_or(&unit);
    let factor = find(BITS, unit).or_else(|| find(BYTES, unit).map(|bytes| bytes * 8.0));
    let factor = factor.ok_or_else(|| unknown(unit, "kbit, mbit, gbit, kB, MB, GB, KiB, MiB or GiB"))?;
    within(number * factor, &range).ok_or_else(|| {
        let (least, most) = (show(*range.start(), "bit"), show(*range.end(), "bit"));
        format!("a rate from {least} to {most} per second is needed")
    })
}

/// Bytes from `10GB`, `512MiB`, `1500`.
///
/// # Errors
/// What is wrong with the text, with what would be right. A size outside `range` is.
pub fn size(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor = find(BYTES, &unit).ok_or_else(|| unknown(&unit, "kB, MB, GB, TB, KiB, MiB, GiB or TiB"))?;
    within(number * factor, &range)
        .ok_or_else(|| format!("{} to {} are needed", show(*range.start(), "B"), show(*range.end(), "B")))
}

/// A time from `200ms`, `1.5s`, `50us`, `2min`.
///
/// # Errors
/// What is wrong with the text, with what would be right. A time above `max` is.
pub fn time(text: &str, max: Duration) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    if unit.is_empty() {
        return Err(format!("{text:?} needs a unit: us, ms, s, min or h"));
    }
    let factor = find(MICROSECONDS, &unit).ok_or_else(|| unknown(&unit, "us, ms, s, min or h"))?;
    let time = Duration::try_from_secs_f64(number * factor / 1e6).ok().filter(|time| *time <= max);
    time.ok_or_else(|| match max.as_secs() {
        hours if hours > 0 && hours.is_multiple_of(3600) => format!("at most {}h", hours / 3600),
        _ => format!("at most {}s", max.as_secs_f64()),
    })
}

/// A share from `5%` or `0.05`; less than the whole.
///
/// # Errors
/// What is wrong with the text, with what would be right.
pub fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = split(text)?;
    let share = match unit.as_str() {
        "" => number,
        "%" => number / 100.0,
        other => return Err(unknown(other, "%")),
    };
    if share < 1.0 { Ok(share) } else { Err("less than 100 % is needed".into()) }
}

/// Splits `FIRST,SECOND` (or by another mark) and reads both.
///
/// # Errors
/// What is wrong with the text; `example` is what would be right.
pub fn pair<A, B>(
    text: &str,
    by: char,
    example: &str,
    first: impl Fn(&str) -> Result<A, String>,
    second: impl Fn(&str) -> Result<B, String>,
) -> Result<(A, B), String> {
    let two = text.split_once(by);
    let (a, b) = two.ok_or_else(|| format!("{text:?} is not two values, such as {example}"))?;
    Ok((first(a)?, second(b)?))
}

/// Splits `12.5 MBit` into a number that is not negative and a unit in small letters.
fn split(text: &str) -> Result<(f64, String), String> {
    let text = text.trim();
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || matches!(c, '%' | '/'));
    let unit = text[number.len()..].to_ascii_lowercase();
    match number.trim_end().parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok((number, unit)),
        _ => Err(format!("{text:?} is not a number with a unit")),
    }
}

fn find(units: &[(&str, f64)], unit: &str) -> Option<f64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

fn unknown(unit: &str, known: &str) -> String {
    format!("unknown unit {unit:?}; use {known}")
}

/// Without what is behind the point, if it is in the range.
fn within(number: f64, range: &RangeInclusive<u64>) -> Option<u64> {
    (number >= *range.start() as f64 && number <= *range.end() as f64).then_some(number as u64)
}

/// In the largest unit in which it is whole.
fn show(number: u64, unit: &str) -> String {
    let small = unit == "bit";
    let steps = [
        "",
        "k",
        if small { "m" } else { "M" },
        if small { "g" } else { "G" },
        if small { "t" } else { "T" },
    ];
    let mut number = number;
    let mut step = 0;
    while step + 1 < steps.len() && number > 0 && number.is_multiple_of(1000) {
        (number, step) = (number / 1000, step + 1);
    }
    format!("{number}{}{unit}", steps[step])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: RangeInclusive<u64> = 0..=u64::MAX;
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn rates() {
        for (text, bits) in [
            ("80mbit", 80_000_000),
            ("6MBit", 6_000_000),
            ("2.5 Gbit/s", 2_500_000_000),
            ("1.5 GB/s", 12_000_000_000),
            ("500kb", 4_000_000),
            ("1.5MiB", 12_582_912),
            ("1g", 8_000_000_000),
            ("5000", 40_000),
            ("1e3", 8000),
            ("0", 0),
        ] {
            assert_eq!(rate(text, ANY), Ok(bits), "{text}");
        }
        for bad in ["", "fast", "5 furlongs", "5 s", "MB", "-1MB", "nan", "inf", "1.2.3", "5mbit/h", "5/s/s"]
        {
            assert!(rate(bad, ANY).is_err(), "{bad}");
        }
        let range = 8_000..=8_000_000_000_000;
        assert_eq!(rate("1kB", range.clone()), Ok(8000));
        assert_eq!(
            rate("7999bit", range.clone()),
            Err("a rate from 8kbit to 8tbit per second is needed".into())
        );
        assert!(rate("8.1tbit", range.clone()).is_err() && rate("1e99", range).is_err());
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("10GB", 10_000_000_000),
            ("1.5KiB", 1536),
            ("64 kib", 65_536),
            ("1500", 1500),
            ("2tb", 2_000_000_000_000),
        ] {
            assert_eq!(size(text, ANY), Ok(bytes), "{text}");
        }
        assert!(size("1 acre", ANY).unwrap_err().contains("TB"));
        assert!(size("8mbit", ANY).is_err(), "bits are for rates");
        assert_eq!(size("0", 1..=10_000_000_000_000), Err("1B to 10TB are needed".into()));
    }

    #[test]
    fn times() {
        let day = Duration::from_secs(86_400);
        for (text, millis) in [
            ("100ms", 100),
            ("50000us", 50),
            ("1.5s", 1500),
            ("2m", 120_000),
            ("2 min", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(time(text, day), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(time("61s", MINUTE), Err("at most 60s".into()));
        assert_eq!(time("1e300s", day), Err("at most 24h".into()));
        assert!(time("100", MINUTE).unwrap_err().contains("needs a unit"));
        assert!(time("-1s", MINUTE).is_err());
    }

    #[test]
    fn shares_and_pairs() {
        assert_eq!((share("5%"), share("0.5"), share(" 1 % ")), (Ok(0.05), Ok(0.5), Ok(0.01)));
        assert!(share("100%").is_err() && share("-1").is_err() && share("1s").is_err());
        let both = |text| pair(text, ',', "2%,10ms", share, |t| time(t, MINUTE));
        assert_eq!(both("2%, 10ms"), Ok((0.02, Duration::from_millis(10))));
        assert!(both("2%").unwrap_err().contains("2%,10ms"));
    }
}
