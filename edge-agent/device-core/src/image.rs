//! What an image is, and how a run's manifest vouches for it (DEVICE_FORMAT.md §5).

use core::fmt;

use agent_proto::limits::BLOCK_LEN;
use event_schema::{RunId, Signed};
use sha2::{Digest, Sha256};
use sync_core::manifest::{
    HASH_ROW_LEN, HEADER_LEN, HeadError, Kind, Manifest, ManifestError, ManifestHead, manifest_block_hashes,
};
use sync_core::merkle::tree_root;

use crate::codec::Reader;
use crate::limits::{BLOCKS_MAX, HEAD_LEN_MAX, MANIFEST_LEN_MAX};

/// Bytes of a manifest region.
pub(crate) const MANIFEST_REGION_LEN: u32 = 8 * 1024;

/// Where in its region the manifest begins.
pub(crate) const MANIFEST_AT: u32 = 1024;

/// What a manifest region begins with.
pub(crate) const MANIFEST_MAGIC: [u8; 8] = *b"FLOTMAN\x01";

const TRAILER_MAGIC: [u8; 8] = *b"FLOTIMG\x01";

/// Which hardware an image is for: at most 16 bytes of text, filled with zeros. Compared byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Board(pub [u8; 16]);

impl Board {
    /// The board of this name.
    ///
    /// # Panics
    /// If the name is empty or has more than 16 bytes: it stands in the firmware's own source.
    pub const fn named(name: &str) -> Self {
        let (name, mut bytes) = (name.as_bytes(), [0; 16]);
        assert!(!name.is_empty() && name.len() <= 16, "a board's name has 1 to 16 bytes");
        let mut at = 0;
        while at < name.len() {
            bytes[at] = name[at];
            at += 1;
        }
        Self(bytes)
    }
}

/// The last 64 bytes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The board that it is for.
    pub board: Board,
    /// Grows from release to release.
    pub version: u64,
}

impl Trailer {
    /// Bytes of a trailer.
    pub const LEN: usize = 64;

    /// What is to be appended to an image.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&TRAILER_MAGIC);
        bytes[8..24].copy_from_slice(&self.board.0);
        bytes[24..32].copy_from_slice(&self.version.to_le_bytes());
        bytes
    }

    /// `None` if the bytes are no trailer of this version.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let mut from = Reader(bytes);
        if from.array::<8>()? != TRAILER_MAGIC {
            return None;
        }
        let trailer = Self { board: Board(from.array()?), version: from.u64()? };
        from.zeros(32)?;
        Some(trailer)
    }
}

/// Why a manifest is not one of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PayloadFault {
    /// The head is not the run's.
    Head(HeadError),
    /// The manifest is not the head's.
    NotOfHead,
    /// The manifest breaks a rule.
    Manifest(ManifestError),
    /// It has not exactly one file without holes, beside folders.
    NotOneFile,
    /// Head, manifest or file are larger than devices take, or the file is too small for a trailer.
    Size,
}

impl fmt::Display for PayloadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(e) => e.fmt(f),
            Self::NotOfHead => f.write_str("the manifest is not the one that its source signed"),
            Self::Manifest(e) => e.fmt(f),
            Self::NotOneFile => f.write_str("an image is one file, and nothing else is in its manifest"),
            Self::Size => f.write_str("the image or its manifest has a size that devices do not take"),
        }
    }
}

impl core::error::Error for PayloadFault {}

/// An image as its manifest describes it; everything was checked, from the source's signature on.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    head: &'a Signed,
    manifest: &'a [u8],
    len: u32,
    id: [u8; 32],
}

