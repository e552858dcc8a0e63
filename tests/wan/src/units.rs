//! The units people write on the command line: rates, sizes, times, shares.

use std::time::Duration;

/// Splits `12.5mbit` into number and unit.
fn split(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    Ok((number, text[end..].trim()))
}

/// Bits per second from `100mbit`, `1gbit`, `2.5Gbit`.
///
/// # Errors
/// What is wrong with the text.
pub fn rate(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor = match unit.trim_end_matches("/s").to_ascii_lowercase().as_str() {
        "bit" => 1.0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        other => return Err(format!("unknown unit {other:?} of a rate; use kbit, mbit or gbit")),
    };
    let bits = number * factor;
    // A packet of 1500 bytes every 12 s; and more than memory can copy.
    if (1e3..=1e11).contains(&bits) { Ok(bits as u64) } else { Err("1kbit to 100gbit are possible".into()) }
}

/// Bytes from `2GB`, `100MB`, `64KiB`, `1500`.
///
/// # Errors
/// What is wrong with the text.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" | "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        other => return Err(format!("unknown unit {other:?} of a size; use kB, MB, GB, KiB, MiB or GiB")),
    };
    let bytes = number * factor;
    if bytes <= 1e13 { Ok(bytes as u64) } else { Err("at most 10 TB".into()) }
}

/// A time from `200ms`, `1.5s`, `50us`; at most a minute.
///
/// # Errors
/// What is wrong with the text.
pub fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        other => return Err(format!("unknown unit {other:?} of a time; use us, ms or s")),
    };
    if seconds <= 60.0 { Ok(Duration::from_secs_f64(seconds)) } else { Err("at most 60s".into()) }
}

/// A share from `1%` or `0.01`; less than the whole.
///
/// # Errors
/// What is wrong with the text.
pub fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = split(text)?;
    let share = match unit {
        "" => number,
        "%" => number / 100.0,
        other => return Err(format!("unknown unit {other:?} of a share; use %")),
    };
    if share < 1.0 { Ok(share) } else { Err("less than 100 % is needed".into()) }
}

/// Splits `FIRST,SECOND` and reads both.
///
/// # Errors
/// What is wrong with the text.
pub fn pair<A, B>(
    text: &str,
    first: impl Fn(&str) -> Result<A, String>,
    second: impl Fn(&str) -> Result<B, String>,
) -> Result<(A, B), String> {
    let (a, b) = text.split_once(',').ok_or_else(|| format!("{text:?} lacks a comma"))?;
    Ok((first(a)?, second(b)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(rate("1gbit"), Ok(1_000_000_000));
        assert_eq!(rate("2.5 Mbit/s"), Ok(2_500_000));
        assert!(rate("5").is_err() && rate("fast").is_err() && rate("200gbit").is_err());
        assert_eq!(size("2GB"), Ok(2_000_000_000));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert!(size("many").is_err() && size("1 acre").is_err());
        assert_eq!(time("200ms"), Ok(Duration::from_millis(200)));
        assert!(time("200").is_err() && time("61s").is_err());
        assert_eq!(share("1%"), Ok(0.01));
        assert!(share("100%").is_err() && share("-1").is_err());
        assert_eq!(pair("2%,10ms", share, time), Ok((0.02, Duration::from_millis(10))));
        assert!(pair("2%", share, time).is_err());
    }
}
