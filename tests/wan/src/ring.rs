//! Packets on their way: one block of memory, allocated once, that is used in a circle.
//!
//! Packets leave in the order they came; what may be overtaken is kept elsewhere (`carrier`).

use std::collections::VecDeque;

/// A packet's place and time.
struct Slot {
    at: usize,
    len: usize,
    due: u64,
}

pub(crate) struct Ring {
    memory: Box<[u8]>,
    /// Where the next packet goes.
    tail: usize,
    slots: VecDeque<Slot>,
}

impl Ring {
    /// Room for `bytes` of packets.
    pub(crate) fn new(bytes: usize) -> Self {
        // Small packets come along; the list grows if there are more of them.
        Self {
            memory: vec![0; bytes].into_boxed_slice(),
            tail: 0,
            slots: VecDeque::with_capacity(bytes / 1024),
        }
    }

    /// Whether the packet was kept: false if there is no room.
    #[must_use]
    pub(crate) fn push(&mut self, packet: &[u8], due: u64) -> bool {
        let Some(at) = self.place(packet.len()) else { return false };
        self.memory[at..at + packet.len()].copy_from_slice(packet);
        self.tail = at + packet.len();
        self.slots.push_back(Slot { at, len: packet.len(), due });
        true
    }

    /// Where `len` bytes fit in one piece.
    fn place(&self, len: usize) -> Option<usize> {
        let Some(head) = self.slots.front().map(|slot| slot.at) else {
            return (len <= self.memory.len()).then_some(0);
        };
        if self.tail > head {
            if self.memory.len() - self.tail >= len {
                return Some(self.tail);
            }
            // Never up to the head: equal marks would look like an empty ring.
            return (head > len).then_some(0);
        }
        (head - self.tail > len).then_some(self.tail)
    }

    /// When the next packet is due.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.slots.front().map(|slot| slot.due)
    }

    /// The next packet.
    pub(crate) fn front(&self) -> Option<&[u8]> {
        self.slots.front().map(|slot| &self.memory[slot.at..slot.at + slot.len])
    }

    /// Gives the next packet's memory back.
    pub(crate) fn pop(&mut self) {
        self.slots.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_out_as_they_went_in() {
        let mut ring = Ring::new(1000);
        let packet = |i: usize| vec![i as u8; 1 + i * 37 % 300];
        let (mut pushed, mut popped) = (0, 0);
        while popped < 5000 {
            while ring.push(&packet(pushed), pushed as u64) {
                pushed += 1;
            }
            assert!(pushed > popped, "an empty ring takes a packet");
            for _ in 0..1 + pushed % 3 {
                let Some(due) = ring.next_due() else { break };
                assert_eq!(due, popped as u64);
                assert_eq!(ring.front(), Some(&packet(popped)[..]));
                ring.pop();
                popped += 1;
            }
        }
    }

    #[test]
    fn a_full_ring_takes_nothing() {
        let mut ring = Ring::new(100);
        assert!(!ring.push(&[0; 101], 0) && ring.push(&[0; 60], 0));
        assert!(!ring.push(&[0; 60], 1) && ring.push(&[0; 40], 1));
        assert!(!ring.push(&[0; 1], 2));
        ring.pop();
        assert!(ring.push(&[0; 59], 2), "the room at the front is used again");
        assert!(!ring.push(&[0; 1], 3));
    }
}
