//! The tree on disk: what it proves, what a crash leaves, and what it refuses to sign.

mod support;

use std::fs;

use event_audit::ledger::{Ledger, LedgerError};
use event_audit::note::NoteSigner;
use event_audit::proof::verify_consistency;
use event_audit::tile::Tile;
use event_audit::witness::{Held, Receipt, Refused, Taken};
use event_audit::{Hash, Head, SignedCheckpoint};
use support::{Fleet, below, entries, random};

fn filled(fleet: &Fleet, dir: &std::path::Path, entries: &[Vec<u8>]) -> Ledger {
    let mut ledger = fleet.ledger(dir);
    feed(&mut ledger, entries);
    ledger
}

fn feed(ledger: &mut Ledger, entries: &[Vec<u8>]) {
    for entry in &entries[ledger.size() as usize..] {
        ledger.append(entry).expect("an entry fits");
    }
}

fn head_of(entries: &[Vec<u8>]) -> Head {
    let leaves: Vec<Hash> = entries.iter().map(|entry| Hash::leaf(entry)).collect();
    Head { size: leaves.len() as u64, root: Hash::over(&leaves) }
}

#[test]
fn every_entry_and_every_older_head_is_proved() {
    let (fleet, entries) = (Fleet::new(1), entries(70_000, 1));
    let folder = tempfile::tempdir().expect("a folder");
    let mut ledger = filled(&fleet, folder.path(), &entries);
    let checkpoint = ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    assert_eq!(checkpoint.head(), &head_of(&entries));
    ledger.scrub().expect("nothing is damaged");
    let (origin, keys) = (fleet.keys.origin(), fleet.keys.log_keys());
    let leaves: Vec<Hash> = entries.iter().map(|entry| Hash::leaf(entry)).collect();
    let mut random = random(2);
    let some: Vec<u64> = (0..60).map(|_| below(&mut random, 70_000)).collect();
    for index in some.iter().copied().chain([0, 255, 256, 65_535, 65_536, 69_887, 69_888, 69_999]) {
        let proof = ledger.prove_entry(index, &checkpoint).expect("it is there");
        let text = proof.to_text();
        let read = event_audit::message::EntryProof::parse(text.as_bytes()).expect("our own text");
        assert_eq!(read, proof);
        assert_eq!(read.verify(&entries[index as usize], origin, keys).expect("it holds"), checkpoint);
        assert!(read.verify(&entries[(index as usize + 1) % 70_000], origin, keys).is_err());
    }
    for size in some.into_iter().chain([0, 1, 256, 65_536, 69_999, 70_000]) {
        let old = ledger.head_at(size).expect("a prefix");
        assert_eq!(old, Head { size, root: Hash::over(&leaves[..size as usize]) });
        let advance = ledger.advance(size, &checkpoint).expect("a prefix");
        let read = event_audit::message::Advance::parse(advance.to_text().as_bytes()).expect("our own text");
        assert_eq!(read, advance);
        assert_eq!(verify_consistency(&old, checkpoint.head(), &read.proof), Ok(()));
    }
    assert!(matches!(ledger.prove_entry(70_000, &checkpoint), Err(LedgerError::Range { .. })));
    assert!(matches!(ledger.head_at(70_001), Err(LedgerError::Range { .. })));
}

#[test]
fn a_ledger_goes_on_where_its_checkpoint_is() {
    let (fleet, entries) = (Fleet::new(1), entries(1_700, 3));
    let folder = tempfile::tempdir().expect("a folder");
    let mut at = 0;
    // Sizes around every kind of edge; after each the process is gone without more than its checkpoint.
    for size in [0, 1, 255, 256, 257, 511, 512, 513, 700, 1_024, 1_700] {
        let mut ledger = fleet.ledger(folder.path());
        assert_eq!(ledger.size(), at, "before {size}");
        feed(&mut ledger, &entries[..size]);
        let checkpoint = ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
        assert_eq!(checkpoint.head(), &head_of(&entries[..size]));
        assert_eq!(ledger.checkpoint(&fleet.signer()).expect("the same"), checkpoint);
        // More is appended and forgotten.
        feed(&mut ledger, &entries);
        at = size as u64;
    }
    let ledger = fleet.ledger(folder.path());
    assert_eq!(ledger.head(), head_of(&entries));
    // What a server of static files needs, and no unfinished tiles of older checkpoints.
    let mut files = Vec::new();
    list(folder.path(), folder.path(), &mut files);
    files.sort();
    let expected = [
        "checkpoint",
        "lock",
        "tile/0/000",
        "tile/0/001",
        "tile/0/002",
        "tile/0/003",
        "tile/0/004",
        "tile/0/005",
        "tile/0/006.p/164",
        "tile/1/000.p/6",
    ];
    assert_eq!(files, expected);
}

