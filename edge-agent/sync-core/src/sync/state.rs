//! What a replica remembers beside rows, how rows are stored, and what waits for that (SYNC.md §8).

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use agent_proto::sync::{Cursor, Dot, Head, LIVES_MAX, Life, ReplicaId, Value};
use event_schema::{AgentId, Signature, decode_exact, encode};
use serde::{Deserialize, Serialize};

use super::config::{LIVES_KEPT, RIVALS_MAX};
use super::rollback::Rolling;
use super::row::{Batch, Disk, Index, Row, Work};
use super::statement::{Kinship, dot, head_bytes, kinship, lacks_meta, replica_id, same_content};
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
    /// Statements left out: nobody who told them could vouch for them, or they name too many replicas.
    pub skipped: u64,
    /// Rows told again because somebody who had taken them had not got all of it.
    pub echoes: u64,
    /// Deletions told again because somebody came with what all had forgotten.
    pub deleted_again: u64,
}

/// A replica that somebody counts under.
#[derive(Clone, Debug)]
pub(super) struct Author {
    pub(super) agent: AgentId,
    /// The newest head; several if its index was restored from a copy: one of each branch.
    pub(super) heads: Vec<Head>,
    /// Up to here its numbers mean one thing.
    pub(super) sure: u64,
}

impl Author {
    /// The newest counter that it has signed.
    pub(super) fn reached(&self) -> u64 {
        self.heads.iter().map(|h| h.counter).max().unwrap_or(0)
    }

    /// Takes a checked head; false if it says nothing new.
    pub(super) fn add(&mut self, head: Head) -> bool {
        let mut news = true;
        self.heads.retain(|old| match kinship(old, &head) {
            Kinship::Newer => {
                news = false;
                true
            }
            Kinship::Older => false,
            Kinship::Forked(at) => {
                self.sure = self.sure.min(at);
                true
            }
        });
        if news && self.heads.len() < RIVALS_MAX {
            self.heads.push(head);
        }
        news
    }
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
    /// Something that it told was left out: what it says it knows is not known here.
    pub(super) skipped: bool,
}

/// What this index told between two starts: since which counter and sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) id: u32,
    pub(super) counter: u64,
    pub(super) sequence: u64,
}

/// Deletions that came one after the other, and how many entries there were at the first (SYNC.md §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Episode {
    pub(super) total: u64,
    /// Deletions believed by now, less the entries that others brought since.
    pub(super) believed: u64,
    /// New entries since.
    pub(super) came: u64,
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
    pub(super) episode: Option<Episode>,
    /// Everything that is missing is to be fetched again.
    pub(super) restoring: bool,
    /// A walk over all rows is under way, because what is wanted changed: behind this path they are as it was.
    pub(super) recheck: Option<Vec<u8>>,
    /// A new life as another replica is under way.
    pub(super) rolling: Option<Rolling>,
    pub(super) lives: Vec<Told>,
    pub(super) summary: Vec<Dot>,
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
            episode: None,
            restoring: false,
            recheck: None,
            rolling: None,
            lives: Vec::new(),
            summary: Vec::new(),
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        decode_exact::<(u8, Self)>("meta", bytes).ok().filter(|(v, _)| *v == 3).map(|(_, meta)| meta)
    }
}

/// A row in work: with what it was, to see what changed.
pub(super) struct Held {
    pub(super) row: Row,
    was: (bool, bool),
    told: Shown,
}

/// What others are told of a row: which statements, and which of them is here.
type Shown = (Vec<(Dot, Signature)>, Option<usize>);

impl Held {
    /// Numbers the row anew although nothing in it changed.
    pub(super) fn tell_again(&mut self) {
        self.row.sequence = 0;
    }
}

fn places(disk: &Disk) -> (bool, bool) {
    (matches!(disk, Disk::Present(_)), matches!(disk, Disk::Missing(_)))
}

fn told(row: &Row) -> Shown {
    (row.statements.iter().map(|s| (dot(s), s.signature)).collect(), row.holds())
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
    asked: Option<(u64, Durable)>,
    synced: u64,
    pub(super) durable: Durable,
    waiting: VecDeque<(u64, Action)>,
}

