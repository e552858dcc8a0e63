//! What the index says of one entry (§2), and how that is compared with what `stat` says now.

use rustix::fs::{FileType, Stat};
use serde::{Deserialize, Serialize};
use sync_core::merkle::Hash;

/// A point in time as `stat` gives it, since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

impl Time {
    /// Now, by the clock that file systems stamp with.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Self { seconds: now.tv_sec, nanos: now.tv_nsec as u32 }
    }

    /// Nanoseconds from `earlier` to this; negative if it is later.
    pub fn nanos_since(self, earlier: Self) -> i128 {
        let seconds = i128::from(self.seconds) - i128::from(earlier.seconds);
        seconds * 1_000_000_000 + i128::from(self.nanos) - i128::from(earlier.nanos)
    }
}

/// What `stat` tells of an entry, as far as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Bytes; 0 for folders, whose own size means nothing.
    pub size: u64,
    /// Modification time.
    pub mtime: Time,
    /// Time of the last change of anything, which no user can set.
    pub ctime: Time,
    /// Inode number.
    pub ino: u64,
    /// Device if it is another than that of the index's root, else 0: numbers of devices change with a
    /// restart, and nothing is to be read again for that.
    pub dev: u64,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links; 1 for folders, whose count changes with every folder in them.
    pub links: u32,
    /// Whether a file takes less room than its size: it has holes, or is compressed.
    pub sparse: bool,
}

impl Stamp {
    /// From `stat`; `root_dev` is the device of the index's root.
    pub fn of(stat: &Stat, root_dev: u64) -> Self {
        let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Self {
            size: if folder { 0 } else { stat.st_size as u64 },
            mtime: Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
            ctime: Time { seconds: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 },
            ino: stat.st_ino,
            dev: if stat.st_dev == root_dev { 0 } else { stat.st_dev },
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            links: if folder { 1 } else { stat.st_nlink as u32 },
            sparse: !folder && (stat.st_blocks as u64).saturating_mul(512) < stat.st_size as u64,
        }
    }

    /// Whether a file with this stamp still has the content it had with `other`, as far as `stat` can
    /// tell (§3). A file that merely got another mode or name has another ctime and is read again.
    pub fn same_content(&self, other: &Self) -> bool {
        (self.size, self.mtime, self.ctime, self.ino, self.dev)
            == (other.size, other.mtime, other.ctime, other.ino, other.dev)
    }

    /// Whether somebody who fetches the entry would see a difference.
    fn same_to_others(&self, other: &Self) -> bool {
        (self.size, self.mtime, self.mode, self.uid, self.gid, self.links > 1, self.sparse)
            == (other.size, other.mtime, other.mode, other.uid, other.gid, other.links > 1, other.sparse)
    }
}

/// Number of a folder in its index; the root is [`FolderId::ROOT`]. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FolderId(pub u32);

impl FolderId {
    /// In which the root stands, under the empty name.
    pub(crate) const ABOVE: Self = Self(0);
    /// The folder that the index is of.
    pub const ROOT: Self = Self(1);
}

/// The content of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Merkle root over the hashes of its blocks.
    pub root: Hash,
    /// Weak hash of the only block of a file that has just one; else 0.
    pub weak: u32,
    /// Under which number the hashes of its blocks lie; 0 if it has at most one, whose hash is `root`.
    pub blocks: u64,
    /// False if the file was changed so shortly before it was read that another change might not show in
    /// its times (§3): the content is to be read again before it is believed.
    pub settled: bool,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file; without content if it could not be read.
    File(Option<Content>),
    /// A folder.
    Folder(FolderId),
    /// A symlink and where it points.
    Symlink(Vec<u8>),
}

/// What the index says of one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it was last found changed, in the index's own counting.
    pub sequence: u64,
    /// What `stat` told.
    pub stamp: Stamp,
    /// First half of a hash over its extended attributes and ACLs; none if it has none.
    pub attributes: Option<[u8; 16]>,
    /// What it is.
    pub kind: Kind,
}

impl Record {
    /// The content, if it is known and settled.
    pub fn content(&self) -> Option<&Content> {
        match &self.kind {
            Kind::File(Some(content)) if content.settled => Some(content),
            _ => None,
        }
    }

    /// Whether the difference between two records of one entry is none to others: only what this machine
    /// alone knows, as the inode, has changed.
    pub(crate) fn same_to_others(&self, other: &Self) -> bool {
        let kinds = match (&self.kind, &other.kind) {
            (Kind::File(a), Kind::File(b)) => match (a, b) {
                (Some(a), Some(b)) => a.root == b.root && a.settled == b.settled,
                (a, b) => a.is_none() && b.is_none(),
            },
            (Kind::Folder(a), Kind::Folder(b)) => a == b,
            (Kind::Symlink(a), Kind::Symlink(b)) => a == b,
            _ => false,
        };
        kinds && self.attributes == other.attributes && self.stamp.same_to_others(&other.stamp)
    }
}
