//! The connections of one synchronization: calling, taking, losing them; messages and blocks on their ways.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use agent_proto::limits::BLOCK_LEN;
use agent_proto::sync::{block_tag, of_block_tag};
use event_schema::AgentId;
use sync_core::merkle::Hash;
use tokio::time::Instant;
use utp2_tokio::{Connection, Handle};

use super::SENDING_BYTES;
use super::engine::{Job, Reading, Serve};
use super::link::{Link, Net};
use super::serve::Arrived;
use super::task::{Peer, SyncTask};
use crate::memory::share;
use crate::run::dial::{Dialer, call};
use crate::run::event::Wakeup;
use crate::run::limits::{CROSSING, PEERS_DIALLED, PEERS_MAX};
use crate::run::link::code;

/// Members of a job with whom everybody connects to everybody.
const SMALL: usize = 32;

/// Blocks that are sent unasked at once, in tests.
const INTRUDED: u32 = 16;

impl SyncTask {
    // --- blocks ---

    /// Reads what there is room for.
    pub(super) fn pump(&mut self) {
        if self.blocks.bytes_sending() < share(SENDING_BYTES) {
            self.intrude();
        }
        let Some(engine) = &self.engine else { return };
        let block = agent_proto::limits::BLOCK_LEN as usize;
        while self.blocks.bytes_sending() + self.reading * block < share(SENDING_BYTES)
            && let Some(reading) = self.uploads.pop_front()
        {
            self.reading += 1;
            engine.serve(Serve::Block(reading));
        }
    }

    /// If this agent is to misbehave: blocks that nobody asked for, under numbers that the transfers of others may have.
    fn intrude(&mut self) {
        for peer in self.peers.values().filter(|_| self.host.corrupt) {
            let handle = peer.link.handle();
            for _ in 0..INTRUDED {
                self.intruded = self.intruded.wrapping_add(1);
                let tag = block_tag(self.intruded / 1024 % 8, self.intruded % 1024);
                self.blocks.keep(handle, tag, std::iter::repeat_n(0xbd, BLOCK_LEN as usize).collect());
                // A connection that ended takes nothing.
                let _ = peer.link.conn.send_block(tag, BLOCK_LEN, 0);
            }
        }
    }

    pub(super) fn send_block(&mut self, reading: Reading, data: Option<Arc<[u8]>>) {
        self.reading = self.reading.saturating_sub(1);
        let Reading { agent, handle, transfer, ref path, block, .. } = reading;
        if !self.is_present(agent, handle) {
            return;
        }
        let Some(peer) = self.peers.get(&agent) else { return };
        let Some(data) = data else {
            return self.with(|r, now, index| r.handle_read_failed(now, index, agent, transfer, path));
        };
        let (tag, len) = (block_tag(transfer, block), data.len() as u32);
        let new = self.blocks.keep(handle, tag, data);
        match peer.link.conn.send_block(tag, len, 0) {
            // Asked for twice: one event for both.
            Ok(()) if !new => self.with(|r, now, index| r.handle_sent(now, index, agent)),
            Ok(()) => {}
            Err(error) => {
                // The connection is over, or takes nothing more: whoever wants it asks again.
                tracing::debug!(%agent, %error, "a block is not sent");
                if new {
                    self.blocks.sent(handle, tag);
                }
                self.with(|r, now, index| r.handle_sent(now, index, agent));
            }
        }
    }

    /// Only what was asked of this peer is written, and one copy of a block at a time: another one may be wrong, and would
    /// stand in the place of what was found right.
    pub(super) fn take_block(&mut self, arrived: Arrived) {
        let Some(&agent) = self.handles.get(&arrived.handle) else { return };
        let Some(engine) = &self.engine else { return };
        let (transfer, block) = (arrived.transfer, arrived.block);
        match engine.replica.expected_block(agent, transfer, block) {
            Some(len) if len == arrived.data.len() as u32 => {}
            Some(_) => {
                return self
                    .with(|r, now, index| r.handle_block(now, index, agent, transfer, block, &[0; 32]));
            }
            None => return,
        }
        match self.writing.entry((transfer, block)) {
            Entry::Vacant(entry) => {
                entry.insert(None);
                engine.work(Job::Write(arrived));
            }
            // The first was asked of somebody who lost it since.
            Entry::Occupied(mut entry) => _ = entry.insert(Some(arrived)),
        }
    }

    pub(super) fn block_written(&mut self, handle: Handle, (transfer, block): (u32, u32), hash: &Hash) {
        let next = self.writing.remove(&(transfer, block)).flatten();
        if let Some(&agent) = self.handles.get(&handle) {
            self.with(|r, now, index| r.handle_block(now, index, agent, transfer, block, hash));
        }
        if let Some(next) = next {
            self.take_block(next);
        }
    }

