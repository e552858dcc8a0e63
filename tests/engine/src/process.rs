//! A program in a place: its output in files, killed for sure, and what it has cost.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Clock ticks per second that `/proc` counts CPU time in: 100 on every Linux that has a fixed one.
const TICKS: f64 = 100.0;

/// How long a program may take until it is ready.
const START: Duration = Duration::from_secs(60);

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
    out: PathBuf,
    err: PathBuf,
}

/// What a process has cost so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// CPU seconds.
    pub(crate) cpu: f64,
    /// The most memory it had resident, in bytes.
    pub(crate) memory: u64,
}

impl Process {
    /// Starts `command`; its output goes to `DIR/NAME.out` and `DIR/NAME.err`, the latter appended.
    pub(crate) fn start(name: &str, dir: &Path, command: &mut Command) -> Result<Self> {
        let (out, err) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
        let errors = File::options().create(true).append(true).open(&err)?;
        let child = command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(errors).spawn();
        let child = child.with_context(|| format!("starting {name}"))?;
        Ok(Self { child, name: name.into(), out, err })
    }

    /// Waits for a line on standard output that `pick` takes.
    pub(crate) fn wait_for_line<T>(&mut self, pick: impl Fn(&str) -> Option<T>) -> Result<T> {
        let end = Instant::now() + START;
        loop {
            let text = fs::read_to_string(&self.out)?;
            // A line counts once its end is there.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            if let Some(found) = whole.lines().find_map(&pick) {
                return Ok(found);
            }
            if let Some(status) = self.ended()? {
                bail!("{} ended with {status}:\n{}", self.name, self.last_words());
            }
            ensure!(Instant::now() < end, "{} does not get ready:\n{}", self.name, self.last_words());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// What it says on standard error, all its lives.
    pub(crate) fn errors(&self) -> String {
        fs::read(&self.err).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// The end of that.
    pub(crate) fn last_words(&self) -> String {
        let text = self.errors();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// What it has cost in this life; nothing once it ended.
    pub(crate) fn cost(&self) -> Cost {
        let read =
            |name: &str| fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap_or_default();
        let (stat, status) = (read("stat"), read("status"));
        // The name in parentheses may hold anything; behind it fields 14 and 15 are the times.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let ticks = |n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
        Cost {
            cpu: (ticks(11) + ticks(12)) / TICKS,
            memory: peak.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 1024,
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
