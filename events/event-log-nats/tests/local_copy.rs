//! The local copy: kept from one start to the next, completed, made anew when it is lost or damaged, and never taken for
//! the copy of a log that it is not of.

mod support;

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use event_log::conformance::read_everything;
use event_log::{Entry, EventLog, OpenError, Position, ReadLimit};
use event_log_nats::{NatsLog, NatsLogOptions, NatsOpenError};
use support::*;

fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.extension().is_some_and(|ext| ext == "seg")).collect();
    found.sort();
    found
}

/// Appends with several writers at once, so that frames hold many records.
async fn append_many(log: &Arc<NatsLog>, streams: u64, each: u64) {
    let writers: Vec<_> = (0..streams)
        .map(|writer| {
            let (log, stream) = (Arc::clone(log), name(&format!("stream/{writer}")));
            tokio::spawn(async move {
                let mut last = log.last_of_stream(&stream).await.unwrap();
                for nth in 0..each {
                    let bytes = vec![nth as u8; usize::try_from(writer * 7 % 90).unwrap()];
                    last = Some(log.append(&stream, last, bytes).await.unwrap());
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

async fn all_of(options: &NatsLogOptions) -> Vec<Entry> {
    let log = NatsLog::open(options.clone()).await.unwrap();
    let all = read_everything(&log, ReadLimit::default()).await;
    assert_eq!(log.scrub().await.unwrap().differences, []);
    log.close().await;
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_kept_completed_and_made_anew() {
    let Some(server) = server("a_copy_is_kept_completed_and_made_anew") else { return };
    let (url, dir) = (server.nats.url(), tempfile::tempdir().unwrap());
    let copy = dir.path().join("deep/copy");
    let with_copy = NatsLogOptions { copy: Some(copy.clone()), ..options(&url, "kept") };
    let log = Arc::new(NatsLog::open(with_copy.clone()).await.unwrap());
    append_many(&log, 30, 10).await;
    let expected = read_everything(&*log, ReadLimit::default()).await;
    assert_eq!(expected.len(), 300);
    // The folder is in use.
    let error = NatsLog::open(with_copy.clone()).await.unwrap_err();
    assert!(matches!(error, NatsOpenError::Copy(OpenError::Locked { .. })), "{error}");
    log.close().await;

    // As it was; without the records of its end, cut anywhere, also within a frame; gone.
    assert!(all_of(&with_copy).await == expected);
    let segment = segments(&copy).pop().unwrap();
    let whole = fs::read(&segment).unwrap();
    for keep in [whole.len() - 1, whole.len() - 40, whole.len() * 2 / 3, whole.len() / 2, 100, 48, 20, 0] {
        fs::write(&segment, &whole[..keep]).unwrap();
        assert!(all_of(&with_copy).await == expected, "{keep} bytes kept");
    }
    fs::remove_dir_all(&copy).unwrap();
    assert!(all_of(&with_copy).await == expected);

    // Damaged: moved aside, more than once, and never in the way.
    for round in 1..=5 {
        let segment = segments(&copy).pop().unwrap();
        let mut bytes = fs::read(&segment).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 0x10;
        fs::write(&segment, bytes).unwrap();
        assert!(all_of(&with_copy).await == expected, "round {round}");
    }
    let names = fs::read_dir(dir.path().join("deep")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["copy", "copy.damaged-1", "copy.damaged-2", "copy.damaged-3"]);

    // Others have gone on meanwhile.
    let other = Arc::new(open(&url, "kept").await);
    append_many(&other, 40, 20).await;
    let expected = read_everything(&*other, ReadLimit::default()).await;
    assert_eq!(expected.len(), 1100);
    assert!(all_of(&with_copy).await == expected);
    // Long ago, and just now.
    for behind in [1_u64, 3, 40, 900] {
        let log =
            event_log::file::FileLog::open(&copy, event_log::file::FileLogOptions::default()).await.unwrap();
        let cut = log.read(Position(1), ReadLimit::entries(1100)).await.unwrap();
        let keep = cut.len() - usize::try_from(behind).unwrap();
        drop(log);
        fs::remove_dir_all(&copy).unwrap();
        let log =
            event_log::file::FileLog::open(&copy, event_log::file::FileLogOptions::default()).await.unwrap();
        let records = cut.into_iter().take(keep).map(|entry| (entry.stream, entry.bytes)).collect();
        log.append_all(records).await.unwrap();
        drop(log);
        assert!(all_of(&with_copy).await == expected, "{behind} behind");
    }
}

#[tokio::test]
async fn a_copy_of_another_log_is_refused_and_nothing_is_changed() {
    let Some(server) = server("a_copy_of_another_log_is_refused_and_nothing_is_changed") else { return };
    let (url, dir) = (server.nats.url(), tempfile::tempdir().unwrap());
    let copy = dir.path().join("copy");
    let records: Vec<_> = (0..9_u8).map(|nth| vec![nth; 9]).collect();
    let with_copy = |name: &str| NatsLogOptions { copy: Some(copy.clone()), ..options(&url, name) };
    let log = NatsLog::open(with_copy("one")).await.unwrap();
    append_each(&log, &name("s"), &records).await;
    log.close().await;
    let segment = segments(&copy).pop().unwrap();
    let before = fs::read(&segment).unwrap();

    let other = open(&url, "other").await;
    append_each(&other, &name("s"), &records[..8]).await;
    append_each(&other, &name("s"), &[b"different".to_vec(), b"more".to_vec()]).await;
    let error = NatsLog::open(with_copy("other")).await.unwrap_err();
    let NatsOpenError::OtherHistory { position, sequence, .. } = &error else { panic!("{error}") };
    assert_eq!((*position, *sequence), (Position(9), 9));
    let text = error.to_string();
    assert!(text.contains(copy.to_str().unwrap()) && text.contains("move the folder away"), "{text}");
    assert_eq!(fs::read(&segment).unwrap(), before);

    // The same bytes in another stream are not the same record.
    let other = open(&url, "names").await;
    append_each(&other, &name("t"), &records).await;
    let error = NatsLog::open(with_copy("names")).await.unwrap_err();
    assert!(matches!(error, NatsOpenError::OtherHistory { .. }), "{error}");
    assert_eq!(
        read_everything(&NatsLog::open(with_copy("one")).await.unwrap(), ReadLimit::default()).await.len(),
        9
    );
}

#[tokio::test]
async fn servers_that_hold_fewer_records_than_the_copy_are_refused() {
    let Some(server) = server("servers_that_hold_fewer_records_than_the_copy_are_refused") else { return };
    let (url, dir) = (server.nats.url(), tempfile::tempdir().unwrap());
    let context = raw(&url).await;
    let records: Vec<_> = (0..9_u8).map(|nth| vec![nth; 9]).collect();
    let with_copy = NatsLogOptions { copy: Some(dir.path().join("copy")), ..options(&url, "fewer") };
    let log = NatsLog::open(with_copy.clone()).await.unwrap();
    append_each(&log, &name("s"), &records).await;
    log.close().await;
    for kept in [0, 1, 8] {
        context.delete_stream("TEST_fewer").await.unwrap();
        let other = open(&url, "fewer").await;
        append_each(&other, &name("s"), &records[..kept]).await;
        other.close().await;
        let error = NatsLog::open(with_copy.clone()).await.unwrap_err();
        let NatsOpenError::Shorter { servers, copy, .. } = &error else { panic!("{kept}: {error}") };
        assert_eq!((*servers, *copy), (Position(kept as u64), Position(9)));
        let text = error.to_string();
        assert!(text.contains(&format!("ends at position {kept}")) && text.contains("at 9"), "{text}");
    }
    // What is right again opens again.
    let other = open(&url, "fewer").await;
    append_each(&other, &name("s"), &records[8..]).await;
    assert!(NatsLog::open(with_copy).await.is_ok());
}

#[tokio::test]
async fn what_is_no_folder_is_named() {
    let Some(server) = server("what_is_no_folder_is_named") else {
        return;
    };
    let (url, dir) = (server.nats.url(), tempfile::tempdir().unwrap());
    let file = dir.path().join("file");
    OpenOptions::new().write(true).create(true).truncate(true).open(&file).unwrap();
    let error =
        NatsLog::open(NatsLogOptions { copy: Some(file), ..options(&url, "file") }).await.unwrap_err();
    assert!(matches!(error, NatsOpenError::Copy(_)), "{error}");
}

#[tokio::test]
async fn a_copy_that_rots_while_it_is_open_is_read_around() {
    let Some(server) = server("a_copy_that_rots_while_it_is_open_is_read_around") else { return };
    let (url, dir) = (server.nats.url(), tempfile::tempdir().unwrap());
    let with_copy = NatsLogOptions { copy: Some(dir.path().join("copy")), ..options(&url, "rot") };
    let log = NatsLog::open(with_copy.clone()).await.unwrap();
    let records: Vec<_> = (0..90_u8).map(|nth| vec![nth; 900]).collect();
    append_each(&log, &name("s"), &records).await;
    let expected = read_everything(&log, ReadLimit::default()).await;
    let segment = segments(&dir.path().join("copy")).pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    for page in [ReadLimit::default(), ReadLimit::entries(7), ReadLimit::entries(1)] {
        assert!(read_everything(&log, page).await == expected, "{page:?}");
    }
    let scrub = log.scrub().await.unwrap();
    assert!(!scrub.differences.is_empty());
    assert!(
        scrub.differences.iter().all(|difference| difference.what.contains("copy is damaged")),
        "{scrub:?}"
    );
    log.close().await;
    assert!(all_of(&with_copy).await == expected);
}
