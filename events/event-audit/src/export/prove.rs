//! One entry's proof out of an export, without the tree's folder.

use std::io::Read;

use super::error::ExportError;
use super::reader::ExportReader;
use crate::hash::Hash;
use crate::message::EntryProof;
use crate::proof::{self, Subtrees};
use crate::tile::{TILE_HEIGHT, TILE_WIDTH};

/// What a proof needs of the tree: the roots of all full tiles of leaves, and the leaves of two of them.
///
/// Memory: 32 bytes per 256 entries.
struct Gathered {
    /// Roots of the full tiles of leaves.
    tiles: Vec<Hash>,
    /// The tile that the entry stands in: its number and its leaves.
    own: (u64, Vec<Hash>),
    /// The last tile, if it is not full.
    last: Vec<Hash>,
}

impl Subtrees for Gathered {
    type Error = std::convert::Infallible;

    fn subtree(&self, height: u32, index: u64) -> Result<Hash, Self::Error> {
        let tile_height = TILE_HEIGHT;
        if let Some(above) = height.checked_sub(tile_height) {
            let first = (index << above) as usize;
            return Ok(combine(&self.tiles[first..first + (1 << above)]));
        }
        let tile = index >> (tile_height - height);
        let leaves = if tile == self.own.0 { &self.own.1 } else { &self.last };
        let first = ((index << height) % TILE_WIDTH as u64) as usize;
        Ok(combine(&leaves[first..first + (1 << height)]))
    }
}

/// The root over a power of two of neighbours.
fn combine(hashes: &[Hash]) -> Hash {
    match hashes {
        [one] => *one,
        _ => {
            let (left, right) = hashes.split_at(hashes.len() / 2);
            Hash::node(&combine(left), &combine(right))
        }
    }
}

/// Reads the export to its end, which proves all of it, and makes the proof that the entry at `position` stands in the
/// newest checkpoint's history. `None` if there is no such entry. The reader must not have handed out entries before.
///
/// # Errors
/// [`ExportError`] if the export does not hold.
pub fn prove_entry<R: Read>(
    reader: &mut ExportReader<R>,
    position: u64,
) -> Result<Option<(Vec<u8>, EntryProof)>, ExportError> {
    let mut wanted = None;
    let mut gathered = Gathered {
        tiles: Vec::new(),
        own: (position.saturating_sub(1) / TILE_WIDTH as u64, Vec::new()),
        last: Vec::new(),
    };
    let mut size = 0;
    while let Some(entry) = reader.next_entry()? {
        size = entry.position;
        if entry.position == position {
            wanted = Some(entry.bytes.to_vec());
        }
        let leaf = Hash::leaf(entry.bytes);
        if (entry.position - 1) / TILE_WIDTH as u64 == gathered.own.0 {
            gathered.own.1.push(leaf);
        }
        gathered.last.push(leaf);
        if gathered.last.len() == TILE_WIDTH {
            gathered.tiles.push(combine(&gathered.last));
            gathered.last.clear();
        }
    }
    let Some(entry) = wanted else { return Ok(None) };
    let index = position - 1;
    let Ok(Some(path)) = proof::prove_inclusion(&gathered, index, size) else { return Ok(None) };
    let checkpoint = reader.newest().note().to_owned();
    Ok(Some((entry, EntryProof { index, path, checkpoint })))
}
