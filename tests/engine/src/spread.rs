//! One file to many nodes that all have the same rate up and down: how long until the last one has it, and how often
//! the source sent it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::Common;
use crate::files::{one, same};
use crate::fleet::Fleet;
use crate::net::{Lan, Place, prepare};
use crate::rsync::{self, Daemon};
use crate::table::{Results, Row, round};
use crate::torrent::{self, Swarm};

/// How often it is looked whether a file is in place.
const LOOK: Duration = Duration::from_millis(5);

/// When nodes leave and when they are back, as parts of size ÷ rate.
const AWAY: (f64, f64) = (0.3, 0.5);

/// Options of `engine-bench spread`.
#[derive(clap::Args)]
#[command(after_help = "\
Needs root, iproute2 and a kernel with veth, bridge and tbf. `rsync` fetches one after the other, `rsync-at-once` all
together; `torrent` needs the package python3-libtorrent. Example:
  engine-bench spread --receivers 10 --size 100MB --rate 50mbit --leave 30%")]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// How many get the file. May be given several times or with commas.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 5, 10])]
    receivers: Vec<usize>,
    /// Its size.
    #[arg(long, default_value = "100MB", value_parser = size)]
    size: u64,
    /// What every node has, up and down, in Ethernet frames.
    #[arg(long, default_value = "50mbit", value_parser = rate)]
    rate: u64,
    /// Repeats each with this share of the receivers killed in the middle and started again.
    #[arg(long, value_parser = units::share)]
    leave: Option<f64>,
    /// Who. May be given several times or with commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Who::Flotilla, Who::Torrent, Who::RsyncAtOnce, Who::Rsync])]
    contender: Vec<Who>,
}

fn size(text: &str) -> Result<u64, String> {
    units::size(text, 1..=1_000_000_000_000)
}

fn rate(text: &str) -> Result<u64, String> {
    units::rate(text, 1_000_000..=10_000_000_000)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Who {
    Flotilla,
    Torrent,
    Rsync,
    RsyncAtOnce,
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Flotilla => "flotilla",
            Self::Torrent => "torrent",
            Self::Rsync => "rsync",
            Self::RsyncAtOnce => "rsync-at-once",
        })
    }
}

#[derive(Serialize)]
struct Spread {
    contender: Who,
    receivers: usize,
    /// Receivers that left and came back.
    left: usize,
    bytes: u64,
    rate_bit_s: u64,
    /// Size ÷ rate.
    ideal_seconds: f64,
    /// Until the source had read the file, part of all times; Flotilla only.
    index_seconds: Option<f64>,
    /// Until the last one had it that never left.
    last_seconds: f64,
    last_of_ideal: f64,
    /// Until the last one of all had it.
    all_seconds: f64,
    all_of_ideal: f64,
    /// How long those that left were away.
    away_seconds: f64,
    /// Bytes the source sent, headers and all, by the file's size.
    source_copies: f64,
    /// Times faster than one after the other would be at best.
    speedup: f64,
}

impl Row for Spread {
    const HEADER: &'static [&'static str] = &[
        "who",
        "to",
        "left",
        "size ÷ rate",
        "index",
        "last",
        "÷ ideal",
        "with those that left",
        "÷ ideal",
        "copies sent",
        "speedup",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.contender.to_string(),
            self.receivers.to_string(),
            self.left.to_string(),
            format!("{:.2} s", self.ideal_seconds),
            self.index_seconds.map_or("-".into(), |s| format!("{s:.2} s")),
            format!("{:.2} s", self.last_seconds),
            format!("{:.3}", self.last_of_ideal),
            format!("{:.2} s", self.all_seconds),
            format!("{:.3}", self.all_of_ideal),
            format!("{:.3}", self.source_copies),
            format!("{:.2}", self.speedup),
        ]
    }
}

