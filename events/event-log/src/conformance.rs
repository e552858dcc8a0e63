//! The contract as checks that every backend runs. Each check panics with what it saw when the contract is broken.
//!
//! A backend implements [`Backend`] in its tests and calls [`run_all`], or one check at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::contract::{BoxFuture, EventLog};
use crate::error::{AppendError, ReadError};
use crate::limits::{CONFORMANCE_PATIENCE, MAX_COMMIT_BYTES, MAX_COMMIT_RECORDS, MAX_RECORD_BYTES};
use crate::position::{Entry, Position, ReadLimit, StreamName};

/// How the suite gets at logs of one backend.
pub trait Backend: Sync {
    /// A new, empty log.
    fn fresh(&self) -> BoxFuture<'_, Arc<dyn EventLog>>;

    /// The log behind this handle, which has been closed, opened once more. `None`: the backend keeps nothing.
    fn reopen(&self, closed: Arc<dyn EventLog>) -> BoxFuture<'_, Option<Arc<dyn EventLog>>>;

    /// The same log, which holds records, without its beginning: as if what stands there had been archived. `None`: the
    /// backend keeps everything, and its logs always begin at 1.
    fn shortened(&self, log: Arc<dyn EventLog>) -> BoxFuture<'_, Option<Arc<dyn EventLog>>> {
        let _ = log;
        Box::pin(async { None })
    }
}

/// Runs every check, each on a fresh log, naming it on stderr.
pub async fn run_all(backend: &dyn Backend) {
    macro_rules! run {
        ($($check:ident),* $(,)?) => {$(
            eprintln!("conformance: {}", stringify!($check));
            $check(backend).await;
        )*};
    }
    run!(
        an_empty_log_is_empty,
        records_round_trip,
        positions_are_contiguous_over_streams,
        wrong_expectations_conflict,
        a_conflict_leaves_nothing_behind,
        a_commit_is_stored_whole_or_not_at_all,
        names_do_not_collide,
        concurrent_appends_to_one_stream_have_one_winner_each,
        concurrent_appends_to_many_streams_all_succeed,
        big_records_pass_and_bigger_ones_do_not,
        reads_are_paged,
        waiting_ends_when_the_log_grows,
        a_closed_log_answers_closed,
        records_survive_reopening,
        a_log_that_begins_later_goes_on,
    );
}

/// The name, which the suite knows to be good.
fn name(text: &str) -> StreamName {
    StreamName::new(text).expect("a good stream name")
}

/// Everything in the log, page by page, checked for contiguity.
pub async fn read_everything(log: &dyn EventLog, page: ReadLimit) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    loop {
        let from = Position(all.len() as u64 + 1);
        let entries = log.read(from, page).await.expect("reading works");
        if entries.is_empty() {
            return all;
        }
        for entry in entries {
            assert_eq!(entry.position, Position(all.len() as u64 + 1), "positions are contiguous");
            all.push(entry);
        }
    }
}

/// An empty log has no last position, no streams, no entries, wherever one reads.
pub async fn an_empty_log_is_empty(backend: &dyn Backend) {
    let log = backend.fresh().await;
    assert_eq!(log.last_position().await.unwrap(), Position::ZERO);
    assert_eq!(log.last_of_stream(&name("any")).await.unwrap(), None);
    for from in [0, 1, 2, u64::MAX] {
        assert_eq!(log.read(Position(from), ReadLimit::default()).await.unwrap(), [], "from {from}");
    }
}

/// What is appended is read back byte for byte, from any position on.
pub async fn records_round_trip(backend: &dyn Backend) {
    let log = backend.fresh().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let payloads = [&b"first"[..], b"", b"\0\0\0\0\0\0\0\0", &every_byte, b"+ACK {} \r\n"];
    let stream = name("run/0193.a-Z_9");
    let mut last = None;
    for payload in payloads {
        last = Some(log.append(&stream, last, payload.to_vec()).await.unwrap());
    }
    assert_eq!(last, Some(Position(5)));
    let expected: Vec<Entry> = payloads
        .iter()
        .zip(1..)
        .map(|(payload, position)| Entry {
            position: Position(position),
            stream: stream.clone(),
            bytes: payload.to_vec(),
        })
        .collect();
    for from in 0..=6 {
        let entries = log.read(Position(from), ReadLimit::default()).await.unwrap();
        let skipped = usize::try_from(from.max(1) - 1).unwrap();
        assert_eq!(entries, expected[skipped..], "from {from}");
    }
}

