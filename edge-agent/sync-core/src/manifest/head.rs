//! The head of a manifest: what the source signs.

use alloc::vec::Vec;
use core::fmt;

use agent_proto::limits::{BLOCK_LEN, ENTRIES_MAX, MANIFEST_LEN_MAX};
use event_schema::{AgentId, Domain, RunId, Signed, decode_exact, encode};
use serde::{Deserialize, Serialize};

use super::{HASH_ROW_LEN, MANIFEST_VERSION, Manifest, Source, blocks_of};
use crate::merkle::{Hash, block_hash, tree_root};

/// Hashes of the blocks of an encoded manifest.
pub fn manifest_block_hashes(encoded: &[u8]) -> Vec<Hash> {
    encoded.chunks(BLOCK_LEN as usize).map(block_hash).collect()
}

/// What the source signs: all that others need to check every byte of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestHead {
    /// Version of the manifest and of this shape; the first byte of its byte form.
    pub version: u8,
    /// The run it is for.
    pub run: RunId,
    /// Who has the content and signs.
    pub source: AgentId,
    /// Bytes of the encoded manifest.
    pub len: u64,
    /// Merkle root over the encoded manifest's blocks.
    pub root: Hash,
    /// Number of entries.
    pub entries: u64,
    /// Bytes of all content blocks.
    pub bytes: u64,
    /// Number of content blocks.
    pub blocks: u64,
}

/// Why a signed head is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// Not signed by the run's source, for another run, or its numbers break a limit.
    Bad,
    /// The source signed it, but of a manifest of another version.
    Version(u8),
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bad => f.write_str("the manifest's head is not one of this run's source"),
            Self::Version(version) => super::ManifestError::Version(*version).fmt(f),
        }
    }
}

impl core::error::Error for HeadError {}

impl ManifestHead {
    /// The head of a manifest whose blocks have these hashes.
    pub fn of<S: Source>(run: RunId, source: AgentId, manifest: &Manifest<S>, hashes: &[Hash]) -> Self {
        Self {
            version: MANIFEST_VERSION,
            run,
            source,
            len: manifest.source().len(),
            root: tree_root(hashes),
            entries: manifest.entries(),
            bytes: manifest.bytes(),
            blocks: manifest.blocks(),
        }
    }

    /// Signs it with the source agent's key.
    pub fn sign(&self, key: &ed25519_dalek::SigningKey) -> Signed {
        Signed::sign(Domain::Manifest, encode(self), key)
    }

    /// Opens a signed head for `run`, signed by the source that holds `source_key`.
    ///
    /// # Errors
    /// If the signature does not hold, it is for another run or source, its numbers break a limit, or it is of a
    /// manifest of another version.
    pub fn open(signed: &Signed, run: RunId, source_key: &[u8; 32]) -> Result<Self, HeadError> {
        let bytes = signed.verify(Domain::Manifest, source_key).map_err(|_| HeadError::Bad)?;
        match bytes.first() {
            Some(&MANIFEST_VERSION) => {}
            Some(&version) => return Err(HeadError::Version(version)),
            None => return Err(HeadError::Bad),
        }
        let head: Self = decode_exact("ManifestHead", bytes).map_err(|_| HeadError::Bad)?;
        let fits = head.run == run
            && head.source == AgentId::of_key(source_key)
            && (1..=MANIFEST_LEN_MAX).contains(&head.len)
            // Each block has its hash in the manifest: nobody is to make room for more than can be.
            && head.blocks <= head.len / HASH_ROW_LEN
            && head.bytes <= head.blocks.saturating_mul(u64::from(BLOCK_LEN))
            && head.entries <= head.len.min(ENTRIES_MAX);
        if fits { Ok(head) } else { Err(HeadError::Bad) }
    }

    /// Number of blocks of the encoded manifest.
    pub fn manifest_blocks(&self) -> u64 {
        blocks_of(self.len)
    }

    /// Whether a manifest is the one this head counted.
    pub fn counts<S: Source>(&self, manifest: &Manifest<S>) -> bool {
        self.len == manifest.source().len()
            && self.entries == manifest.entries()
            && self.bytes == manifest.bytes()
            && self.blocks == manifest.blocks()
    }
}
