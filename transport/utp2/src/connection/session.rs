//! An established connection's state; what moves it lies in [`super::receive`], [`super::send`], [`super::loss`] and
//! [`super::timers`].

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;

use super::Stats;
use super::blocks::{BlockQueue, BlockRef};
use super::ecn::EcnSender;
use super::keys::{OpenKeys, SealKeys};
use super::messages::{MessageReceiver, MessageSender, PREFIX};
use super::mtu::Mtu;
use super::pacing::Pacer;
use super::path::Path;
use super::ranges::RangeSet;
use super::received::{FIRST_PACKETS, Received, Rhythm};
use super::replay::ReplayWindow;
use super::ring::Ring;
use super::rtt::Rtt;
use super::scoreboard::{Chunk, Scoreboard};
use crate::control::Controller;
use crate::crypto::kdf::Secret;
use crate::handshake::Established;
use crate::handshake::Role;
use crate::wire::Cid;
use crate::wire::handshake::TOKEN;
use crate::{Config, Event, Handle, PathMemory, PeerIdentity, SendError};

/// What ends a connection from inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Violation(&'static str),
    FlowControl,
    MessageTooLong,
    KeyLimit,
    /// The peer's CLOSE.
    Peer {
        code: u16,
        reason: alloc::string::String,
    },
}

/// A ticket on its way: lifetime in seconds, nonce, and the sealed bytes.
#[derive(Debug)]
pub(crate) struct IssuedTicket {
    pub(crate) lifetime: u32,
    pub(crate) nonce: [u8; 16],
    pub(crate) bytes: Vec<u8>,
}

/// A ticket that remembers the path's rate as it was is replaced no sooner.
const TICKET_EVERY: Duration = Duration::from_secs(10);

/// A piece of a block to send again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LostPiece {
    pub(super) block: BlockRef,
    pub(super) offset: u32,
    pub(super) len: u16,
}

/// The largest amount by which packets were seen out of order, fading.
#[derive(Debug)]
pub(super) struct Reordering {
    pub(super) seen: Duration,
    pub(super) faded: Instant,
}

pub(crate) struct Session {
    pub(super) handle: Handle,
    pub(super) peer: PeerIdentity,
    pub(super) remote_cid: Cid,
    /// Largest packet we send now; follows `mtu`.
    pub(super) datagram: usize,
    pub(super) mtu: Mtu,
    /// Most bytes handed out at a time.
    pub(super) max_burst: usize,
    pub(super) max_message: usize,
    pub(super) max_in_flight: usize,
    pub(super) max_blocks: usize,
    pub(super) random: ChaCha8Rng,

    pub(super) seal: SealKeys,
    pub(super) open: OpenKeys,
    pub(super) replay: ReplayWindow,
    pub(super) path: Path,

    pub(super) sent: Scoreboard,
    /// Where packets may still be outstanding; everything below is settled.
    pub(super) loss_scan: u64,
    /// The acknowledged packet sent last: its number and when it left.
    pub(super) newest_acked: Option<(u64, Instant)>,
    pub(super) newest_acked_size: u16,
    pub(super) reordering: Reordering,
    /// Pieces of blocks to send again, and of messages (offset, length).
    pub(super) lost_chunks: Ring<LostPiece>,
    pub(super) lost_messages: VecDeque<(u64, u16)>,
    /// What an ACK told that is new, while it is looked at.
    pub(super) fresh: Vec<(u64, u64)>,
    /// Numbers from `sent.oldest()` on that are known to have arrived.
    pub(super) known: RangeSet,
    /// Pieces of blocks sent again at the end of a transfer, to be sent once more when there is nothing else (§8.5).
    pub(super) tail_copies: Ring<LostPiece>,
    /// Bytes of pieces that were put there so far.
    pub(super) copied_bytes: u64,
    pub(super) ecn: EcnSender,
    /// Packets until a number is left out (§8.8).
    pub(super) skip_in: u32,

