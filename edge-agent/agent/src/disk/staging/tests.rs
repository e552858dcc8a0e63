//! What is there already is found wherever it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use event_schema::{ProblemClass, RunId};
use rustix::io::Errno;
use tempfile::{TempDir, tempdir};

use super::super::{BlockReader, ManifestFile, index_path};
use super::{Opened, Staging};

const BLOCK: usize = 32 * 1024;

/// Bytes that nothing compresses or finds twice.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend(x.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub(super) struct Case {
    source: TempDir,
    pub(super) target: TempDir,
    state: TempDir,
    pub(super) manifest: Arc<ManifestFile>,
}

impl Case {
    pub(super) fn new(source: &[(&str, Vec<u8>)], target: &[(&str, Vec<u8>)]) -> Self {
        let (from, to, state) =
            (tempdir().expect("room"), tempdir().expect("room"), tempdir().expect("room"));
        for (root, files) in [(from.path(), source), (to.path(), target)] {
            for (name, bytes) in files {
                let path = root.join(name);
                fs::create_dir_all(path.parent().expect("below")).expect("made");
                fs::write(path, bytes).expect("written");
            }
        }
        let (manifest, problems) =
            index_path(from.path(), tempdir().expect("room").path(), &mut |_| true).expect("a source");
        assert_eq!(problems, []);
        Self { source: from, target: to, state, manifest: Arc::new(manifest) }
    }

    pub(super) fn open(&self, others: &[PathBuf]) -> Opened {
        let opened = self.reopen(others);
        assert_eq!(opened.reused, opened.verified.count());
        opened
    }

    /// In a later life, in which some blocks were fetched already.
    pub(super) fn reopen(&self, others: &[PathBuf]) -> Opened {
        let run = RunId([7; 16]);
        let opened =
            Staging::open(self.target.path(), self.state.path(), run, self.manifest.clone(), others, &|| {
                true
            });
        let opened = opened.expect("a usable destination");
        assert_eq!(opened.problems, []);
        opened
    }

    /// How many blocks are still to be fetched.
    fn lacks(&self, others: &[PathBuf]) -> u64 {
        let opened = self.open(others);
        self.manifest.blocks() - opened.verified.count()
    }

    pub(super) fn same(&self, name: &str) {
        let read = |root: &Path| fs::read(root.join(name)).expect("there");
        assert!(read(self.source.path()) == read(self.target.path()), "{name}");
    }
}

#[test]
fn bytes_inserted_cut_out_and_moved_cost_what_they_touch() {
    let old = noise(1, 100 * BLOCK + 777);
    let at = 40 * BLOCK + 5;
    let edits: [(&str, Vec<u8>, u64); 7] = [
        ("a byte at the start", [&[7][..], &old].concat(), 1),
        ("a byte in the middle", [&old[..at], &[7], &old[at..]].concat(), 1),
        ("cut out", [&old[..at], &old[at + 100..]].concat(), 1),
        ("cut off at the start", old[333..].to_vec(), 0),
        ("halves exchanged", [&old[at..], &old[..at]].concat(), 2),
        ("appended to", [&old[..], &noise(2, 10)].concat(), 1),
        ("all else", noise(3, 100 * BLOCK), 100),
    ];
    for (what, new, most) in edits {
        let case = Case::new(&[("file", new)], &[("file", old.clone())]);
        let lacks = case.lacks(&[]);
        assert!(lacks <= most, "{what}: {lacks} blocks");
        // What was found counts after a restart too.
        assert_eq!(case.lacks(&[]), lacks, "{what}");
        if lacks == 0 {
            case.same("file");
        }
    }
}

#[test]
fn content_that_repeats_itself_is_found_as_well() {
    let period: Vec<u8> = noise(4, 1000).into_iter().cycle().take(50 * BLOCK).collect();
    let case = Case::new(&[("file", [&[1, 2, 3][..], &period].concat())], &[("file", period)]);
    assert!(case.lacks(&[]) <= 2);
    let case = Case::new(&[("file", vec![5; 50 * BLOCK])], &[("file", vec![5; 3 * BLOCK + 1])]);
    assert_eq!(case.lacks(&[]), 0);
    case.same("file");
}

