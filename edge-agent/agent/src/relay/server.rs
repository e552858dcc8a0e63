//! The relay's sessions and its forwarding, around [`Table`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant as Clock};

use agent_proto::limits::RELAY_MESSAGE_LEN_MAX;
use agent_proto::relay::RelayMessage;
use event_schema::AgentId;
use portable_atomic::AtomicU64;
use timebase::Instant;
use tokio::time::timeout;
use utp2_tokio::{Connection, DETOUR_HEADER, Endpoint};

use super::table::{RelayLimits, RelayStats, Session, Table, Told, Verdict};
use super::{CHANNEL, IDLE, code};

/// Sessions beside two for each meeting: agents that are about to open one.
const SESSIONS_SPARE: usize = 64;

/// Sessions of one agent: one is enough, and one before that may not have ended yet.
const SESSIONS_OF_ONE: usize = 4;

/// How often meetings expire and sessions are asked where they are.
const TICK: Duration = Duration::from_secs(1);

/// Messages of one session per second.
const MESSAGES_PER_SECOND: u32 = 50;

/// Forwards between members of the fleet.
pub(crate) struct Forwarder {
    endpoint: Endpoint,
    table: Mutex<Table>,
    sessions: Mutex<HashMap<Session, Connection>>,
    sessions_max: usize,
    next: AtomicU64,
    started: Clock,
}

impl Forwarder {
    /// A relay on this socket; whoever holds the [`Arc`] hands it sessions and datagrams.
    pub(crate) fn start(endpoint: Endpoint, limits: RelayLimits) -> Arc<Self> {
        let forwarder = Arc::new(Self {
            endpoint,
            table: Mutex::new(Table::new(limits)),
            sessions: Mutex::default(),
            sessions_max: 2 * limits.sessions + SESSIONS_SPARE,
            next: AtomicU64::new(0),
            started: Clock::now(),
        });
        tokio::spawn(tick(Arc::downgrade(&forwarder)));
        forwarder
    }

    /// What it did so far.
    pub(crate) fn stats(&self) -> RelayStats {
        self.table().stats()
    }

    /// Takes a session in the relay context; its peer has shown a credential of the fleet.
    pub(crate) fn accept(self: &Arc<Self>, conn: Connection) {
        let session = self.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut sessions = self.sessions();
            let of_agent =
                sessions.values().filter(|c| c.peer().public_key == conn.peer().public_key).count();
            if sessions.len() >= self.sessions_max || of_agent >= SESSIONS_OF_ONE {
                return conn.close(code::CROWDED, "as many sessions as there may be");
            }
            sessions.insert(session, conn.clone());
        }
        tracing::info!(agent = %agent(&conn), remote = %conn.remote(), "an agent uses this one as a relay");
        tokio::spawn(serve(Arc::downgrade(self), session, conn));
    }

    /// Forwards a datagram of a meeting, or drops it.
    pub(crate) fn forward(&self, from: SocketAddr, datagram: &mut [u8]) {
        let channel = datagram.get(CHANNEL).and_then(|c| c.try_into().ok());
        let Some(channel) = channel.filter(|_| datagram.len() > DETOUR_HEADER) else { return };
        let mut verdict = self.table().forward(self.now(), from, &channel, datagram.len());
        if let Verdict::Elsewhere(session) = verdict {
            // Who has the channel's name is its agent, or has read it on the way; only where the agent has proved to be
            // counts, not where a packet of its came from.
            let at = self.sessions().get(&session).and_then(Connection::proven_remote);
            let mut table = self.table();
            at.into_iter().for_each(|at| table.is_at(session, at));
            verdict = match at {
                Some(at) if at == from => table.forward(self.now(), from, &channel, datagram.len()),
                _ => {
                    table.count_strange();
                    Verdict::Drop
                }
            };
        }
        match verdict {
            Verdict::Pass(to, channel) => {
                datagram[CHANNEL].copy_from_slice(&channel);
                // A full socket loses it, as a narrow path would.
                let _ = self.endpoint.send_beside(to, datagram);
            }
            Verdict::Quota(key) => {
                tracing::info!("two agents have used up what this relay allows in a day");
                let told = self.table().end(key, agent_proto::relay::EndReason::Quota);
                self.tell(told);
            }
            Verdict::Drop | Verdict::Elsewhere(_) => {}
        }
    }

    fn take(&self, session: Session, conn: &Connection, message: RelayMessage) -> Result<(), &'static str> {
        let told = match message {
            RelayMessage::Open(open) => {
                let mut channel = [0; 8];
                getrandom::fill(&mut channel).map_err(|_| "no randomness")?;
                let who = (agent(conn), conn.proven_remote());
                self.table().open(self.now(), session, who, open, channel)
            }
            RelayMessage::Close(close) => self.table().close(session, close.meeting),
            RelayMessage::Opened(_) | RelayMessage::Joined(_) | RelayMessage::Ended(_) => {
                return Err("what a relay says");
            }
        };
        self.tell(told);
        Ok(())
    }

    fn ended(&self, session: Session) {
        self.sessions().remove(&session);
        let told = self.table().ended(session);
        self.tell(told);
    }

    fn tell(&self, told: Vec<Told>) {
        for (session, message) in told {
            let conn = self.sessions().get(&session).cloned();
            let Some(conn) = conn else { continue };
            if conn.try_send_message(&message.encode()).is_err() {
                conn.close(code::BROKEN, "messages are not taken");
            }
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<Session, Connection>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn agent(conn: &Connection) -> AgentId {
    AgentId::of_key(&conn.peer().public_key)
}

/// One session, until it ends, has nothing to do for a while, or says too much.
async fn serve(forwarder: Weak<Forwarder>, session: Session, conn: Connection) {
    let (mut second, mut messages) = (Clock::now(), 0);
    loop {
        let received = timeout(IDLE, conn.recv_message()).await;
        let Some(forwarder) = forwarder.upgrade() else { return };
        match received {
            Ok(Ok(bytes)) => {
                if second.elapsed() >= Duration::from_secs(1) {
                    (second, messages) = (Clock::now(), 0);
                }
                messages += 1;
                let decoded = (bytes.len() <= RELAY_MESSAGE_LEN_MAX && messages <= MESSAGES_PER_SECOND)
                    .then(|| RelayMessage::decode(&bytes).ok())
                    .flatten();
                let taken = decoded
                    .ok_or("what is not understood, or too much")
                    .and_then(|message| forwarder.take(session, &conn, message));
                if let Err(what) = taken {
                    tracing::warn!(agent = %agent(&conn), "a session with this relay ends: it sent {what}");
                    conn.close(code::BROKEN, what);
                }
            }
            Ok(Err(_closed)) => return forwarder.ended(session),
            Err(_idle) => {
                let is_used = forwarder.table().is_used(session);
                if !is_used {
                    conn.close(code::DONE, "no meeting");
                }
            }
        }
    }
}

async fn tick(forwarder: Weak<Forwarder>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(forwarder) = forwarder.upgrade() else { return };
        let told = forwarder.table().expire(forwarder.now());
        forwarder.tell(told);
        let places: Vec<_> =
            forwarder.sessions().iter().filter_map(|(id, c)| Some((*id, c.proven_remote()?))).collect();
        let mut table = forwarder.table();
        places.into_iter().for_each(|(session, at)| table.is_at(session, at));
    }
}
