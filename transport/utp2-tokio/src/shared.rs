//! What the driver and the handles share: the core behind its mutex, and a mailbox per connection.
//!
//! Lock order: the core, then a mailbox or the table of what is beside. The list of orphans stands alone, so that a handle may be dropped
//! anywhere, even inside a block source.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use timebase::Instant;
use tokio::sync::{Notify, mpsc, oneshot};
use utp2::{
    Arrival, CloseReason, ContextId, Event, Handle, HandshakeFailure, PeerIdentity, SourceError, Stats,
};

use crate::beside::{BesideTable, DETOUR_HEADER, is_detour};
use crate::connection::{BlockEvent, Connection};
use crate::fault::BadPath;
use crate::socket::Socket;
use crate::tickets::Tickets;
use crate::{BlockSink, BlockSource};

/// Block events kept for a connection whose owner does not read them; older ones give way and are counted.
/// 16 bytes each.
pub(crate) const BLOCK_EVENTS_MAX: usize = 1 << 16;

/// Accepted connections that wait for `Incoming::accept`; further ones are closed as busy.
pub(crate) const INCOMING_MAX: usize = 256;

/// Application close codes of this crate, below the protocol's 0xff00.
pub(crate) mod code {
    /// The endpoint or the last handle of the connection is gone.
    pub(crate) const GONE: u16 = 0;
    /// Nobody accepts connections here, or not fast enough.
    pub(crate) const NOT_ACCEPTED: u16 = 0xfe00;
}

thread_local! {
    /// Whether this thread holds the core: then it runs a source or a sink, which must not take it again.
    static HOLDS_CORE: Cell<bool> = const { Cell::new(false) };
}

/// Where a context's blocks come from and go to.
#[derive(Clone)]
pub(crate) struct Blocks {
    pub(crate) source: Arc<dyn BlockSource>,
    pub(crate) sink: Arc<dyn BlockSink>,
}

/// One connection as both sides of the mutex know it.
pub(crate) struct ConnState {
    pub(crate) handle: Handle,
    pub(crate) context: ContextId,
    pub(crate) is_initiator: bool,
    pub(crate) peer: OnceLock<PeerIdentity>,
    blocks: Blocks,
    mailbox: Mutex<Mailbox>,
    /// A message came, or the end.
    pub(crate) message: Notify,
    /// A block event came, or the end.
    pub(crate) event: Notify,
    /// There may be room for messages, or the end.
    pub(crate) writable: Notify,
    /// The peer has shown that it is there now, or the end.
    pub(crate) confirmed: Notify,
    /// The end.
    pub(crate) ended: Notify,
}

/// What came for a connection and was not read yet.
#[derive(Default)]
pub(crate) struct Mailbox {
    pub(crate) messages: VecDeque<Vec<u8>>,
    pub(crate) message_bytes: usize,
    /// The core holds the peer back until this is read. Changed with the core locked.
    pub(crate) is_held: bool,
    pub(crate) events: VecDeque<BlockEvent>,
    pub(crate) events_lost: u64,
    pub(crate) closed: Option<CloseReason>,
    /// Messages of the peer's first packet (§5.8), and whether it has shown since that it is there now.
    pub(crate) early: Vec<Vec<u8>>,
    pub(crate) is_confirmed: bool,
    pub(crate) last_remote: Option<SocketAddr>,
    pub(crate) last_stats: Stats,
}

impl ConnState {
    fn new(handle: Handle, context: ContextId, is_initiator: bool, blocks: Blocks) -> Arc<Self> {
        Arc::new(Self {
            handle,
            context,
            is_initiator,
            peer: OnceLock::new(),
            blocks,
            mailbox: Mutex::default(),
            message: Notify::new(),
            event: Notify::new(),
            writable: Notify::new(),
            confirmed: Notify::new(),
            ended: Notify::new(),
        })
    }

