//! Snapshots in the data folder: written now and then, thinned out, and never believed without a check.
//!
//! A file says which position it shows, the hash of the record there, the state's own hash and a checksum over all of
//! it. One that is damaged, of another program's version or of another log is passed over with a warning: the log is
//! then folded from an older one, or from its beginning.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use control_core::form;
use control_core::snapshot::{Snapshot, SnapshotRef, VERSION};
use event_audit::Hash;
use event_log::{EventLog, Position, ReadError, ReadLimit};
use event_schema::Timestamp;
use sha2::{Digest, Sha256};

use crate::archive::BaseNote;
use crate::at::At;
use crate::privacy::{KeyStoreError, Ring};

/// First bytes of a snapshot.
const MAGIC: [u8; 8] = *b"FLOTSNP\n";

/// Bytes before the payload: magic, version, form, five zeros, position, time, leaf hash, state hash, payload's length.
const HEAD_BYTES: usize = 8 + 2 + 1 + 5 + 8 + 8 + 32 + 32 + 8;

/// Snapshots that are kept, spread evenly over the log's length.
const KEPT_MAX: usize = 48;

/// Bytes of all snapshots together; the two newest are kept in any case.
const BYTES_MAX: u64 = 1 << 30;

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is damaged")]
    Damaged,
    #[error("it is of version {0}, this program's is {VERSION}")]
    Version(u16),
    #[error("the log has another record at position {0}, or none")]
    OtherLog(u64),
    /// Nothing was found out about the snapshot.
    #[error("the log cannot be read at position {0}: {1}")]
    Unread(u64, ReadError),
}

/// What a file's head says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Head {
    position: u64,
    time: Timestamp,
    leaf: [u8; 32],
    form: u8,
    state: [u8; 32],
    payload: u64,
}

impl Head {
    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.push(self.form);
        bytes.extend([0; 5]);
        bytes.extend(self.position.to_le_bytes());
        bytes.extend(self.time.0.to_le_bytes());
        bytes.extend(self.leaf);
        bytes.extend(self.state);
        bytes.extend(self.payload.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Self, Unusable> {
        let field = |from: usize, len: usize| bytes.get(from..from + len).ok_or(Unusable::Damaged);
        let u64_at = |from| Ok::<_, Unusable>(u64::from_le_bytes(fixed(field(from, 8)?)));
        if field(0, 8)? != MAGIC {
            return Err(Unusable::Damaged);
        }
        let version = u16::from_le_bytes(fixed(field(8, 2)?));
        if version != VERSION {
            return Err(Unusable::Version(version));
        }
        Ok(Self {
            form: field(10, 1)?[0],
            position: u64_at(16)?,
            time: Timestamp(u64_at(24)?),
            leaf: fixed(field(32, 32)?),
            state: fixed(field(64, 32)?),
            payload: u64_at(96)?,
        })
    }
}

/// An array of a slice that has its length.
fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

/// A file that is there.
#[derive(Clone, Copy, Debug)]
struct Kept {
    time: Timestamp,
    bytes: u64,
}

/// A snapshot on its way to a file.
pub(super) struct Encoded {
    position: u64,
    time: Timestamp,
    /// But for the checksum.
    bytes: Vec<u8>,
}

/// The folder of snapshots.
#[derive(Debug)]
pub(crate) struct Snapshots {
    folder: PathBuf,
    /// By position.
    kept: Mutex<BTreeMap<u64, Kept>>,
    /// The last archived position and the leaf hash of its record: the snapshot there replaces what came before.
    base: Mutex<Option<(u64, [u8; 32])>>,
}

impl Snapshots {
    /// Looks what is in the folder, and makes it if it is not there.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(folder)?;
        let mut kept = BTreeMap::new();
        for file in fs::read_dir(folder)? {
            let path = file?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Some(position) = name.strip_suffix(".snapshot").and_then(|name| name.parse::<u64>().ok())
            else {
                continue;
            };
            match head_of(&path) {
                Ok((head, bytes)) if head.position == position => {
                    kept.insert(position, Kept { time: head.time, bytes });
                }
                Ok(_) => passed_over(&path, &Unusable::Damaged),
                Err(error) => passed_over(&path, &error),
            }
        }
        Ok(Self { folder: folder.to_owned(), kept: Mutex::new(kept), base: Mutex::default() })
    }

    /// The log begins behind this: the snapshot there stays, earlier ones are of no use.
    pub(crate) fn begin_behind(&self, base: &BaseNote) {
        *self.base.lock().unwrap_or_else(PoisonError::into_inner) = Some((base.position, base.leaf));
        let mut kept = self.kept();
        let later = kept.split_off(&base.position);
        for position in std::mem::replace(&mut *kept, later).into_keys() {
            // One that cannot be removed is found again at the next start.
            let _ = fs::remove_file(self.path(position));
        }
    }

    fn base(&self) -> Option<(u64, [u8; 32])> {
        *self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<u64, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, position: u64) -> PathBuf {
        self.folder.join(format!("{position:020}.snapshot"))
    }

    /// Position of the newest; 0 if there is none.
    pub(super) fn newest(&self) -> u64 {
        self.kept().last_key_value().map_or(0, |(position, _)| *position)
    }

    /// The bytes of one, whose last record is `record`.
    pub(super) fn encode(snapshot: SnapshotRef<'_>, record: &[u8]) -> Encoded {
        let (position, time) = (snapshot.views.position(), snapshot.views.time());
        let payload = snapshot.encode();
        let head = Head {
            position,
            time,
            leaf: Hash::leaf(record).0,
            form: form::newest(snapshot.views),
            state: snapshot.views.hash(),
            payload: payload.len() as u64,
        };
        let mut bytes = head.to_bytes();
        bytes.extend(payload);
        Encoded { position, time, bytes }
    }