fn list(root: &std::path::Path, folder: &std::path::Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            list(root, &path, files);
        } else {
            files.push(path.strip_prefix(root).expect("below").to_str().expect("text").to_owned());
        }
    }
}

#[test]
fn torn_unfinished_tiles_are_made_again_from_the_log() {
    let (fleet, entries) = (Fleet::new(1), entries(600, 4));
    for (spoil, bytes) in [(true, vec![]), (true, vec![0; 88 * 32]), (true, vec![1; 7]), (false, vec![])] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ledger = filled(&fleet, folder.path(), &entries[..600]);
        let checkpoint = ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
        drop(ledger);
        let tile = folder.path().join("tile/0/002.p/88");
        if spoil {
            fs::write(&tile, bytes).expect("written")
        } else {
            fs::remove_file(&tile).expect("removed")
        }
        let mut ledger = fleet.ledger(folder.path());
        assert_eq!((ledger.size(), ledger.newest()), (0, Some(&checkpoint)));
        // Nothing is signed before the log has reached what was signed already.
        feed(&mut ledger, &entries[..599]);
        let refused = ledger.checkpoint(&fleet.signer()).expect_err("it is behind");
        assert!(matches!(refused, LedgerError::CutOff { size: 599, .. }), "{refused}");
        feed(&mut ledger, &entries);
        assert_eq!(ledger.checkpoint(&fleet.signer()).expect("the same"), checkpoint);
    }
}

#[test]
fn a_damaged_tile_is_named_and_made_again() {
    let (fleet, entries) = (Fleet::new(1), entries(1_000, 5));
    let folder = tempfile::tempdir().expect("a folder");
    let mut ledger = filled(&fleet, folder.path(), &entries);
    let checkpoint = ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    let path = folder.path().join(Tile::full(0, 1).path());
    let good = fs::read(&path).expect("a tile");
    let mut flipped = good.clone();
    flipped[4_000] ^= 1;
    for bytes in [flipped, good[..8_000].to_vec(), vec![], [&good[..], &[0]].concat()] {
        fs::write(&path, bytes).expect("written");
        for damage in [
            ledger.scrub().expect_err("damaged"),
            ledger.prove_entry(300, &checkpoint).expect_err("damaged"),
            // Not the damaged tile's entry, but its hash is part of the proof.
            ledger.advance(300, &checkpoint).expect_err("damaged"),
        ] {
            let LedgerError::Tile { path, first: 257, last: 512 } = &damage else { panic!("{damage}") };
            assert_eq!(path, "tile/0/001");
        }
    }
    ledger.start_over();
    feed(&mut ledger, &entries);
    ledger.scrub().expect("it was made again");
    assert_eq!(fs::read(&path).expect("a tile"), good);
    ledger.prove_entry(300, &checkpoint).expect("proved again");
}

