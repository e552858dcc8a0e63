//! Reports: facts that an agent states under its signature, numbered, so that anyone may carry them
//! home and the service can tell a repeat from news.

use alloc::string::String;
use alloc::vec::Vec;

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::{
    AgentId, CommandId, ConflictKey, DecodeError, Disposed, Domain, GuardAnswer, JobId, NotThinned, Obstacle,
    Problem, RefusalReason, RunAgentState, RunId, Signed, Tagged, Timestamp, TransferStats, decode_exact,
    encode, tagged_enum,
};

/// One fact of one agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Who says so.
    pub agent: AgentId,
    /// Place in the agent's sequence, from 1 without gaps.
    pub sequence: u64,
    /// When, by the agent's clock.
    pub time: Timestamp,
    /// What.
    pub body: ReportBody,
}

#[derive(Serialize, Deserialize)]
struct ReportV1 {
    agent: AgentId,
    sequence: u64,
    time: Timestamp,
    body: Tagged,
}

tagged_enum! {
    /// What an agent reports.
    pub enum ReportBody, upcast = crate::upcast::none {
        /// A command was verified and will be obeyed.
        (1, 1) "command.accepted" => CommandAccepted,
        /// A command was not obeyed.
        (2, 1) "command.refused" => CommandRefused,
        /// The agent came to another state in a run.
        (3, 1) "run.state" => RunStateReported,
        /// The source signed a manifest.
        (4, 1) "run.manifest_signed" => ManifestSigned,
        /// Something went wrong.
        (5, 1) "run.problem" => ProblemReported,
        /// A destination ended.
        (6, 1) "run.completed" => RunCompleted,
        /// An agent stopped serving a run.
        (7, 1) "run.served" => RunServed,
        /// A source has disposed of what every destination has.
        (8, 1) "run.disposed" => DisposalReported,
        /// A member keeps both versions of a file.
        (9, 1) "run.conflict_found" => ConflictFound,
        /// Somebody saw to a conflict: its copy is gone.
        (10, 1) "run.conflict_settled" => ConflictSettled,
        /// The guard asks before so much is deleted.
        (11, 1) "run.guard_raised" => GuardRaised,
        /// It asks no more.
        (12, 1) "run.guard_lifted" => GuardLifted,
        /// Something cannot be at its path at this member.
        (13, 1) "run.path_blocked" => PathBlocked,
        /// It can be there now, or is not wanted any more.
        (14, 1) "run.path_unblocked" => PathUnblocked,
        /// A member's index turned out to be an older copy of itself.
        (15, 1) "run.rolled_back" => RolledBack,
        /// A storage agent keeps a version of a source's folder.
        (16, 1) "backup.version_kept" => VersionKept,
        /// It removed versions, as told.
        (17, 1) "backup.thinned" => Thinned,
        /// A source's folder has changed and come to rest.
        (18, 1) "backup.source_changed" => SourceChanged,
    }
}

/// A command was verified, stored, and will be obeyed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandAccepted {
    /// Which.
    pub command: CommandId,
    /// Its sequence.
    pub sequence: u64,
}

/// A command was authentic (its signature held) but was not obeyed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandRefused {
    /// Which.
    pub command: CommandId,
    /// Its sequence.
    pub sequence: u64,
    /// Why.
    pub reason: RefusalReason,
}

/// The agent came to another state in a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStateReported {
    /// Which run.
    pub run: RunId,
    /// The new state.
    pub state: RunAgentState,
}

/// The source's manifest is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestSigned {
    /// Which run.
    pub run: RunId,
    /// Merkle root over the manifest's blocks.
    pub root: [u8; 32],
    /// Files, folders and symlinks.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Content blocks.
    pub blocks: u64,
}

/// Something went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemReported {
    /// Which run.
    pub run: RunId,
    /// What.
    pub problem: Problem,
}

/// A destination ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCompleted {
    /// Which run.
    pub run: RunId,
    /// `Done`, `DoneWithErrors`, `Failed` or `Stopped`.
    pub state: RunAgentState,
    /// What was moved.
    pub stats: TransferStats,
}

/// An agent stopped serving a run: its last word on what it sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunServed {
    /// Which run.
    pub run: RunId,
    /// What was moved.
    pub stats: TransferStats,
}

/// A source did with its files as a `run.finish_and_dispose` told it to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisposalReported {
    /// Which run.
    pub run: RunId,
    /// What came of it.
    pub disposed: Disposed,
}

/// A member of a synchronization found two changes of a file that knew nothing of each other, and keeps both. Several
/// members may tell of the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictFound {
    /// Which run.
    pub run: RunId,
    /// Which conflict.
    pub conflict: ConflictKey,
    /// Path inside the folder, where the winner is.
    pub path: Vec<u8>,
    /// Path of the copy under which the loser is kept.
    pub copy: Vec<u8>,
    /// Whose change lost.
    pub loser: AgentId,
    /// Whose change won.
    pub winner: AgentId,
}

