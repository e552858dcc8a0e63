//! What an agent decides about blocks: manifests, block maps, who fetches what from whom.
//!
//! Pure: no file, socket, clock or unseeded randomness. Start at [`manifest`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod manifest;
pub mod merkle;
