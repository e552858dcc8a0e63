//! A record as a JetStream message: the payload is the record's bytes, three headers of ours go with it.
//!
//! | header | value |
//! |---|---|
//! | `Flotilla-Log` | format version, `1`; a reader refuses what it does not know |
//! | `Flotilla-Crc` | CRC32 over stream name, one zero byte, payload; 8 hex digits |
//! | `Flotilla-Commit` | 16 random bytes as hex: recognises one's own record when the answer was lost |
//!
//! and two of the server's: `Nats-Expected-Last-Subject-Sequence` makes the append conditional, `Nats-Expected-Stream`
//! keeps it from landing in a stream that took over the subjects.

use async_nats::HeaderMap;
use event_log::{Entry, Position, StreamName};

use crate::subject;

const VERSION: &str = "1";
const LOG: &str = "Flotilla-Log";
const CRC: &str = "Flotilla-Crc";
const COMMIT: &str = "Flotilla-Commit";
const EXPECTED_LAST: &str = "Nats-Expected-Last-Subject-Sequence";
const EXPECTED_STREAM: &str = "Nats-Expected-Stream";

/// Names one append, whatever becomes of its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommitId(String);

impl CommitId {
    /// A random one.
    pub(crate) fn random() -> Result<CommitId, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(CommitId(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// Whether a message with these headers is the append of this name.
    pub(crate) fn is_in(&self, headers: &HeaderMap) -> bool {
        headers.get(COMMIT).is_some_and(|value| value.as_str() == self.0)
    }
}

/// The headers of an append.
pub(crate) fn headers(
    server_stream: &str,
    stream: &StreamName,
    expected: Option<Position>,
    payload: &[u8],
    commit: &CommitId,
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(LOG, VERSION);
    headers.insert(CRC, checksum(stream, payload));
    headers.insert(COMMIT, commit.0.as_str());
    headers.insert(EXPECTED_LAST, expected.unwrap_or(Position::ZERO).to_string());
    headers.insert(EXPECTED_STREAM, server_stream);
    headers
}

/// The entry that a stored message holds, or what is wrong with it.
pub(crate) fn entry(
    prefix: &str,
    position: Position,
    message_subject: &str,
    headers: Option<&HeaderMap>,
    payload: &[u8],
) -> Result<Entry, String> {
    let stream = subject::decode(prefix, message_subject)
        .ok_or_else(|| format!("its subject {message_subject:?} is none of this log"))?;
    let header = |name| headers.and_then(|headers| headers.get(name)).map(|value| value.as_str());
    match header(LOG) {
        Some(VERSION) => {}
        Some(other) => return Err(format!("its format version is {other:?}, this program knows {VERSION}")),
        None => return Err(format!("it has no header {LOG}: it was not written by this log")),
    }
    let expected = header(CRC).ok_or_else(|| format!("it has no header {CRC}"))?;
    let actual = checksum(&stream, payload);
    if expected != actual {
        return Err(format!("its checksum is {actual}, not {expected} as when it was written"));
    }
    Ok(Entry { position, stream, bytes: payload.to_vec() })
}

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

    #[test]
    fn a_message_round_trips_and_any_change_is_named() {
        let stream = StreamName::new("run/1.a").unwrap();
        let commit = CommitId::random().unwrap();
        let headers = headers("EVENTS", &stream, Some(Position(7)), b"bytes", &commit);
        let subject = subject::encode("p", &stream);
        let read = |subject: &str, headers: Option<&HeaderMap>, payload: &[u8]| {
            entry("p", Position(8), subject, headers, payload)
        };
        let good = Entry { position: Position(8), stream, bytes: b"bytes".to_vec() };
        assert_eq!(read(&subject, Some(&headers), b"bytes"), Ok(good));
        assert!(commit.is_in(&headers));
        assert!(!CommitId::random().unwrap().is_in(&headers));

        let newer = |name: &str, value: &str| {
            let mut headers = headers.clone();
            headers.insert(name, value);
            headers
        };
        let rows = [
            (read(&subject, Some(&headers), b"bytez"), "checksum"),
            (read("p.run/1=2eb", Some(&headers), b"bytes"), "checksum"),
            (read("q.run/1=2ea", Some(&headers), b"bytes"), "none of this log"),
            (read(&subject, None, b"bytes"), "not written by this log"),
            (read(&subject, Some(&newer(LOG, "2")), b"bytes"), "version"),
            (read(&subject, Some(&newer(CRC, "00000000")), b"bytes"), "checksum"),
        ];
        for (result, expected) in rows {
            let error = result.unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
