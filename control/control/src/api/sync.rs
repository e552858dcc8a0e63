//! Synchronizations: `/api/v1/runs/{run}/members`, `…/policy`, `…/guard`, `…/conflicts`, and their shapes.

use std::collections::BTreeMap;

use agent_proto::link::SyncPhase;
use axum::extract::{Path, State};
use control_core::projection::{self as core, Views};
use control_core::sync::{self, Command};
use event_schema::{
    AgentId, ArchiveLimits, ConflictText, Event, GuardAnswer, LocalChanges, Party, Permission, RunAgentState,
    RunId, Selection, Share, SyncPolicy,
};
use serde_json::{Value, json};

use super::error::{Json, Query};
use super::sight::Moment;
use super::sync_view::{
    BlockedView, ConflictView, ConflictsView, GuardView, GuardWish, PolicyView, PolicyWish, ShareView,
    ShareWish, SharesWish, SyncMemberView, SyncView,
};
use super::view::{ErrorView, PlaceWish, RunView};
use super::{Api, ApiError, OPERATOR, resolve, runs, shape};
use crate::service::{Live, Origin};

/// Lets others take part in a synchronization that runs, takes some out, or gives some other rights.
#[utoipa::path(post, path = "/api/v1/runs/{run}/members", tag = "synchronizations", params(("run" = String, Path,)),
    request_body = SharesWish,
    responses((status = 200, body = RunView), (status = 400, body = ErrorView), (status = 404, body = ErrorView),
        (status = 409, body = ErrorView)))]
pub(super) async fn members(
    State(api): State<Api>,
    Path(run): Path<String>,
    Json(wish): Json<SharesWish>,
) -> Result<Json<RunView>, ApiError> {
    let (run, add, remove) = {
        let views = api.service.views();
        let run = resolve::run(&views, &run)?;
        let remove: Result<Vec<Party>, _> =
            wish.remove.iter().map(|party| resolve::party(&views, party)).collect();
        (run, shares(&views, &wish.add)?, remove?)
    };
    if add.is_empty() && remove.is_empty() {
        return Err(ApiError::invalid("name whom to add or to remove"));
    }
    decide(&api, run, Command::Members { run, add, remove }).await
}

/// Sets what holds for all members of a synchronization that runs.
#[utoipa::path(put, path = "/api/v1/runs/{run}/policy", tag = "synchronizations", params(("run" = String, Path,)),
    request_body = PolicyWish,
    responses((status = 200, body = RunView), (status = 400, body = ErrorView), (status = 409, body = ErrorView)))]
pub(super) async fn set_policy(
    State(api): State<Api>,
    Path(run): Path<String>,
    Json(wish): Json<PolicyWish>,
) -> Result<Json<RunView>, ApiError> {
    let (run, before) = {
        let views = api.service.views();
        let run = resolve::run(&views, &run)?;
        let sync = views.runs.runs.get(&run).and_then(|run| run.sync.as_ref());
        (run, sync.map(|sync| sync.policy).unwrap_or_default())
    };
    let policy = policy(&wish, before)?;
    decide(&api, run, Command::Policy { run, policy }).await
}

/// Answers the guard of a member.
#[utoipa::path(post, path = "/api/v1/runs/{run}/guard", tag = "synchronizations", params(("run" = String, Path,)),
    request_body = GuardWish,
    responses((status = 200, body = RunView), (status = 400, body = ErrorView), (status = 409, body = ErrorView)))]
pub(super) async fn guard(
    State(api): State<Api>,
    Path(run): Path<String>,
    Json(wish): Json<GuardWish>,
) -> Result<Json<RunView>, ApiError> {
    let (run, agent) = {
        let views = api.service.views();
        (resolve::run(&views, &run)?, resolve::agent(&views, &wish.agent)?)
    };
    let answer = match wish.answer.as_str() {
        "delete" => GuardAnswer::Delete,
        "restore" => GuardAnswer::Restore,
        other => return Err(ApiError::invalid(format!("the answer is delete or restore, not {other}"))),
    };
    decide(&api, run, Command::AnswerGuard { run, agent, answer }).await
}

async fn decide(api: &Api, run: RunId, command: Command) -> Result<Json<RunView>, ApiError> {
    let origin = Origin::operator(OPERATOR, format!("run/{run}"));
    api.service.decide(origin, move |state, _| sync::decide(state, command.clone())).await?;
    runs::shown(&api.service.views(), api.service.telemetry(), run)
}

