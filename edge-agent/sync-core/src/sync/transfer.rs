//! Fetching one file: what this agent has already, then hashes, then blocks from everybody who has it (SYNC.md §5).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::ops::Range;

use agent_proto::limits::BLOCK_LEN;
use agent_proto::sync::{
    Cancel, Dot, FILES_MAX, FileRequest, GetHashes, Hashes, PAGE_BLOCKS, Request, Statement, Unavailable,
    Value, WEAK_PAGE, unpack_weak,
};
use event_schema::AgentId;
use timebase::Instant;

use super::row::{Index, Row};
use super::statement::dot;
use super::{Action, Config, Misbehaviour, Obstacle, Replica};
use crate::merkle::{Hash, tree_root};

/// How often everybody is asked for a content before people are told that nobody has it.
const TRIES_IN_VAIN: u32 = 5;

/// So many blocks one after the other that are not where they are in the older version, and that it is long enough for, may
/// have been moved: bytes were put in or taken out before them. Looking costs a question, and reading both files.
const MOVED: usize = 16;

/// Roots of the pages of a file's block hashes: what `Hashes` without a page holds.
pub fn page_roots(blocks: &[Hash]) -> Vec<Hash> {
    blocks.chunks(PAGE_BLOCKS as usize).map(tree_root).collect()
}

/// The root over a file's block hashes; over its page roots the same.
pub fn root_of(hashes: &[Hash]) -> Hash {
    tree_root(hashes)
}

/// A file being fetched.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) path: Vec<u8>,
    pub(super) dot: Dot,
    root: Hash,
    size: u64,
    blocks: u32,
    sources: BTreeSet<AgentId>,
    /// Those of them who never said that they have it: a root tells no size, so what they give may be right of another
    /// statement, and is not held against them.
    guessed: BTreeSet<AgentId>,
    /// Of whom others took over what they were asked for, and who send it all the same.
    relieved: BTreeSet<AgentId>,
    stage: Stage,
    pub(super) placing: bool,
}

#[derive(Debug)]
enum Stage {
    /// The agent looks for what it has.
    Staging,
    /// Roots of pages are asked for; of whom, and when.
    Pages(Option<(AgentId, Instant)>),
    /// Hashes of one page are asked for.
    Hashes { pages: Vec<Hash>, page: u32, asked: Option<(AgentId, Instant)> },
    /// The agent looks for blocks of the page.
    Reusing(Page),
    /// Weak hashes of the page are asked for; of whom, and since when at the earliest that counts.
    Weak(Page, Option<(AgentId, Instant)>),
    /// Blocks are asked for.
    Blocks(Page),
}

#[derive(Debug)]
struct Page {
    pages: Vec<Hash>,
    page: u32,
    hashes: Vec<Hash>,
    /// Blocks of the page that nobody was asked for, as numbers in the file.
    wanted: BTreeSet<u32>,
    /// Of whom the others were asked, and when.
    asked: BTreeMap<u32, (AgentId, Instant)>,
    /// They were looked for at any place.
    searched: bool,
}

impl Page {
    fn new(pages: Vec<Hash>, page: u32, hashes: Vec<Hash>) -> Self {
        let first = page * PAGE_BLOCKS;
        let wanted = (first..first + hashes.len() as u32).collect();
        Self { pages, page, hashes, wanted, asked: BTreeMap::new(), searched: false }
    }

    /// Whether blocks may be elsewhere in an older version of this size.
    fn may_be_moved(&self, older: u64) -> bool {
        let end = u32::try_from(older / u64::from(BLOCK_LEN)).unwrap_or(u32::MAX);
        let (mut run, mut next) = (0, None);
        !self.searched
            && self.wanted.range(..end).any(|&block| {
                run = if next == Some(block) { run + 1 } else { 1 };
                next = Some(block + 1);
                run >= MOVED
            })
    }

    fn first(&self) -> u32 {
        self.page * PAGE_BLOCKS
    }
}

impl Stage {
    /// The page whose weak hashes are asked for; it is not looked for elsewhere again.
    fn take_weak(&mut self) -> Option<Page> {
        match core::mem::replace(self, Stage::Staging) {
            Stage::Weak(page, _) => Some(Page { searched: true, ..page }),
            other => {
                *self = other;
                None
            }
        }
    }
}

