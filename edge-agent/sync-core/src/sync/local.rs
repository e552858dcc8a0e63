//! What happens in this member's own folder, and how much of it is believed (SYNC.md §6).

use alloc::vec::Vec;
use core::mem;

use agent_proto::sync::{Dot, FILE_MAX, Statement, VERSION_MAX, Value};
use event_schema::Signature;
use timebase::Instant;

use super::config::{GONE_MAX, RECENT_MAX, RETRIES_MAX, STEP};
use super::row::{Disk, Index, OnDisk, Row, Stamp, Work};
use super::state::Episode;
use super::statement::{depth_max, dot, insert, is_fit, statement_bytes};
use super::{Action, Obstacle, Replica, version};
use crate::merkle::{Hash, block_hash};

/// Whether a path has to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It is as it was when it was read last.
    Unchanged,
    /// Read it (hash it, if it is a file) and tell [`Replica::handle_found`] if it was the same before and after.
    Read,
    /// It is not to be synchronized here.
    Skip,
    /// It is larger than any member takes: do not read it, call [`Replica::handle_unfit`].
    TooLarge,
}

/// What a person said to [`Action::Guard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirm {
    /// It was meant: tell everybody.
    Delete,
    /// It was not: fetch everything again.
    Restore,
}

/// Deletions noticed and not yet believed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deletions {
    first: Instant,
    pub(super) due: Instant,
}

impl Replica {
    /// Whether something found at a path has to be read. Folders and links are cheap: read them always.
    pub fn look(&self, index: &dyn Index, path: &[u8], stamp: &Stamp) -> Look {
        if crate::manifest::check_path(path).is_err() || path.is_empty() || !self.wants_any(path) {
            return Look::Skip;
        }
        if stamp.size > FILE_MAX {
            return Look::TooLarge;
        }
        match self.row(index, path).map(|r| r.disk) {
            Some(Disk::Present(here))
                if here.stamp.is(stamp)
                    && here.stamp.settled
                    // Of a folder nobody said which metadata it has.
                    && !matches!(&here.value, Value::Folder { meta, .. } if meta.is_empty())
                    && (here.dot.is_some() || !self.may_write()) =>
            {
                Look::Unchanged
            }
            _ => Look::Read,
        }
    }

    /// Something is at a path; `stamp` held before and after it was read.
    pub fn handle_found(
        &mut self,
        now: Instant,
        index: &mut dyn Index,
        path: &[u8],
        value: Value,
        stamp: Stamp,
    ) {
        if value != Value::Deleted && self.look(index, path, &stamp) != Look::Skip {
            if !is_fit(&value) {
                self.unfit(path);
            } else if self.busy.contains(path) {
                self.look_again.insert(path.to_vec());
            } else {
                self.found(now, index, path, value, stamp);
            }
        }
        self.finish(now, index);
    }

    /// What is at a path no member would take: it is too large, or its metadata or link target is. Others keep what
    /// was there before; the path is listed as blocked, and looked at again now and then.
    pub fn handle_unfit(&mut self, now: Instant, index: &mut dyn Index, path: &[u8]) {
        if crate::manifest::check_path(path).is_ok() && !path.is_empty() {
            self.unfit(path);
        }
        self.finish(now, index);
    }

    fn unfit(&mut self, path: &[u8]) {
        if self.unfit.len() < RETRIES_MAX && self.unfit.insert(path.to_vec()) {
            self.actions.push_back(Action::Blocked { path: path.to_vec(), why: Obstacle::TooLarge });
        }
    }

    /// What was too large is gone, or is not any more.
    fn fits_again(&mut self, path: &[u8]) {
        if self.unfit.remove(path) {
            self.actions.push_back(Action::Unblocked { path: path.to_vec() });
        }
    }

    /// Nothing is at a path where the index has something, or that was to be looked at.
    pub fn handle_gone(&mut self, now: Instant, index: &mut dyn Index, path: &[u8]) {
        self.fits_again(path);
        if self.busy.contains(path) {
            self.look_again.insert(path.to_vec());
        } else {
            let mut held = self.hold(index, path);
            match mem::replace(&mut held.row.disk, Disk::Absent) {
                Disk::Present(here) if here.dot.is_some() => {
                    self.begin_episode(now);
                    let root = root_of_value(&here.value);
                    held.row.disk = Disk::Missing(here);
                    self.save(held);
                    self.deletions_noticed(now);
                    if let Some(root) = root {
                        self.moved(index, root, path, None);
                    }
                }
                Disk::Present(_) if held.row.statements.is_empty() => self.drop_row(held.row),
                Disk::Present(_) => self.save(held),
                Disk::Missing(_) | Disk::Absent => {}
            }
        }
        self.finish(now, index);
    }

