//! A tree is indexed, its blocks carried by hand to a destination, and the two are compared.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use event_schema::{ProblemClass, RunId};
use sync_core::BlockMap;
use sync_core::manifest::{BlockHash, Entry, Kind, Mtime, encode};
use tempfile::{TempDir, tempdir};

use super::staging::Opened;
use super::*;

const RUN: RunId = RunId([7; 16]);

fn indexed(path: &Path) -> (Arc<ManifestFile>, Vec<Problem>) {
    let state = tempdir().expect("room");
    let (manifest, problems) = index_path(path, state.path(), &mut |_| true).expect("a readable source");
    (Arc::new(manifest), problems)
}

fn entries(manifest: &ManifestFile) -> Vec<Entry> {
    (0..manifest.entries()).map(|i| manifest.entry(i).expect("readable").clone()).collect()
}

/// The index of the entry with this path, and its blocks.
fn find(manifest: &ManifestFile, path: &[u8]) -> (u64, std::ops::Range<u64>) {
    let (index, _) = manifest.known().find(path).expect("readable").expect("there");
    (index, manifest.entry(index).expect("there").blocks())
}

/// A manifest of the caller's making.
fn made(entries: Vec<(Entry, Vec<BlockHash>)>) -> Arc<ManifestFile> {
    let mut file = tempfile::tempfile().expect("room");
    file.write_all(&encode(entries).expect("good entries")).expect("room");
    Arc::new(ManifestFile::open(Arc::new(file)).expect("good"))
}

fn blocks(map: &BlockMap) -> Vec<u64> {
    map.ranges().flatten().collect()
}

fn open(dst: &Path, state: &Path, manifest: &Arc<ManifestFile>) -> Opened {
    Staging::open(dst, state, RUN, manifest.clone(), &[], &|| true).expect("a usable destination")
}

/// Carries the blocks in `which` from the source to the staging.
fn carry(source: &BlockReader, staging: &Staging, which: impl IntoIterator<Item = u64>) {
    for block in which {
        staging.write(block, source.read(block).expect("unchanged")).expect("a good block");
    }
}

/// What `rsync -nrlpt --checksum` would compare, as text.
fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for item in walkdir::WalkDir::new(root).sort_by_file_name() {
        let item = item.expect("readable");
        let meta = fs::symlink_metadata(item.path()).expect("there");
        let content = if meta.is_file() && meta.len() > 1 << 32 {
            // Nothing but holes: reading them takes minutes.
            format!("{} bytes in {} blocks", meta.len(), meta.blocks())
        } else if meta.is_file() {
            let hash = sync_core::merkle::block_hash(&fs::read(item.path()).expect("readable"));
            format!("{} {hash:?}", meta.len())
        } else if meta.is_symlink() {
            format!("{:?}", fs::read_link(item.path()).expect("a link"))
        } else {
            String::new()
        };
        let path = item.path().strip_prefix(root).expect("below");
        let mode = if meta.is_symlink() { 0 } else { meta.mode() };
        let owner = (meta.uid(), meta.gid());
        let time = (meta.mtime(), meta.mtime_nsec());
        lines.push(format!("{path:?} {mode:o} {time:?} {owner:?} {:?} {content}", attributes(item.path())));
    }
    lines
}

/// Extended attributes with their values.
fn attributes(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).expect("a list");
    let value = |name: &[u8]| {
        let mut value = vec![0; 65_536];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("a value");
        (name.to_vec(), value[..len].to_vec())
    };
    let mut all: Vec<_> =
        names[..len].split(|&b| b == 0).filter(|name| !name.is_empty()).map(value).collect();
    all.sort();
    all
}

fn set_attribute(path: &Path, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty())
}

/// An access list as its attribute has it: the owner may read and write, user 4321 what `named` says, nobody else.
fn acl(named: u16) -> Vec<u8> {
    let nobody = u32::MAX;
    let entries = [(1, 6, nobody), (2, named, 4321), (4, 0, nobody), (0x10, 7, nobody), (0x20, 0, nobody)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        bytes.extend([tag, rights].into_iter().flat_map(u16::to_le_bytes));
        bytes.extend(u32::to_le_bytes(id));
    }
    bytes
}

