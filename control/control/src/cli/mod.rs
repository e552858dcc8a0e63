//! The command line: `flotilla serve` and the operator's commands, which are requests to its API.
//!
//! Every command has `--json` (one object or JSON lines on stdout, everything else on stderr), `--help`
//! with an example, and ends with 0 done, 1 failed, 2 wrong usage.

mod archive;
mod audit;
mod backups;
mod client;
mod erase;
mod fleet;
mod log;
mod output;
mod place;
mod replica;
mod server;
mod sync;
mod watch;
mod witnesses;
mod work;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use client::Client;
use server::Serve;

/// What every command can be told.
#[derive(Clone, Debug, Args)]
struct Global {
    /// The control service's data folder; the operator's commands find the service through its api.json
    #[arg(long, global = true, env = "FLOTILLA_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address of a control service elsewhere, such as https://fleet.example (needs --token); a --data on the line wins
    /// over the environment's address
    #[arg(long, global = true, env = "FLOTILLA_SERVER", value_name = "URL")]
    server: Option<String>,
    /// Trust the certificates in this PEM file for --server https://…, and no others; else those of this machine
    #[arg(long, global = true, env = "FLOTILLA_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Token of that service
    #[arg(long, global = true, env = "FLOTILLA_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// One JSON object (or JSON lines) on stdout
    #[arg(long, global = true)]
    json: bool,
}

/// Control service of a fleet of agents, and the command line to operate it.
#[derive(Debug, Parser)]
#[command(
    name = "flotilla",
    version,
    after_help = "Example: flotilla serve --data ./flotilla-data\n         flotilla token create --out agent.json\n\n\
                  Agents, groups, jobs and runs are named by their name, their id or the beginning of their id.\n\
                  Exit codes: 0 done, 1 failed, 2 wrong usage. FLOTILLA_LOG=debug shows more on stderr."
)]
struct Line {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

impl Line {
    fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(arguments)?;
        let mut line = Self::from_arg_matches(&matches)?;
        // What was typed counts more than what the shell was set up with.
        if matches.value_source("data") == Some(ValueSource::CommandLine)
            && matches.value_source("server") == Some(ValueSource::EnvVariable)
        {
            line.global.server = None;
        }
        Ok(line)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the control service
    Serve(Serve),
    /// Bootstrap tokens: what lets agents in
    #[command(subcommand)]
    Token(fleet::Token),
    /// The fleet's agents
    #[command(subcommand)]
    Agents(fleet::Agents),
    /// Named sets of agents
    #[command(subcommand)]
    Groups(fleet::Groups),
    /// What shall happen
    #[command(subcommand)]
    Jobs(work::Jobs),
    /// What happens and has happened
    #[command(subcommand, alias = "run")]
    Runs(work::Runs),
    /// Versions of folders that storage keeps: show them, give them back
    #[command(subcommand)]
    Backups(backups::Backups),
    /// Synchronizations that run: members, policy, guards
    #[command(subcommand)]
    Sync(sync::Sync),
    /// Files of a synchronization of which two versions are kept
    #[command(after_help = "Example: flotilla conflicts plans --json")]
    Conflicts(sync::Conflicts),
    /// The event log
    #[command(subcommand)]
    Log(work::Log),
    /// History that proves itself: export it, check it anywhere
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Erase the personal texts of a job, an agent or a user for good; the history stays, and stays provable
    #[command(
        after_help = "Example: flotilla erase job payroll-march --reason \"deletion duty of 2026-03-31\"\n\n\
        A job's runs have to be over, and its commands answered; an agent has to be removed first. What was recorded \
        before the log's schema level 2 stands in the clear and cannot be erased. Exports and backups that somebody has \
        already keep what they say only as far as he has the keys."
    )]
    Erase(erase::Erase),
    /// Several control services for one fleet
    #[command(subcommand)]
    Replica(replica::Replica),
    /// The service in a few numbers
    #[command(after_help = "Example: flotilla status --json")]
    Status,
    /// Print the API's OpenAPI document
    #[command(hide = true)]
    Openapi,
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// In words, with what to do. Exit code 1.
    Failed(String),
    /// The command itself was wrong. Exit code 2.
    Usage(String),
    /// Everything was said already. Exit code 1.
    Quiet,
}

