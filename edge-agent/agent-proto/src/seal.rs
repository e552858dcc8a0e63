//! Sealing a secret to one agent, so that a command can travel through any hands.
//!
//! X25519 between an ephemeral key and the agent's identity key (its Ed25519 key mapped to
//! Curve25519, RFC 7748), HKDF-SHA256, AES-128-GCM. The byte form is
//! `version 1 ‖ ephemeral public key (32) ‖ ciphertext ‖ tag (16)`; the context (the run id, say)
//! is bound in, so that a sealed secret cannot be moved into another command.

use alloc::vec::Vec;
use core::fmt;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes128Gcm, Nonce};
use ed25519_dalek::{SigningKey, VerifyingKey};
use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const HEADER_LEN: usize = 1 + 32;

/// The sealed bytes are not for this agent and context, or damaged; or the key is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealError;

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the sealed secret cannot be opened by this agent")
    }
}

impl core::error::Error for SealError {}

/// Seals `secret` to the agent that holds `recipient` (Ed25519).
///
/// `ephemeral` is 32 fresh random bytes, never used twice.
///
/// # Errors
/// If `recipient` is no Ed25519 key, or one of small order.
pub fn seal(
    recipient: &[u8; 32],
    context: &[u8],
    secret: &[u8],
    ephemeral: [u8; 32],
) -> Result<Vec<u8>, SealError> {
    let recipient = VerifyingKey::from_bytes(recipient).map_err(|_| SealError)?;
    let their = PublicKey::from(recipient.to_montgomery().to_bytes());
    let ephemeral = StaticSecret::from(ephemeral);
    let our = PublicKey::from(&ephemeral);
    let shared = ephemeral.diffie_hellman(&their);
    if !shared.was_contributory() {
        return Err(SealError);
    }
    let cipher = cipher(shared.as_bytes(), &our, &their);
    let sealed =
        cipher.encrypt(&Nonce::default(), Payload { msg: secret, aad: context }).map_err(|_| SealError)?;
    let mut bytes = Vec::with_capacity(HEADER_LEN + sealed.len());
    bytes.push(VERSION);
    bytes.extend_from_slice(our.as_bytes());
    bytes.extend_from_slice(&sealed);
    Ok(bytes)
}

/// Opens what [`seal`] made for this agent's key and the same context.
///
/// # Errors
/// If it was made for another key or context, or is damaged.
pub fn open(identity: &SigningKey, context: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    if sealed.len() < HEADER_LEN || sealed[0] != VERSION {
        return Err(SealError);
    }
    let mut their = [0; 32];
    their.copy_from_slice(&sealed[1..HEADER_LEN]);
    let their = PublicKey::from(their);
    let secret = StaticSecret::from(identity.to_scalar_bytes());
    let our = PublicKey::from(identity.verifying_key().to_montgomery().to_bytes());
    let shared = secret.diffie_hellman(&their);
    if !shared.was_contributory() {
        return Err(SealError);
    }
    cipher(shared.as_bytes(), &their, &our)
        .decrypt(&Nonce::default(), Payload { msg: &sealed[HEADER_LEN..], aad: context })
        .map(Zeroizing::new)
        .map_err(|_| SealError)
}

/// The key is used for one message (the ephemeral key is fresh), so a zero nonce is safe.
fn cipher(shared: &[u8; 32], ephemeral: &PublicKey, recipient: &PublicKey) -> Aes128Gcm {
    let mut salt = [0; 64];
    salt[..32].copy_from_slice(ephemeral.as_bytes());
    salt[32..].copy_from_slice(recipient.as_bytes());
    let mut key = Zeroizing::new([0; 16]);
    Hkdf::<Sha256>::new(Some(&salt), shared)
        .expand(b"flotilla seal v1", key.as_mut_slice())
        .expect("16 bytes are a valid length for HKDF-SHA256");
    Aes128Gcm::new_from_slice(key.as_slice()).expect("the key has 16 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_for_its_recipient_and_context_only() {
        let agent = SigningKey::from_bytes(&[1; 32]);
        let sealed =
            seal(&agent.verifying_key().to_bytes(), b"run 1", b"secret", [2; 32]).expect("a good key");
        assert_eq!(open(&agent, b"run 1", &sealed).expect("for us").as_slice(), b"secret");
        assert!(open(&agent, b"run 2", &sealed).is_err());
        assert!(open(&SigningKey::from_bytes(&[3; 32]), b"run 1", &sealed).is_err());
        for i in 0..sealed.len() {
            let mut tampered = sealed.clone();
            tampered[i] ^= 1;
            // The top bit of an X25519 key is ignored by RFC 7748; every other bit matters.
            assert!(open(&agent, b"run 1", &tampered).is_err(), "byte {i}");
            assert!(open(&agent, b"run 1", &sealed[..i]).is_err(), "cut at {i}");
        }
    }
}
