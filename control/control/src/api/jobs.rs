//! `/api/v1/jobs`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use control_core::{job, run};
use event_schema::{JobId, JobSpec, RunId, Subject};

use super::agents::{Page, page};
use super::error::{Json, Query};
use super::sight::Moment;
use super::view::{ErrorView, JobStarted, JobView, JobWish, JobsView};
use super::{Api, ApiError, OPERATOR, resolve, shape};
use crate::service::{Ids, Origin, now};

/// All jobs that are not deleted.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs", params(Page),
    responses((status = 200, body = JobsView), (status = 401, body = ErrorView)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<Page>,
) -> Result<Json<JobsView>, ApiError> {
    let views = api.sight(query.at.as_ref()).await?;
    let (entries, next) = page(&views.jobs.jobs, query.after::<JobId>()?, query.limit());
    let jobs = entries.into_iter().map(|(id, job)| shape::job(&views, id, job)).collect();
    Ok(Json(JobsView { jobs, next, as_of: views.position() }))
}

/// Makes a job and, unless told otherwise, starts a run of it.
#[utoipa::path(post, path = "/api/v1/jobs", tag = "jobs", request_body = JobWish,
    responses((status = 201, body = JobStarted), (status = 400, body = ErrorView), (status = 409, body = ErrorView)))]
pub(super) async fn create(
    State(api): State<Api>,
    Json(wish): Json<JobWish>,
) -> Result<(StatusCode, Json<JobStarted>), ApiError> {
    if wish.kind != "distribution" {
        return Err(ApiError::invalid("the kind of a job is distribution"));
    }
    let spec = {
        let views = api.service.views();
        let destinations: Result<_, _> =
            wish.destinations.iter().map(|place| resolve::place(&views, place)).collect();
        JobSpec::Distribution { source: resolve::place(&views, &wish.source)?, destinations: destinations? }
    };
    let ids = Ids(now());
    let (id, name) = (ids.job(), wish.name);
    // Here and not in the writer, behind which everybody would wait for the store of keys.
    let prepared = api.service.ring().prepare(Subject::Job(id)).await;
    prepared.map_err(|error| ApiError::unavailable(error.to_string()))?;
    api.service
        .decide(Origin::operator(OPERATOR, format!("job/{id}")), move |state, _| {
            let (name, spec) = (name.clone(), spec.clone());
            job::decide(state, job::Command::Create { job: id, name, spec })
        })
        .await?;
    let mut run = None;
    if wish.start.unwrap_or(true) {
        match start_run(&api, id).await {
            Ok(started) => run = Some(started.to_string()),
            Err(error) => {
                // A job that could not start is not what was asked for: take it back.
                let origin = Origin::operator(OPERATOR, format!("job/{id}"));
                let undone = api
                    .service
                    .decide(origin, move |state, _| job::decide(state, job::Command::Delete { job: id }));
                if let Err(error) = undone.await {
                    tracing::warn!(job = %id, %error, "a job that could not start stays");
                }
                return Err(error);
            }
        }
    }
    Ok((StatusCode::CREATED, Json(JobStarted { job: id.to_string(), run })))
}

/// One job, by name, id or unique beginning of its id.
#[utoipa::path(get, path = "/api/v1/jobs/{job}", tag = "jobs",
    params(("job" = String, Path,), Moment),
    responses((status = 200, body = JobView), (status = 404, body = ErrorView)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(job): Path<String>,
    Query(query): Query<Moment>,
) -> Result<Json<JobView>, ApiError> {
    let views = api.sight(query.at.as_ref()).await?;
    let id = resolve::job(&views, &job)?;
    let view = views.jobs.jobs.get(&id).ok_or_else(|| ApiError::not_found(format!("no job {id}")))?;
    Ok(Json(shape::job(&views, id, view)))
}

/// Starts a run of a job.
#[utoipa::path(post, path = "/api/v1/jobs/{job}/start", tag = "jobs", params(("job" = String, Path,)),
    responses((status = 201, body = JobStarted), (status = 409, body = ErrorView)))]
pub(super) async fn start(
    State(api): State<Api>,
    Path(job): Path<String>,
) -> Result<(StatusCode, Json<JobStarted>), ApiError> {
    let id = resolve::job(&api.service.views(), &job)?;
    let run = start_run(&api, id).await?;
    Ok((StatusCode::CREATED, Json(JobStarted { job: id.to_string(), run: Some(run.to_string()) })))
}

async fn start_run(api: &Api, job: JobId) -> Result<RunId, ApiError> {
    let run = Ids(now()).run();
    api.service
        .decide(Origin::operator(OPERATOR, format!("run/{run}")), move |state, _| {
            run::decide(state, run::Command::Start { run, job })
        })
        .await?;
    Ok(run)
}

/// Deletes a job; its runs stay.
#[utoipa::path(delete, path = "/api/v1/jobs/{job}", tag = "jobs", params(("job" = String, Path,)),
    responses((status = 200, body = JobView), (status = 409, body = ErrorView)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(job): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let (id, shown) = {
        let views = api.service.views();
        let id = resolve::job(&views, &job)?;
        let view = views.jobs.jobs.get(&id).ok_or_else(|| ApiError::not_found(format!("no job {id}")))?;
        (id, shape::job(&views, id, view))
    };
    api.service
        .decide(Origin::operator(OPERATOR, format!("job/{id}")), move |state, _| {
            job::decide(state, job::Command::Delete { job: id })
        })
        .await?;
    Ok(Json(shown))
}
