//! One run at its source: who gets which block from here.
//!
//! A destination that gives credit (`Want`) gets blocks that no connected peer has or was promised, in long
//! stretches so that reads are sequential. When every block is somewhere, credit rests: destinations get the
//! rest from each other, until holders leave or somebody asks for blocks by number. So each block leaves here
//! about once, however many destinations there are.
//!
//! Driven like [`crate::Destination`].

mod spread;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use agent_proto::limits::HASHES_MAX;
use agent_proto::peer::{
    BlockAddress, BlockRange, Have, Head, Hello, ManifestHashes, ManifestWeak, PeerMessage, Unavailable,
    UnavailableReason,
};
use core::time::Duration;
use event_schema::{AgentId, Signed};
use timebase::Instant;

use crate::abilities::Abilities;
use crate::action::Action;
use crate::block_map::BlockMap;
use crate::config::{OriginConfig, REQUEST_MAX, UploadConfig};
use crate::merkle::Hash;
use crate::ranges::{Space, disjoint, messages, of_space};
use crate::upload::{CHOSEN, Cancelled, Uploads};
use spread::{Spread, Stretch};

/// How often overdue promises and deferred requests are looked for.
const TICK: Duration = Duration::from_millis(250);
/// Blocks of choice handed out to one peer before it is the next one's turn.
const TURN: u32 = 16;

struct Peer {
    greeted: bool,
    have: BlockMap,
    owed: u32,
    stretch: Stretch,
    promised: BTreeMap<u64, Promise>,
    /// Asked for while on its way to somebody else, and until when to wait for that.
    deferred: BTreeMap<u64, Instant>,
}

/// A block on its way to a peer that has not announced it yet.
struct Promise {
    chosen: bool,
    /// When the transport had it acknowledged.
    delivered: Option<Instant>,
}

/// One run at its source.
pub struct Origin {
    version: String,
    config: OriginConfig,
    signed: Signed,
    hashes: Vec<Hash>,
    /// Of the manifest's blocks too; none if they are not told.
    weak: Vec<u32>,
    blocks: u64,
    spread: Spread,
    peers: BTreeMap<AgentId, Peer>,
    uploads: Uploads,
    out: VecDeque<Action>,
    /// Until then credit waits; set by the first peer.
    settled_at: Option<Instant>,
    tick_at: Option<Instant>,
    credit_due: bool,
}

impl Origin {
    /// An origin of `blocks` content blocks whose manifest has these block hashes. `version` is for people.
    pub fn new(
        version: String,
        signed: Signed,
        hashes: Vec<Hash>,
        blocks: u64,
        config: OriginConfig,
        uploads: UploadConfig,
    ) -> Self {
        Self {
            version,
            config,
            signed,
            hashes,
            weak: Vec::new(),
            blocks,
            spread: Spread::new(blocks),
            peers: BTreeMap::new(),
            uploads: Uploads::new(uploads),
            out: VecDeque::new(),
            settled_at: None,
            tick_at: None,
            credit_due: false,
        }
    }

    /// Tells the weak hashes of the manifest's blocks to who asks for them (PROTOCOL.md §3.8). To be called before
    /// anybody connects.
    ///
    /// # Panics
    /// If there are not as many as blocks.
    #[must_use]
    pub fn with_weak(mut self, weak: Vec<u32>) -> Self {
        assert_eq!(weak.len(), self.hashes.len(), "a weak hash for each strong one");
        self.version = Abilities { weak: true, ..Abilities::default() }.write(&self.version);
        self.weak = weak;
        self
    }

    /// Of the blocks of its choice it gives these before the rest, in this order: maps as long as there are blocks. To be
    /// called before anybody connects.
    ///
    /// # Panics
    /// With a map of another length.
    #[must_use]
    pub fn preferring(mut self, classes: &[BlockMap]) -> Self {
        assert!(classes.iter().all(|class| class.len() == self.blocks), "maps of this manifest");
        self.spread.prefer(classes);
        self
    }

    /// Number of connected peers that have everything.
    pub fn complete_peers(&self) -> usize {
        self.peers.values().filter(|p| p.have.is_complete()).count()
    }

    /// A session with a peer of the run is up.
    pub fn handle_connected(&mut self, now: Instant, peer: AgentId) {
        self.handle_disconnected(peer);
        self.settled_at.get_or_insert(now + self.config.settle);
        let state = Peer {
            greeted: false,
            have: BlockMap::new(self.blocks),
            owed: 0,
            stretch: Stretch::default(),
            promised: BTreeMap::new(),
            deferred: BTreeMap::new(),
        };
        self.peers.insert(peer, state);
        self.uploads.add_peer(peer);
        self.send(peer, Hello { version: self.version.clone(), origin: true });
        self.send(peer, Head { signed: self.signed.clone() });
        let manifest = messages(Space::Manifest, core::iter::once(0..self.hashes.len() as u64));
        for ranges in manifest.into_iter().chain(messages(Space::Content, self.spread.readable())) {
            self.send(peer, Have { ranges });
        }
    }

