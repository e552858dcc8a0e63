//! `replica-trial`: kills and cuts off replicas and servers for some minutes and prints what the checker found.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use replicas::{Plan, run, world};

/// Three control services on three NATS servers, agents and clients at work, faults at random; then a report.
#[derive(Debug, Parser)]
struct Line {
    /// How long faults go on
    #[arg(long, default_value_t = 15.0)]
    minutes: f64,
    /// Agents, all in this process, each with its own identity and connection
    #[arg(long, default_value_t = 500)]
    agents: usize,
    /// Which replica or server, which fault, which job
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let line = Line::parse();
    if !world::is_inside() {
        return match world::go_inside() {
            Ok(code) => code,
            Err(error) => {
                eprintln!("namespaces cannot be had: {error:#}");
                ExitCode::from(2)
            }
        };
    }
    let time = Duration::from_secs_f64(line.minutes * 60.0);
    match run(&Plan { time, agents: line.agents, seed: line.seed }) {
        Ok(report) => {
            println!("{report}");
            if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("the trial could not be held: {error:#}");
            ExitCode::from(2)
        }
    }
}
