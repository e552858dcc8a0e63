//! The manifest: what a source has, entry by entry, and the signed head that stands for it.
//!
//! A manifest is hostile input until [`Manifest::decode`] has taken it: sorted and unique paths, no
//! way out of the folder by names or symlinks, no file below a symlink, hash counts that match sizes,
//! all limits held (`agent_proto::limits`). Paths are bytes, because file names are.

use alloc::vec::Vec;
use core::fmt;

use agent_proto::limits::{BLOCK_LEN, MANIFEST_LEN_MAX, NAME_LEN_MAX, PATH_LEN_MAX};
use event_schema::{AgentId, DecodeError, Domain, RunId, Signed, decode_exact, encode};
use serde::{Deserialize, Serialize};

use crate::merkle::{Hash, block_hash, tree_root};

/// Version of the encoded manifest, its first byte.
const MANIFEST_VERSION: u8 = 1;

/// The folder in a destination where unfinished files wait; no entry may have this name at the top.
pub const STAGING_FOLDER: &[u8] = b".flotilla";

/// A file, folder or symlink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Path inside the folder, `/` between names; empty for the folder itself.
    pub path: Vec<u8>,
    /// Permission bits, `0o7777` at most. Symlinks have none: 0.
    pub mode: u32,
    /// Modification time.
    pub mtime: Mtime,
    /// What it is.
    pub kind: Kind,
}

/// Modification time since 1970-01-01 UTC, as `stat` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mtime {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// Hash of each of its blocks.
        blocks: Vec<Hash>,
    },
    /// A folder.
    Folder,
    /// A symlink that leads nowhere outside the folder.
    Symlink {
        /// Where it points, as stored in the link.
        target: Vec<u8>,
    },
}

/// Where a content block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Index of its file in [`Manifest::entries`].
    pub entry: usize,
    /// Position in the file.
    pub offset: u64,
    /// Bytes, 1 to [`BLOCK_LEN`].
    pub len: u32,
    /// What it must hash to.
    pub hash: Hash,
}

/// Why a list of entries is no manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestError {
    /// The bytes are not an encoded manifest.
    Decode(DecodeError),
    /// Longer than [`MANIFEST_LEN_MAX`] or beyond 2^48 blocks.
    TooLarge,
    /// An entry breaks a rule.
    Entry {
        /// Its path.
        path: Vec<u8>,
        /// Which rule.
        rule: EntryRule,
    },
}

/// A rule that an entry breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryRule {
    /// An empty name, `.`, `..`, a NUL, a name over 255 or path over 4096 bytes.
    BadName,
    /// A name reserved for unfinished files.
    ReservedName,
    /// Not after its predecessor in byte order, or there twice.
    OutOfOrder,
    /// Its parent is no folder of the manifest.
    NoParent,
    /// The symlink is absolute or leads out of the folder.
    UnsafeLink,
    /// The number of hashes does not fit the size.
    HashCount,
    /// Mode or time out of range.
    BadMetadata,
}

impl fmt::Display for EntryRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadName => "the name is not allowed",
            Self::ReservedName => "the name is reserved",
            Self::OutOfOrder => "the entry is out of order or there twice",
            Self::NoParent => "the parent is no folder",
            Self::UnsafeLink => "the symlink leads out of the folder",
            Self::HashCount => "the number of block hashes does not fit the size",
            Self::BadMetadata => "mode or time is out of range",
        })
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode(e) => e.fmt(f),
            Self::TooLarge => f.write_str("the manifest is too large"),
            Self::Entry { path, rule } => write!(f, "{}: {rule}", path.escape_ascii()),
        }
    }
}

impl core::error::Error for ManifestError {}

/// A checked list of entries with its content blocks numbered through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    entries: Vec<Entry>,
    /// Number of the first content block at or after each entry.
    first_block: Vec<u64>,
    blocks: u64,
    bytes: u64,
}

/// Number of blocks of a file of `size` bytes.
pub fn blocks_of(size: u64) -> u64 {
    size.div_ceil(u64::from(BLOCK_LEN))
}

