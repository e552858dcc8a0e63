//! One run on one agent: the task that wakes for connections, messages, blocks, the disk and time, tells
//! its machine, and carries out what the machine asks for.
//!
//! `peers.rs` has connections, `reaching.rs` finds ways to peers, `transfer.rs` blocks on their ways, `role.rs` what differs between source and
//! destination: how a run begins, stalls and completes.

mod peers;
mod reaching;
mod role;
mod transfer;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_proto::peer::PeerMessage;
use ed25519_dalek::SigningKey;
use event_schema::{
    AgentId, JoinRun, Role, RunAgentState, RunCompleted, RunOptions, RunServed, RunStateReported,
    TransferStats,
};
use folder_index::Catalog;
use sync_core::config::{FetchConfig, UploadConfig};
use sync_core::{Action, Destination, Origin};
use timebase::Instant as CoreInstant;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tracker_proto::{PeerId, SwarmKey};
use utp2::ContextId;
use utp2_tokio::{Endpoint, Handle};

use super::blocks::{Arrived, Blocks};
use super::board::{Board, Reports};
use super::dial::Dialer;
use super::event::{Ending, Made, Wakeup};
use super::limiter::{Limited, Limiter};
use super::limits::{RECORD_INTERVAL, RTT_INTERVAL, SENDING, STOP_PATIENCE, TELEMETRY, TICK};
use super::link::{Link, code};
use super::members::Members;
use super::neighbourhood::Neighbourhood;
use super::record::{Record, RunFolder};
use super::work::{Indexing, Workers, place};
use crate::backup::{Held, Purpose};
use crate::clock::FleetClock;
use crate::discovery::{Discovery, Found};
use crate::disk::HeldManifests;
use crate::hook::Hooks;
use crate::known::KnownFolders;
use crate::memory::share;
use crate::relay::Relays;
use crate::report::Reporter;
use reaching::Reaching;

/// What a task takes from its queues before it asks the machine what to do.
const BATCH: usize = 256;

/// The agent as a run knows it.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) me: AgentId,
    pub(super) key: SigningKey,
    pub(super) endpoint: Endpoint,
    pub(super) members: Members,
    pub(super) reporter: Reporter,
    pub(super) limiter: Option<Arc<Limiter>>,
    pub(super) corrupt: bool,
    pub(super) known: KnownFolders,
    /// Manifests of destinations' runs that are over.
    pub(super) held: HeldManifests,
    pub(super) clock: Arc<FleetClock>,
    /// Where this agent is, as its owner says.
    pub(super) site: Option<String>,
    pub(super) data: PathBuf,
    /// Indexes of folders; none if they cannot be kept.
    pub(super) catalog: Option<Catalog>,
    /// What the owner has called before what a run brings gets its names.
    pub(super) hooks: Arc<Hooks>,
    pub(super) storage: PathBuf,
    pub(super) discovery: Arc<Mutex<Option<Discovery>>>,
    pub(super) relays: Arc<Relays>,
    /// Relays that the owner names, `HOST:PORT` each.
    pub(super) relays_named: Arc<Vec<String>>,
}

