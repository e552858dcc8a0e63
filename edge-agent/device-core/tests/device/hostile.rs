//! Flash that holds what it should not: flipped bits, cut ends, left-overs, garbage, what newer programs wrote.

use device_core::{Board, Device, Layout, LayoutFault, OpenError, Region, Slot};
use event_schema::RunAgentState;
use proptest::prelude::*;

use crate::flash::{Chance, Flash};
use crate::world::{
    BOARD, FLASH_LEN, Image, LAYOUT, NOW, RUN, bundle, command, command_key, device, fetch, join, open, root,
    version,
};

/// A device in the middle of its work: trust, an order, reports, a block, and older segments.
fn busy() -> (Flash<8>, u64, u64) {
    let (flash, mut device) = device::<8>();
    let image = Image::new(1, 40_000, version(2));
    let keys = vec![command_key().verifying_key().to_bytes()];
    for sequence in 1..=60 {
        device.take(&command(sequence, join(RUN)).sign(&command_key()), Some(NOW)).expect("power is there");
        device.stored(u64::MAX).expect("power is there");
    }
    device.trust(&bundle(2, keys).sign(&root())).expect("power is there");
    device.report_state(RunAgentState::Transferring, Some(NOW)).expect("power is there");
    device.begin(&image.payload()).expect("power is there");
    fetch(&mut device, &image, 1).expect("power is there");
    let made = *device.waiting().end();
    (flash, 60, made)
}

/// Whatever the flash holds: no panic, and a state that was there once.
fn look(flash: &Flash<8>, cursor: u64, made: u64) -> Result<u64, OpenError> {
    let mut device = open(flash)?;
    assert!(device.cursor() <= cursor && *device.waiting().end() <= made);
    device.order().ok();
    for number in device.waiting() {
        device.report(number).ok();
    }
    device.manifest(Slot::B).ok();
    assert_eq!(device.boot().slot, Slot::A);
    Ok(device.cursor())
}

#[test]
fn a_flipped_bit_anywhere_in_the_journal_brings_no_command_back() {
    let (flash, cursor, made) = busy();
    let journal = LAYOUT.journal;
    let mut opened = 0;
    for at in (journal.start..journal.end()).step_by(3) {
        flash.flip(at as usize, 1 << (at % 8));
        match look(&flash, cursor, made) {
            Ok(seen) => {
                assert_eq!(seen, cursor, "{at}");
                opened += 1;
            }
            Err(e) => panic!("{at}: {e}"),
        }
        flash.flip(at as usize, 1 << (at % 8));
    }
    assert_eq!(opened, journal.len.div_ceil(3));
}

#[test]
fn a_lost_journal_is_told_and_never_begins_at_zero() {
    let (flash, _) = device::<8>();
    {
        let mut cells = flash.0.borrow_mut();
        let journal = LAYOUT.journal;
        cells.bytes[journal.start as usize..journal.end() as usize].fill(0xff);
    }
    assert_eq!(open(&flash).err(), Some(OpenError::Lost));
}

#[test]
fn what_newer_programs_wrote_is_left_alone() {
    use sha2::{Digest, Sha256};
    let (flash, _, _) = busy();
    let before = flash.fork();
    // A newer segment of version 2, with a check that holds.
    {
        let mut cells = flash.0.borrow_mut();
        let start = LAYOUT.journal.start as usize + 3 * 0x4000;
        let mut header = [0; 32];
        header[..8].copy_from_slice(b"FLOTLOG\x02");
        header[8..16].copy_from_slice(&1000u64.to_le_bytes());
        let sum = Sha256::digest(&header[..24]);
        header[24..].copy_from_slice(&sum[..8]);
        cells.bytes[start..start + 32].copy_from_slice(&header);
    }
    let operations = flash.operations();
    assert_eq!(open(&flash).err(), Some(OpenError::Newer));
    assert_eq!(flash.operations(), operations);
    assert!(open(&before).is_ok());
}

#[test]
fn firmware_of_another_board_does_not_open_it() {
    let (flash, _) = device::<8>();
    let other = Device::open(flash, LAYOUT, Board::named("stm32h743"));
    assert_eq!(other.err(), Some(OpenError::Board(BOARD)));
}

#[test]
fn layouts_that_do_not_fit_are_refused() {
    let flash = Flash::<8>::new(FLASH_LEN);
    let check = |change: fn(&mut Layout)| {
        let mut layout = LAYOUT;
        change(&mut layout);
        layout.check(&flash).err()
    };
    assert_eq!(check(|_| ()), None);
    assert_eq!(check(|l| l.slots[1].len += 0x8000), Some(LayoutFault::Border));
    assert_eq!(check(|l| l.slots[1].start = u32::MAX - 0xfff), Some(LayoutFault::Border));
    assert_eq!(check(|l| l.identity.start = 8), Some(LayoutFault::Border));
    assert_eq!(check(|l| l.slots[0].len += 0x8000), Some(LayoutFault::Overlap));
    assert_eq!(check(|l| l.manifests[1] = l.manifests[0]), Some(LayoutFault::Overlap));
    assert_eq!(check(|l| l.identity.len = 0x1000), Some(LayoutFault::Length));
    assert_eq!(check(|l| l.segment_len = 0x8000), Some(LayoutFault::Length));
    assert_eq!(check(|l| l.segment_len = 0x2000), Some(LayoutFault::Length));
    assert_eq!(check(|l| l.segment_len = 0), Some(LayoutFault::Length));
    assert_eq!(check(|l| l.slots[1].len -= 0x1000), Some(LayoutFault::Length));
    assert_eq!(check(|l| l.manifests[0].len = 0x1000), Some(LayoutFault::Length));
    let small = Flash::<8>::new(0x10000);
    assert_eq!(LAYOUT.check(&small), Err(LayoutFault::Border));
    let wide = Flash::<64>::new(FLASH_LEN);
    assert_eq!(LAYOUT.check(&wide), Err(LayoutFault::Units));
    assert_eq!(Region { start: u32::MAX, len: 9 }.end(), u32::MAX);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn garbage_opens_as_nothing(seed: u64) {
        let flash = Flash::<8>::new(FLASH_LEN);
        let mut chance = Chance(seed);
        for byte in &mut flash.0.borrow_mut().bytes[..0x18000] {
            *byte = chance.draw() as u8;
        }
        prop_assert_eq!(open(&flash).err(), Some(OpenError::Unprovisioned));
    }

    #[test]
    fn a_stretch_of_the_journal_that_is_lost_never_panics(
        from in 0..0x10000usize,
        len in 1..0x5000usize,
        fill in prop_oneof![Just(0xffu8), Just(0), any::<u8>()],
    ) {
        let (flash, cursor, made) = busy();
        let start = LAYOUT.journal.start as usize + from;
        let end = (start + len).min(LAYOUT.journal.end() as usize);
        flash.0.borrow_mut().bytes[start..end].fill(fill);
        let seen = look(&flash, cursor, made);
        prop_assert!(matches!(seen, Ok(_) | Err(OpenError::Lost)), "{:?}", seen);
    }
}
