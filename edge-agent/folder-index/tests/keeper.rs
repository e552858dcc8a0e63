//! A keeper on a real folder: what changes is in the index soon after, with and without room for watches.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use folder_index::scan::{Effort, ScanOptions, Scope, Unobserved, scan};
use folder_index::{Index, Keeper, KeeperConfig, Kind, Phase, Suspicion};
use sync_core::merkle::{Hash, block_hash};

const PATIENCE: Duration = Duration::from_secs(20);

struct Bed {
    _data: tempfile::TempDir,
    tree: PathBuf,
    keeper: Keeper,
    changed: Receiver<u64>,
}

impl Bed {
    fn new(config: KeeperConfig, make: impl FnOnce(&Path)) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let tree = data.path().join("tree");
        fs::create_dir(&tree).expect("a folder");
        make(&tree);
        let index = Arc::new(Index::open(&data.path().join("index"), &tree).expect("opened"));
        let (tell, changed) = channel();
        let keeper = Keeper::start(index, config, move |sequence| {
            let _ = tell.send(sequence);
        });
        let bed = Self { _data: data, tree, keeper, changed };
        bed.until("the first scan", |bed| bed.keeper.status().scans > 0);
        bed
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.tree.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, bytes).expect("a file");
    }

    /// Waits until it is so, woken by the keeper's word. Returns how long that took.
    fn until(&self, what: &str, is: impl Fn(&Self) -> bool) -> Duration {
        let begin = Instant::now();
        while !is(self) {
            let late = begin.elapsed() >= PATIENCE;
            assert!(!late, "{what}: {:?}\n{:#?}", self.keeper.status(), self.differences());
            let _ = self.changed.recv_timeout(Duration::from_millis(20));
        }
        begin.elapsed()
    }

    fn holds(&self, path: &str, bytes: &[u8]) -> bool {
        let snapshot = self.keeper.index().snapshot().expect("read");
        let record = snapshot.entry(path.as_bytes()).expect("read");
        record.is_some_and(|r| r.content().is_some_and(|content| content.root == block_hash(bytes)))
    }

    fn knows(&self, path: &str) -> bool {
        self.keeper.index().snapshot().expect("read").entry(path.as_bytes()).expect("read").is_some()
    }

    /// What is there and not as it is in the index, and the other way round.
    fn differences(&self) -> Vec<String> {
        fn there(folder: &Path, below: &str, all: &mut BTreeMap<String, Option<Hash>>) {
            for item in fs::read_dir(folder).expect("a folder") {
                let item = item.expect("an entry");
                let path = format!("{below}{}", item.file_name().to_str().expect("our own names"));
                if item.file_type().expect("a kind").is_dir() {
                    there(&item.path(), &format!("{path}/"), all);
                    all.insert(path, None);
                } else {
                    all.insert(path, Some(block_hash(&fs::read(item.path()).expect("a file"))));
                }
            }
        }
        let mut all = BTreeMap::new();
        there(&self.tree, "", &mut all);
        let snapshot = self.keeper.index().snapshot().expect("read");
        let mut different = Vec::new();
        if snapshot.counters().entries() != all.len() as u64 {
            different.push(format!("{} entries, {} counted", all.len(), snapshot.counters().entries()));
        }
        for entry in snapshot.walk().map(|entry| entry.expect("read")) {
            let path = String::from_utf8(entry.path.clone()).expect("our own names");
            let known = match entry.record.kind {
                Kind::Folder(_) if path.is_empty() => continue,
                Kind::Folder(_) => None,
                _ => Some(entry.record.content().map(|content| content.root).unwrap_or_default()),
            };
            match all.remove(&path) {
                Some(there) if there == known => {}
                Some(_) => different.push(format!("{path} is another")),
                None => different.push(format!("{path} is not there")),
            }
        }
        different.extend(all.keys().map(|path| format!("{path} is not known")));
        different
    }

    /// Everything that is there is in the index, and nothing else.
    fn complete(&self) -> bool {
        self.differences().is_empty()
    }
}