#[test]
fn renamed_moved_and_known_to_another_job() {
    let files: Vec<(String, Vec<u8>)> =
        (0..40).map(|n| (format!("{n}/same-name"), noise(n + 10, 2 * BLOCK))).collect();
    let named = |folder: &str, name: &dyn Fn(usize) -> String| -> Vec<(String, Vec<u8>)> {
        files
            .iter()
            .enumerate()
            .map(|(n, (_, bytes))| (format!("{folder}/{}", name(n)), bytes.clone()))
            .collect()
    };
    let text = |files: &[(String, Vec<u8>)]| -> Vec<(&'static str, Vec<u8>)> {
        files.iter().map(|(name, bytes)| (&*name.clone().leak(), bytes.clone())).collect()
    };
    // A folder renamed: the files have their names.
    let (after, before) = (named("new/name", &|n| format!("f{n}")), named("old", &|n| format!("f{n}")));
    let case = Case::new(&text(&after), &text(&before));
    assert_eq!(case.lacks(&[]), 0);
    case.same("new/name/f3");
    assert!(case.target.path().join("old/f3").exists(), "what was there stays");
    // Files renamed, each of a size of its own.
    let sized = |folder: &str, name: &str| -> Vec<(String, Vec<u8>)> {
        (0..40u64).map(|n| (format!("{folder}/{name}{n}"), noise(n, BLOCK + 100 * n as usize + 1))).collect()
    };
    let case = Case::new(&text(&sized("x", "after")), &text(&sized("x", "before")));
    assert_eq!(case.lacks(&[]), 0);
    case.same("x/after17");
    // In the folder of another job only; one file there is not what it seems.
    let other = tempdir().expect("room");
    for (name, bytes) in sized("deep/down", "f") {
        let path = other.path().join(name);
        fs::create_dir_all(path.parent().expect("below")).expect("made");
        fs::write(path, bytes).expect("written");
    }
    let forged = other.path().join("deep/down/f5");
    let len = fs::metadata(&forged).expect("there").len();
    fs::write(&forged, noise(99, len as usize)).expect("written");
    let case = Case::new(&text(&sized("y", "f")), &[]);
    assert_eq!(case.lacks(&[other.path().into(), other.path().join("gone")]), 2);
    case.same("y/f6");
    assert!(!case.target.path().join("y/f5").exists());
}

/// Whoever empties the staging folder under a run must not get files of zeros for it.
#[test]
fn a_file_whose_content_was_removed_is_not_put_in_place() {
    let case = Case::new(&[("file", noise(1, 3 * BLOCK)), ("empty", vec![])], &[("file", noise(2, 100))]);
    let opened = case.open(&[]);
    let source =
        super::super::BlockReader::for_source(case.source.path(), case.manifest.clone()).expect("there");
    for block in 0..2 {
        opened.staging.write(block, source.read(block).expect("unchanged")).expect("kept");
    }
    let staging = case.target.path().join(".flotilla").join(RunId([7; 16]).to_string());
    let removed =
        fs::read_dir(&staging).expect("there").map(|file| fs::remove_file(file.expect("there").path()));
    assert!(removed.map(|one| one.expect("removed")).count() > 0);
    drop(opened);
    let opened = case.open(&[]);
    assert_eq!(opened.verified.count(), 0, "nothing is there any more");
    for block in 0..3 {
        opened.staging.write(block, source.read(block).expect("unchanged")).expect("kept");
        if block == 1 {
            fs::remove_dir_all(&staging).expect("removed");
            fs::create_dir(&staging).expect("made");
        }
    }
    opened.staging.finalize();
    assert!(fs::read(case.target.path().join("file")).expect("the old one") != vec![0; 3 * BLOCK]);
}

/// A large region of one content that moved: each window of it looks like every block of it.
#[test]
fn a_moved_region_of_one_content_is_found_in_good_time() {
    let region = vec![0xff; 512 * BLOCK];
    let (new, old) =
        ([&noise(5, 100)[..], &region, &noise(6, 777)].concat(), [&region[..], &noise(7, 55)].concat());
    let case = Case::new(&[("file", new)], &[("file", old)]);
    let start = std::time::Instant::now();
    assert!(case.lacks(&[]) <= 3);
    println!("{:?}", start.elapsed());
}

