//! All that decisions rest on, folded from the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use event_schema::level::LEVEL_OLDEST;
use event_schema::{
    AgentId, Event, Field, GroupId, JobId, Owner, RefusalReason, ReplicaId, RunId, Subject, TokenId, Visit,
};

use serde::{Deserialize, Serialize};

use crate::agent::{Agent, Standing};
use crate::backup::standing::Backups;
use crate::group::Group;
use crate::job::Job;
use crate::limits::{REFUSALS_REMEMBERED_MAX, RUNS_KEPT_MAX};
use crate::replica::{self, Lease, Replica};
use crate::run::Run;
use crate::subject::Known;
use crate::token::Token;

/// The fleet as its events tell it: just enough to decide.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub(crate) root_key: Option<[u8; 32]>,
    pub(crate) agents: BTreeMap<AgentId, Agent>,
    /// Names of agents that are not removed, as far as they can be read. Made anew when a state is read back: see
    /// [`State::name_anew`].
    #[serde(skip)]
    pub(crate) agent_names: BTreeMap<String, AgentId>,
    pub(crate) tokens: BTreeMap<TokenId, Token>,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    pub(crate) group_names: BTreeSet<String>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    #[serde(skip)]
    /// How many jobs have a name: two, if the second was made where the first one's could not be read.
    pub(crate) job_names: BTreeMap<String, u32>,
    pub(crate) runs: BTreeMap<RunId, Run>,
    pub(crate) backups: Backups,
    pub(crate) replicas: BTreeMap<ReplicaId, Replica>,
    pub(crate) lease: Option<Lease>,
    /// Newest last.
    pub(crate) refusals: VecDeque<(AgentId, RefusalReason)>,
    pub(crate) conflicts: crate::audit::Recorded,
    /// The highest level that was raised; 0 if none was.
    pub(crate) raised: u8,
    /// The keys of everybody who ever had one. Not in any form of the state: what its hash needs is in the views.
    pub(crate) subjects: BTreeMap<Subject, Known>,
}

impl State {
    /// The fleet's root key, once it was founded.
    pub fn root_key(&self) -> Option<[u8; 32]> {
        self.root_key
    }

    /// Agents whose control link is up as far as the log knows.
    pub fn online_agents(&self) -> impl Iterator<Item = AgentId> {
        self.agents.iter().filter(|(_, agent)| agent.online).map(|(id, _)| *id)
    }

    /// The schema level that the log is written in.
    pub fn level(&self) -> u8 {
        self.raised.max(LEVEL_OLDEST)
    }

    /// Every run that is remembered.
    pub fn runs(&self) -> impl Iterator<Item = RunId> {
        self.runs.keys().copied()
    }

    /// The last report of `agent` that is on the log, 0 if none is.
    pub fn reports_stored(&self, agent: AgentId) -> u64 {
        self.agents.get(&agent).map_or(0, |agent| agent.last_report)
    }

    /// The agent's name in the fleet.
    pub fn agent_name(&self, agent: AgentId) -> Option<&str> {
        self.agents.get(&agent).map(|agent| agent.name.as_str())
    }

