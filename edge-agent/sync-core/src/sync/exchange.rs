//! Telling peers what is here since when, and checking what they tell (SYNC.md §4, §10).

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use agent_proto::sync::{
    COUNTER_MAX, Cursor, Dot, ENTRIES_MAX, HEADS_MAX, Head, Hello, Index as Piece, IndexEntry, IndexTaken,
    KNOWN_MAX, Known, MemberKnows, ReplicaId, STATEMENTS_MAX, SUMMARY_MAX, Statement, SyncMessage,
};
use event_schema::{AgentId, encode};
use timebase::Instant;

use super::config::{BATCH_BYTES, ECHOES_MAX, REPLICAS_PER_AGENT_MAX};
use super::row::Index;
use super::serve::Uploads;
use super::state::Author;
use super::statement::{head_bytes, is_head, is_sound, replaces, replica_id, statement_bytes};
use super::{Action, Config, Misbehaviour, Permission, Replica, version};

/// A connected member.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// Its `Hello` has come.
    pub(super) greeted: bool,
    /// Sent up to here, and not yet taken.
    sent: u64,
    in_flight: VecDeque<u64>,
    /// It has said that it took all up to here.
    taken: u64,
    /// Paths that it was told again because it had lost a part of them.
    echoed: BTreeSet<Vec<u8>>,
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
        if peer == self.config.agent || !self.members.contains_key(&peer) {
            self.actions.push_back(Action::Disconnect { peer });
            return;
        }
        self.lose_peer(peer);
        let untold = self.members.keys().filter(|m| **m != peer).copied().collect();
        self.peers.insert(peer, Peer { untold, ..Peer::default() });
        if self.meta.rolling.is_none() {
            self.greet(peer);
        }
        self.finish(now, index);
    }

    /// Says how much of a peer's index is here, and what is known of itself that it may not know.
    pub(super) fn greet(&mut self, peer: AgentId) {
        let Some(member) = self.members.get(&peer) else { return };
        let theirs = self.authors.values().filter(|a| a.agent == peer);
        let message = Hello {
            cursor: member.kept.cursor,
            summary: self.provable(member.kept.summary.clone()),
            heads: theirs.flat_map(|a| a.heads.iter().cloned()).take(HEADS_MAX).collect(),
        };
        self.actions.push_back(Action::Send { peer, message: message.into() });
    }

    /// A session has ended.
    pub fn handle_disconnected(&mut self, now: Instant, index: &mut dyn Index, peer: AgentId) {
        self.lose_peer(peer);
        self.finish(now, index);
    }

    pub(super) fn lose_peer(&mut self, peer: AgentId) {
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
            SyncMessage::Hello(hello) if !greeted => self.take_hello(now, index, peer, hello),
            _ if !greeted || self.meta.rolling.is_some() => Err(Misbehaviour::BadMessage),
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

    fn take_hello(
        &mut self,
        now: Instant,
        index: &mut dyn Index,
        peer: AgentId,
        hello: Hello,
    ) -> Result<(), Misbehaviour> {
        let Hello { cursor, summary, heads } = hello;
        if summary.len() > SUMMARY_MAX || !version::is_well_formed(&summary) || heads.len() > HEADS_MAX {
            return Err(Misbehaviour::BadMessage);
        }
        let own = heads.into_iter().find(|h| {
            h.key == self.config.key
                && replica_id(self.config.run, self.config.agent, h.incarnation) == self.me
        });
        if let Some(head) = own {
            self.check_head(&head)?;
            self.take_own_head(now, index, head);
        }
        // What it has of another life of this index is worth nothing, and of a copy that this one is no continuation
        // of only what is the same in both; nor is it worth anything if it believes that this member knows what this
        // member does not: it may have forgotten deletions because of that (SYNC.md §8).
        let covered = version::covers(&self.meta.summary, &summary);
        let lives = &self.pending.durable.lives;
        let usable = cursor.filter(|c| c.epoch == self.meta.epoch && covered).and_then(|c| {
            let life = lives.iter().position(|l| l.id == c.life)?;
            let end = lives.get(life + 1).map_or(self.pending.durable.sequence, |next| next.sequence);
            Some(c.sequence.min(end))
        });
        if let Some(p) = self.peers.get_mut(&peer) {
            p.greeted = true;
            p.sent = usable.unwrap_or(0);
            p.taken = p.sent;
        }
        self.join_transfers(index, peer);
        self.pass.restart();
        Ok(())
    }

    fn check_head(&self, head: &Head) -> Result<(), Misbehaviour> {
        if !is_head(head) {
            return Err(Misbehaviour::BadMessage);
        }
        match self.notary.holds(&head.key, &head_bytes(self.config.run, head), &head.signature) {
            true => Ok(()),
            false => Err(Misbehaviour::BadSignature),
        }
    }

    fn take_taken(&mut self, peer: AgentId, taken: &IndexTaken) -> Result<(), Misbehaviour> {
        if let Some(p) = self.peers.get_mut(&peer).filter(|_| taken.epoch == self.meta.epoch) {
            p.in_flight.retain(|up_to| *up_to > taken.up_to);
            p.taken = taken.up_to.min(p.sent);
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
        let Piece { epoch, life, after, up_to, heads, entries, summary } = piece;
        let cursor = self.members.get(&peer).and_then(|m| m.kept.cursor);
        let have = cursor.filter(|c| c.epoch == epoch).map_or(0, |c| c.sequence);
        let tainted = self.peers.get(&peer).is_none_or(|p| p.tainted);
        if tainted && after > have {
            // On its way behind a piece that was refused: that was counted.
            return Ok(());
        }
        if after > have || up_to < after || up_to > COUNTER_MAX {
            return Err(Misbehaviour::BadMessage);
        }
        let summary_len = summary.as_ref().map_or(0, Vec::len);
        if heads.len() > HEADS_MAX || entries.len() > ENTRIES_MAX || summary_len > SUMMARY_MAX {
            return Err(Misbehaviour::BadMessage);
        }
        if summary.as_ref().is_some_and(|s| !version::is_well_formed(s)) {
            return Err(Misbehaviour::BadMessage);
        }
        let believed = self.writes(peer) && !tainted;
        let told = summary.as_deref().filter(|_| believed).unwrap_or_default();
        let mut news = News::of(self, &entries, told);
        for head in heads {
            if news.take(self, head.clone())? {
                self.take_own_head(now, index, head);
                if self.meta.rolling.is_some() {
                    // Nobody is connected any more.
                    return Ok(());
                }
            }
        }
        let mut good: Vec<IndexEntry> = Vec::new();
        let mut skipped = after != 0 && self.members.get(&peer).is_some_and(|m| m.kept.skipped);
        for mut entry in entries {
            let before = entry.statements.len();
            self.check_entry(index, peer, &mut entry, &mut news)?;
            let left_out = before - entry.statements.len();
            self.counters.skipped += left_out as u64;
            skipped |= left_out > 0;
            if !entry.statements.is_empty() {
                good.push(entry);
            }
        }
        self.crowded |= news.crowded;
        // Only now, when nothing of it is refused, any of it counts.
        for replica in told.iter().map(|d| d.replica) {
            news.need(self, peer, replica);
        }
        for head in news.needed() {
            self.remember_head(head);
        }
        for entry in good {
            self.merge(index, peer, entry);
        }
        let summary = summary.map(|s| self.provable(s));
        let Some(member) = self.members.get_mut(&peer) else { return Ok(()) };
        // `after` may go back to 0: then everything comes again, and again is as good.
        member.kept.cursor = Some(Cursor { epoch, life, sequence: up_to });
        member.kept.skipped = skipped;
        if let Some(summary) = &summary {
            let grew = version::join(&mut member.kept.summary, summary);
            if believed && !skipped && version::join(&mut self.meta.summary, summary) {
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

    /// As much of a summary as there are heads for: what nobody can prove to have been counted, nobody needs to know.
    fn provable(&self, mut summary: Vec<Dot>) -> Vec<Dot> {
        summary.iter_mut().for_each(|d| d.counter = d.counter.min(self.reached(d.replica)));
        summary.retain(|d| d.counter > 0);
        summary
    }

    /// Whoever may write now may not have been able to before: what was left out may be taken now.
    pub(super) fn ask_skipped_again(&mut self) {
        let skipped: Vec<AgentId> =
            self.members.iter().filter(|(_, m)| m.kept.skipped).map(|(a, _)| *a).collect();
        for peer in skipped {
            if let Some(member) = self.members.get_mut(&peer) {
                (member.kept.skipped, member.kept.cursor) = (false, None);
            }
            self.member_changed(peer);
            if self.peers.contains_key(&peer) {
                self.lose_peer(peer);
                self.actions.push_back(Action::Disconnect { peer });
            }
        }
    }

    /// Takes out what cannot be taken; refuses what nobody honest says (SYNC.md §10).
    fn check_entry(
        &self,
        index: &dyn Index,
        peer: AgentId,
        entry: &mut IndexEntry,
        news: &mut News,
    ) -> Result<(), Misbehaviour> {
        let count = entry.statements.len();
        if entry.path.is_empty()
            || crate::manifest::check_path(&entry.path).is_err()
            || !(1..=STATEMENTS_MAX).contains(&count)
            || entry.holds.is_some_and(|h| usize::from(h) >= count)
        {
            return Err(Misbehaviour::BadMessage);
        }
        let known = self.row(index, &entry.path);
        let held = entry.holds.take().and_then(|h| entry.statements.get(usize::from(h))).cloned();
        let mut taken = Vec::with_capacity(count);
        for statement in core::mem::take(&mut entry.statements) {
            let is_known = known.as_ref().is_some_and(|row| row.statements.contains(&statement));
            if is_known || self.check_statement(peer, &entry.path, &statement, news)? {
                taken.push(statement);
            }
        }
        let holds = held.and_then(|held| taken.iter().position(|s| *s == held));
        entry.holds = holds.and_then(|h| u8::try_from(h).ok());
        entry.statements = taken;
        Ok(())
    }

    /// Whether a statement is taken, or left out.
    fn check_statement(
        &self,
        peer: AgentId,
        path: &[u8],
        statement: &Statement,
        news: &mut News,
    ) -> Result<bool, Misbehaviour> {
        if !is_sound(statement) {
            return Err(Misbehaviour::BadMessage);
        }
        let Some((agent, key)) = news.author(self, statement.author) else {
            return Err(Misbehaviour::AbsurdVersion);
        };
        if !self.writes(agent) && !self.writes(peer) {
            // Its author was removed, or may not write any more, and whoever tells it cannot say when it was made.
            return Ok(false);
        }
        if statement.version.iter().any(|d| d.counter > news.reached(self, d.replica)) {
            return Err(Misbehaviour::AbsurdVersion);
        }
        let bytes = statement_bytes(self.config.run, path, statement);
        if !self.notary.holds(&key, &bytes, &statement.signature) {
            return Err(Misbehaviour::BadSignature);
        }
        let mut room = news.need(self, peer, statement.author);
        for d in &statement.version {
            room &= news.need(self, peer, d.replica);
        }
        Ok(room)
    }

    fn take_known(&mut self, peer: AgentId, known: &Known) -> Result<(), Misbehaviour> {
        if known.members.len() > KNOWN_MAX {
            return Err(Misbehaviour::BadMessage);
        }
        for MemberKnows { member, summary } in &known.members {
            if !(self.writes(peer) || *member == peer)
                || summary.len() > SUMMARY_MAX
                || !version::is_well_formed(summary)
            {
                continue;
            }
            // It may be ahead of the heads that came: what is beyond them is told again by somebody.
            let summary = &self.provable(summary.clone());
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
        if self.meta.rolling.is_some() {
            return;
        }
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
        let limit = self.pending.durable.sequence;
        let (after, mut up_to, mut bytes) = (p.sent, p.sent, 0);
        let mut entries: Vec<IndexEntry> = Vec::new();
        let mut named: BTreeSet<ReplicaId> = BTreeSet::new();
        let mut heads = 0;
        let mut all = false;
        while entries.len() < ENTRIES_MAX {
            match index.next_told(up_to) {
                Some(row) if row.sequence <= limit => {
                    let sequence = row.sequence;
                    let held = row.holds().map(|h| row.statements[h].clone());
                    let mut statements = row.statements;
                    // Never what the other side must refuse.
                    statements.retain(is_sound);
                    statements.truncate(STATEMENTS_MAX);
                    let holds = held.and_then(|held| statements.iter().position(|s| *s == held));
                    let holds = holds.and_then(|h| u8::try_from(h).ok());
                    let entry = IndexEntry { path: row.path, statements, holds };
                    let length = encode(&entry).len();
                    let new: BTreeSet<ReplicaId> =
                        replicas(&entry.statements).filter(|r| !named.contains(r)).collect();
                    let new_heads = new.iter().map(|r| self.heads_of(*r).len().max(1)).sum::<usize>();
                    if bytes + length > BATCH_BYTES || heads + new_heads > HEADS_MAX {
                        if !entries.is_empty() {
                            break;
                        }
                        if length > 2 * BATCH_BYTES || new_heads > HEADS_MAX {
                            // No honest index has such a row.
                            up_to = sequence;
                            continue;
                        }
                    }
                    up_to = sequence;
                    if !entry.statements.is_empty() {
                        (bytes, heads) = (bytes + length, heads + new_heads);
                        named.extend(new);
                        entries.push(entry);
                    }
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
        if all && p.summary_told.as_ref() != Some(&self.pending.durable.summary) {
            let at = p.told_at.map_or(now, |at| at + self.config.tell_known);
            if at <= now {
                let news = &self.pending.durable.summary;
                let old = p.summary_told.take().unwrap_or_default();
                // What there is no room for is no loss: without a head a count is not believed.
                let grown = news.iter().filter(|d| !version::includes(&old, **d)).map(|d| d.replica);
                named.extend(grown.take(HEADS_MAX.saturating_sub(named.len())));
                summary = Some(news.clone());
            } else {
                p.tell_at = Some(p.tell_at.map_or(at, |t| t.min(at)));
            }
        }
        if up_to == after && summary.is_none() {
            return false;
        }
        if let Some(summary) = &summary {
            p.summary_told = Some(summary.clone());
            (p.told_at, p.tell_at) = (Some(now), None);
        }
        p.sent = up_to;
        p.in_flight.push_back(up_to);
        let mut heads: Vec<Head> = Vec::new();
        for replica in named {
            match replica == self.me {
                true => heads.push(own.clone()),
                false => heads.extend(self.heads_of(replica).iter().cloned()),
            }
        }
        heads.truncate(HEADS_MAX);
        let summary = summary.map(|s| self.provable(s));
        let life = self.pending.durable.lives.last().map_or(0, |l| l.id);
        let message = Piece { epoch: self.meta.epoch, life, after, up_to, heads, entries, summary };
        self.actions.push_back(Action::Send { peer, message: message.into() });
        true
    }

    fn heads_of(&self, replica: ReplicaId) -> &[Head] {
        self.authors.get(&replica).map_or(&[], |a| &a.heads)
    }

    /// Whether a peer that has taken this row before tells less of it: it lost a part by an order of things that no
    /// honest author makes (SYNC.md §10). Then it is told once more.
    pub(super) fn must_echo(&self, peer: AgentId, row: &super::Row, told: &[Statement]) -> bool {
        let Some(p) = self.peers.get(&peer) else { return false };
        row.sequence > 0
            && row.sequence <= p.taken
            && p.echoed.len() < ECHOES_MAX
            && !p.echoed.contains(&row.path)
            && told.len() < STATEMENTS_MAX
            && row.statements.iter().any(|s| !told.iter().any(|t| t == s || replaces(t, s)))
    }

    pub(super) fn echoed(&mut self, peer: AgentId, path: &[u8]) {
        self.counters.echoes += 1;
        if let Some(p) = self.peers.get_mut(&peer) {
            p.echoed.insert(path.to_vec());
        }
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
}

/// Every replica that statements name.
fn replicas(statements: &[Statement]) -> impl Iterator<Item = ReplicaId> + '_ {
    statements.iter().flat_map(|s| s.version.iter().map(|d| d.replica).chain([s.author]))
}

/// The heads of a piece, of which only those are taken that something in it needs: so that nobody fills the room
/// for heads with replicas that have said nothing (SYNC.md §10).
struct News {
    named: BTreeSet<ReplicaId>,
    fresh: BTreeMap<ReplicaId, Author>,
    needed: BTreeSet<ReplicaId>,
    /// New ones among them, by agent.
    new: BTreeMap<AgentId, usize>,
    heads: usize,
    /// There was no room for one that is named.
    crowded: bool,
}

impl News {
    fn of(replica: &Replica, entries: &[IndexEntry], told: &[Dot]) -> Self {
        let named = entries.iter().flat_map(|e| replicas(&e.statements));
        Self {
            named: named.chain(told.iter().map(|d| d.replica)).collect(),
            fresh: BTreeMap::new(),
            needed: BTreeSet::new(),
            new: BTreeMap::new(),
            heads: replica.authors.values().map(|a| a.heads.len()).sum(),
            crowded: false,
        }
    }

    /// Checks a head, if it matters; says whether it is one of the receiver's own replica.
    fn take(&mut self, to: &Replica, head: Head) -> Result<bool, Misbehaviour> {
        let agent = AgentId::of_key(&head.key);
        let id = replica_id(to.config.run, agent, head.incarnation);
        if id == to.me {
            let known = to.own_head.as_ref().is_some_and(|own| *own == head);
            if !known {
                to.check_head(&head)?;
            }
            return Ok(!known);
        }
        if !self.named.contains(&id) {
            return Ok(false);
        }
        let known = to.authors.get(&id);
        if known.is_none_or(|a| !a.heads.contains(&head)) {
            to.check_head(&head)?;
            let of = || known.cloned().unwrap_or(Author { agent, heads: Vec::new(), sure: u64::MAX });
            self.fresh.entry(id).or_insert_with(of).add(head);
        }
        Ok(false)
    }

    fn author(&self, to: &Replica, id: ReplicaId) -> Option<(AgentId, [u8; 32])> {
        if id == to.me {
            return Some((to.config.agent, to.config.key));
        }
        let author = self.fresh.get(&id).or_else(|| to.authors.get(&id))?;
        Some((author.agent, author.heads.first()?.key))
    }

    fn reached(&self, to: &Replica, id: ReplicaId) -> u64 {
        self.fresh.get(&id).map_or_else(|| to.reached(id), Author::reached)
    }

    /// A replica is named by what is taken; false if there is no room for it.
    fn need(&mut self, to: &Replica, peer: AgentId, id: ReplicaId) -> bool {
        let Some(fresh) = self.fresh.get(&id).filter(|_| !self.needed.contains(&id)) else { return true };
        let known = to.authors.get(&id).map_or(0, |a| a.heads.len());
        let more = fresh.heads.len().saturating_sub(known);
        if self.heads + more >= HEADS_MAX {
            self.crowded = true;
            return false;
        }
        if known == 0 {
            // Of itself nobody is told more than a few: what others heard of it is theirs to vouch for.
            let agent = fresh.agent;
            let of_it = to.authors.values().filter(|a| a.agent == agent).count();
            let new = self.new.entry(agent).or_default();
            if agent == peer && of_it + *new >= REPLICAS_PER_AGENT_MAX {
                self.crowded = true;
                return false;
            }
            *new += 1;
        }
        self.heads += more;
        self.needed.insert(id);
        true
    }

    fn needed(self) -> Vec<Head> {
        let Self { mut fresh, needed, .. } = self;
        needed.iter().filter_map(|id| fresh.remove(id)).flat_map(|a| a.heads).collect()
    }
}
