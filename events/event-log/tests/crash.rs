//! What opening makes of files that an interrupted write or a bad disk left (`LOG_FORMAT.md` §5): a torn tail is cut,
//! anything else is named and refused, and no read ever returns wrong data.

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;

use event_log::file::FileLog;
use event_log::{EventLog, Place, Position, ReadError, ReadLimit};
use support::*;

#[tokio::test]
async fn a_cut_at_every_byte_of_the_last_segment_recovers_the_whole_records() {
    let made = tempfile::tempdir().unwrap();
    make_log(made.path(), 70).await;
    let all = segments(made.path());
    assert!(all.len() >= 3, "several segments");
    let last = all.last().unwrap();
    let bytes = fs::read(last).unwrap();
    let offsets = record_offsets(&bytes);
    let first: u64 = last.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    assert_eq!(first + offsets.len() as u64 - 2, 70, "the last segment ends the log");
    assert!(offsets.len() > 4);

    for cut in 0..=bytes.len() {
        let copy = copy_of(made.path());
        let path = copy.path().join(last.file_name().unwrap());
        OpenOptions::new().write(true).open(&path).unwrap().set_len(cut as u64).unwrap();
        let whole = offsets.iter().filter(|&&offset| offset <= cut).count().saturating_sub(1) as u64;
        let kept = first - 1 + whole;
        let end = if cut < 48 { 0 } else { offsets[usize::try_from(whole).unwrap()] };

        let log = FileLog::open_blocking(copy.path(), SMALL).unwrap();
        let torn = log.recovery().torn_tail.clone();
        assert_eq!(torn.is_some(), cut < 48 || cut != end, "cut at {cut}");
        if let Some(torn) = torn {
            assert_eq!((torn.offset, torn.bytes), (end as u64, (cut - end) as u64), "cut at {cut}");
            assert_eq!(torn.path, path);
        }
        assert_eq!(log.last_position().await.unwrap(), Position(kept), "cut at {cut}");
        // Everything, and what follows, only for some: that is what takes time.
        if cut % 16 == 0 || offsets.contains(&cut) {
            assert_eq!(read_all(&log).await, known_up_to(kept), "cut at {cut}");
            append_known(&log, kept, kept + 3).await;
            drop(log);
            let log = FileLog::open_blocking(copy.path(), SMALL).unwrap();
            assert_eq!(log.recovery().torn_tail, None, "cut at {cut}: the tail is gone for good");
            assert_eq!(read_all(&log).await, known_up_to(kept + 3), "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn a_cut_at_every_byte_of_the_only_segment_recovers_the_whole_records() {
    let made = tempfile::tempdir().unwrap();
    make_log(made.path(), 6).await;
    let path = &segments(made.path())[0];
    let bytes = fs::read(path).unwrap();
    let offsets = record_offsets(&bytes);
    for cut in 0..bytes.len() {
        let copy = copy_of(made.path());
        fs::write(copy.path().join(path.file_name().unwrap()), &bytes[..cut]).unwrap();
        let kept = offsets.iter().filter(|&&offset| offset <= cut).count().saturating_sub(1) as u64;
        let log = FileLog::open_blocking(copy.path(), SMALL).unwrap();
        assert_eq!(read_all(&log).await, known_up_to(kept), "cut at {cut}");
        append_known(&log, kept, kept + 1).await;
    }
}

#[tokio::test]
async fn a_cut_of_an_earlier_segment_is_damage() {
    let made = tempfile::tempdir().unwrap();
    make_log(made.path(), 70).await;
    let earlier = &segments(made.path())[1];
    let bytes = fs::read(earlier).unwrap();
    let offsets = record_offsets(&bytes);
    let file = earlier.file_name().unwrap().to_str().unwrap();
    let first: u64 = earlier.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    for cut in (0..bytes.len()).step_by(37).chain([47, 48, bytes.len() - 1]) {
        let copy = copy_of(made.path());
        fs::write(copy.path().join(file), &bytes[..cut]).unwrap();
        let (position, named, offset) = damage_at(copy.path()).await;
        let whole = offsets.iter().filter(|&&offset| offset <= cut).count().saturating_sub(1);
        let at_boundary = cut == offsets[whole] && cut >= 48;
        if at_boundary {
            // A file that ends between two records shows only by what comes next.
            assert_ne!(named, file, "cut at {cut}");
        } else {
            let offset_of_whole = if cut < 48 { 0 } else { offsets[whole] as u64 };
            assert_eq!((named.as_str(), offset), (file, offset_of_whole), "cut at {cut}");
        }
        assert_eq!(position, first + whole as u64, "cut at {cut}");
        assert_eq!(fs::read(copy.path().join(file)).unwrap(), &bytes[..cut], "nothing is changed");
        assert_eq!(readable_before_damage(copy.path()).await, known_up_to(position - 1));
    }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_named_and_never_read() {
    let made = tempfile::tempdir().unwrap();
    make_log(made.path(), 70).await;
    let all = segments(made.path());
    for (path, step) in all.iter().zip([61, 67, 1]) {
        let bytes = fs::read(path).unwrap();
        let offsets = record_offsets(&bytes);
        let file = path.file_name().unwrap().to_str().unwrap();
        let first: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        for at in (0..bytes.len()).step_by(step) {
            let copy = copy_of(made.path());
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(copy.path().join(file), &flipped).unwrap();
            let record = offsets.iter().filter(|&&offset| offset <= at).count().saturating_sub(1);
            let start = if at < 48 { 0 } else { offsets[record] as u64 };
            let (position, named, offset) = damage_at(copy.path()).await;
            assert_eq!((named.as_str(), offset), (file, start), "flip at {at}");
            assert_eq!(position, first + record as u64, "flip at {at}");
            assert_eq!(fs::read(copy.path().join(file)).unwrap(), flipped, "nothing is changed");
            if at % 16 == 0 {
                assert_eq!(readable_before_damage(copy.path()).await, known_up_to(position - 1));
            }
        }
    }
}

#[tokio::test]
async fn damage_that_appears_while_the_log_is_open_is_named_by_reads() {
    let dir = tempfile::tempdir().unwrap();
    let log = FileLog::open(dir.path(), SMALL).await.unwrap();
    append_known(&log, 0, 70).await;
    let path = &segments(dir.path())[1];
    let mut bytes = fs::read(path).unwrap();
    let offsets = record_offsets(&bytes);
    let first: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    bytes[offsets[3] + 30] ^= 0x20;
    fs::write(path, &bytes).unwrap();

    let bad = Position(first + 3);
    let page = log.read(Position(1), ReadLimit::default()).await.unwrap();
    assert_eq!(page, known_up_to(bad.0 - 1), "what lies before comes first");
    for from in [bad.0, bad.0 + 1] {
        let error = log.read(Position(from), ReadLimit::default()).await.expect_err("damaged");
        let ReadError::Damaged(damage) = &error else { panic!("{error}") };
        assert_eq!(damage.position, bad);
        let place = Place::File { path: path.clone(), offset: offsets[3] as u64 };
        assert_eq!(damage.place, place, "{error}");
    }
    fs::remove_file(path).unwrap();
    let error = log.read(Position(first), ReadLimit::default()).await.expect_err("gone");
    assert!(error.to_string().contains("the segment file is gone"), "{error}");
}

#[tokio::test]
async fn space_that_was_never_written_is_a_torn_tail_only_at_the_end() {
    let made = tempfile::tempdir().unwrap();
    make_log(made.path(), 20).await;
    let last = segments(made.path()).pop().unwrap();
    let file = last.file_name().unwrap();
    let bytes = fs::read(&last).unwrap();
    let offsets = record_offsets(&bytes);
    let (end, begin) = (offsets[offsets.len() - 1], offsets[offsets.len() - 2]);

    // Zeros behind the last record.
    for zeros in [4, 24, 100, 5000] {
        let copy = copy_of(made.path());
        let mut longer = bytes.clone();
        longer.resize(end + zeros, 0);
        fs::write(copy.path().join(file), &longer).unwrap();
        let log = FileLog::open_blocking(copy.path(), SMALL).unwrap();
        assert_eq!(log.recovery().torn_tail.as_ref().unwrap().bytes, zeros as u64);
        assert_eq!(read_all(&log).await, known_up_to(20));
        append_known(&log, 20, 22).await;
    }
    // Zeros from somewhere within the last record.
    for from in [begin, begin + 10, begin + 24, begin + 40, end - 4] {
        let copy = copy_of(made.path());
        let mut blank = bytes.clone();
        blank[from..].fill(0);
        fs::write(copy.path().join(file), &blank).unwrap();
        let log = FileLog::open_blocking(copy.path(), SMALL).unwrap();
        assert_eq!(read_all(&log).await, known_up_to(19), "zeros from {from}");
    }
    // Zeros with a whole record behind them were not the end of anything.
    let copy = copy_of(made.path());
    let mut hole = bytes.clone();
    hole[offsets[2]..offsets[3]].fill(0);
    hole.resize(end + 50, 0);
    fs::write(copy.path().join(file), &hole).unwrap();
    let (position, _, offset) = damage_at(copy.path()).await;
    assert_eq!(offset, offsets[2] as u64);
    assert_eq!(readable_before_damage(copy.path()).await, known_up_to(position - 1));
    // Nor is garbage.
    let copy = copy_of(made.path());
    let mut garbage = bytes.clone();
    garbage.extend_from_slice(&[0xa5; 64]);
    fs::write(copy.path().join(file), &garbage).unwrap();
    assert_eq!(damage_at(copy.path()).await.2, end as u64);
}

#[tokio::test]
async fn missing_and_foreign_segments_are_damage() {
    let (made, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_log(made.path(), 70).await;
    make_log(other.path(), 70).await;
    let names: Vec<_> =
        segments(made.path()).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    let second: u64 = names[1].to_str().unwrap()[..20].parse().unwrap();

    let copy = copy_of(made.path());
    fs::remove_file(copy.path().join(&names[0])).unwrap();
    assert_eq!(damage_at(copy.path()).await.0, 1);

    let copy = copy_of(made.path());
    fs::remove_file(copy.path().join(&names[1])).unwrap();
    assert_eq!(damage_at(copy.path()).await.0, second);
    assert_eq!(readable_before_damage(copy.path()).await, known_up_to(second - 1));

    let copy = copy_of(made.path());
    fs::copy(other.path().join(&names[1]), copy.path().join(&names[1])).unwrap();
    let error = FileLog::open_blocking(copy.path(), SMALL).unwrap_err();
    assert!(error.to_string().contains("belongs to another log"), "{error}");

    // A record copied in from another log, in a place where it would fit.
    let copy = copy_of(made.path());
    let (mut mine, theirs) =
        (fs::read(made.path().join(&names[1])).unwrap(), fs::read(other.path().join(&names[1])).unwrap());
    let offsets = record_offsets(&mine);
    mine[offsets[1]..offsets[2]].copy_from_slice(&theirs[offsets[1]..offsets[2]]);
    fs::write(copy.path().join(&names[1]), &mine).unwrap();
    assert_eq!(damage_at(copy.path()).await.0, second + 1);
}

#[tokio::test]
async fn random_bytes_behind_good_ones_are_never_taken_for_records() {
    let made = tempfile::tempdir().unwrap();
    make_log(made.path(), 5).await;
    let path = &segments(made.path())[0];
    let good = fs::read(path).unwrap();
    // A fixed generator (xorshift), so that a failure can be had again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..300 {
        let copy = copy_of(made.path());
        let mut bytes = good.clone();
        let len = random() % 300;
        // Some of it small numbers, as lengths and positions are.
        bytes.extend((0..len).map(|_| if random() % 3 == 0 { (random() % 8) as u8 } else { random() as u8 }));
        fs::write(copy.path().join(path.file_name().unwrap()), &bytes).unwrap();
        if len < 24 {
            let log = FileLog::open_blocking(copy.path(), SMALL).unwrap();
            assert_eq!(read_all(&log).await, known_up_to(5));
        } else {
            assert_eq!(damage_at(copy.path()).await.2, good.len() as u64);
        }
    }
}

#[tokio::test]
async fn a_newer_format_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    make_log(dir.path(), 3).await;
    let path = &segments(dir.path())[0];
    let mut bytes = fs::read(path).unwrap();
    bytes[8] = 2;
    let crc = crc32fast::hash(&bytes[..44]);
    bytes[44..48].copy_from_slice(&crc.to_le_bytes());
    fs::write(path, &bytes).unwrap();
    let error = FileLog::open(dir.path(), SMALL).await.unwrap_err().to_string();
    assert!(error.contains("format version 2") && error.contains("use a newer one"), "{error}");
}

#[tokio::test]
async fn a_read_only_log_changes_nothing_and_sees_a_running_writers_records() {
    let dir = tempfile::tempdir().unwrap();
    let writer = FileLog::open(dir.path(), SMALL).await.unwrap();
    append_known(&writer, 0, 40).await;
    let reader = FileLog::open(dir.path(), READ_ONLY).await.unwrap();
    assert_eq!(read_all(&reader).await, known_up_to(40));
    let error = reader.append(&name("x"), None, Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("reading only"), "{error}");
    reader.close().await;
    writer.close().await;

    let last = segments(dir.path()).pop().unwrap();
    OpenOptions::new().append(true).open(&last).unwrap().write_all(b"torn").unwrap();
    let before = fs::read(&last).unwrap();
    let reader = FileLog::open(dir.path(), READ_ONLY).await.unwrap();
    assert_eq!(reader.recovery().torn_tail.as_ref().unwrap().bytes, 4);
    assert_eq!(read_all(&reader).await, known_up_to(40));
    assert_eq!(fs::read(&last).unwrap(), before);
}

#[tokio::test]
async fn a_second_writer_is_told_who_has_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = FileLog::open(dir.path(), SMALL).await.unwrap();
    let error = FileLog::open(dir.path(), SMALL).await.unwrap_err().to_string();
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    assert!(error.contains("stop that process"), "{error}");
    append_known(&log, 0, 1).await;
    log.close().await;
    // Closed and dropped both mean released.
    let log = FileLog::open(dir.path(), SMALL).await.unwrap();
    drop(log);
    let log = FileLog::open(dir.path(), SMALL).await.unwrap();
    assert_eq!(read_all(&log).await, known_up_to(1));
}
