//! Whole histories in a file: what is written is read back, and whatever is changed afterwards is found and named.

mod support;

use std::cell::Cell;
use std::io::Read;
use std::rc::Rc;

use event_audit::export::{
    CompareError, EntryFault, Expectation, ExportError, ExportReader, ExportWriter, Relation, WriteError,
    compare, prove_entry, verify,
};
use event_audit::ledger::Ledger;
use event_audit::limits::MAX_ENTRY_BYTES;
use event_audit::tile::TILE_BYTES;
use event_audit::{Hash, Head, SignedCheckpoint};
use proptest::prelude::*;
use support::{Fleet, below, entries, random};

fn expecting(fleet: &Fleet) -> Expectation {
    Expectation { origin: Some(fleet.keys.origin().to_owned()), heads: Vec::new() }
}

/// All entries of an export.
fn read(export: &[u8], expectation: &Expectation) -> Result<Vec<Vec<u8>>, ExportError> {
    let mut reader = ExportReader::open(export, expectation)?;
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        entries.push(entry.bytes.to_vec());
        assert_eq!(entry.position, entries.len() as u64);
    }
    assert!(reader.next_entry()?.is_none());
    assert_eq!(reader.offset(), export.len() as u64);
    Ok(entries)
}

fn head_of(entries: &[Vec<u8>]) -> Head {
    let leaves: Vec<Hash> = entries.iter().map(|entry| Hash::leaf(entry)).collect();
    Head { size: leaves.len() as u64, root: Hash::over(&leaves) }
}

#[test]
fn what_is_exported_is_read_back() {
    let fleet = Fleet::new(1);
    for size in [0, 1, 2, 255, 256, 257, 512, 1_000, 65_537] {
        let entries = entries(size, size);
        let export = fleet.export(&entries, &[0, 1, 100, 256, 300, 65_536]);
        assert_eq!(read(&export, &expecting(&fleet)).expect("a good export"), entries, "{size} entries");
        let report = verify(export.as_slice(), &expecting(&fleet)).expect("a good export");
        let expected = [0, 1, 100, 256, 300, 65_536, size].iter().filter(|s| **s > 0 && **s <= size).count();
        let distinct = if [1, 256, 65_536].contains(&size) { expected - 1 } else { expected.max(1) };
        assert_eq!((report.entries, report.checkpoints), (size, distinct));
        assert_eq!(report.entry_bytes, entries.iter().map(|entry| entry.len() as u64).sum::<u64>());
        assert_eq!(report.checkpoint.head(), &head_of(&entries));
        assert!(report.origin_expected);
    }
}

#[test]
fn every_entry_can_be_proved_out_of_an_export() {
    let fleet = Fleet::new(1);
    for size in [1, 2, 255, 256, 257, 511, 700, 66_000_u64] {
        let entries = entries(size, size);
        let export = fleet.export(&entries, &[100]);
        let few = [1, 2, 3, size / 2, size.saturating_sub(1), size];
        let positions = if size < 300 { (1..=size).collect() } else { Vec::from(few) };
        for position in positions.into_iter().filter(|position| *position > 0) {
            let mut reader = ExportReader::open(export.as_slice(), &expecting(&fleet)).expect("good");
            let (entry, proof) = prove_entry(&mut reader, position).expect("good").expect("it is there");
            assert_eq!(entry, entries[position as usize - 1]);
            let (origin, keys) = (fleet.keys.origin(), fleet.keys.log_keys());
            let checkpoint = proof.verify(&entry, origin, keys).expect("it holds");
            assert_eq!((checkpoint.head().size, proof.index), (size, position - 1));
            assert!(proof.verify(b"another", origin, keys).is_err());
        }
        for none in [0, size + 1, u64::MAX] {
            let mut reader = ExportReader::open(export.as_slice(), &expecting(&fleet)).expect("good");
            assert!(prove_entry(&mut reader, none).expect("good").is_none());
        }
    }
}

/// An export of which one byte can be flipped at any time, by all copies of its reader at once: a copy of the reader
/// made before the byte goes on exactly as a reader from the beginning would.
#[derive(Clone)]
struct Flipped<'e> {
    export: &'e [u8],
    at: usize,
    flip: Rc<Cell<(usize, u8)>>,
}

