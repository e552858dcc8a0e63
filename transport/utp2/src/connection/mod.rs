//! One connection: its phases, from the first INIT to the last CLOSE, and what an application may ask of it.
//!
//! The established state is [`session::Session`]; start there to see how bytes move, then [`send`] and [`receive`].

mod blocks;
mod closing;
pub(crate) mod ecn;
#[cfg(any(all(test, feature = "control"), feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod keys;
mod loss;
mod messages;
mod mtu;
pub(crate) mod pacing;
mod path;
mod ranges;
mod receive;
mod received;
mod replay;
mod ring;
mod rtt;
mod scoreboard;
mod send;
pub(crate) mod session;
mod timers;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use subtle::ConstantTimeEq;
use timebase::Instant;

pub use self::ranges::RangeSet;

use self::closing::Closing;
use self::session::{Fault, IssuedTicket, Session};
use crate::handshake::initiator::{self, Initiator};
use crate::handshake::responder::{self, Responder};
use crate::handshake::{Established, Local};
use crate::wire::Cid;
use crate::wire::handshake::Alert;
use crate::wire::header::{Header, Kind, ShortNumber};
use crate::{Arrival, Ecn, PathMemory, PeerIdentity, Resumption, SendError, Transmit};
use crate::{BlockSink, BlockSource, CloseReason, ContextId, Event, Handle, HandshakeFailure, Mode};

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
    /// Largest datagram the path is known to carry, UDP payload bytes.
    pub datagram: u16,
    /// Packets the network marked instead of dropping (ECN CE).
    pub marked_packets: u64,
    /// Whether the path carries ECN marks truthfully.
    pub ecn: bool,
    /// Learned loss that does not come from congestion, parts per million.
    pub base_loss_ppm: u32,
}

/// Codes of the protocol in CLOSE (§10).
mod code {
    pub(super) const NONE: u16 = 0xff00;
    pub(super) const VIOLATION: u16 = 0xff01;
    pub(super) const FLOW_CONTROL: u16 = 0xff02;
    pub(super) const MESSAGE_TOO_LONG: u16 = 0xff03;
    pub(super) const KEY_LIMIT: u16 = 0xff04;
}

#[derive(Debug)]
enum Phase {
    Initiating(Box<Initiator>),
    Responding(Box<Responder>),
    /// We proved ourselves; the peer's first protected packet will show that it knows.
    Confirming {
        session: Box<Session>,
        proof: Vec<Vec<u8>>,
        until: Instant,
        /// Early data was taken: the application knows already, and may answer.
        live: bool,
        since: Instant,
    },
    Established(Box<Session>),
    Closing(Box<Closing>),
    Dead,
}

/// One connection of an [`crate::Endpoint`].
#[derive(Debug)]
pub struct Connection {
    handle: Handle,
    context: ContextId,
    remote: SocketAddr,
    initiator: bool,
    phase: Phase,
    outbox: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    /// The application knows, or will know, of this connection.
    announced: bool,
    last_stats: Stats,
    last_memory: Option<PathMemory>,
    /// A memory told before there was a session to use it.
    recalled: Option<PathMemory>,
    /// An initiator's early messages until it is connected, how many of them the peer took, and whether the ticket
    /// was.
    early: Vec<Vec<u8>>,
    early_taken: usize,
    resumed: bool,
    peer: Option<PeerIdentity>,
}

impl Connection {
    pub(crate) fn initiate(
        handle: Handle,
        context: ContextId,
        remote: SocketAddr,
        initiator: Initiator,
        early: Vec<Vec<u8>>,
    ) -> Self {
        let phase = Phase::Initiating(Box::new(initiator));
        Self { early, ..Self::new(handle, context, remote, phase, true) }
    }

