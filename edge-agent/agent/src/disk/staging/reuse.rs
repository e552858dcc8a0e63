//! What a destination need not fetch because it has it elsewhere (`edge-agent/PROTOCOL.md` §4.4): blocks that moved
//! inside a file, and files of another name or of another job.
//!
//! Everything found is checked block by block with its strong hash before it counts, so a wrong guess costs time only.
//! What is guessed at is bounded: positions by a budget of false alarms, files by number.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use agent_proto::limits::BLOCK_LEN;
use event_schema::{Problem, ProblemClass};
use rustix::fs::{Dir, FileType};
use rustix::io::Errno;
use sync_core::manifest::{Entry, Kind, STAGING_FOLDER};
use sync_core::merkle::block_hash;

use super::super::folder::{Folder, file_type};
use super::super::problem;
use super::super::reader::read_block;
use super::super::seek::{Rolled, Sought, roll, worth};
use super::{Staging, unreadable};

/// Blocks that are looked for in one pass over a file: 40 bytes each. A file that lacks more is read again for the rest.
const SOUGHT_MAX: usize = 1 << 18;

/// Passes over one file: beyond 256 GiB of missing blocks the rest is fetched.
const PASSES_MAX: usize = 32;

/// Files of other names that are remembered as candidates: some 100 MB at most with long paths, in a run whose manifest
/// lacks as many.
const CANDIDATES_MAX: usize = 500_000;

/// Candidates of an entry's size and name, and of its size alone, that are tried: what they cost if all are wrong is a
/// read of one block each.
const TRIED_MAX: usize = 8;

/// Folders that wait to be looked into.
const FOLDERS_MAX: usize = 200_000;

/// A file of the manifest of which blocks are missing.
#[derive(Clone)]
struct Lacking<'a> {
    entry: u64,
    e: &'a Entry,
    blocks: Range<u64>,
}

/// A file that may hold what an entry lacks.
struct Candidate {
    size: u64,
    /// Which of the folders it is in, and where there.
    root: usize,
    path: Vec<u8>,
}

impl Candidate {
    fn key(&self) -> (u64, &[u8], usize, &[u8]) {
        (self.size, last_name(&self.path), self.root, &self.path)
    }
}

