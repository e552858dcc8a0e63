//! Logs written by earlier versions open and read the same for ever. Folders under `golden/` are only ever added.

mod support;

use std::path::{Path, PathBuf};

use event_log::file::FileLog;
use support::*;

fn golden(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(version)
}

#[tokio::test]
async fn version_1_opens_reads_and_goes_on() {
    assert_eq!(segments(&golden("v1")).len(), 2);
    let copy = copy_of(&golden("v1"));
    let log = FileLog::open_blocking(copy.path(), SMALL).unwrap();
    assert_eq!(log.recovery().records, 40);
    assert_eq!((&log.recovery().torn_tail, &log.recovery().damage), (&None, &None));
    assert_eq!(read_all(&log).await, known_up_to(40));
    append_known(&log, 40, 80).await;
    drop(log);
    let log = FileLog::open_blocking(copy.path(), SMALL).unwrap();
    assert_eq!(read_all(&log).await, known_up_to(80));
}

/// How `golden/v1` was made: `cargo test -p event-log --test old_format -- --ignored`. Refuses to overwrite.
#[tokio::test]
#[ignore = "writes golden files, once per format version"]
async fn write_golden_files() {
    let dir = golden("v1");
    assert!(!dir.exists(), "golden files are never changed");
    make_log(&dir, 40).await;
    std::fs::remove_file(dir.join("lock")).unwrap();
}
