//! The rules that hold between entries, checked entry by entry with no more memory than the open folders and a bit
//! for each entry.

use alloc::vec::Vec;
use core::cmp::Ordering;

use agent_proto::limits::{LINK_TURNS_MAX, NAME_LEN_MAX, PATH_LEN_MAX, TURNING_LINKS_MAX};

use super::{Entry, EntryRule, Kind, ManifestError, STAGING_FOLDER};
use crate::block_map::BlockMap;

/// Number of content blocks that a manifest stays below.
const BLOCKS_END: u64 = 1 << 48;

/// The order of paths in a manifest: name by name, so that all that is in a folder follows it directly. `/` sorts
/// before every other byte.
pub fn compare_paths(a: &[u8], b: &[u8]) -> Ordering {
    let shared = shared_len(a, b);
    let rank = |path: &[u8]| path.get(shared).map(|&byte| if byte == b'/' { 0 } else { u16::from(byte) + 1 });
    rank(a).cmp(&rank(b))
}

/// Number of bytes at the start that two paths have in common.
pub(super) fn shared_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Whether a path may stand in a manifest.
///
/// # Errors
/// The rule it breaks.
pub fn check_path(path: &[u8]) -> Result<(), EntryRule> {
    if path.is_empty() {
        return Ok(());
    }
    if path.len() > PATH_LEN_MAX {
        return Err(EntryRule::BadName);
    }
    for name in path.split(|&b| b == b'/') {
        if name.is_empty() || name == b"." || name == b".." || name.contains(&0) || name.len() > NAME_LEN_MAX
        {
            return Err(EntryRule::BadName);
        }
        // At any depth: what is below may be another job's folder, with a staging folder and an archive.
        if name.eq_ignore_ascii_case(STAGING_FOLDER) {
            return Err(EntryRule::ReservedName);
        }
    }
    Ok(())
}

/// Whether following the link can never leave the folder, whatever else the manifest holds: it is relative, and `..`
/// is taken only from real folders of the manifest, never above the top. `is_folder` says whether a path is one; the
/// first error it gives is passed on.
///
/// Taking `..` after a name that is a symlink would depend on where that one leads.
pub fn link_stays_inside<E>(
    path: &[u8],
    target: &[u8],
    mut is_folder: impl FnMut(&[u8]) -> Result<bool, E>,
) -> Result<bool, E> {
    if target.is_empty() || target.len() > PATH_LEN_MAX || target[0] == b'/' || target.contains(&0) {
        return Ok(false);
    }
    let mut at: Vec<u8> = parent(path).unwrap_or_default().to_vec();
    // The folder that holds the link is real, and so are those that hold a real one.
    let (mut real, mut turns) = (true, 0);
    for name in target.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                if !real {
                    turns += 1;
                    if turns > LINK_TURNS_MAX || !is_folder(&at)? {
                        return Ok(false);
                    }
                    real = true;
                }
                if at.is_empty() {
                    return Ok(false);
                }
                at.truncate(parent(&at).map_or(0, <[u8]>::len));
            }
            name => {
                if !at.is_empty() {
                    at.push(b'/');
                }
                at.extend_from_slice(name);
                real = false;
            }
        }
    }
    Ok(true)
}

/// The path of the folder that holds a path; `None` for those at the top.
pub(super) fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|&b| b == b'/').map(|slash| &path[..slash])
}

/// What was seen of a manifest so far.
pub(super) struct Checker {
    pub(super) entries: u64,
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    /// Symlinks that go up from a folder that they name: it may come later.
    pub(super) turning_links: u64,
    previous: Vec<u8>,
    /// How much of `previous` names a folder, for each of those it lies in and for itself, ascending.
    folders: Vec<usize>,
    /// Which entries are regular files.
    files: BlockMap,
}

impl Checker {
    /// For a manifest of at most so many entries.
    pub(super) fn new(entries_max: u64) -> Self {
        Self {
            entries: 0,
            blocks: 0,
            bytes: 0,
            turning_links: 0,
            previous: Vec::new(),
            folders: Vec::new(),
            files: BlockMap::new(entries_max),
        }
    }

    /// Takes the next entry; an entry that breaks a rule leaves no trace.
    pub(super) fn take(&mut self, entry: &Entry) -> Result<(), ManifestError> {
        let broken = |rule| ManifestError::Entry { path: entry.path.clone(), rule };
        check_path(&entry.path).map_err(broken)?;
        entry.check().map_err(broken)?;
        let path = entry.path.as_slice();
        if self.entries > 0 && compare_paths(&self.previous, path) != Ordering::Less {
            return Err(broken(EntryRule::OutOfOrder));
        }
        if path.is_empty() && !entry.is_folder() {
            return Err(broken(EntryRule::BadName));
        }
        // All that is in a folder follows it directly: so the folder is one that `previous` lies in.
        let within = parent(path).map_or(0, <[u8]>::len);
        if within > 0
            && (shared_len(&self.previous, path) < within || self.folders.binary_search(&within).is_err())
        {
            return Err(broken(EntryRule::NoParent));
        }
        let turning = match &entry.kind {
            Kind::Symlink { target } => self.check_link(path, target).map_err(broken)?,
            Kind::HardLink { to } if !self.files.contains(*to) => return Err(broken(EntryRule::BadHardLink)),
            _ => false,
        };
        let blocks = self.blocks + entry.kind.blocks();
        let bytes = self.bytes.checked_add(entry.kind.content_len());
        if self.entries >= self.files.len() || blocks >= BLOCKS_END || bytes.is_none() {
            return Err(ManifestError::TooLarge);
        }
        self.turning_links += u64::from(turning);
        if matches!(entry.kind, Kind::File { .. }) {
            self.files.insert(self.entries);
        }
        while self.folders.last().is_some_and(|&len| len > within) {
            self.folders.pop();
        }
        if entry.is_folder() && !path.is_empty() {
            self.folders.push(path.len());
        }
        self.previous.clear();
        self.previous.extend_from_slice(path);
        (self.entries, self.blocks, self.bytes) = (self.entries + 1, blocks, bytes.unwrap_or(0));
        Ok(())
    }

    /// Checks a link as far as it can be without knowing all folders; says whether something is left to check.
    fn check_link(&self, path: &[u8], target: &[u8]) -> Result<bool, EntryRule> {
        let mut asked = false;
        let stays = link_stays_inside(path, target, |_| {
            asked = true;
            Ok::<_, core::convert::Infallible>(true)
        });
        let too_many = asked && self.turning_links >= TURNING_LINKS_MAX;
        if matches!(stays, Ok(true)) && !too_many { Ok(asked) } else { Err(EntryRule::UnsafeLink) }
    }
}
