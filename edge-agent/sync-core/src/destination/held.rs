//! What the manifest has in common with others that are here already is not fetched (PROTOCOL.md §3.8).
//!
//! Between the hashes of the manifest's blocks and the blocks: a peer tells a weak hash of each block, the driver moves a
//! window along the manifests that it holds, and what it finds, by weak hash and then by the strong one that the head
//! vouches for, counts as here. A false list of weak hashes, or none, costs a search and what is fetched after all.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;

use agent_proto::limits::HASHES_MAX;
use agent_proto::peer::{GetManifestWeak, ManifestWeak};
use event_schema::AgentId;
use timebase::Instant;

use super::Destination;
use crate::action::Action;
use crate::block_map::BlockMap;

/// A peer that does not answer for so long is passed over: longer than any round trip, and no more than what waiting
/// could save on a slow link.
const WEAK_TIMEOUT: Duration = Duration::from_secs(3);

/// Peers that are asked before everything is fetched.
const WEAK_TRIES: usize = 2;

/// Manifests of fewer blocks are fetched: the first and the last one of a manifest are hardly ever those of another.
const SOUGHT_MIN: u64 = 3;

/// How far the search has come.
pub(super) enum Seeking {
    /// There is nothing to be looked through, or it was.
    No,
    /// Once the hashes are here.
    Ahead,
    /// A peer is to tell weak hashes.
    Asking {
        /// Who, since when, and what it has told.
        peer: AgentId,
        since: Instant,
        weak: Vec<u32>,
        /// It, and those asked before.
        asked: BTreeSet<AgentId>,
    },
    /// The driver is looking.
    Looking(Vec<u32>),
}

impl Seeking {
    /// Whether the manifest is fetched, once it can be.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::No)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Asking { since, .. } => Some(*since + WEAK_TIMEOUT),
            Self::No | Self::Ahead | Self::Looking(_) => None,
        }
    }
}

impl Destination {
    /// Says that there are manifests here which this run's may have blocks in common with: [`Action::SeekManifest`] comes
    /// before the manifest is fetched, if a peer helps. To be called before anything else.
    #[must_use]
    pub fn with_manifests_held(mut self) -> Self {
        self.seeking = Seeking::Ahead;
        self
    }

    /// These blocks of the manifest were found and are kept; the rest is fetched. Those that there are not are passed
    /// over, and so is an answer to what was not asked.
    pub fn manifest_sought(&mut self, now: Instant, found: impl IntoIterator<Item = u64>) {
        let (Seeking::Looking(weak), Some(known)) = (&mut self.seeking, &mut self.known) else { return };
        let count = known.hashes.len() as u64;
        let mut have = BlockMap::new(count);
        found.into_iter().filter(|block| *block < count).for_each(|block| {
            have.insert(block);
        });
        known.weak = core::mem::take(weak);
        known.manifest.begin(now, have);
        self.seeking = Seeking::No;
        self.tell_manifest();
    }

    /// Tells these to who asks, after [`Self::restore_manifest`]. Passed over if they are not as many as blocks.
    pub fn restore_weak(&mut self, weak: Vec<u32>) {
        if let Some(known) = self.known.as_mut().filter(|known| known.hashes.len() == weak.len()) {
            known.weak = weak;
        }
    }

    /// The hashes of the manifest's blocks are here: asks for weak ones if that may help, else fetches.
    pub(super) fn seek_or_fetch(&mut self, now: Instant) {
        let few = self.known.as_ref().is_none_or(|known| known.head.manifest_blocks() < SOUGHT_MIN);
        match self.seeking {
            Seeking::Ahead if !few => self.ask_weak(now, BTreeSet::new()),
            _ => self.fetch_manifest(now),
        }
    }

    fn fetch_manifest(&mut self, now: Instant) {
        let weak = self.known.as_ref().map_or(0, |known| known.hashes.len());
        self.seeking = Seeking::Looking(alloc::vec![0; weak]);
        self.manifest_sought(now, []);
    }

    fn ask_weak(&mut self, now: Instant, mut asked: BTreeSet<AgentId>) {
        let ready = |id: &AgentId| {
            let peer = &self.peers[id];
            peer.can.weak && peer.same_head && !self.shunned.contains(id) && !asked.contains(id)
        };
        // The source first: nobody else is sure to have all of them, and they are a few bytes.
        let next = self.peers.keys().filter(|id| ready(id)).min_by_key(|id| **id != self.source).copied();
        let Some(peer) = next.filter(|_| asked.len() < WEAK_TRIES) else { return self.fetch_manifest(now) };
        asked.insert(peer);
        self.seeking = Seeking::Asking { peer, since: now, weak: Vec::new(), asked };
        self.send(peer, GetManifestWeak { first: 0 });
    }

    /// The peer that was asked is no help: somebody else is.
    fn ask_weak_elsewhere(&mut self, now: Instant) {
        if let Seeking::Asking { asked, .. } = &mut self.seeking {
            let asked = core::mem::take(asked);
            self.ask_weak(now, asked);
        }
    }

    /// A peer is gone.
    pub(super) fn seek_elsewhere(&mut self, now: Instant, gone: AgentId) {
        if matches!(&self.seeking, Seeking::Asking { peer, .. } if *peer == gone) {
            self.ask_weak_elsewhere(now);
        }
    }

    /// Acts on what is due.
    pub(super) fn seek_in_time(&mut self, now: Instant) {
        if self.seeking.poll_timeout().is_some_and(|at| at <= now) {
            self.ask_weak_elsewhere(now);
        }
    }

    pub(super) fn give_weak(&mut self, peer: AgentId, first: usize) {
        let whole = self.known.as_ref().filter(|known| known.manifest.have().is_complete());
        let weak = whole.map(|known| known.weak.iter().skip(first).take(HASHES_MAX).copied().collect());
        self.send(peer, ManifestWeak { first: first as u32, weak: weak.unwrap_or_default() });
    }

    pub(super) fn handle_weak(&mut self, now: Instant, from: AgentId, message: ManifestWeak) {
        let (Some(known), Seeking::Asking { peer, since, weak, .. }) = (&self.known, &mut self.seeking)
        else {
            return;
        };
        if *peer != from {
            return;
        }
        let missing = known.hashes.len() - weak.len();
        let in_place = message.first as usize == weak.len();
        // As many as a message takes: nobody is waited for, one hash at a time.
        if !in_place || message.weak.len() != missing.min(HASHES_MAX) {
            return self.ask_weak_elsewhere(now);
        }
        weak.extend(message.weak);
        if weak.len() < known.hashes.len() {
            *since = now;
            let first = weak.len() as u32;
            return self.send(from, GetManifestWeak { first });
        }
        let (strong, weak) = (known.hashes.clone(), core::mem::take(weak));
        self.seeking = Seeking::Looking(weak.clone());
        self.out.push_back(Action::SeekManifest { strong, weak });
    }
}
