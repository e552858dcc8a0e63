//! Synchronizations: runs without an end, in which members share one folder until somebody stops them
//! (`edge-agent/SYNC.md`).
//!
//! Who takes part how is one fact that is replaced as a whole ([`RunMembersSet`]); what members are told follows from it
//! (`crate::plan`). Besides that there are only facts that people should see to: conflicts, guards that ask, paths at
//! which something cannot be. How far members are behind is telemetry.

use std::collections::{BTreeMap, BTreeSet};

use event_schema::{
    AgentId, ConflictKey, Event, GuardAnswer, JobId, JobSpec, Party, Permission, Private, RunAgentState,
    RunConflictFound, RunConflictSettled, RunGuardAnswered, RunGuardLifted, RunGuardRaised, RunId, RunMember,
    RunMembersSet, RunPathBlocked, RunPathUnblocked, RunStarted, Selection, Share, SyncPolicy, path_of,
};
use serde::{Deserialize, Serialize};

use crate::job::illegible;
use crate::limits::{
    ARCHIVE_DAYS_MAX, CONFLICTS_OPEN_MAX, JOB_MEMBERS_MAX, MEMBERS_LEN_MAX, MEMBERS_MAX, SELECTION_LEN_MAX,
    SELECTION_RULES_MAX,
};
use crate::run::{Part, Run, must_be_approved};
use crate::{Rejection, State, text};

/// What a run that synchronizes has besides what every run has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sync {
    /// Counts what was set.
    pub(crate) revision: u32,
    pub(crate) policy: SyncPolicy,
    pub(crate) selections: Private<Vec<Selection>>,
    /// Conflicts that nobody has seen to.
    pub(crate) conflicts: BTreeSet<ConflictKey>,
}

/// A member's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) permission: Permission,
    /// Its place among the run's selections.
    pub(crate) selection: u16,
    /// The revision that it was told last.
    pub(crate) ordered: u32,
    /// It takes part no more: it stops, or has stopped.
    pub(crate) left: bool,
    pub(crate) guard: Option<Guard>,
    /// Its numbers of paths at which something cannot be.
    pub(crate) blocked: BTreeSet<u64>,
}

/// A question of a member.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Guard {
    pub(crate) number: u64,
    pub(crate) missing: u64,
    pub(crate) total: u64,
    pub(crate) answer: Option<GuardAnswer>,
    /// The answer was sent.
    pub(crate) ordered: bool,
}

/// What can be asked about synchronizations that run.
#[derive(Clone, Debug)]
pub enum Command {
    /// Let others take part, take some out, or give some other rights or another selection. Groups are resolved now.
    /// Who fails or has failed is asked once more.
    Members {
        /// Which run.
        run: RunId,
        /// Who takes part from now on, or how from now on.
        add: Vec<Share>,
        /// Who takes part no more. Its files stay where they are.
        remove: Vec<Party>,
    },
    /// Set what holds for all members.
    Policy {
        /// Which run.
        run: RunId,
        /// What holds from now on.
        policy: SyncPolicy,
    },
    /// Answer the guard of a member.
    AnswerGuard {
        /// Which run.
        run: RunId,
        /// Which member.
        agent: AgentId,
        /// What it is to do.
        answer: GuardAnswer,
    },
}

/// Who takes part with what.
type Members = BTreeMap<AgentId, (Vec<u8>, Permission, Selection)>;

