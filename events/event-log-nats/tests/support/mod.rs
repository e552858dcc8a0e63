//! Shared by the tests against a real server.

#![allow(dead_code)] // Each test binary uses its own part.

use std::time::Duration;

use event_log::{Position, StreamName};
use event_log_nats::testing::{NatsServer, server_or_skip};
use event_log_nats::{NatsLog, NatsLogOptions};

/// Longest wait for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A server with a folder of its own; fields are dropped in order, the server first.
pub(crate) struct Server {
    pub(crate) nats: NatsServer,
    pub(crate) _dir: tempfile::TempDir,
}

/// A running server; `None` when there is no program and the test is skipped.
pub(crate) fn server(test: &str) -> Option<Server> {
    let program = server_or_skip(test)?;
    let dir = tempfile::tempdir().unwrap();
    let nats = NatsServer::start(program, dir.path()).unwrap();
    Some(Server { nats, _dir: dir })
}

/// A log of its own on that server.
pub(crate) fn options(url: &str, name: &str) -> NatsLogOptions {
    let mut options = NatsLogOptions::new(url);
    options.stream = format!("TEST_{name}");
    options.subject_prefix = format!("test.{name}");
    options
}

pub(crate) async fn open(url: &str, name: &str) -> NatsLog {
    NatsLog::open(options(url, name)).await.unwrap()
}

pub(crate) fn name(text: &str) -> StreamName {
    StreamName::new(text).unwrap()
}

pub(crate) fn at(position: u64) -> Option<Position> {
    Some(Position(position))
}
