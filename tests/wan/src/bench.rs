//! `wan bench`: the same file over the same link by several programs in turns.
//!
//! Owns the scenarios, the contenders and the table. Every run has a fresh link with fresh namespaces, so that no
//! run learns from another. The file lies in memory where the system has such a folder; goodput is that of the
//! whole command, start and handshake included.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use serde::Serialize;
use wan::{Config, Link, Loss, Program, Raised, Shape};

use crate::peer::LISTENING;
use crate::{interrupted, print_json};

/// Where receivers listen.
const RECEIVER: &str = "10.77.0.2:4433";

/// How long a receiver may take to end once the sender has.
const LINGER: Duration = Duration::from_secs(10);

/// The part of the file that is sent first, for contenders that remember a path.
const WARM_UP: u64 = 200_000_000;

/// Compared at a time.
const CHUNK: usize = 1 << 20;

/// Header and tag of a µTP2 packet, and IP and UDP headers: what the ceiling takes off each packet.
const HEADERS: f64 = 60.0;

fn size(text: &str) -> Result<u64, String> {
    units::size(text, 0..=10_000_000_000_000)
}

/// Options of `wan bench`.
#[derive(clap::Args)]
#[command(after_help = "\
Contenders: utp2, utp2-warm (a smaller transfer over the same link goes first, with --state), quinn-bbr, quinn-cubic,
tcp-bbr, tcp-cubic (any the kernel has), with :N for N parallel TCP connections.

Prints a line of JSON for each run and a table at the end; exit code 1 if a file did not arrive as it was.
Measure on a quiet machine, as root. Example:
  wan bench --scenario a --contender utp2 --contender tcp-bbr --runs 3")]
pub(crate) struct Args {
    /// The links. May be given several times.
    #[arg(long, value_enum, default_value = "short")]
    scenario: Vec<Scenario>,
    /// Who sends. May be given several times; they take turns.
    #[arg(long, value_parser = contender, default_values = ["utp2", "quinn-bbr", "tcp-bbr"])]
    contender: Vec<Contender>,
    /// Rounds.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Another size of the file than the scenario's.
    #[arg(long, value_parser = size)]
    size: Option<u64>,
    /// A run that takes longer is stopped; by default the time at a tenth of the rate, 45 seconds at least.
    #[arg(long, value_parser = crate::run::time, value_name = "TIME")]
    limit: Option<Duration>,
    /// Whether the kernel hands many packets over at once; by default from 1 Gbit/s on.
    #[arg(long)]
    gso: Option<bool>,
    /// The `utp2` program; by default the one beside this program.
    #[arg(long, value_name = "PATH")]
    utp2: Option<PathBuf>,
    /// An option for `utp2 send`, such as --utp2-option=--mode=fair. May be given several times.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    utp2_option: Vec<String>,
    /// Folder for the files; a new folder in it is used and removed. By default in memory.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// The links of docs/testing.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// 1 Gbit/s, 200 ms, 1 % each way, queue 1 BDP; 2 GB
    A,
    /// As a, queue 0.5 BDP
    AHalf,
    /// As a, without loss
    A0,
    /// 100 Mbit/s, 50 ms, 0.1 %; 500 MB
    B,
    /// 20 Mbit/s, 600 ms, 2 %; 100 MB
    C,
    /// 4 Gbit/s, 100 ms, 5 %; 4 GB
    D,
    /// As d, 6 Gbit/s
    DFast,
    /// 1 Gbit/s, 100 ms, 2 % in bursts of 20; 2 GB
    Bursts,
    /// 200 Mbit/s, 50 ms, 1 %; 40 MB
    Short,
}

