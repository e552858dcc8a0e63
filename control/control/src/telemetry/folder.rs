//! The files of rows: which there are, what is appended to which, and which are deleted.
//!
//! Nothing in here stops the service: what cannot be written is counted and told once, what cannot be read is set aside.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use event_schema::{AgentId, RunId};

use super::Keep;
use super::file::{self, Found};
use super::gather::{Owned, Written};
use super::row::{Row, Width};

/// How the files' names end.
const ENDING: &str = ".rows";

/// A file, by its width and the time it begins at.
type Name = (Width, u64);

#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    keep: Keep,
    files: Mutex<Files>,
    lost: AtomicU64,
    /// Whether the last write failed; told once.
    failing: AtomicBool,
}

#[derive(Debug, Default)]
struct Files {
    /// Bytes of each.
    known: BTreeMap<Name, u64>,
    /// The one of each width that was written to last.
    open: BTreeMap<Width, (u64, File)>,
}

impl Folder {
    pub(super) fn open(path: &Path, keep: Keep) -> io::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path)?;
        let mut files = Files::default();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(name) = parse(&name) {
                files.known.insert(name, entry.metadata()?.len());
            } else if name.strip_suffix(".damaged").and_then(parse).is_some() {
                let changed = entry.metadata()?.modified()?;
                if changed.elapsed().is_ok_and(|age| age > keep.time) {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(Self {
            path: path.to_owned(),
            keep,
            files: Mutex::new(files),
            lost: AtomicU64::new(0),
            failing: AtomicBool::new(false),
        })
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, (width, start): Name) -> PathBuf {
        self.path.join(format!("{}-{start:012}{ENDING}", width.name()))
    }

    /// Since when there are rows of a width (seconds since 1970).
    pub(super) fn begins(&self, width: Width) -> Option<u64> {
        self.files().known.range((width, 0)..=(width, u64::MAX)).next().map(|((_, start), _)| *start)
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files().known.values().sum()
    }

    /// Rows that could not be written.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Appends rows to the files of their times.
    pub(super) fn append(&self, width: Width, rows: Vec<Owned>) {
        let mut by_file: BTreeMap<u64, Vec<Owned>> = BTreeMap::new();
        for owned in rows {
            let start = owned.2.start / width.file_seconds() * width.file_seconds();
            by_file.entry(start).or_default().push(owned);
        }
        for (start, rows) in by_file {
            let name = (width, start);
            match self.append_to(name, &rows) {
                Ok(()) => self.failing.store(false, Ordering::Relaxed),
                Err(error) => {
                    self.lost.fetch_add(rows.len() as u64, Ordering::Relaxed);
                    // What came of it is cut off when the file is opened again.
                    self.files().open.remove(&width);
                    if !self.failing.swap(true, Ordering::Relaxed) {
                        let file = self.file(name);
                        tracing::warn!(file = %file.display(), %error, "telemetry cannot be written and is lost");
                    }
                }
            }
        }
    }

    fn append_to(&self, name: Name, rows: &[Owned]) -> io::Result<()> {
        let blocks = file::blocks(rows);
        let mut files = self.files();
        let is_open = files.open.get(&name.0).is_some_and(|(start, _)| *start == name.1);
        if !is_open {
            let (file, bytes) = self.open_file(name)?;
            files.known.insert(name, bytes);
            files.open.insert(name.0, (name.1, file));
        }
        let Some((_, file)) = files.open.get_mut(&name.0) else { return Ok(()) };
        file.write_all(&blocks)?;
        *files.known.entry(name).or_default() += blocks.len() as u64;
        Ok(())
    }

    /// A file to append to, and how long it is: cut back to what holds of it; made anew if it is damaged or not there.
    fn open_file(&self, name: Name) -> io::Result<(File, u64)> {
        let path = self.file(name);
        let found = match File::open(&path) {
            Ok(file) => {
                let length = file.metadata()?.len();
                Some((file::scan(file, length, name, true, |_, _| false, |_| None)?, length))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let length = match found {
            Some((Found::Whole, length)) => length,
            Some((Found::Torn(length), all)) => {
                tracing::info!(file = %path.display(), bytes = all - length, "the torn end of telemetry is cut off");
                length
            }
            Some((Found::Damaged, _)) => {
                set_aside(&path)?;
                0
            }
            None => 0,
        };
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path)?;
        file.set_len(length)?;
        if length == 0 {
            file.write_all(&file::head(name.0, name.1))?;
            return Ok((file, file::HEAD_BYTES as u64));
        }
        Ok((file, length))
    }

    /// The rows of a run in a time.
    pub(super) fn read(
        &self,
        width: Width,
        run: RunId,
        from: u64,
        to: u64,
        each: &mut impl FnMut(AgentId, Row),
    ) {
        let within = (from / width.file_seconds()).saturating_mul(width.file_seconds());
        let names: Vec<Name> =
            self.files().known.range((width, within)..(width, to)).map(|(name, _)| *name).collect();
        for name in names {
            self.read_file(
                name,
                false,
                |first, last| last >= from && first < to,
                Some(run),
                &mut |_, agent, row| {
                    each(agent, row);
                },
            );
        }
    }

    /// The rows of a file's blocks of the times that are wanted; one that is damaged is set aside. `all` blocks are
    /// checked for that, or the wanted ones.
    fn read_file(
        &self,
        name: Name,
        all: bool,
        wanted: impl Fn(u64, u64) -> bool,
        run: Option<RunId>,
        each: &mut dyn FnMut(RunId, AgentId, Row),
    ) {
        let path = self.file(name);
        let scanned = File::open(&path).and_then(|file| {
            let length = file.metadata()?.len();
            file::scan(file, length, name, all, wanted, |groups| file::rows(groups, run, each))
        });
        let found = match scanned {
            Ok(found) => found,
            // Deleted meanwhile, because it was old.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "telemetry cannot be read");
                return;
            }
        };
        if found != Found::Damaged {
            return;
        }
        let mut files = self.files();
        files.known.remove(&name);
        if files.open.get(&name.0).is_some_and(|(start, _)| *start == name.1) {
            files.open.remove(&name.0);
        }
        if let Err(error) = set_aside(&path) {
            tracing::warn!(file = %path.display(), %error, "a damaged file cannot be set aside");
        }
    }

    /// Narrow rows of the last of the widest buckets, in order of time, and the wider ones of that time that are written.
    pub(super) fn unfinished(&self) -> (Vec<Owned>, HashSet<Written>) {
        let newest = |width: Width| {
            self.files().known.range((width, 0)..=(width, u64::MAX)).next_back().map(|((_, start), _)| *start)
        };
        let Some(start) = newest(Width::Second) else { return Default::default() };
        let name = (Width::Second, start);
        // First the times of the blocks alone: most of an hour is over.
        let last = std::cell::Cell::new(0);
        let see = |_, end: u64| {
            last.set(end.max(last.get()));
            false
        };
        self.read_file(name, true, see, None, &mut |_, _, _| {});
        let wide = Width::Quarter.seconds();
        let from = last.get() / wide * wide;
        let mut rows: Vec<Owned> = Vec::new();
        self.read_file(name, false, |_, last| last >= from, None, &mut |run, agent, row| {
            if row.start >= from {
                rows.push((run, agent, row));
            }
        });
        rows.sort_by_key(|(.., row)| row.start);
        let mut written = HashSet::<Written>::new();
        for width in [Width::Minute, Width::Quarter] {
            let Some(start) = newest(width) else { continue };
            self.read_file((width, start), true, |_, last| last >= from, None, &mut |run, agent, row| {
                if row.start >= from {
                    written.insert((run, agent, width, row.start));
                }
            });
        }
        (rows, written)
    }

    /// Deletes what is too old at a time, and the narrowest and oldest of what is too much.
    pub(super) fn forget(&self, now: u64) {
        let mut files = self.files();
        loop {
            let too_much = files.known.values().sum::<u64>() > self.keep.max_bytes;
            let is_old = |(width, start): &Name| {
                let keep = self.keep.time.as_secs().min(width.keep_seconds());
                start.saturating_add(width.file_seconds()).saturating_add(keep) <= now
            };
            let old = files.known.keys().copied().find(is_old);
            let name = old.or_else(|| files.known.keys().copied().next().filter(|_| too_much));
            let Some(name) = name else { return };
            files.known.remove(&name);
            if files.open.get(&name.0).is_some_and(|(start, _)| *start == name.1) {
                files.open.remove(&name.0);
            }
            let path = self.file(name);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(file = %path.display(), %error, "old telemetry cannot be deleted");
            }
        }
    }

    /// Makes what was written last.
    pub(super) fn close(&self) {
        for (_, file) in std::mem::take(&mut self.files().open).into_values() {
            // Telemetry may be lost; the next start cuts off what is torn.
            let _ = file.sync_data();
        }
    }
}

/// Keeps a damaged file out of the way, for whoever wants to look at it; an older one gives way.
fn set_aside(path: &Path) -> io::Result<()> {
    let aside = path.with_added_extension("damaged");
    tracing::warn!(file = %aside.display(), "telemetry is damaged and set aside; the file can be removed");
    fs::rename(path, aside)
}

fn parse(name: &str) -> Option<Name> {
    let (width, start) = name.strip_suffix(ENDING)?.split_once('-')?;
    let width = Width::ALL.into_iter().find(|known| known.name() == width)?;
    let start = start.parse::<u64>().ok().filter(|start| start % width.file_seconds() == 0)?;
    Some((width, start))
}