/// Decides about a synchronization that runs.
///
/// # Errors
/// If the run is unknown, is none of this kind or has ended, its folders cannot be read, an agent is not known, not
/// approved, or no member; a member would have two folders or another one than it has; nobody could change anything,
/// there would be too many, or the policy makes no sense.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::Members { run, add, remove } => {
            let (known, sync) = running(state, run)?;
            let before = members(known, sync)?;
            let after = changed(state, known, &before, &add, &remove)?;
            let again = known.parts.values().any(|part| is_current(part) && part.state.is_terminal());
            if before == after && !again {
                return Ok(vec![]);
            }
            check_members(&after)?;
            Ok(vec![set(run, known.job, sync.revision + 1, sync.policy, after)])
        }
        Command::Policy { run, policy } => {
            let (known, sync) = running(state, run)?;
            check_policy(&policy)?;
            if sync.policy == policy {
                return Ok(vec![]);
            }
            Ok(vec![set(run, known.job, sync.revision + 1, policy, members(known, sync)?)])
        }
        Command::AnswerGuard { run, agent, answer } => {
            let (known, _) = running(state, run)?;
            let guard = known.member(agent).map(|member| member.guard);
            let Some(guard) = guard else { return Err(no_member(state, agent)) };
            let Some(guard) = guard else {
                return Err(Rejection::Conflict(format!(
                    "the guard of {} asks nothing: what was gone is back, or it was answered",
                    name(state, agent)
                )));
            };
            // Said again before it was sent it is one answer; later it is a new one, for whoever lost the first.
            if guard.answer == Some(answer) && !guard.ordered {
                return Ok(vec![]);
            }
            Ok(vec![RunGuardAnswered { run, agent, guard: guard.number, answer }.into()])
        }
    }
}

/// The start of a synchronization: the run, and who takes part. Groups are resolved now; members of theirs that are not
/// approved are passed over.
pub(crate) fn start(state: &State, run: RunId, job: JobId, spec: &JobSpec) -> Result<Vec<Event>, Rejection> {
    let JobSpec::Synchronization { members, policy } = spec else {
        return Err(Rejection::Invalid("this job does not synchronize".into()));
    };
    let members = resolved(state, members)?;
    if members.is_empty() {
        return Err(Rejection::Conflict("nobody would take part: the groups are empty".into()));
    }
    check_members(&members)?;
    let started = RunStarted::new(run, job, std::iter::empty());
    Ok(vec![started.into(), set(run, job, 1, *policy, members)])
}

/// Takes an agent that was removed from the fleet out of a run, so that the others stop waiting for it.
pub(crate) fn without(run: RunId, known: &Run, agent: AgentId) -> Option<Event> {
    let sync = known.sync.as_ref().filter(|_| known.outcome.is_none())?;
    known.member(agent)?;
    let mut members = members(known, sync).ok()?;
    members.remove(&agent);
    Some(set(run, known.job, sync.revision + 1, sync.policy, members))
}

fn set(run: RunId, job: JobId, revision: u32, policy: SyncPolicy, members: Members) -> Event {
    let members = members.into_iter().map(|(agent, (path, permission, selection))| {
        // Rules that say the same are one selection.
        (agent, path, permission, selection)
    });
    RunMembersSet::new(run, job, revision, policy, members).into()
}

fn running(state: &State, run: RunId) -> Result<(&Run, &Sync), Rejection> {
    let known = state.runs.get(&run).ok_or_else(|| Rejection::unknown("run", run))?;
    let Some(sync) = &known.sync else {
        return Err(Rejection::Conflict(
            "this run does not synchronize: its agents are those that it began with".into(),
        ));
    };
    if known.outcome.is_some() {
        return Err(Rejection::Conflict(format!("the run {run} was stopped: start the job again")));
    }
    Ok((known, sync))
}

/// Who takes part now.
fn members(run: &Run, sync: &Sync) -> Result<Members, Rejection> {
    if !run.paths.is_legible() || !sync.selections.is_legible() {
        return Err(illegible(run.job));
    }
    let current = run.parts.iter().filter_map(|(agent, part)| {
        let member = part.member.as_ref().filter(|member| !member.left)?;
        let selection = sync.selections.get(usize::from(member.selection)).cloned().unwrap_or_default();
        Some((*agent, (path_of(&run.paths, part.path).to_vec(), member.permission, selection)))
    });
    Ok(current.collect())
}

