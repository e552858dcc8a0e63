//! A connection's handle: messages, blocks, figures, the end.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Notify;
use utp2::{CloseReason, ContextId, Handle, Mode, PeerIdentity, SendError, Stats};

use crate::shared::{ConnState, Mailbox, Shared};

/// The connection is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection is closed: {reason}")]
pub struct Closed {
    /// Why.
    pub reason: CloseReason,
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendMessageError {
    /// The buffer is full (never from [`Connection::send_message`], which waits).
    #[error("no room for the message now")]
    Blocked,
    /// Longer than the peer or we accept.
    #[error("the message is longer than the connection carries")]
    TooLarge,
    /// The connection is over.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockEvent {
    /// Every byte was acknowledged by the peer.
    Sent {
        /// The block's tag.
        tag: u64,
    },
    /// The source could not read it; it was given up.
    Failed {
        /// The block's tag.
        tag: u64,
    },
    /// So many events before the next one were dropped, because nobody read them.
    Lagged {
        /// How many.
        count: u64,
    },
}

/// Closes the connection with its last handle.
struct Owner {
    shared: Arc<Shared>,
    state: Arc<ConnState>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.orphan(self.state.handle);
    }
}

/// An established connection. Cheap to clone. Dropping the last clone closes it **at once**: what is
/// queued or in flight is lost, so let the peer confirm what matters before.
///
/// All calls but the `async` ones return at once; they take the endpoint's mutex for a moment.
#[derive(Clone)]
pub struct Connection(Arc<Owner>);

impl Connection {
    pub(crate) fn new(shared: Arc<Shared>, state: Arc<ConnState>) -> Self {
        Self(Arc::new(Owner { shared, state }))
    }

