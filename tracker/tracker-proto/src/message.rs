//! The datagrams (`PROTOCOL.md` §3.4 to §3.10). Parsing is total and strict: any bytes give a message or a
//! [`ParseError`], and what parses is encoded to the same bytes again.

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use subtle::ConstantTimeEq;

use crate::entry::{Entry, emit_socket, parse_socket, socket_len};
use crate::key::{PeerId, SwarmId, SwarmKey};
use crate::limits::{DATAGRAM_MAX, INTERVAL_MAX, INTERVAL_MIN, PEERS_PER_REPLY};
use crate::wire::{HEADER_LEN, ParseError, Reader, emit_header, kind};

/// Bytes of a [`CookieReply`].
pub const COOKIE_REPLY_LEN: usize = HEADER_LEN + 8 + 16;

/// Matches an answer to its request; unpredictable, so that only the tracker on the path can answer.
pub type Transaction = [u8; 8];

/// Shows that its bearer receives at the address it sends from; zeros = none yet.
pub type Cookie = [u8; 16];

/// No cookie yet.
pub const NO_COOKIE: Cookie = [0; 16];

/// Agent → tracker: list me, and tell me of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// Repeated in the answer.
    pub transaction: Transaction,
    /// As given by the tracker, or [`NO_COOKIE`].
    pub cookie: Cookie,
    /// The swarm to be listed in.
    pub swarm: SwarmId,
    /// What the agent says about itself.
    pub entry: Entry,
}

impl Announce {
    /// Appends the message, padded with zeros to `pad_to` bytes (at most [`DATAGRAM_MAX`]): the room that
    /// the tracker has for its answer.
    pub fn emit(&self, out: &mut Vec<u8>, pad_to: usize) {
        let start = out.len();
        emit_header(out, kind::ANNOUNCE);
        out.extend_from_slice(&self.transaction);
        out.extend_from_slice(&self.cookie);
        out.extend_from_slice(&self.swarm.0);
        self.entry.emit(out);
        let len = (out.len() - start).max(pad_to.min(DATAGRAM_MAX));
        out.resize(start + len, 0);
    }

    /// Parses a whole datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::message_of(bytes, kind::ANNOUNCE)?;
        let message = Self {
            transaction: r.array()?,
            cookie: r.array()?,
            swarm: SwarmId(r.array()?),
            entry: Entry::parse(&mut r)?,
        };
        r.padding()?;
        Ok(message)
    }
}

/// Tracker → agent: ask again with this cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieReply {
    /// Of the request.
    pub transaction: Transaction,
    /// To be sent in the next request.
    pub cookie: Cookie,
}

impl CookieReply {
    /// Appends the message.
    pub fn emit(&self, out: &mut Vec<u8>) {
        emit_header(out, kind::COOKIE);
        out.extend_from_slice(&self.transaction);
        out.extend_from_slice(&self.cookie);
    }
}

/// One peer in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPeer {
    /// Where the tracker saw the announcement come from; not covered by the entry's MAC.
    pub observed: SocketAddr,
    /// What the peer says about itself.
    pub entry: Entry,
}

impl ListedPeer {
    /// Bytes that the peer takes in an answer.
    pub fn encoded_len(&self) -> usize {
        socket_len(self.observed) + self.entry.encoded_len()
    }
}

/// Tracker → agent: you are listed (unless `full`), and here are others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeersReply {
    /// Of the request.
    pub transaction: Transaction,
    /// To be sent in the next request.
    pub cookie: Cookie,
    /// Time until the next announcement; whole seconds, 1 s to 1 h (clamped when emitted).
    pub interval: Duration,
    /// There was no room to list the asker.
    pub full: bool,
    /// Where the tracker sees the asker.
    pub observed: SocketAddr,
    /// At most [`PEERS_PER_REPLY`] (the rest is not emitted).
    pub peers: Vec<ListedPeer>,
}

impl PeersReply {
    /// Bytes of an answer without peers to an asker seen at `observed`.
    pub fn empty_len(observed: SocketAddr) -> usize {
        COOKIE_REPLY_LEN + 2 + 1 + socket_len(observed) + 1
    }

