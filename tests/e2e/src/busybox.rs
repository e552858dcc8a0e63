//! A box: a root of its own with BusyBox in it, in which packages' scripts run as they do on a NAS.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use packages::tree::Tree;

use crate::{Program, wait_until};

/// A root with BusyBox and the agent's libraries in it. What still runs in it when it is dropped is killed.
pub struct BusyBox {
    root: tempfile::TempDir,
    /// Variables of all commands.
    variables: Vec<(String, String)>,
}

impl BusyBox {
    /// Whether one can be made here: root, mount namespaces and Debian's `busybox-static`. CI has to.
    #[must_use]
    pub fn possible() -> bool {
        let runs = |command: &mut Command| command.output().is_ok_and(|o| o.status.success());
        let possible = rustix::process::geteuid().is_root()
            && runs(Command::new("unshare").args(["--mount", "true"]))
            && runs(Command::new("/bin/busybox").arg("--list"));
        if !possible {
            assert!(
                std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(),
                "root, namespaces and busybox-static are needed"
            );
            eprintln!("SKIPPED: needs root, mount namespaces and Debian's busybox-static");
        }
        possible
    }

    /// An empty one with these folders, in which this agent is to run.
    pub fn new(folders: &[&str], agent: &Program) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("flotilla-nas-").tempdir()?;
        let nas = Self { root, variables: agent.register()? };
        fs::set_permissions(nas.root.path(), fs::Permissions::from_mode(0o755))?;
        for folder in ["bin", "dev", "proc", "tmp", "etc"].iter().chain(folders) {
            fs::create_dir_all(nas.path(folder))?;
        }
        fs::set_permissions(nas.path("tmp"), fs::Permissions::from_mode(0o1777))?;
        fs::copy("/bin/busybox", nas.path("bin/busybox")).context("the Debian package busybox-static")?;
        let applets = Command::new("/bin/busybox").arg("--list").output()?;
        for applet in String::from_utf8(applets.stdout)?.lines().filter(|a| *a != "busybox") {
            symlink("busybox", nas.path("bin").join(applet))?;
        }
        if !agent.dynamic {
            return Ok(nas);
        }
        let linked = Command::new("ldd").arg(&agent.path).output()?;
        for library in String::from_utf8(linked.stdout)?.split_whitespace().filter(|w| w.starts_with('/')) {
            let to = nas.path(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().context("a folder")?)?;
            fs::copy(library, to)?;
        }
        Ok(nas)
    }

    /// A path in it, seen from outside.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.path().join(inside)
    }

    /// Begins a command in it as a user (and group) with nothing but these variables: in a mount namespace of its own,
    /// which goes with the last process in it. The program and its arguments are to be added.
    pub fn command(&self, user: u32, variables: impl IntoIterator<Item = (String, String)>) -> Command {
        let mounts = "mount -t proc proc \"$0/proc\" && mount --rbind /dev \"$0/dev\" && \
                      exec chroot --userspec=\"$1:$1\" \"$0\" \"${@:2}\"";
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--", "/bin/bash", "-c", mounts])
            .arg(self.root.path())
            .arg(user.to_string())
            .args(["/bin/env", "-i"])
            .args(
                variables
                    .into_iter()
                    .chain(self.variables.clone())
                    .map(|(name, value)| format!("{name}={value}")),
            );
        command
    }

    /// Processes in it by a part of their command lines.
    pub fn processes(&self, part: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
            let of_us = fs::read_link(entry.path().join("root")).is_ok_and(|root| root == self.root.path());
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if of_us && String::from_utf8_lossy(&line).contains(part) {
                found.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(found)
    }

    /// One of them.
    pub fn process(&self, part: &str) -> Result<Option<String>> {
        Ok(self.processes(part)?.pop())
    }

    /// Kills one, and waits for its end, `limit` at most.
    pub fn kill(&self, part: &str, limit: Duration) -> Result<()> {
        let process = self.process(part)?.with_context(|| format!("{part} runs"))?;
        ensure!(Command::new("kill").args(["-9", &process]).status()?.success());
        wait_until("its end", limit, || {
            let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            Ok(line.is_empty().then_some(()))
        })
    }

    /// Puts files of a package below a folder (a path from outside).
    pub fn put(folder: &Path, tree: &Tree, wanted: impl Fn(&str) -> bool) -> Result<()> {
        for (path, file) in tree.files().filter(|(path, _)| wanted(path)) {
            let to = folder.join(path);
            fs::create_dir_all(to.parent().context("a folder")?)?;
            fs::write(&to, &file.bytes)?;
            fs::set_permissions(&to, fs::Permissions::from_mode(file.mode))?;
        }
        Ok(())
    }
}

impl Drop for BusyBox {
    fn drop(&mut self) {
        // What looks after the agent first, or it starts another one.
        for part in ["supervise.sh", "flotilla-agent"] {
            while self.process(part).is_ok_and(|process| process.is_some())
                && self.kill(part, Duration::from_secs(10)).is_ok()
            {}
        }
    }
}
