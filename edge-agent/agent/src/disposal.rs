//! What becomes of a source's files when every destination has them: archived or deleted, each only while it is still
//! what the run's manifest says (`edge-agent/PROTOCOL.md` §2.9).
//!
//! A file is read and hashed once more before it goes: times can be set, and a camera may write on. It is then moved out of
//! its place, looked at again, and put back if it is another one meanwhile; only then it is deleted. What an attempt that
//! was broken off had moved and not looked at again is looked at by the next one. Folders, symlinks and whatever is not
//! in the manifest stay.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use agent_proto::limits::BLOCK_LEN;
use event_schema::{Disposal, Disposed, Problem, ProblemClass, RunId, Timestamp, decode_exact, encode};
use folder_index::IGNORE_FILE;
use rustix::fs::{self, AtFlags, SeekFrom, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sync_core::manifest::{Entry, Kind};
use sync_core::merkle::block_hash;

use crate::archive::{self, Archive};
use crate::disk::{Folder, ManifestFile, mtime, problem};

/// Files between two notes of how far it has come: so many are counted as gone after a power cut at most.
const NOTE_EVERY: u64 = 256;

/// Problems that are told; further ones are only counted.
const PROBLEMS_MAX: usize = 100;

/// A day, in milliseconds.
const DAY_MS: u64 = 86_400_000;

/// How long a file is kept that was not the one to be deleted and had lost its place meanwhile.
const KEPT_MS: u64 = 30 * DAY_MS;

/// A name of a file as the manifest has it.
struct Known<'m> {
    manifest: &'m ManifestFile,
    /// Its path in the folder.
    path: &'m [u8],
    /// The file itself, of which this may be a further name.
    file: &'m Entry,
    /// Its first content block.
    first_block: u64,
}

/// How far it has come; kept in the run's folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// Files that were dealt with, in the manifest's order.
    files: u64,
    disposed: Disposed,
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) disposed: Disposed,
    /// The first of the files that could not be dealt with.
    pub(crate) problems: Vec<Problem>,
}

