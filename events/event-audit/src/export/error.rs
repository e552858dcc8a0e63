//! What can be wrong with an export, and where; what keeps one from being written.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;

use crate::checkpoint::CheckpointError;
use crate::hash::{Hash, Head};
use crate::keys::KeyListError;
use crate::ledger::LedgerError;

/// The parts of an export before its first entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Magic, version, sizes.
    Header,
    /// The signed key list.
    Keys,
    /// The signed checkpoints.
    Checkpoints,
    /// The hashes along the tree's right edge.
    Edge,
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Keys => "key list",
            Self::Checkpoints => "checkpoints",
            Self::Edge => "edge hashes",
        })
    }
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryFault {
    /// It is not what the proved tree has there: changed, exchanged, added or left out.
    Content,
    /// The entry is what the tree's root asks for; the hash that the export lists for it is not.
    ListedHash,
    /// Its length cannot be.
    Length {
        /// What is written there.
        bytes: u32,
    },
}

/// Why an export does not hold. The first fault in reading order.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The system refused.
    #[error("cannot read the export at offset {offset}: {source}")]
    Read {
        /// Bytes read before.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// It does not begin as an export does.
    #[error("this is no Flotilla audit export")]
    NotAnExport,
    /// Written by a newer program.
    #[error("the export has format version {found}; this program reads version 1")]
    Version {
        /// Its version.
        found: u16,
    },
    /// A part before the entries was changed after it was written.
    #[error("the export's {section} (offset {offset}) is damaged: {what}")]
    Section {
        /// Which part.
        section: Section,
        /// Where it begins.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The key list does not hold.
    #[error("the export's key list does not hold: {0}")]
    Keys(#[source] KeyListError),
    /// It is another log's than expected.
    #[error("the export is of the log {found}, not of {expected} as expected")]
    OtherOrigin {
        /// What the one who checks asked for.
        expected: String,
        /// What the export is of.
        found: String,
    },
    /// One of the checkpoints does not hold.
    #[error("checkpoint {number} of the export does not hold: {source}")]
    Checkpoint {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it.
        source: CheckpointError,
    },
    /// It ends too early.
    #[error("the export is cut off at offset {offset}{}", before(.entry))]
    Cut {
        /// Where it ends.
        offset: u64,
        /// Position of the first entry that is not there wholly.
        entry: Option<u64>,
    },
    /// An entry is bad.
    #[error("entry {position} (offset {offset}) is bad: {}", what(.fault))]
    Entry {
        /// Its position in the log, from 1.
        position: u64,
        /// Where it begins in the export.
        offset: u64,
        /// What is wrong.
        fault: EntryFault,
    },
    /// Hashes over entries do not lead to the signed root.
    #[error("the hashes over the entries {first} to {last} (offset {offset}) are bad")]
    Hashes {
        /// Position of the first entry under them.
        first: u64,
        /// Position of the last one.
        last: u64,
        /// Where the tile begins in the export.
        offset: u64,
    },
    /// The history is another one than was signed, or than the one who checks has seen: it was rewritten.
    #[error(
        "two histories: ({claimed}) was {}, the export amounts to ({found}); its entries are those {} \
         up to entry {agreed}",
        if *.expected { "seen before" } else { "signed" }, if *.expected { "seen" } else { "signed" }
    )]
    Forked {
        /// What was signed or seen.
        claimed: Head,
        /// What the export's entries amount to at the same size.
        found: Head,
        /// The last entry up to which everything fits that the same source claims.
        agreed: u64,
        /// Whether the claim is by the one who checks, not by a checkpoint in the export.
        expected: bool,
    },
    /// The one who checks has seen a longer history of this log.
    #[error(
        "a longer history was seen before ({seen}); the export ends with ({found}): it is old, or was cut"
    )]
    Older {
        /// What was seen.
        seen: Head,
        /// What the export ends with.
        found: Head,
    },
    /// What follows the last entry is wrong.
    #[error("the end of the export (offset {offset}) is damaged: {what}")]
    End {
        /// Where it begins.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Asked for more after an error.
    #[error("the export was found to be bad before")]
    Spent,
}

fn before(entry: &Option<u64>) -> String {
    entry.map_or_else(String::new, |position| format!(", before the end of entry {position}"))
}

fn what(fault: &EntryFault) -> String {
    match fault {
        EntryFault::Content => "it is not what was signed".to_owned(),
        EntryFault::ListedHash => {
            "it is what was signed, but the hash that the export lists for it is not".to_owned()
        }
        EntryFault::Length { bytes } => format!("it claims to have {bytes} bytes"),
    }
}

impl ExportError {
    /// Positions of the entries among which the first bad one is; just one wherever that can be told.
    pub fn entries(&self) -> Option<RangeInclusive<u64>> {
        match self {
            Self::Entry { position, .. } | Self::Cut { entry: Some(position), .. } => {
                Some(*position..=*position)
            }
            Self::Hashes { first, last, .. } => Some(*first..=*last),
            Self::Forked { claimed, agreed, .. } if claimed.size > *agreed => Some(agreed + 1..=claimed.size),
            _ => None,
        }
    }
}

/// Why an export is not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The system refused.
    #[error("cannot write the export: {0}")]
    Write(#[source] io::Error),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Nothing was signed, so nothing can be proved; or checkpoints are not in order, too many, or of another log.
    #[error("cannot export with these checkpoints: {0}")]
    Checkpoints(&'static str),
    /// What the log has there is not what the tree was made of.
    #[error("entry {position} of the log is not the one that was sealed: sealed was {sealed}, found {found}")]
    Differs {
        /// Its position in the log.
        position: u64,
        /// The leaf hash in the tree.
        sealed: Hash,
        /// That of the entry given.
        found: Hash,
    },
    /// More or fewer entries than the newest checkpoint covers.
    #[error("the checkpoint covers {expected} entries, {given} were given")]
    Count {
        /// Entries that the checkpoint covers.
        expected: u64,
        /// Entries given.
        given: u64,
    },
}
