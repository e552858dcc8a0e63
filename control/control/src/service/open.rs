//! Opening the service: read the whole log, check it, fold it, record what the start itself means.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::RunSecret;
use control_core::agent;
use control_core::replica::Session;
use control_core::schema;
use ed25519_dalek::SigningKey;
use event_log::EventLog;
use event_schema::level::LEVEL_NEWEST;
use event_schema::{FleetFounded, ReplicaId, RunId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::archive::BaseNote;

use super::attest::{ATTEST_EVERY, Pace, SNAPSHOT_EVERY};
use super::fold::FoldError;
use super::issue::Issuer;
use super::snapshots::Snapshots;
use super::wish::wish;
use super::writer::{Ask, Writer};
use super::{Origin, QUEUE_MAX, Service, Shared, SubmitError};
use crate::privacy::{KeyStoreError, Ring, SubjectKeys};

/// Default life of a command: an agent that is away for a month still obeys it, a forgotten device
/// that turns up after years does not.
pub const COMMAND_TTL: Duration = Duration::from_secs(30 * 86_400);

/// The keys that the service signs and derives with.
pub struct Keys {
    /// The fleet's root public key: names the fleet.
    pub root_key: [u8; 32],
    /// SHA-256 of the CA certificate.
    pub ca_fingerprint: [u8; 32],
    /// Signs commands.
    pub command: SigningKey,
    /// Derives the secret of a run.
    pub secret_of: Box<dyn Fn(RunId) -> RunSecret + Send + Sync>,
}

/// How a service works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Trackers named to agents (`HOST:PORT`).
    pub trackers: Vec<String>,
    /// How long a command may be obeyed after it was made. Default 30 days.
    pub command_ttl: Duration,
    /// Whether other services may write to the same log: it is followed then.
    pub shared_log: bool,
    /// Records after which the state is attested on the log; default 1,000.
    pub attest_every: u64,
    /// Which replica this is, if it may be one of several: it then has lives on the log, and agents' sessions belong to
    /// them. None: the log is this service's own, and no agent is connected to another.
    pub replica: Option<ReplicaId>,
    /// Folder for snapshots of the state; none: the whole log is folded at every start.
    pub snapshots: Option<PathBuf>,
    /// Records after which another snapshot is written; default 20,000.
    pub snapshot_every: u64,
    /// Where the log begins, if what came before was archived.
    pub base: Option<BaseNote>,
    /// What private texts are sealed with; none: they are recorded in the clear, and sealed ones cannot be read.
    pub subject_keys: Option<SubjectKeys>,
    /// The schema level that this service reads and, once the log is raised to it, writes; default the newest. A lower
    /// one makes it the program of an older release as far as the log goes.
    pub schema: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            trackers: Vec::new(),
            command_ttl: COMMAND_TTL,
            shared_log: false,
            replica: None,
            attest_every: ATTEST_EVERY,
            snapshots: None,
            snapshot_every: SNAPSHOT_EVERY,
            base: None,
            subject_keys: None,
            schema: LEVEL_NEWEST,
        }
    }
}

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log cannot be folded.
    #[error(transparent)]
    Log(#[from] FoldError),
    /// The log is another fleet's.
    #[error(
        "the log was founded under another root key than the one in this data folder: \
         the keys and the log belong to different fleets. To add a replica to the log's fleet, begin with an empty data \
         folder and a bundle of its keys: `flotilla replica invite`, `flotilla serve --join`"
    )]
    OtherFleet,
    /// The folder for snapshots cannot be used.
    #[error("cannot use the folder for snapshots {}: {source}", path.display())]
    Snapshots {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The keys of private texts cannot be had.
    #[error(transparent)]
    Keys(#[from] KeyStoreError),
    /// The log does not take the first records.
    #[error(transparent)]
    Append(#[from] SubmitError),
}

/// Decisions in one commit: enough that one sync, or one round trip, serves a burst of reports.
const COMMIT_MAX: usize = 256;

impl Service {
    /// Folds the log from the newest snapshot on, founds the fleet if the log is empty, records agents as
    /// offline whose links a crash cut, issues commands that a crash held back, and starts the writer.
    ///
    /// The writer ends, and closes the log, when every handle is dropped; wait for the task then.
    ///
    /// # Errors
    /// If the log cannot be read or understood, has a gap, is another fleet's, or takes no record.
    pub async fn open(
        log: Arc<dyn EventLog>,
        keys: Keys,
        options: Options,
    ) -> Result<(Self, JoinHandle<()>), OpenError> {
        let open =
            |path: PathBuf| Snapshots::open(&path).map_err(|source| OpenError::Snapshots { path, source });
        let snapshots = options.snapshots.map(open).transpose()?;
        if let (Some(snapshots), Some(base)) = (&snapshots, &options.base) {
            snapshots.begin_behind(base);
        }
        let ring = Ring::open(options.subject_keys).await?;
        let shared = Arc::new(Shared::new(log, options.replica, snapshots, ring, options.schema));
        let issuer = Issuer {
            key: keys.command,
            secret_of: keys.secret_of,
            trackers: options.trackers,
            time_to_live: options.command_ttl,
        };
        let pace = Pace::new(options.attest_every, options.snapshot_every);
        let mut writer = Writer::new(Arc::clone(&shared), issuer, COMMIT_MAX, options.shared_log, pace);
        writer.catch_up().await?;
        // Before anything of the keys is touched: a log of another fleet says nothing about them.
        if writer.state().root_key().is_some_and(|known| known != keys.root_key) {
            return Err(OpenError::OtherFleet);
        }
        shared.ring.reconcile().await;

        let (root_key, ca_fingerprint) = (keys.root_key, keys.ca_fingerprint);
        let (own, is_alone) = (options.schema, options.replica.is_none());
        let (found, founded) = wish(Origin::service("fleet".into()), false, move |state, _| {
            let mut events = Vec::new();
            if state.root_key().is_none() {
                events.push(FleetFounded { root_key, ca_fingerprint }.into());
            }
            // Another fleet's log is left as it is.
            if is_alone && state.root_key().is_none_or(|known| known == root_key) {
                events.extend(schema::raise(state, Session::ALONE, own));
            }
            Ok((events, state.root_key()))
        });
        writer.commit(VecDeque::from([found])).await;
        let known = founded.await.map_err(|_| stopped())??;
        if known.is_some_and(|known| known != root_key) {
            return Err(OpenError::OtherFleet);
        }
        writer.order_everything();
        if options.replica.is_none() {
            let (restarted, recorded) = wish(Origin::service("fleet".into()), false, |state, _| {
                Ok((agent::service_restarted(state), ()))
            });
            writer.commit(VecDeque::from([restarted])).await;
            recorded.await.map_err(|_| stopped())??;
        }

        let (wishes, queue) = mpsc::channel::<Ask>(QUEUE_MAX);
        let task = tokio::spawn(writer.run(queue));
        let service = Self { shared, wishes };
        if options.replica.is_some() {
            service.begin_life().await?;
        }
        Ok((service, task))
    }
}

fn stopped() -> SubmitError {
    SubmitError::Unavailable("the service is stopping".into())
}
