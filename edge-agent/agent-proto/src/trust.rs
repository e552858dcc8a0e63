//! The keys of a fleet, signed by its root key, with a version that only grows.

use alloc::vec::Vec;

use ed25519_dalek::SigningKey;
use event_schema::{DecodeError, Domain, Signed, decode_exact, encode};
use serde::{Deserialize, Serialize};

/// Which keys speak for the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundle {
    /// Grows with each change; an agent never goes back to a smaller one.
    pub version: u64,
    /// The fleet's root key, which signs this bundle and the CA certificate.
    pub root_key: [u8; 32],
    /// Keys whose commands are obeyed.
    pub command_keys: Vec<[u8; 32]>,
    /// Keys whose credentials count.
    pub credential_keys: Vec<[u8; 32]>,
    /// The CA certificate (X.509, DER) under which the gateway shows itself.
    pub ca_certificate: Vec<u8>,
}

impl TrustBundle {
    /// Signs it with the root key.
    pub fn sign(&self, root: &SigningKey) -> Signed {
        Signed::sign(Domain::Trust, encode(self), root)
    }

    /// Opens a signed bundle under the root key that this agent pinned.
    ///
    /// # Errors
    /// If the signature does not hold under `root_key` or the bytes are no bundle of that root.
    pub fn open(signed: &Signed, root_key: &[u8; 32]) -> Result<Self, DecodeError> {
        let malformed = DecodeError::Malformed { what: "TrustBundle" };
        let bytes = signed.verify(Domain::Trust, root_key).map_err(|_| malformed.clone())?;
        let bundle: Self = decode_exact("TrustBundle", bytes)?;
        if bundle.root_key == *root_key { Ok(bundle) } else { Err(malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_under_its_root_only() {
        let root = SigningKey::from_bytes(&[1; 32]);
        let bundle = TrustBundle {
            version: 3,
            root_key: root.verifying_key().to_bytes(),
            command_keys: alloc::vec![[2; 32]],
            credential_keys: alloc::vec![[3; 32]],
            ca_certificate: alloc::vec![4; 10],
        };
        let signed = bundle.sign(&root);
        assert_eq!(TrustBundle::open(&signed, &bundle.root_key), Ok(bundle.clone()));
        assert!(TrustBundle::open(&signed, &[7; 32]).is_err());
        let other = SigningKey::from_bytes(&[5; 32]);
        let foreign = bundle.sign(&other);
        assert!(TrustBundle::open(&foreign, &other.verifying_key().to_bytes()).is_err());
    }
}