impl Read for Flipped<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let mut rest = &self.export[self.at..];
        let count = rest.read(bytes)?;
        let (place, mask) = self.flip.get();
        if let Some(byte) = place.checked_sub(self.at).and_then(|offset| bytes[..count].get_mut(offset)) {
            *byte ^= mask;
        }
        self.at += count;
        Ok(count)
    }
}

/// What a flip has to lead to.
#[derive(Debug)]
enum Expected {
    /// Something before the entries.
    Head,
    /// This entry.
    Entry(u64),
    /// The listed hash of this entry.
    Listed(u64),
    /// A hash over these entries.
    Over(u64, u64),
    End,
}

impl Expected {
    fn check(&self, error: &ExportError, flip: (usize, u8)) {
        let good = match self {
            Self::Head => {
                !matches!(error, ExportError::End { .. } | ExportError::Read { .. } | ExportError::Spent)
            }
            Self::Entry(position) => error.entries() == Some(*position..=*position),
            Self::Listed(position) => {
                matches!(error, ExportError::Entry { position: p, fault: EntryFault::ListedHash, .. } if p == position)
            }
            Self::Over(first, last) => {
                matches!(error, ExportError::Hashes { .. }) && error.entries() == Some(*first..=*last)
            }
            Self::End => matches!(error, ExportError::End { .. }),
        };
        assert!(good, "flip {flip:?} should give {self:?}, gave {error:?}: {error}");
    }
}

/// Where what lies in a good export.
struct Places {
    /// Offset of the first entry's tiles.
    body: usize,
    /// Per entry: where the tiles before it begin, where it begins, where it ends.
    entries: Vec<(usize, usize, usize)>,
}

impl Places {
    fn of(export: &[u8], lengths: impl Iterator<Item = usize>) -> Self {
        let mut reader = ExportReader::open(export, &Expectation::default()).expect("a good export");
        let body = reader.offset() as usize;
        let mut entries = Vec::new();
        let mut end = body;
        for length in lengths {
            let tiles = end;
            end = {
                reader.next_entry().expect("good").expect("there");
                reader.offset() as usize
            };
            entries.push((tiles, end - length - 4, end));
        }
        Self { body, entries }
    }

    fn expected(&self, at: usize) -> Expected {
        if at < self.body {
            return Expected::Head;
        }
        let index = self.entries.partition_point(|(_, _, end)| *end <= at);
        let Some((tiles, entry, _)) = self.entries.get(index) else { return Expected::End };
        let position = index as u64 + 1;
        if at >= *entry {
            return Expected::Entry(position);
        }
        let slot = ((at - tiles) % TILE_BYTES / Hash::BYTES) as u64;
        match (entry - tiles) / TILE_BYTES - (at - tiles) / TILE_BYTES {
            1 => Expected::Listed(position + slot),
            2 => Expected::Over(position + slot * 256, position + slot * 256 + 255),
            more => panic!("a tile of level {more} in a small export"),
        }
    }
}

/// 1,000 flips of single bits and bytes anywhere in an export of 100,000 entries: each is found, and named.
#[test]
fn any_flipped_byte_is_found_and_named() {
    const ENTRIES: u64 = 100_000;
    let fleet = Fleet::new(1);
    let entries = entries(ENTRIES, 11);
    let export = fleet.export(&entries, &[1, 5_000, 70_000]);
    let places = Places::of(&export, entries.iter().map(Vec::len));
    let mut random = random(12);
    let mut flips: Vec<(usize, u8)> = (0..1_000)
        .map(|_| (below(&mut random, export.len() as u64) as usize, 1 << below(&mut random, 8)))
        .collect();
    // And where a random flip would hardly ever go.
    let mut rare: Vec<usize> = (0..places.body).step_by(701).collect();
    rare.extend(export.len() - 24..export.len());
    rare.extend((0..60).map(|i| places.body + i * 331));
    for index in [0, 1, 255, 256, 65_535, 65_536, 99_839, 99_840, 99_999] {
        let (tiles, entry, end) = places.entries[index];
        rare.extend([tiles, entry, entry + 3, end - 1]);
    }
    flips.extend(rare.into_iter().map(|at| (at, 1 + below(&mut random, 255) as u8)));
    flips.sort_unstable();

    let flip = Rc::new(Cell::new((usize::MAX, 0)));
    let expectation = expecting(&fleet);
    let open =
        || ExportReader::open(Flipped { export: &export, at: 0, flip: Rc::clone(&flip) }, &expectation);
    let mut good = open().expect("a good export");
    let (mut index, mut fresh) = (0, 0);
    for change in flips {
        let expected = places.expected(change.0);
        // As far as a good reader gets before the byte. Every 200th trial reads from the beginning instead.
        while index < entries.len() && places.entries[index].2 <= change.0 {
            good.next_entry().expect("good").expect("there");
            index += 1;
        }
        fresh += 1;
        let (from, reader) = if change.0 < places.body || fresh % 200 == 0 {
            flip.set(change);
            (0, open())
        } else {
            let reader = good.clone();
            flip.set(change);
            (index, Ok(reader))
        };
        let error = reader.and_then(|reader| read_on(reader, &entries[from..])).expect_err("a flipped byte");
        expected.check(&error, change);
        flip.set((usize::MAX, 0));
    }
    // Nothing of all that was due to the copies.
    read_on(good, &entries[index..]).expect("a good export");
}

