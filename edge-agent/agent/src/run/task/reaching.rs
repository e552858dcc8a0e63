//! Ways to peers that plain calls do not find: hints, calls through trackers, peers told by peers, relays
//! (`edge-agent/PATHS.md`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use agent_proto::limits::{ADDRESSES_TOLD, HOLDERS_TOLD, PEERS_TOLD};
use agent_proto::link::{Holder, Progress, Standing, Way};
use agent_proto::peer::{KnownPeer, PackedAddress, PeerMessage, Peers};
use event_schema::{AgentId, Role};
use tokio::time::Instant;
use tracker_proto::SwarmKey;
use utp2_tokio::Endpoint;

use super::{Machine, Task};
use crate::discovery::{Found, Via};
use crate::relay::Met;
use crate::run::reach::Step;
use crate::run::reaching::{Caller, NoMeeting, Places, Search, direct_place, meet, place};
use crate::run::ways::Ways;

/// How often the control service is told how peers are connected.
const SHOW: Duration = Duration::from_secs(10);

/// How often connections are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Least time between two messages of whom we know to one peer, the usual time, and what we take from one.
const TELL: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(60));
const TOLD_LEAST: Duration = Duration::from_secs(10);

/// What one session told and was told.
#[derive(Default)]
struct Gossip {
    told_at: Option<Instant>,
    told: Vec<KnownPeer>,
    heard_at: Option<Instant>,
}

/// The part of a run's task that finds ways.
#[derive(Default)]
pub(super) struct Reaching {
    swarm: Option<SwarmKey>,
    pub(super) search: Search,
    pub(super) ways: Ways,
    gossip: BTreeMap<AgentId, Gossip>,
    /// Addresses that peers told, which therefore work without a call if they do.
    gossiped: Vec<SocketAddr>,
    looked: Option<Instant>,
    /// When the control service was told of connections last.
    shown: Option<Instant>,
}

/// Gossiped addresses that are remembered as such.
const GOSSIPED: usize = 256;

impl Reaching {
    pub(super) fn set_swarm(&mut self, swarm: SwarmKey) {
        self.swarm = Some(swarm);
    }
}

impl Task {
    /// Somebody says that a peer can be reached there.
    pub(super) fn take_hint(&mut self, agent: AgentId, hint: Found) {
        if agent == self.host.me {
            return;
        }
        let now = Instant::now();
        self.neighbourhood.hinted(self.now(), agent);
        if hint.via == Via::Lan {
            self.neighbourhood.near(agent, true);
            if let (Machine::Destination(d), true) = (&mut self.machine, self.peers.contains_key(&agent)) {
                d.handle_local(agent);
            }
        }
        let r = &mut self.reaching;
        // A probe that neither gossip nor we began was begun by the peer's call.
        let called = hint.via == Via::Probe && !r.gossiped.contains(&hint.addr);
        r.ways.found(hint.addr, hint.via, called);
        if hint.relay {
            r.search.relays.hear(now, agent, hint.addr);
        }
        r.search.keep_address(agent, hint.addr);
        if hint.via == Via::Probe {
            self.reached(now, agent, hint.addr);
        } else {
            self.dialer.hint(now, agent, hint.addr);
        }
    }

    /// Packets pass between us and a peer there.
    fn reached(&mut self, now: Instant, agent: AgentId, addr: SocketAddr) {
        if let Some(peer) = self.peers.get(&agent) {
            let conn = &peer.link.conn;
            if self.reaching.search.may_seek(now, agent, conn) && conn.seek(addr) {
                self.reaching.ways.tried(agent, format!("{addr}, which answers, in the relay's place"));
            }
            return;
        }
        self.dialer.hint(now, agent, addr);
        if !self.neighbourhood.is_chosen(agent) && !self.neighbourhood.has_room_for(agent) {
            return;
        }
        if let Some(wait) = self.reaching.search.call_answering(now, agent, self.host.me < agent) {
            self.reaching.ways.tried(agent, format!("{addr}, which answers"));
            self.caller().call_at(agent, addr, wait);
        }
    }

    fn caller(&self) -> Caller {
        Caller { endpoint: self.host.endpoint.clone(), context: self.context, wakeups: self.wakeups.clone() }
    }

    /// A plain call begins.
    pub(super) fn want(&mut self, now: Instant, agent: AgentId, addresses: &[SocketAddr]) {
        self.reaching.search.reach.wanted(now, agent);
        for &addr in addresses.iter().rev() {
            self.reaching.search.keep_address(agent, addr);
        }
        let list: Vec<String> = addresses.iter().take(4).map(ToString::to_string).collect();
        self.reaching.ways.tried(agent, format!("{} address(es): {}", addresses.len(), list.join(", ")));
    }

