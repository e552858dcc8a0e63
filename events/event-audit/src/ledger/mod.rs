//! The tree of one log, kept on disk beside it: tiles, and the newest signed checkpoint (`AUDIT_FORMAT.md` §5).
//!
//! Everything here but the checkpoint can be made again from the log. So tiles are synced only when a checkpoint is
//! made that needs them, and what a crash left of later ones is written again. The checkpoint cannot: it says what
//! was promised, and a ledger never signs a history that does not begin with it.

mod copy;
mod edge;
mod files;
mod leaves;

pub use edge::Edge;
pub use leaves::Leaves;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::{CheckpointError, SignedCheckpoint};
use crate::frontier::Frontier;
use crate::hash::{Hash, Head};
use crate::limits::{MAX_ENTRY_BYTES, MAX_TREE_SIZE};
use crate::message::{Advance, EntryProof};
use crate::note::{NoteSigner, VerifierKey};
use crate::proof::{self, Subtrees, verify_consistency, verify_inclusion};
use crate::tile::{TILE_WIDTH, Tile, hashes_of_level, levels};

/// Tiles written and not yet synced, by name. Beyond that, while a whole log is sealed, one sync of the file system is
/// quicker than thousands of files; where there is no such thing, they are synced without waiting for a checkpoint.
const MAX_UNSYNCED: usize = 64;

/// Why the ledger does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another process, or another part of this one, has it open.
    #[error("the audit folder {} is in use by another process", dir.display())]
    Locked {
        /// The folder.
        dir: PathBuf,
    },
    /// The system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The stored checkpoint can't be read. It says what was promised, so nothing is signed without it.
    #[error("the signed checkpoint {} cannot be used: {source}; restore it from a copy", path.display())]
    Promise {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: CheckpointError,
    },
    /// The log does not begin with what was signed: it was rewritten, or is another one.
    #[error("the log was rewritten: signed was ({signed}), the log now has ({found})")]
    Rewritten {
        /// What was signed.
        signed: Head,
        /// What the log's entries amount to at the same size.
        found: Head,
    },
    /// The log ends before what was signed.
    #[error(
        "the log has {size} entries, but a checkpoint over more was signed ({signed}): its end was cut off"
    )]
    CutOff {
        /// What was signed.
        signed: Head,
        /// Entries that there are.
        size: u64,
    },
    /// A tile is missing, short or not what the tile above says. [`Ledger::start_over`] makes it again.
    #[error(
        "the tile {path} over the entries {first} to {last} is damaged or missing; it can be made again from the log"
    )]
    Tile {
        /// The tile, below the ledger's folder.
        path: String,
        /// Position of the first entry it stands for.
        first: u64,
        /// Position of the last one.
        last: u64,
    },
    /// Asked about entries that are not there.
    #[error("the tree has {size} entries; there is nothing at {asked}")]
    Range {
        /// What was asked about.
        asked: u64,
        /// Entries that there are.
        size: u64,
    },
    /// An entry larger than [`MAX_ENTRY_BYTES`], or one too many.
    #[error("the entry does not fit: it has {bytes} bytes, and the tree {size} entries")]
    Entry {
        /// Bytes of it.
        bytes: usize,
        /// Entries so far.
        size: u64,
    },
    /// The signer is not this log's.
    #[error("the signer is {found}, the log is {origin}")]
    OtherSigner {
        /// The signer's name.
        found: String,
        /// The log's origin.
        origin: String,
    },
    /// It was opened with [`Ledger::open_beside`].
    #[error("the ledger was opened for reading")]
    ReadOnly,
    /// An earlier failure left it unfinished; open it anew.
    #[error("the ledger stopped at an earlier failure; open it anew")]
    Stopped,
}

/// How often a ledger that another process writes is read before its unfinished tiles are held to be damaged, and the
/// pause before the next try.
const READ_ATTEMPTS: usize = 20;
const READ_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// The tree of one log on disk.
///
/// Use: [`open`](Ledger::open), [`append`](Ledger::append) every entry of the log from [`size`](Ledger::size) on, then
/// [`checkpoint`](Ledger::checkpoint) now and then. Appending hashes the entry and, on average, one node; every 256th
/// entry writes a file of 8 KiB. In memory: the unfinished tiles, at most 8 KiB per level (three levels for 16 million
/// entries).
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    origin: String,
    /// Held as long as the ledger is open; none if it only reads.
    lock: Option<File>,
    /// Unfinished tiles, leaves first.
    edge: Vec<Vec<Hash>>,
    size: u64,
    newest: Option<SignedCheckpoint>,
    unsynced: Vec<PathBuf>,
    /// More than those.
    unsynced_others: bool,
    stopped: bool,
}

