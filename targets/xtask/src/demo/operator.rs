//! The operator of the demonstration: what a person would type, and what a console would ask.
//!
//! Owns the calls of `flotilla`'s command line and the requests to its HTTP API, and reads from the answers only
//! what the demonstration needs.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// How long one request may take. The service is on this machine.
const REQUEST: Duration = Duration::from_secs(10);

pub(crate) struct Operator {
    flotilla: PathBuf,
    /// The control service's data folder: its `api.json` says where it listens and holds the token.
    data: PathBuf,
    url: String,
    token: String,
    http: ureq::Agent,
}

/// A run as the API tells it.
pub(crate) struct Run {
    pub(crate) state: String,
    /// Once it has ended: `succeeded`, or what else came of it.
    outcome: Option<String>,
    /// Everything that went wrong, as `AGENT: what`.
    pub(crate) problems: Vec<String>,
    pub(crate) eta_seconds: Option<f64>,
    pub(crate) agents: Vec<RunAgent>,
}

pub(crate) struct RunAgent {
    pub(crate) source: bool,
    pub(crate) state: String,
    pub(crate) bytes_done: u64,
    /// Payload it sent, once it has ended and told.
    pub(crate) bytes_sent: Option<u64>,
}

impl Operator {
    /// `data` is the folder of a service that has said it is ready.
    pub(crate) fn new(flotilla: &Path, data: &Path) -> Result<Self> {
        let path = data.join("api.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let api: Value =
            serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        let text = |key: &str| {
            api[key].as_str().map(str::to_owned).with_context(|| format!("{} has no {key}", path.display()))
        };
        let http = ureq::Agent::config_builder().timeout_global(Some(REQUEST)).build().into();
        Ok(Self {
            flotilla: flotilla.to_owned(),
            data: data.to_owned(),
            url: text("url")?.trim_end_matches('/').to_owned(),
            token: text("token")?,
            http,
        })
    }

    /// Where the service listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The console's address with its token, as `flotilla serve` itself prints it.
    pub(crate) fn console(&self) -> String {
        format!("{}/#token={}", self.url, self.token)
    }

    /// The command line that talks to the service.
    pub(crate) fn program(&self) -> &Path {
        &self.flotilla
    }

    /// Writes the bootstrap file of an agent called `name`.
    pub(crate) fn create_token(&self, name: &str, storage: &Path, out: &Path) -> Result<()> {
        let tag = format!("AGENT_NAME={name}");
        let arguments: [&OsStr; 10] = [
            "token".as_ref(),
            "create".as_ref(),
            "--tag".as_ref(),
            tag.as_ref(),
            "--expires".as_ref(),
            "1h".as_ref(),
            "--storage-path".as_ref(),
            storage.as_ref(),
            "--out".as_ref(),
            out.as_ref(),
        ];
        self.command(arguments).map(drop)
    }

    pub(crate) fn create_group(&self, name: &str, agents: &[String]) -> Result<()> {
        self.command(["groups", "create", name])?;
        self.command(["groups", "add", name].into_iter().chain(agents.iter().map(String::as_str))).map(drop)
    }

    /// Creates and starts a distribution; the run's id.
    pub(crate) fn distribute(&self, source: &OsStr, destination: &str) -> Result<String> {
        let arguments: [&OsStr; 9] = [
            "jobs".as_ref(),
            "create".as_ref(),
            "distribution".as_ref(),
            "--name".as_ref(),
            "demo".as_ref(),
            "--source".as_ref(),
            source,
            "--destination".as_ref(),
            destination.as_ref(),
        ];
        let answer = self.ask(arguments)?;
        answer["run"].as_str().map(str::to_owned).with_context(|| format!("no run in {answer}"))
    }

    /// The names of the agents that are online.
    pub(crate) fn online(&self) -> Result<Vec<String>> {
        let answer = self.get("agents")?;
        let list = answer["agents"].as_array().context("no list of agents")?;
        let online = list.iter().filter(|a| a["state"] == "online");
        Ok(online.filter_map(|a| a["name"].as_str().map(str::to_owned)).collect())
    }

    pub(crate) fn run(&self, run: &str) -> Result<Run> {
        Run::parse(&self.get(&format!("runs/{run}"))?)
    }

    /// The run's history from the log: what a person reads, and how many events it has.
    pub(crate) fn history(&self, run: &str) -> Result<(String, u64)> {
        let text = self.command(["runs", "show", run, "--history"])?;
        let answer = self.ask(["runs", "show", run, "--history"])?;
        let events = answer["history"].as_array().context("no history")?.len() as u64;
        Ok((text, events))
    }

    fn get(&self, path: &str) -> Result<Value> {
        let url = format!("{}/api/v1/{path}", self.url);
        let request = self.http.get(&url).header("Authorization", format!("Bearer {}", self.token));
        let mut answer = request.call().with_context(|| format!("asking {url}"))?;
        answer.body_mut().read_json().with_context(|| format!("reading the answer of {url}"))
    }

    fn ask<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Result<Value> {
        let arguments: Vec<OsString> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let text = self.command(arguments.iter().map(OsString::as_os_str).chain(["--json".as_ref()]))?;
        serde_json::from_str(&text).with_context(|| format!("reading the answer {text:?}"))
    }

    fn command<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Result<String> {
        let mut command = Command::new(&self.flotilla);
        command.args(arguments).arg("--data").arg(&self.data).stdin(Stdio::null());
        let line = command.get_args().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
        let output = command.output().with_context(|| format!("running flotilla {line}"))?;
        if !output.status.success() {
            bail!("flotilla {line}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout).with_context(|| format!("reading the answer of flotilla {line}"))
    }
}

impl Run {
    fn parse(value: &Value) -> Result<Self> {
        let state = value["state"].as_str().context("a run without a state")?.to_owned();
        let agents = value["agents"].as_array().map(Vec::as_slice).unwrap_or_default();
        let agents = agents
            .iter()
            .map(|agent| RunAgent {
                source: agent["role"] == "source",
                state: agent["state"].as_str().unwrap_or_default().to_owned(),
                bytes_done: agent["bytes_done"].as_u64().unwrap_or(0),
                bytes_sent: agent["stats"]["bytes_sent"].as_u64(),
            })
            .collect();
        let problems = value["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
        let problems = problems
            .iter()
            .map(|problem| {
                let text = |key: &str| problem[key].as_str().unwrap_or("?");
                format!("{}: {} {:?} {}", text("agent"), text("class"), text("path"), text("detail"))
            })
            .collect();
        let outcome = value["outcome"].as_str().map(str::to_owned);
        Ok(Self { state, outcome, problems, eta_seconds: value["eta_seconds"].as_f64(), agents })
    }

    /// Whether nothing more will happen.
    pub(crate) fn ended(&self) -> bool {
        ["finished", "failed", "stopped"].contains(&self.state.as_str())
    }

    /// An error unless it came to its end. Entries that could not be carried are `problems`.
    pub(crate) fn finished(&self) -> Result<()> {
        let outcome = self.outcome.as_deref().unwrap_or("has no outcome").replace('_', " ");
        ensure!(self.state == "finished", "the run {} ({outcome}): {}", self.state, self.problems.join("; "));
        Ok(())
    }

    pub(crate) fn destinations(&self) -> impl Iterator<Item = &RunAgent> {
        self.agents.iter().filter(|agent| !agent.source)
    }

    /// Payload that the sources sent, once they told.
    pub(crate) fn source_bytes_sent(&self) -> Option<u64> {
        let mut sources = self.agents.iter().filter(|agent| agent.source).peekable();
        sources.peek()?;
        sources.map(|source| source.bytes_sent).sum()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_is_read_as_far_as_it_is_told() {
        let run = Run::parse(&json!({
            "id": "00", "state": "transferring", "files": 2, "bytes": 10, "eta_seconds": 1.5,
            "agents": [
                {"name": "source", "role": "source", "state": "done", "stats": {"bytes_sent": 7}},
                {"name": "agent-1", "role": "destination", "state": "transferring", "bytes_done": 4},
            ],
        }))
        .unwrap();
        assert!(!run.ended() && run.finished().is_err());
        assert_eq!((run.eta_seconds, run.source_bytes_sent()), (Some(1.5), Some(7)));
        assert_eq!(run.destinations().map(|a| a.bytes_done).collect::<Vec<_>>(), [4]);
        assert!(Run::parse(&json!({"agents": []})).is_err());
    }

    #[test]
    fn a_failed_run_tells_whose_fault_it_is() {
        let run = Run::parse(&json!({
            "state": "failed", "outcome": "failed",
            "agents": [{"name": "agent-1", "role": "destination", "state": "failed"}],
            "problems": [{"agent": "agent-1", "class": "disk_full", "path": "a", "detail": "make room"}],
        }))
        .unwrap();
        assert!(run.ended());
        assert_eq!(
            run.finished().unwrap_err().to_string(),
            "the run failed (failed): agent-1: disk_full \"a\" make room"
        );
        assert_eq!(run.source_bytes_sent(), None);
    }
}
