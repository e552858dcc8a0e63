//! What Flotilla records and says under signature: ids, times, the record envelope, events, signed
//! commands and signed reports.
//!
//! Everything here is plain data with one byte form. Encoded bytes are what is stored, hashed and
//! signed; nothing re-encodes a stored event. `events/SCHEMA.md` lists every kind with its number;
//! start reading at [`Event`].
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod backup;
mod command;
mod event;
mod id;
pub mod level;
mod private;
mod record;
mod report;
mod signed;
mod subject;
mod synchronization;
mod tagged;
mod timestamp;
mod types;
pub mod upcast;

pub use backup::{
    BackupOrder, Errand, HOOK_NAME_LEN_MAX, HOOK_SECONDS_MAX, Keep, NotThinned, OPTION_FIRST_MAX,
    OPTION_LINE_LEN_MAX, OPTION_RULES_MAX, OPTIONS_LEN_MAX, Purpose, RunOptions, THINNED_MAX, ThinObstacle,
    VERSION_NAME_LEN_MAX, WatchedFolder, When,
};
pub use command::{
    AnswerGuard, Command, CommandBody, FinishAndDispose, FinishRun, JoinKeeping, JoinRun, PeerHint, StopRun,
    Synchronize, TakePart, ThinBackup, WatchBackup,
};
pub use event::{
    AgentApproved, AgentEnrolled, AgentOffline, AgentOnline, AgentRemoved, AgentSessionOpened, AgentTagged,
    AuditConflict, BackupSourceChanged, BackupThinned, BackupVersionKept, CommandAcknowledged, CommandIssued,
    EnrolmentRefused, Event, FleetFounded, GroupCreated, GroupMembersAdded, GroupMembersRemoved, JobCreated,
    JobDeleted, LeaseTaken, ReplicaStarted, ReplicaStopped, ReportReceived, RunAgentProgressed,
    RunConflictFound, RunConflictSettled, RunDisposed, RunFinished, RunGuardAnswered, RunGuardLifted,
    RunGuardRaised, RunManifestReady, RunMembersSet, RunPathBlocked, RunPathUnblocked, RunProblemReported,
    RunRolledBack, RunStarted, RunStopRequested, SchemaRaised, StateAttested, SubjectErased, SubjectOpened,
    TokenCreated, TokenRevoked, TokenUsed, path_of,
};
pub use id::{
    AgentId, BatchId, CommandId, GroupId, IdParseError, JobId, RecordId, ReplicaId, RunId, TokenId, UserId,
};
pub use private::{Confidential, ERASED, Owner, Placeholder, Private, SEALED, Visit};
pub use record::{Actor, Record};
pub use report::{
    BLOCKED_TOLD_MAX, CommandAccepted, CommandRefused, ConflictFound, ConflictSettled, DisposalReported,
    GuardLifted, GuardRaised, ManifestSigned, PathBlocked, PathUnblocked, ProblemReported, Report,
    ReportBody, RolledBack, RunCompleted, RunServed, RunStateReported, SourceChanged, Thinned, VersionKept,
};
pub use signed::{Domain, Signature, SignatureError, Signed};
pub use subject::{Field, Sealed, Subject, SubjectKey};
pub use synchronization::{
    ArchiveLimits, BlockedText, ConflictKey, ConflictText, GuardAnswer, LocalChanges, Obstacle, Permission,
    RunMember, Selection, Share, SyncPeer, SyncPolicy,
};
pub use tagged::{DecodeError, Tagged, decode_exact, encode};
pub use timestamp::Timestamp;
pub use types::{
    Disposal, Disposed, JobSpec, Outcome, Participant, Party, Place, Problem, ProblemClass, ProblemText,
    RefusalReason, Role, RunAgentState, TransferStats,
};
