//! `utp2::Endpoint` as a [`Node`]: a sender of made-up blocks and a receiver that checks every byte.
//!
//! Leaves out what is measured over several flows; that is [`crate::scenario`].

use std::net::SocketAddr;

use timebase::Instant;
use utp2::{
    Arrival, Authorizer, BlockSink, BlockSource, CloseReason, Config, Connection, ContextId, Endpoint, Event,
    Handle, Identity, PathMemory, PeerIdentity, SendError, SourceError, Stats,
};

use crate::network::{Node, Transmission};
use crate::pattern::{self, Ledger};
use crate::progress::{Counters, Load, Progress};

/// The context of every simulated flow.
pub const CONTEXT: ContextId = ContextId(*b"simulated flows.");

/// Datagrams a driver would hand to the kernel in one call.
const SEGMENTS_MAX: usize = 16;

/// Accepts everybody who knows the secret.
struct Anybody;

impl Authorizer for Anybody {
    fn authorize(&self, _: ContextId, _: &PeerIdentity) -> bool {
        true
    }
}

struct Pattern;

impl BlockSource for Pattern {
    fn read(&mut self, _: Handle, tag: u64, offset: u32, buf: &mut [u8]) -> Result<(), SourceError> {
        pattern::fill(tag, offset, buf);
        Ok(())
    }
}

/// Datagrams between two looks at a connection's counters.
const LOOK_EVERY: u32 = 64;

/// Where a flow's blocks arrive, and when.
struct Arrivals {
    ledger: Ledger,
    progress: Progress,
    now: Instant,
}

impl BlockSink for Arrivals {
    fn write(&mut self, _: Handle, tag: u64, offset: u32, fin: bool, data: &[u8]) {
        self.ledger.write(tag, offset, fin, data);
        self.progress.reached(self.now, self.ledger.received());
    }
}

/// A sender has nothing to receive.
struct Nowhere;

impl BlockSink for Nowhere {
    fn write(&mut self, _: Handle, _: u64, _: u32, _: bool, _: &[u8]) {}
}

/// Which end of a flow a node is.
enum End {
    Sender { to: SocketAddr, start: Instant, bytes: u64, block_len: u32, next: u64, started: bool },
    Receiver(Box<Arrivals>),
}

/// One end of a µTP2 flow.
pub struct FlowNode {
    endpoint: Endpoint,
    end: End,
    conn: Option<Handle>,
    connected_at: Option<Instant>,
    closed: Option<CloseReason>,
    last_stats: Stats,
    recalled: Option<PathMemory>,
    /// Datagrams until the counters are looked at again.
    look_in: u32,
}

impl FlowNode {
    fn new(config: Config, secret: &[u8; 32], seed: [u8; 32], end: End) -> Self {
        let mut endpoint =
            Endpoint::new(config, Identity::new(seed, Vec::new()), Box::new(Anybody), seed.map(|b| !b));
        endpoint.add_context(CONTEXT, secret);
        let last_stats = Stats::default();
        Self {
            endpoint,
            end,
            conn: None,
            connected_at: None,
            closed: None,
            last_stats,
            recalled: None,
            look_in: 0,
        }
    }

    /// The end that connects to `to` and sends.
    #[must_use]
    pub fn sender(config: Config, secret: &[u8; 32], seed: [u8; 32], to: SocketAddr, load: Load) -> Self {
        let Load { bytes, block_len, start, .. } = load;
        Self::new(config, secret, seed, End::Sender { to, start, bytes, block_len, next: 0, started: false })
    }

    /// The same, knowing the path from an earlier connection.
    #[must_use]
    pub fn recalling(mut self, memory: PathMemory) -> Self {
        self.recalled = Some(memory);
        self
    }

    /// What was learned of the path; `None` while too little is known.
    #[must_use]
    pub fn path_memory(&self) -> Option<PathMemory> {
        self.conn.and_then(|h| self.endpoint.connection(h))?.path_memory()
    }

    /// The end that accepts and checks.
    #[must_use]
    pub fn receiver(config: Config, secret: &[u8; 32], seed: [u8; 32], load: Load) -> Self {
        let arrivals = Arrivals {
            ledger: Ledger::new(load.bytes, load.block_len),
            progress: Progress::new(load),
            now: Instant::ZERO,
        };
        Self::new(config, secret, seed, End::Receiver(Box::new(arrivals)))
    }

    /// What has arrived; `None` for a sender.
    #[must_use]
    pub fn ledger(&self) -> Option<&Ledger> {
        match &self.end {
            End::Sender { .. } => None,
            End::Receiver(arrivals) => Some(&arrivals.ledger),
        }
    }

