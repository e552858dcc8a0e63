//! Copying a log from one place to another, embedded or in NATS, in either direction, and the proof that it is the same.
//!
//! What the target has already has to be the beginning of the source, byte for byte: so a copy that was broken off goes
//! on where it stopped, and nothing is ever written behind another history. At the end the target is opened anew, read
//! from its first record, and both Merkle tree heads are told (`events/AUDIT_FORMAT.md` §1).
//!
//! The keys of private texts go along, each by its commitment: the target has afterwards what either of the two had, but for
//! those that the log calls erased, so that a copy that goes on is no way around an erasure, and a source whose store is an
//! old one takes no newer key away. That needs the fleet's secret, out of the `keys` of a data folder. Without it keys
//! cannot be told apart: only those of subjects of which everything is erased are destroyed, and where the two places differ
//! of somebody who was erased and begun anew, both keys stay and the subject is named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::archive::{ArchiveError, History};
use crate::config::NatsAccess;
use crate::pki;
use crate::privacy::{FileKeys, Found, KeyStore, KeyStoreError, NatsKeys, Wrapped, Wrapper};
use control_core::subject::Known;
use event_audit::frontier::Frontier;
use event_audit::{Hash, Head};
use event_log::file::{FileLog, FileLogOptions};
use event_log::limits::{MAX_COMMIT_BYTES, MAX_COMMIT_RECORDS};
use event_log::{AppendError, Entry, EventLog, Position, ReadError, ReadLimit, StreamName};
use event_log_nats::{NatsLog, NatsOpenError};
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

impl Place {
    fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(data) => Some(data),
            Self::Nats(_) => None,
        }
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
#[derive(Clone, Debug)]
pub struct Copied {
    /// Records that the target had before.
    pub had: u64,
    /// Keys of private texts that the source has and that were not erased, as far as that can be told; the target has
    /// them now too.
    pub keys: u64,
    /// Subjects of which one of the keys that the target has now may be an erased one: it could not be told which.
    pub doubtful_keys: Vec<Subject>,
    /// Entries of the source's file of keys that are damaged, or of a newer program, and were not copied.
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

/// Copies what the target lacks, as far as the source reaches when it begins. `access` is how servers of NATS are used, on both sides;
/// `archives` hold the beginning of the source, if it is not there; `data` is a data folder of the fleet, with the secret
/// that its keys are wrapped with, if neither source nor target is one.
///
/// # Errors
/// [`CopyError`]; what was copied until then stays and is gone on from.
pub async fn copy(
    from: &Place,
    to: &Place,
    access: &NatsAccess,
    archives: &[PathBuf],
    data: Option<&Path>,
) -> Result<Copied, CopyError> {
    let mut told = Told::default();
    let from_log = open(from, true, access).await?;
    let source = History::open(archives, Some(from_log.log.clone()), None).await?;
    if let Some(missing) = source.missing() {
        return Err(CopyError::Archived { first: *missing.start(), last: *missing.end() });
    }
    let Opened { log: target, nats } = open(to, false, access).await?;
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
            told.see(&a.bytes);
            at = a.position.next();
        }
    }
    let wrapper =
        [from.folder(), to.folder(), data].into_iter().flatten().find_map(pki::subject_keys_if_there);
    let wrapper = wrapper.transpose().map_err(|error| KeyStoreError::Unavailable(error.to_string()))?;
    // Before the records that are sealed with them: all of them, as more may be erased by what is copied now.
    let found = keys_of(from, from_log.nats.as_deref()).await?;
    if !found.keys.is_empty()
        && let Some(store) = store_of(to, nats.as_deref(), true).await?
    {
        store.add(told.wanted(&found.keys, wrapper.as_ref())).await?;
    }
    drop(nats);
    let mut writer = Appender { target: &*target, stream: None, records: Vec::new(), bytes: 0 };
    while at <= end {
        for entry in page(&source, at).await?.into_iter().take_while(|entry| entry.position <= end) {
            tree.push(Hash::leaf(&entry.bytes));
            told.see(&entry.bytes);
            at = entry.position.next();
            writer.push(entry).await?;
        }
    }
    writer.flush().await?;
    // Once more: what the log calls erased by now may have been there before.
    let found = keys_of(from, from_log.nats.as_deref()).await?;
    source.close().await;
    drop(from_log);
    target.close().await;
    drop(target);
    let Opened { log: target, nats } = open(to, true, access).await?;
    let target_tree = head(&*target, end).await?;
    let mut copied = Copied {
        had: had.0,
        keys: told.wanted(&found.keys, wrapper.as_ref()).len() as u64,
        doubtful_keys: Vec::new(),
        other_keys: found.others as u64,
        source: tree.head(),
        target: target_tree,
    };
    if copied.is_equal()
        && let Some(store) = store_of(to, nats.as_deref(), false).await?
    {
        copied.doubtful_keys = told.settle(&found.keys, &*store, wrapper.as_ref()).await?;
    }
    target.close().await;
    Ok(copied)
}

