//! What happens and has happened?

use std::collections::BTreeMap;

use event_schema::{
    AgentId, BatchId, Disposal, Disposed, Event, Field, JobId, Outcome, Owner, Private, ProblemClass,
    ProblemText, Purpose, RefusalReason, Role, RunAgentState, RunId, RunOptions, Subject, Timestamp,
    TransferStats, Visit, path_of,
};
use serde::{Deserialize, Serialize};

use super::sync::{SyncMemberView, SyncView};
use crate::limits::{HISTORY_MAX, PROBLEMS_KEPT_MAX, RUNS_KEPT_MAX};

/// Runs: every active one and the newest of those that ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Runs {
    /// By id, which sorts by time.
    pub runs: BTreeMap<RunId, RunView>,
    /// Names of jobs that are not deleted, for runs to come.
    job_names: BTreeMap<JobId, Private<String>>,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// Of which job.
    pub job: JobId,
    /// The job's name.
    pub job_name: Private<String>,
    /// When it started.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why an operator stopped it.
    pub stop_reason: Option<String>,
    /// What is to be moved, once the source knows.
    pub manifest: Option<ManifestView>,
    /// The folders of those who take part.
    pub paths: Private<Vec<Vec<u8>>>,
    /// Who takes part.
    pub agents: BTreeMap<AgentId, RunAgentView>,
    /// Problems in the order they came, at most 100 per agent.
    pub problems: Vec<ProblemView>,
    /// Positions of the records that tell of this run, in order, at most 20,000.
    pub history: Vec<u64>,
    /// The start that it belongs to with others.
    pub batch: Option<BatchId>,
    /// What becomes of the source's files when every destination has them.
    pub after: Disposal,
    /// What became of them.
    pub disposal: Option<DisposalView>,
    /// If it synchronizes: what there is to tell besides.
    pub sync: Option<SyncView>,
    /// What is asked of it.
    pub options: Private<RunOptions>,
    /// What it is for.
    pub purpose: Purpose,
}

/// What a source did with its files.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DisposalView {
    /// When that was recorded.
    pub time: Timestamp,
    /// What it did.
    pub disposed: Disposed,
    /// Why it did nothing.
    pub refused: Option<RefusalReason>,
}

/// What a run moves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestView {
    /// Files, folders and symlinks.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Content blocks.
    pub blocks: u64,
}

/// One agent's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunAgentView {
    /// As what.
    pub role: Role,
    /// The place of its folder among the run's: see [`RunView::path`].
    pub path: u16,
    /// Where it stands.
    pub state: RunAgentState,
    /// Since when.
    pub since: Timestamp,
    /// What it moved; given at its end.
    pub stats: Option<TransferStats>,
    /// How many problems it met.
    pub problems: u64,
    /// As a member of a synchronization.
    pub member: Option<SyncMemberView>,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProblemView {
    /// Whose.
    pub agent: AgentId,
    /// When it was recorded.
    pub time: Timestamp,
    /// What kind.
    pub class: ProblemClass,
    /// Which entry, and what happened.
    pub text: Private<ProblemText>,
}

impl RunView {
    /// Who has the content.
    pub fn source(&self) -> Option<AgentId> {
        self.agents.iter().find(|(_, part)| part.role == Role::Source).map(|(id, _)| *id)
    }

    /// Whether it is to keep a version of its source's folder.
    pub fn makes_version(&self) -> bool {
        matches!(self.purpose, Purpose::Version { .. })
    }

    /// The folder of one who takes part, or the word for what cannot be read.
    pub fn path(&self, part: &RunAgentView) -> &[u8] {
        path_of(&self.paths, part.path)
    }
}

impl Runs {
    /// The run that started last.
    pub fn latest(&self) -> Option<RunId> {
        // Ids made in the same millisecond are in no order; the start's position decides.
        let start = |run: &RunView| run.history.first().copied();
        self.runs.iter().max_by_key(|(id, run)| (start(run), **id)).map(|(id, _)| *id)
    }