/// Several records in one commit stand together, where it was wanted, or are not there at all.
pub async fn a_commit_is_stored_whole_or_not_at_all(backend: &dyn Backend) {
    let log = backend.fresh().await;
    let (stream, other) = (name("one"), name("two"));
    let records = |count: u8| (0..count).map(|n| vec![n]).collect::<Vec<_>>();
    assert_eq!(log.append_batch(&stream, None, records(3)).await.unwrap(), Position(1));
    assert_eq!(log.append(&other, None, vec![9]).await.unwrap(), Position(4));
    for wrong in [None, Some(Position(1)), Some(Position(4))] {
        let refused = log.append_batch(&stream, wrong, records(2)).await;
        assert!(matches!(refused, Err(AppendError::Conflict { .. })), "{wrong:?}: {refused:?}");
    }
    assert_eq!(log.append_batch(&stream, Some(Position(3)), records(2)).await.unwrap(), Position(5));
    for bad in [vec![], vec![vec![0]; MAX_COMMIT_RECORDS + 1], vec![vec![0; MAX_COMMIT_BYTES]; 2]] {
        let refused = log.append_batch(&stream, Some(Position(6)), bad).await;
        assert!(matches!(refused, Err(AppendError::TooLarge { .. })), "{refused:?}");
    }
    let largest = vec![vec![7; MAX_COMMIT_BYTES / MAX_COMMIT_RECORDS]; MAX_COMMIT_RECORDS];
    assert_eq!(log.append_batch(&stream, Some(Position(6)), largest).await.unwrap(), Position(7));
    let all = read_everything(&*log, ReadLimit::default()).await;
    assert_eq!(all.len(), 6 + MAX_COMMIT_RECORDS);
    assert_eq!(all[..6].iter().map(|entry| entry.bytes[0]).collect::<Vec<_>>(), [0, 1, 2, 9, 0, 1]);
    // Many at a time on one expectation: one wins, whole, and stands together.
    let end = log.last_of_stream(&stream).await.unwrap();
    let rivals = (0..8_u8).map(|n| {
        let (log, stream) = (Arc::clone(&log), stream.clone());
        tokio::spawn(async move { log.append_batch(&stream, end, vec![vec![n]; 5]).await })
    });
    let mut won = 0;
    for rival in rivals.collect::<Vec<_>>() {
        match rival.await.unwrap() {
            Ok(first) => {
                won += 1;
                let page = log.read(first, ReadLimit::default()).await.unwrap();
                assert!(page.len() == 5 && page.iter().all(|entry| entry.bytes == page[0].bytes));
            }
            Err(AppendError::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(won, 1);
}

/// Positions count over the whole log, and each stream knows its own last.
pub async fn positions_are_contiguous_over_streams(backend: &dyn Backend) {
    let log = backend.fresh().await;
    let streams = [name("a"), name("b"), name("a/b"), name("a.b")];
    let mut last: BTreeMap<StreamName, Position> = BTreeMap::new();
    for nth in 0..40_u64 {
        let stream = &streams[usize::try_from(nth * nth % 7 % 4).unwrap()];
        let expected = last.get(stream).copied();
        let position = log.append(stream, expected, nth.to_be_bytes().to_vec()).await.unwrap();
        assert_eq!(position, Position(nth + 1));
        last.insert(stream.clone(), position);
        assert_eq!(log.last_position().await.unwrap(), position);
    }
    for stream in &streams {
        assert_eq!(log.last_of_stream(stream).await.unwrap(), last.get(stream).copied(), "{stream}");
    }
    for (entry, nth) in read_everything(&*log, ReadLimit::default()).await.iter().zip(0_u64..) {
        assert_eq!(entry.bytes, nth.to_be_bytes());
    }
}

/// An expectation other than the stream's last position is refused and told what is true.
pub async fn wrong_expectations_conflict(backend: &dyn Backend) {
    let log = backend.fresh().await;
    let (one, two) = (name("one"), name("two"));
    log.append(&one, None, b"1".to_vec()).await.unwrap();
    log.append(&two, None, b"2".to_vec()).await.unwrap();
    log.append(&one, Some(Position(1)), b"3".to_vec()).await.unwrap();
    let rows = [
        (&one, None, Some(3)),
        (&one, Some(1), Some(3)),
        (&one, Some(2), Some(3)),
        (&one, Some(4), Some(3)),
        (&one, Some(u64::MAX / 2), Some(3)),
        (&two, None, Some(2)),
        (&two, Some(3), Some(2)),
    ];
    for (stream, expected, actual) in rows {
        let expected = expected.map(Position);
        let error = log.append(stream, expected, b"no".to_vec()).await.expect_err("a conflict");
        let right = matches!(&error, AppendError::Conflict { expected: e, actual: a }
            if *e == expected && *a == actual.map(Position));
        assert!(right, "{stream} {expected:?}: {error:?}");
        assert!(!error.may_be_stored());
    }
    // A stream that is empty is not one that ends with something.
    let error = log.append(&name("none"), Some(Position(1)), b"no".to_vec()).await.expect_err("a conflict");
    assert!(matches!(error, AppendError::Conflict { actual: None, .. }), "{error:?}");
    assert_eq!(log.last_position().await.unwrap(), Position(3));
}

/// A refused append takes no position, and the log goes on.
pub async fn a_conflict_leaves_nothing_behind(backend: &dyn Backend) {
    let log = backend.fresh().await;
    let stream = name("s");
    log.append(&stream, Some(Position(9)), b"no".to_vec()).await.expect_err("a conflict");
    assert_eq!(log.last_position().await.unwrap(), Position::ZERO);
    assert_eq!(log.append(&stream, None, b"yes".to_vec()).await.unwrap(), Position(1));
    log.append(&stream, None, b"no".to_vec()).await.expect_err("a conflict");
    assert_eq!(log.append(&stream, Some(Position(1)), b"yes".to_vec()).await.unwrap(), Position(2));
    assert_eq!(read_everything(&*log, ReadLimit::default()).await.len(), 2);
}

/// Names that a careless encoding would confuse are different streams, and come back as they were.
pub async fn names_do_not_collide(backend: &dyn Backend) {
    let log = backend.fresh().await;
    let long = "x".repeat(crate::limits::MAX_STREAM_NAME_BYTES);
    let texts = [
        "a", "A", "a.", ".a", "a..b", "a/b", "a//b", "/", "//", ".", "..", "-", "_", "a_b", "a-b", "a-2eb",
        "=2e", "a.b.c", "_2F", "_2f", &long,
    ];
    let texts: Vec<&str> = texts.into_iter().filter(|text| StreamName::new(text).is_ok()).collect();
    for (text, position) in texts.iter().zip(1..) {
        let stored = log.append(&name(text), None, text.as_bytes().to_vec()).await;
        assert_eq!(stored.unwrap_or_else(|error| panic!("{text}: {error}")), Position(position));
    }
    for (entry, text) in read_everything(&*log, ReadLimit::default()).await.iter().zip(&texts) {
        assert_eq!((entry.stream.as_str(), entry.bytes.as_slice()), (*text, text.as_bytes()));
    }
    for (text, position) in texts.iter().zip(1..) {
        assert_eq!(log.last_of_stream(&name(text)).await.unwrap(), Some(Position(position)), "{text}");
    }
}

/// Of writers that agree on the stream's end, one wins; those that lost see the winner's record.
pub async fn concurrent_appends_to_one_stream_have_one_winner_each(backend: &dyn Backend) {
    const WRITERS: usize = 8;
    const ROUNDS: u64 = 15;
    let log = backend.fresh().await;
    let stream = name("contended");
    let mut last = None;
    for round in 1..=ROUNDS {
        let tasks: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (log, stream) = (Arc::clone(&log), stream.clone());
                tokio::spawn(async move { log.append(&stream, last, vec![writer as u8]).await })
            })
            .collect();
        let mut winners = Vec::new();
        for (writer, task) in tasks.into_iter().enumerate() {
            match task.await.unwrap() {
                Ok(position) => winners.push((writer as u8, position)),
                Err(AppendError::Conflict { expected, actual }) => {
                    assert_eq!((expected, actual), (last, Some(Position(round))), "round {round}");
                }
                Err(error) => panic!("round {round}: {error}"),
            }
        }
        let [(winner, position)] = winners[..] else { panic!("round {round}: winners {winners:?}") };
        assert_eq!(position, Position(round));
        let entries = log.read(position, ReadLimit::default()).await.unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].bytes, [winner]);
        last = Some(position);
    }
}

