//! The programs of the demonstration: started, watched, stopped.
//!
//! Owns one running program with its log file, and the order in which a set of them ends: asked first, killed
//! after a moment. That none outlives us even when we are killed is `guard`'s work.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::demo::stop::Stop;
use crate::guard;

/// How long a program may take from SIGTERM to its end before it is killed.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long a program may take to be ready. Generous: on two busy cores a first start makes keys and logs.
const READY: Duration = Duration::from_secs(60);
/// Lines of the log shown when a program fails.
const LAST_LINES: usize = 15;

/// A running program; dropped, it is stopped.
pub(crate) struct Program {
    name: String,
    child: Child,
    log: PathBuf,
    lines: Receiver<String>,
    ended: Option<ExitStatus>,
}

impl Program {
    /// Starts `program`; its output goes to `logs/NAME.log`, standard output also to us, for the ready line.
    pub(crate) fn start<I>(name: &str, program: &Path, arguments: I, logs: &Path) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let log = logs.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = guard::command(program)?;
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file.try_clone()?);
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let output = child.stdout.take().context("no standard output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut file = file;
            // Nobody listening any more is no reason to stop writing the log.
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                let _ = writeln!(file, "{line}");
                let _ = sender.send(line);
            }
        });
        Ok(Self { name: name.to_owned(), child, log, lines, ended: None })
    }

    /// Waits for the line `{"ready":true,…}` on standard output.
    pub(crate) fn ready(&mut self, stop: &Stop) -> Result<Value> {
        let what = format!("{} to be ready", self.name);
        let outcome = stop.until(&what, READY, || {
            loop {
                match self.lines.try_recv() {
                    Ok(line) => match serde_json::from_str::<Value>(&line) {
                        Ok(value) if value["ready"] == true => return Ok(Some(value)),
                        _ => continue,
                    },
                    Err(TryRecvError::Empty) => {
                        self.alive()?;
                        return Ok(None);
                    }
                    Err(TryRecvError::Disconnected) => {
                        self.alive()?;
                        bail!("{} closed its standard output before it was ready", self.name);
                    }
                }
            }
        });
        outcome.with_context(|| self.last_words())
    }

    /// An error if the program has ended.
    pub(crate) fn alive(&mut self) -> Result<()> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("watching {}", self.name))?;
        }
        match self.ended {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself: {}\n{}", self.name, told(status), self.last_words()),
        }
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
        format!("the end of {}.log:\n  {}", self.name, last.join("\n  "))
    }

    fn signal(&self, signal: Signal) {
        // The whole group: a program may have started others. Once it has been waited for, its number may be
        // somebody else's.
        if self.ended.is_none()
            && let Some(group) = Pid::from_raw(self.child.id().cast_signed())
        {
            let _ = kill_process_group(group, signal);
        }
    }

    fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended.is_some()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        stop_all([self]);
    }
}

/// Asks all of them to stop, gives them a moment together, and kills the rest.
pub(crate) fn stop_all<'p>(programs: impl IntoIterator<Item = &'p mut Program>) {
    let mut programs: Vec<&mut Program> = programs.into_iter().collect();
    programs.iter().for_each(|p| p.signal(Signal::TERM));
    let end = Instant::now() + GOODBYE;
    while !programs.iter_mut().all(|p| p.has_ended()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    for program in programs {
        program.signal(Signal::KILL);
        if program.ended.is_none() {
            program.ended = program.child.wait().ok();
        }
    }
}

fn told(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
