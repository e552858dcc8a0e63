//! Images: fetched block by block, reused from the one before, tried, confirmed, given up, served; those that must not be
//! installed.

use agent_proto::limits::BLOCK_LEN;
use device_core::limits::{PIECE_LEN, TRIES};
use device_core::{
    BeginError, Begun, BlockError, Board, Device, Payload, PayloadFault, Slot, SlotState, Stored, Trailer,
};
use event_schema::RunId;
use sync_core::manifest::{BlockHash, Entry, Kind, Mtime, encode};

use crate::flash::Flash;
use crate::world::{
    BOARD, Image, LAYOUT, NOW, RUN, command, command_key, device, fetch, fetch_all, join, open, source,
    version,
};

const W: usize = 8;
const BLOCK: usize = BLOCK_LEN as usize;

/// Brings an image to where it counts.
fn install(flash: &Flash<W>, mut device: Device<Flash<W>>, image: &Image) -> Device<Flash<W>> {
    let slot = device.active().other();
    assert!(matches!(device.begin(&image.payload()), Ok(Begun::Anew)));
    assert_eq!(fetch_all(&mut device, image), Stored::Last);
    assert_eq!(device.activate(), Ok(true));
    let mut device = open(flash).expect("power is there");
    assert_eq!(device.boot().slot, slot);
    assert_eq!(device.confirm(slot), Ok(true));
    device
}

#[test]
fn only_changed_blocks_travel() {
    let (flash, device) = device::<W>();
    let first = Image::new(1, 3 * BLOCK + 500, version(2));
    let mut device = install(&flash, device, &first);
    // The second block is new, one moved to the end, and the last one has the new version.
    let mut bytes = first.bytes[..3 * BLOCK].to_vec();
    bytes[BLOCK..2 * BLOCK].fill(7);
    bytes.rotate_left(BLOCK);
    bytes.extend(&Image::new(2, 500, version(3)).bytes);
    let second = Image::of(bytes);
    assert_eq!(device.begin(&second.payload()), Ok(Begun::Anew));
    assert_eq!(device.missing().collect::<Vec<_>>(), [3, 0, 1, 2]);
    let mut fetched = Vec::new();
    for block in [3, 0, 1, 2] {
        if device.reuse(block).expect("power is there").is_none() {
            fetched.push(block);
            fetch(&mut device, &second, block).expect("power is there");
        }
    }
    assert_eq!(fetched, [3, 0]);
    assert_eq!(device.spare(), SlotState::Ready);
    let start = LAYOUT.slots[device.active().other().index()].start as usize;
    assert!(flash.0.borrow().bytes[start..start + second.bytes.len()] == second.bytes[..]);
    // What is in the active slot goes on being served.
    let mut served = vec![0; 100];
    assert_eq!(device.read(device.active(), 3, 0, &mut served), Ok(true));
    assert_eq!(served, first.bytes[3 * BLOCK..3 * BLOCK + 100]);
}

#[test]
fn what_rots_in_the_active_slot_is_fetched_instead() {
    let (flash, device) = device::<W>();
    let first = Image::new(1, BLOCK + 500, version(2));
    let mut device = install(&flash, device, &first);
    let mut bytes = first.bytes[..BLOCK].to_vec();
    bytes.extend(&Image::new(2, 500, version(3)).bytes);
    let second = Image::of(bytes);
    assert_eq!(device.begin(&second.payload()), Ok(Begun::Anew));
    flash.flip(LAYOUT.slots[1].start as usize + 777, 4);
    assert_eq!(device.reuse(0), Ok(None));
    assert_eq!(fetch_all(&mut device, &second), Stored::Last);
}

#[test]
fn an_image_that_is_not_for_here_is_refused_after_one_block() {
    let other = Trailer { board: Board::named("stm32h743"), version: 2 };
    let mut none = Image::new(1, 2 * BLOCK + 100, version(2)).bytes;
    none.truncate(2 * BLOCK + 50);
    for (image, expected) in [
        (Image::new(1, 2 * BLOCK + 100, other), BeginError::Board),
        (Image::new(1, 2 * BLOCK + 100, version(1)), BeginError::NotNewer),
        (Image::new(1, 2 * BLOCK + 100, version(0)), BeginError::NotNewer),
        (Image::of(none), BeginError::NoTrailer),
    ] {
        let (flash, mut device) = device::<W>();
        assert_eq!(device.begin(&image.payload()), Ok(Begun::Anew));
        let last = device.missing().next().expect("all are missing");
        assert_eq!(last, 2);
        // One with a trailer in two blocks needs both.
        let mut stored = fetch(&mut device, &image, last);
        if stored == Ok(Stored::Kept) {
            stored = fetch(&mut device, &image, 1);
        }
        assert_eq!(stored, Ok(Stored::Refused(expected)));
        let device = open(&flash).expect("power is there");
        assert_eq!(
            (device.spare(), device.progress(), device.missing().count()),
            (SlotState::Empty, None, 0)
        );
    }
}

