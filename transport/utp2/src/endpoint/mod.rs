//! All connections of one socket: who a datagram is for, whose turn it is to send, who waits until when.

#[cfg(any(all(test, feature = "control"), feature = "fuzzing"))]
mod fuzzing;
mod queue;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;

use self::queue::Slots;
use crate::Resumption;
use crate::connection::session::IssuedTicket;
use crate::crypto::kdf::{Secret, mac};
use crate::crypto::srp::{self, EXPONENT, Exponent, Public};
use crate::handshake::initiator::{Initiator, context_tag};
use crate::handshake::responder::Responder;
use crate::handshake::resume::{Opened, Resuming};
use crate::handshake::ticket::Tickets;
use crate::handshake::{Local, cookie};
use crate::wire::Cid;
use crate::wire::handshake::{Alert, Init, RESET, Resume, Retry, SUITE, SUITE_RESUME, TOKEN};
use crate::wire::handshake::{asker_of_any_version, emit_reset, parse_reset};
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

/// RESETs in a tenth of a second: enough for a restart, nothing for a flood.
const RESETS_PER_PERIOD: u32 = 16;
const RESET_PERIOD: Duration = Duration::from_millis(100);

/// Stateless answers (RETRY, ALERT) waiting to be sent; more are dropped, their askers ask again.
const MAX_ANSWERS: usize = 64;

/// Who asks for a connection: the nonce of an INIT or RESUME, and where it came from. A copy from elsewhere is a
/// handshake of its own, and does not stop the one it was made of.
type Asker = ([u8; 32], SocketAddr);

