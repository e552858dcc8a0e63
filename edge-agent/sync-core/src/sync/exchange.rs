//! Telling peers what is here since when, and checking what they tell (SYNC.md §4, §10).

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use agent_proto::limits::PATH_LEN_MAX;
use agent_proto::sync::{
    COUNTER_MAX, Cursor, Dot, ENTRIES_MAX, FILE_MAX, HEADS_MAX, Head, Hello, Index as Piece, IndexEntry,
    IndexTaken, KNOWN_MAX, Known, META_MAX, MemberKnows, ReplicaId, STATEMENTS_MAX, Statement, SyncMessage,
    VERSION_MAX, Value,
};
use event_schema::{AgentId, encode};
use timebase::Instant;

use super::config::{BATCH_BYTES, REPLICAS_PER_AGENT_MAX, STEP};
use super::row::{Disk, Index};
use super::serve::Uploads;
use super::statement::{dot, head_bytes, insert, meta, replica_id, statement_bytes};
use super::{Action, Config, Misbehaviour, Permission, Replica, version};

/// A connected member.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// Its `Hello` has come.
    pub(super) greeted: bool,
    /// Sent up to here, and not yet taken.
    sent: u64,
    in_flight: VecDeque<u64>,
    heads_sent: BTreeMap<ReplicaId, u64>,
    summary_told: Option<Vec<Dot>>,
    /// Members of which it has not been told what they know.
    untold: BTreeSet<AgentId>,
    /// Something of that waits for this time.
    tell_at: Option<Instant>,
    told_at: Option<Instant>,
    /// Something it said was refused: what it says it knows is not believed in this session.
    tainted: bool,
    refusals: u32,
    pub(super) strikes: u32,
    /// Blocks it was asked for.
    pub(super) owed: usize,
    pub(super) hashes_owed_since: Option<Instant>,
    pub(super) progress_at: Instant,
    pub(super) snubbed_until: Option<Instant>,
    pub(super) snubs: u32,
    pub(super) uploads: Uploads,
}

impl Peer {
    pub(super) fn due(&self, config: &Config) -> Instant {
        let never = Instant::from_micros(u64::MAX);
        let owed = if self.owed > 0 { self.progress_at + config.request_timeout } else { never };
        let hashes = self.hashes_owed_since.map_or(never, |at| at + config.request_timeout);
        owed.min(hashes).min(self.snubbed_until.unwrap_or(never)).min(self.tell_at.unwrap_or(never))
    }
}

impl Replica {
    /// A session with a member has begun. Sessions with others are to be refused before this.
    pub fn handle_connected(&mut self, now: Instant, index: &mut dyn Index, peer: AgentId) {
        let Some(member) = self.members.get(&peer).filter(|_| peer != self.config.agent) else {
            self.actions.push_back(Action::Disconnect { peer });
            return;
        };
        let message = Hello { cursor: member.kept.cursor, summary: member.kept.summary.clone() };
        self.lose_peer(now, peer);
        let untold = self.members.keys().filter(|m| **m != peer).copied().collect();
        self.peers.insert(peer, Peer { untold, ..Peer::default() });
        self.actions.push_back(Action::Send { peer, message: message.into() });
        self.finish(now, index);
    }

    /// A session has ended.
    pub fn handle_disconnected(&mut self, now: Instant, index: &mut dyn Index, peer: AgentId) {
        self.lose_peer(now, peer);
        self.finish(now, index);
    }

    pub(super) fn lose_peer(&mut self, _now: Instant, peer: AgentId) {
        self.give_back(peer, |_| true);
        self.peers.remove(&peer);
        // Actions for the ended session are void.
        self.actions.retain(|a| {
            !matches!(a, Action::Send { peer: p, .. } | Action::Upload { peer: p, .. } | Action::UploadHashes { peer: p, .. } if *p == peer)
        });
    }

