//! A Linux system to install packages in: this machine's own, whose changes are kept apart (overlayfs) and gone afterwards,
//! booted by systemd in namespaces of its own. The network is that of the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::wait_until;

/// What has to be on this machine.
const NEEDED: [&str; 6] = [
    "/lib/systemd/systemd",
    "/usr/bin/dpkg",
    "/usr/bin/deb-systemd-helper",
    "/usr/sbin/adduser",
    "/usr/bin/nsenter",
    "/usr/sbin/pivot_root",
];

/// Makes the root and becomes systemd in it. $1: an empty folder. Nothing of this machine's own services is started.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755,size=2g tmpfs "$1"
cd "$1"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
rm -rf etc/systemd/system/*.wants lib/systemd/system/*.wants usr/sbin/policy-rc.d var/lib/man-db/auto-update
: >etc/fstab
cat >etc/systemd/system/box.target <<UNIT
[Unit]
DefaultDependencies=no
Requires=systemd-journald.service
After=systemd-journald.service
UNIT
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -o remount,bind,ro sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
pivot_root . mnt
umount -l /mnt
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=box.target
"#;

/// A booted system. What runs in it ends when it is dropped.
pub struct System {
    unshare: Child,
    /// Its first process, as this machine numbers it.
    init: String,
    cgroup: PathBuf,
    dir: tempfile::TempDir,
}

impl System {
    /// Whether one can be booted here. CI has to.
    #[must_use]
    pub fn possible() -> bool {
        let mut missing: Vec<&str> =
            NEEDED.into_iter().filter(|path| fs::symlink_metadata(path).is_err()).collect();
        if !rustix::process::geteuid().is_root() {
            missing.push("root");
        }
        if !fs::read_to_string("/proc/filesystems").is_ok_and(|all| all.contains("\toverlay\n")) {
            missing.push("overlayfs");
        }
        if cgroup2().is_none() {
            missing.push("cgroup2");
        }
        if !missing.is_empty() {
            let missing = missing.join(", ");
            assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "missing: {missing}");
            eprintln!("SKIPPED: a system to install packages in needs {missing}");
        }
        missing.is_empty()
    }

    /// Boots one.
    pub fn boot() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("flotilla-system-").tempdir()?;
        let layers = dir.path().join("layers");
        fs::create_dir(&layers)?;
        let cgroup = cgroup2().context("cgroup2")?.join(format!("flotilla-test-{}", std::process::id()));
        fs::create_dir_all(&cgroup)?;
        let log = File::create(dir.path().join("boot.log"))?;
        let unshare = Command::new("/bin/bash")
            .arg("-c")
            .arg("echo $$ >\"$1/cgroup.procs\" && exec unshare --mount --pid --cgroup --fork --kill-child /bin/bash -c \"$2\" boot \"$3\"")
            .arg("boot")
            .arg(&cgroup)
            .arg(BOOT)
            .arg(&layers)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut system = Self { unshare, init: String::new(), cgroup, dir };
        let children = format!("/proc/{0}/task/{0}/children", system.unshare.id());
        let limit = Duration::from_secs(30);
        let booted = wait_until("systemd", limit, || {
            ensure!(system.unshare.try_wait()?.is_none(), "it ended");
            let Some(init) = fs::read_to_string(&children)?.split_whitespace().next().map(str::to_owned)
            else {
                return Ok(None);
            };
            let name = fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default();
            system.init = init;
            if name.trim() != "systemd" {
                return Ok(None);
            }
            Ok(system.sh("systemctl is-active box.target")?.status.success().then_some(()))
        });
        booted.with_context(|| fs::read_to_string(system.dir.path().join("boot.log")).unwrap_or_default())?;
        Ok(system)
    }

    /// A path in it, seen from outside.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        Path::new("/proc").join(&self.init).join("root").join(inside.trim_start_matches('/'))
    }

    /// What a line of the shell does in it as root.
    pub fn sh(&self, line: &str) -> Result<Output> {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.init,
            "--mount",
            "--pid",
            "--cgroup",
            "--root",
            "--",
            "/usr/bin/env",
            "-i",
        ]);
        command.args([
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
            "DEBIAN_FRONTEND=noninteractive",
        ]);
        command.args(["/bin/sh", "-c", &format!("cd / && {line}")]);
        Ok(command.stdin(Stdio::null()).output()?)
    }

    /// The same, which is to succeed; what it wrote.
    pub fn succeed(&self, line: &str) -> Result<String> {
        let output = self.sh(line)?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        ensure!(output.status.success(), "{line}: {}\n{text}", output.status);
        Ok(text)
    }

    /// The same, which is to fail.
    pub fn fail(&self, line: &str) -> Result<String> {
        let output = self.sh(line)?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        ensure!(!output.status.success(), "{line} succeeds:\n{text}");
        Ok(text)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.sh("journalctl --no-pager -n 60").map(|output| output.stdout).unwrap_or_default();
            eprintln!("{}", String::from_utf8_lossy(&log));
        }
        // The first process of the namespace takes all others with it.
        if !self.init.is_empty() {
            let _ = Command::new("kill").args(["-9", &self.init]).status();
        }
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let _ = wait_until("its groups to be empty", Duration::from_secs(10), || {
            Ok(remove_groups(&self.cgroup).is_ok().then_some(()))
        });
    }
}

fn remove_groups(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)?.filter_map(Result::ok) {
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Where groups of processes, version 2, are.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}
