//! Reading segments: [`Records`] walks one file record by record, verifying each; [`read_page`] makes a page of
//! entries over as many segments as it takes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use super::base;
use super::index::Index;
use super::record::{Codec, Flaw, Record};
use crate::error::{Damage, Place, ReadError};
use crate::position::{Entry, Position, ReadLimit, StreamName};

/// Bytes asked of the system at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// Walks the records of one segment.
pub(crate) struct Records {
    file: File,
    codec: Codec,
    /// `buffer[start..]` is what has been read and not been walked over.
    buffer: Vec<u8>,
    start: usize,
    /// Offset in the file of `buffer[start]`.
    offset: u64,
    /// Nothing at or behind this offset is read.
    end: u64,
}

/// Why walking stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    Flaw(Flaw),
    Io(io::Error),
}

impl Records {
    pub(crate) fn new(mut file: File, codec: Codec, offset: u64, end: u64) -> io::Result<Records> {
        file.seek(SeekFrom::Start(offset))?;
        Ok(Records { file, codec, buffer: Vec::new(), start: 0, offset, end })
    }

    /// Where the next record begins; after a [`Stop`], where the flawed one does.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next record, `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Record<'_>>, Stop> {
        if self.offset >= self.end {
            return Ok(None);
        }
        self.fill(super::record::HEADER_BYTES).map_err(Stop::Io)?;
        let len = self.codec.record_len(&self.buffer[self.start..]).map_err(Stop::Flaw)?;
        self.fill(len).map_err(Stop::Io)?;
        let at = self.start;
        // Verified before stepping over it, so that `offset` names the flawed record.
        self.codec.decode(&self.buffer[at..]).map_err(Stop::Flaw).map(|record| {
            self.start = at + len;
            self.offset += len as u64;
            Some(record)
        })
    }

    /// Everything from the current place to the end.
    pub(crate) fn rest(&mut self) -> io::Result<&[u8]> {
        let rest = usize::try_from(self.end.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        self.fill(rest)?;
        Ok(&self.buffer[self.start..])
    }

    /// Has at least `need` bytes at hand, or all that there are.
    fn fill(&mut self, need: usize) -> io::Result<()> {
        let have = self.buffer.len() - self.start;
        if have >= need {
            return Ok(());
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let left = self.end.saturating_sub(self.offset + have as u64);
        let more = (need - have).max(CHUNK_BYTES).min(usize::try_from(left).unwrap_or(usize::MAX)) as u64;
        (&mut self.file).take(more).read_to_end(&mut self.buffer)?;
        Ok(())
    }
}

/// A page of entries from `from` on. Blocks.
pub(crate) fn read_page(
    index: &RwLock<Index>,
    codec: &Codec,
    from: Position,
    limit: ReadLimit,
) -> Result<Vec<Entry>, ReadError> {
    let mut page =
        Page { limit: limit.clamped(), bytes: 0, entries: Vec::new(), next: Position(from.0.max(1)) };
    while !page.full() {
        let (spot, damage) = {
            let index = index.read().unwrap_or_else(PoisonError::into_inner);
            if page.next < index.first() {
                // Moved on between two segments: what was read is good.
                let archived = ReadError::Archived { first: index.first() };
                return if page.entries.is_empty() { Err(archived) } else { Ok(page.entries) };
            }
            (index.locate(page.next), index.damage.clone())
        };
        let Some(spot) = spot else {
            return match damage {
                Some(damage) if page.entries.is_empty() => Err(damage.into()),
                _ => Ok(page.entries),
            };
        };
        if let Err(error) = page.take_segment(codec, &spot) {
            return if page.entries.is_empty() { Err(error) } else { Ok(page.entries) };
        }
    }
    Ok(page.entries)
}

/// A page in the making.
struct Page {
    limit: ReadLimit,
    bytes: usize,
    entries: Vec<Entry>,
    /// The position that the next entry must have.
    next: Position,
}

impl Page {
    fn full(&self) -> bool {
        self.entries.len() >= self.limit.entries
            || (self.bytes >= self.limit.bytes && !self.entries.is_empty())
    }

    /// Why a segment's file is not there: it was archived meanwhile, here or by the process that writes the log.
    fn gone(&self, spot: &super::index::Spot) -> ReadError {
        let base = spot.path.parent().and_then(|dir| base::load(dir).ok().flatten());
        match base {
            Some(base) if self.next <= base.position => ReadError::Archived { first: base.position.next() },
            _ => damaged(self.next, &spot.path, spot.offset, "the segment file is gone").into(),
        }
    }

    /// Takes what fits from one segment.
    fn take_segment(&mut self, codec: &Codec, spot: &super::index::Spot) -> Result<(), ReadError> {
        let io = |source| ReadError::Io { path: spot.path.to_path_buf(), source };
        let file = File::open(&spot.path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => self.gone(spot),
            _ => io(source),
        })?;
        let mut records = Records::new(file, codec.clone(), spot.offset, spot.end).map_err(io)?;
        let mut expected = spot.at;
        loop {
            let offset = records.offset();
            let damage = |what: &str| ReadError::from(damaged(expected, &spot.path, offset, what));
            let record = match records.next() {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(()),
                Err(Stop::Io(error)) => return Err(io(error)),
                Err(Stop::Flaw(flaw)) => return Err(damage(flaw.describe())),
            };
            if record.position != expected {
                return Err(damage(&format!("the record says it is {}", record.position)));
            }
            if expected >= self.next {
                let over = self.bytes + record.payload.len() > self.limit.bytes && !self.entries.is_empty();
                if over || self.full() {
                    // The page is full: whatever more would fit, the caller gets it next time.
                    self.limit.entries = self.entries.len();
                    return Ok(());
                }
                let stream =
                    StreamName::from_bytes(record.stream).map_err(|error| damage(&error.to_string()))?;
                self.bytes += record.payload.len();
                self.entries.push(Entry { position: expected, stream, bytes: record.payload.to_vec() });
                self.next = expected.next();
            }
            expected = expected.next();
        }
    }
}

impl Flaw {
    /// In words, for a place that should hold a whole record.
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Flaw::Short => "the file ends within the record",
            Flaw::Wrong(what) => what,
        }
    }
}

/// A damage at a place in a file.
pub(crate) fn damaged(position: Position, path: &Path, offset: u64, what: &str) -> Damage {
    let place = Place::File { path: PathBuf::from(path), offset };
    Damage { position, place, what: what.to_owned() }
}
