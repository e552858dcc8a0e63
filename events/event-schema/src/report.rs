//! Reports: facts that an agent states under its signature, numbered, so that anyone may carry them
//! home and the service can tell a repeat from news.

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::{
    AgentId, CommandId, DecodeError, Disposed, Domain, Problem, RefusalReason, RunAgentState, RunId, Signed,
    Tagged, Timestamp, TransferStats, decode_exact, encode, tagged_enum,
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
