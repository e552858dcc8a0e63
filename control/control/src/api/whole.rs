//! The whole fleet at one position, in the shapes of the API: what an auditor gets of a history without a service.

use control_core::form;
use control_core::projection::Views;
use event_schema::Timestamp;
use serde::Serialize;

use super::shape;
use super::view::{AgentView, GroupView, JobView, RunView, TokenView};
use crate::service::Telemetry;

/// Everything that the API shows, unabridged.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct WholeView {
    /// The last position that it shows.
    pub(crate) position: u64,
    /// The time that was reached there; none before the first record.
    pub(crate) time: Option<String>,
    /// Form of the hash (`events/AUDIT_FORMAT.md` §10).
    pub(crate) form: u8,
    /// SHA-256 of the state (hex).
    pub(crate) state_hash: String,
    /// The fleet, by its root key (hex); empty before it was founded.
    pub(crate) fleet: String,
    /// Every agent.
    pub(crate) agents: Vec<AgentView>,
    /// Every group.
    pub(crate) groups: Vec<GroupView>,
    /// Every token.
    pub(crate) tokens: Vec<TokenView>,
    /// Every job.
    pub(crate) jobs: Vec<JobView>,
    /// Every run that is remembered, without what agents tell beside the log.
    pub(crate) runs: Vec<RunView>,
}

/// The fleet as these projections have it; `now` decides which tokens have expired.
pub(crate) fn whole(views: &Views, now: Timestamp) -> WholeView {
    let telemetry = Telemetry::default();
    let fleet = &views.fleet;
    WholeView {
        position: views.position(),
        time: (views.position() > 0).then(|| views.time().to_string()),
        form: form::newest(views),
        state_hash: shape::hex(&views.hash()),
        fleet: fleet.root_key.map(|key| shape::hex(&key)).unwrap_or_default(),
        agents: fleet.agents.iter().map(|(id, agent)| shape::agent(views, *id, agent)).collect(),
        groups: fleet.groups.iter().map(|(id, group)| shape::group(views, *id, group)).collect(),
        tokens: fleet.tokens.iter().map(|(id, token)| shape::token(*id, token, now)).collect(),
        jobs: views.jobs.jobs.iter().map(|(id, job)| shape::job(views, *id, job)).collect(),
        runs: views.runs.runs.iter().map(|(id, run)| shape::run(views, &telemetry, *id, run)).collect(),
    }
}
