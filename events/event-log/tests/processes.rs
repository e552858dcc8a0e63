//! What only a process of its own can show: being killed while it appends, and running out of room. The child is this
//! test program itself, told by the environment which part to play.

mod support;

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use event_log::file::FileLog;
use event_log::{AppendError, EventLog, Position, ReadLimit, StreamName};
use support::*;

const DIR: &str = "FLOTILLA_EVENT_LOG_TEST_DIR";
const ROUND: &str = "FLOTILLA_EVENT_LOG_TEST_ROUND";

fn child_dir() -> Option<PathBuf> {
    env::var_os(DIR).map(PathBuf::from)
}

/// The bytes of a stream's nth record: 0 to 999 of them, none alike.
fn payload(stream: &StreamName, nth: u64) -> Vec<u8> {
    let mut bytes = format!("{stream} {nth} ").into_bytes();
    bytes.resize(bytes.len() + usize::try_from(nth * 131 % 1000).unwrap(), nth as u8);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_append_survives_kill_9() {
    const ROUNDS: u64 = 8;
    let dir = tempfile::tempdir().unwrap();
    // What children were told: stream and number of the record at each position.
    let mut acknowledged: BTreeMap<u64, (StreamName, u64)> = BTreeMap::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child_appends_until_killed", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while let Some(Ok(line)) = lines.next() {
            if take_acknowledgement(&line, &mut acknowledged) {
                seen += 1;
            }
            if seen == 60 + round * 53 {
                child.kill().unwrap();
                break;
            }
        }
        // What it still got out before it died counts too. A line may be torn.
        for line in lines.map_while(Result::ok) {
            take_acknowledgement(&line, &mut acknowledged);
        }
        let status = child.wait().unwrap();
        assert!(!status.success() && seen > 0, "round {round}: killed, not finished: {status}");

        let log = FileLog::open(dir.path(), SMALL).await.unwrap();
        let all = read_all(&log).await;
        let mut next: BTreeMap<StreamName, u64> = BTreeMap::new();
        for entry in &all {
            let nth = next.entry(entry.stream.clone()).or_default();
            assert_eq!(entry.bytes, payload(&entry.stream, *nth), "{} {nth}", entry.stream);
            if let Some(told) = acknowledged.get(&entry.position.0) {
                assert_eq!(*told, (entry.stream.clone(), *nth), "at {}", entry.position);
            }
            *nth += 1;
        }
        let last = acknowledged.last_key_value().unwrap();
        assert!(*last.0 <= all.len() as u64, "{last:?} was acknowledged, the log ends at {}", all.len());
        log.close().await;
    }
    assert!(acknowledged.len() as u64 >= ROUNDS * 60);
}

fn take_acknowledgement(line: &str, acknowledged: &mut BTreeMap<u64, (StreamName, u64)>) -> bool {
    // "ack POSITION STREAM NTH ." with the dot to tell a whole line from a torn one.
    let words: Vec<&str> = line.split(' ').collect();
    let ["ack", position, stream, nth, "."] = words[..] else { return false };
    acknowledged.insert(position.parse().unwrap(), (name(stream), nth.parse().unwrap())).is_none()
}

