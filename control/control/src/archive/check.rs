//! An archive held against what was signed, with nothing else at hand (`events/AUDIT_FORMAT.md` §11.5).

use std::fs;
use std::path::Path;

use event_audit::ledger::{Leaves, LedgerError};
use event_audit::{Hash, Head, SignedCheckpoint};
use event_log::file::SegmentReader;

use event_schema::Record;

use super::folder::{Folder, open_regular};
use super::write::sha256;
use super::{ArchiveError, Manifest, io_error};

/// A good archive.
#[derive(Clone, Debug)]
pub struct Checked {
    /// What is in it.
    pub manifest: Manifest,
    /// What proves it.
    pub checkpoint: SignedCheckpoint,
    /// Bytes of its entries.
    pub entry_bytes: u64,
}

/// What the archive in `path` says it holds, and the checkpoint that has to prove it.
///
/// # Errors
/// As [`check`].
pub fn peek(path: &Path) -> Result<(Manifest, SignedCheckpoint), ArchiveError> {
    let folder = Folder(path.to_owned());
    let none = || ArchiveError::NoArchive(path.to_owned());
    let manifest = folder.read_manifest()?.ok_or_else(none)?;
    let (_, ledger) = folder.proofs(&manifest)?;
    Ok((manifest, ledger.newest().cloned().ok_or_else(none)?))
}

/// Reads the archive in `path` to its end; `entry` is given every entry, in order, once it is proved. `heads` are those
/// seen before. Blocks.
///
/// # Errors
/// [`ArchiveError`] names the first entry that does not hold.
pub fn check(
    path: &Path,
    origin: Option<&str>,
    heads: &[Head],
    mut entry: impl FnMut(u64, &[u8]),
) -> Result<Checked, ArchiveError> {
    let folder = Folder(path.to_owned());
    let manifest = folder.read_manifest()?.ok_or_else(|| ArchiveError::NoArchive(path.to_owned()))?;
    if let Some(expected) = origin.filter(|expected| *expected != manifest.origin) {
        let what = format!("is of the log {}, not of {expected} as expected", manifest.origin);
        return Err(ArchiveError::Other { path: path.to_owned(), what });
    }
    let (_, ledger) = folder.proofs(&manifest)?;
    let checkpoint = ledger.newest().cloned().ok_or_else(|| ArchiveError::NoArchive(path.to_owned()))?;
    ledger.scrub()?;
    for seen in heads {
        let of = match ledger.head_at(seen.size) {
            Ok(own) if own == *seen => continue,
            Ok(own) => format!("says ({own}) of that size"),
            Err(LedgerError::Range { size, .. }) => format!("is over {size} entries only: an older archive"),
            Err(error) => return Err(error.into()),
        };
        return Err(ArchiveError::Forked { seen: *seen, of });
    }
    let mut leaves = Leaves::default();
    let mut entry_bytes = 0;
    for segment in &manifest.segments {
        let place = folder.segment(segment.first);
        let bad = |position, what: &str| ArchiveError::Segment {
            path: place.clone(),
            position,
            what: what.to_owned(),
        };
        let found = fs::symlink_metadata(&place).map_err(io_error("look at", &place))?;
        if !found.is_file() {
            return Err(bad(segment.first, "it is no regular file"));
        }
        let file = open_regular(&place).map_err(io_error("open", &place))?;
        let mut reader = SegmentReader::new(file, &place)?;
        if reader.first().0 != segment.first || reader.log_id().to_string() != manifest.log {
            return Err(bad(segment.first, "the segment is another one than the manifest says"));
        }
        let mut last = segment.first - 1;
        while let Some(record) = reader.next_record()? {
            last = record.position.0;
            if last > segment.last {
                return Err(bad(last, "the segment goes on behind what the manifest says"));
            }
            if leaves.at(&ledger, last - 1)? != Hash::leaf(record.bytes) {
                return Err(bad(last, "it is not the entry that was signed"));
            }
            entry_bytes += record.bytes.len() as u64;
            if last == segment.first || last == segment.last {
                let told = if last == segment.first { &segment.first_time } else { &segment.last_time };
                // What a newer program wrote cannot be compared; it is proved all the same.
                if Record::decode(record.bytes).is_ok_and(|record| record.time.to_string() != *told) {
                    return Err(bad(last, "the manifest tells another time of it"));
                }
            }
            entry(last, record.bytes);
        }
        if last != segment.last {
            return Err(bad(last + 1, "the segment ends before it"));
        }
        if found.len() != segment.bytes || sha256(&place)? != segment.sha256 {
            let what =
                "its entries are those that were signed, but the file is not the one that the manifest lists";
            return Err(bad(segment.first, what));
        }
    }
    Ok(Checked { manifest, checkpoint, entry_bytes })
}
