//! `/api/v1/erase`: what a duty to delete asks for, and a history that stays provable cannot do by deleting.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use control_core::projection::Views;
use control_core::subject;
use event_log::{Position, ReadError, ReadLimit};
use event_schema::{Actor, Event, JobId, Owner, Record, RunId, Subject};

use super::error::Json;
use super::view::{EraseWish, ErasedView, ErrorView, SubjectKeyView, SubjectKeysView};
use super::{Api, ApiError, OPERATOR, resolve};
use crate::service::{Origin, Service};

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
    let in_clear = stands_in_clear(&api.service, subject).await?;
    api.service
        .decide(Origin::operator(OPERATOR, subject.to_string()), move |state, _| {
            subject::erase(state, subject, &reason)
        })
        .await?;
    // Once more, if it was not possible: whoever asks again wants to know.
    if let Err(error) = api.service.ring().destroy_doomed().await {
        tracing::warn!(%error, "keys of erased texts are not destroyed yet");
    }
    let views = api.service.views();
    let erased = views.subjects.subjects.get(&subject).and_then(|known| known.erased);
    let under_jobs = match subject {
        Subject::Agent(agent) => views.jobs_that_name(agent),
        Subject::Job(_) | Subject::User(_) => BTreeSet::new(),
    };
    Ok(Json(ErasedView {
        subject: subject.to_string(),
        erased: erased.map(|time| time.to_string()),
        key_destroyed: !api.service.ring().is_doomed(subject),
        in_clear,
        under_jobs: under_jobs.iter().map(ToString::to_string).collect(),
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

/// Whether some of it was recorded in the clear, before the log's level 2: then it stays. Of what was archived since nothing
/// is read: it counts as holding some.
async fn stands_in_clear(service: &Service, subject: Subject) -> Result<bool, ApiError> {
    let end = service.views().clear_until();
    let unavailable = |error: &dyn std::fmt::Display| ApiError::unavailable(error.to_string());
    let is_named = |actor: &Actor| match actor {
        Actor::Operator(name) => service.ring().user(name) == Some(subject),
        Actor::Service | Actor::Agent(_) => false,
    };
    let mut jobs: BTreeMap<RunId, JobId> = BTreeMap::new();
    let mut next = Position(1);
    while next.0 <= end {
        let page = match service.log().read(next, ReadLimit::default()).await {
            Err(ReadError::Archived { .. }) => return Ok(true),
            page => page.map_err(|error| unavailable(&error))?,
        };
        if page.is_empty() {
            break;
        }
        for entry in page.into_iter().take_while(|entry| entry.position.0 <= end) {
            let mut record = Record::decode(&entry.bytes).map_err(|error| unavailable(&error))?;
            for event in &record.events {
                if let Event::RunStarted(e) = event {
                    jobs.insert(e.run, e.job);
                }
            }
            let mut clear = is_named(&record.actor);
            record.private(&mut |_, owner, text| {
                let of = match owner {
                    Owner::Subject(of) => Some(of),
                    Owner::Run(run, _) => jobs.get(&run).copied().map(Subject::Job),
                    Owner::Named => None,
                };
                clear |= of == Some(subject) && text.is_clear();
            });
            if clear {
                return Ok(true);
            }
            next = entry.position.next();
        }
        // Others have to live on this thread too.
        tokio::task::yield_now().await;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use agent_proto::RunSecret;
    use control_core::{group, token};
    use ed25519_dalek::SigningKey;
    use event_log::file::{FileLog, FileLogOptions};
    use event_schema::{GroupId, Timestamp, TokenId};

    use super::*;
    use crate::gateway::{EnrolRequest, Fleet as _};
    use crate::privacy::{FileKeys, SubjectKeys, Wrapper};
    use crate::service::{Keys, Options};

    /// Recorded under level 1, and gone on at level 2: whoever decided or was let in before stands in the clear.
    #[tokio::test]
    async fn who_was_recorded_before_level_2_is_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let open = async |schema| {
            let keys = Keys {
                root_key: [1; 32],
                ca_fingerprint: [2; 32],
                command: SigningKey::from_bytes(&[3; 32]),
                secret_of: Box::new(|run| RunSecret::derive(&[7; 32], run)),
            };
            let store = Arc::new(FileKeys::open(&dir.path().join("keys")).expect("opens"));
            let keys_of = SubjectKeys { store, wrapper: Arc::new(Wrapper::new(&[4; 32])) };
            let options = Options { schema, subject_keys: Some(keys_of), ..Options::default() };
            let log = FileLog::open(dir.path().join("log"), FileLogOptions::default()).await.expect("opens");
            Service::open(Arc::new(log), keys, options).await.expect("opens")
        };
        let make_group = async |service: &Service, user: &str, n: u8| {
            let decided = service.decide(Origin::operator(user, "group".into()), move |state, _| {
                let (group, name) = (GroupId([n; 16]), format!("group {n}"));
                group::decide(state, group::Command::Create { group, name })
            });
            decided.await.expect("made");
        };
        let enrol = async |service: &Service, n: u8| {
            let (id, secret) = (TokenId([n; 16]), format!("{}.{}", TokenId([n; 16]), "0".repeat(64)));
            let hash = crate::service::token_hash(&secret);
            let created = service.decide(Origin::operator("officer", "token".into()), move |state, now| {
                let expires = Timestamp(now.0 + 1_000_000);
                token::decide(
                    state,
                    token::Command::Create { token: id, hash, tags: vec![], uses: 1, expires },
                    now,
                )
            });
            created.await.expect("made");
            let public_key = SigningKey::from_bytes(&[n; 32]).verifying_key().to_bytes();
            let agent = event_schema::AgentId::of_key(&public_key);
            let request = EnrolRequest {
                agent,
                public_key,
                name: format!("agent-{n}"),
                tags: vec![],
                token: Some(secret),
                version: "1".into(),
                address: "192.0.2.1:1".parse().expect("an address"),
            };
            service.enrol(request).await;
            assert!(service.views().fleet.agents.contains_key(&agent));
            Subject::Agent(agent)
        };
        let (service, writer) = open(1).await;
        make_group(&service, "anna", 1).await;
        let old = enrol(&service, 5).await;
        drop(service);
        writer.await.expect("ends well");
        let (service, writer) = open(2).await;
        make_group(&service, "anna", 2).await;
        make_group(&service, "bert", 3).await;
        let new = enrol(&service, 6).await;
        let user = |name| service.ring().user(name).expect("keys");
        for (subject, in_clear) in [(user("anna"), true), (old, true), (user("bert"), false), (new, false)] {
            assert_eq!(stands_in_clear(&service, subject).await.ok(), Some(in_clear), "{subject}");
        }
        drop(service);
        writer.await.expect("ends well");
    }
}