    pub(super) fn take_net(&mut self, net: Net) {
        match net {
            Net::Message(agent, handle, message) if self.is_present(agent, handle) => {
                self.with(|r, now, index| r.handle_message(now, index, agent, message));
            }
            Net::Sent(agent, handle, sent) if self.is_present(agent, handle) => {
                for (tag, arrived) in sent {
                    let (transfer, _) = of_block_tag(tag);
                    if let Some(len) = self.blocks.sent(handle, tag) {
                        self.bytes_sent += u64::from(len) * u64::from(arrived);
                    } else {
                        tracing::debug!(%agent, transfer, "news of a block that was not kept");
                    }
                    self.with(|r, now, index| r.handle_sent(now, index, agent));
                }
            }
            Net::Passed(agent, handle) if self.is_present(agent, handle) => {
                self.with(|r, now, index| r.handle_hashes_sent(now, index, agent));
            }
            // From a connection that another one took over.
            Net::Message(..) | Net::Sent(..) | Net::Passed(..) => {}
        }
    }

    // --- connections ---

    /// The connection with a member.
    pub(super) fn connection(&self, agent: AgentId) -> Option<&Connection> {
        self.peers.get(&agent).map(|peer| &peer.link.conn)
    }

    pub(super) fn is_present(&self, agent: AgentId, handle: Handle) -> bool {
        self.peers.get(&agent).is_some_and(|p| p.link.handle() == handle)
    }

    /// Whether this agent calls a member: all in a small job, else those at certain distances in the order of ids, so that
    /// everybody is connected with everybody over few others, whoever is away.
    pub(super) fn is_chosen(&self, agent: AgentId) -> bool {
        let count = self.job.members.len();
        if count <= SMALL {
            return true;
        }
        let before = |of: AgentId| self.job.members.iter().filter(|m| m.agent < of).count();
        let apart = before(agent).abs_diff(before(self.host.me));
        let apart = apart.min(count - apart);
        apart <= 4 || apart.is_power_of_two() || (apart / 3).is_power_of_two() && apart.is_multiple_of(3)
    }

    pub(super) fn call_members(&mut self, now: Instant) {
        let room = PEERS_DIALLED.saturating_sub(self.peers.len());
        let mut dialer = std::mem::replace(&mut self.dialer, Dialer::new(now, self.host.me, []));
        let due = dialer.due(now, room, |agent| self.peers.contains_key(&agent) || !self.is_chosen(agent));
        self.dialer = dialer;
        for (agent, addresses) in due {
            self.wanted(now, agent, &addresses);
            let (endpoint, context, wakeups) =
                (self.host.endpoint.clone(), self.context, self.wakeups.clone());
            tokio::spawn(async move {
                let conn = call(endpoint, context, agent, addresses).await;
                // A job that ended meanwhile drops, and so closes, the connection.
                let _ = wakeups.send(Wakeup::Called(agent, conn)).await;
            });
        }
    }

    /// Takes a connection, unless a better one is there.
    pub(super) fn adopt(&mut self, conn: Connection) {
        let agent = AgentId::of_key(&conn.peer().public_key);
        let is_member = self.job.members.iter().any(|m| m.agent == agent);
        if agent == self.host.me || !is_member || self.engine.is_none() {
            return conn.close(code::GOING, "not in this job now");
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
        }
        let limited = self.host.limiter.as_ref().map(|limiter| limiter.add(&conn));
        self.blocks.admit(conn.handle());
        self.handles.insert(conn.handle(), agent);
        tracing::info!(run = %self.job.run, peer = %agent, remote = %conn.remote(), "member connected");
        let link = Link::new(agent, conn, &self.wakeups, &self.to_net);
        self.peers.insert(agent, Peer { link, _limited: limited });
        self.way_found(agent);
        self.with(|r, now, index| r.handle_connected(now, index, agent));
    }

    pub(super) fn drop_peer(&mut self, agent: AgentId, handle: Handle) {
        self.blocks.forget(handle);
        self.handles.remove(&handle);
        self.uploads.retain(|reading| reading.handle != handle);
        if !self.is_present(agent, handle) {
            return;
        }
        self.peers.remove(&agent);
        self.way_lost(agent);
        tracing::info!(run = %self.job.run, peer = %agent, "member gone");
        self.with(|r, now, index| r.handle_disconnected(now, index, agent));
        self.dialer.lost(Instant::now(), agent);
    }
}
