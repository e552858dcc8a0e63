//! Commands: requests of the control service to one agent, signed, so that it does not matter who
//! carried them.

use alloc::string::String;
use alloc::vec::Vec;

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::{
    AgentId, BackupOrder, CommandId, DecodeError, Disposal, Domain, Errand, GuardAnswer, JobId, Permission,
    Purpose, RefusalReason, Role, RunId, RunOptions, Selection, Signed, SyncPeer, SyncPolicy, Tagged,
    Timestamp, WatchedFolder, decode_exact, encode, tagged_enum,
};

/// A command for one agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Identity, for answers.
    pub id: CommandId,
    /// The one agent that may obey it.
    pub audience: AgentId,
    /// Place in the agent's sequence, from 1 without gaps; the agent takes each once and in order.
    pub sequence: u64,
    /// When it was made.
    pub issued: Timestamp,
    /// Not to be obeyed before.
    pub not_before: Timestamp,
    /// Not to be obeyed after.
    pub expires: Timestamp,
    /// What to do.
    pub body: CommandBody,
}

#[derive(Serialize, Deserialize)]
struct CommandV1 {
    id: CommandId,
    audience: AgentId,
    sequence: u64,
    issued: Timestamp,
    not_before: Timestamp,
    expires: Timestamp,
    body: Tagged,
}

tagged_enum! {
    /// What an agent is asked to do.
    pub enum CommandBody, upcast = crate::upcast::none {
        /// Take part in a run.
        (1, 1) "run.join" => JoinRun,
        /// The run is over everywhere: stop serving, clean up.
        (2, 1) "run.finish" => FinishRun,
        /// Stop working on a run, keep what is in place.
        (3, 1) "run.stop" => StopRun,
        /// The run is over everywhere: dispose of the source's files, stop serving, clean up.
        (4, 1) "run.finish_and_dispose" => FinishAndDispose,
        /// Take part in a synchronization, or go on in it in another way.
        (5, 1) "run.synchronize" => Synchronize,
        /// A person's answer to the guard.
        (6, 1) "run.answer_guard" => AnswerGuard,
        /// Take part in a run as a destination that loses nothing of what is there.
        (8, 1) "run.join_keeping" => JoinKeeping,
        /// Take part in a run of which more is asked.
        (9, 1) "run.take_part" => TakePart,
        /// Remove versions of a backup.
        (10, 1) "backup.thin" => ThinBackup,
        /// Tell when a folder has changed, or do so no more.
        (11, 1) "backup.watch" => WatchBackup,
    }
}

/// Take part in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinRun {
    /// Which run.
    pub run: RunId,
    /// Of which job.
    pub job: JobId,
    /// The job's name, for people.
    pub job_name: String,
    /// As what.
    pub role: Role,
    /// The agent's folder: absolute, or below its `folders_storage_path`.
    pub path: Vec<u8>,
    /// Whose signature the manifest carries.
    pub source: AgentId,
    /// Everybody in the run, this agent too: who may be let in, with which key, and where to try.
    pub peers: Vec<PeerHint>,
    /// Trackers (`HOST:PORT`).
    pub trackers: Vec<String>,
    /// The run's secret, sealed to this agent (`agent-proto::seal`).
    pub sealed_secret: Vec<u8>,
}

/// Take part in a run as a destination whose folder may hold the only copy of something, since sources dispose of what they
/// brought: what is there is replaced only after it was put into the folder's archive, for good. Who does not understand it
/// refuses it, and so does not replace anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinKeeping {
    /// As any other run.
    pub join: JoinRun,
}

/// Take part in a run of which more is asked than of any: in the place of `run.join` and `run.join_keeping`. Who does not
/// understand it, or cannot do all of it, refuses it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TakePart {
    /// As any other run.
    pub join: JoinRun,
    /// As a destination: what is there is kept in the folder's archive when it is replaced, see [`JoinKeeping`].
    pub keeping: bool,
    /// What is asked of it.
    pub options: RunOptions,
    /// What it is for.
    pub purpose: Purpose,
}

/// Remove versions of a source's folder. What is not in the list stays, whatever it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThinBackup {
    /// Of which job.
    pub job: JobId,
    /// Whose versions.
    pub source: AgentId,
    /// The shelf that they stand on: absolute, or below the agent's `folders_storage_path`.
    pub path: Vec<u8>,
    /// Their names, at most [`crate::THINNED_MAX`].
    pub versions: Vec<String>,
}