#[test]
fn a_trailer_may_lie_in_two_blocks() {
    let (_flash, mut device) = device::<W>();
    let image = Image::new(5, BLOCK + 10, version(2));
    assert_eq!(device.begin(&image.payload()), Ok(Begun::Anew));
    assert_eq!(fetch(&mut device, &image, 1), Ok(Stored::Kept));
    assert_eq!(fetch(&mut device, &image, 0), Ok(Stored::Last));
}

#[test]
fn who_is_not_confirmed_in_time_is_given_up_and_may_come_again_by_another_order() {
    let (flash, mut device) = device::<W>();
    let image = Image::new(1, 3000, version(2));
    let signed = |sequence| command(sequence, join(RUN)).sign(&command_key());
    device.take(&signed(1), Some(NOW)).expect("power is there");
    assert_eq!(device.begin(&image.payload()), Ok(Begun::Anew));
    assert_eq!(fetch_all(&mut device, &image), Stored::Last);
    assert_eq!(device.begin(&image.payload()), Ok(Begun::Ready));
    assert_eq!(device.activate(), Ok(true));
    for _ in 0..TRIES {
        let mut device = open(&flash).expect("power is there");
        assert_eq!(device.boot().slot, Slot::B);
        // Only the image itself, running, can confirm it.
        assert_eq!(device.confirm(Slot::A), Ok(false));
        let another = Image::new(9, 3000, version(3));
        assert_eq!(device.begin(&another.payload()), Err(BeginError::OnTrial));
    }
    let mut device = open(&flash).expect("power is there");
    let booted = device.boot();
    assert_eq!((booted.slot, booted.gave_up, device.gave_up()), (Slot::A, true, true));
    assert_eq!(device.confirm(Slot::B), Ok(false));
    assert_eq!(device.begin(&image.payload()), Err(BeginError::FailedBefore));
    device.take(&signed(2), Some(NOW)).expect("power is there");
    assert!(!device.gave_up());
    assert_eq!(device.begin(&image.payload()), Ok(Begun::Anew));
}

#[test]
fn what_rots_before_its_trial_is_never_started() {
    let (flash, mut device) = device::<W>();
    let image = Image::new(1, 3000, version(2));
    assert_eq!(device.begin(&image.payload()), Ok(Begun::Anew));
    assert_eq!(fetch_all(&mut device, &image), Stored::Last);
    assert_eq!(device.activate(), Ok(true));
    flash.flip(LAYOUT.slots[1].start as usize + 2999, 1);
    let mut device = open(&flash).expect("power is there");
    let booted = device.boot();
    assert_eq!((booted.slot, booted.gave_up), (Slot::A, true));
}

#[test]
fn a_block_that_is_not_what_it_should_be_is_missing_as_before() {
    let (flash, mut device) = device::<W>();
    let image = Image::new(1, BLOCK + 2000, version(2));
    let mut forged = image.clone();
    forged.bytes[BLOCK + 3] ^= 1;
    assert_eq!(device.begin(&image.payload()), Ok(Begun::Anew));
    assert_eq!(fetch(&mut device, &forged, 1), Ok(Stored::Corrupt));
    assert!(!device.holds(Slot::B, 1));
    assert_eq!(device.read(Slot::B, 1, 0, &mut [0; 8]), Ok(false));
    assert_eq!(device.missing().collect::<Vec<_>>(), [1, 0]);
    assert_eq!(fetch(&mut device, &image, 1), Ok(Stored::Kept));
    let mut device = open(&flash).expect("power is there");
    assert_eq!(device.begin(&image.payload()), Ok(Begun::Resumed));
    assert_eq!(device.missing().collect::<Vec<_>>(), [0]);
    assert_eq!(device.start_block(1), Err(BlockError::NotWanted));
    // Head and manifest are here for others, as they came.
    assert_eq!(device.manifest(Slot::B), Ok(Some((image.head.clone(), image.manifest.clone()))));
    assert_eq!(device.manifest(Slot::A), Ok(None));
}

#[test]
fn pieces_are_whole_in_their_place_and_taken_once() {
    let (_flash, mut device) = device::<W>();
    let image = Image::new(1, 2500, version(2));
    let piece = |nth: usize| image.bytes.chunks(PIECE_LEN as usize).nth(nth).expect("a piece");
    assert_eq!(device.start_block(0), Err(BlockError::NotWanted));
    assert_eq!(device.begin(&image.payload()), Ok(Begun::Anew));
    assert_eq!(device.put(0, 0, piece(0)), Err(BlockError::NotWanted));
    assert_eq!(device.start_block(1), Err(BlockError::NotWanted));
    device.start_block(0).expect("it is missing");
    for (block, offset, bytes) in [
        (0, 1, piece(0)),
        (0, 0, &piece(0)[1..]),
        (0, 2048, piece(0)),
        (0, 3072, &[][..]),
        (0, u32::MAX - 1023, piece(0)),
    ] {
        assert_eq!(device.put(block, offset, bytes), Err(BlockError::Piece), "{offset}");
    }
    assert_eq!(device.put(1, 0, piece(0)), Err(BlockError::NotWanted));
    for (offset, nth) in [(2048, 2), (0, 0), (0, 0), (2048, 2)] {
        assert_eq!(device.put(0, offset, piece(nth)), Ok(()));
    }
    assert_eq!(device.finish_block(0), Err(BlockError::Piece));
    assert_eq!(device.put(0, 1024, piece(1)), Ok(()));
    assert_eq!(device.finish_block(0), Ok(Stored::Last));
}

