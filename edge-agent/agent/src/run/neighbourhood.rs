//! With whom this agent keeps connections in a run (`edge-agent/PROTOCOL.md` §3.6), and who of them is near (§3.7).
//!
//! `sync_core::Neighbours` decides, by numbers; here they are agents. In a small run everybody is chosen and calls
//! are the [`super::dial::Dialer`]'s affair alone.

use std::collections::BTreeSet;

use event_schema::{AgentId, JoinRun, RunId};
use sha2::{Digest, Sha256};
use sync_core::{Accept, NeighbourConfig, Neighbours};
use timebase::Instant;

/// The label of a site in one run: agents with the same tag have the same one.
pub(super) fn site_label(run: RunId, tag: &str) -> u64 {
    let hash =
        Sha256::new().chain_update(b"flotilla site v1\0").chain_update(run.0).chain_update(tag).finalize();
    hash.iter().take(8).fold(0, |label, byte| label << 8 | u64::from(*byte))
}

/// Whether a connection is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Kept,
    /// And the one with this neighbour ends.
    KeptInsteadOf(AgentId),
    TurnedAway,
}

/// The participants of a run and who of them are neighbours.
pub(super) struct Neighbourhood {
    /// By number, sorted.
    agents: Vec<AgentId>,
    neighbours: Neighbours,
    /// Heard on the local network.
    local: BTreeSet<AgentId>,
}

impl Neighbourhood {
    pub(super) fn new(me: AgentId, join: &JoinRun, seed: u64, now: Instant) -> Self {
        Self::with(NeighbourConfig::default(), me, join, seed, now)
    }

    fn with(config: NeighbourConfig, me: AgentId, join: &JoinRun, seed: u64, now: Instant) -> Self {
        let all: BTreeSet<AgentId> = join.peers.iter().map(|p| p.agent).chain([me, join.source]).collect();
        let agents: Vec<AgentId> = all.into_iter().collect();
        let number = |agent: AgentId| agents.partition_point(|a| *a < agent) as u32;
        let neighbours =
            Neighbours::new(config, number(me), number(join.source), agents.len() as u32, seed, now);
        Self { agents, neighbours, local: BTreeSet::new() }
    }

    fn number(&self, agent: AgentId) -> Option<u32> {
        self.agents.binary_search(&agent).ok().map(|n| n as u32)
    }

    fn agent(&self, number: u32) -> Option<AgentId> {
        self.agents.get(number as usize).copied()
    }

    /// Whether everybody is everybody's neighbour.
    pub(super) fn is_small(&self) -> bool {
        self.neighbours.is_small()
    }

    /// Whether a peer is to be called, or is connected.
    pub(super) fn is_chosen(&self, agent: AgentId) -> bool {
        self.is_small() || self.number(agent).is_some_and(|n| self.neighbours.is_chosen(n))
    }

    /// Whether a connection with this peer would be kept if it came to be now.
    pub(super) fn has_room_for(&mut self, agent: AgentId) -> bool {
        self.admit(agent) != Admission::TurnedAway
    }

    /// The next one to be called, in a run that is not small.
    pub(super) fn next_call(&mut self, now: Instant) -> Option<AgentId> {
        if self.is_small() {
            return None;
        }
        self.neighbours.poll_call(now).and_then(|n| self.agent(n))
    }

    /// A neighbour of no use, whose connection is to end.
    pub(super) fn next_drop(&mut self, now: Instant) -> Option<AgentId> {
        self.neighbours.poll_drop(now).and_then(|n| self.agent(n))
    }

    /// What to do with a connection that is there.
    pub(super) fn admit(&mut self, agent: AgentId) -> Admission {
        let Some(number) = self.number(agent) else { return Admission::TurnedAway };
        match self.neighbours.accept(number) {
            Accept::Yes => Admission::Kept,
            Accept::InsteadOf(other) => self.agent(other).map_or(Admission::Kept, Admission::KeptInsteadOf),
            Accept::No => Admission::TurnedAway,
        }
    }

    pub(super) fn connected(&mut self, now: Instant, agent: AgentId) {
        if let Some(number) = self.number(agent) {
            self.neighbours.handle_connected(now, number);
        }
    }

