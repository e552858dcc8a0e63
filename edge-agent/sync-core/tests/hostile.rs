//! What peers may say at their worst: nothing panics, nothing grows without bound, liars are found out.

use std::collections::BTreeSet;
use std::time::Duration;

use agent_proto::limits::BLOCK_LEN;
use agent_proto::peer::{
    BlockAddress, BlockRange, Cancel, Complete, Fetching, GetManifestHashes, GetManifestWeak, Have, Head,
    Hello, ManifestHashes, ManifestWeak, PeerMessage, Request, Unavailable, UnavailableReason, Want,
};
use ed25519_dalek::SigningKey;
use event_schema::{AgentId, RunId, Signed};
use proptest::prelude::*;
use sync_core::config::{BLOCKS_MAX, FetchConfig, OriginConfig, UploadConfig};
use sync_core::manifest::{
    BlockHash, Entry, Kind, Manifest, ManifestHead, Mtime, encode, manifest_block_hashes,
};
use sync_core::{Action, Arrival, BlockMap, Destination, Misbehaviour, Origin, Phase, RunInfo};
use timebase::Instant;

const RUN: RunId = RunId([1; 16]);
const BLOCKS: u64 = 5000;

fn source() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn manifest() -> (Signed, Vec<[u8; 32]>, Vec<u8>) {
    let size = BLOCKS * u64::from(BLOCK_LEN);
    let entry = Entry::new(b"big", 0o644, Mtime::default(), Kind::file(size));
    let blocks: Vec<_> = (0..BLOCKS).map(|i| BlockHash { strong: [i as u8; 32], weak: 0 }).collect();
    let encoded = encode([(entry, blocks)]).expect("a good manifest");
    let hashes = manifest_block_hashes(&encoded);
    let id = AgentId::of_key(&source().verifying_key().to_bytes());
    let head = ManifestHead::of(RUN, id, &Manifest::open(&encoded).expect("good"), &hashes);
    (head.sign(&source()), hashes, encoded)
}

fn destination() -> Destination {
    let info = RunInfo { run: RUN, source_key: source().verifying_key().to_bytes(), version: "test".into() };
    Destination::new(info, FetchConfig::default(), UploadConfig::default(), 1).at_site(peer(99), Some(7))
}

fn peer(n: u8) -> AgentId {
    AgentId([n; 16])
}

fn hello() -> PeerMessage {
    Hello { version: "test".into(), origin: false }.into()
}

fn actions(d: &mut Destination, now: Instant) -> Vec<Action> {
    std::iter::from_fn(|| d.poll_action(now)).collect()
}

fn at(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(ms)
}

#[test]
fn hashes_and_blocks_are_taken_only_when_genuine() {
    let (signed, hashes, encoded) = manifest();
    let mut d = destination();
    for n in 1..=3 {
        d.handle_connected(at(0), peer(n));
        d.handle_message(at(0), peer(n), hello());
        d.handle_message(at(0), peer(n), Head { signed: signed.clone() }.into());
        let all = BlockRange { first: BlockAddress::manifest(0), count: hashes.len() as u32 };
        d.handle_message(at(0), peer(n), Have { ranges: vec![all] }.into());
    }
    assert_eq!(d.phase(), Phase::FetchingManifest);
    let asked = |actions: &[Action]| {
        actions.iter().find_map(|a| match a {
            Action::Send { peer, message: PeerMessage::GetManifestHashes(g) } => Some((*peer, g.first)),
            _ => None,
        })
    };
    let (first, from) = asked(&actions(&mut d, at(0))).expect("somebody is asked");
    assert_eq!(from, 0);
    // One list of hashes is false, the next peer never answers, the third is honest.
    let mut wrong = hashes.clone();
    wrong[2][0] ^= 1;
    d.handle_message(at(1), first, ManifestHashes { first: 0, hashes: wrong }.into());
    let told = actions(&mut d, at(1));
    assert!(told.contains(&Action::Misbehaved { peer: first, what: Misbehaviour::BadHashes }));
    assert!(d.is_avoided(first));
    let (second, _) = asked(&told).expect("the next is asked");
    assert_eq!(d.poll_timeout(), Some(at(8001)));
    d.handle_timeout(at(8001));
    let (third, _) = asked(&actions(&mut d, at(8001))).expect("the last is asked");
    assert!(first != second && second != third && first != third);
    d.handle_message(at(8002), third, ManifestHashes { first: 0, hashes: hashes.clone() }.into());

    let chunks: Vec<_> = encoded.chunks(BLOCK_LEN as usize).collect();
    let requests = actions(&mut d, at(8002));
    assert!(!requests.iter().any(|a| matches!(a,
        Action::Send { peer, message: PeerMessage::Request(_) } if *peer == first)));
    assert_eq!(d.wants(BlockAddress::manifest(4)), Some(chunks[4].len() as u32));
    assert!(!d.handle_manifest_block(at(8003), second, 0, b"something else"));
    assert!(d.is_avoided(second));
    assert!(!d.handle_manifest_block(at(8003), first, 0, chunks[0]), "not from somebody shunned");
    for (i, chunk) in chunks.iter().enumerate() {
        assert!(d.handle_manifest_block(at(8004), third, i as u64, chunk));
        assert!(!d.handle_manifest_block(at(8004), third, i as u64, chunk), "once is enough");
    }
    assert!(actions(&mut d, at(8004)).contains(&Action::ManifestComplete));
    assert_eq!(d.phase(), Phase::Preparing);
    d.begin_content(at(8005), BlockMap::full(BLOCKS));
    assert!(actions(&mut d, at(8005)).contains(&Action::ContentComplete));
    assert_eq!(d.phase(), Phase::Settled);
}

