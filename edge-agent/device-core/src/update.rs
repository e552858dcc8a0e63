//! An image on its way into the slot that is not active, block by block, and from there to being the one that runs
//! (DEVICE_FORMAT.md §5).

use alloc::vec::Vec;
use core::fmt;

use agent_proto::limits::BLOCK_LEN;
use embedded_storage::nor_flash::NorFlash;
use event_schema::{Signed, decode_exact, encode};
use sha2::{Digest, Sha256};

use crate::codec::Reader;
use crate::core_state::{Content, Core, Slot, SlotState, all_of};
use crate::device::{Device, Error};
use crate::image::{MANIFEST_AT, MANIFEST_MAGIC, Payload, Trailer, block_len, blocks_of, hash_at};
use crate::layout::Region;
use crate::limits::{HEAD_LEN_MAX, MANIFEST_LEN_MAX, PIECE_LEN, TRIES};
use crate::medium::{Fault, PIECE};
use crate::store::Worn;

const REGION_HEADER: usize = 16;

/// What there is to do for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// All blocks are missing.
    Anew,
    /// It was begun before: what is here stays.
    Resumed,
    /// It is whole and waits for [`Device::activate`].
    Ready,
    /// It is on trial.
    OnTrial,
    /// It is what was confirmed last.
    Active,
}

/// Why an image is not begun, or not gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeginError {
    /// Larger than the slot.
    TooLarge,
    /// Its trailer is none.
    NoTrailer,
    /// For another board.
    Board,
    /// Not newer than what was confirmed last.
    NotNewer,
    /// It failed its trial under this order.
    FailedBefore,
    /// Another one is on trial: confirm it first, or start until it is given up.
    OnTrial,
    /// The flash of the slot, or of its manifest, does not hold what is written.
    SlotWorn,
    /// See [`Error`].
    Device(Error),
}

/// Why a block is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// No image is being received, or this block is here, is none of the image, or is not the one that was started.
    NotWanted,
    /// Not a whole piece at its place, or pieces are missing.
    Piece,
    /// The slot's flash does not hold what is written. Starting the block again erases it and may help.
    SlotWorn,
    /// See [`Error`].
    Device(Error),
}

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is here for good.
    Kept,
    /// It is here for good, and the image is ready.
    Last,
    /// It is not what its hash says: whoever sent it is to be avoided, and it is missing as before.
    Corrupt,
    /// It is good, and tells that the image must not be installed here. All of it is dropped.
    Refused(BeginError),
}

/// What the loader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Booted {
    /// From this slot.
    pub slot: Slot,
    /// An image was given up in this start.
    pub gave_up: bool,
}

/// How far an image has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its blocks.
    pub blocks: u32,
    /// Those that are here.
    pub here: u32,
    /// Its bytes.
    pub len: u32,
}

impl fmt::Display for BeginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "the image is larger than the slot",
            Self::NoTrailer => "the file is no image: it does not end with a trailer",
            Self::Board => "the image is for another board",
            Self::NotNewer => "the image is not newer than what runs",
            Self::FailedBefore => "the image failed its trial under this order",
            Self::OnTrial => "another image is on trial",
            Self::SlotWorn => "the slot's flash does not hold what is written",
            Self::Device(e) => return e.fmt(f),
        })
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotWanted => "the block is not wanted",
            Self::Piece => "not a whole piece, or pieces are missing",
            Self::SlotWorn => "the slot's flash does not hold what is written",
            Self::Device(e) => return e.fmt(f),
        })
    }
}

impl core::error::Error for BeginError {}
impl core::error::Error for BlockError {}

impl From<Error> for BeginError {
    fn from(error: Error) -> Self {
        Self::Device(error)
    }
}

impl From<Fault> for BeginError {
    fn from(error: Fault) -> Self {
        Self::Device(error.into())
    }
}

impl From<Worn> for BeginError {
    fn from(error: Worn) -> Self {
        Self::Device(error.into())
    }
}

impl From<Error> for BlockError {
    fn from(error: Error) -> Self {
        Self::Device(error)
    }
}

impl From<Fault> for BlockError {
    fn from(error: Fault) -> Self {
        Self::Device(error.into())
    }
}