    pub(super) blocks: BlockQueue,
    pub(super) messages_out: MessageSender,
    pub(super) messages_in: MessageReceiver,
    pub(super) received: Received,
    /// When the peer wants acknowledgements, and the number of the packet that told.
    pub(super) rhythm_asked: Option<(Rhythm, u64)>,
    /// What we told it, and in which packet.
    pub(super) rhythm_told: (Rhythm, u64),
    pub(super) tell_rhythm: bool,
    /// Bytes the peer lets us have in flight, and the number of the packet that told.
    pub(super) peer_window: (u64, u64),
    /// Bytes we let the peer have in flight.
    pub(super) own_window: u32,
    /// Whether WINDOW is to be sent, and the packet that carries it.
    pub(super) tell_window: bool,
    pub(super) window_told_in: Option<u64>,
    pub(super) ping: bool,
    pub(super) response: Option<[u8; 8]>,

    pub(super) rtt: Rtt,
    pub(super) controller: Controller,
    pub(super) pacer: Pacer,
    pub(super) rate_limit: Option<u64>,
    /// The mode the controller began with.
    pub(super) mode: crate::Mode,
    /// Set while the pacer holds data back.
    pub(super) pacing: Option<Instant>,
    pub(super) last_eliciting: Instant,
    pub(super) last_tail_ping: Instant,
    /// The probe timer counts from here (§8.6).
    pub(super) probe_from: Instant,
    pub(super) probe_backoff: u32,
    /// Data waits because too much is in flight: when the oldest packet not acknowledged left.
    pub(super) held: Option<Instant>,
    /// Packets that may leave whatever pacing and windows say.
    pub(super) probes: u8,
    pub(super) loss_deadline: Option<Instant>,
    pub(super) idle_timeout: Duration,
    pub(super) keep_alive: Option<Duration>,
    pub(super) last_received: Instant,
    pub(super) last_keep_alive: Instant,
    /// Packets with data since the last quiet, and when the newest came (§10.4).
    pub(super) data_run: u32,
    pub(super) last_data: Instant,

    /// Which side of the handshake we were.
    pub(super) role: Role,
    /// What tickets are derived from; whether one was used; when the peer last did a full handshake (§5.8).
    pub(super) resumption: Secret,
    pub(super) resumed: bool,
    pub(super) proved: Option<u64>,
    /// A responder's ticket until it is acknowledged, the packet that carries it, and the last one's making.
    pub(super) ticket: Option<IssuedTicket>,
    pub(super) tell_ticket: bool,
    pub(super) ticket_told_in: Option<u64>,
    pub(super) ticket_issued: Option<(Instant, Option<PathMemory>)>,
    /// An initiator's newest ticket that was not taken yet.
    pub(super) new_ticket: Option<IssuedTicket>,
    /// Proves that the peer lost the connection (§10.7).
    pub(super) peer_reset: [u8; TOKEN],

    pub(super) stats: Stats,
    pub(super) events: VecDeque<Event>,
}

/// Numbers between two left out on purpose: this and up to as many more.
const SKIP_EVERY: u32 = 2048;

/// What the controller's first rate counts in, bytes; the path's own size is not known by then.
const USUAL_DATAGRAM: usize = 1452;

