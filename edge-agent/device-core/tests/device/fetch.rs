//! An image from a peer of its run: the source as every agent has it, pieces in any order, power that goes, peers that
//! lie.

use std::collections::{BTreeMap, BTreeSet};

use agent_proto::limits::BLOCK_LEN;
use agent_proto::peer::{
    BlockAddress, BlockRange, Have, Head, Hello, PeerMessage, Unavailable, UnavailableReason,
};
use device_core::{BeginError, Begun, Board, Device, Error, Fetch, FetchError, PayloadFault, Step, Trailer};
use event_schema::Signed;
use sync_core::config::{OriginConfig, UploadConfig};
use sync_core::manifest::manifest_block_hashes;
use sync_core::{Action, Origin};
use timebase::Instant;

use crate::flash::{Chance, Flash};
use crate::world::{Image, RUN, command_key, device, device_key, me, open, source, version};

type Part = Flash<8>;

fn fetch() -> Fetch {
    Fetch::new(RUN, source().verifying_key().to_bytes(), "test")
}

fn hello() -> PeerMessage {
    Hello { version: "1".into(), origin: true }.into()
}

fn head(image: &Image) -> PeerMessage {
    Head { signed: image.head.clone() }.into()
}

fn have(first: u64, count: u32) -> PeerMessage {
    Have { ranges: vec![BlockRange { first: BlockAddress::content(first), count }] }.into()
}

fn bytes(image: &Image, address: BlockAddress) -> &[u8] {
    if address.is_manifest() { &image.manifest } else { image.block(address.index() as u32) }
}

/// The addresses that it asks for now.
fn asked(fetch: &mut Fetch) -> Vec<BlockAddress> {
    let mut asked = Vec::new();
    while let Some(message) = fetch.poll_message() {
        if let PeerMessage::Request(request) = message {
            assert!(request.ranges.iter().all(|range| range.count == 1));
            asked.extend(request.ranges.iter().map(|range| range.first));
        }
    }
    asked
}

/// All pieces of a block, in an order of chance and some twice.
fn give(
    fetch: &mut Fetch,
    device: &mut Device<Part>,
    address: BlockAddress,
    block: &[u8],
    chance: &mut Chance,
) -> Result<Step, FetchError> {
    let size = 500 + chance.below(900) as usize;
    let mut pieces: Vec<_> = block.chunks(size).enumerate().collect();
    for at in (1..pieces.len()).rev() {
        pieces.swap(at, chance.below(at as u64 + 1) as usize);
    }
    if let Some(first) = pieces.first().copied().filter(|_| pieces.len() > 1) {
        pieces.insert(1, first);
    }
    let mut step = Step::More;
    for (nth, piece) in pieces {
        assert_eq!(step, Step::More, "before all pieces were there");
        step = fetch.handle_piece(device, address.0, (nth * size) as u32, piece)?;
    }
    Ok(step)
}

/// A session with the run's source until the image is whole or the device fails; what was sent for good is counted.
fn contact(
    device: &mut Device<Part>,
    image: &Image,
    chance: &mut Chance,
    kept: &mut BTreeSet<u32>,
    sent: &mut BTreeMap<BlockAddress, u32>,
) -> Result<Step, FetchError> {
    let now = Instant::from_micros(1);
    let blocks = u64::from(image.payload().blocks());
    let hashes = manifest_block_hashes(&image.manifest);
    let (config, uploads) = (OriginConfig::default(), UploadConfig::default());
    let mut origin = Origin::new("1".into(), image.head.clone(), hashes, blocks, config, uploads);
    let mut fetch = fetch();
    origin.handle_connected(now, me());
    let mut last = Step::More;
    loop {
        let mut idle = true;
        while let Some(message) = fetch.poll_message() {
            idle = false;
            // As it travels.
            let message = PeerMessage::decode(&message.encode()).expect("a message");
            origin.handle_message(now, me(), message);
        }
        while let Some(action) = origin.poll_action(now) {
            idle = false;
            let step = match action {
                Action::Send { message, .. } => fetch.handle_message(device, message)?,
                Action::Upload { block, .. } => {
                    *sent.entry(block).or_default() += 1;
                    assert!(block.is_manifest() || !kept.contains(&(block.index() as u32)), "sent again");
                    let step = give(&mut fetch, device, block, bytes(image, block), chance);
                    origin.handle_sent(now, me(), block);
                    step?
                }
                other => panic!("{other:?}"),
            };
            match step {
                Step::Kept(block) => assert!(kept.insert(block), "kept twice"),
                Step::More => {}
                step => last = step,
            }
        }
        if idle {
            return Ok(last);
        }
    }
}

