//! What is to be done to the folder, row by row, never more at once than there is room for (SYNC.md §3, §7).

use alloc::vec::Vec;

use agent_proto::sync::{Dot, Statement, Value};
use timebase::Instant;

use super::change::Change;
use super::config::{RETRIES_MAX, STEP, UPKEEP_MAX};
use super::names::{conflict_copy, kept_aside, parent};
use super::row::{Disk, Index, Row, Work};
use super::statement::{dot, insert, lacks_meta, meta, same_content};
use crate::merkle::Hash;

use super::{Action, Displaced, Expected, LocalChanges, Make, Obstacle, Replica, version};

/// Names tried for what a read-only member changed; with all of them taken it goes to the archive.
const ASIDES: usize = 64;

/// Where the walk over waiting rows is.
#[derive(Debug, Default)]
pub(super) struct Pass {
    stage: Stage,
    after: Option<Vec<u8>>,
    /// Something came up behind the walk.
    again: bool,
    /// When to go on.
    pub(super) at: Instant,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Done,
    Pull,
    Remove,
}

impl Pass {
    pub(super) fn restart(&mut self) {
        self.again = true;
    }

    pub(super) fn is_unfinished(&self) -> bool {
        self.again || self.stage != Stage::Done
    }
}

impl Replica {
    /// Begins what can begin.
    pub(super) fn plan(&mut self, now: Instant, index: &mut dyn Index) {
        if self.retries.come(now) {
            self.pass.restart();
        }
        if self.meta.guarded || self.meta.rolling.is_some() {
            self.pass.at = Instant::from_micros(u64::MAX);
            return;
        }
        let mut budget = STEP;
        while budget > 0 && self.pass.is_unfinished() {
            if self.changes.len() >= self.config.changes_max
                || self.transfers.len() >= self.config.transfers_max
            {
                // Goes on when one of them ends.
                self.pass.at = Instant::from_micros(u64::MAX);
                return;
            }
            if self.pass.stage == Stage::Done {
                (self.pass.stage, self.pass.after, self.pass.again) = (Stage::Pull, None, false);
            }
            budget -= 1;
            let after = self.pass.after.as_deref();
            // Deletions come last, from the leaves up: what was moved is found where it was (SYNC.md §7).
            let next = match self.pass.stage {
                Stage::Pull => index.next_work(Work::Pull, after),
                _ => index.previous_work(Work::Remove, after),
            };
            let Some(path) = next else {
                self.pass.after = None;
                self.pass.stage = if self.pass.stage == Stage::Pull { Stage::Remove } else { Stage::Done };
                continue;
            };
            self.pass.after = Some(path.clone());
            if self.busy.contains(&path) || self.retries.waits(&path) {
                continue;
            }
            let Some(row) = self.row(index, &path) else { continue };
            match row.work {
                Work::Pull => self.pull(now, index, row),
                Work::Remove => self.remove(now, index, row),
                _ => {}
            }
            self.flush(index);
        }
        self.pass.at = now;
    }

