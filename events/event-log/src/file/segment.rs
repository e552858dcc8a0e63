//! Segment files (`events/LOG_FORMAT.md` §1, §2): their names, their header, making a new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::record::LogId;
use crate::position::Position;

/// Bytes of a segment's header.
pub(crate) const HEADER_BYTES: usize = 48;

const MAGIC: [u8; 8] = *b"FLOTSEG\n";
const VERSION: u16 = 1;
const DIGITS: usize = 20;
const SUFFIX: &str = ".seg";

/// What a segment's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) first: Position,
    pub(crate) log: LogId,
}

/// Why a segment's first bytes are not a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeaderFlaw {
    /// They are wrong.
    Damaged(&'static str),
    /// They are right, and of a version or kind this code does not know.
    Unsupported(String),
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(HEADER_BYTES as u16).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.log.0);
        let crc = crc32fast::hash(&bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, HeaderFlaw> {
        if bytes[0..8] != MAGIC {
            return Err(HeaderFlaw::Damaged("the file does not begin as a segment does"));
        }
        if bytes[44..48] != crc32fast::hash(&bytes[..44]).to_le_bytes() {
            return Err(HeaderFlaw::Damaged("the checksum of the segment's header does not match"));
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(HeaderFlaw::Unsupported(format!(
                "format version {version}, this program knows {VERSION}; use a newer one"
            )));
        }
        if bytes[10..12] != (HEADER_BYTES as u16).to_le_bytes() || bytes[12..16] != [0; 4] {
            return Err(HeaderFlaw::Unsupported("unknown flags or header length".to_owned()));
        }
        let mut first = [0; 8];
        first.copy_from_slice(&bytes[16..24]);
        let mut log = [0; 16];
        log.copy_from_slice(&bytes[24..40]);
        Ok(Header { first: Position(u64::from_le_bytes(first)), log: LogId(log) })
    }
}

/// The file name of the segment that begins with `first`.
pub fn file_name(first: Position) -> String {
    format!("{:0DIGITS$}{SUFFIX}", first.0)
}

/// The position a segment's file name stands for; `None` if it is no segment's name.
fn parse_file_name(name: &str) -> Option<Position> {
    let digits = name.strip_suffix(SUFFIX)?;
    if digits.len() != DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().map(Position)
}

/// The segments in `dir`, in the order of the log.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<(Position, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(first) = entry.file_name().to_str().and_then(parse_file_name) {
            segments.push((first, entry.path()));
        }
    }
    segments.sort();
    Ok(segments)
}

/// Makes a segment with nothing but its header, durable together with its name if `sync`. Removes it again when that
/// fails; the second error is set when even that failed.
pub(crate) fn create(
    dir: &Path,
    header: Header,
    sync: bool,
) -> Result<(File, PathBuf), (io::Error, Option<io::Error>)> {
    let path = dir.join(file_name(header.first));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    owner_only(&mut options);
    let mut file = options.open(&path).map_err(|error| (error, None))?;
    let written = file
        .write_all(&header.encode())
        .and_then(|()| if sync { file.sync_all().and_then(|()| sync_dir(dir)) } else { Ok(()) });
    match written {
        Ok(()) => Ok((file, path)),
        Err(error) => {
            let undone = fs::remove_file(&path).and_then(|()| sync_dir(dir));
            Err((error, undone.err()))
        }
    }
}

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    // Elsewhere a folder can't be opened as a file, and names need no sync of their own.
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// Whoever runs the service reads its log, nobody else.
pub(crate) fn owner_only(options: &mut OpenOptions) {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    #[cfg(not(unix))]
    let _ = options;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_round_trips_and_no_flip_passes() {
        let header = Header { first: Position(77), log: LogId([3; 16]) };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Header::decode(&flipped), Err(HeaderFlaw::Damaged(_))), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut bytes = Header { first: Position(1), log: LogId([3; 16]) }.encode();
        bytes[8] = 2;
        let crc = crc32fast::hash(&bytes[..44]);
        bytes[44..].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(Header::decode(&bytes), Err(HeaderFlaw::Unsupported(_))));
    }

    #[test]
    fn names_sort_and_only_names_count() {
        assert_eq!(file_name(Position(1)), "00000000000000000001.seg");
        assert_eq!(parse_file_name(&file_name(Position(u64::MAX))), Some(Position(u64::MAX)));
        for other in ["1.seg", "0000000000000000000x.seg", "00000000000000000001.sega", "lock", ".seg"] {
            assert_eq!(parse_file_name(other), None, "{other}");
        }
        assert_eq!(parse_file_name("99999999999999999999.seg"), None);
    }
}
