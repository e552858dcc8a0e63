//! Random crashes of both backends: a process that appends is killed with SIGKILL between and during appends, and of
//! JetStream the server as well. After each crash the log is opened again and compared, from its first record on, with
//! what was asked for and what was acknowledged. The process is this test program itself, told by the environment which
//! part to play.
//!
//! Some crashes run with every test; two hundred of each backend by
//! `cargo nextest run -p event-log-nats --run-ignored ignored-only --no-capture two_hundred_crashes`.
//! `FLOTILLA_CRASH_SEED` repeats a run as far as the scheduler lets it.

mod support;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use event_log::file::{FileLog, FileLogOptions};
use event_log::{AppendError, Entry, EventLog, Position, ReadLimit, StreamName};
use event_log_nats::testing::server_or_skip;
use event_log_nats::{NatsLog, NatsLogOptions};
use support::*;

/// The log that the child opens: a folder, or the URL of a server, a space, and the folder of the copy.
const LOG: &str = "FLOTILLA_CRASH_LOG";
const LIFE: &str = "FLOTILLA_CRASH_LIFE";
const SEED: &str = "FLOTILLA_CRASH_SEED";

/// Writers with a stream of their own, and writers that share one.
const ALONE: u64 = 4;
const TOGETHER: u64 = 3;

/// Small segments, so that crashes meet their ends too.
const SEGMENT: u64 = 64 << 10;

/// Appends in one life of the child at most, should nobody be there to end it.
const APPENDS_MAX: u64 = 20_000;

/// xorshift64*: no more is wanted than moments that differ.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = env::var(SEED).ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).unwrap();
            u64::from_le_bytes(bytes) | 1
        });
        println!("{SEED}={seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % end
    }
}

/// Where the log is.
#[derive(Clone)]
enum Place {
    File(PathBuf),
    Nats { url: String, copy: PathBuf },
}

impl Place {
    fn to_text(&self) -> String {
        match self {
            Self::File(dir) => dir.display().to_string(),
            Self::Nats { url, copy } => format!("{url} {}", copy.display()),
        }
    }

    fn from_text(text: &str) -> Self {
        match text.split_once(' ') {
            Some((url, copy)) => Self::Nats { url: url.into(), copy: copy.into() },
            None => Self::File(text.into()),
        }
    }

    fn options(&self) -> Option<NatsLogOptions> {
        let Self::Nats { url, copy } = self else { return None };
        Some(NatsLogOptions { copy: Some(copy.clone()), ..options(url, "crashes") })
    }

    async fn open(&self) -> Arc<dyn EventLog> {
        match (self, self.options()) {
            (_, Some(options)) => Arc::new(NatsLog::open(options).await.unwrap()),
            (Self::File(dir), None) => {
                let options = FileLogOptions { segment_bytes: SEGMENT, ..FileLogOptions::default() };
                Arc::new(FileLog::open(dir, options).await.unwrap())
            }
            (Self::Nats { .. }, None) => unreachable!("a log on NATS has options"),
        }
    }
}

/// What a record is: the life of the child that asked for it, its writer, and its number.
fn payload(id: &str) -> Vec<u8> {
    let salt = id.bytes().fold(7usize, |salt, byte| salt.wrapping_mul(31) + usize::from(byte));
    let mut bytes = format!("{id} ").into_bytes();
    bytes.resize(bytes.len() + salt % 1500, salt as u8);
    bytes
}

fn id_of(entry: &Entry) -> String {
    let end = entry.bytes.iter().position(|&byte| byte == b' ').expect("a record of this test");
    String::from_utf8(entry.bytes[..end].to_vec()).expect("a record of this test")
}

/// All that children said.
#[derive(Default)]
struct Said {
    asked: HashSet<String>,
    acknowledged: BTreeMap<u64, String>,
}

impl Said {
    /// "ask ID ." and "ack POSITION ID ."; the dot tells a whole line from a torn one.
    fn hear(&mut self, line: &str) -> bool {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["ask", id, "."] => assert!(self.asked.insert(id.into()), "{id} is asked for once"),
            ["ack", position, id, "."] => {
                let before = self.acknowledged.insert(position.parse().unwrap(), id.into());
                assert_eq!(before, None, "two records at position {position}");
                return true;
            }
            _ => {}
        }
        false
    }

    /// Holds the log against what was said: nothing acknowledged is lost or elsewhere, nothing is there twice or was
    /// never asked for, and everything is byte for byte what it was.
    fn check(&self, log: &[Entry]) {
        let mut there = HashMap::new();
        for (entry, position) in log.iter().zip(1..) {
            assert_eq!(entry.position, Position(position), "no gaps");
            let id = id_of(entry);
            assert_eq!(entry.bytes, payload(&id), "{id}");
            assert!(self.asked.contains(&id), "{id} was never asked for");
            assert_eq!(there.insert(id.clone(), position), None, "{id} is there twice");
        }
        for (position, id) in &self.acknowledged {
            assert_eq!(there.get(id), Some(position), "{id} was acknowledged at {position}");
        }
    }
}

/// A life of the child, and what it says.
struct Life {
    child: Child,
    lines: Receiver<String>,
}

