//! Ed25519, strictly verified (PROTOCOL.md §5.5).

use ed25519_dalek::{Signature, VerifyingKey};

/// Whether the holder of the key signed the message. Strict: a key or a commitment of small order, with which a
/// signature would hold for many messages, is refused, and so is any second form of a valid signature.
pub(crate) fn is_signed(public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(public_key) else { return false };
    key.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
}
