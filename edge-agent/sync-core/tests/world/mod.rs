//! A world in virtual time for swarms: nodes with bandwidths, paths with delays, everything from one seed.
//!
//! The transport is modelled as far as it matters to a swarm: an uplink that serves its connections in turns,
//! a downlink that queues, a bound on what a connection has in flight, messages that stay in order and take
//! their share of the uplink. A site is a local network behind a wide-area link that its nodes share.
//!
//! Nodes are connected each with each at once, or, in a large world, as their [`Neighbours`] decide.

mod net;
mod queue;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use agent_proto::peer::{BlockAddress, PeerMessage, UnavailableReason};
use ed25519_dalek::SigningKey;
use event_schema::{AgentId, RunId, Signed};
use sync_core::config::{FetchConfig, OriginConfig, UploadConfig};
use sync_core::manifest::{
    BlockHash, Entry, Kind, Manifest, ManifestHead, Mtime, encode, manifest_block_hashes,
};
use sync_core::{
    Action, Arrival, BlockMap, Destination, Misbehaviour, NeighbourConfig, Neighbours, Origin, Phase, RunInfo,
};
use timebase::Instant;

use net::Site;
use queue::Queue;

pub(crate) const BLOCK: u64 = 32 * 1024;
/// Blocks a connection may have in flight.
const WINDOW: usize = 64;
/// Time to check and write a block.
const CHECK: Duration = Duration::from_millis(1);
/// What a message costs on a wire beside its bytes: a share of a datagram's headers.
const MESSAGE_COST: u64 = 40;
/// In worlds up to this size every message is decoded again, and the scenario's end looked for after every event.
const SMALL: usize = 64;

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
    /// Index of its site, if it has one.
    site: Option<usize>,
    /// Bumped when it dies or comes back: what was going on in it is void.
    generation: u32,
    machine: Option<Machine>,
    neighbours: Option<Neighbours>,
    /// What survives a restart: content, and whether the manifest is there.
    disk: BlockMap,
    has_manifest: bool,
    manifest_blocks: BTreeMap<u64, Vec<u8>>,
    lies: bool,
    unreadable: Vec<u64>,
    lanes: BTreeMap<usize, Lane>,
    /// Lanes with something to send, in turns: those within the site, and those beyond.
    ready: [VecDeque<usize>; 2],
    far_next: bool,
    /// In the queue of its site's link.
    waits: bool,
    sending: bool,
    /// Bytes of messages that the uplink carries before the next block.
    debt: u64,
    down_free: Instant,
    timer: Option<Instant>,
    done_at: Option<Instant>,
}

struct Lane {
    /// Which connection: what was on its way in another one is void.
    conn: u32,
    far: bool,
    queue: [VecDeque<BlockAddress>; 3],
    in_flight: usize,
    ready: bool,
    last_message: Instant,
}

impl Lane {
    fn may_send(&self) -> bool {
        self.in_flight < WINDOW && self.queue.iter().any(|q| !q.is_empty())
    }
}

/// What travels between two nodes, in one connection.
#[derive(Clone, Copy)]
struct Way {
    from: usize,
    to: usize,
    conn: u32,
}

