//! The tables of one folder's database and the rules by which they change together (§2).
//!
//! [`Tables`] is one transaction being put together. Every method leaves the tables so that a commit
//! right after it is a true, if older, picture.

use event_schema::{decode_exact, encode};
use redb::{ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use sync_core::merkle::Hash;

use crate::content::{ContentKey, Row};
use crate::index::{Counters, IndexError};
use crate::limits::{BLOCKS_PER_ROW, GONE_MAX};
use crate::record::{FolderId, Kind, Record};
use crate::snapshot::Gone;

/// Version of the database's content.
pub(crate) const VERSION: u32 = 1;

/// Bytes of a block's two hashes.
pub(crate) const BLOCK_HASHES: usize = size_of::<Hash>() + size_of::<u32>();

pub(crate) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Folder (4 bytes, big-endian) and name → [`Record`].
pub(crate) const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");
/// Sequence → what was changed then and was not changed since: see [`ChangeRow`].
pub(crate) const CHANGES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("changes");
/// Folder → the folder it is in (4 bytes) and its name.
pub(crate) const FOLDERS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("folders");
/// Inode of a folder on the root's file system → folder.
pub(crate) const INODES: TableDefinition<'_, u64, u32> = TableDefinition::new("inodes");
/// Number of a content (8 bytes) and of a row (4 bytes), big-endian → hashes of up to
/// [`BLOCKS_PER_ROW`] blocks, strong then weak each.
pub(crate) const BLOCKS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("blocks");
/// What is to be taken out: how ([`Gone`]), folder, name → nothing. What stands below it goes with it.
pub(crate) const GONE: TableDefinition<'_, &[u8], ()> = TableDefinition::new("gone");

/// First byte of a row of changes: an entry that is there, followed by its key.
const LIVE: u8 = 0;

/// What stands in the table of changes.
pub(crate) enum ChangeRow<'a> {
    /// An entry that is there: its folder and name.
    Live(FolderId, &'a [u8]),
    /// One that is not any more: how, and its path.
    Gone(Gone, &'a [u8]),
}

impl<'a> ChangeRow<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, IndexError> {
        match bytes.split_first() {
            Some((&LIVE, key)) => parse_key(key).map(|(folder, name)| Self::Live(folder, name)),
            Some((&how, path)) => {
                Gone::parse(how).map(|how| Self::Gone(how, path)).ok_or(IndexError::Damaged("changes"))
            }
            None => Err(IndexError::Damaged("changes")),
        }
    }
}

/// What the index remembers of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) counters: Counters,
    /// The folder this is of, and what it was on.
    pub(crate) root: Option<Identity>,
    /// Highest number given to a folder and to a content.
    pub(crate) last_folder: u32,
    pub(crate) last_content: u64,
    /// Deletions remembered, and up to where they were forgotten.
    pub(crate) gone: u64,
    pub(crate) gone_forgotten: u64,
    /// Changes up to here were looked through for deletions to forget.
    pub(crate) gone_searched: u64,
    /// Contents of which block hashes are stored and no entry is there yet: files being hashed.
    pub(crate) hashing: Vec<u64>,
    /// Whether a scan ever came to its end: before, what is missing here may merely not have been seen.
    pub(crate) complete: bool,
}

/// What tells that a folder is the one it was (§5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) ino: u64,
    pub(crate) dev: u64,
    pub(crate) file_system: u64,
}

impl Identity {
    /// Numbers of devices change with a restart, and some file systems have no identity of their own.
    pub(crate) fn same_root(&self, other: &Self) -> bool {
        self.ino == other.ino
            && (self.dev == other.dev || (self.file_system == other.file_system && self.file_system != 0))
    }
}

/// Key of an entry.
pub(crate) fn key(folder: FolderId, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(4 + name.len());
    key.extend_from_slice(&folder.0.to_be_bytes());
    key.extend_from_slice(name);
    key
}