    fn pull(&mut self, now: Instant, index: &mut dyn Index, row: Row) {
        let Some(winner) = row.winner().cloned() else { return };
        if version::includes(&row.context, dot(&winner)) && row.holds() != Some(0) && self.may_write() {
            return self.restate(index, &row.path);
        }
        if !self.policy.allows(&row.path) {
            return self.block(row, Obstacle::BadName);
        }
        if let Value::Link { target, .. } = &winner.value
            && !self.policy.allows_link(&row.path, target)
        {
            return self.block(row, Obstacle::UnsafeLink);
        }
        if let Some(above) = parent(&row.path)
            && !self.has_folder_above(index, &row.path)
        {
            // Its content may be where something is to be removed: that waits for the folder too.
            if let Value::File { root, size, .. } = &winner.value
                && *size > 0
                && self.may_move.len() < RETRIES_MAX
                && self.is_elsewhere(index, &row, root)
            {
                self.may_move.insert(*root, row.path.clone());
            }
            return self.want_folder(index, above, row.clone());
        }
        let moved_from = self.moved_from(index, &row, &winner);
        if let Some(fold) = self.policy.fold(&row.path) {
            let taken = index
                .with_fold(&fold)
                .filter(|by| *by != row.path && Some(by) != moved_from.as_ref().map(|m| &m.0));
            let taken = taken.or_else(|| {
                self.busy
                    .iter()
                    .find(|b| **b != row.path && self.policy.fold(b).as_ref() == Some(&fold))
                    .cloned()
            });
            if let Some(by) = taken {
                return self.block(row, Obstacle::NameTaken { by });
            }
        }
        let here = match &row.disk {
            Disk::Present(here) => Some(here),
            Disk::Absent => None,
            Disk::Missing(_) => return,
        };
        if here.is_some_and(|h| !h.stamp.settled && !is_folder(&h.value)) {
            // It may have changed since and look the same.
            return self.look_first(now, &row.path);
        }
        let new_meta = meta(&winner.value).to_vec();
        if let Some(here) = here {
            if lacks_meta(&winner.value, &here.value) && self.may_write() {
                return self.imply(index, &row.path);
            }
            if same_content(&here.value, &winner.value) {
                return self.change(&row, &winner, Make::Meta { meta: new_meta }, Displaced::Nothing, None);
            }
            if is_folder(&here.value) {
                match self.below(index, &row.path) {
                    Below::Live => return self.imply_or_block(index, row, Obstacle::NotEmpty),
                    Below::Going => return,
                    Below::Kept => return self.block(row, Obstacle::NotEmpty),
                    Below::Nothing => {}
                }
            }
        }
        let make = match &winner.value {
            Value::Deleted => return,
            Value::Folder { .. } => Make::Folder { meta: new_meta },
            Value::Link { target, .. } => Make::Link { target: target.clone(), meta: new_meta },
            Value::File { root, size, .. } => match moved_from {
                Some((from, stamp)) => Make::Moved { from, stamp, meta: new_meta },
                None if *size > 0 && !self.retries.has(&row.path) && self.is_elsewhere(index, &row, root) => {
                    self.retries.set(&row.path, now + self.config.move_grace, 0);
                    if self.may_move.len() < RETRIES_MAX {
                        self.may_move.insert(*root, row.path);
                    }
                    return;
                }
                None => return self.begin_transfer(now, index, &row, &winner, *root, *size),
            },
        };
        let (displaced, kept) = self.displaced(index, &row, &winner);
        self.change(&row, &winner, make, displaced, kept);
    }

    /// A file that is to be removed here and has the content: renaming it is all there is to do.
    fn moved_from(
        &self,
        index: &dyn Index,
        row: &Row,
        winner: &Statement,
    ) -> Option<(Vec<u8>, super::Stamp)> {
        let Value::File { root, size, .. } = &winner.value else { return None };
        if *size == 0 || row.path.is_empty() {
            return None;
        }
        let from = index.with_root(root).filter(|from| *from != row.path && !self.busy.contains(from))?;
        let source = self.row(index, &from)?;
        let here = source.present()?;
        let goes = source.work == Work::Remove && here.stamp.settled && here.dot.is_some();
        goes.then_some((from, here.stamp))
    }

    fn has_folder_above(&self, index: &dyn Index, path: &[u8]) -> bool {
        let is_here = |above: &[u8]| {
            self.row(index, above).is_some_and(|r| matches!(r.present(), Some(d) if is_folder(&d.value)))
        };
        parent(path).is_none_or(is_here)
    }

    /// Whether the content is on disk here at another path.
    fn is_elsewhere(&self, index: &dyn Index, row: &Row, root: &Hash) -> bool {
        index.with_root(root).is_some_and(|at| at != row.path)
    }

