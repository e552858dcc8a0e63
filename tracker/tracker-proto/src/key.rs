//! Names and keys that members derive from a run's secret (`PROTOCOL.md` §2).

use core::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroize;

/// Identity of an agent, as the rest of the system knows it: 16 bytes. Never leaves the agent here.
pub type AgentId = [u8; 16];

/// Public name of a swarm: a keyed hash, meaningless to whoever lacks the run's secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwarmId(pub [u8; 32]);

/// Name of an agent within one swarm: a pseudonym that differs from run to run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 16]);

/// What membership of one swarm means here: its public name and the keys to make and check entries.
///
/// The run's secret itself is not kept.
#[derive(Clone)]
pub struct SwarmKey {
    id: SwarmId,
    mac_key: [u8; 32],
    pseudonym_key: [u8; 32],
    probe_key: [u8; 32],
}

impl SwarmKey {
    /// Derives name and keys from a run's secret.
    pub fn from_run_secret(secret: &[u8; 32]) -> Self {
        Self {
            id: SwarmId(hmac(secret, &[b"flotilla tracker v1"])),
            mac_key: hmac(secret, &[b"flotilla tracker entry mac v1"]),
            pseudonym_key: hmac(secret, &[b"flotilla tracker peer id v1"]),
            probe_key: hmac(secret, &[b"flotilla tracker probe v1"]),
        }
    }

    /// The swarm's public name.
    pub fn swarm(&self) -> SwarmId {
        self.id
    }

    /// The pseudonym of an agent in this swarm. Members may compute it for any agent they know.
    pub fn peer_id(&self, agent: &AgentId) -> PeerId {
        PeerId(truncated(hmac(&self.pseudonym_key, &[agent])))
    }

    /// MAC over an entry's bytes without its MAC.
    pub(crate) fn entry_mac(&self, body: &[u8]) -> [u8; 16] {
        truncated(hmac(&self.mac_key, &[&self.id.0, body]))
    }

    /// MAC over a probe's bytes between header and MAC.
    pub(crate) fn probe_mac(&self, body: &[u8]) -> [u8; 16] {
        truncated(hmac(&self.probe_key, &[body]))
    }

    /// What both of two members come up with, in whichever order they are given, and nobody else: the name under
    /// which they meet at a relay (`edge-agent/PATHS.md` §2).
    pub fn meeting(&self, one: PeerId, other: PeerId) -> [u8; 16] {
        let (first, second) = (one.min(other), one.max(other));
        truncated(hmac(&self.pseudonym_key, &[b"meeting", &first.0, &second.0]))
    }
}

impl Drop for SwarmKey {
    fn drop(&mut self) {
        self.mac_key.zeroize();
        self.pseudonym_key.zeroize();
        self.probe_key.zeroize();
    }
}

impl fmt::Debug for SwarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwarmKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for SwarmId {
    /// The first eight hex digits: enough to tell swarms apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        short_hex(f, &self.0)
    }
}

impl fmt::Debug for PeerId {
    /// The first eight hex digits: enough to tell peers apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        short_hex(f, &self.0)
    }
}

fn short_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().take(4).try_for_each(|b| write!(f, "{b:02x}"))
}

pub(crate) fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|p| mac.update(p));
    mac.finalize().into_bytes().into()
}

fn truncated(full: [u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&full[..16]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn names_differ_between_runs_and_agents() {
        let (a, b) = (SwarmKey::from_run_secret(&[1; 32]), SwarmKey::from_run_secret(&[2; 32]));
        assert_ne!(a.swarm(), b.swarm());
        assert_ne!(a.peer_id(&[9; 16]), b.peer_id(&[9; 16]));
        assert_ne!(a.peer_id(&[9; 16]), a.peer_id(&[8; 16]));
        assert_eq!(a.peer_id(&[9; 16]), a.clone().peer_id(&[9; 16]));
    }

    #[test]
    fn debug_shows_no_key() {
        let key = SwarmKey::from_run_secret(&[1; 32]);
        let shown = format!("{key:?}");
        assert!(shown.starts_with("SwarmKey { id: ") && shown.len() < 40, "{shown}");
    }
}
