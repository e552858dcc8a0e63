//! Copying a log from one place to another, embedded or in NATS, in either direction, and the proof that it is the same.
//!
//! What the target has already has to be the beginning of the source, byte for byte: so a copy that was broken off goes
//! on where it stopped, and nothing is ever written behind another history. At the end the target is opened anew, read
//! from its first record, and both Merkle tree heads are told (`events/AUDIT_FORMAT.md` §1).
//!
//! The keys of private texts go along. Those that the target has stay, but for the ones of subjects that the log calls
//! erased: of them the target has afterwards what the source has, so that a copy that goes on is no way around an erasure.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::archive::{ArchiveError, History};
use crate::privacy::{FileKeys, KeyStore, KeyStoreError, NatsKeys, Wrapped};
use event_audit::frontier::Frontier;
use event_audit::{Hash, Head};
use event_log::file::{FileLog, FileLogOptions};
use event_log::limits::{MAX_COMMIT_BYTES, MAX_COMMIT_RECORDS};
use event_log::{AppendError, Entry, EventLog, Position, ReadError, ReadLimit, StreamName};
use event_log_nats::{NatsLog, NatsLogOptions, NatsOpenError};
use event_schema::{Event, Record, Subject};

/// Where a log is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a control service's data folder.
    Folder(PathBuf),
    /// In NATS JetStream.
    Nats(String),
}

impl Place {
    /// `nats://…` or `tls://…`, several with commas; otherwise a data folder.
    pub fn parse(text: &str) -> Self {
        let is_server =
            ["nats://", "tls://", "ws://", "wss://"].iter().any(|scheme| text.starts_with(scheme));
        if is_server { Self::Nats(text.to_owned()) } else { Self::Folder(text.into()) }
    }
}

/// Why a log is not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// There is no log where one is to be read.
    #[error("there is no event log in {}", .0.display())]
    NoLog(PathBuf),
    /// An embedded log does not open.
    #[error(transparent)]
    Folder(#[from] event_log::OpenError),
    /// A log in NATS does not open.
    #[error(transparent)]
    Nats(#[from] NatsOpenError),
    /// An archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The beginning of the source is in archives.
    #[error(
        "the positions {first} to {last} of the source were archived: name their archive with --archive FOLDER"
    )]
    Archived {
        /// The first position that is missing.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// The beginning of the target is in archives.
    #[error("the target begins with position {0}, what stood before was archived: copy to an empty place")]
    Shortened(Position),
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The keys of private texts cannot be read or written.
    #[error(transparent)]
    Keys(#[from] KeyStoreError),
    /// It cannot be written.
    #[error("{0}; run the same command again, it goes on from there")]
    Append(#[from] AppendError),
    /// The target holds something else.
    #[error(
        "the target's record at position {0} is not the source's: it is another log. Nothing was changed; copy to an \
         empty place"
    )]
    Other(Position),
    /// The target has more than the source.
    #[error(
        "the target has {target} records, more than the source's {source_len}: is it the other way round?"
    )]
    Longer {
        /// Records of the target.
        target: u64,
        /// Records of the source.
        source_len: u64,
    },
    /// A record is not where it should be.
    #[error("the log has no record at position {0}")]
    Missing(Position),
}

/// What was copied.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// Records that the target had before.
    pub had: u64,
    /// Keys of private texts that the source has; the target has them now too, but for [`Self::other_keys`].
    pub keys: u64,
    /// Subjects of which the target had another key, though nothing was erased; it stays.
    pub other_keys: u64,
    /// The source's tree.
    pub source: Head,
    /// The target's, read anew.
    pub target: Head,
}

impl Copied {
    /// Whether the two logs are the same.
    pub fn is_equal(&self) -> bool {
        self.source == self.target
    }
}

