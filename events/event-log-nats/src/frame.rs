//! Frames: one commit of records as one message (`events/NATS_FORMAT.md` §2). Writing them, and telling a good one from
//! anything else. Pure; nothing here asks a server.

use async_nats::HeaderMap;
use event_log::limits::{MAX_RECORD_BYTES, MAX_STREAM_NAME_BYTES};
use event_log::{Position, StreamName};
use serde::{Deserialize, Serialize, Serializer};

use crate::limits::{FRAME_BYTES, FRAME_RECORDS};

/// The header that says which format a message has; format 1 has it too.
pub(crate) const LOG: &str = "Flotilla-Log";
pub(crate) const VERSION: &str = "2";
pub(crate) const CRC: &str = "Flotilla-Crc";
const FIRST: &str = "Flotilla-First";
const COUNT: &str = "Flotilla-Count";
const COMMIT: &str = "Flotilla-Commit";
const PREVIOUS: &str = "Flotilla-Prev";
const EXPECTED_LAST: &str = "Nats-Expected-Last-Sequence";
const EXPECTED_STREAM: &str = "Nats-Expected-Stream";

/// A record without its position: what a frame and a batch for the copy are made of.
pub(crate) type Record = (StreamName, Vec<u8>);

/// The payload of the largest frame that a reader takes: one record as large as records may be.
const LARGEST_PAYLOAD: usize = encoded_len(MAX_STREAM_NAME_BYTES, MAX_RECORD_BYTES);

/// Names one commit, whatever becomes of its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommitId(String);

