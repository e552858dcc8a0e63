//! Everything CI runs, in order, each step with its time: `cargo xtask test`.
//!
//! Owns the list of steps. A step that fails does not stop the ones after it: one run tells everything that is
//! wrong. The test runner comes last, so that its closing line is near the end of the output.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::tools::{self, Tools};
use crate::workspace::{Workspace, build_programs, cargo, forget_package};

#[derive(Args)]
pub(crate) struct Options {
    /// Only these steps (default: all)
    #[arg(value_enum)]
    steps: Vec<Step>,
    /// Install nothing: checks whose tools are missing are skipped, and said to be
    #[arg(long)]
    no_install: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Local,
    Ci,
}

/// In the order they run: what is quick and often wrong comes first.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum Step {
    /// rustfmt
    Fmt,
    /// Rules about the tree that no compiler holds
    Tidy,
    /// Licences, bans and sources of the dependencies
    Deny,
    /// clippy on everything, warnings are errors
    Clippy,
    /// rustdoc, warnings are errors
    Doc,
    /// The no_std crates for Cortex-M, and for iOS
    Thumb,
    /// The firmware of devices, for the end-to-end tests
    Firmware,
    /// The programs, for the end-to-end tests
    Build,
    /// The agent that is shipped for ARM, for the same
    Dist,
    /// Examples in the documentation
    Doctest,
    /// Unit, integration and end-to-end tests
    Tests,
}

/// The crates that must build without std, for a processor without 64-bit atomics.
pub(crate) const NO_STD: &[&str] = &[
    "event-schema",
    "event-audit",
    "timebase",
    "utp2",
    "tracker-proto",
    "agent-proto",
    "sync-core",
    "device-core",
    "carry",
];

enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

pub(crate) fn run(options: &Options, mode: Mode) -> Result<ExitCode> {
    let begun = Instant::now();
    let workspace = Workspace::load()?;
    if mode == Mode::Ci && options.no_install {
        bail!("CI skips nothing: --no-install is for working copies");
    }
    let tools = if options.no_install { None } else { Some(tools::install()?) };
    println!("== tools: {}", seconds(begun.elapsed()));
    let steps = if options.steps.is_empty() { Step::value_variants() } else { &options.steps };
    let checks = Checks { workspace: &workspace, tools: tools.as_ref(), mode };
    let mut rows = Vec::new();
    for step in steps {
        println!("== {}", step.name());
        let started = Instant::now();
        let outcome = checks.run(*step).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        let took = started.elapsed();
        println!("== {}: {} in {}", step.name(), outcome.word(), seconds(took));
        rows.push((step.name(), outcome, took));
    }
    println!("== all, {}", seconds(begun.elapsed()));
    for (name, outcome, took) in &rows {
        println!("{name:>8}  {:>8}  {}", seconds(*took), outcome.text());
    }
    let failed = rows.iter().any(|(_, outcome, _)| matches!(outcome, Outcome::Failed(_)));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

struct Checks<'a> {
    workspace: &'a Workspace,
    tools: Option<&'a Tools>,
    mode: Mode,
}

