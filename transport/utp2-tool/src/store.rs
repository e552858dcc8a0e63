//! The receiver's files on disk: `NAME.part` while blocks come in, `NAME.part.map` for what is there when
//! a transfer stops, `NAME` at the end.
//!
//! Knows neither connections nor messages. A map is only believed as far as the BLAKE3 hash of the whole file
//! confirms it in the end. Nobody may offer a file under the name of a map (`name::check`).

mod map;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use utp2::RangeSet;

use crate::wire::{BLOCK, HAVE_MAX, Meta, block_len, blocks_of};
use crate::{name, place};

/// The largest file taken: its list of blocks is 32 MiB.
const FILE_MAX: u64 = 8 << 40;

/// Blocks that may be there in part at a time. A path of 10 Gbit/s and 500 ms has 20,000 under way.
const PARTIAL_MAX: usize = 1 << 16;

/// Separate ranges of one block: honest senders make some 25 pieces of a block.
const RANGES_MAX: usize = 128;

/// Buffers of a block's size that are kept for further runs.
const SPARE_MAX: usize = 32;

/// Bytes read at a time to hash what has arrived.
const HASH_CHUNK: usize = 1 << 20;

/// Bytes that have to come together before it pays to start hashing them.
const HASH_STEP: u64 = 8 << 20;

/// Room taken on disk in one step: writers wait a millisecond at most.
const ROOM_STEP: u64 = 2 << 20;

/// Why a file cannot be begun; for both sides' people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CannotBegin {
    #[error("another transfer is writing a file of that name")]
    Busy,
    /// Something would be lost that is there, and it is not sure yet that anybody wants that.
    #[error("the offer is not confirmed")]
    Unsure,
    #[error("{0}")]
    Other(String),
}

/// The folder files are written to.
pub(crate) struct OutDir {
    path: PathBuf,
    fsync: bool,
    /// Names in use by transfers under way.
    busy: Mutex<HashSet<OsString>>,
    /// Told each time names are given back.
    freed: Notify,
}

impl OutDir {
    /// Makes the folder if needed and finds out whether files can be made in it.
    pub(crate) fn open(path: PathBuf, fsync: bool) -> io::Result<Arc<Self>> {
        fs::create_dir_all(&path)?;
        let probe = path.join(format!(".utp2-probe-{}", std::process::id()));
        create_anew(&probe)?;
        fs::remove_file(&probe)?;
        Ok(Arc::new(Self { path, fsync, busy: Mutex::default(), freed: Notify::new() }))
    }

    /// The next time that a transfer gives its names back; counts from this call on.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    fn reserve(self: &Arc<Self>, names: [OsString; 4]) -> Option<Reserved> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if names.iter().any(|n| busy.contains(n)) {
            return None;
        }
        busy.extend(names.iter().cloned());
        Some(Reserved { dir: self.clone(), names })
    }
}

/// Names nobody else writes to meanwhile: the file's, its `.part`'s, its `.map`'s, that of a map being written.
struct Reserved {
    dir: Arc<OutDir>,
    names: [OsString; 4],
}

impl Reserved {
    fn path(&self) -> PathBuf {
        self.dir.path.join(&self.names[0])
    }
    fn part(&self) -> PathBuf {
        self.dir.path.join(&self.names[1])
    }
    fn map(&self) -> PathBuf {
        self.dir.path.join(&self.names[2])
    }
    fn fresh_map(&self) -> PathBuf {
        self.dir.path.join(&self.names[3])
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut busy = self.dir.busy.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &self.names {
            busy.remove(name);
        }
        drop(busy);
        self.dir.freed.notify_waiters();
    }
}

/// A file on its way in.
pub(crate) struct PartFile {
    reserved: Reserved,
    meta: Meta,
    blocks: u32,
    file: File,
    state: Mutex<State>,
    /// Locked while the map is written; set once there is nothing left to be mapped, so that a map being
    /// saved on the side does not outlive its file.
    settled: Mutex<bool>,
    /// Nobody waits for it any more.
    abandoned: AtomicBool,
}

