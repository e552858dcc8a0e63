//! The Ethernet controller LAN9118 with programmed input and output, as `smoltcp` wants it.
//!
//! It is looked at in each turn of the main loop, not by its interrupt: its buffer holds six full frames, and a device
//! has at most three packets on their way to it.

use alloc::vec;
use alloc::vec::Vec;

use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::board::{get, set};

const BASE: usize = 0x4020_0000;
const RX_DATA: usize = BASE;
const TX_DATA: usize = BASE + 0x20;
const RX_STATUS: usize = BASE + 0x40;
const TX_STATUS: usize = BASE + 0x48;
const INT_STS: usize = BASE + 0x58;
const INT_EN: usize = BASE + 0x5c;
const BYTE_TEST: usize = BASE + 0x64;
const FIFO_INT: usize = BASE + 0x68;
const RX_CFG: usize = BASE + 0x6c;
const TX_CFG: usize = BASE + 0x70;
const HW_CFG: usize = BASE + 0x74;
const RX_FIFO_INF: usize = BASE + 0x7c;
const TX_FIFO_INF: usize = BASE + 0x80;
const PMT_CTRL: usize = BASE + 0x84;
const MAC_CSR_CMD: usize = BASE + 0xa4;
const MAC_CSR_DATA: usize = BASE + 0xa8;
const AFC_CFG: usize = BASE + 0xac;

const MAC_CR: u32 = 1;
const MAC_ADDRH: u32 = 2;
const MAC_ADDRL: u32 = 3;
const MAC_MII_ACC: u32 = 6;
const MAC_MII_DATA: u32 = 7;

/// The longest frame without its check.
const FRAME: usize = 1514;
/// Frames of one look, so that a flood does not keep the device from everything else.
const BUDGET: u8 = 8;
/// Reads of a register that waits for the controller: it takes microseconds.
const PATIENCE: u32 = 1_000_000;

/// What is missing where a controller should be.
#[derive(Debug)]
pub(crate) struct NoController;

pub(crate) struct Nic {
    frame: Vec<u8>,
    left: u8,
}

fn until(ready: impl Fn() -> bool) -> Result<(), NoController> {
    (0..PATIENCE).any(|_| ready()).then_some(()).ok_or(NoController)
}

fn mac_get(register: u32) -> Result<u32, NoController> {
    set(MAC_CSR_CMD, 1 << 31 | 1 << 30 | register);
    until(|| get(MAC_CSR_CMD) >> 31 == 0)?;
    Ok(get(MAC_CSR_DATA))
}

fn mac_set(register: u32, value: u32) -> Result<(), NoController> {
    set(MAC_CSR_DATA, value);
    set(MAC_CSR_CMD, 1 << 31 | register);
    until(|| get(MAC_CSR_CMD) >> 31 == 0)
}

fn phy_set(register: u32, value: u32) -> Result<(), NoController> {
    mac_set(MAC_MII_DATA, value)?;
    // PHY 1, a write.
    mac_set(MAC_MII_ACC, 1 << 11 | register << 6 | 1 << 1 | 1)?;
    for _ in 0..PATIENCE {
        if mac_get(MAC_MII_ACC)? & 1 == 0 {
            return Ok(());
        }
    }
    Err(NoController)
}

impl Nic {
    /// Brings the controller up.
    pub(crate) fn start() -> Result<Self, NoController> {
        until(|| get(BYTE_TEST) == 0x8765_4321)?;
        until(|| get(PMT_CTRL) & 1 == 1)?;
        set(HW_CFG, 1);
        until(|| get(HW_CFG) & 1 == 0)?;
        // 5 KiB of its memory are for sending.
        set(HW_CFG, 5 << 16 | 1 << 20);
        set(AFC_CFG, 0x006e_3740);
        set(INT_EN, 0);
        set(INT_STS, u32::MAX);
        phy_set(0, 0x8000)?;
        phy_set(4, 0x01e1)?;
        phy_set(0, 0x1200)?;
        set(FIFO_INT, 0);
        set(RX_CFG, 0);
        set(TX_CFG, 2);
        // Full duplex, receiver and transmitter on.
        mac_set(MAC_CR, 1 << 20 | 1 << 3 | 1 << 2)?;
        Ok(Self { frame: vec![0; FRAME], left: BUDGET })
    }

    /// The address that the controller has from its memory.
    pub(crate) fn address(&self) -> Result<[u8; 6], NoController> {
        let (high, low) = (mac_get(MAC_ADDRH)?.to_le_bytes(), mac_get(MAC_ADDRL)?.to_le_bytes());
        Ok([low[0], low[1], low[2], low[3], high[0], high[1]])
    }

    /// A new look begins.
    pub(crate) fn refresh(&mut self) {
        self.left = BUDGET;
    }

    fn room() -> bool {
        // Whole words, and two of a command.
        (get(TX_FIFO_INF) & 0xffff) as usize >= FRAME.next_multiple_of(4) + 8
    }

    /// Takes the next frame out of the controller; its length, or `None` if there was none or it was damaged.
    fn take(&mut self) -> Option<usize> {
        while self.left > 0 && get(RX_FIFO_INF) >> 16 & 0xff > 0 {
            self.left -= 1;
            let status = get(RX_STATUS);
            let whole = (status >> 16 & 0x3fff) as usize;
            let len = whole.saturating_sub(4);
            let good = status >> 15 & 1 == 0 && (14..=FRAME).contains(&len);
            for nth in 0..whole.div_ceil(4) {
                let word = get(RX_DATA).to_le_bytes();
                let at = (nth * 4).min(FRAME);
                let part = (FRAME - at).min(4);
                self.frame[at..at + part].copy_from_slice(&word[..part]);
            }
            if good {
                return Some(len);
            }
        }
        None
    }
}

pub(crate) struct Received<'a>(&'a [u8]);
pub(crate) struct Sending;

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Sending {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = [0; FRAME];
        let result = f(&mut frame[..len]);
        set(TX_DATA, 1 << 13 | 1 << 12 | len as u32);
        set(TX_DATA, len as u32);
        for word in frame[..len.next_multiple_of(4).min(FRAME)].chunks(4) {
            let mut bytes = [0; 4];
            bytes[..word.len()].copy_from_slice(word);
            set(TX_DATA, u32::from_le_bytes(bytes));
        }
        // What became of it is of no interest, but its place is needed.
        if get(TX_FIFO_INF) >> 16 & 0xff > 0 {
            get(TX_STATUS);
        }
        result
    }
}

impl Device for Nic {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending)> {
        // An answer may be due: no frame is taken without room for one.
        if !Self::room() {
            return None;
        }
        let len = self.take()?;
        Some((Received(&self.frame[..len]), Sending))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending> {
        Self::room().then_some(Sending)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities.max_burst_size = Some(1);
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }
}
