//! Archives: whole segments of the embedded log in a folder of their own, with everything that proves them
//! (`events/AUDIT_FORMAT.md` §11).
//!
//! `write` moves segments out of the log, `folder` knows the files, `note` what the log keeps of them, `history` reads
//! archives and log as one, `check` holds an archive against what was signed. None of it needs a running service.

mod check;
mod folder;
mod history;
mod note;
#[cfg(test)]
mod tests;
mod write;

use std::io;
use std::path::{Path, PathBuf};

use event_audit::keys::KeyListError;
use event_audit::ledger::LedgerError;
use event_log::{OpenError, ReadError, ShortenError};

pub use check::{Checked, check, peek};
pub use folder::{Manifest, Segment};
pub use history::{Archived, History};
pub use note::BaseNote;
pub(crate) use write::plan;
pub use write::{Archiver, Copied, Kept, Plan};

/// Archives that may be named at once.
pub const ARCHIVES_MAX: usize = 64;

/// Why an archive is not written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder is not there.
    #[error("the archive folder {} is not there: mount it, or make it", .0.display())]
    NoFolder(PathBuf),
    /// There is no archive in the folder.
    #[error("there is no archive in {}: it has no manifest.json", .0.display())]
    NoArchive(PathBuf),
    /// Another process writes to it.
    #[error("another process writes to the archive {}", .0.display())]
    InUse(PathBuf),
    /// The manifest is none.
    #[error("{} cannot be used: {what}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It is of another log, or does not continue it.
    #[error("the archive {} {what}", path.display())]
    Other {
        /// The folder.
        path: PathBuf,
        /// In which way.
        what: String,
    },
    /// A segment is not what the manifest says.
    #[error("entry {position} in {} is bad: {what}", path.display())]
    Segment {
        /// The segment.
        path: PathBuf,
        /// The first entry that is bad.
        position: u64,
        /// What is wrong.
        what: String,
    },
    /// A head that was seen before is not of this history.
    #[error("two histories: seen before was ({seen}), the archive's checkpoint {of}")]
    Forked {
        /// What was seen.
        seen: event_audit::Head,
        /// What the archive says to it.
        of: String,
    },
    /// The key list.
    #[error("{} cannot be used: {source}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyListError,
    },
    /// The tree.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A segment does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A record cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log does not begin later.
    #[error(transparent)]
    Shorten(#[from] ShortenError),
    /// The log's own note is none.
    #[error("the note in the log's base cannot be used: {0}. Copy the file `base` from the archive")]
    Note(String),
    /// The state behind the segment can't be had.
    #[error("the state at position {position} cannot be kept, so nothing is archived: {what}")]
    State {
        /// Which.
        position: u64,
        /// Why not.
        what: String,
    },
    /// Stopped as a crash would, for tests.
    #[cfg(test)]
    #[error("stopped by a test")]
    Stopped,
}

impl ArchiveError {
    /// The first entry that is bad, if the error is about one.
    pub fn position(&self) -> Option<u64> {
        match self {
            Self::Segment { position, .. } => Some(*position),
            Self::Read(ReadError::Damaged(damage)) => Some(damage.position.0),
            Self::Ledger(LedgerError::Tile { first, .. }) => Some(*first),
            _ => None,
        }
    }
}

fn io_error<'p>(doing: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> ArchiveError + 'p {
    move |source| ArchiveError::Io { doing, path: path.to_owned(), source }
}
