//! Subjects' keys in the data folder: one file of entries of equal size, each written once and overwritten with zeros
//! when its key is destroyed.
//!
//! | bytes | what |
//! |---|---|
//! | 16 | `FLOTILLA-KEYS-1\n` |
//! | 80 each | kind (1) and id (16) of the subject, the wrapped key (60), the first 3 bytes of SHA-256 over these 77; or zeros |
//!
//! **What a crash leaves.** A disk writes sectors of 512 bytes as a whole. Entries lie within one, so a key is there or not;
//! the places that lie across two stay zeros. Files of older programs have entries there too: one of whose two parts one
//! is zeros was being written, and nobody was told of it, or being destroyed. It is zeroed when the file is opened, as is
//! the same key once more, which a write that failed has left. One whose write fails now is zeroed before anything else is
//! written, so that no second copy of a key outlives the first.
//!
//! **Damage.** Anything else that is no entry is left as it is, byte for byte, and its place is not used again: it may be a
//! key in which one bit is wrong, and the file has no second copy. If its subject can be read, it is listed with the others;
//! unwrapping it shows whether the key is whole. An entry of a kind of subject that is not known here was written by a newer
//! program, and is left alone likewise. Should a file hold several keys of a subject, all of them stay.
//!
//! Where the file system keeps old copies of blocks (snapshots, journals of data, flash memory), overwriting does not reach
//! them: `docs/operations.md` says what follows from that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_log::BoxFuture;
use event_schema::Subject;
use sha2::{Digest as _, Sha256};

use super::store::{KeyStore, KeyStoreError, WRAPPED_BYTES, Wrapped};

const MAGIC: &[u8; 16] = b"FLOTILLA-KEYS-1\n";
const BODY_BYTES: usize = 17 + WRAPPED_BYTES;
const ENTRY_BYTES: usize = BODY_BYTES + 3;

/// What a disk writes wholly or not at all.
const SECTOR_BYTES: usize = 512;

/// Zeros at one side of a sector's edge that are no accident: a damaged key may end with one or two.
const TORN_BYTES_MIN: usize = 4;

/// Entries that a file has at most: a fleet of the largest size has a twentieth of that. A longer file is not opened.
const ENTRIES_MAX: usize = 4_000_000;

/// The file, opened by the one service that owns the data folder.
#[derive(Debug, Clone)]
pub struct FileKeys {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    /// Number of the entry and the key, of each subject at least one.
    keys: BTreeMap<Subject, Vec<(usize, Wrapped)>>,
    /// Entries of zeros that may be written.
    free: Vec<usize>,
    /// Entries that a failed write may have filled, and nobody counts on.
    doubtful: Vec<usize>,
    entries: usize,
    entries_max: usize,
    /// Syncs that are still to fail.
    #[cfg(test)]
    failures: u32,
}

/// What a file holds.
struct Read {
    keys: BTreeMap<Subject, Vec<(usize, Wrapped)>>,
    free: Vec<usize>,
    /// Left by a crash or a failed write: to be zeroed.
    left: Vec<usize>,
    /// Damaged. Those whose subject can be read are among the keys too.
    damaged: Vec<usize>,
    /// Of a kind of subject that is not known here.
    unknown: usize,
    entries: usize,
}

/// The keys of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Also several of a subject.
    pub keys: Vec<(Subject, Wrapped)>,
    /// Entries that are damaged, or of a newer program's: not all of them are among the keys.
    pub others: usize,
}

impl FileKeys {
    /// The file's name in a data folder.
    pub const NAME: &str = "subject-keys";

    /// The name of a backup that is to be taken in by the service at its next start.
    pub const RESTORED: &str = "subject-keys.restored";

    /// Opens the file, and makes it if there is none.
    ///
    /// # Errors
    /// If it cannot be read or written, is no file of this format, or longer than any.
    pub fn open(path: &Path) -> Result<Self, KeyStoreError> {
        Self::open_up_to(path, ENTRIES_MAX)
    }

