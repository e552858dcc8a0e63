//! Reading a source: a folder or a single file becomes a manifest and a list of what could not be
//! taken in.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use agent_proto::limits::BLOCK_LEN;
use event_schema::{Problem, ProblemClass};
use rustix::fs::{self, Dir, FileType, Stat};
use rustix::io::Errno;
use sync_core::manifest::{Entry, Kind, Manifest, ManifestError, check_path, link_stays_inside};
use sync_core::merkle::{Hash, block_hash};

use super::folder::{Folder, file_type, mtime};
use super::problem;

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

/// Reads everything below `path` (or the one file it names). `progress` is called now and then and
/// stops the work by returning `false`.
///
/// # Errors
/// If `path` itself cannot be read. What is wrong with single entries is in the list of problems, and
/// those entries are not in the manifest.
pub(crate) fn index_path(
    path: &Path,
    progress: &mut dyn FnMut(IndexProgress) -> bool,
) -> Result<(Manifest, Vec<Problem>), Problem> {
    let shown = path.as_os_str().as_encoded_bytes();
    let stat = fs::stat(path).map_err(|e| problem(e, shown, "reading the source"))?;
    let mut index =
        Index { entries: Vec::new(), problems: Vec::new(), done: IndexProgress::default(), progress };
    let folder;
    if file_type(&stat) == FileType::Directory {
        folder = Folder::open(path).map_err(|e| problem(e, shown, "opening the source folder"))?;
        index.entries.push(entry(Vec::new(), &stat, Kind::Folder));
        index.folder(&folder, Vec::new())?;
    } else {
        let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        folder = Folder::open(parent).map_err(|e| problem(e, shown, "opening the source's folder"))?;
        index.take(&folder, name.as_encoded_bytes().to_vec())?;
    }
    index.finish()
}

struct Index<'a> {
    entries: Vec<Entry>,
    problems: Vec<Problem>,
    done: IndexProgress,
    progress: &'a mut dyn FnMut(IndexProgress) -> bool,
}

