//! The board `mps2-an386` as QEMU emulates it: clock, console, randomness, and the flash of the device.
//!
//! The only file beside `nic` that reaches hardware by address. Another board has these five items and a driver of its
//! network.

use core::fmt;
use core::ptr::{read_volatile, write_volatile};

use cortex_m_semihosting::{nr, syscall};
use device_core::{Board, Layout, Region};
use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash, check_erase, check_write,
};
use event_schema::Timestamp;
use timebase::Instant;

/// Which firmware images are for it.
pub(crate) const BOARD: Board = Board::named("mps2-an386");

/// Slots of 512 KiB. What lies between the manifests and the first slot is [`CREDENTIAL`].
pub(crate) const LAYOUT: Layout = Layout {
    identity: Region { start: 0, len: 0x2000 },
    journal: Region { start: 0x2000, len: 0x10000 },
    segment_len: 0x4000,
    manifests: [Region { start: 0x12000, len: 0x2000 }, Region { start: 0x14000, len: 0x2000 }],
    slots: [Region { start: 0x18000, len: 0x80000 }, Region { start: 0x98000, len: 0x80000 }],
};

/// What the device shows its peers, as the factory wrote it: bytes of it as `u16` little-endian, then it.
pub(crate) const CREDENTIAL: Region = Region { start: 0x16000, len: 0x1000 };

/// Address of a register, for the drivers.
pub(crate) fn get(address: usize) -> u32 {
    // SAFETY: callers give addresses of registers of this board, which can be read at any time.
    unsafe { read_volatile(address as *const u32) }
}

/// Writes a register.
pub(crate) fn set(address: usize, value: u32) {
    // SAFETY: callers give addresses of registers of this board; none of them makes the processor write to memory.
    unsafe { write_volatile(address as *mut u32, value) }
}

const TIMER: usize = 0x4000_0000;
/// Ticks of the timer in a microsecond.
const TICKS: u64 = 25;

/// Time since the start, from a timer of 32 bits that counts down and is asked at least every two minutes.
pub(crate) struct Clock {
    last: u32,
    ticks: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        set(TIMER + 8, u32::MAX);
        set(TIMER + 4, u32::MAX);
        set(TIMER, 1);
        Self { last: u32::MAX, ticks: 0 }
    }

    pub(crate) fn now(&mut self) -> Instant {
        Instant::from_micros(self.ticks() / TICKS)
    }

    /// Ticks of 40 ns since the start.
    pub(crate) fn ticks(&mut self) -> u64 {
        let value = get(TIMER + 4);
        self.ticks += u64::from(self.last.wrapping_sub(value));
        self.last = value;
        self.ticks
    }
}

/// The time of day, from the debugger's host: it stands for a clock with a battery.
pub(crate) fn time_of_day() -> Timestamp {
    // SAFETY: SYS_TIME takes no argument and changes no memory.
    let seconds = unsafe { syscall(nr::TIME, &0usize) };
    Timestamp(seconds as u64 * 1000)
}

/// Unpredictable bytes, from the debugger's host: they stand for a generator of random numbers, which this board lacks.
/// `None` if there are none: then no session may be begun.
pub(crate) fn randomness() -> Option<[u8; 32]> {
    let path = b"/dev/urandom\0";
    let mut bytes = [0u8; 32];
    // SAFETY: the arguments are those of SYS_OPEN (mode 1 is `rb`) and SYS_READ: the path ends with a zero, the buffer
    // is as long as it is said to be and nothing else refers to it.
    let missing = unsafe {
        let file = syscall(nr::OPEN, &[path.as_ptr() as usize, 1, path.len() - 1]);
        if file == usize::MAX {
            return None;
        }
        let missing = syscall(nr::READ, &[file, bytes.as_mut_ptr() as usize, bytes.len()]);
        syscall(nr::CLOSE, &[file]);
        missing
    };
    (missing == 0 && bytes != [0; 32]).then_some(bytes)
}

const UART: usize = 0x4000_4000;

/// The first serial port.
pub(crate) struct Console;

impl Console {
    pub(crate) fn start() {
        set(UART + 0x10, 16);
        set(UART + 8, 1);
    }
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while get(UART + 4) & 1 == 1 {}
            set(UART, byte.into());
        }
        Ok(())
    }
}

/// 16 MiB of memory that is a file of the host, and that is treated as NOR flash: programming clears bits, erasing sets
/// them. What was written before the emulator is killed is there when it starts again.
pub(crate) struct Flash(());

const FLASH: usize = 0x2100_0000;
const FLASH_LEN: usize = 16 << 20;

#[derive(Debug)]
pub(crate) struct Outside;

impl NorFlashError for Outside {
    fn kind(&self) -> NorFlashErrorKind {
        NorFlashErrorKind::OutOfBounds
    }
}

impl Flash {
    /// # Safety
    /// To be called once: nobody else may reach this memory.
    pub(crate) const unsafe fn take() -> Self {
        Self(())
    }
}

impl ErrorType for Flash {
    type Error = Outside;
}

impl ReadNorFlash for Flash {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Outside> {
        let end = (offset as usize).checked_add(bytes.len());
        if end.is_none_or(|end| end > FLASH_LEN) {
            return Err(Outside);
        }
        for (nth, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: within the board's memory for this, as was just looked at.
            *byte = unsafe { read_volatile((FLASH + offset as usize + nth) as *const u8) };
        }
        Ok(())
    }

    fn capacity(&self) -> usize {
        FLASH_LEN
    }
}

impl NorFlash for Flash {
    const WRITE_SIZE: usize = 4;
    const ERASE_SIZE: usize = 4096;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Outside> {
        check_erase(self, from, to).map_err(|_| Outside)?;
        for address in (from as usize..to as usize).step_by(4) {
            set(FLASH + address, u32::MAX);
        }
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Outside> {
        check_write(self, offset, bytes.len()).map_err(|_| Outside)?;
        for (nth, word) in bytes.chunks_exact(4).enumerate() {
            let address = FLASH + offset as usize + nth * 4;
            let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            set(address, get(address) & word);
        }
        Ok(())
    }
}
