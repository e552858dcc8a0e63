//! Ways to members that plain calls do not find: calls through trackers and probes, then a relay (`edge-agent/PATHS.md`
//! §1). What is decided is `run::reach`'s; this carries it out for a synchronization, as `task/reaching.rs` does for other
//! runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use event_schema::AgentId;
use tokio::time::Instant;
use tracker_proto::SwarmKey;
use utp2_tokio::Endpoint;

use super::task::SyncTask;
use crate::discovery::{Found, Via};
use crate::relay::{Met, NotMet};
use crate::run::dial::call;
use crate::run::event::Wakeup;
use crate::run::reach::{Reach, Step};
use crate::run::relays::{KnownRelays, choose};

/// Addresses of one member that are kept for probes.
const ADDRESSES_KEPT: usize = 12;

/// How long the larger id waits before it calls a member that answers a probe, and how long nobody calls it again there.
const CROSSING_WAIT: Duration = Duration::from_secs(1);
const CALL_AGAIN: Duration = Duration::from_secs(3);

/// How long a meeting is kept without a connection by it, and after the connection has found a direct way.
const MET_UNUSED: Duration = Duration::from_secs(40);
const MET_LEFT: Duration = Duration::from_secs(5);

/// A meeting with a member at a relay.
struct Meeting {
    met: Met,
    /// A connection went by it last.
    used: Instant,
    direct_since: Option<Instant>,
}

/// What is tried to reach members.
pub(super) struct Reaching {
    swarm: SwarmKey,
    reach: Reach,
    meetings: BTreeMap<AgentId, Meeting>,
    relays: KnownRelays,
    addresses: BTreeMap<AgentId, Vec<SocketAddr>>,
    called: BTreeMap<AgentId, Instant>,
}

impl Reaching {
    pub(super) fn new(swarm: SwarmKey) -> Self {
        Self {
            swarm,
            reach: Reach::default(),
            meetings: BTreeMap::new(),
            relays: KnownRelays::default(),
            addresses: BTreeMap::new(),
            called: BTreeMap::new(),
        }
    }

    fn keep_address(&mut self, agent: AgentId, addr: SocketAddr) {
        let kept = self.addresses.entry(agent).or_default();
        kept.retain(|a| *a != addr);
        kept.truncate(ADDRESSES_KEPT - 1);
        kept.insert(0, addr);
    }
}

impl SyncTask {
    /// Somebody says that a member can be reached there.
    pub(super) fn take_hint(&mut self, agent: AgentId, hint: Found) {
        if agent == self.host.me {
            return;
        }
        let now = Instant::now();
        let r = &mut self.reaching;
        if hint.relay {
            r.relays.hear(now, agent, hint.addr);
        }
        r.keep_address(agent, hint.addr);
        if hint.via != Via::Probe {
            return self.dialer.hint(now, agent, hint.addr);
        }
        if let Some(conn) = self.connection(agent).cloned() {
            // One of both sides moves the connection away from the relay, the other one follows.
            if Endpoint::is_detour(conn.remote())
                && conn.is_initiator()
                && self.reaching.reach.may_seek(now, agent)
            {
                conn.seek(hint.addr);
            }
            return;
        }
        self.dialer.hint(now, agent, hint.addr);
        // A plain call that is under way may wait for addresses that never answer. To avoid crossings the smaller id calls
        // first, and the other one only if it wanted to.
        let first = self.host.me < agent;
        let wanted = first || self.reaching.reach.is_called(agent);
        let lately = self.reaching.called.get(&agent).is_some_and(|at| now - *at < CALL_AGAIN);
        if wanted && !lately {
            self.reaching.called.insert(agent, now);
            self.call_at(agent, hint.addr, if first { Duration::ZERO } else { CROSSING_WAIT });
        }
    }

