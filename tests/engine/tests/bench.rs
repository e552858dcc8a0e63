//! The benchmarks, small enough to be tests: everything arrives, every figure is told and can be believed.

use std::process::Command;

use serde_json::Value;

/// Runs the benchmark; its results, or `None` where there can be no namespaces, said aloud.
fn bench(name: &str, args: &[&str]) -> Option<Vec<Value>> {
    let output = Command::new(env!("CARGO_BIN_EXE_engine-bench"))
        .args(args)
        .arg("--json")
        .env("FLOTILLA_BINARIES", e2e::binary("flotilla").parent().expect("a folder"))
        .output()
        .expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    let impossible = ["unshare:", "sch_tbf", "/dev/net/tun", "Operation not permitted"];
    if !output.status.success() && impossible.iter().any(|sign| errors.contains(sign)) {
        let required =
            ["CI", "FLOTILLA_REQUIRE_ALL"].into_iter().find(|name| std::env::var_os(name).is_some());
        assert!(required.is_none(), "{name} cannot run: {errors}");
        eprintln!("\n!!! SKIPPED {name}: {errors}\n");
        return None;
    }
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    Some(text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
}

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("{name} in {row}"))
}

#[test]
fn a_file_reaches_three_nodes_of_the_same_rate_also_when_one_leaves() {
    let args = ["spread", "--receivers", "3", "--size", "10MB", "--rate", "50mbit", "--leave", "30%"];
    let contenders = ["--contender", "flotilla,rsync-at-once"];
    let Some(rows) = bench("spread", &[&args[..], &contenders[..]].concat()) else { return };
    assert_eq!(rows.len(), 3, "{rows:?}");
    let (ours, left, rsync) = (&rows[0], &rows[1], &rows[2]);
    assert_eq!((number(ours, "left"), number(left, "left")), (0.0, 1.0));
    for row in &rows {
        assert!(number(row, "all_of_ideal") >= 1.0, "faster than the cable: {row}");
        assert!(number(row, "source_copies") >= 1.0, "less than the file: {row}");
    }
    // The source has one cable, and three want the file.
    assert!(number(rsync, "all_of_ideal") > 2.9 && number(rsync, "source_copies") > 2.9, "{rsync}");
    assert!(number(ours, "all_of_ideal") < 2.0, "nodes do not help each other: {ours}");
}

#[test]
fn small_files_are_in_place_over_a_long_link_and_on_loopback() {
    let args = [
        "small",
        "--files",
        "1500",
        "--rtt",
        "50ms",
        "--rate",
        "200mbit",
        "--contender",
        "flotilla",
        "--here",
    ];
    let Some(rows) = bench("small", &args) else { return };
    let over: Vec<&str> = rows.iter().filter_map(|row| row["over"].as_str()).collect();
    assert_eq!(over, ["link", "loopback"]);
    for row in &rows {
        assert!(number(row, "total_seconds") >= number(row, "index_seconds"), "{row}");
        assert!(number(row, "files_per_second") > 100.0, "{row}");
    }
}

#[test]
fn what_a_change_transfers_is_told() {
    let args = ["changed", "--size", "8MB", "--folder", "4MB", "--contender", "flotilla"];
    let Some(rows) = bench("changed", &args) else { return };
    assert_eq!(rows.len(), 3, "{rows:?}");
    for row in &rows {
        // Whatever is sent, it is not sent twice.
        assert!(number(row, "transferred") > 0.0 && number(row, "share") < 1.3, "{row}");
    }
}

#[test]
fn a_change_in_a_folder_at_rest_arrives() {
    let args =
        ["rest", "--files", "2500", "--bytes", "100", "--changes", "4", "--idle", "100ms", "--within", "20s"];
    let Some(rows) = bench("rest", &args) else { return };
    let delivered = rows[0]["delivered_seconds"].as_array().expect("each");
    assert!(rows.len() == 1 && delivered.len() == 4, "{rows:?}");
    assert!(number(&rows[0], "agreed_seconds") > 0.0 && number(&rows[0], "delivered_seconds_max") > 0.0);
}
