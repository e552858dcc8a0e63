//! Sessions with the peers of the order, one after the other, and what is fetched over them.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::net::SocketAddr;
use core::time::Duration;

use agent_proto::peer::PeerMessage;
use agent_proto::{Credential, RunSecret};
use device_core::{Device, Fetch, FetchError, Slot, Step};
use event_schema::{JoinRun, RunAgentState, RunId};
use timebase::Instant;
use utp2::{
    Arrival, Authorizer, BlockSink, BlockSource, Config, ContextId, Endpoint, Event, Handle, Identity,
    PeerIdentity, SendError, SourceError,
};

use crate::board::{self, Flash};
use crate::say;

/// Before the next peer is called.
const PAUSE: Duration = Duration::from_millis(500);
/// Before a peer that lies is called again.
const LONG_PAUSE: Duration = Duration::from_secs(60);
/// Codes with which sessions are closed, as agents use them: there is no more to do; the peer broke a rule.
const GOING: u16 = 1;
const BROKEN: u16 = 3;
const VERSION: &str = concat!("device/", env!("CARGO_PKG_VERSION"));

/// What is to be done now.
pub(crate) enum After {
    GoOn,
    /// The image is to be tried.
    Restart,
    /// The run has ended here so.
    End(RunAgentState),
}

/// Lets in who takes part in the run and has a credential of this fleet.
struct Members {
    keys: Vec<[u8; 32]>,
    credential_keys: Vec<[u8; 32]>,
    root: [u8; 32],
}

impl Authorizer for Members {
    fn authorize(&self, _: ContextId, peer: &PeerIdentity) -> bool {
        let now = board::time_of_day();
        self.keys.contains(&peer.public_key)
            && Credential::open(&peer.credential, &self.credential_keys, &self.root, &peer.public_key, now)
                .is_ok()
    }
}

/// A device gives nothing yet.
struct Nothing;

impl BlockSource for Nothing {
    fn read(&mut self, _: Handle, _: u64, _: u32, _: &mut [u8]) -> Result<(), SourceError> {
        Err(SourceError)
    }
}

/// Where pieces go.
struct Into<'a> {
    fetch: Option<&'a mut Fetch>,
    device: &'a mut Device<Flash>,
    steps: Vec<Result<Step, FetchError>>,
}

impl BlockSink for Into<'_> {
    fn write(&mut self, _: Handle, tag: u64, offset: u32, _: bool, data: &[u8]) {
        if let Some(fetch) = &mut self.fetch {
            match fetch.handle_piece(self.device, tag, offset, data) {
                Ok(Step::More) => {}
                step => self.steps.push(step),
            }
        }
    }
}

/// The peers of the order, and the session with one of them.
pub(crate) struct Peers {
    endpoint: Endpoint,
    context: ContextId,
    run: RunId,
    source: [u8; 32],
    addresses: Vec<SocketAddr>,
    next: usize,
    call_at: Instant,
    session: Option<Handle>,
    fetch: Option<Fetch>,
    /// A message that found no room.
    held: Option<Vec<u8>>,
    steps: Vec<Result<Step, FetchError>>,
    /// Nothing is to be fetched any more.
    over: bool,
}

