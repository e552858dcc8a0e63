//! The manifest: what a source has, entry by entry, and the signed head that stands for it (PROTOCOL.md §4).
//!
//! Encoded it is a header, one table with the hashes of all content blocks, entries in pages, and a table of the
//! pages. It is written front to back ([`Writer`]) and read from where it lies ([`Manifest`] over a [`Source`]): what
//! stays in memory is a row per page. It is hostile input until [`Manifest::open`] has taken it: sorted and unique
//! paths, no way out of the folder by names or links, no file below a symlink, counts that match, all limits held
//! (`agent_proto::limits`). Paths are bytes, because file names are.

mod check;
mod entry;
mod head;
mod page;
mod read;
#[cfg(test)]
mod tests;
mod write;

use alloc::vec::Vec;
use core::fmt;

pub use check::{check_path, compare_paths, link_stays_inside};
pub use entry::{Entry, Extent, Kind, Mtime, Owner, Xattr, blocks_of, xattr_may_travel};
pub use head::{HeadError, ManifestHead, manifest_block_hashes};
pub use page::Page;
pub use read::{Manifest, Source, Unreadable};
pub use write::{Ending, Writer, encode};

use crate::merkle::Hash;

/// Version of the encoded manifest, its first byte.
pub const MANIFEST_VERSION: u8 = 2;

/// Bytes of the header of an encoded manifest; the table of block hashes follows it.
pub const HEADER_LEN: u64 = 64;

/// Bytes of a content block's row in the table of hashes: the strong hash, then the weak one, little-endian.
pub const HASH_ROW_LEN: u64 = 36;

/// The folder in a destination where unfinished files wait; no entry may have this name at the top.
pub const STAGING_FOLDER: &[u8] = b".flotilla";

/// What a content block must hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHash {
    /// SHA-256, [`crate::merkle::block_hash`]: what counts.
    pub strong: Hash,
    /// [`crate::weak::weak_hash`]: for finding the block at another place. Nobody vouches for it.
    pub weak: u32,
}

impl BlockHash {
    /// Both hashes of a block.
    pub fn of(block: &[u8]) -> Self {
        Self { strong: crate::merkle::block_hash(block), weak: crate::weak::weak_hash(block) }
    }

    /// Its row in the table of hashes.
    pub fn to_row(&self) -> [u8; HASH_ROW_LEN as usize] {
        let mut row = [0; HASH_ROW_LEN as usize];
        row[..32].copy_from_slice(&self.strong);
        row[32..].copy_from_slice(&self.weak.to_le_bytes());
        row
    }

    /// Reads a row of the table of hashes.
    pub fn from_row(row: &[u8; HASH_ROW_LEN as usize]) -> Self {
        let (mut strong, mut weak) = ([0; 32], [0; 4]);
        strong.copy_from_slice(&row[..32]);
        weak.copy_from_slice(&row[32..]);
        Self { strong, weak: u32::from_le_bytes(weak) }
    }
}

/// Where a content block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// Index of its file.
    pub entry: u64,
    /// Position in the file.
    pub offset: u64,
    /// Bytes, 1 to [`agent_proto::limits::BLOCK_LEN`].
    pub len: u32,
}

/// Why bytes, or a list of entries, are no manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestError {
    /// Written by a program that knows another version of the format.
    Version(u8),
    /// The bytes are not an encoded manifest.
    Malformed(&'static str),
    /// Over a limit on the whole: its length, entries, or blocks.
    TooLarge,
    /// An entry breaks a rule.
    Entry {
        /// Its path.
        path: Vec<u8>,
        /// Which rule.
        rule: EntryRule,
    },
    /// The bytes cannot be read from where they are.
    Unreadable(Unreadable),
}

/// A rule that an entry breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryRule {
    /// An empty name, `.`, `..`, a NUL, a name over 255 or path over 4096 bytes.
    BadName,
    /// A name reserved for unfinished files.
    ReservedName,
    /// Not after its predecessor in the order of paths, or there twice.
    OutOfOrder,
    /// Its parent is no folder of the manifest.
    NoParent,
    /// The symlink is absolute or leads out of the folder.
    UnsafeLink,
    /// The hard link is to no regular file before it.
    BadHardLink,
    /// The number of hashes does not fit the size.
    HashCount,
    /// The stretches of data are not in order, touch each other, or lie beyond the size.
    BadExtents,
    /// An extended attribute that does not travel, is there twice, or takes too much room.
    BadXattrs,
    /// Size, mode, time or owner out of range, or of an entry that has none.
    BadMetadata,
}

impl fmt::Display for EntryRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadName => "the name is not allowed",
            Self::ReservedName => "the name is reserved",
            Self::OutOfOrder => "the entry is out of order or there twice",
            Self::NoParent => "the parent is no folder",
            Self::UnsafeLink => "the symlink leads out of the folder",
            Self::BadHardLink => "the hard link is to no file before it",
            Self::HashCount => "the number of block hashes does not fit the size",
            Self::BadExtents => "the stretches of data are not in order or beyond the size",
            Self::BadXattrs => "an extended attribute is not allowed or too large",
            Self::BadMetadata => "size, mode, time or owner is out of range",
        })
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => {
                write!(
                    f,
                    "the manifest has version {version}, this agent reads {MANIFEST_VERSION}: \
                     bring the agents to one release and start the job again"
                )
            }
            Self::Malformed(what) => write!(f, "not a manifest: {what}"),
            Self::TooLarge => f.write_str("the manifest is too large"),
            Self::Entry { path, rule } => write!(f, "{}: {rule}", path.escape_ascii()),
            Self::Unreadable(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for ManifestError {}
