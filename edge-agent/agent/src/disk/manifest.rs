//! A manifest in a file: written front to back while a source is read, then read page by page by everybody.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use agent_proto::limits::BLOCK_LEN;
use rustix::io::Errno;
use sync_core::manifest::{
    BlockHash, BlockPlace, Ending, Entry, HASH_ROW_LEN, HEADER_LEN, Manifest, ManifestError, Page, Source,
    Unreadable, Writer,
};
use sync_core::merkle::{Hash, block_hash};
use sync_core::weak::weak_hash;

use super::cache::Cache;

/// Pages kept decoded: a source reads in one place, its receivers in a handful of others. About 30 KiB each.
const PAGES_KEPT: usize = 16;

/// Hashes of blocks read at a time, and how many such stretches are kept, 4 KiB each: blocks come and go in the order of
/// their numbers, in a handful of places at once.
const HASHES_AT_ONCE: u64 = 114;
/// See [`HASHES_AT_ONCE`].
const HASHES_KEPT: usize = 32;

/// Name of the file that a manifest is written to before it is whole.
pub(crate) const PART: &str = "manifest.part";

/// Name of the file where pages wait until all hashes are written.
const PAGES_PART: &str = "pages.part";

/// The bytes of a manifest, in a file that nobody changes.
#[derive(Debug)]
pub(crate) struct ManifestBytes {
    file: Arc<File>,
    len: u64,
}

impl ManifestBytes {
    /// The file, for somebody who serves it.
    pub(crate) fn shared_file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// The file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Source for ManifestBytes {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Unreadable> {
        let read = self.file.read_exact_at(buf, offset);
        read.map_err(|e| Unreadable { code: e.raw_os_error().unwrap_or(0) })
    }
}

/// A checked manifest, read from its file when it is asked.
#[derive(Debug)]
pub(crate) struct ManifestFile {
    manifest: Manifest<ManifestBytes>,
    pages: Mutex<Cache<usize, Arc<Page>>>,
    /// Hashes that were read, [`HASHES_AT_ONCE`] at a time.
    hashes: Mutex<Cache<u64, Arc<[BlockHash]>>>,
}

/// An entry, with the page that it is in.
#[derive(Debug)]
pub(crate) struct EntryRef {
    page: Arc<Page>,
    index: u64,
}

impl Deref for EntryRef {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        self.page.entry(self.index).expect("looked up when this was made")
    }
}

impl EntryRef {
    /// Numbers of its content blocks.
    pub(crate) fn blocks(&self) -> Range<u64> {
        self.page.blocks_of_entry(self.index)
    }
}

/// A content block: where it lies and what it hashes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockInfo {
    /// Index of its file.
    pub(crate) entry: u64,
    /// Position in the file.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u32,
    /// What it must hash to.
    pub(crate) hash: Hash,
}

impl ManifestFile {
    /// Reads and checks the manifest in a file.
    ///
    /// # Errors
    /// If it is none, or breaks a rule.
    pub(crate) fn open(file: Arc<File>) -> Result<Self, ManifestError> {
        let unreadable = |e: io::Error| Unreadable { code: e.raw_os_error().unwrap_or(0) };
        let len = file.metadata().map_err(unreadable)?.len();
        let manifest = Manifest::open(ManifestBytes { file, len })?;
        let (pages, hashes) = (Mutex::new(Cache::new(PAGES_KEPT)), Mutex::new(Cache::new(HASHES_KEPT)));
        Ok(Self { manifest, pages, hashes })
    }

    /// What can be known without reading.
    pub(crate) fn known(&self) -> &Manifest<ManifestBytes> {
        &self.manifest
    }

    /// Number of entries.
    pub(crate) fn entries(&self) -> u64 {
        self.manifest.entries()
    }

    /// Number of content blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.manifest.blocks()
    }

    /// Bytes of all content blocks.
    pub(crate) fn bytes(&self) -> u64 {
        self.manifest.bytes()
    }

    /// Number of pages.
    pub(crate) fn pages(&self) -> usize {
        self.manifest.pages()
    }

    /// A page; kept for the next one who asks.
    pub(crate) fn page(&self, index: usize) -> Result<Arc<Page>, Errno> {
        let lock = || self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = lock().get(&index) {
            return Ok(page);
        }
        let page = Arc::new(self.manifest.page(index).map_err(|e| errno(&e))?);
        lock().insert(index, page.clone());
        Ok(page)
    }

    /// An entry; `NOENT` if there are not so many.
    pub(crate) fn entry(&self, index: u64) -> Result<EntryRef, Errno> {
        let page = self.page(self.manifest.page_of_entry(index).ok_or(Errno::NOENT)?)?;
        Ok(EntryRef { page, index })
    }

    /// Where a content block lies; `None` if there is no such block.
    pub(crate) fn place(&self, block: u64) -> Result<Option<BlockPlace>, Errno> {
        match self.manifest.page_of_block(block) {
            Some(page) => Ok(self.page(page)?.place(block)),
            None => Ok(None),
        }
    }

    /// A content block; `None` if there is no such block.
    pub(crate) fn block(&self, block: u64) -> Result<Option<BlockInfo>, Errno> {
        let Some(BlockPlace { entry, offset, len }) = self.place(block)? else { return Ok(None) };
        Ok(Some(BlockInfo { entry, offset, len, hash: self.hash(block)?.strong }))
    }

    /// The hashes of a content block; `NOENT` if there is no such block.
    fn hash(&self, block: u64) -> Result<BlockHash, Errno> {
        let lock = || self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        let (nth, place) = (block / HASHES_AT_ONCE, (block % HASHES_AT_ONCE) as usize);
        let kept = lock().get(&nth);
        let stretch = match kept {
            Some(stretch) => stretch,
            None => {
                let first = nth * HASHES_AT_ONCE;
                let read: Arc<[BlockHash]> =
                    self.manifest.hashes(first..first + HASHES_AT_ONCE).map_err(|e| errno(&e))?.into();
                lock().insert(nth, read.clone());
                read
            }
        };
        stretch.get(place).copied().ok_or(Errno::NOENT)
    }
}

