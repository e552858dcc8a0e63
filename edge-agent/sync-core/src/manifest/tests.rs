//! The rules of PROTOCOL.md §4.3, the byte form there and back, the head.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use std::collections::BTreeMap;

use agent_proto::limits::{
    BLOCK_LEN, ENTRY_LEN_MAX, EXTENTS_MAX, FILE_LEN_MAX, LINK_TURNS_MAX, PAGE_LEN, XATTRS_LEN_MAX, XATTRS_MAX,
};
use ed25519_dalek::SigningKey;
use event_schema::{AgentId, Domain, RunId, Signed};
use proptest::prelude::*;

use super::*;
use crate::merkle::tree_root;

const B: u64 = BLOCK_LEN as u64;

fn entry(path: &[u8], kind: Kind) -> Entry {
    let bare = matches!(kind, Kind::Symlink { .. } | Kind::HardLink { .. });
    let mtime = if matches!(kind, Kind::HardLink { .. }) { (0, 0) } else { (1, 2) };
    Entry::new(path, if bare { 0 } else { 0o644 }, Mtime { seconds: mtime.0, nanos: mtime.1 }, kind)
}

fn file(path: &[u8], size: u64) -> Entry {
    entry(path, Kind::file(size))
}

fn sparse(path: &[u8], size: u64, data: &[(u64, u64)]) -> Entry {
    let data = data.iter().map(|&(start, len)| Extent { start, len }).collect();
    entry(path, Kind::File { size, data: Some(data) })
}

fn folder(path: &[u8]) -> Entry {
    entry(path, Kind::Folder)
}

fn link(path: &[u8], target: &[u8]) -> Entry {
    entry(path, Kind::Symlink { target: target.to_vec() })
}

fn hard_link(path: &[u8], to: u64) -> Entry {
    entry(path, Kind::HardLink { to })
}

fn xattr(name: &[u8], value: &[u8]) -> Xattr {
    Xattr { name: name.to_vec(), value: value.to_vec() }
}

fn owner(uid: u32, user: &str) -> Option<Arc<Owner>> {
    Some(Arc::new(Owner { uid, gid: 7, user: user.into(), group: String::new() }))
}

fn hashes(entry: &Entry, seed: u8) -> Vec<BlockHash> {
    let hash = |i| BlockHash { strong: [seed.wrapping_add(i as u8); 32], weak: i as u32 };
    (0..entry.kind.blocks()).map(hash).collect()
}

fn encoded(entries: &[Entry]) -> Result<Vec<u8>, ManifestError> {
    encode(entries.iter().map(|e| (e.clone(), hashes(e, e.path.len() as u8))))
}

/// All entries, read back page by page.
fn read(bytes: &[u8]) -> Result<Vec<Entry>, ManifestError> {
    let manifest = Manifest::open(bytes)?;
    let mut entries = Vec::new();
    for page in 0..manifest.pages() {
        entries.extend(manifest.page(page)?.entries().map(|(_, e)| e.clone()));
    }
    Ok(entries)
}

/// The rule that is broken, which writer and reader must agree on.
fn broken_rule(entries: &[Entry]) -> Option<EntryRule> {
    let written = encoded(entries);
    // What a hostile source would send: written without looking.
    let (mut page, mut context, mut table) = (Vec::new(), page::Context::default(), Vec::new());
    let (mut pages, mut rows, mut row) = (Vec::new(), Vec::new(), page::TableRow::default());
    for (i, e) in entries.iter().enumerate() {
        if page.is_empty() {
            row = page::TableRow {
                offset: pages.len() as u64,
                entry: i as u64,
                block: rows.len() as u64 / HASH_ROW_LEN,
            };
        }
        page::put(&mut page, &mut context, e);
        rows.extend(hashes(e, 0).iter().flat_map(BlockHash::to_row));
        if page.len() >= PAGE_LEN || i + 1 == entries.len() {
            table.extend(row.to_bytes());
            pages.append(&mut page);
            context = page::Context::default();
        }
    }
    let mut header = [0; HEADER_LEN as usize];
    header[0] = MANIFEST_VERSION;
    let content: u64 = entries.iter().map(|e| e.kind.content_len()).sum();
    let numbers = [
        entries.len() as u64,
        rows.len() as u64 / HASH_ROW_LEN,
        content,
        pages.len() as u64,
        table.len() as u64 / 24,
    ];
    for (place, number) in header[8..].chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let read = Manifest::open([&header[..], &rows, &pages, &table].concat());
    // The writer leaves links that turn to its caller.
    let read = read.err().and_then(rule_of);
    if read != Some(EntryRule::UnsafeLink) {
        assert_eq!(written.err().and_then(rule_of), read, "{entries:?}");
    }
    read
}

