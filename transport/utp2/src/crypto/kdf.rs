//! SHA-256, HMAC and HKDF with this protocol's labels (PROTOCOL.md §5.4).

use core::fmt;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

/// 32 secret bytes, erased when dropped and never printed.
#[derive(Clone)]
pub(crate) struct Secret(pub(crate) [u8; 32]);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// HKDF-Extract.
    pub(crate) fn extract(salt: &[u8], ikm: &[u8]) -> Self {
        let (mut prk, _) = Hkdf::<Sha256>::extract(Some(salt), ikm);
        let mut out = [0; 32];
        out.copy_from_slice(&prk);
        prk.as_mut_slice().zeroize();
        Self(out)
    }

    /// HKDF-Expand under "utp2 " ‖ `label` ‖ `context`.
    pub(crate) fn expand<const N: usize>(&self, label: &str, context: &[u8]) -> [u8; N] {
        let mut out = [0; N];
        self.expand_into(&[b"utp2 ", label.as_bytes(), context], &mut out);
        out
    }

    /// HKDF-Expand; at most 8160 bytes.
    pub(crate) fn expand_into(&self, info: &[&[u8]], out: &mut [u8]) {
        Hkdf::<Sha256>::from_prk(&self.0)
            .expect("32 bytes are a PRK")
            .expand_multi_info(info, out)
            .expect("asked for far less than 255 blocks");
    }

    /// A secret derived from this one.
    pub(crate) fn derive(&self, label: &str, context: &[u8]) -> Self {
        Self(self.expand(label, context))
    }

    /// HMAC-SHA-256 over the parts.
    pub(crate) fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        mac(&self.0, parts)
    }
}

pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut m = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|p| m.update(p));
    m.finalize().into_bytes().into()
}

pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut h = Sha256::new();
    parts.iter().for_each(|p| h.update(p));
    h.finalize().into()
}
