//! Writing a manifest front to back: entries in order become pages, the caller keeps the hashes.

use alloc::vec::Vec;

use agent_proto::limits::{ENTRIES_MAX, ENTRY_LEN_MAX, MANIFEST_LEN_MAX, PAGE_LEN};

use super::check::Checker;
use super::page::{Context, TABLE_ROW_LEN, TableRow, put};
use super::{BlockHash, Entry, EntryRule, HASH_ROW_LEN, HEADER_LEN, MANIFEST_VERSION, ManifestError};

/// Makes pages of entries that come in order.
///
/// The encoded manifest is [`Ending::header`], a row ([`BlockHash::to_row`]) for each content block in the order of
/// entries, the pages as they are given out, [`Ending::page`], [`Ending::table`].
pub struct Writer {
    checker: Checker,
    page: Vec<u8>,
    context: Context,
    first: TableRow,
    table: Vec<u8>,
}

/// What comes when all entries are written.
pub struct Ending {
    /// The first bytes of the encoded manifest.
    pub header: [u8; HEADER_LEN as usize],
    /// The last page; may be empty.
    pub page: Vec<u8>,
    /// What follows the last page.
    pub table: Vec<u8>,
}

impl Default for Writer {
    fn default() -> Self {
        Self {
            checker: Checker::new(ENTRIES_MAX),
            page: Vec::new(),
            context: Context::default(),
            first: TableRow::default(),
            table: Vec::new(),
        }
    }
}

impl Writer {
    /// Number of entries so far: the index of the next one.
    pub fn entries(&self) -> u64 {
        self.checker.entries
    }

    /// Number of content blocks so far.
    pub fn blocks(&self) -> u64 {
        self.checker.blocks
    }

    /// Adds an entry; gives a page if that makes it full. Whether symlinks that go up from a folder that they name
    /// ([`super::link_stays_inside`]) do so from a real one is left to the caller.
    ///
    /// # Errors
    /// If the entry breaks a rule; it is left out then and the next one may be added.
    pub fn push(&mut self, entry: &Entry) -> Result<Option<Vec<u8>>, ManifestError> {
        let (first, at) = (self.first_of_next(), self.page.len());
        self.checker.take(entry)?;
        if at == 0 {
            self.first = first;
        }
        put(&mut self.page, &mut self.context, entry);
        // What the limits allow fits; they are checked above.
        assert!(
            self.page.len() - at <= ENTRY_LEN_MAX,
            "the limits of an entry's parts keep it below its own"
        );
        Ok((self.page.len() >= PAGE_LEN).then(|| self.end_page()))
    }

    /// Ends the manifest.
    ///
    /// # Errors
    /// If it is longer than [`MANIFEST_LEN_MAX`].
    pub fn finish(mut self) -> Result<Ending, ManifestError> {
        let page = if self.page.is_empty() { Vec::new() } else { self.end_page() };
        let (pages_len, table_len) = (self.first.offset, self.table.len() as u64);
        let mut header = [0; HEADER_LEN as usize];
        header[0] = MANIFEST_VERSION;
        let numbers = [
            self.checker.entries,
            self.checker.blocks,
            self.checker.bytes,
            pages_len,
            table_len / TABLE_ROW_LEN,
        ];
        for (place, number) in header[8..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let hashes_len = self.checker.blocks.checked_mul(HASH_ROW_LEN).ok_or(ManifestError::TooLarge)?;
        if HEADER_LEN + hashes_len + pages_len + table_len > MANIFEST_LEN_MAX {
            return Err(ManifestError::TooLarge);
        }
        Ok(Ending { header, page, table: self.table })
    }

    fn first_of_next(&self) -> TableRow {
        TableRow { offset: self.first.offset, entry: self.checker.entries, block: self.checker.blocks }
    }

    fn end_page(&mut self) -> Vec<u8> {
        self.table.extend(self.first.to_bytes());
        self.first.offset += self.page.len() as u64;
        self.context = Context::default();
        core::mem::take(&mut self.page)
    }
}

/// Encodes a manifest that fits in memory from its entries, sorted as [`super::compare_paths`] says, and the hashes
/// of the content blocks of each.
///
/// # Errors
/// The first entry that breaks a rule.
pub fn encode<H: AsRef<[BlockHash]>>(
    entries: impl IntoIterator<Item = (Entry, H)>,
) -> Result<Vec<u8>, ManifestError> {
    let (mut writer, mut rows, mut pages) = (Writer::default(), Vec::new(), Vec::new());
    for (entry, hashes) in entries {
        let hashes = hashes.as_ref();
        if entry.kind.blocks() != hashes.len() as u64 {
            return Err(ManifestError::Entry { path: entry.path, rule: EntryRule::HashCount });
        }
        pages.extend(writer.push(&entry)?.into_iter().flatten());
        rows.extend(hashes.iter().flat_map(BlockHash::to_row));
    }
    let Ending { header, page, table } = writer.finish()?;
    Ok([&header[..], &rows, &pages, &page, &table].concat())
}
