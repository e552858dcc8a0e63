//! The endpoint's handle: bind, contexts, connect, accept, close.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot};
use utp2::{Authorizer, CloseReason, Config, ContextId, Ecn, Identity, PeerIdentity, Resumption};

use crate::beside::{Beside, DETOUR_HEADER, is_detour};
use crate::connection::Connection;
use crate::driver::Driver;
use crate::fault::LossInjector;
use crate::shared::{Blocks, INCOMING_MAX, Shared};
use crate::socket::{NotSent, Socket};
use crate::{BlockSink, BlockSource};

/// What an endpoint needs to know.
pub struct EndpointConfig {
    /// Settings and limits of the core. Who sets [`Config::accept_early`] must read
    /// [`Connection::early_messages`] of each accepted connection.
    pub core: Config,
    /// Who we are.
    pub identity: Identity,
    /// Who may connect, asked in both directions after the peer has proved its key. Called on the driver:
    /// it must be quick and must not call this crate.
    pub authorizer: Box<dyn Authorizer + Send>,
    /// A bad path to imitate, for tests and diagnosis. Default none.
    pub fault: Option<LossInjector>,
}

/// A closure as [`Authorizer`].
struct FnAuthorizer<F>(F);

impl<F: Fn(ContextId, &PeerIdentity) -> bool> Authorizer for FnAuthorizer<F> {
    fn authorize(&self, context: ContextId, peer: &PeerIdentity) -> bool {
        (self.0)(context, peer)
    }
}

impl EndpointConfig {
    /// The core's defaults, with a function that says who may connect.
    pub fn new(
        identity: Identity,
        may_connect: impl Fn(ContextId, &PeerIdentity) -> bool + Send + 'static,
    ) -> Self {
        Self {
            core: Config::default(),
            identity,
            authorizer: Box::new(FnAuthorizer(may_connect)),
            fault: None,
        }
    }
}

/// Why [`Endpoint::connect`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Asked for a context that was not added, or too many connections.
    #[error(transparent)]
    Refused(#[from] utp2::ConnectError),
    /// The peer did not answer, refused, or proved the wrong thing.
    #[error("{0}")]
    Handshake(CloseReason),
    /// This endpoint has been closed.
    #[error("the endpoint is closed")]
    EndpointClosed,
}

/// What the socket says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketStats {
    /// Datagrams the kernel dropped because we did not read fast enough; `None` where it does not tell.
    /// They look like loss on the path.
    pub kernel_drops: Option<u64>,
}

/// Ends the driver with the last handle.
pub(crate) struct Lifetime(Arc<Shared>);

impl Drop for Lifetime {
    fn drop(&mut self) {
        self.0.begin_end();
    }
}

/// A UDP socket with µTP2 on it. Cheap to clone. When every clone and the [`Incoming`] are gone, its
/// connections are closed and the socket with them.
#[derive(Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    _lifetime: Arc<Lifetime>,
}

/// The connections that peers make.
pub struct Incoming {
    connections: mpsc::Receiver<Connection>,
    _lifetime: Arc<Lifetime>,
}

