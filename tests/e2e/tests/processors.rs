//! The real main job with agents as they are shipped: on each processor they are for, emulated, as destination and as
//! source of an agent of this machine; and where the kernel is as old as any that is supported (`src/bin/old-kernel.rs`).
//!
//! `cargo xtask dist` builds them; what is not built is skipped, and named. `FLOTILLA_DIST` names their folder (default:
//! `target/dist` of this tree), `FLOTILLA_REQUIRE_DIST=1` turns a test that skips itself into one that fails.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Agent, Options, Tree, World, binary, differences};

const LIMIT: Duration = Duration::from_secs(150);
/// Most that an agent has in memory when it has nothing to do, KiB: 12 MB.
const REST_KIB: u64 = 12_000_000 / 1024;

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

/// There and back: what the agent got from one of this machine it gives to another.
fn main_job(launcher: &[OsString], more: impl Fn(&Agent) -> Result<()>) -> Result<()> {
    let world = World::new(&Options { tracker: true, ..Options::default() })?;
    let (given, got, back) =
        (world.path().join("given"), world.path().join("got"), world.path().join("back"));
    Tree { small: 300, large: 2, large_bytes: 5 << 20 }.make(&given)?;
    let _source = world.agent("source", &[])?;
    let _last = world.agent("last", &[])?;
    let mut other = world.agent_by(launcher, "other")?;
    more(&other)?;

    let run = world.distribute(("source", &given), &[("other", &got)])?;
    world.wait_success(&run, LIMIT)?;
    let found = differences(&given, &got)?;
    ensure!(found.is_empty(), "{found}");

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
    world.wait_success(answer["run"].as_str().context("a run")?, LIMIT)?;
    let found = differences(&given, &back)?;
    ensure!(found.is_empty(), "{found}");
    world.check_rebuild()
}

/// By the emulator that `targets/targets.toml` names.
fn emulated(name: &str) -> Result<()> {
    let Some(agent) = shipped(name) else { return Ok(()) };
    let table = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../targets/targets.toml"))?;
    let table: toml::Table = table.parse()?;
    let mut rows = table["program"].as_array().context("programs")?.iter();
    let row = rows.find(|row| row["name"].as_str() == Some(name)).context("a row")?;
    let emulator = row["emulator"].as_array().context("an emulator")?.iter().filter_map(toml::Value::as_str);
    let launcher: Vec<OsString> = emulator.map(OsString::from).chain([agent.into()]).collect();
    main_job(&launcher, |_| Ok(()))
}

#[test]
fn armv5_does_the_main_job() -> Result<()> {
    emulated("armv5")
}

#[test]
fn armv7_does_the_main_job() -> Result<()> {
    emulated("armv7")
}

#[test]
fn aarch64_does_the_main_job() -> Result<()> {
    emulated("aarch64")
}

#[test]
fn i686_does_the_main_job() -> Result<()> {
    emulated("i686")
}

#[test]
fn x86_64_does_the_main_job_and_rests_in_little() -> Result<()> {
    let Some(agent) = shipped("x86_64") else { return Ok(()) };
    main_job(&[agent.into()], |agent| {
        let rest = status(agent, "VmRSS")?;
        let kib: u64 = rest.trim_end_matches(" kB").parse().with_context(|| rest.clone())?;
        ensure!(kib <= REST_KIB, "{kib} KiB resident at rest, more than {REST_KIB}");
        Ok(())
    })
}

/// On a kernel as old as Linux 3.2, whatever it is linked to.
fn on_an_old_kernel(agent: PathBuf) -> Result<()> {
    let launcher = [env!("CARGO_BIN_EXE_old-kernel").into(), agent.into()];
    main_job(&launcher, |agent| {
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