/// Disposes of the files of `run`'s manifest below `root`, going on where it was broken off; none if `stop` broke it off.
/// `clock` tells the fleet's time, `note` is the file in which it is kept how far it has come. Blocks.
///
/// # Errors
/// If the folder cannot be opened or its archive not be made: then nothing was touched.
pub(crate) fn dispose(
    root: &Path,
    run: RunId,
    manifest: &ManifestFile,
    disposal: Disposal,
    clock: &dyn Fn() -> Timestamp,
    note: &Path,
    stop: &AtomicBool,
) -> Result<Option<Outcome>, Problem> {
    let shown = root.as_os_str().as_encoded_bytes();
    let folder = Folder::open(root).map_err(|e| problem(e, shown, "opening the source folder"))?;
    let archive = Archive::of(&folder);
    let group = run.to_string();
    // What is to be deleted passes through the archive too: what turns out to be another file than was sent, and cannot
    // go back to its place, is kept there for a while, and so is what a power cut leaves.
    let kept_ms = match disposal {
        Disposal::Keep => return Ok(Some(Outcome { disposed: Disposed::default(), problems: vec![] })),
        Disposal::Archive { days } => u64::from(days).saturating_mul(DAY_MS),
        Disposal::Delete => KEPT_MS,
    };
    let until = |ms: u64| Timestamp(clock().0.saturating_add(ms));
    let _held = archive::hold(&group);
    let again = archive.begin(&group, until(kept_ms)).map_err(|e| problem(e, shown, "making the archive"))?;
    let work = Work { folder: &folder, archive: &archive, group: &group, disposal, again, stop };
    let mut reached: Note =
        std::fs::read(note).ok().and_then(|b| decode_exact("Note", &b).ok()).unwrap_or_default();
    let mut problems = Vec::new();
    let (done_before, mut nth) = (reached.files, 0);
    for page in 0..manifest.pages() {
        let page = match manifest.page(page) {
            Ok(page) => page,
            Err(errno) => {
                problems.push(problem(
                    errno,
                    b"",
                    "reading the run's manifest; what it has from there on stays",
                ));
                break;
            }
        };
        for (index, entry) in page.entries() {
            let is_name = matches!(entry.kind, Kind::File { .. } | Kind::HardLink { .. });
            nth += u64::from(is_name);
            // Without its rules the folder's next run would take, and dispose of, what they leave out.
            if !is_name || nth <= done_before || entry.path == IGNORE_FILE {
                continue;
            }
            let fate = match &entry.kind {
                Kind::HardLink { to } => manifest.entry(*to).and_then(|file| {
                    let (path, first_block) = (&entry.path, file.blocks().start);
                    work.take(&Known { manifest, path, file: &file, first_block })
                }),
                _ => {
                    let first_block = page.blocks_of_entry(index).start;
                    work.take(&Known { manifest, path: &entry.path, file: entry, first_block })
                }
            };
            match fate {
                Ok(Fate::Stopped) => {
                    keep(note, reached);
                    return Ok(None);
                }
                Ok(Fate::Disposed) => {
                    reached.disposed.files += 1;
                    // A further name of a file takes no room.
                    reached.disposed.bytes += entry.kind.size();
                }
                Ok(Fate::Changed) => reached.disposed.changed += 1,
                Ok(Fate::Kept) => {
                    reached.disposed.changed += 1;
                    if let Err(error) = archive.extend(&group, until(kept_ms.max(KEPT_MS))) {
                        tracing::warn!(%run, %error, "cannot note that an archive is kept for longer");
                    }
                    if problems.len() < PROBLEMS_MAX {
                        problems.push(kept(&archive.path(&group, &entry.path), &entry.path));
                    }
                }
                Ok(Fate::Gone) => reached.disposed.gone += 1,
                Err(errno) => {
                    reached.disposed.failed += 1;
                    if problems.len() < PROBLEMS_MAX {
                        problems.push(problem(errno, &entry.path, "disposing of the file; it stays"));
                    }
                }
            }
            reached.files = nth;
            if nth.is_multiple_of(NOTE_EVERY) {
                keep(note, reached);
            }
        }
    }
    keep(note, reached);
    // What went last is kept as long as what went first.
    if let Err(error) = archive.extend(&group, until(kept_ms)) {
        tracing::warn!(%run, %error, "cannot note until when an archive is kept");
    }
    if disposal == Disposal::Delete
        && let Err(error) = archive.end(&group)
    {
        tracing::warn!(%run, %error, "empty folders of deleted files are left in the archive");
    }
    Ok(Some(Outcome { disposed: reached.disposed, problems }))
}

fn keep(note: &Path, reached: Note) {
    let beside = note.with_extension("tmp");
    let written = std::fs::write(&beside, encode(&reached)).and_then(|()| std::fs::rename(&beside, note));
    if let Err(error) = written {
        tracing::warn!(%error, "cannot keep how far a disposal has come");
    }
}

enum Fate {
    Disposed,
    /// Not what the manifest says: it stays.
    Changed,
    /// The same, but another one has its place: it stays in the archive.
    Kept,
    Gone,
    Stopped,
}

/// A file that was moved, is not what was sent, and cannot go back.
fn kept(moved: &[u8], path: &[u8]) -> Problem {
    let detail = format!(
        "the file was replaced twice while the run's files were disposed of; the one between is kept in {}",
        moved.escape_ascii()
    );
    Problem { class: ProblemClass::SourceChanged, path: path.to_vec(), detail }
}

/// What is done with every file.
struct Work<'w> {
    folder: &'w Folder,
    archive: &'w Archive<'w>,
    group: &'w str,
    disposal: Disposal,
    /// There was an attempt before: what it moved may not have been looked at.
    again: bool,
    stop: &'w AtomicBool,
}

