//! The processes of the demonstration: message server, tracker, control service, agents.
//!
//! Owns in which order they start, with which arguments, and that all of them stop together. Each has a folder
//! and a log of its own. What they are told to do is `operator`'s and `mod`'s.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::demo::children::{Program, stop_all};
use crate::demo::folder::Folder;
use crate::demo::operator::Operator;
use crate::demo::stop::Stop;

/// How long all agents together may take to be online.
const ONLINE: Duration = Duration::from_secs(90);
/// How long the message server may take to say where it listens.
const NATS: Duration = Duration::from_secs(30);

/// Where the programs are.
pub(crate) struct Binaries {
    pub(crate) flotilla: PathBuf,
    pub(crate) agent: PathBuf,
    pub(crate) tracker: PathBuf,
}

/// Where events are kept.
pub(crate) enum Log {
    /// In the control service's own folder.
    Embedded,
    /// In a message server of somebody else's.
    Nats(String),
    /// In a message server that we start.
    OwnNats(PathBuf),
}

/// Everything that runs; dropped, everything stops.
pub(crate) struct Fleet {
    /// In the order they were started.
    programs: Vec<Program>,
    logs: PathBuf,
    pub(crate) operator: Operator,
}

impl Fleet {
    /// Starts everything but the agents.
    pub(crate) fn start(binaries: &Binaries, log: &Log, folder: &Folder, stop: &Stop) -> Result<Self> {
        let logs = folder.make("logs")?;
        // Stopped by its own destructor should anything here fail.
        let mut programs = Vec::new();
        let nats = match log {
            Log::Embedded => None,
            Log::Nats(url) => Some(url.clone()),
            Log::OwnNats(server) => {
                let (program, url) = start_nats(server, &folder.make("nats")?, &logs, stop)?;
                programs.push(program);
                Some(url)
            }
        };
        let mut tracker =
            Program::start("tracker", &binaries.tracker, ["--listen", "127.0.0.1:0", "--json"], &logs)?;
        let tracker_ready = tracker.ready(stop)?;
        programs.push(tracker);
        let tracker_address = address(&tracker_ready, &["listen", "udp", "address"])?;

        let data = folder.make("control")?;
        let mut arguments: Vec<OsString> =
            ["serve", "--json", "--http", "127.0.0.1:0"].map(Into::into).into();
        arguments.extend(["--gateway", "127.0.0.1:0", "--tracker", &tracker_address].map(Into::into));
        arguments.extend(["--data".into(), data.clone().into()]);
        if let Some(url) = nats {
            arguments.extend(["--nats".into(), url.into()]);
        }
        let mut control = Program::start("control", &binaries.flotilla, arguments, &logs)?;
        control.ready(stop)?;
        programs.push(control);
        let operator = Operator::new(&binaries.flotilla, &data)?;
        Ok(Self { programs, logs, operator })
    }

    /// Starts and enrols an agent with its folder `NAME` and waits for nothing yet.
    pub(crate) fn add_agent(&mut self, binaries: &Binaries, name: &str, folder: &Folder) -> Result<()> {
        let home = folder.make(name)?;
        let storage = folder.make(&format!("{name}/{STORAGE}"))?;
        let bootstrap = home.join("bootstrap.json");
        self.operator.create_token(name, &storage, &bootstrap)?;
        let state = home.join("state");
        let arguments: [&OsStr; 9] = [
            "run".as_ref(),
            "--bootstrap".as_ref(),
            bootstrap.as_ref(),
            "--data".as_ref(),
            state.as_ref(),
            "--listen".as_ref(),
            "127.0.0.1:0".as_ref(),
            "--name".as_ref(),
            name.as_ref(),
        ];
        self.programs.push(Program::start(name, &binaries.agent, arguments, &self.logs)?);
        Ok(())
    }

    /// Waits until all of `names` are online.
    pub(crate) fn online(&mut self, names: &[String], stop: &Stop) -> Result<()> {
        stop.until("the agents to be online", ONLINE, || {
            self.alive()?;
            let online = self.operator.online()?;
            Ok(names.iter().all(|name| online.contains(name)).then_some(()))
        })
    }

    /// The ends of all logs.
    pub(crate) fn last_words(&self) -> String {
        self.programs.iter().map(Program::last_words).collect::<Vec<_>>().join("\n")
    }

    /// An error if any program has ended by itself.
    pub(crate) fn alive(&mut self) -> Result<()> {
        self.programs.iter_mut().try_for_each(Program::alive)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        stop_all(&mut self.programs);
    }
}

/// Where an agent's copies land, below its folder.
pub(crate) const STORAGE: &str = "files";

/// Starts a message server that confirms only what is on the disk; it and the URL where it listens.
fn start_nats(server: &Path, folder: &Path, logs: &Path, stop: &Stop) -> Result<(Program, String)> {
    let quoted = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    let configuration = format!(
        "listen: \"127.0.0.1:-1\"\nports_file_dir: {}\njetstream {{ store_dir: {}, sync_interval: always }}\n",
        quoted(folder),
        quoted(&folder.join("data")),
    );
    let path = folder.join("nats.conf");
    fs::write(&path, configuration).with_context(|| format!("writing {}", path.display()))?;
    let mut program = Program::start("nats", server, [OsStr::new("-c"), path.as_os_str()], logs)?;
    let url = stop.until("the message server to listen", NATS, || {
        program.alive()?;
        // It writes a file `…PID.ports` once it listens.
        let ports = fs::read_dir(folder)?.filter_map(Result::ok).map(|entry| entry.path());
        let Some(ports) = ports.into_iter().find(|path| path.extension().is_some_and(|e| e == "ports"))
        else {
            return Ok(None);
        };
        // Seen half-written: look again.
        let ports: Value = serde_json::from_slice(&fs::read(ports)?).unwrap_or_default();
        Ok(ports["nats"][0].as_str().map(str::to_owned))
    })?;
    Ok((program, url))
}

/// The first of `keys` that a ready line has.
fn address(ready: &Value, keys: &[&str]) -> Result<String> {
    keys.iter()
        .find_map(|key| ready[*key].as_str().map(str::to_owned))
        .with_context(|| format!("the ready line {ready} has none of {keys:?}"))
}
