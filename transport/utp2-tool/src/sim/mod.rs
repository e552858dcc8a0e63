//! `utp2 sim`: flows over simulated links, in virtual time.
//!
//! Reads the command line (`args`), runs the scenario (crate `utp2-sim`), tells what came of it (`report`),
//! and if wanted how (`trace`, `plot`). `sweep` runs whole grids.

pub(crate) mod args;
mod plot;
mod report;
mod sweep;
mod trace;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use utp2_sim::Sample;

use args::{RunArgs, SimArgs, SimCommand};

/// What the help ends with.
pub(crate) const EXAMPLES: &str = "\
Examples:
  A long path with loss, steady rate and how it was found:
    utp2 sim --rate 1gbit --rtt 200ms --loss 1% --plot run.svg
  The same for others:
    utp2 sim --rate 1gbit --rtt 200ms --loss 1% --protocol quinn-bbr
  Beside a TCP that came first:
    utp2 sim --rate 100mbit --rtt 50ms --mode fair --cross-traffic cubic --start 10s --seconds 120
  A path that changes:
    utp2 sim --rate 1gbit --step 20s:200mbit --step 40s:1gbit --outage 60s:30s --seconds 120
  All that has to hold, as a table:
    utp2 sim sweep --grid special

Rates are those on the wire. The ceiling is rate × payload share of a full datagram × (1 - loss); utilization
is goodput / ceiling in the steady part, utilization_whole over the whole run.";

/// Whether all is well.
pub(crate) fn run(args: &SimArgs) -> anyhow::Result<bool> {
    match &args.sweep {
        Some(SimCommand::Sweep(args)) => sweep::run(args),
        None => run_one(&args.run),
    }
}

/// Whether `--json` was asked for.
pub(crate) fn is_json(args: &SimArgs) -> bool {
    args.sweep.is_none() && args.run.json
}

fn run_one(args: &RunArgs) -> anyhow::Result<bool> {
    let scenario = args.scenario();
    let wanted = args.trace.is_some() || args.plot.is_some();
    // Before the work, so that a place that cannot be written is told at once.
    let trace = args.trace.as_deref().map(create).transpose()?;
    let plot = args.plot.as_deref().map(create).transpose()?;
    let every = if wanted { args.sample_every() } else { std::time::Duration::MAX };
    let mut samples: Vec<Sample> = Vec::new();
    let started = std::time::Instant::now();
    let outcome = scenario.run_sampled(every, |s| samples.push(s.clone()));
    tracing::info!(seconds = started.elapsed().as_secs_f64(), "simulated");
    if let (Some(file), Some(path)) = (trace, &args.trace) {
        trace::write(file, &scenario, &samples)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let (Some(mut file), Some(path)) = (plot, &args.plot) {
        let svg = plot::draw(&scenario, &samples, &outcome).context("cannot draw")?;
        file.write_all(svg.as_bytes())
            .and_then(|()| file.flush())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.json {
        crate::print_json(&report::json(&scenario, &outcome));
    } else {
        report::print(&scenario, &outcome);
    }
    Ok(outcome.is_good())
}

fn create(path: &Path) -> anyhow::Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(BufWriter::new(file))
}
