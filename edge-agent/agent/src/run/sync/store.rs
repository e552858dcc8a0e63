//! The durable index of one synchronization job (SYNC.md §8), over redb.
//!
//! What the machine puts is seen by its next read and lies in memory ([`overlay::Overlay`]) until a commit that began
//! after it has ended. A thread commits, one commit at a time, each durable; so puts reach the disk whole and in order,
//! and the machine never waits for the disk to sync. What fails is latched: nothing more is committed and no commit is
//! ever told to be done, as `sync_core::sync::Index` demands.

use std::cell::RefCell;
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::path::Path;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;

use agent_proto::sync::Value;
use event_schema::AgentId;
use redb::{
    Database, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
};
use sync_core::merkle::Hash;
use sync_core::sync::{Batch, Disk, Index, Row, Work, conflict_copy_of};

use super::overlay::{self, Overlay, States};

/// Rows by path.
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
/// Paths by sequence.
const SEQUENCES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("sequences");
/// Paths by what they wait for, a table for each kind.
const WORK: [TableDefinition<'_, &[u8], ()>; 5] = [
    TableDefinition::new("pull"),
    TableDefinition::new("remove"),
    TableDefinition::new("missing"),
    TableDefinition::new("tombstones"),
    TableDefinition::new("blocked"),
];
/// Content roots, each with a path behind it.
const ROOTS: TableDefinition<'_, &[u8], ()> = TableDefinition::new("roots");
/// Folded names, a NUL and a path behind each.
const FOLDS: TableDefinition<'_, &[u8], ()> = TableDefinition::new("folds");
/// Conflict copies that are here.
const COPIES: TableDefinition<'_, &[u8], ()> = TableDefinition::new("copies");
/// The machine's own state under [`META`], members' under their ids, the format's version under [`FORMAT`].
const STATE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("state");

const META: &[u8] = b"meta";
const FORMAT: &[u8] = b"format";

/// Version of the tables.
const VERSION: u8 = 1;

/// Cache of the database, bytes: the upper levels of the trees of some million rows.
const CACHE: usize = 8 << 20;

/// Rows whose bytes are added up for people.
const COUNTED: usize = 1000;

/// Paths that a list for people shows.
const LISTED: usize = 100;

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("the index: {0}")]
    Database(Box<redb::Error>),
    #[error("the index is damaged: {0}")]
    Damaged(&'static str),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

impl StoreError {
    /// Whether beginning anew is all that is left: what lies there cannot be read.
    fn is_damage(&self) -> bool {
        match self {
            Self::Damaged(_) => true,
            Self::Database(error) => match &**error {
                redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) => true,
                redb::Error::Io(e) => {
                    matches!(e.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
                }
                _ => false,
            },
        }
    }
}

/// The form in which the file system takes names for the same; none if it is the name itself.
pub(super) type Fold = Arc<dyn Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync>;

/// What is to be made durable together.
struct Commit {
    rows: overlay::Rows,
    state: States,
}

/// How many rows wait for what, as of the last commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    /// To be brought.
    pub(super) pull: u64,
    /// To be removed.
    pub(super) remove: u64,
    /// Gone and not yet believed to be.
    pub(super) missing: u64,
    /// Deletions that are remembered.
    pub(super) tombstones: u64,
    /// What cannot be here.
    pub(super) blocked: u64,
    /// Conflict copies that are here.
    pub(super) copies: u64,
}

/// The index.
pub(super) struct Store {
    database: Arc<Database>,
    tables: Tables,
    fold: Fold,
    overlay: Overlay,
    /// From either end of what is stored of each work.
    edges: RefCell<[[Edge; 2]; WORK.len()]>,
    #[cfg(test)]
    passed_over: std::cell::Cell<usize>,
    /// Of the puts that are being committed.
    committing: Option<u64>,
    commits: mpsc::Sender<Commit>,
    writer: Option<JoinHandle<()>>,
    failed: OnceLock<String>,
}

