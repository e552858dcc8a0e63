//! The runs an agent takes part in: one µTP2 socket, one task per run.
//!
//! [`RunManager`] owns what runs share: the endpoint, discovery, who may connect. A run lives in
//! `task.rs`, which moves bytes and events between the transport, the disk and the machines of
//! `sync_core` (`Origin` at the source, `Destination` elsewhere); those decide. Left out: commands and
//! their order (`agent.rs`), what is on disk (`disk/`).

mod assembly;
mod blocks;
mod board;
mod dial;
mod disposal;
mod event;
mod limiter;
mod limits;
mod link;
mod members;
mod neighbourhood;
mod queue;
mod reach;
mod reaching;
mod record;
mod relays;
pub(crate) mod sync;
mod task;
#[cfg(test)]
mod tests;
mod ways;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_proto::{RunSecret, TrustBundle};
use ed25519_dalek::SigningKey;
use event_schema::{
    AgentId, AnswerGuard, ProblemClass, ProblemReported, Role, RunAgentState, RunCompleted, RunId,
    RunStateReported, SourceChanged, Synchronize, TakePart, ThinBackup, TransferStats, WatchBackup,
    WatchedFolder,
};
use folder_index::{Catalog, IndexStatus};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracker_proto::{SwarmId, SwarmKey};
use utp2::{ContextId, Identity};
use utp2_tokio::{BlockSink, BlockSource, Endpoint, EndpointConfig, Handle, Incoming};
use zeroize::Zeroizing;

pub(crate) use board::RunStatus;

use crate::backup::Purpose;
use crate::backup::thin::{Thinned, thin};
use crate::backup::watch::{Changed, Watch, Watches};
use crate::beside;
use crate::clock::FleetClock;
use crate::discovery::{Discovery, DiscoveryConfig, LanConfig};
use crate::disk::HeldManifests;
use crate::hook::Hooks;
use crate::known::KnownFolders;
use crate::relay::{Forwarder, RelayLimits, Relays};
use crate::report::Reporter;
use board::Board;
use event::{Ending, Wakeup};
use limiter::Limiter;
use limits::{EVENTS_WAITING, TRACKERS};
use members::Members;
use record::RunFolder;
use sync::{SyncJob, SyncTask};
use task::{Host, Task};

/// How often trackers' names are looked up again while a run is active.
const TRACKERS_INTERVAL: Duration = Duration::from_secs(60);

/// What runs need of the agent.
pub(crate) struct RunDeps {
    /// Seed of the agent's key.
    pub(crate) seed: [u8; 32],
    /// What we show to other agents.
    pub(crate) credential: watch::Receiver<Vec<u8>>,
    /// The fleet's keys.
    pub(crate) trust: watch::Receiver<TrustBundle>,
    /// The fleet's clock, for the times of credentials.
    pub(crate) clock: Arc<FleetClock>,
    /// The agent's data folder.
    pub(crate) data_dir: PathBuf,
    /// Where relative paths of jobs lie.
    pub(crate) storage_path: PathBuf,
    /// µTP2 socket.
    pub(crate) listen: SocketAddr,
    /// The outbox.
    pub(crate) reporter: Reporter,
    /// Addresses under which others reach our socket from elsewhere.
    pub(crate) advertise: Vec<SocketAddr>,
    /// Announce on the local network.
    pub(crate) lan: LanConfig,
    /// Bytes a second that this agent sends at most, over all connections.
    pub(crate) upload_limit: Option<u64>,
    /// UDP payload of the largest datagrams.
    pub(crate) datagram: Option<u16>,
    /// What the owner's tags say of where this agent is.
    pub(crate) site: Option<String>,
    /// Lie about every content block. For tests.
    pub(crate) corrupt_blocks: bool,
    /// Forward for other members of the fleet, within these limits.
    pub(crate) relay: Option<RelayLimits>,
    /// Relays that the owner names, `HOST:PORT` each.
    pub(crate) relays: Vec<String>,
    /// What one job lacks may be taken from the folders of others.
    pub(crate) share_between_jobs: bool,
    /// What the owner has called before what a run brings gets its names.
    pub(crate) hooks: Hooks,
}

