//! Which files have a content: a sorted table of 16 bytes a file, in a flat file beside the database (§2.3).
//!
//! It is a hint and never believed: a row leads to an entry, whose own record decides. So rows of what
//! is gone may stay until the next merge, and a lost table is made again from the index.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sync_core::merkle::Hash;

use crate::index::{IndexError, rows_since};
use crate::limits::{CONTENT_PENDING_MIN, PLACES_MAX};
use crate::snapshot::Snapshot;

const NAME: &str = "contents";
const NEW_NAME: &str = "contents.new";
const MAGIC: &[u8; 8] = b"FLCONT\x00\x01";
/// Magic, sequence up to which the index was taken in, number of rows.
const HEADER: usize = 24;
const ROW: usize = 16;

/// The first 8 bytes of a content's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContentKey(pub u64);

impl ContentKey {
    /// Of a content's Merkle root.
    pub fn of(root: &Hash) -> Self {
        let mut first = [0; 8];
        first.copy_from_slice(&root[..8]);
        Self(u64::from_be_bytes(first))
    }
}

/// The entry last changed at `sequence` had this content then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) key: ContentKey,
    pub(crate) sequence: u64,
}

impl Row {
    fn to_bytes(self) -> [u8; ROW] {
        let mut bytes = [0; ROW];
        bytes[..8].copy_from_slice(&self.key.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    fn parse(bytes: [u8; ROW]) -> Self {
        let whole = u128::from_be_bytes(bytes);
        Self { key: ContentKey((whole >> 64) as u64), sequence: whole as u64 }
    }
}

pub(crate) struct ContentTable {
    folder: PathBuf,
    file: Option<File>,
    /// Rows in the file, and the sequence up to which it was made.
    rows: u64,
    up_to: u64,
    /// Rows since then, sorted up to `sorted`.
    pending: Vec<Row>,
    sorted: usize,
    /// Whether `pending` holds all rows since then.
    loaded: bool,
}

impl ContentTable {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            file: None,
            rows: 0,
            up_to: 0,
            pending: Vec::new(),
            sorted: 0,
            loaded: false,
        }
    }

    /// Opens the file; one that is none is passed over. `sequence` is the index's.
    pub(crate) fn open(&mut self, sequence: u64) {
        if let Ok(Some((file, up_to, rows))) = open_file(&self.folder.join(NAME)) {
            // An index that was begun anew counts from one again.
            if up_to <= sequence {
                (self.file, self.up_to, self.rows) = (Some(file), up_to, rows);
            }
        }
        self.loaded = self.up_to == sequence;
    }

    /// Takes in what came since the file was made: the first time that somebody asks, so that opening an
    /// index does not wait for it.
    pub(crate) fn load(&mut self, snapshot: &Snapshot) -> Result<(), IndexError> {
        if self.loaded {
            return Ok(());
        }
        let (mut since, most) = (Vec::new(), self.pending_max());
        rows_since(snapshot, self.up_to, &mut |row| {
            // Beyond the bound the rest is found by the merge below.
            if since.len() <= most {
                since.push(row);
            }
            Ok(())
        })?;
        (self.pending, self.sorted) = (Vec::new(), 0);
        self.add(since);
        if self.wants_merge() {
            self.merge(snapshot)?;
        }
        self.loaded = true;
        Ok(())
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded
    }

    fn pending_max(&self) -> usize {
        CONTENT_PENDING_MIN.max(self.rows as usize / 8)
    }

    /// Whether so much came since the file was made that merging it is worth it at the end of a scan: it
    /// has to be read anew after a restart.
    pub(crate) fn is_behind(&self) -> bool {
        self.pending.len() > 4096.max(self.rows as usize / 64)
    }

    pub(crate) fn wants_merge(&self) -> bool {
        self.pending.len() > self.pending_max()
    }

    pub(crate) fn add(&mut self, rows: Vec<Row>) {
        self.pending.extend(rows);
        if self.pending.len() - self.sorted > 4096 {
            self.pending.sort_unstable();
            self.sorted = self.pending.len();
        }
    }

