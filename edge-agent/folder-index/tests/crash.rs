//! A process that scans is killed again and again; what it leaves behind is never wrong.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use folder_index::scan::{Effort, ScanOptions, Scope, Unobserved, scan};
use folder_index::{Index, Kind, Time};
use sync_core::merkle::{block_hash, tree_root};

const CHILD: &str = "FOLDER_INDEX_CRASH_CHILD";

fn options() -> ScanOptions {
    let effort = Effort { threads: 2, background: false, bytes_per_second: None };
    ScanOptions { effort, accept: true, ..ScanOptions::default() }
}

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    let Some(data) = std::env::var_os(CHILD) else { return };
    let data = Path::new(&data);
    let index = Index::open(&data.join("index"), &data.join("tree")).expect("opened");
    println!("opened");
    loop {
        scan(&index, &options(), &Scope::All, &mut Unobserved, &Arc::default(), &Arc::default())
            .expect("scanned");
    }
}

/// Checks that what is believed is true. Returns how much that is.
fn check(data: &Path) -> (u64, u64) {
    let begin = Instant::now();
    let tree = data.join("tree");
    let index = Index::open(&data.join("index"), &tree).expect("opened");
    assert!(begin.elapsed() < Duration::from_secs(3), "opened in {:?}", begin.elapsed());
    let snapshot = index.snapshot().expect("read");
    let (mut believed, mut files) = (0, 0);
    for entry in snapshot.walk() {
        let entry = entry.expect("read");
        files += u64::from(matches!(entry.record.kind, Kind::File(_)));
        let Some(content) = entry.record.content() else { continue };
        let path = tree.join(std::str::from_utf8(&entry.path).expect("our own names"));
        let Ok(stat) = fs::metadata(&path) else { continue };
        let stamp = entry.record.stamp;
        let time = |seconds, nanos| Time { seconds, nanos: nanos as u32 };
        let same =
            (stat.size(), time(stat.mtime(), stat.mtime_nsec()), time(stat.ctime(), stat.ctime_nsec()))
                == (stamp.size, stamp.mtime, stamp.ctime);
        if same && stat.ino() == stamp.ino {
            let bytes = fs::read(&path).expect("a file");
            let blocks: Vec<_> = bytes.chunks(32 << 10).map(block_hash).collect();
            assert_eq!(tree_root(&blocks), content.root, "{}", path.display());
            let known: Vec<_> = snapshot.blocks(stamp.size, content).map(|b| b.expect("read").0).collect();
            assert_eq!(known, blocks);
            believed += 1;
        }
    }
    (believed, files)
}

#[test]
fn what_a_killed_process_leaves_behind_is_never_wrong() {
    let data = tempfile::tempdir().expect("a folder");
    let tree = data.path().join("tree");
    let mut most = 0;
    for round in 0u64..25 {
        for n in 0..120u64 {
            let n = n * 7 + round * 13;
            let folder = tree.join(format!("{}", n % 11));
            fs::create_dir_all(&folder).expect("a folder");
            let len = if n % 40 == 0 { 1 << 20 } else { 50 };
            fs::write(folder.join(format!("{}", n % 400)), vec![round as u8; len]).expect("a file");
        }
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, data.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let mut out = std::io::BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("opened") {
            line.clear();
            assert!(
                std::io::BufRead::read_line(&mut out, &mut line).expect("read") > 0,
                "it ended by itself"
            );
        }
        // The moment is what is tested.
        std::thread::sleep(Duration::from_millis(round * 17 % 140));
        child.kill().expect("killed");
        child.wait().expect("waited for");
        most = most.max(check(data.path()).0);
    }
    assert!(most > 0, "something was known in between");
    let index = Index::open(&data.path().join("index"), &tree).expect("opened");
    scan(&index, &options(), &Scope::All, &mut Unobserved, &Arc::default(), &Arc::default())
        .expect("scanned");
    drop(index);
    let (believed, files) = check(data.path());
    assert!(believed == files && files > 100, "{believed} of {files}");
}