/// Runs everything; false if something did not arrive as it was.
pub(crate) fn run(args: &Args) -> Result<bool> {
    prepare()?;
    let folder = args.common.folder()?;
    let file = folder.path().join("source/file");
    fs::create_dir_all(folder.path().join("source"))?;
    one(&file, args.size, 1)?;
    let mut results = Results::new(args.common.json);
    for &receivers in &args.receivers {
        ensure!(receivers > 0, "somebody has to get it");
        for (nth, &who) in args.contender.iter().enumerate() {
            let shares = [Some(0.0), args.leave.filter(|_| matches!(who, Who::Flotilla | Who::Torrent))];
            for (turn, share) in shares.into_iter().flatten().enumerate() {
                let left = (share * receivers as f64).round() as usize;
                if (turn > 0 && left == 0) || !is_here(who) {
                    continue;
                }
                let dir = folder.path().join(format!("{receivers}-{nth}-{turn}"));
                fs::create_dir_all(&dir)?;
                let trial = Trial { args, dir: &dir, file: &file, receivers, left };
                results.add(trial.hold(who).with_context(|| format!("{who} to {receivers}"))?)?;
                if !args.common.keep {
                    fs::remove_dir_all(&dir)?;
                }
            }
        }
    }
    results.print();
    Ok(true)
}

fn is_here(who: Who) -> bool {
    match who {
        Who::Flotilla => true,
        Who::Torrent => torrent::is_here(),
        Who::Rsync | Who::RsyncAtOnce => rsync::is_here(),
    }
}

/// One measurement.
struct Trial<'a> {
    args: &'a Args,
    dir: &'a Path,
    file: &'a Path,
    receivers: usize,
    left: usize,
}

/// Whom the trial can send away and fetch back; receivers count from 0.
trait Nodes {
    fn kill(&mut self, receiver: usize);
    fn back(&mut self, receiver: usize) -> Result<()>;
    /// Looked at all the time while it runs.
    fn look(&mut self) -> Result<()> {
        Ok(())
    }
}

struct Agents {
    fleet: Fleet,
    began: Instant,
    indexed: Option<f64>,
}

impl Nodes for Agents {
    fn kill(&mut self, receiver: usize) {
        self.fleet.agents[receiver + 1].kill();
    }

    fn back(&mut self, receiver: usize) -> Result<()> {
        self.fleet.agents[receiver + 1].start()
    }

    fn look(&mut self) -> Result<()> {
        if self.indexed.is_none() && self.fleet.agents[0].times("serving") > 0 {
            self.indexed = Some(self.began.elapsed().as_secs_f64());
        }
        Ok(())
    }
}

struct Torrents {
    swarm: Swarm,
    folders: Vec<PathBuf>,
}

impl Nodes for Torrents {
    fn kill(&mut self, receiver: usize) {
        self.swarm.kill(receiver + 1);
    }

    fn back(&mut self, receiver: usize) -> Result<()> {
        let folder = self.folders[receiver].clone();
        self.swarm.run(receiver + 1, &folder)
    }
}