    pub(super) fn disconnected(&mut self, now: Instant, agent: AgentId) {
        if let Some(number) = self.number(agent) {
            self.neighbours.handle_disconnected(now, number);
        }
    }

    /// A call came to nothing.
    pub(super) fn failed(&mut self, now: Instant, agent: AgentId) {
        if let Some(number) = self.number(agent) {
            self.neighbours.handle_failed(now, number, false);
        }
    }

    /// Somebody said where a peer can be reached.
    pub(super) fn hinted(&mut self, now: Instant, agent: AgentId) {
        if let Some(number) = self.number(agent) {
            self.neighbours.handle_hint(now, number);
        }
    }

    /// A peer is at our site, or was heard on the local network.
    pub(super) fn near(&mut self, agent: AgentId, local: bool) {
        if let Some(number) = self.number(agent) {
            self.neighbours.handle_near(number);
            if local {
                self.local.insert(agent);
            }
        }
    }

    /// Whether a peer was heard on the local network.
    pub(super) fn is_local(&self, agent: AgentId) -> bool {
        self.local.contains(&agent)
    }

    /// A block went to a peer, or came from it.
    pub(super) fn used(&mut self, now: Instant, agent: AgentId) {
        if let Some(number) = self.number(agent) {
            self.neighbours.handle_use(now, number);
        }
    }

    /// A peer has everything.
    pub(super) fn peer_complete(&mut self, agent: AgentId) {
        if let Some(number) = self.number(agent) {
            self.neighbours.handle_peer_complete(number);
        }
    }

    /// We have everything.
    pub(super) fn complete(&mut self) {
        self.neighbours.handle_complete();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::{JobId, PeerHint, Role};

    fn id(n: u16) -> AgentId {
        let mut id = [3; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        AgentId(id)
    }

    fn join(count: u16) -> JoinRun {
        let hint = |n| PeerHint {
            agent: id(n),
            public_key: [0; 32],
            role: if n == 0 { Role::Source } else { Role::Destination },
            addresses: Vec::new(),
        };
        JoinRun {
            run: RunId([1; 16]),
            job: JobId([1; 16]),
            job_name: String::new(),
            role: Role::Destination,
            path: Vec::new(),
            source: id(0),
            peers: (0..count).map(hint).collect(),
            trackers: Vec::new(),
            sealed_secret: Vec::new(),
        }
    }

    #[test]
    fn in_a_large_run_a_bounded_set_is_called_and_taken() {
        let now = Instant::ZERO;
        let mut few = Neighbourhood::new(id(7), &join(20), 1, now);
        assert!(few.is_small() && few.is_chosen(id(9)) && few.next_call(now).is_none());
        assert_eq!(few.admit(id(9)), Admission::Kept);
        assert_eq!(few.admit(AgentId([9; 16])), Admission::TurnedAway, "nobody of this run");

        let mut many = Neighbourhood::new(id(7), &join(2000), 1, now);
        many.near(id(1234), true);
        let mut called = Vec::new();
        while let Some(agent) = many.next_call(now) {
            assert!(agent != id(7) && many.is_chosen(agent));
            called.push(agent);
        }
        assert!(called.contains(&id(1234)), "the near one first: {called:?}");
        assert!(!many.is_chosen(id(1999)) || called.contains(&id(1999)));
        many.failed(now, id(1234));
        assert!(!many.is_chosen(id(1234)) && many.is_local(id(1234)));
        let mut kept = 0;
        for n in 100..1000 {
            if many.admit(id(n)) == Admission::Kept {
                many.connected(now, id(n));
                kept += 1;
            }
        }
        assert_eq!(kept, NeighbourConfig::default().most);
        assert!(!many.has_room_for(id(1500)));
        many.disconnected(now, id(100));
        assert!(many.has_room_for(id(1500)));
    }

    #[test]
    fn labels_tell_sites_and_runs_apart() {
        let (one, other) = (RunId([1; 16]), RunId([2; 16]));
        assert_eq!(site_label(one, "north"), site_label(one, "north"));
        assert_ne!(site_label(one, "north"), site_label(one, "south"));
        assert_ne!(site_label(one, "north"), site_label(other, "north"));
    }
}