    /// Its name within the endpoint, as sources and sinks see it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.0.state.handle
    }

    /// The context both sides know.
    #[must_use]
    pub fn context(&self) -> ContextId {
        self.0.state.context
    }

    /// Who the peer proved to be.
    ///
    /// # Panics
    /// Never on a connection given out by this crate: those are established.
    #[must_use]
    pub fn peer(&self) -> &PeerIdentity {
        self.0.state.peer.get().expect("an established connection has a proved peer")
    }

    /// Whether this side connected.
    #[must_use]
    pub fn is_initiator(&self) -> bool {
        self.0.state.is_initiator
    }

    /// Where the peer is now; after the end, where it was.
    ///
    /// # Panics
    /// Never: the address is known from the handshake on.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        let live = self.0.shared.core().endpoint.connection(self.handle()).map(utp2::Connection::remote);
        live.or(self.0.state.mailbox().last_remote).expect("known since the handshake")
    }

    /// Where the peer has proved to be; see [`utp2::Connection::proven_remote`]. `None` after the end as well.
    #[must_use]
    pub fn proven_remote(&self) -> Option<SocketAddr> {
        self.0.shared.core().endpoint.connection(self.handle())?.proven_remote()
    }

    /// Tries to reach the peer at another address; see [`utp2::Connection::seek`]. [`Connection::remote`] tells it at
    /// once, and the one before again if nobody answered there.
    pub fn seek(&self, remote: SocketAddr) -> bool {
        let sought = {
            let mut core = self.0.shared.core();
            let now = core.advance_to(self.0.shared.now());
            core.endpoint.connection_mut(self.handle()).is_some_and(|conn| conn.seek(now, remote))
        };
        self.0.shared.wake();
        sought
    }

    /// Messages that came with the peer's first packet; the first call takes them. They are authentic, and no copy
    /// of them was taken before, but until [`Connection::confirmed`] they may be a copy that an attacker held back:
    /// what is done then must do no harm. None unless [`utp2::Config::accept_early`] is set.
    #[must_use]
    pub fn early_messages(&self) -> Vec<Vec<u8>> {
        // They come with the connection, under one lock of the core: behind that lock all of them are here.
        drop(self.0.shared.core());
        std::mem::take(&mut self.0.state.mailbox().early)
    }

    /// Whether the peer has shown that it is there now. Always true, but for a while where there are
    /// [`Connection::early_messages`]; to the end, if it never did.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.0.state.mailbox().is_confirmed
    }

    /// Waits until the peer has shown that it is there now.
    ///
    /// # Errors
    /// [`Closed`] if the connection ended without: what came early should not have come.
    pub async fn confirmed(&self) -> Result<(), Closed> {
        loop {
            let confirmed = self.0.state.confirmed.notified();
            tokio::pin!(confirmed);
            confirmed.as_mut().enable();
            {
                let mailbox = self.0.state.mailbox();
                if mailbox.is_confirmed {
                    return Ok(());
                }
                if let Some(reason) = mailbox.closed.clone() {
                    return Err(Closed { reason });
                }
            }
            confirmed.await;
        }
    }

    /// Bytes of messages (with 4 bytes each for the length) queued and not yet acknowledged; 0 after the end.
    #[must_use]
    pub fn unacknowledged_message_bytes(&self) -> usize {
        let core = self.0.shared.core();
        core.endpoint.connection(self.handle()).map_or(0, utp2::Connection::unacknowledged_message_bytes)
    }

    /// Queues a message if there is room now.
    ///
    /// # Errors
    /// See [`SendMessageError`].
    pub fn try_send_message(&self, message: &[u8]) -> Result<(), SendMessageError> {
        let sent = match self.0.shared.core().endpoint.connection_mut(self.handle()) {
            Some(conn) => conn.send_message(message),
            None => Err(SendError::Closed),
        };
        match sent {
            Ok(()) => {
                self.0.shared.wake();
                Ok(())
            }
            Err(SendError::Blocked) => Err(SendMessageError::Blocked),
            Err(SendError::TooLarge) => Err(SendMessageError::TooLarge),
            Err(_) => Err(SendMessageError::Closed(self.closed_error())),
        }
    }

    /// Queues a message, waiting for room: whole, in order, exactly once. Returns when it is queued, not
    /// when it has arrived.
    ///
    /// # Errors
    /// See [`SendMessageError`].
    pub async fn send_message(&self, message: &[u8]) -> Result<(), SendMessageError> {
        loop {
            let writable = self.0.state.writable.notified();
            tokio::pin!(writable);
            writable.as_mut().enable();
            match self.try_send_message(message) {
                Err(SendMessageError::Blocked) => writable.await,
                done => return done,
            }
        }
    }

    /// The next message. What came before the end is still given after it. One task at a time may wait
    /// here. An owner that does not read holds its peer back: at most twice
    /// [`utp2::Config::message_buffer`] bytes are kept.
    ///
    /// # Errors
    /// [`Closed`] after the last message.
    pub async fn recv_message(&self) -> Result<Vec<u8>, Closed> {
        let mut is_held = false;
        let message = self
            .next(&self.0.state.message, |mailbox| {
                let message = mailbox.messages.pop_front()?;
                mailbox.message_bytes -= message.len() + size_of::<Vec<u8>>();
                is_held = mailbox.is_held;
                Some(message)
            })
            .await?;
        if is_held {
            self.0.shared.core().release(&self.0.state);
            self.0.shared.wake();
        }
        Ok(message)
    }

    /// What became of the blocks sent, in order. One task at a time may wait here. Up to 65,536 events are
    /// kept; then the oldest give way and [`BlockEvent::Lagged`] tells how many, so an owner may as well
    /// never ask.
    ///
    /// # Errors
    /// [`Closed`] after the last event.
    pub async fn recv_event(&self) -> Result<BlockEvent, Closed> {
        self.next(&self.0.state.event, |mailbox| match std::mem::take(&mut mailbox.events_lost) {
            0 => mailbox.events.pop_front(),
            count => Some(BlockEvent::Lagged { count }),
        })
        .await
    }

    /// Everything that [`Self::recv_event`] would give without waiting; it waits for the first.
    ///
    /// # Errors
    /// [`Closed`] after the last event.
    pub async fn recv_events(&self) -> Result<Vec<BlockEvent>, Closed> {
        self.next(&self.0.state.event, |mailbox| match std::mem::take(&mut mailbox.events_lost) {
            0 if mailbox.events.is_empty() => None,
            0 => Some(mailbox.events.drain(..).collect()),
            count => Some(vec![BlockEvent::Lagged { count }]),
        })
        .await
    }

    async fn next<T>(
        &self,
        notify: &Notify,
        mut take: impl FnMut(&mut Mailbox) -> Option<T>,
    ) -> Result<T, Closed> {
        loop {
            {
                let mut mailbox = self.0.state.mailbox();
                if let Some(item) = take(&mut mailbox) {
                    return Ok(item);
                }
                if let Some(reason) = mailbox.closed.clone() {
                    return Err(Closed { reason });
                }
            }
            notify.notified().await;
        }
    }

    /// Queues `len` bytes of block `tag`, read from the context's source as they are sent. Higher
    /// `priority` goes first. [`BlockEvent::Sent`] or [`BlockEvent::Failed`] follows.
    ///
    /// # Errors
    /// [`SendError::Blocked`] when [`utp2::Config::max_queued_blocks`] are queued: try again after an event.
    pub fn send_block(&self, tag: u64, len: u32, priority: u8) -> Result<(), SendError> {
        let queued = match self.0.shared.core().endpoint.connection_mut(self.handle()) {
            Some(conn) => conn.send_block(tag, len, priority),
            None => Err(SendError::Closed),
        };
        if queued.is_ok() {
            self.0.shared.wake();
        }
        queued
    }

    /// Forgets a queued block; no event follows.
    pub fn cancel_block(&self, tag: u64) {
        self.with(|conn| conn.cancel_block(tag));
    }

    /// Blocks queued and not wholly acknowledged; 0 after the end.
    #[must_use]
    pub fn queued_blocks(&self) -> usize {
        self.0.shared.core().endpoint.connection(self.handle()).map_or(0, utp2::Connection::queued_blocks)
    }

    /// Bytes the peer may have in flight to us; 0 halts its blocks.
    pub fn set_receive_window(&self, bytes: u32) {
        self.with(|conn| conn.set_receive_window(bytes));
    }

    /// Upper limit of the sending rate, bytes/s of UDP payload; `None` lifts it.
    pub fn set_rate_limit(&self, limit: Option<u64>) {
        self.with(|conn| conn.set_rate_limit(limit));
    }

    /// How hard the connection competes.
    pub fn set_mode(&self, mode: Mode) {
        self.with(|conn| conn.set_mode(mode));
    }

    /// Counters and estimates. After the end: those last asked for, or those of [`Connection::close`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        let live = self.0.shared.core().endpoint.connection(self.handle()).map(utp2::Connection::stats);
        let mut mailbox = self.0.state.mailbox();
        if let Some(stats) = live {
            mailbox.last_stats = stats;
        }
        mailbox.last_stats
    }

    /// Whether it came about by what was kept of an earlier connection, in one round trip. False once it is closed.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        let core = self.0.shared.core();
        core.endpoint.connection(self.handle()).is_some_and(utp2::Connection::is_resumed)
    }

    /// Closes at once with a code (below 0xfe00) and a text for people, at most 256 bytes. What is queued
    /// is dropped.
    pub fn close(&self, code: u16, reason: &str) {
        self.0.shared.core().close(self.handle(), code, reason);
        self.0.shared.wake();
    }

    /// Waits for the end and tells why it came.
    pub async fn closed(&self) -> CloseReason {
        loop {
            let ended = self.0.state.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if let Some(reason) = self.0.state.mailbox().closed.clone() {
                return reason;
            }
            ended.await;
        }
    }

    fn with(&self, act: impl FnOnce(&mut utp2::Connection)) {
        if let Some(conn) = self.0.shared.core().endpoint.connection_mut(self.handle()) {
            act(conn);
        }
        self.0.shared.wake();
    }

    /// Why it is closed. Between a close here and the driver's next turn the reason can only be ours.
    fn closed_error(&self) -> Closed {
        Closed { reason: self.0.state.mailbox().closed.clone().unwrap_or(CloseReason::Local) }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("handle", &self.handle()).finish_non_exhaustive()
    }
}
