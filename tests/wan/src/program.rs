//! Programs started at one side of a link: they end when the link does, whatever ended it.
//!
//! Each runs in a process namespace of its own whose first process is killed by the kernel when the thread that
//! started it is gone, and all others with it. That needs `setpriv` and `unshare` of util-linux.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::Serialize;

use crate::side::Side;

/// How often an ending program is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// A running program. Dropping it kills it and all it started.
pub struct Program {
    child: Child,
    name: String,
    began: Instant,
    ended: Option<Ended>,
    output: Option<PathBuf>,
}

/// How a program ended.
#[derive(Clone, Debug, Serialize)]
pub struct Ended {
    /// Whether it said that all went well.
    pub success: bool,
    /// What the system says about the end.
    pub status: String,
    /// From start to end.
    pub seconds: f64,
    /// CPU time used, its children's included.
    pub cpu_seconds: f64,
}

impl Program {
    /// Starts `command` (program and arguments) at `side`. Output goes to `output` (both streams, the file is made
    /// anew), or to standard error of this program.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start<S: AsRef<OsStr>>(
        side: &Side,
        name: &str,
        command: &[S],
        environment: &[(&str, &str)],
        output: Option<&Path>,
    ) -> Result<Self> {
        let mut all = Command::new("setpriv");
        all.args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child=KILL", "--"]);
        all.args(command.iter().map(|part| OsString::from(part.as_ref())));
        all.envs(environment.iter().copied()).stdin(Stdio::null());
        match output {
            Some(path) => {
                let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
                all.stdout(file.try_clone()?).stderr(file);
            }
            None => {
                // Standard output is for results.
                all.stdout(std::io::stderr()).stderr(Stdio::inherit());
            }
        }
        let began = Instant::now();
        let child =
            side.run(move || all.spawn())?.with_context(|| format!("starting {name} (by setpriv)"))?;
        Ok(Self { child, name: name.into(), began, ended: None, output: output.map(Path::to_owned) })
    }

    /// How it ended, if it did. Programs of one process are to be looked at from one thread: CPU time is told per
    /// ended child.
    ///
    /// # Errors
    /// If the system can't tell.
    pub fn ended(&mut self) -> Result<Option<&Ended>> {
        if self.ended.is_none() {
            let before = children_cpu()?;
            if let Some(status) = self.child.try_wait()? {
                let cpu_seconds = children_cpu()? - before;
                self.ended = Some(ended(status, self.began.elapsed(), cpu_seconds));
            }
        }
        Ok(self.ended.as_ref())
    }

    /// Waits for the end, until `limit` after the start.
    ///
    /// # Errors
    /// If it takes longer; it is killed then.
    pub fn wait(&mut self, limit: Duration) -> Result<Ended> {
        loop {
            if let Some(ended) = self.ended()?.cloned() {
                return Ok(ended);
            }
            if self.began.elapsed() > limit {
                self.kill();
                bail!("{} did not end within {limit:?}:\n{}", self.name, self.tail());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until its output holds `mark`.
    ///
    /// # Errors
    /// If it ends without, or says nothing for ten seconds.
    pub fn wait_for(&mut self, mark: &str) -> Result<()> {
        let limit = Duration::from_secs(10);
        while !self.said().contains(mark) {
            if let Some(ended) = self.ended()?.cloned() {
                bail!("{} ended ({}) without {mark:?}:\n{}", self.name, ended.status, self.tail());
            }
            ensure!(self.began.elapsed() < limit, "{} does not say {mark:?}:\n{}", self.name, self.tail());
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// All it wrote, if that goes to a file.
    #[must_use]
    pub fn said(&self) -> String {
        let text = self.output.as_ref().and_then(|path| fs::read(path).ok()).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The last lines it wrote.
    #[must_use]
    pub fn tail(&self) -> String {
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Kills it and all it started.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill();
        }
    }
}

fn ended(status: ExitStatus, time: Duration, cpu_seconds: f64) -> Ended {
    Ended { success: status.success(), status: status.to_string(), seconds: time.as_secs_f64(), cpu_seconds }
}

/// CPU time of all children that have ended.
fn children_cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
