//! What only this crate's inside can provoke: a disk whose sync fails.

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
