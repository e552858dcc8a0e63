//! Reading bytes that strangers sent: a cursor that can't run past the end, the header, and why a
//! message was refused (`PROTOCOL.md` §3).

use alloc::vec::Vec;
use core::fmt;

use crate::limits::DATAGRAM_MAX;

const MAGIC: [u8; 2] = *b"FT";
const VERSION: u8 = 1;

/// What every message begins with and no µTP2 packet does (`PROTOCOL.md` §3.1).
pub const PREFIX: [u8; 3] = [MAGIC[0], MAGIC[1], VERSION];

/// What a relayed datagram begins with, before its channel (`edge-agent/PATHS.md` §4.4).
pub const RELAYED_PREFIX: [u8; 4] = [MAGIC[0], MAGIC[1], VERSION, kind::RELAYED];
pub(crate) const HEADER_LEN: usize = 4;

/// Kind bytes of the header (`PROTOCOL.md` §3.1).
pub(crate) mod kind {
    pub(crate) const ANNOUNCE: u8 = 1;
    pub(crate) const COOKIE: u8 = 2;
    pub(crate) const PEERS: u8 = 3;
    pub(crate) const CALL: u8 = 4;
    pub(crate) const RING: u8 = 5;
    pub(crate) const LAN_ANNOUNCE: u8 = 16;
    pub(crate) const PROBE: u8 = 17;
    pub(crate) const RELAYED: u8 = 32;
}

/// Why a datagram is not a message of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseError {
    /// Longer than [`DATAGRAM_MAX`].
    TooLong,
    /// Ends inside a field.
    Truncated,
    /// Does not start with the magic bytes.
    Magic,
    /// A version that this code does not speak.
    Version(u8),
    /// A kind that has no meaning here.
    Kind(u8),
    /// Unknown flags.
    Flags(u8),
    /// An unknown address family.
    Family(u8),
    /// An address that nobody can be reached at, or IPv4 written as IPv6.
    Address,
    /// More addresses or peers than the limit.
    Count(u8),
    /// An interval out of range.
    Interval(u16),
    /// Padding that is not zero, or bytes after the end.
    Trailing,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "longer than {DATAGRAM_MAX} bytes"),
            Self::Truncated => f.write_str("ends inside a field"),
            Self::Magic => f.write_str("wrong magic bytes"),
            Self::Version(v) => write!(f, "unknown version {v}"),
            Self::Kind(k) => write!(f, "unexpected kind {k}"),
            Self::Flags(b) => write!(f, "unknown flags {b:#04x}"),
            Self::Family(b) => write!(f, "unknown address family {b}"),
            Self::Address => f.write_str("an address that can't be reached"),
            Self::Count(n) => write!(f, "count {n} is above the limit"),
            Self::Interval(s) => write!(f, "interval of {s} s is out of range"),
            Self::Trailing => f.write_str("bytes after the end of the message"),
        }
    }
}

impl core::error::Error for ParseError {}

/// A cursor over a datagram.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Checks length, magic and version; returns the kind and what follows the header.
    pub(crate) fn message(bytes: &'a [u8]) -> Result<(u8, Self), ParseError> {
        if bytes.len() > DATAGRAM_MAX {
            return Err(ParseError::TooLong);
        }
        let mut r = Self(bytes);
        if r.array::<2>()? != MAGIC {
            return Err(ParseError::Magic);
        }
        match r.u8()? {
            VERSION => Ok((r.u8()?, r)),
            v => Err(ParseError::Version(v)),
        }
    }

    /// As [`Reader::message`], for callers that expect one kind only.
    pub(crate) fn message_of(bytes: &'a [u8], kind: u8) -> Result<Self, ParseError> {
        match Self::message(bytes)? {
            (k, r) if k == kind => Ok(r),
            (k, _) => Err(ParseError::Kind(k)),
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(ParseError::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ParseError> {
        self.array::<1>().map(|[b]| b)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, ParseError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ParseError> {
        self.array().map(u64::from_be_bytes)
    }

    /// The message must end here.
    pub(crate) fn end(self) -> Result<(), ParseError> {
        if self.0.is_empty() { Ok(()) } else { Err(ParseError::Trailing) }
    }

    /// Nothing but zeros may follow.
    pub(crate) fn padding(self) -> Result<(), ParseError> {
        if self.0.iter().all(|&b| b == 0) { Ok(()) } else { Err(ParseError::Trailing) }
    }
}

pub(crate) fn emit_header(out: &mut Vec<u8>, kind: u8) {
    out.extend_from_slice(&MAGIC);
    out.push(VERSION);
    out.push(kind);
}

#[cfg(test)]
impl<'a> Reader<'a> {
    /// A cursor over bytes without a header.
    pub(crate) fn over(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}
