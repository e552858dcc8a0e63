//! Who fetches what from whom: one space of blocks at one destination.
//!
//! From ordinary peers blocks are asked for by number, rarest first. An *origin* is given credit
//! (`Want`) and chooses itself, so that each block leaves it about once for all destinations together; it
//! is asked by number only for what nobody else gives and after a time without progress (`patience.rs`).
//! A block is asked of one peer at a time, but for the endgame.
//!
//! A block is missing, asked, being checked by the driver, verified, or lost; `taken` holds all but the
//! missing ones. What every peer is asked is planned in `schedule.rs`.

mod patience;
mod schedule;
mod site;
mod standing;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use agent_proto::peer::{BlockRange, Cancel, Complete, Have, PeerMessage, UnavailableReason};
use event_schema::AgentId;
use timebase::Instant;

use crate::block_map::{BlockCounts, BlockMap, later};
use crate::chance::Chance;
use crate::config::FetchConfig;
use crate::pace::Pace;
use crate::ranges::{Space, disjoint, merge, messages};
use patience::Patience;
pub use standing::{Holder, Standing};

/// How often timeouts are looked at while something is missing.
const TICK: Duration = Duration::from_millis(250);
/// The same once everything missing is asked of somebody.
const ENDGAME_TICK: Duration = Duration::from_millis(50);
/// Blocks worth an announcement.
const HAVE_BLOCKS: u32 = 8;
/// Blocks declared lost in one tick: keeps a tick short when a large source file changed.
const LOST_PER_TICK: usize = 4096;

/// What an arrived block means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Check and keep it, then tell `handle_verified`, `handle_corrupt` or `handle_not_kept`.
    Fresh,
    /// It was verified before, or is being checked: drop it.
    Duplicate,
    /// From a peer that is not there or with a number that does not exist: drop it.
    Unwanted,
}

struct Peer {
    /// The run's source.
    source: bool,
    /// Chooses itself what it sends: the source, where content is concerned.
    origin: bool,
    /// At our site.
    near: bool,
    /// What a near peer is fetching from afar, and since when.
    fetching: BTreeMap<u64, Instant>,
    have: BlockMap,
    asked: BTreeMap<u64, Instant>,
    /// Blocks of its choice that an origin still owes us.
    credit: u32,
    pace: Pace,
    /// Last arrival, or the first request after a rest.
    active: Instant,
    /// To be looked at when requests are planned next.
    ready: bool,
    /// Left alone until then, because it delivered nothing.
    snubbed: Option<Instant>,
    snubs: u32,
    strikes: u32,
    /// Sent corrupt blocks: nothing is taken from it any more, but it is served.
    shunned: bool,
    joined: Instant,
}

impl Peer {
    /// Whether what it has is counted as supply.
    fn counts(&self) -> bool {
        !self.origin && !self.shunned && self.snubbed.is_none()
    }
}

/// Who was asked for a block: one peer, two in the endgame.
#[derive(Clone, Copy)]
struct Askers(AgentId, Option<AgentId>);

impl Askers {
    fn iter(self) -> impl Iterator<Item = AgentId> {
        core::iter::once(self.0).chain(self.1)
    }
}

/// The swarm of one run, seen from one destination, for one space of blocks.
pub(crate) struct Swarm {
    space: Space,
    config: FetchConfig,
    chance: Chance,
    have: BlockMap,
    taken: BlockMap,
    lost: BlockMap,
    /// Of each class of blocks that comes before others, those that come after it; empty where all are alike.
    later: Vec<BlockMap>,
    checking: BTreeSet<u64>,
    asked: BTreeMap<u64, Askers>,
    /// How many of `asked` peers owe us that have been silent too long to be counted on.
    late: usize,
    /// What arrives from all peers together.
    pace: Pace,
    /// Blocks asked at least of each peer that has some.
    depth: u32,
    /// How many usable peers, origins left out, have a block.
    supply: BlockCounts,
    peers: BTreeMap<AgentId, Peer>,
    /// The origin, if it is connected.
    origin: Option<AgentId>,
    /// Peers to be looked at, those with `ready` set.
    ready: Vec<AgentId>,
    /// Such as wait until less is asked of all together.
    held: Vec<AgentId>,
    begun: bool,
    paused: bool,
    /// This agent.
    me: AgentId,
    /// How many near peers there are that can be used.
    near: usize,
    /// What near peers have or are fetching.
    sited: BlockMap,
    /// What far peers have and nobody at the site has taken on, and for how many ticks.
    waiting: BTreeMap<u64, u8>,
    /// What arrives from far peers.
    far_pace: Pace,
    patience: Patience,
    announce: Vec<u64>,
    announce_at: Option<Instant>,
    tick_at: Instant,
    /// Blocks the origin cannot give: why, and since when nobody else has them either.
    failing: BTreeMap<u64, (UnavailableReason, Instant)>,
    newly_lost: Vec<(u64, UnavailableReason)>,
    out: VecDeque<(AgentId, PeerMessage)>,
    duplicates: u64,
}

