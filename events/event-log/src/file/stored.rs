//! One segment file read by itself, record by record: for whoever copies or checks segments without opening a log.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::reader::{Records, Stop, damaged};
use super::record::{Codec, LogId};
use super::segment::{self, Header, HeaderFlaw};
use crate::error::{OpenError, ReadError};
use crate::position::Position;

/// Walks a segment that nobody writes to, verifying every checksum; it has to be whole to its last byte.
pub struct SegmentReader {
    path: PathBuf,
    header: Header,
    records: Records,
    next: Position,
}

/// A record where it lies in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredRecord<'a> {
    /// Its place in the log.
    pub position: Position,
    /// The name of its stream, as it is stored.
    pub stream: &'a [u8],
    /// The bytes as given to `append`.
    pub bytes: &'a [u8],
}

impl SegmentReader {
    /// Reads the header of the segment in `file`, which is named `path` in errors. Blocks, as everything here does.
    ///
    /// # Errors
    /// [`OpenError::Damaged`], [`OpenError::Unsupported`], [`OpenError::Io`].
    pub fn new(mut file: File, path: &Path) -> Result<SegmentReader, OpenError> {
        let io = |source| OpenError::Io { doing: "read", path: path.to_path_buf(), source };
        let broken = |what: &str| OpenError::Damaged(damaged(Position::ZERO, path, 0, what));
        let end = file.metadata().map_err(io)?.len();
        if end < segment::HEADER_BYTES as u64 {
            return Err(broken("the file ends within the segment's header"));
        }
        let mut bytes = [0; segment::HEADER_BYTES];
        file.read_exact(&mut bytes).map_err(io)?;
        let header = Header::decode(&bytes).map_err(|flaw| match flaw {
            HeaderFlaw::Damaged(what) => broken(what),
            HeaderFlaw::Unsupported(what) => OpenError::Unsupported { path: path.to_path_buf(), what },
        })?;
        let codec = Codec::new(header.log);
        let records = Records::new(file, codec, segment::HEADER_BYTES as u64, end).map_err(io)?;
        Ok(SegmentReader { path: path.to_path_buf(), header, records, next: header.first })
    }

    /// The log that it belongs to.
    pub fn log_id(&self) -> LogId {
        self.header.log
    }

    /// The position of its first record.
    pub fn first(&self) -> Position {
        self.header.first
    }

    /// The next record; none at the end.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] names the place, [`ReadError::Io`].
    pub fn next_record(&mut self) -> Result<Option<StoredRecord<'_>>, ReadError> {
        let (position, offset, path) = (self.next, self.records.offset(), &self.path);
        match self.records.next() {
            Ok(None) => Ok(None),
            Ok(Some(record)) if record.position != position => {
                let what = format!("the record says it is {}", record.position);
                Err(damaged(position, path, offset, &what).into())
            }
            Ok(Some(record)) => {
                self.next = position.next();
                Ok(Some(StoredRecord { position, stream: record.stream, bytes: record.payload }))
            }
            Err(Stop::Flaw(flaw)) => Err(damaged(position, path, offset, flaw.describe()).into()),
            Err(Stop::Io(source)) => Err(ReadError::Io { path: path.clone(), source }),
        }
    }
}
