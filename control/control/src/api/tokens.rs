//! `/api/v1/tokens`.

use std::time::Duration;

use agent_proto::{Bootstrap, ManagementServer, enrolment_code};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use control_core::token::{self, Command};
use event_schema::TokenId;

use super::agents::{Page, page};
use super::error::{Json, Query};
use super::view::{ErrorView, TokenCreated, TokenView, TokenWish, TokensView};
use super::{Api, ApiError, OPERATOR, resolve, shape};
use crate::service::{Ids, Origin, now, random_secret, token_hash};

/// A token lives for a day if nothing else is said: long enough to walk to the machine.
const EXPIRES_S: u64 = 86_400;

/// The longest life of a token: ten years.
const EXPIRES_S_MAX: u64 = 10 * 366 * 86_400;

/// All tokens, worthless ones too.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", params(Page),
    responses((status = 200, body = TokensView), (status = 401, body = ErrorView)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<Page>,
) -> Result<Json<TokensView>, ApiError> {
    let views = api.sight(query.at.as_ref()).await?;
    let time = views.now();
    let (entries, next) = page(&views.fleet.tokens, query.after::<TokenId>()?, query.limit());
    let tokens = entries.into_iter().map(|(id, token)| shape::token(id, token, time)).collect();
    Ok(Json(TokensView { tokens, next, as_of: views.position() }))
}

/// Makes a token; the answer holds its secret, which is shown this once.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "tokens", request_body = TokenWish,
    responses((status = 201, body = TokenCreated), (status = 400, body = ErrorView)))]
pub(super) async fn create(
    State(api): State<Api>,
    Json(wish): Json<TokenWish>,
) -> Result<(StatusCode, Json<TokenCreated>), ApiError> {
    let time = now();
    let seconds = wish.expires_s.unwrap_or(EXPIRES_S);
    if seconds > EXPIRES_S_MAX {
        return Err(ApiError::invalid("a token lives for ten years at most"));
    }
    let token = Ids(time).token();
    let text = format!("{token}.{}", *random_secret());
    let hash = token_hash(&text);
    let expires = time.after(Duration::from_secs(seconds));
    let (uses, tags) = (wish.uses.unwrap_or(1), Vec::from_iter(wish.tags));
    api.service
        .decide(Origin::operator(OPERATOR, format!("token/{token}")), move |state, now| {
            token::decide(state, Command::Create { token, hash, tags: tags.clone(), uses, expires }, now)
        })
        .await?;
    let bootstrap = Bootstrap {
        management_server: ManagementServer {
            host: api.gateway.host.clone(),
            further_hosts: further_gateways(&api),
            cert_authority_fingerprint: api.gateway.ca_fingerprint.clone(),
            bootstrap_token: Some(text),
        },
        folders_storage_path: wish.storage_path,
        tags: std::collections::BTreeMap::new(),
    };
    let code = enrolment_code(&bootstrap.management_server);
    let bootstrap = serde_json::to_value(&bootstrap).map_err(|e| ApiError::unavailable(e.to_string()))?;
    let created = TokenCreated { id: token.to_string(), expires: expires.to_string(), bootstrap, code };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Gateways of the other replicas.
fn further_gateways(api: &Api) -> Vec<String> {
    let known = api.service.gateways();
    let known = known.borrow();
    known.iter().filter(|place| **place != api.gateway.host).cloned().collect()
}

/// Makes a token worthless. Agents that used it stay.
#[utoipa::path(delete, path = "/api/v1/tokens/{token}", tag = "tokens", params(("token" = String, Path,)),
    responses((status = 200, body = TokenView), (status = 404, body = ErrorView)))]
pub(super) async fn revoke(
    State(api): State<Api>,
    Path(token): Path<String>,
) -> Result<Json<TokenView>, ApiError> {
    let id = resolve::token(&api.service.views(), &token)?;
    api.service
        .decide(Origin::operator(OPERATOR, format!("token/{id}")), move |state, now| {
            token::decide(state, Command::Revoke { token: id }, now)
        })
        .await?;
    let views = api.service.views();
    let token = views.fleet.tokens.get(&id).ok_or_else(|| ApiError::not_found(format!("no token {id}")))?;
    Ok(Json(shape::token(id, token, now())))
}
