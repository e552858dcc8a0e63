//! `utp2 sim` as a process: what scripts read, and what somebody is told who got it wrong.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_utp2"))
        .arg("sim")
        .args(args)
        .env_remove("FLOTILLA_LOG")
        .output()
        .unwrap()
}

fn json(args: &[&str]) -> Value {
    let out = sim(args);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

const SMALL: [&str; 8] = ["--rate", "20mbit", "--rtt", "30ms", "--loss", "1%", "--seconds", "5"];

#[test]
fn the_keys_that_scripts_rely_on_are_there_and_the_same_seed_gives_the_same() {
    let args = [&SMALL[..], &["--json"]].concat();
    let one = json(&args);
    for key in [
        "goodput_mbps",
        "ceiling_mbps",
        "utilization",
        "utilization_whole",
        "rtts_to_90",
        "retransmit_ratio",
        "self_loss",
        "jain",
        "seconds",
    ] {
        assert!(one[key].is_number(), "{key} in {one}");
    }
    // 20 Mbit/s × 1440 / 1538 × 0.99.
    assert!((one["ceiling_mbps"].as_f64().unwrap() - 18.538).abs() < 0.01, "{one}");
    assert!(one["utilization"].as_f64().unwrap() > 0.8, "{one}");
    assert_eq!(one, json(&args));
    assert_ne!(one, json(&[&args[..], &["--seed", "2"]].concat()));
}

#[test]
fn bytes_flows_and_competitors() {
    let out = json(&["--rate", "20mbit", "--rtt", "20ms", "--bytes", "2MB", "--flows", "2", "--json"]);
    assert_eq!(out["bytes"], 4_000_000);
    for other in ["cubic", "quinn-bbr:1s"] {
        let out = json(&[&SMALL[..], &["--json", "--mode", "fair", "--cross-traffic", other]].concat());
        assert_eq!(out["flows"].as_array().unwrap().len(), 2);
        assert!(out["flows"][1]["bytes"].as_u64().unwrap() > 10_000, "{out}");
    }
}

#[test]
fn traces_and_plots_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let [trace, plot] = ["run.qlog", "run.svg"].map(|n| dir.path().join(n));
    let files = ["--trace", trace.to_str().unwrap(), "--plot", plot.to_str().unwrap()];
    assert!(sim(&[&SMALL[..], &files, &["--outage", "2s:500ms"]].concat()).status.success());
    assert!(fs::read_to_string(trace).unwrap().starts_with("\u{1e}{"));
    assert!(fs::read_to_string(plot).unwrap().starts_with("<svg"));
}

#[test]
fn what_is_wrong_is_said_with_what_would_be_right() {
    for (args, says) in [
        (&["--rate", "fast"][..], "number"),
        (&["--step", "30s"], "30s:200mbit"),
        (&["--aqm", "red"], "codel"),
        (&["--cross-traffic", "tcp"], "quinn-cubic"),
        (&["--bytes", "1MB", "--seconds", "5"], "cannot be used with"),
        (&["--outage", "5:1s"], "needs a unit"),
        (&["--rtt-step", "30s"], "30s:120ms"),
    ] {
        let out = sim(args);
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(says), "{args:?}: {text}");
    }
    let out = sim(&["--seconds", "1", "--plot", "/nowhere/run.svg"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("/nowhere/run.svg"));
}

#[test]
fn a_sweep_goes_on_where_it_stopped_and_compares() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table.tsv");
    let table = path.to_str().unwrap();
    let only = ["sweep", "--only", "20 50 "];
    let run = |more: &[&str]| sim(&[&only[..], more].concat());
    run(&["--out", table]);
    let first = fs::read_to_string(&path).unwrap();
    assert_eq!(first.lines().count(), 4, "{first}");
    // A line that is there is not made again; one that is missing is.
    let changed = first.replacen("\t50\t0\t0.5\t", "\t50\t0\t0.5\tkept", 1);
    let cut: String = changed.lines().take(3).map(|l| format!("{l}\n")).collect();
    fs::write(&path, cut).unwrap();
    run(&["--out", table]);
    assert_eq!(fs::read_to_string(&path).unwrap(), changed);
    let checked = run(&["--check", table]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!((checked.status.code(), said.matches("\n- ").count()), (Some(1), 1), "{said}");
    run(&["--again", "--out", table]);
    assert_eq!(fs::read_to_string(&path).unwrap(), first);
    assert_eq!(run(&["--check", table]).status.code(), Some(0));
    let wrong = sim(&["sweep", "--only", "warp drive"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("leave out --only"));
}