    /// An answer to [`Action::Guard`].
    pub fn handle_confirm(&mut self, now: Instant, index: &mut dyn Index, confirm: Confirm) {
        if self.meta.guarded {
            self.meta.guarded = false;
            self.meta_changed();
            match confirm {
                Confirm::Delete => {
                    // So many as people were told of, and nothing that goes after that.
                    let shown = self.guard_shown.min(self.meta.missing);
                    let total = self.meta.present + self.meta.missing - shown;
                    self.meta.episode = Some(Episode { total, believed: 0, came: shown });
                    self.episode_ends = now + self.config.guard_quiet;
                    self.deletions = Some(Deletions { first: now, due: now });
                }
                Confirm::Restore => {
                    self.meta.restoring = true;
                    self.meta.episode = None;
                    self.walk(now, index);
                }
            }
        }
        self.settle_deletions(now, index);
        self.finish(now, index);
    }

    fn drop_row(&mut self, row: Row) {
        self.meta.present -= 1;
        self.meta_changed();
        self.forget(&row.path);
    }

    fn found(&mut self, now: Instant, index: &mut dyn Index, path: &[u8], value: Value, stamp: Stamp) {
        self.fits_again(path);
        let mut held = self.hold(index, path);
        self.settle(index, &mut held.row);
        let row = &mut held.row;
        let before = match mem::replace(&mut row.disk, Disk::Absent) {
            Disk::Present(here) | Disk::Missing(here) => Some(here),
            Disk::Absent => None,
        };
        // What came before something went does not stand for it, unless it has its content; and while people are asked, only
        // what is gone comes back elsewhere.
        let missing = self.meta.missing;
        let mut counted = false;
        if before.is_none()
            && (!self.meta.guarded || self.is_of_gone(path, &value))
            && let Some(episode) = &mut self.meta.episode
            && (self.meta.guarded || episode.came < episode.believed + missing)
        {
            episode.came += 1;
            counted = true;
        }
        let writes = self.may_write();
        let mut new = None;
        row.disk = match before {
            Some(here) if self.is_same(&here.value, &value) && (here.dot.is_some() || !writes) => {
                Disk::Present(OnDisk { value: with_meta(here.value, &value), stamp, dot: here.dot })
            }
            _ => {
                // What is stated already is not stated again: a copy brought by hand, or a change that was made just
                // before a crash (SYNC.md §8).
                let stated = row.statements.iter().find(|s| self.is_same(&s.value, &value));
                let stated = stated.map(|s| (dot(s), s.value.clone(), s.version.clone(), s.depth));
                match stated {
                    Some((dot, told, version, depth)) => {
                        version::join(&mut row.context, &version);
                        row.depth = row.depth.max(depth);
                        Disk::Present(OnDisk { value: with_meta(told, &value), stamp, dot: Some(dot) })
                    }
                    None if writes => {
                        new = root_of_value(&value);
                        let dot = self.state(row, value.clone());
                        Disk::Present(OnDisk { value, stamp, dot: Some(dot) })
                    }
                    None => Disk::Present(OnDisk { value, stamp, dot: None }),
                }
            }
        };
        self.settle(index, &mut held.row);
        self.save(held);
        if let Some(root) = new {
            self.moved(index, root, path, Some(counted));
        }
        // Not as soon as some are back: the rest is still to be looked at. But what came under other names was moved.
        if self.meta.guarded && (self.meta.missing == 0 || !self.is_too_much(self.guard_shown)) {
            self.meta.guarded = false;
            self.meta_changed();
            self.actions.push_back(Action::GuardLifted);
            if self.meta.missing > 0 {
                self.deletions_noticed(now);
            }
        }
    }