    /// Takes one event in. Cannot fail: what is on the log has been decided. An event about something
    /// unknown (dropped because it is old) changes nothing.
    pub fn evolve(&mut self, event: &Event) {
        self.backups.evolve(event);
        match event {
            Event::FleetFounded(e) => self.root_key = Some(e.root_key),
            Event::AgentEnrolled(e) => {
                if let Some(before) = self.agents.get(&e.agent) {
                    forget_name(&mut self.agent_names, &before.name, e.agent);
                }
                if let Some(name) = e.name.legible() {
                    self.agent_names.insert(name.clone(), e.agent);
                }
                Agent::enrol(&mut self.agents, e);
            }
            Event::AgentRemoved(e) => {
                if let Some(agent) = self.agents.get_mut(&e.agent) {
                    forget_name(&mut self.agent_names, &agent.name, e.agent);
                    agent.evolve(event);
                }
            }
            Event::AgentApproved(e) => self.agent(e.agent, event),
            Event::AgentOnline(e) => self.agent(e.agent, event),
            Event::AgentSessionOpened(e) => self.agent(e.agent, event),
            Event::AgentOffline(e) => self.agent(e.agent, event),
            Event::AgentTagged(e) => self.agent(e.agent, event),
            Event::ReportReceived(e) => self.agent(e.agent, event),
            Event::TokenCreated(e) => {
                self.tokens.insert(e.token, Token::created(e));
            }
            Event::TokenUsed(e) => {
                if let Some(token) = self.tokens.get_mut(&e.token) {
                    token.used += 1;
                }
            }
            Event::TokenRevoked(e) => {
                if let Some(token) = self.tokens.get_mut(&e.token) {
                    token.revoked = true;
                }
            }
            Event::EnrolmentRefused(e) => {
                if self.refusals.len() >= REFUSALS_REMEMBERED_MAX {
                    self.refusals.pop_front();
                }
                self.refusals.push_back((e.agent, e.reason));
            }
            Event::GroupCreated(e) => {
                self.group_names.insert(e.name.clone());
                self.groups.insert(e.group, Group { name: e.name.clone(), members: BTreeSet::new() });
            }
            Event::GroupMembersAdded(e) => {
                if let Some(group) = self.groups.get_mut(&e.group) {
                    group.members.extend(&e.agents);
                }
            }
            Event::GroupMembersRemoved(e) => {
                if let Some(group) = self.groups.get_mut(&e.group) {
                    group.members.retain(|agent| !e.agents.contains(agent));
                }
            }
            Event::JobCreated(e) => {
                if let Some(name) = e.name.legible() {
                    *self.job_names.entry(name.clone()).or_default() += 1;
                }
                self.jobs.insert(e.job, Job { name: e.name.clone(), spec: e.spec.clone() });
            }
            Event::JobDeleted(e) => {
                if let Some(job) = self.jobs.remove(&e.job)
                    && let Some(name) = job.name.legible()
                    && let Some(count) = self.job_names.get_mut(name)
                {
                    *count -= 1;
                    if *count == 0 {
                        self.job_names.remove(name);
                    }
                }
            }
            Event::RunStarted(e) => {
                self.forget_old_runs();
                let name = self.jobs.get(&e.job).map(|job| job.name.clone()).unwrap_or_default();
                self.runs.insert(e.run, Run::started(e, name));
            }
            Event::RunManifestReady(e) => self.run(e.run, event),
            Event::RunAgentProgressed(e) => self.run(e.run, event),
            Event::RunProblemReported(e) => self.run(e.run, event),
            Event::RunStopRequested(e) => self.run(e.run, event),
            Event::RunFinished(e) => self.run(e.run, event),
            Event::RunDisposed(e) => self.run(e.run, event),
            Event::RunMembersSet(e) => self.run(e.run, event),
            Event::RunConflictFound(e) => self.run(e.run, event),
            Event::RunConflictSettled(e) => self.run(e.run, event),
            Event::RunGuardRaised(e) => self.run(e.run, event),
            Event::RunGuardAnswered(e) => self.run(e.run, event),
            Event::RunGuardLifted(e) => self.run(e.run, event),
            Event::RunPathBlocked(e) => self.run(e.run, event),
            Event::RunPathUnblocked(e) => self.run(e.run, event),
            Event::RunRolledBack(e) => self.run(e.run, event),
            Event::BackupVersionKept(e) => self.run(e.run, event),
            // Told above.
            Event::BackupThinned(_) | Event::BackupSourceChanged(_) => {}
            Event::CommandIssued(e) => {
                self.agent(e.agent, event);
                if let Some(run) = e.run {
                    self.run(run, event);
                }
            }
            Event::CommandAcknowledged(e) => self.agent(e.agent, event),
            Event::AuditConflict(e) => crate::audit::evolve(&mut self.conflicts, e),
            // A statement about the state, not a part of it.
            Event::StateAttested(_) => {}
            Event::ReplicaStarted(_) | Event::ReplicaStopped(_) | Event::LeaseTaken(_) => {
                replica::evolve(&mut self.replicas, &mut self.lease, event);
            }
            Event::SchemaRaised(e) => self.raised = self.raised.max(e.level),
            Event::SubjectOpened(e) => {
                self.subjects.entry(e.subject).or_default().open(e.commitment);
            }
            Event::SubjectErased(e) => {
                if let Some(known) = self.subjects.get_mut(&e.subject) {
                    known.erase();
                }
                self.private(&mut |_, _, text| {
                    if text.subject() == Some(e.subject) {
                        text.shut(true);
                    }
                });
                self.name_anew();
            }
        }
    }

    /// Every text in it that is under a subject's key, or was recorded before there were keys.
    pub fn private(&mut self, visit: &mut Visit<'_>) {
        for (id, agent) in &mut self.agents {
            let owner = Owner::Subject(Subject::Agent(*id));
            visit(Field::AgentName, owner, &mut agent.name);
            visit(Field::AgentTags, owner, &mut agent.tags);
            visit(Field::AgentAddresses, owner, &mut agent.addresses);
        }
        for (id, job) in &mut self.jobs {
            let owner = Owner::Subject(Subject::Job(*id));
            visit(Field::JobName, owner, &mut job.name);
            job.spec.private(owner, visit);
        }
        for run in self.runs.values_mut() {
            let owner = Owner::Subject(Subject::Job(run.job));
            visit(Field::JobName, owner, &mut run.job_name);
            visit(Field::RunPaths, owner, &mut run.paths);
            if !run.options.asks_nothing() {
                visit(Field::RunOptions, owner, &mut run.options);
            }
            if let Some(sync) = &mut run.sync {
                visit(Field::RunSelections, owner, &mut sync.selections);
            }
        }
        self.backups.private(visit);
    }

    /// Which names are taken, after names were opened or erased: one that nobody can read is free.
    pub fn name_anew(&mut self) {
        let agents = self.agents.iter().filter(|(_, agent)| agent.standing != Standing::Removed);
        let named = agents.filter_map(|(id, agent)| Some((agent.name.legible()?.clone(), *id)));
        self.agent_names = named.collect();
        self.job_names.clear();
        for name in self.jobs.values().filter_map(|job| job.name.legible()) {
            *self.job_names.entry(name.clone()).or_default() += 1;
        }
    }

    fn agent(&mut self, id: AgentId, event: &Event) {
        if let Some(agent) = self.agents.get_mut(&id) {
            agent.evolve(event);
        }
    }

    fn run(&mut self, id: RunId, event: &Event) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.evolve(event);
        }
    }

    /// Run ids sort by time, so the first settled one is the oldest.
    fn forget_old_runs(&mut self) {
        if self.runs.len() >= RUNS_KEPT_MAX {
            let oldest = self.runs.iter().find(|(_, run)| run.is_settled()).map(|(id, _)| *id);
            if let Some(id) = oldest {
                self.runs.remove(&id);
            }
        }
    }

    pub(crate) fn approved(&self, id: AgentId) -> Option<&Agent> {
        self.agents.get(&id).filter(|agent| agent.standing == Standing::Approved)
    }
}

fn forget_name(names: &mut BTreeMap<String, AgentId>, name: &str, of: AgentId) {
    if names.get(name) == Some(&of) {
        names.remove(name);
    }
}