    fn remove(&mut self, now: Instant, index: &mut dyn Index, row: Row) {
        let Some(here) = row.present() else { return };
        if let Value::File { root, .. } = &here.value
            && let Some(to) = self.may_move.remove(root)
            && let Some(to) =
                self.row(index, &to).filter(|to| to.work == Work::Pull && !self.busy.contains(&to.path))
        {
            // What waits for just this is moved; or else brought, and this goes in the next pass. That comes by itself
            // if a folder is waited for.
            if self.has_folder_above(index, &to.path) {
                self.pass.restart();
            }
            return self.pull(now, index, to);
        }
        let folder = is_folder(&here.value);
        if folder {
            match self.below(index, &row.path) {
                Below::Live => return self.imply_or_block(index, row, Obstacle::NotEmpty),
                Below::Going => return,
                Below::Kept => return self.block(row, Obstacle::NotEmpty),
                Below::Nothing => {}
            }
        } else if !here.stamp.settled {
            return self.look_first(now, &row.path);
        }
        let displaced = if folder { Displaced::Nothing } else { Displaced::Archive };
        let target = row.winner().cloned();
        self.change_to(&row, target.as_ref(), Make::Nothing, displaced, None);
    }

    /// What becomes of what is here when the winner takes its place; and whose loss it is, if it is a conflict's.
    pub(super) fn displaced(
        &self,
        index: &dyn Index,
        row: &Row,
        winner: &Statement,
    ) -> (Displaced, Option<(Vec<u8>, Dot, Value)>) {
        let Some(here) = row.present() else { return (Displaced::Nothing, None) };
        if is_folder(&here.value) {
            return (Displaced::Nothing, None);
        }
        let Some(held) = here.dot else {
            let aside = match self.config.local_changes {
                LocalChanges::KeepAside => self.free_aside(index, &row.path),
                LocalChanges::Revert => None,
            };
            return (aside.map_or(Displaced::Archive, Displaced::Keep), None);
        };
        // It lost, or nobody replaced it knowingly: it may be among those that a row has no room for (SYNC.md §2), or
        // only a folder that nobody made stands on it.
        let implied = |s: &Statement| matches!(s.value, Value::Folder { implied: true, .. });
        let lost = row.statements.iter().any(|s| dot(s) == held)
            || !row.statements.iter().any(|s| !implied(s) && version::includes(&s.version, held));
        // A folder that nobody made takes the place of a file that nobody deleted.
        let pushed_out = matches!(winner.value, Value::Folder { implied: true, .. });
        if !(lost || pushed_out) || !self.may_write() {
            return (Displaced::Archive, None);
        }
        let copy = self.agent_of(held.replica).and_then(|agent| conflict_copy(&row.path, agent, held));
        match copy {
            Some(copy) if self.row(index, &copy).is_none_or(|r| r.statements.is_empty()) => {
                (Displaced::Keep(copy.clone()), Some((copy, held, here.value.clone())))
            }
            _ => (Displaced::Archive, None),
        }
    }

    /// A name for what a read-only member changed that nothing has: an index that lost its last moments counts them anew.
    fn free_aside(&self, index: &dyn Index, path: &[u8]) -> Option<Vec<u8>> {
        let names = (self.meta.sequence..).take(ASIDES).map_while(|n| kept_aside(path, n));
        names.into_iter().find(|name| self.row(index, name).is_none_or(|row| row.present().is_none()))
    }

    fn change(
        &mut self,
        row: &Row,
        winner: &Statement,
        make: Make,
        displaced: Displaced,
        kept: Option<(Vec<u8>, Dot, Value)>,
    ) {
        self.change_to(row, Some(winner), make, displaced, kept);
    }

