//! An index in memory that loses, in a crash, what was put and not synced.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use event_schema::AgentId;
use sync_core::merkle::Hash;
use sync_core::sync::{Batch, Disk, Index, Row, Work};

use super::fs::fold;

#[derive(Clone, Default)]
pub(crate) struct Tables {
    pub(crate) rows: BTreeMap<Vec<u8>, Row>,
    sequences: BTreeMap<u64, Vec<u8>>,
    work: BTreeMap<Work, BTreeSet<Vec<u8>>>,
    roots: BTreeSet<(Hash, Vec<u8>)>,
    folds: BTreeSet<(Vec<u8>, Vec<u8>)>,
    meta: Option<Vec<u8>>,
    members: BTreeMap<AgentId, Vec<u8>>,
}

impl Tables {
    fn take_out(&mut self, path: &[u8]) {
        if let Some(row) = self.rows.remove(path) {
            self.sequences.remove(&row.sequence);
            if let Some(paths) = self.work.get_mut(&row.work) {
                paths.remove(path);
            }
            self.folds.remove(&(fold(path), row.path.clone()));
            if let Some(root) = row.root() {
                self.roots.remove(&(root, row.path));
            }
        }
    }

    fn apply(&mut self, batch: &Batch) {
        for row in &batch.rows {
            self.take_out(&row.path);
            if row.sequence > 0 {
                let taken = self.sequences.insert(row.sequence, row.path.clone());
                assert_eq!(taken, None, "a sequence for two paths");
            }
            if row.work != Work::None {
                self.work.entry(row.work).or_default().insert(row.path.clone());
            }
            if row.disk != Disk::Absent {
                self.folds.insert((fold(&row.path), row.path.clone()));
            }
            if let Some(root) = row.root() {
                self.roots.insert((root, row.path.clone()));
            }
            self.rows.insert(row.path.clone(), row.clone());
        }
        batch.forgotten.iter().for_each(|path| self.take_out(path));
        if let Some(meta) = &batch.meta {
            self.meta = Some(meta.clone());
        }
        self.members.extend(batch.members.iter().cloned());
    }
}

#[derive(Clone, Default)]
pub(crate) struct SimIndex {
    pub(crate) live: Tables,
    pub(crate) durable: Tables,
    pending: VecDeque<Batch>,
    /// Batches ever put.
    pub(crate) puts: u64,
    pub(crate) rows_put: u64,
}

impl SimIndex {
    /// Everything put before `puts` reaches the disk.
    pub(crate) fn sync(&mut self, puts: u64) {
        while self.puts - (self.pending.len() as u64) < puts
            && let Some(batch) = self.pending.pop_front()
        {
            self.durable.apply(&batch);
        }
    }

    /// Keeps `lucky` of what was not synced.
    pub(crate) fn crash(&mut self, lucky: usize) {
        for batch in self.pending.drain(..).take(lucky) {
            self.durable.apply(&batch);
        }
        self.pending.clear();
        // Through the stored form, as after a real restart.
        for row in self.durable.rows.values_mut() {
            *row = Row::decode(&row.encode()).expect("as stored");
        }
        self.live = self.durable.clone();
    }

    pub(crate) fn restore(&mut self, backup: &Tables) {
        self.pending.clear();
        self.durable = backup.clone();
        self.live = backup.clone();
    }
}

impl Index for SimIndex {
    fn row(&self, path: &[u8]) -> Option<Row> {
        self.live.rows.get(path).cloned()
    }

    fn next(&self, after: &[u8]) -> Option<Row> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.live.rows.range::<[u8], _>((Excluded(after), Unbounded)).next().map(|(_, row)| row.clone())
    }

    fn next_told(&self, after: u64) -> Option<Row> {
        self.live.sequences.range(after + 1..).next().and_then(|(_, path)| self.row(path))
    }

    fn next_work(&self, work: Work, after: Option<&[u8]>) -> Option<Vec<u8>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.live.work.get(&work)?.range::<[u8], _>((from, Unbounded)).next().cloned()
    }

    fn previous_work(&self, work: Work, before: Option<&[u8]>) -> Option<Vec<u8>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let to = before.map_or(Unbounded, Excluded);
        self.live.work.get(&work)?.range::<[u8], _>((Unbounded, to)).next_back().cloned()
    }

    fn with_root(&self, root: &Hash) -> Option<Vec<u8>> {
        self.live
            .roots
            .range((*root, Vec::new())..)
            .next()
            .filter(|(r, _)| r == root)
            .map(|(_, path)| path.clone())
    }

    fn with_fold(&self, folded: &[u8]) -> Option<Vec<u8>> {
        let from = (folded.to_vec(), Vec::new());
        self.live.folds.range(from..).next().filter(|(f, _)| f == folded).map(|(_, path)| path.clone())
    }

    fn meta(&self) -> Option<Vec<u8>> {
        self.live.meta.clone()
    }

    fn members(&self) -> Vec<(AgentId, Vec<u8>)> {
        self.live.members.iter().map(|(agent, bytes)| (*agent, bytes.clone())).collect()
    }

    fn put(&mut self, batch: Batch) {
        self.puts += 1;
        self.rows_put += batch.rows.len() as u64;
        self.live.apply(&batch);
        self.pending.push_back(batch);
    }
}
