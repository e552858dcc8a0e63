//! Versions of a folder, made, thinned and given back by whole runs (`edge-agent/BACKUP.md`).

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use event_schema::{NotThinned, ThinObstacle, VersionKept};

use super::super::record::RunFolder;
use super::super::work;
use super::*;
use crate::backup::thin::thin;
use crate::backup::{Held, Purpose, Shelf, VersionName};
use crate::disk::noise;

/// A source with a folder, a storage agent with a shelf.
struct Backup {
    fleet: Fleet,
    source: Agent,
    storage: Agent,
    tree: TempDir,
    disk: TempDir,
    /// What the source was at each version; not kept where nobody asks.
    was: Option<TempDir>,
    runs: u8,
}

fn version(n: u8) -> VersionName {
    format!("2026-11-23T01{n:02}00Z").parse().expect("a name")
}

/// The order to take part in a run that is for something.
fn asked(join: JoinRun, purpose: &Purpose) -> TakePart {
    let purpose = match purpose {
        Purpose::Plain => event_schema::Purpose::Plain,
        Purpose::Version(name) => event_schema::Purpose::Version { name: name.to_string() },
        Purpose::Restore(version) => {
            event_schema::Purpose::Restore { of: join.source, version: version.to_string() }
        }
    };
    TakePart { purpose, ..part(join) }
}

impl Backup {
    async fn new() -> Self {
        let was = Some(tempfile::tempdir_in("/var/tmp").expect("room"));
        Self { was, ..Self::of_many("/var/tmp").await }
    }

    /// For very many files, where they go away again quickly.
    async fn of_many(place: &str) -> Self {
        let fleet = Fleet::new();
        let (source, storage) = (fleet.agent(1, PLAIN).await, fleet.agent(2, PLAIN).await);
        let room = || tempfile::tempdir_in(place).expect("room");
        Self { fleet, source, storage, tree: room(), disk: room(), was: None, runs: 0 }
    }

    /// What the source was.
    fn was(&self, n: u8) -> PathBuf {
        self.was.as_ref().expect("kept").path().join(version(n).to_string())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.tree.path().join(path)
    }

    fn shelf(&self) -> PathBuf {
        self.disk.path().join("store/source")
    }

    fn kept(&self, n: u8) -> PathBuf {
        self.shelf().join(version(n).to_string())
    }

