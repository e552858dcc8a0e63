//! Flash that does not hold any more.

use device_core::{BeginError, Begun, BlockError, Error, OpenError, Slot, SlotState, Stored, Taken};
use event_schema::FinishRun;

use crate::world::{
    Image, NOW, RUN, command, command_key, device, fetch, fetch_all, open, provision, version,
};

/// The erase units of the journal's segments.
const SEGMENTS: [[usize; 4]; 4] = [[2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12, 13], [14, 15, 16, 17]];

#[test]
fn the_journal_goes_on_with_the_segments_that_hold() {
    let (flash, mut device) = device::<8>();
    for (segment, unit) in [(1, 1), (3, 0)] {
        flash.wear(SEGMENTS[segment][unit]);
    }
    for sequence in 1..=400 {
        let order = command(sequence, FinishRun { run: RUN }).sign(&command_key());
        assert!(matches!(device.take(&order, Some(NOW)), Ok(Taken::Obey(_))));
        assert_eq!(device.stored(sequence), Ok(true));
        if sequence % 10 == 0 {
            device = open(&flash).expect("power is there");
            assert_eq!(device.cursor(), sequence);
        }
    }
}

#[test]
fn the_last_segment_that_holds_may_be_filled_and_then_nothing_changes() {
    let (flash, mut device) = device::<8>();
    for unit in SEGMENTS[1..].iter().flatten() {
        flash.wear(*unit);
    }
    let mut sequence = 1;
    let end = loop {
        let order = command(sequence, FinishRun { run: RUN }).sign(&command_key());
        match device.take(&order, Some(NOW)) {
            Ok(Taken::Obey(_)) => sequence += 1,
            other => break other,
        }
        device.stored(sequence - 1).ok();
    };
    assert_eq!(end, Err(Error::Worn));
    // It still knows what it did, and obeys none of it twice.
    let mut device = open(&flash).expect("power is there");
    assert_eq!(device.cursor(), sequence - 1);
    let again = command(sequence - 1, FinishRun { run: RUN }).sign(&command_key());
    assert!(matches!(device.take(&again, Some(NOW)), Ok(Taken::Passed(_))));
    assert_eq!(device.boot().slot, Slot::A);
}

#[test]
fn a_worn_slot_costs_the_update_and_not_the_device() {
    let (flash, mut device) = device::<8>();
    let image = Image::new(1, 40_000, version(2));
    // Slot B begins at erase unit 0x38; the last block's second one does not hold.
    flash.wear(0x38 + 8 + 1);
    assert_eq!(device.begin(&image.payload()), Ok(Begun::Anew));
    assert_eq!(fetch(&mut device, &image, 1), Err(Error::Flash));
    assert_eq!(device.finish_block(1), Err(BlockError::NotWanted));
    assert_eq!(fetch(&mut device, &image, 0), Ok(Stored::Kept));
    assert_eq!(device.spare(), SlotState::Receiving);
    // So does one that its manifest does not hold in.
    let (flash, mut device) = crate::world::device::<8>();
    flash.wear(0x14);
    assert_eq!(device.begin(&image.payload()), Err(BeginError::SlotWorn));
    assert_eq!((device.spare(), device.boot().slot), (SlotState::Empty, Slot::A));
    // What holds again after an erasure is used.
    let (_flash, mut device) = crate::world::device::<8>();
    assert_eq!(device.begin(&image.payload()), Ok(Begun::Anew));
    assert_eq!(fetch_all(&mut device, &image), Stored::Last);
}

#[test]
fn one_copy_of_the_key_area_is_enough_and_none_is_no_device() {
    let (flash, device) = device::<8>();
    drop(device);
    flash.flip(20, 1);
    assert!(open(&flash).is_ok());
    flash.flip(0x1000 + 80, 1);
    assert_eq!(open(&flash).err(), Some(OpenError::Unprovisioned));
    let flash = crate::flash::Flash::<8>::new(crate::world::FLASH_LEN);
    flash.wear(0);
    assert!(provision(&flash).is_ok());
    flash.wear(1);
    assert_eq!(provision(&flash).err(), Some(OpenError::Flash));
}
