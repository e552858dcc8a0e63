//! Where on the flash things are (DEVICE_FORMAT.md §2), and whether this flash will do (§1).

use core::fmt;

use agent_proto::limits::BLOCK_LEN;
use embedded_storage::nor_flash::NorFlash;

use crate::core_state::Slot;
use crate::image::MANIFEST_REGION_LEN;
use crate::limits::{IMAGE_LEN_MAX, SEGMENT_LEN_MIN, SEGMENTS_MIN};
use crate::medium::{STEP, WRITE_SIZE_MAX};

/// A part of the flash, in bytes from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u32,
    /// Bytes.
    pub len: u32,
}

impl Region {
    /// The byte behind the last one; saturates.
    pub fn end(self) -> u32 {
        self.start.saturating_add(self.len)
    }
}

/// Where a board has what. All borders are borders of `ERASE_SIZE`, and no two regions overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Key area: two erase units.
    pub identity: Region,
    /// The ring of segments.
    pub journal: Region,
    /// Bytes of one segment: a multiple of `ERASE_SIZE`, from 16 KiB on.
    pub segment_len: u32,
    /// Manifests of slots A and B: 8 KiB each at least.
    pub manifests: [Region; 2],
    /// Slots A and B: multiples of 32 KiB, 2 MiB at most.
    pub slots: [Region; 2],
}

/// Why a layout does not fit the flash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutFault {
    /// The part's units are too large, or no powers of two.
    Units,
    /// A region's border is none of the part's, or lies beyond its end.
    Border,
    /// Two regions overlap.
    Overlap,
    /// A region is too small, or a slot is no multiple of 32 KiB or too large.
    Length,
}

impl fmt::Display for LayoutFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Units => "the flash part reads, writes or erases in units that are not supported",
            Self::Border => "a region does not begin and end where the part erases, or is beyond its end",
            Self::Overlap => "two regions overlap",
            Self::Length => "a region has a length that it must not have",
        })
    }
}

impl core::error::Error for LayoutFault {}

impl Layout {
    pub(crate) fn slot(&self, slot: Slot) -> Region {
        self.slots[slot.index()]
    }

    pub(crate) fn manifest(&self, slot: Slot) -> Region {
        self.manifests[slot.index()]
    }

    /// Checks it against a part.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check<F: NorFlash>(&self, flash: &F) -> Result<(), LayoutFault> {
        let (read, write, erase) = (F::READ_SIZE, F::WRITE_SIZE, F::ERASE_SIZE);
        let powers = read.is_power_of_two() && write.is_power_of_two() && erase.is_power_of_two();
        let block = BLOCK_LEN as usize;
        if !powers || read > 4 || write > WRITE_SIZE_MAX || erase > block || erase < STEP {
            return Err(LayoutFault::Units);
        }
        let erase = erase as u32;
        let regions =
            [self.identity, self.journal, self.manifests[0], self.manifests[1], self.slots[0], self.slots[1]];
        for region in regions {
            let end = u64::from(region.start) + u64::from(region.len);
            if !region.start.is_multiple_of(erase)
                || !region.len.is_multiple_of(erase)
                || end > flash.capacity() as u64
            {
                return Err(LayoutFault::Border);
            }
        }
        for (nth, a) in regions.iter().enumerate() {
            if regions[nth + 1..].iter().any(|b| a.start < b.end() && b.start < a.end()) {
                return Err(LayoutFault::Overlap);
            }
        }
        let segment = self.segment_len;
        let segments = segment >= SEGMENT_LEN_MIN
            && segment.is_multiple_of(erase)
            && self.journal.len.is_multiple_of(segment)
            && self.journal.len / segment >= SEGMENTS_MIN;
        let slots = self
            .slots
            .iter()
            .all(|slot| slot.len > 0 && slot.len.is_multiple_of(BLOCK_LEN) && slot.len <= IMAGE_LEN_MAX);
        let manifests = self.manifests.iter().all(|region| region.len >= MANIFEST_REGION_LEN);
        if segments && slots && manifests && self.identity.len >= 2 * erase {
            Ok(())
        } else {
            Err(LayoutFault::Length)
        }
    }
}
