//! Power that goes at every write and erasure of an update, from the command to the last report, and at random.

use device_core::{Slot, SlotState};
use event_schema::{ReportBody, RunAgentState};

use crate::flash::{Chance, Flash};
use crate::world::{End, Image, LAYOUT, Outside, device, open, provision, reports, run, version};

/// Runs until everything is done; gives how often the device started.
fn to_the_end<const W: usize>(flash: &Flash<W>, image: &Image, outside: &mut Outside) -> u32 {
    for starts in 1..100 {
        match run(flash, image, outside) {
            End::Done => return starts,
            End::Restart => {}
            End::Failed => assert!(flash.power_on(), "failed with power"),
        }
    }
    panic!("never done");
}

/// What holds when all is over, whatever happened on the way.
fn check<const W: usize>(flash: &Flash<W>, image: &Image, outside: &Outside, cuts: u32) {
    let told = reports(outside);
    let count = |what: fn(&ReportBody) -> bool| told.iter().filter(|body| what(body)).count();
    assert_eq!(count(|b| matches!(b, ReportBody::CommandAccepted(_))), 2, "{told:?}");
    assert_eq!(*outside.home.last_key_value().expect("reports").0 as usize, told.len(), "a gap");
    let ends: Vec<_> = told
        .iter()
        .filter_map(|body| if let ReportBody::RunCompleted(end) = body { Some(end.state) } else { None })
        .collect();
    let device = open(flash).expect("power is there");
    match ends[..] {
        [RunAgentState::Done] => {
            assert_eq!((device.active(), device.version()), (Slot::B, 2));
            let start = LAYOUT.slots[1].start as usize;
            let cells = flash.0.borrow();
            assert!(cells.bytes[start..start + image.bytes.len()] == image.bytes[..], "another image");
        }
        // Cut off in each of its tries.
        [RunAgentState::Failed] => {
            assert!(cuts >= 3 && outside.trials <= 3);
            assert_eq!((device.active(), device.spare()), (Slot::A, SlotState::Empty));
        }
        _ => panic!("{told:?}"),
    }
    assert_eq!(device.cursor(), 2);
    assert_eq!(outside.reused, 0, "the factory's image has no manifest");
    // A block is fetched once, and once more for each cut before it was stored.
    let blocks = image.payload().blocks();
    assert!(outside.fetched <= u64::from(blocks + cuts), "{} for {blocks}", outside.fetched);
}

fn cut_everywhere<const W: usize>(image: &Image) -> u64 {
    let (made, _) = device::<W>();
    let whole = made.fork();
    let before = whole.operations();
    let mut outside = Outside::default();
    assert_eq!(to_the_end(&whole, image, &mut outside), 2);
    check(&whole, image, &outside, 0);
    let operations = whole.operations() - before;
    for at in 0..operations {
        // A write that is cut off leaves some of its bits: several ways of it.
        for seed in 0..2 {
            let flash = made.fork();
            flash.cut_after(at, seed * operations + at);
            let mut outside = Outside::default();
            to_the_end(&flash, image, &mut outside);
            check(&flash, image, &outside, 1);
        }
    }
    operations
}

#[test]
fn at_every_write_and_erasure_of_an_update() {
    let image = Image::new(1, 2 * 32 * 1024 + 1000, version(2));
    let operations = cut_everywhere::<4>(&image);
    assert!(operations > 300, "{operations} writes and erasures are no update");
}

#[test]
fn at_every_write_and_erasure_with_large_units() {
    cut_everywhere::<32>(&Image::new(2, 1000, version(2)));
}

#[test]
fn at_random_again_and_again() {
    let image = Image::new(3, 32 * 1024 + 5000, version(2));
    let (made, _) = device::<8>();
    let mut failed = 0;
    for seed in 0..2000 {
        let mut chance = Chance(seed);
        let flash = made.fork();
        let (mut outside, mut cuts) = (Outside::default(), 0);
        for start in 0.. {
            assert!(start < 100, "seed {seed}: never done");
            if cuts < 1 + seed as u32 % 12 {
                // Most cuts come early in a start, as short contacts make them.
                let within = [3, 20, 300][chance.below(3) as usize];
                flash.cut_after(chance.below(within), chance.draw());
            }
            let end = run(&flash, &image, &mut outside);
            cuts += u32::from(flash.power_on());
            if end == End::Done {
                break;
            }
        }
        check(&flash, &image, &outside, cuts);
        let told = reports(&outside);
        failed +=
            u32::from(told.iter().any(
                |body| matches!(body, ReportBody::RunCompleted(end) if end.state == RunAgentState::Failed),
            ));
    }
    assert!(failed < 500, "{failed} of 2000 updates were given up");
}

#[test]
fn at_every_write_while_the_device_is_made() {
    let (whole, _) = device::<8>();
    for at in 0..whole.operations() {
        let flash = Flash::<8>::new(crate::world::FLASH_LEN);
        flash.cut_after(at, at);
        drop(provision(&flash));
        assert!(flash.power_on());
        // The first of two copies of the key area may be whole: then so is everything else.
        match open(&flash) {
            Err(device_core::OpenError::Unprovisioned) => {}
            Ok(device) => assert_eq!((device.cursor(), device.version()), (0, 1)),
            Err(e) => panic!("cut off at {at}: {e}"),
        }
        let device = provision(&flash).expect("once more");
        assert_eq!(device.version(), 1);
    }
}

#[test]
fn a_thousand_starts_of_a_device_that_is_done_cost_no_sector_much() {
    let image = Image::new(4, 2000, version(2));
    let (flash, _) = device::<8>();
    let mut outside = Outside::default();
    to_the_end(&flash, &image, &mut outside);
    for hour in 1..=1000 {
        let mut device = open(&flash).expect("power is there");
        let now = event_schema::Timestamp(crate::world::NOW.0 + hour * 3_600_000);
        device.note_time(now).expect("power is there");
        assert_eq!(device.known_time(), now);
    }
    let cells = flash.0.borrow();
    let journal = &cells.erasures[2..18];
    // A start and its transaction take 256 and 288 bytes, a segment has 16 KiB of which all that is alive takes little.
    assert!(journal.iter().all(|&times| (1..=12).contains(&times)), "{journal:?}");
}
