//! Subjects' keys in the data folder: one file of entries of equal size, each written once and overwritten with zeros
//! when its key is destroyed.
//!
//! | bytes | what |
//! |---|---|
//! | 16 | `FLOTILLA-KEYS-1\n` |
//! | 80 each | kind (1) and id (16) of the subject, the wrapped key (60), the first 3 bytes of SHA-256 over these 77; or zeros |
//!
//! An entry that is neither is what a crash left of one that nobody was told of, or of one that was being destroyed:
//! it is zeroed when the file is opened. One whose write failed is zeroed before anything else is written, so that no
//! second copy of a key outlives the first. Should a file hold two different keys of a subject all the same, both stay. Where the file system keeps old copies of blocks (snapshots, journals of data,
//! flash memory), overwriting does not reach them: `docs/operations.md` says what follows from that.

use std::collections::BTreeMap;
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
    /// Number of the entry and the key, by subject.
    keys: BTreeMap<Subject, (usize, Wrapped)>,
    /// Entries of zeros.
    free: Vec<usize>,
    /// Further keys of subjects that have one already: which of them the log means is not known here.
    second: Vec<(Subject, (usize, Wrapped))>,
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
    keys: BTreeMap<Subject, (usize, Wrapped)>,
    second: Vec<(Subject, (usize, Wrapped))>,
    free: Vec<usize>,
    /// Neither key nor zeros, or the same key once more.
    torn: Vec<usize>,
    entries: usize,
}

impl FileKeys {
    /// The file's name in a data folder.
    pub const NAME: &str = "subject-keys";

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
        let Read { keys, second, mut free, torn, entries } = parse(path, &bytes)?;
        drop(bytes);
        for (subject, _) in &second {
            tracing::error!(file = %path.display(), %subject, "there are two keys of it: the first is used, both are kept");
        }
        let mut inner = Inner {
            path: path.to_owned(),
            file,
            keys,
            free: Vec::new(),
            second,
            doubtful: Vec::new(),
            entries,
            entries_max,
            #[cfg(test)]
            failures: 0,
        };
        for entry in torn {
            tracing::warn!(file = %path.display(), entry, "an entry that was not written or destroyed wholly is removed");
            inner.put(entry, &[0; ENTRY_BYTES]).map_err(failed)?;
            free.push(entry);
        }
        inner.free = free;
        // What a crash left behind the last whole entry.
        inner.file.set_len((MAGIC.len() + inner.entries * ENTRY_BYTES) as u64).map_err(failed)?;
        inner.file.sync_all().map_err(failed)?;
        Ok(Self { inner: Arc::new(Mutex::new(inner)) })
    }

    /// The keys of a file that a service may be using meanwhile; none if it is not there. Should there be two keys of a
    /// subject, both, the one in use first.
    ///
    /// # Errors
    /// If it cannot be read or is no file of this format.
    pub fn read(path: &Path) -> Result<Option<Vec<(Subject, Wrapped)>>, KeyStoreError> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| unavailable(path, &error))?,
        };
        let Read { keys, second, .. } = parse(path, &read_all(path, &mut file, ENTRIES_MAX)?)?;
        Ok(Some(keys.into_iter().chain(second).map(|(subject, (_, wrapped))| (subject, wrapped)).collect()))
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

fn parse(path: &Path, bytes: &[u8]) -> Result<Read, KeyStoreError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| {
        KeyStoreError::Unfit(format!("{} is damaged, or of another version", path.display()))
    })?;
    let (mut keys, mut second) = (BTreeMap::<Subject, (usize, Wrapped)>::new(), Vec::new());
    let (mut free, mut torn) = (Vec::new(), Vec::new());
    let chunks = rest.chunks_exact(ENTRY_BYTES);
    let entries = chunks.len();
    for (number, chunk) in chunks.enumerate() {
        match entry(chunk) {
            Some((subject, wrapped)) => match keys.get(&subject) {
                None => drop(keys.insert(subject, (number, wrapped))),
                Some((_, first)) if *first == wrapped => torn.push(number),
                Some(_) => second.push((subject, (number, wrapped))),
            },
            _ if chunk.iter().all(|byte| *byte == 0) => free.push(number),
            _ => torn.push(number),
        }
    }
    Ok(Read { keys, second, free, torn, entries })
}

