//! The service: the one owner of the fleet's state, between the log below and gateway and API above.
//!
//! `writer` decides and appends, one decision at a time; what is durable is folded into the
//! projections ([`control_core::projection::Views`]) that everybody reads. `link` is what the gateway
//! asks, `telemetry` holds what agents tell without it being a fact, `replica` keeps it among other services
//! on the same log.

mod attest;
mod base;
mod clock;
mod fold;
mod ids;
mod issue;
mod link;
mod metrics;
mod open;
mod past;
mod replica;
mod schedule;
mod snapshots;
mod telemetry;
#[cfg(test)]
mod tests;
mod wish;
mod writer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use control_core::projection::Views;
use control_core::replica::Session;
use control_core::{Rejection, State};
use event_log::{EventLog, Position};
use event_schema::{Actor, AgentId, Event, Record, RecordId, ReplicaId, Subject, Timestamp};
use tokio::sync::{broadcast, mpsc, watch};

use crate::privacy::Ring;
use crate::retention::Retention;
use crate::sealing::Sealing;
use crate::telemetry::Store;
pub use attest::{ATTEST_EVERY, SNAPSHOT_EVERY};
pub use clock::now;
pub use fold::FoldError;
pub use ids::Ids;
pub(crate) use ids::{random as random_id, random_secret};
pub(crate) use link::token_hash;
pub use metrics::Metrics;
pub use open::{COMMAND_TTL, Keys, OpenError, Options};
pub(crate) use past::PastError;
pub use replica::{Bus, KEEP_ALIVE_S, Keeper};
pub use schedule::Scheduler;
pub(crate) use snapshots::Snapshots;
pub use telemetry::{Live, Telemetry};
#[cfg(test)]
pub(crate) use writer::log_stream;
pub(crate) use writer::run_of;

/// Decisions that may wait for the writer; callers wait beyond that.
const QUEUE_MAX: usize = 4_096;

/// Agents sent away that a slow gateway may lag behind with before it asks for every session.
const OUSTED_MAX: usize = 1_024;

/// Who has to leave this replica's gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ousted {
    /// An agent that belongs to the fleet no more.
    Removed(AgentId),
    /// An agent that is connected at another replica by now.
    Moved(AgentId),
    /// Everybody: this replica is cut off, or was given up.
    All,
}

/// Who asks for a decision, and which stream it is told in.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Who.
    pub actor: Actor,
    /// The aggregate's stream, such as `run/0193…`.
    pub stream: String,
    /// The record that brought it about.
    pub causation: Option<RecordId>,
}

impl Origin {
    /// The operator behind a token.
    pub fn operator(name: &str, stream: String) -> Self {
        Self { actor: Actor::Operator(name.into()), stream, causation: None }
    }

    /// An agent, in its own stream.
    pub fn agent(agent: AgentId) -> Self {
        Self { actor: Actor::Agent(agent), stream: format!("agent/{agent}"), causation: None }
    }

    /// The service itself.
    pub fn service(stream: String) -> Self {
        Self { actor: Actor::Service, stream, causation: None }
    }
}

/// Why a decision was not recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// It was refused.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The log does not take it at the moment, or the service is stopping.
    #[error("the event log is not available: {0}")]
    Unavailable(String),
    /// The log was given it and did not say what became of it.
    #[error("it is not known whether this was recorded, look before you ask again: {0}")]
    Unknown(String),
}

/// A handle to the running service. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
    wishes: mpsc::Sender<writer::Ask>,
}

/// What keeps a replica from its work, each in words.
#[derive(Debug, Default)]
struct Trouble {
    /// The log holds what cannot be folded.
    log: Option<String>,
    /// Another process has this replica's name.
    name: Option<String>,
}

/// What readers see and what they are woken by.
struct Shared {
    log: Arc<dyn EventLog>,
    views: RwLock<Views>,
    position: watch::Sender<u64>,
    command_watches: Mutex<HashMap<AgentId, watch::Sender<u64>>>,
    ousted: broadcast::Sender<Ousted>,
    /// Where agents were last connected, as records that came since the start tell; empty unless there are replicas.
    sessions: Mutex<HashMap<AgentId, Session>>,
    /// This replica's life.
    session: RwLock<Session>,
    /// Whether agents may come: not while others could be heard and are not.
    serving: AtomicBool,
    /// Where else they may go.
    gateways: watch::Sender<Arc<[String]>>,
    telemetry: Telemetry,
    metrics: Metrics,
    healthy: AtomicBool,
    /// What keeps this replica from its work until somebody sees to it, in words.
    trouble: Mutex<Trouble>,
    refusals: link::Bucket,
    attested: attest::Attested,
    sealing: OnceLock<Sealing>,
    kept: OnceLock<Arc<Store>>,
    retention: OnceLock<Retention>,
    past: past::Past,
    /// Where snapshots are kept, if they are.
    snapshots: Option<snapshots::Snapshots>,
    /// Opens and seals private texts.
    ring: Ring,
    /// The schema level that this program reads.
    schema: u8,
}