impl Transfer {
    /// Goes without weak hashes.
    fn fetch_blocks(&mut self) {
        if let Some(page) = self.stage.take_weak() {
            self.stage = Stage::Blocks(page);
        }
    }
}

fn pages_of(blocks: u32) -> u32 {
    blocks.div_ceil(PAGE_BLOCKS)
}

fn blocks_in_page(blocks: u32, page: u32) -> u32 {
    (blocks - page * PAGE_BLOCKS).min(PAGE_BLOCKS)
}

impl Replica {
    pub(super) fn begin_transfer(
        &mut self,
        _now: Instant,
        index: &dyn Index,
        row: &Row,
        winner: &Statement,
        root: Hash,
        size: u64,
    ) {
        let from = index.with_root(&root).filter(|from| !self.busy.contains(from));
        let mut sources: BTreeSet<AgentId> =
            row.holders.iter().filter(|h| self.is_source(**h)).copied().collect();
        let mut guessed = BTreeSet::new();
        if sources.is_empty() {
            // Those who said so are away, or it was here and is to come back: anybody may have it.
            sources = self.peers.keys().filter(|p| self.is_source(**p)).copied().collect();
            guessed.clone_from(&sources);
        }
        if from.is_none() && sources.is_empty() && size > 0 {
            return;
        }
        let blocks = u32::try_from(size.div_ceil(u64::from(BLOCK_LEN))).unwrap_or(u32::MAX);
        let transfer = self.number();
        self.busy.insert(row.path.clone());
        self.transfers.insert(
            transfer,
            Transfer {
                path: row.path.clone(),
                dot: dot(winner),
                root,
                size,
                blocks,
                sources,
                guessed,
                relieved: BTreeSet::new(),
                stage: Stage::Staging,
                placing: false,
            },
        );
        self.actions.push_back(Action::Stage { transfer, path: row.path.clone(), root, size, from });
    }

    fn is_source(&self, peer: AgentId) -> bool {
        self.peers.get(&peer).is_some_and(|p| p.greeted && p.strikes < self.config.strikes)
    }

    /// A peer has what a path is fetched for.
    pub(super) fn add_source(&mut self, path: &[u8], peer: AgentId) {
        if self.is_source(peer)
            && let Some(t) = self.transfers.values_mut().find(|t| t.path == path && !t.placing)
        {
            t.sources.insert(peer);
            t.guessed.remove(&peer);
        }
    }

    /// A peer is there that was not when transfers began: those are not left to who was, of whom all may be away,
    /// slow, or liars.
    pub(super) fn join_transfers(&mut self, index: &dyn Index, peer: AgentId) {
        let under_way: Vec<(u32, Vec<u8>)> =
            self.transfers.iter().filter(|(_, t)| !t.placing).map(|(n, t)| (*n, t.path.clone())).collect();
        for (transfer, path) in under_way {
            let Some(row) = self.row(index, &path) else { continue };
            let holds = row.holders.contains(&peer);
            if (holds || !row.holders.iter().any(|h| self.is_source(*h)))
                && let Some(t) = self.transfers.get_mut(&transfer)
            {
                t.sources.insert(peer);
                if holds {
                    t.guessed.remove(&peer);
                } else {
                    t.guessed.insert(peer);
                }
            }
        }
    }

    /// Gives a transfer up, or ends it before anything was placed.
    pub(super) fn end_transfer(&mut self, transfer: u32) {
        let Some(t) = self.transfers.remove(&transfer) else { return };
        self.busy.remove(&t.path);
        let mut asked = t.relieved;
        if let Stage::Blocks(page) = &t.stage {
            for (peer, _) in page.asked.values() {
                asked.insert(*peer);
                if let Some(p) = self.peers.get_mut(peer) {
                    p.owed = p.owed.saturating_sub(1);
                }
            }
        }
        for peer in asked {
            self.actions.push_back(Action::Send { peer, message: Cancel { transfer }.into() });
        }
        self.actions.push_back(Action::Drop { transfer });
        if self.look_again.remove(&t.path) {
            self.actions.push_back(Action::Look { path: t.path });
        }
        self.pass.restart();
    }

