//! Time travel and snapshots against a fold from zero: random places, restarts, records of every shape that is pinned,
//! damaged files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_proto::RunSecret;
use control_core::form::Checked;
use control_core::group;
use ed25519_dalek::SigningKey;
use event_log::file::{FileLog, FileLogOptions};
use event_log::{EventLog, Position, ReadLimit};
use event_schema::{Actor, Event, GroupId, Record, RecordId, Timestamp};
use tokio::task::JoinHandle;

use super::writer::log_stream;
use super::{Keys, Options, Origin, PastError, Service};
use crate::at::At;

/// The fleet that the golden events found.
fn keys() -> Keys {
    Keys {
        root_key: [0xa1; 32],
        ca_fingerprint: [0xb2; 32],
        command: SigningKey::from_bytes(&[3; 32]),
        secret_of: Box::new(|run| RunSecret::derive(&[7; 32], run)),
    }
}

/// Numbers that look random and are the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Every event of every version that is pinned, by number: what logs of older programs hold.
fn golden_events() -> Vec<Event> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/event-schema/tests/golden");
    let versions = fs::read_dir(folder).expect("the folder").map(|version| version.expect("a folder").path());
    let files = versions.flat_map(|version| fs::read_dir(version).expect("a folder"));
    let mut events: Vec<Event> = files
        .map(|file| file.expect("a file").path())
        .filter(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            name.starts_with("event-") && name.ends_with(".bin")
        })
        .map(|path| Event::decode(&fs::read(path).expect("readable")).expect("an event"))
        // Says what is not so; what is attested here is right.
        .filter(|event| !matches!(event, Event::StateAttested(_)))
        .collect();
    events.sort_by_key(Event::kind);
    assert!(events.len() >= 26);
    events
}

fn record(n: u64, time: Timestamp, event: Event) -> Record {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    let (id, stream) = (RecordId(id), "fleet".to_owned());
    Record { id, stream, time, actor: Actor::Service, causation: None, correlation: id, events: vec![event] }
}

async fn open_log(folder: &Path) -> Arc<dyn EventLog> {
    Arc::new(FileLog::open(folder.join("log"), FileLogOptions::default()).await.expect("opens"))
}

async fn open(folder: &Path) -> (Service, JoinHandle<()>) {
    let options = Options {
        attest_every: 5,
        snapshots: Some(folder.join("snapshots")),
        snapshot_every: 7,
        ..Options::default()
    };
    Service::open(open_log(folder).await, keys(), options).await.expect("opens")
}

async fn close(service: Service, writer: JoinHandle<()>) {
    drop(service);
    writer.await.expect("ends well");
}

async fn make_group(service: &Service, n: u64) {
    let mut id = [0x60; 16];
    id[..8].copy_from_slice(&n.to_be_bytes());
    let decided = service.decide(Origin::operator("test", "group".into()), move |state, _| {
        group::decide(state, group::Command::Create { group: GroupId(id), name: format!("group {n}") })
    });
    decided.await.expect("made");
}

/// Hash and time reached after every record, folded from zero; the first is before all of them.
async fn from_zero(log: &dyn EventLog) -> Vec<(Timestamp, [u8; 32])> {
    let mut fold = Checked::default();
    let mut all = vec![(Timestamp(0), fold.views().hash())];
    loop {
        let page = log.read(Position(all.len() as u64), ReadLimit::default()).await.expect("readable");
        if page.is_empty() {
            return all;
        }
        for entry in page {
            let record = Record::decode(&entry.bytes).expect("a record");
            fold.apply(entry.position.0, &record).unwrap_or_else(|differs| panic!("{differs}"));
            all.push((fold.views().time(), fold.views().hash()));
        }
    }
}

fn snapshot_files(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder.join("snapshots")).expect("a folder");
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    files
}

