//! NOR flash as the rest of the crate uses it: reads of any length, writes that are read back (DEVICE_FORMAT.md §1).

use embedded_storage::nor_flash::NorFlash;
use sha2::{Digest, Sha256};

use crate::layout::Region;

/// Bytes that are programmed at a time. A write that was cut off in its first piece may have left nothing to be seen.
pub(crate) const PIECE: usize = 256;

/// The largest unit of programming there is (STM32H7).
pub(crate) const WRITE_SIZE_MAX: usize = 32;

/// Records begin at multiples of this, and of `WRITE_SIZE`.
pub(crate) const STEP: usize = 16;

/// What flash may do to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The driver says that it could not read.
    Unreadable,
    /// The driver says that it could not write or erase, or what was written does not read back.
    NotHeld,
}

/// The flash of a device.
pub(crate) struct Medium<F> {
    flash: F,
}

impl<F: NorFlash> Medium<F> {
    pub(crate) fn new(flash: F) -> Self {
        Self { flash }
    }

    pub(crate) fn flash(&self) -> &F {
        &self.flash
    }

    pub(crate) fn into_flash(self) -> F {
        self.flash
    }

    /// Multiples of this are where records and pieces may begin.
    pub(crate) fn step() -> u32 {
        STEP.max(F::WRITE_SIZE) as u32
    }

    /// Reads any bytes, whatever the part reads at a time.
    pub(crate) fn read(&mut self, at: u32, into: &mut [u8]) -> Result<(), Fault> {
        let unit = F::READ_SIZE as u32;
        let mut piece = [0; 64];
        let mut done = 0;
        while done < into.len() {
            let from = at + done as u32;
            let begin = from - from % unit;
            let skip = (from - begin) as usize;
            let len = (into.len() - done).min(piece.len() - skip);
            let whole = (skip + len).next_multiple_of(F::READ_SIZE);
            self.flash.read(begin, &mut piece[..whole]).map_err(|_| Fault::Unreadable)?;
            into[done..done + len].copy_from_slice(&piece[skip..skip + len]);
            done += len;
        }
        Ok(())
    }

    /// Adds bytes of the flash to a hash.
    pub(crate) fn hash(&mut self, hash: &mut Sha256, at: u32, len: u32) -> Result<(), Fault> {
        let mut piece = [0; PIECE];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(PIECE as u32);
            self.read(at + done, &mut piece[..part as usize])?;
            hash.update(&piece[..part as usize]);
            done += part;
        }
        Ok(())
    }

    /// Whether the flash has exactly these bytes.
    pub(crate) fn holds(&mut self, at: u32, bytes: &[u8]) -> Result<bool, Fault> {
        let mut piece = [0; 64];
        for (nth, part) in bytes.chunks(piece.len()).enumerate() {
            self.read(at + (nth * 64) as u32, &mut piece[..part.len()])?;
            if piece[..part.len()] != *part {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(crate) fn erase(&mut self, region: Region) -> Result<(), Fault> {
        self.flash.erase(region.start, region.end()).map_err(|_| Fault::NotHeld)
    }

    /// Programs bytes at a place that is erased; what is missing to a whole unit is filled with `0xFF`.
    pub(crate) fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), Fault> {
        let mut writer = Writer::new(at);
        writer.push(self, bytes)?;
        writer.finish(self)
    }

    fn program(&mut self, at: u32, bytes: &[u8]) -> Result<(), Fault> {
        self.flash.write(at, bytes).map_err(|_| Fault::NotHeld)?;
        if self.holds(at, bytes)? { Ok(()) } else { Err(Fault::NotHeld) }
    }
}

/// Programs bytes that come in parts, front to back, each unit once.
pub(crate) struct Writer {
    at: u32,
    piece: [u8; PIECE],
    filled: usize,
}

impl Writer {
    pub(crate) fn new(at: u32) -> Self {
        Self { at, piece: [0xff; PIECE], filled: 0 }
    }

    pub(crate) fn push<F: NorFlash>(
        &mut self,
        medium: &mut Medium<F>,
        mut bytes: &[u8],
    ) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(PIECE - self.filled));
            self.piece[self.filled..self.filled + part.len()].copy_from_slice(part);
            self.filled += part.len();
            bytes = rest;
            if self.filled == PIECE {
                self.flush(medium)?;
            }
        }
        Ok(())
    }

    /// Programs what is left.
    pub(crate) fn finish<F: NorFlash>(mut self, medium: &mut Medium<F>) -> Result<(), Fault> {
        self.flush(medium)
    }

    fn flush<F: NorFlash>(&mut self, medium: &mut Medium<F>) -> Result<(), Fault> {
        if self.filled == 0 {
            return Ok(());
        }
        let whole = self.filled.next_multiple_of(F::WRITE_SIZE);
        medium.program(self.at, &self.piece[..whole])?;
        self.at += whole as u32;
        self.piece = [0xff; PIECE];
        self.filled = 0;
        Ok(())
    }
}

/// The first 8 bytes of a hash.
pub(crate) fn check(hash: Sha256) -> [u8; 8] {
    let whole: [u8; 32] = hash.finalize().into();
    let mut first = [0; 8];
    first.copy_from_slice(&whole[..8]);
    first
}