impl Case {
    /// Gives all that is missing, as peers would.
    pub(super) fn fetch(&self, staging: &Staging, which: impl IntoIterator<Item = u64>) {
        let source = BlockReader::for_source(self.source.path(), self.manifest.clone()).expect("there");
        let blocks = which.into_iter().map(|block| (block, source.read(block).expect("unchanged")));
        assert!(staging.write_all(blocks).iter().all(Result::is_ok));
    }

    fn staged(&self, name: &str) -> PathBuf {
        let (entry, _) = self.manifest.known().find(name.as_bytes()).expect("readable").expect("there");
        self.target.path().join(".flotilla").join(RunId([7; 16]).to_string()).join(entry.to_string())
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.target.path().join(name)).expect("there")
    }
}

/// What the disk refuses when it is written down at last is told once by the system; whoever asks again hears of
/// nothing. Here the second of three files was lost.
#[test]
fn what_the_disk_did_not_keep_gets_no_name() {
    let files = [("a", noise(1, 100)), ("b", noise(2, 3 * BLOCK)), ("c", noise(3, 3 * BLOCK))];
    let case = Case::new(&files, &[("b", b"old".to_vec())]);
    let opened = case.open(&[]);
    case.fetch(&opened.staging, 0..case.manifest.blocks());
    assert!(!case.target.path().join("a").exists(), "nobody has written it down yet");
    let zeros = vec![0; 3 * BLOCK];
    let lost = fs::OpenOptions::new().write(true).open(case.staged("b")).expect("waiting");
    std::os::unix::fs::FileExt::write_all_at(&lost, &zeros, 0).expect("room");
    *opened.staging.failing_sync.lock().expect("nobody panicked") = Some(Errno::NOSPC);
    let problems = opened.staging.finalize();
    assert_eq!(case.read("b"), b"old");
    case.same("a");
    case.same("c");
    // Not a full disk: waiting for room would not bring it back.
    let told: Vec<_> = problems.iter().map(|problem| (problem.class, &problem.path[..])).collect();
    assert_eq!(told, [(ProblemClass::Io, &b"b"[..])]);
    // The next life believes no more than this one.
    assert!(case.state.path().join("doubtful").exists());
    let again = case.reopen(&[]);
    assert!(again.staging.lock().doubtful);
    assert_eq!(again.verified.count(), case.manifest.blocks() - 3);
    case.fetch(&again.staging, 0..case.manifest.blocks());
    assert_eq!(again.staging.finalize(), []);
    case.same("b");
}

#[test]
fn a_failure_at_the_very_end_is_no_full_disk() {
    let case = Case::new(&[("a", noise(1, 100))], &[]);
    let opened = case.open(&[]);
    case.fetch(&opened.staging, 0..1);
    opened.staging.name_waiting(&mut |problem| panic!("{problem:?}"));
    case.same("a");
    *opened.staging.failing_sync.lock().expect("nobody panicked") = Some(Errno::NOSPC);
    let classes: Vec<_> = opened.staging.finalize().iter().map(|problem| problem.class).collect();
    assert_eq!(classes, [ProblemClass::Io], "else it would be tried again, and hear nothing");
}

#[test]
fn what_was_changed_here_since_it_was_put_in_place_is_told() {
    let files: Vec<(String, Vec<u8>)> = (0..5).map(|n| (format!("f{n}"), noise(n, 100))).collect();
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, bytes)| (&**name, bytes.clone())).collect();
    let case = Case::new(&files, &[("f0", noise(0, 100)), ("f1", noise(1, 100))]);
    let opened = case.open(&[]);
    case.fetch(&opened.staging, 0..5);
    opened.staging.name_waiting(&mut |problem| panic!("{problem:?}"));
    // One that was there before, two that came; and one that was only looked at.
    fs::write(case.target.path().join("f0"), "edited").expect("written");
    fs::remove_file(case.target.path().join("f2")).expect("removed");
    fs::write(case.target.path().join("f3"), noise(99, 100)).expect("written");
    case.read("f4");
    let mut told: Vec<_> = opened.staging.finalize().into_iter().map(|problem| problem.path).collect();
    told.sort();
    assert_eq!(told, [b"f0", b"f2", b"f3"]);
}

