//! A world in virtual time for synchronization: members with folders that people work in, partitions, crashes,
//! watchers that lose events, everything from one seed.

mod check;
pub(crate) mod fs;
pub(crate) mod hostile;
pub(crate) mod index;
mod kin;
pub(crate) mod users;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Range;
use std::time::Duration;

use agent_proto::sync::{Hashes, SyncMessage, Unavailable, Value, WEAK_PAGE, pack_weak};
use event_schema::{AgentId, RunId};
use sha2::{Digest, Sha256};
use sync_core::merkle::Hash;
use sync_core::sync::{
    Action, Config, Confirm, Disk, Displaced, Expected, Index, Look, Make, Member, Misbehaviour, Obstacle,
    Outcome, Replica, Stamp, page_roots,
};
use timebase::Instant;

pub(crate) use check::Seen;
use fs::{Content, Fs, Kind};
use index::{SimIndex, Tables};
pub(crate) use kin::{Kin, KinPolicy, MacNotary, Rng, mac};

pub(crate) const RUN: RunId = RunId([9; 16]);

/// Contents are numbers here, so blocks have what takes the part of a weak hash.
fn weak_of(strong: &Hash) -> u32 {
    u32::from_le_bytes([strong[0], strong[1], strong[2], 1])
}

#[derive(Debug)]
pub(crate) struct Staged {
    root: Hash,
    blocks: u32,
    have: BTreeSet<u32>,
}

pub(crate) struct Node {
    pub(crate) kin: Kin,
    pub(crate) key: [u8; 32],
    pub(crate) agent: AgentId,
    pub(crate) fs: Fs,
    pub(crate) index: SimIndex,
    pub(crate) replica: Option<Box<Replica>>,
    /// Bumped by a crash: what was under way is void.
    pub(crate) generation: u32,
    staged: BTreeMap<u32, Staged>,
    /// For so many of the next files to be staged there is no room.
    pub(crate) no_room: u32,
    /// Finished and unfinished staged files that survive.
    kept: BTreeMap<Hash, BTreeSet<u32>>,
    timer: Option<Instant>,
    pub(crate) reading: BTreeSet<Vec<u8>>,
    /// Paths to be looked at, not yet come to.
    pub(crate) looks: usize,
    pub(crate) conflicts: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) blocked: BTreeMap<Vec<u8>, Obstacle>,
    pub(crate) guards: u32,
    pub(crate) rolled_back: u32,
    pub(crate) misbehaved: Vec<(AgentId, Misbehaviour)>,
    /// Answers a guard at once with this.
    pub(crate) answer: Option<Confirm>,
    backup: Option<(Tables, Fs)>,
    pub(crate) hostile: hostile::Hostile,
}

enum Event {
    Message { from: usize, to: usize, session: u64, message: SyncMessage },
    Block { from: usize, to: usize, session: u64, transfer: u32, block: u32, hash: Hash },
    Sent { from: usize, session: u64, to: usize },
    HashesSent { node: usize, peer: AgentId },
    Timer(usize),
    Look { node: usize, path: Vec<u8>, deep: bool },
    Read { node: usize, path: Vec<u8>, stamp: Stamp, value: Value },
    Synced { node: usize, ticket: u64, puts: u64 },
    Reused { node: usize, transfer: u32, found: Vec<Range<u32>> },
    Unstaged { node: usize, transfer: u32 },
    Change { node: usize, change: u32, path: Vec<u8>, expected: Expected, displaced: Displaced, make: Make },
    Changed { node: usize, change: u32, outcome: Outcome },
    Upload { node: usize, to: usize, session: u64, transfer: u32, path: Vec<u8>, root: Hash, block: u32 },
    Rescan(usize),
    Script(Step),
}