    /// Appends the message. Observed addresses are to be canonical and real, as a socket gives them.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let peers = &self.peers[..self.peers.len().min(PEERS_PER_REPLY)];
        let interval = self.interval.clamp(INTERVAL_MIN, INTERVAL_MAX).as_secs();
        emit_header(out, kind::PEERS);
        out.extend_from_slice(&self.transaction);
        out.extend_from_slice(&self.cookie);
        out.extend_from_slice(&u16::try_from(interval).expect("clamped to an hour").to_be_bytes());
        out.push(u8::from(self.full));
        emit_socket(self.observed, out);
        out.push(u8::try_from(peers.len()).expect("at most PEERS_PER_REPLY"));
        for peer in peers {
            emit_socket(peer.observed, out);
            peer.entry.emit(out);
        }
    }

    fn parse_body(r: &mut Reader<'_>) -> Result<Self, ParseError> {
        let (transaction, cookie) = (r.array()?, r.array()?);
        let seconds = r.u16()?;
        let interval = Duration::from_secs(u64::from(seconds));
        if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
            return Err(ParseError::Interval(seconds));
        }
        let full = match r.u8()? {
            0 => false,
            1 => true,
            other => return Err(ParseError::Flags(other)),
        };
        let observed = parse_socket(r)?;
        let count = r.u8()?;
        if usize::from(count) > PEERS_PER_REPLY {
            return Err(ParseError::Count(count));
        }
        let peers = (0..count)
            .map(|_| Ok(ListedPeer { observed: parse_socket(r)?, entry: Entry::parse(r)? }))
            .collect::<Result<_, _>>()?;
        Ok(Self { transaction, cookie, interval, full, observed, peers })
    }
}

/// Agent → tracker: tell this member that I am calling it (§3.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Random; never answered.
    pub transaction: Transaction,
    /// As given by the tracker.
    pub cookie: Cookie,
    /// The swarm of both.
    pub swarm: SwarmId,
    /// Who is called.
    pub callee: PeerId,
    /// What the caller says about itself.
    pub entry: Entry,
}

impl Call {
    /// Appends the message, padded with zeros to `pad_to` bytes (at most [`DATAGRAM_MAX`]): the room that the tracker
    /// has for rings.
    pub fn emit(&self, out: &mut Vec<u8>, pad_to: usize) {
        let start = out.len();
        emit_header(out, kind::CALL);
        out.extend_from_slice(&self.transaction);
        out.extend_from_slice(&self.cookie);
        out.extend_from_slice(&self.swarm.0);
        out.extend_from_slice(&self.callee.0);
        self.entry.emit(out);
        let len = (out.len() - start).max(pad_to.min(DATAGRAM_MAX));
        out.resize(start + len, 0);
    }

    /// Parses a whole datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::message_of(bytes, kind::CALL)?;
        let message = Self {
            transaction: r.array()?,
            cookie: r.array()?,
            swarm: SwarmId(r.array()?),
            callee: PeerId(r.array()?),
            entry: Entry::parse(&mut r)?,
        };
        r.padding()?;
        Ok(message)
    }
}

/// Tracker → agent: this member is calling you (§3.9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// The swarm of both.
    pub swarm: SwarmId,
    /// Where the tracker saw the call come from; not covered by the entry's MAC.
    pub observed: SocketAddr,
    /// What the caller says about itself.
    pub entry: Entry,
}

impl Ring {
    /// Bytes of the message.
    pub fn encoded_len(&self) -> usize {
        HEADER_LEN + 32 + socket_len(self.observed) + self.entry.encoded_len()
    }

    /// Appends the message. The observed address is to be canonical and real, as a socket gives it.
    pub fn emit(&self, out: &mut Vec<u8>) {
        emit_header(out, kind::RING);
        out.extend_from_slice(&self.swarm.0);
        emit_socket(self.observed, out);
        self.entry.emit(out);
    }
}

/// What a tracker takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToTracker {
    /// List me.
    Announce(Announce),
    /// Ring somebody.
    Call(Call),
}

impl ToTracker {
    /// Parses a whole datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        match Reader::message(bytes)?.0 {
            kind::CALL => Call::parse(bytes).map(Self::Call),
            _ => Announce::parse(bytes).map(Self::Announce),
        }
    }
}

