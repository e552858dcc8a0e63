//! Status, health and metrics.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use control_core::projection::Views;

use super::error::{Json, Query};
use super::sight::Moment;
use super::view::{ErrorView, StatusView};
use super::{Api, ApiError, shape};
use crate::sealing::{Progress, Sealing};

/// Conflicts that the status names; all of them are in `/api/v1/audit/witnesses`.
const ALARMS_MAX: usize = 10;

/// The service in a few numbers.
#[utoipa::path(get, path = "/api/v1/status", tag = "status", params(Moment),
    responses((status = 200, body = StatusView), (status = 401, body = ErrorView), (status = 404, body = ErrorView)))]
pub(super) async fn status(
    State(api): State<Api>,
    Query(query): Query<Moment>,
) -> Result<Json<StatusView>, ApiError> {
    let log_first = api.service.log().first().await?.0;
    let views = api.sight(query.at.as_ref()).await?;
    let (agents, runs) = counts(&views);
    Ok(Json(StatusView {
        version: env!("CARGO_PKG_VERSION").into(),
        fleet: views.fleet.root_key.map(|key| shape::hex(&key)).unwrap_or_default(),
        ca_fingerprint: api.gateway.ca_fingerprint.clone(),
        gateway: api.gateway.host.clone(),
        position: views.position(),
        state_hash: shape::hex(&views.hash()),
        agents: agents.into_iter().map(|(name, count)| (name.into(), count)).collect(),
        runs: runs.into_iter().map(|(name, count)| (name.into(), count)).collect(),
        healthy: api.service.is_healthy(),
        sealed: api.service.sealing().map(Sealing::sealed).filter(|size| *size > 0),
        alarms: alarms(&api, &views),
        warnings: warnings(&api),
        log_first,
        checking: api.checking.reached(),
    }))
}

/// What does not go on, and can wait for an operator.
fn warnings(api: &Api) -> Vec<String> {
    let failing = api.service.retention().and_then(crate::retention::Retention::failing);
    failing.map(|why| format!("old segments of the log are not archived: {why}")).into_iter().collect()
}

/// What cannot be left alone: histories that do not go together.
fn alarms(api: &Api, views: &Views) -> Vec<String> {
    let mut alarms = Vec::from_iter(api.service.trouble());
    if let Some(Progress::Stopped(why)) = api.service.sealing().map(Sealing::progress) {
        alarms.push(format!("history is not sealed any more: {why}"));
    }
    let missing = api.service.ring().missing();
    if let Some(first) = missing.first() {
        alarms.push(format!(
            "of {} subjects keys of private texts are missing or damaged though nothing was erased, the first is {first}: \
             put the backup of the keys into the data folder, as subject-keys.restored, and start again",
            missing.len()
        ));
    }
    let conflicts = &views.conflicts.conflicts;
    alarms.extend(conflicts.iter().rev().take(ALARMS_MAX).map(|conflict| {
        let holder = match conflict.witness {
            Some(agent) => shape::agent_name(views, agent),
            None => "the service itself".into(),
        };
        format!(
            "two histories: {holder} holds the signed checkpoint (size {}, root {}), this log has (size {}, root {})",
            conflict.held.0,
            shape::root(&conflict.held.1),
            conflict.log.0,
            shape::root(&conflict.log.1),
        )
    }));
    alarms
}

type Counts = BTreeMap<&'static str, u64>;

fn counts(views: &Views) -> (Counts, Counts) {
    let mut agents = Counts::from(["online", "offline", "pending", "removed"].map(|name| (name, 0)));
    for agent in views.fleet.agents.values() {
        *agents.entry(shape::agent_state(agent)).or_default() += 1;
    }
    let states = ["preparing", "transferring", "synchronizing", "finished", "failed", "stopped"];
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
        // An alarm is for people; the service works.
        let alarms = alarms(&api, &api.service.views()).len();
        let mut note = String::from("ok\n");
        if alarms > 0 {
            note += "ALARM: see `flotilla status`\n";
        }
        // Without a token: that there is something, not what.
        if !warnings(&api).is_empty() {
            note += "WARNING: old segments of the log are not archived, see `flotilla status`\n";
        }
        note.into_response()
    } else {
        let why = api.service.trouble().unwrap_or_else(|| "the event log does not take records".into());
        (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
    }
}

/// Prometheus' text format, version 0.0.4. Numbers only, so without a token.
pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let mut text = String::new();
    for (name, help, value) in api.service.metrics().all() {
        let _ = writeln!(text, "# HELP flotilla_{name}_total {help}.\n# TYPE flotilla_{name}_total counter");
        let _ = writeln!(text, "flotilla_{name}_total {value}");
    }
    let (agents, runs) = counts(&api.service.views());
    gauges(&mut text, "agents", "Agents by state", "state", agents);
    gauges(&mut text, "runs", "Runs in memory by state", "state", runs);
    let position = api.service.views().position();
    gauge(&mut text, "log_position", "Last position of the log that is folded", position);
    if let Ok(first) = api.service.log().first().await {
        gauge(&mut text, "log_first", "First position of the log here; what was before is archived", first.0);
    }
    if let Some(retention) = api.service.retention() {
        let failing = retention.failing().is_some().into();
        gauge(&mut text, "archiving_failing", "Whether old segments of the log cannot be archived", failing);
    }
    let waiting = api.service.queue_len() as u64;
    gauge(&mut text, "decisions_waiting", "Decisions that wait for the writer", waiting);
    let streams = (super::STREAMS_MAX - api.streams.available_permits()) as u64;
    gauge(&mut text, "event_streams", "Open streams of live events", streams);
    if let Some(kept) = api.service.kept_telemetry() {
        let (taken, lost, bytes) = kept.figures();
        gauge(&mut text, "telemetry_samples", "Samples of agents' progress taken since the start", taken);
        gauge(&mut text, "telemetry_lost", "Samples and rows that there was no room for or no disk", lost);
        gauge(&mut text, "telemetry_bytes", "Bytes of telemetry on disk", bytes);
    }
    if let Some(sealing) = api.service.sealing() {
        gauge(
            &mut text,
            "sealed_size",
            "Entries of the log under the newest signed checkpoint",
            sealing.sealed(),
        );
        let stopped = matches!(sealing.progress(), Progress::Stopped(_));
        gauge(&mut text, "sealing_stopped", "Whether the log is not the one that was sealed", stopped.into());
        let name = "Agents as witnesses of the log, by what they were last heard to hold";
        gauges(&mut text, "witnesses", name, "state", sealing.witness_counts());
    }
    let conflicts = api.service.views().conflicts.conflicts.len() as u64;
    gauge(
        &mut text,
        "history_conflicts",
        "Checkpoints held that the log does not continue: alarms",
        conflicts,
    );
    let missing = api.service.ring().missing().len() as u64;
    gauge(&mut text, "subject_keys_missing", "Subjects whose keys are missing or damaged", missing);
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
