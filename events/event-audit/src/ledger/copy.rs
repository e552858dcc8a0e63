//! A second copy of a ledger's tree, as an archive keeps it beside the entries (`AUDIT_FORMAT.md` §11).

use std::path::Path;

use super::{Ledger, LedgerError, MAX_UNSYNCED, bytes_of, damaged, files, promise, remove_edge};
use crate::checkpoint::SignedCheckpoint;
use crate::hash::Hash;
use crate::note::VerifierKey;
use crate::proof::Subtrees as _;
use crate::tile::{Tile, levels};

impl Ledger {
    /// Copies the tree under the newest checkpoint to `dir`, as far as what was copied there before lacks it, and the
    /// checkpoint last: whenever it stops, what is there is the tree of the checkpoint there. On disk when it returns the
    /// checkpoint; `None` if nothing was signed yet. Only one process may do so at a time; it can be read with
    /// [`Ledger::open_beside`].
    ///
    /// # Errors
    /// [`LedgerError::Rewritten`] or [`LedgerError::CutOff`] if the checkpoint that is there is of another history or of a
    /// longer one, [`LedgerError::Tile`] if a tile of this ledger is damaged, [`LedgerError::Io`],
    /// [`LedgerError::Promise`].
    pub fn copy_to(&self, dir: &Path, keys: &[VerifierKey]) -> Result<Option<SignedCheckpoint>, LedgerError> {
        let Some(newest) = &self.newest else { return Ok(None) };
        let size = newest.head().size;
        let before = promise(dir, &self.origin, keys)?.map(|before| *before.head());
        let held = match before {
            None => 0,
            Some(signed) if signed.size > size => return Err(LedgerError::CutOff { signed, size }),
            Some(signed) => {
                let found = self.head_at(signed.size)?;
                if found != signed {
                    return Err(LedgerError::Rewritten { signed, found });
                }
                if signed.size == size {
                    return Ok(Some(newest.clone()));
                }
                signed.size
            }
        };
        let edge = self.edge_at(size)?;
        let mut written = Vec::new();
        for level in 0..levels(size) {
            let shift = Tile::shift(level + 1);
            for index in held >> shift..size >> shift {
                let tile = Tile::full(level, index);
                let hashes = self.tile(tile)?;
                if Hash::over(&hashes) != self.subtree(shift, index)? {
                    return Err(damaged(tile));
                }
                written.push(put(dir, tile, &hashes)?);
            }
            if let Some(tile) = Tile::edge(level, size) {
                written.push(put(dir, tile, &edge.levels()[usize::from(level)])?);
            }
        }
        if written.len() > MAX_UNSYNCED && files::SYNCS_ALL {
            files::sync_all(dir)?;
        } else {
            files::sync(dir, &written)?;
        }
        files::write_durably(dir, &dir.join("checkpoint"), newest.note().as_bytes())?;
        if let Some(before) = before {
            remove_edge(dir, before.size, size);
        }
        Ok(Some(newest.clone()))
    }
}

fn put(dir: &Path, tile: Tile, hashes: &[Hash]) -> Result<std::path::PathBuf, LedgerError> {
    let path = dir.join(tile.path());
    files::write(&path, &bytes_of(hashes))?;
    Ok(path)
}