fn config() -> KeeperConfig {
    let effort = Effort { threads: 2, background: false, bytes_per_second: None };
    KeeperConfig { scan: ScanOptions { effort, ..ScanOptions::default() }, ..KeeperConfig::default() }
}

fn some_tree(tree: &Path) {
    for n in 0..200 {
        let folder = tree.join(format!("d{}/e{}", n % 5, n % 20));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(format!("f{n}")), format!("{n}")).expect("a file");
    }
}

#[test]
fn what_changes_is_noticed_without_a_scan() {
    let bed = Bed::new(config(), some_tree);
    let status = bed.keeper.status();
    assert_eq!((status.watched, status.unwatched, status.phase), (26, 0, Phase::Current));
    bed.write("d0/e0/f0", b"changed");
    let took = bed.until("a changed file", |bed| bed.holds("d0/e0/f0", b"changed"));
    println!("a changed file was indexed after {took:?}");
    bed.write("new/folders/deep/file", b"new");
    bed.until("a file in new folders", |bed| bed.holds("new/folders/deep/file", b"new"));
    bed.write("new/folders/deep/second", b"later");
    bed.until("new folders are watched", |bed| bed.holds("new/folders/deep/second", b"later"));
    fs::remove_file(bed.tree.join("d1/e1/f1")).expect("removed");
    bed.until("a removed file", |bed| !bed.knows("d1/e1/f1"));
    fs::rename(bed.tree.join("d2"), bed.tree.join("moved")).expect("renamed");
    bed.until("a renamed folder", |bed| bed.knows("moved/e2/f2") && !bed.knows("d2"));
    bed.write("moved/e2/f2", b"under its new name");
    bed.until("and it is watched", |bed| bed.holds("moved/e2/f2", b"under its new name"));
    let hashed = bed.keeper.status().hashed;
    let outside = bed.tree.with_file_name("outside");
    fs::rename(bed.tree.join("d3"), &outside).expect("renamed");
    bed.until("a folder moved away", |bed| !bed.knows("d3"));
    fs::write(outside.join("e3/f3"), b"not ours any more").expect("written");
    bed.write("last", b"x");
    bed.until("what comes after", |bed| bed.holds("last", b"x"));
    let status = bed.keeper.status();
    assert_eq!((status.scans, status.overflows), (1, 0), "no scan of everything");
    assert_eq!(status.hashed, hashed + 1);
    assert!(bed.complete());
}

#[test]
fn a_file_that_is_written_to_is_waited_for() {
    let bed = Bed::new(config(), some_tree);
    let hashed = bed.keeper.status().hashed;
    let mut file = fs::File::create(bed.tree.join("slow")).expect("a file");
    for n in 0..15 {
        std::io::Write::write_all(&mut file, &[n]).expect("written");
        // What is tested is that this pause is not taken for the end.
        std::thread::sleep(Duration::from_millis(40));
    }
    assert_eq!(bed.keeper.status().hashed, hashed);
    drop(file);
    let whole: Vec<u8> = (0..15).collect();
    bed.until("the whole file", |bed| bed.holds("slow", &whole));
    assert_eq!(bed.keeper.status().hashed, hashed + 1, "read once");
}

#[test]
fn a_storm_of_renames_and_writes_ends_in_the_truth() {
    let bed = Bed::new(config(), some_tree);
    for round in 0..40 {
        for n in 0..5 {
            let (a, b) = (bed.tree.join(format!("d{n}")), bed.tree.join(format!("d{}", (n + round) % 5)));
            let aside = bed.tree.join("aside");
            let _ = fs::rename(&a, &aside);
            let _ = fs::rename(&b, &a);
            let _ = fs::rename(&aside, &b);
            let _ = fs::remove_file(a.join(format!("e{n}/f{n}")));
            bed.write(&format!("d{n}/storm{round}/x"), format!("{round} {n}").as_bytes());
            if round % 3 == 0 {
                let _ = fs::remove_dir_all(bed.tree.join(format!("d{n}/storm{}", round / 2)));
            }
        }
    }
    bed.until("everything", Bed::complete);
    // Every folder is watched, wherever it came from.
    bed.write("d4/storm39/afterwards", b"x");
    bed.until("what comes after", |bed| bed.holds("d4/storm39/afterwards", b"x"));
}

