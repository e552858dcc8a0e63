//! Reading an index: one unchanging picture of it, while scans go on (§4).

use redb::{ReadOnlyTable, ReadTransaction};
use sync_core::merkle::Hash;

use crate::index::{Counters, IndexError};
use crate::limits::{BLOCKS_PER_ROW, PAGE};
use crate::record::{Content, FolderId, Kind, Record};
use crate::tables::{
    BLOCK_HASHES, BLOCKS, CHANGES, ChangeRow, ENTRIES, FOLDERS, META, Meta, block_key, join, key, page,
    parse_meta, parse_record, path_of, rows_of,
};

/// How an entry went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It is no longer there.
    Deleted,
    /// It may be there, but is to be ignored now: that is no deletion.
    Ignored,
}

impl Gone {
    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Deleted => 1,
            Self::Ignored => 2,
        }
    }

    pub(crate) fn parse(byte: u8) -> Option<Self> {
        [Self::Deleted, Self::Ignored].into_iter().find(|gone| gone.byte() == byte)
    }
}

/// An entry of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path inside the folder, `/` between names; empty for the folder itself.
    pub path: Vec<u8>,
    /// What is known of it.
    pub record: Record,
}

/// Something that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This is there now, new or changed.
    There(Entry),
    /// This is not there any more.
    Gone {
        /// When that was found.
        sequence: u64,
        /// Its path.
        path: Vec<u8>,
        /// How it went.
        how: Gone,
    },
}

impl Change {
    /// Its number.
    pub fn sequence(&self) -> u64 {
        match self {
            Self::There(entry) => entry.record.sequence,
            Self::Gone { sequence, .. } => *sequence,
        }
    }
}

/// An unchanging picture of an index. Keeping one for long makes the database grow meanwhile.
pub struct Snapshot {
    meta: Meta,
    entries: ReadOnlyTable<&'static [u8], &'static [u8]>,
    changes: ReadOnlyTable<u64, &'static [u8]>,
    folders: ReadOnlyTable<u32, &'static [u8]>,
    blocks: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl Snapshot {
    pub(crate) fn open(transaction: &ReadTransaction) -> Result<Self, IndexError> {
        let meta = match transaction.open_table(META)?.get("meta")? {
            Some(bytes) => parse_meta(bytes.value())?,
            None => Meta::default(),
        };
        Ok(Self {
            meta,
            entries: transaction.open_table(ENTRIES)?,
            changes: transaction.open_table(CHANGES)?,
            folders: transaction.open_table(FOLDERS)?,
            blocks: transaction.open_table(BLOCKS)?,
        })
    }

    /// What it holds, counted.
    pub fn counters(&self) -> Counters {
        self.meta.counters
    }

    /// Changes since an earlier sequence can be told only from here on: older deletions were forgotten.
    pub fn changes_kept_from(&self) -> u64 {
        self.meta.gone_forgotten
    }

    /// The entry at a path; the empty path is the folder itself.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn entry(&self, path: &[u8]) -> Result<Option<Record>, IndexError> {
        let mut record = self.at(FolderId::ABOVE, b"")?;
        if path.is_empty() {
            return Ok(record);
        }
        for name in path.split(|&b| b == b'/') {
            let Some(Record { kind: Kind::Folder(id), .. }) = record else { return Ok(None) };
            record = self.at(id, name)?;
        }
        Ok(record)
    }

    /// Whether a folder is (still) in the index.
    pub(crate) fn has_folder(&self, folder: FolderId) -> Result<bool, IndexError> {
        Ok(self.folders.get(folder.0)?.is_some())
    }

    pub(crate) fn at(&self, folder: FolderId, name: &[u8]) -> Result<Option<Record>, IndexError> {
        match self.entries.get(key(folder, name).as_slice())? {
            Some(bytes) => parse_record(bytes.value()).map(Some),
            None => Ok(None),
        }
    }

