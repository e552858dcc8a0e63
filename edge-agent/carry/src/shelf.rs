//! Orders or letters, in bounds (CARRYING.md §4).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use event_schema::{AgentId, Timestamp};
use serde::{Deserialize, Serialize};

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
    /// Of the half that was told something the longer time ago, who this carrier favours least.
    Oldest,
    /// Who takes most, and among equals who this carrier favours least.
    Largest,
}

/// How much one carrier favours an agent over others: by chance, so that not all carriers keep the same. Both ends of a
/// meeting can tell.
pub(crate) fn favour(carrier: u64, agent: AgentId) -> u64 {
    let (high, low) = agent.0.split_at(8);
    [high, low].into_iter().fold(carrier, |mixed, half| {
        let half = half.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        // The finishing steps of SplitMix64.
        let mixed = (mixed ^ half).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    })
}

/// What it takes to stay on a shelf that is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// To have been told something after this.
    pub after: Timestamp,
    /// Or to be favoured more than this.
    pub favour: u64,
}

#[derive(Debug)]
pub(crate) struct Shelf {
    by_agent: BTreeMap<AgentId, Own>,
    bytes: usize,
    most_bytes: usize,
    most_of_one: usize,
    gives_way: GivesWay,
    carrier: u64,
    /// Whose things lie here before others'.
    me: Option<AgentId>,
}

impl Shelf {
    pub(crate) fn new(
        (most_bytes, most_of_one): (usize, usize),
        gives_way: GivesWay,
        carrier: u64,
        me: Option<AgentId>,
    ) -> Self {
        Self { by_agent: BTreeMap::new(), bytes: 0, most_bytes, most_of_one, gives_way, carrier, me }
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
        let favour = |agent: &AgentId| favour(self.carrier, *agent);
        let first = match self.gives_way {
            GivesWay::Oldest => {
                let middle = self.middle();
                let older = self.by_agent.iter().filter(|(_, own)| newest(own) <= middle);
                older.min_by_key(|(agent, _)| favour(agent))
            }
            GivesWay::Largest => {
                let largest = |(agent, own): &(&AgentId, &Own)| {
                    (self.me != Some(**agent), self.shares(len(own)), !favour(agent))
                };
                self.by_agent.iter().max_by_key(largest)
            }
        };
        first.map(|(agent, _)| *agent)
    }

    /// Sixteenths of the shelf, rounded up to two: who has less is no smaller, or of several letters of one agent only the
    /// first would ever be carried.
    fn shares(&self, bytes: usize) -> usize {
        (bytes * 16).div_ceil(self.most_bytes.max(1)).max(2)
    }

    /// When the last one of the older half was told something.
    fn middle(&self) -> Timestamp {
        let mut times: Vec<Timestamp> = self.by_agent.values().map(newest).collect();
        let middle = times.len().saturating_sub(1) / 2;
        if times.is_empty() { Timestamp(0) } else { *times.select_nth_unstable(middle).1 }
    }

    /// What it takes to stay here; nothing where there is room.
    pub(crate) fn floor(&self) -> Floor {
        // Room for one or two more is no reason to have all sent.
        if self.bytes + self.most_bytes / 16 <= self.most_bytes {
            return Floor::default();
        }
        let after = self.middle();
        let older = self.by_agent.iter().filter(|(_, own)| newest(own) <= after);
        let least = older.map(|(agent, _)| favour(self.carrier, *agent)).min();
        Floor { after, favour: least.unwrap_or(0) }
    }

    /// Whether one that is like this would go at once, as far as can be told before anybody has looked at its signature.
    pub(crate) fn would_not_stay(
        &self,
        agent: AgentId,
        sequence: u64,
        bytes: usize,
        time: Timestamp,
    ) -> bool {
        let of_it = self.by_agent.get(&agent);
        let last = of_it.and_then(|own| own.last_key_value()).map_or(0, |(last, _)| *last);
        if of_it.is_some_and(|own| own.len() >= self.most_of_one) && sequence > last {
            return true;
        }
        if self.bytes + bytes <= self.most_bytes || sequence < last || self.me == Some(agent) {
            return false;
        }
        let mine = favour(self.carrier, agent);
        match self.gives_way {
            GivesWay::Oldest => {
                let floor = self.floor();
                of_it.map_or(time, |own| newest(own).max(time)) <= floor.after && mine < floor.favour
            }
            GivesWay::Largest => {
                let its = (self.shares(of_it.map_or(0, len) + bytes), !mine);
                let less =
                    |other: &AgentId, own: &Own| (self.shares(len(own)), !favour(self.carrier, *other)) < its;
                self.by_agent
                    .iter()
                    .all(|(other, own)| *other == agent || self.me == Some(*other) || less(other, own))
            }
        }
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
