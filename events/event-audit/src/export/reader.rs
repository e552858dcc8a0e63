//! Reading an export: every byte is held against a signature, a hash or a rule before anything of it is handed out.
//!
//! The way down (`AUDIT_FORMAT.md` §6.3): the key list is signed by the root key that the origin is made of, the
//! newest checkpoint by one of its keys, the edge hashes lead to the checkpoint's root, each tile to a hash of the
//! tile above, each entry to a hash of its tile. A tile that does not fit is not the end: reading goes on under
//! *suspicion*, handing out nothing, until what stands below tells which of its hashes is the bad one.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

use super::Expectation;
use super::error::{EntryFault, ExportError, Section};
use super::layout::{self, END_BYTES, END_MAGIC, HEADER_BYTES, Header, MAGIC, VERSION};
use crate::checkpoint::SignedCheckpoint;
use crate::frontier::Frontier;
use crate::hash::{Hash, Head};
use crate::keys::KeyList;
use crate::ledger::hashes_from;
use crate::limits::{MAX_ENTRY_BYTES, MAX_EXPORT_CHECKPOINT_BYTES, MAX_EXPORT_CHECKPOINTS, MAX_NOTE_BYTES};
use crate::tile::{TILE_BYTES, TILE_HEIGHT, TILE_WIDTH, Tile, levels};

/// An entry that is what was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProvedEntry<'r> {
    /// Its position in the log, from 1.
    pub position: u64,
    /// The record.
    pub bytes: &'r [u8],
}

/// An export being read.
///
/// Reads exactly as many bytes as it needs, in small pieces: give it a buffered reader. Memory: the checkpoints (at
/// most 4 MiB), two tiles per level (at most 112 KiB), and one entry (at most 1 MiB).
#[derive(Clone, Debug)]
pub struct ExportReader<R> {
    input: R,
    offset: u64,
    keys: KeyList,
    checkpoints: Vec<SignedCheckpoint>,
    /// What the history has to amount to, in order of sizes.
    claims: Vec<Claim>,
    /// How many of them were found to be so.
    checked: usize,
    size: u64,
    /// The unfinished tiles, by level; taken when the reader gets there.
    edge: Vec<Vec<Hash>>,
    edge_suspicion: Option<Suspicion>,
    /// The tiles on the way down to the next entry, by level.
    way: Vec<Loaded>,
    /// The tree over all entries before the current level-0 tile.
    before: Frontier,
    next: u64,
    entry_bytes: u64,
    entry: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reading,
    Done,
    Bad,
}

/// A head that the history has to have had.
#[derive(Clone, Copy, Debug)]
struct Claim {
    head: Head,
    expected: bool,
}

#[derive(Clone, Debug, Default)]
struct Loaded {
    hashes: Vec<Hash>,
    suspicion: Option<Suspicion>,
}

/// Something does not fit, and what stands below may tell more.
#[derive(Clone, Copy, Debug)]
enum Suspicion {
    /// The hashes of this tile do not lead to the hash above.
    Tile { first: u64, last: u64, offset: u64 },
    /// The edge hashes do not lead to the newest checkpoint's root.
    Edge { claimed: Head, found: Head, offset: u64, intact: bool },
}

impl Suspicion {
    /// When nothing below it told more.
    fn verdict(self) -> ExportError {
        match self {
            Self::Tile { first, last, offset } => ExportError::Hashes { first, last, offset },
            Self::Edge { claimed, found, intact: true, .. } => {
                ExportError::Forked { claimed, found, agreed: 0, expected: false }
            }
            Self::Edge { offset, .. } => damaged(Section::Edge, offset, "its checksum does not hold"),
        }
    }
}

fn damaged(section: Section, offset: u64, what: impl Into<String>) -> ExportError {
    ExportError::Section { section, offset, what: what.into() }
}

impl<R: Read> ExportReader<R> {
    /// Reads and checks everything that stands before the entries.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn open(input: R, expectation: &Expectation) -> Result<Self, ExportError> {
        let mut input = Input { input, offset: 0 };
        let header = read_header(&mut input)?;
        let keys = read_keys(&mut input, header.key_bytes)?;
        if let Some(expected) = expectation.origin.as_ref().filter(|expected| *expected != keys.origin()) {
            return Err(ExportError::OtherOrigin {
                expected: expected.clone(),
                found: keys.origin().to_owned(),
            });
        }
        let checkpoints = read_checkpoints(&mut input, &header, &keys)?;
        let size = header.entries;
        let newest = *checkpoints.last().map(SignedCheckpoint::head).unwrap_or(&Head::of_nothing());
        let claims = claims(&checkpoints, expectation, newest)?;
        let (edge, edge_suspicion) = read_edge(&mut input, newest)?;
        let mut reader = Self {
            input: input.input,
            offset: input.offset,
            keys,
            checkpoints,
            claims,
            checked: 0,
            size,
            edge,
            edge_suspicion,
            way: vec![Loaded::default(); usize::from(levels(size))],
            before: Frontier::new(),
            next: 0,
            entry_bytes: 0,
            entry: Vec::new(),
            state: State::Reading,
        };
        // Claims about the empty history.
        reader.check_claims(&[])?;
        Ok(reader)
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The keys that sign this log.
    pub fn keys(&self) -> &KeyList {
        &self.keys
    }