impl Ledger {
    /// Opens or makes the ledger of the log `origin` in `dir`. `keys` are those that may have signed its checkpoint.
    ///
    /// It then stands at its newest checkpoint, or at the beginning if there is none or its tiles are damaged.
    ///
    /// # Errors
    /// [`LedgerError::Locked`], [`LedgerError::Io`], [`LedgerError::Promise`].
    pub fn open(dir: &Path, origin: &str, keys: &[VerifierKey]) -> Result<Self, LedgerError> {
        let lock = files::lock(dir)?;
        let newest = promise(dir, origin, keys)?;
        let mut ledger = Self {
            dir: dir.to_owned(),
            origin: origin.to_owned(),
            lock: Some(lock),
            edge: Vec::new(),
            size: 0,
            newest,
            unsynced: Vec::new(),
            unsynced_others: false,
            stopped: false,
        };
        if let Some(head) = ledger.newest.as_ref().map(|newest| *newest.head()) {
            ledger.edge = ledger.stored_edge(head.size)?.unwrap_or_default();
            if frontier_of(&ledger.edge).head() == head {
                ledger.size = head.size;
            } else {
                ledger.edge.clear();
            }
        }
        Ok(ledger)
    }

    /// Opens the ledger in `dir` for reading, as it was at its newest checkpoint, beside the process that writes it.
    /// `None` if nothing was signed yet.
    ///
    /// # Errors
    /// [`LedgerError::Tile`] if its unfinished tiles do not lead to the checkpoint, [`LedgerError::Io`],
    /// [`LedgerError::Promise`].
    pub fn open_beside(dir: &Path, origin: &str, keys: &[VerifierKey]) -> Result<Option<Self>, LedgerError> {
        // A checkpoint that is made meanwhile takes the older one's unfinished tiles away.
        for _ in 0..READ_ATTEMPTS {
            let Some(newest) = promise(dir, origin, keys)? else { return Ok(None) };
            let head = *newest.head();
            let mut ledger = Self {
                dir: dir.to_owned(),
                origin: origin.to_owned(),
                lock: None,
                edge: Vec::new(),
                size: head.size,
                newest: Some(newest),
                unsynced: Vec::new(),
                unsynced_others: false,
                stopped: false,
            };
            if let Some(edge) = ledger.stored_edge(head.size)?
                && frontier_of(&edge).head() == head
            {
                ledger.edge = edge;
                return Ok(Some(ledger));
            }
            std::thread::sleep(READ_PAUSE);
        }
        let last = promise(dir, origin, keys)?.map_or(0, |newest| newest.head().size);
        Err(LedgerError::Tile { path: "tile".into(), first: 1, last })
    }

    /// The unfinished tiles stored with the checkpoint of this size, if they are all there.
    fn stored_edge(&self, size: u64) -> Result<Option<Vec<Vec<Hash>>>, LedgerError> {
        let mut edge = Vec::new();
        for level in 0..levels(size) {
            let hashes = match Tile::edge(level, size) {
                None => Some(Vec::new()),
                Some(tile) => {
                    let bytes = files::read(&self.dir.join(tile.path()))?;
                    bytes.and_then(|bytes| hashes_from(&bytes, usize::from(tile.width)))
                }
            };
            match hashes {
                Some(hashes) => edge.push(hashes),
                None => return Ok(None),
            }
        }
        Ok(Some(edge))
    }

    /// Forgets all tiles, so that every entry is expected again from the first one; the checkpoint stays.
    pub fn start_over(&mut self) {
        (self.size, self.stopped) = (0, false);
        self.edge.clear();
        self.unsynced.clear();
        self.unsynced_others = false;
    }

    /// Goes on behind the first `edge.size()` entries, of which only the edge of their tree is known: the tiles before it
    /// are kept, and what follows is expected again. The checkpoint stays, and what it promised: on the way past its size
    /// the root has to be the signed one.
    pub fn start_over_at(&mut self, edge: &Edge) {
        self.start_over();
        (self.size, self.edge) = (edge.size(), edge.levels().to_vec());
    }

    /// Entries so far: the index of the next one.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Size and root so far.
    pub fn head(&self) -> Head {
        frontier_of(&self.edge).head()
    }

    /// The newest checkpoint signed.
    pub fn newest(&self) -> Option<&SignedCheckpoint> {
        self.newest.as_ref()
    }

