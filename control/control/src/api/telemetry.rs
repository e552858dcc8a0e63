//! `/api/v1/runs/{run}/telemetry`: how a run went over time, and what it amounts to.
//!
//! The course comes from the telemetry store and is there as long as that keeps it; the figures come from the log, and
//! from telemetry what the log does not have.

use std::collections::{BTreeMap, BTreeSet};
use std::time::UNIX_EPOCH;

use axum::extract::{Path, State};
use control_core::projection::{RunView, Views};
use event_schema::{AgentId, RunId, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::error::{Json, Query};
use super::view::ErrorView;
use super::{Api, ApiError, resolve, shape};
use crate::telemetry::{Bucket, Rows};

/// Points in one answer.
const POINTS_MAX: u64 = 100_000;

/// Points of one agent, if no step is named; fewer if there are many agents.
const POINTS_USUAL: u64 = 300;

/// Steps to choose from, in seconds.
const STEPS: [u64; 10] = [1, 5, 10, 30, 60, 300, 900, 3_600, 14_400, 86_400];

/// Which part of the course.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Part {
    /// From this time on (RFC 3339, UTC). Default: the run's start.
    from: Option<String>,
    /// Up to before this time. Default: the run's end, or now.
    to: Option<String>,
    /// Seconds of one point: 1 to 86,400. Default: so that there are some hundred points.
    step: Option<u64>,
    /// Only this agent: name, id or beginning of the id.
    agent: Option<String>,
    /// The run as it was known at this position or time; for runs that are long over.
    at: Option<String>,
}

/// How a run went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct TelemetryView {
    /// The run's id.
    pub run: String,
    /// Its job's name.
    pub job_name: String,
    /// The course begins here.
    pub from: String,
    /// And ends before this.
    pub to: String,
    /// Seconds of one point. Where only wider ones are kept, points are that far apart.
    pub step_s: u64,
    /// Since when any telemetry is kept at this replica; none if nothing is.
    pub kept_since: Option<String>,
    /// What the run amounts to.
    pub figures: FiguresView,
    /// The course of every agent that told something to this replica.
    pub agents: Vec<CourseView>,
    /// Position of the log that this answer shows.
    pub as_of: u64,
}

/// What a run amounts to: derived from the log, and from telemetry where it says so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct FiguresView {
    /// `log`, or `log_and_telemetry` while there is some of the run.
    pub source: String,
    /// When it started.
    pub started: String,
    /// When it ended.
    pub finished: Option<String>,
    /// Seconds from start to end, or to now.
    pub duration_s: u64,
    /// `succeeded`, `succeeded_with_errors`, `failed` or `stopped`, once it ended.
    pub outcome: Option<String>,
    /// Bytes of all files, once the source knows.
    pub bytes: Option<u64>,
    /// Bytes that destinations got from others, as they reported at their end.
    pub bytes_received: u64,
    /// That by the run's duration.
    pub rate_bytes_s: u64,
    /// The most that all destinations together verified per second, over a step. From telemetry.
    pub peak_rate_bytes_s: Option<u64>,
    /// Who gave and got how much.
    pub agents: Vec<AgentFiguresView>,
}

/// One agent's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct AgentFiguresView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `source` or `destination`.
    pub role: String,
    /// Where it stands.
    pub state: String,
    /// Seconds from the run's start to its end, once it has ended.
    pub duration_s: Option<u64>,
    /// Bytes it got from the source.
    pub bytes_from_source: u64,
    /// Bytes it got from other destinations.
    pub bytes_from_peers: u64,
    /// Bytes it gave to others.
    pub bytes_sent: u64,
    /// Of all that was given, how much it gave: 0 to 1.
    pub share_of_sent: f64,
    /// Bytes it got per second until its end.
    pub rate_bytes_s: Option<u64>,
    /// The most it verified in a second. From telemetry.
    pub peak_rate_bytes_s: Option<u64>,
}

/// One agent's course.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct CourseView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it told, in order of time; nothing where it told nothing.
    pub points: Vec<PointView>,
}