pub(crate) fn parse_key(key: &[u8]) -> Result<(FolderId, &[u8]), IndexError> {
    let (folder, name) = key.split_first_chunk::<4>().ok_or(IndexError::Damaged("a key"))?;
    Ok((FolderId(u32::from_be_bytes(*folder)), name))
}

pub(crate) fn parse_record(bytes: &[u8]) -> Result<Record, IndexError> {
    decode_exact("entries", bytes).map_err(|_| IndexError::Damaged("entries"))
}

pub(crate) fn block_key(content: u64, row: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&content.to_be_bytes());
    key[8..].copy_from_slice(&row.to_be_bytes());
    key
}

fn gone_key(how: Gone, folder: FolderId, name: &[u8]) -> Vec<u8> {
    let mut key = vec![how.byte()];
    key.extend_from_slice(&folder.0.to_be_bytes());
    key.extend_from_slice(name);
    key
}

pub(crate) struct Tables<'t> {
    meta_table: Table<'t, &'static str, &'static [u8]>,
    entries: Table<'t, &'static [u8], &'static [u8]>,
    changes: Table<'t, u64, &'static [u8]>,
    folders: Table<'t, u32, &'static [u8]>,
    inodes: Table<'t, u64, u32>,
    blocks: Table<'t, &'static [u8], &'static [u8]>,
    gone: Table<'t, &'static [u8], ()>,
    pub(crate) meta: Meta,
    /// Rows changed since the transaction began.
    pub(crate) changed: u64,
    /// Contents that came with it.
    pub(crate) contents: Vec<Row>,
}

impl<'t> Tables<'t> {
    pub(crate) fn open(transaction: &'t WriteTransaction) -> Result<Self, IndexError> {
        let meta_table = transaction.open_table(META)?;
        let meta = match meta_table.get("meta")? {
            Some(bytes) => parse_meta(bytes.value())?,
            None => Meta { last_folder: FolderId::ROOT.0, ..Meta::default() },
        };
        Ok(Self {
            meta_table,
            entries: transaction.open_table(ENTRIES)?,
            changes: transaction.open_table(CHANGES)?,
            folders: transaction.open_table(FOLDERS)?,
            inodes: transaction.open_table(INODES)?,
            blocks: transaction.open_table(BLOCKS)?,
            gone: transaction.open_table(GONE)?,
            meta,
            changed: 0,
            contents: Vec::new(),
        })
    }

    /// Writes what the index says of itself; the last thing before a commit.
    pub(crate) fn finish(mut self) -> Result<(bool, Meta, Vec<Row>), IndexError> {
        let before = match self.meta_table.get("meta")? {
            Some(bytes) => Some(parse_meta(bytes.value())?),
            None => None,
        };
        if before.as_ref() != Some(&self.meta) {
            self.changed += 1;
            self.meta_table.insert("version", &VERSION.to_le_bytes()[..])?;
            self.meta_table.insert("meta", encode(&self.meta).as_slice())?;
        }
        Ok((self.changed > 0, self.meta, self.contents))
    }

    pub(crate) fn entry(&self, folder: FolderId, name: &[u8]) -> Result<Option<Record>, IndexError> {
        match self.entries.get(key(folder, name).as_slice())? {
            Some(bytes) => parse_record(bytes.value()).map(Some),
            None => Ok(None),
        }
    }

    /// Up to `count` entries of a folder that come after `after`, in the order of their names.
    pub(crate) fn page(
        &self,
        folder: FolderId,
        after: Option<&[u8]>,
        count: usize,
    ) -> Result<Vec<(Vec<u8>, Record)>, IndexError> {
        page(&self.entries, folder, after, count)
    }

    /// The folder above and the name of a folder.
    pub(crate) fn folder(&self, folder: FolderId) -> Result<Option<(FolderId, Vec<u8>)>, IndexError> {
        folder_row(&self.folders, folder)
    }