#[test]
fn a_folder_that_somebody_moves_is_not_followed() {
    let case = Case::new(&[("a/1", noise(1, 10)), ("a/2", noise(2, 10)), ("a/3", noise(3, 10))], &[]);
    let elsewhere = tempdir().expect("room");
    let opened = case.open(&[]);
    case.fetch(&opened.staging, [0]);
    opened.staging.name_waiting(&mut |problem| panic!("{problem:?}"));
    fs::rename(case.target.path().join("a"), elsewhere.path().join("a")).expect("moved");
    case.fetch(&opened.staging, [1, 2]);
    opened.staging.name_waiting(&mut |problem| panic!("{problem:?}"));
    assert_eq!(fs::read_dir(elsewhere.path().join("a")).expect("there").count(), 1);
    case.same("a/2");
    case.same("a/3");
    let told: Vec<_> = opened.staging.finalize().into_iter().map(|problem| problem.path).collect();
    assert_eq!(told, [b"a/1"]);
}

#[test]
fn what_is_in_the_way_of_a_folder_stays_until_there_is_something_for_it() {
    let case = Case::new(&[("a/b/1", noise(1, 10))], &[("a", b"a file".to_vec())]);
    let opened = case.open(&[]);
    opened.staging.remove_staging();
    assert_eq!(case.read("a"), b"a file", "a run that is stopped at once");
    let opened = case.open(&[]);
    case.fetch(&opened.staging, [0]);
    assert_eq!(case.read("a"), b"a file");
    assert_eq!(opened.staging.finalize(), []);
    case.same("a/b/1");
}

#[test]
fn a_stop_is_heeded_in_the_middle_of_a_file() {
    let bytes = noise(1, 2000 * BLOCK);
    let case = Case::new(&[("new", bytes.clone())], &[("new", bytes)]);
    let asked = std::cell::Cell::new(0);
    let go_on = || {
        asked.set(asked.get() + 1);
        asked.get() < 5
    };
    let run = RunId([7; 16]);
    let opened =
        Staging::open(case.target.path(), case.state.path(), run, case.manifest.clone(), &[], &go_on);
    let opened = opened.expect("a usable destination");
    assert_eq!(opened.verified.count(), 0);
    assert!((5..12).contains(&asked.get()), "asked {} times", asked.get());
}

#[test]
fn the_staging_folder_becomes_the_agents_own() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let case = Case::new(&[("a", noise(1, 10))], &[]);
    let hidden = case.target.path().join(".flotilla");
    let run = hidden.join(RunId([7; 16]).to_string());
    fs::create_dir_all(&run).expect("made");
    for folder in [&hidden, &run] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("ours");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(folder, Some(12345), None).expect("root");
        }
    }
    let opened = case.open(&[]);
    for folder in [&hidden, &run] {
        let meta = fs::metadata(folder).expect("there");
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid()),
            (0o700, rustix::process::geteuid().as_raw()),
            "{folder:?}"
        );
    }
    case.fetch(&opened.staging, [0]);
    assert_eq!(opened.staging.finalize(), []);
}

/// Does something in a thread with mounts of its own; says whether it could.
pub(super) fn with_own_mounts(name: &str, act: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let mount = |args: &[&str]| {
            std::process::Command::new("mount").args(args).status().is_ok_and(|status| status.success())
        };
        let may = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_ok();
        if may && mount(&["--make-rprivate", "/"]) {
            act();
            return true;
        }
        false
    });
    if !thread.join().expect("the test passes") {
        assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "mounts need root");
        eprintln!("SKIPPED {name}: mounts need root");
    }
}

