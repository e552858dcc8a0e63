//! `/api/v1/runs/{run}/explain`: for every agent of a run, why it is not done.
//!
//! Facts come from the log, the rest is what agents told in the last minute. A reason is a code for programs and a
//! sentence for people; the first that holds is given, in the order of [`reason`].

use std::time::Instant;

use agent_proto::limits::HOLDERS_TOLD;
use agent_proto::link::Standing;
use axum::extract::{Path, State};
use control_core::projection::{RunView as CoreRun, Views};
use event_schema::{AgentId, Role, RunAgentState, RunId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Json;
use super::sync_view::SyncMemberView;
use super::view::{ErrorView, RunAgentView, RunView};
use super::{Api, ApiError, resolve, shape};
use crate::service::{Live, Telemetry};

/// Blocks that arrived and are not on disk: from so many on (8 MiB) the disk is what is waited for.
const WRITING_MANY: u32 = 256;

/// Without a block for so many seconds a peer is called silent; sooner if it is offline as well, for a connection to who
/// is gone without a word stands for a while.
const SILENT_S: u32 = 10;
const SILENT_OFFLINE_S: u32 = 2;

/// Why a run is not over, agent by agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ExplainView {
    /// The run's id.
    pub run: String,
    /// Name of its job.
    pub job_name: String,
    /// As in the run itself.
    pub state: String,
    /// Seconds until the last destination has everything, if that can be told.
    pub eta_seconds: Option<u64>,
    /// Every agent of the run, the source first.
    pub agents: Vec<ExplainAgentView>,
    /// Position of the log that this answer shows.
    pub as_of: u64,
}

/// Why an agent is not done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ExplainAgentView {
    /// Its id.
    pub agent: String,
    /// Its name.
    pub name: String,
    /// `source`, `destination` or `member`.
    pub role: String,
    /// As in the run itself.
    pub state: String,
    /// Whether it has nothing more to do.
    pub ended: bool,
    /// `done`, `done_with_errors`, `failed`, `stopped`, `over`, `offline`, `command_under_way`, `starting`, `indexing`,
    /// `serving`, `upload_limit`, `no_peers`, `fetching_manifest`, `comparing`, `nobody_has`, `no_honest_peer`,
    /// `silent_peers`, `disk`, `peers_limited`, `transferring`, `finalizing`, of a member `guarded`, `scanning`, `no_folder`,
    /// `syncing`, `blocked`, `in_sync` or `waiting`, or the class of the problem of one that is stalled, such as `disk_full`.
    pub reason: String,
    /// The same for people.
    pub text: String,
    /// Content bytes that it lacks, if known.
    pub bytes_left: Option<u64>,
    /// Bytes a second that arrive and verify.
    pub rate_bytes_s: u64,
    /// Seconds until it has everything, at this rate.
    pub eta_seconds: Option<u64>,
    /// Content blocks that it lacks, as it told.
    pub missing_blocks: Option<u64>,
    /// Of these, blocks that no peer has to which it is connected.
    pub nowhere_blocks: Option<u64>,
    /// Those who could give it what it lacks: peers it is connected to, then others that have everything.
    pub holders: Vec<HolderView>,
    /// Its last problem, if it has reported one.
    pub last_problem: Option<String>,
    /// Seconds since it told anything about this run; none if it has not.
    pub told_seconds_ago: Option<u64>,
}

/// Somebody who has what an agent lacks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct HolderView {
    /// Its id.
    pub agent: String,
    /// Its name.
    pub name: String,
    /// Whether its control link is up.
    pub online: bool,
    /// Whether the one that lacks is connected to it.
    pub connected: bool,
    /// Missing blocks that it has; none if only the log tells that it has all.
    pub has_blocks: Option<u64>,
    /// Blocks it was asked for and has not delivered.
    pub asked_blocks: u32,
    /// Seconds since it delivered one, if it was asked.
    pub silent_seconds: u32,
    /// Whether it is used no more, as it sent what was not genuine.
    pub avoided: bool,
    /// Why they are not connected, as the last try ended.
    pub last_error: Option<String>,
}

/// Why a run is not over yet: what each agent waits for, who has what it lacks, and when it will be done.
#[utoipa::path(get, path = "/api/v1/runs/{run}/explain", tag = "runs",
    params(("run" = String, Path,)),
    responses((status = 200, body = ExplainView), (status = 404, body = ErrorView)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(run): Path<String>,
) -> Result<Json<ExplainView>, ApiError> {
    let views = api.service.views();
    let id = resolve::run(&views, &run)?;
    let run = views.runs.runs.get(&id).ok_or_else(|| ApiError::not_found(format!("no run {id}")))?;
    Ok(Json(explain(&views, api.service.telemetry(), id, run, Instant::now())))
}

