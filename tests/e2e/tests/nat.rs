//! Agents behind NATs, each site in network namespaces of its own: through the NATs where they let it, by a relay where
//! they do not, and from the relay to the direct way once there is one.
//!
//! Needs root, `ip` and `nft`; says so by name where they are missing. Some seconds each by nature: a relay is asked
//! after 10 s only, and a direct way looked for after another 20 s.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Process, Tree, binary, differences, wait_until};
use serde_json::Value;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);

/// Control service and tracker.
const SERVICES: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The relay.
const RELAY: &str = "198.51.100.6:4433";

/// How a NAT chooses the port it shows.
#[derive(Clone, Copy, PartialEq)]
enum Nat {
    /// The same to everybody.
    Cone,
    /// Another one to each.
    Symmetric,
}

/// Whether namespaces and NATs can be had.
fn is_possible() -> bool {
    let works = |program: &str, args: &[&str]| {
        Command::new(program).args(args).output().is_ok_and(|o| o.status.success())
    };
    let probe = format!("fl{}p", std::process::id());
    let possible = rustix::process::geteuid().is_root()
        && works("nft", &["--version"])
        && works("ip", &["netns", "add", &probe]);
    let _ = Command::new("ip").args(["netns", "del", &probe]).output();
    possible
}

fn sh(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| program.to_owned())?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program} {}: {error}", args.join(" "));
    Ok(())
}

/// The Internet: a namespace that routes, with sites behind NATs, and one public host.
struct Net {
    prefix: String,
    names: Vec<String>,
}

impl Net {
    fn new(prefix: &str, nats: [Nat; 2]) -> Result<Self> {
        let mut net = Self { prefix: format!("fl{}{prefix}", std::process::id()), names: Vec::new() };
        let hub = net.add("hub")?;
        net.ip(&hub, &format!("addr add {SERVICES}/32 dev lo"))?;
        net.exec(&hub, "sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
        let public = net.add("pub")?;
        net.cable(&hub, "p", "198.51.100.5/30", &public, "eth0", "198.51.100.6/30")?;
        net.ip(&public, "route add default via 198.51.100.5")?;
        for (i, nat) in nats.into_iter().enumerate() {
            let (router, host) = (net.add(&format!("nat{i}"))?, net.add(&format!("host{i}"))?);
            net.cable(
                &hub,
                &format!("s{i}"),
                &format!("203.0.113.{}/30", 4 * i + 1),
                &router,
                "wan",
                &format!("203.0.113.{}/30", 4 * i + 2),
            )?;
            net.ip(&router, &format!("route add default via 203.0.113.{}", 4 * i + 1))?;
            net.exec(&router, "sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
            let (gateway, inside) = (format!("192.168.{}.1", i + 1), format!("192.168.{}.2", i + 1));
            net.cable(&router, "lan", &format!("{gateway}/24"), &host, "eth0", &format!("{inside}/24"))?;
            net.ip(&host, &format!("route add default via {gateway}"))?;
            let how = if nat == Nat::Cone { "masquerade" } else { "masquerade fully-random" };
            // What nobody inside asked for is dropped before it is noted, as home routers do.
            net.nft(
                &router,
                &format!(
                    "table ip nat {{
                       chain outgoing {{
                         type nat hook postrouting priority 100
                         oifname wan {how}
                       }}
                     }}
                     table ip filter {{
                       chain here {{
                         type filter hook input priority 0
                         iifname wan ct state new drop
                       }}
                       chain through {{
                         type filter hook forward priority 0
                         iifname wan ct state new drop
                       }}
                     }}"
                ),
            )?;
        }
        Ok(net)
    }

    fn add(&mut self, name: &str) -> Result<String> {
        let name = format!("{}{name}", self.prefix);
        sh("ip", &["netns", "add", &name])?;
        self.names.push(name.clone());
        self.ip(&name, "link set lo up")?;
        Ok(name)
    }

    fn name(&self, short: &str) -> String {
        format!("{}{short}", self.prefix)
    }

    fn ip(&self, namespace: &str, args: &str) -> Result<()> {
        let mut all = vec!["-n", namespace];
        all.extend(args.split(' '));
        sh("ip", &all)
    }

    fn exec(&self, namespace: &str, program: &str, args: &[&str]) -> Result<()> {
        let mut all = vec!["netns", "exec", namespace, program];
        all.extend(args);
        sh("ip", &all)
    }

    fn nft(&self, namespace: &str, rules: &str) -> Result<()> {
        self.exec(namespace, "nft", &[rules])
    }

    fn cable(&self, one: &str, dev: &str, addr: &str, other: &str, far: &str, far_addr: &str) -> Result<()> {
        let far_args = format!("link add {dev} type veth peer name {far} netns {other}");
        self.ip(one, &far_args)?;
        for (namespace, dev, addr) in [(one, dev, addr), (other, far, far_addr)] {
            self.ip(namespace, &format!("addr add {addr} dev {dev}"))?;
            self.ip(namespace, &format!("link set {dev} up"))?;
        }
        Ok(())
    }

