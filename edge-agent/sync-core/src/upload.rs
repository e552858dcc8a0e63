//! Blocks waiting to be handed to the transport: a bounded queue a peer, served in turns.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use agent_proto::peer::BlockAddress;
use event_schema::AgentId;

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

#[derive(Default)]
struct Lane {
    waiting: VecDeque<BlockAddress>,
    /// What of `waiting` still counts: a repeated request is one, a cancelled one none.
    known: BTreeSet<BlockAddress>,
    sending: BTreeSet<BlockAddress>,
}

/// All peers' queues.
pub(crate) struct Uploads {
    config: UploadConfig,
    lanes: BTreeMap<AgentId, Lane>,
    /// Peers with something waiting and room to send, in the order of their turns.
    turns: VecDeque<AgentId>,
    sending: usize,
}

impl Uploads {
    pub(crate) fn new(config: UploadConfig) -> Self {
        Self { config, lanes: BTreeMap::new(), turns: VecDeque::new(), sending: 0 }
    }

    pub(crate) fn add_peer(&mut self, peer: AgentId) {
        self.lanes.entry(peer).or_default();
    }

    pub(crate) fn remove_peer(&mut self, peer: AgentId) {
        if let Some(lane) = self.lanes.remove(&peer) {
            self.sending -= lane.sending.len();
            self.turns.retain(|p| *p != peer);
        }
    }

    /// Queues a block that was asked for; false if it is there already or there is no room.
    pub(crate) fn push(&mut self, peer: AgentId, block: BlockAddress) -> bool {
        let Some(lane) = self.lanes.get_mut(&peer) else { return false };
        if lane.waiting.len() >= self.config.queue_max
            || lane.sending.contains(&block)
            || !lane.known.insert(block)
        {
            return false;
        }
        lane.waiting.push_back(block);
        self.take_turn(peer);
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

    /// The next block that may be handed to the transport.
    pub(crate) fn next(&mut self) -> Option<(AgentId, BlockAddress, u8)> {
        if self.sending >= self.config.sending_total_max {
            return None;
        }
        loop {
            let peer = self.turns.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&peer) else { continue };
            let Some(block) = lane.waiting.pop_front() else { continue };
            let wanted = lane.known.remove(&block);
            if wanted && lane.sending.insert(block) {
                self.sending += 1;
            }
            self.take_turn(peer);
            if wanted {
                return Some((peer, block, if block.is_manifest() { MANIFEST } else { ASKED }));
            }
        }
    }

    /// The transport is done with a block: acknowledged or failed.
    pub(crate) fn done(&mut self, peer: AgentId, block: BlockAddress) -> bool {
        let Some(lane) = self.lanes.get_mut(&peer) else { return false };
        let was_sending = lane.sending.remove(&block);
        if was_sending {
            self.sending -= 1;
            self.take_turn(peer);
        }
        was_sending
    }

    pub(crate) fn cancel(&mut self, peer: AgentId, block: BlockAddress) -> Cancelled {
        let Some(lane) = self.lanes.get_mut(&peer) else { return Cancelled::NotHere };
        if lane.known.remove(&block) {
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

    fn take_turn(&mut self, peer: AgentId) {
        let Some(lane) = self.lanes.get(&peer) else { return };
        if !lane.known.is_empty()
            && lane.sending.len() < self.config.sending_max
            && !self.turns.contains(&peer)
        {
            self.turns.push_back(peer);
        }
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
        let (a, b) = (AgentId([1; 16]), AgentId([2; 16]));
        let mut uploads = Uploads::new(UploadConfig { sending_max: 2, sending_total_max: 3, queue_max: 4 });
        uploads.add_peer(a);
        uploads.add_peer(b);
        let pushed = (0..6).filter(|&i| uploads.push(a, block(i))).count();
        assert_eq!(pushed, 4, "the queue is bounded");
        assert!(!uploads.push(a, block(0)), "a repeated request is one request");
        assert!(uploads.push(b, block(0)) && uploads.push(b, BlockAddress::manifest(0)));
        assert_eq!(uploads.next(), Some((a, block(0), ASKED)));
        assert_eq!(uploads.next(), Some((b, block(0), ASKED)));
        assert_eq!(uploads.next(), Some((a, block(1), ASKED)));
        assert_eq!(uploads.next(), None, "three at a time in all");
        assert!(uploads.done(b, block(0)));
        assert_eq!(uploads.next(), Some((b, BlockAddress::manifest(0), MANIFEST)));
        assert_eq!(uploads.cancel(a, block(1)), Cancelled::Sending);
        assert_eq!(uploads.cancel(a, block(2)), Cancelled::Waiting);
        assert_eq!(uploads.cancel(a, block(2)), Cancelled::NotHere);
        assert_eq!(uploads.next(), Some((a, block(3), ASKED)));
        uploads.remove_peer(a);
        assert!(uploads.has_room(b));
        assert_eq!(uploads.next(), None);
    }
}