/// Copies what the target lacks, as far as the source reaches when it begins. `replicas` counts if a stream is made;
/// `archives` hold the beginning of the source, if it is not there.
///
/// # Errors
/// [`CopyError`]; what was copied until then stays and is gone on from.
pub async fn copy(
    from: &Place,
    to: &Place,
    replicas: usize,
    archives: &[PathBuf],
) -> Result<Copied, CopyError> {
    let mut erased = Erased::default();
    let from_log = open(from, true, 1).await?;
    let source = History::open(archives, Some(from_log.log.clone()), None).await?;
    if let Some(missing) = source.missing() {
        return Err(CopyError::Archived { first: *missing.start(), last: *missing.end() });
    }
    let Opened { log: target, nats } = open(to, false, replicas).await?;
    let first = target.first().await?;
    if first > Position(1) {
        return Err(CopyError::Shortened(first));
    }
    let end = source.last_position().await?;
    let had = target.last_position().await?;
    if had > end {
        return Err(CopyError::Longer { target: had.0, source_len: end.0 });
    }
    let mut tree = Frontier::new();
    // What is there already is the beginning.
    let mut at = Position(1);
    while at <= had {
        let (ours, theirs) = (page(&source, at).await?, page(&*target, at).await?);
        for (a, b) in ours.iter().zip(&theirs).take_while(|(a, _)| a.position <= had) {
            if a.stream != b.stream || a.bytes != b.bytes {
                return Err(CopyError::Other(a.position));
            }
            tree.push(Hash::leaf(&a.bytes));
            erased.see(&a.bytes);
            at = a.position.next();
        }
    }
    // Before the records that are sealed with them.
    let (keys, other) = copy_keys((from, from_log.nats.as_deref()), (to, nats.as_deref())).await?;
    drop(nats);
    let mut writer = Appender { target: &*target, stream: None, records: Vec::new(), bytes: 0 };
    while at <= end {
        for entry in page(&source, at).await?.into_iter().take_while(|entry| entry.position <= end) {
            tree.push(Hash::leaf(&entry.bytes));
            erased.see(&entry.bytes);
            at = entry.position.next();
            writer.push(entry).await?;
        }
    }
    writer.flush().await?;
    // Once more: what the log calls erased by now may have been there before.
    let source_keys = match erased.0.is_empty() {
        true => Vec::new(),
        false => keys_of(from, from_log.nats.as_deref()).await?,
    };
    source.close().await;
    drop(from_log);
    target.close().await;
    drop(target);
    let Opened { log: target, nats } = open(to, true, 1).await?;
    let target_tree = head(&*target, end).await?;
    let other_keys = other.into_iter().filter(|subject| !erased.0.contains_key(subject)).count() as u64;
    let copied = Copied { had: had.0, keys, other_keys, source: tree.head(), target: target_tree };
    if copied.is_equal()
        && !erased.0.is_empty()
        && let Some(store) = store_of(to, nats.as_deref()).await?
    {
        erased.mirror(source_keys, &*store).await?;
    }
    target.close().await;
    Ok(copied)
}

/// Subjects that the log calls erased, and whether that is the last that it says of their keys.
#[derive(Default)]
struct Erased(BTreeMap<Subject, bool>);

impl Erased {
    /// Takes in the next record. Of one that this program cannot read nothing is known.
    fn see(&mut self, bytes: &[u8]) {
        let Ok(record) = Record::decode(bytes) else { return };
        for event in &record.events {
            match event {
                Event::SubjectErased(e) => drop(self.0.insert(e.subject, true)),
                // Begun anew, with another key.
                Event::SubjectOpened(e) => {
                    self.0.entry(e.subject).and_modify(|is_last| *is_last = false);
                }
                _ => {}
            }
        }
    }

    /// Destroys in a store the erased keys that the source does not have any more, and puts those that were begun anew.
    async fn mirror(&self, source: Vec<(Subject, Wrapped)>, store: &dyn KeyStore) -> Result<(), CopyError> {
        let source: BTreeMap<Subject, Wrapped> =
            source.into_iter().filter(|(subject, _)| self.0.contains_key(subject)).collect();
        for (subject, is_last) in &self.0 {
            let ours = source.get(subject);
            // A newer key that only the target has is not thrown away.
            while (*is_last || ours.is_some())
                && let Some(theirs) = store.get(*subject).await?.filter(|theirs| ours != Some(theirs))
            {
                store.destroy(*subject, theirs).await?;
            }
        }
        store.create(source.into_iter().collect()).await?;
        Ok(())
    }
}

/// Copies the keys of private texts that the target lacks, wrapped as they are; how many the source has, and of whom
/// the target has others.
async fn copy_keys(
    (from, from_log): (&Place, Option<&NatsLog>),
    (to, to_log): (&Place, Option<&NatsLog>),
) -> Result<(u64, Vec<Subject>), CopyError> {
    let keys = keys_of(from, from_log).await?;
    if keys.is_empty() {
        return Ok((0, Vec::new()));
    }
    let there = match (to, to_log) {
        (Place::Folder(data), _) => FileKeys::open(&data.join(FileKeys::NAME))?.create(keys.clone()).await?,
        (Place::Nats(_), None) => Vec::new(),
        (Place::Nats(_), Some(log)) => bucket(log).await?.create(keys.clone()).await?,
    };
    let count = keys.len() as u64;
    let ours: BTreeMap<Subject, Wrapped> = keys.into_iter().collect();
    let other = there.into_iter().filter(|(subject, wrapped)| ours.get(subject) != Some(wrapped));
    Ok((count, other.map(|(subject, _)| subject).collect()))
}