    /// All entries, name by name in the order of a manifest: an entry, then all that is below it.
    /// Reads a page at a time; memory grows with the depth alone.
    pub fn walk(&self) -> Walk<'_> {
        Walk { snapshot: self, begun: false, path: Vec::new(), inside: Vec::new() }
    }

    /// What changed after `after`, at most `count` of it, in the order of sequences. If `after` is below
    /// [`Self::changes_kept_from`], deletions may be missing and everything has to be compared instead.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn changes(&self, after: u64, count: usize) -> Result<Vec<Change>, IndexError> {
        let mut changes = Vec::new();
        for row in self.changes.range(after.saturating_add(1)..)?.take(count) {
            let row = row?;
            let sequence = row.0.value();
            changes.push(match ChangeRow::parse(row.1.value())? {
                ChangeRow::Gone(how, path) => Change::Gone { sequence, path: path.to_vec(), how },
                ChangeRow::Live(folder, name) => Change::There(self.live(folder, name)?),
            });
        }
        Ok(changes)
    }

    /// The entry that was last changed with this sequence, if there still is one.
    pub(crate) fn live_at(&self, sequence: u64) -> Result<Option<Entry>, IndexError> {
        let Some(row) = self.changes.get(sequence)? else { return Ok(None) };
        match ChangeRow::parse(row.value())? {
            ChangeRow::Live(folder, name) => self.live(folder, name).map(Some),
            ChangeRow::Gone(..) => Ok(None),
        }
    }

    fn live(&self, folder: FolderId, name: &[u8]) -> Result<Entry, IndexError> {
        let record = self.at(folder, name)?.ok_or(IndexError::Damaged("changes"))?;
        if folder == FolderId::ABOVE {
            return Ok(Entry { path: Vec::new(), record });
        }
        let above = path_of(&self.folders, folder)?.ok_or(IndexError::Damaged("folders"))?;
        Ok(Entry { path: join(&above, name), record })
    }

    pub(crate) fn live_since(
        &self,
        after: u64,
        take: &mut dyn FnMut(&Record) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        for row in self.changes.range(after.saturating_add(1)..)? {
            if let ChangeRow::Live(folder, name) = ChangeRow::parse(row?.1.value())?
                && let Some(record) = self.at(folder, name)?
            {
                take(&record)?;
            }
        }
        Ok(())
    }

    /// Strong and weak hash of each block of a file with this record, in order. A file's list is read a
    /// row at a time.
    pub fn blocks<'s>(
        &'s self,
        stamp_size: u64,
        content: &'s Content,
    ) -> impl Iterator<Item = Result<(Hash, u32), IndexError>> + 's {
        let count = sync_core::manifest::blocks_of(stamp_size);
        let only = (count == 1 && content.blocks == 0).then_some(Ok((content.root, content.weak)));
        let rows = if content.blocks == 0 { 0 } else { rows_of(count) };
        let stored = (0..rows).flat_map(move |row| {
            let left = count - u64::from(row) * BLOCKS_PER_ROW as u64;
            match self.block_row(content.blocks, row, left.min(BLOCKS_PER_ROW as u64) as usize) {
                Ok(hashes) => hashes.into_iter().map(Ok).collect::<Vec<_>>(),
                Err(error) => vec![Err(error)],
            }
        });
        only.into_iter().chain(stored)
    }

    /// Strong hashes of some blocks of a file with this record: only what is asked for is read. Fewer, if it has fewer.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn some_blocks(
        &self,
        stamp_size: u64,
        content: &Content,
        blocks: std::ops::Range<u64>,
    ) -> Result<Vec<Hash>, IndexError> {
        let count = sync_core::manifest::blocks_of(stamp_size);
        let blocks = blocks.start..blocks.end.min(count);
        if count == 1 && content.blocks == 0 {
            return Ok(if blocks.start == 0 && blocks.end == 1 { vec![content.root] } else { Vec::new() });
        }
        let mut hashes = Vec::new();
        let per_row = BLOCKS_PER_ROW as u64;
        let mut at = blocks.start;
        while at < blocks.end {
            let row = at / per_row;
            let left = (count - row * per_row).min(per_row);
            let stored = self.block_row(content.blocks, row as u32, left as usize)?;
            let end = blocks.end.min((row + 1) * per_row);
            let part = (at - row * per_row) as usize..(end - row * per_row) as usize;
            hashes.extend(stored.get(part).unwrap_or_default().iter().map(|(hash, _)| *hash));
            at = end;
        }
        Ok(hashes)
    }

    fn block_row(&self, content: u64, row: u32, expected: usize) -> Result<Vec<(Hash, u32)>, IndexError> {
        let stored = self.blocks.get(&block_key(content, row)[..])?.ok_or(IndexError::Damaged("blocks"))?;
        let bytes = stored.value();
        if bytes.len() != expected * BLOCK_HASHES {
            return Err(IndexError::Damaged("blocks"));
        }
        let hashes = bytes.chunks_exact(BLOCK_HASHES).map(|pair| {
            let (mut hash, mut weak) = ([0; 32], [0; 4]);
            hash.copy_from_slice(&pair[..32]);
            weak.copy_from_slice(&pair[32..]);
            (hash, u32::from_le_bytes(weak))
        });
        Ok(hashes.collect())
    }
}

/// See [`Snapshot::walk`].
pub struct Walk<'s> {
    snapshot: &'s Snapshot,
    begun: bool,
    /// Path of the innermost folder.
    path: Vec<u8>,
    inside: Vec<Inside>,
}

struct Inside {
    folder: FolderId,
    /// Length of the path of the folder above.
    above_len: usize,
    /// The name that was told last.
    last: Option<Vec<u8>>,
    /// What was read ahead, the next one last.
    page: Vec<(Vec<u8>, Record)>,
}

impl Walk<'_> {
    fn enter(&mut self, folder: FolderId, name: &[u8]) {
        // What was read ahead in the folder above is read again later: else a deep tree of large folders
        // would fill memory.
        if let Some(above) = self.inside.last_mut()
            && above.page.len() > 16
        {
            above.page = Vec::new();
        }
        let above_len = self.path.len();
        self.path = join(&self.path, name);
        self.inside.push(Inside { folder, above_len, last: None, page: Vec::new() });
    }

    fn step(&mut self) -> Result<Option<Entry>, IndexError> {
        if !self.begun {
            self.begun = true;
            let Some(record) = self.snapshot.at(FolderId::ABOVE, b"")? else { return Ok(None) };
            self.inside.push(Inside { folder: FolderId::ROOT, above_len: 0, last: None, page: Vec::new() });
            return Ok(Some(Entry { path: Vec::new(), record }));
        }
        while let Some(at) = self.inside.last_mut() {
            if at.page.is_empty() {
                at.page = page(&self.snapshot.entries, at.folder, at.last.as_deref(), PAGE)?;
                at.page.reverse();
            }
            let Some((name, record)) = at.page.pop() else {
                self.path.truncate(at.above_len);
                self.inside.pop();
                continue;
            };
            at.last = Some(name.clone());
            let path = join(&self.path, &name);
            if let Kind::Folder(id) = record.kind {
                self.enter(id, &name);
            }
            return Ok(Some(Entry { path, record }));
        }
        Ok(None)
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Entry, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}
