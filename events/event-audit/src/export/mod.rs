//! A whole history in one file: keys, checkpoints, hashes and entries, checked while it is read
//! (`AUDIT_FORMAT.md` §6).
//!
//! [`ExportWriter`] writes one from a ledger and the log's entries. [`ExportReader`] hands out entries only once they
//! are proved, in memory that does not grow with the file. [`verify`] reads all of it, [`compare`] two at once, [`prove_entry`] takes one entry's proof out of it.

mod compare;
mod error;
mod layout;
mod prove;
mod reader;
mod writer;

use std::io::Read;

pub use compare::{CompareError, Relation, compare};
pub use error::{EntryFault, ExportError, Section, WriteError};
pub use prove::prove_entry;
pub use reader::{ExportReader, ProvedEntry};
pub use writer::ExportWriter;

use crate::checkpoint::SignedCheckpoint;
use crate::hash::Head;

/// What the one who checks knows already. With nothing of it, an export is only held against itself.
#[derive(Clone, Debug, Default)]
pub struct Expectation {
    /// The log's origin; it stands for the fleet's root key (`AUDIT_FORMAT.md` §3).
    pub origin: Option<String>,
    /// Heads seen before, such as that of the last audit: the export has to continue them all.
    pub heads: Vec<Head>,
}

/// What a good export is about.
#[derive(Clone, Debug)]
pub struct Report {
    /// The newest checkpoint, over everything.
    pub checkpoint: SignedCheckpoint,
    /// Checkpoints that were checked, the newest included.
    pub checkpoints: usize,
    /// Entries.
    pub entries: u64,
    /// Bytes of all entries.
    pub entry_bytes: u64,
    /// Whether the origin was given by the one who checks; if not, this may be any fleet's history.
    pub origin_expected: bool,
}

/// Checks an export from beginning to end, and that nothing follows it. Give it a buffered reader, or bytes.
///
/// # Errors
/// [`ExportError`] says what is wrong and where; [`ExportError::entries`] names the first bad entry.
pub fn verify(input: impl Read, expectation: &Expectation) -> Result<Report, ExportError> {
    let mut reader = ExportReader::open(input, expectation)?;
    let (mut entries, mut entry_bytes) = (0, 0);
    while let Some(entry) = reader.next_entry()? {
        entries += 1;
        entry_bytes += entry.bytes.len() as u64;
    }
    Ok(Report {
        checkpoint: reader.newest().clone(),
        checkpoints: reader.checkpoints().len(),
        entries,
        entry_bytes,
        origin_expected: expectation.origin.is_some(),
    })
}
