//! Blocks that arrived, many at a time: each is checked and written, then one write tells the resume journal of all of
//! them, then the files that are whole get their metadata and wait for their names (`naming.rs`).
//!
//! A file of one block, as small files are, is made, written and given its metadata through one descriptor: seven system
//! calls with its name. It gets its mode when it is made where the system grants it, and nobody looks whether a folder is
//! in its way unless the renaming says so.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use sync_core::merkle::block_hash;

use super::{Staging, StoreError, unreadable};
use crate::disk::manifest::{BlockInfo, EntryRef};
use crate::disk::problem;

/// A block that is written and does not count yet.
struct Written {
    index: u64,
    data: Arc<[u8]>,
    info: BlockInfo,
    entry: EntryRef,
    /// The whole file, new and open.
    file: Option<File>,
    /// It was the last one of its file.
    completes: bool,
}

impl Staging {
    /// Keeps content blocks that arrived, if they match their hashes. Puts files in place of which these were the last
    /// ones. Blocks that are here already are ignored.
    ///
    /// Tells of each, in the order given, why it does not count if it does not.
    pub(crate) fn write_all(
        &self,
        blocks: impl IntoIterator<Item = (u64, Arc<[u8]>)>,
    ) -> Vec<Result<(), StoreError>> {
        let mut results = Vec::new();
        let mut written = Vec::new();
        for (index, data) in blocks {
            match self.write_one(index, data) {
                Ok(None) => results.push(Ok(())),
                Ok(Some(block)) => {
                    written.push((results.len(), block));
                    results.push(Ok(()));
                }
                Err(error) => results.push(Err(error)),
            }
        }
        if let Err(error) = self.count(&mut written) {
            written.iter().for_each(|(nth, _)| results[*nth] = Err(error.clone()));
            return results;
        }
        if written.is_empty() {
            return results;
        }
        let mut ready = Vec::new();
        for (_, Written { index, data, info, entry, file, completes }) in written {
            self.placed.keep(index, data);
            // A file that is whole but cannot be made ready now is tried again by `finalize`.
            if completes {
                match self.make_ready(info.entry, &entry, file) {
                    Ok(()) => ready.push(info.entry),
                    Err(error) => {
                        tracing::warn!(path = %entry.path.escape_ascii(), %error, "cannot put the file in place yet");
                    }
                }
            }
        }
        self.wait_for_names(ready);
        results
    }

    /// The same for one block.
    #[cfg(test)]
    pub(crate) fn write(&self, index: u64, data: Arc<[u8]>) -> Result<(), StoreError> {
        self.write_all([(index, data)]).remove(0)
    }

    /// Checks and writes a block; `None` if it was here already.
    fn write_one(&self, index: u64, data: Arc<[u8]>) -> Result<Option<Written>, StoreError> {
        let own = |e: Errno| StoreError::Full(unreadable(e));
        let info = self.manifest.block(index).map_err(own)?.ok_or(StoreError::Corrupt)?;
        if data.len() != info.len as usize || block_hash(&data) != info.hash {
            return Err(StoreError::Corrupt);
        }
        {
            let inner = self.lock();
            if inner.given_up.contains(info.entry) {
                return Err(StoreError::GivenUp);
            }
            if inner.have.contains(index) {
                return Ok(None);
            }
        }
        let entry = self.manifest.entry(info.entry).map_err(own)?;
        let file = self.write_new(&info, &entry, &data).and_then(|file| {
            if file.is_none() {
                self.write_at(info.entry, &entry, info.offset, &data)?;
            }
            Ok(file)
        });
        let file = file
            .map_err(|err| self.refused(info.entry, &entry, problem(err, &entry.path, "writing a block")))?;
        Ok(Some(Written { index, data, info, entry, file, completes: false }))
    }

    /// Makes the file of an entry that has this block and nothing else; `None` if it has more, or something of it is
    /// there.
    fn write_new(&self, info: &BlockInfo, entry: &EntryRef, data: &[u8]) -> rustix::io::Result<Option<File>> {
        if entry.kind.size() != data.len() as u64 || !entry.kind.has_no_holes() {
            return Ok(None);
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL;
        // Nobody else gets into the staging folder, whatever this allows. We have to: who finds it again after a kill
        // may have to write to it.
        let mode = Mode::from_raw_mode(entry.mode & 0o777) | Mode::RUSR | Mode::WUSR;
        // Before it is looked whether something of it waits by itself: nothing does that came after a bundle was made.
        if self.partial.contains(info.entry) {
            return Ok(None);
        }
        let made = match self.make_bundled(info.entry, entry, flags, mode) {
            Ok(None) => fs::openat(self.staging.as_fd(), info.entry.to_string().as_bytes(), flags, mode),
            made => made.and_then(|made| made.ok_or(Errno::NOENT)),
        };
        let fd = match made {
            Ok(fd) => fd,
            Err(Errno::EXIST) => return Ok(None),
            Err(error) => return Err(error),
        };
        let file = File::from(fd);
        if let Err(error) = file.write_all_at(data, 0) {
            self.remove_partial(info.entry);
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        }
        Ok(Some(file))
    }

    /// Notes in the journal, and then here, what was written.
    fn count(&self, written: &mut [(usize, Written)]) -> Result<(), StoreError> {
        let Some((_, first)) = written.first() else { return Ok(()) };
        let mut inner = self.lock();
        if let Err(err) = inner.journal.push_all(written.iter().map(|(_, block)| block.index)) {
            // The journal is the agent's own file: its trouble is no entry's.
            let errno = Errno::from_io_error(&err).unwrap_or(Errno::IO);
            let problem = problem(errno, &first.entry.path, "writing the resume journal");
            return Err(StoreError::Full(problem));
        }
        for (_, block) in written {
            if inner.have.insert(block.index) {
                inner.missing -= u64::from(block.info.len);
                block.completes = inner.has_all(block.entry.blocks());
            }
        }
        Ok(())
    }
}
