//! `/api/v1/backups`: what is kept of sources' folders, and giving it back; and how what is asked of jobs and runs is read
//! and told.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use control_core::backup::plan::next_start;
use control_core::backup::restore::{self, Restore, Which};
use control_core::backup::standing::{Backup, Version};
use control_core::backup::version::VersionName;
use control_core::projection::Views;
use event_schema::{AgentId, Event, JobId, JobSpec, Keep, Private, Purpose, Role, RunOptions, When};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use super::agents::Page;
use super::backup_view::{
    BackupSourceView, BackupView, KeepShape, OptionsShape, PurposeView, RestoreStarted, RestoreWish,
    VersionView, VersionsView, WhenShape,
};
use super::error::{Json, Query};
use super::sight::Moment;
use super::view::{ErrorView, PlaceView};
use super::{Api, ApiError, OPERATOR, resolve, shape};
use crate::at::At;
use crate::service::{Ids, Origin, now};

/// Which versions are wanted.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct VersionsQuery {
    /// Entries at most; 1 to 1,000, default 200.
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
    /// The fleet as it was: after this position of the log, or at this time (RFC 3339, UTC), which stands for the last
    /// record before the first later one. Default: the present.
    at: Option<String>,
    /// Only those of this source: its name, id or a unique beginning of the id.
    source: Option<String>,
}

/// What there is of a backup: its sources, and when it is started next.
#[utoipa::path(get, path = "/api/v1/backups/{job}", tag = "backups",
    params(("job" = String, Path,), Moment),
    responses((status = 200, body = BackupView), (status = 404, body = ErrorView)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(job): Path<String>,
    Query(query): Query<Moment>,
) -> Result<Json<BackupView>, ApiError> {
    let views = api.sight(query.at.as_ref()).await?;
    let (id, backup) = known(&views, &job)?;
    let Some(job) = views.jobs.jobs.get(&id) else { return Err(ApiError::not_found(format!("no job {id}"))) };
    let JobSpec::Backup { when, keep, .. } = &job.spec else { return Err(no_backup()) };
    let mut all: Vec<AgentId> = backup.sources.keys().copied().collect();
    // Of whom something is kept though it is gone.
    all.extend(backup.shelves.keys().map(|(_, source)| *source));
    all.sort_unstable();
    all.dedup();
    let source = |id: AgentId| {
        let versions = backup.versions_of(id);
        let known = backup.sources.get(&id).copied().unwrap_or_default();
        let newest = versions.iter().find(|(.., version)| version.is_good());
        BackupSourceView {
            id: id.to_string(),
            name: shape::agent_name(&views, id),
            started: known.started.map(|name| name.to_string()),
            changed: known.changed,
            watch: matches!(when, When::Continuous { .. }).then(|| match known.watch {
                None => "not_watched".into(),
                Some(watch) => match watch.refused {
                    None => "watched".into(),
                    Some(reason) => format!("refused: {}", shape::refusal(reason)),
                },
            }),
            newest: newest.map(|(name, ..)| name.to_string()),
            versions: versions.len() as u64,
        }
    };
    Ok(Json(BackupView {
        job: id.to_string(),
        job_name: job.name.to_string(),
        when: when_shape(when),
        keep: keep_shape(keep),
        next_start: next_start(&views, id, views.now()).map(|at| at.to_string()),
        sources: all.into_iter().map(source).collect(),
        as_of: views.position(),
    }))
}

/// Versions of a backup at each storage agent, the newest first.
#[utoipa::path(get, path = "/api/v1/backups/{job}/versions", tag = "backups",
    params(("job" = String, Path,), VersionsQuery),
    responses((status = 200, body = VersionsView), (status = 404, body = ErrorView)))]