    /// A message of a connected peer.
    pub fn handle_message(
        &mut self,
        now: Instant,
        index: &mut dyn Index,
        peer: AgentId,
        message: SyncMessage,
    ) {
        let Some(greeted) = self.peers.get(&peer).map(|p| p.greeted) else { return };
        let result = match message {
            SyncMessage::Hello(hello) if !greeted => self.take_hello(peer, &hello),
            _ if !greeted => Err(Misbehaviour::BadMessage),
            SyncMessage::Hello(_) => Err(Misbehaviour::BadMessage),
            SyncMessage::Index(piece) => self.take_index(now, index, peer, piece),
            SyncMessage::IndexTaken(taken) => self.take_taken(peer, &taken),
            SyncMessage::Known(known) => self.take_known(peer, &known),
            SyncMessage::GetHashes(ask) => self.serve_hashes(index, peer, ask),
            SyncMessage::Hashes(hashes) => {
                self.take_hashes(now, peer, hashes);
                Ok(())
            }
            SyncMessage::Request(request) => self.serve_request(index, peer, request),
            SyncMessage::Cancel(cancel) => {
                self.serve_cancel(peer, cancel.transfer);
                Ok(())
            }
            SyncMessage::Unavailable(message) => {
                self.take_unavailable(index, peer, &message);
                Ok(())
            }
        };
        if let Err(what) = result {
            self.refuse(peer, what);
        }
        self.finish(now, index);
    }

    pub(super) fn refuse(&mut self, peer: AgentId, what: Misbehaviour) {
        self.counters.refused += 1;
        self.actions.push_back(Action::Misbehaved { peer, what });
        let Some(p) = self.peers.get_mut(&peer) else { return };
        p.tainted = true;
        p.refusals += 1;
        if p.refusals == self.config.refusals {
            self.actions.push_back(Action::Disconnect { peer });
        }
    }

    fn take_hello(&mut self, peer: AgentId, hello: &Hello) -> Result<(), Misbehaviour> {
        if hello.summary.len() > VERSION_MAX * 8 || !version::is_well_formed(&hello.summary) {
            return Err(Misbehaviour::BadMessage);
        }
        // What it has of an index that this one is an older copy of, or another life of, is worth nothing; nor is
        // what it believes that this member knows, if this member does not (SYNC.md §8).
        let usable = hello.cursor.filter(|c| {
            c.epoch == self.meta.epoch
                && c.sequence <= self.pending.sequence
                && version::covers(&self.meta.summary, &hello.summary)
        });
        if let Some(p) = self.peers.get_mut(&peer) {
            p.greeted = true;
            p.sent = usable.map_or(0, |c| c.sequence);
        }
        self.pass.restart();
        Ok(())
    }

    fn take_taken(&mut self, peer: AgentId, taken: &IndexTaken) -> Result<(), Misbehaviour> {
        if let Some(p) = self.peers.get_mut(&peer).filter(|_| taken.epoch == self.meta.epoch) {
            p.in_flight.retain(|up_to| *up_to > taken.up_to);
        }
        Ok(())
    }

    fn writes(&self, agent: AgentId) -> bool {
        self.members.get(&agent).is_some_and(|m| m.permission == Permission::ReadWrite)
    }

    fn take_index(
        &mut self,
        now: Instant,
        index: &mut dyn Index,
        peer: AgentId,
        piece: Piece,
    ) -> Result<(), Misbehaviour> {
        let Piece { epoch, after, up_to, heads, entries, summary } = piece;
        let cursor = self.members.get(&peer).and_then(|m| m.kept.cursor);
        let have = cursor.filter(|c| c.epoch == epoch).map_or(0, |c| c.sequence);
        if after > have || up_to < after || up_to > COUNTER_MAX {
            return Err(Misbehaviour::BadMessage);
        }
        if heads.len() > HEADS_MAX || entries.len() > ENTRIES_MAX {
            return Err(Misbehaviour::BadMessage);
        }
        for head in heads {
            self.take_head(now, index, peer, head)?;
        }
        for entry in &entries {
            self.check_entry(index, peer, entry)?;
        }
        if let Some(summary) = &summary {
            self.check_summary(summary)?;
        }
        // Only now, when nothing of it is refused, any of it counts.
        for entry in entries {
            self.merge(index, peer, entry);
        }
        let tainted = self.peers.get(&peer).is_none_or(|p| p.tainted);
        let believed = self.writes(peer) && !tainted;
        let Some(member) = self.members.get_mut(&peer) else { return Ok(()) };
        // `after` may go back to 0: then everything comes again, and again is as good.
        member.kept.cursor = Some(Cursor { epoch, sequence: up_to });
        if let Some(summary) = &summary {
            let grew = version::join(&mut member.kept.summary, summary);
            if believed && version::join(&mut self.meta.summary, summary) {
                self.meta_changed();
            }
            if grew {
                self.peers
                    .iter_mut()
                    .filter(|(p, _)| **p != peer)
                    .for_each(|(_, p)| _ = p.untold.insert(peer));
            }
        }
        self.member_changed(peer);
        let message = IndexTaken { epoch, up_to };
        self.actions.push_back(Action::Send { peer, message: message.into() });
        Ok(())
    }

