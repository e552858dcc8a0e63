//! Runs: one execution of a job, from its participants to its outcome.

use std::collections::BTreeMap;

use event_schema::{
    AgentId, BatchId, Disposal, Event, JobId, JobSpec, Outcome, Participant, Party, Private, Problem,
    Purpose, Role, RunAgentProgressed, RunAgentState, RunFinished, RunId, RunOptions, RunProblemReported,
    RunStarted, RunStopRequested, TransferStats,
};

use serde::{Deserialize, Serialize};

use crate::backup::standing::makes_incomplete;
use crate::job::illegible;
use crate::limits::PARTICIPANTS_MAX;
use crate::sync::{self, Member, Sync};
use crate::{Rejection, State, text};

/// A run as decisions see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) job: JobId,
    pub(crate) job_name: Private<String>,
    pub(crate) paths: Private<Vec<Vec<u8>>>,
    pub(crate) source: AgentId,
    pub(crate) parts: BTreeMap<AgentId, Part>,
    pub(crate) manifest: Option<[u8; 32]>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) batch: Option<BatchId>,
    pub(crate) after: Disposal,
    /// The source said what became of its files, or refused.
    pub(crate) disposed: bool,
    /// It has no end, and who takes part may change.
    pub(crate) sync: Option<Sync>,
    /// What is asked of it.
    pub(crate) options: Private<RunOptions>,
    /// What it is for.
    pub(crate) purpose: Purpose,
}

/// One agent's part in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) role: Role,
    /// Its place among the run's paths.
    pub(crate) path: u16,
    pub(crate) state: RunAgentState,
    pub(crate) stats: Option<TransferStats>,
    /// Problems that are events.
    pub(crate) problems: u32,
    /// Whether one of them concerns an entry.
    pub(crate) entry_problem: bool,
    /// Whether one of those says that something is there and could not be taken.
    pub(crate) lacks: bool,
    /// The command to join exists.
    pub(crate) join_issued: bool,
    /// The command to finish or stop exists.
    pub(crate) end_issued: bool,
    /// As a member of a synchronization.
    pub(crate) member: Option<Member>,
    /// It told which version it keeps.
    pub(crate) kept: bool,
}

impl Run {
    pub(crate) fn started(e: &RunStarted, job_name: Private<String>) -> Self {
        let mut source = AgentId([0; 16]);
        let mut parts = BTreeMap::new();
        for Participant { agent, role, path } in &e.participants {
            if *role == Role::Source {
                source = *agent;
            }
            let part = Part {
                role: *role,
                path: *path,
                state: RunAgentState::Waiting,
                stats: None,
                problems: 0,
                entry_problem: false,
                lacks: false,
                join_issued: false,
                end_issued: false,
                member: None,
                kept: false,
            };
            parts.insert(*agent, part);
        }
        let paths = e.paths.clone();
        let (batch, after) = (e.batch, e.after);
        let (manifest, outcome, disposed) = (None, None, false);
        let (options, purpose) = (e.options.clone(), e.purpose.clone());
        Self {
            job: e.job,
            job_name,
            paths,
            source,
            parts,
            manifest,
            outcome,
            batch,
            after,
            disposed,
            sync: None,
            options,
            purpose,
        }
    }

    /// Whether the source is to dispose of its files: every destination has everything, without an exception. What a
    /// destination lacks may exist nowhere else, and it does not say which files have it all.
    pub(crate) fn is_disposal_due(&self) -> bool {
        let ended = matches!(self.outcome, Some(Outcome::Succeeded | Outcome::SucceededWithErrors));
        let mut destinations = self.parts.values().filter(|part| part.role == Role::Destination);
        let source_is_there = self.parts.get(&self.source).is_some_and(|part| !part.state.is_terminal());
        self.after != Disposal::Keep
            && !self.disposed
            && ended
            && source_is_there
            && destinations.all(|part| part.state == RunAgentState::Done)
    }

