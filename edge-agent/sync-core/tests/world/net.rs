//! Who is connected with whom, and the links of sites.

use std::collections::VecDeque;
use std::time::Duration;

use agent_proto::peer::BlockAddress;
use sync_core::{Accept, Neighbours};
use timebase::Instant;

use super::{Event, Lane, Machine, World, transmit};

/// How often a node looks after its neighbours.
pub(super) const TEND: Duration = Duration::from_millis(250);
/// How long somebody who calls waits for an answer.
const NO_ANSWER: Duration = Duration::from_secs(3);
/// What a site's link takes ahead of what it has sent: the transport keeps queues about that short.
const SITE_AHEAD: Duration = Duration::from_millis(60);

/// What a path takes one way between sites, beside the delays of both ends.
pub(super) const BETWEEN_SITES: Duration = Duration::from_millis(25);

/// A local network's link to the rest of the world.
pub(super) struct Site {
    up: u64,
    down: u64,
    up_free: Instant,
    down_free: Instant,
    /// Nodes with something to send through it.
    waiting: VecDeque<usize>,
    called: bool,
    /// Content bytes that came in.
    pub(super) bytes_in: u64,
}

impl World {
    /// Puts nodes together behind a link of so many bytes a second.
    pub(crate) fn site(&mut self, up: u64, down: u64, nodes: impl IntoIterator<Item = usize>) {
        let site = self.sites.len();
        let zero = Instant::ZERO;
        self.sites.push(Site {
            up,
            down,
            up_free: zero,
            down_free: zero,
            waiting: VecDeque::new(),
            called: false,
            bytes_in: 0,
        });
        nodes.into_iter().for_each(|n| self.nodes[n].site = Some(site));
    }

    /// Copies of the content that came into each site.
    pub(crate) fn copies_in(&self) -> Vec<f64> {
        let content = (self.blocks * super::BLOCK) as f64;
        self.sites.iter().map(|s| s.bytes_in as f64 / content).collect()
    }

    /// How many neighbours a node has.
    pub(crate) fn degree(&self, n: usize) -> usize {
        self.nodes[n].lanes.len()
    }

    /// A node that was started looks for others.
    pub(super) fn join(&mut self, n: usize) {
        if let Some(config) = self.neighbours.clone() {
            let seed = self.seed.wrapping_mul(77_777) + n as u64;
            let count = self.nodes.len() as u32;
            let mut neighbours = Neighbours::new(config, n as u32, 0, count, seed, self.now);
            if let Some(site) = self.nodes[n].site {
                for near in (0..self.nodes.len()).filter(|m| self.nodes[*m].site == Some(site)) {
                    neighbours.handle_near(near as u32);
                }
            }
            self.nodes[n].neighbours = Some(neighbours);
            self.events.push(self.now, Event::Tend(n, self.nodes[n].generation));
            return;
        }
        for peer in 0..self.nodes.len() {
            if peer != n && self.nodes[peer].machine.is_some() && !self.unreachable.contains(&(n, peer)) {
                self.connect(n, peer);
            }
        }
    }

    pub(super) fn connect(&mut self, n: usize, peer: usize) {
        self.connections += 1;
        let far = self.nodes[n].site != self.nodes[peer].site;
        for (a, b) in [(n, peer), (peer, n)] {
            let (agent, rtt, now) = (self.agent(b), 2 * self.delay(a, b), self.now);
            let lane = Lane {
                conn: self.connections,
                far,
                queue: Default::default(),
                in_flight: 0,
                ready: false,
                last_message: now,
            };
            let node = &mut self.nodes[a];
            node.lanes.insert(b, lane);
            if let Some(neighbours) = &mut node.neighbours {
                neighbours.handle_connected(now, b as u32);
            }
            match &mut node.machine {
                Some(Machine::Origin(o)) => o.handle_connected(now, agent),
                Some(Machine::Destination(d)) => {
                    d.handle_connected(now, agent);
                    d.handle_rtt(agent, rtt);
                }
                None => {}
            }
        }
        self.drive(peer);
        self.drive(n);
    }

