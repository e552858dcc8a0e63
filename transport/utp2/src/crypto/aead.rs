//! AES-128-GCM in place, one key and IV per direction and phase (PROTOCOL.md §7.1).
//!
//! Two implementations of the cipher stand behind [`PacketKey`]: RustCrypto's, which runs everywhere, and with the
//! feature `ring` that crate's, three times as fast where the CPU has AES and vector instructions. The key schedule
//! is made once per key by either.

use core::fmt;

use zeroize::Zeroize;

#[cfg(not(feature = "ring"))]
use self::portable::Cipher;
#[cfg(feature = "ring")]
use self::with_ring::Cipher;

use super::kdf::Secret;
use crate::wire::header::TAG;

/// Seals or opens packets under one key.
#[derive(Clone)]
pub(crate) struct PacketKey {
    cipher: Cipher,
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
        let this = Self { cipher: Cipher::new(&key), iv };
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
        self.cipher.seal(self.nonce(number), aad, body)
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
        self.cipher.open(self.nonce(number), aad, body, tag)?;
        Ok(body)
    }
}

/// RustCrypto's: no_std, any CPU; constant in time without AES instructions too.
#[cfg(any(not(feature = "ring"), test))]
mod portable {
    use aes_gcm::aead::AeadInOut;
    use aes_gcm::{Aes128Gcm, KeyInit};

    use super::{NotAuthentic, TAG};

    #[derive(Clone)]
    pub(super) struct Cipher(Aes128Gcm);

    impl Cipher {
        pub(super) fn new(key: &[u8; 16]) -> Self {
            Self(Aes128Gcm::new(key.into()))
        }

        #[inline]
        pub(super) fn seal(&self, nonce: [u8; 12], aad: &[u8], body: &mut [u8]) -> [u8; TAG] {
            self.0
                .encrypt_inout_detached(&nonce.into(), aad, body.into())
                .expect("a datagram is far below the limit of GCM")
                .into()
        }

        #[inline]
        pub(super) fn open(
            &self,
            nonce: [u8; 12],
            aad: &[u8],
            body: &mut [u8],
            tag: [u8; TAG],
        ) -> Result<(), NotAuthentic> {
            self.0
                .decrypt_inout_detached(&nonce.into(), aad, body.into(), &tag.into())
                .map_err(|_| NotAuthentic)
        }
    }
}

/// ring's. It does not wipe its key schedules when they are dropped.
#[cfg(any(feature = "ring", test))]
mod with_ring {
    use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};

    use super::{NotAuthentic, TAG};

    #[derive(Clone)]
    pub(super) struct Cipher(LessSafeKey);

    impl Cipher {
        pub(super) fn new(key: &[u8; 16]) -> Self {
            let key = UnboundKey::new(&AES_128_GCM, key).expect("AES-128 takes 16 bytes");
            Self(LessSafeKey::new(key))
        }

        #[inline]
        pub(super) fn seal(&self, nonce: [u8; 12], aad: &[u8], body: &mut [u8]) -> [u8; TAG] {
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = self
                .0
                .seal_in_place_separate_tag(nonce, Aad::from(aad), body)
                .expect("a datagram is far below the limit of GCM");
            let mut bytes = [0; TAG];
            bytes.copy_from_slice(tag.as_ref());
            bytes
        }

        #[inline]
        pub(super) fn open(
            &self,
            nonce: [u8; 12],
            aad: &[u8],
            body: &mut [u8],
            tag: [u8; TAG],
        ) -> Result<(), NotAuthentic> {
            let nonce = Nonce::assume_unique_for_key(nonce);
            self.0
                .open_in_place_separate_tag(nonce, Aad::from(aad), Tag::from(tag), body, 0..)
                .map(|_| ())
                .map_err(|_| NotAuthentic)
        }
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
    fn hex<const N: usize>(text: &str) -> [u8; N] {
        core::array::from_fn(|i| u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).unwrap())
    }

    /// Test case 4 of the GCM specification (McGrew and Viega, appendix B).
    #[test]
    fn both_ciphers_give_the_published_bytes() {
        let key = hex("feffe9928665731c6d6a8f9467308308");
        let nonce = hex("cafebabefacedbaddecaf888");
        let aad: [u8; 20] = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let plain: [u8; 60] = hex(concat!(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525",
            "b16aedf5aa0de657ba637b39"
        ));
        let sealed: [u8; 60] = hex(concat!(
            "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa05",
            "1ba30b396a0aac973d58e091"
        ));
        let tag: [u8; TAG] = hex("5bc94fbc3221a5db94fae95ae7121a47");
        let (mut a, mut b) = (plain, plain);
        assert_eq!(portable::Cipher::new(&key).seal(nonce, &aad, &mut a), tag);
        assert_eq!(with_ring::Cipher::new(&key).seal(nonce, &aad, &mut b), tag);
        assert_eq!((a, b), (sealed, sealed));
    }

    #[test]
    fn either_cipher_opens_what_the_other_sealed() {
        let key = [0x5a; 16];
        let (one, two) = (portable::Cipher::new(&key), with_ring::Cipher::new(&key));
        // Through every way the vector code may end, and the sizes of datagrams.
        for len in (0..300).chain([1200, 1419, 1420, 1439, 1440, 8900]) {
            let nonce = [len as u8; 12];
            let aad: Vec<u8> = (0..len % 21).map(|i| i as u8).collect();
            let plain: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let (mut a, mut b) = (plain.clone(), plain.clone());
            let tag = one.seal(nonce, &aad, &mut a);
            assert_eq!(two.seal(nonce, &aad, &mut b), tag, "{len} bytes");
            assert_eq!(a, b);
            one.open(nonce, &aad, &mut b, tag).unwrap();
            two.open(nonce, &aad, &mut a, tag).unwrap();
            assert_eq!((&a, &b), (&plain, &plain));
            let mut bad = tag;
            bad[len % TAG] ^= 1;
            assert_eq!(two.open(nonce, &aad, &mut plain.clone(), bad), Err(NotAuthentic));
        }
    }
}