/// What the log says of keys.
#[derive(Default)]
struct Told(BTreeMap<Subject, Known>);

impl Told {
    /// Takes in the next record. Of one that this program cannot read nothing is known.
    fn see(&mut self, bytes: &[u8]) {
        let Ok(record) = Record::decode(bytes) else { return };
        for event in &record.events {
            match event {
                Event::SubjectOpened(e) => self.0.entry(e.subject).or_default().open(e.commitment),
                Event::SubjectErased(e) => {
                    if let Some(known) = self.0.get_mut(&e.subject) {
                        known.erase();
                    }
                }
                _ => {}
            }
        }
    }

    /// Keys that are not known to be erased.
    fn wanted(&self, keys: &[(Subject, Wrapped)], wrapper: Option<&Wrapper>) -> Vec<(Subject, Wrapped)> {
        let is_erased = |(subject, wrapped): &&(Subject, Wrapped)| {
            let Some(known) = self.0.get(subject).filter(|known| !known.erased.is_empty()) else {
                return false;
            };
            match wrapper.and_then(|wrapper| wrapper.unwrap(*subject, wrapped)) {
                Some(key) => known.erased.contains(&key.commitment(*subject)),
                None => known.is_erased(),
            }
        };
        keys.iter().filter(|key| !is_erased(key)).copied().collect()
    }

    /// Destroys in a store what is erased, and puts there what the source has besides; of whom it cannot be told which of
    /// several keys that is.
    async fn settle(
        &self,
        source: &[(Subject, Wrapped)],
        store: &dyn KeyStore,
        wrapper: Option<&Wrapper>,
    ) -> Result<Vec<Subject>, CopyError> {
        let source: BTreeSet<(Subject, Wrapped)> = self.wanted(source, wrapper).into_iter().collect();
        store.add(source.iter().copied().collect()).await?;
        let mut doubtful = Vec::new();
        for (subject, known) in self.0.iter().filter(|(_, known)| !known.erased.is_empty()) {
            for theirs in store.get(*subject).await? {
                match wrapper.and_then(|wrapper| wrapper.unwrap(*subject, &theirs)) {
                    Some(key) if !known.erased.contains(&key.commitment(*subject)) => {}
                    Some(_) => store.destroy(*subject, theirs).await?,
                    None if known.is_erased() && wrapper.is_none() => store.destroy(*subject, theirs).await?,
                    None if source.contains(&(*subject, theirs)) => {}
                    None => doubtful.push(*subject),
                }
            }
        }
        Ok(doubtful)
    }
}

/// The keys of private texts of a place.
async fn keys_of(place: &Place, log: Option<&NatsLog>) -> Result<Found, CopyError> {
    Ok(match (place, log) {
        (Place::Folder(data), _) => FileKeys::read(&data.join(FileKeys::NAME))?.unwrap_or_default(),
        (Place::Nats(_), None) => Found::default(),
        (Place::Nats(_), Some(log)) => Found { keys: bucket(log).await?.list().await?, others: 0 },
    })
}