    pub(super) fn disconnect(&mut self, n: usize, peer: usize) {
        for (a, b) in [(n, peer), (peer, n)] {
            let (agent, now) = (self.agent(b), self.now);
            let node = &mut self.nodes[a];
            node.lanes.remove(&b);
            node.ready.iter_mut().for_each(|ready| ready.retain(|to| *to != b));
            if let Some(neighbours) = &mut node.neighbours {
                neighbours.handle_disconnected(now, b as u32);
            }
            match &mut node.machine {
                Some(Machine::Origin(o)) => o.handle_disconnected(agent),
                Some(Machine::Destination(d)) => d.handle_disconnected(now, agent),
                None => {}
            }
        }
        self.drive(peer);
        self.drive(n);
    }

    /// Calls, and ends connections, as a node's neighbours want it.
    pub(super) fn tend(&mut self, n: usize) {
        let (now, generation) = (self.now, self.nodes[n].generation);
        while let Some(other) = self.nodes[n].neighbours.as_mut().and_then(|nb| nb.poll_drop(now)) {
            self.disconnect(n, other as usize);
        }
        while let Some(other) = self.nodes[n].neighbours.as_mut().and_then(|nb| nb.poll_call(now)) {
            let to = other as usize;
            // There, back, and there again: then both know who the other is.
            let at = now + 3 * self.delay(n, to);
            self.events.push(at, Event::Called { from: n, to, generation });
        }
    }

    pub(super) fn called(&mut self, from: usize, to: usize) {
        let generation = self.nodes[from].generation;
        if self.nodes[from].lanes.contains_key(&to) {
            // The other one called at the same time.
            return;
        }
        if self.nodes[to].machine.is_none() || self.unreachable.contains(&(from, to)) {
            return self.events.push(self.now + NO_ANSWER, Event::NoAnswer { from, to, generation });
        }
        let Some(neighbours) = &mut self.nodes[to].neighbours else { return };
        match neighbours.accept(from as u32) {
            Accept::Yes => self.connect(from, to),
            Accept::InsteadOf(other) => {
                self.disconnect(to, other as usize);
                self.connect(from, to);
            }
            Accept::No => self.refused(from, to, true),
        }
    }

    pub(super) fn refused(&mut self, from: usize, to: usize, alive: bool) {
        if let Some(neighbours) = &mut self.nodes[from].neighbours {
            neighbours.handle_failed(self.now, to as u32, alive);
        }
        self.tend(from);
    }

    pub(super) fn used(&mut self, n: usize, peer: usize) {
        if let Some(neighbours) = &mut self.nodes[n].neighbours {
            neighbours.handle_use(self.now, peer as u32);
        }
    }

    /// Whether the link of the node's site takes another block; if not, the node waits for it.
    pub(super) fn site_is_open(&mut self, n: usize) -> bool {
        let Some(site) = self.nodes[n].site else { return true };
        let now = self.now;
        let link = &mut self.sites[site];
        if link.up_free.saturating_since(now) < SITE_AHEAD {
            return true;
        }
        if !std::mem::replace(&mut self.nodes[n].waits, true) {
            link.waiting.push_back(n);
        }
        if !std::mem::replace(&mut link.called, true) {
            let at = link.up_free - SITE_AHEAD;
            self.events.push(at + Duration::from_micros(1), Event::SiteReady(site));
        }
        false
    }

    pub(super) fn site_ready(&mut self, site: usize) {
        self.sites[site].called = false;
        let mut turns = self.sites[site].waiting.len();
        while turns > 0 && self.sites[site].up_free.saturating_since(self.now) < SITE_AHEAD {
            turns -= 1;
            let Some(n) = self.sites[site].waiting.pop_front() else { return };
            self.nodes[n].waits = false;
            self.nodes[n].far_next = true;
            self.transmit(n);
        }
        if let Some(&n) = self.sites[site].waiting.front() {
            self.site_is_open(n);
        }
    }

    /// When a block that leaves a node at `free` has left its site, too.
    pub(super) fn leave_site(&mut self, n: usize, _to: usize, block: BlockAddress, free: Instant) -> Instant {
        let Some(site) = self.nodes[n].site else { return free };
        let link = &mut self.sites[site];
        link.up_free = link.up_free.max(free) + transmit(self.manifest.len(), block, link.up);
        link.up_free
    }

    /// When a block that has come to a node's site has come through its link.
    pub(super) fn through_site(&mut self, to: usize, block: BlockAddress) -> Instant {
        let Some(site) = self.nodes[to].site else { return self.now };
        let link = &mut self.sites[site];
        if !block.is_manifest() {
            link.bytes_in += super::BLOCK;
        }
        link.down_free = link.down_free.max(self.now) + transmit(self.manifest.len(), block, link.down);
        link.down_free
    }
}
