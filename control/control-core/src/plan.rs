//! What has to be ordered from agents, as it follows from the state.
//!
//! Pure and repeatable: an order is outstanding until its `command.issued` is in the state. A service
//! that dies between a decision and its commands finds them outstanding when it starts again.

use event_schema::{
    AgentId, AnswerGuard, CommandBody, Disposal, FinishAndDispose, FinishRun, GuardAnswer, JobId,
    JoinKeeping, JoinRun, Outcome, PeerHint, Permission, Purpose, Role, RunAgentState, RunId, RunOptions,
    Selection, StopRun, SyncPeer, SyncPolicy, Synchronize, TakePart, path_of,
};

use crate::State;
use crate::limits::HINT_ADDRESSES_MAX;
use crate::run::{Part, Run};
use crate::sync::{Member, Sync};

/// A command to be signed: everything but what needs keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// For whom.
    pub agent: AgentId,
    /// The agent's key, to seal secrets to.
    pub public_key: [u8; 32],
    /// Its place in the agent's sequence.
    pub sequence: u64,
    /// About which run.
    pub run: RunId,
    /// What to do.
    pub task: Task,
}

/// What an [`Order`] asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// Take part.
    Join {
        /// Of which job.
        job: JobId,
        /// Its name.
        job_name: String,
        /// As what.
        role: Role,
        /// Which folder.
        path: Vec<u8>,
        /// Who signs the manifest.
        source: AgentId,
        /// Everybody.
        peers: Vec<PeerHint>,
        /// What is in the folder is kept when it is replaced.
        keeps: bool,
        /// What is asked of the run.
        options: RunOptions,
        /// What it is for.
        purpose: Purpose,
    },
    /// Take part in a synchronization, or go on in it as told now.
    Synchronize(Box<Synchronization>),
    /// Hear a person's answer.
    AnswerGuard {
        /// To which question.
        guard: u64,
        /// What it is.
        answer: GuardAnswer,
    },
    /// The run is over everywhere.
    Finish,
    /// The same, and every destination has everything: the source may do with its files as the job says.
    Dispose {
        /// Root of the manifest that they confirmed.
        root: [u8; 32],
        /// What to do.
        disposal: Disposal,
    },
    /// Stop working on it.
    Stop,
}

/// What a member of a synchronization is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Synchronization {
    /// Of which job.
    pub job: JobId,
    /// Its name.
    pub job_name: String,
    /// Counts what members were told.
    pub revision: u32,
    /// Which folder.
    pub path: Vec<u8>,
    /// With which rights.
    pub permission: Permission,
    /// Which part of the tree.
    pub selection: Selection,
    /// What holds for all.
    pub policy: SyncPolicy,
    /// Everybody.
    pub members: Vec<SyncPeer>,
}

impl Task {
    /// Whether it carries the run's secret.
    pub fn needs_secret(&self) -> bool {
        matches!(self, Self::Join { .. } | Self::Synchronize(_))
    }

    /// The command's body; trackers and the sealed secret matter only to those that need one.
    pub fn into_body(self, run: RunId, trackers: Vec<String>, sealed_secret: Vec<u8>) -> CommandBody {
        match self {
            Self::Join { job, job_name, role, path, source, peers, keeps, options, purpose } => {
                let join = JoinRun { run, job, job_name, role, path, source, peers, trackers, sealed_secret };
                if !options.is_none() || purpose != Purpose::Plain {
                    TakePart { join, keeping: keeps, options, purpose }.into()
                } else if keeps {
                    JoinKeeping { join }.into()
                } else {
                    join.into()
                }
            }
            Self::Synchronize(told) => {
                let Synchronization { job, job_name, revision, path, permission, selection, policy, members } =
                    *told;
                Synchronize {
                    run,
                    job,
                    job_name,
                    revision,
                    path,
                    permission,
                    selection,
                    policy,
                    members,
                    trackers,
                    sealed_secret,
                }
                .into()
            }
            Self::AnswerGuard { guard, answer } => AnswerGuard { run, guard, answer }.into(),
            Self::Finish => FinishRun { run }.into(),
            Self::Dispose { root, disposal } => FinishAndDispose { run, root, disposal }.into(),
            Self::Stop => StopRun { run }.into(),
        }
    }
}

/// Whether [`orders`] would give any.
pub fn is_outstanding(state: &State, run: RunId) -> bool {
    state.runs.get(&run).is_some_and(|known| {
        known
            .parts
            .iter()
            .any(|(agent, part)| state.approved(*agent).is_some() && kind(known, part).is_some())
    })
}

