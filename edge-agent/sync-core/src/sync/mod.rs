//! Synchronization of one folder between many members: who knows what, who wins, what is to be done to the folder.
//!
//! Read `edge-agent/SYNC.md` first. [`Replica`] is one member of one job. It holds no paths but those it works on:
//! everything else is in the [`Index`], which the agent keeps on disk and hands to every call. No file, socket,
//! clock or unseeded randomness.
//!
//! The agent's part: call `handle_*` as things happen, then take actions until [`Replica::poll_action`] has none,
//! and call [`Replica::handle_timeout`] when [`Replica::poll_timeout`] has come.

mod action;
mod change;
mod config;
mod exchange;
mod local;
mod merge;
mod names;
mod plan;
mod retries;
mod rollback;
mod row;
mod serve;
mod state;
mod statement;
mod transfer;
pub mod version;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use agent_proto::sync::{Dot, Head, ReplicaId};
use event_schema::AgentId;
use timebase::Instant;

use crate::merkle::Hash;

pub use action::{Action, Displaced, Expected, Make, Misbehaviour, Obstacle, Outcome};
pub use config::{Config, Everything, LocalChanges, MEMBERS_MAX, Member, Permission, Policy};
pub use local::{Confirm, Look};
pub use names::{conflict_copy, conflict_copy_of, kept_aside};
pub use row::{Batch, Disk, Index, OnDisk, Row, Stamp, Work};
pub use state::Counters;
pub use statement::{KeyNotary, Notary, dot, head_bytes, replica_id, same_content, statement_bytes};
pub use transfer::{page_roots, root_of};

use change::Change;
use exchange::Peer;
use plan::Pass;
use retries::Retries;
use state::{Author, MemberState, Meta, Pending};
use transfer::Transfer;

/// One member's side of a synchronization job.
pub struct Replica {
    config: Config,
    policy: Box<dyn Policy + Send>,
    notary: Box<dyn Notary + Send>,
    me: ReplicaId,
    members: BTreeMap<AgentId, MemberState>,
    authors: BTreeMap<ReplicaId, Author>,
    own_head: Option<Head>,
    meta: Meta,
    pending: Pending,
    peers: BTreeMap<AgentId, Peer>,
    transfers: BTreeMap<u32, Transfer>,
    changes: BTreeMap<u32, Change>,
    /// Paths that a transfer or change is about.
    busy: BTreeSet<Vec<u8>>,
    /// Busy paths that were seen to change meanwhile.
    look_again: BTreeSet<Vec<u8>>,
    /// When to try paths again, and how often they failed.
    retries: Retries,
    /// Blocked paths that people were told of.
    blocked: BTreeSet<Vec<u8>>,
    pass: Pass,
    /// When a walk over all rows goes on, if one is under way.
    walk_at: Instant,
    /// There was no room for a head: those that nobody names are to be forgotten.
    crowded: bool,
    /// Which are named, as far as a walk has come.
    tidying: Option<rollback::Tidying>,
    /// Paths with what no member takes: listed as blocked, and looked at again now and then.
    unfit: BTreeSet<Vec<u8>>,
    deletions: Option<local::Deletions>,
    /// When the guard's episode ends.
    episode_ends: Instant,
    /// How many gone entries people were told of.
    guard_shown: u64,
    /// Contents of what is gone while people are asked, and how often each.
    gone: BTreeMap<Hash, u32>,
    /// And what of it came elsewhere since.
    back: BTreeMap<Hash, u32>,
    /// Content that came just now: whether it counts for something that is gone.
    came: BTreeMap<Hash, bool>,
    /// Content that went just now: from where.
    went: BTreeMap<Hash, Vec<u8>>,
    /// Content that waits at a path for another one to go.
    may_move: BTreeMap<Hash, Vec<u8>>,
    upkeep_at: Instant,
    /// How far upkeep has come in what is blocked, and in what is deleted; and what all knew when it last came to the end.
    upkeep_blocked: Option<Vec<u8>>,
    upkeep_deleted: Option<Vec<u8>>,
    upkeep_known: Vec<Dot>,
    next_number: u32,
    actions: VecDeque<Action>,
    counters: Counters,
}

