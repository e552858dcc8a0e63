//! The handshake with a ticket: one round trip, X25519 for forward secrecy (PROTOCOL.md §5.8). Pure functions on both
//! sides' bytes; [`super::initiator`] and the endpoint hold the state.

use alloc::vec::Vec;

use zeroize::Zeroizing;

use super::{Established, Local, Role};
use crate::crypto::aead::PacketKey;
use crate::crypto::exchange::Share;
use crate::crypto::kdf::{Secret, hash};
use crate::handshake::ticket::Ticket;
use crate::wire::handshake::{Params, RESUME_HEAD, RESUME_TICKET, Resume, ResumeHead, Resumed, SUITE_RESUME};
use crate::wire::header::TAG;
use crate::wire::{Cid, Reader};
use crate::{Config, Resumption};
use core::net::SocketAddr;
use core::time::Duration;

/// Bit of RESUMED's flags: the early data was taken.
const EARLY_TAKEN: u8 = 1;
/// Bytes before each early message.
const EARLY_PREFIX: usize = 2;

/// Keys that follow from a RESUME alone.
#[derive(Debug)]
struct Early {
    secret: Secret,
    tr1: [u8; 32],
}

impl Early {
    /// `resume` up to the end of the ticket; the cookie decides nothing and is left out.
    fn new(resume: &[u8], ticket_end: usize, ticket_secret: &Secret, context_secret: &Secret) -> Self {
        let tr1 = hash(&[b"utp2 resume 2", &resume[..RESUME_HEAD], &resume[RESUME_TICKET..ticket_end]]);
        let both = Zeroizing::new([ticket_secret.0, context_secret.0].concat());
        Self { secret: Secret::extract(&tr1, &both), tr1 }
    }

    fn key(&self) -> PacketKey {
        PacketKey::of_handshake(self.secret.expand("early", &self.tr1))
    }

    /// Mixes the shares in.
    fn complete(&self, sealed: &[u8], resumed: &[u8], shared: &[u8; 32]) -> Handshake {
        let tr2 = hash(&[&self.tr1, &hash(&[sealed]), &resumed[..RESUME_HEAD]]);
        let derived = self.secret.derive("derived", &self.tr1);
        let both = Zeroizing::new([derived.0, *shared].concat());
        Handshake { secret: Secret::extract(&tr2, &both), tr2 }
    }
}

struct Handshake {
    secret: Secret,
    tr2: [u8; 32],
}

impl Handshake {
    fn key(&self) -> PacketKey {
        PacketKey::of_handshake(self.secret.expand("hs r", &self.tr2))
    }

    /// Traffic and resumption secrets: seal, open, resumption.
    fn finish(&self, role: Role, body: &[u8]) -> (Secret, Secret, Secret) {
        let th4 = hash(&[&self.tr2, body]);
        let traffic = |r: Role| self.secret.derive(r.pick("ap i", "ap r"), &th4);
        (traffic(role), traffic(role.other()), self.secret.derive("rs", &th4))
    }
}

/// An initiator's RESUME under way.
#[derive(Debug)]
pub(crate) struct Resuming {
    early: Early,
    sealed: Vec<u8>,
    share: Share,
    resumption: Resumption,
    head: ResumeHead,
    /// How many of the messages offered went along.
    pub(crate) early_sent: usize,
}

impl Resuming {
    pub(crate) fn new(
        config: &Config,
        resumption: Resumption,
        context_secret: &Secret,
        (cid, nonce, exponent): (Cid, [u8; 32], [u8; 32]),
        reset_token: [u8; 16],
        messages: &[Vec<u8>],
    ) -> Self {
        let share = Share::new(exponent);
        let head = ResumeHead { source: cid, suite: SUITE_RESUME, nonce, share: share.public() };
        let mut datagram = Vec::new();
        head.emit(&[], &resumption.ticket, &mut datagram);
        let early = Early::new(&datagram, datagram.len(), &resumption.secret, context_secret);
        let mut sealed = Vec::new();
        Params::of(config, reset_token).emit(&mut sealed);
        let mut early_sent = 0;
        for m in messages {
            if datagram.len() + 2 + sealed.len() + EARLY_PREFIX + m.len() + TAG > Resume::SIZE {
                break;
            }
            sealed.extend_from_slice(&(m.len() as u16).to_be_bytes());
            sealed.extend_from_slice(m);
            early_sent += 1;
        }
        let tag = early.key().seal(0, &mut sealed, 0);
        sealed.extend_from_slice(&tag);
        Self { early, sealed, share, resumption, head, early_sent }
    }

