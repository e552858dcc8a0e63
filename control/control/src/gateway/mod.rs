//! The gateway: where agents connect (`edge-agent/PROTOCOL.md` §2).
//!
//! TLS 1.3, one task and one small set of buffers per agent. It decides nothing: [`Fleet`] does. It
//! holds the limits (`Limits`), the order of messages and the one session per agent.

mod allowance;
mod fleet;
mod frames;
mod registry;
mod session;
mod showing;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

#[cfg(test)]
use event_schema::{AgentId, Timestamp};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::pki::{Pki, PkiError};
use crate::service::{Ousted, now};
use allowance::Allowances;
pub use fleet::{EnrolDecision, EnrolRequest, Fleet, ReportError, Session};
use registry::{Kick, Registry};

/// What a gateway takes on, with the reasons in `edge-agent/PROTOCOL.md` §2.6.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections in all. Default 20,000: about 14 KiB each when idle.
    pub connections: usize,
    /// Connections whose agent is not yet welcome. Default 512; later ones wait in the listen queue.
    pub half_open: usize,
    /// The same from one IP address. Default 64; further ones are closed at once.
    pub half_open_per_ip: usize,
    /// For the TLS handshake, and again for the first message. Default 10 s.
    pub handshake_timeout: Duration,
    /// A session is over when nothing came, or was taken, for so long. Default 60 s.
    pub dead_after: Duration,
    /// Until a hello is recorded; then it is refused with `TooEarly`. Default 7 s, less than the agent waits.
    pub welcome_timeout: Duration,
    /// Bytes of reports that one agent may put on the log in a second, and how many reports. What is more waits, and the
    /// agent with it. Default 64 KiB and 200.
    pub report_bytes_per_s: u32,
    /// See [`Limits::report_bytes_per_s`].
    pub reports_per_s: u32,
    /// For how much time at those rates an agent may report at once. Default 64 s: 4 MiB, or 12,800 reports.
    pub report_burst: Duration,
    /// Sessions that one agent may begin at once; further ones are refused with `TooEarly`. Default 60.
    pub session_burst: u32,
    /// After so much time it may begin one more. Default 5 s.
    pub session_every: Duration,
    /// How long stopping waits for sessions to end. Default 10 s.
    pub shutdown_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            half_open: 512,
            half_open_per_ip: 64,
            handshake_timeout: Duration::from_secs(agent_proto::limits::HANDSHAKE_TIMEOUT_S),
            dead_after: Duration::from_secs(agent_proto::limits::DEAD_AFTER_S),
            welcome_timeout: Duration::from_secs(7),
            report_bytes_per_s: 64 * 1024,
            reports_per_s: 200,
            report_burst: Duration::from_secs(64),
            session_burst: 60,
            session_every: Duration::from_secs(5),
            shutdown_timeout: Duration::from_secs(10),
        }
    }
}

/// How often the gateway's certificate is looked at.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(3600);
/// Pause after the system refused a connection (no file descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address cannot be had.
    #[error("the gateway cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The keys cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    local_addr: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    registry: Arc<Registry>,
}

/// What all connections share.
struct Context<F> {
    fleet: Arc<F>,
    pki: Arc<Pki>,
    tls: TlsAcceptor,
    limits: Limits,
    registry: Arc<Registry>,
    allowances: Allowances,
}

impl Gateway {
    /// Listens and serves agents until [`Gateway::shutdown`].
    ///
    /// # Errors
    /// If the address cannot be had or the keys cannot be used.
    pub async fn start<F: Fleet>(
        address: SocketAddr,
        limits: Limits,
        pki: Arc<Pki>,
        fleet: Arc<F>,
    ) -> Result<Self, GatewayError> {
        let listen = |source| GatewayError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;
        let tls = TlsAcceptor::from(Arc::new(pki.gateway_tls()?));
        let registry = Arc::new(Registry::default());
        let ousted = fleet.ousted();
        let context = Context {
            fleet,
            pki,
            tls,
            limits,
            registry: registry.clone(),
            allowances: Allowances::default(),
        };
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(Arc::new(context), listener, ousted, stopped));
        Ok(Self { local_addr, stop, task, registry })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How many agents are connected.
    pub fn sessions(&self) -> usize {
        self.registry.len()
    }

