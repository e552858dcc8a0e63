//! A record's bytes (`events/LOG_FORMAT.md` §3): writing them and telling a whole record from a short or a wrong one.
//! Pure; files are `segment.rs`' and `reader.rs`' business.

use std::fmt;

use crc32fast::Hasher;

use crate::limits::{MAX_RECORD_BYTES, MAX_STREAM_NAME_BYTES};
use crate::position::{Position, StreamName};

/// Bytes before a record's body.
pub(crate) const HEADER_BYTES: usize = 24;

/// Not zero, so that a whole record never ends in zeros.
pub(crate) const END_MARK: [u8; 4] = *b"REC\n";

/// Bytes of the smallest possible record: a name of one byte, no payload.
pub(crate) const MIN_BYTES: usize = HEADER_BYTES + 1 + END_MARK.len();

/// The log's identity, random, in every segment's header and under every record's checksum. Shown as 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogId(pub(crate) [u8; 16]);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why the bytes at a place are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// They end before the record does; whatever there is of it is good.
    Short,
    /// They are all there and wrong.
    Wrong(&'static str),
}

/// A whole, verified record where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) position: Position,
    /// Only checked for its length here; `StreamName::from_bytes` checks the rest.
    pub(crate) stream: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl Record<'_> {
    /// Bytes of the whole record.
    pub(crate) fn len(&self) -> usize {
        encoded_len(self.stream.len(), self.payload.len())
    }
}

/// Writes and reads the records of one log.
#[derive(Debug, Clone)]
pub(crate) struct Codec {
    /// The checksum's state after the log id.
    seed: Hasher,
}

/// Bytes of a record with a stream name and a payload of these lengths.
pub(crate) fn encoded_len(stream: usize, payload: usize) -> usize {
    HEADER_BYTES + stream + payload + END_MARK.len()
}

/// The good header of a record.
struct Header {
    body_crc: u32,
    body_len: usize,
    stream_len: usize,
    position: Position,
}

impl Codec {
    pub(crate) fn new(log: LogId) -> Codec {
        let mut seed = Hasher::new();
        seed.update(&log.0);
        Codec { seed }
    }

    /// Appends a record to `out`. The payload has been checked against `MAX_RECORD_BYTES` before.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, position: Position, stream: &StreamName, payload: &[u8]) {
        let name = stream.as_str().as_bytes();
        debug_assert!(payload.len() <= MAX_RECORD_BYTES, "append checks the size");
        let mut body = Hasher::new();
        body.update(name);
        body.update(payload);
        let mut fields = [0; HEADER_BYTES - 4];
        fields[0..4].copy_from_slice(&body.finalize().to_le_bytes());
        // Both lengths are far below the field's range: names have ≤ 200 bytes, payloads ≤ 1 MiB.
        fields[4..8].copy_from_slice(&((name.len() + payload.len()) as u32).to_le_bytes());
        fields[8..10].copy_from_slice(&(name.len() as u16).to_le_bytes());
        fields[12..20].copy_from_slice(&position.0.to_le_bytes());
        out.reserve(encoded_len(name.len(), payload.len()));
        out.extend_from_slice(&self.header_crc(&fields).to_le_bytes());
        out.extend_from_slice(&fields);
        out.extend_from_slice(name);
        out.extend_from_slice(payload);
        out.extend_from_slice(&END_MARK);
    }

    /// How many bytes the record at the start of `bytes` has, judging by its header.
    pub(crate) fn record_len(&self, bytes: &[u8]) -> Result<usize, Flaw> {
        Ok(HEADER_BYTES + self.header(bytes)?.body_len + END_MARK.len())
    }

    /// The record at the start of `bytes`, wholly verified; what follows it does not matter.
    pub(crate) fn decode<'a>(&self, bytes: &'a [u8]) -> Result<Record<'a>, Flaw> {
        let header = self.header(bytes)?;
        let body_end = HEADER_BYTES + header.body_len;
        let body = bytes.get(HEADER_BYTES..body_end).ok_or(Flaw::Short)?;
        let mark = bytes.get(body_end..body_end + END_MARK.len()).ok_or(Flaw::Short)?;
        if crc32fast::hash(body) != header.body_crc {
            return Err(Flaw::Wrong("the checksum of the record's body does not match"));
        }
        if mark != END_MARK {
            return Err(Flaw::Wrong("the record's end mark is wrong"));
        }
        let (stream, payload) = body.split_at(header.stream_len);
        Ok(Record { position: header.position, stream, payload })
    }

    fn header(&self, bytes: &[u8]) -> Result<Header, Flaw> {
        let (head, _) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(Flaw::Short)?;
        let (crc, fields) = head.split_at(4);
        if le_u32(crc) != self.header_crc(fields) {
            return Err(Flaw::Wrong("the checksum of the record's header does not match"));
        }
        let body_len = le_u32(&fields[4..8]) as usize;
        let stream_len = usize::from(u16::from_le_bytes([fields[8], fields[9]]));
        if fields[10..12] != [0, 0] {
            return Err(Flaw::Wrong("the record has flags that this version does not know"));
        }
        if stream_len == 0
            || stream_len > MAX_STREAM_NAME_BYTES
            || stream_len > body_len
            || body_len - stream_len > MAX_RECORD_BYTES
        {
            return Err(Flaw::Wrong("the record's lengths are out of range"));
        }
        let mut position = [0; 8];
        position.copy_from_slice(&fields[12..20]);
        let position = Position(u64::from_le_bytes(position));
        Ok(Header { body_crc: le_u32(&fields[0..4]), body_len, stream_len, position })
    }

    fn header_crc(&self, fields: &[u8]) -> u32 {
        let mut crc = self.seed.clone();
        crc.update(fields);
        crc.finalize()
    }
}

fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Codec, Vec<u8>) {
        let codec = Codec::new(LogId([7; 16]));
        let mut bytes = Vec::new();
        codec.encode(&mut bytes, Position(9), &StreamName::new("run/1").unwrap(), b"payload\0\0\0\0");
        (codec, bytes)
    }

    #[test]
    fn a_record_round_trips() {
        let (codec, mut bytes) = sample();
        let len = bytes.len();
        bytes.extend_from_slice(b"what follows");
        let record = codec.decode(&bytes).unwrap();
        assert_eq!(record, Record { position: Position(9), stream: b"run/1", payload: b"payload\0\0\0\0" });
        assert_eq!((record.len(), codec.record_len(&bytes)), (len, Ok(len)));
        assert!(!bytes[..len].ends_with(&[0]));
    }

    #[test]
    fn every_cut_is_short_and_every_flip_is_wrong() {
        let (codec, bytes) = sample();
        for cut in 0..bytes.len() {
            assert_eq!(codec.decode(&bytes[..cut]), Err(Flaw::Short), "cut at {cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(codec.decode(&flipped), Err(Flaw::Wrong(_))), "bit {bit}");
        }
    }

    #[test]
    fn a_record_of_another_log_is_wrong() {
        let (_, bytes) = sample();
        let other = Codec::new(LogId([8; 16]));
        assert!(matches!(other.decode(&bytes), Err(Flaw::Wrong(_))));
    }

    #[test]
    fn lengths_out_of_range_are_wrong_even_with_a_good_checksum() {
        let (codec, bytes) = sample();
        for (field, value) in [(8, u32::MAX), (8, 0), (8, (MAX_RECORD_BYTES + 6) as u32), (12, 0), (12, 201)]
        {
            let mut bad = bytes.clone();
            let width = if field == 8 { 4 } else { 2 };
            bad[field..field + width].copy_from_slice(&value.to_le_bytes()[..width]);
            let crc = codec.header_crc(&bad[4..HEADER_BYTES]);
            bad[..4].copy_from_slice(&crc.to_le_bytes());
            assert!(matches!(codec.decode(&bad), Err(Flaw::Wrong(_))), "{field} = {value}");
        }
    }
}