impl Work<'_> {
    fn take(&self, known: &Known<'_>) -> rustix::io::Result<Fate> {
        if self.again
            && let Some(fate) = self.settle(known)?
        {
            return Ok(fate);
        }
        let (folder, archive) = (self.folder, self.archive);
        let file = match folder.open_file(known.path) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(Fate::Gone),
            // Something else has its name, or a folder on the way is none any more.
            Err(Errno::INVAL | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => return Ok(Fate::Changed),
            Err(error) => return Err(error),
        };
        let before = fs::fstat(&file)?;
        let same = match is_what_it_was(&file, &before, known, self.stop)? {
            None => return Ok(Fate::Stopped),
            Some(same) => same && unchanged(&before, &fs::fstat(&file)?),
        };
        if !same {
            return Ok(Fate::Changed);
        }
        match archive.take(self.group, known.path) {
            Ok(()) => {}
            // On a file system of its own: it can be deleted in its place, but not be kept.
            Err(Errno::XDEV) if self.disposal == Disposal::Delete => {
                let (parent, name) = folder.parent(known.path)?;
                if !unchanged(&before, &fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?) {
                    return Ok(Fate::Changed);
                }
                return fs::unlinkat(&parent, name, AtFlags::empty()).map(|()| Fate::Disposed);
            }
            // The file, or the archive's folder: somebody removed one of them.
            Err(Errno::NOENT) => {
                folder.forget();
                return match folder.stat(known.path) {
                    Err(Errno::NOENT) => Ok(Fate::Gone),
                    _ => Err(Errno::STALE),
                };
            }
            Err(error) => return Err(error),
        }
        // Whoever wrote to it or replaced it after it was read, did so before it was moved or has it open still.
        let moved = archive.path(self.group, known.path);
        if !still(&before, &folder.stat(&moved)?) {
            return self.give_back(known);
        }
        self.end(&moved)
    }

    /// Looks at what lies in the archive under a file's name: an attempt that was broken off moved it there, and may
    /// not have come to look whether it was the one that was sent.
    fn settle(&self, known: &Known<'_>) -> rustix::io::Result<Option<Fate>> {
        let moved = self.archive.path(self.group, known.path);
        let Ok(file) = self.folder.open_file(&moved) else { return Ok(None) };
        let fate = match is_what_it_was(&file, &fs::fstat(&file)?, known, self.stop)? {
            None => Fate::Stopped,
            Some(true) => self.end(&moved)?,
            Some(false) => self.give_back(known)?,
        };
        Ok(Some(fate))
    }

    /// What was moved is not what was sent.
    fn give_back(&self, known: &Known<'_>) -> rustix::io::Result<Fate> {
        match self.archive.give_back(self.group, known.path) {
            Ok(()) => Ok(Fate::Changed),
            // A newer one has its place: this one is kept in the archive, whatever was asked.
            Err(Errno::EXIST) => Ok(Fate::Kept),
            Err(error) => Err(error),
        }
    }

    /// What was moved is what was sent.
    fn end(&self, moved: &[u8]) -> rustix::io::Result<Fate> {
        if self.disposal == Disposal::Delete {
            let (parent, name) = self.folder.parent(moved)?;
            fs::unlinkat(&parent, name, AtFlags::empty())?;
        }
        Ok(Fate::Disposed)
    }
}

/// Whether a file has the size, time and content that the manifest says; none if it was to stop.
fn is_what_it_was(
    file: &File,
    stat: &Stat,
    known: &Known<'_>,
    stop: &AtomicBool,
) -> rustix::io::Result<Option<bool>> {
    if stop.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let Known { manifest, file: entry, first_block, .. } = *known;
    if stat.st_size as u64 != entry.kind.size() || mtime(stat) != entry.mtime {
        return Ok(Some(false));
    }
    let mut block = vec![0; BLOCK_LEN as usize];
    let mut hole_from = 0;
    for nth in 0..entry.kind.blocks() {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some(info) = manifest.block(first_block + nth)? else { return Err(Errno::IO) };
        let block = &mut block[..info.len as usize];
        match file.read_exact_at(block, info.offset) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(Some(false)),
            Err(e) => return Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
        }
        if block_hash(block) != info.hash || !is_hole(file, hole_from..info.offset)? {
            return Ok(Some(false));
        }
        hole_from = info.offset + u64::from(info.len);
    }
    Ok(Some(is_hole(file, hole_from..entry.kind.size())?))
}