/// The first `max` outstanding orders of a run, one per agent at most.
pub fn orders(state: &State, run: RunId, max: usize) -> Vec<Order> {
    let Some(known) = state.runs.get(&run) else { return vec![] };
    let peers = std::cell::LazyCell::new(|| peers(state, known));
    let members = std::cell::LazyCell::new(|| members(state, known));
    known
        .parts
        .iter()
        .filter_map(|(agent, part)| {
            let holder = state.approved(*agent)?;
            let task = match kind(known, part)? {
                Kind::Join => Task::Join {
                    job: known.job,
                    job_name: known.job_name.to_string(),
                    role: part.role,
                    path: path_of(&known.paths, part.path).to_vec(),
                    source: known.source,
                    peers: peers.clone(),
                    // What an earlier start brought there is nowhere else any more.
                    // Nor is what somebody made since the version that is given back.
                    keeps: part.role == Role::Destination
                        && (known.after != Disposal::Keep
                            || matches!(known.purpose, Purpose::Restore { .. })),
                    options: (*known.options).clone(),
                    purpose: known.purpose.clone(),
                },
                Kind::Synchronize(sync, member) => Task::Synchronize(Box::new(Synchronization {
                    job: known.job,
                    job_name: known.job_name.to_string(),
                    revision: sync.revision,
                    path: path_of(&known.paths, part.path).to_vec(),
                    permission: member.permission,
                    selection: sync
                        .selections
                        .get(usize::from(member.selection))
                        .cloned()
                        .unwrap_or_default(),
                    policy: sync.policy,
                    members: members.clone(),
                })),
                Kind::AnswerGuard(guard, answer) => Task::AnswerGuard { guard, answer },
                Kind::Finish => Task::Finish,
                Kind::Dispose(root) => Task::Dispose { root, disposal: known.after },
                Kind::Stop => Task::Stop,
            };
            let (public_key, sequence) = (holder.public_key, holder.last_command + 1);
            Some(Order { agent: *agent, public_key, sequence, run, task })
        })
        .take(max)
        .collect()
}

enum Kind<'r> {
    Join,
    Synchronize(&'r Sync, &'r Member),
    AnswerGuard(u64, GuardAnswer),
    Finish,
    Dispose([u8; 32]),
    Stop,
}

fn kind<'r>(run: &'r Run, part: &'r Part) -> Option<Kind<'r>> {
    if let (Some(sync), Some(member)) = (&run.sync, &part.member) {
        return kind_of_member(run, part, sync, member);
    }
    let Some(outcome) = run.outcome else {
        // Whoever cannot read its folders must not name others.
        let legible = run.job_name.is_legible() && run.paths.is_legible() && run.options.is_legible();
        return (legible && !part.join_issued && !part.state.is_terminal()).then_some(Kind::Join);
    };
    if !part.join_issued || part.end_issued {
        return None;
    }
    if part.role == Role::Source && run.is_disposal_due() {
        // The source's word on its manifest is on its way if it is not here: it was said before anybody had it.
        return run.manifest.map(Kind::Dispose);
    }
    // A destination that is still at work when the run is over is there because the source failed.
    let at_work = part.role == Role::Destination && !part.state.is_terminal();
    Some(if outcome == Outcome::Stopped || at_work || part.state == RunAgentState::Stopped {
        Kind::Stop
    } else {
        Kind::Finish
    })
}

fn kind_of_member<'r>(run: &'r Run, part: &'r Part, sync: &'r Sync, member: &'r Member) -> Option<Kind<'r>> {
    if run.outcome.is_some() || member.left {
        return (part.join_issued && !part.end_issued).then_some(Kind::Stop);
    }
    if part.state.is_terminal() {
        return None;
    }
    let legible = run.job_name.is_legible() && run.paths.is_legible() && sync.selections.is_legible();
    if legible && member.ordered < sync.revision {
        return Some(Kind::Synchronize(sync, member));
    }
    let guard = member.guard.filter(|guard| !guard.ordered)?;
    guard.answer.map(|answer| Kind::AnswerGuard(guard.number, answer))
}

fn members(state: &State, run: &Run) -> Vec<SyncPeer> {
    let current = run.parts.iter().filter_map(|(agent, part)| {
        let member = part.member.as_ref().filter(|member| !member.left)?;
        let known = state.approved(*agent)?;
        let addresses = known.addresses.iter().take(HINT_ADDRESSES_MAX).cloned().collect();
        let (public_key, permission) = (known.public_key, member.permission);
        Some(SyncPeer { agent: *agent, public_key, permission, addresses })
    });
    current.collect()
}

fn peers(state: &State, run: &Run) -> Vec<PeerHint> {
    run.parts
        .iter()
        .filter_map(|(agent, part)| {
            let known = state.approved(*agent)?;
            let addresses = known.addresses.iter().take(HINT_ADDRESSES_MAX).cloned().collect();
            Some(PeerHint { agent: *agent, public_key: known.public_key, role: part.role, addresses })
        })
        .collect()
}
