//! What a [`super::Replica`] asks its agent to do, and how the agent answers (SYNC.md §7, §11).

use alloc::vec::Vec;

use agent_proto::sync::SyncMessage;
use event_schema::AgentId;

use super::row::Stamp;
use crate::merkle::Hash;

/// Something to be done by the agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make every put of the index so far durable, then call `handle_synced`. One at a time.
    Sync {
        /// To be handed back.
        ticket: u64,
    },
    /// Send a message to a connected peer.
    Send {
        /// To whom.
        peer: AgentId,
        /// What.
        message: SyncMessage,
    },
    /// Close the session with a peer: it broke the rules too often.
    Disconnect {
        /// Which.
        peer: AgentId,
    },
    /// Make a staged file of this size, and put into it what this agent has already of this content: at `from`, in
    /// the archive, under other jobs, staged before. Verified by hashing. Answer `handle_reused`.
    Stage {
        /// Number of the transfer.
        transfer: u32,
        /// For which path.
        path: Vec<u8>,
        /// Which content.
        root: Hash,
        /// Bytes.
        size: u64,
        /// A path of this folder that should have it.
        from: Option<Vec<u8>>,
    },
    /// Find these blocks on this agent, in the older version at the same path first. Answer `handle_reused`.
    Reuse {
        /// Number of the transfer.
        transfer: u32,
        /// First of the blocks.
        first: u32,
        /// Their hashes.
        hashes: Vec<Hash>,
    },
    /// Find these blocks, all of full length, at any place of the older version at the same path. Answer `handle_reused`.
    Search {
        /// Number of the transfer.
        transfer: u32,
        /// Number, weak and strong hash of each.
        sought: Vec<(u32, u32, Hash)>,
    },
    /// The transfer is over. What is staged may be kept for a while: `Stage` of the same content finds it.
    Drop {
        /// Number of the transfer.
        transfer: u32,
    },
    /// Read a block of a file here, check that it hashes to what was indexed, and hand it to the transport under
    /// `agent_proto::sync::block_tag`. Answer `handle_sent`, or `handle_read_failed`.
    Upload {
        /// To whom.
        peer: AgentId,
        /// The peer's number of the transfer.
        transfer: u32,
        /// Which file.
        path: Vec<u8>,
        /// What its content was when it was indexed.
        root: Hash,
        /// And its size: a file of another one is another.
        size: u64,
        /// Which block.
        block: u32,
    },
    /// Send `Hashes` of a file here: of the blocks of one page, strong or weak ones (`agent_proto::sync::WEAK_PAGE`; zero for
    /// those that would take too long), or the roots of all pages; `Unavailable` if they are not known any more. Few at a time for a peer: answer `handle_hashes_sent`.
    UploadHashes {
        /// To whom.
        peer: AgentId,
        /// The peer's number of the transfer.
        transfer: u32,
        /// Which file.
        path: Vec<u8>,
        /// What its content was when it was indexed.
        root: Hash,
        /// And its size: a file of another one is another.
        size: u64,
        /// Which page.
        page: Option<u32>,
    },
    /// Change the folder, if it is still as expected. Answer `handle_changed`.
    Change {
        /// To be handed back.
        change: u32,
        /// Where.
        path: Vec<u8>,
        /// What must be there.
        expected: Expected,
        /// What becomes of what is there.
        displaced: Displaced,
        /// What is there then.
        make: Make,
    },
    /// Look at a path (of a folder: at everything in it) and tell `handle_found` or `handle_gone`, now or as soon as
    /// it can be read in a settled state; `handle_gone` too if the index has nothing there either.
    Look {
        /// Which.
        path: Vec<u8>,
    },
    /// A conflict was resolved; to be listed for people.
    Conflict {
        /// Where.
        path: Vec<u8>,
        /// Under which name the loser is kept.
        copy: Vec<u8>,
        /// Whose change it was.
        loser: AgentId,
        /// Whose change is under the name.
        winner: AgentId,
    },
    /// What should be at a path cannot be there; to be listed for people until `Unblocked`.
    Blocked {
        /// Which.
        path: Vec<u8>,
        /// Why.
        why: Obstacle,
    },
    /// It can be there now, or is not wanted any more.
    Unblocked {
        /// Which.
        path: Vec<u8>,
    },
    /// So many entries are gone that nothing is told or changed until `handle_confirm`, or until they are back.
    Guard {
        /// How many.
        missing: u64,
        /// Of how many.
        total: u64,
    },
    /// They are back.
    GuardLifted,
    /// This index is an older copy of itself; it counts as a new replica from now on. For the log.
    RolledBack,
    /// A peer did what no honest peer does; to be reported.
    Misbehaved {
        /// Who.
        peer: AgentId,
        /// What.
        what: Misbehaviour,
    },
}

/// What must be at a path for a change to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing, under any form that the file system takes for the same name.
    Absent,
    /// A file or link that looks like this.
    File(Stamp),
    /// A folder; if it is replaced or removed, an empty one.
    Folder,
}

/// What becomes of what a change replaces or removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Displaced {
    /// There is nothing; or it stays and only its metadata changes; or it is an empty folder.
    Nothing,
    /// To the archive.
    Archive,
    /// To this name in the folder, which must be free.
    Keep(Vec<u8>),
}

/// What a change makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Make {
    /// Nothing: it removes.
    Nothing,
    /// The staged file, complete, with this metadata.
    Staged {
        /// Number of the transfer.
        transfer: u32,
        /// Opaque metadata.
        meta: Vec<u8>,
    },
    /// The file that is at another path, if it still looks like this, with this metadata.
    Moved {
        /// From where.
        from: Vec<u8>,
        /// How it must look.
        stamp: Stamp,
        /// Opaque metadata.
        meta: Vec<u8>,
    },
    /// A folder.
    Folder {
        /// Opaque metadata; empty for the usual one.
        meta: Vec<u8>,
    },
    /// A symlink.
    Link {
        /// Where it points.
        target: Vec<u8>,
        /// Opaque metadata.
        meta: Vec<u8>,
    },
    /// New metadata of what is there.
    Meta {
        /// Opaque metadata.
        meta: Vec<u8>,
    },
}

/// How a change went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Made. The file system is durable in it.
    Done {
        /// How the path looks now; default if nothing is there.
        stamp: Stamp,
        /// How what was moved to [`Displaced::Keep`] looks there.
        kept: Option<Stamp>,
    },
    /// Something is not as expected; nothing was changed.
    Refused,
    /// The folder holds something.
    NotEmpty,
    /// The file system failed; nothing was changed.
    Failed,
}

/// Why something cannot be at its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The file system takes its name for another one that is here.
    NameTaken {
        /// By what.
        by: Vec<u8>,
    },
    /// The file system has no such names.
    BadName,
    /// Nobody who could be asked has its content (any more).
    NobodyHas,
    /// It is a symlink that leads out of the folder.
    UnsafeLink,
    /// The folder it would be in is not here.
    NoFolder,
    /// What somebody made here is larger than any member takes, or its metadata is; others keep what was there.
    TooLarge,
    /// What is to be removed or replaced is a folder that holds things which are not synchronized.
    NotEmpty,
}

/// What a peer did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// A message over a limit, malformed, or out of place.
    BadMessage,
    /// A statement or head whose signature does not hold.
    BadSignature,
    /// A statement of a member that may not change anything, told by one that cannot vouch for it.
    NotAllowed,
    /// A version with counters that nobody has reached.
    AbsurdVersion,
    /// Blocks or hashes that do not match; nothing is fetched from it any more.
    BadContent,
    /// More requests than fit.
    Flood,
}
