//! An index that is an older copy of itself, and other walks over all rows, a step at a time (SYNC.md §8).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use agent_proto::sync::{Dot, Head, ReplicaId};
use event_schema::AgentId;
use serde::{Deserialize, Serialize};
use timebase::Instant;

use super::config::STEP;
use super::row::{Disk, Index, Row, Work};
use super::statement::{Kinship, dot, insert, kinship, replica_id};
use super::{Action, Replica, version};

/// A replica begins again as another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rolling {
    old: ReplicaId,
    /// What it counted up to here is known to mean one thing.
    floor: u64,
    /// Rows up to this path are done.
    after: Vec<u8>,
}

/// Which replicas rows name, up to a path.
#[derive(Debug, Default)]
pub(super) struct Tidying {
    after: Vec<u8>,
    pub(super) named: BTreeSet<ReplicaId>,
}

impl Replica {
    /// A head of this very replica, its signature checked: if it tells of what this index does not know, the index is
    /// an older copy (SYNC.md §8).
    pub(super) fn take_own_head(&mut self, now: Instant, index: &mut dyn Index, evidence: Head) {
        let own = self.unsigned_head(&self.meta.lives, self.meta.told_counter);
        match kinship(&own, &evidence) {
            Kinship::Newer => {}
            Kinship::Older => self.roll_back(now, index, evidence, own.counter),
            Kinship::Forked(floor) => self.roll_back(now, index, evidence, floor),
        }
    }

