//! Files get their real names when their content is on the disk for good, many at a time (`edge-agent/PROTOCOL.md` §4.9).
//!
//! A file that is whole waits in the staging folder, with its metadata, until one `syncfs` has written down all that
//! wait; then they are renamed. Whoever cuts the power finds under a real name what was there before, or all of the new.
//! Waiting costs nothing: a thread of its own does this while blocks go on coming in.

use std::fs::File;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_schema::{Problem, ProblemClass};
use rustix::fs::{self, Advice};
use rustix::io::Errno;
use sync_core::manifest::Entry;

use super::{Access, Staging};
use crate::disk::manifest::EntryRef;
use crate::disk::reader::read_block;
use crate::disk::{problem, sync_file_system};

/// How long a file that is whole waits for others at least. Where writing everything takes longer, it waits as long as
/// that took the last time, so that the disk has half of its time for others.
const NAMES_PAUSE: Duration = Duration::from_secs(1);

/// The most that it waits.
const NAMES_PAUSE_MAX: Duration = Duration::from_secs(30);

/// So many do not wait for the time to pass: 8 bytes of memory each.
pub(super) const NAMES_MAX: usize = 16_384;

/// How long content of unfinished files is in memory only: what a power cut costs of it.
const CONTENT_PAUSE: Duration = Duration::from_secs(5);

/// The file in the run's state folder that says that the disk did not keep something.
pub(super) const DOUBTFUL: &str = "doubtful";

/// What is not on the disk for good.
#[derive(Default)]
pub(super) struct Waiting {
    /// Files that are whole and have their metadata.
    entries: Vec<u64>,
    /// Since when the first one waits.
    names_since: Option<Instant>,
    /// Since when there is content that was not written down.
    content_since: Option<Instant>,
    /// Nobody gives names any more.
    closed: bool,
}

impl Waiting {
    /// When to write everything down.
    fn due(&self, pause: Duration) -> Option<Instant> {
        let names = self.names_since.map(|since| since + pause);
        let content = self.content_since.map(|since| since + CONTENT_PAUSE);
        names.into_iter().chain(content).min()
    }
}

impl Staging {
    /// Makes a file that is whole what its entry says, but for its name. `new` is the file if nothing has to be looked
    /// at.
    pub(super) fn make_ready(&self, entry: u64, e: &Entry, new: Option<File>) -> rustix::io::Result<()> {
        if let Some(file) = new {
            return self.restorer.restore(&file, e);
        }
        // One with content that is gone, whoever removed it, is not to be taken for one of zeros.
        let access = if e.kind.blocks() == 0 { Access::Create } else { Access::Read };
        let mut file = self.open_partial(entry, access)?;
        if fs::fstat(&file)?.st_size as u64 != e.kind.size() {
            if access == Access::Read {
                file = self.open_partial(entry, Access::Write)?;
            }
            fs::ftruncate(&file, e.kind.size())?;
        }
        self.restorer.restore(&file, e)
    }

    /// These are ready for their names; others were written to.
    pub(super) fn wait_for_names(&self, entries: impl IntoIterator<Item = u64>) {
        let mut inner = self.lock();
        let waiting = &mut inner.waiting;
        let before = (waiting.names_since, waiting.content_since);
        waiting.entries.extend(entries);
        waiting.content_since.get_or_insert_with(Instant::now);
        if !waiting.entries.is_empty() {
            waiting.names_since.get_or_insert_with(Instant::now);
        }
        if before != (waiting.names_since, waiting.content_since) || waiting.entries.len() >= NAMES_MAX {
            self.bell.notify_all();
        }
    }

    /// The same for one file, where no thread gives names yet: when many wait, they get theirs.
    pub(super) fn wait_for_name(&self, entry: u64, e: &Entry) -> rustix::io::Result<()> {
        self.make_ready(entry, e, None)?;
        self.wait_for_names([entry]);
        if self.lock().waiting.entries.len() >= NAMES_MAX {
            self.name_waiting(&mut |problem| warn_of(&problem));
        }
        Ok(())
    }

