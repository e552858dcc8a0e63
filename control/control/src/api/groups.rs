//! `/api/v1/groups`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use control_core::group::{self, Command};
use control_core::projection::Views;
use event_schema::{AgentId, GroupId};

use super::agents::{Page, page};
use super::error::{Json, Query};
use super::sight::Moment;
use super::view::{ErrorView, GroupView, GroupWish, GroupsView, MembersWish};
use super::{Api, ApiError, OPERATOR, resolve, shape};
use crate::service::{Ids, Origin, now};

/// All groups.
#[utoipa::path(get, path = "/api/v1/groups", tag = "groups", params(Page),
    responses((status = 200, body = GroupsView), (status = 401, body = ErrorView)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<Page>,
) -> Result<Json<GroupsView>, ApiError> {
    let views = api.sight(query.at.as_ref()).await?;
    let (entries, next) = page(&views.fleet.groups, query.after::<GroupId>()?, query.limit());
    let groups = entries.into_iter().map(|(id, group)| shape::group(&views, id, group)).collect();
    Ok(Json(GroupsView { groups, next, as_of: views.position() }))
}

/// Makes an empty group.
#[utoipa::path(post, path = "/api/v1/groups", tag = "groups", request_body = GroupWish,
    responses((status = 201, body = GroupView), (status = 409, body = ErrorView)))]
pub(super) async fn create(
    State(api): State<Api>,
    Json(wish): Json<GroupWish>,
) -> Result<(StatusCode, Json<GroupView>), ApiError> {
    let group = Ids(now()).group();
    let name = wish.name;
    decide(&api, group, move || Command::Create { group, name: name.clone() }).await?;
    Ok((StatusCode::CREATED, shown(&api.service.views(), group)?))
}

/// One group, by name, id or unique beginning of its id.
#[utoipa::path(get, path = "/api/v1/groups/{group}", tag = "groups",
    params(("group" = String, Path,), Moment),
    responses((status = 200, body = GroupView), (status = 404, body = ErrorView)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(group): Path<String>,
    Query(query): Query<Moment>,
) -> Result<Json<GroupView>, ApiError> {
    let views = api.sight(query.at.as_ref()).await?;
    let id = resolve::group(&views, &group)?;
    shown(&views, id)
}

/// Puts agents into a group.
#[utoipa::path(post, path = "/api/v1/groups/{group}/add", tag = "groups", params(("group" = String, Path,)),
    request_body = MembersWish,
    responses((status = 200, body = GroupView), (status = 404, body = ErrorView)))]
pub(super) async fn add(
    State(api): State<Api>,
    Path(group): Path<String>,
    Json(wish): Json<MembersWish>,
) -> Result<Json<GroupView>, ApiError> {
    let (group, agents) = members(&api, &group, &wish)?;
    decide(&api, group, move || Command::Add { group, agents: agents.clone() }).await?;
    shown(&api.service.views(), group)
}

/// Takes agents out of a group.
#[utoipa::path(post, path = "/api/v1/groups/{group}/remove", tag = "groups",
    params(("group" = String, Path,)), request_body = MembersWish,
    responses((status = 200, body = GroupView), (status = 404, body = ErrorView)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(group): Path<String>,
    Json(wish): Json<MembersWish>,
) -> Result<Json<GroupView>, ApiError> {
    let (group, agents) = members(&api, &group, &wish)?;
    decide(&api, group, move || Command::Remove { group, agents: agents.clone() }).await?;
    shown(&api.service.views(), group)
}

fn members(api: &Api, group: &str, wish: &MembersWish) -> Result<(GroupId, Vec<AgentId>), ApiError> {
    let views = api.service.views();
    let group = resolve::group(&views, group)?;
    let agents: Result<_, _> = wish.agents.iter().map(|agent| resolve::agent(&views, agent)).collect();
    Ok((group, agents?))
}

async fn decide(
    api: &Api,
    group: GroupId,
    command: impl Fn() -> Command + Send + 'static,
) -> Result<(), ApiError> {
    let origin = Origin::operator(OPERATOR, format!("group/{group}"));
    Ok(api.service.decide(origin, move |state, _| group::decide(state, command())).await?)
}

fn shown(views: &Views, id: GroupId) -> Result<Json<GroupView>, ApiError> {
    let group = views.fleet.groups.get(&id).ok_or_else(|| ApiError::not_found(format!("no group {id}")))?;
    Ok(Json(shape::group(views, id, group)))
}
