//! The version before the one that is being made: a file that is the same in content and metadata becomes another name of
//! it, one that is the same in content a clone (`edge-agent/BACKUP.md` §3).
//!
//! What is the same is known from both manifests, without reading content, but for a sample. What is on the disk there has
//! to look as its manifest says; it may be damaged all the same, which a restore finds.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher};
use std::ops::Range;
use std::sync::atomic::{self, AtomicBool};
use std::sync::{Mutex, PoisonError};

use event_schema::{Problem, RunId};
use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;
use sync_core::manifest::{Entry, Kind, compare_paths};

use super::finalize::{has_time_of, is_as_placed};
use super::{Access, Staging, holes_fit, unreadable};
use crate::disk::folder::{Folder, file_type};
use crate::disk::manifest::{EntryRef, ManifestFile};
use crate::disk::problem;
use crate::disk::reader::{holes_hold_nothing, read_block};

/// One file in so many is read before it is linked to.
const SAMPLE: u64 = 32;

/// Files of one size and time that are compared with an entry whose path is new.
const TRIED_MAX: usize = 8;

/// Bytes that are read at most where nothing has changed: that is asked often.
const READ_MAX: u64 = 256 << 20;

/// Rows of hashes compared at a time.
const ROWS: u64 = 4096;

/// See the module.
pub(crate) struct Before {
    folder: Folder,
    manifest: ManifestFile,
    /// Files by a hash of size and time, then their entries: 16 bytes each.
    by_stamp: Vec<(u64, u64)>,
    /// The entry from which on the next path is looked for: both manifests have one order.
    cursor: Mutex<u64>,
    /// Hard links can be made from there to here.
    links: AtomicBool,
    /// Files are read that this run has chosen.
    run: RunId,
    /// Whatever is to be kept as long as this is used.
    _held: Box<dyn Send + Sync>,
}

impl Before {
    /// A version in `folder`, as its manifest says, for `run`; `held` is kept as long as this.
    ///
    /// # Errors
    /// If the manifest cannot be read.
    pub(crate) fn new(
        folder: Folder,
        manifest: ManifestFile,
        run: RunId,
        held: impl Send + Sync + 'static,
    ) -> Result<Self, Errno> {
        let mut by_stamp = Vec::new();
        for page in 0..manifest.pages() {
            let page = manifest.page(page)?;
            let files = page.entries().filter(|(_, e)| matches!(e.kind, Kind::File { .. }));
            by_stamp.extend(files.map(|(entry, e)| (stamp(e), entry)));
        }
        by_stamp.sort_unstable();
        let (cursor, links) = (Mutex::new(0), AtomicBool::new(true));
        Ok(Self { folder, manifest, by_stamp, cursor, links, run, _held: Box::new(held) })
    }

    /// The version's folder.
    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// What had a path, if it was a regular file and still is one.
    pub(super) fn file(&self, path: &[u8]) -> Option<File> {
        self.folder.open_file(path).ok()
    }

    /// The entry with this path.
    fn entry_at(&self, path: &[u8]) -> Result<Option<EntryRef>, Errno> {
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        if *cursor > 0 && compare_paths(&self.manifest.entry(*cursor - 1)?.path, path) != Ordering::Less {
            // Somebody begins anew.
            *cursor = 0;
        }
        while *cursor < self.manifest.entries() {
            let entry = self.manifest.entry(*cursor)?;
            match compare_paths(&entry.path, path) {
                Ordering::Less => *cursor += 1,
                Ordering::Equal => return Ok(Some(entry)),
                Ordering::Greater => break,
            }
        }
        Ok(None)
    }

