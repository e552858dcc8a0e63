//! The side that answers (PROTOCOL.md §5.1, §5.6, §5.7).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use timebase::Instant;

use super::{Assembler, Established, Fragment, Local, Role, Schedule, transcript};
use crate::crypto::kdf::hash;
use crate::crypto::srp::{self, Exponent, Public};
use crate::wire::Cid;
use crate::wire::handshake::{Init, Reply, SUITE};
use crate::{ContextId, HandshakeFailure};

#[derive(Debug)]
pub(crate) struct Responder {
    context: ContextId,
    remote_cid: Cid,
    /// Where the INIT came from.
    asker: SocketAddr,
    th2: [u8; 32],
    exponent: Exponent,
    public: Public,
    peer_public: Public,
    verifier: Box<Public>,
    /// Made when the first PROVE comes: an INIT alone costs one exponentiation, not two.
    schedule: Option<Schedule>,
    assembler: Assembler,
    pub(crate) reply: Vec<u8>,
    pub(crate) until: Instant,
    replied_at: Instant,
}

/// What a PROVE led to.
#[derive(Debug)]
pub(crate) enum Progress {
    Wait,
    /// Tell the peer that it is refused; wait on, in case somebody else sent that.
    Refuse,
    /// Refuse and forget.
    Drop,
    /// Keys, and our proof to send.
    Done(Box<Established>, Vec<Vec<u8>>),
}

impl Responder {
    /// Answers an INIT whose A was checked. For an unknown context, `verifier` is of a random secret.
    pub(crate) fn new(
        now: Instant,
        context: ContextId,
        (from, init_datagram): (SocketAddr, &[u8]),
        init: &Init<'_>,
        verifier: Box<Public>,
        salt: [u8; 16],
        secrets: (Cid, [u8; 32], Exponent),
        timeout: Duration,
    ) -> Self {
        let (local_cid, nonce, exponent) = secrets;
        let public = srp::responder_public(&exponent, &verifier);
        let mut reply = Vec::new();
        Reply { source: local_cid, suite: SUITE, nonce, salt, b: &public }.emit(&init.source, &mut reply);
        Self {
            context,
            remote_cid: init.source,
            asker: from,
            th2: transcript(init_datagram, &reply),
            exponent,
            public,
            peer_public: *init.a,
            verifier,
            schedule: None,
            assembler: Assembler::default(),
            reply,
            until: now + timeout,
            replied_at: now,
        }
    }

    pub(crate) fn remote_cid(&self) -> Cid {
        self.remote_cid
    }

    /// Whether something of its proof has come that only who knows the secret can have sent.
    pub(crate) fn is_proving(&self) -> bool {
        self.assembler.count > 0
    }

    pub(crate) fn on_prove(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &mut [u8],
        local: &Local<'_>,
    ) -> Progress {
        if from != self.asker {
            // The proof that answers is longer than what asks for it: only to where our REPLY was received.
            return Progress::Wait;
        }
        if self.schedule.is_none() {
            let s = srp::responder_premaster(&self.exponent, &self.public, &self.peer_public, &self.verifier);
            let Ok(premaster) = s else { return Progress::Drop };
            self.schedule = Some(Schedule::new(self.th2, &premaster));
        }
        let Some(schedule) = &self.schedule else { return Progress::Drop };
        let body = match self.assembler.add(&schedule.key(Role::Initiator), datagram) {
            Fragment::Whole(body) => body,
            Fragment::Wait => return Progress::Wait,
            Fragment::NotAuthentic => return Progress::Refuse,
            Fragment::GiveUp => return Progress::Drop,
        };
        let verified = schedule.verify(Role::Initiator, &self.th2, &body, self.context, local.authorizer);
        let (peer, params) = match verified {
            Ok(v) => v,
            Err(HandshakeFailure::Unauthorized | _) => return Progress::Drop,
        };
        let th3 = hash(&[&self.th2, &body]);
        let (own, datagrams) = schedule.prove(Role::Responder, &th3, local, &self.remote_cid);
        let th4 = hash(&[&th3, &own]);
        let established = Established {
            seal: schedule.traffic(Role::Responder, &th4),
            open: schedule.traffic(Role::Responder.other(), &th4),
            remote_cid: self.remote_cid,
            remote: from,
            peer,
            params,
            rtt: now.saturating_since(self.replied_at),
            resumption: schedule.resumption(&th4),
            role: Role::Responder,
            resumed: false,
            proved: None,
        };
        Progress::Done(Box::new(established), datagrams)
    }
}