impl Replica {
    /// One member's side of a job, from what its index holds.
    pub fn new(
        now: Instant,
        config: Config,
        policy: Box<dyn Policy + Send>,
        notary: Box<dyn Notary + Send>,
        members: &[Member],
        index: &mut dyn Index,
    ) -> Self {
        let meta =
            index.meta().and_then(|bytes| Meta::decode(&bytes)).unwrap_or_else(|| Meta::new(config.fresh));
        let me = statement::replica_id(config.run, config.agent, meta.incarnation);
        let upkeep_at = now + config.upkeep;
        let guard_shown = if meta.guarded { meta.missing } else { 0 };
        let mut replica = Self {
            me,
            policy,
            notary,
            members: BTreeMap::new(),
            authors: BTreeMap::new(),
            own_head: None,
            meta,
            pending: Pending::default(),
            peers: BTreeMap::new(),
            transfers: BTreeMap::new(),
            changes: BTreeMap::new(),
            busy: BTreeSet::new(),
            look_again: BTreeSet::new(),
            retries: Retries::default(),
            blocked: BTreeSet::new(),
            pass: Pass::default(),
            walk_at: now,
            crowded: false,
            tidying: None,
            unfit: BTreeSet::new(),
            deletions: None,
            episode_ends: now + config.guard_quiet,
            guard_shown,
            gone: BTreeMap::new(),
            back: BTreeMap::new(),
            came: BTreeMap::new(),
            went: BTreeMap::new(),
            may_move: BTreeMap::new(),
            upkeep_at,
            upkeep_blocked: None,
            upkeep_deleted: None,
            upkeep_known: Vec::new(),
            next_number: 1,
            actions: VecDeque::new(),
            counters: Counters::default(),
            config,
        };
        replica.load(index, members);
        if replica.meta.missing > 0 && !replica.meta.restoring {
            replica.deletions_noticed(now);
        }
        if replica.meta.guarded {
            replica.note_gone(index);
        }
        replica.flush(index);
        replica
    }

    /// Who takes part has changed. Sessions with those that do not any more are to be closed.
    pub fn handle_members(&mut self, now: Instant, index: &mut dyn Index, members: &[Member]) {
        if self.set_members(members) {
            self.ask_skipped_again();
        }
        let gone: Vec<AgentId> =
            self.peers.keys().filter(|p| !self.members.contains_key(p)).copied().collect();
        for peer in gone {
            self.lose_peer(peer);
            self.actions.push_back(Action::Disconnect { peer });
        }
        self.pass.restart();
        self.finish(now, index);
    }

    /// What is wanted here, or what names are possible, has changed. All rows are looked at, some in each call, over
    /// restarts too. Follow it with a scan: what was not wanted before may be on disk.
    pub fn handle_policy(&mut self, now: Instant, index: &mut dyn Index, policy: Box<dyn Policy + Send>) {
        self.policy = policy;
        self.meta.recheck = Some(Vec::new());
        self.meta_changed();
        self.walk(now, index);
        self.finish(now, index);
    }

    /// Everything put up to this ticket is durable.
    pub fn handle_synced(&mut self, now: Instant, index: &mut dyn Index, ticket: u64) {
        self.pending.synced(ticket);
        self.finish(now, index);
    }

    /// The time of [`Self::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant, index: &mut dyn Index) {
        self.walk(now, index);
        self.settle_deletions(now, index);
        self.check_patience(now);
        if now >= self.upkeep_at {
            self.upkeep(now, index);
        }
        self.finish(now, index);
    }

    /// When to call [`Self::handle_timeout`] at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let mut at = self.upkeep_at;
        if let Some(deletions) = &self.deletions {
            at = at.min(deletions.due);
        }
        if let Some(first) = self.retries.next_due() {
            at = at.min(first);
        }
        if self.pass.is_unfinished() {
            at = at.min(self.pass.at);
        }
        if self.is_walking() {
            at = at.min(self.walk_at);
        }
        for peer in self.peers.values() {
            at = at.min(peer.due(&self.config));
        }
        Some(at)
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.pending.released(&mut self.actions);
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        self.pending.ask(&self.meta).map(|ticket| Action::Sync { ticket })
    }

    /// Counts since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What this member knows: every change up to these counters.
    pub fn summary(&self) -> &[Dot] {
        &self.meta.summary
    }

    /// The replica that new changes are counted under.
    pub fn id(&self) -> ReplicaId {
        self.me
    }

    /// Entries on disk here, and those of them that are gone and not yet believed to be.
    pub fn entries(&self) -> (u64, u64) {
        (self.meta.present + self.meta.missing, self.meta.missing)
    }

    /// Whether the guard holds (SYNC.md §6).
    pub fn is_guarded(&self) -> bool {
        self.meta.guarded
    }

    /// Whether nothing is under way and nothing waits that could be begun now.
    pub fn is_idle(&self) -> bool {
        self.transfers.is_empty()
            && self.changes.is_empty()
            && self.deletions.is_none()
            && !self.pass.is_unfinished()
            && !self.is_walking()
            && self.pending.is_quiet()
    }

    fn may_write(&self) -> bool {
        self.members.get(&self.config.agent).is_some_and(|m| m.permission == Permission::ReadWrite)
    }

    fn number(&mut self) -> u32 {
        self.next_number = self.next_number.wrapping_add(1).max(1);
        self.next_number
    }

    /// At the end of every call: what may begin begins, what may be told is told, all of it stored.
    fn finish(&mut self, now: Instant, index: &mut dyn Index) {
        self.flush(index);
        self.plan(now, index);
        self.fetch(now, index);
        self.flush(index);
        self.tell(now, index);
        self.flush(index);
    }
}
