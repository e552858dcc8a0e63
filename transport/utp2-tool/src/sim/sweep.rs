//! `utp2 sim sweep`: runs the cases of a grid on a few threads and keeps the table.
//!
//! Finished cases are appended to the table at once and skipped by the next run, since whole grids take
//! hours for some protocols. When all are there the table is put in order.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use utp2_sim::sweep::{Case, Grid, difference};

use super::args::ProtocolArg;

pub(crate) const EXAMPLES: &str = "\
Examples:
  utp2 sim sweep --grid ci --check transport/utp2-sim/snapshots/ci.tsv
  utp2 sim sweep --grid ci --again --out transport/utp2-sim/snapshots/ci.tsv    (a change that is meant)
  utp2 sim sweep --grid full --jobs 2 --out full.tsv
  utp2 sim sweep --grid full --protocol quinn-bbr --out full.tsv      (adds to the same table)
  utp2 sim sweep --grid special --only outage

Tables are lines of columns parted by tabs. `holds` says whether what is demanded was reached; the exit code
is 1 if a line says no, or differs from the kept one.";

#[derive(Args)]
pub(crate) struct SweepArgs {
    /// Which cases.
    #[arg(long, value_enum, default_value_t = GridArg::Ci)]
    grid: GridArg,
    /// What the flows speak.
    #[arg(long, value_enum, default_value_t = ProtocolArg::Utp2)]
    protocol: ProtocolArg,
    /// Cases run at the same time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64), default_value_t = 1)]
    jobs: u8,
    /// Only cases whose name or columns contain this text, such as "outage" or "20, 50": columns parted by commas,
    /// as in what is told of a case that is done, or by spaces.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Keep the table here: finished cases are added, those that are there already are not run again.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Run also those that are in the table, and put the new lines in the place of the old.
    #[arg(long, requires = "out")]
    again: bool,
    /// Run all and compare with this table.
    #[arg(long, value_name = "FILE", conflicts_with = "out")]
    check: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum GridArg {
    /// Slow links, within a minute.
    Ci,
    /// {20 Mbit/s, 1, 5, 10 Gbit/s} × {1, 50, 200, 500 ms} × {0, 0.1, 1, 5 %}: a quarter of an hour, for
    /// others hours.
    Full,
    /// Several flows, flows beside CUBIC.
    Fairness,
    /// Bursts, reordering, queues, paths that change, whole transfers.
    Special,
}

impl From<GridArg> for Grid {
    fn from(arg: GridArg) -> Self {
        match arg {
            GridArg::Ci => Self::Ci,
            GridArg::Full => Self::Full,
            GridArg::Fairness => Self::Fairness,
            GridArg::Special => Self::Special,
        }
    }
}

/// Whether everything demanded was reached, or nothing differs.
pub(super) fn run(args: &SweepArgs) -> anyhow::Result<bool> {
    let grid = Grid::from(args.grid);
    let mut cases = grid.cases(args.protocol.into());
    if let Some(only) = &args.only {
        cases.retain(|c| is_meant(&c.key, only));
        if cases.is_empty() {
            bail!("no case of this grid has {only:?} in its name; leave out --only to see them all");
        }
    }
    let mut kept = match args.out.as_deref().or(args.check.as_deref()) {
        Some(path) => read(path, grid, args.check.is_some())?,
        None => Vec::new(),
    };
    if args.again {
        kept.retain(|l| !cases.iter().any(|c| c.owns(l)));
        if let Some(path) = &args.out {
            write(path, grid, kept.iter())?;
        }
    }
    let here = |case: &Case| kept.iter().filter(|l| case.owns(l)).cloned().collect::<Vec<String>>();
    let todo: Vec<&Case> = cases.iter().filter(|c| args.out.is_none() || here(c).is_empty()).collect();
    if args.out.is_none() {
        print(grid.header());
    }
    let fresh = run_cases(&todo, args, grid)?;
    let table = |case: &Case| {
        let new = fresh.iter().filter(|l| case.owns(l)).cloned().collect::<Vec<String>>();
        if new.is_empty() { here(case) } else { new }
    };
    let lines: Vec<String> = cases.iter().flat_map(table).collect();
    if args.check.is_some() {
        let before: Vec<String> = cases.iter().flat_map(here).collect();
        let differences = difference(&before.join("\n"), &lines);
        differences.iter().for_each(|d| print(d));
        if !differences.is_empty() {
            eprintln!("utp2: the table differs; if that is meant, run with --again --out");
        }
        return Ok(differences.is_empty());
    }
    if let Some(path) = &args.out {
        // In the order of the grid, behind the lines of others.
        let others: Vec<String> = kept.iter().filter(|l| !cases.iter().any(|c| c.owns(l))).cloned().collect();
        write(path, grid, others.iter().chain(&lines))?;
    }
    let holds = |l: &String| !l.rsplit('\t').next().is_some_and(|h| h.starts_with("no"));
    let bad = lines.iter().filter(|l| !holds(l)).count();
    eprintln!("utp2: {} lines, {bad} do not hold", lines.len());
    Ok(bad == 0)
}

/// Whether the columns of a case contain a text.
fn is_meant(key: &[String], only: &str) -> bool {
    let plain = |text: &str| text.to_lowercase().replace(", ", " ").replace(',', " ");
    plain(&key.join(" ")).contains(&plain(only))
}

fn write<'a>(path: &Path, grid: Grid, lines: impl Iterator<Item = &'a String>) -> anyhow::Result<()> {
    let all: String =
        std::iter::once(grid.header()).chain(lines.map(String::as_str)).map(|l| format!("{l}\n")).collect();
    fs::write(path, all).with_context(|| format!("cannot write {}", path.display()))
}

