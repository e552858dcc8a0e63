//! Blocks that are looked for at any place of a file, by their weak hashes (`edge-agent/PROTOCOL.md` §4.4).
//!
//! A window moves along the file; where a weak hash fits, the strong one decides. What is guessed at is bounded by a
//! budget of false alarms.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use agent_proto::limits::BLOCK_LEN;
use event_schema::Problem;
use sync_core::merkle::{Hash, block_hash};
use sync_core::weak::Rolling;

/// Bytes of the window: of a block of full length.
pub(super) const WINDOW: usize = BLOCK_LEN as usize;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// Windows whose weak hash is right and whose strong one is not, beside one for each block passed: more is no chance but
/// somebody's making, and each costs 25 µs.
pub(super) const FALSE_ALARMS: u64 = 1_000;

/// Contents of one weak hash that are compared with a window.
const SAME_WEAK_MAX: usize = 8;

/// Bytes a second that fetching is worth: nobody searches for longer than fetching would take at that.
const WORTH_BPS: u64 = 10 << 20;

/// The least and the most time for a search.
const SEARCH: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// How long to look for so many bytes.
pub(crate) fn worth(bytes: u64) -> Duration {
    Duration::from_secs(bytes / WORTH_BPS).clamp(SEARCH.0, SEARCH.1)
}

/// What a window that moved along a file came upon.
#[derive(Default)]
pub(crate) struct Rolled {
    /// Blocks.
    pub(crate) found: u64,
    /// Windows that had a weak hash which is sought, and no strong one.
    pub(crate) false_alarms: u64,
    /// There were too many of them.
    pub(crate) gave_up: bool,
}

/// Takes a block that was found, by its number.
pub(crate) type Keep<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Problem> + 'a;

/// Moves a window along stretches of a file and keeps each block that it comes upon and nobody found before. A file that
/// cannot be read ends the search, for what is found is found.
///
/// # Errors
/// Those of `keep`.
pub(crate) fn roll(
    file: &File,
    stretches: &[Range<u64>],
    sought: &mut Sought,
    go_on: &dyn Fn() -> bool,
    keep: &mut Keep<'_>,
) -> Result<Rolled, Problem> {
    let (mut rolled, mut passed) = (Rolled::default(), 0);
    for stretch in stretches {
        if stretch.end - stretch.start < WINDOW as u64 {
            continue;
        }
        let mut at = stretch.start;
        let mut buffer = Vec::new();
        // Where the buffer begins in the file.
        let mut base = at;
        let mut rolling: Option<Rolling> = None;
        while at + WINDOW as u64 <= stretch.end && sought.left > 0 {
            let mut offset = (at - base) as usize;
            if offset + WINDOW + 1 > buffer.len() {
                if !go_on() {
                    return Ok(rolled);
                }
                // What the window covers stays, the next chunk follows.
                buffer.drain(..offset.min(buffer.len()));
                base = at;
                offset = 0;
                let had = buffer.len();
                let more = (stretch.end - (base + had as u64)).min(CHUNK as u64) as usize;
                buffer.resize(had + more, 0);
                if file.read_exact_at(&mut buffer[had..], base + had as u64).is_err() {
                    // It changes under us.
                    return Ok(rolled);
                }
            }
            let window = &buffer[offset..offset + WINDOW];
            let hash = rolling.get_or_insert_with(|| Rolling::new(window));
            if sought.may_have(hash.value()) {
                let mut hit = false;
                let mut strong: Option<Hash> = None;
                for group in sought.with(hash.value()) {
                    // What is here needs no second look: content that repeats itself comes by often.
                    if sought.groups[group].found
                        || *strong.get_or_insert_with(|| block_hash(window)) != sought.groups[group].strong
                    {
                        continue;
                    }
                    hit = true;
                    sought.groups[group].found = true;
                    sought.left -= 1;
                    for block in sought.blocks(group) {
                        keep(block, window)?;
                        rolled.found += 1;
                    }
                }
                if hit {
                    // What follows it there most likely follows it here.
                    at += WINDOW as u64;
                    passed += WINDOW as u64;
                    if at + WINDOW as u64 <= stretch.end && (at - base) as usize + WINDOW <= buffer.len() {
                        let offset = (at - base) as usize;
                        hash.restart(&buffer[offset..offset + WINDOW]);
                    } else {
                        rolling = None;
                    }
                    continue;
                }
                rolled.false_alarms += u64::from(strong.is_some());
                if rolled.false_alarms > FALSE_ALARMS + passed / WINDOW as u64 {
                    rolled.gave_up = true;
                    return Ok(rolled);
                }
            }
            if let Some(&into) = buffer.get(offset + WINDOW) {
                hash.roll(buffer[offset], into);
            }
            at += 1;
            passed += 1;
        }
    }
    Ok(rolled)
}

/// Blocks that are looked for, by weak hash.
pub(crate) struct Sought {
    /// Sorted by weak hash.
    groups: Vec<Group>,
    /// Those that are not found.
    left: usize,
    /// The blocks of all groups, one after the other.
    blocks: Vec<u64>,
    /// A bit for each value of the weak hash's low bits: most windows are nobody's.
    filter: Vec<u64>,
    mask: u32,
}

/// Blocks of the same content, however many: found together, and not looked at again.
struct Group {
    weak: u32,
    strong: Hash,
    /// Where its blocks end in the list of all.
    end: usize,
    found: bool,
}

impl Sought {
    /// Blocks of full length: weak hash, number, strong hash.
    pub(crate) fn new(mut rows: Vec<(u32, u64, Hash)>) -> Self {
        rows.sort_unstable_by_key(|(weak, block, strong)| (*weak, *strong, *block));
        let bits = (rows.len() * 32).next_power_of_two().clamp(64, 1 << 24);
        let mut filter = vec![0; bits / 64];
        let mask = (bits - 1) as u32;
        let (mut groups, mut blocks): (Vec<Group>, Vec<u64>) = (Vec::new(), Vec::with_capacity(rows.len()));
        for (weak, block, strong) in rows {
            let bit = weak & mask;
            filter[bit as usize / 64] |= 1 << (bit % 64);
            blocks.push(block);
            match groups.last_mut() {
                Some(last) if last.weak == weak && last.strong == strong => last.end = blocks.len(),
                _ => groups.push(Group { weak, strong, end: blocks.len(), found: false }),
            }
        }
        Self { left: groups.len(), groups, blocks, filter, mask }
    }

    /// Whether all are found.
    pub(super) fn is_done(&self) -> bool {
        self.left == 0
    }

    #[inline]
    fn may_have(&self, weak: u32) -> bool {
        let bit = weak & self.mask;
        self.filter[bit as usize / 64] & (1 << (bit % 64)) != 0
    }

    /// The groups with this weak hash: one, but for chance and malice.
    fn with(&self, weak: u32) -> Range<usize> {
        let first = self.groups.partition_point(|group| group.weak < weak);
        let count = self.groups[first..].partition_point(|group| group.weak == weak);
        first..first + count.min(SAME_WEAK_MAX)
    }

    fn blocks(&self, group: usize) -> Vec<u64> {
        let start = group.checked_sub(1).map_or(0, |before| self.groups[before].end);
        self.blocks[start..self.groups[group].end].to_vec()
    }
}