impl Manifest {
    /// Checks entries that are sorted by path.
    ///
    /// # Errors
    /// The first entry that breaks a rule.
    pub fn from_entries(entries: Vec<Entry>) -> Result<Self, ManifestError> {
        let (mut first_block, mut blocks, mut bytes) = (Vec::with_capacity(entries.len()), 0u64, 0u64);
        for (i, entry) in entries.iter().enumerate() {
            let before = i.checked_sub(1).map(|i| entries[i].path.as_slice());
            check_entry(&entries[..i], before, entry)
                .map_err(|rule| ManifestError::Entry { path: entry.path.clone(), rule })?;
            first_block.push(blocks);
            if let Kind::File { size, .. } = entry.kind {
                blocks += blocks_of(size);
                bytes = bytes.checked_add(size).ok_or(ManifestError::TooLarge)?;
            }
            if blocks >= 1 << 48 {
                return Err(ManifestError::TooLarge);
            }
        }
        // Links are checked last: whether `..` may follow a name depends on all folders.
        for entry in &entries {
            if let Kind::Symlink { target } = &entry.kind
                && !link_stays_inside(&entries, &entry.path, target)
            {
                return Err(ManifestError::Entry { path: entry.path.clone(), rule: EntryRule::UnsafeLink });
            }
        }
        Ok(Self { entries, first_block, blocks, bytes })
    }

    /// The entries, sorted by path.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Number of content blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Numbers of the content blocks of an entry; empty for what has none.
    pub fn blocks_of_entry(&self, entry: usize) -> core::ops::Range<u64> {
        let first = self.first_block[entry];
        match &self.entries[entry].kind {
            Kind::File { blocks, .. } => first..first + blocks.len() as u64,
            _ => first..first,
        }
    }

    /// Where the content block with this number lies.
    pub fn block(&self, index: u64) -> Option<BlockInfo> {
        if index >= self.blocks {
            return None;
        }
        // The last entry that starts at or before the block; entries without blocks share a start
        // with their successor, which comes later and so is found.
        let entry = self.first_block.partition_point(|&first| first <= index) - 1;
        let Kind::File { size, blocks } = &self.entries[entry].kind else {
            unreachable!("only files move the block numbers on")
        };
        let nth = index - self.first_block[entry];
        let offset = nth * u64::from(BLOCK_LEN);
        let len = (size - offset).min(u64::from(BLOCK_LEN)) as u32;
        Some(BlockInfo { entry, offset, len, hash: blocks[nth as usize] })
    }

    /// The byte form.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = alloc::vec![MANIFEST_VERSION];
        bytes.extend(encode(&self.entries));
        bytes
    }

    /// Reads and checks the byte form.
    ///
    /// # Errors
    /// If the bytes are not a manifest, or one that breaks a rule.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        match bytes.split_first() {
            Some((&MANIFEST_VERSION, body)) => {
                Self::from_entries(decode_exact("Manifest", body).map_err(ManifestError::Decode)?)
            }
            Some((&version, _)) => {
                Err(ManifestError::Decode(DecodeError::Unknown { what: "Manifest", kind: 0, version }))
            }
            None => Err(ManifestError::Decode(DecodeError::Malformed { what: "Manifest" })),
        }
    }
}

/// Hashes of the blocks of an encoded manifest.
pub fn manifest_block_hashes(encoded: &[u8]) -> Vec<Hash> {
    encoded.chunks(BLOCK_LEN as usize).map(block_hash).collect()
}

/// What the source signs: all that others need to check every byte of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestHead {
    /// Version of this shape: 1.
    pub version: u8,
    /// The run it is for.
    pub run: RunId,
    /// Who has the content and signs.
    pub source: AgentId,
    /// Bytes of the encoded manifest.
    pub len: u64,
    /// Merkle root over the encoded manifest's blocks.
    pub root: Hash,
    /// Number of entries.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of content blocks.
    pub blocks: u64,
}