fn rule_of(error: ManifestError) -> Option<EntryRule> {
    match error {
        ManifestError::Entry { rule, .. } => Some(rule),
        e => panic!("{e}"),
    }
}

#[test]
fn blocks_are_numbered_through_files_in_order() {
    let entries = [
        folder(b""),
        file(b"a", 0),
        file(b"b", B + 1),
        folder(b"c"),
        file(b"c/d", 5),
        hard_link(b"c/e", 2),
        file(b"e", 0),
    ];
    let bytes = encoded(&entries).expect("good entries");
    let manifest = Manifest::open(&bytes).expect("good");
    assert_eq!((manifest.entries(), manifest.blocks(), manifest.bytes()), (7, 3, B + 6));
    let page = manifest.page(0).expect("readable");
    let at = |i| page.place(i).map(|b| (b.entry, b.offset, b.len));
    assert_eq!(at(0), Some((2, 0, BLOCK_LEN)));
    assert_eq!(at(1), Some((2, B, 1)));
    assert_eq!(at(2), Some((4, 0, 5)));
    assert_eq!(at(3), None);
    assert_eq!(page.blocks_of_entry(2), 0..2);
    assert!(page.blocks_of_entry(6).is_empty() && page.blocks_of_entry(7).is_empty());
    assert_eq!(manifest.page_of_block(2), Some(0));
    assert_eq!((manifest.page_of_block(3), manifest.page_of_entry(7)), (None, None));
    assert_eq!(manifest.hash(1).expect("there"), hashes(&entries[2], 1)[1]);
    assert!(manifest.hash(3).is_err());
    assert_eq!(manifest.hashes(1..9).expect("there").len(), 2);
    assert_eq!(read(&bytes).expect("good"), entries);
    let empty = Manifest::open(encoded(&[]).expect("nothing")).expect("good");
    assert_eq!((empty.pages(), empty.find(b"").expect("readable")), (0, None));
}

#[test]
fn holes_cost_nothing_and_everything_about_an_entry_comes_back() {
    let mut full =
        sparse(b"disk", 100 * B + 10, &[(5, 10), (B - 1, 1), (2 * B, B + 1), (50 * B, 50 * B + 10)]);
    full.owner = owner(1000, "ada");
    full.mtime = Mtime { seconds: -5, nanos: 999_999_999 };
    full.mode = 0o6755;
    full.xattrs = vec![
        xattr(b"system.posix_acl_access", b"\x02\0"),
        xattr(b"user.a", b""),
        xattr(b"user.b", &[9; 300]),
    ];
    // Blocks 0, 2, 3 and 50 to 100.
    assert_eq!(full.kind.blocks(), 54);
    assert_eq!(full.kind.content_len(), 53 * B + 10);
    let at = |nth| full.kind.block_at(nth);
    assert_eq!(
        (at(0), at(1), at(2)),
        (Some((0, BLOCK_LEN)), Some((2 * B, BLOCK_LEN)), Some((3 * B, BLOCK_LEN)))
    );
    assert_eq!((at(3), at(53), at(54)), (Some((50 * B, BLOCK_LEN)), Some((100 * B, 10)), None));
    assert_eq!(full.kind.data_in(0..B).collect::<Vec<_>>(), [5..15, B - 1..B]);
    assert!(full.kind.data_in(3 * B..4 * B).eq(core::iter::once(3 * B..3 * B + 1)));
    assert_eq!(full.kind.data_in(10 * B..11 * B).count(), 0);
    assert!(Kind::file(9).data_in(2..5).eq(core::iter::once(2..5)));
    let mut plain = file(b"f", 3);
    plain.owner = full.owner.clone();
    let mut other = folder(b"g");
    other.owner = owner(0, "root");
    let none = folder(b"h");
    let all_hole = sparse(b"i", 1 << 50, &[]);
    let again = Entry { path: b"f3".to_vec(), ..plain.clone() };
    let entries = [full, plain, hard_link(b"f2", 1), again, other, none, all_hole];
    assert_eq!(read(&encoded(&entries).expect("good")).expect("good"), entries);
}