    fn open_up_to(path: &Path, entries_max: usize) -> Result<Self, KeyStoreError> {
        let failed = |error: io::Error| unavailable(path, &error);
        if !path.try_exists().map_err(failed)? {
            crate::private_file::write(path, MAGIC).map_err(failed)?;
        }
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        let bytes = read_all(path, &mut file, entries_max)?;
        let Read { keys, mut free, left, damaged, unknown, entries } = parse(path, &bytes)?;
        drop(bytes);
        tell(path, &damaged, unknown);
        let mut inner = Inner {
            path: path.to_owned(),
            file,
            keys,
            free: Vec::new(),
            doubtful: Vec::new(),
            entries,
            entries_max,
            #[cfg(test)]
            failures: 0,
        };
        for entry in left {
            tracing::warn!(file = %path.display(), entry, "an entry that was not written or destroyed wholly is removed");
            inner.put(entry, &[0; ENTRY_BYTES]).map_err(failed)?;
            free.extend((!is_across(entry)).then_some(entry));
        }
        inner.free = free;
        // What a crash left behind the last whole entry.
        inner.file.set_len((MAGIC.len() + inner.entries * ENTRY_BYTES) as u64).map_err(failed)?;
        inner.file.sync_all().map_err(failed)?;
        Ok(Self { inner: Arc::new(Mutex::new(inner)) })
    }

    /// The keys of a file that a service may be using meanwhile; none if it is not there. Says in the program's log what
    /// else is in it.
    ///
    /// # Errors
    /// If it cannot be read or is no file of this format.
    pub fn read(path: &Path) -> Result<Option<Found>, KeyStoreError> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| unavailable(path, &error))?,
        };
        let read = parse(path, &read_all(path, &mut file, ENTRIES_MAX)?)?;
        tell(path, &read.damaged, read.unknown);
        let others = read.damaged.len() + read.unknown;
        Ok(Some(Found { keys: flat(&read.keys), others }))
    }

    /// Removes a file whose keys are kept elsewhere by now, overwritten.
    ///
    /// # Errors
    /// If it cannot be written or removed.
    pub fn remove(path: &Path) -> Result<(), KeyStoreError> {
        let removed = || {
            let mut file = OpenOptions::new().write(true).open(path)?;
            let zeros = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
            file.write_all(&zeros)?;
            file.sync_all()?;
            std::fs::remove_file(path)
        };
        removed().map_err(|error| unavailable(path, &error))
    }

    /// Destroys exactly these keys, with one sync.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub async fn destroy_all(&self, keys: Vec<(Subject, Wrapped)>) -> Result<(), KeyStoreError> {
        self.blocking(move |inner| inner.destroy(&keys)).await
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Entries are written before they are remembered.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the file where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Inner) -> io::Result<T> + Send + 'static,
    ) -> Result<T, KeyStoreError> {
        let own = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut inner = own.inner();
            act(&mut inner).map_err(|error| unavailable(&inner.path, &error))
        });
        done.await.map_err(|error| KeyStoreError::Unavailable(error.to_string()))?
    }
}

fn tell(path: &Path, damaged: &[usize], unknown: usize) {
    let file = path.display();
    if let Some(first) = damaged.first() {
        tracing::error!(
            %file, count = damaged.len(), first,
            "entries of the file of keys are damaged: they are left as they are. Compare with a backup"
        );
    }
    if unknown > 0 {
        tracing::warn!(%file, count = unknown, "keys of a newer program are left as they are");
    }
}

fn flat(keys: &BTreeMap<Subject, Vec<(usize, Wrapped)>>) -> Vec<(Subject, Wrapped)> {
    keys.iter().flat_map(|(subject, all)| all.iter().map(|(_, wrapped)| (*subject, *wrapped))).collect()
}

/// Whether an entry lies in two sectors; where the second one begins.
fn edge(entry: usize) -> Option<usize> {
    let from = MAGIC.len() + entry * ENTRY_BYTES;
    let edge = from.next_multiple_of(SECTOR_BYTES) - from;
    (edge > 0 && edge < ENTRY_BYTES).then_some(edge)
}

fn is_across(entry: usize) -> bool {
    edge(entry).is_some()
}

/// Whether a crash can have left this of an entry.
fn is_torn(entry: usize, chunk: &[u8]) -> bool {
    let parts = edge(entry).and_then(|edge| chunk.split_at_checked(edge));
    parts.is_some_and(|(head, tail)| {
        let zeros = |part: &[u8]| part.len() >= TORN_BYTES_MIN && part.iter().all(|byte| *byte == 0);
        zeros(head) || zeros(tail)
    })
}

