//! Scans of real folders, held against an independent walk.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sync_core::merkle::{Hash, block_hash, tree_root};

use super::*;
use crate::snapshot::Change;
use crate::tables::rows_of;

struct Bed {
    _data: tempfile::TempDir,
    tree: PathBuf,
    index_folder: PathBuf,
    index: Index,
    options: ScanOptions,
}

impl Bed {
    fn new() -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let (tree, index_folder) = (data.path().join("tree"), data.path().join("index"));
        fs::create_dir(&tree).expect("a folder");
        let index = Index::open(&index_folder, &tree).expect("opened");
        let effort = Effort { threads: 2, background: false, bytes_per_second: None };
        Self {
            _data: data,
            tree,
            index_folder,
            index,
            options: ScanOptions { effort, ..ScanOptions::default() },
        }
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.tree.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, bytes).expect("a file");
    }

    fn scan(&self) -> Outcome {
        self.scan_of(&Scope::All)
    }

    fn scan_of(&self, scope: &Scope) -> Outcome {
        let (progress, stop) = (Arc::default(), Arc::default());
        scan(&self.index, &self.options, scope, &mut Unobserved, &progress, &stop).expect("scanned")
    }

    /// Scans these names, and calls `meddle` with the path of each folder that is gone into.
    fn scan_names(&self, names: &[(FolderId, &str)], meddle: impl FnMut(&[u8])) -> Outcome {
        let scope = Scope::of_names(names.iter().map(|(folder, name)| (*folder, name.as_bytes().to_vec())));
        let (progress, stop) = (Arc::default(), Arc::default());
        let mut meddler = Meddler(meddle);
        scan(&self.index, &self.options, &scope, &mut meddler, &progress, &stop).expect("scanned")
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.tree.join(from), self.tree.join(to)).expect("renamed");
    }

    fn folder(&self, path: &str) -> FolderId {
        match self.index.snapshot().expect("read").entry(path.as_bytes()).expect("read") {
            Some(Record { kind: Kind::Folder(id), .. }) => id,
            other => panic!("{path}: {other:?}"),
        }
    }

    fn sequence(&self) -> u64 {
        self.index.counters().expect("read").sequence
    }

    /// Paths changed since, and whether they are there.
    fn changes(&self, after: u64) -> Vec<(String, bool)> {
        let changes = self.index.snapshot().expect("read").changes(after, usize::MAX).expect("read");
        let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        changes
            .iter()
            .map(|change| match change {
                Change::There(entry) => (text(&entry.path), true),
                Change::Gone { path, .. } => (text(path), false),
            })
            .collect()
    }

    /// The index holds exactly what an independent walk finds, in the order of a manifest.
    fn check(&self) {
        let snapshot = self.index.snapshot().expect("read");
        let mut expected = BTreeMap::new();
        independent(&self.tree, &mut Vec::new(), &mut expected);
        let mut seen = Vec::new();
        let mut bytes = 0;
        for entry in snapshot.walk() {
            let entry = entry.expect("read");
            let components: Vec<Vec<u8>> =
                entry.path.split(|&b| b == b'/').filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
            let is = match &entry.record.kind {
                Kind::Folder(_) => Is::Folder,
                Kind::Symlink(target) => Is::Symlink(target.clone()),
                Kind::File(content) => {
                    let content = content.as_ref().expect("known");
                    let size = entry.record.stamp.size;
                    let blocks: Vec<Hash> =
                        snapshot.blocks(size, content).map(|b| b.expect("read").0).collect();
                    assert_eq!(tree_root(&blocks), content.root, "{}", entry.path.escape_ascii());
                    bytes += size;
                    Is::File(size, blocks)
                }
            };
            assert_eq!(
                snapshot.entry(&entry.path).expect("read").as_ref(),
                Some(&entry.record),
                "looked up by its path"
            );
            seen.push((components, is));
        }
        let expected: Vec<_> = expected.into_iter().collect();
        let names =
            |list: &[(Vec<Vec<u8>>, Is)]| list.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
        assert_eq!(names(&seen), names(&expected));
        assert!(seen == expected, "contents");
        let counters = snapshot.counters();
        assert_eq!((counters.entries() + 1, counters.bytes), (seen.len() as u64, bytes));
        // Every entry is told once as changed since the beginning.
        let told = self.changes(0).into_iter().filter(|(_, there)| *there).count();
        assert_eq!(told, seen.len());
    }
}

#[derive(Debug, PartialEq)]
enum Is {
    Folder,
    File(u64, Vec<Hash>),
    Symlink(Vec<u8>),
}