    /// Takes no more connections, ends the sessions (each is reported to the service as
    /// disconnected), and returns when all have ended or [`Limits::shutdown_timeout`] is over.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        // It fails only if the accept task panicked; then there is nothing to wait for.
        let _ = self.task.await;
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("sessions", &self.len()).finish()
    }
}

async fn run<F: Fleet>(
    context: Arc<Context<F>>,
    listener: TcpListener,
    ousted: broadcast::Receiver<Ousted>,
    mut stopped: watch::Receiver<bool>,
) {
    let connections = Arc::new(Semaphore::new(context.limits.connections));
    let half_open = Arc::new(Semaphore::new(context.limits.half_open));
    let strangers = Arc::new(Strangers::default());
    let mut ousted = Some(ousted);
    let mut tasks = JoinSet::new();
    let mut renewal = tokio::time::interval(RENEWAL_INTERVAL);
    loop {
        let accept = async {
            let whole = connections.clone().acquire_owned().await;
            let half = half_open.clone().acquire_owned().await;
            (listener.accept().await, whole, half)
        };
        tokio::select! {
            () = async { drop(stopped.wait_for(|stop| *stop).await) } => break,
            Some(_) = tasks.join_next() => {}
            _ = renewal.tick() => {
                if let Err(error) = context.pki.renew_gateway_certificate(now()) {
                    tracing::error!(%error, "the gateway's certificate could not be renewed");
                }
            }
            next = next_ousted(&mut ousted) => match next {
                Ok(ousted) => oust(&context.registry, ousted),
                Err(RecvError::Lagged(_)) => {
                    for agent in context.registry.agents() {
                        context.fleet.must_leave(agent).into_iter().for_each(|o| oust(&context.registry, o));
                    }
                }
                // The service has gone before its gateway; it stops us next.
                Err(RecvError::Closed) => ousted = None,
            },
            (accepted, whole, half) = accept => match accepted {
                Ok((tcp, address)) => {
                    let Some(stranger) = strangers.admit(address.ip(), context.limits.half_open_per_ip) else {
                        tracing::debug!(%address, "too many half-open connections from this address");
                        continue;
                    };
                    tasks.spawn(connection(context.clone(), tcp, address, whole, (half, stranger)));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    // Those that are not welcome yet are not in the registry; they end with the set.
    context.registry.kick_all(Kick::Shutdown);
    let all = async {
        while context.registry.len() > 0 && tasks.join_next().await.is_some() {
            context.registry.kick_all(Kick::Shutdown);
        }
    };
    if tokio::time::timeout(context.limits.shutdown_timeout, all).await.is_err() {
        tracing::warn!(sessions = context.registry.len(), "stopped before all sessions had ended");
    }
    tasks.shutdown().await;
}

fn oust(registry: &Registry, ousted: Ousted) {
    match ousted {
        Ousted::Removed(agent) => registry.kick(agent, Kick::Removed),
        // Who is just being let in may have come back: the session looks for itself when it is.
        Ousted::Moved(agent) => registry.kick_known(agent, Kick::Replaced),
        Ousted::All => registry.kick_all(Kick::CutOff),
    }
}

async fn next_ousted(ousted: &mut Option<broadcast::Receiver<Ousted>>) -> Result<Ousted, RecvError> {
    match ousted {
        Some(ousted) => ousted.recv().await,
        None => std::future::pending().await,
    }
}

async fn connection<F: Fleet>(
    context: Arc<Context<F>>,
    tcp: TcpStream,
    address: SocketAddr,
    _whole: impl Send,
    half_open: impl Send,
) {
    if let Err(end) = session::serve(context, tcp, address, half_open).await {
        tracing::debug!(%address, %end, "connection ended");
    }
}

/// Half-open connections by IP address.
#[derive(Default)]
struct Strangers(Mutex<HashMap<IpAddr, usize>>);

/// One half-open connection; dropping it gives its place back.
struct Stranger(Arc<Strangers>, IpAddr);

impl Strangers {
    fn admit(self: &Arc<Self>, ip: IpAddr, max: usize) -> Option<Stranger> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(&ip).copied().unwrap_or(0);
        if count >= max {
            return None;
        }
        counts.insert(ip, count + 1);
        Some(Stranger(self.clone(), ip))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(&self.1) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                counts.remove(&self.1);
            }
        }
    }
}
