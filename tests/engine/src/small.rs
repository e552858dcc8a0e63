//! Very many small files to one node, over a long link and on loopback: files a second until all are in place.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use e2e::differences;
use serde::Serialize;

use crate::Common;
use crate::disk::Disk;
use crate::files::many;
use crate::fleet::Fleet;
use crate::net::{Long, Place, prepare};
use crate::process::Cost;
use crate::rsync::{self, Daemon};
use crate::table::{Results, Row, round};

const LOOK: Duration = Duration::from_millis(5);

/// A run that makes no file in place for so long is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Options of `engine-bench small`.
#[derive(clap::Args)]
#[command(after_help = "\
The long link is emulated between two namespaces with TUN devices, and takes its share of the processor: needs root
and /dev/net/tun. Files are written just before and so lie in the system's cache. Example:
  engine-bench small --files 100000 --bytes 10KB --over link --rate 1gbit --rtt 100ms")]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// How many.
    #[arg(long, default_value_t = 100_000)]
    files: usize,
    /// Bytes of each.
    #[arg(long, default_value = "10000", value_parser = size)]
    bytes: u64,
    /// Between the two. May be given several times or with commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Over::Link, Over::Loopback])]
    over: Vec<Over>,
    /// The link's rate, both ways.
    #[arg(long, default_value = "1gbit", value_parser = rate)]
    rate: u64,
    /// The link's round trip time.
    #[arg(long, default_value = "100ms", value_parser = rtt)]
    rtt: Duration,
    /// Who. May be given several times or with commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Who::Flotilla, Who::Rsync])]
    contender: Vec<Who>,
    /// Writes into `--dir` itself instead of a new ext4 file system in an image there. On ext4 files that somebody
    /// removed in the last minutes make new ones slow.
    #[arg(long)]
    here: bool,
    /// Every contender so often, in turns.
    #[arg(long, default_value_t = 1)]
    runs: usize,
}

fn size(text: &str) -> Result<u64, String> {
    units::size(text, 0..=1_000_000_000)
}

fn rate(text: &str) -> Result<u64, String> {
    units::rate(text, 1_000_000..=10_000_000_000)
}

fn rtt(text: &str) -> Result<Duration, String> {
    units::time(text, Duration::from_secs(10))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Over {
    Link,
    Loopback,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Who {
    Flotilla,
    Rsync,
}

impl std::fmt::Display for Over {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::Link { "link" } else { "loopback" })
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::Flotilla { "flotilla" } else { "rsync" })
    }
}

#[derive(Default, Serialize)]
struct Small {
    contender: String,
    over: String,
    run: usize,
    files: usize,
    bytes: u64,
    /// Until the source had read and hashed everything; Flotilla only.
    index_seconds: Option<f64>,
    /// From then, or from the start, until everything was in place under its name, with mode and time.
    place_seconds: f64,
    files_per_second: f64,
    /// With the index.
    total_seconds: f64,
    files_per_second_in_total: f64,
    /// Until it was also on the disk for good; Flotilla only.
    synced_seconds: Option<f64>,
    source_cpu_seconds: Option<f64>,
    destination_cpu_seconds: Option<f64>,
    source_memory: Option<u64>,
    destination_memory: Option<u64>,
    /// Packets that crossed to the far end, those lost to full queues and sockets both ways, and whether the emulator
    /// itself lost none; the link only.
    packets: Option<u64>,
    packets_lost: Option<u64>,
    sound: Option<bool>,
}

impl Row for Small {
    const HEADER: &'static [&'static str] = &[
        "over",
        "who",
        "run",
        "files",
        "index",
        "in place",
        "files/s",
        "with index",
        "files/s",
        "synced",
        "CPU source",
        "destination",
        "memory",
        "",
        "lost",
    ];

    fn cells(&self) -> Vec<String> {
        let seconds = |s: Option<f64>| s.map_or("-".into(), |s| format!("{s:.2} s"));
        let memory = |m: Option<u64>| m.map_or("-".into(), |m| format!("{} MB", m / 1_000_000));
        vec![
            self.over.clone(),
            self.contender.clone(),
            self.run.to_string(),
            self.files.to_string(),
            seconds(self.index_seconds),
            seconds(Some(self.place_seconds)),
            format!("{:.0}", self.files_per_second),
            seconds(Some(self.total_seconds)),
            format!("{:.0}", self.files_per_second_in_total),
            seconds(self.synced_seconds),
            seconds(self.source_cpu_seconds),
            seconds(self.destination_cpu_seconds),
            memory(self.source_memory),
            memory(self.destination_memory),
            match self.sound {
                Some(false) => "void: the emulator was too slow".into(),
                _ => self.packets_lost.map_or("-".into(), |lost| lost.to_string()),
            },
        ]
    }
}

/// Runs everything.
pub(crate) fn run(args: &Args) -> Result<bool> {
    prepare()?;
    let folder = args.common.folder()?;
    let source = folder.path().join("source");
    fs::create_dir_all(&source)?;
    many(&source, args.files, args.bytes)?;
    let mut results = Results::new(args.common.json);
    for &over in &args.over {
        for run in 1..=args.runs {
            for &who in &args.contender {
                if who == Who::Rsync && !rsync::is_here() {
                    continue;
                }
                let dir = folder.path().join(format!("{over}-{who}-{run}"));
                fs::create_dir_all(&dir)?;
                let disk = if args.here { None } else { Some(Disk::mount(&dir, args.files, args.bytes)?) };
                let mut row = Trial { args, dir: &dir, source: &source }
                    .hold(over, who)
                    .with_context(|| format!("{who} over {over}"))?;
                row.run = run;
                results.add(row)?;
                drop(disk);
                if !args.common.keep {
                    fs::remove_dir_all(&dir)?;
                }
            }
        }
    }
    results.print();
    Ok(true)
}

