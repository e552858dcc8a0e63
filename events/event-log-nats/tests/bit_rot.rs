//! One flipped bit in the files of a real server, alone or of a cluster of three, after a clean stop and after SIGKILL:
//! every record that is read is the one that was appended there, or the reader is told. Never a shorter or a different
//! history without a word (`events/NATS_FORMAT.md` §8).

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use event_log::{Entry, EventLog, Position, ReadError, ReadLimit};
use event_log_nats::testing::{NatsServer, server_or_skip};
use event_log_nats::{NatsLog, NatsLogOptions};
use support::*;
use tokio::time::{Instant, timeout};

const STREAM: &str = "TEST_rot";
const RECORDS: usize = 420;
/// The kinds of files, each as likely to be hit as any other.
const KINDS: [&str; 6] = ["blocks", "index", "stream meta", "raft log", "raft state", "cluster meta"];

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}

/// Stores of servers that were stopped after everything was appended, and what that was.
struct Store {
    dir: tempfile::TempDir,
    program: PathBuf,
    replicas: usize,
    /// The server that was killed or stopped first, and is to be damaged.
    victim: usize,
    expected: Vec<Entry>,
}

fn options_of(servers: &[NatsServer], copy: Option<PathBuf>) -> NatsLogOptions {
    let urls: Vec<_> = servers.iter().map(NatsServer::url).filter(|url| !url.is_empty()).collect();
    NatsLogOptions {
        replicas: servers.len(),
        copy,
        open_timeout: Duration::from_secs(12),
        append_timeout: Duration::from_secs(12),
        read_timeout: Duration::from_secs(8),
        ..options(&urls.join(","), "rot")
    }
}

fn servers_in(program: &Path, dir: &Path, count: usize) -> Vec<NatsServer> {
    if count == 1 {
        return vec![NatsServer::new(program, dir.join("server-0"))];
    }
    NatsServer::cluster(program, dir, count).unwrap()
}

/// Makes the stream as the log does, but with a limit, for which the server chooses smaller blocks.
async fn make_stream(servers: &[NatsServer], options: &NatsLogOptions) {
    let context = raw(&servers[0].url()).await;
    let config = async_nats::jetstream::stream::Config {
        name: STREAM.to_owned(),
        subjects: vec![format!("{}.log.frame", options.subject_prefix)],
        max_bytes: 2 << 20,
        discard: async_nats::jetstream::stream::DiscardPolicy::New,
        num_replicas: servers.len(),
        deny_delete: true,
        deny_purge: true,
        metadata: [("flotilla-log-format".to_owned(), "2".to_owned())].into(),
        ..Default::default()
    };
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = context.create_stream(&config).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Store {
    /// Appends from many at once, so that frames differ in size.
    async fn make(program: &Path, replicas: usize, killed: bool, victim: usize) -> Store {
        let dir = tempfile::tempdir().unwrap();
        let mut servers = servers_in(program, dir.path(), replicas);
        servers.iter_mut().for_each(|server| server.restart().unwrap());
        let mut options = options_of(&servers, Some(dir.path().join("copy")));
        options.open_timeout = PATIENCE;
        options.append_timeout = PATIENCE;
        make_stream(&servers, &options).await;
        let log = Arc::new(NatsLog::open(options).await.unwrap());
        let writers: Vec<_> = (0..12)
            .map(|writer| {
                let (log, stream) = (Arc::clone(&log), name(&format!("stream/{writer}")));
                tokio::spawn(async move {
                    let mut last = None;
                    for nth in 0..RECORDS / 12 {
                        let size = if nth % 9 == 0 { 20_000 } else { (writer * 131 + nth * 37) % 1500 };
                        let text = format!("writer {writer} record {nth} ");
                        let bytes = text.bytes().chain((0..size).map(|at| (at * 7 + nth) as u8)).collect();
                        last = Some(log.append(&stream, last, bytes).await.unwrap());
                    }
                })
            })
            .collect();
        for writer in writers {
            timeout(PATIENCE, writer).await.unwrap().unwrap();
        }
        let expected = read_all(&log).await.unwrap();
        assert_eq!(expected.len(), RECORDS);
        // Every replica has everything before the first one is stopped.
        let scrub = log.scrub().await.unwrap();
        assert!(scrub.differences.is_empty() && scrub.unseen.is_empty(), "{scrub:?}");
        log.close().await;
        if killed {
            servers[victim].kill();
        } else {
            servers[victim].stop().unwrap();
        }
        servers.iter_mut().for_each(|server| server.stop().unwrap());
        Store { dir, program: program.to_path_buf(), replicas, victim, expected }
    }

    /// A copy of the stores, and its servers, not started.
    fn again(&self) -> (tempfile::TempDir, Vec<NatsServer>) {
        let dir = tempfile::tempdir().unwrap();
        copy_folder(self.dir.path(), dir.path());
        let servers = servers_in(&self.program, dir.path(), self.replicas);
        (dir, servers)
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files_in(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files_in(&path, found);
        } else if fs::metadata(&path).unwrap().len() > 0 {
            found.push(path);
        }
    }
}

fn kind_of(path: &Path) -> &'static str {
    let text = path.to_str().unwrap();
    let ext = path.extension().and_then(|ext| ext.to_str()).unwrap_or_default();
    match (text.contains("/_meta_/"), text.contains("/_js_/"), ext) {
        (true, ..) => "cluster meta",
        (_, true, "blk") => "raft log",
        (_, true, _) => "raft state",
        (.., "blk") => "blocks",
        (.., "db" | "idx") => "index",
        _ => "stream meta",
    }
}

