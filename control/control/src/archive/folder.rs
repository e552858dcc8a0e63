//! The files of an archive (`events/AUDIT_FORMAT.md` §11.1, §11.2). What is read here was written by anybody: lengths
//! are limited, links are not followed, names are made here and never taken from the manifest.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use event_audit::keys::KeyList;
use event_audit::ledger::Ledger;
use event_audit::limits::{MAX_NOTE_BYTES, MAX_TREE_SIZE};
use event_log::Position;
use event_log::file::segment_file_name;
use serde::{Deserialize, Serialize};

use super::{ArchiveError, io_error};
use crate::at::At;

/// What a manifest says it is.
pub(super) const FORMAT: &str = "flotilla log archive v1";

/// Bytes of a manifest: some 250,000 segments.
const MANIFEST_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What is in an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `FORMAT`.
    pub format: String,
    /// Name of the log, for its root key.
    pub origin: String,
    /// The log id that all segments have, hex.
    pub log: String,
    /// In the order of the log, without gaps.
    pub segments: Vec<Segment>,
}

/// One segment of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Position of its first record.
    pub first: u64,
    /// Position of its last record.
    pub last: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file, hex.
    pub sha256: String,
    /// Time of the first record.
    pub first_time: String,
    /// Time of the last record.
    pub last_time: String,
}

impl Manifest {
    /// The first position in the archive; none if it holds nothing.
    pub fn first(&self) -> Option<u64> {
        self.segments.first().map(|segment| segment.first)
    }

    /// The last position in the archive.
    pub fn last(&self) -> Option<u64> {
        self.segments.last().map(|segment| segment.last)
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// What makes no sense in it, if anything.
    fn flaw(&self) -> Option<String> {
        let is_hex = |text: &str, bytes: usize| {
            text.len() == 2 * bytes && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        if self.format != FORMAT {
            return Some(format!("it is a {:?}; this program reads {FORMAT:?}", self.format));
        }
        if !is_hex(&self.log, 16) {
            return Some("its log id is none".into());
        }
        let mut next = None;
        for segment in &self.segments {
            let Segment { first, last, bytes, sha256, first_time, last_time } = segment;
            let is_time = |text: &str| matches!(text.parse(), Ok(At::Time(_)));
            let is_good = *first >= 1
                && first <= last
                && *last < MAX_TREE_SIZE
                && *bytes > 0
                && is_hex(sha256, 32)
                && is_time(first_time)
                && is_time(last_time);
            if !is_good || next.is_some_and(|next| next != *first) {
                return Some(format!("its segment at position {first} makes no sense"));
            }
            next = Some(last + 1);
        }
        None
    }
}

/// Where an archive is.
#[derive(Clone, Debug)]
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn segments(&self) -> PathBuf {
        self.0.join("segments")
    }

    pub(super) fn segment(&self, first: u64) -> PathBuf {
        self.segments().join(segment_file_name(Position(first)))
    }

    pub(super) fn audit(&self) -> PathBuf {
        self.0.join("audit")
    }

    pub(super) fn manifest(&self) -> PathBuf {
        self.0.join("manifest.json")
    }

    pub(super) fn keys(&self) -> PathBuf {
        self.0.join("keys.txt")
    }

    pub(super) fn base(&self) -> PathBuf {
        self.0.join("base")
    }

    /// What is in the archive; none if nothing is yet.
    pub(super) fn read_manifest(&self) -> Result<Option<Manifest>, ArchiveError> {
        let path = self.manifest();
        let Some(text) = read(&path, MANIFEST_BYTES_MAX)? else { return Ok(None) };
        let flawed = |what: String| ArchiveError::Manifest { path: path.clone(), what };
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| flawed(error.to_string()))?;
        match manifest.flaw() {
            None => Ok(Some(manifest)),
            Some(what) => Err(flawed(what)),
        }
    }

    pub(super) fn write_manifest(&self, manifest: &Manifest) -> Result<(), ArchiveError> {
        let path = self.manifest();
        let mut text = serde_json::to_string_pretty(manifest)
            .map_err(|error| ArchiveError::Manifest { path: path.clone(), what: error.to_string() })?;
        text.push('\n');
        crate::private_file::write(&path, text.as_bytes()).map_err(io_error("write", &path))
    }

    /// The keys of a complete archive, and its tree.
    pub(super) fn proofs(&self, manifest: &Manifest) -> Result<(KeyList, Ledger), ArchiveError> {
        let path = self.keys();
        let missing = |what: &str| ArchiveError::Other { path: self.0.clone(), what: what.into() };
        let note = read(&path, MAX_NOTE_BYTES as u64)?.ok_or_else(|| missing("has no keys.txt"))?;
        let keys = KeyList::open(&note).map_err(|source| ArchiveError::Keys { path, source })?;
        if keys.origin() != manifest.origin {
            return Err(missing(&format!(
                "has keys of the log {}, its manifest is of {}",
                keys.origin(),
                manifest.origin
            )));
        }
        // Otherwise what the tree says could be somewhere else.
        for folder in [self.segments(), self.audit(), self.audit().join("tile")] {
            let found = fs::symlink_metadata(&folder).map_err(io_error("look at", &folder))?;
            if !found.is_dir() {
                return Err(missing(&format!("is not whole: {} is no folder", folder.display())));
            }
        }
        let ledger = Ledger::open_beside(&self.audit(), keys.origin(), keys.log_keys())?;
        let ledger = ledger.ok_or_else(|| missing("has no checkpoint"))?;
        if ledger.size() < manifest.last().unwrap_or(0) {
            return Err(missing("holds more than its checkpoint is over"));
        }
        Ok((keys, ledger))
    }
}

/// A whole file; `None` if there is none.
fn read(path: &Path, most: u64) -> Result<Option<Vec<u8>>, ArchiveError> {
    let file = match open_regular(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io_error("open", path))?,
    };
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > most {
        return Err(ArchiveError::Manifest {
            path: path.into(),
            what: format!("it has more than {most} bytes"),
        });
    }
    Ok(Some(bytes))
}

/// Opens what is a file, and nothing that only leads to one or never ends.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt as _;
        // Not waiting for whoever would write to a pipe. Flags of the system fit its own type.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        options.custom_flags(flags.cast_signed());
    }
    let file = options.open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}
