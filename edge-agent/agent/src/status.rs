//! What the agent is doing, for `flotilla-agent status`.
//!
//! A unix socket in the data folder answers one JSON object per connection and closes; where there
//! are no such sockets (or the path is too long for one) a file beside it is renewed every 2 s.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use event_schema::{AgentId, Timestamp};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::VERSION;
use crate::clock::now;
use crate::folder::write_private;
use crate::limits::{STATUS_FILE_INTERVAL, STATUS_LEN_MAX};

const SOCKET: &str = "status.sock";
const FILE: &str = "status.json";

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sessions: u64,
    pub(crate) commands_refused: u64,
    pub(crate) commands_forged: u64,
}

struct Board {
    agent: AgentId,
    name: String,
    gateway: Option<String>,
    enrolled: bool,
    removed: bool,
    connected: bool,
    /// Since when it is, or is not.
    since: Timestamp,
    last_error: Option<String>,
    cursor: u64,
    counters: Counters,
}

/// The parts that come up after enrolment.
type Live = Box<dyn Fn() -> Value + Send + Sync>;

/// What is told to whoever asks.
pub(crate) struct Status {
    board: Mutex<Board>,
    live: OnceLock<Live>,
}

impl Status {
    pub(crate) fn new(agent: AgentId, name: String) -> Self {
        let board = Board {
            agent,
            name,
            gateway: None,
            enrolled: false,
            removed: false,
            connected: false,
            since: now(),
            last_error: None,
            cursor: 0,
            counters: Counters::default(),
        };
        Self { board: Mutex::new(board), live: OnceLock::new() }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent is a member now. `live` gives `outbox`, `utp2`, `runs` and so on: an object.
    pub(crate) fn enrolled(&self, name: String, gateway: String, cursor: u64, live: Live) {
        let mut board = self.board();
        board.name = name;
        board.gateway = Some(gateway);
        board.enrolled = true;
        board.cursor = cursor;
        // Set once per start.
        let _ = self.live.set(live);
    }

    pub(crate) fn removed(&self) {
        self.board().removed = true;
    }

    /// Connected to this gateway.
    pub(crate) fn link_up(&self, gateway: &str) {
        let mut board = self.board();
        board.gateway = Some(gateway.to_owned());
        board.connected = true;
        board.since = now();
        board.last_error = None;
        board.counters.sessions += 1;
    }

    pub(crate) fn link_failed(&self, error: &str) {
        let mut board = self.board();
        if board.connected {
            board.connected = false;
            board.since = now();
        }
        board.last_error = Some(error.to_owned());
    }

    pub(crate) fn cursor(&self, cursor: u64) {
        self.board().cursor = cursor;
    }

    pub(crate) fn count(&self, count: impl FnOnce(&mut Counters)) {
        count(&mut self.board().counters);
    }

    /// One JSON object.
    pub(crate) fn to_json(&self) -> Value {
        let board = self.board();
        let mut status = json!({
            "agent": board.agent.to_string(),
            "name": board.name,
            "version": VERSION,
            "enrolled": board.enrolled,
            "removed": board.removed,
            "gateway": board.gateway,
            "connected": board.connected,
            "since": board.since.to_string(),
            "last_error": board.last_error,
            "cursor": board.cursor,
            "outbox": 0,
            "utp2": null,
            "runs": [],
            "sessions": board.counters.sessions,
            "commands_refused": board.counters.commands_refused,
            "commands_forged": board.counters.commands_forged,
        });
        drop(board);
        if let (Some(Value::Object(live)), Some(status)) =
            (self.live.get().map(|live| live()), status.as_object_mut())
        {
            status.extend(live);
        }
        status
    }
}

/// Serves the status until aborted.
pub(crate) fn serve(folder: &Path, status: Arc<Status>) -> JoinHandle<()> {
    #[cfg(unix)]
    {
        let path = folder.join(SOCKET);
        // Left by an agent that was killed: the folder's lock is ours, so nobody listens there.
        let _ = std::fs::remove_file(&path);
        match tokio::net::UnixListener::bind(&path) {
            Ok(listener) => return tokio::spawn(serve_socket(listener, status)),
            Err(error) => {
                tracing::info!(%error, socket = %path.display(), "no status socket; writing {FILE} instead");
            }
        }
    }
    tokio::spawn(write_file(folder.join(FILE), status))
}

#[cfg(unix)]
async fn serve_socket(listener: tokio::net::UnixListener, status: Arc<Status>) {
    use crate::limits::STATUS_TIMEOUT;
    use tokio::io::AsyncWriteExt;
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let answer = format!("{}\n", status.to_json());
                // One at a time is enough: who does not take it in time goes without.
                let _ = tokio::time::timeout(STATUS_TIMEOUT, async {
                    stream.write_all(answer.as_bytes()).await?;
                    stream.shutdown().await
                })
                .await;
            }
            Err(error) => {
                tracing::warn!(%error, "the status socket");
                tokio::time::sleep(STATUS_FILE_INTERVAL).await;
            }
        }
    }
}

