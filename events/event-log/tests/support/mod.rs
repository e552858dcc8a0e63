//! Shared by the tests on files: logs with known contents, and opening them.

#![allow(dead_code)] // Each test binary uses its own part.

use std::fs;
use std::path::{Path, PathBuf};

use event_log::conformance::read_everything;
use event_log::file::{FileLog, FileLogOptions};
use event_log::{Entry, EventLog, OpenError, Place, Position, ReadError, ReadLimit, StreamName};

pub(crate) const SMALL: FileLogOptions = FileLogOptions { segment_bytes: 4096, read_only: false, sync: true };
pub(crate) const READ_ONLY: FileLogOptions =
    FileLogOptions { segment_bytes: 4096, read_only: true, sync: true };

pub(crate) fn name(text: &str) -> StreamName {
    StreamName::new(text).unwrap()
}

/// The record that belongs at a position: three streams, payloads of 0 to 246 bytes, some ending in zeros.
pub(crate) fn known(position: u64) -> Entry {
    let len = usize::try_from(position * 41 % 247).unwrap();
    let mut bytes: Vec<u8> = (0..len as u64).map(|at| (at * position) as u8).collect();
    if position.is_multiple_of(3) {
        let zeros = len.min(9);
        bytes[len - zeros..].fill(0);
    }
    Entry { position: Position(position), stream: name(&format!("run/{}", position % 3)), bytes }
}

pub(crate) fn known_up_to(last: u64) -> Vec<Entry> {
    (1..=last).map(known).collect()
}

/// Appends the known records after `from` up to `to`.
pub(crate) async fn append_known(log: &FileLog, from: u64, to: u64) {
    for position in from + 1..=to {
        let entry = known(position);
        let last = log.last_of_stream(&entry.stream).await.unwrap();
        assert_eq!(log.append(&entry.stream, last, entry.bytes).await.unwrap(), entry.position);
    }
}

/// A closed log in `dir` with the known records.
pub(crate) async fn make_log(dir: &Path, records: u64) {
    let log = FileLog::open(dir, SMALL).await.unwrap();
    append_known(&log, 0, records).await;
    log.close().await;
}

pub(crate) fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    found.sort();
    found
}

/// A copy of a log's segments in a folder of its own.
pub(crate) fn copy_of(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for path in segments(dir) {
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

/// Offsets at which the records of a segment begin, and its end. Knows the format by itself (`LOG_FORMAT.md` §2, §3).
pub(crate) fn record_offsets(segment: &[u8]) -> Vec<usize> {
    let mut offsets = vec![48];
    loop {
        let at = *offsets.last().unwrap();
        let Some(len) = segment.get(at + 8..at + 12) else { return offsets };
        offsets.push(at + 24 + u32::from_le_bytes(len.try_into().unwrap()) as usize + 4);
    }
}

pub(crate) async fn read_all(log: &FileLog) -> Vec<Entry> {
    read_everything(log, ReadLimit::entries(7)).await
}

/// Opens for writing, expecting damage, and returns position, file name and offset of it.
pub(crate) async fn damage_at(dir: &Path) -> (u64, String, u64) {
    let error = FileLog::open(dir, SMALL).await.expect_err("the log is damaged");
    let OpenError::Damaged(damage) = &error else { panic!("{error}") };
    let Place::File { path, offset } = &damage.place else { panic!("{error}") };
    let file = path.file_name().unwrap().to_str().unwrap().to_owned();
    let text = error.to_string();
    assert!(text.contains(&file) && text.contains(&format!("offset {offset}")), "{text}");
    (damage.position.0, file, *offset)
}

/// Opens read-only, and returns the entries before the damage; reading beyond must name it.
pub(crate) async fn readable_before_damage(dir: &Path) -> Vec<Entry> {
    let log = FileLog::open(dir, READ_ONLY).await.unwrap();
    let last = log.last_position().await.unwrap();
    let mut entries = Vec::new();
    while entries.len() as u64 != last.0 {
        let from = Position(entries.len() as u64 + 1);
        let page = log.read(from, ReadLimit::default()).await.unwrap();
        assert!(!page.is_empty());
        entries.extend(page);
    }
    let damage = log.recovery().damage.clone().expect("damage is reported");
    let beyond = log.read(last.next(), ReadLimit::default()).await;
    assert!(matches!(&beyond, Err(ReadError::Damaged(found)) if *found == damage), "{beyond:?}");
    entries
}