/// Does something at the moment when a scan goes into a folder.
struct Meddler<F>(F);

impl<F: FnMut(&[u8])> Observer for Meddler<F> {
    fn enter(&mut self, _: FolderId, _: BorrowedFd<'_>, path: &[u8]) {
        (self.0)(path);
    }

    fn watches(&self, _: FolderId) -> bool {
        true
    }
}

fn independent(folder: &Path, at: &mut Vec<Vec<u8>>, found: &mut BTreeMap<Vec<Vec<u8>>, Is>) {
    found.insert(at.clone(), Is::Folder);
    for item in fs::read_dir(folder).expect("a folder") {
        let item = item.expect("an entry");
        at.push(item.file_name().into_vec());
        let kind = item.file_type().expect("a kind");
        if kind.is_dir() {
            if !at.iter().any(|name| name == b".flotilla") {
                independent(&item.path(), at, found);
            }
        } else if kind.is_symlink() {
            let target = fs::read_link(item.path()).expect("a link");
            found.insert(at.clone(), Is::Symlink(target.into_os_string().into_vec()));
        } else if kind.is_file() {
            let bytes = fs::read(item.path()).expect("a file");
            let blocks = bytes.chunks(32 << 10).map(block_hash).collect();
            found.insert(at.clone(), Is::File(bytes.len() as u64, blocks));
        }
        at.pop();
    }
}

fn ordinary(bed: &Bed) {
    bed.write("a/x", b"one");
    bed.write("a.b", b"sorts behind what is in a");
    bed.write("a/empty", b"");
    bed.write("large", &vec![7; 40 * 32768 + 5]);
    let many: Vec<u8> = (0..1000 * 32768u32).map(|i| (i >> 13) as u8).collect();
    bed.write("rows/two", &many);
    bed.write("b/c/d", &[1; 32768]);
    bed.write("b/c/e", &[1; 32769]);
    symlink("../a/x", bed.tree.join("b/link")).expect("a link");
}

#[test]
fn what_is_there_is_in_the_index_and_what_did_not_change_is_not_read_again() {
    let bed = Bed::new();
    ordinary(&bed);
    let first = bed.scan();
    assert!(first.problems.is_empty() && first.suspicion.is_none(), "{first:?}");
    assert_eq!(first.hashed, 7);
    assert!(rows_of(1000) == 3 && first.bytes > 1000 * 32768);
    bed.check();
    let before = bed.sequence();
    let second = bed.scan();
    assert_eq!((second.hashed, second.bytes, bed.sequence()), (0, 0, before));
    bed.check();
    drop(bed.index.snapshot().expect("read"));
    let Bed { _data, tree, index_folder, index, options } = bed;
    drop(index);
    let index = Index::open(&index_folder, &tree).expect("opened");
    let bed = Bed { _data, tree, index_folder, index, options };
    assert!(bed.index.is_complete().expect("read"));
    bed.check();
    assert_eq!(bed.scan().hashed, 0, "nor after a restart");
}

#[test]
fn changes_are_told_once_and_in_order() {
    let bed = Bed::new();
    ordinary(&bed);
    bed.scan();
    let before = bed.sequence();
    bed.write("a/x", b"two");
    bed.write("a/new", b"new");
    fs::remove_file(bed.tree.join("b/link")).expect("removed");
    fs::set_permissions(bed.tree.join("a.b"), fs::Permissions::from_mode(0o600)).expect("changed");
    let outcome = bed.scan();
    assert_eq!((outcome.hashed, outcome.gone), (3, 1));
    bed.check();
    let mut told = bed.changes(before);
    told.sort();
    let expected =
        [("a", true), ("a.b", true), ("a/new", true), ("a/x", true), ("b", true), ("b/link", false)];
    assert_eq!(told, expected.map(|(path, there)| (path.to_owned(), there)));
    let now = bed.sequence();
    // A touch that changes nothing for others but the inode's own time.
    fs::set_permissions(bed.tree.join("a.b"), fs::Permissions::from_mode(0o600)).expect("changed");
    assert_eq!(bed.scan().hashed, 1);
    assert_eq!(bed.sequence(), now, "others would see no difference");
    assert_eq!(bed.scan().hashed, 0, "and it is not read again");
}