impl Scenario {
    /// The link and the size of the file.
    fn link(self) -> (Shape, u64) {
        let link = |mbit: u64, rtt: u64, loss: f64, queue: f64| {
            let rtt = Duration::from_millis(rtt);
            let mut shape = Shape::new(mbit * 1_000_000, rtt / 2).with_queue(rtt.mul_f64(queue));
            shape.loss = if loss > 0.0 { Loss::Independent(loss) } else { Loss::None };
            shape
        };
        match self {
            Self::A => (link(1000, 200, 0.01, 1.0), 2_000_000_000),
            Self::AHalf => (link(1000, 200, 0.01, 0.5), 2_000_000_000),
            Self::A0 => (link(1000, 200, 0.0, 1.0), 2_000_000_000),
            Self::B => (link(100, 50, 0.001, 1.0), 500_000_000),
            Self::C => (link(20, 600, 0.02, 1.0), 100_000_000),
            Self::D => (link(4000, 100, 0.05, 1.0), 4_000_000_000),
            Self::DFast => (link(6000, 100, 0.05, 1.0), 4_000_000_000),
            Self::Bursts => {
                let shape = link(1000, 100, 0.0, 1.0);
                (Shape { loss: Loss::Bursts { mean: 0.02, burst: 20.0 }, ..shape }, 2_000_000_000)
            }
            Self::Short => (link(200, 50, 0.01, 1.0), 40_000_000),
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Contender {
    Utp2 { warm: bool },
    Quinn { congestion: String },
    Tcp { congestion: String, connections: u32 },
}

fn contender(text: &str) -> Result<Contender, String> {
    let (name, connections) = match text.split_once(':') {
        Some((name, number)) => (name, number.parse().map_err(|_| format!("{number:?} is no number"))?),
        None => (text, 1),
    };
    let single =
        |contender| if connections == 1 { Ok(contender) } else { Err("only TCP takes :N".to_owned()) };
    match name.split_once('-') {
        None if name == "utp2" => single(Contender::Utp2 { warm: false }),
        Some(("utp2", "warm")) => single(Contender::Utp2 { warm: true }),
        Some(("quinn", which)) => single(Contender::Quinn { congestion: which.to_owned() }),
        Some(("tcp", which)) => Ok(Contender::Tcp { congestion: which.to_owned(), connections }),
        _ => Err(format!("unknown contender {text:?}; see the end of --help")),
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Utp2 { warm: false } => f.write_str("utp2"),
            Self::Utp2 { warm: true } => f.write_str("utp2-warm"),
            Self::Quinn { congestion } => write!(f, "quinn-{congestion}"),
            Self::Tcp { congestion, connections: 1 } => write!(f, "tcp-{congestion}"),
            Self::Tcp { congestion, connections } => write!(f, "tcp-{congestion}:{connections}"),
        }
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
struct Row {
    scenario: String,
    contender: String,
    run: u32,
    /// Whether sender and receiver ended well and the file is the same, byte for byte.
    whole: bool,
    /// Why not.
    error: Option<String>,
    bytes: u64,
    /// Of the whole sending command.
    seconds: f64,
    /// 10^6 bytes of the file a second. For a run that failed: IP bytes that arrived.
    goodput_mb_s: f64,
    /// Goodput ÷ what 60 bytes of headers in 1500 and the loss leave of the rate.
    share_of_ceiling: f64,
    /// IP bytes that the sender put on the link for each byte of the file.
    sent_per_byte: f64,
    /// IP bytes on the way back for each byte of the file.
    back_per_byte: f64,
    queue_drops_percent: f64,
    lost_percent: f64,
    /// Datagrams that arrived and were dropped because the receiving program did not take them in time.
    socket_drops: u64,
    sender_cpu_seconds: f64,
    receiver_cpu_seconds: f64,
    emulator_cpu_seconds: f64,
    late_p99_us: u64,
    /// False: the emulator did not keep up, the figures are void.
    sound: bool,
}

/// Whether all files arrived whole.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let bench = Bench::new(args)?;
    let mut rows = Vec::new();
    for scenario in &args.scenario {
        let (shape, size) = scenario.link();
        let size = args.size.unwrap_or(size);
        let source = bench.source(size)?;
        for run in 1..=args.runs {
            for contender in &args.contender {
                let row = bench.run(*scenario, &shape, contender, run, &source, size)?;
                print_json(&row)?;
                rows.push(row);
            }
        }
        fs::remove_file(source)?;
    }
    println!("{}", table(&rows));
    Ok(rows.iter().all(|row| row.whole))
}

struct Bench<'a> {
    args: &'a Args,
    folder: tempfile::TempDir,
    utp2: PathBuf,
    wan: PathBuf,
    _raised: Raised,
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args) -> Result<Self> {
        let wan = std::env::current_exe().context("looking for this program")?;
        let utp2 = args.utp2.clone().unwrap_or_else(|| wan.with_file_name("utp2"));
        if args.contender.iter().any(|c| matches!(c, Contender::Utp2 { .. })) {
            ensure!(
                utp2.is_file(),
                "no {}: `cargo build -p utp2-tool`, or name it by --utp2",
                utp2.display()
            );
        }
        if args.contender.contains(&Contender::Utp2 { warm: true }) {
            let help = Command::new(&utp2).args(["send", "--help"]).stdin(Stdio::null()).output()?;
            let known = String::from_utf8_lossy(&help.stdout).contains("--state");
            ensure!(known, "utp2-warm: this `utp2 send` has no --state and remembers no path");
        }
        let memory = Path::new("/dev/shm");
        let place = match &args.dir {
            Some(dir) => dir.clone(),
            None if memory.is_dir() => memory.to_owned(),
            None => std::env::temp_dir(),
        };
        let folder = tempfile::Builder::new().prefix("wan-bench-").tempdir_in(&place);
        let folder = folder.with_context(|| format!("making a folder in {}", place.display()))?;
        Ok(Self { args, folder, utp2, wan, _raised: Raised::new() })
    }

    /// Where `utp2 send` keeps what it knows of the path.
    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A file of `size` bytes that no program can make smaller.
    fn source(&self, size: u64) -> Result<PathBuf> {
        let path = self.folder.path().join("source");
        let space = nix::sys::statvfs::statvfs(self.folder.path())?;
        let free = space.blocks_available() * space.fragment_size();
        ensure!(free > 2 * size, "{} has no room for twice {size} bytes; use --dir", path.display());
        let mut file = File::create(&path)?;
        let mut rng = ChaCha8Rng::seed_from_u64(size);
        let mut chunk = vec![0; CHUNK];
        let mut left = size;
        while left > 0 {
            rng.fill_bytes(&mut chunk);
            let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            file.write_all(&chunk[..now])?;
            left -= now as u64;
        }
        Ok(path)
    }

    /// Touches as much memory as the file that arrives will take, and gives it back. A virtual machine may have to ask
    /// its host for memory that it has not used lately, which costs several times what writing to it does, at moments
    /// nobody chose: no matter of the transfer. So it happens before.
    fn touch_memory(&self, size: u64) -> Result<()> {
        let path = self.folder.path().join("touched");
        let mut file = File::create(&path)?;
        let done = std::io::copy(&mut std::io::repeat(1).take(size), &mut file);
        fs::remove_file(&path)?;
        done.context("touching the memory for a file").map(drop)
    }

    fn run(
        &self,
        scenario: Scenario,
        shape: &Shape,
        contender: &Contender,
        run: u32,
        source: &Path,
        size: u64,
    ) -> Result<Row> {
        let offloads = self.args.gso.unwrap_or(shape.rate_bps >= 1_000_000_000);
        let config = Config { offloads, seed: u64::from(run), ..Config::new(shape.clone()) };
        let ideal = size as f64 * 8.0 / shape.rate_bps as f64;
        let limit = self.args.limit.unwrap_or(Duration::from_secs_f64((ideal * 10.0).max(45.0)));
        let mut link = Link::start(&config)?;
        if *contender == (Contender::Utp2 { warm: true }) {
            // What an earlier run learned is not this one's.
            match fs::remove_file(self.state()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
            let first = self.folder.path().join("first");
            let mut head = File::open(source)?.take(WARM_UP);
            std::io::copy(&mut head, &mut File::create(&first)?)?;
            let done = self.transfer(&link, contender, shape, &first, WARM_UP.min(size), limit);
            fs::remove_file(&first)?;
            let (_, _, error) = done?;
            ensure!(error.is_none(), "the first transfer failed: {}", error.unwrap_or_default());
            ensure!(self.state().exists(), "the first transfer left nothing at {}", self.state().display());
        }
        link.count_anew();
        let (sender, receiver_cpu, error) = self.transfer(&link, contender, shape, source, size, limit)?;
        let report = link.report();
        let (sent, back) = (&report.forward, &report.back);
        let packets = sent.packets.max(1) as f64;
        let useful = if error.is_none() { size } else { sent.delivered_bytes };
        let goodput = useful as f64 / 1e6 / sender.seconds;
        let mtu = f64::from(config.mtu);
        let ceiling = shape.rate_bps as f64 / 8e6 * (mtu - HEADERS) / (mtu + f64::from(shape.overhead))
            * (1.0 - shape.loss.mean());
        Ok(Row {
            scenario: scenario.name(),
            contender: contender.to_string(),
            run,
            whole: error.is_none(),
            error,
            bytes: size,
            seconds: round(sender.seconds, 3),
            goodput_mb_s: round(goodput, 2),
            share_of_ceiling: round(goodput / ceiling, 4),
            sent_per_byte: round(sent.bytes as f64 / useful.max(1) as f64, 4),
            back_per_byte: round(back.bytes as f64 / useful.max(1) as f64, 5),
            queue_drops_percent: round(sent.queue_drops as f64 / packets * 100.0, 3),
            lost_percent: round(sent.lost as f64 / packets * 100.0, 3),
            socket_drops: sent.socket_drops,
            sender_cpu_seconds: round(sender.cpu_seconds, 2),
            receiver_cpu_seconds: round(receiver_cpu, 2),
            emulator_cpu_seconds: round(sent.cpu_seconds + back.cpu_seconds, 2),
            late_p99_us: sent.late_us.p99,
            sound: report.is_sound(),
        })
    }

    /// One file over the link: how the sender ended, the receiver's CPU time, and what went wrong.
    fn transfer(
        &self,
        link: &Link,
        contender: &Contender,
        shape: &Shape,
        source: &Path,
        size: u64,
        limit: Duration,
    ) -> Result<(wan::Ended, f64, Option<String>)> {
        let got = self.folder.path().join("got");
        fs::create_dir_all(&got)?;
        self.touch_memory(size)?;
        let name = source.file_name().context("a file has a name")?;
        let out = got.join(name);
        let (receive, send, ready) = self.commands(contender, shape, source, size, &got, &out);
        let environment = [("UTP2_SECRET", "one machine, one secret")];
        let log = |end: &str| self.folder.path().join(end);
        let receiving = Instant::now();
        let mut receiver =
            Program::start(&link.b, "the receiver", &receive, &environment, Some(&log("receiver")))?;
        receiver.wait_for(ready)?;
        let mut sender = Program::start(&link.a, "the sender", &send, &environment, Some(&log("sender")))?;
        let began = Instant::now();
        let stopped = loop {
            ensure!(!interrupted(), "interrupted");
            if sender.ended()?.is_some() {
                break false;
            }
            if began.elapsed() > limit {
                break true;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let (ended, error);
        if stopped {
            sender.kill();
            let seconds = began.elapsed().as_secs_f64();
            ended = wan::Ended { success: false, status: "stopped".into(), seconds, cpu_seconds: 0.0 };
            error = Some(format!("stopped after {:.0} s", limit.as_secs_f64()));
        } else {
            ended = sender.ended()?.context("it has ended")?.clone();
            error = (!ended.success).then(|| format!("sender: {}: {}", ended.status, sender.tail()));
        }
        let mut receiver_cpu = 0.0;
        let mut error = error;
        if error.is_none() {
            match receiver.wait(receiving.elapsed() + LINGER) {
                Ok(end) if end.success => receiver_cpu = end.cpu_seconds,
                Ok(end) => error = Some(format!("receiver: {}: {}", end.status, receiver.tail())),
                Err(why) => error = Some(format!("{why:#}")),
            }
        }
        drop(receiver);
        if error.is_none() && !same(source, &out)? {
            error = Some("the file that arrived is another one".into());
        }
        fs::remove_dir_all(&got)?;
        Ok((ended, receiver_cpu, error))
    }

    /// The receiver's command, the sender's, and what the receiver says when it is ready.
    fn commands(
        &self,
        contender: &Contender,
        shape: &Shape,
        source: &Path,
        size: u64,
        got: &Path,
        out: &Path,
    ) -> (Vec<String>, Vec<String>, &'static str) {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (utp2, wan) = (text(&self.utp2), text(&self.wan));
        let strings = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<String>>();
        let (source, got, out) = (text(source), text(got), text(out));
        let (state, kept) = (text(&self.state()), text(&self.folder.path().join("kept")));
        let (protocol, congestion, connections) = match contender {
            Contender::Utp2 { warm } => {
                let mut receive = strings(&[&utp2, "recv", "--listen", RECEIVER, "--out", &got, "--once"]);
                let mut send = strings(&[&utp2, "send", &source, "--to", RECEIVER, "--json"]);
                if *warm {
                    // Either side stays who it was, as it does between two visits of a vehicle.
                    send.extend(strings(&["--state", &state]));
                    receive.extend(strings(&["--state", &kept]));
                }
                send.extend(self.args.utp2_option.iter().cloned());
                return (receive, send, "listening on");
            }
            Contender::Quinn { congestion } => ("quic", congestion, "1".to_owned()),
            Contender::Tcp { congestion, connections } => ("tcp", congestion, connections.to_string()),
        };
        let window = (4 * shape.bytes_in(shape.delay * 2)).max(4 << 20).to_string();
        let certificate = text(&self.folder.path().join("certificate"));
        let common = [
            "--protocol",
            protocol,
            "--congestion",
            congestion.as_str(),
            "--window",
            &window,
            "--cert",
            &certificate,
        ];
        let size = size.to_string();
        let mut receive =
            strings(&[&wan, "peer", "recv", "--listen", RECEIVER, "--out", &out, "--size", &size]);
        let mut send =
            strings(&[&wan, "peer", "send", &source, "--to", RECEIVER, "--connections", &connections]);
        receive.extend(strings(&common));
        send.extend(strings(&common));
        (receive, send, LISTENING)
    }
}

fn same(one: &Path, other: &Path) -> Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other).context("nothing arrived")?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let len = one.read(&mut a)?;
        if len == 0 {
            return Ok(true);
        }
        other.read_exact(&mut b[..len])?;
        if a[..len] != b[..len] {
            return Ok(false);
        }
    }
}

fn round(value: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (value * factor).round() / factor
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header([
        "link",
        "who",
        "run",
        "MB/s",
        "of ceiling",
        "s",
        "sent/byte",
        "queue drops",
        "socket drops",
        "CPU send",
        "recv",
        "link",
        "late p99",
        "",
    ]);
    for row in rows {
        let remark = match (&row.error, row.sound) {
            (Some(error), _) => error.lines().next().unwrap_or_default().chars().take(60).collect(),
            (None, true) => String::new(),
            (None, false) => "void: the emulator was too slow".to_owned(),
        };
        table.add_row([
            row.scenario.clone(),
            row.contender.clone(),
            row.run.to_string(),
            format!("{:.1}", row.goodput_mb_s),
            format!("{:.1} %", row.share_of_ceiling * 100.0),
            format!("{:.1}", row.seconds),
            format!("{:.3}", row.sent_per_byte),
            format!("{:.2} %", row.queue_drops_percent),
            row.socket_drops.to_string(),
            format!("{:.1} s", row.sender_cpu_seconds),
            format!("{:.1} s", row.receiver_cpu_seconds),
            format!("{:.1} s", row.emulator_cpu_seconds),
            format!("{} µs", row.late_p99_us),
            remark,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_are_read_as_they_are_written() {
        for text in ["utp2", "utp2-warm", "quinn-bbr", "quinn-cubic", "tcp-bbr", "tcp-cubic:16"] {
            assert_eq!(contender(text).map(|c| c.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "udt", "utp2:4", "tcp", "tcp-bbr:many"] {
            assert!(contender(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_changed_byte_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("1"), folder.path().join("2"));
        let mut bytes = vec![7; CHUNK + 5];
        fs::write(&one, &bytes).unwrap();
        fs::write(&other, &bytes).unwrap();
        assert!(same(&one, &other).unwrap());
        bytes[CHUNK + 4] = 8;
        fs::write(&other, &bytes).unwrap();
        assert!(!same(&one, &other).unwrap());
        fs::write(&other, &bytes[..5]).unwrap();
        assert!(!same(&one, &other).unwrap());
    }
}