fn changed(
    state: &State,
    run: &Run,
    before: &Members,
    add: &[Share],
    remove: &[Party],
) -> Result<Members, Rejection> {
    let mut after = before.clone();
    for party in remove {
        match party {
            Party::Agent(agent) => {
                if after.remove(agent).is_none() {
                    return Err(no_member(state, *agent));
                }
            }
            Party::Group(id) => {
                let group = state.groups.get(id).ok_or_else(|| Rejection::unknown("group", id))?;
                after.retain(|agent, _| !group.members.contains(agent));
            }
        }
    }
    add.iter().try_for_each(check_share)?;
    for (agent, wanted) in resolved(state, add)? {
        if let Some((path, ..)) = before.get(&agent)
            && *path != wanted.0
        {
            return Err(Rejection::Conflict(format!(
                "{} takes part with the folder {}: remove it first if it is to have another one",
                name(state, agent),
                String::from_utf8_lossy(path)
            )));
        }
        if let Some(part) = run.parts.get(&agent)
            && part.member.as_ref().is_some_and(|member| member.left)
            && part.join_issued
            && !part.end_issued
        {
            return Err(Rejection::Conflict(format!(
                "{} is still to be told that it was taken out: try again in a moment",
                name(state, agent)
            )));
        }
        after.insert(agent, wanted);
    }
    if after.is_empty() {
        return Err(Rejection::Invalid("nobody would be left: stop the run instead".into()));
    }
    Ok(after)
}

/// Agents that shares name, groups resolved. An agent that is named itself is what it is named as, whatever its groups are.
fn resolved(state: &State, shares: &[Share]) -> Result<Members, Rejection> {
    let mut members = Members::new();
    let mut named = BTreeSet::new();
    for share in shares {
        let wanted = (share.path.to_vec(), share.permission, share.selection.clone().into_value());
        match share.party {
            Party::Agent(agent) => {
                must_be_approved(state, agent)?;
                if !named.insert(agent) {
                    return Err(Rejection::Invalid(format!("{} is named twice", name(state, agent))));
                }
                members.insert(agent, wanted);
            }
            Party::Group(id) => {
                let group = state.groups.get(&id).ok_or_else(|| Rejection::unknown("group", id))?;
                for agent in group.members.iter().filter(|agent| state.approved(**agent).is_some()) {
                    if named.contains(agent) {
                        continue;
                    }
                    if members.insert(*agent, wanted.clone()).is_some_and(|before| before != wanted) {
                        return Err(Rejection::Conflict(format!(
                            "{} is in two groups that take part in two ways: name it itself, before the groups",
                            name(state, *agent)
                        )));
                    }
                }
            }
        }
    }
    Ok(members)
}

/// Checks a synchronization when its job is made.
pub(crate) fn check(shares: &[Share], policy: &SyncPolicy) -> Result<(), Rejection> {
    check_policy(policy)?;
    if !(1..=JOB_MEMBERS_MAX).contains(&shares.len()) {
        return Err(Rejection::Invalid(format!("a synchronization has 1 to {JOB_MEMBERS_MAX} members")));
    }
    let mut seen = BTreeSet::new();
    for share in shares {
        check_share(share)?;
        if !seen.insert(share.party) {
            return Err(Rejection::Invalid("a member is named twice".into()));
        }
    }
    if !shares.iter().any(|share| share.permission.may_write()) {
        return Err(nobody_writes());
    }
    let bytes: usize = shares.iter().map(|share| share.path.len() + selection_len(&share.selection)).sum();
    if bytes > MEMBERS_LEN_MAX {
        return Err(too_long());
    }
    Ok(())
}

