//! What is to happen in virtual time, in order; what is to happen at the same moment, in the order it was put in.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use timebase::Instant;

/// Small keys in a heap, the events themselves at rest beside it: a million of them wait in a large world.
pub(crate) struct Queue<E> {
    heap: BinaryHeap<Reverse<(u64, u64)>>,
    events: Vec<Option<E>>,
    free: Vec<u32>,
    sequence: u64,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), sequence: 0 }
    }

    pub(crate) fn push(&mut self, at: Instant, event: E) {
        let place = match self.free.pop() {
            Some(place) => {
                self.events[place as usize] = Some(event);
                place
            }
            None => {
                self.events.push(Some(event));
                u32::try_from(self.events.len() - 1).expect("fewer events than that")
            }
        };
        assert!(place < 1 << 24, "millions of events wait");
        self.sequence += 1;
        self.heap.push(Reverse((at.as_micros(), self.sequence << 24 | u64::from(place))));
    }

    pub(crate) fn pop(&mut self) -> Option<(Instant, E)> {
        let Reverse((at, key)) = self.heap.pop()?;
        let place = (key & 0xff_ffff) as u32;
        self.free.push(place);
        Some((Instant::from_micros(at), self.events[place as usize].take().expect("put in once, taken once")))
    }
}
