//! Rules for names, tags and paths that people and agents give.

use crate::Rejection;
use crate::limits::{NAME_LEN_MAX, PATH_LEN_MAX, REASON_LEN_MAX, TAG_LEN_MAX, TAGS_MAX};

/// Checks the name of a group or job (an agent's is bent into shape instead, see [`agent_name`]).
///
/// # Errors
/// If it is empty, too long, has control characters, `:` or `/` (which places use), begins or ends with
/// a blank, looks like an id, or is the word `latest`.
pub fn check_name(what: &str, name: &str) -> Result<(), Rejection> {
    let problem = if name.is_empty() || name.len() > NAME_LEN_MAX {
        format!("has 1 to {NAME_LEN_MAX} bytes")
    } else if name.chars().any(is_bad) {
        "has no control characters, ':' or '/'".into()
    } else if name.trim() != name {
        "neither begins nor ends with a blank".into()
    } else if looks_like_id(name) || name == "latest" {
        "is neither 32 hex digits nor \"latest\"".into()
    } else {
        return Ok(());
    };
    Err(Rejection::Invalid(format!("the name of {what} {problem}")))
}

/// The nearest name that [`check_name`] accepts, leaving room for a suffix.
pub fn agent_name(wish: &str) -> String {
    let mut name: String = wish.trim().chars().map(|c| if is_bad(c) { '-' } else { c }).collect();
    truncate(&mut name, NAME_LEN_MAX - 12);
    let name = name.trim().to_string();
    if name.is_empty() {
        "agent".into()
    } else if looks_like_id(&name) || name == "latest" {
        format!("agent-{name}")
    } else {
        name
    }
}

/// Cuts a text for people to [`REASON_LEN_MAX`] bytes and one line.
pub fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if is_unseen(c) { ' ' } else { c }).collect();
    truncate(&mut line, REASON_LEN_MAX);
    line
}

/// Checks the path of a job's folder: 1 to 4,096 bytes without NUL. What it may name is decided by the
/// agent, whose owner can confine it.
///
/// # Errors
/// If the path is empty, too long or contains NUL.
pub fn check_path(path: &[u8]) -> Result<(), Rejection> {
    if path.is_empty() || path.len() > PATH_LEN_MAX || path.contains(&0) {
        return Err(Rejection::Invalid(format!("a path has 1 to {PATH_LEN_MAX} bytes and no NUL")));
    }
    Ok(())
}

/// Puts tags into their one form: names upper-case, sorted, the last of equal names wins.
///
/// # Errors
/// If there are too many, a name is empty, or a name or value is too long or has control characters.
pub fn tags(given: impl IntoIterator<Item = (String, String)>) -> Result<Vec<(String, String)>, Rejection> {
    let mut set = std::collections::BTreeMap::new();
    for (name, value) in given {
        let name = name.trim().to_uppercase();
        if name.is_empty() || name.len() > TAG_LEN_MAX || value.len() > TAG_LEN_MAX {
            return Err(Rejection::Invalid(format!(
                "a tag's name has 1 to {TAG_LEN_MAX} bytes, its value at most {TAG_LEN_MAX}"
            )));
        }
        if name.contains('=') || name.chars().chain(value.chars()).any(is_unseen) {
            return Err(Rejection::Invalid(
                "tags have no control characters, and their names no '='".to_string(),
            ));
        }
        set.insert(name, value);
        if set.len() > TAGS_MAX {
            return Err(Rejection::Invalid(format!("at most {TAGS_MAX} tags")));
        }
    }
    Ok(set.into_iter().collect())
}

fn is_bad(c: char) -> bool {
    is_unseen(c) || c == ':' || c == '/'
}

/// Control characters, and marks of lines and directions, which make a text look like another one.
pub(crate) fn is_unseen(c: char) -> bool {
    let is_mark = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_mark
}

fn looks_like_id(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Cuts `text` to at most `max` bytes at a character's boundary.
pub fn truncate(text: &mut String, max: usize) {
    if text.len() > max {
        let end = (0..=max).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "dash cam 7", "ä", "group"] {
            assert_eq!(check_name("a job", good), Ok(()), "{good}");
        }
        for bad in ["", " a", "a:b", "a/b", "a\nb", "latest", &"a".repeat(32), &"x".repeat(129)] {
            assert!(check_name("a job", bad).is_err(), "{bad:?}");
            assert_eq!(check_name("an agent", &agent_name(bad)), Ok(()), "{bad:?}");
        }
        assert_eq!(agent_name(" nas:1/x\n "), "nas-1-x");
        assert_eq!(agent_name("a\u{202e}b\u{1b}[2J\u{2066}"), "a-b-[2J-");
        assert!(agent_name(&"ä".repeat(100)).len() <= 116);
    }

    #[test]
    fn tags_have_one_form() {
        let pair = |k: &str, v: &str| (k.to_string(), v.to_string());
        assert_eq!(
            tags([pair("site", "a"), pair("AGENT_NAME", "x"), pair("Site", "b")]),
            Ok(vec![pair("AGENT_NAME", "x"), pair("SITE", "b")])
        );
        assert!(tags([pair("", "a")]).is_err());
        assert!(tags([pair("a", &"v".repeat(257))]).is_err());
        assert!(tags([pair("a", "\u{202e}")]).is_err());
        assert!(tags([pair("a\n", "v"), pair("b=", "v")]).is_err());
        assert!(tags((0..65).map(|i| pair(&i.to_string(), ""))).is_err());
    }

    #[test]
    fn texts_are_cut_at_characters() {
        let mut text = "aää".to_string();
        truncate(&mut text, 4);
        assert_eq!(text, "aä");
        assert_eq!(one_line("a\nb\u{1b}[2J\u{202e}\u{9b}"), "a b [2J  ");
        assert!(check_path(b"/x").is_ok());
        for bad in [&b""[..], b"a\0b", &[b'a'; 4097]] {
            assert!(check_path(bad).is_err());
        }
    }
}
