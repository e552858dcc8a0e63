//! The formats of C2SP: public vectors, and two independent implementations that have to agree with ours.

mod support;

use std::path::PathBuf;

use event_audit::checkpoint::{Checkpoint, CheckpointError};
use event_audit::keys::{KeyList, KeyListError, origin_of};
use event_audit::ledger::Ledger;
use event_audit::note::{Note, NoteError, NoteSigner, VerifierKey, sign};
use event_audit::proof::{prove_consistency, prove_inclusion};
use event_audit::tile::Tile;
use event_audit::{Hash, SignedCheckpoint};
use signed_note::Verifier as _;
use support::{Fleet, entries};

/// The example of Go's note package, which every implementation has as its first test.
const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const PETER_NOTE: &str = "If you think cryptography is the answer to your problem,\nthen you don't know what your \
     problem is.\n\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

/// The public Go checksum database: its key, and the checkpoint that C2SP shows (there under another name).
const SUM_DB: &str = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
const SUM_DB_NOTE: &str = "go.sum database tree\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\
     — sum.golang.org Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n";

#[test]
fn public_notes_hold() {
    let peter = VerifierKey::parse(PETER).expect("a key");
    assert_eq!(peter.to_string(), PETER);
    let note = Note::parse(PETER_NOTE.as_bytes()).expect("a note");
    let text = note.verify(std::slice::from_ref(&peter)).expect("it is signed");
    assert!(text.ends_with("problem is.\n"));
    let changed = PETER_NOTE.replace("answer", "Answer");
    let bad = Note::parse(changed.as_bytes()).expect("a note").verify(&[peter]).expect_err("changed");
    assert_eq!(bad, NoteError::BadSignature { key: PETER.to_owned() });

    let key = VerifierKey::parse(SUM_DB).expect("a key");
    let keys = [key];
    let checkpoint =
        SignedCheckpoint::open(SUM_DB_NOTE.as_bytes(), "go.sum database tree", &keys).expect("it is signed");
    assert_eq!(checkpoint.head().size, 20_852_163);
    assert_eq!(checkpoint.note(), SUM_DB_NOTE);
    let other = SignedCheckpoint::open(SUM_DB_NOTE.as_bytes(), "example.com/log", &keys);
    assert!(matches!(other, Err(CheckpointError::OtherOrigin { .. })));
}

#[test]
fn malformed_notes_are_refused() {
    let peter = VerifierKey::parse(PETER).expect("a key");
    let line = PETER_NOTE.rsplit_once("\n\n").expect("signed").1;
    let cases: Vec<(Vec<u8>, NoteError)> = vec![
        (b"".to_vec(), NoteError::Unsigned),
        (b"text\n".to_vec(), NoteError::Unsigned),
        (b"text\n\n".to_vec(), NoteError::Unsigned),
        (b"text\n\nno line\n".to_vec(), NoteError::BadLine { line: 1 }),
        (PETER_NOTE.trim_end().into(), NoteError::Unsigned),
        (PETER_NOTE.replace("know", "know\r").into(), NoteError::NotText),
        (PETER_NOTE.replace("know", "know\0").into(), NoteError::NotText),
        ([PETER_NOTE.as_bytes(), b"\xff\n"].concat(), NoteError::NotText),
        (format!("{PETER_NOTE}\n").into(), NoteError::Unsigned),
        (format!("{PETER_NOTE}— Bad Name AAAAAAA=\n").into(), NoteError::BadLine { line: 2 }),
        (format!("{PETER_NOTE}— a+b AAAAAAA=\n").into(), NoteError::BadLine { line: 2 }),
        (format!("{PETER_NOTE}— name AAAA\n").into(), NoteError::BadLine { line: 2 }),
        (format!("{PETER_NOTE}— name AAAAAA==\n").into(), NoteError::BadLine { line: 2 }),
        (format!("{PETER_NOTE}— name not/base64!\n").into(), NoteError::BadLine { line: 2 }),
        (format!("{PETER_NOTE}- name AAAAAAA=\n").into(), NoteError::BadLine { line: 2 }),
        (format!("{PETER_NOTE}{}", line.repeat(64)).into(), NoteError::TooManySignatures),
        (vec![b'\n'; 128 * 1024 + 1], NoteError::TooLong { bytes: 128 * 1024 + 1 }),
    ];
    for (note, error) in cases {
        let found = Note::parse(&note).expect_err("malformed");
        assert_eq!(found, error, "{}", String::from_utf8_lossy(&note));
        // The other implementation refuses them too; it allows more signatures.
        assert!(
            error == NoteError::TooManySignatures || signed_note::Note::from_bytes(&note).is_err(),
            "{error}"
        );
    }
    // Lines of keys that nobody knows are allowed and worth nothing.
    let strangers = format!("{}\n\n— stranger AAAAAAA=\n", PETER_NOTE.rsplit_once("\n\n").expect("signed").0);
    let note = Note::parse(strangers.as_bytes()).expect("a note");
    assert_eq!(note.verify(std::slice::from_ref(&peter)), Err(NoteError::NoKnownKey));
    let both = format!("{PETER_NOTE}— stranger AAAAAAA=\n");
    assert!(Note::parse(both.as_bytes()).expect("a note").verify(&[peter]).is_ok());
}