    /// What was found on this agent of a [`Action::Stage`] or [`Action::Reuse`]: verified blocks of the file.
    pub fn handle_reused(
        &mut self,
        now: Instant,
        index: &mut dyn Index,
        transfer: u32,
        found: &[Range<u32>],
    ) {
        let older = self.transfers.get(&transfer).map_or(0, |t| match &t.stage {
            Stage::Reusing(_) => self.size_here(index, &t.path),
            _ => 0,
        });
        if let Some(t) = self.transfers.get_mut(&transfer).filter(|t| !t.placing) {
            let blocks = t.blocks;
            let count: u64 = found.iter().map(|r| u64::from(r.end.min(blocks).saturating_sub(r.start))).sum();
            let mut complete = false;
            match core::mem::replace(&mut t.stage, Stage::Staging) {
                Stage::Staging if count >= u64::from(blocks) => {
                    complete = true;
                    self.counters.reused += 1;
                }
                Stage::Staging => {
                    t.stage = match pages_of(blocks) {
                        1 => {
                            let pages = alloc::vec![t.root];
                            Stage::Hashes { pages, page: 0, asked: None }
                        }
                        _ => Stage::Pages(None),
                    };
                    if blocks == 1 {
                        // The root of one block is its hash.
                        t.stage = Stage::Blocks(Page::new(Vec::new(), 0, alloc::vec![t.root]));
                    }
                }
                Stage::Reusing(mut page) => {
                    for range in found {
                        for block in range.start..range.end.min(page.first() + page.hashes.len() as u32) {
                            page.wanted.remove(&block);
                        }
                    }
                    if page.may_be_moved(older) {
                        t.stage = Stage::Weak(page, None);
                    } else {
                        t.stage = Stage::Blocks(page);
                        complete = self.page_done(transfer);
                    }
                }
                other => t.stage = other,
            }
            if complete {
                self.place(now, index, transfer);
            }
        }
        self.finish(now, index);
    }

    /// How many bytes the file has that is at a path now.
    fn size_here(&self, index: &dyn Index, path: &[u8]) -> u64 {
        match self.row(index, path).as_ref().and_then(|row| row.present()).map(|here| &here.value) {
            Some(Value::File { size, .. }) => *size,
            _ => 0,
        }
    }

    /// Nothing can be kept of a transfer now: no file could be made for it, or what came could not be written. It is
    /// given up, and its path tried again later: asked for again, its blocks would come to nothing for ever.
    pub fn handle_unstaged(&mut self, now: Instant, index: &mut dyn Index, transfer: u32) {
        if let Some(path) = self.transfers.get(&transfer).filter(|t| !t.placing).map(|t| t.path.clone()) {
            self.end_transfer(transfer);
            self.retry_later(now, &path);
        }
        self.finish(now, index);
    }

    /// Hashes came.
    pub(super) fn take_hashes(&mut self, now: Instant, peer: AgentId, message: Hashes) {
        let Hashes { transfer, page, hashes } = message;
        let Some(t) = self.transfers.get_mut(&transfer) else { return };
        let good = match (&mut t.stage, page) {
            (Stage::Pages(Some((asked, _))), None) if *asked == peer => {
                let good = hashes.len() as u32 == pages_of(t.blocks) && tree_root(&hashes) == t.root;
                if good {
                    t.stage = Stage::Hashes { pages: hashes, page: 0, asked: None };
                } else {
                    t.stage = Stage::Pages(None);
                }
                good
            }
            (Stage::Hashes { pages, page: wanted, asked: asked @ Some(_) }, Some(page))
                if *wanted == page && asked.is_some_and(|(a, _)| a == peer) =>
            {
                let count = blocks_in_page(t.blocks, page);
                let good =
                    hashes.len() as u32 == count && pages.get(page as usize) == Some(&tree_root(&hashes));
                *asked = None;
                if good {
                    let first = page * PAGE_BLOCKS;
                    let action = Action::Reuse { transfer, first, hashes: hashes.clone() };
                    t.stage = Stage::Reusing(Page::new(core::mem::take(pages), page, hashes));
                    self.actions.push_back(action);
                }
                good
            }
            (Stage::Weak(page, Some((asked, _))), Some(number))
                if *asked == peer && number == page.page | WEAK_PAGE =>
            {
                let (weak, first, size) = (unpack_weak(&hashes, page.hashes.len()), page.first(), t.size);
                let is_full = |block: u32| (u64::from(block) + 1) * u64::from(BLOCK_LEN) <= size;
                let sought: Vec<(u32, u32, Hash)> = (first..)
                    .zip(weak.into_iter().zip(&page.hashes))
                    .filter(|(block, (weak, _))| *weak != 0 && is_full(*block) && page.wanted.contains(block))
                    .map(|(block, (weak, strong))| (block, weak, *strong))
                    .collect();
                if sought.is_empty() {
                    t.fetch_blocks();
                } else if let Some(page) = t.stage.take_weak() {
                    t.stage = Stage::Reusing(page);
                    self.actions.push_back(Action::Search { transfer, sought });
                }
                // Too few, or wrong ones, cost what is not found.
                true
            }
            _ => return,
        };
        if good {
            self.progress(now, peer);
        } else {
            self.wrong(now, peer, transfer);
        }
    }

