//! Programs to test: the agent built for this machine, and what is shipped (`cargo xtask dist`), by what runs it here.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::binary;

/// An agent's program, or a control service's.
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it needs the libraries of this machine; what is shipped is static.
    pub(crate) dynamic: bool,
    row: Row,
}

/// What `targets/targets.toml` says of it.
#[derive(Default, Deserialize)]
struct Row {
    name: String,
    machine: String,
    #[serde(default)]
    emulator: Vec<String>,
    #[serde(default)]
    service: bool,
    max_rest_mb: f64,
}

#[derive(Deserialize)]
struct Table {
    program: Vec<Row>,
}

impl Program {
    /// The agent of this machine, as it is built for tests.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self { path: binary("flotilla-agent"), dynamic: true, row: Row::default() }
    }

    /// The one that is shipped by this name, if it is built: in the folder that `FLOTILLA_DIST` names (default:
    /// `target/dist` of this tree). One that is not is said to be; with `FLOTILLA_REQUIRE_DIST=1` that is a failure.
    ///
    /// # Errors
    /// If the table cannot be read or has no such row.
    pub fn shipped(name: &str) -> Result<Option<Self>> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let table = fs::read_to_string(root.join("targets/targets.toml"))?;
        let table: Table = toml::from_str(&table).context("targets/targets.toml")?;
        let row = table.program.into_iter().find(|row| row.name == name);
        let row = row.with_context(|| format!("targets/targets.toml has no {name}"))?;
        let folder =
            std::env::var_os("FLOTILLA_DIST").map_or_else(|| root.join("target/dist"), PathBuf::from);
        let file = if row.service { "flotilla" } else { "flotilla-agent" };
        let path = folder.join("bin").join(name).join(file);
        if path.is_file() {
            return Ok(Some(Self { path, dynamic: false, row }));
        }
        let what = format!("the program {name} is not built: cargo xtask dist --target {name}");
        assert!(std::env::var_os("FLOTILLA_REQUIRE_DIST").is_none(), "{what}");
        eprintln!("SKIPPED: {what}");
        Ok(None)
    }

    /// The words that start it, without its arguments.
    #[must_use]
    pub fn launcher(&self) -> Vec<OsString> {
        let emulator = self.row.emulator.iter().map(OsString::from);
        emulator.chain([self.path.clone().into()]).collect()
    }

    /// Whether another program runs it.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        !self.row.emulator.is_empty()
    }

    /// What it may have of memory when it has nothing to do, in KiB.
    #[must_use]
    pub fn rest_limit_kib(&self) -> f64 {
        self.row.max_rest_mb * 1e6 / 1024.0
    }

    /// Below which address all lies that an emulated program has: an emulator keeps what it has for itself above.
    #[must_use]
    pub fn own_addresses(&self) -> u64 {
        match (self.is_emulated(), self.row.machine.as_str()) {
            (false, _) => u64::MAX,
            (true, "arm" | "i386") => 1 << 32,
            (true, _) => 1 << 44,
        }
    }

    /// Lets this machine's kernel start programs for its processor by the emulator, also where that is not to be seen, as
    /// in another root (`F`: it is opened now). Returns the variables that tell the emulator which processor to be.
    /// The registration stays, as the one that Debian's `qemu-user-static` makes on a machine that starts with systemd.
    pub(crate) fn register(&self) -> Result<Vec<(String, String)>> {
        let Some(emulator) = self.row.emulator.first() else { return Ok(Vec::new()) };
        ensure!(self.row.machine == "arm", "only programs for ARM are started by the kernel so far");
        let folder = Path::new("/proc/sys/fs/binfmt_misc");
        if !folder.join("register").exists() {
            let mounted = std::process::Command::new("mount")
                .args(["-t", "binfmt_misc", "binfmt_misc"])
                .arg(folder)
                .status()?;
            ensure!(
                mounted.success(),
                "the kernel has to have binfmt_misc to start programs for other processors"
            );
        }
        if !folder.join(REGISTERED).exists() {
            let emulator = Path::new("/usr/bin").join(emulator);
            let line = format!(":{REGISTERED}:M::{ARM_HEAD}:{ARM_MASK}:{}:F", emulator.display());
            let mut register = fs::OpenOptions::new().write(true).open(folder.join("register"))?;
            // Another test may have been quicker.
            let written = register.write_all(line.as_bytes());
            ensure!(folder.join(REGISTERED).exists(), "{line}: {written:?}");
        }
        let words: Vec<&str> = self.row.emulator.iter().map(String::as_str).collect();
        let cpu = words.iter().skip_while(|word| **word != "-cpu").nth(1).context("which processor")?;
        Ok(vec![("QEMU_CPU".to_owned(), (*cpu).to_owned())])
    }
}

/// What the kernel knows the emulator by.
const REGISTERED: &str = "flotilla-arm";
/// The head of a program for ARM (ELF, 32 bits, little-endian, `EM_ARM`), and which of its bits count: not the system that
/// it is for, and not whether it lies at a fixed place.
const ARM_HEAD: &str = r"\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x28\x00";
const ARM_MASK: &str = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff";