    /// A program in a namespace.
    fn command(&self, short: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(short)]).arg(binary(program)).env("FLOTILLA_LOG", "info");
        command
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// A fleet with an agent at each site.
struct Fleet {
    // Processes go before their namespaces.
    agents: Vec<Process>,
    _tracker: Process,
    _control: Process,
    net: Net,
    dir: TempDir,
}

impl Fleet {
    fn begin(name: &str, nats: [Nat; 2], relay: bool, upload: &str) -> Result<Self> {
        let net = Net::new(name, nats)?;
        let dir = tempfile::Builder::new().prefix("flotilla-nat-").tempdir()?;
        let mut command = net.command("hub", "flotilla-tracker");
        let mut tracker = Process::start(
            "tracker",
            dir.path(),
            command.args(["--listen", &format!("{SERVICES}:0"), "--json"]),
        )?;
        let address = tracker.wait_for_line(|line| {
            let ready: Value = serde_json::from_str(line).ok()?;
            ready["listen"].as_str().map(str::to_owned)
        })?;
        let mut command = net.command("hub", "flotilla");
        command.arg("serve").arg("--data").arg(dir.path().join("control"));
        command.args([
            "--http",
            "127.0.0.1:0",
            "--gateway",
            &format!("{SERVICES}:0"),
            "--json",
            "--tracker",
            &address,
        ]);
        let mut control = Process::start("control", dir.path(), &mut command)?;
        control
            .wait_for_line(|line| serde_json::from_str::<Value>(line).ok().filter(|v| v["ready"] == true))?;
        let mut fleet = Self { agents: Vec::new(), _tracker: tracker, _control: control, net, dir };
        let relays = if relay { format!("relays = [\"{RELAY}\"]\n") } else { String::new() };
        if relay {
            fleet.agent("relay", "pub", &format!("relay = true\nlisten = \"{RELAY}\"\n"))?;
        }
        for i in 0..2 {
            let config = format!("{relays}[limits]\nupload = \"{upload}\"\n");
            fleet.agent(&format!("agent{i}"), &format!("host{i}"), &config)?;
        }
        let expected = fleet.agents.len();
        wait_until("all to be online", Duration::from_secs(60), || {
            let answer = fleet.flotilla(&["agents", "list"])?;
            let agents = answer["agents"].as_array().context("agents")?;
            Ok((agents.iter().filter(|a| a["state"] == "online").count() == expected).then_some(()))
        })?;
        Ok(fleet)
    }

