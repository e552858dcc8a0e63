//! What travels with a datagram beside its bytes: where, when, and how the network marked it.

use core::net::SocketAddr;

use timebase::Instant;

use crate::wire::handshake::Alert;
use crate::wire::header::Kind;

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

/// What anybody on the way can tell of a packet of a handshake, of whatever version (§3.2); for logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakePacket {
    /// Its type, as PROTOCOL.md calls it.
    pub kind: &'static str,
    /// Why it refuses the peer, if it does. A ticket that is not taken is no refusal: a full handshake follows (§3.7).
    pub refusal: Option<&'static str>,
}

impl HandshakePacket {
    /// Looks at a datagram; `None` if it is of no type of a handshake that this version knows.
    #[must_use]
    #[inline]
    pub fn of(datagram: &[u8]) -> Option<Self> {
        let kind = Kind::of(datagram)?;
        let refusal = match (kind, Alert::parse(datagram)) {
            (Kind::Alert, Ok(Alert::Refused)) => Some("the secret is another one, or a key is not accepted"),
            (Kind::Alert, Ok(Alert::Busy)) => Some("too many handshakes or connections"),
            (Kind::Alert, Ok(Alert::Version)) => Some("no common version"),
            _ => None,
        };
        let kind = match kind {
            Kind::Init => "INIT",
            Kind::Retry => "RETRY",
            Kind::Reply => "REPLY",
            Kind::Prove => "PROVE",
            Kind::Alert => "ALERT",
            Kind::Resume => "RESUME",
            Kind::Resumed => "RESUMED",
            Kind::Reset => "RESET",
        };
        Some(Self { kind, refusal })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn only_handshakes_are_named_and_only_refusals_are_such() {
        let alert = |alert: Alert| {
            let mut out = Vec::new();
            alert.emit(&[7; 8], &mut out);
            HandshakePacket::of(&out).unwrap()
        };
        assert_eq!(alert(Alert::Refused).kind, "ALERT");
        assert!(alert(Alert::Refused).refusal.is_some_and(|why| why.contains("secret")));
        assert!(alert(Alert::Busy).refusal.is_some() && alert(Alert::Version).refusal.is_some());
        assert_eq!(alert(Alert::Ticket).refusal, None);
        assert_eq!(HandshakePacket::of(&[0x81]), Some(HandshakePacket { kind: "INIT", refusal: None }));
        // Cut short, not of a handshake, of no kind there is.
        assert_eq!(HandshakePacket::of(&[0x85]).unwrap().refusal, None);
        for other in [&[][..], &[0x40; 50], &[0x01], &[0x80], &[0x89]] {
            assert_eq!(HandshakePacket::of(other), None);
        }
    }
}
