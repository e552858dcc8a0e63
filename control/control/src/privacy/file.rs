//! Subjects' keys in the data folder: one file of entries of equal size, each written once and overwritten with zeros
//! when its key is destroyed.
//!
//! | bytes | what |
//! |---|---|
//! | 16 | `FLOTILLA-KEYS-1\n` |
//! | 80 each | kind (1) and id (16) of the subject, the wrapped key (60), the first 3 bytes of SHA-256 over these 77; or zeros |
//!
//! An entry that is neither is what a crash left of one that nobody was told of, or of one that was being destroyed:
//! it is zeroed when the file is opened. Where the file system keeps old copies of blocks (snapshots, journals of data,
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

/// Entries that are read at most: a fleet of the largest size has a twentieth of that.
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
    entries: usize,
}

/// What a file holds.
struct Read {
    keys: BTreeMap<Subject, (usize, Wrapped)>,
    free: Vec<usize>,
    /// Neither key nor zeros.
    torn: Vec<usize>,
    entries: usize,
}

impl FileKeys {
    /// The file's name in a data folder.
    pub const NAME: &str = "subject-keys";

    /// Opens the file, and makes it if there is none.
    ///
    /// # Errors
    /// If it cannot be read or written, or is no file of this format.
    pub fn open(path: &Path) -> Result<Self, KeyStoreError> {
        let failed = |error: io::Error| unavailable(path, &error);
        if !path.try_exists().map_err(failed)? {
            crate::private_file::write(path, MAGIC).map_err(failed)?;
        }
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        let Read { keys, mut free, torn, entries } = parse(path, &read_all(&mut file).map_err(failed)?)?;
        let mut inner = Inner { path: path.to_owned(), file, keys, free: Vec::new(), entries };
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

    /// The keys of a file that a service may be using meanwhile; none if it is not there.
    ///
    /// # Errors
    /// If it cannot be read or is no file of this format.
    pub fn read(path: &Path) -> Result<Option<Vec<(Subject, Wrapped)>>, KeyStoreError> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| unavailable(path, &error))?,
        };
        let bytes = read_all(&mut file).map_err(|error| unavailable(path, &error))?;
        let keys = parse(path, &bytes)?.keys;
        Ok(Some(keys.into_iter().map(|(subject, (_, wrapped))| (subject, wrapped)).collect()))
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

fn read_all(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take((MAGIC.len() + ENTRIES_MAX * ENTRY_BYTES) as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unavailable(path: &Path, error: &io::Error) -> KeyStoreError {
    KeyStoreError::Unavailable(format!("{}: {error}", path.display()))
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Read, KeyStoreError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| {
        KeyStoreError::Unfit(format!("{} is damaged, or of another version", path.display()))
    })?;
    let (mut keys, mut free, mut torn) = (BTreeMap::new(), Vec::new(), Vec::new());
    let chunks = rest.chunks_exact(ENTRY_BYTES);
    let entries = chunks.len();
    for (number, chunk) in chunks.enumerate() {
        match entry(chunk) {
            Some((subject, wrapped)) if !keys.contains_key(&subject) => {
                keys.insert(subject, (number, wrapped));
            }
            _ if chunk.iter().all(|byte| *byte == 0) => free.push(number),
            _ => torn.push(number),
        }
    }
    Ok(Read { keys, free, torn, entries })
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

    fn create(&mut self, keys: Vec<(Subject, Wrapped)>) -> io::Result<Vec<(Subject, Wrapped)>> {
        let (mut there, mut made) = (Vec::new(), Vec::new());
        for (subject, wrapped) in keys {
            if let Some((_, known)) = self.keys.get(&subject) {
                there.push((subject, *known));
                continue;
            }
            let entry = self.free.pop().unwrap_or(self.entries);
            // Taken whatever comes of it: what may be there in parts is found when the file is opened again.
            self.entries = self.entries.max(entry + 1);
            self.put(entry, &bytes_of(subject, &wrapped))?;
            made.push((subject, (entry, wrapped)));
        }
        if !made.is_empty() {
            self.file.sync_data()?;
        }
        self.keys.extend(made);
        Ok(there)
    }

    fn destroy(&mut self, subject: Subject, wrapped: &Wrapped) -> io::Result<()> {
        let Some((entry, _)) = self.keys.get(&subject).filter(|(_, known)| known == wrapped).copied() else {
            return Ok(());
        };
        self.put(entry, &[0; ENTRY_BYTES])?;
        self.file.sync_all()?;
        self.keys.remove(&subject);
        self.free.push(entry);
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
}
