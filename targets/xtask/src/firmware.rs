//! `cargo xtask firmware`: builds the firmware of devices (`edge-agent/firmware`) into `target/firmware`.
//!
//! Owns with which compiler and linker. The firmware is a workspace of its own, for a processor that rustup's toolchain
//! may have no library for; then Debian's compiler builds one from its sources. How much memory it may take is in the
//! firmware's `memory.x`, and the linker refuses what does not fit.

mod sizes;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::tools;
use crate::workspace::{Workspace, cargo};

#[derive(Args)]
pub(crate) struct Options {
    /// Print what takes how much of it, crate by crate
    #[arg(long)]
    sizes: bool,
    /// Run each cryptographic operation in QEMU, and print how many instructions and how much stack it takes
    #[arg(long)]
    times: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    match build(&workspace)? {
        Some(mut command) => ensure!(command.status()?.success(), "the firmware does not build"),
        None => bail!("{ADVICE}"),
    }
    let programs = workspace.target.join(PROGRAMS);
    println!("{}", programs.join("firmware").display());
    if options.sizes {
        sizes::print(&programs.join("firmware"))?;
    }
    if options.times {
        times(&programs.join("times"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs what measures the cryptography. An instruction takes a nanosecond of the board's time, whatever else this
/// machine does.
fn times(program: &Path) -> Result<()> {
    let output = Command::new("qemu-system-arm")
        .args(["-machine", "mps2-an386", "-icount", "shift=0"])
        .args(["-display", "none", "-monitor", "none", "-serial", "stdio"])
        .args(["-semihosting-config", "enable=on,target=native", "-kernel"])
        .arg(program)
        .stdin(Stdio::null())
        .output()
        .context("qemu-system-arm")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.lines().any(|line| line == "END"), "it did not end:\n{said}");
    println!("| | instructions | stack |\n|---|---|---|");
    for line in said.lines().filter_map(|line| line.strip_prefix("TIME ")) {
        let (name, taken) = line.split_once(": ").context("a name")?;
        let (instructions, stack) = taken.split_once(' ').context("two numbers")?;
        println!("| {name} | {} | {} |", grouped(instructions.parse()?), grouped(stack.parse()?));
    }
    Ok(())
}

/// A number with its thousands set apart.
fn grouped(number: u64) -> String {
    if number < 1000 {
        return number.to_string();
    }
    format!("{},{:03}", grouped(number / 1000), number % 1000)
}

/// What is missing where it cannot be built.
pub(crate) const ADVICE: &str = "no library for Cortex-M: `rustup target add thumbv7em-none-eabihf`, \
                                 or Debian's rustc-web and rust-web-src";

/// Where its programs are, in the target folder.
const PROGRAMS: &str = "firmware/thumbv7em-none-eabihf/release";

/// Hashes and ciphers in loops instead of unrolled: 36 KB less.
const SMALL: &str = "--cfg sha2_backend=\"soft\" --cfg sha2_backend_soft=\"compact\" \
                     --cfg aes_backend=\"soft\" --cfg aes_backend_soft=\"compact\"";

/// The layout that `cortex-m-rt` brings, without room between sections; of functions with the same code one remains:
/// 3 KB less.
const LINK: &str = "-Clink-arg=-Tlink.x -Clink-arg=--nmagic -Clink-arg=--icf=all";

/// The command that builds it; `None` if there is no compiler for it.
pub(crate) fn build(workspace: &Workspace) -> Result<Option<Command>> {
    let mut command = cargo();
    command
        .current_dir(workspace.root.join("edge-agent/firmware"))
        .args(["build", "--release", "--locked", "--target", tools::THUMB])
        .env("CARGO_TARGET_DIR", workspace.target.join("firmware"))
        .env(
            "CARGO_TARGET_THUMBV7EM_NONE_EABIHF_RUSTFLAGS",
            format!("{LINK} -Clinker={} {SMALL}", linker()?.display()),
        );
    if !tools::has_thumb_library() {
        if !PathBuf::from(tools::DEBIAN_RUSTC).exists() {
            return Ok(None);
        }
        // A library made for its size takes 5 KB less than as it is distributed.
        command.args(["-Zbuild-std=core,alloc", "-Zbuild-std-features=optimize_for_size"]);
        command.env("RUSTC", tools::DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
    }
    Ok(Some(command))
}

/// The toolchain's linker: Debian's compiler has none for this processor.
fn linker() -> Result<PathBuf> {
    let output = Command::new("rustc").env_remove("RUSTC").args(["--print", "sysroot"]).output()?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    let host = Command::new("rustc").args(["--print", "host-tuple"]).output()?;
    let host = String::from_utf8(host.stdout)?.trim().to_owned();
    let linker = sysroot.join("lib/rustlib").join(host).join("bin/rust-lld");
    ensure!(linker.is_file(), "the toolchain has no {}", linker.display());
    linker.canonicalize().context("the linker's path")
}
