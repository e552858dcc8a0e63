//! Reports: what agents state under their signatures becomes events.
//!
//! The signature was checked by the caller. A report that is on the log already is passed over, the
//! next one is taken, a gap ends the batch. Whatever a report says about a run that its agent is not
//! in, or that is forgotten, stays a received report and nothing more.

use std::collections::{BTreeMap, BTreeSet};

use event_schema::{
    AgentId, BLOCKED_TOLD_MAX, BlockedText, CommandAcknowledged, CommandId, ConflictText, Disposed, Event,
    Outcome, Problem, ProblemClass, RefusalReason, Report, ReportBody, ReportReceived, Role,
    RunAgentProgressed, RunAgentState, RunConflictFound, RunConflictSettled, RunDisposed, RunGuardLifted,
    RunGuardRaised, RunId, RunManifestReady, RunPathBlocked, RunPathUnblocked, RunProblemReported,
    RunRolledBack, Signed, TransferStats, level,
};

use crate::agent::{Issued, Standing, refusal};
use crate::backup::told;
use crate::limits::{PATH_LEN_MAX, PROBLEMS_RECORDED_MAX};
use crate::run::Run;
use crate::{Rejection, State, text};

/// Decides about a batch of reports of one agent, in the order they came.
///
/// What replicas of the log's level do not read is not taken until the level is raised, nor what comes behind it.
///
/// # Errors
/// If the agent is unknown, not approved or removed, the first new report is not the next one, or is above the log's level.
pub fn decide(state: &State, agent: AgentId, reports: &[(Report, Signed)]) -> Result<Vec<Event>, Rejection> {
    let known = state
        .agents
        .get(&agent)
        .ok_or_else(|| refusal(RefusalReason::NotAllowed, "this fleet does not know the agent"))?;
    match known.standing {
        Standing::Removed => return Err(refusal(RefusalReason::Removed, "the agent was removed")),
        Standing::Pending => return Err(refusal(RefusalReason::NotAllowed, "the agent waits for approval")),
        Standing::Approved => {}
    }
    let mut batch = Batch {
        state,
        agent,
        waiting: &known.waiting,
        answered: BTreeSet::new(),
        runs: BTreeMap::new(),
        events: Vec::new(),
    };
    let mut last = known.last_report;
    for (report, signed) in reports {
        if report.sequence <= last {
            continue;
        }
        if report.sequence != last + 1 {
            if last == known.last_report {
                return Err(Rejection::ReportGap { expected: last + 1, got: report.sequence });
            }
            break;
        }
        let level = level::of_report(&report.body);
        if level > state.level() {
            if last == known.last_report {
                let what = format!(
                    "a report of schema level {level}, and the log is at {}: it is taken once that is raised",
                    state.level()
                );
                return Err(refusal(RefusalReason::TooEarly, &what));
            }
            break;
        }
        last = report.sequence;
        let sequence = report.sequence;
        let problem_in = report.body.names_a_file_in();
        let signed = signed.clone().into();
        batch.events.push(ReportReceived { agent, sequence, problem_in, signed }.into());
        batch.take(&report.body);
    }
    Ok(batch.events)
}

/// A batch on its way: runs as they will be once its events are on the log.
struct Batch<'a> {
    state: &'a State,
    agent: AgentId,
    waiting: &'a BTreeMap<u64, Issued>,
    answered: BTreeSet<u64>,
    runs: BTreeMap<RunId, Run>,
    events: Vec<Event>,
}