/// What a manifest that was checked and now cannot be read amounts to.
fn errno(error: &ManifestError) -> Errno {
    match error {
        ManifestError::Unreadable(Unreadable { code }) if *code != 0 => Errno::from_raw_os_error(*code),
        _ => Errno::IO,
    }
}

/// Hashes of the blocks of an encoded manifest.
#[derive(Default)]
pub(crate) struct FileHashes {
    /// What the head vouches for.
    pub(crate) strong: Vec<Hash>,
    /// For finding them elsewhere.
    pub(crate) weak: Vec<u32>,
}

/// Hashes of the blocks of a file that holds an encoded manifest.
pub(crate) fn file_block_hashes(file: &File) -> io::Result<FileHashes> {
    let len = file.metadata()?.len();
    let mut block = vec![0; BLOCK_LEN as usize];
    let mut hashes = FileHashes::default();
    let mut at = 0;
    while at < len {
        let size = (len - at).min(u64::from(BLOCK_LEN)) as usize;
        file.read_exact_at(&mut block[..size], at)?;
        hashes.strong.push(block_hash(&block[..size]));
        hashes.weak.push(weak_hash(&block[..size]));
        at += size as u64;
    }
    Ok(hashes)
}

/// Writes a manifest into a folder as [`PART`].
pub(crate) struct ManifestWriter {
    writer: Writer,
    folder: PathBuf,
    /// The header is left free, the hashes follow.
    out: BufWriter<File>,
    hashes: u64,
    pages: BufWriter<File>,
}

impl ManifestWriter {
    /// Begins a new one.
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        let create =
            |name| File::options().read(true).write(true).create(true).truncate(true).open(folder.join(name));
        let mut out = BufWriter::new(create(PART)?);
        out.seek(SeekFrom::Start(HEADER_LEN))?;
        let pages = BufWriter::new(create(PAGES_PART)?);
        Ok(Self { writer: Writer::default(), folder: folder.to_owned(), out, hashes: 0, pages })
    }

    /// Index of the next entry.
    pub(crate) fn entries(&self) -> u64 {
        self.writer.entries()
    }

    /// Adds the hashes of the next block of the entry that will be pushed next.
    pub(crate) fn push_hash(&mut self, hash: &BlockHash) -> io::Result<()> {
        self.hashes += 1;
        self.out.write_all(&hash.to_row())
    }

    /// Drops the hashes of an entry that is not pushed after all.
    pub(crate) fn drop_hashes(&mut self) -> io::Result<()> {
        if self.hashes > self.writer.blocks() {
            self.hashes = self.writer.blocks();
            self.out.seek(SeekFrom::Start(HEADER_LEN + self.hashes * HASH_ROW_LEN))?;
        }
        Ok(())
    }

    /// Adds an entry whose hashes were pushed. One that breaks a rule is left out, and so are its hashes.
    pub(crate) fn push(&mut self, entry: &Entry) -> io::Result<Result<(), ManifestError>> {
        match self.writer.push(entry) {
            Ok(page) => {
                assert_eq!(self.writer.blocks(), self.hashes, "an entry comes with the hashes of its blocks");
                page.map_or(Ok(()), |page| self.pages.write_all(&page))?;
                Ok(Ok(()))
            }
            Err(error) => {
                self.drop_hashes()?;
                Ok(Err(error))
            }
        }
    }

    /// Puts everything together; the file is not yet on the disk for good.
    pub(crate) fn finish(self) -> io::Result<Result<File, ManifestError>> {
        let Ending { header, page, table } = match self.writer.finish() {
            Ok(ending) => ending,
            Err(error) => return Ok(Err(error)),
        };
        let mut pages = self.pages.into_inner()?;
        pages.rewind()?;
        let mut out = self.out.into_inner()?;
        // `copy_file_range` where the file system knows it.
        io::copy(&mut pages.take(u64::MAX), &mut out)?;
        out.write_all(&page)?;
        out.write_all(&table)?;
        // Hashes of files that were read again may lie beyond.
        let len = out.stream_position()?;
        out.set_len(len)?;
        out.write_all_at(&header, 0)?;
        fs::remove_file(self.folder.join(PAGES_PART))?;
        Ok(Ok(out))
    }
}
