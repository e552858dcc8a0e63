//! `wan`: runs two programs at the ends of an emulated wide-area link, and the benchmark over it.
//!
//! Owns the command line and what is printed. Read first: the library's `Link`.

mod bench;
mod peer;
mod run;

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Result;
use clap::{Parser, Subcommand};
use wan::NotPermitted;

/// Tells the program started again by itself that it was.
const AGAIN: &str = "WAN_STARTED_AGAIN";

/// A wide-area link on one machine: real sockets, real time.
#[derive(Parser)]
#[command(name = "wan", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Do,
}

#[derive(Subcommand)]
enum Do {
    /// Runs a receiver and a sender at the two ends of a link, and prints what the link did as JSON.
    Run(run::Args),
    /// Sends a file by several protocols in turns over the same emulated link, and compares.
    Bench(bench::Args),
    /// A sender or a receiver of another protocol.
    #[command(subcommand)]
    Peer(peer::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Do::Run(args) => run::run(args),
        Do::Bench(args) => bench::run(args),
        Do::Peer(args) => peer::run(args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            if error.is::<NotPermitted>()
                && std::env::var_os(AGAIN).is_none()
                && !nix::unistd::geteuid().is_root()
            {
                eprintln!("wan: {error:#}\nwan: trying again in a user namespace");
                eprintln!("wan: {}", again());
            } else {
                eprintln!("wan: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Starts this program again as root of a user namespace. Comes back only if that fails.
fn again() -> std::io::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--"]).arg(program);
    command.args(std::env::args_os().skip(1)).env(AGAIN, "1").exec()
}

/// Whether somebody asked this program to end. From the first call on such a request no longer ends it by itself, so
/// that everything is put back.
fn interrupted() -> bool {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    let flag = FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // Without a handler the request ends the program as ever.
            let _ = signal_hook::flag::register(signal, flag.clone());
        }
        flag
    });
    flag.load(Ordering::Relaxed)
}

/// One line of JSON on standard output.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}
