//! A world in virtual time for swarms: nodes with bandwidths, paths with delays, everything from one seed.
//!
//! The transport is modelled as far as it matters to a swarm: an uplink that serves its connections in turns,
//! a downlink that queues, a bound on what a connection has in flight, messages that stay in order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use agent_proto::peer::{BlockAddress, PeerMessage, UnavailableReason};
use ed25519_dalek::SigningKey;
use event_schema::{AgentId, RunId, Signed};
use sync_core::config::{FetchConfig, OriginConfig, UploadConfig};
use sync_core::manifest::{
    BlockHash, Entry, Kind, Manifest, ManifestHead, Mtime, encode, manifest_block_hashes,
};
use sync_core::{Action, Arrival, BlockMap, Destination, Misbehaviour, Origin, Phase, RunInfo};
use timebase::Instant;

pub(crate) const BLOCK: u64 = 32 * 1024;
/// Blocks a connection may have in flight.
const WINDOW: usize = 64;
/// Time to check and write a block.
const CHECK: Duration = Duration::from_millis(1);

#[derive(Clone, Copy)]
pub(crate) struct Link {
    /// Bytes a second.
    pub(crate) up: u64,
    pub(crate) down: u64,
    /// One way to the middle of the network; a path's delay is the sum of both ends'.
    pub(crate) delay: Duration,
}

enum Machine {
    Origin(Box<Origin>),
    Destination(Box<Destination>),
}

struct Node {
    link: Link,
    /// Bumped when it dies or comes back: what was on its way to or from it is void.
    generation: u32,
    machine: Option<Machine>,
    /// What survives a restart.
    disk: BlockMap,
    manifest: Option<(Signed, Vec<u8>)>,
    manifest_blocks: BTreeMap<u64, Vec<u8>>,
    lies: bool,
    unreadable: Vec<u64>,
    lanes: BTreeMap<usize, Lane>,
    turn: usize,
    sending: bool,
    down_free: Instant,
    timer: Option<Instant>,
    done_at: Option<Instant>,
}

#[derive(Default)]
struct Lane {
    queue: [VecDeque<BlockAddress>; 3],
    in_flight: usize,
    last_message: Instant,
}

enum Event {
    Message { from: usize, to: usize, message: PeerMessage },
    AtDownlink { from: usize, to: usize, block: BlockAddress, corrupt: bool },
    Delivered { from: usize, to: usize, block: BlockAddress, corrupt: bool },
    Acked { from: usize, to: usize, block: BlockAddress },
    Checked { node: usize, from: usize, block: u64, corrupt: bool },
    UplinkFree(usize),
    Timer(usize),
    Script(Step),
}

/// Something the scenario does at a time.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Kill(usize),
    Start(usize),
    Unreadable(usize, Vec<u64>),
    Pause(usize),
    Resume(usize),
}

pub(crate) struct World {
    pub(crate) now: Instant,
    events: BinaryHeap<Reverse<Ordered>>,
    sequence: u64,
    nodes: Vec<Node>,
    unreachable: Vec<(usize, usize)>,
    manifest: Vec<u8>,
    signed: Signed,
    hashes: Vec<[u8; 32]>,
    key: SigningKey,
    pub(crate) blocks: u64,
    seed: u64,
    /// Content blocks sent by each node.
    pub(crate) sent: Vec<u64>,
    /// Content blocks that arrived genuine at each node, repeats included.
    pub(crate) fetched: Vec<u64>,
    pub(crate) duplicates: u64,
    pub(crate) message_bytes: u64,
    pub(crate) misbehaved: Vec<(usize, usize, Misbehaviour)>,
    pub(crate) lost: Vec<(usize, u64)>,
    pub(crate) fetch: FetchConfig,
}

struct Ordered(Instant, u64, (u32, u32), Event);
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

fn id(node: usize) -> AgentId {
    let mut id = [0xee; 16];
    id[0] = node as u8;
    AgentId(id)
}

