//! Synchronization between agents in one process, over real sockets on loopback, with real folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use event_schema::{
    AnswerGuard, GuardAnswer, JobId, LocalChanges, Permission, ReportBody, RunId, Selection, SyncPeer,
    SyncPolicy, Synchronize,
};

use super::SyncStatus;
use crate::disk::noise;
use crate::run::tests::{Agent, Fleet, Options};

const RUN: RunId = RunId([0x5c; 16]);

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(60);

fn rw(_: usize) -> Permission {
    Permission::ReadWrite
}

/// Agents with a folder each, in one job.
struct Scene {
    fleet: Fleet,
    agents: Vec<Agent>,
    folders: Vec<tempfile::TempDir>,
    permission: fn(usize) -> Permission,
    policy: SyncPolicy,
    selections: BTreeMap<usize, Selection>,
}

impl Scene {
    async fn new(count: usize, permission: fn(usize) -> Permission) -> Self {
        let fleet = Fleet::new();
        let mut agents = Vec::new();
        for n in 0..count {
            agents.push(fleet.agent(n as u8, Options::default()).await);
        }
        // A file system with times, attributes and holes, as jobs have.
        let folders = (0..count).map(|_| tempfile::tempdir_in("/var/tmp").expect("a folder")).collect();
        Self {
            fleet,
            agents,
            folders,
            permission,
            policy: SyncPolicy::default(),
            selections: BTreeMap::new(),
        }
    }

    fn order(&self, of: usize) -> Synchronize {
        let member = |(n, a): (usize, &Agent)| SyncPeer {
            agent: a.id(),
            public_key: a.key.verifying_key().to_bytes(),
            permission: (self.permission)(n),
            addresses: vec![format!("127.0.0.1:{}", a.port)],
        };
        Synchronize {
            run: RUN,
            job: JobId([1; 16]),
            job_name: "shared".into(),
            revision: 1,
            path: self.folder(of).as_os_str().as_encoded_bytes().to_vec(),
            permission: (self.permission)(of),
            selection: self.selections.get(&of).cloned().unwrap_or_default(),
            policy: self.policy,
            members: self.agents.iter().enumerate().map(member).collect(),
            trackers: Vec::new(),
            sealed_secret: self.fleet.seal(&self.agents[of], RUN),
        }
    }

    fn folder(&self, of: usize) -> PathBuf {
        self.folders[of].path().join("shared")
    }

    fn at(&self, of: usize, path: &str) -> PathBuf {
        self.folder(of).join(path)
    }

    async fn join(&self, of: usize) {
        self.agents[of].runs().synchronize(self.order(of)).await;
    }

    async fn join_all(&self) {
        for n in 0..self.agents.len() {
            self.join(n).await;
        }
    }

    async fn restart(&mut self, of: usize) {
        self.agents[of].halt().await;
        self.agents[of].start(&self.fleet).await;
        self.join(of).await;
    }

    fn write(&self, of: usize, path: &str, content: impl AsRef<[u8]>) {
        let at = self.at(of, path);
        fs::create_dir_all(at.parent().expect("a folder")).expect("made");
        fs::write(at, content).expect("written");
    }

    fn read(&self, of: usize, path: &str) -> Option<Vec<u8>> {
        fs::read(self.at(of, path)).ok()
    }

    fn status(&self, of: usize) -> (String, SyncStatus) {
        let all = self.agents[of].runs.as_ref().map(|runs| runs.status()).unwrap_or_default();
        let status = all.into_iter().find(|s| s.run == RUN);
        status.map(|s| (s.state.to_owned(), s.sync.unwrap_or_default())).unwrap_or_default()
    }

