//! Signed tree heads after C2SP tlog-checkpoint.
//!
//! ```text
//! <origin>
//! <size>
//! <base64 of the root hash>
//! ```
//! as the text of a signed note. A [`SignedCheckpoint`] exists only if a signature held, or was made here.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use crate::hash::{Hash, Head};
use crate::limits::{MAX_NAME_BYTES, MAX_TREE_SIZE};
use crate::note::{self, Note, NoteError, NoteSigner, VerifierKey};

/// What a checkpoint says: whose history, how long, and its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Identifies the log.
    pub origin: String,
    /// Size and root of its history.
    pub head: Head,
}

/// Why a checkpoint is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointError {
    /// The note around it.
    Note(NoteError),
    /// Its text is not origin, size and root, line by line.
    Malformed,
    /// Its history is longer than [`MAX_TREE_SIZE`].
    TooLarge {
        /// Entries it speaks of.
        size: u64,
    },
    /// It is another log's.
    OtherOrigin {
        /// What it says.
        found: String,
    },
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Note(error) => error.fmt(f),
            Self::Malformed => f.write_str("the note is no checkpoint"),
            Self::TooLarge { size } => {
                write!(f, "the checkpoint speaks of {size} entries, more than a log can hold")
            }
            Self::OtherOrigin { found } => write!(f, "the checkpoint is of another log: {found}"),
        }
    }
}

impl core::error::Error for CheckpointError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Note(error) => Some(error),
            _ => None,
        }
    }
}

impl From<NoteError> for CheckpointError {
    fn from(error: NoteError) -> Self {
        Self::Note(error)
    }
}

impl Checkpoint {
    /// The text to be signed.
    pub fn to_text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.head.size, self.head.root)
    }

    /// Reads a text. Extension lines, which the format allows and ours never have, are checked for form and ignored.
    ///
    /// # Errors
    /// [`CheckpointError::Malformed`], [`CheckpointError::TooLarge`].
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.strip_suffix('\n').ok_or(CheckpointError::Malformed)?.split('\n');
        let mut line = || lines.next().filter(|line| !line.is_empty()).ok_or(CheckpointError::Malformed);
        let (origin, size, root) = (line()?, line()?, line()?);
        if origin.len() > MAX_NAME_BYTES || lines.any(str::is_empty) {
            return Err(CheckpointError::Malformed);
        }
        let size = decimal(size).ok_or(CheckpointError::Malformed)?;
        if size > MAX_TREE_SIZE {
            return Err(CheckpointError::TooLarge { size });
        }
        let root = Hash::from_base64(root).ok_or(CheckpointError::Malformed)?;
        Ok(Self { origin: origin.to_owned(), head: Head { size, root } })
    }
}

/// A number in decimal digits without leading zeros.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// A checkpoint with the note that proves who said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    note: String,
}

impl SignedCheckpoint {
    /// Signs a head. The log's name, its origin, is the signer's.
    ///
    /// The caller keeps the one promise of a log: never to sign two histories of which neither is the other's
    /// beginning. `Ledger::checkpoint` does.
    ///
    /// # Errors
    /// [`CheckpointError::TooLarge`].
    pub fn sign(head: Head, signer: &NoteSigner) -> Result<Self, CheckpointError> {
        if head.size > MAX_TREE_SIZE {
            return Err(CheckpointError::TooLarge { size: head.size });
        }
        let checkpoint = Checkpoint { origin: signer.verifier().name().to_owned(), head };
        let note = note::sign(&checkpoint.to_text(), signer)?;
        Ok(Self { checkpoint, note })
    }

    /// Reads a note, provided that one of `keys` has signed it and that it is about the log `origin`.
    ///
    /// # Errors
    /// [`CheckpointError`] says what does not fit.
    pub fn open(note: &[u8], origin: &str, keys: &[VerifierKey]) -> Result<Self, CheckpointError> {
        let parsed = Note::parse(note)?;
        let checkpoint = Checkpoint::parse(parsed.verify(keys)?)?;
        if checkpoint.origin != origin {
            return Err(CheckpointError::OtherOrigin { found: checkpoint.origin });
        }
        // It was UTF-8 for the note already.
        let note = String::from_utf8_lossy(note).to_string();
        Ok(Self { checkpoint, note })
    }

    /// What it says.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Size and root.
    pub fn head(&self) -> &Head {
        &self.checkpoint.head
    }

    /// The log it is of.
    pub fn origin(&self) -> &str {
        &self.checkpoint.origin
    }

    /// The note as it was signed or read, other signatures included.
    pub fn note(&self) -> &str {
        &self.note
    }
}