/// Writers of different streams do not disturb one another; each stream keeps its order.
pub async fn concurrent_appends_to_many_streams_all_succeed(backend: &dyn Backend) {
    const WRITERS: u64 = 16;
    const APPENDS: u64 = 20;
    let log = backend.fresh().await;
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let stream = name(&format!("agent/{writer}"));
                let mut last = None;
                for nth in 0..APPENDS {
                    let position = log.append(&stream, last, nth.to_be_bytes().to_vec()).await.unwrap();
                    assert!(last.is_none_or(|last| last < position));
                    last = Some(position);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let all = read_everything(&*log, ReadLimit::entries(33)).await;
    assert_eq!(all.len() as u64, WRITERS * APPENDS);
    let mut next: BTreeMap<StreamName, u64> = BTreeMap::new();
    for entry in all {
        let nth = next.entry(entry.stream).or_default();
        assert_eq!(entry.bytes, nth.to_be_bytes(), "each stream in the order of its appends");
        *nth += 1;
    }
    assert!(next.values().all(|&count| count == APPENDS));
}

/// The largest record is stored whole; one byte more is refused by name.
pub async fn big_records_pass_and_bigger_ones_do_not(backend: &dyn Backend) {
    let log = backend.fresh().await;
    let stream = name(&"b".repeat(crate::limits::MAX_STREAM_NAME_BYTES));
    let big: Vec<u8> =
        (0..MAX_RECORD_BYTES as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let error = log.append(&stream, None, vec![0; MAX_RECORD_BYTES + 1]).await.expect_err("too large");
    assert!(matches!(error, AppendError::TooLarge { size, max } if size == max + 1), "{error:?}");
    let mut last = None;
    for _ in 0..3 {
        last = Some(log.append(&stream, last, big.clone()).await.unwrap());
    }
    // The first entry comes whole although it exceeds what was asked for.
    let entries = log.read(Position(2), ReadLimit { entries: 10, bytes: 1 }).await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].position, entries[0].bytes == big), (Position(2), true));
    assert_eq!(read_everything(&*log, ReadLimit::default()).await.len(), 3);
}