/// The copy that a conflict left is gone, at whichever member it was removed or renamed. Several members may tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictSettled {
    /// Which run.
    pub run: RunId,
    /// Which conflict.
    pub conflict: ConflictKey,
}

/// So much is gone from a member's folder that nothing is told or changed until a person answers, or it is back.
/// When more is gone than was told, that is another question, with another number: an answer never covers what nobody
/// was asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardRaised {
    /// Which run.
    pub run: RunId,
    /// The question's number: the agent never gives one twice in a run.
    pub guard: u64,
    /// Entries that are gone.
    pub missing: u64,
    /// Of how many.
    pub total: u64,
}

/// The guard asks no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardLifted {
    /// Which run.
    pub run: RunId,
    /// Which question.
    pub guard: u64,
    /// The answer that was carried out; none if what was gone is back.
    pub answer: Option<GuardAnswer>,
}

/// Something cannot be at its path at this member. At most [`BLOCKED_TOLD_MAX`] are told of at a time; how many there
/// are is telemetry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathBlocked {
    /// Which run.
    pub run: RunId,
    /// A number for it, which the agent gives no other path of the run.
    pub number: u64,
    /// Path inside the folder.
    pub path: Vec<u8>,
    /// Why.
    pub obstacle: Obstacle,
    /// What has its name, if that is the obstacle; else empty.
    pub by: Vec<u8>,
}

/// Blocked paths that an agent tells of at a time in a run.
pub const BLOCKED_TOLD_MAX: usize = 100;

/// It can be there now, or is not wanted any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathUnblocked {
    /// Which run.
    pub run: RunId,
    /// The number it was told of with.
    pub number: u64,
}

/// A member's index turned out to be an older copy of itself: it counts as another replica from now on (SYNC.md §8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// Which run.
    pub run: RunId,
}

/// A storage agent keeps the run's version. Told before `run.completed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionKept {
    /// Which run.
    pub run: RunId,
    /// The version's name: the one that was asked for, or the next one of its time that was free; or of the version
    /// before, if nothing has changed since.
    pub version: String,
    /// It has everything of the run's manifest.
    pub complete: bool,
    /// Nothing was made: the version before has the same manifest.
    pub unchanged: bool,
    /// Entries of the run's manifest.
    pub entries: u64,
    /// Bytes of all its files.
    pub bytes: u64,
}

/// What came of a `backup.thin`. Each version that it named is in one of the two lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thinned {
    /// Of which job.
    pub job: JobId,
    /// Whose versions.
    pub source: AgentId,
    /// Not there any more.
    pub removed: Vec<String>,
    /// Still there.
    pub failed: Vec<NotThinned>,
}

/// A folder that is watched has changed and come to rest. Changes while the agent did not run count too, and so does the
/// first look at a folder that was not watched before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceChanged {
    /// For which job it is watched.
    pub job: JobId,
}

impl ReportBody {
    /// The run in which it names a file: then the report is a private text.
    pub fn names_a_file_in(&self) -> Option<RunId> {
        match self {
            Self::ProblemReported(r) => Some(r.run),
            Self::ConflictFound(r) => Some(r.run),
            Self::PathBlocked(r) => Some(r.run),
            _ => None,
        }
    }
}

impl Report {
    /// Encodes and signs the report.
    pub fn sign(&self, key: &SigningKey) -> Signed {
        let body = ReportV1 {
            agent: self.agent,
            sequence: self.sequence,
            time: self.time,
            body: self.body.to_tagged(),
        };
        let mut bytes = alloc::vec![1];
        bytes.extend(encode(&body));
        Signed::sign(Domain::Report, bytes, key)
    }

    /// Decodes a report whose signature was checked before, or for showing what is on the log.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (version, body) = bytes.split_first().ok_or(DecodeError::Malformed { what: "Report" })?;
        if *version != 1 {
            return Err(DecodeError::Unknown { what: "Report", kind: 0, version: *version });
        }
        let r: ReportV1 = decode_exact("Report", body)?;
        Ok(Self {
            agent: r.agent,
            sequence: r.sequence,
            time: r.time,
            body: ReportBody::from_tagged(&r.body)?,
        })
    }

    /// Opens a signed report of the agent that holds `public_key`.
    ///
    /// # Errors
    /// If the signature does not hold, the bytes are no report, or it names another agent.
    pub fn open(signed: &Signed, public_key: &[u8; 32]) -> Result<Self, RefusalReason> {
        let bytes = signed.verify(Domain::Report, public_key).map_err(|_| RefusalReason::BadSignature)?;
        let report = Self::decode(bytes).map_err(|_| RefusalReason::NotUnderstood)?;
        if report.agent == AgentId::of_key(public_key) {
            Ok(report)
        } else {
            Err(RefusalReason::WrongAudience)
        }
    }
}