impl From<Worn> for BlockError {
    fn from(error: Worn) -> Self {
        Self::Device(error.into())
    }
}

/// The block that is being received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    block: u32,
    /// Which pieces were programmed.
    pieces: u32,
}

impl<F: NorFlash> Device<F> {
    /// Makes room for an image, or goes on with it.
    ///
    /// # Errors
    /// See [`BeginError`]; the slot is empty afterwards, or as it was.
    pub fn begin(&mut self, payload: &Payload<'_>) -> Result<Begun, BeginError> {
        let core = self.store.core().clone();
        let (active, spare) = (core.slot(core.active), core.spare());
        let slot = core.active.other();
        if active.id == payload.id() {
            return Ok(Begun::Active);
        }
        let same = spare.id == payload.id();
        match spare.state {
            SlotState::Trial if same => return Ok(Begun::OnTrial),
            SlotState::Trial => return Err(BeginError::OnTrial),
            SlotState::Ready if same => return Ok(Begun::Ready),
            SlotState::Receiving if same && self.manifest_holds(slot)? => return Ok(Begun::Resumed),
            SlotState::Confirmed if same => return Err(BeginError::NotNewer),
            _ => {}
        }
        if core.failed == payload.id() && core.failed_order == core.order {
            return Err(BeginError::FailedBefore);
        }
        if payload.len() > self.store.layout.slot(slot).len {
            return Err(BeginError::TooLarge);
        }
        self.incoming = None;
        self.drop_spare()?;
        let manifest = self.write_manifest(slot, payload)?;
        let mut core = self.store.core().clone();
        core.have = 0;
        *core.spare_mut() = Content {
            state: SlotState::Receiving,
            len: payload.len(),
            version: 0,
            id: payload.id(),
            manifest,
        };
        self.store.commit(core, &[])?;
        Ok(Begun::Anew)
    }

    /// Whether the image of the current order failed its trial: then its run has failed.
    pub fn gave_up(&self) -> bool {
        let core = self.store.core();
        core.order != 0 && core.failed_order == core.order
    }

    /// How far the image has come that is in the slot that is not active, if one is being received or ready.
    pub fn progress(&self) -> Option<Progress> {
        let spare = self.store.core().spare();
        let blocks = blocks_of(spare.len);
        let here = match spare.state {
            SlotState::Receiving => self.store.core().have.count_ones(),
            SlotState::Ready | SlotState::Trial => blocks,
            SlotState::Empty | SlotState::Confirmed => return None,
        };
        Some(Progress { blocks, here, len: spare.len })
    }

    /// The blocks that are not here, in the order in which they are wanted: the last one first, as it tells whether the
    /// image may be installed at all.
    pub fn missing(&self) -> impl Iterator<Item = u32> + use<F> {
        let core = self.store.core();
        let blocks = if core.spare().state == SlotState::Receiving { blocks_of(core.spare().len) } else { 0 };
        let missing = all_of(blocks) & !core.have;
        let last = blocks.checked_sub(1);
        last.into_iter().chain(0..last.unwrap_or(0)).filter(move |block| missing >> block & 1 == 1)
    }