#[test]
fn a_folder_that_somebody_else_took_in_is_watched() {
    let mut config = config();
    config.settle.done = Duration::from_millis(500);
    let bed = Bed::new(config, some_tree);
    let watched = bed.keeper.status().watched;
    bed.write("new/folder/file", b"x");
    // As a run of a job does, before what was noticed has come to rest.
    let (progress, stop) = (Arc::default(), Arc::default());
    let options = ScanOptions::default();
    scan(bed.keeper.index(), &options, &Scope::All, &mut Unobserved, &progress, &stop).expect("scanned");
    assert!(bed.knows("new/folder/file"));
    bed.until("two watches more", |bed| bed.keeper.status().watched == watched + 2);
    bed.write("new/folder/file", b"later");
    bed.until("what comes after", |bed| bed.holds("new/folder/file", b"later"));
    assert_eq!(bed.keeper.status().scans, 1);
}

#[test]
fn without_room_for_watches_scans_find_the_rest() {
    let mut config = KeeperConfig { watches_max: 10, ..config() };
    config.rescan_unwatched = Duration::from_millis(300);
    let bed = Bed::new(config, some_tree);
    let status = bed.keeper.status();
    assert_eq!((status.watched, status.unwatched), (10, 16));
    for n in 0..200 {
        bed.write(&format!("d{}/e{}/f{n}", n % 5, n % 20), b"changed");
    }
    bed.until("all of it", Bed::complete);
    assert!(bed.keeper.status().scans > 1);
}

#[test]
fn lost_notices_are_made_up_for_by_a_scan() {
    let mut config = config();
    config.settle.names_max = 100;
    let bed = Bed::new(config, some_tree);
    for n in 0..3000 {
        fs::write(bed.tree.join(format!("d0/{n}")), b"").expect("a file");
    }
    bed.until("all of them", |bed| bed.keeper.index().counters().expect("read").files == 3200);
    bed.until("a scan", |bed| bed.keeper.status().scans > 1);
    bed.write("d0/later", b"x");
    bed.until("and names count again", |bed| bed.holds("d0/later", b"x"));
}

#[test]
fn much_that_goes_bit_by_bit_is_asked_about_too() {
    let bed = Bed::new(config(), some_tree);
    for n in 0..5 {
        fs::remove_dir_all(bed.tree.join(format!("d{n}"))).expect("removed");
        // Each of these comes to rest by itself.
        std::thread::sleep(Duration::from_millis(150));
    }
    bed.until("suspicion", |bed| matches!(bed.keeper.status().suspicion, Some(Suspicion::ManyGone { .. })));
    let kept = bed.keeper.index().counters().expect("read").files;
    assert!(kept >= 80, "{kept} are kept until somebody says so");
    bed.keeper.accept();
    bed.until("what was said", |bed| bed.keeper.index().counters().expect("read").files == 0);
    bed.until("no suspicion", |bed| bed.keeper.status().suspicion.is_none());
}

#[test]
fn other_rules_are_obeyed_at_once() {
    let bed = Bed::new(config(), some_tree);
    bed.write(".flotillaignore", b"/d1/\n");
    bed.until("the rule", |bed| !bed.knows("d1") && bed.knows("d2"));
    fs::remove_file(bed.tree.join(".flotillaignore")).expect("removed");
    bed.until("no rule", |bed| bed.knows("d1/e1/f1"));
}