impl Shared {
    fn new(
        log: Arc<dyn EventLog>,
        replica: Option<ReplicaId>,
        snapshots: Option<snapshots::Snapshots>,
        ring: Ring,
        schema: u8,
    ) -> Self {
        let session = replica.map_or(Session::ALONE, |replica| Session { replica, epoch: 0 });
        Self {
            log,
            views: RwLock::default(),
            position: watch::Sender::new(0),
            command_watches: Mutex::default(),
            ousted: broadcast::Sender::new(OUSTED_MAX),
            sessions: Mutex::default(),
            session: RwLock::new(session),
            serving: AtomicBool::new(true),
            gateways: watch::Sender::new(Arc::new([])),
            telemetry: Telemetry::default(),
            metrics: Metrics::default(),
            healthy: AtomicBool::new(true),
            trouble: Mutex::default(),
            refusals: link::Bucket::new(),
            attested: attest::Attested::default(),
            sealing: OnceLock::new(),
            kept: OnceLock::new(),
            retention: OnceLock::new(),
            past: past::Past::default(),
            snapshots,
            ring,
            schema,
        }
    }

    fn views(&self) -> RwLockReadGuard<'_, Views> {
        // A panic while folding would leave a half-applied record: better to go on than to answer nothing,
        // the next start folds anew.
        self.views.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is wrong, aloud when it is new, or that nothing is any more.
    fn set_trouble(&self, which: impl Fn(&mut Trouble) -> &mut Option<String>, what: Option<String>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let known = which(&mut trouble);
        if *known == what {
            return;
        }
        match &what {
            Some(what) => tracing::error!(what, "this service cannot do its work"),
            None => tracing::info!("what kept this service from its work is over"),
        }
        *known = what;
    }

    fn watches(&self) -> MutexGuard<'_, HashMap<AgentId, watch::Sender<u64>>> {
        self.command_watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with projections that were folded before, unless there are newer ones.
    fn restore(&self, views: Views, attested: u64) {
        let mut own = self.views.write().unwrap_or_else(PoisonError::into_inner);
        if own.position() < views.position() {
            self.position.send_replace(views.position());
            self.attested.position.store(attested, Ordering::Relaxed);
            *own = views;
        }
    }

    /// Makes a durable record visible and wakes whoever waits for it.
    fn publish(&self, position: Position, record: &Record) {
        let news = self.views.write().unwrap_or_else(PoisonError::into_inner).apply(position.0, record);
        if !news {
            return;
        }
        self.metrics.records.add(1);
        self.metrics.events.add(record.events.len() as u64);
        for event in &record.events {
            match event {
                Event::CommandIssued(e) => {
                    if let Some(watch) = self.watches().get(&e.agent) {
                        watch.send_replace(e.sequence);
                    }
                }
                Event::AgentRemoved(e) => {
                    self.watches().remove(&e.agent);
                    self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&e.agent);
                    // Nobody listens before the gateway is up.
                    let _ = self.ousted.send(Ousted::Removed(e.agent));
                }
                Event::AgentSessionOpened(e) => {
                    let session = Session { replica: e.replica, epoch: e.epoch };
                    self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(e.agent, session);
                    let own = self.session.read().unwrap_or_else(PoisonError::into_inner).replica;
                    if e.replica != own {
                        let _ = self.ousted.send(Ousted::Moved(e.agent));
                    }
                }
                Event::RunFinished(e) => self.telemetry.run_ended(e.run),
                // States of before hold what was erased.
                Event::SubjectErased(_) => self.past.forget(),
                Event::StateAttested(_) => self.attested.position.store(position.0, Ordering::Relaxed),
                _ => {}
            }
        }
        self.position.send_replace(position.0);
    }
}

impl Service {
    /// Asks for a decision and waits until it is durable. `decide` is called again when another writer
    /// came first or it is not known whether the record was stored, so ids are made outside of it.
    ///
    /// # Errors
    /// If the decision is a refusal, or the log does not take it.
    pub async fn submit<T, F>(&self, origin: Origin, decide: F) -> Result<T, SubmitError>
    where
        T: Send + 'static,
        F: FnMut(&State, Timestamp) -> Result<(Vec<Event>, T), Rejection> + Send + 'static,
    {
        self.ask(origin, false, decide).await
    }

    /// The same, as long as the answer is waited for: when the future is dropped, what was not decided yet never is, and
    /// what was given to the log may be recorded or not.
    async fn submit_while_awaited<T, F>(&self, origin: Origin, decide: F) -> Result<T, SubmitError>
    where
        T: Send + 'static,
        F: FnMut(&State, Timestamp) -> Result<(Vec<Event>, T), Rejection> + Send + 'static,
    {
        self.ask(origin, true, decide).await
    }

