//! The real main job with agents as they are shipped: on each processor they are for, emulated, as destination and as
//! source of an agent of this machine; and where the kernel is as old as any that is supported (`src/bin/old-kernel.rs`).
//!
//! `cargo xtask dist` builds them; what is not built is skipped, and named. `FLOTILLA_DIST` names their folder (default:
//! `target/dist` of this tree), `FLOTILLA_REQUIRE_DIST=1` turns a test that skips itself into one that fails,
//! `FLOTILLA_FIGURES` is a folder for what they measure.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Agent, Options, SmallBox, Tree, World, binary, differences, wait_until};

/// For a run, beside a millisecond for each file.
const LIMIT: Duration = Duration::from_secs(150);
/// Enough to see that everything arrives, odd names and all.
const SOME: Tree = Tree { small: 300, large: 2, large_bytes: 5 << 20 };
/// How long an agent may take to come to rest, which it also does after a run.
const REST_LIMIT: Duration = Duration::from_secs(30);

/// The agent that is shipped for a processor, if it is built.
fn shipped(name: &str) -> Option<PathBuf> {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/dist");
    let folder = std::env::var_os("FLOTILLA_DIST").map_or_else(here, PathBuf::from);
    let path = folder.join("bin").join(name).join("flotilla-agent");
    if path.is_file() {
        return Some(path);
    }
    let what = format!("the agent for {name} is not built: cargo xtask dist --target {name}");
    assert!(std::env::var_os("FLOTILLA_REQUIRE_DIST").is_none(), "{what}");
    eprintln!("SKIPPED: {what}");
    None
}

/// What `/proc` says of a process.
fn status(agent: &Agent, key: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{}/status", agent.process.id()))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("{key} in {text}"))?.trim().to_owned())
}

/// Memory of its own that a program has, KiB. An emulator's is not counted: 64-bit ones of this machine keep what they have
/// for themselves above all that the programs they run can name.
fn resident_kib(agent: &Agent, below: u64) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{}/smaps", agent.process.id()))?;
    sum_below(&text, below)
}

/// The sum of `Rss` of all ranges that begin below an address.
fn sum_below(smaps: &str, below: u64) -> Result<u64> {
    let (mut sum, mut counts) = (0, false);
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((from, _)) = first.split_once('-') {
            counts = u64::from_str_radix(from, 16).with_context(|| line.to_owned())? < below;
        } else if let Some(kib) = line.strip_prefix("Rss:")
            && counts
        {
            let kib = kib.trim().strip_suffix(" kB").with_context(|| line.to_owned())?;
            sum += kib.parse::<u64>().with_context(|| line.to_owned())?;
        }
    }
    Ok(sum)
}

#[test]
fn memory_is_summed_up_below_an_address() -> Result<()> {
    let smaps = "\
00010000-000d5000 r--p 00000000 fe:00 12   /a/flotilla-agent
Size:                788 kB
Rss:                 700 kB
VmFlags: rd mr
00fff000-01000000 rw-p 00000000 00:00 0
Rss:                   4 kB
555555554000-555555600000 r-xp 00000000 fe:00 13   /usr/bin/qemu-arm-static
Rss:                3000 kB
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0   [vsyscall]
Rss:                   0 kB
";
    ensure!(sum_below(smaps, 1 << 32)? == 704, "below 4 GiB");
    ensure!(sum_below(smaps, 0x00ff_f000)? == 700, "the end is not counted");
    ensure!(sum_below(smaps, u64::MAX)? == 3704, "all");
    ensure!(sum_below("00010000-000d5000 r--p\nRss: many kB\n", 1 << 32).is_err(), "no number");
    Ok(())
}

/// There and back: what the agent got from one of this machine it gives to another. `more` is asked whenever it is at rest:
/// before it has done anything, after a run, after a restart, after another run.
fn main_job(launcher: &[OsString], tree: Tree, more: impl Fn(&Agent) -> Result<()>) -> Result<()> {
    let world = World::new(&Options { tracker: true, ..Options::default() })?;
    let (given, got, back) =
        (world.path().join("given"), world.path().join("got"), world.path().join("back"));
    tree.make(&given)?;
    let _source = world.agent("source", &[])?;
    let _last = world.agent("last", &[])?;
    let mut other = world.agent_by(launcher, "other")?;
    more(&other)?;

    let limit = LIMIT + Duration::from_millis(tree.small as u64);
    let run = world.distribute(("source", &given), &[("other", &got)])?;
    world.wait_success(&run, limit)?;
    let found = differences(&given, &got)?;
    ensure!(found.is_empty(), "{found}");
    more(&other)?;

    // It goes on from what it kept.
    other.restart()?;
    world.wait_online(&["other"])?;
    more(&other)?;
    let answer = world.flotilla(&[
        "jobs",
        "create",
        "distribution",
        "--name",
        "back",
        "--source",
        &format!("other:{}", got.display()),
        "--destination",
        &format!("last:{}", back.display()),
    ])?;
    world.wait_success(answer["run"].as_str().context("a run")?, limit)?;
    let found = differences(&given, &back)?;
    ensure!(found.is_empty(), "{found}");
    more(&other)?;
    world.check_rebuild()
}

