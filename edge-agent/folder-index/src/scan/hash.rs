//! Reading and hashing files on a few threads, within a budget.
//!
//! Hash lists come back in pieces through a channel of fixed length, so that neither a million files nor
//! one of many terabytes takes memory.

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use agent_proto::limits::BLOCK_LEN;
use rustix::fs::{self, Advice, FileType, SeekFrom, Stat};
use rustix::io::{Errno, ReadWriteFlags, Result};
use sync_core::merkle::{Hash, block_hash};
use sync_core::weak::weak_hash;

use super::Progress;
use super::disk::{COARSE_TIMES, PRECISE_TIMES, attributes, file_type, open_file};
use super::effort::{Effort, Pace};
use super::root::RootHash;
use crate::limits::{BLOCKS_PER_ROW, PIECES_WAITING, READ_TRIES};
use crate::record::Time;
use crate::tables::BLOCK_HASHES;

/// Files from this size on do not stay in the system's cache for having been hashed.
const LARGE: u64 = 16 << 20;

/// Small files that are told of together: one message, and whoever waits for it wakes once.
const TOLD_AT_ONCE: usize = 16;

/// Read at once.
const READ: usize = 8 * BLOCK_LEN as usize;

/// `RWF_DONTCACHE` (Linux 6.14): what a read brought into the cache leaves it again, what was there stays.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// A file to be hashed.
pub(super) struct Job {
    pub(super) token: u64,
    pub(super) folder: Arc<OwnedFd>,
    pub(super) name: Vec<u8>,
    /// How precise its times are.
    pub(super) granularity: Duration,
}

/// What a thread tells.
pub(super) enum Told {
    /// A row of block hashes; only of files with more than one block.
    Blocks { token: u64, row: u32, hashes: Vec<u8> },
    /// The file is read anew: rows told of it do not count.
    Anew { token: u64 },
    /// Files that are done, each by its token.
    Done(Vec<(u64, std::result::Result<Hashed, Failure>)>),
}

/// A file as it was read.
pub(super) struct Hashed {
    pub(super) stat: Stat,
    pub(super) root: Hash,
    /// Weak hash of its first block.
    pub(super) weak: u32,
    pub(super) blocks: u64,
    pub(super) attributes: Option<[u8; 16]>,
    /// False if another change might not show in its times.
    pub(super) settled: bool,
}

pub(super) enum Failure {
    Errno(Errno),
    /// It changed each time it was read.
    Changed,
    /// It is no regular file any more.
    Kind,
    Stopped,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// The threads. Dropping it ends them.
pub(super) struct Hashers {
    effort: Effort,
    shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    /// Kept for threads that begin later.
    queue: Arc<Mutex<Receiver<Job>>>,
    tell: Option<SyncSender<Told>>,
    told: Option<Receiver<Told>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    pace: Pace,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    /// Whether the system knows [`DONTCACHE`].
    dont_cache: AtomicBool,
}

impl Hashers {
    pub(super) fn new(effort: &Effort, progress: Arc<Progress>, stop: Arc<AtomicBool>) -> Self {
        let (jobs, queue) = channel();
        let (tell, told) = sync_channel(PIECES_WAITING);
        let pace = Pace::new(effort.bytes_per_second);
        Self {
            effort: effort.clone(),
            shared: Arc::new(Shared { pace, progress, stop, dont_cache: AtomicBool::new(true) }),
            jobs: Some(jobs),
            queue: Arc::new(Mutex::new(queue)),
            tell: Some(tell),
            told: Some(told),
            threads: Vec::new(),
        }
    }

    /// Hands out a file. `waiting`: how many are handed out already. The first thread begins with the
    /// first file, the others when there is work for them.
    pub(super) fn hash(&mut self, job: Job, waiting: usize) {
        if self.threads.len() < self.effort.threads.max(1) && waiting >= self.threads.len() {
            let (queue, shared, effort) = (self.queue.clone(), self.shared.clone(), self.effort.clone());
            if let Some(tell) = self.tell.clone() {
                self.threads.push(std::thread::spawn(move || {
                    effort.apply_to_thread();
                    work(&queue, &tell, &shared);
                }));
            }
        }
        if let Some(jobs) = &self.jobs {
            // Cannot fail: the queue lives as long as this.
            let _ = jobs.send(job);
        }
    }

    /// What was told next, within a time.
    pub(super) fn told(&self, wait: Duration) -> Option<Told> {
        self.told.as_ref()?.recv_timeout(wait).ok()
    }
}

impl Drop for Hashers {
    fn drop(&mut self) {
        // Whoever waits for work or for room to tell wakes up and ends.
        (self.jobs, self.tell, self.told) = (None, None, None);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// How a thread tells what it found.
struct Teller<'a> {
    tell: &'a SyncSender<Told>,
    done: Vec<(u64, std::result::Result<Hashed, Failure>)>,
}

impl Teller<'_> {
    fn send(&self, told: Told) -> std::result::Result<(), Failure> {
        self.tell.send(told).map_err(|_| Failure::Stopped)
    }