struct State {
    /// A bit for each block that is whole on disk.
    done: Vec<u64>,
    missing: u32,
    /// Blocks from the beginning that are all there.
    prefix: u32,
    /// Blocks of which pieces have come and that are not whole on disk.
    partial: HashMap<u32, RangeSet>,
    run: Run,
    /// Buffers of runs that were written.
    spare: Vec<Vec<u8>>,
    failed: bool,
    /// Changed since the map was saved.
    dirty: bool,
    /// The hash of the first so many bytes; away while somebody continues it.
    hash: Option<(Box<blake3::Hasher>, u64)>,
    /// Bytes of the prefix at which hashing was last asked for.
    hash_asked: u64,
}

/// Pieces of a block that follow each other, written together: one call for a block instead of one for a packet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    block: u32,
    start: u32,
    data: Vec<u8>,
    /// With it, and with what was cut before it, the block is whole.
    completes: bool,
}

/// What a piece led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// So many new bytes, and runs to be [put](PartFile::put) in this order.
    New(u32, [Option<Run>; 2]),
    /// Nothing: it was there, or the file has failed already.
    Nothing,
    /// The file cannot go on.
    Failed(String),
}

/// What putting a run led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Done,
    /// Enough has come together to be hashed.
    Hash,
    /// The file cannot go on.
    Failed(String),
}

