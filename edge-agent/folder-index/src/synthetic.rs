//! An index of files that do not exist: what ten million cost. Run by hand; the figures are in
//! docs/engine.md.

use std::fs;
use std::io::Write;
use std::time::Instant;

use sync_core::merkle::block_hash;

use crate::index::Index;
use crate::record::{Content, FolderId, Kind, Record, Stamp, Time};

const FOLDER_FILES: u64 = 100;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn resident(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or_default() << 10
}

fn stamp(n: u64) -> Stamp {
    let time = Time { seconds: 1_700_000_000 + (n / 1000) as i64, nanos: (n * 7919 % 1_000_000_000) as u32 };
    Stamp {
        size: 1 + n % 32_768,
        mtime: time,
        ctime: time,
        ino: 10_000_000 + n,
        dev: 0,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        links: 1,
        sparse: false,
    }
}

fn file(n: u64) -> Record {
    let content = Content { root: block_hash(&n.to_le_bytes()), weak: n as u32, blocks: 0, settled: true };
    Record { sequence: 0, stamp: stamp(n), attributes: None, kind: Kind::File(Some(content)) }
}

fn folder(id: FolderId, n: u64) -> Record {
    Record { sequence: 0, stamp: stamp(n), attributes: None, kind: Kind::Folder(id) }
}

#[test]
#[ignore = "measures an index of ten million entries: minutes and 4 GB of disk"]
fn ten_million_files_keep_to_the_ceiling() {
    let files = number("FOLDER_INDEX_FILES", 10_000_000);
    let data = tempfile::tempdir().expect("a folder");
    let place = data.path().join("index");
    let index = Index::open(&place, data.path()).expect("opened");
    let base = resident("VmRSS:");
    let begin = Instant::now();
    index.write(|tables| tables.put(FolderId::ABOVE, b"", folder(FolderId::ROOT, 0))).expect("stored");
    let mut inside = Vec::new();
    for batch in 0..files.div_ceil(10_000) {
        index
            .write(|tables| {
                for n in batch * 10_000..((batch + 1) * 10_000).min(files) {
                    if n % FOLDER_FILES == 0 {
                        let id = tables.new_folder();
                        let name = format!("folder-{:08}", n / FOLDER_FILES);
                        tables.put(FolderId::ROOT, name.as_bytes(), folder(id, n))?;
                        inside = vec![id];
                    }
                    tables.put(inside[0], format!("file-{n:09}.dat").as_bytes(), file(n))?;
                }
                Ok(())
            })
            .expect("stored");
        index.merge_contents(false).expect("merged");
    }
    let took = begin.elapsed();
    let disk: u64 = fs::read_dir(&place)
        .expect("a folder")
        .map(|item| item.expect("an entry").metadata().expect("stat").len())
        .sum();
    println!("{files} records stored in {took:.1?}: {:.0}/s", files as f64 / took.as_secs_f64());
    println!("on disk {} MB: {} bytes a file", disk >> 20, disk / files);
    drop(index);
    let begin = Instant::now();
    let index = Index::open(&place, data.path()).expect("opened");
    let snapshot = index.snapshot().expect("read");
    assert_eq!(snapshot.walk().take(1000).count(), 1000);
    println!("opened and the first thousand told in {:.1?}", begin.elapsed());
    // What is promised is for a million.
    assert!(begin.elapsed().as_secs() < 3 * (files / 1_000_000).max(1));
    let begin = Instant::now();
    for n in (0..files).step_by((files / 1000) as usize) {
        let places = index.find_content(&block_hash(&n.to_le_bytes()), 1 + n % 32_768).expect("read");
        assert_eq!(places[0].path.rsplit(|&b| b == b'/').next(), Some(format!("file-{n:09}.dat").as_bytes()));
    }
    println!("by content: {:.1?} each", begin.elapsed() / 1000);
    let begin = Instant::now();
    let mut flat = std::io::BufWriter::new(fs::File::create(data.path().join("flat")).expect("a file"));
    let mut count = 0;
    for entry in snapshot.walk() {
        let entry = entry.expect("read");
        flat.write_all(&event_schema::encode(&(&entry.path, &entry.record))).expect("written");
        count += 1;
    }
    flat.into_inner().expect("written").sync_all().expect("synced");
    println!(
        "all {count} told in order, and written as a flat file of {} MB: {:.1?}",
        fs::metadata(data.path().join("flat")).expect("stat").len() >> 20,
        begin.elapsed()
    );
    let begin = Instant::now();
    index.write(|tables| tables.put(inside[0], b"one more", file(files))).expect("stored");
    println!("one more record: {:.1?}", begin.elapsed());
    let most = resident("VmHWM:");
    let each = most.saturating_sub(base) as f64 / files as f64;
    println!("resident: base {} KB, most {} KB: {each:.2} bytes a file", base >> 10, most >> 10);
    assert!(each <= 128.0);
}