impl Session {
    pub(crate) fn new(now: Instant, handle: Handle, config: &Config, e: Established, seed: [u8; 32]) -> Self {
        let mtu = Mtu::new(config.max_datagram.min(e.params.max_datagram));
        let datagram = mtu.current();
        let own_idle = config.idle_timeout;
        // Zero would be "at once"; a peer that says so gets the smallest we accept ourselves.
        let peer_idle = Duration::from_millis(u64::from(e.params.idle_timeout_ms.max(100)));
        let rtt = Rtt::new(now, e.rtt.max(Duration::from_micros(1)));
        let controller = Controller::new(now, rtt.smoothed(), USUAL_DATAGRAM, config.mode);
        let mut random = ChaCha8Rng::from_seed(seed);
        let skip_in = SKIP_EVERY + random.next_u32() % SKIP_EVERY;
        let peer_message = usize::try_from(e.params.max_message).unwrap_or(usize::MAX);
        Self {
            handle,
            peer: e.peer,
            remote_cid: e.remote_cid,
            datagram,
            mtu,
            max_burst: config.max_burst,
            max_message: config.max_message.min(peer_message).min(config.message_buffer - PREFIX),
            max_in_flight: config.max_in_flight_packets,
            max_blocks: config.max_queued_blocks,
            random,
            seal: SealKeys::new(e.seal, config.key_update_after),
            open: OpenKeys::new(e.open),
            replay: ReplayWindow::new(config.replay_window),
            path: Path::new(e.remote),
            sent: Scoreboard::default(),
            loss_scan: 0,
            newest_acked: None,
            newest_acked_size: 0,
            reordering: Reordering { seen: Duration::ZERO, faded: now },
            lost_chunks: Ring::default(),
            lost_messages: VecDeque::new(),
            fresh: Vec::new(),
            known: RangeSet::default(),
            tail_copies: Ring::default(),
            copied_bytes: 0,
            ecn: EcnSender::new(0),
            rhythm_asked: None,
            rhythm_told: (Rhythm { interval: rtt.ack_interval(), packets: FIRST_PACKETS }, u64::MAX),
            tell_rhythm: false,
            skip_in,
            blocks: BlockQueue::default(),
            messages_out: MessageSender::new(config.message_buffer, u64::from(e.params.message_limit)),
            messages_in: MessageReceiver::new(
                config.message_buffer.min(u32::MAX as usize),
                config.max_message,
            ),
            received: Received::new(config.max_ack_ranges),
            peer_window: (u64::from(e.params.receive_window), 0),
            own_window: config.receive_window,
            tell_window: false,
            window_told_in: None,
            ping: false,
            response: None,
            pacer: Pacer::new(now, controller.rate().min(config.rate_limit.unwrap_or(u64::MAX)).max(1)),
            rtt,
            controller,
            rate_limit: config.rate_limit,
            mode: config.mode,
            pacing: None,
            last_eliciting: now,
            last_tail_ping: now,
            probe_from: now,
            probe_backoff: 0,
            held: None,
            probes: 0,
            loss_deadline: None,
            idle_timeout: own_idle.min(peer_idle),
            keep_alive: config.keep_alive,
            last_received: now,
            last_keep_alive: now,
            data_run: 0,
            last_data: now,
            role: e.role,
            resumption: e.resumption,
            resumed: e.resumed,
            proved: e.proved,
            ticket: None,
            tell_ticket: false,
            ticket_told_in: None,
            ticket_issued: None,
            new_ticket: None,
            peer_reset: e.params.reset_token,
            stats: Stats::default(),
            events: VecDeque::new(),
        }
    }

    /// Queues what a lost packet carried: behind what waits, or before it.
    pub(super) fn resend(&mut self, chunk: Chunk, first: bool) {
        match (chunk, first) {
            (Chunk::Message { offset, len }, true) => self.lost_messages.push_front((offset, len)),
            (Chunk::Message { offset, len }, false) => self.lost_messages.push_back((offset, len)),
            (Chunk::Block { block, offset, len }, true) => {
                self.lost_chunks.push_front(LostPiece { block, offset, len });
            }
            (Chunk::Block { block, offset, len }, false) => {
                self.lost_chunks.push_back(LostPiece { block, offset, len });
            }
        }
    }

    /// A resumed connection's first measurement, before anything was sent: what the ticket remembers was a guess.
    pub(super) fn on_first_round_trip(&mut self, now: Instant, rtt: Duration) {
        self.rtt = Rtt::new(now, rtt.max(Duration::from_micros(1)));
        self.controller = Controller::new(now, self.rtt.smoothed(), USUAL_DATAGRAM, self.mode);
        self.update_pacer(now);
    }

    /// The secret that belongs to a ticket of this connection.
    pub(crate) fn ticket_secret(&self, nonce: &[u8; 16]) -> Secret {
        self.resumption.derive("tk", nonce)
    }

