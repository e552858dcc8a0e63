//! Blocks waiting to be handed to the transport: a bounded queue a peer, served in turns.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use agent_proto::peer::BlockAddress;
use event_schema::AgentId;
use timebase::Instant;

use crate::config::UploadConfig;

/// Priority of manifest blocks: nothing else helps a peer that has no manifest.
pub(crate) const MANIFEST: u8 = 2;
/// Priority of blocks that were asked for.
pub(crate) const ASKED: u8 = 1;
/// Priority of blocks of the origin's choice.
pub(crate) const CHOSEN: u8 = 0;

/// What became of a cancelled block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cancelled {
    Waiting,
    Sending,
    NotHere,
}

/// Requests of one peer looked at when the next block is chosen.
const CHOICE: usize = 8;
/// Who has waited so long is served before rarer blocks: nobody starves, and nobody takes us for dead.
const PATIENCE: Duration = Duration::from_secs(1);
#[derive(Default)]
struct Lane {
    waiting: VecDeque<(BlockAddress, Instant)>,
    /// What of `waiting` still counts: a repeated request is one, a cancelled one none.
    known: BTreeSet<BlockAddress>,
    sending: BTreeSet<BlockAddress>,
    /// When it was last its turn, in blocks sent here.
    turn: u64,
}

/// All peers' queues.
pub(crate) struct Uploads {
    config: UploadConfig,
    lanes: BTreeMap<AgentId, Lane>,
    sending: usize,
    /// Requests that wait and count.
    waiting: usize,
    turns: u64,
}

impl Uploads {
    pub(crate) fn new(config: UploadConfig) -> Self {
        Self { config, lanes: BTreeMap::new(), sending: 0, waiting: 0, turns: 0 }
    }

    /// From now on within these limits.
    pub(crate) fn set_config(&mut self, config: UploadConfig) {
        self.config = config;
    }

    pub(crate) fn add_peer(&mut self, peer: AgentId) {
        self.lanes.entry(peer).or_default();
    }

    pub(crate) fn remove_peer(&mut self, peer: AgentId) {
        if let Some(lane) = self.lanes.remove(&peer) {
            self.sending -= lane.sending.len();
            self.waiting -= lane.known.len();
        }
    }

    /// Queues a block that was asked for; false if it is there already or there is no room.
    pub(crate) fn push(&mut self, now: Instant, peer: AgentId, block: BlockAddress) -> bool {
        let Some(lane) = self.lanes.get_mut(&peer) else { return false };
        if lane.waiting.len() >= self.config.queue_max
            || lane.sending.contains(&block)
            || !lane.known.insert(block)
        {
            return false;
        }
        lane.waiting.push_back((block, now));
        self.waiting += 1;
        true
    }

    /// Whether the transport may get a block of our choice for this peer now.
    pub(crate) fn has_room(&self, peer: AgentId) -> bool {
        self.sending < self.config.sending_total_max
            && self
                .lanes
                .get(&peer)
                .is_some_and(|l| l.known.is_empty() && l.sending.len() < self.config.sending_max)
    }

    /// Notes a block as handed to the transport without waiting; the caller asked [`Self::has_room`].
    pub(crate) fn start(&mut self, peer: AgentId, block: BlockAddress) {
        if self.lanes.get_mut(&peer).is_some_and(|lane| lane.sending.insert(block)) {
            self.sending += 1;
        }
    }

    /// The next block that may be handed to the transport: what helps the swarm most. Manifest blocks first, then
    /// who has waited too long, then the block that fewest of our peers have, as `supply` tells: whoever gets it
    /// passes it on. Else all in turns.
    pub(crate) fn next(
        &mut self,
        now: Instant,
        supply: impl Fn(BlockAddress) -> u16,
    ) -> Option<(AgentId, BlockAddress, u8)> {
        if self.waiting == 0 || self.sending >= self.config.sending_total_max {
            return None;
        }
        let mut best: Option<((u32, u64), AgentId, usize)> = None;
        for (&peer, lane) in &mut self.lanes {
            if lane.known.is_empty() || lane.sending.len() >= self.config.sending_max {
                continue;
            }
            while lane.waiting.front().is_some_and(|(block, _)| !lane.known.contains(block)) {
                lane.waiting.pop_front();
            }
            for (at, (block, since)) in lane.waiting.iter().enumerate().take(CHOICE) {
                if !lane.known.contains(block) {
                    continue;
                }
                let class = match () {
                    () if block.is_manifest() => 0,
                    () if now - *since >= PATIENCE => 1,
                    () => 2 + u32::from(supply(*block)),
                };
                if best.is_none_or(|(least, ..)| (class, lane.turn) < least) {
                    best = Some(((class, lane.turn), peer, at));
                }
            }
        }
        let (_, peer, at) = best?;
        let lane = self.lanes.get_mut(&peer)?;
        let (block, _) = lane.waiting.remove(at)?;
        lane.known.remove(&block);
        self.turns += 1;
        lane.turn = self.turns;
        self.waiting -= 1;
        self.start(peer, block);
        Some((peer, block, if block.is_manifest() { MANIFEST } else { ASKED }))
    }

