//! Connections in slots, with the three queues an endpoint keeps of them: who may have something to send, who has
//! events, who waits until when. All of them cost nothing for a connection that is quiet.

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;

use timebase::Instant;

use super::Asker;
use crate::wire::Cid;
use crate::{Connection, Handle};

#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
    cid: Cid,
    asker: Option<Asker>,
    remote_cid: Option<Cid>,
    half_open: bool,
    /// Its end was told to the application.
    told: bool,
    in_ready: bool,
    in_eventful: bool,
    in_changed: bool,
    /// Its entry in `timers`.
    deadline: Option<Instant>,
}

/// What a connection was known by.
pub(super) struct Known {
    pub(super) cid: Cid,
    pub(super) asker: Option<Asker>,
    pub(super) remote_cid: Option<Cid>,
}

pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    ready: VecDeque<u32>,
    eventful: VecDeque<u32>,
    /// Their deadlines must be asked for again.
    changed: Vec<u32>,
    timers: BTreeSet<(Instant, u32)>,
    used: usize,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            eventful: VecDeque::new(),
            changed: Vec::new(),
            timers: BTreeSet::new(),
            used: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.used
    }

    pub(super) fn insert(
        &mut self,
        make: impl FnOnce(Handle) -> Connection,
        cid: Cid,
        asker: Option<Asker>,
    ) -> Handle {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let s = &mut self.slots[slot as usize];
        let handle = Handle { slot, generation: s.generation };
        s.connection = Some(Box::new(make(handle)));
        (s.cid, s.asker, s.half_open, s.told) = (cid, asker, false, false);
        s.remote_cid = None;
        self.used += 1;
        handle
    }

    /// Frees a slot; what it was known by.
    pub(super) fn remove(&mut self, slot: u32) -> Option<Known> {
        let s = self.slots.get_mut(slot as usize)?;
        s.connection.take()?;
        self.used -= 1;
        if let Some(t) = s.deadline.take() {
            self.timers.remove(&(t, slot));
        }
        // A handle is never used again: a slot whose generations are used up stays empty.
        s.generation = s.generation.wrapping_add(1);
        if s.generation != 0 {
            self.free.push(slot);
        }
        Some(Known { cid: s.cid, asker: s.asker.take(), remote_cid: s.remote_cid.take() })
    }

    /// Notes the peer's CID; returns it if it is new.
    pub(super) fn learn_remote(&mut self, slot: u32) -> Option<Cid> {
        let s = &mut self.slots[slot as usize];
        if s.remote_cid.is_some() {
            return None;
        }
        s.remote_cid = s.connection.as_deref().and_then(Connection::remote_cid);
        s.remote_cid
    }

    pub(super) fn occupied(&self) -> Vec<u32> {
        (0..self.slots.len() as u32).filter(|i| self.slots[*i as usize].connection.is_some()).collect()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.connection.as_deref_mut()
    }

    pub(super) fn handle(&self, slot: u32) -> Handle {
        Handle { slot, generation: self.slots[slot as usize].generation }
    }

    /// The connection an application may know by this handle.
    pub(super) fn by_handle(&self, handle: Handle) -> Option<&Connection> {
        let s = self.slots.get(handle.slot as usize)?;
        let c = s.connection.as_deref()?;
        (s.generation == handle.generation && !s.told && c.is_announced()).then_some(c)
    }

    /// Sets whether the connection is half open; returns whether it was.
    pub(super) fn set_half_open(&mut self, slot: u32, half_open: bool) -> bool {
        core::mem::replace(&mut self.slots[slot as usize].half_open, half_open)
    }

    pub(super) fn set_told(&mut self, slot: u32) {
        self.slots[slot as usize].told = true;
    }

    pub(super) fn is_told(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|s| s.told)
    }

    /// The connection may have something to send, to tell, or to wait for.
    #[inline]
    pub(super) fn touch(&mut self, slot: u32) {
        let s = &mut self.slots[slot as usize];
        let Some(c) = s.connection.as_deref() else { return };
        if !core::mem::replace(&mut s.in_ready, true) {
            self.ready.push_back(slot);
        }
        if !s.told && !s.in_eventful && c.has_events() {
            s.in_eventful = true;
            self.eventful.push_back(slot);
        }
        if !core::mem::replace(&mut s.in_changed, true) {
            self.changed.push(slot);
        }
    }

    /// As [`Slots::touch`] for one that has nothing more to send.
    pub(super) fn rest(&mut self, slot: u32) {
        let s = &mut self.slots[slot as usize];
        let Some(c) = s.connection.as_deref() else { return };
        if !s.told && !s.in_eventful && c.has_events() {
            s.in_eventful = true;
            self.eventful.push_back(slot);
        }
        if !core::mem::replace(&mut s.in_changed, true) {
            self.changed.push(slot);
        }
    }

    pub(super) fn next_ready(&mut self) -> Option<u32> {
        let slot = self.ready.pop_front()?;
        self.slots[slot as usize].in_ready = false;
        Some(slot)
    }

    pub(super) fn next_eventful(&mut self) -> Option<u32> {
        if self.eventful.is_empty() {
            // The application may have changed a connection since it was touched.
            for &slot in &self.changed {
                let s = &mut self.slots[slot as usize];
                let has = s.connection.as_deref().is_some_and(Connection::has_events);
                if has && !s.told && !core::mem::replace(&mut s.in_eventful, true) {
                    self.eventful.push_back(slot);
                }
            }
        }
        let slot = self.eventful.pop_front()?;
        self.slots[slot as usize].in_eventful = false;
        Some(slot)
    }

    /// Asks those that changed for their deadlines.
    pub(super) fn refresh(&mut self) {
        for slot in self.changed.drain(..) {
            let s = &mut self.slots[slot as usize];
            s.in_changed = false;
            let deadline = s.connection.as_deref().and_then(Connection::next_timeout);
            if deadline != s.deadline {
                if let Some(t) = s.deadline {
                    self.timers.remove(&(t, slot));
                }
                if let Some(t) = deadline {
                    self.timers.insert((t, slot));
                }
                s.deadline = deadline;
            }
        }
    }

    pub(super) fn next_deadline(&mut self) -> Option<Instant> {
        self.refresh();
        self.timers.first().map(|t| t.0)
    }

    /// One connection whose deadline has come; it is not given again before [`Slots::refresh`] asked for a new one,
    /// so a caller that loops comes to an end.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<u32> {
        let first = *self.timers.first()?;
        if first.0 > now {
            return None;
        }
        self.timers.remove(&first);
        self.slots[first.1 as usize].deadline = None;
        Some(first.1)
    }
}
