//! `cargo xtask`: what a contributor and CI run, and the demonstration with real processes.
//!
//! Owns the order and the tools of the checks (`checks`, `tools`), the rules about the tree that no compiler
//! holds (`tidy`), `demo`, `firmware` and `fuzz`. It depends on no product crate: it builds the binaries and drives them from
//! outside, through their command lines and the HTTP API. Read `CONTRIBUTING.md` first.

mod checks;
mod demo;
mod dist;
mod firmware;
mod fuzz;
mod guard;
mod tidy;
mod tools;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Flotilla's tasks. `cargo xtask demo` shows the main job, `cargo xtask test` runs every check.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Distribute a folder with real processes on loopback, verify every copy, print the run's history
    Demo(demo::Options),
    /// Install what is missing and run every check that CI runs; where CI is set, nothing may be skipped
    Test(checks::Options),
    /// Build static agents for other processors, and the packages made of them, in target/dist
    Dist(dist::Options),
    /// Feed parsers and state machines of the transport with inputs that reach ever more of their code
    Fuzz(fuzz::Options),
    /// Build the firmware of devices for its Cortex-M4 board, and tell where it is; on request, what it takes
    Firmware(firmware::Options),
    /// Hold the rules about the tree: arrows, paths named in ARCHITECTURE.md, sizes, leftovers
    Tidy,
    /// Fetch the pinned tools into target/tools and say where they are
    Tools,
    /// Start a program that is killed when its parent goes away (used by `demo`)
    #[command(hide = true)]
    Guard(guard::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Demo(options) => demo::run(&options),
        // The command is the same for everybody; in CI nothing may be skipped.
        Task::Test(options) if std::env::var_os("CI").is_some() => checks::run(&options, checks::Mode::Ci),
        Task::Test(options) => checks::run(&options, checks::Mode::Local),
        Task::Dist(options) => dist::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Firmware(options) => firmware::run(&options),
        Task::Tidy => tidy::run(),
        Task::Tools => tools::install_all(),
        Task::Guard(options) => guard::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
