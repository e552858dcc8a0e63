//! Files that are coming in: one in the stage's folder for each transfer, filled with what this agent has already and with
//! what arrives (SYNC.md §5). What is in them was hashed by us; the machine knows what it should hash to.
//!
//! A transfer that is given up leaves its file for the next one of the same content, also over a restart: which blocks
//! are there is found by hashing them.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use agent_proto::limits::BLOCK_LEN;
use agent_proto::sync::PAGE_BLOCKS;
use folder_index::Catalog;
use rustix::fs::{self, AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use sync_core::merkle::{Hash, block_hash, tree_root};

use super::meta::private;

use super::tree::{Tree, block_len, blocks_of, stat_at};
use crate::disk::{Sought, io_problem, roll, worth};

/// Files of transfers that were given up, kept for their next try.
const KEPT: usize = 128;

/// How far a block is looked for before and behind its place: what is put in or taken out is shorter, or worth sending.
const REACH: u64 = 64 << 20;

/// The largest kept file that is hashed whole to know whether all of it is there. Of a larger one its blocks are found page by
/// page, as hashes come: of what somebody stated and never gave, nothing is read for long.
const KEPT_HASHED: u64 = 1 << 30;

/// Bytes read at once.
const READ: usize = 1 << 20;

/// A file that is coming in.
pub(super) struct Staged {
    file: File,
    name: Vec<u8>,
    root: Hash,
    size: u64,
    path: Vec<u8>,
    state: Mutex<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Written,
    /// It is where it belongs.
    Placed,
    /// The disk did not take it.
    Lost,
    /// Its transfer is over; another one may have it.
    Ended,
}

impl Staged {
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }

    /// What was written may not be on the disk, whatever reads back: it is not kept for another try.
    pub(super) fn lose(&self) {
        self.set(State::Lost);
    }

    /// Whether it is this transfer's still, and not in place.
    fn is_open(&self) -> bool {
        matches!(self.state(), State::Empty | State::Written)
    }

    /// What is lost or in place stays so.
    fn written(&self) {
        let mut state = self.lock();
        if *state == State::Empty {
            *state = State::Written;
        }
    }

    fn set(&self, state: State) {
        *self.lock() = state;
    }

    fn state(&self) -> State {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub(super) struct Stages {
    tree: Arc<Tree>,
    /// Where the same content may be under other jobs.
    catalog: Option<Catalog>,
    open: Mutex<BTreeMap<u32, Arc<Staged>>>,
    /// Given up, the oldest first.
    kept: Mutex<VecDeque<(Hash, Vec<u8>)>>,
}

impl Stages {
    /// Finds what earlier lives left.
    ///
    /// # Errors
    /// If the stage's folder cannot be read.
    pub(super) fn open(tree: Arc<Tree>, catalog: Option<Catalog>) -> Result<Self, Errno> {
        let mut kept = VecDeque::new();
        for item in Dir::read_from(tree.stage())? {
            let name = item?.file_name().to_bytes().to_vec();
            if let Some(root) = root_of_name(&name) {
                kept.push_back((root, name));
            }
        }
        let stages = Self { tree, catalog, open: Mutex::default(), kept: Mutex::new(kept) };
        stages.forget_oldest();
        Ok(stages)
    }

    fn opened(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Staged>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(Hash, Vec<u8>)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of a transfer.
    pub(super) fn get(&self, transfer: u32) -> Option<Arc<Staged>> {
        self.opened().get(&transfer).cloned()
    }

    /// How long a block is that arrives.
    pub(super) fn block_len(&self, transfer: u32, block: u32) -> Option<u32> {
        let size = self.opened().get(&transfer)?.size;
        Some(block_len(size, block)).filter(|len| *len > 0)
    }

    /// Begins a transfer; says which blocks are here: all of them if the content is found anywhere on this agent, else
    /// none.
    ///
    /// # Errors
    /// If no file can be made.
    pub(super) fn begin(
        &self,
        transfer: u32,
        path: &[u8],
        root: Hash,
        size: u64,
        from: Option<&[u8]>,
    ) -> Result<Vec<Range<u32>>, Errno> {
        let stage = self.tree.stage();
        let hex: String = root.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("s-{hex}-{transfer}").into_bytes();
        // A root says nothing of a size: what was kept under it may be of another one, and stays for that.
        let fits =
            |name: &[u8]| matches!(stat_at(stage, name), Ok(Some(stat)) if stat.st_size as u64 == size);
        let earlier = {
            let mut kept = self.kept();
            let at = kept.iter().position(|(r, name)| *r == root && fits(name));
            at.and_then(|at| kept.remove(at)).map(|(_, name)| name)
        };
        let mut state = State::Empty;
        if let Some(earlier) = earlier
            && fs::renameat(stage, earlier.as_slice(), stage, name.as_slice()).is_ok()
        {
            state = State::Written;
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(fs::openat(stage, name.as_slice(), flags, Mode::RUSR | Mode::WUSR)?);
        private(&file)?;
        let set_len = |len| file.set_len(len).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
        set_len(size)?;
        let mut whole = size == 0;
        if !whole && state == State::Written && size <= KEPT_HASHED {
            whole = is_whole(&file, size, &root);
        }
        if !whole {
            whole = self.sources(&root, size, from).any(|source| copy(&source, &file, size, &root));
            if whole {
                state = State::Written;
            } else if state == State::Empty {
                // A source that was another left its bytes.
                set_len(0)?;
                set_len(size)?;
            }
        }
        let staged = Staged { file, name, root, size, path: path.to_vec(), state: Mutex::new(state) };
        self.opened().insert(transfer, Arc::new(staged));
        Ok(if whole { one(0..blocks_of(size)) } else { Vec::new() })
    }

    /// Files that may have a content.
    fn sources<'s>(
        &'s self,
        root: &Hash,
        size: u64,
        from: Option<&[u8]>,
    ) -> impl Iterator<Item = File> + use<'s> {
        let first = from.and_then(|from| self.tree.open_file(from).ok());
        let places = self.catalog.as_ref().map(|catalog| catalog.find(root, size)).unwrap_or_default();
        let others = places.into_iter().filter_map(|place| {
            let folder = crate::disk::Folder::open(&place.root).ok()?;
            folder.open_file(&place.path).ok()
        });
        first.into_iter().chain(others)
    }

    /// Finds blocks of a transfer: in its own file, and at the same place in the older version.
    pub(super) fn reuse(&self, transfer: u32, first: u32, hashes: &[Hash]) -> Vec<Range<u32>> {
        let Some(staged) = self.get(transfer) else { return Vec::new() };
        let older = self.tree.open_file(&staged.path).ok();
        let mut found: Vec<Range<u32>> = Vec::new();
        let mut buffer = vec![0; BLOCK_LEN as usize];
        for (block, hash) in (first..).zip(hashes) {
            let len = block_len(staged.size, block) as usize;
            let at = u64::from(block) * u64::from(BLOCK_LEN);
            let buffer = &mut buffer[..len];
            let mut is_in =
                |file: &File| file.read_exact_at(buffer, at).is_ok() && block_hash(buffer) == *hash;
            // What was never written reads as zeros, which it may have to be.
            let mut there = is_in(&staged.file);
            if !there && older.as_ref().is_some_and(is_in) {
                there = staged.file.write_all_at(buffer, at).is_ok();
                staged.written();
            }
            if there {
                match found.last_mut() {
                    Some(range) if range.end == block => range.end += 1,
                    _ => found.push(block..block + 1),
                }
            }
        }
        found
    }

    /// Finds blocks of a transfer at any place of the older version: number, weak and strong hash of each, all of full
    /// length.
    pub(super) fn search(&self, transfer: u32, sought: Vec<(u32, u32, Hash)>) -> Vec<Range<u32>> {
        let places = sought.iter().map(|(block, ..)| u64::from(*block) * u64::from(BLOCK_LEN));
        let (Some(staged), Some(first), Some(last)) =
            (self.get(transfer), places.clone().min(), places.max())
        else {
            return Vec::new();
        };
        let Ok(older) = self.tree.open_file(&staged.path) else { return Vec::new() };
        let len = older.metadata().map_or(0, |meta| meta.len());
        let end = last.saturating_add(u64::from(BLOCK_LEN) + REACH).min(len);
        // It may have become shorter just now.
        let stretch = first.saturating_sub(REACH).min(end)..end;
        let until = Instant::now() + worth(sought.len() as u64 * u64::from(BLOCK_LEN));
        let rows = sought.into_iter().map(|(block, weak, strong)| (weak, u64::from(block), strong));
        let mut found: Vec<u32> = Vec::new();
        let rolled = roll(
            &older,
            &[stretch],
            &mut Sought::new(rows.collect()),
            &|| Instant::now() < until && staged.is_open(),
            &mut |block, data| {
                if !staged.is_open() {
                    return Ok(());
                }
                let written = staged.file.write_all_at(data, block * u64::from(BLOCK_LEN));
                written.map_err(|e| io_problem(&e, &staged.path, "copying what is here already"))?;
                staged.written();
                found.push(block as u32);
                Ok(())
            },
        );
        if let Err(problem) = rolled {
            tracing::warn!(path = %staged.path.escape_ascii(), "{}", problem.detail);
        }
        found.sort_unstable();
        found.chunk_by(|a, b| a + 1 == *b).map(|run| run[0]..run[run.len() - 1] + 1).collect()
    }

    /// Writes a block that arrived; gives its hash.
    ///
    /// # Errors
    /// If it cannot be written, or fits nowhere.
    pub(super) fn write(&self, transfer: u32, block: u32, data: &[u8]) -> std::io::Result<Hash> {
        let staged = self.get(transfer).ok_or(std::io::ErrorKind::NotFound)?;
        if data.len() != block_len(staged.size, block) as usize || !staged.is_open() {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        staged.file.write_all_at(data, u64::from(block) * u64::from(BLOCK_LEN))?;
        staged.written();
        Ok(block_hash(data))
    }

    /// A transfer's file is where it belongs.
    pub(super) fn placed(&self, transfer: u32) {
        if let Some(staged) = self.get(transfer) {
            staged.set(State::Placed);
        }
    }

    /// A transfer is over. What came of it is kept for a while.
    pub(super) fn end(&self, transfer: u32) {
        let Some(staged) = self.opened().remove(&transfer) else { return };
        // Before it may be another's: a search may be at work still.
        let state = std::mem::replace(&mut *staged.lock(), State::Ended);
        match state {
            State::Placed => {}
            State::Empty | State::Lost | State::Ended => self.remove(&staged.name),
            State::Written => {
                self.kept().push_back((staged.root, staged.name.clone()));
                self.forget_oldest();
            }
        }
    }

    fn forget_oldest(&self) {
        let mut kept = self.kept();
        while kept.len() > KEPT {
            if let Some((_, name)) = kept.pop_front() {
                self.remove(&name);
            }
        }
    }

    fn remove(&self, name: &[u8]) {
        if let Err(error) = fs::unlinkat(self.tree.stage(), name, AtFlags::empty())
            && error != Errno::NOENT
        {
            tracing::debug!(%error, "a staged file stays");
        }
    }

    /// Removes all stages: the job is over here.
    pub(super) fn remove_all(&self) {
        let names = Dir::read_from(self.tree.stage()).into_iter().flatten().flatten();
        for name in names.map(|item| item.file_name().to_bytes().to_vec()) {
            if name.starts_with(b"s-") && matches!(stat_at(self.tree.stage(), &name), Ok(Some(_))) {
                self.remove(&name);
            }
        }
    }
}

/// A list of one range.
fn one(range: Range<u32>) -> Vec<Range<u32>> {
    std::iter::once(range).collect()
}

fn root_of_name(name: &[u8]) -> Option<Hash> {
    let hex = std::str::from_utf8(name).ok()?.strip_prefix("s-")?.get(..64)?;
    let mut root = [0; 32];
    for (i, byte) in root.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(root)
}

/// Reads a file block by block.
pub(super) fn hashes_of(file: &File, size: u64, mut each: impl FnMut(&[u8], Hash) -> bool) -> bool {
    let mut buffer = vec![0; READ];
    let mut at = 0;
    while at < size {
        let want = (size - at).min(READ as u64) as usize;
        if file.read_exact_at(&mut buffer[..want], at).is_err() {
            return false;
        }
        if !buffer[..want].chunks(BLOCK_LEN as usize).all(|block| each(block, block_hash(block))) {
            return false;
        }
        at += want as u64;
    }
    true
}

/// The root over hashes of blocks as they come. No more than a page of them is in memory, and the roots of those that are
/// full: whoever states a size does not say what memory it takes.
#[derive(Default)]
struct Root {
    pages: Vec<Hash>,
    page: Vec<Hash>,
}

impl Root {
    fn push(&mut self, hash: Hash) {
        self.page.push(hash);
        if self.page.len() == PAGE_BLOCKS as usize {
            self.pages.push(tree_root(&self.page));
            self.page.clear();
        }
    }

    fn finish(mut self) -> Hash {
        if !self.page.is_empty() {
            self.pages.push(tree_root(&self.page));
        }
        tree_root(&self.pages)
    }
}

/// The root over a file of so many bytes, if it has them.
pub(super) fn root_of_file(file: &File, size: u64) -> Option<Hash> {
    let mut root = Root::default();
    let whole = hashes_of(file, size, |_, hash| {
        root.push(hash);
        true
    });
    whole.then(|| root.finish())
}

fn is_whole(file: &File, size: u64, root: &Hash) -> bool {
    root_of_file(file, size).as_ref() == Some(root)
}

/// Copies a file if it is the content that is wanted; shares its blocks where the file system can.
fn copy(from: &File, to: &File, size: u64, root: &Hash) -> bool {
    if from.metadata().is_ok_and(|meta| meta.len() != size) {
        return false;
    }
    if fs::ioctl_ficlone(to, from).is_ok() {
        return is_whole(to, size, root);
    }
    let (mut now, mut at) = (Root::default(), 0);
    let copied = hashes_of(from, size, |block, hash| {
        // What is all zeros stays a hole.
        let written = block.iter().all(|b| *b == 0) || to.write_all_at(block, at).is_ok();
        at += block.len() as u64;
        now.push(hash);
        written
    });
    copied && now.finish() == *root
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::RunId;

    #[test]
    fn a_root_is_that_of_all_blocks_however_many() {
        for blocks in [0, 1, 8191, 8192, 8193, 20_000] {
            let hashes: Vec<Hash> = (0..blocks as u32).map(|i| block_hash(&i.to_le_bytes())).collect();
            let mut root = Root::default();
            hashes.iter().for_each(|hash| root.push(*hash));
            assert_eq!(root.finish(), tree_root(&hashes), "{blocks} blocks");
        }
    }

    /// Somebody states the root of a content that was given up, with the largest size: nothing of it is read.
    #[test]
    fn what_was_kept_is_not_taken_up_under_another_size() {
        let root = tempfile::tempdir().expect("a folder");
        let tree = Arc::new(Tree::open(root.path(), RunId([1; 16]), true).expect("opened"));
        let stages = Stages::open(tree, None).expect("opened");
        let content = vec![1; BLOCK_LEN as usize * 2];
        let of = tree_root(&content.chunks(BLOCK_LEN as usize).map(block_hash).collect::<Vec<_>>());
        stages.begin(1, b"a", of, content.len() as u64, None).expect("begun");
        stages.write(1, 0, &content[..BLOCK_LEN as usize]).expect("written");
        stages.end(1);
        let began = Instant::now();
        for transfer in [2, 3] {
            assert!(stages.begin(transfer, b"a", of, 4 << 40, None).expect("begun").is_empty());
            stages.write(transfer, 0, &content[..BLOCK_LEN as usize]).expect("written");
            stages.end(transfer);
        }
        assert!(began.elapsed().as_secs() < 20, "4 TiB of nothing take hours");
        stages.begin(4, b"a", of, content.len() as u64, None).expect("begun");
        assert_eq!(
            stages.reuse(4, 0, &[block_hash(&content[..BLOCK_LEN as usize])]),
            one(0..1),
            "what was kept"
        );
    }

    /// What the disk refused reads back from memory all the same.
    #[test]
    fn what_the_disk_did_not_take_is_not_kept() {
        let root = tempfile::tempdir().expect("a folder");
        let tree = Arc::new(Tree::open(root.path(), RunId([1; 16]), true).expect("opened"));
        let stages = Stages::open(tree, None).expect("opened");
        let of = block_hash(b"some");
        for (transfer, lost) in [(1, true), (2, false), (3, false)] {
            let found = stages.begin(transfer, b"a", of, 4, None).expect("begun");
            assert_eq!(found.is_empty(), transfer < 3, "{transfer}");
            stages.write(transfer, 0, b"some").expect("written");
            if lost {
                stages.get(transfer).expect("open").lose();
            }
            stages.end(transfer);
        }
    }

    #[test]
    fn what_is_here_is_found_and_what_was_given_up_is_taken_up() {
        let root = tempfile::tempdir().expect("a folder");
        let tree = Arc::new(Tree::open(root.path(), RunId([1; 16]), true).expect("opened"));
        let block = BLOCK_LEN as usize;
        let content: Vec<u8> = (0..block * 3 + 100).map(|i| (i / 1000) as u8).collect();
        let hashes: Vec<Hash> = content.chunks(block).map(block_hash).collect();
        let of = tree_root(&hashes);
        let size = content.len() as u64;
        std::fs::write(root.path().join("there"), &content).expect("written");
        let stages = Stages::open(tree.clone(), None).expect("opened");
        let whole = stages.begin(1, b"new", of, size, Some(b"there")).expect("begun");
        assert_eq!(whole, one(0..4));
        stages.end(1);
        // Another life finds it by its name.
        let stages = Stages::open(tree.clone(), None).expect("opened");
        assert_eq!(stages.begin(2, b"new", of, size, None).expect("begun"), one(0..4));
        stages.remove_all();
        let mut older = content.clone();
        older[block] ^= 1;
        std::fs::write(root.path().join("old"), &older).expect("written");
        let stages = Stages::open(tree.clone(), None).expect("opened");
        assert!(stages.begin(3, b"old", of, size, Some(b"old")).expect("begun").is_empty(), "it is another");
        assert_eq!(stages.reuse(3, 0, &hashes), [0..1, 2..4]);
        assert_eq!(stages.block_len(3, 3), Some(100));
        assert_eq!((stages.block_len(3, 4), stages.block_len(9, 0)), (None, None));
        assert_eq!(stages.write(3, 1, &content[block..2 * block]).expect("written"), hashes[1]);
        assert!(stages.write(3, 3, &content[..block]).is_err(), "longer than the last one");
        // The older version has the second and third one elsewhere, and the first one nowhere.
        let elsewhere = [b"before", &content[block..block * 3]].concat();
        std::fs::write(root.path().join("old"), &elsewhere).expect("written");
        let weak = |nth: usize| sync_core::weak::weak_hash(&content[nth * block..(nth + 1) * block]);
        let sought = (0..3).map(|nth| (nth as u32, weak(nth), hashes[nth])).collect();
        assert_eq!(stages.search(3, sought), one(1..3));
        assert!(
            stages.search(3, Vec::new()).is_empty() && stages.search(9, vec![(0, 0, hashes[0])]).is_empty()
        );
        // It became shorter since somebody looked.
        assert!(stages.search(3, vec![(1 << 13, weak(0), hashes[0])]).is_empty());
        stages.end(3);
        let left = Stages::open(tree, None).expect("opened");
        assert_eq!(left.begin(4, b"old", of, size, None).expect("begun"), one(0..4));
        assert!(left.begin(5, b"empty", tree_root(&[]), 0, None).expect("begun") == one(0..0));
    }
}