fn entry(chunk: &[u8]) -> Option<(Subject, Wrapped)> {
    let (body, check) = chunk.split_at_checked(BODY_BYTES)?;
    if Sha256::digest(body)[..3] != *check {
        return None;
    }
    let (subject, wrapped) = body.split_at_checked(17)?;
    Some((Subject::from_bytes(subject)?, wrapped.try_into().ok()?))
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

    fn create(&mut self, keys: Vec<(Subject, Wrapped)>) -> io::Result<Vec<(Subject, Wrapped)>> {
        self.clear_doubtful()?;
        let (mut there, mut made) = (Vec::new(), BTreeMap::new());
        let written = self.write_new(keys, &mut there, &mut made);
        if let Err(error) = written {
            self.doubtful.extend(made.into_values().map(|(entry, _)| entry));
            // Now, if the disk lets it; otherwise before the next write.
            let _ = self.clear_doubtful();
            return Err(error);
        }
        self.keys.extend(made);
        Ok(there)
    }

    /// Writes keys that are not `there`; `made` has each before it is written.
    fn write_new(
        &mut self,
        keys: Vec<(Subject, Wrapped)>,
        there: &mut Vec<(Subject, Wrapped)>,
        made: &mut BTreeMap<Subject, (usize, Wrapped)>,
    ) -> io::Result<()> {
        for (subject, wrapped) in keys {
            if let Some((_, known)) = self.keys.get(&subject).or_else(|| made.get(&subject)) {
                there.push((subject, *known));
                continue;
            }
            let entry = match self.free.pop() {
                Some(entry) => entry,
                None if self.entries < self.entries_max => self.entries,
                None => return Err(io::Error::other("the file has as many keys as it may have")),
            };
            // Taken whatever comes of it.
            self.entries = self.entries.max(entry + 1);
            made.insert(subject, (entry, wrapped));
            self.put(entry, &bytes_of(subject, &wrapped))?;
        }
        if made.is_empty() { Ok(()) } else { self.sync() }
    }

    fn destroy(&mut self, subject: Subject, wrapped: &Wrapped) -> io::Result<()> {
        self.clear_doubtful()?;
        let entry = match self.keys.get(&subject) {
            Some((entry, known)) if known == wrapped => *entry,
            _ => {
                let found = self.second.iter().find(|(of, (_, known))| *of == subject && known == wrapped);
                let Some((_, (entry, _))) = found else { return Ok(()) };
                *entry
            }
        };
        self.put(entry, &[0; ENTRY_BYTES])?;
        self.sync()?;
        self.free.push(entry);
        let second = self.second.iter().position(|(of, (number, _))| *of == subject && *number != entry);
        if self.keys.get(&subject).is_some_and(|(number, _)| *number == entry) {
            match second.map(|at| self.second.remove(at)) {
                Some((_, other)) => drop(self.keys.insert(subject, other)),
                None => drop(self.keys.remove(&subject)),
            }
        } else {
            self.second.retain(|(_, (number, _))| *number != entry);
        }
        Ok(())
    }
}

impl KeyStore for FileKeys {
    fn list(&self) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>> {
        Box::pin(async {
            Ok(self.inner().keys.iter().map(|(subject, (_, wrapped))| (*subject, *wrapped)).collect())
        })
    }

    fn get(&self, subject: Subject) -> BoxFuture<'_, Result<Option<Wrapped>, KeyStoreError>> {
        Box::pin(async move { Ok(self.inner().keys.get(&subject).map(|(_, wrapped)| *wrapped)) })
    }

    fn create(
        &self,
        keys: Vec<(Subject, Wrapped)>,
    ) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>> {
        Box::pin(self.blocking(move |inner| inner.create(keys)))
    }

    fn destroy(&self, subject: Subject, wrapped: Wrapped) -> BoxFuture<'_, Result<(), KeyStoreError>> {
        Box::pin(self.blocking(move |inner| inner.destroy(subject, &wrapped)))
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
        assert_eq!(keys.get(job(2)).await.expect("looked"), None);
        // Its place is taken again, and all is there after a restart.
        keys.create(vec![(job(5), [5; WRAPPED_BYTES])]).await.expect("kept");
        assert_eq!(std::fs::metadata(&path).expect("there").len(), (16 + 4 * ENTRY_BYTES) as u64);
        drop(keys);
        let listed = FileKeys::open(&path).expect("opens").list().await.expect("listed");
        assert_eq!(listed.len(), 4);
        assert_eq!(FileKeys::read(&path).expect("read"), Some(listed));
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
        for zeroed in 1..ENTRY_BYTES {
            // The second one was not destroyed to its end.
            let mut bytes = whole.clone();
            bytes[16 + ENTRY_BYTES..16 + ENTRY_BYTES + zeroed].fill(0);
            std::fs::write(&path, &bytes).expect("written");
            assert_eq!(FileKeys::open(&path).expect("opens").list().await.expect("listed").len(), 2);
            let bytes = std::fs::read(&path).expect("there");
            assert!(!bytes.windows(8).any(|window| window == [2; 8]), "{zeroed} bytes");
        }
        for bad in [&b""[..], b"FLOTILLA-KEYS-2\n", &whole[1..]] {
            std::fs::write(&path, bad).expect("written");
            assert!(matches!(FileKeys::open(&path), Err(KeyStoreError::Unfit(_))), "{bad:?}");
        }
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
            assert_eq!(keys.get(job(1)).await.expect("looked"), None);
            assert!(keys.create(one).await.expect("kept").is_empty());
            assert_eq!(copies(), 1, "{failures}");
            keys.inner().failures = failures;
            assert!(keys.destroy(job(1), [7; WRAPPED_BYTES]).await.is_err());
            keys.inner().failures = 0;
            keys.destroy(job(1), [7; WRAPPED_BYTES]).await.expect("destroyed");
            assert_eq!(copies(), 0, "{failures}");
            assert!(FileKeys::read(&path).expect("read").is_some_and(|keys| keys.is_empty()));
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
        let bytes: Vec<u8> =
            [(1, 3), (2, 4), (1, 5), (2, 4)].into_iter().fold(MAGIC.to_vec(), |all, (n, key)| {
                [all, bytes_of(job(n), &[key; WRAPPED_BYTES]).to_vec()].concat()
            });
        let both = [[3; WRAPPED_BYTES], [5; WRAPPED_BYTES]];
        for first in [0, 1] {
            std::fs::write(&path, &bytes).expect("written");
            let keys = FileKeys::open(&path).expect("opens");
            assert_eq!(
                FileKeys::read(&path).expect("read").expect("there").len(),
                3,
                "the same twice is one"
            );
            keys.destroy(job(1), both[first]).await.expect("destroyed");
            assert_eq!(keys.get(job(1)).await.expect("looked"), Some(both[1 - first]));
            drop(keys);
            let keys = FileKeys::open(&path).expect("opens");
            assert_eq!(keys.get(job(1)).await.expect("looked"), Some(both[1 - first]));
            keys.destroy(job(1), both[1 - first]).await.expect("destroyed");
            assert_eq!(keys.get(job(1)).await.expect("looked"), None);
            assert_eq!(keys.get(job(2)).await.expect("looked"), Some([4; WRAPPED_BYTES]));
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
