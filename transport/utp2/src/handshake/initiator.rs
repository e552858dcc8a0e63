//! The side that connects (PROTOCOL.md §5.1, §5.6).

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use timebase::Instant;

use super::resume::Resuming;
use super::{Assembler, Established, Fragment, Local, Role, Schedule, transcript};
use crate::crypto::kdf::{Secret, hash, mac};
use crate::crypto::srp::{self, Exponent, Public};
use crate::wire::Cid;
use crate::wire::handshake::{Alert, Init, Reply, Retry, SUITE};
use crate::{ContextId, HandshakeFailure};

/// How long the first packet of a step is waited for: longer than nearly all round trips.
const FIRST_REPEAT: Duration = Duration::from_millis(300);
/// How long the first PROVE is waited for at least and at most; between them 1.5 round trips.
const PROVE_REPEAT: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];
/// Time between later ones, at least and at most. Never growing: what swallows twenty packets in a row must not last
/// until the handshake's time is over, and one of them five times a second burdens no path.
const REPEAT: [Duration; 2] = [Duration::from_millis(150), Duration::from_millis(250)];
/// The round trip is taken to be no longer if it is not known which repetition was answered.
const UNCLEAR_RTT: Duration = Duration::from_millis(500);
const MAX_RETRIES: u8 = 3;
/// How long RESUME is repeated without an answer before a full handshake is tried.
const RESUME_PATIENCE: Duration = Duration::from_millis(1500);

/// The tag under which a responder finds the context (§5.2).
pub(crate) fn context_tag(context: &ContextId, nonce: &[u8; 32]) -> [u8; 16] {
    let full = mac(&context.0, &[b"utp2 context", nonce]);
    let mut out = [0; 16];
    out.copy_from_slice(&full[..16]);
    out
}

#[derive(Debug)]
pub(crate) struct Initiator {
    context: ContextId,
    secret: Secret,
    local_cid: Cid,
    nonce: [u8; 32],
    exponent: Exponent,
    /// Made when first needed: with a ticket it never may be.
    public: Option<Box<Public>>,
    step: Step,
    /// Datagrams to send now.
    pub(crate) outbox: VecDeque<Vec<u8>>,
    repeat_at: Instant,
    /// Repetitions so far, of all steps.
    repeats: usize,
    until: Instant,
    /// When the present step's packet was sent, and whether only once.
    sent_at: Instant,
    sent_once: bool,
    rtt: Option<Duration>,
    /// The round trip is no longer, as far as repetitions left that open.
    rtt_bound: Duration,
    /// The peer, or somebody, said that it has no room at present.
    busy: bool,
    /// Early messages the peer took.
    pub(crate) early_taken: usize,
}

#[derive(Debug)]
enum Step {
    Resume { resuming: Box<Resuming>, datagram: Vec<u8>, retries: u8 },
    Reply { init: Vec<u8>, retries: u8 },
    Prove(Proof),
}

#[derive(Debug)]
struct Proof {
    remote_cid: Cid,
    schedule: Schedule,
    th3: [u8; 32],
    datagrams: Vec<Vec<u8>>,
    assembler: Assembler,
}

/// What a datagram led to.
#[derive(Debug)]
pub(crate) enum Progress {
    Wait,
    Done(Box<Established>),
    Failed(HandshakeFailure),
    /// As failed, and the peer, waiting for our first packet, is to be told.
    Refuse(Cid),
}

impl Initiator {
    pub(crate) fn new(
        now: Instant,
        context: ContextId,
        secret: Secret,
        local_cid: Cid,
        nonce: [u8; 32],
        exponent: Exponent,
        timeout: Duration,
        resuming: Option<Box<Resuming>>,
    ) -> Self {
        let mut this = Self {
            context,
            secret,
            local_cid,
            nonce,
            exponent,
            public: None,
            step: Step::Reply { init: Vec::new(), retries: 0 },
            outbox: VecDeque::new(),
            repeat_at: now,
            repeats: 0,
            until: now + timeout,
            sent_at: now,
            sent_once: true,
            rtt: None,
            busy: false,
            rtt_bound: UNCLEAR_RTT,
            early_taken: 0,
        };
        match resuming {
            Some(resuming) => this.send_resume(now, resuming, &[], 0),
            None => this.send_init(now, &[], 0),
        }
        this
    }

