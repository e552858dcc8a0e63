//! Archives and the log that they were taken from, read as one.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use event_audit::Hash;
use event_audit::keys::KeyList;
use event_audit::ledger::{Leaves, Ledger};
use event_log::file::FileLog;
use event_log::{
    AppendError, BoxFuture, Damage, Entry, EventLog, Place, Position, ReadError, ReadLimit, StreamName,
};

use super::folder::Folder;
use super::{ARCHIVES_MAX, ArchiveError, Manifest, io_error};

/// An archive that is open for reading: every entry is held against the signed tree before it is handed out.
pub struct Archived {
    folder: PathBuf,
    manifest: Manifest,
    first: Position,
    last: Position,
    log: FileLog,
    keys: KeyList,
    ledger: Ledger,
    leaves: Mutex<Leaves>,
}

impl Archived {
    /// Opens the archive in `path` and reads all of its segments once. Blocks.
    ///
    /// # Errors
    /// [`ArchiveError`] if it is not whole, or holds nothing.
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        let folder = Folder(path.to_owned());
        let manifest = folder.read_manifest()?.ok_or_else(|| ArchiveError::NoArchive(path.to_owned()))?;
        let other = |what: String| ArchiveError::Other { path: path.to_owned(), what };
        let (Some(first), Some(last)) = (manifest.first(), manifest.last()) else {
            return Err(other("holds nothing yet".into()));
        };
        let (keys, ledger) = folder.proofs(&manifest)?;
        for segment in &manifest.segments {
            let place = folder.segment(segment.first);
            let found = fs::symlink_metadata(&place).map_err(io_error("look at", &place))?;
            if !found.is_file() || found.len() != segment.bytes {
                let what = format!("the manifest says a file of {} bytes, there is another", segment.bytes);
                return Err(ArchiveError::Segment { path: place, position: segment.first, what });
            }
        }
        let (first, last) = (Position(first), Position(last));
        let log = FileLog::open_archived(&folder.segments(), first..=last)?;
        if let Some(damage) = &log.recovery().damage {
            return Err(ReadError::Damaged(damage.clone()).into());
        }
        if log.first_stored() != first
            || log.last_stored() != last
            || log.log_id().to_string() != manifest.log
        {
            return Err(other(format!("does not hold the positions {first} to {last} of its manifest")));
        }
        Ok(Self {
            folder: path.to_owned(),
            manifest,
            first,
            last,
            log,
            keys,
            ledger,
            leaves: Mutex::default(),
        })
    }

    /// Its signed keys.
    pub fn keys(&self) -> &KeyList {
        &self.keys
    }

    /// Its tree, which covers at least all that is in it.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What is in it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    async fn read(&self, from: Position, limit: ReadLimit) -> Result<Vec<Entry>, ReadError> {
        let page = self.log.read(from, limit).await?;
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in &page {
            let place = || Place::File { path: self.folder.clone(), offset: 0 };
            let damaged = |what: String| Damage { position: entry.position, place: place(), what };
            let signed = leaves.at(&self.ledger, entry.position.0 - 1);
            let signed = signed.map_err(|error| damaged(error.to_string()))?;
            if signed != Hash::leaf(&entry.bytes) {
                return Err(damaged("the archive's entry is not the one that was signed".into()).into());
            }
        }
        Ok(page)
    }
}

/// A whole history: archives, and the log if there is one. Read-only.
pub struct History {
    /// In the order of the log.
    archives: Vec<Archived>,
    log: Option<Arc<dyn EventLog>>,
    /// The first position of the log, and the last one there is.
    log_first: Position,
    last: Position,
}

