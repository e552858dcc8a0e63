//! `cargo xtask fuzz`: builds the targets of `transport/fuzz` and `tests/fuzz` with coverage instrumentation and runs them.
//!
//! Owns how they are built and run: stable Rust with the compiler's sanitizer-coverage pass, libFuzzer from the crate
//! `libfuzzer-sys` (which needs a C++ compiler), so neither a nightly toolchain nor cargo-fuzz; both may be used all
//! the same. What the targets do is in `utp2::fuzzing`, and in `tests/fuzzing` of the crates that they are about. Linux tells how much CPU time a target has had; elsewhere
//! the limit is one of wall time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

use crate::workspace::{Workspace, cargo};

#[derive(Args)]
pub(crate) struct Options {
    /// Targets to run, one after another (default: all)
    targets: Vec<String>,
    /// CPU time for each
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u64,
    /// Tell which targets there are
    #[arg(long)]
    list: bool,
    /// Run nothing, but reduce each corpus in the tree to what is needed to reach everything reached so far
    #[arg(long, conflicts_with = "seconds")]
    minimise: bool,
}

/// Crates with targets.
const FOLDERS: [&str; 2] = ["transport/fuzz", "tests/fuzz"];

/// What cargo-fuzz passes for coverage, without an address sanitizer: the crates fuzzed forbid `unsafe`.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

/// Longest input, bytes: more than any packet that is parsed, and hundreds of decisions for a state machine.
const INPUT_MAX: u32 = 2100;
/// An input that takes so long is a finding. Generous: the machine may be busy with other things.
const INPUT_SECONDS: u32 = 300;
/// libFuzzer keeps an input that took so long; it is a finding if it takes as much CPU time when it is run again.
const SLOW_SECONDS: u64 = 10;
/// How libFuzzer ends when it is interrupted, as it is when its time is up.
const INTERRUPTED: i32 = 72;
/// Inputs that found something keep their names, and are never minimised away.
const KEPT: &str = "found-";