impl Life {
    fn begin(place: &Place, life: u64) -> Life {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child_appends", "--nocapture", "--test-threads=1"])
            .env(LOG, place.to_text())
            .env(LIFE, life.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (told, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).try_for_each(|line| told.send(line)).ok()
        });
        Life { child, lines }
    }

    /// Listens until so much was acknowledged; false if the child says nothing any more.
    fn hear_until(&mut self, said: &mut Said, acknowledged: u64) -> bool {
        let (mut left, deadline) = (acknowledged, Instant::now() + PATIENCE);
        while left > 0 {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => left -= u64::from(said.hear(&line)),
                Err(RecvTimeoutError::Timeout) => panic!("the child appends nothing for {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    /// Kills it; what it got out before counts too.
    fn end(mut self, said: &mut Said) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert!(!status.success(), "killed, not finished: {status}");
        self.lines.iter().for_each(|line| {
            said.hear(&line);
        });
    }
}

/// Not a test by itself: appends until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_appends() {
    let (Ok(place), Ok(life)) = (env::var(LOG), env::var(LIFE)) else { return };
    // Ends the line on which the test's name stands.
    println!();
    let log = Place::from_text(&place).open().await;
    let writers: Vec<_> = (0..ALONE + TOGETHER)
        .map(|writer| {
            let stream = if writer < ALONE { format!("own/{life}/{writer}") } else { "shared".to_owned() };
            tokio::spawn(append_on(Arc::clone(&log), name(&stream), format!("{life}/{writer}")))
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

async fn append_on(log: Arc<dyn EventLog>, stream: StreamName, who: String) {
    let mut last = log.last_of_stream(&stream).await.unwrap();
    let say = |line: String| std::io::stdout().lock().write_all(line.as_bytes()).is_ok();
    for nth in 0..APPENDS_MAX {
        let id = format!("{who}/{nth}");
        if !say(format!("ask {id} .\n")) {
            return;
        }
        loop {
            match log.append(&stream, last, payload(&id)).await {
                Ok(position) => {
                    last = Some(position);
                    if !say(format!("ack {position} {id} .\n")) {
                        return;
                    }
                    break;
                }
                Err(AppendError::Conflict { actual, .. }) => last = actual,
                // It may be there or not. Asking again for the same could make it two.
                Err(AppendError::Unknown { .. }) => {
                    last = log.last_of_stream(&stream).await.unwrap_or(last);
                    break;
                }
                // Certainly not there: the server is away.
                Err(AppendError::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => panic!("{stream}: {error}"),
            }
        }
    }
}

async fn read_all(log: &dyn EventLog) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    loop {
        let from = Position(all.len() as u64 + 1);
        let page = log.read(from, ReadLimit::default()).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// `crashes` lives of the child on one log. `server` is killed in every third of them as well, before the child or
/// after it.
async fn crash(place: &Place, mut server: Option<Server>, crashes: u64) {
    let (mut random, mut said) = (Random::new(), Said::default());
    let (mut opening, mut killed_servers) = (Duration::ZERO, 0);
    let mut records = 0;
    for life in 0..crashes {
        let mut child = Life::begin(place, life);
        let wanted = 1 + random.below(150);
        assert!(child.hear_until(&mut said, wanted), "life {life}: the child ended by itself");
        // Between an append and the next, or in the middle of one.
        std::thread::sleep(Duration::from_micros(random.below(5_000)));
        match (&mut server, life % 6) {
            (Some(server), 1) => {
                server.nats.kill();
                std::thread::sleep(Duration::from_millis(random.below(30)));
                child.end(&mut said);
                server.nats.restart().unwrap();
                killed_servers += 1;
            }
            (Some(server), 4) => {
                server.nats.kill();
                server.nats.restart().unwrap();
                killed_servers += 1;
                assert!(child.hear_until(&mut said, 1 + random.below(50)), "life {life}: it comes back");
                child.end(&mut said);
            }
            _ => child.end(&mut said),
        }
        let began = Instant::now();
        let log = place.open().await;
        opening = opening.max(began.elapsed());
        let all = read_all(&*log).await;
        said.check(&all);
        records = all.len();
        log.close().await;
    }
    if let Some(options) = place.options() {
        let log = NatsLog::open(options).await.unwrap();
        let scrub = log.scrub().await.unwrap();
        assert_eq!((scrub.records, scrub.differences), (records as u64, vec![]));
        log.close().await;
    }
    let (asked, acknowledged) = (said.asked.len(), said.acknowledged.len());
    println!(
        "{crashes} crashes, {killed_servers} of the server: {asked} records asked for, {acknowledged} acknowledged, \
         {records} there; none lost, none doubled; opening took {opening:?} at most"
    );
    assert!(acknowledged as u64 > crashes);
}

async fn crash_file(dir: &Path, crashes: u64) {
    crash(&Place::File(dir.join("log")), None, crashes).await;
}

async fn crash_nats(test: &str, dir: &Path, crashes: u64) {
    if server_or_skip(test).is_none() {
        return;
    }
    let server = server(test);
    let url = server.as_ref().map(|server| server.nats.url()).unwrap_or_default();
    crash(&Place::Nats { url, copy: dir.join("copy") }, server, crashes).await;
}

#[tokio::test]
async fn crashes_of_the_embedded_log_lose_and_double_nothing() {
    crash_file(tempfile::tempdir().unwrap().path(), 12).await;
}

#[tokio::test]
async fn crashes_of_writer_and_server_lose_and_double_nothing() {
    let test = "crashes_of_writer_and_server_lose_and_double_nothing";
    crash_nats(test, tempfile::tempdir().unwrap().path(), 8).await;
}

#[tokio::test]
#[ignore = "measures; two hundred of each backend, a few run always"]
async fn two_hundred_crashes() {
    let dir = tempfile::tempdir().unwrap();
    crash_file(dir.path(), 200).await;
    crash_nats("two_hundred_crashes", dir.path(), 200).await;
}
