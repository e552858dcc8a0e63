//! Ways to members that plain calls do not find: calls through trackers and probes, then a relay (`edge-agent/PATHS.md`
//! §1). What is decided is `run::reach`'s; this carries it out for a synchronization, as `task/reaching.rs` does for other
//! runs.

use std::net::SocketAddr;
use std::time::Duration;

use agent_proto::link::Way;
use event_schema::AgentId;
use tokio::time::Instant;
use tracker_proto::SwarmKey;

use super::task::SyncTask;
use crate::discovery::{Found, Via};
use crate::relay::Met;
use crate::run::reach::Step;
use crate::run::reaching::{Caller, NoMeeting, Places, Search, direct_place, meet, place};
use crate::run::ways::Ways;

/// How often the control service is told how members are connected.
const SHOW: Duration = Duration::from_secs(10);

/// What is tried to reach members.
pub(super) struct Reaching {
    swarm: SwarmKey,
    search: Search,
    ways: Ways,
    /// When the control service was told of connections last.
    shown: Option<Instant>,
}

impl Reaching {
    pub(super) fn new(swarm: SwarmKey) -> Self {
        Self { swarm, search: Search::default(), ways: Ways::default(), shown: None }
    }

    /// Whether the control service is to be told of connections now.
    pub(super) fn is_to_be_shown(&mut self, now: Instant) -> bool {
        let due = self.shown.is_none_or(|at| now - at >= SHOW);
        if due {
            self.shown = Some(now);
        }
        due
    }
}

impl SyncTask {
    /// Somebody says that a member can be reached there.
    pub(super) fn take_hint(&mut self, agent: AgentId, hint: Found) {
        if agent == self.host.me {
            return;
        }
        let now = Instant::now();
        self.reaching.ways.found(hint.addr, hint.via, hint.via == Via::Probe);
        let search = &mut self.reaching.search;
        if hint.relay {
            search.relays.hear(now, agent, hint.addr);
        }
        search.keep_address(agent, hint.addr);
        if hint.via != Via::Probe {
            return self.dialer.hint(now, agent, hint.addr);
        }
        if let Some(conn) = self.connection(agent).cloned() {
            if self.reaching.search.may_seek(now, agent, &conn) {
                conn.seek(hint.addr);
            }
            return;
        }
        self.dialer.hint(now, agent, hint.addr);
        self.reaching.ways.tried(agent, format!("{}, which answers", hint.addr));
        if let Some(wait) = self.reaching.search.call_answering(now, agent, self.host.me < agent) {
            self.caller().call_at(agent, hint.addr, wait);
        }
    }

    fn caller(&self) -> Caller {
        Caller { endpoint: self.host.endpoint.clone(), context: self.context, wakeups: self.wakeups.clone() }
    }

    /// A plain call begins.
    pub(super) fn wanted(&mut self, now: Instant, agent: AgentId, addresses: &[SocketAddr]) {
        self.reaching.search.reach.wanted(now, agent);
        addresses.iter().rev().for_each(|addr| self.reaching.search.keep_address(agent, *addr));
    }

    /// Carries out what is due; called with every tick.
    pub(super) fn reach_members(&mut self, now: Instant) {
        self.look_at_ways(now);
        // Whom nobody has an address of is called all the same: a tracker may know it.
        let unreached: Vec<AgentId> = self
            .job
            .members
            .iter()
            .map(|m| m.agent)
            .filter(|a| *a != self.host.me && !self.peers.contains_key(a) && self.is_chosen(*a))
            .collect();
        unreached.into_iter().for_each(|agent| self.reaching.search.reach.wanted(now, agent));
        let relays = !self.reaching.search.relays.is_empty() || !self.host.relays_named.is_empty();
        for step in self.reaching.search.reach.due(now, relays) {
            match step {
                Step::Call(agent) => self.call_through_trackers(agent),
                Step::Relay(agent, round) => self.meet(agent, round),
            }
        }
    }

    fn call_through_trackers(&mut self, agent: AgentId) {
        let addresses = self.reaching.search.addresses(agent);
        let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        self.reaching.ways.tried(agent, format!("{} address(es): {}", list.len(), list.join(", ")));
        let swarm = &self.reaching.swarm;
        if let Some(discovery) = &*self.host.discovery() {
            discovery.call(swarm.swarm(), swarm.peer_id(&agent.0), &addresses);
        }
    }

    /// Meets a member at the relay of this round.
    fn meet(&mut self, agent: AgentId, round: usize) {
        let now = Instant::now();
        self.reaching.ways.tried(agent, format!("a relay, round {}", round + 1));
        let swarm = &self.reaching.swarm;
        let meeting = swarm.meeting(swarm.peer_id(&self.host.me.0), swarm.peer_id(&agent.0));
        let connected = |relay| self.peers.get(&relay).and_then(|p| direct_place(&p.link.conn));
        let search = &mut self.reaching.search;
        let places = Places {
            known: search.relays.places(now, agent, connected),
            named: self.host.relays_named.clone(),
            silent: search.relays.silent(now),
        };
        meet(self.host.relays.clone(), self.wakeups.clone(), agent, meeting, places, round);
    }

    /// A meeting came about, or not.
    pub(super) fn take_met(&mut self, agent: AgentId, met: Result<Met, NoMeeting>) {
        let now = Instant::now();
        match met {
            Ok(met) if !self.peers.contains_key(&agent) => {
                tracing::info!(run = %self.job.run, peer = %agent, relay = %met.relay, "meeting at a relay");
                if let Some(place) = self.reaching.search.met(now, agent, met, self.host.me < agent) {
                    self.caller().call_at(agent, place, Duration::ZERO);
                }
            }
            Ok(_not_needed) => self.reaching.search.not_met(now, agent, None),
            Err((unanswered, why)) => {
                tracing::debug!(run = %self.job.run, peer = %agent, why, "no meeting");
                self.reaching.ways.failed(agent, why.clone());
                self.reaching.search.not_met(now, agent, unanswered);
            }
        }
    }

    /// A member is connected.
    pub(super) fn way_found(&mut self, agent: AgentId) {
        self.look_at(Instant::now(), agent);
        let swarm = &self.reaching.swarm;
        if let Some(discovery) = &*self.host.discovery() {
            discovery.stop_probing(swarm.swarm(), swarm.peer_id(&agent.0));
        }
    }

    /// A connection is gone.
    pub(super) fn way_lost(&mut self, agent: AgentId) {
        self.reaching.search.lost(agent);
        self.reaching.ways.lost(agent);
    }

    fn look_at(&mut self, now: Instant, agent: AgentId) {
        let port = self.host.endpoint.local_addr().port();
        if let Some(peer) = self.peers.get(&agent) {
            let r = &mut self.reaching;
            let way = r.ways.look(now, agent, &peer.link.conn, port, r.search.relay_of(agent));
            r.search.connected(now, agent, way == Way::Relayed);
        }
    }

    fn look_at_ways(&mut self, now: Instant) {
        let connected: Vec<AgentId> = self.peers.keys().copied().collect();
        connected.into_iter().for_each(|agent| self.look_at(now, agent));
        for (agent, met, by_relay) in self.reaching.search.end_meetings(now) {
            if by_relay {
                self.reaching.ways.failed(agent, "the relay ended the meeting".into());
            }
            // Without the relay the connection is dead; better to know than to wait for silence.
            if let Some(conn) = self.connection(agent).filter(|c| place(c) == met.place) {
                conn.close(crate::run::link::code::GOING, "the relay ended the meeting");
            }
        }
        self.board.lock().connections = self.reaching.ways.shown();
    }
}
