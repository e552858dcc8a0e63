//! Projections and events in the shapes of the API.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use agent_proto::limits::TRY_LEN_MAX;
use control_core::projection::{self as core, Views};
use event_schema::{
    Actor, AgentId, Command, Event, GroupId, JobId, JobSpec, Outcome, Party, Place, ProblemClass, Record,
    RefusalReason, Report, ReportBody, Role, RunAgentState, RunId, Timestamp, TokenId, TransferStats,
};
use serde_json::{Value, json};

use super::view::*;
use super::{backups, batches, sync};
use crate::service::{Live, Telemetry};

/// Problems in one answer.
const PROBLEMS_MAX: usize = 1_000;

pub(super) fn tags(tags: &[(String, String)]) -> BTreeMap<String, String> {
    tags.iter().cloned().collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// A path's text, and its bytes if they are no UTF-8.
pub(crate) fn path(bytes: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.into(), None),
        Err(_) => (String::from_utf8_lossy(bytes).into(), Some(hex(bytes))),
    }
}

/// Bytes as one line for a terminal, from which they can be got back: control characters and bytes that
/// are no UTF-8 as `\n`, `\x1b`, `\xff`, the backslash as `\\`.
pub(crate) fn escape_bytes(bytes: &[u8]) -> String {
    let mut line = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => line.push_str("\\\\"),
                '\n' => line.push_str("\\n"),
                '\r' => line.push_str("\\r"),
                '\t' => line.push_str("\\t"),
                // Direction marks could make a path look like another.
                c if c.is_control()
                    || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}' | '\u{2066}'..='\u{2069}') =>
                {
                    for byte in c.to_string().bytes() {
                        let _ = write!(line, "\\x{byte:02x}");
                    }
                }
                c => line.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(line, "\\x{byte:02x}");
        }
    }
    line
}

/// What an agent tells in words, as it may be shown.
pub(super) fn text(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TRY_LEN_MAX).collect()
}

pub(super) fn agent_state(agent: &core::AgentView) -> &'static str {
    match (agent.standing, agent.online) {
        (core::StandingView::Pending, _) => "pending",
        (core::StandingView::Removed, _) => "removed",
        (core::StandingView::Approved, true) => "online",
        (core::StandingView::Approved, false) => "offline",
    }
}

pub(super) fn agent(views: &Views, id: AgentId, agent: &core::AgentView) -> AgentView {
    let groups = views.fleet.groups.values().filter(|group| group.members.contains(&id));
    AgentView {
        id: id.to_string(),
        name: agent.name.to_string(),
        state: agent_state(agent).into(),
        tags: tags(&agent.tags),
        version: agent.version.clone(),
        addresses: agent.addresses.to_vec(),
        last_seen: agent.last_seen.to_string(),
        enrolled: agent.enrolled.to_string(),
        public_key: hex(&agent.public_key),
        groups: groups.map(|group| group.name.clone()).collect(),
    }
}

pub(super) fn token(id: TokenId, token: &core::TokenView, now: Timestamp) -> TokenView {
    let state = if token.revoked {
        "revoked"
    } else if token.used_by.len() >= token.uses as usize {
        "spent"
    } else if now > token.expires {
        "expired"
    } else {
        "live"
    };
    TokenView {
        id: id.to_string(),
        state: state.into(),
        tags: tags(&token.tags),
        uses: token.uses,
        used: token.used_by.len() as u32,
        used_by: token.used_by.iter().map(ToString::to_string).collect(),
        created: token.created.to_string(),
        expires: token.expires.to_string(),
    }
}

pub(super) fn group(views: &Views, id: GroupId, group: &core::GroupView) -> GroupView {
    let members = group.members.iter().filter_map(|member| {
        let agent = views.fleet.agents.get(member)?;
        let (id, name) = (member.to_string(), agent.name.to_string());
        Some(MemberView { id, name, state: agent_state(agent).into() })
    });
    GroupView { id: id.to_string(), name: group.name.clone(), members: members.collect() }
}