/// A destination that holds manifests and was shown a head and its hashes by three peers, who say `version`.
fn seeking(version: &str) -> (Destination, Vec<[u8; 32]>, Vec<u8>) {
    let (signed, hashes, encoded) = manifest();
    let mut d = destination().with_manifests_held();
    for n in 1..=3 {
        d.handle_connected(at(0), peer(n));
        d.handle_message(at(0), peer(n), Hello { version: version.into(), origin: false }.into());
        d.handle_message(at(0), peer(n), Head { signed: signed.clone() }.into());
        let all = BlockRange { first: BlockAddress::manifest(0), count: hashes.len() as u32 };
        d.handle_message(at(0), peer(n), Have { ranges: vec![all] }.into());
    }
    let giver = actions(&mut d, at(0)).into_iter().find_map(|action| match action {
        Action::Send { peer, message: PeerMessage::GetManifestHashes(_) } => Some(peer),
        _ => None,
    });
    let given = ManifestHashes { first: 0, hashes: hashes.clone() };
    d.handle_message(at(1), giver.expect("asked"), given.into());
    (d, hashes, encoded)
}

/// Who is asked for weak hashes, and which blocks of the manifest are asked for.
fn asked(actions: &[Action]) -> (Option<AgentId>, BTreeSet<u64>) {
    let weak = actions.iter().find_map(|action| match action {
        Action::Send { peer, message: PeerMessage::GetManifestWeak(get) } => {
            assert_eq!(get.first, 0);
            Some(*peer)
        }
        _ => None,
    });
    let blocks = actions.iter().filter_map(|action| match action {
        Action::Send { message: PeerMessage::Request(request), .. } => Some(&request.ranges),
        _ => None,
    });
    let blocks = blocks.flatten().flat_map(|r| (0..u64::from(r.count)).map(|i| r.first.index() + i));
    (weak, blocks.collect())
}