/// What peers' tickets and our resets are made from, the same after a restart: others hear at once that we lost their
/// connections, instead of waiting for two minutes, and come back in one round trip. Whoever has the key could pass for
/// this agent anyway; one agent at a time has it.
fn lasting_secret(seed: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let hash = Sha256::new().chain_update(b"flotilla agent lasting secret v1\0").chain_update(seed);
    Zeroizing::new(hash.finalize().into())
}

/// All runs of the agent.
pub(crate) struct RunManager {
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
    sorting: JoinHandle<()>,
}

struct Shared {
    host: Host,
    relay_context: ContextId,
    forwarder: Option<Arc<Forwarder>>,
    runs: Mutex<BTreeMap<RunId, Active>>,
    /// Disposals are to break off.
    stopping: AtomicBool,
    /// Folders of continuous backups.
    watches: Watches,
}

struct Active {
    context: ContextId,
    swarm: SwarmId,
    trackers: Vec<String>,
    wakeups: mpsc::Sender<Wakeup>,
    board: Board,
    /// The run's folder, or file, here.
    place: Option<PathBuf>,
}

impl RunManager {
    /// Opens the socket and starts discovery.
    ///
    /// # Errors
    /// If no socket can be had there.
    pub(crate) async fn start(deps: RunDeps) -> io::Result<Self> {
        let key = SigningKey::from_bytes(&deps.seed);
        let root_key = deps.trust.borrow().root_key;
        let relay_context = ContextId(agent_proto::relay::context(&root_key));
        let members = Members::new(deps.trust, deps.clock.clone(), relay_context);
        let judge = members.clone();
        let identity = identity(&key, &deps.credential.borrow())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the credential is too long"))?;
        let mut config = EndpointConfig::new(identity, move |context, peer| judge.may_connect(context, peer));
        if let Some(max_datagram) = deps.datagram {
            config.core.max_datagram = max_datagram;
        }
        let (endpoint, incoming) = Endpoint::bind(deps.listen, config)?;
        endpoint.set_lasting_secret(&lasting_secret(&deps.seed));
        let nothing = Arc::new(NoBlocks);
        let relay_secret = agent_proto::relay::secret(&root_key);
        endpoint.add_context(relay_context, relay_secret, nothing.clone(), nothing);
        let forwarder = deps.relay.map(|limits| Forwarder::start(endpoint.clone(), limits));
        let (beside, sorting) = beside::sort(endpoint.beside(), forwarder.clone());
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| io::Error::other(e.to_string()))?;
        let discovery = Discovery::start(DiscoveryConfig {
            listen: endpoint.local_addr(),
            advertise: deps.advertise,
            trackers: Vec::new(),
            lan: deps.lan,
            relay: forwarder.is_some(),
            socket: Some((endpoint.clone(), beside)),
            seed,
        })?;
        let indexes = deps.data_dir.join("indexes");
        let catalog = match tokio::task::spawn_blocking(move || Catalog::open(&indexes)).await {
            Ok(Ok(catalog)) => Some(catalog),
            Ok(Err(error)) => {
                tracing::warn!(%error, "indexes of folders cannot be kept; sources are read anew for each run");
                None
            }
            Err(_) => None,
        };
        let host = Host {
            catalog,
            me: AgentId::of_key(&key.verifying_key().to_bytes()),
            key,
            limiter: deps.upload_limit.map(Limiter::start),
            corrupt: deps.corrupt_blocks,
            site: deps.site,
            discovery: Arc::new(Mutex::new(Some(discovery))),
            relays: Arc::new(Relays::new(endpoint.clone(), relay_context)),
            relays_named: Arc::new(deps.relays),
            endpoint,
            members,
            reporter: deps.reporter,
            clock: deps.clock,
            known: KnownFolders::new(&deps.data_dir, deps.share_between_jobs),
            held: HeldManifests::new(&deps.data_dir, deps.share_between_jobs),
            hooks: Arc::new(deps.hooks),
            data: deps.data_dir,
            storage: deps.storage_path,
        };
        let (changed, changes) = mpsc::channel(1);
        let watches = Watches::new(&host.data, host.catalog.clone(), changed);
        tokio::spawn(tell_changes(changes, host.reporter.clone()));
        if host.corrupt {
            tracing::warn!("this agent sends corrupt blocks, as it was told to for a test");
        }
        let stopping = AtomicBool::default();
        let shared =
            Arc::new(Shared { host, relay_context, forwarder, runs: Mutex::default(), stopping, watches });
        let accepting = tokio::spawn(accept(shared.clone(), incoming, deps.credential));
        Ok(Self { shared, accepting, sorting })
    }

    /// The µTP2 socket's address.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.shared.host.endpoint.local_addr()
    }

    /// Takes part in a run. Asked again about the same run, nothing happens.
    pub(crate) async fn take_part(&self, part: TakePart) {
        if self.shared.runs().contains_key(&part.join.run) {
            return;
        }
        let (run, role) = (part.join.run, part.join.role);
        if let Err(why) = self.try_take_part(part).await {
            tracing::error!(%run, "cannot take part: {why}");
            self.report_failure(run, role, why).await;
        }
    }

    async fn try_take_part(&self, part: TakePart) -> Result<(), String> {
        let TakePart { join, keeping, options, purpose } = part;
        let host = &self.shared.host;
        let purpose = Purpose::of(&purpose).map_err(|_| "what the command names is no version")?;
        if keeping {
            let noted = RunFolder::open(&host.data, join.run).and_then(|folder| folder.set_keeps());
            noted.map_err(|error| format!("noting that nothing may be lost: {error}"))?;
        }
        let secret = open_secret(&host.key, join.run, &join.sealed_secret)?;
        let source =
            join.peers.iter().find(|p| p.agent == join.source).ok_or("the source's key is missing")?;
        if AgentId::of_key(&source.public_key) != join.source {
            return Err("the source's key is not the source's".into());
        }
        let context = ContextId(secret.utp2_context());
        let swarm = SwarmKey::from_run_secret(&secret.swarm_key());
        let (wakeups, woken) = mpsc::channel(EVENTS_WAITING);
        let board = Board::new(join.run, join.job_name.clone(), join.role);
        let trackers = join.trackers.clone();
        let place = work::place(&host.storage, &join.path);
        let (run, source_key) = (join.run, source.public_key);
        let found = self.shared.discovery().as_ref().map(|d| d.join(swarm.clone(), host.me.0));
        let (task, blocks) = Task::new(
            host.clone(),
            (join, options, purpose),
            source_key,
            context,
            board.clone(),
            wakeups.clone(),
            woken,
        )
        .map_err(|error| format!("the run's folder: {error}"))?;
        // Known before the context is, so that nobody connects to nothing.
        let swarm_id = swarm.swarm();
        let active = Active { context, swarm: swarm_id, trackers, wakeups, board, place };
        self.shared.runs().insert(run, active);
        host.endpoint.add_context(context, secret.utp2_secret(), blocks.clone(), blocks);
        self.shared.refresh_trackers().await;
        tokio::spawn(task.run(found, swarm));
        Ok(())
    }

    /// Watches a folder, or does so no more.
    pub(crate) fn watch(&self, order: WatchBackup) {
        let host = &self.shared.host;
        let Some(WatchedFolder { path, quiet_seconds, pause_minutes }) = order.folder else {
            return self.shared.watches.unwatch(order.job);
        };
        let Some(path) = work::place(&host.storage, &path) else { return };
        let quiet = Duration::from_secs(quiet_seconds.into());
        let pause = Duration::from_secs(60) * pause_minutes;
        self.shared.watches.watch(Watch { job: order.job, path, quiet, pause });
    }

    /// How many folders are watched.
    pub(crate) fn watched(&self) -> usize {
        self.shared.watches.count()
    }

    /// Removes versions; none if the agent ends meanwhile.
    pub(crate) async fn thin(&self, order: &ThinBackup) -> Option<Thinned> {
        let path = work::place(&self.shared.host.storage, &order.path)?;
        let versions = order.versions.clone();
        tokio::task::spawn_blocking(move || thin(&path, &versions)).await.ok()
    }

    /// Takes part in a synchronization. Asked again about the same one, it goes on by what it is now: members,
    /// permissions, rules.
    pub(crate) async fn synchronize(&self, order: Synchronize) {
        let run = order.run;
        if let Err(why) = self.try_synchronize(order).await {
            tracing::error!(%run, "cannot take part: {why}");
            self.report_failure(run, Role::Member, why).await;
        }
    }

    async fn try_synchronize(&self, order: Synchronize) -> Result<(), String> {
        let host = &self.shared.host;
        let secret = open_secret(&host.key, order.run, &order.sealed_secret)?;
        let job = SyncJob::of(order);
        let running = self.shared.runs().get(&job.run).map(|active| active.wakeups.clone());
        if let Some(wakeups) = running {
            // A task that is gone has ended.
            let _ = wakeups.send(Wakeup::Job(Box::new(job))).await;
            return Ok(());
        }
        let context = ContextId(secret.utp2_context());
        let swarm = SwarmKey::from_run_secret(&secret.swarm_key());
        let (wakeups, woken) = mpsc::channel(EVENTS_WAITING);
        let board = Board::new(job.run, job.name.clone(), Role::Member);
        let place = work::place(&host.storage, &job.path).ok_or("the folder's path is none")?;
        let (run, trackers) = (job.run, job.trackers.clone());
        let found = self.shared.discovery().as_ref().map(|d| d.join(swarm.clone(), host.me.0));
        let (task, blocks) = SyncTask::new(
            host.clone(),
            job,
            place.clone(),
            (context, swarm.clone()),
            board.clone(),
            wakeups.clone(),
            woken,
        )
        .map_err(|error| format!("the job's folder in the data folder: {error}"))?;
        // Known before the context is, so that nobody connects to nothing.
        let swarm_id = swarm.swarm();
        let active = Active { context, swarm: swarm_id, trackers, wakeups, board, place: Some(place) };
        self.shared.runs().insert(run, active);
        host.endpoint.add_context(context, secret.utp2_secret(), blocks.clone(), blocks);
        self.shared.refresh_trackers().await;
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::Builder::new().name("synchronization".into());
        // The machine reads its index from disk: it has a thread of its own.
        thread
            .spawn(move || runtime.block_on(task.run(found)))
            .map(drop)
            .map_err(|error| format!("no thread: {error}"))
    }

    /// A person's answer to the guard of a synchronization. To a question that is not open it is passed over.
    pub(crate) async fn answer_guard(&self, answer: AnswerGuard) {
        let running = self.shared.runs().get(&answer.run).map(|active| active.wakeups.clone());
        if let Some(wakeups) = running {
            let _ = wakeups.send(Wakeup::Answer(answer)).await;
        }
    }

    async fn report_failure(&self, run: RunId, role: Role, why: String) {
        let reporter = &self.shared.host.reporter;
        let problem = work::problem(ProblemClass::Internal, why);
        reporter.report(ProblemReported { run, problem }.into()).await;
        let (state, stats) = (RunAgentState::Failed, TransferStats::default());
        match role {
            Role::Source | Role::Member => {
                reporter.report(RunStateReported { run, state }.into()).await;
            }
            Role::Destination => reporter.report(RunCompleted { run, state, stats }.into()).await,
        }
    }

    /// This machine is in another network: peers are called again at once.
    pub(crate) fn network_changed(&self) {
        for active in self.shared.runs().values() {
            // A run that has that much to do is not waiting for anybody.
            let _ = active.wakeups.try_send(Wakeup::Network);
        }
    }

    /// The run is over everywhere: stops serving and forgets it. What is in place stays.
    pub(crate) async fn finish(&self, run: RunId) {
        self.end(run, Ending::Finish).await;
    }

    /// Stops working on a run and forgets it. What is in place stays, what is unfinished goes.
    pub(crate) async fn stop(&self, run: RunId) {
        self.end(run, Ending::Stop).await;
    }

    async fn end(&self, run: RunId, ending: Ending) {
        let Some(wakeups) = self.shared.runs().get(&run).map(|active| active.wakeups.clone()) else { return };
        let (done, ended) = oneshot::channel();
        // A task that is gone has ended already.
        if wakeups.send(Wakeup::End(ending, done)).await.is_ok() {
            let _ = ended.await;
        }
        let active = self.shared.runs().remove(&run);
        if ending != Ending::Shutdown {
            if let (Some(discovery), Some(active)) = (&*self.shared.discovery(), active) {
                discovery.leave(active.swarm);
            }
            self.shared.refresh_trackers().await;
        }
    }

    /// How discovery is doing, as JSON.
    pub(crate) fn discovery(&self) -> serde_json::Value {
        let Some(status) = self.shared.discovery().as_ref().map(Discovery::status) else {
            return serde_json::Value::Null;
        };
        let tracker = |(address, up): &(SocketAddr, bool)| {
            let seen = status.observed.get(address).map(ToString::to_string);
            serde_json::json!({ "address": address.to_string(), "up": up, "sees_us_at": seen })
        };
        let (client, lan, probes) = (status.client, status.lan, status.probes);
        serde_json::json!({
            "trackers": status.trackers.iter().map(tracker).collect::<Vec<_>>(),
            "swarms": status.swarms,
            "lan_interfaces": status.lan_interfaces,
            "lan_interfaces_v6": status.lan_interfaces_v6,
            "lan_error": status.lan_error,
            "hints_dropped": status.hints_dropped,
            "tracker_counters": {
                "sent": client.sent, "answers": client.answers, "timeouts": client.timeouts,
                "calls": client.calls, "rings": client.rings, "ignored": client.ignored, "forged": client.forged, "stale": client.stale,
                "events_dropped": client.events_dropped,
            },
            "lan_counters": {
                "sent": lan.sent, "heard": lan.heard, "ignored": lan.ignored, "forged": lan.forged,
                "stale": lan.stale,
            },
            "probe_counters": {
                "questions": probes.questions, "answers": probes.answers, "reached": probes.reached,
                "ignored": probes.ignored, "limited": probes.limited,
            },
            "relay": self.shared.forwarder.as_ref().map(|f| f.stats()),
        })
    }

    /// What is known of folders, and how far they are read, as JSON.
    pub(crate) fn indexes(&self) -> serde_json::Value {
        let status = self.shared.host.catalog.as_ref().map(Catalog::status).unwrap_or_default();
        let index = |index: &IndexStatus| {
            let scanning = index.scanning.map(|(entries, hashed, bytes)| {
                serde_json::json!({ "entries": entries, "hashed": hashed, "bytes": bytes })
            });
            serde_json::json!({
                "path": index.root.to_string_lossy(),
                "files": index.counters.files,
                "folders": index.counters.folders,
                "bytes": index.counters.bytes,
                "complete": index.complete,
                "scanning": scanning,
            })
        };
        status.iter().map(index).collect()
    }

    /// Every run as it stands.
    pub(crate) fn status(&self) -> Vec<RunStatus> {
        self.shared.runs().values().map(|active| active.board.lock().clone()).collect()
    }

    /// Ends politely; runs go on after a restart.
    pub(crate) async fn shutdown(&self) {
        self.accepting.abort();
        self.shared.watches.stop();
        self.shared.stop_disposals();
        let runs: Vec<RunId> = self.shared.runs().keys().copied().collect();
        for run in runs {
            self.end(run, Ending::Shutdown).await;
        }
        let discovery = self.shared.discovery().take();
        if let Some(discovery) = discovery {
            discovery.shutdown().await;
        }
        self.shared.host.endpoint.close().await;
    }
}