    pub(super) fn apply(&mut self, position: u64, time: Timestamp, event: &Event) {
        match event {
            Event::JobCreated(e) => {
                self.job_names.insert(e.job, e.name.clone());
            }
            Event::JobDeleted(e) => {
                self.job_names.remove(&e.job);
            }
            Event::RunStarted(e) => {
                self.forget_old();
                let agents = e.participants.iter().map(|p| {
                    let view = RunAgentView {
                        role: p.role,
                        path: p.path,
                        state: RunAgentState::Waiting,
                        since: time,
                        stats: None,
                        problems: 0,
                        member: None,
                    };
                    (p.agent, view)
                });
                let run = RunView {
                    job: e.job,
                    job_name: self.job_names.get(&e.job).cloned().unwrap_or_default(),
                    started: time,
                    finished: None,
                    outcome: None,
                    stop_reason: None,
                    manifest: None,
                    paths: e.paths.clone(),
                    agents: agents.collect(),
                    problems: Vec::new(),
                    history: vec![position],
                    batch: e.batch,
                    after: e.after,
                    disposal: None,
                    sync: None,
                    options: e.options.clone(),
                    purpose: e.purpose.clone(),
                };
                self.runs.insert(e.run, run);
            }
            Event::RunManifestReady(e) => self.run(e.run, position, |run| {
                let (entries, bytes, blocks) = (e.entries, e.bytes, e.blocks);
                run.manifest = Some(ManifestView { entries, bytes, blocks });
            }),
            Event::RunAgentProgressed(e) => self.run(e.run, position, |run| {
                if let Some(agent) = run.agents.get_mut(&e.agent) {
                    if agent.state != e.state {
                        agent.since = time;
                    }
                    agent.state = e.state;
                    agent.stats = e.stats.or(agent.stats);
                }
            }),
            Event::RunProblemReported(e) => self.run(e.run, position, |run| {
                let Some(agent) = run.agents.get_mut(&e.agent) else { return };
                agent.problems += 1;
                if agent.problems <= PROBLEMS_KEPT_MAX as u64 {
                    let (agent, class, text) = (e.agent, e.class, e.text.clone());
                    run.problems.push(ProblemView { agent, time, class, text });
                }
            }),
            Event::RunStopRequested(e) => {
                self.run(e.run, position, |run| run.stop_reason = Some(e.reason.clone()));
            }
            Event::RunFinished(e) => self.run(e.run, position, |run| {
                run.outcome = Some(e.outcome);
                run.finished = Some(time);
            }),
            Event::RunDisposed(e) => self.run(e.run, position, |run| {
                let (disposed, refused) = (e.disposed, e.refused);
                run.disposal = Some(DisposalView { time, disposed, refused });
            }),
            Event::RunMembersSet(e) => self.run(e.run, position, |run| run.apply_sync(time, event)),
            Event::RunConflictFound(e) => self.run(e.run, position, |run| run.apply_sync(time, event)),
            Event::RunConflictSettled(e) => self.run(e.run, position, |run| run.apply_sync(time, event)),
            Event::RunGuardRaised(e) => self.run(e.run, position, |run| run.apply_sync(time, event)),
            Event::RunGuardAnswered(e) => self.run(e.run, position, |run| run.apply_sync(time, event)),
            Event::RunGuardLifted(e) => self.run(e.run, position, |run| run.apply_sync(time, event)),
            Event::RunPathBlocked(e) => self.run(e.run, position, |run| run.apply_sync(time, event)),
            Event::RunPathUnblocked(e) => self.run(e.run, position, |run| run.apply_sync(time, event)),
            Event::RunRolledBack(e) => self.run(e.run, position, |run| run.apply_sync(time, event)),
            Event::BackupVersionKept(e) => self.run(e.run, position, |_| ()),
            Event::CommandIssued(e) => {
                if let Some(run) = e.run {
                    self.run(run, position, |_| ());
                }
            }
            _ => {}
        }
    }

    pub(super) fn private(&mut self, visit: &mut Visit<'_>) {
        for (id, name) in &mut self.job_names {
            visit(Field::JobName, Owner::Subject(Subject::Job(*id)), name);
        }
        for run in self.runs.values_mut() {
            let owner = Owner::Subject(Subject::Job(run.job));
            visit(Field::JobName, owner, &mut run.job_name);
            visit(Field::RunPaths, owner, &mut run.paths);
            if !run.options.asks_nothing() {
                visit(Field::RunOptions, owner, &mut run.options);
            }
            run.problems.iter_mut().for_each(|problem| visit(Field::Problem, owner, &mut problem.text));
            run.private_sync(owner, visit);
        }
    }

    fn run(&mut self, id: RunId, position: u64, change: impl FnOnce(&mut RunView)) {
        if let Some(run) = self.runs.get_mut(&id) {
            if run.history.last() != Some(&position) && run.history.len() < HISTORY_MAX {
                run.history.push(position);
            }
            change(run);
        }
    }

    fn forget_old(&mut self) {
        if self.runs.len() >= RUNS_KEPT_MAX {
            let oldest = self.runs.iter().find(|(_, run)| run.outcome.is_some()).map(|(id, _)| *id);
            if let Some(id) = oldest {
                self.runs.remove(&id);
            }
        }
    }
}
