//! NOR flash in memory that holds to the rules: no unit is programmed twice between two erasures. Power can go at any
//! write or erasure, and cells can wear.

use std::cell::RefCell;
use std::rc::Rc;

use device_core::Region;
use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash};

/// A source of numbers that a seed determines (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.draw() % end
    }
}

pub(crate) const ERASE: usize = 4096;

/// What a unit has been through since it was erased.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Unit {
    Erased,
    Programmed,
    /// Power went while it was programmed or erased: it may hold what is written to it now, or not.
    Uncertain,
}

#[derive(Debug)]
pub(crate) struct Cells {
    pub(crate) bytes: Vec<u8>,
    units: Vec<Unit>,
    write_size: usize,
    /// Writes and erasures until power goes in the middle of one.
    cut_after: Option<u64>,
    dead: bool,
    pub(crate) operations: u64,
    pub(crate) erasures: Vec<u32>,
    /// Erase units that lose a bit of whatever is written.
    worn: Vec<usize>,
    /// Places that nobody may write to.
    pub(crate) forbidden: Option<Region>,
    chance: Chance,
}

/// A handle: the test keeps the cells while the device owns the driver.
#[derive(Clone, Debug)]
pub(crate) struct Flash<const W: usize>(pub(crate) Rc<RefCell<Cells>>);

#[derive(Debug)]
pub(crate) struct NoPower;

impl NorFlashError for NoPower {
    fn kind(&self) -> NorFlashErrorKind {
        NorFlashErrorKind::Other
    }
}

impl<const W: usize> Flash<W> {
    pub(crate) fn new(len: usize) -> Self {
        let cells = Cells {
            bytes: vec![0xff; len],
            units: vec![Unit::Erased; len / W],
            write_size: W,
            cut_after: None,
            dead: false,
            operations: 0,
            erasures: vec![0; len / ERASE],
            worn: Vec::new(),
            forbidden: None,
            chance: Chance(1),
        };
        Self(Rc::new(RefCell::new(cells)))
    }

    /// A part with the same cells that goes its own way from here on.
    pub(crate) fn fork(&self) -> Self {
        let cells = self.0.borrow();
        Self(Rc::new(RefCell::new(Cells {
            bytes: cells.bytes.clone(),
            units: cells.units.clone(),
            erasures: cells.erasures.clone(),
            worn: cells.worn.clone(),
            chance: cells.chance.clone(),
            ..*cells
        })))
    }

    /// Power goes in the middle of the write or erasure that so many others come before.
    pub(crate) fn cut_after(&self, operations: u64, seed: u64) {
        let mut cells = self.0.borrow_mut();
        cells.cut_after = Some(operations);
        cells.chance = Chance(seed);
    }

    /// Power is back; whether it was gone.
    pub(crate) fn power_on(&self) -> bool {
        let mut cells = self.0.borrow_mut();
        cells.cut_after = None;
        std::mem::take(&mut cells.dead)
    }

    pub(crate) fn wear(&self, erase_unit: usize) {
        self.0.borrow_mut().worn.push(erase_unit);
    }

    pub(crate) fn flip(&self, at: usize, bits: u8) {
        self.0.borrow_mut().bytes[at] ^= bits;
    }

    pub(crate) fn operations(&self) -> u64 {
        self.0.borrow().operations
    }
}

impl Cells {
    /// Whether this operation is the one in which power goes.
    fn cut(&mut self) -> Result<bool, NoPower> {
        if self.dead {
            return Err(NoPower);
        }
        self.operations += 1;
        match &mut self.cut_after {
            Some(0) => {
                self.dead = true;
                Ok(true)
            }
            Some(left) => {
                *left -= 1;
                Ok(false)
            }
            None => Ok(false),
        }
    }

    fn may_touch(&self, from: usize, to: usize) {
        if let Some(region) = self.forbidden {
            let inside = from < region.end() as usize && (region.start as usize) < to;
            assert!(!inside, "{from}..{to} is what runs");
        }
    }

    fn unit(&mut self, nth: usize, bytes: &[u8], cut: bool) {
        let at = nth * self.write_size;
        // How a unit comes out of an interruption: untouched, done, or something in between.
        let course = if cut { self.chance.below(4) } else { 3 };
        let garbled = self.units[nth] == Unit::Uncertain && self.chance.below(4) == 0;
        for (offset, byte) in bytes.iter().enumerate() {
            let kept = match course {
                0 | 1 => 0xff,
                2 => self.chance.draw() as u8,
                _ => 0,
            };
            self.bytes[at + offset] &= byte | kept;
        }
        if garbled || !cut && self.worn.contains(&(at / ERASE)) {
            self.bytes[at] &= 0b1101_1011;
        }
        self.units[nth] = if cut { Unit::Uncertain } else { Unit::Programmed };
    }
}

impl<const W: usize> ErrorType for Flash<W> {
    type Error = NoPower;
}

impl<const W: usize> ReadNorFlash for Flash<W> {
    const READ_SIZE: usize = 4;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), NoPower> {
        let cells = self.0.borrow();
        let at = offset as usize;
        assert!(
            at.is_multiple_of(4) && bytes.len().is_multiple_of(4),
            "an unaligned read of {} at {at}",
            bytes.len()
        );
        if cells.dead {
            return Err(NoPower);
        }
        bytes.copy_from_slice(&cells.bytes[at..at + bytes.len()]);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.0.borrow().bytes.len()
    }
}

impl<const W: usize> NorFlash for Flash<W> {
    const WRITE_SIZE: usize = W;
    const ERASE_SIZE: usize = ERASE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NoPower> {
        let mut cells = self.0.borrow_mut();
        let (from, to) = (from as usize, to as usize);
        assert!(from.is_multiple_of(ERASE) && to.is_multiple_of(ERASE) && from < to);
        cells.may_touch(from, to);
        // A part erases sector by sector: power goes in any of them.
        for sector in from / ERASE..to / ERASE {
            let cut = cells.cut()?;
            cells.erasures[sector] += 1;
            for unit in sector * ERASE / W..(sector + 1) * ERASE / W {
                let done = !cut || cells.chance.below(2) == 0;
                let mixed: u8 = if cut { cells.chance.draw() as u8 } else { 0xff };
                for byte in unit * W..(unit + 1) * W {
                    cells.bytes[byte] |= if done { 0xff } else { mixed };
                }
                cells.units[unit] = if cut { Unit::Uncertain } else { Unit::Erased };
            }
            if cut {
                return Err(NoPower);
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NoPower> {
        let mut cells = self.0.borrow_mut();
        let at = offset as usize;
        assert!(
            at.is_multiple_of(W) && bytes.len().is_multiple_of(W),
            "an unaligned write of {} at {at}",
            bytes.len()
        );
        cells.may_touch(at, at + bytes.len());
        let cut = cells.cut()?;
        // Units are programmed in order; power goes in one of them.
        let units = bytes.len() / W;
        let last = if cut { cells.chance.below(units as u64) as usize } else { units };
        for (nth, unit) in bytes.chunks(W).enumerate().take(last + 1) {
            let place = at / W + nth;
            assert_ne!(cells.units[place], Unit::Programmed, "programmed twice: {}", place * W);
            let seen = cells.bytes[place * W..(place + 1) * W].iter().any(|&byte| byte != 0xff);
            assert!(!seen, "written over what an interruption left: {}", place * W);
            cells.unit(place, unit, cut && nth == last);
        }
        if cut { Err(NoPower) } else { Ok(()) }
    }
}