    /// The log's origin.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Adds the log's next entry.
    ///
    /// # Errors
    /// [`LedgerError::Rewritten`] when the size of the newest checkpoint is reached with another root;
    /// [`LedgerError::ReadOnly`], [`LedgerError::Entry`], [`LedgerError::Io`], and [`LedgerError::Stopped`] after one of
    /// them.
    pub fn append(&mut self, entry: &[u8]) -> Result<(), LedgerError> {
        if entry.len() > MAX_ENTRY_BYTES || self.size == MAX_TREE_SIZE {
            return Err(LedgerError::Entry { bytes: entry.len(), size: self.size });
        }
        if self.lock.is_none() {
            return Err(LedgerError::ReadOnly);
        }
        if self.stopped {
            return Err(LedgerError::Stopped);
        }
        // Until it is done, a failure leaves the edge between two sizes.
        self.stopped = true;
        let (mut level, mut hash) = (0, Hash::leaf(entry));
        loop {
            if self.edge.len() == usize::from(level) {
                self.edge.push(Vec::with_capacity(TILE_WIDTH));
            }
            let unfinished = &mut self.edge[usize::from(level)];
            unfinished.push(hash);
            if unfinished.len() < TILE_WIDTH {
                break;
            }
            hash = Hash::over(unfinished);
            let bytes = bytes_of(unfinished);
            unfinished.clear();
            let path = self.dir.join(Tile::full(level, self.size >> Tile::shift(level + 1)).path());
            files::write(&path, &bytes)?;
            self.note_unsynced(path)?;
            level += 1;
        }
        self.size += 1;
        if let Some(signed) =
            self.newest.as_ref().map(|newest| *newest.head()).filter(|h| h.size == self.size)
        {
            let found = self.head();
            if found != signed {
                return Err(LedgerError::Rewritten { signed, found });
            }
        }
        self.stopped = false;
        Ok(())
    }

    /// Signs what the log amounts to now, and keeps it. If nothing was added since the newest checkpoint, that one is
    /// returned.
    ///
    /// When this returns, the checkpoint and all tiles it needs are on disk.
    ///
    /// # Errors
    /// [`LedgerError::CutOff`] if more was signed before, [`LedgerError::OtherSigner`], [`LedgerError::ReadOnly`],
    /// [`LedgerError::Io`], and [`LedgerError::Stopped`] after the last of them.
    pub fn checkpoint(&mut self, signer: &NoteSigner) -> Result<SignedCheckpoint, LedgerError> {
        if self.lock.is_none() {
            return Err(LedgerError::ReadOnly);
        }
        if self.stopped {
            return Err(LedgerError::Stopped);
        }
        if signer.verifier().name() != self.origin {
            let (found, origin) = (signer.verifier().name().to_owned(), self.origin.clone());
            return Err(LedgerError::OtherSigner { found, origin });
        }
        match &self.newest {
            Some(newest) if newest.head().size > self.size => {
                return Err(LedgerError::CutOff { signed: *newest.head(), size: self.size });
            }
            Some(newest) if newest.head().size == self.size => return Ok(newest.clone()),
            _ => {}
        }
        // After a sync that failed the next one may lie; and a checkpoint that is on disk but was not handed out is
        // read again when the ledger is opened anew.
        self.stopped = true;
        let mut written = Vec::new();
        for (level, hashes) in (0..).zip(&self.edge) {
            if let Some(tile) = Tile::edge(level, self.size) {
                let path = self.dir.join(tile.path());
                files::write(&path, &bytes_of(hashes))?;
                written.push(path);
            }
        }
        self.unsynced.append(&mut written);
        self.sync()?;
        let path = self.dir.join("checkpoint");
        let signed = SignedCheckpoint::sign(self.head(), signer)
            .map_err(|source| LedgerError::Promise { path: path.clone(), source })?;
        files::write_durably(&self.dir, &path, signed.note().as_bytes())?;
        if let Some(before) = self.newest.replace(signed.clone()) {
            remove_edge(&self.dir, before.head().size, self.size);
        }
        self.stopped = false;
        Ok(signed)
    }

    fn note_unsynced(&mut self, path: PathBuf) -> Result<(), LedgerError> {
        if self.unsynced.len() < MAX_UNSYNCED {
            self.unsynced.push(path);
            return Ok(());
        }
        if files::SYNCS_ALL {
            self.unsynced_others = true;
            return Ok(());
        }
        self.unsynced.push(path);
        self.sync()
    }