/// Where a target keeps its keys; none if it is a folder without any, and none are `to_come`.
async fn store_of(
    place: &Place,
    log: Option<&NatsLog>,
    to_come: bool,
) -> Result<Option<Box<dyn KeyStore>>, CopyError> {
    Ok(match (place, log) {
        (Place::Folder(data), _) => {
            let path = data.join(FileKeys::NAME);
            match FileKeys::read(&path)? {
                None if !to_come => None,
                _ => Some(Box::new(FileKeys::open(&path)?)),
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

async fn open(place: &Place, must_be: bool, access: &NatsAccess) -> Result<Opened, CopyError> {
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
            let log = NatsLog::open(access.options(url)).await?;
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
    use event_schema::{SubjectErased, SubjectKey, SubjectOpened};

    async fn write(place: &Place, from: u64, to: u64) {
        let log = open(place, false, &NatsAccess::default()).await.expect("opens").log;
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
        let log = open(place, false, &NatsAccess::default()).await.expect("opens").log;
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

    fn job(n: u8) -> Subject {
        Subject::Job(event_schema::JobId([n; 16]))
    }

    fn wrapped(wrapper: &Wrapper, n: u8, key: u8) -> (Subject, Wrapped) {
        (job(n), wrapper.wrap(job(n), &SubjectKey::new([key; 32])))
    }

    fn erased(n: u8) -> Event {
        SubjectErased { subject: job(n), reason: "asked for".into() }.into()
    }

    fn opened(n: u8, key: u8) -> Event {
        SubjectOpened { subject: job(n), commitment: SubjectKey::new([key; 32]).commitment(job(n)) }.into()
    }

    fn kept(place: &Place) -> BTreeSet<(Subject, Wrapped)> {
        FileKeys::read(&keys(place)).expect("readable").expect("there").keys.into_iter().collect()
    }

    /// The copy of a backup that is made again and again, by one who has the fleet's secret and one who has not.
    async fn erasures_reach(first: Place, second: Place, third: Place, data: Option<&Path>) {
        let wrapper = Wrapper::new(&[1; 32]);
        let wrapper = data.map_or(wrapper, |data| pki::subject_keys(data).expect("a secret"));
        let key = |n: u8, key: u8| wrapped(&wrapper, n, key);
        write(&first, 1, 10).await;
        let old: Vec<_> = (1..=5).map(|n| key(n, n)).collect();
        let store = FileKeys::open(&keys(&first)).expect("made");
        store.create(old.clone()).await.expect("kept");
        for n in 1..=5 {
            tell(&first, opened(n, n)).await;
        }
        assert_eq!(copy(&first, &second, &NatsAccess::default(), &[], data).await.expect("copied").keys, 5);
        // One is erased, one erased and begun anew; of one the source lost the key, of another it got a new one.
        for event in [erased(1), erased(2), opened(2, 22), opened(4, 44)] {
            tell(&first, event).await;
        }
        for one in &old[..4] {
            store.destroy(one.0, one.1).await.expect("destroyed");
        }
        let new = [key(2, 22), key(4, 44)];
        store.create(new.to_vec()).await.expect("kept");
        let all = BTreeSet::from([new[0], old[2], old[3], new[1], old[4]]);
        for _ in 0..2 {
            let copied = copy(&first, &second, &NatsAccess::default(), &[], data).await.expect("copied");
            assert!(copied.is_equal() && copied.keys == 3, "{copied:?}");
            copy(&second, &third, &NatsAccess::default(), &[], data).await.expect("copied on");
            if data.is_some() {
                assert_eq!(copied.doubtful_keys, []);
                assert_eq!(kept(&third), all);
            } else {
                // Which of the two is the erased one cannot be told: it is said, and both stay.
                assert_eq!(copied.doubtful_keys, [job(2)]);
                assert_eq!(kept(&third), &all | &BTreeSet::from([old[1]]));
            }
        }
    }

    /// The source's store is an old one, the target's is not.
    #[tokio::test]
    async fn a_source_with_an_old_store_takes_no_newer_key_away() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = |name: &str| Place::Folder(dir.path().join(name));
        let (from, to, data) = (place("a"), place("b"), secret_in(dir.path()));
        for with_secret in [true, false] {
            let wrapper = pki::subject_keys(&data).expect("a secret");
            let (old, live) = (wrapped(&wrapper, 1, 1), wrapped(&wrapper, 1, 2));
            for (place, key) in [(&from, old), (&to, live)] {
                let Place::Folder(folder) = place else { unreachable!("a folder") };
                let _ = std::fs::remove_dir_all(folder);
                write(place, 1, 3).await;
                for event in [opened(1, 1), erased(1), opened(1, 2)] {
                    tell(place, event).await;
                }
                FileKeys::open(&keys(place)).expect("made").create(vec![key]).await.expect("kept");
            }
            let copied = copy(&from, &to, &NatsAccess::default(), &[], with_secret.then_some(&*data))
                .await
                .expect("copied");
            assert!(kept(&to).contains(&live), "with the secret: {with_secret}");
            assert_eq!(kept(&to).contains(&old), !with_secret);
            assert_eq!(copied.doubtful_keys.len(), usize::from(!with_secret));
        }
    }

    /// A data folder with a fleet's keys.
    fn secret_in(folder: &Path) -> PathBuf {
        let data = folder.join("fleet");
        std::fs::create_dir_all(&data).expect("a folder");
        crate::pki::Pki::open(&data, &["localhost".to_owned()], crate::service::now()).expect("made");
        data
    }

    async fn there_and_back(first: Place, second: Place, third: Place) {
        write(&first, 1, 300).await;
        let kept = vec![(event_schema::Subject::Job(event_schema::JobId([7; 16])), [9; WRAPPED_BYTES])];
        let store = FileKeys::open(&keys(&first)).expect("made");
        store.create(kept.clone()).await.expect("kept");
        drop(store);
        let copied = copy(&first, &second, &NatsAccess::default(), &[], None).await.expect("copied");
        assert!(copied.is_equal() && (copied.had, copied.target.size) == (0, 300), "{copied:?}");
        // It goes on where it was.
        write(&first, 301, 400).await;
        let copied = copy(&first, &second, &NatsAccess::default(), &[], None).await.expect("copied");
        assert!(copied.is_equal() && (copied.had, copied.target.size) == (300, 400), "{copied:?}");
        let back = copy(&second, &third, &NatsAccess::default(), &[], None).await.expect("copied back");
        assert!(back.is_equal() && back.target == copied.source);
        // The keys of private texts went along.
        assert_eq!((copied.keys, back.keys), (1, 1));
        assert_eq!(FileKeys::read(&keys(&third)).expect("readable").expect("there").keys, kept);
        // Another history, and the wrong direction.
        write(&third, 401, 401).await;
        assert!(matches!(
            copy(&second, &third, &NatsAccess::default(), &[], None).await,
            Err(CopyError::Longer { target: 401, .. })
        ));
        write(&first, 402, 402).await;
        assert!(matches!(
            copy(&first, &third, &NatsAccess::default(), &[], None).await,
            Err(CopyError::Other(Position(401)))
        ));
    }

    #[tokio::test]
    async fn a_copy_goes_on_and_is_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = |name: &str| Place::Folder(dir.path().join(name));
        assert!(matches!(
            copy(&place("none"), &place("b"), &NatsAccess::default(), &[], None).await,
            Err(CopyError::NoLog(_))
        ));
        there_and_back(place("a"), place("b"), place("c")).await;
        erasures_reach(place("d"), place("e"), place("f"), None).await;
        let data = secret_in(dir.path());
        erasures_reach(place("g"), place("h"), place("i"), Some(&data)).await;
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
        let data = secret_in(dir.path());
        erasures_reach(place("a"), Place::parse(&server.url()), place("c"), Some(&data)).await;
    }
}