    /// Path of a folder; none if it is not in the index (any more).
    pub(crate) fn path_of(&self, folder: FolderId) -> Result<Option<Vec<u8>>, IndexError> {
        path_of(&self.folders, folder)
    }

    /// The folder with this inode, as the index knows it.
    pub(crate) fn folder_of_inode(&self, ino: u64) -> Result<Option<FolderId>, IndexError> {
        Ok(self.inodes.get(ino)?.map(|id| FolderId(id.value())))
    }

    pub(crate) fn new_folder(&mut self) -> FolderId {
        self.meta.last_folder += 1;
        FolderId(self.meta.last_folder)
    }

    pub(crate) fn new_content(&mut self) -> u64 {
        self.meta.last_content += 1;
        self.meta.last_content
    }

    /// Puts an entry in or replaces it. It gets a new sequence if others would see a difference, else it
    /// keeps the one it has.
    pub(crate) fn put(
        &mut self,
        folder: FolderId,
        name: &[u8],
        mut record: Record,
    ) -> Result<u64, IndexError> {
        let old = self.entry(folder, name)?;
        let key = key(folder, name);
        if let Some(old) = &old {
            self.uncount(old);
            match &old.kind {
                // Another kind or another folder of that name: what stood below is gone.
                Kind::Folder(id) if record.kind != old.kind => {
                    self.forget_folder(*id, old)?;
                }
                Kind::File(Some(before)) if before.blocks != 0 => {
                    let kept = matches!(&record.kind, Kind::File(Some(c)) if c.blocks == before.blocks);
                    if !kept {
                        self.remove_blocks(before.blocks)?;
                    }
                }
                _ => {}
            }
        }
        record.sequence = match &old {
            Some(old) if old.same_to_others(&record) => old.sequence,
            _ => {
                if let Some(old) = &old {
                    self.changes.remove(old.sequence)?;
                }
                self.meta.counters.sequence += 1;
                let mut row = Vec::with_capacity(1 + key.len());
                row.push(LIVE);
                row.extend_from_slice(&key);
                self.changes.insert(self.meta.counters.sequence, row.as_slice())?;
                if let Some(content) = record.content()
                    && record.stamp.size > 0
                {
                    let key = ContentKey::of(&content.root);
                    self.contents.push(Row { key, sequence: self.meta.counters.sequence });
                }
                self.meta.counters.sequence
            }
        };
        if let Kind::Folder(id) = record.kind {
            // The key of an entry is also what a folder's row holds: the folder above and the name.
            self.folders.insert(id.0, key.as_slice())?;
            if record.stamp.dev == 0 {
                self.inodes.insert(record.stamp.ino, id.0)?;
            }
        }
        self.count(&record);
        self.entries.insert(key.as_slice(), encode(&record).as_slice())?;
        self.changed += 1;
        Ok(record.sequence)
    }

    /// Replaces an entry by one that is the same to others, its block hashes left alone.
    pub(crate) fn put_quietly(
        &mut self,
        folder: FolderId,
        name: &[u8],
        record: Record,
    ) -> Result<(), IndexError> {
        self.entries.insert(key(folder, name).as_slice(), encode(&record).as_slice())?;
        self.changed += 1;
        Ok(())
    }

    /// Stores one row of block hashes.
    pub(crate) fn put_blocks(&mut self, content: u64, row: u32, hashes: &[u8]) -> Result<(), IndexError> {
        self.blocks.insert(&block_key(content, row)[..], hashes)?;
        // A row of hashes is as much work as a handful of entries.
        self.changed += 4;
        Ok(())
    }

    /// Block hashes are about to be stored whose entry comes later.
    pub(crate) fn begin_blocks(&mut self, content: u64) {
        if !self.meta.hashing.contains(&content) {
            self.meta.hashing.push(content);
        }
    }

    /// Their entry is there, or they were taken out.
    pub(crate) fn end_blocks(&mut self, content: u64) {
        self.meta.hashing.retain(|&other| other != content);
    }