    /// Answers a RESUME of `received` bytes. `early` holds messages if they are taken.
    pub(crate) fn respond_resumed(
        handle: Handle,
        context: ContextId,
        now: Instant,
        (remote, received): (SocketAddr, usize),
        (established, resumed): (Established, Vec<u8>),
        early: Option<Vec<Vec<u8>>>,
        config: &crate::Config,
        seed: [u8; 32],
    ) -> Self {
        let mut session = Box::new(Session::new(now, handle, config, established, seed));
        session.path = path::Path::unproven(now, remote, received, resumed.len());
        let peer = session.peer.clone();
        let until = now + config.handshake_timeout;
        let (proof, live) = (alloc::vec![resumed.clone()], early.is_some());
        let phase = Phase::Confirming { session, proof, until, live, since: now };
        let mut this = Self::new(handle, context, remote, phase, false);
        this.outbox.push_back(resumed);
        this.resumed = true;
        if let Some(messages) = early {
            this.announced = true;
            this.peer = Some(peer);
            this.events.push_back(Event::Connected);
            this.events.extend(messages.into_iter().map(Event::EarlyMessage));
        }
        this
    }

    pub(crate) fn respond(
        handle: Handle,
        context: ContextId,
        remote: SocketAddr,
        responder: Responder,
    ) -> Self {
        let reply = responder.reply.clone();
        let mut this = Self::new(handle, context, remote, Phase::Responding(Box::new(responder)), false);
        this.outbox.push_back(reply);
        this
    }

    fn new(handle: Handle, context: ContextId, remote: SocketAddr, phase: Phase, initiator: bool) -> Self {
        Self {
            handle,
            context,
            remote,
            initiator,
            phase,
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            announced: initiator,
            last_stats: Stats::default(),
            last_memory: None,
            recalled: None,
            early: Vec::new(),
            early_taken: 0,
            resumed: false,
            peer: None,
        }
    }

    fn session(&self) -> Option<&Session> {
        match &self.phase {
            Phase::Established(session) | Phase::Confirming { session, live: true, .. } => Some(session),
            _ => None,
        }
    }

    fn session_mut(&mut self) -> Option<&mut Session> {
        match &mut self.phase {
            Phase::Established(session) | Phase::Confirming { session, live: true, .. } => Some(session),
            _ => None,
        }
    }

    /// Whether it came about by a ticket, in one round trip.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// How many of the early messages given to [`crate::Endpoint::connect_resumed`] the peer took as such; the
    /// others were queued as ordinary messages when the connection was established.
    pub fn early_taken(&self) -> usize {
        self.early_taken
    }

    /// Whether the peer has proved to be there now: false only between [`crate::Event::EarlyMessage`] and
    /// [`crate::Event::Confirmed`]. If that does not follow within [`crate::Config::handshake_timeout`], the
    /// connection ends.
    pub fn is_confirmed(&self) -> bool {
        !matches!(self.phase, Phase::Confirming { .. })
    }

    /// The context both sides proved to know.
    pub fn context(&self) -> ContextId {
        self.context
    }

    /// Who the peer is; `None` until [`crate::Event::Connected`].
    pub fn peer(&self) -> Option<&PeerIdentity> {
        self.peer.as_ref()
    }

    /// Where we send to now.
    pub fn remote(&self) -> SocketAddr {
        self.session().map_or(self.remote, |s| s.path.remote())
    }

    /// Where the peer has proved to be. While it seems to have moved, and has not shown that it gets what goes there, that
    /// is still the address before (§10): what concerns others, as forwarding to it or telling where it is, goes by this
    /// one. `None` before the peer has proved to be anywhere.
    pub fn proven_remote(&self) -> Option<SocketAddr> {
        self.session().and_then(|s| s.path.proven())
    }

    /// Tries to reach the peer at another address, which somebody has found to be its own: packets go there from now
    /// on, a few at first, and go on going there if the peer answers within a second (§10.8). If not, everything is as
    /// before. False if there is no session, the address is the present one, or another one is on trial.
    pub fn seek(&mut self, now: Instant, remote: SocketAddr) -> bool {
        self.session_mut().is_some_and(|s| s.seek(now, remote))
    }