#[test]
fn hostile_entries_are_refused() {
    use EntryRule::*;
    let long = vec![b'x'; 256];
    let mut deep = Vec::new();
    for depth in 1..=2048 {
        deep.push(folder(&[&b"d/".repeat(depth - 1)[..], b"d"].concat()));
    }
    let with_xattrs = |xattrs: Vec<Xattr>| Entry { xattrs, ..file(b"a", 1) };
    let many = |n| (0..n).map(|i| xattr(std::format!("user.{i:05}").as_bytes(), b"v")).collect();
    let cases: Vec<(Vec<Entry>, Option<EntryRule>)> = vec![
        (vec![file(b"-rf", 1), file(b"ok", 1), file(b"ok\n", 1), file(b"ok\xff", 1)], None),
        (vec![file(b"..", 1)], Some(BadName)),
        (vec![file(b"/etc/passwd", 1)], Some(BadName)),
        (vec![folder(b"a"), file(b"a/../b", 1)], Some(BadName)),
        (vec![folder(b"a"), file(b"a//b", 1)], Some(BadName)),
        (vec![folder(b"a"), file(b"a/", 1)], Some(BadName)),
        (vec![file(b"a\0b", 1)], Some(BadName)),
        (vec![file(&long, 1)], Some(BadName)),
        (vec![file(&long[1..], 1)], None),
        (vec![file(b"", 1)], Some(BadName)),
        (deep.clone(), None),
        (vec![folder(b".flotilla")], Some(ReservedName)),
        (vec![folder(b".Flotilla")], Some(ReservedName)),
        (vec![folder(b"a"), folder(b"a/.flotilla")], Some(ReservedName)),
        (vec![folder(b"a"), folder(b"a/b"), file(b"a/b/.FLOTILLA", 1)], Some(ReservedName)),
        (vec![folder(b"a"), folder(b"a/.flotilla2")], None),
        (vec![file(b"b", 1), file(b"a", 1)], Some(OutOfOrder)),
        (vec![file(b"a", 1), file(b"a", 1)], Some(OutOfOrder)),
        (vec![folder(b"a"), file(b"a-b", 1), file(b"a/b", 1)], Some(OutOfOrder)),
        (vec![folder(b"a"), file(b"a/b", 1), file(b"a-b", 1)], None),
        (vec![folder(b"a"), folder(b"a/b"), file(b"a/b/c", 1), file(b"a/b-c", 1), file(b"a0", 1)], None),
        (vec![file(b"a/b", 1)], Some(NoParent)),
        (vec![file(b"a", 1), file(b"a/b", 1)], Some(NoParent)),
        (vec![link(b"a", b"b"), file(b"a/b", 1)], Some(NoParent)),
        (vec![folder(b"a"), folder(b"a/b"), file(b"a/b2", 1), file(b"a/b2/x", 1)], Some(NoParent)),
        (vec![folder(b"a"), folder(b"a/bb"), file(b"a/b", 1)], Some(OutOfOrder)),
        (vec![folder(b"ab"), file(b"ac/x", 1)], Some(NoParent)),
        (vec![folder(b"a"), file(b"ab/x", 1)], Some(NoParent)),
        (vec![Entry { mode: 0o10000, ..file(b"a", 1) }], Some(BadMetadata)),
        (vec![Entry { mode: 1, ..link(b"a", b"b") }], Some(BadMetadata)),
        (
            vec![Entry { mtime: Mtime { seconds: 0, nanos: 1_000_000_000 }, ..file(b"a", 1) }],
            Some(BadMetadata),
        ),
        (vec![Entry { owner: owner(1, &"x".repeat(256)), ..file(b"a", 1) }], Some(BadMetadata)),
        (vec![Entry { owner: owner(1, "a:b"), ..file(b"a", 1) }], Some(BadMetadata)),
        (vec![Entry { owner: owner(u32::MAX, ""), ..link(b"a", b"b") }], Some(BadMetadata)),
        // Hard links.
        (vec![file(b"a", 1), hard_link(b"b", 0)], None),
        (vec![file(b"a", 1), hard_link(b"b", 1)], Some(BadHardLink)),
        (vec![hard_link(b"a", 1), file(b"b", 1)], Some(BadHardLink)),
        (vec![folder(b"a"), hard_link(b"b", 0)], Some(BadHardLink)),
        (vec![link(b"a", b"x"), hard_link(b"b", 0)], Some(BadHardLink)),
        (vec![file(b"a", 1), hard_link(b"b", 0), hard_link(b"c", 1)], Some(BadHardLink)),
        (vec![file(b"a", 1), hard_link(b"b", u64::MAX)], Some(BadHardLink)),
        (
            vec![file(b"a", 1), Entry { mtime: Mtime { seconds: 1, nanos: 0 }, ..hard_link(b"b", 0) }],
            Some(BadMetadata),
        ),
        // Holes.
        (vec![sparse(b"a", 10, &[(0, 10)])], Some(BadExtents)),
        (vec![sparse(b"a", 0, &[])], Some(BadExtents)),
        (vec![sparse(b"a", 10, &[(0, 0)])], Some(BadExtents)),
        (vec![sparse(b"a", 10, &[(2, 3), (5, 1)])], Some(BadExtents)),
        (vec![sparse(b"a", 10, &[(2, 3), (6, 5)])], Some(BadExtents)),
        (vec![sparse(b"a", 10, &[(2, 3), (6, 4)])], None),
        // Extended attributes.
        (vec![with_xattrs(vec![xattr(b"user.b", b""), xattr(b"user.a", b"")])], Some(BadXattrs)),
        (vec![with_xattrs(vec![xattr(b"user.b", b""), xattr(b"user.b", b"")])], Some(BadXattrs)),
        (vec![with_xattrs(vec![xattr(b"user.", b"")])], Some(BadXattrs)),
        (vec![with_xattrs(vec![xattr(b"trusted.overlay.opaque", b"y")])], Some(BadXattrs)),
        (vec![with_xattrs(vec![xattr(b"security.selinux", b"y")])], Some(BadXattrs)),
        (vec![with_xattrs(vec![xattr(&[&b"user."[..], &long].concat(), b"y")])], Some(BadXattrs)),
        (vec![with_xattrs(vec![xattr(b"user.big", &vec![0; XATTRS_LEN_MAX])])], Some(BadXattrs)),
        (vec![with_xattrs(many(XATTRS_MAX))], None),
        (vec![with_xattrs(many(XATTRS_MAX + 1))], Some(BadXattrs)),
        (vec![Entry { xattrs: vec![xattr(b"user.a", b"")], ..link(b"a", b"b") }], Some(BadXattrs)),
        (
            vec![file(b"a", 0), Entry { xattrs: vec![xattr(b"user.a", b"")], ..hard_link(b"b", 0) }],
            Some(BadXattrs),
        ),
    ];
    for (entries, rule) in cases {
        assert_eq!(broken_rule(&entries), rule, "{entries:?}");
    }
    let overflow = Entry {
        kind: Kind::File { size: 10, data: Some(vec![Extent { start: 5, len: u64::MAX }]) },
        ..file(b"a", 1)
    };
    assert!(matches!(Writer::default().push(&overflow), Err(ManifestError::Entry { rule: BadExtents, .. })));
    let long = file(b"a", FILE_LEN_MAX + 1);
    assert!(matches!(Writer::default().push(&long), Err(ManifestError::Entry { rule: BadMetadata, .. })));
    let wrong = encode([(file(b"a", 1), Vec::new())]);
    assert!(matches!(wrong, Err(ManifestError::Entry { rule: HashCount, .. })));
}