pub(super) fn job(views: &Views, id: JobId, job: &core::JobView) -> JobView {
    let (kind, source, subfolder, after) = match &job.spec {
        JobSpec::Distribution { source, .. } => ("distribution", Some(place(views, source)), None, None),
        JobSpec::Consolidation { subfolder, after, .. } => {
            ("consolidation", None, Some(subfolder.to_string()), Some(batches::after(*after)))
        }
        JobSpec::Synchronization { .. } => ("synchronization", None, None, None),
        JobSpec::Backup { subfolder, .. } => ("backup", None, Some(subfolder.to_string()), None),
    };
    let (when, keep) = match &job.spec {
        JobSpec::Backup { when, keep, .. } => {
            (Some(backups::when_shape(when)), Some(backups::keep_shape(keep)))
        }
        _ => (None, None),
    };
    let policy = match &job.spec {
        JobSpec::Synchronization { policy, .. } => Some(sync::policy_view(policy)),
        _ => None,
    };
    JobView {
        id: id.to_string(),
        name: job.name.to_string(),
        kind: kind.into(),
        source,
        sources: job.spec.sources().iter().map(|s| place(views, s)).collect(),
        destinations: job.spec.destinations().iter().map(|d| place(views, d)).collect(),
        subfolder,
        after,
        members: job.spec.members().iter().map(|share| sync::share_view(views, share)).collect(),
        policy,
        when,
        keep,
        options: job.spec.options().and_then(|options| backups::options_shape(options)),
        created: job.created.to_string(),
        runs: job.runs.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn place(views: &Views, place: &Place) -> PlaceView {
    let (kind, id, name) = match place.party {
        Party::Agent(id) => ("agent", id.to_string(), agent_name(views, id)),
        Party::Group(id) => {
            let name = views.fleet.groups.get(&id).map_or_else(String::new, |group| group.name.clone());
            ("group", id.to_string(), name)
        }
    };
    let (path, path_hex) = path(&place.path);
    PlaceView { kind: kind.into(), id, name, path, path_hex }
}

/// A place as people write it.
pub(crate) fn bootstrap_place(place: &PlaceView) -> String {
    let prefix = if place.kind == "group" { "group:" } else { "" };
    let path = match &place.path_hex {
        Some(hex) => {
            let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap_or_default();
            escape_bytes(&bytes)
        }
        None => escape_bytes(place.path.as_bytes()),
    };
    format!("{prefix}{}:{path}", place.name)
}

pub(super) fn agent_name(views: &Views, id: AgentId) -> String {
    views.fleet.agents.get(&id).map_or_else(|| id.to_string(), |agent| agent.name.to_string())
}

pub(super) fn run_state(run: &core::RunView) -> &'static str {
    match (run.outcome, run.manifest) {
        (Some(Outcome::Succeeded | Outcome::SucceededWithErrors), _) => "finished",
        (Some(Outcome::Failed), _) => "failed",
        (Some(Outcome::Stopped), _) => "stopped",
        (None, _) if run.sync.is_some() => "synchronizing",
        (None, None) => "preparing",
        (None, Some(_)) => "transferring",
    }
}

pub(super) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "succeeded",
        Outcome::SucceededWithErrors => "succeeded_with_errors",
        Outcome::Failed => "failed",
        Outcome::Stopped => "stopped",
    }
}

pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::Source => "source",
        Role::Destination => "destination",
        Role::Member => "member",
    }
}

pub(super) fn problem_class(class: ProblemClass) -> &'static str {
    match class {
        ProblemClass::DiskFull => "disk_full",
        ProblemClass::PermissionDenied => "permission_denied",
        ProblemClass::NotFound => "not_found",
        ProblemClass::SourceChanged => "source_changed",
        ProblemClass::UnsafeLink => "unsafe_link",
        ProblemClass::UnsafeName => "unsafe_name",
        ProblemClass::UnsupportedKind => "unsupported_kind",
        ProblemClass::CorruptBlock => "corrupt_block",
        ProblemClass::BadManifest => "bad_manifest",
        ProblemClass::LimitExceeded => "limit_exceeded",
        ProblemClass::Io => "io",
        ProblemClass::Internal => "internal",
        ProblemClass::Replaced => "replaced",
        ProblemClass::Damaged => "damaged",
    }
}

pub(super) fn refusal(reason: RefusalReason) -> &'static str {
    match reason {
        RefusalReason::BadSignature => "its signature does not hold",
        RefusalReason::WrongAudience => "it is for another agent",
        RefusalReason::Replayed => "it was seen before",
        RefusalReason::TooEarly => "it is not valid yet",
        RefusalReason::Expired => "it is not valid any more",
        RefusalReason::NotUnderstood => "it is not understood",
        RefusalReason::NotAllowed => "it is not allowed",
        RefusalReason::UnknownToken => "the token is not known",
        RefusalReason::TokenSpent => "the token has no uses left",
        RefusalReason::TokenExpired => "the token has expired or was revoked",
        RefusalReason::Removed => "the agent was removed",
    }
}

