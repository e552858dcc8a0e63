//! A fleet: control service, tracker, agents, each a real process with its own folder.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Process, program, run, wait_until};

/// What a world has besides its control service.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Log on this NATS server instead of the embedded one.
    pub nats: Option<String>,
    /// Start a tracker and tell the service of it.
    pub tracker: bool,
    /// Address of this end, where gateway, tracker and agents listen; loopback if none.
    pub host: Option<IpAddr>,
    /// Namespace of the network (`ip netns`) in which all processes are; that of the test if none.
    pub namespace: Option<String>,
    /// What starts the control service instead of the one built for tests; a tracker lies beside it.
    pub service: Vec<OsString>,
}

/// A fleet in a folder that goes when the test has passed.
pub struct World {
    dir: TempDir,
    /// The control service.
    pub control: Control,
    /// The tracker, if one was asked for.
    pub tracker: Option<Process>,
    host: IpAddr,
    namespace: Option<String>,
}

/// The control service's process and how to reach it.
pub struct Control {
    /// The process.
    pub process: Process,
    dir: PathBuf,
    args: Vec<String>,
    http: String,
    gateway: String,
    namespace: Option<String>,
    launcher: Vec<OsString>,
}

impl Control {
    fn start(
        dir: &Path,
        launcher: Vec<OsString>,
        namespace: Option<&str>,
        args: Vec<String>,
        http: &str,
        gateway: &str,
    ) -> Result<Self> {
        let data = dir.join("control");
        let mut command = launched(&launcher, "flotilla", namespace);
        command.arg("serve").arg("--data").arg(&data).args(["--http", http, "--gateway", gateway]);
        command.arg("--json").args(&args).env("FLOTILLA_LOG", "info");
        let mut process = Process::start("control", dir, &mut command)?;
        let ready = process
            .wait_for_line(|line| serde_json::from_str::<Value>(line).ok().filter(|v| v["ready"] == true))?;
        let address = |key: &str| ready[key].as_str().map(str::to_owned).context("an address");
        let (http, gateway) = (address("http")?, address("gateway")?);
        let namespace = namespace.map(str::to_owned);
        Ok(Self { process, dir: dir.into(), args, http, gateway, namespace, launcher })
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.dir.join("control")
    }

    /// Starts the service again at its old addresses.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill();
        let http = self.http.trim_start_matches("http://").to_owned();
        let (launcher, args) = (self.launcher.clone(), self.args.clone());
        *self = Self::start(&self.dir, launcher, self.namespace.as_deref(), args, &http, &self.gateway)?;
        Ok(())
    }
}

/// An agent's process.
pub struct Agent {
    /// The process.
    pub process: Process,
    /// Its name in the fleet.
    pub name: String,
    /// Its data folder.
    pub data: PathBuf,
    dir: PathBuf,
    bootstrap: PathBuf,
    args: Vec<String>,
    namespace: Option<String>,
    launcher: Vec<OsString>,
}

impl Agent {
    /// Starts it again, as after a power cut.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill();
        let command = launched(&self.launcher, "flotilla-agent", self.namespace.as_deref());
        self.process = start_agent(&self.dir, command, &self.name, &self.bootstrap, &self.data, &self.args)?;
        Ok(())
    }
}

/// A program as it is built for tests, or what `launcher` says is one.
fn launched(launcher: &[OsString], name: &str, namespace: Option<&str>) -> Command {
    let Some((first, more)) = launcher.split_first() else { return program(name, namespace) };
    let mut command = Command::new(first);
    command.args(more);
    command
}

fn start_agent(
    dir: &Path,
    mut command: Command,
    name: &str,
    bootstrap: &Path,
    data: &Path,
    args: &[String],
) -> Result<Process> {
    command.arg("run").arg("--bootstrap").arg(bootstrap).arg("--data").arg(data);
    command.args(args).env("FLOTILLA_LOG", "info");
    Process::start(name, dir, &mut command)
}

/// A run as the API shows it.
pub struct Run(
    /// The object of `runs show`.
    pub Value,
);

impl Run {
    /// One agent's part.
    pub fn agent(&self, name: &str) -> Result<&Value> {
        let agents = self.0["agents"].as_array().context("agents")?;
        agents.iter().find(|a| a["name"] == name).with_context(|| format!("{name} in {}", self.0))
    }

