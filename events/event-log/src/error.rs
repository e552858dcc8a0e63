//! What can go wrong, one type per operation, grouped by what the caller can conclude: [`AppendError`] says above
//! all whether the record may have been stored, [`ReadError`] never stands for skipped data.

use crate::limits::{MAX_COMMIT_BYTES, MAX_COMMIT_RECORDS, MAX_RECORD_BYTES};
use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::position::Position;

/// Why an append was not acknowledged. [`AppendError::may_be_stored`] is the question to ask before trying again.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The stream's last record is not the expected one; nothing was stored. Read what is new, decide again.
    #[error("the stream's last record is {}, not {} as expected", Shown(.actual), Shown(.expected))]
    Conflict {
        /// What the caller expected; `None`: an empty stream.
        expected: Option<Position>,
        /// What the stream really ends with; `None`: it is empty.
        actual: Option<Position>,
    },
    /// The record exceeds [`MAX_RECORD_BYTES`](crate::limits::MAX_RECORD_BYTES); nothing was stored.
    #[error("the record has {size} bytes, more than the {max} that the log accepts")]
    TooLarge {
        /// Bytes of the record.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// No room on the disk, or a quota is used up; nothing was stored. Appending works again once there is room.
    #[error("no room to append: {reason}; free some space, nothing was lost")]
    NoSpace {
        /// What the system or server said.
        reason: String,
    },
    /// The backend can't be reached or refuses for now; nothing was stored. Try again later.
    #[error("the log is not available: {reason}; nothing was stored, try again later")]
    Unavailable {
        /// What was tried and what came back.
        reason: String,
    },
    /// It is not known whether the record was stored. Read the stream's end and compare before trying again.
    #[error("it is not known whether the record was stored: {reason}")]
    Unknown {
        /// What was tried and what came back.
        reason: String,
    },
    /// An earlier failure left the file in a state that only opening anew can settle; this record was not stored.
    #[error("the log refuses appends since an earlier failure ({reason}); open it anew")]
    Poisoned {
        /// The failure that came first.
        reason: String,
    },
    /// The log was opened read-only; nothing was stored.
    #[error("the log is open for reading only")]
    ReadOnly,
    /// The log has been closed; nothing was stored.
    #[error("the log is closed")]
    Closed,
    /// The system refused the write; nothing was stored and the log stays usable.
    #[error("the record could not be written, nothing was stored: {0}")]
    Io(#[source] io::Error),
}

impl AppendError {
    /// Refuses a record that is larger than every log accepts.
    ///
    /// # Errors
    /// [`AppendError::TooLarge`].
    pub fn check_size(bytes: &[u8]) -> Result<(), AppendError> {
        let (size, max) = (bytes.len(), MAX_RECORD_BYTES);
        if size > max { Err(AppendError::TooLarge { size, max }) } else { Ok(()) }
    }

    /// Refuses a commit of several records that is larger than every log accepts, or empty.
    ///
    /// # Errors
    /// [`AppendError::TooLarge`].
    pub fn check_commit(records: &[Vec<u8>]) -> Result<(), AppendError> {
        records.iter().try_for_each(|bytes| AppendError::check_size(bytes))?;
        let (size, max) = (records.iter().map(Vec::len).sum(), MAX_COMMIT_BYTES);
        let fits = size <= max && records.len() <= MAX_COMMIT_RECORDS;
        if records.len() == 1 || (fits && !records.is_empty()) {
            Ok(())
        } else {
            Err(AppendError::TooLarge { size, max })
        }
    }

    /// Whether the record may be in the log although the append was not acknowledged.
    pub fn may_be_stored(&self) -> bool {
        matches!(self, AppendError::Unknown { .. })
    }
}

/// Shows an optional position to people.
struct Shown<'a>(&'a Option<Position>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(position) => write!(f, "{position}"),
            None => f.write_str("none"),
        }
    }
}

/// Why a read returned no entries although it should have.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// What is stored is not what was appended, or is missing. Never skipped: nothing behind it is returned either.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The record was moved to an archive: the log begins later here. Nothing is lost, and nothing is skipped.
    #[error("the log begins with position {first} here; what stands before it was archived")]
    Archived {
        /// The first position that can be read.
        first: Position,
    },
    /// The backend can't be reached for now. Try again later.
    #[error("the log is not available: {reason}")]
    Unavailable {
        /// What was tried and what came back.
        reason: String,
    },
    /// The log has been closed.
    #[error("the log is closed")]
    Closed,
    /// The system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Stored data that is wrong or missing, and exactly where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the log is damaged at position {position} ({place}): {what}")]
pub struct Damage {
    /// The first position that can't be read.
    pub position: Position,
    /// Where it lies.
    pub place: Place,
    /// What is wrong there.
    pub what: String,
}

/// Where a record lies, in the words of its backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a segment file, so many bytes from its start.
    File {
        /// The segment.
        path: PathBuf,
        /// Bytes from the start of the file.
        offset: u64,
    },
    /// In a stream of a server.
    Server {
        /// The server-side stream.
        stream: String,
        /// The sequence number there.
        sequence: u64,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { path, offset } => write!(f, "file {}, offset {offset}", path.display()),
            Place::Server { stream, sequence } => write!(f, "stream {stream}, sequence {sequence}"),
        }
    }
}

/// Why a log folder did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another part of this one, writes to it.
    #[error(
        "the log in {} is in use by {holder}; a log has one writer: stop that process, or choose another data folder",
        dir.display()
    )]
    Locked {
        /// The log's folder.
        dir: PathBuf,
        /// What the lock file says about its holder.
        holder: String,
    },
    /// A record or segment is damaged or missing. Opening read-only still serves everything before it.
    #[error(
        "{0}; nothing was changed. Restore that file from a copy, or, to give up this record and all later ones, \
         cut the file at that offset and remove later segments"
    )]
    Damaged(Damage),
    /// The file that says where the log begins is damaged.
    #[error(
        "{} is damaged: {what}; nothing was changed. Copy the file `base` from the archive whose segments end last",
        path.display()
    )]
    Base {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A segment was written by a newer version, or is no segment.
    #[error("{} is not a segment this version reads: {what}", path.display())]
    Unsupported {
        /// The segment.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A setting is out of its range.
    #[error("bad log setting: {0}")]
    Setting(String),
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
}

/// Why the beginning of a log was not moved. Nothing was removed then.
#[derive(Debug, thiserror::Error)]
pub enum ShortenError {
    /// Only whole segments leave, and never the last one.
    #[error(
        "position {position} is not the end of a segment that is closed, or the log begins behind it already"
    )]
    NotAnEnd {
        /// What was asked.
        position: Position,
    },
    /// The log was opened read-only.
    #[error("the log is open for reading only")]
    ReadOnly,
    /// The system refused.
    #[error("cannot say where the log begins from now on in {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
