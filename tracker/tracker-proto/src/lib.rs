//! How agents of one run find each other, without IO: the messages of `tracker/PROTOCOL.md`, the
//! [`Client`] that keeps an agent listed at its trackers, the [`LanAnnouncer`] for multicast, and the [`Prober`] that
//! finds out which addresses work and opens NATs.
//!
//! Left out: sockets and clocks (the agent's `discovery` module), the server's table (the `tracker`
//! crate). Addresses found here are hints; the µTP2 handshake decides who a peer is.
//!
//! Read `PROTOCOL.md` first, then [`client`].
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod book;
pub mod bucket;
pub mod client;
pub mod entry;
mod jitter;
pub mod key;
pub mod lan;
pub mod limits;
pub mod message;
pub mod probe;
mod wire;

pub use book::Peer;
pub use bucket::TokenBucket;
pub use client::{Client, ClientConfig, Event, Usable};
pub use entry::{Address, Entry, EntryFlags};
pub use key::{AgentId, PeerId, SwarmId, SwarmKey};
pub use lan::LanAnnouncer;
pub use message::{
    Announce, Call, CookieReply, FromTracker, LanAnnounce, ListedPeer, PeersReply, Probe, Ring, ToTracker,
};
pub use probe::Prober;
pub use wire::{PREFIX, ParseError, RELAYED_PREFIX};