    fn send_resume(&mut self, now: Instant, resuming: Box<Resuming>, cookie: &[u8], retries: u8) {
        let datagram = resuming.datagram(cookie);
        self.outbox.clear();
        self.outbox.push_back(datagram.clone());
        self.step = Step::Resume { resuming, datagram, retries };
        self.schedule(now, FIRST_REPEAT);
    }

    /// The ticket was of no use: all from the beginning (§5.8).
    fn fall_back(&mut self, now: Instant) {
        self.send_init(now, &[], 0);
    }

    fn send_init(&mut self, now: Instant, cookie: &[u8], retries: u8) {
        let mut init = Vec::new();
        let tag = context_tag(&self.context, &self.nonce);
        let exponent = &self.exponent;
        let a = self.public.get_or_insert_with(|| Box::new(srp::initiator_public(exponent)));
        Init { source: self.local_cid, suite: SUITE, nonce: self.nonce, tag, a, cookie }.emit(&mut init);
        self.outbox.clear();
        self.outbox.push_back(init.clone());
        self.step = Step::Reply { init, retries };
        self.schedule(now, FIRST_REPEAT);
    }

    fn schedule(&mut self, now: Instant, after: Duration) {
        self.repeat_at = now + after;
        (self.sent_at, self.sent_once) = (now, true);
    }

    /// Time until the next repetition. By chance, so that many who lost the same peer do not return in step; the
    /// nonce is as good a source of it as any.
    fn pause(&mut self) -> Duration {
        let chance = u32::from(self.nonce[self.repeats % self.nonce.len()]);
        self.repeats += 1;
        REPEAT[0] + (REPEAT[1] - REPEAT[0]) * chance / 255
    }