fn set_time(path: &Path, seconds: i64) {
    let times = folder::timestamps(Mtime { seconds, nanos: 123_456_789 });
    let at = rustix::fs::CWD;
    rustix::fs::utimensat(at, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("allowed");
}

/// Odd names, empty files, many blocks, links, a folder without write permission, old times.
fn sample_tree() -> TempDir {
    let dir = tempdir().expect("room");
    let root = dir.path();
    fs::create_dir_all(root.join("sub/deep")).expect("room");
    fs::create_dir(root.join("sealed")).expect("room");
    let big: Vec<u8> = (0..200_000u32).flat_map(|i| i.to_le_bytes()).collect();
    fs::write(root.join("big"), &big).expect("room");
    fs::write(root.join("empty"), b"").expect("room");
    fs::write(root.join("-rf"), b"dash").expect("room");
    fs::write(root.join("new\nline"), b"x").expect("room");
    fs::write(root.join(OsStr::from_bytes(b"bytes\xff\xfe")), b"y").expect("room");
    fs::write(root.join("n".repeat(255)), b"z").expect("room");
    fs::write(root.join("sub/deep/script"), b"#!/bin/sh\n").expect("room");
    fs::write(root.join("sealed/inside"), b"kept").expect("room");
    symlink("../../big", root.join("sub/deep/link")).expect("room");
    symlink("nowhere", root.join("dangling")).expect("room");
    fs::set_permissions(root.join("sub/deep/script"), Permissions::from_mode(0o4751)).expect("ours");
    set_time(&root.join("big"), -5);
    set_time(&root.join("dangling"), 1_000_000_000);
    set_time(&root.join("sub/deep"), 1_234_567_890);
    fs::set_permissions(root.join("sealed"), Permissions::from_mode(0o555)).expect("ours");
    set_time(root, 1_111_111_111);
    dir
}

#[test]
fn a_tree_arrives_as_it_was() {
    let (src, dst, state) = (sample_tree(), tempdir().expect("room"), tempdir().expect("room"));
    let (manifest, problems) = indexed(src.path());
    assert_eq!(problems, []);
    let source = BlockReader::for_source(src.path(), manifest.clone()).expect("there");
    let opened = open(dst.path(), state.path(), &manifest);
    assert_eq!((opened.verified.count(), opened.problems.len()), (0, 0));
    carry(&source, &opened.staging, (0..manifest.blocks()).rev());
    assert_eq!(opened.staging.read(0).expect("served at once"), source.read(0).expect("unchanged"));
    assert_eq!(opened.staging.finalize(), []);
    assert_eq!(listing(src.path()), listing(dst.path()));

    // Once more over what is there: nothing to fetch, nothing changed.
    let again = open(dst.path(), &state.path().join("second run"), &manifest);
    assert_eq!(again.verified.count(), manifest.blocks());
    assert_eq!(again.reused, manifest.blocks());
    assert_eq!(again.staging.finalize(), []);
    assert_eq!(listing(src.path()), listing(dst.path()));
}

#[test]
fn a_single_file_is_a_source_too() {
    let (src, dst, state) = (sample_tree(), tempdir().expect("room"), tempdir().expect("room"));
    let (manifest, _) = indexed(&src.path().join("big"));
    let source = BlockReader::for_source(&src.path().join("big"), manifest.clone()).expect("there");
    let opened = open(dst.path(), state.path(), &manifest);
    carry(&source, &opened.staging, 0..manifest.blocks());
    assert_eq!(opened.staging.finalize(), []);
    let read = |dir: &TempDir| fs::read(dir.path().join("big")).expect("there");
    assert_eq!(read(&src), read(&dst));
}

#[test]
fn a_restart_keeps_every_verified_block_and_believes_no_damaged_one() {
    let (src, dst, state) = (sample_tree(), tempdir().expect("room"), tempdir().expect("room"));
    let (manifest, _) = indexed(src.path());
    let source = BlockReader::for_source(src.path(), manifest.clone()).expect("there");
    let opened = open(dst.path(), state.path(), &manifest);
    let half: Vec<u64> = (0..manifest.blocks()).filter(|b| b % 2 == 0).collect();
    carry(&source, &opened.staging, half.iter().copied());
    drop(opened);
    let opened = open(dst.path(), state.path(), &manifest);
    assert_eq!(blocks(&opened.verified), half);
    assert_eq!((opened.reused, opened.staging.blocks_fetched()), (0, half.len() as u64));
    drop(opened);

    // Damage one staged block, as power loss may: it alone is missing then.
    let (big, range) = find(&manifest, b"big");
    let staged = dst.path().join(format!(".flotilla/{RUN}/{big}"));
    let mut bytes = fs::read(&staged).expect("staged");
    let first = range.start;
    let lost = half.iter().copied().find(|&block| block > first).expect("more than one block");
    bytes[(lost - first) as usize * 32 * 1024] ^= 1;
    fs::write(&staged, &bytes).expect("room");
    let opened = open(dst.path(), state.path(), &manifest);
    assert!(half.contains(&lost) && !opened.verified.contains(lost));
    assert_eq!(opened.verified.count(), half.len() as u64 - 1);
    let missing: Vec<u64> = (0..manifest.blocks()).filter(|b| !opened.verified.contains(*b)).collect();
    carry(&source, &opened.staging, missing);
    assert_eq!(opened.staging.finalize(), []);
    assert_eq!(listing(src.path()), listing(dst.path()));
}

#[test]
fn blocks_of_an_older_version_are_not_fetched_again() {
    let (src, dst, state) = (sample_tree(), tempdir().expect("room"), tempdir().expect("room"));
    let (manifest, _) = indexed(src.path());
    let mut old = fs::read(src.path().join("big")).expect("there");
    old[40_000] ^= 1;
    old.truncate(500_000);
    fs::write(dst.path().join("big"), &old).expect("room");
    let opened = open(dst.path(), state.path(), &manifest);
    assert_eq!(opened.reused, 500_000 / 32_768 - 1, "whole blocks but the changed one");
    let source = BlockReader::for_source(src.path(), manifest.clone()).expect("there");
    carry(&source, &opened.staging, (0..manifest.blocks()).filter(|b| !opened.verified.contains(*b)));
    assert_eq!(opened.staging.finalize(), []);
    assert_eq!(listing(src.path()), listing(dst.path()));
}

#[test]
fn a_corrupt_block_does_not_count() {
    let (src, dst, state) = (sample_tree(), tempdir().expect("room"), tempdir().expect("room"));
    let (manifest, _) = indexed(src.path());
    let staging = open(dst.path(), state.path(), &manifest).staging;
    let good = BlockReader::for_source(src.path(), manifest.clone()).expect("there").read(1).expect("there");
    let mut bad = good.to_vec();
    bad[5] ^= 1;
    for data in [bad, good[1..].to_vec(), Vec::new()] {
        assert!(matches!(staging.write(1, data.into()), Err(StoreError::Corrupt)));
    }
    assert!(matches!(staging.write(manifest.blocks(), good), Err(StoreError::Corrupt)));
    assert_eq!(staging.read(1), Err(ReadError::NotHere));
    assert_eq!(staging.blocks_fetched(), 0);
}

#[test]
fn a_source_that_changes_after_indexing_is_noticed() {
    let src = sample_tree();
    let (manifest, _) = indexed(src.path());
    let first = find(&manifest, b"big").1.start;
    let mut bytes = fs::read(src.path().join("big")).expect("there");
    bytes[40_000] ^= 1;
    fs::write(src.path().join("big"), &bytes).expect("room");
    let source = BlockReader::for_source(src.path(), manifest.clone()).expect("there");
    assert!(source.read(first).is_ok(), "what did not change is still good");
    assert_eq!(source.read(first + 1), Err(ReadError::Changed));
    fs::remove_file(src.path().join("big")).expect("there");
    let source = BlockReader::for_source(src.path(), manifest).expect("there");
    assert_eq!(source.read(first), Err(ReadError::Changed));
}

#[test]
fn what_cannot_be_sent_is_named() {
    let src = sample_tree();
    symlink("/etc/passwd", src.path().join("absolute")).expect("room");
    symlink("../up", src.path().join("up")).expect("room");
    rustix::fs::mkfifoat(rustix::fs::CWD, src.path().join("pipe"), rustix::fs::Mode::RWXU).expect("room");
    let (manifest, problems) = indexed(src.path());
    let mut found: Vec<_> = problems.iter().map(|p| (p.class, p.path.as_slice())).collect();
    found.sort();
    let expected: [(ProblemClass, &[u8]); 3] = [
        (ProblemClass::UnsafeLink, b"absolute"),
        (ProblemClass::UnsafeLink, b"up"),
        (ProblemClass::UnsupportedKind, b"pipe"),
    ];
    assert_eq!(found, expected);
    assert!(entries(&manifest).iter().all(|e| e.path != b"absolute" && e.path != b"pipe"));
    let state = tempdir().expect("room");
    assert!(index_path(&src.path().join("not there"), state.path(), &mut |_| true).is_err());
    assert!(index_path(src.path(), state.path(), &mut |_| false).is_err(), "stopped by the caller");
}

#[test]
fn what_the_rules_leave_out_is_not_in_the_manifest() {
    let src = tempdir().expect("room");
    for folder in ["keep", "build/deep", "x/build"] {
        fs::create_dir_all(src.path().join(folder)).expect("room");
    }
    for file in ["keep/a", "keep/a.tmp", "keep/b.tmp", "build/deep/c", "x/build/d", "secret"] {
        fs::write(src.path().join(file), file).expect("room");
    }
    // What is wrong with something that is left out is nobody's business, and a link through it would lead nowhere.
    rustix::fs::mkfifoat(rustix::fs::CWD, src.path().join("build/pipe"), rustix::fs::Mode::RWXU)
        .expect("room");
    rustix::fs::mkfifoat(rustix::fs::CWD, src.path().join("x.tmp"), rustix::fs::Mode::RWXU).expect("room");
    symlink("../build/deep/../../keep/a", src.path().join("keep/through")).expect("room");
    symlink("../x/../keep/a", src.path().join("keep/around")).expect("room");
    let rules = "*.tmp\n!b.tmp\n/build/\n/secret\n";
    fs::write(src.path().join(".flotillaignore"), rules).expect("room");
    fs::write(src.path().join("keep/.flotillaignore"), "a\n").expect("room");
    let (manifest, problems) = indexed(src.path());
    let paths: Vec<_> =
        entries(&manifest).into_iter().map(|e| String::from_utf8(e.path).expect("ours")).collect();
    let expected = [
        "",
        ".flotillaignore",
        "keep",
        "keep/.flotillaignore",
        "keep/a",
        "keep/around",
        "keep/b.tmp",
        "x",
        "x/build",
        "x/build/d",
    ];
    assert_eq!(paths, expected);
    let told: Vec<_> = problems.iter().map(|p| (p.class, p.path.as_slice())).collect();
    assert_eq!(told, [(ProblemClass::UnsafeLink, &b"keep/through"[..])]);
    // A file that was named is meant.
    let (manifest, problems) = indexed(&src.path().join("secret"));
    assert!(problems.is_empty() && find(&manifest, b"secret").0 == 0);
}

#[test]
fn rules_that_cannot_be_used_let_nothing_be_sent() {
    let check = |make: &dyn Fn(&Path), class, says: &str| {
        let (src, state) = (tempdir().expect("room"), tempdir().expect("room"));
        fs::write(src.path().join("secret"), "not for others").expect("room");
        make(&src.path().join(".flotillaignore"));
        let problem = index_path(src.path(), state.path(), &mut |_| true).expect_err("refused");
        assert_eq!((problem.class, problem.path.as_slice()), (class, &b".flotillaignore"[..]), "{says}");
        assert!(problem.detail.contains(says) && problem.detail.len() < 2000, "{}", problem.detail);
        assert!(!rules_usable(src.path(), &[]));
    };
    let text = |text: Vec<u8>| move |path: &Path| fs::write(path, &text).expect("room");
    let (limit, kind) = (ProblemClass::LimitExceeded, ProblemClass::UnsupportedKind);
    check(&text(vec![b'x'; 64 << 20]), limit, "longer than");
    check(&text("a\n".repeat(10_000).into_bytes()), limit, "more than 2000 rules");
    check(&text("*?*?*?*?\n".repeat(1000).into_bytes()), limit, "wildcards");
    check(&text(b"secret\n\x7fELF\x02\0\0".to_vec()), kind, "line 2");
    check(&text(b"secret\n[z-a]\n".to_vec()), kind, "line 2");
    check(&text("{a,".repeat(300).into_bytes()), kind, "line 1");
    check(&|path| fs::create_dir(path).expect("room"), kind, "no ordinary file");
    check(&|path| symlink("/etc/hosts", path).expect("room"), kind, "no ordinary file");
    let fifo =
        |path: &Path| rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RWXU).expect("room");
    check(&fifo, kind, "no ordinary file");
}

