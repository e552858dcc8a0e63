//! The side of who needs a relay: sessions with relays, shared by all meetings there, and the detours they give.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use agent_proto::limits::RELAY_MESSAGE_LEN_MAX;
use agent_proto::relay::{Channel, Close, Meeting, Open, RelayMessage, place_name};
use event_schema::AgentId;
use tokio::sync::watch;
use tokio::time::timeout;
use utp2::ContextId;
use utp2_tokio::{Connection, Endpoint};

use super::{code, header};

/// How long a relay may take to answer at all.
const CONNECT: Duration = Duration::from_secs(6);

/// How long the other one is waited for: less than the relay keeps the place.
const PATIENCE: Duration = Duration::from_secs(45);

/// Where a meeting stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Asked,
    Opened(Channel),
    Joined(Channel),
    Over(String),
}

/// Why a meeting did not come about, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotMet {
    /// Nobody who is a relay for us is there.
    NoRelay(String),
    /// The relay is there.
    Not(String),
}

impl std::fmt::Display for NotMet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::NoRelay(why) | Self::Not(why)) = self;
        f.write_str(why)
    }
}

/// The relays an agent has sessions with.
pub(crate) struct Relays {
    endpoint: Endpoint,
    context: ContextId,
    links: Mutex<HashMap<SocketAddr, Weak<Link>>>,
}

/// A session with a relay. Ends with the last meeting there.
struct Link {
    conn: Connection,
    stages: Mutex<HashMap<Meeting, watch::Sender<Stage>>>,
    gone: AtomicBool,
}

/// A meeting that stands: packets to [`Met::place`] reach the peer. Dropping it leaves the relay.
pub(crate) struct Met {
    /// The peer's address for µTP2.
    pub(crate) place: SocketAddr,
    /// Who forwards.
    pub(crate) relay: AgentId,
    /// Where that is.
    pub(crate) via: SocketAddr,
    endpoint: Endpoint,
    meeting: Meeting,
    link: Arc<Link>,
    stage: watch::Receiver<Stage>,
}

impl Relays {
    pub(crate) fn new(endpoint: Endpoint, context: ContextId) -> Self {
        Self { endpoint, context, links: Mutex::default() }
    }

    /// Opens a meeting with `peer` at a relay and waits for it.
    ///
    /// # Errors
    /// Why it did not come about.
    pub(crate) async fn meet(
        &self,
        relay: SocketAddr,
        meeting: Meeting,
        peer: AgentId,
    ) -> Result<Met, NotMet> {
        let link = self.link(relay).await.map_err(NotMet::NoRelay)?;
        let (sender, mut stage) = watch::channel(Stage::Asked);
        link.stages().insert(meeting, sender);
        let open = Open { meeting, peer: place_name(&meeting, &peer) };
        let asked = link.conn.send_message(&RelayMessage::from(open).encode()).await;
        let joined = async {
            asked.map_err(|e| e.to_string())?;
            let reached = stage.wait_for(|s| matches!(s, Stage::Joined(_) | Stage::Over(_))).await;
            match reached.map(|s| s.clone()) {
                Ok(Stage::Joined(channel)) => Ok(channel),
                Ok(Stage::Over(why)) => Err(why),
                _ => Err("the relay is gone".into()),
            }
        };
        let late = || Err("the peer did not come to the relay".into());
        let channel = timeout(PATIENCE, joined).await.unwrap_or_else(|_| late());
        let via = link.conn.proven_remote().unwrap_or(relay);
        let place = channel.and_then(|channel| {
            self.endpoint.add_detour(via, header(&channel)).ok_or_else(|| "too many detours".to_owned())
        });
        match place {
            Ok(place) => {
                let relay = AgentId::of_key(&link.conn.peer().public_key);
                Ok(Met { place, relay, via, endpoint: self.endpoint.clone(), meeting, link, stage })
            }
            Err(why) => {
                link.leave(meeting);
                Err(NotMet::Not(why))
            }
        }
    }

    /// The session with a relay; made if there is none. Two at a time may make two; the later one is kept.
    async fn link(&self, relay: SocketAddr) -> Result<Arc<Link>, String> {
        let there = self.links().get(&relay).and_then(Weak::upgrade);
        if let Some(link) = there.filter(|l| !l.is_over()) {
            return Ok(link);
        }
        let connected = timeout(CONNECT, self.endpoint.connect(relay, self.context)).await;
        let conn =
            connected.map_err(|_| "the relay does not answer")?.map_err(|e| format!("the relay: {e}"))?;
        let link = Arc::new(Link { conn: conn.clone(), stages: Mutex::default(), gone: false.into() });
        let mut links = self.links();
        links.retain(|_, link| link.strong_count() > 0);
        links.insert(relay, Arc::downgrade(&link));
        tokio::spawn(listen(conn, Arc::downgrade(&link)));
        Ok(link)
    }

    fn links(&self) -> MutexGuard<'_, HashMap<SocketAddr, Weak<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    fn stages(&self) -> MutexGuard<'_, HashMap<Meeting, watch::Sender<Stage>>> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    fn leave(&self, meeting: Meeting) {
        self.stages().remove(&meeting);
        // A session that is gone has left.
        let _ = self.conn.try_send_message(&RelayMessage::from(Close { meeting }).encode());
    }

    fn take(&self, message: RelayMessage) -> Result<(), &'static str> {
        let stages = self.stages();
        // Of a meeting that was left meanwhile there is nothing to note.
        match message {
            RelayMessage::Opened(m) => {
                stages.get(&m.meeting).map(|s| s.send_replace(Stage::Opened(m.channel)));
            }
            RelayMessage::Joined(m) => {
                if let Some(stage) = stages.get(&m.meeting) {
                    stage.send_if_modified(|s| {
                        let Stage::Opened(channel) = *s else { return false };
                        *s = Stage::Joined(channel);
                        true
                    });
                }
            }
            RelayMessage::Ended(m) => {
                stages.get(&m.meeting).map(|s| s.send_replace(Stage::Over(m.reason.text().into())));
            }
            RelayMessage::Open(_) | RelayMessage::Close(_) => return Err("what an agent says"),
        }
        Ok(())
    }
}

impl Stage {
    fn is_over(&self) -> bool {
        matches!(self, Self::Over(_))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.conn.close(code::DONE, "no meeting");
    }
}

impl Met {
    /// The relay forwards nothing any more.
    pub(crate) fn is_over(&self) -> bool {
        self.stage.has_changed().is_err() || self.stage.borrow().is_over()
    }
}

impl Drop for Met {
    fn drop(&mut self) {
        self.endpoint.remove_detour(self.place);
        self.link.leave(self.meeting);
    }
}

impl std::fmt::Debug for Met {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Met").field("place", &self.place).field("relay", &self.relay).finish_non_exhaustive()
    }
}

/// Takes what the relay says, until the session ends.
async fn listen(conn: Connection, link: Weak<Link>) {
    while let Ok(bytes) = conn.recv_message().await {
        let Some(link) = link.upgrade() else { return };
        let decoded =
            (bytes.len() <= RELAY_MESSAGE_LEN_MAX).then(|| RelayMessage::decode(&bytes).ok()).flatten();
        if let Err(what) = decoded.ok_or("what is not understood").and_then(|message| link.take(message)) {
            tracing::warn!("a relay sent {what}");
            conn.close(code::BROKEN, what);
        }
    }
    if let Some(link) = link.upgrade() {
        link.gone.store(true, Ordering::Relaxed);
        link.stages()
            .drain()
            .for_each(|(_, s)| drop(s.send_replace(Stage::Over("the relay is gone".into()))));
    }
}
