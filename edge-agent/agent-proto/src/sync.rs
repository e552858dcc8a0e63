//! What members of a synchronization job say to each other over a µTP2 session (`edge-agent/SYNC.md` §4, §5).
//!
//! Each [`SyncMessage`] is one message of µTP2's ordered channel. Blocks travel as tagged data whose tag is
//! [`block_tag`]. Everything here is hostile input until `sync_core::sync` has checked it.

use alloc::vec::Vec;

use event_schema::{AgentId, Signature, tagged_enum};
use serde::{Deserialize, Serialize};

/// Statements about one path in an index entry: as many concurrent ones as a path can have (SYNC.md §9).
pub const STATEMENTS_MAX: usize = 64;
/// Statements of one content about one path; of more the greatest stay (SYNC.md §2).
pub const ALIKE_MAX: usize = 8;
/// What all statements of a path may weigh together (SYNC.md §2), so that a row fits into a message.
pub const ROW_WEIGHT_MAX: usize = 256 * 1024;
/// Replicas in one version.
pub const VERSION_MAX: usize = 1024;
/// Replicas in a summary.
pub const SUMMARY_MAX: usize = 4096;
/// Bytes of an entry's metadata: the largest extended attribute of Linux.
pub const META_MAX: usize = 64 * 1024;
/// Bytes of a file: pages of hashes of it fit into one message.
pub const FILE_MAX: u64 = 4 << 40;
/// Blocks whose hashes make one page: 256 MiB of a file, 256 KiB of hashes.
pub const PAGE_BLOCKS: u32 = 8192;
/// In the page of a `GetHashes`: asks for the weak hashes of the page's blocks (SYNC.md §5).
pub const WEAK_PAGE: u32 = 1 << 31;
/// Entries in one `Index`.
pub const ENTRIES_MAX: usize = 1024;
/// Heads in one `Index` or `Hello`, and heads of others that are kept.
pub const HEADS_MAX: usize = 2048;
/// Lives in one head: the newest.
pub const LIVES_MAX: usize = 8;
/// Members in one `Known`.
pub const KNOWN_MAX: usize = 64;
/// Files in one `Request`, and ranges of one file in it.
pub const FILES_MAX: usize = 1024;
/// The largest counter: nobody makes so many changes.
pub const COUNTER_MAX: u64 = 1 << 53;

/// One life of one member's index: the first 8 bytes of a hash over run, agent and incarnation (SYNC.md §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId(pub [u8; 8]);

/// A change: the `counter`-th of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    /// Whose.
    pub replica: ReplicaId,
    /// From 1.
    pub counter: u64,
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Value {
    /// Nothing any more.
    Deleted,
    /// A symlink.
    Link {
        /// Where it points.
        target: Vec<u8>,
        /// Metadata as the agent encodes it; opaque here.
        meta: Vec<u8>,
    },
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// RFC 9162 root over the hashes of its blocks.
        root: [u8; 32],
        /// Metadata as the agent encodes it; opaque here.
        meta: Vec<u8>,
    },
    /// A folder.
    Folder {
        /// Metadata as the agent encodes it; opaque here.
        meta: Vec<u8>,
        /// Nobody made it: it is there because something in it outlived its deletion (SYNC.md §3).
        implied: bool,
    },
}

/// What its author says a path is, on top of what it knew (SYNC.md §2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Who says it.
    pub author: ReplicaId,
    /// Every change it includes, its own as well; sorted by replica, each once.
    pub version: Vec<Dot>,
    /// How many statements it stands on, and itself; at most the sum of the version's counters.
    pub depth: u64,
    /// What is there.
    pub value: Value,
    /// The author's, over run, path and all the above.
    pub signature: Signature,
}

/// What a replica counted between two starts of its agent: from `since` on, until the next life begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// Random, new at every start.
    pub id: u32,
    /// The last counter before it.
    pub since: u64,
}

/// How far a replica has counted, under its agent's signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The agent's public key; its id is the hash of it.
    pub key: [u8; 32],
    /// Random number of this life of its index.
    pub incarnation: u64,
    /// The newest change it may have told anybody of.
    pub counter: u64,
    /// The newest [`LIVES_MAX`] lives in which it told anything, oldest first: two heads of which neither goes on
    /// where the other was are of two copies of one index (SYNC.md §8).
    pub lives: Vec<Life>,
    /// The agent's, over run and all the above.
    pub signature: Signature,
}

/// How much of somebody's index one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Which numbering.
    pub epoch: u64,
    /// In which life of it that was told.
    pub life: u32,
    /// Everything up to here.
    pub sequence: u64,
}

/// One path of an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// Path inside the folder, `/` between names.
    pub path: Vec<u8>,
    /// All statements that no other one includes, the winner first.
    pub statements: Vec<Statement>,
    /// Which of them the sender has on its disk.
    pub holds: Option<u8>,
}

/// What one member is known to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberKnows {
    /// Who.
    pub member: AgentId,
    /// Every change up to these counters.
    pub summary: Vec<Dot>,
}

/// Blocks of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRequest {
    /// The asker's number; comes back in the tag of every block.
    pub transfer: u32,
    /// Where the asked member said it has it.
    pub path: Vec<u8>,
    /// Which content.
    pub root: [u8; 32],
    /// First block and how many.
    pub ranges: Vec<(u32, u32)>,
}

