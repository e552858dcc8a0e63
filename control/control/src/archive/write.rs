//! Moving the first segment of a log into an archive, step by step (`events/AUDIT_FORMAT.md` §11.3).

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use event_audit::Hash;
use event_audit::keys::KeyList;
use event_audit::ledger::{Leaves, Ledger};
use event_log::file::{ClosedSegment, FileLog, LogId, SegmentReader};
use event_schema::{Record, Timestamp};
use sha2::{Digest as _, Sha256};

use super::folder::{FORMAT, Folder, open_regular};
use super::{ArchiveError, BaseNote, Manifest, Segment, io_error};
use crate::at::At;

/// Which segments may leave, and why the next one may not.
#[derive(Clone, Debug)]
pub struct Plan {
    /// From the beginning of the log.
    pub segments: Vec<ClosedSegment>,
    /// Why not more.
    pub kept: Kept,
}

/// Why a segment stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It holds records that are not before what was asked for.
    Young {
        /// Its first position.
        first: u64,
    },
    /// Not all of it is under a signed checkpoint.
    Unsigned {
        /// Its first position.
        first: u64,
        /// Its last one.
        last: u64,
        /// Entries under the newest checkpoint.
        signed: u64,
    },
    /// It comes later.
    Next {
        /// Its first position.
        first: u64,
    },
    /// It is the one that is written to.
    Open {
        /// Its first position.
        first: u64,
    },
    /// A record in it is of a newer version.
    Unread {
        /// Which, and why.
        what: String,
    },
}

impl Kept {
    /// Whether more was asked for than may be.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Unsigned { .. } | Self::Unread { .. })
    }
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Young { first } => write!(f, "the segment at position {first} holds later records"),
            Self::Unsigned { first, last, signed } => write!(
                f,
                "the segment with the positions {first} to {last} is not wholly under a signed checkpoint ({signed} \
                 entries are): start the service, which signs"
            ),
            Self::Next { first } => write!(f, "the segment at position {first} comes next"),
            Self::Open { first } => {
                write!(f, "the segment at position {first} is the one that is written to, and stays")
            }
            Self::Unread { what } => write!(f, "{what}: use a newer flotilla"),
        }
    }
}

/// What may be archived of a log of which everything before `before` shall be; at most `most` segments. To tell the time
/// of their records, they are read.
///
/// # Errors
/// If a segment cannot be read.
pub(crate) fn plan(log: &FileLog, before: At, signed: u64, most: usize) -> Result<Plan, ArchiveError> {
    let mut segments = Vec::new();
    for segment in log.closed_segments() {
        let (first, last) = (segment.first.0, segment.last.0);
        if segments.len() == most {
            return Ok(Plan { segments, kept: Kept::Next { first } });
        }
        let kept = match before {
            At::Position(position) if last >= position => Some(Kept::Young { first }),
            At::Position(_) => None,
            At::Time(time) => later(&segment.path, time)?.map(|unread| match unread {
                None => Kept::Young { first },
                Some(what) => Kept::Unread { what },
            }),
        };
        let unsigned = (last > signed).then_some(Kept::Unsigned { first, last, signed });
        if let Some(kept) = kept.or(unsigned) {
            return Ok(Plan { segments, kept });
        }
        segments.push(segment);
    }
    let first = segments.last().map_or(log.first_stored(), |segment| segment.last.next()).0;
    let kept = match before {
        At::Position(position) if first >= position => Kept::Young { first },
        _ => Kept::Open { first },
    };
    Ok(Plan { segments, kept })
}

/// Whether a segment holds a record that is not earlier than `time`, or one that cannot be read, and why.
fn later(path: &Path, time: Timestamp) -> Result<Option<Option<String>>, ArchiveError> {
    let mut reader = segment_reader(path)?;
    while let Some(record) = reader.next_record()? {
        match Record::decode(record.bytes) {
            Ok(read) if read.time >= time => return Ok(Some(None)),
            Ok(_) => {}
            Err(error) => return Ok(Some(Some(format!("record {}: {error}", record.position)))),
        }
    }
    Ok(None)
}

fn segment_reader(path: &Path) -> Result<SegmentReader, ArchiveError> {
    Ok(SegmentReader::new(open_regular(path).map_err(io_error("open", path))?, path)?)
}

/// Where a test makes an archiver stop, as kill -9 would.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Tree,
    Keys,
    Written,
    Renamed,
    Listed,
    State,
    BaseCopied,
}

/// Writes to one archive. Holds its lock.
#[derive(Debug)]
pub struct Archiver {
    folder: Folder,
    manifest: Manifest,
    /// The log's own tree.
    audit: PathBuf,
    keys: KeyList,
    _lock: File,
    #[cfg(test)]
    pub(super) stop_at: Option<Step>,
}

