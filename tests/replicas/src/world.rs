//! Where it happens: a bridge in a network namespace of the trial's own, and behind it one namespace for each server and
//! each replica. Cutting one off takes its end of the cable down; nothing tells the others.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use event_log_nats::testing::find_server;
use serde_json::Value;
use tempfile::TempDir;

/// Set for the process that has its own namespaces.
const INSIDE: &str = "FLOTILLA_TRIAL_INSIDE";

/// NATS servers, and replicas.
pub const EACH: usize = 3;

/// Addresses that agents come from: a gateway takes so many new connections from one only.
pub const SOURCES: u8 = 8;

/// How long a process may take until it is ready.
const START: Duration = Duration::from_secs(60);

/// Whether this process has namespaces of its own.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs this program again with the same arguments, in namespaces of its own; everything in them ends with it.
///
/// # Errors
/// If there is no `unshare`, or it may not.
pub fn go_inside() -> Result<ExitCode> {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    let status = command.status().context("unshare")?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(2)).unwrap_or(2)))
}

/// Whether namespaces can be had here.
pub fn is_possible() -> bool {
    let tried = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "ip",
            "link",
            "add",
            "name",
            "probe",
            "type",
            "bridge",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

fn ip(line: &str) -> Result<()> {
    let output = Command::new("ip").args(line.split_whitespace()).output().context("ip")?;
    ensure!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A NATS server.
    Server,
    /// A control service.
    Replica,
}

/// One process in a namespace of its own.
#[derive(Debug)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Which of its kind.
    pub nth: usize,
    name: String,
    dir: PathBuf,
    child: Option<Child>,
}

impl Node {
    fn new(kind: Kind, nth: usize, root: &Path) -> Result<Self> {
        let name = format!("{}{nth}", if kind == Kind::Server { "n" } else { "r" });
        let dir = root.join(&name);
        fs::create_dir_all(&dir)?;
        let address = address(kind, nth);
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add v{name} type veth peer name eth0 netns {name}"))?;
        ip(&format!("link set v{name} master hub up"))?;
        ip(&format!("-n {name} addr add {address}/24 dev eth0"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        Ok(Self { kind, nth, name, dir, child: None })
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.dir
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        address(self.kind, self.nth)
    }

    fn start(&mut self, program: &Path, args: &[String], envs: &[(&str, String)]) -> Result<()> {
        self.kill();
        let file =
            |end: &str| File::options().create(true).append(true).open(self.dir.join(format!("log.{end}")));
        File::create(self.dir.join("log.out"))?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program).args(args);
        command.envs(envs.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(file("out")?).stderr(file("err")?).process_group(0);
        self.child = Some(command.spawn().with_context(|| format!("starting {}", self.name))?);
        Ok(())
    }

    /// `kill -9`; nothing if it does not run.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; it is reaped all the same.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Whether its process has ended by itself.
    pub fn has_died(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// Takes its cable out (`false`), or puts it in again.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn connect(&self, connected: bool) -> Result<()> {
        ip(&format!("link set v{} {}", self.name, if connected { "up" } else { "down" }))
    }

    /// Takes what it sends to another node away (`apart`), or not any more; nothing tells either of them. Whoever else
    /// they speak to they reach as before.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn part_from(&self, other: IpAddr, apart: bool) -> Result<()> {
        // To a card that is in no machine: the bridge asks everybody, and nobody takes it.
        let nowhere = if apart { "replace" } else { "del" };
        let card = if apart { " lladdr 02:00:00:00:00:01 nud permanent" } else { "" };
        ip(&format!("-n {} neigh {nowhere} {other} dev eth0{card}", self.name))
    }

    /// The end of what it said.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(self.dir.join("log.err")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

fn address(kind: Kind, nth: usize) -> IpAddr {
    let last = if kind == Kind::Server { 11 } else { 21 } + nth as u8;
    Ipv4Addr::new(10, 99, 0, last).into()
}

/// All of it.
#[derive(Debug)]
pub struct World {
    /// The servers.
    pub servers: Vec<Node>,
    /// The control services.
    pub replicas: Vec<Node>,
    /// The API's token, the same everywhere.
    pub token: String,
    nats: PathBuf,
    flotilla: PathBuf,
    dir: TempDir,
}

impl World {
    /// Servers and replicas, up and ready.
    ///
    /// # Errors
    /// If something does not start.
    pub fn new() -> Result<Self> {
        let nats = find_server().context("there is no nats-server: set FLOTILLA_NATS_SERVER")?;
        let flotilla = e2e::binary("flotilla");
        let dir = tempfile::Builder::new().prefix("flotilla-trial-").tempdir()?;
        fs::create_dir_all("/run/netns")?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run/netns"]).status()?;
        ensure!(mounted.success(), "no place for the names of namespaces");
        ip("link set lo up")?;
        ip("link add hub type bridge")?;
        ip("addr add 10.99.0.1/24 dev hub")?;
        for n in 0..SOURCES {
            ip(&format!("addr add 10.99.0.{}/24 dev hub", 100 + n))?;
        }
        ip("link set hub up")?;
        let nodes = |kind| (0..EACH).map(|nth| Node::new(kind, nth, dir.path())).collect::<Result<Vec<_>>>();
        let (servers, replicas) = (nodes(Kind::Server)?, nodes(Kind::Replica)?);
        let mut world = Self { servers, replicas, token: String::new(), nats, flotilla, dir };
        for nth in 0..EACH {
            world.start_server(nth)?;
        }
        world.start_replica(0, None)?;
        let data = world.data(0);
        world.token = fs::read_to_string(data.join("api-token"))?.trim().to_owned();
        let bundle = world.dir.path().join("bundle");
        let mut invite = Command::new(&world.flotilla);
        invite.args(["replica", "invite", "--json", "--data"]).arg(&data).arg("--out").arg(&bundle);
        let answer = invite.output()?;
        ensure!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
        let answer: Value = serde_json::from_slice(&answer.stdout)?;
        let code = answer["code"].as_str().context("a code")?.to_owned();
        for nth in 1..EACH {
            world.start_replica(nth, Some((&bundle, &code)))?;
        }
        Ok(world)
    }

    /// One of the nodes.
    pub fn node(&mut self, kind: Kind, nth: usize) -> &mut Node {
        match kind {
            Kind::Server => &mut self.servers[nth],
            Kind::Replica => &mut self.replicas[nth],
        }
    }

    fn data(&self, nth: usize) -> PathBuf {
        self.replicas[nth].dir.join("data")
    }

    /// What clients of the NATS servers connect to.
    pub fn nats_urls(&self) -> String {
        let urls: Vec<String> =
            self.servers.iter().map(|server| format!("nats://{}:4222", server.address())).collect();
        urls.join(",")
    }

    /// Where a replica's API is.
    pub fn api(&self, nth: usize) -> String {
        format!("http://{}:7700", self.replicas[nth].address())
    }

    /// `HOST:PORT` of a replica's gateway.
    pub fn gateway(&self, nth: usize) -> String {
        format!("{}:7701", self.replicas[nth].address())
    }

    /// Cuts every way between one node and the servers, itself aside, or mends them. Its ways to others stay: agents
    /// reach a replica, and clients a server.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn part_from_servers(&self, kind: Kind, nth: usize, apart: bool) -> Result<()> {
        let node = if kind == Kind::Server { &self.servers[nth] } else { &self.replicas[nth] };
        for server in self.servers.iter().filter(|server| server.address() != node.address()) {
            node.part_from(server.address(), apart)?;
            server.part_from(node.address(), apart)?;
        }
        Ok(())
    }

    /// Starts a server; it joins the others by itself.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_server(&mut self, nth: usize) -> Result<()> {
        let routes: Vec<String> =
            self.servers.iter().map(|server| format!("\"nats-route://{}:6222\"", server.address())).collect();
        let server = &mut self.servers[nth];
        let (address, dir) = (server.address(), &server.dir);
        let config = format!(
            "listen: \"{address}:4222\"\nserver_name: \"trial-{nth}\"\nlog_file: {:?}\n\
             jetstream {{\n  store_dir: {:?}\n  sync_interval: always\n  max_file_store: 4GB\n  max_memory_store: 64MB\n}}\n\
             cluster {{\n  name: \"trial\"\n  listen: \"{address}:6222\"\n  routes: [{}]\n  ping_interval: \"2s\"\n}}\n\
             ping_interval: \"5s\"\n",
            dir.join("nats.log"),
            dir.join("jetstream"),
            routes.join(", "),
        );
        let path = dir.join("nats.conf");
        fs::write(&path, config)?;
        let args = ["--config".to_owned(), path.to_string_lossy().into_owned()];
        let program = self.nats.clone();
        server.start(&program, &args, &[])
    }