#[test]
fn what_is_held_of_a_manifest_is_not_fetched_and_comes_before_the_rest() {
    let (mut d, hashes, encoded) = seeking("test near weak");
    let (giver, requested) = asked(&actions(&mut d, at(1)));
    let giver = giver.expect("somebody is asked");
    assert!(requested.is_empty(), "nothing is fetched yet");
    let chunks: Vec<_> = encoded.chunks(BLOCK_LEN as usize).collect();
    assert_eq!(d.wants(BlockAddress::manifest(0)), None);
    assert!(!d.handle_manifest_block(at(1), giver, 0, chunks[0]), "nobody asked for it");
    d.manifest_sought(at(1), [0]);
    assert_eq!(d.wants(BlockAddress::manifest(0)), None, "nobody was told to look");
    let weak: Vec<u32> = chunks.iter().map(|chunk| sync_core::weak::weak_hash(chunk)).collect();
    d.handle_message(at(2), giver, ManifestWeak { first: 0, weak: weak.clone() }.into());
    assert_eq!(actions(&mut d, at(2)), [Action::SeekManifest { strong: hashes.clone(), weak: weak.clone() }]);
    assert_eq!(d.phase(), Phase::FetchingManifest);
    assert!(d.poll_timeout().is_none_or(|at_| at_ > at(3)), "the driver takes its time");
    d.manifest_sought(at(3), [1, 3, 3, 900]);
    let (again, requested) = asked(&actions(&mut d, at(3)));
    assert!(again.is_none() && !requested.contains(&1) && !requested.contains(&3));
    assert!(requested.contains(&0), "{requested:?}");
    // Until all are here nobody is told weak hashes; then those that were found count like those that came.
    let ask = |d: &mut Destination, now| {
        d.handle_message(now, peer(3), GetManifestWeak { first: 1 }.into());
        actions(d, now).into_iter().find_map(|action| match action {
            Action::Send { message: PeerMessage::ManifestWeak(told), .. } => Some(told),
            _ => None,
        })
    };
    assert_eq!(ask(&mut d, at(4)), Some(ManifestWeak { first: 1, weak: vec![] }));
    for block in (0..chunks.len() as u64).filter(|block| ![1, 3].contains(block)) {
        assert!(d.handle_manifest_block(at(5), giver, block, chunks[block as usize]));
    }
    assert!(actions(&mut d, at(5)).contains(&Action::ManifestComplete));
    assert_eq!(ask(&mut d, at(6)), Some(ManifestWeak { first: 1, weak: weak[1..].to_vec() }));
}

#[test]
fn a_manifest_all_of_which_is_held_is_complete() {
    let (mut d, hashes, _) = seeking("test weak");
    let (giver, _) = asked(&actions(&mut d, at(1)));
    d.handle_message(
        at(2),
        giver.expect("asked"),
        ManifestWeak { first: 0, weak: vec![0; hashes.len()] }.into(),
    );
    assert!(matches!(actions(&mut d, at(2))[..], [Action::SeekManifest { .. }]));
    d.manifest_sought(at(3), 0..hashes.len() as u64);
    assert!(actions(&mut d, at(3)).contains(&Action::ManifestComplete));
    assert_eq!(d.phase(), Phase::Preparing);
}

#[test]
fn nobody_who_tells_weak_hashes_badly_or_never_holds_a_manifest_up() {
    // Peers of older releases are not asked.
    let (mut d, _, _) = seeking("test near");
    let (nobody, requested) = asked(&actions(&mut d, at(1)));
    assert!(nobody.is_none() && !requested.is_empty());
    // None, too many, too few, of another place: the next one is asked, then nobody.
    let (_, hashes, _) = manifest();
    let bad = |first, len| ManifestWeak { first, weak: vec![1; len] };
    for told in [bad(0, 0), bad(0, hashes.len() + 1), bad(0, 1), bad(1, hashes.len() - 1)] {
        let (mut d, _, _) = seeking("test weak");
        let (first, _) = asked(&actions(&mut d, at(1)));
        let first = first.expect("asked");
        d.handle_message(at(2), first, told.clone().into());
        let (second, requested) = asked(&actions(&mut d, at(2)));
        let second = second.expect("asked");
        assert!(first != second && requested.is_empty());
        d.handle_message(at(2), first, bad(0, hashes.len()).into());
        assert!(actions(&mut d, at(2)).is_empty(), "it is not asked any more");
        d.handle_message(at(3), second, told.into());
        let (third, requested) = asked(&actions(&mut d, at(3)));
        assert!(third.is_none() && !requested.is_empty());
    }
    // One never answers, the other leaves.
    let (mut d, _, _) = seeking("test weak");
    assert!(asked(&actions(&mut d, at(1))).0.is_some());
    let due = d.poll_timeout().expect("it is not waited for for ever");
    assert!(due <= at(4001));
    d.handle_timeout(due);
    let (second, requested) = asked(&actions(&mut d, due));
    assert!(requested.is_empty());
    d.handle_disconnected(due, second.expect("asked"));
    assert!(!asked(&actions(&mut d, due)).1.is_empty());
}

