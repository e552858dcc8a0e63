//! From what people write to ids: names, ids, unique beginnings of ids.
//!
//! Agents and groups are named apart. Where one of each has the same name, `agent:NAME` and
//! `group:NAME` tell them apart; without a prefix such a name is refused as ambiguous.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::str::FromStr;

use control_core::projection::{RunView, StandingView, Views};
use event_schema::{AgentId, BatchId, GroupId, JobId, Party, Place, RunId, TokenId};

use super::ApiError;
use super::view::PlaceWish;

/// Candidates that an error names.
const CANDIDATES_MAX: usize = 5;

pub(super) fn agent(views: &Views, text: &str) -> Result<AgentId, ApiError> {
    let wanted = text.strip_prefix("agent:").unwrap_or(text);
    let agents = &views.fleet.agents;
    let named = |removed: bool| {
        let is = move |standing| (standing == StandingView::Removed) == removed;
        agents.iter().filter(move |(_, a)| is(a.standing) && *a.name == wanted).map(|(id, _)| *id)
    };
    // A removed agent's name may have passed to another.
    if let Some(id) = named(false).next() {
        return Ok(id);
    }
    if let Ok(id) = by_id("agent", wanted, agents.keys().copied()) {
        return Ok(id);
    }
    let mut removed = named(true);
    match (removed.next(), removed.next()) {
        (Some(id), None) => Ok(id),
        _ => by_id("agent", wanted, agents.keys().copied()),
    }
}

pub(super) fn group(views: &Views, text: &str) -> Result<GroupId, ApiError> {
    let wanted = text.strip_prefix("group:").unwrap_or(text);
    let groups = &views.fleet.groups;
    match groups.iter().find(|(_, group)| group.name == wanted) {
        Some((id, _)) => Ok(*id),
        None => by_id("group", wanted, groups.keys().copied()),
    }
}

pub(super) fn job(views: &Views, text: &str) -> Result<JobId, ApiError> {
    let jobs = &views.jobs.jobs;
    match jobs.iter().find(|(_, job)| *job.name == text) {
        Some((id, _)) => Ok(*id),
        None => by_id("job", text, jobs.keys().copied()),
    }
}

/// Also `latest`, and the name of a job for its newest run.
pub(super) fn run(views: &Views, text: &str) -> Result<RunId, ApiError> {
    if text == "latest" {
        return views.runs.latest().ok_or_else(|| ApiError::not_found("there are no runs yet"));
    }
    if let Some(run) = views.jobs.jobs.values().find(|job| *job.name == text).and_then(|job| job.runs.last())
    {
        return Ok(*run);
    }
    by_id("run", text, views.runs.runs.keys().copied())
}

/// Also `latest`, and the name of a job for its newest start.
pub(super) fn batch(views: &Views, text: &str) -> Result<BatchId, ApiError> {
    let runs = || views.runs.runs.values().filter(|run| run.batch.is_some());
    let newest = |named: &dyn Fn(&RunView) -> bool| {
        let started = runs().filter(|run| named(run)).max_by_key(|run| run.history.first().copied());
        started.and_then(|run| run.batch)
    };
    if text == "latest" {
        return newest(&|_| true)
            .ok_or_else(|| ApiError::not_found("no job with many sources was started yet"));
    }
    if let Some(batch) = newest(&|run| *run.job_name == text) {
        return Ok(batch);
    }
    let ids: BTreeSet<BatchId> = runs().filter_map(|run| run.batch).collect();
    by_id("batch", text, ids.into_iter())
}

pub(super) fn token(views: &Views, text: &str) -> Result<TokenId, ApiError> {
    // A token's text begins with its id.
    let id = text.split_once('.').map_or(text, |(id, _)| id);
    by_id("token", id, views.fleet.tokens.keys().copied())
}

pub(super) fn place(views: &Views, wish: &PlaceWish) -> Result<Place, ApiError> {
    let path = match (&wish.path, &wish.path_hex) {
        (Some(path), None) => path.clone().into_bytes(),
        (None, Some(hex)) => data_encoding::HEXLOWER_PERMISSIVE
            .decode(hex.as_bytes())
            .map_err(|_| ApiError::invalid("path_hex is not hex"))?,
        _ => return Err(ApiError::invalid("a place has either path or path_hex")),
    };
    Ok(Place { party: party(views, &wish.party)?, path: path.into() })
}

pub(super) fn party(views: &Views, text: &str) -> Result<Party, ApiError> {
    if text.starts_with("group:") {
        return group(views, text).map(Party::Group);
    }
    if text.starts_with("agent:") {
        return agent(views, text).map(Party::Agent);
    }
    match (agent(views, text), group(views, text)) {
        (Ok(_), Ok(_)) => Err(ApiError::invalid(format!(
            "there are an agent and a group {text}: write agent:{text} or group:{text}"
        ))),
        (Ok(agent), Err(_)) => Ok(Party::Agent(agent)),
        (Err(_), Ok(group)) => Ok(Party::Group(group)),
        (Err(error), Err(_)) if views.fleet.groups.is_empty() => Err(error),
        (Err(_), Err(_)) => Err(ApiError::not_found(format!("no agent or group {text}"))),
    }
}

fn by_id<T>(what: &str, text: &str, ids: impl Iterator<Item = T>) -> Result<T, ApiError>
where
    T: Display + FromStr + Copy,
{
    let wanted = text.to_ascii_lowercase();
    let is_prefix = !wanted.is_empty() && wanted.len() <= 32 && wanted.bytes().all(|b| b.is_ascii_hexdigit());
    let mut found: Vec<T> = Vec::new();
    if is_prefix {
        found.extend(ids.filter(|id| id.to_string().starts_with(&wanted)).take(CANDIDATES_MAX + 1));
    }
    match found[..] {
        [id] => Ok(id),
        [] => Err(ApiError::not_found(format!("no {what} {text}"))),
        _ => {
            let mut names: Vec<String> = found.iter().take(CANDIDATES_MAX).map(ToString::to_string).collect();
            if found.len() > CANDIDATES_MAX {
                names.push("…".into());
            }
            let all = names.join(", ");
            Err(ApiError::conflict(format!("{text} is the beginning of several: {all}")))
        }
    }
}
