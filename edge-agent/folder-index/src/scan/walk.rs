//! The walk itself: folders one inside of the other without recursion, each compared with the index page
//! by page, and what comes back from the hashing threads.

use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use event_schema::{Problem, ProblemClass};
use rustix::fs::{self, FileType};
use rustix::io::Errno;
use sync_core::manifest::{STAGING_FOLDER, check_path};

use super::disk::{self, COARSE_TIMES, Names, attributes, file_type, problem};
use super::hash::{Failure, Hashed, Job, Told};
use super::{Scan, Task};
use crate::index::IndexError;
use crate::limits::{AGAIN_MAX, DEPTH_MAX, HASHING_MAX, OPEN_FOLDERS_MAX, OPEN_NAMES_MAX, PAGE};
use crate::record::{Content, FolderId, Kind, Record, Stamp};
use crate::snapshot::Gone;
use crate::tables::{Tables, join};

/// A file that is being hashed.
pub(super) struct Pending {
    folder: FolderId,
    name: Vec<u8>,
    /// As it was when it was handed out.
    stamp: Stamp,
    /// Number for its block hashes.
    content: u64,
}

/// A folder that the walk is inside of.
pub(super) struct Frame {
    id: FolderId,
    /// Bytes of its path that are of the folder above, with the slash.
    above_len: usize,
    /// Open, unless too many are; then it is opened again by its path.
    file: Option<Arc<OwnedFd>>,
    ino: u64,
    /// None when they were dropped to save memory.
    names: Option<Names>,
    /// The name compared last, and the place behind it in `names`.
    after: Option<Vec<u8>>,
    at: usize,
    step: Step,
    /// Only these names are looked at, and only what is new below them is entered.
    partial: bool,
    /// A folder of the index that is this one under the name it had before.
    formerly: Option<FolderId>,
    /// A file system was mounted here, or above, that is not there now.
    lost_mount: bool,
    /// Something in it was noted as gone before, perhaps when another folder was in its place.
    some_gone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Comparing names.
    Comparing,
    /// Going into folders, from this place in `names` on.
    Entering(usize),
}