/// What of a table counts first, seen from one end, since the overlay hides what is before. It hides ever more until the
/// next commit, so that nobody has to pass over the same again: each look for work begins at the end.
#[derive(Clone, Default)]
enum Edge {
    /// Nobody looked since the last commit.
    #[default]
    Unknown,
    /// Nothing that is farther out counts.
    At(Vec<u8>),
    /// Nothing of it counts.
    Nothing,
}

/// In which way a table is walked.
#[derive(Clone, Copy)]
enum Way {
    Up,
    Down,
}

/// What was last committed.
struct Tables {
    rows: ReadOnlyTable<&'static [u8], &'static [u8]>,
    sequences: ReadOnlyTable<u64, &'static [u8]>,
    work: [ReadOnlyTable<&'static [u8], ()>; 5],
    roots: ReadOnlyTable<&'static [u8], ()>,
    folds: ReadOnlyTable<&'static [u8], ()>,
    copies: ReadOnlyTable<&'static [u8], ()>,
    state: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl Tables {
    fn open(database: &Database) -> Result<Self, StoreError> {
        let tx = database.begin_read()?;
        let [a, b, c, d, e] = WORK;
        Ok(Self {
            rows: tx.open_table(ROWS)?,
            sequences: tx.open_table(SEQUENCES)?,
            work: [
                tx.open_table(a)?,
                tx.open_table(b)?,
                tx.open_table(c)?,
                tx.open_table(d)?,
                tx.open_table(e)?,
            ],
            roots: tx.open_table(ROOTS)?,
            folds: tx.open_table(FOLDS)?,
            copies: tx.open_table(COPIES)?,
            state: tx.open_table(STATE)?,
        })
    }
}

/// Reads the rows as they were last committed, from any thread.
#[derive(Clone)]
pub(super) struct Reader(Arc<Database>);

impl Reader {
    /// The rows as of now.
    pub(super) fn rows(&self) -> Result<Rows, StoreError> {
        Ok(Rows(self.0.begin_read()?.open_table(ROWS)?))
    }
}

/// Paths of what is on disk, and the last path that was looked at if there may be more.
pub(super) type OnDisk = (Vec<Vec<u8>>, Option<Vec<u8>>);

/// An unchanging picture of the rows.
pub(super) struct Rows(ReadOnlyTable<&'static [u8], &'static [u8]>);

impl Rows {
    /// The row of a path.
    pub(super) fn row(&self, path: &[u8]) -> Result<Option<Row>, StoreError> {
        self.0.get(path)?.map(|bytes| decode(bytes.value())).transpose()
    }

    /// Paths of what is on disk by these rows, from a path on, below a prefix; at most `count`.
    pub(super) fn on_disk(&self, after: &[u8], prefix: &[u8], count: usize) -> Result<OnDisk, StoreError> {
        let mut paths = Vec::new();
        let mut last = None;
        for item in self.0.range::<&[u8]>((Excluded(after), Unbounded))?.take(count) {
            let (path, bytes) = item?;
            if !path.value().starts_with(prefix) {
                return Ok((paths, None));
            }
            last = Some(path.value().to_vec());
            if decode(bytes.value())?.disk != Disk::Absent {
                paths.push(path.value().to_vec());
            }
        }
        Ok((paths, last))
    }
}

fn decode(bytes: &[u8]) -> Result<Row, StoreError> {
    Row::decode(bytes).map_err(|_| StoreError::Damaged("a row"))
}

fn work_table(work: Work) -> Option<usize> {
    match work {
        Work::None => None,
        Work::Pull => Some(0),
        Work::Remove => Some(1),
        Work::Missing => Some(2),
        Work::Tombstone => Some(3),
        Work::Blocked => Some(4),
    }
}

/// By what a row is found, beside its path.
#[derive(Default, PartialEq)]
struct Keys {
    sequence: u64,
    work: Option<usize>,
    root: Option<Vec<u8>>,
    fold: Option<Vec<u8>>,
    copy: bool,
}

impl Keys {
    fn of(row: &Row, fold: &Fold) -> Self {
        let fold = (row.disk != Disk::Absent).then(|| fold(&row.path)).flatten();
        Self {
            sequence: row.sequence,
            work: work_table(row.work),
            root: row.root().map(|root| root_key(&root, &row.path)),
            fold: fold.map(|fold| fold_key(&fold, &row.path)),
            copy: row.present().is_some() && conflict_copy_of(&row.path).is_some(),
        }
    }
}

fn root_key(root: &Hash, path: &[u8]) -> Vec<u8> {
    [root, path].concat()
}

/// Paths hold no NUL.
fn fold_key(fold: &[u8], path: &[u8]) -> Vec<u8> {
    [fold, b"\0", path].concat()
}

impl Store {
    /// Opens the index in a file, or begins one; says whether it is new. One that cannot be read is put aside: the member
    /// counts as a new replica then (SYNC.md §8). `done` is called, by a thread, with the outcome of each commit.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub(super) fn open(
        path: &Path,
        fold: Fold,
        done: impl Fn(Result<(), String>) + Send + 'static,
    ) -> Result<(Self, bool), StoreError> {
        let (database, new) = match Self::open_database(path) {
            Err(error) if error.is_damage() => {
                tracing::error!(path = %path.display(), %error, "an index is put aside; this member begins anew");
                std::fs::rename(path, path.with_extension("damaged"))?;
                Self::open_database(path)?
            }
            other => other?,
        };
        let database = Arc::new(database);
        let tables = Tables::open(&database)?;
        let (commits, queue) = mpsc::channel::<Commit>();
        let (of_writer, folds) = (database.clone(), fold.clone());
        let writer = std::thread::Builder::new().name("sync index".into()).spawn(move || {
            while let Ok(commit) = queue.recv() {
                let result = write(&of_writer, &folds, commit).map_err(|error| error.to_string());
                let failed = result.is_err();
                done(result);
                if failed {
                    return;
                }
            }
        })?;
        let store = Self {
            database,
            tables,
            fold,
            overlay: Overlay::default(),
            edges: RefCell::default(),
            #[cfg(test)]
            passed_over: std::cell::Cell::default(),
            committing: None,
            commits,
            writer: Some(writer),
            failed: OnceLock::new(),
        };
        Ok((store, new))
    }

    fn open_database(path: &Path) -> Result<(Database, bool), StoreError> {
        let database = Database::builder().set_cache_size(CACHE).create(path)?;
        let tx = database.begin_write()?;
        let new = {
            let mut state = tx.open_table(STATE)?;
            let format = state.get(FORMAT)?.map(|bytes| bytes.value().to_vec());
            match format.as_deref() {
                None => drop(state.insert(FORMAT, [VERSION].as_slice())?),
                Some([VERSION]) => {}
                Some(_) => return Err(StoreError::Damaged("written by another release")),
            }
            tx.open_table(ROWS)?;
            tx.open_table(SEQUENCES)?;
            tx.open_table(ROOTS)?;
            tx.open_table(FOLDS)?;
            tx.open_table(COPIES)?;
            for table in WORK {
                tx.open_table(table)?;
            }
            format.is_none()
        };
        tx.commit()?;
        Ok((database, new))
    }

    /// To read the rows with on other threads.
    pub(super) fn reader(&self) -> Reader {
        Reader(self.database.clone())
    }

    /// Rows that are in memory only.
    pub(super) fn unsaved(&self) -> usize {
        self.overlay.len()
    }

    /// Begins to make everything put so far durable; one at a time.
    pub(super) fn commit(&mut self) {
        if self.committing.is_some() || self.failed.get().is_some() {
            return;
        }
        let (generation, rows, state) = self.overlay.uncommitted();
        self.committing = Some(generation);
        if self.commits.send(Commit { rows, state }).is_err() {
            self.latch("the thread that writes is gone".into());
        }
    }

    /// A commit has ended.
    ///
    /// # Errors
    /// Why nothing more will ever be durable.
    pub(super) fn committed(&mut self, result: Result<(), String>) -> Result<(), String> {
        let generation = self.committing.take();
        match result.and_then(|()| Tables::open(&self.database).map_err(|e| e.to_string())) {
            Ok(tables) => {
                self.tables = tables;
                self.edges = RefCell::default();
                if let Some(generation) = generation {
                    self.overlay.committed(generation);
                }
                self.failed.get().map_or(Ok(()), |why| Err(why.clone()))
            }
            Err(why) => {
                self.latch(why.clone());
                Err(why)
            }
        }
    }

    /// Why it cannot be read or written any more.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    fn latch(&self, why: String) {
        tracing::error!(%why, "the index of a synchronization job fails");
        let _ = self.failed.set(why);
    }

