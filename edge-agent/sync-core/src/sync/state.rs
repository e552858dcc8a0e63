//! What a replica remembers beside rows, how rows are stored, and what waits for that (SYNC.md §8).

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use agent_proto::sync::{Cursor, Dot, Head, ReplicaId, Value};
use event_schema::{AgentId, decode_exact, encode};
use serde::{Deserialize, Serialize};

use super::row::{Batch, Disk, Index, Row, Work};
use super::statement::{dot, head_bytes, replica_id, same_content};
use super::{Action, Member, Permission, Replica, version};

/// Counts since the start, for status and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Statements made here.
    pub made: u64,
    /// Statements of others that were new.
    pub learned: u64,
    /// Messages refused.
    pub refused: u64,
    /// Blocks that came and were right.
    pub blocks: u64,
    /// Blocks or hashes that came and were not.
    pub bad_blocks: u64,
    /// Files that came from this agent itself.
    pub reused: u64,
    /// Files that were moved into place within the folder.
    pub moved: u64,
    /// Changes made to the folder.
    pub changes: u64,
    /// Changes that found the folder other than expected.
    pub refusals: u64,
    /// Conflict copies made here.
    pub copies: u64,
    /// Deletions that everybody knows of and that were forgotten.
    pub forgotten: u64,
    /// Deletions told again because somebody came with what all had forgotten.
    pub deleted_again: u64,
}

/// A replica that somebody counts under.
#[derive(Clone, Debug)]
pub(super) struct Author {
    pub(super) agent: AgentId,
    pub(super) head: Head,
}

/// What is kept of a member.
#[derive(Clone, Debug)]
pub(super) struct MemberState {
    pub(super) permission: Permission,
    pub(super) kept: Kept,
}

/// The durable part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// How much of its index is here.
    pub(super) cursor: Option<Cursor>,
    /// What it is known to know.
    pub(super) summary: Vec<Dot>,
}

/// The replica's own state, stored whole with each batch that changes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) incarnation: u64,
    /// Changes made under this incarnation.
    pub(super) counter: u64,
    /// The newest of them that anybody may have been told of.
    pub(super) told_counter: u64,
    pub(super) epoch: u64,
    /// Of the last row that changed.
    pub(super) sequence: u64,
    /// The newest that anybody may have been told of.
    pub(super) told_sequence: u64,
    pub(super) present: u64,
    pub(super) missing: u64,
    pub(super) guarded: bool,
    /// Somebody said that what is missing is to be believed.
    pub(super) believed: bool,
    pub(super) summary: Vec<Dot>,
    pub(super) heads: Vec<Head>,
}

impl Meta {
    pub(super) fn new(fresh: u64) -> Self {
        Self {
            incarnation: fresh,
            counter: 0,
            told_counter: 0,
            epoch: fresh,
            sequence: 0,
            told_sequence: 0,
            present: 0,
            missing: 0,
            guarded: false,
            believed: false,
            summary: Vec::new(),
            heads: Vec::new(),
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        decode_exact::<(u8, Self)>("meta", bytes).ok().filter(|(v, _)| *v == 1).map(|(_, meta)| meta)
    }
}

/// A row in work: with what it was, to see what changed.
pub(super) struct Held {
    pub(super) row: Row,
    was: (bool, bool),
    told: (Vec<Dot>, Option<usize>),
}

fn places(disk: &Disk) -> (bool, bool) {
    (matches!(disk, Disk::Present(_)), matches!(disk, Disk::Missing(_)))
}

fn told(row: &Row) -> (Vec<Dot>, Option<usize>) {
    (row.statements.iter().map(dot).collect(), row.holds())
}

/// What is put and not yet durable, and what waits for that.
#[derive(Debug, Default)]
pub(super) struct Pending {
    rows: BTreeMap<Vec<u8>, Row>,
    forgotten: BTreeSet<Vec<u8>>,
    members: Vec<AgentId>,
    meta: bool,
    /// Number of the last put.
    put: u64,
    asked: Option<(u64, u64, u64, Vec<Dot>)>,
    synced: u64,
    /// What may be told: durable, and known to the durable index as told.
    pub(super) sequence: u64,
    pub(super) counter: u64,
    pub(super) summary: Vec<Dot>,
    waiting: VecDeque<(u64, Action)>,
}

impl Pending {
    pub(super) fn rows(&self) -> usize {
        self.rows.len() + self.forgotten.len()
    }

    pub(super) fn is_durable(&self) -> bool {
        self.synced == self.put && self.rows.is_empty() && !self.meta
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.is_durable() && self.waiting.is_empty()
    }

