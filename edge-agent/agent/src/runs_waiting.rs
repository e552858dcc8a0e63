//! Stands in for the run engine until it is here: takes its calls and only logs them.

use std::net::SocketAddr;
use std::path::PathBuf;

use agent_proto::TrustBundle;
use event_schema::{JoinRun, RunId};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::report::Reporter;

#[expect(dead_code, reason = "what the run engine will need")]
pub(crate) struct RunDeps {
    pub(crate) seed: [u8; 32],
    pub(crate) credential: watch::Receiver<Vec<u8>>,
    pub(crate) trust: watch::Receiver<TrustBundle>,
    pub(crate) data_dir: PathBuf,
    pub(crate) storage_path: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) lan: bool,
    pub(crate) advertise: Vec<SocketAddr>,
    pub(crate) reporter: Reporter,
}

pub(crate) struct RunManager {
    listen: SocketAddr,
}

impl RunManager {
    pub(crate) async fn start(deps: RunDeps) -> std::io::Result<Self> {
        let socket = tokio::net::UdpSocket::bind(deps.listen).await?;
        Ok(Self { listen: socket.local_addr()? })
    }

    pub(crate) async fn join(&self, join: JoinRun) {
        tracing::info!(run = %join.run, "would join");
    }

    pub(crate) async fn finish(&self, run: RunId) {
        tracing::info!(%run, "would finish");
    }

    pub(crate) async fn stop(&self, run: RunId) {
        tracing::info!(%run, "would stop");
    }

    pub(crate) fn status(&self) -> Value {
        json!([])
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.listen
    }

    pub(crate) async fn shutdown(&self) {}
}
