//! What others state meets what is known here (SYNC.md §3).

use agent_proto::sync::{IndexEntry, Value};
use event_schema::AgentId;

use super::names::conflict_copy;
use super::row::{Disk, Index, OnDisk, Row};
use super::statement::{dot, insert, lacks_meta, same_content};
use super::{Replica, config, version};

impl Replica {
    /// Takes a checked entry of somebody's index.
    pub(super) fn merge(&mut self, index: &mut dyn Index, peer: AgentId, entry: IndexEntry) {
        let IndexEntry { path, statements, holds } = entry;
        let held_by_peer = holds.and_then(|i| statements.get(usize::from(i))).map(dot);
        if self.row(index, &path).is_none() && statements.iter().all(|s| self.knew(dot(s))) {
            // Known once, deleted, and forgotten when everybody knew (SYNC.md §3). Whoever comes with it missed that.
            if statements.iter().any(|s| s.value != Value::Deleted) && self.may_write() {
                let mut held = self.hold(index, &path);
                for statement in statements {
                    version::join(&mut held.row.context, &statement.version);
                    held.row.depth = held.row.depth.max(statement.depth);
                    insert(&mut held.row.statements, statement);
                }
                self.state(&mut held.row, Value::Deleted);
                self.counters.deleted_again += 1;
                self.save(held);
            }
            return;
        }
        let mut held = self.hold(index, &path);
        let winner_before = held.row.winner().map(dot);
        let mut learned = false;
        let echo = self.must_echo(peer, &held.row, &statements);
        for statement in statements {
            if insert(&mut held.row.statements, statement) {
                self.counters.learned += 1;
                learned = true;
            }
        }
        let winner = held.row.winner().map(dot);
        if winner != winner_before {
            held.row.holders.clear();
        }
        let holds = held_by_peer.is_some() && held_by_peer == winner;
        let place = held.row.holders.iter().position(|h| *h == peer);
        let changed = match (holds, place) {
            (true, None) => {
                held.row.holders.truncate(config::HOLDERS_MAX - 1);
                held.row.holders.insert(0, peer);
                true
            }
            (false, Some(at)) => {
                held.row.holders.remove(at);
                true
            }
            _ => false,
        };
        if learned {
            self.settle(index, &mut held.row);
            self.save(held);
            self.winner_changed(&path, winner);
        } else if echo {
            self.echoed(peer, &path);
            held.tell_again();
            self.save(held);
        } else if changed && held.row.work == super::Work::Pull {
            if holds {
                self.pass.restart();
            }
            self.save_quietly(held.row);
        }
        // Whatever else is new: a transfer under way is not left to those who were there before.
        if holds && place.is_none() {
            self.add_source(&path, peer);
        }
    }

    /// Takes into the context what a change made here now would knowingly replace: what is on disk, deletions that
    /// lost, and losers of conflicts that are kept (SYNC.md §3).
    pub(super) fn settle(&self, index: &dyn Index, row: &mut Row) {
        let Some(winner) = row.statements.first().cloned() else { return };
        match &mut row.disk {
            Disk::Absent if winner.value == Value::Deleted => {}
            Disk::Present(here)
                if self.is_same(&here.value, &winner.value)
                    && !(self.may_write() && lacks_meta(&winner.value, &here.value))
                    && !lacks_meta(&here.value, &winner.value) =>
            {
                *here = OnDisk { value: winner.value.clone(), stamp: here.stamp, dot: Some(dot(&winner)) };
            }
            Disk::Missing(here) if self.is_same(&here.value, &winner.value) => {}
            _ => return,
        }
        for (i, statement) in row.statements.iter().enumerate() {
            let settled = i == 0
                || statement.value == Value::Deleted
                || same_content(&statement.value, &winner.value)
                || self.is_kept(index, &row.path, statement);
            if settled {
                version::join(&mut row.context, &statement.version);
                row.depth = row.depth.max(statement.depth);
            }
        }
    }

    /// Whether the conflict copy of a loser is known.
    pub(super) fn is_kept(
        &self,
        index: &dyn Index,
        path: &[u8],
        statement: &agent_proto::sync::Statement,
    ) -> bool {
        let copy =
            self.agent_of(statement.author).and_then(|agent| conflict_copy(path, agent, dot(statement)));
        // A name that cannot be made: the archive has to do.
        copy.is_none_or(|copy| self.row(index, &copy).is_some_and(|row| !row.statements.is_empty()))
    }
}