    async fn ask<T, F>(&self, origin: Origin, only_if_awaited: bool, decide: F) -> Result<T, SubmitError>
    where
        T: Send + 'static,
        F: FnMut(&State, Timestamp) -> Result<(Vec<Event>, T), Rejection> + Send + 'static,
    {
        // Not in the writer, behind which everybody waits; without a key it does what it can.
        if let Actor::Operator(name) = &origin.actor
            && let Some(user) = self.shared.ring.user(name)
            && let Err(error) = self.shared.ring.prepare(user).await
        {
            tracing::warn!(%error, "no key for a user");
        }
        let (wish, answer) = wish::wish(origin, only_if_awaited, decide);
        let stopping = || SubmitError::Unavailable("the service is stopping".into());
        self.wishes.send(writer::Ask::Wish(wish)).await.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// The same for decisions whose events are all there is to know.
    ///
    /// # Errors
    /// As [`Service::submit`].
    pub async fn decide<F>(&self, origin: Origin, mut decide: F) -> Result<(), SubmitError>
    where
        F: FnMut(&State, Timestamp) -> Result<Vec<Event>, Rejection> + Send + 'static,
    {
        self.submit(origin, move |state, now| decide(state, now).map(|events| (events, ()))).await
    }

    /// The same for a decision that makes what has a key of its own, whose id nobody else knows yet. The key is made here
    /// and not in the writer, behind which everybody would wait for the store of keys.
    ///
    /// # Errors
    /// As [`Service::submit`], and if the store of keys does not answer for a while.
    pub async fn decide_new<F>(&self, origin: Origin, subject: Subject, decide: F) -> Result<(), SubmitError>
    where
        F: FnMut(&State, Timestamp) -> Result<Vec<Event>, Rejection> + Clone + Send + 'static,
    {
        // Whether it may be made at all, before there is a key for it.
        let mut may = decide.clone();
        self.decide(origin.clone(), move |state, now| may(state, now).map(|_| Vec::new())).await?;
        let prepared = self.shared.ring.prepare(subject).await;
        prepared.map_err(|error| SubmitError::Unavailable(error.to_string()))?;
        let decided = self.decide(origin, decide).await;
        if matches!(decided, Err(SubmitError::Rejected(_))) {
            // Somebody came first meanwhile.
            self.shared.ring.discard(subject).await;
        }
        decided
    }

    /// The projections. The lock is to be held shortly and never across an await.
    pub fn views(&self) -> RwLockReadGuard<'_, Views> {
        self.shared.views()
    }

    /// What agents tell of their progress.
    pub fn telemetry(&self) -> &Telemetry {
        &self.shared.telemetry
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The log, for reading.
    pub fn log(&self) -> &Arc<dyn EventLog> {
        &self.shared.log
    }

    /// The last position that is folded into the projections.
    pub fn position(&self) -> watch::Receiver<u64> {
        self.shared.position.subscribe()
    }

    /// Whether the log took the last record it was given, and nothing else keeps this replica from its work.
    pub fn is_healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Relaxed) && self.trouble().is_none()
    }

    /// What keeps this replica from its work until somebody sees to it: its log holds what it does not understand, or
    /// another process has its name. One line for people.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.log.clone().or_else(|| trouble.name.clone())
    }

    /// Where agents may go, this replica first; empty unless there can be others.
    pub fn gateways(&self) -> watch::Receiver<Arc<[String]>> {
        self.shared.gateways.subscribe()
    }

    fn tell_gateways(&self, gateways: Vec<String>) {
        self.shared.gateways.send_if_modified(|known| {
            let news = **known != *gateways;
            if news {
                *known = gateways.into();
            }
            news
        });
    }

    /// Sends agents away from the gateway.
    fn oust(&self, whom: Ousted) {
        // Nobody listens before the gateway is up.
        let _ = self.shared.ousted.send(whom);
    }

    /// Whether agents are served; says what it was.
    fn set_serving(&self, serving: bool) -> bool {
        self.shared.serving.swap(serving, Ordering::Relaxed)
    }

    /// Whether agents are served: not while this replica is cut off from others.
    pub fn is_serving(&self) -> bool {
        self.shared.serving.load(Ordering::Relaxed)
    }

    /// What seals the log, if anything does.
    pub fn sealing(&self) -> Option<&Sealing> {
        self.shared.sealing.get()
    }

    /// From now on agents are witnesses of what is sealed. Once.
    pub fn set_sealing(&self, sealing: Sealing) {
        // A second one would be a mistake of ours; the first stays.
        let _ = self.shared.sealing.set(sealing);
    }

    /// What agents told of their progress, as far as it is kept.
    pub fn kept_telemetry(&self) -> Option<&Arc<Store>> {
        self.shared.kept.get()
    }

    /// From now on what agents tell is kept. Once.
    pub fn keep_telemetry(&self, store: Store) {
        // A second one would be a mistake of ours; the first stays.
        let _ = self.shared.kept.set(Arc::new(store));
    }

    /// What archives old segments of the log, if anything does.
    pub fn retention(&self) -> Option<&Retention> {
        self.shared.retention.get()
    }

    /// From now on this archives old segments. Once.
    pub(crate) fn set_retention(&self, retention: Retention) {
        // A second one would be a mistake of ours; the first stays.
        let _ = self.shared.retention.set(retention);
    }

    /// The keys of private texts.
    pub(crate) fn ring(&self) -> &Ring {
        &self.shared.ring
    }

    /// Decisions that wait for the writer.
    pub fn queue_len(&self) -> usize {
        self.wishes.max_capacity() - self.wishes.capacity()
    }
}
