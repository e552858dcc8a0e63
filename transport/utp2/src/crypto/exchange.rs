//! X25519 (RFC 7748), with the check it leaves to its caller (PROTOCOL.md §5.8).

use core::fmt;

use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};

/// One side's exponent, erased when dropped.
pub(crate) struct Share(StaticSecret);

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Share")
    }
}

impl Share {
    /// From 32 random bytes.
    pub(crate) fn new(random: [u8; 32]) -> Self {
        Self(StaticSecret::from(random))
    }

    /// What the peer is told.
    pub(crate) fn public(&self) -> [u8; 32] {
        PublicKey::from(&self.0).to_bytes()
    }

    /// The secret shared with who sent `peer`; `None` if it is zero: whoever sends such a share knows it without
    /// having chosen anything.
    pub(crate) fn shared(&self, peer: [u8; 32]) -> Option<SharedSecret> {
        let shared = self.0.diffie_hellman(&PublicKey::from(peer));
        shared.was_contributory().then_some(shared)
    }
}
