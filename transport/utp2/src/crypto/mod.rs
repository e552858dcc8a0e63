//! The primitives, each behind the narrowest door: key derivation, packet protection, SRP (PROTOCOL.md §5.4, §7).

pub(crate) mod aead;
pub(crate) mod kdf;
pub(crate) mod srp;
