//! Reading an encoded manifest where it lies.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use agent_proto::limits::{ENTRIES_MAX, MANIFEST_LEN_MAX, PAGE_LEN, PATH_LEN_MAX};

use super::check::Checker;
use super::page::{PAGE_LEN_MAX, TABLE_ROW_LEN, TableRow};
use super::{
    BlockHash, Entry, EntryRule, HASH_ROW_LEN, HEADER_LEN, Kind, MANIFEST_VERSION, ManifestError, Page,
    link_stays_inside,
};

/// Bytes of the page table read at a time.
const TABLE_PIECE: u64 = 1024 * TABLE_ROW_LEN;

/// Bytes at the start of a page in which its first path stands: two lengths and the longest path.
const FIRST_PATH_LEN: u64 = 8 + PATH_LEN_MAX as u64;

/// Where the bytes of an encoded manifest are.
pub trait Source {
    /// Number of bytes.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// If they cannot be read, or there are not so many.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Unreadable>;
}

/// The bytes of a manifest cannot be read from where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The system's number for why; 0 if there are too few bytes.
    pub code: i32,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the manifest cannot be read (system error {})", self.code)
    }
}

impl core::error::Error for Unreadable {}

impl From<Unreadable> for ManifestError {
    fn from(error: Unreadable) -> Self {
        Self::Unreadable(error)
    }
}

impl Source for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Unreadable> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let bytes = rest.and_then(|rest| rest.get(..buf.len())).ok_or(Unreadable { code: 0 })?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

impl Source for Vec<u8> {
    fn len(&self) -> u64 {
        Source::len(self.as_slice())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Unreadable> {
        self.as_slice().read_at(offset, buf)
    }
}

impl<S: Source + ?Sized> Source for &S {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Unreadable> {
        (**self).read_at(offset, buf)
    }
}

/// A checked manifest. Resident are 24 bytes for each page of at least 4 KiB; the rest is read when asked for.
#[derive(Debug)]
pub struct Manifest<S> {
    source: S,
    entries: u64,
    blocks: u64,
    bytes: u64,
    pages_start: u64,
    pages_len: u64,
    table: Vec<TableRow>,
}

impl<S: Source> Manifest<S> {
    /// Reads and checks an encoded manifest, front to back and page by page.
    ///
    /// # Errors
    /// If the bytes are not a manifest, or one that breaks a rule.
    pub fn open(source: S) -> Result<Self, ManifestError> {
        let manifest = Self::open_unchecked(source)?;
        let mut checker = Checker::new(manifest.entries);
        for index in 0..manifest.pages() {
            let page = manifest.page(index)?;
            let range = manifest.range_of_page(index);
            let full = range.end - range.start >= PAGE_LEN as u64;
            let next_block = manifest.table.get(index + 1).map_or(manifest.blocks, |row| row.block);
            if page.end_block() != next_block || !full && index + 1 < manifest.pages() {
                return Err(ManifestError::Malformed("the page table"));
            }
            for (_, entry) in page.entries() {
                checker.take(entry)?;
            }
        }
        if (checker.entries, checker.bytes) != (manifest.entries, manifest.bytes) {
            return Err(ManifestError::Malformed("its counts"));
        }
        if checker.turning_links > 0 {
            manifest.check_links()?;
        }
        Ok(manifest)
    }