    pub(super) fn change_to(
        &mut self,
        row: &Row,
        target: Option<&Statement>,
        make: Make,
        displaced: Displaced,
        kept: Option<(Vec<u8>, Dot, Value)>,
    ) {
        if let Some((copy, ..)) = &kept
            && !self.busy.insert(copy.clone())
        {
            return;
        }
        let expected = match row.present() {
            None => Expected::Absent,
            Some(here) if is_folder(&here.value) => Expected::Folder,
            Some(here) => Expected::File(here.stamp),
        };
        // What the change knowingly replaces (SYNC.md §3).
        let mut context = row.context.clone();
        let mut depth = row.depth;
        let held = row.present().and_then(|h| h.dot);
        for statement in &row.statements {
            let settled = target
                .is_some_and(|t| dot(t) == dot(statement) || same_content(&t.value, &statement.value))
                || statement.value == Value::Deleted
                || held == Some(dot(statement));
            if settled {
                version::join(&mut context, &statement.version);
                depth = depth.max(statement.depth);
            }
        }
        let change = self.number();
        let from = match &make {
            Make::Moved { from, .. } => Some(from.clone()),
            _ => None,
        };
        let aside = match &displaced {
            Displaced::Keep(to) => Some(to.clone()),
            Displaced::Nothing | Displaced::Archive => None,
        };
        self.busy.insert(row.path.clone());
        self.busy.extend(from.clone());
        self.changes.insert(
            change,
            Change {
                path: row.path.clone(),
                value: target.map(|t| t.value.clone()),
                dot: target.map(dot),
                context,
                depth,
                transfer: match &make {
                    Make::Staged { transfer, .. } => Some(*transfer),
                    _ => None,
                },
                from,
                aside,
                kept,
            },
        );
        self.pending.after(Action::Change { change, path: row.path.clone(), expected, displaced, make });
    }

    /// The folder above what is to come is not here: it comes by itself, or is made to be wanted again.
    fn want_folder(&mut self, index: &mut dyn Index, above: &[u8], below: Row) {
        let row = self.row(index, above);
        match &row {
            Some(row) if row.work == Work::Blocked => self.block(below, Obstacle::NoFolder),
            Some(row)
                if row.winner().is_some_and(|w| is_folder(&w.value))
                    || matches!(row.disk, Disk::Missing(_)) => {}
            _ if !self.may_write() => self.block(below, Obstacle::NoFolder),
            _ => self.imply(index, above),
        }
    }

    fn imply_or_block(&mut self, index: &mut dyn Index, row: Row, why: Obstacle) {
        if self.may_write() { self.imply(index, &row.path) } else { self.block(row, why) }
    }

    /// What wins was knowingly replaced here, or lost and is kept: only others did not know when they made of its
    /// rival what they made. States what is left without it (SYNC.md §3).
    fn restate(&mut self, index: &mut dyn Index, path: &[u8]) {
        let mut held = self.hold(index, path);
        let row = &mut held.row;
        let here = row.present().and_then(|h| h.dot);
        let left =
            row.statements.iter().find(|s| Some(dot(s)) == here || !version::includes(&row.context, dot(s)));
        let (left, value) = match (left, row.present()) {
            (Some(s), _) => (Some(dot(s)), s.value.clone()),
            (None, Some(here)) => (here.dot, here.value.clone()),
            (None, None) => (None, Value::Deleted),
        };
        let mut context = row.context.clone();
        let mut depth = row.depth;
        for statement in &row.statements {
            version::join(&mut context, &statement.version);
            depth = depth.max(statement.depth);
        }
        self.shorten(&mut context, &row.statements);
        let statement = self.make(path, &context, depth, value);
        if let Disk::Present(on_disk) = &mut row.disk
            && on_disk.dot.is_some()
            && on_disk.dot == left
        {
            on_disk.dot = Some(dot(&statement));
        }
        insert(&mut row.statements, statement);
        self.settle(index, &mut held.row);
        self.save(held);
    }

    /// States that a folder is there because something in it is: what is in it outlives its deletion. Who has it says
    /// which metadata it has.
    fn imply(&mut self, index: &mut dyn Index, path: &[u8]) {
        let mut held = self.hold(index, path);
        let mut context = held.row.context.clone();
        let mut depth = held.row.depth;
        for statement in &held.row.statements {
            version::join(&mut context, &statement.version);
            depth = depth.max(statement.depth);
        }
        let old = held.row.present().filter(|d| is_folder(&d.value)).map(|d| meta(&d.value).to_vec());
        let value = Value::Folder { meta: old.unwrap_or_default(), implied: true };
        self.shorten(&mut context, &held.row.statements);
        let statement = self.make(path, &context, depth, value);
        insert(&mut held.row.statements, statement);
        self.settle(index, &mut held.row);
        self.save(held);
    }

