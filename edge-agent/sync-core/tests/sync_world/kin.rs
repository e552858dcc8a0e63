//! What members are like, and chance.

use event_schema::Signature;
use sha2::{Digest, Sha256};
use sync_core::sync::{LocalChanges, Notary, Permission, Policy};

use super::fs::fold;

/// SplitMix64.
#[derive(Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len() as u64) as usize)
    }
}

/// A keyed hash in place of Ed25519: whoever does not take another's key cannot sign for it.
pub(crate) struct MacNotary(pub(crate) [u8; 32]);

pub(crate) fn mac(key: &[u8; 32], bytes: &[u8]) -> Signature {
    let hash: [u8; 32] = Sha256::new().chain_update(key).chain_update(bytes).finalize().into();
    Signature(hash, *key)
}

impl Notary for MacNotary {
    fn sign(&self, bytes: &[u8]) -> Signature {
        mac(&self.0, bytes)
    }

    fn holds(&self, key: &[u8; 32], bytes: &[u8], signature: &Signature) -> bool {
        mac(key, bytes) == *signature
    }
}

/// What a member is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kin {
    pub(crate) permission: Permission,
    pub(crate) local: LocalChanges,
    /// Wants nothing below folders whose name begins with `d1`.
    pub(crate) selective: bool,
    pub(crate) folds: bool,
    /// Granularity of times, ns.
    pub(crate) granularity: i64,
    /// Speaks nonsense instead of taking part.
    pub(crate) hostile: bool,
}

impl Default for Kin {
    fn default() -> Self {
        Self {
            permission: Permission::ReadWrite,
            local: LocalChanges::KeepAside,
            selective: false,
            folds: false,
            granularity: 1_000_000,
            hostile: false,
        }
    }
}

pub(crate) struct KinPolicy(pub(crate) Kin);

impl Policy for KinPolicy {
    fn wants(&self, path: &[u8], _: bool) -> bool {
        !(self.0.selective && path.to_ascii_lowercase().starts_with(b"d1"))
    }

    fn fold(&self, path: &[u8]) -> Option<Vec<u8>> {
        self.0.folds.then(|| fold(path))
    }

    fn same_meta(&self, a: &[u8], b: &[u8]) -> bool {
        let tick = |meta: &[u8]| {
            <[u8; 8]>::try_from(meta).map(|m| i64::from_le_bytes(m).div_euclid(self.0.granularity)).ok()
        };
        a == b || (tick(a).is_some() && tick(a) == tick(b))
    }
}
