//! Nodes joined by links, and the loop that moves virtual time from one event to the next.
//!
//! Any protocol that takes datagrams and time in and gives datagrams and deadlines out can be a
//! [`Node`]; [`crate::flow`] makes one of `utp2::Endpoint`. Links are shared by the routes that name them,
//! so two senders meet in one bottleneck, and a route may go through several. Nothing here asks for the
//! time, and the order of everything is decided by the input and the seeds.

use core::time::Duration;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use timebase::Instant;
use utp2::{Arrival, Ecn};

use crate::link::{Link, LinkConfig, Packet, Pool};

/// A run that makes this many steps without time moving on is stuck in a loop.
const STEPS_PER_INSTANT_MAX: u32 = 100_000;

/// The port of a node that has not changed it.
const PORT: u16 = 4433;

/// One transmission of a node: `len` bytes at the front of the buffer, cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmission {
    /// Where it goes, an address given by [`address_of`] or that of a datagram received.
    pub to: SocketAddr,
    /// Bytes in the buffer.
    pub len: usize,
    /// The size of each datagram but the last; `None` if it is a single one.
    pub segment_size: Option<usize>,
    /// The mark of each datagram.
    pub ecn: Ecn,
}

/// A protocol endpoint and its application, driven by [`Network`].
///
/// The drive order is that of the sans-IO cores: datagrams and due timeouts in, then
/// [`Node::poll_transmit`] until it answers `None`, then [`Node::poll_timeout`], whose answer holds until
/// the next of these calls.
pub trait Node {
    /// A datagram has arrived.
    fn handle_datagram(&mut self, now: Instant, arrival: Arrival, datagram: &mut [u8]);
    /// The time given by [`Node::poll_timeout`] has come.
    fn handle_timeout(&mut self, now: Instant);
    /// When the node wants to be called next, or `None` to wait for datagrams alone.
    fn poll_timeout(&mut self) -> Option<Instant>;
    /// The next transmission, written to `buf` (which is empty), if there is one now.
    fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmission>;
}

/// The first address of the node with this index (below 2^16).
#[must_use]
pub fn address_of(node: usize) -> SocketAddr {
    let [hi, lo] = u16::try_from(node).expect("a network has fewer than 2^16 nodes").to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, hi, lo)), PORT)
}

/// The node that has or had this address.
fn node_at(addr: SocketAddr) -> Option<usize> {
    match addr.ip() {
        IpAddr::V4(ip) if addr.port() >= PORT && ip.octets()[0] == 10 => {
            Some(usize::from(u16::from_be_bytes([ip.octets()[2], ip.octets()[3]])))
        }
        _ => None,
    }
}

/// What of a node's address becomes another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// The port: a NAT on the way forgot the old one.
    Port,
    /// The IP address: another network.
    Address,
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

/// Whence a packet comes and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    from: SocketAddr,
    to: SocketAddr,
    node: u32,
    route: u32,
    /// How many links of the route are behind it.
    hop: u32,
}

/// What the network knows of a node.
struct Place {
    address: SocketAddr,
    timeout: Option<Instant>,
    touched: bool,
    /// Index of the route to each other node.
    routes: Vec<Option<u32>>,
}