#[test]
fn heads_of_others_are_refused() {
    let (signed, hashes, encoded) = manifest();
    let id = AgentId::of_key(&source().verifying_key().to_bytes());
    let head = ManifestHead {
        version: 2,
        run: RUN,
        source: id,
        len: encoded.len() as u64,
        root: sync_core::merkle::tree_root(&hashes),
        entries: 1,
        bytes: 0,
        blocks: BLOCKS,
    };
    let huge = ManifestHead { blocks: BLOCKS_MAX + 1, ..head.clone() };
    let other_run = ManifestHead { run: RunId([2; 16]), ..head.clone() };
    let stranger = SigningKey::from_bytes(&[8; 32]);
    for bad in [huge.sign(&source()), other_run.sign(&source()), head.sign(&stranger)] {
        let mut d = destination();
        d.handle_connected(at(0), peer(1));
        d.handle_message(at(0), peer(1), Head { signed: bad.clone() }.into());
        assert!(!d.is_avoided(peer(1)), "nothing counts before a greeting");
        d.handle_message(at(0), peer(1), hello());
        d.handle_message(at(0), peer(1), Head { signed: bad }.into());
        assert!(d.is_avoided(peer(1)));
        assert_eq!(d.phase(), Phase::FindingPeers);
    }
    // What the source did say, of a manifest that we cannot read.
    let other = ManifestHead { version: 3, ..head.clone() }.sign(&source());
    let mut d = destination();
    d.handle_connected(at(0), peer(1));
    d.handle_message(at(0), peer(1), hello());
    d.handle_message(at(0), peer(1), Head { signed: other }.into());
    let what = Misbehaviour::OtherVersion(3);
    assert!(actions(&mut d, at(0)).contains(&Action::Misbehaved { peer: peer(1), what }));
    assert!(!d.is_avoided(peer(1)));
    let mut d = destination();
    assert!(!d.restore_manifest(at(0), signed.clone(), hashes[1..].to_vec()));
    let mut others = hashes.clone();
    others[0][0] ^= 1;
    assert!(!d.restore_manifest(at(0), signed.clone(), others));
    assert!(d.restore_manifest(at(0), signed, hashes));
    assert_eq!(d.phase(), Phase::Preparing);
    let second = ManifestHead { bytes: 1, ..head };
    d.handle_connected(at(0), peer(1));
    d.handle_message(at(0), peer(1), hello());
    d.handle_message(at(0), peer(1), Head { signed: second.sign(&source()) }.into());
    let what = Misbehaviour::OtherHead;
    assert!(actions(&mut d, at(0)).contains(&Action::Misbehaved { peer: peer(1), what }));
}

#[test]
fn a_request_for_everything_is_bounded() {
    let (signed, hashes, _) = manifest();
    let uploads = UploadConfig { sending_max: 10, sending_total_max: 15, queue_max: 50 };
    let mut origin = Origin::new("test".into(), signed, hashes, BLOCKS, OriginConfig::default(), uploads);
    let all = BlockRange { first: BlockAddress::content(0), count: u32::MAX };
    for n in 1..=2 {
        origin.handle_connected(at(0), peer(n));
        origin.handle_message(at(0), peer(n), hello());
        for _ in 0..3 {
            origin.handle_message(at(0), peer(n), Request { ranges: vec![all; 8192] }.into());
            origin.handle_message(at(0), peer(n), Want { blocks: u32::MAX }.into());
        }
    }
    let uploads = std::iter::from_fn(|| origin.poll_action(at(0)))
        .filter(|a| matches!(a, Action::Upload { .. }))
        .count();
    assert_eq!(uploads, 15);
}

#[test]
fn asking_for_what_is_not_here_fills_no_memory() {
    let (signed, hashes, _) = manifest();
    let mut d = destination();
    assert!(d.restore_manifest(at(0), signed, hashes));
    d.handle_connected(at(0), peer(1));
    d.handle_message(at(0), peer(1), hello());
    let all = BlockRange { first: BlockAddress::content(0), count: u32::MAX };
    for _ in 0..256 {
        d.handle_message(at(0), peer(1), Request { ranges: vec![all; 2] }.into());
    }
    assert!(actions(&mut d, at(0)).len() < 70_000);
}

