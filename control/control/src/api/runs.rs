//! `/api/v1/runs`.

use axum::extract::{Path, State};
use control_core::projection::{RunView as CoreRun, Views};
use control_core::run::{self, Command};
use event_log::{Position, ReadLimit};
use event_schema::{Record, RunId};
use serde::Deserialize;
use utoipa::IntoParams;

use super::agents::Page;
use super::error::{Json, Query};
use super::sight::Moment;
use super::view::{ErrorView, HistoriesView, RunView, RunsView, StopWish};
use super::{Api, ApiError, OPERATOR, resolve, shape};
use crate::service::{Origin, Telemetry};

/// Which runs are wanted.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RunsQuery {
    /// Entries at most; 1 to 1,000, default 200.
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
    /// The fleet as it was: after this position of the log, or at this time (RFC 3339, UTC), which stands for the last
    /// record before the first later one. Default: the present.
    at: Option<String>,
    /// Only runs of this start: its id, a unique beginning of it, `latest`, or the name of a job for its newest start.
    batch: Option<String>,
    /// Only runs of this job: its name, id or a unique beginning of the id.
    job: Option<String>,
}

/// Runs, newest first.
#[utoipa::path(get, path = "/api/v1/runs", tag = "runs", params(RunsQuery),
    responses((status = 200, body = RunsView), (status = 401, body = ErrorView)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<RunsQuery>,
) -> Result<Json<RunsView>, ApiError> {
    let RunsQuery { limit, after, at, batch, job } = query;
    let page = Page { limit, after, at };
    let views = api.sight(page.at.as_ref()).await?;
    let all = &views.runs.runs;
    let before = page.after::<RunId>()?;
    let batch = batch.map(|text| resolve::batch(&views, &text)).transpose()?;
    let job = job.map(|text| resolve::job(&views, &text)).transpose()?;
    let wanted = |id: &RunId, run: &CoreRun| {
        before.is_none_or(|before| *id < before)
            && (batch.is_none() || run.batch == batch)
            && job.is_none_or(|job| run.job == job)
    };
    let mut rest = all.iter().rev().filter(|(id, run)| wanted(id, run));
    let runs: Vec<_> =
        rest.by_ref().take(page.limit()).map(|(id, run)| shape::run_summary(&views, *id, run)).collect();
    let next = rest.next().and_then(|_| runs.last()).map(|run| run.id.clone());
    Ok(Json(RunsView { runs, next, as_of: views.position() }))
}

/// One run, by id, unique beginning of its id, the name of its job (its newest run), or `latest`.
#[utoipa::path(get, path = "/api/v1/runs/{run}", tag = "runs",
    params(("run" = String, Path,), Moment),
    responses((status = 200, body = RunView), (status = 404, body = ErrorView)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(run): Path<String>,
    Query(query): Query<Moment>,
) -> Result<Json<RunView>, ApiError> {
    let views = api.sight(query.at.as_ref()).await?;
    let id = resolve::run(&views, &run)?;
    shown(&views, views.telemetry(&api), id)
}

pub(super) fn shown(views: &Views, telemetry: &Telemetry, id: RunId) -> Result<Json<RunView>, ApiError> {
    let run = views.runs.runs.get(&id).ok_or_else(|| ApiError::not_found(format!("no run {id}")))?;
    Ok(Json(shape::run(views, telemetry, id, run)))
}

/// What the log tells of a run, read from the log itself.
#[utoipa::path(get, path = "/api/v1/runs/{run}/history", tag = "runs",
    params(("run" = String, Path,), Page),
    responses((status = 200, body = HistoriesView), (status = 404, body = ErrorView)))]
pub(super) async fn history(
    State(api): State<Api>,
    Path(run): Path<String>,
    Query(query): Query<Page>,
) -> Result<Json<HistoriesView>, ApiError> {
    let after = query.after::<u64>()?.unwrap_or(0);
    let (run, positions) = {
        let views = api.sight(query.at.as_ref()).await?;
        let id = resolve::run(&views, &run)?;
        let positions = views.runs.runs.get(&id).map(|run| run.history.clone()).unwrap_or_default();
        (id, positions)
    };
    let mut wanted = positions.into_iter().filter(|position| *position > after);
    let page: Vec<u64> = wanted.by_ref().take(query.limit()).collect();
    let next = wanted.next().and_then(|_| page.last()).map(ToString::to_string);
    let mut history = Vec::new();
    for stretch in stretches(&page) {
        for (position, record) in read(&api, stretch).await? {
            let views = api.sight(query.at.as_ref()).await?;
            let told = record.events.iter().filter(|event| belongs(event, run));
            history.extend(told.map(|event| shape::history(&views, position, &record, event)));
        }
    }
    let as_of = api.sight(query.at.as_ref()).await?.position();
    Ok(Json(HistoriesView { history, next, as_of }))
}

/// Whether an event of one of the run's records is told with it: those about another run are not.
fn belongs(event: &event_schema::Event, run: RunId) -> bool {
    crate::service::run_of(event).is_none_or(|of| of == run)
}

/// Positions that follow each other closely are read at once.
fn stretches(positions: &[u64]) -> Vec<Vec<u64>> {
    let mut stretches: Vec<Vec<u64>> = Vec::new();
    for position in positions {
        match stretches.last_mut() {
            Some(stretch) if stretch.last().is_some_and(|last| position - last <= 16) => {
                stretch.push(*position);
            }
            _ => stretches.push(vec![*position]),
        }
    }
    stretches
}

async fn read(api: &Api, wanted: Vec<u64>) -> Result<Vec<(u64, Record)>, ApiError> {
    let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else { return Ok(vec![]) };
    let mut records = Vec::new();
    let mut from = *first;
    while from <= *last {
        let limit = ReadLimit::entries(usize::try_from(last - from + 1).unwrap_or(usize::MAX));
        let entries = api.service.log().read(Position(from), limit).await;
        let entries = entries?;
        let Some(end) = entries.last().map(|entry| entry.position.0) else { break };
        for entry in entries.into_iter().filter(|entry| wanted.contains(&entry.position.0)) {
            let mut record =
                Record::decode(&entry.bytes).map_err(|e| ApiError::unavailable(e.to_string()))?;
            let opened = api.service.ring().open_record(&mut record).await;
            opened.map_err(|error| ApiError::unavailable(error.to_string()))?;
            records.push((entry.position.0, record));
        }
        from = end + 1;
    }
    Ok(records)
}

/// Ends a run.
#[utoipa::path(post, path = "/api/v1/runs/{run}/stop", tag = "runs", params(("run" = String, Path,)),
    request_body = StopWish,
    responses((status = 200, body = RunView), (status = 404, body = ErrorView)))]
pub(super) async fn stop(
    State(api): State<Api>,
    Path(run): Path<String>,
    Json(wish): Json<StopWish>,
) -> Result<Json<RunView>, ApiError> {
    let id = resolve::run(&api.service.views(), &run)?;
    let reason = wish.reason.unwrap_or_else(|| "stopped by an operator".into());
    api.service
        .decide(Origin::operator(OPERATOR, format!("run/{id}")), move |state, _| {
            run::decide(state, Command::Stop { run: id, reason: reason.clone() })
        })
        .await?;
    shown(&api.service.views(), api.service.telemetry(), id)
}

#[cfg(test)]
mod tests {
    #[test]
    fn close_positions_are_one_read() {
        let positions = [1, 2, 5, 100, 101];
        assert_eq!(super::stretches(&positions), [vec![1, 2, 5], vec![100, 101]]);
        assert!(super::stretches(&[]).is_empty());
    }
}
