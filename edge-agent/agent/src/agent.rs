//! The agent put together: enrol if need be, bring up runs and link, stop in order.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_proto::TrustBundle;
use agent_proto::limits::GATEWAYS_MAX;
use ed25519_dalek::SigningKey;
use event_schema::{AgentId, DisposalReported, RunId, TakePart, ThinBackup, Thinned, WatchBackup};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;

use crate::archive;
use crate::backup;
use crate::clock::FleetClock;
use crate::config::{ConfigError, Gateway, Settings};
use crate::folder::{DataFolder, FolderError};
use crate::limits::STOP_TIMEOUT;
use crate::link::{EnrolError, Link, LinkEnd, Order, Place, Places, enrol};
use crate::report::{Reporter, Write};
use crate::restrict::Restrictions;
use crate::run::{RunDeps, RunManager};
use crate::status::{self, Status};
use crate::store::{Followed, Membership, Store, StoreError, Wish};
use crate::witness::Witness;

/// When archives are looked through for the first time, and how often from then on.
const ARCHIVES_FIRST: Duration = Duration::from_secs(60);
/// See [`ARCHIVES_FIRST`].
const ARCHIVES_INTERVAL: Duration = Duration::from_secs(3600);

/// Orders waiting for the run engine.
const ORDERS_WAITING: usize = 64;

/// Why the agent does not run (any more).
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    #[error(
        "this agent is not enrolled; give it a bootstrap file with --bootstrap FILE (flotilla token create --out FILE)"
    )]
    NotEnrolled,
    #[error("{0}")]
    Bootstrap(String),
    #[error("the kept trust bundle is damaged; move the data folder away and enrol anew")]
    Trust,
    #[error("the µTP2 socket {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(
        "this agent was removed from its fleet. The control service says: {0}\nIts runs are stopped. To use it again, move its data folder away and enrol anew."
    )]
    Removed(String),
    #[error("signals cannot be received: {0}")]
    Signals(std::io::Error),
}

/// Runs until a signal, removal or an error that trying again would not mend.
pub(crate) async fn run(settings: Settings) -> Result<(), AgentError> {
    let mut signals = Signals::new().map_err(AgentError::Signals)?;
    let folder = DataFolder::open(&settings.data)?;
    let store = Arc::new(Store::open(&folder.path().join("state.redb"))?);
    let membership = store.membership()?;
    let key = folder.identity(membership.is_some())?;
    let agent = AgentId::of_key(&key.verifying_key().to_bytes());
    let status = Arc::new(Status::new(agent, settings.name.clone()));
    let status_server = status::serve(folder.path(), status.clone());
    tracing::info!(%agent, data = %folder.path().display(), version = crate::VERSION, "flotilla-agent starts");
    let result = async {
        let membership = match membership {
            Some(membership) => at_its_address(membership, &settings, &store)?,
            None => {
                let join = join_fleet(&settings, &key, &store, &status, &folder);
                tokio::select! {
                    membership = join => membership?,
                    () = signals.next() => return Ok(()),
                }
            }
        };
        forget_bootstrap(settings.consumed.as_deref());
        serve(&settings, &folder, store.clone(), key, membership, &status, &mut signals).await
    }
    .await;
    status_server.abort();
    status::clear(folder.path());
    result
}

/// A member needs no invitation. One of its own fleet may tell that the gateway has moved.
fn at_its_address(
    mut membership: Membership,
    settings: &Settings,
    store: &Store,
) -> Result<Membership, AgentError> {
    if let Some(error) = &settings.unreadable {
        tracing::warn!(%error, "enrolled already; the bootstrap file is ignored");
    }
    let Some(invitation) = &settings.invitation else { return Ok(membership) };
    let trust = store.trust()?.ok_or(AgentError::Trust)?;
    let trust = TrustBundle::open(&trust, &membership.root_key).map_err(|_| AgentError::Trust)?;
    let same_fleet = Sha256::digest(&trust.ca_certificate)[..] == invitation.fingerprint;
    if same_fleet && invitation.address != membership.gateway {
        tracing::info!(gateway = %invitation.address, "enrolled already; the gateway has moved");
        // Nothing proves that it has: what a bootstrap file says without a token, anybody can say. So the old one stays
        // among those that are tried.
        let mut known = store.gateways()?;
        known.insert(0, std::mem::replace(&mut membership.gateway, invitation.address.clone()));
        known.dedup();
        known.truncate(GATEWAYS_MAX);
        let change = store.change()?;
        change.set_gateways(&known)?;
        change.set_membership(&membership)?;
        change.commit()?;
    } else {
        tracing::info!(gateway = %membership.gateway, "enrolled already; the bootstrap file is ignored");
        if !same_fleet {
            tracing::warn!(
                data = %settings.data.display(),
                "the bootstrap file is of another fleet; to join that one, move the data folder away first"
            );
        }
    }
    Ok(membership)
}

