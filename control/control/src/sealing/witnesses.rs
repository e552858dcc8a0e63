//! What each agent said it holds: a board in memory, filled anew as agents connect.
//!
//! What matters beyond that, a conflict, is on the log.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use event_audit::Head;
use event_schema::{AgentId, Timestamp};

/// What was found out about the checkpoint of a witness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds none.
    Nothing,
    /// The log continues it.
    Agrees,
    /// The log does not: as many entries of it amount to this, or all of them if it is shorter.
    Conflict(Head),
    /// No key of the log has signed it: it proves nothing.
    Unverified(String),
    /// It could not be compared.
    Uncompared(String),
}

impl Standing {
    /// One word for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Agrees => "agrees",
            Self::Conflict(_) => "conflict",
            Self::Unverified(_) => "unverified",
            Self::Uncompared(_) => "uncompared",
        }
    }
}

/// What one agent said last.
#[derive(Clone, Debug)]
pub struct Witness {
    /// Size and root of its checkpoint.
    pub held: Option<Head>,
    /// The signed note, as it came.
    pub note: Option<String>,
    /// When it said so.
    pub told: Timestamp,
    /// What that means.
    pub standing: Standing,
    /// Why it did not take the last one shown.
    pub refused: Option<String>,
}

/// All witnesses.
#[derive(Default)]
pub(super) struct Board(Mutex<BTreeMap<AgentId, Witness>>);

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<AgentId, Witness>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found out about the same note before, if it is still true: that a history was continued stays so while
    /// it only grows.
    pub(super) fn known(&self, agent: AgentId, note: &str) -> Option<(Head, Standing)> {
        let board = self.lock();
        let witness = board.get(&agent).filter(|witness| witness.note.as_deref() == Some(note))?;
        match witness.standing {
            Standing::Agrees | Standing::Conflict(_) => Some((witness.held?, witness.standing.clone())),
            _ => None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn put(&self, agent: AgentId, witness: Witness) {
        self.lock().insert(agent, witness);
    }

    pub(super) fn get(&self, agent: AgentId) -> Option<Witness> {
        self.lock().get(&agent).cloned()
    }

    /// Those whose checkpoints, of this size at most, wait for the tree or for the log.
    pub(super) fn uncompared(&self, size: u64) -> Vec<(AgentId, String)> {
        let board = self.lock();
        let waiting = board.iter().filter(|(_, witness)| {
            matches!(witness.standing, Standing::Uncompared(_))
                && witness.held.is_some_and(|held| held.size <= size)
        });
        waiting.filter_map(|(agent, witness)| Some((*agent, witness.note.clone()?))).collect()
    }

    /// How many witnesses stand how.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        let names = ["nothing", "agrees", "conflict", "unverified", "uncompared"];
        let mut counts = BTreeMap::from(names.map(|name| (name, 0)));
        for witness in self.lock().values() {
            *counts.entry(witness.standing.name()).or_default() += 1;
        }
        counts
    }
}