    fn take_head(
        &mut self,
        now: Instant,
        index: &mut dyn Index,
        peer: AgentId,
        head: Head,
    ) -> Result<(), Misbehaviour> {
        let agent = AgentId::of_key(&head.key);
        let id = replica_id(self.config.run, agent, head.incarnation);
        let known = self.authors.get(&id).map_or(0, |a| a.head.counter);
        if id == self.me && head.counter <= self.meta.told_counter
            || id != self.me && head.counter <= known && known > 0
        {
            return Ok(());
        }
        if head.counter > COUNTER_MAX {
            return Err(Misbehaviour::AbsurdVersion);
        }
        if !self.notary.holds(&head.key, &head_bytes(self.config.run, &head), &head.signature) {
            return Err(Misbehaviour::BadSignature);
        }
        if id == self.me {
            // Signed by this very agent, and unknown to its index: the index is an older copy (SYNC.md §8).
            self.roll_back(now, index, head);
            return Ok(());
        }
        if !self.members.contains_key(&agent) && !self.writes(peer) {
            return Err(Misbehaviour::NotAllowed);
        }
        if known == 0 && self.authors.len() >= HEADS_MAX {
            return Err(Misbehaviour::BadMessage);
        }
        if known == 0 && self.authors.values().filter(|a| a.agent == agent).count() >= REPLICAS_PER_AGENT_MAX
        {
            return Err(Misbehaviour::BadMessage);
        }
        self.remember_head(head);
        self.meta_changed();
        Ok(())
    }

    fn check_summary(&self, summary: &[Dot]) -> Result<(), Misbehaviour> {
        if !version::is_well_formed(summary) {
            return Err(Misbehaviour::BadMessage);
        }
        match summary.iter().all(|d| d.counter <= self.reached(d.replica)) {
            true => Ok(()),
            false => Err(Misbehaviour::AbsurdVersion),
        }
    }

    /// SYNC.md §10.
    fn check_entry(&self, index: &dyn Index, peer: AgentId, entry: &IndexEntry) -> Result<(), Misbehaviour> {
        let count = entry.statements.len();
        if entry.path.is_empty()
            || crate::manifest::check_path(&entry.path).is_err()
            || !(1..=STATEMENTS_MAX).contains(&count)
            || entry.holds.is_some_and(|h| usize::from(h) >= count)
        {
            return Err(Misbehaviour::BadMessage);
        }
        let known = self.row(index, &entry.path);
        for statement in &entry.statements {
            if known.as_ref().is_some_and(|row| row.statements.contains(statement)) {
                continue;
            }
            self.check_statement(peer, &entry.path, statement)?;
        }
        Ok(())
    }

    fn check_statement(&self, peer: AgentId, path: &[u8], statement: &Statement) -> Result<(), Misbehaviour> {
        let sound = match &statement.value {
            Value::File { size, .. } => *size <= FILE_MAX,
            Value::Link { target, .. } => target.len() <= PATH_LEN_MAX && !target.contains(&0),
            Value::Deleted | Value::Folder { .. } => true,
        };
        if !sound
            || meta(&statement.value).len() > META_MAX
            || statement.version.len() > VERSION_MAX
            || !version::is_well_formed(&statement.version)
            || dot(statement).counter == 0
        {
            return Err(Misbehaviour::BadMessage);
        }
        if statement.version.iter().any(|d| d.counter > self.reached(d.replica)) {
            return Err(Misbehaviour::AbsurdVersion);
        }
        let (agent, key) = if statement.author == self.me {
            (self.config.agent, self.config.key)
        } else {
            match self.authors.get(&statement.author) {
                Some(author) => (author.agent, author.head.key),
                None => return Err(Misbehaviour::AbsurdVersion),
            }
        };
        if !self.writes(agent) && !self.writes(peer) {
            return Err(Misbehaviour::NotAllowed);
        }
        match self.notary.holds(
            &key,
            &statement_bytes(self.config.run, path, statement),
            &statement.signature,
        ) {
            true => Ok(()),
            false => Err(Misbehaviour::BadSignature),
        }
    }