impl Index<'_> {
    fn folder(&mut self, folder: &Folder, path: Vec<u8>) -> Result<(), Problem> {
        let names = match names(folder, &path) {
            Ok(names) => names,
            Err(e) => {
                self.problems.push(problem(e, &path, "reading the folder"));
                return Ok(());
            }
        };
        for name in names {
            let mut child = path.clone();
            if !child.is_empty() {
                child.push(b'/');
            }
            child.extend_from_slice(&name);
            // Our own staging folder is no content, should the source be a destination elsewhere.
            if child != sync_core::manifest::STAGING_FOLDER {
                self.take(folder, child)?;
            }
        }
        Ok(())
    }

    /// Takes in one entry and, if it is a folder, all below it.
    fn take(&mut self, folder: &Folder, path: Vec<u8>) -> Result<(), Problem> {
        self.done.entries += 1;
        self.check_in()?;
        if let Err(rule) = check_path(&path) {
            let detail = format!("{rule}; not sent");
            self.problems.push(Problem { class: ProblemClass::UnsafeName, path, detail });
            return Ok(());
        }
        let stat = match folder.stat(&path) {
            Ok(stat) => stat,
            Err(e) => {
                self.problems.push(problem(e, &path, "reading the entry"));
                return Ok(());
            }
        };
        match file_type(&stat) {
            FileType::Directory => {
                self.entries.push(entry(path.clone(), &stat, Kind::Folder));
                self.folder(folder, path)?;
            }
            FileType::RegularFile => match self.file(folder, &path)? {
                Ok(entry) => self.entries.push(entry),
                Err(problem) => self.problems.push(problem),
            },
            FileType::Symlink => match read_link(folder, &path) {
                Ok(target) => {
                    let kind = Kind::Symlink { target };
                    self.entries.push(Entry { mode: 0, ..entry(path, &stat, kind) });
                }
                Err(e) => self.problems.push(problem(e, &path, "reading the symlink")),
            },
            _ => self.problems.push(Problem {
                class: ProblemClass::UnsupportedKind,
                path,
                detail: "a device, pipe or socket; not sent".into(),
            }),
        }
        Ok(())
    }

    /// Hashes a file, again if it changes meanwhile.
    fn file(&mut self, folder: &Folder, path: &[u8]) -> Result<Result<Entry, Problem>, Problem> {
        for _ in 0..READ_TRIES {
            match self.read_once(folder, path) {
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
        folder: &Folder,
        path: &[u8],
    ) -> rustix::io::Result<Option<Result<Entry, Problem>>> {
        let mut file = folder.open_file(path)?;
        let before = fs::fstat(&file)?;
        let mut blocks: Vec<Hash> = Vec::new();
        let mut size = 0;
        let mut block = vec![0; BLOCK_LEN as usize];
        loop {
            let len = read_full(&mut file, &mut block)?;
            if len == 0 {
                break;
            }
            blocks.push(block_hash(&block[..len]));
            size += len as u64;
            self.done.bytes += len as u64;
            if blocks.len().is_multiple_of(64)
                && let Err(stop) = self.check_in()
            {
                return Ok(Some(Err(stop)));
            }
            if size > before.st_size as u64 {
                return Ok(None);
            }
        }
        let same = same_version(&before, &fs::fstat(&file)?) && size == before.st_size as u64;
        let kind = Kind::File { size, blocks };
        Ok(same.then(|| Ok(entry(path.to_vec(), &before, kind))))
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

    fn finish(mut self) -> Result<(Manifest, Vec<Problem>), Problem> {
        self.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        // Links out of the folder are left out; the check needs all folders to be known.
        let keep: Vec<bool> = self
            .entries
            .iter()
            .map(|e| match &e.kind {
                Kind::Symlink { target } => link_stays_inside(&self.entries, &e.path, target),
                _ => true,
            })
            .collect();
        let mut keep = keep.into_iter();
        let problems = &mut self.problems;
        self.entries.retain(|e| {
            let kept = keep.next().unwrap_or(true);
            if let (false, Kind::Symlink { target }) = (kept, &e.kind) {
                problems.push(Problem {
                    class: ProblemClass::UnsafeLink,
                    path: e.path.clone(),
                    detail: format!(
                        "the symlink leads out of the folder, to {}; not sent",
                        target.escape_ascii()
                    ),
                });
            }
            kept
        });
        match Manifest::from_entries(self.entries) {
            Ok(manifest) => Ok((manifest, self.problems)),
            Err(e) => {
                let path = match &e {
                    ManifestError::Entry { path, .. } => path.clone(),
                    _ => Vec::new(),
                };
                Err(Problem { class: ProblemClass::LimitExceeded, path, detail: e.to_string() })
            }
        }
    }
}

fn names(folder: &Folder, path: &[u8]) -> rustix::io::Result<Vec<Vec<u8>>> {
    let fd = folder.walk(path)?;
    let mut names = Vec::new();
    for item in Dir::read_from(&fd)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    // In the order of the manifest, so that files are read as they will be sent.
    names.sort_unstable();
    Ok(names)
}

fn read_link(folder: &Folder, path: &[u8]) -> rustix::io::Result<Vec<u8>> {
    let (parent, name) = folder.parent(path)?;
    Ok(fs::readlinkat(&parent, name, Vec::new())?.into_bytes())
}

fn entry(path: Vec<u8>, stat: &Stat, kind: Kind) -> Entry {
    Entry { path, mode: stat.st_mode & 0o7777, mtime: mtime(stat), kind }
}

/// Whether nobody wrote to the file between two looks at it.
fn same_version(a: &Stat, b: &Stat) -> bool {
    (a.st_size, a.st_mtime, a.st_mtime_nsec, a.st_ctime, a.st_ctime_nsec)
        == (b.st_size, b.st_mtime, b.st_mtime_nsec, b.st_ctime, b.st_ctime_nsec)
}

/// Fills `buf` as far as the file goes.
fn read_full(file: &mut File, buf: &mut [u8]) -> rustix::io::Result<usize> {
    let mut len = 0;
    while len < buf.len() {
        match file.read(&mut buf[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
        }
    }
    Ok(len)
}