    /// Reads header and page table; what pages hold is not looked at.
    fn open_unchecked(source: S) -> Result<Self, ManifestError> {
        let malformed = ManifestError::Malformed;
        let mut version = [0];
        if source.is_empty() {
            return Err(malformed("it is empty"));
        }
        source.read_at(0, &mut version)?;
        if version != [MANIFEST_VERSION] {
            return Err(ManifestError::Version(version[0]));
        }
        let mut header = [0; HEADER_LEN as usize];
        if source.len() > MANIFEST_LEN_MAX {
            return Err(ManifestError::TooLarge);
        }
        if source.len() < HEADER_LEN {
            return Err(malformed("its header"));
        }
        source.read_at(0, &mut header)?;
        let number = |nth: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[8 * nth..8 * nth + 8]);
            u64::from_le_bytes(bytes)
        };
        let [entries, blocks, bytes, pages_len, pages] = [1, 2, 3, 4, 5].map(number);
        if entries > ENTRIES_MAX {
            return Err(ManifestError::TooLarge);
        }
        let len = blocks
            .checked_mul(HASH_ROW_LEN)
            .and_then(|len| len.checked_add(pages_len))
            .and_then(|len| len.checked_add(pages.checked_mul(TABLE_ROW_LEN)?))
            .and_then(|len| len.checked_add(HEADER_LEN));
        let spare = header[1..8].iter().chain(&header[48..]).any(|&byte| byte != 0);
        // All pages but the last are full, so that the table cannot be longer than they make it.
        let crowded = pages > pages_len.div_ceil(PAGE_LEN as u64);
        if len != Some(source.len()) || spare || crowded || (pages == 0) != (entries == 0) {
            return Err(malformed("its header"));
        }
        let pages_start = HEADER_LEN + blocks * HASH_ROW_LEN;
        let mut manifest = Self { source, entries, blocks, bytes, pages_start, pages_len, table: Vec::new() };
        manifest.read_table(pages)?;
        Ok(manifest)
    }

    fn read_table(&mut self, pages: u64) -> Result<(), ManifestError> {
        let (start, end) = (self.pages_start + self.pages_len, pages * TABLE_ROW_LEN);
        self.table.reserve_exact(pages as usize);
        let (mut piece, mut at) = (Vec::new(), 0);
        while at < end {
            piece.resize((end - at).min(TABLE_PIECE) as usize, 0);
            self.source.read_at(start + at, &mut piece)?;
            self.table.extend(piece.chunks_exact(TABLE_ROW_LEN as usize).map(TableRow::from_bytes));
            at += piece.len() as u64;
        }
        let last = TableRow { offset: self.pages_len, entry: self.entries, block: self.blocks };
        let mut next = self.table.iter().skip(1).chain([&last]);
        let begins = self.table.first().is_none_or(|first| *first == TableRow::default());
        let good = begins
            && self.table.iter().all(|row| {
                let next = next.next().copied().unwrap_or_default();
                let len = next.offset.checked_sub(row.offset);
                len.is_some_and(|len| (1..=PAGE_LEN_MAX).contains(&len))
                    && next.entry > row.entry
                    && next.block >= row.block
            });
        if good { Ok(()) } else { Err(ManifestError::Malformed("the page table")) }
    }

    /// Checks the links that go up from a folder they name: whether it is one depends on all entries.
    fn check_links(&self) -> Result<(), ManifestError> {
        for index in 0..self.pages() {
            for (_, entry) in self.page(index)?.entries() {
                let Kind::Symlink { target } = &entry.kind else { continue };
                let is_folder = |path: &[u8]| -> Result<bool, ManifestError> {
                    Ok(path.is_empty() || self.find(path)?.is_some_and(|(_, entry)| entry.is_folder()))
                };
                if !link_stays_inside(&entry.path, target, is_folder)? {
                    let (path, rule) = (entry.path.clone(), EntryRule::UnsafeLink);
                    return Err(ManifestError::Entry { path, rule });
                }
            }
        }
        Ok(())
    }

    /// Where its bytes are.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Number of entries.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Number of content blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes of all content blocks: of all files, without the blocks that are nothing but hole.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.table.len()
    }

    /// The page that holds an entry.
    pub fn page_of_entry(&self, entry: u64) -> Option<usize> {
        let behind = self.table.partition_point(|row| row.entry <= entry);
        (entry < self.entries).then(|| behind - 1)
    }

    /// The page that holds the entry of a content block.
    pub fn page_of_block(&self, block: u64) -> Option<usize> {
        // Pages without blocks begin with the same one as the next.
        let behind = self.table.partition_point(|row| row.block <= block);
        (block < self.blocks).then(|| behind - 1)
    }

    /// Reads a page.
    ///
    /// # Errors
    /// If it cannot be read, or is not what it was.
    ///
    /// # Panics
    /// If there are not so many pages.
    pub fn page(&self, index: usize) -> Result<Page, ManifestError> {
        let range = self.range_of_page(index);
        let mut bytes = alloc::vec![0; (range.end - range.start) as usize];
        self.source.read_at(self.pages_start + range.start, &mut bytes)?;
        let row = self.table[index];
        let end = self.table.get(index + 1).map_or(self.entries, |next| next.entry);
        Page::decode(&bytes, row.entry..end, row.block)
    }

    /// Where the page lies behind the start of the first one.
    fn range_of_page(&self, index: usize) -> Range<u64> {
        let end = self.table.get(index + 1).map_or(self.pages_len, |next| next.offset);
        self.table[index].offset..end
    }

    /// The hashes of a content block.
    ///
    /// # Errors
    /// If they cannot be read, or there is no such block.
    pub fn hash(&self, block: u64) -> Result<BlockHash, ManifestError> {
        if block >= self.blocks {
            return Err(ManifestError::Malformed("there is no such block"));
        }
        let mut row = [0; HASH_ROW_LEN as usize];
        self.source.read_at(HEADER_LEN + block * HASH_ROW_LEN, &mut row)?;
        Ok(BlockHash::from_row(&row))
    }

    /// The hashes of consecutive content blocks; fewer if the manifest ends before.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn hashes(&self, blocks: Range<u64>) -> Result<Vec<BlockHash>, ManifestError> {
        let end = blocks.end.min(self.blocks);
        let count = end.saturating_sub(blocks.start);
        let mut rows = alloc::vec![0; (count * HASH_ROW_LEN) as usize];
        self.source.read_at(HEADER_LEN + blocks.start.min(end) * HASH_ROW_LEN, &mut rows)?;
        let (rows, _) = rows.as_chunks::<{ HASH_ROW_LEN as usize }>();
        Ok(rows.iter().map(BlockHash::from_row).collect())
    }

    /// The entry with this path, and its index.
    ///
    /// # Errors
    /// If a page cannot be read.
    pub fn find(&self, path: &[u8]) -> Result<Option<(u64, Entry)>, ManifestError> {
        // The last page that begins at or before it.
        let (mut low, mut high) = (0, self.pages());
        while low < high {
            let middle = low + (high - low) / 2;
            if super::compare_paths(&self.first_path(middle)?, path).is_gt() {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        let Some(index) = low.checked_sub(1) else { return Ok(None) };
        Ok(self.page(index)?.find(path).map(|(index, entry)| (index, entry.clone())))
    }

    /// Path of a page's first entry.
    fn first_path(&self, index: usize) -> Result<Vec<u8>, ManifestError> {
        let range = self.range_of_page(index);
        let len = (range.end - range.start).min(FIRST_PATH_LEN);
        let mut bytes = alloc::vec![0; len as usize];
        self.source.read_at(self.pages_start + range.start, &mut bytes)?;
        Ok(super::page::first_path(&bytes)?.to_vec())
    }
}
