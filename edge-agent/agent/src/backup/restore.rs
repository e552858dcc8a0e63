//! A version as the source of a run (`edge-agent/BACKUP.md` §6): its manifest is made from the one that was kept, of what is
//! on the disk as that one says.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use event_schema::{Problem, ProblemClass};
use rustix::io::Errno;
use sync_core::manifest::{Entry, EntryRule, Kind, ManifestError, link_stays_inside};

use super::name::VersionName;
use super::shelf::Shelf;
use crate::disk::{
    Folder, IndexProgress, ManifestFile, ManifestWriter, Problems, ReadError, holes_hold_nothing, problem,
    read_block,
};

/// The shelf that a version stands on, and what is meant in the version, from a path that leads into it.
pub(crate) fn locate(path: &Path, version: &VersionName) -> Option<(PathBuf, Vec<u8>)> {
    let name = version.to_string();
    let mut at = PathBuf::new();
    let mut parts = path.components();
    while let Some(part) = parts.next() {
        // Something in a version may have the version's name: the shelf is above the first one.
        if part.as_os_str() == name.as_str() && Shelf::open(&at).is_ok_and(|s| s.note(version).is_some()) {
            return Some((at, parts.as_path().as_os_str().as_encoded_bytes().to_vec()));
        }
        at.push(part);
    }
    None
}

/// The folder that the entries of a restore's manifest are below, where a run has this path: the version's, or the one that
/// what is meant is in.
pub(crate) fn root(path: &Path, version: &VersionName) -> PathBuf {
    let inside = locate(path, version).is_some_and(|(_, inside)| !inside.is_empty());
    path.parent().filter(|_| inside).unwrap_or(path).to_owned()
}

/// Makes the manifest of what is at `path` in a version, in the folder `state`, of all that is as it was backed up. `keeper` is
/// this agent's key: that it did not make the version is told.
///
/// # Errors
/// If there is no such version, or its manifest is not what the source signed: nothing can be proved then. What is
/// missing or differs is in the list of problems, and not in the manifest.
pub(crate) fn index(
    path: &Path,
    version: &VersionName,
    keeper: &[u8; 32],
    state: &Path,
    progress: &mut dyn FnMut(IndexProgress) -> bool,
) -> Result<(ManifestFile, Vec<Problem>), Problem> {
    let of_run = |class, detail: String| Problem { class, path: Vec::new(), detail };
    let (shelf, inside) = locate(path, version)
        .ok_or_else(|| of_run(ProblemClass::NotFound, format!("there is no version {version} here")))?;
    let unusable = |e| problem(e, b"", "opening the version");
    let shelf = Shelf::open(&shelf).map_err(unusable)?;
    let kept = shelf
        .kept(version.clone())
        .ok_or_else(|| of_run(ProblemClass::NotFound, format!("there is no version {version} here")))?;
    let manifest = shelf
        .manifest(&kept)
        .map_err(|why| of_run(ProblemClass::BadManifest, format!("{why}: nothing of it can be proved")))?;
    let folder = shelf.version(version).map_err(unusable)?;
    let mut problems = Problems::default();
    if !kept.is_by(keeper) {
        let detail = format!(
            "version {version} comes as its own record has it, but this agent did not sign that: it is from before an \
             upgrade or of another agent, or somebody laid it here; look at what came back before it is used"
        );
        problems.push(of_run(ProblemClass::BadManifest, detail));
    }
    let first = match inside.is_empty() {
        true => 0,
        false => match manifest.known().find(&inside).map_err(|_| unreadable(Errno::IO))? {
            Some((entry, _)) => entry,
            None => {
                let detail = format!("version {version} has nothing at this path");
                return Err(Problem { class: ProblemClass::NotFound, path: inside, detail });
            }
        },
    };
    let single = !inside.is_empty() && !manifest.entry(first).map_err(unreadable)?.is_folder();
    let prefix_len = inside.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let reader = Reader {
        out: ManifestWriter::create(state).map_err(|e| not_written(&e))?,
        chosen: Chosen { inside, prefix_len, single },
        manifest,
        folder,
        links: HashMap::new(),
        dropped: HashSet::new(),
        problems,
        done: IndexProgress::default(),
        progress,
    };
    reader.run(first)
}