    /// Sequences of entries that had this content, the newest rows first; 16 at most.
    pub(crate) fn find(&self, key: ContentKey) -> io::Result<Vec<u64>> {
        let (sorted, tail) = self.pending.split_at(self.sorted);
        let from = sorted.partition_point(|row| row.key < key);
        let recent = tail.iter().chain(sorted[from..].iter().take_while(|row| row.key == key));
        let mut found: Vec<u64> =
            recent.filter(|row| row.key == key).map(|row| row.sequence).take(PLACES_MAX).collect();
        let Some(file) = &self.file else { return Ok(found) };
        let (mut low, mut high) = (0, self.rows);
        while low < high {
            let middle = low + (high - low) / 2;
            if read_row(file, middle)?.key < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        while low < self.rows && found.len() < PLACES_MAX {
            let row = read_row(file, low)?;
            if row.key != key {
                break;
            }
            found.push(row.sequence);
            low += 1;
        }
        Ok(found)
    }

    /// Writes a new file with all of it. Where half of the rows lead nowhere, it is made from the index.
    pub(crate) fn merge(&mut self, snapshot: &Snapshot) -> Result<(), IndexError> {
        let now = snapshot.counters();
        if self.rows > 2 * now.files + CONTENT_PENDING_MIN as u64 {
            (self.file, self.rows, self.up_to) = (None, 0, 0);
        }
        (self.pending, self.sorted, self.loaded) = (Vec::new(), 0, true);
        // In portions, so that a table made from nothing does not take all memory.
        let mut portion = Vec::new();
        let after = self.up_to;
        rows_since(snapshot, after, &mut |row| {
            portion.push(row);
            if portion.len() > self.pending_max() {
                let last = row.sequence;
                self.write_file(std::mem::take(&mut portion), last)?;
            }
            Ok(())
        })?;
        Ok(self.write_file(portion, now.sequence)?)
    }

    /// Merges rows into the file: written beside it, synced, renamed.
    fn write_file(&mut self, mut new: Vec<Row>, up_to: u64) -> io::Result<()> {
        new.sort_unstable();
        let path = self.folder.join(NEW_NAME);
        let count = self.rows + new.len() as u64;
        let mut out = BufWriter::with_capacity(1 << 18, File::create(&path)?);
        out.write_all(MAGIC)?;
        out.write_all(&up_to.to_be_bytes())?;
        out.write_all(&count.to_be_bytes())?;
        let mut new = new.into_iter().peekable();
        if self.rows > 0 {
            let mut old = BufReader::with_capacity(1 << 18, File::open(self.folder.join(NAME))?);
            old.read_exact(&mut [0; HEADER])?;
            for _ in 0..self.rows {
                let mut bytes = [0; ROW];
                old.read_exact(&mut bytes)?;
                let row = Row::parse(bytes);
                while let Some(before) = new.next_if(|new| *new < row) {
                    out.write_all(&before.to_bytes())?;
                }
                out.write_all(&bytes)?;
            }
        }
        for row in new {
            out.write_all(&row.to_bytes())?;
        }
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_data()?;
        std::fs::rename(&path, self.folder.join(NAME))?;
        self.file = Some(File::open(self.folder.join(NAME))?);
        (self.rows, self.up_to) = (count, up_to);
        Ok(())
    }
}

fn open_file(path: &Path) -> io::Result<Option<(File, u64, u64)>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    let rows = number(16);
    let fits = rows.checked_mul(ROW as u64).and_then(|len| len.checked_add(HEADER as u64));
    if header[..8] != MAGIC[..] || fits != Some(file.metadata()?.len()) {
        return Ok(None);
    }
    Ok(Some((file, number(8), rows)))
}

fn read_row(file: &File, row: u64) -> io::Result<Row> {
    let mut bytes = [0; ROW];
    file.read_exact_at(&mut bytes, HEADER as u64 + row * ROW as u64)?;
    Ok(Row::parse(bytes))
}