    /// Starts a replica and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn start_replica(&mut self, nth: usize, join: Option<(&Path, &str)>) -> Result<()> {
        let (data, nats, program) = (self.data(nth), self.nats_urls(), self.flotilla.clone());
        let replica = &mut self.replicas[nth];
        let address = replica.address();
        let mut args: Vec<String> = ["serve", "--json", "--http-plaintext", "--nats-replicas", "3", "--data"]
            .map(str::to_owned)
            .into();
        args.extend([data.to_string_lossy().into_owned(), "--nats".into(), nats]);
        args.extend([
            "--http".into(),
            format!("{address}:7700"),
            "--gateway".into(),
            format!("{address}:7701"),
        ]);
        let mut envs = vec![("FLOTILLA_LOG", "info".to_owned())];
        if let Some((bundle, code)) = join {
            args.extend(["--join".into(), bundle.to_string_lossy().into_owned()]);
            envs.push(("FLOTILLA_JOIN_CODE", code.to_owned()));
        }
        replica.start(&program, &args, &envs)?;
        let end = Instant::now() + START;
        loop {
            let text = fs::read_to_string(replica.dir.join("log.out"))?;
            if text.contains("\"ready\":true") || text.contains("\"ready\": true") {
                return Ok(());
            }
            if replica.has_died() || Instant::now() > end {
                bail!("replica {nth} does not get ready:\n{}", replica.last_words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Everything that was logged is kept, at this place, instead of being removed.
    pub fn keep(&mut self) -> &Path {
        self.dir.disable_cleanup(true);
        self.dir.path()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for node in self.replicas.iter_mut().chain(&mut self.servers) {
            node.kill();
        }
    }
}