impl Host {
    /// None once the agent ends.
    pub(super) fn discovery(&self) -> MutexGuard<'_, Option<Discovery>> {
        self.discovery.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who decides.
enum Machine {
    /// Nobody: the source is still reading, or the run failed here.
    None,
    Origin(Box<Origin>),
    Destination(Box<Destination>),
}

/// A peer that is connected.
struct Peer {
    link: Link,
    _limited: Option<Limited>,
}

/// One run.
pub(super) struct Task {
    host: Host,
    join: JoinRun,
    options: RunOptions,
    purpose: Purpose,
    /// The version that this run has made, or found; and what keeps it, or the one it gives back, from being removed.
    made: Option<Made>,
    held: Option<Held>,
    source_key: [u8; 32],
    context: ContextId,
    folder: RunFolder,
    record: Record,
    board: Board,
    reports: Reports,
    state: RunAgentState,
    machine: Machine,
    blocks: Arc<Blocks>,
    arrivals: mpsc::UnboundedReceiver<Arrived>,
    wakeups: mpsc::Sender<Wakeup>,
    woken: mpsc::Receiver<Wakeup>,
    peers: BTreeMap<AgentId, Peer>,
    handles: HashMap<Handle, AgentId>,
    dialer: Dialer,
    neighbourhood: Neighbourhood,
    reaching: Reaching,
    workers: Option<Workers>,
    indexing: Arc<Indexing>,
    /// Work on a blocking thread whose end will be told.
    busy: bool,
    /// The disk is full; when to look again.
    full: Option<Instant>,
    /// When it began to look for what is there already.
    looking_since: Instant,
    incomplete: bool,
    epoch: Instant,
    ticks: Ticks,
}

/// When the regular duties are due.
struct Ticks {
    next: Instant,
    record: Instant,
    telemetry: Instant,
    rtt: Instant,
}

impl Task {
    /// Prepares a run; [`Self::run`] begins it.
    ///
    /// # Errors
    /// If the run's folder cannot be made.
    pub(super) fn new(
        host: Host,
        (join, options, purpose): (JoinRun, RunOptions, Purpose),
        source_key: [u8; 32],
        context: ContextId,
        board: Board,
        wakeups: mpsc::Sender<Wakeup>,
        woken: mpsc::Receiver<Wakeup>,
    ) -> std::io::Result<(Self, Arc<Blocks>)> {
        let folder = RunFolder::open(&host.data, join.run)?;
        let record = folder.record();
        let (blocks, arrivals) = Blocks::new(host.corrupt);
        let now = Instant::now();
        let parse = |texts: &[String]| texts.iter().filter_map(|a| a.parse::<SocketAddr>().ok()).collect();
        let dialer = Dialer::new(now, host.me, join.peers.iter().map(|p| (p.agent, parse(&p.addresses))));
        // Without randomness everybody chooses alike, which only costs some speed.
        let seed = getrandom::u64().unwrap_or(0);
        let neighbourhood = Neighbourhood::new(host.me, &join, seed, CoreInstant::ZERO);
        host.members.add(context, &join);
        board.lock().stats = record.stats;
        let task = Self {
            reports: Reports::start(join.run, host.reporter.clone(), board.clone()),
            host,
            join,
            options,
            purpose,
            made: None,
            held: None,
            source_key,
            context,
            folder,
            record,
            board,
            state: RunAgentState::Accepted,
            machine: Machine::None,
            blocks: blocks.clone(),
            arrivals,
            wakeups,
            woken,
            peers: BTreeMap::new(),
            handles: HashMap::new(),
            dialer,
            neighbourhood,
            reaching: Reaching::default(),
            workers: None,
            indexing: Arc::default(),
            busy: false,
            full: None,
            looking_since: now,
            incomplete: false,
            epoch: now,
            ticks: Ticks { next: now, record: now + RECORD_INTERVAL, telemetry: now, rtt: now },
        };
        Ok((task, blocks))
    }

    /// Runs until it is told to end.
    pub(super) async fn run(mut self, found: Option<mpsc::Receiver<Found>>, swarm: SwarmKey) {
        let mut found = found.unwrap_or_else(|| mpsc::channel(1).1);
        let pseudonyms: HashMap<PeerId, AgentId> =
            self.join.peers.iter().map(|p| (swarm.peer_id(&p.agent.0), p.agent)).collect();
        self.reaching.set_swarm(swarm);
        self.begin();
        let (ending, done) = loop {
            self.drive();
            let due = self.next_due();
            let woken = tokio::select! {
                woken = self.woken.recv() => woken,
                Some(arrived) = self.arrivals.recv() => {
                    self.take_block(arrived);
                    None
                }
                Some(hint) = found.recv() => {
                    if let Some(&agent) = pseudonyms.get(&hint.peer) {
                        self.take_hint(agent, hint);
                    }
                    None
                }
                () = sleep_until(due) => {
                    self.handle_time();
                    None
                }
            };
            if let Some(end) = woken.and_then(|woken| self.take(woken)).or_else(|| self.take_waiting()) {
                break end;
            }
        };
        drop(found);
        self.end(ending).await;
        // Whoever asked may have given up waiting.
        let _ = done.send(());
    }

