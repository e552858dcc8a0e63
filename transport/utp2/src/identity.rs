//! Who speaks: our Ed25519 identity, the peer's, and who decides whether the peer may.

use alloc::vec::Vec;
use core::fmt;

use ed25519_dalek::SigningKey;

/// Longest credential carried in the handshake, bytes: two datagrams of the smallest size (§5.5).
pub(crate) const MAX_CREDENTIAL: usize = 2048;

/// Which job or run secret a session is for. Never sent in clear (§5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId(pub [u8; 16]);

/// Our signing key and the credential we show to peers.
#[derive(Clone)]
pub struct Identity {
    pub(crate) key: SigningKey,
    pub(crate) credential: Vec<u8>,
}

impl Identity {
    /// Longest credential, bytes.
    pub const MAX_CREDENTIAL: usize = MAX_CREDENTIAL;

    /// From an Ed25519 seed and an opaque credential of at most [`Identity::MAX_CREDENTIAL`] bytes.
    ///
    /// # Panics
    /// If the credential is longer: the handshake could never complete.
    pub fn new(seed: [u8; 32], credential: Vec<u8>) -> Self {
        assert!(credential.len() <= MAX_CREDENTIAL, "credential longer than {MAX_CREDENTIAL} bytes");
        Self { key: SigningKey::from_bytes(&seed), credential }
    }

    /// The Ed25519 public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("public_key", &self.public_key()).finish_non_exhaustive()
    }
}

/// Who the peer proved to be: it holds this key's private half. Whether that means anything is for the
/// [`Authorizer`] to tell from the credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Ed25519 public key.
    pub public_key: [u8; 32],
    /// The bytes the peer showed, uninterpreted.
    pub credential: Vec<u8>,
}

/// Decides whether a peer that knows the secret and has proved its key may connect.
pub trait Authorizer {
    /// Called once per handshake, after the peer's signature and its proof of the secret were verified.
    fn authorize(&self, context: ContextId, peer: &PeerIdentity) -> bool;
}
