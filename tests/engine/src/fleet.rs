//! A control service and agents, each a real process in its place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::net::Place;
use crate::process::Process;

/// How long agents may take until the control service knows them.
const ONLINE: Duration = Duration::from_secs(60);

/// How often a run is asked about where a hundredth of a second does not matter.
const ASK: Duration = Duration::from_millis(100);

/// Port of every agent's µTP2 socket; 0 where they share an address.
const PORT: u16 = 7741;

/// A control service and its agents.
pub(crate) struct Fleet {
    dir: PathBuf,
    place: Place,
    address: String,
    _control: Process,
    /// In the order they came.
    pub(crate) agents: Vec<Agent>,
}

/// An agent, running or not.
pub(crate) struct Agent {
    /// Its name in the fleet.
    pub(crate) name: String,
    place: Place,
    address: String,
    dir: PathBuf,
    process: Option<Process>,
}

impl Agent {
    /// Starts it, again after [`Self::kill`].
    pub(crate) fn start(&mut self) -> Result<()> {
        self.kill();
        let port = if self.address.starts_with("127.") { 0 } else { PORT };
        let mut command = self.place.command(e2e::binary("flotilla-agent"));
        command.arg("run").arg("--bootstrap").arg(self.dir.join(format!("{}.bootstrap", self.name)));
        command.arg("--data").arg(self.dir.join(&self.name));
        command
            .args(["--listen", &format!("{}:{port}", self.address)])
            .env("FLOTILLA_LOG", "info")
            .env("NO_COLOR", "1");
        self.process = Some(Process::start(&self.name, &self.dir, &mut command)?);
        Ok(())
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Its process.
    ///
    /// # Errors
    /// If it does not run.
    pub(crate) fn process(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("{} does not run", self.name))
    }

    /// What it says of itself.
    pub(crate) fn status(&self) -> Result<Value> {
        let mut command = self.place.command(e2e::binary("flotilla-agent"));
        command.args(["status", "--json", "--data"]).arg(self.dir.join(&self.name));
        answer(&mut command)
    }

    /// How often it has come to this state of a run, in all its lives.
    pub(crate) fn times(&self, state: &str) -> usize {
        let sign = format!("state=\"{state}\"");
        let errors = self.process.as_ref().map(Process::errors).unwrap_or_default();
        errors.lines().filter(|line| line.contains(&sign)).count()
    }
}

impl Fleet {
    /// A control service at `place`, reached there from anywhere.
    pub(crate) fn start(dir: &Path, place: Place, address: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut command = place.command(e2e::binary("flotilla"));
        command.args([
            "serve",
            "--json",
            "--http",
            "127.0.0.1:7700",
            "--gateway",
            &format!("{address}:7701"),
        ]);
        command.arg("--data").arg(dir.join("control")).env("FLOTILLA_LOG", "info");
        let mut control = Process::start("control", dir, &mut command)?;
        control.wait_for_line(|line| {
            serde_json::from_str::<Value>(line).ok().filter(|value| value["ready"] == true)
        })?;
        Ok(Self { dir: dir.into(), place, address: address.into(), _control: control, agents: Vec::new() })
    }

    /// An operator's command.
    pub(crate) fn flotilla(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.place.command(e2e::binary("flotilla"));
        command.args(args).args(["--json", "--data"]).arg(self.dir.join("control"));
        answer(&mut command)
    }

    /// Enrols agents, the same number as places, and waits until all are online.
    pub(crate) fn enrol(&mut self, places: Vec<(String, Place, String)>) -> Result<()> {
        for (name, place, address) in places {
            let file = self.dir.join(format!("{name}.bootstrap"));
            let (tag, file) = (format!("AGENT_NAME={name}"), file.to_str().context("UTF-8")?.to_owned());
            self.flotilla(&["token", "create", "--tag", &tag, "--out", &file])?;
            let mut agent = Agent { name, place, address, dir: self.dir.clone(), process: None };
            agent.start()?;
            self.agents.push(agent);
        }
        let end = Instant::now() + ONLINE;
        loop {
            let answer = self.flotilla(&["agents", "list"])?;
            let agents = answer["agents"].as_array().context("agents")?;
            if agents.iter().filter(|agent| agent["state"] == "online").count() == self.agents.len() {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "agents do not come online at {}: {answer}\n{}",
                self.address,
                self.agents[0].process()?.last_words()
            );
            std::thread::sleep(ASK);
        }
    }

    /// Makes a job and starts it: from a place of the first agent to one of each of the others.
    pub(crate) fn distribute(&self, name: &str, from: &Path, to: &[PathBuf]) -> Result<String> {
        let (first, others) = self.agents.split_first().context("an agent")?;
        let mut args: Vec<String> =
            ["jobs", "create", "distribution", "--name", name].map(str::to_owned).into();
        args.extend(["--source".to_owned(), format!("{}:{}", first.name, from.display())]);
        for (agent, to) in others.iter().zip(to) {
            args.extend(["--destination".to_owned(), format!("{}:{}", agent.name, to.display())]);
        }
        let answer = self.flotilla(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(answer["run"].as_str().with_context(|| format!("a run in {answer}"))?.to_owned())
    }

    /// Makes a job that keeps one folder the same, one place for each agent; gives its run.
    pub(crate) fn synchronize(&self, name: &str, places: &[PathBuf]) -> Result<String> {
        let mut args: Vec<String> =
            ["jobs", "create", "synchronization", "--name", name].map(str::to_owned).into();
        for (agent, place) in self.agents.iter().zip(places) {
            args.extend(["--member".to_owned(), format!("{}:{}", agent.name, place.display())]);
        }
        let answer = self.flotilla(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(answer["run"].as_str().with_context(|| format!("a run in {answer}"))?.to_owned())
    }

    /// Starts another run of a job.
    pub(crate) fn start_job(&self, name: &str) -> Result<String> {
        let answer = self.flotilla(&["jobs", "start", name])?;
        Ok(answer["run"].as_str().with_context(|| format!("a run in {answer}"))?.to_owned())
    }

    /// Waits until a run has ended well; gives what is told of it.
    pub(crate) fn wait(&self, run: &str, limit: Duration) -> Result<Value> {
        let end = Instant::now() + limit;
        loop {
            let shown = self.flotilla(&["runs", "show", run])?;
            if matches!(shown["state"].as_str(), Some("finished" | "failed" | "stopped")) {
                ensure!(shown["outcome"] == "succeeded", "the run did not succeed: {shown:#}");
                return Ok(shown);
            }
            ensure!(Instant::now() < end, "the run does not end within {limit:?}: {shown:#}");
            std::thread::sleep(ASK);
        }
    }
}

/// What a command answers: JSON, on its last line.
fn answer(command: &mut Command) -> Result<Value> {
    let output = command.stdin(Stdio::null()).output()?;
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {text}{errors}");
    let last = text.lines().last().with_context(|| format!("an answer to {command:?}"))?;
    Ok(serde_json::from_str(last)?)
}