/// One step of a course.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct PointView {
    /// When it begins.
    pub time: String,
    /// How long it is.
    pub seconds: u64,
    /// Where the agent stood at its end.
    pub state: String,
    /// Content bytes verified so far.
    pub bytes_done: u64,
    /// Content bytes sent so far.
    pub bytes_sent: u64,
    /// Bytes verified in this step.
    pub verified: u64,
    /// Bytes sent in this step.
    pub sent: u64,
    /// The most bytes verified in a second.
    pub peak_rate_bytes_s: u64,
    /// The most peers.
    pub peers: u32,
    /// Samples it is made of.
    pub samples: u64,
}

/// How a run went, agent by agent, and its figures. What agents tell is kept for a while (`[telemetry] keep`), at the
/// replica that they told it; the figures that come from the log stay.
#[utoipa::path(get, path = "/api/v1/runs/{run}/telemetry", tag = "runs",
    params(("run" = String, Path,), Part),
    responses((status = 200, body = TelemetryView), (status = 400, body = ErrorView), (status = 404, body = ErrorView)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(run): Path<String>,
    Query(part): Query<Part>,
) -> Result<Json<TelemetryView>, ApiError> {
    let now = crate::service::now();
    let (id, agents, from, to) = {
        let views = api.sight(part.at.as_ref()).await?;
        let id = resolve::run(&views, &run)?;
        let view = of(&views, id)?;
        let agents = match &part.agent {
            Some(agent) => BTreeSet::from([resolve::agent(&views, agent)?]),
            None => view.agents.keys().copied().collect(),
        };
        let from = time("from", part.from.as_ref())?.unwrap_or(view.started);
        // A sample may arrive in the second after the end.
        let to = time("to", part.to.as_ref())?;
        let to = to.unwrap_or_else(|| view.finished.unwrap_or(now).after(std::time::Duration::from_secs(2)));
        (id, agents, from.0 / 1000, to.0.div_ceil(1000))
    };
    let length = to.saturating_sub(from);
    let step = step(part.step, length, agents.len() as u64)?;
    let rows = match api.service.kept_telemetry().cloned() {
        None => Rows::new(),
        Some(kept) => {
            let permit = api.readings.clone().acquire_owned().await;
            let permit = permit.map_err(|error| ApiError::unavailable(error.to_string()))?;
            let reading = tokio::task::spawn_blocking(move || {
                // Also when nobody waits for it any more.
                let _permit = permit;
                kept.rows(id, Some(&agents), (from, to), step)
            });
            reading.await.map_err(|error| ApiError::unavailable(error.to_string()))?
        }
    };
    let kept_since = api.service.kept_telemetry().and_then(|kept| kept.begins());
    let views = api.sight(part.at.as_ref()).await?;
    let run = of(&views, id)?;
    let course = |(agent, rows): (&AgentId, &BTreeMap<u64, Bucket>)| CourseView {
        id: agent.to_string(),
        name: shape::agent_name(&views, *agent),
        points: rows.values().map(point).collect(),
    };
    let figures = figures(&views, run, &rows, now);
    Ok(Json(TelemetryView {
        run: id.to_string(),
        job_name: run.job_name.to_string(),
        from: seconds(from),
        to: seconds(to),
        step_s: step,
        kept_since: kept_since.map(seconds),
        figures,
        agents: rows.iter().map(course).collect(),
        as_of: views.position(),
    }))
}

fn of(views: &Views, id: RunId) -> Result<&RunView, ApiError> {
    views.runs.runs.get(&id).ok_or_else(|| ApiError::not_found(format!("no run {id}")))
}

fn time(name: &str, text: Option<&String>) -> Result<Option<Timestamp>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let wrong = || ApiError::invalid(format!("{name}: {text} is no time such as 2026-03-01T12:00:00Z"));
    let time = humantime::parse_rfc3339_weak(text).map_err(|_| wrong())?;
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| wrong())?;
    Ok(Some(Timestamp(u64::try_from(since.as_millis()).map_err(|_| wrong())?)))
}

