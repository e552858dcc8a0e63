//! Nodes joined by links, and the loop that moves virtual time from one event to the next.
//!
//! Any protocol that takes datagrams and time in and gives datagrams and deadlines out can be a
//! [`Node`]; [`crate::flow`] makes one of `utp2::Endpoint`. Links are shared by the routes that name them,
//! so two senders meet in one bottleneck. Nothing here asks for the time, and the order of everything is
//! decided by the input and the seeds.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use timebase::Instant;

use crate::link::{Fate, Link};

/// A run that makes this many steps without time moving on is stuck in a loop.
const STEPS_PER_INSTANT_MAX: u32 = 100_000;

/// One transmission of a node: `len` bytes at the front of the buffer, cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmission {
    /// Where it goes, an address given by [`address_of`].
    pub to: SocketAddr,
    /// Bytes in the buffer.
    pub len: usize,
    /// The size of each datagram but the last; `None` if it is a single one.
    pub segment_size: Option<usize>,
}

/// A protocol endpoint and its application, driven by [`Network`].
///
/// The drive order is that of the sans-IO cores: datagrams and due timeouts in, then
/// [`Node::poll_transmit`] until it answers `None`, then [`Node::poll_timeout`].
pub trait Node {
    /// A datagram has arrived.
    fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]);
    /// The time given by [`Node::poll_timeout`] has come.
    fn handle_timeout(&mut self, now: Instant);
    /// When the node wants to be called next, or `None` to wait for datagrams alone.
    fn poll_timeout(&mut self) -> Option<Instant>;
    /// The next transmission, written to `buf` (which is empty), if there is one now.
    fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmission>;
}

/// The address of the node with this index (below 2^16).
#[must_use]
pub fn address_of(node: usize) -> SocketAddr {
    let [hi, lo] = u16::try_from(node).expect("a network has fewer than 2^16 nodes").to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, hi, lo)), 4433)
}

fn node_at(addr: SocketAddr) -> Option<usize> {
    match addr.ip() {
        IpAddr::V4(ip) if addr.port() == 4433 && ip.octets()[..2] == [10, 0] => {
            Some(usize::from(u16::from_be_bytes([ip.octets()[2], ip.octets()[3]])))
        }
        _ => None,
    }
}

/// Why [`Network::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The condition was met.
    Done,
    /// The deadline passed first.
    Deadline,
    /// Nothing is under way and nobody waits for a time: nothing would ever happen again.
    Quiet,
    /// A node kept asking to be called at once: an endless loop in it.
    Stuck,
}

struct Arrival {
    at: Instant,
    /// Breaks ties in the order of sending.
    number: u64,
    from: usize,
    to: usize,
    data: Vec<u8>,
}

impl PartialEq for Arrival {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Arrival {}
impl PartialOrd for Arrival {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Arrival {
    /// Reversed: the heap gives the greatest, and the earliest is wanted.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// Nodes, links and what is under way between them.
pub struct Network<N> {
    now: Instant,
    nodes: Vec<N>,
    links: Vec<Link>,
    routes: BTreeMap<(usize, usize), usize>,
    arrivals: BinaryHeap<Arrival>,
    sent: u64,
    spare: Vec<Vec<u8>>,
    buf: Vec<u8>,
}

impl<N: Node> Default for Network<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<N: Node> Network<N> {
    /// An empty network at [`Instant::ZERO`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            now: Instant::ZERO,
            nodes: Vec::new(),
            links: Vec::new(),
            routes: BTreeMap::new(),
            arrivals: BinaryHeap::new(),
            sent: 0,
            spare: Vec::new(),
            buf: Vec::new(),
        }
    }

    /// Adds a node; its address is [`address_of`] the index given back.
    pub fn add_node(&mut self, node: N) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Adds a link and gives its index.
    pub fn add_link(&mut self, link: Link) -> usize {
        self.links.push(link);
        self.links.len() - 1
    }

    /// Lets datagrams from one node to another take a link. Without a route they vanish.
    pub fn add_route(&mut self, from: usize, to: usize, link: usize) {
        self.routes.insert((from, to), link);
    }

    /// The virtual time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The nodes, by index.
    #[must_use]
    pub fn nodes(&self) -> &[N] {
        &self.nodes
    }

    /// A node, to be changed between two runs.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn node_mut(&mut self, node: usize) -> &mut N {
        &mut self.nodes[node]
    }

    /// The links, by index.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// A link, to be changed between two runs.
    ///
    /// # Panics
    /// If there is no such link.
    pub fn link_mut(&mut self, link: usize) -> &mut Link {
        &mut self.links[link]
    }

