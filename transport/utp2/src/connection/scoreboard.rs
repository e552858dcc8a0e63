//! Packets in flight by number: when they left and which ranges they carried (PROTOCOL.md §8.5). No payload.

use alloc::collections::VecDeque;

use timebase::Instant;

use super::blocks::BlockRef;

/// What a packet carried that must be sent again if it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    Block { block: BlockRef, offset: u32, len: u16 },
    Message { offset: u64, len: u16 },
}

/// Where a packet stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// In flight.
    Outstanding,
    Acked,
    /// Declared lost; kept for a while to notice that it was not.
    Lost,
    /// Carried nothing to be acknowledged; not in flight.
    Quiet,
    /// A number left out on purpose: an acknowledgement of it is a lie (§8.8).
    Skipped,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) at: Instant,
    /// The controller's interval it belongs to.
    pub(crate) interval: u32,
    first_chunk: u32,
    pub(crate) size: u16,
    chunks: u8,
    pub(crate) fate: Fate,
}

/// Most chunks one packet may carry.
pub(crate) const MAX_CHUNKS: u8 = 16;

#[derive(Debug, Default)]
pub(crate) struct Scoreboard {
    packets: VecDeque<Sent>,
    chunks: VecDeque<Chunk>,
    /// Number of the first packet kept.
    base: u64,
    /// Running index of the first chunk kept.
    chunk_base: u32,
    in_flight_bytes: u64,
    in_flight_packets: usize,
}

impl Scoreboard {
    /// The number the next packet gets.
    pub(crate) fn next_number(&self) -> u64 {
        self.base + self.packets.len() as u64
    }

    /// The smallest number still kept.
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
        self.packets.push_back(Sent { at, interval, first_chunk, size: size as u16, chunks, fate });
        if fate == Fate::Outstanding {
            self.in_flight_bytes += size as u64;
            self.in_flight_packets += 1;
        }
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Sent> {
        self.packets.get(usize::try_from(number.checked_sub(self.base)?).ok()?)
    }

    /// The `i`th chunk of a packet.
    pub(crate) fn chunk(&self, sent: &Sent, i: u8) -> Option<Chunk> {
        if i >= sent.chunks {
            return None;
        }
        let at = sent.first_chunk.wrapping_add(u32::from(i)).wrapping_sub(self.chunk_base);
        self.chunks.get(at as usize).copied()
    }

    /// Changes a packet's fate and returns it as it was before.
    pub(crate) fn settle(&mut self, number: u64, fate: Fate) -> Option<Sent> {
        let i = usize::try_from(number.checked_sub(self.base)?).ok()?;
        let sent = self.packets.get_mut(i)?;
        let before = *sent;
        sent.fate = fate;
        if before.fate == Fate::Outstanding && fate != Fate::Outstanding {
            self.in_flight_bytes -= u64::from(before.size);
            self.in_flight_packets -= 1;
        }
        Some(before)
    }

    /// Forgets packets at the front that are settled; lost ones only if sent before `lost_before`.
    pub(crate) fn trim(&mut self, lost_before: Instant) {
        while let Some(first) = self.packets.front() {
            match first.fate {
                Fate::Outstanding => break,
                Fate::Lost if first.at >= lost_before => break,
                _ => {}
            }
            for _ in 0..first.chunks {
                self.chunks.pop_front();
            }
            self.chunk_base = self.chunk_base.wrapping_add(u32::from(first.chunks));
            self.packets.pop_front();
            self.base += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_their_packets_through_trimming() {
        // The running index of chunks wraps on the way.
        let mut b = Scoreboard { chunk_base: u32::MAX - 3, ..Scoreboard::default() };
        let t = Instant::from_micros;
        for n in 0..10u64 {
            for i in 0..n % 3 {
                b.push_chunk(Chunk::Message { offset: n * 10 + i, len: 1 });
            }
            b.push(t(n), 100, (n % 3) as u8, Fate::Outstanding, 0);
        }
        assert_eq!((b.in_flight_bytes(), b.in_flight_packets(), b.next_number()), (1000, 10, 10));
        b.settle(0, Fate::Acked);
        b.settle(1, Fate::Lost);
        b.settle(2, Fate::Acked);
        b.trim(t(1));
        assert_eq!((b.base(), b.len()), (1, 9), "a lost packet is kept for a while");
        b.trim(t(2));
        assert_eq!((b.base(), b.len(), b.in_flight_packets()), (3, 7, 7));
        let sent = *b.get(5).unwrap();
        assert_eq!(b.chunk(&sent, 1), Some(Chunk::Message { offset: 51, len: 1 }));
        assert_eq!(b.chunk(&sent, 2), None);
        assert!(b.get(2).is_none() && b.get(10).is_none() && b.settle(2, Fate::Acked).is_none());
    }

    #[test]
    fn a_packet_in_flight_costs_a_few_dozen_bytes() {
        assert!(
            size_of::<Sent>() + size_of::<Chunk>() <= 56,
            "{} + {}",
            size_of::<Sent>(),
            size_of::<Chunk>()
        );
    }
}
