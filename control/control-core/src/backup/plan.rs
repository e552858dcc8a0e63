//! What has to be ordered of a backup besides its runs: versions that are to go, folders that are to be watched. Pure and
//! repeatable, as [`crate::plan`]; and which starts are due.

use std::collections::{BTreeMap, BTreeSet};

use event_schema::{
    AgentId, CommandBody, JobId, JobSpec, Party, Place, Private, Purpose, THINNED_MAX, ThinBackup, Timestamp,
    WatchBackup, WatchedFolder, When,
};

use super::keep;
use super::standing::{Backup, Shelf, Source};
use super::version::VersionName;
use super::when::{Facts, Schedule};
use crate::State;
use crate::projection::{JobView, Views};

/// A command to be signed.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// For whom.
    pub agent: AgentId,
    /// Its place in the agent's sequence.
    pub sequence: u64,
    /// What to do.
    pub body: CommandBody,
}

/// Whether [`orders`] would give any.
pub fn is_outstanding(state: &State, job: JobId, of: Option<AgentId>) -> bool {
    !orders(state, job, of, 1).is_empty()
}

/// The first `max` outstanding orders of a backup, one per agent at most. With `of` those alone that follow from what
/// became of this source's versions: a backup of many is not looked through for each of them.
pub fn orders(state: &State, job: JobId, of: Option<AgentId>, max: usize) -> Vec<Order> {
    let Some(backup) = state.backups.jobs.get(&job) else { return vec![] };
    let mut bodies: BTreeMap<AgentId, CommandBody> = BTreeMap::new();
    if of.is_none() {
        for (agent, folder) in watches(state, job, backup) {
            bodies.insert(agent, WatchBackup { job, folder }.into());
        }
    }
    for (agent, thin) in thinnings(state, job, backup, of) {
        bodies.entry(agent).or_insert_with(|| thin.into());
    }
    let order = |(agent, body)| {
        let sequence = state.approved(agent)?.last_command + 1;
        Some(Order { agent, sequence, body })
    };
    bodies.into_iter().filter_map(order).take(max).collect()
}

/// Jobs that may have something to order when agents or groups have changed.
pub fn jobs(state: &State) -> impl Iterator<Item = JobId> {
    state.backups.jobs.keys().copied()
}

/// Who is to be told to watch, and who to do so no more.
fn watches(state: &State, job: JobId, backup: &Backup) -> BTreeMap<AgentId, Option<WatchedFolder>> {
    let mut told = BTreeMap::new();
    let mut wanted = BTreeSet::new();
    let spec = state.jobs.get(&job).map(|known| (known, &known.spec));
    if let Some((known, JobSpec::Backup { sources, when: When::Continuous { quiet_seconds, minutes }, .. })) =
        spec
    {
        if !known.is_legible() {
            return told;
        }
        for (agent, path) in resolved(state, sources) {
            wanted.insert(agent);
            if !backup.is_watched(agent) {
                let (path, quiet_seconds, pause_minutes) = (path.to_vec(), *quiet_seconds, *minutes);
                told.insert(agent, Some(WatchedFolder { path, quiet_seconds, pause_minutes }));
            }
        }
    }
    let watching = backup.sources.iter().filter(|(_, source)| source.watch.is_some());
    for (agent, _) in watching.filter(|(agent, _)| !wanted.contains(agent)) {
        told.insert(*agent, None);
    }
    told
}

/// Approved agents that places name, groups resolved; of two places that name one the first.
fn resolved<'s>(state: &State, places: &'s [Place]) -> BTreeMap<AgentId, &'s Private<Vec<u8>>> {
    let mut all = BTreeMap::new();
    for place in places {
        let agents: Vec<AgentId> = match place.party {
            Party::Agent(agent) => vec![agent],
            Party::Group(id) => {
                state.groups.get(&id).into_iter().flat_map(|group| group.members.clone()).collect()
            }
        };
        for agent in agents.into_iter().filter(|agent| state.approved(*agent).is_some()) {
            all.entry(agent).or_insert(&place.path);
        }
    }
    all
}

/// What each storage agent is to remove now: of one source at a time, when nothing reads or makes versions there.
fn thinnings(
    state: &State,
    job: JobId,
    backup: &Backup,
    of: Option<AgentId>,
) -> BTreeMap<AgentId, ThinBackup> {
    let mut all = BTreeMap::new();
    let Some(JobSpec::Backup { keep, .. }) = state.jobs.get(&job).map(|known| &known.spec) else {
        return all;
    };
    let wanted = |source: AgentId, shelf: &Shelf| shelf.unthinned && of.is_none_or(|of| of == source);
    let shelves = backup.shelves.iter().filter(|((_, source), shelf)| wanted(*source, shelf));
    let mut in_use = None;
    for ((storage, source), shelf) in shelves {
        if all.contains_key(storage) || backup.thinning.contains_key(storage) {
            continue;
        }
        let Some((path, versions)) = surplus(keep, shelf) else { continue };
        if in_use.get_or_insert_with(|| used(state, job)).contains(&(*storage, *source)) {
            continue;
        }
        let versions = versions.iter().map(ToString::to_string).collect();
        all.insert(*storage, ThinBackup { job, source: *source, path, versions });
    }
    all
}

/// Shelves of a job, by storage agent and source, that active runs write to or read.
fn used(state: &State, job: JobId) -> BTreeSet<(AgentId, AgentId)> {
    let active = state.runs.values().filter(|run| run.job == job && run.outcome.is_none());
    let shelves = active.flat_map(|run| -> Vec<(AgentId, AgentId)> {
        match run.purpose {
            Purpose::Plain => vec![],
            Purpose::Version { .. } => run.parts.keys().map(|storage| (*storage, run.source)).collect(),
            Purpose::Restore { of, .. } => vec![(run.source, of)],
        }
    });
    shelves.collect()
}

