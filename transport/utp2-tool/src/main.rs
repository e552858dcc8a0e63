//! `utp2`: moves files between two machines over µTP2, without anything else of Flotilla.
//!
//! `send` and `recv` are the two ends, `wire` what they say to each other, `store` the receiver's disk,
//! `sim` simulated links instead of real ones.
//! Read first: `args` (what it promises), `wire`.

mod args;
mod behind;
mod name;
mod place;
mod progress;
mod recv;
mod secret;
mod send;
mod sim;
mod state;
mod store;
mod wire;
#[cfg(test)]
mod wire_check;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;
use utp2::{CloseReason, HandshakeFailure, Identity};
use utp2_tokio::{ConnectError, EndpointConfig};

use crate::args::{Cli, Command, Common};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = std::env::var("FLOTILLA_LOG").ok().filter(|text| !text.is_empty());
    let filter = filter.and_then(|text| text.parse::<Targets>().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::WARN));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::registry()
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi))
        .with(filter)
        .init();
    let json = match &cli.command {
        Command::Send(args) => args.common.json,
        Command::Recv(args) => args.common.json,
        Command::Sim(args) => sim::is_json(args),
    };
    match run(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("utp2: {error:#}");
            if json {
                print_json(&serde_json::json!({ "ok": false, "error": format!("{error:#}") }));
            }
            ExitCode::from(1)
        }
    }
}

/// Whether everything that was asked for was done.
fn run(cli: Cli) -> anyhow::Result<bool> {
    if let Command::Sim(args) = &cli.command {
        return sim::run(args);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done = match cli.command {
        Command::Send(args) => match send::plan(&args)? {
            Ok(plan) => runtime.block_on(send::run(args, plan)),
            Err(usage) => usage_error("send", &usage),
        },
        Command::Recv(args) => runtime.block_on(recv::run(args)),
        Command::Sim(_) => unreachable!("done above, without a runtime"),
    };
    // Nobody needs what blocking tasks are left, such as the hash of a file that failed.
    runtime.shutdown_background();
    done
}

/// Ends the program as clap does for a wrong command line.
fn usage_error(of: &str, what: &str) -> ! {
    use clap::CommandFactory;
    let mut cli = Cli::command();
    // Else the command does not know what it is part of.
    cli.build();
    match cli.find_subcommand_mut(of) {
        Some(command) => command.error(ErrorKind::ValueValidation, what).exit(),
        None => cli.error(ErrorKind::ValueValidation, what).exit(),
    }
}

/// One line on stdout. A reader that has gone away is no reason to stop moving files.
fn print_json(value: &serde_json::Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{value}");
    let _ = out.flush();
}

/// 32 bytes nobody can guess.
fn random() -> anyhow::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    if let Err(error) = getrandom::fill(&mut bytes) {
        bail!("the system gives no random numbers: {error}");
    }
    Ok(bytes)
}

/// An endpoint of the identity made from `seed`, that accepts the peer asked for. Gives its public key.
fn endpoint_config(common: &Common, seed: [u8; 32]) -> anyhow::Result<(EndpointConfig, [u8; 32])> {
    let identity = Identity::new(seed, Vec::new());
    let public_key = identity.public_key();
    let wanted = common.peer_key;
    let mut config =
        EndpointConfig::new(identity, move |_, peer| wanted.is_none_or(|key| key.0 == peer.public_key));
    config.fault = common.fault();
    // A gigabit per second over a second.
    config.core.receive_window = 128 << 20;
    Ok((config, public_key))
}

/// Returns when the program is asked to end.
async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut term) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = term.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

/// What went wrong, as somebody at a terminal needs to hear it.
fn explain(error: &ConnectError, to: &str, key: &str) -> String {
    let ConnectError::Handshake(CloseReason::HandshakeFailed(why)) = error else {
        return format!("cannot connect to {to}: {error}");
    };
    match why {
        HandshakeFailure::Timeout => format!("no answer from {to}: is `utp2 recv` listening there?"),
        HandshakeFailure::Refused | HandshakeFailure::BadProof => {
            format!("{to} refuses: the secrets differ, or its --peer-key is not the key here ({key})")
        }
        HandshakeFailure::Unauthorized => format!("{to} has another key than --peer-key says"),
        HandshakeFailure::Version => {
            format!("{to} speaks another version of µTP2: use one release on both sides")
        }
        other => format!("cannot connect to {to}: {other}"),
    }
}
