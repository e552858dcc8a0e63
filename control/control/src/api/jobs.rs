//! `/api/v1/jobs`.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use control_core::projection::Views;
use control_core::{batch, job, run, subfolder};
use event_schema::{Event, JobId, JobSpec, Place, Subject, SyncPolicy, Timestamp, When};

use super::agents::{Page, page};
use super::error::{Json, Query};
use super::sight::Moment;
use super::view::{ErrorView, JobStarted, JobView, JobWish, JobsView, PlaceWish, SkippedView};
use super::{Api, ApiError, OPERATOR, backups, batches, resolve, shape, sync};
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
    let spec = spec(&api.service.views(), &wish)?;
    let has_runs_of_sources = of_sources(&spec);
    let by_hand = !matches!(&spec, JobSpec::Backup { when, .. } if *when != When::Manual);
    let ids = Ids(now());
    let (id, name) = (ids.job(), wish.name);
    let origin = Origin::operator(OPERATOR, format!("job/{id}"));
    let decide = move |state: &control_core::State, _: Timestamp| {
        let (name, spec) = (name.clone(), spec.clone());
        job::decide(state, job::Command::Create { job: id, name, spec })
    };
    api.service.decide_new(origin, Subject::Job(id), decide).await?;
    let mut started = JobStarted { job: id.to_string(), ..nothing() };
    if wish.start.unwrap_or(by_hand) {
        match start_job(&api, id, has_runs_of_sources).await {
            Ok(begun) => started = begun,
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
    Ok((StatusCode::CREATED, Json(started)))
}

fn spec(views: &Views, wish: &JobWish) -> Result<JobSpec, ApiError> {
    let places = |wishes: &[PlaceWish]| -> Result<Vec<Place>, ApiError> {
        wishes.iter().map(|place| resolve::place(views, place)).collect()
    };
    // Sources are looked up first: what is told of a mistake is the first one.
    let destinations = || places(&wish.destinations);
    let invalid = |why: &str| Err(ApiError::invalid(why));
    let synchronizes = wish.kind == "synchronization";
    if !synchronizes && (!wish.members.is_empty() || wish.policy.is_some()) {
        return invalid("members and policy are of synchronizations");
    }
    let (keeps, options) = (wish.kind == "backup", backups::options(wish.options.as_ref()));
    if !keeps && (wish.when.is_some() || wish.keep.is_some()) {
        return invalid("when and keep are of backups");
    }
    match wish.kind.as_str() {
        "distribution" => match (&wish.source, &wish.sources[..]) {
            (Some(source), []) | (None, [source]) if wish.subfolder.is_none() && wish.after.is_none() => {
                let source = resolve::place(views, source)?;
                Ok(JobSpec::Distribution { source, destinations: destinations()?, options })
            }
            (Some(_), []) | (None, [_]) => invalid("subfolder and after are of consolidations"),
            _ => invalid("a distribution has one source"),
        },
        "consolidation" => {
            if wish.source.is_some() {
                return invalid("a consolidation has sources, not a source");
            }
            let subfolder = wish.subfolder.as_deref().unwrap_or(subfolder::DEFAULT);
            let after = wish.after.as_deref().map(batches::parse_after).transpose()?.unwrap_or_default();
            let (sources, destinations) = (places(&wish.sources)?, destinations()?);
            Ok(JobSpec::Consolidation { sources, destinations, subfolder: subfolder.into(), after, options })
        }
        "backup" => {
            if wish.source.is_some() || wish.after.is_some() {
                return invalid("a backup has sources, which keep their files");
            }
            let subfolder = wish.subfolder.as_deref().unwrap_or(subfolder::DEFAULT).into();
            let when = wish.when.as_ref().map(backups::when).transpose()?.unwrap_or_default();
            let keep = wish.keep.as_ref().map(backups::keep).unwrap_or_default();
            let (sources, destinations) = (places(&wish.sources)?, destinations()?);
            Ok(JobSpec::Backup { sources, destinations, subfolder, when, keep, options })
        }
        "synchronization" => {
            let others = wish.source.is_some() || !wish.sources.is_empty() || !wish.destinations.is_empty();
            if others || wish.subfolder.is_some() || wish.after.is_some() || wish.options.is_some() {
                return invalid("a synchronization has members and a policy, and nothing else");
            }
            let policy = match &wish.policy {
                Some(wish) => sync::policy(wish, SyncPolicy::default())?,
                None => SyncPolicy::default(),
            };
            Ok(JobSpec::Synchronization { members: sync::shares(views, &wish.members)?, policy })
        }
        _ => invalid("the kind of a job is distribution, consolidation, synchronization or backup"),
    }
}

fn nothing() -> JobStarted {
    JobStarted { job: String::new(), run: None, batch: None, runs: vec![], skipped: vec![] }
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

/// Whether a start is one run for each source.
fn of_sources(spec: &JobSpec) -> bool {
    matches!(spec, JobSpec::Consolidation { .. } | JobSpec::Backup { .. })
}

/// Starts a run of a job; of a consolidation or backup a run for each source.
#[utoipa::path(post, path = "/api/v1/jobs/{job}/start", tag = "jobs", params(("job" = String, Path,)),
    responses((status = 201, body = JobStarted), (status = 409, body = ErrorView)))]
pub(super) async fn start(
    State(api): State<Api>,
    Path(job): Path<String>,
) -> Result<(StatusCode, Json<JobStarted>), ApiError> {
    let (id, has_runs_of_sources) = {
        let views = api.service.views();
        let id = resolve::job(&views, &job)?;
        let known = views.jobs.jobs.get(&id);
        (id, known.is_some_and(|job| of_sources(&job.spec)))
    };
    Ok((StatusCode::CREATED, Json(start_job(&api, id, has_runs_of_sources).await?)))
}

async fn start_job(api: &Api, job: JobId, has_runs_of_sources: bool) -> Result<JobStarted, ApiError> {
    if has_runs_of_sources {
        return start_batch(api, job).await;
    }
    let run = Ids(now()).run();
    api.service
        .decide(Origin::operator(OPERATOR, format!("run/{run}")), move |state, _| {
            run::decide(state, run::Command::Start { run, job })
        })
        .await?;
    let run = run.to_string();
    Ok(JobStarted { job: job.to_string(), run: Some(run.clone()), runs: vec![run], ..nothing() })
}

/// A run for each source, all in one record.
async fn start_batch(api: &Api, job: JobId) -> Result<JobStarted, ApiError> {
    let id = Ids(now()).batch();
    let told = Arc::new(Mutex::new(batch::Started::default()));
    let telling = Arc::clone(&told);
    api.service
        .decide(Origin::operator(OPERATOR, format!("job/{job}")), move |state, now| {
            let started = batch::start(state, id, job, None, now)?;
            // Decided again after its record was found on the log it comes to nothing: then it is told already.
            if !started.events.is_empty() {
                *telling.lock().unwrap_or_else(PoisonError::into_inner) = started.clone();
            }
            Ok(started.events)
        })
        .await?;
    let started = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
    let views = api.service.views();
    let run = |event: &Event| match event {
        Event::RunStarted(e) => Some(e.run.to_string()),
        _ => None,
    };
    let skipped = started.skipped.iter().map(|skipped| SkippedView {
        id: skipped.agent.to_string(),
        name: shape::agent_name(&views, skipped.agent),
        run: skipped.run.to_string(),
    });
    Ok(JobStarted {
        job: job.to_string(),
        run: None,
        batch: Some(id.to_string()),
        runs: started.events.iter().filter_map(run).collect(),
        skipped: skipped.collect(),
    })
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