    /// What is under the names of versions.
    fn versions(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.shelf()) else { return Vec::new() };
        let names = entries.map(|e| e.expect("readable").file_name().into_string().expect("text"));
        let mut names: Vec<String> = names.filter(|name| name != ".flotilla").collect();
        names.sort();
        names
    }

    /// The next run makes this version; the source's folder is remembered as it is.
    fn begin(&mut self, n: u8) -> RunId {
        self.runs += 1;
        if let Some(copy) = self.was.is_some().then(|| self.was(n)).filter(|copy| !copy.exists()) {
            let copied = Command::new("cp").arg("-a").arg(self.tree.path()).arg(&copy).status();
            assert!(copied.is_ok_and(|status| status.success()));
        }
        RunId([self.runs; 16])
    }

    async fn join(&self, run: RunId, purpose: Purpose) {
        let all = [&self.source, &self.storage];
        let (tree, shelf) = (self.tree.path(), self.shelf());
        let join = self.fleet.join_as(run, &all, &self.source, tree);
        self.source.runs().take_part(asked(join, &purpose)).await;
        let join = self.fleet.join_as(run, &all, &self.storage, &shelf);
        self.storage.runs().take_part(asked(join, &purpose)).await;
    }

    async fn end(&self, run: RunId) {
        self.source.runs().finish(run).await;
        self.storage.runs().finish(run).await;
    }

    async fn completed(&self, agent: &Agent, run: RunId) -> RunCompleted {
        let of = |body| match body {
            ReportBody::RunCompleted(end) if end.run == run => Some(end),
            _ => None,
        };
        let waited = timeout(LIMIT, async {
            loop {
                if let Some(end) = agent.reports().into_iter().find_map(of) {
                    return end;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{run}: {:?}", agent.runs().status()))
    }

    async fn backup(&mut self, n: u8) -> RunCompleted {
        let run = self.begin(n);
        self.join(run, Purpose::Version(version(n))).await;
        let end = self.completed(&self.storage, run).await;
        self.end(run).await;
        end
    }

    /// Restores what is at `path` in a version into a folder, by the storage agent; `keeps` as restores do.
    async fn restore(&mut self, n: u8, path: &str, to: &Path) -> (RunCompleted, Vec<Problem>) {
        self.runs += 1;
        let run = RunId([self.runs; 16]);
        let all = [&self.storage, &self.source];
        let from = if path.is_empty() { self.kept(n) } else { self.kept(n).join(path) };
        let told = self.storage.problems().len();
        let join = self.fleet.join_as(run, &all, &self.storage, &from);
        self.storage.runs().take_part(asked(join, &Purpose::Restore(version(n)))).await;
        let join = self.fleet.join_as(run, &all, &self.source, to);
        self.source.runs().take_part(TakePart { keeping: true, ..part(join) }).await;
        let end = self.completed(&self.source, run).await;
        self.end(run).await;
        (end, self.storage.problems().split_off(told))
    }

    /// A version is what the source was then, for somebody who knows nothing of us.
    fn assert_kept(&self, n: u8) {
        rsync_finds_nothing(&self.was(n), &self.kept(n));
    }

    async fn shut_down(mut self) {
        self.source.halt().await;
        self.storage.halt().await;
    }
}

/// Content, modes, times, links of both kinds, attributes and holes' content: rsync would change nothing.
fn rsync_finds_nothing(a: &Path, b: &Path) {
    let slash = |path: &Path| format!("{}/", path.display());
    let args = ["-naHXAc", "--delete", "--itemize-changes", "--exclude=/.flotilla"];
    let told = Command::new("rsync").args(args).arg(slash(a)).arg(slash(b)).output().expect("rsync runs");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert_eq!(String::from_utf8_lossy(&told.stdout), "", "{} and {}", a.display(), b.display());
}

fn ino(path: &Path) -> u64 {
    fs::symlink_metadata(path).expect("there").ino()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_versions_share_what_is_the_same_and_each_is_what_the_source_was() {
    let mut b = Backup::new().await;
    make_tree(b.tree.path(), 3 << 20);
    for i in 0..50 {
        fs::create_dir_all(b.at("renamed/before")).expect("room");
        fs::write(b.at(&format!("renamed/before/{i}")), noise(i, 5000 + i as usize)).expect("room");
    }
    fs::write(b.at("twice"), noise(7, 40_000)).expect("room");
    fs::hard_link(b.at("twice"), b.at("thrice")).expect("room");
    // Two files that are alike in everything but their name are two.
    fs::write(b.at("alike 1"), b"alike").expect("room");
    let sparse = fs::File::create(b.at("sparse")).expect("room");
    sparse.write_all_at(b"far out", 9 << 20).expect("room");
    let first = b.backup(1).await;
    assert_eq!(first.state, RunAgentState::Done, "{:?}", b.storage.problems());
    assert_eq!(first.stats.blocks_reused, 0);
    b.assert_kept(1);

    // Edited, appended to in the middle, removed, renamed, another mode, another link, another file that is alike.
    let mut edited = fs::read(b.at("large 0")).expect("there");
    edited.splice(1000..1000, *b"inserted");
    fs::write(b.at("large 0"), &edited).expect("room");
    fs::remove_file(b.at("deep/small 3")).expect("there");
    fs::rename(b.at("renamed/before"), b.at("renamed/after")).expect("there");
    fs::set_permissions(b.at("large 1"), fs::Permissions::from_mode(0o600)).expect("ours");
    fs::remove_file(b.at("thrice")).expect("there");
    fs::write(b.at("thrice"), noise(7, 40_000)).expect("room");
    fs::write(b.at("alike 2"), b"alike").expect("room");
    let time = fs::metadata(b.at("alike 1")).expect("there").modified().expect("a time");
    fs::File::options().write(true).open(b.at("alike 2")).expect("there").set_modified(time).expect("ours");
    let second = b.backup(2).await;
    assert_eq!(second.state, RunAgentState::Done, "{:?}", b.storage.problems());
    b.assert_kept(1);
    b.assert_kept(2);
    // Less than a block for each insertion, and what is new altogether.
    assert!(second.stats.blocks_fetched <= 4, "{:?}", second.stats);
    let same =
        |n: u8, m: u8, path: &str, other: &str| ino(&b.kept(n).join(path)) == ino(&b.kept(m).join(other));
    for path in ["deep/small 7", "deep/er/empty", "sparse", "twice", "alike 1"] {
        assert!(same(1, 2, path, path), "{path} is one file");
    }
    assert!(same(1, 2, "renamed/before/17", "renamed/after/17"), "a renamed file costs no room");
    for (path, other) in [("large 0", "large 0"), ("large 1", "large 1"), ("twice", "thrice")] {
        assert!(!same(1, 2, path, other), "{path} and {other} are two files");
    }
    assert!(!same(2, 2, "alike 1", "alike 2") && !same(2, 2, "twice", "thrice"));
    assert!(same(1, 1, "twice", "thrice"));
    assert_eq!(fs::metadata(b.kept(1).join("large 1")).expect("there").mode() & 0o7777, 0o644);

    // A third one with nothing but another time on a folder; then nothing at all.
    let old = std::time::UNIX_EPOCH + Duration::new(1_000_000_001, 5);
    fs::File::open(b.at("deep")).expect("there").set_modified(old).expect("ours");
    let third = b.backup(3).await;
    assert_eq!(third.state, RunAgentState::Done);
    b.assert_kept(3);
    let unchanged = b.backup(4).await;
    let kept = b.storage.reports().into_iter().filter_map(|body| match body {
        ReportBody::VersionKept(kept) => Some(kept),
        _ => None,
    });
    let kept: Vec<VersionKept> = kept.collect();
    let told = |kept: &VersionKept| (kept.version.clone(), kept.complete, kept.unchanged);
    let name = |n| version(n).to_string();
    assert_eq!(
        kept.iter().map(told).collect::<Vec<_>>(),
        [(name(1), true, false), (name(2), true, false), (name(3), true, false), (name(3), true, true)]
    );
    assert_eq!((kept[3].entries, kept[3].bytes), (third.stats.entries, third.stats.bytes_total));
    assert_eq!((unchanged.state, unchanged.stats.blocks_fetched), (RunAgentState::Done, 0));
    assert_eq!(b.versions(), [version(1), version(2), version(3)].map(|v| v.to_string()));
    assert!(b.storage.problems().is_empty(), "{:?}", b.storage.problems());
    b.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_files_of_which_none_changed_make_no_version() {
    let in_memory = Path::new("/dev/shm").is_dir();
    let mut b = Backup::of_many(if in_memory { "/dev/shm" } else { "/var/tmp" }).await;
    for folder in 0..100 {
        fs::create_dir_all(b.at(&folder.to_string())).expect("room");
        for file in 0..100u8 {
            fs::write(b.at(&format!("{folder}/{file}")), [file; 100]).expect("room");
        }
    }
    let began = std::time::Instant::now();
    let first = b.backup(1).await;
    println!("the first version: {:?}", began.elapsed());
    assert_eq!((first.state, first.stats.entries), (RunAgentState::Done, 10_101));
    let used =
        || Command::new("du").args(["-s", "--inodes"]).arg(b.disk.path()).output().expect("du runs").stdout;
    let before = used();
    let began = std::time::Instant::now();
    let second = b.backup(2).await;
    println!("nothing changed: {:?}", began.elapsed());
    assert_eq!(second.state, RunAgentState::Done);
    assert_eq!((second.stats.blocks_fetched, second.stats.bytes_from_source), (0, 0));
    let used =
        || Command::new("du").args(["-s", "--inodes"]).arg(b.disk.path()).output().expect("du runs").stdout;
    assert_eq!((b.versions().len(), used()), (1, before));
    // One of them: everything else is one file with the version before.
    fs::write(b.at("50/50"), b"another").expect("room");
    let began = std::time::Instant::now();
    let third = b.backup(3).await;
    println!("one file changed: {:?}", began.elapsed());
    assert_eq!((third.state, third.stats.blocks_fetched), (RunAgentState::Done, 1));
    let two_names = walkdir::WalkDir::new(b.kept(3)).into_iter().map(|e| e.expect("readable"));
    let linked = two_names.filter(|e| e.file_type().is_file() && e.metadata().expect("there").nlink() == 2);
    assert_eq!(linked.count(), 9_999);
    b.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_backed_up_comes_back_and_what_is_damaged_does_not() {
    let mut b = Backup::new().await;
    make_tree(b.tree.path(), 1 << 20);
    fs::hard_link(b.at("large 1"), b.at("deep/er/also large")).expect("room");
    std::os::unix::fs::symlink("../../large 0", b.at("deep/er/out")).expect("room");
    let sparse = fs::File::create(b.at("sparse")).expect("room");
    sparse.write_all_at(b"far out", 9 << 20).expect("room");
    assert_eq!(b.backup(1).await.state, RunAgentState::Done);
    fs::remove_dir_all(b.at("deep")).expect("there");
    fs::write(b.at("large 0"), b"lost").expect("room");
    assert_eq!(b.backup(2).await.state, RunAgentState::Done);
    let was = b.was(1);
    let room = || tempfile::tempdir_in("/var/tmp").expect("room");

    // All of the older version, in another place; a folder, whose hard link becomes a file; a file.
    let (whole, folder, file) = (room(), room(), room());
    let (end, problems) = b.restore(1, "", whole.path()).await;
    assert_eq!((end.state, problems), (RunAgentState::Done, vec![]));
    rsync_finds_nothing(&was, whole.path());
    // But for a symlink that leads out of what it is in.
    let (end, problems) = b.restore(1, "deep/er", folder.path()).await;
    let told: Vec<_> = problems.iter().map(|p| (p.class, &p.path[..])).collect();
    assert_eq!(
        (end.state, told),
        (RunAgentState::Done, vec![(ProblemClass::UnsafeLink, &b"deep/er/out"[..])])
    );
    assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 1, "it keeps its own name");
    let (mut expected, got) = (listing(&was.join("deep/er")), listing(&folder.path().join("er")));
    expected.remove(&b"out"[..]);
    assert!(expected == got, "{:?} {:?}", expected.keys(), got.keys());
    assert_eq!(fs::metadata(folder.path().join("er/also large")).expect("there").nlink(), 1);
    let (end, problems) = b.restore(1, "deep/small 7", file.path()).await;
    assert_eq!((end.state, problems), (RunAgentState::Done, vec![]));
    assert_eq!(fs::read_dir(file.path()).expect("there").count(), 1);
    let read = |path: PathBuf| fs::read(path).expect("there");
    assert_eq!(read(file.path().join("small 7")), read(was.join("deep/small 7")));

    // Into the source's folder: what is replaced is kept, what is new stays.
    fs::write(b.at("new"), b"new").expect("room");
    let tree = b.tree.path().to_owned();
    let (end, _) = b.restore(1, "", &tree).await;
    assert_eq!(end.state, RunAgentState::Done);
    assert_eq!(read(b.at("large 0")), read(was.join("large 0")));
    assert_eq!(read(b.at("new")), b"new");
    let archive = walkdir::WalkDir::new(b.at(".flotilla/archive")).into_iter().map(|e| e.expect("there"));
    assert!(archive.filter(|e| e.file_name() == "large 0").any(|e| read(e.path().into()) == b"lost"));

    // Somebody wrote into the version: one byte with size and time as before, one file gone, one too long, one symlink
    // in a file's place to something of the same content.
    let kept = b.kept(1);
    let damage = |path: &str, at: u64| {
        let file = fs::OpenOptions::new().write(true).open(kept.join(path)).expect("there");
        let time = file.metadata().expect("there").modified().expect("a time");
        let mut byte = [0];
        fs::File::open(kept.join(path)).expect("there").read_exact_at(&mut byte, at).expect("long enough");
        file.write_all_at(&[byte[0] ^ 1], at).expect("written");
        file.set_modified(time).expect("ours");
    };
    damage("deep/small 20", 7);
    fs::remove_file(kept.join("deep/small 21")).expect("there");
    fs::OpenOptions::new()
        .append(true)
        .open(kept.join("deep/small 22"))
        .expect("there")
        .write_all(b"x")
        .expect("room");
    fs::rename(kept.join("deep/small 23"), kept.join("elsewhere")).expect("there");
    std::os::unix::fs::symlink("../elsewhere", kept.join("deep/small 23")).expect("room");
    damage("large 1", 500_000);
    // Where nothing was, which no hash covers.
    damage("sparse", 5 << 20);
    let again = room();
    let (end, problems) = b.restore(1, "", again.path()).await;
    assert_eq!(end.state, RunAgentState::Done, "what is delivered is delivered whole");
    let mut told: Vec<_> = problems.iter().map(|p| String::from_utf8_lossy(&p.path).into_owned()).collect();
    told.sort();
    let damaged = [
        "deep/er/also large",
        "deep/small 20",
        "deep/small 21",
        "deep/small 22",
        "deep/small 23",
        "large 1",
        "sparse",
    ];
    assert_eq!(told, damaged);
    assert!(problems.iter().all(|p| p.class == ProblemClass::Damaged));
    for path in damaged {
        assert!(!again.path().join(path).exists(), "{path}");
    }
    assert!(!again.path().join("elsewhere").exists(), "what is in no manifest is not restored");
    assert_eq!(listing(again.path()).len(), listing(&was).len() - damaged.len());

    // Without a manifest that can be proved nothing comes back.
    let manifest = b.shelf().join(format!(".flotilla/versions/{}.manifest", version(1)));
    let mut bytes = read(manifest.clone());
    let last = bytes.len() - 30;
    bytes[last] ^= 1;
    fs::write(&manifest, bytes).expect("written");
    b.runs += 1;
    let run = RunId([b.runs; 16]);
    let join = b.fleet.join_as(run, &[&b.storage, &b.source], &b.storage, &b.kept(1));
    b.storage.runs().take_part(asked(join, &Purpose::Restore(version(1)))).await;
    let told = || b.storage.problems().iter().any(|p| p.class == ProblemClass::BadManifest);
    timeout(LIMIT, async {
        while !told() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it fails, and says why");
    assert_eq!(b.storage.runs().status().iter().find(|s| s.run == run).map(|s| s.state), Some("failed"));
    b.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_ends_with_errors_makes_an_incomplete_version_and_a_stopped_one_none() {
    let mut b = Backup::new().await;
    make_tree(b.tree.path(), 1 << 20);
    let run = b.begin(1);
    let join = b.fleet.join_as(run, &[&b.source, &b.storage], &b.source, b.tree.path());
    b.source.runs().take_part(asked(join, &Purpose::Version(version(1)))).await;
    let serving = || b.source.runs().status().iter().any(|s| s.state == "serving");
    timeout(LIMIT, async {
        while !serving() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it serves");
    fs::write(b.at("large 1"), noise(1, 1 << 20)).expect("room");
    b.join(run, Purpose::Version(version(1))).await;
    assert_eq!(b.completed(&b.storage, run).await.state, RunAgentState::DoneWithErrors);
    b.end(run).await;
    let kept = Shelf::open(&b.shelf()).expect("there").all().expect("readable").remove(0);
    assert!(!kept.note.complete && !b.kept(1).join("large 1").exists());
    assert_same(&b.was(1).join("deep"), &b.kept(1).join("deep"));
    // The next one takes from it what is there, is complete, and is another one even if nothing changed since.
    let second = b.backup(2).await;
    assert_eq!(second.state, RunAgentState::Done);
    b.assert_kept(2);
    assert_eq!(ino(&b.kept(1).join("deep/small 8")), ino(&b.kept(2).join("deep/small 8")));

    // Stopped before its end: nothing is left of it.
    b.source.halt().await;
    b.source.options = SLOW;
    let Backup { fleet, source, .. } = &mut b;
    source.start(fleet).await;
    fs::write(b.at("large 0"), noise(2, 12 << 20)).expect("room");
    let run = b.begin(3);
    b.join(run, Purpose::Version(version(3))).await;
    let forming = b.shelf().join(format!(".flotilla/versions/{run}"));
    let done = || b.storage.runs().status().iter().find(|s| s.run == run).map_or(0, |s| s.blocks_done);
    timeout(LIMIT, async {
        while !forming.exists() || done() < 60 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it has begun");
    b.storage.runs().stop(run).await;
    assert!(!forming.exists());
    assert_eq!(b.versions(), [version(1), version(2)].map(|v| v.to_string()));
    b.shut_down().await;
}

/// What cannot be another name of a file is a copy of it, from the disk, and the next version shares that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_as_many_names_as_it_may_have_is_copied() {
    let mut b = Backup::new().await;
    fs::write(b.at("one"), noise(1, 100_000)).expect("room");
    fs::write(b.at("other"), noise(2, 100_000)).expect("room");
    assert_eq!(b.backup(1).await.state, RunAgentState::Done);
    let (one, names) = (b.kept(1).join("one"), b.disk.path().join("names"));
    fs::create_dir(&names).expect("room");
    let link = |n: u32| rustix::fs::link(&one, names.join(n.to_string()));
    if !(0..70_000).any(|n| link(n) == Err(rustix::io::Errno::MLINK)) {
        eprintln!("SKIPPED: a file may have more than 70,000 names here");
        return;
    }
    fs::write(b.at("new"), b"new").expect("room");
    let second = b.backup(2).await;
    assert_eq!((second.state, second.stats.blocks_fetched), (RunAgentState::Done, 1));
    b.assert_kept(1);
    b.assert_kept(2);
    let same = |n: u8, m: u8, path: &str| ino(&b.kept(n).join(path)) == ino(&b.kept(m).join(path));
    assert!(!same(1, 2, "one") && same(1, 2, "other"));
    fs::write(b.at("newer"), b"newer").expect("room");
    assert_eq!(b.backup(3).await.stats.blocks_fetched, 1);
    let same = |n: u8, m: u8, path: &str| ino(&b.kept(n).join(path)) == ino(&b.kept(m).join(path));
    assert!(same(2, 3, "one") && same(2, 3, "other"));
    b.shut_down().await;
}

/// That nothing has changed at the source says nothing about what somebody did to the version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unchanged_is_what_is_still_there() {
    let mut b = Backup::new().await;
    make_tree(b.tree.path(), 1 << 18);
    assert_eq!(b.backup(1).await.state, RunAgentState::Done);
    assert_eq!(b.backup(2).await.stats.blocks_fetched, 0);
    assert_eq!(b.versions().len(), 1);
    fs::remove_file(b.kept(1).join("deep/small 9")).expect("there");
    fs::write(b.kept(1).join("large 0"), b"encrypted").expect("room");
    fs::copy(b.kept(1).join("large 1"), b.kept(1).join("deep/added")).expect("room");
    assert_eq!(b.backup(3).await.state, RunAgentState::Done);
    assert_eq!(b.versions(), [version(1), version(3)].map(|v| v.to_string()));
    b.assert_kept(3);
    b.shut_down().await;
}

/// A version that somebody else's run made, or says to have made, is not this source's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_of_another_source_are_not_this_ones() {
    let mut b = Backup::new().await;
    make_tree(b.tree.path(), 1 << 16);
    assert_eq!(b.backup(1).await.state, RunAgentState::Done);
    let shelf = Shelf::open(&b.shelf()).expect("there");
    let kept = shelf.all().expect("readable").remove(0);
    let manifest = shelf.manifest(&kept).expect("proved");
    let (run, key) = (RunId([99; 16]), SigningKey::from_bytes(&[98; 32]));
    let source_key = key.verifying_key().to_bytes();
    let file = manifest.known().source().file();
    let hashes = crate::disk::file_block_hashes(file).expect("readable").strong;
    let source = AgentId::of_key(&source_key);
    let head = sync_core::manifest::ManifestHead::of(run, source, manifest.known(), &hashes).sign(&key);
    let note = crate::backup::Note { run, source_key, head, complete: true };
    drop(shelf.forming(run).expect("made"));
    let planted: VersionName = "9999-01-01T000000Z".parse().expect("a name");
    assert_eq!(shelf.give_name(&planted, &note, file, &key).expect("named"), planted);
    assert_eq!(b.backup(2).await.state, RunAgentState::Done);
    let mut kept = b.storage.reports().into_iter().filter_map(|body| match body {
        ReportBody::VersionKept(kept) => Some((kept.version, kept.unchanged)),
        _ => None,
    });
    assert_eq!(kept.next_back(), Some((version(1).to_string(), true)));
    b.shut_down().await;
}

/// Who may write to a shelf's folder can lay a version there that proves itself, and stands in for what was to be made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_this_agent_did_not_sign_is_no_newest_one_and_its_restore_says_so() {
    let mut b = Backup::new().await;
    make_tree(b.tree.path(), 1 << 16);
    assert_eq!(b.backup(1).await.state, RunAgentState::Done);
    let shelf = Shelf::open(&b.shelf()).expect("there");
    let kept = shelf.all().expect("readable").remove(0);
    let manifest = shelf.manifest(&kept).expect("proved");
    let stranger = SigningKey::from_bytes(&[98; 32]);
    let planted: VersionName = "9999-01-01T000000Z".parse().expect("a name");
    let forming = Shelf::forming_path(&b.shelf(), kept.note.run);
    let copied = Command::new("cp").arg("-a").arg(b.kept(1)).arg(&forming).status();
    assert!(copied.is_ok_and(|status| status.success()));
    let file = manifest.known().source().file();
    shelf.give_name(&planted, &kept.note, file, &stranger).expect("named");
    fs::remove_dir_all(b.at("deep")).expect("there");
    assert_eq!(b.backup(2).await.state, RunAgentState::Done);
    b.assert_kept(2);
    make_tree(b.tree.path(), 1 << 16);
    assert_eq!(b.backup(3).await.state, RunAgentState::Done);
    let mut told = b.storage.reports().into_iter().filter_map(|body| match body {
        ReportBody::VersionKept(kept) => Some((kept.version, kept.unchanged)),
        _ => None,
    });
    assert_eq!(told.next_back(), Some((version(3).to_string(), false)), "what is planted is not the newest");
    drop(told);

    // As a release before this one noted it.
    let record = b.shelf().join(format!(".flotilla/versions/{}.version", version(1)));
    fs::write(&record, [&[1][..], &event_schema::encode(&kept.note)].concat()).expect("room");
    let place = tempfile::tempdir_in("/var/tmp").expect("room");
    let (end, problems) = b.restore(1, "", place.path()).await;
    assert_eq!(end.state, RunAgentState::Done);
    assert!(problems.len() == 1 && problems[0].class == ProblemClass::BadManifest, "{problems:?}");
    rsync_finds_nothing(&b.was(1), place.path());
    b.shut_down().await;
}

/// A time that not every file system can hold is compared all the same before a file is linked to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_into_a_file_of_1970_is_not_carried_on() {
    let mut b = Backup::new().await;
    fs::write(b.at("old"), noise(1, 50_000)).expect("room");
    let time = std::time::UNIX_EPOCH + Duration::from_secs(1);
    fs::File::open(b.at("old")).expect("there").set_modified(time).expect("ours");
    assert_eq!(b.backup(1).await.state, RunAgentState::Done);
    fs::write(b.kept(1).join("old"), noise(2, 50_000)).expect("room");
    fs::write(b.at("new"), b"new").expect("room");
    assert_eq!(b.backup(2).await.state, RunAgentState::Done);
    b.assert_kept(2);
    b.shut_down().await;
}

/// Another folder in the source's place may be what is left when a disk is missing: the version is made, and the run says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_may_have_lost_a_disk_says_so() {
    let mut b = Backup::new().await;
    make_tree(b.tree.path(), 1 << 16);
    assert_eq!(b.backup(1).await.state, RunAgentState::Done);
    let away = b.tree.path().with_extension("away");
    fs::rename(b.tree.path(), &away).expect("moved");
    fs::create_dir(b.tree.path()).expect("room");
    assert_eq!(b.backup(2).await.state, RunAgentState::Done);
    let told = b.source.problems();
    assert!(told.iter().any(|p| p.class == ProblemClass::Io && p.path == b"."), "{told:?}");
    b.assert_kept(1);
    fs::remove_dir_all(&away).expect("ours");
    b.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thinning_removes_what_is_named_and_leaves_what_others_share() {
    let mut b = Backup::new().await;
    make_tree(b.tree.path(), 1 << 20);
    for n in 1..=4 {
        fs::write(b.at("changing"), noise(n.into(), 1000)).expect("room");
        assert_eq!(b.backup(n).await.state, RunAgentState::Done);
    }
    let names = |all: &[u8]| all.iter().map(|n| version(*n).to_string()).collect::<Vec<_>>();
    let held = Held::at(&b.kept(3)).expect("there");
    let thinned = thin(&b.shelf(), &names(&[1, 3]));
    assert_eq!(thinned.removed, names(&[1]));
    let in_use = NotThinned { version: version(3).to_string(), why: ThinObstacle::InUse };
    assert_eq!(thinned.failed, [in_use]);
    assert_eq!(b.versions(), names(&[2, 3, 4]));
    [2, 3, 4].into_iter().for_each(|n| b.assert_kept(n));
    drop(held);
    // Again, and with it what was in use: both are gone.
    assert_eq!(thin(&b.shelf(), &names(&[1, 3])).removed, names(&[1, 3]));
    b.assert_kept(4);
    let left = fs::read_dir(b.shelf().join(".flotilla/versions")).expect("there");
    assert_eq!(left.count(), 4, "a manifest and a record for each of two");

    // Names that are none, others' folders, and what lies there instead of a version.
    let elsewhere = tempfile::tempdir().expect("room");
    fs::write(elsewhere.path().join("precious"), b"x").expect("room");
    std::os::unix::fs::symlink(elsewhere.path(), b.kept(7)).expect("room");
    fs::create_dir(b.kept(8)).expect("room");
    let bad = ["..", ".", "", "/", ".flotilla", "deep", "../store"].map(str::to_owned);
    let bad: Vec<String> = bad.into_iter().chain(names(&[7, 8])).collect();
    let thinned = thin(&b.shelf(), &bad);
    assert_eq!((thinned.removed.len(), thinned.failed.len()), (0, bad.len()), "{thinned:?}");
    assert!(elsewhere.path().join("precious").exists() && b.kept(7).is_symlink() && b.kept(8).exists());
    // A version with a symlink in it: what that leads to stays.
    std::os::unix::fs::symlink(elsewhere.path(), b.kept(2).join("deep/way out")).expect("room");
    assert_eq!(thin(&b.shelf(), &names(&[2])).removed, names(&[2]));
    assert!(elsewhere.path().join("precious").exists() && !b.kept(2).exists());
    // A shelf that is not there: a disk may be missing.
    let nowhere = thin(&b.shelf().join("nowhere"), &names(&[1]));
    assert_eq!((nowhere.removed.len(), nowhere.failed.len()), (0, 1));
    b.shut_down().await;
}

/// What a storage agent leaves at any moment in which it ends: whole versions under their names, and nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_has_its_name_when_it_is_whole_however_often_the_agent_ends() {
    let mut b = Backup::new().await;
    make_tree(b.tree.path(), 2 << 20);
    assert_eq!(b.backup(1).await.state, RunAgentState::Done);
    b.source.halt().await;
    b.source.options = SLOW;
    let Backup { fleet, source, .. } = &mut b;
    source.start(fleet).await;
    for i in 0..2 {
        fs::write(b.at(&format!("large {i}")), noise(i + 50, 2 << 20)).expect("room");
    }
    let run = b.begin(2);
    b.join(run, Purpose::Version(version(2))).await;
    let done = |b: &Backup| {
        let status = b.storage.runs().status();
        status.into_iter().find(|s| s.run == run).map_or((0, ""), |s| (s.blocks_done, s.state))
    };
    for _ in 0..3 {
        let now = done(&b).0;
        timeout(LIMIT, async {
            while done(&b).0 < now + 15 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .expect("blocks come");
        assert_eq!(b.versions(), [version(1).to_string()]);
        b.storage.halt().await;
        assert_eq!(b.versions(), [version(1).to_string()]);
        let Backup { fleet, storage, .. } = &mut b;
        storage.start(fleet).await;
        b.join(run, Purpose::Version(version(2))).await;
    }
    assert_eq!(b.completed(&b.storage, run).await.state, RunAgentState::Done);
    b.assert_kept(2);
    // Once more after the end: it serves from its version, and makes no other.
    b.storage.halt().await;
    let Backup { fleet, storage, .. } = &mut b;
    storage.start(fleet).await;
    b.join(run, Purpose::Version(version(2))).await;
    timeout(LIMIT, async {
        while done(&b).1 != "done" || !Held::is_held(&rustix::fs::stat(b.kept(2)).expect("there")) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("it serves");
    assert_eq!(thin(&b.shelf(), &[version(2).to_string()]).failed.len(), 1, "it is in use");
    b.end(run).await;
    assert_eq!(b.versions(), [version(1), version(2)].map(|v| v.to_string()));
    // Of a run that nobody knows any more nothing is left once another one is made.
    let left = b.shelf().join(".flotilla/versions").join(RunId([200; 16]).to_string());
    fs::create_dir_all(left.join("half")).expect("room");
    let orphan = b.shelf().join(".flotilla/versions/2020-01-01T000000Z.manifest");
    fs::write(&orphan, b"x").expect("room");
    fs::write(b.at("new"), b"new").expect("room");
    assert_eq!(b.backup(3).await.state, RunAgentState::Done);
    assert!(!left.exists() && !orphan.exists());
    b.assert_kept(3);
    b.shut_down().await;
}

/// Where the process that is killed works; it is this test, started once more.
const KILLED: &str = "FLOTILLA_TEST_VERSIONS_KILLED";

/// Versions that it makes.
const VERSIONS: u8 = 40;

#[test]
fn a_kill_at_any_moment_leaves_whole_versions_under_their_names() {
    if let Some(place) = std::env::var_os(KILLED) {
        return make_versions(Path::new(&place));
    }
    let place = tempfile::tempdir_in("/var/tmp").expect("room");
    for n in 0..3u64 {
        let tree = place.path().join(format!("tree {n}"));
        if n == 0 {
            make_tree(&tree, 200_000);
        } else {
            let copied = Command::new("cp").arg("-a").arg(place.path().join("tree 0")).arg(&tree).status();
            assert!(copied.is_ok_and(|status| status.success()));
        }
        fs::write(tree.join("large 1"), noise(n, 300_000 + n as usize)).expect("room");
        fs::rename(tree.join(format!("deep/small {}", 9 + n)), tree.join(format!("deep/moved {n}")))
            .expect("there");
    }
    let shelf = place.path().join("shelf");
    let standing = || -> Vec<String> {
        let entries = fs::read_dir(&shelf).into_iter().flatten().map(|e| e.expect("readable").file_name());
        let names = entries.map(|name| name.into_string().expect("text"));
        let mut names: Vec<String> = names.filter(|name| name != ".flotilla").collect();
        names.sort();
        names
    };
    let assert_whole = |nth: usize, name: &str| {
        assert_eq!(name, version(nth as u8).to_string());
        rsync_finds_nothing(&place.path().join(format!("tree {}", nth % 3)), &shelf.join(name));
    };
    let (mut kills, mut between) = (0u64, 0);
    loop {
        let name = "run::tests::versions::a_kill_at_any_moment_leaves_whole_versions_under_their_names";
        let mut child = Command::new(std::env::current_exe().expect("known"))
            .args(["--exact", name])
            .env(KILLED, place.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("started");
        // At another moment each time, and later and later, so that it comes to its end however slow it is.
        let moment = std::time::Instant::now() + Duration::from_millis(20 + kills * 37 % 190 + kills * 3);
        let ended = loop {
            match child.try_wait().expect("waited for") {
                Some(status) => break Some(status),
                None if std::time::Instant::now() >= moment => break None,
                None => std::thread::yield_now(),
            }
        };
        if let Some(status) = ended {
            assert!(status.success());
            break;
        }
        child.kill().expect("killed");
        child.wait().expect("waited for");
        kills += 1;
        between += u64::from(fs::read_dir(shelf.join(".flotilla/versions")).is_ok_and(|all| {
            let names = all.map(|e| e.expect("readable").file_name().into_string().expect("text"));
            names.into_iter().any(|name| name.parse::<RunId>().is_ok())
        }));
        let names = standing();
        names.iter().enumerate().rev().take(2).for_each(|(nth, name)| assert_whole(nth, name));
    }
    println!("killed {kills} times, {between} in the middle of a version");
    assert!(
        between >= 3,
        "killed {kills} times, {between} in the middle of a version: the test shows little"
    );
    let names = standing();
    assert_eq!(names.len(), usize::from(VERSIONS));
    names.iter().enumerate().for_each(|(nth, name)| assert_whole(nth, name));
    let left = fs::read_dir(shelf.join(".flotilla/versions")).expect("there").count();
    assert_eq!(left, 2 * usize::from(VERSIONS), "manifests and records, and nothing else");
}

/// Makes versions of the trees in turn, as a storage agent does but for the network, from where an earlier life was.
fn make_versions(place: &Path) {
    let (key, shelf) = (SigningKey::from_bytes(&[5; 32]), place.join("shelf"));
    let public = key.verifying_key().to_bytes();
    for n in 0..VERSIONS {
        let run = RunId([n + 1; 16]);
        if Shelf::open(&shelf).is_ok_and(|shelf| {
            let all = shelf.all().expect("readable");
            all.iter().any(|kept| kept.note.run == run)
        }) {
            continue;
        }
        let tree = place.join(format!("tree {}", n % 3));
        let folder = |name: &str| RunFolder::open(&place.join(name), run).expect("made");
        let (from, to) = (folder("source"), folder("storage"));
        let served = work::Served::whole(&tree);
        let indexed = work::index(&served, &from, run, &key, None, false, &work::Indexing::default());
        let indexed = indexed.map_err(|problem| problem.detail).expect("a source");
        fs::copy(from.path().join("manifest"), to.path().join(crate::disk::PART)).expect("room");
        let file = Arc::new(fs::File::open(to.path().join(crate::disk::PART)).expect("there"));
        let head = sync_core::manifest::ManifestHead::open(&indexed.signed, run, &public).expect("ours");
        let stop = AtomicBool::new(false);
        let prepared =
            work::prepare_version(&shelf, &to, &head, &indexed.signed, file, (&[], &[]), &key, &stop);
        let prepared = prepared.map_err(|problem| problem.detail).expect("a usable shelf");
        let staging = prepared.content.staging().expect("each is another").clone();
        let missing = prepared.have.gaps().flatten();
        let blocks = missing.map(|block| (block, indexed.reader.read(block).expect("unchanged")));
        assert!(staging.write_all(blocks).iter().all(Result::is_ok));
        assert_eq!(staging.finalize(), []);
        // Once it was stopped nothing gets a name any more.
        let stopped = AtomicBool::new(true);
        let refused = work::name_version(&shelf, &version(n), &to, run, public, true, &key, &stopped);
        assert!(refused.is_err());
        let made = work::name_version(&shelf, &version(n), &to, run, public, true, &key, &stop);
        assert_eq!(made.map_err(|problem| problem.detail).expect("named").name, version(n));
        to.remove();
    }
}
