//! One entry of a manifest: a file, folder, symlink or further name of a file, with its metadata.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use agent_proto::limits::{
    BLOCK_LEN, EXTENTS_MAX, FILE_LEN_MAX, OWNER_NAME_LEN_MAX, XATTR_NAME_LEN_MAX, XATTRS_LEN_MAX, XATTRS_MAX,
};
use serde::{Deserialize, Serialize};

use super::EntryRule;

/// A file, folder, symlink or hard link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path inside the folder, `/` between names; empty for the folder itself.
    pub path: Vec<u8>,
    /// Permission bits, `0o7777` at most. Symlinks and hard links have none: 0.
    pub mode: u32,
    /// Modification time; zero for hard links.
    pub mtime: Mtime,
    /// Whose it is; `None` if that is not told, and for hard links.
    pub owner: Option<Arc<Owner>>,
    /// What it is.
    pub kind: Kind,
    /// Extended attributes sorted by name, POSIX ACLs among them; none for symlinks and hard links.
    pub xattrs: Vec<Xattr>,
}

/// Modification time since 1970-01-01 UTC, as `stat` gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mtime {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

/// A user and a group, by number as at the source and by name where they have one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// Number of the user.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
    /// Name of the user; empty if it has none.
    pub user: String,
    /// Name of the group; empty if it has none.
    pub group: String,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Bytes, holes included.
        size: u64,
        /// Where a sparse file has data; the rest are holes. `None`: it has no holes.
        data: Option<Vec<Extent>>,
    },
    /// A folder.
    Folder,
    /// A symlink that leads nowhere outside the folder.
    Symlink {
        /// Where it points, as stored in the link.
        target: Vec<u8>,
    },
    /// Another name of a file.
    HardLink {
        /// Index of the entry that is the file; it comes before this one.
        to: u64,
    },
}

/// A stretch of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Position of its first byte.
    pub start: u64,
    /// Bytes, at least 1.
    pub len: u64,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Xattr {
    /// Name with its namespace, as `user.comment`.
    pub name: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

/// Number of blocks of `size` bytes without holes.
pub fn blocks_of(size: u64) -> u64 {
    size.div_ceil(u64::from(BLOCK_LEN))
}

/// Whether an extended attribute of this name is sent and restored: those of users, POSIX ACLs, and capabilities of
/// programs. Others say something about one machine (labels of its policy, states of its file systems).
pub fn xattr_may_travel(name: &[u8]) -> bool {
    let named = name.strip_prefix(b"user.").is_some_and(|rest| !rest.is_empty());
    let system: [&[u8]; 3] =
        [b"system.posix_acl_access", b"system.posix_acl_default", b"security.capability"];
    named && name.len() <= XATTR_NAME_LEN_MAX && !name.contains(&0) || system.contains(&name)
}

impl Extent {
    /// Position behind its last byte.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Numbers of the blocks of its file that it touches.
    fn blocks(&self) -> Range<u64> {
        self.start / u64::from(BLOCK_LEN)..blocks_of(self.end())
    }
}

/// The content blocks of a sparse file as ranges of its blocks: those that a stretch of data touches.
fn touched(data: &[Extent]) -> impl Iterator<Item = Range<u64>> + '_ {
    let mut from = 0;
    data.iter().map(move |extent| {
        let blocks = extent.blocks();
        let new = blocks.start.max(from)..blocks.end;
        from = new.end;
        new
    })
}

impl Kind {
    /// A regular file without holes.
    pub fn file(size: u64) -> Self {
        Self::File { size, data: None }
    }

    /// Bytes of a regular file, holes included; 0 for everything else.
    pub fn size(&self) -> u64 {
        match self {
            Self::File { size, .. } => *size,
            _ => 0,
        }
    }

    /// Its content blocks as ranges of the 32 KiB blocks of the file, ascending: all but those that lie in a hole
    /// altogether.
    pub fn file_blocks(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let (whole, sparse) = match self {
            Self::File { size, data: None } => (Some(0..blocks_of(*size)), &[][..]),
            Self::File { data: Some(data), .. } => (None, data.as_slice()),
            _ => (None, &[][..]),
        };
        whole.into_iter().chain(touched(sparse))
    }

    /// Number of content blocks. A block that lies in a hole altogether is none.
    pub fn blocks(&self) -> u64 {
        self.file_blocks().map(|range| range.end - range.start).sum()
    }

    /// Bytes of all its content blocks together.
    pub fn content_len(&self) -> u64 {
        match self {
            Self::File { size, data: None } => *size,
            Self::File { size, data: Some(data) } => {
                let blocks = self.blocks();
                // Only the file's last block is shorter.
                let reaches_end = data.last().is_some_and(|last| last.blocks().end == blocks_of(*size));
                let short = if reaches_end { blocks_of(*size) * u64::from(BLOCK_LEN) - size } else { 0 };
                blocks * u64::from(BLOCK_LEN) - short
            }
            _ => 0,
        }
    }

