//! Whose texts are under keys, and whose were erased?

use std::collections::BTreeMap;

use event_schema::{Event, Subject, Timestamp};
use serde::{Deserialize, Serialize};

/// Subjects of texts. Erased ones stay: what they said is gone, that it was erased is history.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Subjects {
    /// By subject.
    pub subjects: BTreeMap<Subject, SubjectView>,
}

/// One subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubjectView {
    /// What the log says of its newest key.
    pub commitment: [u8; 32],
    /// Since when there is that key.
    pub opened: Timestamp,
    /// When its texts were erased; none if they were not, or it got another key since.
    pub erased: Option<Timestamp>,
    /// Why they were, the last time.
    pub reason: Option<String>,
}

impl Subjects {
    pub(super) fn apply(&mut self, time: Timestamp, event: &Event) {
        match event {
            Event::SubjectOpened(e) => {
                let reason = self.subjects.remove(&e.subject).and_then(|before| before.reason);
                let view = SubjectView { commitment: e.commitment, opened: time, erased: None, reason };
                self.subjects.insert(e.subject, view);
            }
            Event::SubjectErased(e) => {
                if let Some(known) = self.subjects.get_mut(&e.subject) {
                    (known.erased, known.reason) = (Some(time), Some(e.reason.clone()));
                }
            }
            _ => {}
        }
    }
}
