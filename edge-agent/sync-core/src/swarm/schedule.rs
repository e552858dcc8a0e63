//! What to ask of whom now.

use alloc::collections::btree_map::Entry;
use alloc::vec::Vec;

use agent_proto::peer::{PeerMessage, Request, Want};
use event_schema::AgentId;
use timebase::Instant;

use super::{Askers, Peer, Swarm};
use crate::ranges::{merge, messages};

/// Places looked at to find a rare block: a few random probes come close to the rarest of all, at a cost
/// that does not grow with the run.
const PROBES: usize = 8;
/// Blocks behind the mean of all peers that make the pipelines one block deeper.
const BEHIND: u64 = 16;
/// Blocks passed over at most in one search for one that is ours to fetch.
const TURNS_MAX: usize = 512;
/// Blocks passed over at most in one search for what only the origin has.
const SEARCH_MAX: usize = 1 << 16;

impl Swarm {
    /// Tops up what peers that are ready are asked, the source last, for what the others do not give.
    pub(super) fn schedule(&mut self, now: Instant) {
        let mut ids = core::mem::take(&mut self.ready);
        let idle = self.paused || self.is_settled();
        let shift = self.chance.below(ids.len() as u64) as usize;
        ids.rotate_left(shift);
        let (mut source, mut full) = (None, self.room_of_all() == 0);
        for id in ids {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            if !idle && full && !peer.origin {
                // Its turn comes when something has arrived.
                self.held.push(id);
                continue;
            }
            peer.ready = false;
            if idle || peer.snubbed.is_some() || peer.shunned {
                continue;
            }
            if peer.origin {
                source = Some(id);
                continue;
            }
            let room = self.room(id);
            let picked = self.pick(id, room);
            if !picked.is_empty() {
                self.request(now, id, picked);
                full = self.room_of_all() == 0;
            }
        }
        if let Some(id) = source {
            self.want(now, id);
            if self.patience.is_asking() {
                self.ask_origin(now, id);
            }
        }
    }

    /// Blocks that are neither verified nor on their way by a request.
    pub(super) fn open(&self) -> u64 {
        self.have.len() - self.taken.count()
    }

    /// How many more blocks to ask of all peers together now. What is asked for waits in the queues of others:
    /// more than what soon arrives would make every block's way through the swarm longer.
    fn room_of_all(&self) -> usize {
        let (least, most) = (self.config.pipeline_all, self.config.outstanding_max as u32);
        let target = self.pace.target(&self.config, least, most) as usize;
        let asked = self.asked.len() - self.late.min(self.asked.len());
        let room = target.saturating_sub(asked);
        if room * 8 < target && asked > 0 {
            return 0;
        }
        room.min(self.config.outstanding_max.saturating_sub(self.asked.len() + self.checking.len()))
    }

    /// How many more blocks to ask of a peer now; 0 while enough are asked, so that requests are few and long.
    fn room(&self, id: AgentId) -> usize {
        let peer = &self.peers[&id];
        let target = peer.pace.target(&self.config, self.depth, self.config.pipeline_max) as usize;
        let room = target.saturating_sub(peer.asked.len());
        if room * 4 < target && !peer.asked.is_empty() {
            return 0;
        }
        room.min(self.room_of_all()).min(self.room_of_far(id))
    }

    /// How many more blocks may be asked of a far peer, for the sake of the site's link: its near ones ask, too.
    fn room_of_far(&self, id: AgentId) -> usize {
        if self.near == 0 || self.peers[&id].near {
            return usize::MAX;
        }
        let (least, most) = (4 * self.config.pipeline_min, self.config.pipeline_max);
        let asked: usize = self.peers.values().filter(|p| !p.near && !p.origin).map(|p| p.asked.len()).sum();
        (self.far_pace.target(&self.config, least, most) as usize).saturating_sub(asked)
    }

    /// Counts what is asked of peers that have been silent for long.
    pub(super) fn count_late(&mut self, now: Instant) {
        let long = |p: &&Peer| now - p.active >= self.config.endgame_after.max(4 * p.pace.rtt);
        self.late = self.peers.values().filter(long).map(|p| p.asked.len()).sum();
    }

    /// Decides how deep to ask peers of whose pace little is known. With many peers not deep at all: a block asked
    /// early waits in one peer's queue while another idles, or gets a rarer one. Who has fallen behind its peers
    /// asks deeper, and so gets more of their turns.
    pub(super) fn sound(&mut self) {
        let usable = || self.peers.values().filter(|p| p.counts());
        let (count, blocks) = usable().fold((0, 0), |(n, blocks), p| (n + 1, blocks + p.have.count()));
        let behind = (blocks / count.max(1)).saturating_sub(self.have.count());
        let most = u64::from(self.config.pipeline_min);
        let shared = (8 * most / count.max(1)).clamp(1, most);
        self.depth = (shared + behind / BEHIND).min(most) as u32;
    }

    /// Takes up to `room` missing blocks that the peer has, in short runs: what comes first before the rest, and of that
    /// rare ones first. Whoever has nothing of what comes first is asked for what it has.
    fn pick(&mut self, id: AgentId, room: usize) -> Vec<u64> {
        let mut picked = Vec::new();
        for class in 0..=self.later.len() {
            if picked.len() >= room {
                break;
            }
            self.pick_of(class, id, room, &mut picked);
        }
        picked
    }