    /// Whether a REPLY came: then the peer speaks our version.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self.step, Step::Prove(_))
    }

    /// Why it failed, when its time is over.
    pub(crate) fn failure(&self) -> HandshakeFailure {
        if self.busy { HandshakeFailure::Busy } else { HandshakeFailure::Timeout }
    }

    pub(crate) fn next_timeout(&self) -> Instant {
        self.repeat_at.min(self.until)
    }

    /// Repeats what waits for an answer. False when it is time to give up.
    pub(crate) fn on_timeout(&mut self, now: Instant) -> bool {
        if now >= self.until {
            return false;
        }
        if now >= self.repeat_at {
            self.outbox.clear();
            match &self.step {
                Step::Resume { .. } if now >= self.sent_at + RESUME_PATIENCE => {
                    self.fall_back(now);
                    return true;
                }
                Step::Resume { datagram, .. } => self.outbox.push_back(datagram.clone()),
                Step::Reply { init, .. } => self.outbox.push_back(init.clone()),
                Step::Prove(p) => self.outbox.extend(p.datagrams.iter().cloned()),
            }
            self.repeat_at = now + self.pause();
            if let Step::Resume { .. } = self.step {
                self.repeat_at = self.repeat_at.min(self.sent_at + RESUME_PATIENCE);
            }
            self.sent_once = false;
        }
        true
    }

    /// An answer came. Repeated packets leave open which of them it is for: then the first one's age is a bound.
    fn sample(&mut self, now: Instant) {
        let rtt = now.saturating_since(self.sent_at);
        if self.sent_once {
            self.rtt = Some(self.rtt.map_or(rtt, |r| r.min(rtt)));
        } else {
            self.rtt_bound = self.rtt_bound.min(rtt);
        }
    }

    /// The round trip, as well as it is known.
    fn round_trip(&self) -> Duration {
        self.rtt.unwrap_or(self.rtt_bound)
    }

    pub(crate) fn on_retry(&mut self, now: Instant, datagram: &[u8]) {
        let Ok(retry) = Retry::parse(datagram) else { return };
        let cookie = *retry.cookie;
        match &mut self.step {
            Step::Reply { retries, .. } if *retries < MAX_RETRIES => {
                let retries = *retries;
                self.send_init(now, &cookie, retries + 1);
            }
            Step::Resume { datagram, resuming, retries, .. } if *retries < MAX_RETRIES => {
                *retries += 1;
                *datagram = resuming.datagram(&cookie);
                self.outbox.clear();
                self.outbox.push_back(datagram.clone());
                self.schedule(now, FIRST_REPEAT);
            }
            _ => {}
        }
    }

    pub(crate) fn on_resumed(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) -> Progress {
        let Step::Resume { resuming, .. } = &self.step else { return Progress::Wait };
        // One that does not open is somebody else's: the right one may still come.
        let Some((established, taken)) = resuming.on_resumed(from, datagram) else {
            return Progress::Wait;
        };
        self.early_taken = if taken { resuming.early_sent } else { 0 };
        self.done(now, established)
    }

    pub(crate) fn on_reply(&mut self, now: Instant, datagram: &[u8], local: &Local<'_>) -> Progress {
        let (Ok(reply), Step::Reply { init, .. }) = (Reply::parse(datagram), &self.step) else {
            return Progress::Wait;
        };
        if reply.suite != SUITE {
            return Progress::Failed(HandshakeFailure::Version);
        }
        let Some(public) = &self.public else { return Progress::Wait };
        let th2 = transcript(init, datagram);
        let premaster = srp::initiator_premaster(
            &self.exponent,
            public,
            reply.b,
            &self.context,
            &self.secret.0,
            &reply.salt,
        );
        let Ok(premaster) = premaster else { return Progress::Failed(HandshakeFailure::BadProof) };
        self.sample(now);
        let schedule = Schedule::new(th2, &premaster);
        let (body, datagrams) = schedule.prove(Role::Initiator, &th2, local, &reply.source);
        let th3 = hash(&[&th2, &body]);
        self.outbox.clear();
        self.outbox.extend(datagrams.iter().cloned());
        let remote_cid = reply.source;
        self.step =
            Step::Prove(Proof { remote_cid, schedule, th3, datagrams, assembler: Assembler::default() });
        let [least, most] = PROVE_REPEAT;
        self.schedule(now, (self.round_trip() * 3 / 2).clamp(least, most));
        Progress::Wait
    }

    pub(crate) fn on_prove(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &mut [u8],
        local: &Local<'_>,
    ) -> Progress {
        let Step::Prove(p) = &mut self.step else { return Progress::Wait };
        let key = p.schedule.key(Role::Responder);
        let body = match p.assembler.add(&key, datagram) {
            Fragment::Whole(body) => body,
            Fragment::GiveUp => return Progress::Failed(HandshakeFailure::BadProof),
            Fragment::Wait | Fragment::NotAuthentic => return Progress::Wait,
        };
        let verified = p.schedule.verify(Role::Responder, &p.th3, &body, self.context, local.authorizer);
        let (peer, params) = match verified {
            Ok(v) => v,
            Err(HandshakeFailure::Unauthorized) => return Progress::Refuse(p.remote_cid),
            Err(e) => return Progress::Failed(e),
        };
        let th4 = hash(&[&p.th3, &body]);
        let established = Established {
            seal: p.schedule.traffic(Role::Initiator, &th4),
            open: p.schedule.traffic(Role::Responder, &th4),
            remote_cid: p.remote_cid,
            remote: from,
            peer,
            params,
            rtt: Duration::ZERO,
            resumption: p.schedule.resumption(&th4),
            role: Role::Initiator,
            resumed: false,
            proved: None,
        };
        self.done(now, established)
    }

    /// Only what proved authentic is measured.
    fn done(&mut self, now: Instant, established: Established) -> Progress {
        self.sample(now);
        let rtt = self.round_trip();
        Progress::Done(Box::new(Established { rtt, ..established }))
    }

    pub(crate) fn on_alert(&mut self, now: Instant, datagram: &[u8]) -> Progress {
        match Alert::parse(datagram) {
            Ok(Alert::Ticket | Alert::Refused) if matches!(self.step, Step::Resume { .. }) => {
                self.fall_back(now);
                Progress::Wait
            }
            Ok(Alert::Ticket) => Progress::Wait,
            Ok(Alert::Refused) => Progress::Failed(HandshakeFailure::Refused),
            // Room may come, and it may not even have been the peer who said so.
            Ok(Alert::Busy) => {
                self.busy = true;
                Progress::Wait
            }
            Ok(Alert::Version) => Progress::Failed(HandshakeFailure::Version),
            Err(_) => Progress::Wait,
        }
    }
}
