//! All connections of one socket: who a datagram is for, whose turn it is to send, who waits until when.

#[cfg(any(test, feature = "fuzzing"))]
mod fuzzing;
mod queue;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddr;

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;

use self::queue::Slots;
use crate::crypto::kdf::Secret;
use crate::crypto::srp::{self, EXPONENT, Exponent, Public};
use crate::handshake::initiator::{Initiator, context_tag};
use crate::handshake::responder::Responder;
use crate::handshake::{Local, cookie};
use crate::wire::Cid;
use crate::wire::handshake::{Alert, Init, Retry, SUITE};
use crate::wire::header::{Header, Kind};
use crate::{
    Arrival, Authorizer, BlockSink, BlockSource, Config, ConnectError, Connection, ContextId, Ecn, Event,
    Handle, Identity,
};

/// What to send: the first `len` bytes of the buffer, to one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Destination.
    pub remote: SocketAddr,
    /// Bytes of the buffer.
    pub len: usize,
    /// Set when the buffer holds several packets: each is of this size, the last may be shorter.
    pub segment_size: Option<usize>,
    /// The mark all of them should carry; a driver that cannot set it may ignore it (§8.9).
    pub ecn: Ecn,
}

/// A secret, and what a responder needs of it.
struct Context {
    secret: Secret,
    /// Computed when first asked for, then kept: an exponentiation.
    verifier: Option<Box<Public>>,
}

/// Stateless answers (RETRY, ALERT) waiting to be sent; more are dropped, their askers ask again.
const MAX_ANSWERS: usize = 64;

/// All connections of one socket; see the crate's page for how to drive it.
pub struct Endpoint {
    config: Config,
    identity: Identity,
    authorizer: Box<dyn Authorizer + Send>,
    random: ChaCha20Rng,
    cookie_key: Secret,
    salt: [u8; 16],
    /// Verifier of a secret nobody knows, for contexts we do not know.
    decoy: Option<Box<Public>>,
    contexts: BTreeMap<ContextId, Context>,
    slots: Slots,
    cids: BTreeMap<Cid, u32>,
    /// Nonces of INITs that made a connection, so that a repeated one finds it.
    inits: BTreeMap<[u8; 32], u32>,
    half_open: usize,
    answers: VecDeque<(SocketAddr, Vec<u8>)>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("identity", &self.identity)
            .field("contexts", &self.contexts.len())
            .field("connections", &self.slots.len())
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// An endpoint without connections or contexts. All randomness comes from `seed`, which must be unpredictable
    /// and must never be used for a second endpoint.
    ///
    /// # Panics
    /// If [`Config::validate`] refuses the configuration.
    pub fn new(
        config: Config,
        identity: Identity,
        authorizer: Box<dyn Authorizer + Send>,
        seed: [u8; 32],
    ) -> Self {
        config.validate().expect("the configuration should have been validated");
        let mut random = ChaCha20Rng::from_seed(seed);
        let mut cookie_key = Secret([0; 32]);
        random.fill_bytes(&mut cookie_key.0);
        let mut salt = [0; 16];
        random.fill_bytes(&mut salt);
        Self {
            config,
            identity,
            authorizer,
            random,
            cookie_key,
            salt,
            decoy: None,
            contexts: BTreeMap::new(),
            slots: Slots::new(),
            cids: BTreeMap::new(),
            inits: BTreeMap::new(),
            half_open: 0,
            answers: VecDeque::new(),
        }
    }

    /// Shows this identity in handshakes from now on: the same key with a renewed credential, say.
    pub fn set_identity(&mut self, identity: Identity) {
        self.identity = identity;
    }

    /// Makes a secret usable in both directions; replaces the secret of a context that is there already.
    pub fn add_context(&mut self, context: ContextId, secret: &[u8; 32]) {
        self.contexts.insert(context, Context { secret: Secret(*secret), verifier: None });
    }

    /// Forgets a secret and closes the context's connections.
    pub fn remove_context(&mut self, context: ContextId) {
        if self.contexts.remove(&context).is_some() {
            for slot in self.slots.occupied() {
                if let Some(c) = self.slots.get_mut(slot)
                    && c.context() == context
                {
                    c.remove_context();
                    self.after(slot);
                }
            }
        }
    }