enum Event {
    Message(Way, Box<PeerMessage>),
    AtSite { way: Way, block: BlockAddress, corrupt: bool },
    AtDownlink { way: Way, block: BlockAddress, corrupt: bool },
    Delivered { way: Way, block: BlockAddress, corrupt: bool },
    Acked(Way, BlockAddress),
    Checked { node: usize, generation: u32, from: usize, block: u64, corrupt: bool },
    UplinkFree(usize, u32),
    SiteReady(usize),
    Timer(usize, u32),
    Tend(usize, u32),
    Called { from: usize, to: usize, generation: u32 },
    NoAnswer { from: usize, to: usize, generation: u32 },
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
    events: Queue<Event>,
    nodes: Vec<Node>,
    sites: Vec<Site>,
    unreachable: Vec<(usize, usize)>,
    /// How nodes choose their neighbours; without it everybody is connected with everybody.
    pub(crate) neighbours: Option<NeighbourConfig>,
    connections: u32,
    manifest: Vec<u8>,
    signed: Signed,
    hashes: Vec<[u8; 32]>,
    key: SigningKey,
    source: AgentId,
    pub(crate) blocks: u64,
    seed: u64,
    /// Content blocks sent by each node.
    pub(crate) sent: Vec<u64>,
    /// Content blocks that arrived genuine at each node, repeats included.
    pub(crate) fetched: Vec<u64>,
    pub(crate) duplicates: u64,
    /// When the source sent its last content block.
    pub(crate) source_idle: Duration,
    pub(crate) messages: u64,
    pub(crate) message_bytes: u64,
    pub(crate) misbehaved: Vec<(usize, usize, Misbehaviour)>,
    pub(crate) lost: Vec<(usize, u64)>,
    pub(crate) fetch: FetchConfig,
    /// What comes before the rest.
    pub(crate) first: Vec<BlockMap>,
    /// Something of what scenarios wait for has happened.
    news: bool,
}