impl CommitId {
    /// A random one.
    pub(crate) fn random() -> Result<CommitId, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(CommitId(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

/// A commit as it was read from a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The position of the first record.
    pub(crate) first: Position,
    /// At least one.
    pub(crate) records: Vec<Record>,
    /// Of format 2, if it is there; it tells a writer its own frame and means nothing to anybody else.
    pub(crate) commit: Option<CommitId>,
    /// Its checksum.
    pub(crate) crc: String,
    /// The checksum of the message that its writer had read before it; releases before this header did not say.
    pub(crate) previous: Option<String>,
}

impl Frame {
    /// Whether its writer had read the message with the checksum `before` last, as far as both are known.
    pub(crate) fn follows(&self, before: Option<&str>) -> Result<(), String> {
        match (self.previous.as_deref(), before) {
            (Some(previous), Some(before)) if previous != before => Err(format!(
                "its writer had read another message before it, with the checksum {previous} instead of {before}: the \
                 servers have lost what they had confirmed, and went on without it"
            )),
            _ => Ok(()),
        }
    }

    /// The position of the last record.
    pub(crate) fn last(&self) -> Position {
        Position(self.first.0 + self.records.len() as u64 - 1)
    }
}

/// A record in a frame's payload.
#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    stream: &'a str,
    /// Written at once instead of byte by byte; the form is the same.
    #[serde(serialize_with = "as_bytes")]
    bytes: &'a [u8],
}

fn as_bytes<S: Serializer>(bytes: &&[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

/// Bytes that a record takes in a payload, with lengths as postcard writes them.
pub(crate) const fn encoded_len(stream: usize, bytes: usize) -> usize {
    varint_len(stream) + stream + varint_len(bytes) + bytes
}

const fn varint_len(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

/// A payload in the making.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    bytes: Vec<u8>,
    count: usize,
}

impl Payload {
    /// Whether records fit in with what is there; a single first one always does. `limit` in bytes, at most
    /// [`FRAME_BYTES`].
    pub(crate) fn fits(&self, stream: &StreamName, records: &[Vec<u8>], limit: usize) -> bool {
        let lens = records.iter().map(|bytes| encoded_len(stream.as_str().len(), bytes.len()));
        let (count, len) = (self.count + records.len(), self.bytes.len() + lens.sum::<usize>());
        count == 1 || (count <= FRAME_RECORDS && len <= limit.min(FRAME_BYTES))
    }

    /// Adds a record.
    pub(crate) fn push(&mut self, stream: &StreamName, bytes: &[u8]) {
        self.bytes.reserve(encoded_len(stream.as_str().len(), bytes.len()));
        let buffer = std::mem::take(&mut self.bytes);
        self.bytes = postcard::to_extend(&Wire { stream: stream.as_str(), bytes }, buffer)
            .expect("a text and bytes can always be written to memory");
        self.count += 1;
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The headers of this payload as a frame that begins with `first` and follows the message `after`, which has the
    /// checksum `previous`.
    pub(crate) fn headers(
        &self,
        server_stream: &str,
        first: Position,
        after: u64,
        previous: Option<&str>,
        commit: &CommitId,
    ) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(LOG, VERSION);
        headers.insert(FIRST, first.to_string());
        headers.insert(COUNT, self.count.to_string());
        headers.insert(CRC, checksum(first.0, self.count as u64, &self.bytes));
        headers.insert(COMMIT, commit.0.as_str());
        if let Some(previous) = previous {
            headers.insert(PREVIOUS, previous);
        }
        headers.insert(EXPECTED_LAST, after.to_string());
        headers.insert(EXPECTED_STREAM, server_stream);
        headers
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// The position of the first record that a message of format 2 holds, as its headers claim.
pub(crate) fn claimed_first(headers: &HeaderMap) -> Result<Position, String> {
    number(headers, FIRST).map(Position)
}

/// The frame that a message of format 2 holds, or what is wrong with it.
pub(crate) fn decode(headers: &HeaderMap, payload: &[u8]) -> Result<Frame, String> {
    let (first, count) = (number(headers, FIRST)?, number(headers, COUNT)?);
    if count > FRAME_RECORDS as u64 {
        return Err(format!("it claims {count} records, more than the {FRAME_RECORDS} of the largest frame"));
    }
    if payload.len() > LARGEST_PAYLOAD {
        return Err(format!(
            "it has {} bytes, more than the {LARGEST_PAYLOAD} of the largest frame",
            payload.len()
        ));
    }
    if first.checked_add(count).is_none() {
        return Err(format!("its first position is {first}: no log is as long"));
    }
    let expected = headers.get(CRC).ok_or_else(|| format!("it has no header {CRC}"))?.as_str();
    let actual = checksum(first, count, payload);
    if expected != actual {
        return Err(format!("its checksum is {actual}, not {expected} as when it was written"));
    }
    // A record has at least three bytes, so a claim of many in a short payload takes no memory.
    let mut records = Vec::with_capacity((payload.len() / 3).min(count as usize));
    let mut rest = payload;
    for nth in 1..=count {
        let bad =
            |what: &dyn std::fmt::Display| format!("record {nth} of its {count} cannot be read: {what}");
        let (wire, behind) = postcard::take_from_bytes::<Wire<'_>>(rest).map_err(|error| bad(&error))?;
        if wire.bytes.len() > MAX_RECORD_BYTES {
            return Err(bad(&format!(
                "it has {} bytes, records have at most {MAX_RECORD_BYTES}",
                wire.bytes.len()
            )));
        }
        let stream = StreamName::new(wire.stream).map_err(|error| bad(&error))?;
        records.push((stream, wire.bytes.to_vec()));
        rest = behind;
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes follow its {count} records", rest.len()));
    }
    let commit = headers.get(COMMIT).map(|value| CommitId(value.as_str().to_owned()));
    let previous = headers.get(PREVIOUS).map(|value| value.as_str().to_owned());
    Ok(Frame { first: Position(first), records, commit, crc: actual, previous })
}

/// A header's number, 1 or more, in digits without leading zeros.
fn number(headers: &HeaderMap, name: &str) -> Result<u64, String> {
    let text = headers.get(name).ok_or_else(|| format!("it has no header {name}"))?.as_str();
    let number = text.parse().ok().filter(|number: &u64| *number > 0 && number.to_string() == text);
    number.ok_or_else(|| format!("its header {name} is {text:?}, not a number from 1 on"))
}

fn checksum(first: u64, count: u64, payload: &[u8]) -> String {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&first.to_le_bytes());
    crc.update(&count.to_le_bytes());
    crc.update(payload);
    format!("{:08x}", crc.finalize())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame_of(records: &[Record], first: u64) -> (HeaderMap, Vec<u8>) {
        let mut payload = Payload::default();
        for (stream, bytes) in records {
            payload.push(stream, bytes);
        }
        let commit = CommitId::random().unwrap();
        let headers = payload.headers("EVENTS", Position(first), 9, Some("0a1b2c3d"), &commit);
        (headers, payload.into_bytes())
    }

    fn a_record() -> impl Strategy<Value = Record> {
        let bytes = prop_oneof![
            8 => proptest::collection::vec(any::<u8>(), 0..300),
            1 => (0..20_000_usize).prop_map(|len| vec![7; len]),
        ];
        ("[a-zA-Z0-9_./-]{1,200}", bytes).prop_map(|(name, bytes)| (StreamName::new(name).unwrap(), bytes))
    }

    proptest! {
        #[test]
        fn frames_round_trip_and_no_change_of_a_byte_passes(
            records in proptest::collection::vec(a_record(), 1..40),
            first in 1..u64::MAX / 2,
            place in any::<proptest::sample::Index>(),
            flip in 1..=255_u8,
        ) {
            let (headers, payload) = frame_of(&records, first);
            let len: usize = records.iter().map(|(name, bytes)| encoded_len(name.as_str().len(), bytes.len())).sum();
            prop_assert_eq!(payload.len(), len);
            let frame = decode(&headers, &payload).unwrap();
            prop_assert_eq!(frame.first, Position(first));
            prop_assert_eq!(frame.last(), Position(first + records.len() as u64 - 1));
            prop_assert_eq!(&frame.records, &records);
            prop_assert!(frame.commit.is_some());
            prop_assert_eq!(frame.previous.as_deref(), Some("0a1b2c3d"));
            prop_assert_eq!(frame.crc.as_str(), headers.get(CRC).unwrap().as_str());

            let at = place.index(payload.len());
            let mut flipped = payload.clone();
            flipped[at] ^= flip;
            prop_assert!(decode(&headers, &flipped).unwrap_err().contains("checksum"));
            prop_assert!(decode(&headers, &payload[..at]).is_err());
        }

        #[test]
        fn anything_at_all_is_decoded_or_refused(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            first in any::<u64>(),
            count in 0..6_000_u64,
        ) {
            // With a checksum that is right, so that what lies behind it is reached.
            let mut headers = HeaderMap::new();
            headers.insert(FIRST, first.to_string());
            headers.insert(COUNT, count.to_string());
            headers.insert(CRC, checksum(first, count, &payload));
            if let Ok(frame) = decode(&headers, &payload) {
                let (_, again) = frame_of(&frame.records, first);
                prop_assert!(again.len() <= payload.len(), "no shorter form of the same");
            }
        }
    }

    #[test]
    fn what_a_frame_may_not_be_is_named() {
        let record = (StreamName::new("run/1").unwrap(), b"bytes".to_vec());
        let (good, payload) = frame_of(&[record.clone(), record.clone()], 7);
        let forged = |first: &str, count: &str, payload: &[u8]| {
            let mut headers = good.clone();
            headers.insert(FIRST, first);
            headers.insert(COUNT, count);
            let numbers = (first.parse().unwrap_or(0), count.parse().unwrap_or(0));
            headers.insert(CRC, checksum(numbers.0, numbers.1, payload));
            decode(&headers, payload).unwrap_err()
        };
        let long = vec![0; LARGEST_PAYLOAD + 1];
        let mut big = Payload::default();
        big.push(&record.0, &vec![0; MAX_RECORD_BYTES + 1]);
        let mut foreign = payload.clone();
        foreign[1] = b' ';
        let trailing = [payload.as_slice(), b"x"].concat();
        let rows = [
            (forged("7", "3", &payload), "record 3 of its 3"),
            (forged("7", "1", &payload), "12 bytes follow its 1 records"),
            (forged("7", "2", &trailing), "1 bytes follow its 2 records"),
            (forged("7", "5000", &payload), "more than the 4096"),
            (forged("7", "1", &long), "bytes, more than"),
            (forged("7", "1", &big.into_bytes()), "records have at most"),
            (forged("7", "2", &foreign), "not allowed in a stream name"),
            (forged("0", "2", &payload), "not a number from 1 on"),
            (forged("7", "0", &payload), "not a number from 1 on"),
            (forged("07", "2", &payload), "not a number from 1 on"),
            (forged("+7", "2", &payload), "not a number from 1 on"),
            (forged(&u64::MAX.to_string(), "2", &payload), "no log is as long"),
        ];
        for (error, expected) in rows {
            assert!(error.contains(expected), "{error}, expected {expected}");
        }
        for missing in [FIRST, COUNT, CRC] {
            let mut headers = HeaderMap::new();
            for name in [FIRST, COUNT, CRC].into_iter().filter(|name| *name != missing) {
                headers.insert(name, good.get(name).unwrap().as_str());
            }
            assert!(decode(&headers, &payload).unwrap_err().contains(missing));
        }
    }

    #[test]
    fn a_frame_is_full_at_its_limits_and_takes_one_record_of_any_size() {
        let stream = StreamName::new("s").unwrap();
        let mut payload = Payload::default();
        assert!(payload.fits(&stream, &[vec![0; MAX_RECORD_BYTES]], 10));
        assert!(!payload.fits(&stream, &vec![vec![0; 10]; 2], 10), "several only if they fit");
        while payload.fits(&stream, &[vec![0; 1000]], FRAME_BYTES) {
            payload.push(&stream, &[0; 1000]);
        }
        assert_eq!(payload.count(), FRAME_BYTES / 1004);
        let mut payload = Payload::default();
        while payload.fits(&stream, &[Vec::new()], usize::MAX) {
            payload.push(&stream, b"");
        }
        assert_eq!(payload.count(), FRAME_RECORDS);
    }
}
