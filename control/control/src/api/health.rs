//! Status, health and metrics.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::error::Json;
use super::view::{ErrorView, StatusView};
use super::{Api, shape};

/// The service in a few numbers.
#[utoipa::path(get, path = "/api/v1/status", tag = "status",
    responses((status = 200, body = StatusView), (status = 401, body = ErrorView)))]
pub(super) async fn status(State(api): State<Api>) -> Json<StatusView> {
    let (agents, runs) = counts(&api);
    let views = api.service.views();
    Json(StatusView {
        version: env!("CARGO_PKG_VERSION").into(),
        fleet: views.fleet.root_key.map(|key| shape::hex(&key)).unwrap_or_default(),
        ca_fingerprint: api.gateway.ca_fingerprint.clone(),
        gateway: api.gateway.host.clone(),
        position: views.position(),
        state_hash: shape::hex(&views.hash()),
        agents: agents.into_iter().map(|(name, count)| (name.into(), count)).collect(),
        runs: runs.into_iter().map(|(name, count)| (name.into(), count)).collect(),
        healthy: api.service.is_healthy(),
    })
}

type Counts = BTreeMap<&'static str, u64>;

fn counts(api: &Api) -> (Counts, Counts) {
    let views = api.service.views();
    let mut agents = Counts::from(["online", "offline", "pending", "removed"].map(|name| (name, 0)));
    for agent in views.fleet.agents.values() {
        *agents.entry(shape::agent_state(agent)).or_default() += 1;
    }
    let states = ["preparing", "transferring", "finished", "failed", "stopped"];
    let mut runs = Counts::from(states.map(|name| (name, 0)));
    for run in views.runs.runs.values() {
        *runs.entry(shape::run_state(run)).or_default() += 1;
    }
    (agents, runs)
}

/// The process answers.
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// The log took the last record it was given.
pub(super) async fn ready(State(api): State<Api>) -> Response {
    if api.service.is_healthy() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the event log does not take records\n").into_response()
    }
}

/// Prometheus' text format, version 0.0.4. Numbers only, so without a token.
pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let mut text = String::new();
    for (name, help, value) in api.service.metrics().all() {
        let _ = writeln!(text, "# HELP flotilla_{name}_total {help}.\n# TYPE flotilla_{name}_total counter");
        let _ = writeln!(text, "flotilla_{name}_total {value}");
    }
    let (agents, runs) = counts(&api);
    gauges(&mut text, "agents", "Agents by state", "state", agents);
    gauges(&mut text, "runs", "Runs in memory by state", "state", runs);
    let position = api.service.views().position();
    gauge(&mut text, "log_position", "Last position of the log that is folded", position);
    let waiting = api.service.queue_len() as u64;
    gauge(&mut text, "decisions_waiting", "Decisions that wait for the writer", waiting);
    let streams = (super::STREAMS_MAX - api.streams.available_permits()) as u64;
    gauge(&mut text, "event_streams", "Open streams of live events", streams);
    gauge(&mut text, "ready", "Whether the log takes records", api.service.is_healthy().into());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

fn gauge(text: &mut String, name: &str, help: &str, value: u64) {
    let _ = writeln!(text, "# HELP flotilla_{name} {help}.\n# TYPE flotilla_{name} gauge");
    let _ = writeln!(text, "flotilla_{name} {value}");
}

fn gauges(text: &mut String, name: &str, help: &str, label: &str, values: Counts) {
    let _ = writeln!(text, "# HELP flotilla_{name} {help}.\n# TYPE flotilla_{name} gauge");
    for (value, count) in values {
        let _ = writeln!(text, "flotilla_{name}{{{label}=\"{value}\"}} {count}");
    }
}
