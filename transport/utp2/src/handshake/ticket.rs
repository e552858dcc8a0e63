//! Resumption tickets on the responder's side: sealed under keys that change, opened again, and struck off when their
//! early data was taken (PROTOCOL.md §5.8). Read first: [`super::resume`] for the handshake that uses them.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use timebase::Instant;

use crate::crypto::aead::PacketKey;
use crate::crypto::kdf::Secret;
use crate::resumption::{MEMORY, emit_memory, parse_memory};
use crate::wire::Reader;
use crate::wire::header::TAG;
use crate::{ContextId, PathMemory, PeerIdentity};

/// Seconds a ticket is good for, and after which a new key is used. The key before opens too: so none outlives its key.
pub(crate) const LIFETIME: u64 = 12 * 3600;
/// Seconds since the last full handshake after which a peer has to prove everything anew.
const CHAIN: u64 = 7 * 24 * 3600;
/// Longest credential that fits into a ticket; a peer with a longer one gets none.
pub(crate) const MAX_TICKET_CREDENTIAL: usize = 512;
const HEAD: usize = 4 + NONCE;
const FIXED: usize = 1 + 8 + 8 + 8 + 16 + 32 + MEMORY + 32 + 2;
/// Longest ticket: leaves room for early data in a RESUME of the smallest datagram.
pub(crate) const MAX_TICKET: usize = HEAD + FIXED + MAX_TICKET_CREDENTIAL + TAG;
/// Names a ticket.
pub(crate) const NONCE: usize = 16;
const FORMAT: u8 = 1;

/// What a ticket holds.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    pub(crate) context: ContextId,
    pub(crate) secret: Secret,
    pub(crate) peer: PeerIdentity,
    /// When the peer last proved itself by a full handshake, seconds of the responder's clock.
    pub(crate) proved: u64,
    pub(crate) memory: Option<PathMemory>,
    nonce: [u8; NONCE],
    instance: [u8; 8],
    issued: u64,
}

/// Keys and register of one responder.
pub(crate) struct Tickets {
    root: Secret,
    /// An instant and what the clock showed then, seconds.
    clock: (Instant, u64),
    /// Which start of the endpoint issued a ticket: the register below knows only this one's.
    instance: [u8; 8],
    /// Tickets whose early data was taken, and when they expire.
    struck: BTreeMap<[u8; NONCE], u64>,
    max_struck: usize,
}

impl Tickets {
    pub(crate) fn new(root: Secret, clock: (Instant, u64), instance: [u8; 8], max_struck: usize) -> Self {
        Self { root, clock, instance, struck: BTreeMap::new(), max_struck }
    }

    /// Uses keys of another root from now on.
    pub(crate) fn set_root(&mut self, root: Secret, clock: (Instant, u64)) {
        (self.root, self.clock) = (root, clock);
    }

    pub(crate) fn time(&self, now: Instant) -> u64 {
        self.clock.1.saturating_add(now.saturating_since(self.clock.0).as_secs())
    }

    fn key(&self, head: &[u8]) -> PacketKey {
        PacketKey::of_handshake(self.root.expand("ticket key", head))
    }

    /// A ticket and its lifetime in seconds; `None` if the peer may have none.
    pub(crate) fn issue(
        &self,
        now: Instant,
        nonce: [u8; NONCE],
        context: ContextId,
        peer: &PeerIdentity,
        secret: &Secret,
        proved: u64,
        memory: Option<PathMemory>,
    ) -> Option<(Vec<u8>, u64)> {
        let time = self.time(now);
        let lifetime = proved.saturating_add(CHAIN).saturating_sub(time).min(LIFETIME);
        if lifetime == 0 || peer.credential.len() > MAX_TICKET_CREDENTIAL {
            return None;
        }
        let generation = u32::try_from(time / LIFETIME).ok()?;
        let mut out = Vec::with_capacity(HEAD + FIXED + peer.credential.len() + TAG);
        out.extend_from_slice(&generation.to_be_bytes());
        out.extend_from_slice(&nonce);
        out.push(FORMAT);
        out.extend_from_slice(&self.instance);
        out.extend_from_slice(&time.to_be_bytes());
        out.extend_from_slice(&proved.to_be_bytes());
        out.extend_from_slice(&context.0);
        out.extend_from_slice(&secret.0);
        emit_memory(&mut out, memory);
        out.extend_from_slice(&peer.public_key);
        out.extend_from_slice(&(peer.credential.len() as u16).to_be_bytes());
        out.extend_from_slice(&peer.credential);
        // One key per ticket: no nonce can repeat under it.
        let tag = self.key(&out[..HEAD]).seal(0, &mut out, HEAD);
        out.extend_from_slice(&tag);
        Some((out, lifetime))
    }

