//! What is in the way of a run's entries, where nothing may be lost: it goes into the folder's archive for good
//! (`edge-agent/PROTOCOL.md` §2.10).
//!
//! Sources of such a run delete what every destination has, so what an earlier run brought may be nowhere else. A camera
//! that numbers its files anew brings another file of the same name.

use std::path::Path;

use event_schema::{Problem, ProblemClass, RunId, Timestamp};
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
        self.set_aside(path)?;
        self.folder().make_folder(path)
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
