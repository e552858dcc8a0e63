//! What a device keeps and decides: commands that it takes once, images that it receives block by block into one of two
//! slots, reports that wait to go home; all of it safe against power cuts at any moment.
//!
//! Read `edge-agent/DEVICE_FORMAT.md` first; [`Device`] is the way in. Flash is an argument (the traits of
//! `embedded-storage`), and so are time and bytes from the network. Nothing here allocates but what decodes commands,
//! reports and manifests, which are shared with every other agent (docs/decisions/0030), and [`Fetch`], which holds the
//! block that is on its way.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod codec;
mod core_state;
mod device;
mod fetch;
mod identity;
mod image;
mod journal;
mod layout;
pub mod limits;
mod medium;
mod orders;
mod outbox;
mod store;
mod trust;
mod update;

pub use core_state::{Slot, SlotState};
pub use device::{Device, Error, OpenError, Provision};
pub use fetch::{Fetch, FetchError, Step};
pub use image::{Board, Payload, PayloadFault, Trailer};
pub use layout::{Layout, LayoutFault, Region};
pub use orders::Taken;
pub use update::{BeginError, Begun, BlockError, Booted, Progress, Stored};