    /// Opens a ticket that is ours and has not expired.
    pub(crate) fn open(&self, now: Instant, ticket: &[u8]) -> Option<Ticket> {
        if ticket.len() > MAX_TICKET {
            return None;
        }
        let mut r = Reader::new(ticket);
        let generation = u64::from(r.u32().ok()?);
        let nonce = r.array().ok()?;
        let time = self.time(now);
        if generation > time / LIFETIME || generation + 1 < time / LIFETIME {
            return None;
        }
        let mut copy = zeroize::Zeroizing::new(ticket.to_vec());
        let body = self.key(&ticket[..HEAD]).open(0, &mut copy, HEAD).ok()?;
        let mut r = Reader::new(body);
        if r.u8().ok()? != FORMAT {
            return None;
        }
        let (instance, issued, proved) = (r.array().ok()?, r.u64().ok()?, r.u64().ok()?);
        let (context, secret) = (ContextId(r.array().ok()?), Secret(r.array().ok()?));
        let memory = parse_memory(&mut r)?;
        let public_key = r.array().ok()?;
        let len = usize::from(r.u16().ok()?);
        let credential = r.bytes(len).ok()?.to_vec();
        let good = r.is_empty()
            && issued <= time
            && time - issued <= LIFETIME
            && time.saturating_sub(proved) <= CHAIN;
        let peer = PeerIdentity { public_key, credential };
        good.then_some(Ticket { context, secret, peer, proved, memory, nonce, instance, issued })
    }

    /// Whether early data that came with this ticket may be taken: once, and only if that is sure.
    pub(crate) fn strike(&mut self, now: Instant, ticket: &Ticket) -> bool {
        let time = self.time(now);
        if ticket.instance != self.instance || self.struck.contains_key(&ticket.nonce) {
            return false;
        }
        if self.struck.len() >= self.max_struck {
            self.struck.retain(|_, until| *until >= time);
            if self.struck.len() >= self.max_struck {
                return false;
            }
        }
        self.struck.insert(ticket.nonce, ticket.issued + LIFETIME);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(len: usize) -> PeerIdentity {
        PeerIdentity { public_key: [1; 32], credential: alloc::vec![2; len] }
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn tickets() -> Tickets {
        Tickets::new(Secret([9; 32]), (at(0), 1_000_000), [1; 8], 2)
    }

    fn issue(t: &Tickets, now: u64, nonce: u8, proved: u64) -> Option<(Vec<u8>, u64)> {
        t.issue(at(now), [nonce; NONCE], ContextId([3; 16]), &peer(100), &Secret([4; 32]), proved, None)
    }

    #[test]
    fn a_ticket_opens_until_it_expires_and_no_changed_one_does() {
        let t = tickets();
        let (ticket, lifetime) = issue(&t, 10, 1, 1_000_010).unwrap();
        assert_eq!(lifetime, LIFETIME);
        let got = t.open(at(10 + LIFETIME), &ticket).unwrap();
        assert_eq!((got.context, got.secret.0, got.peer), (ContextId([3; 16]), [4; 32], peer(100)));
        assert!(t.open(at(11 + LIFETIME), &ticket).is_none() && t.open(at(9), &ticket).is_none());
        for i in 0..ticket.len() {
            let mut bad = ticket.clone();
            bad[i] ^= 1;
            assert!(t.open(at(10), &bad).is_none(), "byte {i}");
            assert!(t.open(at(10), &ticket[..i]).is_none());
        }
        let other = Tickets::new(Secret([8; 32]), (at(0), 1_000_000), [1; 8], 2);
        assert!(other.open(at(10), &ticket).is_none());
        assert!(t.issue(at(0), [0; 16], ContextId([0; 16]), &peer(513), &Secret([0; 32]), 0, None).is_none());
        let longest =
            t.issue(at(0), [0; 16], ContextId([0; 16]), &peer(512), &Secret([0; 32]), 1_000_000, None);
        assert_eq!(longest.unwrap().0.len(), MAX_TICKET);
        assert_eq!(MAX_TICKET, 672, "PROTOCOL.md §3.7.1 and §4 say so");
    }

    #[test]
    fn a_week_after_the_last_full_handshake_there_is_no_ticket() {
        let t = tickets();
        assert_eq!(issue(&t, CHAIN - 5, 1, 1_000_000).unwrap().1, 5);
        assert!(issue(&t, CHAIN, 1, 1_000_000).is_none());
    }

    #[test]
    fn early_data_is_taken_once_never_from_before_a_start_and_not_when_the_register_is_full() {
        let mut t = tickets();
        let open = |t: &Tickets, n| t.open(at(0), &issue(t, 0, n, 1_000_000).unwrap().0).unwrap();
        let (a, b, c) = (open(&t, 1), open(&t, 2), open(&t, 3));
        assert!(t.strike(at(0), &a) && !t.strike(at(0), &a) && t.strike(at(0), &b) && !t.strike(at(0), &c));
        assert!(!t.strike(at(1), &a), "struck for its lifetime");
        assert!(t.strike(at(LIFETIME + 1), &c), "expired ones make room");
        let mut restarted = Tickets::new(Secret([9; 32]), (at(0), 1_000_000), [2; 8], 2);
        assert!(!restarted.strike(at(0), &a));
    }
}