/// Conflicts of a synchronization that nobody has seen to.
#[utoipa::path(get, path = "/api/v1/runs/{run}/conflicts", tag = "synchronizations",
    params(("run" = String, Path,), Moment),
    responses((status = 200, body = ConflictsView), (status = 404, body = ErrorView), (status = 409, body = ErrorView)))]
pub(super) async fn conflicts(
    State(api): State<Api>,
    Path(run): Path<String>,
    Query(query): Query<Moment>,
) -> Result<Json<ConflictsView>, ApiError> {
    let views = api.sight(query.at.as_ref()).await?;
    let id = resolve::run(&views, &run)?;
    let run = views.runs.runs.get(&id).ok_or_else(|| ApiError::not_found(format!("no run {id}")))?;
    let Some(sync) = &run.sync else {
        return Err(ApiError::conflict("this run does not synchronize: it has no conflicts"));
    };
    let mut found: Vec<&core::FileConflictView> = sync.conflicts.values().collect();
    found.sort_by_key(|conflict| conflict.found);
    let conflicts = found.into_iter().map(|conflict| self::conflict(&views, conflict)).collect();
    Ok(Json(ConflictsView { conflicts, settled: sync.settled, as_of: views.position() }))
}

fn conflict(views: &Views, conflict: &core::FileConflictView) -> ConflictView {
    let ConflictText { path, copy } = &*conflict.text;
    let ((path, path_hex), (copy, copy_hex)) = (shape::path(path), shape::path(copy));
    ConflictView {
        path,
        path_hex,
        copy,
        copy_hex,
        winner: shape::agent_name(views, conflict.winner),
        loser: shape::agent_name(views, conflict.loser),
        found_by: shape::agent_name(views, conflict.agent),
        found: conflict.found.to_string(),
    }
}

/// Members as they are asked for.
pub(super) fn shares(views: &Views, wishes: &[ShareWish]) -> Result<Vec<Share>, ApiError> {
    let share = |wish: &ShareWish| {
        let ShareWish { party, path, path_hex, permission, ignore, wanted } = wish.clone();
        let place = resolve::place(views, &PlaceWish { party, path, path_hex })?;
        let permission = parse_permission(permission.as_deref().unwrap_or("read_write"))?;
        let selection = Selection { ignore, wanted }.into();
        Ok(Share { party: place.party, path: place.path, permission, selection })
    };
    wishes.iter().map(share).collect()
}

fn parse_permission(text: &str) -> Result<Permission, ApiError> {
    [
        Permission::ReadWrite,
        Permission::ReadOnly { local: LocalChanges::KeepAside },
        Permission::ReadOnly { local: LocalChanges::Revert },
    ]
    .into_iter()
    .find(|permission| permission.name() == text)
    .ok_or_else(|| {
        ApiError::invalid(format!("a permission is read_write, read_only or read_only_revert, not {text}"))
    })
}

/// A policy with what is wished for.
pub(super) fn policy(wish: &PolicyWish, before: SyncPolicy) -> Result<SyncPolicy, ApiError> {
    Ok(SyncPolicy {
        archive: match &wish.archive {
            Some(text) => parse_archive(text)?,
            None => before.archive,
        },
        guard_percent: wish.guard_percent.unwrap_or(before.guard_percent),
        guard_min: wish.guard_min.unwrap_or(before.guard_min),
    })
}

/// Units of an archive's size, the largest first.
const UNITS: [(&str, u64); 5] =
    [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000), ("B", 1)];

fn parse_archive(text: &str) -> Result<Option<ArchiveLimits>, ApiError> {
    let wrong = || {
        ApiError::invalid(format!(
            "an archive is kept for DAYSd (30d), up to a size (10GB), both (30d,10GB), unlimited or none, not {text}"
        ))
    };
    let mut limits = ArchiveLimits { max_age_days: None, max_bytes: None };
    match text {
        "none" => return Ok(None),
        "unlimited" => return Ok(Some(limits)),
        _ => {}
    }
    for part in text.split(',') {
        if let Some(days) = part.strip_suffix('d') {
            let days = days.parse().map_err(|_| wrong())?;
            if limits.max_age_days.replace(days).is_some() {
                return Err(wrong());
            }
            continue;
        }
        let (number, unit) = UNITS
            .into_iter()
            .find_map(|(name, unit)| Some((part.strip_suffix(name)?, unit)))
            .ok_or_else(wrong)?;
        let number: u64 = number.trim_end().parse().map_err(|_| wrong())?;
        let bytes = number.checked_mul(unit).ok_or_else(wrong)?;
        if limits.max_bytes.replace(bytes).is_some() {
            return Err(wrong());
        }
    }
    Ok(Some(limits))
}