impl Scan<'_> {
    /// Opens where a task begins.
    pub(super) fn start(&mut self, tables: &mut Tables<'_>, task: Task) -> Result<(), IndexError> {
        let (id, only) = match task {
            Task::Tree(id) => (id, None),
            Task::Names(id, names) => (id, Some(Names::of(names))),
        };
        // Gone meanwhile: who took it out knew.
        let Some(path) = tables.path_of(id)? else { return Ok(()) };
        let above = tables.folder(id)?.filter(|_| id != FolderId::ROOT);
        match (disk::walk(&self.root, &path), above) {
            // Something above it is gone or another: the folder above knows which name that is.
            (Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP), Some((above, name))) => {
                self.note_unread(tables, above, &name)?;
                self.tasks.push(Task::Names(above, vec![name]));
            }
            // Another is in its place. What is in that is not to be taken for what is in this.
            (Ok(file), Some((above, name))) if !self.is_known(tables, above, &name, &file)? => {
                self.note_unread(tables, above, &name)?;
                self.tasks.push(Task::Names(above, vec![name]));
            }
            (Ok(file), _) => {
                self.path.clear();
                self.enter(Arc::new(file), id, &path, None, false);
                if let (Some(frame), Some(names)) = (self.stack.last_mut(), only) {
                    (frame.names, frame.partial) = (Some(names), true);
                }
            }
            (Err(errno), _) => self.problem(problem(errno, path, "opening the folder")),
        }
        Ok(())
    }

    /// Whether an opened folder is the one that the index has under this name. Only then may what is in
    /// it be compared with what the index has below: between two system calls a name can come to lead to
    /// another folder, and back.
    fn is_known(
        &self,
        tables: &Tables<'_>,
        above: FolderId,
        name: &[u8],
        file: &OwnedFd,
    ) -> Result<bool, IndexError> {
        let Some(record) = tables.entry(above, name)? else { return Ok(false) };
        Ok(fs::fstat(file).is_ok_and(|stat| {
            let stamp = Stamp::of(&stat, self.root_dev);
            (stamp.ino, stamp.dev) == (record.stamp.ino, record.stamp.dev)
        }))
    }

    /// Notes in the index that a folder was not read to its end: whoever looks at its name next finds
    /// another inode and goes into it.
    fn note_unread(&self, tables: &mut Tables<'_>, above: FolderId, name: &[u8]) -> Result<(), IndexError> {
        match tables.entry(above, name)? {
            // A file system was mounted there: that its device is another now is still to be seen.
            Some(record) if record.stamp.dev != 0 => Ok(()),
            Some(record) => {
                let stamp = Stamp { ino: 0, ..record.stamp };
                tables.put_quietly(above, name, Record { stamp, ..record })
            }
            None => Ok(()),
        }
    }

    fn enter(
        &mut self,
        file: Arc<OwnedFd>,
        id: FolderId,
        name: &[u8],
        formerly: Option<FolderId>,
        lost_mount: bool,
    ) {
        let above_len = self.path.len();
        self.path = join(&self.path, name);
        self.observer.enter(id, file.as_fd(), &self.path);
        let ino = fs::fstat(&file).map_or(0, |stat| stat.st_ino);
        self.stack.push(Frame {
            id,
            above_len,
            file: Some(file),
            ino,
            names: None,
            after: None,
            at: 0,
            step: Step::Comparing,
            partial: false,
            formerly,
            lost_mount,
            some_gone: false,
        });
        self.save_memory();
    }

    /// Closes and forgets what is outermost, so that a deep tree of large folders takes no more memory
    /// and files than a flat one.
    fn save_memory(&mut self) {
        if let Some(outer) = self.stack.len().checked_sub(OPEN_FOLDERS_MAX + 1) {
            self.stack[outer].file = None;
        }
        let memory = |frame: &Frame| frame.names.as_ref().map_or(0, Names::memory);
        let mut total: usize = self.stack.iter().map(memory).sum();
        let inner = self.stack.len().saturating_sub(1);
        for frame in &mut self.stack[..inner] {
            if total <= OPEN_NAMES_MAX {
                break;
            }
            if !frame.partial {
                total -= memory(frame);
                frame.names = None;
            }
        }
    }

    /// The next piece of work in the innermost folder.
    pub(super) fn advance(&mut self, tables: &mut Tables<'_>, mut frame: Frame) -> Result<(), IndexError> {
        let file = match &frame.file {
            Some(file) => file.clone(),
            // It was closed, and another folder may be there now.
            None => match disk::walk(&self.root, &self.path) {
                Ok(file) if fs::fstat(&file).is_ok_and(|stat| stat.st_ino == frame.ino) => Arc::new(file),
                _ => {
                    if let Some((above, name)) = tables.folder(frame.id)? {
                        self.note_unread(tables, above, &name)?;
                        self.again(above, &name);
                    }
                    return self.leave(frame);
                }
            },
        };
        frame.file = Some(file.clone());
        if frame.names.is_none() {
            match Names::read(&file) {
                Ok(names) => {
                    frame.at = match &frame.after {
                        Some(after) => first_beyond(&names, after),
                        None => 0,
                    };
                    frame.names = Some(names);
                    if let Step::Entering(_) = frame.step {
                        frame.step = Step::Entering(frame.at);
                        self.mark_folders(tables, &mut frame)?;
                    }
                }
                Err(errno) => {
                    // What is known of it stays.
                    let path = self.path.clone();
                    self.problem(problem(errno, path, "reading the folder"));
                    return self.leave(frame);
                }
            }
        }
        match frame.step {
            Step::Comparing => {
                let done = if frame.partial {
                    self.compare_only(tables, &mut frame, &file)?
                } else {
                    self.compare(tables, &mut frame, &file)?
                };
                if done {
                    (frame.step, frame.after, frame.at) = (Step::Entering(0), None, 0);
                }
                self.stack.push(frame);
                Ok(())
            }
            Step::Entering(from) => self.enter_next(tables, frame, &file, from),
        }
    }

    fn leave(&mut self, frame: Frame) -> Result<(), IndexError> {
        self.path.truncate(frame.above_len);
        Ok(())
    }

    /// Goes into the next folder of this one, or leaves it.
    fn enter_next(
        &mut self,
        tables: &mut Tables<'_>,
        mut frame: Frame,
        file: &Arc<OwnedFd>,
        from: usize,
    ) -> Result<(), IndexError> {
        let names = frame.names.get_or_insert_default();
        let Some(next) = names.next_entered(from) else { return self.leave(frame) };
        let name = names.get(next).unwrap_or_default().to_vec();
        frame.step = Step::Entering(next + 1);
        frame.after = Some(name.clone());
        let Some(Record { kind: Kind::Folder(id), stamp, .. }) = tables.entry(frame.id, &name)? else {
            self.stack.push(frame);
            return Ok(());
        };
        let (above, unmounted) = (frame.id, self.unmounted.contains(&id));
        let lost_mount = frame.lost_mount || unmounted;
        self.stack.push(frame);
        match disk::open_folder(file, &name) {
            Ok(child) if unmounted || self.is_known(tables, above, &name, &child)? => {
                let formerly = self.formerly(tables, id, stamp)?;
                self.enter(Arc::new(child), id, &name, formerly, lost_mount);
            }
            // Gone or another since.
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.note_unread(tables, above, &name)?;
                self.again(above, &name);
            }
            Err(errno) => {
                // It is gone into when that was mended, which its inode does not show.
                self.note_unread(tables, above, &name)?;
                let path = join(&self.path, &name);
                self.problem(problem(errno, path, "opening the folder"));
            }
        }
        Ok(())
    }

    /// The folder of the index that a new one was before it was renamed or moved: it has the same inode,
    /// and is not where it was any more.
    fn formerly(
        &mut self,
        tables: &Tables<'_>,
        id: FolderId,
        stamp: Stamp,
    ) -> Result<Option<FolderId>, IndexError> {
        let Some(other) = self.moved.remove(&id) else { return Ok(None) };
        let Some(path) = tables.path_of(other)? else { return Ok(None) };
        let still_there = disk::walk(&self.root, &path)
            .and_then(|file| fs::fstat(&file))
            .is_ok_and(|stat| stat.st_ino == stamp.ino);
        self.moved_entries += u64::from(!still_there);
        Ok((!still_there).then_some(other))
    }

    /// After the names of a folder were read again: which are folders to go into is in the index.
    fn mark_folders(&mut self, tables: &Tables<'_>, frame: &mut Frame) -> Result<(), IndexError> {
        let Some(names) = &mut frame.names else { return Ok(()) };
        for i in frame.at..names.len() {
            let name = names.get(i).unwrap_or_default();
            if matches!(tables.entry(frame.id, name)?, Some(Record { kind: Kind::Folder(_), .. })) {
                names.enter(i);
            }
        }
        Ok(())
    }

    /// Compares the next page of names with the index. Returns whether all are compared.
    fn compare(
        &mut self,
        tables: &mut Tables<'_>,
        frame: &mut Frame,
        file: &Arc<OwnedFd>,
    ) -> Result<bool, IndexError> {
        if frame.after.is_none() {
            frame.some_gone = tables.any_gone_in(frame.id)?;
        }
        let page = tables.page(frame.id, frame.after.as_deref(), PAGE)?;
        let whole = page.len() < PAGE;
        let mut known = page.into_iter().peekable();
        for _ in 0..PAGE {
            let name = frame.names.as_ref().and_then(|names| names.get(frame.at)).map(<[u8]>::to_vec);
            match (name, known.peek()) {
                (None, None) => return Ok(whole),
                // What comes next in the index is not in this page.
                (Some(_), None) if !whole => return Ok(false),
                (Some(name), next) if next.is_none_or(|(next, _)| name <= *next) => {
                    let old = known.next_if(|(next, _)| *next == name).map(|(_, record)| record);
                    if frame.some_gone {
                        tables.unmark_gone(frame.id, &name)?;
                    }
                    let enter = self.see(tables, frame, file, &name, old)?;
                    if let (true, Some(names)) = (enter, &mut frame.names) {
                        names.enter(frame.at);
                    }
                    frame.at += 1;
                    frame.after = Some(name);
                }
                _ => {
                    let Some((name, record)) = known.next() else { return Ok(whole) };
                    self.miss(tables, frame, &name, &record)?;
                    frame.after = Some(name);
                }
            }
        }
        Ok(false)
    }

    /// Compares the names that were asked for.
    fn compare_only(
        &mut self,
        tables: &mut Tables<'_>,
        frame: &mut Frame,
        file: &Arc<OwnedFd>,
    ) -> Result<bool, IndexError> {
        for _ in 0..PAGE {
            let Some(name) = frame.names.as_ref().and_then(|names| names.get(frame.at)).map(<[u8]>::to_vec)
            else {
                return Ok(true);
            };
            let old = tables.entry(frame.id, &name)?;
            tables.unmark_gone(frame.id, &name)?;
            let before = old.as_ref().map(|old| (old.kind.clone(), old.stamp.ino));
            let enter = self.see(tables, frame, file, &name, old)?;
            // One that is not watched may have been taken in by somebody who watches nothing, or have the
            // inode of one that was there before.
            let same_folder = matches!(
                (before, tables.entry(frame.id, &name)?),
                (Some((Kind::Folder(id), ino)), Some(now))
                    if now.stamp.ino == ino && self.observer.watches(id)
            );
            if let (true, false, Some(names)) = (enter, same_folder, &mut frame.names) {
                names.enter(frame.at);
            }
            frame.at += 1;
        }
        Ok(false)
    }

    /// Notes that an entry of the index is not there.
    fn miss(
        &mut self,
        tables: &mut Tables<'_>,
        frame: &Frame,
        name: &[u8],
        record: &Record,
    ) -> Result<(), IndexError> {
        self.outdate(frame.id, name);
        let path = join(&self.path, name);
        let ignored = self.ignores.ignores(&path, matches!(record.kind, Kind::Folder(_)));
        if frame.lost_mount && !ignored && self.lost_mount.is_none() {
            self.lost_mount = Some(self.path.clone());
        }
        tables.mark_gone(if ignored { Gone::Ignored } else { Gone::Deleted }, frame.id, name)
    }

    /// What is being hashed under a name is not what the index is to have there: the name is looked at
    /// again, and its folder may be another by now.
    fn outdate(&mut self, folder: FolderId, name: &[u8]) {
        if let Entry::Occupied(mut names) = self.latest.entry(folder) {
            names.get_mut().remove(name);
            if names.get().is_empty() {
                names.remove();
            }
        }
    }

    fn is_latest(&self, pending: &Pending, token: u64) -> bool {
        self.latest.get(&pending.folder).and_then(|names| names.get(&pending.name)) == Some(&token)
    }

    /// Looks at one name. Returns whether it is a folder to go into.
    fn see(
        &mut self,
        tables: &mut Tables<'_>,
        frame: &mut Frame,
        file: &Arc<OwnedFd>,
        name: &[u8],
        old: Option<Record>,
    ) -> Result<bool, IndexError> {
        self.outdate(frame.id, name);
        let path = join(&self.path, name);
        // What agents keep in their folders is no content, be this one or one below it a destination too, or have an archive.
        if name == STAGING_FOLDER {
            if old.is_some() {
                tables.mark_gone(Gone::Ignored, frame.id, name)?;
            }
            return Ok(false);
        }
        self.progress.entries.fetch_add(1, Ordering::Relaxed);
        if let Err(rule) = check_path(&path) {
            let detail = format!("{rule}; left out");
            self.problem(Problem { class: ProblemClass::UnsafeName, path, detail });
            return Ok(false);
        }
        let stat = match disk::stat(file, name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                if let Some(old) = old {
                    self.miss(tables, frame, name, &old)?;
                }
                return Ok(false);
            }
            Err(errno) => {
                self.problem(problem(errno, path, "reading the entry"));
                return Ok(false);
            }
        };
        let kind = file_type(&stat);
        if self.ignores.ignores(&path, kind == FileType::Directory) {
            if old.is_some() {
                tables.mark_gone(Gone::Ignored, frame.id, name)?;
            }
            return Ok(false);
        }
        let stamp = Stamp::of(&stat, self.root_dev);
        match kind {
            FileType::Directory => self.see_folder(tables, frame, file, name, path, stamp, old),
            FileType::RegularFile => {
                self.see_file(tables, frame, file, name, stamp, old)?;
                Ok(false)
            }
            FileType::Symlink => {
                self.see_symlink(tables, frame, file, name, path, stamp, old)?;
                Ok(false)
            }
            _ => {
                if old.is_some() {
                    tables.mark_gone(Gone::Deleted, frame.id, name)?;
                }
                self.problem(Problem {
                    class: ProblemClass::UnsupportedKind,
                    path,
                    detail: "a device, pipe or socket; left out".into(),
                });
                Ok(false)
            }
        }
    }

    fn see_folder(
        &mut self,
        tables: &mut Tables<'_>,
        frame: &Frame,
        file: &Arc<OwnedFd>,
        name: &[u8],
        path: Vec<u8>,
        stamp: Stamp,
        old: Option<Record>,
    ) -> Result<bool, IndexError> {
        let before = match &old {
            Some(Record { kind: Kind::Folder(id), stamp, attributes, .. }) => {
                Some((*id, *stamp, *attributes))
            }
            _ => None,
        };
        let unmounted = before.filter(|(_, before, _)| before.dev != 0 && stamp.dev == 0);
        if let (Some((id, ..)), false) = (unmounted, self.options.accept) {
            // Its record stays, so that the next scan sees it too.
            self.unmounted.insert(id);
        } else if before.is_none_or(|(_, before, _)| before != stamp) {
            let attributes = match before {
                Some((_, before, attributes)) if before.ctime == stamp.ctime => attributes,
                _ => match disk::open_folder(file, name).and_then(|folder| attributes(&folder)) {
                    Ok(attributes) => attributes,
                    Err(errno) => {
                        self.problem(problem(errno, path.clone(), "reading the folder's attributes"));
                        None
                    }
                },
            };
            let id = before.map_or_else(|| tables.new_folder(), |(id, ..)| id);
            if before.is_none_or(|(_, before, _)| before.ino != stamp.ino)
                && stamp.dev == 0
                && let Some(other) = tables.folder_of_inode(stamp.ino)?
                && other != id
            {
                self.moved.insert(id, other);
                // Its watch goes along.
                if let Some((above, name)) = tables.folder(other)?
                    && tables.entry(above, &name)?.is_some_and(|record| record.stamp.ino == stamp.ino)
                {
                    self.note_unread(tables, above, &name)?;
                }
            }
            tables.put(frame.id, name, Record { sequence: 0, stamp, attributes, kind: Kind::Folder(id) })?;
        }
        if stamp.dev != 0 && self.options.one_file_system {
            self.problem(Problem {
                class: ProblemClass::UnsupportedKind,
                path,
                detail: "another file system is mounted here; not entered".into(),
            });
            return Ok(false);
        }
        if self.stack.len() >= DEPTH_MAX {
            let detail = format!("deeper than {DEPTH_MAX} folders; not entered");
            self.problem(Problem { class: ProblemClass::LimitExceeded, path, detail });
            return Ok(false);
        }
        Ok(true)
    }

    fn see_file(
        &mut self,
        tables: &mut Tables<'_>,
        frame: &Frame,
        file: &Arc<OwnedFd>,
        name: &[u8],
        stamp: Stamp,
        old: Option<Record>,
    ) -> Result<(), IndexError> {
        if let Some(old) = &old
            && old.content().is_some()
            && old.stamp.same_content(&stamp)
        {
            if old.stamp != stamp {
                tables.put(frame.id, name, Record { stamp, ..old.clone() })?;
            }
            return Ok(());
        }
        if let Some(former) = frame.formerly
            && let Some(record) = tables.entry(former, name)?
            && record.stamp == stamp
            && let Some(content) = record.content().copied()
        {
            self.moved_entries += 1;
            // The hashes move over: the old entry is gone anyway, and if not, it is read again.
            tables.put(frame.id, name, record.clone())?;
            let left = Content { blocks: 0, settled: false, ..content };
            tables.put_quietly(former, name, Record { kind: Kind::File(Some(left)), ..record })?;
            return Ok(());
        }
        while self.pending.len() >= HASHING_MAX && !self.stop.load(Ordering::Relaxed) {
            self.take_told(tables, Duration::from_millis(50))?;
        }
        let token = self.next_token;
        self.next_token += 1;
        let granularity = if stamp.dev == 0 { self.granularity } else { COARSE_TIMES };
        self.hashers
            .hash(Job { token, folder: file.clone(), name: name.to_vec(), granularity }, self.pending.len());
        let content = tables.new_content();
        self.pending.insert(token, Pending { folder: frame.id, name: name.to_vec(), stamp, content });
        self.latest.entry(frame.id).or_default().insert(name.to_vec(), token);
        self.progress.waiting.store(self.pending.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn see_symlink(
        &mut self,
        tables: &mut Tables<'_>,
        frame: &Frame,
        file: &Arc<OwnedFd>,
        name: &[u8],
        path: Vec<u8>,
        stamp: Stamp,
        old: Option<Record>,
    ) -> Result<(), IndexError> {
        if old.is_some_and(|old| matches!(old.kind, Kind::Symlink(_)) && old.stamp == stamp) {
            return Ok(());
        }
        match fs::readlinkat(file, name, Vec::new()) {
            Ok(target) => {
                let kind = Kind::Symlink(target.into_bytes());
                let record = Record { sequence: 0, stamp, attributes: None, kind };
                tables.put(frame.id, name, record)?;
            }
            Err(errno) => self.problem(problem(errno, path, "reading the symlink")),
        }
        Ok(())
    }

    /// Takes in what the hashing threads tell; waits for the first of it at most so long.
    pub(super) fn take_told(&mut self, tables: &mut Tables<'_>, wait: Duration) -> Result<(), IndexError> {
        let mut wait = wait;
        while !self.pending.is_empty()
            && let Some(told) = self.hashers.told(wait)
        {
            wait = Duration::ZERO;
            match told {
                Told::Blocks { token, row, hashes } => {
                    if let Some(pending) = self.pending.get(&token) {
                        tables.begin_blocks(pending.content);
                        tables.put_blocks(pending.content, row, &hashes)?;
                    }
                }
                Told::Anew { token } => {
                    if let Some(pending) = self.pending.get(&token) {
                        tables.remove_blocks(pending.content)?;
                    }
                }
                Told::Done(done) => {
                    for (token, result) in done {
                        if let Some(pending) = self.pending.remove(&token) {
                            self.progress.waiting.store(self.pending.len() as u64, Ordering::Relaxed);
                            if self.is_latest(&pending, token) {
                                self.outdate(pending.folder, &pending.name);
                                self.hashed(tables, pending, result)?;
                            } else {
                                tables.remove_blocks(pending.content)?;
                                tables.end_blocks(pending.content);
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn hashed(
        &mut self,
        tables: &mut Tables<'_>,
        pending: Pending,
        result: Result<Hashed, Failure>,
    ) -> Result<(), IndexError> {
        let Pending { folder, name, stamp, content } = pending;
        // Meanwhile its folder gave way to something else of that name.
        if tables.folder(folder)?.is_none() {
            tables.remove_blocks(content)?;
            tables.end_blocks(content);
            return Ok(());
        }
        let problem = match result {
            Ok(hashed) => {
                self.progress.hashed.fetch_add(1, Ordering::Relaxed);
                return self.put_hashed(tables, folder, name, content, hashed);
            }
            Err(Failure::Stopped) => None,
            // Gone or another kind: the folder is looked at again for that by whoever noticed.
            Err(Failure::Kind | Failure::Errno(Errno::NOENT | Errno::LOOP | Errno::NXIO)) => {
                self.again(folder, &name);
                None
            }
            Err(Failure::Changed) => {
                self.again(folder, &name);
                Some((ProblemClass::SourceChanged, "the file changed each time it was read; left out".into()))
            }
            Err(Failure::Errno(errno)) => {
                let problem = disk::problem(errno, Vec::new(), "reading the file");
                Some((problem.class, problem.detail))
            }
        };
        tables.remove_blocks(content)?;
        tables.end_blocks(content);
        let Some((class, detail)) = problem else { return Ok(()) };
        let path = join(&tables.path_of(folder)?.unwrap_or_default(), &name);
        self.problem(Problem { class, path, detail });
        // It is there, and what was known of its content is not true any more.
        let record = Record { sequence: 0, stamp, attributes: None, kind: Kind::File(None) };
        tables.put(folder, &name, record)?;
        Ok(())
    }

    fn put_hashed(
        &mut self,
        tables: &mut Tables<'_>,
        folder: FolderId,
        name: Vec<u8>,
        content: u64,
        hashed: Hashed,
    ) -> Result<(), IndexError> {
        let kind = Kind::File(Some(Content {
            root: hashed.root,
            weak: hashed.weak,
            blocks: if hashed.blocks > 1 { content } else { 0 },
            settled: hashed.settled,
        }));
        let stamp = Stamp::of(&hashed.stat, self.root_dev);
        tables.put(folder, &name, Record { sequence: 0, stamp, attributes: hashed.attributes, kind })?;
        tables.end_blocks(content);
        if !hashed.settled {
            self.again(folder, &name);
        }
        Ok(())
    }

    fn again(&mut self, folder: FolderId, name: &[u8]) {
        if self.unsettled.len() < AGAIN_MAX {
            self.unsettled.push((folder, name.to_vec()));
        }
    }
}

/// The place of the first name beyond another.
fn first_beyond(names: &Names, after: &[u8]) -> usize {
    let (mut low, mut high) = (0, names.len());
    while low < high {
        let middle = low + (high - low) / 2;
        if names.get(middle).is_some_and(|name| name <= after) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
