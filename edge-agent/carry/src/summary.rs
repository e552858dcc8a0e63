//! What a carrier has, told at the beginning of a meeting (CARRYING.md §5).

use alloc::vec::Vec;

use event_schema::AgentId;
use serde::{Deserialize, Serialize};

use crate::shelf::Floor;

/// Sequences of somebody's orders or letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequences {
    /// Whose.
    pub agent: AgentId,
    /// Ascending.
    pub sequences: Vec<u64>,
}

/// What a carrier has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Who it is itself, with the sequence of the last command that it took, if it wants its own commands.
    pub me: Option<(AgentId, u64)>,
    /// Version of its keys.
    pub keys: u64,
    /// Whom it knows to be removed.
    pub removed: Vec<AgentId>,
    /// Its receipts: commands and reports of each agent.
    pub receipts: Vec<(AgentId, u64, u64)>,
    /// Its orders.
    pub orders: Vec<Sequences>,
    /// What others' orders have to have to stay there; 0 and 0 where there is room.
    pub orders_floor: Floor,
    /// By what it favours agents (CARRYING.md §4).
    pub carrier: u64,
    /// Whether it takes receipts of agents that it has nothing of.
    pub all_receipts: bool,
    /// Its letters.
    pub letters: Vec<Sequences>,
}