/// Watch a source's folder until told otherwise. Said again, it holds in the place of what was said before of the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchBackup {
    /// For which job.
    pub job: JobId,
    /// What to watch, and how; none: nothing any more.
    pub folder: Option<WatchedFolder>,
}

impl CommandBody {
    /// The run to take part in, if that is what is asked.
    pub fn join(&self) -> Option<&JoinRun> {
        match self {
            Self::JoinRun(join)
            | Self::JoinKeeping(JoinKeeping { join })
            | Self::TakePart(TakePart { join, .. }) => Some(join),
            Self::FinishRun(_)
            | Self::StopRun(_)
            | Self::FinishAndDispose(_)
            | Self::Synchronize(_)
            | Self::AnswerGuard(_)
            | Self::ThinBackup(_)
            | Self::WatchBackup(_) => None,
        }
    }

    /// What of a backup it is about, if that is not a run.
    pub fn backup(&self) -> Option<BackupOrder> {
        match self {
            Self::ThinBackup(thin) => {
                Some(BackupOrder { job: thin.job, errand: Errand::Thin { source: thin.source } })
            }
            Self::WatchBackup(watch) => {
                let errand = if watch.folder.is_some() { Errand::Watch } else { Errand::Unwatch };
                Some(BackupOrder { job: watch.job, errand })
            }
            _ => None,
        }
    }

    /// Whether it makes the agent one of a run, of whatever kind.
    pub fn joins(&self) -> bool {
        self.join().is_some() || matches!(self, Self::Synchronize(_))
    }
}

/// A participant as its peers need to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHint {
    /// Who.
    pub agent: AgentId,
    /// Its Ed25519 key.
    pub public_key: [u8; 32],
    /// As what it takes part.
    pub role: Role,
    /// Addresses (`IP:PORT`) where it was last known; may be empty or stale.
    pub addresses: Vec<String>,
}

/// The run is over everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishRun {
    /// Which run.
    pub run: RunId,
}

/// Stop working on a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRun {
    /// Which run.
    pub run: RunId,
}

/// Every destination of a run has confirmed that it has everything: the source may do with its files as the job says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishAndDispose {
    /// Which run.
    pub run: RunId,
    /// Root of the manifest that the destinations confirmed: files are disposed of only if it is the source's own, and
    /// each only while it is what that manifest says.
    pub root: [u8; 32],
    /// What to do with them.
    pub disposal: Disposal,
}

/// Take part in a synchronization from now on, until `run.stop`. Said again with a greater revision when its members,
/// their rights, what is wanted or the policy have changed: all that it says then holds in the place of what was said
/// before, except that the folder stays the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Synchronize {
    /// Which run.
    pub run: RunId,
    /// Of which job.
    pub job: JobId,
    /// The job's name, for people.
    pub job_name: String,
    /// Counts what was ordered of the run's members, from 1.
    pub revision: u32,
    /// The agent's folder: absolute, or below its `folders_storage_path`.
    pub path: Vec<u8>,
    /// With which rights.
    pub permission: Permission,
    /// Which part of the tree is wanted here.
    pub selection: Selection,
    /// What holds for all members.
    pub policy: SyncPolicy,
    /// Every member, this agent too: who may be let in, with which key and rights, and where to try. Sessions with
    /// others are to be closed.
    pub members: Vec<SyncPeer>,
    /// Trackers (`HOST:PORT`).
    pub trackers: Vec<String>,
    /// The run's secret, sealed to this agent (`agent-proto::seal`).
    pub sealed_secret: Vec<u8>,
}

/// A person's answer to the guard of one member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerGuard {
    /// Which run.
    pub run: RunId,
    /// Which question: the number of the agent's `run.guard_raised`. Any other is passed over, so that an answer that
    /// comes late is never taken for one to another question.
    pub guard: u64,
    /// What it answers.
    pub answer: GuardAnswer,
}