    fn take_known(&mut self, peer: AgentId, known: &Known) -> Result<(), Misbehaviour> {
        if known.members.len() > KNOWN_MAX {
            return Err(Misbehaviour::BadMessage);
        }
        for MemberKnows { member, summary } in &known.members {
            // May be ahead of the heads that came: then it is told again.
            if !(self.writes(peer) || *member == peer) || self.check_summary(summary).is_err() {
                continue;
            }
            let Some(state) = self.members.get_mut(member).filter(|_| *member != self.config.agent) else {
                continue;
            };
            if version::join(&mut state.kept.summary, summary) {
                self.member_changed(*member);
                for p in self.peers.iter_mut().filter(|(p, _)| **p != peer && **p != *member) {
                    p.1.untold.insert(*member);
                }
            }
        }
        Ok(())
    }

    /// Sends every peer what it may be told and has room for.
    pub(super) fn tell(&mut self, now: Instant, index: &mut dyn Index) {
        let peers: Vec<AgentId> = self.peers.iter().filter(|(_, p)| p.greeted).map(|(a, _)| *a).collect();
        for peer in peers {
            if let Some(p) = self.peers.get_mut(&peer) {
                p.tell_at = p.tell_at.filter(|at| *at > now);
            }
            while self.tell_piece(now, index, peer) {}
            self.tell_known(now, peer);
            self.upload(peer);
        }
    }

    /// One piece of the index; false if there is nothing to send.
    fn tell_piece(&mut self, now: Instant, index: &dyn Index, peer: AgentId) -> bool {
        let Some(p) = self.peers.get(&peer) else { return false };
        if p.in_flight.len() as u64 >= self.config.pieces_max {
            return false;
        }
        let limit = self.pending.sequence;
        let (after, mut up_to, mut bytes) = (p.sent, p.sent, 0);
        let mut entries: Vec<IndexEntry> = Vec::new();
        let mut all = false;
        while entries.len() < ENTRIES_MAX && bytes < BATCH_BYTES {
            match index.next_told(up_to) {
                Some(row) if row.sequence <= limit => {
                    up_to = row.sequence;
                    let holds = row.holds().and_then(|h| u8::try_from(h).ok());
                    let mut statements = row.statements;
                    statements.truncate(STATEMENTS_MAX);
                    let entry = IndexEntry { path: row.path, statements, holds };
                    bytes += encode(&entry).len();
                    entries.push(entry);
                }
                Some(_) => break,
                None => {
                    all = self.pending.is_durable();
                    break;
                }
            }
        }
        let own = self.sign_head();
        let Some(p) = self.peers.get_mut(&peer) else { return false };
        let mut summary = None;
        if all && p.summary_told.as_ref() != Some(&self.pending.summary) {
            let at = p.told_at.map_or(now, |at| at + self.config.tell_known);
            if at <= now {
                summary = Some(self.pending.summary.clone());
            } else {
                p.tell_at = Some(p.tell_at.map_or(at, |t| t.min(at)));
            }
        }
        if entries.is_empty() && summary.is_none() {
            return false;
        }
        let mut heads: Vec<Head> = Vec::new();
        let news = self.authors.iter().map(|(id, a)| (*id, &a.head)).chain([(self.me, &own)]);
        for (id, head) in news {
            if heads.len() < HEADS_MAX && p.heads_sent.get(&id).is_none_or(|sent| *sent < head.counter) {
                p.heads_sent.insert(id, head.counter);
                heads.push(head.clone());
            }
        }
        if heads.len() == HEADS_MAX {
            // More may be to come, and entries need them all.
            (entries, summary, up_to) = (Vec::new(), None, after);
        }
        if let Some(summary) = &summary {
            p.summary_told = Some(summary.clone());
            (p.told_at, p.tell_at) = (Some(now), None);
        }
        p.sent = up_to;
        p.in_flight.push_back(up_to);
        let message = Piece { epoch: self.meta.epoch, after, up_to, heads, entries, summary };
        self.actions.push_back(Action::Send { peer, message: message.into() });
        true
    }