#[test]
fn a_disk_that_is_full_at_the_end_costs_nothing() {
    with_own_mounts("a_disk_that_is_full_at_the_end_costs_nothing", || {
        let case = Case::new(&[("dir/file", noise(1, 100))], &[]);
        let source = case.source.path();
        (0..5).for_each(|n| {
            std::os::unix::fs::symlink("file", source.join(format!("dir/link{n}"))).expect("linked");
        });
        fs::hard_link(source.join("dir/file"), source.join("dir/other")).expect("linked");
        let state = tempdir().expect("room");
        let (manifest, _) = index_path(source, state.path(), &mut |_| true).expect("a source");
        let case = Case { manifest: Arc::new(manifest), ..case };
        let small = ["-t", "tmpfs", "-o", "nr_inodes=20", "none", case.target.path().to_str().expect("text")];
        assert!(std::process::Command::new("mount").args(small).status().expect("mount").success());
        let opened = case.open(&[]);
        case.fetch(&opened.staging, 0..1);
        // A folder that takes all room there is.
        let fill = case.target.path().join("fill");
        fs::create_dir(&fill).expect("room");
        let filled = (0..).take_while(|n| fs::write(fill.join(n.to_string()), "").is_ok()).count();
        assert!(filled > 3);
        for _ in 0..2 {
            let problems = opened.staging.finalize();
            assert!(problems.iter().any(|problem| problem.class == ProblemClass::DiskFull), "{problems:?}");
        }
        fs::remove_dir_all(&fill).expect("removed");
        assert_eq!(opened.staging.finalize(), []);
        case.same("dir/file");
        let names = fs::read_dir(case.target.path().join("dir")).expect("there").count();
        assert_eq!(names, 7);
        assert!(!case.target.path().join(".flotilla").exists());
        drop(opened);
        drop(case);
    });
}

/// Files that nobody may write to, and one that nobody may read, by an agent that is not root.
#[test]
fn read_only_files_survive_what_interrupts_them() {
    use std::os::unix::fs::{PermissionsExt, chown};
    const USER: u32 = 12345;
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "becoming another user needs root");
        eprintln!("SKIPPED read_only_files_survive_what_interrupts_them: becoming another user needs root");
        return;
    }
    let modes = [0o444, 0o400, 0o000, 0o200, 0o555];
    let case = Case::new(&[], &[]);
    for (n, mode) in modes.iter().enumerate() {
        for half in ["left", "kept"] {
            let path = case.source.path().join(format!("{half}{n}"));
            fs::write(&path, noise(n as u64, 1000)).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).expect("ours");
            chown(&path, Some(USER), Some(0)).expect("root");
        }
    }
    for folder in [case.source.path(), case.target.path(), case.state.path()] {
        chown(folder, Some(USER), Some(0)).expect("root");
    }
    let state = tempdir().expect("room");
    let (manifest, _) = index_path(case.source.path(), state.path(), &mut |_| true).expect("a source");
    let case = Case { manifest: Arc::new(manifest), ..case };
    let source = BlockReader::for_source(case.source.path(), case.manifest.clone()).expect("there");
    let blocks: Vec<_> = (0..2 * modes.len() as u64).map(|n| (n, source.read(n).expect("there"))).collect();
    let thread = std::thread::spawn(move || {
        // This thread's rights on files alone.
        nix::unistd::setfsuid(USER.into());
        assert!(fs::write("/etc/flotilla-test", "").is_err(), "not root any more");
        let opened = case.open(&[]);
        // Those named `kept…` come first, and wait for their names when the agent is killed.
        let results = opened.staging.write_all(blocks[..modes.len()].iter().cloned());
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        drop(opened);
        // Of the others a full disk left only a part, with the mode of the file.
        for (n, mode) in modes.iter().enumerate() {
            let part = case.staged(&format!("left{n}"));
            fs::write(&part, "part").expect("written");
            fs::set_permissions(&part, fs::Permissions::from_mode(*mode)).expect("ours");
        }
        let opened = case.reopen(&[]);
        assert_eq!(opened.verified.count(), modes.len() as u64, "what was whole is not fetched again");
        let results = opened.staging.write_all(blocks[modes.len()..].iter().cloned());
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert_eq!(opened.staging.finalize(), []);
        for (n, mode) in modes.iter().enumerate() {
            for half in ["left", "kept"] {
                let meta = fs::metadata(case.target.path().join(format!("{half}{n}"))).expect("there");
                assert_eq!((meta.permissions().mode() & 0o7777, meta.len()), (*mode, 1000), "{half}{n}");
            }
        }
    });
    thread.join().expect("the test passes");
}

