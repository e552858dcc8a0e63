//! The core state: all that a device must not forget, in one value that every record of the journal carries whole
//! (DEVICE_FORMAT.md §4).

use event_schema::Timestamp;

use crate::codec::{Reader, Writing};
use crate::limits::{BLOCKS_MAX, TRIES};

/// Bytes of an encoded core state.
pub(crate) const CORE_LEN: usize = 264;

const VERSION: u8 = 1;

/// One of the two places for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// The one that this is not.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// 0 or 1.
    pub fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Nothing that counts.
    Empty,
    /// An image some of whose blocks may be missing.
    Receiving,
    /// A whole image for this board, newer than what is confirmed.
    Ready,
    /// An image that has to prove itself.
    Trial,
    /// An image that proved itself.
    Confirmed,
}

impl SlotState {
    const ALL: [Self; 5] = [Self::Empty, Self::Receiving, Self::Ready, Self::Trial, Self::Confirmed];
}

/// What is known of a slot's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) state: SlotState,
    /// Bytes of the image.
    pub(crate) len: u32,
    /// Its own version; 0 as long as its trailer was not read.
    pub(crate) version: u64,
    /// Hash over length and block hashes.
    pub(crate) id: [u8; 32],
    /// Hash over the manifest region; zeros where there is no manifest.
    pub(crate) manifest: [u8; 32],
}

impl Content {
    pub(crate) const EMPTY: Self =
        Self { state: SlotState::Empty, len: 0, version: 0, id: [0; 32], manifest: [0; 32] };
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Core {
    pub(crate) active: Slot,
    pub(crate) tries: u8,
    /// The end of the order was reported.
    pub(crate) ended: bool,
    pub(crate) cursor: u64,
    pub(crate) time: Timestamp,
    pub(crate) made: u64,
    pub(crate) stored: u64,
    pub(crate) order: u64,
    pub(crate) trust: u64,
    pub(crate) have: u64,
    pub(crate) dropped: u32,
    pub(crate) failed_order: u64,
    pub(crate) failed: [u8; 32],
    pub(crate) slots: [Content; 2],
}

impl Core {
    /// A device that runs slot A, with nothing known of the image there.
    pub(crate) fn new() -> Self {
        let confirmed = Content { state: SlotState::Confirmed, ..Content::EMPTY };
        Self {
            active: Slot::A,
            tries: 0,
            ended: false,
            cursor: 0,
            time: Timestamp(0),
            made: 0,
            stored: 0,
            order: 0,
            trust: 0,
            have: 0,
            dropped: 0,
            failed_order: 0,
            failed: [0; 32],
            slots: [confirmed, Content::EMPTY],
        }
    }

    pub(crate) fn slot(&self, slot: Slot) -> &Content {
        &self.slots[slot.index()]
    }

    /// What the slot that is not active holds.
    pub(crate) fn spare(&self) -> &Content {
        self.slot(self.active.other())
    }

    pub(crate) fn spare_mut(&mut self) -> &mut Content {
        &mut self.slots[self.active.other().index()]
    }

    pub(crate) fn encode(&self) -> [u8; CORE_LEN] {
        let mut bytes = [0; CORE_LEN];
        let mut out = Writing::new(&mut bytes);
        out.put(&[VERSION, self.active.index() as u8, self.tries, u8::from(self.ended)]);
        for number in [self.cursor, self.time.0, self.made, self.stored, self.order, self.trust, self.have] {
            out.put(&number.to_le_bytes());
        }
        out.put(&self.dropped.to_le_bytes()).put(&self.failed_order.to_le_bytes()).put(&self.failed);
        for slot in &self.slots {
            let state = SlotState::ALL.iter().position(|state| *state == slot.state).unwrap_or_default();
            out.put(&[state as u8, 0, 0, 0])
                .put(&slot.len.to_le_bytes())
                .put(&slot.version.to_le_bytes())
                .put(&slot.id)
                .put(&slot.manifest);
        }
        debug_assert_eq!(out.len(), CORE_LEN);
        bytes
    }

    /// `None` if the bytes are none that this program could have written.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let (VERSION, active) = (from.u8()?, from.u8()?) else { return None };
        let active = match active {
            0 => Slot::A,
            1 => Slot::B,
            _ => return None,
        };
        let tries = from.u8()?;
        let ended = from.u8()?;
        let mut core = Self {
            active,
            tries,
            ended: ended == 1,
            cursor: from.u64()?,
            time: Timestamp(from.u64()?),
            made: from.u64()?,
            stored: from.u64()?,
            order: from.u64()?,
            trust: from.u64()?,
            have: from.u64()?,
            dropped: from.u32()?,
            failed_order: from.u64()?,
            failed: from.array()?,
            slots: [Content::EMPTY; 2],
        };
        for slot in &mut core.slots {
            let state = *SlotState::ALL.get(usize::from(from.u8()?))?;
            from.zeros(3)?;
            *slot = Content {
                state,
                len: from.u32()?,
                version: from.u64()?,
                id: from.array()?,
                manifest: from.array()?,
            };
        }
        let legal = from.0.is_empty()
            && ended <= 1
            && tries <= TRIES
            && core.stored <= core.made
            && core.order <= core.cursor
            && core.slots.iter().all(|slot| slot.len <= crate::limits::IMAGE_LEN_MAX)
            && core.slot(active).state == SlotState::Confirmed;
        legal.then_some(core)
    }
}

/// Bits of so many blocks, at most [`BLOCKS_MAX`].
pub(crate) fn all_of(blocks: u32) -> u64 {
    debug_assert!(blocks <= BLOCKS_MAX);
    if blocks >= u64::BITS { u64::MAX } else { (1 << blocks) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content() -> impl Strategy<Value = Content> {
        let parts =
            (0..5usize, 0..=crate::limits::IMAGE_LEN_MAX, any::<u64>(), any::<[u8; 32]>(), any::<[u8; 32]>());
        parts.prop_map(|(state, len, version, id, manifest)| Content {
            state: SlotState::ALL[state],
            len,
            version,
            id,
            manifest,
        })
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            numbers in any::<[u64; 8]>(),
            slots in [content(), content()],
            flags in any::<(bool, bool, u32)>(),
            tries in 0..=TRIES,
            failed in any::<[u8; 32]>(),
        ) {
            let [cursor, time, made, stored, order, trust, have, failed_order] = numbers;
            let active = if flags.0 { Slot::A } else { Slot::B };
            let mut core = Core {
                active, tries, ended: flags.1, cursor, time: Timestamp(time), made, stored: stored.min(made),
                order: order.min(cursor), trust, have, dropped: flags.2, failed_order, failed, slots,
            };
            core.slots[active.index()].state = SlotState::Confirmed;
            prop_assert_eq!(Core::decode(&core.encode()), Some(core));
        }

        #[test]
        fn other_bytes_are_refused_or_mean_one_thing(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(core) = Core::decode(&bytes) {
                let encoded = core.encode();
                prop_assert_eq!(&encoded[..], &bytes[..]);
            }
        }

        #[test]
        fn a_flipped_byte_is_refused_or_means_something_else(at in 0..CORE_LEN, flip in 1..=255u8) {
            let mut bytes = Core::new().encode();
            bytes[at] ^= flip;
            prop_assert_ne!(Core::decode(&bytes), Some(Core::new()));
        }
    }

    #[test]
    fn bits_of_blocks() {
        assert_eq!([all_of(0), all_of(1), all_of(16)], [0, 1, 0xffff]);
        assert_eq!(all_of(64), u64::MAX);
    }
}