/// The keys of private texts of a place.
async fn keys_of(place: &Place, log: Option<&NatsLog>) -> Result<Vec<(Subject, Wrapped)>, CopyError> {
    Ok(match (place, log) {
        (Place::Folder(data), _) => FileKeys::read(&data.join(FileKeys::NAME))?.unwrap_or_default(),
        (Place::Nats(_), None) => Vec::new(),
        (Place::Nats(_), Some(log)) => bucket(log).await?.list().await?,
    })
}

/// Where a target keeps its keys; none if it is a folder without any.
async fn store_of(place: &Place, log: Option<&NatsLog>) -> Result<Option<Box<dyn KeyStore>>, CopyError> {
    Ok(match (place, log) {
        (Place::Folder(data), _) => {
            let path = data.join(FileKeys::NAME);
            match FileKeys::read(&path)? {
                Some(_) => Some(Box::new(FileKeys::open(&path)?)),
                None => None,
            }
        }
        (Place::Nats(_), None) => None,
        (Place::Nats(_), Some(log)) => Some(Box::new(bucket(log).await?)),
    })
}

async fn bucket(log: &NatsLog) -> Result<NatsKeys, KeyStoreError> {
    Ok(NatsKeys::new(log.vault().await?))
}

/// A log, and the servers that keep it, if they do.
struct Opened {
    log: Arc<dyn EventLog>,
    nats: Option<Arc<NatsLog>>,
}

async fn open(place: &Place, must_be: bool, replicas: usize) -> Result<Opened, CopyError> {
    Ok(match place {
        Place::Folder(data) => {
            let dir = data.join("log");
            if must_be && !dir.is_dir() {
                return Err(CopyError::NoLog(dir));
            }
            // As its writer, so that no service writes to it meanwhile.
            Opened { log: Arc::new(FileLog::open(dir, FileLogOptions::default()).await?), nats: None }
        }
        // Without a copy that is kept: everything is read from the servers.
        Place::Nats(url) => {
            let log = NatsLog::open(NatsLogOptions { replicas, ..NatsLogOptions::new(url) }).await?;
            let log = Arc::new(log);
            Opened { log: log.clone(), nats: Some(log) }
        }
    })
}

/// The next records; at least one.
async fn page(log: &dyn EventLog, from: Position) -> Result<Vec<Entry>, CopyError> {
    let page = log.read(from, ReadLimit::default()).await?;
    match page.first() {
        Some(first) if first.position == from => Ok(page),
        _ => Err(CopyError::Missing(from)),
    }
}

async fn head(log: &dyn EventLog, end: Position) -> Result<Head, CopyError> {
    let (mut tree, mut at) = (Frontier::new(), Position(1));
    while at <= end {
        for entry in page(log, at).await?.into_iter().take_while(|entry| entry.position <= end) {
            tree.push(Hash::leaf(&entry.bytes));
            at = entry.position.next();
        }
    }
    Ok(tree.head())
}

/// Puts records of one stream into commits.
struct Appender<'a> {
    target: &'a dyn EventLog,
    stream: Option<StreamName>,
    records: Vec<Vec<u8>>,
    bytes: usize,
}