#[test]
fn what_is_in_the_way_is_kept_where_nothing_may_be_lost() {
    let new = |n| noise(n, BLOCK + 5);
    let case = Case::new(
        &[("REC_1", new(1)), ("same", new(2)), ("day/a", new(3)), ("link", new(4))],
        &[("REC_1", b"monday".to_vec()), ("same", new(2)), ("day", b"a file".to_vec())],
    );
    std::os::unix::fs::symlink("REC_1", case.target.path().join("link")).expect("linked");
    fs::write(case.state.path().join(super::KEEPS), b"").expect("noted");
    let all = || 0..case.manifest.blocks();
    let opened = case.open(&[]);
    case.fetch(&opened.staging, all());
    assert_eq!(opened.staging.finalize(), []);
    ["REC_1", "same", "day/a", "link"].iter().for_each(|name| case.same(name));
    let kept = case.target.path().join(".flotilla/archive").join(RunId([7; 16]).to_string());
    assert_eq!(fs::read(kept.join("REC_1")).expect("kept"), b"monday");
    assert_eq!(fs::read(kept.join("day")).expect("kept"), b"a file");
    assert_eq!(fs::read_link(kept.join("link")).expect("kept"), Path::new("REC_1"));
    assert!(!kept.join("same").exists(), "it was not in the way");
    let told = opened.staging.kept().expect("told");
    assert!(told.path.is_empty() && told.detail.contains(".flotilla/archive/"), "{told:?}");
    drop(opened);

    // Somebody writes to what was put in place, and the run goes on: that is no less theirs.
    fs::write(case.target.path().join("REC_1"), b"edited").expect("written");
    let (run, manifest) = (RunId([7; 16]), case.manifest.clone());
    let opened = Staging::open(case.target.path(), case.state.path(), run, manifest, &[], &|| true);
    let opened = opened.expect("a usable destination");
    case.fetch(&opened.staging, all());
    assert_eq!(opened.staging.finalize(), []);
    case.same("REC_1");
    assert_eq!(fs::read(kept.join("REC_1")).expect("kept"), b"monday");
    assert_eq!(fs::read(kept.join("REC_1.1")).expect("kept"), b"edited");
}

#[test]
fn a_run_that_may_replace_files_keeps_none() {
    let case = Case::new(&[("file", noise(1, BLOCK))], &[("file", b"old".to_vec())]);
    let opened = case.open(&[]);
    case.fetch(&opened.staging, [0]);
    assert_eq!(opened.staging.finalize(), []);
    assert_eq!(opened.staging.kept(), None);
    case.same("file");
    assert!(!case.target.path().join(".flotilla").exists());
}

/// Rules are the word of a folder's owner: who makes a job cannot take them back by sending others.
#[test]
fn rules_that_are_there_stay() {
    let rules = |text: &str| text.as_bytes().to_vec();
    let case = Case::new(
        &[
            (".flotillaignore", rules("*.tmp\n")),
            ("file", noise(1, BLOCK)),
            ("none/.flotillaignore", rules("a\n")),
            ("same/.flotillaignore", rules("b\n")),
            ("other/.FlotillaIgnore/file", rules("a way to have them replaced\n")),
        ],
        &[
            (".flotillaignore", rules("*.key\n")),
            ("same/.flotillaignore", rules("b\n")),
            ("other/.FlotillaIgnore", rules("secret\n")),
        ],
    );
    let read = |path: &str| fs::read_to_string(case.target.path().join(path)).expect("there");
    for _life in 0..2 {
        let opened = case.reopen(&[]);
        case.fetch(&opened.staging, opened.verified.gaps().flatten());
        let problems = opened.staging.finalize();
        assert!(problems.iter().all(|p| p.path.starts_with(b"other/.FlotillaIgnore")), "{problems:?}");
        assert!(problems.iter().any(|p| p.class == ProblemClass::UnsafeName), "{problems:?}");
        assert_eq!(opened.staging.spared().expect("told").path, b".flotillaignore");
        assert_eq!(read(".flotillaignore"), "*.key\n");
        assert_eq!(read("other/.FlotillaIgnore"), "secret\n");
        ["file", "none/.flotillaignore", "same/.flotillaignore"].iter().for_each(|name| case.same(name));
    }
    fs::remove_file(case.target.path().join(".flotillaignore")).expect("removed");
    let opened = case.reopen(&[]);
    case.fetch(&opened.staging, opened.verified.gaps().flatten());
    opened.staging.finalize();
    assert_eq!(opened.staging.spared(), None);
    case.same(".flotillaignore");
}