    /// The ticket to ask a sync for, if one is needed and none is under way.
    pub(super) fn ask(&mut self, sequence: u64, counter: u64, summary: &[Dot]) -> Option<u64> {
        if self.asked.is_some() || self.synced == self.put {
            return None;
        }
        self.asked = Some((self.put, sequence, counter, summary.to_vec()));
        Some(self.put)
    }

    pub(super) fn synced(&mut self, ticket: u64) {
        let Some((asked, sequence, counter, summary)) = self.asked.take() else { return };
        if asked != ticket {
            self.asked = Some((asked, sequence, counter, summary));
            return;
        }
        (self.synced, self.sequence, self.counter, self.summary) = (ticket, sequence, counter, summary);
    }

    /// What is on its way to the disk is of a replica that is none any more.
    pub(super) fn disown(&mut self) {
        if let Some((_, sequence, counter, summary)) = &mut self.asked {
            (*sequence, *counter) = (0, 0);
            summary.clear();
        }
    }

    /// An action that must not be taken before everything put so far is durable.
    pub(super) fn after(&mut self, action: Action) {
        // What is about to be put in this call counts too.
        let unput =
            !self.rows.is_empty() || !self.forgotten.is_empty() || self.meta || !self.members.is_empty();
        self.waiting.push_back((self.put + u64::from(unput), action));
    }

    pub(super) fn released(&mut self, actions: &mut VecDeque<Action>) {
        while self.waiting.front().is_some_and(|(put, _)| *put <= self.synced) {
            actions.extend(self.waiting.pop_front().map(|(_, action)| action));
        }
    }
}

impl Replica {
    pub(super) fn load(&mut self, index: &dyn Index, members: &[Member]) {
        for (agent, bytes) in index.members() {
            if let Ok(kept) = decode_exact::<Kept>("member", &bytes) {
                self.members.insert(agent, MemberState { permission: Permission::ReadOnly, kept });
            }
        }
        self.set_members(members);
        for head in self.meta.heads.clone() {
            self.remember_head(head);
        }
        self.pending.sequence = self.meta.told_sequence;
        self.pending.counter = self.meta.told_counter;
        self.pending.summary = self.meta.summary.clone();
        if index.meta().is_none() {
            self.pending.meta = true;
        }
    }

    pub(super) fn set_members(&mut self, members: &[Member]) {
        let mut before = core::mem::take(&mut self.members);
        for member in members.iter().take(super::MEMBERS_MAX) {
            let kept = before.remove(&member.agent).map(|m| m.kept).unwrap_or_default();
            self.members.insert(member.agent, MemberState { permission: member.permission, kept });
        }
    }

    /// A head whose signature was checked.
    pub(super) fn remember_head(&mut self, head: Head) {
        let agent = AgentId::of_key(&head.key);
        let id = replica_id(self.config.run, agent, head.incarnation);
        self.authors.insert(id, Author { agent, head });
    }

    /// This replica's own head as far as it is durable.
    pub(super) fn sign_head(&mut self) -> Head {
        let counter = self.pending.counter;
        if let Some(head) = &self.own_head
            && (head.counter, head.incarnation) == (counter, self.meta.incarnation)
        {
            return head.clone();
        }
        let mut head = Head {
            key: self.config.key,
            incarnation: self.meta.incarnation,
            counter,
            signature: event_schema::Signature([0; 32], [0; 32]),
        };
        head.signature = self.notary.sign(&head_bytes(self.config.run, &head));
        self.own_head = Some(head.clone());
        head
    }

    /// The agent behind a replica.
    pub(super) fn agent_of(&self, id: ReplicaId) -> Option<AgentId> {
        if id == self.me {
            return Some(self.config.agent);
        }
        self.authors.get(&id).map(|a| a.agent)
    }

    /// How far a replica has counted for all one can prove.
    pub(super) fn reached(&self, id: ReplicaId) -> u64 {
        if id == self.me { self.meta.counter } else { self.authors.get(&id).map_or(0, |a| a.head.counter) }
    }

    pub(super) fn row(&self, index: &dyn Index, path: &[u8]) -> Option<Row> {
        if self.pending.forgotten.contains(path) {
            return None;
        }
        self.pending.rows.get(path).cloned().or_else(|| index.row(path))
    }

    /// The row of a path, to be changed and saved.
    pub(super) fn hold(&self, index: &dyn Index, path: &[u8]) -> Held {
        let row = self.row(index, path).unwrap_or_else(|| Row::new(path));
        Held { was: places(&row.disk), told: told(&row), row }
    }