impl Swarm {
    /// A swarm that asks for nothing until [`Self::begin`].
    pub(crate) fn new(
        space: Space,
        len: u64,
        config: FetchConfig,
        me: AgentId,
        seed: u64,
        now: Instant,
    ) -> Self {
        Self {
            space,
            chance: Chance::new(seed),
            have: BlockMap::new(len),
            taken: BlockMap::new(len),
            lost: BlockMap::new(len),
            later: Vec::new(),
            checking: BTreeSet::new(),
            asked: BTreeMap::new(),
            late: 0,
            pace: Pace::new(),
            depth: config.pipeline_min,
            supply: BlockCounts::new(len),
            peers: BTreeMap::new(),
            origin: None,
            ready: Vec::new(),
            held: Vec::new(),
            begun: false,
            paused: true,
            me,
            near: 0,
            sited: BlockMap::new(len),
            waiting: BTreeMap::new(),
            far_pace: Pace::new(),
            patience: Patience::new(now, &config),
            announce: Vec::new(),
            announce_at: None,
            tick_at: now,
            failing: BTreeMap::new(),
            newly_lost: Vec::new(),
            out: VecDeque::new(),
            duplicates: 0,
            config,
        }
    }

    /// Starts fetching all that `have` does not hold, and announces what it holds.
    pub(crate) fn begin(&mut self, now: Instant, have: BlockMap) {
        assert_eq!(have.len(), self.have.len(), "a block map of another manifest");
        self.taken = have.clone();
        self.have = have;
        self.begun = true;
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.tell_all(peer);
        }
        self.resume(now);
    }

    /// These blocks come before the rest, in this order.
    pub(crate) fn prefer(&mut self, classes: &[BlockMap]) {
        self.later = later(classes);
    }

    /// Asks for nothing more and takes back what was asked: there is no room for it.
    pub(crate) fn pause(&mut self) {
        if self.begun && !self.paused {
            self.paused = true;
            for id in self.peers.keys().copied().collect::<Vec<_>>() {
                self.take_back(id, |_, _| true);
            }
        }
    }

    /// Fetches again after [`Self::pause`].
    pub(crate) fn resume(&mut self, now: Instant) {
        if !self.begun || !self.paused {
            return;
        }
        self.paused = false;
        self.patience.start(now, &self.config);
        self.tick_at = now + TICK;
        self.wake_all();
    }

    pub(crate) fn have(&self) -> &BlockMap {
        &self.have
    }

    /// How many peers have a block: those that count.
    pub(crate) fn supply(&self, block: u64) -> u16 {
        self.supply.at(block)
    }

    pub(crate) fn lost(&self) -> &BlockMap {
        &self.lost
    }

    pub(crate) fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Whether every block is verified or lost.
    pub(crate) fn is_settled(&self) -> bool {
        self.begun && self.have.count() + self.lost.count() == self.have.len()
    }

    /// Whether a block arriving now would be of use: worth a buffer.
    pub(crate) fn wants(&self, block: u64) -> bool {
        block < self.have.len() && !self.have.contains(block) && !self.checking.contains(&block)
    }

    pub(crate) fn add_peer(&mut self, now: Instant, id: AgentId, source: bool, shunned: bool) {
        self.remove_peer(id);
        let peer = Peer {
            source,
            // In the manifest's space every peer is asked by number: it is small and needed at once.
            origin: source && self.space == Space::Content,
            near: false,
            fetching: BTreeMap::new(),
            have: BlockMap::new(self.have.len()),
            asked: BTreeMap::new(),
            credit: 0,
            pace: Pace::new(),
            active: now,
            ready: false,
            snubbed: None,
            snubs: 0,
            strikes: 0,
            shunned,
            joined: now,
        };
        if peer.origin {
            self.origin = Some(id);
            // It has to find out what everybody has before it can choose.
            self.patience.start(now, &self.config);
        }
        self.peers.insert(id, peer);
        self.sound();
        self.tell_all(id);
        self.wake(id);
    }

    pub(crate) fn remove_peer(&mut self, id: AgentId) {
        self.take_back(id, |_, _| true);
        let Some(peer) = self.peers.remove(&id) else { return };
        self.ready.retain(|ready| *ready != id);
        self.held.retain(|held| *held != id);
        if peer.counts() {
            self.supply.sub_map(&peer.have);
        }
        self.origin.take_if(|origin| *origin == id);
        if peer.near {
            self.see_site();
        }
        self.out.retain(|(to, _)| *to != id);
    }

    pub(crate) fn set_rtt(&mut self, id: AgentId, rtt: Duration) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.pace.rtt = rtt;
        }
    }

    /// A peer announced blocks.
    pub(crate) fn handle_have(&mut self, now: Instant, id: AgentId, ranges: &[BlockRange]) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let counted = peer.counts();
        let (mut first, mut useful, mut spared) = (false, false, Vec::new());
        // What comes in long ranges is counted at once: chunks that are all alike stay so.
        let mut added: Option<BlockMap> = None;
        for range in disjoint(ranges, self.space, self.have.len()) {
            let gaps: Vec<_> = peer.have.gaps_in(range.clone()).collect();
            if peer.near && counted {
                self.sited.insert_range(range.clone());
            }
            peer.have.insert_range(range);
            for gap in gaps {
                useful |= self.taken.next_clear(gap.start).is_some_and(|open| open < gap.end);
                if !counted {
                    continue;
                }
                if gap.end - gap.start > 256 {
                    added.get_or_insert_with(|| BlockMap::new(self.have.len())).insert_range(gap);
                    continue;
                }
                for block in gap {
                    if self.supply.add(block) == 1 {
                        first |= !self.taken.contains(block);
                        spared.push(block);
                    }
                }
            }
        }
        if let Some(added) = added {
            self.supply.add_map(&added);
            first |= added.next_not_in(&self.taken, 0).is_some();
        }
        if first {
            self.patience.progress(now);
        }
        self.spare_origin(&spared);
        if useful {
            self.wake(id);
        }
    }

    /// What the origin was asked for and somebody else now has is taken back.
    fn spare_origin(&mut self, blocks: &[u64]) {
        let Some(origin) = self.origin.filter(|_| !blocks.is_empty()) else { return };
        let peer = &self.peers[&origin];
        let asked: Vec<u64> = blocks.iter().filter(|b| peer.asked.contains_key(b)).copied().collect();
        if !asked.is_empty() {
            self.take_back(origin, |block, _| asked.contains(&block));
        }
    }

    /// A peer has everything.
    pub(crate) fn handle_complete(&mut self, now: Instant, id: AgentId) {
        let gaps: Vec<_> = match self.peers.get(&id) {
            Some(peer) => peer.have.gaps().collect(),
            None => return,
        };
        for ranges in messages(self.space, gaps.into_iter()) {
            self.handle_have(now, id, &ranges);
        }
    }

    /// A peer cannot give a block.
    pub(crate) fn handle_unavailable(
        &mut self,
        now: Instant,
        id: AgentId,
        block: u64,
        reason: UnavailableReason,
    ) {
        self.take_back_silently(id, block);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.have.remove(block) && peer.counts() {
            self.supply.sub(block);
        }
        if peer.origin && block < self.have.len() && !self.have.contains(block) {
            self.failing.insert(block, (reason, now));
        }
        self.wake_all();
    }

    /// A whole block came in, of the right length and not yet checked.
    pub(crate) fn handle_arrived(&mut self, now: Instant, id: AgentId, block: u64) -> Arrival {
        if block >= self.have.len() {
            return Arrival::Unwanted;
        }
        let Some(peer) = self.peers.get_mut(&id).filter(|p| !p.shunned) else { return Arrival::Unwanted };
        peer.pace.arrived(now);
        self.pace.arrived(now);
        peer.active = now;
        peer.snubs = 0;
        let far = !peer.near;
        let back = peer.snubbed.take().is_some() && !peer.origin;
        if back {
            self.supply.add_map(&peer.have);
        }
        let asked = peer.asked.remove(&block).is_some();
        if !asked && peer.origin {
            peer.credit = peer.credit.saturating_sub(1);
            // It still chooses: what it has sent to others is not all there is.
            self.patience.origin_chooses();
        }
        if peer.asked.is_empty() && peer.credit == 0 {
            peer.pace.rest();
        }
        if back && !far {
            self.see_site();
        }
        if far {
            self.far_pace.arrived(now);
        }
        self.ready.append(&mut self.held);
        self.wake(id);
        for other in self.asked.remove(&block).into_iter().flat_map(Askers::iter) {
            if other != id && self.peers.get_mut(&other).is_some_and(|p| p.asked.remove(&block).is_some()) {
                self.send_cancel(other, alloc::vec![block]);
            }
        }
        if self.have.contains(block) || !self.checking.insert(block) {
            self.duplicates += 1;
            return Arrival::Duplicate;
        }
        self.taken.insert(block);
        Arrival::Fresh
    }

    /// An arrived block matched its hash and is kept.
    pub(crate) fn handle_verified(&mut self, now: Instant, block: u64) {
        self.checking.remove(&block);
        if !self.have.insert(block) {
            return;
        }
        self.taken.insert(block);
        self.lost.remove(block);
        self.failing.remove(&block);
        self.patience.progress(now);
        self.announce.push(block);
        if self.announce.len() >= self.config.have_batch || self.is_settled() {
            self.announce_now();
        } else {
            // Where blocks come slowly they are announced less often, else messages would be a larger share.
            let least = self.config.have_delay;
            let delay = (HAVE_BLOCKS * self.pace.interval()).clamp(least, 3 * least);
            self.announce_at.get_or_insert(now + delay);
        }
    }

    /// An arrived block could not be kept: it is missing again.
    pub(crate) fn handle_not_kept(&mut self, block: u64) {
        if self.checking.remove(&block) && !self.lost.contains(block) {
            self.taken.remove(block);
            self.wake_all();
        }
    }

    /// Gives blocks up that cannot be kept here whoever sends them: they count as lost.
    pub(crate) fn forgo(&mut self, blocks: impl IntoIterator<Item = u64>) {
        for block in blocks {
            if self.have.contains(block) || !self.lost.insert(block) {
                continue;
            }
            for asker in self.asked.get(&block).copied().into_iter().flat_map(Askers::iter) {
                self.take_back(asker, |asked, _| asked == block);
            }
            self.taken.insert(block);
            self.failing.remove(&block);
        }
    }

    /// An arrived block did not match its hash. True if its peer is to be shunned from now on.
    pub(crate) fn handle_corrupt(&mut self, id: AgentId, block: u64) -> bool {
        self.handle_not_kept(block);
        let Some(peer) = self.peers.get_mut(&id) else { return true };
        peer.strikes += 1;
        !peer.source || peer.strikes >= self.config.origin_strikes
    }

    /// Takes nothing more from a peer.
    pub(crate) fn shun(&mut self, id: AgentId) {
        self.take_back(id, |_, _| true);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.counts() {
            self.supply.sub_map(&peer.have);
        }
        peer.shunned = true;
        self.see_site();
        self.wake_all();
    }

    /// What to send next.
    pub(crate) fn poll_message(&mut self, now: Instant) -> Option<(AgentId, PeerMessage)> {
        if !self.ready.is_empty() {
            self.schedule(now);
        }
        self.out.pop_front()
    }

    /// A block that turned out to be lost.
    pub(crate) fn poll_lost(&mut self) -> Option<(u64, UnavailableReason)> {
        self.newly_lost.pop()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let tick = (!self.paused && !self.is_settled() && !self.peers.is_empty()).then_some(self.tick_at);
        match (self.announce_at, tick) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.announce_at.is_some_and(|at| at <= now) {
            self.announce_now();
        }
        if self.paused || self.is_settled() || now < self.tick_at {
            return;
        }
        self.tick_at = now + if self.open() > 0 { TICK } else { ENDGAME_TICK };
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            self.check_peer(now, id);
        }
        self.look_for_lost(now);
        // What is whole need not be looked for any more.
        self.later.retain(|later| self.have.next_in_neither(later, 0).is_some());
        if self.patience.is_over(now, &self.config, self.origin_rtt()) {
            self.patience.ask_origin();
        }
        self.count_late(now);
        self.sound();
        self.look_at_site(now);
        self.endgame(now);
        self.wake_all();
    }

    fn origin_rtt(&self) -> Option<Duration> {
        self.origin.map(|id| &self.peers[&id]).filter(|p| !p.shunned).map(|p| p.pace.rtt)
    }

    /// Takes requests back from a peer that does not deliver, and gives one that did not a new chance.
    fn check_peer(&mut self, now: Instant, id: AgentId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.snubbed.is_some_and(|until| until <= now) {
            peer.snubbed = None;
            if peer.counts() {
                self.supply.add_map(&peer.have);
            }
            if peer.near {
                return self.see_site();
            }
        }
        if peer.asked.is_empty() {
            return;
        }
        let usual = 4 * peer.pace.interval() + 8 * peer.pace.rtt;
        if now - peer.active >= self.config.request_timeout.max(usual) {
            let rest = (self.config.snub_min * (1 << peer.snubs.min(8))).min(self.config.snub_max);
            (peer.snubs, peer.active) = (peer.snubs + 1, now);
            if !peer.origin {
                peer.snubbed = Some(now + rest);
                self.supply.sub_map(&peer.have);
            }
            let near = peer.near;
            self.take_back(id, |_, _| true);
            if near {
                self.see_site();
            }
        } else {
            let patience = self.config.block_timeout;
            self.take_back(id, |_, since| now - since >= patience);
        }
    }

    /// Finds blocks that the origin does not have and nobody else announces.
    fn look_for_lost(&mut self, now: Instant) {
        let Some(origin) = self.origin.map(|id| &self.peers[&id]) else {
            // Nobody can tell what the source has: nothing is lost.
            self.failing.values_mut().for_each(|f| f.1 = now);
            return;
        };
        if now - origin.joined < self.config.lost_after {
            return;
        }
        let (mut from, mut found) = (0, Vec::new());
        while let Some(block) = origin.have.next_in_neither(&self.taken, from) {
            let failing = self.failing.entry(block).or_insert((UnavailableReason::Changed, now));
            if self.supply.at(block) > 0 {
                failing.1 = now;
            } else if now - failing.1 >= self.config.lost_after {
                found.push((block, failing.0));
            }
            from = block + 1;
            if self.failing.len() >= LOST_PER_TICK {
                break;
            }
        }
        for (block, reason) in found {
            self.failing.remove(&block);
            self.lost.insert(block);
            self.taken.insert(block);
            self.newly_lost.push((block, reason));
        }
    }

    /// Tells a peer all that is verified here.
    fn tell_all(&mut self, id: AgentId) {
        for ranges in messages(self.space, self.have.ranges()) {
            self.out.push_back((id, Have { ranges }.into()));
        }
        if self.space == Space::Content && self.have.is_complete() && self.begun {
            self.out.push_back((id, Complete {}.into()));
        }
    }

    fn announce_now(&mut self) {
        self.announce_at = None;
        let news: Vec<_> = merge(core::mem::take(&mut self.announce)).collect();
        let complete = self.space == Space::Content && self.have.is_complete();
        for (&id, peer) in &self.peers {
            // Who has everything needs no news, but the origin counts who has what.
            if peer.have.is_complete() && !peer.origin {
                continue;
            }
            for ranges in messages(self.space, news.iter().cloned()) {
                self.out.push_back((id, Have { ranges }.into()));
            }
            if complete {
                self.out.push_back((id, Complete {}.into()));
            }
        }
    }

    /// Takes back requests, chosen by block and time of asking, and tells the peer.
    fn take_back(&mut self, id: AgentId, which: impl Fn(u64, Instant) -> bool) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let blocks: Vec<u64> =
            peer.asked.iter().filter(|(b, at)| which(**b, **at)).map(|(b, _)| *b).collect();
        if blocks.is_empty() {
            return;
        }
        for &block in &blocks {
            self.take_back_silently(id, block);
        }
        self.send_cancel(id, blocks);
        self.wake_all();
    }

    fn take_back_silently(&mut self, id: AgentId, block: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.asked.remove(&block).is_none() {
            return;
        }
        if peer.asked.is_empty() && peer.credit == 0 {
            peer.pace.rest();
        }
        let Some(askers) = self.asked.get_mut(&block) else { return };
        match askers.iter().find(|asker| *asker != id) {
            Some(other) => *askers = Askers(other, None),
            None => {
                self.asked.remove(&block);
                if !self.lost.contains(block) {
                    self.taken.remove(block);
                }
            }
        }
    }

    fn send_cancel(&mut self, id: AgentId, blocks: Vec<u64>) {
        for ranges in messages(self.space, merge(blocks)) {
            self.out.push_back((id, PeerMessage::from(Cancel { ranges })));
        }
    }

    /// Something is missing again, or may be had again.
    fn wake_all(&mut self) {
        self.ready.append(&mut self.held);
        for (id, peer) in &mut self.peers {
            if !core::mem::replace(&mut peer.ready, true) {
                self.ready.push(*id);
            }
        }
    }

    /// There may be more to ask a peer for.
    fn wake(&mut self, id: AgentId) {
        if let Some(peer) = self.peers.get_mut(&id)
            && !core::mem::replace(&mut peer.ready, true)
        {
            self.ready.push(id);
        }
    }
}
