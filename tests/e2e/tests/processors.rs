//! The real main job with agents, and control services, as they are shipped: on each processor they are for, emulated, as destination and as
//! source of an agent of this machine; and where the kernel is as old as any that is supported (`src/bin/old-kernel.rs`).
//!
//! `cargo xtask dist` builds them ([`Program::shipped`]), and `--check` runs all of this; CI builds one for ARM, of which
//! the tests are that are not ignored. `FLOTILLA_FIGURES` is a folder for what they measure.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Agent, Options, Process, Program, SmallBox, Tree, World, differences, wait_until};

/// For a run, beside a millisecond for each file.
const LIMIT: Duration = Duration::from_secs(150);
/// Enough to see that everything arrives, odd names and all.
const SOME: Tree = Tree { small: 300, large: 2, large_bytes: 5 << 20 };
/// How long an agent may take to come to rest, which it also does after a run.
const REST_LIMIT: Duration = Duration::from_secs(30);

/// What `/proc` says of a process.
fn status(agent: &Agent, key: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{}/status", agent.process.id()))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("{key} in {text}"))?.trim().to_owned())
}

/// Memory of its own that a program has, KiB. An emulator's is not counted: 64-bit ones of this machine keep what they have
/// for themselves above all that the programs they run can name.
fn resident_kib(process: &Process, below: u64) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{}/smaps", process.id()))?;
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

    // Emulated, a file takes some milliseconds.
    let limit = LIMIT + Duration::from_millis(4 * tree.small as u64);
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

/// What is measured of a program: the most memory it had when it was at rest, which is to be little.
struct Measured {
    name: &'static str,
    allowed_kib: f64,
    most_kib: Cell<u64>,
    begun: Instant,
}

impl Measured {
    fn new(name: &'static str, program: &Program) -> Self {
        let allowed_kib = program.rest_limit_kib();
        Self { name, allowed_kib, most_kib: Cell::new(0), begun: Instant::now() }
    }

    fn at_rest(&self, process: &Process, below: u64) -> Result<()> {
        let now = Cell::new(0);
        let rested = wait_until("it to have little memory at rest", REST_LIMIT, || {
            now.set(resident_kib(process, below)?);
            Ok((now.get() as f64 <= self.allowed_kib).then_some(now.get()))
        });
        let kib = rested
            .with_context(|| format!("{} KiB, of {:.0} that are allowed", now.get(), self.allowed_kib))?;
        // Less than a program is no figure of one that runs.
        ensure!(kib > 1000, "{kib} KiB: that is not all");
        self.most_kib.set(self.most_kib.get().max(kib));
        Ok(())
    }

    fn write(&self) -> Result<()> {
        let Some(folder) = std::env::var_os("FLOTILLA_FIGURES") else { return Ok(()) };
        let seconds = self.begun.elapsed().as_secs_f64();
        let figures = serde_json::json!({ "rest_kib": self.most_kib.get(), "seconds": seconds });
        Ok(fs::write(Path::new(&folder).join(format!("{}.json", self.name)), figures.to_string())?)
    }
}

/// As `targets/targets.toml` says: by its emulator, and with no more memory than it may have at rest.
fn as_the_table_says(name: &'static str) -> Result<()> {
    let Some(program) = Program::shipped(name)? else { return Ok(()) };
    let measured = Measured::new(name, &program);
    main_job(&program.launcher(), SOME, |agent| measured.at_rest(&agent.process, program.own_addresses()))?;
    measured.write()
}

/// The control service and the tracker by their emulator, agents of this machine, and a restart of the service in between;
/// its log is then checked by this machine's program.
fn service_as_the_table_says(name: &'static str) -> Result<()> {
    let Some(program) = Program::shipped(name)? else { return Ok(()) };
    let measured = Measured::new(name, &program);
    let at_rest = |world: &World| measured.at_rest(&world.control.process, program.own_addresses());
    let mut world =
        World::new(&Options { tracker: true, service: program.launcher(), ..Options::default() })?;
    at_rest(&world)?;
    let (given, got, more) =
        (world.path().join("given"), world.path().join("got"), world.path().join("more"));
    SOME.make(&given)?;
    let _agents = (world.agent("source", &[])?, world.agent("one", &[])?, world.agent("other", &[])?);
    let run = world.distribute(("source", &given), &[("one", &got)])?;
    world.wait_success(&run, LIMIT)?;
    at_rest(&world)?;
    world.control.restart()?;
    world.wait_online(&["source", "one", "other"])?;
    let run = world.distribute(("one", &got), &[("other", &more)])?;
    world.wait_success(&run, LIMIT)?;
    let found = differences(&given, &more)?;
    ensure!(found.is_empty(), "{found}");
    at_rest(&world)?;
    measured.write()?;
    world.check_rebuild()
}