/// Every event there is, twice, by clocks that jump; then a service, stopped and started again.
async fn history(folder: &Path) -> Numbers {
    let (log, mut numbers) = (open_log(folder).await, Numbers(5));
    let (mut last, mut n, mut time) = (None, 0, 1_700_000_000_000);
    // Among them are sealed texts, which there are from level 2 on.
    let raised: Event = event_schema::SchemaRaised { level: 2 }.into();
    for _ in 0..2 {
        for event in std::iter::once(raised.clone()).chain(golden_events()) {
            n += 1;
            time = time + numbers.below(100_000) - 30_000;
            let bytes = record(n, Timestamp(time), event).encode();
            last = Some(log.append(&log_stream(), last, bytes).await.expect("stored"));
        }
    }
    log.close().await;
    for start in 0..3 {
        let (service, writer) = open(folder).await;
        for n in 0..40 {
            make_group(&service, start * 40 + n).await;
        }
        close(service, writer).await;
    }
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn any_moment_is_as_folded_from_zero() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut numbers = history(dir.path()).await;
    assert!(snapshot_files(dir.path()).len() >= 3);
    let (service, writer) = open(dir.path()).await;
    let zero = from_zero(&**service.log()).await;
    let end = zero.len() as u64 - 1;
    assert_eq!(service.views().position(), end);
    assert!(service.metrics().records.value() < end / 2, "folded from a snapshot");
    assert_eq!(service.views().hash(), zero[end as usize].1);
    for _ in 0..50 {
        let position = numbers.below(end + 1);
        let past = service.past(At::Position(position)).await.expect("a past");
        let hash = past.map_or_else(|| service.views().hash(), |views| views.hash());
        assert_eq!(hash, zero[position as usize].1, "at {position}");
    }
    let times: Vec<u64> = zero[1..].iter().map(|(time, _)| time.0).collect();
    let (first, late) = (times[0], times[times.len() - 1]);
    for nth in 0..50 {
        let time = match nth % 3 {
            0 => times[numbers.below(end) as usize] - 1,
            1 => times[numbers.below(end) as usize],
            _ => first + numbers.below(late - first),
        };
        let position = times.iter().take_while(|reached| **reached <= time).count();
        match service.past(At::Time(Timestamp(time))).await {
            Ok(past) => {
                let hash = past.map_or_else(|| service.views().hash(), |views| views.hash());
                assert_eq!(hash, zero[position].1, "at {time}: position {position}");
            }
            Err(PastError::Before { .. }) => assert_eq!(position, 0),
            Err(error) => panic!("{time}: {error}"),
        }
    }
    let beyond = service.past(At::Position(end + 1)).await;
    assert!(matches!(beyond, Err(PastError::Beyond { .. })), "{beyond:?}");
    let to_come = service.past(At::Time(Timestamp(late.max(super::now().0) + 1_000_000))).await;
    assert!(matches!(to_come, Err(PastError::ToCome { .. })), "{to_come:?}");
    let before = service.past(At::Time(Timestamp(1))).await;
    assert!(matches!(before, Err(PastError::Before { .. })), "{before:?}");
    close(service, writer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_does_not_hold_is_passed_over() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut numbers = history(dir.path()).await;
    let log = open_log(dir.path()).await;
    let zero = from_zero(&*log).await;
    log.close().await;
    let files = snapshot_files(dir.path());
    let good: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("readable")).collect();
    let reopens = async |folded_all: bool, what: &str| {
        let (service, writer) = open(dir.path()).await;
        // Nothing is recorded at a start without agents; what was folded is as it should be.
        let (position, hash) = (service.views().position(), service.views().hash());
        assert_eq!((position, hash), (zero.len() as u64 - 1, zero[zero.len() - 1].1), "{what}");
        assert_eq!(service.metrics().records.value() == position, folded_all, "{what}");
        // Not its farewell: nothing is to be added.
        writer.abort();
        let _ = writer.await;
        drop(service);
        for (file, bytes) in files.iter().zip(&good) {
            fs::write(file, bytes).expect("restored");
        }
        for file in snapshot_files(dir.path()).iter().filter(|file| !files.contains(file)) {
            fs::remove_file(file).expect("removed");
        }
    };
    reopens(false, "as they are").await;
    // Any byte of the newest: another one serves.
    let newest = good.len() - 1;
    for _ in 0..10 {
        let mut bytes = good[newest].clone();
        let at = numbers.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << numbers.below(8);
        fs::write(&files[newest], bytes).expect("written");
        reopens(false, &format!("byte {at}")).await;
    }
    let all = |change: &dyn Fn(&mut Vec<u8>)| {
        for (file, bytes) in files.iter().zip(&good) {
            let mut bytes = bytes.clone();
            change(&mut bytes);
            fs::write(file, bytes).expect("written");
        }
    };
    all(&|bytes| bytes.truncate(bytes.len() / 2));
    reopens(true, "cut").await;
    all(&|bytes| bytes.clear());
    reopens(true, "empty").await;
    all(&|bytes| bytes[8] += 1);
    reopens(true, "of a newer version").await;
    // A payload length that nobody has memory for.
    all(&|bytes| bytes[96..104].fill(0xff));
    reopens(true, "a length that cannot be").await;
    for (nth, file) in files.iter().enumerate() {
        fs::write(file, &good[(nth + 1) % good.len()]).expect("written");
    }
    reopens(true, "each in another's place").await;
    // Sound, but of another log, which has another record there.
    let other = tempfile::tempdir().expect("a folder");
    history(other.path()).await;
    for (from, to) in snapshot_files(other.path()).iter().rev().zip(files.iter().rev()) {
        fs::copy(from, other.path().join("snapshots").join(to.file_name().expect("a name"))).expect("copied");
    }
    for (file, bytes) in files.iter().zip(&good) {
        let theirs = other.path().join("snapshots").join(file.file_name().expect("a name"));
        let theirs = fs::read(theirs).unwrap_or_else(|_| bytes[..100].to_vec());
        fs::write(file, theirs).expect("written");
    }
    let (service, writer) = open(dir.path()).await;
    assert_eq!(service.views().hash(), zero[zero.len() - 1].1);
    close(service, writer).await;
}

