//! Folders on disk: reading a source, keeping what a destination got, putting it in place.
//!
//! Everything here blocks and belongs on a blocking thread. Paths from a manifest are walked name by
//! name without following symlinks ([`folder::Folder`]), so nothing outside a run's folder can be
//! touched, whatever stands in the way on disk. Read `index.rs` for the source's side and
//! `staging.rs` for the destination's.

mod folder;
mod index;
mod journal;
mod reader;
mod staging;
#[cfg(test)]
mod tests;

use event_schema::{Problem, ProblemClass};
use rustix::io::Errno;

pub(crate) use index::index_path;
pub(crate) use reader::{BlockReader, ReadError};
pub(crate) use staging::{Staging, StoreError};

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