/// What a bootstrap file says is spent once the agent is enrolled, and its token is a secret of others than the agent.
fn forget_bootstrap(path: Option<&Path>) {
    let Some(path) = path else { return };
    match std::fs::remove_file(path) {
        Ok(()) => tracing::info!(file = %path.display(), "enrolled: the bootstrap file is deleted"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "the bootstrap file can't be deleted; delete it by hand");
        }
    }
}

/// Enrols, and stores the outcome before anything else happens.
async fn join_fleet(
    settings: &Settings,
    key: &SigningKey,
    store: &Store,
    status: &Status,
    folder: &DataFolder,
) -> Result<Membership, AgentError> {
    let invitation = match (&settings.invitation, &settings.unreadable) {
        (Some(invitation), None) => invitation,
        (_, Some(error)) => return Err(AgentError::Bootstrap(error.to_string())),
        (None, None) => return Err(AgentError::NotEnrolled),
    };
    let (address, admission) = enrol(invitation, settings, key, status).await?;
    let storage = settings.folders_storage_path.clone();
    let default = || folder.path().join("folders").to_string_lossy().into_owned();
    let membership = Membership {
        gateway: address,
        root_key: admission.bundle.root_key,
        certificate: admission.certificate,
        credential: admission.credential,
        name: admission.name,
        folders_storage_path: storage.unwrap_or_else(default),
    };
    let change = store.change()?;
    change.set_membership(&membership)?;
    change.set_trust(&admission.trust)?;
    change.commit()?;
    tracing::info!(name = %membership.name, gateway = %membership.gateway, "enrolled");
    Ok(membership)
}