#[test]
fn kinds_change() {
    let bed = Bed::new();
    bed.write("x/inside/deep", b"1");
    bed.write("y", b"2");
    bed.write("z", b"3");
    bed.scan();
    fs::remove_dir_all(bed.tree.join("x")).expect("removed");
    bed.write("x", b"a file now");
    fs::remove_file(bed.tree.join("y")).expect("removed");
    bed.write("y/inside", b"a folder now");
    fs::remove_file(bed.tree.join("z")).expect("removed");
    symlink("x", bed.tree.join("z")).expect("a link");
    let before = bed.sequence();
    bed.scan();
    bed.check();
    let told = bed.changes(before);
    assert!(told.contains(&("x/inside/deep".into(), false)), "{told:?}");
}

#[test]
fn a_renamed_folder_is_not_read_again() {
    let bed = Bed::new();
    ordinary(&bed);
    bed.write("old/deep/er/file", &[9; 100_000]);
    bed.write("old/deep/one", &[8; 10]);
    bed.scan();
    for (from, to) in [("old", "a-new"), ("a-new", "z/new")] {
        fs::create_dir_all(bed.tree.join("z")).expect("a folder");
        fs::rename(bed.tree.join(from), bed.tree.join(to)).expect("renamed");
        let outcome = bed.scan();
        assert_eq!((outcome.hashed, outcome.suspicion), (0, None), "{to}");
        bed.check();
        assert_eq!(bed.scan().hashed, 0);
    }
    let content = tree_root(&[9u8; 100_000].chunks(32 << 10).map(block_hash).collect::<Vec<_>>());
    let places = bed.index.find_content(&content, 100_000).expect("read");
    assert_eq!(places.iter().map(|entry| entry.path.as_slice()).collect::<Vec<_>>(), [b"z/new/deep/er/file"]);
}

#[test]
fn contents_are_found_wherever_they_are() {
    let bed = Bed::new();
    for n in 0..50u8 {
        bed.write(&format!("same/{n}"), b"the same everywhere");
        bed.write(&format!("own/{n}"), &[n; 70_000]);
    }
    bed.scan();
    for merged in [false, true] {
        if merged {
            bed.index.merge_all_contents().expect("merged");
        }
        let same = bed.index.find_content(&block_hash(b"the same everywhere"), 19).expect("read");
        assert_eq!(same.len(), 16, "as many as are told");
        for n in 0..50u8 {
            let root = tree_root(&[n; 70_000].chunks(32 << 10).map(block_hash).collect::<Vec<_>>());
            let found = bed.index.find_content(&root, 70_000).expect("read");
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].path, format!("own/{n}").into_bytes());
        }
        assert!(bed.index.find_content(&[0; 32], 5).expect("read").is_empty());
    }
    bed.write("own/0", b"other");
    bed.scan();
    let root = tree_root(&[0u8; 70_000].chunks(32 << 10).map(block_hash).collect::<Vec<_>>());
    assert!(bed.index.find_content(&root, 70_000).expect("read").is_empty(), "a row that leads nowhere");
    let Bed { _data, tree, index_folder, index, .. } = bed;
    drop(index);
    fs::write(index_folder.join("contents"), b"not a table").expect("written");
    let index = Index::open(&index_folder, &tree).expect("opened");
    assert_eq!(index.find_content(&block_hash(b"other"), 5).expect("read").len(), 1, "made again");
}

#[test]
fn hostile_names_and_kinds_are_problems_and_not_the_end() {
    let bed = Bed::new();
    ordinary(&bed);
    fs::create_dir_all(bed.tree.join(".flotilla/runs")).expect("a folder");
    bed.write(".Flotilla/x", b"reserved, for who folds case");
    bed.write("sub/.flotilla/x", b"at any depth");
    for name in
        [&b"line\nbreak"[..], b"not \xff\xfe utf-8", b"\x01\x7f", b" ", b"...", b"-rf", b"a\\b", b"CON"]
    {
        fs::write(bed.tree.join(std::ffi::OsStr::from_bytes(name)), name).expect("a file");
    }
    fs::write(bed.tree.join("n".repeat(255)), b"long").expect("a file");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        bed.tree.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("a pipe");
    let _socket = std::os::unix::net::UnixListener::bind(bed.tree.join("socket")).expect("a socket");
    symlink("loop", bed.tree.join("loop")).expect("a link");
    symlink("/etc", bed.tree.join("out")).expect("a link");
    let mut problems = bed.scan().problems;
    problems.sort_by(|a, b| a.path.cmp(&b.path));
    let told: Vec<_> = problems.iter().map(|p| (p.class, p.path.as_slice())).collect();
    assert_eq!(
        told,
        [
            (ProblemClass::UnsafeName, &b".Flotilla"[..]),
            (ProblemClass::UnsupportedKind, b"pipe"),
            (ProblemClass::UnsupportedKind, b"socket")
        ]
    );
    fs::remove_dir_all(bed.tree.join(".Flotilla")).expect("removed");
    bed.scan();
    bed.check();
    // A file that becomes a pipe is not there any more.
    fs::remove_file(bed.tree.join("a.b")).expect("removed");
    fs::rename(bed.tree.join("pipe"), bed.tree.join("a.b")).expect("renamed");
    bed.scan();
    bed.check();
}