#[test]
fn malformed_keys_are_refused() {
    for bad in [
        "",
        "PeterNeumann",
        "PeterNeumann+c74f20a3",
        "PeterNeumann+c74f20a3+",
        "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+C74F20A3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "Paul+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+BBpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ] {
        assert!(VerifierKey::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(VerifierKey::new("weak", &[0; 32]), Err(NoteError::UnusableKey));
    assert_eq!(VerifierKey::new("", &[1; 32]), Err(NoteError::BadName));
}

#[test]
fn another_implementation_reads_what_we_sign() {
    let fleet = Fleet::new(9);
    let key = fleet.keys.log_keys()[0].to_string();
    let theirs = signed_note::StandardVerifier::new(&key).expect("our key");
    assert_eq!(theirs.name(), fleet.keys.origin());
    let folder = tempfile::tempdir().expect("a folder");
    let mut ledger = fleet.ledger(folder.path());
    entries(300, 1).iter().for_each(|entry| ledger.append(entry).expect("an entry fits"));
    let checkpoint = ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    for (note, key) in [
        (checkpoint.note().to_owned(), key),
        (PETER_NOTE.to_owned(), PETER.to_owned()),
        (SUM_DB_NOTE.to_owned(), SUM_DB.to_owned()),
    ] {
        let verifier = signed_note::StandardVerifier::new(&key).expect("a key");
        let known = signed_note::VerifierList::new(vec![Box::new(verifier)]);
        let theirs = signed_note::Note::from_bytes(note.as_bytes()).expect("a note");
        let (good, unknown) = theirs.verify(&known).expect("it is signed");
        assert_eq!((good.len(), unknown.len()), (1, 0));
        let ours = Note::parse(note.as_bytes()).expect("a note");
        assert_eq!(ours.unverified_text().as_bytes(), theirs.text());
    }
    let note = signed_note::Note::from_bytes(checkpoint.note().as_bytes()).expect("a note");
    let theirs = tlog_tiles::Checkpoint::from_bytes(note.text()).expect("a checkpoint");
    assert_eq!(
        (theirs.origin(), theirs.size(), theirs.hash().0),
        (fleet.keys.origin(), 300, checkpoint.head().root.0)
    );
    assert_eq!(theirs.to_bytes(), checkpoint.checkpoint().to_text().as_bytes());
}

#[test]
fn checkpoint_texts() {
    let root = Hash::leaf(b"x").to_base64();
    let good = format!("example.com/log\n7\n{root}\n");
    let checkpoint = Checkpoint::parse(&good).expect("a checkpoint");
    assert_eq!(
        (checkpoint.origin.as_str(), checkpoint.head.size, checkpoint.to_text()),
        ("example.com/log", 7, good.clone())
    );
    assert_eq!(Checkpoint::parse(&format!("{good}an extension\n")), Ok(checkpoint));
    assert!(Checkpoint::parse(&format!("o\n0\n{root}\n")).is_ok());
    for bad in [
        "".into(),
        "\n".into(),
        format!("\n7\n{root}\n"),
        format!("o\n07\n{root}\n"),
        format!("o\n+7\n{root}\n"),
        format!("o\n-7\n{root}\n"),
        format!("o\n\n{root}\n"),
        "o\n7\n".into(),
        "o\n7\nAAAA\n".into(),
        format!("o\n7\n{root}"),
        format!("{good}\nx\n"),
        format!("o\n18446744073709551616\n{root}\n"),
        format!("o\n72057594037927936\n{root}\n"),
        format!("{}\n7\n{root}\n", "o".repeat(256)),
    ] {
        assert!(Checkpoint::parse(&bad).is_err(), "{bad}");
    }
}

/// Tiles as the other implementation asks for them, from our files.
struct Files(PathBuf);

impl tlog_tiles::TileReader for Files {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[tlog_tiles::Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::Error> {
        tiles
            .iter()
            .map(|tile| {
                let ours =
                    Tile { level: tile.level(), index: tile.level_index(), width: tile.width() as u16 };
                // Its paths name the height of tiles, as Go's checksum database does; C2SP's do not.
                assert_eq!(tile.path(), ours.path().replacen("tile/", "tile/8/", 1));
                Ok(std::fs::read(self.0.join(ours.path())).expect("the tile is stored"))
            })
            .collect()
    }

    fn save_tiles(&self, _: &[tlog_tiles::Tile], _: &[Vec<u8>]) {}
}

#[test]
fn another_implementation_proves_from_our_tiles_what_we_prove() {
    let fleet = Fleet::new(9);
    let folder = tempfile::tempdir().expect("a folder");
    let mut ledger = fleet.ledger(folder.path());
    let entries = entries(1_337, 2);
    for size in [1, 2, 3, 7, 255, 256, 257, 600, 1_024, 1_337] {
        entries[ledger.size() as usize..size].iter().for_each(|e| ledger.append(e).expect("an entry fits"));
        let head = *ledger.checkpoint(&fleet.signer()).expect("a checkpoint").head();
        agree(&ledger, head.size, tlog_tiles::Hash(head.root.0), &Files(folder.path().to_owned()));
    }
}

fn agree(ledger: &Ledger, size: u64, root: tlog_tiles::Hash, files: &Files) {
    let theirs = tlog_tiles::TileHashReader::new(size, root, files);
    assert!(tlog_tiles::tree_hash(size, &theirs).is_ok_and(|hash| hash == root));
    let bytes = |path: Vec<tlog_tiles::Hash>| path.into_iter().map(|hash| Hash(hash.0)).collect::<Vec<_>>();
    for index in [0, 1, 2, 5, 254, 255, 256, 599, 1_023, 1_024, size - 1].into_iter().filter(|i| *i < size) {
        let path = bytes(tlog_tiles::prove_record(size, index, &theirs).expect("a proof"));
        assert_eq!(prove_inclusion(ledger, index, size).expect("no damage"), Some(path), "{index} of {size}");
    }
    for old in [1, 2, 3, 6, 255, 256, 257, 512, 600, 1_024, size].into_iter().filter(|old| *old <= size) {
        let path = bytes(tlog_tiles::prove_tree(size, old, &theirs).expect("a proof"));
        assert_eq!(prove_consistency(ledger, old, size).expect("no damage"), Some(path), "{old} → {size}");
    }
}

#[test]
fn key_lists() {
    let fleet = Fleet::new(3);
    let keys = &fleet.keys;
    assert_eq!(keys.origin(), origin_of(&fleet.root.verifying_key().to_bytes()));
    assert_eq!(keys.origin().len(), 41);
    assert_eq!(&KeyList::open(keys.note().as_bytes()).expect("signed"), keys);
    // Every changed character is noticed, whatever it makes of the list.
    let note = keys.note();
    for at in 0..note.len() {
        let mut bytes = note.as_bytes().to_vec();
        bytes[at] ^= 1;
        assert!(KeyList::open(&bytes).is_err(), "byte {at} of\n{note}");
    }
    assert_eq!(KeyList::sign(&fleet.root, &[]), Err(KeyListError::LogKeys));
    assert_eq!(KeyList::sign(&fleet.root, &[[0; 32]]), Err(KeyListError::Note(NoteError::UnusableKey)));
    // Signed by a root key of one's own, under the other fleet's name.
    let forger = Fleet::new(4);
    let signer = NoteSigner::new(&format!("{}/root", keys.origin()), forger.root).expect("a name");
    let text =
        format!("flotilla audit keys v1\n{}\n{}\n{}\n", keys.origin(), signer.verifier(), keys.log_keys()[0]);
    let forged = sign(&text, &signer).expect("signed");
    assert_eq!(KeyList::open(forged.as_bytes()), Err(KeyListError::OtherRoot));
}