struct Trial<'a> {
    args: &'a Args,
    dir: &'a Path,
    source: &'a Path,
}

impl Trial<'_> {
    fn hold(&self, over: Over, who: Who) -> Result<Small> {
        let link = match over {
            Over::Link => Some(Long::start(self.args.rate, self.args.rtt)?),
            Over::Loopback => None,
        };
        let here = || (Place::here(), "127.0.0.1".to_owned());
        let near = link.as_ref().map_or_else(here, Long::near);
        let far = link.as_ref().map_or_else(here, Long::far);
        // The last measurement's writes are not this one's.
        nix::unistd::sync();
        let mut row = match who {
            Who::Flotilla => self.flotilla(near, far)?,
            Who::Rsync => self.rsync(near, far)?,
        };
        (row.contender, row.over) = (who.to_string(), over.to_string());
        if let Some(link) = &link {
            let (sound, packets, lost) = link.report();
            (row.sound, row.packets, row.packets_lost) = (Some(sound), Some(packets), Some(lost));
        }
        let found = differences(self.source, &self.dir.join("disk/got"))?;
        ensure!(
            found.is_empty(),
            "what arrived is not what was sent:\n{}",
            found.lines().take(20).collect::<String>()
        );
        Ok(row)
    }

    fn flotilla(&self, near: (Place, String), far: (Place, String)) -> Result<Small> {
        let mut fleet = Fleet::start(&self.dir.join("fleet"), near.0.clone(), &near.1)?;
        fleet.enrol(vec![("source".into(), near.0, near.1), ("destination".into(), far.0, far.1)])?;
        let (got, staging) = (self.dir.join("disk/got"), self.dir.join("disk/got/.flotilla"));
        let cost = |fleet: &Fleet, n: usize| fleet.agents[n].process().map(|p| p.cost());
        let before: [Cost; 2] = [cost(&fleet, 0)?, cost(&fleet, 1)?];
        let began = Instant::now();
        let run = fleet.distribute("small", self.source, &[got])?;
        let (mut indexed, mut staged, mut placed) = (None, false, None);
        while placed.is_none() {
            let now = began.elapsed().as_secs_f64();
            if indexed.is_none() && fleet.agents[0].times("serving") > 0 {
                indexed = Some(now);
            }
            // The folder of unfinished files goes when there is none any more.
            let there = staging.exists();
            staged |= there;
            if staged && !there
                || fleet.agents[1].times("done") + fleet.agents[1].times("done_with_errors") > 0
            {
                placed = Some(now);
            }
            ensure!(
                began.elapsed() < PATIENCE + self.fair(),
                "files are not in place after {now:.0} s:\n{}",
                fleet.agents[1].process()?.last_words()
            );
            std::thread::sleep(LOOK);
        }
        while fleet.agents[1].times("done") == 0 {
            ensure!(
                began.elapsed() < PATIENCE + self.fair(),
                "the run is not done:\n{}",
                fleet.agents[1].process()?.last_words()
            );
            std::thread::sleep(LOOK);
        }
        let synced = began.elapsed().as_secs_f64();
        let after = [cost(&fleet, 0)?, cost(&fleet, 1)?];
        fleet.wait(&run, Duration::from_secs(60))?;
        let cpu = |n: usize| Some(round(after[n].cpu - before[n].cpu, 2));
        Ok(Small {
            source_cpu_seconds: cpu(0),
            destination_cpu_seconds: cpu(1),
            source_memory: Some(after[0].memory),
            destination_memory: Some(after[1].memory),
            synced_seconds: Some(round(synced, 3)),
            ..self.row(indexed, placed.unwrap_or_default())
        })
    }

    fn rsync(&self, near: (Place, String), far: (Place, String)) -> Result<Small> {
        let daemon = Daemon::start(self.dir, &near.0, &near.1, self.source)?;
        let began = Instant::now();
        let mut process = daemon.fetch("rsync", self.dir, &far.0, &self.dir.join("disk/got"))?;
        rsync::finish(&mut process, PATIENCE + self.fair())?;
        Ok(self.row(None, began.elapsed().as_secs_f64()))
    }

    /// What an engine that makes 200 files a second needs.
    fn fair(&self) -> Duration {
        Duration::from_secs(self.args.files as u64 / 200)
    }

    fn row(&self, indexed: Option<f64>, placed: f64) -> Small {
        let (files, since) = (self.args.files as f64, indexed.unwrap_or(0.0));
        Small {
            files: self.args.files,
            bytes: self.args.bytes,
            index_seconds: indexed.map(|s| round(s, 3)),
            place_seconds: round(placed - since, 3),
            files_per_second: round(files / (placed - since).max(1e-3), 0),
            total_seconds: round(placed, 3),
            files_per_second_in_total: round(files / placed.max(1e-3), 0),
            ..Small::default()
        }
    }
}
