//! What is there already is found wherever it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use event_schema::RunId;
use tempfile::{TempDir, tempdir};

use super::super::{ManifestFile, index_path};
use super::{Opened, Staging};

const BLOCK: usize = 32 * 1024;

fn noise(seed: u64, len: usize) -> Vec<u8> {
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
        let run = RunId([7; 16]);
        let opened =
            Staging::open(self.target.path(), self.state.path(), run, self.manifest.clone(), others, &|| {
                true
            });
        let opened = opened.expect("a usable destination");
        assert_eq!(opened.problems, []);
        assert_eq!(opened.reused, opened.verified.count());
        opened
    }

    /// How many blocks are still to be fetched.
    fn lacks(&self, others: &[PathBuf]) -> u64 {
        let opened = self.open(others);
        self.manifest.blocks() - opened.verified.count()
    }

    fn same(&self, name: &str) {
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