    /// The transport is done with a block: acknowledged or failed.
    pub(crate) fn done(&mut self, peer: AgentId, block: BlockAddress) -> bool {
        let Some(lane) = self.lanes.get_mut(&peer) else { return false };
        let was_sending = lane.sending.remove(&block);
        self.sending -= usize::from(was_sending);
        was_sending
    }

    pub(crate) fn cancel(&mut self, peer: AgentId, block: BlockAddress) -> Cancelled {
        let Some(lane) = self.lanes.get_mut(&peer) else { return Cancelled::NotHere };
        if lane.known.remove(&block) {
            self.waiting -= 1;
            Cancelled::Waiting
        } else if self.done(peer, block) {
            Cancelled::Sending
        } else {
            Cancelled::NotHere
        }
    }

    /// Forgets a block everywhere; gives the peers in whose queues it was.
    pub(crate) fn drop_block(&mut self, block: BlockAddress) -> Vec<AgentId> {
        let peers: Vec<_> = self.lanes.keys().copied().collect();
        peers.into_iter().filter(|&peer| self.cancel(peer, block) != Cancelled::NotHere).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(i: u64) -> BlockAddress {
        BlockAddress::content(i)
    }

    #[test]
    fn serves_in_turns_within_limits() {
        let (a, b, now) = (AgentId([1; 16]), AgentId([2; 16]), Instant::ZERO);
        let mut uploads = Uploads::new(UploadConfig { sending_max: 2, sending_total_max: 3, queue_max: 4 });
        uploads.add_peer(a);
        uploads.add_peer(b);
        let pushed = (0..6).filter(|&i| uploads.push(now, a, block(i))).count();
        assert_eq!(pushed, 4, "the queue is bounded");
        assert!(!uploads.push(now, a, block(0)), "a repeated request is one request");
        assert!(uploads.push(now, b, block(0)));
        assert_eq!(uploads.next(now, |_| 1), Some((a, block(0), ASKED)));
        assert_eq!(uploads.next(now, |_| 1), Some((b, block(0), ASKED)));
        assert_eq!(uploads.next(now, |_| 1), Some((a, block(1), ASKED)));
        assert!(uploads.push(now, b, BlockAddress::manifest(0)));
        assert_eq!(uploads.next(now, |_| 1), None, "three at a time in all");
        assert!(uploads.done(b, block(0)));
        assert_eq!(uploads.next(now, |_| 1), Some((b, BlockAddress::manifest(0), MANIFEST)));
        assert_eq!(uploads.cancel(a, block(1)), Cancelled::Sending);
        assert_eq!(uploads.cancel(a, block(2)), Cancelled::Waiting);
        assert_eq!(uploads.cancel(a, block(2)), Cancelled::NotHere);
        assert_eq!(uploads.next(now, |_| 1), Some((a, block(3), ASKED)));
        uploads.remove_peer(a);
        assert!(uploads.has_room(b));
        assert_eq!(uploads.next(now, |_| 1), None);
    }

    #[test]
    fn rare_blocks_go_first_and_nobody_starves() {
        let (a, b, mut now) = (AgentId([1; 16]), AgentId([2; 16]), Instant::ZERO);
        let mut uploads = Uploads::new(UploadConfig { sending_total_max: 1, ..UploadConfig::default() });
        uploads.add_peer(a);
        uploads.add_peer(b);
        let supply = |block: BlockAddress| if block.index() < 100 { 5 } else { 1 };
        assert!(uploads.push(now, a, block(0)) && uploads.push(now, a, block(100)));
        let mut served = Vec::new();
        for i in 0..40 {
            assert!(uploads.push(now, b, block(101 + i)));
            let (peer, sent, _) = uploads.next(now, supply).expect("something waits");
            served.push((peer, sent.index()));
            now += Duration::from_millis(50);
            assert!(uploads.done(peer, sent));
        }
        assert_eq!(served[..2], [(a, 100), (b, 101)], "the rare ones");
        assert_eq!(served.iter().position(|s| *s == (a, 0)), Some(20), "the common one after a second");
    }
}