/// Reads to the end; what is handed out on the way is right.
fn read_on<R: Read>(mut reader: ExportReader<R>, expected: &[Vec<u8>]) -> Result<(), ExportError> {
    let mut expected = expected.iter();
    while let Some(entry) = reader.next_entry()? {
        assert_eq!(Some(entry.bytes), expected.next().map(Vec::as_slice));
    }
    assert!(expected.next().is_none());
    Ok(())
}

/// Every single byte of a small export, in every bit.
#[test]
fn every_byte_counts() {
    let fleet = Fleet::new(1);
    for size in [0_u64, 3, 258] {
        let entries: Vec<Vec<u8>> = (0..size).map(|i| i.to_le_bytes().to_vec()).collect();
        let export = fleet.export(&entries, &[2]);
        let places = Places::of(&export, entries.iter().map(Vec::len));
        let step = if size > 100 { 7 } else { 1 };
        for at in (0..export.len()).step_by(step) {
            let change = (at, 1 << (at % 8));
            let mut bytes = export.clone();
            bytes[at] ^= change.1;
            let error = read(&bytes, &expecting(&fleet)).expect_err("a flipped byte");
            places.expected(at).check(&error, change);
            // Without an expectation, too: the origin is the root key's.
            read(&bytes, &Expectation::default()).expect_err("a flipped byte");
        }
    }
}

#[test]
fn cut_off_exports_say_where() {
    let fleet = Fleet::new(1);
    let entries = entries(600, 21);
    let export = fleet.export(&entries, &[100]);
    let places = Places::of(&export, entries.iter().map(Vec::len));
    for at in (0..export.len()).step_by(97).chain([0, 7, 8, export.len() - 1, export.len() - 24]) {
        let error = read(&export[..at], &expecting(&fleet)).expect_err("cut off");
        if at < 8 {
            assert!(matches!(error, ExportError::NotAnExport), "{error}");
            continue;
        }
        let ExportError::Cut { offset, entry } = error else { panic!("{at}: {error}") };
        assert_eq!(offset, at as u64);
        let index = places.entries.partition_point(|(_, _, end)| *end <= at);
        let named = (at >= places.body && index < entries.len()).then_some(index as u64 + 1);
        assert_eq!(entry, named, "cut at {at}");
    }
    let longer = [&export[..], &[0]].concat();
    assert!(matches!(read(&longer, &expecting(&fleet)), Err(ExportError::End { .. })));
    assert!(matches!(
        read(&[&export[..], &export].concat(), &expecting(&fleet)),
        Err(ExportError::End { .. })
    ));
}

#[test]
fn left_out_doubled_and_exchanged_entries_are_named() {
    let fleet = Fleet::new(1);
    let entries = entries(700, 22);
    let export = fleet.export(&entries, &[]);
    let places = Places::of(&export, entries.iter().map(Vec::len));
    let part = |index: usize| &export[places.entries[index].1..places.entries[index].2];
    for index in [0, 10, 254, 300, 600, 698] {
        let (_, start, end) = places.entries[index];
        let (before, after) = (&export[..start], &export[end..]);
        let next = &export[places.entries[index + 1].2..];
        for (changed, named) in [
            ([before, after].concat(), index + 1),
            ([before, part(index), part(index), after].concat(), index + 2),
            ([before, part(index + 1), part(index), next].concat(), index + 1),
            ([before, &4u32.to_le_bytes(), b"fake", after].concat(), index + 1),
            ([before, &0u32.to_le_bytes(), after].concat(), index + 1),
            ([before, &(MAX_ENTRY_BYTES as u32 + 1).to_le_bytes(), after].concat(), index + 1),
            ([before, &u32::MAX.to_le_bytes(), after].concat(), index + 1),
        ] {
            let error = read(&changed, &expecting(&fleet)).expect_err("changed");
            assert_eq!(error.entries(), Some(named as u64..=named as u64), "{index}: {error}");
        }
    }
}

