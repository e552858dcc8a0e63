//! `flotilla-agent`: the endpoint of a fleet.
//!
//! Command line and exit codes. `agent.rs` puts the parts together; `link/` is the way to the control
//! service, `report.rs` and `store.rs` are what must not be forgotten.

mod agent;
mod archive;
mod backup;
mod beside;
mod clock;
mod config;
mod discovery;
mod disk;
mod disposal;
mod folder;
mod hook;
mod known;
mod limits;
mod link;
mod memory;
mod relay;
mod report;
mod restrict;
mod run;
mod status;
mod store;
mod tls;
mod witness;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// Version of this program, as it tells others.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where the data lies if nobody says otherwise.
const DATA: &str = "/var/lib/flotilla-agent";

/// The endpoint of a Flotilla fleet: takes part in jobs, serves and fetches data.
#[derive(Parser)]
#[command(
    name = "flotilla-agent",
    version,
    after_help = "\
Examples:
  flotilla-agent run --bootstrap bootstrap.json --data /var/lib/flotilla-agent
  flotilla-agent run --config /etc/flotilla-agent.toml
  flotilla-agent status --data /var/lib/flotilla-agent --json
  flotilla-agent archive list /srv/plans --path offers

Logs go to stderr; FLOTILLA_LOG=debug shows more.
Exit codes: 0 done, 1 failed, 2 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent until it is told to stop (SIGTERM, Ctrl-C).
    Run(RunArgs),
    /// Ask the agent that runs on a data folder what it is doing.
    Status(StatusArgs),
    /// Print the newest checkpoint of the log that the agent on a data folder holds as a witness.
    Checkpoint(CheckpointArgs),
    /// Look through what agents keep of replaced and deleted files in a folder, and bring it back.
    #[command(subcommand)]
    Archive(archive::cli::Archive),
    /// Print the version.
    Version {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// The command line wins over the configuration file, which wins over the bootstrap file.
#[derive(Args)]
#[command(after_help = "\
The configuration file (TOML) knows: data, bootstrap, consume_bootstrap (delete that file once the agent is
enrolled), name, listen, advertise, lan, lan_interfaces,
relay, relays, folders_storage_path, allowed_paths, share_between_jobs, [management_server] host,
cert_authority_fingerprint,
bootstrap_token, [tags], [limits] runs, outbox, upload, relay_rate, relay_sessions, relay_session_bytes,
datagram (most bytes of UDP payload of a µTP2 datagram, 1200 to 65000; default 8972: what the path
carries is found out, this is where the search ends),
[hooks.NAME] program, arguments, timeout_s (600).

[hooks.NAME] is a program that jobs may ask for by its name before what they bring gets its names; it is called with
these arguments and no others. If it ends with anything but 0, nothing gets its name.

relay = true forwards sealed packets between members of the fleet that cannot reach each other, at most
relay_rate (4MB a second) for relay_sessions (64) pairs and relay_session_bytes (20 GB) for each;
relays = [\"relay.example.org:4433\"] names agents that do so.

allowed_paths = [\"/srv/media\"] lets jobs touch folders below these only, whatever the console says;
without it they may touch whatever this user may. share_between_jobs = false keeps an agent from
copying what one job lacks out of the folder of another instead of fetching it.

Examples:
  flotilla-agent run --bootstrap bootstrap.json --data ~/agent
  flotilla-agent run --data ~/agent                      (once it is enrolled)
  flotilla-agent run --config /etc/flotilla-agent.toml --name camera-7")]
struct RunArgs {
    /// Bootstrap file, from `flotilla token create --out FILE` or with an enrolment code in it; once enrolled only for a gateway that moved.
    #[arg(long, value_name = "FILE")]
    bootstrap: Option<PathBuf>,
    /// Folder for identity and state, one per agent.
    #[arg(long, value_name = "DIR", env = "FLOTILLA_AGENT_DATA")]
    data: Option<PathBuf>,
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the µTP2 (UDP) socket [default: 0.0.0.0:0].
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Name of the agent [default: the host's name].
    #[arg(long)]
    name: Option<String>,
    /// Most that this agent sends to others, bytes or bits a second, such as 500KB, 6MB or 50mbit [default: no limit].
    #[arg(long, value_name = "RATE", value_parser = config::parse_rate)]
    upload_limit: Option<u64>,
    /// Make this agent misbehave, for tests.
    #[arg(long, hide = true, value_enum, value_name = "KIND")]
    fault: Option<Fault>,
}

/// Ways to misbehave.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Fault {
    /// Every content block that is sent is false.
    CorruptBlocks,
}

#[derive(Args)]
#[command(after_help = "Example:\n  flotilla-agent status --data ~/agent --json")]
struct StatusArgs {
    /// Data folder of the agent.
    #[arg(long, value_name = "DIR", env = "FLOTILLA_AGENT_DATA", default_value = DATA)]
    data: PathBuf,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "\
It is a signed note: give it to whoever audits the control service, for `flotilla audit verify --witness FILE`.
The agent may run or not. Exit code 1 if it holds none.

Example:
  flotilla-agent checkpoint --data ~/agent > camera-7.checkpoint")]
struct CheckpointArgs {
    /// Data folder of the agent.
    #[arg(long, value_name = "DIR", env = "FLOTILLA_AGENT_DATA", default_value = DATA)]
    data: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Run(args) => run(args),
        Command::Status(args) => ask(&args),
        Command::Checkpoint(args) => checkpoint(&args),
        Command::Archive(command) => archive::cli::run(command).map_err(Into::into),
        Command::Version { json: false } => {
            println!("flotilla-agent {VERSION}");
            Ok(())
        }
        Command::Version { json: true } => {
            println!("{}", serde_json::json!({ "program": "flotilla-agent", "version": VERSION }));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The agent's errors name their causes themselves: the chain would say them twice.
            eprintln!("flotilla-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: RunArgs) -> anyhow::Result<()> {
    let filter = std::env::var("FLOTILLA_LOG").ok().filter(|text| !text.is_empty());
    let filter = filter.and_then(|text| text.parse::<Targets>().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::registry()
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi))
        .with(filter)
        .init();
    let settings = config::Settings::read(config::Overrides {
        data: args.data,
        bootstrap: args.bootstrap,
        config: args.config,
        listen: args.listen,
        name: args.name,
        upload_limit: args.upload_limit,
        corrupt_blocks: args.fault == Some(Fault::CorruptBlocks),
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(agent::run(settings));
    // What still runs on blocking threads is not waited for: everything that matters is on disk.
    runtime.shutdown_background();
    Ok(outcome?)
}

fn ask(args: &StatusArgs) -> anyhow::Result<()> {
    let status = status::ask(&args.data)
        .map_err(|error| anyhow::anyhow!("no flotilla-agent runs on {} ({error})", args.data.display()))?;
    if args.json {
        println!("{status}");
    } else {
        print!("{}", status::print(&status));
    }
    Ok(())
}

fn checkpoint(args: &CheckpointArgs) -> anyhow::Result<()> {
    let path = witness::checkpoint_path(&args.data);
    let note = std::fs::read_to_string(&path)
        .map_err(|error| anyhow::anyhow!("this agent holds no checkpoint: {}: {error}", path.display()))?;
    print!("{note}");
    Ok(())
}
