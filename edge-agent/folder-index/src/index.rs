//! The index of one folder as files in the agent's data folder: opening, changing, reading (§2).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Database, ReadableDatabase, TableError};
use serde::{Deserialize, Serialize};

use crate::content::{ContentKey, ContentTable, Row};
use crate::limits::CACHE;
use crate::scan::Progress;
use crate::snapshot::{Entry, Snapshot};
use crate::tables::{Identity, META, Meta, Tables, VERSION, parse_meta};

/// Name of the database in the index's folder.
const DATABASE: &str = "index.redb";

/// Why an index cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The database or the system refuses.
    #[error("the index: {0}")]
    Database(Box<redb::Error>),
    /// What lies there is no index that could be written so.
    #[error("the index is damaged: {0}")]
    Damaged(&'static str),
    /// Written by another release.
    #[error("the index has version {0}; this program knows version {VERSION}")]
    Version(u32),
}

impl<E: Into<redb::Error>> From<E> for IndexError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

impl IndexError {
    /// Whether beginning anew helps: what lies there cannot be read.
    fn is_damage(&self) -> bool {
        match self {
            Self::Damaged(_) | Self::Version(_) => true,
            Self::Database(error) => match &**error {
                redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) => true,
                redb::Error::Io(e) => {
                    matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
                }
                _ => false,
            },
        }
    }
}

/// What an index holds, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Sequence of the latest change.
    pub sequence: u64,
    /// Regular files.
    pub files: u64,
    /// Folders, the root with them.
    pub folders: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

impl Counters {
    /// Everything but the root.
    pub fn entries(&self) -> u64 {
        (self.files + self.folders + self.symlinks).saturating_sub(1)
    }
}

/// The index of one folder. One process opens it at a time.
pub struct Index {
    root: PathBuf,
    database: Database,
    /// Held by the one scan that there is at a time.
    scanning: Mutex<()>,
    /// How far that is.
    activity: Mutex<Option<Arc<Progress>>>,
    content: Mutex<ContentTable>,
}

impl Index {
    /// Opens the index of the folder `root` that lies in `folder`, or begins one; what is damaged or of
    /// another version is thrown away, as it can be made again. It can be read at once, whatever
    /// happened before.
    ///
    /// # Errors
    /// If `folder` cannot be used, or another process has it open.
    pub fn open(folder: &Path, root: &Path) -> Result<Self, IndexError> {
        match Self::open_once(folder, root) {
            Err(error) if error.is_damage() => {
                tracing::warn!(folder = %folder.display(), %error, "an index cannot be read and is made anew");
                std::fs::remove_dir_all(folder)?;
                Self::open_once(folder, root)
            }
            other => other,
        }
    }

    fn open_once(folder: &Path, root: &Path) -> Result<Self, IndexError> {
        std::fs::create_dir_all(folder)?;
        let database = Database::builder().set_cache_size(CACHE).create(folder.join(DATABASE))?;
        Self::of(database, folder, root)
    }

    /// From an opened database; `folder` is for what lies beside it.
    pub(crate) fn of(database: Database, folder: &Path, root: &Path) -> Result<Self, IndexError> {
        check_version(&database)?;
        let mut index = Self {
            root: root.to_owned(),
            database,
            scanning: Mutex::new(()),
            activity: Mutex::default(),
            content: Mutex::new(ContentTable::new(folder)),
        };
        index.write(|_| Ok(()))?;
        let sequence = index.counters()?.sequence;
        index.content.get_mut().unwrap_or_else(PoisonError::into_inner).open(sequence);
        Ok(index)
    }