    /// Takes what has come together meanwhile.
    fn take_waiting(&mut self) -> Option<(Ending, oneshot::Sender<()>)> {
        for _ in 0..BATCH {
            let arrived = self.arrivals.try_recv().ok();
            let woken = self.woken.try_recv().ok();
            if arrived.is_none() && woken.is_none() {
                break;
            }
            arrived.into_iter().for_each(|a| self.take_block(a));
            if let Some(end) = woken.and_then(|woken| self.take(woken)) {
                return Some(end);
            }
        }
        None
    }

    fn take(&mut self, woken: Wakeup) -> Option<(Ending, oneshot::Sender<()>)> {
        match woken {
            Wakeup::End(ending, done) => return Some((ending, done)),
            Wakeup::Incoming(conn) => self.adopt(conn),
            Wakeup::Called(agent, conn) => {
                self.dialer.ended(Instant::now(), agent, conn.is_some());
                if conn.is_none() {
                    self.neighbourhood.failed(self.now(), agent);
                }
                if conn.is_none() {
                    self.way_failed(agent);
                }
                conn.into_iter().for_each(|conn| self.adopt(conn));
            }
            Wakeup::Met(agent, met) => self.take_met(agent, met),
            Wakeup::Closed(agent, handle) => self.drop_peer(agent, handle),
            Wakeup::Network => self.dialer.begin_anew(Instant::now()),
            Wakeup::Message(agent, handle, PeerMessage::Peers(told)) if self.is_present(agent, handle) => {
                self.take_peers(agent, &told);
            }
            Wakeup::Message(agent, handle, message) if self.is_present(agent, handle) => {
                let now = self.now();
                if matches!(message, PeerMessage::Complete(_)) {
                    self.neighbourhood.peer_complete(agent);
                }
                let greeted = matches!(message, PeerMessage::Hello(_));
                match &mut self.machine {
                    Machine::Origin(o) => o.handle_message(now, agent, message),
                    Machine::Destination(d) => {
                        d.handle_message(now, agent, message);
                        if greeted && d.is_near(agent) {
                            self.neighbourhood.near(agent, false);
                        }
                    }
                    Machine::None => {}
                }
            }
            Wakeup::Sent(agent, handle, sent) if self.is_present(agent, handle) => {
                sent.into_iter().for_each(|sent| self.block_sent(agent, sent));
            }
            Wakeup::Looked(looked) => self.blocks_looked_up(looked),
            Wakeup::Stored(stored) => stored.into_iter().for_each(|stored| self.block_stored(stored)),
            Wakeup::Indexed(result) => self.indexed(result),
            Wakeup::Sought(found) => self.manifest_sought(found),
            Wakeup::Prepared(result) => self.prepared(result),
            Wakeup::Finalized(done) => self.finalized(done),
            // From a connection that another one took over; or of synchronization, which is another task's.
            Wakeup::Message(..) | Wakeup::Sent(..) | Wakeup::Job(_) | Wakeup::Answer(_) => {}
        }
        None
    }

    fn now(&self) -> CoreInstant {
        self.core_time(Instant::now())
    }