#[test]
fn deep_and_wide_folders_take_neither_stack_nor_many_open_files() {
    let bed = Bed::new();
    let mut path = bed.tree.clone();
    for n in 0..500 {
        path.push("d");
        if n % 50 == 0 {
            fs::create_dir_all(path.join("z/inside")).expect("a folder");
        }
    }
    fs::create_dir_all(&path).expect("a folder");
    fs::write(path.join("bottom"), b"deep").expect("a file");
    for n in 0..30_000 {
        fs::write(bed.tree.join(format!("d/{n}")), b"").expect("a file");
    }
    let thread = std::thread::Builder::new().stack_size(128 << 10);
    let bed = thread
        .spawn(move || {
            let outcome = bed.scan();
            assert!(outcome.problems.is_empty(), "{:?}", outcome.problems);
            assert_eq!(outcome.entries, 500 + 20 + 1 + 30_000);
            assert_eq!(bed.index.counters().expect("read").files, 30_001);
            assert_eq!(bed.scan().hashed, 0);
            bed
        })
        .expect("a thread")
        .join()
        .expect("in a small stack");
    fs::remove_dir_all(bed.tree.join("d/d")).expect("removed");
    let outcome = bed.scan();
    assert_eq!(outcome.gone, 499 + 20 - 2 + 1, "and out again");
    bed.check();
}

#[test]
fn much_missing_at_once_is_asked_about() {
    let bed = Bed::new();
    for n in 0..100 {
        bed.write(&format!("f{}/{n}", n % 10), &[n]);
    }
    bed.scan();
    for n in 0..3 {
        fs::remove_dir_all(bed.tree.join(format!("f{n}"))).expect("removed");
    }
    let outcome = bed.scan();
    assert_eq!((outcome.gone, outcome.suspicion), (33, None));
    bed.check();
    for n in 3..8 {
        fs::remove_dir_all(bed.tree.join(format!("f{n}"))).expect("removed");
    }
    let before = bed.sequence();
    for scope in [Scope::All, Scope::Names(vec![(FolderId::ROOT, vec![b"f3".to_vec(), b"f9".to_vec()])])] {
        let outcome = bed.scan_of(&scope);
        let Some(Suspicion::ManyGone { known: 77, missing, examples }) = outcome.suspicion else {
            panic!("{outcome:?}")
        };
        assert!(missing > 38 && examples.contains(&b"f3".to_vec()));
        assert!(bed.changes(before).iter().all(|(_, there)| *there), "nothing is gone yet");
    }
    // What comes back is not missed any more.
    bed.write("f3/33", &[33]);
    let accepting = ScanOptions { accept: true, ..bed.options.clone() };
    let bed = Bed { options: accepting, ..bed };
    let outcome = bed.scan();
    assert_eq!(outcome.suspicion, None);
    bed.check();
}

#[test]
fn what_only_moved_is_not_missed() {
    let bed = Bed::new();
    for n in 0..100 {
        bed.write(&format!("all/{}/{n}", n % 7), &[n]);
    }
    bed.scan();
    for (from, to, scope) in [
        ("all", "new", Scope::All),
        ("new", "again", Scope::of_names([b"new".to_vec(), b"again".to_vec()].map(|n| (FolderId::ROOT, n)))),
    ] {
        fs::rename(bed.tree.join(from), bed.tree.join(to)).expect("renamed");
        let outcome = bed.scan_of(&scope);
        assert_eq!((outcome.suspicion, outcome.hashed), (None, 0), "{to}");
        bed.check();
    }
}

#[test]
fn another_folder_in_its_place_is_asked_about() {
    let bed = Bed::new();
    ordinary(&bed);
    bed.scan();
    let aside = bed.tree.with_file_name("aside");
    fs::rename(&bed.tree, &aside).expect("renamed");
    assert_eq!(bed.scan().suspicion, Some(Suspicion::RootGone));
    fs::create_dir(&bed.tree).expect("a folder");
    bed.write("of another disk", b"x");
    let before = bed.sequence();
    assert_eq!(bed.scan().suspicion, Some(Suspicion::OtherRoot));
    assert_eq!(bed.sequence(), before, "nothing of it is taken in");
    fs::remove_dir_all(&bed.tree).expect("removed");
    fs::rename(&aside, &bed.tree).expect("renamed");
    let outcome = bed.scan();
    assert_eq!((outcome.suspicion, outcome.hashed), (None, 0));
    bed.check();
}

