//! Giving back what was kept: an ordinary run whose source is a storage agent.

use event_schema::{
    AgentId, Event, JobId, JobSpec, Party, Place, Purpose, Role, RunId, RunStarted, Timestamp,
};

use super::standing::{Backup, Version};
use super::version::VersionName;
use crate::job::illegible;
use crate::limits::PATH_LEN_MAX;
use crate::run::must_be_approved;
use crate::{Rejection, State, text};

/// Which version of a source is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The newest good one; if there is none, the newest.
    Latest,
    /// The newest good one that is not newer than this; if there is none, the newest of those.
    At(Timestamp),
    /// The one of this name.
    Named(VersionName),
}

/// What is to be given back, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Restore {
    /// The run's id.
    pub run: RunId,
    /// Of which backup.
    pub job: JobId,
    /// Whose folder.
    pub source: AgentId,
    /// Which version of it.
    pub which: Which,
    /// A file or folder in it, names between `/`; empty: all of it.
    pub path: Vec<u8>,
    /// Who gets it; none: the source itself.
    pub to: Option<AgentId>,
    /// Into which folder; none: the one in which it was.
    pub folder: Option<Vec<u8>>,
    /// Which storage agent gives it; none: one that is there, if any is.
    pub from: Option<AgentId>,
}

/// Starts the run of a restore. What is at its destination and differs is kept in that folder's archive.
///
/// # Errors
/// If the job or an agent is unknown or the job is no backup; its folders cannot be read; there is no such version, or
/// nobody but the destination has it; the path leads elsewhere; it is not known into which folder; or another restore to
/// this agent is under way.
pub fn decide(state: &State, wish: &Restore) -> Result<Vec<Event>, Rejection> {
    if state.runs.get(&wish.run).is_some_and(|known| known.job == wish.job) {
        return Ok(vec![]);
    }
    let job = state.jobs.get(&wish.job).ok_or_else(|| Rejection::unknown("job", wish.job))?;
    let (JobSpec::Backup { sources, .. }, Some(backup)) = (&job.spec, state.backups.jobs.get(&wish.job))
    else {
        return Err(Rejection::Invalid("this job is no backup: it keeps no versions".into()));
    };
    if !job.is_legible() {
        return Err(illegible(wish.job));
    }
    let to = wish.to.unwrap_or(wish.source);
    must_be_approved(state, to)?;
    if let Some(from) = wish.from {
        must_be_approved(state, from)?;
    }
    let under_way = state.runs.iter().find(|(_, run)| {
        let restores = matches!(run.purpose, Purpose::Restore { .. }) && run.job == wish.job;
        restores && run.outcome.is_none() && run.source != to && run.parts.contains_key(&to)
    });
    if let Some((run, _)) = under_way {
        return Err(Rejection::Conflict(format!(
            "the run {run} restores to {} already: wait for its end or stop it",
            name(state, to)
        )));
    }
    let (version, storage, kept) = find(state, backup, wish, to)?;
    let Some(shelf) = kept.shelf.legible() else { return Err(illegible(wish.job)) };
    let inside = inside(&wish.path)?;
    let from_path = joined(shelf, &[version.to_string().as_bytes(), &inside])?;
    let folder = match &wish.folder {
        Some(folder) => {
            text::check_path(folder)?;
            folder.clone()
        }
        None => {
            let own = own_folder(state, sources, wish.source).ok_or_else(|| {
                Rejection::Invalid(format!(
                    "{} is not among the sources of this job any more: say into which folder",
                    name(state, wish.source)
                ))
            })?;
            // What is restored keeps its own last name.
            let parent = inside.iter().rposition(|b| *b == b'/').map_or(&b""[..], |slash| &inside[..slash]);
            joined(own, &[parent])?
        }
    };
    let parts = [(storage, Role::Source, from_path), (to, Role::Destination, folder)];
    let purpose = Purpose::Restore { of: wish.source, version: version.to_string() };
    Ok(vec![RunStarted { purpose, ..RunStarted::new(wish.run, wish.job, parts.into_iter()) }.into()])
}

/// The version, and who gives it: of those that have it one that is connected, a good one before others.
fn find<'b>(
    state: &State,
    backup: &'b Backup,
    wish: &Restore,
    to: AgentId,
) -> Result<(VersionName, AgentId, &'b Version), Rejection> {
    let all = backup.versions_of(wish.source);
    let within = |storage: AgentId| wish.from.is_none_or(|from| from == storage);
    let known: Vec<_> = all
        .into_iter()
        .filter(|(_, storage, _)| within(*storage) && state.approved(*storage).is_some())
        .collect();
    let until = |limit: Option<VersionName>| {
        let mut fit = known.iter().filter(|(name, ..)| limit.is_none_or(|limit| name.time() <= limit.time()));
        let good = fit.clone().find(|(.., version)| version.is_good());
        good.or_else(|| fit.next()).map(|(name, ..)| *name)
    };
    let chosen = match wish.which {
        Which::Latest => until(None),
        Which::At(time) => VersionName::at(time).and_then(|limit| until(Some(limit))),
        Which::Named(name) => known.iter().any(|(known, ..)| *known == name).then_some(name),
    };
    let of = name(state, wish.source);
    let chosen = chosen.ok_or_else(|| {
        Rejection::Conflict(match wish.which {
            Which::Named(name) => format!("no version {name} of {of} is kept there"),
            Which::Latest => format!("no version of {of} is kept there"),
            Which::At(time) => format!("no version of {of} is kept there that is of {time} or before"),
        })
    })?;
    let here = known.into_iter().filter(|(name, storage, _)| *name == chosen && *storage != to);
    let online = |storage: AgentId| state.agents.get(&storage).is_some_and(|agent| agent.online);
    here.min_by_key(|(_, storage, version)| (!version.is_good(), !online(*storage))).ok_or_else(|| {
        Rejection::Conflict(format!(
            "{} keeps the version {chosen} itself, and nobody else does: copy it from its folder there",
            name(state, to)
        ))
    })
}

/// The source's folder, as the job says it.
fn own_folder<'s>(state: &State, sources: &'s [Place], source: AgentId) -> Option<&'s [u8]> {
    let is_its = |place: &&Place| match place.party {
        Party::Agent(agent) => agent == source,
        Party::Group(id) => state.groups.get(&id).is_some_and(|group| group.members.contains(&source)),
    };
    sources.iter().find(is_its).map(|place| place.path.as_slice())
}

/// Names between single slashes, none of which leads elsewhere.
fn inside(path: &[u8]) -> Result<Vec<u8>, Rejection> {
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|name| !name.is_empty()).collect();
    if path.first() == Some(&b'/') || names.iter().any(|name| [&b"."[..], b"..", b".flotilla"].contains(name))
    {
        return Err(Rejection::Invalid(
            "what is restored is named by its path in the folder that was kept, such as docs/plan.txt".into(),
        ));
    }
    if path.contains(&0) {
        return Err(Rejection::Invalid("a path has no zero byte".into()));
    }
    Ok(names.join(&b'/'))
}

fn joined(base: &[u8], parts: &[&[u8]]) -> Result<Vec<u8>, Rejection> {
    let mut path = base.to_vec();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    if path.len() > PATH_LEN_MAX {
        return Err(Rejection::Invalid(format!("a path has at most {PATH_LEN_MAX} bytes")));
    }
    Ok(path)
}

fn name(state: &State, agent: AgentId) -> String {
    state.agent_name(agent).map_or_else(|| agent.to_string(), ToOwned::to_owned)
}
