//! A BitTorrent swarm to compare with: libtorrent (the library of qBittorrent) by its Python binding, every node told
//! of every other one, so that no tracker is needed.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::net::{Lan, Place};
use crate::process::Process;

const PORT: u16 = 6881;

/// The interpreter that Debian's python3-libtorrent is for.
const PYTHON: &str = "/usr/bin/python3";

/// Whether there is a libtorrent.
pub(crate) fn is_here() -> bool {
    let mut command = Command::new(PYTHON);
    command.args(["-c", "import libtorrent"]).stdin(Stdio::null()).stderr(Stdio::null());
    let there = command.status().is_ok_and(|status| status.success());
    if !there {
        eprintln!(
            "!!! SKIPPED: there is no BitTorrent swarm to compare with (install the package python3-libtorrent)"
        );
    }
    there
}

/// The nodes of one swarm.
pub(crate) struct Swarm {
    dir: PathBuf,
    torrent: PathBuf,
    script: PathBuf,
    go: PathBuf,
    nodes: usize,
    processes: Vec<Option<Process>>,
}

impl Swarm {
    /// A node for the file and one for each receiver, ready and waiting.
    pub(crate) fn start(dir: &Path, file: &Path, folders: &[PathBuf]) -> Result<Self> {
        let script = dir.join("swarm.py");
        std::fs::write(&script, include_str!("swarm.py"))?;
        let torrent = dir.join("torrent");
        let made = Command::new(PYTHON).arg(&script).arg("make").arg(file).arg(&torrent).output()?;
        ensure!(made.status.success(), "libtorrent: {}", String::from_utf8_lossy(&made.stderr));
        let nodes = folders.len() + 1;
        let go = dir.join("go");
        let mut swarm = Self { dir: dir.into(), torrent, script, go, nodes, processes: Vec::new() };
        let source = file.parent().unwrap_or(Path::new("/"));
        for node in 0..nodes {
            let folder = if node == 0 { source } else { &folders[node - 1] };
            swarm.processes.push(None);
            swarm.run(node, folder)?;
        }
        // Interpreters need a moment; it is not to be measured.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        Ok(swarm)
    }

    /// Lets all begin.
    pub(crate) fn go(&self) -> Result<()> {
        Ok(std::fs::write(&self.go, b"")?)
    }

    /// The file that is there once a receiver has everything.
    pub(crate) fn mark(dir: &Path, node: usize) -> PathBuf {
        dir.join(format!("whole-{node}"))
    }

    /// Starts a node, again after [`Self::kill`].
    pub(crate) fn run(&mut self, node: usize, folder: &Path) -> Result<()> {
        let address = |node: usize| -> Ipv4Addr { Lan::address(node) };
        let place: Place = Lan::place(node);
        let mut command = place.command(PYTHON);
        command.arg(&self.script).arg("serve").arg(&self.torrent).arg(folder);
        command.arg(format!("{}:{PORT}", address(node))).arg(&self.go).arg(Self::mark(&self.dir, node));
        command.args(
            (0..self.nodes).filter(|other| *other != node).map(|other| format!("{}:{PORT}", address(other))),
        );
        self.processes[node] = Some(Process::start(&format!("torrent-{node}"), &self.dir, &mut command)?);
        Ok(())
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, node: usize) {
        self.processes[node] = None;
    }
}
