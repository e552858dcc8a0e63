//! Values that events, commands and reports share.
//!
//! These are plain serde enums inside versioned payloads: adding a variant at the END is compatible
//! for readers that are new; any other change needs a new payload version (`upcast.rs`).

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{AgentId, GroupId, Keep, Private, RunOptions, Share, SyncPolicy, When};

/// An agent, or all agents of a group at the moment a run starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Party {
    /// One agent.
    Agent(AgentId),
    /// A group's members.
    Group(GroupId),
}

/// A folder at a party. Paths are bytes as the agent's system has them; relative ones are below the
/// agent's `folders_storage_path`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Where.
    pub party: Party,
    /// Which folder, or at a source which file or folder.
    pub path: Private<Vec<u8>>,
}

/// What a job does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobSpec {
    /// One source's folder to many destinations; repeatable.
    Distribution {
        /// The source: one agent.
        source: Place,
        /// The destinations, at least one.
        destinations: Vec<Place>,
        /// What is asked of its runs.
        options: Private<RunOptions>,
    },
    /// Many sources' folders to storage, a folder for each; repeatable. From level 3 on.
    Consolidation {
        /// The sources, at least one. Each has a run of its own.
        sources: Vec<Place>,
        /// The destinations, at least one. The path is what the sources' folders are below.
        destinations: Vec<Place>,
        /// The folder of a source below a destination's path: names between `/`, with `%SRC:TAG%` for a tag of the
        /// source and `%%` for a percent sign.
        subfolder: Private<String>,
        /// What becomes of the files at a source when every destination has them.
        after: Disposal,
        /// What is asked of its runs.
        options: Private<RunOptions>,
    },
    /// One folder, the same at all members, until its run is stopped. From level 4 on.
    Synchronization {
        /// Who takes part, at least one.
        members: Vec<Share>,
        /// What holds for all of them.
        policy: SyncPolicy,
    },
    /// Sources' folders to storage that keeps versions of each; repeatable, by hand or by itself. From level 5 on.
    Backup {
        /// The sources, at least one. Each has a run of its own, and versions of its own.
        sources: Vec<Place>,
        /// The storage, at least one. The path is what the sources' shelves are below.
        destinations: Vec<Place>,
        /// The shelf of a source below a destination's path, named like the folders of a consolidation.
        subfolder: Private<String>,
        /// When it is started.
        when: When,
        /// Which versions are kept.
        keep: Keep,
        /// What is asked of its runs.
        options: Private<RunOptions>,
    },
}

/// What becomes of files at their source when every destination of a run has confirmed that it has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disposal {
    /// They stay.
    #[default]
    Keep,
    /// They are moved to the archive of the source's folder, and deleted there later.
    Archive {
        /// Days that they stay there, from 1.
        days: u32,
    },
    /// They are deleted.
    Delete,
}

/// What was disposed of at the source of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disposed {
    /// Files that were archived or deleted.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that stay, as they are not what the manifest says any more.
    pub changed: u64,
    /// Files that were not there any more.
    pub gone: u64,
    /// Files that stay, as they could not be read, moved or deleted; each is a problem of the run.
    pub failed: u64,
}

/// What an agent is in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Has the content and signs the manifest.
    Source,
    /// Shall have the content.
    Destination,
    /// Synchronizes: gives and takes.
    Member,
}

/// One agent's part in a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Participant {
    /// Who.
    pub agent: AgentId,
    /// As what.
    pub role: Role,
    /// Which of the run's folders is its own: a place in [`crate::RunStarted::paths`].
    pub path: u16,
}

/// Where an agent stands in a run. The order is the usual course.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RunAgentState {
    /// The command is issued; the agent has not answered.
    Waiting,
    /// The agent verified the command and will act on it.
    Accepted,
    /// Source, member: reading and hashing its folder.
    Indexing,
    /// Source: manifest signed, serving blocks.
    Serving,
    /// Destination: no peer reached yet.
    FindingPeers,
    /// Destination: fetching the manifest.
    FetchingManifest,
    /// Destination: comparing with what is on disk, fetching blocks.
    Transferring,
    /// Destination: renaming into place, restoring modes and times.
    Finalizing,
    /// Cannot go on for now (disk full, say); tries again by itself. The problem is reported.
    Stalled,
    /// Destination: everything in place. Source: run over.
    Done,
    /// Everything in place but for entries reported as problems.
    DoneWithErrors,
    /// Gave up; the problem is reported.
    Failed,
    /// Stopped by command.
    Stopped,
    /// Member: watches its folder, gives and takes changes. How far it is behind is telemetry.
    Synchronizing,
}