    /// States a change made here, on top of what is on disk; the caller sets `disk`.
    pub(super) fn state(&mut self, row: &mut Row, value: Value) -> Dot {
        // What it replaces because it has a greater number of this replica, it stands on as well.
        let mut context = row.context.clone();
        for s in
            row.statements.iter().filter(|s| s.author == self.me || version::includes(&row.context, dot(s)))
        {
            version::join(&mut context, &s.version);
            row.depth = row.depth.max(s.depth);
        }
        self.shorten(&mut context, &row.statements);
        let statement = self.make(&row.path, &context, row.depth, value);
        row.context.clone_from(&statement.version);
        row.depth = statement.depth;
        let made = dot(&statement);
        insert(&mut row.statements, statement);
        made
    }

    /// A version has room for so many replicas: those that nothing here is of go first. What somebody brings of them
    /// then is a conflict and not known to be old.
    pub(super) fn shorten(&self, context: &mut Vec<Dot>, statements: &[Statement]) {
        let mut excess = (context.len() + 1).saturating_sub(VERSION_MAX);
        context.retain(|d| {
            let goes = excess > 0 && d.replica != self.me && statements.iter().all(|s| s.author != d.replica);
            excess -= usize::from(goes);
            !goes
        });
    }

    /// A new statement of this replica on top of a context.
    pub(super) fn make(&mut self, path: &[u8], context: &[Dot], depth: u64, value: Value) -> Statement {
        self.meta.counter += 1;
        self.meta_changed();
        self.counters.made += 1;
        let mut version = context.to_vec();
        version::add(&mut version, Dot { replica: self.me, counter: self.meta.counter });
        let depth = depth.saturating_add(1).min(depth_max(&version));
        let signature = Signature([0; 32], [0; 32]);
        let mut statement = Statement { author: self.me, version, depth, value, signature };
        statement.signature = self.notary.sign(&statement_bytes(self.config.run, path, &statement));
        statement
    }

    /// What is missing is deleted.
    fn believe(&mut self, index: &dyn Index, path: &[u8]) {
        let mut held = self.hold(index, path);
        if !matches!(held.row.disk, Disk::Missing(_)) {
            return;
        }
        self.settle(index, &mut held.row);
        held.row.disk = Disk::Absent;
        if let Some(episode) = &mut self.meta.episode {
            episode.believed += 1;
        }
        if self.may_write() {
            self.state(&mut held.row, Value::Deleted);
        } else {
            wanted_again(&mut held.row);
        }
        self.settle(index, &mut held.row);
        self.save(held);
    }

    /// A file went, or a new one came. If it is the same that came or went just now it was moved, and there is nothing
    /// to doubt: others can move it too, if they hear of both at once.
    ///
    /// `came`: whether it did, and then whether it counts for something that is gone.
    fn moved(&mut self, index: &dyn Index, root: Hash, path: &[u8], came: Option<bool>) {
        if self.meta.guarded || !self.may_write() {
            return;
        }
        let (went, counted) = match came {
            Some(counted) => (self.went.remove(&root), counted),
            None => match self.came.remove(&root) {
                Some(counted) => (Some(path.to_vec()), counted),
                None => (None, false),
            },
        };
        let Some(went) = went else {
            match came {
                Some(counted) if self.came.len() < RECENT_MAX => _ = self.came.insert(root, counted),
                None if self.went.len() < RECENT_MAX => _ = self.went.insert(root, path.to_vec()),
                _ => {}
            }
            return;
        };
        if let Some(episode) = self.meta.episode.as_mut().filter(|_| !counted) {
            episode.came += 1;
        }
        self.believe(index, &went);
    }

    pub(super) fn deletions_noticed(&mut self, now: Instant) {
        let first = self.deletions.map_or(now, |d| d.first);
        let due = (now + self.config.delete_delay).min(first + self.config.delete_delay_max);
        self.deletions = Some(Deletions { first, due });
    }

    /// Counts from here on what goes, if nothing went for a while.
    fn begin_episode(&mut self, now: Instant) {
        if self.meta.episode.is_none() || now >= self.episode_ends && self.meta.missing == 0 {
            // What is gone at this moment is still among them.
            let total = self.meta.present + self.meta.missing;
            self.meta.episode = Some(Episode { total, believed: 0, came: 0 });
        }
        self.episode_ends = now + self.config.guard_quiet;
        self.meta_changed();
    }

