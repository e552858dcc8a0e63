//! What several services do that seal one log, and a tree that is damaged while it is asked.

use std::sync::Arc;

use agent_proto::RunSecret;
use control_core::group;
use ed25519_dalek::SigningKey;
use event_log::memory::MemoryLog;
use event_log::{AppendError, BoxFuture, Entry, EventLog, Position, ReadError, ReadLimit, StreamName};
use event_schema::{Event, GroupId};

use super::*;
use crate::pki::Pki;
use crate::service::{Keys, Options};

/// A log of which only the beginning has come here yet; where it ends is known.
struct Behind {
    log: Arc<MemoryLog>,
    here: watch::Sender<u64>,
    /// Reads are not answered at all.
    hangs: std::sync::atomic::AtomicBool,
}

impl Behind {
    fn new(log: Arc<MemoryLog>, here: u64) -> Arc<Self> {
        Arc::new(Self { log, here: watch::Sender::new(here), hangs: false.into() })
    }
}

impl EventLog for Behind {
    fn append_batch<'a>(
        &'a self,
        stream: &'a StreamName,
        expected_last: Option<Position>,
        records: Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<Position, AppendError>> {
        self.log.append_batch(stream, expected_last, records)
    }

    fn first(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        self.log.first()
    }

    fn read(&self, from: Position, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>> {
        Box::pin(async move {
            if self.hangs.load(std::sync::atomic::Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let mut page = self.log.read(from, limit).await?;
            page.retain(|entry| entry.position.0 <= *self.here.borrow());
            Ok(page)
        })
    }

    fn last_position(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        self.log.last_position()
    }

    fn last_of_stream<'a>(
        &'a self,
        stream: &'a StreamName,
    ) -> BoxFuture<'a, Result<Option<Position>, ReadError>> {
        self.log.last_of_stream(stream)
    }