impl PartFile {
    /// Begins or resumes a file. If the offer is not `sure` to be fresh, only in a way that [`PartFile::leave`]
    /// undoes: what arrived of another file under that name stays.
    pub(crate) fn begin(dir: &Arc<OutDir>, meta: Meta, sure: bool) -> Result<Self, CannotBegin> {
        let name = name::check(&meta.name).map_err(|e| CannotBegin::Other(e.to_string()))?;
        let blocks = blocks_of(meta.size).filter(|_| meta.size <= FILE_MAX);
        let blocks = blocks.ok_or_else(|| CannotBegin::Other("the file is larger than 8 TiB".into()))?;
        let part = name::part(&meta.name);
        let mut map = part.clone();
        map.push(".map");
        let mut fresh = map.clone();
        fresh.push("~");
        let reserved = dir.reserve([name, part, map, fresh]).ok_or(CannotBegin::Busy)?;
        let wrong = |e: io::Error| CannotBegin::Other(format!("cannot write the file: {e}"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let is_new =
            fs::symlink_metadata(reserved.part()).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        // For nobody else to read before it is whole.
        let file = place::open_regular(&reserved.part(), &mut options).map_err(wrong)?;
        let words = blocks.div_ceil(64) as usize;
        let known = map::read(&reserved, &meta, &file, words);
        if known.is_none() && !is_new && !sure {
            return Err(CannotBegin::Unsure);
        }
        // A map that is believed stays: it was true when it was written, and blocks only get more.
        let dirty = known.is_none();
        let done = match known {
            Some(done) => done,
            None => {
                let _ = fs::remove_file(reserved.map());
                file.set_len(0).map_err(wrong)?;
                has_room(&file, meta.size).and_then(|()| file.set_len(meta.size)).map_err(|error| {
                    let _ = fs::remove_file(reserved.part());
                    wrong(error)
                })?;
                vec![0; words]
            }
        };
        let mut state = State {
            missing: blocks - (0..blocks).filter(|&b| has(&done, b)).count() as u32,
            done,
            prefix: 0,
            partial: HashMap::new(),
            run: Run::default(),
            spare: Vec::new(),
            failed: false,
            dirty,
            hash: Some((Box::default(), 0)),
            hash_asked: 0,
        };
        state.extend_prefix(blocks);
        Ok(Self {
            reserved,
            meta,
            blocks,
            file,
            state: Mutex::new(state),
            settled: Mutex::new(false),
            abandoned: AtomicBool::new(false),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Runs of blocks that are there, for the sender to leave out.
    pub(crate) fn have(&self) -> Vec<(u32, u32)> {
        let state = self.state();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for block in (0..self.blocks).filter(|&b| has(&state.done, b)) {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == block => *count += 1,
                _ => runs.push((block, 1)),
            }
            if runs.len() > HAVE_MAX {
                runs.pop();
                break;
            }
        }
        runs
    }

    /// Bytes that are there in whole blocks.
    pub(crate) fn bytes_there(&self) -> u64 {
        let state = self.state();
        (0..self.blocks)
            .filter(|&b| has(&state.done, b))
            .map(|b| u64::from(block_len(self.meta.size, b)))
            .sum()
    }

    /// Takes the file's room on disk, so that others do not while it arrives. On the side and in steps: some file
    /// systems clear what they give, a second for a gigabyte, and let nobody write meanwhile.
    pub(crate) fn take_room(&self) -> io::Result<()> {
        if is_in_memory(&self.file)? {
            // It would only clear what is about to be written.
            return Ok(());
        }
        let mut at = 0;
        while at < self.meta.size && !self.abandoned.load(Ordering::Relaxed) {
            let len = ROOM_STEP.min(self.meta.size - at);
            if !allocate(&self.file, at, len)? {
                return Ok(());
            }
            at += len;
        }
        Ok(())
    }

    /// Ends what goes on on the side.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    #[cfg(test)]
    fn is_complete(&self) -> bool {
        self.state().missing == 0
    }

    /// Takes a piece of a block. Touches no disk: the runs it gives are for [`PartFile::put`], all of a file's in order.
    pub(crate) fn take(&self, block: u32, offset: u32, fin: bool, data: &[u8]) -> Taken {
        let mut state = self.state();
        if state.failed || has(&state.done, block) {
            return Taken::Nothing;
        }
        let taken = self.take_piece(&mut state, block, offset, fin, data);
        if matches!(taken, Taken::Failed(_)) {
            state.failed = true;
        }
        taken
    }

    fn take_piece(&self, state: &mut State, block: u32, offset: u32, fin: bool, data: &[u8]) -> Taken {
        let len = block_len(self.meta.size, block);
        let end = u64::from(offset) + data.len() as u64;
        if data.is_empty() || end > u64::from(len) || fin != (end == u64::from(len)) {
            return Taken::Failed("a piece of a block lies outside the file".into());
        }
        if state.partial.len() >= PARTIAL_MAX && !state.partial.contains_key(&block) {
            return Taken::Failed("too many blocks were begun and not finished".into());
        }
        let ranges = state.partial.entry(block).or_default();
        let new = ranges.insert(u64::from(offset), end) as u32;
        if new == 0 {
            return Taken::Nothing;
        }
        if ranges.as_slice().len() > RANGES_MAX {
            return Taken::Failed("a block comes in too many pieces".into());
        }
        let is_whole = ranges.contains(0, u64::from(len));
        let before = if state.run.goes_on(block, offset) { None } else { state.cut(block, offset) };
        state.run.data.extend_from_slice(data);
        let last = if is_whole { state.cut(block, offset + data.len() as u32) } else { None };
        Taken::New(new, [before, last.map(|run| Run { completes: true, ..run })])
    }

    /// Writes a run. Waits for the disk.
    pub(crate) fn put(&self, mut run: Run) -> Put {
        if self.state().failed {
            return Put::Done;
        }
        let at = u64::from(run.block) * u64::from(BLOCK) + u64::from(run.start);
        let written = place::write_at(&self.file, &run.data, at);
        let mut state = self.state();
        if let Err(error) = written {
            state.failed = true;
            return Put::Failed(format!("cannot write the file: {error}"));
        }
        if state.spare.len() < SPARE_MAX {
            run.data.clear();
            state.spare.push(run.data);
        }
        if !run.completes {
            return Put::Done;
        }
        state.partial.remove(&run.block);
        state.done[run.block as usize / 64] |= 1 << (run.block % 64);
        state.missing -= 1;
        state.dirty = true;
        state.extend_prefix(self.blocks);
        let prefix = u64::from(state.prefix) * u64::from(BLOCK);
        if state.missing == 0 || prefix >= state.hash_asked + HASH_STEP {
            state.hash_asked = prefix;
            return Put::Hash;
        }
        Put::Done
    }

    /// Hashes what has come together since the last time. Gives the digest at the end, once, and nothing any more
    /// once the file is abandoned. Reads the disk: not on the driver.
    pub(crate) fn hash_some(&self) -> io::Result<Option<[u8; 32]>> {
        let mut buf = vec![0; HASH_CHUNK];
        loop {
            let (mut hash, at, until) = {
                let mut state = self.state();
                if self.abandoned.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let until = (u64::from(state.prefix) * u64::from(BLOCK)).min(self.meta.size);
                // Somebody else is at it, and will look again before putting it back.
                let Some((hash, at)) = state.hash.take() else { return Ok(None) };
                if at == until {
                    if at == self.meta.size {
                        return Ok(Some(hash.finalize().into()));
                    }
                    state.hash = Some((hash, at));
                    return Ok(None);
                }
                (hash, at, until)
            };
            let n = (until - at).min(HASH_CHUNK as u64) as usize;
            place::read_at(&self.file, &mut buf[..n], at)?;
            hash.update(&buf[..n]);
            self.state().hash = Some((hash, at + n as u64));
        }
    }

    /// Puts the verified file in its place, with the sender's times and permissions.
    pub(crate) fn finish(&self) -> Result<(), String> {
        self.abandon();
        let finish = || {
            if let Some(modified) = self.meta.modified.and_then(system_time) {
                self.file.set_modified(modified)?;
            }
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                // No set-user-id and the like from the network.
                let mode = self.meta.mode.unwrap_or(0o644) & 0o777;
                self.file.set_permissions(fs::Permissions::from_mode(mode))?;
            }
            if self.reserved.dir.fsync {
                self.file.sync_all()?;
            }
            fs::rename(self.reserved.part(), self.reserved.path())?;
            self.settle();
            if self.reserved.dir.fsync && cfg!(unix) {
                File::open(&self.reserved.dir.path)?.sync_all()?;
            }
            Ok(())
        };
        finish().map_err(|e: io::Error| format!("cannot put the file in its place: {e}"))
    }

    /// Writes down what is there, for another time. Nothing is kept of a file that has nothing.
    pub(crate) fn save_map(&self) -> io::Result<()> {
        let settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if *settled {
            return Ok(());
        }
        let done = {
            let mut state = self.state();
            if !std::mem::take(&mut state.dirty) {
                return Ok(());
            }
            state.done.clone()
        };
        if done.iter().all(|word| *word == 0) {
            return Ok(());
        }
        let written = map::write(&self.reserved, &self.meta, done);
        if written.is_err() {
            // The disk may have room the next time.
            self.state().dirty = true;
        }
        written
    }

    /// Ends the saving of maps and removes what was saved.
    fn settle(&self) {
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        *settled = true;
        let _ = fs::remove_file(self.reserved.map());
    }

    /// Removes what is there: it is not what it should be.
    pub(crate) fn discard(&self) {
        self.state().failed = true;
        self.abandon();
        self.settle();
        let _ = fs::remove_file(self.reserved.part());
    }

    /// Leaves nothing behind of a file of which nothing is there, and the rest for another time.
    pub(crate) fn leave(&self) {
        let nothing = self.state().done.iter().all(|word| *word == 0);
        if nothing {
            self.discard();
        } else if let Err(error) = self.save_map() {
            tracing::warn!(%error, "what has arrived could not be written down");
        }
    }
}

impl Run {
    /// Whether a piece of `block` at `offset` continues it.
    fn goes_on(&self, block: u32, offset: u32) -> bool {
        self.block == block && self.start + self.data.len() as u32 == offset
    }
}

impl State {
    /// Begins a new run there and gives the one before, if it has anything.
    fn cut(&mut self, block: u32, start: u32) -> Option<Run> {
        if self.run.data.is_empty() {
            (self.run.block, self.run.start) = (block, start);
            return None;
        }
        let data = self.spare.pop().unwrap_or_default();
        Some(std::mem::replace(&mut self.run, Run { block, start, data, completes: false }))
    }

    fn extend_prefix(&mut self, blocks: u32) {
        while self.prefix < blocks && has(&self.done, self.prefix) {
            self.prefix += 1;
        }
    }
}

fn has(done: &[u64], block: u32) -> bool {
    done.get(block as usize / 64).is_some_and(|word| word >> (block % 64) & 1 == 1)
}

/// A new file in the place of what is there, never through a link that somebody laid under that name.
fn create_anew(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// Whether a file of `size` bytes fits on the disk now, so that a full one shows before the transfer.
fn has_room(file: &File, size: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if size > 0 {
        let room = rustix::fs::fstatvfs(file)?;
        if size > room.f_bavail.saturating_mul(room.f_frsize) {
            return Err(rustix::io::Errno::NOSPC.into());
        }
    }
    let _ = (file, size);
    Ok(())
}

/// Whether the file system is one in memory, which has nothing to gain from room taken beforehand.
fn is_in_memory(file: &File) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    {
        /// linux/magic.h
        const TMPFS_MAGIC: u64 = 0x0102_1994;
        Ok(rustix::fs::fstatfs(file)?.f_type as u64 == TMPFS_MAGIC)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        Ok(false)
    }
}

/// Takes a piece of the file's room on disk; false if the file system takes room only when it is written to.
fn allocate(file: &File, at: u64, len: u64) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(file, FallocateFlags::empty(), at, len) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, at, len);
        Ok(false)
    }
}