/// What a tracker may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromTracker {
    /// Ask again with this cookie.
    Cookie(CookieReply),
    /// Others in the swarm.
    Peers(PeersReply),
    /// Somebody calls.
    Ring(Ring),
}

impl FromTracker {
    /// Parses a whole datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (kind, mut r) = Reader::message(bytes)?;
        let message = match kind {
            kind::COOKIE => Self::Cookie(CookieReply { transaction: r.array()?, cookie: r.array()? }),
            kind::PEERS => Self::Peers(PeersReply::parse_body(&mut r)?),
            kind::RING => Self::Ring(Ring {
                swarm: SwarmId(r.array()?),
                observed: parse_socket(&mut r)?,
                entry: Entry::parse(&mut r)?,
            }),
            other => return Err(ParseError::Kind(other)),
        };
        r.end()?;
        Ok(message)
    }

    /// The transaction of the request that this answers, if it is an answer.
    pub fn transaction(&self) -> Option<Transaction> {
        match self {
            Self::Cookie(m) => Some(m.transaction),
            Self::Peers(m) => Some(m.transaction),
            Self::Ring(_) => None,
        }
    }
}

/// Agent ↔ agent: does the way between us work? (§3.10)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The swarm of both.
    pub swarm: SwarmId,
    /// Who sends it.
    pub from: PeerId,
    /// For whom it is.
    pub to: PeerId,
    /// A value of the sender's.
    pub mine: [u8; 8],
    /// The receiver's value that this answers; zeros: a question.
    pub yours: [u8; 8],
    /// Made by [`Probe::sign`].
    pub mac: [u8; 16],
}

/// Bytes of a [`Probe`].
pub const PROBE_LEN: usize = HEADER_LEN + 32 + 16 + 16 + 8 + 8 + 16;

impl Probe {
    /// Makes a probe.
    pub fn sign(key: &SwarmKey, from: PeerId, to: PeerId, mine: [u8; 8], yours: [u8; 8]) -> Self {
        let mut probe = Self { swarm: key.swarm(), from, to, mine, yours, mac: [0; 16] };
        probe.mac = probe.expected_mac(key);
        probe
    }

    /// Whether a member of the swarm made it, in constant time.
    pub fn verify(&self, key: &SwarmKey) -> bool {
        self.expected_mac(key).ct_eq(&self.mac).into()
    }

    fn expected_mac(&self, key: &SwarmKey) -> [u8; 16] {
        let mut body = Vec::with_capacity(PROBE_LEN);
        self.emit_body(&mut body);
        key.probe_mac(&body)
    }

    fn emit_body(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.swarm.0);
        out.extend_from_slice(&self.from.0);
        out.extend_from_slice(&self.to.0);
        out.extend_from_slice(&self.mine);
        out.extend_from_slice(&self.yours);
    }

    /// Appends the message.
    pub fn emit(&self, out: &mut Vec<u8>) {
        emit_header(out, kind::PROBE);
        self.emit_body(out);
        out.extend_from_slice(&self.mac);
    }

    /// Parses a whole datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::message_of(bytes, kind::PROBE)?;
        let message = Self {
            swarm: SwarmId(r.array()?),
            from: PeerId(r.array()?),
            to: PeerId(r.array()?),
            mine: r.array()?,
            yours: r.array()?,
            mac: r.array()?,
        };
        r.end()?;
        Ok(message)
    }
}

/// Agent → multicast group: I am here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanAnnounce {
    /// The swarm that the entry belongs to.
    pub swarm: SwarmId,
    /// What the agent says about itself.
    pub entry: Entry,
}

impl LanAnnounce {
    /// Appends the message.
    pub fn emit(&self, out: &mut Vec<u8>) {
        emit_header(out, kind::LAN_ANNOUNCE);
        out.extend_from_slice(&self.swarm.0);
        self.entry.emit(out);
    }

    /// Parses a whole datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::message_of(bytes, kind::LAN_ANNOUNCE)?;
        let message = Self { swarm: SwarmId(r.array()?), entry: Entry::parse(&mut r)? };
        r.end()?;
        Ok(message)
    }
}