#[test]
fn the_largest_entry_stays_below_its_limit() {
    let step = 1 << 48;
    let data = (0..EXTENTS_MAX as u64).map(|i| Extent { start: i * step + step / 2, len: step / 4 });
    let path = [&[b'n'; 255][..]; 16].join(&b'/');
    let mut parents: Vec<_> = (1..16).map(|n| folder(&path[..256 * n - 1])).collect();
    parents.push(Entry {
        owner: owner(u32::MAX - 1, &"u".repeat(255)),
        kind: Kind::File { size: FILE_LEN_MAX, data: Some(data.collect()) },
        xattrs: vec![xattr(b"user.big", &vec![0; XATTRS_LEN_MAX - 8])],
        ..file(&path, 0)
    });
    let mut writer = Writer::default();
    let pages: Vec<_> = parents.iter().map(|entry| writer.push(entry).map_err(|e| e.to_string())).collect();
    let last = pages.last().expect("some").as_ref().expect("allowed").as_ref().expect("full");
    assert!((ENTRY_LEN_MAX / 2..ENTRY_LEN_MAX).contains(&last.len()), "{}", last.len());
}

#[test]
fn links_that_could_lead_out_are_refused() {
    let safe = |links: &[Entry]| broken_rule(links).is_none();
    assert!(safe(&[link(b"a", b"b")]));
    assert!(safe(&[link(b"a", b"./b//c")]));
    assert!(safe(&[folder(b"d"), folder(b"d/e"), link(b"d/e/l", b"../../x")]));
    assert!(safe(&[folder(b"d"), link(b"l", b"d/../x")]));
    assert!(safe(&[folder(b"d"), link(b"d/l", b"../z/y/../../x"), folder(b"z"), folder(b"z/y")]));
    for target in [&b"/etc"[..], b"..", b"../x", b"x/..", b"x/../y", b"a/../../x", b"", b"x\0"] {
        assert!(!safe(&[link(b"a", target)]), "{target:?}");
    }
    // `b` leads to the folder itself, so that `b/..` is its parent.
    assert!(!safe(&[link(b"b", b"."), folder(b"d"), link(b"d/l", b"../b/..")]));
    assert!(!safe(&[file(b"b", 1), folder(b"d"), link(b"d/l", b"../b/../c")]));
    let turns = |n| [folder(b"d"), link(b"l", &[&b"d/../".repeat(n)[..], b"x"].concat())];
    assert!(safe(&turns(LINK_TURNS_MAX)) && !safe(&turns(LINK_TURNS_MAX + 1)));
}