    /// A figure of one agent's transfer statistics.
    pub fn stat(&self, name: &str, figure: &str) -> Result<u64> {
        let agent = self.agent(name)?;
        agent["stats"][figure].as_u64().with_context(|| format!("{figure} in {agent}"))
    }

    /// Whether the run ended.
    pub fn ended(&self) -> bool {
        matches!(self.0["state"].as_str(), Some("finished" | "failed" | "stopped"))
    }
}

impl World {
    /// A world with a control service and, if asked for, a tracker.
    pub fn new(options: &Options) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("flotilla-e2e-").tempdir()?;
        let mut args = Vec::new();
        let mut tracker = None;
        let host = options.host.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let any = SocketAddr::new(host, 0).to_string();
        let namespace = options.namespace.clone();
        if options.tracker {
            let (process, address) = start_tracker(dir.path(), &options.service, namespace.as_deref(), &any)?;
            args.extend(["--tracker".to_owned(), address.to_string()]);
            tracker = Some(process);
        }
        if let Some(url) = &options.nats {
            args.extend(["--nats".to_owned(), url.clone()]);
        }
        let launcher = options.service.clone();
        let control = Control::start(dir.path(), launcher, namespace.as_deref(), args, "127.0.0.1:0", &any)?;
        Ok(Self { dir, control, tracker, host, namespace })
    }

    /// The world's folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Runs an operator's command with `--json` and reads its answer.
    pub fn flotilla(&self, args: &[&str]) -> Result<Value> {
        let lines = self.flotilla_lines(args)?;
        lines.into_iter().next_back().with_context(|| format!("an answer to {args:?}"))
    }

    /// The same for a command that answers in JSON lines.
    pub fn flotilla_lines(&self, args: &[&str]) -> Result<Vec<Value>> {
        let data = self.path().join("control");
        let mut all: Vec<&str> = args.to_vec();
        all.extend(["--json", "--data", data.to_str().context("UTF-8")?]);
        let text = String::from_utf8(run(program("flotilla", self.namespace.as_deref()), all)?.stdout)?;
        text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// Writes a bootstrap file whose token names the agent.
    pub fn token(&self, name: &str, options: &[&str]) -> Result<PathBuf> {
        let file = self.path().join(format!("{name}.bootstrap"));
        let tag = format!("AGENT_NAME={name}");
        let mut args = vec!["token", "create", "--tag", &tag, "--out", file.to_str().context("UTF-8")?];
        args.extend(options);
        self.flotilla(&args)?;
        Ok(file)
    }

    /// Enrols a new agent and waits until it is online.
    pub fn agent(&self, name: &str, args: &[&str]) -> Result<Agent> {
        self.agent_in(name, &self.path().join(name), args)
    }

    /// The same with its data elsewhere.
    pub fn agent_in(&self, name: &str, data: &Path, args: &[&str]) -> Result<Agent> {
        self.enrol(name, data, self.host, args, &[])
    }

    /// The same with a program of its own: what is put before `run`, such as an emulator, its options and an agent.
    pub fn agent_by(&self, launcher: &[OsString], name: &str) -> Result<Agent> {
        ensure!(self.namespace.is_none(), "a launcher is started in the namespace of the test");
        self.enrol(name, &self.path().join(name), self.host, &[], launcher)
    }

    /// The same with an address of its own.
    pub fn agent_at(&self, name: &str, host: IpAddr) -> Result<Agent> {
        self.enrol(name, &self.path().join(name), host, &[], &[])
    }

    fn enrol(
        &self,
        name: &str,
        data: &Path,
        host: IpAddr,
        args: &[&str],
        launcher: &[OsString],
    ) -> Result<Agent> {
        let bootstrap = self.token(name, &[])?;
        let data = data.to_path_buf();
        let listen = ["--listen".to_owned(), SocketAddr::new(host, 0).to_string()];
        let args: Vec<String> = listen.into_iter().chain(args.iter().map(|&a| a.to_owned())).collect();
        let namespace = self.namespace.clone();
        let command = launched(launcher, "flotilla-agent", namespace.as_deref());
        let process = start_agent(self.path(), command, name, &bootstrap, &data, &args)?;
        let (dir, launcher) = (self.path().to_path_buf(), launcher.to_vec());
        let agent = Agent { process, name: name.into(), data, dir, bootstrap, args, namespace, launcher };
        self.wait_online(&[name])?;
        Ok(agent)
    }

    /// Ids of the agents with this name: one, as long as nobody was enrolled twice.
    pub fn ids(&self, name: &str) -> Result<Vec<String>> {
        let answer = self.flotilla(&["agents", "list"])?;
        let agents = answer["agents"].as_array().context("agents")?.iter().filter(|a| a["name"] == name);
        Ok(agents.filter_map(|a| Some(a["id"].as_str()?.to_owned())).collect())
    }

    /// Waits until all these agents are online.
    pub fn wait_online(&self, names: &[&str]) -> Result<()> {
        wait_until(&format!("{names:?} to be online"), Duration::from_secs(60), || {
            let answer = self.flotilla(&["agents", "list"])?;
            let agents = answer["agents"].as_array().context("agents")?;
            let online = |name: &&str| {
                agents.iter().any(|a| a["name"].as_str() == Some(name) && a["state"] == "online")
            };
            Ok(names.iter().all(online).then_some(()))
        })
    }

    /// Creates and starts a distribution; gives the run's id.
    pub fn distribute(&self, source: (&str, &Path), destinations: &[(&str, &Path)]) -> Result<String> {
        let place = |(agent, path): (&str, &Path)| format!("{agent}:{}", path.display());
        let (source, name) = (place(source), format!("job-{}", destinations.len()));
        let destinations: Vec<String> = destinations.iter().map(|&d| place(d)).collect();
        let mut args = vec!["jobs", "create", "distribution", "--name", &name, "--source", &source];
        for destination in &destinations {
            args.extend(["--destination", destination]);
        }
        let answer = self.flotilla(&args)?;
        Ok(answer["run"].as_str().with_context(|| format!("a run in {answer}"))?.to_owned())
    }

    /// The run as it stands.
    pub fn run(&self, id: &str) -> Result<Run> {
        Ok(Run(self.flotilla(&["runs", "show", id])?))
    }

    /// Waits until `enough` is true of the run.
    pub fn wait_run(&self, id: &str, limit: Duration, enough: impl Fn(&Run) -> bool) -> Result<Run> {
        let mut last = Value::Null;
        let found = wait_until("the run", limit, || {
            let run = self.run(id)?;
            last = run.0.clone();
            Ok(enough(&run).then_some(run))
        });
        found.with_context(|| format!("the run stands at {last:#}"))
    }

    /// Waits until the run has ended well.
    pub fn wait_success(&self, id: &str, limit: Duration) -> Result<Run> {
        let run = self.wait_run(id, limit, Run::ended)?;
        ensure!(run.0["outcome"] == "succeeded", "{:#}", run.0);
        Ok(run)
    }

    /// Wants the live state to equal one folded anew from the log's first record.
    pub fn check_rebuild(&self) -> Result<()> {
        let check = self.flotilla(&["log", "check"])?;
        ensure!(check["equal"] == true && check["position"].as_u64() > Some(1), "{check}");
        Ok(())
    }

    /// Waits until what `flotilla audit witnesses` says is enough.
    pub fn wait_witnesses(&self, what: &str, enough: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let found = wait_until(what, Duration::from_secs(60), || {
            last = self.flotilla(&["audit", "witnesses"])?;
            Ok(enough(&last).then(|| last.clone()))
        });
        found.with_context(|| format!("the witnesses stand at {last:#}"))
    }

    /// What an agent says of itself, asked on its own machine.
    pub fn status(&self, agent: &Agent) -> Result<Value> {
        let data = agent.data.to_str().context("UTF-8")?;
        let output = run(program("flotilla-agent", None), ["status", "--data", data, "--json"])?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

fn start_tracker(
    dir: &Path,
    service: &[OsString],
    namespace: Option<&str>,
    listen: &str,
) -> Result<(Process, SocketAddr)> {
    let mut launcher = service.to_vec();
    if let Some(program) = launcher.last_mut() {
        *program = Path::new(program).with_file_name("flotilla-tracker").into();
    }
    let mut command = launched(&launcher, "flotilla-tracker", namespace);
    command.args(["--listen", listen, "--json"]);
    let mut process = Process::start("tracker", dir, &mut command)?;
    let address = process.wait_for_line(|line| {
        let ready: Value = serde_json::from_str(line).ok()?;
        ready["listen"].as_str()?.parse().ok()
    })?;
    Ok((process, address))
}

impl World {
    /// Leaves the folder where it is, with all logs, when the world goes.
    pub fn keep(&mut self) {
        self.dir.disable_cleanup(true);
        eprintln!("the world is left at {}", self.dir.path().display());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep();
        }
    }
}
