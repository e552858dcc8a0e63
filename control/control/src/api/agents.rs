//! `/api/v1/agents`.

use axum::extract::{Path, State};
use control_core::agent::{self, Command};
use control_core::projection::Views;
use event_schema::AgentId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::{Json, Query};
use super::sight::Moment;
use super::view::{AgentView, AgentsView, ErrorView, TagsWish};
use super::{Api, ApiError, PAGE_DEFAULT, PAGE_MAX, resolve, shape};
use crate::service::Origin;

/// Which page of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Entries at most; 1 to 1,000, default 200.
    pub(super) limit: Option<usize>,
    /// The `next` of the page before.
    pub(super) after: Option<String>,
    /// The fleet as it was: after this position of the log, or at this time (RFC 3339, UTC), which stands for the last
    /// record before the first later one. Default: the present.
    pub(super) at: Option<String>,
}

impl Page {
    pub(super) fn limit(&self) -> usize {
        self.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX)
    }

    /// The cursor as an id.
    pub(super) fn after<T: std::str::FromStr>(&self) -> Result<Option<T>, ApiError> {
        let parse = |text: &String| text.parse().map_err(|_| ApiError::invalid("after is no cursor"));
        self.after.as_ref().map(parse).transpose()
    }
}

/// One page of things sorted by id, and the cursor of the next.
pub(super) fn page<K: Ord + Copy + std::fmt::Display, V>(
    map: &std::collections::BTreeMap<K, V>,
    after: Option<K>,
    limit: usize,
) -> (Vec<(K, &V)>, Option<String>) {
    use std::ops::Bound;
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut rest = map.range((from, Bound::Unbounded)).map(|(key, value)| (*key, value));
    let entries: Vec<(K, &V)> = rest.by_ref().take(limit).collect();
    let next = rest.next().and_then(|_| entries.last()).map(|(key, _)| key.to_string());
    (entries, next)
}

/// All agents, removed ones too.
#[utoipa::path(get, path = "/api/v1/agents", tag = "agents", params(Page),
    responses((status = 200, body = AgentsView), (status = 401, body = ErrorView)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<Page>,
) -> Result<Json<AgentsView>, ApiError> {
    let views = api.sight(query.at.as_ref()).await?;
    let (entries, next) = page(&views.fleet.agents, query.after::<AgentId>()?, query.limit());
    let agents = entries.into_iter().map(|(id, agent)| shape::agent(&views, id, agent)).collect();
    Ok(Json(AgentsView { agents, next, as_of: views.position() }))
}

/// One agent, by name, id or unique beginning of its id.
#[utoipa::path(get, path = "/api/v1/agents/{agent}", tag = "agents",
    params(("agent" = String, Path,), Moment),
    responses((status = 200, body = AgentView), (status = 404, body = ErrorView)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(agent): Path<String>,
    Query(query): Query<Moment>,
) -> Result<Json<AgentView>, ApiError> {
    let views = api.sight(query.at.as_ref()).await?;
    let id = resolve::agent(&views, &agent)?;
    shown(&views, id)
}

fn shown(views: &Views, id: AgentId) -> Result<Json<AgentView>, ApiError> {
    let agent = views.fleet.agents.get(&id).ok_or_else(|| ApiError::not_found(format!("no agent {id}")))?;
    Ok(Json(shape::agent(views, id, agent)))
}

/// Lets a waiting agent in.
#[utoipa::path(post, path = "/api/v1/agents/{agent}/approve", tag = "agents",
    params(("agent" = String, Path,)),
    responses((status = 200, body = AgentView), (status = 409, body = ErrorView)))]
pub(super) async fn approve(
    State(api): State<Api>,
    Path(agent): Path<String>,
) -> Result<Json<AgentView>, ApiError> {
    let agent = resolve::agent(&api.service.views(), &agent)?;
    decide(&api, agent, move || Command::Approve { agent }).await
}

/// Throws an agent out, for good.
#[utoipa::path(delete, path = "/api/v1/agents/{agent}", tag = "agents", params(("agent" = String, Path,)),
    responses((status = 200, body = AgentView), (status = 404, body = ErrorView)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(agent): Path<String>,
) -> Result<Json<AgentView>, ApiError> {
    let agent = resolve::agent(&api.service.views(), &agent)?;
    decide(&api, agent, move || Command::Remove { agent }).await
}

/// Changes an agent's tags.
#[utoipa::path(put, path = "/api/v1/agents/{agent}/tags", tag = "agents", params(("agent" = String, Path,)),
    request_body = TagsWish,
    responses((status = 200, body = AgentView), (status = 400, body = ErrorView)))]
pub(super) async fn tag(
    State(api): State<Api>,
    Path(agent): Path<String>,
    Json(wish): Json<TagsWish>,
) -> Result<Json<AgentView>, ApiError> {
    let (id, before) = {
        let views = api.service.views();
        let id = resolve::agent(&views, &agent)?;
        (id, views.fleet.agents.get(&id).map(|agent| shape::tags(&agent.tags)).unwrap_or_default())
    };
    let mut tags = before;
    for name in &wish.remove {
        tags.remove(&name.trim().to_uppercase());
    }
    tags.extend(wish.set.into_iter().map(|(name, value)| (name.trim().to_uppercase(), value)));
    let tags: Vec<(String, String)> = tags.into_iter().collect();
    decide(&api, id, move || Command::Tag { agent: id, tags: tags.clone() }).await
}

async fn decide(
    api: &Api,
    agent: AgentId,
    command: impl Fn() -> Command + Send + 'static,
) -> Result<Json<AgentView>, ApiError> {
    let origin = Origin::operator(super::OPERATOR, format!("agent/{agent}"));
    api.service.decide(origin, move |state, _| agent::decide(state, command())).await?;
    shown(&api.service.views(), agent)
}
