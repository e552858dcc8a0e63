//! Conflicts of history: a witness holds a checkpoint that the log does not continue.
//!
//! Whether it is one was found out by the caller, who has the tree. Here it becomes a fact, once.

use std::collections::BTreeMap;

use event_schema::{AgentId, AuditConflict, Event};

use crate::limits::CONFLICTS_PER_WITNESS_MAX;
use crate::{Rejection, State};

/// What was recorded: size and root held, by witness (none: the service itself).
pub(crate) type Recorded = BTreeMap<Option<AgentId>, Vec<(u64, [u8; 32])>>;

/// Records a conflict. One that is recorded already, or one too many of a witness, is passed over.
///
/// # Errors
/// If the witness is no agent of the fleet.
pub fn conflict(state: &State, found: &AuditConflict) -> Result<Vec<Event>, Rejection> {
    if let Some(agent) = found.witness
        && state.approved(agent).is_none()
    {
        return Err(Rejection::Unknown { what: "agent", id: agent.to_string() });
    }
    let recorded = state.conflicts.get(&found.witness).map_or(&[][..], Vec::as_slice);
    let known = recorded.contains(&(found.held_size, found.held_root));
    if known || recorded.len() >= CONFLICTS_PER_WITNESS_MAX {
        return Ok(Vec::new());
    }
    Ok(vec![found.clone().into()])
}

pub(crate) fn evolve(recorded: &mut Recorded, e: &AuditConflict) {
    recorded.entry(e.witness).or_default().push((e.held_size, e.held_root));
}
