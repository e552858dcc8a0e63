//! File names from the network: which are taken, and how they are shown.

use std::ffi::OsString;
use std::fmt::Write as _;

/// The longest name of a file on the systems we know.
const NAME_MAX: usize = 255;

/// Room that `.part.map` needs behind a name, and then some.
const SUFFIX_ROOM: usize = 15;

/// Why a name is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadName {
    #[error("a file needs a name")]
    Empty,
    #[error("the name is longer than 255 bytes")]
    TooLong,
    #[error("the name would leave the folder")]
    Escapes,
    /// Who may choose it could write what we believe of another file.
    #[error(
        "names in .part, .part.map or .part.map~ and names from .utp2- on are of unfinished files: rename it"
    )]
    Reserved,
    #[cfg(not(unix))]
    #[error("this system cannot have a file of that name")]
    NotHere,
}

/// Where the names of unfinished files and of what is known of them end, and where all others of ours begin.
const OUR_ENDS: [&[u8]; 3] = [b".part", b".part.map", b".part.map~"];
const OUR_START: &[u8] = b".utp2-";

/// The name as a file in our folder, if it can be one.
pub(crate) fn check(name: &[u8]) -> Result<OsString, BadName> {
    match name {
        b"" => Err(BadName::Empty),
        b"." | b".." => Err(BadName::Escapes),
        _ if name.len() > NAME_MAX => Err(BadName::TooLong),
        _ if name.contains(&b'/') || name.contains(&0) => Err(BadName::Escapes),
        _ if is_ours(name) => Err(BadName::Reserved),
        _ => native(name),
    }
}

/// Whether we keep something of our own under names of this kind. Some file systems know no small and large letters.
fn is_ours(name: &[u8]) -> bool {
    let ends =
        |end: &&[u8]| name.len() >= end.len() && name[name.len() - end.len()..].eq_ignore_ascii_case(end);
    let starts = name.get(..OUR_START.len()).is_some_and(|start| start.eq_ignore_ascii_case(OUR_START));
    starts || OUR_ENDS.iter().any(ends)
}

#[cfg(unix)]
fn native(name: &[u8]) -> Result<OsString, BadName> {
    use std::os::unix::ffi::OsStringExt;
    Ok(OsString::from_vec(name.to_vec()))
}

#[cfg(not(unix))]
fn native(name: &[u8]) -> Result<OsString, BadName> {
    let text = std::str::from_utf8(name).map_err(|_| BadName::NotHere)?;
    let stem = text.split('.').next().unwrap_or("").trim_end().to_ascii_uppercase();
    let device = ["CON", "PRN", "AUX", "NUL"].contains(&stem.as_str())
        || (stem.len() == 4 && (stem.starts_with("COM") || stem.starts_with("LPT")));
    let wrong = |c: char| c.is_control() || "\\:*?\"<>|".contains(c);
    if device || text.contains(wrong) || text.ends_with([' ', '.']) {
        return Err(BadName::NotHere);
    }
    Ok(text.into())
}

/// The bytes of a local name, for the other side.
pub(crate) fn bytes(name: &std::ffi::OsStr) -> Vec<u8> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        name.as_bytes().to_vec()
    }
    #[cfg(not(unix))]
    {
        name.to_string_lossy().into_owned().into_bytes()
    }
}

/// The name for the unfinished file: `NAME.part`, or, where that would be too long, a name made of its hash.
pub(crate) fn part(name: &[u8]) -> OsString {
    let mut part = if name.len() + SUFFIX_ROOM <= NAME_MAX {
        check(name).unwrap_or_else(|_| unreachable!("checked when it was offered"))
    } else {
        use sha2::Digest;
        let hash = sha2::Sha256::digest(name);
        format!(".utp2-{}", data_encoding::HEXLOWER.encode(&hash[..16])).into()
    };
    part.push(".part");
    part
}

/// The name for people: control characters and what is not UTF-8 escaped, so that a terminal obeys nobody.
pub(crate) fn show(name: &[u8]) -> String {
    let mut shown = String::new();
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            // Direction overrides can make `gpj.exe` read as `exe.jpg`.
            let overrides =
                matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if c.is_control() || overrides || c == '\\' {
                shown.extend(c.escape_default());
            } else {
                shown.push(c);
            }
        }
        for b in chunk.invalid() {
            let _ = write!(shown, "\\x{b:02x}");
        }
    }
    shown
}

/// A text from the other side, for people.
pub(crate) fn show_text(text: &str) -> String {
    show(super::wire::clip(text).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for (name, why) in [
            (&b""[..], BadName::Empty),
            (b".", BadName::Escapes),
            (b"..", BadName::Escapes),
            (b"../x", BadName::Escapes),
            (b"/etc/passwd", BadName::Escapes),
            (b"a/b", BadName::Escapes),
            (b"a\0b", BadName::Escapes),
            (&[b'a'; 256], BadName::TooLong),
        ] {
            assert_eq!(check(name), Err(why), "{}", show(name));
        }
        for name in [&b"a"[..], b"...", b"-rf", b" ", &[b'a'; 255]] {
            assert!(check(name).is_ok(), "{}", show(name));
        }
    }

    #[test]
    fn names_of_our_own_are_refused() {
        for name in
            [&b"a.part"[..], b"a.part.map", b"a.part.map~", b"A.PART", b".part", b".utp2-probe-1", b".UTP2-"]
        {
            assert_eq!(check(name), Err(BadName::Reserved), "{}", show(name));
        }
        for name in [&b"apart"[..], b"a.part.mp4", b"a.part1", b"part", b"utp2-a", b".utp2", b"a.part~"] {
            assert!(check(name).is_ok(), "{}", show(name));
        }
        let mine = part(&[b'x'; 255]);
        assert_eq!(check(&bytes(&mine)), Err(BadName::Reserved));
    }

    #[cfg(unix)]
    #[test]
    fn any_other_bytes_are_a_name() {
        assert!(check(b"new\nline").is_ok() && check(&[0xff, 0xfe]).is_ok());
    }

    #[test]
    fn unfinished_names_fit() {
        assert_eq!(part(b"a.iso"), "a.iso.part");
        for len in [239, 240, 241, 250, 255] {
            let part = bytes(&part(&vec![b'x'; len]));
            assert!(part.len() + ".map".len() <= NAME_MAX, "{len}");
        }
        assert_ne!(part(&[b'x'; 255]), part(&[b'y'; 255]));
    }

    #[test]
    fn terminals_obey_nobody() {
        assert_eq!(show(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(show(&[b'a', 0xff, b'b']), "a\\xffb");
        assert_eq!(show("grün\u{202e}gpj.exe".as_bytes()), "grün\\u{202e}gpj.exe");
        assert_eq!(show(b"back\\slash"), "back\\\\slash");
    }
}