    /// How the others are connected.
    fn ways(&self, of: usize) -> Vec<&'static str> {
        let all = self.agents[of].runs.as_ref().map(|runs| runs.status()).unwrap_or_default();
        let status = all.into_iter().find(|s| s.run == RUN);
        status.map(|s| s.connections.iter().map(|c| c.way.name()).collect()).unwrap_or_default()
    }

    async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
        let began = Instant::now();
        while !holds() {
            if began.elapsed() > LIMIT {
                for n in 0..self.agents.len() {
                    eprintln!("{n}: {:?} {:?}", self.status(n), tree(&self.folder(n)).keys());
                }
                panic!("waited for {what}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        began.elapsed()
    }

    /// Everybody says that it is in sync, and all trees are the same for a while.
    async fn converged(&self) -> Duration {
        let all = 0..self.agents.len();
        let same = || {
            let first = tree(&self.folder(0));
            all.clone().all(|n| {
                let (state, status) = self.status(n);
                state == "in sync"
                    && status.to_bring + status.to_remove == 0
                    && tree(&self.folder(n)) == first
            })
        };
        let mut since: Option<Instant> = None;
        self.until("one tree", || {
            if !same() {
                since = None;
                return false;
            }
            since.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(1500)
        })
        .await
    }
}

/// What people see of a folder: kinds, content, modes and times.
fn tree(folder: &Path) -> BTreeMap<PathBuf, (char, Vec<u8>, u32, i128)> {
    use std::os::unix::fs::MetadataExt;
    let mut tree = BTreeMap::new();
    let all = walkdir::WalkDir::new(folder).min_depth(1).into_iter();
    let own = |e: &walkdir::DirEntry| e.file_name() != ".flotilla";
    for entry in all.filter_entry(own).flatten() {
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        let time = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        let seen = if meta.is_dir() {
            ('d', Vec::new(), meta.mode(), 0)
        } else if meta.is_symlink() {
            let target = fs::read_link(entry.path()).map(|t| t.into_os_string().into_encoded_bytes());
            ('l', target.unwrap_or_default(), 0, time)
        } else {
            ('f', fs::read(entry.path()).unwrap_or_default(), meta.mode(), time)
        };
        tree.insert(entry.path().strip_prefix(folder).expect("below").to_owned(), seen);
    }
    tree
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_keep_one_folder() {
    let mut scene = Scene::new(2, rw).await;
    scene.write(0, "first", "made before");
    scene.join_all().await;
    scene.until("the first file", || scene.read(1, "first").is_some()).await;
    // Whoever looks sees how they are connected.
    scene.until("the connection to be shown", || scene.ways(0) == ["lan"] && scene.ways(1) == ["lan"]).await;
    // Made, edited, renamed, deleted, in both directions.
    scene.write(0, "deep/er/a", vec![7; 100_000]);
    scene.write(1, "b", "b");
    std::os::unix::fs::symlink("b", scene.at(1, "link")).expect("linked");
    scene.until("a", || scene.read(1, "deep/er/a").is_some_and(|a| a.len() == 100_000)).await;
    scene.until("b", || scene.read(0, "b").is_some() && scene.at(0, "link").is_symlink()).await;
    scene.converged().await;
    scene.write(1, "deep/er/a", vec![8; 90_000]);
    let took = scene.until("the edit", || scene.read(0, "deep/er/a").is_some_and(|a| a == [8; 90_000])).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    scene.converged().await;
    fs::rename(scene.at(0, "deep"), scene.at(0, "moved")).expect("renamed");
    scene
        .until("the rename", || scene.read(1, "moved/er/a").is_some() && !scene.at(1, "deep").exists())
        .await;
    scene.until("it to be counted as moved, not fetched", || scene.status(1).1.moved >= 1).await;
    fs::remove_file(scene.at(1, "b")).expect("removed");
    scene.until("the deletion", || !scene.at(0, "b").exists()).await;
    scene.converged().await;
    // What was displaced is in the archive.
    let archived = walkdir::WalkDir::new(scene.at(0, ".flotilla/archive")).into_iter().flatten();
    let names: Vec<String> = archived.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.contains(&"b".to_owned()) && names.contains(&"a".to_owned()), "{names:?}");
    // While one is away both change things; one of them the same file.
    scene.agents[1].halt().await;
    scene.write(0, "while away", "0");
    scene.write(0, "first", "by 0");
    scene.write(1, "first", "by 1, who is away");
    fs::remove_dir_all(scene.at(1, "moved")).expect("removed");
    scene.agents[1].start(&scene.fleet).await;
    scene.join(1).await;
    scene
        .until("what happened", || scene.read(1, "while away").is_some() && !scene.at(0, "moved").exists())
        .await;
    scene.converged().await;
    let now = tree(&scene.folder(0));
    let contents: Vec<&[u8]> = now.values().map(|(_, content, ..)| content.as_slice()).collect();
    assert!(contents.contains(&b"by 0".as_slice()) && contents.contains(&b"by 1, who is away".as_slice()));
    assert_eq!(scene.status(0).1.conflicts, 1);
    // Restarting changes nothing.
    scene.restart(0).await;
    scene.converged().await;
    assert_eq!(tree(&scene.folder(0)), now);
}

/// Deterministic choices.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// What people do at random: each edit is a content of its own, so that it can be found again.
struct People {
    rng: Rng,
    next: u64,
    /// Contents written, and those that somebody replaced or removed knowing them.
    written: BTreeMap<u64, Vec<u8>>,
    given_up: std::collections::BTreeSet<u64>,
}

fn content(n: u64) -> Vec<u8> {
    // Some of several blocks.
    let len = 20 + (n * 7919 % 11) as usize * 9000;
    let mut bytes = format!("content {n} ").into_bytes();
    while bytes.len() < len {
        bytes.extend_from_slice(&n.wrapping_mul(bytes.len() as u64 + 1).to_le_bytes());
    }
    bytes
}

fn number_of(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes.get(..28.min(bytes.len()))?).ok().or_else(|| {
        let end = bytes.iter().position(|b| !b.is_ascii())?;
        std::str::from_utf8(&bytes[..end]).ok()
    })?;
    text.strip_prefix("content ")?.split(' ').next()?.parse().ok()
}

