//! What was put into the index and is not yet known to be durable, with the ways in which it is found.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use sync_core::merkle::Hash;
use sync_core::sync::{Row, Work};

/// Rows by path; none: forgotten.
pub(super) type Rows = Vec<(Vec<u8>, Option<Arc<Row>>)>;

/// Pieces of the machine's state.
pub(super) type States = Vec<(Vec<u8>, Vec<u8>)>;

/// See the module. Whatever is in here hides what is stored under the same path.
#[derive(Default)]
pub(super) struct Overlay {
    rows: BTreeMap<Vec<u8>, Put>,
    sequences: BTreeMap<u64, Vec<u8>>,
    /// Apart for each kind: what is last of one is found without passing over what is of others.
    work: BTreeMap<Work, BTreeSet<Vec<u8>>>,
    roots: BTreeSet<(Hash, Vec<u8>)>,
    folds: BTreeSet<(Vec<u8>, Vec<u8>)>,
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    /// When each piece of state was put.
    state_put: BTreeMap<Vec<u8>, u64>,
    /// Of the next put.
    generation: u64,
}

struct Put {
    /// None: forgotten.
    row: Option<Arc<Row>>,
    fold: Option<Vec<u8>>,
    generation: u64,
}

impl Overlay {
    /// Rows in here.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether what is stored of a path does not count.
    pub(super) fn has(&self, path: &[u8]) -> bool {
        self.rows.contains_key(path)
    }

    /// What is in here of a path: perhaps that it was forgotten.
    pub(super) fn row(&self, path: &[u8]) -> Option<Option<&Arc<Row>>> {
        self.rows.get(path).map(|put| put.row.as_ref())
    }

    /// The next row by path.
    pub(super) fn next(&self, after: &[u8]) -> Option<&Arc<Row>> {
        self.rows.range::<[u8], _>((Excluded(after), Unbounded)).find_map(|(_, put)| put.row.as_ref())
    }

    /// The next row by sequence.
    pub(super) fn next_told(&self, after: u64) -> Option<&Arc<Row>> {
        let (_, path) = self.sequences.range(after.saturating_add(1)..).next()?;
        self.rows.get(path)?.row.as_ref()
    }

    /// The next path with this work.
    pub(super) fn next_work(&self, work: Work, after: Option<&[u8]>) -> Option<Vec<u8>> {
        let from = after.map_or(Unbounded, Excluded);
        self.work.get(&work)?.range::<[u8], _>((from, Unbounded)).next().cloned()
    }

    /// The previous path with this work.
    pub(super) fn previous_work(&self, work: Work, before: Option<&[u8]>) -> Option<Vec<u8>> {
        let to = before.map_or(Unbounded, Excluded);
        self.work.get(&work)?.range::<[u8], _>((Unbounded, to)).next_back().cloned()
    }

    /// A path with this content.
    pub(super) fn with_root(&self, root: &Hash) -> Option<Vec<u8>> {
        let next = self.roots.range((*root, Vec::new())..).next().filter(|(r, _)| r == root);
        next.map(|(_, path)| path.clone())
    }

    /// A path that folds to this.
    pub(super) fn with_fold(&self, fold: &[u8]) -> Option<Vec<u8>> {
        let next = self.folds.range((fold.to_vec(), Vec::new())..).next().filter(|(f, _)| f == fold);
        next.map(|(_, path)| path.clone())
    }

    /// Something of the machine's state.
    pub(super) fn state(&self, key: &[u8]) -> Option<&[u8]> {
        self.state.get(key).map(Vec::as_slice)
    }

    /// All of it.
    pub(super) fn states(&self) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
        self.state.iter()
    }

    /// A row, or that a path is forgotten; `fold`: what it is found by if something is on disk.
    pub(super) fn put(&mut self, path: Vec<u8>, row: Option<Arc<Row>>, fold: Option<Vec<u8>>) {
        self.take(&path);
        if let Some(row) = &row {
            if row.sequence > 0 {
                self.sequences.insert(row.sequence, path.clone());
            }
            if row.work != Work::None {
                self.work.entry(row.work).or_default().insert(path.clone());
            }
            if let Some(root) = row.root() {
                self.roots.insert((root, path.clone()));
            }
            if let Some(fold) = &fold {
                self.folds.insert((fold.clone(), path.clone()));
            }
        }
        self.rows.insert(path, Put { row, fold, generation: self.generation });
    }

    /// Something of the machine's state.
    pub(super) fn put_state(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.state_put.insert(key.clone(), self.generation);
        self.state.insert(key, value);
    }

    fn take(&mut self, path: &[u8]) {
        let Some(Put { row, fold, .. }) = self.rows.remove(path) else { return };
        let Some(row) = row else { return };
        if self.sequences.get(&row.sequence).is_some_and(|at| at == path) {
            self.sequences.remove(&row.sequence);
        }
        if let Some(paths) = self.work.get_mut(&row.work) {
            paths.remove(path);
        }
        if let Some(root) = row.root() {
            self.roots.remove(&(root, path.to_vec()));
        }
        if let Some(fold) = fold {
            self.folds.remove(&(fold, path.to_vec()));
        }
    }

    /// Everything put so far that no commit has covered, and its number for [`Self::committed`].
    pub(super) fn uncommitted(&mut self) -> (u64, Rows, States) {
        let generation = self.generation;
        self.generation += 1;
        let rows = self.rows.iter().map(|(path, put)| (path.clone(), put.row.clone())).collect();
        let state = self.state.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        (generation, rows, state)
    }

    /// What was put up to then is stored.
    pub(super) fn committed(&mut self, generation: u64) {
        let stored: Vec<Vec<u8>> = self
            .rows
            .iter()
            .filter(|(_, put)| put.generation <= generation)
            .map(|(path, _)| path.clone())
            .collect();
        for path in stored {
            self.take(&path);
        }
        self.state_put.retain(|_, put| *put > generation);
        self.state.retain(|key, _| self.state_put.contains_key(key));
    }
}
