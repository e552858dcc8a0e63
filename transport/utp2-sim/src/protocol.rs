//! Which protocol a flow speaks, and any end of any of them as one [`Node`].

use timebase::Instant;
use utp2::Arrival;

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
}

impl Protocol {
    /// Its name on command lines and in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Utp2 => "utp2",
            Self::Cubic => "cubic",
        }
    }
}

/// One end of a flow of any protocol.
pub enum AnyNode {
    /// µTP2.
    Utp2(Box<FlowNode>),
    /// TCP.
    Tcp(TcpNode),
}

impl AnyNode {
    /// How the flow's data arrived; `None` for a sender.
    #[must_use]
    pub fn progress(&self) -> Option<&Progress> {
        match self {
            Self::Utp2(n) => n.progress(),
            Self::Tcp(n) => n.progress(),
        }
    }

    /// A sender's counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        match self {
            Self::Utp2(n) => n.counters(),
            Self::Tcp(n) => n.counters(),
        }
    }

    /// Bytes that arrived again; 0 for a sender.
    #[must_use]
    pub fn duplicate(&self) -> u64 {
        match self {
            Self::Utp2(n) => n.ledger().map_or(0, |l| l.duplicate()),
            Self::Tcp(n) => n.duplicate(),
        }
    }

    /// When the handshake was done.
    #[must_use]
    pub fn connected_at(&self) -> Option<Instant> {
        match self {
            Self::Utp2(n) => n.connected_at(),
            Self::Tcp(n) => n.connected_at(),
        }
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Utp2(n) => n.closed().is_some(),
            Self::Tcp(_) => false,
        }
    }

    /// What is wrong with this end, if anything. That a connection ended is wrong unless everything arrived.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        match self {
            Self::Utp2(n) => {
                let data = n.ledger().and_then(|l| l.fault()).map(str::to_owned);
                data.or_else(|| n.closed().map(|why| format!("closed before the end: {why}")))
            }
            Self::Tcp(_) => None,
        }
    }
}

impl Node for AnyNode {
    fn handle_datagram(&mut self, now: Instant, arrival: Arrival, datagram: &mut [u8]) {
        match self {
            Self::Utp2(n) => n.handle_datagram(now, arrival, datagram),
            Self::Tcp(n) => n.handle_datagram(now, arrival, datagram),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match self {
            Self::Utp2(n) => n.handle_timeout(now),
            Self::Tcp(n) => n.handle_timeout(now),
        }
    }

    fn poll_timeout(&mut self) -> Option<Instant> {
        match self {
            Self::Utp2(n) => n.poll_timeout(),
            Self::Tcp(n) => n.poll_timeout(),
        }
    }

    fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmission> {
        match self {
            Self::Utp2(n) => n.poll_transmit(now, buf),
            Self::Tcp(n) => n.poll_transmit(now, buf),
        }
    }
}