    fn core_time(&self, at: Instant) -> CoreInstant {
        let micros = at.saturating_duration_since(self.epoch).as_micros();
        CoreInstant::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn next_due(&self) -> Instant {
        let machine = match &self.machine {
            Machine::Origin(o) => o.poll_timeout(),
            Machine::Destination(d) => d.poll_timeout(),
            Machine::None => None,
        };
        let machine = machine.map(|at| self.epoch + Duration::from_micros(at.as_micros()));
        machine.map_or(self.ticks.next, |at| at.min(self.ticks.next))
    }

    fn handle_time(&mut self) {
        let now = self.now();
        match &mut self.machine {
            Machine::Origin(o) => o.handle_timeout(now),
            Machine::Destination(d) => d.handle_timeout(now),
            Machine::None => {}
        }
        let now = Instant::now();
        if now >= self.ticks.next {
            self.ticks.next = now + TICK;
            self.tick(now);
        }
    }

    fn tick(&mut self, now: Instant) {
        self.call_peers(now);
        self.reach_peers(now);
        self.try_again(now);
        self.refresh_board();
        if now >= self.ticks.telemetry {
            self.ticks.telemetry = now + TELEMETRY;
            let progress = self.telemetry(now);
            self.host.reporter.progress(progress);
        }
        if now >= self.ticks.rtt {
            self.ticks.rtt = now + RTT_INTERVAL;
            self.blocks.sweep();
            if let Machine::Destination(d) = &mut self.machine {
                self.peers.iter().for_each(|(agent, p)| d.handle_rtt(*agent, p.link.conn.stats().rtt));
            }
        }
        if now >= self.ticks.record {
            self.ticks.record = now + RECORD_INTERVAL;
            self.keep_record(false);
        }
    }

    // --- what the machine wants ---

    fn drive(&mut self) {
        loop {
            let now = self.now();
            let action = match &mut self.machine {
                Machine::Origin(o) => o.poll_action(now),
                Machine::Destination(d) => d.poll_action(now),
                Machine::None => None,
            };
            match action {
                Some(action) => self.act(action),
                None => return self.follow_phase(),
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send { peer, message } => {
                if let Some(p) = self.peers.get(&peer) {
                    p.link.send(&message);
                }
            }
            Action::Upload { peer, block, priority } => self.upload(peer, block, priority),
            Action::CancelUpload { peer, block } => {
                if let Some(p) = self.peers.get_mut(&peer) {
                    p.link.conn.cancel_block(block.0);
                    p.link.sending.remove(&block.0);
                    p.link.reading.remove(&block.0);
                }
            }
            Action::SeekManifest { strong, weak } => self.seek_manifest(strong, weak),
            Action::ManifestComplete => self.prepare(),
            Action::Lost { block, reason } => self.lost(block, reason),
            Action::Misbehaved { peer, what } => self.misbehaved(peer, what),
            Action::ContentComplete => {
                self.neighbourhood.complete();
                self.content_complete();
            }
        }
    }

    // --- what is told ---

    /// Comes to another state and reports it; ends are reported by who brings them about.
    fn set_state(&mut self, state: RunAgentState) {
        if self.state == state || self.state.is_terminal() {
            return;
        }
        self.state = state;
        self.board.lock().state = state.name();
        tracing::info!(run = %self.join.run, state = state.name(), "run");
        self.reports.report(RunStateReported { run: self.join.run, state });
    }

    /// The figures as they are now.
    fn stats(&self) -> TransferStats {
        let mut stats = self.record.stats;
        if let Some(staging) = self.blocks.content().and_then(|c| c.staging()) {
            stats.blocks_fetched = staging.blocks_fetched();
        }
        stats
    }

    fn refresh_board(&mut self) {
        self.record.stats = self.stats();
        let mut board = self.board.lock();
        board.stats = self.record.stats;
        board.peers = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        if let Machine::Destination(d) = &self.machine
            && let Some(have) = d.content().filter(|_| self.blocks.content().is_some())
        {
            board.blocks_done = have.count();
        }
        if self.state == RunAgentState::Indexing {
            board.entries = self.indexing.entries();
            board.bytes_done = self.indexing.bytes();
        }
    }

    pub(super) fn keep_record(&self, synced: bool) {
        if let Err(error) = self.folder.set_record(&self.record, synced) {
            tracing::warn!(run = %self.join.run, %error, "cannot keep the run's figures");
        }
    }

    /// Notes an end once it is reported.
    fn ended(&mut self, state: RunAgentState) {
        self.state = state;
        self.board.lock().state = state.name();
        self.record.ended = Some(state);
        let (folder, record, run) = (self.folder.clone(), self.record.clone(), self.join.run);
        self.reports.then(move || {
            if let Err(error) = folder.set_record(&record, true) {
                tracing::warn!(%run, %error, "cannot keep the run's end; it will be reported again");
            }
        });
        self.refresh_board();
        self.host.reporter.progress(self.board.progress(state));
        tracing::info!(%run, state = state.name(), "run");
    }

    async fn end(mut self, ending: Ending) {
        self.indexing.stop.store(true, Ordering::Relaxed);
        if self.busy && ending != Ending::Shutdown {
            let _ = timeout(STOP_PATIENCE, self.wait_for_work()).await;
        }
        self.refresh_board();
        self.machine = Machine::None;
        for peer in self.peers.values() {
            peer.link.close(code::GOING, "the run ends here");
        }
        self.peers.clear();
        self.host.endpoint.remove_context(self.context);
        self.host.members.remove(self.context);
        // Threads that tell us something must not wait for us.
        self.woken.close();
        if let Some(workers) = self.workers.take() {
            let finished = tokio::task::spawn_blocking(move || workers.finish());
            let _ = timeout(STOP_PATIENCE, finished).await;
        }
        let shelf = self.place().filter(|_| self.makes_version().is_some());
        let (run, stats) = (self.join.run, self.stats());
        self.record.stats = stats;
        match (ending, self.join.role) {
            (Ending::Shutdown, _) => {}
            (Ending::Stop, Role::Destination) if self.record.ended.is_none() => {
                self.reports.report(RunCompleted { run, state: RunAgentState::Stopped, stats });
            }
            (Ending::Stop | Ending::Finish, _) => self.reports.report(RunServed { run, stats }),
        }
        self.keep_record(true);
        self.reports.flush().await;
        if ending != Ending::Shutdown {
            let (blocks, folder) = (self.blocks, self.folder);
            let held = (self.join.role == Role::Destination).then_some(self.host.held);
            let place = place(&self.host.storage, &self.join.path);
            let removed = tokio::task::spawn_blocking(move || {
                if let Some(staging) = blocks.content().and_then(|c| c.staging()) {
                    staging.remove_staging();
                }
                if let Some(shelf) = shelf {
                    super::work::discard_version(&shelf, run);
                }
                if let (Some(held), Some(place)) = (held, place) {
                    folder.hand_over_manifest(&held, &place);
                }
                folder.remove();
            });
            // Late is fine: nothing depends on it.
            let _ = timeout(STOP_PATIENCE, removed).await;
        }
    }

    async fn wait_for_work(&mut self) {
        while let Some(woken) = self.woken.recv().await {
            match woken {
                Wakeup::Indexed(_) | Wakeup::Sought(_) => return,
                // A version has its name: whoever ordered the stop is told what there is.
                Wakeup::Finalized(done) if done.made.is_some() => return self.finalized(done),
                Wakeup::Finalized(_) => return,
                Wakeup::Prepared(result) => {
                    if let Ok(prepared) = result {
                        self.blocks.set_content(prepared.content);
                    }
                    return;
                }
                _ => {}
            }
        }
    }

    fn uploads() -> UploadConfig {
        UploadConfig {
            sending_max: share(SENDING.0),
            sending_total_max: share(SENDING.1),
            ..UploadConfig::default()
        }
    }

    /// No less than `pipeline_all`, which a sixteenth of it still is.
    fn fetching() -> FetchConfig {
        let config = FetchConfig::default();
        FetchConfig {
            outstanding_max: share(config.outstanding_max),
            want_max: share(config.want_max as usize) as u32,
            ..config
        }
    }
}