fn read_all(path: &Path, file: &mut File, entries_max: usize) -> Result<Vec<u8>, KeyStoreError> {
    let most = MAGIC.len() + entries_max * ENTRY_BYTES;
    let mut bytes = Vec::new();
    // The part of an entry that a crash left at the end of a full file is none.
    let read = file.take((most + ENTRY_BYTES) as u64).read_to_end(&mut bytes);
    read.map_err(|error| unavailable(path, &error))?;
    if bytes.len() >= most + ENTRY_BYTES {
        // Never cut: what is behind may be keys.
        return Err(KeyStoreError::Unfit(format!("{} has more than {entries_max} entries", path.display())));
    }
    Ok(bytes)
}

fn unavailable(path: &Path, error: &io::Error) -> KeyStoreError {
    KeyStoreError::Unavailable(format!("{}: {error}", path.display()))
}

/// An entry's bytes.
enum Entry {
    Free,
    Key(Subject, Wrapped),
    /// As a crash or a failed write leaves it.
    Left,
    /// With its subject, if that can be read.
    Damaged(Option<(Subject, Wrapped)>),
    /// Whole, of a kind of subject that is not known here.
    Unknown,
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Read, KeyStoreError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| {
        KeyStoreError::Unfit(format!("{} is damaged, or of another version", path.display()))
    })?;
    let chunks = rest.chunks_exact(ENTRY_BYTES);
    let (keys, entries) = (BTreeMap::<Subject, Vec<(usize, Wrapped)>>::new(), chunks.len());
    let mut read =
        Read { keys, free: Vec::new(), left: Vec::new(), damaged: Vec::new(), unknown: 0, entries };
    for (number, chunk) in chunks.enumerate() {
        match entry(number, chunk) {
            Entry::Free => read.free.extend((!is_across(number)).then_some(number)),
            Entry::Left => read.left.push(number),
            Entry::Unknown => read.unknown += 1,
            Entry::Key(subject, wrapped) => {
                let all = read.keys.entry(subject).or_default();
                if all.iter().any(|(_, known)| *known == wrapped) {
                    read.left.push(number);
                } else {
                    all.push((number, wrapped));
                }
            }
            Entry::Damaged(key) => {
                read.damaged.push(number);
                if let Some((subject, wrapped)) = key {
                    read.keys.entry(subject).or_default().push((number, wrapped));
                }
            }
        }
    }
    Ok(read)
}

fn entry(number: usize, chunk: &[u8]) -> Entry {
    if chunk.iter().all(|byte| *byte == 0) {
        return Entry::Free;
    }
    let (body, check) = chunk.split_at(BODY_BYTES);
    let (id, wrapped) = body.split_at(17);
    let wrapped: Wrapped = wrapped.try_into().unwrap_or([0; WRAPPED_BYTES]);
    let subject = Subject::from_bytes(id);
    match subject {
        Some(subject) if Sha256::digest(body)[..3] == *check => Entry::Key(subject, wrapped),
        None if Sha256::digest(body)[..3] == *check => Entry::Unknown,
        _ if is_torn(number, chunk) => Entry::Left,
        _ => Entry::Damaged(of_another_kind(body, check).or(subject).map(|subject| (subject, wrapped))),
    }
}

/// Whose an entry is in which nothing but the kind of its subject is wrong.
fn of_another_kind(body: &[u8], check: &[u8]) -> Option<Subject> {
    let mut body = body.to_vec();
    (0..=u8::MAX).find_map(|kind| {
        *body.first_mut()? = kind;
        let subject = Subject::from_bytes(body.get(..17)?)?;
        (Sha256::digest(&body)[..3] == *check).then_some(subject)
    })
}

fn bytes_of(subject: Subject, wrapped: &Wrapped) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    bytes[..17].copy_from_slice(&subject.to_bytes());
    bytes[17..BODY_BYTES].copy_from_slice(wrapped);
    let check = Sha256::digest(&bytes[..BODY_BYTES]);
    bytes[BODY_BYTES..].copy_from_slice(&check[..3]);
    bytes
}

