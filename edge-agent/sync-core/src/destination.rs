//! One run at one destination: from the first peer to the last block.
//!
//! The phases: a peer shows the signed head of the manifest; one peer gives the hashes of the manifest's
//! blocks, which the head's root vouches for; the manifest's blocks come from whoever has them; the driver
//! decodes the manifest and looks at the disk; the content comes. In every phase what is verified is served
//! to others at once.
//!
//! How to drive it: tell every `handle_*`, then take [`Destination::poll_action`] until `None`, then
//! call [`Destination::handle_timeout`] at [`Destination::poll_timeout`]. Blocks do not pass through here but
//! for the manifest's, which are checked and left to the driver to keep.

mod held;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use agent_proto::limits::HASHES_MAX;
use agent_proto::peer::{
    BlockAddress, GetManifestHashes, Head, Hello, ManifestHashes, PeerMessage, Unavailable, UnavailableReason,
};
use event_schema::{AgentId, RunId, Signed};
use timebase::Instant;

use crate::abilities::Abilities;
use crate::action::{Action, Misbehaviour};
use crate::block_map::BlockMap;
use crate::config::{BLOCKS_MAX, FetchConfig, REQUEST_MAX, UploadConfig};
use crate::manifest::{HeadError, ManifestHead, blocks_of};
use crate::merkle::{Hash, block_hash, tree_root};
use crate::ranges::{Space, of_space};
use crate::swarm::{Arrival, Standing, Swarm};
use crate::upload::{Cancelled, Uploads};
use crate::weak::weak_hash;
use held::Seeking;

/// A peer that does not answer with hashes for so long is passed over.
const HASHES_TIMEOUT: Duration = Duration::from_secs(8);

/// Actions that wait to be taken, beyond which a peer is not told what is not here: it may ask for thousands
/// of blocks in a message of a few bytes. 64 times what our own requests name.
const WAITING_MAX: usize = 1 << 16;

/// Which run, and who may speak for it.
#[derive(Clone, Debug)]
pub struct RunInfo {
    /// The run.
    pub run: RunId,
    /// Ed25519 key of the source.
    pub source_key: [u8; 32],
    /// Version of this program, for people.
    pub version: String,
}

/// Where a destination stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No peer showed the manifest's head.
    FindingPeers,
    /// Fetching the manifest.
    FetchingManifest,
    /// The manifest is complete; the driver is looking at the disk.
    Preparing,
    /// Fetching content.
    FetchingContent,
    /// Every content block is verified or lost.
    Settled,
}

#[derive(Default)]
struct Peer {
    greeted: bool,
    /// What it said of itself.
    can: Abilities,
    /// The driver found it on the local network.
    local: bool,
    /// Showed the head that we know; only then its block numbers mean what ours do.
    same_head: bool,
    no_hashes_until: Option<Instant>,
    rtt: Option<Duration>,
}

struct Known {
    head: ManifestHead,
    signed: Signed,
    /// Complete once as long as the head says.
    hashes: Vec<Hash>,
    /// Of the manifest's blocks, right for those that are here; none before they are fetched.
    weak: Vec<u32>,
    manifest: Swarm,
    content: Swarm,
}

impl Known {
    fn has_hashes(&self) -> bool {
        self.hashes.len() as u64 == self.head.manifest_blocks()
    }

    fn swarm(&mut self, space: Space) -> &mut Swarm {
        match space {
            Space::Manifest => &mut self.manifest,
            Space::Content => &mut self.content,
        }
    }
}

/// One run at one destination.
pub struct Destination {
    info: RunInfo,
    source: AgentId,
    config: FetchConfig,
    seed: u64,
    me: AgentId,
    site: Option<u64>,
    peers: BTreeMap<AgentId, Peer>,
    /// Sent what was not genuine: nothing is taken from them, but they are served.
    shunned: BTreeSet<AgentId>,
    known: Option<Known>,
    /// The peer that is giving us hashes, and since when.
    hashes_from: Option<(AgentId, Instant)>,
    /// Whether what the manifest has in common with others is looked for before it is fetched.
    seeking: Seeking,
    uploads: Uploads,
    out: VecDeque<Action>,
    manifest_told: bool,
    content_begun: bool,
    content_told: bool,
}