#[test]
fn another_image_takes_the_place_of_one_that_is_not_whole() {
    let (_flash, mut device) = device::<W>();
    let (old, new) = (Image::new(1, BLOCK + 900, version(2)), Image::new(2, BLOCK + 900, version(3)));
    assert_eq!(device.begin(&old.payload()), Ok(Begun::Anew));
    assert_eq!(fetch(&mut device, &old, 1), Ok(Stored::Kept));
    assert_eq!(device.begin(&new.payload()), Ok(Begun::Anew));
    assert_eq!(device.missing().collect::<Vec<_>>(), [1, 0]);
    // Blocks of both never come together in one image.
    assert_eq!(fetch(&mut device, &old, 1), Ok(Stored::Corrupt));
    assert_eq!(fetch_all(&mut device, &new), Stored::Last);
}

#[test]
fn a_manifest_that_rotted_is_fetched_again_with_all_its_blocks() {
    let (flash, mut device) = device::<W>();
    let image = Image::new(1, BLOCK + 900, version(2));
    assert_eq!(device.begin(&image.payload()), Ok(Begun::Anew));
    assert_eq!(fetch(&mut device, &image, 1), Ok(Stored::Kept));
    flash.flip(LAYOUT.manifests[1].start as usize + 1024 + 70, 2);
    assert_eq!(device.manifest(Slot::B), Ok(None));
    assert_eq!(device.begin(&image.payload()), Ok(Begun::Anew));
    assert_eq!(fetch_all(&mut device, &image), Stored::Last);
}

#[test]
fn manifests_that_are_no_image_are_refused() {
    let image = Image::new(1, 3000, version(2));
    let key = source().verifying_key().to_bytes();
    let open = |image: &Image, run| Payload::open(&image.head, &image.manifest, run, &key).map(|_| ());
    assert_eq!(open(&image, RUN), Ok(()));
    assert!(matches!(open(&image, RunId([0; 16])), Err(PayloadFault::Head(_))));
    assert!(matches!(Payload::open(&image.head, &image.manifest, RUN, &[6; 32]), Err(PayloadFault::Head(_))));
    let mut tampered = image.clone();
    for at in 0..tampered.manifest.len() {
        tampered.manifest[at] ^= 1;
        assert_eq!(open(&tampered, RUN), Err(PayloadFault::NotOfHead), "{at}");
        tampered.manifest[at] ^= 1;
    }
    for cut in [0, 1, 64, image.manifest.len() - 1] {
        tampered.manifest.truncate(cut);
        assert_eq!(open(&tampered, RUN), Err(PayloadFault::NotOfHead), "{cut}");
        tampered = image.clone();
    }
    let file = |name: &[u8], bytes: &[u8]| {
        let mtime = Mtime { seconds: 1, nanos: 0 };
        let hashes: Vec<_> = bytes.chunks(BLOCK).map(BlockHash::of).collect();
        (Entry::new(name, 0o644, mtime, Kind::file(bytes.len() as u64)), hashes)
    };
    let of = |entries: Vec<(Entry, Vec<BlockHash>)>| {
        Image::with_manifest(Vec::new(), encode(entries).expect("good entries"))
    };
    let folder = Entry::new(b"", 0o755, Mtime { seconds: 1, nanos: 0 }, Kind::Folder);
    let in_folder = of(vec![(folder, vec![]), file(b"a", &image.bytes)]);
    assert_eq!(open(&in_folder, RUN), Ok(()));
    let two = of(vec![file(b"a", &[1; 100]), file(b"b", &[2; 100])]);
    assert_eq!(open(&two, RUN), Err(PayloadFault::NotOneFile));
    assert_eq!(open(&of(vec![]), RUN), Err(PayloadFault::NotOneFile));
    assert_eq!(open(&of(vec![file(b"a", &[1; 63])]), RUN), Err(PayloadFault::Size));
    assert_eq!(open(&of(vec![file(b"a", &vec![1; 65 * BLOCK])]), RUN), Err(PayloadFault::Size));
    // Of a size that devices take, and not this one's slots.
    let (_flash, mut device) = device::<W>();
    let large = of(vec![file(b"a", &vec![1; 64 * BLOCK])]);
    assert_eq!(device.begin(&large.payload()), Err(BeginError::TooLarge));
    assert_eq!(BOARD, Board::named("mps2-an386"));
}