impl Failure {
    fn of(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

type Done = Result<(), Failure>;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let line = match Line::parse(arguments) {
        Ok(line) => line,
        Err(error) => {
            // Nothing can be done where this cannot be printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let level = if matches!(line.command, Command::Serve(_)) { LevelFilter::INFO } else { LevelFilter::WARN };
    let filter = std::env::var("FLOTILLA_LOG").ok().filter(|text| !text.is_empty());
    let filter = filter
        .and_then(|text| text.parse::<Targets>().ok())
        .unwrap_or_else(|| Targets::new().with_default(level));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::registry()
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi))
        .with(filter)
        .init();
    match dispatch(line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Quiet) => ExitCode::from(1),
        Err(Failure::Failed(message)) => {
            output::complain(&message);
            ExitCode::from(1)
        }
        Err(Failure::Usage(message)) => {
            output::complain(&message);
            ExitCode::from(2)
        }
    }
}

fn dispatch(line: Line) -> Done {
    let Line { global, command } = line;
    let json = global.json;
    match command {
        Command::Serve(serve) => server::run(serve, global),
        Command::Openapi => output::say(crate::api::document().trim_end()),
        Command::Token(command) => fleet::token(&Client::new(global)?, json, command),
        Command::Agents(command) => fleet::agents(&Client::new(global)?, json, command),
        Command::Groups(command) => fleet::groups(&Client::new(global)?, json, command),
        Command::Jobs(command) => work::jobs(&Client::new(global)?, json, command),
        Command::Runs(command) => work::runs(&Client::new(global)?, json, command),
        Command::Backups(command) => backups::run(&Client::new(global)?, json, command),
        Command::Sync(command) => sync::run(&Client::new(global)?, json, command),
        Command::Conflicts(line) => sync::conflicts(&Client::new(global)?, json, &line),
        Command::Log(command) => log::run(global, command),
        Command::Audit(command) => audit::run(global, command),
        Command::Erase(line) => erase::run(&Client::new(global)?, json, line),
        Command::Replica(command) => replica::run(global, command),
        Command::Status => work::status(&Client::new(global)?, json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_sound_and_every_command_shows_an_example() {
        Line::command().debug_assert();
        fn check(command: &clap::Command) {
            if command.is_hide_set() || command.get_name() == "help" {
                return;
            }
            if command.get_subcommands().next().is_none() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{} has no example", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Line::command());
    }

    #[test]
    fn the_contract_parses() {
        for line in [
            "flotilla serve --data d --http 127.0.0.1:0 --gateway 127.0.0.1:0 --public-gateway a:1 \
             --public-gateway b:2 --nats nats://x --nats-replicas 3 --nats-credentials c --nats-ca d --join b --join-code-file c --tracker t:1 --tracker u:2 --config f --json",
            "flotilla token create --tag A=b --uses 3 --expires 24h --storage-path /x --out f --data d",
            "flotilla token list --json",
            "flotilla agents list --data d --json",
            "flotilla groups add g a b c",
            "flotilla jobs create distribution --name n --source a:/x --destination b:/y --destination g:/z \
             --no-start --json --data d",
            "flotilla jobs create synchronization --name n --member a:/x --member group:g:/y --read-only b:/z \
             --revert c:/z --ignore *.tmp --wanted /docs --archive 30d,10GB --guard-percent 50 --guard-min 5 --no-start",
            "flotilla jobs create backup --name n --source a:/x --source group:g:/y --destination b:/z --subfolder /x \
             --every 6h --keep-last 3 --keep-hourly 1 --keep-daily 2 --keep-weekly 3 --keep-monthly 4 --keep-yearly 5 \
             --keep-within 30 --ignore !x --first /boot --hook stop-web --hook-timeout 30s --start --json",
            "flotilla jobs create backup --name n --source a:/x --destination b:/z --continuous 15min --quiet 5s --no-start",
            "flotilla jobs create distribution --name n --source a:/x --destination b:/y --ignore *.tmp --first a --hook h",
            "flotilla jobs create consolidation --name n --source a:/x --destination b:/y --ignore *.tmp",
            "flotilla backups list",
            "flotilla backups list n --json",
            "flotilla backups versions n --source a --at 17 --json",
            "flotilla backups restore n --source a --version latest --path x/y --to b:/z --from c",
            "flotilla backups restore n --source a --at 2026-11-23T01:30:00Z --json",
            "flotilla sync members n --json",
            "flotilla sync add n --read-only b:/z --ignore x",
            "flotilla sync remove n a group:g --json",
            "flotilla sync policy n --archive none",
            "flotilla sync confirm n --agent a --delete",
            "flotilla sync confirm n --agent a --restore --json",
            "flotilla conflicts n --json",
            "flotilla runs show latest --history",
            "flotilla runs watch",
            "flotilla runs explain",
            "flotilla runs explain x --json",
            "flotilla run telemetry x --json --from 2026-03-01T12:00:00Z --to 2026-03-01T13:00:00Z --step 60 --agent a --at 7",
            "flotilla serve --data d --telemetry-keep 90days --telemetry-max-size 2GB",
            "flotilla runs stop x --reason y --server http://h:1 --token t",
            "flotilla log show --from 1 --stream run/",
            "flotilla replica invite --out b --expires 1h --data d --json",
            "flotilla replica list --json",
            "flotilla log copy d nats://a:1,nats://b:1 --nats-replicas 3 --nats-credentials c --nats-ca d --archive x --json",
            "flotilla log archive --data d --before 2026-03-01T12:00:00Z --to x --dry-run --json",
            "flotilla log archive --before 4711 --to x",
            "flotilla log check --archive x --archive y",
            "flotilla audit verify --archive x --archive y --origin o --seen c --keep k",
            "flotilla audit export --data d --archive x --out p",
            "flotilla audit replay --archive x --until 7",
            "flotilla audit state --archive x --at 7",
            "flotilla audit prove 7 --data d --archive x",
            "flotilla erase user anna --reason r --yes --json --data d",
            "flotilla erase job payroll --reason r",
            "flotilla audit export --data d --out p --json",
            "flotilla audit export --server http://h:1 --token t --out p --jsonl q --cloudevents r --origin o --from 3",
            "flotilla audit export --data d --jsonl q --agent a --job j --actor admin --until 7",
            "flotilla audit convert p --to jsonl --out - --origin o --agent a --agent b",
            "flotilla audit convert p --to cloudevents-batch",
            "flotilla audit replay p --agent a --job b --actor service",
            "flotilla audit replay p --origin o --until 2026-03-01T12:00:00Z --from 7 --json",
            "flotilla audit state p --origin o --at 2026-03-01T12:00:00Z --json",
            "flotilla audit state --data d --at 7",
            "flotilla audit diff p --from 3 --to 2026-03-01T12:00:00Z",
            "flotilla audit prove 7 p --origin o --out q",
            "flotilla audit verify p --origin o --seen c --seen d --witness w --witness x --keep e --json",
            "flotilla audit witnesses --json --data d",
        ] {
            assert!(Line::try_parse_from(line.split_whitespace()).is_ok(), "{line}");
        }
        assert!(Line::try_parse_from(["flotilla", "jobs", "create", "distribution", "--name", "n"]).is_err());
        for line in [
            "flotilla jobs create synchronization --name n",
            "flotilla sync add n",
            "flotilla sync remove n",
            "flotilla sync policy n",
            "flotilla sync confirm n --agent a",
            "flotilla sync confirm n --agent a --delete --restore",
            "flotilla sync confirm n --delete",
        ] {
            assert!(Line::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
        assert!(Line::try_parse_from(["flotilla", "audit", "export", "--data", "d"]).is_err());
    }
}
