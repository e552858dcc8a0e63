//! The OpenAPI document: made from the handlers, committed as `control/control/openapi.json`.

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

use super::{
    agents, audit, backups, batches, check, connections, erase, events, explain, export, groups, health,
    jobs, replicas, runs, sync, telemetry, tokens,
};

#[derive(OpenApi)]
#[openapi(
    info(title = "Flotilla control API", description = "Operate a fleet of agents.", license(name = "MIT OR Apache-2.0")),
    paths(
        health::status, replicas::list,
        agents::list, agents::show, agents::approve, agents::remove, agents::tag,
        tokens::list, tokens::create, tokens::revoke,
        groups::list, groups::create, groups::show, groups::add, groups::remove,
        jobs::list, jobs::create, jobs::show, jobs::start, jobs::remove,
        runs::list, runs::show, runs::history, runs::stop, telemetry::show, connections::show, explain::show, batches::list, batches::show,
        backups::show, backups::versions, backups::restore,
        sync::members, sync::set_policy, sync::guard, sync::conflicts,
        events::log, check::check, events::stream,
        audit::witnesses, audit::seal, export::export, erase::erase, erase::keys,
    ),
    security(("token" = [])),
    modifiers(&Token)
)]
struct Document;

struct Token;

impl utoipa::Modify for Token {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        openapi.components.get_or_insert_default().add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// The document as JSON, indented, with a line break at its end.
pub fn document() -> String {
    let mut text = Document::openapi().to_pretty_json().expect("the document is plain data");
    text.push('\n');
    text
}

pub(super) async fn show() -> Response {
    ([(CONTENT_TYPE, "application/json")], document()).into_response()
}
