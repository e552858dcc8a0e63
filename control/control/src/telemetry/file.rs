//! The bytes of a file of rows (`control/TELEMETRY_FORMAT.md` §2, §3).

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Seek};

use event_schema::{AgentId, RunId};

use super::gather::Owned;
use super::row::{Row, Width, put, take};

/// First bytes of a file.
const MAGIC: [u8; 8] = *b"FLOTTEL\n";

/// Version of the format.
const VERSION: u16 = 1;

/// Bytes of a file's head.
pub(super) const HEAD_BYTES: usize = 32;

/// Bytes before a block's payload: its length and checksum.
const FRAME_BYTES: usize = 8;

/// Bytes of a payload, at most; writers begin another block at a quarter of it.
const PAYLOAD_MAX: usize = 4 << 20;

/// Bytes of a payload's head: the times of its first and last row.
const TIMES_BYTES: usize = 16;

/// The head of a file that begins at `start`.
pub(super) fn head(width: Width, start: u64) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&MAGIC);
    head[8..10].copy_from_slice(&VERSION.to_le_bytes());
    head[12..16].copy_from_slice(&(width.seconds() as u32).to_le_bytes());
    head[16..24].copy_from_slice(&start.to_le_bytes());
    let checksum = crc32fast::hash(&head[..28]);
    head[28..].copy_from_slice(&checksum.to_le_bytes());
    head
}

/// Rows as blocks, by run and agent.
pub(super) fn blocks(rows: &[Owned]) -> Vec<u8> {
    let mut runs: BTreeMap<RunId, BTreeMap<AgentId, Vec<&Row>>> = BTreeMap::new();
    for (run, agent, row) in rows {
        runs.entry(*run).or_default().entry(*agent).or_default().push(row);
    }
    let mut out = Vec::new();
    let mut block = Block::default();
    for (run, agents) in runs {
        let mut group = Vec::new();
        for (agent, mut rows) in agents {
            rows.sort_by_key(|row| row.start);
            group.extend(agent.0);
            put(rows.len() as u64, &mut group);
            let mut before = 0;
            for row in rows {
                row.encode(before, &mut group);
                before = row.start;
                block.first = Some(block.first.map_or(row.start, |first| first.min(row.start)));
                block.last = block.last.max(row.start);
            }
            if group.len() >= PAYLOAD_MAX / 4 {
                block.put(run, std::mem::take(&mut group), &mut out);
            }
        }
        if !group.is_empty() {
            block.put(run, group, &mut out);
        }
    }
    block.end(&mut out);
    out
}

/// A block that is being made.
#[derive(Default)]
struct Block {
    groups: Vec<u8>,
    first: Option<u64>,
    last: u64,
}

impl Block {
    fn put(&mut self, run: RunId, group: Vec<u8>, out: &mut Vec<u8>) {
        self.groups.extend(run.0);
        // A group is ended long before its length would not fit.
        self.groups.extend((group.len() as u32).to_le_bytes());
        self.groups.extend(group);
        if self.groups.len() >= PAYLOAD_MAX / 4 {
            self.end(out);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let Self { groups, first: Some(first), last } = std::mem::take(self) else { return };
        let mut payload = Vec::with_capacity(TIMES_BYTES + groups.len());
        payload.extend(first.to_le_bytes());
        payload.extend(last.to_le_bytes());
        payload.extend(groups);
        out.extend((payload.len() as u32).to_le_bytes());
        out.extend(crc32fast::hash(&payload).to_le_bytes());
        out.extend(payload);
    }
}

/// What a file's bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// All of it holds.
    Whole,
    /// Up to here; what follows was being written when the process or the machine stopped.
    Torn(u64),
    /// Something in the middle does not hold, or it is no file of this kind.
    Damaged,
}

/// Bytes that are read ahead; a block that is not wanted is passed over beyond that.
const AHEAD_BYTES: usize = 8 * 1024;