impl ManifestHead {
    /// The head of a manifest and the hashes of its blocks.
    ///
    /// # Errors
    /// If the encoded manifest is longer than [`MANIFEST_LEN_MAX`].
    pub fn of(
        run: RunId,
        source: AgentId,
        manifest: &Manifest,
        encoded: &[u8],
    ) -> Result<(Self, Vec<Hash>), ManifestError> {
        if encoded.len() as u64 > MANIFEST_LEN_MAX {
            return Err(ManifestError::TooLarge);
        }
        let hashes = manifest_block_hashes(encoded);
        let head = Self {
            version: 1,
            run,
            source,
            len: encoded.len() as u64,
            root: tree_root(&hashes),
            entries: manifest.entries.len() as u64,
            bytes: manifest.bytes,
            blocks: manifest.blocks,
        };
        Ok((head, hashes))
    }

    /// Signs it with the source agent's key.
    pub fn sign(&self, key: &ed25519_dalek::SigningKey) -> Signed {
        Signed::sign(Domain::Manifest, encode(self), key)
    }

    /// Opens a signed head for `run`, signed by the source that holds `source_key`.
    ///
    /// # Errors
    /// If the signature does not hold, it is for another run or source, or its numbers break a limit.
    pub fn open(signed: &Signed, run: RunId, source_key: &[u8; 32]) -> Result<Self, DecodeError> {
        let malformed = DecodeError::Malformed { what: "ManifestHead" };
        let bytes = signed.verify(Domain::Manifest, source_key).map_err(|_| malformed.clone())?;
        let head: Self = decode_exact("ManifestHead", bytes)?;
        let fits = head.version == 1
            && head.run == run
            && head.source == AgentId::of_key(source_key)
            && (1..=MANIFEST_LEN_MAX).contains(&head.len)
            // Each block has its hash in the manifest: nobody is to make room for more than can be.
            && head.blocks <= head.len / size_of::<Hash>() as u64
            && head.bytes <= head.blocks.saturating_mul(u64::from(BLOCK_LEN))
            && head.entries <= head.len;
        if fits { Ok(head) } else { Err(malformed) }
    }

    /// Number of blocks of the encoded manifest.
    pub fn manifest_blocks(&self) -> u64 {
        blocks_of(self.len)
    }

    /// Whether a decoded manifest is the one this head counted.
    pub fn counts(&self, manifest: &Manifest) -> bool {
        self.entries == manifest.entries.len() as u64
            && self.bytes == manifest.bytes
            && self.blocks == manifest.blocks
    }
}

/// Whether a path may stand in a manifest.
pub fn check_path(path: &[u8]) -> Result<(), EntryRule> {
    if path.is_empty() {
        return Ok(());
    }
    if path.len() > PATH_LEN_MAX {
        return Err(EntryRule::BadName);
    }
    for (i, name) in path.split(|&b| b == b'/').enumerate() {
        if name.is_empty() || name == b"." || name == b".." || name.contains(&0) || name.len() > NAME_LEN_MAX
        {
            return Err(EntryRule::BadName);
        }
        if i == 0 && name.eq_ignore_ascii_case(STAGING_FOLDER) {
            return Err(EntryRule::ReservedName);
        }
    }
    Ok(())
}

fn check_entry(earlier: &[Entry], before: Option<&[u8]>, entry: &Entry) -> Result<(), EntryRule> {
    check_path(&entry.path)?;
    if before.is_some_and(|before| before >= entry.path.as_slice()) {
        return Err(EntryRule::OutOfOrder);
    }
    if let Some(slash) = entry.path.iter().rposition(|&b| b == b'/')
        && !is_folder(earlier, &entry.path[..slash])
    {
        return Err(EntryRule::NoParent);
    }
    if entry.path.is_empty() && entry.kind != Kind::Folder {
        return Err(EntryRule::BadName);
    }
    if entry.mode > 0o7777 || entry.mtime.nanos >= 1_000_000_000 {
        return Err(EntryRule::BadMetadata);
    }
    match &entry.kind {
        Kind::File { size, blocks } if blocks_of(*size) != blocks.len() as u64 => Err(EntryRule::HashCount),
        _ => Ok(()),
    }
}

