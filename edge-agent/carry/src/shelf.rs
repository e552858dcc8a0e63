//! Orders or letters, in bounds (CARRYING.md §4).

use alloc::collections::BTreeMap;

use event_schema::{AgentId, Timestamp};

use crate::bag::{Kept, Refused};
use crate::item::Item;

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) item: Item,
    pub(crate) len: usize,
    /// When it was issued, or written.
    pub(crate) time: Timestamp,
}

/// Somebody's, by their sequence.
pub(crate) type Own = BTreeMap<u64, Held>;

/// Who gives way where there is no room for all.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GivesWay {
    /// Who was told something the longest time ago.
    Oldest,
    /// Who takes most.
    Largest,
}

#[derive(Debug)]
pub(crate) struct Shelf {
    by_agent: BTreeMap<AgentId, Own>,
    bytes: usize,
    most_bytes: usize,
    most_of_one: usize,
    gives_way: GivesWay,
}

impl Shelf {
    pub(crate) fn new(most_bytes: usize, most_of_one: usize, gives_way: GivesWay) -> Self {
        Self { by_agent: BTreeMap::new(), bytes: 0, most_bytes, most_of_one, gives_way }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (AgentId, &Own)> {
        self.by_agent.iter().map(|(agent, own)| (*agent, own))
    }

    pub(crate) fn of(&self, agent: AgentId) -> Option<&Own> {
        self.by_agent.get(&agent)
    }

    fn holds(&self, agent: AgentId, sequence: u64) -> bool {
        self.of(agent).is_some_and(|own| own.contains_key(&sequence))
    }

    /// Puts one there that proved itself, and lets go of what has to give way. Who has the key says one thing of each
    /// sequence; should there be two, the first one stays.
    pub(crate) fn put(&mut self, agent: AgentId, sequence: u64, held: Held) -> Result<Kept, Refused> {
        if self.holds(agent, sequence) {
            return Ok(Kept::Known);
        }
        self.bytes += held.len;
        let own = self.by_agent.entry(agent).or_default();
        own.insert(sequence, held);
        if own.len() > self.most_of_one
            && let Some((_, last)) = own.pop_last()
        {
            self.bytes -= last.len;
        }
        while self.bytes > self.most_bytes {
            let Some(agent) = self.first_to_go() else { break };
            let gone = self.by_agent.get_mut(&agent).and_then(Own::pop_last);
            self.bytes -= gone.map_or(0, |(_, held)| held.len);
            self.by_agent.retain(|_, own| !own.is_empty());
        }
        if self.holds(agent, sequence) { Ok(Kept::New) } else { Err(Refused::NoRoom) }
    }

    fn first_to_go(&self) -> Option<AgentId> {
        let first = match self.gives_way {
            GivesWay::Oldest => self.by_agent.iter().min_by_key(|(_, own)| newest(own)),
            GivesWay::Largest => self.by_agent.iter().max_by_key(|(_, own)| len(own)),
        };
        first.map(|(agent, _)| *agent)
    }

    /// Where it is full: what was issued until then would go first.
    pub(crate) fn floor(&self) -> Timestamp {
        // Room for one more of the usual size is no reason to say so.
        let full = self.bytes + self.most_bytes / 16 > self.most_bytes;
        let oldest = self.by_agent.values().map(newest).min().filter(|_| full);
        oldest.unwrap_or(Timestamp(0))
    }

    pub(crate) fn remove(&mut self, agent: AgentId) {
        self.retain(|of, _, _| of != agent);
    }

    pub(crate) fn retain(&mut self, stays: impl Fn(AgentId, u64, &Held) -> bool) {
        for (agent, own) in &mut self.by_agent {
            own.retain(|sequence, held| stays(*agent, *sequence, held));
        }
        self.by_agent.retain(|_, own| !own.is_empty());
        self.bytes = self.by_agent.values().map(len).sum();
    }
}

/// When this agent was told something last.
pub(crate) fn newest(own: &Own) -> Timestamp {
    own.values().map(|held| held.time).max().unwrap_or(Timestamp(0))
}

fn len(own: &Own) -> usize {
    own.values().map(|held| held.len).sum()
}