/// What may be told: it is durable, and the durable index knows that it may have been told.
#[derive(Clone, Debug, Default)]
pub(super) struct Durable {
    pub(super) sequence: u64,
    pub(super) counter: u64,
    pub(super) lives: Vec<Told>,
    pub(super) summary: Vec<Dot>,
}

impl Durable {
    pub(super) fn of(meta: &Meta) -> Self {
        Self {
            sequence: meta.told_sequence,
            counter: meta.told_counter,
            lives: meta.lives.clone(),
            summary: meta.summary.clone(),
        }
    }
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
    pub(super) fn ask(&mut self, meta: &Meta) -> Option<u64> {
        if self.asked.is_some() || self.synced == self.put {
            return None;
        }
        self.asked = Some((self.put, Durable::of(meta)));
        Some(self.put)
    }

    pub(super) fn synced(&mut self, ticket: u64) {
        if let Some((_, durable)) = self.asked.take_if(|(asked, _)| *asked == ticket) {
            (self.synced, self.durable) = (ticket, durable);
        }
    }

    /// What is durable, or on its way to the disk, is of a replica that is none any more.
    pub(super) fn disown(&mut self) {
        self.durable = Durable::default();
        if let Some((_, durable)) = &mut self.asked {
            *durable = Durable::default();
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
            if let Ok((2, kept, heads)) = decode_exact::<(u8, Kept, Vec<Head>)>("member", &bytes) {
                heads.into_iter().for_each(|head| _ = self.remember_head(head));
                self.members.insert(agent, MemberState { permission: Permission::ReadOnly, kept });
            }
        }
        self.set_members(members);
        self.pending.members.clear();
        self.pending.durable = Durable::of(&self.meta);
        if index.meta().is_none() {
            self.pending.meta = true;
        }
    }

    /// Says whether anybody may do something that it might not before, or the other way round.
    pub(super) fn set_members(&mut self, members: &[Member]) -> bool {
        let mut before = core::mem::take(&mut self.members);
        let mut changed = false;
        for member in members.iter().take(super::MEMBERS_MAX) {
            let old = before.remove(&member.agent);
            changed |= old.as_ref().is_none_or(|m| m.permission != member.permission);
            let kept = old.map(|m| m.kept).unwrap_or_default();
            self.members.insert(member.agent, MemberState { permission: member.permission, kept });
        }
        changed || !before.is_empty()
    }

    /// Keeps a head whose signature was checked; false if it says nothing new.
    pub(super) fn remember_head(&mut self, head: Head) -> bool {
        let agent = AgentId::of_key(&head.key);
        let id = replica_id(self.config.run, agent, head.incarnation);
        if let Some(tidying) = &mut self.tidying {
            tidying.named.insert(id);
        }
        let none = Author { agent, heads: Vec::new(), sure: u64::MAX };
        let news = self.authors.entry(id).or_insert(none).add(head);
        if news {
            self.member_changed(agent);
        }
        news
    }

    /// This replica's own head as far as it is durable.
    pub(super) fn sign_head(&mut self) -> Head {
        let counter = self.pending.durable.counter;
        if let Some(head) = &self.own_head
            && (head.counter, head.incarnation) == (counter, self.meta.incarnation)
        {
            return head.clone();
        }
        let mut head = self.unsigned_head(&self.pending.durable.lives, counter);
        let old = head.lives.len().saturating_sub(LIVES_MAX);
        head.lives.drain(..old);
        head.signature = self.notary.sign(&head_bytes(self.config.run, &head));
        self.own_head = Some(head.clone());
        head
    }

    /// With all lives that this index remembers, to compare others with.
    pub(super) fn unsigned_head(&self, lives: &[Told], counter: u64) -> Head {
        Head {
            key: self.config.key,
            incarnation: self.meta.incarnation,
            counter,
            // Lives that counted nothing tell nothing.
            lives: lives
                .iter()
                .enumerate()
                .filter(|(i, l)| lives.get(i + 1).is_none_or(|next| next.counter > l.counter))
                .map(|(_, l)| Life { id: l.id, since: l.counter })
                .collect(),
            signature: Signature([0; 32], [0; 32]),
        }
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
        if id == self.me { self.meta.counter } else { self.authors.get(&id).map_or(0, Author::reached) }
    }