#[test]
fn nothing_outside_the_folder_is_touched() {
    let (dst, state, outside) =
        (tempdir().expect("room"), tempdir().expect("room"), tempdir().expect("room"));
    fs::write(outside.path().join("victim"), b"precious").expect("room");
    // Symlinks wait where the manifest has a folder and a file.
    symlink(outside.path(), dst.path().join("a")).expect("room");
    symlink(outside.path().join("victim"), dst.path().join("b")).expect("room");
    let mtime = Mtime { seconds: 1, nanos: 0 };
    let data: Arc<[u8]> = b"hostile".to_vec().into();
    let file = |path: &[u8]| {
        (Entry::new(path, 0o600, mtime, Kind::file(data.len() as u64)), vec![BlockHash::of(&data)])
    };
    let folder = Entry::new(b"a", 0o700, mtime, Kind::Folder);
    let manifest = made(vec![(folder, Vec::new()), file(b"a/victim"), file(b"b")]);
    let staging = open(dst.path(), state.path(), &manifest).staging;
    for block in 0..2 {
        staging.write(block, data.clone()).expect("good");
    }
    assert_eq!(staging.finalize(), []);
    assert_eq!(fs::read(outside.path().join("victim")).expect("there"), b"precious");
    assert_eq!(fs::read(dst.path().join("a/victim")).expect("there"), b"hostile");
    assert!(fs::symlink_metadata(dst.path().join("b")).expect("there").is_file());
}