    /// Whether we connected, rather than accepted.
    pub fn is_initiator(&self) -> bool {
        self.initiator
    }

    /// Whether messages and blocks can be sent: connected and not closing.
    pub fn is_established(&self) -> bool {
        self.session().is_some()
    }

    /// Queues a message: whole, in order, exactly once.
    ///
    /// # Errors
    /// [`SendError::Blocked`] when the buffer is full; then [`crate::Event::MessagesWritable`] will follow.
    /// [`SendError::TooLarge`] beyond the smaller of both sides' [`crate::Config::max_message`].
    pub fn send_message(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.session_mut().ok_or(SendError::Closed)?.send_message(message)
    }

    /// Bytes of messages (with 4 bytes each for the length) queued and not yet acknowledged.
    pub fn unacknowledged_message_bytes(&self) -> usize {
        self.session().map_or(0, |s| s.messages_out.buffered())
    }

    /// Queues `len` bytes of block `tag`, read through the source as they are sent. Higher `priority` goes first,
    /// equal ones in the order queued. Queueing a tag that is queued already is fine and changes nothing.
    ///
    /// # Errors
    /// [`SendError::Blocked`] when [`crate::Config::max_queued_blocks`] are queued, [`SendError::TooLarge`] if empty.
    pub fn send_block(&mut self, tag: u64, len: u32, priority: u8) -> Result<(), SendError> {
        self.session_mut().ok_or(SendError::Closed)?.send_block(tag, len, priority)
    }

    /// Forgets a queued block; nothing of it is sent from now on, and no event follows.
    pub fn cancel_block(&mut self, tag: u64) {
        if let Some(s) = self.session_mut() {
            s.blocks.remove(tag);
        }
    }

    /// Blocks queued and not wholly acknowledged.
    pub fn queued_blocks(&self) -> usize {
        self.session().map_or(0, |s| s.blocks.len())
    }

    /// Closes at once: what is queued or in flight is dropped. [`crate::Event::Closed`] follows. Codes from 0xff00
    /// on are the protocol's; the reason is cut at 256 bytes.
    pub fn close(&mut self, code: u16, reason: &str) {
        self.close_as(code, reason, CloseReason::Local);
    }

    /// Changes the bytes the peer may have in flight to us; 0 halts it.
    pub fn set_receive_window(&mut self, bytes: u32) {
        if let Some(s) = self.session_mut() {
            s.set_receive_window(bytes);
        }
    }

    /// Messages that [`crate::Event::Message`] gave while this is set do not yet count as taken, so the peer is held
    /// back once [`crate::Config::message_buffer`] bytes lie with the application; unsetting it counts them. For
    /// drivers that pass messages on to readers who may be slow. Not set by default.
    pub fn hold_messages(&mut self, hold: bool) {
        if let Some(s) = self.session_mut()
            && s.messages_in.hold(hold)
        {
            s.tell_window = true;
        }
    }

    /// Changes how long a silence is broken by a probe, to hold the state of NATs and firewalls on the way; `None`
    /// stops it. [`crate::Config::keep_alive`] is what a connection begins with.
    pub fn set_keep_alive(&mut self, after: Option<Duration>) {
        if let Some(s) = self.session_mut() {
            s.keep_alive = after;
        }
    }

    /// Changes how hard the connection competes.
    pub fn set_mode(&mut self, mode: Mode) {
        if let Some(s) = self.session_mut() {
            s.controller.set_mode(mode);
        }
    }

    /// Changes the upper limit of the sending rate, bytes/s of UDP payload.
    pub fn set_rate_limit(&mut self, limit: Option<u64>) {
        if let Some(s) = self.session_mut() {
            s.rate_limit = limit;
        }
    }

    /// The host refused to send a datagram of `len` bytes of UDP payload to the peer (`EMSGSIZE`). A hint that spares
    /// the path MTU search its time-outs (§3.1).
    pub fn on_too_large(&mut self, now: Instant, len: usize) {
        if let Some(s) = self.session_mut() {
            s.on_too_large(now, len);
        }
    }

