//! What an agent decides about blocks: manifests, block maps, who fetches what from whom.
//!
//! Pure: no file, socket, clock or unseeded randomness. [`manifest`] is what is sent, [`Destination`] one run
//! at a receiver, [`Origin`] one run at its source; `swarm.rs` is the heart. [`sync`] keeps folders of many members the
//! same.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod abilities;
mod action;
mod block_map;
mod chance;
pub mod config;
mod destination;
pub mod manifest;
pub mod merkle;
mod neighbours;
mod origin;
mod pace;
mod ranges;
mod swarm;
pub mod sync;
mod upload;
pub mod weak;

pub use action::{Action, Misbehaviour};
pub use block_map::BlockMap;
pub use destination::{Destination, Phase, RunInfo, manifest_block_len};
pub use neighbours::{Accept, NeighbourConfig, Neighbours};
pub use origin::Origin;
pub use ranges::Space;
pub use swarm::{Arrival, Holder, Standing};
