//! Which checkpoints are held that the log does not continue?

use event_schema::{AgentId, Event, Timestamp};
use serde::{Deserialize, Serialize};

/// Conflicts of history, in the order they were found; at most
/// [`CONFLICTS_PER_WITNESS_MAX`](crate::limits::CONFLICTS_PER_WITNESS_MAX) per witness.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conflicts {
    /// All of them.
    pub conflicts: Vec<ConflictView>,
}

/// One conflict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConflictView {
    /// When it was recorded.
    pub found: Timestamp,
    /// The agent that holds the checkpoint; none if the service does.
    pub witness: Option<AgentId>,
    /// Size and root held.
    pub held: (u64, [u8; 32]),
    /// The signed checkpoint.
    pub held_note: String,
    /// Size and root of the log.
    pub log: (u64, [u8; 32]),
}

impl Conflicts {
    pub(super) fn apply(&mut self, time: Timestamp, event: &Event) {
        if let Event::AuditConflict(e) = event {
            self.conflicts.push(ConflictView {
                found: time,
                witness: e.witness,
                held: (e.held_size, e.held_root),
                held_note: e.held_note.clone(),
                log: (e.log_size, e.log_root),
            });
        }
    }
}
