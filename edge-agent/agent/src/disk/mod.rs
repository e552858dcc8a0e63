//! Folders on disk: reading a source, keeping what a destination got, putting it in place.
//!
//! Everything here blocks and belongs on a blocking thread. Paths from a manifest are walked name by
//! name without following symlinks ([`folder::Folder`]), so nothing outside a run's folder can be
//! touched, whatever stands in the way on disk. Read `index.rs` for the source's side and
//! `staging.rs` for the destination's.

mod cache;
mod folder;
mod held;
mod index;
mod journal;
mod manifest;
mod metadata;
#[cfg(test)]
mod million;
mod reader;
mod recent;
mod rules;
mod seek;
mod staging;
#[cfg(test)]
mod tests;
mod urgent;

use std::os::fd::AsFd;

use event_schema::{Problem, ProblemClass};
use rustix::io::Errno;

pub(crate) use folder::{Folder, chmod_at, file_type, mtime};
pub(crate) use held::HeldManifests;
#[cfg(test)]
pub(crate) use index::index_path;
pub(crate) use index::{IndexProgress, index_known};
pub(crate) use manifest::{FileHashes, ManifestFile, ManifestWriter, PART, file_block_hashes};
pub(crate) use metadata::{Owners, Restorer, xattrs};
pub(crate) use reader::{BlockReader, ReadError, holes_hold_nothing, read_block};
pub(crate) use rules::usable as rules_usable;
pub(crate) use seek::{Sought, roll, worth};
#[cfg(test)]
pub(crate) use staging::tests::noise;
pub(crate) use staging::{Before, HOLDS, KEEPS, Opened, Staging, StoreError, io_problem};
pub(crate) use urgent::urgent;

/// Has the system write everything of this folder's file system to the disk. Linux before 2.6.39 does it for all file systems
/// at once; that one, and all before 5.8, do not tell what could not be written.
pub(crate) fn sync_file_system(folder: impl AsFd) -> rustix::io::Result<()> {
    match rustix::fs::syncfs(folder) {
        Err(Errno::NOSYS) => {
            rustix::fs::sync();
            Ok(())
        }
        done => done,
    }
}

/// Problems of single entries that are told; the rest is counted. What is reported of a run has the same bound.
const PROBLEMS_KEPT: usize = 1000;

/// Problems of single entries, as many as anybody will read.
#[derive(Default)]
pub(crate) struct Problems {
    kept: Vec<Problem>,
    more: u64,
}

impl Problems {
    pub(crate) fn push(&mut self, problem: Problem) {
        if self.kept.len() < PROBLEMS_KEPT {
            self.kept.push(problem);
        } else {
            self.more += 1;
            // Somebody waits for this one: it goes away by itself.
            if problem.class == ProblemClass::DiskFull {
                self.kept[0] = problem;
            }
        }
    }

    /// Whether there is such a one among those that were kept.
    pub(crate) fn any(&self, is: impl Fn(&Problem) -> bool) -> bool {
        self.kept.iter().any(is)
    }

    /// Those that were kept, and one that says how many more there were.
    pub(crate) fn into_vec(mut self) -> Vec<Problem> {
        if self.more > 0
            && let Some(last) = self.kept.last_mut()
        {
            last.detail = format!("{}; and {} more entries have problems", last.detail, self.more);
        }
        self.kept
    }
}

/// The problem that a system error on an entry amounts to, with what to do about it.
pub(crate) fn problem(errno: Errno, path: &[u8], doing: &str) -> Problem {
    let (class, hint) = match errno {
        Errno::NOSPC | Errno::DQUOT => (ProblemClass::DiskFull, "; free some room, it goes on by itself"),
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            (ProblemClass::PermissionDenied, "; allow the agent's user to do this")
        }
        Errno::NOENT => (ProblemClass::NotFound, ""),
        Errno::NAMETOOLONG | Errno::ILSEQ => {
            (ProblemClass::UnsafeName, "; this file system cannot hold the name")
        }
        _ => (ProblemClass::Io, ""),
    };
    Problem { class, path: path.to_vec(), detail: format!("{doing}: {errno}{hint}") }
}