    fn call_at(&self, agent: AgentId, addr: SocketAddr, wait: Duration) {
        let (endpoint, context, wakeups) = (self.host.endpoint.clone(), self.context, self.wakeups.clone());
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let conn = call(endpoint, context, agent, vec![addr]).await;
            // A job that ended meanwhile drops, and so closes, the connection.
            let _ = wakeups.send(Wakeup::Called(agent, conn)).await;
        });
    }

    /// A plain call begins.
    pub(super) fn wanted(&mut self, now: Instant, agent: AgentId, addresses: &[SocketAddr]) {
        self.reaching.reach.wanted(now, agent);
        addresses.iter().rev().for_each(|addr| self.reaching.keep_address(agent, *addr));
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
        unreached.into_iter().for_each(|agent| self.reaching.reach.wanted(now, agent));
        let relays = !self.reaching.relays.is_empty() || !self.host.relays_named.is_empty();
        for step in self.reaching.reach.due(now, relays) {
            match step {
                Step::Call(agent) => self.call_through_trackers(agent),
                Step::Relay(agent, round) => self.meet(agent, round),
            }
        }
    }

    fn call_through_trackers(&self, agent: AgentId) {
        let swarm = &self.reaching.swarm;
        let addresses = self.reaching.addresses.get(&agent).cloned().unwrap_or_default();
        if let Some(discovery) = &*self.host.discovery() {
            discovery.call(swarm.swarm(), swarm.peer_id(&agent.0), &addresses);
        }
    }

    /// Meets a member at the relay of this round.
    fn meet(&mut self, agent: AgentId, round: usize) {
        let now = Instant::now();
        let swarm = &self.reaching.swarm;
        let meeting = swarm.meeting(swarm.peer_id(&self.host.me.0), swarm.peer_id(&agent.0));
        let connected = |relay| self.peers.get(&relay).and_then(|p| p.link.conn.proven_remote());
        let connected = |relay| connected(relay).filter(|at| !Endpoint::is_detour(*at));
        let mut places = self.reaching.relays.places(now, agent, connected);
        let silent = self.reaching.relays.silent(now);
        let (relays, wakeups, named) =
            (self.host.relays.clone(), self.wakeups.clone(), self.host.relays_named.clone());
        tokio::spawn(async move {
            for name in named.iter() {
                match tokio::net::lookup_host(name.as_str()).await {
                    Ok(mut found) => places.extend(found.next()),
                    Err(error) => tracing::debug!(%error, name, "the name of a relay"),
                }
            }
            let met = match choose(&meeting, &places, &silent, round) {
                Some(addr) => relays.meet(addr, meeting, agent).await.map_err(|why| {
                    let unanswered = matches!(why, NotMet::NoRelay(_)).then_some(addr);
                    (unanswered, format!("the relay at {addr}: {why}"))
                }),
                None => Err((None, "no relay has an address".into())),
            };
            let _ = wakeups.send(Wakeup::Met(agent, met)).await;
        });
    }

    /// A meeting came about, or not.
    pub(super) fn take_met(&mut self, agent: AgentId, met: Result<Met, (Option<SocketAddr>, String)>) {
        let now = Instant::now();
        match met {
            Ok(met) if !self.peers.contains_key(&agent) => {
                tracing::info!(run = %self.job.run, peer = %agent, relay = %met.relay, "meeting at a relay");
                if self.host.me < agent {
                    self.call_at(agent, met.place, Duration::ZERO);
                }
                self.reaching.meetings.insert(agent, Meeting { met, used: now, direct_since: None });
            }
            Ok(_not_needed) => self.reaching.reach.relay_ended(now, agent),
            Err((unanswered, why)) => {
                if let Some(addr) = unanswered {
                    self.reaching.relays.did_not_answer(now, addr);
                }
                tracing::debug!(run = %self.job.run, peer = %agent, why, "no meeting");
                self.reaching.reach.relay_ended(now, agent);
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
        self.reaching.meetings.remove(&agent);
        self.reaching.reach.lost(agent);
    }

    fn look_at(&mut self, now: Instant, agent: AgentId) {
        let Some(relayed) = self.connection(agent).map(|conn| Endpoint::is_detour(conn.remote())) else {
            return;
        };
        let r = &mut self.reaching;
        r.called.remove(&agent);
        r.reach.connected(now, agent, relayed);
        if let Some(meeting) = r.meetings.get_mut(&agent) {
            if relayed {
                (meeting.used, meeting.direct_since) = (now, None);
            } else {
                meeting.direct_since.get_or_insert(now);
            }
        }
    }

    fn look_at_ways(&mut self, now: Instant) {
        let connected: Vec<AgentId> = self.peers.keys().copied().collect();
        connected.into_iter().for_each(|agent| self.look_at(now, agent));
        let is_over = |m: &Meeting| {
            let left = m.direct_since.is_some_and(|at| now - at >= MET_LEFT);
            left || now - m.used >= MET_UNUSED || m.met.is_over()
        };
        let ended: Vec<AgentId> =
            self.reaching.meetings.iter().filter(|(_, m)| is_over(m)).map(|(agent, _)| *agent).collect();
        for agent in ended {
            let Some(meeting) = self.reaching.meetings.remove(&agent) else { continue };
            if meeting.direct_since.is_none() {
                self.reaching.reach.relay_ended(now, agent);
                // Without the relay the connection is dead; better to know than to wait for silence.
                if let Some(conn) = self.connection(agent).filter(|c| c.remote() == meeting.met.place) {
                    conn.close(crate::run::link::code::GOING, "the relay ended the meeting");
                }
            }
        }
    }
}