/// Goes through the blocks of a file that has `length` bytes, one after the other; `wanted` says of times whether a
/// block is to be taken, `take` takes it. Damage ends it. Blocks that are not wanted are not read, unless `all` of them
/// are to be checked.
pub(super) fn scan(
    file: impl Read + Seek,
    length: u64,
    (width, start): (Width, u64),
    all: bool,
    wanted: impl Fn(u64, u64) -> bool,
    mut take: impl FnMut(&[u8]) -> Option<()>,
) -> io::Result<Found> {
    let mut file = BufReader::with_capacity(AHEAD_BYTES, file);
    if length < HEAD_BYTES as u64 {
        return Ok(Found::Torn(0));
    }
    let mut own = [0; HEAD_BYTES];
    file.read_exact(&mut own)?;
    if own != head(width, start) {
        return Ok(Found::Damaged);
    }
    let mut at = HEAD_BYTES as u64;
    let mut payload = Vec::new();
    while at < length {
        let left = length - at;
        if left < FRAME_BYTES as u64 {
            return Ok(Found::Torn(at));
        }
        let mut frame = [0; FRAME_BYTES];
        file.read_exact(&mut frame)?;
        let bytes = u32_at(&frame, 0) as usize;
        // What a machine leaves that lost its power: room that was never written.
        if frame == [0; FRAME_BYTES] && is_zeros(&mut file)? {
            return Ok(Found::Torn(at));
        }
        if !(TIMES_BYTES..=PAYLOAD_MAX).contains(&bytes) {
            return Ok(Found::Damaged);
        }
        if left < (FRAME_BYTES + bytes) as u64 {
            return Ok(Found::Torn(at));
        }
        let mut times = [0; TIMES_BYTES];
        file.read_exact(&mut times)?;
        let is_wanted = wanted(u64_at(&times, 0), u64_at(&times, 8));
        if is_wanted || all {
            payload.clear();
            payload.resize(bytes, 0);
            payload[..TIMES_BYTES].copy_from_slice(&times);
            file.read_exact(&mut payload[TIMES_BYTES..])?;
            if crc32fast::hash(&payload) != u32_at(&frame, 4) {
                return Ok(if is_zeros(&mut file)? { Found::Torn(at) } else { Found::Damaged });
            }
            if is_wanted && take(&payload[TIMES_BYTES..]).is_none() {
                return Ok(Found::Damaged);
            }
        } else {
            file.seek_relative((bytes - TIMES_BYTES) as i64)?;
        }
        at += (FRAME_BYTES + bytes) as u64;
    }
    Ok(Found::Whole)
}

/// Whether nothing but zeros follows.
fn is_zeros(file: &mut impl Read) -> io::Result<bool> {
    let mut some = [0; 4096];
    loop {
        match file.read(&mut some)? {
            0 => return Ok(true),
            read if some[..read].iter().any(|byte| *byte != 0) => return Ok(false),
            _ => {}
        }
    }
}

/// The rows of a block's payload, of one run or of all; none if it is not what it should be.
pub(super) fn rows(
    mut groups: &[u8],
    run: Option<RunId>,
    each: &mut dyn FnMut(RunId, AgentId, Row),
) -> Option<()> {
    while !groups.is_empty() {
        let (of, rest) = groups.split_first_chunk::<16>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (mut group, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        groups = rest;
        if run.is_some_and(|run| run.0 != *of) {
            continue;
        }
        while !group.is_empty() {
            let (agent, rest) = group.split_first_chunk::<16>()?;
            group = rest;
            let (count, mut before) = (take(&mut group)?, 0);
            for _ in 0..count {
                let row = Row::decode(before, &mut group)?;
                before = row.start;
                each(RunId(*of), AgentId(*agent), row);
            }
        }
    }
    Some(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::RunAgentState;

    /// Counts what is read of it.
    struct Counted(io::Cursor<Vec<u8>>, u64);

    impl Read for &mut Counted {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(bytes)?;
            self.1 += read as u64;
            Ok(read)
        }
    }

    impl Seek for &mut Counted {
        fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn blocks_of_other_times_are_not_read() {
        let mut bytes = head(Width::Second, 0).to_vec();
        for second in 0..20 {
            let rows: Vec<Owned> = (0..20_000u32)
                .map(|n| {
                    let mut agent = [0; 16];
                    agent[..4].copy_from_slice(&n.to_be_bytes());
                    let row = Row {
                        start: second,
                        state: RunAgentState::Transferring,
                        samples: 1,
                        peers: 2,
                        bytes_done: 1 << 40,
                        bytes_sent: 1 << 40,
                        verified: 1 << 20,
                        sent: 1 << 20,
                        peak: 1 << 20,
                    };
                    (RunId([1; 16]), AgentId(agent), row)
                })
                .collect();
            bytes.extend(blocks(&rows));
        }
        let length = bytes.len() as u64;
        let mut file = Counted(io::Cursor::new(bytes), 0);
        let mut found = 0;
        let name = (Width::Second, 0);
        let mut look = |file: &mut Counted, all: bool| {
            let take = |groups: &[u8]| rows(groups, None, &mut |_, _, row| found += row.start);
            let wanted = |first, last| first <= 7 && last >= 7;
            scan(file, length, name, all, wanted, take).expect("readable")
        };
        assert_eq!(look(&mut file, false), Found::Whole);
        assert!(file.1 < length / 10, "{} of {length}", file.1);
        file.0.set_position(0);
        assert_eq!(look(&mut file, true), Found::Whole);
        assert_eq!(found, 2 * 7 * 20_000);
    }
}
