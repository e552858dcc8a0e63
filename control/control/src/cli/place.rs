//! `AGENT:PATH`, `group:GROUP:PATH` as people write them; paths are bytes.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use crate::api::view::PlaceWish;

/// Splits at the first colon after the party; names have no colons, paths may.
pub(super) fn parse(text: OsString) -> Result<PlaceWish, String> {
    let bytes = text.as_encoded_bytes();
    let prefix = [&b"group:"[..], b"agent:"]
        .into_iter()
        // An agent may be called `group`: it is a prefix only if another colon follows.
        .find(|prefix| bytes.strip_prefix(*prefix).is_some_and(|rest| rest.contains(&b':')))
        .map_or(0, <[u8]>::len);
    let colon = bytes[prefix..].iter().position(|byte| *byte == b':').map(|at| prefix + at);
    let wrong = || format!("{} is not AGENT:PATH or group:GROUP:PATH", text.to_string_lossy());
    let colon = colon.ok_or_else(wrong)?;
    let party = std::str::from_utf8(&bytes[..colon]).map_err(|_| wrong())?;
    if party.len() == prefix || colon + 1 == bytes.len() {
        return Err(wrong());
    }
    let path = path_bytes(&text, colon + 1);
    Ok(match String::from_utf8(path) {
        Ok(path) => PlaceWish { party: party.into(), path: Some(path), path_hex: None },
        Err(error) => {
            let hex = data_encoding::HEXLOWER.encode(error.as_bytes());
            PlaceWish { party: party.into(), path: None, path_hex: Some(hex) }
        }
    })
}

/// A path, or its bytes in hex if they are no text.
pub(super) fn path(text: OsString) -> (Option<String>, Option<String>) {
    match String::from_utf8(path_bytes(&text, 0)) {
        Ok(path) => (Some(path), None),
        Err(error) => (None, Some(data_encoding::HEXLOWER.encode(error.as_bytes()))),
    }
}

#[cfg(unix)]
fn path_bytes(text: &OsStr, from: usize) -> Vec<u8> {
    std::os::unix::ffi::OsStrExt::as_bytes(text)[from..].to_vec()
}

#[cfg(not(unix))]
fn path_bytes(text: &OsStr, from: usize) -> Vec<u8> {
    text.to_string_lossy().as_bytes()[from..].to_vec()
}

/// How long: `30min`, `24h`, `7d`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| format!("{text} is no time such as 30min, 24h or 7d"))
}

/// `K=V`.
pub(super) fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().into(), value.into())),
        _ => Err(format!("{text} is not NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let cases = [
            ("nas:/a:b", "nas", "/a:b"),
            ("group:all:/x", "group:all", "/x"),
            ("agent:nas:C:\\x", "agent:nas", "C:\\x"),
            ("group:/x", "group", "/x"),
        ];
        for (text, party, path) in cases {
            let place = parse(text.into()).expect(text);
            assert_eq!((place.party.as_str(), place.path.as_deref()), (party, Some(path)));
        }
        for bad in ["", "nas", "nas:", ":/x", "group::/x"] {
            assert!(parse(bad.into()).is_err(), "{bad}");
        }
        assert_eq!(tag("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(time("2d"), Ok(Duration::from_secs(172_800)));
        assert!(time("soon").is_err());
        assert!(tag("A").is_err() && tag("=x").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn paths_keep_their_bytes() {
        use std::os::unix::ffi::OsStringExt as _;
        let place = parse(OsString::from_vec(b"nas:/\xff".to_vec())).expect("a place");
        assert_eq!((place.path, place.path_hex.as_deref()), (None, Some("2fff")));
    }
}
