//! One connection of a run: tasks that carry messages and news of blocks to and from the run's task.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agent_proto::peer::{BlockAddress, PeerMessage};
use event_schema::AgentId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use utp2_tokio::{BlockEvent, Connection, Handle};

use super::event::{Sent, Wakeup};
use super::limits::{MESSAGE_COST, MESSAGES_WAITING};

/// Close codes of the peer protocol.
pub(super) mod code {
    /// The run, or the agent, ends.
    pub(crate) const GOING: u16 = 1;
    /// Another connection with the same peer takes over.
    pub(crate) const DOUBLE: u16 = 2;
    /// The peer broke the protocol.
    pub(crate) const BROKEN: u16 = 3;
    /// The peer does not take its messages.
    pub(crate) const SLOW: u16 = 4;
    /// As many peers as there may be.
    pub(crate) const CROWDED: u16 = 5;
}

/// A connection with one peer of the run. Dropping it closes the connection.
pub(super) struct Link {
    pub(super) conn: Connection,
    pub(super) opened: Instant,
    /// Content blocks given to the transport, and their lengths.
    pub(super) sending: HashMap<u64, u32>,
    /// Content blocks that are being looked up and still wanted.
    pub(super) reading: HashSet<u64>,
    /// Content blocks that are being looked up at all.
    pub(super) reads: usize,
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
    active: bool,
}

impl Link {
    /// Takes a connection. Nothing is read from it before [`Self::activate`], so that a peer waits while we
    /// index.
    pub(super) fn new(agent: AgentId, conn: Connection, wakeups: &mpsc::Sender<Wakeup>) -> Self {
        let (outgoing, queue) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(send(conn.clone(), queue, waiting.clone()));
        let (watched, told) = (conn.clone(), wakeups.clone());
        tasks.spawn(async move {
            let reason = watched.closed().await;
            tracing::debug!(%agent, %reason, "connection ended");
            // The run's task is gone only when nobody needs to know.
            let _ = told.send(Wakeup::Closed(agent, watched.handle())).await;
        });
        Self {
            conn,
            opened: Instant::now(),
            sending: HashMap::new(),
            reading: HashSet::new(),
            reads: 0,
            outgoing,
            waiting,
            tasks,
            active: false,
        }
    }

    pub(super) fn handle(&self) -> Handle {
        self.conn.handle()
    }

    /// Whether it is read, and so the greeting queued before anything else.
    pub(super) fn is_active(&self) -> bool {
        self.active
    }

    /// Starts reading.
    pub(super) fn activate(&mut self, agent: AgentId, wakeups: &mpsc::Sender<Wakeup>) {
        if !self.active {
            self.active = true;
            self.tasks.spawn(receive(agent, self.conn.clone(), wakeups.clone()));
            self.tasks.spawn(watch_blocks(agent, self.conn.clone(), wakeups.clone()));
        }
    }

    /// Queues a message; a peer that does not take them loses the connection.
    pub(super) fn send(&self, message: &PeerMessage) {
        let bytes = message.encode();
        let cost = bytes.len() + MESSAGE_COST;
        let waiting = self.waiting.fetch_add(cost, Ordering::Relaxed) + cost;
        if waiting > MESSAGES_WAITING {
            self.close(code::SLOW, "messages are not taken");
        }
        // The task ends with the connection; then the message is of no use.
        let _ = self.outgoing.send(bytes);
    }

    pub(super) fn close(&self, code: u16, reason: &str) {
        self.conn.close(code, reason);
    }
}

async fn send(conn: Connection, mut queue: mpsc::UnboundedReceiver<Vec<u8>>, waiting: Arc<AtomicUsize>) {
    while let Some(message) = queue.recv().await {
        if let Err(error) = conn.send_message(&message).await {
            tracing::debug!(%error, "message not sent");
            return;
        }
        waiting.fetch_sub(message.len() + MESSAGE_COST, Ordering::Relaxed);
    }
}

async fn receive(agent: AgentId, conn: Connection, wakeups: mpsc::Sender<Wakeup>) {
    let mut greeted = false;
    while let Ok(bytes) = conn.recv_message().await {
        let message = match PeerMessage::decode(&bytes) {
            Ok(message) if greeted || matches!(message, PeerMessage::Hello(_)) => message,
            Ok(_) => return conn.close(code::BROKEN, "no greeting"),
            Err(error) => {
                tracing::warn!(%agent, %error, "a message that cannot be understood");
                return conn.close(code::BROKEN, "a message that cannot be understood");
            }
        };
        greeted = true;
        if wakeups.send(Wakeup::Message(agent, conn.handle(), message)).await.is_err() {
            return;
        }
    }
}

async fn watch_blocks(agent: AgentId, conn: Connection, wakeups: mpsc::Sender<Wakeup>) {
    let handle = conn.handle();
    while let Ok(events) = conn.recv_events().await {
        let mut sent = Vec::with_capacity(events.len());
        for event in events {
            let (tag, read) = match event {
                BlockEvent::Sent { tag } => (tag, true),
                BlockEvent::Failed { tag } => (tag, false),
                // More than ever are queued; to count on would be to count wrong.
                BlockEvent::Lagged { .. } => return conn.close(code::SLOW, "lost count of blocks"),
            };
            sent.push(Sent { address: BlockAddress(tag), read });
        }
        if wakeups.send(Wakeup::Sent(agent, handle, sent)).await.is_err() {
            return;
        }
    }
}
