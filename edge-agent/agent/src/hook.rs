//! Hooks: programs of this machine's owner that are called before what a run brought gets its names (`edge-agent/PROTOCOL.md`
//! §2.12).
//!
//! What is called stands in the agent's own configuration, arguments and all. From the network comes a name alone, and what
//! the run is, as environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// The owner's hooks by their names.
pub(crate) type Hooks = BTreeMap<String, Hook>;

/// What a hook may look for programs in.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How often it is looked whether a hook has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Bytes of what a hook says that are logged; it may say more.
const SAID_MAX: usize = 16 << 10;

/// How long is waited for what a hook has said once it has ended: something that it left behind may hold its output.
const SAID_PATIENCE: Duration = Duration::from_secs(1);

/// A program of the owner's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    /// Absolute.
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// How long it may take.
    pub(crate) timeout: Duration,
}

/// Why a hook did not agree.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error("it cannot be started: {0}")]
    NotStarted(io::Error),
    #[error("it ended with {0}")]
    Refused(ExitStatus),
    #[error("it did not end within {0:?}")]
    Late(Duration),
    #[error("it was broken off with the run")]
    Stopped,
    #[error("it cannot be waited for: {0}")]
    Lost(io::Error),
}

impl Hook {
    /// Calls it in a folder, and waits until it has ended, at most as long as it may take. When that is over, or `stop` is
    /// set, it is killed with everything in its process group.
    ///
    /// # Errors
    /// Whatever it is but an exit with status 0.
    pub(crate) fn call(
        &self,
        folder: &Path,
        environment: &[(&str, OsString)],
        timeout: Duration,
        stop: &AtomicBool,
    ) -> Result<(), HookError> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir(folder).env_clear().env("PATH", PATH);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut running = Running(command.spawn().map_err(HookError::NotStarted)?);
        let said = [
            running.0.stdout.take().map(|out| listen(Box::new(out))),
            running.0.stderr.take().map(|out| listen(Box::new(out))),
        ];
        let ended = wait(&mut running.0, Instant::now() + timeout, stop);
        drop(running);
        let until = Instant::now() + SAID_PATIENCE;
        for said in said.into_iter().flatten() {
            let left = until.saturating_duration_since(Instant::now());
            if let Ok(said) = said.recv_timeout(left)
                && !said.is_empty()
            {
                tracing::info!(program = %self.program.display(), "the hook says: {}", said.escape_ascii());
            }
        }
        match ended {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(HookError::Refused(status)),
            Ok(None) if stop.load(Ordering::Relaxed) => Err(HookError::Stopped),
            Ok(None) => Err(HookError::Late(timeout)),
            Err(error) => Err(HookError::Lost(error)),
        }
    }
}

