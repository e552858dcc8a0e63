//! The real `flotilla` program: run to its end, or served from a folder of its own.

#![allow(dead_code, reason = "each test uses its own part")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The program.
pub(crate) const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a command line to its end, with nothing from the environment.
pub(crate) fn flotilla(line: &[&str]) -> Output {
    let mut command = Command::new(FLOTILLA);
    command.args(line).stdin(Stdio::null());
    for name in ["FLOTILLA_DATA", "FLOTILLA_SERVER", "FLOTILLA_TOKEN"] {
        command.env_remove(name);
    }
    command.output().expect("runs")
}

/// What a command that succeeds says as JSON.
pub(crate) fn json(line: &[&str]) -> Value {
    let line = [line, &["--json"]].concat();
    serde_json::from_slice(&succeeded(&line).stdout).unwrap_or_else(|e| panic!("{line:?}: {e}"))
}

/// What a command that succeeds says to people.
pub(crate) fn said(line: &[&str]) -> String {
    String::from_utf8_lossy(&succeeded(line).stdout).into_owned()
}

/// What a command that ends with `code` says about it.
pub(crate) fn failure(code: i32, line: &[&str]) -> String {
    let output = flotilla(line);
    let said = error_of(&output);
    assert_eq!(output.status.code(), Some(code), "{line:?}: {said}");
    said
}

pub(crate) fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

fn succeeded(line: &[&str]) -> Output {
    let output = flotilla(line);
    assert!(output.status.success(), "{line:?}: {}", error_of(&output));
    output
}

/// A running service. Dropping it kills it, as a power cut would; what was acknowledged is there.
pub(crate) struct Serve {
    child: Child,
    data: PathBuf,
    /// What it said when it was ready.
    pub(crate) ready: Value,
}

impl Drop for Serve {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Serve {
    pub(crate) fn start(data: impl AsRef<Path>) -> Self {
        Self::start_with(data, &[])
    }

    /// With more on the command line.
    pub(crate) fn start_with(data: impl AsRef<Path>, more: &[&str]) -> Self {
        let data = data.as_ref();
        let mut child = Command::new(FLOTILLA)
            .args(["serve", "--http", "127.0.0.1:0", "--gateway", "127.0.0.1:0", "--json", "--data"])
            .arg(data)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let ready: Value = serde_json::from_str(&line).expect("one line of JSON");
        assert_eq!(ready["ready"], true);
        Self { child, data: data.into(), ready }
    }

    /// Its folder.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Where its API is: `http://…`.
    pub(crate) fn place(&self) -> &str {
        self.ready["http"].as_str().expect("text")
    }

    /// What its API asks for.
    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.data.join("api-token")).expect("a token")
    }

    /// Resident memory now and at most so far, MB of 10⁶ bytes.
    pub(crate) fn memory(&self) -> (u64, u64) {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("a process");
        let of = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).expect("a line");
            line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number") * 1024
                / 1_000_000
        };
        (of("VmRSS:"), of("VmHWM:"))
    }

    /// What its API tells.
    pub(crate) fn get(&self, path: &str) -> Value {
        let url = format!("{}/api/v1/{path}", self.place());
        let mut answer = ureq::get(&url)
            .header("Authorization", &format!("Bearer {}", self.token()))
            .call()
            .expect("an answer");
        answer.body_mut().read_json().expect("JSON")
    }

    /// Runs a command line on the service's folder.
    pub(crate) fn run(&self, line: &[&str]) -> Output {
        run(&self.data, line)
    }

    /// What a command that succeeds on the service's folder says as JSON.
    pub(crate) fn json(&self, line: &[&str]) -> Value {
        json(&[line, &["--data", text(&self.data)]].concat())
    }

    /// SIGTERM, and waits for the end: its exit code.
    pub(crate) fn terminate(mut self) -> i32 {
        let done = Command::new("kill").arg(self.child.id().to_string()).status().expect("kill runs");
        assert!(done.success());
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code().expect("an exit code");
            }
            assert!(since.elapsed() < PATIENCE, "does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Runs a command line on this folder.
pub(crate) fn run(data: &Path, line: &[&str]) -> Output {
    flotilla(&[line, &["--data", text(data)]].concat())
}
