//! Packets in flight by number: when they left and which ranges they carried (PROTOCOL.md §8.5). No payload.

use timebase::Instant;

use super::blocks::BlockRef;
use super::ring::Ring;

/// What a packet carried that must be sent again if it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    Block { block: BlockRef, offset: u32, len: u16 },
    Message { offset: u64, len: u16 },
}

impl Default for Chunk {
    fn default() -> Self {
        Self::Message { offset: 0, len: 0 }
    }
}

/// Where a packet stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fate {
    /// In flight.
    Outstanding,
    Acked,
    /// Declared lost; kept for a while to notice that it was not.
    Lost,
    /// Carried nothing to be acknowledged, or was a probe of a size; not in flight.
    #[default]
    Quiet,
    /// A number left out on purpose: an acknowledgement of it is a lie (§8.8).
    Skipped,
}

/// A packet as the rest of the connection sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) at: Instant,
    /// The controller's interval it belongs to.
    pub(crate) interval: u32,
    pub(crate) size: u16,
    pub(crate) fate: Fate,
    chunks: u8,
    first_chunk: u32,
    ghost: bool,
}

/// A packet as it is kept: half a million of them are in flight on a fast, long path.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    /// Microseconds, the low 32 bits; the rest follows from when the last packet left.
    at: u32,
    interval: u32,
    first_chunk: u32,
    size: u16,
    chunks: u8,
    fate: Fate,
}

/// A lost packet that left the records before it was forgotten.
#[derive(Clone, Copy, Debug, Default)]
struct Ghost {
    number: u64,
    record: Record,
}

/// Most chunks one packet may carry.
pub(crate) const MAX_CHUNKS: u8 = 16;

#[derive(Debug, Default)]
pub(crate) struct Scoreboard {
    packets: Ring<Record>,
    chunks: Ring<Chunk>,
    /// Lost packets whose acknowledgement may still come, by number; few, since only these outlive their turn.
    ghosts: Ring<Ghost>,
    ghost_chunks: Ring<Chunk>,
    /// Number of the first packet kept, ghosts aside.
    base: u64,
    /// Running index of the first chunk kept.
    chunk_base: u32,
    ghost_chunk_base: u32,
    /// When the last packet left.
    newest: Instant,
    in_flight_bytes: u64,
    in_flight_packets: usize,
}

impl Scoreboard {
    /// The number the next packet gets.
    pub(crate) fn next_number(&self) -> u64 {
        self.base + self.packets.len() as u64
    }

    /// The smallest number still kept, ghosts aside.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Records kept, in flight or not.
    pub(crate) fn len(&self) -> usize {
        self.packets.len()
    }

    pub(crate) fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    pub(crate) fn in_flight_packets(&self) -> usize {
        self.in_flight_packets
    }

    pub(crate) fn push_chunk(&mut self, chunk: Chunk) {
        self.chunks.push_back(chunk);
    }

    /// Records the packet whose last `chunks` chunks were pushed.
    pub(crate) fn push(&mut self, at: Instant, size: usize, chunks: u8, fate: Fate, interval: u32) {
        let end = self.chunk_base.wrapping_add(self.chunks.len() as u32);
        let first_chunk = end.wrapping_sub(u32::from(chunks));
        self.newest = self.newest.max(at);
        let at = self.newest.as_micros() as u32;
        self.packets.push_back(Record { at, interval, first_chunk, size: size as u16, chunks, fate });
        if fate == Fate::Outstanding {
            self.in_flight_bytes += size as u64;
            self.in_flight_packets += 1;
        }
    }

    fn at(&self, record: &Record) -> Instant {
        let newest = self.newest.as_micros();
        Instant::from_micros(newest.saturating_sub(u64::from((newest as u32).wrapping_sub(record.at))))
    }

    fn view(&self, r: &Record, ghost: bool) -> Sent {
        let Record { interval, size, fate, chunks, first_chunk, .. } = *r;
        Sent { at: self.at(r), interval, size, fate, chunks, first_chunk, ghost }
    }

    #[inline]
    pub(crate) fn get(&self, number: u64) -> Option<Sent> {
        let i = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.packets.get(i).map(|r| self.view(r, false))
    }

    /// The `i`th chunk of a packet.
    pub(crate) fn chunk(&self, sent: &Sent, i: u8) -> Option<Chunk> {
        if i >= sent.chunks {
            return None;
        }
        let at = sent.first_chunk.wrapping_add(u32::from(i));
        if sent.ghost {
            self.ghost_chunks.get(at.wrapping_sub(self.ghost_chunk_base) as usize).copied()
        } else {
            self.chunks.get(at.wrapping_sub(self.chunk_base) as usize).copied()
        }
    }

    /// Changes a packet's fate.
    #[inline]
    pub(crate) fn settle(&mut self, number: u64, fate: Fate) {
        let Some(i) = number.checked_sub(self.base).and_then(|i| usize::try_from(i).ok()) else { return };
        let Some(sent) = self.packets.get_mut(i) else { return };
        let before = core::mem::replace(&mut sent.fate, fate);
        if before == Fate::Outstanding && fate != Fate::Outstanding {
            self.in_flight_bytes -= u64::from(sent.size);
            self.in_flight_packets -= 1;
        }
    }