    fn wait_beyond(&self, position: Position) -> BoxFuture<'_, Result<Position, ReadError>> {
        let mut here = self.here.subscribe();
        Box::pin(async move {
            here.wait_for(|here| *here > position.0).await.map_err(|_| ReadError::Closed)?;
            self.log.wait_beyond(position).await
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// The keys of one fleet, as each of its replicas has them.
fn audit_keys(data: &std::path::Path) -> AuditKeys {
    if !data.join("keys").exists() {
        Pki::open(data, &["here".into()], now()).expect("made");
    }
    AuditKeys::open(data).expect("opens")
}

fn keys() -> Keys {
    Keys {
        root_key: [1; 32],
        ca_fingerprint: [2; 32],
        command: SigningKey::from_bytes(&[3; 32]),
        secret_of: Box::new(|run| RunSecret::derive(&[7; 32], run)),
    }
}

async fn service(log: Arc<dyn EventLog>) -> Service {
    let options = Options { shared_log: true, ..Options::default() };
    Service::open(log, keys(), options).await.expect("opens").0
}

/// Lets time pass, of which there is as much as one wants: it has to be paused, or this panics.
async fn pass(time: Duration) {
    tokio::time::advance(Duration::ZERO).await;
    tokio::time::sleep(time).await;
}

async fn make_groups(service: &Service, names: std::ops::Range<u8>) {
    for n in names {
        let (group, name) = (GroupId([n; 16]), format!("group-{n}"));
        let decide =
            move |state: &_, _| group::decide(state, group::Command::Create { group, name: name.clone() });
        service.decide(Origin::service("fleet".into()), decide).await.expect("decided");
    }
}

async fn has_reached(service: &Service, position: u64) {
    service.position().wait_for(|reached| *reached >= position).await.expect("the service lives");
}

#[tokio::test]
async fn what_one_replica_found_to_conflict_holds_all_of_them_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = Arc::new(MemoryLog::default());
    let (one, other) = (service(log.clone()).await, service(log.clone()).await);
    let (_stop, stop) = watch::channel(false);
    let audit = dir.path().join("audit");
    let (sealing, task) = Sealing::start(other.clone(), audit, audit_keys(dir.path()), true, None, stop);
    make_groups(&one, 0..3).await;
    has_reached(&other, 4).await;
    assert_eq!(sealing.seal_now().await.expect("sealed").head().size, 4);

    let found = AuditConflict {
        witness: None,
        held_size: 20,
        held_root: [9; 32],
        held_note: "a note".into(),
        log_size: 4,
        log_root: [8; 32],
    };
    let decide = move |_: &_, _| Ok(vec![Event::from(found.clone())]);
    one.decide(Origin::service("fleet".into()), decide).await.expect("recorded");
    make_groups(&one, 3..18).await;
    has_reached(&other, 20).await;
    let refused = sealing.seal_now().await.expect_err("as much as the other history has is not signed again");
    assert!(refused.contains("20 entries of another history"), "{refused}");
    make_groups(&one, 18..19).await;
    has_reached(&other, 21).await;
    assert_eq!(sealing.seal_now().await.expect("sealed").head().size, 21);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn stopping_does_not_wait_for_a_tree_that_is_busy() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = Behind::new(Arc::new(MemoryLog::default()), u64::MAX);
    let options = Options { shared_log: true, attest_every: u64::MAX, ..Options::default() };
    let (service, writer) = Service::open(log.clone(), keys(), options).await.expect("opens");
    make_groups(&service, 0..3).await;
    log.hangs.store(true, std::sync::atomic::Ordering::Relaxed);
    let (_stop, stop) = watch::channel(false);
    let audit = dir.path().join("audit");
    let (sealing, task) = Sealing::start(service.clone(), audit, audit_keys(dir.path()), true, None, stop);
    service.set_sealing(sealing.clone());
    // It reads the log with the tree in its hands, until long after the service has stopped.
    let waits = tokio::spawn(async move { sealing.seal_now().await });
    pass(Duration::from_secs(1)).await;
    task.abort();
    drop(service);
    timeout(FINISH_WITHIN * 3, writer).await.expect("in time").expect("no panic");
    waits.abort();
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_behind_takes_nobody_for_a_liar() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = Arc::new(MemoryLog::default());
    let ahead = service(log.clone()).await;
    make_groups(&ahead, 0..3).await;
    let late = Behind::new(log.clone(), 4);
    let behind = service(late.clone()).await;
    let (_stop, stop) = watch::channel(false);
    let start = |service: &Service, name: &str| {
        let folder = dir.path().join(name);
        Sealing::start(service.clone(), folder, audit_keys(dir.path()), true, None, stop.clone())
    };
    let ((first, one), (second, two)) = (start(&ahead, "one"), start(&behind, "two"));
    make_groups(&ahead, 3..6).await;
    let newest = first.seal_now().await.expect("sealed");
    assert_eq!(newest.head().size, 7);

    let agent = AgentId([5; 16]);
    let holds = Holds { checkpoint: Some(newest.note().to_owned()), refused: None };
    let heard = second.hear(&behind, agent, &holds).await;
    assert!(!heard.conflicts);
    assert_eq!(second.witness(agent).expect("heard").standing.name(), "uncompared");
    // What it lacked arrives: the same word is compared again by itself.
    late.here.send_replace(7);
    has_reached(&behind, 7).await;
    second.seal_now().await.expect("sealed");
    assert_eq!(second.witness(agent).expect("heard").standing.name(), "agrees");
    one.abort();
    two.abort();
}

#[tokio::test]
async fn a_tile_found_damaged_before_signing_is_no_shorter_log() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = Arc::new(MemoryLog::default());
    let stream = StreamName::new("fleet").expect("a name");
    let records = |n: usize| (0..n).map(|n| format!("record {n}").into_bytes()).collect::<Vec<_>>();
    log.append_batch(&stream, None, records(600)).await.expect("stored");
    let tree = Tree::new(log, None, Arc::new(audit_keys(dir.path())), dir.path().join("audit"));
    tree.open(0).await.expect("opens");
    let fed = tree.feed(600).await.expect("fed");
    tree.sign(fed).await.expect("signed");
    std::fs::write(dir.path().join("audit/tile/0/000"), [7; 8192]).expect("written");
    let damaged = tree.head_at(5).await.expect_err("a damaged tile proves nothing");
    assert!(matches!(damaged, TreeError::Ledger(LedgerError::Tile { .. })), "{damaged}");
    // As if that question had come between feeding and signing.
    assert!(matches!(tree.sign(fed).await, Err(TreeError::Remade)));
    assert_eq!(tree.feed(600).await.expect("fed anew"), fed);
    tree.sign(fed).await.expect("signed");
}
