//! The primitives, each behind the narrowest door: key derivation, packet protection, signatures, SRP, X25519
//! (PROTOCOL.md §5.4, §5.5, §7). Each is held against published vectors in `tests/vectors.rs`.

pub(crate) mod aead;
pub(crate) mod exchange;
pub(crate) mod kdf;
pub(crate) mod sign;
pub(crate) mod srp;