    /// Decides what the row waits for, numbers it if others are to be told, and keeps it for the next put.
    pub(super) fn save(&mut self, held: Held) {
        let Held { mut row, was, told: before } = held;
        let now = places(&row.disk);
        self.meta.present = self.meta.present + u64::from(now.0) - u64::from(was.0);
        self.meta.missing = self.meta.missing + u64::from(now.1) - u64::from(was.1);
        self.pending.meta |= now != was;
        row.work = self.work_of(&row);
        if !row.statements.is_empty() && (told(&row) != before || row.sequence == 0) {
            self.meta.sequence += 1;
            self.pending.meta = true;
            row.sequence = self.meta.sequence;
        }
        // What is gone or come may be what another row waited for.
        if matches!(row.work, Work::Pull | Work::Remove) || now != was {
            self.pass.restart();
        }
        if row.work != Work::Pull {
            row.holders.clear();
        }
        self.retries.remove(&row.path);
        if !matches!(row.work, Work::Pull | Work::Remove) && self.blocked.remove(&row.path) {
            self.actions.push_back(Action::Unblocked { path: row.path.clone() });
        }
        self.pending.forgotten.remove(&row.path);
        self.pending.rows.insert(row.path.clone(), row);
    }

    /// Keeps a row that changed in nothing that others are told.
    pub(super) fn save_quietly(&mut self, row: Row) {
        self.pending.forgotten.remove(&row.path);
        self.pending.rows.insert(row.path.clone(), row);
    }

    pub(super) fn forget(&mut self, path: &[u8]) {
        self.pending.rows.remove(path);
        self.pending.forgotten.insert(path.to_vec());
    }

    pub(super) fn meta_changed(&mut self) {
        self.pending.meta = true;
    }

    pub(super) fn member_changed(&mut self, agent: AgentId) {
        if !self.pending.members.contains(&agent) {
            self.pending.members.push(agent);
        }
    }

    fn work_of(&self, row: &Row) -> Work {
        let on_disk = match &row.disk {
            Disk::Missing(_) => return Work::Missing,
            Disk::Absent => None,
            Disk::Present(on_disk) => Some(on_disk),
        };
        let Some(winner) = row.winner() else {
            return if on_disk.is_some() && !self.keeps_aside() { Work::Remove } else { Work::None };
        };
        match (&winner.value, on_disk) {
            (Value::Deleted, None) => Work::Tombstone,
            _ if !self.policy.wants(&row.path) => Work::None,
            // What a read-only member's owner made of a file that others deleted stays (SYNC.md §6).
            (Value::Deleted, Some(here)) if here.dot.is_none() && self.keeps_aside() => Work::None,
            (Value::Deleted, Some(_)) => Work::Remove,
            (_, Some(here)) if here.dot == Some(dot(winner)) && self.is_same(&here.value, &winner.value) => {
                Work::None
            }
            _ => Work::Pull,
        }
    }

    /// Whether what was made here and is not told may stay.
    pub(super) fn keeps_aside(&self) -> bool {
        self.may_write() || self.config.local_changes == super::LocalChanges::KeepAside
    }

    /// Whether two values are the same as far as this member's file system can tell.
    pub(super) fn is_same(&self, a: &Value, b: &Value) -> bool {
        let (x, y) = (super::statement::meta(a), super::statement::meta(b));
        // Nobody said which: whatever it is is right.
        same_content(a, b) && (x.is_empty() || y.is_empty() || self.policy.same_meta(x, y))
    }

    /// Puts everything that changed.
    pub(super) fn flush(&mut self, index: &mut dyn Index) {
        // Before anything of it is told, the index has to know that it was (SYNC.md §8).
        if !self.peers.is_empty()
            && (self.meta.told_counter, self.meta.told_sequence) != (self.meta.counter, self.meta.sequence)
        {
            self.meta.told_counter = self.meta.counter;
            self.meta.told_sequence = self.meta.sequence;
            self.pending.meta = true;
        }
        let members = core::mem::take(&mut self.pending.members);
        let batch = Batch {
            rows: core::mem::take(&mut self.pending.rows).into_values().collect(),
            forgotten: core::mem::take(&mut self.pending.forgotten).into_iter().collect(),
            meta: core::mem::take(&mut self.pending.meta).then(|| self.encode_meta()),
            members: members
                .into_iter()
                .filter_map(|agent| Some((agent, encode(&self.members.get(&agent)?.kept))))
                .collect(),
        };
        if !batch.is_empty() {
            self.pending.put += 1;
            index.put(batch);
        }
    }

    fn encode_meta(&mut self) -> Vec<u8> {
        self.meta.heads = self.authors.values().map(|a| a.head.clone()).collect();
        let own = Dot { replica: self.me, counter: self.meta.counter };
        if own.counter > 0 {
            version::add(&mut self.meta.summary, own);
        }
        encode(&(1u8, &self.meta))
    }
}
