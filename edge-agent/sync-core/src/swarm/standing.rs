//! What is missing at a destination, and who of its peers has it: for people who ask why it is not done.

use alloc::vec::Vec;
use core::time::Duration;

use event_schema::AgentId;
use timebase::Instant;

use super::Swarm;

/// What is missing at a destination, and who has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Blocks that are neither verified nor given up.
    pub missing: u64,
    /// Of these, blocks that no connected peer has.
    pub nowhere: u64,
    /// Blocks that arrived and are not checked and written yet.
    pub writing: u32,
    /// Connected peers, those that have most of what is missing first.
    pub holders: Vec<Holder>,
}

/// What a connected peer has of what is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub peer: AgentId,
    /// Missing blocks that it has.
    pub has: u64,
    /// Blocks that it owes us.
    pub asked: u32,
    /// How long it has delivered nothing although it owes some.
    pub silent: Duration,
    /// Whether nothing is asked of it any more, as it sent what was not genuine.
    pub avoided: bool,
}

impl Swarm {
    /// What is missing and who has it; `most` holders.
    ///
    /// Looks at a bit for each block and peer: for now and then.
    pub(crate) fn standing(&self, now: Instant, most: usize) -> Standing {
        let mut settled = self.have.clone();
        settled.insert_all(&self.lost);
        let missing = settled.len() - settled.count();
        // A source tells nobody what it has: all but what it said it cannot give.
        let failing = self.failing.keys().filter(|block| !settled.contains(**block)).count() as u64;
        let mut holders: Vec<Holder> = Vec::with_capacity(self.peers.len());
        let (mut somewhere, mut origin) = (settled.clone(), false);
        for (id, peer) in &self.peers {
            let has =
                if peer.origin { missing.saturating_sub(failing) } else { peer.have.count_not_in(&settled) };
            if !peer.shunned {
                origin |= peer.origin;
                somewhere.insert_all(&peer.have);
            }
            let asked = peer.asked.len() as u32 + peer.credit;
            let silent = if asked > 0 { now - peer.active } else { Duration::ZERO };
            holders.push(Holder { peer: *id, has, asked, silent, avoided: peer.shunned });
        }
        let nowhere = if origin {
            self.failing.keys().filter(|block| !somewhere.contains(**block)).count() as u64
        } else {
            somewhere.len() - somewhere.count()
        };
        holders.sort_by_key(|holder| core::cmp::Reverse(holder.has));
        holders.truncate(most);
        Standing { missing, nowhere, writing: self.checking.len() as u32, holders }
    }
}

#[cfg(test)]
mod tests {
    use agent_proto::peer::BlockRange;

    use super::*;
    use crate::block_map::BlockMap;
    use crate::config::FetchConfig;
    use crate::ranges::Space;

    #[test]
    fn what_is_missing_and_who_has_it() {
        let now = Instant::from_micros(1_000_000);
        let peer = |n| AgentId([n; 16]);
        let mut swarm = Swarm::new(Space::Content, 10_000, FetchConfig::default(), peer(9), 1, now);
        swarm.begin(now, BlockMap::from_ranges(10_000, core::iter::once(0..4_000)));
        swarm.pause();
        for n in 1..=3 {
            swarm.add_peer(now, peer(n), false, n == 3);
        }
        let range = |first: u64, count| BlockRange { first: Space::Content.address(first), count };
        swarm.handle_have(now, peer(1), &[range(0, 4_100)]);
        swarm.handle_have(now, peer(2), &[range(4_050, 4_950)]);
        // Of who sent what was not genuine nothing is expected.
        swarm.handle_have(now, peer(3), &[range(9_000, 1_000)]);
        let standing = swarm.standing(now, 8);
        assert_eq!((standing.missing, standing.nowhere, standing.writing), (6_000, 1_000, 0));
        let told: Vec<_> = standing.holders.iter().map(|h| (h.peer, h.has, h.avoided)).collect();
        assert_eq!(told, [(peer(2), 4_950, false), (peer(3), 1_000, true), (peer(1), 100, false)]);
        assert_eq!(swarm.standing(now, 1).holders.len(), 1);

        // With the source there is nothing that nobody has, but for what it lost.
        swarm.add_peer(now, peer(4), true, false);
        assert_eq!(swarm.standing(now, 8).nowhere, 0);
        swarm.handle_unavailable(now, peer(4), 9_999, agent_proto::peer::UnavailableReason::Changed);
        let standing = swarm.standing(now, 8);
        assert_eq!(
            (standing.nowhere, standing.holders[0].peer, standing.holders[0].has),
            (1, peer(4), 5_999)
        );
    }
}
