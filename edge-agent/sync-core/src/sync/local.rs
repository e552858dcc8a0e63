//! What happens in this member's own folder, and how much of it is believed (SYNC.md §6).

use alloc::vec::Vec;
use core::mem;

use agent_proto::sync::{Dot, Statement, Value};
use event_schema::Signature;
use timebase::Instant;

use super::config::{RECENT_MAX, STEP};
use super::row::{Disk, Index, OnDisk, Row, Stamp, Work};
use super::statement::{dot, insert, statement_bytes};
use super::{Action, Replica, version};
use crate::merkle::Hash;

/// Whether a path has to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It is as it was when it was read last.
    Unchanged,
    /// Read it (hash it, if it is a file) and tell [`Replica::handle_found`] if it was the same before and after.
    Read,
    /// It is not to be synchronized here.
    Skip,
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
        if crate::manifest::check_path(path).is_err() || path.is_empty() || !self.policy.wants(path) {
            return Look::Skip;
        }
        match self.row(index, path).map(|r| r.disk) {
            Some(Disk::Present(here))
                if here.stamp.is(stamp)
                    && here.stamp.settled
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
            if self.busy.contains(path) {
                self.look_again.insert(path.to_vec());
            } else {
                self.found(index, path, value, stamp);
            }
        }
        self.finish(now, index);
    }

    /// Nothing is at a path where the index has something.
    pub fn handle_gone(&mut self, now: Instant, index: &mut dyn Index, path: &[u8]) {
        if self.busy.contains(path) {
            self.look_again.insert(path.to_vec());
        } else {
            let mut held = self.hold(index, path);
            match mem::replace(&mut held.row.disk, Disk::Absent) {
                Disk::Present(here) if here.dot.is_some() => {
                    let root = root_of_value(&here.value);
                    held.row.disk = Disk::Missing(here);
                    self.save(held);
                    self.deletions_noticed(now);
                    if let Some(root) = root {
                        self.moved(index, root, path, false);
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
                    self.meta.believed = true;
                    self.deletions = Some(Deletions { first: now, due: now });
                }
                Confirm::Restore => {
                    let mut after = None;
                    while let Some(path) = index.next_work(Work::Missing, after.as_deref()) {
                        let mut held = self.hold(index, &path);
                        held.row.disk = Disk::Absent;
                        wanted_again(&mut held.row);
                        self.save(held);
                        if self.pending.rows() >= STEP {
                            self.flush(index);
                        }
                        after = Some(path);
                    }
                    self.deletions = None;
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

    fn found(&mut self, index: &mut dyn Index, path: &[u8], value: Value, stamp: Stamp) {
        let mut held = self.hold(index, path);
        self.settle(index, &mut held.row);
        let row = &mut held.row;
        let before = match mem::replace(&mut row.disk, Disk::Absent) {
            Disk::Present(here) | Disk::Missing(here) => Some(here),
            Disk::Absent => None,
        };
        let writes = self.may_write();
        let mut new = None;
        row.disk = match before {
            Some(here) if self.is_same(&here.value, &value) && (here.dot.is_some() || !writes) => {
                Disk::Present(OnDisk { stamp, ..here })
            }
            _ => {
                // What is stated already is not stated again: a copy brought by hand, or a change that was made just
                // before a crash (SYNC.md §8).
                let stated = row.statements.iter().find(|s| self.is_same(&s.value, &value));
                let stated = stated.map(|s| (dot(s), s.value.clone(), s.version.clone(), s.depth));
                match stated {
                    Some((dot, value, version, depth)) => {
                        version::join(&mut row.context, &version);
                        row.depth = row.depth.max(depth);
                        Disk::Present(OnDisk { value, stamp, dot: Some(dot) })
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
            self.moved(index, root, path, true);
        }
        if self.meta.missing == 0 && self.meta.guarded {
            self.meta.guarded = false;
            self.meta_changed();
            self.actions.push_back(Action::GuardLifted);
        }
    }

    /// States a change made here, on top of what is on disk; the caller sets `disk`.
    pub(super) fn state(&mut self, row: &mut Row, value: Value) -> Dot {
        let statement = self.make(&row.path, &row.context, row.depth, value);
        row.context.clone_from(&statement.version);
        row.depth = statement.depth;
        let made = dot(&statement);
        insert(&mut row.statements, statement);
        made
    }

    /// A new statement of this replica on top of a context.
    pub(super) fn make(&mut self, path: &[u8], context: &[Dot], depth: u32, value: Value) -> Statement {
        self.meta.counter += 1;
        self.meta_changed();
        self.counters.made += 1;
        let mut version = context.to_vec();
        version::add(&mut version, Dot { replica: self.me, counter: self.meta.counter });
        let mut statement = Statement {
            author: self.me,
            version,
            depth: depth.saturating_add(1),
            value,
            signature: Signature([0; 32], [0; 32]),
        };
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
    fn moved(&mut self, index: &dyn Index, root: Hash, path: &[u8], came: bool) {
        if self.meta.guarded || !self.may_write() {
            return;
        }
        let (these, others) =
            if came { (&mut self.came, &mut self.went) } else { (&mut self.went, &mut self.came) };
        match others.remove(&root) {
            Some(_) if !came => self.believe(index, path),
            Some(went) => self.believe(index, &went),
            None => {
                if these.len() < RECENT_MAX {
                    these.insert(root, path.to_vec());
                }
            }
        }
    }

    pub(super) fn deletions_noticed(&mut self, now: Instant) {
        let first = self.deletions.map_or(now, |d| d.first);
        let due = (now + self.config.delete_delay).min(first + self.config.delete_delay_max);
        self.deletions = Some(Deletions { first, due });
    }

    /// When nothing more went for a while: believes that what is gone was deleted, unless it is too much.
    pub(super) fn settle_deletions(&mut self, now: Instant, index: &mut dyn Index) {
        if self.deletions.is_none_or(|d| d.due > now) {
            return;
        }
        self.deletions = None;
        let (missing, total) = (self.meta.missing, self.meta.present + self.meta.missing);
        if missing == 0 {
            self.meta.believed = false;
            return;
        }
        let too_many = missing >= self.config.guard_min && missing * 100 > total * self.config.guard_percent;
        if self.meta.guarded || (too_many && !self.meta.believed) {
            self.meta.guarded = true;
            self.meta_changed();
            self.actions.push_back(Action::Guard { missing, total });
            return;
        }
        // The rest of a great deletion is the same deletion, however small it has become.
        self.meta.believed = true;
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
        } else {
            self.meta.believed = false;
        }
        self.meta_changed();
    }
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
