//! Writing an export, entry by entry.

use std::io::Write;

use sha2::{Digest, Sha256};

use super::error::WriteError;
use super::layout::{self, Header};
use crate::checkpoint::SignedCheckpoint;
use crate::hash::Hash;
use crate::keys::KeyList;
use crate::ledger::{Ledger, bytes_of};
use crate::limits::{MAX_EXPORT_CHECKPOINT_BYTES, MAX_EXPORT_CHECKPOINTS};

/// An export being written. Every entry is held against the ledger on the way, so what [`finish`](Self::finish)
/// returns can be verified.
#[derive(Debug)]
pub struct ExportWriter<'l, W> {
    out: W,
    ledger: &'l Ledger,
    size: u64,
    next: u64,
    entry_bytes: u64,
    leaves: Vec<Hash>,
}

impl<'l, W: Write> ExportWriter<'l, W> {
    /// Writes everything that stands before the entries. The last one of `checkpoints`, which are in order of their
    /// sizes, says how many entries there will be.
    ///
    /// # Errors
    /// [`WriteError::Checkpoints`], [`WriteError::Ledger`], [`WriteError::Write`].
    pub fn new(
        out: W,
        ledger: &'l Ledger,
        keys: &KeyList,
        checkpoints: &[SignedCheckpoint],
    ) -> Result<Self, WriteError> {
        let size = checkpoints.last().ok_or(WriteError::Checkpoints("there is none"))?.head().size;
        if checkpoints.len() > MAX_EXPORT_CHECKPOINTS {
            return Err(WriteError::Checkpoints("there are too many"));
        }
        if checkpoints.windows(2).any(|pair| pair[0].head().size >= pair[1].head().size) {
            return Err(WriteError::Checkpoints("they are not in order"));
        }
        let mut notes = Vec::new();
        for checkpoint in checkpoints {
            if checkpoint.origin() != keys.origin()
                || checkpoint.head() != &ledger.head_at(checkpoint.head().size)?
            {
                return Err(WriteError::Checkpoints("one of them is not of this history"));
            }
            if SignedCheckpoint::open(checkpoint.note().as_bytes(), keys.origin(), keys.log_keys()).is_err() {
                return Err(WriteError::Checkpoints(
                    "one of them is signed by a key that the key list does not name",
                ));
            }
            // A note's length fits: it is limited.
            notes.extend((checkpoint.note().len() as u32).to_le_bytes());
            notes.extend(checkpoint.note().as_bytes());
        }
        if notes.len() > MAX_EXPORT_CHECKPOINT_BYTES {
            return Err(WriteError::Checkpoints("they are too long"));
        }
        let header = Header {
            entries: size,
            key_bytes: keys.note().len() as u32,
            checkpoint_bytes: notes.len() as u32,
        };
        let mut edge = Vec::new();
        for tile in layout::edge_tiles(size) {
            edge.extend(bytes_of(&ledger.tile(tile)?));
        }
        let mut writer = Self { out, ledger, size, next: 0, entry_bytes: 0, leaves: Vec::new() };
        for section in [&header.to_bytes(), keys.note().as_bytes(), &notes, &edge] {
            writer.put(section)?;
            writer.put(&Sha256::digest(section))?;
        }
        Ok(writer)
    }

    /// Entries that there will be.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes the next entry.
    ///
    /// # Errors
    /// [`WriteError::Differs`] if it is not the one in the tree, [`WriteError::Count`] if it is one too many,
    /// [`WriteError::Ledger`], [`WriteError::Write`].
    pub fn entry(&mut self, entry: &[u8]) -> Result<(), WriteError> {
        let index = self.next;
        if index == self.size {
            return Err(WriteError::Count { expected: self.size, given: index.saturating_add(1) });
        }
        for tile in layout::tiles_at(index, self.size) {
            let hashes = self.ledger.tile(tile)?;
            if tile.is_full() {
                self.put(&bytes_of(&hashes))?;
            }
            if tile.level == 0 {
                self.leaves = hashes;
            }
        }
        let (sealed, found) =
            (self.leaves[(index % crate::tile::TILE_WIDTH as u64) as usize], Hash::leaf(entry));
        if sealed != found {
            return Err(WriteError::Differs { position: index + 1, sealed, found });
        }
        // An entry of the ledger is shorter than its limit, which fits.
        self.put(&(entry.len() as u32).to_le_bytes())?;
        self.put(entry)?;
        self.next += 1;
        self.entry_bytes += entry.len() as u64;
        Ok(())
    }

    /// Writes the end and hands the output back; syncing it is the caller's.
    ///
    /// # Errors
    /// [`WriteError::Count`] if entries are missing, [`WriteError::Write`].
    pub fn finish(mut self) -> Result<W, WriteError> {
        if self.next < self.size {
            return Err(WriteError::Count { expected: self.size, given: self.next });
        }
        self.put(&layout::end(self.size, self.entry_bytes))?;
        self.out.flush().map_err(WriteError::Write)?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.out.write_all(bytes).map_err(WriteError::Write)
    }
}
