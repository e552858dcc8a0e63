//! Reading a source: a folder or a single file becomes a manifest and a list of what could not be
//! taken in.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use agent_proto::limits::BLOCK_LEN;
use event_schema::{Problem, ProblemClass};
use folder_index::{Content, Ignores, IndexError, Known};
use rustix::fs::{self, Dir, FileType, Stat};
use rustix::io::Errno;
use sync_core::manifest::{
    BlockHash, Entry as ManifestEntry, EntryRule, Kind, ManifestError, Mtime, STAGING_FOLDER, check_path,
    link_stays_inside,
};

use super::folder::{Folder, file_type, mtime};
use super::manifest::{ManifestFile, ManifestWriter};
use super::metadata::{Owners, extents, xattrs};
use super::{Problems, problem, rules};

/// How often a file that changes under the reader is read again before it is left out.
const READ_TRIES: u32 = 3;

/// How far indexing has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IndexProgress {
    /// Entries seen.
    pub(crate) entries: u64,
    /// Bytes hashed.
    pub(crate) bytes: u64,
}

/// [`index_known`], reading every file.
#[cfg(test)]
pub(crate) fn index_path(
    path: &Path,
    state: &Path,
    progress: &mut dyn FnMut(IndexProgress) -> bool,
) -> Result<(ManifestFile, Vec<Problem>), Problem> {
    index_known(path, state, None, &[], progress)
}

/// Reads everything below `path` that its rules and those of the `job` do not leave out (or the one file it names), but for
/// the files that the folder's index knows as they are, and writes the manifest to [`super::PART`] in the folder `state`. `progress` is called now and then and stops
/// the work by returning `false`.
///
/// In memory are the names of the folders that are open, one on each level, and some 80 bytes for each file with
/// further names that were not met yet.
///
/// # Errors
/// If `path` itself or the folder's rules cannot be read, or the manifest cannot be written. What is wrong with single entries is in the
/// list of problems, and those entries are not in the manifest.
pub(crate) fn index_known(
    path: &Path,
    state: &Path,
    known: Option<Known>,
    job: &[String],
    progress: &mut dyn FnMut(IndexProgress) -> bool,
) -> Result<(ManifestFile, Vec<Problem>), Problem> {
    let shown = path.as_os_str().as_encoded_bytes();
    let stat = fs::stat(path).map_err(|e| problem(e, shown, "reading the source"))?;
    let out = ManifestWriter::create(state).map_err(not_written)?;
    let whole = file_type(&stat) == FileType::Directory;
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let parent = match path.parent() {
        _ if whole => path,
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = Folder::open(parent).map_err(|e| problem(e, shown, "opening the source folder"))?;
    // A file that was named is meant, whatever the rules say.
    let rules = if whole { rules::of(&folder, job)? } else { Ignores::none() };
    let mut index = Index {
        folder,
        rules,
        out,
        known,
        owners: Owners::default(),
        links: HashMap::new(),
        problems: Problems::default(),
        done: IndexProgress::default(),
        progress,
    };
    if whole {
        index.take_folder(b"", &stat)?;
        index.walk()?;
    } else {
        index.take(name)?;
    }
    index.finish()
}

struct Index<'a> {
    folder: Folder,
    /// What is left out.
    rules: Ignores,
    out: ManifestWriter,
    /// Of a whole folder, if it has an index.
    known: Option<Known>,
    owners: Owners,
    /// Files with further names that were not met yet, by device and inode.
    links: HashMap<(u64, u64), First>,
    problems: Problems,
    done: IndexProgress,
    progress: &'a mut dyn FnMut(IndexProgress) -> bool,
}

/// A file by the first of its names.
struct First {
    /// Index of its entry.
    index: u64,
    /// How many further names there may be.
    left: u32,
    /// Size, time of change and the inode's own time: what has the number of its inode may be another file by now.
    stamp: (i64, [i64; 4]),
}

impl First {
    fn stamp(stat: &Stat) -> (i64, [i64; 4]) {
        let nanos = [stat.st_mtime_nsec, stat.st_ctime_nsec].map(|nanos| i64::try_from(nanos).unwrap_or(0));
        (stat.st_size, [stat.st_mtime, nanos[0], stat.st_ctime, nanos[1]])
    }
}

/// A folder that is being read: its names, from the last to the first.
struct Level {
    path_len: usize,
    names: Names,
}

/// Many names in little room.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    /// Where each begins and ends.
    places: Vec<(u32, u32)>,
}