fn check_share(share: &Share) -> Result<(), Rejection> {
    let Selection { ignore, wanted } = &*share.selection;
    let lines = || ignore.iter().chain(wanted);
    if lines().count() > SELECTION_RULES_MAX || selection_len(&share.selection) > SELECTION_LEN_MAX {
        return Err(Rejection::Invalid(format!(
            "a member has at most {SELECTION_RULES_MAX} ignore rules and wanted patterns, of {SELECTION_LEN_MAX} bytes \
             together"
        )));
    }
    if lines().any(|line| line.trim().is_empty() || line.contains(['\n', '\r', '\0'])) {
        return Err(Rejection::Invalid(
            "an ignore rule or wanted pattern is one line with something in it".into(),
        ));
    }
    if wanted.iter().any(|line| line.starts_with('!')) {
        return Err(Rejection::Invalid("a wanted pattern does not begin with '!': ignore rules do".into()));
    }
    text::check_path(&share.path)
}

fn selection_len(selection: &Selection) -> usize {
    selection.ignore.iter().chain(&selection.wanted).map(|line| line.len() + 1).sum()
}

fn check_policy(policy: &SyncPolicy) -> Result<(), Rejection> {
    if !(1..=100).contains(&policy.guard_percent) {
        return Err(Rejection::Invalid(
            "the guard's share is 1 to 100 percent; with 100 it never asks".into(),
        ));
    }
    if let Some(archive) = &policy.archive {
        if archive.max_age_days.is_some_and(|days| !(1..=ARCHIVE_DAYS_MAX).contains(&days)) {
            return Err(Rejection::Invalid(format!(
                "an archive keeps files for 1 to {ARCHIVE_DAYS_MAX} days, or for ever"
            )));
        }
        if archive.max_bytes == Some(0) {
            return Err(Rejection::Invalid("an archive of 0 bytes is none".into()));
        }
    }
    Ok(())
}

fn check_members(members: &Members) -> Result<(), Rejection> {
    if members.len() > MEMBERS_MAX {
        return Err(Rejection::Limit(format!("a synchronization has at most {MEMBERS_MAX} members")));
    }
    if !members.values().any(|(_, permission, _)| permission.may_write()) {
        return Err(nobody_writes());
    }
    let paths: BTreeSet<_> = members.values().map(|(path, ..)| path).collect();
    let selections: BTreeSet<_> = members.values().map(|(.., selection)| selection).collect();
    let bytes = paths.into_iter().map(Vec::len).sum::<usize>()
        + selections.into_iter().map(selection_len).sum::<usize>();
    if bytes > MEMBERS_LEN_MAX {
        return Err(too_long());
    }
    Ok(())
}

fn nobody_writes() -> Rejection {
    Rejection::Invalid("nobody could change anything: at least one member has to be read_write".into())
}

fn too_long() -> Rejection {
    Rejection::Limit(format!(
        "folders, ignore rules and patterns of all members together have at most {MEMBERS_LEN_MAX} bytes"
    ))
}

fn no_member(state: &State, agent: AgentId) -> Rejection {
    Rejection::Conflict(format!("{} is no member of this run", name(state, agent)))
}

fn name(state: &State, agent: AgentId) -> String {
    state.agents.get(&agent).map_or_else(|| agent.to_string(), |agent| agent.name.to_string())
}

fn is_current(part: &Part) -> bool {
    part.member.as_ref().is_some_and(|member| !member.left)
}

impl Run {
    /// An agent's part in a synchronization, if it takes part now.
    pub(crate) fn member(&self, agent: AgentId) -> Option<&Member> {
        self.parts.get(&agent)?.member.as_ref().filter(|member| !member.left)
    }

    fn member_mut(&mut self, agent: AgentId) -> Option<&mut Member> {
        self.parts.get_mut(&agent)?.member.as_mut()
    }