    /// The datagram to send, with the cookie asked for.
    pub(crate) fn datagram(&self, cookie: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(Resume::SIZE);
        self.head.emit(cookie, &self.resumption.ticket, &mut out);
        out.extend_from_slice(&(self.sealed.len() as u16).to_be_bytes());
        out.extend_from_slice(&self.sealed);
        out.resize(Resume::SIZE.max(out.len()), 0);
        out
    }

    /// Takes a RESUMED; `None` if it is not authentic. The caller knows the round trip.
    pub(crate) fn on_resumed(&self, from: SocketAddr, datagram: &mut [u8]) -> Option<(Established, bool)> {
        let resumed = Resumed::parse(datagram).ok()?;
        if resumed.suite != SUITE_RESUME {
            return None;
        }
        let shared = self.share.shared(resumed.share)?;
        let hs = self.early.complete(&self.sealed, datagram, shared.as_bytes());
        let body = hs.key().open(0, datagram, RESUME_HEAD).ok()?;
        let mut r = Reader::new(body);
        let params = Params::parse(&mut r).ok()?;
        let flags = r.u8().ok()?;
        let (seal, open, resumption) = hs.finish(Role::Initiator, body);
        let established = Established {
            seal,
            open,
            resumption,
            remote_cid: resumed.source,
            remote: from,
            peer: self.resumption.peer.clone(),
            params,
            rtt: Duration::ZERO,
            role: Role::Initiator,
            resumed: true,
            proved: None,
        };
        Some((established, flags & EARLY_TAKEN != 0))
    }
}

/// A RESUME whose ticket was opened: what it says, if it is authentic.
pub(crate) struct Opened {
    early: Early,
    params: Params,
    pub(crate) messages: Vec<Vec<u8>>,
}

impl Opened {
    /// Opens the sealed part; `None` if the ticket's or the context's secret is not theirs.
    pub(crate) fn new(
        datagram: &[u8],
        resume: &Resume<'_>,
        ticket: &Ticket,
        context_secret: &Secret,
        max_message: usize,
    ) -> Option<Self> {
        let end = RESUME_TICKET + 2 + resume.ticket.len();
        let early = Early::new(datagram, end, &ticket.secret, context_secret);
        let mut sealed = Zeroizing::new(resume.sealed.to_vec());
        let body = early.key().open(0, &mut sealed, 0).ok()?;
        let mut r = Reader::new(body);
        let params = Params::parse(&mut r).ok()?;
        let mut messages = Vec::new();
        while !r.is_empty() {
            let len = usize::from(r.u16().ok()?);
            if len > max_message {
                return None;
            }
            messages.push(r.bytes(len).ok()?.to_vec());
        }
        Some(Self { early, params, messages })
    }

    /// Keys, and the RESUMED to send; `None` if the share is none.
    pub(crate) fn answer(
        &self,
        resume: &Resume<'_>,
        ticket: Ticket,
        local: &Local<'_>,
        (cid, nonce, exponent): (Cid, [u8; 32], [u8; 32]),
        from: SocketAddr,
        early_taken: bool,
    ) -> Option<(Established, Vec<u8>)> {
        let share = Share::new(exponent);
        let shared = share.shared(resume.head.share)?;
        let head = ResumeHead { source: cid, suite: SUITE_RESUME, nonce, share: share.public() };
        let mut out = Vec::new();
        head.emit_answer(&resume.head.source, &mut out);
        let hs = self.early.complete(resume.sealed, &out, shared.as_bytes());
        Params::of(local.config, local.reset_token).emit(&mut out);
        out.push(if early_taken { EARLY_TAKEN } else { 0 });
        let (seal, open, resumption) = hs.finish(Role::Responder, &out[RESUME_HEAD..]);
        let tag = hs.key().seal(0, &mut out, RESUME_HEAD);
        out.extend_from_slice(&tag);
        let established = Established {
            seal,
            open,
            resumption,
            remote_cid: resume.head.source,
            remote: from,
            peer: ticket.peer,
            params: self.params,
            // Nothing was measured; a packet will tell. What the ticket remembers is the best guess.
            rtt: ticket.memory.map_or(UNKNOWN_RTT, |m| m.rtt_min),
            role: Role::Responder,
            resumed: true,
            proved: Some(ticket.proved),
        };
        Some((established, out))
    }
}

/// Round trip assumed of a path nobody remembers.
const UNKNOWN_RTT: Duration = Duration::from_millis(300);