    pub(crate) fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push_block_event(&self, event: BlockEvent) {
        let mut mailbox = self.mailbox();
        if mailbox.events.len() == BLOCK_EVENTS_MAX {
            mailbox.events.pop_front();
            mailbox.events_lost += 1;
        }
        mailbox.events.push_back(event);
        drop(mailbox);
        self.event.notify_one();
    }

    fn end(&self, reason: CloseReason) {
        self.mailbox().closed.get_or_insert(reason);
        // `notify_one` leaves a permit for the single consumers, `notify_waiters` reaches everybody else.
        self.message.notify_one();
        self.event.notify_one();
        self.writable.notify_waiters();
        self.confirmed.notify_waiters();
        self.ended.notify_waiters();
    }
}

pub(crate) type Connecting = oneshot::Sender<Result<(), CloseReason>>;

/// The core and what is known of its connections.
pub(crate) struct Core {
    pub(crate) endpoint: utp2::Endpoint,
    contexts: HashMap<ContextId, Blocks>,
    conns: HashMap<Handle, Arc<ConnState>>,
    /// The connection whose pieces moved last; handles are never used again.
    last: Option<Arc<ConnState>>,
    connecting: HashMap<Handle, Connecting>,
    pub(crate) tickets: Tickets,
    /// Where the connections we made went.
    dialled: HashMap<Handle, (SocketAddr, ContextId)>,
    /// Gone once the driver has ended.
    incoming: Option<mpsc::Sender<Connection>>,
    /// Bytes of unread messages from which on a peer is held back. It may have as many again under way.
    unread_max: usize,
    now: Instant,
}

/// A source and a sink for the core that find the connection's own.
struct Route<'a> {
    conns: &'a HashMap<Handle, Arc<ConnState>>,
    /// The one asked for last: pieces come in runs of one connection.
    last: &'a mut Option<Arc<ConnState>>,
}

impl Route<'_> {
    fn find(&mut self, conn: Handle) -> Option<&ConnState> {
        if self.last.as_ref().is_none_or(|last| last.handle != conn) {
            *self.last = self.conns.get(&conn).cloned();
        }
        self.last.as_deref()
    }
}

impl utp2::BlockSource for Route<'_> {
    fn read(&mut self, conn: Handle, tag: u64, offset: u32, buf: &mut [u8]) -> Result<(), SourceError> {
        let state = self.find(conn).ok_or(SourceError)?;
        state.blocks.source.read(conn, tag, offset, buf).map_err(|error| {
            tracing::debug!(?conn, tag, offset, %error, "a block could not be read");
            SourceError
        })
    }
}

impl utp2::BlockSink for Route<'_> {
    fn write(&mut self, conn: Handle, tag: u64, offset: u32, fin: bool, data: &[u8]) {
        match self.find(conn) {
            Some(state) => state.blocks.sink.write(conn, tag, offset, fin, data),
            // The core announces a connection before its first piece, and events are drained after every
            // datagram.
            None => tracing::error!(?conn, tag, "a piece of a block came for an unknown connection"),
        }
    }
}

impl Core {
    /// Never backwards: threads may reach the mutex in another order than they read the clock.
    pub(crate) fn advance_to(&mut self, now: Instant) -> Instant {
        self.now = self.now.max(now);
        self.now
    }

    pub(crate) fn handle_datagram(&mut self, now: Instant, arrival: Arrival, data: &mut [u8]) {
        let mut route = Route { conns: &self.conns, last: &mut self.last };
        self.endpoint.handle_datagram(now, arrival, data, &mut route);
    }

    pub(crate) fn poll_transmit(
        &mut self,
        now: Instant,
        segments: usize,
        buf: &mut Vec<u8>,
    ) -> Option<utp2::Transmit> {
        let mut route = Route { conns: &self.conns, last: &mut self.last };
        self.endpoint.poll_transmit(now, segments, buf, &mut route)
    }

