//! Projections: the log told as answers to questions.
//!
//! Each takes `(position, record)`, passes over what it has seen, and can be thrown away and folded
//! again from position 1. [`Views`] holds them all; its [`Views::hash`] names the state in the newest of
//! its [`forms`](crate::form), so that two services, or a service and a rebuild from zero, can be compared.

mod conflicts;
mod fleet;
mod jobs;
mod mailbox;
mod replicas;
mod runs;

use event_schema::{Record, Timestamp};
use serde::{Deserialize, Serialize};

use crate::form;

pub use conflicts::{ConflictView, Conflicts};
pub use fleet::{AgentView, Fleet, GroupView, StandingView, TokenView};
pub use jobs::{JobView, Jobs};
pub use mailbox::{Mailbox, Mailboxes};
pub use replicas::{ReplicaView, Replicas};
pub use runs::{ManifestView, ProblemView, RunAgentView, RunView, Runs};

/// All projections, at one position.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Views {
    position: u64,
    time: Timestamp,
    /// Who belongs to the fleet, in which groups, and what lets agents in?
    pub fleet: Fleet,
    /// What shall happen?
    pub jobs: Jobs,
    /// What happens and has happened?
    pub runs: Runs,
    /// Which commands has an agent still to take?
    pub mailboxes: Mailboxes,
    /// Which checkpoints are held that the log does not continue?
    pub conflicts: Conflicts,
    /// Which control services write to this log? How the fleet is run, not what it is: no form has it.
    pub replicas: Replicas,
}

impl Views {
    /// The last position that was applied; 0 before the first.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The time that was reached: the latest of all records so far, since clocks may go back; 0 before the
    /// first.
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// Applies a record, unless it was applied before. Returns whether it was news.
    ///
    /// Positions come in order and without gaps; holding that is the reader's duty.
    pub fn apply(&mut self, position: u64, record: &Record) -> bool {
        if position <= self.position {
            return false;
        }
        self.position = position;
        self.time = self.time.max(record.time);
        for event in &record.events {
            self.fleet.apply(record.time, event);
            self.jobs.apply(record.time, event);
            self.runs.apply(position, record.time, event);
            self.mailboxes.apply(event);
            self.conflicts.apply(record.time, event);
            self.replicas.apply(record.time, event);
        }
        true
    }

    /// SHA-256 over everything, in the newest form.
    pub fn hash(&self) -> [u8; 32] {
        form::hash(form::NEWEST, self).expect("the newest form is known")
    }
}