impl Drop for RunManager {
    fn drop(&mut self) {
        self.accepting.abort();
        // It holds the socket by way of the relay.
        self.sorting.abort();
    }
}

impl Shared {
    fn runs(&self) -> MutexGuard<'_, BTreeMap<RunId, Active>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn discovery(&self) -> MutexGuard<'_, Option<Discovery>> {
        self.host.discovery()
    }

    /// Uses the trackers of all active runs.
    async fn refresh_trackers(&self) {
        let names: BTreeSet<String> = self.runs().values().flat_map(|a| a.trackers.clone()).collect();
        let mut trackers = Vec::new();
        for name in names.iter().take(TRACKERS) {
            match tokio::net::lookup_host(name.as_str()).await {
                Ok(addresses) => trackers.extend(addresses),
                Err(error) => tracing::warn!(tracker = name, %error, "cannot look up a tracker"),
            }
        }
        trackers.truncate(TRACKERS);
        if let Some(discovery) = &*self.discovery() {
            discovery.set_trackers(&trackers);
        }
    }
}

/// The run's secret that was sealed to us.
fn open_secret(key: &SigningKey, run: RunId, sealed: &[u8]) -> Result<RunSecret, String> {
    let secret = agent_proto::open(key, &agent_proto::link::seal_context(run), sealed)
        .map_err(|error| error.to_string())?;
    let secret: [u8; 32] = secret.as_slice().try_into().map_err(|_| "the run's secret has a wrong length")?;
    Ok(RunSecret::from_bytes(secret))
}