pub(super) fn run_summary(views: &Views, id: RunId, run: &core::RunView) -> RunSummary {
    let destinations = run.agents.values().filter(|agent| agent.role == Role::Destination);
    RunSummary {
        id: id.to_string(),
        job: run.job.to_string(),
        job_name: run.job_name.to_string(),
        state: run_state(run).into(),
        outcome: run.outcome.map(|o| outcome(o).into()),
        started: run.started.to_string(),
        finished: run.finished.map(|time| time.to_string()),
        entries: run.manifest.map(|manifest| manifest.entries),
        bytes: run.manifest.map(|manifest| manifest.bytes),
        destinations: destinations.clone().count() as u64,
        destinations_ended: destinations.filter(|agent| agent.state.is_terminal()).count() as u64,
        problems: run.agents.values().map(|agent| agent.problems).sum(),
        source: run.source().map_or_else(String::new, |source| agent_name(views, source)),
        batch: run.batch.map(|batch| batch.to_string()),
        members: run.agents.values().filter_map(|part| part.member.as_ref()).filter(|m| !m.left).count()
            as u64,
        purpose: backups::purpose(views, &run.purpose),
    }
}

pub(super) fn run(views: &Views, telemetry: &Telemetry, id: RunId, run: &core::RunView) -> RunView {
    let now = Instant::now();
    let problems: Vec<(AgentId, ProblemView)> =
        run.problems.iter().map(|p| (p.agent, problem(views, p))).collect();
    let mut agents: Vec<RunAgentView> = run
        .agents
        .iter()
        .map(|(agent, part)| {
            let own = problems.iter().filter(|(of, _)| of == agent).map(|(_, p)| p.clone()).collect();
            run_agent(views, run, *agent, part, telemetry.of(id, *agent, now), own)
        })
        .collect();
    agents.sort_by(|a, b| (a.role != "source", &a.name).cmp(&(b.role != "source", &b.name)));
    let remaining = |agent: &&RunAgentView| {
        let ended = ["done", "done_with_errors", "failed", "stopped"].contains(&agent.state.as_str());
        agent.role == "destination" && !ended
    };
    // The last one to come decides; one that stands still says nothing.
    let etas: Vec<Option<u64>> = agents
        .iter()
        .filter(remaining)
        .map(|agent| {
            let left = agent.bytes_total.checked_sub(agent.bytes_done)?;
            let known = agent.bytes_total > 0;
            let rate = agent.rate_bytes_s;
            (known && (rate > 0 || left == 0)).then(|| left.div_ceil(rate.max(1)))
        })
        .collect();
    let members: Vec<(&str, &super::sync_view::SyncMemberView)> =
        agents.iter().filter_map(|agent| Some((agent.name.as_str(), agent.member.as_ref()?))).collect();
    let synchronizes = sync::sync(run, &members);
    let eta_seconds = if run.outcome.is_some() || run.sync.is_some() {
        None
    } else {
        etas.into_iter().collect::<Option<Vec<_>>>()
    };
    RunView {
        id: id.to_string(),
        job: run.job.to_string(),
        job_name: run.job_name.to_string(),
        state: run_state(run).into(),
        outcome: run.outcome.map(|o| outcome(o).into()),
        stop_reason: run.stop_reason.clone(),
        entries: run.manifest.map(|manifest| manifest.entries),
        bytes: run.manifest.map(|manifest| manifest.bytes),
        blocks: run.manifest.map(|manifest| manifest.blocks),
        started: run.started.to_string(),
        finished: run.finished.map(|time| time.to_string()),
        problems_total: run.agents.values().map(|agent| agent.problems).sum(),
        problems: problems.into_iter().map(|(_, problem)| problem).take(PROBLEMS_MAX).collect(),
        eta_seconds: eta_seconds.and_then(|etas| etas.into_iter().max()),
        rate_bytes_s: total(agents.iter().filter(remaining).map(|agent| agent.rate_bytes_s)),
        agents,
        as_of: views.position(),
        batch: run.batch.map(|batch| batch.to_string()),
        after: batches::after(run.after),
        disposal: batches::disposal(run),
        sync: synchronizes,
        purpose: backups::purpose(views, &run.purpose),
        options: backups::options_shape(&run.options),
        history: None,
    }
}