impl<'a> Payload<'a> {
    /// Checks the head against run and source, the manifest against the head, and what it holds against §5.1.
    ///
    /// # Errors
    /// The first step that does not hold.
    pub fn open(
        head: &'a Signed,
        manifest: &'a [u8],
        run: RunId,
        source_key: &[u8; 32],
    ) -> Result<Self, PayloadFault> {
        if manifest.len() > MANIFEST_LEN_MAX || event_schema::encode(head).len() > HEAD_LEN_MAX {
            return Err(PayloadFault::Size);
        }
        let opened = ManifestHead::open(head, run, source_key).map_err(PayloadFault::Head)?;
        if tree_root(&manifest_block_hashes(manifest)) != opened.root {
            return Err(PayloadFault::NotOfHead);
        }
        let read = Manifest::open(manifest).map_err(PayloadFault::Manifest)?;
        if !opened.counts(&read) {
            return Err(PayloadFault::NotOfHead);
        }
        let mut size = None;
        for page in 0..read.pages() {
            for (_, entry) in read.page(page).map_err(PayloadFault::Manifest)?.entries() {
                match &entry.kind {
                    Kind::Folder => {}
                    Kind::File { size: bytes, data: None } if size.is_none() => size = Some(*bytes),
                    _ => return Err(PayloadFault::NotOneFile),
                }
            }
        }
        let size = size.ok_or(PayloadFault::NotOneFile)?;
        let fits = (Trailer::LEN as u64..=u64::from(BLOCKS_MAX * BLOCK_LEN)).contains(&size);
        let len = u32::try_from(size).ok().filter(|_| fits).ok_or(PayloadFault::Size)?;
        let mut hash = Sha256::new().chain_update(u64::from(len).to_le_bytes());
        for row in read.hashes(0..read.blocks()).map_err(PayloadFault::Manifest)? {
            hash.update(row.strong);
        }
        Ok(Self { head, manifest, len, id: hash.finalize().into() })
    }

    /// Bytes of the image.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Never: an image has a trailer.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of its blocks, 1 to [`BLOCKS_MAX`].
    pub fn blocks(&self) -> u32 {
        blocks_of(self.len)
    }

    /// What tells it from other images, whichever run brings it.
    pub fn id(&self) -> [u8; 32] {
        self.id
    }

    pub(crate) fn head(&self) -> &Signed {
        self.head
    }

    pub(crate) fn manifest(&self) -> &[u8] {
        self.manifest
    }
}

/// Number of blocks of an image.
pub(crate) fn blocks_of(len: u32) -> u32 {
    len.div_ceil(BLOCK_LEN)
}

/// Bytes of the block of this number.
pub(crate) fn block_len(len: u32, block: u32) -> u32 {
    len.saturating_sub(block * BLOCK_LEN).min(BLOCK_LEN)
}

/// Where in a manifest region the hash of a block lies.
pub(crate) fn hash_at(block: u32) -> u32 {
    MANIFEST_AT + HEADER_LEN as u32 + block * HASH_ROW_LEN as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRAILER: Trailer = Trailer { board: Board::named("mps2-an386"), version: 7 };

    #[test]
    fn a_trailer_is_read_back() {
        assert_eq!(Trailer::decode(&TRAILER.encode()), Some(TRAILER));
        assert_eq!(Trailer::decode(&[0xff; 64]), None);
        assert_ne!(Board::named("mps2-an386"), Board::named("mps2-an385"));
    }

    proptest! {
        #[test]
        fn a_flipped_byte_is_another_trailer_or_none(at in 0..Trailer::LEN, flip in 1..=255u8) {
            let mut bytes = TRAILER.encode();
            bytes[at] ^= flip;
            prop_assert_ne!(Trailer::decode(&bytes), Some(TRAILER));
        }
    }

    #[test]
    fn lengths_of_blocks() {
        assert_eq!((blocks_of(64), block_len(64, 0)), (1, 64));
        assert_eq!((blocks_of(BLOCK_LEN), block_len(BLOCK_LEN, 0)), (1, BLOCK_LEN));
        assert_eq!((blocks_of(BLOCK_LEN + 1), block_len(BLOCK_LEN + 1, 1)), (2, 1));
        assert_eq!(block_len(64, 1), 0);
    }
}