#[test]
fn a_source_gives_an_image_block_by_block() {
    let (_flash, mut device) = device::<8>();
    let image = Image::new(1, 3 * BLOCK_LEN as usize + 100, version(2));
    let (mut kept, mut sent) = (BTreeSet::new(), BTreeMap::new());
    let step = contact(&mut device, &image, &mut Chance(1), &mut kept, &mut sent);
    assert_eq!(step, Ok(Step::Ready));
    assert!(sent.len() == 5 && sent.values().all(|&times| times == 1), "{sent:?}");
    // Nothing is asked of whoever is met then.
    sent.clear();
    let step = contact(&mut device, &image, &mut Chance(2), &mut kept, &mut sent);
    assert_eq!((step, sent.len()), (Ok(Step::Ready), 0));
    assert_eq!(device.activate(), Ok(true));
    let running = device.boot().slot;
    let step = contact(&mut device, &image, &mut Chance(3), &mut kept, &mut sent);
    assert_eq!((step, sent.len()), (Ok(Step::Installed), 0));
    assert_eq!(device.confirm(running), Ok(true));
    // The next version has one block that this one has not, and only that travels.
    let mut next = image.bytes.clone();
    next.truncate(next.len() - Trailer::LEN);
    next.extend(version(3).encode());
    next[BLOCK_LEN as usize] ^= 1;
    let next = Image::of(next);
    kept.clear();
    let step = contact(&mut device, &next, &mut Chance(4), &mut kept, &mut sent);
    assert_eq!(step, Ok(Step::Ready));
    let travelled: Vec<_> = sent.keys().filter(|address| !address.is_manifest()).map(|a| a.index()).collect();
    assert_eq!(travelled, [1, 3]);
}

#[test]
fn no_block_that_was_kept_travels_again_whenever_power_goes() {
    let image = Image::new(5, 3 * BLOCK_LEN as usize, version(2));
    let (made, _) = device::<8>();
    let mut cuts = 0;
    for seed in 0..150 {
        let flash = made.fork();
        let mut chance = Chance(seed);
        let (mut kept, mut sent) = (BTreeSet::new(), BTreeMap::new());
        for contacts in 0.. {
            assert!(contacts < 60, "seed {seed}: never done");
            if contacts < 10 {
                flash.cut_after(chance.below(300), chance.draw());
            }
            let step = open(&flash)
                .map_err(|_| FetchError::Device(Error::Flash))
                .and_then(|mut device| contact(&mut device, &image, &mut chance, &mut kept, &mut sent));
            let cut = flash.power_on();
            cuts += u32::from(cut);
            match step {
                Ok(Step::Ready) => break,
                Err(FetchError::Device(_)) if cut => {}
                other => panic!("seed {seed}: {other:?}"),
            }
        }
    }
    assert!(cuts > 300, "{cuts} cuts of power are no trial");
}