impl Destination {
    /// A destination that knows nothing but its run. `seed` breaks ties; nothing secret depends on it.
    pub fn new(info: RunInfo, config: FetchConfig, uploads: UploadConfig, seed: u64) -> Self {
        Self {
            source: AgentId::of_key(&info.source_key),
            info,
            config,
            seed,
            me: AgentId([0; 16]),
            site: None,
            peers: BTreeMap::new(),
            shunned: BTreeSet::new(),
            known: None,
            hashes_from: None,
            seeking: Seeking::No,
            uploads: Uploads::new(uploads),
            out: VecDeque::new(),
            manifest_told: false,
            content_begun: false,
            content_told: false,
        }
    }

    /// Puts in a head kept from before a restart and the hashes of the blocks of the manifest that was kept with
    /// it. False, and nothing changed, if they do not belong together or to this run.
    pub fn restore_manifest(&mut self, now: Instant, signed: Signed, hashes: Vec<Hash>) -> bool {
        let Ok(head) = ManifestHead::open(&signed, self.info.run, &self.info.source_key) else {
            return false;
        };
        let count = hashes.len() as u64;
        if head.manifest_blocks() != count || head.blocks > BLOCKS_MAX || tree_root(&hashes) != head.root {
            return false;
        }
        self.learn_head(now, head, signed);
        self.seeking = Seeking::No;
        if let Some(known) = &mut self.known {
            known.hashes = hashes;
            known.manifest.begin(now, BlockMap::full(count));
        }
        self.tell_manifest();
        true
    }

    /// Says who we are and, if that is known, where: the label of our site is the same for all agents there. To be
    /// called before anything else; without it no peer counts as near.
    #[must_use]
    pub fn at_site(mut self, me: AgentId, site: Option<u64>) -> Self {
        (self.me, self.site) = (me, site);
        self
    }

