//! What an agent says of itself behind its version in `Hello` (`edge-agent/PROTOCOL.md` §3.1): words that older
//! agents pass over, as the version is for people.

use alloc::format;
use alloc::string::String;

/// Understands `Fetching`.
const NEAR: &str = "near";
/// Begins the word with the label of its site, 16 hex digits.
const SITE: &str = "site=";
/// Words looked at.
const WORDS_MAX: usize = 16;

/// The version with what a destination of ours can do, and its site.
pub(crate) fn write(version: &str, site: Option<u64>) -> String {
    match site {
        Some(site) => format!("{version} {NEAR} {SITE}{site:016x}"),
        None => format!("{version} {NEAR}"),
    }
}

/// Whether a peer understands `Fetching`, and its site.
pub(crate) fn read(version: &str) -> (bool, Option<u64>) {
    let words = || version.split(' ').skip(1).take(WORDS_MAX);
    let site = words().find_map(|word| word.strip_prefix(SITE)).filter(|hex| hex.len() == 16);
    (words().any(|word| word == NEAR), site.and_then(|hex| u64::from_str_radix(hex, 16).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_not_is_passed_over() {
        assert_eq!(read(&write("0.3.1", Some(7))), (true, Some(7)));
        assert_eq!(read(&write("0.3.1", None)), (true, None));
        for other in ["", "near", "0.3.1", "0.3.1 site=", "0.3.1 site=7 nearby", "0 site=zzzzzzzzzzzzzzzz"] {
            assert_eq!(read(other), (false, None), "{other}");
        }
    }
}