#[test]
fn links_laid_in_the_staging_folder_lead_nowhere() {
    let (src, dst, state, outside) =
        (sample_tree(), tempdir().expect("room"), tempdir().expect("room"), tempdir().expect("room"));
    let (manifest, _) = indexed(src.path());
    let (hidden, victim) = (dst.path().join(".flotilla"), outside.path().join("victim"));
    let staged = hidden.join(RUN.to_string());
    fs::write(&victim, b"precious").expect("room");
    fs::create_dir_all(&staged).expect("room");
    for entry in 0..manifest.entries() {
        let place = staged.join(entry.to_string());
        if entry % 2 == 0 { fs::hard_link(&victim, place) } else { symlink(&victim, place) }.expect("room");
    }
    let source = BlockReader::for_source(src.path(), manifest.clone()).expect("there");
    let opened = open(dst.path(), state.path(), &manifest);
    assert_eq!(opened.problems, []);
    carry(&source, &opened.staging, 0..manifest.blocks());
    assert_eq!(opened.staging.finalize(), []);
    assert_eq!(listing(src.path()), listing(dst.path()));
    assert_eq!(fs::read(&victim).expect("there"), b"precious");

    let (dst, state) = (tempdir().expect("room"), tempdir().expect("room"));
    let staging = open(dst.path(), state.path(), &manifest).staging;
    let inside = outside.path().join(RUN.to_string());
    fs::create_dir(&inside).expect("room");
    fs::write(inside.join("kept"), b"precious").expect("room");
    let hidden = dst.path().join(".flotilla");
    fs::rename(&hidden, dst.path().join("away")).expect("ours");
    symlink(outside.path(), &hidden).expect("room");
    staging.remove_staging();
    assert_eq!(fs::read(inside.join("kept")).expect("there"), b"precious");
}