/// Nodes, links and what is under way between them.
pub struct Network<N> {
    now: Instant,
    nodes: Vec<N>,
    places: Vec<Place>,
    links: Vec<Link<Label>>,
    routes: Vec<Vec<usize>>,
    pool: Pool,
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
            places: Vec::new(),
            links: Vec::new(),
            routes: Vec::new(),
            pool: Pool::default(),
            buf: Vec::new(),
        }
    }

    /// Adds a node; its address is [`address_of`] the index given back.
    pub fn add_node(&mut self, node: N) -> usize {
        let index = self.nodes.len();
        self.nodes.push(node);
        self.places.push(Place {
            address: address_of(index),
            timeout: None,
            touched: true,
            routes: Vec::new(),
        });
        index
    }

    /// Adds a link and gives its index. `seed` decides its chances, its timeline counts in steps of `step`.
    pub fn add_link(&mut self, config: LinkConfig, seed: [u8; 32], step: Duration) -> usize {
        self.links.push(Link::new(config, seed).with_timeline(step));
        self.links.len() - 1
    }

    /// Lets datagrams from one node to another take these links, one after the other. Without a route they
    /// vanish.
    ///
    /// # Panics
    /// If there is no such node, or no link is named.
    pub fn add_route(&mut self, from: usize, to: usize, links: &[usize]) {
        assert!(!links.is_empty() && links.iter().all(|&l| l < self.links.len()), "a route has links");
        let routes = &mut self.places[from].routes;
        if routes.len() <= to {
            routes.resize(to + 1, None);
        }
        routes[to] = Some(u32::try_from(self.routes.len()).expect("few routes"));
        self.routes.push(links.to_vec());
    }

    /// Gives a node another address from now on. Its datagrams come from there, and what is sent to the old
    /// one, or under way to it, vanishes.
    ///
    /// # Panics
    /// If there is no such node, or it moved more than 200 times.
    pub fn move_node(&mut self, node: usize, what: Move) {
        let address = &mut self.places[node].address;
        match (what, address.ip()) {
            (Move::Address, IpAddr::V4(ip)) => {
                let [a, network, c, d] = ip.octets();
                assert!(network < 200, "a node moves seldom");
                address.set_ip(IpAddr::V4(Ipv4Addr::new(a, network + 1, c, d)));
            }
            _ => address.set_port(address.port() + 1),
        }
    }

    /// The present address of a node.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn address(&self, node: usize) -> SocketAddr {
        self.places[node].address
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
        self.places[node].touched = true;
        &mut self.nodes[node]
    }

    /// The links, by index.
    #[must_use]
    pub fn links(&self) -> &[Link<Label>] {
        &self.links
    }

    /// Moves time on until `done` says so or `deadline` passes. Ends at the time of the last event, or at
    /// `deadline`, so that runs can follow each other with changes between them.
    pub fn run(&mut self, deadline: Instant, mut done: impl FnMut(Instant, &[N]) -> bool) -> Stop {
        let mut steps = 0;
        loop {
            for node in 0..self.nodes.len() {
                if core::mem::take(&mut self.places[node].touched) {
                    self.transmit(node);
                    self.places[node].timeout = self.nodes[node].poll_timeout();
                }
            }
            if done(self.now, &self.nodes) {
                return Stop::Done;
            }
            let timeouts = self.places.iter().filter_map(|p| p.timeout);
            let Some(next) = timeouts.chain(self.links.iter().filter_map(Link::next_event)).min() else {
                return Stop::Quiet;
            };
            if next > deadline {
                self.now = self.now.max(deadline);
                return Stop::Deadline;
            }
            steps = if next > self.now { 0 } else { steps + 1 };
            if steps > STEPS_PER_INSTANT_MAX {
                return Stop::Stuck;
            }
            self.now = self.now.max(next);
            self.deliver();
            for (node, place) in self.nodes.iter_mut().zip(&mut self.places) {
                if place.timeout.is_some_and(|t| t <= self.now) {
                    node.handle_timeout(self.now);
                    place.touched = true;
                }
            }
        }
    }

    fn deliver(&mut self) {
        for link in 0..self.links.len() {
            if self.links[link].next_event().is_none_or(|t| t > self.now) {
                continue;
            }
            while let Some(mut packet) = self.links[link].pop(self.now, &mut self.pool) {
                let label = &mut packet.label;
                label.hop += 1;
                let next = self.routes[label.route as usize].get(label.hop as usize);
                if let Some(&next) = next {
                    self.links[next].send(self.now, packet, &mut self.pool);
                    continue;
                }
                let place = &mut self.places[label.node as usize];
                if place.address == label.to {
                    let arrival = Arrival { remote: label.from, at: self.now, ecn: packet.ecn };
                    self.nodes[label.node as usize].handle_datagram(self.now, arrival, &mut packet.data);
                    place.touched = true;
                }
                self.pool.recycle(packet.data);
            }
        }
    }

    fn transmit(&mut self, node: usize) {
        let mut buf = core::mem::take(&mut self.buf);
        loop {
            buf.clear();
            let Some(t) = self.nodes[node].poll_transmit(self.now, &mut buf) else { break };
            let Some(to) = node_at(t.to) else { continue };
            let place = &self.places[node];
            let Some(&Some(route)) = place.routes.get(to) else { continue };
            let label = Label {
                from: place.address,
                to: t.to,
                node: u32::try_from(to).expect("few nodes"),
                route,
                hop: 0,
            };
            let link = self.routes[route as usize][0];
            for segment in buf[..t.len].chunks(t.segment_size.unwrap_or(t.len).max(1)) {
                let packet = Packet { data: self.pool.copy(segment), ecn: t.ecn, label };
                self.links[link].send(self.now, packet, &mut self.pool);
            }
        }
        self.buf = buf;
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    /// Sends `left` numbered datagrams, one a millisecond, and notes what it receives.
    struct Beeper {
        to: SocketAddr,
        left: u8,
        next: Instant,
        got: Vec<(u64, u8)>,
        eager: bool,
        last_from: Option<SocketAddr>,
    }

    impl Beeper {
        fn new(to: usize, left: u8) -> Self {
            Self {
                to: address_of(to),
                left,
                next: Instant::ZERO,
                got: Vec::new(),
                eager: false,
                last_from: None,
            }
        }
    }

    impl Node for Beeper {
        fn handle_datagram(&mut self, now: Instant, arrival: Arrival, datagram: &mut [u8]) {
            self.got.push((now.as_micros(), datagram[0]));
            self.last_from = Some(arrival.remote);
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
            Some(Transmission { to: self.to, len: 1, segment_size: None, ecn: Ecn::NotEct })
        }
    }

    fn pair(delay_ms: u64) -> Network<Beeper> {
        let mut net = Network::new();
        net.add_node(Beeper::new(1, 3));
        net.add_node(Beeper::new(0, 0));
        let config = LinkConfig::new(0, Duration::from_millis(delay_ms));
        let link = net.add_link(config, Default::default(), Duration::from_millis(10));
        net.add_route(0, 1, &[link]);
        net
    }

    #[test]
    fn datagrams_arrive_after_the_delay_in_order() {
        let mut net = pair(10);
        assert_eq!(net.run(Instant::from_micros(u64::MAX), |_, _| false), Stop::Quiet);
        assert_eq!(net.nodes()[1].got, [(10_000, 3), (11_000, 2), (12_000, 1)]);
    }

    #[test]
    fn a_route_may_go_through_several_links() {
        let mut net = pair(10);
        let config = LinkConfig::new(0, Duration::from_millis(7));
        let second = net.add_link(config, Default::default(), Duration::from_millis(10));
        net.add_route(0, 1, &[0, second, 0]);
        net.run(Instant::from_micros(u64::MAX), |_, _| false);
        assert_eq!(net.nodes()[1].got, [(27_000, 3), (28_000, 2), (29_000, 1)]);
    }

    #[test]
    fn who_moves_is_no_longer_found_at_the_old_address() {
        let mut net = pair(10);
        net.move_node(0, Move::Port);
        net.run(Instant::from_micros(10_500), |_, _| false);
        assert_eq!(net.nodes()[1].last_from, Some("10.0.0.0:4434".parse().unwrap()));
        net.move_node(1, Move::Address);
        net.run(Instant::from_micros(u64::MAX), |_, _| false);
        assert_eq!(net.nodes()[1].got, [(10_000, 3)]);
        net.node_mut(0).to = net.address(1);
        net.node_mut(0).left = 1;
        net.run(Instant::from_micros(u64::MAX), |_, _| false);
        assert_eq!(net.nodes()[1].got.len(), 2);
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
        assert_eq!(node_at("10.1.0.7:4434".parse().unwrap()), Some(7));
        assert_eq!(node_at("192.0.2.7:4433".parse().unwrap()), None);
    }
}