/// As `targets/targets.toml` says: by its emulator, and with no more memory than it may have at rest.
fn as_the_table_says(name: &str) -> Result<()> {
    let Some(agent) = shipped(name) else { return Ok(()) };
    let table = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../targets/targets.toml"))?;
    let table: toml::Table = table.parse()?;
    let mut rows = table["program"].as_array().context("programs")?.iter();
    let row = rows.find(|row| row["name"].as_str() == Some(name)).context("a row")?;
    let emulator = row.get("emulator").and_then(|words| words.as_array()).into_iter().flatten();
    let emulator: Vec<OsString> = emulator.filter_map(toml::Value::as_str).map(OsString::from).collect();
    let allowed = row["max_rest_mb"].as_float().context("what it may have at rest")? * 1e6 / 1024.0;
    let below = match (emulator.is_empty(), row["machine"].as_str()) {
        (true, _) => u64::MAX,
        (false, Some("arm" | "i386")) => 1 << 32,
        (false, _) => 1 << 44,
    };
    let launcher: Vec<OsString> = emulator.into_iter().chain([agent.into()]).collect();
    let begun = Instant::now();
    let most = Cell::new(0);
    main_job(&launcher, SOME, |agent| {
        let now = Cell::new(0);
        let rested = wait_until("it to have little memory at rest", REST_LIMIT, || {
            now.set(resident_kib(agent, below)?);
            Ok((now.get() as f64 <= allowed).then_some(now.get()))
        });
        let kib = rested.with_context(|| format!("{} KiB, of {allowed:.0} that are allowed", now.get()))?;
        // Less than a program is no figure of one that runs.
        ensure!(kib > 1000, "{kib} KiB: that is not all");
        most.set(most.get().max(kib));
        Ok(())
    })?;
    if let Some(folder) = std::env::var_os("FLOTILLA_FIGURES") {
        let figures = serde_json::json!({ "rest_kib": most.get(), "seconds": begun.elapsed().as_secs_f64() });
        fs::write(Path::new(&folder).join(format!("{name}.json")), figures.to_string())?;
    }
    Ok(())
}

#[test]
fn armv5_does_the_main_job() -> Result<()> {
    as_the_table_says("armv5")
}

#[test]
fn armv7_does_the_main_job() -> Result<()> {
    as_the_table_says("armv7")
}

#[test]
fn aarch64_does_the_main_job() -> Result<()> {
    as_the_table_says("aarch64")
}

#[test]
fn i686_does_the_main_job() -> Result<()> {
    as_the_table_says("i686")
}

#[test]
fn x86_64_does_the_main_job() -> Result<()> {
    as_the_table_says("x86_64")
}

/// A box of 256 MB, whose system has taken a quarter of it. What the kernel caches for the agent counts, and has to go when
/// there is no room; the agent itself may not.
#[test]
fn x86_64_moves_100_000_files_in_a_box_of_256_mb() -> Result<()> {
    let Some(agent) = shipped("x86_64") else { return Ok(()) };
    let Some(small) = SmallBox::new(192_000_000)? else { return Ok(()) };
    let most = Cell::new(0);
    let tree = Tree { small: 100_000, large: 1, large_bytes: 32 << 20 };
    main_job(&small.launcher(&[agent.into()]), tree, |agent| {
        let peak = status(agent, "VmHWM")?;
        let kib: u64 = peak.trim_end_matches(" kB").parse().with_context(|| peak.clone())?;
        most.set(most.get().max(kib));
        Ok(())
    })?;
    let (came, killed) = (small.came_to_its_limit()?, small.killed()?);
    println!("at most {} KiB resident in the agent; {came} times at the limit, {killed} killed", most.get());
    ensure!(killed == 0, "{killed} were killed");
    ensure!(came > 0, "the limit was never felt, so it proves nothing");
    Ok(())
}

/// On a kernel as old as Linux 3.2, whatever it is linked to.
fn on_an_old_kernel(agent: PathBuf) -> Result<()> {
    let launcher = [env!("CARGO_BIN_EXE_old-kernel").into(), agent.into()];
    main_job(&launcher, SOME, |agent| {
        let filter = status(agent, "Seccomp")?;
        ensure!(filter == "2", "the filter is in force: {filter}");
        Ok(())
    })
}

#[test]
fn an_old_kernel_is_enough() -> Result<()> {
    on_an_old_kernel(binary("flotilla-agent"))
}

#[test]
fn an_old_kernel_is_enough_for_what_is_shipped() -> Result<()> {
    shipped("x86_64").map_or(Ok(()), on_an_old_kernel)
}