fn explain(views: &Views, telemetry: &Telemetry, id: RunId, run: &CoreRun, now: Instant) -> ExplainView {
    let RunView { agents, state, job_name, eta_seconds, as_of, .. } = shape::run(views, telemetry, id, run);
    let case = |view: RunAgentView| {
        let agent = view.id.parse().ok()?;
        let live = telemetry.of(id, agent, now);
        Some(Case { views, run, telemetry, id, now, agent, view, live }.explain())
    };
    let agents = agents.into_iter().filter_map(case).collect();
    ExplainView { run: id.to_string(), job_name, state, eta_seconds, agents, as_of }
}

/// One agent in one run, and all that is known of both.
struct Case<'a> {
    views: &'a Views,
    run: &'a CoreRun,
    telemetry: &'a Telemetry,
    id: RunId,
    now: Instant,
    agent: AgentId,
    view: RunAgentView,
    live: Option<Live>,
}

impl Case<'_> {
    fn explain(self) -> ExplainAgentView {
        let state = self.state();
        let ended = state.is_terminal() || self.run.outcome.is_some();
        let standing = self.live.as_ref().filter(|_| !ended).and_then(|live| live.standing(self.now));
        let lacks = !ended && self.role() == Role::Destination;
        let holders = if lacks { self.holders(standing) } else { Vec::new() };
        let (reason, text) = self.reason(state, standing, &holders);
        let view = &self.view;
        let bytes_left =
            (lacks && view.bytes_total > 0).then(|| view.bytes_total.saturating_sub(view.bytes_done));
        let whole = standing.is_none_or(|standing| standing.nowhere == 0);
        let rate = view.rate_bytes_s;
        let eta_seconds = bytes_left
            .filter(|left| whole && (rate > 0 || *left == 0))
            .map(|left| left.div_ceil(rate.max(1)));
        let standing = standing.filter(|_| lacks);
        ExplainAgentView {
            missing_blocks: standing.map(|standing| standing.missing),
            nowhere_blocks: standing.map(|standing| standing.nowhere),
            told_seconds_ago: self.live.as_ref().map(|live| live.age(self.now).as_secs()),
            last_problem: self.last_problem(),
            agent: self.view.id,
            name: self.view.name,
            role: self.view.role,
            state: self.view.state,
            ended,
            reason,
            text,
            bytes_left,
            rate_bytes_s: rate,
            eta_seconds,
            holders,
        }
    }

    fn state(&self) -> RunAgentState {
        self.run.agents.get(&self.agent).map_or(RunAgentState::Waiting, |part| part.state)
    }

    fn role(&self) -> Role {
        self.run.agents.get(&self.agent).map_or(Role::Destination, |part| part.role)
    }

    fn last_problem(&self) -> Option<String> {
        self.view.problems.last().map(|problem| problem.detail.clone())
    }

    fn online(&self, agent: AgentId) -> bool {
        self.views.fleet.agents.get(&agent).is_some_and(|agent| agent.online)
    }

    fn since(&self, agent: AgentId) -> String {
        let seen = self.views.fleet.agents.get(&agent).map(|agent| agent.last_seen.to_string());
        seen.map_or_else(String::new, |seen| format!(" since {seen}"))
    }

    fn source(&self) -> Option<AgentId> {
        self.run.source()
    }

    /// Peers with some of what is missing, as it told, then those who have everything by the log.
    fn holders(&self, standing: Option<&Standing>) -> Vec<HolderView> {
        let connections = self.live.as_ref().map(|live| live.connections(self.now)).unwrap_or_default();
        let error = |agent: AgentId| {
            let found = connections.iter().find(|connection| connection.peer == agent)?;
            (!found.last_error.is_empty()).then(|| shape::text(&found.last_error))
        };
        let told = standing.map(|standing| standing.holders.as_slice()).unwrap_or_default();
        // Nobody is believed to have something who is not in the run.
        let told = told.iter().filter(|holder| self.run.agents.contains_key(&holder.peer));
        let mut holders: Vec<HolderView> = told
            .clone()
            .filter(|holder| holder.has > 0 || holder.asked > 0)
            .map(|holder| HolderView {
                connected: true,
                has_blocks: Some(holder.has),
                asked_blocks: holder.asked,
                silent_seconds: holder.silent_s,
                avoided: holder.avoided,
                ..self.holder(holder.peer)
            })
            .collect();
        let whole = self.run.agents.iter().filter(|(agent, part)| {
            let all =
                part.role == Role::Source && self.run.manifest.is_some() || part.state == RunAgentState::Done;
            all && **agent != self.agent && !told.clone().any(|holder| holder.peer == **agent)
        });
        let room = HOLDERS_TOLD.saturating_sub(holders.len());
        holders.extend(
            whole
                .take(room)
                .map(|(agent, _)| HolderView { last_error: error(*agent), ..self.holder(*agent) }),
        );
        holders
    }

    fn holder(&self, agent: AgentId) -> HolderView {
        HolderView {
            agent: agent.to_string(),
            name: shape::agent_name(self.views, agent),
            online: self.online(agent),
            connected: false,
            has_blocks: None,
            asked_blocks: 0,
            silent_seconds: 0,
            avoided: false,
            last_error: None,
        }
    }

    /// The first reason that holds.
    fn reason(
        &self,
        state: RunAgentState,
        standing: Option<&Standing>,
        holders: &[HolderView],
    ) -> (String, String) {
        let (view, name) = (&self.view, state.name());
        let said = |code: &str, text: String| (code.to_owned(), text);
        let problem = |else_: &str| self.last_problem().unwrap_or_else(|| else_.to_owned());
        match state {
            RunAgentState::Done if self.role() == Role::Source => said(name, "the run is over".into()),
            RunAgentState::Done => said(name, "everything is in place".into()),
            RunAgentState::DoneWithErrors => said(
                name,
                format!(
                    "in place but for {} problems; the last: {}",
                    view.problems_total,
                    problem("not told")
                ),
            ),
            RunAgentState::Failed => said(name, format!("gave up: {}", problem("the reason was not told"))),
            RunAgentState::Stopped => said(name, "was stopped".into()),
            _ if self.run.outcome.is_some() => said("over", "the run is over".into()),
            RunAgentState::Stalled => {
                let class = self.run.problems.iter().rev().find(|problem| problem.agent == self.agent);
                let class = class.map_or("stalled", |problem| shape::problem_class(problem.class));
                said(class, format!("waits and tries again: {}", problem("the reason was not told")))
            }
            _ if !view.online && state == RunAgentState::Waiting => said(
                "offline",
                format!("is offline{}; it gets the command when it connects", self.since(self.agent)),
            ),
            _ if !view.online => said(
                "offline",
                format!(
                    "is offline{}; it goes on with the peers it reaches and tells later",
                    self.since(self.agent)
                ),
            ),
            RunAgentState::Waiting => said("command_under_way", "the command is on its way".into()),
            RunAgentState::Accepted => said("starting", "has the command and begins".into()),
            RunAgentState::Indexing => {
                said(name, format!("reads its folder: {} entries so far", view.entries_indexed))
            }
            RunAgentState::Serving => self.serving(standing),
            RunAgentState::FindingPeers => said("no_peers", self.lonely()),
            RunAgentState::FetchingManifest if view.peers == 0 => said("no_peers", self.lonely()),
            RunAgentState::FetchingManifest => said(name, "fetches the list of files".into()),
            RunAgentState::Transferring => self.transferring(standing, holders),
            RunAgentState::Finalizing => said(name, "puts the last files in place".into()),
            RunAgentState::Synchronizing => self.synchronizing(name),
        }
    }

    /// A member never ends: what its folder lacks to be like the others', if anything.
    fn synchronizing(&self, name: &str) -> (String, String) {
        let said = |code: &str, text: String| (code.to_owned(), text);
        let Some(member) = &self.view.member else {
            return said(name, "keeps its folder like the others'".into());
        };
        if let Some(guard) = &member.guard {
            let text = format!("{} of {} entries are gone from its folder", guard.missing, guard.total);
            return match &guard.answer {
                None => said(
                    "guarded",
                    format!(
                        "{text}; it waits for a person: flotilla sync confirm {} --agent {} --delete or --restore",
                        self.id, self.view.name
                    ),
                ),
                Some(answer) => said("guarded", format!("{text}; it was told to {answer}")),
            };
        }
        match member.standing.as_str() {
            "scanning" => said("scanning", format!("reads its folder: {} entries so far", member.entries)),
            "no_folder" => said("no_folder", "does not find its folder: is a disk not mounted?".into()),
            "syncing" if self.view.peers == 0 => {
                said("no_peers", format!("lacks {}, and {}", self.lacks(member), self.lonely()))
            }
            "syncing" => said("syncing", format!("brings {}", self.lacks(member))),
            "in_sync" if member.blocked_total > 0 => said(
                "blocked",
                format!(
                    "has all but {} paths that cannot be here: flotilla sync members {}",
                    member.blocked_total, self.id
                ),
            ),
            "in_sync" if self.view.peers == 0 => said("no_peers", self.lonely()),
            "in_sync" => said("in_sync", "its folder is like the others'".into()),
            _ => said("waiting", "has not told how it stands in the last minute".into()),
        }
    }

    fn lacks(&self, member: &SyncMemberView) -> String {
        format!("{} entries ({} bytes)", member.left_entries, member.left_bytes)
    }

    fn serving(&self, standing: Option<&Standing>) -> (String, String) {
        let open = |part: &&control_core::projection::RunAgentView| {
            part.role == Role::Destination && !part.state.is_terminal()
        };
        let waiting = self.run.agents.values().filter(open).count();
        let text = format!("gives what it has; {waiting} destinations are not done");
        if standing.is_some_and(|standing| standing.limited) {
            return ("upload_limit".into(), format!("{text}; its own limit of sending holds them up"));
        }
        ("serving".into(), text)
    }

    /// Why it may be that nobody is reached.
    fn lonely(&self) -> String {
        let Some(source) = self.source() else { return "is connected to none of its peers".into() };
        let name = shape::agent_name(self.views, source);
        if !self.online(source) {
            return format!(
                "is connected to none of its peers; the source {name} is offline{}",
                self.since(source)
            );
        }
        if self.run.manifest.is_none() {
            return format!("waits for {name}, which is reading its folder");
        }
        let connections = self.live.as_ref().map(|live| live.connections(self.now)).unwrap_or_default();
        let failed = connections.iter().find(|c| !c.last_error.is_empty());
        let why = failed.map_or_else(String::new, |c| format!(": {}", shape::text(&c.last_error)));
        format!("reaches none of its peers{why}; see the connections of the run")
    }

    fn transferring(&self, standing: Option<&Standing>, holders: &[HolderView]) -> (String, String) {
        let said = |code: &str, text: String| (code.to_owned(), text);
        let view = &self.view;
        let Some(standing) = standing else {
            let text = "compares its folder with the list of files, and takes what is there already";
            return said("comparing", text.into());
        };
        let Standing { missing, nowhere, writing, .. } = *standing;
        let names = |of: &dyn Fn(&&HolderView) -> bool| {
            let named: Vec<&str> = holders.iter().filter(of).map(|h| h.name.as_str()).take(5).collect();
            named.join(", ")
        };
        if view.peers == 0 {
            return said("no_peers", self.lonely());
        }
        let some = |of: &dyn Fn(&&HolderView) -> bool| holders.iter().any(|h| of(&h));
        if nowhere > 0 && (nowhere == missing || view.rate_bytes_s == 0) {
            let away = names(&|h| !h.connected);
            let who = if away.is_empty() {
                "and nobody else in the run is known to have everything".to_owned()
            } else {
                format!("these have everything and are not connected to it: {away}")
            };
            let text = format!(
                "{nowhere} of {missing} missing blocks are at none of its {} peers; {who}",
                view.peers
            );
            return said("nobody_has", text);
        }
        let giving = |h: &&HolderView| h.connected && !h.avoided && h.has_blocks.is_some_and(|has| has > 0);
        if missing > 0 && !some(&giving) && some(&|h| h.avoided) {
            let text = format!("who has what it lacks sent what was not genuine: {}", names(&|h| h.avoided));
            return said("no_honest_peer", text);
        }
        if writing >= WRITING_MANY {
            return said("disk", format!("{writing} blocks have arrived and wait for its disk"));
        }
        let silent = |h: &&HolderView| {
            let after = if h.online { SILENT_S } else { SILENT_OFFLINE_S };
            h.asked_blocks > 0 && h.silent_seconds >= after
        };
        if some(&silent) && holders.iter().all(|h| h.asked_blocks == 0 || silent(&h)) {
            let longest = holders.iter().filter(silent).map(|h| h.silent_seconds).max().unwrap_or(0);
            let gone = names(&|h| silent(h) && !h.online);
            let gone = if gone.is_empty() { gone } else { format!("; offline: {gone}") };
            let text = format!("was given nothing for {longest} s by {}{gone}", names(&silent));
            return said("silent_peers", text);
        }
        let limited = |h: &&HolderView| {
            giving(h)
                && h.agent.parse().ok().is_some_and(|agent: AgentId| {
                    let live = self.telemetry.of(self.id, agent, self.now);
                    live.and_then(|live| live.standing(self.now).map(|s| s.limited)).unwrap_or(false)
                })
        };
        if some(&giving) && holders.iter().filter(giving).all(|h| limited(&h)) {
            return said(
                "peers_limited",
                format!("gets as much as these are allowed to send: {}", names(&limited)),
            );
        }
        let from = names(&|h| h.asked_blocks > 0);
        let from = if from.is_empty() { String::new() } else { format!("; asks {from}") };
        said("transferring", format!("{missing} blocks are missing{from}"))
    }
}