    /// What was learned of the path so far, to be told to a later connection over it; the last, once the connection
    /// is closed. `None` while too little is known: nothing is learned while the application sends less than it may.
    pub fn path_memory(&self) -> Option<PathMemory> {
        self.session().map_or(self.last_memory, |s| s.controller.path_memory())
    }

    /// Tells what an earlier connection learned of this path ([`Connection::path_memory`]), best before
    /// [`crate::Event::Connected`]. If the round trip is borne out, sending begins near that rate (§9.8); a memory
    /// that turns out wrong costs about a round trip. Without effect once the rate has been found.
    pub fn recall_path(&mut self, memory: PathMemory) {
        self.recalled = Some(memory);
    }

    /// Counters and estimates; the last ones, once the connection is closed.
    pub fn stats(&self) -> Stats {
        self.session().map_or(self.last_stats, Session::stats)
    }

    /// Ends the connection for the reason given, telling the peer if there is a session.
    pub(crate) fn close_as(&mut self, code: u16, reason: &str, why: CloseReason) {
        let phase = core::mem::replace(&mut self.phase, Phase::Dead);
        match phase {
            Phase::Dead => return,
            Phase::Closing(_) => {
                self.phase = phase;
                return;
            }
            Phase::Established(session) | Phase::Confirming { session, live: true, .. } => {
                self.remote = session.path.remote();
                self.last_stats = session.stats();
                self.last_memory = session.controller.path_memory();
                self.phase = Phase::Closing(Box::new(Closing::new(*session, code, reason)));
            }
            Phase::Initiating(_) | Phase::Responding(_) | Phase::Confirming { .. } => self.outbox.clear(),
        }
        if self.announced {
            self.events.extend(self.last_memory.map(Event::PathLearned));
            self.events.push_back(Event::Closed(why));
        }
    }

    /// Shortens the closing phase, if there is one.
    pub(crate) fn hasten_end(&mut self, now: Instant) {
        if let Phase::Closing(c) = &mut self.phase {
            c.hasten(now);
        }
    }

    fn fail(&mut self, fault: Fault) {
        let (code, why) = match fault {
            Fault::Violation(what) => (code::VIOLATION, CloseReason::ProtocolViolation(what)),
            Fault::FlowControl => {
                (code::FLOW_CONTROL, CloseReason::ProtocolViolation("sent beyond the message limit"))
            }
            Fault::MessageTooLong => {
                (code::MESSAGE_TOO_LONG, CloseReason::ProtocolViolation("message too long"))
            }
            Fault::KeyLimit => (code::KEY_LIMIT, CloseReason::KeyLimit),
            Fault::Peer { code, reason } => {
                self.end(CloseReason::Peer { code, reason });
                return;
            }
        };
        self.close_as(code, "", why);
    }

    /// Ends the connection without a word to the peer.
    fn end(&mut self, why: CloseReason) {
        self.last_stats = self.stats();
        self.last_memory = self.path_memory();
        self.remote = self.remote();
        if !matches!(self.phase, Phase::Dead | Phase::Closing(_)) && self.announced {
            self.events.extend(self.last_memory.map(Event::PathLearned));
            self.events.push_back(Event::Closed(why));
        }
        self.phase = Phase::Dead;
        self.outbox.clear();
    }

    /// Somebody at `from` says that he does not speak our version. Believed only of the one we asked, and only until
    /// he has answered in it.
    pub(crate) fn on_other_version(&mut self, from: SocketAddr) {
        if let Phase::Initiating(i) = &self.phase
            && from == self.remote
            && !i.is_answered()
        {
            self.end(CloseReason::HandshakeFailed(HandshakeFailure::Version));
        }
    }

