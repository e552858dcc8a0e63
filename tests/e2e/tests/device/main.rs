//! A device in an emulator: the firmware as it is built for a Cortex-M4, on an emulated board with an emulated network
//! controller and flash that is a file, against the source that every agent runs, over real sockets.
//!
//! `cargo xtask firmware` builds the firmware. Without it, or without QEMU, the tests skip themselves, loudly; with
//! `FLOTILLA_REQUIRE_ALL` they fail.

mod board;
mod source;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use agent_proto::limits::BLOCK_LEN;
use device_core::Slot;
use event_schema::{Report, ReportBody, RunAgentState};

use crate::board::{Emulator, FlashFile, device_key, firmware};
use crate::source::{Image, Source};

/// An image of this many bytes, trailer included.
const IMAGE_LEN: usize = 16 * BLOCK_LEN as usize;
/// A line of a device comes within this; generous, since the machine may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a device did until it said that the run has ended.
struct Course {
    /// Blocks that it said to have kept.
    kept: BTreeSet<u64>,
    starts: u32,
    kills: u32,
}

/// Runs the device to the end of its run. It is killed `kills` times, each time after the source gave a number of pieces
/// that a seed determines: mostly so few that no block is whole, so that there is something left to be fetched for all of
/// them; every fourth time up to two blocks. A third of them come at a time instead, while it starts and shakes hands.
async fn course(source: &Source, flash: &FlashFile, mut kills: u32, seed: u64) -> Course {
    let mut course = Course { kept: BTreeSet::new(), starts: 0, kills: 0 };
    let mut chance = seed;
    loop {
        let mut emulator = Emulator::start(flash);
        chance = chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        // A block has some 30 pieces.
        let most = if kills.is_multiple_of(4) { 60 } else { 8 };
        let kill_at = source.pieces() + (chance >> 33) % most;
        let begun = Instant::now();
        let soon = Duration::from_micros(if kills.is_multiple_of(3) {
            (chance >> 20) % 300_000
        } else {
            60_000_000
        });
        loop {
            if kills > 0 && (source.pieces() >= kill_at || begun.elapsed() >= soon) {
                // What it said before counts, too.
                for line in emulator.kill() {
                    note(&line, &mut course, source);
                }
                kills -= 1;
                course.kills += 1;
                break;
            }
            let Some(line) = emulator.line(Duration::from_millis(2)).await else {
                assert!(emulator.silence() < PATIENCE, "nothing more from the device\n{}", emulator.said());
                continue;
            };
            note(&line, &mut course, source);
            for bad in ["PANIC", "STOPPED", "LEFT"] {
                assert!(!line.starts_with(bad), "{}", emulator.said());
            }
            if line.starts_with("END") {
                assert_eq!(line, "END Done", "{}", emulator.said());
                emulator.kill();
                return course;
            }
        }
    }
}

fn note(line: &str, course: &mut Course, source: &Source) {
    if let Some(block) = line.strip_prefix("KEPT ").and_then(|block| block.parse().ok()) {
        course.kept.insert(block);
        source.must_not_give(block);
    }
    if let Some(taken) = line.strip_prefix("MEMORY heap ") {
        let (heap, stack) = taken.split_once(" stack ").expect("both");
        let number = |text: &str| text.parse::<usize>().expect("a number");
        // Of 68 KiB, and of the 28 KiB that this leaves of 96 for the stack.
        assert!(number(heap) < 64 * 1024 && number(stack) < 24 * 1024, "{line}");
        eprintln!("{line}");
    }
    course.starts += u32::from(line.starts_with("START"));
}

/// What is on the flash when all is over.
fn check(flash: &FlashFile, image: &Image) {
    let mut device = flash.open();
    assert_eq!((device.active(), device.version()), (Slot::B, 2));
    for (nth, block) in image.bytes.chunks(BLOCK_LEN as usize).enumerate() {
        let mut bytes = vec![0; block.len()];
        assert_eq!(device.read(Slot::B, nth as u32, 0, &mut bytes), Ok(true));
        assert!(bytes == block, "block {nth} is another one");
    }
    let key = device_key().verifying_key().to_bytes();
    let reports: Vec<ReportBody> = device
        .waiting()
        .map(|number| {
            let signed = device.report(number).expect("flash in memory").expect("it waits");
            Report::open(&signed, &key).expect("signed by the device").body
        })
        .collect();
    let [ReportBody::CommandAccepted(accepted), ReportBody::RunCompleted(end)] = &reports[..] else {
        panic!("{reports:?}");
    };
    assert_eq!((accepted.sequence, end.state), (1, RunAgentState::Done));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_fetches_an_image_tries_it_and_reports() {
    let Some(firmware) = firmware() else { return };
    let image = Image::new(1, IMAGE_LEN);
    let source = Source::start(&image, 0.0);
    let flash = FlashFile::of_a_new_device(&firmware, &source);
    let course = course(&source, &flash, 0, 0).await;
    // The last block ends the first start before it is told.
    assert_eq!((course.kept.len(), course.starts), (15, 2));
    assert_eq!(source.given(), 16, "blocks travel once");
    check(&flash, &image);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_killed_at_random_fetches_no_block_twice_that_it_has_kept() {
    let Some(firmware) = firmware() else { return };
    let image = Image::new(2, IMAGE_LEN);
    let source = Source::start(&image, 0.0);
    let flash = FlashFile::of_a_new_device(&firmware, &source);
    let course = course(&source, &flash, 100, 7).await;
    assert_eq!(course.kills, 100, "it was done too soon, after {} starts", course.starts);
    check(&flash, &image);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_gets_an_image_over_paths_that_lose_packets() {
    let Some(firmware) = firmware() else { return };
    for (seed, loss) in [(3, 0.05), (4, 0.2)] {
        let image = Image::new(seed, IMAGE_LEN);
        let source = Source::start(&image, loss);
        let flash = FlashFile::of_a_new_device(&firmware, &source);
        course(&source, &flash, 0, 0).await;
        check(&flash, &image);
    }
}