impl Peers {
    pub(crate) fn new(
        device: &Device<Flash>,
        join: &JoinRun,
        secret: &RunSecret,
        credential: Vec<u8>,
        seed: [u8; 32],
    ) -> Result<Self, &'static str> {
        let source = join.peers.iter().find(|peer| peer.agent == join.source);
        let source = source.ok_or("the order does not name its source")?.public_key;
        let addresses: Vec<SocketAddr> =
            join.peers.iter().flat_map(|peer| &peer.addresses).filter_map(|at| at.parse().ok()).collect();
        if addresses.is_empty() {
            return Err("the order names no address");
        }
        let members = Members {
            keys: join.peers.iter().map(|peer| peer.public_key).collect(),
            credential_keys: device.credential_keys().to_vec(),
            root: *device.root_key(),
        };
        let identity = Identity::new(device.key().to_bytes(), credential);
        let mut endpoint = Endpoint::new(Config::small(), identity, Box::new(members), seed);
        let context = ContextId(secret.utp2_context());
        endpoint.add_context(context, &secret.utp2_secret());
        Ok(Self {
            endpoint,
            context,
            run: join.run,
            source,
            addresses,
            next: 0,
            call_at: Instant::ZERO,
            session: None,
            fetch: None,
            held: None,
            steps: Vec::new(),
            over: false,
        })
    }

    pub(crate) fn handle_datagram(
        &mut self,
        now: Instant,
        arrival: Arrival,
        data: &mut [u8],
        device: &mut Device<Flash>,
    ) {
        let mut sink = Into { fetch: self.fetch.as_mut(), device, steps: Vec::new() };
        self.endpoint.handle_datagram(now, arrival, data, &mut sink);
        self.steps.append(&mut sink.steps);
    }

    /// Acts on what is due and on what came; to be called after all datagrams.
    #[inline(never)]
    pub(crate) fn drive(&mut self, now: Instant, device: &mut Device<Flash>) -> After {
        if self.endpoint.poll_timeout().is_some_and(|at| at <= now) {
            self.endpoint.handle_timeout(now);
        }
        self.call(now);
        while let Some((handle, event)) = self.endpoint.poll_event() {
            match event {
                Event::Connected => self.connected(device),
                Event::Message(message) => self.message(device, &message),
                Event::Closed(why) if self.session == Some(handle) => {
                    say!("CLOSED {why}");
                    (self.session, self.fetch, self.held) = (None, None, None);
                    self.call_at = self.call_at.max(now + PAUSE);
                }
                _ => {}
            }
        }
        let mut after = After::GoOn;
        for step in core::mem::take(&mut self.steps) {
            match self.step(now, device, step) {
                After::GoOn => {}
                done => after = done,
            }
        }
        self.tell();
        after
    }

    fn call(&mut self, now: Instant) {
        if self.session.is_some() || self.over || now < self.call_at {
            return;
        }
        let to = self.addresses[self.next % self.addresses.len()];
        self.next = self.next.wrapping_add(1);
        self.call_at = now + PAUSE;
        match self.endpoint.connect(now, to, self.context) {
            Ok(handle) => self.session = Some(handle),
            Err(e) => {
                say!("{to} is not called: {e}");
            }
        }
    }

    fn connected(&mut self, device: &mut Device<Flash>) {
        say!("CONNECTED");
        // What was started can be reached and so be replaced: that is what a trial has to show.
        for slot in [Slot::A, Slot::B] {
            match device.confirm(slot) {
                Ok(true) => {
                    say!("CONFIRMED version {}", device.version());
                }
                Ok(false) => {}
                Err(e) => {
                    say!("not confirmed: {e}");
                }
            }
        }
        self.fetch = Some(Fetch::new(self.run, self.source, VERSION));
    }

    fn message(&mut self, device: &mut Device<Flash>, message: &[u8]) {
        let Some(fetch) = &mut self.fetch else { return };
        let step = match PeerMessage::decode(message) {
            Ok(message) => fetch.handle_message(device, message),
            Err(_) => Err(FetchError::Peer("a message that is none")),
        };
        self.steps.push(step);
    }

    fn step(&mut self, now: Instant, device: &mut Device<Flash>, step: Result<Step, FetchError>) -> After {
        match step {
            Ok(Step::More) => After::GoOn,
            Ok(Step::Kept(block)) => {
                say!("KEPT {block}");
                After::GoOn
            }
            Ok(Step::Ready) => match device.activate() {
                Ok(_) => After::Restart,
                Err(e) => {
                    say!("not activated: {e}");
                    After::GoOn
                }
            },
            Ok(Step::Installed) => {
                self.over = true;
                After::End(RunAgentState::Done)
            }
            Err(why) => {
                say!("LEFT {why}");
                self.fetch = None;
                if let Some(session) = self.session.and_then(|handle| self.endpoint.connection_mut(handle)) {
                    session.close(if matches!(why, FetchError::Peer(_)) { BROKEN } else { GOING }, "");
                }
                match why {
                    FetchError::Refused(_) | FetchError::NoImage(_) => {
                        self.over = true;
                        After::End(RunAgentState::Failed)
                    }
                    FetchError::Peer(_) => {
                        self.call_at = now + LONG_PAUSE;
                        After::GoOn
                    }
                    FetchError::Device(_) => After::GoOn,
                }
            }
        }
    }

    /// Sends what there is to say.
    fn tell(&mut self) {
        let (Some(fetch), Some(handle)) = (&mut self.fetch, self.session) else { return };
        let Some(connection) = self.endpoint.connection_mut(handle) else { return };
        while let Some(message) = self.held.take().or_else(|| fetch.poll_message().map(|m| m.encode())) {
            match connection.send_message(&message) {
                Ok(()) => {}
                Err(SendError::Blocked) => {
                    self.held = Some(message);
                    return;
                }
                Err(_) => return,
            }
        }
    }

    pub(crate) fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<SocketAddr> {
        let transmit = self.endpoint.poll_transmit(now, 1, out, &mut Nothing)?;
        out.truncate(transmit.len);
        Some(transmit.remote)
    }
}
