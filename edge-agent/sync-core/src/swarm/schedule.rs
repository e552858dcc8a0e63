//! What to ask of whom now.

use alloc::vec::Vec;

use agent_proto::peer::{PeerMessage, Request, Want};
use event_schema::AgentId;
use timebase::Instant;

use super::Swarm;
use crate::ranges::{merge, messages};

/// Places looked at to find a rare block: a few random probes come close to the rarest of all, at a cost
/// that does not grow with the run.
const PROBES: usize = 8;
/// Blocks passed over at most in one search for what only the origin has.
const SEARCH_MAX: usize = 1 << 16;

impl Swarm {
    /// Tops up what every peer is asked; the source comes last, for what the others do not give.
    pub(super) fn schedule(&mut self, now: Instant) {
        if self.paused || self.is_settled() {
            return;
        }
        let mut ids: Vec<AgentId> = self.peers.keys().copied().collect();
        let shift = self.chance.below(ids.len() as u64) as usize;
        ids.rotate_left(shift);
        ids.sort_by_key(|id| self.peers[id].source);
        for id in ids {
            if self.peers[&id].snubbed.is_some() || self.peers[&id].shunned {
                continue;
            }
            if self.peers[&id].origin {
                self.want(now, id);
                if self.patience.is_asking() {
                    self.ask_origin(now, id);
                }
            } else {
                self.ask(now, id);
            }
        }
    }

    /// Blocks that are neither verified nor on their way by a request.
    fn open(&self) -> u64 {
        self.have.len() - self.taken.count()
    }

    /// How many more blocks to ask of a peer now; 0 while enough are asked, so that requests are few and long.
    fn room(&self, id: AgentId) -> usize {
        let peer = &self.peers[&id];
        let target = peer.pace.target(&self.config, self.config.pipeline_max) as usize;
        let room = target.saturating_sub(peer.asked.len());
        if room * 4 < target && !peer.asked.is_empty() {
            return 0;
        }
        room.min(self.config.outstanding_max.saturating_sub(self.asked.len() + self.checking.len()))
    }

    fn ask(&mut self, now: Instant, id: AgentId) {
        let room = self.room(id);
        if room == 0 || self.peers[&id].dry {
            if self.peers[&id].dry {
                self.endgame(now, id);
            }
            return;
        }
        let picked = self.pick(id, room);
        if picked.is_empty() {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.dry = true;
            }
            self.endgame(now, id);
        } else {
            self.request(now, id, picked);
        }
    }

    /// Takes up to `room` missing blocks that the peer has, in short runs, rare ones first.
    fn pick(&mut self, id: AgentId, room: usize) -> Vec<u64> {
        let peer = &self.peers[&id];
        let mut picked = Vec::new();
        while picked.len() < room {
            let mut best: Option<(u16, u64)> = None;
            for _ in 0..PROBES {
                let from = self.chance.below(self.have.len());
                let found = peer.have.next_not_in(&self.taken, from);
                let Some(block) = found.or_else(|| peer.have.next_not_in(&self.taken, 0)) else { break };
                let supply = self.supply.at(block);
                if best.is_none_or(|(rarest, _)| supply < rarest) {
                    best = Some((supply, block));
                }
                if supply <= 1 {
                    break;
                }
            }
            let Some((rarest, first)) = best else { break };
            let run = room.saturating_sub(picked.len()).min(self.config.run_len as usize) as u64;
            for block in first..first + run {
                if !peer.have.contains(block) || self.supply.at(block) > rarest || !self.taken.insert(block) {
                    break;
                }
                picked.push(block);
            }
        }
        picked
    }

    fn request(&mut self, now: Instant, id: AgentId, blocks: Vec<u64>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.asked.is_empty() {
            peer.active = now;
        }
        for &block in &blocks {
            peer.asked.insert(block, now);
            self.asked.entry(block).or_default().push(id);
        }
        for ranges in messages(self.space, merge(blocks)) {
            self.out.push_back((id, PeerMessage::from(Request { ranges })));
        }
    }

    /// Once everything is asked of somebody, an idle peer is asked for what others owe too long.
    fn endgame(&mut self, now: Instant, id: AgentId) {
        let peer = &self.peers[&id];
        if self.open() > 0 || !peer.asked.is_empty() {
            return;
        }
        let old = self.config.endgame_after.max(3 * peer.pace.rtt);
        let late: Vec<u64> = self
            .asked
            .iter()
            .filter(|(block, askers)| {
                let since = |asker: &AgentId| self.peers.get(asker)?.asked.get(block).copied();
                askers.len() == 1
                    && askers[0] != id
                    && peer.have.contains(**block)
                    && since(&askers[0]).is_some_and(|since| now - since >= old)
            })
            .map(|(block, _)| *block)
            .take(self.config.pipeline_min as usize)
            .collect();
        if !late.is_empty() {
            self.request(now, id, late);
        }
    }

    /// Keeps the origin's credit up: what arrives in the next moments, never more than is missing.
    fn want(&mut self, now: Instant, id: AgentId) {
        let open = self.open();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let target = peer.pace.target(&self.config, self.config.want_max);
        let wanted = u64::from(target).saturating_sub(peer.asked.len() as u64).min(open) as u32;
        let more = wanted.saturating_sub(peer.credit);
        if more > 0 && (more * 4 >= target || peer.credit == 0) {
            if peer.credit == 0 {
                peer.active = now;
            }
            peer.credit += more;
            self.out.push_back((id, PeerMessage::from(Want { blocks: more })));
        }
    }

    /// Asks the origin for blocks that no other peer gives, at random places, so that destinations in the
    /// same need ask for different ones and help each other.
    fn ask_origin(&mut self, now: Instant, id: AgentId) {
        let room = self.room(id);
        if room == 0 {
            return;
        }
        let (mut picked, mut passed) = (Vec::new(), 0);
        let mut wrapped = false;
        let start = self.chance.below(self.have.len());
        let mut from = start;
        while picked.len() < room && passed < SEARCH_MAX {
            match self.peers[&id].have.next_not_in(&self.taken, from) {
                Some(block) if !wrapped || block < start => {
                    from = block + 1;
                    if self.supply.at(block) == 0 {
                        self.taken.insert(block);
                        picked.push(block);
                    } else {
                        passed += 1;
                    }
                }
                None if !wrapped => (wrapped, from) = (true, 0),
                _ => break,
            }
        }
        if !picked.is_empty() {
            self.request(now, id, picked);
        } else if self.peers[&id].asked.is_empty() {
            self.patience.satisfied(now);
        }
    }
}