#[test]
fn a_folder_with_content_in_place_of_a_file_is_left_alone() {
    let (src, dst, state) = (sample_tree(), tempdir().expect("room"), tempdir().expect("room"));
    let (manifest, _) = indexed(src.path());
    fs::create_dir(dst.path().join("big")).expect("room");
    fs::write(dst.path().join("big/mine"), b"mine").expect("room");
    let source = BlockReader::for_source(src.path(), manifest.clone()).expect("there");
    let opened = open(dst.path(), state.path(), &manifest);
    carry(&source, &opened.staging, 0..manifest.blocks());
    let problems = opened.staging.finalize();
    assert_eq!(problems.iter().map(|p| p.path.as_slice()).collect::<Vec<_>>(), [b"big".as_slice()]);
    assert_eq!(fs::read(dst.path().join("big/mine")).expect("there"), b"mine");
    assert!(dst.path().join("sub/deep/script").exists());
}

#[test]
fn a_full_disk_is_told_and_survived() {
    let (src, dst, state) = (tempdir().expect("room"), tempdir().expect("room"), tempdir().expect("room"));
    let mount = |args: &[&str]| std::process::Command::new(args[0]).args(&args[1..]).status();
    let path = dst.path().to_str().expect("UTF-8");
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path]).is_ok_and(|s| s.success()) {
        assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "mounting a tmpfs needs root");
        eprintln!("SKIPPED a_full_disk_is_told_and_survived: mounting a tmpfs needs root");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        fs::write(src.path().join("big"), vec![7; 2 << 20]).expect("room");
        let (manifest, _) = indexed(src.path());
        let source = BlockReader::for_source(src.path(), manifest.clone()).expect("there");
        let staging = open(dst.path(), state.path(), &manifest).staging;
        assert!(staging.shortfall().is_some_and(|short| short >= 1 << 20));
        let mut full_at = None;
        for block in 0..manifest.blocks() {
            match staging.write(block, source.read(block).expect("unchanged")) {
                Ok(()) => {}
                Err(StoreError::Full(problem)) => {
                    assert_eq!(problem.class, ProblemClass::DiskFull);
                    full_at = Some(block);
                    break;
                }
                Err(e) => panic!("{e:?}"),
            }
        }
        let full_at = full_at.expect("2 MiB do not fit in 1 MiB");
        assert!(mount(&["mount", "-o", "remount,size=8m", path]).is_ok_and(|s| s.success()));
        carry(&source, &staging, full_at..manifest.blocks());
        assert_eq!(staging.finalize(), []);
        assert_eq!(listing(src.path()), listing(dst.path()));
    });
    assert!(mount(&["umount", "-l", path]).is_ok_and(|s| s.success()));
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Whether the file system of temporary folders keeps what a test is about.
fn keeps_attributes(path: &Path, test: &str) -> bool {
    let kept = set_attribute(path, "user.test", b"1")
        .and_then(|()| set_attribute(path, "system.posix_acl_access", &acl(4)));
    if let Err(error) = kept {
        assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "extended attributes and ACLs: {error}");
        eprintln!("SKIPPED {test}: {error}");
        return false;
    }
    true
}

