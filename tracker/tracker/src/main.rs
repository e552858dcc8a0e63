//! `flotilla-tracker`: tells the agents of a run each other's addresses (`tracker/PROTOCOL.md`).
//!
//! [`server`] is the protocol without IO, [`registry`] its table, [`net`] the socket around them.

mod config;
mod limits;
mod net;
mod rate;
mod registry;
mod server;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use config::{Args, Config};

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = std::env::var("FLOTILLA_LOG").ok().filter(|text| !text.is_empty());
    let filter = filter.and_then(|text| text.parse::<Targets>().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let ansi = io::stderr().is_terminal();
    tracing_subscriber::registry()
        .with(tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(ansi))
        .with(filter)
        .init();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flotilla-tracker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(args)?;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("no randomness from the system")?;
    let listen = config.listen;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(net::serve(config, seed, args.json)).with_context(|| format!("can't serve {listen}"))
}