    /// Moves time on until `done` says so or `deadline` passes. Ends at the time of the last event, or at
    /// `deadline`, so that runs can follow each other with changes between them.
    pub fn run(&mut self, deadline: Instant, mut done: impl FnMut(Instant, &[N]) -> bool) -> Stop {
        let mut touched = vec![true; self.nodes.len()];
        let mut steps = 0;
        loop {
            for (node, touched) in touched.iter_mut().enumerate() {
                if core::mem::take(touched) {
                    self.transmit(node);
                }
            }
            if done(self.now, &self.nodes) {
                return Stop::Done;
            }
            let arrival = self.arrivals.peek().map(|a| a.at);
            let timeout = self.nodes.iter_mut().filter_map(Node::poll_timeout).min();
            let Some(next) = arrival.into_iter().chain(timeout).min() else { return Stop::Quiet };
            if next > deadline {
                self.now = deadline;
                return Stop::Deadline;
            }
            steps = if next > self.now { 0 } else { steps + 1 };
            if steps > STEPS_PER_INSTANT_MAX {
                return Stop::Stuck;
            }
            self.now = self.now.max(next);
            self.deliver(&mut touched);
            for (node, touched) in self.nodes.iter_mut().zip(&mut touched) {
                if node.poll_timeout().is_some_and(|t| t <= self.now) {
                    node.handle_timeout(self.now);
                    *touched = true;
                }
            }
        }
    }

    fn deliver(&mut self, touched: &mut [bool]) {
        while self.arrivals.peek().is_some_and(|a| a.at <= self.now) {
            let mut arrival = self.arrivals.pop().expect("just seen");
            self.nodes[arrival.to].handle_datagram(self.now, address_of(arrival.from), &mut arrival.data);
            touched[arrival.to] = true;
            self.spare.push(arrival.data);
        }
    }

    fn transmit(&mut self, node: usize) {
        let mut buf = core::mem::take(&mut self.buf);
        loop {
            buf.clear();
            let Some(t) = self.nodes[node].poll_transmit(self.now, &mut buf) else { break };
            let data = &buf[..t.len];
            let to = node_at(t.to).filter(|&to| to < self.nodes.len());
            let route = to.and_then(|to| Some((to, *self.routes.get(&(node, to))?)));
            if let Some((to, link)) = route {
                for segment in data.chunks(t.segment_size.unwrap_or(t.len).max(1)) {
                    self.send(node, to, link, segment);
                }
            }
        }
        self.buf = buf;
    }

    fn send(&mut self, from: usize, to: usize, link: usize, datagram: &[u8]) {
        let Fate::Delivered { at, again, corrupted } = self.links[link].send(self.now, datagram.len()) else {
            return;
        };
        for at in [Some(at), again].into_iter().flatten() {
            let mut data = self.spare.pop().unwrap_or_default();
            data.clear();
            data.extend_from_slice(datagram);
            if corrupted {
                self.links[link].corrupt(&mut data);
            }
            self.sent += 1;
            self.arrivals.push(Arrival { at, number: self.sent, from, to, data });
        }
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::link::LinkConfig;

    /// Sends `left` numbered datagrams, one a millisecond, and notes what it receives.
    struct Beeper {
        to: SocketAddr,
        left: u8,
        next: Instant,
        got: Vec<(u64, u8)>,
        eager: bool,
    }

    impl Beeper {
        fn new(to: usize, left: u8) -> Self {
            Self { to: address_of(to), left, next: Instant::ZERO, got: Vec::new(), eager: false }
        }
    }

    impl Node for Beeper {
        fn handle_datagram(&mut self, now: Instant, _: SocketAddr, datagram: &mut [u8]) {
            self.got.push((now.as_micros(), datagram[0]));
        }
        fn handle_timeout(&mut self, _: Instant) {}
        fn poll_timeout(&mut self) -> Option<Instant> {
            (self.left > 0 || self.eager).then_some(self.next)
        }
        fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmission> {
            if self.left == 0 || now < self.next {
                return None;
            }
            buf.push(self.left);
            self.left -= 1;
            self.next = now + Duration::from_millis(1);
            Some(Transmission { to: self.to, len: 1, segment_size: None })
        }
    }

    fn pair(delay_ms: u64) -> Network<Beeper> {
        let mut net = Network::new();
        net.add_node(Beeper::new(1, 3));
        net.add_node(Beeper::new(0, 0));
        let link =
            net.add_link(Link::new(LinkConfig::new(0, Duration::from_millis(delay_ms)), Default::default()));
        net.add_route(0, 1, link);
        net
    }

    #[test]
    fn datagrams_arrive_after_the_delay_in_order() {
        let mut net = pair(10);
        assert_eq!(net.run(Instant::from_micros(u64::MAX), |_, _| false), Stop::Quiet);
        assert_eq!(net.nodes()[1].got, [(10_000, 3), (11_000, 2), (12_000, 1)]);
    }

    #[test]
    fn the_deadline_and_the_condition_stop_a_run() {
        let mut net = pair(10);
        assert_eq!(net.run(Instant::from_micros(10_500), |_, _| false), Stop::Deadline);
        assert_eq!((net.now().as_micros(), net.nodes()[1].got.len()), (10_500, 1));
        assert_eq!(net.run(Instant::from_micros(u64::MAX), |_, n| n[1].got.len() == 2), Stop::Done);
        assert_eq!(net.now().as_micros(), 11_000);
    }

    #[test]
    fn a_node_in_an_endless_loop_is_named() {
        let mut net = pair(10);
        net.node_mut(1).eager = true;
        assert_eq!(net.run(Instant::from_micros(u64::MAX), |_, _| false), Stop::Stuck);
    }

    #[test]
    fn addresses_name_nodes() {
        for node in [0, 1, 255, 256, 65_535] {
            assert_eq!(node_at(address_of(node)), Some(node));
        }
        assert_eq!(node_at("10.1.0.0:4433".parse().unwrap()), None);
    }
}