/// Tells of folders that have changed, one after the other.
async fn tell_changes(mut changes: mpsc::Receiver<Changed>, reporter: Reporter) {
    while let Some((job, told)) = changes.recv().await {
        reporter.report(SourceChanged { job }.into()).await;
        // Who waits for it may have been told to watch no more.
        let _ = told.send(());
    }
}

/// Sessions with relays carry messages only.
struct NoBlocks;

impl BlockSource for NoBlocks {
    fn read(&self, _: Handle, _tag: u64, _offset: u32, _buf: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl BlockSink for NoBlocks {
    fn write(&self, _: Handle, _tag: u64, _offset: u32, _fin: bool, _data: &[u8]) {}
}

/// Who we are to other agents.
fn identity(key: &SigningKey, credential: &[u8]) -> Option<Identity> {
    (credential.len() <= Identity::MAX_CREDENTIAL).then(|| Identity::new(key.to_bytes(), credential.to_vec()))
}

/// Hands incoming connections to their runs, and keeps trackers' addresses and our credential fresh.
async fn accept(shared: Arc<Shared>, mut incoming: Incoming, mut credential: watch::Receiver<Vec<u8>>) {
    let mut again = tokio::time::interval(TRACKERS_INTERVAL);
    loop {
        tokio::select! {
            conn = incoming.accept() => {
                let Some(conn) = conn else { return };
                let context = conn.context();
                if context == shared.relay_context {
                    match &shared.forwarder {
                        Some(forwarder) => forwarder.accept(conn),
                        None => conn.close(link::code::GOING, "no relay"),
                    }
                    continue;
                }
                let run = shared.runs().values().find(|a| a.context == context).map(|a| a.wakeups.clone());
                if let Some(wakeups) = run {
                    // A run whose queue is full takes it later; others don't wait for that.
                    tokio::spawn(async move { wakeups.send(Wakeup::Incoming(conn)).await.is_ok() });
                }
            }
            _ = again.tick() => shared.refresh_trackers().await,
            Ok(()) = credential.changed() => {
                let renewed = identity(&shared.host.key, &credential.borrow_and_update());
                match renewed {
                    Some(renewed) => shared.host.endpoint.set_identity(renewed),
                    None => tracing::error!("the renewed credential is too long; keeping the old one"),
                }
            }
        }
    }
}