    /// The result of a read; what fails is latched.
    fn read<T: Default>(&self, result: Result<T, StoreError>) -> T {
        result.unwrap_or_else(|error| {
            self.latch(error.to_string());
            T::default()
        })
    }

    /// How many rows wait for what, as of the last commit.
    pub(super) fn waiting(&self) -> Waiting {
        let count = |table: &ReadOnlyTable<&'static [u8], ()>| table.len().unwrap_or(0);
        let [pull, remove, missing, tombstones, blocked] = &self.tables.work;
        Waiting {
            pull: count(pull),
            remove: count(remove),
            missing: count(missing),
            tombstones: count(tombstones),
            blocked: count(blocked),
            copies: count(&self.tables.copies),
        }
    }

    /// Content bytes of what is to be brought; of the first [`COUNTED`] rows.
    pub(super) fn bytes_left(&self) -> u64 {
        let read = || -> Result<u64, StoreError> {
            let mut bytes = 0;
            for item in self.tables.work[0].range::<&[u8]>(..)?.take(COUNTED) {
                let row =
                    self.tables.rows.get(item?.0.value())?.map(|row| decode(row.value())).transpose()?;
                if let Some(Value::File { size, .. }) = row.as_ref().and_then(Row::winner).map(|w| &w.value) {
                    bytes += size;
                }
            }
            Ok(bytes)
        };
        self.read(read())
    }