/// A segment that is safe in the archive and still in the log.
#[derive(Clone, Debug)]
pub struct Copied {
    /// As the manifest has it.
    pub segment: Segment,
    /// What the log keeps of it.
    pub note: BaseNote,
}

impl Archiver {
    /// Opens the archive in `to`, a folder that is there, for the log whose tree is in `audit`. An empty folder becomes an
    /// archive with its first segment.
    ///
    /// # Errors
    /// If the folder is not there, in use, or holds the archive of another log or of one that this log does not follow.
    pub fn open(log: &FileLog, audit: &Path, keys: &KeyList, to: &Path) -> Result<Self, ArchiveError> {
        if !to.is_dir() {
            return Err(ArchiveError::NoFolder(to.to_owned()));
        }
        let folder = Folder(to.to_owned());
        let lock = lock(to)?;
        let other = |what: String| ArchiveError::Other { path: to.to_owned(), what };
        let manifest = folder.read_manifest()?;
        let manifest = match manifest {
            Some(manifest) => manifest,
            None => Manifest {
                format: FORMAT.into(),
                origin: keys.origin().into(),
                log: log.log_id().to_string(),
                segments: Vec::new(),
            },
        };
        if manifest.origin != keys.origin() || manifest.log != log.log_id().to_string() {
            let (origin, id) = (&manifest.origin, &manifest.log);
            return Err(other(format!("is of another log, {origin} ({id}): choose an empty folder")));
        }
        let first = log.first_stored().0;
        if let Some(last) = manifest.last().filter(|last| last + 1 < first) {
            return Err(other(format!(
                "ends with position {last}, the log begins with {first}: what lies between is in another archive. \
                 Choose that one, or an empty folder"
            )));
        }
        Ok(Self {
            folder,
            manifest,
            audit: audit.to_owned(),
            keys: keys.clone(),
            _lock: lock,
            #[cfg(test)]
            stop_at: None,
        })
    }

    /// What is in the archive.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Copies the first segment of the log, which stays where it is. Steps 1 to 3.
    ///
    /// # Errors
    /// [`ArchiveError`]: nothing that the manifest names was changed; the next try begins anew.
    pub fn copy(&mut self, log: &FileLog, segment: &ClosedSegment) -> Result<Copied, ArchiveError> {
        let ledger = Ledger::open_beside(&self.audit, self.keys.origin(), self.keys.log_keys())?;
        let unsigned = || ArchiveError::Other {
            path: self.folder.0.clone(),
            what: format!("takes only what is signed, and position {} is not yet", segment.last),
        };
        let ledger = ledger.filter(|ledger| ledger.size() >= segment.last.0).ok_or_else(unsigned)?;
        make_folder(&self.folder.segments())?;
        make_folder(&self.folder.audit())?;
        ledger.copy_to(&self.folder.audit(), self.keys.log_keys())?;
        self.reach(0)?;
        let keys = self.folder.keys();
        let list = self.keys.note().as_bytes();
        if fs::read(&keys).ok().as_deref() != Some(list) {
            crate::private_file::write(&keys, list).map_err(io_error("write", &keys))?;
        }
        self.reach(1)?;
        let place = self.folder.segment(segment.first.0);
        let known = self.manifest.segments.iter().find(|known| known.first == segment.first.0).cloned();
        let checked = if let Some(known) = &known {
            // Listed before a crash: the same bytes are in the log, or one of the two is not what it was.
            let here = check_segment(&place, &ledger, log.log_id(), segment)?;
            if here.segment != *known || sha256(&segment.path)? != known.sha256 {
                return Err(ArchiveError::Segment {
                    path: place,
                    position: segment.first.0,
                    what: "the archive lists another segment than the log has".into(),
                });
            }
            here
        } else {
            let beside = place.with_added_extension("new");
            let copied = self.put(segment, &beside, &ledger, log.log_id());
            if copied.is_err() {
                // A full disk shall not stay fuller than it has to be.
                let _ = fs::remove_file(&beside);
            }
            let checked = copied?;
            self.reach(2)?;
            fs::rename(&beside, &place).map_err(io_error("rename", &beside))?;
            sync_folder(&self.folder.segments())?;
            self.reach(3)?;
            let mut manifest = self.manifest.clone();
            manifest.segments.push(checked.segment.clone());
            self.folder.write_manifest(&manifest)?;
            self.manifest = manifest;
            checked
        };
        self.reach(4)?;
        let note = BaseNote {
            position: segment.last.0,
            origin: self.keys.origin().into(),
            time: checked.time,
            leaf: checked.leaf.0,
            edge: ledger.edge_at(segment.last.0)?,
        };
        Ok(Copied { segment: checked.segment, note })
    }

