//! The unfinished tiles of a tree: all that the next entries and the next roots need of those before them.

use super::{Ledger, LedgerError, bytes_of, frontier_of, hashes_from};
use crate::frontier::Frontier;
use crate::hash::{Hash, Head};
use crate::limits::MAX_TREE_SIZE;
use crate::tile::{TILE_WIDTH, hashes_of_level, levels};

/// The right edge of the tree of a log's first entries: for each level the hashes that stand in no full tile.
///
/// At most 255 hashes for each of seven levels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    size: u64,
    /// Leaves first.
    levels: Vec<Vec<Hash>>,
}

/// Hashes of a level that stand in its unfinished tile.
fn width(level: u8, size: u64) -> usize {
    (hashes_of_level(level, size) % TILE_WIDTH as u64) as usize
}

impl Edge {
    /// Entries that it stands for.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hashes of each level, leaves first.
    pub(super) fn levels(&self) -> &[Vec<Hash>] {
        &self.levels
    }

    /// The tree to add the next entries to.
    pub fn frontier(&self) -> Frontier {
        frontier_of(&self.levels)
    }

    /// Size and root.
    pub fn head(&self) -> Head {
        self.frontier().head()
    }

    /// The hashes from the top level down, as in an export (`AUDIT_FORMAT.md` §6.1).
    pub fn to_bytes(&self) -> Vec<u8> {
        self.levels.iter().rev().flat_map(|hashes| bytes_of(hashes)).collect()
    }

    /// Reads what [`Edge::to_bytes`] wrote for a tree of `size` entries; `None` if it is anything else.
    pub fn from_bytes(size: u64, bytes: &[u8]) -> Option<Self> {
        if size > MAX_TREE_SIZE {
            return None;
        }
        let mut rest = bytes;
        let mut tree = Vec::new();
        for level in (0..levels(size)).rev() {
            let width = width(level, size);
            let (own, below) = rest.split_at_checked(width * Hash::BYTES)?;
            tree.push(hashes_from(own, width)?);
            rest = below;
        }
        tree.reverse();
        rest.is_empty().then_some(Self { size, levels: tree })
    }
}

impl Ledger {
    /// The edge that the tree had with `size` entries, proved to be of this history.
    ///
    /// # Errors
    /// As [`Ledger::head_at`].
    pub fn edge_at(&self, size: u64) -> Result<Edge, LedgerError> {
        let head = self.head_at(size)?;
        let mut tree = Vec::new();
        for level in 0..levels(size) {
            tree.push(match crate::tile::Tile::edge(level, size) {
                Some(tile) => self.tile(tile)?,
                None => Vec::new(),
            });
        }
        let edge = Edge { size, levels: tree };
        // The proof of the head does not need every hash of the edge's tiles.
        if edge.head() == head { Ok(edge) } else { Err(self.name_damage(size)) }
    }
}