    /// Some of the conflict copies that are here.
    pub(super) fn copies(&self) -> Vec<Vec<u8>> {
        let read = || -> Result<Vec<Vec<u8>>, StoreError> {
            let keys = self.tables.copies.range::<&[u8]>(..)?.take(LISTED);
            keys.map(|item| Ok(item?.0.value().to_vec())).collect()
        };
        self.read(read())
    }

    /// The next path with this work of those that are stored and not in the overlay.
    fn stored_work(&self, work: usize, past: Option<&[u8]>, way: Way) -> Result<Option<Vec<u8>>, StoreError> {
        let mut edges = self.edges.borrow_mut();
        let edge = &mut edges[work][way as usize];
        let is_past = |path: &[u8], edge: &[u8]| match way {
            Way::Up => path >= edge,
            Way::Down => path <= edge,
        };
        let (from, at_edge): (Bound<&[u8]>, bool) = match (past, &*edge) {
            (_, Edge::Nothing) => return Ok(None),
            (Some(path), Edge::Unknown) => (Excluded(path), false),
            (Some(path), Edge::At(at)) if is_past(path, at) => (Excluded(path), false),
            (_, Edge::At(at)) => (Included(at.as_slice()), true),
            (None, Edge::Unknown) => (Unbounded, true),
        };
        let range = match way {
            Way::Up => (from, Unbounded),
            Way::Down => (Unbounded, from),
        };
        let mut range = self.tables.work[work].range::<&[u8]>(range)?;
        let mut found = None;
        while let Some(item) = match way {
            Way::Up => range.next(),
            Way::Down => range.next_back(),
        } {
            let item = item?;
            let path = item.0.value();
            if !self.overlay.has(path) {
                found = Some(path.to_vec());
                break;
            }
            #[cfg(test)]
            self.passed_over.set(self.passed_over.get() + 1);
        }
        if at_edge {
            *edge = found.clone().map_or(Edge::Nothing, Edge::At);
        }
        Ok(found)
    }