    /// Whether this member knows, or knew, the very change, and not another one of the same number.
    pub(super) fn knew(&self, dot: Dot) -> bool {
        version::includes(&self.meta.summary, dot)
            && self.authors.get(&dot.replica).is_none_or(|a| dot.counter <= a.sure)
    }

    pub(super) fn row(&self, index: &dyn Index, path: &[u8]) -> Option<Row> {
        if self.pending.forgotten.contains(path) {
            return None;
        }
        self.pending.rows.get(path).cloned().or_else(|| index.row(path))
    }

    /// The row of a path, to be changed and saved.
    pub(super) fn hold(&mut self, index: &dyn Index, path: &[u8]) -> Held {
        let row = self.row(index, path).unwrap_or_else(|| Row::new(path));
        let mut held = Held { was: places(&row.disk), told: told(&row), row };
        self.roll_row(&mut held.row);
        held
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

    /// Whether something is to be here at a path, of whatever kind.
    pub(super) fn wants_any(&self, path: &[u8]) -> bool {
        self.policy.wants(path, true) || self.policy.wants(path, false)
    }

    /// Whether what a row is about, told or on disk, is to be here.
    pub(super) fn wants(&self, row: &Row) -> bool {
        let told = row.winner().map(|w| &w.value).filter(|value| **value != Value::Deleted);
        let on_disk = match &row.disk {
            Disk::Present(here) | Disk::Missing(here) => Some(&here.value),
            Disk::Absent => None,
        };
        let mut kinds = told.into_iter().chain(on_disk).peekable();
        let any = kinds.peek().is_none() && self.wants_any(&row.path);
        any || kinds.any(|value| self.policy.wants(&row.path, super::plan::is_folder(value)))
    }

    pub(super) fn work_of(&self, row: &Row) -> Work {
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
            _ if !self.wants(row) => Work::None,
            // What a read-only member's owner made of a file that others deleted stays (SYNC.md §6).
            (Value::Deleted, Some(here)) if here.dot.is_none() && self.keeps_aside() => Work::None,
            (Value::Deleted, Some(_)) => Work::Remove,
            // Somebody has to say which metadata it is, or each member keeps its own.
            (told, Some(here)) if self.may_write() && lacks_meta(told, &here.value) => Work::Pull,
            (told, Some(here)) if here.dot == Some(dot(winner)) && self.is_same(&here.value, told) => {
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
        if self.peers.values().any(|p| p.greeted)
            && self.meta.rolling.is_none()
            && (self.meta.told_counter, self.meta.told_sequence) != (self.meta.counter, self.meta.sequence)
        {
            let life = (self.config.fresh ^ self.config.fresh >> 32) as u32;
            if self.meta.lives.last().is_none_or(|l| l.id != life) {
                if self.meta.lives.len() >= LIVES_KEPT {
                    self.meta.lives.remove(0);
                }
                let (counter, sequence) = (self.meta.told_counter, self.meta.told_sequence);
                self.meta.lives.push(Told { id: life, counter, sequence });
            }
            self.meta.told_counter = self.meta.counter;
            self.meta.told_sequence = self.meta.sequence;
            self.pending.meta = true;
        }
        let members = core::mem::take(&mut self.pending.members);
        let batch = Batch {
            rows: core::mem::take(&mut self.pending.rows).into_values().collect(),
            forgotten: core::mem::take(&mut self.pending.forgotten).into_iter().collect(),
            meta: core::mem::take(&mut self.pending.meta).then(|| self.encode_meta()),
            members: members.into_iter().map(|agent| (agent, self.encode_member(agent))).collect(),
        };
        if !batch.is_empty() {
            self.pending.put += 1;
            index.put(batch);
        }
    }

    /// What is kept of a member, and heads of who is, or was, one: not with the record, which changes with each row.
    fn encode_member(&self, agent: AgentId) -> Vec<u8> {
        let none = Kept::default();
        let kept = self.members.get(&agent).map_or(&none, |m| &m.kept);
        let heads = self.authors.values().filter(|a| a.agent == agent).flat_map(|a| &a.heads);
        encode(&(2u8, kept, heads.collect::<Vec<&Head>>()))
    }

    fn encode_meta(&mut self) -> Vec<u8> {
        let own = Dot { replica: self.me, counter: self.meta.counter };
        if own.counter > 0 {
            version::add(&mut self.meta.summary, own);
        }
        encode(&(3u8, &self.meta))
    }
}