/// The lines of a table, without its header. One that does not exist is empty, unless it must exist.
fn read(path: &Path, grid: Grid, must_exist: bool) -> anyhow::Result<Vec<String>> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let mut lines = text.lines().map(str::to_owned);
            match lines.next() {
                Some(header) if header == grid.header() => Ok(lines.collect()),
                None => Ok(Vec::new()),
                Some(_) => bail!("{} is not a table of this grid; name another file", path.display()),
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must_exist => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Runs the cases and gives their lines, in any order.
fn run_cases(todo: &[&Case], args: &SweepArgs, grid: Grid) -> anyhow::Result<Vec<String>> {
    let file = match &args.out {
        Some(path) => {
            let mut file = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("cannot open {}", path.display()))?;
            if file.metadata().is_ok_and(|m| m.len() == 0) {
                writeln!(file, "{}", grid.header())?;
            }
            Some(file)
        }
        None => None,
    };
    let next = AtomicUsize::new(0);
    let shared = Mutex::new((Vec::new(), file, Ok(()), 0));
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                while let Some(case) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let started = Instant::now();
                    let lines = case.lines(&case.run());
                    let took = started.elapsed().as_secs_f64();
                    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    shared.3 += 1;
                    let (done, all) = (shared.3, todo.len());
                    eprintln!("utp2: {done} of {all}: {} [{took:.1} s]", case.key.join(", "));
                    for line in lines {
                        match &mut shared.1 {
                            Some(file) => {
                                if let Err(e) = writeln!(file, "{line}") {
                                    shared.2 = Err(e);
                                }
                            }
                            None if args.check.is_none() => print(&line),
                            None => {}
                        }
                        shared.0.push(line);
                    }
                }
            });
        }
    });
    let (lines, _, written, _) = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    written.context("cannot write the table")?;
    Ok(lines)
}

/// A reader that has gone away is no reason to stop.
fn print(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_named_as_they_are_told_or_with_spaces() {
        let key = ["utp2", "20", "50", "0", "0.5"].map(str::to_owned);
        for only in ["20, 50", "20,50", "20 50 ", "UTP2, 20", "0.5"] {
            assert!(is_meant(&key, only), "{only}");
        }
        assert!(!is_meant(&key, "50, 20"));
    }
}
