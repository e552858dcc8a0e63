//! What a synchronization job says: who takes part with which rights, what of the folder is wanted where, what is kept
//! of what is replaced; and what its members tell of (`edge-agent/SYNC.md`).

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{AgentId, Party, Private};

/// Who takes part in a synchronization: an agent, or all agents of a group at the moment it is named to a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Who.
    pub party: Party,
    /// Which folder there.
    pub path: Private<Vec<u8>>,
    /// With which rights.
    pub permission: Permission,
    /// Which part of the tree is wanted there.
    pub selection: Private<Selection>,
}

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Permission {
    /// Its changes are everybody's.
    ReadWrite,
    /// It only receives.
    ReadOnly {
        /// What becomes of changes that are made there.
        local: LocalChanges,
    },
}

impl Permission {
    /// Whether its changes are everybody's.
    pub fn may_write(self) -> bool {
        self == Self::ReadWrite
    }

    /// The name for people and scripts: `read_write`, `read_only`, `read_only_revert`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadWrite => "read_write",
            Self::ReadOnly { local: LocalChanges::KeepAside } => "read_only",
            Self::ReadOnly { local: LocalChanges::Revert } => "read_only_revert",
        }
    }
}

/// What becomes of changes at a member that only receives (SYNC.md §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LocalChanges {
    /// New files stay, a changed file stays under `name.local-<n>.ext`.
    KeepAside,
    /// New and changed files go to the archive.
    Revert,
}

/// The part of the tree that a member wants. The default wants everything.
///
/// A path is wanted if the rules do not ignore it and, where there are patterns, it is what one names, above it or
/// below it. Rules and patterns have the form of lines of a `.gitignore` at the top of the folder; of the rules the
/// last that matches decides, and one that begins with `!` takes back what an earlier one ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Selection {
    /// What is left out.
    pub ignore: Vec<String>,
    /// What alone is wanted; everything if there is none.
    pub wanted: Vec<String>,
}

impl Selection {
    /// Whether nothing is left out.
    pub fn is_everything(&self) -> bool {
        self.ignore.is_empty() && self.wanted.is_empty()
    }
}

/// What holds for all members of a synchronization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPolicy {
    /// How long what was replaced or deleted is kept in the archive of each member's folder; none: not at all.
    pub archive: Option<ArchiveLimits>,
    /// The guard asks before more than this share of a member's entries goes at once, in percent; 1 to 100, and with
    /// 100 it never asks. Default 25.
    pub guard_percent: u8,
    /// Fewer entries than this go without a question. Default 20.
    pub guard_min: u32,
}

/// An archive of 30 days without a limit of size, and the guard of SYNC.md §6.
impl Default for SyncPolicy {
    fn default() -> Self {
        Self {
            archive: Some(ArchiveLimits { max_age_days: Some(30), max_bytes: None }),
            guard_percent: 25,
            guard_min: 20,
        }
    }
}

/// What an archive keeps: the oldest goes first when a limit is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveLimits {
    /// Days that a file stays, from 1; none: for ever.
    pub max_age_days: Option<u32>,
    /// Bytes of all files in it; none: as many as the disk holds.
    pub max_bytes: Option<u64>,
}

/// One member of a run, as [`crate::RunMembersSet`] lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunMember {
    /// Who.
    pub agent: AgentId,
    /// Which of the event's folders is its own.
    pub path: u16,
    /// With which rights.
    pub permission: Permission,
    /// Which of the event's selections is its own.
    pub selection: u16,
}

/// A member as the others need to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPeer {
    /// Who.
    pub agent: AgentId,
    /// Its Ed25519 key.
    pub public_key: [u8; 32],
    /// With which rights.
    pub permission: Permission,
    /// Addresses (`IP:PORT`) where it was last known; may be empty or stale.
    pub addresses: Vec<String>,
}

/// What a person answers when the guard asks (SYNC.md §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuardAnswer {
    /// The deletions were meant: they are everybody's.
    Delete,
    /// They were not: everything is fetched again.
    Restore,
}

impl GuardAnswer {
    /// The name for people and scripts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Restore => "restore",
        }
    }
}

/// Which conflict: what the name of its copy says of the change that lost, the same at every member (SYNC.md §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConflictKey {
    /// The first bytes of the agent whose change lost.
    pub agent: [u8; 4],
    /// The first bytes of its replica.
    pub replica: [u8; 2],
    /// The change's counter there.
    pub change: u64,
}

impl ConflictKey {
    /// What the name of a conflict copy says; none if the path is no such copy.
    pub fn of_copy(path: &[u8]) -> Option<Self> {
        const MARK: &[u8] = b".conflict-";
        let name_at = path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
        let name = &path[name_at..];
        let at = name.windows(MARK.len()).rposition(|w| w == MARK)? + MARK.len();
        let (agent, rest) = name[at..].split_at_checked(8)?;
        let (replica, rest) = rest.strip_prefix(b"-")?.split_at_checked(4)?;
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let (change, extension) = rest.split_at(digits);
        if !(extension.is_empty() || extension[0] == b'.') {
            return None;
        }
        let change = core::str::from_utf8(change).ok()?.parse().ok()?;
        Some(Self { agent: hex(agent)?, replica: hex(replica)?, change })
    }
}

fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            *byte = *byte << 4 | value;
        }
    }
    Some(bytes)
}

/// The part of a conflict that names files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictText {
    /// Path inside the folder, where the winner is.
    pub path: Vec<u8>,
    /// Path of the copy under which the loser is kept.
    pub copy: Vec<u8>,
}

/// Why something cannot be at its path (SYNC.md §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Obstacle {
    /// The file system takes its name for that of something else that is there.
    NameTaken,
    /// The file system has no such names.
    BadName,
    /// Nobody who could be asked has its content any more.
    NobodyHas,
    /// It is a symlink that leads out of the folder.
    UnsafeLink,
    /// The folder that it would be in is not there.
    NoFolder,
    /// What would have to go is a folder that holds things which are not synchronized.
    NotEmpty,
    /// What was made at the member is larger than any takes; the others keep what was there.
    TooLarge,
}

impl Obstacle {
    /// The name for people and scripts, such as `name_taken`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NameTaken => "name_taken",
            Self::BadName => "bad_name",
            Self::NobodyHas => "nobody_has",
            Self::UnsafeLink => "unsafe_link",
            Self::NoFolder => "no_folder",
            Self::NotEmpty => "not_empty",
            Self::TooLarge => "too_large",
        }
    }
}

/// The part of a blocked path that names files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedText {
    /// Path inside the folder.
    pub path: Vec<u8>,
    /// What has its name, if that is the obstacle; else empty.
    pub by: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copys_name_tells_the_conflict() {
        let key = |path: &[u8]| ConflictKey::of_copy(path);
        let expected = ConflictKey { agent: [0x11, 0x22, 0x33, 0x44], replica: [0xab, 0xcd], change: 307 };
        for path in [
            &b"a/b.conflict-11223344-abcd307.txt"[..],
            b".profile.conflict-11223344-abcd307",
            b"b.conflict-99999999-00001.conflict-11223344-abcd307.txt",
        ] {
            assert_eq!(key(path), Some(expected));
        }
        for path in [
            &b"a.conflict-of-interest.txt"[..],
            b"a.conflict-11223344-abcd",
            b"a.conflict-11223344-abcd307x",
            b"a.conflict-1122334g-abcd307",
            b"a.conflict-11223344-abcd99999999999999999999",
            b"a.conflict-11223344-abcd307/b",
            b"",
        ] {
            assert_eq!(key(path), None, "{}", String::from_utf8_lossy(path));
        }
    }
}
