//! The real program in a folder of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::process::{Child, Command};

use crate::gateway::soon;

pub(crate) const TOKEN: &str =
    "0123456789abcdef0123456789abcdef.00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A data folder with what an agent needs to be started.
pub(crate) struct Home {
    folder: tempfile::TempDir,
    starts: u32,
}

pub(crate) struct Running {
    pub(crate) child: Child,
    log: PathBuf,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), starts: 0 }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    pub(crate) fn invite(&self, host: &str, fingerprint: &str, token: Option<&str>) {
        let token = token.map_or(String::new(), |t| format!(r#", "bootstrap_token": "{t}""#));
        let text = format!(
            r#"{{"management_server": {{"host": "{host}", "cert_authority_fingerprint": "{fingerprint}"{token}}},
                "tags": {{"SITE": "north"}}}}"#
        );
        std::fs::write(self.path().join("bootstrap.json"), text).expect("written");
    }

    /// A bootstrap file with an enrolment code in it.
    pub(crate) fn invite_by_code(&self, host: &str, fingerprint: &str, token: &str) {
        let server = agent_proto::ManagementServer {
            host: host.into(),
            further_hosts: Vec::new(),
            cert_authority_fingerprint: fingerprint.into(),
            bootstrap_token: Some(token.into()),
        };
        let code = agent_proto::enrolment_code(&server).expect("a code");
        std::fs::write(self.path().join("bootstrap.json"), code + "\n").expect("written");
    }

    pub(crate) fn start(&mut self, more: &[&str]) -> Running {
        self.starts += 1;
        let log = self.path().join(format!("log-{}", self.starts));
        let child = Command::new(env!("CARGO_BIN_EXE_flotilla-agent"))
            .arg("run")
            .args(["--listen", "127.0.0.1:0", "--name", "camera"])
            .arg("--data")
            .arg(self.data())
            .arg("--bootstrap")
            .arg(self.path().join("bootstrap.json"))
            .args(more)
            .env("FLOTILLA_LOG", "debug")
            .stderr(File::create(&log).expect("a log"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("started");
        Running { child, log }
    }

    /// `flotilla-agent status`.
    pub(crate) async fn status(&self, json: bool) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flotilla-agent"));
        command.arg("status").arg("--data").arg(self.data());
        if json {
            command.arg("--json");
        }
        soon("the status", command.output()).await.expect("ran")
    }

    pub(crate) async fn status_json(&self) -> serde_json::Value {
        let output = self.status(true).await;
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

impl Running {
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a log")
    }

    /// Waits for its own end: exit code and log.
    pub(crate) async fn end(mut self) -> (Option<i32>, String) {
        let status = soon("the agent's end", self.child.wait()).await.expect("waited");
        (status.code(), self.log())
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) {
        soon("the kill", self.child.kill()).await.expect("killed");
    }

    /// SIGTERM.
    pub(crate) async fn terminate(self) -> (Option<i32>, String) {
        let id = self.child.id().expect("running").to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status().await.expect("kill runs");
        assert!(sent.success());
        self.end().await
    }
}