fn archive(archive: Option<ArchiveLimits>) -> String {
    let Some(ArchiveLimits { max_age_days, max_bytes }) = archive else { return "none".into() };
    let size = |bytes: u64| {
        let (name, unit) =
            UNITS.into_iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit)).unwrap_or(("B", 1));
        format!("{}{name}", bytes / unit)
    };
    let parts = [max_age_days.map(|days| format!("{days}d")), max_bytes.map(size)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "unlimited".into() } else { parts.join(",") }
}

pub(super) fn policy_view(policy: &SyncPolicy) -> PolicyView {
    let SyncPolicy { archive: limits, guard_percent, guard_min } = *policy;
    PolicyView { archive: archive(limits), guard_percent, guard_min }
}

pub(super) fn share_view(views: &Views, share: &Share) -> ShareView {
    let place = event_schema::Place { party: share.party, path: share.path.clone() };
    let place = shape::place(views, &place);
    let Selection { ignore, wanted } = (*share.selection).clone();
    ShareView {
        kind: place.kind,
        id: place.id,
        name: place.name,
        path: place.path,
        path_hex: place.path_hex,
        permission: share.permission.name().into(),
        ignore,
        wanted,
    }
}

/// A member of a run, if it is one.
pub(super) fn member(
    run: &core::RunView,
    part: &core::RunAgentView,
    online: bool,
    live: Option<&Live>,
) -> Option<SyncMemberView> {
    let member = part.member.as_ref()?;
    let told = live.and_then(|live| live.progress.sync);
    let selection = run.selection(member).cloned().unwrap_or_default();
    let blocked = member.blocked.values().map(|view| {
        let (path, path_hex) = shape::path(&view.text.path);
        let by = Some(shape::path(&view.text.by).0).filter(|by| !by.is_empty());
        let (obstacle, since) = (view.obstacle.name().into(), view.time.to_string());
        BlockedView { path, path_hex, obstacle, by, since }
    });
    let blocked: Vec<BlockedView> = blocked.collect();
    let guard = member.guard.map(|guard| GuardView {
        since: guard.since.to_string(),
        missing: guard.missing,
        total: guard.total,
        answer: guard.answer.map(|answer| answer.name().into()),
    });
    let phase = told.map(|told| told.phase);
    let standing = match part.state {
        RunAgentState::Failed => "failed",
        RunAgentState::Stopped => "stopped",
        _ if guard.is_some() => "guarded",
        _ if !online => "away",
        RunAgentState::Stalled => "stalled",
        _ => match phase {
            None => "waiting",
            Some(phase) => phase.name(),
        },
    };
    Some(SyncMemberView {
        permission: member.permission.name().into(),
        ignore: selection.ignore,
        wanted: selection.wanted,
        left: member.left,
        standing: standing.into(),
        entries: told.map_or(0, |told| told.entries),
        left_entries: told.map_or(0, |told| told.left),
        left_bytes: told.map_or(0, |told| told.bytes_left),
        conflicts: told.map_or(0, |told| told.conflicts),
        guard,
        blocked_total: told.map_or(0, |told| told.blocked).max(blocked.len() as u64),
        blocked,
        rolled_back: member.rolled_back,
    })
}

/// A run that synchronizes, from its members as they are shown: name and shape of each.
pub(super) fn sync(run: &core::RunView, members: &[(&str, &SyncMemberView)]) -> Option<SyncView> {
    let sync = run.sync.as_ref()?;
    let current: Vec<_> = members.iter().filter(|(_, member)| !member.left).collect();
    let count = |standings: &[&str]| {
        current.iter().filter(|(_, member)| standings.contains(&member.standing.as_str())).count() as u64
    };
    let all = current.len() as u64;
    let (in_sync, behind) = (count(&[SyncPhase::InSync.name()]), count(&["waiting", "scanning", "syncing"]));
    let (away, failing) = (count(&["away"]), count(&["failed", "stalled", "no_folder"]));
    let conflicts = sync.conflicts.len() as u64;
    let blocked = shape::total(current.iter().map(|(_, member)| member.blocked_total));
    let asking: Vec<&str> = current
        .iter()
        .filter(|(_, member)| member.guard.as_ref().is_some_and(|guard| guard.answer.is_none()))
        .map(|(name, _)| *name)
        .collect();
    let mut parts = Vec::new();
    if run.outcome.is_none() {
        if let Some(first) = asking.first() {
            let more = asking.len() - 1;
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            parts.push(format!("guard asks at {first}{more}"));
        }
        if failing > 0 {
            parts.push(format!("{failing} of {all} failing"));
        }
        if behind > 0 {
            parts.push(format!("{behind} of {all} behind"));
        }
        if away > 0 {
            parts.push(format!("{away} of {all} away"));
        }
        if in_sync == all {
            parts.push("in sync".into());
        }
    } else {
        parts.push("stopped".into());
    }
    match conflicts {
        0 => {}
        1 => parts.push("1 conflict".into()),
        n => parts.push(format!("{n} conflicts")),
    }
    match blocked {
        0 => {}
        1 => parts.push("1 path blocked".into()),
        n => parts.push(format!("{n} paths blocked")),
    }
    Some(SyncView {
        status: parts.join(", "),
        members: all,
        in_sync,
        behind,
        away,
        failing,
        guarded: count(&["guarded"]),
        conflicts,
        conflicts_settled: sync.settled,
        blocked,
        policy: policy_view(&sync.policy),
        revision: sync.revision,
    })
}