pub(super) async fn versions(
    State(api): State<Api>,
    Path(job): Path<String>,
    Query(query): Query<VersionsQuery>,
) -> Result<Json<VersionsView>, ApiError> {
    let VersionsQuery { limit, after, at, source } = query;
    let page = Page { limit, after, at };
    let views = api.sight(page.at.as_ref()).await?;
    let (_, backup) = known(&views, &job)?;
    let wanted = source.map(|text| resolve::agent(&views, &text)).transpose()?;
    let after = page.after::<Place>()?;
    let mut all: Vec<(Place, &Version)> = Vec::new();
    for ((storage, source), shelf) in &backup.shelves {
        if wanted.is_none_or(|wanted| wanted == *source) {
            let places = shelf
                .versions
                .iter()
                .map(|(name, version)| (Place { name: *name, source: *source, storage: *storage }, version));
            all.extend(places);
        }
    }
    all.sort_unstable_by_key(|(place, _)| std::cmp::Reverse(*place));
    let mut rest = all.into_iter().filter(|(place, _)| after.is_none_or(|after| *place < after));
    let shown: Vec<(Place, &Version)> = rest.by_ref().take(page.limit()).collect();
    let next = rest.next().and_then(|_| shown.last()).map(|(place, _)| place.to_string());
    let versions = shown.into_iter().map(|(place, version)| view(&views, place, version)).collect();
    Ok(Json(VersionsView { versions, next, as_of: views.position() }))
}

/// Which version of whose where: a place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    name: VersionName,
    source: AgentId,
    storage: AgentId,
}

/// `2026-11-23T013000Z,<source>,<storage>`.
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{},{}", self.name, self.source, self.storage)
    }
}

impl std::str::FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(',');
        let mut part = || parts.next().ok_or(());
        let name = part()?.parse().map_err(drop)?;
        let (source, storage) = (part()?.parse().map_err(drop)?, part()?.parse().map_err(drop)?);
        Ok(Self { name, source, storage })
    }
}

fn view(views: &Views, place: Place, version: &Version) -> VersionView {
    let (path, path_hex) = shape::path(&version.shelf);
    let state = match (version.complete, version.shrunk) {
        (false, _) => "incomplete",
        (true, true) => "shrunk",
        (true, false) => "complete",
    };
    VersionView {
        version: place.name.to_string(),
        source: shape::agent_name(views, place.source),
        source_id: place.source.to_string(),
        storage: shape::agent_name(views, place.storage),
        storage_id: place.storage.to_string(),
        state: state.into(),
        entries: version.entries,
        bytes: version.bytes,
        run: version.run.to_string(),
        path,
        path_hex,
    }
}

/// Gives a version back, all of it or a file or folder of it: starts a run from a storage agent. What is at its
/// destination and differs is kept in the archive of that folder; what the version does not have stays.
#[utoipa::path(post, path = "/api/v1/backups/{job}/restore", tag = "backups", params(("job" = String, Path,)),
    request_body = RestoreWish,
    responses((status = 201, body = RestoreStarted), (status = 400, body = ErrorView), (status = 409, body = ErrorView)))]
pub(super) async fn restore(
    State(api): State<Api>,
    Path(job): Path<String>,
    Json(wish): Json<RestoreWish>,
) -> Result<(StatusCode, Json<RestoreStarted>), ApiError> {
    let run = Ids(now()).run();
    let asked = {
        let views = api.service.views();
        let (job, _) = known(&views, &job)?;
        let agent = |text: &String| resolve::agent(&views, text);
        Restore {
            run,
            job,
            source: resolve::agent(&views, &wish.source)?,
            which: which(&wish)?,
            path: bytes("path", &wish.path, &wish.path_hex)?.unwrap_or_default(),
            to: wish.to.as_ref().map(agent).transpose()?,
            folder: bytes("folder", &wish.folder, &wish.folder_hex)?,
            from: wish.from.as_ref().map(agent).transpose()?,
        }
    };
    api.service
        .decide(Origin::operator(OPERATOR, format!("run/{run}")), move |state, _| {
            restore::decide(state, &asked)
        })
        .await?;
    let views = api.service.views();
    let known = views.runs.runs.get(&run).ok_or_else(|| ApiError::not_found(format!("no run {run}")))?;
    let storage = known.source().map_or_else(String::new, |id| shape::agent_name(&views, id));
    let version = match &known.purpose {
        Purpose::Restore { version, .. } => version.clone(),
        Purpose::Plain | Purpose::Version { .. } => String::new(),
    };
    let receives = known.agents.iter().find(|(_, part)| part.role == Role::Destination);
    let (id, part) = receives.ok_or_else(|| ApiError::not_found(format!("no destination of {run}")))?;
    let (path, path_hex) = shape::path(known.path(part));
    let (kind, name) = ("agent".into(), shape::agent_name(&views, *id));
    let to = PlaceView { kind, id: id.to_string(), name, path, path_hex };
    Ok((StatusCode::CREATED, Json(RestoreStarted { run: run.to_string(), version, storage, to })))
}

