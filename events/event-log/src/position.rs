//! The words of the contract: where a record stands ([`Position`]), what it belongs to ([`StreamName`]), what a
//! read returns ([`Entry`]) and how much of it ([`ReadLimit`]).

use std::fmt;
use std::sync::Arc;

use crate::limits::{
    DEFAULT_READ_BYTES, DEFAULT_READ_ENTRIES, MAX_READ_BYTES, MAX_READ_ENTRIES, MAX_STREAM_NAME_BYTES,
};

/// A record's place in the whole log: 1 for the first, contiguous.
///
/// As a cursor ("everything up to here has been applied") it may also be [`Position::ZERO`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

impl Position {
    /// Before the first record: the last position of an empty log, the cursor of a reader that has seen nothing.
    pub const ZERO: Position = Position(0);

    /// The position after this one; where a reader with this cursor goes on.
    ///
    /// Saturates at the end of the number range, which a log cannot reach.
    #[must_use]
    pub fn next(self) -> Position {
        Position(self.0.saturating_add(1))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a stream within the log, such as `run/0193a1…`: 1 to 200 bytes of `[a-zA-Z0-9_./-]`.
///
/// Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamName(Arc<str>);

/// Why a text is not a [`StreamName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamNameError {
    /// Empty or longer than [`MAX_STREAM_NAME_BYTES`].
    #[error("a stream name has 1 to {MAX_STREAM_NAME_BYTES} bytes, this one has {len}")]
    Length {
        /// Bytes of the refused text.
        len: usize,
    },
    /// A byte outside `[a-zA-Z0-9_./-]`.
    #[error("byte {byte:#04x} at {at} is not allowed in a stream name (letters, digits and _ . / - are)")]
    Byte {
        /// The refused byte.
        byte: u8,
        /// Its offset in the text.
        at: usize,
    },
}

impl StreamName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`StreamNameError`] says which rule was broken.
    pub fn new(name: impl AsRef<str>) -> Result<StreamName, StreamNameError> {
        let name = name.as_ref();
        check_stream_name(name.as_bytes())?;
        Ok(StreamName(Arc::from(name)))
    }

    /// The name as bytes from storage.
    ///
    /// # Errors
    /// [`StreamNameError`] says which rule was broken.
    pub fn from_bytes(name: &[u8]) -> Result<StreamName, StreamNameError> {
        check_stream_name(name)?;
        // Only ASCII passes the check, so this cannot fail; the error is never built.
        let text = std::str::from_utf8(name).map_err(|error| StreamNameError::Byte {
            byte: name[error.valid_up_to()],
            at: error.valid_up_to(),
        })?;
        Ok(StreamName(Arc::from(text)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_stream_name(name: &[u8]) -> Result<(), StreamNameError> {
    if name.is_empty() || name.len() > MAX_STREAM_NAME_BYTES {
        return Err(StreamNameError::Length { len: name.len() });
    }
    match name.iter().position(|&byte| !is_stream_byte(byte)) {
        Some(at) => Err(StreamNameError::Byte { byte: name[at], at }),
        None => Ok(()),
    }
}

fn is_stream_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'/' | b'-')
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for StreamName {
    type Err = StreamNameError;

    fn from_str(text: &str) -> Result<StreamName, StreamNameError> {
        StreamName::new(text)
    }
}

impl std::borrow::Borrow<str> for StreamName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// One record as it was appended, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub position: Position,
    /// The stream it belongs to.
    pub stream: StreamName,
    /// The bytes as given to `append`, never interpreted here.
    pub bytes: Vec<u8>,
}

/// How much one read returns at most. Whatever is asked, [`MAX_READ_ENTRIES`] and [`MAX_READ_BYTES`] hold.
///
/// The first entry is always returned, however large, so that a reader always gets on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    /// Most entries; at least 1 is assumed.
    pub entries: usize,
    /// Most payload bytes in sum.
    pub bytes: usize,
}

impl Default for ReadLimit {
    /// 4,096 entries, 4 MiB: one page of a replay.
    fn default() -> ReadLimit {
        ReadLimit { entries: DEFAULT_READ_ENTRIES, bytes: DEFAULT_READ_BYTES }
    }
}

impl ReadLimit {
    /// At most so many entries, with the default limit of bytes.
    pub fn entries(entries: usize) -> ReadLimit {
        ReadLimit { entries, ..ReadLimit::default() }
    }

    /// The same limit within what any backend returns at once.
    #[must_use]
    pub fn clamped(self) -> ReadLimit {
        ReadLimit { entries: self.entries.clamp(1, MAX_READ_ENTRIES), bytes: self.bytes.min(MAX_READ_BYTES) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "run/0193a1b2", "A-z_0.9/x", &"n".repeat(200)] {
            assert_eq!(StreamName::new(good).unwrap().as_str(), good);
            assert_eq!(StreamName::from_bytes(good.as_bytes()).unwrap().as_str(), good);
        }
        for (bad, error) in [
            ("", StreamNameError::Length { len: 0 }),
            (&"n".repeat(201), StreamNameError::Length { len: 201 }),
            ("run 1", StreamNameError::Byte { byte: b' ', at: 3 }),
            ("run\n", StreamNameError::Byte { byte: b'\n', at: 3 }),
            ("a*", StreamNameError::Byte { byte: b'*', at: 1 }),
            (">", StreamNameError::Byte { byte: b'>', at: 0 }),
            ("ä", StreamNameError::Byte { byte: 0xc3, at: 0 }),
        ] {
            assert_eq!(StreamName::new(bad).unwrap_err(), error, "{bad:?}");
        }
        assert!(StreamName::from_bytes(&[0xff]).is_err());
    }

    #[test]
    fn limits_are_clamped() {
        let none = ReadLimit { entries: 0, bytes: 0 }.clamped();
        assert_eq!(none, ReadLimit { entries: 1, bytes: 0 });
        let all = ReadLimit { entries: usize::MAX, bytes: usize::MAX }.clamped();
        assert_eq!(all, ReadLimit { entries: MAX_READ_ENTRIES, bytes: MAX_READ_BYTES });
    }
}