#[test]
fn attributes_lists_holes_and_further_names_arrive() {
    let (src, dst, state) = (sample_tree(), tempdir().expect("room"), tempdir().expect("room"));
    let (from, to) = (src.path(), dst.path());
    let probe = tempdir().expect("room");
    if !keeps_attributes(probe.path(), "attributes_lists_holes_and_further_names_arrive") {
        return;
    }
    set_attribute(&from.join("big"), "user.note", &[5; 3000]).expect("room");
    set_attribute(&from.join("big"), "user.empty", b"").expect("room");
    set_attribute(&from.join("empty"), "system.posix_acl_access", &acl(5)).expect("room");
    set_attribute(&from.join("sub"), "system.posix_acl_default", &acl(7)).expect("room");
    set_attribute(&from.join("sub"), "user.folder", b"x").expect("room");
    set_attribute(from, "user.top", b"x").expect("room");
    // Made below a folder that gives its default list to all that is made in it, and without one.
    fs::write(from.join("sub/heir"), b"x").expect("room");
    fs::write(from.join("sub/bare"), b"x").expect("room");
    rustix::fs::lremovexattr(from.join("sub/bare"), "system.posix_acl_access").expect("inherited");
    fs::hard_link(from.join("big"), from.join("a name before")).expect("room");
    fs::hard_link(from.join("big"), from.join("sub/deep/zz")).expect("room");
    fs::hard_link(from.join("empty"), from.join("sub/empty too")).expect("room");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(from.join("dangling"), Some(7), Some(8)).expect("root");
        std::os::unix::fs::chown(from.join("sub/deep/script"), Some(4321), Some(4321)).expect("root");
        fs::set_permissions(from.join("sub/deep/script"), Permissions::from_mode(0o6755)).expect("root");
    }
    let sparse = fs::File::create(from.join("holes")).expect("room");
    sparse.set_len((1 << 26) + 5).expect("room");
    for (offset, len) in [(0, 1), (100_000, 5000), (1 << 25, 70_000)] {
        sparse.write_all_at(&vec![3; len], offset).expect("room");
    }
    fs::File::create(from.join("nothing but a hole")).expect("room").set_len(1 << 40).expect("room");
    fs::write(from.join("zeros"), vec![0; 100_000]).expect("room");
    set_time(from, 1_111_111_111);

    let (manifest, problems) = indexed(from);
    assert_eq!(problems, []);
    let links = entries(&manifest).into_iter().filter(|e| matches!(e.kind, Kind::HardLink { .. }));
    assert_eq!(links.map(|e| e.path).collect::<Vec<_>>(), [&b"big"[..], b"sub/deep/zz", b"sub/empty too"]);
    let source = BlockReader::for_source(from, manifest.clone()).expect("there");
    let opened = open(to, state.path(), &manifest);
    // Zeros are known to everybody, but for the shorter last block.
    let (_, zeros) = find(&manifest, b"zeros");
    assert_eq!(blocks(&opened.verified), (zeros.start..zeros.end - 1).collect::<Vec<_>>());
    carry(&source, &opened.staging, (0..manifest.blocks()).filter(|b| !opened.verified.contains(*b)));
    assert_eq!(opened.staging.shortfall(), None);
    assert_eq!(opened.staging.finalize(), []);
    let same = || {
        let stat = |root: &Path, name: &str| fs::symlink_metadata(root.join(name)).expect("there");
        for name in ["nothing but a hole", "holes", "zeros"] {
            let (a, b) = (stat(from, name), stat(to, name));
            assert_eq!((a.len(), a.blocks(), a.mtime()), (b.len(), b.blocks(), b.mtime()), "{name}");
        }
        for (a, b) in [("a name before", "big"), ("big", "sub/deep/zz"), ("empty", "sub/empty too")] {
            assert_eq!(
                (stat(to, a).ino(), stat(to, a).nlink()),
                (stat(to, b).ino(), stat(from, b).nlink()),
                "{a}"
            );
        }
        assert_eq!(listing(from), listing(to));
    };
    same();

    // Once more over what is there; and after somebody made it differ in nothing but that.
    let again = |run: &str| {
        let opened = open(to, &state.path().join(run), &manifest);
        assert_eq!((opened.verified.count(), &opened.problems), (manifest.blocks(), &Vec::new()));
        assert_eq!(opened.staging.finalize(), []);
        same();
    };
    again("second");
    set_attribute(&to.join("big"), "user.extra", b"1").expect("room");
    set_attribute(&to.join("big"), "user.note", b"other").expect("room");
    set_attribute(&to.join("zeros"), "system.posix_acl_access", &acl(7)).expect("room");
    fs::remove_file(to.join("sub/deep/zz")).expect("there");
    fs::copy(to.join("big"), to.join("sub/deep/zz")).expect("room");
    // Two files that became one; and another one with a name elsewhere, which keeps what it has there.
    fs::remove_file(to.join("sub/heir")).expect("there");
    fs::hard_link(to.join("sub/bare"), to.join("sub/heir")).expect("room");
    let elsewhere = state.path().join("elsewhere");
    fs::hard_link(to.join("-rf"), &elsewhere).expect("room");
    fs::set_permissions(&elsewhere, Permissions::from_mode(0o640)).expect("ours");
    let holes = fs::OpenOptions::new().write(true).open(to.join("holes")).expect("there");
    holes.write_all_at(&[1; 10], 1 << 24).expect("room");
    again("third");
    assert_eq!(fs::metadata(&elsewhere).expect("there").mode() & 0o7777, 0o640);
    assert_eq!(fs::metadata(to.join("-rf")).expect("there").nlink(), 1);
}