/// An event of synchronizations in words, one line.
pub(super) fn summary(event: &Event, name: &dyn Fn(AgentId) -> String) -> String {
    let line = |bytes: &[u8]| shape::escape_bytes(bytes);
    match event {
        Event::RunMembersSet(e) => {
            let writers = e.members.iter().filter(|member| member.permission.may_write()).count();
            let count = e.members.len();
            format!(
                "revision {}: {count} {}, {writers} may write",
                e.revision,
                if count == 1 { "member" } else { "members" }
            )
        }
        Event::RunConflictFound(e) => format!(
            "{} and {} changed {} at once: the change of {} is in {}",
            name(e.winner),
            name(e.loser),
            line(&e.text.path),
            name(e.loser),
            line(&e.text.copy)
        ),
        Event::RunConflictSettled(e) => {
            format!("{}: the copy of a conflict is gone", name(e.agent))
        }
        Event::RunGuardRaised(e) => format!(
            "{} misses {} of {} entries and asks before it deletes them everywhere",
            name(e.agent),
            e.missing,
            e.total
        ),
        Event::RunGuardAnswered(e) => format!("{} is to {}", name(e.agent), e.answer.name()),
        Event::RunGuardLifted(e) => match e.answer {
            Some(answer) => format!("{} did as it was told: {}", name(e.agent), answer.name()),
            None => format!("{} has back what was missing", name(e.agent)),
        },
        Event::RunPathBlocked(e) => {
            let obstacle = e.obstacle.name().replace('_', " ");
            format!("{}: {} cannot be there: {obstacle}", name(e.agent), line(&e.text.path))
        }
        Event::RunPathUnblocked(e) => format!("{}: a path is blocked no more", name(e.agent)),
        Event::RunRolledBack(e) => {
            format!("{} has an older copy of its index: it counts anew", name(e.agent))
        }
        _ => String::new(),
    }
}

/// Its fields for programs.
pub(super) fn data(event: &Event) -> Value {
    match event {
        Event::RunMembersSet(e) => {
            let member = |member: &event_schema::RunMember| {
                let (path, path_hex) = shape::path(event_schema::path_of(&e.paths, member.path));
                let selection = e.selections.get(usize::from(member.selection)).cloned().unwrap_or_default();
                json!({
                    "agent": member.agent, "path": path, "path_hex": path_hex,
                    "permission": member.permission.name(), "ignore": selection.ignore,
                    "wanted": selection.wanted,
                })
            };
            json!({
                "run": e.run, "job": e.job, "revision": e.revision, "policy": policy_data(&e.policy),
                "members": e.members.iter().map(member).collect::<Vec<_>>(),
            })
        }
        Event::RunConflictFound(e) => {
            let ((path, path_hex), (copy, copy_hex)) = (shape::path(&e.text.path), shape::path(&e.text.copy));
            json!({
                "run": e.run, "agent": e.agent, "conflict": conflict_key(&e.conflict), "loser": e.loser,
                "winner": e.winner, "path": path, "path_hex": path_hex, "copy": copy, "copy_hex": copy_hex,
            })
        }
        Event::RunConflictSettled(e) => {
            json!({"run": e.run, "agent": e.agent, "conflict": conflict_key(&e.conflict)})
        }
        Event::RunGuardRaised(e) => json!({
            "run": e.run, "agent": e.agent, "guard": e.guard, "missing": e.missing, "total": e.total,
        }),
        Event::RunGuardAnswered(e) => {
            json!({"run": e.run, "agent": e.agent, "guard": e.guard, "answer": e.answer.name()})
        }
        Event::RunGuardLifted(e) => json!({
            "run": e.run, "agent": e.agent, "guard": e.guard, "answer": e.answer.map(GuardAnswer::name),
        }),
        Event::RunPathBlocked(e) => {
            let ((path, path_hex), (by, by_hex)) = (shape::path(&e.text.path), shape::path(&e.text.by));
            json!({
                "run": e.run, "agent": e.agent, "number": e.number, "obstacle": e.obstacle.name(),
                "path": path, "path_hex": path_hex, "by": by, "by_hex": by_hex,
            })
        }
        Event::RunPathUnblocked(e) => json!({"run": e.run, "agent": e.agent, "number": e.number}),
        Event::RunRolledBack(e) => json!({"run": e.run, "agent": e.agent}),
        _ => Value::Null,
    }
}