    /// Tells of the files that are done: before this thread waits, or reads for long.
    fn flush(&mut self) -> std::result::Result<(), Failure> {
        let done = std::mem::take(&mut self.done);
        if done.is_empty() { Ok(()) } else { self.send(Told::Done(done)) }
    }
}

fn work(queue: &Mutex<Receiver<Job>>, tell: &SyncSender<Told>, shared: &Shared) {
    let mut buffer = vec![0; READ];
    let mut teller = Teller { tell, done: Vec::new() };
    loop {
        let next = queue.try_lock().ok().and_then(|queue| queue.try_recv().ok());
        let job = match next {
            Some(job) if teller.done.len() < TOLD_AT_ONCE => job,
            next => {
                if teller.flush().is_err() {
                    return;
                }
                let wait = || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(job) = next.map_or_else(wait, Ok) else { return };
                job
            }
        };
        let result = hash_file(&job, &mut buffer, &mut teller, shared);
        teller.done.push((job.token, result));
    }
}

fn hash_file(
    job: &Job,
    buffer: &mut [u8],
    teller: &mut Teller<'_>,
    shared: &Shared,
) -> std::result::Result<Hashed, Failure> {
    for _ in 0..READ_TRIES {
        match hash_once(job, buffer, teller, shared)? {
            Some(hashed) => return Ok(hashed),
            None => teller.send(Told::Anew { token: job.token })?,
        }
    }
    Err(Failure::Changed)
}

/// One attempt; `None` if the file changed while it was read.
fn hash_once(
    job: &Job,
    buffer: &mut [u8],
    teller: &mut Teller<'_>,
    shared: &Shared,
) -> std::result::Result<Option<Hashed>, Failure> {
    let file = open_file(&job.folder, &job.name)?;
    let mut before = fs::fstat(&file)?;
    if file_type(&before) != FileType::RegularFile {
        return Err(Failure::Kind);
    }
    let mut granularity = granularity_of(&before, job.granularity);
    if granularity <= PRECISE_TIMES && !settled(&before, granularity) {
        teller.flush()?;
        // Cheaper than reading it again later.
        std::thread::sleep(granularity);
        before = fs::fstat(&file)?;
        granularity = granularity_of(&before, granularity);
    }
    let settled = settled(&before, granularity);
    let size = before.st_size as u64;
    let large = size >= LARGE;
    if size > READ as u64 {
        teller.flush()?;
        // Advice only.
        let _ = fs::fadvise(&file, 0, None, Advice::Sequential);
    }
    let blocks = sync_core::manifest::blocks_of(size);
    let mut holes = (before.st_blocks as u64).saturating_mul(512).lt(&size).then(Holes::default);
    let (mut root, mut first_weak, mut at, mut row) = (RootHash::new(), 0, 0u64, Vec::new());
    let mut rows = 0;
    while at < size {
        if shared.stop.load(Ordering::Relaxed) {
            return Err(Failure::Stopped);
        }
        let want = (size - at).min(READ as u64) as usize;
        let hole = holes.as_mut().is_some_and(|holes| holes.cover(&file, at, want));
        if hole {
            buffer[..want].fill(0);
        } else {
            shared.pace.wait(want);
            if read_full(&file, &mut buffer[..want], at, large, shared)? < want {
                return Ok(None);
            }
            shared.progress.bytes.fetch_add(want as u64, Ordering::Relaxed);
        }
        for block in buffer[..want].chunks(BLOCK_LEN as usize) {
            let (strong, weak) = match hole && block.len() == BLOCK_LEN as usize {
                true => *ZEROS,
                false => (block_hash(block), weak_hash(block)),
            };
            root.add(strong);
            if blocks == 1 {
                first_weak = weak;
                continue;
            }
            row.extend_from_slice(&strong);
            row.extend_from_slice(&weak.to_le_bytes());
            if row.len() == BLOCKS_PER_ROW * BLOCK_HASHES {
                let hashes = std::mem::take(&mut row);
                teller.send(Told::Blocks { token: job.token, row: rows, hashes })?;
                rows += 1;
            }
        }
        at += want as u64;
    }
    // One byte more than was told: it grew.
    if read_full(&file, &mut buffer[..1], at, false, shared)? != 0 {
        return Ok(None);
    }
    let attributes = attributes(&file)?;
    let after = fs::fstat(&file)?;
    if !same_version(&before, &after) {
        return Ok(None);
    }
    if !row.is_empty() {
        teller.send(Told::Blocks { token: job.token, row: rows, hashes: row })?;
    }
    Ok(Some(Hashed { stat: before, root: root.finish(), weak: first_weak, blocks, attributes, settled }))
}

/// Hashes of a whole block of zeros.
static ZEROS: LazyLock<(Hash, u32)> = LazyLock::new(|| {
    let zeros = [0; BLOCK_LEN as usize];
    (block_hash(&zeros), weak_hash(&zeros))
});

/// Where a sparse file has data.
#[derive(Default)]
struct Holes {
    /// No data before this.
    data: u64,
}

impl Holes {
    /// Whether a stretch that comes next lies in a hole altogether. A file system that cannot tell has none.
    fn cover(&mut self, file: &OwnedFd, at: u64, len: usize) -> bool {
        if self.data <= at {
            self.data = match fs::seek(file, SeekFrom::Data(at)) {
                Ok(data) => data,
                // None behind this.
                Err(Errno::NXIO) => u64::MAX,
                Err(_) => at,
            };
        }
        self.data >= at + len as u64
    }
}

/// What a file's own times can tell apart, where those of its file system can tell so much: ext2, ext3 and ext4 with small
/// inodes keep whole seconds, and nothing else says so.
fn granularity_of(stat: &Stat, of_file_system: Duration) -> Duration {
    if stat.st_ctime_nsec == 0 { of_file_system.max(COARSE_TIMES) } else { of_file_system }
}

/// Whether a change from now on shows in the times of the file: they are so far from now that it would
/// get others. Times in the future (the clock was set back) are far from now too.
fn settled(stat: &Stat, granularity: Duration) -> bool {
    let now = Time::now();
    let far = |seconds, nanos| {
        let time = Time { seconds, nanos };
        now.nanos_since(time).unsigned_abs() >= granularity.as_nanos()
    };
    far(stat.st_ctime, stat.st_ctime_nsec as u32) && far(stat.st_mtime, stat.st_mtime_nsec as u32)
}

/// Whether nobody wrote to the file between two looks at it.
fn same_version(a: &Stat, b: &Stat) -> bool {
    (a.st_size, a.st_mtime, a.st_mtime_nsec, a.st_ctime, a.st_ctime_nsec)
        == (b.st_size, b.st_mtime, b.st_mtime_nsec, b.st_ctime, b.st_ctime_nsec)
}

/// Fills `buffer` from `at` as far as the file goes.
fn read_full(file: &OwnedFd, buffer: &mut [u8], at: u64, large: bool, shared: &Shared) -> Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        let place = at + len as u64;
        match read_at(file, &mut buffer[len..], place, large, shared) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

fn read_at(file: &OwnedFd, buffer: &mut [u8], at: u64, large: bool, shared: &Shared) -> Result<usize> {
    if large && shared.dont_cache.load(Ordering::Relaxed) {
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], at, DONTCACHE) {
            Err(Errno::NOTSUP | Errno::INVAL | Errno::NOSYS) => {
                shared.dont_cache.store(false, Ordering::Relaxed);
            }
            other => return other,
        }
    }
    let len = rustix::io::pread(file, &mut *buffer, at)?;
    if large && let Some(count) = std::num::NonZeroU64::new(len as u64) {
        // Older systems: also takes out of the cache what others had there.
        let _ = fs::fadvise(file, at, Some(count), Advice::DontNeed);
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ext4 with small inodes has the magic number of all ext4 and times of whole seconds: a file that was hashed 150 ms
    /// after it was written may be written again without other times.
    #[test]
    fn times_of_whole_seconds_are_not_taken_for_fine_ones() {
        let file = tempfile::tempfile().expect("room");
        let mut stat = fs::fstat(&file).expect("there");
        let now = Time::now();
        (stat.st_ctime, stat.st_mtime) = (now.seconds - 1, now.seconds - 1);
        (stat.st_ctime_nsec, stat.st_mtime_nsec) = (0, 0);
        assert!(!settled(&stat, granularity_of(&stat, PRECISE_TIMES)));
        (stat.st_ctime, stat.st_mtime) = (now.seconds - 4, now.seconds - 4);
        assert!(settled(&stat, granularity_of(&stat, PRECISE_TIMES)));
        // A user may set a time of whole seconds on any file system; the inode's own says what that can do.
        stat.st_ctime_nsec = 5;
        assert_eq!(granularity_of(&stat, PRECISE_TIMES), PRECISE_TIMES);
        assert_eq!(granularity_of(&stat, COARSE_TIMES), COARSE_TIMES);
    }
}