    /// Writes one, and thins out the older ones. Takes as long as the disk does.
    pub(super) fn write(&self, snapshot: Encoded) -> io::Result<()> {
        let Encoded { position, time, mut bytes } = snapshot;
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        crate::private_file::write(&self.path(position), &bytes)?;
        self.kept().insert(position, Kept { time, bytes: bytes.len() as u64 });
        self.thin_out();
        Ok(())
    }

    /// Removes the ones that are missed least until few enough are left.
    fn thin_out(&self) {
        loop {
            let mut kept = self.kept();
            let bytes: u64 = kept.values().map(|kept| kept.bytes).sum();
            if kept.len() <= 2 || (kept.len() <= KEPT_MAX && bytes <= BYTES_MAX) {
                return;
            }
            let base = self.base().map(|(position, _)| position);
            let positions: Vec<u64> = std::iter::once(0).chain(kept.keys().copied()).collect();
            // The newest stays; of the others the one whose neighbours are closest to each other goes.
            let gap = |three: &&[u64]| three[2] - three[0];
            let spared = positions.windows(3).filter(|three| Some(three[1]) != base);
            let Some(position) = spared.min_by_key(gap).map(|three| three[1]) else { return };
            kept.remove(&position);
            drop(kept);
            // One that cannot be removed is found again at the next start.
            let _ = fs::remove_file(self.path(position));
        }
    }

    /// The newest one at or before a place and beyond `beyond` that holds, against the log too.
    /// Its texts are shut.
    pub(crate) async fn find(&self, log: &dyn EventLog, at: Option<At>, beyond: u64) -> Option<Snapshot> {
        let mut before = u64::MAX;
        loop {
            let position = {
                let kept = self.kept();
                let fits = |(position, kept): &(&u64, &Kept)| {
                    at.is_none_or(|at| !at.is_before(**position, kept.time))
                };
                let found = kept.range(beyond.saturating_add(1).min(before)..before).rev().find(fits);
                *found?.0
            };
            match self.load(log, position).await {
                Ok(snapshot) => return Some(snapshot),
                // The log is away, or what stood there is being archived just now: it may be used the next time.
                Err(error @ Unusable::Unread(..)) => {
                    tracing::info!(%error, "a snapshot is not used now");
                    before = position;
                }
                Err(error) => {
                    passed_over(&self.path(position), &error);
                    self.kept().remove(&position);
                }
            }
        }
    }

    /// The same, with its texts as far as there are keys; none if it cannot be said whether there are.
    pub(super) async fn find_open(
        &self,
        log: &dyn EventLog,
        at: Option<At>,
        beyond: u64,
        ring: &Ring,
    ) -> Result<Option<Snapshot>, KeyStoreError> {
        let mut found = self.find(log, at, beyond).await;
        if let Some(snapshot) = &mut found {
            ring.open_snapshot(snapshot).await?;
        }
        Ok(found)
    }

    async fn load(&self, log: &dyn EventLog, position: u64) -> Result<Snapshot, Unusable> {
        let path = self.path(position);
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let (head, snapshot) = read.map_err(|error| Unusable::Io(io::Error::other(error)))??;
        if let Some((_, leaf)) = self.base().filter(|(base, _)| *base == position) {
            return if leaf == head.leaf { Ok(snapshot) } else { Err(Unusable::OtherLog(position)) };
        }
        let page = log.read(Position(position), ReadLimit::entries(1)).await;
        let page = page.map_err(|error| Unusable::Unread(position, error))?;
        let record = page.into_iter().find(|entry| entry.position.0 == position);
        match record {
            Some(record) if Hash::leaf(&record.bytes).0 == head.leaf => Ok(snapshot),
            _ => Err(Unusable::OtherLog(position)),
        }
    }
}

fn passed_over(path: &Path, why: &Unusable) {
    tracing::warn!(
        snapshot = %path.display(), %why,
        "a snapshot is passed over; the log is folded instead. The file can be removed"
    );
}

/// The head of a file, and how long the file is.
fn head_of(path: &Path) -> Result<(Head, u64), Unusable> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut head = Vec::with_capacity(HEAD_BYTES);
    file.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    let head = Head::parse(&head)?;
    // Said by the file, so held against what is there before memory is taken.
    if bytes.checked_sub(HEAD_BYTES as u64 + 32) != Some(head.payload) {
        return Err(Unusable::Damaged);
    }
    Ok((head, bytes))
}

/// A whole file, every byte of it checked.
fn read(path: &Path) -> Result<(Head, Snapshot), Unusable> {
    let (head, _) = head_of(path)?;
    let bytes = fs::read(path)?;
    let (told, checksum) = bytes.split_last_chunk::<32>().ok_or(Unusable::Damaged)?;
    if <[u8; 32]>::from(Sha256::digest(told)) != *checksum || Head::parse(told)? != head {
        return Err(Unusable::Damaged);
    }
    let payload = told.get(HEAD_BYTES..).ok_or(Unusable::Damaged)?;
    let snapshot = Snapshot::decode(payload).map_err(|_| Unusable::Damaged)?;
    if snapshot.views.position() != head.position
        || form::hash(head.form, &snapshot.views) != Some(head.state)
    {
        return Err(Unusable::Damaged);
    }
    Ok((head, snapshot))
}
