//! What is there to be told of a synchronization besides what every run has?

use std::collections::BTreeMap;

use event_schema::{
    AgentId, BlockedText, ConflictKey, ConflictText, Event, Field, GuardAnswer, Obstacle, Owner, Permission,
    Private, Role, RunAgentState, RunMember, RunMembersSet, Selection, SyncPolicy, Timestamp, Visit,
};
use serde::{Deserialize, Serialize};

use super::runs::{RunAgentView, RunView};

/// What a run that synchronizes has besides what every run has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SyncView {
    /// How often its members or its policy were set.
    pub revision: u32,
    /// What holds for all members.
    pub policy: SyncPolicy,
    /// What members want of the tree; each is asked for by its place.
    pub selections: Private<Vec<Selection>>,
    /// Conflicts that nobody has seen to.
    pub conflicts: BTreeMap<ConflictKey, FileConflictView>,
    /// How many were seen to.
    pub settled: u64,
}

/// A file of which both versions are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileConflictView {
    /// When it was recorded.
    pub found: Timestamp,
    /// Who found it first.
    pub agent: AgentId,
    /// Whose change lost.
    pub loser: AgentId,
    /// Whose change won.
    pub winner: AgentId,
    /// Where, and under which name the loser is kept.
    pub text: Private<ConflictText>,
}

/// A member's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SyncMemberView {
    /// With which rights.
    pub permission: Permission,
    /// Which of the run's selections is its own.
    pub selection: u16,
    /// It was taken out.
    pub left: bool,
    /// What its guard asks.
    pub guard: Option<GuardView>,
    /// Paths at which something cannot be, by its numbers for them.
    pub blocked: BTreeMap<u64, BlockedView>,
    /// How often its index turned out to be an older copy of itself.
    pub rolled_back: u64,
}

/// What a member's guard asks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuardView {
    /// The question's number.
    pub number: u64,
    /// Since when.
    pub since: Timestamp,
    /// Entries that are gone.
    pub missing: u64,
    /// Of how many.
    pub total: u64,
    /// What an operator answered, if it was not carried out yet.
    pub answer: Option<GuardAnswer>,
}

/// A path at which something cannot be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockedView {
    /// When it was recorded.
    pub time: Timestamp,
    /// Why.
    pub obstacle: Obstacle,
    /// Where.
    pub text: Private<BlockedText>,
}

impl RunView {
    /// What a member wants of the tree; none if it cannot be read.
    pub fn selection(&self, member: &SyncMemberView) -> Option<&Selection> {
        let selections = self.sync.as_ref()?.selections.legible()?;
        selections.get(usize::from(member.selection))
    }

    pub(super) fn apply_sync(&mut self, time: Timestamp, event: &Event) {
        match event {
            Event::RunMembersSet(e) => self.set_members(time, e),
            Event::RunConflictFound(e) => {
                if let Some(sync) = &mut self.sync {
                    let (found, text) = (time, e.text.clone());
                    let (agent, loser, winner) = (e.agent, e.loser, e.winner);
                    sync.conflicts.insert(e.conflict, FileConflictView { found, agent, loser, winner, text });
                }
            }
            Event::RunConflictSettled(e) => {
                if let Some(sync) = &mut self.sync
                    && sync.conflicts.remove(&e.conflict).is_some()
                {
                    sync.settled += 1;
                }
            }
            Event::RunGuardRaised(e) => self.member(e.agent, |member| {
                let before = member.guard.filter(|guard| guard.number == e.guard);
                member.guard = Some(GuardView {
                    number: e.guard,
                    since: before.map_or(time, |guard| guard.since),
                    missing: e.missing,
                    total: e.total,
                    answer: before.and_then(|guard| guard.answer),
                });
            }),
            Event::RunGuardAnswered(e) => self.member(e.agent, |member| {
                if let Some(guard) = member.guard.as_mut().filter(|guard| guard.number == e.guard) {
                    guard.answer = Some(e.answer);
                }
            }),
            Event::RunGuardLifted(e) => self.member(e.agent, |member| {
                member.guard = member.guard.filter(|guard| guard.number != e.guard);
            }),
            Event::RunPathBlocked(e) => self.member(e.agent, |member| {
                let (obstacle, text) = (e.obstacle, e.text.clone());
                member.blocked.insert(e.number, BlockedView { time, obstacle, text });
            }),
            Event::RunPathUnblocked(e) => self.member(e.agent, |member| {
                member.blocked.remove(&e.number);
            }),
            Event::RunRolledBack(e) => self.member(e.agent, |member| member.rolled_back += 1),
            _ => {}
        }
    }

    fn member(&mut self, agent: AgentId, change: impl FnOnce(&mut SyncMemberView)) {
        if let Some(member) = self.agents.get_mut(&agent).and_then(|part| part.member.as_mut()) {
            change(member);
        }
    }

    fn set_members(&mut self, time: Timestamp, e: &RunMembersSet) {
        let (conflicts, settled) =
            self.sync.take().map(|sync| (sync.conflicts, sync.settled)).unwrap_or_default();
        let selections = e.selections.clone();
        self.sync = Some(SyncView { revision: e.revision, policy: e.policy, selections, conflicts, settled });
        self.paths = e.paths.clone();
        for member in self.agents.values_mut().filter_map(|part| part.member.as_mut()) {
            member.left = true;
        }
        for RunMember { agent, path, permission, selection } in &e.members {
            let part = self.agents.entry(*agent).or_insert_with(|| RunAgentView {
                role: Role::Member,
                path: 0,
                state: RunAgentState::Waiting,
                since: time,
                stats: None,
                problems: 0,
                member: None,
            });
            if part.state.is_terminal() {
                (part.state, part.since) = (RunAgentState::Waiting, time);
            }
            part.path = *path;
            let (guard, blocked, rolled_back) = part
                .member
                .take()
                .map(|member| (member.guard, member.blocked, member.rolled_back))
                .unwrap_or_default();
            let (permission, selection, left) = (*permission, *selection, false);
            part.member = Some(SyncMemberView { permission, selection, left, guard, blocked, rolled_back });
        }
        let is_current = |part: &RunAgentView| part.member.as_ref().is_some_and(|member| !member.left);
        self.agents.retain(|_, part| is_current(part) || !part.state.is_terminal());
        for member in self.agents.values_mut().filter_map(|part| part.member.as_mut()).filter(|m| m.left) {
            (member.guard, member.blocked) = (None, BTreeMap::new());
        }
    }

    pub(super) fn private_sync(&mut self, owner: Owner, visit: &mut Visit<'_>) {
        if let Some(sync) = &mut self.sync {
            visit(Field::RunSelections, owner, &mut sync.selections);
            sync.conflicts
                .values_mut()
                .for_each(|conflict| visit(Field::Conflict, owner, &mut conflict.text));
        }
        for member in self.agents.values_mut().filter_map(|part| part.member.as_mut()) {
            member.blocked.values_mut().for_each(|blocked| visit(Field::Blocked, owner, &mut blocked.text));
        }
    }
}