    fn sync(&mut self) -> Result<(), LedgerError> {
        if self.unsynced_others {
            files::sync_all(&self.dir)?;
        } else {
            files::sync(&self.dir, &self.unsynced)?;
        }
        self.unsynced.clear();
        self.unsynced_others = false;
        Ok(())
    }

    /// The hashes of a tile of the tree as it is now, or as it was when smaller.
    ///
    /// # Errors
    /// [`LedgerError::Range`] if it has no such tile, [`LedgerError::Tile`], [`LedgerError::Io`].
    pub fn tile(&self, tile: Tile) -> Result<Vec<Hash>, LedgerError> {
        let width = usize::from(tile.width);
        let there = hashes_of_level(tile.level, self.size);
        let last =
            tile.index.checked_mul(TILE_WIDTH as u64).and_then(|first| first.checked_add(width as u64));
        if width == 0 || width > TILE_WIDTH || last.is_none_or(|last| last > there) {
            return Err(LedgerError::Range { asked: tile.index, size: self.size });
        }
        if tile.index == there / TILE_WIDTH as u64 {
            return Ok(self.edge[usize::from(tile.level)][..width].to_vec());
        }
        let stored = Tile::full(tile.level, tile.index);
        let bytes = files::read(&self.dir.join(stored.path()))?;
        let mut hashes =
            bytes.and_then(|bytes| hashes_from(&bytes, TILE_WIDTH)).ok_or_else(|| damaged(stored))?;
        hashes.truncate(width);
        Ok(hashes)
    }

    /// Checks every stored tile against the one above it.
    ///
    /// # Errors
    /// [`LedgerError::Tile`] names the first one that is damaged, [`LedgerError::Io`].
    pub fn scrub(&self) -> Result<(), LedgerError> {
        // From the top, so that what a tile is held against has been checked itself.
        for level in (0..levels(self.size)).rev() {
            for index in 0..hashes_of_level(level, self.size) / TILE_WIDTH as u64 {
                let tile = Tile::full(level, index);
                if Hash::over(&self.tile(tile)?) != self.subtree(Tile::shift(level + 1), index)? {
                    return Err(damaged(tile));
                }
            }
        }
        Ok(())
    }

    /// Size and root when the log had `size` entries, proved to be the beginning of what it has now.
    ///
    /// # Errors
    /// [`LedgerError::Range`] if it has fewer, [`LedgerError::Tile`], [`LedgerError::Io`].
    pub fn head_at(&self, size: u64) -> Result<Head, LedgerError> {
        let now = self.head();
        if size == self.size {
            return Ok(now);
        }
        let reading = Reading::of(self);
        let path = proof::prove_consistency(&reading, size, self.size)?
            .ok_or(LedgerError::Range { asked: size, size: self.size })?;
        let head = Head { size, root: proof::root(&reading, size)? };
        match verify_consistency(&head, &now, &path) {
            Ok(()) => Ok(head),
            Err(_) => Err(self.name_damage(size)),
        }
    }

    /// The proof that the entry at `index` stands in the history of a checkpoint.
    ///
    /// # Errors
    /// [`LedgerError::Range`] if it does not, or the checkpoint is of a longer history; [`LedgerError::Tile`],
    /// [`LedgerError::Io`]. A proof that does not hold is never returned.
    pub fn prove_entry(&self, index: u64, checkpoint: &SignedCheckpoint) -> Result<EntryProof, LedgerError> {
        let head = self.known(checkpoint)?;
        let reading = Reading::of(self);
        let path = proof::prove_inclusion(&reading, index, head.size)?
            .ok_or(LedgerError::Range { asked: index, size: head.size })?;
        let leaf = reading.subtree(0, index)?;
        if verify_inclusion(&head, index, &leaf, &path).is_err() {
            return Err(self.name_damage(index));
        }
        Ok(EntryProof { index, path, checkpoint: checkpoint.note().to_owned() })
    }

    /// A checkpoint for somebody who holds one over `old_size` entries (0: none).
    ///
    /// # Errors
    /// As [`Ledger::prove_entry`].
    pub fn advance(&self, old_size: u64, checkpoint: &SignedCheckpoint) -> Result<Advance, LedgerError> {
        let new = self.known(checkpoint)?;
        let old = self.head_at(old_size)?;
        let path = proof::prove_consistency(&Reading::of(self), old.size, new.size)?
            .ok_or(LedgerError::Range { asked: old_size, size: new.size })?;
        if verify_consistency(&old, &new, &path).is_err() {
            return Err(self.name_damage(old_size));
        }
        Ok(Advance { old_size, proof: path, checkpoint: checkpoint.note().to_owned() })
    }

