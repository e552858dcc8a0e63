//! Relays: agents that forward sealed µTP2 packets between members of the fleet that cannot reach each other
//! (`edge-agent/PATHS.md` §4).
//!
//! `table.rs` decides for the relay who meets whom and what passes, without IO; `server.rs` is the sessions around it;
//! `client.rs` is the side of who needs a relay. When one is needed is the run's affair (`run/reach.rs`).

mod client;
mod server;
mod table;

use std::time::Duration;

pub(crate) use client::{Met, Relays};
pub(crate) use server::Forwarder;
pub(crate) use table::RelayLimits;

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
mod tests;
