//! A report on its way through many hands (CARRYING.md §3).

use alloc::vec::Vec;
use core::fmt;

use agent_proto::{Credential, SealError, open, seal};
use ed25519_dalek::SigningKey;
use event_schema::{AgentId, Domain, Report, Signed, Timestamp, decode_exact, encode};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"flotilla letter v1\0";

/// A report, sealed to the service, under its author's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// Its author's credential, as it is shown in handshakes.
    pub credential: Vec<u8>,
    /// `1 ‖ Outside`, by the author.
    pub signed: Signed,
}

/// What every carrier reads of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outside {
    pub(crate) agent: AgentId,
    pub(crate) sequence: u64,
    pub(crate) time: Timestamp,
    sealed: Vec<u8>,
}

/// Why a letter is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterError {
    /// Not of this fleet's member, or changed.
    Forged,
    /// Not for this key, or not what its outside says.
    Sealed,
}

impl fmt::Display for LetterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forged => "the letter is not by the member that it names",
            Self::Sealed => "what is in the letter is not for this service, or not what stands outside",
        })
    }
}

impl core::error::Error for LetterError {}

impl From<SealError> for LetterError {
    fn from(_: SealError) -> Self {
        Self::Sealed
    }
}

fn context(agent: AgentId, sequence: u64) -> Vec<u8> {
    [CONTEXT, &agent.0, &sequence.to_be_bytes()].concat()
}

impl Letter {
    /// Puts a signed report into a letter to the service, whose command key `to` is. `ephemeral` is 32 fresh random bytes,
    /// never used twice.
    ///
    /// # Errors
    /// If the report is not by the holder of `key`, or `to` is no key.
    pub fn seal(
        report: &Signed,
        credential: Vec<u8>,
        key: &SigningKey,
        to: &[u8; 32],
        ephemeral: [u8; 32],
    ) -> Result<Self, LetterError> {
        let me = key.verifying_key().to_bytes();
        let Report { agent, sequence, time, .. } =
            Report::open(report, &me).map_err(|_| LetterError::Forged)?;
        let sealed = seal(to, &context(agent, sequence), &encode(report), ephemeral)?;
        let mut bytes = alloc::vec![VERSION];
        bytes.extend(encode(&Outside { agent, sequence, time, sealed }));
        Ok(Self { credential, signed: Signed::sign(Domain::Letter, bytes, key) })
    }

    /// What stands outside, whoever wrote it.
    pub(crate) fn peek(&self) -> Result<Outside, LetterError> {
        let (&VERSION, body) = self.signed.bytes.split_first().ok_or(LetterError::Forged)? else {
            return Err(LetterError::Forged);
        };
        decode_exact("Letter", body).map_err(|_| LetterError::Forged)
    }

    /// What stands outside, if a member of the fleet wrote it.
    pub(crate) fn outside(&self, fleet: &[u8; 32], keys: &[[u8; 32]]) -> Result<Outside, LetterError> {
        const FORGED: LetterError = LetterError::Forged;
        let shown: Signed = decode_exact("Credential", &self.credential).map_err(|_| FORGED)?;
        let shown: Credential = decode_exact("Credential", &shown.bytes).map_err(|_| FORGED)?;
        self.signed.verify(Domain::Letter, &shown.public_key).map_err(|_| FORGED)?;
        let outside = self.peek()?;
        let credential = Credential::open(&self.credential, keys, fleet, &shown.public_key, outside.time)
            .map_err(|_| FORGED)?;
        if credential.agent() == outside.agent { Ok(outside) } else { Err(FORGED) }
    }

    /// Opens it as the service does, whose command key `key` is: the author, the place in its sequence, and the signed
    /// report, which is still to be opened under the key that the service knows of that agent.
    ///
    /// # Errors
    /// If it is not by a member, not for this key, or something else than its outside says.
    pub fn open(
        &self,
        fleet: &[u8; 32],
        credential_keys: &[[u8; 32]],
        key: &SigningKey,
    ) -> Result<(AgentId, u64, Signed), LetterError> {
        let outside = self.outside(fleet, credential_keys)?;
        let inside = open(key, &context(outside.agent, outside.sequence), &outside.sealed)?;
        let report = decode_exact("Signed", &inside).map_err(|_| LetterError::Sealed)?;
        Ok((outside.agent, outside.sequence, report))
    }
}