impl RunAgentState {
    /// Whether the agent will do no more in this run.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::DoneWithErrors | Self::Failed | Self::Stopped)
    }

    /// The name for people and scripts, such as `finding_peers`; the API and the agent's status show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Accepted => "accepted",
            Self::Indexing => "indexing",
            Self::Serving => "serving",
            Self::FindingPeers => "finding_peers",
            Self::FetchingManifest => "fetching_manifest",
            Self::Transferring => "transferring",
            Self::Finalizing => "finalizing",
            Self::Stalled => "stalled",
            Self::Done => "done",
            Self::DoneWithErrors => "done_with_errors",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Synchronizing => "synchronizing",
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Every destination has everything.
    Succeeded,
    /// Every destination has ended, some entries could not be delivered.
    SucceededWithErrors,
    /// At least one destination, or the source, failed.
    Failed,
    /// An operator stopped it.
    Stopped,
}

/// What kind of trouble, for grouping and for what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProblemClass {
    /// No room on the file system.
    DiskFull,
    /// The system refused access.
    PermissionDenied,
    /// The entry is not there (any more).
    NotFound,
    /// The source file changed while it was read or after it was indexed.
    SourceChanged,
    /// A symlink that leads out of the folder; never followed, not delivered.
    UnsafeLink,
    /// A name the folder's system or our rules do not allow.
    UnsafeName,
    /// Not a file, folder or symlink: device, socket, pipe.
    UnsupportedKind,
    /// A peer sent a block that does not match its hash; the peer is avoided.
    CorruptBlock,
    /// A manifest that does not verify or breaks its rules.
    BadManifest,
    /// A limit of this agent is exceeded.
    LimitExceeded,
    /// Any other error of the system.
    Io,
    /// The agent's own fault.
    Internal,
    /// Something else was in the place of entries of a run whose source disposes of them; it is kept in the folder's
    /// archive. Since level 3.
    Replaced,
    /// What storage kept as a version is missing or not what was backed up any more: it is not given back. Since level 5.
    Damaged,
}

/// One thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Kind.
    pub class: ProblemClass,
    /// Path of the entry inside the run's folder, as bytes; empty if none is concerned.
    pub path: Vec<u8>,
    /// What happened and what to do, one line for people.
    pub detail: String,
}

/// The part of a [`Problem`] that may name a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemText {
    /// See [`Problem::path`].
    pub path: Vec<u8>,
    /// See [`Problem::detail`].
    pub detail: String,
}

/// Why an agent refused a command, or the service an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalReason {
    /// The signature does not hold, or the key is not trusted.
    BadSignature,
    /// Addressed to somebody else.
    WrongAudience,
    /// Its sequence was seen before.
    Replayed,
    /// Not valid yet.
    TooEarly,
    /// Not valid any more.
    Expired,
    /// Not understood: written by a newer program.
    NotUnderstood,
    /// The owner of the agent does not allow it (path, script).
    NotAllowed,
    /// The token is not known, or its secret is wrong.
    UnknownToken,
    /// The token has no uses left.
    TokenSpent,
    /// The token's time is over, or it was revoked.
    TokenExpired,
    /// The agent was removed.
    Removed,
}

/// What one agent moved in one run, over all its restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferStats {
    /// Files, folders and symlinks of the manifest.
    pub entries: u64,
    /// Bytes of all files of the manifest.
    pub bytes_total: u64,
    /// Content blocks of the manifest.
    pub blocks_total: u64,
    /// Content blocks that arrived from peers and verified, each counted once per arrival.
    pub blocks_fetched: u64,
    /// Content blocks that were on disk already.
    pub blocks_reused: u64,
    /// Content blocks that arrived though they were verified before.
    pub blocks_duplicate: u64,
    /// Blocks that did not match their hash.
    pub blocks_corrupt: u64,
    /// Content bytes received from the source.
    pub bytes_from_source: u64,
    /// Content bytes received from other destinations.
    pub bytes_from_peers: u64,
    /// Content bytes sent to others, repeats after loss not counted.
    pub bytes_sent: u64,
}
