//! What the service states of an agent, to whoever carries for it (CARRYING.md §2).

use alloc::vec::Vec;

use ed25519_dalek::SigningKey;
use event_schema::{AgentId, DecodeError, Domain, Signed, Tagged, decode_exact, encode, tagged_enum};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;
const MALFORMED: DecodeError = DecodeError::Malformed { what: "Notice" };

fn none(_: &Tagged) -> Option<Tagged> {
    None
}

tagged_enum! {
    /// A statement of the service about one agent.
    pub enum Notice, upcast = none {
        /// What it has of it.
        (1, 1) "receipt" => Receipt,
        /// It is no member any more.
        (2, 1) "removal" => Removal,
    }
}

/// The service has the answers to this agent's commands up to `commands`, and its reports up to `reports`, on its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Whose.
    pub agent: AgentId,
    /// Sequence of the last command that was answered; only grows.
    pub commands: u64,
    /// Sequence of the last report up to which it has all; only grows.
    pub reports: u64,
}

impl Receipt {
    /// Whether this says more than the other does, and nothing less.
    pub fn supersedes(&self, other: &Self) -> bool {
        self != other && self.commands >= other.commands && self.reports >= other.reports
    }
}

/// This agent is no member any more, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Which.
    pub agent: AgentId,
}

impl Notice {
    /// Signs it as the service does.
    pub fn sign(&self, key: &SigningKey) -> Signed {
        let mut bytes: Vec<u8> = alloc::vec![VERSION];
        bytes.extend(encode(&self.to_tagged()));
        Signed::sign(Domain::Notice, bytes, key)
    }

    /// Opens one under one of the fleet's command keys.
    ///
    /// # Errors
    /// If no key's signature holds, or it is none that this program knows.
    pub fn open(signed: &Signed, keys: &[[u8; 32]]) -> Result<Self, DecodeError> {
        let notice = Self::peek(&signed.bytes)?;
        if Self::is_signed(signed, keys) { Ok(notice) } else { Err(MALFORMED) }
    }

    /// What it says, whoever signed it.
    pub(crate) fn peek(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (version, body) = bytes.split_first().ok_or(MALFORMED)?;
        if *version != VERSION {
            return Err(DecodeError::Unknown { what: "Notice", kind: 0, version: *version });
        }
        Self::from_tagged(&decode_exact("Notice", body)?)
    }

    pub(crate) fn is_signed(signed: &Signed, keys: &[[u8; 32]]) -> bool {
        keys.iter().any(|key| signed.verify(Domain::Notice, key).is_ok())
    }
}
