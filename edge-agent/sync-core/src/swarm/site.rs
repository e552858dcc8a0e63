//! Peers at the same site: what each site fetches from afar is fetched once (`edge-agent/PROTOCOL.md` §3.7).
//!
//! A block that a near peer has, or says it is fetching, is not asked of far ones. Which of the near peers
//! fetches a block is settled without asking: each has a rank for each block, the same for all who know of each
//! other, and asks for it the later the higher its rank. So the first in rank asks at once, and who is away,
//! busy or cannot reach a holder is replaced by the next.

use alloc::vec::Vec;
use core::time::Duration;

use agent_proto::peer::{BlockRange, Fetching};
use event_schema::AgentId;
use timebase::Instant;

use super::Swarm;
use crate::ranges::{disjoint, merge, messages};

/// A near peer that said it is fetching a block, and does not have it after so long, is not waited for: ten times
/// what a block takes from afar when links are thin and busy.
const PATIENCE: Duration = Duration::from_secs(6);
/// Blocks whose waiting is kept account of.
const WAITING_MAX: usize = 4096;

impl Swarm {
    /// A peer is at our site, or is not.
    pub(crate) fn set_near(&mut self, id: AgentId, near: bool) {
        let Some(peer) = self.peers.get_mut(&id).filter(|p| p.near != near) else { return };
        peer.near = near;
        self.see_site();
        self.wake_all();
    }

    /// Learns anew what our site has or is fetching, after somebody came, went or turned out to be useless.
    pub(super) fn see_site(&mut self) {
        let near = || self.peers.values().filter(|p| p.near && p.counts());
        let mut sited = crate::block_map::BlockMap::new(self.have.len());
        for peer in near() {
            peer.have.ranges().for_each(|range| _ = sited.insert_range(range));
            peer.fetching.keys().for_each(|block| _ = sited.insert(*block));
        }
        self.near = near().count();
        self.sited = sited;
        if self.near == 0 {
            self.waiting.clear();
        }
    }

    /// A near peer is fetching blocks from afar.
    pub(crate) fn handle_fetching(&mut self, now: Instant, id: AgentId, ranges: &[BlockRange]) {
        let len = self.have.len();
        let Some(peer) = self.peers.get_mut(&id).filter(|p| p.near && p.counts()) else { return };
        for block in disjoint(ranges, self.space, len).into_iter().flatten() {
            if peer.fetching.len() >= WAITING_MAX {
                break;
            }
            if !peer.have.contains(block) {
                peer.fetching.insert(block, now);
                self.sited.insert(block);
            }
        }
    }

    /// Tells near peers what is being fetched, so that they do not.
    pub(super) fn tell_fetching(&mut self, blocks: &[u64]) {
        let near = |peer: &super::Peer| peer.near && !peer.have.is_complete();
        for &id in self.peers.iter().filter(|(_, p)| near(p)).map(|(id, _)| id) {
            for ranges in messages(self.space, merge(blocks.to_vec())) {
                self.out.push_back((id, Fetching { ranges }.into()));
            }
        }
    }

    /// Whether it is our turn to fetch a block from afar.
    pub(super) fn is_our_turn(&self, block: u64) -> bool {
        if self.near == 0 {
            return true;
        }
        let waited = self.waiting.get(&block).copied().unwrap_or(0);
        let mine = weight(block, &self.me);
        let before = self.peers.iter().filter(|(id, p)| p.near && p.counts() && weight(block, id) > mine);
        before.take(usize::from(waited) + 1).count() <= usize::from(waited)
    }

    /// Looks, every tick, what nobody at the site has taken on, and stops waiting for who takes too long.
    pub(super) fn look_at_site(&mut self, now: Instant) {
        if self.near == 0 {
            return;
        }
        let mut over = Vec::new();
        for peer in self.peers.values_mut().filter(|p| p.near) {
            let have = &peer.have;
            over.extend(
                peer.fetching
                    .extract_if(.., |block, since| have.contains(*block) || now - *since >= PATIENCE)
                    .map(|(block, _)| block),
            );
        }
        for block in over {
            let near = |p: &&super::Peer| p.near && p.counts();
            let still = |p: &super::Peer| p.have.contains(block) || p.fetching.contains_key(&block);
            if !self.peers.values().filter(near).any(still) {
                self.sited.remove(block);
            }
        }
        let (taken, sited) = (&self.taken, &self.sited);
        self.waiting.retain(|block, _| !taken.contains(*block) && !sited.contains(*block));
        self.waiting.values_mut().for_each(|ticks| *ticks = ticks.saturating_add(1));
        let start = self.chance.below(self.have.len());
        for peer in self.peers.values().filter(|p| !p.near && p.counts()) {
            let mut from = start;
            while let Some(block) = peer.have.next_in_none_of(&[&self.taken, &self.sited], from)
                && self.waiting.len() < WAITING_MAX
            {
                self.waiting.entry(block).or_insert(0);
                from = block + 1;
            }
        }
    }
}

/// An agent's weight for a block: a hash, so that each is first for about as many blocks.
fn weight(block: u64, agent: &AgentId) -> u64 {
    let words = agent.0.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default()));
    words.fold(block.wrapping_mul(0x9e37_79b9_7f4a_7c15), |hash, word| {
        let mixed = (hash ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 29)
    })
}