impl Command {
    /// Encodes and signs the command.
    pub fn sign(&self, key: &SigningKey) -> Signed {
        let body = CommandV1 {
            id: self.id,
            audience: self.audience,
            sequence: self.sequence,
            issued: self.issued,
            not_before: self.not_before,
            expires: self.expires,
            body: self.body.to_tagged(),
        };
        let mut bytes = alloc::vec![1];
        bytes.extend(encode(&body));
        Signed::sign(Domain::Command, bytes, key)
    }

    /// Decodes a command without asking who signed it: for showing what is on the log.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (version, body) = bytes.split_first().ok_or(DecodeError::Malformed { what: "Command" })?;
        if *version != 1 {
            return Err(DecodeError::Unknown { what: "Command", kind: 0, version: *version });
        }
        let c: CommandV1 = decode_exact("Command", body)?;
        Ok(Self {
            id: c.id,
            audience: c.audience,
            sequence: c.sequence,
            issued: c.issued,
            not_before: c.not_before,
            expires: c.expires,
            body: CommandBody::from_tagged(&c.body)?,
        })
    }

    /// Id, audience and sequence of a command whose body this program need not understand: to refuse
    /// it by name. Check the signature first.
    ///
    /// # Errors
    /// If the bytes are no command, or one of an envelope that is not known.
    pub fn address(bytes: &[u8]) -> Result<(CommandId, AgentId, u64), DecodeError> {
        let (version, body) = bytes.split_first().ok_or(DecodeError::Malformed { what: "Command" })?;
        if *version != 1 {
            return Err(DecodeError::Unknown { what: "Command", kind: 0, version: *version });
        }
        let c: CommandV1 = decode_exact("Command", body)?;
        Ok((c.id, c.audience, c.sequence))
    }

    /// Opens a signed command as the agent `me` may: signature under one of `keys`, audience,
    /// sequence beyond `last_sequence`, and validity at `now`.
    ///
    /// # Errors
    /// The reason to refuse it with. Nothing is decoded before a signature held.
    pub fn open(
        signed: &Signed,
        keys: &[[u8; 32]],
        me: AgentId,
        last_sequence: u64,
        now: Timestamp,
    ) -> Result<Self, RefusalReason> {
        let bytes = keys
            .iter()
            .find_map(|key| signed.verify(Domain::Command, key).ok())
            .ok_or(RefusalReason::BadSignature)?;
        let command = Self::decode(bytes).map_err(|_| RefusalReason::NotUnderstood)?;
        if command.audience != me {
            Err(RefusalReason::WrongAudience)
        } else if command.sequence <= last_sequence {
            Err(RefusalReason::Replayed)
        } else if now < command.not_before {
            Err(RefusalReason::TooEarly)
        } else if now > command.expires {
            Err(RefusalReason::Expired)
        } else {
            Ok(command)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(audience: AgentId) -> Command {
        Command {
            id: CommandId([1; 16]),
            audience,
            sequence: 5,
            issued: Timestamp(100),
            not_before: Timestamp(100),
            expires: Timestamp(200),
            body: FinishRun { run: RunId([2; 16]) }.into(),
        }
    }

    #[test]
    fn opened_only_by_its_audience_once_and_in_time() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let keys = [[0; 32], key.verifying_key().to_bytes()];
        let me = AgentId([4; 16]);
        let signed = command(me).sign(&key);
        let open = |me, last, now| Command::open(&signed, &keys, me, last, Timestamp(now));
        assert_eq!(open(me, 4, 150), Ok(command(me)));
        assert_eq!(Command::address(&signed.bytes), Ok((command(me).id, me, 5)));
        assert!(Command::address(&signed.bytes[1..]).is_err());
        assert_eq!(open(AgentId([9; 16]), 4, 150), Err(RefusalReason::WrongAudience));
        assert_eq!(open(me, 5, 150), Err(RefusalReason::Replayed));
        assert_eq!(open(me, 4, 99), Err(RefusalReason::TooEarly));
        assert_eq!(open(me, 4, 201), Err(RefusalReason::Expired));
        let other = [SigningKey::from_bytes(&[8; 32]).verifying_key().to_bytes()];
        assert_eq!(Command::open(&signed, &other, me, 4, Timestamp(150)), Err(RefusalReason::BadSignature));
        let mut cut = signed.clone();
        cut.bytes.pop();
        assert_eq!(Command::open(&cut, &keys, me, 4, Timestamp(150)), Err(RefusalReason::BadSignature));
    }
}
