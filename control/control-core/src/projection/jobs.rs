//! What shall happen?

use std::collections::BTreeMap;

use event_schema::{Event, Field, JobId, JobSpec, Owner, Private, RunId, Subject, Timestamp, Visit};
use serde::{Deserialize, Serialize};

/// Runs of one job that are listed with it, newest last; the others are found among the runs.
const RUNS_LISTED_MAX: usize = 100;

/// Jobs that are not deleted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Jobs {
    /// By id.
    pub jobs: BTreeMap<JobId, JobView>,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Its name, unique among jobs.
    pub name: Private<String>,
    /// What it does.
    pub spec: JobSpec,
    /// When it was made.
    pub created: Timestamp,
    /// Its runs, newest last, at most 100.
    pub runs: Vec<RunId>,
}

impl Jobs {
    pub(super) fn apply(&mut self, time: Timestamp, event: &Event) {
        match event {
            Event::JobCreated(e) => {
                let (name, spec) = (e.name.clone(), e.spec.clone());
                self.jobs.insert(e.job, JobView { name, spec, created: time, runs: Vec::new() });
            }
            Event::JobDeleted(e) => {
                self.jobs.remove(&e.job);
            }
            Event::RunStarted(e) => {
                if let Some(job) = self.jobs.get_mut(&e.job) {
                    if job.runs.len() >= RUNS_LISTED_MAX {
                        job.runs.remove(0);
                    }
                    job.runs.push(e.run);
                }
            }
            _ => {}
        }
    }

    pub(super) fn private(&mut self, visit: &mut Visit<'_>) {
        for (id, job) in &mut self.jobs {
            let owner = Owner::Subject(Subject::Job(*id));
            visit(Field::JobName, owner, &mut job.name);
            job.spec.private(owner, visit);
        }
    }
}
