//! `/api/v1/batches`: the starts of consolidations, each with its runs, one for each source.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use control_core::projection::{RunView as CoreRun, Views};
use event_schema::{BatchId, Disposal, Role, RunId};

use super::agents::Page;
use super::error::{Json, Query};
use super::shape::{run_state, total};
use super::sight::Moment;
use super::view::{BatchView, BatchesView, DisposalView, ErrorView};
use super::{Api, ApiError, resolve, shape};
use crate::service::Telemetry;

/// Starts of jobs that have many sources, newest first.
#[utoipa::path(get, path = "/api/v1/batches", tag = "runs", params(Page),
    responses((status = 200, body = BatchesView), (status = 401, body = ErrorView)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<Page>,
) -> Result<Json<BatchesView>, ApiError> {
    let views = api.sight(query.at.as_ref()).await?;
    let before = query.after::<BatchId>()?;
    let all = all(&views);
    let mut rest = all.iter().rev().filter(|(id, _)| before.is_none_or(|before| **id < before));
    let telemetry = views.telemetry(&api);
    let batches: Vec<BatchView> = rest
        .by_ref()
        .take(query.limit())
        .map(|(id, runs)| batch(&views, telemetry, *id, runs, false))
        .collect();
    let next = rest.next().and_then(|_| batches.last()).map(|batch| batch.id.clone());
    Ok(Json(BatchesView { batches, next, as_of: views.position() }))
}

/// One start with its runs, by id, unique beginning of its id, the name of its job (its newest start), or `latest`.
#[utoipa::path(get, path = "/api/v1/batches/{batch}", tag = "runs",
    params(("batch" = String, Path,), Moment),
    responses((status = 200, body = BatchView), (status = 404, body = ErrorView)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(wanted): Path<String>,
    Query(query): Query<Moment>,
) -> Result<Json<BatchView>, ApiError> {
    let views = api.sight(query.at.as_ref()).await?;
    let id = resolve::batch(&views, &wanted)?;
    let all = all(&views);
    let runs = all.get(&id).ok_or_else(|| ApiError::not_found(format!("no batch {id}")))?;
    Ok(Json(batch(&views, views.telemetry(&api), id, runs, true)))
}

type Runs<'v> = Vec<(RunId, &'v CoreRun)>;

/// Every batch of which a run is remembered.
pub(super) fn all(views: &Views) -> BTreeMap<BatchId, Runs<'_>> {
    let mut all: BTreeMap<BatchId, Runs<'_>> = BTreeMap::new();
    for (id, run) in &views.runs.runs {
        if let Some(batch) = run.batch {
            all.entry(batch).or_default().push((*id, run));
        }
    }
    all
}

fn batch(views: &Views, telemetry: &Telemetry, id: BatchId, runs: &Runs<'_>, with_runs: bool) -> BatchView {
    let mut states = BTreeMap::new();
    for (_, run) in runs {
        let state = run.outcome.map_or_else(|| run_state(run), shape::outcome);
        *states.entry(state.to_owned()).or_insert(0) += 1;
    }
    let now = std::time::Instant::now();
    let parts = || runs.iter().flat_map(|(id, run)| run.agents.iter().map(move |part| (*id, *run, part)));
    let destinations = || parts().filter(|(_, _, (_, part))| part.role == Role::Destination);
    let done = destinations().map(|(id, run, (agent, part))| {
        let live = telemetry.of(id, *agent, now);
        shape::bytes_done(run, part, live.as_ref())
    });
    let due = destinations().map(|(_, run, _)| run.manifest.map_or(0, |manifest| manifest.bytes));
    let told = || runs.iter().filter_map(|(_, run)| run.disposal);
    let disposed = DisposalView {
        files: total(told().map(|d| d.disposed.files)),
        bytes: total(told().map(|d| d.disposed.bytes)),
        changed: total(told().map(|d| d.disposed.changed)),
        gone: total(told().map(|d| d.disposed.gone)),
        failed: total(told().map(|d| d.disposed.failed)),
        refused: None,
    };
    let newest = runs.first().map(|(_, run)| *run);
    BatchView {
        id: id.to_string(),
        job: newest.map_or_else(String::new, |run| run.job.to_string()),
        job_name: newest.map_or_else(String::new, |run| run.job_name.to_string()),
        started: newest.map_or_else(String::new, |run| run.started.to_string()),
        after: after(newest.map_or(Disposal::Keep, |run| run.after)),
        runs_total: runs.len() as u64,
        runs_active: runs.iter().filter(|(_, run)| run.outcome.is_none()).count() as u64,
        states,
        entries: total(runs.iter().filter_map(|(_, run)| run.manifest).map(|manifest| manifest.entries)),
        bytes: total(runs.iter().filter_map(|(_, run)| run.manifest).map(|manifest| manifest.bytes)),
        bytes_due: total(due),
        bytes_done: total(done),
        problems: total(parts().map(|(_, _, (_, part))| part.problems)),
        disposals: told().filter(|d| d.refused.is_none()).count() as u64,
        disposals_refused: told().filter(|d| d.refused.is_some()).count() as u64,
        disposed,
        runs: with_runs.then(|| runs.iter().map(|(id, run)| shape::run_summary(views, *id, run)).collect()),
        as_of: views.position(),
    }
}

/// What becomes of a source's files, as people write it: `keep`, `archive:30d`, `delete`.
pub(super) fn after(disposal: Disposal) -> String {
    match disposal {
        Disposal::Keep => "keep".into(),
        Disposal::Archive { days } => format!("archive:{days}d"),
        Disposal::Delete => "delete".into(),
    }
}

/// The same read back.
pub(super) fn parse_after(text: &str) -> Result<Disposal, ApiError> {
    let archive = |days: &str| days.strip_suffix('d')?.parse().ok().map(|days| Disposal::Archive { days });
    match (text, text.strip_prefix("archive:").and_then(archive)) {
        ("keep", _) => Ok(Disposal::Keep),
        ("delete", _) => Ok(Disposal::Delete),
        (_, Some(archive)) => Ok(archive),
        _ => Err(ApiError::invalid(format!(
            "after is keep, archive:DAYSd (such as archive:30d) or delete, not {text}"
        ))),
    }
}

/// What a source did with its files.
pub(super) fn disposal(run: &CoreRun) -> Option<DisposalView> {
    let told = run.disposal.as_ref()?;
    let event_schema::Disposed { files, bytes, changed, gone, failed } = told.disposed;
    let refused = told.refused.map(|reason| shape::refusal(reason).to_owned());
    Some(DisposalView { files, bytes, changed, gone, failed, refused })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disposals_are_written_and_read() {
        for disposal in [Disposal::Keep, Disposal::Archive { days: 30 }, Disposal::Delete] {
            assert_eq!(parse_after(&after(disposal)).ok(), Some(disposal));
        }
        for bad in
            ["", "Keep", "archive", "archive:", "archive:30", "archive:-1d", "archive:1.5d", "delete:1d"]
        {
            assert!(parse_after(bad).is_err(), "{bad}");
        }
    }
}