/// A hook's process. Whatever of it is left when this goes is killed.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Its group is there as long as anything in it is, so its number is nobody else's; without anything in it there is
        // nothing to kill.
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// Waits for its end; none if that did not come in time.
fn wait(child: &mut Child, until: Instant, stop: &AtomicBool) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if stop.load(Ordering::Relaxed) || Instant::now() >= until {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// Takes what a hook says, all of it, so that it is not held up, and keeps some.
fn listen(mut out: Box<dyn Read + Send>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, said) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut kept, mut bytes) = (Vec::new(), [0; 4096]);
        while let Ok(len) = out.read(&mut bytes)
            && len > 0
        {
            kept.extend_from_slice(&bytes[..len.min(SAID_MAX - kept.len())]);
        }
        // Nobody waits for it any more if it took too long.
        let _ = sender.send(kept);
    });
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn shell(script: &str) -> Hook {
        let arguments = vec!["-c".into(), script.into()];
        Hook { program: "/bin/sh".into(), arguments, timeout: PATIENCE }
    }

    fn call(
        script: &str,
        timeout: Duration,
        stop: &AtomicBool,
    ) -> (tempfile::TempDir, Result<(), HookError>) {
        let folder = tempfile::tempdir().expect("room");
        let environment = [("FLOTILLA_RUN", OsString::from("7")), ("FLOTILLA_JOB_NAME", "a; b $(c)".into())];
        let ended = shell(script).call(folder.path(), &environment, timeout, stop);
        (folder, ended)
    }

    #[test]
    fn a_hook_works_in_its_folder_with_its_environment_and_nothing_else() {
        let script = "env > env; pwd > pwd; cat > stdin; echo \"$FLOTILLA_JOB_NAME\" > name";
        let (folder, ended) = call(script, PATIENCE, &AtomicBool::new(false));
        ended.expect("it agrees");
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("written");
        let mut names: Vec<String> = read("env")
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, _)| name.into())
            .collect();
        // What a shell sets by itself.
        names.retain(|name| !["PWD", "SHLVL", "_", "OLDPWD"].contains(&name.as_str()));
        names.sort();
        assert_eq!(names, ["FLOTILLA_JOB_NAME", "FLOTILLA_RUN", "PATH"]);
        let real = folder.path().canonicalize().expect("there");
        assert_eq!(Path::new(read("pwd").trim_end()), real);
        assert_eq!((read("stdin").as_str(), read("name").as_str()), ("", "a; b $(c)\n"));
    }

    #[test]
    fn only_status_0_is_agreement() {
        let never = AtomicBool::new(false);
        let refused = |script| call(script, PATIENCE, &never).1.expect_err("refused");
        assert!(matches!(refused("exit 3"), HookError::Refused(status) if status.code() == Some(3)));
        assert!(matches!(refused("kill -9 $$"), HookError::Refused(_)));
        // Much more than anybody keeps, on both outputs.
        let (_, ended) = call("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2", PATIENCE, &never);
        ended.expect("it agrees");
        let missing = Hook { program: "/nowhere/at/all".into(), ..shell("") };
        let folder = tempfile::tempdir().expect("room");
        let ended = missing.call(folder.path(), &[], PATIENCE, &never);
        assert!(matches!(ended, Err(HookError::NotStarted(_))));
        let zero = [("X", OsString::from("a\0b"))];
        let ended = shell("true").call(folder.path(), &zero, PATIENCE, &never);
        assert!(matches!(ended, Err(HookError::NotStarted(_))));
    }

    /// Whether a process is still there, by the number it wrote down.
    fn is_there(folder: &Path) -> bool {
        let pid = fs::read_to_string(folder.join("pid")).expect("written");
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        // What nobody has waited for yet has ended all the same.
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    }

    #[test]
    fn what_takes_too_long_is_killed_with_all_it_began() {
        let began = Instant::now();
        let script = "sleep 1000 & echo $! > pid; trap '' TERM; wait";
        let gone = |folder: &Path| {
            while is_there(folder) {
                assert!(began.elapsed() < PATIENCE, "it is still there");
                std::thread::yield_now();
            }
        };
        let (folder, ended) = call(script, Duration::from_millis(300), &AtomicBool::new(false));
        assert!(matches!(ended, Err(HookError::Late(_))), "{ended:?}");
        gone(folder.path());
        let (folder, ended) = {
            let stop = AtomicBool::new(false);
            let folder = tempfile::tempdir().expect("room");
            let ended = std::thread::scope(|scope| {
                let calling = scope.spawn(|| shell(script).call(folder.path(), &[], PATIENCE, &stop));
                while fs::read_to_string(folder.path().join("pid")).map_or(true, |pid| pid.is_empty()) {
                    assert!(began.elapsed() < PATIENCE, "it does not begin");
                    std::thread::yield_now();
                }
                stop.store(true, Ordering::Relaxed);
                calling.join().expect("nothing panics")
            });
            (folder, ended)
        };
        assert!(matches!(ended, Err(HookError::Stopped)), "{ended:?}");
        gone(folder.path());
        // What it leaves behind in its group is killed when it ends.
        let (folder, ended) = call("sleep 1000 & echo $! > pid", PATIENCE, &AtomicBool::new(false));
        ended.expect("it agrees");
        gone(folder.path());
    }
}