/// Not a test by itself: the child of the one above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_appends_until_killed() {
    let (Some(dir), Ok(round)) = (child_dir(), env::var(ROUND)) else { return };
    let log = Arc::new(FileLog::open(&dir, SMALL).await.unwrap());
    let writers: Vec<_> = (0..5)
        .map(|writer| {
            let (log, stream) = (Arc::clone(&log), name(&format!("round-{round}/{writer}")));
            tokio::spawn(async move {
                let mut last = None;
                // Bounded, should the parent be gone.
                for nth in 0..5_000 {
                    let position = log.append(&stream, last, payload(&stream, nth)).await.unwrap();
                    let line = format!("ack {position} {stream} {nth} .\n");
                    if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
                        return;
                    }
                    last = Some(position);
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_refuses_cleanly_and_the_log_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    // A limit on file size makes the kernel refuse or shorten writes as a full disk does, for this child alone. The
    // signal that comes with it has to be ignored, which the shell does and the child inherits.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "child_runs_out_of_room", "--nocapture", "--test-threads=1"])
        .env(DIR, dir.path())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("went through"), "{stdout}\n{stderr}");
}

/// Not a test by itself: the child of the one above.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_runs_out_of_room() {
    let Some(dir) = child_dir() else { return };
    let limit = |bytes| {
        let all = rustix::process::getrlimit(rustix::process::Resource::Fsize);
        let soft = rustix::process::Rlimit { current: bytes, maximum: all.maximum };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, soft).unwrap();
    };
    let options = event_log::file::FileLogOptions::default();
    let log = Arc::new(FileLog::open(&dir, options.clone()).await.unwrap());
    let stream = name("s");
    let mut last = None;
    let mut stored = Vec::new();
    // The segment's header, 124 records, and room for one that is smaller.
    limit(Some(48 + 124 * (24 + 1 + 777 + 4) + 300));
    let reason = loop {
        let bytes = vec![stored.len() as u8; 777];
        match log.append(&stream, last, bytes.clone()).await {
            Ok(position) => {
                last = Some(position);
                stored.push(bytes);
            }
            Err(AppendError::NoSpace { reason }) => break reason,
            Err(error) => panic!("{error}"),
        }
        assert!(stored.len() < 1000, "the limit holds");
    };
    assert_eq!(stored.len(), 124, "{reason}");
    // Still full: refused again, alone and in groups; conflicts are still told; what is stored can be read.
    let group: Vec<_> = (0..20)
        .map(|writer| {
            let log = Arc::clone(&log);
            tokio::spawn(async move { log.append(&name(&format!("g/{writer}")), None, vec![7; 9_000]).await })
        })
        .collect();
    for append in group {
        assert!(matches!(append.await.unwrap(), Err(AppendError::NoSpace { .. })));
    }
    assert!(matches!(log.append(&stream, None, Vec::new()).await, Err(AppendError::Conflict { .. })));
    check(&log, &stored).await;
    // Something smaller may still fit.
    last = Some(log.append(&stream, last, b"small".to_vec()).await.unwrap());
    stored.push(b"small".to_vec());
    // Room again.
    limit(None);
    for _ in 0..50 {
        let bytes = vec![stored.len() as u8; 777];
        last = Some(log.append(&stream, last, bytes.clone()).await.unwrap());
        stored.push(bytes);
    }
    check(&log, &stored).await;
    log.close().await;
    let log = FileLog::open(&dir, options).await.unwrap();
    assert_eq!(log.recovery().torn_tail, None);
    check(&log, &stored).await;
    println!("went through");
}

async fn check(log: &FileLog, stored: &[Vec<u8>]) {
    assert_eq!(log.last_position().await.unwrap(), Position(stored.len() as u64));
    let entries = log.read(Position(1), ReadLimit::default()).await.unwrap();
    assert!(entries.iter().map(|entry| &entry.bytes).eq(stored));
}

#[tokio::test]
async fn the_lock_holds_between_processes() {
    let dir = tempfile::tempdir().unwrap();
    let log = FileLog::open(dir.path(), SMALL).await.unwrap();
    let try_it = |dir: &Path| {
        let status = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child_opens", "--nocapture", "--test-threads=1"])
            .env(DIR, dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.unwrap().success()
    };
    assert!(!try_it(dir.path()), "the log has one writer");
    log.close().await;
    assert!(try_it(dir.path()), "released");
}

/// Not a test by itself: the child of the one above.
#[tokio::test]
async fn child_opens() {
    let Some(dir) = child_dir() else { return };
    FileLog::open(&dir, SMALL).await.unwrap();
}