impl World {
    /// Node 0 is the source of `blocks` blocks; all others are destinations. Nothing runs yet.
    pub(crate) fn new(seed: u64, blocks: u64, links: &[Link]) -> Self {
        let key = SigningKey::from_bytes(&[7; 32]);
        let file = |i: u64| {
            let count = (blocks - i * 100).min(100);
            let path = format!("file {i:06}").into_bytes();
            // Nothing of the content is hashed in this world, but the manifest has its usual size.
            let hashes: Vec<_> =
                (0..count).map(|b| BlockHash { strong: [(i + b) as u8; 32], weak: 0 }).collect();
            (Entry::new(&path, 0o644, Mtime::default(), Kind::file(count * BLOCK)), hashes)
        };
        let encoded = encode((0..blocks.div_ceil(100)).map(file)).expect("a good manifest");
        let hashes = manifest_block_hashes(&encoded);
        let source = AgentId::of_key(&key.verifying_key().to_bytes());
        let manifest = Manifest::open(&encoded).expect("a good manifest");
        let head = ManifestHead::of(RunId([1; 16]), source, &manifest, &hashes);
        let node = |link: &Link| Node {
            link: *link,
            generation: 0,
            machine: None,
            disk: BlockMap::new(blocks),
            manifest: None,
            manifest_blocks: BTreeMap::new(),
            lies: false,
            unreadable: Vec::new(),
            lanes: BTreeMap::new(),
            turn: 0,
            sending: false,
            down_free: Instant::ZERO,
            timer: None,
            done_at: None,
        };
        Self {
            now: Instant::ZERO,
            events: BinaryHeap::new(),
            sequence: 0,
            nodes: links.iter().map(node).collect(),
            unreachable: Vec::new(),
            signed: head.sign(&key),
            manifest: encoded,
            hashes,
            key,
            blocks,
            seed,
            sent: vec![0; links.len()],
            fetched: vec![0; links.len()],
            duplicates: 0,
            message_bytes: 0,
            misbehaved: Vec::new(),
            lost: Vec::new(),
            fetch: FetchConfig::default(),
        }
    }

    pub(crate) fn lies(&mut self, node: usize) {
        self.nodes[node].lies = true;
    }

    pub(crate) fn cannot_reach(&mut self, a: usize, b: usize) {
        self.unreachable.extend([(a, b), (b, a)]);
    }

    pub(crate) fn at(&mut self, time: Duration, step: Step) {
        self.push(Instant::ZERO + time, (0, 0), Event::Script(step));
    }

    /// The agent id by which others know a node: the source's comes from its key.
    fn agent(&self, node: usize) -> AgentId {
        if node == 0 { AgentId::of_key(&self.key.verifying_key().to_bytes()) } else { id(node) }
    }

    fn node_of(&self, agent: AgentId) -> usize {
        if agent == self.agent(0) { 0 } else { usize::from(agent.0[0]) }
    }

    pub(crate) fn verified(&self, node: usize) -> u64 {
        self.nodes[node].disk.count()
    }

    /// How many blocks some destination has verified.
    pub(crate) fn distinct(&self) -> u64 {
        let mut all = BlockMap::new(self.blocks);
        for node in &self.nodes[1..] {
            node.disk.ranges().for_each(|range| _ = all.insert_range(range));
        }
        all.count()
    }

    pub(crate) fn phase(&self, node: usize) -> Option<Phase> {
        match &self.nodes[node].machine {
            Some(Machine::Destination(d)) => Some(d.phase()),
            _ => None,
        }
    }

    pub(crate) fn done_at(&self, node: usize) -> Option<Duration> {
        self.nodes[node].done_at.map(|at| at - Instant::ZERO)
    }