/// Flips one bit of one file; which is told.
fn flip(store: &Path, random: &mut Random) -> (&'static str, String) {
    let mut files = Vec::new();
    files_in(store, &mut files);
    files.sort();
    let mut kinds: BTreeMap<_, Vec<PathBuf>> = BTreeMap::new();
    for path in files {
        kinds.entry(kind_of(&path)).or_default().push(path);
    }
    let there: Vec<_> = KINDS.into_iter().filter(|kind| kinds.contains_key(kind)).collect();
    let kind = there[random.below(there.len())];
    let path = &kinds[kind][random.below(kinds[kind].len())];
    let mut bytes = fs::read(path).unwrap();
    let (at, bit) = (random.below(bytes.len()), random.below(8));
    bytes[at] ^= 1 << bit;
    fs::write(path, &bytes).unwrap();
    let shown = path.strip_prefix(store).unwrap().display();
    (kind, format!("bit {bit} of byte {at} of {} in {shown}", bytes.len()))
}

async fn read_all(log: &NatsLog) -> Result<Vec<Entry>, ReadError> {
    let mut all = Vec::new();
    loop {
        let page = log.read(Position(all.len() as u64 + 1), ReadLimit::entries(200)).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

/// What a reader came to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// Everything, as it was.
    Whole,
    /// Opened, and told of damage or of servers that do not answer rightly.
    Reported(String),
    /// Not opened, with a reason.
    Refused(String),
    /// The rule is broken.
    Silent(String),
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Outcome::Whole => "whole",
            Outcome::Reported(_) => "reported",
            Outcome::Refused(_) => "refused",
            Outcome::Silent(_) => "SILENT",
        }
    }
}

async fn reader(options: NatsLogOptions, expected: &[Entry]) -> (Outcome, Option<NatsLog>) {
    let opened = timeout(PATIENCE, NatsLog::open(options)).await.expect("opening ends");
    let log = match opened {
        Ok(log) => log,
        Err(error) => return (Outcome::Refused(error.to_string()), None),
    };
    if log.was_made() {
        return (Outcome::Reported("the servers held no stream, one was made".to_owned()), Some(log));
    }
    let outcome = match timeout(PATIENCE, read_all(&log)).await.expect("reading ends") {
        Ok(all) if all == expected => Outcome::Whole,
        Ok(all) => {
            let same = all.iter().zip(expected).take_while(|(found, right)| found == right).count();
            Outcome::Silent(format!("{} records read, the first {same} are right", all.len()))
        }
        Err(error) => Outcome::Reported(error.to_string()),
    };
    (outcome, Some(log))
}

