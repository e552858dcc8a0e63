//! `flotilla serve` from the command line.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use super::{Done, Failure, Global, output};
use crate::config::{NatsAccess, Settings, TelemetrySettings};
use crate::serve;

#[derive(Debug, Args)]
#[command(
    after_help = "Example: flotilla serve --data ./flotilla-data --public-gateway fleet.example.com:7701\n\n\
    Agents connect to the gateway (TLS 1.3, both sides with certificates). The API speaks plain HTTP and \
    listens on this machine only; for access from elsewhere put a TLS proxy in front of it.\n\
    Stop it with Ctrl-C or SIGTERM. Everything it has to keep is in the data folder."
)]
pub(super) struct Serve {
    /// Where API and status page listen [default: 127.0.0.1:7700]
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Let --http be another address than loopback, in plain text: only behind a TLS proxy
    #[arg(long)]
    http_plaintext: bool,
    /// Where agents connect [default: 0.0.0.0:7701]
    #[arg(long, value_name = "ADDR")]
    gateway: Option<SocketAddr>,
    /// HOST:PORT under which agents reach the gateway; the first goes into bootstrap files
    /// [default: the gateway's address, or this machine's]
    #[arg(long, value_name = "HOST:PORT")]
    public_gateway: Vec<String>,
    /// Keep the event log in NATS JetStream instead of the data folder
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    #[command(flatten)]
    nats_access: Nats,
    /// Become a replica of the fleet whose keys are in this file (flotilla replica invite); needs --nats, and the code in
    /// FLOTILLA_JOIN_CODE or --join-code-file
    #[arg(long, value_name = "FILE")]
    join: Option<PathBuf>,
    /// A file with the code of --join
    #[arg(long, value_name = "FILE", requires = "join")]
    join_code_file: Option<PathBuf>,
    /// A tracker that agents may use to find each other (repeatable)
    #[arg(long, value_name = "HOST:PORT")]
    tracker: Vec<String>,
    /// How long a command may be obeyed after it was issued [default: 30d]
    #[arg(long, value_name = "TIME")]
    command_ttl: Option<String>,
    /// How long agents' progress is kept; 0s keeps nothing [default: 90 days]
    #[arg(long, value_name = "TIME")]
    telemetry_keep: Option<String>,
    /// How much disk that may take [default: 2 GB]
    #[arg(long, value_name = "SIZE")]
    telemetry_max_size: Option<String>,
    /// A TOML file with any of these settings; what the command line says wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How servers of NATS are used.
#[derive(Debug, Args)]
pub(super) struct Nats {
    /// Copies of the log on different NATS servers, if it is made now [default: 1; 3 for three servers]
    #[arg(long, value_name = "N")]
    nats_replicas: Option<usize>,
    /// A NATS credentials file (user JWT and seed), if the servers ask for one
    #[arg(long, value_name = "FILE")]
    nats_credentials: Option<PathBuf>,
    /// A PEM file with the authority of the NATS servers' certificates, if it is a private one; they must speak TLS then
    #[arg(long, value_name = "FILE")]
    nats_ca: Option<PathBuf>,
}

impl From<Nats> for NatsAccess {
    fn from(line: Nats) -> Self {
        Self {
            replicas: line.nats_replicas.unwrap_or(1),
            credentials: line.nats_credentials,
            authority: line.nats_ca,
        }
    }
}

pub(super) fn run(line: Serve, global: Global) -> Done {
    let given = |list: Vec<String>| (!list.is_empty()).then_some(list);
    let mut settings = Settings {
        data: global.data,
        http: line.http,
        http_plaintext: line.http_plaintext.then_some(true),
        gateway: line.gateway,
        public_gateway: given(line.public_gateway),
        nats: line.nats,
        nats_replicas: line.nats_access.nats_replicas,
        nats_credentials: line.nats_access.nats_credentials,
        nats_ca: line.nats_access.nats_ca,
        tracker: given(line.tracker),
        command_ttl: line.command_ttl,
        telemetry: TelemetrySettings { keep: line.telemetry_keep, max_size: line.telemetry_max_size },
        retention: None,
    };
    if let Some(file) = &line.config {
        settings = settings.or(Settings::read(file).map_err(Failure::of)?);
    }
    let config = settings.complete().map_err(|error| Failure::Usage(error.to_string()))?;
    if let Some(bundle) = &line.join {
        if config.nats.is_none() {
            return Err(Failure::Usage("--join: several replicas need a log in NATS, --nats".into()));
        }
        let code = join_code(line.join_code_file.as_deref())?;
        serve::join(&config.data, bundle, &code).map_err(Failure::of)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::of)?;
    runtime.block_on(async {
        let mut stop = Signals::new().map_err(Failure::of)?;
        let running = tokio::select! {
            running = serve::start(&config) => running.map_err(Failure::of)?,
            () = stop.wait() => return Ok(()),
        };
        let data = std::fs::canonicalize(&config.data).unwrap_or_else(|_| config.data.clone());
        let http = format!("http://{}", running.http);
        if global.json {
            output::say_json(&json!({
                "ready": true,
                "http": http,
                "gateway": running.gateway.to_string(),
                "data": data.to_string_lossy(),
                "ca_fingerprint": running.ca_fingerprint,
            }))?;
        } else {
            let page = page(&http, &running.token, &data, std::io::stdout().is_terminal());
            output::say(&format!(
                "The control service is ready.\n  status page  {page}\n  gateway      {} (agents connect \
                 here)\n  data         {}\n  authority    {}\nNext: flotilla token create --data {} --out agent.json",
                running.gateway,
                data.display(),
                running.ca_fingerprint,
                config.data.display(),
            ))?;
        }
        stop.wait().await;
        tracing::info!("stopping");
        running.stop().await;
        Ok(())
    })
}

/// Where the status page is. What a service says is kept in a journal, which others can read than those who can read the
/// token's file: the token is told to a person at a terminal alone.
fn page(http: &str, token: &str, data: &Path, is_seen: bool) -> String {
    if is_seen {
        format!("{http}/#token={token}")
    } else {
        format!("{http}/ (the token is in {})", data.join("api-token").display())
    }
}

/// The code of a bundle: not on the command line, where others see it.
fn join_code(file: Option<&Path>) -> Result<Zeroizing<String>, Failure> {
    match file {
        Some(path) => {
            let read = std::fs::read_to_string(path);
            read.map(Zeroizing::new)
                .map_err(|error| Failure::Failed(format!("cannot read {}: {error}", path.display())))
        }
        None => std::env::var("FLOTILLA_JOIN_CODE").map(Zeroizing::new).map_err(|_| {
            Failure::Usage("--join needs the code in FLOTILLA_JOIN_CODE or in --join-code-file".into())
        }),
    }
}

/// SIGINT and SIGTERM (Ctrl-C elsewhere).
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn wait(&mut self) {
        // An error: no handler can be had; then only the process's end stops it.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_told_at_a_terminal_alone() {
        let told = |is_seen| page("http://127.0.0.1:7700", "5ec2e7", Path::new("data"), is_seen);
        assert_eq!(told(true), "http://127.0.0.1:7700/#token=5ec2e7");
        assert!(!told(false).contains("5ec2e7") && told(false).contains("api-token"), "{}", told(false));
    }
}
