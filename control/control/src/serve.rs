//! `flotilla serve`: opens everything in order, says when it is ready, and closes it in order.

use std::fs::{File, OpenOptions, TryLockError};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use event_log::EventLog;
use event_log::file::{FileLog, FileLogOptions};
use event_log_nats::{NatsLog, NatsLogOptions, NatsOpenError};
use event_schema::ReplicaId;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{Api, ApiToken, GatewayPlace};
use crate::archive::{ArchiveError, BaseNote};
use crate::config::{Config, host_and_port};
use crate::gateway::{Gateway, GatewayError, Limits};
use crate::pki::bundle::{self, BundleError};
use crate::pki::{AuditKeys, Pki, PkiError};
use crate::privacy::{self, FileKeys, KeyStore, KeyStoreError, NatsKeys, SubjectKeys, Wrapper};
use crate::retention::Retention;
use crate::sealing::Sealing;
use crate::service::{self, Keeper, Keys, Options, Scheduler, Service, now};
use crate::telemetry::Store;

/// How long open requests may take when the service stops; streams of events end at once.
const HTTP_STOP: Duration = Duration::from_secs(5);

/// How long telling the other replicas may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a checkpoint that is being made may take.
const SEALER_STOP: Duration = Duration::from_secs(10);

/// How long the writer may take for what is still in its queue.
const WRITER_STOP: Duration = Duration::from_secs(30);