    /// The first path behind a prefix in a table whose keys are prefix and path, of those that are not in the overlay.
    fn behind(
        &self,
        table: &ReadOnlyTable<&'static [u8], ()>,
        prefix: &[u8],
    ) -> Result<Option<Vec<u8>>, StoreError> {
        for item in table.range::<&[u8]>((Included(prefix), Unbounded))? {
            let item = item?;
            let Some(path) = item.0.value().strip_prefix(prefix) else { return Ok(None) };
            if !self.overlay.has(path) {
                return Ok(Some(path.to_vec()));
            }
        }
        Ok(None)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The thread ends with the sender.
        self.commits = mpsc::channel().0;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// One transaction.
fn write(database: &Database, fold: &Fold, commit: Commit) -> Result<(), StoreError> {
    let mut tx = database.begin_write()?;
    // So that opening after a crash does not have to read all of the file.
    tx.set_quick_repair(true);
    {
        let mut rows = tx.open_table(ROWS)?;
        let mut sequences = tx.open_table(SEQUENCES)?;
        let mut roots = tx.open_table(ROOTS)?;
        let mut folds = tx.open_table(FOLDS)?;
        let mut copies = tx.open_table(COPIES)?;
        let mut work = Vec::with_capacity(WORK.len());
        for table in WORK {
            work.push(tx.open_table(table)?);
        }
        for (path, row) in &commit.rows {
            let path = path.as_slice();
            let old = match row {
                Some(row) => rows.insert(path, row.encode().as_slice())?,
                None => rows.remove(path)?,
            };
            let old = old.map(|bytes| decode(bytes.value())).transpose()?;
            let before = old.map(|old| Keys::of(&old, fold)).unwrap_or_default();
            let after = row.as_ref().map(|row| Keys::of(row, fold)).unwrap_or_default();
            if before.sequence != after.sequence {
                if before.sequence != 0 {
                    sequences.remove(before.sequence)?;
                }
                if after.sequence != 0 {
                    sequences.insert(after.sequence, path)?;
                }
            }
            if before.work != after.work {
                if let Some(old) = before.work {
                    work[old].remove(path)?;
                }
                if let Some(new) = after.work {
                    work[new].insert(path, ())?;
                }
            }
            for (table, before, after) in
                [(&mut roots, before.root, after.root), (&mut folds, before.fold, after.fold)]
            {
                if before != after {
                    if let Some(old) = before {
                        table.remove(old.as_slice())?;
                    }
                    if let Some(new) = after {
                        table.insert(new.as_slice(), ())?;
                    }
                }
            }
            match (before.copy, after.copy) {
                (false, true) => drop(copies.insert(path, ())?),
                (true, false) => drop(copies.remove(path)?),
                _ => {}
            }
        }
        let mut state = tx.open_table(STATE)?;
        for (key, value) in &commit.state {
            state.insert(key.as_slice(), value.as_slice())?;
        }
    }
    tx.commit()?;
    Ok(())
}

impl Index for Store {
    fn row(&self, path: &[u8]) -> Option<Row> {
        if let Some(row) = self.overlay.row(path) {
            return row.map(|row| Row::clone(row));
        }
        let read = || -> Result<Option<Row>, StoreError> {
            self.tables.rows.get(path)?.map(|bytes| decode(bytes.value())).transpose()
        };
        self.read(read())
    }

    fn next(&self, after: &[u8]) -> Option<Row> {
        let stored = || -> Result<Option<Row>, StoreError> {
            for item in self.tables.rows.range::<&[u8]>((Excluded(after), Unbounded))? {
                let (path, bytes) = item?;
                if !self.overlay.has(path.value()) {
                    return decode(bytes.value()).map(Some);
                }
            }
            Ok(None)
        };
        let stored = self.read(stored());
        match (self.overlay.next(after), stored) {
            (Some(new), Some(old)) if old.path < new.path => Some(old),
            (Some(new), _) => Some(Row::clone(new)),
            (None, old) => old,
        }
    }

    fn next_told(&self, after: u64) -> Option<Row> {
        let stored = || -> Result<Option<(u64, Vec<u8>)>, StoreError> {
            for item in self.tables.sequences.range(after.saturating_add(1)..)? {
                let (sequence, path) = item?;
                if !self.overlay.has(path.value()) {
                    return Ok(Some((sequence.value(), path.value().to_vec())));
                }
            }
            Ok(None)
        };
        let stored = self.read(stored());
        match (self.overlay.next_told(after), stored) {
            (Some(new), Some((sequence, path))) if sequence < new.sequence => self.row(&path),
            (Some(new), _) => Some(Row::clone(new)),
            (None, old) => self.row(&old?.1),
        }
    }

    fn next_work(&self, work: Work, after: Option<&[u8]>) -> Option<Vec<u8>> {
        let stored = self.read(self.stored_work(work_table(work)?, after, Way::Up));
        let new = self.overlay.next_work(work, after);
        match (new, stored) {
            (Some(new), Some(old)) => Some(new.min(old)),
            (new, old) => new.or(old),
        }
    }

    fn previous_work(&self, work: Work, before: Option<&[u8]>) -> Option<Vec<u8>> {
        let stored = self.read(self.stored_work(work_table(work)?, before, Way::Down));
        let new = self.overlay.previous_work(work, before);
        match (new, stored) {
            (Some(new), Some(old)) => Some(new.max(old)),
            (new, old) => new.or(old),
        }
    }

    fn with_root(&self, root: &Hash) -> Option<Vec<u8>> {
        self.overlay.with_root(root).or_else(|| self.read(self.behind(&self.tables.roots, root)))
    }

    fn with_fold(&self, fold: &[u8]) -> Option<Vec<u8>> {
        let stored = || self.read(self.behind(&self.tables.folds, &fold_key(fold, b"")));
        self.overlay.with_fold(fold).or_else(stored)
    }

    fn meta(&self) -> Option<Vec<u8>> {
        if let Some(bytes) = self.overlay.state(META) {
            return Some(bytes.to_vec());
        }
        self.read(
            self.tables.state.get(META).map(|found| found.map(|b| b.value().to_vec())).map_err(Into::into),
        )
    }

    fn members(&self) -> Vec<(AgentId, Vec<u8>)> {
        let stored = || -> Result<States, StoreError> {
            let all = self.tables.state.range::<&[u8]>(..)?;
            all.map(|item| item.map(|(k, v)| (k.value().to_vec(), v.value().to_vec())))
                .collect::<Result<_, _>>()
                .map_err(Into::into)
        };
        let mut all: std::collections::BTreeMap<_, _> = self.read(stored()).into_iter().collect();
        all.extend(self.overlay.states().map(|(key, value)| (key.clone(), value.clone())));
        let member = |(key, value): (Vec<u8>, Vec<u8>)| Some((AgentId(key.try_into().ok()?), value));
        all.into_iter().filter_map(member).collect()
    }

    fn put(&mut self, batch: Batch) {
        if self.failed.get().is_some() {
            return;
        }
        let Batch { rows, forgotten, meta, members } = batch;
        for path in forgotten {
            self.overlay.put(path, None, None);
        }
        for row in rows {
            let fold = (row.disk != Disk::Absent).then(|| (self.fold)(&row.path)).flatten();
            self.overlay.put(row.path.clone(), Some(Arc::new(row)), fold);
        }
        if let Some(meta) = meta {
            self.overlay.put_state(META.to_vec(), meta);
        }
        for (agent, bytes) in members {
            self.overlay.put_state(agent.0.to_vec(), bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_proto::sync::{Dot, ReplicaId};
    use sync_core::sync::{OnDisk, Stamp};

    fn row(path: &[u8], sequence: u64, work: Work, root: Option<u8>) -> Row {
        let on_disk = |root| OnDisk {
            value: Value::File { size: 1, root: [root; 32], meta: Vec::new() },
            stamp: Stamp::default(),
            dot: Some(Dot { replica: ReplicaId([1; 8]), counter: 1 }),
        };
        Row {
            path: path.to_vec(),
            statements: Vec::new(),
            disk: root.map_or(Disk::Absent, |root| Disk::Present(on_disk(root))),
            context: Vec::new(),
            depth: 0,
            holders: Vec::new(),
            sequence,
            work,
        }
    }

    /// The same, as a map has it.
    #[derive(Default)]
    struct Model(std::collections::BTreeMap<Vec<u8>, Row>);

    impl Model {
        fn check(&self, store: &Store, folds: bool) {
            let rows: Vec<&Row> = self.0.values().collect();
            let mut after = Vec::new();
            for row in &rows {
                let next = store.next(&after).expect("there");
                assert_eq!(next, **row);
                after = next.path;
            }
            assert_eq!(store.next(&after), None);
            let mut told: Vec<&Row> = rows.iter().copied().filter(|r| r.sequence > 0).collect();
            told.sort_by_key(|r| r.sequence);
            let mut at = 0;
            for row in told {
                assert_eq!(store.next_told(at).as_ref(), Some(row));
                at = row.sequence;
            }
            assert_eq!(store.next_told(at), None);
            for work in [Work::Pull, Work::Remove, Work::Missing, Work::Tombstone, Work::Blocked] {
                let of: Vec<&[u8]> = rows.iter().filter(|r| r.work == work).map(|r| &r.path[..]).collect();
                let (mut up, mut down) = (None, None);
                for (first, last) in of.iter().zip(of.iter().rev()) {
                    up = store.next_work(work, up.as_deref());
                    down = store.previous_work(work, down.as_deref());
                    assert_eq!((up.as_deref(), down.as_deref()), (Some(*first), Some(*last)));
                }
                assert_eq!(store.next_work(work, up.as_deref()), None);
                assert_eq!(store.previous_work(work, down.as_deref()).filter(|_| down.is_some()), None);
            }
            for root in 0..8 {
                let found = store.with_root(&[root; 32]);
                let right = |path: &Vec<u8>| self.0.get(path).and_then(Row::root) == Some([root; 32]);
                let any = rows.iter().any(|r| r.root() == Some([root; 32]));
                assert_eq!(found.as_ref().map(right), any.then_some(true));
            }
            for row in rows.iter().filter(|r| folds && r.disk != Disk::Absent) {
                let fold = row.path.to_ascii_lowercase();
                let found = store.with_fold(&fold).expect("it is there");
                assert_eq!(found.to_ascii_lowercase(), fold);
            }
        }
    }

    #[test]
    fn it_is_a_map_whatever_is_committed_and_comes_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("index.redb");
        let fold: Fold = Arc::new(|path: &[u8]| Some(path.to_ascii_lowercase()));
        let (told, outcomes) = mpsc::channel();
        let open = || {
            let told = told.clone();
            Store::open(&path, fold.clone(), move |done| told.send(done).expect("heard")).expect("opened")
        };
        let (mut store, new) = open();
        assert!(new);
        let mut model = Model::default();
        let mut seed = 7u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let works = [Work::None, Work::Pull, Work::Remove, Work::Missing, Work::Tombstone, Work::Blocked];
        for step in 1..600u64 {
            let mut batch = Batch { meta: Some(step.to_le_bytes().to_vec()), ..Batch::default() };
            for i in 0..1 + random(4) {
                let name = format!("{}{}", ["a", "A", "b/"][random(3) as usize], random(20)).into_bytes();
                if random(5) == 0 {
                    model.0.remove(&name);
                    batch.rows.retain(|r| r.path != name);
                    batch.forgotten.push(name);
                } else {
                    let root = (random(3) > 0).then(|| random(8) as u8);
                    let new = row(&name, step * 8 + i, works[random(6) as usize], root);
                    model.0.insert(name.clone(), new.clone());
                    batch.forgotten.retain(|path| *path != name);
                    batch.rows.retain(|r| r.path != name);
                    batch.rows.push(new);
                }
            }
            store.put(batch);
            // Some puts while a commit is under way.
            match random(12) {
                0 => store.commit(),
                1 if store.committing.is_some() => {
                    store.committed(outcomes.recv().expect("told")).expect("committed");
                }
                _ => {}
            }
            if step % 23 == 0 {
                model.check(&store, true);
            }
            if step % 200 == 0 {
                for _ in 0..2 {
                    store.commit();
                    store.committed(outcomes.recv().expect("told")).expect("committed");
                }
                drop(store);
                let (again, new) = open();
                assert!(!new);
                store = again;
                assert_eq!((store.unsaved(), store.meta()), (0, Some(step.to_le_bytes().to_vec())));
                model.check(&store, true);
                let pulls = model.0.values().filter(|r| r.work == Work::Pull).count() as u64;
                assert_eq!(store.waiting().pull, pulls);
            }
        }
    }

    /// Whoever works a list off begins at its end each time, and what was done is hidden until the next commit.
    #[test]
    fn work_that_is_done_is_passed_over_once() {
        const ROWS: usize = 2000;
        let dir = tempfile::tempdir().expect("a folder");
        let (told, outcomes) = mpsc::channel();
        let done = move |done| drop(told.send(done));
        let opened = Store::open(&dir.path().join("index.redb"), Arc::new(|_: &[u8]| None), done);
        let (mut store, _) = opened.expect("opened");
        for work in [Work::Pull, Work::Remove] {
            let name = |i: usize| format!("{work:?} {i:04}").into_bytes();
            let first = work as u64 * 10_000;
            let rows = (0..ROWS).map(|i| row(&name(i), first + i as u64, work, None)).collect();
            store.put(Batch { rows, ..Batch::default() });
        }
        store.commit();
        store.committed(outcomes.recv().expect("told")).expect("committed");
        for work in [Work::Pull, Work::Remove] {
            let mut done = 0;
            while let Some(path) = match work {
                Work::Pull => store.next_work(work, None),
                _ => store.previous_work(work, None),
            } {
                done += 1;
                let sequence = work as u64 * 100_000 + done as u64;
                store.put(Batch { rows: vec![row(&path, sequence, Work::None, None)], ..Batch::default() });
            }
            assert_eq!(done, ROWS);
        }
        assert!(store.passed_over.get() <= 2 * ROWS, "{} keys passed over", store.passed_over.get());
    }

    #[test]
    fn what_was_not_committed_is_lost_and_damage_begins_anew() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("index.redb");
        let (told, outcomes) = mpsc::channel();
        let open = || {
            let told = told.clone();
            let done = move |done| drop(told.send(done));
            Store::open(&path, Arc::new(|_: &[u8]| None), done).expect("opened")
        };
        let put = |store: &mut Store, name: &[u8], n| {
            let members = vec![(AgentId([n as u8; 16]), vec![n as u8])];
            store.put(Batch { rows: vec![row(name, n, Work::None, None)], members, ..Batch::default() });
        };
        let (mut store, _) = open();
        put(&mut store, b"kept", 1);
        store.commit();
        put(&mut store, b"lost", 2);
        store.committed(outcomes.recv().expect("told")).expect("committed");
        assert!(store.row(b"kept").is_some() && store.row(b"lost").is_some());
        assert_eq!((store.unsaved(), store.members().len()), (1, 2));
        drop(store);
        let (store, _) = open();
        assert!(store.row(b"kept").is_some() && store.row(b"lost").is_none());
        assert_eq!(store.members(), [(AgentId([1; 16]), vec![1])]);
        drop(store);
        std::fs::write(&path, [7; 9000]).expect("written");
        let result = Store::open(&path, Arc::new(|_: &[u8]| None), |_| {});
        let (store, new) = result.expect("begun anew");
        assert!(new && store.row(b"kept").is_none());
        assert!(path.with_extension("damaged").exists());
    }
}
