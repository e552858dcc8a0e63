//! `engine-bench`: what the agents' engine does with real processes, beside rsync and a BitTorrent swarm in the same run.
//!
//! Four benchmarks: one file to many nodes that all have the same rate (`spread`), very many small files over a long
//! link and on loopback (`small`), what is sent when little has changed (`changed`), and a change in a very large folder
//! at rest (`rest`). What they have to hold is in `docs/engine.md`. Everything runs in network, mount and process namespaces of its own and ends with the command.

mod changed;
mod disk;
mod files;
mod fleet;
mod net;
mod process;
mod rest;
mod rsync;
mod small;
mod spread;
mod table;
mod torrent;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tempfile::TempDir;

/// What the agents' engine does, measured beside others.
#[derive(Parser)]
#[command(name = "engine-bench", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Do,
}

#[derive(Subcommand)]
enum Do {
    /// One file to many nodes, each limited to the same rate up and down.
    Spread(spread::Args),
    /// Very many small files to one node, over a long link and on loopback.
    Small(small::Args),
    /// What is sent of a large file with one byte more, a renamed folder, and a file that is there already.
    Changed(changed::Args),
    /// How long one change takes to arrive where two agents keep a very large folder the same.
    Rest(rest::Args),
}

/// What all of them have.
#[derive(clap::Args)]
struct Common {
    /// A line of JSON for each result instead of a table.
    #[arg(long)]
    json: bool,
    /// Where the files are made; they go again. Needs room for every copy.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leaves the folder with all logs where it is.
    #[arg(long)]
    keep: bool,
}

impl Common {
    fn folder(&self) -> Result<TempDir> {
        let dir = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let mut folder = tempfile::Builder::new().prefix("flotilla-engine-").tempdir_in(dir)?;
        if self.keep {
            folder.disable_cleanup(true);
            eprintln!("logs and files stay in {}", folder.path().display());
        }
        Ok(folder)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !net::is_inside() {
        return match net::go_inside() {
            Ok(code) => code,
            Err(error) => {
                eprintln!("namespaces cannot be had: {error:#}");
                ExitCode::from(2)
            }
        };
    }
    let done = match &cli.command {
        Do::Spread(args) => spread::run(args),
        Do::Small(args) => small::run(args),
        Do::Changed(args) => changed::run(args),
        Do::Rest(args) => rest::run(args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("engine-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}