impl Staging {
    /// Finds what is missing elsewhere: in older versions at another place, in other files below the destination, and
    /// below the folders `others`. Gives the number of blocks found.
    ///
    /// # Errors
    /// The problem that keeps the run from going on: the disk is full, or the manifest cannot be read.
    pub(super) fn reuse(&self, others: &[PathBuf], go_on: &dyn Fn() -> bool) -> Result<u64, Problem> {
        let mut found = 0;
        let mut sizes = Vec::new();
        self.each_lacking(go_on, &mut |lacking| {
            found += tolerated(self.shifted(lacking, go_on))?;
            if !self.lock().has_all(lacking.blocks.clone()) && sizes.len() < CANDIDATES_MAX {
                sizes.push(lacking.e.kind.size());
            }
            Ok(())
        })?;
        if sizes.is_empty() {
            return Ok(found);
        }
        sizes.sort_unstable();
        sizes.dedup();
        let mut roots = Vec::new();
        let mut candidates = Vec::new();
        let opened = others.iter().filter_map(|path: &PathBuf| Folder::open(path as &Path).ok());
        // The version before comes first: that is where files are renamed.
        roots.extend(self.before.as_ref().and_then(|before| before.folder().below(b"").ok()));
        roots.extend(opened);
        let missing = self.lock().missing;
        let until = Instant::now() + worth(missing);
        let in_time = || Instant::now() < until && go_on();
        // Below the destination first: that is where files are renamed.
        for root in std::iter::once(roots.len()).chain(0..roots.len()) {
            let folder = roots.get(root).unwrap_or(self.folder());
            look_through(folder, root, &sizes, &mut candidates, &in_time);
        }
        if !in_time() {
            tracing::debug!("the search in other folders took too long; the rest is fetched");
        }
        self.folder().forget();
        candidates.sort_by(|a, b| a.key().cmp(&b.key()));
        self.each_lacking(go_on, &mut |lacking| {
            for candidate in nearest(&candidates, lacking.e) {
                if candidate.root == roots.len() && candidate.path == lacking.e.path {
                    continue;
                }
                let folder = roots.get(candidate.root).unwrap_or(self.folder());
                let Ok(file) = folder.open_file(&candidate.path) else { continue };
                found += tolerated(self.take_from(&file, lacking, go_on))?;
                if self.lock().has_all(lacking.blocks.clone()) {
                    break;
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Does something with every file that lacks blocks.
    fn each_lacking(
        &self,
        go_on: &dyn Fn() -> bool,
        act: &mut dyn FnMut(&Lacking<'_>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        for page in 0..self.manifest.pages() {
            let page = self.manifest.page(page).map_err(unreadable)?;
            for (entry, e) in page.entries() {
                let lacking = Lacking { entry, e, blocks: page.blocks_of_entry(entry) };
                let lacks = {
                    let inner = self.lock();
                    !inner.has_all(lacking.blocks.clone()) && !inner.given_up.contains(entry)
                };
                if lacks && matches!(e.kind, Kind::File { .. }) {
                    if !go_on() {
                        return Ok(());
                    }
                    act(&lacking)?;
                }
            }
        }
        Ok(())
    }

    /// Copies what a file of the same size has at the same places.
    fn take_from(
        &self,
        file: &File,
        lacking: &Lacking<'_>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<u64, Problem> {
        let mut found = 0;
        for block in lacking.blocks.clone() {
            if self.lock().have.contains(block) {
                continue;
            }
            let info = self.block(block)?;
            // The first one decides whether the rest is looked at.
            let Ok(data) = read_block(file, &info) else {
                if found == 0 {
                    return Ok(0);
                }
                continue;
            };
            self.keep_found(lacking, block, info.offset, &data)?;
            found += 1;
            if !go_on() {
                return Ok(found);
            }
        }
        self.place_if_whole(lacking)?;
        Ok(found)
    }

    /// Looks for missing blocks of an entry at any place of the file that has its name now.
    fn shifted(&self, lacking: &Lacking<'_>, go_on: &dyn Fn() -> bool) -> Result<u64, Problem> {
        let (e, range) = (lacking.e, lacking.blocks.clone());
        if !self.lock().older.contains(lacking.entry) {
            return Ok(0);
        }
        let here = self.folder().open_file(&e.path).ok();
        let Some(file) = here.or_else(|| self.before.as_ref()?.file(&e.path)) else { return Ok(0) };
        let len = file.metadata().map_or(0, |meta| meta.len());
        let mut found = 0;
        // The last block is shorter: it is looked for where it ended.
        if let Some(last) = range.end.checked_sub(1).filter(|last| *last >= range.start)
            && !self.lock().have.contains(last)
        {
            let info = self.block(last)?;
            if let Some(at) = len.checked_sub(u64::from(info.len)).filter(|_| info.len < BLOCK_LEN) {
                let mut data = vec![0; info.len as usize];
                if file.read_exact_at(&mut data, at).is_ok() && block_hash(&data) == info.hash {
                    self.keep_found(lacking, last, info.offset, &data)?;
                    found += 1;
                }
            }
        }
        if len >= u64::from(BLOCK_LEN) {
            let mut from = range.start;
            for _ in 0..PASSES_MAX {
                let Some(mut sought) = self.sought(&mut from, range.end)? else { break };
                found += self.roll(&file, len, lacking, &mut sought, go_on)?.found;
            }
        }
        self.place_if_whole(lacking)?;
        Ok(found)
    }

    /// The next missing blocks of full length from `from` on.
    fn sought(&self, from: &mut u64, end: u64) -> Result<Option<Sought>, Problem> {
        let mut rows = Vec::new();
        while *from < end && rows.len() < SOUGHT_MAX {
            let until = (*from + 4096).min(end);
            let hashes = self.manifest.known().hashes(*from..until);
            let hashes = hashes.map_err(|_| unreadable(Errno::IO))?;
            for (block, hash) in (*from..until).zip(hashes) {
                let is_full = block + 1 < end || self.block(block)?.len == BLOCK_LEN;
                if is_full && !self.lock().have.contains(block) {
                    rows.push((hash.weak, block, hash.strong));
                }
            }
            *from = until;
        }
        Ok((!rows.is_empty()).then(|| Sought::new(rows)))
    }

    /// Moves a window along the stretches of the file that are not known already.
    fn roll(
        &self,
        file: &File,
        len: u64,
        lacking: &Lacking<'_>,
        sought: &mut Sought,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Rolled, Problem> {
        let rolled = roll(file, &self.unknown(len, lacking), sought, go_on, &mut |block, window| {
            let info = self.block(block)?;
            self.keep_found(lacking, block, info.offset, window)
        })?;
        if rolled.gave_up {
            tracing::debug!(path = %lacking.e.path.escape_ascii(), "too many false alarms; the rest is fetched");
        }
        Ok(rolled)
    }

    /// Stretches of the file as it is that are not blocks which are in place already, each with what a window reaches
    /// beyond them.
    fn unknown(&self, len: u64, lacking: &Lacking<'_>) -> Vec<Range<u64>> {
        let (e, range) = (lacking.e, &lacking.blocks);
        let reach = u64::from(BLOCK_LEN) - 1;
        let mut stretches: Vec<Range<u64>> = Vec::new();
        let mut add = |start: u64, end: u64| {
            if start >= end {
                return;
            }
            let (start, end) = (start.saturating_sub(reach), (end + reach).min(len));
            match stretches.last_mut() {
                Some(last) if last.end >= start => last.end = last.end.max(end),
                _ => stretches.push(start..end),
            }
        };
        let inner = self.lock();
        let mut known_to = 0;
        let mut block = range.start;
        while block < range.end {
            // The next run of blocks that are here.
            let Some(first) = (block..range.end).find(|b| inner.have.contains(*b)) else { break };
            let end = inner.have.next_clear(first).unwrap_or(range.end).min(range.end);
            let place = |block: u64| e.kind.block_at(block - range.start);
            if let (Some((start, _)), Some((last, size))) = (place(first), place(end - 1)) {
                add(known_to, start.min(len));
                known_to = last + u64::from(size);
            }
            block = end;
        }
        drop(inner);
        add(known_to, len);
        stretches
    }

    fn keep_found(&self, lacking: &Lacking<'_>, block: u64, offset: u64, data: &[u8]) -> Result<(), Problem> {
        let Lacking { entry, e, .. } = lacking;
        self.write_at(*entry, e, offset, data)
            .map_err(|err| problem(err, &e.path, "copying what is here already"))?;
        self.note_copies(&[block])?;
        self.found([block])
    }

    fn place_if_whole(&self, lacking: &Lacking<'_>) -> Result<(), Problem> {
        let Lacking { entry, e, blocks } = lacking;
        let whole = {
            let inner = self.lock();
            inner.has_all(blocks.clone()) && !inner.placed.contains(*entry)
        };
        if whole {
            self.wait_for_name(*entry, e)
                .map_err(|err| problem(err, &e.path, "putting the file in place"))?;
        }
        Ok(())
    }
}

/// A file that cannot be read or written is no reason not to fetch it; only a full disk ends the search.
fn tolerated(found: Result<u64, Problem>) -> Result<u64, Problem> {
    match found {
        Err(problem) if problem.class != ProblemClass::DiskFull && !problem.path.is_empty() => {
            tracing::debug!(path = %problem.path.escape_ascii(), problem.detail, "nothing is taken from here");
            Ok(0)
        }
        other => other,
    }
}

/// Adds the files below a folder that have one of the sizes.
fn look_through(
    folder: &Folder,
    root: usize,
    sizes: &[u64],
    candidates: &mut Vec<Candidate>,
    go_on: &dyn Fn() -> bool,
) {
    let Ok(top) = folder.stat(b"") else { return };
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        if !go_on() || candidates.len() >= CANDIDATES_MAX {
            return;
        }
        let Ok(opened) = folder.walk(&path) else { continue };
        // Another file system may be a server's that does not answer.
        if !rustix::fs::fstat(&opened).is_ok_and(|stat| stat.st_dev == top.st_dev) {
            continue;
        }
        let Ok(names) = Dir::read_from(&opened) else { continue };
        for (nth, item) in names.enumerate() {
            let Ok(item) = item else { break };
            if nth % 256 == 255 && !go_on() {
                return;
            }
            let name = item.file_name().to_bytes();
            if matches!(name, b"." | b"..") || name == STAGING_FOLDER {
                continue;
            }
            let child = if path.is_empty() { name.to_vec() } else { [&path, &b"/"[..], name].concat() };
            // Some file systems do not tell the kind.
            let kind = match item.file_type() {
                FileType::Unknown => folder.stat(&child).map_or(FileType::Unknown, |stat| file_type(&stat)),
                kind => kind,
            };
            match kind {
                FileType::Directory if waiting.len() < FOLDERS_MAX => waiting.push(child),
                FileType::RegularFile => {
                    let Ok(stat) = folder.stat(&child) else { continue };
                    let size = stat.st_size as u64;
                    if sizes.binary_search(&size).is_ok() && candidates.len() < CANDIDATES_MAX {
                        candidates.push(Candidate { size, root, path: child });
                    }
                }
                _ => {}
            }
        }
    }
}

/// The candidates to be tried: those with the entry's size and name, then some of its size.
fn nearest<'a>(candidates: &'a [Candidate], e: &'a Entry) -> impl Iterator<Item = &'a Candidate> {
    let (size, name) = (e.kind.size(), last_name(&e.path));
    let of_size = candidates.partition_point(|candidate| candidate.size < size);
    let named =
        candidates.partition_point(|candidate| (candidate.size, last_name(&candidate.path)) < (size, name));
    let is_named = move |candidate: &&Candidate| last_name(&candidate.path) == name;
    let same = move |candidate: &&Candidate| candidate.size == size;
    let first = candidates[named..].iter().take_while(same).take_while(is_named).take(TRIED_MAX);
    let others = candidates[of_size..].iter().take_while(same).take(2 * TRIED_MAX);
    first.chain(others.filter(move |candidate| !is_named(candidate)).take(TRIED_MAX))
}

fn last_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&b| b == b'/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::super::seek::{FALSE_ALARMS, WINDOW};
    use super::super::tests::{Case, with_own_mounts};
    use super::*;

    /// Weak hashes that promise what is not there cost a bounded time: no honest manifest has so many.
    #[test]
    fn false_alarms_end_the_search() {
        let same = vec![5; WINDOW];
        let case = Case::new(&[("file", (0..WINDOW).map(|i| (i * i / 7) as u8).collect())], &[]);
        let weak = sync_core::weak::weak_hash(&same);
        let opened = case.open(&[]);
        let path = case.target.path().join("other");
        std::fs::write(&path, same.repeat(400)).expect("written");
        let file = File::open(path).expect("there");
        let page = case.manifest.page(0).expect("there");
        let (entry, e) = page.entries().find(|(_, e)| e.path == b"file").expect("there");
        // Every window has the weak hash of the block that is sought, and none its strong one.
        let mut sought = Sought::new(vec![(weak, 0, [0; 32])]);
        let lacking = Lacking { entry, e, blocks: page.blocks_of_entry(entry) };
        let len = 400 * WINDOW as u64;
        let rolled = opened.staging.roll(&file, len, &lacking, &mut sought, &|| true);
        let rolled = rolled.expect("no trouble");
        assert!(rolled.found == 0 && (FALSE_ALARMS..FALSE_ALARMS + 500).contains(&rolled.false_alarms));
    }
    /// What is mounted below a folder may be a server's that does not answer; and nobody waits for a search for long.
    #[test]
    fn the_search_stays_on_its_file_system_and_ends() {
        with_own_mounts("the_search_stays_on_its_file_system_and_ends", || {
            let bytes: Vec<u8> = (0..1000u32).flat_map(u32::to_le_bytes).collect();
            let case = Case::new(&[("new", bytes.clone())], &[("here/old", b"x".to_vec())]);
            let mount = case.target.path().join("here");
            let args = ["-t", "tmpfs", "none", mount.to_str().expect("text")];
            assert!(std::process::Command::new("mount").args(args).status().expect("mount").success());
            std::fs::write(mount.join("old"), &bytes).expect("room");
            assert_eq!(case.open(&[]).verified.count(), 0);
            // Named by a job itself, it is looked into.
            assert_eq!(case.open(&[mount]).verified.count(), 1);
        });
        let folder = tempfile::tempdir().expect("room");
        for n in 0..600 {
            std::fs::write(folder.path().join(n.to_string()), "x").expect("room");
        }
        let opened = Folder::open(folder.path()).expect("there");
        let (mut candidates, asked) = (Vec::new(), std::cell::Cell::new(0));
        let go_on = || {
            asked.set(asked.get() + 1);
            asked.get() < 2
        };
        look_through(&opened, 0, &[1], &mut candidates, &go_on);
        // `.` and `..` are among the names, wherever they come.
        assert!((253..=255).contains(&candidates.len()), "{}", candidates.len());
    }
}