fn which(wish: &RestoreWish) -> Result<Which, ApiError> {
    match (wish.version.as_deref(), wish.at.as_deref()) {
        (Some(_), Some(_)) => Err(ApiError::invalid("say version or at, not both")),
        (None | Some("latest"), None) => Ok(Which::Latest),
        (Some(name), None) => {
            name.parse().map(Which::Named).map_err(|error| ApiError::invalid(error.to_string()))
        }
        (None, Some(time)) => match time.parse() {
            Ok(At::Time(time)) => Ok(Which::At(time)),
            _ => Err(ApiError::invalid("at is a time such as 2026-11-23T01:30:00Z")),
        },
    }
}

fn bytes(what: &str, text: &Option<String>, hex: &Option<String>) -> Result<Option<Vec<u8>>, ApiError> {
    match (text, hex) {
        (None, None) => Ok(None),
        (Some(text), None) => Ok(Some(text.clone().into_bytes())),
        (None, Some(hex)) => {
            let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(hex.as_bytes());
            bytes.map(Some).map_err(|_| ApiError::invalid(format!("{what}_hex is not hex")))
        }
        (Some(_), Some(_)) => Err(ApiError::invalid(format!("say {what} or {what}_hex, not both"))),
    }
}

fn no_backup() -> ApiError {
    ApiError::invalid("this job is no backup: it keeps no versions")
}

fn known<'v>(views: &'v Views, job: &str) -> Result<(JobId, &'v Backup), ApiError> {
    let id = resolve::job(views, job)?;
    views.backups.jobs.get(&id).map(|backup| (id, backup)).ok_or_else(no_backup)
}

/// When a backup is started, as it is asked for; limits are held by who decides.
pub(super) fn when(wish: &WhenShape) -> Result<When, ApiError> {
    let WhenShape { kind, minutes, expression, quiet_seconds } = wish;
    match (kind.as_str(), minutes, expression, quiet_seconds) {
        ("manual", None, None, None) => Ok(When::Manual),
        ("every", Some(minutes), None, None) => Ok(When::Every { minutes: *minutes }),
        ("calendar", None, Some(expression), None) => Ok(When::Calendar { expression: expression.clone() }),
        ("continuous", Some(minutes), None, Some(quiet_seconds)) => {
            Ok(When::Continuous { quiet_seconds: *quiet_seconds, minutes: *minutes })
        }
        _ => Err(ApiError::invalid(
            "a backup is started manual, every (minutes), calendar (expression) or continuous (quiet_seconds, minutes)",
        )),
    }
}

pub(super) fn when_shape(when: &When) -> WhenShape {
    let none = WhenShape { kind: "manual".into(), minutes: None, expression: None, quiet_seconds: None };
    match when {
        When::Manual => none,
        When::Every { minutes } => WhenShape { kind: "every".into(), minutes: Some(*minutes), ..none },
        When::Calendar { expression } => {
            WhenShape { kind: "calendar".into(), expression: Some(expression.clone()), ..none }
        }
        When::Continuous { quiet_seconds, minutes } => WhenShape {
            kind: "continuous".into(),
            minutes: Some(*minutes),
            quiet_seconds: Some(*quiet_seconds),
            ..none
        },
    }
}

pub(super) fn keep(wish: &KeepShape) -> Keep {
    let KeepShape { last, hourly, daily, weekly, monthly, yearly, within_days } = *wish;
    Keep { last, hourly, daily, weekly, monthly, yearly, within_days }
}

pub(super) fn keep_shape(keep: &Keep) -> KeepShape {
    let Keep { last, hourly, daily, weekly, monthly, yearly, within_days } = *keep;
    KeepShape { last, hourly, daily, weekly, monthly, yearly, within_days }
}