impl Trial<'_> {
    fn ideal(&self) -> f64 {
        self.args.size as f64 * 8.0 / self.args.rate as f64
    }

    /// Far more than anybody may need.
    fn limit(&self) -> Duration {
        Duration::from_secs_f64(60.0 + 4.0 * self.ideal() * self.receivers as f64)
    }

    fn folders(&self) -> Result<Vec<PathBuf>> {
        let folders: Vec<PathBuf> = (0..self.receivers).map(|n| self.dir.join(format!("got-{n}"))).collect();
        folders.iter().try_for_each(fs::create_dir_all)?;
        Ok(folders)
    }

    fn hold(&self, who: Who) -> Result<Spread> {
        let _lan = Lan::start(self.receivers + 1, self.args.rate)?;
        match who {
            Who::Flotilla => self.flotilla(),
            Who::Torrent => self.torrent(),
            Who::Rsync => self.rsync(false),
            Who::RsyncAtOnce => self.rsync(true),
        }
    }

    fn flotilla(&self) -> Result<Spread> {
        let mut fleet = Fleet::start(&self.dir.join("fleet"), Place::here(), &Lan::HERE.to_string())?;
        let node = |n: usize| (format!("node-{n}"), Lan::place(n), Lan::address(n).to_string());
        fleet.enrol((0..=self.receivers).map(node).collect())?;
        let folders = self.folders()?;
        let sent = Lan::sent(0)?;
        let began = Instant::now();
        let run = fleet.distribute("spread", self.file, &folders)?;
        let marks: Vec<PathBuf> = folders.iter().map(|folder| folder.join("file")).collect();
        let mut agents = Agents { fleet, began, indexed: None };
        let times = self.watch(began, &marks, &mut agents)?;
        let sent = Lan::sent(0)? - sent;
        agents.fleet.wait(&run, Duration::from_secs(60))?;
        self.check(&marks)?;
        Ok(self.result(Who::Flotilla, &times, sent, agents.indexed))
    }

    fn torrent(&self) -> Result<Spread> {
        let folders = self.folders()?;
        let mut nodes = Torrents { swarm: Swarm::start(self.dir, self.file, &folders)?, folders };
        let sent = Lan::sent(0)?;
        let began = Instant::now();
        nodes.swarm.go()?;
        let marks: Vec<PathBuf> = (0..self.receivers).map(|n| Swarm::mark(self.dir, n + 1)).collect();
        let times = self.watch(began, &marks, &mut nodes)?;
        let sent = Lan::sent(0)? - sent;
        let files: Vec<PathBuf> = nodes.folders.iter().map(|folder| folder.join("file")).collect();
        self.check(&files)?;
        Ok(self.result(Who::Torrent, &times, sent, None))
    }

    fn rsync(&self, at_once: bool) -> Result<Spread> {
        let source = self.file.parent().context("a folder")?;
        let daemon = Daemon::start(self.dir, &Lan::place(0), &Lan::address(0).to_string(), source)?;
        let folders = self.folders()?;
        let sent = Lan::sent(0)?;
        let began = Instant::now();
        let (mut running, mut times) = (Vec::new(), Vec::new());
        for (n, folder) in folders.iter().enumerate() {
            let mut process = daemon.fetch(&format!("rsync-{n}"), self.dir, &Lan::place(n + 1), folder)?;
            if at_once {
                running.push(process);
            } else {
                rsync::finish(&mut process, self.limit())?;
                times.push(began.elapsed().as_secs_f64());
            }
        }
        for mut process in running {
            rsync::finish(&mut process, self.limit())?;
            times.push(began.elapsed().as_secs_f64());
        }
        let sent = Lan::sent(0)? - sent;
        self.check(&folders.iter().map(|folder| folder.join("file")).collect::<Vec<_>>())?;
        Ok(self.result(if at_once { Who::RsyncAtOnce } else { Who::Rsync }, &times, sent, None))
    }

    /// Waits until all marks are there, and sends the first receivers away and fetches them back meanwhile. Gives when
    /// each was there.
    fn watch(&self, began: Instant, marks: &[PathBuf], nodes: &mut dyn Nodes) -> Result<Vec<f64>> {
        let mut times = vec![None; marks.len()];
        let (mut gone, mut back) = (self.left == 0, self.left == 0);
        while times.iter().any(Option::is_none) {
            let now = began.elapsed().as_secs_f64();
            for (time, mark) in times.iter_mut().zip(marks).filter(|(time, _)| time.is_none()) {
                if mark.exists() {
                    *time = Some(now);
                }
            }
            if !gone && now >= AWAY.0 * self.ideal() {
                (0..self.left).for_each(|n| nodes.kill(n));
                gone = true;
            }
            if !back && now >= AWAY.1 * self.ideal() {
                (0..self.left).try_for_each(|n| nodes.back(n))?;
                back = true;
            }
            nodes.look()?;
            ensure!(
                began.elapsed() < self.limit(),
                "after {now:.0} s {} of {} have it",
                times.iter().flatten().count(),
                marks.len()
            );
            std::thread::sleep(LOOK);
        }
        Ok(times.into_iter().flatten().collect())
    }

    fn check(&self, files: &[PathBuf]) -> Result<()> {
        for file in files {
            ensure!(same(self.file, file)?, "{} is not what was sent", file.display());
        }
        Ok(())
    }

    fn result(&self, contender: Who, times: &[f64], sent: u64, index: Option<f64>) -> Spread {
        let latest = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
        // Where all left there is nobody else.
        let stayed = if self.left < times.len() { latest(&times[self.left..]) } else { latest(times) };
        let (all, ideal) = (latest(times), self.ideal());
        Spread {
            contender,
            receivers: self.receivers,
            left: self.left,
            bytes: self.args.size,
            rate_bit_s: self.args.rate,
            ideal_seconds: round(ideal, 3),
            index_seconds: index.map(|s| round(s, 3)),
            last_seconds: round(stayed, 3),
            last_of_ideal: round(stayed / ideal, 4),
            all_seconds: round(all, 3),
            all_of_ideal: round(all / ideal, 4),
            away_seconds: if self.left > 0 { round((AWAY.1 - AWAY.0) * ideal, 3) } else { 0.0 },
            source_copies: round(sent as f64 / self.args.size as f64, 4),
            speedup: round(self.receivers as f64 * ideal / all, 2),
        }
    }
}