    /// When it arrived; `None` for a sender.
    #[must_use]
    pub fn progress(&self) -> Option<&Progress> {
        match &self.end {
            End::Sender { .. } => None,
            End::Receiver(arrivals) => Some(&arrivals.progress),
        }
    }

    /// When the handshake was done.
    #[must_use]
    pub fn connected_at(&self) -> Option<Instant> {
        self.connected_at
    }

    /// Why the connection ended, if it has.
    #[must_use]
    pub fn closed(&self) -> Option<&CloseReason> {
        self.closed.as_ref()
    }

    /// The connection's counters, those of its last moment if it has ended.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.conn.and_then(|h| self.endpoint.connection(h)).map_or(self.last_stats, |c| c.stats())
    }

    /// What the simulation compares between protocols.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let s = self.stats();
        Counters {
            state: format!("{:?}", s.state),
            sent_packets: s.sent_packets,
            data_bytes_sent: s.data_bytes_sent,
            retransmitted_bytes: s.retransmitted_bytes,
            lost_packets: s.lost_packets,
            spurious_losses: s.spurious_losses,
            probe_timeouts: s.probe_timeouts,
            rtt: s.rtt,
            rtt_min: s.rtt_min,
            rate: s.rate,
            delivered_rate: s.delivered_rate,
            bytes_in_flight: s.bytes_in_flight,
            base_loss_ppm: s.base_loss_ppm,
        }
    }

    /// The connection, once the sender has begun or the receiver was reached, until it ends.
    pub fn connection_mut(&mut self) -> Option<&mut Connection> {
        self.conn.and_then(|h| self.endpoint.connection_mut(h))
    }

    fn start_if_due(&mut self, now: Instant) {
        if let End::Sender { to, start, started: started @ false, .. } = &mut self.end
            && *start <= now
        {
            let handle = self.endpoint.connect(now, *to, CONTEXT).expect("a fresh endpoint connects");
            *started = true;
            self.conn = Some(handle);
            if let (Some(memory), Some(conn)) = (self.recalled, self.endpoint.connection_mut(handle)) {
                conn.recall_path(memory);
            }
        }
    }

    fn drain_events(&mut self, now: Instant) {
        let mut hungry = false;
        while let Some((handle, event)) = self.endpoint.poll_event() {
            match event {
                Event::Connected => {
                    self.conn = Some(handle);
                    self.connected_at = Some(now);
                    hungry = true;
                }
                Event::BlockSent { .. } => hungry = true,
                Event::Closed(why) => {
                    self.closed = Some(why);
                    self.conn = None;
                }
                _ => {}
            }
        }
        if hungry {
            self.feed();
        }
        self.look_in = self.look_in.saturating_sub(1);
        if self.look_in > 0 {
            return;
        }
        self.look_in = LOOK_EVERY;
        if let Some(conn) = self.conn.and_then(|h| self.endpoint.connection(h)) {
            self.last_stats = conn.stats();
        }
    }

    /// Queues blocks until the connection takes no more.
    fn feed(&mut self) {
        let End::Sender { bytes, block_len, next, .. } = &mut self.end else { return };
        let Some(conn) = self.conn.and_then(|h| self.endpoint.connection_mut(h)) else { return };
        loop {
            let rest = bytes.saturating_sub(*next * u64::from(*block_len));
            let len = u32::try_from(rest).unwrap_or(u32::MAX).min(*block_len);
            if len == 0 {
                return;
            }
            match conn.send_block(*next, len, 0) {
                Ok(()) => *next += 1,
                Err(SendError::Blocked | SendError::Closed) => return,
                Err(other) => panic!("block {next} of {len} bytes was refused: {other}"),
            }
        }
    }
}

impl Node for FlowNode {
    fn handle_datagram(&mut self, now: Instant, arrival: Arrival, datagram: &mut [u8]) {
        match &mut self.end {
            End::Sender { .. } => self.endpoint.handle_datagram(now, arrival, datagram, &mut Nowhere),
            End::Receiver(arrivals) => {
                arrivals.now = now;
                self.endpoint.handle_datagram(now, arrival, datagram, &mut **arrivals);
            }
        }
        self.drain_events(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.start_if_due(now);
        self.endpoint.handle_timeout(now);
        self.drain_events(now);
    }

    fn poll_timeout(&mut self) -> Option<Instant> {
        let start = match self.end {
            End::Sender { start, started: false, .. } => Some(start),
            _ => None,
        };
        self.endpoint.poll_timeout().into_iter().chain(start).min()
    }

    fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmission> {
        let t = self.endpoint.poll_transmit(now, SEGMENTS_MAX, buf, &mut Pattern)?;
        Some(Transmission { to: t.remote, len: t.len, segment_size: t.segment_size, ecn: t.ecn })
    }
}
