//! All connections of one socket.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::SocketAddr;

use timebase::Instant;

use crate::{
    Authorizer, BlockSink, BlockSource, Config, ConnectError, Connection, ContextId, Event, Handle, Identity,
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
}

/// All connections of one socket; see the crate's page for how to drive it.
pub struct Endpoint {}

impl Endpoint {
    /// An endpoint without connections or contexts. All randomness comes from `seed`, which must be unpredictable
    /// and must never be used for a second endpoint.
    ///
    /// # Panics
    /// If [`Config::validate`] refuses the configuration.
    pub fn new(
        config: Config,
        _identity: Identity,
        _authorizer: Box<dyn Authorizer + Send>,
        _seed: [u8; 32],
    ) -> Self {
        config.validate().expect("configuration");
        Self {}
    }

    /// Makes a secret usable in both directions; replaces the secret of a context that is there already.
    pub fn add_context(&mut self, _context: ContextId, _secret: &[u8; 32]) {}

    /// Forgets a secret and closes the context's connections.
    pub fn remove_context(&mut self, _context: ContextId) {}

    /// Starts connecting. [`Event::Connected`] or [`Event::Closed`] follows.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect(
        &mut self,
        _now: Instant,
        _remote: SocketAddr,
        _context: ContextId,
    ) -> Result<Handle, ConnectError> {
        Err(ConnectError::UnknownContext)
    }

    /// Takes one datagram; it is decrypted in place. Anything that is not authentic is dropped.
    pub fn handle_datagram(
        &mut self,
        _now: Instant,
        _remote: SocketAddr,
        _data: &mut [u8],
        _sink: &mut dyn BlockSink,
    ) {
    }

    /// Acts on what is due.
    pub fn handle_timeout(&mut self, _now: Instant) {}

    /// When to call [`Endpoint::handle_timeout`] next.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        None
    }

    /// Clears `buf` and fills it with 1 to `max_segments` packets to one destination.
    pub fn poll_transmit(
        &mut self,
        _now: Instant,
        _max_segments: usize,
        _buf: &mut Vec<u8>,
        _source: &mut dyn BlockSource,
    ) -> Option<Transmit> {
        None
    }

    /// The next event, oldest first.
    pub fn poll_event(&mut self) -> Option<(Handle, Event)> {
        None
    }

    /// The connection, until its [`Event::Closed`] was delivered.
    pub fn connection(&self, _handle: Handle) -> Option<&Connection> {
        None
    }

    /// The connection, to act on; call [`Endpoint::poll_transmit`] and [`Endpoint::poll_timeout`] afterwards.
    pub fn connection_mut(&mut self, _handle: Handle) -> Option<&mut Connection> {
        None
    }
}