/// A policy's fields for programs.
pub(crate) fn policy_data(policy: &SyncPolicy) -> Value {
    let SyncPolicy { archive, guard_percent, guard_min } = policy;
    let archive =
        archive.map(|limits| json!({"max_age_days": limits.max_age_days, "max_bytes": limits.max_bytes}));
    json!({"archive": archive, "guard_percent": guard_percent, "guard_min": guard_min})
}

/// What names a conflict: `<agent>-<replica><change>`, as in its copy's name.
pub(crate) fn conflict_key(key: &event_schema::ConflictKey) -> String {
    format!("{}-{}{}", shape::hex(&key.agent), shape::hex(&key.replica), key.change)
}

/// Members of a job for programs.
pub(super) fn share_data(share: &Share, place: Value) -> Value {
    let mut place = place;
    if let Value::Object(fields) = &mut place {
        let Selection { ignore, wanted } = &*share.selection;
        let more: BTreeMap<&str, Value> = BTreeMap::from([
            ("permission", json!(share.permission.name())),
            ("ignore", json!(ignore)),
            ("wanted", json!(wanted)),
        ]);
        fields.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value)));
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_written_and_read() {
        for text in ["none", "unlimited", "30d", "10GB", "30d,1500MB", "1B", "7d,2TB"] {
            assert_eq!(archive(parse_archive(text).expect(text)), text);
        }
        assert_eq!(archive(parse_archive("10 GB,30d").expect("in another order")), "30d,10GB");
        for bad in
            ["", "d", "30", "-1d", "1.5d", "GB", "30d,30d", "1GB,2GB", "30d,", "99999999TB", "none,30d"]
        {
            assert!(parse_archive(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn permissions_have_names() {
        for name in ["read_write", "read_only", "read_only_revert"] {
            assert_eq!(parse_permission(name).expect(name).name(), name);
        }
        assert!(parse_permission("rw").is_err());
    }

    #[test]
    fn the_most_urgent_is_told_first() {
        let member = |standing: &str| SyncMemberView {
            permission: "read_write".into(),
            ignore: vec![],
            wanted: vec![],
            left: false,
            standing: standing.into(),
            entries: 0,
            left_entries: 0,
            left_bytes: 0,
            conflicts: 0,
            guard: None,
            blocked: vec![],
            blocked_total: 0,
            rolled_back: 0,
        };
        let mut run = shape::tests::empty_run();
        run.sync = Some(core::SyncView {
            revision: 1,
            policy: SyncPolicy::default(),
            selections: vec![].into(),
            conflicts: BTreeMap::new(),
            settled: 0,
        });
        let status = |run: &core::RunView, members: &[SyncMemberView]| {
            let named: Vec<_> = members.iter().map(|member| ("nas", member)).collect();
            sync(run, &named).expect("it synchronizes").status
        };
        let both = [member("in_sync"), member("in_sync")];
        assert_eq!(status(&run, &both), "in sync");
        let left = SyncMemberView { left: true, ..member("syncing") };
        assert_eq!(status(&run, &[member("in_sync"), left]), "in sync");
        let guard = Some(GuardView { since: String::new(), missing: 30, total: 40, answer: None });
        let asks = SyncMemberView { guard, blocked_total: 2, ..member("guarded") };
        assert_eq!(
            status(&run, &[asks, member("syncing"), member("away"), member("failed"), member("in_sync")]),
            "guard asks at nas, 1 of 5 failing, 1 of 5 behind, 1 of 5 away, 2 paths blocked"
        );
        run.outcome = Some(event_schema::Outcome::Stopped);
        assert_eq!(status(&run, &both), "stopped");
    }
}