impl People {
    fn act(&mut self, root: &Path) {
        let files: Vec<PathBuf> = tree(root)
            .into_iter()
            .filter(|(_, (kind, ..))| *kind == 'f')
            .map(|(path, _)| root.join(path))
            .collect();
        let some = |rng: &mut Rng| files.get(rng.below(files.len().max(1) as u64) as usize).cloned();
        let fresh = |rng: &mut Rng| {
            let folder = ["", "x/", "y/", "x/z/"][rng.below(4) as usize];
            root.join(format!("{folder}f{}", rng.below(12)))
        };
        match self.rng.below(10) {
            0..=4 => {
                let at = fresh(&mut self.rng);
                let Some(above) = at.parent() else { return };
                if fs::create_dir_all(above).is_err() {
                    return;
                }
                self.next += 1;
                let bytes = content(self.next);
                // Beside, then renamed over, as programs save: what is replaced is what was read just before.
                let beside = above.join(format!(".saving-{}", self.next));
                if fs::write(&beside, &bytes).is_err() {
                    return;
                }
                let old = fs::read(&at).ok();
                if fs::rename(&beside, &at).is_ok() {
                    self.written.insert(self.next, bytes);
                    self.given_up.extend(old.as_deref().and_then(number_of));
                } else {
                    let _ = fs::remove_file(&beside);
                }
            }
            5 | 6 => {
                let Some(from) = some(&mut self.rng) else { return };
                let to = fresh(&mut self.rng);
                let old = fs::read(&to).ok().and_then(|bytes| number_of(&bytes));
                if to.parent().is_some_and(Path::is_dir) && fs::rename(&from, &to).is_ok() {
                    self.given_up.extend(old);
                }
            }
            7 | 8 => {
                let Some(at) = some(&mut self.rng) else { return };
                let old = fs::read(&at).ok().and_then(|bytes| number_of(&bytes));
                if fs::remove_file(&at).is_ok() {
                    self.given_up.extend(old);
                }
            }
            _ => {
                let (from, to) = [("x", "w"), ("w", "x"), ("y", "x/y")][self.rng.below(3) as usize];
                let _ = fs::rename(root.join(from), root.join(to));
            }
        }
    }
}

