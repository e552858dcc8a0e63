//! Sizes and marks of an export (`AUDIT_FORMAT.md` §6).

use crate::hash::Hash;
use crate::limits::MAX_TREE_SIZE;
use crate::tile::{Tile, levels};

/// First bytes of an export.
pub(super) const MAGIC: [u8; 8] = *b"FLOTAUD\n";

/// The version this code writes, and the only one it reads.
pub(super) const VERSION: u16 = 1;

/// Bytes of the header, without its checksum.
pub(super) const HEADER_BYTES: usize = 32;

/// First bytes of what stands after the last entry.
pub(super) const END_MAGIC: [u8; 8] = *b"FLOTEND\n";

/// Bytes of it.
pub(super) const END_BYTES: usize = 24;

/// The header's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Entries of the export.
    pub(super) entries: u64,
    /// Bytes of the key list.
    pub(super) key_bytes: u32,
    /// Bytes of the checkpoints, their lengths included.
    pub(super) checkpoint_bytes: u32,
}

impl Header {
    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(HEADER_BYTES as u16).to_le_bytes());
        // 12..16: flags, none known.
        bytes[16..24].copy_from_slice(&self.entries.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.key_bytes.to_le_bytes());
        bytes[28..].copy_from_slice(&self.checkpoint_bytes.to_le_bytes());
        bytes
    }

    /// The fields of a header whose magic and version fit; else which one does not.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, &'static str> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if usize::from(u16::from_le_bytes([bytes[10], bytes[11]])) != HEADER_BYTES {
            return Err("the header's length is wrong");
        }
        if u32_at(12) != 0 {
            return Err("the header has unknown flags");
        }
        if u64_at(16) > MAX_TREE_SIZE {
            return Err("it claims more entries than a log can hold");
        }
        Ok(Self { entries: u64_at(16), key_bytes: u32_at(24), checkpoint_bytes: u32_at(28) })
    }
}

/// What stands after the last entry.
pub(super) fn end(entries: u64, entry_bytes: u64) -> [u8; END_BYTES] {
    let mut bytes = [0; END_BYTES];
    bytes[..8].copy_from_slice(&END_MAGIC);
    bytes[8..16].copy_from_slice(&entries.to_le_bytes());
    bytes[16..].copy_from_slice(&entry_bytes.to_le_bytes());
    bytes
}

/// The unfinished tiles of a tree, from the top down: what the edge section holds.
pub(super) fn edge_tiles(size: u64) -> impl Iterator<Item = Tile> {
    (0..levels(size)).rev().filter_map(move |level| Tile::edge(level, size))
}

/// Bytes of the edge section: at most 255 hashes for each of seven levels.
pub(super) fn edge_bytes(size: u64) -> usize {
    edge_tiles(size).map(|tile| usize::from(tile.width) * Hash::BYTES).sum()
}

/// The tiles that begin with the entry `index`, from the top down.
pub(super) fn tiles_at(index: u64, size: u64) -> impl Iterator<Item = Tile> {
    let begins = move |level: &u8| index & ((1 << Tile::shift(level + 1)) - 1) == 0;
    (0..levels(size)).rev().filter(begins).filter_map(move |level| {
        let place = index >> Tile::shift(level + 1);
        if place < size >> Tile::shift(level + 1) {
            return Some(Tile::full(level, place));
        }
        // At the right edge a level may end before this entry: then it stands under no hash of that level.
        Tile::edge(level, size)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back() {
        let header = Header { entries: 0x0102_0304_0506, key_bytes: 7, checkpoint_bytes: 8 };
        let bytes = header.to_bytes();
        assert_eq!(Header::parse(&bytes), Ok(header));
        for at in [10, 12, 15, 23] {
            let mut bad = bytes;
            bad[at] ^= 0x80;
            assert!(Header::parse(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn every_tile_has_its_place() {
        for size in [1, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 70_000] {
            let mut tiles: Vec<Tile> = (0..size).flat_map(|index| tiles_at(index, size)).collect();
            let edges: Vec<Tile> = edge_tiles(size).collect();
            assert_eq!(edges.iter().filter(|edge| !tiles.contains(edge)).count(), 0, "{size}");
            tiles.retain(Tile::is_full);
            let full: u64 = (0..7).map(|level| size >> Tile::shift(level + 1)).sum();
            assert_eq!(tiles.len() as u64, full, "{size}");
        }
    }
}
