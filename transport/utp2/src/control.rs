//! What a connection and the controller of its sending tell each other, and which controller that is.
//!
//! With the feature `control`, the one of PROTOCOL.md §9 ([`crate::congestion`]); without it [`crate::plain`], for
//! devices.

use core::time::Duration;

use timebase::Instant;

#[cfg(feature = "control")]
pub(crate) use crate::congestion::Controller;
#[cfg(not(feature = "control"))]
pub(crate) use crate::plain::Controller;

/// What was learned of a path: enough to begin at nearly full speed when it is met again.
///
/// Made by [`crate::Connection::path_memory`], used by [`crate::Connection::recall_path`]. It is a hint and never
/// trusted further than the path bears it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMemory {
    /// Sending rate that the path sustained, bytes/s of UDP payload.
    pub rate: u64,
    /// Smallest round trip seen.
    pub rtt_min: Duration,
    /// Loss that did not come from congestion, parts per million.
    pub base_loss_ppm: u32,
}

/// What an ACK tells beside the fate of packets.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "control"), allow(dead_code, reason = "the plain controller asks for less"))]
pub(crate) struct AckSample {
    /// A round trip measured, and the interval of the packet it was measured with.
    pub(crate) rtt: Option<(Duration, u32)>,
    /// When that packet left.
    pub(crate) left: Instant,
    /// It carried no data: on a slow path it was faster than those that do.
    pub(crate) bare: bool,
    pub(crate) smoothed: Duration,
    pub(crate) min: Duration,
    /// When the largest packet arrived, on the peer's clock.
    pub(crate) arrival_us: u64,
    /// Bytes newly known to have arrived.
    pub(crate) acked_bytes: u64,
    /// Bytes sent and neither acknowledged nor lost.
    pub(crate) in_flight: u64,
}
