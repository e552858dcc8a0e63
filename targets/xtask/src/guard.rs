//! Starting programs that cannot outlive us.
//!
//! Owns `xtask guard`, a small exec wrapper: it asks the kernel to kill it when its parent dies and then becomes
//! the wanted program, which keeps that wish. This is the safe way to what otherwise needs code between fork and
//! exec. Stopping programs in good order is `demo/children.rs`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

#[derive(Args)]
pub(crate) struct Options {
    /// Process id of whoever asked; if it is gone already, nothing is started
    #[arg(long)]
    parent: i32,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// A command for `program` that dies with this process and leads a process group of its own, so that Ctrl-C in
/// the terminal reaches us alone and we decide the order in which things stop.
///
/// The kernel watches the *thread* that starts the command: start it from one that lives as long as the program
/// shall live (the main thread).
pub(crate) fn command(program: impl Into<OsString>) -> Result<Command> {
    let me = std::env::current_exe().context("finding xtask's own executable")?;
    let mut command = Command::new(me);
    command.arg("guard").arg("--parent").arg(std::process::id().to_string()).arg("--").arg(program.into());
    command.process_group(0);
    Ok(command)
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("asking to be killed with the parent")?;
    // The parent may have died between the start and the line above: then nobody would ever kill us.
    let parent = rustix::process::Pid::as_raw(rustix::process::getppid());
    if parent != options.parent {
        bail!("the parent is gone, nothing started");
    }
    let (program, arguments) = options.command.split_first().context("no program given")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}
