//! `/api/v1/replicas`: the control services that share this log.

use axum::extract::State;

use super::Api;
use super::error::Json;
use super::view::{ErrorView, ReplicaView, ReplicasView};

/// The control services on this log, and who holds the lease. Empty on a log that one service has to itself.
#[utoipa::path(get, path = "/api/v1/replicas", tag = "status",
    responses((status = 200, body = ReplicasView), (status = 401, body = ErrorView)))]
pub(super) async fn list(State(api): State<Api>) -> Json<ReplicasView> {
    let own = api.service.session().replica;
    let views = api.service.views();
    let known = &views.replicas;
    let holder = known.lease().map(|lease| lease.holder.replica);
    let replicas = known.replicas.iter().map(|(id, view)| ReplicaView {
        id: id.to_string(),
        state: if view.live { "live" } else { "stopped" }.into(),
        own: *id == own,
        lease: Some(*id) == holder,
        epoch: view.epoch,
        since: view.since.to_string(),
        version: view.version.clone(),
        ended: view.ended.clone(),
    });
    let replicas = replicas.collect();
    Json(ReplicasView {
        replicas,
        term: known.lease.map_or(0, |lease| lease.term),
        gateways: api.service.gateways().borrow().to_vec(),
        as_of: views.position(),
    })
}