    /// Runs until `done`, or fails when the virtual time is over.
    pub(crate) fn run(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let Some(Reverse(Ordered(at, _, generations, event))) = self.events.pop() else {
                panic!("seed {}: nothing left to do\n{}", self.seed, self.describe());
            };
            assert!(at - Instant::ZERO < limit, "seed {}: not done\n{}", self.seed, self.describe());
            self.now = at;
            self.handle(generations, event);
        }
    }

    fn describe(&self) -> String {
        let line =
            |i: usize| format!("node {i}: {} of {} {:?}\n", self.verified(i), self.blocks, self.phase(i));
        (1..self.nodes.len()).map(line).collect()
    }

    fn push(&mut self, at: Instant, generations: (u32, u32), event: Event) {
        self.sequence += 1;
        self.events.push(Reverse(Ordered(at, self.sequence, generations, event)));
    }

    fn push_between(&mut self, at: Instant, from: usize, to: usize, event: Event) {
        let generations = (self.nodes[from].generation, self.nodes[to].generation);
        self.push(at, generations, event);
    }

    fn delay(&self, a: usize, b: usize) -> Duration {
        self.nodes[a].link.delay + self.nodes[b].link.delay
    }

    fn handle(&mut self, generations: (u32, u32), event: Event) {
        let alive = |w: &Self, from: usize, to: usize| {
            (w.nodes[from].generation, w.nodes[to].generation) == generations
                && w.nodes[to].lanes.contains_key(&from)
        };
        match event {
            Event::Script(step) => self.step(step),
            Event::Message { from, to, message } if alive(self, from, to) => {
                let (now, agent) = (self.now, self.agent(from));
                match &mut self.nodes[to].machine {
                    Some(Machine::Origin(o)) => o.handle_message(now, agent, message),
                    Some(Machine::Destination(d)) => d.handle_message(now, agent, message),
                    None => {}
                }
                self.drive(to);
            }
            Event::AtDownlink { from, to, block, corrupt } if alive(self, from, to) => {
                let node = &mut self.nodes[to];
                node.down_free =
                    node.down_free.max(self.now) + transmit(self.manifest.len(), block, node.link.down);
                let at = node.down_free;
                self.push_between(at, from, to, Event::Delivered { from, to, block, corrupt });
            }
            Event::Delivered { from, to, block, corrupt } if alive(self, from, to) => {
                let ack = self.now + self.delay(from, to);
                self.push_between(ack, from, to, Event::Acked { from, to, block });
                self.deliver(from, to, block, corrupt);
            }
            Event::Acked { from, to, block } if alive(self, from, to) => {
                if let Some(lane) = self.nodes[from].lanes.get_mut(&to) {
                    lane.in_flight -= 1;
                }
                let (now, agent) = (self.now, self.agent(to));
                match &mut self.nodes[from].machine {
                    Some(Machine::Origin(o)) => o.handle_sent(now, agent, block),
                    Some(Machine::Destination(d)) => d.handle_sent(agent, block),
                    None => {}
                }
                self.drive(from);
            }
            Event::Checked { node, from, block, corrupt } if self.nodes[node].generation == generations.0 => {
                let (now, agent) = (self.now, self.agent(from));
                let Some(Machine::Destination(d)) = &mut self.nodes[node].machine else { return };
                if corrupt {
                    d.handle_corrupt(agent, block);
                } else {
                    d.handle_verified(now, block);
                    self.nodes[node].disk.insert(block);
                }
                self.drive(node);
            }
            Event::UplinkFree(node) if self.nodes[node].generation == generations.0 => {
                self.nodes[node].sending = false;
                self.drive(node);
            }
            Event::Timer(node)
                if self.nodes[node].generation == generations.0
                    && self.nodes[node].timer.is_some_and(|t| t <= self.now) =>
            {
                self.nodes[node].timer = None;
                match &mut self.nodes[node].machine {
                    Some(Machine::Origin(o)) => o.handle_timeout(self.now),
                    Some(Machine::Destination(d)) => d.handle_timeout(self.now),
                    None => {}
                }
                self.drive(node);
            }
            _ => {}
        }
    }

    fn deliver(&mut self, from: usize, to: usize, block: BlockAddress, corrupt: bool) {
        let (now, agent) = (self.now, self.agent(from));
        let node = &mut self.nodes[to];
        let Some(Machine::Destination(d)) = &mut node.machine else { return };
        let index = block.index();
        if block.is_manifest() {
            let start = index as usize * BLOCK as usize;
            let mut bytes = self.manifest[start..(start + BLOCK as usize).min(self.manifest.len())].to_vec();
            bytes[0] ^= u8::from(corrupt);
            if d.handle_manifest_block(now, agent, index, &bytes) {
                node.manifest_blocks.insert(index, bytes);
            }
        } else {
            match d.handle_arrived(now, agent, index) {
                Arrival::Fresh => {
                    self.fetched[to] += u64::from(!corrupt);
                    let generations = (node.generation, 0);
                    self.push(
                        now + CHECK,
                        generations,
                        Event::Checked { node: to, from, block: index, corrupt },
                    );
                }
                Arrival::Duplicate => {
                    self.fetched[to] += 1;
                    self.duplicates += 1;
                }
                Arrival::Unwanted => {}
            }
        }
        self.drive(to);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Kill(n) => {
                self.nodes[n].generation += 1;
                let peers: Vec<_> = std::mem::take(&mut self.nodes[n].lanes).into_keys().collect();
                let node = &mut self.nodes[n];
                (node.machine, node.sending, node.timer) = (None, false, None);
                let agent = self.agent(n);
                for peer in peers {
                    self.nodes[peer].lanes.remove(&n);
                    match &mut self.nodes[peer].machine {
                        Some(Machine::Origin(o)) => o.handle_disconnected(agent),
                        Some(Machine::Destination(d)) => d.handle_disconnected(self.now, agent),
                        None => {}
                    }
                    self.drive(peer);
                }
            }
            Step::Start(n) => self.start(n),
            Step::Unreadable(n, blocks) => self.nodes[n].unreadable = blocks,
            Step::Pause(n) => {
                if let Some(Machine::Destination(d)) = &mut self.nodes[n].machine {
                    d.pause();
                }
                self.drive(n);
            }
            Step::Resume(n) => {
                if let Some(Machine::Destination(d)) = &mut self.nodes[n].machine {
                    d.resume(self.now);
                }
                self.drive(n);
            }
        }
    }

    fn start(&mut self, n: usize) {
        let again = self.nodes[n].generation > 0;
        self.nodes[n].generation += 1;
        let machine = if n == 0 {
            let settle = if again { Duration::from_millis(500) } else { Duration::ZERO };
            let config = OriginConfig { settle, ..OriginConfig::default() };
            let (signed, hashes) = (self.signed.clone(), self.hashes.clone());
            Machine::Origin(Box::new(Origin::new(
                "test".into(),
                signed,
                hashes,
                self.blocks,
                config,
                UploadConfig::default(),
            )))
        } else {
            let info = RunInfo {
                run: RunId([1; 16]),
                source_key: self.key.verifying_key().to_bytes(),
                version: "test".into(),
            };
            let seed = self.seed.wrapping_mul(1000) + n as u64;
            let mut d = Destination::new(info, self.fetch.clone(), UploadConfig::default(), seed);
            if let Some((signed, encoded)) = &self.nodes[n].manifest {
                assert!(d.restore_manifest(self.now, signed.clone(), manifest_block_hashes(encoded)));
            }
            Machine::Destination(Box::new(d))
        };
        self.nodes[n].machine = Some(machine);
        for peer in 0..self.nodes.len() {
            if peer == n || self.nodes[peer].machine.is_none() || self.unreachable.contains(&(n, peer)) {
                continue;
            }
            for (a, b) in [(n, peer), (peer, n)] {
                let (agent, rtt) = (self.agent(b), 2 * self.delay(a, b));
                self.nodes[a].lanes.insert(b, Lane::default());
                match &mut self.nodes[a].machine {
                    Some(Machine::Origin(o)) => o.handle_connected(self.now, agent),
                    Some(Machine::Destination(d)) => {
                        d.handle_connected(self.now, agent);
                        d.handle_rtt(agent, rtt);
                    }
                    None => {}
                }
            }
            self.drive(peer);
        }
        self.drive(n);
    }

    /// Carries out what a node's machine asks for.
    fn drive(&mut self, n: usize) {
        loop {
            let action = match &mut self.nodes[n].machine {
                Some(Machine::Origin(o)) => o.poll_action(self.now),
                Some(Machine::Destination(d)) => d.poll_action(self.now),
                None => return,
            };
            match action {
                None => break,
                Some(action) => self.act(n, action),
            }
        }
        self.transmit(n);
        let timeout = match &self.nodes[n].machine {
            Some(Machine::Origin(o)) => o.poll_timeout(),
            Some(Machine::Destination(d)) => d.poll_timeout(),
            None => None,
        };
        if let Some(at) = timeout
            && self.nodes[n].timer.is_none_or(|t| at < t)
        {
            let at = at.max(self.now);
            self.nodes[n].timer = Some(at);
            self.push(at, (self.nodes[n].generation, 0), Event::Timer(n));
        }
    }

    fn act(&mut self, n: usize, action: Action) {
        match action {
            Action::Send { peer, message } => {
                let to = self.node_of(peer);
                let bytes = message.encode();
                self.message_bytes += bytes.len() as u64;
                // What cannot be decoded again must not be sent.
                let message = PeerMessage::decode(&bytes).expect("our own message");
                let delay = self.delay(n, to);
                let up = self.nodes[n].link.up;
                let Some(lane) = self.nodes[n].lanes.get_mut(&to) else { return };
                let at = (self.now + delay + Duration::from_micros(bytes.len() as u64 * 1_000_000 / up))
                    .max(lane.last_message);
                lane.last_message = at;
                self.push_between(at, n, to, Event::Message { from: n, to, message });
            }
            Action::Upload { peer, block, priority } => {
                let to = self.node_of(peer);
                if let Some(lane) = self.nodes[n].lanes.get_mut(&to) {
                    lane.queue[usize::from(priority)].push_back(block);
                }
            }
            Action::CancelUpload { peer, block } => {
                let to = self.node_of(peer);
                if let Some(lane) = self.nodes[n].lanes.get_mut(&to) {
                    lane.queue.iter_mut().for_each(|q| q.retain(|b| *b != block));
                }
            }
            Action::ManifestComplete => {
                let disk = self.nodes[n].disk.clone();
                let node = &mut self.nodes[n];
                if node.manifest.is_none() {
                    let bytes = node.manifest_blocks.values().flatten().copied().collect::<Vec<u8>>();
                    assert!(bytes == self.manifest);
                    node.manifest = Some((self.signed.clone(), bytes));
                }
                if let Some(Machine::Destination(d)) = &mut node.machine {
                    d.begin_content(self.now, disk);
                }
            }
            Action::Lost { block, reason } => {
                assert_eq!(reason, UnavailableReason::Changed);
                self.lost.push((n, block));
            }
            Action::Misbehaved { peer, what } => {
                let other = self.node_of(peer);
                self.misbehaved.push((n, other, what));
            }
            Action::ContentComplete => self.nodes[n].done_at = Some(self.now),
        }
    }

    fn transmit(&mut self, n: usize) {
        while !self.nodes[n].sending {
            let node = &mut self.nodes[n];
            let ready: Vec<usize> = node
                .lanes
                .iter()
                .filter(|(_, l)| l.in_flight < WINDOW && l.queue.iter().any(|q| !q.is_empty()))
                .map(|(to, _)| *to)
                .collect();
            let Some(&to) = ready.iter().find(|to| **to > node.turn).or(ready.first()) else { return };
            node.turn = to;
            let Some(lane) = node.lanes.get_mut(&to) else { return };
            let Some(block) = lane.queue.iter_mut().rev().find_map(VecDeque::pop_front) else { return };
            if !block.is_manifest() && node.unreadable.contains(&block.index()) {
                if let Some(Machine::Origin(o)) = &mut node.machine {
                    o.handle_read_failed(block.index(), UnavailableReason::Changed);
                }
                // The machine may have more to say; it is driven on by the next event at the latest.
                self.push(self.now, (self.nodes[n].generation, 0), Event::UplinkFree(n));
                continue;
            }
            lane.in_flight += 1;
            node.sending = true;
            let corrupt = node.lies;
            let free = self.now + transmit(self.manifest.len(), block, node.link.up);
            if !block.is_manifest() {
                self.sent[n] += 1;
            }
            self.push(free, (self.nodes[n].generation, 0), Event::UplinkFree(n));
            let at = free + self.delay(n, to);
            self.push_between(at, n, to, Event::AtDownlink { from: n, to, block, corrupt });
        }
    }
}

fn transmit(manifest_len: usize, block: BlockAddress, rate: u64) -> Duration {
    let len =
        if block.is_manifest() { (manifest_len as u64 - block.index() * BLOCK).min(BLOCK) } else { BLOCK };
    Duration::from_nanos(len * 1_000_000_000 / rate)
}