    /// A RESET that may be for this connection. To a CLOSE it is the answer of a peer that took the one before (§10.1).
    pub(crate) fn on_reset(&mut self, token: &[u8; 16]) {
        let known = match &self.phase {
            Phase::Closing(c) => Some(c.peer_reset),
            _ => self.session().map(|s| s.peer_reset),
        };
        if known.is_some_and(|known| known != [0; 16] && known.ct_eq(token).into()) {
            self.end(CloseReason::Reset);
        }
    }

    /// The CID the peer chose, once there is a session.
    pub(crate) fn remote_cid(&self) -> Option<Cid> {
        self.session().map(|s| s.remote_cid)
    }

    /// The session, if its peer should get a ticket now.
    pub(crate) fn wants_ticket(&self, now: Instant) -> Option<&Session> {
        match &self.phase {
            Phase::Established(s) if s.wants_ticket(now) => Some(s),
            _ => None,
        }
    }

    pub(crate) fn give_ticket(
        &mut self,
        now: Instant,
        proved: u64,
        memory: Option<PathMemory>,
        ticket: Option<IssuedTicket>,
    ) {
        if let Some(s) = self.session_mut() {
            s.give_ticket(now, proved, memory, ticket);
        }
    }

    pub(crate) fn remove_context(&mut self) {
        self.close_as(code::NONE, "", CloseReason::ContextRemoved);
    }

    /// Whether this counts against the limit of half-open handshakes.
    pub(crate) fn is_half_open(&self) -> bool {
        matches!(self.phase, Phase::Responding(_) | Phase::Confirming { .. })
    }

    /// Whether the peer has shown nothing yet but that it receives at its address.
    pub(crate) fn is_unproven(&self) -> bool {
        matches!(&self.phase, Phase::Responding(r) if !r.is_proving())
    }

    /// Gives up a handshake nobody else knows of.
    pub(crate) fn abandon(&mut self) {
        if self.is_unproven() {
            self.end(CloseReason::HandshakeFailed(HandshakeFailure::Busy));
        }
    }

