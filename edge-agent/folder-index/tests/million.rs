//! What the index costs with a million files. Run by hand; the figures are in docs/engine.md.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use folder_index::scan::{Effort, Outcome, Progress, ScanOptions, Scope, Unobserved, scan};
use folder_index::{Index, Kind};

fn files() -> usize {
    std::env::var("FOLDER_INDEX_FILES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000)
}

/// 10,000 folders of 100 files for a million, 0 to 2000 bytes each, no two alike.
fn make_tree(root: &Path, files: usize) {
    let mut bytes = vec![0u8; 2000];
    for folder in 0..files.div_ceil(100) {
        let path = root.join(format!("part-{:03}/folder-{folder:06}", folder / 100));
        fs::create_dir_all(&path).expect("a folder");
        for file in 0..100.min(files - folder * 100) {
            let n = folder * 100 + file;
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            fs::write(path.join(format!("file-{n:08}.dat")), &bytes[..8 + n % 1993]).expect("a file");
        }
    }
}

/// Resident bytes of this process: now, and the most ever.
fn resident() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").expect("proc");
    let of = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or_default() << 10
    };
    (of("VmRSS:"), of("VmHWM:"))
}

fn run(index: &Index, scope: &Scope) -> Outcome {
    let options = ScanOptions {
        effort: Effort { threads: 2, background: false, ..Effort::default() },
        ..ScanOptions::default()
    };
    let stop = Arc::new(AtomicBool::new(false));
    let progress = Arc::new(Progress::default());
    scan(index, &options, scope, &mut Unobserved, &progress, &stop).expect("scanned")
}

fn size_of(folder: &Path) -> u64 {
    fs::read_dir(folder).expect("a folder").map(|f| f.expect("a file").metadata().expect("stat").len()).sum()
}

#[test]
#[ignore = "measures a million real files: minutes and 5 GB of disk"]
fn a_million_files() {
    let data = tempfile::tempdir().expect("a folder");
    let (tree, folder) = (data.path().join("tree"), data.path().join("index"));
    let count = files();
    let begin = Instant::now();
    make_tree(&tree, count);
    println!("{count} files made in {:.1?}", begin.elapsed());
    let index = Index::open(&folder, &tree).expect("opened");
    let (base, _) = resident();
    let begin = Instant::now();
    let outcome = run(&index, &Scope::All);
    let took = begin.elapsed();
    let (now, most) = resident();
    println!(
        "first index: {took:.1?}, {:.0} files/s, {:.1} MB/s; {} entries, {} hashed, {} problems",
        count as f64 / took.as_secs_f64(),
        outcome.bytes as f64 / took.as_secs_f64() / 1e6,
        outcome.entries,
        outcome.hashed,
        outcome.problems.len(),
    );
    println!(
        "memory: base {} KB, after {} KB, most {} KB: {:.1} bytes a file at most; on disk {} bytes a file",
        base >> 10,
        now >> 10,
        most >> 10,
        most.saturating_sub(base) as f64 / count as f64,
        size_of(&folder) / count as u64,
    );
    assert_eq!(outcome.hashed, count as u64);
    let counters = index.counters().expect("read");
    assert_eq!(counters.files, count as u64);
    for _ in 0..2 {
        let begin = Instant::now();
        let again = run(&index, &Scope::All);
        println!(
            "rescan of what is unchanged: {:.2?}; {} hashed, sequence {} → {}",
            begin.elapsed(),
            again.hashed,
            counters.sequence,
            index.counters().expect("read").sequence
        );
    }
    drop(index);
    let begin = Instant::now();
    let index = Index::open(&folder, &tree).expect("opened");
    let snapshot = index.snapshot().expect("read");
    let first = snapshot.walk().take(1000).count();
    println!("opened and the first {first} entries told: {:.1?}", begin.elapsed());
    let begin = Instant::now();
    let all = snapshot.walk().filter(Result::is_ok).count();
    println!("all {all} entries in order: {:.2?}", begin.elapsed());
    let begin = Instant::now();
    let mut found = Vec::new();
    for n in (0..count).step_by((count / 1000).max(1)) {
        let folder = n / 100;
        let path = format!("part-{:03}/folder-{folder:06}/file-{n:08}.dat", folder / 100);
        found.push(snapshot.entry(path.as_bytes()).expect("read").expect("there"));
    }
    println!("by path: {:.1?} each", begin.elapsed() / found.len() as u32);
    let begin = Instant::now();
    for record in &found {
        let content = record.content().expect("settled");
        let places = index.find_content(&content.root, record.stamp.size).expect("read");
        assert_eq!(places.len(), 1);
    }
    println!("by content: {:.1?} each", begin.elapsed() / found.len() as u32);
    let begin = Instant::now();
    let changes = snapshot.changes(counters.sequence - 1000, usize::MAX).expect("read");
    println!("the last {} changes: {:.1?}", changes.len(), begin.elapsed());
    let folder = snapshot.entry(b"part-000/folder-000007").expect("read").expect("there");
    let Kind::Folder(id) = folder.kind else { panic!("a folder") };
    let name = b"file-00000700.dat".to_vec();
    fs::write(tree.join("part-000/folder-000007/file-00000700.dat"), b"changed").expect("written");
    let begin = Instant::now();
    let outcome = run(&index, &Scope::Names(vec![(id, vec![name])]));
    println!("one changed file indexed: {:.1?}; {} hashed", begin.elapsed(), outcome.hashed);
    assert_eq!(outcome.hashed, 1);
    println!("memory at the end: {} KB, most {} KB", resident().0 >> 10, resident().1 >> 10);
}

#[test]
#[ignore = "measures hashing: a gigabyte of disk"]
fn one_large_file() {
    let data = tempfile::tempdir().expect("a folder");
    let (tree, folder) = (data.path().join("tree"), data.path().join("index"));
    fs::create_dir_all(&tree).expect("a folder");
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for file in 0..2 {
        let mut out = fs::File::create(tree.join(format!("{file}"))).expect("a file");
        for _ in 0..512 {
            std::io::Write::write_all(&mut out, &block).expect("written");
        }
    }
    let index = Index::open(&folder, &tree).expect("opened");
    let begin = Instant::now();
    let outcome = run(&index, &Scope::All);
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "two files of 512 MiB: {:.0} MB/s; resident at most {} KB",
        outcome.bytes as f64 / seconds / 1e6,
        resident().1 >> 10
    );
    assert_eq!(outcome.bytes, 1 << 30);
}
