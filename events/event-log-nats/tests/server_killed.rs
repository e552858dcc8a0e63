//! A server, alone or of a cluster, is killed with SIGKILL again and again while records are appended: nothing that was acknowledged is lost
//! or doubled, and the client comes back by itself.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use event_log::conformance::read_everything;
use event_log::{AppendError, EventLog, Position, ReadLimit, StreamName};
use event_log_nats::testing::{NatsServer, server_or_skip};
use event_log_nats::{NatsLog, NatsLogOptions};
use support::*;
use tokio::time::timeout;

const KILLS: u64 = 5;
const APPENDS_PER_LIFE: u64 = 150;

/// What the writers were told: stream and bytes by position.
type Acknowledged = BTreeMap<Position, (StreamName, Vec<u8>)>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_server_loses_and_doubles_nothing() {
    let Some(server) = server("killing_the_server_loses_and_doubles_nothing") else { return };
    let options = options(&server.nats.url(), "killed");
    append_while_killing(options, vec![server.nats]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_servers_of_a_cluster_loses_and_doubles_nothing() {
    let test = "killing_servers_of_a_cluster_loses_and_doubles_nothing";
    let Some(program) = server_or_skip(test) else { return };
    let dir = tempfile::tempdir().unwrap();
    let servers = NatsServer::start_cluster(&program, dir.path(), 3).unwrap();
    let urls: Vec<_> = servers.iter().map(NatsServer::url).collect();
    let mut options = options(&urls.join(","), "cluster");
    options.replicas = 3;
    options.open_timeout = PATIENCE;
    options.append_timeout = PATIENCE;
    let log = NatsLog::open(options.clone()).await.unwrap();
    assert_eq!(log.findings(), [], "three replicas, nothing to find fault with");
    append_while_killing(options, servers).await;
}

async fn append_while_killing(options: NatsLogOptions, mut servers: Vec<NatsServer>) {
    let open = async || Arc::new(NatsLog::open(options.clone()).await.unwrap());
    let logs = [open().await, open().await];
    let count = Arc::new(AtomicU64::new(0));
    let enough = (KILLS + 1) * APPENDS_PER_LIFE;
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let (log, count) = (Arc::clone(&logs[writer % 2]), Arc::clone(&count));
            // Two writers each of two shared streams, on different connections; the others have their own.
            let stream = if writer < 4 { format!("shared/{}", writer / 2) } else { format!("own/{writer}") };
            tokio::spawn(write_until(log, name(&stream), writer, count, enough))
        })
        .collect();
    for kill in 1..=KILLS {
        timeout(PATIENCE, async {
            while count.load(Ordering::SeqCst) < kill * APPENDS_PER_LIFE {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("writers got on before kill {kill}"));
        let count = servers.len() as u64;
        let server = &mut servers[usize::try_from(kill % count).unwrap()];
        server.kill();
        server.restart().unwrap();
    }
    let mut acknowledged = Acknowledged::new();
    for writer in writers {
        for (position, record) in timeout(PATIENCE, writer).await.expect("writers finish").unwrap() {
            let before = acknowledged.insert(position, record);
            assert_eq!(before, None, "one position, two records: {position}");
        }
    }

    // Every append was told its outcome, so the log is exactly what was acknowledged.
    let reader = open().await;
    let all = read_everything(&*reader, ReadLimit::entries(100)).await;
    assert_eq!(all.len(), acknowledged.len());
    for entry in &all {
        assert_eq!(acknowledged.get(&entry.position), Some(&(entry.stream.clone(), entry.bytes.clone())));
    }
    // Handles from before the kills still follow the log.
    let last = Position(all.len() as u64);
    for log in &logs {
        assert_eq!(log.last_position().await.unwrap(), last);
    }
    let waiting = Arc::clone(&logs[0]);
    let waiter = tokio::spawn(async move { waiting.wait_beyond(last).await });
    reader.append(&name("after"), None, b"news".to_vec()).await.unwrap();
    let woken = timeout(PATIENCE, waiter).await.expect("news arrive").unwrap().unwrap();
    assert_eq!(woken, last.next());
}

async fn write_until(
    log: Arc<NatsLog>,
    stream: StreamName,
    writer: usize,
    count: Arc<AtomicU64>,
    enough: u64,
) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    let mut last = None;
    let mut nth = 0;
    while count.load(Ordering::SeqCst) < enough {
        let bytes = format!("writer {writer} record {nth} {}", "x".repeat(nth * 97 % 900)).into_bytes();
        match log.append(&stream, last, bytes.clone()).await {
            Ok(position) => {
                acknowledged.insert(position, (stream.clone(), bytes));
                count.fetch_add(1, Ordering::SeqCst);
                last = Some(position);
                nth += 1;
            }
            Err(AppendError::Conflict { expected, actual }) => {
                assert!(stream.as_str().starts_with("shared/"), "{stream}: nobody else writes here");
                assert!(expected == last && actual > expected, "{stream}: {expected:?} {actual:?}");
                last = actual;
            }
            Err(error) => panic!("{stream}: {error}"),
        }
    }
    acknowledged
}
