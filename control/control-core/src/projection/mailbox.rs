//! Which commands has an agent still to take?

use std::collections::BTreeMap;

use event_schema::{AgentId, Event, Field, Owner, Private, Signed, Visit};
use serde::{Deserialize, Serialize};

/// Commands per agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mailboxes {
    /// By agent; removed agents have none.
    pub agents: BTreeMap<AgentId, Mailbox>,
}

/// Commands of one agent. Acknowledged ones are dropped: an agent answers only what it has stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mailbox {
    /// Sequence of the last command issued; 0 if none was.
    pub last: u64,
    /// Commands not acknowledged yet, by sequence.
    pub waiting: BTreeMap<u64, Private<Signed>>,
}

impl Mailboxes {
    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::CommandIssued(e) => {
                let mailbox = self.agents.entry(e.agent).or_default();
                mailbox.last = mailbox.last.max(e.sequence);
                mailbox.waiting.insert(e.sequence, e.signed.clone());
            }
            Event::CommandAcknowledged(e) => {
                if let Some(mailbox) = self.agents.get_mut(&e.agent) {
                    mailbox.waiting.remove(&e.sequence);
                }
            }
            Event::AgentRemoved(e) => {
                self.agents.remove(&e.agent);
            }
            _ => {}
        }
    }

    pub(super) fn private(&mut self, visit: &mut Visit<'_>) {
        for mailbox in self.agents.values_mut() {
            // Nothing new is sealed here, so that nobody has to know the runs.
            mailbox.waiting.values_mut().for_each(|signed| visit(Field::Command, Owner::Named, signed));
        }
    }

    /// Commands of `agent` beyond `cursor`, in order, at most `max`, up to the first that cannot be read: one whose
    /// key is missing must not be passed over.
    pub fn after(&self, agent: AgentId, cursor: u64, max: usize) -> Vec<(u64, Signed)> {
        let Some(mailbox) = self.agents.get(&agent) else { return vec![] };
        let beyond = mailbox.waiting.range(cursor.saturating_add(1)..);
        let legible = beyond.map_while(|(sequence, signed)| Some((*sequence, signed.legible()?.clone())));
        legible.take(max).collect()
    }

    /// Sequence of the last command issued for `agent`.
    pub fn last(&self, agent: AgentId) -> u64 {
        self.agents.get(&agent).map_or(0, |mailbox| mailbox.last)
    }
}
