//! The end of a run at a destination: what is left over is put in place, everything is looked at once more, folders get
//! their metadata, and all of it is written to the disk for good.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::thread::ScopedJoinHandle;

use event_schema::{Problem, ProblemClass};
use folder_index::rules_in;
use rustix::fs::{self, AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;
use sync_core::manifest::{Entry, Kind, Mtime, STAGING_FOLDER};

use super::{LINK_NAME, NAMES_HELD, Staging, unreadable};
use crate::archive::remove_tree;
use crate::disk::folder::{file_type, mtime};
use crate::disk::{Problems, problem};

/// Threads that look at files once more, at most.
const LOOKERS_MAX: usize = 4;

/// Pages that are worth a thread: some thousand files.
const PAGES_LOOKED_AT: usize = 32;

impl Staging {
    /// Puts everything in place that is whole: files left over, links, then modes and times of
    /// folders from the deepest up, and removes the staging folder. Then everything is on the disk
    /// for good (`syncfs`).
    ///
    /// Gives the problems of single entries; files of which blocks are missing are not touched and
    /// are not among them. With a full disk among them nothing is lost: it can be called again.
    pub(crate) fn finalize(&self) -> Vec<Problem> {
        let (mut problems, metadata) = self.finish();
        problems.extend(metadata);
        problems
    }

    /// The same, with what the file system could not hold of owners and attributes apart from the rest.
    pub(crate) fn finish(&self) -> (Vec<Problem>, Vec<Problem>) {
        let mut problems = Problems::default();
        self.name_waiting(&mut |_| {});
        let doing = "putting the file in place";
        self.each_entry(false, &mut problems, doing, |entry, e, blocks| {
            if matches!(e.kind, Kind::File { .. }) && self.is_whole_but_not_placed(entry, blocks) {
                self.make_ready(entry, e, None)?;
                self.wait_for_names([entry]);
            }
            Ok(())
        });
        self.name_waiting(&mut |problem| problems.push(problem));
        self.folder().forget();
        self.look_again(&mut problems);
        let doing = "putting the entry in place";
        self.each_entry(false, &mut problems, doing, |_, e, _| match &e.kind {
            Kind::File { .. } => Ok(()),
            Kind::Folder => self.make_folder(&e.path).map(|_| ()),
            Kind::Symlink { target } => self.place_link(e, target),
            Kind::HardLink { to } => self.place_hard_link(e, *to),
        });
        let lost = std::mem::take(&mut self.lock().lost);
        lost.into_vec().into_iter().for_each(|one| problems.push(one));
        if problems.any(|problem| problem.class == ProblemClass::DiskFull) {
            return (problems.into_vec(), Vec::new());
        }
        self.remove_staging();
        let doing = "restoring the folder's metadata";
        self.each_entry(true, &mut problems, doing, |_, e, _| match e.kind {
            Kind::Folder => self.restorer.restore(self.folder().walk(&e.path)?, e),
            _ => Ok(()),
        });
        // What a file system has no room for beside a file does not come to fit by waiting.
        let class = |class| if class == ProblemClass::DiskFull { ProblemClass::Io } else { class };
        let metadata = self.restorer.problems().into_iter();
        let metadata = metadata.map(|problem| Problem { class: class(problem.class), ..problem }).collect();
        if let Err(err) = self.sync() {
            // The system tells this once: that it does not do so again says nothing.
            let told = problem(err, b"", "writing everything to the disk");
            problems.push(Problem { class: ProblemClass::Io, ..told });
        }
        (problems.into_vec(), metadata)
    }

    /// Looks whether files that were put in place are what they were: whoever deletes them at the source for our word
    /// must know. Everything else waits for this, so that every processor looks.
    pub(super) fn look_again(&self, problems: &mut Problems) {
        let pages = self.manifest.pages();
        let lookers = std::thread::available_parallelism().map_or(1, |n| n.get()).min(LOOKERS_MAX);
        let share = pages.div_ceil(lookers).max(PAGES_LOOKED_AT);
        let told: Vec<Problems> = std::thread::scope(|scope| {
            let look = |first| scope.spawn(move || self.look_at(first..pages.min(first + share)));
            let looking: Vec<_> = (0..pages).step_by(share).map(look).collect();
            let told =
                |looking: ScopedJoinHandle<'_, Problems>| looking.join().expect("nothing panics there");
            looking.into_iter().map(told).collect()
        });
        told.into_iter().flat_map(Problems::into_vec).for_each(|problem| problems.push(problem));
    }

    /// The same for the files of some pages.
    fn look_at(&self, pages: Range<usize>) -> Problems {
        let (mut problems, folder) = (Problems::default(), self.folder().again());
        for page in pages {
            let page = match self.manifest.page(page) {
                Ok(page) => page,
                Err(err) => {
                    problems.push(unreadable(err));
                    continue;
                }
            };
            for (entry, e) in page.entries() {
                if !matches!(e.kind, Kind::File { .. }) || !self.lock().placed.contains(entry) {
                    continue;
                }
                match folder.stat(&e.path) {
                    Ok(stat) if is_as_placed(&stat, e) => {}
                    Ok(_) => {
                        let detail =
                            "somebody changed the file here since it was put in place; start the job again";
                        let (class, path) = (ProblemClass::Io, e.path.clone());
                        problems.push(Problem { class, path, detail: detail.into() });
                    }
                    Err(err) => problems.push(problem(err, &e.path, "looking at the file once more")),
                }
            }
        }
        problems
    }

    /// Does something with every entry, from the first to the last or backwards.
    pub(super) fn each_entry(
        &self,
        backwards: bool,
        problems: &mut Problems,
        doing: &str,
        act: impl Fn(u64, &Entry, Range<u64>) -> rustix::io::Result<()>,
    ) {
        let pages = self.manifest.pages();
        for nth in 0..pages {
            let index = if backwards { pages - 1 - nth } else { nth };
            let page = match self.manifest.page(index) {
                Ok(page) => page,
                Err(err) => {
                    problems.push(unreadable(err));
                    continue;
                }
            };
            let mut one = |(entry, e): (u64, &Entry)| {
                if let Err(err) = act(entry, e, page.blocks_of_entry(entry)) {
                    problems.push(problem(err, &e.path, doing));
                }
            };
            if backwards {
                page.entries().rev().for_each(&mut one)
            } else {
                page.entries().for_each(&mut one)
            }
        }
    }

    pub(super) fn is_whole_but_not_placed(&self, entry: u64, blocks: Range<u64>) -> bool {
        let inner = self.lock();
        !inner.placed.contains(entry) && !inner.given_up.contains(entry) && inner.has_all(blocks)
    }

    fn place_link(&self, e: &Entry, target: &[u8]) -> rustix::io::Result<()> {
        let (parent, name) = self.folder().parent(&e.path)?;
        let same = fs::readlinkat(&parent, name, Vec::new()).is_ok_and(|there| there.as_bytes() == target);
        if !same {
            if self.spares(&e.path) {
                return Ok(());
            }
            self.set_aside(&e.path)?;
            self.folder().clear_folder_at(&e.path)?;
            // Made under another name and renamed, so that the old entry is there until the new one is.
            let staging = self.free_link_name()?;
            fs::symlinkat(target, staging, LINK_NAME)?;
            fs::renameat(staging, LINK_NAME, &parent, name)?;
        }
        self.restorer.restore_link(&parent, name, e)
    }

    /// Makes an entry another name of a file, if that is in place. If not, that was told.
    fn place_hard_link(&self, e: &Entry, to: u64) -> rustix::io::Result<()> {
        let file = self.manifest.entry(to)?;
        if !self.lock().placed.contains(to) {
            let spared = rules_in(&file.path) == Some(&file.path[..]) && self.lock().spared;
            return if spared { Err(Errno::NOENT) } else { Ok(()) };
        }
        let is_same = |a: &Stat, b: &Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
        let stat = self.folder().stat(&file.path)?;
        if file_type(&stat) != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        // Renaming one name of a file to another one does nothing at all.
        if self.folder().stat(&e.path).is_ok_and(|there| is_same(&there, &stat)) {
            return Ok(());
        }
        if self.spares(&e.path) {
            return Ok(());
        }
        self.set_aside(&e.path)?;
        self.folder().clear_folder_at(&e.path)?;
        let staging = self.free_link_name()?;
        let (parent, name) = self.folder().parent(&file.path)?;
        fs::linkat(&parent, name, staging, LINK_NAME, AtFlags::empty())?;
        let (parent, name) = self.folder().parent(&e.path)?;
        fs::renameat(staging, LINK_NAME, &parent, name)
    }

    /// The staging folder, with nothing under [`LINK_NAME`].
    fn free_link_name(&self) -> rustix::io::Result<&OwnedFd> {
        match fs::unlinkat(&self.staging, LINK_NAME, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(&self.staging),
            Err(e) => Err(e),
        }
    }

    /// Removes unfinished files: after the run was stopped for good.
    pub(crate) fn remove_staging(&self) {
        let _no_names = self.hold_names();
        self.lock().files.clear();
        self.folder().forget();
        match self.try_remove_staging() {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => tracing::warn!(%error, "cannot remove the staging folder"),
        }
        self.folder().forget();
        // Other runs may be using theirs.
        let _ = fs::unlinkat(self.folder().root(), STAGING_FOLDER, AtFlags::REMOVEDIR);
    }

    /// Gets there name by name as everything else does: whoever may write to the destination must not
    /// have us remove something elsewhere by laying a symlink.
    fn try_remove_staging(&self) -> rustix::io::Result<()> {
        let staging = &self.staging;
        self.hide()?;
        loop {
            let mut names = Vec::new();
            for item in Dir::read_from(staging)? {
                let item = item?;
                if item.file_name() != c"." && item.file_name() != c".." {
                    names.push(item.file_name().to_owned());
                }
                if names.len() >= NAMES_HELD {
                    break;
                }
            }
            if names.is_empty() {
                break;
            }
            for name in names {
                match fs::unlinkat(staging, &name, AtFlags::empty()) {
                    Err(Errno::ISDIR | Errno::PERM) => remove_tree(staging, name.as_bytes())?,
                    removed => removed?,
                }
            }
        }
        let (parent, name) = self.folder().parent(&self.staging_path)?;
        fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)
    }
}

/// Whether a file still has the size and the time with which it was put in place, as far as its file system can tell
/// times apart.
pub(super) fn is_as_placed(stat: &Stat, e: &Entry) -> bool {
    /// Some have no times before 1980, or after 2038.
    const EVERYBODY_HAS: Range<i64> = 315_619_200..i32::MAX as i64;
    file_type(stat) == FileType::RegularFile
        && stat.st_size as u64 == e.kind.size()
        && (has_time_of(stat, e) || !EVERYBODY_HAS.contains(&e.mtime.seconds))
}

/// Whether a file has the time of an entry, as its file system rounds it.
pub(super) fn has_time_of(stat: &Stat, e: &Entry) -> bool {
    /// What file systems round times to, in nanoseconds: nothing, as NTFS, as some network file systems, as exFAT, a
    /// second, as FAT.
    const UNITS: [i128; 7] = [1, 100, 1_000, 1_000_000, 10_000_000, 1_000_000_000, 2_000_000_000];
    let nanos = |time: Mtime| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let (there, wanted) = (nanos(mtime(stat)), nanos(e.mtime));
    UNITS.iter().any(|unit| wanted - wanted.rem_euclid(*unit) == there)
}
