//! The connections of one run: calling, taking, losing them.

use event_schema::{AgentId, RunAgentState};
use tokio::time::Instant;
use utp2_tokio::{Connection, Handle};

use super::{Machine, Peer, Task};
use crate::run::dial::call;
use crate::run::event::Wakeup;
use crate::run::limits::{CROSSING, PEERS_DIALLED, PEERS_MAX};
use crate::run::link::{Link, code};
use crate::run::neighbourhood::Admission;

impl Task {
    pub(super) fn is_present(&self, agent: AgentId, handle: Handle) -> bool {
        self.peers.get(&agent).is_some_and(|p| p.link.handle() == handle)
    }

    pub(super) fn call_peers(&mut self, now: Instant) {
        if self.state == RunAgentState::Failed {
            return;
        }
        let at = self.now();
        while let Some(agent) = self.neighbourhood.next_drop(at) {
            self.part(agent, "of no use at the moment");
        }
        while let Some(agent) = self.neighbourhood.next_call(at) {
            if !self.dialer.call_now(now, agent) {
                self.neighbourhood.failed(at, agent);
            }
        }
        let room = PEERS_DIALLED.saturating_sub(self.peers.len());
        let (peers, neighbourhood) = (&self.peers, &self.neighbourhood);
        let not_now = |agent| peers.contains_key(&agent) || !neighbourhood.is_chosen(agent);
        for (agent, addresses) in self.dialer.due(now, room, not_now) {
            self.want(now, agent, &addresses);
            let (endpoint, context, wakeups) =
                (self.host.endpoint.clone(), self.context, self.wakeups.clone());
            tokio::spawn(async move {
                let conn = call(endpoint, context, agent, addresses).await;
                // A run that ended meanwhile drops, and so closes, the connection.
                let _ = wakeups.send(Wakeup::Called(agent, conn)).await;
            });
        }
    }

    /// Ends the connection with a neighbour whose place another is to have.
    fn part(&mut self, agent: AgentId, why: &str) {
        match self.peers.get(&agent) {
            Some(peer) => {
                let handle = peer.link.handle();
                peer.link.close(code::CROWDED, why);
                self.drop_peer(agent, handle);
            }
            None => self.neighbourhood.disconnected(self.now(), agent),
        }
    }

    /// Takes a connection, unless a better one is there.
    pub(super) fn adopt(&mut self, conn: Connection) {
        let agent = AgentId::of_key(&conn.peer().public_key);
        if agent == self.host.me || self.state == RunAgentState::Failed {
            return conn.close(code::GOING, "not in this run");
        }
        if let Some(there) = self.peers.get(&agent) {
            let crossing = there.link.opened.elapsed() < CROSSING
                && there.link.conn.is_initiator() != conn.is_initiator();
            // Of two that crossed, both sides keep the one made by the smaller id. Otherwise the peer made
            // a new one because it lost the old one.
            let by_smaller = conn.is_initiator() == (self.host.me < agent);
            if crossing && !by_smaller {
                return conn.close(code::DOUBLE, "connected already");
            }
            let old = there.link.handle();
            there.link.close(code::DOUBLE, "another connection takes over");
            self.drop_peer(agent, old);
        } else if self.peers.len() >= PEERS_MAX {
            return conn.close(code::CROWDED, "as many peers as there may be");
        } else {
            match self.neighbourhood.admit(agent) {
                Admission::Kept => {}
                Admission::KeptInsteadOf(other) => self.part(other, "another one needs the place"),
                Admission::TurnedAway => {
                    self.neighbourhood.failed(self.now(), agent);
                    return conn.close(code::CROWDED, "as many neighbours as there may be");
                }
            }
        }
        let limited = self.host.limiter.as_ref().map(|limiter| limiter.add(&conn));
        if !self.is_avoided(agent) {
            self.blocks.admit(conn.handle());
        }
        self.handles.insert(conn.handle(), agent);
        tracing::info!(run = %self.join.run, peer = %agent, remote = %conn.remote(), "peer connected");
        let mut link = Link::new(agent, conn, &self.wakeups);
        let now = self.now();
        self.neighbourhood.connected(now, agent);
        match &mut self.machine {
            Machine::Origin(o) => o.handle_connected(now, agent),
            Machine::Destination(d) => {
                d.handle_connected(now, agent);
                if self.neighbourhood.is_local(agent) {
                    d.handle_local(agent);
                }
                d.handle_rtt(agent, link.conn.stats().rtt);
            }
            Machine::None => {}
        }
        if !matches!(self.machine, Machine::None) {
            link.activate(agent, &self.wakeups);
        }
        self.peers.insert(agent, Peer { link, _limited: limited });
        self.way_found(agent);
    }

    pub(super) fn drop_peer(&mut self, agent: AgentId, handle: Handle) {
        self.blocks.forget(handle);
        self.handles.remove(&handle);
        if !self.is_present(agent, handle) {
            return;
        }
        self.peers.remove(&agent);
        self.way_lost(agent);
        tracing::info!(run = %self.join.run, peer = %agent, "peer gone");
        let now = self.now();
        self.neighbourhood.disconnected(now, agent);
        match &mut self.machine {
            Machine::Origin(o) => o.handle_disconnected(agent),
            Machine::Destination(d) => d.handle_disconnected(now, agent),
            Machine::None => {}
        }
        self.dialer.lost(Instant::now(), agent);
    }
}