/// Whatever becomes of tiles, the same history is signed, and no proof is wrong.
#[test]
fn spoiled_folders_end_well() {
    let (fleet, entries) = (Fleet::new(1), entries(900, 9));
    let expected = head_of(&entries);
    for seed in 0..40 {
        let mut random = random(seed);
        let folder = tempfile::tempdir().expect("a folder");
        let mut ledger = fleet.ledger(folder.path());
        let sealed = below(&mut random, 900) as usize;
        feed(&mut ledger, &entries[..sealed]);
        ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
        // Appended, and not sealed when the power went.
        feed(&mut ledger, &entries[..sealed + below(&mut random, 900 - sealed as u64) as usize]);
        drop(ledger);
        let mut files = Vec::new();
        list(folder.path(), folder.path(), &mut files);
        files.retain(|file| file.starts_with("tile/"));
        for _ in 0..=below(&mut random, 2) {
            let Some(file) = files.get(below(&mut random, files.len().max(1) as u64) as usize) else {
                continue;
            };
            let path = folder.path().join(file);
            let Ok(mut bytes) = fs::read(&path) else { continue };
            match below(&mut random, 4) {
                0 => fs::remove_file(&path).expect("removed"),
                1 => fs::write(&path, &bytes[..below(&mut random, bytes.len() as u64) as usize])
                    .expect("written"),
                2 => fs::write(&path, vec![0; bytes.len()]).expect("written"),
                _ => {
                    let at = below(&mut random, bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << below(&mut random, 8);
                    fs::write(&path, bytes).expect("written");
                }
            }
        }
        let mut ledger = fleet.ledger(folder.path());
        feed(&mut ledger, &entries);
        let newest = ledger.checkpoint(&fleet.signer()).expect("the log is whole");
        assert_eq!(newest.head(), &expected, "seed {seed}");
        let check = |ledger: &Ledger| -> Result<(), LedgerError> {
            for index in (0..900).step_by(37) {
                let proof = ledger.prove_entry(index, &newest)?;
                proof
                    .verify(&entries[index as usize], fleet.keys.origin(), fleet.keys.log_keys())
                    .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            }
            ledger.scrub()
        };
        match check(&ledger) {
            Ok(()) => {}
            Err(LedgerError::Tile { .. }) => {
                ledger.start_over();
                feed(&mut ledger, &entries);
                check(&ledger).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            }
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
}

#[test]
fn a_rewritten_log_is_not_signed() {
    let (fleet, mut entries) = (Fleet::new(1), entries(700, 6));
    let folder = tempfile::tempdir().expect("a folder");
    let mut ledger = filled(&fleet, folder.path(), &entries[..500]);
    let signed = *ledger.checkpoint(&fleet.signer()).expect("a checkpoint").head();
    entries[17][0] ^= 1;
    ledger.start_over();
    for entry in &entries[..499] {
        ledger.append(entry).expect("not known yet");
    }
    let error = ledger.append(&entries[499]).expect_err("another history");
    let found = head_of(&entries[..500]);
    assert!(
        matches!(error, LedgerError::Rewritten { signed: s, found: f } if s == signed && f == found),
        "{error}"
    );
    assert!(
        error.to_string().contains(&signed.root.to_string())
            && error.to_string().contains(&found.root.to_string())
    );
    assert!(matches!(ledger.append(b"more"), Err(LedgerError::Stopped)));
    assert!(matches!(ledger.checkpoint(&fleet.signer()), Err(LedgerError::Stopped)));
}

#[test]
fn only_the_logs_own_key_and_one_process() {
    let fleet = Fleet::new(1);
    let folder = tempfile::tempdir().expect("a folder");
    let mut ledger = filled(&fleet, folder.path(), &entries(3, 7));
    let open = || Ledger::open(folder.path(), fleet.keys.origin(), fleet.keys.log_keys());
    assert!(matches!(open(), Err(LedgerError::Locked { .. })));
    let other = NoteSigner::new("flotilla/other", fleet.log.clone()).expect("a name");
    assert!(matches!(ledger.checkpoint(&other), Err(LedgerError::OtherSigner { .. })));
    ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    drop(ledger);
    // A stored promise that cannot be read is not passed over.
    for bytes in [&b""[..], b"nonsense\n", b"\xff"] {
        fs::write(folder.path().join("checkpoint"), bytes).expect("written");
        assert!(matches!(open(), Err(LedgerError::Promise { .. })));
    }
    let foreign = SignedCheckpoint::sign(Head::of_nothing(), &Fleet::new(2).signer()).expect("signed");
    fs::write(folder.path().join("checkpoint"), foreign.note()).expect("written");
    assert!(matches!(open(), Err(LedgerError::Promise { .. })));
}

#[test]
fn a_witness_takes_only_what_continues_what_it_holds() {
    let (fleet, mut entries) = (Fleet::new(1), entries(900, 8));
    let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
    let mut ledger = filled(&fleet, folders[0].path(), &entries[..300]);
    let first = ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    feed(&mut ledger, &entries);
    let second = ledger.checkpoint(&fleet.signer()).expect("a checkpoint");

    let mut held = Held::default();
    assert_eq!(held.consider(first.clone(), &[]), Ok(Taken::First));
    assert_eq!(held.consider(first.clone(), &[]), Ok(Taken::Same));
    let unproved = held.consider(second.clone(), &[]).expect_err("no proof");
    assert!(matches!(unproved, Refused::Unproved { .. }));
    let proof = ledger.advance(300, &second).expect("a prefix").proof;
    assert_eq!(held.consider(second.clone(), &proof), Ok(Taken::Newer));
    let older = held.consider(first.clone(), &[]).expect_err("backwards");
    assert_eq!(older, Refused::Older { held: *second.head(), shown: *first.head() });

    // The service rewrites one entry that the witness has seen sealed: no proof can join the two.
    entries[5].push(0);
    let mut forged = filled(&fleet, folders[1].path(), &entries);
    let same_size = forged.checkpoint(&fleet.signer()).expect("a checkpoint");
    let forked = held.consider(same_size.clone(), &proof).expect_err("forked");
    assert_eq!(forked, Refused::Forked { held: *second.head(), shown: *same_size.head() });
    for head in [second.head(), same_size.head()] {
        assert!(forked.to_string().contains(&head.root.to_string()), "{forked}");
    }
    forged.append(b"more").expect("an entry");
    let longer = forged.checkpoint(&fleet.signer()).expect("a checkpoint");
    let proof = forged.advance(900, &longer).expect("a prefix").proof;
    assert!(matches!(held.consider(longer, &proof), Err(Refused::Unproved { .. })));
    let foreign = SignedCheckpoint::sign(Head::of_nothing(), &Fleet::new(2).signer()).expect("signed");
    assert_eq!(held.consider(foreign, &[]), Err(Refused::OtherOrigin));
    assert_eq!(held.newest(), Some(&second));
}

#[test]
fn a_message_from_outside_is_taken_refused_or_no_message() {
    let (fleet, entries) = (Fleet::new(1), entries(600, 9));
    let folder = tempfile::tempdir().expect("a folder");
    let mut ledger = filled(&fleet, folder.path(), &entries[..100]);
    let first = ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    feed(&mut ledger, &entries);
    let second = ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    let (origin, keys) = (fleet.keys.origin(), fleet.keys.log_keys());
    let (start, on) = (ledger.advance(0, &first).expect("made"), ledger.advance(100, &second).expect("made"));
    let mut held = Held::default();
    let mut receive = |text: &str| held.receive(text.as_bytes(), origin, keys);
    assert_eq!(receive(&start.to_text()), Receipt::Taken(Taken::First));
    // Every cut and every flipped bit leaves what is held as it was, and never convicts anybody without his signature.
    let text = on.to_text();
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        for bad in [&text.as_bytes()[..at], &bytes] {
            let mut held = held.clone();
            match held.receive(bad, origin, keys) {
                // What the sender takes the size held for is said in the first line; the proof decides.
                Receipt::Taken(taken) => assert!(bad.starts_with(b"old 1") && at < 8, "{taken:?} at {at}"),
                Receipt::Conflict { shown, .. } => assert_eq!(*shown, second, "at {at}"),
                Receipt::Malformed(_) | Receipt::Unsigned(_) => assert_eq!(held.newest(), Some(&first)),
            }
        }
    }
    assert_eq!(held.receive(text.as_bytes(), origin, keys), Receipt::Taken(Taken::Newer));
    let back = held.receive(start.to_text().as_bytes(), origin, keys);
    let why = Refused::Older { held: *second.head(), shown: *first.head() };
    assert_eq!(back, Receipt::Conflict { shown: Box::new(first), why });
    let stranger = Fleet::new(2);
    let unsigned = held.receive(text.as_bytes(), origin, stranger.keys.log_keys());
    assert!(matches!(unsigned, Receipt::Unsigned(_)), "{unsigned:?}");
}

#[test]
fn a_ledger_is_read_beside_the_process_that_writes_it() {
    let (fleet, entries) = (Fleet::new(1), entries(3_000, 10));
    let folder = tempfile::tempdir().expect("a folder");
    let beside = || Ledger::open_beside(folder.path(), fleet.keys.origin(), fleet.keys.log_keys());
    let mut ledger = filled(&fleet, folder.path(), &entries[..700]);
    assert!(beside().expect("readable").is_none(), "nothing is signed yet");
    let first = ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    let mut reader = beside().expect("readable").expect("signed");
    // The writer goes on; what was opened stays what it was.
    feed(&mut ledger, &entries);
    ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    assert_eq!((reader.newest(), reader.head()), (Some(&first), head_of(&entries[..700])));
    assert_eq!(reader.head_at(300).expect("a prefix"), head_of(&entries[..300]));
    assert!(matches!(reader.append(b"x"), Err(LedgerError::ReadOnly)));
    assert!(matches!(reader.checkpoint(&fleet.signer()), Err(LedgerError::ReadOnly)));
    assert_eq!(beside().expect("readable").expect("signed").head(), head_of(&entries));
    fs::remove_dir_all(folder.path().join("tile/1")).expect("removed");
    assert!(matches!(beside(), Err(LedgerError::Tile { .. })));
}

/// An archive's copy of the tree: brought up to date step by step, whatever a crash left of a step.
#[test]
fn a_tree_is_copied_and_proves_the_same() {
    let (fleet, entries) = (Fleet::new(1), entries(70_000, 21));
    let (folder, copy) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (origin, keys) = (fleet.keys.origin(), fleet.keys.log_keys());
    let mut ledger = fleet.ledger(folder.path());
    assert!(ledger.copy_to(copy.path(), keys).expect("nothing to copy").is_none());
    let mut random = random(22);
    for size in [1, 255, 256, 300, 511, 65_536, 65_600, 70_000] {
        feed(&mut ledger, &entries[..size]);
        let checkpoint = ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
        // What a crash may leave of the copy: some of the new files, of any content.
        let left = copy.path().join(Tile::full(0, (size as u64 - 1) / 256).path());
        fs::create_dir_all(left.parent().expect("a folder")).expect("made");
        if (size as u64).is_multiple_of(256) {
            fs::write(&left, b"torn").expect("written");
        }
        assert_eq!(ledger.copy_to(copy.path(), keys).expect("copied").as_ref(), Some(&checkpoint));
        let copied = Ledger::open_beside(copy.path(), origin, keys).expect("opens").expect("signed");
        copied.scrub().expect("whole");
        assert_eq!((copied.head(), copied.newest()), (ledger.head(), Some(&checkpoint)));
        let mut leaves = event_audit::ledger::Leaves::default();
        for index in (0..40).map(|_| below(&mut random, size as u64)).chain([0, size as u64 - 1]) {
            let leaf = Hash::leaf(&entries[index as usize]);
            assert_eq!(leaves.at(&copied, index).expect("a leaf"), leaf);
            copied.prove_entry(index, &checkpoint).expect("proved");
        }
        assert!(matches!(leaves.at(&copied, size as u64), Err(LedgerError::Range { .. })));
    }
    let mut files = Vec::new();
    list(copy.path(), copy.path(), &mut files);
    assert_eq!(files.iter().filter(|file| file.contains(".p/")).count(), 3, "{files:?}");
    // A damaged tile is not copied, and one that is damaged in the copy is not believed.
    let damaged = copy.path().join("tile/0/007");
    let mut bytes = fs::read(&damaged).expect("a tile");
    bytes[77] ^= 1;
    fs::write(&damaged, bytes).expect("written");
    let copied = Ledger::open_beside(copy.path(), origin, keys).expect("opens").expect("signed");
    let mut leaves = event_audit::ledger::Leaves::default();
    assert!(leaves.at(&copied, 2_100).is_ok_and(|leaf| leaf == Hash::leaf(&entries[2_100])));
    let error = leaves.at(&copied, 7 * 256 + 50).expect_err("damaged");
    assert!(matches!(&error, LedgerError::Tile { path, .. } if path == "tile/0/007"), "{error}");
    let other = tempfile::tempdir().expect("a folder");
    let own = folder.path().join("tile/0/009");
    fs::write(&own, vec![0; 8_192]).expect("written");
    assert!(matches!(ledger.copy_to(other.path(), keys), Err(LedgerError::Tile { .. })));
    assert!(!other.path().join("checkpoint").exists());

    // A history that is another one, or shorter than the copy's.
    let forked = tempfile::tempdir().expect("a folder");
    let mut ledger = filled(&fleet, forked.path(), &entries[..600]);
    ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    assert!(matches!(ledger.copy_to(copy.path(), keys), Err(LedgerError::CutOff { size: 600, .. })));
    let small = tempfile::tempdir().expect("a folder");
    ledger.copy_to(small.path(), keys).expect("copied");
    let mut others = entries[..900].to_vec();
    others[17].push(1);
    let rewritten = tempfile::tempdir().expect("a folder");
    let mut ledger = filled(&fleet, rewritten.path(), &others);
    ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    assert!(matches!(ledger.copy_to(small.path(), keys), Err(LedgerError::Rewritten { .. })));
}

/// A tree goes on behind entries that are in an archive, from their edge alone.
#[test]
fn a_tree_goes_on_from_an_edge() {
    use event_audit::ledger::Edge;
    let (fleet, entries) = (Fleet::new(1), entries(66_500, 23));
    let folder = tempfile::tempdir().expect("a folder");
    let mut ledger = filled(&fleet, folder.path(), &entries[..66_000]);
    let checkpoint = ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    for size in [0, 1, 255, 256, 300, 40_000, 65_536, 65_999, 66_000] {
        let edge = ledger.edge_at(size).expect("of this history");
        assert_eq!(edge.head(), head_of(&entries[..size as usize]));
        let bytes = edge.to_bytes();
        assert_eq!(Edge::from_bytes(size, &bytes).as_ref(), Some(&edge));
        assert_eq!(Edge::from_bytes(size, &[&bytes[..], &[0; 32]].concat()), None);
        if !bytes.is_empty() {
            assert_eq!(Edge::from_bytes(size, &bytes[1..]), None);
            assert_eq!(Edge::from_bytes(size, &bytes[32..]), None);
        }
    }
    assert!(ledger.edge_at(66_001).is_err());
    assert_eq!(Edge::from_bytes(u64::MAX, &[]), None);
    let edge = ledger.edge_at(40_000).expect("of this history");
    drop(ledger);

    // Unfinished tiles that were torn, and a tile behind the edge that is damaged: made again from what is left.
    fs::write(folder.path().join("tile/0/257.p/208"), b"torn").expect("written");
    fs::write(folder.path().join("tile/0/200"), b"torn").expect("written");
    let mut ledger = fleet.ledger(folder.path());
    assert_eq!(ledger.size(), 0);
    ledger.start_over_at(&edge);
    feed(&mut ledger, &entries[..66_000]);
    ledger.scrub().expect("made again");
    assert_eq!(ledger.checkpoint(&fleet.signer()).expect("the same"), checkpoint);
    feed(&mut ledger, &entries);
    ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    assert_eq!(ledger.head(), head_of(&entries));
    drop(ledger);
    // Other entries behind the edge, or another edge, are found out at what was signed.
    let mut others = entries.clone();
    others[50_000].push(1);
    for (edge, entries) in [(edge, &others), (fleet_edge(&fleet, &others[..10_000], 9_000), &entries)] {
        let mut ledger = fleet.ledger(folder.path());
        ledger.start_over_at(&edge);
        let refused = entries[edge.size() as usize..].iter().try_for_each(|entry| ledger.append(entry));
        let refused = refused.expect_err("another history");
        assert!(matches!(refused, LedgerError::Rewritten { .. }), "{refused}");
    }
}

/// The edge of a history that differs in its first entry.
fn fleet_edge(fleet: &Fleet, entries: &[Vec<u8>], size: u64) -> event_audit::ledger::Edge {
    let folder = tempfile::tempdir().expect("a folder");
    let mut entries = entries.to_vec();
    entries[0].push(1);
    filled(fleet, folder.path(), &entries).edge_at(size).expect("of this history")
}
