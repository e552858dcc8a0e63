//! Which protocol a flow speaks, and any end of any of them as one [`Node`].

use timebase::Instant;
use utp2::{Arrival, PathMemory};

use crate::flow::FlowNode;
use crate::network::{Node, Transmission};
use crate::progress::{Counters, Progress};
use crate::tcp::TcpNode;

/// What a flow speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// µTP2, the real endpoint.
    #[default]
    Utp2,
    /// TCP with CUBIC, as [`crate::tcp`] has it.
    Cubic,
    /// quinn-proto with CUBIC.
    #[cfg(feature = "quinn")]
    QuinnCubic,
    /// quinn-proto with BBR.
    #[cfg(feature = "quinn")]
    QuinnBbr,
    /// quinn-proto with NewReno.
    #[cfg(feature = "quinn")]
    QuinnNewReno,
}

impl Protocol {
    /// Its name on command lines and in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Utp2 => "utp2",
            Self::Cubic => "cubic",
            #[cfg(feature = "quinn")]
            Self::QuinnCubic => "quinn-cubic",
            #[cfg(feature = "quinn")]
            Self::QuinnBbr => "quinn-bbr",
            #[cfg(feature = "quinn")]
            Self::QuinnNewReno => "quinn-newreno",
        }
    }
}

/// One end of a flow of any protocol.
pub enum AnyNode {
    /// µTP2.
    Utp2(Box<FlowNode>),
    /// TCP.
    Tcp(TcpNode),
    /// QUIC.
    #[cfg(feature = "quinn")]
    Quic(Box<crate::quic::QuicNode>),
}

impl AnyNode {
    /// How the flow's data arrived; `None` for a sender.
    #[must_use]
    pub fn progress(&self) -> Option<&Progress> {
        match self {
            Self::Utp2(n) => n.progress(),
            Self::Tcp(n) => n.progress(),
            #[cfg(feature = "quinn")]
            Self::Quic(n) => n.progress(),
        }
    }

    /// A sender's counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        match self {
            Self::Utp2(n) => n.counters(),
            Self::Tcp(n) => n.counters(),
            #[cfg(feature = "quinn")]
            Self::Quic(n) => n.counters(),
        }
    }

    /// Bytes that arrived again; 0 for a sender.
    #[must_use]
    pub fn duplicate(&self) -> u64 {
        match self {
            Self::Utp2(n) => n.ledger().map_or(0, |l| l.duplicate()),
            Self::Tcp(n) => n.duplicate(),
            #[cfg(feature = "quinn")]
            Self::Quic(_) => 0,
        }
    }

    /// What a µTP2 sender learned of the path.
    #[must_use]
    pub fn path_memory(&self) -> Option<PathMemory> {
        match self {
            Self::Utp2(n) => n.path_memory(),
            _ => None,
        }
    }

    /// When the handshake was done.
    #[must_use]
    pub fn connected_at(&self) -> Option<Instant> {
        match self {
            Self::Utp2(n) => n.connected_at(),
            Self::Tcp(n) => n.connected_at(),
            #[cfg(feature = "quinn")]
            Self::Quic(n) => n.connected_at(),
        }
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Utp2(n) => n.closed().is_some(),
            Self::Tcp(_) => false,
            #[cfg(feature = "quinn")]
            Self::Quic(n) => n.closed().is_some(),
        }
    }

    /// Why the connection has ended, if it has.
    #[must_use]
    pub fn close_reason(&self) -> Option<String> {
        match self {
            Self::Utp2(n) => n.closed().map(ToString::to_string),
            Self::Tcp(_) => None,
            #[cfg(feature = "quinn")]
            Self::Quic(n) => n.closed().map(ToString::to_string),
        }
    }

    /// The first thing that was wrong with the data that came, if anything was; `None` for a sender, and for
    /// protocols whose data is not looked at.
    #[must_use]
    pub fn data_fault(&self) -> Option<&str> {
        match self {
            Self::Utp2(n) => n.ledger()?.fault(),
            Self::Tcp(_) => None,
            #[cfg(feature = "quinn")]
            Self::Quic(_) => None,
        }
    }
}

impl Node for AnyNode {
    fn handle_datagram(&mut self, now: Instant, arrival: Arrival, datagram: &mut [u8]) {
        match self {
            Self::Utp2(n) => n.handle_datagram(now, arrival, datagram),
            Self::Tcp(n) => n.handle_datagram(now, arrival, datagram),
            #[cfg(feature = "quinn")]
            Self::Quic(n) => n.handle_datagram(now, arrival, datagram),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match self {
            Self::Utp2(n) => n.handle_timeout(now),
            Self::Tcp(n) => n.handle_timeout(now),
            #[cfg(feature = "quinn")]
            Self::Quic(n) => n.handle_timeout(now),
        }
    }

    fn poll_timeout(&mut self) -> Option<Instant> {
        match self {
            Self::Utp2(n) => n.poll_timeout(),
            Self::Tcp(n) => n.poll_timeout(),
            #[cfg(feature = "quinn")]
            Self::Quic(n) => n.poll_timeout(),
        }
    }

    fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmission> {
        match self {
            Self::Utp2(n) => n.poll_transmit(now, buf),
            Self::Tcp(n) => n.poll_transmit(now, buf),
            #[cfg(feature = "quinn")]
            Self::Quic(n) => n.poll_transmit(now, buf),
        }
    }
}