/// What of a version is wanted.
struct Chosen {
    inside: Vec<u8>,
    /// What is cut off from the paths of entries.
    prefix_len: usize,
    /// One entry that is no folder.
    single: bool,
}

impl Chosen {
    fn has(&self, path: &[u8]) -> bool {
        match path.strip_prefix(&self.inside[..]) {
            Some(rest) => rest.is_empty() || !self.single && (self.inside.is_empty() || rest[0] == b'/'),
            None => false,
        }
    }

    /// The path in the new manifest.
    fn moved(&self, path: &[u8]) -> Vec<u8> {
        path.get(self.prefix_len..).unwrap_or_default().to_vec()
    }

    /// The other way round.
    fn original(&self, path: &[u8]) -> Vec<u8> {
        [&self.inside[..self.prefix_len], path].concat()
    }
}

struct Reader<'a> {
    out: ManifestWriter,
    chosen: Chosen,
    manifest: ManifestFile,
    folder: Folder,
    /// Files with further names: the entry that each became.
    links: HashMap<u64, Option<u64>>,
    /// Those of them that are not as they were.
    dropped: HashSet<u64>,
    problems: Problems,
    done: IndexProgress,
    progress: &'a mut dyn FnMut(IndexProgress) -> bool,
}

impl Reader<'_> {
    fn run(mut self, first: u64) -> Result<(ManifestFile, Vec<Problem>), Problem> {
        let first_page = self.manifest.known().page_of_entry(first).unwrap_or(0);
        for take in [false, true] {
            'pages: for page in first_page..self.manifest.pages() {
                let page = self.manifest.page(page).map_err(unreadable)?;
                for (entry, e) in page.entries().filter(|(entry, _)| *entry >= first) {
                    if !self.chosen.has(&e.path) {
                        break 'pages;
                    }
                    match &e.kind {
                        // Once through, to know which files have further names.
                        Kind::HardLink { to } if !take => _ = self.links.insert(*to, None),
                        _ if !take => {}
                        _ => self.take(entry, e, page.blocks_of_entry(entry))?,
                    }
                }
            }
        }
        let file = self.out.finish().map_err(|e| not_written(&e))?.map_err(bad)?;
        let manifest = ManifestFile::open(file.into()).map_err(bad)?;
        Ok((manifest, self.problems.into_vec()))
    }

    fn take(&mut self, entry: u64, e: &Entry, blocks: Range<u64>) -> Result<(), Problem> {
        self.done.entries += 1;
        self.check_in()?;
        let mut moved = Entry { path: self.chosen.moved(&e.path), ..e.clone() };
        match &e.kind {
            Kind::Folder => self.push(&moved).map(drop),
            Kind::Symlink { target } => {
                let target = target.clone();
                if self.stays_inside(&moved.path, &target) {
                    return self.push(&moved).map(drop);
                }
                let detail = "the symlink leads out of what is restored; not sent".into();
                let (class, path) = (ProblemClass::UnsafeLink, e.path.clone());
                self.problems.push(Problem { class, path, detail });
                Ok(())
            }
            Kind::File { .. } => self.take_file(entry, &e.path, &moved, blocks),
            Kind::HardLink { to } => {
                let to = *to;
                if let Some(Some(index)) = self.links.get(&to) {
                    moved.kind = Kind::HardLink { to: *index };
                    return self.push(&moved).map(drop);
                }
                if self.dropped.contains(&to) {
                    self.differs(&e.path, "a hard link to a file that is");
                    return Ok(());
                }
                // The file is not in what is restored: its first name here becomes the file.
                let target = self.manifest.entry(to).map_err(unreadable)?;
                let file = Entry { path: moved.path, ..(*target).clone() };
                self.take_file(to, &e.path, &file, target.blocks())
            }
        }
    }

    /// Takes a file in that is in the version at `path`, if it is there as it was.
    fn take_file(
        &mut self,
        entry: u64,
        path: &[u8],
        moved: &Entry,
        blocks: Range<u64>,
    ) -> Result<(), Problem> {
        let found = match self.folder.open_file(path) {
            Ok(file) => self.is_sound(&file, moved, blocks.clone())?,
            // Something else is there, or nothing.
            Err(Errno::NOENT | Errno::INVAL | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Ok(false),
            Err(error) => Err(error),
        };
        if found != Ok(true) {
            match found {
                Err(error) => {
                    self.problems.push(problem(error, path, "reading the file, which is not restored"))
                }
                Ok(_) => self.differs(path, "the file is missing or"),
            }
            if self.links.contains_key(&entry) {
                self.dropped.insert(entry);
            }
            return Ok(());
        }
        let mut at = blocks.start;
        while at < blocks.end {
            let until = (at + 4096).min(blocks.end);
            let hashes = self.manifest.known().hashes(at..until).map_err(|_| unreadable(Errno::IO))?;
            for hash in hashes {
                self.out.push_hash(&hash).map_err(|e| not_written(&e))?;
            }
            at = until;
        }
        let index = self.out.entries();
        if self.push(moved)?
            && let Some(link) = self.links.get_mut(&entry)
        {
            *link = Some(index);
        }
        Ok(())
    }

    fn differs(&mut self, path: &[u8], what: &str) {
        let detail =
            format!("{what} not what was backed up: not restored; another version or storage may have it");
        let (class, path) = (ProblemClass::Damaged, path.to_vec());
        self.problems.push(Problem { class, path, detail });
    }

    /// Whether a file has the content of an entry, holes included; inside, why it cannot be read.
    fn is_sound(
        &mut self,
        file: &File,
        e: &Entry,
        blocks: Range<u64>,
    ) -> Result<Result<bool, Errno>, Problem> {
        if file.metadata().map_or(u64::MAX, |meta| meta.len()) != e.kind.size() {
            return Ok(Ok(false));
        }
        for (nth, block) in blocks.enumerate() {
            let info =
                self.manifest.block(block).map_err(unreadable)?.ok_or_else(|| unreadable(Errno::IO))?;
            match read_block(file, &info) {
                Ok(_) => {}
                Err(ReadError::Io(error)) => return Ok(Err(error)),
                Err(_) => return Ok(Ok(false)),
            }
            self.done.bytes += u64::from(info.len);
            if nth % 64 == 63 {
                self.check_in()?;
            }
        }
        Ok(Ok(holes_hold_nothing(file, &e.kind)))
    }

    fn stays_inside(&self, path: &[u8], target: &[u8]) -> bool {
        let is_folder = |path: &[u8]| {
            let found = self.manifest.known().find(&self.chosen.original(path))?;
            Ok::<_, ManifestError>(found.is_some_and(|(_, e)| e.is_folder()))
        };
        matches!(link_stays_inside(path, target, is_folder), Ok(true))
    }

    /// Adds an entry; false if it breaks a rule where it is now.
    fn push(&mut self, entry: &Entry) -> Result<bool, Problem> {
        match self.out.push(entry).map_err(|e| not_written(&e))? {
            Ok(()) => Ok(true),
            Err(ManifestError::Entry { rule, .. }) => {
                let class = match rule {
                    EntryRule::UnsafeLink => ProblemClass::UnsafeLink,
                    _ => ProblemClass::LimitExceeded,
                };
                let path = self.chosen.original(&entry.path);
                self.problems.push(Problem { class, path, detail: format!("{rule}; not sent") });
                Ok(false)
            }
            Err(error) => Err(bad(error)),
        }
    }

    fn check_in(&mut self) -> Result<(), Problem> {
        if (self.progress)(self.done) {
            return Ok(());
        }
        let detail = "reading the version was stopped".into();
        Err(Problem { class: ProblemClass::Internal, path: Vec::new(), detail })
    }
}

fn unreadable(error: Errno) -> Problem {
    problem(error, b"", "reading the version's manifest")
}

fn not_written(error: &std::io::Error) -> Problem {
    problem(Errno::from_io_error(error).unwrap_or(Errno::IO), b"", "writing the manifest")
}

fn bad(error: ManifestError) -> Problem {
    Problem { class: ProblemClass::LimitExceeded, path: Vec::new(), detail: error.to_string() }
}