fn is_folder(entries: &[Entry], path: &[u8]) -> bool {
    path.is_empty()
        || entries
            .binary_search_by(|e| e.path.as_slice().cmp(path))
            .is_ok_and(|i| entries[i].kind == Kind::Folder)
}

/// Whether following the link can never leave the folder, whatever else the manifest holds: it is
/// relative, and `..` is taken only from real folders of the manifest, never above the top.
///
/// Taking `..` after a name that is a symlink would depend on where that one leads.
pub fn link_stays_inside(entries: &[Entry], path: &[u8], target: &[u8]) -> bool {
    if target.is_empty() || target.len() > PATH_LEN_MAX || target[0] == b'/' || target.contains(&0) {
        return false;
    }
    let parent = path.iter().rposition(|&b| b == b'/').map_or(&[][..], |slash| &path[..slash]);
    let mut at: Vec<u8> = parent.to_vec();
    let mut real = true;
    for name in target.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." if !real || at.is_empty() => return false,
            b".." => at.truncate(at.iter().rposition(|&b| b == b'/').unwrap_or(0)),
            name => {
                if !at.is_empty() {
                    at.push(b'/');
                }
                at.extend_from_slice(name);
                real = real && is_folder(entries, &at);
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use ed25519_dalek::SigningKey;

    fn entry(path: &[u8], kind: Kind) -> Entry {
        Entry { path: path.to_vec(), mode: 0o644, mtime: Mtime { seconds: 1, nanos: 2 }, kind }
    }

    fn file(path: &[u8], size: u64) -> Entry {
        let blocks = (0..blocks_of(size)).map(|i| [i as u8; 32]).collect();
        entry(path, Kind::File { size, blocks })
    }

    fn folder(path: &[u8]) -> Entry {
        entry(path, Kind::Folder)
    }

    fn link(path: &[u8], target: &[u8]) -> Entry {
        entry(path, Kind::Symlink { target: target.to_vec() })
    }

    fn broken_rule(entries: Vec<Entry>) -> Option<EntryRule> {
        match Manifest::from_entries(entries) {
            Ok(_) => None,
            Err(ManifestError::Entry { rule, .. }) => Some(rule),
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn blocks_are_numbered_through_files_in_order() {
        let b = u64::from(BLOCK_LEN);
        let manifest = Manifest::from_entries(vec![
            folder(b""),
            file(b"a", 0),
            file(b"b", b + 1),
            folder(b"c"),
            file(b"c/d", 5),
            file(b"e", 0),
        ])
        .expect("good entries");
        assert_eq!((manifest.blocks(), manifest.bytes()), (3, b + 6));
        let at = |i| manifest.block(i).map(|b| (b.entry, b.offset, b.len));
        assert_eq!(at(0), Some((2, 0, BLOCK_LEN)));
        assert_eq!(at(1), Some((2, b, 1)));
        assert_eq!(at(2), Some((4, 0, 5)));
        assert_eq!(at(3), None);
        assert_eq!(manifest.blocks_of_entry(2), 0..2);
        assert!(manifest.blocks_of_entry(5).is_empty());
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }

    #[test]
    fn hostile_entries_are_refused() {
        use EntryRule::*;
        let long = vec![b'x'; 256];
        let cases: Vec<(Vec<Entry>, Option<EntryRule>)> = vec![
            (vec![file(b"ok", 1), file("ok\n\u{e9}".as_bytes(), 1), file(b"ok\xff", 1)], None),
            (vec![file(b"-rf", 1), file(b"ok\n", 1), file(b"ok\xff", 1)], None),
            (vec![file(b"..", 1)], Some(BadName)),
            (vec![file(b"/etc/passwd", 1)], Some(BadName)),
            (vec![folder(b"a"), file(b"a/../b", 1)], Some(BadName)),
            (vec![folder(b"a"), file(b"a//b", 1)], Some(BadName)),
            (vec![folder(b"a"), file(b"a/", 1)], Some(BadName)),
            (vec![file(b"a\0b", 1)], Some(BadName)),
            (vec![file(&long, 1)], Some(BadName)),
            (vec![file(&long[1..], 1)], None),
            (vec![file(b"", 1)], Some(BadName)),
            (vec![folder(b".flotilla")], Some(ReservedName)),
            (vec![folder(b".Flotilla")], Some(ReservedName)),
            (vec![folder(b"a"), folder(b"a/.flotilla")], None),
            (vec![file(b"b", 1), file(b"a", 1)], Some(OutOfOrder)),
            (vec![file(b"a", 1), file(b"a", 1)], Some(OutOfOrder)),
            (vec![file(b"a/b", 1)], Some(NoParent)),
            (vec![file(b"a", 1), file(b"a/b", 1)], Some(NoParent)),
            (vec![link(b"a", b"b"), file(b"a/b", 1)], Some(NoParent)),
            (vec![folder(b"a"), file(b"a-b", 1), file(b"a/b", 1)], None),
            (vec![Entry { mode: 0o10000, ..file(b"a", 1) }], Some(BadMetadata)),
            (
                vec![Entry { mtime: Mtime { seconds: 0, nanos: 1_000_000_000 }, ..file(b"a", 1) }],
                Some(BadMetadata),
            ),
            (vec![entry(b"a", Kind::File { size: 1, blocks: vec![] })], Some(HashCount)),
            (vec![entry(b"a", Kind::File { size: u64::MAX, blocks: vec![[0; 32]] })], Some(HashCount)),
        ];
        for (entries, rule) in cases {
            assert_eq!(broken_rule(entries.clone()), rule, "{entries:?}");
        }
    }

    #[test]
    fn links_that_could_lead_out_are_refused() {
        let safe = |links: Vec<Entry>| broken_rule(links).is_none();
        assert!(safe(vec![link(b"a", b"b")]));
        assert!(safe(vec![link(b"a", b"./b//c")]));
        assert!(safe(vec![folder(b"d"), folder(b"d/e"), link(b"d/e/l", b"../../x")]));
        assert!(safe(vec![folder(b"d"), link(b"l", b"d/../x")]));
        for target in [&b"/etc"[..], b"..", b"../x", b"x/..", b"x/../y", b"a/../../x", b"", b"x\0"] {
            assert!(!safe(vec![link(b"a", target)]), "{target:?}");
        }
        // `b` leads to the folder itself, so that `b/..` is its parent.
        assert!(!safe(vec![link(b"b", b"."), folder(b"d"), link(b"d/l", b"../b/..")]));
    }

    #[test]
    fn any_bytes_decode_to_an_error_or_a_manifest() {
        let good = Manifest::from_entries(vec![folder(b""), file(b"a", 100_000), link(b"l", b"a")])
            .expect("good")
            .encode();
        for cut in 0..good.len() {
            assert!(Manifest::decode(&good[..cut]).is_err());
        }
        for i in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[i] ^= 1 << bit;
                let _ = Manifest::decode(&bytes);
            }
        }
    }

    #[test]
    fn the_head_stands_for_its_run_source_and_content() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let public = key.verifying_key().to_bytes();
        let (run, source) = (RunId([2; 16]), AgentId::of_key(&public));
        let manifest = Manifest::from_entries(vec![file(b"a", 70_000)]).expect("good");
        let encoded = manifest.encode();
        let (head, hashes) = ManifestHead::of(run, source, &manifest, &encoded).expect("small");
        assert_eq!(tree_root(&hashes), head.root);
        assert_eq!(head.manifest_blocks(), 1);
        let signed = head.sign(&key);
        assert_eq!(ManifestHead::open(&signed, run, &public), Ok(head.clone()));
        assert!(head.counts(&manifest));
        assert!(ManifestHead::open(&signed, RunId([3; 16]), &public).is_err());
        assert!(ManifestHead::open(&signed, run, &[4; 32]).is_err());
        for wrong in [
            ManifestHead { blocks: 1 << 32, ..head.clone() },
            ManifestHead { bytes: head.blocks * u64::from(BLOCK_LEN) + 1, ..head.clone() },
            ManifestHead { entries: head.len + 1, ..head },
        ] {
            assert!(ManifestHead::open(&wrong.sign(&key), run, &public).is_err(), "{wrong:?}");
        }
    }
}