async fn serve(
    settings: &Settings,
    folder: &DataFolder,
    store: Arc<Store>,
    key: SigningKey,
    membership: Membership,
    status: &Arc<Status>,
    signals: &mut Signals,
) -> Result<(), AgentError> {
    let trust = store.trust()?.ok_or(AgentError::Trust)?;
    let trust = TrustBundle::open(&trust, &membership.root_key).map_err(|_| AgentError::Trust)?;
    let first = Place { gateway: Gateway::parse(&membership.gateway)?, text: membership.gateway.clone() };
    let mut named = settings.gateways.clone();
    named.extend(settings.invitation.iter().flat_map(|invitation| invitation.others.clone()));
    named.push(membership.gateway.clone());
    let others: Vec<String> = store.gateways()?.into_iter().chain(named.clone()).collect();
    let places = Places::new(first, &others);
    let storage =
        PathBuf::from(settings.folders_storage_path.as_ref().unwrap_or(&membership.folders_storage_path));
    let reporter = Reporter::start(store.clone(), key.clone(), settings.outbox_max)?;
    let (trust, trusted) = watch::channel(trust);
    let (credential, credentials) = watch::channel(membership.credential.clone());
    let clock = Arc::new(FleetClock::default());
    let deps = |listen| RunDeps {
        seed: key.to_bytes(),
        credential: credentials.clone(),
        trust: trusted.clone(),
        data_dir: folder.path().to_owned(),
        storage_path: storage.clone(),
        listen,
        lan: settings.lan.clone(),
        advertise: settings.advertise.clone(),
        upload_limit: settings.upload_limit,
        datagram: settings.datagram,
        site: settings.tags.iter().find(|(name, _)| name == "SITE").map(|(_, value)| value.clone()),
        corrupt_blocks: settings.corrupt_blocks,
        relay: settings.relay,
        relays: settings.relays.clone(),
        share_between_jobs: settings.share_between_jobs,
        hooks: settings.hooks.clone(),
        clock: clock.clone(),
        reporter: reporter.clone(),
    };
    let clock_of_fleet = clock.clone();
    let network = Arc::new(Notify::new());
    let runs = Arc::new(start_runs(settings.listen, store.port()?, deps).await?);
    reporter.write(Write { port: Some(runs.local_addr().port()), ..Write::default() }).await;

    let removed = store.removed()?;
    let known = Known {
        runs: store.runs()?,
        followed: store.syncs()?,
        watched: store.watches()?,
        thinnings: store.thinnings()?,
    };
    let all = known.runs.iter().map(|(part, _)| part.join.run);
    let all = all.chain(known.followed.iter().map(|f| f.order.run));
    let active = Arc::new(Mutex::new(all.collect::<BTreeSet<_>>()));
    let witness = Arc::new(Mutex::new(Witness::open(folder.path(), &membership.root_key)));
    let (orders, incoming) = mpsc::channel(ORDERS_WAITING);
    let (stop, stopped) = watch::channel(false);
    let cursor = store.cursor()?;
    status.enrolled(membership.name.clone(), membership.gateway.clone(), cursor.sequence, {
        let (reporter, runs, clock) = (reporter.clone(), runs.clone(), clock.clone());
        let witness = witness.clone();
        Box::new(move || {
            json!({
                "outbox": reporter.outbox_len(),
                "reports_dropped": reporter.dropped(),
                "clock_offset_ms": clock.offset_ms(),
                "utp2": runs.local_addr().to_string(),
                "runs": runs.status(),
                "indexes": runs.indexes(),
                "watched_folders": runs.watched(),
                "discovery": runs.discovery(),
                "witness": witness.lock().unwrap_or_else(PoisonError::into_inner).status(),
            })
        })
    });
    // A removed agent does nothing but ask whether it is still so.
    let known = if removed { Known::default() } else { known };
    let worker = tokio::spawn(work(known, incoming, runs.clone(), reporter.clone(), active.clone()));
    let link = Link {
        key,
        places,
        named,
        membership,
        store,
        reporter: reporter.clone(),
        clock,
        trust,
        credential,
        cursor,
        active,
        runs_max: settings.runs_max,
        restrictions: Restrictions::new(&storage, &settings.allowed_paths),
        allow_disposal: settings.allow_disposal,
        advertise: settings.advertise.clone(),
        utp2: runs.local_addr(),
        orders,
        was_removed: removed,
        status: status.clone(),
        witness,
        met: None,
        network: network.clone(),
        obeying: Arc::default(),
    };
    let mut link = tokio::spawn(link.run(stopped));
    let calling = tokio::spawn({
        let runs = runs.clone();
        async move {
            loop {
                network.notified().await;
                runs.network_changed();
            }
        }
    });
    let sweeping = tokio::spawn(sweep_archives(folder.path().to_owned(), clock_of_fleet));
    let end = tokio::select! {
        end = &mut link => end,
        () = signals.next() => {
            tracing::info!("stopping");
            stop.send_replace(true);
            link.await
        }
    };
    let end = end.expect("the link does not panic");
    sweeping.abort();
    calling.abort();
    if let LinkEnd::Removed(_) = &end {
        status.removed();
    }
    // The link held the orders' sender, so the worker ends after the last one.
    let rest = async {
        if worker.await.is_err() {
            tracing::error!("the worker panicked");
        }
        runs.shutdown().await;
    };
    if timeout(STOP_TIMEOUT, rest).await.is_err() {
        tracing::warn!("runs did not come to rest in time");
    }
    // An empty write is answered after all that came before it.
    reporter.write(Write::default()).await;
    match end {
        LinkEnd::Stopped => Ok(()),
        LinkEnd::Removed(detail) => Err(AgentError::Removed(detail)),
    }
}

/// Brings the runs up on the port of last time if we may choose: peers still know it.
async fn start_runs(
    listen: SocketAddr,
    last_port: Option<u16>,
    deps: impl Fn(SocketAddr) -> RunDeps,
) -> Result<RunManager, AgentError> {
    if let (0, Some(port)) = (listen.port(), last_port) {
        let again = SocketAddr::new(listen.ip(), port);
        match RunManager::start(deps(again)).await {
            Ok(runs) => return Ok(runs),
            Err(error) => tracing::info!(%error, port, "the µTP2 port of last time is not free"),
        }
    }
    RunManager::start(deps(listen)).await.map_err(|source| AgentError::Listen { address: listen, source })
}

fn unfinished(run: RunId, wish: Wish) -> Option<Order> {
    match wish {
        Wish::Join => None,
        Wish::Finish => Some(Order::Finish(run)),
        Wish::Stop => Some(Order::Stop(run)),
        Wish::Dispose { root, disposal, told } => Some(Order::Dispose(run, root, disposal, told)),
    }
}

