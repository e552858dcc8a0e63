//! Changes of the folder that are under way, and what becomes of the index when they are done (SYNC.md §7).

use alloc::vec::Vec;

use agent_proto::sync::{Dot, Value};
use timebase::Instant;

use super::row::{Disk, Index, OnDisk};
use super::statement::dot;
use super::{Action, Obstacle, Outcome, Replica, version};

/// One change: what the row's disk is when it is done.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) path: Vec<u8>,
    /// What is made; none: nothing.
    pub(super) value: Option<Value>,
    pub(super) dot: Option<Dot>,
    pub(super) context: Vec<Dot>,
    pub(super) depth: u64,
    pub(super) transfer: Option<u32>,
    /// Where it is moved from.
    pub(super) from: Option<Vec<u8>>,
    /// Where what is here goes, if it keeps a name.
    pub(super) aside: Option<Vec<u8>>,
    /// Where the loser of a conflict goes, which change it was, and what.
    pub(super) kept: Option<(Vec<u8>, Dot, Value)>,
}

impl Replica {
    /// A change of the folder is done or was not.
    pub fn handle_changed(&mut self, now: Instant, index: &mut dyn Index, change: u32, outcome: Outcome) {
        let Some(done) = self.changes.remove(&change) else { return };
        self.busy.remove(&done.path);
        if let Some(from) = &done.from {
            self.busy.remove(from);
        }
        if let Some((copy, ..)) = &done.kept {
            self.busy.remove(copy);
        }
        if let Some(transfer) = done.transfer {
            self.transfers.remove(&transfer);
            self.actions.push_back(Action::Drop { transfer });
        }
        match outcome {
            Outcome::Done { stamp, kept } => {
                self.counters.changes += 1;
                self.apply(index, &done, stamp, kept);
            }
            Outcome::Refused => {
                self.counters.refusals += 1;
                let paths = [Some(&done.path), done.from.as_ref(), done.aside.as_ref()];
                for path in paths.into_iter().flatten() {
                    self.look_again.insert(path.clone());
                }
                self.retry_later(now, &done.path);
            }
            Outcome::NotEmpty => {
                self.look_again.insert(done.path.clone());
                if let Some(row) = self.row(index, &done.path) {
                    self.block(row, Obstacle::NotEmpty);
                }
            }
            Outcome::Failed => _ = self.retry_later(now, &done.path),
        }
        for path in core::mem::take(&mut self.look_again) {
            if self.busy.contains(&path) {
                self.look_again.insert(path);
            } else {
                self.actions.push_back(Action::Look { path });
            }
        }
        self.pass.restart();
        self.finish(now, index);
    }

    fn apply(
        &mut self,
        index: &mut dyn Index,
        done: &Change,
        stamp: super::Stamp,
        kept: Option<super::Stamp>,
    ) {
        if let Some(from) = &done.from {
            self.counters.moved += 1;
            let mut held = self.hold(index, from);
            held.row.disk = Disk::Absent;
            self.settle(index, &mut held.row);
            self.save(held);
        }
        // The loser's new name first: then the settling below finds it kept.
        if let (Some((copy, lost, value)), Some(stamp)) = (&done.kept, kept) {
            self.counters.copies += 1;
            let mut held = self.hold(index, copy);
            let made = self.state(&mut held.row, value.clone());
            held.row.disk = Disk::Present(OnDisk { value: value.clone(), stamp, dot: Some(made) });
            self.save(held);
            let agent = |dot: Dot| self.agent_of(dot.replica).unwrap_or(self.config.agent);
            let action = Action::Conflict {
                path: done.path.clone(),
                copy: copy.clone(),
                loser: agent(*lost),
                winner: done.dot.map_or(self.config.agent, agent),
            };
            self.actions.push_back(action);
        }
        let mut held = self.hold(index, &done.path);
        let lives = done.value.as_ref().is_some_and(|value| *value != Value::Deleted);
        if lives
            && done.from.is_none()
            && held.row.disk == Disk::Absent
            && let Some(episode) = &mut self.meta.episode
        {
            // Who removes what others bring, day by day, does not empty the folder.
            episode.believed = episode.believed.saturating_sub(1);
        }
        held.row.disk = match &done.value {
            Some(value) if *value != Value::Deleted => {
                Disk::Present(OnDisk { value: value.clone(), stamp, dot: done.dot })
            }
            _ => Disk::Absent,
        };
        version::join(&mut held.row.context, &done.context);
        held.row.depth = held.row.depth.max(done.depth);
        self.settle(index, &mut held.row);
        if held.row.statements.is_empty() && held.row.disk == Disk::Absent {
            // A read-only member's own that was reverted.
            self.save(held);
            self.forget(&done.path);
            return;
        }
        // A folder may keep metadata of its own for a moment: what counts is that it is one. If nobody said which, this
        // member tells what it has now.
        if matches!(&done.value, Some(Value::Folder { meta, .. }) if meta.is_empty()) && self.may_write() {
            self.actions.push_back(Action::Look { path: done.path.clone() });
        }
        self.save(held);
    }

    /// The winner of a path is another one: what is fetched for the old one is of no use.
    pub(super) fn winner_changed(&mut self, path: &[u8], winner: Option<Dot>) {
        let stale =
            self.transfers.iter().find(|(_, t)| t.path == path && !t.placing && Some(t.dot) != winner);
        if let Some(transfer) = stale.map(|(n, _)| *n) {
            self.end_transfer(transfer);
        }
    }

    /// Begins to put a complete staged file in its place.
    pub(super) fn place(&mut self, now: Instant, index: &mut dyn Index, transfer: u32) {
        let Some(t) = self.transfers.get_mut(&transfer) else { return };
        t.placing = true;
        let path = t.path.clone();
        let wanted = t.dot;
        let row = self.row(index, &path).filter(|row| row.winner().map(dot) == Some(wanted));
        let usable = row.filter(|row| {
            !self.meta.guarded
                && match &row.disk {
                    Disk::Missing(_) => false,
                    Disk::Present(here) => here.stamp.settled || super::plan::is_folder(&here.value),
                    Disk::Absent => true,
                }
        });
        let Some(row) = usable else {
            // What is there has to be looked at first; what is staged is found again then.
            self.end_transfer(transfer);
            self.retry_later(now, &path);
            return;
        };
        let Some(winner) = row.winner().cloned() else { return };
        let (displaced, kept) = self.displaced(index, &row, &winner);
        let make = super::Make::Staged { transfer, meta: super::statement::meta(&winner.value).to_vec() };
        let before = self.changes.len();
        self.change_to(&row, Some(&winner), make, displaced, kept);
        if self.changes.len() == before {
            self.end_transfer(transfer);
            self.retry_later(now, &path);
        }
    }
}