    pub(crate) fn evolve(&mut self, event: &Event) {
        match event {
            Event::RunManifestReady(e) => self.manifest = Some(e.root),
            Event::RunAgentProgressed(e) => {
                if let Some(part) = self.parts.get_mut(&e.agent) {
                    part.state = e.state;
                    part.stats = e.stats.or(part.stats);
                }
            }
            Event::RunProblemReported(e) => {
                if let Some(part) = self.parts.get_mut(&e.agent) {
                    part.problems += 1;
                    part.entry_problem |= e.concerns_entry;
                    part.lacks |= e.concerns_entry && makes_incomplete(e.class);
                }
            }
            Event::RunFinished(e) => self.outcome = Some(e.outcome),
            Event::BackupVersionKept(e) => {
                if let Some(part) = self.parts.get_mut(&e.agent) {
                    part.kept = true;
                }
            }
            Event::RunDisposed(e) => {
                self.disposed = true;
                // What refuses to dispose has not ended the run: it still has to be told.
                if let (Some(_), Some(part)) = (e.refused, self.parts.get_mut(&e.agent)) {
                    part.end_issued = false;
                }
            }
            Event::CommandIssued(e) => {
                let (ended, revision) =
                    (self.outcome.is_some(), self.sync.as_ref().map_or(0, |sync| sync.revision));
                let Some(part) = self.parts.get_mut(&e.agent) else { return };
                match (&mut part.member, e.joins) {
                    (None, true) => part.join_issued = true,
                    (Some(member), true) => {
                        member.ordered = revision;
                        // One that was told to stop before begins anew.
                        (part.join_issued, part.end_issued) = (true, false);
                    }
                    // What a member is asked for that is to go on is to hear an answer.
                    (Some(member), false) if !ended && !member.left => {
                        if let Some(guard) = &mut member.guard {
                            guard.ordered = true;
                        }
                    }
                    (_, false) => part.end_issued = true,
                }
            }
            _ => self.evolve_sync(event),
        }
    }

    /// Nothing more is to be ordered or awaited.
    pub(crate) fn is_settled(&self) -> bool {
        self.outcome.is_some() && self.parts.values().all(|part| part.state.is_terminal())
    }

    /// Records an event and takes it in at once, so that the next decision of the same batch sees it.
    pub(crate) fn happen(&mut self, event: impl Into<Event>, events: &mut Vec<Event>) {
        let event = event.into();
        self.evolve(&event);
        events.push(event);
    }

    /// An agent that is in the run and not at its end gives up, for `problem`.
    pub(crate) fn fail(
        &mut self,
        run: RunId,
        agent: AgentId,
        problem: Option<Problem>,
        events: &mut Vec<Event>,
    ) {
        if self.parts.get(&agent).is_none_or(|part| part.state.is_terminal()) {
            return;
        }
        if let Some(problem) = problem {
            self.happen(RunProblemReported::new(run, agent, problem), events);
        }
        let state = RunAgentState::Failed;
        self.happen(RunAgentProgressed { run, agent, state, stats: None }, events);
        self.conclude(run, events);
    }

    /// Records the run's end if it has come: every destination has ended, or the source has failed.
    pub(crate) fn conclude(&mut self, run: RunId, events: &mut Vec<Event>) {
        if self.outcome.is_none()
            && let Some(outcome) = self.outcome_reached()
        {
            self.happen(RunFinished { run, outcome }, events);
        }
    }

    fn outcome_reached(&self) -> Option<Outcome> {
        if self.sync.is_some() {
            // Whoever fails in it is one who is missing; the others go on.
            return None;
        }
        let source = self.parts.get(&self.source)?;
        let mut destinations = self.parts.values().filter(|part| part.role == Role::Destination);
        let failed = |part: &Part| matches!(part.state, RunAgentState::Failed | RunAgentState::Stopped);
        let all_ended = destinations.clone().all(|part| part.state.is_terminal());
        // Destinations cannot know whether what they miss will ever come without the source.
        if failed(source) && !all_ended {
            return Some(Outcome::Failed);
        }
        if !all_ended {
            return None;
        }
        // What storage finds damaged it tells before the manifest, and until then nobody may say that all was well.
        let restores = matches!(self.purpose, Purpose::Restore { .. });
        if restores
            && self.manifest.is_none()
            && !source.state.is_terminal()
            && !destinations.clone().any(failed)
        {
            return None;
        }
        Some(if destinations.clone().any(failed) {
            Outcome::Failed
        } else if destinations.any(|part| part.state == RunAgentState::DoneWithErrors) || source.entry_problem
        {
            Outcome::SucceededWithErrors
        } else {
            Outcome::Succeeded
        })
    }
}

impl State {
    /// Which job a run is of.
    pub fn job_of(&self, run: RunId) -> Option<JobId> {
        self.runs.get(&run).map(|run| run.job)
    }

    /// The backup whose versions a run made or read, and whose they are; none of other runs.
    pub fn backup_of(&self, run: RunId) -> Option<(JobId, AgentId)> {
        let run = self.runs.get(&run)?;
        match run.purpose {
            Purpose::Plain => None,
            Purpose::Version { .. } => Some((run.job, run.source)),
            Purpose::Restore { of, .. } => Some((run.job, of)),
        }
    }

