//! How agents of one run find each other, without IO: the messages of `tracker/PROTOCOL.md`, the
//! [`Client`] that keeps an agent listed at its trackers, and the [`LanAnnouncer`] for multicast.
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
pub mod client;
pub mod entry;
mod jitter;
pub mod key;
pub mod lan;
pub mod limits;
pub mod message;
mod wire;

pub use book::Peer;
pub use client::{Client, ClientConfig, Event};
pub use entry::{Address, Entry, EntryFlags};
pub use key::{AgentId, PeerId, SwarmId, SwarmKey};
pub use lan::LanAnnouncer;
pub use message::{Announce, CookieReply, FromTracker, LanAnnounce, ListedPeer, PeersReply};
pub use wire::ParseError;
