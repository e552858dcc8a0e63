//! Programs for other processors: Debian's compiler, whose library sources are shipped, makes a library for each target once;
//! zig links, and compiles the C in dependencies, against the musl that it carries.
//!
//! Nothing but packages is fetched (`tools`), and nothing is installed outside the target folder.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::sbom::Part;
use super::table::Program;
use super::tree::Commit;
use crate::tools::{self, DEBIAN_RUSTC};
use crate::workspace::cargo;

/// Where Debian's package of the library's sources puts them.
const LIBRARY: &str = "/usr/lib/rustlib/src/rust/library";

/// Flags of every program, beside those of its profile.
const FLAGS: [&str; 3] = [
    // zig has a libc of its own.
    "-Clink-self-contained=no",
    PAGES,
    NO_TABLES,
];
/// Kernels of NAS boxes have pages of up to 64 KiB.
pub(super) const PAGES: &str = "-Clink-arg=-Wl,-z,max-page-size=65536";
/// Nothing unwinds: a panic ends the agent (docs/decisions/0028-a-shipped-agent-ends-with-its-first-panic.md).
const NO_TABLES: &str = "-Cforce-unwind-tables=no";

/// How Rust's library is made: without what unwinds, and with its small ways of sorting and the like.
const LIBRARY_ARGS: [&str; 3] = ["--no-default-features", "--features", "optimize_for_size"];
const LIBRARY_FLAGS: [&str; 3] = ["-Cembed-bitcode=yes", "-Zforce-unstable-if-unmarked", NO_TABLES];
const LIBRARY_PROFILE: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
];

/// All that building for another processor needs.
pub(super) struct Cross {
    /// The commit's sources.
    tree: PathBuf,
    /// What cargo makes of them.
    build: PathBuf,
    /// What Debian's compiler calls itself.
    compiler: String,
    /// What Debian's compiler makes of Rust's library, with a folder for each target.
    sysroot: PathBuf,
    /// Where the library is made.
    library: PathBuf,
    zig: PathBuf,
    /// What zig makes: its libc, once for each target.
    cache: PathBuf,
    time: u64,
}

impl Cross {
    /// Lays out the commit in a folder below `place`, where all that is made of it lies too. `tools`: where zig is.
    pub(super) fn new(tools: &Path, place: &Path, commit: &Commit) -> Result<Self> {
        fs::create_dir_all(tools)?;
        let tree = place.join("tree");
        commit.lay_out(&tree)?;
        let version =
            Command::new(DEBIAN_RUSTC).arg("--version").output().context("running Debian's rustc")?;
        let compiler = String::from_utf8(version.stdout)?.trim().to_owned();
        let how =
            tools::sha256_of(format!("{LIBRARY_ARGS:?}{LIBRARY_FLAGS:?}{LIBRARY_PROFILE:?}").as_bytes());
        let version: String = format!("{compiler} {}", &how[..8])
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' })
            .collect();
        let library = place.join("library");
        Ok(Self {
            tree,
            compiler,
            build: place.join("build"),
            sysroot: library.join(version),
            library,
            zig: tools::zig(tools)?,
            cache: place.join("cache"),
            time: commit.time,
        })
    }

    /// What a row of the table makes, stripped: each program's file name and bytes, first the one that the row is about.
    pub(super) fn programs(&self, program: &Program) -> Result<Vec<(&'static str, Vec<u8>)>> {
        self.library(&program.triple)?;
        let (profile, packages, names) = program.made_of();
        let mut command = Command::new(self.zig.join("cargo-zigbuild"));
        command.args(["zigbuild", "--quiet", "--locked", "--bins", "--profile", profile]);
        command.args(packages.iter().flat_map(|package| ["--package", package]));
        command.args(["--target", &program.triple, "--target-dir"]).arg(&self.build).current_dir(&self.tree);
        crate::workspace::forget_package(&mut command);
        let mut flags = vec![format!("--sysroot={}", self.sysroot.display())];
        // Where things lie on this machine is no part of a program.
        flags.extend([
            remap(&self.tree, "/flotilla"),
            remap(&self.build, "/build"),
            remap(&cargo_home(), "/cargo"),
        ]);
        flags.extend(FLAGS.map(str::to_owned));
        if program.machine != "x86_64" {
            // Rust links static programs for a fixed place on all but this one; code that could lie anywhere is larger.
            flags.push("-Crelocation-model=static".into());
        }
        self.environment(&mut command)?;
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        command.env("SOURCE_DATE_EPOCH", self.time.to_string());
        let status = command.status().context("running cargo-zigbuild")?;
        ensure!(status.success(), "{} does not build for {}", packages.join(", "), program.triple);
        let folder = self.build.join(&program.triple).join(profile);
        let read = |name: &&'static str| {
            let path = folder.join(name);
            Ok((*name, fs::read(&path).with_context(|| format!("reading {}", path.display()))?))
        };
        names.iter().map(read).collect()
    }

    /// The sources that programs are built from.
    pub(super) fn tree(&self) -> &Path {
        &self.tree
    }

    /// What of this is linked into programs, beside crates.
    pub(super) fn parts(&self) -> [Part; 2] {
        [
            (
                "rust-std",
                self.compiler.clone(),
                "Rust's library, from the sources that Debian ships with its compiler",
            ),
            (
                "musl",
                tools::zig_version(),
                "the C library, with the compiler's routines, as zig carries them",
            ),
        ]
    }

    /// Rust's library for a target, made once.
    fn library(&self, triple: &str) -> Result<()> {
        let folder = self.sysroot.join("lib/rustlib").join(triple).join("lib");
        if folder.is_dir() {
            return Ok(());
        }
        println!("making Rust's library for {triple}, once");
        let work = self.library.join("work").join(triple);
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
        command.arg(work.join("library/sysroot/Cargo.toml")).args(LIBRARY_ARGS);
        command.arg("--target-dir").arg(work.join("target"));
        self.environment(&mut command)?;
        let mut flags = LIBRARY_FLAGS.map(str::to_owned).to_vec();
        flags.extend([remap(&work, "/rust"), remap(&cargo_home(), "/cargo")]);
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        // The library is part of its compiler and may use what is not stable; nothing of ours is built with this.
        command.env("RUSTC_BOOTSTRAP", "1").env("__CARGO_DEFAULT_LIB_METADATA", "flotilla");
        command.envs(LIBRARY_PROFILE);
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
        // What a wrapper, a profile or other flags of this machine would do to the programs is not ours to know.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let ours = ["CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_BUILD_", "RUSTC_", "CARGO_ENCODED_"];
            let exact = ["RUSTFLAGS", "CARGO_INCREMENTAL", "CFLAGS", "CC", "AR", "LDFLAGS"];
            if ours.iter().any(|prefix| text.starts_with(prefix)) && text != "CARGO_BUILD_JOBS"
                || exact.contains(&text.as_ref())
            {
                command.env_remove(name);
            }
        }
        command.env("PATH", path).env("RUSTC", DEBIAN_RUSTC).env("XDG_CACHE_HOME", &self.cache);
        Ok(())
    }
}

/// Where cargo keeps the sources of what we depend on.
fn cargo_home() -> PathBuf {
    let default = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from)
}

fn remap(from: &Path, to: &str) -> String {
    format!("--remap-path-prefix={}={to}", from.display())
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