fn id(node: usize) -> AgentId {
    let mut id = [0xee; 16];
    id[12..].copy_from_slice(&(node as u32).to_be_bytes());
    // Neither sorted like the nodes nor the source's.
    id[..8].copy_from_slice(&(node as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
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
            site: None,
            generation: 0,
            machine: None,
            neighbours: None,
            disk: BlockMap::new(blocks),
            has_manifest: false,
            manifest_blocks: BTreeMap::new(),
            lies: false,
            unreadable: Vec::new(),
            lanes: BTreeMap::new(),
            ready: [VecDeque::new(), VecDeque::new()],
            far_next: false,
            waits: false,
            sending: false,
            debt: 0,
            down_free: Instant::ZERO,
            timer: None,
            done_at: None,
        };
        Self {
            now: Instant::ZERO,
            events: Queue::new(),
            nodes: links.iter().map(node).collect(),
            sites: Vec::new(),
            unreachable: Vec::new(),
            neighbours: None,
            connections: 0,
            signed: head.sign(&key),
            manifest: encoded,
            hashes,
            key,
            source,
            blocks,
            seed,
            sent: vec![0; links.len()],
            fetched: vec![0; links.len()],
            duplicates: 0,
            source_idle: Duration::ZERO,
            messages: 0,
            message_bytes: 0,
            misbehaved: Vec::new(),
            lost: Vec::new(),
            fetch: FetchConfig::default(),
            first: Vec::new(),
            news: true,
        }
    }

    pub(crate) fn lies(&mut self, node: usize) {
        self.nodes[node].lies = true;
    }

    pub(crate) fn cannot_reach(&mut self, a: usize, b: usize) {
        self.unreachable.extend([(a, b), (b, a)]);
    }

    pub(crate) fn at(&mut self, time: Duration, step: Step) {
        self.events.push(Instant::ZERO + time, Event::Script(step));
    }

    /// The agent id by which others know a node: the source's comes from its key.
    fn agent(&self, node: usize) -> AgentId {
        if node == 0 { self.source } else { id(node) }
    }

    fn node_of(&self, agent: AgentId) -> usize {
        if agent == self.source {
            return 0;
        }
        let last: [u8; 4] = agent.0[12..].try_into().expect("four bytes");
        u32::from_be_bytes(last) as usize
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

    /// How many blocks of a class a node has.
    pub(crate) fn verified_of(&self, node: usize, class: &BlockMap) -> u64 {
        class.ranges().flatten().filter(|block| self.nodes[node].disk.contains(*block)).count() as u64
    }

    pub(crate) fn done_at(&self, node: usize) -> Option<Duration> {
        self.nodes[node].done_at.map(|at| at - Instant::ZERO)
    }

    /// Runs until `done`, or fails when the virtual time is over.
    pub(crate) fn run(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let small = self.nodes.len() <= SMALL;
        while !((small || std::mem::take(&mut self.news)) && done(self)) {
            loop {
                let Some((at, event)) = self.events.pop() else {
                    panic!("seed {}: nothing left to do\n{}", self.seed, self.describe());
                };
                assert!(at - Instant::ZERO < limit, "seed {}: not done\n{}", self.seed, self.describe());
                self.now = at;
                self.handle(event);
                if small || self.news {
                    break;
                }
            }
        }
    }

    fn describe(&self) -> String {
        let line =
            |i: usize| format!("node {i}: {} of {} {:?}\n", self.verified(i), self.blocks, self.phase(i));
        (1..self.nodes.len()).filter(|i| self.nodes[*i].done_at.is_none()).take(SMALL).map(line).collect()
    }

    fn delay(&self, a: usize, b: usize) -> Duration {
        let (a, b) = (&self.nodes[a], &self.nodes[b]);
        let beyond = if a.site == b.site { Duration::ZERO } else { net::BETWEEN_SITES };
        a.link.delay + b.link.delay + beyond
    }

    /// Whether the connection is still the one in which something was sent.
    fn is_open(&self, way: Way) -> bool {
        self.nodes[way.to].lanes.get(&way.from).is_some_and(|lane| lane.conn == way.conn)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Script(step) => {
                self.news = true;
                self.step(step);
            }
            Event::Message(way, message) if self.is_open(way) => {
                let (now, agent) = (self.now, self.agent(way.from));
                let node = &mut self.nodes[way.to];
                if let (Some(neighbours), PeerMessage::Complete(_)) = (&mut node.neighbours, &*message) {
                    neighbours.handle_peer_complete(way.from as u32);
                }
                match &mut node.machine {
                    Some(Machine::Origin(o)) => o.handle_message(now, agent, *message),
                    Some(Machine::Destination(d)) => d.handle_message(now, agent, *message),
                    None => {}
                }
                self.drive(way.to);
            }
            Event::AtSite { way, block, corrupt } if self.is_open(way) => {
                let at = self.through_site(way.to, block);
                self.events.push(at, Event::AtDownlink { way, block, corrupt });
            }
            Event::AtDownlink { way, block, corrupt } if self.is_open(way) => {
                let node = &mut self.nodes[way.to];
                node.down_free =
                    node.down_free.max(self.now) + transmit(self.manifest.len(), block, node.link.down);
                self.events.push(node.down_free, Event::Delivered { way, block, corrupt });
            }
            Event::Delivered { way, block, corrupt } if self.is_open(way) => {
                let back = Way { from: way.to, to: way.from, ..way };
                self.events.push(self.now + self.delay(way.from, way.to), Event::Acked(back, block));
                self.used(way.to, way.from);
                self.deliver(way, block, corrupt);
            }
            // The other side of a connection hears that a block has come.
            Event::Acked(back, block) if self.is_open(back) => {
                let (from, to) = (back.to, back.from);
                if let Some(lane) = self.nodes[from].lanes.get_mut(&to) {
                    lane.in_flight -= 1;
                }
                self.mark_ready(from, to);
                self.used(from, to);
                let (now, agent) = (self.now, self.agent(to));
                match &mut self.nodes[from].machine {
                    Some(Machine::Origin(o)) => o.handle_sent(now, agent, block),
                    Some(Machine::Destination(d)) => d.handle_sent(agent, block),
                    None => {}
                }
                self.drive(from);
            }
            Event::Checked { node, generation, from, block, corrupt }
                if self.nodes[node].generation == generation =>
            {
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
            Event::UplinkFree(node, generation) if self.nodes[node].generation == generation => {
                self.nodes[node].sending = false;
                // The machine may have something to say after a failed read.
                if self.nodes[node].unreadable.is_empty() {
                    self.transmit(node);
                } else {
                    self.drive(node);
                }
            }
            Event::SiteReady(site) => self.site_ready(site),
            Event::Timer(node, generation)
                if self.nodes[node].generation == generation
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
            Event::Tend(node, generation) if self.nodes[node].generation == generation => {
                self.tend(node);
                self.events.push(self.now + net::TEND, Event::Tend(node, generation));
            }
            Event::Called { from, to, generation } if self.nodes[from].generation == generation => {
                self.called(from, to);
            }
            Event::NoAnswer { from, to, generation } if self.nodes[from].generation == generation => {
                self.refused(from, to, false);
            }
            _ => {}
        }
    }

    fn deliver(&mut self, way: Way, block: BlockAddress, corrupt: bool) {
        let (now, agent) = (self.now, self.agent(way.from));
        let node = &mut self.nodes[way.to];
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
                    self.fetched[way.to] += u64::from(!corrupt);
                    let (node, generation, from) = (way.to, node.generation, way.from);
                    self.events
                        .push(now + CHECK, Event::Checked { node, generation, from, block: index, corrupt });
                }
                Arrival::Duplicate => {
                    self.fetched[way.to] += 1;
                    self.duplicates += 1;
                }
                Arrival::Unwanted => {}
            }
        }
        self.drive(way.to);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Kill(n) => {
                self.nodes[n].generation += 1;
                for peer in self.nodes[n].lanes.keys().copied().collect::<Vec<_>>() {
                    self.disconnect(n, peer);
                }
                let node = &mut self.nodes[n];
                (node.machine, node.neighbours, node.sending, node.timer) = (None, None, false, None);
                node.manifest_blocks.clear();
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
            let origin =
                Origin::new("test".into(), signed, hashes, self.blocks, config, UploadConfig::default());
            Machine::Origin(Box::new(origin.preferring(&self.first)))
        } else {
            let info = RunInfo {
                run: RunId([1; 16]),
                source_key: self.key.verifying_key().to_bytes(),
                version: "test".into(),
            };
            let seed = self.seed.wrapping_mul(1000) + n as u64;
            let site = self.nodes[n].site.map(|site| site as u64);
            let mut d = Destination::new(info, self.fetch.clone(), UploadConfig::default(), seed)
                .at_site(id(n), site);
            if self.nodes[n].has_manifest {
                assert!(d.restore_manifest(self.now, self.signed.clone(), self.hashes.clone()));
            }
            Machine::Destination(Box::new(d))
        };
        self.nodes[n].machine = Some(machine);
        self.join(n);
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
            self.events.push(at, Event::Timer(n, self.nodes[n].generation));
        }
    }

    fn act(&mut self, n: usize, action: Action) {
        match action {
            Action::Send { peer, message } => {
                let to = self.node_of(peer);
                let delay = self.delay(n, to);
                let small = self.nodes.len() <= SMALL;
                let node = &mut self.nodes[n];
                let Some(lane) = node.lanes.get_mut(&to) else { return };
                let bytes = message.encode();
                self.messages += 1;
                self.message_bytes += bytes.len() as u64;
                node.debt += bytes.len() as u64 + MESSAGE_COST;
                if small {
                    // What cannot be decoded again must not be sent.
                    assert!(PeerMessage::decode(&bytes).as_ref() == Ok(&message), "our own message");
                }
                let at =
                    (self.now + delay + Duration::from_micros(bytes.len() as u64 * 1_000_000 / node.link.up))
                        .max(lane.last_message);
                lane.last_message = at;
                let way = Way { from: n, to, conn: lane.conn };
                self.events.push(at, Event::Message(way, Box::new(message)));
            }
            Action::Upload { peer, block, priority } => {
                let to = self.node_of(peer);
                if let Some(lane) = self.nodes[n].lanes.get_mut(&to) {
                    lane.queue[usize::from(priority)].push_back(block);
                }
                self.mark_ready(n, to);
            }
            Action::CancelUpload { peer, block } => {
                let to = self.node_of(peer);
                if let Some(lane) = self.nodes[n].lanes.get_mut(&to) {
                    lane.queue.iter_mut().for_each(|q| q.retain(|b| *b != block));
                }
            }
            Action::SeekManifest { .. } => unreachable!("nobody holds other manifests"),
            Action::ManifestComplete => {
                let node = &mut self.nodes[n];
                if !std::mem::replace(&mut node.has_manifest, true) {
                    let blocks = std::mem::take(&mut node.manifest_blocks);
                    assert!(blocks.values().flatten().eq(self.manifest.iter()));
                }
                let disk = node.disk.clone();
                if let Some(Machine::Destination(d)) = &mut node.machine {
                    d.prefer(&self.first);
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
            Action::ContentComplete => {
                self.nodes[n].done_at = Some(self.now);
                self.news = true;
                if let Some(neighbours) = &mut self.nodes[n].neighbours {
                    neighbours.handle_complete();
                }
            }
        }
    }

    /// Notes that a lane may have something to send.
    fn mark_ready(&mut self, n: usize, to: usize) {
        let node = &mut self.nodes[n];
        if let Some(lane) = node.lanes.get_mut(&to).filter(|l| !l.ready && l.may_send()) {
            lane.ready = true;
            node.ready[usize::from(lane.far)].push_back(to);
        }
    }

    /// The next lane to serve: those within the site and those beyond in turns, as far as the site's link takes more.
    fn next_lane(&mut self, n: usize) -> Option<usize> {
        let beyond = !self.nodes[n].ready[1].is_empty() && self.site_is_open(n);
        let node = &mut self.nodes[n];
        let far = beyond && (node.far_next || node.ready[0].is_empty());
        let to = node.ready[usize::from(far)].pop_front()?;
        node.far_next = !far;
        Some(to)
    }

    fn transmit(&mut self, n: usize) {
        while !self.nodes[n].sending {
            let Some(to) = self.next_lane(n) else { return };
            let node = &mut self.nodes[n];
            let Some(lane) = node.lanes.get_mut(&to) else { continue };
            lane.ready = false;
            if !lane.may_send() {
                continue;
            }
            let Some(block) = lane.queue.iter_mut().rev().find_map(VecDeque::pop_front) else { continue };
            if !block.is_manifest() && node.unreadable.contains(&block.index()) {
                if let Some(Machine::Origin(o)) = &mut node.machine {
                    o.handle_read_failed(block.index(), UnavailableReason::Changed);
                }
                // The machine may have more to say; it is driven on by the next event at the latest.
                self.events.push(self.now, Event::UplinkFree(n, self.nodes[n].generation));
                self.mark_ready(n, to);
                continue;
            }
            lane.in_flight += 1;
            node.sending = true;
            let (corrupt, far) = (node.lies, lane.far);
            let way = Way { from: n, to, conn: lane.conn };
            let debt = Duration::from_nanos(std::mem::take(&mut node.debt) * 1_000_000_000 / node.link.up);
            let free = self.now + debt + transmit(self.manifest.len(), block, node.link.up);
            let generation = node.generation;
            self.mark_ready(n, to);
            if !block.is_manifest() {
                self.sent[n] += 1;
                if n == 0 {
                    self.source_idle = free - Instant::ZERO;
                }
            }
            self.events.push(free, Event::UplinkFree(n, generation));
            let at = if far { self.leave_site(n, to, block, free) } else { free } + self.delay(n, to);
            if far && self.nodes[to].site.is_some() {
                self.events.push(at, Event::AtSite { way, block, corrupt });
            } else {
                self.events.push(at, Event::AtDownlink { way, block, corrupt });
            }
        }
    }
}

fn transmit(manifest_len: usize, block: BlockAddress, rate: u64) -> Duration {
    let len =
        if block.is_manifest() { (manifest_len as u64 - block.index() * BLOCK).min(BLOCK) } else { BLOCK };
    Duration::from_nanos(len * 1_000_000_000 / rate)
}