#[test]
fn what_is_ignored_is_not_deleted() {
    let bed = Bed::new();
    ordinary(&bed);
    bed.write("build/out/x.o", b"1");
    bed.write("b/keep.o", b"2");
    bed.scan();
    bed.check();
    bed.write(".flotillaignore", b"*.o\n/rows/\n!keep.o\n");
    let before = bed.sequence();
    let outcome = bed.scan();
    assert!(outcome.problems.is_empty() && outcome.suspicion.is_none(), "{outcome:?}");
    let changes = bed.index.snapshot().expect("read").changes(before, usize::MAX).expect("read");
    let mut gone: Vec<_> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Gone { path, how, .. } => Some((path.as_slice(), *how)),
            Change::There(_) => None,
        })
        .collect();
    gone.sort_by_key(|(path, _)| *path);
    let expected = [&b"build/out/x.o"[..], b"rows", b"rows/two"];
    assert_eq!(gone, expected.map(|path| (path, Gone::Ignored)));
    fs::remove_file(bed.tree.join(".flotillaignore")).expect("removed");
    bed.scan();
    bed.check();
}

#[test]
fn a_file_that_was_changed_just_now_is_read_again_before_it_is_believed() {
    let mut bed = Bed::new();
    bed.options.granularity = Some(Duration::from_secs(2));
    bed.write("x", b"first");
    let outcome = bed.scan();
    assert_eq!(outcome.unsettled, [(FolderId::ROOT, b"x".to_vec())]);
    let record = bed.index.snapshot().expect("read").entry(b"x").expect("read").expect("there");
    assert!(record.content().is_none(), "not believed: another write may leave the same times");
    assert!(bed.index.find_content(&block_hash(b"first"), 5).expect("read").is_empty());
    assert_eq!(bed.scan().hashed, 1);
    std::thread::sleep(Duration::from_millis(2010));
    let outcome = bed.scan_of(&Scope::of_names(outcome.unsettled));
    assert_eq!((outcome.hashed, outcome.unsettled.len()), (1, 0));
    assert_eq!(bed.scan().hashed, 0);
    assert_eq!(bed.index.find_content(&block_hash(b"first"), 5).expect("read").len(), 1);
}

#[test]
fn the_same_size_and_time_hide_no_change() {
    let bed = Bed::new();
    bed.write("x", b"first");
    bed.scan();
    let path = bed.tree.join("x");
    let times = fs::metadata(&path).expect("stat").modified().expect("a time");
    fs::write(&path, b"other").expect("written");
    fs::File::options().write(true).open(&path).expect("opened").set_modified(times).expect("set");
    assert_eq!(bed.scan().hashed, 1, "the inode's own time cannot be set back");
    bed.check();
    // Replaced by another file with everything that a user can set.
    fs::write(bed.tree.join("y"), b"third").expect("written");
    fs::File::options()
        .write(true)
        .open(bed.tree.join("y"))
        .expect("opened")
        .set_modified(times)
        .expect("set");
    fs::rename(bed.tree.join("y"), &path).expect("renamed");
    assert_eq!(bed.scan().hashed, 1);
    bed.check();
}

