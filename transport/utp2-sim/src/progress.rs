//! What every protocol in the simulation is told, and what it can tell: its load, how the load arrived,
//! and the sender's counters.

use core::time::Duration;

use timebase::Instant;

/// What a flow moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Bytes in all, or [`crate::pattern::ENDLESS`].
    pub bytes: u64,
    /// Length of a block; the last one is shorter.
    pub block_len: u32,
    /// When the sender begins to connect.
    pub start: Instant,
    /// Length of a step of the receiver's timeline.
    pub step: Duration,
}

/// How a flow's bytes arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    bytes: u64,
    step_us: u64,
    received: u64,
    timeline: Vec<u64>,
    completed_at: Option<Instant>,
}

impl Progress {
    /// Nothing has arrived yet.
    #[must_use]
    pub fn new(load: Load) -> Self {
        Self {
            bytes: load.bytes,
            step_us: u64::try_from(load.step.as_micros()).unwrap_or(u64::MAX).max(1),
            received: 0,
            timeline: Vec::new(),
            completed_at: None,
        }
    }

    /// Told how many bytes have arrived in all, each counted once.
    pub fn reached(&mut self, now: Instant, received: u64) {
        let new = received - self.received;
        if new == 0 {
            return;
        }
        self.received = received;
        let step = usize::try_from(now.as_micros() / self.step_us).expect("simulated time is short");
        if self.timeline.len() <= step {
            self.timeline.resize(step + 1, 0);
        }
        self.timeline[step] += new;
        if received >= self.bytes && self.completed_at.is_none() {
            self.completed_at = Some(now);
        }
    }

    /// Bytes received, each counted once.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// New bytes in each step of time since the beginning of the run.
    #[must_use]
    pub fn timeline(&self) -> &[u64] {
        &self.timeline
    }

    /// When the last byte arrived.
    #[must_use]
    pub fn completed_at(&self) -> Option<Instant> {
        self.completed_at
    }
}

/// A sender's counters. What a protocol does not know is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Name of the congestion controller's state.
    pub state: String,
    /// Datagrams sent.
    pub sent_packets: u64,
    /// Bytes of data sent, repetitions included.
    pub data_bytes_sent: u64,
    /// Bytes of data sent again.
    pub retransmitted_bytes: u64,
    /// Datagrams held for lost.
    pub lost_packets: u64,
    /// Datagrams held for lost that arrived after all.
    pub spurious_losses: u64,
    /// Times nothing came back for so long that the sender probed.
    pub probe_timeouts: u64,
    /// Smoothed round trip time.
    pub rtt: Duration,
    /// Smallest round trip time seen lately.
    pub rtt_min: Duration,
    /// Present sending rate, bytes/s.
    pub rate: u64,
    /// Rate at which data lately arrived, bytes/s.
    pub delivered_rate: u64,
    /// Bytes in flight.
    pub bytes_in_flight: u64,
    /// Loss held for chance, parts per million.
    pub base_loss_ppm: u32,
}