/// Something the scenario does at a time.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Crash(usize),
    Start(usize),
    /// Cuts or mends the path between two.
    Cut(usize, usize),
    Mend(usize, usize),
    /// Connects two if nothing hinders it.
    Retry(usize, usize),
    User(usize),
    Edit(usize, &'static str, u64),
    Delete(usize, &'static str),
    /// The first one's file is written by another one, too.
    Copy(usize, &'static str, usize),
    Rename(usize, &'static str, &'static str),
    Folder(usize, &'static str),
    /// Sets a folder's mode.
    Mode(usize, &'static str, u8),
    Backup(usize),
    /// Puts back what it was when it was copied.
    Restore(usize, Back),
    Mount(usize, bool),
    Confirm(usize, Confirm),
    Hostile(usize),
}

/// What is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Back {
    Index,
    Folder,
    Both,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) seed: u64,
    pub(crate) rng: Rng,
    events: BinaryHeap<Reverse<Ordered>>,
    sequence: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) contents: BTreeMap<Hash, Content>,
    next_content: u64,
    /// Sessions that are up, and their number.
    sessions: BTreeMap<(usize, usize), u64>,
    cut: BTreeSet<(usize, usize)>,
    last_message: BTreeMap<(usize, usize), Instant>,
    next_session: u64,
    /// Percent of changes that a watcher does not see.
    pub(crate) deaf: u64,
    /// Percent of changes of a folder that an agent does not survive.
    pub(crate) frail: u64,
    /// Who wrote which content where; and whether it was new there, and replaced nothing.
    pub(crate) written: BTreeMap<u64, (usize, Vec<u8>, bool)>,
    /// What somebody restored away.
    pub(crate) given_up: BTreeSet<u64>,
    pub(crate) guard_percent: u64,
    pub(crate) messages: u64,
    pub(crate) message_bytes: u64,
    pub(crate) blocks_sent: u64,
    /// How often blocks were looked for at any place.
    pub(crate) searched: u64,
    pub(crate) restarts: u64,
    pub(crate) trace: bool,
    /// Members that turned say nothing of their own accord.
    pub(crate) silent: bool,
    /// How long weak hashes take, ms.
    pub(crate) weak_takes: u64,
}

struct Ordered(Instant, u64, u32, Event);
impl PartialEq for Ordered {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Ordered {}
impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

impl World {
    pub(crate) fn new(seed: u64, kins: &[Kin]) -> Self {
        let node = |(i, kin): (usize, &Kin)| {
            let key: [u8; 32] = Sha256::digest([i as u8]).into();
            let mut fs = Fs::new(kin.granularity, kin.folds);
            fs.mode = 100 + i as u8;
            Node {
                kin: *kin,
                key,
                agent: AgentId::of_key(&key),
                fs,
                index: SimIndex::default(),
                replica: None,
                generation: 0,
                staged: BTreeMap::new(),
                no_room: 0,
                kept: BTreeMap::new(),
                timer: None,
                reading: BTreeSet::new(),
                looks: 0,
                conflicts: Vec::new(),
                blocked: BTreeMap::new(),
                guards: 0,
                rolled_back: 0,
                misbehaved: Vec::new(),
                answer: None,
                backup: None,
                hostile: hostile::Hostile::default(),
            }
        };
        Self {
            now: Instant::ZERO + ms(1_000_000),
            seed,
            rng: Rng(seed.wrapping_mul(0x1234_5678_9abc_def1) ^ 77),
            events: BinaryHeap::new(),
            sequence: 0,
            nodes: kins.iter().enumerate().map(node).collect(),
            contents: BTreeMap::new(),
            next_content: 1,
            sessions: BTreeMap::new(),
            cut: BTreeSet::new(),
            last_message: BTreeMap::new(),
            next_session: 1,
            deaf: 5,
            frail: 2,
            written: BTreeMap::new(),
            given_up: BTreeSet::new(),
            guard_percent: 25,
            messages: 0,
            message_bytes: 0,
            blocks_sent: 0,
            searched: 0,
            restarts: 0,
            silent: false,
            weak_takes: 0,
            trace: std::env::var_os("SYNC_TRACE").is_some(),
        }
    }

    pub(crate) fn log(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9} {}", (self.now.as_micros() - 1_000_000_000) / 1000, text());
        }
    }

    pub(crate) fn members(&self) -> Vec<Member> {
        self.nodes.iter().map(|n| Member { agent: n.agent, permission: n.kin.permission }).collect()
    }

    pub(crate) fn node_of(&self, agent: AgentId) -> usize {
        self.nodes.iter().position(|n| n.agent == agent).expect("a member")
    }

    pub(crate) fn at(&mut self, after_start: Duration, step: Step) {
        self.push(Instant::ZERO + ms(1_000_000) + after_start, 0, Event::Script(step));
    }

    /// Time of the wall, ns: agents' file systems have it.
    pub(crate) fn wall(&self) -> i64 {
        self.now.as_micros() as i64 * 1000
    }

    fn push(&mut self, at: Instant, generation: u32, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse(Ordered(at, self.sequence, generation, event)));
    }

    fn later(&mut self, node: usize, min_us: u64, max_us: u64, event: Event) {
        let at = self.now + Duration::from_micros(min_us + self.rng.below(max_us - min_us + 1));
        self.push(at, self.nodes[node].generation, event);
    }

    /// Runs for so long.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.events.peek().is_some_and(|Reverse(o)| o.0 <= end) {
            let Some(Reverse(Ordered(at, _, generation, event))) = self.events.pop() else { break };
            self.now = at;
            self.handle(generation, event);
        }
        self.now = end;
    }

    pub(crate) fn new_content(&mut self, size: u64) -> Content {
        // Empty files are all the same.
        let content = Content { id: if size == 0 { 0 } else { self.next_content }, size };
        self.next_content += 1;
        self.contents.insert(content.root(), content);
        content
    }

    /// Calls into a node's machine, then does what it asks for.
    fn with(&mut self, node: usize, call: impl FnOnce(&mut Replica, Instant, &mut dyn Index)) {
        let now = self.now;
        let n = &mut self.nodes[node];
        if let Some(replica) = n.replica.as_deref_mut() {
            call(replica, now, &mut n.index);
            self.drive(node);
        }
    }

    fn drive(&mut self, node: usize) {
        loop {
            let n = &mut self.nodes[node];
            let Some(replica) = n.replica.as_deref_mut() else { return };
            let Some(action) = replica.poll_action() else { break };
            self.act(node, action);
        }
        let n = &mut self.nodes[node];
        let Some(replica) = n.replica.as_deref() else { return };
        if let Some(at) = replica.poll_timeout() {
            let at = at.max(self.now);
            if n.timer.is_none_or(|t| at < t) && at < Instant::ZERO + Duration::from_secs(1_000_000) {
                n.timer = Some(at);
                let generation = n.generation;
                self.push(at, generation, Event::Timer(node));
            }
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        if !matches!(action, Action::Sync { .. }) {
            self.log(|| format!("{node} {action:?}").chars().take(400).collect());
        }
        match action {
            Action::Sync { ticket } => {
                let puts = self.nodes[node].index.puts;
                self.later(node, 500, 20_000, Event::Synced { node, ticket, puts });
            }
            Action::Send { peer, message } => {
                let to = self.node_of(peer);
                self.send(node, to, message);
            }
            Action::Disconnect { peer } => {
                let to = self.node_of(peer);
                self.disconnect(node, to);
            }
            Action::Stage { transfer, path, root, size, from } => {
                let blocks = size.div_ceil(fs::BLOCK) as u32;
                let n = &mut self.nodes[node];
                if n.no_room > 0 {
                    n.no_room -= 1;
                    return self.later(node, 100, 20_000, Event::Unstaged { node, transfer });
                }
                let mut have = n.kept.get(&root).cloned().unwrap_or_default();
                let content = self.contents.get(&root).copied().filter(|content| content.size == size);
                let here = content.is_some() && from.is_some_and(|f| matches!(n.fs.get(&f), Some(x) if matches!(x.kind, Kind::File(c) if Some(c) == content)));
                if here || content.is_some() && n.fs.archive.iter().any(|c| Some(*c) == content) {
                    have = (0..blocks).collect();
                }
                let found = have.iter().map(|b| *b..*b + 1).collect();
                let _ = path;
                n.staged.insert(transfer, Staged { root, blocks, have });
                self.later(node, 100, 20_000, Event::Reused { node, transfer, found });
            }
            Action::Reuse { transfer, first, hashes } => {
                let have = self.nodes[node].staged.get(&transfer).map(|s| s.have.clone()).unwrap_or_default();
                let page = first..first + hashes.len() as u32;
                let found = have.iter().filter(|b| page.contains(b)).map(|b| *b..*b + 1).collect();
                self.later(node, 100, 10_000, Event::Reused { node, transfer, found });
            }
            Action::Search { transfer, sought } => {
                let mut found = Vec::new();
                for (block, weak, strong) in sought {
                    assert_eq!(weak, weak_of(&strong), "seed {}", self.seed);
                    if strong[0] & 1 == 0 {
                        found.push(block..block + 1);
                    }
                }
                if let Some(staged) = self.nodes[node].staged.get_mut(&transfer) {
                    staged.have.extend(found.iter().cloned().flatten());
                }
                self.searched += 1;
                self.later(node, 100, 10_000, Event::Reused { node, transfer, found });
            }
            Action::Drop { transfer } => {
                let n = &mut self.nodes[node];
                if let Some(staged) = n.staged.remove(&transfer) {
                    n.kept.insert(staged.root, staged.have);
                }
            }
            Action::Upload { peer, transfer, path, root, block, .. } => {
                let to = self.node_of(peer);
                let Some(&session) = self.sessions.get(&pair(node, to)) else { return };
                self.later(
                    node,
                    100,
                    3_000,
                    Event::Upload { node, to, session, transfer, path, root, block },
                );
            }
            Action::UploadHashes { peer, transfer, path, root, page, .. } => {
                let to = self.node_of(peer);
                let here = match self.nodes[node].fs.get(&path).map(|n| n.kind.clone()) {
                    Some(Kind::File(content)) if content.root() == root => Some(content.hashes()),
                    _ => None,
                };
                let message = match (here, page) {
                    (None, _) => Unavailable { transfer }.into(),
                    (Some(all), None) => Hashes { transfer, page, hashes: page_roots(&all) }.into(),
                    // An earlier release.
                    (Some(_), Some(p)) if p & WEAK_PAGE != 0 && node.is_multiple_of(3) => {
                        Unavailable { transfer }.into()
                    }
                    (Some(all), Some(p)) if p & WEAK_PAGE != 0 => {
                        let strong = all.chunks(8192).nth((p & !WEAK_PAGE) as usize).unwrap_or_default();
                        let weak: Vec<u32> = strong.iter().map(weak_of).collect();
                        Hashes { transfer, page, hashes: pack_weak(&weak) }.into()
                    }
                    (Some(all), Some(p)) => {
                        let hashes =
                            all.chunks(8192).nth(p as usize).map(<[Hash]>::to_vec).unwrap_or_default();
                        Hashes { transfer, page, hashes }.into()
                    }
                };
                if page.is_some_and(|page| page & WEAK_PAGE != 0) && self.weak_takes > 0 {
                    let us = self.weak_takes * 1000;
                    return self.later(node, us, us + 1000, Event::HashesSent { node, peer });
                }
                self.send(node, to, message);
                self.later(node, 10, 1_000, Event::HashesSent { node, peer });
            }
            Action::Change { change, path, expected, displaced, make } => {
                self.later(
                    node,
                    200,
                    60_000,
                    Event::Change { node, change, path, expected, displaced, make },
                );
            }
            Action::Look { path } => {
                self.look_later(node, path, true, 1_000, 50_000);
            }
            Action::Conflict { path, copy, .. } => self.nodes[node].conflicts.push((path, copy)),
            Action::Blocked { path, why } => {
                self.nodes[node].blocked.insert(path, why);
            }
            Action::Unblocked { path } => {
                self.nodes[node].blocked.remove(&path);
            }
            Action::Guard { .. } => {
                self.nodes[node].guards += 1;
                if let Some(confirm) = self.nodes[node].answer {
                    self.push(self.now + ms(3000), 0, Event::Script(Step::Confirm(node, confirm)));
                }
            }
            Action::GuardLifted => {}
            Action::RolledBack => self.nodes[node].rolled_back += 1,
            Action::Misbehaved { peer, what } => self.nodes[node].misbehaved.push((peer, what)),
        }
    }

    fn look_later(&mut self, node: usize, path: Vec<u8>, deep: bool, min_us: u64, max_us: u64) {
        self.nodes[node].looks += 1;
        self.later(node, min_us, max_us, Event::Look { node, path, deep });
    }

    /// A watcher sees that something happened, or does not.
    pub(crate) fn noticed(&mut self, node: usize, paths: impl IntoIterator<Item = Vec<u8>>) {
        for path in paths {
            if self.nodes[node].replica.is_none() {
                continue;
            }
            if self.rng.chance(self.deaf) {
                // An overflow: the agent knows that it missed something.
                self.later(node, 1_000_000, 8_000_000, Event::Rescan(node));
            } else {
                self.look_later(node, path, true, 5_000, 400_000);
            }
        }
    }

    pub(crate) fn send(&mut self, from: usize, to: usize, message: SyncMessage) {
        let Some(&session) = self.sessions.get(&pair(from, to)) else { return };
        // Everything goes through its bytes.
        let bytes = message.encode();
        assert!(bytes.len() <= agent_proto::limits::PEER_MESSAGE_LEN_MAX, "{} bytes", bytes.len());
        self.messages += 1;
        self.message_bytes += bytes.len() as u64;
        let message = SyncMessage::decode(&bytes).expect("our own");
        let delay = 1_000 + self.rng.below(30_000);
        let last = self.last_message.entry((from, to)).or_default();
        *last = (*last).max(self.now + Duration::from_micros(delay)) + Duration::from_micros(1);
        let at = *last;
        self.push(at, 0, Event::Message { from, to, session, message });
    }

    fn connect(&mut self, a: usize, b: usize) {
        let key = pair(a, b);
        let alive = |n: &Node| n.replica.is_some() || n.kin.hostile;
        if a == b || self.cut.contains(&key) || self.sessions.contains_key(&key) {
            return;
        }
        if !alive(&self.nodes[a]) || !alive(&self.nodes[b]) {
            return;
        }
        self.next_session += 1;
        self.sessions.insert(key, self.next_session);
        for (node, peer) in [(a, b), (b, a)] {
            let agent = self.nodes[peer].agent;
            self.with(node, |r, now, index| r.handle_connected(now, index, agent));
            if self.nodes[node].kin.hostile {
                self.hostile_connected(node, peer);
            }
        }
    }

    fn disconnect(&mut self, a: usize, b: usize) {
        if self.sessions.remove(&pair(a, b)).is_some() {
            for (node, peer) in [(a, b), (b, a)] {
                let agent = self.nodes[peer].agent;
                self.with(node, |r, now, index| r.handle_disconnected(now, index, agent));
            }
            // Both try again after a while.
            let at = self.now + ms(2000 + self.rng.below(3000));
            self.push(at, 0, Event::Script(Step::Retry(a, b)));
        }
    }

    fn start(&mut self, node: usize) {
        if self.nodes[node].replica.is_some() || self.nodes[node].kin.hostile {
            return;
        }
        let fresh = self.rng.next();
        let members = self.members();
        let n = &mut self.nodes[node];
        let mut config = Config::new(RUN, n.agent, n.key, fresh);
        config.local_changes = n.kin.local;
        (config.guard_percent, config.guard_min) = (self.guard_percent, 40);
        // So that walks are not done in one go.
        config.walk = 3;
        let notary = Box::new(MacNotary(n.key));
        let policy = Box::new(KinPolicy(n.kin));
        let replica = Replica::new(self.now, config, policy, notary, &members, &mut n.index);
        n.replica = Some(Box::new(replica));
        n.timer = None;
        (n.looks, n.reading) = (0, BTreeSet::new());
        let known: Vec<u32> = std::mem::take(&mut n.staged).into_keys().collect();
        assert!(known.is_empty(), "staged files of a dead agent");
        self.later(node, 1_000, 500_000, Event::Rescan(node));
        self.drive(node);
        for other in 0..self.nodes.len() {
            self.connect(node, other);
        }
    }

    fn crash(&mut self, node: usize) {
        let lucky = self.rng.below(4) as usize;
        for other in 0..self.nodes.len() {
            if self.sessions.remove(&pair(node, other)).is_some() {
                let agent = self.nodes[node].agent;
                self.with(other, |r, now, index| r.handle_disconnected(now, index, agent));
            }
        }
        let n = &mut self.nodes[node];
        n.generation += 1;
        n.replica = None;
        n.index.crash(lucky);
        n.blocked.clear();
        for (_, staged) in std::mem::take(&mut n.staged) {
            n.kept.insert(staged.root, staged.have);
        }
        self.restarts += 1;
    }

    fn step(&mut self, step: Step) {
        if !matches!(step, Step::User(_) | Step::Mend(..)) {
            self.log(|| format!("{step:?}"));
        }
        match step {
            Step::Crash(node) => self.crash(node),
            Step::Start(node) => self.start(node),
            Step::Cut(a, b) => {
                self.cut.insert(pair(a, b));
                self.disconnect(a, b);
            }
            Step::Mend(a, b) => {
                self.cut.remove(&pair(a, b));
                self.connect(a, b);
            }
            Step::Retry(a, b) => self.connect(a, b),
            Step::User(node) => self.user(node),
            Step::Edit(node, path, size) => self.edit(node, path.as_bytes(), size),
            Step::Copy(from, path, to) => self.copy(from, path.as_bytes(), to),
            Step::Delete(node, path) => self.delete(node, path.as_bytes()),
            Step::Rename(node, from, to) => self.rename(node, from.as_bytes(), to.as_bytes()),
            Step::Folder(node, path) => self.folder(node, path.as_bytes()),
            Step::Mode(node, path, mode) => self.set_mode(node, path.as_bytes(), mode),
            Step::Backup(node) => {
                let n = &mut self.nodes[node];
                n.backup = Some((n.index.durable.clone(), n.fs.clone()));
            }
            Step::Restore(node, back) => {
                self.crash(node);
                let n = &mut self.nodes[node];
                let Some((tables, folder)) = n.backup.clone() else { return };
                if back != Back::Folder {
                    n.index.restore(&tables);
                }
                if back != Back::Index {
                    let lost: Vec<u64> =
                        n.fs.files().map(|(_, c)| c.id).chain(n.fs.archive.iter().map(|c| c.id)).collect();
                    self.given_up.extend(lost);
                    self.given_up.extend(&n.fs.given_up);
                    n.fs = folder;
                }
            }
            Step::Mount(node, mounted) => {
                self.nodes[node].fs.gone = !mounted;
                self.later(node, 1_000, 10_000, Event::Rescan(node));
            }
            Step::Confirm(node, confirm) => {
                if confirm == Confirm::Delete {
                    self.given_up.extend(self.written.keys());
                }
                self.with(node, |r, now, index| r.handle_confirm(now, index, confirm));
            }
            Step::Hostile(node) => self.hostile_acts(node),
        }
    }

    /// Somebody takes no part any more.
    pub(crate) fn remove_member(&mut self, node: usize) {
        let gone = self.nodes[node].agent;
        let members: Vec<Member> = self.members().into_iter().filter(|m| m.agent != gone).collect();
        for other in (0..self.nodes.len()).filter(|o| *o != node) {
            self.with(other, |r, now, index| r.handle_members(now, index, &members));
        }
    }

    /// All paths are mended, everybody runs, nobody does anything any more.
    pub(crate) fn calm(&mut self) {
        self.cut.clear();
        for node in 0..self.nodes.len() {
            self.start(node);
            self.later(node, 1_000, 100_000, Event::Rescan(node));
        }
        for a in 0..self.nodes.len() {
            for b in 0..a {
                self.connect(a, b);
            }
        }
    }

    fn handle(&mut self, generation: u32, event: Event) {
        let alive =
            |w: &Self, node: usize| w.nodes[node].generation == generation && w.nodes[node].replica.is_some();
        let up = |w: &Self, a: usize, b: usize, session: u64| w.sessions.get(&pair(a, b)) == Some(&session);
        match event {
            Event::Script(step) => self.step(step),
            Event::Message { from, to, session, message } if up(self, from, to, session) => {
                if self.nodes[to].kin.hostile {
                    self.hostile_hears(to, from, message);
                    return;
                }
                let agent = self.nodes[from].agent;
                self.with(to, |r, now, index| r.handle_message(now, index, agent, message));
            }
            Event::Block { from, to, session, transfer, block, hash } if up(self, from, to, session) => {
                let delay = Duration::from_micros(1000 + self.rng.below(20_000));
                self.push(self.now + delay, 0, Event::Sent { from, session, to });
                let agent = self.nodes[from].agent;
                let n = &mut self.nodes[to];
                let wanted = n.replica.as_deref().and_then(|r| r.expected_block(agent, transfer, block));
                let Some(length) = wanted else { return };
                if let Some(staged) = n.staged.get_mut(&transfer) {
                    // What comes is written, and overwrites.
                    match self.contents.get(&staged.root).filter(|c| c.block_hash(block) == hash) {
                        Some(content) => {
                            let left = content.size - u64::from(block) * fs::BLOCK;
                            assert_eq!(u64::from(length), left.min(fs::BLOCK));
                            staged.have.insert(block);
                        }
                        None => _ = staged.have.remove(&block),
                    }
                }
                self.with(to, |r, now, index| r.handle_block(now, index, agent, transfer, block, &hash));
            }
            Event::Sent { from, session, to } if up(self, from, to, session) => {
                let agent = self.nodes[to].agent;
                self.with(from, |r, now, index| r.handle_sent(now, index, agent));
            }
            Event::Timer(node)
                if alive(self, node) && self.nodes[node].timer.is_some_and(|t| t <= self.now) =>
            {
                self.nodes[node].timer = None;
                self.with(node, |r, now, index| r.handle_timeout(now, index));
            }
            Event::HashesSent { node, peer } if alive(self, node) => {
                self.with(node, |r, now, index| r.handle_hashes_sent(now, index, peer));
            }
            Event::Look { node, path, deep } if alive(self, node) => {
                self.nodes[node].looks -= 1;
                self.look(node, path, deep);
            }
            Event::Read { node, path, stamp, value } if alive(self, node) => {
                self.read(node, path, stamp, value)
            }
            Event::Synced { node, ticket, puts } if alive(self, node) => {
                self.nodes[node].index.sync(puts);
                self.with(node, |r, now, index| r.handle_synced(now, index, ticket));
            }
            Event::Reused { node, transfer, found } if alive(self, node) => {
                self.with(node, |r, now, index| r.handle_reused(now, index, transfer, &found));
            }
            Event::Unstaged { node, transfer } if alive(self, node) => {
                self.with(node, |r, now, index| r.handle_unstaged(now, index, transfer));
            }
            Event::Change { node, change, path, expected, displaced, make } if alive(self, node) => {
                let wall = self.wall();
                let n = &mut self.nodes[node];
                let staged = match &make {
                    Make::Staged { transfer, .. } => {
                        let staged = n.staged.get(transfer).expect("staged");
                        assert_eq!(
                            staged.have.len(),
                            staged.blocks as usize,
                            "seed {}: not whole",
                            self.seed
                        );
                        Some(self.contents[&staged.root])
                    }
                    _ => None,
                };
                let outcome = n.fs.change(wall, &path, expected, &displaced, &make, staged);
                self.log(|| {
                    format!("{node} changed {} {expected:?} {displaced:?} {make:?}: {outcome:?}", show(&path))
                });
                if self.rng.chance(self.frail) {
                    // The disk is done, the agent is not.
                    self.crash(node);
                    let at = self.now + ms(500 + self.rng.below(10_000));
                    self.push(at, 0, Event::Script(Step::Start(node)));
                    return;
                }
                if matches!(outcome, Outcome::Done { .. }) {
                    let watched =
                        [Some(path), if let Make::Moved { from, .. } = make { Some(from) } else { None }];
                    for path in watched.into_iter().flatten() {
                        self.look_later(node, path, false, 5_000, 400_000);
                    }
                }
                self.later(node, 10, 20_000, Event::Changed { node, change, outcome });
            }
            Event::Changed { node, change, outcome } if alive(self, node) => {
                self.with(node, |r, now, index| r.handle_changed(now, index, change, outcome));
            }
            Event::Upload { node, to, session, transfer, path, root, block }
                if alive(self, node) && up(self, node, to, session) =>
            {
                let here = match self.nodes[node].fs.get(&path).map(|n| n.kind.clone()) {
                    Some(Kind::File(content)) if content.root() == root => Some(content),
                    _ => None,
                };
                match here {
                    Some(content) => {
                        self.blocks_sent += 1;
                        let hash = content.block_hash(block);
                        let at = self.now + Duration::from_micros(1000 + self.rng.below(40_000));
                        self.push(at, 0, Event::Block { from: node, to, session, transfer, block, hash });
                    }
                    None => {
                        let agent = self.nodes[to].agent;
                        self.with(node, |r, now, index| {
                            r.handle_read_failed(now, index, agent, transfer, &path)
                        });
                    }
                }
            }
            Event::Rescan(node) if alive(self, node) => {
                let n = &self.nodes[node];
                let mut paths: BTreeSet<Vec<u8>> = n.fs.paths().cloned().collect();
                let rows = n.index.live.rows.values().filter(|r| r.disk != Disk::Absent);
                paths.extend(rows.map(|r| r.path.clone()));
                for path in paths {
                    self.look_later(node, path, false, 0, 2_000_000);
                }
            }
            _ => {}
        }
    }

    /// What an agent does to learn what is at a path.
    fn look(&mut self, node: usize, path: Vec<u8>, deep: bool) {
        let wall = self.wall();
        if self.nodes[node].replica.is_none() {
            return;
        }
        if deep {
            let n = &self.nodes[node];
            let mut below: BTreeSet<Vec<u8>> = n.fs.below(&path).cloned().collect();
            let prefix = [&path[..], b"/"].concat();
            let rows = n.index.live.rows.values().filter(|r| r.disk != Disk::Absent);
            below.extend(rows.filter(|r| r.path.starts_with(&prefix)).map(|r| r.path.clone()));
            for path in below {
                self.look_later(node, path, false, 0, 200_000);
            }
        }
        let n = &self.nodes[node];
        let Some(replica) = n.replica.as_deref() else { return };
        let Some(stamp) = n.fs.stamp(wall, &path) else {
            if n.index.live.rows.get(&path).is_some_and(|r| r.disk != Disk::Absent)
                || n.blocked.contains_key(&path)
            {
                self.with(node, |r, now, index| r.handle_gone(now, index, &path));
            }
            return;
        };
        let look = replica.look(&n.index, &path, &stamp);
        if look == Look::TooLarge {
            self.with(node, |r, now, index| r.handle_unfit(now, index, &path));
            return;
        }
        if look != Look::Read || n.reading.contains(&path) {
            return;
        }
        let Some(value) = n.fs.value(&path) else { return };
        let blocks = stamp.size.div_ceil(fs::BLOCK);
        self.nodes[node].reading.insert(path.clone());
        self.later(node, 100, 1_000 + 2_000 * blocks, Event::Read { node, path, stamp, value });
    }

    /// A path was read: is it still what it was?
    fn read(&mut self, node: usize, path: Vec<u8>, stamp: Stamp, value: Value) {
        let wall = self.wall();
        self.nodes[node].reading.remove(&path);
        let n = &self.nodes[node];
        let granularity = n.fs.granularity as u64 / 1000;
        match n.fs.stamp(wall, &path) {
            Some(after) if after.is(&stamp) => {
                if !stamp.settled && matches!(value, Value::File { .. }) {
                    self.look_later(node, path.clone(), false, granularity, granularity + 300_000);
                }
                self.with(node, |r, now, index| r.handle_found(now, index, &path, value, stamp));
            }
            _ => self.look_later(node, path, false, 50_000, 500_000),
        }
    }

    /// Whether an agent has nothing left to do or to look at.
    pub(crate) fn is_idle(&self, node: usize) -> bool {
        let n = &self.nodes[node];
        n.kin.hostile
            || (n.looks == 0 && n.reading.is_empty() && n.replica.as_deref().is_some_and(Replica::is_idle))
    }
}

pub(crate) fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}