    pub(crate) fn add_context(&mut self, context: ContextId, secret: &[u8; 32], blocks: Blocks) {
        self.endpoint.add_context(context, secret);
        self.contexts.insert(context, blocks);
    }

    pub(crate) fn remove_context(&mut self, context: ContextId) {
        self.endpoint.remove_context(context);
        self.contexts.remove(&context);
        self.tickets.remove_context(context);
    }

    /// Starts connecting; the result comes through `told`.
    pub(crate) fn connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        context: ContextId,
        first: &[&[u8]],
        told: Connecting,
    ) -> Result<Arc<ConnState>, utp2::ConnectError> {
        let blocks = self.contexts.get(&context).cloned().ok_or(utp2::ConnectError::UnknownContext)?;
        let handle = match self.tickets.take(remote, context) {
            Some(resumption) => self
                .endpoint
                .connect_resumed(now, remote, resumption, first)
                .inspect_err(|_| self.tickets.give_back(remote, context))?,
            None => {
                let handle = self.endpoint.connect_with(now, remote, context, first)?;
                let memory = self.tickets.memory(remote, context);
                if let (Some(memory), Some(conn)) = (memory, self.endpoint.connection_mut(handle)) {
                    conn.recall_path(memory);
                }
                handle
            }
        };
        self.dialled.insert(handle, (remote, context));
        let state = ConnState::new(handle, context, true, blocks);
        self.conns.insert(handle, state.clone());
        self.connecting.insert(handle, told);
        Ok(state)
    }

    /// Closes a connection, keeping its last figures.
    pub(crate) fn close(&mut self, handle: Handle, code: u16, reason: &str) {
        if let Some(conn) = self.endpoint.connection_mut(handle) {
            if let Some(state) = self.conns.get(&handle) {
                let mut mailbox = state.mailbox();
                mailbox.last_stats = conn.stats();
                mailbox.last_remote = Some(conn.remote());
            }
            conn.close(code, reason);
        }
    }

    /// Hands the core's events to the connections' mailboxes.
    pub(crate) fn dispatch_events(&mut self, shared: &Arc<Shared>) {
        while let Some((handle, event)) = self.endpoint.poll_event() {
            match event {
                Event::Connected => self.on_connected(handle, shared),
                Event::Message(message) => self.on_message(handle, message),
                Event::EarlyMessage(message) => {
                    if let Some(state) = self.conns.get(&handle) {
                        // What fits into one packet.
                        state.mailbox().early.push(message);
                    }
                }
                Event::Confirmed => {
                    if let Some(state) = self.conns.get(&handle) {
                        state.mailbox().is_confirmed = true;
                        state.confirmed.notify_waiters();
                    }
                }
                Event::MessagesWritable => {
                    if let Some(state) = self.conns.get(&handle) {
                        state.writable.notify_waiters();
                    }
                }
                Event::BlockSent { tag } => self.on_block(handle, BlockEvent::Sent { tag }),
                Event::BlockFailed { tag } => self.on_block(handle, BlockEvent::Failed { tag }),
                Event::Resumption(resumption) => {
                    if let Some(&(remote, _)) = self.dialled.get(&handle) {
                        self.tickets.put(remote, resumption);
                    }
                }
                Event::PathLearned(memory) => {
                    if let Some(&(remote, context)) = self.dialled.get(&handle) {
                        self.tickets.set_memory(remote, context, memory);
                    }
                }
                Event::Closed(reason) => self.on_closed(handle, reason),
                other => tracing::debug!(?handle, ?other, "an event this driver does not know"),
            }
        }
    }

    fn on_connected(&mut self, handle: Handle, shared: &Arc<Shared>) {
        let Some(conn) = self.endpoint.connection(handle) else { return };
        let peer = conn.peer().cloned();
        if let Some(state) = self.conns.get(&handle) {
            let mut mailbox = state.mailbox();
            (mailbox.last_remote, mailbox.is_confirmed) = (Some(conn.remote()), true);
            drop(mailbox);
            peer.map(|p| state.peer.set(p));
            if let Some(told) = self.connecting.remove(&handle) {
                // The caller may have given up; its guard closes the connection.
                let _ = told.send(Ok(()));
            }
            return;
        }
        let (context, remote, is_confirmed) = (conn.context(), conn.remote(), conn.is_confirmed());
        let Some(blocks) = self.contexts.get(&context).cloned() else { return };
        let state = ConnState::new(handle, context, conn.is_initiator(), blocks);
        let mut mailbox = state.mailbox();
        (mailbox.last_remote, mailbox.is_confirmed) = (Some(remote), is_confirmed);
        drop(mailbox);
        peer.map(|p| state.peer.set(p));
        self.conns.insert(handle, state.clone());
        let conn = Connection::new(shared.clone(), state);
        // A connection that finds no place here is dropped, and so closed; this says why.
        if self.incoming.as_ref().is_none_or(|incoming| incoming.try_send(conn).is_err()) {
            self.close(handle, code::NOT_ACCEPTED, "nobody accepts connections now");
        }
    }

    fn on_message(&mut self, handle: Handle, message: Vec<u8>) {
        let Some(state) = self.conns.get(&handle) else { return };
        let mut mailbox = state.mailbox();
        mailbox.message_bytes += message.len() + size_of::<Vec<u8>>();
        mailbox.messages.push_back(message);
        let hold = !mailbox.is_held && mailbox.message_bytes > self.unread_max;
        mailbox.is_held |= hold;
        drop(mailbox);
        state.message.notify_one();
        if hold && let Some(conn) = self.endpoint.connection_mut(handle) {
            conn.hold_messages(true);
        }
    }

    /// Lets a peer go on whose messages have been read.
    pub(crate) fn release(&mut self, state: &ConnState) {
        let mut mailbox = state.mailbox();
        if mailbox.is_held && mailbox.message_bytes <= self.unread_max / 2 {
            mailbox.is_held = false;
            if let Some(conn) = self.endpoint.connection_mut(state.handle) {
                conn.hold_messages(false);
            }
        }
    }

    fn on_block(&mut self, handle: Handle, event: BlockEvent) {
        if let Some(state) = self.conns.get(&handle) {
            state.push_block_event(event);
        }
    }

    fn on_closed(&mut self, handle: Handle, reason: CloseReason) {
        let dialled = self.dialled.remove(&handle);
        if let Some(told) = self.connecting.remove(&handle) {
            let _ = told.send(Err(reason.clone()));
            if let (Some((remote, context)), CloseReason::HandshakeFailed(why)) = (dialled, &reason) {
                match why {
                    HandshakeFailure::Timeout | HandshakeFailure::Busy => {
                        self.tickets.give_back(remote, context);
                    }
                    _ => self.tickets.remove(remote, context),
                }
            }
        }
        self.last = None;
        if let Some(state) = self.conns.remove(&handle) {
            state.end(reason);
        }
    }

    /// Closes everything, telling the peers.
    pub(crate) fn close_all(&mut self) {
        let handles: Vec<Handle> = self.conns.keys().copied().collect();
        for handle in handles {
            self.close(handle, code::GONE, "the endpoint is closing");
        }
        self.incoming = None;
    }

    /// Tells everybody that nothing will ever happen again.
    fn abandon(&mut self) {
        self.incoming = None;
        self.connecting.clear();
        self.dialled.clear();
        self.last = None;
        for (_, state) in self.conns.drain() {
            state.end(CloseReason::Local);
        }
    }
}