/// Seconds of one point.
fn step(wanted: Option<u64>, length: u64, agents: u64) -> Result<u64, ApiError> {
    let agents = agents.max(1);
    let Some(step) = wanted else {
        let points = (POINTS_MAX / 2 / agents).clamp(1, POINTS_USUAL);
        let fits = |step: &u64| length / step <= points;
        return Ok(STEPS.into_iter().find(fits).unwrap_or_else(|| length.div_ceil(points)));
    };
    if !(1..=86_400).contains(&step) {
        return Err(ApiError::invalid("step: 1 to 86,400 seconds"));
    }
    if (length / step).saturating_mul(agents) > POINTS_MAX {
        return Err(ApiError::invalid(format!(
            "that would be more than {POINTS_MAX} points: ask for a longer step, a shorter time or one agent"
        )));
    }
    Ok(step)
}

fn seconds(seconds: u64) -> String {
    Timestamp(seconds.saturating_mul(1000)).to_string()
}

fn point(Bucket { row, seconds: span }: &Bucket) -> PointView {
    PointView {
        time: seconds(row.start),
        seconds: *span,
        state: row.state.name().into(),
        bytes_done: row.bytes_done,
        bytes_sent: row.bytes_sent,
        verified: row.verified,
        sent: row.sent,
        peak_rate_bytes_s: row.peak,
        peers: row.peers,
        samples: row.samples,
    }
}

fn figures(views: &Views, run: &RunView, rows: &Rows, now: Timestamp) -> FiguresView {
    let duration = run.finished.unwrap_or(now).since(run.started).as_secs();
    let stats = || run.agents.values().filter_map(|part| part.stats);
    let all_sent = super::total(stats().map(|stats| stats.bytes_sent));
    let received =
        super::total(stats().map(|stats| stats.bytes_from_source.saturating_add(stats.bytes_from_peers)));
    let rate = |bytes: u64, seconds: u64| bytes / seconds.max(1);
    let agents = run.agents.iter().map(|(id, part)| {
        let stats = part.stats.unwrap_or_default();
        let ended = part.state.is_terminal().then(|| part.since.since(run.started).as_secs());
        let got = stats.bytes_from_source.saturating_add(stats.bytes_from_peers);
        AgentFiguresView {
            id: id.to_string(),
            name: shape::agent_name(views, *id),
            role: shape::role(part.role).into(),
            state: part.state.name().into(),
            duration_s: ended,
            bytes_from_source: stats.bytes_from_source,
            bytes_from_peers: stats.bytes_from_peers,
            bytes_sent: stats.bytes_sent,
            share_of_sent: if all_sent == 0 { 0.0 } else { stats.bytes_sent as f64 / all_sent as f64 },
            rate_bytes_s: ended.map(|seconds| rate(got, seconds)),
            peak_rate_bytes_s: rows
                .get(id)
                .and_then(|rows| rows.values().map(|Bucket { row, .. }| row.peak).max()),
        }
    });
    let mut together: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for Bucket { row, seconds } in rows.values().flat_map(BTreeMap::values) {
        let sum = together.entry((row.start, *seconds)).or_default();
        *sum = sum.saturating_add(row.verified);
    }
    FiguresView {
        source: if rows.is_empty() { "log" } else { "log_and_telemetry" }.into(),
        started: run.started.to_string(),
        finished: run.finished.map(|time| time.to_string()),
        duration_s: duration,
        outcome: run.outcome.map(|outcome| shape::outcome(outcome).into()),
        bytes: run.manifest.map(|manifest| manifest.bytes),
        bytes_received: received,
        rate_bytes_s: rate(received, duration),
        peak_rate_bytes_s: together.iter().map(|((_, seconds), bytes)| rate(*bytes, *seconds)).max(),
        agents: agents.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_keep_answers_small() {
        assert_eq!(step(None, 200, 2).ok(), Some(1));
        assert_eq!(step(None, 3_600, 2).ok(), Some(30));
        assert_eq!(step(None, 90 * 86_400, 2).ok(), Some(86_400));
        assert_eq!(step(None, 3_600, 1_000).ok(), Some(300));
        let long = step(None, u64::MAX, 1).unwrap_or_default();
        assert!(u64::MAX / long <= POINTS_USUAL);
        assert_eq!(step(Some(60), 86_400, 10).ok(), Some(60));
        for (wanted, length) in [(0, 10), (86_401, 10), (1, 1_000_000)] {
            assert!(step(Some(wanted), length, 1).is_err());
        }
    }
}
