//! Proofs as texts to hand out, in the forms of C2SP: tlog-proof for one entry, and the body of tlog-witness's
//! `add-checkpoint` for a checkpoint with the proof that it continues an older one.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::checkpoint::{CheckpointError, SignedCheckpoint, decimal};
use crate::hash::Hash;
use crate::limits::{MAX_NOTE_BYTES, MAX_PROOF_HASHES};
use crate::note::VerifierKey;
use crate::proof::{ProofError, verify_inclusion};

/// First line of an entry's proof.
const PROOF_TITLE: &str = "c2sp.org/tlog-proof@v1";

/// Why a proof's text is not taken, or does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageError {
    /// It is not laid out as it should be.
    Malformed,
    /// Its checkpoint.
    Checkpoint(CheckpointError),
    /// The proof itself.
    Proof(ProofError),
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("this is no proof in the form of C2SP"),
            Self::Checkpoint(error) => error.fmt(f),
            Self::Proof(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for MessageError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Malformed => None,
            Self::Checkpoint(error) => Some(error),
            Self::Proof(error) => Some(error),
        }
    }
}

/// That one entry stands in a log, provable without the log: a `.tlog-proof` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryProof {
    /// Index of the entry, from 0.
    pub index: u64,
    /// Its path to the checkpoint's root.
    pub path: Vec<Hash>,
    /// The checkpoint as a signed note.
    pub checkpoint: String,
}

impl EntryProof {
    /// The proof as text.
    pub fn to_text(&self) -> String {
        let mut text = format!("{PROOF_TITLE}\nindex {}\n", self.index);
        push_hashes(&mut text, &self.path);
        text.push('\n');
        text.push_str(&self.checkpoint);
        text
    }

    /// Reads a text; nothing of it is verified yet. Extra data, which the format allows, is ignored.
    ///
    /// # Errors
    /// [`MessageError::Malformed`].
    pub fn parse(text: &[u8]) -> Result<Self, MessageError> {
        let (mut lines, checkpoint) = take_apart(text)?;
        if lines.next() != Some(PROOF_TITLE) {
            return Err(MessageError::Malformed);
        }
        let mut line = lines.next().ok_or(MessageError::Malformed)?;
        if line.starts_with("extra ") {
            line = lines.next().ok_or(MessageError::Malformed)?;
        }
        let index = line.strip_prefix("index ").and_then(decimal).ok_or(MessageError::Malformed)?;
        Ok(Self { index, path: hashes(lines)?, checkpoint: checkpoint.into() })
    }

    /// The checkpoint, if one of `keys` has signed it for the log `origin` and the entry stands in its history.
    ///
    /// # Errors
    /// [`MessageError::Checkpoint`], [`MessageError::Proof`].
    pub fn verify(
        &self,
        entry: &[u8],
        origin: &str,
        keys: &[VerifierKey],
    ) -> Result<SignedCheckpoint, MessageError> {
        let checkpoint = SignedCheckpoint::open(self.checkpoint.as_bytes(), origin, keys)
            .map_err(MessageError::Checkpoint)?;
        verify_inclusion(checkpoint.head(), self.index, &Hash::leaf(entry), &self.path)
            .map_err(MessageError::Proof)?;
        Ok(checkpoint)
    }
}

/// A checkpoint for somebody who holds an older one, with the proof that it continues that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    /// Size of the older history, 0 if none is held.
    pub old_size: u64,
    /// The consistency proof.
    pub proof: Vec<Hash>,
    /// The checkpoint as a signed note.
    pub checkpoint: String,
}

impl Advance {
    /// The message as text.
    pub fn to_text(&self) -> String {
        let mut text = format!("old {}\n", self.old_size);
        push_hashes(&mut text, &self.proof);
        text.push('\n');
        text.push_str(&self.checkpoint);
        text
    }

    /// Reads a text; nothing of it is verified yet: open the checkpoint, then ask
    /// [`Held::consider`](crate::witness::Held::consider).
    ///
    /// # Errors
    /// [`MessageError::Malformed`].
    pub fn parse(text: &[u8]) -> Result<Self, MessageError> {
        let (mut lines, checkpoint) = take_apart(text)?;
        let old = lines.next().and_then(|line| line.strip_prefix("old ")).and_then(decimal);
        Ok(Self {
            old_size: old.ok_or(MessageError::Malformed)?,
            proof: hashes(lines)?,
            checkpoint: checkpoint.into(),
        })
    }
}

/// Everything a message may hold: a note, and lines of 45 bytes before it.
const MAX_MESSAGE_BYTES: usize = MAX_NOTE_BYTES + 8 * 1024;

/// The lines before the first empty one, and the note after it.
fn take_apart(text: &[u8]) -> Result<(core::str::Split<'_, char>, &str), MessageError> {
    if text.len() > MAX_MESSAGE_BYTES {
        return Err(MessageError::Malformed);
    }
    let text = core::str::from_utf8(text).map_err(|_| MessageError::Malformed)?;
    let (lines, note) = text.split_once("\n\n").ok_or(MessageError::Malformed)?;
    Ok((lines.split('\n'), note))
}

fn hashes<'t>(lines: impl Iterator<Item = &'t str>) -> Result<Vec<Hash>, MessageError> {
    let mut hashes = Vec::new();
    for line in lines {
        if hashes.len() == MAX_PROOF_HASHES {
            return Err(MessageError::Malformed);
        }
        hashes.push(Hash::from_base64(line).ok_or(MessageError::Malformed)?);
    }
    Ok(hashes)
}

fn push_hashes(text: &mut String, hashes: &[Hash]) {
    for hash in hashes {
        text.push_str(&hash.to_base64());
        text.push('\n');
    }
}
