//! The base of a log whose beginning is in an archive (`events/LOG_FORMAT.md` §8): where it begins here, and what is
//! needed to go on without what came before.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::record::LogId;
use super::segment;
use crate::limits::{MAX_BASE_BYTES, MAX_BASE_NOTE_BYTES};
use crate::position::{Position, StreamName};

/// Its file in the log's folder.
const NAME: &str = "base";

const MAGIC: [u8; 8] = *b"FLOTBAS\n";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 48;
const CHECKSUM_BYTES: usize = 4;

/// Where a log begins in its folder, and what whoever archived the rest noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The last position that is not in the folder any more.
    pub position: Position,
    /// The log it belongs to.
    pub log: LogId,
    /// Streams whose last record is at or before the position, with that record, by name.
    pub(crate) streams: Vec<(StreamName, Position)>,
    /// The bytes given when the beginning was moved.
    pub note: Vec<u8>,
}

/// Why a base can't be used.
#[derive(Debug)]
pub(crate) enum Flaw {
    Io(io::Error),
    Damaged(&'static str),
    Unsupported(String),
}

impl From<io::Error> for Flaw {
    fn from(error: io::Error) -> Flaw {
        Flaw::Io(error)
    }
}

impl Base {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(HEADER_BYTES as u16).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.position.0.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.log.0);
        // Both are held to MAX_BASE_BYTES before anything is written.
        bytes[40..44].copy_from_slice(&(self.streams.len() as u32).to_le_bytes());
        bytes[44..48].copy_from_slice(&(self.note.len() as u32).to_le_bytes());
        for (stream, last) in &self.streams {
            let name = stream.as_str().as_bytes();
            // A name has at most 200 bytes.
            bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(&last.0.to_le_bytes());
        }
        bytes.extend_from_slice(&self.note);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Base, Flaw> {
        let (told, crc) =
            bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(Flaw::Damaged("it is cut short"))?;
        if told.len() < HEADER_BYTES || told[0..8] != MAGIC {
            return Err(Flaw::Damaged("it does not begin as a base does"));
        }
        if u32::from_le_bytes(*crc) != crc32fast::hash(told) {
            return Err(Flaw::Damaged("its checksum does not match"));
        }
        let version = u16::from_le_bytes([told[8], told[9]]);
        if version != VERSION {
            return Err(Flaw::Unsupported(format!(
                "format version {version}, this program knows {VERSION}; use a newer one"
            )));
        }
        if told[10..12] != (HEADER_BYTES as u16).to_le_bytes() || told[12..16] != [0; 4] {
            return Err(Flaw::Unsupported("unknown flags or header length".to_owned()));
        }
        let mut fields = Fields(&told[16..]);
        let short = || Flaw::Damaged("its lengths are wrong");
        let position = Position(fields.u64().ok_or_else(short)?);
        let log = LogId(fields.take().ok_or_else(short)?);
        let count = u32::from_le_bytes(fields.take().ok_or_else(short)?);
        let note = u32::from_le_bytes(fields.take().ok_or_else(short)?) as usize;
        let mut streams: Vec<(StreamName, Position)> = Vec::new();
        for _ in 0..count {
            let len = usize::from(u16::from_le_bytes(fields.take().ok_or_else(short)?));
            let name = fields.some(len).ok_or_else(short)?;
            let stream =
                StreamName::from_bytes(name).map_err(|_| Flaw::Damaged("a stream's name is wrong"))?;
            let last = Position(fields.u64().ok_or_else(short)?);
            let sorted = streams.last().is_none_or(|(before, _)| *before < stream);
            if !sorted || last == Position::ZERO || last > position {
                return Err(Flaw::Damaged("its streams are wrong"));
            }
            streams.push((stream, last));
        }
        if fields.0.len() != note || note > MAX_BASE_NOTE_BYTES || position == Position::ZERO {
            return Err(short());
        }
        Ok(Base { position, log, streams, note: fields.0.to_vec() })
    }
}

/// What is left to read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn some(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.some(N)?.try_into().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

/// Where the base of the log in `dir` is.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

/// The base of the log in `dir`, if it does not begin with its first record.
pub(crate) fn load(dir: &Path) -> Result<Option<Base>, Flaw> {
    let file = match File::open(path(dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_BASE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_BASE_BYTES {
        return Err(Flaw::Damaged("it is larger than any base"));
    }
    Base::decode(&bytes).map(Some)
}

/// Puts a base into place; it is durable when this returns.
pub(crate) fn store(dir: &Path, base: &Base) -> io::Result<()> {
    let bytes = base.encode();
    if bytes.len() > MAX_BASE_BYTES || base.note.len() > MAX_BASE_NOTE_BYTES {
        return Err(io::Error::other("the log has too many streams, or the note is too long, for a base"));
    }
    let (path, beside) = (path(dir), dir.join("base.new"));
    // What a crash left is of no use, and could be somebody's link.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    segment::owner_only(&mut options);
    let mut file = options.open(&beside)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&beside, &path)?;
    segment::sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Base {
        let stream = |name: &str, last| (StreamName::new(name).unwrap(), Position(last));
        Base {
            position: Position(77),
            log: LogId([3; 16]),
            streams: vec![stream("a", 77), stream("run/1", 5)],
            note: b"a note".to_vec(),
        }
    }

    #[test]
    fn a_base_round_trips_and_no_flip_or_cut_passes() {
        let bytes = sample().encode();
        assert_eq!(Base::decode(&bytes).unwrap(), sample());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Base::decode(&flipped), Err(Flaw::Damaged(_))), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(matches!(Base::decode(&bytes[..cut]), Err(Flaw::Damaged(_))), "cut at {cut}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_good_checksum_too() {
        let signed = |change: fn(&mut Vec<u8>)| {
            let mut bytes = sample().encode();
            bytes.truncate(bytes.len() - CHECKSUM_BYTES);
            change(&mut bytes);
            let crc = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            Base::decode(&bytes)
        };
        assert!(signed(|_| {}).is_ok());
        assert!(matches!(signed(|b| b[8] = 2), Err(Flaw::Unsupported(_))));
        assert!(matches!(signed(|b| b[12] = 1), Err(Flaw::Unsupported(_))));
        let bad: [fn(&mut Vec<u8>); 6] = [
            |b| b[16] = 0,                  // no position
            |b| b[16] = 76,                 // a stream that ends behind it
            |b| b[40] = 3,                  // more streams than there are
            |b| b[43] = 0xff,               // many more
            |b| b[44] = 7,                  // a longer note
            |b| b[HEADER_BYTES + 2] = b'z', // not sorted
        ];
        for (nth, change) in bad.into_iter().enumerate() {
            assert!(matches!(signed(change), Err(Flaw::Damaged(_))), "case {nth}");
        }
    }
}
