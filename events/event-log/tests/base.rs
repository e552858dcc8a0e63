//! A log whose beginning was archived (`LOG_FORMAT.md` §8): what a crash between any two steps leaves, what damage is
//! told, and readers that have the folder open meanwhile.

mod support;

use std::fs;
use std::path::Path;

use event_log::file::{FileLog, SegmentReader};
use event_log::{EventLog, OpenError, Position, ReadError, ReadLimit, ShortenError};
use support::{READ_ONLY, SMALL, append_known, known, known_up_to, make_log, name, read_all, segments};

const RECORDS: u64 = 200;

async fn read_from(log: &FileLog, first: u64) -> Vec<event_log::Entry> {
    let mut read = Vec::new();
    loop {
        let from = Position(first + read.len() as u64);
        let page = log.read(from, ReadLimit::entries(11)).await.unwrap();
        if page.is_empty() {
            return read;
        }
        read.extend(page);
    }
}

/// Everything in the folder, by name.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
        })
        .filter(|(name, _)| name != "lock")
        .collect();
    files.sort();
    files
}

fn put(files: &[(String, Vec<u8>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// Opens, finds everything from `first` on, and goes on.
async fn is_good(dir: &Path, first: u64) {
    let reader = FileLog::open(dir, READ_ONLY).await.unwrap();
    assert_eq!((reader.first_stored(), reader.recovery().damage.clone()), (Position(first), None));
    assert_eq!(read_from(&reader, first).await, known_up_to(RECORDS)[first as usize - 1..]);
    let log = FileLog::open(dir, SMALL).await.unwrap();
    assert_eq!((log.first_stored(), log.last_stored()), (Position(first), Position(RECORDS)));
    assert_eq!(log.recovery().records, RECORDS - first + 1);
    append_known(&log, RECORDS, RECORDS + 40).await;
    log.close().await;
    let log = FileLog::open(dir, SMALL).await.unwrap();
    assert_eq!(read_from(&log, first).await, known_up_to(RECORDS + 40)[first as usize - 1..]);
    let first_file = segments(dir)[0].file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(first_file, event_log::file::segment_file_name(Position(first)));
}

#[tokio::test]
async fn every_step_of_a_crash_is_good() {
    let dir = tempfile::tempdir().unwrap();
    make_log(dir.path(), RECORDS).await;
    let before = files(dir.path());
    let log = FileLog::open(dir.path(), SMALL).await.unwrap();
    let closed = log.closed_segments();
    assert!(closed.len() > 6, "{closed:?}");
    assert_eq!((closed[0].first, closed[0].last.next()), (Position(1), closed[1].first));
    log.begin_after(closed[1].last, b"first".to_vec()).unwrap();
    let second = files(dir.path());
    log.begin_after(closed[4].last, b"second".to_vec()).unwrap();
    log.close().await;
    let after = files(dir.path());
    let base = |files: &[(String, Vec<u8>)]| files.iter().find(|(name, _)| name == "base").unwrap().clone();
    let third = closed[4].last.0 + 1;

    // From a whole log, and from one that was shortened before.
    for (from, old_first, to, gone, first) in [
        (&before, 1, &second, &closed[..2], closed[1].last.0 + 1),
        (&second, closed[1].last.0 + 1, &after, &closed[2..5], third),
    ] {
        // The new base is being written: any part of it.
        let new = base(to);
        for cut in [0, 1, new.1.len() - 1, new.1.len()] {
            let mut left = from.clone();
            left.push(("base.new".to_owned(), new.1[..cut].to_vec()));
            is_good(put(&left).path(), old_first).await;
        }
        // It is in place, and of the segments any number is gone.
        for removed in 0..=gone.len() {
            let mut left: Vec<_> = from.iter().filter(|(name, _)| name != "base").cloned().collect();
            left.retain(|(name, _)| {
                !gone[..removed].iter().any(|segment| segment.path.ends_with(name.as_str()))
            });
            left.push(new.clone());
            let dir = put(&left);
            is_good(dir.path(), first).await;
        }
    }
}

#[tokio::test]
async fn damage_at_the_base_is_named_and_nothing_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    make_log(dir.path(), RECORDS).await;
    let whole = files(dir.path());
    let log = FileLog::open(dir.path(), SMALL).await.unwrap();
    let closed = log.closed_segments();
    log.begin_after(closed[2].last, Vec::new()).unwrap();
    log.close().await;
    let short = files(dir.path());
    let base = short.iter().find(|(name, _)| name == "base").unwrap().1.clone();

    // Any flipped byte, with the archived segments still there.
    for at in (0..base.len()).step_by(7) {
        let mut bad = base.clone();
        bad[at] ^= 1;
        let mut left = whole.clone();
        left.push(("base".to_owned(), bad));
        let dir = put(&left);
        for options in [SMALL, READ_ONLY] {
            let error = FileLog::open(dir.path(), options).await.expect_err("damaged");
            assert!(
                matches!(error, OpenError::Base { .. }) && error.to_string().contains("archive"),
                "{error}"
            );
        }
        assert_eq!(files(dir.path()), left);
    }
    // A base that says too much: what it leads to is not there.
    let (next, _) = short.iter().find(|(name, _)| name.ends_with(".seg")).unwrap();
    let mut left = whole.clone();
    left.retain(|(name, _)| name != next);
    left.push(("base".to_owned(), base.clone()));
    let torn = put(&left);
    let error = FileLog::open(torn.path(), SMALL).await.expect_err("a segment is missing");
    assert!(error.to_string().contains("missing"), "{error}");
    assert_eq!(files(torn.path()), left);
    let only_base = put(&[("base".to_owned(), base.clone())]);
    let error = FileLog::open(only_base.path(), SMALL).await.expect_err("everything is missing");
    assert!(matches!(error, OpenError::Damaged(_)), "{error}");
    // A header behind the base that was emptied is damage, not one that was being made.
    let mut left: Vec<_> = whole.iter().take(closed.len().min(4)).cloned().collect();
    left.last_mut().unwrap().1.fill(0);
    left.push(("base".to_owned(), base.clone()));
    let emptied = put(&left);
    assert!(FileLog::open(emptied.path(), SMALL).await.is_err());
    assert_eq!(files(emptied.path()), left);
    // Another log's base.
    let other = tempfile::tempdir().unwrap();
    make_log(other.path(), RECORDS).await;
    fs::write(other.path().join("base"), &base).unwrap();
    let error = FileLog::open(other.path(), SMALL).await.expect_err("another log");
    assert!(error.to_string().contains("another log"), "{error}");
    // None at all.
    fs::remove_file(dir.path().join("base")).unwrap();
    let error = FileLog::open(dir.path(), SMALL).await.expect_err("its beginning is missing");
    assert!(error.to_string().contains("`base`"), "{error}");
}

#[tokio::test]
async fn only_ends_of_closed_segments_will_do() {
    let dir = tempfile::tempdir().unwrap();
    make_log(dir.path(), RECORDS).await;
    let log = FileLog::open(dir.path(), SMALL).await.unwrap();
    let closed = log.closed_segments();
    for bad in [0, 1, closed[0].last.0 - 1, closed[0].last.0 + 1, RECORDS, RECORDS + 1, u64::MAX] {
        let refused = log.begin_after(Position(bad), Vec::new());
        assert!(matches!(refused, Err(ShortenError::NotAnEnd { .. })), "{bad}: {refused:?}");
    }
    log.begin_after(closed[1].last, Vec::new()).unwrap();
    // Not back, and not the same again.
    for bad in &closed[..2] {
        assert!(matches!(log.begin_after(bad.last, Vec::new()), Err(ShortenError::NotAnEnd { .. })));
    }
    let too_long = vec![0; event_log::limits::MAX_BASE_NOTE_BYTES + 1];
    assert!(matches!(log.begin_after(closed[2].last, too_long), Err(ShortenError::Io { .. })));
    assert_eq!(log.first_stored(), closed[1].last.next());
    log.close().await;
    let reader = FileLog::open(dir.path(), READ_ONLY).await.unwrap();
    assert!(matches!(reader.begin_after(closed[2].last, Vec::new()), Err(ShortenError::ReadOnly)));
}

#[tokio::test]
async fn a_reader_beside_is_told_what_was_archived() {
    let dir = tempfile::tempdir().unwrap();
    make_log(dir.path(), RECORDS).await;
    let log = FileLog::open(dir.path(), SMALL).await.unwrap();
    let reader = FileLog::open(dir.path(), READ_ONLY).await.unwrap();
    let closed = log.closed_segments();
    assert_eq!(reader.closed_segments(), closed);
    log.begin_after(closed[3].last, Vec::new()).unwrap();
    let first = closed[3].last.next();
    for from in [1, first.0 - 1] {
        for log in [&log, &reader] {
            let error = log.read(Position(from), ReadLimit::default()).await.expect_err("archived");
            assert!(matches!(error, ReadError::Archived { first: f } if f == first), "{error:?}");
        }
    }
    assert_eq!(reader.read(first, ReadLimit::entries(1)).await.unwrap()[0], known(first.0));
    // The whole history again: the archived segments by themselves, then the log.
    let whole = tempfile::tempdir().unwrap();
    make_log(whole.path(), RECORDS).await;
    for path in &segments(whole.path())[4..] {
        fs::remove_file(path).unwrap();
    }
    let archived = FileLog::open_archived(whole.path(), Position(1)..=first).unwrap();
    assert_eq!(read_all(&archived).await, known_up_to(first.0 - 1));
    assert_eq!((archived.first_stored(), archived.last_stored()), (Position(1), Position(first.0 - 1)));
}

#[tokio::test]
async fn archived_segments_are_read_strictly() {
    let dir = tempfile::tempdir().unwrap();
    make_log(dir.path(), RECORDS).await;
    let paths = segments(dir.path());
    for path in [&paths[0], &paths[1], &paths[5]] {
        fs::remove_file(path).unwrap();
    }
    for path in &paths[6..] {
        fs::remove_file(path).unwrap();
    }
    // From the third to the fifth: a part of a log.
    let log = FileLog::open_archived(dir.path(), Position(1)..=Position(u64::MAX)).unwrap();
    let (first, last) = (log.first_stored().0, log.last_stored().0);
    assert!(first > 1 && last < RECORDS);
    let page = log.read(Position(first), ReadLimit::default()).await.unwrap();
    assert_eq!(page, known_up_to(last)[first as usize - 1..]);
    assert!(matches!(log.read(Position(1), ReadLimit::default()).await, Err(ReadError::Archived { .. })));
    assert_eq!(log.last_of_stream(&name("none")).await.unwrap(), None);
    assert!(matches!(log.append(&name("run/1"), None, vec![]).await, Err(event_log::AppendError::ReadOnly)));

    // One by itself.
    let mut reader = SegmentReader::new(fs::File::open(&paths[2]).unwrap(), &paths[2]).unwrap();
    assert_eq!((reader.first().0, reader.log_id()), (first, log.log_id()));
    let mut position = first;
    while let Some(record) = reader.next_record().unwrap() {
        let expected = known(position);
        assert_eq!((record.position, record.bytes), (expected.position, expected.bytes.as_slice()));
        assert_eq!(record.stream, expected.stream.as_str().as_bytes());
        position += 1;
    }

    // A torn tail is damage here, wherever it is cut.
    let bytes = fs::read(&paths[4]).unwrap();
    for cut in [1, 20, 30, 48, bytes.len() - 1] {
        fs::write(&paths[4], &bytes[..cut]).unwrap();
        let log = FileLog::open_archived(dir.path(), Position(1)..=Position(u64::MAX)).unwrap();
        // Behind the header nothing is missing that the file itself could tell: the archive's manifest does.
        assert_eq!(log.recovery().damage.is_some(), cut != 48, "cut at {cut}");
        assert!(log.recovery().torn_tail.is_none() && log.last_stored().0 < last, "cut at {cut}");
        let read =
            SegmentReader::new(fs::File::open(&paths[4]).unwrap(), &paths[4]).and_then(|mut reader| {
                while reader.next_record().map_err(|_| OpenError::Setting("damage".to_owned()))?.is_some() {}
                Ok(())
            });
        assert_eq!(read.is_ok(), cut == 48, "cut at {cut}");
    }
}

/// What opening costs with a million records, and with nine tenths of them archived:
/// `cargo nextest run -p event-log --test base --run-ignored only --no-capture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn a_million_records_and_a_tenth_of_them() {
    use event_log::file::FileLogOptions;
    use std::time::Instant;
    let dir = tempfile::tempdir().unwrap();
    let options = FileLogOptions { segment_bytes: 8 << 20, sync: false, ..FileLogOptions::default() };
    let log = FileLog::open(dir.path(), options.clone()).await.unwrap();
    for batch in 0..500_u64 {
        let record = |n: u64| (name("fleet"), vec![(batch * 2_000 + n) as u8; 120]);
        log.append_all((0..2_000).map(record).collect()).await.unwrap();
    }
    log.close().await;
    drop(log);
    let opened = async |what: &str| {
        for _ in 0..3 {
            let start = Instant::now();
            let log = FileLog::open(dir.path(), options.clone()).await.unwrap();
            println!("{what}: {} records in {:?}", log.recovery().records, start.elapsed());
            log.close().await;
        }
    };
    opened("whole").await;
    let log = FileLog::open(dir.path(), options.clone()).await.unwrap();
    let closed = log.closed_segments();
    let end = closed.iter().rev().find(|segment| segment.last.0 <= 900_000).unwrap();
    let start = Instant::now();
    log.begin_after(end.last, Vec::new()).unwrap();
    println!("the beginning moved behind {} in {:?}", end.last, start.elapsed());
    log.close().await;
    drop(log);
    opened("nine tenths archived").await;
}
