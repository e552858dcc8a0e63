//! An agent's credential: what it shows other agents, small enough for a microcontroller to check.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use ed25519_dalek::SigningKey;
use event_schema::{AgentId, Domain, Signed, Timestamp, decode_exact, encode};
use serde::{Deserialize, Serialize};

/// The statement "this key is an agent of this fleet", signed by the fleet's credential key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Version of this shape: 1.
    pub version: u8,
    /// The fleet, by its root key.
    pub fleet: [u8; 32],
    /// The agent's Ed25519 key.
    pub public_key: [u8; 32],
    /// Its name, for people.
    pub name: String,
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid until.
    pub not_after: Timestamp,
}

/// Why a credential does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialError {
    /// Not a credential, or of a version not known.
    Malformed,
    /// Signed by nobody we trust.
    Untrusted,
    /// Of another fleet, or for another key than the one shown.
    Mismatch,
    /// Not valid at this time.
    OutOfTime,
}

impl fmt::Display for CredentialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "the credential cannot be read",
            Self::Untrusted => "the credential is not signed by this fleet",
            Self::Mismatch => "the credential is for another fleet or key",
            Self::OutOfTime => "the credential is not valid now",
        })
    }
}

impl core::error::Error for CredentialError {}

impl Credential {
    /// Id of the agent it is for.
    pub fn agent(&self) -> AgentId {
        AgentId::of_key(&self.public_key)
    }

    /// Signs it; the result is what travels.
    pub fn sign(&self, key: &SigningKey) -> Vec<u8> {
        encode(&Signed::sign(Domain::Credential, encode(self), key))
    }

    /// Opens the travelling form shown by the holder of `public_key`.
    ///
    /// # Errors
    /// If it is not readable, not signed by one of `keys`, not of `fleet`, not for `public_key`, or
    /// not valid at `now`.
    pub fn open(
        bytes: &[u8],
        keys: &[[u8; 32]],
        fleet: &[u8; 32],
        public_key: &[u8; 32],
        now: Timestamp,
    ) -> Result<Self, CredentialError> {
        let signed: Signed = decode_exact("Credential", bytes).map_err(|_| CredentialError::Malformed)?;
        let body = keys
            .iter()
            .find_map(|key| signed.verify(Domain::Credential, key).ok())
            .ok_or(CredentialError::Untrusted)?;
        let credential: Self = decode_exact("Credential", body).map_err(|_| CredentialError::Malformed)?;
        if credential.version != 1 {
            Err(CredentialError::Malformed)
        } else if credential.fleet != *fleet || credential.public_key != *public_key {
            Err(CredentialError::Mismatch)
        } else if now < credential.not_before || now > credential.not_after {
            Err(CredentialError::OutOfTime)
        } else {
            Ok(credential)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_only_for_its_fleet_key_and_time() {
        let issuer = SigningKey::from_bytes(&[1; 32]);
        let trusted = [issuer.verifying_key().to_bytes()];
        let (fleet, agent) = ([2; 32], [3; 32]);
        let credential = Credential {
            version: 1,
            fleet,
            public_key: agent,
            name: "dash cam 7".into(),
            not_before: Timestamp(10),
            not_after: Timestamp(20),
        };
        let bytes = credential.sign(&issuer);
        assert_eq!(Credential::open(&bytes, &trusted, &fleet, &agent, Timestamp(15)), Ok(credential));
        let cases = [
            (Credential::open(&bytes, &[[9; 32]], &fleet, &agent, Timestamp(15)), CredentialError::Untrusted),
            (Credential::open(&bytes, &trusted, &[9; 32], &agent, Timestamp(15)), CredentialError::Mismatch),
            (Credential::open(&bytes, &trusted, &fleet, &[9; 32], Timestamp(15)), CredentialError::Mismatch),
            (Credential::open(&bytes, &trusted, &fleet, &agent, Timestamp(21)), CredentialError::OutOfTime),
            (Credential::open(&bytes, &trusted, &fleet, &agent, Timestamp(9)), CredentialError::OutOfTime),
        ];
        for (result, error) in cases {
            assert_eq!(result, Err(error));
        }
        for cut in 0..bytes.len() {
            assert!(Credential::open(&bytes[..cut], &trusted, &fleet, &agent, Timestamp(15)).is_err());
        }
    }
}
