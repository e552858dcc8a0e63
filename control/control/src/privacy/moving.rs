//! The keys of a log that was moved from a data folder to NATS move after it.

use std::path::Path;

use event_log::{EventLog, Position, ReadLimit};
use event_schema::{Event, Record, Subject};

use super::file::FileKeys;
use super::store::{KeyStore, KeyStoreError};

/// Moves the keys that a data folder has to the store beside the log, and removes their file when the store has every
/// one of them, byte for byte. The log has to be the one of the fleet with this root key: to another fleet's nothing is
/// given, and the file stays as it is.
///
/// # Errors
/// If the log is empty, the store has another key of a subject, or log, store or file do not answer; the file is as it
/// was then.
pub(crate) async fn move_keys(
    path: &Path,
    store: &dyn KeyStore,
    log: &dyn EventLog,
    root_key: [u8; 32],
) -> Result<(), KeyStoreError> {
    let Some(keys) = FileKeys::read(path)?.filter(|keys| !keys.is_empty()) else { return Ok(()) };
    let first = log.read(Position(1), ReadLimit::entries(1)).await;
    let first = first.map_err(|error| KeyStoreError::Unavailable(error.to_string()))?;
    let Some(first) = first.first() else {
        return Err(KeyStoreError::Unfit(format!(
            "{} holds the keys of another log, the one in NATS is empty: copy the log there first (`flotilla log copy`), \
             or move the file away",
            path.display()
        )));
    };
    let founded = Record::decode(&first.bytes).is_ok_and(|record| {
        record.events.iter().any(|event| matches!(event, Event::FleetFounded(e) if e.root_key == root_key))
    });
    if !founded {
        // Whoever opens the log says whose it is.
        tracing::warn!(file = %path.display(), "the keys of private texts stay there: the log in NATS is not this fleet's");
        return Ok(());
    }
    let other = |subject: Subject| {
        KeyStoreError::Unfit(format!(
            "the store beside the log has another key of {subject} than {}: `flotilla log copy` brings newer ones from \
             there; if the file is the older one, move it away",
            path.display()
        ))
    };
    for (subject, there) in store.create(keys.clone()).await? {
        if !keys.contains(&(subject, there)) {
            return Err(other(subject));
        }
    }
    let kept: std::collections::BTreeSet<_> = store.list().await?.into_iter().collect();
    if let Some((subject, _)) = keys.iter().find(|key| !kept.contains(key)) {
        return Err(other(*subject));
    }
    FileKeys::remove(path)?;
    tracing::info!("the keys of private texts are kept beside the log in NATS now");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privacy::{WRAPPED_BYTES, Wrapped};
    use event_log::StreamName;
    use event_log::memory::MemoryLog;
    use event_schema::{Actor, FleetFounded, JobId, RecordId, Timestamp};

    const OURS: [u8; 32] = [1; 32];

    async fn founded_by(root_key: [u8; 32]) -> MemoryLog {
        let log = MemoryLog::new();
        let record = Record {
            id: RecordId([3; 16]),
            stream: "fleet".into(),
            time: Timestamp(1),
            actor: Actor::Service,
            causation: None,
            correlation: RecordId([3; 16]),
            events: vec![FleetFounded { root_key, ca_fingerprint: [2; 32] }.into()],
        };
        let stream = StreamName::new("fleet").expect("a name");
        log.append(&stream, None, record.encode()).await.expect("stored");
        log
    }

    fn key(n: u8, key: u8) -> (Subject, Wrapped) {
        (Subject::Job(JobId([n; 16])), [key; WRAPPED_BYTES])
    }

    #[tokio::test]
    async fn keys_move_to_their_own_log_and_only_as_a_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        let (path, there) = (dir.path().join("subject-keys"), dir.path().join("store"));
        let own = FileKeys::open(&path).expect("made");
        own.create(vec![key(1, 1), key(2, 2)]).await.expect("kept");
        drop(own);
        let store = FileKeys::open(&there).expect("made");
        let before = std::fs::read(&path).expect("there");
        let is_as_it_was = || std::fs::read(&path).is_ok_and(|bytes| bytes == before);

        // Another fleet's log, and an empty one: nothing goes there.
        move_keys(&path, &store, &founded_by([9; 32]).await, OURS).await.expect("passed over");
        assert!(move_keys(&path, &store, &MemoryLog::new(), OURS).await.is_err());
        assert!(is_as_it_was() && store.list().await.expect("listed").is_empty());

        // The store has another key of one of them.
        let log = founded_by(OURS).await;
        store.create(vec![key(2, 7)]).await.expect("kept");
        let refused = move_keys(&path, &store, &log, OURS).await.expect_err("another key");
        assert!(refused.to_string().contains(&key(2, 2).0.to_string()), "{refused}");
        assert!(is_as_it_was());
        store.destroy(key(2, 7).0, key(2, 7).1).await.expect("destroyed");

        move_keys(&path, &store, &log, OURS).await.expect("moved");
        assert!(!path.exists());
        assert_eq!(store.list().await.expect("listed"), [key(1, 1), key(2, 2)]);
        move_keys(&path, &store, &MemoryLog::new(), OURS).await.expect("nothing to move");
    }
}
