//! What an agent says of itself behind its version in `Hello` (`edge-agent/PROTOCOL.md` §3.1): words that older
//! agents pass over, as the version is for people.

use alloc::format;
use alloc::string::String;

/// Understands `Fetching`.
const NEAR: &str = "near";
/// Answers `GetManifestWeak`.
const WEAK: &str = "weak";
/// Begins the word with the label of its site, 16 hex digits.
const SITE: &str = "site=";
/// Words looked at.
const WORDS_MAX: usize = 16;

/// What a peer can do, and where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// Understands `Fetching`.
    pub(crate) near: bool,
    /// Answers `GetManifestWeak`.
    pub(crate) weak: bool,
    /// The label of its site.
    pub(crate) site: Option<u64>,
}

impl Abilities {
    /// The version with these words behind it.
    pub(crate) fn write(self, version: &str) -> String {
        let mut text = String::from(version);
        for word in [self.near.then_some(NEAR), self.weak.then_some(WEAK)].into_iter().flatten() {
            text = format!("{text} {word}");
        }
        self.site.map_or_else(|| text.clone(), |site| format!("{text} {SITE}{site:016x}"))
    }

    /// What a peer said.
    pub(crate) fn read(version: &str) -> Self {
        let words = || version.split(' ').skip(1).take(WORDS_MAX);
        let site = words().find_map(|word| word.strip_prefix(SITE)).filter(|hex| hex.len() == 16);
        Self {
            near: words().any(|word| word == NEAR),
            weak: words().any(|word| word == WEAK),
            site: site.and_then(|hex| u64::from_str_radix(hex, 16).ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_not_is_passed_over() {
        for (near, weak, site) in [(true, true, Some(7)), (true, false, None), (false, true, None)] {
            let said = Abilities { near, weak, site };
            assert_eq!(Abilities::read(&said.write("0.3.1")), said);
        }
        let others = [
            "",
            "near",
            "weak",
            "0.3.1",
            "0.3.1 site=",
            "0.3.1 site=7 nearby weakly",
            "0 site=zzzzzzzzzzzzzzzz",
        ];
        for other in others {
            assert_eq!(Abilities::read(other), Abilities::default(), "{other}");
        }
    }
}
