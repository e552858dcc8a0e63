//! Jobs: what shall happen. So far: distributions, consolidations, synchronizations and backups.

use std::collections::BTreeSet;

use event_schema::level::{LEVEL_BACKUP, LEVEL_CONSOLIDATION, LEVEL_SYNCHRONIZATION};
use event_schema::{Disposal, Event, JobCreated, JobDeleted, JobId, JobSpec, Party, Place, Private};

use serde::{Deserialize, Serialize};

use crate::agent::Standing;
use crate::backup::keep;
use crate::backup::when::Schedule;
use crate::limits::{ARCHIVE_DAYS_MAX, JOB_DESTINATIONS_MAX, JOB_SOURCES_MAX, JOBS_MAX};
use crate::subfolder::Template;
use crate::{Rejection, State, sync, text};

/// A job as decisions see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) name: Private<String>,
    pub(crate) spec: JobSpec,
}

impl Job {
    /// Whether its name and every folder can be read: else there is nothing to start.
    pub(crate) fn is_legible(&self) -> bool {
        let mut places = self.spec.sources().iter().chain(self.spec.destinations());
        let named = match &self.spec {
            JobSpec::Distribution { .. } => true,
            JobSpec::Consolidation { subfolder, .. } | JobSpec::Backup { subfolder, .. } => {
                subfolder.is_legible()
            }
            JobSpec::Synchronization { members, .. } => {
                members.iter().all(|share| share.path.is_legible() && share.selection.is_legible())
            }
        };
        let asked = self.spec.options().is_none_or(|options| options.is_legible());
        named && asked && self.name.is_legible() && places.all(|place| place.path.is_legible())
    }
}

/// Why a job that cannot be read is not started.
pub(crate) fn illegible(job: JobId) -> Rejection {
    Rejection::Conflict(format!(
        "its name and folders cannot be read here, as the key of job/{job} is missing: restore the store of keys from its \
         backup"
    ))
}

/// What can be asked about jobs.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is taken apart at once")]
pub enum Command {
    /// Make a job. Nothing moves until a run of it starts.
    Create {
        /// Its id.
        job: JobId,
        /// Its name, unique among jobs.
        name: String,
        /// What it does.
        spec: JobSpec,
    },
    /// Delete it; its runs stay. Refused while one is active.
    Delete {
        /// Which.
        job: JobId,
    },
}

/// Decides about a job.
///
/// # Errors
/// If the job or a party is unknown, the name is taken, places make no sense, or a run is active.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::Create { job, name, spec } => {
            if let Some(known) = state.jobs.get(&job) {
                return if *known.name == name && known.spec == spec {
                    Ok(vec![])
                } else {
                    Err(Rejection::Conflict(format!("the id {job} is taken")))
                };
            }
            text::check_name("a job", &name)?;
            if state.job_names.contains_key(&name) {
                return Err(Rejection::Conflict(format!(
                    "there is a job {name} already: start it again, or choose another name"
                )));
            }
            if state.jobs.len() >= JOBS_MAX {
                return Err(Rejection::Limit(format!("there are {JOBS_MAX} jobs already: delete some")));
            }
            check(state, &spec)?;
            Ok(vec![JobCreated { job, name: name.into(), spec }.into()])
        }
        Command::Delete { job } => {
            if !state.jobs.contains_key(&job) {
                return Err(Rejection::unknown("job", job));
            }
            if let Some(run) = state.active_run(job) {
                return Err(Rejection::Conflict(format!("its run {run} is active: stop that first")));
            }
            Ok(vec![JobDeleted { job }.into()])
        }
    }
}

fn check(state: &State, spec: &JobSpec) -> Result<(), Rejection> {
    let (sources, destinations) = (spec.sources(), spec.destinations());
    if let Some(options) = spec.options().filter(|options| !options.is_none()) {
        check_level(state, "options of runs", LEVEL_BACKUP)?;
        options.check().map_err(|why| Rejection::Invalid(why.into()))?;
    }
    let what = match spec {
        JobSpec::Distribution { .. } => "distribution",
        JobSpec::Backup { subfolder, when, keep, .. } => {
            check_level(state, "backups", LEVEL_BACKUP)?;
            Template::parse(subfolder)?;
            Schedule::parse(when)?;
            keep::check(keep)?;
            if !(1..=JOB_SOURCES_MAX).contains(&sources.len()) {
                return Err(Rejection::Invalid(format!("a backup has 1 to {JOB_SOURCES_MAX} sources")));
            }
            "backup"
        }
        JobSpec::Consolidation { subfolder, after, .. } => {
            check_level(state, "consolidations", LEVEL_CONSOLIDATION)?;
            Template::parse(subfolder)?;
            if let Disposal::Archive { days } = after
                && !(1..=ARCHIVE_DAYS_MAX).contains(days)
            {
                return Err(Rejection::Invalid(format!(
                    "an archive keeps files for 1 to {ARCHIVE_DAYS_MAX} days"
                )));
            }
            if !(1..=JOB_SOURCES_MAX).contains(&sources.len()) {
                return Err(Rejection::Invalid(format!(
                    "a consolidation has 1 to {JOB_SOURCES_MAX} sources"
                )));
            }
            "consolidation"
        }
        JobSpec::Synchronization { members, policy } => {
            check_level(state, "synchronizations", LEVEL_SYNCHRONIZATION)?;
            members.iter().try_for_each(|share| check_party(state, share.party))?;
            return sync::check(members, policy);
        }
    };
    let mut seen = BTreeSet::new();
    for source in sources {
        check_place(state, source)?;
        if matches!((spec, source.party), (JobSpec::Distribution { .. }, Party::Group(_))) {
            return Err(Rejection::Invalid(
                "the source of a distribution is one agent, not a group: what collects from many is a consolidation".into(),
            ));
        }
        if !seen.insert(source.party) {
            return Err(Rejection::Invalid("a source is named twice".into()));
        }
    }
    if !(1..=JOB_DESTINATIONS_MAX).contains(&destinations.len()) {
        return Err(Rejection::Invalid(format!("a {what} has 1 to {JOB_DESTINATIONS_MAX} destinations")));
    }
    let mut received = BTreeSet::new();
    for destination in destinations {
        check_place(state, destination)?;
        if seen.contains(&destination.party) {
            return Err(Rejection::Invalid(
                "the source is among the destinations: an agent takes part in a run once".into(),
            ));
        }
        if !received.insert(destination.party) {
            return Err(Rejection::Invalid(
                "a destination is named twice: an agent takes part in a run once".into(),
            ));
        }
    }
    Ok(())
}

fn check_level(state: &State, what: &str, level: u8) -> Result<(), Rejection> {
    if state.level() >= level {
        return Ok(());
    }
    Err(Rejection::Conflict(format!(
        "the log is at schema level {}, and {what} need {level}: it is raised once every replica's program reads that \
         (flotilla replicas list)",
        state.level()
    )))
}

fn check_place(state: &State, place: &Place) -> Result<(), Rejection> {
    text::check_path(&place.path)?;
    check_party(state, place.party)
}

fn check_party(state: &State, party: Party) -> Result<(), Rejection> {
    match party {
        Party::Agent(id) => match state.agents.get(&id) {
            None => Err(Rejection::unknown("agent", id)),
            Some(agent) if agent.standing == Standing::Removed => {
                Err(Rejection::Conflict(format!("the agent {} was removed", agent.name)))
            }
            Some(_) => Ok(()),
        },
        Party::Group(id) if state.groups.contains_key(&id) => Ok(()),
        Party::Group(id) => Err(Rejection::unknown("group", id)),
    }
}
