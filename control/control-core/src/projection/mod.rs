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
mod subjects;
mod sync;

use std::collections::BTreeSet;

use event_schema::level::LEVEL_OLDEST;
use event_schema::{AgentId, Event, JobId, Record, Subject, Timestamp, Visit};
use serde::{Deserialize, Serialize};

use crate::backup::standing::Backups;
use crate::form;

pub use conflicts::{ConflictView, Conflicts};
pub use fleet::{AgentView, Fleet, GroupView, StandingView, TokenView};
pub use jobs::{JobView, Jobs};
pub use mailbox::{Mailbox, Mailboxes};
pub use replicas::{ReplicaView, Replicas};
pub use runs::{DisposalView, ManifestView, ProblemView, RunAgentView, RunView, Runs};
pub use subjects::{SubjectView, Subjects};
pub use sync::{BlockedView, FileConflictView, GuardView, SyncMemberView, SyncView};

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
    /// Which versions of what stand where?
    pub backups: Backups,
    /// Which commands has an agent still to take?
    pub mailboxes: Mailboxes,
    /// Which checkpoints are held that the log does not continue?
    pub conflicts: Conflicts,
    /// Which control services write to this log?
    pub replicas: Replicas,
    /// Whose texts are under keys, and whose were erased?
    pub subjects: Subjects,
    raised: u8,
    /// See [`Views::clear_until`], once the level was raised.
    clear_until: u64,
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
            self.backups.evolve(event);
            self.mailboxes.apply(event);
            self.conflicts.apply(record.time, event);
            self.replicas.apply(record.time, event);
            self.subjects.apply(record.time, event);
            match event {
                Event::SchemaRaised(e) => {
                    if self.level() == LEVEL_OLDEST && e.level > LEVEL_OLDEST {
                        self.clear_until = position - 1;
                    }
                    self.raised = self.raised.max(e.level);
                }
                Event::SubjectErased(e) => self.private(&mut |_, _, text| {
                    if text.subject() == Some(e.subject) {
                        text.shut(true);
                    }
                }),
                _ => {}
            }
        }
        true
    }

    /// The schema level that the log is written in.
    pub fn level(&self) -> u8 {
        self.raised.max(LEVEL_OLDEST)
    }

    /// The last position up to which everything was recorded in the clear; 0 if nothing was.
    pub fn clear_until(&self) -> u64 {
        if self.level() == LEVEL_OLDEST { self.position } else { self.clear_until }
    }

    /// Jobs that are not erased, and of which an agent took part in runs that are still known: under their keys stand its
    /// addresses, and of consolidations the folders that were named after it and its tags.
    pub fn jobs_that_name(&self, agent: AgentId) -> BTreeSet<JobId> {
        let with_it = self.runs.runs.values().filter(|run| run.agents.contains_key(&agent));
        let is_erased = |job: &JobId| {
            let known = self.subjects.subjects.get(&Subject::Job(*job));
            known.is_some_and(|known| known.erased.is_some())
        };
        with_it.map(|run| run.job).filter(|job| !is_erased(job)).collect()
    }

    /// Every text in them that is under a subject's key, or was recorded before there were keys.
    pub fn private(&mut self, visit: &mut Visit<'_>) {
        self.fleet.private(visit);
        self.jobs.private(visit);
        self.runs.private(visit);
        self.backups.private(visit);
        self.mailboxes.private(visit);
    }

    /// SHA-256 over everything, in the form of the log's level.
    pub fn hash(&self) -> [u8; 32] {
        form::hash(form::newest(self), self).expect("it is of the state's own level")
    }
}
