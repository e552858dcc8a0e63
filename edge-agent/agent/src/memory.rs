//! How much of what makes transfers fast this machine has room for.
//!
//! Owns what the machine's memory is taken to be: that of its system, or less where a control group (a container, a service with
//! `MemoryMax=`) allows less. Limits that mean memory are given for a machine with [`FULL`] and pass through [`share`].

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// From so much memory on limits are what they say: 1 GiB.
const FULL: u64 = 1 << 30;

/// No less than a sixteenth of a limit, whatever the machine has: below that transfers hardly move, and what an agent takes at
/// rest is more.
const LEAST: u64 = FULL / 16;

/// The part of a limit that this machine has room for.
pub(crate) fn share(limit: usize) -> usize {
    static HERE: LazyLock<u64> = LazyLock::new(|| of_machine(Path::new("/")).unwrap_or(FULL));
    part(limit, *HERE)
}

fn part(limit: usize, memory: u64) -> usize {
    let memory = memory.clamp(LEAST, FULL);
    usize::try_from(limit as u64 * memory / FULL).unwrap_or(limit)
}

/// Bytes of memory of the machine whose system's files are below `root`; `None` where it does not say.
fn of_machine(root: &Path) -> Option<u64> {
    let system = fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| total(&text));
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let allowed = groups.lines().flat_map(|line| limits_of(root, line)).min();
    system.into_iter().chain(allowed).min()
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What a control group, and those that it is in, may have of memory. `line`: of `/proc/self/cgroup` (cgroups(7)), as
/// `0::/a/b` in the second generation, `4:memory:/a/b` in the first. In a container the path may be that of the host, and
/// the group is what is mounted.
fn limits_of(root: &Path, line: &str) -> Vec<u64> {
    let mut fields = line.splitn(3, ':');
    let (Some(number), Some(of), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
        return Vec::new();
    };
    let (mounted, file) = match (number, of) {
        ("0", "") => ("sys/fs/cgroup", "memory.max"),
        (_, of) if of.split(',').any(|of| of == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let top: PathBuf = root.join(mounted);
    let group = top.join(path.trim_start_matches('/'));
    // A path may hold `..`, where the group is not below what this process sees.
    let inside = group.ancestors().take_while(|folder| folder.starts_with(&top));
    let read = |folder: &Path| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok();
    inside.filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_gets_a_part_and_a_large_one_all() {
        const MIB: u64 = 1 << 20;
        assert_eq!(part(96 << 20, 256 * MIB), 24 << 20);
        assert_eq!(part(96 << 20, 24 << 30), 96 << 20);
        assert_eq!(part(96 << 20, 1), 6 << 20, "never nothing");
        assert_eq!((part(0, FULL), part(1, u64::MAX)), (0, 1));
    }

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    #[test]
    fn the_least_of_what_the_system_and_the_groups_say_counts() {
        let root = tempfile::tempdir().expect("room");
        let root = root.path();
        assert_eq!(of_machine(root), None, "nothing is said");
        write(root, "proc/meminfo", "MemTotal:         253508 kB\nMemFree:          100 kB\n");
        assert_eq!(of_machine(root), Some(253_508 * 1024));
        write(root, "proc/self/cgroup", "5:cpu,memory:/box/a\n0::/svc\nnonsense\n1:name=systemd:/x\n");
        assert_eq!(of_machine(root), Some(253_508 * 1024), "groups without limits");
        write(root, "sys/fs/cgroup/memory/box/memory.limit_in_bytes", "192000000\n");
        write(root, "sys/fs/cgroup/memory/box/a/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(of_machine(root), Some(192_000_000), "of the group above");
        write(root, "sys/fs/cgroup/svc/memory.max", "max\n");
        assert_eq!(of_machine(root), Some(192_000_000));
        write(root, "sys/fs/cgroup/svc/memory.max", "64000000\n");
        assert_eq!(of_machine(root), Some(64_000_000));
        // In a container the path is not there, and the limit lies at the top.
        write(root, "proc/self/cgroup", "0::/host/only\n");
        write(root, "sys/fs/cgroup/memory.max", "100000000\n");
        assert_eq!(of_machine(root), Some(100_000_000));
        write(root, "proc/self/cgroup", "0::/../../../etc\n");
        assert!(of_machine(root).is_some());
    }

    #[test]
    fn this_machine_says_how_much_it_has() {
        assert!(of_machine(Path::new("/")).expect("Linux says") > 1 << 24);
    }
}
