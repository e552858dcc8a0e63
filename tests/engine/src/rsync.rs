//! rsync to compare with: a daemon at the source, and whoever wants the files asks it for them.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::net::Place;
use crate::process::Process;

const PORT: u16 = 7873;

/// Whether there is an rsync.
pub(crate) fn is_here() -> bool {
    let there = Command::new("rsync").arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("!!! SKIPPED: there is no rsync to compare with (install the package rsync)");
    }
    there
}

/// A daemon that serves one folder.
pub(crate) struct Daemon {
    address: String,
    _process: Process,
}

impl Daemon {
    /// Serves `folder` at `address`; `from` is a place from which it can be asked whether it is ready.
    pub(crate) fn start(dir: &Path, place: &Place, address: &str, folder: &Path) -> Result<Self> {
        let config = dir.join("rsyncd.conf");
        fs::write(
            &config,
            format!(
                "use chroot = no\nuid = 0\ngid = 0\nread only = yes\n[files]\npath = {}\n",
                folder.display()
            ),
        )?;
        let mut command = place.command("rsync");
        command.args(["--daemon", "--no-detach", "--address", address, "--port", &PORT.to_string()]);
        command.arg("--config").arg(&config);
        let process = Process::start("rsyncd", dir, &mut command)?;
        let daemon = Self { address: address.into(), _process: process };
        let end = Instant::now() + Duration::from_secs(20);
        while !daemon.answers(place) {
            ensure!(Instant::now() < end, "the rsync daemon does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }

    fn answers(&self, place: &Place) -> bool {
        if self.address.starts_with("127.") {
            return TcpStream::connect((self.address.as_str(), PORT)).is_ok();
        }
        let mut command = place.command("rsync");
        command.arg(format!("rsync://{}:{PORT}/", self.address));
        command.output().is_ok_and(|output| output.status.success())
    }

    /// Starts fetching everything into `to`.
    pub(crate) fn fetch(&self, name: &str, dir: &Path, place: &Place, to: &Path) -> Result<Process> {
        fs::create_dir_all(to)?;
        let mut command = place.command("rsync");
        // Owners are none of the job's business, as they are none of an agent's.
        command.args(["-rlpt", "--no-whole-file"]).arg(format!("rsync://{}:{PORT}/files/", self.address));
        command.arg(to);
        Process::start(name, dir, &mut command)
    }
}

/// Waits for a program's good end.
pub(crate) fn finish(process: &mut Process, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = process.ended()? {
            ensure!(status.success(), "rsync: {status}: {}", process.last_words());
            return Ok(());
        }
        ensure!(Instant::now() < end, "rsync does not end within {limit:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
