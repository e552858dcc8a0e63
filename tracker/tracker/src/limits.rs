//! Every limit of the server, with its reason (`PROTOCOL.md` §8). The configuration file can change
//! those of [`Limits`].

use std::time::Duration;

use serde::Deserialize;

/// Slots of a rate limiter: fixed memory, whoever sends. Sources that fall into one slot share its budget.
pub(crate) const RATE_SLOTS: usize = 8192;

/// Length of a cookie's time bucket: with the bucket before it, a cookie lives two to four minutes, so
/// that an agent with the longest default pause between requests still has a valid one.
pub(crate) const COOKIE_BUCKET: Duration = Duration::from_secs(120);

/// Announce intervals that an entry lives: two announcements may be lost.
pub(crate) const LIFE_IN_INTERVALS: u32 = 3;

/// Addresses that one call rings at most: an agent is listed once per IP version; others may be listed in its name.
pub(crate) const RINGS_PER_CALL: usize = 4;

/// Rings per second and address (with its port) that is rung, and at once after a quiet time: who is called must not
/// drown, and whoever cannot be rung now is called again in some seconds.
pub(crate) const RINGS_PER_SECOND: (u32, u32) = (4, 16);

/// The same for all who are behind one source: after an outage thousands behind one NAT are called within seconds.
pub(crate) const RINGS_PER_SOURCE: (u32, u32) = (200, 1000);

/// Datagrams handled in a row before timers and signals get a turn.
pub(crate) const DATAGRAMS_PER_TURN: usize = 64;

/// What one tracker takes on.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Seconds between announcements of an agent, 1 to 3600. Keeps NAT mappings alive.
    pub(crate) announce_interval_s: u16,
    /// Concurrent swarms: runs of large fleets.
    pub(crate) max_swarms: usize,
    /// Peers in one swarm: answers are samples anyway, and one swarm must not take the whole table.
    pub(crate) max_peers_per_swarm: usize,
    /// Entries in all swarms: below 100 MB of memory when all are of full size.
    pub(crate) max_entries: usize,
    /// Entries from one source (IPv4 address or IPv6 /64): one host must not take the whole table, a site
    /// behind one NAT must fit.
    pub(crate) max_entries_per_source: usize,
    /// Requests answered per second and source; as many cookies are given out besides.
    pub(crate) requests_per_second: u32,
    /// Requests answered at once after a quiet time.
    pub(crate) request_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            announce_interval_s: 30,
            max_swarms: 20_000,
            max_peers_per_swarm: 4_096,
            max_entries: 100_000,
            max_entries_per_source: 4_096,
            requests_per_second: 100,
            request_burst: 400,
        }
    }
}

impl Limits {
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_secs(self.announce_interval_s.into())
    }

    pub(crate) fn entry_life(&self) -> Duration {
        self.interval() * LIFE_IN_INTERVALS
    }
}