#[test]
#[ignore = "measures what CI does not build"]
fn service_x86_64_does_the_main_job() -> Result<()> {
    service_as_the_table_says("service-x86_64")
}

#[test]
#[ignore = "measures what CI does not build"]
fn service_aarch64_does_the_main_job() -> Result<()> {
    service_as_the_table_says("service-aarch64")
}

#[test]
#[ignore = "measures what CI does not build"]
fn armv5_does_the_main_job() -> Result<()> {
    as_the_table_says("armv5")
}

#[test]
fn armv7_does_the_main_job() -> Result<()> {
    as_the_table_says("armv7")
}

#[test]
#[ignore = "measures what CI does not build"]
fn aarch64_does_the_main_job() -> Result<()> {
    as_the_table_says("aarch64")
}

#[test]
#[ignore = "measures what CI does not build"]
fn i686_does_the_main_job() -> Result<()> {
    as_the_table_says("i686")
}

#[test]
#[ignore = "measures what CI does not build"]
fn x86_64_does_the_main_job() -> Result<()> {
    as_the_table_says("x86_64")
}

/// A box of 256 MB, whose system has taken a quarter of it. What the kernel caches for the agent counts, and has to go when
/// there is no room; the agent itself may not.
fn many_files_in_a_small_box(agent: &Program) -> Result<()> {
    let Some(small) = SmallBox::new(192_000_000)? else {
        return Ok(());
    };
    let most = Cell::new(0);
    let tree = Tree { small: 100_000, large: 1, large_bytes: 32 << 20 };
    let begun = Instant::now();
    main_job(&small.launcher(&agent.launcher()), tree, |agent| {
        let peak = status(agent, "VmHWM")?;
        let kib: u64 = peak.trim_end_matches(" kB").parse().with_context(|| peak.clone())?;
        most.set(most.get().max(kib));
        Ok(())
    })?;
    let killed = small.killed()?;
    println!("{} KiB resident at most, {killed} killed, {} s", most.get(), begun.elapsed().as_secs());
    ensure!(killed == 0, "{killed} were killed");
    ensure!(small.was_full()?, "the limit was never felt, so it proves nothing");
    Ok(())
}

#[test]
#[ignore = "measures what CI does not build"]
fn x86_64_moves_100_000_files_in_a_box_of_256_mb() -> Result<()> {
    Program::shipped("x86_64")?.map_or(Ok(()), |agent| many_files_in_a_small_box(&agent))
}

/// With the emulator, whose own memory and translated code count here.
#[test]
fn armv7_moves_100_000_files_in_a_box_of_256_mb() -> Result<()> {
    Program::shipped("armv7")?.map_or(Ok(()), |agent| many_files_in_a_small_box(&agent))
}

/// On a kernel as old as Linux 3.2, whatever it is linked to.
fn on_an_old_kernel(kernel: &str, agent: &Program) -> Result<()> {
    let launcher: Vec<OsString> = [env!("CARGO_BIN_EXE_old-kernel").into(), kernel.into()]
        .into_iter()
        .chain(agent.launcher())
        .collect();
    main_job(&launcher, SOME, |agent| {
        let filter = status(agent, "Seccomp")?;
        ensure!(filter == "2", "the filter is in force: {filter}");
        Ok(())
    })
}

#[test]
fn an_old_kernel_is_enough() -> Result<()> {
    on_an_old_kernel("3.2", &Program::of_this_machine())
}

/// Older than what Rust's library promises to run on: the oldest of Synology's boxes has it.
#[test]
fn the_calls_of_2_6_32_are_enough() -> Result<()> {
    on_an_old_kernel("2.6.32", &Program::of_this_machine())
}

#[test]
#[ignore = "measures what CI does not build"]
fn an_old_kernel_is_enough_for_x86_64() -> Result<()> {
    Program::shipped("x86_64")?.map_or(Ok(()), |agent| on_an_old_kernel("3.2", &agent))
}

#[test]
#[ignore = "measures what CI does not build"]
fn the_calls_of_2_6_32_are_enough_for_x86_64() -> Result<()> {
    Program::shipped("x86_64")?.map_or(Ok(()), |agent| on_an_old_kernel("2.6.32", &agent))
}
