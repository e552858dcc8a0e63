//! A bootstrap file as one word, for those who have a text field and no file: NAS wizards, a small web page, a phone
//! (PROTOCOL.md §1.2.1).

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use data_encoding::BASE64URL_NOPAD;
use event_schema::TokenId;
use sha2::{Digest, Sha256};

use crate::limits::{ENROLMENT_CODE_LEN_MAX, GATEWAYS_MAX, HOST_LEN_MAX};
use crate::{ManagementServer, fingerprint_text, parse_fingerprint};

/// What every code begins with: tells people and programs what it is.
const MARK: &str = "flotilla-";
const VERSION: u8 = 1;
/// Bytes of SHA-256 at the end: a code that was cut or mistyped is told from one that is spent.
const CHECK: usize = 4;
const DOMAIN: &[u8] = b"flotilla enrolment code v1\0";

/// Why a text is no enrolment code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnrolmentCodeError {
    /// It does not begin with `flotilla-`, or has characters that no code has.
    NoCode,
    /// It begins like one, but is cut, mistyped or too long.
    Damaged,
    /// It is of a version that this program does not know.
    Newer,
}

impl core::fmt::Display for EnrolmentCodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoCode => "it is no enrolment code: those begin with `flotilla-`",
            Self::Damaged => "the enrolment code is damaged; was it cut when it was copied?",
            Self::Newer => "the enrolment code is of a newer version; update the agent",
        })
    }
}

impl core::error::Error for EnrolmentCodeError {}

/// The code for a gateway; `None` if a part of it is malformed or beyond the limits.
pub fn enrolment_code(server: &ManagementServer) -> Option<String> {
    let hosts: Vec<&str> =
        core::iter::once(&server.host).chain(&server.further_hosts).map(String::as_str).collect();
    // What the field names first matters most; a code that nobody can paste helps nobody.
    let hosts = &hosts[..hosts.len().min(GATEWAYS_MAX)];
    if hosts.iter().any(|host| host.is_empty() || host.len() > HOST_LEN_MAX) {
        return None;
    }
    let mut bytes = Vec::from([VERSION]);
    bytes.extend(parse_fingerprint(&server.cert_authority_fingerprint)?);
    match &server.bootstrap_token {
        None => bytes.push(0),
        Some(token) => {
            let (id, secret) = token.split_once('.')?;
            bytes.push(1);
            bytes.extend(id.parse::<TokenId>().ok()?.0);
            bytes.extend(parse_fingerprint(secret)?);
        }
    }
    for host in hosts {
        bytes.push(u8::try_from(host.len()).ok()?);
        bytes.extend(host.as_bytes());
    }
    let check = check(&bytes);
    bytes.extend(check);
    let code = MARK.to_string() + &BASE64URL_NOPAD.encode(&bytes);
    (code.len() <= ENROLMENT_CODE_LEN_MAX).then_some(code)
}

/// Reads a code; white space anywhere in it is passed over, as lines break where texts are sent.
pub fn parse_enrolment_code(text: &str) -> Result<ManagementServer, EnrolmentCodeError> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).take(ENROLMENT_CODE_LEN_MAX + 1).collect();
    let digits = text.strip_prefix(MARK).ok_or(EnrolmentCodeError::NoCode)?;
    if text.len() > ENROLMENT_CODE_LEN_MAX {
        return Err(EnrolmentCodeError::Damaged);
    }
    let bytes = BASE64URL_NOPAD.decode(digits.as_bytes()).map_err(|_| EnrolmentCodeError::Damaged)?;
    let (body, sum) =
        bytes.split_at_checked(bytes.len().saturating_sub(CHECK)).ok_or(EnrolmentCodeError::Damaged)?;
    if sum != check(body) {
        return Err(EnrolmentCodeError::Damaged);
    }
    if body.first() != Some(&VERSION) {
        return Err(EnrolmentCodeError::Newer);
    }
    server(body).ok_or(EnrolmentCodeError::Damaged)
}

/// What a code's bytes say, without the check.
fn server(body: &[u8]) -> Option<ManagementServer> {
    let (fingerprint, rest) = body.get(1..)?.split_first_chunk::<32>()?;
    let (has_token, mut rest) = rest.split_first()?;
    let bootstrap_token = match has_token {
        0 => None,
        1 => {
            let (id, after) = rest.split_first_chunk::<16>()?;
            let (secret, after) = after.split_first_chunk::<32>()?;
            rest = after;
            let secret = data_encoding::HEXLOWER.encode(secret);
            Some(alloc::format!("{}.{secret}", TokenId(*id)))
        }
        _ => return None,
    };
    let mut hosts = Vec::new();
    while let Some((len, after)) = rest.split_first() {
        let (host, after) = after.split_at_checked(usize::from(*len))?;
        hosts.push(core::str::from_utf8(host).ok().filter(|h| !h.is_empty())?.to_string());
        rest = after;
    }
    if hosts.is_empty() || hosts.len() > GATEWAYS_MAX {
        return None;
    }
    let host = hosts.remove(0);
    Some(ManagementServer {
        host,
        further_hosts: hosts,
        cert_authority_fingerprint: fingerprint_text(fingerprint),
        bootstrap_token,
    })
}