pub(super) fn options(wish: Option<&OptionsShape>) -> Private<RunOptions> {
    let options = wish.map(|wish| {
        let OptionsShape { ignore, first, hook, hook_timeout_s } = wish.clone();
        RunOptions { rules: ignore, first, hook, hook_timeout_s }
    });
    options.unwrap_or_default().into()
}

/// None if nothing is asked, or it cannot be read.
pub(super) fn options_shape(options: &RunOptions) -> Option<OptionsShape> {
    let RunOptions { rules, first, hook, hook_timeout_s } = options.clone();
    (!options.is_none()).then_some(OptionsShape { ignore: rules, first, hook, hook_timeout_s })
}

pub(super) fn purpose(views: &Views, purpose: &Purpose) -> Option<PurposeView> {
    match purpose {
        Purpose::Plain => None,
        Purpose::Version { name } => {
            Some(PurposeView { kind: "version".into(), version: name.clone(), of: None })
        }
        Purpose::Restore { of, version } => Some(PurposeView {
            kind: "restore".into(),
            version: version.clone(),
            of: Some(shape::agent_name(views, *of)),
        }),
    }
}

/// The same for programs that read the log.
pub(crate) fn purpose_data(purpose: &Purpose) -> Value {
    match purpose {
        Purpose::Plain => json!({"kind": "plain"}),
        Purpose::Version { name } => json!({"kind": "version", "version": name}),
        Purpose::Restore { of, version } => json!({"kind": "restore", "version": version, "of": of}),
    }
}

/// See [`purpose_data`]; what cannot be read is the word for it.
pub(crate) fn options_data(options: &Private<RunOptions>) -> Value {
    options.legible().map_or_else(|| options.word().into(), options_of)
}

pub(crate) fn options_of(options: &RunOptions) -> Value {
    let RunOptions { rules, first, hook, hook_timeout_s } = options;
    json!({"ignore": rules, "first": first, "hook": hook, "hook_timeout_s": hook_timeout_s})
}

pub(crate) fn failed_data(failed: &[event_schema::NotThinned]) -> Vec<Value> {
    failed.iter().map(|failed| json!({"version": failed.version, "why": failed.why.name()})).collect()
}

/// An event of a backup in words.
pub(super) fn summary(event: &Event, name: &dyn Fn(AgentId) -> String) -> String {
    match event {
        Event::BackupVersionKept(e) => {
            let (agent, source, version) = (name(e.agent), name(e.source), &e.version);
            let suspicious =
                if e.shrunk { "; so much less than before that a disk may be missing" } else { "" };
            let part = if e.complete { "" } else { " in part" };
            match e.unchanged {
                true => format!("{agent} has {source} already: nothing changed since version {version}"),
                false => format!(
                    "{agent} keeps version {version} of {source}{part}: {} entries, {} bytes{suspicious}",
                    e.entries, e.bytes
                ),
            }
        }
        Event::BackupThinned(e) => {
            let failed = match e.failed.len() {
                0 => String::new(),
                failed => format!("; {failed} could not be removed"),
            };
            format!("{} removed {} versions of {}{failed}", name(e.agent), e.removed.len(), name(e.source))
        }
        Event::BackupSourceChanged(e) => format!("the folder of {} has changed", name(e.agent)),
        _ => event.name().into(),
    }
}

/// An event of a backup for programs.
pub(super) fn data(event: &Event) -> Value {
    match event {
        Event::BackupVersionKept(e) => {
            let (path, path_hex) = shape::path(&e.shelf);
            json!({
                "run": e.run, "job": e.job, "agent": e.agent, "source": e.source, "version": e.version,
                "complete": e.complete, "shrunk": e.shrunk, "unchanged": e.unchanged, "entries": e.entries,
                "bytes": e.bytes, "path": path, "path_hex": path_hex,
            })
        }
        Event::BackupThinned(e) => json!({
            "job": e.job, "agent": e.agent, "source": e.source, "removed": e.removed,
            "failed": failed_data(&e.failed),
        }),
        Event::BackupSourceChanged(e) => json!({"job": e.job, "agent": e.agent}),
        _ => Value::Null,
    }
}