tagged_enum! {
    /// From member to member.
    pub enum SyncMessage, upcast = event_schema::upcast::none {
        /// First message of both sides.
        (1, 1) "sync_hello" => Hello,
        /// A piece of the sender's index.
        (2, 1) "sync_index" => Index,
        /// A piece was taken.
        (3, 1) "sync_index_taken" => IndexTaken,
        /// What members are known to know.
        (4, 1) "sync_known" => Known,
        /// Ask for hashes of a file's blocks.
        (5, 1) "sync_get_hashes" => GetHashes,
        /// Hashes of a file's blocks, or of its pages.
        (6, 1) "sync_hashes" => Hashes,
        /// Ask for blocks of files.
        (7, 1) "sync_request" => Request,
        /// Nothing more of this transfer.
        (8, 1) "sync_cancel" => Cancel,
        /// The content cannot be had here.
        (9, 1) "sync_unavailable" => Unavailable,
    }
}

/// First message of both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// How much of the receiver's index the sender has.
    pub cursor: Option<Cursor>,
    /// What the sender believes the receiver knows.
    pub summary: Vec<Dot>,
    /// What it has that the receiver signed: heads of the receiver's replicas. Whoever is an older copy of itself
    /// sees it by them before it tells anything.
    pub heads: Vec<Head>,
}

/// A piece of the sender's index, in order of its sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Which numbering.
    pub epoch: u64,
    /// Which life of it (SYNC.md §8).
    pub life: u32,
    /// Follows on this sequence.
    pub after: u64,
    /// And reaches up to this one.
    pub up_to: u64,
    /// Heads of every replica that `entries` name, and of those whose count in `summary` is news.
    pub heads: Vec<Head>,
    /// Paths.
    pub entries: Vec<IndexEntry>,
    /// If this is all there is: what the sender knows.
    pub summary: Option<Vec<Dot>>,
}

/// A piece was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexTaken {
    /// Which numbering.
    pub epoch: u64,
    /// Up to here.
    pub up_to: u64,
}

/// What members are known to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// At most [`KNOWN_MAX`].
    pub members: Vec<MemberKnows>,
}

/// Ask for hashes of a file's blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetHashes {
    /// The asker's number.
    pub transfer: u32,
    /// Where the asked member said it has it.
    pub path: Vec<u8>,
    /// Which content.
    pub root: [u8; 32],
    /// Page of [`PAGE_BLOCKS`] block hashes, with [`WEAK_PAGE`] their weak ones; none: the roots of all pages.
    pub page: Option<u32>,
}

/// Hashes of a file's blocks, or of its pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hashes {
    /// The asker's number.
    pub transfer: u32,
    /// As asked.
    pub page: Option<u32>,
    /// In order; eight weak ones to each.
    pub hashes: Vec<[u8; 32]>,
}

/// Weak hashes as `Hashes` has them: eight to each 32 bytes, little-endian, and zeros behind.
pub fn pack_weak(weak: &[u32]) -> Vec<[u8; 32]> {
    let pack = |eight: &[u32]| {
        let mut packed = [0; 32];
        packed.chunks_mut(4).zip(eight).for_each(|(bytes, weak)| bytes.copy_from_slice(&weak.to_le_bytes()));
        packed
    };
    weak.chunks(8).map(pack).collect()
}

/// The other way round; what is behind the last one is not looked at.
pub fn unpack_weak(packed: &[[u8; 32]], count: usize) -> Vec<u32> {
    let all = packed.iter().flat_map(|eight| eight.chunks(4));
    all.filter_map(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?))).take(count).collect()
}

/// Ask for blocks of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// At most [`FILES_MAX`].
    pub files: Vec<FileRequest>,
}

/// Nothing more of this transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The asker's number.
    pub transfer: u32,
}

/// The content cannot be had here (any more).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unavailable {
    /// The asker's number.
    pub transfer: u32,
}

/// The µTP2 tag of a block: the asker's transfer number and the block's.
pub const fn block_tag(transfer: u32, block: u32) -> u64 {
    (transfer as u64) << 32 | block as u64
}

/// Transfer and block of a tag.
pub const fn of_block_tag(tag: u64) -> (u32, u32) {
    ((tag >> 32) as u32, tag as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn weak_hashes_come_back() {
        for count in [0, 1, 7, 8, 9, 8192] {
            let weak: Vec<u32> = (1..=count).collect();
            let packed = pack_weak(&weak);
            assert_eq!(packed.len(), weak.len().div_ceil(8));
            assert_eq!(unpack_weak(&packed, weak.len()), weak);
        }
        assert_eq!(unpack_weak(&[[1; 32]], 20).len(), 8, "no more than there are");
    }

    #[test]
    fn messages_and_tags_come_back() {
        assert_eq!(of_block_tag(block_tag(7, 9)), (7, 9));
        let dot = Dot { replica: ReplicaId([1; 8]), counter: 300 };
        let statement = Statement {
            author: dot.replica,
            version: vec![dot],
            depth: 1,
            value: Value::Folder { meta: vec![1], implied: false },
            signature: Signature([0; 32], [1; 32]),
        };
        let entry = IndexEntry { path: b"a".to_vec(), statements: vec![statement], holds: Some(0) };
        let message = SyncMessage::from(Index {
            epoch: 1,
            life: 7,
            after: 0,
            up_to: 4,
            heads: Vec::new(),
            entries: vec![entry],
            summary: Some(vec![dot]),
        });
        assert_eq!(SyncMessage::decode(&message.encode()), Ok(message));
    }
}