    /// Takes a missing block from the active slot, if it has one like it; whether it had.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn reuse(&mut self, block: u32) -> Result<Option<Stored>, BlockError> {
        let core = self.store.core();
        let (active, len) = (core.active, core.spare().len);
        let active_len = core.slot(active).len;
        if !self.wanted(block) {
            return Err(BlockError::NotWanted);
        }
        if active_len == 0 || !self.manifest_holds(active)? {
            return Ok(None);
        }
        let bytes = block_len(len, block);
        let wanted = self.hash_of(active.other(), block)?;
        for from in 0..blocks_of(active_len) {
            if block_len(active_len, from) != bytes || self.hash_of(active, from)? != wanted {
                continue;
            }
            let source = self.store.layout.slot(active).start + from * BLOCK_LEN;
            let target = self.start_block(block)?;
            let mut piece = [0; PIECE];
            for at in (0..bytes).step_by(PIECE) {
                let piece = &mut piece[..(bytes - at).min(PIECE as u32) as usize];
                self.store.medium.read(source + at, piece)?;
                if self.store.medium.write(target.start + at, piece).is_err() {
                    self.incoming = None;
                    return Err(BlockError::SlotWorn);
                }
            }
            self.incoming = Some(Incoming { block, pieces: u32::MAX });
            return match self.finish_block(block)? {
                // What is in the active slot is not what its manifest says any more.
                Stored::Corrupt => Ok(None),
                stored => Ok(Some(stored)),
            };
        }
        Ok(None)
    }

    /// Makes room for a missing block; one that was started before and not finished is missing as before. Gives where on
    /// the flash it will be.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn start_block(&mut self, block: u32) -> Result<Region, BlockError> {
        if !self.wanted(block) {
            return Err(BlockError::NotWanted);
        }
        self.incoming = None;
        let slot = self.store.core().active.other();
        let start = self.store.layout.slot(slot).start + block * BLOCK_LEN;
        let place = Region { start, len: BLOCK_LEN };
        self.store.medium.erase(place).map_err(|_| BlockError::SlotWorn)?;
        self.incoming = Some(Incoming { block, pieces: 0 });
        Ok(place)
    }

    /// Writes a piece of the block that was started: [`PIECE_LEN`] bytes at a multiple of that, or the rest of the block.
    /// In any order; one that came before is passed over.
    ///
    /// # Errors
    /// See [`BlockError`]; after [`BlockError::SlotWorn`] the block has to be started again.
    pub fn put(&mut self, block: u32, offset: u32, bytes: &[u8]) -> Result<(), BlockError> {
        let Some(incoming) = self.incoming.as_mut().filter(|incoming| incoming.block == block) else {
            return Err(BlockError::NotWanted);
        };
        let core = self.store.core();
        let len = block_len(core.spare().len, block);
        if !offset.is_multiple_of(PIECE_LEN)
            || offset >= len
            || bytes.len() as u32 != (len - offset).min(PIECE_LEN)
        {
            return Err(BlockError::Piece);
        }
        let piece = 1 << (offset / PIECE_LEN);
        if incoming.pieces & piece != 0 {
            return Ok(());
        }
        incoming.pieces |= piece;
        let slot = core.active.other();
        let at = self.store.layout.slot(slot).start + block * BLOCK_LEN + offset;
        self.store.medium.write(at, bytes).map_err(|_| {
            self.incoming = None;
            BlockError::SlotWorn
        })
    }

    /// Hashes the block that was started, from the flash, and keeps it if it is what it should be.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn finish_block(&mut self, block: u32) -> Result<Stored, BlockError> {
        let core = self.store.core();
        let (slot, content) = (core.active.other(), *core.spare());
        let len = block_len(content.len, block);
        let Some(incoming) = self.incoming.filter(|incoming| incoming.block == block) else {
            return Err(BlockError::NotWanted);
        };
        let all = all_of(len.div_ceil(PIECE_LEN));
        if u64::from(incoming.pieces) & all != all {
            return Err(BlockError::Piece);
        }
        self.incoming = None;
        if !self.block_holds(slot, block)? {
            return Ok(Stored::Corrupt);
        }
        let mut core = self.store.core().clone();
        core.have |= 1 << block;
        let blocks = blocks_of(content.len);
        let trailer_at = content.len - Trailer::LEN as u32;
        let of_trailer = all_of(blocks) & !all_of(trailer_at / BLOCK_LEN);
        if core.have & of_trailer == of_trailer {
            match self.look_at(slot, trailer_at)? {
                Ok(version) => core.spare_mut().version = version,
                Err(refused) => {
                    self.drop_spare()?;
                    return Ok(Stored::Refused(refused));
                }
            }
        }
        let whole = core.have == all_of(blocks);
        if whole {
            core.spare_mut().state = SlotState::Ready;
        }
        self.store.commit(core, &[])?;
        Ok(if whole { Stored::Last } else { Stored::Kept })
    }

    /// Puts a ready image on trial: the loader starts it next time. Whether there was one.
    ///
    /// # Errors
    /// [`Error::Worn`].
    pub fn activate(&mut self) -> Result<bool, Error> {
        let mut core = self.store.core().clone();
        if core.spare().state != SlotState::Ready {
            return Ok(false);
        }
        core.spare_mut().state = SlotState::Trial;
        core.tries = TRIES;
        self.store.commit(core, &[])?;
        Ok(true)
    }

    /// For the loader, once at each start: which slot to run. An image on trial is hashed as a whole and loses a try; one
    /// that has none left, or is not what it was, is given up.
    ///
    /// Never fails: where nothing can be read or written, the active slot is what runs.
    pub fn boot(&mut self) -> Booted {
        let mut core = self.store.core().clone();
        let (active, trial) = (core.active, core.active.other());
        let stay = Booted { slot: active, gave_up: false };
        if core.spare().state != SlotState::Trial {
            return stay;
        }
        if core.tries > 0 && self.image_holds(trial) {
            core.tries -= 1;
            // A try that cannot be counted must not be taken.
            let counted = self.store.commit(core, &[]).is_ok();
            return if counted { Booted { slot: trial, gave_up: false } } else { stay };
        }
        (core.failed, core.failed_order) = (core.spare().id, core.order);
        (core.tries, core.have) = (0, 0);
        *core.spare_mut() = Content::EMPTY;
        Booted { slot: active, gave_up: self.store.commit(core, &[]).is_ok() }
    }

    /// The image that runs is as it should be: if it was on trial, it is the one that counts from now on. Whether it was.
    ///
    /// # Errors
    /// [`Error::Worn`].
    pub fn confirm(&mut self, running: Slot) -> Result<bool, Error> {
        let mut core = self.store.core().clone();
        if core.spare().state != SlotState::Trial || running != core.active.other() {
            return Ok(false);
        }
        core.spare_mut().state = SlotState::Confirmed;
        core.active = running;
        (core.tries, core.have) = (0, 0);
        self.store.commit(core, &[])?;
        Ok(true)
    }

    /// Whether a block of a slot's image is here and verified, so that it can be served.
    pub fn holds(&self, slot: Slot, block: u32) -> bool {
        let core = self.store.core();
        let content = core.slot(slot);
        let inside = block < blocks_of(content.len);
        match content.state {
            SlotState::Empty => false,
            SlotState::Receiving => inside && core.have >> block & 1 == 1,
            SlotState::Ready | SlotState::Trial | SlotState::Confirmed => inside,
        }
    }

    /// Reads a part of a block that is here, to serve it; whether it is here and has so many bytes.
    ///
    /// # Errors
    /// [`Error::Flash`].
    pub fn read(&mut self, slot: Slot, block: u32, offset: u32, into: &mut [u8]) -> Result<bool, Error> {
        let len = block_len(self.store.core().slot(slot).len, block);
        let end = u32::try_from(into.len()).ok().and_then(|bytes| bytes.checked_add(offset));
        if !self.holds(slot, block) || end.is_none_or(|end| end > len) {
            return Ok(false);
        }
        let at = self.store.layout.slot(slot).start + block * BLOCK_LEN + offset;
        self.store.medium.read(at, into)?;
        Ok(true)
    }

    /// Signed head and manifest of a slot's image, to serve them and to know after a start what is being received. `None`
    /// if there are none, or the flash has lost them.
    ///
    /// # Errors
    /// [`Error::Flash`].
    pub fn manifest(&mut self, slot: Slot) -> Result<Option<(Signed, Vec<u8>)>, Error> {
        if !self.manifest_holds(slot)? {
            return Ok(None);
        }
        let region = self.store.layout.manifest(slot);
        let Some((head_len, manifest_len)) = self.manifest_lens(slot)? else { return Ok(None) };
        let (mut head, mut manifest) =
            (alloc::vec![0; head_len as usize], alloc::vec![0; manifest_len as usize]);
        self.store.medium.read(region.start + REGION_HEADER as u32, &mut head)?;
        self.store.medium.read(region.start + MANIFEST_AT, &mut manifest)?;
        Ok(decode_exact("Signed", &head).ok().map(|head| (head, manifest)))
    }

    fn wanted(&self, block: u32) -> bool {
        let core = self.store.core();
        core.spare().state == SlotState::Receiving
            && block < blocks_of(core.spare().len)
            && core.have >> block & 1 == 0
    }

    /// Forgets what the slot that is not active holds, before anything of it is written to.
    fn drop_spare(&mut self) -> Result<(), Error> {
        let core = self.store.core();
        if core.spare().state == SlotState::Empty {
            return Ok(());
        }
        let mut core = Core { have: 0, tries: 0, ..core.clone() };
        *core.spare_mut() = Content::EMPTY;
        Ok(self.store.commit(core, &[])?)
    }

    fn write_manifest(&mut self, slot: Slot, payload: &Payload<'_>) -> Result<[u8; 32], BeginError> {
        let region = self.store.layout.manifest(slot);
        let (head, manifest) = (encode(payload.head()), payload.manifest());
        let mut first = Vec::with_capacity(REGION_HEADER + head.len());
        first.extend(MANIFEST_MAGIC);
        first.extend((head.len() as u32).to_le_bytes());
        first.extend((manifest.len() as u32).to_le_bytes());
        first.extend(&head);
        let medium = &mut self.store.medium;
        let written = medium
            .erase(region)
            .and_then(|()| medium.write(region.start, &first))
            .and_then(|()| medium.write(region.start + MANIFEST_AT, manifest));
        written.map_err(|_| BeginError::SlotWorn)?;
        Ok(Sha256::new().chain_update(&first).chain_update(manifest).finalize().into())
    }

    fn manifest_lens(&mut self, slot: Slot) -> Result<Option<(u32, u32)>, Fault> {
        let mut header = [0; REGION_HEADER];
        self.store.medium.read(self.store.layout.manifest(slot).start, &mut header)?;
        let mut fields = Reader(&header);
        let (Some(MANIFEST_MAGIC), Some(head), Some(manifest)) = (fields.array(), fields.u32(), fields.u32())
        else {
            return Ok(None);
        };
        let legal = head as usize <= HEAD_LEN_MAX && manifest as usize <= MANIFEST_LEN_MAX;
        Ok(legal.then_some((head, manifest)))
    }

    /// Whether the slot's manifest region is what the core state says.
    fn manifest_holds(&mut self, slot: Slot) -> Result<bool, Fault> {
        let content = *self.store.core().slot(slot);
        let (start, lens) = (self.store.layout.manifest(slot).start, self.manifest_lens(slot)?);
        let Some((head, manifest)) = lens else { return Ok(false) };
        let mut hash = Sha256::new();
        self.store.medium.hash(&mut hash, start, REGION_HEADER as u32 + head)?;
        self.store.medium.hash(&mut hash, start + MANIFEST_AT, manifest)?;
        let hash: [u8; 32] = hash.finalize().into();
        Ok(hash == content.manifest)
    }

    fn hash_of(&mut self, slot: Slot, block: u32) -> Result<[u8; 32], Fault> {
        let mut hash = [0; 32];
        let at = self.store.layout.manifest(slot).start + hash_at(block);
        self.store.medium.read(at, &mut hash)?;
        Ok(hash)
    }

    /// Whether the flash has the block as the manifest says.
    fn block_holds(&mut self, slot: Slot, block: u32) -> Result<bool, Fault> {
        let wanted = self.hash_of(slot, block)?;
        let len = block_len(self.store.core().slot(slot).len, block);
        let at = self.store.layout.slot(slot).start + block * BLOCK_LEN;
        let mut hash = Sha256::new().chain_update([0]);
        self.store.medium.hash(&mut hash, at, len)?;
        let hash: [u8; 32] = hash.finalize().into();
        Ok(hash == wanted)
    }

    fn image_holds(&mut self, slot: Slot) -> bool {
        let blocks = blocks_of(self.store.core().slot(slot).len);
        self.manifest_holds(slot) == Ok(true)
            && (0..blocks).all(|block| self.block_holds(slot, block) == Ok(true))
    }

    /// The version that an image's trailer tells, or why it must not be installed.
    fn look_at(&mut self, slot: Slot, trailer_at: u32) -> Result<Result<u64, BeginError>, Fault> {
        let mut bytes = [0; Trailer::LEN];
        self.store.medium.read(self.store.layout.slot(slot).start + trailer_at, &mut bytes)?;
        Ok(match Trailer::decode(&bytes) {
            None => Err(BeginError::NoTrailer),
            Some(trailer) if trailer.board != self.board => Err(BeginError::Board),
            Some(trailer) if trailer.version <= self.version() => Err(BeginError::NotNewer),
            Some(trailer) => Ok(trailer.version),
        })
    }
}