    /// Takes out what a scan left that did not come to its end.
    pub(crate) fn forget_unfinished_blocks(&mut self) -> Result<(), IndexError> {
        for content in std::mem::take(&mut self.meta.hashing) {
            self.remove_blocks(content)?;
        }
        Ok(())
    }

    /// Takes the hashes of a content out.
    pub(crate) fn remove_blocks(&mut self, content: u64) -> Result<(), IndexError> {
        let (from, to) = (block_key(content, 0), block_key(content + 1, 0));
        self.blocks.retain_in::<&[u8], _>(&from[..]..&to[..], |_, _| false)?;
        self.changed += 1;
        Ok(())
    }

    /// Notes that an entry and all below it is to be taken out.
    pub(crate) fn mark_gone(&mut self, how: Gone, folder: FolderId, name: &[u8]) -> Result<(), IndexError> {
        self.gone.insert(gone_key(how, folder, name).as_slice(), ())?;
        self.changed += 1;
        Ok(())
    }

    /// Whether anything waits to be taken out.
    pub(crate) fn any_gone(&self) -> Result<bool, IndexError> {
        Ok(!self.gone.is_empty()?)
    }

    /// An entry is there after all.
    pub(crate) fn unmark_gone(&mut self, folder: FolderId, name: &[u8]) -> Result<(), IndexError> {
        for how in [Gone::Deleted, Gone::Ignored] {
            if self.gone.remove(gone_key(how, folder, name).as_slice())?.is_some() {
                self.changed += 1;
            }
        }
        Ok(())
    }

