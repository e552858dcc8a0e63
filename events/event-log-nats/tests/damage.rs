//! Streams that lost messages, hold others' or hold what was changed: named with position and sequence, never skipped,
//! and nothing behind them is read.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::HeaderMap;
use event_log::conformance::read_everything;
use event_log::{AppendError, Damage, EventLog, Place, Position, ReadError, ReadLimit};
use event_log_nats::{NatsLog, NatsOpenError};
use support::*;
use tokio::time::timeout;

fn damage_of(error: &ReadError) -> &Damage {
    let ReadError::Damaged(damage) = error else { panic!("{error}") };
    damage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_message_is_named_by_whoever_has_not_read_it_and_by_scrub() {
    let Some(server) = server("a_deleted_message_is_named_by_whoever_has_not_read_it_and_by_scrub") else {
        return;
    };
    let url = server.nats.url();
    let link = Link::to(server.nats.address().unwrap()).await;
    let stream = raw(&url).await.create_stream(careless("deleted")).await.unwrap();
    let log = open(&url, "deleted").await;
    let late = open(&link.url(), "deleted").await;
    link.lose_requests.store(true, Ordering::SeqCst);
    link.lose_answers.store(true, Ordering::SeqCst);
    append_each(&log, &name("s"), &vec![vec![7; 10]; 9]).await;
    stream.delete_message(4).await.unwrap();
    link.heal_by_breaking();

    let page = late.read(Position(1), ReadLimit::default()).await.unwrap();
    assert_eq!(page.len(), 3, "what lies before comes first");
    for limit in [ReadLimit::default(), ReadLimit::entries(1)] {
        for from in [4, 5, 9] {
            let error = late.read(Position(from), limit).await.unwrap_err();
            let damage = damage_of(&error);
            assert_eq!(damage.position, Position(4));
            assert_eq!(damage.place, Place::Server { stream: "TEST_deleted".to_owned(), sequence: 4 });
            assert!(error.to_string().contains("missing"), "{error}");
        }
    }
    assert_eq!(damage_of(&late.last_position().await.unwrap_err()).position, Position(4));
    let error = NatsLog::open(options(&url, "deleted")).await.unwrap_err();
    let NatsOpenError::Damaged(damage) = &error else { panic!("{error}") };
    assert_eq!(damage.position, Position(4), "{error}");

    // Who has read it still has it, and can say what the servers have lost.
    assert_eq!(read_everything(&log, ReadLimit::default()).await.len(), 9);
    let scrub = log.scrub().await.unwrap();
    let [difference] = &scrub.differences[..] else { panic!("{scrub:?}") };
    assert_eq!((difference.position, difference.sequence), (Position(4), 4), "{difference}");
    assert!(difference.what.contains("missing") && difference.what.contains("copy holds"), "{difference}");
    assert_eq!((scrub.messages, scrub.records, scrub.more), (9, 8, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_are_none_are_named_and_stop_everything_behind_them() {
    let Some(server) = server("frames_that_are_none_are_named_and_stop_everything_behind_them") else {
        return;
    };
    let url = server.nats.url();
    let context = raw(&url).await;
    let good = [record("s", b"2"), record("t", b"3")].concat();
    let with = |change: &dyn Fn(&mut HeaderMap)| {
        let mut headers = frame_headers(2, 2, &good);
        change(&mut headers);
        headers
    };
    let trailing = [good.as_slice(), b"more"].concat();
    let mut flipped = good.clone();
    flipped[3] ^= 1;
    let long = vec![0; 1_045_000];
    let mut foreign = good.clone();
    foreign[1] = b'*';
    let without = |name: &str| {
        let mut headers = HeaderMap::new();
        for (key, values) in with(&|_| {}).iter().filter(|(key, _)| key.to_string() != name) {
            headers.insert(key.clone(), values[0].as_str());
        }
        headers
    };
    let rows: Vec<(&str, HeaderMap, &[u8], &str)> = vec![
        ("theirs", HeaderMap::new(), b"theirs", "not written by this log"),
        ("flip", with(&|_| {}), &flipped, "checksum"),
        ("crc", with(&|headers| headers.insert("Flotilla-Crc", "00000000")), &good, "checksum"),
        ("more", frame_headers(2, 3, &good), &good, "record 3 of its 3"),
        ("fewer", frame_headers(2, 1, &good), &good, "bytes follow its 1 records"),
        ("none", frame_headers(2, 0, b""), b"", "not a number from 1 on"),
        ("many", frame_headers(2, 1 << 40, &good), &good, "more than the 4096"),
        ("again", frame_headers(1, 2, &good), &good, "begins at position 1, the log goes on at 2"),
        ("gap", frame_headers(3, 2, &good), &good, "begins at position 3, the log goes on at 2"),
        ("end", frame_headers(u64::MAX, 2, &good), &good, "no log is as long"),
        ("trailing", frame_headers(2, 2, &trailing), &trailing, "4 bytes follow its 2 records"),
        ("long", frame_headers(2, 1, &long), &long, "bytes, more than the"),
        ("name", frame_headers(2, 2, &foreign), &foreign, "not allowed in a stream name"),
        ("version", with(&|headers| headers.insert("Flotilla-Log", "3")), &good, "format version is \"3\""),
        ("older", with(&|headers| headers.insert("Flotilla-Log", "1")), &good, "older release"),
        ("forked", with(&|headers| headers.insert("Flotilla-Prev", "00000000")), &good, "went on without it"),
        ("first", without("Flotilla-First"), &good, "no header Flotilla-First"),
        ("count", without("Flotilla-Count"), &good, "no header Flotilla-Count"),
        ("unchecked", without("Flotilla-Crc"), &good, "no header Flotilla-Crc"),
    ];
    for (case, headers, payload, says) in rows {
        let log = open(&url, case).await;
        append_each(&log, &name("s"), &[b"1".to_vec()]).await;
        let subject = format!("test.{case}.log.frame");
        let sent =
            context.publish_with_headers(subject.clone(), headers, payload.to_vec().into()).await.unwrap();
        assert_eq!(sent.await.unwrap().sequence, 2, "{case}");
        // A good one behind it, as if nothing had been.
        let next = record("s", b"4");
        let sent =
            context.publish_with_headers(subject, frame_headers(4, 1, &next), next.into()).await.unwrap();
        sent.await.unwrap();

        assert_eq!(log.read(Position(1), ReadLimit::default()).await.unwrap().len(), 1, "{case}");
        let error = log.read(Position(2), ReadLimit::default()).await.unwrap_err();
        assert!(error.to_string().contains(says), "{case}: {error}, expected {says}");
        let place = Place::Server { stream: format!("TEST_{case}"), sequence: 2 };
        assert_eq!((damage_of(&error).position, &damage_of(&error).place), (Position(2), &place), "{case}");
        assert!(log.read(Position(4), ReadLimit::default()).await.is_err(), "{case}: nothing behind it");
        for expected in [at(1), None] {
            let appended = timeout(PATIENCE, log.append(&name("s"), expected, b"no".to_vec())).await;
            let error = appended.expect("told at once").unwrap_err();
            let right = matches!(&error, AppendError::Unavailable { reason } if reason.contains("damaged"));
            assert!(right, "{case}: {error:?}");
        }
        let scrub = log.scrub().await.unwrap();
        let first = &scrub.differences[0];
        assert_eq!((first.position, first.sequence), (Position(2), 2), "{case}: {scrub:?}");
        let error = NatsLog::open(options(&url, case)).await.unwrap_err();
        let NatsOpenError::Damaged(damage) = &error else { panic!("{case}: {error}") };
        assert_eq!(damage.position, Position(2), "{case}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_frame_of_another_writer_is_read() {
    let Some(server) = server("a_good_frame_of_another_writer_is_read") else { return };
    let url = server.nats.url();
    let log = Arc::new(open(&url, "made").await);
    append_each(&log, &name("s"), &[b"1".to_vec()]).await;
    let payload = [record("s", b"2"), record("t/u.v", b""), record("s", b"4")].concat();
    let headers = frame_headers(2, 3, &payload);
    let context = raw(&url).await;
    let sent = context.publish_with_headers("test.made.log.frame", headers, payload.into()).await.unwrap();
    sent.await.unwrap();
    assert_eq!(log.last_position().await.unwrap(), Position(4));
    assert_eq!(log.last_of_stream(&name("s")).await.unwrap(), at(4));
    let entries = log.read(Position(3), ReadLimit::default()).await.unwrap();
    assert_eq!((entries[0].stream.as_str(), entries[0].bytes.as_slice()), ("t/u.v", &b""[..]));
    assert_eq!(log.append(&name("s"), at(4), b"5".to_vec()).await.unwrap(), Position(5));
    let scrub = log.scrub().await.unwrap();
    assert_eq!((scrub.messages, scrub.records, scrub.differences.len()), (3, 5, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_that_is_replaced_under_an_open_log_is_named() {
    let Some(server) = server("history_that_is_replaced_under_an_open_log_is_named") else { return };
    let url = server.nats.url();
    let context = raw(&url).await;
    let mut impatient = options(&url, "replaced");
    impatient.read_timeout = std::time::Duration::from_millis(300);
    let log = NatsLog::open(impatient).await.unwrap();
    let records: Vec<_> = (0..5_u8).map(|nth| vec![nth; 5]).collect();
    append_each(&log, &name("s"), &records).await;
    context.delete_stream("TEST_replaced").await.unwrap();

    // The servers hold less than they have acknowledged.
    let other = open(&url, "replaced").await;
    append_each(&other, &name("s"), &records[..2]).await;
    let error = timeout(PATIENCE, log.last_position()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("ends at message 2, but 5 have been read"), "{error}");
    // As much, but not the same.
    append_each(&other, &name("s"), &[b"other".to_vec(), records[3].clone(), records[4].clone()]).await;
    let scrub = log.scrub().await.unwrap();
    let [difference] = &scrub.differences[..] else { panic!("{scrub:?}") };
    assert_eq!((difference.position, difference.sequence), (Position(3), 3), "{difference}");
    assert!(difference.what.contains("another record"), "{difference}");
}