    /// The head of a checkpoint, if it is of this history.
    fn known(&self, checkpoint: &SignedCheckpoint) -> Result<Head, LedgerError> {
        let (signed, found) = (*checkpoint.head(), self.head_at(checkpoint.head().size)?);
        if signed == found { Ok(signed) } else { Err(LedgerError::Rewritten { signed, found }) }
    }

    /// After a proof that did not hold: which tile is at fault.
    fn name_damage(&self, asked: u64) -> LedgerError {
        // The edge is in memory and right; if all tiles are too, it was asked about something else.
        self.scrub().err().unwrap_or(LedgerError::Range { asked, size: self.size })
    }
}

impl Subtrees for Ledger {
    type Error = LedgerError;

    fn subtree(&self, height: u32, index: u64) -> Result<Hash, LedgerError> {
        Reading::of(self).subtree(height, index)
    }
}

/// A ledger for as long as one proof takes: every tile is read once.
struct Reading<'l> {
    ledger: &'l Ledger,
    tiles: RefCell<BTreeMap<Tile, Vec<Hash>>>,
}

impl<'l> Reading<'l> {
    fn of(ledger: &'l Ledger) -> Self {
        Self { ledger, tiles: RefCell::default() }
    }
}

impl Subtrees for Reading<'_> {
    type Error = LedgerError;

    fn subtree(&self, height: u32, index: u64) -> Result<Hash, LedgerError> {
        let (level, within) = ((height / crate::tile::TILE_HEIGHT) as u8, height % crate::tile::TILE_HEIGHT);
        let (first, count) = (index << within, 1 << within);
        let there = hashes_of_level(level, self.ledger.size);
        if first + count > there {
            return Err(LedgerError::Range { asked: index, size: self.ledger.size });
        }
        let (tile, from) = (first / TILE_WIDTH as u64, (first % TILE_WIDTH as u64) as usize);
        let width = (there - tile * TILE_WIDTH as u64).min(TILE_WIDTH as u64) as u16;
        let tile = Tile { level, index: tile, width };
        let mut tiles = self.tiles.borrow_mut();
        let hashes = match tiles.entry(tile) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(unread) => unread.insert(self.ledger.tile(tile)?),
        };
        Ok(Hash::over(&hashes[from..from + count as usize]))
    }
}

/// Removes the unfinished tiles of a checkpoint over `old` entries from `dir`, where one over `new` is now: nobody needs
/// them any more, and a leftover harms nobody.
fn remove_edge(dir: &Path, old: u64, new: u64) {
    for level in 0..levels(old) {
        let Some(tile) = Tile::edge(level, old).filter(|tile| Tile::edge(level, new) != Some(*tile)) else {
            continue;
        };
        let path = dir.join(tile.path());
        let _ = std::fs::remove_file(&path);
        // Fails while there are others.
        let _ = path.parent().map(std::fs::remove_dir);
    }
}

/// The newest signed checkpoint on disk.
fn promise(dir: &Path, origin: &str, keys: &[VerifierKey]) -> Result<Option<SignedCheckpoint>, LedgerError> {
    let path = dir.join("checkpoint");
    let Some(note) = files::read(&path)? else { return Ok(None) };
    let opened = SignedCheckpoint::open(&note, origin, keys);
    opened.map(Some).map_err(|source| LedgerError::Promise { path, source })
}

fn damaged(tile: Tile) -> LedgerError {
    let span = 1 << Tile::shift(tile.level + 1);
    LedgerError::Tile { path: tile.path(), first: tile.index * span + 1, last: (tile.index + 1) * span }
}

/// The frontier of a tree from its unfinished tiles.
fn frontier_of(edge: &[Vec<Hash>]) -> Frontier {
    let mut frontier = Frontier::new();
    for (level, hashes) in edge.iter().enumerate().rev() {
        for hash in hashes {
            frontier.push_subtree(Tile::shift(level as u8), *hash);
        }
    }
    frontier
}

pub(crate) fn bytes_of(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// So many hashes, and nothing else.
pub(crate) fn hashes_from(bytes: &[u8], count: usize) -> Option<Vec<Hash>> {
    let (hashes, rest) = bytes.as_chunks::<{ Hash::BYTES }>();
    (rest.is_empty() && hashes.len() == count).then(|| hashes.iter().map(|hash| Hash(*hash)).collect())
}