    /// Gives names, and writes content down, until [`Self::close`]. Blocks.
    pub(crate) fn name_as_they_come(&self) {
        let mut pause = NAMES_PAUSE;
        loop {
            {
                let mut inner = self.lock();
                loop {
                    if inner.waiting.closed {
                        return;
                    }
                    let Some(due) = inner.waiting.due(pause) else {
                        inner = self.bell.wait(inner).unwrap_or_else(PoisonError::into_inner);
                        continue;
                    };
                    let left = due.saturating_duration_since(Instant::now());
                    if left.is_zero() || inner.waiting.entries.len() >= NAMES_MAX {
                        break;
                    }
                    inner = self.bell.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
            let began = Instant::now();
            // One that cannot get its name is tried again by `finalize`, which tells of it.
            self.name_waiting(&mut |problem| warn_of(&problem));
            pause = began.elapsed().clamp(NAMES_PAUSE, NAMES_PAUSE_MAX);
        }
    }

    /// Ends [`Self::name_as_they_come`]; what waits is found again by the next life.
    pub(crate) fn close(&self) {
        self.lock().waiting.closed = true;
        self.bell.notify_all();
    }

    /// Nobody gives names while this is held.
    pub(super) fn hold_names(&self) -> MutexGuard<'_, ()> {
        self.naming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes everything down and gives those that wait their names; tells of each that did not get its own.
    pub(super) fn name_waiting(&self, tell: &mut dyn FnMut(Problem)) {
        let _one = self.hold_names();
        let mut entries = {
            let waiting = &mut self.lock().waiting;
            waiting.names_since = None;
            if waiting.content_since.take().is_none() {
                return;
            }
            std::mem::take(&mut waiting.entries)
        };
        if let Err(error) = self.sync() {
            self.doubt(error);
        }
        if self.is_held_back() {
            // `finalize` finds them.
            return;
        }
        entries.sort_unstable();
        entries.dedup();
        // Somebody may have moved a folder elsewhere since the last time.
        self.folder().forget();
        if self.lock().doubtful {
            entries.retain(|&entry| self.was_kept(entry));
        } else {
            self.name_bundles(&mut entries);
        }
        for entry in entries {
            let named = self.manifest.entry(entry).map_err(super::unreadable).and_then(|e| {
                let named = self.give_name(entry, &e);
                named.map_err(|error| problem(error, &e.path, "putting the file in place"))
            });
            named.unwrap_or_else(&mut *tell);
        }
    }

    /// Renames an unfinished file to its name, in place of what is there.
    fn give_name(&self, entry: u64, e: &EntryRef) -> rustix::io::Result<()> {
        if self.spares(&e.path) {
            self.remove_partial(entry);
            self.give_up(entry, e.blocks());
            return Ok(());
        }
        self.set_aside(&e.path)?;
        let partial = self.partial_path(entry)?;
        let rename = || {
            let (parent, name) = self.folder().parent(&e.path)?;
            fs::renameat(&self.staging, &partial[..], &parent, name)
        };
        match rename() {
            Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
                self.folder().clear_folder_at(&e.path)?;
                rename()?;
            }
            // Something else lies where one of its folders belongs, or somebody removed that.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.make_way(&e.path)?;
                rename()?;
            }
            done => done?,
        }
        let mut inner = self.lock();
        inner.files.remove(&entry);
        inner.placed.insert(entry);
        Ok(())
    }

    /// Makes the folders that an entry is in, in place of what is there.
    fn make_way(&self, path: &[u8]) -> rustix::io::Result<()> {
        self.folder().forget();
        let mut slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        slashes.try_for_each(|(at, _)| self.make_folder(&path[..at]).map(|_| ()))
    }

    /// Has the system write everything to the disk. It tells of what it could not write once, and forgets it.
    pub(super) fn sync(&self) -> rustix::io::Result<()> {
        #[cfg(test)]
        if let Some(error) = self.failing_sync.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        sync_file_system(self.folder().root())
    }

    /// The disk did not keep something, and nobody tells what: from now on nothing is believed that was not read anew.
    fn doubt(&self, error: Errno) {
        tracing::warn!(%error, "the disk does not keep what is written; files are read again before they get their names");
        self.lock().doubtful = true;
        // Without it a restart would believe what is left in memory.
        if let Err(error) = std::fs::write(self.state.join(DOUBTFUL), b"") {
            tracing::warn!(%error, "cannot note that the disk did not keep something");
        }
    }

    /// Whether a file that waits is on the disk, as far as reading it from there tells. One that is not is given up.
    fn was_kept(&self, entry: u64) -> bool {
        let Ok(e) = self.manifest.entry(entry) else { return false };
        let read_anew = || -> rustix::io::Result<bool> {
            let file = self.open_partial(entry, Access::Read)?;
            fs::fdatasync(&file)?;
            fs::fadvise(&file, 0, None, Advice::DontNeed)?;
            for block in e.blocks() {
                let info = self.manifest.block(block)?.ok_or(Errno::IO)?;
                if read_block(&file, &info).is_err() {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        // Looking may have cost it its mode.
        if read_anew() == Ok(true) && self.make_ready(entry, &e, None).is_ok() {
            return true;
        }
        self.remove_partial(entry);
        self.give_up(entry, e.blocks());
        let detail = "the disk did not keep what was written; see to the disk and start the job again";
        let path = e.path.clone();
        self.lock().lost.push(Problem { class: ProblemClass::Io, path, detail: detail.into() });
        false
    }
}

fn warn_of(problem: &Problem) {
    tracing::warn!(path = %problem.path.escape_ascii(), "not yet: {}", problem.detail);
}