    /// The session with a peer is gone; blocks that only it had may be sent to others.
    pub fn handle_disconnected(&mut self, peer: AgentId) {
        let Some(state) = self.peers.remove(&peer) else { return };
        self.uploads.remove_peer(peer);
        self.spread.forget_holder(&state.have);
        for block in state.promised.keys() {
            self.spread.release(*block);
        }
        self.out.retain(|a| !matches!(a,
            Action::Send { peer: p, .. } | Action::Upload { peer: p, .. } | Action::CancelUpload { peer: p, .. } if *p == peer));
        self.credit_due = true;
    }

    /// A message from a connected peer.
    pub fn handle_message(&mut self, now: Instant, peer: AgentId, message: PeerMessage) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        if !state.greeted && !matches!(message, PeerMessage::Hello(_)) {
            return;
        }
        match message {
            PeerMessage::Hello(_) => state.greeted = true,
            PeerMessage::GetManifestHashes(get) => {
                let hashes = self.hashes.iter().skip(get.first as usize).take(HASHES_MAX).copied().collect();
                self.send(peer, ManifestHashes { first: get.first, hashes });
            }
            PeerMessage::GetManifestWeak(get) => {
                let weak = self.weak.iter().skip(get.first as usize).take(HASHES_MAX).copied().collect();
                self.send(peer, ManifestWeak { first: get.first, weak });
            }
            PeerMessage::Have(have) => self.handle_have(peer, &have.ranges),
            PeerMessage::Complete(_) => {
                let gaps: Vec<_> = state.have.gaps().collect();
                for ranges in messages(Space::Content, gaps.into_iter()) {
                    self.handle_have(peer, &ranges);
                }
            }
            PeerMessage::Want(want) => {
                state.owed = state.owed.saturating_add(want.blocks).min(self.config.owed_max);
                self.credit_due = true;
            }
            PeerMessage::Request(request) => self.handle_request(now, peer, &request.ranges),
            PeerMessage::Cancel(cancel) => {
                for block in self.blocks_of(&cancel.ranges) {
                    self.cancel(peer, block);
                }
            }
            // What destinations say to each other; the origin lacks nothing.
            PeerMessage::Head(_)
            | PeerMessage::ManifestHashes(_)
            | PeerMessage::ManifestWeak(_)
            | PeerMessage::Unavailable(_)
            | PeerMessage::Fetching(_)
            | PeerMessage::Peers(_) => {}
        }
    }

    fn handle_have(&mut self, id: AgentId, ranges: &[BlockRange]) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        for range in disjoint(ranges, Space::Content, self.blocks) {
            let news: Vec<_> = peer.have.gaps_in(range.clone()).collect();
            peer.have.insert_range(range);
            for block in news.into_iter().flatten() {
                self.spread.claim(block);
                peer.deferred.remove(&block);
                if peer.promised.remove(&block).is_some() {
                    self.spread.release(block);
                }
            }
        }
    }

    fn handle_request(&mut self, now: Instant, id: AgentId, ranges: &[BlockRange]) {
        for address in self.blocks_of(ranges) {
            if address.is_manifest() {
                self.uploads.push(now, id, address);
                continue;
            }
            let block = address.index();
            if let Some(reason) = self.spread.failed(block) {
                self.send(id, Unavailable { block: address, reason });
                continue;
            }
            let elsewhere = self.is_promised_to_another(id, block);
            let Some(peer) = self.peers.get_mut(&id) else { return };
            match peer.promised.get_mut(&block) {
                Some(promise) if promise.delivered.is_none() => {
                    // On its way already. If we chose it, the peer will count it as asked for, and still
                    // expects one more of our choice.
                    if core::mem::take(&mut promise.chosen) {
                        peer.owed += 1;
                        self.credit_due = true;
                    }
                }
                _ if elsewhere => self.defer(now, id, block),
                _ => self.serve(now, id, block),
            }
        }
        self.tick_at.get_or_insert(now + TICK);
    }

    fn serve(&mut self, now: Instant, id: AgentId, block: u64) {
        if self.uploads.push(now, id, BlockAddress::content(block)) {
            self.promise(id, block, false);
        }
    }

    fn is_promised_to_another(&self, id: AgentId, block: u64) -> bool {
        self.peers.iter().any(|(other, p)| *other != id && p.promised.contains_key(&block))
    }

    /// Several destinations in the same need ask for the same blocks: the first gets one, the others soon
    /// see it announced, get it there and cancel. If they do not, they cannot, and get it from here.
    fn defer(&mut self, now: Instant, id: AgentId, block: u64) {
        let until = now + self.config.defer;
        if let Some(peer) = self.peers.get_mut(&id)
            && peer.deferred.len() < REQUEST_MAX
        {
            peer.deferred.entry(block).or_insert(until);
        }
    }

    fn promise(&mut self, id: AgentId, block: u64, chosen: bool) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.promised.insert(block, Promise { chosen, delivered: None }).is_none() {
            self.spread.claim(block);
        }
    }

    fn cancel(&mut self, id: AgentId, address: BlockAddress) {
        if !address.is_manifest()
            && self.peers.get_mut(&id).is_some_and(|p| p.deferred.remove(&address.index()).is_some())
        {
            return;
        }
        match self.uploads.cancel(id, address) {
            Cancelled::NotHere => return,
            Cancelled::Waiting => {}
            Cancelled::Sending => self.out.push_back(Action::CancelUpload { peer: id, block: address }),
        }
        self.break_promise(id, address);
    }

    fn break_promise(&mut self, id: AgentId, address: BlockAddress) -> Option<Promise> {
        if address.is_manifest() {
            return None;
        }
        let promise = self.peers.get_mut(&id)?.promised.remove(&address.index())?;
        self.spread.release(address.index());
        self.credit_due = true;
        Some(promise)
    }

    /// A block given with [`Action::Upload`] was acknowledged.
    pub fn handle_sent(&mut self, now: Instant, peer: AgentId, block: BlockAddress) {
        self.uploads.done(peer, block);
        self.credit_due = true;
        if !block.is_manifest()
            && let Some(promise) = self.peers.get_mut(&peer).and_then(|p| p.promised.get_mut(&block.index()))
        {
            promise.delivered = Some(now);
            self.tick_at.get_or_insert(now + TICK);
        }
    }

    /// A content block can no longer be read as it was indexed: everybody is told.
    pub fn handle_read_failed(&mut self, block: u64, reason: UnavailableReason) {
        let address = BlockAddress::content(block);
        if !self.spread.fail(block, reason) {
            return;
        }
        for peer in self.uploads.drop_block(address) {
            self.out.push_back(Action::CancelUpload { peer, block: address });
        }
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            if self.break_promise(id, address).is_some_and(|p| p.chosen)
                && let Some(peer) = self.peers.get_mut(&id)
            {
                peer.owed += 1;
            }
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.deferred.remove(&block);
            }
            self.send(id, Unavailable { block: address, reason });
        }
        self.credit_due = true;
    }

    /// What to do next.
    pub fn poll_action(&mut self, now: Instant) -> Option<Action> {
        if let Some(action) = self.out.pop_front() {
            return Some(action);
        }
        let spread = &self.spread;
        let next = self.uploads.next(now, |block| spread.claims(block.index()));
        if let Some((peer, block, priority)) = next {
            return Some(Action::Upload { peer, block, priority });
        }
        if core::mem::take(&mut self.credit_due) {
            self.serve_credit(now);
        }
        self.out.pop_front()
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let settled = self.settled_at.filter(|_| self.credit_due);
        [settled, self.tick_at].into_iter().flatten().min()
    }

    /// Acts on what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.tick_at.is_none_or(|at| now < at) {
            return;
        }
        let (timeout, mut open) = (self.config.promise_timeout, false);
        let mut due = Vec::new();
        for (id, peer) in &mut self.peers {
            due.extend(peer.deferred.extract_if(.., |_, until| *until <= now).map(|(block, _)| (*id, block)));
            open |= !peer.deferred.is_empty();
            let spread = &mut self.spread;
            peer.promised.retain(|block, promise| {
                let keep = promise.delivered.is_none_or(|at| now - at < timeout);
                if !keep {
                    spread.release(*block);
                }
                open |= keep;
                keep
            });
        }
        for (id, block) in due {
            self.serve(now, id, block);
        }
        self.tick_at = open.then_some(now + TICK);
        self.credit_due = true;
    }

    /// Gives peers blocks of our choice, in turns, as far as credit and the transport's queues go.
    fn serve_credit(&mut self, now: Instant) {
        if self.settled_at.is_none_or(|at| now < at) {
            self.credit_due = self.settled_at.is_some();
            return;
        }
        let mut ids: Vec<AgentId> =
            self.peers.iter().filter(|(_, p)| p.owed > 0).map(|(id, _)| *id).collect();
        while !ids.is_empty() && self.spread.has_free() {
            ids.retain(|&id| {
                for _ in 0..TURN {
                    let Some(peer) = self.peers.get_mut(&id).filter(|p| p.owed > 0) else { return false };
                    if !self.uploads.has_room(id) {
                        return false;
                    }
                    let Some(block) = self.spread.choose(&mut peer.stretch, self.config.stretch) else {
                        return false;
                    };
                    peer.owed -= 1;
                    let address = BlockAddress::content(block);
                    self.uploads.start(id, address);
                    self.out.push_back(Action::Upload { peer: id, block: address, priority: CHOSEN });
                    self.promise(id, block, true);
                }
                true
            });
        }
    }

    fn send(&mut self, peer: AgentId, message: impl Into<PeerMessage>) {
        self.out.push_back(Action::Send { peer, message: message.into() });
    }

    /// The blocks that a message of a peer names and that exist.
    fn blocks_of(&self, ranges: &[BlockRange]) -> Vec<BlockAddress> {
        [(Space::Manifest, self.hashes.len() as u64), (Space::Content, self.blocks)]
            .into_iter()
            .flat_map(|(space, len)| of_space(ranges, space, len).flatten().map(move |b| space.address(b)))
            .take(REQUEST_MAX)
            .collect()
    }
}