    /// Whether nothing is left to do but to tell the application.
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.phase, Phase::Dead) && self.outbox.is_empty()
    }

    pub(crate) fn is_announced(&self) -> bool {
        self.announced
    }

    pub(crate) fn has_events(&self) -> bool {
        self.announced
            && (!self.events.is_empty()
                || self.session().is_some_and(|s| !s.events.is_empty() || s.new_ticket.is_some()))
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        if !self.announced {
            return None;
        }
        if let Some(e) = self.events.pop_front() {
            return Some(e);
        }
        let context = self.context;
        let session = self.session_mut()?;
        let Some(e) = session.events.pop_front() else {
            let t = session.new_ticket.take()?;
            return Some(Event::Resumption(Resumption {
                context,
                peer: session.peer.clone(),
                secret: session.ticket_secret(&t.nonce),
                ticket: t.bytes,
                lifetime: t.lifetime,
                memory: None,
            }));
        };
        if let Event::Message(m) = &e {
            session.on_message_taken(m.len());
        }
        Some(e)
    }

    /// A repeated INIT: the REPLY was lost, or is on its way.
    pub(crate) fn on_repeated_init(&mut self) {
        if !self.outbox.is_empty() {
            return;
        }
        match &self.phase {
            Phase::Responding(r) => self.outbox.push_back(r.reply.clone()),
            Phase::Confirming { session, proof, .. } if session.resumed => {
                // Half of what such a packet allows; the rest is for early answers.
                self.outbox.extend(proof.iter().cloned());
            }
            _ => {}
        }
    }

    pub(crate) fn handle_datagram(
        &mut self,
        now: Instant,
        arrival: Arrival,
        header: &Header,
        data: &mut [u8],
        local: &Local<'_>,
        seed: [u8; 32],
        sink: &mut dyn BlockSink,
    ) {
        match *header {
            Header::Protected { phase, number, .. } => {
                self.on_protected(now, arrival, (phase, number), data, sink)
            }
            Header::Handshake { kind, .. } => self.on_handshake(now, arrival.remote, kind, data, local, seed),
            Header::OtherVersion { .. } => {}
        }
    }

    fn on_protected(
        &mut self,
        now: Instant,
        arrival: Arrival,
        packet: (bool, ShortNumber),
        data: &mut [u8],
        sink: &mut dyn BlockSink,
    ) {
        let session = match &mut self.phase {
            Phase::Established(s) => s,
            Phase::Confirming { session, .. } => session,
            Phase::Closing(c) => {
                c.on_packet(now);
                return;
            }
            Phase::Initiating(_) | Phase::Responding(_) | Phase::Dead => return,
        };
        let result = session.receive(now, arrival, packet, data, sink);
        if let (Phase::Confirming { .. }, Ok(true) | Err(_)) = (&self.phase, &result)
            && let Phase::Confirming { mut session, live, since, .. } =
                core::mem::replace(&mut self.phase, Phase::Dead)
        {
            session.path.on_confirmed();
            if live {
                self.events.push_back(Event::Confirmed);
            }
            if session.resumed && !live {
                session.on_first_round_trip(now, now.saturating_since(since));
            }
            self.establish(session);
        }
        if let Err(fault) = result {
            self.fail(fault);
        }
    }

    fn establish(&mut self, session: Box<Session>) {
        self.resumed = session.resumed;
        if self.peer.is_none() {
            self.announced = true;
            self.peer = Some(session.peer.clone());
            self.events.push_back(Event::Connected);
        }
        self.phase = Phase::Established(session);
    }

    fn on_handshake(
        &mut self,
        now: Instant,
        from: SocketAddr,
        kind: Kind,
        data: &mut [u8],
        local: &Local<'_>,
        seed: [u8; 32],
    ) {
        match (&mut self.phase, kind) {
            (Phase::Initiating(i), _) => {
                // The one we asked, and nobody else.
                if from != self.remote {
                    return;
                }
                let progress = match kind {
                    Kind::Retry => {
                        i.on_retry(now, data);
                        initiator::Progress::Wait
                    }
                    Kind::Reply => i.on_reply(now, data, local),
                    Kind::Prove => i.on_prove(now, from, data, local),
                    Kind::Resumed => i.on_resumed(now, from, data),
                    Kind::Alert => i.on_alert(now, data),
                    Kind::Init | Kind::Resume | Kind::Reset => initiator::Progress::Wait,
                };
                match progress {
                    initiator::Progress::Wait => {}
                    initiator::Progress::Done(e) => {
                        self.early_taken = i.early_taken;
                        let mut session = self.new_session(now, *e, local, seed);
                        session.ping();
                        for m in core::mem::take(&mut self.early).iter().skip(self.early_taken) {
                            // The buffer is empty and its half was asked for; a peer that takes only shorter ones
                            // gets none.
                            let _ = session.send_message(m);
                        }
                        self.establish(session);
                    }
                    initiator::Progress::Failed(why) => self.end(CloseReason::HandshakeFailed(why)),
                    initiator::Progress::Refuse(peer) => {
                        self.end(CloseReason::HandshakeFailed(HandshakeFailure::Unauthorized));
                        self.refuse(&peer);
                    }
                }
            }
            (Phase::Responding(r), Kind::Prove) => {
                let peer = r.remote_cid();
                match r.on_prove(now, from, data, local) {
                    responder::Progress::Wait => {}
                    responder::Progress::Refuse => self.refuse(&peer),
                    responder::Progress::Drop => {
                        self.phase = Phase::Dead;
                        self.refuse(&peer);
                    }
                    responder::Progress::Done(e, proof) => {
                        self.remote = from;
                        let session = self.new_session(now, *e, local, seed);
                        self.outbox = proof.iter().cloned().collect();
                        let until = now + local.config.handshake_timeout;
                        self.phase = Phase::Confirming { session, proof, until, live: false, since: now };
                    }
                }
            }
            (Phase::Confirming { session, proof, .. }, Kind::Prove) if !session.resumed => {
                // Our proof was lost: one repetition of it per repetition of theirs (§5.6).
                let first = crate::wire::handshake::ProveHead::parse(data).is_ok_and(|h| h.index == 0);
                if first && self.outbox.is_empty() && from == self.remote {
                    self.outbox.extend(proof.iter().cloned());
                }
            }
            // Who resumes has nothing to refuse; and an ALERT is anybody's word.
            (Phase::Confirming { session, .. }, Kind::Alert) if from == self.remote && !session.resumed => {
                self.end(CloseReason::HandshakeFailed(HandshakeFailure::Refused));
            }
            _ => {}
        }
    }

    fn refuse(&mut self, peer: &Cid) {
        let mut alert = Vec::new();
        Alert::Refused.emit(peer, &mut alert);
        self.outbox.clear();
        self.outbox.push_back(alert);
    }

    fn new_session(&self, now: Instant, e: Established, local: &Local<'_>, seed: [u8; 32]) -> Box<Session> {
        Box::new(Session::new(now, self.handle, local.config, e, seed))
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Initiating(i) => Some(i.next_timeout()),
            Phase::Responding(r) => Some(r.until),
            Phase::Confirming { session, until, live, .. } => {
                let own = if *live { session.next_timeout() } else { None };
                Some(own.map_or(*until, |t| t.min(*until)))
            }
            Phase::Established(s) => s.next_timeout(),
            Phase::Closing(c) => c.next_timeout(),
            Phase::Dead => None,
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let timed_out = CloseReason::HandshakeFailed(HandshakeFailure::Timeout);
        let ended = match &mut self.phase {
            Phase::Initiating(i) => (!i.on_timeout(now)).then(|| CloseReason::HandshakeFailed(i.failure())),
            Phase::Established(s) => (!s.on_timeout(now)).then_some(CloseReason::IdleTimeout),
            // Of these the application never heard, or has heard the end.
            Phase::Responding(r) => (r.until <= now).then_some(timed_out),
            Phase::Confirming { session, until, live, .. } => {
                (*until <= now || *live && !session.on_timeout(now)).then_some(timed_out)
            }
            Phase::Closing(c) => c.on_timeout(now).then_some(CloseReason::Local),
            Phase::Dead => None,
        };
        if let Some(why) = ended {
            self.end(why);
        }
    }

    pub(crate) fn poll_transmit(
        &mut self,
        now: Instant,
        max_segments: usize,
        buf: &mut Vec<u8>,
        source: &mut dyn BlockSource,
    ) -> Option<Transmit> {
        if let Phase::Initiating(i) = &mut self.phase {
            self.outbox.append(&mut i.outbox);
        }
        if let Some(datagram) = self.outbox.pop_front() {
            buf.extend_from_slice(&datagram);
            return Some(Transmit {
                remote: self.remote,
                len: buf.len(),
                segment_size: None,
                ecn: Ecn::NotEct,
            });
        }
        if let Phase::Established(s) = &mut self.phase
            && let Some(memory) = self.recalled.take()
        {
            s.controller.recall(now, memory);
        }
        if let Phase::Established(s) | Phase::Confirming { session: s, live: true, .. } = &mut self.phase {
            match s.transmit(now, max_segments, buf, source) {
                Ok(transmit) => return transmit,
                Err(fault) => {
                    buf.clear();
                    self.fail(fault);
                }
            }
        }
        match &mut self.phase {
            Phase::Closing(c) => {
                let remote = self.remote;
                c.emit(now, buf).then_some(Transmit {
                    remote,
                    len: buf.len(),
                    segment_size: None,
                    ecn: Ecn::NotEct,
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
impl Connection {
    /// Sends longer messages than the peer agreed to.
    pub(crate) fn force_max_message(&mut self, bytes: usize) {
        if let Some(s) = self.session_mut() {
            s.max_message = bytes;
        }
    }
}
