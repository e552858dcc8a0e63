//! The journal: records with a check in a ring of segments (DEVICE_FORMAT.md §3). What records mean is not known here.

use embedded_storage::nor_flash::NorFlash;
use sha2::{Digest, Sha256};

use crate::codec::Reader;
use crate::layout::Region;
use crate::medium::{Fault, Medium, PIECE, Writer, check};

const MAGIC: [u8; 7] = *b"FLOTLOG";
const VERSION: u8 = 1;
const MARK: u8 = 0xa5;

/// Bytes of a segment's header, of which there are two copies.
const HEADER: u32 = 32;

/// Bytes before a segment's records.
const SEGMENT_HEADER: u32 = 2 * HEADER;

/// Bytes of a record before its payload.
const RECORD_HEADER: u32 = 16;

/// A part of a payload.
#[derive(Clone, Copy)]
pub(crate) enum Part<'a> {
    Bytes(&'a [u8]),
    /// Bytes that lie on the flash already.
    Flash {
        at: u32,
        len: u32,
    },
}

impl Part<'_> {
    pub(crate) fn len(&self) -> u32 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u32,
            Self::Flash { len, .. } => *len,
        }
    }
}

/// Why the journal was not mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MountFault {
    Unreadable,
    /// No segment has a good header.
    None,
    /// Written by a newer program.
    Newer,
}

impl From<Fault> for MountFault {
    fn from(_: Fault) -> Self {
        Self::Unreadable
    }
}

/// The current segment, and where in it the next record goes.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    region: Region,
    segment_len: u32,
    segment: u32,
    generation: u64,
    /// Relative to the segment.
    end: u32,
    /// Something in the segment is neither a record nor erased.
    pub(crate) torn: bool,
}

impl Journal {
    /// Goes through the newest segment and gives the payload of each record to `take`, as its place on the flash.
    pub(crate) fn mount<F: NorFlash>(
        medium: &mut Medium<F>,
        region: Region,
        segment_len: u32,
        mut take: impl FnMut(&mut Medium<F>, u32, u32) -> Result<(), MountFault>,
    ) -> Result<Self, MountFault> {
        let mut newest = None;
        let segments = 0..region.len / segment_len;
        for (segment, copy) in segments.flat_map(|segment| [(segment, 0), (segment, HEADER)]) {
            let mut header = [0; HEADER as usize];
            medium.read(region.start + segment * segment_len + copy, &mut header)?;
            let mut fields = Reader(&header);
            let (Some(magic), Some(version), Some(generation)) =
                (fields.array::<7>(), fields.u8(), fields.u64())
            else {
                continue;
            };
            if magic != MAGIC || check(Sha256::new().chain_update(&header[..24])) != header[24..] {
                continue;
            }
            if version != VERSION {
                return Err(MountFault::Newer);
            }
            if newest.is_none_or(|(best, _)| generation > best) {
                newest = Some((generation, segment));
            }
        }
        let (generation, segment) = newest.ok_or(MountFault::None)?;
        let mut journal = Self { region, segment_len, segment, generation, end: SEGMENT_HEADER, torn: false };
        journal.scan(medium, &mut take)?;
        Ok(journal)
    }

    fn scan<F: NorFlash>(
        &mut self,
        medium: &mut Medium<F>,
        take: &mut impl FnMut(&mut Medium<F>, u32, u32) -> Result<(), MountFault>,
    ) -> Result<(), MountFault> {
        let step = Medium::<F>::step();
        let mut at = SEGMENT_HEADER.next_multiple_of(step);
        self.end = at;
        let mut bytes = [0; crate::medium::WRITE_SIZE_MAX];
        while at + step <= self.segment_len {
            let bytes = &mut bytes[..step as usize];
            medium.read(self.base() + at, bytes)?;
            if bytes.iter().all(|&byte| byte == 0xff) {
                at += step;
                continue;
            }
            match self.record(medium, at, bytes)? {
                Some(len) => {
                    take(medium, self.base() + at + RECORD_HEADER, len)?;
                    at += size::<F>(len);
                    self.end = at;
                }
                None => {
                    self.torn = true;
                    at += step;
                }
            }
        }
        // §3.3: the first piece of a write that was cut off may read as erased.
        self.end = (self.end + PIECE as u32).next_multiple_of(step);
        Ok(())
    }

    /// Bytes of the payload of the record that begins here, if there is one.
    fn record<F: NorFlash>(
        &self,
        medium: &mut Medium<F>,
        at: u32,
        bytes: &[u8],
    ) -> Result<Option<u32>, Fault> {
        let mut fields = Reader(bytes);
        let (Some(MARK), Some(VERSION), Some(len)) = (fields.u8(), fields.u8(), fields.u16()) else {
            return Ok(None);
        };
        let len = u32::from(len);
        if at + size::<F>(len) > self.segment_len {
            return Ok(None);
        }
        let mut hash = self.hash_of(at, &bytes[..8]);
        medium.hash(&mut hash, self.base() + at + RECORD_HEADER, len)?;
        Ok((check(hash) == bytes[8..16]).then_some(len))
    }