/// An export that was made anew over changed entries, with hashes that fit: only signatures are in its way.
#[test]
fn a_consistent_forgery_fails_at_the_signatures() {
    let (fleet, forger) = (Fleet::new(1), Fleet::new(66));
    let mut entries = entries(1_000, 23);
    let folder = tempfile::tempdir().expect("a folder");
    let mut ledger = fleet.ledger(folder.path());
    let mut checkpoints = Vec::new();
    for entry in &entries {
        ledger.append(entry).expect("an entry fits");
        if [300, 700, 1_000].contains(&ledger.size()) {
            checkpoints.push(ledger.checkpoint(&fleet.signer()).expect("a checkpoint"));
        }
    }
    let good = fleet.write(&ledger, &entries, &checkpoints);
    entries[449][0] ^= 1;

    // By somebody else: another root key, so another origin.
    let forged = forger.export(&entries, &[300, 700]);
    let error = read(&forged, &expecting(&fleet)).expect_err("another origin");
    assert!(matches!(error, ExportError::OtherOrigin { .. }), "{error}");
    assert_eq!(read(&forged, &Expectation::default()).expect("nobody was expected"), entries);

    // The fleet's key list, and hashes over the changed entries: the head of one export, the body of another.
    let rest = |export: &[u8]| {
        let reader = ExportReader::open(export, &Expectation::default()).expect("a good export");
        let edge: usize = (1_000 % 256 + 3) * Hash::BYTES + 32;
        export.split_at(reader.offset() as usize - edge).1.to_vec()
    };
    let own = fleet.export(&entries, &[300, 700]);
    let head = &good[..good.len() - rest(&good).len()];
    let spliced = [head, &rest(&own)].concat();
    let error = read(&spliced, &expecting(&fleet)).expect_err("another history");
    let ExportError::Forked { claimed, found, agreed: 300, expected: false } = &error else {
        panic!("{error}")
    };
    assert_eq!((claimed, found), (checkpoints[1].head(), &head_of(&entries[..700])));
    assert_eq!(error.entries(), Some(301..=700));

    // By the service itself, with its own key: who saw the first history can tell, nobody else.
    assert_eq!(read(&own, &expecting(&fleet)).expect("signed by the service"), entries);
    let seen = |heads: &[Head]| Expectation { heads: heads.to_vec(), ..expecting(&fleet) };
    read(&own, &seen(&[*checkpoints[0].head()])).expect("it parts later");
    let error =
        read(&own, &seen(&[*checkpoints[0].head(), *checkpoints[2].head()])).expect_err("two histories");
    let ExportError::Forked { claimed, found, agreed: 300, expected: true } = &error else {
        panic!("{error}")
    };
    assert_eq!((claimed, found), (checkpoints[2].head(), &head_of(&entries)));
    assert!(
        error.to_string().contains(&claimed.root.to_string())
            && error.to_string().contains(&found.root.to_string())
    );
    let longer = Head { size: 1_001, ..*checkpoints[2].head() };
    assert!(matches!(read(&good, &seen(&[longer])), Err(ExportError::Older { .. })));

    // And both together convict it.
    let open = |export| ExportReader::open(export, &expecting(&fleet)).expect("a good export");
    let relation = compare(&mut open(&good[..]), &mut open(&own[..])).expect("both hold");
    let Relation::Forked { first: 450, left, right } = relation else { panic!("{relation:?}") };
    assert_eq!((&left, right), (checkpoints[2].head(), head_of(&entries)));
    let mut foreign = ExportReader::open(&forged[..], &Expectation::default()).expect("a good export");
    assert!(matches!(compare(&mut open(&good[..]), &mut foreign), Err(CompareError::Origins { .. })));
}