#[test]
fn any_bytes_decode_to_an_error_or_a_manifest() {
    let mut fancy = sparse(b"a", 200_000, &[(5, 10), (100_000, 50)]);
    fancy.owner = owner(1, "x");
    fancy.xattrs = vec![xattr(b"user.a", b"b")];
    let good = encoded(&[folder(b""), fancy, hard_link(b"b", 1), link(b"l", b"a/../b")].map(|mut e| {
        if e.path == b"l" {
            e.kind = Kind::Symlink { target: b"a".to_vec() };
        }
        e
    }));
    let good = good.expect("good");
    for cut in 0..good.len() {
        assert!(Manifest::open(&good[..cut]).is_err());
    }
    for i in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[i] ^= 1 << bit;
            let _ = read(&bytes);
        }
    }
    let mut other = good;
    other[0] = 1;
    assert_eq!(read(&other), Err(ManifestError::Version(1)));
}

/// A tree of some depth with names that nearly collide, in the order of a manifest.
fn trees() -> impl Strategy<Value = Vec<Entry>> {
    let name = prop::sample::select(vec!["a", "a-b", "a.b", "a0", "b", "\u{e9}", "long name of a file", "A"]);
    let path = prop::collection::vec(name, 1..6);
    let what = (0..6u64, 0..4u32, any::<bool>());
    prop::collection::btree_map(path, what, 0..200).prop_map(|tree| {
        let mut all: BTreeMap<Vec<&str>, Entry> = BTreeMap::new();
        for (path, (blocks, uid, fancy)) in &tree {
            for depth in 1..path.len() {
                let joined = path[..depth].join("/");
                all.insert(path[..depth].to_vec(), folder(joined.as_bytes()));
            }
            let joined = path.join("/");
            let mut entry = match blocks {
                0 => link(joined.as_bytes(), b"anywhere"),
                1 => sparse(joined.as_bytes(), 5 * B + 7, &[(B, 1), (3 * B, 5)]),
                n => file(joined.as_bytes(), (n - 2) * B + u64::from(*uid)),
            };
            if *uid > 0 {
                entry.owner = owner(*uid, "u");
            }
            if *fancy && *blocks > 0 {
                entry.xattrs = vec![xattr(b"user.k", joined.as_bytes())];
            }
            if !tree.keys().any(|other| other.len() > path.len() && other.starts_with(path)) {
                all.insert(path.clone(), entry);
            }
        }
        all.into_values().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_and_found(entries in trees()) {
        let bytes = encoded(&entries).expect("in order");
        let manifest = Manifest::open(&bytes).expect("good");
        prop_assert_eq!(read(&bytes).expect("good"), entries.clone());
        let mut block = 0;
        for (index, entry) in (0..).zip(&entries) {
            prop_assert_eq!(manifest.find(&entry.path).expect("readable"), Some((index, entry.clone())));
            let page = manifest.page(manifest.page_of_entry(index).expect("there")).expect("readable");
            prop_assert_eq!(page.entry(index), Some(entry));
            prop_assert_eq!(page.blocks_of_entry(index), block..block + entry.kind.blocks());
            for (nth, hash) in (0..).zip(hashes(entry, entry.path.len() as u8)) {
                let page = manifest.page(manifest.page_of_block(block).expect("there")).expect("readable");
                let place = page.place(block).expect("there");
                prop_assert_eq!((place.entry, Some((place.offset, place.len))), (index, entry.kind.block_at(nth)));
                prop_assert_eq!(manifest.hash(block).expect("readable"), hash);
                block += 1;
            }
            let beside = [&entry.path[..], b"!"].concat();
            prop_assert_eq!(manifest.find(&beside).expect("readable"), None);
        }
        prop_assert_eq!(manifest.blocks(), block);
    }

    #[test]
    fn damage_anywhere_is_survived(entries in trees(), hits in prop::collection::vec((any::<u32>(), any::<u8>()), 1..6)) {
        let mut bytes = encoded(&entries).expect("in order");
        for (at, byte) in hits {
            let at = at as usize % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(manifest) = Manifest::open(&bytes) {
            for page in 0..manifest.pages() {
                prop_assert!(manifest.page(page).is_ok());
            }
        }
    }
}

#[test]
fn the_head_stands_for_its_run_source_and_content() {
    let key = SigningKey::from_bytes(&[1; 32]);
    let public = key.verifying_key().to_bytes();
    let (run, source) = (RunId([2; 16]), AgentId::of_key(&public));
    let bytes = encoded(&[file(b"a", 70_000)]).expect("good");
    let manifest = Manifest::open(&bytes).expect("good");
    let hashes = manifest_block_hashes(&bytes);
    let head = ManifestHead::of(run, source, &manifest, &hashes);
    assert_eq!(tree_root(&hashes), head.root);
    assert_eq!(head.manifest_blocks(), 1);
    let signed = head.sign(&key);
    assert_eq!(ManifestHead::open(&signed, run, &public), Ok(head.clone()));
    assert!(head.counts(&manifest));
    assert_eq!(ManifestHead::open(&signed, RunId([3; 16]), &public), Err(HeadError::Bad));
    assert_eq!(ManifestHead::open(&signed, run, &[4; 32]), Err(HeadError::Bad));
    for wrong in [
        ManifestHead { blocks: 1 << 32, ..head.clone() },
        ManifestHead { bytes: head.blocks * B + 1, ..head.clone() },
        ManifestHead { entries: head.len + 1, ..head.clone() },
    ] {
        assert_eq!(ManifestHead::open(&wrong.sign(&key), run, &public), Err(HeadError::Bad), "{wrong:?}");
    }
    // An older agent's: told apart from a forged one, whatever follows the version.
    let older = Signed::sign(Domain::Manifest, vec![1, 2, 3], &key);
    assert_eq!(ManifestHead::open(&older, run, &public), Err(HeadError::Version(1)));
    assert_eq!(ManifestHead::open(&older, run, &[4; 32]), Err(HeadError::Bad));
}
