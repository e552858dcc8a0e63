//! What storage agents and sources of backups report, as facts.

use event_schema::{
    AgentId, BackupSourceChanged, BackupThinned, BackupVersionKept, Event, JobId, JobSpec, Purpose, Role,
    RunId, SourceChanged, Thinned, VersionKept, When, path_of,
};

use super::version::VersionName;
use crate::State;
use crate::run::Run;

/// A destination of a run keeps its version: the first thing that it says of it counts.
pub(crate) fn kept(state: &State, run: &Run, id: RunId, agent: AgentId, told: &VersionKept) -> Option<Event> {
    let part = run.parts.get(&agent).filter(|part| part.role == Role::Destination && !part.kept)?;
    let name: VersionName = told.version.parse().ok()?;
    if !matches!(run.purpose, Purpose::Version { .. }) {
        return None;
    }
    let backup = state.backups.jobs.get(&run.job).filter(|backup| !backup.deleted)?;
    let shelf = backup.shelves.get(&(agent, run.source));
    let before = shelf.and_then(|shelf| shelf.versions.get(&name)).filter(|_| told.unchanged);
    let shrunk = match before {
        Some(before) => before.shrunk,
        None => shelf.is_some_and(|shelf| shelf.is_shrunk(name, told.entries, told.bytes)),
    };
    let path = path_of(&run.paths, part.path).to_vec();
    let event = BackupVersionKept {
        run: id,
        job: run.job,
        agent,
        source: run.source,
        version: name.to_string(),
        complete: told.complete && !run.parts.get(&run.source).is_some_and(|source| source.lacks),
        shrunk,
        unchanged: told.unchanged,
        entries: told.entries,
        bytes: told.bytes,
        shelf: path.into(),
    };
    Some(event.into())
}

/// A storage agent did as it was told: of what stands there it says what does not any more.
pub(crate) fn thinned(state: &State, agent: AgentId, told: &Thinned) -> Option<Event> {
    let backup = state.backups.jobs.get(&told.job).filter(|backup| !backup.deleted)?;
    backup.thinning.get(&agent).filter(|thinning| thinning.source == told.source)?;
    let shelf = backup.shelves.get(&(agent, told.source))?;
    let stands =
        |name: &String| name.parse().is_ok_and(|name: VersionName| shelf.versions.contains_key(&name));
    let removed = told.removed.iter().filter(|name| stands(name)).cloned().collect();
    let failed = told.failed.iter().filter(|failed| stands(&failed.version)).cloned().collect();
    Some(BackupThinned { job: told.job, agent, source: told.source, removed, failed }.into())
}

/// A source's folder has changed, if it is one that is watched and that is news.
pub(crate) fn changed(state: &State, agent: AgentId, told: &SourceChanged) -> Option<Event> {
    let job: JobId = told.job;
    let JobSpec::Backup { when: When::Continuous { .. }, .. } = &state.jobs.get(&job)?.spec else {
        return None;
    };
    let source = state.backups.jobs.get(&job)?.sources.get(&agent)?;
    (source.watch.is_some() && !source.changed).then(|| BackupSourceChanged { job, agent }.into())
}
