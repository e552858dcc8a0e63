//! Which commands has an agent still to take?

use std::collections::BTreeMap;

use event_schema::{AgentId, Event, Signed};
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
    pub waiting: BTreeMap<u64, Signed>,
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

    /// Commands of `agent` beyond `cursor`, in order, at most `max`.
    pub fn after(&self, agent: AgentId, cursor: u64, max: usize) -> Vec<(u64, Signed)> {
        let Some(mailbox) = self.agents.get(&agent) else { return vec![] };
        let beyond = mailbox.waiting.range(cursor.saturating_add(1)..);
        beyond.take(max).map(|(sequence, signed)| (*sequence, signed.clone())).collect()
    }

    /// Sequence of the last command issued for `agent`.
    pub fn last(&self, agent: AgentId) -> u64 {
        self.agents.get(&agent).map_or(0, |mailbox| mailbox.last)
    }
}