#[test]
fn a_deep_and_a_wide_folder_are_read_and_made() {
    let (src, dst, state) = (tempdir().expect("room"), tempdir().expect("room"), tempdir().expect("room"));
    // Name by name: a path of that length is more than the system takes at once.
    let folder = folder::Folder::open(src.path()).expect("there");
    let mut path = Vec::new();
    for depth in 0..500 {
        path.extend_from_slice(if depth == 0 { b"d" } else { b"/d" });
        folder.make_folder(&path).expect("room");
    }
    let parent = folder.walk(&path).expect("there");
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    rustix::fs::openat(&parent, "deepest", flags, rustix::fs::Mode::RUSR).expect("room");
    let wide = src.path().join("wide");
    fs::create_dir(&wide).expect("room");
    for i in 0..3000u32 {
        fs::write(wide.join(format!("file {}", i.wrapping_mul(2_654_435_761))), i.to_le_bytes())
            .expect("room");
    }
    let (manifest, problems) = indexed(src.path());
    assert_eq!((problems, manifest.entries()), (Vec::new(), 1 + 500 + 1 + 1 + 3000));
    let source = BlockReader::for_source(src.path(), manifest.clone()).expect("there");
    let opened = open(dst.path(), state.path(), &manifest);
    carry(&source, &opened.staging, 0..manifest.blocks());
    assert_eq!(opened.staging.finalize(), []);
    assert_eq!(listing(&wide), listing(&dst.path().join("wide")));
    assert_eq!(indexed(dst.path()).0.bytes(), manifest.bytes());
    assert!(
        folder::Folder::open(dst.path())
            .expect("there")
            .open_file(&[&path[..], b"/deepest"].concat())
            .is_ok()
    );
}

#[test]
fn many_small_files_at_once_are_each_told_of_and_in_place() {
    let (src, dst, state) = (tempdir().expect("room"), tempdir().expect("room"), tempdir().expect("room"));
    let modes = [0o644, 0o600, 0o444, 0o755, 0o4755, 0o400];
    for n in 0..60usize {
        fs::create_dir_all(src.path().join(format!("d{}", n % 3))).expect("room");
        let path = src.path().join(format!("d{}/f{n}", n % 3));
        fs::write(&path, vec![n as u8; 100 + n]).expect("room");
        fs::set_permissions(&path, Permissions::from_mode(modes[n % modes.len()])).expect("ours");
    }
    fs::write(src.path().join("two blocks"), vec![1; 40_000]).expect("room");
    let (manifest, _) = indexed(src.path());
    let source = BlockReader::for_source(src.path(), manifest.clone()).expect("there");
    let read = |block| source.read(block).expect("unchanged");
    // What may stand in the way of a small file: an empty folder, a file of the same name, a symlink, and what an
    // earlier life left unfinished.
    fs::create_dir_all(dst.path().join("d0/f0")).expect("room");
    fs::write(dst.path().join("d0/f3"), "old").expect("room");
    symlink("/dev/null", dst.path().join("d0/f6")).expect("room");
    let unfinished = dst.path().join(".flotilla").join(RUN.to_string());
    fs::create_dir_all(&unfinished).expect("room");
    let entry = find(&manifest, b"d1/f1").0;
    fs::write(unfinished.join(entry.to_string()), vec![7; 5000]).expect("room");
    let opened = open(dst.path(), state.path(), &manifest);
    let staging = opened.staging;
    let mut batch: Vec<_> = (0..manifest.blocks()).map(|block| (block, read(block))).collect();
    let bad = batch[5].1[1..].to_vec();
    batch.insert(3, (5, bad.into()));
    batch.push((9, read(9)));
    batch.push((manifest.blocks(), read(0)));
    let results = staging.write_all(batch);
    let failed: Vec<usize> = (0..results.len()).filter(|&n| results[n].is_err()).collect();
    assert_eq!(failed, [3, results.len() - 1]);
    let again = (0..manifest.blocks()).map(|block| (block, read(block)));
    assert!(staging.write_all(again).iter().all(Result::is_ok));
    assert_eq!(staging.blocks_fetched(), manifest.blocks() + 1, "one came twice before it counted");
    assert_eq!(staging.finalize(), []);
    assert_eq!(listing(src.path()), listing(dst.path()));
}

#[test]
fn what_was_written_and_not_named_is_found_after_a_kill() {
    let (src, dst, state) = (tempdir().expect("room"), tempdir().expect("room"), tempdir().expect("room"));
    (0..10).for_each(|n| fs::write(src.path().join(format!("f{n}")), vec![n; 3000]).expect("room"));
    let (manifest, _) = indexed(src.path());
    let source = BlockReader::for_source(src.path(), manifest.clone()).expect("there");
    let staging = open(dst.path(), state.path(), &manifest).staging;
    carry(&source, &staging, 0..4);
    drop(staging);
    // As if it had been killed between writing a file and renaming it, and in the middle of writing another one.
    let unfinished = dst.path().join(".flotilla").join(RUN.to_string());
    let name = |path: &[u8]| unfinished.join(find(&manifest, path).0.to_string());
    fs::write(name(b"f4"), vec![4; 3000]).expect("room");
    fs::write(name(b"f5"), vec![5; 1000]).expect("room");
    let opened = open(dst.path(), state.path(), &manifest);
    assert_eq!(blocks(&opened.verified), [0, 1, 2, 3, 4]);
    assert!(dst.path().join("f4").exists() && !dst.path().join("f5").exists());
    carry(&source, &opened.staging, 5..10);
    assert_eq!(opened.staging.finalize(), []);
    assert_eq!(listing(src.path()), listing(dst.path()));
}

