//! Bytes under an Ed25519 signature, with a domain so that a signature for one purpose is worth
//! nothing for another.
//!
//! What is signed is `domain ‖ 0x00 ‖ bytes`. The signed bytes travel and are stored as they are;
//! they are decoded only after the signature held.

use alloc::vec::Vec;
use core::fmt;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// What a signature is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// A command of the control service.
    Command,
    /// An agent's credential for other agents.
    Credential,
    /// An agent's proof, at enrolment, that it holds its key.
    Enrolment,
    /// A report on its way through many hands, by its author.
    Letter,
    /// The head of a manifest, by the source agent.
    Manifest,
    /// What the control service states of an agent to whoever carries for it.
    Notice,
    /// A report of an agent.
    Report,
    /// A statement about a path of a synchronized folder, or how far a replica has counted, by the agent that made it.
    Synchronization,
    /// The keys of a fleet, by its root key.
    Trust,
    /// The record of a version that a storage agent keeps, by that agent.
    Version,
}

impl Domain {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Command => b"flotilla command v1\0",
            Self::Credential => b"flotilla credential v1\0",
            Self::Enrolment => b"flotilla enrolment v1\0",
            Self::Letter => b"flotilla letter v1\0",
            Self::Manifest => b"flotilla manifest v1\0",
            Self::Notice => b"flotilla notice v1\0",
            Self::Report => b"flotilla report v1\0",
            Self::Synchronization => b"flotilla synchronization v1\0",
            Self::Trust => b"flotilla trust v1\0",
            Self::Version => b"flotilla version v1\0",
        }
    }
}

/// An Ed25519 signature (RFC 8032).
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature(pub [u8; 32], pub [u8; 32]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// The signature does not hold under the given key, or the key is no Ed25519 key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignatureError;

impl fmt::Display for SignatureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the signature does not hold")
    }
}

impl core::error::Error for SignatureError {}

/// Signed bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// What was signed, as stored and sent.
    pub bytes: Vec<u8>,
    /// Signature over domain and bytes.
    pub signature: Signature,
}

impl Signed {
    /// Signs `bytes` for one purpose.
    pub fn sign(domain: Domain, bytes: Vec<u8>, key: &SigningKey) -> Self {
        let signature = key.sign(&message(domain, &bytes)).to_bytes();
        let (mut r, mut s) = ([0; 32], [0; 32]);
        r.copy_from_slice(&signature[..32]);
        s.copy_from_slice(&signature[32..]);
        Self { bytes, signature: Signature(r, s) }
    }

    /// The bytes, if the signature holds for this purpose and key. Strict verification: refuses weak
    /// keys and malleable signatures.
    pub fn verify(&self, domain: Domain, public_key: &[u8; 32]) -> Result<&[u8], SignatureError> {
        let key = VerifyingKey::from_bytes(public_key).map_err(|_| SignatureError)?;
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.signature.0);
        bytes[32..].copy_from_slice(&self.signature.1);
        let signature = ed25519_dalek::Signature::from_bytes(&bytes);
        key.verify_strict(&message(domain, &self.bytes), &signature).map_err(|_| SignatureError)?;
        Ok(&self.bytes)
    }
}

fn message(domain: Domain, bytes: &[u8]) -> Vec<u8> {
    [domain.prefix(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn holds_only_for_its_bytes_key_and_domain() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = key.verifying_key().to_bytes();
        let signed = Signed::sign(Domain::Command, vec![1, 2, 3], &key);
        assert_eq!(signed.verify(Domain::Command, &public), Ok(&[1, 2, 3][..]));
        assert!(signed.verify(Domain::Report, &public).is_err());
        assert!(signed.verify(Domain::Command, &[9; 32]).is_err());
        for i in 0..3 {
            let mut tampered = signed.clone();
            tampered.bytes[i] ^= 1;
            assert!(tampered.verify(Domain::Command, &public).is_err());
        }
        let mut tampered = signed.clone();
        tampered.signature.1[0] ^= 1;
        assert!(tampered.verify(Domain::Command, &public).is_err());
    }
}