/// Lets that server lead the stream; `false` if it does not come to it.
async fn let_lead(servers: &[NatsServer], wanted: &str) -> bool {
    let context = async_nats::jetstream::new(
        async_nats::ConnectOptions::new().connect(options_of(servers, None).servers).await.unwrap(),
    );
    let deadline = Instant::now() + Duration::from_secs(25);
    while Instant::now() < deadline {
        if let Ok(stream) = context.get_stream(STREAM).await {
            let cluster = stream.cached_info().cluster.clone();
            if cluster.and_then(|cluster| cluster.leader).as_deref() == Some(wanted) {
                return true;
            }
            let wish = serde_json::json!({ "placement": { "preferred": wanted } });
            let _: Result<serde_json::Value, _> =
                context.request(format!("STREAM.LEADER.STEPDOWN.{STREAM}"), &wish).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    false
}

/// What one flipped bit came to.
struct Trial {
    kind: &'static str,
    flipped: String,
    server: &'static str,
    fresh: Outcome,
    kept: Outcome,
    led: &'static str,
    scrub: String,
    named: bool,
    appended: String,
}

impl Trial {
    /// Whether it holds the rule. A server that is alone and has lost its end can't be told from one that never had it
    /// by a reader that holds no copy; whoever holds one must say it.
    fn holds(&self, replicas: usize) -> bool {
        let silent = |outcome: &Outcome| matches!(outcome, Outcome::Silent(_));
        let tail = replicas == 1 && !matches!(self.kept, Outcome::Whole | Outcome::Silent(_));
        !silent(&self.kept)
            && (!silent(&self.fresh) || tail)
            && self.led != "SILENT"
            && !self.appended.contains("!")
    }

    fn class(&self) -> &'static str {
        match (&self.fresh, &self.kept) {
            (Outcome::Whole, Outcome::Whole) if self.named => "repaired, server named",
            (Outcome::Whole, Outcome::Whole) => "whole",
            (Outcome::Silent(_), _) => "told by the copy",
            (_, Outcome::Whole) | (Outcome::Whole, _) => "reported by one",
            (Outcome::Refused(_), _) => "refused",
            _ => "reported",
        }
    }
}

impl std::fmt::Display for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, server {}\n  fresh {:?}\n  kept {:?}\n  leading: {}; scrub: {}; append: {}",
            self.flipped, self.server, self.fresh, self.kept, self.led, self.scrub, self.appended
        )
    }
}