    fn agent(&mut self, name: &str, place: &str, config: &str) -> Result<()> {
        let (file, settings) = (self.path(&format!("{name}.bootstrap")), self.path(&format!("{name}.toml")));
        fs::write(&settings, config)?;
        let tag = format!("AGENT_NAME={name}");
        self.flotilla(&["token", "create", "--tag", &tag, "--out", text(&file)?])?;
        let mut command = self.net.command(place, "flotilla-agent");
        command.arg("run").arg("--bootstrap").arg(&file).arg("--data").arg(self.path(name));
        command.arg("--config").arg(&settings);
        self.agents.push(Process::start(name, self.dir.path(), &mut command)?);
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn flotilla(&self, args: &[&str]) -> Result<Value> {
        let data = self.path("control");
        answer(self.net.command("hub", "flotilla").args(args).args(["--json", "--data", text(&data)?]))
    }

    fn status(&self, agent: &str) -> Result<Value> {
        let data = self.path(agent);
        answer(Command::new(binary("flotilla-agent")).args(["status", "--json", "--data", text(&data)?]))
    }

    /// Sends a tree from the first site to the second one; gives the run's id.
    fn distribute(&self, tree: &Tree) -> Result<String> {
        tree.make(&self.path("tree"))?;
        let (from, to) =
            (format!("agent0:{}", text(&self.path("tree"))?), format!("agent1:{}", text(&self.path("got"))?));
        let answer = self.flotilla(&[
            "jobs",
            "create",
            "distribution",
            "--name",
            "over",
            "--source",
            &from,
            "--destination",
            &to,
        ])?;
        Ok(answer["run"].as_str().context("a run")?.to_owned())
    }

    /// Waits until the connection between the two is one of these ways; gives what the agent shows of it.
    fn wait_way(&self, ways: &[&str]) -> Result<Value> {
        let mut last = Value::Null;
        let found = wait_until(&format!("a connection that is one of {ways:?}"), LIMIT, || {
            last = self.status("agent1")?.pointer("/runs/0/connections/0").cloned().unwrap_or_default();
            Ok(ways.iter().any(|way| last["way"] == *way).then(|| last.clone()))
        });
        found.with_context(|| format!("it stands at {last:#}"))
    }

    /// Waits until everything has arrived, once.
    fn wait_success(&self, run: &str) -> Result<()> {
        let mut last = Value::Null;
        let ended = wait_until("the run to end", LIMIT, || {
            last = self.flotilla(&["runs", "show", run])?;
            Ok(matches!(last["state"].as_str(), Some("finished" | "failed" | "stopped")).then_some(()))
        });
        ended.with_context(|| format!("the run stands at {last:#}"))?;
        ensure!(last["outcome"] == "succeeded", "{last:#}");
        let found = differences(&self.path("tree"), &self.path("got"))?;
        ensure!(found.is_empty(), "{found}");
        Ok(())
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("UTF-8")
}

fn answer(command: &mut Command) -> Result<Value> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let line = String::from_utf8(output.stdout)?;
    serde_json::from_str(line.lines().next_back().unwrap_or_default()).with_context(|| line.clone())
}

/// Says that a test is not run, so that nobody takes it for passed.
macro_rules! needs_namespaces {
    ($name:literal) => {
        if !is_possible() {
            let required = std::env::var_os("FLOTILLA_REQUIRE_ALL").is_some();
            ensure!(!required, "root, ip netns and nft are needed");
            eprintln!("SKIPPED {}: needs root, ip netns and nft", $name);
            return Ok(());
        }
    };
}

#[test]
fn two_nats_that_show_one_port_are_passed() -> Result<()> {
    needs_namespaces!("two_nats_that_show_one_port_are_passed");
    let fleet = Fleet::begin("c", [Nat::Cone, Nat::Cone], false, "2MB")?;
    let run = fleet.distribute(&Tree { small: 20, large: 1, large_bytes: 12 << 20 })?;
    let way = fleet.wait_way(&["direct", "punched"])?;
    let remote = way["remote"].as_str().context("a remote address")?;
    ensure!(remote.starts_with("203.0.113.2:"), "the source's NAT, not {remote}");
    ensure!(way["local"].as_str().is_some_and(|l| l.starts_with("192.168.2.2:")), "{way}");
    fleet.wait_success(&run)
}

#[test]
fn where_nats_show_another_port_to_each_a_relay_helps() -> Result<()> {
    needs_namespaces!("where_nats_show_another_port_to_each_a_relay_helps");
    let fleet = Fleet::begin("s", [Nat::Symmetric, Nat::Symmetric], true, "2MB")?;
    let run = fleet.distribute(&Tree { small: 20, large: 1, large_bytes: 12 << 20 })?;
    let way = fleet.wait_way(&["relayed"])?;
    let relay = fleet.status("relay")?;
    ensure!(way["relay"] == relay["agent"] && way["remote"] == RELAY, "{way}");
    fleet.wait_success(&run)?;
    let forwarded = fleet.status("relay")?["discovery"]["relay"]["bytes"].as_u64().context("bytes")?;
    ensure!((12 << 20..20 << 20).contains(&forwarded), "{forwarded} bytes forwarded");
    Ok(())
}

#[test]
fn the_relay_is_left_when_there_is_a_direct_way() -> Result<()> {
    needs_namespaces!("the_relay_is_left_when_there_is_a_direct_way");
    let fleet = Fleet::begin("d", [Nat::Cone, Nat::Cone], true, "400KB")?;
    let hub = fleet.net.name("hub");
    fleet.net.nft(
        &hub,
        "table ip wall {
           chain through {
             type filter hook forward priority 0
             ip saddr 203.0.113.0/24 ip daddr 203.0.113.0/24 drop
           }
         }",
    )?;
    let run = fleet.distribute(&Tree { small: 20, large: 1, large_bytes: 16 << 20 })?;
    let before = fleet.wait_way(&["relayed"])?;
    // By the time that it carried so much, at 400 KB a second, plain calls of before are given up: it is this connection that
    // finds the way.
    wait_until("the relay to carry 3 MB", LIMIT, || {
        let status = fleet.status("relay")?;
        let carried = status["discovery"]["relay"]["bytes"].as_u64();
        Ok((carried >= Some(3_000_000)).then_some(()))
    })?;
    fleet.net.nft(&hub, "delete table ip wall")?;
    let after = fleet.wait_way(&["direct", "punched"])?;
    ensure!(before["initiator"] == after["initiator"], "the same connection: {before} {after}");
    // It was moved in the middle, and goes on.
    let shown = fleet.flotilla(&["runs", "show", &run])?;
    ensure!(
        shown["state"] == "running" || shown["state"] == "active" || shown["outcome"].is_null(),
        "{shown:#}"
    );
    let forwarded =
        || -> Result<u64> { fleet.status("relay")?["discovery"]["relay"]["bytes"].as_u64().context("bytes") };
    wait_until("the meeting to end", Duration::from_secs(30), || {
        Ok((fleet.status("relay")?["discovery"]["relay"]["meetings"] == 0).then_some(()))
    })?;
    let then = forwarded()?;
    fleet.wait_success(&run)?;
    ensure!(forwarded()? == then, "nothing by the relay any more");
    let errors: String = fleet.agents.iter().map(Process::errors).collect();
    ensure!(errors.matches("peer connected").count() == 2, "one connection, at both ends:\n{errors}");
    Ok(())
}