impl Appender<'_> {
    async fn push(&mut self, entry: Entry) -> Result<(), CopyError> {
        let full =
            self.records.len() >= MAX_COMMIT_RECORDS || self.bytes + entry.bytes.len() > MAX_COMMIT_BYTES;
        if full || self.stream.as_ref() != Some(&entry.stream) {
            self.flush().await?;
            self.stream = Some(entry.stream);
        }
        self.bytes += entry.bytes.len();
        self.records.push(entry.bytes);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), CopyError> {
        self.bytes = 0;
        let records = std::mem::take(&mut self.records);
        if let (Some(stream), false) = (&self.stream, records.is_empty()) {
            let last = self.target.last_of_stream(stream).await?;
            self.target.append_batch(stream, last, records).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privacy::WRAPPED_BYTES;

    async fn write(place: &Place, from: u64, to: u64) {
        let log = open(place, false, 1).await.expect("opens").log;
        for n in from..=to {
            let stream = StreamName::new(if n % 7 == 0 { "other" } else { "fleet" }).expect("a name");
            let last = log.last_of_stream(&stream).await.expect("readable");
            let bytes = vec![n as u8; (n as usize * 37) % 5_000];
            log.append(&stream, last, bytes).await.expect("stored");
        }
        log.close().await;
    }

    fn keys(place: &Place) -> std::path::PathBuf {
        let Place::Folder(data) = place else { unreachable!("a folder") };
        data.join(FileKeys::NAME)
    }

    async fn tell(place: &Place, event: Event) {
        let log = open(place, false, 1).await.expect("opens").log;
        let stream = StreamName::new("fleet").expect("a name");
        let last = log.last_of_stream(&stream).await.expect("readable");
        let record = Record {
            id: event_schema::RecordId([1; 16]),
            stream: "fleet".into(),
            time: event_schema::Timestamp(1),
            actor: event_schema::Actor::Service,
            causation: None,
            correlation: event_schema::RecordId([1; 16]),
            events: vec![event],
        };
        log.append(&stream, last, record.encode()).await.expect("stored");
        log.close().await;
    }

    /// The copy of a backup that is made again and again.
    async fn erasures_reach(first: Place, second: Place, third: Place) {
        let job = |n: u8| Subject::Job(event_schema::JobId([n; 16]));
        let erased =
            |subject| Event::from(event_schema::SubjectErased { subject, reason: "asked for".into() });
        let opened = |subject| Event::from(event_schema::SubjectOpened { subject, commitment: [0; 32] });
        let key = |n: u8, key: u8| (job(n), [key; WRAPPED_BYTES]);
        write(&first, 1, 10).await;
        let store = FileKeys::open(&keys(&first)).expect("made");
        store.create((1..=5).map(|n| key(n, n)).collect()).await.expect("kept");
        assert_eq!(copy(&first, &second, 1, &[]).await.expect("copied").keys, 5);
        // One is erased, one erased and begun anew; of one the source lost the key, of another it got a new one.
        for event in [erased(job(1)), erased(job(2)), opened(job(2)), opened(job(4))] {
            tell(&first, event).await;
        }
        for n in 1..=4 {
            store.destroy(key(n, n).0, key(n, n).1).await.expect("destroyed");
        }
        store.create(vec![key(2, 22), key(4, 44)]).await.expect("kept");
        for _ in 0..2 {
            let copied = copy(&first, &second, 1, &[]).await.expect("copied");
            assert!(copied.is_equal() && (copied.keys, copied.other_keys) == (3, 1), "{copied:?}");
            copy(&second, &third, 1, &[]).await.expect("copied on");
            let there = FileKeys::read(&keys(&third)).expect("readable");
            assert_eq!(there, Some(vec![key(2, 22), key(3, 3), key(4, 4), key(5, 5)]));
        }
    }

    async fn there_and_back(first: Place, second: Place, third: Place) {
        write(&first, 1, 300).await;
        let kept = vec![(event_schema::Subject::Job(event_schema::JobId([7; 16])), [9; WRAPPED_BYTES])];
        let store = FileKeys::open(&keys(&first)).expect("made");
        store.create(kept.clone()).await.expect("kept");
        drop(store);
        let copied = copy(&first, &second, 1, &[]).await.expect("copied");
        assert!(copied.is_equal() && (copied.had, copied.target.size) == (0, 300), "{copied:?}");
        // It goes on where it was.
        write(&first, 301, 400).await;
        let copied = copy(&first, &second, 1, &[]).await.expect("copied");
        assert!(copied.is_equal() && (copied.had, copied.target.size) == (300, 400), "{copied:?}");
        let back = copy(&second, &third, 1, &[]).await.expect("copied back");
        assert!(back.is_equal() && back.target == copied.source);
        // The keys of private texts went along.
        assert_eq!((copied.keys, back.keys), (1, 1));
        assert_eq!(FileKeys::read(&keys(&third)).expect("readable"), Some(kept));
        // Another history, and the wrong direction.
        write(&third, 401, 401).await;
        assert!(matches!(copy(&second, &third, 1, &[]).await, Err(CopyError::Longer { target: 401, .. })));
        write(&first, 402, 402).await;
        assert!(matches!(copy(&first, &third, 1, &[]).await, Err(CopyError::Other(Position(401)))));
    }

    #[tokio::test]
    async fn a_copy_goes_on_and_is_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = |name: &str| Place::Folder(dir.path().join(name));
        assert!(matches!(copy(&place("none"), &place("b"), 1, &[]).await, Err(CopyError::NoLog(_))));
        there_and_back(place("a"), place("b"), place("c")).await;
        erasures_reach(place("d"), place("e"), place("f")).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn from_a_folder_to_nats_and_back() {
        let Some(program) = event_log_nats::testing::server_or_skip("from_a_folder_to_nats_and_back") else {
            return;
        };
        let dir = tempfile::tempdir().expect("a folder");
        let server =
            event_log_nats::testing::NatsServer::start(program, dir.path().join("nats")).expect("starts");
        let place = |name: &str| Place::Folder(dir.path().join(name));
        there_and_back(place("a"), Place::parse(&server.url()), place("c")).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn erasures_reach_a_copy_in_nats() {
        let Some(program) = event_log_nats::testing::server_or_skip("erasures_reach_a_copy_in_nats") else {
            return;
        };
        let dir = tempfile::tempdir().expect("a folder");
        let server =
            event_log_nats::testing::NatsServer::start(program, dir.path().join("nats")).expect("starts");
        let place = |name: &str| Place::Folder(dir.path().join(name));
        erasures_reach(place("a"), Place::parse(&server.url()), place("c")).await;
    }
}
