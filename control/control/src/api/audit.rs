//! `/api/v1/audit`: what is sealed, and who witnesses it.

use axum::extract::State;
use event_audit::Head;
use event_schema::AgentId;

use super::agents::{Page, page};
use super::error::{Json, Query};
use super::view::{ConflictShape, ErrorView, HeadView, SealView, WitnessView, WitnessesView};
use super::{Api, ApiError, shape};
use crate::sealing::{Sealing, Standing};

/// What every agent holds as a witness of the log, and which histories do not go together. Removed agents are left out.
#[utoipa::path(get, path = "/api/v1/audit/witnesses", tag = "audit", params(Page),
    responses((status = 200, body = WitnessesView), (status = 401, body = ErrorView)))]
pub(super) async fn witnesses(
    State(api): State<Api>,
    Query(query): Query<Page>,
) -> Result<Json<WitnessesView>, ApiError> {
    let sealing = sealing(&api)?;
    let sealed = sealing.checkpoints().borrow().as_ref().map(|newest| head(*newest.head()));
    let sealed_size = sealed.as_ref().map_or(0, |sealed| sealed.size);
    let progress = sealing.progress();
    let (word, why) = progress.parts();
    let views = api.service.views();
    let (entries, next) = page(&views.fleet.agents, query.after::<AgentId>()?, query.limit());
    let members = entries.into_iter().filter(|(_, agent)| shape::agent_state(agent) != "removed");
    let witnesses = members.map(|(id, agent)| {
        let witness = sealing.witness(id);
        let held = witness.as_ref().and_then(|witness| witness.held);
        let standing = witness.as_ref().map(|witness| &witness.standing);
        WitnessView {
            agent: id.to_string(),
            name: agent.name.to_string(),
            online: agent.online,
            state: standing.map_or("unheard", Standing::name).into(),
            held: held.map(head),
            told: witness.as_ref().map(|witness| witness.told.to_string()),
            lag: held.map(|held| sealed_size.saturating_sub(held.size)),
            log: match standing {
                Some(Standing::Conflict(log)) => Some(head(*log)),
                _ => None,
            },
            detail: match standing {
                Some(Standing::Unverified(why) | Standing::Uncompared(why)) => Some(why.clone()),
                _ => None,
            },
            refused: witness.and_then(|witness| witness.refused),
        }
    });
    Ok(Json(WitnessesView {
        origin: sealing.origin().into(),
        sealed,
        signed_at: sealing.signed_at().map(|time| time.to_string()),
        sealing: word.into(),
        sealing_detail: why.map(str::to_owned),
        witnesses: witnesses.collect(),
        conflicts: views
            .conflicts
            .conflicts
            .iter()
            .map(|conflict| conflict_shape(&views, conflict))
            .collect(),
        next,
        as_of: views.position(),
    }))
}

/// Seals everything that is durable now, and gives the newest checkpoint.
#[utoipa::path(post, path = "/api/v1/audit/seal", tag = "audit",
    responses((status = 200, body = SealView), (status = 409, body = ErrorView)))]
pub(super) async fn seal(State(api): State<Api>) -> Result<Json<SealView>, ApiError> {
    let sealing = sealing(&api)?;
    let (checkpoint, detail) = match sealing.seal_now().await {
        Ok(checkpoint) => (Some(checkpoint), None),
        Err(why) => (sealing.checkpoints().borrow().clone(), Some(why)),
    };
    let Some(checkpoint) = checkpoint else {
        return Err(ApiError::conflict(detail.unwrap_or_default()));
    };
    Ok(Json(SealView { head: head(*checkpoint.head()), checkpoint: checkpoint.note().into(), detail }))
}

pub(super) fn sealing(api: &Api) -> Result<&Sealing, ApiError> {
    api.service.sealing().ok_or_else(|| ApiError::unavailable("this service does not seal its log"))
}

fn head(head: Head) -> HeadView {
    HeadView { size: head.size, root: head.root.to_base64() }
}

fn conflict_shape(
    views: &control_core::projection::Views,
    conflict: &control_core::projection::ConflictView,
) -> ConflictShape {
    let shown = |(size, root): (u64, [u8; 32])| HeadView { size, root: shape::root(&root) };
    let name = |id: AgentId| views.fleet.agents.get(&id).map(|agent| agent.name.to_string());
    ConflictShape {
        found: conflict.found.to_string(),
        witness: conflict.witness.map(|id| id.to_string()),
        name: conflict.witness.and_then(name),
        held: shown(conflict.held),
        held_note: conflict.held_note.clone(),
        log: shown(conflict.log),
    }
}
