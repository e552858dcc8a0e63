//! Programs for other processors: Debian's compiler, whose library sources are shipped, makes a library for each target once;
//! zig links, and compiles the C in dependencies, against the musl that it carries.
//!
//! Nothing but packages is fetched (`tools`), and nothing is installed outside `target/tools`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::table::Program;
use crate::tools::{self, DEBIAN_RUSTC};
use crate::workspace::{Workspace, cargo};

/// Where Debian's package of the library's sources puts them.
const LIBRARY: &str = "/usr/lib/rustlib/src/rust/library";

/// Flags of every program, beside those of its profile.
const FLAGS: [&str; 2] = [
    // zig has a libc of its own.
    "-Clink-self-contained=no",
    // Kernels of NAS boxes have pages of up to 64 KiB.
    "-Clink-arg=-Wl,-z,max-page-size=65536",
];

/// All that building for another processor needs.
pub(super) struct Cross {
    root: PathBuf,
    target: PathBuf,
    /// Made by Debian's compiler, with a folder for each target.
    sysroot: PathBuf,
    work: PathBuf,
    zig: PathBuf,
    time: u64,
}

impl Cross {
    pub(super) fn new(workspace: &Workspace, time: u64) -> Result<Self> {
        let work = workspace.target.join("tools/cross");
        fs::create_dir_all(&work)?;
        let version =
            Command::new(DEBIAN_RUSTC).arg("--version").output().context("running Debian's rustc")?;
        let version = String::from_utf8(version.stdout)?;
        let version: String = version
            .trim()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' })
            .collect();
        Ok(Self {
            root: workspace.root.clone(),
            target: workspace.target.join("cross"),
            sysroot: work.join(version),
            zig: tools::zig(&work)?,
            work,
            time,
        })
    }

    /// The agent's program, stripped.
    pub(super) fn agent(&self, program: &Program) -> Result<Vec<u8>> {
        self.library(&program.triple)?;
        let mut command = Command::new(self.zig.join("cargo-zigbuild"));
        command.args(["zigbuild", "--quiet", "--locked", "--profile", "dist", "--package", "agent"]);
        command.args(["--target", &program.triple, "--target-dir"]).arg(&self.target).current_dir(&self.root);
        crate::workspace::forget_package(&mut command);
        let home = std::env::var("CARGO_HOME")
            .unwrap_or_else(|_| format!("{}/.cargo", std::env::var("HOME").unwrap_or_default()));
        let mut flags = vec![format!("--sysroot={}", self.sysroot.display())];
        // Where things lie on this machine is no part of a program.
        for (from, to) in [(self.root.display().to_string(), "/flotilla"), (home, "/cargo")] {
            flags.push(format!("--remap-path-prefix={from}={to}"));
        }
        flags.extend(FLAGS.map(str::to_owned));
        self.environment(&mut command)?;
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        command.env("SOURCE_DATE_EPOCH", self.time.to_string());
        let status = command.status().context("running cargo-zigbuild")?;
        ensure!(status.success(), "the agent does not build for {}", program.triple);
        let path = self.target.join(&program.triple).join("dist/flotilla-agent");
        fs::read(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Rust's library for a target, made once.
    fn library(&self, triple: &str) -> Result<()> {
        let folder = self.sysroot.join("lib/rustlib").join(triple).join("lib");
        if folder.is_dir() {
            return Ok(());
        }
        println!("making Rust's library for {triple}, once");
        let work = self.work.join("library").join(triple);
        let _ = fs::remove_dir_all(&work);
        copy(Path::new(LIBRARY), &work.join("library"))?;
        for name in ["std", "test"] {
            // As a dynamic library too it would have to be linked, which nothing here needs.
            let manifest = work.join("library").join(name).join("Cargo.toml");
            let text = fs::read_to_string(&manifest)?;
            fs::write(
                &manifest,
                text.replace(r#"crate-type = ["dylib", "rlib"]"#, r#"crate-type = ["rlib"]"#),
            )?;
        }
        let mut command = cargo();
        command.args(["build", "--quiet", "--release", "--locked", "--target", triple, "--manifest-path"]);
        command.arg(work.join("library/sysroot/Cargo.toml")).args(["--features", "panic-unwind"]);
        command.arg("--target-dir").arg(work.join("target"));
        self.environment(&mut command)?;
        let remap = format!("--remap-path-prefix={}=/rust", work.display());
        let flags = ["-Cembed-bitcode=yes", "-Zforce-unstable-if-unmarked", &remap];
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        // The library is part of its compiler and may use what is not stable; nothing of ours is built with this.
        command.env("RUSTC_BOOTSTRAP", "1").env("__CARGO_DEFAULT_LIB_METADATA", "flotilla");
        command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s").env("CARGO_PROFILE_RELEASE_DEBUG", "0");
        ensure!(command.status()?.success(), "Rust's library does not build for {triple}");
        let built = work.join("target").join(triple).join("release/deps");
        let ready = folder.with_extension("new");
        fs::create_dir_all(&ready)?;
        for entry in fs::read_dir(&built)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "rlib") {
                fs::copy(&path, ready.join(path.file_name().context("a name")?))?;
            }
        }
        // Whole, or not there.
        fs::rename(&ready, &folder)?;
        Ok(fs::remove_dir_all(&work)?)
    }

    fn environment(&self, command: &mut Command) -> Result<()> {
        let mut path = OsString::from(&self.zig);
        path.push(":");
        path.push(std::env::var_os("PATH").context("PATH")?);
        command.env("PATH", path).env("RUSTC", DEBIAN_RUSTC).env("XDG_CACHE_HOME", self.work.join("cache"));
        // What a wrapper or other flags of this machine would do to the programs is not ours to know.
        for name in ["RUSTC_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET"] {
            command.env_remove(name);
        }
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in walkdir::WalkDir::new(from).follow_links(true) {
        let entry = entry?;
        let path = to.join(entry.path().strip_prefix(from)?);
        if entry.file_type().is_dir() {
            fs::create_dir_all(&path)?;
        } else {
            fs::copy(entry.path(), &path)?;
        }
    }
    Ok(())
}