/// Where a target's things are.
struct Place {
    /// In the tree: small, replayed by the tests.
    corpus: PathBuf,
    /// In the target folder: grows with every run.
    work: PathBuf,
    findings: PathBuf,
    log: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let known = all_targets(&workspace.root)?;
    if options.list {
        known.keys().for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = options.targets.iter().find(|t| !known.contains_key(*t)) {
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        bail!("there is no target {unknown}; there are {}", names.join(", "));
    }
    let chosen: Vec<&String> =
        if options.targets.is_empty() { known.keys().collect() } else { options.targets.iter().collect() };
    let target = workspace.target.join("fuzz");
    let mut binaries = PathBuf::new();
    for folder in FOLDERS.map(|folder| workspace.root.join(folder)) {
        let of_it: Vec<&String> = chosen.iter().copied().filter(|name| known[*name] == folder).collect();
        if !of_it.is_empty() {
            binaries = build(&folder, &target, &of_it)?;
        }
    }
    let mut findings = 0;
    for name in chosen {
        let folder = &known[name];
        let place = Place {
            corpus: folder.join("corpus").join(name),
            work: target.join("work").join(name),
            findings: folder.join("artifacts").join(name),
            log: target.join("logs").join(format!("{name}.log")),
        };
        for folder in [&place.corpus, &place.work, &place.findings] {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        fs::create_dir_all(target.join("logs"))?;
        let binary = binaries.join(name);
        if options.minimise {
            minimise(name, &binary, &place, &target.join("minimised"))?;
        } else {
            findings += fuzz(name, &binary, &place, Duration::from_secs(options.seconds))?;
        }
    }
    Ok(if findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every target, and the folder of its crate.
fn all_targets(root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut all = BTreeMap::new();
    for folder in FOLDERS.map(|folder| root.join(folder)) {
        for name in targets(&folder)? {
            ensure!(all.insert(name.clone(), folder.clone()).is_none(), "two targets have the name {name}");
        }
    }
    Ok(all)
}

/// The targets of a crate by the names of their sources.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let sources = folder.join("fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&sources).with_context(|| format!("reading {}", sources.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs") {
            names.extend(path.file_stem().map(|s| s.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// Builds the targets; returns the folder they are in.
fn build(folder: &Path, target: &Path, names: &[&String]) -> Result<PathBuf> {
    let version = Command::new("rustc").arg("-vV").output().context("running rustc -vV")?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host =
        version.lines().find_map(|l| l.strip_prefix("host: ")).context("rustc does not tell its host")?;
    let mut build = cargo();
    // A target by name keeps the flags away from build scripts and macros.
    build.args(["build", "--release", "--target", host, "--manifest-path"]).arg(folder.join("Cargo.toml"));
    build.arg("--target-dir").arg(target).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    for name in names {
        build.arg("--bin").arg(name);
    }
    ensure!(build.status().context("running cargo")?.success(), "the targets do not build");
    Ok(target.join(host).join("release"))
}

/// Runs one target for so much CPU time; returns how many findings there are.
fn fuzz(name: &str, binary: &Path, place: &Place, limit: Duration) -> Result<usize> {
    let before = files(&place.findings)?.len();
    let log = File::create(&place.log).with_context(|| format!("creating {}", place.log.display()))?;
    let mut prefix = place.findings.clone().into_os_string();
    prefix.push("/");
    let mut artifacts = std::ffi::OsString::from("-artifact_prefix=");
    artifacts.push(prefix);
    let started = Instant::now();
    let mut child = Command::new(binary)
        .args([&place.work, &place.corpus])
        .args([format!("-max_len={INPUT_MAX}"), format!("-timeout={INPUT_SECONDS}")])
        .args(["-rss_limit_mb=2048", "-print_final_stats=1"])
        .arg(artifacts)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", binary.display()))?;
    let (status, cpu) = watch(&mut child, limit, started)?;
    let text = fs::read(&place.log).map(|b| String::from_utf8_lossy(&b).into_owned())?;
    let last = |word: &str| -> String {
        let line = text.lines().rev().find(|l| l.contains(word)).unwrap_or_default();
        let rest = line.split(word).nth(1).unwrap_or_default();
        rest.split_whitespace().next().unwrap_or("?").to_owned()
    };
    for slow in files(&place.findings)?.iter().filter(|path| is_slow(path)) {
        if repeat(binary, slow)? < Duration::from_secs(SLOW_SECONDS) {
            // The machine was, not the target.
            fs::remove_file(slow)?;
        }
    }
    let found: Vec<_> = files(&place.findings)?;
    println!(
        "{name:>14}: {} inputs in {:.0} s of CPU, {} edges, corpus {}, {} new findings",
        last("stat::number_of_executed_units:"),
        cpu.as_secs_f64(),
        last(" cov: "),
        last(" corp: "),
        found.len().saturating_sub(before),
    );
    if !status.success() && status.code() != Some(INTERRUPTED) {
        let why = text.lines().skip_while(|l| !l.contains("panicked at")).take(4).collect::<Vec<_>>();
        println!("{}\n  more in {}", why.join("\n"), place.log.display());
        for path in &found {
            println!("  again: {} {}", binary.display(), path.display());
        }
        return Ok(found.len().saturating_sub(before).max(1));
    }
    Ok(found.len().saturating_sub(before))
}

/// Waits for the end, and brings it about when the time is up.
fn watch(child: &mut Child, limit: Duration, started: Instant) -> Result<(ExitStatus, Duration)> {
    let pid = Pid::from_child(child);
    let mut used = Duration::ZERO;
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, used));
        }
        used = cpu_time(child.id()).unwrap_or_else(|| started.elapsed());
        if used >= limit && !told {
            // It tells its figures and ends.
            kill_process(pid, Signal::INT)?;
            told = true;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What an input is called that took long by the clock, whoever had the processor.
fn is_slow(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("slow-unit-"))
}

/// CPU time that one input takes by itself, the start of the program included.
fn repeat(binary: &Path, input: &Path) -> Result<Duration> {
    let started = Instant::now();
    let mut child = Command::new(binary).arg(input).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    Ok(watch(&mut child, Duration::MAX, started)?.1)
}

/// CPU time of a process: fields 14 and 15 of its stat file, hundredths of a second.
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_cpu_time(&stat)
}

fn parse_cpu_time(stat: &str) -> Option<Duration> {
    // The second field is the program's name in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

/// Replaces the corpus in the tree by the fewest inputs that reach everything reached so far.
fn minimise(name: &str, binary: &Path, place: &Place, scratch: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(scratch);
    fs::create_dir_all(scratch)?;
    let log = File::create(&place.log)?;
    let status = Command::new(binary)
        .args(["-set_cover_merge=1", "-use_counters=0"])
        .args([scratch, &place.corpus, &place.work])
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()?;
    ensure!(status.success(), "{name}: an input of the corpus fails; see {}", place.log.display());
    let old = files(&place.corpus)?;
    let kept: Vec<_> = old.iter().filter(|p| is_kept(p)).collect();
    for path in old.iter().filter(|p| !is_kept(p)) {
        fs::remove_file(path)?;
    }
    let mut bytes = 0;
    let new = files(scratch)?;
    for path in &new {
        let data = fs::read(path)?;
        if kept.iter().any(|k| fs::read(k).is_ok_and(|d| d == data)) {
            continue;
        }
        bytes += data.len();
        // Named by their hash, of which a part is enough.
        let file = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        fs::write(place.corpus.join(file.chars().take(12).collect::<String>()), data)?;
    }
    println!("{name:>14}: {} inputs before, {} now, {bytes} bytes", old.len(), new.len());
    Ok(())
}

fn is_kept(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(KEPT))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        out.push(entry?.path());
    }
    out.sort();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_whatever_the_program_is_called() {
        let stat = "4711 (a) b (c) S 1 4711 4711 0 -1 4194304 100 0 0 0 123 45 0 0 20 0 1 0 100 0 0";
        assert_eq!(parse_cpu_time(stat), Some(Duration::from_millis(1680)));
        assert_eq!(parse_cpu_time("4711 (a) S 1"), None);
        assert_eq!(parse_cpu_time(""), None);
    }

    #[test]
    fn every_target_is_a_binary_and_has_a_corpus() {
        let all = all_targets(&crate::workspace::root()).unwrap();
        assert!(all.len() > 20);
        for (name, folder) in all {
            let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
            assert!(
                manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
                "{name} is not in Cargo.toml"
            );
            assert!(!files(&folder.join("corpus").join(&name)).unwrap().is_empty(), "{name} has no corpus");
        }
    }

    #[cfg(unix)]
    #[test]
    fn an_input_that_was_slow_because_the_machine_was_is_no_finding() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = temp.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (corpus, work, findings) = (folder("corpus"), folder("work"), folder("findings"));
        let place = Place { corpus, work, findings, log: temp.path().join("log") };
        // Finds two inputs, one of them slow; takes no time over one that is given alone.
        let binary = temp.path().join("target");
        let script = format!(
            "#!/bin/sh\n[ $# -gt 1 ] || exit 0\ntouch {0}/slow-unit-1 {0}/crash-2\n",
            place.findings.display()
        );
        fs::write(&binary, script).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(fuzz("target", &binary, &place, Duration::from_secs(60)).unwrap(), 1);
        assert_eq!(files(&place.findings).unwrap(), [place.findings.join("crash-2")]);
    }
}
