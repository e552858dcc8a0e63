//! `cargo xtask firmware`: builds the firmware of devices (`edge-agent/firmware`) into `target/firmware`.
//!
//! Owns with which compiler and linker. The firmware is a workspace of its own, for a processor that rustup's toolchain
//! may have no library for; then Debian's compiler builds one from its sources. How much memory it may take is in the
//! firmware's `memory.x`, and the linker refuses what does not fit.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};

use crate::tools;
use crate::workspace::{Workspace, cargo};

pub(crate) fn run() -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    match build(&workspace)? {
        Some(mut command) => ensure!(command.status()?.success(), "the firmware does not build"),
        None => bail!("{ADVICE}"),
    }
    println!("{}", workspace.target.join(IMAGE).display());
    Ok(ExitCode::SUCCESS)
}

/// What is missing where it cannot be built.
pub(crate) const ADVICE: &str = "no library for Cortex-M: `rustup target add thumbv7em-none-eabihf`, \
                                 or Debian's rustc-web and rust-web-src";

/// Where it is, in the target folder.
const IMAGE: &str = "firmware/thumbv7em-none-eabihf/release/firmware";

/// Hashes and ciphers in loops instead of unrolled: 36 KB less.
const SMALL: &str = "--cfg sha2_backend=\"soft\" --cfg sha2_backend_soft=\"compact\" \
                     --cfg aes_backend=\"soft\" --cfg aes_backend_soft=\"compact\"";

/// The command that builds it; `None` if there is no compiler for it.
pub(crate) fn build(workspace: &Workspace) -> Result<Option<Command>> {
    let mut command = cargo();
    command
        .current_dir(workspace.root.join("edge-agent/firmware"))
        .args(["build", "--release", "--locked", "--target", tools::THUMB])
        .env("CARGO_TARGET_DIR", workspace.target.join("firmware"))
        .env(
            "CARGO_TARGET_THUMBV7EM_NONE_EABIHF_RUSTFLAGS",
            format!("-Clink-arg=-Tlink.x -Clink-arg=--nmagic -Clinker={} {SMALL}", linker()?.display()),
        );
    if !tools::has_thumb_library() {
        if !PathBuf::from(tools::DEBIAN_RUSTC).exists() {
            return Ok(None);
        }
        command.arg("-Zbuild-std=core,alloc").env("RUSTC", tools::DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
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