    /// A connected peer was found to be on our local network, whatever its site's label.
    pub fn handle_local(&mut self, peer: AgentId) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.local = true;
            self.see_near(peer);
        }
    }

    /// Whether a connected peer counts as near: what it has or fetches is not fetched from far ones.
    pub fn is_near(&self, peer: AgentId) -> bool {
        let near = |p: &Peer| p.can.near && (p.local || p.can.site.is_some() && p.can.site == self.site);
        self.me != AgentId([0; 16]) && self.peers.get(&peer).is_some_and(near)
    }

    fn see_near(&mut self, peer: AgentId) {
        let near = self.is_near(peer);
        if let Some(known) = &mut self.known {
            known.manifest.set_near(peer, near);
            known.content.set_near(peer, near);
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        match &self.known {
            None => Phase::FindingPeers,
            Some(known) if !known.has_hashes() || !known.manifest.have().is_complete() => {
                Phase::FetchingManifest
            }
            Some(_) if !self.content_begun => Phase::Preparing,
            Some(known) if !known.content.is_settled() => Phase::FetchingContent,
            Some(_) => Phase::Settled,
        }
    }

    /// The manifest's head and its signed form, once known.
    pub fn head(&self) -> Option<(&ManifestHead, &Signed)> {
        self.known.as_ref().map(|k| (&k.head, &k.signed))
    }

    /// Verified content blocks.
    pub fn content(&self) -> Option<&BlockMap> {
        self.known.as_ref().map(|k| k.content.have())
    }

    /// Content blocks that nobody can give.
    pub fn lost(&self) -> Option<&BlockMap> {
        self.known.as_ref().map(|k| k.content.lost())
    }

    /// What content is missing and who has it, `most` peers of those connected; none before the manifest is known.
    /// Costs a look at a bit for each block and peer.
    pub fn standing(&self, now: Instant, most: usize) -> Option<Standing> {
        let known = self.known.as_ref().filter(|_| self.content_begun)?;
        Some(known.content.standing(now, most))
    }

    /// Content blocks that arrived though they were there.
    pub fn duplicates(&self) -> u64 {
        self.known.as_ref().map_or(0, |k| k.content.duplicates())
    }

    /// Whether nothing is taken from a peer any more, for what it did.
    pub fn is_avoided(&self, peer: AgentId) -> bool {
        self.shunned.contains(&peer)
    }

    /// How many bytes the block has if one arriving now would be of use: worth a buffer. Content blocks are
    /// given their longest length; the manifest knows better.
    pub fn wants(&self, address: BlockAddress) -> Option<u32> {
        let known = self.known.as_ref()?;
        let block = address.index();
        match Space::of(address) {
            Space::Manifest => (known.has_hashes() && self.seeking.is_over() && known.manifest.wants(block))
                .then(|| manifest_block_len(known.head.len, block)),
            Space::Content => {
                (self.content_begun && known.content.wants(block)).then_some(agent_proto::limits::BLOCK_LEN)
            }
        }
    }

    /// Sends within these limits from now on.
    pub fn set_uploads(&mut self, uploads: UploadConfig) {
        self.uploads.set_config(uploads);
    }

    /// A session with a peer of the run is up.
    pub fn handle_connected(&mut self, now: Instant, peer: AgentId) {
        self.handle_disconnected(now, peer);
        self.peers.insert(peer, Peer::default());
        self.uploads.add_peer(peer);
        let can = Abilities { near: true, weak: true, site: self.site };
        let version = can.write(&self.info.version);
        self.send(peer, Hello { version, origin: false });
        let Some(known) = &mut self.known else { return };
        if known.has_hashes() {
            let head = Head { signed: known.signed.clone() };
            self.send(peer, head);
        }
        self.join_swarms(now, peer);
    }

    /// The session with a peer is gone; what it was asked for is asked of others.
    pub fn handle_disconnected(&mut self, now: Instant, peer: AgentId) {
        if self.peers.remove(&peer).is_none() {
            return;
        }
        self.uploads.remove_peer(peer);
        if let Some(known) = &mut self.known {
            known.manifest.remove_peer(peer);
            known.content.remove_peer(peer);
        }
        if self.hashes_from.is_some_and(|(from, _)| from == peer) {
            self.hashes_from = None;
            self.ask_hashes(now);
        }
        self.seek_elsewhere(now, peer);
        self.out.retain(|a| !matches!(a,
            Action::Send { peer: p, .. } | Action::Upload { peer: p, .. } | Action::CancelUpload { peer: p, .. } if *p == peer));
    }

    /// The transport measured a round trip.
    pub fn handle_rtt(&mut self, peer: AgentId, rtt: Duration) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        state.rtt = Some(rtt);
        if let Some(known) = &mut self.known {
            known.manifest.set_rtt(peer, rtt);
            known.content.set_rtt(peer, rtt);
        }
    }

    /// A message from a connected peer.
    pub fn handle_message(&mut self, now: Instant, peer: AgentId, message: PeerMessage) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        if !state.greeted && !matches!(message, PeerMessage::Hello(_)) {
            return;
        }
        match message {
            PeerMessage::Hello(hello) => {
                state.greeted = true;
                state.can = Abilities::read(&hello.version);
                self.see_near(peer);
            }
            PeerMessage::Head(head) => self.handle_head(now, peer, head.signed),
            PeerMessage::GetManifestHashes(get) => self.give_hashes(peer, get.first as usize),
            PeerMessage::ManifestHashes(hashes) => self.handle_hashes(now, peer, hashes),
            PeerMessage::GetManifestWeak(get) => self.give_weak(peer, get.first as usize),
            PeerMessage::ManifestWeak(weak) => self.handle_weak(now, peer, weak),
            PeerMessage::Have(have) => {
                if let Some(known) = self.known_of(peer) {
                    known.manifest.handle_have(now, peer, &have.ranges);
                    known.content.handle_have(now, peer, &have.ranges);
                }
            }
            PeerMessage::Complete(_) => {
                if let Some(known) = self.known_of(peer) {
                    known.content.handle_complete(now, peer);
                }
            }
            PeerMessage::Unavailable(Unavailable { block, reason }) => {
                if let Some(known) = self.known_of(peer) {
                    known.swarm(Space::of(block)).handle_unavailable(now, peer, block.index(), reason);
                }
            }
            PeerMessage::Request(request) => self.handle_request(now, peer, &request.ranges),
            PeerMessage::Cancel(cancel) => {
                for block in self.blocks(&cancel.ranges) {
                    if self.uploads.cancel(peer, block) == Cancelled::Sending {
                        self.out.push_back(Action::CancelUpload { peer, block });
                    }
                }
            }
            PeerMessage::Fetching(fetching) => {
                if let Some(known) = self.known_of(peer) {
                    known.manifest.handle_fetching(now, peer, &fetching.ranges);
                    known.content.handle_fetching(now, peer, &fetching.ranges);
                }
            }
            // Only an origin answers this; a destination owes nobody anything of its choice.
            // Whom others know is the agent's concern.
            PeerMessage::Want(_) | PeerMessage::Peers(_) => {}
        }
    }

    /// What is known, if the peer's block numbers mean the same.
    fn known_of(&mut self, peer: AgentId) -> Option<&mut Known> {
        self.peers.get(&peer).filter(|p| p.same_head)?;
        self.known.as_mut()
    }

    /// A whole content block came in; see [`Arrival`] for what to do with it.
    pub fn handle_arrived(&mut self, now: Instant, peer: AgentId, block: u64) -> Arrival {
        match &mut self.known {
            Some(known) => known.content.handle_arrived(now, peer, block),
            None => Arrival::Unwanted,
        }
    }

    /// A whole manifest block came in. True if it is genuine and new: keep it.
    pub fn handle_manifest_block(&mut self, now: Instant, peer: AgentId, block: u64, bytes: &[u8]) -> bool {
        let over = self.seeking.is_over();
        let Some(known) = self.known.as_mut().filter(|k| k.has_hashes() && over) else { return false };
        if known.manifest.handle_arrived(now, peer, block) != Arrival::Fresh {
            return false;
        }
        if block_hash(bytes) == known.hashes[block as usize] {
            if let Some(weak) = known.weak.get_mut(block as usize) {
                *weak = weak_hash(bytes);
            }
            known.manifest.handle_verified(now, block);
            self.tell_manifest();
            return true;
        }
        if known.manifest.handle_corrupt(peer, block) {
            self.misbehaved(peer, Misbehaviour::CorruptBlock, true);
        }
        false
    }

    /// An arrived content block matched its hash and is kept.
    pub fn handle_verified(&mut self, now: Instant, block: u64) {
        if let Some(known) = &mut self.known {
            known.content.handle_verified(now, block);
        }
    }

    /// An arrived content block could not be kept (no room, say): it will be asked again.
    pub fn handle_not_kept(&mut self, block: u64) {
        if let Some(known) = &mut self.known {
            known.content.handle_not_kept(block);
        }
    }

    /// An arrived content block did not match its hash.
    pub fn handle_corrupt(&mut self, peer: AgentId, block: u64) {
        let Some(known) = &mut self.known else { return };
        let avoid = known.content.handle_corrupt(peer, block);
        self.misbehaved(peer, Misbehaviour::CorruptBlock, avoid);
    }

    /// The manifest is decoded and the disk looked at: fetch all that `have` does not hold.
    ///
    /// # Panics
    /// If called before [`Action::ManifestComplete`], or with a map of another length than the head's blocks.
    pub fn begin_content(&mut self, now: Instant, have: BlockMap) {
        let known = self.known.as_mut().expect("content begins after the manifest");
        self.content_begun = true;
        known.content.begin(now, have);
    }

    /// These content blocks are fetched before the rest, in this order: maps as long as the head's blocks. Of what is equally
    /// urgent rare ones come first, and nobody waits for one who has nothing urgent to give. To be called before
    /// [`Self::begin_content`].
    ///
    /// # Panics
    /// If called before [`Action::ManifestComplete`], or with a map of another length.
    pub fn prefer(&mut self, classes: &[BlockMap]) {
        let known = self.known.as_mut().expect("content is known with the manifest");
        assert!(classes.iter().all(|class| class.len() == known.head.blocks), "maps of this manifest");
        known.content.prefer(classes);
    }

    /// Gives content blocks up that cannot be kept here, whoever sends them. They count as lost, without an
    /// [`Action::Lost`].
    pub fn forgo(&mut self, blocks: impl IntoIterator<Item = u64>) {
        if let Some(known) = &mut self.known {
            known.content.forgo(blocks);
        }
    }

    /// Asks for no more content: there is no room for it.
    pub fn pause(&mut self) {
        if let Some(known) = &mut self.known {
            known.content.pause();
        }
    }

    /// Fetches again after [`Self::pause`].
    pub fn resume(&mut self, now: Instant) {
        if let Some(known) = &mut self.known {
            known.content.resume(now);
        }
    }

    /// A block given with [`Action::Upload`] was acknowledged.
    pub fn handle_sent(&mut self, peer: AgentId, block: BlockAddress) {
        self.uploads.done(peer, block);
    }

    /// A block given with [`Action::Upload`] could not be read.
    pub fn handle_read_failed(&mut self, peer: AgentId, block: BlockAddress) {
        if self.uploads.done(peer, block) {
            self.send(peer, Unavailable { block, reason: UnavailableReason::NotHere });
        }
    }

    /// What to do next.
    pub fn poll_action(&mut self, now: Instant) -> Option<Action> {
        if let Some(action) = self.out.pop_front() {
            return Some(action);
        }
        if let Some(known) = &mut self.known {
            for space in [Space::Manifest, Space::Content] {
                if let Some((peer, message)) = known.swarm(space).poll_message(now) {
                    return Some(Action::Send { peer, message });
                }
            }
            if let Some((block, reason)) = known.content.poll_lost() {
                return Some(Action::Lost { block, reason });
            }
            if self.content_begun && known.content.is_settled() && !self.content_told {
                self.content_told = true;
                return Some(Action::ContentComplete);
            }
        }
        let known = &self.known;
        let supply = |block: BlockAddress| known.as_ref().map_or(0, |k| k.content.supply(block.index()));
        let (peer, block, priority) = self.uploads.next(now, supply)?;
        Some(Action::Upload { peer, block, priority })
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let swarms = self.known.iter().flat_map(|k| [k.manifest.poll_timeout(), k.content.poll_timeout()]);
        let hashes = self.hashes_from.map(|(_, since)| since + HASHES_TIMEOUT);
        let retry = match (&self.known, self.hashes_from) {
            (Some(known), None) if !known.has_hashes() => {
                let asked_again = |(id, p): (&AgentId, &Peer)| {
                    p.no_hashes_until.filter(|_| p.same_head && !self.shunned.contains(id))
                };
                self.peers.iter().filter_map(asked_again).min()
            }
            _ => None,
        };
        swarms.chain([hashes, retry, self.seeking.poll_timeout()]).flatten().min()
    }

    /// Acts on what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(known) = &mut self.known {
            known.manifest.handle_timeout(now);
            known.content.handle_timeout(now);
        }
        if let Some((from, since)) = self.hashes_from
            && now - since >= HASHES_TIMEOUT
        {
            self.pass_over_for_hashes(now, from);
        }
        self.ask_hashes(now);
        self.seek_in_time(now);
    }

    fn send(&mut self, peer: AgentId, message: impl Into<PeerMessage>) {
        self.out.push_back(Action::Send { peer, message: message.into() });
    }

    fn join_swarms(&mut self, now: Instant, peer: AgentId) {
        let source = peer == self.source;
        let rtt = self.peers.get(&peer).and_then(|p| p.rtt);
        let (shunned, near) = (self.shunned.contains(&peer), self.is_near(peer));
        if let Some(known) = &mut self.known {
            for space in [Space::Manifest, Space::Content] {
                let swarm = known.swarm(space);
                swarm.add_peer(now, peer, source, shunned);
                swarm.set_near(peer, near);
                rtt.into_iter().for_each(|rtt| swarm.set_rtt(peer, rtt));
            }
        }
    }

    fn handle_head(&mut self, now: Instant, peer: AgentId, signed: Signed) {
        let same = match &self.known {
            Some(known) => known.signed.bytes == signed.bytes,
            None => false,
        };
        if !same {
            let head = match ManifestHead::open(&signed, self.info.run, &self.info.source_key) {
                Ok(head) if head.blocks <= BLOCKS_MAX => head,
                // Whoever passes it on did nothing wrong.
                Err(HeadError::Version(version)) => {
                    return self.misbehaved(peer, Misbehaviour::OtherVersion(version), false);
                }
                Ok(_) | Err(HeadError::Bad) => return self.misbehaved(peer, Misbehaviour::BadHead, true),
            };
            if self.known.is_some() {
                return self.misbehaved(peer, Misbehaviour::OtherHead, false);
            }
            self.learn_head(now, head, signed);
        }
        if let Some(state) = self.peers.get_mut(&peer) {
            state.same_head = true;
        }
        self.ask_hashes(now);
    }

    fn learn_head(&mut self, now: Instant, head: ManifestHead, signed: Signed) {
        let content = self.config.clone().for_blocks(head.bytes, head.blocks);
        let swarm = |space, len, config, seed| Swarm::new(space, len, config, self.me, seed, now);
        self.known = Some(Known {
            hashes: Vec::new(),
            weak: Vec::new(),
            manifest: swarm(Space::Manifest, head.manifest_blocks(), self.config.clone(), self.seed),
            content: swarm(Space::Content, head.blocks, content, !self.seed),
            head,
            signed,
        });
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.join_swarms(now, peer);
        }
    }

    /// Asks one peer for the next hashes, if nobody is asked already.
    fn ask_hashes(&mut self, now: Instant) {
        let Some(known) = self.known.as_ref().filter(|k| !k.has_hashes()) else { return };
        if self.hashes_from.is_some() {
            return;
        }
        let first = known.hashes.len() as u32;
        let ready = |id: &AgentId, p: &Peer| {
            p.same_head && !self.shunned.contains(id) && p.no_hashes_until.is_none_or(|until| until <= now)
        };
        // Others before the source, which has most to do.
        let candidates = self.peers.iter().filter(|(id, p)| ready(id, p)).map(|(id, _)| *id);
        let Some(peer) = candidates.min_by_key(|id| *id == self.source) else { return };
        self.hashes_from = Some((peer, now));
        self.send(peer, GetManifestHashes { first });
    }

    /// Lets somebody else give the hashes, from the start: a list of several hands could not be blamed on one.
    fn pass_over_for_hashes(&mut self, now: Instant, peer: AgentId) {
        self.hashes_from = None;
        if let Some(state) = self.peers.get_mut(&peer) {
            state.no_hashes_until = Some(now + HASHES_TIMEOUT);
        }
        if let Some(known) = self.known.as_mut().filter(|k| !k.has_hashes()) {
            known.hashes.clear();
        }
    }

    fn give_hashes(&mut self, peer: AgentId, first: usize) {
        let Some(known) = self.known.as_ref().filter(|k| k.has_hashes()) else { return };
        let hashes: Vec<_> = known.hashes.iter().skip(first).take(HASHES_MAX).copied().collect();
        self.send(peer, ManifestHashes { first: first as u32, hashes });
    }

    fn handle_hashes(&mut self, now: Instant, peer: AgentId, message: ManifestHashes) {
        if self.hashes_from.is_none_or(|(from, _)| from != peer) {
            return;
        }
        let Some(known) = &mut self.known else { return };
        let missing = known.head.manifest_blocks() - known.hashes.len() as u64;
        let in_place = message.first as usize == known.hashes.len();
        if !in_place || message.hashes.is_empty() || message.hashes.len() as u64 > missing {
            return self.pass_over_for_hashes(now, peer);
        }
        known.hashes.extend(message.hashes);
        self.hashes_from = None;
        if !known.has_hashes() {
            let first = known.hashes.len() as u32;
            self.hashes_from = Some((peer, now));
            return self.send(peer, GetManifestHashes { first });
        }
        if tree_root(&known.hashes) != known.head.root {
            known.hashes.clear();
            self.misbehaved(peer, Misbehaviour::BadHashes, true);
            return self.ask_hashes(now);
        }
        let head = Head { signed: known.signed.clone() };
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send(peer, head.clone());
        }
        self.seek_or_fetch(now);
    }

    fn tell_manifest(&mut self) {
        let complete = self.known.as_ref().is_some_and(|k| k.manifest.have().is_complete());
        if complete && !self.manifest_told {
            self.manifest_told = true;
            self.out.push_back(Action::ManifestComplete);
        }
    }

    fn handle_request(&mut self, now: Instant, peer: AgentId, ranges: &[agent_proto::peer::BlockRange]) {
        for block in self.blocks(ranges) {
            let here =
                self.known.as_mut().is_some_and(|k| k.swarm(Space::of(block)).have().contains(block.index()));
            if here {
                self.uploads.push(now, peer, block);
            } else if self.out.len() < WAITING_MAX {
                self.send(peer, Unavailable { block, reason: UnavailableReason::NotHere });
            }
        }
    }

    /// The blocks that a message of a peer names and that exist.
    fn blocks(&self, ranges: &[agent_proto::peer::BlockRange]) -> Vec<BlockAddress> {
        let Some(known) = &self.known else { return Vec::new() };
        [(Space::Manifest, known.head.manifest_blocks()), (Space::Content, known.head.blocks)]
            .into_iter()
            .flat_map(|(space, len)| of_space(ranges, space, len).flatten().map(move |b| space.address(b)))
            .take(REQUEST_MAX)
            .collect()
    }

    fn misbehaved(&mut self, peer: AgentId, what: Misbehaviour, avoid: bool) {
        if avoid
            && self.shunned.insert(peer)
            && let Some(known) = &mut self.known
        {
            known.manifest.shun(peer);
            known.content.shun(peer);
        }
        self.out.push_back(Action::Misbehaved { peer, what });
    }
}

/// Bytes of a block of an encoded manifest of `len` bytes; 0 beyond its end.
pub fn manifest_block_len(len: u64, block: u64) -> u32 {
    let block_len = u64::from(agent_proto::limits::BLOCK_LEN);
    if block >= blocks_of(len) { 0 } else { (len - block * block_len).min(block_len) as u32 }
}