/// Pages respect both limits, and together are everything.
pub async fn reads_are_paged(backend: &dyn Backend) {
    let log = backend.fresh().await;
    let stream = name("paged");
    let mut last = None;
    for nth in 0..50_u8 {
        last = Some(log.append(&stream, last, vec![nth; 100]).await.unwrap());
    }
    for (entries, bytes, expected) in
        [(1, 1_000_000, 1), (7, 1_000_000, 7), (0, 1_000_000, 1), (50, 1_000, 10), (50, 0, 1)]
    {
        let page = log.read(Position(3), ReadLimit { entries, bytes }).await.unwrap();
        assert_eq!(page.len(), expected, "{entries} entries, {bytes} bytes");
        assert_eq!(page[0].position, Position(3));
    }
    assert_eq!(log.read(Position(48), ReadLimit::default()).await.unwrap().len(), 3);
    assert_eq!(log.read(Position(51), ReadLimit::default()).await.unwrap(), []);
    let whole = read_everything(&*log, ReadLimit::default()).await;
    assert_eq!(whole.len(), 50);
    for page in [ReadLimit::entries(1), ReadLimit::entries(7), ReadLimit { entries: 100, bytes: 350 }] {
        assert_eq!(read_everything(&*log, page).await, whole, "{page:?}");
    }
}

/// A waiter wakes when the log has grown beyond its position, and only then.
pub async fn waiting_ends_when_the_log_grows(backend: &dyn Backend) {
    let log = backend.fresh().await;
    let stream = name("awaited");
    let waiter = |position| {
        let log = Arc::clone(&log);
        tokio::spawn(async move { timeout(CONFORMANCE_PATIENCE, log.wait_beyond(Position(position))).await })
    };
    let (first, second) = (waiter(0), waiter(1));
    log.append(&stream, None, b"1".to_vec()).await.unwrap();
    assert_eq!(first.await.unwrap().expect("woken").unwrap(), Position(1));
    assert!(!second.is_finished(), "the log is not beyond 1 yet");
    log.append(&stream, Some(Position(1)), b"2".to_vec()).await.unwrap();
    assert_eq!(second.await.unwrap().expect("woken").unwrap(), Position(2));
    // Beyond already: at once.
    let at_once = timeout(CONFORMANCE_PATIENCE, log.wait_beyond(Position::ZERO)).await;
    assert_eq!(at_once.expect("at once").unwrap(), Position(2));
    // Not beyond: not at all.
    let never = timeout(Duration::from_millis(50), log.wait_beyond(Position(2))).await;
    assert!(never.is_err(), "nothing was appended");
}