    /// The smallest number of which anything is known.
    pub(crate) fn oldest(&self) -> u64 {
        self.ghosts.front().map_or(self.base, |ghost| ghost.number)
    }

    /// The first ghost among `low..=high` and its number; it is marked as acknowledged and not given again.
    pub(crate) fn take_ghost(&mut self, low: u64, high: u64) -> Option<(u64, Sent)> {
        let (mut from, mut to) = (0, self.ghosts.len());
        while from < to {
            let middle = from + (to - from) / 2;
            match self.ghosts.get(middle) {
                Some(g) if g.number < low => from = middle + 1,
                _ => to = middle,
            }
        }
        while let Some(ghost) = self.ghosts.get_mut(from)
            && ghost.number <= high
        {
            if ghost.record.fate == Fate::Lost {
                ghost.record.fate = Fate::Acked;
                let ghost = *ghost;
                let mut sent = self.view(&ghost.record, true);
                sent.fate = Fate::Lost;
                return Some((ghost.number, sent));
            }
            from += 1;
        }
        None
    }

    /// Forgets packets at the front that are settled. Lost ones remain known as ghosts until `lost_before`, the time
    /// they were sent.
    pub(crate) fn trim(&mut self, lost_before: Instant) {
        while let Some(&first) = self.packets.front() {
            if first.fate == Fate::Outstanding {
                break;
            }
            let keep = first.fate == Fate::Lost && self.at(&first) >= lost_before;
            if keep {
                let first_chunk = self.ghost_chunk_base.wrapping_add(self.ghost_chunks.len() as u32);
                self.ghosts.push_back(Ghost { number: self.base, record: Record { first_chunk, ..first } });
            }
            for _ in 0..first.chunks {
                if let Some(chunk) = self.chunks.pop_front()
                    && keep
                {
                    self.ghost_chunks.push_back(chunk);
                }
            }
            self.chunk_base = self.chunk_base.wrapping_add(u32::from(first.chunks));
            self.packets.pop_front();
            self.base += 1;
        }
        while let Some(&Ghost { record, .. }) = self.ghosts.front()
            && self.at(&record) < lost_before
        {
            for _ in 0..record.chunks {
                self.ghost_chunks.pop_front();
            }
            self.ghost_chunk_base = self.ghost_chunk_base.wrapping_add(u32::from(record.chunks));
            self.ghosts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_their_packets_through_trimming_and_ghosts() {
        // The running index of chunks and the clock's low half wrap on the way.
        let mut b =
            Scoreboard { chunk_base: u32::MAX - 3, ghost_chunk_base: u32::MAX, ..Scoreboard::default() };
        let t = |n: u64| Instant::from_micros((1 << 32) - 4 + n);
        for n in 0..10u64 {
            for i in 0..n % 3 {
                b.push_chunk(Chunk::Message { offset: n * 10 + i, len: 1 });
            }
            b.push(t(n), 100, (n % 3) as u8, Fate::Outstanding, 0);
        }
        assert_eq!((b.in_flight_bytes(), b.in_flight_packets(), b.next_number()), (1000, 10, 10));
        b.settle(0, Fate::Acked);
        for n in [1, 2, 4] {
            b.settle(n, Fate::Lost);
        }
        b.trim(t(1));
        assert_eq!((b.base(), b.len(), b.ghosts.len()), (3, 7, 2), "lost packets are known for a while");
        assert_eq!(b.get(5).unwrap().at, t(5));
        let sent = b.get(5).unwrap();
        assert_eq!(b.chunk(&sent, 1), Some(Chunk::Message { offset: 51, len: 1 }));
        assert_eq!(b.chunk(&sent, 2), None);
        assert!(b.get(2).is_none() && b.get(10).is_none());
        assert!(b.take_ghost(0, 0).is_none() && b.take_ghost(3, 9).is_none());
        let (number, ghost) = b.take_ghost(2, 9).unwrap();
        assert_eq!((b.oldest(), number), (1, 2));
        assert_eq!((ghost.at, ghost.fate), (t(2), Fate::Lost));
        assert_eq!(b.chunk(&ghost, 1), Some(Chunk::Message { offset: 21, len: 1 }));
        assert!(b.take_ghost(2, 9).is_none(), "once");
        b.settle(3, Fate::Acked);
        b.trim(t(2));
        assert_eq!((b.base(), b.ghosts.len()), (5, 2), "the oldest is forgotten, one has come");
        let (_, ghost) = b.take_ghost(0, 9).unwrap();
        assert_eq!(b.chunk(&ghost, 0), Some(Chunk::Message { offset: 40, len: 1 }));
    }

    #[test]
    fn a_packet_in_flight_costs_32_bytes() {
        assert_eq!((size_of::<Record>(), size_of::<Chunk>(), size_of::<Ghost>()), (16, 16, 24));
    }
}
