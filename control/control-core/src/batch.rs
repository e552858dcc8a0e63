//! Starts of consolidations and backups: one run for each source, all of one start bound together by a [`BatchId`].
//!
//! Each run is an ordinary one, with its own source, manifest, swarm and secret, so a source that is away delays nobody
//! but itself. A source whose earlier run of the job is still active is passed over: a job that is started again and
//! again does not pile up runs for those who are away.

use std::collections::{BTreeMap, BTreeSet};

use event_schema::{
    AgentId, BatchId, Disposal, Event, JobId, JobSpec, Party, Place, Purpose, Role, RunId, RunStarted,
    Timestamp,
};
use sha2::{Digest, Sha256};

use crate::backup::version::VersionName;
use crate::job::illegible;
use crate::limits::{BATCH_PARTS_MAX, BATCH_RUNS_MAX, PARTICIPANTS_MAX, PATH_LEN_MAX};
use crate::run::must_be_approved;
use crate::subfolder::Template;
use crate::{Rejection, State};

/// What a start comes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Started {
    /// A `run.started` for each source that begins.
    pub events: Vec<Event>,
    /// Sources that do not begin anew.
    pub skipped: Vec<Skipped>,
}

/// A source whose run from before is still active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Which.
    pub agent: AgentId,
    /// That run.
    pub run: RunId,
}

/// The run of a source in a batch: always the same, so that asking twice is one fact. It has the batch's time and sorts
/// like it.
pub fn run_of(batch: BatchId, source: AgentId) -> RunId {
    let hash = Sha256::new().chain_update(b"flotilla run of a batch v1\0");
    let hash = hash.chain_update(batch.0).chain_update(source.0).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    id[..6].copy_from_slice(&batch.0[..6]);
    id[6] = 0x70 | (id[6] & 0x0f);
    id[8] = 0x80 | (id[8] & 0x3f);
    RunId(id)
}