    /// Carries out what is due; called with every tick.
    pub(super) fn reach_peers(&mut self, now: Instant) {
        if self.reaching.looked.is_none_or(|at| now - at >= LOOK) {
            self.reaching.looked = Some(now);
            self.look_at_ways(now);
            self.tell_peers(now);
        }
        let relays = !self.reaching.search.relays.is_empty() || !self.host.relays_named.is_empty();
        for step in self.reaching.search.reach.due(now, relays) {
            match step {
                Step::Call(agent) => self.call_through_trackers(agent),
                Step::Relay(agent, round) => self.meet(agent, round),
            }
        }
    }

    fn call_through_trackers(&mut self, agent: AgentId) {
        let Some(swarm) = &self.reaching.swarm else { return };
        let addresses = self.reaching.search.addresses(agent);
        let peer = swarm.peer_id(&agent.0);
        let asked = self.host.discovery().as_ref().map_or(0, |d| d.call(swarm.swarm(), peer, &addresses));
        self.reaching
            .ways
            .tried(agent, format!("called through {asked} tracker(s), {} probed", addresses.len()));
    }

    /// Meets a peer at the relay of this round.
    fn meet(&mut self, agent: AgentId, round: usize) {
        let now = Instant::now();
        let Some(swarm) = &self.reaching.swarm else { return };
        let meeting = swarm.meeting(swarm.peer_id(&self.host.me.0), swarm.peer_id(&agent.0));
        let connected = |relay| self.peers.get(&relay).and_then(|p| direct_place(&p.link.conn));
        let search = &mut self.reaching.search;
        let places = Places {
            known: search.relays.places(now, agent, connected),
            named: self.host.relays_named.clone(),
            silent: search.relays.silent(now),
        };
        self.reaching.ways.tried(agent, format!("a relay, round {}", round + 1));
        meet(self.host.relays.clone(), self.wakeups.clone(), agent, meeting, places, round);
    }

    /// A meeting came about, or not.
    pub(super) fn take_met(&mut self, agent: AgentId, met: Result<Met, NoMeeting>) {
        let now = Instant::now();
        match met {
            Ok(met) if !self.peers.contains_key(&agent) => {
                tracing::info!(run = %self.join.run, peer = %agent, relay = %met.relay, "meeting at a relay");
                if let Some(place) = self.reaching.search.met(now, agent, met, self.host.me < agent) {
                    self.caller().call_at(agent, place, Duration::ZERO);
                }
            }
            Ok(_not_needed) => self.reaching.search.not_met(now, agent, None),
            Err((unanswered, why)) => {
                self.reaching.ways.failed(agent, why);
                self.reaching.search.not_met(now, agent, unanswered);
            }
        }
    }

    /// What the control service is told now.
    pub(super) fn telemetry(&mut self, now: Instant) -> Progress {
        if self.reaching.shown.is_some_and(|at| now - at < SHOW) {
            return self.board.progress(self.state);
        }
        self.reaching.shown = Some(now);
        self.board.whole_progress(self.state, self.standing())
    }

    /// What is missing and who has it; whether our own limit holds others up.
    fn standing(&self) -> Option<Standing> {
        if self.record.ended.is_some() && self.join.role != Role::Source {
            return None;
        }
        let limited =
            self.host.limiter.is_some() && self.peers.values().any(|peer| peer.link.conn.queued_blocks() > 0);
        let found = match &self.machine {
            Machine::Destination(d) => d.standing(self.now(), HOLDERS_TOLD),
            _ => Some(sync_core::Standing::default()),
        }?;
        let told = |h: sync_core::Holder| Holder {
            peer: h.peer,
            has: h.has,
            asked: h.asked,
            silent_s: h.silent.as_secs() as u32,
            avoided: h.avoided,
        };
        let sync_core::Standing { missing, nowhere, writing, holders } = found;
        Some(Standing {
            missing,
            nowhere,
            writing,
            limited,
            holders: holders.into_iter().map(told).collect(),
        })
    }

    /// A call ended without a connection.
    pub(super) fn way_failed(&mut self, agent: AgentId) {
        if !self.peers.contains_key(&agent) {
            self.reaching.ways.failed(agent, "nobody answered where it was called".into());
        }
    }

    /// A peer is connected.
    pub(super) fn way_found(&mut self, agent: AgentId) {
        let now = Instant::now();
        self.look_at(now, agent);
        if let (Some(swarm), Some(discovery)) = (&self.reaching.swarm, &*self.host.discovery()) {
            discovery.stop_probing(swarm.swarm(), swarm.peer_id(&agent.0));
        }
    }