    /// Whether more went since the episode began than is believed unasked, and did not come back elsewhere.
    fn is_too_much(&self, missing: u64) -> bool {
        let now = self.meta.present + self.meta.missing;
        let Episode { total, believed, came } =
            self.meta.episode.unwrap_or(Episode { total: now, believed: 0, came: 0 });
        let gone = (believed + missing).saturating_sub(came);
        // Others may have brought much since.
        let share = total.max(now) * self.config.guard_percent;
        missing > 0 && self.config.guard_percent < 100 && gone >= self.config.guard_min && gone * 100 > share
    }

    /// When nothing more went for a while: believes that what is gone was deleted, unless it is too much.
    pub(super) fn settle_deletions(&mut self, now: Instant, index: &mut dyn Index) {
        if self.meta.restoring || self.deletions.is_none_or(|d| d.due > now) {
            return;
        }
        self.deletions = None;
        if self.meta.missing == 0 {
            return self.nothing_is_gone();
        }
        if self.meta.guarded || self.is_too_much(self.meta.missing) {
            if !self.meta.guarded {
                self.back.clear();
            }
            let (missing, total) = (self.meta.missing, self.meta.present + self.meta.missing);
            self.meta.guarded = true;
            self.guard_shown = missing;
            self.meta_changed();
            self.note_gone(index);
            self.actions.push_back(Action::Guard { missing, total });
            return;
        }
        self.flush(index);
        let mut paths: Vec<Vec<u8>> = Vec::new();
        while paths.len() < STEP
            && let Some(path) = index.next_work(Work::Missing, paths.last().map(Vec::as_slice))
        {
            paths.push(path);
        }
        let more = paths.len() == STEP;
        for path in paths {
            self.believe(index, &path);
        }
        if more {
            self.deletions = Some(Deletions { first: now, due: now });
        } else if self.meta.missing == 0 {
            self.nothing_is_gone();
        }
        self.meta_changed();
    }

    /// What came and stands for nothing that went does not stand for what goes later: where much is written all day, all
    /// of it could go unasked.
    fn nothing_is_gone(&mut self) {
        if let Some(episode) = &mut self.meta.episode {
            episode.came = episode.came.min(episode.believed);
        }
    }

    /// Remembers the contents of what is gone, to know them when they come under other names.
    pub(super) fn note_gone(&mut self, index: &mut dyn Index) {
        self.flush(index);
        self.gone.clear();
        let mut after: Option<Vec<u8>> = None;
        for _ in 0..GONE_MAX {
            let Some(path) = index.next_work(Work::Missing, after.as_deref()) else { break };
            if let Some(Disk::Missing(here)) = self.row(index, &path).map(|row| row.disk) {
                *self.gone.entry(mark(&path, &here.value)).or_default() += 1;
            }
            after = Some(path);
        }
        // What came of it since people are asked came once.
        for (mark, back) in &self.back {
            if let Some(count) = self.gone.get_mut(mark) {
                *count = count.saturating_sub(*back);
            }
        }
    }

    /// Whether a content is one of those that are gone; it counts once for each.
    fn is_of_gone(&mut self, path: &[u8], value: &Value) -> bool {
        let mark = mark(path, value);
        let Some(count) = self.gone.get_mut(&mark).filter(|count| **count > 0) else { return false };
        *count -= 1;
        *self.back.entry(mark).or_default() += 1;
        true
    }
}

/// What was told, with the metadata that is here if nobody said which.
fn with_meta(told: Value, here: &Value) -> Value {
    match (told, here) {
        (Value::Folder { meta, implied }, Value::Folder { meta: found, .. }) if meta.is_empty() => {
            Value::Folder { meta: found.clone(), implied }
        }
        (told, _) => told,
    }
}

/// By what something is known that comes elsewhere: its content, or, where it has none, its name and kind.
fn mark(path: &[u8], value: &Value) -> Hash {
    root_of_value(value).unwrap_or_else(|| {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        let kind = match value {
            Value::Folder { .. } => b'd',
            Value::Link { .. } => b'l',
            Value::File { .. } | Value::Deleted => b'f',
        };
        block_hash(&[&[kind, b'/'], name].concat())
    })
}

fn root_of_value(value: &Value) -> Option<Hash> {
    match value {
        Value::File { root, size, .. } if *size > 0 => Some(*root),
        _ => None,
    }
}

/// What is gone was not replaced by anything: it is to come back.
fn wanted_again(row: &mut Row) {
    row.context.clear();
    row.depth = 0;
}