/// Whether nothing was written to a part of a file that the manifest has as a hole.
fn is_hole(file: &File, range: std::ops::Range<u64>) -> rustix::io::Result<bool> {
    if range.is_empty() {
        return Ok(true);
    }
    match fs::seek(file, SeekFrom::Data(range.start)) {
        Ok(data) => Ok(data >= range.end),
        Err(Errno::NXIO) => Ok(true),
        // A file system that does not tell holes from zeros: the file's time has to do.
        Err(Errno::INVAL) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether nobody touched the file between two looks at it.
fn unchanged(a: &Stat, b: &Stat) -> bool {
    still(a, b) && (a.st_ctime, a.st_ctime_nsec) == (b.st_ctime, b.st_ctime_nsec)
}

/// The same but for the time of a rename.
fn still(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino, a.st_size, a.st_mtime, a.st_mtime_nsec)
        == (b.st_dev, b.st_ino, b.st_size, b.st_mtime, b.st_mtime_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs as std_fs;
    use std::path::PathBuf;

    struct World {
        root: tempfile::TempDir,
        data: tempfile::TempDir,
        manifest: ManifestFile,
    }

    impl World {
        /// Ten files of which the second and last have several blocks, and what is no file.
        fn new() -> Self {
            let (root, data) =
                (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
            let top = root.path().join("top");
            std_fs::create_dir_all(top.join("cam/empty")).expect("made");
            for n in 0..10 {
                let len = if n % 8 == 1 { 100_000 } else { 10 * n };
                std_fs::write(top.join(format!("cam/{n}")), vec![n as u8; len]).expect("written");
            }
            std::os::unix::fs::symlink("1", top.join("cam/link")).expect("linked");
            let (manifest, problems) =
                crate::disk::index_path(&top, data.path(), &mut |_| true).expect("indexed");
            assert!(problems.is_empty());
            Self { root, data, manifest }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.root.path().join("top").join(path)
        }

        fn archived(&self, path: &str) -> PathBuf {
            self.at(&format!(".flotilla/archive/{}/{path}", RunId([7; 16])))
        }

        /// Until when what is archived is kept.
        fn until(&self) -> u64 {
            let path = self.at(&format!(".flotilla/archive/{}.until", RunId([7; 16])));
            std_fs::read_to_string(path).expect("there").trim().parse().expect("a number")
        }

        fn dispose(&self, disposal: Disposal, stop: bool) -> Option<Outcome> {
            let stop = AtomicBool::new(stop);
            self.dispose_at(disposal, Timestamp(DAY_MS), &stop)
        }

        fn dispose_at(&self, disposal: Disposal, now: Timestamp, stop: &AtomicBool) -> Option<Outcome> {
            let (run, note) = (RunId([7; 16]), self.data.path().join("disposal"));
            let disposed = dispose(&self.at(""), run, &self.manifest, disposal, &|| now, &note, stop);
            disposed.expect("it could begin")
        }
    }

    #[test]
    fn only_what_was_sent_goes() {
        for disposal in [Disposal::Delete, Disposal::Archive { days: 30 }] {
            let world = World::new();
            std_fs::write(world.at("cam/new"), "not sent").expect("written");
            std_fs::remove_file(world.at("cam/2")).expect("removed");
            // Longer; another content of the same length; replaced by another file of the same content and time;
            // something else.
            std_fs::write(world.at("cam/3"), vec![3; 31]).expect("written");
            let old = std_fs::metadata(world.at("cam/1")).expect("there").modified().expect("a time");
            std_fs::write(world.at("cam/1"), vec![9; 100_000]).expect("written");
            let file = File::options().write(true).open(world.at("cam/1")).expect("opened");
            file.set_modified(old).expect("set");
            std_fs::remove_file(world.at("cam/4")).expect("removed");
            std_fs::create_dir(world.at("cam/4")).expect("made");
            let outcome = world.dispose(disposal, false).expect("not stopped");
            assert!(outcome.problems.is_empty());
            let bytes = 50 + 60 + 70 + 80 + 100_000;
            assert_eq!(outcome.disposed, Disposed { files: 6, bytes, changed: 3, gone: 1, failed: 0 });
            for stays in ["cam/new", "cam/1", "cam/3", "cam/4", "cam/empty"] {
                assert!(world.at(stays).exists(), "{stays}");
            }
            assert!(world.at("cam/link").symlink_metadata().is_ok());
            for gone in ["cam/0", "cam/5", "cam/8", "cam/9"] {
                assert!(!world.at(gone).exists(), "{gone}");
                assert_eq!(world.archived(gone).exists(), disposal != Disposal::Delete, "{gone}");
            }
            // What is archived is no content of the folder, nor of one above it.
            for above in [&world.at(""), world.root.path()] {
                let work = tempfile::tempdir().expect("a folder");
                let (manifest, _) =
                    crate::disk::index_path(above, work.path(), &mut |_| true).expect("indexed");
                for index in 0..manifest.entries() {
                    let entry = manifest.entry(index).expect("readable");
                    assert!(!entry.path.windows(9).any(|name| name == b".flotilla"), "{:?}", entry.path);
                }
            }
        }
    }

    /// The next run of the folder would take what they leave out.
    #[test]
    fn the_rules_of_a_folder_stay() {
        for disposal in [Disposal::Delete, Disposal::Archive { days: 30 }] {
            let mut world = World::new();
            std_fs::write(world.at(".flotillaignore"), "/cam/3\n").expect("written");
            std_fs::write(world.at("cam/.flotillaignore"), "no rules: it is not at the top")
                .expect("written");
            world.manifest =
                crate::disk::index_path(&world.at(""), world.data.path(), &mut |_| true).expect("indexed").0;
            let disposed = world.dispose(disposal, false).expect("not stopped").disposed;
            assert_eq!((disposed.files, disposed.changed, disposed.gone), (10, 0, 0));
            assert!(world.at(".flotillaignore").exists() && world.at("cam/3").exists());
            assert!(!world.at("cam/4").exists() && !world.at("cam/.flotillaignore").exists());
        }
    }

    #[test]
    fn broken_off_it_goes_on_and_told_twice_it_is_one_fact() {
        let world = World::new();
        assert!(world.dispose(Disposal::Delete, true).is_none());
        assert!(world.at("cam/0").exists());
        let all = world.dispose(Disposal::Delete, false).expect("not stopped").disposed;
        assert_eq!((all.files, all.gone), (10, 0));
        assert_eq!(world.dispose(Disposal::Delete, false).expect("not stopped").disposed, all);
        assert!(
            !world.archived("").exists() || std_fs::read_dir(world.archived("")).expect("there").count() == 0
        );
    }

    /// A kill, or a power cut, between moving a file and looking at what was moved.
    #[test]
    fn what_was_moved_and_not_looked_at_is_looked_at_by_the_next_attempt() {
        for disposal in [Disposal::Delete, Disposal::Archive { days: 1 }] {
            let world = World::new();
            let move_away = |path: &str| {
                let moved = world.archived(path);
                std_fs::create_dir_all(moved.parent().expect("below")).expect("made");
                std_fs::rename(world.at(path), moved).expect("moved");
            };
            // The one that was sent; one that replaced it just before; the same, and a newer one came since.
            move_away("cam/4");
            for path in ["cam/5", "cam/6"] {
                std_fs::write(world.at(path), "replaced, and never sent").expect("written");
                move_away(path);
            }
            std_fs::write(world.at("cam/6"), "newer still").expect("written");
            let outcome = world.dispose(disposal, false).expect("not stopped");
            let Disposed { files, changed, gone, failed, .. } = outcome.disposed;
            assert_eq!((files, changed, gone, failed), (8, 2, 0, 0));
            assert_eq!(std_fs::read(world.at("cam/5")).expect("given back"), b"replaced, and never sent");
            assert_eq!(std_fs::read(world.at("cam/6")).expect("there"), b"newer still");
            assert_eq!(std_fs::read(world.archived("cam/6")).expect("kept"), b"replaced, and never sent");
            assert_eq!(world.archived("cam/4").exists(), disposal != Disposal::Delete);
            // Somebody is told, and has a month.
            let told: Vec<_> = outcome.problems.iter().map(|problem| &problem.path[..]).collect();
            assert_eq!(told, [b"cam/6"]);
            assert_eq!(world.until(), DAY_MS + KEPT_MS);
        }
    }

    #[test]
    fn what_is_archived_late_is_kept_as_long_as_what_was_first() {
        let world = World::new();
        let (days, stop) = (Disposal::Archive { days: 30 }, AtomicBool::new(true));
        assert!(world.dispose_at(days, Timestamp(DAY_MS), &stop).is_none());
        assert_eq!(world.until(), 31 * DAY_MS);
        // It was parked for forty days.
        let stop = AtomicBool::new(false);
        assert!(world.dispose_at(days, Timestamp(41 * DAY_MS), &stop).is_some());
        assert_eq!(world.until(), 71 * DAY_MS);
        let folder = Folder::open(&world.at("")).expect("there");
        let expire = |now| Archive::of(&folder).expire(Timestamp(now)).expect("readable");
        assert_eq!(expire(42 * DAY_MS).kept, 1);
        let held = archive::hold(&RunId([7; 16]).to_string());
        assert_eq!(expire(u64::MAX).kept, 1, "somebody works with it");
        drop(held);
        assert_eq!(expire(u64::MAX).removed, 1);
    }

    #[test]
    fn an_archive_that_somebody_removes_does_not_make_files_gone() {
        let world = World::new();
        let folder = Folder::open(&world.at("")).expect("there");
        let (archive, stop) = (Archive::of(&folder), AtomicBool::new(false));
        archive.begin("g", Timestamp(0)).expect("made");
        let page = world.manifest.page(0).expect("there");
        let known = |path: &[u8]| {
            let (index, entry) = page.entries().find(|(_, e)| e.path == path).expect("there");
            (page.blocks_of_entry(index).start, entry)
        };
        let disposal = Disposal::Archive { days: 1 };
        let work =
            Work { folder: &folder, archive: &archive, group: "g", disposal, again: false, stop: &stop };
        let take = |path: &[u8]| {
            let (first_block, file) = known(path);
            work.take(&Known { manifest: &world.manifest, path: &file.path, file, first_block })
        };
        assert!(matches!(take(b"cam/0"), Ok(Fate::Disposed)));
        std_fs::remove_dir_all(world.at(".flotilla/archive/g")).expect("removed");
        assert!(!matches!(take(b"cam/2"), Ok(Fate::Gone)), "it is there");
        assert!(world.at("cam/2").exists() || world.at(".flotilla/archive/g/cam/2").exists());
        std_fs::remove_file(world.at("cam/3")).expect("removed");
        assert!(matches!(take(b"cam/3"), Ok(Fate::Gone)));
    }

    #[test]
    fn a_file_that_cannot_go_is_told() {
        let world = World::new();
        // Where its place in the archive would be there is what cannot be replaced by a file.
        std_fs::create_dir_all(world.archived("cam/5/in the way")).expect("made");
        let outcome = world.dispose(Disposal::Archive { days: 1 }, false).expect("not stopped");
        assert_eq!((outcome.disposed.files, outcome.disposed.failed), (9, 1));
        assert_eq!(outcome.problems[0].path, b"cam/5");
        assert!(world.at("cam/5").exists());
    }

    #[test]
    fn further_names_and_holes() {
        let (root, data) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let at = |name: &str| root.path().join(name);
        std_fs::write(at("a"), vec![1; 50_000]).expect("written");
        std_fs::hard_link(at("a"), at("b")).expect("linked");
        for name in ["sparse", "filled"] {
            let file = File::create(at(name)).expect("made");
            file.set_len(4 << 20).expect("set");
            file.write_all_at(&[7; 100], 2 << 20).expect("written");
            file.sync_all().expect("synced");
        }
        let (manifest, _) =
            crate::disk::index_path(root.path(), data.path(), &mut |_| true).expect("indexed");
        // Something is written into a hole, and the time set back.
        let old = std_fs::metadata(at("filled")).expect("there").modified().expect("a time");
        let file = File::options().write(true).open(at("filled")).expect("opened");
        file.write_all_at(&[8; 10], 0).expect("written");
        file.set_modified(old).expect("set");
        let (stop, note) = (AtomicBool::new(false), data.path().join("disposal"));
        let outcome =
            dispose(root.path(), RunId([1; 16]), &manifest, Disposal::Delete, &|| Timestamp(9), &note, &stop);
        let disposed = outcome.ok().flatten().expect("not stopped").disposed;
        // A further name takes no room, if the manifest knows that it is one.
        let is_link = |n| manifest.entry(n).is_ok_and(|entry| matches!(entry.kind, Kind::HardLink { .. }));
        let content = if (0..manifest.entries()).any(is_link) { 50_000 } else { 100_000 };
        assert_eq!(
            disposed,
            Disposed { files: 3, bytes: content + (4 << 20), changed: 1, gone: 0, failed: 0 }
        );
        assert!(at("filled").exists() && !at("a").exists() && !at("b").exists() && !at("sparse").exists());
    }
}
