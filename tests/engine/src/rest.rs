//! A very large folder that is the same at two agents and at rest: how long until one changed file is noticed and
//! delivered, and what being at rest costs.
//!
//! Both folders are made before, so that what is waited for at first is two indexes and an agreement, not a transfer.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::members_differ;
use serde::Serialize;
use serde_json::Value;

use crate::Common;
use crate::files::{PER_FOLDER, many, many_name, same_times};
use crate::fleet::Fleet;
use crate::net::{Place, prepare};
use crate::process::Cost;
use crate::table::{Results, Row, round};

/// How often agents are asked whether they are in sync.
const ASK: Duration = Duration::from_millis(500);

/// How often a file is looked at that is to arrive.
const LOOK: Duration = Duration::from_millis(2);

/// A change that does not arrive for so long never does.
const LOST: Duration = Duration::from_secs(60);

/// Options of `engine-bench rest`.
#[derive(clap::Args)]
#[command(after_help = "\
Makes the files twice: a million take 2,000,000 inodes and, unless they are empty, 8 GB. The first agreement of a
million takes minutes. Fails if a change took longer than --within. Example:
  engine-bench rest --files 1000000 --bytes 0")]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// How many, a thousand in a folder.
    #[arg(long, default_value_t = 1_000_000)]
    files: usize,
    /// Bytes of each.
    #[arg(long, default_value = "0", value_parser = size)]
    bytes: u64,
    /// Changes, from either side in turns.
    #[arg(long, default_value_t = 10)]
    changes: usize,
    /// How long both are watched at rest.
    #[arg(long, default_value = "20s", value_parser = time)]
    idle: Duration,
    /// The longest that a change may take.
    #[arg(long, default_value = "2s", value_parser = time)]
    within: Duration,
    /// The longest that the first agreement may take.
    #[arg(long, default_value = "3600s", value_parser = time)]
    patience: Duration,
}

fn size(text: &str) -> Result<u64, String> {
    units::size(text, 0..=1_000_000)
}

fn time(text: &str) -> Result<Duration, String> {
    units::time(text, Duration::from_secs(86_400))
}

#[derive(Serialize)]
struct Rest {
    files: usize,
    bytes: u64,
    /// Until both had an index and said that they are the same.
    agreed_seconds: f64,
    /// What that took of a processor, both agents together.
    agreed_cpu_seconds: f64,
    /// What both take of a processor at rest, as a share of one.
    idle_share: f64,
    /// The most memory that either had.
    memory: u64,
    /// From the write at one until the content was at the other, in the order of the changes.
    delivered_seconds: Vec<f64>,
    /// The longest of them.
    delivered_seconds_max: f64,
}

impl Row for Rest {
    const HEADER: &'static [&'static str] =
        &["files", "agreed", "CPU both", "at rest", "memory", "a change arrives, at most", "each"];

    fn cells(&self) -> Vec<String> {
        let each: Vec<String> = self.delivered_seconds.iter().map(|s| format!("{s:.2}")).collect();
        vec![
            self.files.to_string(),
            format!("{:.1} s", self.agreed_seconds),
            format!("{:.1} s", self.agreed_cpu_seconds),
            format!("{:.2} %", self.idle_share * 100.0),
            format!("{} MB", self.memory / 1_000_000),
            format!("{:.3} s", self.delivered_seconds_max),
            each.join(" "),
        ]
    }
}

/// Runs it. False if a change took too long.
pub(crate) fn run(args: &Args) -> Result<bool> {
    ensure!(args.files > 0 && args.changes > 0, "no file, or no change of it, is nothing to measure");
    prepare()?;
    let folder = args.common.folder()?;
    let trees = [folder.path().join("tree-0"), folder.path().join("tree-1")];
    for tree in &trees {
        many(tree, args.files, args.bytes)?;
        same_times(tree)?;
    }
    let mut fleet = Fleet::start(&folder.path().join("fleet"), Place::here(), "127.0.0.1")?;
    let node = |name: &str| (name.to_owned(), Place::here(), "127.0.0.1".to_owned());
    fleet.enrol(vec![node("one"), node("other")])?;
    let row = Trial { args, fleet, trees }.hold()?;
    let held = row.delivered_seconds_max <= args.within.as_secs_f64();
    let mut results = Results::new(args.common.json);
    results.add(row)?;
    results.print();
    Ok(held)
}