impl Inner {
    fn put(&mut self, entry: usize, bytes: &[u8; ENTRY_BYTES]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start((MAGIC.len() + entry * ENTRY_BYTES) as u64))?;
        self.file.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        #[cfg(test)]
        if self.failures > 0 {
            self.failures -= 1;
            return Err(io::Error::other("as the test wants it"));
        }
        self.file.sync_all()
    }

    /// Zeros what failed writes may have left.
    fn clear_doubtful(&mut self) -> io::Result<()> {
        if self.doubtful.is_empty() {
            return Ok(());
        }
        for entry in self.doubtful.clone() {
            self.put(entry, &[0; ENTRY_BYTES])?;
        }
        self.sync()?;
        self.free.append(&mut self.doubtful);
        Ok(())
    }

    /// Writes keys of subjects that have none, or, `beside` others, those that are not there; gives those that were.
    fn write(&mut self, keys: Vec<(Subject, Wrapped)>, beside: bool) -> io::Result<Vec<(Subject, Wrapped)>> {
        self.clear_doubtful()?;
        let (mut there, mut made) = (Vec::new(), BTreeMap::new());
        let written = self.write_new(keys, beside, &mut there, &mut made);
        if let Err(error) = written {
            self.doubtful.extend(made.into_values().flatten().map(|(entry, _)| entry));
            // Now, if the disk lets it; otherwise before the next write.
            let _ = self.clear_doubtful();
            return Err(error);
        }
        for (subject, mut all) in made {
            self.keys.entry(subject).or_default().append(&mut all);
        }
        Ok(there)
    }

    /// Writes keys that are not `there`; `made` has each before it is written.
    fn write_new(
        &mut self,
        keys: Vec<(Subject, Wrapped)>,
        beside: bool,
        there: &mut Vec<(Subject, Wrapped)>,
        made: &mut BTreeMap<Subject, Vec<(usize, Wrapped)>>,
    ) -> io::Result<()> {
        for (subject, wrapped) in keys {
            let known = || self.keys.get(&subject).into_iter().chain(made.get(&subject)).flatten();
            if known().any(|(_, known)| !beside || *known == wrapped) {
                there.extend(known().map(|(_, known)| (subject, *known)));
                continue;
            }
            let next = self.entries + usize::from(is_across(self.entries));
            let entry = match self.free.pop() {
                Some(entry) => entry,
                None if next < self.entries_max => next,
                None => return Err(io::Error::other("the file has as many keys as it may have")),
            };
            // Taken whatever comes of it.
            self.entries = self.entries.max(entry + 1);
            made.entry(subject).or_default().push((entry, wrapped));
            self.put(entry, &bytes_of(subject, &wrapped))?;
        }
        if made.is_empty() { Ok(()) } else { self.sync() }
    }

    fn destroy(&mut self, keys: &[(Subject, Wrapped)]) -> io::Result<()> {
        self.clear_doubtful()?;
        let keys: BTreeSet<(Subject, Wrapped)> = keys.iter().copied().collect();
        let all = self.keys.iter().flat_map(|(subject, all)| all.iter().map(|key| (*subject, *key)));
        let found = all.filter(|(subject, (_, wrapped))| keys.contains(&(*subject, *wrapped)));
        let entries: BTreeSet<usize> = found.map(|(_, (entry, _))| entry).collect();
        if entries.is_empty() {
            return Ok(());
        }
        for entry in &entries {
            self.put(*entry, &[0; ENTRY_BYTES])?;
        }
        self.sync()?;
        self.free.extend(entries.iter().filter(|entry| !is_across(**entry)));
        self.keys.retain(|_, all| {
            all.retain(|(entry, _)| !entries.contains(entry));
            !all.is_empty()
        });
        Ok(())
    }
}

impl KeyStore for FileKeys {
    fn list(&self) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>> {
        Box::pin(async { Ok(flat(&self.inner().keys)) })
    }