    /// What came is not what was asked for: of who said that he has it, a strike; of others, all that they are asked for.
    fn wrong(&mut self, now: Instant, peer: AgentId, transfer: u32) {
        match self.transfers.get_mut(&transfer).filter(|t| t.guessed.contains(&peer)) {
            Some(t) => {
                t.sources.remove(&peer);
                if !self.give_back(peer, |n| n == transfer).is_empty() {
                    self.actions.push_back(Action::Send { peer, message: Cancel { transfer }.into() });
                }
            }
            None => self.strike(now, peer),
        }
    }

    /// How many bytes a block has that was asked of a peer and has not come: only such a block, of just this
    /// length, is written to the staged file. None: drop it; it may be late, and another one is there already.
    pub fn expected_block(&self, peer: AgentId, transfer: u32, block: u32) -> Option<u32> {
        let t = self.transfers.get(&transfer)?;
        let Stage::Blocks(page) = &t.stage else { return None };
        if page.asked.get(&block).is_none_or(|(asked, _)| *asked != peer) {
            return None;
        }
        let left = t.size.checked_sub(u64::from(block) * u64::from(BLOCK_LEN))?;
        Some(left.min(u64::from(BLOCK_LEN)) as u32)
    }

    /// A block that [`Self::expected_block`] told came from a peer, was written to the staged file, and has this hash;
    /// of a wrong length: was not written, and any hash will do that is not the right one.
    pub fn handle_block(
        &mut self,
        now: Instant,
        index: &mut dyn Index,
        peer: AgentId,
        transfer: u32,
        block: u32,
        hash: &Hash,
    ) {
        let verdict = match self.transfers.get_mut(&transfer).map(|t| &mut t.stage) {
            Some(Stage::Blocks(page)) if page.asked.get(&block).is_some_and(|(p, _)| *p == peer) => {
                page.asked.remove(&block);
                let good = page.hashes.get((block - page.first()) as usize) == Some(hash);
                if !good {
                    page.wanted.insert(block);
                }
                Some(good)
            }
            // Late, or nobody asked for it: nothing is lost by dropping it.
            _ => None,
        };
        if let Some(good) = verdict {
            if let Some(p) = self.peers.get_mut(&peer) {
                p.owed = p.owed.saturating_sub(1);
            }
            if good {
                self.counters.blocks += 1;
                self.progress(now, peer);
                if self.page_done(transfer) {
                    self.place(now, index, transfer);
                }
            } else {
                self.wrong(now, peer, transfer);
            }
        }
        self.finish(now, index);
    }

    /// Goes on to the next page if this one is complete; true when the file is.
    fn page_done(&mut self, transfer: u32) -> bool {
        let Some(t) = self.transfers.get_mut(&transfer) else { return false };
        let Stage::Blocks(page) = &mut t.stage else { return false };
        if !page.wanted.is_empty() || !page.asked.is_empty() {
            return false;
        }
        for peer in core::mem::take(&mut t.relieved) {
            self.actions.push_back(Action::Send { peer, message: Cancel { transfer }.into() });
        }
        if page.page + 1 >= pages_of(t.blocks) {
            return true;
        }
        let (pages, next) = (core::mem::take(&mut page.pages), page.page + 1);
        t.stage = Stage::Hashes { pages, page: next, asked: None };
        false
    }

