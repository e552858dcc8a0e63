//! Many appends at once: they share frames, and none is lost or doubled, whoever else writes and whatever is lost on the
//! way.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_log::conformance::read_everything;
use event_log::limits::MAX_RECORD_BYTES;
use event_log::{AppendError, EventLog, Position, ReadLimit, StreamName};
use event_log_nats::NatsLog;
use support::*;
use tokio::task::JoinHandle;
use tokio::time::timeout;

type Record = (StreamName, Vec<u8>);
type Records = BTreeMap<Position, Record>;

async fn everything(log: &NatsLog) -> Records {
    let all = read_everything(log, ReadLimit::default()).await;
    all.into_iter().map(|entry| (entry.position, (entry.stream, entry.bytes))).collect()
}

/// One append to a stream of its own, not waited for.
fn append_alone(log: &Arc<NatsLog>, nth: usize) -> JoinHandle<(Position, Record)> {
    let (log, stream) = (Arc::clone(log), name(&format!("alone/{nth}")));
    tokio::spawn(async move {
        let bytes = nth.to_string().into_bytes();
        let position = log.append(&stream, None, bytes.clone()).await.unwrap();
        (position, (stream, bytes))
    })
}

async fn collect(appends: Vec<JoinHandle<(Position, Record)>>) -> Records {
    let mut records = Records::new();
    for append in appends {
        let (position, record) = timeout(PATIENCE, append).await.expect("answered").unwrap();
        assert_eq!(records.insert(position, record), None, "one position, two records");
    }
    records
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_wait_share_frames() {
    let Some(server) = server("appends_that_wait_share_frames") else { return };
    let url = server.nats.url();
    let log = Arc::new(open(&url, "shared").await);
    let appended = collect((0..5_000).map(|nth| append_alone(&log, nth)).collect()).await;
    assert!(everything(&log).await == appended);
    let messages = raw(&url).await.get_stream("TEST_shared").await.unwrap().cached_info().state.messages;
    assert!((2..1_000).contains(&messages), "5000 records in {messages} messages");
    let scrub = log.scrub().await.unwrap();
    assert_eq!((scrub.messages, scrub.records, scrub.differences.len()), (messages, 5_000, 0));
    // Who opens it now, and who had it open, sees the same.
    assert!(everything(&open(&url, "shared").await).await == appended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_all_sizes_go_together() {
    let Some(server) = server("records_of_all_sizes_go_together") else { return };
    let url = server.nats.url();
    let (log, other) = (Arc::new(open(&url, "sizes").await), open(&url, "sizes").await);
    let sizes =
        [0, 1, 300_000, 200, MAX_RECORD_BYTES, 130_000, 130_000, 5, MAX_RECORD_BYTES, 262_000, 100, 127, 128];
    let appends = sizes.iter().enumerate().map(|(nth, &size)| {
        let (log, stream) = (Arc::clone(&log), name(&format!("size/{nth}")));
        tokio::spawn(async move {
            let bytes = vec![nth as u8; size];
            (log.append(&stream, None, bytes.clone()).await.unwrap(), (stream, bytes))
        })
    });
    let appended = collect(appends.collect()).await;
    assert!(everything(&log).await == appended);
    // By the follower, one by one, and by a consumer.
    assert!(everything(&other).await == appended);
    assert!(everything(&open(&url, "sizes").await).await == appended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_logs_that_write_at_once_lose_and_double_nothing() {
    let Some(server) = server("two_logs_that_write_at_once_lose_and_double_nothing") else { return };
    let url = server.nats.url();
    let logs = [Arc::new(open(&url, "two").await), Arc::new(open(&url, "two").await)];
    let writers: Vec<_> = (0..24)
        .map(|writer| {
            let log = Arc::clone(&logs[writer % 2]);
            // A third of them write to streams that the other log writes to as well.
            let stream = if writer < 8 { format!("shared/{}", writer / 4) } else { format!("own/{writer}") };
            tokio::spawn(write(log, name(&stream), writer, 40))
        })
        .collect();
    let mut acknowledged = Records::new();
    for writer in writers {
        for (position, record) in timeout(PATIENCE, writer).await.expect("finishes").unwrap() {
            assert_eq!(acknowledged.insert(position, record), None, "one position, two records: {position}");
        }
    }
    assert_eq!(acknowledged.len(), 24 * 40);
    for log in &logs {
        assert_eq!(log.last_position().await.unwrap(), Position(24 * 40));
        assert!(everything(log).await == acknowledged);
        assert_eq!(log.scrub().await.unwrap().differences, []);
    }
}

async fn write(log: Arc<NatsLog>, stream: StreamName, writer: usize, count: usize) -> Records {
    let mut records = Records::new();
    let mut last = None;
    while records.len() < count {
        let bytes = format!("writer {writer} record {}", records.len()).into_bytes();
        match log.append(&stream, last, bytes.clone()).await {
            Ok(position) => {
                assert!(last.is_none_or(|last| last < position));
                records.insert(position, (stream.clone(), bytes));
                last = Some(position);
            }
            Err(AppendError::Conflict { expected, actual }) => {
                assert!(stream.as_str().starts_with("shared/"), "{stream}: nobody else writes here");
                assert!(expected == last && actual > expected, "{stream}: {expected:?} {actual:?}");
                last = actual;
            }
            Err(error) => panic!("{stream}: {error}"),
        }
    }
    records
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_whose_answer_is_lost_is_neither_lost_nor_doubled() {
    let Some(server) = server("a_frame_whose_answer_is_lost_is_neither_lost_nor_doubled") else { return };
    let link = Link::to(server.nats.address().unwrap()).await;
    let log = Arc::new(open(&link.url(), "lost").await);
    let witness = open(&server.nats.url(), "lost").await;
    let mut expected = Records::new();
    for round in 0..4 {
        let (before, again) = (Position(expected.len() as u64), round % 2 == 1);
        // Answers are lost after the frame has arrived, or the frame itself is lost.
        let lost = if again { &link.lose_requests } else { &link.lose_answers };
        lost.store(true, Ordering::SeqCst);
        let appends: Vec<_> = (0..80).map(|nth| append_alone(&log, round * 100 + nth)).collect();
        if !again {
            timeout(PATIENCE, witness.wait_beyond(before)).await.expect("the server stored it").unwrap();
        }
        // Somebody else goes on behind it, or takes its place.
        let stream = name(&format!("witness/{round}"));
        let position = witness.append(&stream, None, b"witness".to_vec()).await.unwrap();
        expected.insert(position, (stream, b"witness".to_vec()));
        assert!(appends.iter().any(|append| !append.is_finished()));
        link.heal_by_breaking();
        expected.extend(collect(appends).await);
    }
    assert_eq!(expected.len(), 4 * 81);
    assert!(everything(&log).await == expected);
    assert!(everything(&witness).await == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_finishes_what_was_asked() {
    let Some(server) = server("closing_finishes_what_was_asked") else { return };
    let log = Arc::new(open(&server.nats.url(), "closing").await);
    let mut appends = Vec::new();
    for nth in 0..200 {
        let (log, stream) = (Arc::clone(&log), name(&format!("s/{nth}")));
        appends.push(tokio::spawn(async move { log.append(&stream, None, vec![7]).await }));
    }
    tokio::task::yield_now().await;
    log.close().await;
    let mut stored = 0;
    for append in appends {
        match timeout(PATIENCE, append).await.expect("answered").unwrap() {
            Ok(_) => stored += 1,
            Err(AppendError::Closed) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(everything(&open(&server.nats.url(), "closing").await).await.len(), stored);
}