/// After closing, every call says so, waiters included.
pub async fn a_closed_log_answers_closed(backend: &dyn Backend) {
    let log = backend.fresh().await;
    let stream = name("s");
    log.append(&stream, None, b"1".to_vec()).await.unwrap();
    let waiter = {
        let log = Arc::clone(&log);
        tokio::spawn(async move { log.wait_beyond(Position(1)).await })
    };
    tokio::task::yield_now().await;
    log.close().await;
    let woken = timeout(CONFORMANCE_PATIENCE, waiter).await.expect("closing wakes waiters").unwrap();
    assert!(matches!(woken, Err(ReadError::Closed)), "{woken:?}");
    let error = log.append(&stream, Some(Position(1)), b"2".to_vec()).await.expect_err("closed");
    assert!(matches!(error, AppendError::Closed), "{error:?}");
    assert!(matches!(log.read(Position(1), ReadLimit::default()).await, Err(ReadError::Closed)));
    assert!(matches!(log.last_position().await, Err(ReadError::Closed)));
    assert!(matches!(log.last_of_stream(&stream).await, Err(ReadError::Closed)));
    assert!(matches!(log.wait_beyond(Position::ZERO).await, Err(ReadError::Closed)));
    log.close().await;
}

/// A log that is closed and opened again is the same log, and goes on where it was.
pub async fn records_survive_reopening(backend: &dyn Backend) {
    let mut log = backend.fresh().await;
    let streams = [name("kept/1"), name("kept/2")];
    let mut last = [None, None];
    let mut before = Vec::new();
    for generation in 0..3_u8 {
        for nth in 0..10_u8 {
            let which = usize::from(nth % 2);
            let position = log.append(&streams[which], last[which], vec![generation, nth]).await.unwrap();
            last[which] = Some(position);
        }
        before = read_everything(&*log, ReadLimit::default()).await;
        log.close().await;
        match backend.reopen(log).await {
            Some(reopened) => log = reopened,
            None => return,
        }
        assert_eq!(log.last_position().await.unwrap(), Position(u64::from(generation + 1) * 10));
        for (stream, last) in streams.iter().zip(last) {
            assert_eq!(log.last_of_stream(stream).await.unwrap(), last);
        }
        assert_eq!(read_everything(&*log, ReadLimit::default()).await, before);
    }
    assert_eq!(before.len(), 30);
}

/// What was archived is told from what is missing, and everything else is as before: fences, positions, reopening.
pub async fn a_log_that_begins_later_goes_on(backend: &dyn Backend) {
    let log = backend.fresh().await;
    assert_eq!(log.first().await.unwrap(), Position(1), "also of an empty log");
    // The first stream ends long before the others do.
    let streams = [name("early"), name("late/1"), name("late/2")];
    let mut last = [None; 3];
    for nth in 0..60_u64 {
        let which = if nth < 3 { 0 } else { 1 + (nth % 2) as usize };
        last[which] = Some(log.append(&streams[which], last[which], vec![nth as u8; 400]).await.unwrap());
    }
    let whole = read_everything(&*log, ReadLimit::default()).await;
    let Some(mut log) = backend.shortened(log).await else { return };
    let first = log.first().await.unwrap();
    assert!(first > Position(3) && first <= Position(60), "{first}");
    let kept = &whole[first.0 as usize - 1..];
    for round in 0..2 {
        assert_eq!(log.first().await.unwrap(), first);
        for below in [0, 1, 3, first.0 - 1] {
            let error = log.read(Position(below), ReadLimit::default()).await.expect_err("it is archived");
            assert!(matches!(error, ReadError::Archived { first: f } if f == first), "{below}: {error:?}");
        }
        let mut read = Vec::new();
        while read.len() < kept.len() {
            let from = Position(first.0 + read.len() as u64);
            read.extend(log.read(from, ReadLimit::entries(7)).await.unwrap());
        }
        assert_eq!(read, kept);
        for (stream, last) in streams.iter().zip(last) {
            assert_eq!(log.last_of_stream(stream).await.unwrap(), last, "{stream}");
            let refused = log.append(stream, None, vec![]).await.expect_err("the stream is not empty");
            assert!(matches!(refused, AppendError::Conflict { actual, .. } if actual == last), "{refused:?}");
        }
        let end = log.last_position().await.unwrap();
        assert_eq!(end, Position(60));
        if round == 0 {
            log.close().await;
            assert!(matches!(log.first().await, Err(ReadError::Closed)));
            match backend.reopen(log).await {
                Some(reopened) => log = reopened,
                None => return,
            }
        }
    }
    assert_eq!(log.append(&streams[0], last[0], b"on".to_vec()).await.unwrap(), Position(61));
    assert_eq!(log.read(Position(61), ReadLimit::default()).await.unwrap()[0].bytes, b"on");
}
