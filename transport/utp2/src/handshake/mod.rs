//! From an INIT to keys (PROTOCOL.md §5): what both sides share; [`initiator`] and [`responder`] hold the steps.

pub(crate) mod cookie;
pub(crate) mod initiator;
pub(crate) mod responder;
pub(crate) mod resume;
pub(crate) mod ticket;

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use ed25519_dalek::Signer;
use subtle::ConstantTimeEq;

use crate::config::Config;
use crate::crypto::aead::PacketKey;
use crate::crypto::kdf::{Secret, hash};
use crate::crypto::sign::is_signed;
use crate::crypto::srp::Premaster;
use crate::wire::Cid;
use crate::wire::handshake::{
    Body, FRAGMENT, MAX_FRAGMENTS, PROVE_HEADER, Params, ProveHead, TOKEN, TRANSCRIPT_PART,
};
use crate::{Authorizer, ContextId, HandshakeFailure, Identity, PeerIdentity};

/// Fragments that do not open before a handshake is given up (§5.7).
const MAX_FAILURES: u8 = 8;

/// What a finished handshake hands to the connection.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) seal: Secret,
    pub(crate) open: Secret,
    pub(crate) remote_cid: Cid,
    pub(crate) remote: SocketAddr,
    pub(crate) peer: PeerIdentity,
    pub(crate) params: Params,
    pub(crate) rtt: Duration,
    /// What tickets of this connection are derived from (§5.8).
    pub(crate) resumption: Secret,
    pub(crate) role: Role,
    /// Whether a ticket was used.
    pub(crate) resumed: bool,
    /// When the peer last did a full handshake, on the clock of tickets; now, if that is this one.
    pub(crate) proved: Option<u64>,
}

/// What we are and what we accept; lent to the handshake by the endpoint.
pub(crate) struct Local<'a> {
    pub(crate) config: &'a Config,
    pub(crate) identity: &'a Identity,
    pub(crate) authorizer: &'a dyn Authorizer,
    /// Token of our CID in this handshake (§10.7).
    pub(crate) reset_token: [u8; TOKEN],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Initiator,
    Responder,
}

impl Role {
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Responder,
            Self::Responder => Self::Initiator,
        }
    }

    pub(crate) const fn pick(self, i: &'static str, r: &'static str) -> &'static str {
        match self {
            Self::Initiator => i,
            Self::Responder => r,
        }
    }

    const fn signature_label(self) -> &'static str {
        self.pick("utp2 proof 2 initiator", "utp2 proof 2 responder")
    }
}

/// Keys once both public values are known (§5.4).
#[derive(Debug)]
pub(crate) struct Schedule {
    prk: Secret,
    th2: [u8; 32],
}

pub(crate) fn transcript(init: &[u8], reply: &[u8]) -> [u8; 32] {
    hash(&[b"utp2 transcript 2", &init[..TRANSCRIPT_PART], &reply[..TRANSCRIPT_PART]])
}

impl Schedule {
    fn new(th2: [u8; 32], premaster: &Premaster) -> Self {
        Self { prk: Secret::extract(&th2, &premaster[..]), th2 }
    }

    fn key(&self, role: Role) -> PacketKey {
        PacketKey::of_handshake(self.prk.expand(role.pick("hs i", "hs r"), &self.th2))
    }

    fn confirmation(&self, role: Role, th: &[u8], before: &[u8]) -> [u8; 32] {
        self.prk.derive(role.pick("cf i", "cf r"), &self.th2).mac(&[th, before])
    }

    fn traffic(&self, role: Role, th4: &[u8; 32]) -> Secret {
        self.prk.derive(role.pick("ap i", "ap r"), th4)
    }

    fn resumption(&self, th4: &[u8; 32]) -> Secret {
        self.prk.derive("rs", th4)
    }

    /// Our body and its sealed datagrams.
    fn prove(&self, role: Role, th: &[u8; 32], local: &Local<'_>, to: &Cid) -> (Vec<u8>, Vec<Vec<u8>>) {
        let params = Params::of(local.config, local.reset_token);
        let mut body = Vec::with_capacity(256 + local.identity.credential.len());
        Body::emit_claims(&mut body, &local.identity.public_key(), &params, &local.identity.credential);
        let digest = hash(&[th, &body]);
        let signature = local.identity.key.sign(&[role.signature_label().as_bytes(), &digest].concat());
        body.extend_from_slice(&signature.to_bytes());
        let confirmation = self.confirmation(role, th, &body);
        body.extend_from_slice(&confirmation);

        let key = self.key(role);
        let parts = body.chunks(FRAGMENT);
        let count = parts.len() as u8;
        debug_assert!(count <= MAX_FRAGMENTS);
        let datagrams = parts
            .zip(0u8..)
            .map(|(part, index)| {
                let mut out = Vec::with_capacity(PROVE_HEADER + part.len() + 16);
                ProveHead { index, count }.emit(to, &mut out);
                out.extend_from_slice(part);
                let tag = key.seal(u64::from(index), &mut out, PROVE_HEADER);
                out.extend_from_slice(&tag);
                out
            })
            .collect();
        (body, datagrams)
    }

    /// Checks the peer's body: signature, proof of the secret, then whether it is welcome.
    fn verify(
        &self,
        role: Role,
        th: &[u8; 32],
        body: &[u8],
        context: ContextId,
        authorizer: &dyn Authorizer,
    ) -> Result<(PeerIdentity, Params), HandshakeFailure> {
        let bad = HandshakeFailure::BadProof;
        let b = Body::parse(body).map_err(|_| bad)?;
        let expected = self.confirmation(role, th, &body[..b.signature_at + 64]);
        if !bool::from(expected.ct_eq(&b.confirmation)) {
            return Err(bad);
        }
        let digest = hash(&[th, &body[..b.signature_at]]);
        let signed = [role.signature_label().as_bytes(), &digest].concat();
        if !is_signed(&b.public_key, &signed, &b.signature) {
            return Err(bad);
        }
        let peer = PeerIdentity { public_key: b.public_key, credential: b.credential.to_vec() };
        if !authorizer.authorize(context, &peer) {
            return Err(HandshakeFailure::Unauthorized);
        }
        Ok((peer, b.params))
    }
}

/// Puts the fragments of a body together.
#[derive(Debug, Default)]
struct Assembler {
    count: u8,
    parts: [Option<Vec<u8>>; MAX_FRAGMENTS as usize],
    failures: u8,
}

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
enum Fragment {
    Wait,
    Whole(Vec<u8>),
    NotAuthentic,
    /// Too many did not open.
    GiveUp,
}

impl Assembler {
    fn add(&mut self, key: &PacketKey, datagram: &mut [u8]) -> Fragment {
        let Ok(head) = ProveHead::parse(datagram) else { return Fragment::Wait };
        let Ok(body) = key.open(u64::from(head.index), datagram, PROVE_HEADER) else {
            self.failures += 1;
            return if self.failures >= MAX_FAILURES { Fragment::GiveUp } else { Fragment::NotAuthentic };
        };
        // Authentic, so the count is the sender's; it does not change its mind.
        self.count = head.count;
        self.parts[usize::from(head.index)] = Some(body.to_vec());
        let parts = &self.parts[..usize::from(self.count)];
        if parts.iter().any(Option::is_none) {
            return Fragment::Wait;
        }
        let mut whole = vec![];
        parts.iter().flatten().for_each(|p| whole.extend_from_slice(p));
        Fragment::Whole(whole)
    }
}