#[test]
fn a_file_that_grows_while_it_is_read_is_left_for_later() {
    let bed = Bed::new();
    bed.write("quiet", &[1; 100]);
    bed.write("growing", &vec![1; 8 << 20]);
    let (path, stop) = (bed.tree.join("growing"), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let writer = std::thread::spawn(move || {
        let mut file = fs::File::options().append(true).open(path).expect("opened");
        while !stopped.load(Ordering::Relaxed) {
            std::io::Write::write_all(&mut file, &[2; 4096]).expect("written");
        }
    });
    let outcome = bed.scan();
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("written");
    assert_eq!(outcome.problems.len(), 1, "{outcome:?}");
    assert_eq!(outcome.problems[0].class, ProblemClass::SourceChanged);
    assert_eq!(outcome.unsettled, [(FolderId::ROOT, b"growing".to_vec())]);
    let record = bed.index.snapshot().expect("read").entry(b"growing").expect("read").expect("there");
    assert_eq!(record.kind, Kind::File(None), "there, but not known");
    let outcome = bed.scan_of(&Scope::of_names(outcome.unsettled));
    assert!(outcome.problems.is_empty());
    bed.check();
}

#[test]
fn names_that_were_noticed_are_looked_at_alone() {
    let bed = Bed::new();
    ordinary(&bed);
    bed.scan();
    let (root, a) = (FolderId::ROOT, bed.folder("a"));
    bed.write("a/x", b"changed");
    bed.write("a/unnoticed", b"x");
    bed.write("new/with/all", b"below");
    fs::rename(bed.tree.join("b"), bed.tree.join("c")).expect("renamed");
    let names = vec![
        (a, vec![b"x".to_vec(), b"never was".to_vec()]),
        (root, vec![b"b".to_vec(), b"c".to_vec(), b"new".to_vec(), b"a".to_vec()]),
    ];
    let outcome = bed.scan_of(&Scope::Names(names));
    assert_eq!((outcome.hashed, outcome.gone), (2, 5), "{outcome:?}");
    assert!(bed.index.snapshot().expect("read").entry(b"a/unnoticed").expect("read").is_none());
    let outcome = bed.scan();
    assert_eq!(outcome.hashed, 1);
    bed.check();
    // A folder that is gone is found from the folder above.
    let deep = bed.folder("c/c");
    fs::remove_dir_all(bed.tree.join("c")).expect("removed");
    bed.scan_of(&Scope::Trees(vec![deep]));
    bed.scan_of(&Scope::Names(vec![(root, vec![b"c".to_vec()])]));
    assert!(bed.index.snapshot().expect("read").entry(b"c").expect("read").is_none());
    bed.scan();
    bed.check();
}

#[test]
fn what_is_in_another_folder_of_that_name_is_not_taken_for_its_own() {
    let bed = Bed::new();
    bed.write("a/sub/file", b"of a");
    bed.write("b/sub/file", b"of b");
    bed.write("b/sub/other", b"of b alone");
    bed.scan();
    let sub = bed.folder("a/sub");
    // Another stands there while names below are looked at, and is away when those above are.
    for (from, to) in [("a", "aside"), ("b", "a")] {
        bed.rename(from, to);
    }
    bed.scan_names(&[(sub, "file"), (sub, "other")], |_| {});
    for (from, to) in [("a", "b"), ("aside", "a")] {
        bed.rename(from, to);
    }
    let root = FolderId::ROOT;
    let outcome = bed.scan_names(&[(root, "a"), (root, "b"), (root, "aside")], |_| {});
    assert_eq!(outcome.suspicion, None);
    bed.check();
}

#[test]
fn a_folder_that_was_elsewhere_when_it_was_to_be_read_is_read_when_it_is_back() {
    for stands_in in [false, true] {
        let bed = Bed::new();
        bed.write("a/file", b"of a");
        bed.write("b/file", b"of b");
        bed.scan();
        bed.write("c/file", b"of c");
        bed.write("new/file", b"of new");
        let root = FolderId::ROOT;
        // It is seen, and gone when it is to be opened; in its place may be another.
        let away = |path: &[u8]| {
            if path.is_empty() {
                return;
            }
            assert_eq!(path, b"c");
            bed.rename("new", "aside");
            if stands_in {
                bed.rename("b", "new");
            }
        };
        let outcome = bed.scan_names(&[(root, "c"), (root, "new")], away);
        assert_eq!(outcome.unsettled.iter().filter(|(_, name)| name == b"new").count(), 1);
        if stands_in {
            bed.rename("new", "b");
        }
        bed.rename("aside", "new");
        bed.scan_names(&[(root, "b"), (root, "new"), (root, "aside")], |_| {});
        bed.check();
    }
}

#[test]
fn a_folder_whose_files_were_taken_for_those_of_another_name_is_read_when_it_is_back() {
    let bed = Bed::new();
    bed.write("a/sub/file", &[7; 200_000]);
    bed.scan();
    let (root, a) = (FolderId::ROOT, bed.folder("a"));
    bed.rename("a", "b");
    bed.scan_names(&[(root, "b")], |_| {});
    bed.rename("b", "a");
    // Something else in it is looked at first.
    bed.scan_names(&[(a, "nothing")], |_| {});
    bed.scan_names(&[(root, "a"), (root, "b")], |_| {});
    bed.check();
}

#[test]
fn what_was_missing_in_another_folder_of_that_name_stays() {
    let bed = Bed::new();
    bed.write("a/sub/file", b"of a");
    bed.write("b/file", b"of b");
    bed.scan();
    let root = FolderId::ROOT;
    bed.rename("a", "aside");
    bed.rename("b", "a");
    let mut looks = 0;
    // The second look, of the same scan, finds the first folder back in its place.
    let scope = Scope::Names(vec![(root, vec![b"a".to_vec()]); 2]);
    let (progress, stop) = (Arc::default(), Arc::default());
    let mut meddler = Meddler(|path: &[u8]| {
        looks += u32::from(path.is_empty());
        if looks == 2 && path.is_empty() {
            bed.rename("a", "b");
            bed.rename("aside", "a");
        }
    });
    scan(&bed.index, &bed.options, &scope, &mut meddler, &progress, &stop).expect("scanned");
    bed.scan_names(&[(root, "b"), (root, "aside")], |_| {});
    bed.check();
}

#[test]
fn the_file_that_was_seen_last_counts_and_not_the_one_that_took_longest_to_read() {
    let bed = Bed::new();
    bed.write("a/file", b"of a");
    bed.write("b/file", b"of b");
    bed.scan();
    let (root, a) = (FolderId::ROOT, bed.folder("a"));
    bed.write("a/file", &[7; 64 << 20]);
    let scope = Scope::Names(vec![(a, vec![b"file".to_vec()]), (root, vec![b"a".to_vec()])]);
    let (progress, stop) = (Arc::default(), Arc::default());
    let mut meddler = Meddler(|path: &[u8]| {
        if path.is_empty() {
            bed.rename("a", "aside");
            bed.rename("b", "a");
        }
    });
    scan(&bed.index, &bed.options, &scope, &mut meddler, &progress, &stop).expect("scanned");
    bed.scan_names(&[(root, "b"), (root, "aside")], |_| {});
    bed.check();
}

#[test]
fn hashes_of_a_folder_that_gave_way_to_a_file_meanwhile_are_dropped() {
    let bed = Bed::new();
    bed.write("a/b/file", &[7; 200_000]);
    bed.scan();
    let (a, b) = (bed.folder("a"), bed.folder("a/b"));
    bed.write("a/b/file", &[8; 32 << 20]);
    let mut gone = false;
    // The names of `a/b` are looked at first, those of `a` while its file is still being read.
    let scope = Scope::Names(vec![(b, vec![b"file".to_vec()]), (a, vec![b"b".to_vec()])]);
    let (progress, stop) = (Arc::default(), Arc::default());
    let mut meddler = Meddler(|path: &[u8]| {
        if path == b"a" && !std::mem::replace(&mut gone, true) {
            bed.rename("a/b", "../elsewhere");
            fs::write(bed.tree.join("a/b"), b"a file").expect("a file");
        }
    });
    scan(&bed.index, &bed.options, &scope, &mut meddler, &progress, &stop).expect("scanned");
    assert!(gone);
    bed.check();
}

#[test]
fn a_scan_that_was_stopped_goes_on() {
    let bed = Bed::new();
    for n in 0..300u32 {
        bed.write(&format!("{}/{n}", n % 7), &n.to_le_bytes().repeat(9000));
    }
    let mut hashed = 0;
    for round in 0.. {
        let (progress, stop) = (Arc::<Progress>::default(), Arc::<AtomicBool>::default());
        let (watched, ends) = (progress.clone(), stop.clone());
        let stopper = std::thread::spawn(move || {
            while watched.hashed.load(Ordering::Relaxed) < 60 && watched.entries.load(Ordering::Relaxed) < 307
            {
                std::thread::yield_now();
            }
            ends.store(true, Ordering::Relaxed);
        });
        let slow = Effort { threads: 1, bytes_per_second: Some(60_000_000), background: false };
        let options = ScanOptions { effort: slow, ..bed.options.clone() };
        let outcome =
            scan(&bed.index, &options, &Scope::All, &mut Unobserved, &progress, &stop).expect("scanned");
        stopper.join().expect("stopped");
        hashed += outcome.hashed;
        assert!(outcome.gone == 0 && outcome.suspicion.is_none());
        if bed.index.counters().expect("read").files == 300 || round > 20 {
            break;
        }
    }
    bed.scan();
    bed.check();
    assert!(hashed <= 300, "nothing was read twice that was stored: {hashed}");
    assert!(bed.index.meta().expect("read").hashing.is_empty());
}

#[test]
fn times_of_a_wrong_clock_do_not_hide_changes() {
    let bed = Bed::new();
    bed.write("future", b"x");
    let future = std::time::SystemTime::now() + Duration::from_secs(10 * 365 * 86400);
    let path = bed.tree.join("future");
    fs::File::options().write(true).open(&path).expect("opened").set_modified(future).expect("set");
    bed.scan();
    assert_eq!(bed.scan().hashed, 0, "read once");
    fs::write(&path, b"y").expect("written");
    assert_eq!(bed.scan().hashed, 1);
    bed.check();
}

#[test]
fn attributes_and_hard_links_are_seen() {
    let bed = Bed::new();
    bed.write("x", b"1");
    bed.write("d/y", b"2");
    fs::hard_link(bed.tree.join("d/y"), bed.tree.join("z")).expect("a link");
    bed.scan();
    let record = |path: &[u8]| bed.index.snapshot().expect("read").entry(path).expect("read").expect("there");
    assert_eq!(record(b"z").stamp.links, 2);
    assert_eq!(record(b"z").stamp.ino, record(b"d/y").stamp.ino);
    let none = record(b"x").attributes;
    let flags = rustix::fs::XattrFlags::empty();
    for path in ["x", "d"] {
        if rustix::fs::setxattr(bed.tree.join(path), "user.note", b"v", flags).is_err() {
            // This file system knows none.
            return;
        }
    }
    let plain = |path: &str| {
        let mut known = crate::Known::open(&bed.index).expect("read").expect("the folder is there");
        let stat = rustix::fs::lstat(bed.tree.join(path)).expect("stat");
        known.plain(path.as_bytes(), &stat).expect("read").is_some()
    };
    assert!(!plain("x"), "it got an attribute that the index does not know");
    bed.scan();
    assert!(none.is_none() && record(b"x").attributes.is_some() && record(b"d").attributes.is_some());
    assert!(!plain("x"), "it has an attribute");
    let before = (bed.sequence(), record(b"x").attributes);
    rustix::fs::setxattr(bed.tree.join("x"), "user.note", b"w", flags).expect("set");
    bed.scan();
    assert!(bed.sequence() > before.0 && record(b"x").attributes != before.1);
}

#[test]
fn holes_are_not_read() {
    let bed = Bed::new();
    let file = fs::File::create(bed.tree.join("sparse")).expect("a file");
    let at = |offset: u64, bytes: &[u8]| {
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).expect("written");
    };
    at(100_000, b"begin");
    at(40 << 20, &[7; 300_000]);
    file.set_len((60 << 20) + 12_345).expect("made longer");
    let outcome = bed.scan();
    bed.check();
    let read = outcome.bytes;
    assert!(read <= 60 << 20, "{read}");
    let stat = fs::metadata(bed.tree.join("sparse")).expect("stat");
    if std::os::unix::fs::MetadataExt::blocks(&stat) * 512 < 2 << 20 {
        assert!(read < 2 << 20, "{read}");
        let mut known = crate::Known::open(&bed.index).expect("read").expect("the folder is there");
        let stat = rustix::fs::lstat(bed.tree.join("sparse")).expect("stat");
        assert!(known.content(b"sparse", &stat).expect("read").is_some());
        assert!(known.plain(b"sparse", &stat).expect("read").is_none(), "it has holes");
    }
}