/// Shared by the driver and every handle of one endpoint.
pub(crate) struct Shared {
    core: Mutex<Core>,
    pub(crate) socket: Socket,
    pub(crate) beside: BesideTable,
    /// Wakes the driver.
    wake: Notify,
    /// Connections whose last handle was dropped.
    orphans: Mutex<Vec<Handle>>,
    ending: AtomicBool,
    /// Nobody waits for peers that do not hear of the end.
    hasty: AtomicBool,
    pub(crate) ended: Notify,
    has_ended: AtomicBool,
    epoch: std::time::Instant,
}

/// The core, locked.
pub(crate) struct CoreGuard<'a>(MutexGuard<'a, Core>);

impl Deref for CoreGuard<'_> {
    type Target = Core;
    fn deref(&self) -> &Core {
        &self.0
    }
}
impl DerefMut for CoreGuard<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.0
    }
}
impl Drop for CoreGuard<'_> {
    fn drop(&mut self) {
        HOLDS_CORE.set(false);
    }
}

impl Shared {
    pub(crate) fn new(
        endpoint: utp2::Endpoint,
        socket: Socket,
        incoming: mpsc::Sender<Connection>,
        unread_max: usize,
    ) -> Arc<Self> {
        let core = Core {
            endpoint,
            contexts: HashMap::new(),
            conns: HashMap::new(),
            last: None,
            connecting: HashMap::new(),
            tickets: Tickets::default(),
            dialled: HashMap::new(),
            incoming: Some(incoming),
            unread_max,
            now: Instant::ZERO,
        };
        Arc::new(Self {
            core: Mutex::new(core),
            socket,
            beside: BesideTable::default(),
            wake: Notify::new(),
            orphans: Mutex::default(),
            ending: AtomicBool::new(false),
            hasty: AtomicBool::new(false),
            ended: Notify::new(),
            has_ended: AtomicBool::new(false),
            epoch: std::time::Instant::now(),
        })
    }