#[test]
fn what_the_index_knows_is_not_read_again() {
    use folder_index::scan::{ScanOptions, Scope, Unobserved, scan};
    use sync_core::manifest::Source;
    let (src, state) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    std::fs::create_dir(src.path().join("sub")).expect("a folder");
    for (name, len) in [("empty", 0), ("small", 10), ("sub/large", 20 * 32768 + 7), ("zzz", 0)] {
        std::fs::write(src.path().join(name), vec![7; len]).expect("a file");
    }
    let sparse = std::fs::File::create(src.path().join("sparse")).expect("a file");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data behind a hole", 10 << 20).expect("written");
    // Some file systems know none.
    let flags = rustix::fs::XattrFlags::empty();
    let _ = rustix::fs::setxattr(src.path().join("zzz"), "user.note", b"v", flags);
    let index = folder_index::Index::open(&state.path().join("index"), src.path()).expect("opened");
    let (options, progress, stop) = (ScanOptions::default(), Arc::default(), Arc::default());
    scan(&index, &options, &Scope::All, &mut Unobserved, &progress, &stop).expect("scanned");
    let make = |known| {
        let mut bytes = 0;
        let (manifest, problems) = index_known(src.path(), state.path(), known, &[], &mut |at| {
            bytes = at.bytes;
            true
        })
        .expect("a readable source");
        assert!(problems.is_empty());
        let mut encoded = vec![0; manifest.known().source().len() as usize];
        manifest.known().source().read_at(0, &mut encoded).expect("read");
        (encoded, bytes)
    };
    let known = || folder_index::Known::open(&index).expect("read");
    let (anew, read) = make(None);
    assert!(read > 20 * 32768);
    assert_eq!(make(known()), (anew, 0));
    std::fs::write(src.path().join("small"), b"changed").expect("a file");
    let (changed, read) = make(known());
    assert_eq!((changed, read), (make(None).0, 7), "only what changed since the scan");
}

/// The number of an inode is given out again, and a file moves in with the name of another one: what is met later under
/// a number that was seen is a further name only if nothing about it changed.
#[test]
fn a_file_that_is_not_the_same_any_more_is_no_further_name() {
    let (src, outside, state) =
        (tempdir().expect("room"), tempdir().expect("room"), tempdir().expect("room"));
    let at = |name: &str| src.path().join(name);
    fs::create_dir(at("z")).expect("room");
    for name in ["a", "b", "m"] {
        fs::write(at(name), name).expect("room");
    }
    fs::hard_link(at("a"), outside.path().join("a")).expect("linked");
    fs::hard_link(at("b"), outside.path().join("b")).expect("linked");
    let mut changed = false;
    let (manifest, problems) = index_path(src.path(), state.path(), &mut |at_entry| {
        // Both were read; `z` was not.
        if at_entry.entries == 4 && !std::mem::replace(&mut changed, true) {
            fs::remove_file(at("a")).expect("there");
            fs::rename(outside.path().join("a"), at("z/a")).expect("moved");
            fs::write(outside.path().join("b"), "longer than before").expect("written");
            fs::rename(outside.path().join("b"), at("z/b")).expect("moved");
        }
        true
    })
    .expect("a readable source");
    assert!(changed && problems.is_empty(), "{problems:?}");
    for (path, size) in [(&b"z/a"[..], 1), (b"z/b", 18)] {
        let entry = manifest.entry(find(&manifest, path).0).expect("there").clone();
        assert_eq!(entry.kind, Kind::file(size), "{}", path.escape_ascii());
    }
}

#[test]
fn the_mode_of_what_a_symlink_points_to_stays() {
    let place = tempdir().expect("room");
    let path = |name: &str| place.path().join(name);
    let mode = |name: &str| fs::symlink_metadata(path(name)).expect("there").mode() & 0o7777;
    let set = |name: &str, mode: u32| {
        let folder = fs::File::open(place.path()).expect("a folder");
        chmod_at(&folder, name.as_bytes(), rustix::fs::Mode::from_raw_mode(mode))
    };
    fs::write(path("secret"), "s").expect("written");
    fs::set_permissions(path("secret"), Permissions::from_mode(0o600)).expect("ours");
    fs::create_dir(path("below")).expect("made");
    symlink("secret", path("link")).expect("made");
    symlink("below", path("way")).expect("made");
    for link in ["link", "way"] {
        assert_eq!(set(link, 0o755), Err(Errno::NOTSUP));
    }
    assert_eq!(mode("secret"), 0o600);
    set("secret", 0o400).expect("ours");
    set("below", 0o000).expect("ours");
    set("below", 0o711).expect("also if nobody may read it");
    assert_eq!((mode("secret"), mode("below")), (0o400, 0o711));
    assert_eq!(set("none", 0o755), Err(Errno::NOENT));

    // What lies where a folder belongs is made usable, without rights that run as somebody else.
    let folder = Folder::open(place.path()).expect("a folder");
    fs::set_permissions(path("below"), Permissions::from_mode(0o6077)).expect("ours");
    assert_eq!(folder.make_free_folder(b"below"), Ok(false));
    assert_eq!(mode("below"), 0o777);
}
