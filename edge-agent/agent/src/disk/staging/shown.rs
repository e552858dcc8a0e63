//! What a hook sees of a run before its files get their names (`edge-agent/PROTOCOL.md` §2.12).
//!
//! Where a hook is to be called, files wait in the staging folder until all of them are whole. Then each gets a second name
//! below [`SHOWN`], where it has its path; the hook works there, and what it has changed is given up instead of put in
//! place.

use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use event_schema::{Problem, ProblemClass};
use rustix::fs::{self, AtFlags};
use rustix::io::Errno;
use sync_core::manifest::{Entry, Kind};

use super::Staging;
use super::finalize::is_as_placed;
use crate::archive::remove_tree;
use crate::disk::folder::Folder;
use crate::disk::{Problems, problem};

/// The file in a run's state folder that says that nothing gets its name before a hook has seen it.
pub(crate) const HOLDS: &str = "holds";

/// Where a hook sees the files, in the run's staging folder.
const SHOWN: &[u8] = b"files";

impl Staging {
    /// Whether nothing gets its name yet.
    pub(crate) fn is_held_back(&self) -> bool {
        self.held_back.load(Ordering::Relaxed)
    }

    /// Shows the files that are whole and have no names yet, under their paths; says where, below the destination folder.
    ///
    /// # Errors
    /// Why they cannot be shown, all of them or one.
    pub(crate) fn show(&self) -> Result<PathBuf, Problem> {
        let unusable = |e| problem(e, b"", "showing the files to the hook");
        self.name_waiting(&mut |_| {});
        self.hide().map_err(unusable)?;
        let path = [&self.staging_path[..], b"/", SHOWN].concat();
        self.folder().make_private(&path).map_err(unusable)?;
        let shown = self.folder().below(&path).map_err(unusable)?;
        let mut problems = Problems::default();
        self.each_entry(false, &mut problems, "showing the file to the hook", |entry, e, blocks| match self
            .is_waiting(entry, e, blocks)
        {
            true => self.make_ready(entry, e, None).and_then(|()| self.show_file(&shown, entry, e)),
            false => Ok(()),
        });
        let links = "; files can be shown only where there are hard links";
        match problems.into_vec().into_iter().next() {
            Some(Problem { class, path, detail }) if class != ProblemClass::DiskFull => {
                Err(Problem { class, path, detail: detail + links })
            }
            Some(full) => Err(full),
            None => Ok(Path::new(std::ffi::OsStr::from_bytes(&path)).to_owned()),
        }
    }

    fn show_file(&self, shown: &Folder, entry: u64, e: &Entry) -> rustix::io::Result<()> {
        let slashes = e.path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let is_there = |at| shown.walk(&e.path[..at]).is_ok();
        for (at, _) in slashes.collect::<Vec<_>>().into_iter().filter(|(at, _)| !is_there(*at)) {
            shown.make_folder(&e.path[..at])?;
        }
        let (parent, name) = shown.parent(&e.path)?;
        fs::linkat(&self.staging, &self.partial_path(entry)?[..], &parent, name, AtFlags::empty())
    }

    /// Whether a file waits for its name.
    fn is_waiting(&self, entry: u64, e: &Entry, blocks: Range<u64>) -> bool {
        matches!(e.kind, Kind::File { .. }) && self.is_whole_but_not_placed(entry, blocks)
    }

    /// The hook has seen the files: from now on they get their names. Those that it changed are given up.
    pub(crate) fn release(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        let doing = "looking at the file after the hook";
        let changed = std::cell::RefCell::new(Vec::new());
        self.each_entry(false, &mut problems, doing, |entry, e, blocks| {
            if self.is_waiting(entry, e, blocks.clone()) {
                let path = self.partial_path(entry)?;
                match fs::statat(&self.staging, &path[..], AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) if is_as_placed(&stat, e) => {}
                    Ok(_) | Err(Errno::NOENT) => changed.borrow_mut().push((entry, e.path.clone(), blocks)),
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
        for (entry, path, blocks) in changed.into_inner() {
            self.remove_partial(entry);
            self.give_up(entry, blocks);
            let detail = "the hook changed the file, so it is not put in place; start the job again".into();
            problems.push(Problem { class: ProblemClass::Io, path, detail });
        }
        if let Err(error) = self.hide() {
            tracing::warn!(%error, "what was shown to the hook cannot be removed yet");
        }
        self.held_back.store(false, Ordering::Relaxed);
        problems.into_vec()
    }

    /// Looks whether everything in place is as it was put there.
    pub(crate) fn changed(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        self.folder().forget();
        self.look_again(&mut problems);
        problems.into_vec()
    }

    /// Takes the second names away.
    pub(super) fn hide(&self) -> rustix::io::Result<()> {
        remove_tree(&self.staging, SHOWN)
    }
}
