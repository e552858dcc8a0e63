//! The bytes of a file of rows (`control/TELEMETRY_FORMAT.md` §2, §3).

use std::collections::BTreeMap;

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
    Torn(usize),
    /// Something in the middle does not hold, or it is no file of this kind.
    Damaged,
}

/// Goes through a file's blocks; `wanted` says of times whether a block is to be taken, `take` takes it. Damage ends it.
pub(super) fn scan(
    bytes: &[u8],
    width: Width,
    start: u64,
    wanted: impl Fn(u64, u64) -> bool,
    mut take: impl FnMut(&[u8]) -> Option<()>,
) -> Found {
    if bytes.len() < HEAD_BYTES {
        return Found::Torn(0);
    }
    if bytes[..HEAD_BYTES] != head(width, start) {
        return Found::Damaged;
    }
    let mut at = HEAD_BYTES;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let Some((frame, rest)) = rest.split_at_checked(FRAME_BYTES) else { return Found::Torn(at) };
        let length = u32_at(frame, 0) as usize;
        // What a machine leaves that lost its power: room that was never written.
        if length == 0 && frame.iter().chain(rest).all(|byte| *byte == 0) {
            return Found::Torn(at);
        }
        if !(TIMES_BYTES..=PAYLOAD_MAX).contains(&length) {
            return Found::Damaged;
        }
        let Some((payload, after)) = rest.split_at_checked(length) else { return Found::Torn(at) };
        if crc32fast::hash(payload) != u32_at(frame, 4) {
            return if after.iter().all(|byte| *byte == 0) { Found::Torn(at) } else { Found::Damaged };
        }
        if wanted(u64_at(payload, 0), u64_at(payload, 8)) && take(&payload[TIMES_BYTES..]).is_none() {
            return Found::Damaged;
        }
        at += FRAME_BYTES + length;
    }
    Found::Whole
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