    /// Lets the log begin behind a segment that was copied, once the state there is safe. Step 5.
    ///
    /// # Errors
    /// [`ArchiveError`]: the log begins where it did.
    pub fn finish(&self, log: &FileLog, copied: &Copied) -> Result<(), ArchiveError> {
        self.reach(5)?;
        let (position, note) = (event_log::Position(copied.note.position), copied.note.to_bytes());
        let base = log.base_after(position, note.clone())?;
        let path = self.folder.base();
        crate::private_file::write(&path, &base.encode()).map_err(io_error("write", &path))?;
        self.reach(6)?;
        Ok(log.begin_after(position, note)?)
    }

    /// Copies, syncs, and reads back what was written.
    fn put(
        &self,
        segment: &ClosedSegment,
        beside: &Path,
        ledger: &Ledger,
        log: LogId,
    ) -> Result<CheckedSegment, ArchiveError> {
        match fs::remove_file(beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", beside)(error));
            }
            _ => {}
        }
        let mut from = open_regular(&segment.path).map_err(io_error("open", &segment.path))?;
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut to = options.open(beside).map_err(io_error("make", beside))?;
        io::copy(&mut from, &mut to).map_err(io_error("write", beside))?;
        let mut permissions = to.metadata().map_err(io_error("look at", beside))?.permissions();
        permissions.set_readonly(true);
        to.set_permissions(permissions).map_err(io_error("make read-only", beside))?;
        to.sync_all().map_err(io_error("sync", beside))?;
        // So that it is read back from the disk where the system can do that; no harm where it cannot.
        #[cfg(target_os = "linux")]
        let _ = rustix::fs::fadvise(&to, 0, None, rustix::fs::Advice::DontNeed);
        drop(to);
        check_segment(beside, ledger, log, segment)
    }

    /// Stops here if a test wants it.
    fn reach(&self, step: u8) -> Result<(), ArchiveError> {
        #[cfg(test)]
        if self.stop_at.is_some_and(|stop| stop as u8 == step) {
            return Err(ArchiveError::Stopped);
        }
        let _ = step;
        Ok(())
    }
}

/// A segment that is what was signed.
struct CheckedSegment {
    segment: Segment,
    /// Of its last record.
    time: Timestamp,
    leaf: Hash,
}

/// Reads a segment wholly and holds it against the tree.
fn check_segment(
    path: &Path,
    ledger: &Ledger,
    log: LogId,
    expected: &ClosedSegment,
) -> Result<CheckedSegment, ArchiveError> {
    let bad = |position: u64, what: String| ArchiveError::Segment { path: path.to_owned(), position, what };
    let mut reader = segment_reader(path)?;
    if reader.log_id() != log || reader.first() != expected.first {
        return Err(bad(expected.first.0, "the segment is another one".into()));
    }
    let mut leaves = Leaves::default();
    let mut last = expected.first.0 - 1;
    let (mut times, mut newest_leaf) = (None, Hash::of_nothing());
    while let Some(record) = reader.next_record()? {
        last = record.position.0;
        let leaf = Hash::leaf(record.bytes);
        if leaves.at(ledger, last - 1)? != leaf {
            return Err(bad(last, "it is not the entry that was signed".into()));
        }
        let time = Record::decode(record.bytes).map_err(|error| bad(last, error.to_string()))?.time;
        times = Some((times.map_or(time, |(first, _)| first), time));
        newest_leaf = leaf;
    }
    let Some((first_time, last_time)) = times.filter(|_| last == expected.last.0) else {
        return Err(bad(last + 1, format!("the segment ends before position {}", expected.last)));
    };
    let segment = Segment {
        first: expected.first.0,
        last,
        bytes: fs::metadata(path).map_err(io_error("look at", path))?.len(),
        sha256: sha256(path)?,
        first_time: first_time.to_string(),
        last_time: last_time.to_string(),
    };
    Ok(CheckedSegment { segment, time: last_time, leaf: newest_leaf })
}

/// SHA-256 of a file, hex.
pub(super) fn sha256(path: &Path) -> Result<String, ArchiveError> {
    let mut file = open_regular(path).map_err(io_error("open", path))?;
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; 256 * 1024]);
    loop {
        match file.read(&mut chunk).map_err(io_error("read", path))? {
            0 => break,
            read => hash.update(&chunk[..read]),
        }
    }
    Ok(HEXLOWER.encode(&hash.finalize()))
}

fn make_folder(path: &Path) -> Result<(), ArchiveError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(io_error("make", path))?;
    sync_folder(path.parent().unwrap_or(path))
}

fn sync_folder(path: &Path) -> Result<(), ArchiveError> {
    crate::private_file::sync_folder(path).map_err(io_error("sync", path))
}

fn lock(folder: &Path) -> Result<File, ArchiveError> {
    let path = folder.join("lock");
    let mut options = File::options();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&path).map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ArchiveError::InUse(folder.to_owned())),
        Err(TryLockError::Error(source)) => Err(io_error("lock", &path)(source)),
    }
}
