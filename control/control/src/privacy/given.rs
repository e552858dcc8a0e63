//! Keys that an auditor was given.

use std::collections::{BTreeMap, BTreeSet};

use event_schema::{Event, Record, Subject, SubjectKey};

/// Opens records with keys that somebody was given, each held against what the log says of it.
#[derive(Debug, Default)]
pub(crate) struct Given {
    keys: BTreeMap<Subject, Vec<SubjectKey>>,
    erased: BTreeSet<Subject>,
    committed: BTreeMap<Subject, Vec<[u8; 32]>>,
    /// Subjects of whom another key was given than the log names.
    foreign: BTreeSet<Subject>,
}

impl Given {
    /// From a list of keys.
    pub(crate) fn new(keys: impl IntoIterator<Item = (Subject, SubjectKey)>) -> Self {
        let mut given = Self::default();
        for (subject, key) in keys {
            given.keys.entry(subject).or_default().push(key);
        }
        given
    }

    /// Whose key is not the one that the log names.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = Subject> {
        self.foreign.iter().copied()
    }

    /// Opens the next record of a history that is read from its beginning.
    pub(crate) fn open(&mut self, record: &mut Record) {
        for event in &record.events {
            match event {
                Event::SubjectOpened(e) => {
                    self.committed.entry(e.subject).or_default().push(e.commitment);
                    let good = |key: &SubjectKey| key.commitment(e.subject) == e.commitment;
                    if self.keys.get(&e.subject).is_some_and(|keys| !keys.iter().any(good)) {
                        self.foreign.insert(e.subject);
                    }
                }
                Event::SubjectErased(e) => drop(self.erased.insert(e.subject)),
                _ => {}
            }
        }
        record.private(&mut |field, _, text| {
            let Some(subject) = text.subject() else { return };
            let committed = self.committed.get(&subject).map_or(&[][..], Vec::as_slice);
            let mut keys = self.keys.get(&subject).into_iter().flatten();
            let opened =
                keys.any(|key| committed.contains(&key.commitment(subject)) && text.open(key, field));
            if !opened && self.erased.contains(&subject) {
                text.shut(true);
            }
        });
    }
}