    pub(super) fn block(&mut self, mut row: Row, why: Obstacle) {
        row.work = Work::Blocked;
        if self.blocked.len() < RETRIES_MAX && self.blocked.insert(row.path.clone()) {
            self.actions.push_back(Action::Blocked { path: row.path.clone(), why });
        }
        self.save_quietly(row);
    }

    fn look_first(&mut self, now: Instant, path: &[u8]) {
        self.actions.push_back(Action::Look { path: path.to_vec() });
        self.retry_later(now, path);
    }

    /// Tries a path again later, each time later; how often that was so.
    pub(super) fn retry_later(&mut self, now: Instant, path: &[u8]) -> u32 {
        let tries = self.retries.tries(path).map_or(0, |tries| (tries + 1).min(6));
        self.retries.set(path, now + self.config.retry * (1 << tries), tries);
        tries
    }

    fn below(&self, index: &dyn Index, folder: &[u8]) -> Below {
        let prefix = [folder, b"/"].concat();
        let mut found = Below::Nothing;
        let mut at = prefix.clone();
        while let Some(row) = index.next(&at).filter(|r| r.path.starts_with(&prefix)) {
            if row.is_live() && self.wants(&row) {
                return Below::Live;
            }
            match (&row.disk, row.work) {
                (Disk::Absent, _) => {}
                (_, Work::Remove | Work::Missing) if !matches!(found, Below::Kept) => found = Below::Going,
                (_, Work::Remove | Work::Missing) => {}
                _ => found = Below::Kept,
            }
            at = row.path;
        }
        found
    }

    /// Looks again at what is blocked, and forgets deletions that everybody knows of (SYNC.md §3).
    pub(super) fn upkeep(&mut self, now: Instant, index: &mut dyn Index) {
        self.upkeep_at = now + self.config.upkeep;
        self.came.clear();
        self.may_move.clear();
        self.went.clear();
        self.make_room();
        let unfit = self.unfit.iter().take(STEP);
        self.actions.extend(unfit.map(|path| Action::Look { path: path.clone() }));
        self.flush(index);
        let mut room = UPKEEP_MAX;
        while room > 0
            && let Some(path) = index.next_work(Work::Blocked, self.upkeep_blocked.as_deref())
        {
            let held = self.hold(index, &path);
            self.save(held);
            self.upkeep_blocked = Some(path);
            self.flush_some(index);
            room -= 1;
        }
        if room > 0 {
            self.upkeep_blocked = None;
        }
        // Deletions are looked at again only when somebody has learned something.
        let known = self.known_to_all();
        if self.upkeep_deleted.is_none() && known == self.upkeep_known {
            return;
        }
        let mut room = UPKEEP_MAX;
        while room > 0
            && let Some(path) = index.next_work(Work::Tombstone, self.upkeep_deleted.as_deref())
        {
            let all_know = self
                .row(index, &path)
                .is_some_and(|row| row.statements.iter().all(|s| version::includes(&known, dot(s))));
            if all_know && !self.busy.contains(&path) {
                self.forget(&path);
                self.counters.forgotten += 1;
            }
            self.upkeep_deleted = Some(path);
            self.flush_some(index);
            room -= 1;
        }
        if room > 0 {
            self.upkeep_deleted = None;
            self.upkeep_known = known;
        }
    }

    pub(super) fn flush_some(&mut self, index: &mut dyn Index) {
        if self.pending.rows() >= STEP {
            self.flush(index);
        }
    }

    /// Every change that all members know.
    pub(super) fn known_to_all(&self) -> Vec<Dot> {
        let mut known = self.pending.durable.summary.clone();
        for (agent, member) in &self.members {
            if *agent != self.config.agent {
                for d in &mut known {
                    d.counter = d.counter.min(version::of(&member.kept.summary, d.replica));
                }
            }
        }
        known.retain(|d| d.counter > 0);
        known
    }
}

enum Below {
    /// Something that is to be there.
    Live,
    /// Only what is still to be removed.
    Going,
    /// What a read-only member's owner made, or what cannot be removed.
    Kept,
    Nothing,
}

pub(super) fn is_folder(value: &Value) -> bool {
    matches!(value, Value::Folder { .. })
}