impl Batch<'_> {
    fn take(&mut self, body: &ReportBody) {
        match body {
            ReportBody::CommandAccepted(r) => self.answer(r.command, r.sequence, None),
            ReportBody::CommandRefused(r) => self.answer(r.command, r.sequence, Some(r.reason)),
            ReportBody::RunStateReported(r) => self.progress(r.run, r.state, None),
            ReportBody::RunCompleted(r) => {
                // A destination ends; a state that is no end is a mistake of the agent.
                let state = if r.state.is_terminal() { r.state } else { RunAgentState::Failed };
                self.progress(r.run, state, Some(r.stats));
            }
            ReportBody::RunServed(r) => self.served(r.run, r.stats),
            ReportBody::DisposalReported(r) => self.disposed(r.run, r.disposed),
            ReportBody::VersionKept(r) => {
                let (state, agent) = (self.state, self.agent);
                self.in_run(r.run, |run, events| {
                    if let Some(event) = told::kept(state, run, r.run, agent, r) {
                        run.happen(event, events);
                    }
                });
            }
            ReportBody::Thinned(r) => {
                // What is told again in one batch is the same fact.
                let event = told::thinned(self.state, self.agent, r);
                self.events.extend(event.filter(|event| !self.events.contains(event)));
            }
            ReportBody::SourceChanged(r) => {
                let event = told::changed(self.state, self.agent, r);
                self.events.extend(event.filter(|event| !self.events.contains(event)));
            }
            ReportBody::ConflictFound(_)
            | ReportBody::ConflictSettled(_)
            | ReportBody::GuardRaised(_)
            | ReportBody::GuardLifted(_)
            | ReportBody::PathBlocked(_)
            | ReportBody::PathUnblocked(_)
            | ReportBody::RolledBack(_) => self.synchronizing(body),
            ReportBody::ManifestSigned(r) => {
                let agent = self.agent;
                self.in_run(r.run, |run, events| {
                    // The first manifest counts even if the destinations were faster than the source's report. Another
                    // one does not once somebody has ended with the first: files go by what destinations confirmed.
                    let mut destinations = run.parts.values().filter(|part| part.role == Role::Destination);
                    let open = run.manifest.is_none()
                        || (run.outcome.is_none() && !destinations.any(|part| part.state.is_terminal()));
                    if run.source == agent && run.manifest != Some(r.root) && open {
                        let (root, entries, bytes, blocks) = (r.root, r.entries, r.bytes, r.blocks);
                        let event = RunManifestReady { run: r.run, agent, root, entries, bytes, blocks };
                        run.happen(event, events);
                        run.conclude(r.run, events);
                    }
                });
            }
            ReportBody::ProblemReported(r) => {
                let agent = self.agent;
                self.in_run(r.run, |run, events| {
                    if run.parts.get(&agent).is_some_and(|part| part.problems < PROBLEMS_RECORDED_MAX) {
                        let mut path = r.problem.path.clone();
                        path.truncate(PATH_LEN_MAX);
                        let detail = text::one_line(&r.problem.detail);
                        let problem = Problem { class: r.problem.class, path, detail };
                        run.happen(RunProblemReported::new(r.run, agent, problem), events);
                    }
                });
            }
        }
    }

    /// The agent took a command or refused it. Only the first answer counts.
    fn answer(&mut self, command: CommandId, sequence: u64, refused: Option<RefusalReason>) {
        let Some(issued) = self.waiting.get(&sequence).filter(|issued| issued.command == command) else {
            return;
        };
        if !self.answered.insert(sequence) {
            return;
        }
        let agent = self.agent;
        self.events.push(CommandAcknowledged { command, agent, sequence, refused }.into());
        let Some(run_id) = issued.run else { return };
        if !issued.is_join {
            return refused.into_iter().for_each(|reason| self.not_disposed(run_id, reason));
        }
        self.in_run(run_id, |run, events| match refused {
            None => {
                if run.parts.get(&agent).is_some_and(|part| part.state == RunAgentState::Waiting) {
                    let state = RunAgentState::Accepted;
                    run.happen(RunAgentProgressed { run: run_id, agent, state, stats: None }, events);
                }
            }
            Some(reason) => run.fail(run_id, agent, Some(problem_of(reason)), events),
        });
    }

    /// A new state. What has ended stays ended, only its numbers may still come.
    fn progress(&mut self, run_id: RunId, state: RunAgentState, stats: Option<TransferStats>) {
        let agent = self.agent;
        self.in_run(run_id, |run, events| {
            let Some(part) = run.parts.get(&agent) else { return };
            // Programs of an older level read the state's name only where there are synchronizations.
            if state == RunAgentState::Synchronizing && run.sync.is_none() {
                return;
            }
            // A member that nobody asked to stop goes on; what says otherwise is from before it was asked again.
            let goes_on = run.outcome.is_none() && run.member(agent).is_some();
            let has_stopped = state.is_terminal() && state != RunAgentState::Failed;
            let keeps = part.state.is_terminal() || (goes_on && has_stopped);
            let state = if keeps { part.state } else { state };
            let news = state != part.state || (stats.is_some() && stats != part.stats);
            if news {
                run.happen(RunAgentProgressed { run: run_id, agent, state, stats }, events);
                run.conclude(run_id, events);
            }
        });
    }

    /// The last word of one who served: a source is done then, a destination was so before.
    fn served(&mut self, run_id: RunId, stats: TransferStats) {
        let Some(run) = self.run(run_id) else { return };
        let Some(part) = run.parts.get(&self.agent) else { return };
        let state = match (run.outcome, part.role) {
            (Some(Outcome::Stopped), _) if !part.state.is_terminal() => RunAgentState::Stopped,
            (None, Role::Member) if run.member(self.agent).is_none() && !part.state.is_terminal() => {
                RunAgentState::Stopped
            }
            (Some(_), Role::Source) => RunAgentState::Done,
            _ => part.state,
        };
        self.progress(run_id, state, Some(stats));
    }

    /// A source has done what it was asked to do with its files. Unasked it says nothing that counts.
    fn disposed(&mut self, run_id: RunId, disposed: Disposed) {
        let agent = self.agent;
        self.in_run(run_id, |run, events| {
            let asked = run.source == agent && run.parts.get(&agent).is_some_and(|part| part.end_issued);
            if asked && run.is_disposal_due() {
                run.happen(RunDisposed { run: run_id, agent, disposed, refused: None }, events);
            }
        });
    }

    /// It refused the end of a run. If that was the one with a disposal, its files stay, and it is told the plain end.
    fn not_disposed(&mut self, run_id: RunId, reason: RefusalReason) {
        let agent = self.agent;
        self.in_run(run_id, |run, events| {
            let asked = run.source == agent && run.parts.get(&agent).is_some_and(|part| part.end_issued);
            if !asked || !run.is_disposal_due() {
                return;
            }
            let Problem { class, path, detail } = problem_of(reason);
            let detail = match reason {
                RefusalReason::NotAllowed => {
                    "its owner does not allow files to be disposed of (allow_disposal): they stay".into()
                }
                _ => format!("{detail}; its files stay"),
            };
            run.happen(RunProblemReported::new(run_id, agent, Problem { class, path, detail }), events);
            let (disposed, refused) = (Disposed::default(), Some(reason));
            run.happen(RunDisposed { run: run_id, agent, disposed, refused }, events);
        });
    }

    /// What a member of a synchronization tells. It counts while it is one, and once.
    fn synchronizing(&mut self, body: &ReportBody) {
        let agent = self.agent;
        let run_id = match body {
            ReportBody::ConflictFound(r) => r.run,
            ReportBody::ConflictSettled(r) => r.run,
            ReportBody::GuardRaised(r) => r.run,
            ReportBody::GuardLifted(r) => r.run,
            ReportBody::PathBlocked(r) => r.run,
            ReportBody::PathUnblocked(r) => r.run,
            ReportBody::RolledBack(r) => r.run,
            _ => return,
        };
        let cut = |path: &[u8]| path[..path.len().min(PATH_LEN_MAX)].to_vec();
        self.in_run(run_id, |run, events| {
            let Some(member) = run.member(agent).filter(|_| run.outcome.is_none()) else { return };
            let event: Event = match body {
                ReportBody::ConflictFound(r) if run.is_new_conflict(r.conflict) => {
                    let text = ConflictText { path: cut(&r.path), copy: cut(&r.copy) }.into();
                    let (conflict, loser, winner) = (r.conflict, r.loser, r.winner);
                    RunConflictFound { run: run_id, agent, conflict, loser, winner, text }.into()
                }
                ReportBody::ConflictSettled(r)
                    if run.sync.as_ref().is_some_and(|sync| sync.conflicts.contains(&r.conflict)) =>
                {
                    RunConflictSettled { run: run_id, agent, conflict: r.conflict }.into()
                }
                ReportBody::GuardRaised(r)
                    if member.guard.is_none_or(|guard| {
                        (guard.number, guard.missing, guard.total) != (r.guard, r.missing, r.total)
                    }) =>
                {
                    let (guard, missing, total) = (r.guard, r.missing, r.total);
                    RunGuardRaised { run: run_id, agent, guard, missing, total }.into()
                }
                ReportBody::GuardLifted(r) if member.guard.is_some_and(|guard| guard.number == r.guard) => {
                    let (guard, answer) = (r.guard, r.answer);
                    RunGuardLifted { run: run_id, agent, guard, answer }.into()
                }
                ReportBody::PathBlocked(r)
                    if !member.blocked.contains(&r.number) && member.blocked.len() < BLOCKED_TOLD_MAX =>
                {
                    let text = BlockedText { path: cut(&r.path), by: cut(&r.by) }.into();
                    let (number, obstacle) = (r.number, r.obstacle);
                    RunPathBlocked { run: run_id, agent, number, obstacle, text }.into()
                }
                ReportBody::PathUnblocked(r) if member.blocked.contains(&r.number) => {
                    RunPathUnblocked { run: run_id, agent, number: r.number }.into()
                }
                ReportBody::RolledBack(_) => RunRolledBack { run: run_id, agent }.into(),
                _ => return,
            };
            run.happen(event, events);
        });
    }

    fn in_run(&mut self, id: RunId, act: impl FnOnce(&mut Run, &mut Vec<Event>)) {
        if let Some(mut run) = self.runs.remove(&id).or_else(|| self.state.runs.get(&id).cloned()) {
            act(&mut run, &mut self.events);
            self.runs.insert(id, run);
        }
    }

    fn run(&self, id: RunId) -> Option<&Run> {
        self.runs.get(&id).or_else(|| self.state.runs.get(&id))
    }
}

fn problem_of(reason: RefusalReason) -> Problem {
    let (class, why) = match reason {
        RefusalReason::NotAllowed => (
            ProblemClass::PermissionDenied,
            "it does not allow this folder: `..` leads out of its storage folder, or its allowed_paths leave it out",
        ),
        RefusalReason::Expired => (ProblemClass::Internal, "it came too late: start the job again"),
        RefusalReason::TooEarly => (ProblemClass::Internal, "it is not valid yet: check the agent's clock"),
        RefusalReason::NotUnderstood => {
            (ProblemClass::Internal, "its program is too old to understand it: update the agent")
        }
        RefusalReason::BadSignature => (ProblemClass::Internal, "its signature does not hold"),
        RefusalReason::WrongAudience => (ProblemClass::Internal, "it is for another agent"),
        RefusalReason::Replayed => (ProblemClass::Internal, "it has seen its sequence before"),
        RefusalReason::UnknownToken
        | RefusalReason::TokenSpent
        | RefusalReason::TokenExpired
        | RefusalReason::Removed => (ProblemClass::Internal, "it does not count itself to this fleet"),
    };
    Problem { class, path: vec![], detail: format!("the agent refused the command: {why}") }
}
