//! Packets on their way: one block of memory, allocated once, that is used in a circle.
//!
//! Packets leave in the order they came; what may be overtaken is kept elsewhere (`carrier`).

use std::collections::VecDeque;

/// A packet's place and times.
struct Slot {
    at: usize,
    len: usize,
    leaves: u64,
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

    /// Whether the packet was kept: false if there is no room. It leaves the bottleneck at `leaves` and arrives at
    /// `due`, though not before the one ahead.
    #[must_use]
    pub(crate) fn push(&mut self, packet: &[u8], leaves: u64, due: u64) -> bool {
        let Some(at) = self.place(packet.len()) else { return false };
        let due = self.slots.back().map_or(due, |last| due.max(last.due));
        self.memory[at..at + packet.len()].copy_from_slice(packet);
        self.tail = at + packet.len();
        self.slots.push_back(Slot { at, len: packet.len(), leaves, due });
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

    /// Moves every packet's times as `moved` moves the time at which it leaves. The order stays.
    pub(crate) fn retime(&mut self, moved: impl Fn(u64) -> u64) {
        let mut last = 0;
        for slot in &mut self.slots {
            let leaves = moved(slot.leaves);
            slot.due = ((slot.due - slot.leaves) + leaves).max(last);
            slot.leaves = leaves;
            last = slot.due;
        }
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
            while ring.push(&packet(pushed), 0, pushed as u64) {
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
        assert!(!ring.push(&[0; 101], 0, 0) && ring.push(&[0; 60], 0, 0));
        assert!(!ring.push(&[0; 60], 0, 1) && ring.push(&[0; 40], 0, 1));
        assert!(!ring.push(&[0; 1], 0, 2));
        ring.pop();
        assert!(ring.push(&[0; 59], 0, 2), "the room at the front is used again");
        assert!(!ring.push(&[0; 1], 0, 3));
    }

    #[test]
    fn new_times_keep_the_order_and_what_was_added_behind_the_bottleneck() {
        let mut ring = Ring::new(100);
        for (leaves, due) in [(10, 15), (20, 29), (30, 35)] {
            assert!(ring.push(b"a", leaves, due));
        }
        // From 20 on at twice the rate: the last would overtake.
        ring.retime(|leaves| if leaves > 20 { 20 + (leaves - 20) / 2 } else { leaves });
        let dues: Vec<u64> = ring.slots.iter().map(|slot| slot.due).collect();
        assert_eq!(dues, [15, 29, 30]);
        ring.retime(|_| 22);
        assert_eq!(ring.next_due(), Some(27));
        ring.pop();
        assert_eq!(ring.next_due(), Some(31), "9 behind the bottleneck");
        ring.pop();
        assert_eq!(ring.next_due(), Some(31), "not before the one ahead");
    }
}