    /// The active run of a job, if there is one.
    pub(crate) fn active_run(&self, job: JobId) -> Option<RunId> {
        self.runs.iter().find(|(_, run)| run.job == job && run.outcome.is_none()).map(|(id, _)| *id)
    }
}

/// What can be asked about runs.
#[derive(Clone, Debug)]
pub enum Command {
    /// Start the run of a job with one source; see [`crate::batch`] for others. Groups are resolved now; a member that is the source, or not approved, is
    /// passed over; an agent named twice with the same path takes part once.
    Start {
        /// Its id.
        run: RunId,
        /// Of which job.
        job: JobId,
    },
    /// End a run. It counts as ended at once; its agents are told, and what they answer is recorded.
    Stop {
        /// Which.
        run: RunId,
        /// Why, for people.
        reason: String,
    },
}

/// Decides about a run.
///
/// # Errors
/// If the job or run is unknown, the job's folders cannot be read, another run of the job is active, an agent named by the job is removed
/// or not approved, an agent would take part with two paths, nobody is left, or too many would.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::Start { run, job } => {
            if state.runs.get(&run).is_some_and(|known| known.job == job) {
                return Ok(vec![]);
            }
            let known = state.jobs.get(&job).ok_or_else(|| Rejection::unknown("job", job))?;
            if let Some(active) = state.active_run(job) {
                return Err(Rejection::Conflict(format!(
                    "the run {active} of this job is active: wait for its end or stop it"
                )));
            }
            if !known.is_legible() {
                return Err(illegible(job));
            }
            if matches!(known.spec, JobSpec::Synchronization { .. }) {
                return sync::start(state, run, job, &known.spec);
            }
            let participants = participants(state, &known.spec)?;
            // Sealed anew with the event: what it is sealed as in the job is of another field.
            let options = known.spec.options().map(|options| (**options).clone()).unwrap_or_default().into();
            Ok(vec![RunStarted { options, ..RunStarted::new(run, job, participants.into_iter()) }.into()])
        }
        Command::Stop { run, reason } => {
            let known = state.runs.get(&run).ok_or_else(|| Rejection::unknown("run", run))?;
            if known.outcome.is_some() {
                return Ok(vec![]);
            }
            Ok(vec![
                RunStopRequested { run, reason: text::one_line(&reason) }.into(),
                RunFinished { run, outcome: Outcome::Stopped }.into(),
            ])
        }
    }
}

fn participants(state: &State, spec: &JobSpec) -> Result<Vec<(AgentId, Role, Vec<u8>)>, Rejection> {
    let JobSpec::Distribution { source, destinations, .. } = spec else {
        return Err(Rejection::Invalid("this job starts a run for each of its sources".into()));
    };
    let Party::Agent(source_agent) = source.party else {
        return Err(Rejection::Invalid("the source of a distribution is one agent".into()));
    };
    let mut paths: BTreeMap<AgentId, &[u8]> = BTreeMap::new();
    must_be_approved(state, source_agent)?;
    for destination in destinations {
        let agents: Vec<AgentId> = match destination.party {
            Party::Agent(agent) => {
                must_be_approved(state, agent)?;
                vec![agent]
            }
            Party::Group(id) => {
                let group = state.groups.get(&id).ok_or_else(|| Rejection::unknown("group", id))?;
                let may = |agent: &&AgentId| **agent != source_agent && state.approved(**agent).is_some();
                group.members.iter().filter(may).copied().collect()
            }
        };
        for agent in agents {
            let before = paths.insert(agent, &destination.path);
            if before.is_some_and(|path| path != *destination.path) {
                return Err(Rejection::Conflict(format!(
                    "the agent {} would take part with two folders: an agent takes part in a run once",
                    state.agents.get(&agent).map_or("", |agent| agent.name.as_str())
                )));
            }
        }
    }
    if paths.is_empty() {
        return Err(Rejection::Conflict("nobody would receive anything: the groups are empty".into()));
    }
    if paths.len() >= PARTICIPANTS_MAX {
        return Err(Rejection::Limit(format!("a run has at most {PARTICIPANTS_MAX} agents")));
    }
    let first = (source_agent, Role::Source, source.path.to_vec());
    let rest = paths.into_iter().map(|(agent, path)| (agent, Role::Destination, path.to_vec()));
    Ok(std::iter::once(first).chain(rest).collect())
}

pub(crate) fn must_be_approved(state: &State, agent: AgentId) -> Result<(), Rejection> {
    if state.approved(agent).is_some() {
        return Ok(());
    }
    match state.agents.get(&agent) {
        None => Err(Rejection::unknown("agent", agent)),
        Some(known) => {
            Err(Rejection::Conflict(format!("the agent {} is removed or not approved yet", known.name)))
        }
    }
}
