//! Where programs run: namespaces behind a bridge, each with a cable of the same rate; the two ends of an emulated
//! long link; or the loopback device.
//!
//! Rates are the kernel's token buckets (`tc … tbf`), one at each end of a node's cable: it neither sends nor gets
//! more. Rates and bytes are those of Ethernet frames.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use wan::{Config, Link, Raised, Shape, Side};

/// Set for the process that has its own namespaces.
const INSIDE: &str = "FLOTILLA_ENGINE_INSIDE";

/// What a token bucket lets through at once. Larger than any frame that the kernel hands over whole for UDP; larger
/// ones of TCP are cut.
const BURST: &str = "32kb";

/// How long a frame waits at most at a full cable: a usual queue of a home router or a cheap switch.
const QUEUE: &str = "30ms";

/// Whether this process has namespaces of its own.
pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs this program again with the same arguments, in namespaces of its own; everything in them ends with it.
///
/// # Errors
/// If there is no `unshare`, or it may not.
pub(crate) fn go_inside() -> Result<ExitCode> {
    // Programs are built out here, where there is a network.
    let programs = e2e::binary("flotilla");
    let folder = programs.parent().context("a program lies in a folder")?;
    // Of the whole machine, so to be done from here too.
    let _raised = Raised::new();
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    command.env(INSIDE, "1").env("FLOTILLA_BINARIES", folder);
    let status = command.status().context("unshare")?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(2)).unwrap_or(2)))
}

/// A network namespace by its name, or the one this process is in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place(Option<String>);

impl Place {
    /// Where this process is.
    pub(crate) fn here() -> Self {
        Self(None)
    }

    /// A command that runs there.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match &self.0 {
            None => Command::new(program),
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(program);
                command
            }
        }
    }
}

fn run(program: &str, line: &str) -> Result<()> {
    let output = Command::new(program).args(line.split_whitespace()).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("running {program} (is iproute2 installed?)"))?;
    ensure!(output.status.success(), "{program} {line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn ip(line: &str) -> Result<()> {
    run("ip", line)
}

/// A place for the names of namespaces that is this benchmark's alone, and a loopback device that works.
pub(crate) fn prepare() -> Result<()> {
    fs::create_dir_all("/run/netns")?;
    run("mount", "-t tmpfs tmpfs /run/netns")?;
    ip("link set lo up")
}

/// Nodes behind a bridge; this process is at the bridge and has no limit.
#[derive(Debug)]
pub(crate) struct Lan {
    nodes: usize,
}

impl Lan {
    /// Address of this process.
    pub(crate) const HERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

    /// So many nodes, each with `rate` bits per second up and down.
    ///
    /// # Errors
    /// If the kernel does not have what it takes; the text says what.
    pub(crate) fn start(nodes: usize, rate: u64) -> Result<Self> {
        ensure!(nodes < 250, "at most 249 nodes");
        ip("link add hub type bridge")?;
        ip(&format!("addr add {}/16 dev hub", Self::HERE))?;
        ip("link set hub up")?;
        for n in 0..nodes {
            ip(&format!("netns add e{n}"))?;
            ip(&format!("link add v{n} type veth peer name eth0 netns e{n}"))?;
            ip(&format!("link set dev v{n} master hub up"))?;
            ip(&format!("-n e{n} addr add {}/16 dev eth0", Self::address(n)))?;
            ip(&format!("-n e{n} link set eth0 up"))?;
            ip(&format!("-n e{n} link set lo up"))?;
            let bucket = format!("root tbf rate {rate}bit burst {BURST} latency {QUEUE}");
            let hint = "the kernel needs sch_tbf (CONFIG_NET_SCH_TBF)";
            run("tc", &format!("-n e{n} qdisc add dev eth0 {bucket}")).context(hint)?;
            run("tc", &format!("qdisc add dev v{n} {bucket}")).context(hint)?;
        }
        Ok(Self { nodes })
    }

    /// A node's address.
    pub(crate) fn address(node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 1, node as u8 + 1)
    }

    /// Where a node's programs run.
    pub(crate) fn place(node: usize) -> Place {
        Place(Some(format!("e{node}")))
    }

    /// Bytes that a node has sent.
    pub(crate) fn sent(node: usize) -> Result<u64> {
        received_by(&format!("v{node}"))
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // What is not removed now goes with this process.
        for n in 0..self.nodes {
            let _ = ip(&format!("link del v{n}"));
            let _ = ip(&format!("netns del e{n}"));
        }
        let _ = ip("link del hub");
    }
}

/// Bytes that came in at a device of this namespace.
pub(crate) fn received_by(device: &str) -> Result<u64> {
    let table = fs::read_to_string("/proc/net/dev")?;
    let row = table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
    let bytes = row.and_then(|row| row.split_whitespace().next()?.parse().ok());
    bytes.with_context(|| format!("{device} in {table}"))
}

/// A long link between two nodes.
pub(crate) struct Long {
    link: Link,
}

impl Long {
    /// `rate` bits per second each way and a queue of one bandwidth-delay product.
    ///
    /// # Errors
    /// If namespaces or TUN devices cannot be had.
    pub(crate) fn start(rate: u64, rtt: Duration) -> Result<Self> {
        let mut config =
            Config::new(Shape::new(rate, rtt / 2).with_queue(rtt.max(Duration::from_millis(10))));
        config.offloads = true;
        let link = Link::start(&config)?;
        for (name, side) in [("a", &link.a), ("b", &link.b)] {
            attach(name, side)?;
        }
        Ok(Self { link })
    }

    /// Where the source's and the control service's programs run, and their address.
    pub(crate) fn near(&self) -> (Place, String) {
        (Place(Some("a".into())), self.link.a.address().to_string())
    }

    /// Where the destination runs, and its address.
    pub(crate) fn far(&self) -> (Place, String) {
        (Place(Some("b".into())), self.link.b.address().to_string())
    }

    /// Whether the emulator lost nothing by itself; packets that crossed to the far end; datagrams and segments that
    /// found a full queue or a full socket.
    pub(crate) fn report(&self) -> (bool, u64, u64) {
        let report = self.link.report();
        let (to, back) = (&report.forward, &report.back);
        let lost = to.queue_drops + back.queue_drops + to.socket_drops + back.socket_drops;
        (report.is_sound(), to.packets, lost)
    }
}

impl Drop for Long {
    fn drop(&mut self) {
        for name in ["a", "b"] {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// Gives an end of the link a name, so that `ip netns exec` finds it.
fn attach(name: &str, side: &Side) -> Result<()> {
    let thread = side.run(nix::unistd::gettid)?;
    let target = format!("/run/netns/{name}");
    match fs::File::create_new(&target) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    run("mount", &format!("--bind /proc/{thread}/ns/net {target}"))
}