#[test]
fn who_reads_the_folder_anyway_is_told_the_hashes() {
    let bed = Bed::new();
    ordinary(&bed);
    bed.scan();
    let mut known = crate::Known::open(&bed.index).expect("read").expect("the folder is there");
    let stat = |path: &str| rustix::fs::lstat(bed.tree.join(path)).expect("stat");
    for path in ["a/x", "a/empty", "a.b", "b/c/e", "large", "rows/two"] {
        let stat = stat(path);
        let content = known.content(path.as_bytes(), &stat).expect("read").expect(path);
        let blocks: Vec<Hash> =
            known.blocks(stat.st_size as u64, &content).map(|block| block.expect("read").0).collect();
        let bytes = fs::read(bed.tree.join(path)).expect("a file");
        assert_eq!(blocks, bytes.chunks(32 << 10).map(block_hash).collect::<Vec<_>>(), "{path}");
    }
    assert!(known.content(b"b/link", &stat("b/link")).expect("read").is_none());
    let plain = known.plain(b"a/x", &stat("a/x")).expect("read").expect("nothing but bytes");
    assert_eq!(Some(plain), known.content(b"a/x", &stat("a/x")).expect("read"));
    assert!(known.content(b"not/there", &stat("a/x")).expect("read").is_none());
    bed.write("a/x", b"two");
    assert!(known.content(b"a/x", &stat("a/x")).expect("read").is_none(), "changed since");
    fs::rename(&bed.tree, bed.tree.with_file_name("aside")).expect("renamed");
    fs::create_dir(&bed.tree).expect("a folder");
    assert!(crate::Known::open(&bed.index).expect("read").is_none(), "another folder");
}