impl Checks<'_> {
    fn run(&self, step: Step) -> Result<Outcome> {
        match step {
            Step::Fmt => passes(cargo().args(["fmt", "--all", "--check"])),
            Step::Tidy => {
                let faults = crate::tidy::faults(self.workspace)?;
                faults.iter().for_each(|fault| println!("{fault}"));
                Ok(match faults.len() {
                    0 => Outcome::Passed,
                    n => Outcome::Failed(format!("{n} faults")),
                })
            }
            Step::Deny => match self.tools {
                // Advisories are left out: their list is fetched from a git host, and a check that fails because
                // something new was published belongs into a job of its own.
                Some(tools) => all_pass(["Cargo.toml", "edge-agent/firmware/Cargo.toml"].map(|manifest| {
                    let mut deny = Command::new(&tools.cargo_deny);
                    deny.current_dir(&self.workspace.root)
                        .args([
                            "--manifest-path",
                            manifest,
                            "--config",
                            "deny.toml",
                            "--all-features",
                            "check",
                        ])
                        .args(["--hide-inclusion-graph"])
                        .args(["licenses", "bans", "sources"]);
                    deny
                })),
                None => Ok(Outcome::Skipped("cargo-deny was not asked for (--no-install)".to_owned())),
            },
            // Lints come as arguments of clippy, not by RUSTFLAGS, which would rebuild every dependency.
            Step::Clippy => {
                passes(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
            }
            Step::Doc => {
                passes(cargo().args(["doc", "--no-deps", "--workspace"]).env("RUSTDOCFLAGS", "-D warnings"))
            }
            Step::Thumb => self.thumb(),
            Step::Firmware => match crate::firmware::build(self.workspace)? {
                Some(mut command) => passes(&mut command),
                None => Ok(Outcome::Skipped(crate::firmware::ADVICE.to_owned())),
            },
            Step::Build => passes(&mut build_programs()),
            Step::Dist => {
                if !Path::new(tools::DEBIAN_RUSTC).exists() {
                    return Ok(Outcome::Skipped(
                        "Debian's rustc-web and rust-web-src are not there".to_owned(),
                    ));
                }
                crate::dist::for_tests(self.workspace).map(|()| Outcome::Passed)
            }
            Step::Doctest => passes(self.testing(cargo().args(["test", "--workspace", "--doc", "--quiet"]))),
            Step::Tests => self.tests(),
        }
    }

    fn thumb(&self) -> Result<Outcome> {
        let mut check = cargo();
        check.args(["check", "--target", tools::THUMB]);
        for name in NO_STD {
            check.args(["--package", name]);
        }
        if !tools::has_thumb_library() {
            if !Path::new(tools::DEBIAN_RUSTC).exists() {
                return Ok(Outcome::Skipped(crate::firmware::ADVICE.to_owned()));
            }
            // Another compiler: a target folder of its own, so that the two don't rebuild each other's work.
            check
                .args(["-Zbuild-std=core,alloc", "--target", tools::IOS])
                .env("RUSTC", tools::DEBIAN_RUSTC)
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_DIR", self.workspace.target.join("thumb"));
        }
        passes(&mut check)
    }

    /// Everything; and µTP2 as devices have it, without its control of sending.
    fn tests(&self) -> Result<Outcome> {
        let profile = if self.mode == Mode::Ci { "ci" } else { "default" };
        let what: [&[&str]; 2] = [&["--workspace"], &["--package", "utp2", "--no-default-features"]];
        all_pass(what.map(|what| {
            let mut command = match self.tools {
                Some(Tools { cargo_nextest: Some(path), .. }) => {
                    let mut command = Command::new(path);
                    command.current_dir(&self.workspace.root);
                    forget_package(&mut command);
                    command
                }
                _ => cargo(),
            };
            command.args(["nextest", "run", "--profile", profile]).args(what);
            self.testing(&mut command);
            command
        }))
    }

    /// What the tests learn by their environment: where the programs just built and the message server are,
    /// and that none may skip itself.
    fn testing<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("FLOTILLA_BINARIES", self.workspace.target.join("debug"));
        command.env("FLOTILLA_DIST", self.workspace.target.join(crate::dist::FOR_TESTS));
        if self.mode == Mode::Ci {
            command.env("FLOTILLA_REQUIRE_DIST", "1");
        }
        if let Some(tools) = self.tools {
            command.env("FLOTILLA_NATS_SERVER", &tools.nats_server).env("FLOTILLA_REQUIRE_ALL", "1");
        }
        command
    }
}

fn passes(command: &mut Command) -> Result<Outcome> {
    let status = command.status().with_context(|| format!("running {}", command.get_program().display()))?;
    Ok(if status.success() { Outcome::Passed } else { Outcome::Failed(status.to_string()) })
}

/// One after the other, until one does not pass.
fn all_pass(commands: impl IntoIterator<Item = Command>) -> Result<Outcome> {
    for mut command in commands {
        let outcome = passes(&mut command)?;
        if !matches!(outcome, Outcome::Passed) {
            return Ok(outcome);
        }
    }
    Ok(Outcome::Passed)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

impl Step {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Outcome::Passed => "ok",
            Outcome::Skipped(_) => "SKIPPED",
            Outcome::Failed(_) => "FAILED",
        }
    }

    fn text(&self) -> String {
        match self {
            Outcome::Passed => "ok".to_owned(),
            Outcome::Skipped(why) => format!("SKIPPED: {why}"),
            Outcome::Failed(why) => format!("FAILED: {why}"),
        }
    }
}