    /// What was counted since the copy was made is counted anew, under a new replica, so that no number means two
    /// things. Nothing is told meanwhile.
    fn roll_back(&mut self, now: Instant, index: &mut dyn Index, evidence: Head, floor: u64) {
        let fresh = if self.config.fresh == self.meta.incarnation {
            // Made by this very process: a second time within one start, or a first start. Any other number will do.
            self.meta.incarnation.rotate_left(17) ^ evidence.counter ^ now.as_micros()
        } else {
            self.config.fresh
        };
        self.flush(index);
        let old = self.me;
        let told = self.sign_head();
        self.remember_head(evidence);
        if told.counter > 0 {
            self.remember_head(told);
        }
        self.own_head = None;
        self.me = replica_id(self.config.run, self.config.agent, fresh);
        (self.meta.incarnation, self.meta.epoch) = (fresh, fresh);
        (self.meta.counter, self.meta.told_counter, self.meta.told_sequence) = (0, 0, 0);
        self.meta.lives.clear();
        clamp(&mut self.meta.summary, old, floor);
        for change in self.changes.values_mut() {
            clamp(&mut change.context, old, floor);
        }
        self.pending.disown();
        self.meta.rolling = Some(Rolling { old, floor, after: Vec::new() });
        self.meta_changed();
        let peers: Vec<AgentId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.lose_peer(peer);
            self.actions.push_back(Action::Disconnect { peer });
        }
        self.actions.push_back(Action::RolledBack);
    }

    /// A row that a new life has not come to yet is seen as it will be.
    pub(super) fn roll_row(&mut self, row: &mut Row) {
        let Some(Rolling { old, floor, after }) = &self.meta.rolling else { return };
        let (old, floor) = (*old, *floor);
        if row.path <= *after {
            return;
        }
        let mine = row.statements.iter().position(|s| s.author == old && dot(s).counter > floor);
        clamp(&mut row.context, old, floor);
        let Some(lost) = mine.map(|i| row.statements.remove(i)) else { return };
        let mut context = lost.version.clone();
        clamp(&mut context, old, floor);
        let was = dot(&lost);
        let made = self.make(&row.path, &context, lost.depth.saturating_sub(1), lost.value);
        if let Disk::Present(here) | Disk::Missing(here) = &mut row.disk
            && here.dot == Some(was)
        {
            here.dot = Some(dot(&made));
        }
        version::join(&mut row.context, &made.version);
        insert(&mut row.statements, made);
    }

    /// Whether a walk over all rows is under way.
    pub(super) fn is_walking(&self) -> bool {
        self.meta.rolling.is_some()
            || self.meta.recheck.is_some()
            || self.meta.restoring
            || self.tidying.is_some()
    }

    /// Some steps of the walks that are under way.
    pub(super) fn walk(&mut self, now: Instant, index: &mut dyn Index) {
        if self.is_walking() {
            self.flush(index);
            self.roll(index);
            self.recheck(index);
            self.restore(index);
            self.tidy(index);
            self.walk_at = now;
        }
    }

    fn roll(&mut self, index: &mut dyn Index) {
        for _ in 0..self.config.walk {
            let Some(after) = self.meta.rolling.as_ref().map(|r| r.after.clone()) else { return };
            let next = index.next(&after).map(|row| row.path);
            let Some(path) = next else {
                self.meta.rolling = None;
                self.meta_changed();
                self.pass.restart();
                // Who connected meanwhile is greeted now.
                let waiting: Vec<AgentId> = self.peers.keys().copied().collect();
                waiting.into_iter().for_each(|peer| self.greet(peer));
                return;
            };
            let held = self.hold(index, &path);
            self.save(held);
            if let Some(rolling) = &mut self.meta.rolling {
                rolling.after = path;
            }
            self.meta_changed();
            self.flush_some(index);
        }
    }

    /// What is wanted here may have changed.
    fn recheck(&mut self, index: &mut dyn Index) {
        for _ in 0..self.config.walk {
            let Some(after) = &self.meta.recheck else { return };
            let Some(row) = index.next(after) else {
                self.meta.recheck = None;
                self.meta_changed();
                self.pass.restart();
                return;
            };
            self.meta.recheck = Some(row.path.clone());
            let out_of_sight = row.disk != Disk::Absent && !self.wants(&row);
            if out_of_sight || row.work == Work::Blocked || self.work_of(&row) != row.work {
                let mut held = self.hold(index, &row.path);
                if out_of_sight {
                    // Not deleted: what is on disk stays there and is nobody's any more.
                    held.row.disk = Disk::Absent;
                    held.row.context.clear();
                    held.row.depth = 0;
                }
                self.save(held);
                self.flush_some(index);
            }
        }
        self.meta_changed();
    }

    /// Begins to forget heads that nobody names, if there was no room for one that somebody does (SYNC.md §4).
    pub(super) fn make_room(&mut self) {
        if core::mem::take(&mut self.crowded) && self.tidying.is_none() {
            self.tidying = Some(Tidying::default());
        }
    }

    fn tidy(&mut self, index: &mut dyn Index) {
        let Some(mut tidying) = self.tidying.take() else { return };
        for _ in 0..self.config.walk {
            let Some(row) = index.next(&tidying.after) else {
                let (named, all) = core::mem::take(&mut self.authors)
                    .into_iter()
                    .partition::<BTreeMap<_, _>, _>(|(id, _)| tidying.named.contains(id));
                self.authors = named;
                if !all.is_empty() {
                    all.values().for_each(|author| self.member_changed(author.agent));
                    self.ask_skipped_again();
                }
                return;
            };
            tidying.named.extend(row.statements.iter().flat_map(|s| s.version.iter().map(|d| d.replica)));
            tidying.named.extend(row.statements.iter().map(|s| s.author));
            tidying.named.extend(row.context.iter().map(|d| d.replica));
            if let Disk::Present(here) | Disk::Missing(here) = &row.disk {
                tidying.named.extend(here.dot.map(|d| d.replica));
            }
            tidying.after = row.path;
        }
        self.tidying = Some(tidying);
    }

    /// What is missing is to be fetched again.
    fn restore(&mut self, index: &mut dyn Index) {
        if !self.meta.restoring {
            return;
        }
        let mut after: Option<Vec<u8>> = None;
        for _ in 0..self.config.walk {
            let Some(path) = index.next_work(Work::Missing, after.as_deref()) else {
                self.meta.restoring = false;
                self.deletions = None;
                self.meta_changed();
                return;
            };
            let mut held = self.hold(index, &path);
            if matches!(held.row.disk, Disk::Missing(_)) {
                held.row.disk = Disk::Absent;
                // Nothing replaced it: it is to come back.
                held.row.context.clear();
                held.row.depth = 0;
                self.save(held);
            }
            if self.pending.rows() >= STEP {
                self.flush(index);
            }
            after = Some(path);
        }
    }
}

/// Makes a version include no more of a replica than this.
fn clamp(version: &mut Vec<Dot>, replica: ReplicaId, counter: u64) {
    for d in version.iter_mut().filter(|d| d.replica == replica) {
        d.counter = d.counter.min(counter);
    }
    version.retain(|d| d.counter > 0);
}