    fn progress(&mut self, now: Instant, peer: AgentId) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.progress_at = now;
            p.snubs = 0;
        }
    }

    fn strike(&mut self, now: Instant, peer: AgentId) {
        self.counters.bad_blocks += 1;
        let Some(p) = self.peers.get_mut(&peer) else { return };
        p.strikes += 1;
        if p.strikes == self.config.strikes {
            self.actions.push_back(Action::Misbehaved { peer, what: Misbehaviour::BadContent });
        }
        self.snub(now, peer);
    }

    /// Gives back what was asked of a peer, and leaves it alone for a while.
    pub(super) fn snub(&mut self, now: Instant, peer: AgentId) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.snubbed_until = Some(now + self.config.snub * (1 << p.snubs.min(5)));
            p.snubs += 1;
        }
        for transfer in self.give_back(peer, |_| true) {
            // Or else it sends, when it comes to it, what nobody waits for.
            self.actions.push_back(Action::Send { peer, message: Cancel { transfer }.into() });
        }
    }

    /// What was asked of a peer, in the transfers chosen, may be asked of others; says in which something was.
    pub(super) fn give_back(&mut self, peer: AgentId, which: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut given = 0;
        let mut transfers = Vec::new();
        for (n, t) in self.transfers.iter_mut().filter(|(n, _)| which(**n)) {
            match &mut t.stage {
                Stage::Pages(asked) | Stage::Hashes { asked, .. }
                    if asked.is_some_and(|(p, _)| p == peer) =>
                {
                    *asked = None;
                    transfers.push(*n);
                }
                Stage::Weak(_, Some((asked, _))) if *asked == peer => {
                    t.fetch_blocks();
                    transfers.push(*n);
                }
                Stage::Blocks(page) => {
                    let back: Vec<u32> =
                        page.asked.iter().filter(|(_, (p, _))| *p == peer).map(|(b, _)| *b).collect();
                    given += back.len();
                    if !back.is_empty() {
                        transfers.push(*n);
                    }
                    for block in back {
                        page.asked.remove(&block);
                        page.wanted.insert(block);
                    }
                }
                _ => {}
            }
        }
        if let Some(p) = self.peers.get_mut(&peer) {
            p.owed = p.owed.saturating_sub(given);
        }
        transfers
    }

    /// A peer says that it has not got what it was asked for.
    pub(super) fn take_unavailable(&mut self, index: &mut dyn Index, peer: AgentId, message: &Unavailable) {
        if let Some(t) = self.transfers.get_mut(&message.transfer)
            && matches!(&t.stage, Stage::Weak(_, Some((asked, _))) if *asked == peer)
        {
            // It may have the content all the same: earlier releases answer so.
            return t.fetch_blocks();
        }
        self.give_back(peer, |n| n == message.transfer);
        let Some(t) = self.transfers.get_mut(&message.transfer) else { return };
        t.sources.remove(&peer);
        let path = t.path.clone();
        let mut held = self.hold(index, &path);
        held.row.holders.retain(|h| *h != peer);
        self.save_quietly(held.row);
    }

    /// Peers that owe something and give nothing lose it.
    pub(super) fn check_patience(&mut self, now: Instant) {
        let late = |p: &super::Peer| p.owed > 0 && p.progress_at + self.config.request_timeout <= now;
        let late: Vec<AgentId> = self.peers.iter().filter(|(_, p)| late(p)).map(|(a, _)| *a).collect();
        for peer in late {
            self.snub(now, peer);
        }
    }

    /// Who has nothing to do is given half of what another one was asked for long ago: one that gives a block now and then, to
    /// look busy or because its link is slow, keeps nobody from a file that others have.
    fn relieve(&mut self, now: Instant) {
        let Config { strikes, request_timeout, pipeline, .. } = self.config;
        let idle =
            |p: &super::Peer| p.greeted && p.owed == 0 && p.snubbed_until.is_none() && p.strikes < strikes;
        let idle: BTreeSet<AgentId> = self.peers.iter().filter(|(_, p)| idle(p)).map(|(a, _)| *a).collect();
        for (&transfer, t) in &mut self.transfers {
            let Stage::Blocks(page) = &mut t.stage else { continue };
            let late = page.asked.values().find(|(_, at)| *at + request_timeout <= now);
            let (Some(&(slow, _)), Some(&other)) = (late, t.sources.intersection(&idle).next()) else {
                continue;
            };
            let of_it = page.asked.iter().filter(|(_, (asked, _))| *asked == slow);
            let mut kept: Vec<u32> = of_it.map(|(block, _)| *block).collect();
            // It sends in order: what comes last waits longest.
            let taken = kept.split_off(kept.len() / 2);
            let owed = self.peers.get(&other).map_or(0, |p| p.owed);
            if !page.wanted.is_empty() || owed + taken.len() > pipeline {
                continue;
            }
            page.asked.extend(taken.iter().map(|block| (*block, (other, now))));
            if let Some(p) = self.peers.get_mut(&slow) {
                p.owed = p.owed.saturating_sub(taken.len());
            }
            if let Some(p) = self.peers.get_mut(&other) {
                p.owed += taken.len();
                p.progress_at = now;
            }
            // It sends what it was asked for in order. With nothing left of that it is told to stop; else when the rest is
            // here, as what it has begun to send would have to be asked for again.
            if kept.is_empty() {
                self.actions.push_back(Action::Send { peer: slow, message: Cancel { transfer }.into() });
            } else {
                t.relieved.insert(slow);
            }
            let file = FileRequest { transfer, path: t.path.clone(), root: t.root, ranges: ranges(&taken) };
            let message = Request { files: alloc::vec![file] }.into();
            self.actions.push_back(Action::Send { peer: other, message });
        }
    }

    /// Asks for what is wanted, of those who have it and have least to do.
    pub(super) fn fetch(&mut self, now: Instant, index: &mut dyn Index) {
        for peer in self.peers.values_mut() {
            if peer.snubbed_until.is_some_and(|until| until <= now) {
                peer.snubbed_until = None;
            }
        }
        for (&transfer, t) in &mut self.transfers {
            // Nobody is to blame, and nothing is lost.
            if let Stage::Weak(_, Some((peer, at))) = t.stage
                && at + self.config.request_timeout <= now
            {
                t.fetch_blocks();
                self.actions.push_back(Action::Send { peer, message: Cancel { transfer }.into() });
            }
        }
        self.relieve(now);
        let mut requests: BTreeMap<AgentId, Vec<FileRequest>> = BTreeMap::new();
        let mut dead: Vec<u32> = Vec::new();
        let (pipeline, stretch, strikes) = (self.config.pipeline, self.config.stretch, self.config.strikes);
        for (&transfer, t) in &mut self.transfers {
            if t.placing {
                continue;
            }
            t.sources.retain(|s| self.peers.get(s).is_some_and(|p| p.greeted && p.strikes < strikes));
            if t.sources.is_empty() {
                if !matches!(t.stage, Stage::Staging) {
                    dead.push(transfer);
                }
                continue;
            }
            loop {
                let peers = &self.peers;
                let free = t.sources.iter().filter_map(|s| {
                    let p = peers.get(s).filter(|p| p.snubbed_until.is_none() && p.owed < pipeline)?;
                    Some((p.owed, *s))
                });
                let Some((_, source)) = free.min() else { break };
                let Some(peer) = self.peers.get_mut(&source) else { break };
                if peer.owed == 0 {
                    peer.progress_at = now;
                }
                let page = match &mut t.stage {
                    Stage::Pages(asked @ None) => {
                        *asked = Some((source, now));
                        None
                    }
                    Stage::Hashes { page, asked: asked @ None, .. } => {
                        *asked = Some((source, now));
                        Some(*page)
                    }
                    Stage::Weak(page, asked @ None) => {
                        // Reading the file takes longer than looking hashes up.
                        *asked = Some((source, now + self.config.request_timeout));
                        Some(page.page | WEAK_PAGE)
                    }
                    Stage::Blocks(page) if !page.wanted.is_empty() => {
                        let room = stretch.min(pipeline - peer.owed);
                        let blocks: Vec<u32> = page.wanted.iter().take(room).copied().collect();
                        peer.owed += blocks.len();
                        for &block in &blocks {
                            page.wanted.remove(&block);
                            page.asked.insert(block, (source, now));
                        }
                        let ranges = ranges(&blocks);
                        let file = FileRequest { transfer, path: t.path.clone(), root: t.root, ranges };
                        requests.entry(source).or_default().push(file);
                        continue;
                    }
                    _ => break,
                };
                // What is owed since when is told by `check_hashes`.
                let message = GetHashes { transfer, path: t.path.clone(), root: t.root, page };
                self.actions.push_back(Action::Send { peer: source, message: message.into() });
                break;
            }
        }
        self.check_hashes(now);
        for (peer, files) in requests {
            let mut files = files.into_iter().peekable();
            while files.peek().is_some() {
                let files = files.by_ref().take(FILES_MAX).collect();
                self.actions.push_back(Action::Send { peer, message: Request { files }.into() });
            }
        }
        for transfer in dead {
            let path = self.transfers.get(&transfer).map(|t| t.path.clone());
            self.end_transfer(transfer);
            // Not again at once: what promised to have it here had not.
            if let Some(path) = path {
                let tries = self.retry_later(now, &path);
                if tries >= TRIES_IN_VAIN
                    && let Some(row) = self.row(index, &path)
                {
                    self.block(row, Obstacle::NobodyHas);
                }
            }
        }
    }

    /// Hashes that were asked for too long ago are asked of somebody else.
    fn check_hashes(&mut self, now: Instant) {
        let timeout = self.config.request_timeout;
        let mut late = BTreeSet::new();
        for t in self.transfers.values() {
            if let Stage::Pages(Some((peer, at))) | Stage::Hashes { asked: Some((peer, at)), .. } = &t.stage
                && *at + timeout <= now
            {
                late.insert(*peer);
            }
        }
        for peer in self.peers.values_mut() {
            peer.hashes_owed_since = None;
        }
        for peer in late {
            self.snub(now, peer);
        }
        for t in self.transfers.values() {
            if let Stage::Pages(Some((peer, at)))
            | Stage::Hashes { asked: Some((peer, at)), .. }
            | Stage::Weak(_, Some((peer, at))) = &t.stage
                && let Some(p) = self.peers.get_mut(peer)
            {
                p.hashes_owed_since = Some(p.hashes_owed_since.map_or(*at, |since| since.min(*at)));
            }
        }
    }
}