    /// Whether something in this folder does.
    pub(crate) fn any_gone_in(&self, folder: FolderId) -> Result<bool, IndexError> {
        for how in [Gone::Deleted, Gone::Ignored] {
            let (from, to) = (gone_key(how, folder, b""), gone_key(how, FolderId(folder.0 + 1), b""));
            if self.gone.range::<&[u8]>(from.as_slice()..to.as_slice())?.next().is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Forgets all such notes: a scan begins.
    pub(crate) fn clear_gone(&mut self) -> Result<(), IndexError> {
        if self.any_gone()? {
            self.gone.retain(|_, ()| false)?;
            self.changed += 1;
        }
        Ok(())
    }

    /// Up to `limit` entries noted as deleted, counted with all below them, and a few of their paths.
    pub(crate) fn count_gone(&self, limit: u64) -> Result<(u64, Vec<Vec<u8>>), IndexError> {
        let (mut count, mut examples) = (0, Vec::new());
        let (from, to) = ([Gone::Deleted.byte()], [Gone::Deleted.byte() + 1]);
        for row in self.gone.range::<&[u8]>(&from[..]..&to[..])? {
            let row = row?;
            let (folder, name) = parse_key(&row.0.value()[1..])?;
            let Some(record) = self.entry(folder, name)? else { continue };
            if examples.len() < 5
                && let Some(above) = self.path_of(folder)?
            {
                examples.push(join(&above, name));
            }
            count += 1;
            if let Kind::Folder(id) = record.kind {
                count += self.count_below(id, limit.saturating_sub(count))?;
            }
            if count >= limit {
                break;
            }
        }
        Ok((count, examples))
    }

    /// Entries below a folder, counted up to `limit`.
    fn count_below(&self, folder: FolderId, limit: u64) -> Result<u64, IndexError> {
        let (mut count, mut waiting) = (0, vec![folder]);
        while let Some(folder) = waiting.pop() {
            let (from, to) = (key(folder, b""), key(FolderId(folder.0 + 1), b""));
            for row in self.entries.range::<&[u8]>(from.as_slice()..to.as_slice())? {
                if count >= limit {
                    return Ok(count);
                }
                count += 1;
                if let Kind::Folder(id) = parse_record(row?.1.value())?.kind {
                    waiting.push(id);
                }
            }
        }
        Ok(count)
    }

    /// Takes out up to `limit` of the entries that are noted so. Returns whether that was all.
    pub(crate) fn remove_gone(&mut self, how: Gone, limit: u64) -> Result<bool, IndexError> {
        let mut removed = 0;
        let (from, to) = ([how.byte()], [how.byte() + 1]);
        loop {
            let next = match self.gone.range::<&[u8]>(&from[..]..&to[..])?.next() {
                Some(row) => row?.0.value().to_vec(),
                None => return Ok(true),
            };
            let (folder, name) = parse_key(&next[1..])?;
            if let (Some(above), Some(record)) = (self.path_of(folder)?, self.entry(folder, name)?)
                && !self.remove_tree(how, folder, name, &join(&above, name), &record, limit, &mut removed)?
            {
                return Ok(false);
            }
            self.gone.remove(next.as_slice())?;
            self.changed += 1;
        }
    }

    /// From the leaves up, so that it can end anywhere and be taken up again. Returns whether it is done.
    fn remove_tree(
        &mut self,
        how: Gone,
        folder: FolderId,
        name: &[u8],
        path: &[u8],
        record: &Record,
        limit: u64,
        removed: &mut u64,
    ) -> Result<bool, IndexError> {
        // Where we are inside of: folder and name of each, its number, the length of its path.
        let mut inside = Vec::new();
        let mut path = path.to_vec();
        let mut at = Some((folder, name.to_vec(), record.clone()));
        loop {
            if *removed >= limit {
                return Ok(false);
            }
            if let Some((folder, name, record)) = at.take() {
                if let Kind::Folder(id) = record.kind {
                    inside.push((folder, name, record, id, path.len()));
                } else {
                    self.remove_entry(how, folder, &name, &path, &record)?;
                    *removed += 1;
                }
            }
            let Some((_, _, _, id, len)) = inside.last() else { return Ok(true) };
            path.truncate(*len);
            if let Some((child, record)) = self.page(*id, None, 1)?.pop() {
                path = join(&path, &child);
                at = Some((*id, child, record));
            } else if let Some((folder, name, record, _, _)) = inside.pop() {
                self.remove_entry(how, folder, &name, &path, &record)?;
                *removed += 1;
            }
        }
    }

    fn remove_entry(
        &mut self,
        how: Gone,
        folder: FolderId,
        name: &[u8],
        path: &[u8],
        record: &Record,
    ) -> Result<(), IndexError> {
        match &record.kind {
            Kind::Folder(id) => {
                self.folders.remove(id.0)?;
                self.forget_inode(*id, record)?;
            }
            Kind::File(Some(content)) if content.blocks != 0 => self.remove_blocks(content.blocks)?,
            _ => {}
        }
        self.uncount(record);
        self.entries.remove(key(folder, name).as_slice())?;
        self.changes.remove(record.sequence)?;
        self.meta.counters.sequence += 1;
        let mut row = vec![how.byte()];
        row.extend_from_slice(path);
        self.changes.insert(self.meta.counters.sequence, row.as_slice())?;
        self.meta.gone += 1;
        self.changed += 1;
        self.forget_old_gone()
    }

    fn forget_inode(&mut self, id: FolderId, record: &Record) -> Result<(), IndexError> {
        if record.stamp.dev == 0 && self.folder_of_inode(record.stamp.ino)? == Some(id) {
            self.inodes.remove(record.stamp.ino)?;
        }
        Ok(())
    }

    /// A folder's entry is about to be replaced by something else: all below it is taken out now, as
    /// nothing would lead there any more.
    fn forget_folder(&mut self, id: FolderId, record: &Record) -> Result<(), IndexError> {
        let above = self.path_of(id)?.unwrap_or_default();
        let mut removed = 0;
        while let Some((child, record)) = self.page(id, None, 1)?.pop() {
            let path = join(&above, &child);
            self.remove_tree(Gone::Deleted, id, &child, &path, &record, u64::MAX, &mut removed)?;
        }
        self.folders.remove(id.0)?;
        self.forget_inode(id, record)
    }

    /// Keeps the number of remembered deletions within its bound, the newest.
    fn forget_old_gone(&mut self) -> Result<(), IndexError> {
        while self.meta.gone > GONE_MAX {
            let mut oldest = None;
            for row in self.changes.range(self.meta.gone_searched + 1..)? {
                let row = row?;
                self.meta.gone_searched = row.0.value();
                if let ChangeRow::Gone(..) = ChangeRow::parse(row.1.value())? {
                    oldest = Some(row.0.value());
                    break;
                }
            }
            let Some(sequence) = oldest else { break };
            self.changes.remove(sequence)?;
            self.meta.gone -= 1;
            self.meta.gone_forgotten = sequence;
        }
        Ok(())
    }

    fn count(&mut self, record: &Record) {
        let counters = &mut self.meta.counters;
        match &record.kind {
            Kind::File(_) => {
                counters.files += 1;
                counters.bytes = counters.bytes.saturating_add(record.stamp.size);
            }
            Kind::Folder(_) => counters.folders += 1,
            Kind::Symlink(_) => counters.symlinks += 1,
        }
    }

    fn uncount(&mut self, record: &Record) {
        let counters = &mut self.meta.counters;
        match &record.kind {
            Kind::File(_) => {
                counters.files = counters.files.saturating_sub(1);
                counters.bytes = counters.bytes.saturating_sub(record.stamp.size);
            }
            Kind::Folder(_) => counters.folders = counters.folders.saturating_sub(1),
            Kind::Symlink(_) => counters.symlinks = counters.symlinks.saturating_sub(1),
        }
    }
}

pub(crate) fn parse_meta(bytes: &[u8]) -> Result<Meta, IndexError> {
    decode_exact("meta", bytes).map_err(|_| IndexError::Damaged("meta"))
}

pub(crate) fn page(
    entries: &impl ReadableTable<&'static [u8], &'static [u8]>,
    folder: FolderId,
    after: Option<&[u8]>,
    count: usize,
) -> Result<Vec<(Vec<u8>, Record)>, IndexError> {
    // No name is empty or holds a NUL, so this is what comes right behind `after`.
    let mut from = key(folder, after.unwrap_or_default());
    from.push(0);
    let to = key(FolderId(folder.0 + 1), b"");
    let mut page = Vec::new();
    for row in entries.range::<&[u8]>(from.as_slice()..to.as_slice())?.take(count) {
        let row = row?;
        page.push((row.0.value()[4..].to_vec(), parse_record(row.1.value())?));
    }
    Ok(page)
}

pub(crate) fn folder_row(
    folders: &impl ReadableTable<u32, &'static [u8]>,
    folder: FolderId,
) -> Result<Option<(FolderId, Vec<u8>)>, IndexError> {
    match folders.get(folder.0)? {
        Some(row) => parse_key(row.value()).map(|(above, name)| Some((above, name.to_vec()))),
        None => Ok(None),
    }
}

pub(crate) fn path_of(
    folders: &impl ReadableTable<u32, &'static [u8]>,
    folder: FolderId,
) -> Result<Option<Vec<u8>>, IndexError> {
    let mut names = Vec::new();
    let mut at = folder;
    while at != FolderId::ROOT {
        let Some((above, name)) = folder_row(folders, at)? else { return Ok(None) };
        // Folders are numbered after those they are in, so this ends.
        if above >= at {
            return Err(IndexError::Damaged("folders"));
        }
        names.push(name);
        at = above;
    }
    names.reverse();
    Ok(Some(names.join(&b'/')))
}

/// A name below a path.
pub(crate) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        return name.to_vec();
    }
    [path, b"/", name].concat()
}

/// Rows of hashes that a file of so many blocks has.
pub(crate) fn rows_of(blocks: u64) -> u32 {
    blocks.div_ceil(BLOCKS_PER_ROW as u64) as u32
}