    /// Locks the core.
    ///
    /// # Panics
    /// If called from a block source or sink, where it could only hang.
    pub(crate) fn core(&self) -> CoreGuard<'_> {
        assert!(!HOLDS_CORE.get(), "a BlockSource or BlockSink must not call into its endpoint");
        let guard = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        HOLDS_CORE.set(true);
        CoreGuard(guard)
    }

    /// The time of the core, microseconds since the endpoint's beginning.
    pub(crate) fn now(&self) -> Instant {
        Instant::from_micros(u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// Makes the driver look again.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Gives a connection nobody holds any more to the driver, to be closed.
    pub(crate) fn orphan(&self, handle: Handle) {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        self.wake();
    }

    pub(crate) fn take_orphans(&self) -> Vec<Handle> {
        std::mem::take(&mut *self.orphans.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Hands a datagram to whom it is for: the core, or the protocol beside it.
    pub(crate) fn deliver(&self, core: &mut Core, now: Instant, arrival: Arrival, datagram: &mut [u8]) {
        if is_detour(arrival.remote) {
            // Nobody has such an address.
            return;
        }
        if !datagram.starts_with(&utp2::BESIDE) {
            return core.handle_datagram(now, arrival, datagram);
        }
        if let Some(remote) = self.beside.arrived(arrival.remote, datagram) {
            core.handle_datagram(now, Arrival { remote, ..arrival }, &mut datagram[DETOUR_HEADER..]);
        }
    }

    /// Asks the driver to end.
    pub(crate) fn begin_end(&self) {
        self.ending.store(true, Ordering::Release);
        self.wake();
    }

    /// Lets the end, when it is asked for, not wait for peers.
    pub(crate) fn hasten_end(&self) {
        self.hasty.store(true, Ordering::Release);
    }

    pub(crate) fn is_hasty(&self) -> bool {
        self.hasty.load(Ordering::Acquire)
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// The driver's last act, also when it panicked.
    pub(crate) fn end(&self) {
        HOLDS_CORE.set(false);
        self.ending.store(true, Ordering::Release);
        self.core().abandon();
        self.has_ended.store(true, Ordering::Release);
        self.ended.notify_waiters();
    }
}

/// The two directions of an injected bad path.
pub(crate) struct BadPaths {
    pub(crate) out: BadPath,
    pub(crate) inward: BadPath,
}
