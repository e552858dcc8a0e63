//! The one secret of a run and the keys that come from it.

use core::fmt;

use event_schema::RunId;
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// What all participants of a run, and nobody else, know.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct RunSecret([u8; 32]);

impl fmt::Debug for RunSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunSecret")
    }
}

impl RunSecret {
    /// Takes the bytes opened from a command.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The control service's derivation: nothing secret has to be stored per run.
    pub fn derive(master: &[u8; 32], run: RunId) -> Self {
        Self(expand(master, b"flotilla run secret v1", &run.0))
    }

    /// The bytes, to be sealed into commands.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The secret of the run's µTP2 sessions.
    pub fn utp2_secret(&self) -> [u8; 32] {
        expand(&self.0, b"flotilla utp2 v1", &[])
    }

    /// The name of the run's µTP2 sessions; says nothing about the run to others.
    pub fn utp2_context(&self) -> [u8; 16] {
        let mut context = [0; 16];
        context.copy_from_slice(&expand(&self.0, b"flotilla utp2 context v1", &[])[..16]);
        context
    }

    /// The key of the run's swarm for trackers and LAN announcements.
    pub fn swarm_key(&self) -> [u8; 32] {
        expand(&self.0, b"flotilla swarm v1", &[])
    }
}

fn expand(key: &[u8; 32], label: &[u8], info: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    Hkdf::<Sha256>::new(Some(label), key)
        .expand(info, &mut out)
        .expect("32 bytes are a valid length for HKDF-SHA256");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_use_has_a_key_of_its_own() {
        let secret = RunSecret::derive(&[1; 32], RunId([2; 16]));
        assert_ne!(secret, RunSecret::derive(&[1; 32], RunId([3; 16])));
        assert_ne!(secret.utp2_secret(), secret.swarm_key());
        assert_ne!(secret.utp2_secret(), *secret.as_bytes());
        assert_ne!(secret.utp2_secret()[..16], secret.utp2_context());
        assert_eq!(std::format!("{secret:?}"), "RunSecret");
    }
}