impl History {
    /// Puts archives, and the log that they were taken from, together. Blocks.
    ///
    /// # Errors
    /// If an archive does not open, or they are of different logs. That something is missing between them is told by
    /// [`History::missing`] and when it is read.
    pub async fn open(
        folders: &[PathBuf],
        log: Option<Arc<dyn EventLog>>,
        origin: Option<&str>,
    ) -> Result<Self, ArchiveError> {
        if let Some(path) = folders.get(ARCHIVES_MAX) {
            let what = format!("is one too many: {ARCHIVES_MAX} may be named");
            return Err(ArchiveError::Other { path: path.clone(), what });
        }
        let mut archives = Vec::new();
        for folder in folders {
            let archive = Archived::open(folder)?;
            let expected = origin.or(archives.first().map(|first: &Archived| first.keys.origin()));
            if let Some(expected) = expected.filter(|expected| *expected != archive.keys.origin()) {
                let what = format!("is of the log {}, not of {expected}", archive.keys.origin());
                return Err(ArchiveError::Other { path: folder.clone(), what });
            }
            archives.push(archive);
        }
        archives.sort_by_key(|archive| (archive.first, archive.last));
        let archived = archives.iter().map(|archive| archive.last).max().unwrap_or(Position::ZERO);
        let (log_first, last) = match &log {
            Some(log) => (log.first().await?, log.last_position().await?),
            None => (archived.next(), archived),
        };
        Ok(Self { archives, log, log_first, last })
    }

    /// The archives, in the order of the log.
    pub fn archives(&self) -> &[Archived] {
        &self.archives
    }

    /// The first stretch of positions, from 1 on, that is neither in the log nor in an archive.
    pub fn missing(&self) -> Option<RangeInclusive<u64>> {
        let mut next = 1;
        while next < self.log_first.0 {
            match self.holder(Position(next)) {
                Some(archive) => next = archive.last.0 + 1,
                None => return Some(next..=self.after(Position(next)).0 - 1),
            }
        }
        None
    }

    fn holder(&self, position: Position) -> Option<&Archived> {
        self.archives.iter().find(|archive| (archive.first..=archive.last).contains(&position))
    }

    /// The next position that can be read behind one that can't.
    fn after(&self, position: Position) -> Position {
        let later = self.archives.iter().map(|archive| archive.first).filter(|first| *first > position);
        later.min().unwrap_or(self.log_first).min(self.log_first)
    }
}

impl EventLog for History {
    fn append<'a>(
        &'a self,
        _: &'a StreamName,
        _: Option<Position>,
        _: Vec<u8>,
    ) -> BoxFuture<'a, Result<Position, AppendError>> {
        Box::pin(async { Err(AppendError::ReadOnly) })
    }

    fn append_batch<'a>(
        &'a self,
        _: &'a StreamName,
        _: Option<Position>,
        _: Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<Position, AppendError>> {
        Box::pin(async { Err(AppendError::ReadOnly) })
    }

    fn read(&self, from: Position, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>> {
        Box::pin(async move {
            let from = Position(from.0.max(1));
            match (&self.log, self.holder(from)) {
                (Some(log), _) if from >= self.log_first => log.read(from, limit).await,
                (_, Some(archive)) => archive.read(from, limit).await,
                _ if from > self.last => Ok(Vec::new()),
                _ => Err(ReadError::Archived { first: self.after(from) }),
            }
        })
    }

    fn first(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move {
            let mut first = self.log_first;
            while let Some(archive) = self
                .archives
                .iter()
                .rev()
                .find(|archive| archive.first < first && archive.last.next() >= first)
            {
                first = archive.first;
            }
            Ok(first)
        })
    }

    fn last_position(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move { Ok(self.last) })
    }

    fn last_of_stream<'a>(
        &'a self,
        stream: &'a StreamName,
    ) -> BoxFuture<'a, Result<Option<Position>, ReadError>> {
        Box::pin(async move {
            if let Some(log) = &self.log {
                return log.last_of_stream(stream).await;
            }
            Ok(self.archives.iter().filter_map(|archive| archive.log.last_stored_of(stream)).max())
        })
    }

    fn wait_beyond(&self, position: Position) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move {
            match &self.log {
                _ if position < self.last => Ok(self.last),
                Some(log) => log.wait_beyond(position).await,
                None => Err(ReadError::Closed),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(log) = &self.log {
                log.close().await;
            }
        })
    }
}