    fn base(&self) -> u32 {
        self.region.start + self.segment * self.segment_len
    }

    fn hash_of(&self, at: u32, head: &[u8]) -> Sha256 {
        let place = self.segment * self.segment_len + at;
        Sha256::new()
            .chain_update(self.generation.to_le_bytes())
            .chain_update(place.to_le_bytes())
            .chain_update(head)
    }

    /// Number of segments in the ring.
    pub(crate) fn segments(&self) -> u32 {
        self.region.len / self.segment_len
    }

    /// Whether a payload of so many bytes fits behind the last record.
    pub(crate) fn fits<F: NorFlash>(&self, len: u32) -> bool {
        u16::try_from(len).is_ok() && self.end + size::<F>(len) <= self.segment_len
    }

    /// Writes a record and reads it back; gives the place of its payload.
    pub(crate) fn append<F: NorFlash>(
        &mut self,
        medium: &mut Medium<F>,
        parts: &[Part<'_>],
    ) -> Result<u32, Fault> {
        let len: u32 = parts.iter().map(Part::len).sum();
        if !self.fits::<F>(len) {
            return Err(Fault::NotHeld);
        }
        let at = self.end;
        let mut header = [0; RECORD_HEADER as usize];
        header[..2].copy_from_slice(&[MARK, VERSION]);
        header[2..4].copy_from_slice(&(len as u16).to_le_bytes());
        let mut hash = self.hash_of(at, &header[..8]);
        for part in parts {
            match part {
                Part::Bytes(bytes) => hash.update(bytes),
                Part::Flash { at, len } => medium.hash(&mut hash, *at, *len)?,
            }
        }
        header[8..].copy_from_slice(&check(hash));
        let mut writer = Writer::new(self.base() + at);
        // Whatever comes of it: this place was written to.
        self.end += size::<F>(len);
        writer.push(medium, &header)?;
        for part in parts {
            match part {
                Part::Bytes(bytes) => writer.push(medium, bytes)?,
                Part::Flash { at, len } => {
                    let mut piece = [0; 64];
                    for from in (0..*len).step_by(piece.len()) {
                        let piece = &mut piece[..(len - from).min(64) as usize];
                        medium.read(at + from, piece)?;
                        writer.push(medium, piece)?;
                    }
                }
            }
        }
        writer.finish(medium)?;
        let mut header = [0; RECORD_HEADER as usize];
        medium.read(self.base() + at, &mut header)?;
        if self.record(medium, at, &header)? == Some(len) {
            Ok(self.base() + at + RECORD_HEADER)
        } else {
            Err(Fault::NotHeld)
        }
    }

    /// The first segment of a device that has none. Records are appended, then it is sealed.
    pub(crate) fn first<F: NorFlash>(
        medium: &mut Medium<F>,
        region: Region,
        segment_len: u32,
        segment: u32,
    ) -> Result<Self, Fault> {
        let end = SEGMENT_HEADER.next_multiple_of(Medium::<F>::step());
        let journal =
            Self { region, segment_len, segment, generation: u64::from(segment) + 1, end, torn: false };
        medium.erase(Region { start: journal.base(), len: segment_len })?;
        Ok(journal)
    }

    /// The `nth` segment behind this one, erased, with a greater generation than any that was tried before it.
    pub(crate) fn next<F: NorFlash>(&self, medium: &mut Medium<F>, nth: u32) -> Result<Self, Fault> {
        let next = Self {
            segment: (self.segment + nth) % self.segments(),
            generation: self.generation + u64::from(nth),
            end: SEGMENT_HEADER.next_multiple_of(Medium::<F>::step()),
            torn: false,
            ..*self
        };
        medium.erase(Region { start: next.base(), len: next.segment_len })?;
        Ok(next)
    }

    /// Makes this the journal: the last thing that is written of a new segment.
    pub(crate) fn seal<F: NorFlash>(&self, medium: &mut Medium<F>) -> Result<(), Fault> {
        let mut header = [0; HEADER as usize];
        header[..7].copy_from_slice(&MAGIC);
        header[7] = VERSION;
        header[8..16].copy_from_slice(&self.generation.to_le_bytes());
        let sum = check(Sha256::new().chain_update(&header[..24]));
        header[24..].copy_from_slice(&sum);
        let first = medium.write(self.base(), &header);
        first.or(medium.write(self.base() + HEADER, &header))
    }
}

/// Bytes that a record with such a payload takes.
fn size<F: NorFlash>(len: u32) -> u32 {
    (RECORD_HEADER + len).next_multiple_of(Medium::<F>::step())
}
