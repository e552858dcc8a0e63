//! A million real files: how long it takes to index them and put them in place, and what the agent keeps in memory.
//!
//! `FLOTILLA_FILES` asks for another number, `FLOTILLA_ROOM` names the folder to do it in: a file system in memory
//! shows the agent's own part.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use event_schema::RunId;

use super::*;

/// Bytes of memory that this process has now, and had at most.
fn memory() -> (f64, f64) {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let figure = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("there");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number") * 1024.0
    };
    (figure("VmRSS:"), figure("VmHWM:"))
}

#[test]
#[ignore = "measures with a million files; minutes"]
fn a_million_files_are_indexed_and_put_in_place() {
    let files: u64 = env::var("FLOTILLA_FILES").map_or(1_000_000, |n| n.parse().expect("a number"));
    let room = env::var_os("FLOTILLA_ROOM").map_or_else(env::temp_dir, PathBuf::from);
    let (src, dst) = (tempfile::tempdir_in(&room).expect("room"), tempfile::tempdir_in(&room).expect("room"));
    let state = tempfile::tempdir_in(&room).expect("room");
    for i in 0..files {
        let folder = src.path().join(format!("folder {:05}", i / 1000));
        if i % 1000 == 0 {
            fs::create_dir(&folder).expect("room");
        }
        fs::write(folder.join(format!("picture {i:08}.jpeg")), format!("{i} is in here").repeat(3))
            .expect("room");
    }
    let (base, _) = memory();
    let mut at = Instant::now();
    let mut tell = |what: &str| {
        let ((now, most), took) = (memory(), at.elapsed().as_secs_f64());
        let each = |bytes: f64| (bytes - base) / files as f64;
        println!(
            "{what:16} {took:7.1} s, {:7.0} files/s; {:6.1} bytes of memory a file above the base, {:6.1} at most",
            files as f64 / took,
            each(now),
            each(most)
        );
        at = Instant::now();
        each(now)
    };
    let (manifest, problems) = index_path(src.path(), state.path(), &mut |_| true).expect("readable");
    assert_eq!((problems.len(), manifest.blocks()), (0, files));
    let manifest = Arc::new(manifest);
    tell("indexed");
    let source = BlockReader::for_source(src.path(), manifest.clone()).expect("there");
    let opened = Staging::open(dst.path(), state.path(), RunId([1; 16]), manifest.clone(), &[], &|| true);
    let staging = opened.expect("usable").staging;
    let begun = tell("opened");
    for block in 0..files {
        staging.write(block, source.read(block).expect("unchanged")).expect("good");
    }
    let written = tell("put in place");
    assert_eq!(staging.finalize(), []);
    let ended = tell("finalized");
    drop((staging, source));
    let again =
        Staging::open(dst.path(), &state.path().join("again"), RunId([2; 16]), manifest, &[], &|| true);
    assert_eq!(again.expect("usable").reused, files);
    let found = tell("found again");
    for each in [begun, written, ended, found] {
        assert!(each <= 128.0, "{each} bytes a file");
    }
}
