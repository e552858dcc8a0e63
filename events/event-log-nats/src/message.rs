//! A stored message, whatever its format, as a frame; and the messages of format 1, which held one record each
//! (`events/NATS_FORMAT.md` §4): their record's stream is in the subject, their position is their sequence.

use async_nats::HeaderMap;
use event_log::{Position, StreamName};

use crate::frame::{self, CRC, Frame, LOG};

const VERSION_1: &str = "1";

/// A dot within the token of a format-1 subject, where NATS would give it a meaning.
const DOT: &str = "=2e";

/// A message as the servers hold it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) sequence: u64,
    pub(crate) subject: &'a str,
    pub(crate) headers: Option<&'a HeaderMap>,
    pub(crate) payload: &'a [u8],
}

/// Which format a message has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    One,
    Two,
}

impl Stored<'_> {
    /// Which format it says it has.
    pub(crate) fn format(&self) -> Result<Format, String> {
        match self.header(LOG) {
            Some(VERSION_1) => Ok(Format::One),
            Some(frame::VERSION) => Ok(Format::Two),
            Some(other) => Err(format!(
                "its format version is {other:?}, this program knows {VERSION_1} and {}",
                frame::VERSION
            )),
            None => Err(format!("it has no header {LOG}: it was not written by this log")),
        }
    }

    /// The position of its first record, as it claims.
    pub(crate) fn claimed_first(&self) -> Result<Position, String> {
        match (self.format()?, self.headers) {
            (Format::Two, Some(headers)) => frame::claimed_first(headers),
            _ => Ok(Position(self.sequence)),
        }
    }

    /// The frame it holds, or what is wrong with it. `prefix` is what the log's subjects begin with.
    pub(crate) fn frame(&self, prefix: &str) -> Result<Frame, String> {
        let none = HeaderMap::new();
        match self.format()? {
            Format::Two if self.subject == subject(prefix) => {
                frame::decode(self.headers.unwrap_or(&none), self.payload)
            }
            Format::Two => Err(format!("its subject {:?} is not that of frames", self.subject)),
            Format::One => self.single(prefix),
        }
    }

    /// The record of a message of format 1, as a frame of one.
    fn single(&self, prefix: &str) -> Result<Frame, String> {
        let stream = stream_of(prefix, self.subject)
            .ok_or_else(|| format!("its subject {:?} is none of this log", self.subject))?;
        let expected = self.header(CRC).ok_or_else(|| format!("it has no header {CRC}"))?;
        let actual = checksum(&stream, self.payload);
        if expected != actual {
            return Err(format!("its checksum is {actual}, not {expected} as when it was written"));
        }
        let records = vec![(stream, self.payload.to_vec())];
        Ok(Frame { first: Position(self.sequence), records, commit: None, crc: actual, previous: None })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.and_then(|headers| headers.get(name)).map(|value| value.as_str())
    }
}

/// The subject of frames. Two tokens behind the prefix, which no subject of format 1 had: a release that writes format 1
/// finds that nobody takes its messages.
pub(crate) fn subject(prefix: &str) -> String {
    format!("{prefix}.log.frame")
}

/// All subjects of a log of format 1.
pub(crate) fn subjects_of_format_1(prefix: &str) -> String {
    format!("{prefix}.>")
}

/// The stream of a format-1 subject; `None` if that format never made this subject.
fn stream_of(prefix: &str, subject: &str) -> Option<StreamName> {
    let token = subject.strip_prefix(prefix)?.strip_prefix('.')?;
    if token.contains('.') {
        return None;
    }
    StreamName::new(token.replace(DOT, ".")).ok()
}

/// Whether a text can be what subjects begin with.
pub(crate) fn is_prefix(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    text.len() <= 64 && text.split('.').all(part)
}

/// Format 1's checksum: CRC32 over stream name, one zero byte, payload.
fn checksum(stream: &StreamName, payload: &[u8]) -> String {
    let mut crc = crc32fast::Hasher::new();
    crc.update(stream.as_str().as_bytes());
    crc.update(&[0]);
    crc.update(payload);
    format!("{:08x}", crc.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, *value);
        }
        headers
    }

    #[test]
    fn a_message_of_format_1_is_a_frame_of_one_and_any_change_is_named() {
        let stream = StreamName::new("run/1.a").unwrap();
        let crc = checksum(&stream, b"bytes");
        let good = headers(&[(LOG, "1"), (CRC, &crc), ("Flotilla-Commit", "00")]);
        let read = |subject: &str, headers: Option<&HeaderMap>, payload: &[u8]| {
            Stored { sequence: 8, subject, headers, payload }.frame("p")
        };
        let records = vec![(stream, b"bytes".to_vec())];
        let frame = Frame { first: Position(8), records, commit: None, crc: crc.clone(), previous: None };
        assert_eq!(read("p.run/1=2ea", Some(&good), b"bytes"), Ok(frame));

        let rows = [
            (read("p.run/1=2ea", Some(&good), b"bytez"), "checksum"),
            (read("p.run/1=2eb", Some(&good), b"bytes"), "checksum"),
            (read("q.run/1=2ea", Some(&good), b"bytes"), "none of this log"),
            (read("p.run.a", Some(&good), b"bytes"), "none of this log"),
            (read("p.run/1=2ea", None, b"bytes"), "not written by this log"),
            (read("p.run/1=2ea", Some(&headers(&[(LOG, "3"), (CRC, &crc)])), b"bytes"), "version"),
            (read("p.run/1=2ea", Some(&headers(&[(LOG, "1")])), b"bytes"), "no header Flotilla-Crc"),
            (read("p.run/1=2ea", Some(&headers(&[(LOG, "2"), (CRC, &crc)])), b"bytes"), "not that of frames"),
            (
                read("p.log.frame", Some(&headers(&[(LOG, "2"), (CRC, &crc)])), b"bytes"),
                "no header Flotilla-First",
            ),
        ];
        for (result, expected) in rows {
            let error = result.unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_subject_of_frames_was_never_that_of_a_stream() {
        assert_eq!(stream_of("flotilla.ev", &subject("flotilla.ev")), None);
        for other in
            ["", "flotilla.ev", "flotilla.ev.", "flotilla.evx.a", "flotilla.ev.a.b", "flotilla.ev.a=3d", "x"]
        {
            assert_eq!(stream_of("flotilla.ev", other), None, "{other:?}");
        }
        assert_eq!(stream_of("flotilla.ev", "flotilla.ev.=2e=2e").unwrap().as_str(), "..");
    }

    #[test]
    fn prefixes_are_plain() {
        for (text, good) in [
            ("flotilla.ev", true),
            ("a", true),
            ("", false),
            ("a.", false),
            ("a..b", false),
            ("a.*", false),
            (">", false),
            ("a b", false),
            ("$JS.x", false),
        ] {
            assert_eq!(is_prefix(text), good, "{text:?}");
        }
    }
}