struct Trial<'a> {
    args: &'a Args,
    fleet: Fleet,
    trees: [PathBuf; 2],
}

impl Trial<'_> {
    fn hold(&self) -> Result<Rest> {
        let (began, before) = (Instant::now(), self.cost()?);
        let run = self.fleet.synchronize("rest", &self.trees)?;
        let entries = (self.args.files + self.args.files.div_ceil(PER_FOLDER)) as u64;
        self.agreed(&run, entries, self.args.patience)?;
        let (agreed, after) = (began.elapsed().as_secs_f64(), self.cost()?);
        let began = Instant::now();
        std::thread::sleep(self.args.idle);
        let idle = (self.cost()?.cpu - after.cpu) / began.elapsed().as_secs_f64();
        let delivered = (0..self.args.changes).map(|n| self.change(n)).collect::<Result<Vec<_>>>()?;
        self.agreed(&run, entries, LOST)?;
        let found = members_differ(&self.trees[0], &self.trees[1])?;
        ensure!(found.is_empty(), "they are not the same:\n{}", found.lines().take(20).collect::<String>());
        Ok(Rest {
            files: self.args.files,
            bytes: self.args.bytes,
            agreed_seconds: round(agreed, 1),
            agreed_cpu_seconds: round(after.cpu - before.cpu, 1),
            idle_share: round(idle, 4),
            memory: self.cost()?.memory,
            delivered_seconds_max: delivered.iter().copied().fold(0.0, f64::max),
            delivered_seconds: delivered,
        })
    }

    /// Changes one file, another one each time, and waits until the other side has it.
    fn change(&self, nth: usize) -> Result<f64> {
        let (from, to) = (&self.trees[nth % 2], &self.trees[1 - nth % 2]);
        let name = many_name(nth * (self.args.files / self.args.changes));
        let text = format!("changed {nth}");
        let began = Instant::now();
        fs::write(from.join(&name), &text)?;
        while fs::read(to.join(&name)).ok().as_deref() != Some(text.as_bytes()) {
            ensure!(began.elapsed() < LOST, "a change of {name} does not arrive:\n{}", self.last_words());
            std::thread::sleep(LOOK);
        }
        Ok(round(began.elapsed().as_secs_f64(), 3))
    }

    /// Waits until both have so many entries and say that they are the same.
    fn agreed(&self, run: &str, entries: u64, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let states = self.fleet.agents.iter().map(|agent| state(&agent.status()?, run));
            let states = states.collect::<Result<Vec<_>>>()?;
            if states.iter().all(|state| *state == (true, entries)) {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "not the same {entries} entries: {states:?}\n{}",
                self.last_words()
            );
            std::thread::sleep(ASK);
        }
    }

    /// Processor time of both together, and the memory of the larger one.
    fn cost(&self) -> Result<Cost> {
        let mut all = Cost::default();
        for agent in &self.fleet.agents {
            let one = agent.process()?.cost();
            all = Cost { cpu: all.cpu + one.cpu, memory: all.memory.max(one.memory) };
        }
        Ok(all)
    }

    fn last_words(&self) -> String {
        self.fleet.agents.iter().filter_map(|agent| Some(agent.process().ok()?.last_words())).collect()
    }
}

/// Whether an agent says that it is in sync, and with how many entries.
fn state(status: &Value, run: &str) -> Result<(bool, u64)> {
    let runs = status["runs"].as_array().context("runs")?;
    // One that has not heard of the job yet.
    let Some(found) = runs.iter().find(|one| one["run"] == run) else { return Ok((false, 0)) };
    let entries = found["sync"]["entries"].as_u64().unwrap_or(0);
    Ok((found["state"] == "in sync", entries))
}