/// Damages one server, starts all, and asks every reader.
async fn trial(store: &Store, seed: u64) -> Trial {
    let (dir, mut servers) = store.again();
    let (kind, flipped) = flip(&servers[store.victim].store(), &mut Random(seed));
    let mut server = "up";
    for (nth, member) in servers.iter_mut().enumerate() {
        match member.restart() {
            Ok(()) => {}
            Err(_) if nth == store.victim => server = "does not start",
            Err(error) => panic!("{error}"),
        }
    }
    let copy = dir.path().join("copy");
    let refused = |why: &str| Outcome::Refused(why.to_owned());
    let (mut fresh, mut kept) = (refused("the server does not start"), refused("the server does not start"));
    let (mut led, mut scrubbed, mut appended) = ("not asked", "none".to_owned(), "none".to_owned());
    let mut named = false;
    if servers.len() > 1 || server == "up" {
        // First of all the one with a copy, for the other may make a stream where there is none.
        let (outcome, with_copy) = reader(options_of(&servers, Some(copy)), &store.expected).await;
        kept = outcome;
        let without_copy;
        (fresh, without_copy) = reader(options_of(&servers, None), &store.expected).await;
        if let Some(log) = with_copy.as_ref().or(without_copy.as_ref()) {
            match log.scrub().await {
                Ok(scrub) => {
                    named = !scrub.differences.is_empty() || !scrub.unseen.is_empty();
                    scrubbed = format!("{} differences", scrub.differences.len());
                    if let Some(first) = scrub.differences.first() {
                        write!(scrubbed, " ({first})").unwrap();
                    }
                    if !scrub.unseen.is_empty() {
                        write!(scrubbed, ", unseen {:?}", scrub.unseen).unwrap();
                    }
                }
                Err(error) => scrubbed = error.to_string(),
            }
        }
        if servers.len() > 1 && server == "up" {
            led = if let_lead(&servers, servers[store.victim].name()).await {
                let (outcome, log) = reader(options_of(&servers, None), &store.expected).await;
                if let Some(log) = log {
                    appended = append_one(&log, store.expected.len()).await;
                    log.close().await;
                }
                if outcome != Outcome::Whole {
                    write!(scrubbed, "; led: {outcome:?}").unwrap();
                }
                outcome.word()
            } else {
                "does not lead"
            };
        }
    }
    Trial { kind, flipped, server, fresh, kept, led, scrub: scrubbed, named, appended }
}

/// One more record goes behind all the others, or nowhere.
async fn append_one(log: &NatsLog, records: usize) -> String {
    match log.append(&name("after"), None, b"after".to_vec()).await {
        Ok(Position(at)) if at == records as u64 + 1 => "behind the others".to_owned(),
        Ok(at) => format!("at {at}, which is taken!"),
        Err(error) => error.to_string(),
    }
}

