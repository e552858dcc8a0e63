//! µTP2: a paced, encrypted datagram protocol for moving blocks over bad networks, as a sans-IO core.
//!
//! An [`Endpoint`] owns every connection of one UDP socket. It never asks the time, opens a socket or
//! reads a file, and it keeps no block for retransmission: a lost piece is read again through
//! [`BlockSource`]. Read `transport/PROTOCOL.md` first; comments cite its sections as §n.
//!
//! # How to drive it
//! 1. For every datagram received: [`Endpoint::handle_datagram`].
//! 2. When the instant of [`Endpoint::poll_timeout`] has come: [`Endpoint::handle_timeout`].
//! 3. After either, and after any call on a [`Connection`]: [`Endpoint::poll_transmit`] until it returns
//!    `None`, [`Endpoint::poll_event`] until it returns `None`, then [`Endpoint::poll_timeout`] once.
//!
//! The one rule: `now` never goes backwards. (Only [`Arrival::at`] may.)
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod config;
#[cfg(feature = "control")]
mod congestion;
mod connection;
mod control;
mod crypto;
mod datagram;
mod endpoint;
mod error;
mod event;
#[cfg(any(all(test, feature = "control"), feature = "fuzzing"))]
pub mod fuzzing;
mod handshake;
mod identity;
#[cfg(any(test, not(feature = "control")))]
#[cfg_attr(feature = "control", allow(dead_code, reason = "there for its tests alone"))]
mod plain;
mod resumption;
mod source;
#[cfg(test)]
mod tests;
mod wire;

/// No packet to an endpoint of ours begins with this, so that its socket can be shared with another protocol whose
/// datagrams do (PROTOCOL.md §3.8).
pub const BESIDE: [u8; 3] = [0x46, 0x54, 0x01];

pub use config::{Config, ConfigError, Mode};
pub use connection::{Connection, RangeSet, State, Stats};
pub use control::PathMemory;
pub use datagram::{Arrival, Ecn, HandshakePacket};
pub use endpoint::{Endpoint, Transmit};
pub use error::{ConnectError, SendError, SourceError};
pub use event::{CloseReason, Event, Handle, HandshakeFailure};
pub use identity::{Authorizer, ContextId, Identity, PeerIdentity};
pub use resumption::Resumption;
pub use source::{BlockSink, BlockSource};