#[test]
fn a_beginning_is_told_from_a_fork() {
    let fleet = Fleet::new(1);
    let entries = entries(600, 24);
    let (short, long) = (fleet.export(&entries[..300], &[]), fleet.export(&entries, &[]));
    fn open<'e>(fleet: &Fleet, export: &'e [u8]) -> ExportReader<&'e [u8]> {
        ExportReader::open(export, &expecting(fleet)).expect("a good export")
    }
    let relate = |left: &[u8], right: &[u8]| {
        compare(&mut open(&fleet, left), &mut open(&fleet, right)).expect("both hold")
    };
    assert_eq!(relate(&short, &long), Relation::LeftBegins);
    assert_eq!(relate(&long, &short), Relation::RightBegins);
    assert_eq!(relate(&long, &long), Relation::Same);
    let mut damaged = long.clone();
    let last = damaged.len() - 30;
    damaged[last] ^= 1;
    let error = compare(&mut open(&fleet, &short), &mut open(&fleet, &damaged))
        .expect_err("damaged behind the shorter one's end");
    assert!(matches!(error, CompareError::Right(ExportError::Entry { position: 600, .. })), "{error}");
}

#[test]
fn a_writer_refuses_what_could_not_be_verified() {
    let fleet = Fleet::new(1);
    let entries = entries(300, 25);
    let folder = tempfile::tempdir().expect("a folder");
    let mut ledger = fleet.ledger(folder.path());
    entries.iter().for_each(|entry| ledger.append(entry).expect("an entry fits"));
    let newest = ledger.checkpoint(&fleet.signer()).expect("a checkpoint");
    fn open<'l>(
        fleet: &Fleet,
        ledger: &'l Ledger,
        checkpoints: &[SignedCheckpoint],
    ) -> Result<ExportWriter<'l, Vec<u8>>, WriteError> {
        ExportWriter::new(Vec::new(), ledger, &fleet.keys, checkpoints)
    }
    let forged =
        SignedCheckpoint::sign(Head { size: 300, root: Hash::leaf(b"x") }, &fleet.signer()).expect("signed");
    for checkpoints in [vec![], vec![newest.clone(); 2], vec![forged]] {
        assert!(matches!(open(&fleet, &ledger, &checkpoints), Err(WriteError::Checkpoints(_))));
    }
    let other = Fleet::new(2);
    assert!(matches!(open(&other, &ledger, std::slice::from_ref(&newest)), Err(WriteError::Checkpoints(_))));
    let mut writer = open(&fleet, &ledger, std::slice::from_ref(&newest)).expect("the head is written");
    for entry in &entries[..270] {
        writer.entry(entry).expect("the ledger has it");
    }
    assert!(matches!(writer.entry(b"rotten"), Err(WriteError::Differs { position: 271, .. })));
    assert!(matches!(writer.finish(), Err(WriteError::Count { expected: 300, given: 270 })));
    let mut writer = open(&fleet, &ledger, &[newest]).expect("the head is written");
    entries.iter().for_each(|entry| writer.entry(entry).expect("the ledger has it"));
    assert!(matches!(writer.entry(b"one more"), Err(WriteError::Count { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Bytes of all kinds, alone and in place of a good export's: an answer, never a panic, never much memory.
    #[test]
    fn anything_is_answered(
        bytes in proptest::collection::vec(any::<u8>(), 0..2_000),
        at in any::<prop::sample::Index>(),
        seed in any::<u64>(),
    ) {
        let _ = verify(bytes.as_slice(), &Expectation::default());
        thread_local! {
            static EXPORT: Vec<u8> = Fleet::new(1).export(&entries(520, 31), &[17, 300]);
        }
        EXPORT.with(|good| {
            // Overwritten with noise, and with numbers at the ends of their ranges.
            let mut export = good.clone();
            let at = at.index(export.len());
            let end = (at + bytes.len()).min(export.len());
            let same = export[at..end] == bytes[..end - at];
            export[at..end].copy_from_slice(&bytes[..end - at]);
            prop_assert_eq!(verify(export.as_slice(), &Expectation::default()).is_ok(), same);
            let mut random = random(seed);
            let mut export = good.clone();
            let at = 8 + below(&mut random, 56) as usize;
            export[at..at + 4].copy_from_slice(&[[0xff; 4], [0; 4], [0xff, 0xff, 0xff, 0x7f]][(below(&mut random, 3)) as usize]);
            // With a checksum that holds: what is left is the sizes themselves.
            let checksum: [u8; 32] = sha(&export[..32]);
            export[32..64].copy_from_slice(&checksum);
            let _ = verify(export.as_slice(), &Expectation::default());
            Ok(())
        })?;
    }
}

fn sha(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).into()
}