fn check(body: &[u8]) -> [u8; CHECK] {
    let sum = Sha256::new().chain_update(DOMAIN).chain_update(body).finalize();
    core::array::from_fn(|i| sum[i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};

    fn sample() -> ManagementServer {
        ManagementServer {
            host: "fleet.example:7701".into(),
            further_hosts: vec!["[2001:db8::1]:7701".into()],
            cert_authority_fingerprint: fingerprint_text(&core::array::from_fn(|i| i as u8)),
            bootstrap_token: Some(format!("{}.{}", TokenId([0x19; 16]), "ab".repeat(32))),
        }
    }

    /// Stored in wizards and mails: what this version makes is read for ever.
    const GOLDEN: &str = "flotilla-AQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fARkZGRkZGRkZGRkZGRkZGRmrq6urq6urq6urq6urq6urq6urq6urq6urq6urq6urqxJmbGVldC5leGFtcGxlOjc3MDESWzIwMDE6ZGI4OjoxXTo3NzAxg7nJ-A";

    #[test]
    fn a_code_says_what_the_file_says() {
        let code = enrolment_code(&sample()).expect("a code");
        assert_eq!(code, GOLDEN);
        assert!(parse_enrolment_code(GOLDEN) == Ok(sample()));
        assert!(parse_enrolment_code(&code) == Ok(sample()));
        let broken = format!("  {}\r\n {}\n", &code[..70], &code[70..]);
        assert!(parse_enrolment_code(&broken) == Ok(sample()), "lines may break anywhere");
        let open = ManagementServer { bootstrap_token: None, further_hosts: vec![], ..sample() };
        assert!(parse_enrolment_code(&enrolment_code(&open).expect("a code")) == Ok(open));
    }

    #[test]
    fn what_is_cut_or_mistyped_is_told() {
        let code = enrolment_code(&sample()).expect("a code");
        for len in MARK.len()..code.len() {
            assert_eq!(parse_enrolment_code(&code[..len]).err(), Some(EnrolmentCodeError::Damaged), "{len}");
        }
        for at in MARK.len()..code.len() {
            let mut bytes = code.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let text = String::from_utf8(bytes).expect("ASCII");
            assert_eq!(parse_enrolment_code(&text).err(), Some(EnrolmentCodeError::Damaged), "{at}");
        }
        for text in ["", "flotilla", "{}", "0193.ab", "é"] {
            assert_eq!(parse_enrolment_code(text).err(), Some(EnrolmentCodeError::NoCode), "{text}");
        }
        let long = MARK.to_string() + &"A".repeat(1 << 20);
        assert_eq!(parse_enrolment_code(&long).err(), Some(EnrolmentCodeError::Damaged));
    }

    #[test]
    fn a_code_of_another_version_or_with_odd_contents_is_refused() {
        let made = |body: &[u8]| {
            let mut bytes = body.to_vec();
            bytes.extend(check(body));
            MARK.to_string() + &BASE64URL_NOPAD.encode(&bytes)
        };
        assert_eq!(parse_enrolment_code(&made(&[2, 1, 2])).err(), Some(EnrolmentCodeError::Newer));
        let mut body = vec![VERSION];
        body.extend([0; 33]);
        assert_eq!(parse_enrolment_code(&made(&body)).err(), Some(EnrolmentCodeError::Damaged), "no host");
        for end in [&[0][..], &[2, b'a'], &[1, 0xFF]] {
            let odd: Vec<u8> = body.iter().chain(end).copied().collect();
            assert_eq!(parse_enrolment_code(&made(&odd)).err(), Some(EnrolmentCodeError::Damaged), "{end:?}");
        }
        let many: Vec<u8> = body.iter().copied().chain([1, b'a'].repeat(GATEWAYS_MAX + 1)).collect();
        assert_eq!(parse_enrolment_code(&made(&many)).err(), Some(EnrolmentCodeError::Damaged));
    }

    #[test]
    fn a_file_that_is_malformed_has_no_code() {
        let bad = [
            ManagementServer { bootstrap_token: Some("x".into()), ..sample() },
            ManagementServer { cert_authority_fingerprint: "00".into(), ..sample() },
            ManagementServer { host: String::new(), ..sample() },
            ManagementServer { host: "h".repeat(HOST_LEN_MAX + 1), ..sample() },
        ];
        for server in bad {
            assert_eq!(enrolment_code(&server), None);
        }
    }
}