    fn tell_known(&mut self, now: Instant, peer: AgentId) {
        let Some(p) = self.peers.get_mut(&peer).filter(|p| !p.untold.is_empty()) else { return };
        let at = p.told_at.map_or(now, |at| at + self.config.tell_known);
        // Behind a summary, so that the heads are there.
        if at > now || p.summary_told.is_none() {
            if p.summary_told.is_some() {
                p.tell_at = Some(p.tell_at.map_or(at, |t| t.min(at)));
            }
            return;
        }
        let mut members: Vec<MemberKnows> = Vec::new();
        while members.len() < KNOWN_MAX
            && let Some(member) = p.untold.pop_first()
        {
            let summary = self.members.get(&member).map(|m| m.kept.summary.clone()).unwrap_or_default();
            if !summary.is_empty() && member != self.config.agent {
                members.push(MemberKnows { member, summary });
            }
        }
        p.told_at = Some(now);
        p.tell_at = (!p.untold.is_empty()).then_some(now + self.config.tell_known);
        if !members.is_empty() {
            self.actions.push_back(Action::Send { peer, message: Known { members }.into() });
        }
    }

    /// This index is an older copy of itself: what was counted since it was copied is counted anew, under a new
    /// replica, so that no number means two things (SYNC.md §8).
    fn roll_back(&mut self, now: Instant, index: &mut dyn Index, evidence: Head) {
        let (old, told) = (self.me, self.meta.told_counter);
        let fresh = if self.config.fresh == self.meta.incarnation {
            // Made by this very process: a second time within one start, or a first start. Any other number will do.
            self.meta.incarnation.rotate_left(17) ^ evidence.counter ^ now.as_micros()
        } else {
            self.config.fresh
        };
        self.flush(index);
        self.remember_head(evidence);
        self.meta.incarnation = fresh;
        self.meta.epoch = fresh;
        self.me = replica_id(self.config.run, self.config.agent, fresh);
        (self.meta.counter, self.meta.told_counter) = (0, 0);
        let mut summary = core::mem::take(&mut self.meta.summary);
        clamp(&mut summary, old, told);
        self.meta.summary = summary;
        self.own_head = None;
        self.pending.counter = 0;
        self.pending.sequence = 0;
        self.pending.summary.clear();
        self.pending.disown();
        self.meta_changed();
        let mut at = index.next(&[]);
        while let Some(row) = at {
            let path = row.path;
            let mut held = self.hold(index, &path);
            let row = &mut held.row;
            let mine = row.statements.iter().position(|s| s.author == old && dot(s).counter > told);
            clamp(&mut row.context, old, told);
            if let Some(i) = mine {
                let lost = row.statements.remove(i);
                let mut context = lost.version.clone();
                clamp(&mut context, old, told);
                let made = self.make(&path, &context, lost.depth.saturating_sub(1), lost.value.clone());
                let was = dot(&lost);
                if let Disk::Present(here) | Disk::Missing(here) = &mut row.disk
                    && here.dot == Some(was)
                {
                    here.dot = Some(dot(&made));
                }
                version::join(&mut row.context, &made.version);
                insert(&mut row.statements, made);
            }
            self.save(held);
            if self.pending.rows() >= STEP {
                self.flush(index);
            }
            at = index.next(&path);
        }
        self.flush(index);
        for p in self.peers.values_mut() {
            (p.sent, p.summary_told) = (0, None);
            p.in_flight.clear();
            p.heads_sent.clear();
        }
        self.actions.push_back(Action::RolledBack);
    }
}

/// Makes a version include no more of a replica than this.
fn clamp(version: &mut Vec<Dot>, replica: ReplicaId, counter: u64) {
    for d in version.iter_mut().filter(|d| d.replica == replica) {
        d.counter = d.counter.min(counter);
    }
    version.retain(|d| d.counter > 0);
}