/// Starts a run for each source of a consolidation or a backup, or for each of these alone: `only`. Groups are resolved now: members that are not approved are passed
/// over, and those that would have nobody to send to; but no destination is, if sources dispose of what all destinations
/// have.
///
/// # Errors
/// If the job is unknown or none of this kind, its folders cannot be read, an agent named by it is removed or not
/// approved, an agent would take part with two folders, a source's tags do not give it a folder, two sources would have
/// the same, nobody would send or receive anything, every source is still busy with an earlier run, or there would be too many.
pub fn start(
    state: &State,
    batch: BatchId,
    job: JobId,
    only: Option<&BTreeSet<AgentId>>,
    now: Timestamp,
) -> Result<Started, Rejection> {
    if state.runs.values().any(|run| run.batch == Some(batch) && run.job == job) {
        return Ok(Started::default());
    }
    let known = state.jobs.get(&job).ok_or_else(|| Rejection::unknown("job", job))?;
    if !known.is_legible() {
        return Err(illegible(job));
    }
    let (sources, destinations, subfolder, after, options, keeps) = match &known.spec {
        JobSpec::Consolidation { sources, destinations, subfolder, after, options } => {
            (sources, destinations, subfolder, *after, options, false)
        }
        JobSpec::Backup { sources, destinations, subfolder, options, .. } => {
            (sources, destinations, subfolder, Disposal::Keep, options, true)
        }
        JobSpec::Distribution { .. } | JobSpec::Synchronization { .. } => {
            return Err(Rejection::Invalid("this job has one source: it starts one run".into()));
        }
    };
    let template = Template::parse(subfolder)?;
    // A schedule that stops because one of many was removed would be seen by nobody.
    let passed_over = if keeps { Absent::PassedOver } else { Absent::PassedOverInGroups };
    let mut sources = members(state, sources, "source", passed_over)?;
    sources.retain(|agent, _| only.is_none_or(|only| only.contains(agent)));
    let absent = if after == Disposal::Keep { passed_over } else { Absent::Refused };
    let destinations = members(state, destinations, "destination", absent)?;
    let names = VersionNames::new(state, job);
    if destinations.is_empty() {
        return Err(Rejection::Conflict(
            "nobody would receive anything: the groups are empty, or its agents were removed".into(),
        ));
    }
    let busy = busy(state, job);
    let mut started = Started::default();
    // Whose folder it is, at each destination. What differs in nothing but case is one folder on many disks.
    let mut taken: BTreeMap<(AgentId, String), AgentId> = BTreeMap::new();
    for (source, run) in &busy {
        let Some(run) = state.runs.get(run) else { continue };
        for (agent, part) in run.parts.iter().filter(|(_, part)| part.role == Role::Destination) {
            taken.insert((*agent, folded(event_schema::path_of(&run.paths, part.path))), *source);
        }
    }
    let mut parts_total = 0;
    for (source, path) in &sources {
        if let Some(run) = busy.get(source) {
            started.skipped.push(Skipped { agent: *source, run: *run });
            continue;
        }
        let others = destinations.iter().filter(|(agent, _)| *agent != source);
        let mut parts = vec![(*source, Role::Source, path.to_vec())];
        let folder = folder_of(state, *source, &template)?;
        for (agent, base) in others {
            let path = below(base, &folder)?;
            if let Some(other) = taken.insert((*agent, folded(&path)), *source) {
                return Err(Rejection::Conflict(format!(
                    "{} and {} would have the same folder {} at {}: choose a sub-folder by a tag in which they differ, \
                     such as %SRC:AGENT_NAME%",
                    name(state, other),
                    name(state, *source),
                    String::from_utf8_lossy(&path),
                    name(state, *agent),
                )));
            }
            parts.push((*agent, Role::Destination, path));
        }
        if parts.len() == 1 {
            // It is the only destination itself.
            continue;
        }
        parts_total += parts.len();
        if parts.len() > PARTICIPANTS_MAX
            || started.events.len() >= BATCH_RUNS_MAX
            || parts_total > BATCH_PARTS_MAX
        {
            return Err(Rejection::Limit(format!(
                "a start has at most {BATCH_RUNS_MAX} runs and {BATCH_PARTS_MAX} parts in them, a run at most \
                 {PARTICIPANTS_MAX} agents: make several jobs of it"
            )));
        }
        let event = RunStarted::new(run_of(batch, *source), job, parts.into_iter());
        let purpose =
            if keeps { Purpose::Version { name: names.next(*source, now)? } } else { Purpose::Plain };
        // Sealed anew with the event: what it is sealed as in the job is of another field.
        let options = (**options).clone().into();
        started.events.push(RunStarted { batch: Some(batch), after, options, purpose, ..event }.into());
    }
    match (started.events.is_empty(), started.skipped.first()) {
        (false, _) => Ok(started),
        (true, Some(Skipped { agent, run })) => Err(Rejection::Conflict(format!(
            "every source is still busy with an earlier run of this job, such as {} with {run}: wait for its end or stop it",
            name(state, *agent)
        ))),
        (true, None) => Err(Rejection::Conflict(
            "nobody would send anything: the groups are empty, or its agents were removed".into(),
        )),
    }
}

/// Names of versions that are taken, of a job's sources.
struct VersionNames<'s> {
    state: &'s State,
    job: JobId,
    of_runs: BTreeSet<(AgentId, VersionName)>,
}

impl<'s> VersionNames<'s> {
    fn new(state: &'s State, job: JobId) -> Self {
        let of_job = state.runs.values().filter(|run| run.job == job);
        let named = of_job.filter_map(|run| match &run.purpose {
            Purpose::Version { name } => Some((run.source, name.parse().ok()?)),
            Purpose::Plain | Purpose::Restore { .. } => None,
        });
        Self { state, job, of_runs: named.collect() }
    }