    /// The same of one class, and of those before it.
    fn pick_of(&mut self, class: usize, id: AgentId, room: usize, picked: &mut Vec<u64>) {
        let Some(peer) = self.peers.get(&id) else { return };
        let far = self.near > 0 && !peer.near;
        while picked.len() < room {
            let mut best: Option<(u16, u64)> = None;
            for _ in 0..PROBES {
                let from = self.chance.below(self.have.len());
                let next = |from| {
                    if far {
                        return self.next_from_afar(peer, class, from);
                    }
                    match self.later.get(class) {
                        Some(later) => peer.have.next_in_none_of(&[&self.taken, later], from),
                        None => peer.have.next_not_in(&self.taken, from),
                    }
                };
                let Some(block) = next(from).or_else(|| next(0)) else { break };
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
            let run = if far { 1 } else { run };
            for block in first..first + run {
                let is_later = self.later.get(class).is_some_and(|later| later.contains(block));
                if is_later
                    || !peer.have.contains(block)
                    || self.supply.at(block) > rarest
                    || !self.taken.insert(block)
                {
                    break;
                }
                picked.push(block);
            }
        }
    }

    /// The next block from `from` on that a far peer has, that nobody at our site has or fetches, and that is ours to
    /// fetch.
    fn next_from_afar(&self, peer: &Peer, class: usize, mut from: u64) -> Option<u64> {
        for _ in 0..TURNS_MAX {
            let block = self.next_unsited(peer, class, from)?;
            if self.is_our_turn(block) {
                return Some(block);
            }
            from = block + 1;
        }
        None
    }

    /// The next block from `from` on that a peer has, of a class or one before it, that nobody is asked for and nobody at
    /// our site has or fetches.
    fn next_unsited(&self, peer: &Peer, class: usize, from: u64) -> Option<u64> {
        match self.later.get(class) {
            Some(later) => peer.have.next_in_none_of(&[&self.taken, &self.sited, later], from),
            None => peer.have.next_in_none_of(&[&self.taken, &self.sited], from),
        }
    }

    fn request(&mut self, now: Instant, id: AgentId, blocks: Vec<u64>) {
        let Some(peer) = self.peers.get_mut(&id).filter(|_| !blocks.is_empty()) else { return };
        if peer.asked.is_empty() {
            peer.active = now;
        }
        for &block in &blocks {
            peer.asked.insert(block, now);
            match self.asked.entry(block) {
                Entry::Vacant(entry) => _ = entry.insert(Askers(id, None)),
                Entry::Occupied(mut entry) => entry.get_mut().1 = Some(id),
            }
        }
        if self.near > 0 && !peer.near {
            self.tell_fetching(&blocks);
        }
        for ranges in messages(self.space, merge(blocks)) {
            self.out.push_back((id, PeerMessage::from(Request { ranges })));
        }
    }

    /// Once everything is asked of somebody, idle peers are asked for what others owe too long.
    pub(super) fn endgame(&mut self, now: Instant) {
        if self.open() > 0 {
            return;
        }
        let least = self.config.endgame_after;
        let mut late: Vec<u64> = self
            .asked
            .iter()
            .filter(|(block, askers)| {
                let peer = self.peers.get(&askers.0).filter(|_| askers.1.is_none());
                let old = |p: &Peer, since: Instant| now - since >= least.max(3 * p.pace.rtt);
                peer.is_some_and(|p| p.asked.get(block).is_some_and(|since| old(p, *since)))
            })
            .map(|(block, _)| *block)
            .collect();
        // What the site fetches from afar it fetches twice only when much later.
        let much = |block: &u64| {
            let asker = &self.asked[block].0;
            self.peers[asker].asked.get(block).is_some_and(|since| now - *since >= 6 * least)
        };
        let later: Vec<u64> =
            if self.near > 0 { late.iter().copied().filter(much).collect() } else { late.clone() };
        let idle = |p: &Peer| !p.origin && !p.shunned && p.snubbed.is_none() && p.asked.is_empty();
        let mut ids: Vec<AgentId> = self.peers.iter().filter(|(_, p)| idle(p)).map(|(id, _)| *id).collect();
        let shift = self.chance.below(ids.len() as u64) as usize;
        ids.rotate_left(shift);
        for id in ids {
            let (mut picked, most) = (Vec::new(), self.config.pipeline_min as usize);
            late.retain(|block| {
                let peer = &self.peers[&id];
                let take =
                    picked.len() < most && peer.have.contains(*block) && (peer.near || later.contains(block));
                if take {
                    picked.push(*block);
                }
                !take
            });
            self.request(now, id, picked);
        }
    }

    /// Keeps the origin's credit up: what arrives in the next moments, never more than is missing.
    fn want(&mut self, now: Instant, id: AgentId) {
        let open = self.open();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let target = peer.pace.target(&self.config, self.config.pipeline_min, self.config.want_max);
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
        let start = self.chance.below(self.have.len());
        let (mut class, mut wrapped, mut from) = (0, false, start);
        while picked.len() < room && passed < SEARCH_MAX {
            match self.next_unsited(&self.peers[&id], class, from) {
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
                _ if class < self.later.len() => (class, wrapped, from) = (class + 1, false, start),
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