/// Sorted block numbers as ranges of first and count.
fn ranges(blocks: &[u32]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &block in blocks {
        match ranges.last_mut() {
            Some((first, count)) if *first + *count == block => *count += 1,
            _ => ranges.push((block, 1)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_roots_have_the_root_of_all_blocks() {
        for blocks in [1, 2, 8191, 8192, 8193, 20_000] {
            let hashes: Vec<Hash> =
                (0..blocks as u32).map(|i| crate::merkle::block_hash(&i.to_le_bytes())).collect();
            assert_eq!(root_of(&page_roots(&hashes)), root_of(&hashes), "{blocks} blocks");
        }
    }

    #[test]
    fn only_what_may_have_been_moved_is_looked_for() {
        let blocks = |wanted: Vec<u32>, searched| {
            let wanted = wanted.into_iter().collect();
            Page { wanted, searched, ..Page::new(Vec::new(), 0, alloc::vec![[0; 32]; 100]) }
        };
        let of = |blocks: u64| blocks * u64::from(BLOCK_LEN);
        assert!(blocks((4..20).collect(), false).may_be_moved(of(20)));
        assert!(!blocks((4..20).collect(), true).may_be_moved(of(20)), "once");
        assert!(
            !blocks((4..20).collect(), false).may_be_moved(of(20) - 1),
            "the older version ends there: something was added"
        );
        assert!(
            !blocks((4..19).chain(20..35).collect(), false).may_be_moved(of(100)),
            "changed where they are"
        );
        assert!(!blocks((0..100).collect(), false).may_be_moved(0), "nothing is here");
    }

    #[test]
    fn blocks_become_ranges() {
        assert_eq!(ranges(&[1, 2, 3, 7, 9, 10]), [(1, 3), (7, 1), (9, 2)]);
    }
}
