//! Typed 16-byte ids, shown as 32 lower-case hex digits.
//!
//! `AgentId` is derived from the agent's public key; the others are made by whoever creates the
//! thing (UUID version 7, so that they sort by time).

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest, Sha256};

/// The text is no id: not exactly 32 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdParseError;

impl fmt::Display for IdParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id has 32 hex digits")
    }
}

impl core::error::Error for IdParseError {}

macro_rules! ids {
    ($($(#[$meta:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdParseError;

            fn from_str(text: &str) -> Result<Self, IdParseError> {
                parse_hex(text).map(Self)
            }
        }

        /// Hex in formats for people (JSON), bytes in binary ones.
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { self.0.serialize(s) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    alloc::string::String::deserialize(d)?.parse().map_err(D::Error::custom)
                } else {
                    <[u8; 16]>::deserialize(d).map(Self)
                }
            }
        }
    )+};
}

ids! {
    /// An installed endpoint. See [`AgentId::of_key`].
    AgentId,
    /// A named set of agents.
    GroupId,
    /// What shall happen.
    JobId,
    /// One execution of a job.
    RunId,
    /// One start of a job that has many sources: what binds its runs together.
    BatchId,
    /// One signed command.
    CommandId,
    /// One record of the event log.
    RecordId,
    /// One data folder of a control service.
    ReplicaId,
    /// One bootstrap token. The id is no secret; the token itself is.
    TokenId,
    /// Somebody who uses the API: a keyed hash of the name, so that the log does not tell it.
    UserId,
}

impl AgentId {
    /// The id of the agent that holds `public_key` (Ed25519): the first 16 bytes of its SHA-256.
    pub fn of_key(public_key: &[u8; 32]) -> Self {
        let hash = Sha256::digest(public_key);
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        Self(id)
    }
}

fn parse_hex(text: &str) -> Result<[u8; 16], IdParseError> {
    let digits = text.as_bytes();
    let mut id = [0; 16];
    if digits.len() != 32 {
        return Err(IdParseError);
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Ok(id)
}

fn hex_digit(c: u8) -> Result<u8, IdParseError> {
    match c {
        b'0'..=b'9' => Ok(c - b'0'),
        b'a'..=b'f' => Ok(c - b'a' + 10),
        b'A'..=b'F' => Ok(c - b'A' + 10),
        _ => Err(IdParseError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn text_round_trip_and_refusals() {
        let id = RunId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "ab", &"g".repeat(32), &"é".repeat(16), &"a".repeat(33)] {
            assert_eq!(bad.parse::<RunId>(), Err(IdParseError), "{bad:?}");
        }
    }
}
