//! A box with little memory: a memory cgroup, whose programs share a limit with what the kernel caches for them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// See the module. Removed when dropped, which wants its programs to have ended.
pub struct SmallBox {
    group: PathBuf,
    /// The second generation of cgroups, whose files have other names.
    second: bool,
    bytes: u64,
}

impl SmallBox {
    /// Makes one of so many bytes; none where that is not permitted: who wants it so (`FLOTILLA_REQUIRE_ALL`) gets an
    /// error instead.
    ///
    /// # Errors
    /// If it cannot be made although cgroups are there.
    pub fn new(bytes: u64) -> Result<Option<Self>> {
        let (top, second) = match memory_cgroups() {
            Some(found) if rustix::process::geteuid().is_root() => found,
            _ => {
                let what = "a box with little memory needs root and a memory cgroup";
                assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "{what}");
                eprintln!("SKIPPED: {what}");
                return Ok(None);
            }
        };
        let group = top.join(format!("flotilla-box-{}", std::process::id()));
        fs::create_dir_all(&group).with_context(|| group.display().to_string())?;
        let made = Self { group, second, bytes };
        let limit = if second { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(made.group.join(limit), bytes.to_string()).context(limit)?;
        // Nothing is swapped out: such boxes have nowhere to. Where the kernel has no swap it has no such file either.
        let (swap, of) = if second { ("memory.swap.max", 0) } else { ("memory.memsw.limit_in_bytes", bytes) };
        let swap = made.group.join(swap);
        if swap.exists() {
            fs::write(&swap, of.to_string()).with_context(|| swap.display().to_string())?;
        }
        Ok(Some(made))
    }

    /// What starts a program in it, for [`crate::World::agent_by`].
    #[must_use]
    pub fn launcher(&self, program: &[OsString]) -> Vec<OsString> {
        let enter = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;
        let shell = ["/bin/sh".into(), "-c".into(), enter.into(), self.group.clone().into()];
        shell.into_iter().chain(program.iter().cloned()).collect()
    }

    /// How many of its programs were killed because there was no memory left.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn killed(&self) -> Result<u64> {
        let name = if self.second { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.group.join(name))?;
        let number = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        number.with_context(|| format!("{name}: {text}"))
    }

    /// Whether its programs came to the limit, so that something cached had to go.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn was_full(&self) -> Result<bool> {
        if self.second {
            let events = fs::read_to_string(self.group.join("memory.events"))?;
            let times = events.lines().find_map(|line| line.strip_prefix("max ")?.trim().parse::<u64>().ok());
            return Ok(times.context("memory.events")? > 0);
        }
        // The first generation counts refusals only where nothing could go.
        let most: u64 = fs::read_to_string(self.group.join("memory.max_usage_in_bytes"))?.trim().parse()?;
        Ok(most + ALMOST >= self.bytes)
    }
}

/// The kernel takes pages for each processor in advance.
const ALMOST: u64 = 1 << 20;

impl Drop for SmallBox {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.group);
    }
}

/// Where groups with a limit of memory can be made, and whether they are of the second generation.
fn memory_cgroups() -> Option<(PathBuf, bool)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let place = |line: &str| line.split(' ').nth(4).map(PathBuf::from);
    let second = mounts.lines().filter(|line| line.contains(" - cgroup2 ")).filter_map(place).find(|top| {
        let has = |file: &str| words(&top.join(file)).is_some_and(|w| w.iter().any(|w| w == "memory"));
        has("cgroup.controllers")
            && (has("cgroup.subtree_control")
                || fs::write(top.join("cgroup.subtree_control"), "+memory").is_ok())
    });
    let first = mounts.lines().filter(|line| {
        let options =
            line.split_once(" - cgroup ").map(|(_, rest)| rest.split(' ').next_back().unwrap_or_default());
        options.is_some_and(|options| options.split(',').any(|option| option == "memory"))
    });
    second.map(|top| (top, true)).or_else(|| first.filter_map(place).next().map(|top| (top, false)))
}

fn words(path: &Path) -> Option<Vec<String>> {
    Some(fs::read_to_string(path).ok()?.split_whitespace().map(str::to_owned).collect())
}