    /// Position and length of the `nth` content block.
    pub fn block_at(&self, nth: u64) -> Option<(u64, u32)> {
        let mut left = nth;
        let block = self.file_blocks().find_map(|range| {
            let count = range.end - range.start;
            let found = (left < count).then(|| range.start + left);
            left = left.saturating_sub(count);
            found
        })?;
        let offset = block * u64::from(BLOCK_LEN);
        Some((offset, (self.size() - offset).min(u64::from(BLOCK_LEN)) as u32))
    }

    /// Whether it is a file that is data all through.
    pub fn has_no_holes(&self) -> bool {
        matches!(self, Self::File { data: None, .. })
    }

    /// The parts of a range of a file that are data and not holes.
    pub fn data_in(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let (whole, sparse) = match self {
            Self::File { data: Some(data), .. } => {
                let first = data.partition_point(|extent| extent.end() <= range.start);
                (None, &data[first..])
            }
            _ => (Some(range.clone()), &[][..]),
        };
        let parts = sparse
            .iter()
            .take_while({
                let end = range.end;
                move |extent| extent.start < end
            })
            .map(move |extent| extent.start.max(range.start)..extent.end().min(range.end));
        whole.into_iter().chain(parts)
    }
}

impl Entry {
    /// An entry of this kind with nothing but path, mode and time.
    pub fn new(path: &[u8], mode: u32, mtime: Mtime, kind: Kind) -> Self {
        Self { path: path.to_vec(), mode, mtime, owner: None, kind, xattrs: Vec::new() }
    }

    /// Whether this is a folder.
    pub fn is_folder(&self) -> bool {
        self.kind == Kind::Folder
    }

    /// The rules that need no other entry. Paths are left to [`super::check_path`].
    pub(super) fn check(&self) -> Result<(), EntryRule> {
        let bare = matches!(self.kind, Kind::Symlink { .. } | Kind::HardLink { .. });
        self.check_metadata(bare)?;
        match &self.kind {
            Kind::HardLink { .. } if self.owner.is_some() || self.mtime != Mtime::default() => {
                return Err(EntryRule::BadMetadata);
            }
            Kind::File { size, .. } if *size > FILE_LEN_MAX => return Err(EntryRule::BadMetadata),
            Kind::File { size, data: Some(data) } => check_extents(*size, data)?,
            _ => {}
        }
        Ok(())
    }

    /// The rules for mode, time, owner and extended attributes; `bare`: of something that has neither mode nor attributes.
    ///
    /// # Errors
    /// Which rule is broken.
    pub fn check_metadata(&self, bare: bool) -> Result<(), EntryRule> {
        if self.mode > 0o7777 || self.mtime.nanos >= 1_000_000_000 || bare && self.mode != 0 {
            return Err(EntryRule::BadMetadata);
        }
        // That number means that nobody is meant.
        if self.owner.as_ref().is_some_and(|owner| owner.uid == u32::MAX || owner.gid == u32::MAX) {
            return Err(EntryRule::BadMetadata);
        }
        if let Some(owner) = &self.owner
            && [&owner.user, &owner.group]
                .iter()
                .any(|name| name.len() > OWNER_NAME_LEN_MAX || name.contains(['\0', ':', '\n']))
        {
            return Err(EntryRule::BadMetadata);
        }
        check_xattrs(&self.xattrs, bare)
    }
}

fn check_extents(size: u64, data: &[Extent]) -> Result<(), EntryRule> {
    let mut hole_from = None;
    for extent in data {
        let end = extent.start.checked_add(extent.len).filter(|&end| end <= size);
        // Those that touch would be one.
        if extent.len == 0 || hole_from.is_some_and(|from| extent.start <= from) {
            return Err(EntryRule::BadExtents);
        }
        hole_from = Some(end.ok_or(EntryRule::BadExtents)?);
    }
    let no_hole = match data {
        [] => size == 0,
        [only] => only.len == size,
        _ => false,
    };
    if no_hole || data.len() > EXTENTS_MAX { Err(EntryRule::BadExtents) } else { Ok(()) }
}

fn check_xattrs(xattrs: &[Xattr], bare: bool) -> Result<(), EntryRule> {
    let len: usize = xattrs.iter().map(|x| x.name.len() + x.value.len()).sum();
    let sorted = xattrs.is_sorted_by(|a, b| a.name < b.name);
    let fits = xattrs.len() <= XATTRS_MAX && len <= XATTRS_LEN_MAX && sorted;
    if fits && (xattrs.is_empty() || !bare) && xattrs.iter().all(|x| xattr_may_travel(&x.name)) {
        Ok(())
    } else {
        Err(EntryRule::BadXattrs)
    }
}