/// The network of an address that somebody may have all of: an IPv4 address, the first half of an IPv6 address.
fn network(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
    }
}

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
    inits: BTreeMap<Asker, u32>,
    /// The CIDs that peers chose, to find who a RESET is for (§10.7).
    remotes: BTreeMap<Cid, u32>,
    tickets: Tickets,
    reset_key: Secret,
    /// When the present tenth of a second for RESETs began, and how many were sent in it.
    resets: (Instant, u32),
    /// Handshakes begun by others and not confirmed, the oldest first.
    half_open: Vec<u32>,
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
        let mut root = Secret([0; 32]);
        random.fill_bytes(&mut root.0);
        let mut reset_key = Secret([0; 32]);
        random.fill_bytes(&mut reset_key.0);
        let mut instance = [0; 8];
        random.fill_bytes(&mut instance);
        let max_early = config.max_early_tickets;
        Self {
            remotes: BTreeMap::new(),
            tickets: Tickets::new(root, (Instant::ZERO, 0), instance, max_early),
            reset_key,
            resets: (Instant::ZERO, 0),
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
            half_open: Vec::new(),
            answers: VecDeque::new(),
        }
    }

    /// Shows this identity in handshakes from now on: the same key with a renewed credential, say.
    pub fn set_identity(&mut self, identity: Identity) {
        self.identity = identity;
    }

    /// Gives a secret that outlives this endpoint: then tickets stay valid after a restart, and peers notice a
    /// restart at once. Without it both are random. `unix` is the time of day at `now`, since 1970: the lifetime of
    /// tickets is counted by it. To be called before the first connection. No two endpoints may use one secret at the
    /// same time: one could be made to reset the other's connections.
    pub fn set_lasting_secret(&mut self, secret: &[u8; 32], now: Instant, unix: Duration) {
        let root = Secret(mac(secret, &[b"utp2 tickets"]));
        self.tickets.set_root(root, (now, unix.as_secs()));
        self.reset_key = Secret(mac(secret, &[b"utp2 reset"]));
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

    /// Lets connections that were closed end within 8 ms: their copies of CLOSE leave 2 ms after each other instead of
    /// being spread over three probe timeouts (§10.1), and nobody who missed them is told again. For a process that
    /// ends, and whose peers need nothing of it any more.
    pub fn hasten_end(&mut self, now: Instant) {
        for slot in self.slots.occupied() {
            if let Some(c) = self.slots.get_mut(slot) {
                c.hasten_end(now);
                self.after(slot);
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
        self.start(now, remote, context, None, Vec::new())
    }

    /// As [`Endpoint::connect`], with `first` messages that are queued when the connection stands, before all others.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect_with(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        context: ContextId,
        first: &[&[u8]],
    ) -> Result<Handle, ConnectError> {
        let first = self.first_messages(first)?;
        self.start(now, remote, context, None, first)
    }

    /// Copies messages that will find room.
    fn first_messages(&self, messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, ConnectError> {
        let bytes: usize = messages.iter().map(|m| m.len() + 4).sum();
        let too_long = messages.iter().any(|m| m.len() > self.config.max_message);
        if bytes > self.config.message_buffer / 2 || too_long {
            return Err(ConnectError::EarlyTooLong);
        }
        Ok(messages.iter().map(|m| m.to_vec()).collect())
    }

    /// As [`Endpoint::connect`], in one round trip if the peer still takes the ticket, else by a full handshake, one
    /// round trip later than without. The [`Authorizer`] is asked about the peer as it was known; so is the peer's
    /// about us.
    ///
    /// `early` messages go with the first packet as far as they fit, and reach the application there as
    /// [`Event::EarlyMessage`]: only for requests that do no harm when carried out twice, since an attacker may
    /// withhold and deliver them at another time, and since they are not protected should the peer's ticket keys be
    /// stolen later. What the peer does not take as early data follows as ordinary messages.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect_resumed(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        resumption: Resumption,
        early: &[&[u8]],
    ) -> Result<Handle, ConnectError> {
        let early = self.first_messages(early)?;
        let (context, memory) = (resumption.context, resumption.memory);
        let welcome = self.authorizer.authorize(context, &resumption.peer);
        let handle = self.start(now, remote, context, welcome.then_some(resumption), early)?;
        if let (Some(memory), Some(c)) = (memory, self.slots.get_mut(handle.slot)) {
            c.recall_path(memory);
        }
        Ok(handle)
    }

    fn start(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        context: ContextId,
        resumption: Option<Resumption>,
        early: Vec<Vec<u8>>,
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
        let resuming = resumption.map(|r| {
            let (mut first, mut x) = ([0; 32], [0; 32]);
            self.random.fill_bytes(&mut first);
            self.random.fill_bytes(&mut x);
            let token = self.reset_token(&cid);
            Box::new(Resuming::new(&self.config, r, &secret, (cid, first, x), token, &early))
        });
        let initiator = Initiator::new(now, context, secret, cid, nonce, exponent, timeout, resuming);
        let make = |h| Connection::initiate(h, context, remote, initiator, early);
        let handle = self.slots.insert(make, cid, None);
        self.cids.insert(cid, handle.slot);
        self.after(handle.slot);
        Ok(handle)
    }

    fn reset_token(&self, cid: &Cid) -> [u8; TOKEN] {
        let full = self.reset_key.mac(&[b"utp2 reset", cid]);
        let mut out = [0; TOKEN];
        out.copy_from_slice(&full[..TOKEN]);
        out
    }

    fn new_cid(&mut self) -> Cid {
        loop {
            let mut cid = [0; 8];
            self.random.fill_bytes(&mut cid);
            // Zero stands for "none yet" in INIT; what begins as other protocols on the socket do is theirs (§3.8).
            if cid != [0; 8] && !cid.starts_with(&crate::BESIDE[1..]) && !self.cids.contains_key(&cid) {
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
            Header::Handshake { kind: Kind::Resume, .. } => return self.on_resume(now, remote, data),
            Header::Handshake { kind: Kind::Reset, cid } => return self.on_reset(&cid, data),
            Header::OtherVersion { version, kind, cid } => {
                return self.on_other_version(remote, (version, kind, cid), data);
            }
            Header::Handshake { cid, .. } | Header::Protected { cid, .. } => cid,
        };
        let Some(&slot) = self.cids.get(&cid) else {
            if matches!(header, Header::Protected { .. }) {
                self.reset(now, remote, &cid, data.len());
            }
            return;
        };
        let (mut seed, mut reset_token) = ([0; 32], [0; TOKEN]);
        if matches!(header, Header::Handshake { .. }) {
            self.random.fill_bytes(&mut seed);
            reset_token = self.reset_token(&cid);
        }
        let authorizer = self.authorizer.as_ref();
        let local = Local { config: &self.config, identity: &self.identity, authorizer, reset_token };
        if let Some(c) = self.slots.get_mut(slot) {
            c.handle_datagram(now, arrival, &header, data, &local, seed, sink);
            if let Some(session) = c.wants_ticket(now).filter(|_| self.config.issue_tickets) {
                let mut nonce = [0; 16];
                self.random.fill_bytes(&mut nonce);
                let (secret, memory) = (session.ticket_secret(&nonce), session.path_memory());
                let proved = session.proved().unwrap_or_else(|| self.tickets.time(now));
                let (context, peer) = (c.context(), session.peer());
                let issued = self.tickets.issue(now, nonce, context, peer, &secret, proved, memory);
                let ticket = issued.map(|(bytes, lifetime)| IssuedTicket {
                    lifetime: u32::try_from(lifetime).unwrap_or(u32::MAX),
                    nonce,
                    bytes,
                });
                c.give_ticket(now, proved, memory, ticket);
            }
            self.after(slot);
        }
    }

    /// Tells who sends to a connection we do not know that there is none (§10.7).
    fn reset(&mut self, now: Instant, to: SocketAddr, lost: &Cid, received: usize) {
        if received <= RESET {
            return;
        }
        if now.saturating_since(self.resets.0) >= RESET_PERIOD {
            self.resets = (now, 0);
        }
        if self.resets.1 < RESETS_PER_PERIOD {
            self.resets.1 += 1;
            let mut out = Vec::new();
            emit_reset(lost, &self.reset_token(lost), &mut out);
            self.answer(to, out);
        }
    }

    fn on_reset(&mut self, lost: &Cid, data: &[u8]) {
        let (Ok(token), Some(&slot)) = (parse_reset(data), self.remotes.get(lost)) else { return };
        if let Some(c) = self.slots.get_mut(slot) {
            c.on_reset(&token);
            self.after(slot);
        }
    }

    // No part of its caller, whose stack would be that deep for every packet.
    #[inline(never)]
    fn on_resume(&mut self, now: Instant, from: SocketAddr, data: &[u8]) {
        let Ok(resume) = Resume::parse(data) else { return };
        if self.on_repeated((resume.head.nonce, from)) {
            return;
        }
        let asker = (&resume.head.source, &resume.head.nonce);
        if !self.admit(now, from, asker, resume.cookie) {
            return;
        }
        if !self.try_resume(now, from, data, &resume) {
            self.alert(from, &resume.head.source, Alert::Ticket);
        }
    }

    /// Whether the ticket of a RESUME is taken.
    fn try_resume(&mut self, now: Instant, from: SocketAddr, data: &[u8], resume: &Resume<'_>) -> bool {
        if resume.head.suite != SUITE_RESUME {
            return false;
        }
        let Some(ticket) = self.tickets.open(now, resume.ticket) else { return false };
        let context = ticket.context;
        let Some(known) = self.contexts.get(&context) else { return false };
        let max_message = self.config.max_message;
        let Some(mut opened) = Opened::new(data, resume, &ticket, &known.secret, max_message) else {
            return false;
        };
        // It was welcome when the ticket was issued; now is what counts.
        if !self.authorizer.authorize(context, &ticket.peer) {
            return false;
        }
        let early =
            !opened.messages.is_empty() && self.config.accept_early && self.tickets.strike(now, &ticket);
        let cid = self.new_cid();
        let (mut nonce, mut x, mut seed) = ([0; 32], [0; 32], [0; 32]);
        self.random.fill_bytes(&mut nonce);
        self.random.fill_bytes(&mut x);
        self.random.fill_bytes(&mut seed);
        let local = Local {
            config: &self.config,
            identity: &self.identity,
            authorizer: self.authorizer.as_ref(),
            reset_token: self.reset_token(&cid),
        };
        let memory = ticket.memory;
        let Some(answer) = opened.answer(resume, ticket, &local, (cid, nonce, x), from, early) else {
            return false;
        };
        let messages = early.then(|| core::mem::take(&mut opened.messages));
        let (config, asker) = (&self.config, (from, data.len()));
        let make = |h| Connection::respond_resumed(h, context, now, asker, answer, messages, config, seed);
        let handle = self.slots.insert(make, cid, Some((resume.head.nonce, from)));
        self.cids.insert(cid, handle.slot);
        self.inits.insert((resume.head.nonce, from), handle.slot);
        if let (Some(memory), Some(c)) = (memory, self.slots.get_mut(handle.slot)) {
            c.recall_path(memory);
        }
        self.after(handle.slot);
        true
    }

    fn alert(&mut self, to: SocketAddr, cid: &Cid, alert: Alert) {
        let mut out = Vec::new();
        alert.emit(cid, &mut out);
        self.answer(to, out);
    }

    /// Whether this is a repetition, which is answered as before.
    fn on_repeated(&mut self, asker: Asker) -> bool {
        let Some(&slot) = self.inits.get(&asker) else { return false };
        if let Some(c) = self.slots.get_mut(slot)
            && c.remote() == asker.1
        {
            c.on_repeated_init();
            self.after(slot);
        }
        true
    }

    /// Whether another handshake is begun, perhaps only with a cookie. Nothing costly before this, and nothing kept
    /// (§5.3).
    fn admit(&mut self, now: Instant, from: SocketAddr, asker: cookie::Asker<'_>, cookie: &[u8]) -> bool {
        if self.half_open.len() >= self.config.retry_threshold
            && !cookie::is_valid(&self.cookie_key, now, from, asker, cookie)
        {
            let cookie = cookie::issue(&self.cookie_key, now, from, asker);
            let mut out = Vec::new();
            Retry { cookie: &cookie }.emit(asker.0, &mut out);
            self.answer(from, out);
            return false;
        }
        if self.half_open.len() >= self.config.max_handshakes {
            self.displace();
        }
        let full = self.half_open.len() >= self.config.max_handshakes;
        if full || self.slots.len() >= self.config.max_connections {
            self.alert(from, asker.0, Alert::Busy);
            return false;
        }
        true
    }

    /// Makes room for a handshake: the oldest that has proved nothing gives way, of the network that has most of them,
    /// so that who only begins handshakes displaces himself (§5.7).
    fn displace(&mut self) {
        let mut unproven = BTreeMap::<u64, (usize, Reverse<usize>, u32)>::new();
        for (age, &slot) in self.half_open.iter().enumerate() {
            if let Some(c) = self.slots.get_mut(slot).filter(|c| c.is_unproven()) {
                let of = unproven.entry(network(c.remote().ip())).or_insert((0, Reverse(age), slot));
                of.0 += 1;
            }
        }
        if let Some(&(.., slot)) = unproven.values().max()
            && let Some(c) = self.slots.get_mut(slot)
        {
            c.abandon();
            self.after(slot);
        }
    }

    fn answer(&mut self, to: SocketAddr, datagram: Vec<u8>) {
        if self.answers.len() < MAX_ANSWERS {
            self.answers.push_back((to, datagram));
        }
    }

    /// Tells an initiator of another version that we do not speak it, in its version: it need not read any other. And
    /// hears that from a responder, which perhaps says it in its own (§3.7).
    fn on_other_version(&mut self, from: SocketAddr, (version, kind, cid): (u32, u8, Cid), data: &[u8]) {
        const INIT: u8 = Kind::Init as u8;
        const RESUME: u8 = Kind::Resume as u8;
        const ALERT: u8 = Kind::Alert as u8;
        match kind {
            // As long as an INIT, so nothing is amplified.
            INIT | RESUME => {
                let Ok(asker) = asker_of_any_version(data) else { return };
                let mut out = Vec::new();
                Alert::emit_version(version, &asker, &mut out);
                self.answer(from, out);
            }
            ALERT => {
                let Some(&slot) = self.cids.get(&cid) else { return };
                if Alert::parse(data) == Ok(Alert::Version)
                    && let Some(c) = self.slots.get_mut(slot)
                {
                    c.on_other_version(from);
                    self.after(slot);
                }
            }
            _ => {}
        }
    }

    // No part of its caller, whose stack would be that deep for every packet.
    #[inline(never)]
    fn on_init(&mut self, now: Instant, from: SocketAddr, data: &[u8]) {
        let Ok(init) = Init::parse(data) else { return };
        if self.on_repeated((init.nonce, from)) {
            return;
        }
        if init.suite != SUITE {
            return self.alert(from, &init.source, Alert::Version);
        }
        if !self.admit(now, from, (&init.source, &init.nonce), init.cookie) {
            return;
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
        let responder =
            Responder::new(now, context, (from, data), &init, verifier, self.salt, secrets, timeout);
        let handle = self.slots.insert(
            |h| Connection::respond(h, context, from, responder),
            cid,
            Some((init.nonce, from)),
        );
        self.cids.insert(cid, handle.slot);
        self.inits.insert((init.nonce, from), handle.slot);
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
        match (was, half_open && !gone) {
            (false, true) => self.half_open.push(slot),
            (true, false) => self.half_open.retain(|s| *s != slot),
            _ => {}
        }
        if gone {
            self.remove(slot);
        } else {
            if let Some(cid) = self.slots.learn_remote(slot) {
                // Two peers may have chosen the same, one of them on purpose: the first keeps it.
                self.remotes.entry(cid).or_insert(slot);
            }
            self.slots.touch(slot);
        }
    }

    fn remove(&mut self, slot: u32) {
        if let Some(known) = self.slots.remove(slot) {
            self.cids.remove(&known.cid);
            if let Some(asker) = known.asker {
                self.inits.remove(&asker);
            }
            if let Some(cid) = known.remote_cid.filter(|c| self.remotes.get(c) == Some(&slot)) {
                self.remotes.remove(&cid);
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
