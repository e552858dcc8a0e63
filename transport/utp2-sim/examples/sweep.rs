//! A table of what µTP2 makes of a path: rows are round trips, columns chance loss, in virtual time.
//!
//! `cargo run -p utp2-sim --example sweep [-- MBIT [SECONDS]]`: the bottleneck's rate (default 100 Mbit/s) and
//! how long a transfer would take at that rate (default 20 s). A cell is the share of the ceiling used once
//! settled, and over the whole transfer.

use std::time::Duration;

use utp2_sim::Scenario;

const RTTS_MS: [u64; 5] = [1, 20, 100, 200, 600];
const LOSSES: [f64; 5] = [0.0, 0.001, 0.01, 0.05, 0.1];

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>());
    let mut next = |default| match args.next() {
        None => default,
        Some(Ok(n)) if n > 0 => n,
        Some(_) => {
            eprintln!("usage: sweep [MBIT [SECONDS]]");
            std::process::exit(2)
        }
    };
    let (mbit, seconds) = (next(100), next(20));
    println!(
        "{mbit} Mbit/s, {seconds} s of data, queue of one round trip; settled / whole, % of the ceiling"
    );
    let heads: Vec<String> = LOSSES.iter().map(|l| format!("{:>13}", format!("{} %", l * 100.0))).collect();
    println!("{:>7}{}", "RTT", heads.concat());
    for rtt in RTTS_MS {
        print!("{:>7}", format!("{rtt} ms"));
        for loss in LOSSES {
            let bytes = mbit * 125_000 * seconds;
            let outcome = Scenario::new(mbit * 1_000_000, Duration::from_millis(rtt), loss, bytes).run();
            let cell = if outcome.intact {
                format!("{:.1} / {:.1}", outcome.utilization * 100.0, outcome.utilization_whole * 100.0)
            } else {
                "not intact".to_owned()
            };
            print!("{cell:>13}");
        }
        println!();
    }
}
