//! `/api/v1/erase`: what a duty to delete asks for, and a history that stays provable cannot do by deleting.

use std::collections::BTreeSet;

use axum::extract::State;
use control_core::projection::Views;
use control_core::subject;
use event_schema::{Field, JobId, Owner, Subject};

use super::error::Json;
use super::view::{EraseWish, ErasedView, ErrorView, SubjectKeyView, SubjectKeysView};
use super::{Api, ApiError, OPERATOR, resolve};
use crate::service::Origin;

/// Erases every private text of a job, an agent or a user for good: it is recorded, then the key is destroyed that the
/// texts are sealed with.
#[utoipa::path(post, path = "/api/v1/erase", tag = "audit", request_body = EraseWish,
    responses((status = 200, body = ErasedView), (status = 400, body = ErrorView), (status = 404, body = ErrorView),
        (status = 409, body = ErrorView)))]
pub(super) async fn erase(
    State(api): State<Api>,
    Json(wish): Json<EraseWish>,
) -> Result<Json<ErasedView>, ApiError> {
    let subject = named(&api, &wish.kind, &wish.name)?;
    let reason = wish.reason.trim().to_owned();
    if reason.is_empty() {
        return Err(ApiError::invalid(
            "a reason is needed: it stands on the log in the place of what was erased",
        ));
    }
    let in_clear = stands_in_clear(&api.service.views(), subject);
    api.service
        .decide(Origin::operator(OPERATOR, subject.to_string()), move |state, _| {
            subject::erase(state, subject, &reason)
        })
        .await?;
    let views = api.service.views();
    let erased = views.subjects.subjects.get(&subject).and_then(|known| known.erased);
    Ok(Json(ErasedView {
        subject: subject.to_string(),
        erased: erased.map(|time| time.to_string()),
        key_destroyed: !api.service.ring().is_doomed(subject),
        in_clear,
        as_of: views.position(),
    }))
}

/// The keys of all private texts that were not erased: whoever has them reads an export as this service reads its log.
#[utoipa::path(get, path = "/api/v1/audit/keys", tag = "audit",
    responses((status = 200, body = SubjectKeysView), (status = 401, body = ErrorView)))]
pub(super) async fn keys(State(api): State<Api>) -> Json<SubjectKeysView> {
    let keys = api.service.ring().all().into_iter().map(|(subject, key)| SubjectKeyView {
        subject: subject.to_string(),
        key: super::hex(key.as_bytes()),
    });
    Json(SubjectKeysView { keys: keys.collect() })
}

fn named(api: &Api, kind: &str, name: &str) -> Result<Subject, ApiError> {
    let views = api.service.views();
    match kind {
        "job" => job(&views, name).map(Subject::Job),
        "agent" => match resolve::agent(&views, name) {
            Ok(agent) => Ok(Subject::Agent(agent)),
            // One that was only ever turned away.
            Err(error) => known(&views, kind, name).ok_or(error),
        },
        "user" => match known(&views, kind, name) {
            Some(subject) => Ok(subject),
            None => api.service.ring().user(name).ok_or_else(|| {
                ApiError::conflict("this service has no keys for private texts: nothing was sealed")
            }),
        },
        _ => Err(ApiError::invalid("the kind is job, agent or user")),
    }
}

/// A subject by its whole id.
fn known(views: &Views, kind: &str, id: &str) -> Option<Subject> {
    let subject = format!("{kind}/{id}").parse().ok()?;
    views.subjects.subjects.contains_key(&subject).then_some(subject)
}

/// A job, also one that was deleted: by the name that its runs still have, or by its whole id.
fn job(views: &Views, name: &str) -> Result<JobId, ApiError> {
    let error = match resolve::job(views, name) {
        Ok(job) => return Ok(job),
        Err(error) => error,
    };
    if let Some(Subject::Job(job)) = known(views, "job", name) {
        return Ok(job);
    }
    let had = views.runs.runs.values().filter(|run| *run.job_name == name && run.job_name.is_legible());
    let jobs: BTreeSet<JobId> = had.map(|run| run.job).collect();
    match (jobs.len(), jobs.first()) {
        (1, Some(job)) => Ok(*job),
        (0, _) => Err(error),
        _ => {
            let all = jobs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Err(ApiError::conflict(format!("several jobs had the name {name}, give the id: {all}")))
        }
    }
}

/// Whether the name was recorded in the clear, before the log's level 2: then it stays.
fn stands_in_clear(views: &Views, subject: Subject) -> bool {
    let mut fleet = Views::default();
    // Only what belongs to the subject, as the fields are visited in a copy.
    match subject {
        Subject::Agent(agent) => {
            fleet.fleet.agents.extend(views.fleet.agents.get(&agent).map(|known| (agent, known.clone())));
        }
        Subject::Job(job) => {
            fleet.jobs.jobs.extend(views.jobs.jobs.get(&job).map(|known| (job, known.clone())));
            let runs = views.runs.runs.iter().filter(|(_, run)| run.job == job);
            fleet.runs.runs.extend(runs.map(|(id, run)| (*id, run.clone())));
        }
        Subject::User(_) => {}
    }
    let mut clear = false;
    fleet.private(&mut |field, owner, text| {
        let is_name = matches!(field, Field::AgentName | Field::JobName);
        clear |= is_name && owner == Owner::Subject(subject) && text.is_clear();
    });
    clear
}
