//! What is in the way of a run's entries, where nothing may be lost: it goes into the folder's archive for good
//! (`edge-agent/PROTOCOL.md` §2.10).
//!
//! Sources of such a run delete what every destination has, so what an earlier run brought may be nowhere else. A camera
//! that numbers its files anew brings another file of the same name.

use std::path::Path;

use event_schema::{Problem, ProblemClass, RunId, Timestamp};
use folder_index::{IGNORE_FILE, rules_in};
use rustix::fs::FileType;
use rustix::io::{Errno, Result};

use super::Staging;
use crate::archive::Archive;
use crate::disk::folder::file_type;

/// The file in a run's state folder that says that nothing may be lost there.
pub(crate) const KEEPS: &str = "keeps";

/// Whether what is replaced is kept, and where.
pub(super) struct Aside {
    /// The archive's group.
    group: Option<String>,
}

impl Aside {
    pub(super) fn of(state: &Path, run: RunId) -> Self {
        Self { group: state.join(KEEPS).exists().then(|| run.to_string()) }
    }
}

impl Staging {
    /// Makes room for an entry at `path`: puts what is there into the archive, unless it is a folder or may go.
    ///
    /// # Errors
    /// Whatever the system says, `XDEV` if a file system of its own lies there: what is there must stay then.
    pub(super) fn set_aside(&self, path: &[u8]) -> Result<()> {
        let Some(group) = self.aside.group.as_deref().filter(|_| !path.is_empty()) else { return Ok(()) };
        match self.folder().stat(path) {
            Ok(there) if file_type(&there) == FileType::Directory => return Ok(()),
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(error) => return Err(error),
        }
        let archive = Archive::of(self.folder());
        archive.begin(group, Timestamp::NEVER)?;
        archive.keep(group, path)?;
        self.folder().forget();
        Ok(())
    }

    /// Makes sure that a folder is at `path`, as [`crate::disk::Folder::make_folder`] does; what is in its place is set aside.
    pub(super) fn make_folder(&self, path: &[u8]) -> Result<bool> {
        if self.spares(path) {
            return Ok(false);
        }
        self.set_aside(path)?;
        self.folder().make_folder(path)
    }

    /// Whether something that may be the rules of a folder of somebody is at `path` or above it. It stays, or a run that
    /// brings other rules would decide what the next one takes from here (`edge-agent/PROTOCOL.md` §4.10).
    pub(super) fn spares(&self, path: &[u8]) -> bool {
        let Some(rules) = rules_in(path) else { return false };
        if self.folder().stat(rules).map_or(true, |there| file_type(&there) == FileType::Directory) {
            return false;
        }
        let mut inner = self.lock();
        if path == IGNORE_FILE {
            inner.spared = true;
        } else {
            let detail = format!(
                "{} is there already and may say what a run takes from this folder, so it stays; remove it to have the \
                 source's",
                rules.escape_ascii()
            );
            inner.lost.push(Problem { class: ProblemClass::UnsafeName, path: path.to_vec(), detail });
        }
        true
    }

    /// Tells people that the folder has rules of its own.
    pub(crate) fn spared(&self) -> Option<Problem> {
        let detail = "the folder has rules of its own, which stay; remove them to have the source's";
        let spared =
            Problem { class: ProblemClass::UnsafeName, path: IGNORE_FILE.to_vec(), detail: detail.into() };
        self.lock().spared.then_some(spared)
    }

    /// Tells people where to look for what was in the way, if anything was.
    pub(crate) fn kept(&self) -> Option<Problem> {
        let place = Archive::of(self.folder()).path(self.aside.group.as_deref()?, b"");
        self.folder().stat(&place).ok()?;
        let detail = format!(
            "something else was in the place of files of this run, perhaps what an earlier one brought: it is kept in {} \
             of the folder until somebody removes it there",
            place.escape_ascii()
        );
        Some(Problem { class: ProblemClass::Replaced, path: Vec::new(), detail })
    }
}