    pub(crate) fn path_memory(&self) -> Option<PathMemory> {
        self.controller.path_memory()
    }

    pub(crate) fn proved(&self) -> Option<u64> {
        self.proved
    }

    pub(crate) fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// Whether the peer should get a ticket now: at first, and when what it tells of the path has become wrong.
    pub(crate) fn wants_ticket(&self, now: Instant) -> bool {
        if self.role != Role::Responder {
            return false;
        }
        match self.ticket_issued {
            None => true,
            Some((at, _)) if now.saturating_since(at) < TICKET_EVERY => false,
            Some((_, told)) => match (told, self.controller.path_memory()) {
                (Some(told), Some(now)) => told.rate.abs_diff(now.rate) > told.rate / 4,
                (None, Some(_)) => true,
                (_, None) => false,
            },
        }
    }

    pub(super) fn give_ticket(
        &mut self,
        now: Instant,
        proved: u64,
        memory: Option<PathMemory>,
        ticket: Option<IssuedTicket>,
    ) {
        self.proved.get_or_insert(proved);
        self.ticket_issued = Some((now, memory));
        self.tell_ticket = ticket.is_some();
        self.ticket = ticket;
        self.ticket_told_in = None;
    }

    /// Asks for an acknowledgement at once, which also shows the peer that we are there.
    pub(crate) fn ping(&mut self) {
        self.ping = true;
    }

    pub(crate) fn send_message(&mut self, message: &[u8]) -> Result<(), SendError> {
        if message.len() > self.max_message {
            Err(SendError::TooLarge)
        } else if self.messages_out.push(message) {
            Ok(())
        } else {
            Err(SendError::Blocked)
        }
    }

    pub(crate) fn send_block(&mut self, tag: u64, len: u32, priority: u8) -> Result<(), SendError> {
        if len == 0 {
            Err(SendError::TooLarge)
        } else if self.blocks.contains(tag) {
            Ok(())
        } else if self.blocks.len() >= self.max_blocks {
            Err(SendError::Blocked)
        } else {
            self.blocks.push(tag, len, priority);
            Ok(())
        }
    }

    pub(super) fn set_receive_window(&mut self, bytes: u32) {
        if bytes != self.own_window {
            self.own_window = bytes;
            self.tell_window = true;
        }
    }

    /// The rate data is paced at.
    pub(super) fn rate(&self) -> u64 {
        self.controller.rate().min(self.rate_limit.unwrap_or(u64::MAX)).max(1)
    }

    pub(super) fn update_pacer(&mut self, now: Instant) {
        let rate = self.rate();
        self.pacer.set_rate(now, rate, self.datagram);
    }

    /// To be called when `mtu` changed its mind.
    pub(super) fn resize(&mut self, now: Instant) {
        self.datagram = self.mtu.current();
        self.update_pacer(now);
    }

    pub(super) fn on_too_large(&mut self, now: Instant, len: usize) {
        if self.mtu.on_refused(len) {
            self.resize(now);
        }
    }

    /// When acknowledgements are sent (§8.1).
    pub(super) fn rhythm(&self) -> Rhythm {
        let own = Rhythm { interval: self.rtt.ack_interval(), packets: FIRST_PACKETS };
        self.rhythm_asked.map_or(own, |(r, _)| r)
    }

    pub(super) fn skip_interval(&mut self) -> u32 {
        SKIP_EVERY + self.random.next_u32() % SKIP_EVERY
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            rtt: self.rtt.smoothed(),
            rtt_min: self.rtt.min(),
            rate: self.rate(),
            delivered_rate: self.controller.delivered_rate(),
            state: self.controller.state(),
            bytes_in_flight: self.sent.in_flight_bytes(),
            datagram: self.datagram as u16,
            ecn: self.ecn.is_capable(),
            base_loss_ppm: self.controller.base_loss_ppm(),
            ..self.stats
        }
    }
}

impl core::fmt::Debug for Session {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Session")
            .field("path", &self.path)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