impl Names {
    fn push(&mut self, name: &[u8]) -> rustix::io::Result<()> {
        let start = u32::try_from(self.bytes.len()).map_err(|_| Errno::OVERFLOW)?;
        let end = u32::try_from(self.bytes.len() + name.len()).map_err(|_| Errno::OVERFLOW)?;
        self.bytes.extend_from_slice(name);
        self.places.push((start, end));
        Ok(())
    }

    /// Sorts them so that [`Self::pop`] gives the first one first.
    fn sort(&mut self) {
        let bytes = &self.bytes;
        let name = |(start, end): (u32, u32)| &bytes[start as usize..end as usize];
        self.places.sort_unstable_by(|a, b| name(*b).cmp(name(*a)));
    }

    fn pop(&mut self) -> Option<&[u8]> {
        let (start, end) = self.places.pop()?;
        Some(&self.bytes[start as usize..end as usize])
    }
}

impl Index<'_> {
    /// Takes in all that is below the folder, in the order of the manifest.
    fn walk(&mut self) -> Result<(), Problem> {
        let mut path = Vec::new();
        let mut levels: Vec<Level> = self.names(&path).into_iter().collect();
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                continue;
            };
            path.truncate(level.path_len);
            if !path.is_empty() {
                path.push(b'/');
            }
            // What agents keep in their folders is no content, be this one or one below it a destination elsewhere, or
            // have an archive.
            let is_ours = name == STAGING_FOLDER;
            path.extend_from_slice(name);
            if !is_ours && self.take(&path)? {
                levels.extend(self.names(&path));
            }
        }
        Ok(())
    }

    /// The names in a folder.
    fn names(&mut self, path: &[u8]) -> Option<Level> {
        match names(&self.folder, path) {
            Ok(names) => Some(Level { path_len: path.len(), names }),
            Err(e) => {
                self.problems.push(problem(e, path, "reading the folder"));
                None
            }
        }
    }

    /// Takes in one entry; true if it is a folder and those in it are to follow.
    fn take(&mut self, path: &[u8]) -> Result<bool, Problem> {
        self.done.entries += 1;
        self.check_in()?;
        let stat = self.folder.stat(path);
        // Nobody who leaves something out wants to hear what is wrong with it.
        if stat.as_ref().is_ok_and(|stat| self.rules.ignores(path, is_folder(stat))) {
            return Ok(false);
        }
        if let Err(rule) = check_path(path) {
            self.refuse(path, rule);
            return Ok(false);
        }
        let stat = match stat {
            Ok(stat) => stat,
            Err(e) => {
                self.problems.push(problem(e, path, "reading the entry"));
                return Ok(false);
            }
        };
        match file_type(&stat) {
            FileType::Directory => return self.take_folder(path, &stat),
            FileType::RegularFile => self.take_file(path, &stat)?,
            FileType::Symlink => match read_link(&self.folder, path) {
                Ok(target) if self.stays_inside(path, &target) => {
                    let link = self.entry(path, &stat, Kind::Symlink { target });
                    self.write(&ManifestEntry { mode: 0, ..link })?;
                }
                Ok(target) => self.problems.push(Problem {
                    class: ProblemClass::UnsafeLink,
                    path: path.to_vec(),
                    detail: format!(
                        "the symlink leads out of the folder, to {}; not sent",
                        target.escape_ascii()
                    ),
                }),
                Err(e) => self.problems.push(problem(e, path, "reading the symlink")),
            },
            _ => self.problems.push(Problem {
                class: ProblemClass::UnsupportedKind,
                path: path.to_vec(),
                detail: "a device, pipe or socket; not sent".into(),
            }),
        }
        Ok(false)
    }

    /// Takes in a folder; true if those in it are to follow.
    fn take_folder(&mut self, path: &[u8], stat: &Stat) -> Result<bool, Problem> {
        match self.folder.walk(path).and_then(|fd| xattrs(fd.as_fd())) {
            Ok(xattrs) => {
                let folder = ManifestEntry { xattrs, ..self.entry(path, stat, Kind::Folder) };
                self.write(&folder)
            }
            // Who may not read a folder may still know that it is there.
            Err(e) => {
                self.problems.push(problem(e, path, "reading the folder"));
                let folder = self.entry(path, stat, Kind::Folder);
                self.write(&folder)?;
                Ok(false)
            }
        }
    }

    fn take_file(&mut self, path: &[u8], stat: &Stat) -> Result<(), Problem> {
        let identity = (stat.st_dev, stat.st_ino);
        if let Entry::Occupied(mut found) = self.links.entry(identity) {
            let first = found.get_mut();
            if stat.st_nlink > 1 && First::stamp(stat) == first.stamp {
                let to = first.index;
                first.left -= 1;
                if first.left == 0 {
                    found.remove();
                }
                let link = ManifestEntry::new(path, 0, Mtime::default(), Kind::HardLink { to });
                return self.write(&link).map(|_| ());
            }
            found.remove();
        }
        let index = self.out.entries();
        let plain = self.plain(path, stat);
        let taken = plain.map_or_else(|| self.file(path), |entry| Ok(Ok((entry, *stat))))?;
        match taken {
            Ok((entry, stat)) => {
                let further = u32::try_from(stat.st_nlink).unwrap_or(u32::MAX).saturating_sub(1);
                if self.write(&entry)? && further > 0 {
                    let first = First { index, left: further, stamp: First::stamp(&stat) };
                    self.links.insert((stat.st_dev, stat.st_ino), first);
                }
            }
            Err(problem) => {
                self.out.drop_hashes().map_err(not_written)?;
                self.problems.push(problem);
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &[u8], stat: &Stat, kind: Kind) -> ManifestEntry {
        let owner = Some(self.owners.of(stat));
        ManifestEntry { owner, ..ManifestEntry::new(path, stat.st_mode & 0o7777, mtime(stat), kind) }
    }

    /// Adds an entry to the manifest; false if it breaks a rule and is left out.
    fn write(&mut self, entry: &ManifestEntry) -> Result<bool, Problem> {
        match self.out.push(entry).map_err(not_written)? {
            Ok(()) => Ok(true),
            Err(ManifestError::Entry { rule, .. }) => {
                self.refuse(&entry.path, rule);
                Ok(false)
            }
            Err(e) => Err(Problem {
                class: ProblemClass::LimitExceeded,
                path: entry.path.clone(),
                detail: e.to_string(),
            }),
        }
    }

    fn refuse(&mut self, path: &[u8], rule: EntryRule) {
        let class = match rule {
            EntryRule::BadName | EntryRule::ReservedName => ProblemClass::UnsafeName,
            EntryRule::UnsafeLink => ProblemClass::UnsafeLink,
            _ => ProblemClass::LimitExceeded,
        };
        self.problems.push(Problem { class, path: path.to_vec(), detail: format!("{rule}; not sent") });
    }

    /// Whether a symlink leads out of the folder. Where that depends on what else is there, the disk is asked: what
    /// is a folder there becomes one in the manifest.
    fn stays_inside(&self, path: &[u8], target: &[u8]) -> bool {
        let is_entry = |path: &[u8]| {
            let there = check_path(path).is_ok()
                && self.folder.stat(path).is_ok_and(|stat| is_folder(&stat))
                && !self.rules.leaves_out(path, true);
            Ok::<_, std::convert::Infallible>(there)
        };
        matches!(link_stays_inside(path, target, is_entry), Ok(true))
    }

    /// A file that the index knows as it is, and knows to be nothing but bytes: it need not even be opened.
    fn plain(&mut self, path: &[u8], stat: &Stat) -> Option<ManifestEntry> {
        let kind = Kind::file(stat.st_size as u64);
        let content = self.known.as_mut()?.plain(path, stat);
        self.push_known(content, stat, &kind).then(|| self.entry(path, stat, kind))
    }

    /// Hashes a file, again if it changes meanwhile.
    fn file(&mut self, path: &[u8]) -> Result<Result<(ManifestEntry, Stat), Problem>, Problem> {
        for _ in 0..READ_TRIES {
            self.out.drop_hashes().map_err(not_written)?;
            match self.read_once(path) {
                Ok(Some(Ok(entry))) => return Ok(Ok(entry)),
                Ok(Some(Err(stop))) => return Err(stop),
                Ok(None) => {}
                Err(e) => return Ok(Err(problem(e, path, "reading the file"))),
            }
        }
        Ok(Err(Problem {
            class: ProblemClass::SourceChanged,
            path: path.to_vec(),
            detail: format!("the file changed each of the {READ_TRIES} times it was read; not sent"),
        }))
    }

    /// One attempt; `None` if the file changed while it was read.
    fn read_once(
        &mut self,
        path: &[u8],
    ) -> rustix::io::Result<Option<Result<(ManifestEntry, Stat), Problem>>> {
        let file = self.folder.open_file(path)?;
        let before = fs::fstat(&file)?;
        let xattrs = xattrs(file.as_fd())?;
        let size = before.st_size as u64;
        let kind = Kind::File { size, data: extents(file.as_fd(), &before)? };
        let content = self.known.as_mut().map_or(Ok(None), |known| known.content(path, &before));
        let known = self.push_known(content, &before, &kind);
        let mut block = vec![0; size.min(u64::from(BLOCK_LEN)) as usize];
        let mut blocks = 0u64;
        for nth in kind.file_blocks().flatten().take_while(|_| !known) {
            let offset = nth * u64::from(BLOCK_LEN);
            let len = (size - offset).min(u64::from(BLOCK_LEN)) as usize;
            match file.read_exact_at(&mut block[..len], offset) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(e) => return Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
            }
            if let Err(e) = self.out.push_hash(&BlockHash::of(&block[..len])) {
                return Ok(Some(Err(not_written(e))));
            }
            blocks += 1;
            self.done.bytes += len as u64;
            if blocks.is_multiple_of(64)
                && let Err(stop) = self.check_in()
            {
                return Ok(Some(Err(stop)));
            }
        }
        let same = same_version(&before, &fs::fstat(&file)?);
        let entry = ManifestEntry { xattrs, ..self.entry(path, &before, kind) };
        Ok(same.then_some(Ok((entry, before))))
    }

    /// Takes the hashes of a file from the folder's index if it knows the file as it is. What goes wrong with that
    /// is no problem: the file is read.
    fn push_known(&mut self, content: Result<Option<Content>, IndexError>, stat: &Stat, kind: &Kind) -> bool {
        let Some(known) = &mut self.known else { return false };
        let content = match content {
            Ok(None) => return false,
            Ok(Some(content)) => Ok(content),
            Err(e) => Err(e.to_string()),
        };
        let pushed = content.and_then(|content| {
            // The index has hashes of all blocks, the manifest none of those in holes.
            let mut blocks = known.blocks(stat.st_size as u64, &content);
            let mut next = 0;
            for wanted in kind.file_blocks().flatten() {
                let block = blocks.nth((wanted - next) as usize).ok_or("a file with too few hashes")?;
                let (strong, weak) = block.map_err(|e| e.to_string())?;
                self.out.push_hash(&BlockHash { strong, weak }).map_err(|e| e.to_string())?;
                next = wanted + 1;
            }
            Ok::<_, String>(())
        });
        if let Err(error) = pushed {
            tracing::warn!(error, "the folder's index cannot be read; its files are");
            self.known = None;
            // If that fails, so does the next hash.
            let _ = self.out.drop_hashes();
            return false;
        }
        true
    }

    fn check_in(&mut self) -> Result<(), Problem> {
        if (self.progress)(self.done) {
            Ok(())
        } else {
            Err(Problem {
                class: ProblemClass::Internal,
                path: Vec::new(),
                detail: "indexing was stopped".into(),
            })
        }
    }

    fn finish(self) -> Result<(ManifestFile, Vec<Problem>), Problem> {
        let whole = |e: ManifestError| match e {
            ManifestError::Entry { path, rule } => Problem {
                class: ProblemClass::SourceChanged,
                path,
                detail: format!("{rule}: the folder changed while it was read; start the job again"),
            },
            e => Problem { class: ProblemClass::LimitExceeded, path: Vec::new(), detail: e.to_string() },
        };
        let file = self.out.finish().map_err(not_written)?.map_err(whole)?;
        let manifest = ManifestFile::open(Arc::new(file)).map_err(whole)?;
        Ok((manifest, self.problems.into_vec()))
    }
}

fn is_folder(stat: &Stat) -> bool {
    file_type(stat) == FileType::Directory
}

fn not_written(error: std::io::Error) -> Problem {
    problem(Errno::from_io_error(&error).unwrap_or(Errno::IO), b"", "writing the manifest")
}

fn names(folder: &Folder, path: &[u8]) -> rustix::io::Result<Names> {
    let fd = folder.walk(path)?;
    let mut names = Names::default();
    for item in Dir::read_from(&fd)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name)?;
        }
    }
    names.sort();
    Ok(names)
}

fn read_link(folder: &Folder, path: &[u8]) -> rustix::io::Result<Vec<u8>> {
    let (parent, name) = folder.parent(path)?;
    Ok(fs::readlinkat(&parent, name, Vec::new())?.into_bytes())
}

/// Whether nobody wrote to the file between two looks at it.
fn same_version(a: &Stat, b: &Stat) -> bool {
    (a.st_size, a.st_mtime, a.st_mtime_nsec, a.st_ctime, a.st_ctime_nsec)
        == (b.st_size, b.st_mtime, b.st_mtime_nsec, b.st_ctime, b.st_ctime_nsec)
}
