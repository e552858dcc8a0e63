//! Keys that come to a store from elsewhere: those of a log that moves from a data folder to NATS, and those of a backup.

use std::path::Path;

use event_log::{EventLog, Position, ReadLimit};
use event_schema::{Event, Record};

use super::file::FileKeys;
use super::store::{KeyStore, KeyStoreError, Wrapper};

/// Whether a log that keys are to be moved to is the one of the fleet with this root key. To another fleet's nothing is
/// given; whoever opens the log says whose it is.
///
/// # Errors
/// If the log is empty though there are keys, or does not answer.
pub(crate) async fn is_own(
    path: &Path,
    log: &dyn EventLog,
    root_key: [u8; 32],
) -> Result<bool, KeyStoreError> {
    if FileKeys::read(path)?.is_none_or(|found| found.keys.is_empty()) {
        return Ok(true);
    }
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
        tracing::warn!(file = %path.display(), "the keys of private texts stay there: the log in NATS is not this fleet's");
    }
    Ok(founded)
}

/// Brings the keys of a file to those of a store, and removes the file when the store has every one of them, byte for byte.
/// Which of several keys of a subject counts the log says: those that it calls erased are destroyed by whoever reads it
/// next. What is damaged, or another fleet's, stays in the file, and is told.
///
/// # Errors
/// If store or file do not answer; what was brought is brought once more then.
pub(crate) async fn move_keys(
    path: &Path,
    store: &dyn KeyStore,
    wrapper: &Wrapper,
) -> Result<(), KeyStoreError> {
    let Some(found) = FileKeys::read(path)? else { return Ok(()) };
    let is_ours = |(subject, wrapped): &(_, _)| wrapper.unwrap(*subject, wrapped).is_some();
    let (ours, others): (Vec<_>, Vec<_>) = found.keys.into_iter().partition(is_ours);
    store.add(ours.clone()).await?;
    let kept: std::collections::BTreeSet<_> = store.list().await?.into_iter().collect();
    if let Some((subject, _)) = ours.iter().find(|key| !kept.contains(key)) {
        return Err(KeyStoreError::Unavailable(format!("the key of {subject} was not kept")));
    }
    let file = path.display();
    if others.is_empty() && found.others == 0 {
        FileKeys::remove(path)?;
    } else {
        FileKeys::open(path)?.destroy_all(ours.clone()).await?;
        tracing::error!(
            %file, other_fleet = others.len(), damaged = found.others,
            "keys that cannot be used stay in the file: move it away when you have looked at it"
        );
    }
    tracing::info!(%file, count = ours.len(), "the keys of private texts that were in the file are with the others now");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privacy::Wrapped;
    use event_log::StreamName;
    use event_log::memory::MemoryLog;
    use event_schema::{Actor, FleetFounded, JobId, RecordId, Subject, SubjectKey, Timestamp};

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

    #[tokio::test]
    async fn keys_move_to_their_own_log_and_beside_others() {
        let dir = tempfile::tempdir().expect("a folder");
        let (path, there) = (dir.path().join("subject-keys"), dir.path().join("store"));
        let (wrapper, theirs) = (Wrapper::new(&[1; 32]), Wrapper::new(&[2; 32]));
        let key = |wrapper: &Wrapper, n: u8, key: u8| -> (Subject, Wrapped) {
            let subject = Subject::Job(JobId([n; 16]));
            (subject, wrapper.wrap(subject, &SubjectKey::new([key; 32])))
        };
        let all = [key(&wrapper, 1, 1), key(&wrapper, 2, 2), key(&wrapper, 2, 3)];
        let own = FileKeys::open(&path).expect("made");
        own.add(all.to_vec()).await.expect("kept");
        drop(own);

        // Another fleet's log, and an empty one: nothing is to go there.
        assert!(!is_own(&path, &founded_by([9; 32]).await, OURS).await.expect("answered"));
        assert!(is_own(&path, &MemoryLog::new(), OURS).await.is_err());
        assert!(is_own(&path, &founded_by(OURS).await, OURS).await.expect("answered"));
        assert!(is_own(&dir.path().join("none"), &MemoryLog::new(), OURS).await.expect("nothing to move"));

        // The store has another key of one of them: all stay.
        let store = FileKeys::open(&there).expect("made");
        let other = key(&wrapper, 2, 7);
        store.create(vec![other]).await.expect("kept");
        move_keys(&path, &store, &wrapper).await.expect("moved");
        assert!(!path.exists());
        let mut kept = store.list().await.expect("listed");
        kept.sort_unstable();
        let mut expected = [&all[..], &[other]].concat();
        expected.sort_unstable();
        assert_eq!(kept, expected);
        move_keys(&path, &store, &wrapper).await.expect("nothing to move");

        // One that nobody here can unwrap is given to nobody.
        let (foreign, late) = (key(&theirs, 4, 4), key(&wrapper, 5, 5));
        let own = FileKeys::open(&path).expect("made");
        own.add(vec![foreign, late]).await.expect("kept");
        drop(own);
        move_keys(&path, &store, &wrapper).await.expect("moved");
        assert_eq!(FileKeys::read(&path).expect("readable").expect("there").keys, [foreign]);
        assert_eq!(store.get(late.0).await.expect("looked"), [late.1]);
        assert!(store.get(foreign.0).await.expect("looked").is_empty());
    }
}