/// A file that says who wrote it only by its checksum: a snapshot of a longer log is not taken for a cut one.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_restored_from_an_old_copy_is_folded_anew() {
    let dir = tempfile::tempdir().expect("a folder");
    let (service, writer) = open(dir.path()).await;
    for n in 0..5 {
        make_group(&service, n).await;
    }
    close(service, writer).await;
    let copy = tempfile::tempdir().expect("a folder");
    for file in fs::read_dir(dir.path().join("log")).expect("a folder") {
        let file = file.expect("a file");
        fs::copy(file.path(), copy.path().join(file.file_name())).expect("copied");
    }
    let (service, writer) = open(dir.path()).await;
    for n in 5..60 {
        make_group(&service, n).await;
    }
    close(service, writer).await;
    assert!(!snapshot_files(dir.path()).is_empty());
    fs::remove_dir_all(dir.path().join("log")).expect("removed");
    fs::rename(copy.path(), dir.path().join("log")).expect("restored");
    let (service, writer) = open(dir.path()).await;
    let zero = from_zero(&**service.log()).await;
    assert_eq!(service.views().hash(), zero[zero.len() - 1].1);
    assert_eq!(service.views().fleet.groups.len(), 5);
    close(service, writer).await;
}

/// What a start costs with a million records: `cargo nextest run -p control --run-ignored only a_million --no-capture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn a_million_records() {
    let dir = tempfile::tempdir().expect("a folder");
    let log =
        FileLog::open(dir.path().join("log"), FileLogOptions { sync: false, ..FileLogOptions::default() })
            .await
            .expect("opens");
    crate::million::fill(&log).await;
    log.close().await;
    drop(log);
    let options = || Options { snapshots: Some(dir.path().join("snapshots")), ..Options::default() };
    for what in ["from zero", "from a snapshot", "from a snapshot"] {
        let start = Instant::now();
        let log = open_log(dir.path()).await;
        let opened = start.elapsed();
        let (service, writer) = Service::open(log, keys(), options()).await.expect("opens");
        let folded = start.elapsed() - opened;
        let start = Instant::now();
        let hash = service.views().hash();
        println!(
            "{what}: log opened in {opened:?}, folded in {folded:?} ({} records); hash {:?} ({:02x}…)",
            service.metrics().records.value(),
            start.elapsed(),
            hash[0],
        );
        let mut numbers = Numbers(1);
        let mut worst = Duration::ZERO;
        for _ in 0..10 {
            let start = Instant::now();
            service.past(At::Position(numbers.below(crate::million::RECORDS))).await.expect("a past");
            worst = worst.max(start.elapsed());
        }
        println!("  slowest of ten random moments: {worst:?}");
        close(service, writer).await;
    }
    let files = snapshot_files(dir.path());
    let bytes: u64 = files.iter().map(|file| fs::metadata(file).expect("a file").len()).sum();
    println!("{} snapshots, {bytes} bytes", files.len());
}
