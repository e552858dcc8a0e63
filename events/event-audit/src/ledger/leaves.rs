//! Leaf hashes out of the stored tiles, one after the other, each led up to the signed head.

use super::{Ledger, LedgerError, damaged};
use crate::hash::Hash;
use crate::tile::{TILE_WIDTH, Tile, hashes_of_level};

/// Reads leaf hashes of a [`Ledger`] in any order; in that of the entries each tile is read once.
///
/// A tile is believed when it leads to its hash in the tile above, up to the unfinished tiles, which the ledger holds in
/// memory and has compared with its checkpoint. Memory: one tile per level.
#[derive(Clone, Debug, Default)]
pub struct Leaves {
    /// The tile of each level that was checked last.
    tiles: Vec<Option<(u64, Vec<Hash>)>>,
}

impl Leaves {
    /// The leaf hash of the entry at `index`.
    ///
    /// # Errors
    /// [`LedgerError::Range`] if there is no such entry, [`LedgerError::Tile`] names the tile that is damaged,
    /// [`LedgerError::Io`].
    pub fn at(&mut self, ledger: &Ledger, index: u64) -> Result<Hash, LedgerError> {
        self.hash(ledger, 0, index)
    }

    fn hash(&mut self, ledger: &Ledger, level: u8, place: u64) -> Result<Hash, LedgerError> {
        let (tile, within) = (place / TILE_WIDTH as u64, (place % TILE_WIDTH as u64) as usize);
        let slot = usize::from(level);
        if self.tiles.len() <= slot {
            self.tiles.resize(slot + 1, None);
        }
        let known =
            self.tiles[slot].as_ref().filter(|(known, hashes)| *known == tile && within < hashes.len());
        if let Some((_, hashes)) = known {
            return Ok(hashes[within]);
        }
        let there = hashes_of_level(level, ledger.size());
        if place >= there {
            return Err(LedgerError::Range { asked: place, size: ledger.size() });
        }
        let width = (there - tile * TILE_WIDTH as u64).min(TILE_WIDTH as u64) as u16;
        let hashes = ledger.tile(Tile { level, index: tile, width })?;
        if usize::from(width) == TILE_WIDTH && self.hash(ledger, level + 1, tile)? != Hash::over(&hashes) {
            return Err(damaged(Tile::full(level, tile)));
        }
        let found = hashes[within];
        self.tiles[slot] = Some((tile, hashes));
        Ok(found)
    }
}