    /// The folder that it is of.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// One transaction: all of what `change` does, or nothing. On return it is synced.
    pub(crate) fn write<R>(
        &self,
        change: impl FnOnce(&mut Tables<'_>) -> Result<R, IndexError>,
    ) -> Result<R, IndexError> {
        let mut transaction = self.database.begin_write()?;
        // So that opening after a crash does not have to read all of the file.
        transaction.set_quick_repair(true);
        let mut tables = Tables::open(&transaction)?;
        let result = change(&mut tables)?;
        let (changed, _, contents) = tables.finish()?;
        if changed {
            transaction.commit()?;
            self.content().add(contents);
        } else {
            transaction.abort()?;
        }
        Ok(result)
    }

    /// What was last committed, to be read while it is changed on.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, IndexError> {
        Snapshot::open(&self.database.begin_read()?)
    }

    /// What the index holds, counted.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn counters(&self) -> Result<Counters, IndexError> {
        Ok(self.meta()?.counters)
    }

    /// Whether a scan ever came to its end. Before, what is missing here may merely not have been seen.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn is_complete(&self) -> Result<bool, IndexError> {
        Ok(self.meta()?.complete)
    }

    pub(crate) fn meta(&self) -> Result<Meta, IndexError> {
        let transaction = self.database.begin_read()?;
        match transaction.open_table(META)?.get("meta")? {
            Some(bytes) => parse_meta(bytes.value()),
            None => Ok(Meta::default()),
        }
    }

    /// Waits for a scan that is going on, and keeps others away.
    pub(crate) fn scanning(&self) -> MutexGuard<'_, ()> {
        self.scanning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far a scan is, if one is going on.
    pub fn activity(&self) -> Option<Arc<Progress>> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_activity(&self, progress: Option<Arc<Progress>>) {
        *self.activity.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    pub(crate) fn identity(&self) -> Result<Option<Identity>, IndexError> {
        Ok(self.meta()?.root)
    }

    /// Files with this content, 16 at most. What is told was true when it was indexed: who reads a place
    /// verifies the blocks.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn find_content(&self, root: &sync_core::merkle::Hash, size: u64) -> Result<Vec<Entry>, IndexError> {
        let mut table = self.content();
        if !table.is_loaded() {
            table.load(&self.snapshot()?)?;
        }
        let sequences = table.find(ContentKey::of(root))?;
        drop(table);
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        let snapshot = self.snapshot()?;
        let mut entries = Vec::new();
        for sequence in sequences {
            if let Some(entry) = snapshot.live_at(sequence)?
                && entry.record.stamp.size == size
                && entry.record.content().is_some_and(|content| content.root == *root)
            {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// Merges what was found since into the table of contents if it is worth it; `end`: of a scan, else
    /// now and then during a long one.
    pub(crate) fn merge_contents(&self, end: bool) -> Result<(), IndexError> {
        let mut table = self.content();
        if table.wants_merge() || end && table.is_behind() {
            let snapshot = self.snapshot()?;
            table.merge(&snapshot)?;
        }
        Ok(())
    }

    /// Merges whatever there is.
    #[cfg(test)]
    pub(crate) fn merge_all_contents(&self) -> Result<(), IndexError> {
        self.content().merge(&self.snapshot()?)
    }

    fn content(&self) -> MutexGuard<'_, ContentTable> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rows for the table of contents of everything that changed after `after` and is there, in the order
/// of sequences.
pub(crate) fn rows_since(
    snapshot: &Snapshot,
    after: u64,
    take: &mut dyn FnMut(Row) -> Result<(), IndexError>,
) -> Result<(), IndexError> {
    snapshot.live_since(after, &mut |record| {
        if let Some(content) = record.content()
            && record.stamp.size > 0
        {
            take(Row { key: ContentKey::of(&content.root), sequence: record.sequence })?;
        }
        Ok(())
    })
}

fn check_version(database: &Database) -> Result<(), IndexError> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(META) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        table => table?,
    };
    match table.get("version")? {
        None => Ok(()),
        Some(bytes) => match bytes.value().try_into().map(u32::from_le_bytes) {
            Ok(VERSION) => Ok(()),
            Ok(other) => Err(IndexError::Version(other)),
            Err(_) => Err(IndexError::Damaged("version")),
        },
    }
}
