//! AES-128-GCM in place, one key and IV per direction and phase (PROTOCOL.md §7.1).

use core::fmt;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes128Gcm, KeyInit};
use zeroize::Zeroize;

use super::kdf::Secret;
use crate::wire::header::TAG;

/// Seals or opens packets under one key.
#[derive(Clone)]
pub(crate) struct PacketKey {
    cipher: Aes128Gcm,
    iv: [u8; 12],
}

impl fmt::Debug for PacketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PacketKey")
    }
}

/// The packet did not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAuthentic;

impl PacketKey {
    pub(crate) fn new(mut key: [u8; 16], iv: [u8; 12]) -> Self {
        let this = Self { cipher: Aes128Gcm::new(&key.into()), iv };
        key.zeroize();
        this
    }

    /// The key of a traffic secret's phase.
    pub(crate) fn of_traffic(secret: &Secret) -> Self {
        Self::new(secret.expand("key", b""), secret.expand("iv", b""))
    }

    /// A handshake key: 16 bytes key, 12 bytes IV.
    pub(crate) fn of_handshake(mut material: [u8; 28]) -> Self {
        let mut key = [0; 16];
        let mut iv = [0; 12];
        key.copy_from_slice(&material[..16]);
        iv.copy_from_slice(&material[16..]);
        material.zeroize();
        Self::new(key, iv)
    }

    #[inline]
    fn nonce(&self, number: u64) -> [u8; 12] {
        let mut nonce = self.iv;
        for (n, b) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *n ^= b;
        }
        nonce
    }

    /// Encrypts everything after the first `header` bytes and returns the tag.
    #[inline]
    pub(crate) fn seal(&self, number: u64, packet: &mut [u8], header: usize) -> [u8; TAG] {
        let (aad, body) = packet.split_at_mut(header);
        self.cipher
            .encrypt_inout_detached(&self.nonce(number).into(), aad, body.into())
            .expect("a datagram is far below the limit of GCM")
            .into()
    }

    /// Decrypts everything between `header` and the tag at the end; the plaintext lies where the ciphertext lay.
    #[inline]
    pub(crate) fn open<'a>(
        &self,
        number: u64,
        packet: &'a mut [u8],
        header: usize,
    ) -> Result<&'a mut [u8], NotAuthentic> {
        if packet.len() < header + TAG {
            return Err(NotAuthentic);
        }
        let end = packet.len() - TAG;
        let (front, tag) = packet.split_at_mut(end);
        let (aad, body) = front.split_at_mut(header);
        let tag: [u8; TAG] = (&*tag).try_into().map_err(|_| NotAuthentic)?;
        self.cipher
            .decrypt_inout_detached(&self.nonce(number).into(), aad, (&mut *body).into(), &tag.into())
            .map_err(|_| NotAuthentic)?;
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn only_the_untouched_packet_opens_under_its_number() {
        let key = PacketKey::new([1; 16], [2; 12]);
        let mut packet: Vec<u8> = (0..60).collect();
        let tag = key.seal(5, &mut packet, 13);
        packet.extend_from_slice(&tag);
        assert_eq!(key.open(5, &mut packet.clone(), 13).unwrap(), &(13..60).collect::<Vec<u8>>()[..]);
        assert_eq!(key.open(6, &mut packet.clone(), 13), Err(NotAuthentic));
        for i in 0..packet.len() {
            let mut bad = packet.clone();
            bad[i] ^= 0x10;
            assert_eq!(key.open(5, &mut bad, 13), Err(NotAuthentic), "byte {i}");
        }
        for cut in 0..packet.len() {
            assert_eq!(key.open(5, &mut packet[..cut].to_vec(), 13), Err(NotAuthentic));
        }
    }
}