    pub(crate) fn set_members(&mut self, e: &RunMembersSet) {
        let conflicts = self.sync.take().map(|sync| sync.conflicts).unwrap_or_default();
        let selections = e.selections.clone();
        self.sync = Some(Sync { revision: e.revision, policy: e.policy, selections, conflicts });
        self.paths = e.paths.clone();
        for part in self.parts.values_mut() {
            if let Some(member) = &mut part.member {
                member.left = true;
            }
        }
        for RunMember { agent, path, permission, selection } in &e.members {
            let part = self.parts.entry(*agent).or_insert_with(Part::of_member);
            let known = part.member.take();
            if part.state.is_terminal() {
                // Asked once more.
                *part = Part { stats: part.stats, problems: part.problems, ..Part::of_member() };
            }
            part.path = *path;
            let ordered = known.as_ref().filter(|_| part.join_issued).map_or(0, |member| member.ordered);
            let (guard, blocked) = known.map(|member| (member.guard, member.blocked)).unwrap_or_default();
            let (permission, selection) = (*permission, *selection);
            part.member = Some(Member { permission, selection, ordered, left: false, guard, blocked });
        }
        // Whoever has left and stopped is nobody's business any more.
        self.parts.retain(|_, part| is_current(part) || !part.state.is_terminal());
        for member in self.parts.values_mut().filter_map(|part| part.member.as_mut()).filter(|m| m.left) {
            (member.guard, member.blocked) = (None, BTreeSet::new());
        }
    }

    /// Takes in what only synchronizations know.
    pub(crate) fn evolve_sync(&mut self, event: &Event) {
        match event {
            Event::RunMembersSet(e) => self.set_members(e),
            Event::RunConflictFound(RunConflictFound { conflict, .. }) => {
                if let Some(sync) = &mut self.sync {
                    sync.conflicts.insert(*conflict);
                }
            }
            Event::RunConflictSettled(RunConflictSettled { conflict, .. }) => {
                if let Some(sync) = &mut self.sync {
                    sync.conflicts.remove(conflict);
                }
            }
            Event::RunGuardRaised(RunGuardRaised { agent, guard: number, missing, total, .. }) => {
                if let Some(member) = self.member_mut(*agent) {
                    let (number, missing, total) = (*number, *missing, *total);
                    let before = member.guard.filter(|guard| guard.number == number);
                    let (answer, ordered) =
                        before.map_or((None, false), |guard| (guard.answer, guard.ordered));
                    member.guard = Some(Guard { number, missing, total, answer, ordered });
                }
            }
            Event::RunGuardAnswered(RunGuardAnswered { agent, guard: number, answer, .. }) => {
                let guard = self.member_mut(*agent).and_then(|member| member.guard.as_mut());
                if let Some(guard) = guard.filter(|guard| guard.number == *number) {
                    (guard.answer, guard.ordered) = (Some(*answer), false);
                }
            }
            Event::RunGuardLifted(RunGuardLifted { agent, guard: number, .. }) => {
                if let Some(member) = self.member_mut(*agent) {
                    member.guard = member.guard.filter(|guard| guard.number != *number);
                }
            }
            Event::RunPathBlocked(RunPathBlocked { agent, number, .. }) => {
                if let Some(member) = self.member_mut(*agent) {
                    member.blocked.insert(*number);
                }
            }
            Event::RunPathUnblocked(RunPathUnblocked { agent, number, .. }) => {
                if let Some(member) = self.member_mut(*agent) {
                    member.blocked.remove(number);
                }
            }
            _ => {}
        }
    }

    /// Whether a conflict that a member tells of is news, and there is room for it.
    pub(crate) fn is_new_conflict(&self, conflict: ConflictKey) -> bool {
        self.sync.as_ref().is_some_and(|sync| {
            !sync.conflicts.contains(&conflict) && sync.conflicts.len() < CONFLICTS_OPEN_MAX
        })
    }
}

impl Part {
    fn of_member() -> Self {
        Self {
            role: event_schema::Role::Member,
            path: 0,
            state: RunAgentState::Waiting,
            stats: None,
            problems: 0,
            entry_problem: false,
            lacks: false,
            join_issued: false,
            end_issued: false,
            member: None,
            kept: false,
        }
    }
}