/// What is to go from a shelf first: versions in one folder, which is another one where the source's tags were changed.
fn surplus(policy: &event_schema::Keep, shelf: &Shelf) -> Option<(Vec<u8>, Vec<VersionName>)> {
    let standing = shelf.versions.iter().map(|(name, version)| (*name, version.is_good())).collect();
    let surplus = keep::surplus(policy, &standing);
    let folder = |name: &VersionName| shelf.versions.get(name).and_then(|version| version.shelf.legible());
    let path = surplus.iter().find_map(folder)?;
    let together = surplus.iter().filter(|name| folder(name) == Some(path)).take(THINNED_MAX);
    Some((path.clone(), together.copied().collect()))
}

/// A start that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Of which job.
    pub job: JobId,
    /// The last version that any start of it was to make, as far as it was known.
    pub last: Option<VersionName>,
    /// With these sources alone, each with the last version that a start was to make of it; none: with all of them.
    pub sources: Option<BTreeMap<AgentId, Option<VersionName>>>,
}

/// Whether nothing was started since.
pub fn still_stands(state: &State, due: &Due) -> bool {
    let Some(backup) = state.backups.jobs.get(&due.job) else { return false };
    match &due.sources {
        None => backup.last_start() == due.last,
        Some(sources) => sources
            .iter()
            .all(|(agent, last)| backup.sources.get(agent).is_some_and(|source| source.started == *last)),
    }
}

/// Backups whose time has come: for whoever sees to schedules, of whom there may be one at a time: two whose clocks differ
/// would each take the other's starts for those of a clock that was wrong. A source with an active run is not due.
pub fn due(views: &Views, now: Timestamp) -> Vec<Due> {
    let starts = Starts::of(views);
    let jobs = views.jobs.jobs.iter();
    jobs.filter_map(|(job, known)| {
        let backup = views.backups.jobs.get(job)?;
        let last = backup.last_start();
        let come = |started, changed| next(known, started, changed, now).is_some_and(|at| at <= now);
        if !is_continuous(known) {
            let started = starts.of_job(*job, backup);
            return come(started, false).then_some(Due { job: *job, last, sources: None });
        }
        let told = backup.sources.iter().filter(|(_, source)| source.changed && source.watch.is_some());
        let ready: BTreeMap<AgentId, _> = told
            .filter(|(agent, source)| {
                !starts.active.contains(&(*job, **agent))
                    && come(starts.of_source(*job, **agent, source), true)
            })
            .map(|(agent, source)| (*agent, source.started))
            .collect();
        (!ready.is_empty()).then_some(Due { job: *job, last, sources: Some(ready) })
    })
    .collect()
}

/// When a backup is started next; in the past if that is due. Of a continuous one: the first of its sources. None if that
/// is not known.
pub fn next_start(views: &Views, job: JobId, now: Timestamp) -> Option<Timestamp> {
    let (known, backup) = (views.jobs.jobs.get(&job)?, views.backups.jobs.get(&job)?);
    let starts = Starts::of(views);
    if !is_continuous(known) {
        return next(known, starts.of_job(job, backup), false, now);
    }
    let sources = backup.sources.iter();
    let next = sources.filter_map(|(agent, source)| {
        next(known, starts.of_source(job, *agent, source), source.changed, now)
    });
    next.min()
}

/// When sources were started last, by the records that say so: names of versions only grow, and so may be ahead of the
/// clock.
struct Starts {
    /// By job and source: place on the log, and when.
    last: BTreeMap<(JobId, AgentId), (u64, Timestamp)>,
    active: BTreeSet<(JobId, AgentId)>,
}

impl Starts {
    fn of(views: &Views) -> Self {
        let (mut last, mut active) = (BTreeMap::new(), BTreeSet::new());
        for run in views.runs.runs.values().filter(|run| run.makes_version()) {
            let Some(source) = run.source() else { continue };
            let key = (run.job, source);
            let this = (run.history.first().copied().unwrap_or_default(), run.started);
            let known = last.entry(key).or_insert(this);
            *known = this.max(*known);
            if run.outcome.is_none() {
                active.insert(key);
            }
        }
        Self { last, active }
    }

    /// The last start of any source.
    fn of_job(&self, job: JobId, backup: &Backup) -> Option<Timestamp> {
        let bounds = (job, AgentId([0; 16]))..=(job, AgentId([255; 16]));
        let known = self.last.range(bounds).map(|(_, start)| *start).max();
        known.map(|(_, time)| time).or_else(|| backup.last_start()?.timestamp())
    }

    fn of_source(&self, job: JobId, agent: AgentId, source: &Source) -> Option<Timestamp> {
        let known = self.last.get(&(job, agent)).map(|(_, time)| *time);
        known.or_else(|| source.started?.timestamp())
    }
}

fn is_continuous(job: &JobView) -> bool {
    matches!(job.spec, JobSpec::Backup { when: When::Continuous { .. }, .. })
}

fn next(job: &JobView, started: Option<Timestamp>, changed: bool, now: Timestamp) -> Option<Timestamp> {
    let JobSpec::Backup { when, .. } = &job.spec else { return None };
    // A start whose run is forgotten is known to the second, by its version's name: so steps are counted in whole ones.
    let created = Timestamp(job.created.0 / 1_000 * 1_000);
    Schedule::parse(when).ok()?.due(Facts { created, started, changed }, now)
}