/// Five agents; people edit, rename and delete everywhere, agents restart. Afterwards there is one tree, and whatever was
/// written and not knowingly given up is in it or in somebody's archive.
async fn five_at_random(seed: u64, actions: u64) {
    let mut scene = Scene::new(5, rw).await;
    scene.policy.guard_percent = 100;
    scene.join_all().await;
    let (written, given_up) = Default::default();
    let mut people = People { rng: Rng(seed), next: 0, written, given_up };
    for step in 0..actions {
        let of = people.rng.below(5) as usize;
        people.act(&scene.folder(of));
        if people.rng.below(40) == 0 {
            let of = people.rng.below(5) as usize;
            scene.restart(of).await;
        }
        let pause = people.rng.below(60);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if step % 50 == 49 {
            // Some of it is done in peace.
            let in_sync = || (0..5).all(|n| scene.status(n).0 == "in sync");
            scene.until("everybody to have caught up", in_sync).await;
        }
    }
    scene.converged().await;
    let mut found = std::collections::BTreeSet::new();
    for n in 0..5 {
        for entry in walkdir::WalkDir::new(scene.folder(n)).into_iter().flatten() {
            if entry.file_type().is_file()
                && let Ok(bytes) = fs::read(entry.path())
            {
                found.extend(number_of(&bytes));
            }
        }
    }
    let lost: Vec<&u64> =
        people.written.keys().filter(|n| !found.contains(n) && !people.given_up.contains(n)).collect();
    assert!(lost.is_empty(), "seed {seed}: lost {lost:?}");
    for (path, (_, bytes, ..)) in tree(&scene.folder(0)) {
        if let Some(n) = number_of(&bytes) {
            assert_eq!(bytes, content(n), "seed {seed}: {} is damaged", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_agents_at_random() {
    five_at_random(1, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures whether twenty seeds converge: minutes"]
async fn five_agents_at_random_twenty_times() {
    for seed in 2..22 {
        let began = Instant::now();
        five_at_random(seed, 200).await;
        println!("seed {seed}: {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_only_receives() {
    let permission = |n| match n {
        0 => Permission::ReadWrite,
        _ => Permission::ReadOnly { local: LocalChanges::KeepAside },
    };
    let scene = Scene::new(2, permission).await;
    scene.write(0, "a", "right");
    scene.join_all().await;
    scene.until("a", || scene.read(1, "a").is_some()).await;
    scene.write(1, "own", "the reader's");
    scene.write(1, "a", "changed where it may not be");
    let aside = || {
        let names = tree(&scene.folder(1)).into_keys().map(|p| p.to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("a.local-")).collect::<Vec<_>>()
    };
    scene
        .until("the right one", || scene.read(1, "a").is_some_and(|a| a == b"right") && !aside().is_empty())
        .await;
    assert_eq!(scene.read(1, &aside()[0]).expect("kept"), b"changed where it may not be");
    assert_eq!(scene.read(1, "own").expect("stays"), b"the reader's");
    assert!(scene.read(0, "own").is_none() && tree(&scene.folder(0)).len() == 1);
}

/// A member sends blocks that nobody asked for, while others come from another one, slowly.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_right_is_not_written_over() {
    let mut scene = Scene::new(3, rw).await;
    let slow = Options { upload_limit: Some(10_000_000), ..Options::default() };
    scene.agents[0] = scene.fleet.agent(7, slow).await;
    scene.agents[2] = scene.fleet.agent(8, Options { lies: true, ..Options::default() }).await;
    let content = noise(5, 30 << 20);
    scene.join_all().await;
    scene.until("all connected", || (0..3).all(|n| scene.ways(n).len() == 2)).await;
    scene.write(0, "film", &content);
    scene.until("it is there", || scene.at(1, "film").exists()).await;
    assert!(scene.read(1, "film").is_some_and(|film| film == content), "other bytes are in it");
}

/// Bytes that are put in or taken out move all that follows; that is found where it was.
#[tokio::test(flavor = "multi_thread")]
async fn what_moved_within_a_file_is_not_fetched_again() {
    let scene = Scene::new(2, rw).await;
    let mut bytes = noise(1, 9 << 20);
    // In one go: a file is not to be fetched as it was half-way.
    let write = |of: usize, bytes: &[u8]| {
        let aside = scene.folders[of].path().join("aside");
        fs::create_dir_all(scene.folder(of)).expect("made");
        fs::write(&aside, bytes).expect("written");
        fs::rename(&aside, scene.at(of, "a")).expect("renamed");
    };
    write(0, &bytes);
    scene.join_all().await;
    let mut counted = [0, 0];
    let mut fetched = async |to: usize, bytes: &[u8]| {
        scene.until("the change", || scene.read(to, "a").is_some_and(|there| there == bytes)).await;
        let before = counted[to];
        // What is shown is a moment old.
        scene.until("its counting", || scene.status(to).1.changes > before).await;
        let status = scene.status(to).1;
        counted[to] = status.changes;
        status.blocks
    };
    let mut had = [0, fetched(1, &bytes).await];
    assert!(had[1] >= 288, "{had:?}");
    let change: [fn(&mut Vec<u8>); 3] = [
        |bytes| bytes.insert(0, 7),
        |bytes| drop(bytes.drain(3_000_000..3_100_001)),
        |bytes| drop(bytes.splice(5_000_000..5_000_000, noise(2, 50_000))),
    ];
    for (n, change) in change.into_iter().enumerate() {
        let (from, to) = (n % 2, 1 - n % 2);
        change(&mut bytes);
        write(from, &bytes);
        let blocks = fetched(to, &bytes).await;
        assert!(blocks - had[to] <= 5, "{} blocks for the {n}th change", blocks - had[to]);
        had[to] = blocks;
    }
    // What is added at the end is looked for nowhere; it is fetched, and the block that was not full.
    bytes.extend(noise(3, 640 << 10));
    write(0, &bytes);
    let blocks = fetched(1, &bytes).await - had[1];
    assert!((20..=22).contains(&blocks), "{blocks} blocks");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_selections_leave_out() {
    let mut scene = Scene::new(2, rw).await;
    scene.selections.insert(1, Selection { ignore: Vec::new(), wanted: vec!["/docs/".into()] });
    scene.write(0, ".flotillaignore", "*.tmp\nbuild/\n");
    scene.write(1, ".flotillaignore", "*.own\n");
    scene.write(1, "docs/secret.own", "of this member alone");
    for path in ["a.tmp", "build/x", "docs/deep/a", "docs/b.tmp", "other/c"] {
        scene.write(0, path, path);
    }
    scene.join_all().await;
    scene.until("what is wanted", || scene.read(1, "docs/deep/a").is_some()).await;
    scene.write(1, "docs/new", "new");
    scene.until("the new one", || scene.read(0, "docs/new").is_some()).await;
    for path in ["a.tmp", "build", "docs/b.tmp", "other"] {
        assert!(!scene.at(1, path).exists(), "{path}");
        assert!(scene.at(0, path).exists(), "{path} stays where it is");
    }
    // What a member leaves out is for itself to say.
    scene.write(0, ".flotillaignore", "*.tmp\nbuild/\nnever\n");
    scene.write(0, "docs/after", "after");
    scene.until("what came after", || scene.read(1, "docs/after").is_some()).await;
    assert_eq!(scene.read(1, ".flotillaignore").expect("its own"), b"*.own\n");
    assert!(!scene.at(0, "docs/secret.own").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wanted_by_its_end_comes_in_its_folders() {
    let mut scene = Scene::new(2, rw).await;
    scene.selections.insert(1, Selection { ignore: Vec::new(), wanted: vec!["*.pdf".into()] });
    for path in ["top.pdf", "deep/er/a.pdf", "deep/er/b.txt", "other/c.txt"] {
        scene.write(0, path, path);
    }
    scene.join_all().await;
    scene.until("what is wanted", || scene.read(1, "deep/er/a.pdf").is_some()).await;
    scene.write(1, "deep/new/n.pdf", "new");
    scene.write(1, "deep/new/own.txt", "of this member alone");
    scene.until("the new one", || scene.read(0, "deep/new/n.pdf").is_some()).await;
    fs::rename(scene.at(0, "deep/er"), scene.at(0, "moved")).expect("renamed");
    scene
        .until("the move", || scene.read(1, "moved/a.pdf").is_some() && !scene.at(1, "deep/er").exists())
        .await;
    scene.until("nothing to be left", || (0..2).all(|n| scene.status(n).0 == "in sync")).await;
    let files = |of| -> Vec<PathBuf> {
        tree(&scene.folder(of)).into_iter().filter(|(_, what)| what.0 == 'f').map(|(path, _)| path).collect()
    };
    let paths = |names: &[&str]| -> Vec<PathBuf> { names.iter().map(PathBuf::from).collect() };
    assert_eq!(files(1), paths(&["deep/new/n.pdf", "deep/new/own.txt", "moved/a.pdf", "top.pdf"]));
    assert_eq!(files(0), paths(&["deep/new/n.pdf", "moved/a.pdf", "moved/b.txt", "other/c.txt", "top.pdf"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_not_there_is_no_deletion_and_a_great_one_is_asked_about() {
    let scene = Scene::new(2, rw).await;
    for n in 0..60 {
        scene.write(0, &format!("d/{n}"), format!("{n}"));
    }
    scene.join_all().await;
    scene.converged().await;
    // As a disk that is not mounted looks.
    let aside = scene.folders[1].path().join("aside");
    fs::rename(scene.folder(1), &aside).expect("renamed");
    fs::create_dir(scene.folder(1)).expect("made");
    scene.until("it to be noticed", || scene.status(1).0 == "waiting for the folder").await;
    scene.write(0, "meanwhile", "new");
    scene.until("it to be known", || scene.status(0).1.entries == 62).await;
    assert_eq!(scene.status(1).0, "waiting for the folder");
    assert_eq!(tree(&scene.folder(0)).len(), 62);
    fs::remove_dir(scene.folder(1)).expect("empty");
    fs::rename(&aside, scene.folder(1)).expect("renamed");
    scene.until("what came meanwhile", || scene.read(1, "meanwhile").is_some()).await;
    scene.converged().await;
    // Half of it deleted at once: nobody else loses anything before somebody says that it was meant.
    for n in 0..40 {
        fs::remove_file(scene.at(1, &format!("d/{n}"))).expect("removed");
    }
    scene.until("the question", || scene.status(1).0 == "guarded").await;
    assert_eq!(tree(&scene.folder(0)).len(), 62);
    let raised = || {
        let raised = |body| match body {
            ReportBody::GuardRaised(raised) => Some(raised),
            _ => None,
        };
        scene.agents[1].reports().into_iter().filter_map(raised).next_back()
    };
    scene.until("the report", || raised().is_some()).await;
    let guard = raised().expect("told").guard;
    // What answers another question is passed over: nothing is deleted, and the right answer is taken.
    for (guard, answer) in [(guard + 1, GuardAnswer::Delete), (guard, GuardAnswer::Restore)] {
        scene.agents[1].runs().answer_guard(AnswerGuard { run: RUN, guard, answer }).await;
    }
    scene.until("all of it back", || tree(&scene.folder(1)).len() == 62).await;
    scene.converged().await;
}

/// How long it is measured what two agents do that have nothing to do.
const IDLE: Duration = Duration::from_secs(20);

/// Noticed and delivered, and what a large folder takes at rest.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures a folder of 100,000 files"]
async fn a_hundred_thousand_files() {
    let files: usize = std::env::var("FLOTILLA_FILES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let scene = Scene::new(2, rw).await;
    for n in 0..files {
        let at = scene.at(0, &format!("d{}/{n}", n / 1000));
        if n % 1000 == 0 {
            fs::create_dir_all(at.parent().expect("a folder")).expect("made");
        }
        fs::write(at, format!("content of {n}")).expect("written");
    }
    let cpu = || {
        let stat = fs::read_to_string("/proc/self/stat").expect("readable");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap_or(0) + fields[12].parse::<u64>().unwrap_or(0)
    };
    let (began, before) = (Instant::now(), cpu());
    scene.join_all().await;
    let count = files as u64 + files.div_ceil(1000) as u64;
    let all = || (0..2).all(|n| scene.status(n).1.entries == count && scene.status(n).0 == "in sync");
    while !all() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(began.elapsed() < Duration::from_secs(1800), "{:?} {:?}", scene.status(0), scene.status(1));
    }
    let spent = (cpu() - before) as f64 / 100.0;
    println!("first synchronization of {files} files: {:?}, {spent} s of processor time", began.elapsed());
    tokio::time::sleep(IDLE / 2).await;
    let before = cpu();
    tokio::time::sleep(IDLE).await;
    println!("idle: {:.2} % of a processor for both", (cpu() - before) as f64 / IDLE.as_secs_f64());
    let resident = fs::read_to_string("/proc/self/statm").expect("readable");
    let pages: u64 = resident.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    println!("resident: {} MB for both", pages * 4096 / 1_000_000);
    for round in 0..5 {
        let text = format!("changed {round}");
        scene.write(round % 2, "d0/7", &text);
        let took =
            scene.until("it", || scene.read(1 - round % 2, "d0/7").is_some_and(|c| c == text.as_bytes()));
        println!("noticed and delivered: {:?}", took.await);
        scene.until("both in sync", || (0..2).all(|n| scene.status(n).0 == "in sync")).await;
    }
}
