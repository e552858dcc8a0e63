//! `/api/v1/runs/{run}/connections`: how the agents of a run are connected, as they tell it (`edge-agent/PATHS.md` §5).
//!
//! Telemetry of the present: from agents that are connected to this replica, not older than a minute, not on the log.

use std::time::Instant;

use agent_proto::limits::TRIES_TOLD;
use agent_proto::link::PeerConnection;
use axum::extract::{Path, State};
use event_schema::AgentId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Json;
use super::view::ErrorView;
use super::{Api, ApiError, resolve, shape};

/// How the agents of a run are connected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ConnectionsView {
    /// The run's id.
    pub run: String,
    /// Every connection, as each of both ends tells it; and peers that are wanted and not reached.
    pub connections: Vec<ConnectionView>,
    /// Position of the log that this answer shows.
    pub as_of: u64,
}

/// One connection as one of its ends tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ConnectionView {
    /// Id of the agent that tells it.
    pub agent: String,
    /// Its name.
    pub name: String,
    /// Id of the agent at the other end.
    pub peer: String,
    /// Its name.
    pub peer_name: String,
    /// `lan`, `direct`, `punched`, `relayed` or `none`.
    pub way: String,
    /// Id of the agent that forwards, if one does.
    pub relay: Option<String>,
    /// Address of the agent that tells it.
    pub local: Option<String>,
    /// Address of the peer, or of the relay.
    pub remote: Option<String>,
    /// Whether the agent that tells it called.
    pub initiator: bool,
    /// Round trip time, µs.
    pub rtt_us: u32,
    /// Bytes a second sent to the peer.
    pub sent_per_s: u64,
    /// Bytes a second received from it.
    pub received_per_s: u64,
    /// Since when.
    pub since: String,
    /// What was tried since they were connected last, newest last.
    pub tried: Vec<String>,
    /// Why the last try failed.
    pub last_error: Option<String>,
}

/// How the agents of a run are connected now: directly, through NATs, by a relay or not at all, and what was tried.
#[utoipa::path(get, path = "/api/v1/runs/{run}/connections", tag = "runs",
    params(("run" = String, Path,)),
    responses((status = 200, body = ConnectionsView), (status = 404, body = ErrorView)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(run): Path<String>,
) -> Result<Json<ConnectionsView>, ApiError> {
    let views = api.service.views();
    let id = resolve::run(&views, &run)?;
    let run = views.runs.runs.get(&id).ok_or_else(|| ApiError::not_found(format!("no run {id}")))?;
    let now = Instant::now();
    let mut connections = Vec::new();
    for agent in run.agents.keys() {
        let Some(live) = api.service.telemetry().of(id, *agent, now) else { continue };
        // Nobody is believed to be connected to who is not in the run.
        let told = live.connections(now).iter().filter(|c| run.agents.contains_key(&c.peer));
        let name = |agent: AgentId| shape::agent_name(&views, agent);
        connections.extend(told.map(|c| shown(*agent, c, &name)));
    }
    Ok(Json(ConnectionsView { run: id.to_string(), connections, as_of: views.position() }))
}

fn shown(agent: AgentId, c: &PeerConnection, name: &impl Fn(AgentId) -> String) -> ConnectionView {
    let some = |t: &str| (!t.is_empty()).then(|| shape::text(t));
    ConnectionView {
        agent: agent.to_string(),
        name: name(agent),
        peer: c.peer.to_string(),
        peer_name: name(c.peer),
        way: c.way.name().into(),
        relay: c.relay.map(|r| r.to_string()),
        local: some(&c.local),
        remote: some(&c.remote),
        initiator: c.initiator,
        rtt_us: c.rtt_us,
        sent_per_s: c.sent_per_s,
        received_per_s: c.received_per_s,
        since: c.since.to_string(),
        tried: c.tried.iter().take(TRIES_TOLD).map(|t| shape::text(t)).collect(),
        last_error: some(&c.last_error),
    }
}
