//! What only this crate's inside can provoke: a disk whose sync fails.

use crate::limits::MAX_RECORD_BYTES;
use std::sync::atomic::Ordering;

use super::*;

#[tokio::test]
async fn a_failed_sync_poisons_the_log_and_opening_anew_settles_it() {
    let dir = tempfile::tempdir().unwrap();
    let stream = StreamName::new("s").unwrap();
    let faults = Faults::default();
    let log = FileLog::open_with(dir.path(), FileLogOptions::default(), faults.clone()).unwrap();
    let first = log.append(&stream, None, b"stored".to_vec()).await.unwrap();

    faults.sync.store(true, Ordering::SeqCst);
    let error = log.append(&stream, Some(first), b"unknown".to_vec()).await.unwrap_err();
    assert!(error.may_be_stored() && error.to_string().contains("a failing disk"), "{error}");

    // The disk works again, but the log can't know what the failed sync has left.
    faults.sync.store(false, Ordering::SeqCst);
    for _ in 0..2 {
        let error = log.append(&stream, Some(first), b"refused".to_vec()).await.unwrap_err();
        assert!(matches!(&error, AppendError::Poisoned { .. }), "{error}");
        assert!(error.to_string().contains("open it anew"));
    }
    let error = log.append(&stream, None, b"conflict".to_vec()).await.unwrap_err();
    assert!(matches!(error, AppendError::Conflict { actual: Some(Position(1)), .. }), "{error}");
    assert_eq!(log.read(Position(1), ReadLimit::default()).await.unwrap().len(), 1, "reading goes on");
    drop(log);

    let log = FileLog::open_blocking(dir.path(), FileLogOptions::default()).unwrap();
    let entries = log.read(Position(1), ReadLimit::default()).await.unwrap();
    let bytes: Vec<_> = entries.iter().map(|entry| entry.bytes.as_slice()).collect();
    assert_eq!(bytes, [&b"stored"[..], b"unknown"], "unknown meant stored here");
    assert_eq!(log.append(&stream, Some(Position(2)), b"on".to_vec()).await.unwrap(), Position(3));
}

#[tokio::test]
async fn a_segment_size_out_of_range_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for segment_bytes in [0, MIN_SEGMENT_BYTES - 1, MAX_SEGMENT_BYTES + 1] {
        let options = FileLogOptions { segment_bytes, ..FileLogOptions::default() };
        let error = FileLog::open_blocking(dir.path(), options).unwrap_err();
        assert!(matches!(error, OpenError::Setting(_)), "{error}");
    }
}

#[tokio::test]
async fn a_batch_is_stored_whole_in_its_order_and_nothing_is_synced_for_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        FileLogOptions { segment_bytes: MIN_SEGMENT_BYTES, sync: false, ..FileLogOptions::default() };
    let faults = Faults::default();
    // Whoever syncs would be told that the disk fails.
    faults.sync.store(true, Ordering::SeqCst);
    let log = FileLog::open_with(dir.path(), options.clone(), faults).unwrap();
    let name = |nth: u64| StreamName::new(format!("s/{}", nth % 3)).unwrap();
    let batch =
        |from: u64, to: u64| (from..=to).map(|nth| (name(nth), vec![nth as u8; 300])).collect::<Vec<_>>();
    assert_eq!(log.append_all(Vec::new()).await.unwrap(), Position::ZERO);
    assert_eq!(log.append_all(batch(1, 1)).await.unwrap(), Position(1));
    // Larger than a segment: still whole, in one of its own.
    assert_eq!(log.append_all(batch(2, 40)).await.unwrap(), Position(40));
    assert_eq!(log.append_all(batch(41, 42)).await.unwrap(), Position(42));
    assert_eq!(log.last_stored(), Position(42));
    assert_eq!(log.last_stored_of(&name(1)), Some(Position(40)));
    // An ordinary append goes on from there.
    assert_eq!(log.append(&name(42), Some(Position(42)), vec![43; 300]).await.unwrap(), Position(43));
    let too_much = vec![(name(1), vec![0; MAX_RECORD_BYTES]); MAX_BATCH_BYTES / MAX_RECORD_BYTES + 1];
    assert!(matches!(log.append_all(too_much).await, Err(AppendError::TooLarge { .. })));
    let too_large = vec![(name(1), vec![0; MAX_RECORD_BYTES + 1])];
    assert!(matches!(log.append_all(too_large).await, Err(AppendError::TooLarge { .. })));
    log.close().await;
    assert!(matches!(log.append_all(batch(1, 1)).await, Err(AppendError::Closed)));
    drop(log);

    let mut segments: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    segments.sort();
    let firsts = [1, 2, 41].map(|first| std::ffi::OsString::from(segment::file_name(Position(first))));
    assert_eq!(segments[..3], firsts);
    let log = FileLog::open_blocking(dir.path(), options).unwrap();
    let entries = log.read(Position(1), ReadLimit::default()).await.unwrap();
    assert!(entries.iter().map(|entry| entry.bytes[0]).eq(1..=43));
    drop(log);
    let read_only = FileLogOptions { read_only: true, ..FileLogOptions::default() };
    let log = FileLog::open_blocking(dir.path(), read_only).unwrap();
    assert!(matches!(log.append_all(batch(1, 1)).await, Err(AppendError::ReadOnly)));
}