async fn write_file(path: PathBuf, status: Arc<Status>) {
    loop {
        let text = format!("{}\n", status.to_json());
        if let Err(error) = write_private(&path, text.as_bytes()) {
            tracing::warn!(%error, "the status file");
        }
        tokio::time::sleep(STATUS_FILE_INTERVAL).await;
    }
}

/// Removes what [`serve`] left, at a clean stop.
pub(crate) fn clear(folder: &Path) {
    for name in [SOCKET, FILE] {
        let _ = std::fs::remove_file(folder.join(name));
    }
}

/// Asks the agent that runs on a data folder.
///
/// # Errors
/// If none answers.
pub(crate) fn ask(folder: &Path) -> io::Result<Value> {
    let mut text = String::new();
    #[cfg(unix)]
    match std::os::unix::net::UnixStream::connect(folder.join(SOCKET)) {
        Ok(stream) => {
            stream.set_read_timeout(Some(crate::limits::STATUS_TIMEOUT))?;
            stream.take(STATUS_LEN_MAX).read_to_string(&mut text)?;
            return Ok(serde_json::from_str(&text)?);
        }
        // A path too long for a socket, or none there: the agent may have written a file.
        Err(_) if folder.join(FILE).exists() => {}
        Err(error) => return Err(error),
    }
    std::fs::File::open(folder.join(FILE))?.take(STATUS_LEN_MAX).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

/// The status in lines for people.
pub(crate) fn print(status: &Value) -> String {
    use std::fmt::Write;
    let text = |key: &str| match &status[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    };
    let yes = |key: &str| status[key] == true;
    let state = match (yes("removed"), yes("enrolled"), yes("connected")) {
        (true, ..) => "removed from the fleet".to_owned(),
        (_, false, _) => "not enrolled yet".to_owned(),
        (_, _, true) => format!("connected to {} since {}", text("gateway"), text("since")),
        (_, _, false) => format!("no link to {} since {}", text("gateway"), text("since")),
    };
    let mut lines = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(lines, "agent    {} ({})", text("agent"), text("name"));
    let _ = writeln!(lines, "version  {}", text("version"));
    let _ = writeln!(lines, "state    {state}");
    if !status["last_error"].is_null() {
        let _ = writeln!(lines, "trouble  {}", text("last_error"));
    }
    let _ = writeln!(lines, "µTP2     {}", text("utp2"));
    let _ = writeln!(lines, "cursor   {}   outbox {}", text("cursor"), text("outbox"));
    let witness = &status["witness"];
    if let Some(size) = witness["size"].as_u64() {
        let _ =
            writeln!(lines, "witness  of {size} entries  root {}", witness["root"].as_str().unwrap_or("-"));
    }
    if witness["conflicts"].as_u64().is_some_and(|conflicts| conflicts > 0) {
        let _ = writeln!(
            lines,
            "ALARM    the control service showed another history than before: {}",
            witness["last_refusal"].as_str().unwrap_or("see witness/evidence in the data folder")
        );
    }
    for run in status["runs"].as_array().into_iter().flatten() {
        let field = |key: &str| match &run[key] {
            Value::String(text) => text.clone(),
            Value::Null => "-".into(),
            other => other.to_string(),
        };
        if !run["sync"].is_null() {
            print_sync(&mut lines, run, &field);
            continue;
        }
        let _ = writeln!(
            lines,
            "run      {}  {}  {} of {} blocks  {} of {} bytes  {} peers",
            field("run"),
            field("state"),
            field("blocks_done"),
            field("blocks_total"),
            field("bytes_done"),
            field("bytes_total"),
            field("peers"),
        );
    }
    lines
}

/// A synchronization, in lines for people.
fn print_sync(lines: &mut String, run: &Value, field: &impl Fn(&str) -> String) {
    use std::fmt::Write;
    let sync = &run["sync"];
    let count = |key: &str| sync[key].as_u64().unwrap_or(0);
    let state = match run["state"].as_str() {
        Some("synchronizing") => {
            format!("behind by {}, {} deletions to come", count("to_bring"), count("to_remove"))
        }
        _ => field("state"),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        lines,
        "sync     {}  {state}  {} entries  {} conflicts  {} blocked  {} peers",
        field("run"),
        count("entries"),
        count("conflicts"),
        count("blocked"),
        field("peers"),
    );
    if sync["guarded"] == true {
        let missing = count("missing");
        let _ = writeln!(
            lines,
            "  guard    {missing} entries are gone; nothing is told or changed until that is answered"
        );
    }
    for (path, why) in sync["blocked_paths"].as_object().into_iter().flatten() {
        let _ = writeln!(lines, "  blocked  {path}: {}", why.as_str().unwrap_or("-"));
    }
    for copy in sync["conflict_copies"].as_array().into_iter().flatten() {
        let _ = writeln!(lines, "  conflict {}", copy.as_str().unwrap_or("-"));
    }
    if let Some(trouble) = sync["trouble"].as_str() {
        let _ = writeln!(lines, "  trouble  {trouble}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_synchronization_says_what_it_waits_for() {
        let sync = json!({
            "to_bring": 3, "to_remove": 1, "entries": 9, "conflicts": 1, "blocked": 1, "guarded": false,
            "blocked_paths": {"A": "taken"}, "conflict_copies": ["a.conflict-1"], "trouble": null,
        });
        let run = json!({"run": "r", "state": "synchronizing", "peers": 2, "sync": sync});
        let text = print(&json!({ "runs": [run] }));
        let told = ["behind by 3", "1 conflicts", "blocked  A: taken", "conflict a.conflict-1"];
        assert!(told.iter().all(|part| text.contains(part)), "{text}");
        assert!(!text.contains("guard") && !text.contains("trouble"), "{text}");
    }

    #[tokio::test]
    async fn whoever_asks_is_told() {
        let data = tempfile::tempdir().expect("a folder");
        assert!(ask(data.path()).is_err(), "nobody runs here");
        // What a killed agent left.
        std::fs::write(data.path().join(SOCKET), b"").expect("written");
        let status = Arc::new(Status::new(AgentId([1; 16]), "nas".into()));
        let server = serve(data.path(), status.clone());
        let folder = data.path().to_owned();
        let told = async || {
            let folder = folder.clone();
            tokio::task::spawn_blocking(move || ask(&folder)).await.expect("asked").expect("told")
        };
        let first = told().await;
        assert_eq!((&first["enrolled"], &first["runs"]), (&json!(false), &json!([])));
        status.enrolled("nas 1".into(), "gateway:7".into(), 5, Box::new(|| json!({"outbox": 3})));
        status.link_up("gateway:7");
        let second = told().await;
        assert_eq!(
            (&second["connected"], &second["outbox"], &second["cursor"]),
            (&json!(true), &json!(3), &json!(5))
        );
        assert!(print(&second).contains("connected to gateway:7"));
        status.link_failed("the gateway closed the link");
        assert!(print(&told().await).contains("trouble  the gateway closed the link"));
        server.abort();
        clear(data.path());
        assert!(ask(data.path()).is_err());
    }
}
