//! One connection with another member: messages in order, news of blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agent_proto::sync::SyncMessage;
use event_schema::AgentId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use utp2_tokio::{BlockEvent, Connection, Handle};

use crate::run::event::Wakeup;
use crate::run::limits::{MESSAGE_COST, MESSAGES_WAITING};
use crate::run::link::code;

/// What a connection tells.
pub(super) enum Net {
    /// A message came.
    Message(AgentId, Handle, SyncMessage),
    /// Blocks are acknowledged, or could not be sent.
    Sent(AgentId, Handle, Vec<(u64, bool)>),
    /// A message that was to be told of is with the transport.
    Passed(AgentId, Handle),
}

/// A connection with another member. Dropping it closes the connection.
pub(super) struct Link {
    pub(super) conn: Connection,
    pub(super) opened: Instant,
    outgoing: mpsc::UnboundedSender<(Vec<u8>, bool)>,
    waiting: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Link {
    /// Takes a connection and begins to read it.
    pub(super) fn new(
        agent: AgentId,
        conn: Connection,
        wakeups: &mpsc::Sender<Wakeup>,
        net: &mpsc::Sender<Net>,
    ) -> Self {
        let (outgoing, queue) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(send(agent, conn.clone(), queue, waiting.clone(), net.clone()));
        tasks.spawn(receive(agent, conn.clone(), net.clone()));
        tasks.spawn(watch_blocks(agent, conn.clone(), net.clone()));
        let (watched, told) = (conn.clone(), wakeups.clone());
        tasks.spawn(async move {
            let reason = watched.closed().await;
            tracing::debug!(%agent, %reason, "connection ended");
            // The job's task is gone only when nobody needs to know.
            let _ = told.send(Wakeup::Closed(agent, watched.handle())).await;
        });
        Self { conn, opened: Instant::now(), outgoing, waiting, _tasks: tasks }
    }

    pub(super) fn handle(&self) -> Handle {
        self.conn.handle()
    }

    /// Queues a message; a peer that does not take them loses the connection. `tell`: [`Net::Passed`] follows.
    pub(super) fn send(&self, message: &SyncMessage, tell: bool) {
        let bytes = message.encode();
        let cost = bytes.len() + MESSAGE_COST;
        let waiting = self.waiting.fetch_add(cost, Ordering::Relaxed) + cost;
        if waiting > MESSAGES_WAITING {
            self.conn.close(code::SLOW, "messages are not taken");
        }
        // The task ends with the connection; then the message is of no use.
        let _ = self.outgoing.send((bytes, tell));
    }

    pub(super) fn close(&self, code: u16, reason: &str) {
        self.conn.close(code, reason);
    }
}

async fn send(
    agent: AgentId,
    conn: Connection,
    mut queue: mpsc::UnboundedReceiver<(Vec<u8>, bool)>,
    waiting: Arc<AtomicUsize>,
    net: mpsc::Sender<Net>,
) {
    while let Some((message, tell)) = queue.recv().await {
        if let Err(error) = conn.send_message(&message).await {
            tracing::debug!(%error, "message not sent");
            return;
        }
        waiting.fetch_sub(message.len() + MESSAGE_COST, Ordering::Relaxed);
        if tell && net.send(Net::Passed(agent, conn.handle())).await.is_err() {
            return;
        }
    }
}

async fn receive(agent: AgentId, conn: Connection, net: mpsc::Sender<Net>) {
    while let Ok(bytes) = conn.recv_message().await {
        let message = match SyncMessage::decode(&bytes) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(%agent, %error, "a message that cannot be understood");
                return conn.close(code::BROKEN, "a message that cannot be understood");
            }
        };
        if net.send(Net::Message(agent, conn.handle(), message)).await.is_err() {
            return;
        }
    }
}

async fn watch_blocks(agent: AgentId, conn: Connection, net: mpsc::Sender<Net>) {
    let handle = conn.handle();
    while let Ok(events) = conn.recv_events().await {
        let mut sent = Vec::with_capacity(events.len());
        for event in events {
            match event {
                BlockEvent::Sent { tag } => sent.push((tag, true)),
                BlockEvent::Failed { tag } => sent.push((tag, false)),
                // More than ever are queued; to count on would be to count wrong.
                BlockEvent::Lagged { .. } => return conn.close(code::SLOW, "lost count of blocks"),
            }
        }
        if net.send(Net::Sent(agent, handle, sent)).await.is_err() {
            return;
        }
    }
}