async fn few(test: &str, replicas: usize, seeds: &[(bool, u64)]) {
    let Some(program) = server_or_skip(test) else { return };
    for killed in [false, true] {
        let of_this: Vec<_> = seeds.iter().filter(|(kill, _)| *kill == killed).collect();
        if of_this.is_empty() {
            continue;
        }
        let store = Store::make(&program, replicas, killed, replicas - 1).await;
        for (_, seed) in of_this {
            let trial = trial(&store, *seed).await;
            assert!(trial.holds(replicas), "seed {seed}, killed {killed}: {trial}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_of_a_server_alone_is_never_silent() {
    let seeds = [(false, 1), (false, 2), (false, 3), (true, 4), (true, 5), (true, 6)];
    few("a_flipped_bit_of_a_server_alone_is_never_silent", 1, &seeds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_of_one_of_three_is_repaired_or_told() {
    few("a_flipped_bit_of_one_of_three_is_repaired_or_told", 3, &[(true, 1)]).await;
}

/// Many flips; prints what became of them. `ROT_FLIPS` says how many for each kind of store (18).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: some hundred starts of servers, many minutes"]
async fn many_flipped_bits() {
    let Some(program) = server_or_skip("many_flipped_bits") else { return };
    let flips = std::env::var("ROT_FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(18);
    let first = std::env::var("ROT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    let mut table: BTreeMap<(usize, &str, &str), BTreeMap<&str, u32>> = BTreeMap::new();
    let mut broken = Vec::new();
    for (replicas, killed) in [(1, false), (1, true), (3, false), (3, true)] {
        let store = Store::make(&program, replicas, killed, replicas - 1).await;
        let stop = if killed { "kill -9" } else { "clean stop" };
        for seed in first..first + flips {
            let trial = trial(&store, seed).await;
            let mut out = std::io::stderr();
            writeln!(out, "R{replicas} {stop} seed {seed} [{}] {}: {trial}", trial.kind, trial.class())
                .unwrap();
            *table.entry((replicas, stop, trial.kind)).or_default().entry(trial.class()).or_default() += 1;
            if !trial.holds(replicas) {
                broken.push(format!("R{replicas} {stop} seed {seed}: {trial}"));
            }
        }
    }
    for ((replicas, stop, kind), outcomes) in &table {
        writeln!(std::io::stderr(), "| R{replicas} | {stop} | {kind} | {outcomes:?} |").unwrap();
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Flips a bit within the record of that text in a block of the store.
fn flip_in_block(store: &Path, text: &str) {
    let mut files = Vec::new();
    files_in(store, &mut files);
    for path in files.into_iter().filter(|path| kind_of(path) == "blocks") {
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(text.len()).position(|window| window == text.as_bytes()) {
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            return;
        }
    }
    panic!("{text:?} is in no block");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_replica_is_read_around_even_when_it_leads_named_and_rebuilt() {
    let test = "a_damaged_replica_is_read_around_even_when_it_leads_named_and_rebuilt";
    let Some(program) = server_or_skip(test) else { return };
    let store = Store::make(&program, 3, false, 2).await;
    let (dir, mut servers) = store.again();
    let text = "writer 7 record 17 ";
    let position =
        store.expected.iter().find(|entry| entry.bytes.starts_with(text.as_bytes())).unwrap().position;
    flip_in_block(&servers[2].store(), text);
    servers.iter_mut().for_each(|server| server.restart().unwrap());
    assert!(let_lead(&servers, servers[2].name()).await, "the damaged server leads");

    let (outcome, log) = reader(options_of(&servers, None), &store.expected).await;
    assert_eq!(outcome, Outcome::Whole, "read from another server");
    let log = log.unwrap();
    let scrub = log.scrub().await.unwrap();
    assert!(!scrub.differences.is_empty() && scrub.unseen.is_empty(), "{scrub:?}");
    let first = &scrub.differences[0];
    // Where the frame begins that holds it.
    assert!(first.position <= position, "{first}, {position}");
    for difference in &scrub.differences {
        assert_eq!(difference.server.as_deref(), Some(servers[2].name()), "{difference}");
    }
    let shown = first.to_string();
    assert!(shown.contains("on the server flotilla-test-2 alone"), "{shown}");
    let (outcome, kept) = reader(options_of(&servers, Some(dir.path().join("copy"))), &store.expected).await;
    assert_eq!(outcome, Outcome::Whole);
    drop(kept);

    // As docs/operations.md says: stop it, remove its store, start it. The others fill it.
    servers[2].stop().unwrap();
    fs::remove_dir_all(servers[2].store()).unwrap();
    servers[2].restart().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match log.scrub().await {
            Ok(scrub) if scrub.differences.is_empty() && scrub.unseen.is_empty() => break,
            last => assert!(Instant::now() < deadline, "{last:?}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(let_lead(&servers, servers[2].name()).await, "the rebuilt server leads");
    let (outcome, _) = reader(options_of(&servers, None), &store.expected).await;
    assert_eq!(outcome, Outcome::Whole);
    assert_eq!(append_one(&log, RECORDS).await, "behind the others");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_without_the_stream_are_refused_to_a_copy_and_told_to_others() {
    let Some(server) = server("servers_without_the_stream_are_refused_to_a_copy_and_told_to_others") else {
        return;
    };
    let (url, dir) = (server.nats.url(), tempfile::tempdir().unwrap());
    let mut with_copy = NatsLogOptions { copy: Some(dir.path().join("copy")), ..options(&url, "gone") };
    with_copy.open_timeout = Duration::from_secs(1);
    let log = NatsLog::open(with_copy.clone()).await.unwrap();
    assert!(log.was_made());
    append_each(&log, &name("s"), &[b"1".to_vec()]).await;
    log.close().await;
    let context = raw(&url).await;
    context.delete_stream("TEST_gone").await.unwrap();
    let error = NatsLog::open(with_copy).await.unwrap_err().to_string();
    assert!(error.contains("ends at position 0") && error.contains("at 1"), "{error}");
    assert!(context.get_stream("TEST_gone").await.is_err(), "nothing was made in its place");
    assert!(open(&url, "gone").await.was_made());
    assert!(!open(&url, "gone").await.was_made());
}