#[test]
fn a_peer_that_lies_is_left_and_what_is_here_stays() {
    let image = Image::new(6, 2 * BLOCK_LEN as usize, version(2));
    let other = Image::new(7, 2 * BLOCK_LEN as usize, version(2));
    let mut chance = Chance(9);
    let (_flash, mut device) = device::<8>();
    let peer =
        |result: Result<Step, FetchError>| assert!(matches!(result, Err(FetchError::Peer(_))), "{result:?}");

    // No hello.
    peer(fetch().handle_message(&mut device, head(&image)));
    // A head of somebody else, and two of one run.
    let forged = Signed::sign(event_schema::Domain::Manifest, image.head.bytes.clone(), &command_key());
    let mut f = fetch();
    f.handle_message(&mut device, hello()).expect("hello");
    peer(f.handle_message(&mut device, Head { signed: forged }.into()));
    let mut f = fetch();
    f.handle_message(&mut device, hello()).expect("hello");
    f.handle_message(&mut device, head(&image)).expect("its head");
    peer(f.handle_message(&mut device, head(&other)));

    // A manifest that is another one's.
    let mut f = fetch();
    f.handle_message(&mut device, hello()).expect("hello");
    f.handle_message(&mut device, head(&image)).expect("its head");
    assert_eq!(asked(&mut f), [BlockAddress::manifest(0)]);
    let mut wrong = image.manifest.clone();
    wrong[70] ^= 1;
    peer(give(&mut f, &mut device, BlockAddress::manifest(0), &wrong, &mut chance));
    assert_eq!(device.progress(), None);

    // Blocks: the last one is asked for first, only what the peer has, and nothing else is taken.
    let mut f = fetch();
    f.handle_message(&mut device, hello()).expect("hello");
    f.handle_message(&mut device, have(0, 1)).expect("what it has");
    f.handle_message(&mut device, head(&image)).expect("its head");
    assert_eq!(asked(&mut f), [BlockAddress::manifest(0)]);
    let step = give(&mut f, &mut device, BlockAddress::manifest(0), &image.manifest, &mut chance);
    assert_eq!((step, asked(&mut f)), (Ok(Step::More), vec![BlockAddress::content(0)]));
    let step = give(&mut f, &mut device, BlockAddress::content(1), image.block(1), &mut chance);
    assert_eq!((step, device.progress().map(|p| p.here)), (Ok(Step::More), Some(0)));
    let step = give(&mut f, &mut device, BlockAddress::content(0), image.block(0), &mut chance);
    assert_eq!((step, asked(&mut f)), (Ok(Step::Kept(0)), vec![]));
    f.handle_message(&mut device, have(1, 1)).expect("what it has now");
    assert_eq!(asked(&mut f), [BlockAddress::content(1)]);
    // It has lost it, and has it again.
    let gone = Unavailable { block: BlockAddress::content(1), reason: UnavailableReason::NotHere };
    f.handle_message(&mut device, gone.into()).expect("told in time");
    assert_eq!(asked(&mut f), []);
    f.handle_message(&mut device, have(0, u32::MAX)).expect("what it has now");
    assert_eq!(asked(&mut f), [BlockAddress::content(1)]);
    peer(give(&mut f, &mut device, BlockAddress::content(1), other.block(1), &mut chance));
    assert_eq!(device.progress().map(|p| p.here), Some(1));

    // Longer than it is, beyond all numbers, in crumbs.
    let long = |offset, len| {
        let mut f = fetch();
        f.handle_message(&mut device, hello()).expect("hello");
        f.handle_message(&mut device, have(0, 2)).expect("what it has");
        f.handle_message(&mut device, head(&image)).expect("its head");
        assert_eq!(asked(&mut f), [BlockAddress::content(1)], "resumed without the manifest");
        (f.handle_piece(&mut device, 1, offset, &vec![0; len]), f)
    };
    let mut long = long;
    peer(long(BLOCK_LEN - 10, 11).0);
    peer(long(u32::MAX, 11).0);
    peer(long(0, BLOCK_LEN as usize + 1).0);
    let (begun, mut f) = long(0, 1);
    assert_eq!(begun, Ok(Step::More));
    let crumbs: Vec<_> = (1..100).map(|nth| f.handle_piece(&mut device, 1, nth * 2, &[0])).collect();
    assert!(crumbs[..60].iter().all(Result::is_ok));
    peer(crumbs[70].clone());
    assert_eq!(device.progress().map(|p| p.here), Some(1));

    // An honest one ends it.
    let (mut kept, mut sent) = (BTreeSet::from([0]), BTreeMap::new());
    assert_eq!(contact(&mut device, &image, &mut chance, &mut kept, &mut sent), Ok(Step::Ready));
}

#[test]
fn what_must_not_be_installed_is_told_apart_from_peers_that_lie() {
    let refused = |image: &Image| {
        let (_flash, mut device) = device::<8>();
        let (mut kept, mut sent) = (BTreeSet::new(), BTreeMap::new());
        let step = contact(&mut device, image, &mut Chance(1), &mut kept, &mut sent);
        let blocks = sent.keys().filter(|address| !address.is_manifest()).count();
        (step.expect_err("not for here"), blocks)
    };
    let of = |board, version| Image::new(1, 3 * BLOCK_LEN as usize, Trailer { board, version });
    let board = Board::named("other");
    assert_eq!(refused(&of(board, 2)), (FetchError::Refused(BeginError::Board), 1));
    assert_eq!(refused(&of(crate::world::BOARD, 1)), (FetchError::Refused(BeginError::NotNewer), 1));
    let large = Image::new(1, 5 * BLOCK_LEN as usize, version(2));
    assert_eq!(refused(&large), (FetchError::Refused(BeginError::TooLarge), 0));
    // Manifests that are larger than devices take are not even asked for.
    let huge = Image::new(1, 250 * BLOCK_LEN as usize, version(2));
    let (_flash, mut device) = device::<8>();
    let mut f = fetch();
    f.handle_message(&mut device, hello()).expect("hello");
    let step = f.handle_message(&mut device, head(&huge));
    assert_eq!(step, Err(FetchError::NoImage(PayloadFault::Size)));
    assert_eq!(asked(&mut f), []);
    // The device goes on with what is for it.
    let image = Image::new(2, 1000, version(2));
    assert_eq!(device.begin(&image.payload()), Ok(Begun::Anew));
    assert_eq!(device.id(), event_schema::AgentId::of_key(&device_key().verifying_key().to_bytes()));
}