    /// Starts connecting. [`Event::Connected`] or [`Event::Closed`] follows.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        context: ContextId,
    ) -> Result<Handle, ConnectError> {
        let secret = self.contexts.get(&context).ok_or(ConnectError::UnknownContext)?.secret.clone();
        if self.slots.len() >= self.config.max_connections {
            return Err(ConnectError::TooManyConnections);
        }
        let cid = self.new_cid();
        let mut nonce = [0; 32];
        self.random.fill_bytes(&mut nonce);
        let exponent = self.new_exponent();
        let timeout = self.config.handshake_timeout;
        let initiator = Initiator::new(now, context, secret, cid, nonce, exponent, timeout);
        let handle = self.slots.insert(|h| Connection::initiate(h, context, remote, initiator), cid, None);
        self.cids.insert(cid, handle.slot);
        self.after(handle.slot);
        Ok(handle)
    }

    fn new_cid(&mut self) -> Cid {
        loop {
            let mut cid = [0; 8];
            self.random.fill_bytes(&mut cid);
            // Zero stands for "none yet" in INIT.
            if cid != [0; 8] && !self.cids.contains_key(&cid) {
                return cid;
            }
        }
    }

    fn new_exponent(&mut self) -> Exponent {
        let mut e = Exponent([0; EXPONENT]);
        self.random.fill_bytes(&mut e.0);
        e
    }

    /// Takes one datagram; it is decrypted in place. Anything that is not authentic is dropped.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        arrival: Arrival,
        data: &mut [u8],
        sink: &mut dyn BlockSink,
    ) {
        let arrival = Arrival { at: arrival.at.min(now), ..arrival };
        let remote = arrival.remote;
        let Ok(header) = Header::parse(data) else { return };
        let cid = match header {
            Header::Handshake { kind: Kind::Init, .. } => return self.on_init(now, remote, data),
            Header::OtherVersion => return self.on_other_version(remote, data),
            Header::Handshake { cid, .. } | Header::Protected { cid, .. } => cid,
        };
        let Some(&slot) = self.cids.get(&cid) else { return };
        let mut seed = [0; 32];
        if matches!(header, Header::Handshake { .. }) {
            self.random.fill_bytes(&mut seed);
        }
        let local =
            Local { config: &self.config, identity: &self.identity, authorizer: self.authorizer.as_ref() };
        if let Some(c) = self.slots.get_mut(slot) {
            c.handle_datagram(now, arrival, &header, data, &local, seed, sink);
            self.after(slot);
        }
    }

    fn answer(&mut self, to: SocketAddr, datagram: Vec<u8>) {
        if self.answers.len() < MAX_ANSWERS {
            self.answers.push_back((to, datagram));
        }
    }

    fn on_other_version(&mut self, from: SocketAddr, data: &[u8]) {
        // Where version 1 has the initiator's CID; only in answer to what could be an INIT, so nothing is amplified.
        if data[0] == 0x80 | Kind::Init as u8
            && let Ok(init) = Init::parse(data)
        {
            let mut out = Vec::new();
            Alert::Version.emit(&init.source, &mut out);
            self.answer(from, out);
        }
    }

    fn on_init(&mut self, now: Instant, from: SocketAddr, data: &[u8]) {
        let Ok(init) = Init::parse(data) else { return };
        if let Some(&slot) = self.inits.get(&init.nonce) {
            if let Some(c) = self.slots.get_mut(slot)
                && c.remote() == from
            {
                c.on_repeated_init();
                self.after(slot);
            }
            return;
        }
        let alert = |this: &mut Self, alert: Alert| {
            let mut out = Vec::new();
            alert.emit(&init.source, &mut out);
            this.answer(from, out);
        };
        if init.suite != SUITE {
            return alert(self, Alert::Version);
        }
        // Nothing costly before this point, and nothing kept (§5.3).
        if self.half_open >= self.config.retry_threshold
            && !cookie::is_valid(&self.cookie_key, now, from, &init)
        {
            let cookie = cookie::issue(&self.cookie_key, now, from, &init);
            let mut out = Vec::new();
            Retry { cookie: &cookie }.emit(&init.source, &mut out);
            return self.answer(from, out);
        }
        if self.half_open >= self.config.max_handshakes || self.slots.len() >= self.config.max_connections {
            return alert(self, Alert::Busy);
        }
        if srp::check_public(init.a).is_err() {
            return;
        }
        let (context, verifier) = self.find_context(&init);
        let cid = self.new_cid();
        let mut nonce = [0; 32];
        self.random.fill_bytes(&mut nonce);
        let secrets = (cid, nonce, self.new_exponent());
        let timeout = self.config.handshake_timeout;
        let responder = Responder::new(now, context, data, &init, verifier, self.salt, secrets, timeout);
        let handle =
            self.slots.insert(|h| Connection::respond(h, context, from, responder), cid, Some(init.nonce));
        self.cids.insert(cid, handle.slot);
        self.inits.insert(init.nonce, handle.slot);
        self.after(handle.slot);
    }

    /// The context an INIT asks for, and its verifier; a decoy's if we do not know it.
    fn find_context(&mut self, init: &Init<'_>) -> (ContextId, Box<Public>) {
        // All are tried, so that the time does not tell which one it was.
        let mut found = None;
        for id in self.contexts.keys() {
            if context_tag(id, &init.nonce) == init.tag {
                found = Some(*id);
            }
        }
        let salt = self.salt;
        if let Some(id) = found
            && let Some(c) = self.contexts.get_mut(&id)
        {
            let secret = &c.secret.0;
            let verifier = c.verifier.get_or_insert_with(|| Box::new(srp::verifier(&id, secret, &salt)));
            return (id, verifier.clone());
        }
        if self.decoy.is_none() {
            let mut secret = [0; 32];
            self.random.fill_bytes(&mut secret);
            self.decoy = Some(Box::new(srp::verifier(&ContextId([0; 16]), &secret, &salt)));
        }
        let decoy = self.decoy.clone().unwrap_or_else(|| Box::new([1; 256]));
        (ContextId([0; 16]), decoy)
    }

    /// To be called whenever a connection may have changed.
    fn after(&mut self, slot: u32) {
        let Some(c) = self.slots.get_mut(slot) else { return };
        let (half_open, gone) = (c.is_half_open(), c.is_dead() && !c.is_announced());
        let was = self.slots.set_half_open(slot, half_open && !gone);
        self.half_open = self.half_open + usize::from(half_open && !gone) - usize::from(was);
        if gone {
            self.remove(slot);
        } else {
            self.slots.touch(slot);
        }
    }

    fn remove(&mut self, slot: u32) {
        if let Some((cid, nonce)) = self.slots.remove(slot) {
            self.cids.remove(&cid);
            if let Some(nonce) = nonce {
                self.inits.remove(&nonce);
            }
        }
    }

    /// The host refused to send a datagram of `len` bytes of UDP payload to `remote` (`EMSGSIZE`): tells the
    /// connections with that peer, see [`Connection::on_too_large`]. Not for every packet: it looks at all of them.
    pub fn on_too_large(&mut self, now: Instant, remote: SocketAddr, len: usize) {
        for slot in self.slots.occupied() {
            if let Some(c) = self.slots.get_mut(slot)
                && c.remote() == remote
            {
                c.on_too_large(now, len);
                self.after(slot);
            }
        }
    }

    /// Acts on what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.slots.refresh();
        while let Some(slot) = self.slots.pop_due(now) {
            if let Some(c) = self.slots.get_mut(slot) {
                c.handle_timeout(now);
                self.finish(slot);
                self.after(slot);
            }
        }
    }

    /// Frees a connection that is dead and whose end was told.
    fn finish(&mut self, slot: u32) {
        if self.slots.is_told(slot) && self.slots.get_mut(slot).is_some_and(|c| c.is_dead()) {
            self.remove(slot);
        }
    }

    /// When to call [`Endpoint::handle_timeout`] next.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        self.slots.next_deadline()
    }

    /// Clears `buf` and fills it with 1 to `max_segments` packets to one destination. Connections take turns.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        max_segments: usize,
        buf: &mut Vec<u8>,
        source: &mut dyn BlockSource,
    ) -> Option<Transmit> {
        buf.clear();
        if let Some((remote, datagram)) = self.answers.pop_front() {
            buf.extend_from_slice(&datagram);
            return Some(Transmit { remote, len: buf.len(), segment_size: None, ecn: Ecn::NotEct });
        }
        while let Some(slot) = self.slots.next_ready() {
            let Some(c) = self.slots.get_mut(slot) else { continue };
            let transmit = c.poll_transmit(now, max_segments, buf, source);
            if transmit.is_some() {
                // Behind the others, in case it has more; `after` queues it.
                self.finish(slot);
                self.after(slot);
                return transmit;
            }
            buf.clear();
            self.finish(slot);
            self.slots.rest(slot);
        }
        None
    }

    /// The next event; those of one connection come in order.
    pub fn poll_event(&mut self) -> Option<(Handle, Event)> {
        while let Some(slot) = self.slots.next_eventful() {
            let handle = self.slots.handle(slot);
            let Some(event) = self.slots.get_mut(slot).and_then(Connection::poll_event) else { continue };
            if matches!(event, Event::Closed(_)) {
                self.slots.set_told(slot);
                self.finish(slot);
            }
            // There may be more events, and taking a message may have opened a window.
            self.after(slot);
            return Some((handle, event));
        }
        None
    }

    /// The connection, until its [`Event::Closed`] was delivered.
    pub fn connection(&self, handle: Handle) -> Option<&Connection> {
        self.slots.by_handle(handle)
    }

    /// The connection, to act on; call [`Endpoint::poll_transmit`] and [`Endpoint::poll_timeout`] afterwards.
    pub fn connection_mut(&mut self, handle: Handle) -> Option<&mut Connection> {
        self.slots.by_handle(handle)?;
        self.slots.touch(handle.slot);
        self.slots.get_mut(handle.slot)
    }

    /// Connections that exist, half-open and closing ones included.
    pub fn connection_count(&self) -> usize {
        self.slots.len()
    }
}