    /// A connection is gone.
    pub(super) fn way_lost(&mut self, agent: AgentId) {
        self.reaching.gossip.remove(&agent);
        self.reaching.search.lost(agent);
        self.reaching.ways.lost(agent);
    }

    fn look_at(&mut self, now: Instant, agent: AgentId) {
        let Some(peer) = self.peers.get(&agent) else { return };
        let r = &mut self.reaching;
        let port = self.host.endpoint.local_addr().port();
        let way = r.ways.look(now, agent, &peer.link.conn, port, r.search.relay_of(agent));
        r.search.connected(now, agent, way == Way::Relayed);
    }

    fn look_at_ways(&mut self, now: Instant) {
        let connected: Vec<AgentId> = self.peers.keys().copied().collect();
        connected.into_iter().for_each(|agent| self.look_at(now, agent));
        for (agent, met, by_relay) in self.reaching.search.end_meetings(now) {
            if by_relay {
                self.reaching.ways.failed(agent, "the relay ended the meeting".into());
            }
            // Without the relay the connection is dead; better to know than to wait for silence.
            if let Some(peer) = self.peers.get(&agent).filter(|p| place(&p.link.conn) == met.place) {
                peer.link.close(crate::run::link::code::GOING, "the relay ended the meeting");
            }
        }
        self.board.lock().connections = self.reaching.ways.shown();
    }

    // --- peers told by peers ---

    fn tell_peers(&mut self, now: Instant) {
        let known: Vec<KnownPeer> = self
            .peers
            .iter()
            .filter_map(|(agent, peer)| {
                let remote = direct_place(&peer.link.conn)?;
                Some(KnownPeer {
                    agent: *agent,
                    addresses: vec![PackedAddress::new(remote)],
                    relay: self.reaching.search.relays.is_relay(*agent),
                })
            })
            .collect();
        for (agent, peer) in &self.peers {
            if !peer.link.is_active() {
                continue;
            }
            let gossip = self.reaching.gossip.entry(*agent).or_default();
            let since = gossip.told_at.map(|at| now - at);
            let others = known.iter().filter(|k| k.agent != *agent);
            let fresh = others.clone().any(|k| !gossip.told.contains(k));
            let due = since.is_none_or(|s| s >= if fresh { TELL.0 } else { TELL.1 });
            if !due || !fresh {
                continue;
            }
            // From another place on for each, so that with many peers all are told of by somebody.
            let start = usize::from(agent.0[0]) % known.len().max(1);
            let peers: Vec<KnownPeer> = known
                .iter()
                .cycle()
                .skip(start)
                .take(known.len())
                .filter(|k| k.agent != *agent)
                .take(PEERS_TOLD)
                .cloned()
                .collect();
            (gossip.told_at, gossip.told) = (Some(now), known.clone());
            peer.link.send(&PeerMessage::from(Peers { peers }));
        }
    }

    /// A peer tells whom it is connected to.
    pub(super) fn take_peers(&mut self, agent: AgentId, told: &Peers) {
        let now = Instant::now();
        let gossip = self.reaching.gossip.entry(agent).or_default();
        if gossip.heard_at.replace(now).is_some_and(|at| now - at < TOLD_LEAST) {
            return;
        }
        let Some(swarm) = self.reaching.swarm.clone() else { return };
        let on_loopback = self.peers.get(&agent).and_then(|p| p.link.conn.proven_remote());
        let on_loopback = on_loopback.is_some_and(|at| at.ip().is_loopback());
        for known in told.peers.iter().take(PEERS_TOLD) {
            let is_member = self.join.peers.iter().any(|p| p.agent == known.agent);
            if known.agent == self.host.me || !is_member || self.peers.contains_key(&known.agent) {
                continue;
            }
            let addresses: Vec<SocketAddr> = known
                .addresses
                .iter()
                .take(ADDRESSES_TOLD)
                .filter_map(PackedAddress::address)
                .filter(|a| (on_loopback || !a.ip().is_loopback()) && !Endpoint::is_detour(*a))
                .collect();
            let r = &mut self.reaching;
            for addr in &addresses {
                if !r.gossiped.contains(addr) {
                    r.gossiped.truncate(GOSSIPED - 1);
                    r.gossiped.insert(0, *addr);
                }
            }
            if let Some(discovery) = &*self.host.discovery() {
                discovery.probe(swarm.swarm(), swarm.peer_id(&known.agent.0), &addresses);
            }
        }
    }
}