    fn get(&self, subject: Subject) -> BoxFuture<'_, Result<Vec<Wrapped>, KeyStoreError>> {
        Box::pin(async move {
            let inner = self.inner();
            Ok(inner.keys.get(&subject).into_iter().flatten().map(|(_, wrapped)| *wrapped).collect())
        })
    }

    fn create(
        &self,
        keys: Vec<(Subject, Wrapped)>,
    ) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>> {
        Box::pin(self.blocking(move |inner| inner.write(keys, false)))
    }

    fn add(&self, keys: Vec<(Subject, Wrapped)>) -> BoxFuture<'_, Result<(), KeyStoreError>> {
        Box::pin(self.blocking(move |inner| inner.write(keys, true).map(drop)))
    }

    fn destroy(&self, subject: Subject, wrapped: Wrapped) -> BoxFuture<'_, Result<(), KeyStoreError>> {
        Box::pin(self.destroy_all(vec![(subject, wrapped)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::{AgentId, JobId};

    fn job(n: u8) -> Subject {
        Subject::Job(JobId([n; 16]))
    }

    #[tokio::test]
    async fn keys_stay_until_they_are_destroyed_wholly() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("subject-keys");
        assert!(FileKeys::read(&path).expect("looked").is_none());
        let keys = FileKeys::open(&path).expect("made");
        let three: Vec<_> = (1..=3).map(|n| (job(n), [n; WRAPPED_BYTES])).collect();
        assert!(keys.create(three.clone()).await.expect("kept").is_empty());
        let again =
            vec![(job(2), [9; WRAPPED_BYTES]), (Subject::Agent(AgentId([6; 16])), [4; WRAPPED_BYTES])];
        assert_eq!(
            keys.create(again).await.expect("kept"),
            [(job(2), [2; WRAPPED_BYTES])],
            "the first stays"
        );
        keys.destroy(job(2), [9; WRAPPED_BYTES]).await.expect("another key is left alone");
        keys.destroy(job(2), [2; WRAPPED_BYTES]).await.expect("destroyed");
        keys.destroy(job(2), [2; WRAPPED_BYTES]).await.expect("once more is nothing");
        let bytes = std::fs::read(&path).expect("there");
        assert!(!bytes.windows(8).any(|window| window == [2; 8]), "overwritten");
        assert_eq!(keys.get(job(2)).await.expect("looked"), [] as [Wrapped; 0]);
        // Its place is taken again, and all is there after a restart.
        keys.create(vec![(job(5), [5; WRAPPED_BYTES])]).await.expect("kept");
        assert_eq!(std::fs::metadata(&path).expect("there").len(), (16 + 4 * ENTRY_BYTES) as u64);
        drop(keys);
        let listed = FileKeys::open(&path).expect("opens").list().await.expect("listed");
        assert_eq!(listed.len(), 4);
        assert_eq!(FileKeys::read(&path).expect("read"), Some(Found { keys: listed, others: 0 }));
    }

    #[tokio::test]
    async fn what_a_crash_left_is_cleared_away() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("subject-keys");
        let keys = FileKeys::open(&path).expect("made");
        keys.create((1..=3).map(|n| (job(n), [n; WRAPPED_BYTES])).collect()).await.expect("kept");
        drop(keys);
        let whole = std::fs::read(&path).expect("there");
        for cut in 16..whole.len() {
            // The last one was not written to its end.
            std::fs::write(&path, &whole[..cut]).expect("written");
            let keys = FileKeys::open(&path).expect("opens");
            assert_eq!(keys.list().await.expect("listed").len(), (cut - 16) / ENTRY_BYTES, "cut at {cut}");
        }
        for bad in [&b""[..], b"FLOTILLA-KEYS-2\n", &whole[1..]] {
            std::fs::write(&path, bad).expect("written");
            assert!(matches!(FileKeys::open(&path), Err(KeyStoreError::Unfit(_))), "{bad:?}");
        }
    }

    /// Bytes of a file as older programs wrote it: no place was left out.
    fn full(keys: impl IntoIterator<Item = (Subject, Wrapped)>) -> Vec<u8> {
        keys.into_iter().fold(MAGIC.to_vec(), |all, (of, key)| [all, bytes_of(of, &key).to_vec()].concat())
    }

    /// The seventh entry of an older program's file lies in two sectors: one of them can have been written alone.
    #[tokio::test]
    async fn what_an_older_program_left_across_two_sectors_is_cleared_away() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("subject-keys");
        let whole = full((1..=8).map(|n| (job(n), [n; WRAPPED_BYTES])));
        let at = 16 + 6 * ENTRY_BYTES;
        assert_eq!(edge(6), Some(512 - at));
        for zeroed in [at..512, 512..at + ENTRY_BYTES] {
            let mut bytes = whole.clone();
            bytes[zeroed.clone()].fill(0);
            std::fs::write(&path, &bytes).expect("written");
            let keys = FileKeys::open(&path).expect("opens");
            assert_eq!(keys.list().await.expect("listed").len(), 7);
            bytes[at..at + ENTRY_BYTES].fill(0);
            assert!(std::fs::read(&path).expect("there") == bytes, "{zeroed:?}");
            // It is not written to again.
            keys.create(vec![(job(9), [9; WRAPPED_BYTES])]).await.expect("kept");
            let after = std::fs::read(&path).expect("there");
            assert!(after.len() == bytes.len() + ENTRY_BYTES && after.starts_with(&bytes));
        }
    }

    #[tokio::test]
    async fn no_key_lies_in_two_sectors() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("subject-keys");
        let keys = FileKeys::open(&path).expect("made");
        keys.create((1..=60).map(|n| (job(n), [n; WRAPPED_BYTES])).collect()).await.expect("kept");
        drop(keys);
        let bytes = std::fs::read(&path).expect("there");
        for (number, chunk) in bytes[16..].chunks(ENTRY_BYTES).enumerate() {
            assert_eq!(chunk.iter().all(|byte| *byte == 0), is_across(number), "{number}");
        }
        assert_eq!(FileKeys::open(&path).expect("opens").list().await.expect("listed").len(), 60);
    }

    /// Whichever bit is wrong: nothing is overwritten, then or later, and what can be unwrapped yet is.
    #[tokio::test]
    async fn a_damaged_entry_is_left_as_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("subject-keys");
        let wrapper = super::super::Wrapper::new(&[1; 32]);
        let key = |n: u8| wrapper.wrap(job(n), &event_schema::SubjectKey::new([n; 32]));
        for middle in [2, 6] {
            let whole = full((1..=8).map(|n| (job(n), key(n))));
            let from = 16 + middle * ENTRY_BYTES;
            for bit in 0..ENTRY_BYTES * 8 {
                let mut bytes = whole.clone();
                bytes[from + bit / 8] ^= 1 << (bit % 8);
                std::fs::write(&path, &bytes).expect("written");
                let keys = FileKeys::open(&path).expect("opens");
                keys.create(vec![(job(9), [9; WRAPPED_BYTES])]).await.expect("kept");
                let after = std::fs::read(&path).expect("there");
                assert!(after.starts_with(&bytes), "entry {middle}, bit {bit}");
                let found = FileKeys::read(&path).expect("read").expect("there");
                assert_eq!(found.others, 1, "it is told");
                let unwrapped = |(of, key): &(Subject, Wrapped)| wrapper.unwrap(*of, key).is_some();
                let good = found.keys.iter().filter(|key| unwrapped(key)).count();
                // Of the kind of the subject, or of the sum, it can be told.
                assert_eq!(good, if (8..BODY_BYTES * 8).contains(&bit) { 7 } else { 8 }, "bit {bit}");
            }
        }
        // Of a newer program.
        let mut newer = bytes_of(job(1), &[1; WRAPPED_BYTES]);
        newer[0] = 200;
        let check = Sha256::digest(&newer[..BODY_BYTES]);
        newer[BODY_BYTES..].copy_from_slice(&check[..3]);
        let bytes = [full([(job(2), [2; WRAPPED_BYTES])]), newer.to_vec()].concat();
        std::fs::write(&path, &bytes).expect("written");
        let keys = FileKeys::open(&path).expect("opens");
        assert_eq!(keys.list().await.expect("listed").len(), 1);
        assert!(std::fs::read(&path).expect("there") == bytes);
    }

    #[tokio::test]
    async fn a_write_that_failed_leaves_no_second_copy() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("subject-keys");
        let copies = || {
            let bytes = std::fs::read(&path).expect("there");
            bytes.windows(WRAPPED_BYTES).filter(|window| *window == [7; WRAPPED_BYTES]).count()
        };
        // The sync fails, and zeroing what was written as well, or not.
        for failures in [1, 2] {
            let keys = FileKeys::open(&path).expect("opens");
            keys.inner().failures = failures;
            let one = vec![(job(1), [7; WRAPPED_BYTES])];
            assert!(keys.create(one.clone()).await.is_err());
            assert!(keys.get(job(1)).await.expect("looked").is_empty());
            assert!(keys.create(one).await.expect("kept").is_empty());
            assert_eq!(copies(), 1, "{failures}");
            keys.inner().failures = failures;
            assert!(keys.destroy(job(1), [7; WRAPPED_BYTES]).await.is_err());
            keys.inner().failures = 0;
            keys.destroy(job(1), [7; WRAPPED_BYTES]).await.expect("destroyed");
            assert_eq!(copies(), 0, "{failures}");
            assert!(FileKeys::read(&path).expect("read").is_some_and(|found| found.keys.is_empty()));
        }
        // Also if all that could be done with it was to destroy another.
        let keys = FileKeys::open(&path).expect("opens");
        keys.create(vec![(job(2), [8; WRAPPED_BYTES])]).await.expect("kept");
        keys.inner().failures = 2;
        assert!(keys.create(vec![(job(1), [7; WRAPPED_BYTES])]).await.is_err());
        keys.destroy(job(2), [8; WRAPPED_BYTES]).await.expect("destroyed");
        assert_eq!(copies(), 0);
    }

    #[tokio::test]
    async fn of_two_keys_none_is_thrown_away() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("subject-keys");
        let bytes = full([(1, 3), (2, 4), (1, 5), (2, 4)].map(|(n, key)| (job(n), [key; WRAPPED_BYTES])));
        let both = [[3; WRAPPED_BYTES], [5; WRAPPED_BYTES]];
        for first in [0, 1] {
            std::fs::write(&path, &bytes).expect("written");
            let keys = FileKeys::open(&path).expect("opens");
            let found = FileKeys::read(&path).expect("read").expect("there");
            assert_eq!(found.keys.len(), 3, "the same twice is one");
            assert_eq!(keys.get(job(1)).await.expect("looked"), both);
            let there = keys.create(vec![(job(1), [6; WRAPPED_BYTES])]).await.expect("looked");
            assert_eq!(there, both.map(|key| (job(1), key)), "no third one");
            keys.destroy(job(1), both[first]).await.expect("destroyed");
            assert_eq!(keys.get(job(1)).await.expect("looked"), [both[1 - first]]);
            drop(keys);
            let keys = FileKeys::open(&path).expect("opens");
            assert_eq!(keys.get(job(1)).await.expect("looked"), [both[1 - first]]);
            keys.destroy(job(1), both[1 - first]).await.expect("destroyed");
            assert!(keys.get(job(1)).await.expect("looked").is_empty());
            assert_eq!(keys.get(job(2)).await.expect("looked"), [[4; WRAPPED_BYTES]]);
            // Brought together on purpose, and each once.
            for key in [both[0], both[1], both[0]] {
                keys.add(vec![(job(1), key)]).await.expect("kept");
            }
            assert_eq!(keys.get(job(1)).await.expect("looked"), both);
        }
    }

    #[tokio::test]
    async fn a_file_that_is_full_is_not_cut() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("subject-keys");
        let keys = FileKeys::open_up_to(&path, 4).expect("made");
        let many =
            |range: std::ops::RangeInclusive<u8>| range.map(|n| (job(n), [n; WRAPPED_BYTES])).collect();
        keys.create(many(1..=3)).await.expect("kept");
        assert!(keys.create(many(4..=6)).await.is_err(), "one of three has room");
        keys.create(many(4..=4)).await.expect("kept");
        assert!(keys.create(many(5..=5)).await.is_err());
        keys.destroy(job(2), [2; WRAPPED_BYTES]).await.expect("destroyed");
        keys.create(many(5..=5)).await.expect("in its place");
        drop(keys);
        let whole = std::fs::read(&path).expect("there");
        assert!(matches!(FileKeys::open_up_to(&path, 3), Err(KeyStoreError::Unfit(_))));
        assert_eq!(std::fs::read(&path).expect("there"), whole, "nothing was changed");
        assert_eq!(FileKeys::open_up_to(&path, 4).expect("opens").list().await.expect("listed").len(), 4);
    }
}