/// A run of 128 GiB in which a peer says in one message, thousands of times over, that it has everything.
#[test]
fn having_everything_many_times_costs_no_more_than_once() {
    let blocks = 1 << 22;
    let all = |first, count| BlockRange { first: BlockAddress::content(first), count };
    let (signed, hashes, _) = manifest();
    let id = AgentId::of_key(&source().verifying_key().to_bytes());
    let head = ManifestHead {
        version: 2,
        run: RUN,
        source: id,
        len: blocks * 36,
        root: [0; 32],
        entries: 1,
        bytes: blocks * u64::from(BLOCK_LEN),
        blocks,
    };
    let begun = std::time::Instant::now();
    let (uploads, config) = (UploadConfig::default(), OriginConfig::default());
    let mut origin = Origin::new("test".into(), signed, hashes, blocks, config, uploads);
    let mut d = destination();
    origin.handle_connected(at(0), peer(1));
    d.handle_connected(at(0), peer(1));
    let messages = [
        hello(),
        Head { signed: head.sign(&source()) }.into(),
        Have { ranges: (0..8192).map(|i| all(i, u32::MAX)).collect() }.into(),
        Have { ranges: (0..8192).map(|i| all(8192 - i, u32::MAX - 1)).collect() }.into(),
        Have { ranges: vec![all(0, u32::MAX); 8192] }.into(),
    ];
    for message in messages {
        origin.handle_message(at(0), peer(1), message.clone());
        d.handle_message(at(0), peer(1), message);
    }
    assert_eq!(origin.complete_peers(), 1);
    assert!(d.head().is_some() && !d.is_avoided(peer(1)));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

fn any_message() -> impl Strategy<Value = PeerMessage> {
    let address = prop_oneof![
        (0..BLOCKS + 10).prop_map(BlockAddress::content),
        (0..10u64).prop_map(BlockAddress::manifest),
        any::<u64>().prop_map(BlockAddress),
    ];
    let range = (address.clone(), prop_oneof![1..100u32, any::<u32>()])
        .prop_map(|(first, count)| BlockRange { first, count });
    let ranges = prop::collection::vec(range, 0..5);
    let reason = prop_oneof![
        Just(UnavailableReason::NotHere),
        Just(UnavailableReason::Changed),
        Just(UnavailableReason::ReadError)
    ];
    let fetching = ranges.clone().prop_map(|ranges| Fetching { ranges }.into());
    let (signed, hashes, _) = manifest();
    prop_oneof![
        any::<bool>().prop_map(|near| {
            let version = if near { "1 near weak site=0000000000000007" } else { "" };
            Hello { version: version.into(), origin: !near }.into()
        }),
        Just(Head { signed }.into()),
        (0..10u32).prop_map(|first| GetManifestHashes { first }.into()),
        any::<u32>().prop_map(|first| GetManifestHashes { first }.into()),
        any::<u32>().prop_map(|first| GetManifestWeak { first }.into()),
        (0..2u32, 0..7usize).prop_map(|(first, n)| ManifestWeak { first, weak: vec![7; n] }.into()),
        Just(ManifestHashes { first: 0, hashes: hashes.clone() }.into()),
        (0..3u32, 0..6usize).prop_map(move |(first, n)| {
            ManifestHashes { first, hashes: hashes.iter().take(n).copied().collect() }.into()
        }),
        ranges.clone().prop_map(|ranges| Have { ranges }.into()),
        ranges.clone().prop_map(|ranges| Request { ranges }.into()),
        ranges.prop_map(|ranges| Cancel { ranges }.into()),
        any::<u32>().prop_map(|blocks| Want { blocks }.into()),
        (address, reason).prop_map(|(block, reason)| Unavailable { block, reason }.into()),
        Just(Complete {}.into()),
        fetching,
    ]
}

#[derive(Clone, Debug)]
enum Happening {
    Message(u8, PeerMessage),
    Connected(u8),
    Disconnected(u8),
    Block(u8, u64, u8),
    ManifestBlock(u8, u64),
    Later(u64),
    Pause(bool),
    Sent(u8, u64),
    Failed(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => (0..4u8, any_message()).prop_map(|(p, m)| Happening::Message(p, m)),
        1 => (0..4u8).prop_map(Happening::Connected),
        1 => (0..4u8).prop_map(Happening::Disconnected),
        4 => (0..4u8, 0..BLOCKS + 5, 0..4u8).prop_map(|(p, b, how)| Happening::Block(p, b, how)),
        2 => (0..4u8, 0..6u64).prop_map(|(p, b)| Happening::ManifestBlock(p, b)),
        3 => (0..10_000u64).prop_map(Happening::Later),
        1 => any::<bool>().prop_map(Happening::Pause),
        2 => (0..4u8, 0..BLOCKS + 5).prop_map(|(p, b)| Happening::Sent(p, b)),
        1 => (0..BLOCKS + 5).prop_map(Happening::Failed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_destination_survives_anything(happenings in prop::collection::vec(happening(), 0..150)) {
        let (_, _, encoded) = manifest();
        let chunks: Vec<_> = encoded.chunks(BLOCK_LEN as usize).collect();
        let (mut d, mut now) = (destination().with_manifests_held(), at(0));
        let source = AgentId::of_key(&source().verifying_key().to_bytes());
        let peer = |n: u8| if n == 0 { source } else { peer(n) };
        for n in 0..3 {
            d.handle_connected(now, peer(n));
            d.handle_message(now, peer(n), hello());
        }
        for happening in happenings {
            match happening {
                Happening::Message(p, message) => d.handle_message(now, peer(p), message),
                Happening::Connected(p) => d.handle_connected(now, peer(p)),
                Happening::Disconnected(p) => d.handle_disconnected(now, peer(p)),
                Happening::Block(p, block, how) => {
                    if d.handle_arrived(now, peer(p), block) == Arrival::Fresh {
                        match how {
                            0 => d.handle_corrupt(peer(p), block),
                            1 => d.handle_not_kept(block),
                            _ => d.handle_verified(now, block),
                        }
                    }
                }
                Happening::ManifestBlock(p, block) => {
                    let bytes = chunks.get(block as usize).copied().unwrap_or(b"none");
                    d.handle_manifest_block(now, peer(p), block, bytes);
                }
                Happening::Later(ms) => {
                    now += Duration::from_millis(ms);
                    d.handle_timeout(now);
                }
                Happening::Pause(true) => d.pause(),
                Happening::Pause(false) => d.resume(now),
                Happening::Sent(p, block) => d.handle_sent(peer(p), BlockAddress::content(block)),
                Happening::Failed(block) => d.handle_read_failed(peer(1), BlockAddress::content(block)),
            }
            let actions = actions(&mut d, now);
            prop_assert!(actions.len() < 20_000);
            for action in actions {
                match action {
                    Action::ManifestComplete => d.begin_content(now, BlockMap::new(BLOCKS)),
                    Action::SeekManifest { .. } => d.manifest_sought(now, [1]),
                    Action::Send { message, .. } => {
                        prop_assert_eq!(PeerMessage::decode(&message.encode()), Ok(message));
                    }
                    _ => {}
                }
            }
            // A timeout that is due and never goes away would be a busy loop.
            if let Some(due) = d.poll_timeout() {
                now = now.max(due);
                d.handle_timeout(now);
                while let Some(action) = d.poll_action(now) {
                    if let Action::SeekManifest { .. } = action {
                        d.manifest_sought(now, []);
                    }
                }
                prop_assert!(d.poll_timeout().is_none_or(|next| next > now), "{:?} {:?}", now, d.poll_timeout());
            }
        }
    }

    #[test]
    fn an_origin_survives_anything(happenings in prop::collection::vec(happening(), 0..150)) {
        let (signed, hashes, _) = manifest();
        let config = OriginConfig { settle: Duration::from_millis(500), ..OriginConfig::default() };
        let weak = vec![3; hashes.len()];
        let mut o = Origin::new("test".into(), signed, hashes, BLOCKS, config, UploadConfig::default()).with_weak(weak);
        let mut now = at(0);
        for n in 0..3 {
            o.handle_connected(now, peer(n));
            o.handle_message(now, peer(n), hello());
        }
        for happening in happenings {
            match happening {
                Happening::Message(p, message) => o.handle_message(now, peer(p), message),
                Happening::Connected(p) => o.handle_connected(now, peer(p)),
                Happening::Disconnected(p) => o.handle_disconnected(peer(p)),
                Happening::Block(p, block, _) | Happening::Sent(p, block) => {
                    o.handle_sent(now, peer(p), BlockAddress::content(block));
                }
                Happening::ManifestBlock(p, block) => o.handle_sent(now, peer(p), BlockAddress::manifest(block)),
                Happening::Later(ms) => {
                    now += Duration::from_millis(ms);
                    o.handle_timeout(now);
                }
                Happening::Pause(_) => {}
                Happening::Failed(block) => o.handle_read_failed(block, UnavailableReason::Changed),
            }
            let actions = std::iter::from_fn(|| o.poll_action(now)).count();
            prop_assert!(actions < 40_000);
            if let Some(due) = o.poll_timeout() {
                now = now.max(due);
                o.handle_timeout(now);
                while o.poll_action(now).is_some() {}
                prop_assert!(o.poll_timeout().is_none_or(|next| next > now));
            }
        }
    }
}