/// A sum of numbers that agents told, which may be any.
pub(crate) fn total(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

fn run_agent(
    views: &Views,
    run: &core::RunView,
    id: AgentId,
    part: &core::RunAgentView,
    live: Option<Live>,
    problems: Vec<ProblemView>,
) -> RunAgentView {
    let known = views.fleet.agents.get(&id);
    let progress = live.as_ref().map(|live| &live.progress);
    let (blocks, bytes) = run.manifest.map_or((0, 0), |manifest| (manifest.blocks, manifest.bytes));
    let stats = part.stats;
    let fetched = stats.map(|stats| stats.blocks_fetched.saturating_add(stats.blocks_reused));
    let (path, path_hex) = path(run.path(part));
    let online = known.is_some_and(|agent| agent.online);
    let failing = matches!(part.state, RunAgentState::Failed | RunAgentState::Stalled);
    let error = problems.last().filter(|_| failing).map(|problem| problem.detail.clone());
    RunAgentView {
        id: id.to_string(),
        name: agent_name(views, id),
        online,
        role: role(part.role).into(),
        member: sync::member(run, part, online, live.as_ref()),
        path,
        path_hex,
        state: part.state.name().into(),
        since: part.since.to_string(),
        blocks_total: blocks.max(progress.map_or(0, |p| p.blocks_total)),
        blocks_done: done(part, blocks, progress.map(|p| p.blocks_done), fetched),
        bytes_total: bytes.max(progress.map_or(0, |p| p.bytes_total)),
        bytes_done: bytes_done(run, part, live.as_ref()),
        bytes_sent: stats.map_or(0, |s| s.bytes_sent).max(progress.map_or(0, |p| p.bytes_sent)),
        rate_bytes_s: live
            .as_ref()
            .filter(|_| !part.state.is_terminal())
            .map_or(0, |l| l.rate_bytes_s as u64),
        peers: progress.filter(|_| run.outcome.is_none()).map_or(0, |p| p.peers),
        entries_indexed: progress.map_or(0, |p| p.entries),
        stats: stats.map(|stats| stats_view(&stats)),
        problems,
        problems_total: part.problems,
        error,
    }
}

/// Of everything what an agent has: all if it is done, else what it told last, else what it had at its end.
fn done(part: &core::RunAgentView, all: u64, live: Option<u64>, ended: Option<u64>) -> u64 {
    if matches!(part.state, RunAgentState::Done) || part.role == Role::Source {
        return all;
    }
    live.or(ended).unwrap_or(0).min(if all == 0 { u64::MAX } else { all })
}

/// Content bytes in place at an agent.
pub(super) fn bytes_done(run: &core::RunView, part: &core::RunAgentView, live: Option<&Live>) -> u64 {
    let all = run.manifest.map_or(0, |manifest| manifest.bytes);
    let ended = part.stats.map(|stats| stats.bytes_from_source.saturating_add(stats.bytes_from_peers));
    done(part, all, live.map(|live| live.progress.bytes_done), ended)
}

fn stats_view(stats: &TransferStats) -> StatsView {
    StatsView {
        entries: stats.entries,
        bytes_total: stats.bytes_total,
        blocks_total: stats.blocks_total,
        blocks_fetched: stats.blocks_fetched,
        blocks_reused: stats.blocks_reused,
        blocks_duplicate: stats.blocks_duplicate,
        blocks_corrupt: stats.blocks_corrupt,
        bytes_from_source: stats.bytes_from_source,
        bytes_from_peers: stats.bytes_from_peers,
        bytes_sent: stats.bytes_sent,
    }
}

fn problem(views: &Views, view: &core::ProblemView) -> ProblemView {
    let (path, path_hex) = path(&view.text.path);
    ProblemView {
        agent: agent_name(views, view.agent),
        agent_id: view.agent.to_string(),
        time: view.time.to_string(),
        class: problem_class(view.class).into(),
        path,
        path_hex,
        detail: view.text.detail.clone(),
    }
}

fn actor(views: &Views, actor: &Actor) -> String {
    match actor {
        Actor::Service => "service".into(),
        Actor::Operator(name) => format!("operator {name}"),
        Actor::Agent(id) => format!("agent {}", agent_name(views, *id)),
    }
}

pub(super) fn history(views: &Views, position: u64, record: &Record, event: &Event) -> HistoryView {
    HistoryView {
        position,
        time: record.time.to_string(),
        kind: event.name().into(),
        actor: actor(views, &record.actor),
        summary: summary(views, event),
    }
}

pub(crate) fn record(views: &Views, position: u64, record: &Record) -> RecordView {
    let event = |event: &Event| EventView {
        kind: event.name().into(),
        summary: summary(views, event),
        data: data(event),
    };
    RecordView {
        position,
        id: record.id.to_string(),
        time: record.time.to_string(),
        stream: record.stream.clone(),
        actor: actor(views, &record.actor),
        causation: record.causation.map(|id| id.to_string()),
        correlation: record.correlation.to_string(),
        events: record.events.iter().map(event).collect(),
    }
}

/// An event in words, one line.
fn summary(views: &Views, event: &Event) -> String {
    let name = |id: AgentId| agent_name(views, id);
    let names = |ids: &[AgentId]| ids.iter().map(|id| name(*id)).collect::<Vec<_>>().join(", ");
    let group =
        |id: &GroupId| views.fleet.groups.get(id).map_or_else(|| id.to_string(), |group| group.name.clone());
    match event {
        Event::FleetFounded(_) => "the fleet was founded".into(),
        Event::AgentEnrolled(e) => format!("{} showed its key", e.name),
        Event::AgentApproved(e) => format!("{} was let in", name(e.agent)),
        Event::AgentOnline(e) => format!("{} is online at {}", name(e.agent), e.addresses.join(", ")),
        Event::AgentOffline(e) => format!("{} is offline: {}", name(e.agent), e.reason),
        Event::AgentRemoved(e) => format!("{} was removed", name(e.agent)),
        Event::AgentSessionOpened(e) => format!("{} is connected at replica {}", name(e.agent), e.replica),
        Event::ReplicaStarted(e) => format!("replica {} began its life {}", e.replica, e.epoch),
        Event::ReplicaStopped(e) => format!("replica {} ended its life {}: {}", e.replica, e.epoch, e.reason),
        Event::LeaseTaken(e) => format!("replica {} holds the lease, term {}", e.replica, e.term),
        Event::AgentTagged(e) => format!("{} has {} tags now", name(e.agent), e.tags.len()),
        Event::TokenCreated(e) => {
            let agents = if e.uses == 1 { "agent" } else { "agents" };
            format!("a token for {} {agents}, until {}", e.uses, e.expires)
        }
        Event::TokenUsed(e) => format!("{} used a token", name(e.agent)),
        Event::TokenRevoked(e) => format!("the token {} was revoked", e.token),
        Event::EnrolmentRefused(e) => format!("{} was turned away: {}", e.address, refusal(e.reason)),
        Event::GroupCreated(e) => format!("the group {}", e.name),
        Event::GroupMembersAdded(e) => format!("{} joined the group {}", names(&e.agents), group(&e.group)),
        Event::GroupMembersRemoved(e) => format!("{} left the group {}", names(&e.agents), group(&e.group)),
        Event::JobCreated(e) => format!("the job {}", e.name),
        Event::JobDeleted(e) => format!("the job {} was deleted", e.job),
        Event::RunStarted(e) if e.participants.is_empty() => "started: it synchronizes".into(),
        Event::RunStarted(e) => {
            let count = e.participants.len().saturating_sub(1);
            let source = e.participants.iter().find(|p| p.role == Role::Source);
            let source = source.map_or_else(String::new, |p| name(p.agent));
            format!("started: from {source} to {count} {}", if count == 1 { "agent" } else { "agents" })
        }
        Event::RunManifestReady(e) => {
            format!("{} has {} entries, {} bytes, {} blocks", name(e.agent), e.entries, e.bytes, e.blocks)
        }
        Event::RunAgentProgressed(e) => {
            let mut line = format!("{} is {}", name(e.agent), e.state.name().replace('_', " "));
            if let Some(s) = &e.stats {
                let _ = write!(
                    line,
                    ": {} blocks fetched, {} reused; {} bytes from the source, {} from peers, {} sent",
                    s.blocks_fetched, s.blocks_reused, s.bytes_from_source, s.bytes_from_peers, s.bytes_sent
                );
            }
            line
        }
        Event::RunProblemReported(e) => {
            let path = if e.text.path.is_empty() {
                String::new()
            } else {
                format!(" ({})", escape_bytes(&e.text.path))
            };
            format!("{}: {}{path}: {}", name(e.agent), problem_class(e.class), e.text.detail)
        }
        Event::RunStopRequested(e) => format!("an operator wants it to end: {}", e.reason),
        Event::RunFinished(e) => format!("ended: {}", outcome(e.outcome).replace('_', " ")),
        Event::RunDisposed(e) => match (e.refused, &e.disposed) {
            (Some(reason), _) => format!("{} keeps its files: {}", name(e.agent), refusal(reason)),
            (None, d) => format!(
                "{} disposed of {} files, {} bytes; {} changed, {} gone, {} failed",
                name(e.agent),
                d.files,
                d.bytes,
                d.changed,
                d.gone,
                d.failed
            ),
        },
        Event::CommandIssued(e) => {
            let kind = match Command::decode(&e.signed.bytes) {
                Ok(command) => command.body.name(),
                Err(_) if e.joins => "to join",
                Err(_) => "?",
            };
            format!("command {} for {}: {kind}", e.sequence, name(e.agent))
        }
        Event::CommandAcknowledged(e) => match e.refused {
            None => format!("{} took command {}", name(e.agent), e.sequence),
            Some(reason) => format!("{} refused command {}: {}", name(e.agent), e.sequence, refusal(reason)),
        },
        Event::ReportReceived(e) if !e.signed.is_legible() => {
            format!("report {} of {}: {}", e.sequence, name(e.agent), e.signed.word())
        }
        Event::ReportReceived(e) => match Report::decode(&e.signed.bytes) {
            Ok(report) => {
                let more = match &report.body {
                    ReportBody::RunStateReported(r) => format!(" {}", r.state.name()),
                    ReportBody::RunCompleted(r) => format!(" {}", r.state.name()),
                    _ => String::new(),
                };
                format!("report {} of {}: {}{more}", e.sequence, name(e.agent), report.body.name())
            }
            Err(error) => format!("report {} of {}: {error}", e.sequence, name(e.agent)),
        },
        Event::AuditConflict(e) => format!(
            "TWO HISTORIES: {} holds the signed checkpoint (size {}, root {}), this log has (size {}, root {})",
            e.witness.map_or_else(|| "the service itself".to_owned(), name),
            e.held_size,
            root(&e.held_root),
            e.log_size,
            root(&e.log_root),
        ),
        Event::StateAttested(e) => format!("after {} the state is {}", e.at, hex(&e.hash)),
        Event::SchemaRaised(e) => format!("the log is written at schema level {} from here on", e.level),
        Event::SubjectOpened(e) => format!("texts of {} are under a key of their own", e.subject),
        Event::SubjectErased(e) => format!("the texts of {} were erased: {}", e.subject, e.reason),
        Event::RunMembersSet(_)
        | Event::RunConflictFound(_)
        | Event::RunConflictSettled(_)
        | Event::RunGuardRaised(_)
        | Event::RunGuardAnswered(_)
        | Event::RunGuardLifted(_)
        | Event::RunPathBlocked(_)
        | Event::RunPathUnblocked(_)
        | Event::RunRolledBack(_) => sync::summary(event, &name),
        Event::BackupVersionKept(_) | Event::BackupThinned(_) | Event::BackupSourceChanged(_) => {
            backups::summary(event, &name)
        }
    }
}

/// An event's fields for programs.
pub(crate) fn data(event: &Event) -> Value {
    let place = |place: &Place| {
        let (path, path_hex) = path(&place.path);
        let (kind, id) = match place.party {
            Party::Agent(id) => ("agent", id.to_string()),
            Party::Group(id) => ("group", id.to_string()),
        };
        json!({"kind": kind, "id": id, "path": path, "path_hex": path_hex})
    };
    match event {
        Event::FleetFounded(e) => {
            json!({"root_key": hex(&e.root_key), "ca_fingerprint": hex(&e.ca_fingerprint)})
        }
        Event::AgentEnrolled(e) => json!({
            "agent": e.agent, "public_key": hex(&e.public_key), "name": e.name, "tags": tags(&e.tags),
            "token": e.token, "version": e.version,
        }),
        Event::AgentApproved(e) => json!({"agent": e.agent}),
        Event::AgentOnline(e) => json!({"agent": e.agent, "addresses": e.addresses, "version": e.version}),
        Event::AgentOffline(e) => json!({"agent": e.agent, "reason": e.reason}),
        Event::AgentRemoved(e) => json!({"agent": e.agent}),
        Event::AgentTagged(e) => json!({"agent": e.agent, "tags": tags(&e.tags)}),
        Event::AgentSessionOpened(e) => json!({"agent": e.agent, "replica": e.replica, "epoch": e.epoch}),
        Event::ReplicaStarted(e) => json!({"replica": e.replica, "epoch": e.epoch, "version": e.version}),
        Event::ReplicaStopped(e) => json!({"replica": e.replica, "epoch": e.epoch, "reason": e.reason}),
        Event::LeaseTaken(e) => json!({"replica": e.replica, "epoch": e.epoch, "term": e.term}),
        Event::TokenCreated(e) => json!({
            "token": e.token, "hash": hex(&e.hash), "tags": tags(&e.tags), "uses": e.uses,
            "expires": e.expires.to_string(),
        }),
        Event::TokenUsed(e) => json!({"token": e.token, "agent": e.agent}),
        Event::TokenRevoked(e) => json!({"token": e.token}),
        Event::EnrolmentRefused(e) => json!({
            "reason": format!("{:?}", e.reason), "token": e.token, "agent": e.agent, "address": e.address,
        }),
        Event::GroupCreated(e) => json!({"group": e.group, "name": e.name}),
        Event::GroupMembersAdded(e) => json!({"group": e.group, "agents": e.agents}),
        Event::GroupMembersRemoved(e) => json!({"group": e.group, "agents": e.agents}),
        Event::JobCreated(e) => {
            let destinations: Vec<Value> = e.spec.destinations().iter().map(place).collect();
            match &e.spec {
                JobSpec::Distribution { source, options, .. } => json!({
                    "job": e.job, "name": e.name, "kind": "distribution", "source": place(source),
                    "destinations": destinations, "options": backups::options_data(options),
                }),
                JobSpec::Consolidation { sources, subfolder, after, options, .. } => json!({
                    "job": e.job, "name": e.name, "kind": "consolidation",
                    "sources": sources.iter().map(place).collect::<Vec<_>>(), "destinations": destinations,
                    "subfolder": subfolder, "after": batches::after(*after),
                    "options": backups::options_data(options),
                }),
                JobSpec::Backup { sources, subfolder, when, keep, options, .. } => json!({
                    "job": e.job, "name": e.name, "kind": "backup",
                    "sources": sources.iter().map(place).collect::<Vec<_>>(), "destinations": destinations,
                    "subfolder": subfolder, "when": backups::when_shape(when),
                    "keep": backups::keep_shape(keep), "options": backups::options_data(options),
                }),
                JobSpec::Synchronization { members, policy } => {
                    let member = |share: &event_schema::Share| {
                        let at = Place { party: share.party, path: share.path.clone() };
                        sync::share_data(share, place(&at))
                    };
                    json!({
                        "job": e.job, "name": e.name, "kind": "synchronization",
                        "members": members.iter().map(member).collect::<Vec<_>>(),
                        "policy": sync::policy_data(policy),
                    })
                }
            }
        }
        Event::JobDeleted(e) => json!({"job": e.job}),
        Event::RunStarted(e) => {
            let participant = |p: &event_schema::Participant| {
                let (path, path_hex) = path(e.path(p));
                json!({"agent": p.agent, "role": role(p.role), "path": path, "path_hex": path_hex})
            };
            let participants: Vec<Value> = e.participants.iter().map(participant).collect();
            json!({
                "run": e.run, "job": e.job, "participants": participants, "batch": e.batch,
                "after": batches::after(e.after), "options": backups::options_data(&e.options),
                "purpose": backups::purpose_data(&e.purpose),
            })
        }
        Event::RunManifestReady(e) => json!({
            "run": e.run, "agent": e.agent, "root": hex(&e.root), "entries": e.entries, "bytes": e.bytes,
            "blocks": e.blocks,
        }),
        Event::RunAgentProgressed(e) => json!({
            "run": e.run, "agent": e.agent, "state": e.state.name(),
            "stats": e.stats.as_ref().map(stats_view),
        }),
        Event::RunProblemReported(e) => {
            let (path, path_hex) = path(&e.text.path);
            json!({
                "run": e.run, "agent": e.agent, "class": problem_class(e.class), "path": path,
                "path_hex": path_hex, "detail": e.text.detail,
            })
        }
        Event::RunStopRequested(e) => json!({"run": e.run, "reason": e.reason}),
        Event::RunFinished(e) => json!({"run": e.run, "outcome": outcome(e.outcome)}),
        Event::RunDisposed(e) => json!({
            "run": e.run, "agent": e.agent, "disposed": disposed(&e.disposed),
            "refused": e.refused.map(|reason| format!("{reason:?}")),
        }),
        Event::CommandIssued(e) => json!({
            "command": e.command, "agent": e.agent, "sequence": e.sequence, "run": e.run, "joins": e.joins,
            "backup": e.backup.map(|backup| backup.job), "bytes": e.signed.bytes.len(),
        }),
        Event::CommandAcknowledged(e) => json!({
            "command": e.command, "agent": e.agent, "sequence": e.sequence,
            "refused": e.refused.map(|reason| format!("{reason:?}")),
        }),
        Event::ReportReceived(e) => json!({
            "agent": e.agent, "sequence": e.sequence, "problem_in": e.problem_in,
            "bytes": e.signed.bytes.len(),
        }),
        Event::AuditConflict(e) => json!({
            "witness": e.witness, "held_size": e.held_size, "held_root": root(&e.held_root),
            "held_note": e.held_note, "log_size": e.log_size, "log_root": root(&e.log_root),
        }),
        Event::StateAttested(e) => json!({"at": e.at, "form": e.form, "hash": hex(&e.hash)}),
        Event::SchemaRaised(e) => json!({"level": e.level}),
        Event::SubjectOpened(e) => {
            json!({"subject": e.subject.to_string(), "commitment": hex(&e.commitment)})
        }
        Event::SubjectErased(e) => json!({"subject": e.subject.to_string(), "reason": e.reason}),
        Event::RunMembersSet(_)
        | Event::RunConflictFound(_)
        | Event::RunConflictSettled(_)
        | Event::RunGuardRaised(_)
        | Event::RunGuardAnswered(_)
        | Event::RunGuardLifted(_)
        | Event::RunPathBlocked(_)
        | Event::RunPathUnblocked(_)
        | Event::RunRolledBack(_) => sync::data(event),
        Event::BackupVersionKept(_) | Event::BackupThinned(_) | Event::BackupSourceChanged(_) => {
            backups::data(event)
        }
    }
}

/// What a source did with its files, for programs.
pub(crate) fn disposed(disposed: &event_schema::Disposed) -> Value {
    let event_schema::Disposed { files, bytes, changed, gone, failed } = disposed;
    json!({"files": files, "bytes": bytes, "changed": changed, "gone": gone, "failed": failed})
}

/// A root hash as checkpoints write it.
pub(crate) fn root(root: &[u8; 32]) -> String {
    event_audit::Hash(*root).to_base64()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run that has just begun, of nobody.
    pub(in crate::api) fn empty_run() -> core::RunView {
        core::RunView {
            job: JobId([1; 16]),
            job_name: "nightly".into(),
            started: Timestamp(0),
            finished: None,
            outcome: None,
            stop_reason: None,
            manifest: None,
            paths: vec![b"/x".to_vec()].into(),
            agents: BTreeMap::new(),
            problems: Vec::new(),
            history: Vec::new(),
            batch: None,
            after: event_schema::Disposal::Keep,
            disposal: None,
            sync: None,
            options: event_schema::Private::default(),
            purpose: event_schema::Purpose::Plain,
        }
    }

    #[test]
    fn any_number_an_agent_tells_can_be_shown() {
        let most = TransferStats {
            blocks_fetched: u64::MAX,
            blocks_reused: u64::MAX,
            bytes_from_source: u64::MAX,
            bytes_from_peers: u64::MAX,
            ..TransferStats::default()
        };
        let part = core::RunAgentView {
            role: Role::Destination,
            path: 0,
            state: RunAgentState::Transferring,
            since: Timestamp(0),
            stats: Some(most),
            problems: 0,
            member: None,
        };
        let (id, start) = (RunId([1; 16]), Instant::now());
        let agents: BTreeMap<AgentId, _> = (1..=3).map(|n| (AgentId([n; 16]), part.clone())).collect();
        let telemetry = Telemetry::default();
        for (agent, bytes_done) in agents.keys().flat_map(|agent| [(*agent, 0), (*agent, u64::MAX)]) {
            let progress = agent_proto::link::Progress {
                run: id,
                state: RunAgentState::Transferring,
                blocks_done: u64::MAX,
                blocks_total: u64::MAX,
                bytes_done,
                bytes_total: u64::MAX,
                bytes_sent: u64::MAX,
                peers: u32::MAX,
                entries: u64::MAX,
                connections: None,
                sync: None,
                standing: None,
            };
            telemetry.take(
                agent,
                progress,
                start - std::time::Duration::from_millis(u64::from(bytes_done == 0)),
            );
        }
        let view = core::RunView { agents, ..empty_run() };
        let shown = run(&Views::default(), &telemetry, id, &view);
        assert_eq!(shown.rate_bytes_s, u64::MAX);
    }

    #[test]
    fn paths_are_told_without_loss() {
        let cases: [(&[u8], &str); 6] = [
            (b"a b/c", "a b/c"),
            (b"a\nb\t\\", "a\\nb\\t\\\\"),
            (b"\x1b[31m", "\\x1b[31m"),
            (b"\xff\xfeend", "\\xff\\xfeend"),
            ("grün".as_bytes(), "grün"),
            ("a\u{202e}b".as_bytes(), "a\\xe2\\x80\\xaeb"),
        ];
        for (bytes, line) in cases {
            assert_eq!(escape_bytes(bytes), line);
        }
        assert_eq!(path(b"ok"), ("ok".into(), None));
        assert_eq!(path(b"\xff"), ("\u{fffd}".into(), Some("ff".into())));
    }
}
