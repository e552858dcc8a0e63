//! What µTP2 costs in CPU beside quinn: memory to memory over loopback, one connection, encrypted, datagrams of
//! 1452 bytes, sender and receiver in two processes, the two protocols in turns.
//!
//! `cargo run -p utp2-tokio --example beside_quinn -- [--pairs 5] [--bytes 4000000000] [--threads 1] [--only utp2]
//! [--quinn-cc cubic] [--quinn-streams 1] [--json]`
//!
//! Time runs on the sender from the first byte handed over until the last one is acknowledged; the CPU is that of
//! each whole process in that time, system calls included. Read first: `transfer.rs` for what is measured.

mod ours;
mod peer;
mod transfer;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::transfer::Settings;

const USAGE: &str = "\
What \u{b5}TP2 costs in CPU beside quinn, memory to memory over loopback, the two in turns.

Usage: beside_quinn [--pairs 5] [--bytes 4000000000] [--threads 1] [--only utp2|quinn] [--quinn-cc cubic]
                    [--quinn-streams 1] [--json]";

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--help" || a == "-h") {
        println!("{USAGE}");
        return Ok(());
    }
    let settings = Settings::parse(&args)?;
    match args.first().map(String::as_str) {
        Some("serve") => settings.runtime()?.block_on(async {
            match args.get(1).map(String::as_str) {
                Some("utp2") => ours::serve(&settings).await,
                _ => peer::serve(&settings).await,
            }
        }),
        Some("send") => {
            let address = args.get(2).context("send PROTOCOL ADDRESS")?;
            settings.runtime()?.block_on(async {
                match args.get(1).map(String::as_str) {
                    Some("utp2") => ours::send(&settings, address).await,
                    _ => peer::send(&settings, address).await,
                }
            })
        }
        _ => compare(&args, &settings),
    }
}

/// Runs the pairs and prints what came of them.
fn compare(args: &[String], settings: &Settings) -> anyhow::Result<()> {
    let protocols: &[&str] = match settings.only.as_deref() {
        None => &["utp2", "quinn"],
        Some("utp2") => &["utp2"],
        Some("quinn") => &["quinn"],
        Some(other) => bail!("--only utp2 or quinn, not {other}"),
    };
    let mut runs: Vec<(&str, Value)> = Vec::new();
    for _ in 0..settings.pairs {
        for &protocol in protocols {
            let run = one(protocol, args).with_context(|| format!("a run of {protocol}"))?;
            if !settings.json {
                eprintln!("{protocol:6} {}", line(&run));
            }
            runs.push((protocol, run));
        }
    }
    let medians = |protocol: &str| -> Value {
        let of = |key: &str| {
            let mut all: Vec<f64> =
                runs.iter().filter(|r| r.0 == protocol).filter_map(|r| r.1[key].as_f64()).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied()
        };
        let keys = ["mb_s", "sender_cpu_s_gb", "receiver_cpu_s_gb", "sender_sys_share", "receiver_sys_share"];
        keys.iter().map(|key| ((*key).to_owned(), json!(of(key)))).collect::<serde_json::Map<_, _>>().into()
    };
    let all: Value =
        protocols.iter().map(|p| ((*p).to_owned(), medians(p))).collect::<serde_json::Map<_, _>>().into();
    let ratio = all["utp2"]["mb_s"].as_f64().zip(all["quinn"]["mb_s"].as_f64()).map(|(a, b)| a / b);
    if settings.json {
        let runs: Vec<Value> = runs.iter().map(|(p, r)| json!({ "protocol": p, "run": r })).collect();
        println!("{}", json!({ "medians": all, "ratio": ratio, "runs": runs }));
        return Ok(());
    }
    println!("medians of {} runs, {} MB each:", settings.pairs, settings.bytes / 1_000_000);
    for protocol in protocols {
        println!("{protocol:6} {}", line(&all[*protocol]));
    }
    if let Some(ratio) = ratio {
        println!("utp2 ÷ quinn: {ratio:.2}");
    }
    Ok(())
}

fn line(run: &Value) -> String {
    let number = |key: &str| run[key].as_f64().unwrap_or(f64::NAN);
    format!(
        "{:7.0} MB/s, CPU s/GB: sender {:.2} ({:.0} % in the kernel), receiver {:.2} ({:.0} %)",
        number("mb_s"),
        number("sender_cpu_s_gb"),
        number("sender_sys_share") * 100.0,
        number("receiver_cpu_s_gb"),
        number("receiver_sys_share") * 100.0,
    )
}

/// Ends a process that is still there when something went wrong.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It has ended by itself if all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(role: &str, protocol: &str, address: &str, args: &[String]) -> anyhow::Result<Guard> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).arg(protocol);
    if !address.is_empty() {
        command.arg(address);
    }
    Ok(Guard(command.args(args).stdout(Stdio::piped()).spawn()?))
}

/// One transfer between two processes.
fn one(protocol: &str, args: &[String]) -> anyhow::Result<Value> {
    let mut receiver = start("serve", protocol, "", args)?;
    let mut lines = BufReader::new(receiver.0.stdout.take().context("no output")?).lines();
    let address = lines.next().context("the receiver did not start")??;
    let mut sender = start("send", protocol, &address, args)?;
    let mut sent = BufReader::new(sender.0.stdout.take().context("no output")?).lines();
    let sent: Value = serde_json::from_str(&sent.next().context("the sender failed")??)?;
    let received: Value = serde_json::from_str(&lines.next().context("the receiver failed")??)?;
    sender.0.wait()?;
    receiver.0.wait()?;
    let number = |v: &Value, key: &str| v[key].as_f64().with_context(|| format!("{key} is missing"));
    let bytes = number(&sent, "bytes")?;
    if number(&received, "bytes")? < bytes {
        bail!("only {} of {bytes} bytes arrived", received["bytes"]);
    }
    let gb = bytes / 1e9;
    Ok(json!({
        "mb_s": bytes / 1e6 / number(&sent, "seconds")?,
        "sender_cpu_s_gb": number(&sent, "cpu")? / gb,
        "receiver_cpu_s_gb": number(&received, "cpu")? / gb,
        "sender_sys_share": number(&sent, "sys_share")?,
        "receiver_sys_share": number(&received, "sys_share")?,
        "sender": sent,
        "receiver": received,
    }))
}
