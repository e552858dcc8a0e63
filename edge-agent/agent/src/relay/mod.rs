//! Relays: agents that forward sealed µTP2 packets between members of the fleet that cannot reach each other
//! (`edge-agent/PATHS.md` §4).
//!
//! `table.rs` decides for the relay who meets whom and what passes, without IO; `server.rs` is the sessions around it;
//! `client.rs` is the side of who needs a relay. When one is needed is the run's affair (`run/reach.rs`).

mod client;
mod server;
mod table;

use std::time::Duration;

use agent_proto::relay::Channel;
use tracker_proto::RELAYED_PREFIX;
use utp2_tokio::DETOUR_HEADER;

pub(crate) use client::{Met, NotMet, Relays};
pub(crate) use server::Forwarder;
pub(crate) use table::RelayLimits;

/// Where the channel stands in a datagram of a meeting.
const CHANNEL: std::ops::Range<usize> = RELAYED_PREFIX.len()..DETOUR_HEADER;

const _: () = assert!(DETOUR_HEADER == RELAYED_PREFIX.len() + size_of::<Channel>());

/// What stands before a packet of a meeting.
fn header(channel: &Channel) -> [u8; DETOUR_HEADER] {
    let mut header = [0; DETOUR_HEADER];
    header[..CHANNEL.start].copy_from_slice(&RELAYED_PREFIX);
    header[CHANNEL].copy_from_slice(channel);
    header
}

/// How long a meeting waits for the second one.
const LATE: Duration = Duration::from_secs(60);

/// How long a session without a meeting is kept, on both sides.
const IDLE: Duration = Duration::from_secs(60);

/// Close codes of relay sessions.
mod code {
    /// Nobody needs it any more.
    pub(super) const DONE: u16 = 1;
    /// The other side broke the protocol, or says too much.
    pub(super) const BROKEN: u16 = 2;
    /// As many sessions as there may be.
    pub(super) const CROWDED: u16 = 3;
}

#[cfg(test)]
pub(crate) mod tests;