    /// That of this time, or a second after the last one of the source, whichever is later: names tell in which order
    /// versions were made, whatever clocks say, and what was made last is never taken for an old one.
    fn next(&self, source: AgentId, now: Timestamp) -> Result<String, Rejection> {
        let none = || {
            Rejection::Conflict(
                "no name of a version is left for this time: check the service's clock".into(),
            )
        };
        let name = VersionName::at(now).ok_or_else(none)?;
        let backup = self.state.backups.jobs.get(&self.job);
        let shelves = backup.iter().flat_map(|backup| &backup.shelves).filter(|((_, of), _)| *of == source);
        let standing = shelves.filter_map(|(_, shelf)| shelf.versions.keys().next_back().copied());
        let started = backup.and_then(|backup| backup.sources.get(&source)?.started);
        let of_runs = self.of_runs.iter().filter(|(of, _)| *of == source).map(|(_, name)| *name);
        let last = standing.chain(started).chain(of_runs).max();
        let name = match last {
            Some(last) if last >= name => last.a_second_later().ok_or_else(none)?,
            _ => name,
        };
        Ok(name.to_string())
    }
}

/// Sources of the job's active runs, with these. What is given back to them is another thing.
fn busy(state: &State, job: JobId) -> BTreeMap<AgentId, RunId> {
    let active = state.runs.iter().filter(|(_, run)| {
        run.job == job && run.outcome.is_none() && !matches!(run.purpose, Purpose::Restore { .. })
    });
    active.map(|(id, run)| (run.source, *id)).collect()
}

/// What becomes of a start if an agent is removed or not approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absent {
    /// The others begin.
    PassedOver,
    /// The others of its group do; one that the job itself names is waited for.
    PassedOverInGroups,
    /// Nobody begins.
    Refused,
}

/// Agents that places name, groups resolved, each with its folder.
fn members<'s>(
    state: &State,
    places: &'s [Place],
    what: &str,
    absent: Absent,
) -> Result<BTreeMap<AgentId, &'s [u8]>, Rejection> {
    let mut members: BTreeMap<AgentId, &[u8]> = BTreeMap::new();
    for place in places {
        let agents: Vec<AgentId> = match place.party {
            Party::Agent(agent) if absent == Absent::PassedOver => {
                state.approved(agent).map(|_| agent).into_iter().collect()
            }
            Party::Agent(agent) => {
                must_be_approved(state, agent)?;
                vec![agent]
            }
            Party::Group(id) => {
                let group = state.groups.get(&id).ok_or_else(|| Rejection::unknown("group", id))?;
                let away = group.members.iter().find(|agent| state.approved(**agent).is_none());
                if let Some(away) = away.filter(|_| absent == Absent::Refused) {
                    return Err(Rejection::Conflict(format!(
                        "{} of the group {} is removed or not approved yet, and sources would dispose of what it does not \
                         have: approve it, or take it out of the group",
                        name(state, *away),
                        group.name
                    )));
                }
                group.members.iter().filter(|agent| state.approved(**agent).is_some()).copied().collect()
            }
        };
        for agent in agents {
            let before = members.insert(agent, &place.path);
            if before.is_some_and(|path| path != *place.path) {
                return Err(Rejection::Conflict(format!(
                    "the agent {} would be a {what} with two folders",
                    name(state, agent)
                )));
            }
        }
    }
    Ok(members)
}

fn folder_of(state: &State, source: AgentId, template: &Template) -> Result<String, Rejection> {
    let known = state.approved(source).ok_or_else(|| Rejection::unknown("agent", source))?;
    if !known.name.is_legible() || !known.tags.is_legible() {
        return Err(Rejection::Conflict(format!(
            "name and tags of agent/{source} cannot be read here, as its key is missing: restore the store of keys from \
             its backup"
        )));
    }
    template
        .resolve(source, known)
        .map_err(|why| Rejection::Conflict(format!("the source {} has no folder: {why}", known.name)))
}

fn below(base: &[u8], folder: &str) -> Result<Vec<u8>, Rejection> {
    let mut path = base.to_vec();
    if !folder.is_empty() {
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(folder.as_bytes());
    }
    if path.len() > PATH_LEN_MAX {
        return Err(Rejection::Conflict(format!("a path has at most {PATH_LEN_MAX} bytes")));
    }
    Ok(path)
}

/// Paths that some file systems take for one.
fn folded(path: &[u8]) -> String {
    String::from_utf8_lossy(path).trim_end_matches('/').to_lowercase()
}

fn name(state: &State, agent: AgentId) -> String {
    state.agents.get(&agent).map_or_else(|| agent.to_string(), |agent| agent.name.to_string())
}