/// What was ordered before the last stop and is not over.
#[derive(Default)]
struct Known {
    runs: Vec<(TakePart, Wish)>,
    followed: Vec<Followed>,
    watched: Vec<WatchBackup>,
    /// With the sequences of their commands.
    thinnings: Vec<(u64, ThinBackup)>,
}

/// Goes on with what was ordered last time, then carries out orders, one after the other; all are stored already.
async fn work(
    known: Known,
    mut orders: mpsc::Receiver<Order>,
    runs: Arc<RunManager>,
    reporter: Reporter,
    active: Arc<Mutex<BTreeSet<RunId>>>,
) {
    for (part, wish) in known.runs {
        let run = part.join.run;
        runs.take_part(part).await;
        if let Some(order) = unfinished(run, wish) {
            carry_out(&runs, &reporter, &active, order).await;
        }
    }
    for Followed { order, stop, answer } in known.followed {
        let run = order.run;
        runs.synchronize(order).await;
        let further = answer.map(Order::Answer).into_iter().chain(stop.then_some(Order::Stop(run)));
        for order in further {
            carry_out(&runs, &reporter, &active, order).await;
        }
    }
    // Runs hold the versions that they read by now.
    let thinnings = known.thinnings.into_iter().map(|(sequence, thin)| Order::Thin(sequence, Box::new(thin)));
    for order in known.watched.into_iter().map(Order::Watch).chain(thinnings) {
        carry_out(&runs, &reporter, &active, order).await;
    }
    while let Some(order) = orders.recv().await {
        carry_out(&runs, &reporter, &active, order).await;
    }
}

async fn carry_out(
    runs: &Arc<RunManager>,
    reporter: &Reporter,
    active: &Arc<Mutex<BTreeSet<RunId>>>,
    order: Order,
) {
    let over = match order {
        Order::Join(part) => return runs.take_part(*part).await,
        Order::Watch(watch) => return runs.watch(watch),
        Order::Thin(sequence, thin) => {
            // A version may have millions of files: nobody waits for that.
            let (runs, reporter) = (runs.clone(), reporter.clone());
            tokio::spawn(async move {
                let Some(backup::thin::Thinned { removed, failed }) = runs.thin(&thin).await else { return };
                let ThinBackup { job, source, .. } = *thin;
                let reports = vec![Thinned { job, source, removed, failed }.into()];
                reporter.write(Write { reports, thinned: Some(sequence), ..Write::default() }).await;
            });
            return;
        }
        Order::Synchronize(order) => return runs.synchronize(*order).await,
        Order::Answer(answer) => return runs.answer_guard(answer).await,
        Order::Dispose(run, root, disposal, told) => {
            // Every file is read once more: nobody waits for that.
            let (runs, reporter, active) = (runs.clone(), reporter.clone(), active.clone());
            tokio::spawn(async move {
                let Some(disposed) = runs.dispose(run, root, disposal, told).await else { return };
                // Told before the run's folder goes, in which it stands how far it came.
                reporter.report(DisposalReported { run, disposed }.into()).await;
                runs.finish(run).await;
                forget(&reporter, &active, run).await;
            });
            return;
        }
        Order::Finish(run) => {
            runs.finish(run).await;
            run
        }
        Order::Stop(run) => {
            runs.stop(run).await;
            run
        }
    };
    forget(reporter, active, over).await;
}

async fn forget(reporter: &Reporter, active: &Mutex<BTreeSet<RunId>>, over: RunId) {
    reporter.write(Write { run_over: Some(over), ..Write::default() }).await;
    active.lock().unwrap_or_else(PoisonError::into_inner).remove(&over);
}

/// Deletes what is over in the archives, now and then, once the gateway has told what time it is: a clock that is wrong
/// must not.
async fn sweep_archives(data: PathBuf, clock: Arc<FleetClock>) {
    let mut pause = ARCHIVES_FIRST;
    loop {
        tokio::time::sleep(pause).await;
        if clock.is_known() {
            let (data, now) = (data.clone(), clock.now());
            if tokio::task::spawn_blocking(move || archive::sweep(&data, now)).await.is_err() {
                tracing::error!("looking through the archives failed");
            }
            pause = ARCHIVES_INTERVAL;
        }
    }
}

/// SIGTERM and SIGINT; elsewhere Ctrl-C.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            // If it cannot be waited for there is still SIGTERM.
            Ok(()) = tokio::signal::ctrl_c() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}