/// Why the service does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data folder cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another service uses the data folder.
    #[error(
        "another `flotilla serve` uses {}: stop that one, or choose another folder with --data", data.display()
    )]
    InUse {
        /// The folder.
        data: PathBuf,
    },
    /// The embedded log does not open.
    #[error(transparent)]
    Log(#[from] event_log::OpenError),
    /// The log in NATS does not open.
    #[error(transparent)]
    Nats(#[from] NatsOpenError),
    /// What the log keeps of its archived part cannot be used.
    #[error(transparent)]
    Base(#[from] ArchiveError),
    /// The keys cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The keys of private texts cannot be used.
    #[error(transparent)]
    Subjects(#[from] KeyStoreError),
    /// The bundle for a replica cannot be taken.
    #[error(transparent)]
    Join(#[from] BundleError),
    /// The log cannot be folded.
    #[error(transparent)]
    Service(#[from] service::OpenError),
    /// The gateway does not start.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The API's address cannot be had.
    #[error("the API cannot listen on {address}: {source}")]
    Http {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What `api.json` holds: how the command line on this machine finds the service.
#[derive(Clone, Serialize, Deserialize)]
pub struct ApiFile {
    /// Where the API is.
    pub url: String,
    /// Its token: a secret, the file is 0600.
    pub token: String,
}

/// A service that runs.
pub struct Running {
    /// Where the API listens.
    pub http: SocketAddr,
    /// Where agents connect.
    pub gateway: SocketAddr,
    /// SHA-256 of the CA certificate, as bootstrap files carry it.
    pub ca_fingerprint: String,
    /// The API's token.
    pub token: String,
    /// The service, for tests.
    pub service: Service,
    stop: watch::Sender<bool>,
    stop_sealing: watch::Sender<bool>,
    link: Gateway,
    server: JoinHandle<std::io::Result<()>>,
    keeper: Option<Keeper>,
    scheduler: Scheduler,
    archiver: Option<JoinHandle<()>>,
    sealer: JoinHandle<()>,
    writer: JoinHandle<()>,
    api_file: PathBuf,
    /// Held as long as the service runs.
    _lock: File,
}

/// Opens log, keys, service, gateway and API, in this order.
///
/// # Errors
/// The first thing that does not open; what was opened before is closed again.
pub async fn start(config: &Config) -> Result<Running, ServeError> {
    make_folder(&config.data)?;
    let lock = lock_folder(&config.data)?;
    let nats = match &config.nats {
        None => None,
        Some(url) => {
            let copy = Some(config.data.join("log-copy"));
            let options = NatsLogOptions { copy, ..config.nats_access.options(url) };
            Some(Arc::new(NatsLog::open(options).await?))
        }
    };
    let mut files = None;
    let log: Arc<dyn EventLog> = match &nats {
        None => {
            let log = Arc::new(FileLog::open(config.data.join("log"), FileLogOptions::default()).await?);
            files = Some(Arc::clone(&log));
            log
        }
        Some(log) => Arc::clone(log) as Arc<dyn EventLog>,
    };
    let base = files.as_ref().and_then(|files| files.base());
    let base = base.map(|base| BaseNote::of(&base)).transpose()?;
    let names = names(config);
    let pki = Arc::new(Pki::open(&config.data, &names, now())?);
    let secrets = Arc::clone(&pki);
    let keys = Keys {
        root_key: pki.root_key(),
        ca_fingerprint: pki.ca_fingerprint(),
        command: pki.command_key().clone(),
        secret_of: Box::new(move |run| secrets.run_secret(run)),
    };
    let wrapper = Arc::new(pki.subject_keys());
    let store = key_store(&config.data, nats.as_deref(), pki.root_key(), &wrapper).await?;
    let options = Options {
        trackers: config.trackers.clone(),
        command_ttl: config.command_ttl,
        shared_log: config.nats.is_some(),
        replica: if config.nats.is_some() { Some(replica_id(&config.data)?) } else { None },
        snapshots: Some(config.data.join("snapshots")),
        base,
        subject_keys: Some(SubjectKeys { store, wrapper }),
        ..Options::default()
    };
    let (service, writer) = Service::open(log, keys, options).await?;
    let (stop_sealing, sealing_stops) = watch::channel(false);
    let audit_keys = AuditKeys::open(&config.data)?;
    let key_list = audit_keys.list().clone();
    let (sealing, sealer) = Sealing::start(
        service.clone(),
        config.data.join("audit"),
        audit_keys,
        config.nats.is_some(),
        files.clone(),
        sealing_stops,
    );
    service.set_sealing(sealing);
    if let Some(keep) = config.telemetry.clone() {
        let path = config.data.join("telemetry");
        let folder = path.clone();
        let opening = tokio::task::spawn_blocking(move || Store::open(&folder, keep, now)).await;
        match opening.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(store) => service.keep_telemetry(store),
            // Nothing that is decided depends on it.
            Err(error) => tracing::warn!(folder = %path.display(), %error, "telemetry is not kept"),
        }
    }
    let token = api_token(&config.data)?;
    let http_error = |source| ServeError::Http { address: config.http, source };
    let listener = TcpListener::bind(config.http).await.map_err(http_error)?;
    let http = listener.local_addr().map_err(http_error)?;
    let link = Gateway::start(config.gateway, Limits::default(), Arc::clone(&pki), Arc::new(service.clone()))
        .await?;
    let gateway = link.local_addr();
    let mut places = config.public_gateway.clone();
    if places.is_empty() {
        places.push(public(&names, gateway));
    }
    let keeper = match &nats {
        Some(log) => Some(Keeper::start(service.clone(), Arc::new(log.bus()), places.clone()).await),
        None => None,
    };
    let scheduler = Scheduler::start(service.clone());
    let place = GatewayPlace { host: places.swap_remove(0), ca_fingerprint: pki.ca_fingerprint_text() };
    let (stop, stopping) = watch::channel(false);
    let mut archiver = None;
    if let (Some(files), Some(rule)) = (files, &config.retention) {
        let (audit, rule) = (config.data.join("audit"), rule.clone());
        let (retention, task) =
            Retention::start(service.clone(), files, audit, key_list, rule, stopping.clone());
        service.set_retention(retention);
        archiver = Some(task);
    }
    let ca_fingerprint = place.ca_fingerprint.clone();
    let api = Api::new(service.clone(), ApiToken::new(&token), place, stopping.clone()).with_servers(nats);
    let server = tokio::spawn(serve_http(listener, api.router(), stopping));
    let api_file = config.data.join("api.json");
    let file = ApiFile { url: format!("http://{http}"), token: token.clone() };
    let text = serde_json::to_vec_pretty(&file).expect("two texts are JSON");
    write_private(&api_file, &text)?;
    Ok(Running {
        http,
        gateway,
        ca_fingerprint,
        token,
        service,
        stop,
        stop_sealing,
        link,
        server,
        keeper,
        scheduler,
        archiver,
        sealer,
        writer,
        api_file,
        _lock: lock,
    })
}

/// Where the keys of private texts are: in the data folder, or beside the log in NATS. Those of a log that was moved from
/// the folder to NATS move after it, and those of a backup that was put there come to the others.
async fn key_store(
    data: &Path,
    nats: Option<&NatsLog>,
    root_key: [u8; 32],
    wrapper: &Wrapper,
) -> Result<Arc<dyn KeyStore>, KeyStoreError> {
    let (path, restored) = (data.join(FileKeys::NAME), data.join(FileKeys::RESTORED));
    let Some(log) = nats else {
        let store = FileKeys::open(&path)?;
        privacy::move_keys(&restored, &store, wrapper).await?;
        return Ok(Arc::new(store));
    };
    let store = NatsKeys::new(log.vault().await.map_err(KeyStoreError::from)?);
    for path in [path, restored] {
        if privacy::is_own(&path, log, root_key).await? {
            privacy::move_keys(&path, &store, wrapper).await?;
        }
    }
    Ok(Arc::new(store))
}

async fn serve_http(
    listener: TcpListener,
    app: axum::Router,
    mut stopping: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let stop = async move {
        // An error: the sender is gone, which is the end too.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    axum::serve(listener, app).with_graceful_shutdown(stop).await
}

impl Running {
    /// Ends the gateway's sessions, the API, the sealing and the writer, which finishes what it took, and closes the
    /// log.
    pub async fn stop(self) {
        let Self {
            service,
            stop,
            stop_sealing,
            link,
            server,
            keeper,
            scheduler,
            archiver,
            sealer,
            writer,
            api_file,
            _lock,
            ..
        } = self;
        stop.send_replace(true);
        if let Some(archiver) = archiver {
            // It stops between two steps; one on its way ends by itself, and is gone on from at the next start.
            let abort = archiver.abort_handle();
            if tokio::time::timeout(SEALER_STOP, archiver).await.is_err() {
                abort.abort();
            }
        }
        scheduler.stop().await;
        link.shutdown().await;
        let abort = server.abort_handle();
        if tokio::time::timeout(HTTP_STOP, server).await.is_err() {
            abort.abort();
        }
        if let Some(keeper) = keeper {
            keeper.stop().await;
            match tokio::time::timeout(FAREWELL, service.end_life()).await {
                Ok(Ok(())) => {}
                _ => tracing::warn!("the other replicas were not told; they will find out"),
            }
        }
        // It asks for decisions itself, so the writer waits for it; the last checkpoint is made by the writer.
        stop_sealing.send_replace(true);
        let abort = sealer.abort_handle();
        if tokio::time::timeout(SEALER_STOP, sealer).await.is_err() {
            tracing::warn!("the sealing did not end in time");
            abort.abort();
        }
        if let Some(kept) = service.kept_telemetry().cloned() {
            // It does not panic; if it did, there is nothing left to do.
            let _ = tokio::task::spawn_blocking(move || kept.close()).await;
        }
        drop(service);
        if tokio::time::timeout(WRITER_STOP, writer).await.is_err() {
            tracing::error!("the log did not take what was left in time");
        }
        // So that the command line says "not running" instead of "connection refused". Gone already is fine.
        let _ = std::fs::remove_file(api_file);
    }
}

/// Makes a data folder that of a replica: the keys of the bundle and the API's token, once.
///
/// # Errors
/// If the folder is in use or another fleet's, or the bundle does not open.
pub fn join(data: &Path, bundle: &Path, code: &str) -> Result<(), ServeError> {
    make_folder(data)?;
    let _lock = lock_folder(data)?;
    let joined = bundle::join(data, bundle, code, now())?;
    match joined.api_token {
        Some(token) => {
            write_private(&data.join("api-token"), &token)?;
            tracing::info!("this data folder has the fleet's keys now; the bundle can be deleted");
        }
        None => tracing::info!("this data folder has the fleet's keys already"),
    }
    Ok(())
}

/// The replica that this data folder is: random, made on first start, kept.
fn replica_id(data: &Path) -> Result<ReplicaId, ServeError> {
    let path = data.join("replica-id");
    let failed = |source| ServeError::Data { path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse()
            .map_err(|_| failed(std::io::Error::other("it holds no id; remove the file to get a new one"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = ReplicaId(service::random_id());
            write_private(&path, id.to_string().as_bytes())?;
            Ok(id)
        }
        Err(source) => Err(failed(source)),
    }
}

/// The API's token: made on first start, kept.
fn api_token(data: &Path) -> Result<String, ServeError> {
    let path = data.join("api-token");
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().len() >= 32 => Ok(text.trim().to_owned()),
        Ok(_) => Err(ServeError::Data {
            path,
            source: std::io::Error::other("it holds no token; remove the file to get a new one"),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let token = service::random_secret();
            write_private(&path, token.as_bytes())?;
            Ok(token.to_string())
        }
        Err(source) => Err(ServeError::Data { path, source }),
    }
}

fn make_folder(path: &Path) -> Result<(), ServeError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|source| ServeError::Data { path: path.into(), source })
}

/// Keeps a second service away from this folder, wherever its log is.
pub(crate) fn lock_folder(data: &Path) -> Result<File, ServeError> {
    let path = data.join("lock");
    let failed = |source| ServeError::Data { path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    let file = options.open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ServeError::InUse { data: data.into() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Replaces a file that only its owner can read, in one step.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), ServeError> {
    crate::private_file::write(path, bytes).map_err(|source| ServeError::Data { path: path.into(), source })
}

/// Names and addresses for the gateway's certificate: those given, the one listened on or this
/// machine's, and loopback.
fn names(config: &Config) -> Vec<String> {
    let mut names: Vec<String> =
        config.public_gateway.iter().filter_map(|place| host_and_port(place)).map(|(host, _)| host).collect();
    if config.gateway.ip().is_unspecified() {
        names.extend(outward_address(config.gateway.ip()).map(|ip| ip.to_string()));
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        names.extend(host_and_port(&format!("{host}:1")).map(|(host, _)| host));
    } else {
        names.push(config.gateway.ip().to_string());
    }
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// The address of this machine that others see, as far as its routes say. Sends nothing.
fn outward_address(family: IpAddr) -> Option<IpAddr> {
    // Addresses for documentation (RFC 5737, RFC 3849): only the route to them is asked for.
    let (local, far) = match family {
        IpAddr::V4(_) => ("0.0.0.0:0", "192.0.2.1:9"),
        IpAddr::V6(_) => ("[::]:0", "[2001:db8::1]:9"),
    };
    let socket = UdpSocket::bind(local).ok()?;
    socket.connect(far).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

/// `HOST:PORT` for bootstrap files when none is given.
fn public(names: &[String], gateway: SocketAddr) -> String {
    if !gateway.ip().is_unspecified() {
        return gateway.to_string();
    }
    let host = names.first().map_or("localhost", String::as_str);
    match host.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, gateway.port()).to_string(),
        Err(_) => format!("{host}:{}", gateway.port()),
    }
}