    /// Whether a file of this version has the content of an entry of a manifest, by what both manifests say.
    fn has_content(
        &self,
        there: &EntryRef,
        e: &Entry,
        manifest: &ManifestFile,
        blocks: Range<u64>,
    ) -> Result<bool, Errno> {
        let others = there.blocks();
        if there.kind != e.kind || others.end - others.start != blocks.end - blocks.start {
            return Ok(false);
        }
        let (mut a, mut b) = (blocks.start, others.start);
        while a < blocks.end {
            let rows = (blocks.end - a).min(ROWS);
            let here = manifest.known().hashes(a..a + rows).map_err(|_| Errno::IO)?;
            let before = self.manifest.known().hashes(b..b + rows).map_err(|_| Errno::IO)?;
            if !here.iter().map(|hash| hash.strong).eq(before.iter().map(|hash| hash.strong)) {
                return Ok(false);
            }
            (a, b) = (a + rows, b + rows);
        }
        Ok(true)
    }

    /// Whether the content of a file is to be read before it is believed: in each run others.
    fn is_sampled(&self, path: &[u8]) -> bool {
        let mut hasher = DefaultHasher::new();
        (self.run.0, path).hash(&mut hasher);
        hasher.finish().is_multiple_of(SAMPLE)
    }

    /// Whether everything looks as it did when it was made; some of it is read. Others' additions are not looked for.
    ///
    /// # Errors
    /// If the manifest cannot be read.
    pub(crate) fn is_as_made(&self, go_on: &dyn Fn() -> bool) -> Result<bool, Errno> {
        let mut read = 0;
        for page in 0..self.manifest.pages() {
            let page = self.manifest.page(page)?;
            for (entry, e) in page.entries() {
                if !go_on() {
                    return Ok(false);
                }
                let Ok(stat) = self.folder.stat(&e.path) else { return Ok(false) };
                let is_right = match &e.kind {
                    Kind::Folder => file_type(&stat) == FileType::Directory,
                    Kind::Symlink { .. } => file_type(&stat) == FileType::Symlink,
                    Kind::HardLink { to } => is_as_placed(&stat, &*self.manifest.entry(*to)?),
                    Kind::File { .. } => is_as_placed(&stat, e),
                };
                if !is_right {
                    return Ok(false);
                }
                if matches!(e.kind, Kind::File { .. }) && read < READ_MAX && self.is_sampled(&e.path) {
                    read += e.kind.size();
                    if !self.is_sound(&self.manifest.entry(entry)?)? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Whether a file has the content that its entry says, and nothing in its holes.
    fn is_sound(&self, there: &EntryRef) -> Result<bool, Errno> {
        let Some(file) = self.file(&there.path) else { return Ok(false) };
        if !holes_hold_nothing(&file, &there.kind) {
            return Ok(false);
        }
        for block in there.blocks() {
            let info = self.manifest.block(block)?.ok_or(Errno::IO)?;
            if read_block(&file, &info).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A hash of what is compared first.
fn stamp(e: &Entry) -> u64 {
    let mut hasher = DefaultHasher::new();
    (e.kind.size(), e.mtime.seconds, e.mtime.nanos).hash(&mut hasher);
    hasher.finish()
}

/// Whether an entry has the metadata of another one.
fn same_metadata(a: &Entry, b: &Entry) -> bool {
    (a.mode, a.mtime, &a.owner, &a.xattrs) == (b.mode, b.mtime, &b.owner, &b.xattrs)
}

impl Staging {
    /// Makes an entry another name of a file of the version before, if there is one that is the same. False if not; then
    /// nothing is there. `shared` are files that have a name in this version already.
    pub(super) fn link_before(
        &self,
        before: &Before,
        e: &Entry,
        blocks: Range<u64>,
        shared: &mut HashSet<(u64, u64)>,
    ) -> Result<bool, Problem> {
        if !before.links.load(atomic::Ordering::Relaxed) {
            return Ok(false);
        }
        if let Some(there) = before.entry_at(&e.path).map_err(unreadable)? {
            // One of several names of a file may be the only one now.
            let there = match there.kind {
                Kind::HardLink { to } => before.manifest.entry(to).map_err(unreadable)?,
                _ => there,
            };
            return self.link_if_same(before, &there, e, blocks, shared);
        }
        let stamp = stamp(e);
        let first = before.by_stamp.partition_point(|(other, _)| *other < stamp);
        let candidates = before.by_stamp[first..].iter().take_while(|(other, _)| *other == stamp);
        for (_, candidate) in candidates.take(TRIED_MAX) {
            let there = before.manifest.entry(*candidate).map_err(unreadable)?;
            // One that is still there under its own name is the same as that one, not as this.
            let stays = self.manifest.known().find(&there.path).map_err(|_| unreadable(Errno::IO))?.is_some();
            if !stays && self.link_if_same(before, &there, e, blocks.clone(), shared)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn link_if_same(
        &self,
        before: &Before,
        there: &EntryRef,
        e: &Entry,
        blocks: Range<u64>,
        shared: &mut HashSet<(u64, u64)>,
    ) -> Result<bool, Problem> {
        if !matches!(there.kind, Kind::File { .. })
            || !same_metadata(there, e)
            || !before.has_content(there, e, &self.manifest, blocks).map_err(unreadable)?
        {
            return Ok(false);
        }
        let Ok(stat) = before.folder.stat(&there.path) else { return Ok(false) };
        let identity = (stat.st_dev, stat.st_ino);
        // A time that the file system cannot hold proves nothing: then it is copied.
        if !is_as_placed(&stat, there)
            || !has_time_of(&stat, there)
            || !self.restorer.fits(&stat, there)
            || shared.contains(&identity)
        {
            return Ok(false);
        }
        if before.is_sampled(&e.path) && !before.is_sound(there).map_err(unreadable)? {
            tracing::warn!(path = %there.path.escape_ascii(), "a file of the version before is damaged; it is fetched anew");
            return Ok(false);
        }
        let link = || {
            let (from, old) = before.folder.parent(&there.path)?;
            let (to, new) = self.folder().parent(&e.path)?;
            fs::linkat(&from, old, &to, new, AtFlags::empty())?;
            let made = fs::statat(&to, new, AtFlags::SYMLINK_NOFOLLOW)?;
            if file_type(&made) == FileType::RegularFile && (made.st_dev, made.st_ino) == identity {
                return Ok(true);
            }
            // Somebody was faster than the look at it.
            fs::unlinkat(&to, new, AtFlags::empty())?;
            Ok(false)
        };
        match link() {
            Ok(linked) => {
                if linked {
                    shared.insert(identity);
                }
                Ok(linked)
            }
            Err(Errno::XDEV | Errno::NOTSUP | Errno::NOSYS) => {
                tracing::info!("no hard links can be made here; what is the same is cloned or copied");
                before.links.store(false, atomic::Ordering::Relaxed);
                Ok(false)
            }
            Err(error @ (Errno::NOSPC | Errno::DQUOT)) => {
                Err(problem(error, &e.path, "linking to the version before"))
            }
            // It has as many names as it may have, it is not ours to link to, it is gone, the entry's folder is not there
            // yet, or whatever else it is: the content is copied or fetched.
            Err(_) => Ok(false),
        }
    }

    /// Makes the unfinished file of an entry a clone of the file that had its path in the version before, if that had the
    /// same content and the file system can. What it holds is checked as any other.
    pub(super) fn clone_before(
        &self,
        entry: u64,
        e: &Entry,
        blocks: Range<u64>,
        file: &File,
    ) -> Result<bool, Problem> {
        let Some(before) = self.before.as_ref().filter(|_| blocks.start < blocks.end) else {
            return Ok(false);
        };
        // What somebody wrote into a hole would come along, and no hash covers it.
        if !holes_fit(file, e) {
            return Ok(false);
        }
        let there = before.entry_at(&e.path).map_err(unreadable)?;
        let same = |there: EntryRef| before.has_content(&there, e, &self.manifest, blocks.clone());
        if !there.map_or(Ok(false), same).map_err(unreadable)? {
            return Ok(false);
        }
        let Ok(partial) = self.open_partial(entry, Access::Create) else { return Ok(false) };
        if fs::ioctl_ficlone(&*partial, file).is_err() {
            // An empty one is as good as none.
            return Ok(false);
        }
        self.note_copies(&blocks.collect::<Vec<_>>())?;
        Ok(true)
    }
}
