//! What travels with a datagram beside its bytes: where, when, and how the network marked it.

use core::net::SocketAddr;

use timebase::Instant;

/// The ECN field of an IP header (RFC 3168; §8.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ecn {
    /// Not ECN-capable, or not known.
    #[default]
    NotEct,
    /// ECT(1). Never sent by us; counted, since a path that makes it of ECT(0) is not to be trusted.
    Ect1,
    /// ECT(0): may be marked instead of dropped.
    Ect0,
    /// Congestion was experienced.
    Ce,
}

impl Ecn {
    /// From the two low bits of the TOS or traffic class byte; the others are ignored.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// The two bits of the TOS or traffic class byte.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::NotEct => 0,
            Self::Ect1 => 1,
            Self::Ect0 => 2,
            Self::Ce => 3,
        }
    }
}

/// Whence and when a datagram came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The address it came from.
    pub remote: SocketAddr,
    /// When the host received it: the kernel's receive time where that is known, else `now`. It may lie before
    /// earlier calls' `now`, never after this one's (a later one counts as `now`). Round trips and the times in
    /// acknowledgements are taken from it, so that a process that did not run for a while does not look like a
    /// queue in the network.
    pub at: Instant,
    /// The mark it arrived with; [`Ecn::NotEct`] if the driver cannot tell.
    pub ecn: Ecn,
}
