//! One connection.

use core::net::SocketAddr;
use core::time::Duration;

use crate::{ContextId, Mode, PeerIdentity, SendError};

/// Where the congestion controller stands (§9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Exponential growth from a cautious start.
    #[default]
    FastStart,
    /// Draining and testing the rate found with a packet train.
    SpeedProbe,
    /// Steady operation around the remembered rate.
    Avoid,
}

/// Counters and estimates of one connection. Counters run from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Smoothed round trip time, without the time the peer held its acknowledgement.
    pub rtt: Duration,
    /// Smallest round trip time of the last minute.
    pub rtt_min: Duration,
    /// Present sending rate, bytes/s of UDP payload.
    pub rate: u64,
    /// Rate at which the peer lately received, bytes/s of UDP payload.
    pub delivered_rate: u64,
    /// State of the congestion controller.
    pub state: State,
    /// Packets sent, all kinds, handshake excluded.
    pub sent_packets: u64,
    /// UDP payload bytes sent, all kinds.
    pub sent_bytes: u64,
    /// Bytes of blocks sent, retransmissions included.
    pub data_bytes_sent: u64,
    /// Bytes of blocks and messages sent again.
    pub retransmitted_bytes: u64,
    /// Packets declared lost, spurious ones taken back.
    pub lost_packets: u64,
    /// Packets declared lost that arrived after all.
    pub spurious_losses: u64,
    /// Authentic packets received.
    pub received_packets: u64,
    /// UDP payload bytes of authentic packets received.
    pub received_bytes: u64,
    /// Bytes of blocks received, repetitions included.
    pub data_bytes_received: u64,
    /// Packets dropped: replayed, not authentic, malformed.
    pub rejected_packets: u64,
    /// Acknowledgements sent.
    pub acks_sent: u64,
    /// Acknowledgements received.
    pub acks_received: u64,
    /// Times the probe timer fired for want of acknowledgements.
    pub probe_timeouts: u64,
    /// Bytes sent and neither acknowledged nor lost.
    pub bytes_in_flight: u64,
    /// Learned loss that does not come from congestion, parts per million.
    pub base_loss_ppm: u32,
}

/// One connection of an [`crate::Endpoint`].
#[derive(Debug)]
pub struct Connection {
    context: ContextId,
    remote: SocketAddr,
    initiator: bool,
}

impl Connection {
    /// The context both sides proved to know.
    pub fn context(&self) -> ContextId {
        self.context
    }

    /// Who the peer is; `None` until [`crate::Event::Connected`].
    pub fn peer(&self) -> Option<&PeerIdentity> {
        None
    }

    /// Where we send to now.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Whether we connected, rather than accepted.
    pub fn is_initiator(&self) -> bool {
        self.initiator
    }

    /// Queues a message: whole, in order, exactly once.
    ///
    /// # Errors
    /// [`SendError::Blocked`] when the buffer is full; then [`crate::Event::MessagesWritable`] will follow.
    pub fn send_message(&mut self, _message: &[u8]) -> Result<(), SendError> {
        Err(SendError::Closed)
    }

    /// Queues `len` bytes of block `tag`, read through the source as they are sent. Higher `priority` goes first,
    /// equal ones in the order queued. Queueing a tag that is queued already is fine and changes nothing.
    ///
    /// # Errors
    /// [`SendError::Blocked`] when [`crate::Config::max_queued_blocks`] are queued, [`SendError::TooLarge`] if empty.
    pub fn send_block(&mut self, _tag: u64, _len: u32, _priority: u8) -> Result<(), SendError> {
        Err(SendError::Closed)
    }

    /// Forgets a queued block; nothing of it is sent from now on, and no event follows.
    pub fn cancel_block(&mut self, _tag: u64) {}

    /// Blocks queued and not wholly acknowledged.
    pub fn queued_blocks(&self) -> usize {
        0
    }

    /// Closes at once: what is queued or in flight is dropped. [`crate::Event::Closed`] follows.
    pub fn close(&mut self, _code: u16, _reason: &str) {}

    /// Changes the bytes the peer may have in flight to us; 0 halts it.
    pub fn set_receive_window(&mut self, _bytes: u32) {}

    /// Changes how hard the connection competes.
    pub fn set_mode(&mut self, _mode: Mode) {}

    /// Changes the upper limit of the sending rate, bytes/s of UDP payload.
    pub fn set_rate_limit(&mut self, _limit: Option<u64>) {}

    /// Counters and estimates.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}