impl Endpoint {
    /// Binds a socket and starts the driver on the current tokio runtime. `[::]` also serves IPv4 where
    /// the system has dual-stack sockets.
    ///
    /// # Errors
    /// The address cannot be bound, the settings are out of range, or the system lacks randomness or
    /// file descriptors.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(addr: SocketAddr, config: EndpointConfig) -> io::Result<(Self, Incoming)> {
        let EndpointConfig { core, identity, authorizer, fault } = config;
        core.validate().map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e.to_string()))?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| io::Error::other(e.to_string()))?;
        let socket = Socket::bind(addr)?;
        let local_addr = socket.local_addr()?;
        let (sender, connections) = mpsc::channel(INCOMING_MAX);
        let max_datagram = core.max_datagram;
        let unread_max = core.message_buffer;
        let endpoint = utp2::Endpoint::new(core, identity, authorizer, seed);
        let shared = Shared::new(endpoint, socket, sender, unread_max);
        let driver = Driver::new(shared.clone(), max_datagram, fault.as_ref())?;
        tokio::spawn(driver.run());
        let lifetime = Arc::new(Lifetime(shared.clone()));
        Ok((
            Self { shared, local_addr, _lifetime: lifetime.clone() },
            Incoming { connections, _lifetime: lifetime },
        ))
    }

    /// The address bound, with the port the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Shows this identity in handshakes from now on: the same key with a renewed credential, say.
    pub fn set_identity(&self, identity: Identity) {
        self.shared.core().endpoint.set_identity(identity);
    }

    /// Makes a context usable in both directions; blocks of its connections come from `source` and go to
    /// `sink`. Adding one again replaces the secret, and source and sink for connections made from now on.
    pub fn add_context(
        &self,
        context: ContextId,
        secret: [u8; 32],
        source: Arc<dyn BlockSource>,
        sink: Arc<dyn BlockSink>,
    ) {
        self.shared.core().add_context(context, &secret, Blocks { source, sink });
    }

    /// Forgets a context and closes its connections.
    pub fn remove_context(&self, context: ContextId) {
        self.shared.core().remove_context(context);
        self.shared.wake();
    }

    /// Connects and proves. Takes 2 round trips, one to a peer that this endpoint was connected to before, and at most [`Config::handshake_timeout`]. Dropping the
    /// future gives up.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self, remote: SocketAddr, context: ContextId) -> Result<Connection, ConnectError> {
        self.connect_with(remote, context, &[]).await
    }

    /// As [`Endpoint::connect`], with messages to begin with. To a peer this endpoint was connected to before, what
    /// fits of them (about 700 bytes) goes with the very first packet, so that the answer is there when this returns.
    /// Whatever is not taken as early comes as ordinary messages, in order and before all others: so it is one or
    /// the other, and both only if the peer's answer to the first packet was lost for good.
    ///
    /// An early message may be a copy that an attacker held back, up to the ticket's lifetime: so `first` is for
    /// requests that do no harm twice or late. The peer reads them by [`Connection::early_messages`].
    ///
    /// # Errors
    /// See [`ConnectError`]. Together they must have half of [`Config::message_buffer`] at most. A message that is
    /// longer than the peer takes, which nobody knows before, is dropped.
    pub async fn connect_with(
        &self,
        remote: SocketAddr,
        context: ContextId,
        first: &[&[u8]],
    ) -> Result<Connection, ConnectError> {
        let (told, result) = oneshot::channel();
        let conn = {
            let mut core = self.shared.core();
            if self.shared.is_ending() {
                return Err(ConnectError::EndpointClosed);
            }
            let now = core.advance_to(self.shared.now());
            let state = core.connect(now, remote, context, first, told)?;
            // From here on the handle closes the connection if it is dropped.
            Connection::new(self.shared.clone(), state)
        };
        self.shared.wake();
        match result.await {
            Ok(Ok(())) => Ok(conn),
            Ok(Err(reason)) => Err(ConnectError::Handshake(reason)),
            Err(_driver_ended) => Err(ConnectError::EndpointClosed),
        }
    }

    /// What is kept to come back to peers this endpoint connected to: with it, [`Endpoint::connect`] takes one round
    /// trip instead of two and begins at the rate the path sustained. By the address given to `connect`; at most 256.
    /// To be stored by who wants it to outlive this endpoint, as privately as a key; best asked for after the
    /// connections have ended, on whichever side.
    #[must_use]
    pub fn resumptions(&self) -> Vec<(SocketAddr, Resumption)> {
        self.shared.core().tickets.all()
    }

    /// Takes what an earlier endpoint's [`Endpoint::resumptions`] gave.
    pub fn remember(&self, remote: SocketAddr, resumption: Resumption) {
        self.shared.core().tickets.put(remote, resumption);
    }

    /// Gives a secret that outlives this endpoint; see [`utp2::Endpoint::set_lasting_secret`].
    pub fn set_lasting_secret(&self, secret: &[u8; 32]) {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = self.shared.now();
        self.shared.core().endpoint.set_lasting_secret(secret, now, unix);
    }

    /// Takes what comes to the socket and is not µTP2's: datagrams that begin with [`utp2::BESIDE`]. Who took it before
    /// gets no more. 1024 wait; more are lost.
    #[must_use]
    pub fn beside(&self) -> mpsc::Receiver<Beside> {
        self.shared.beside.take()
    }

    /// Sends a datagram of the protocol beside µTP2 from the socket.
    ///
    /// # Errors
    /// It does not begin with [`utp2::BESIDE`], so that the peer would take it for µTP2; or the socket has no room.
    /// What the system or the network does to it afterwards is not told.
    pub fn send_beside(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        if !datagram.starts_with(&utp2::BESIDE) || is_detour(to) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.shared.socket.try_send(to, Ecn::NotEct, datagram, None).map_err(|not_sent| match not_sent {
            NotSent::WouldBlock => io::ErrorKind::WouldBlock.into(),
            NotSent::TooLarge(_) => io::ErrorKind::InvalidInput.into(),
        })
    }

    /// Makes an address for a peer that is reached by way of `via`: packets to it go there behind `header`, and what
    /// comes from there behind `header` counts as come from it. `None` if there are 1024 already, or `header` does not
    /// begin with [`utp2::BESIDE`].
    #[must_use]
    pub fn add_detour(&self, via: SocketAddr, header: [u8; DETOUR_HEADER]) -> Option<SocketAddr> {
        self.shared.beside.add(via, header)
    }

    /// Forgets a detour. Connections over it that find no other way end of silence.
    pub fn remove_detour(&self, place: SocketAddr) {
        self.shared.beside.remove(place);
    }

    /// Whether an address was made by [`Endpoint::add_detour`], here or elsewhere.
    #[must_use]
    pub fn is_detour(addr: SocketAddr) -> bool {
        is_detour(addr)
    }

    /// What the socket says about itself. Reads a file of the kernel: not for every packet.
    #[must_use]
    pub fn socket_stats(&self) -> SocketStats {
        SocketStats { kernel_drops: self.shared.socket.kernel_drops() }
    }

    /// Closes all connections, tells the peers until they must have heard, and waits for that: three probe timeouts,
    /// 1 s at most.
    pub async fn close(&self) {
        self.finish().await;
    }

    /// As [`Endpoint::close`], for who is in a hurry: the peers are told four times within 6 ms (§10.1), and that has
    /// left when this returns (or the socket took nothing for 50 ms). A peer that missed all four hears nothing more,
    /// so it should be able to end by itself: because it said the last word, say.
    pub async fn leave(&self) {
        self.shared.hasten_end();
        self.finish().await;
    }

    async fn finish(&self) {
        let ended = self.shared.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        self.shared.begin_end();
        if !self.shared.has_ended() {
            ended.await;
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

impl Incoming {
    /// The next connection a peer has made; authenticated and authorized. `None` once the endpoint ends.
    /// When 256 wait here, further ones are closed.
    pub async fn accept(&mut self) -> Option<Connection> {
        self.connections.recv().await
    }
}