fn system_time((seconds, nanos): (i64, u32)) -> Option<SystemTime> {
    let nanos = Duration::from_nanos(u64::from(nanos));
    match u64::try_from(seconds) {
        Ok(after) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(after))?.checked_add(nanos),
        Err(_) => SystemTime::UNIX_EPOCH
            .checked_sub(Duration::from_secs(seconds.unsigned_abs()))?
            .checked_add(nanos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 2 * BLOCK as u64 + 1000;

    fn meta(name: &str) -> Meta {
        Meta { name: name.into(), size: SIZE, mode: Some(0o4751), modified: Some((1_600_000_000, 5)) }
    }

    fn content() -> Vec<u8> {
        (0..SIZE).map(|i| (i * 7 + i / 256) as u8).collect()
    }

    /// So many new bytes, and what came of putting them.
    fn put(part: &PartFile, block: u32, from: u32, to: u32) -> (u32, Put) {
        let base = block as usize * BLOCK as usize;
        let data = &content()[base + from as usize..base + to as usize];
        write(part, block, from, to == block_len(SIZE, block), data)
    }

    fn write(part: &PartFile, block: u32, offset: u32, fin: bool, data: &[u8]) -> (u32, Put) {
        match part.take(block, offset, fin, data) {
            Taken::New(new, runs) => {
                let put = runs.into_iter().flatten().map(|run| part.put(run));
                (new, put.fold(Put::Done, |_, put| put))
            }
            Taken::Nothing => (0, Put::Done),
            Taken::Failed(reason) => (0, Put::Failed(reason)),
        }
    }

    fn dir() -> (tempfile::TempDir, Arc<OutDir>) {
        let temp = tempfile::tempdir().unwrap();
        let dir = OutDir::open(temp.path().join("new/out"), true).unwrap();
        (temp, dir)
    }

    #[test]
    fn pieces_in_any_order_make_the_file() {
        let (temp, dir) = dir();
        let part = PartFile::begin(&dir, meta("a"), true).unwrap();
        assert_eq!(put(&part, 2, 500, 1000), (500, Put::Done));
        assert_eq!(put(&part, 2, 500, 1000), (0, Put::Done));
        assert_eq!(put(&part, 0, 0, BLOCK), (BLOCK, Put::Done));
        assert_eq!(put(&part, 2, 0, 600), (500, Put::Done));
        assert_eq!(part.hash_some().unwrap(), None);
        for from in (0..BLOCK).step_by(4096).skip(1) {
            assert_eq!(put(&part, 1, from, from + 4096), (4096, Put::Done));
        }
        assert_eq!(put(&part, 1, 0, 4096), (4096, Put::Hash));
        assert!(part.is_complete());
        assert_eq!(part.hash_some().unwrap(), Some(*blake3::hash(&content()).as_bytes()));
        assert_eq!(part.hash_some().unwrap(), None, "once");
        part.save_map().unwrap();
        part.finish().unwrap();
        put(&part, 1, 0, 1);
        part.save_map().unwrap();
        assert_eq!(fs::read_dir(temp.path().join("new/out")).unwrap().count(), 1, "no map is left");
        let path = temp.path().join("new/out/a");
        assert_eq!(fs::read(&path).unwrap(), content());
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.modified().unwrap(), system_time((1_600_000_000, 5)).unwrap());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o751);
        }
    }

    #[test]
    fn a_stopped_file_is_resumed_and_a_changed_one_begins_again() {
        let (_temp, dir) = dir();
        let part = PartFile::begin(&dir, meta("a"), true).unwrap();
        put(&part, 1, 0, BLOCK);
        put(&part, 0, 0, 100);
        assert_eq!(PartFile::begin(&dir, meta("a"), true).err(), Some(CannotBegin::Busy), "two writers");
        part.leave();
        drop(part);
        let part = PartFile::begin(&dir, meta("a"), true).unwrap();
        assert_eq!((part.have(), part.bytes_there()), (vec![(1, 1)], u64::from(BLOCK)));
        put(&part, 0, 0, BLOCK);
        put(&part, 2, 0, 1000);
        assert_eq!(part.hash_some().unwrap(), Some(*blake3::hash(&content()).as_bytes()));
        part.leave();
        drop(part);
        let changed = Meta { modified: Some((1_600_000_001, 0)), ..meta("a") };
        assert_eq!(PartFile::begin(&dir, changed, true).unwrap().have(), []);
    }

    #[test]
    fn room_is_taken_without_touching_what_is_there() {
        let (temp, dir) = dir();
        let big = Meta { size: 3 * ROOM_STEP + 5, ..meta("a") };
        let part = PartFile::begin(&dir, big.clone(), true).unwrap();
        assert_eq!(write(&part, 1, 0, true, &[7; BLOCK as usize]), (BLOCK, Put::Done));
        part.take_room().unwrap();
        let bytes = fs::read(temp.path().join("new/out/a.part")).unwrap();
        assert_eq!(bytes.len() as u64, big.size);
        let place = BLOCK as usize..2 * BLOCK as usize;
        assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == if place.contains(&i) { 7 } else { 0 }));
    }

    #[test]
    fn a_damaged_map_is_not_believed() {
        let (temp, dir) = dir();
        let part = PartFile::begin(&dir, meta("a"), true).unwrap();
        put(&part, 1, 0, BLOCK);
        part.leave();
        drop(part);
        let map = temp.path().join("new/out/a.part.map");
        let bytes = fs::read(&map).unwrap();
        for cut in 0..bytes.len() {
            fs::write(&map, &bytes[..cut]).unwrap();
            assert_eq!(PartFile::begin(&dir, meta("a"), true).unwrap().have(), []);
        }
    }

    #[test]
    fn pieces_outside_the_file_fail_it() {
        let (_temp, dir) = dir();
        let far = |block, offset, fin, len: usize| {
            let part = PartFile::begin(&dir, meta("b"), true).unwrap();
            matches!(write(&part, block, offset, fin, &vec![0; len]), (0, Put::Failed(_)))
        };
        assert!(far(3, 0, true, 1));
        assert!(far(2, 999, true, 2));
        assert!(far(2, 0, true, 999));
        assert!(far(1, 0, true, 999));
        assert!(far(u32::MAX, u32::MAX, false, 1));
        assert!(far(0, 0, false, 0));
    }

    #[test]
    fn crumbs_are_not_kept_for_ever() {
        let (_temp, dir) = dir();
        let part = PartFile::begin(&dir, meta("c"), true).unwrap();
        let last = (0..=RANGES_MAX as u32).map(|i| put(&part, 0, 2 * i, 2 * i + 1)).last().unwrap();
        assert!(matches!(last, (0, Put::Failed(_))));
    }

    #[test]
    fn what_was_known_is_not_lost_when_nobody_gets_to_leave() {
        let (temp, dir) = dir();
        let part = PartFile::begin(&dir, meta("a"), true).unwrap();
        put(&part, 1, 0, BLOCK);
        part.leave();
        drop(part);
        // As after a crash: begun again, some written, nothing said.
        for _ in 0..2 {
            let part = PartFile::begin(&dir, meta("a"), true).unwrap();
            assert_eq!(part.have(), [(1, 1)]);
            put(&part, 0, 0, BLOCK);
        }
        // A map of another version of the file is no use to anybody.
        let changed = Meta { modified: None, ..meta("a") };
        drop(PartFile::begin(&dir, changed, true).unwrap());
        assert!(!temp.path().join("new/out/a.part.map").exists());
    }

    #[test]
    fn a_map_that_could_not_be_written_is_written_the_next_time() {
        let (temp, dir) = dir();
        let part = PartFile::begin(&dir, meta("a"), true).unwrap();
        put(&part, 1, 0, BLOCK);
        let (map, in_the_way) =
            (temp.path().join("new/out/a.part.map"), temp.path().join("new/out/a.part.map~"));
        fs::create_dir(&in_the_way).unwrap();
        assert!(part.save_map().is_err() && !map.exists());
        fs::remove_dir(&in_the_way).unwrap();
        part.save_map().unwrap();
        assert!(map.exists());
    }

    #[test]
    fn pieces_that_are_there_are_not_written_again() {
        let (temp, dir) = dir();
        let part = PartFile::begin(&dir, meta("a"), true).unwrap();
        put(&part, 0, 0, 1000);
        put(&part, 1, 0, 1000);
        let other = vec![0xff; 500];
        assert_eq!(write(&part, 0, 200, false, &other), (0, Put::Done));
        // What was being gathered is gathered on.
        assert_eq!(put(&part, 1, 1000, BLOCK), (BLOCK - 1000, Put::Done));
        let bytes = fs::read(temp.path().join("new/out/a.part")).unwrap();
        assert_eq!(bytes[..1000], content()[..1000]);
        assert_eq!(bytes[BLOCK as usize..2 * BLOCK as usize], content()[BLOCK as usize..2 * BLOCK as usize]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        use std::os::unix::fs::symlink;
        let (temp, dir) = dir();
        let (outside, out) = (temp.path().join("outside"), temp.path().join("new/out"));
        fs::write(&outside, "mine").unwrap();
        symlink(&outside, out.join("a.part")).unwrap();
        assert!(PartFile::begin(&dir, meta("a"), true).is_err());
        symlink(&outside, out.join("b.part.map~")).unwrap();
        let part = PartFile::begin(&dir, meta("b"), true).unwrap();
        put(&part, 1, 0, BLOCK);
        part.save_map().unwrap();
        assert!(out.join("b.part.map").symlink_metadata().unwrap().is_file());
        symlink(&outside, out.join(format!(".utp2-probe-{}", std::process::id()))).unwrap();
        OutDir::open(out, false).unwrap();
        assert_eq!(fs::read(&outside).unwrap(), b"mine");
    }

    #[cfg(unix)]
    #[test]
    fn a_map_is_a_file_of_the_length_of_a_map() {
        use std::os::unix::fs::symlink;
        let (temp, dir) = dir();
        let out = temp.path().join("new/out");
        let (map, kept) = (out.join("a.part.map"), temp.path().join("kept"));
        let part = PartFile::begin(&dir, meta("a"), true).unwrap();
        put(&part, 1, 0, BLOCK);
        part.leave();
        drop(part);
        let have = || PartFile::begin(&dir, meta("a"), true).unwrap().have();
        assert_eq!(have(), [(1, 1)]);
        fs::rename(&map, &kept).unwrap();
        let spoil = |with: &mut dyn FnMut()| {
            // What the first attempt takes for unknown it clears.
            fs::write(out.join("a.part"), content()).unwrap();
            with();
            assert_eq!(have(), []);
            assert!(map.symlink_metadata().is_err(), "what was in the way is gone");
        };
        spoil(&mut || symlink(&kept, &map).unwrap());
        let mut long = fs::read(&kept).unwrap();
        long.resize(map::longest(1) as usize, 0);
        fs::write(&map, &long).unwrap();
        fs::write(out.join("a.part"), content()).unwrap();
        assert_eq!(have(), [(1, 1)]);
        spoil(&mut || {
            long.push(0);
            fs::write(&map, &long).unwrap();
        });
        // Nobody will ever write to it.
        let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR);
        spoil(&mut || rustix::fs::mknodat(rustix::fs::CWD, &map, fifo, mode, 0).unwrap());
        // And one in the place of the file itself is none.
        rustix::fs::mknodat(rustix::fs::CWD, out.join("b.part"), fifo, mode, 0).unwrap();
        let wrong = PartFile::begin(&dir, Meta { size: 0, ..meta("b") }, true).err().unwrap();
        assert!(wrong.to_string().contains("no regular file"), "{wrong}");
    }

    #[test]
    fn nobody_offers_what_is_believed_of_another_file() {
        let (temp, dir) = dir();
        for name in ["y.part", "y.part.map", "y.part.map~", ".utp2-0123.part"] {
            let Err(CannotBegin::Other(why)) = PartFile::begin(&dir, meta(name), true) else {
                panic!("{name} was taken")
            };
            assert!(why.contains("rename it"), "{why}");
        }
        assert_eq!(fs::read_dir(temp.path().join("new/out")).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_one_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(OutDir::open(file.join("out"), false).is_err());
    }
}