    /// The checkpoints, oldest first. The signatures of all of them hold; that they belong to this history is known
    /// once the entries they cover have been read.
    pub fn checkpoints(&self) -> &[SignedCheckpoint] {
        &self.checkpoints
    }

    /// The newest checkpoint, which covers everything.
    pub fn newest(&self) -> &SignedCheckpoint {
        self.checkpoints.last().expect("an export without checkpoints is refused")
    }

    /// The next entry, proved; `None` once the end was read and is right.
    ///
    /// # Errors
    /// [`ExportError`]; after one, [`ExportError::Spent`].
    pub fn next_entry(&mut self) -> Result<Option<ProvedEntry<'_>>, ExportError> {
        match self.state {
            State::Done => return Ok(None),
            State::Bad => return Err(ExportError::Spent),
            // Until this call is through.
            State::Reading => self.state = State::Bad,
        }
        loop {
            if self.next == self.size {
                self.read_end()?;
                self.state = State::Done;
                return Ok(None);
            }
            self.read_tiles()?;
            self.read_entry()?;
            self.next += 1;
            if self.way.iter().all(|loaded| loaded.suspicion.is_none()) {
                self.state = State::Reading;
                return Ok(Some(ProvedEntry { position: self.next, bytes: &self.entry }));
            }
        }
    }

    /// Reads the tiles that begin with the next entry, from the top down.
    fn read_tiles(&mut self) -> Result<(), ExportError> {
        for tile in layout::tiles_at(self.next, self.size) {
            let level = usize::from(tile.level);
            // Nothing below the tile before this one told more.
            if let Some(suspicion) = self.way[level].suspicion {
                return Err(suspicion.verdict());
            }
            self.way[level] = if tile.is_full() {
                self.read_tile(tile)?
            } else {
                Loaded { hashes: std::mem::take(&mut self.edge[level]), suspicion: self.edge_suspicion }
            };
            // Edge hashes that are whole and lead elsewhere are another history: the claims tell where it parts.
            let meant = |suspicion| matches!(suspicion, Suspicion::Edge { intact: true, .. });
            if tile.level == 0 && self.way[0].suspicion.is_none_or(meant) {
                let leaves = self.way[0].hashes.clone();
                self.check_claims(&leaves)?;
            }
        }
        Ok(())
    }

    fn read_tile(&mut self, tile: Tile) -> Result<Loaded, ExportError> {
        let offset = self.offset;
        let mut bytes = [0; TILE_BYTES];
        self.read_exact(&mut bytes)?;
        let hashes = hashes_from(&bytes, TILE_WIDTH).expect("a tile's bytes are a tile's hashes");
        let above = &self.way[usize::from(tile.level) + 1];
        let mut loaded = Loaded { suspicion: None, hashes };
        if Hash::over(&loaded.hashes) != above.hashes[(tile.index % TILE_WIDTH as u64) as usize] {
            let span = 1 << Tile::shift(tile.level + 1);
            let suspicion =
                Suspicion::Tile { first: tile.index * span + 1, last: (tile.index + 1) * span, offset };
            if above.suspicion.is_some() {
                // The tile above was suspected, and this is the one of its hashes that is not borne out.
                return Err(suspicion.verdict());
            }
            loaded.suspicion = Some(suspicion);
        }
        Ok(loaded)
    }

    /// Holds claims about histories that end within a level-0 tile against it.
    fn check_claims(&mut self, leaves: &[Hash]) -> Result<(), ExportError> {
        let reached = self.before.size() + leaves.len() as u64;
        while let Some(claim) = self.claims.get(self.checked).filter(|claim| claim.head.size <= reached) {
            let mut tree = self.before.clone();
            let within = (claim.head.size - tree.size()) as usize;
            leaves[..within].iter().for_each(|leaf| tree.push(*leaf));
            if tree.root() != claim.head.root {
                // By the same source: the other may speak of the other history.
                let mut borne_out = self.claims[..self.checked].iter().rev();
                let last = borne_out.find(|other| other.expected == claim.expected);
                let agreed = last.map_or(0, |last| last.head.size);
                let (claimed, expected) = (claim.head, claim.expected);
                return Err(ExportError::Forked { claimed, found: tree.head(), agreed, expected });
            }
            self.checked += 1;
        }
        if leaves.len() == TILE_WIDTH {
            self.before.push_subtree(TILE_HEIGHT, Hash::over(leaves));
        }
        Ok(())
    }

    fn read_entry(&mut self) -> Result<(), ExportError> {
        let offset = self.offset;
        let bad = |fault| ExportError::Entry { position: self.next + 1, offset, fault };
        let mut length = [0; 4];
        read_exact(&mut self.input, &mut self.offset, &mut length, Some(self.next + 1))?;
        let bytes = u32::from_le_bytes(length);
        if bytes as usize > MAX_ENTRY_BYTES {
            return Err(bad(EntryFault::Length { bytes }));
        }
        self.entry.resize(bytes as usize, 0);
        read_exact(&mut self.input, &mut self.offset, &mut self.entry, Some(self.next + 1))?;
        self.entry_bytes += u64::from(bytes);
        let leaf = Hash::leaf(&self.entry);
        let slot = (self.next % TILE_WIDTH as u64) as usize;
        if leaf == self.way[0].hashes[slot] {
            return Ok(());
        }
        let fault = if self.would_fit(slot, leaf) { EntryFault::ListedHash } else { EntryFault::Content };
        Err(bad(fault))
    }

    /// Whether a suspected level-0 tile leads where it has to with this leaf instead of the listed one.
    fn would_fit(&self, slot: usize, leaf: Hash) -> bool {
        let Loaded { hashes, suspicion: Some(suspicion) } = &self.way[0] else { return false };
        let mut hashes = hashes.clone();
        hashes[slot] = leaf;
        match suspicion {
            Suspicion::Tile { .. } => {
                let index = self.next / TILE_WIDTH as u64;
                self.way[1].hashes[(index % TILE_WIDTH as u64) as usize] == Hash::over(&hashes)
            }
            Suspicion::Edge { claimed, .. } => {
                let mut tree = self.before.clone();
                hashes.iter().for_each(|leaf| tree.push(*leaf));
                tree.head() == *claimed
            }
        }
    }

    fn read_end(&mut self) -> Result<(), ExportError> {
        if let Some(suspicion) = self.way.iter().find_map(|loaded| loaded.suspicion).or(self.edge_suspicion) {
            return Err(suspicion.verdict());
        }
        let offset = self.offset;
        let mut end = [0; END_BYTES];
        read_exact(&mut self.input, &mut self.offset, &mut end, None)?;
        let bad = |what| Err(ExportError::End { offset, what });
        if end[..8] != END_MAGIC {
            return bad("something else stands where the last entry has ended");
        }
        if end != layout::end(self.size, self.entry_bytes) {
            return bad("its counts are not those of the entries");
        }
        let mut more = [0];
        match read_exact(&mut self.input, &mut self.offset, &mut more, None) {
            Err(ExportError::Cut { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => bad("something follows it"),
        }
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ExportError> {
        read_exact(&mut self.input, &mut self.offset, bytes, Some(self.next + 1))
    }
}

/// What is read before there is a reader.
struct Input<R> {
    input: R,
    offset: u64,
}

impl<R: Read> Input<R> {
    /// A section and whether its checksum holds.
    fn section(&mut self, bytes: usize) -> Result<(Vec<u8>, bool), ExportError> {
        let mut section = vec![0; bytes];
        read_exact(&mut self.input, &mut self.offset, &mut section, None)?;
        let mut checksum = [0; 32];
        read_exact(&mut self.input, &mut self.offset, &mut checksum, None)?;
        let holds = Sha256::digest(&section).as_slice() == checksum;
        Ok((section, holds))
    }

    fn intact(&mut self, section: Section, bytes: usize) -> Result<Vec<u8>, ExportError> {
        let offset = self.offset;
        match self.section(bytes)? {
            (bytes, true) => Ok(bytes),
            (_, false) => Err(damaged(section, offset, "its checksum does not hold")),
        }
    }
}

fn read_exact(
    input: &mut impl Read,
    offset: &mut u64,
    mut bytes: &mut [u8],
    entry: Option<u64>,
) -> Result<(), ExportError> {
    while !bytes.is_empty() {
        match input.read(bytes) {
            Ok(0) => return Err(ExportError::Cut { offset: *offset, entry }),
            Ok(count) => {
                *offset += count as u64;
                bytes = &mut bytes[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(ExportError::Read { offset: *offset, source }),
        }
    }
    Ok(())
}

fn read_header(input: &mut Input<impl Read>) -> Result<Header, ExportError> {
    let (bytes, holds) = match input.section(HEADER_BYTES) {
        // Too short even for a header: rather no export than a cut one.
        Err(ExportError::Cut { offset, .. }) if offset < MAGIC.len() as u64 => {
            return Err(ExportError::NotAnExport);
        }
        section => section?,
    };
    let bytes: [u8; HEADER_BYTES] = bytes.try_into().expect("as many bytes as asked for");
    if bytes[..8] != MAGIC {
        return Err(ExportError::NotAnExport);
    }
    if !holds {
        return Err(damaged(Section::Header, 0, "its checksum does not hold"));
    }
    match u16::from_le_bytes([bytes[8], bytes[9]]) {
        VERSION => Header::parse(&bytes).map_err(|what| damaged(Section::Header, 0, what)),
        found => Err(ExportError::Version { found }),
    }
}

fn read_keys(input: &mut Input<impl Read>, bytes: u32) -> Result<KeyList, ExportError> {
    if bytes as usize > MAX_NOTE_BYTES {
        return Err(damaged(Section::Keys, input.offset, format!("it claims to have {bytes} bytes")));
    }
    KeyList::open(&input.intact(Section::Keys, bytes as usize)?).map_err(ExportError::Keys)
}

fn read_checkpoints(
    input: &mut Input<impl Read>,
    header: &Header,
    keys: &KeyList,
) -> Result<Vec<SignedCheckpoint>, ExportError> {
    let offset = input.offset;
    let bad = |what: &str| damaged(Section::Checkpoints, offset, what);
    if header.checkpoint_bytes as usize > MAX_EXPORT_CHECKPOINT_BYTES {
        return Err(bad(&format!("they claim to have {} bytes", header.checkpoint_bytes)));
    }
    let bytes = input.intact(Section::Checkpoints, header.checkpoint_bytes as usize)?;
    let mut rest = bytes.as_slice();
    let mut checkpoints: Vec<SignedCheckpoint> = Vec::new();
    while !rest.is_empty() {
        let (note, after) = rest
            .split_first_chunk()
            .and_then(|(length, after)| after.split_at_checked(u32::from_le_bytes(*length) as usize))
            .ok_or_else(|| bad("one of them does not end"))?;
        rest = after;
        if checkpoints.len() == MAX_EXPORT_CHECKPOINTS {
            return Err(bad("there are too many"));
        }
        let number = checkpoints.len() + 1;
        let checkpoint = SignedCheckpoint::open(note, keys.origin(), keys.log_keys())
            .map_err(|source| ExportError::Checkpoint { number, source })?;
        if checkpoints.last().is_some_and(|before| before.head().size >= checkpoint.head().size) {
            return Err(bad("they are not in order"));
        }
        checkpoints.push(checkpoint);
    }
    match checkpoints.last() {
        Some(newest) if newest.head().size == header.entries => Ok(checkpoints),
        _ => Err(bad("the newest one does not cover exactly the entries of the export")),
    }
}

/// Everything the history has to amount to, in order of sizes.
fn claims(
    checkpoints: &[SignedCheckpoint],
    expectation: &Expectation,
    newest: Head,
) -> Result<Vec<Claim>, ExportError> {
    if let Some(seen) = expectation.heads.iter().find(|head| head.size > newest.size) {
        return Err(ExportError::Older { seen: *seen, found: newest });
    }
    let signed = checkpoints.iter().map(|checkpoint| Claim { head: *checkpoint.head(), expected: false });
    let expected = expectation.heads.iter().map(|head| Claim { head: *head, expected: true });
    let mut claims: Vec<Claim> = signed.chain(expected).collect();
    claims.sort_by_key(|claim| claim.head.size);
    Ok(claims)
}

/// The unfinished tiles by level, and whether something is wrong with them.
#[allow(clippy::type_complexity)]
fn read_edge(
    input: &mut Input<impl Read>,
    newest: Head,
) -> Result<(Vec<Vec<Hash>>, Option<Suspicion>), ExportError> {
    let offset = input.offset;
    let (bytes, intact) = input.section(layout::edge_bytes(newest.size))?;
    let mut edge = vec![Vec::new(); usize::from(levels(newest.size))];
    let mut tree = Frontier::new();
    let mut rest = bytes.as_slice();
    for tile in layout::edge_tiles(newest.size) {
        let (hashes, after) = rest.split_at(usize::from(tile.width) * Hash::BYTES);
        rest = after;
        let hashes = hashes_from(hashes, usize::from(tile.width)).expect("as many as there are bytes for");
        hashes.iter().for_each(|hash| tree.push_subtree(Tile::shift(tile.level), *hash));
        edge[usize::from(tile.level)] = hashes;
    }
    match (tree.head() == newest, intact) {
        (true, true) => Ok((edge, None)),
        // The hashes are right, so it is the checksum that is not.
        (true, false) => Err(damaged(Section::Edge, offset, "its checksum is wrong, its hashes are right")),
        (false, intact) => {
            Ok((edge, Some(Suspicion::Edge { claimed: newest, found: tree.head(), offset, intact })))
        }
    }
}
