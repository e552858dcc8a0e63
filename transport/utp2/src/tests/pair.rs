//! Two endpoints, a link that delays, limits, loses, reorders, repeats and corrupts, and a clock that jumps.

use core::cmp::Reverse;
use core::net::SocketAddr;
use core::time::Duration;
use std::boxed::Box;
use std::collections::{BTreeMap, BinaryHeap};
use std::vec;
use std::vec::Vec;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;

use crate::{
    Arrival, Authorizer, BlockSink, BlockSource, Config, ContextId, Ecn, Endpoint, Event, Handle, Identity,
    PeerIdentity, SourceError,
};

pub(super) const CONTEXT: ContextId = ContextId(*b"context number 1");
pub(super) const SECRET: [u8; 32] = [42; 32];

/// One direction of the link.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) delay: Duration,
    /// Up to so much more, at random: reorders.
    pub(super) jitter: Duration,
    pub(super) loss: f64,
    pub(super) duplicate: f64,
    pub(super) corrupt: f64,
    /// Bytes/s and the queue's length in bytes.
    pub(super) bottleneck: Option<(f64, f64)>,
    pub(super) busy_until: f64,
    /// What becomes of ECN marks: erased, set to CE with this probability, or left alone.
    pub(super) bleach: bool,
    pub(super) mark: f64,
    /// Larger datagrams vanish.
    pub(super) max_datagram: usize,
    pub(super) dropped: u64,
    pub(super) passed: u64,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            bottleneck: None,
            busy_until: 0.0,
            max_datagram: usize::MAX,
            bleach: false,
            mark: 0.0,
            dropped: 0,
            passed: 0,
        }
    }
}

impl Link {
    pub(super) fn with_delay(ms: u64) -> Self {
        Self { delay: Duration::from_millis(ms), ..Self::default() }
    }
}

/// Byte `offset` of block `tag`.
pub(super) fn content(tag: u64, offset: u32) -> u8 {
    let x = (tag ^ u64::from(offset / 8)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x >> (8 * (offset % 8))) as u8
}

#[derive(Default)]
pub(super) struct Blocks {
    /// Bytes seen per block, once each: (length so far by `fin`, flags).
    pub(super) got: BTreeMap<u64, (Option<u32>, Vec<bool>)>,
    pub(super) fresh: u64,
    pub(super) failing: Vec<u64>,
    /// Only count, for tests of speed.
    pub(super) count_only: bool,
}

impl BlockSource for Blocks {
    fn read(&mut self, _: Handle, tag: u64, offset: u32, buf: &mut [u8]) -> Result<(), SourceError> {
        if self.failing.contains(&tag) {
            return Err(SourceError);
        }
        if !self.count_only {
            buf.iter_mut().zip(offset..).for_each(|(b, o)| *b = content(tag, o));
        }
        Ok(())
    }
}

impl BlockSink for Blocks {
    fn write(&mut self, _: Handle, tag: u64, offset: u32, fin: bool, data: &[u8]) {
        if self.count_only {
            self.fresh += data.len() as u64;
            return;
        }
        let (len, seen) = self.got.entry(tag).or_default();
        let end = offset as usize + data.len();
        if fin {
            assert!(len.is_none_or(|l| l as usize == end), "two ends of one block");
            *len = Some(end as u32);
        }
        seen.resize(seen.len().max(end), false);
        for (i, b) in data.iter().enumerate() {
            let o = offset as usize + i;
            assert_eq!(*b, content(tag, o as u32), "block {tag:x} byte {o}");
            self.fresh += u64::from(!core::mem::replace(&mut seen[o], true));
        }
    }
}

impl Blocks {
    pub(super) fn is_whole(&self, tag: u64, len: u32) -> bool {
        self.got
            .get(&tag)
            .is_some_and(|(l, seen)| *l == Some(len) && seen.len() == len as usize && seen.iter().all(|s| *s))
    }
}

pub(super) struct Allow(pub(super) Box<dyn Fn(&PeerIdentity) -> bool + Send>);

impl Authorizer for Allow {
    fn authorize(&self, _: ContextId, peer: &PeerIdentity) -> bool {
        (self.0)(peer)
    }
}

pub(super) fn everybody() -> Box<dyn Authorizer + Send> {
    Box::new(Allow(Box::new(|_| true)))
}

pub(super) struct Node {
    pub(super) endpoint: Endpoint,
    pub(super) address: SocketAddr,
    pub(super) blocks: Blocks,
    pub(super) events: Vec<(Handle, Event)>,
    /// Where this node's packets go through.
    pub(super) link: Link,
    /// Every datagram sent, if wanted.
    pub(super) captured: Option<Vec<Vec<u8>>>,
}

impl Node {
    pub(super) fn handle(&self) -> Handle {
        self.events.first().expect("an event").0
    }

    pub(super) fn connection(&mut self) -> &mut crate::Connection {
        let handle = self.handle();
        self.endpoint.connection_mut(handle).expect("connection")
    }

    pub(super) fn messages(&self) -> Vec<Vec<u8>> {
        let message = |e: &(Handle, Event)| match &e.1 {
            Event::Message(m) => Some(m.clone()),
            _ => None,
        };
        self.events.iter().filter_map(message).collect()
    }

    pub(super) fn count(&self, event: fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|e| event(&e.1)).count()
    }
}

/// A datagram under way: when it arrives, a number to keep the order, to which node, from where and to which address (any
/// of the node's, if none is given), and its ECN bits.
type Flying = Reverse<(Instant, u64, usize, (SocketAddr, Option<SocketAddr>, u8), Vec<u8>)>;
type Tamper = Box<dyn FnMut(usize, &mut Vec<u8>) -> bool>;

pub(super) struct Pair {
    pub(super) nodes: [Node; 2],
    pub(super) now: Instant,
    flying: BinaryHeap<Flying>,
    sequence: u64,
    pub(super) random: ChaCha8Rng,
    pub(super) segments: usize,
    /// May change or drop a datagram on its way: (from node, datagram).
    pub(super) tamper: Option<Tamper>,
    pub(super) max_queue_delay: Duration,
    /// A busy machine: now and then a node does not run for up to so long; its socket holds 4 MB meanwhile.
    pub(super) stall: Duration,
    /// Datagrams that came where nobody is: address and length.
    pub(super) astray: Vec<(SocketAddr, usize)>,
    asleep_until: [Instant; 2],
    waiting: [usize; 2],
}

const SOCKET_BUFFER: usize = 4 << 20;

pub(super) fn node(config: Config, i: u8, authorizer: Box<dyn Authorizer + Send>) -> Node {
    let identity = Identity::new([i; 32], vec![i; 100]);
    let mut endpoint = Endpoint::new(config, identity, authorizer, [100 + i; 32]);
    endpoint.add_context(CONTEXT, &SECRET);
    Node {
        endpoint,
        address: SocketAddr::from(([10, 0, 0, i], 1000)),
        blocks: Blocks::default(),
        events: Vec::new(),
        link: Link::default(),
        captured: None,
    }
}

impl Pair {
    pub(super) fn new(a: Node, b: Node, seed: u64) -> Self {
        Self {
            nodes: [a, b],
            now: Instant::from_micros(1_000_000),
            flying: BinaryHeap::new(),
            sequence: 0,
            random: ChaCha8Rng::seed_from_u64(seed),
            segments: 16,
            tamper: None,
            max_queue_delay: Duration::ZERO,
            stall: Duration::ZERO,
            astray: Vec::new(),
            asleep_until: [Instant::ZERO; 2],
            waiting: [0; 2],
        }
    }

    fn is_asleep(&self, i: usize) -> bool {
        self.now < self.asleep_until[i]
    }

    /// Puts a node to sleep about every 20 ms.
    fn maybe_stall(&mut self, elapsed: Duration) {
        for i in 0..2 {
            let p = elapsed.as_secs_f64() / 0.02;
            if !self.stall.is_zero() && !self.is_asleep(i) && self.chance(p.min(1.0)) {
                let us = self.random.next_u64() % self.stall.as_micros() as u64;
                self.asleep_until[i] = self.now + Duration::from_micros(us);
                self.waiting[i] = 0;
            }
        }
    }

    pub(super) fn with(config: &Config, link: &Link, seed: u64) -> Self {
        let mut pair =
            Self::new(node(config.clone(), 1, everybody()), node(config.clone(), 2, everybody()), seed);
        pair.nodes.iter_mut().for_each(|n| n.link = link.clone());
        pair
    }

    /// Connects 0 to 1 over a link that loses nothing yet.
    pub(super) fn connected(config: &Config, link: &Link, seed: u64) -> Self {
        let mut pair = Self::with(config, &Link { delay: link.delay, ..Link::default() }, seed);
        pair.connect();
        pair.run_until(Duration::from_secs(20), |p| p.nodes.iter().all(|n| !n.events.is_empty()));
        for n in &mut pair.nodes {
            assert_eq!(n.events[0].1, Event::Connected);
            n.link = link.clone();
        }
        pair
    }

    pub(super) fn connect(&mut self) -> Handle {
        let to = self.nodes[1].address;
        self.nodes[0].endpoint.connect(self.now, to, CONTEXT).unwrap()
    }

    fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && f64::from(self.random.next_u32()) < p * 4_294_967_296.0
    }

    pub(super) fn inject(&mut self, to: usize, from: SocketAddr, datagram: Vec<u8>) {
        self.sequence += 1;
        self.flying.push(Reverse((self.now, self.sequence, to, (from, None, 0), datagram)));
    }

    fn launch(&mut self, from: usize, to: SocketAddr, mut datagram: Vec<u8>, ecn: Ecn) {
        if let Some(c) = &mut self.nodes[from].captured {
            c.push(datagram.clone());
        }
        if let Some(mut tamper) = self.tamper.take() {
            let pass = tamper(from, &mut datagram);
            self.tamper = Some(tamper);
            if !pass {
                return;
            }
        }
        let link = self.nodes[from].link.clone();
        if datagram.len() > link.max_datagram {
            return;
        }
        let now = self.now.as_micros() as f64;
        let mut at = now;
        if let Some((rate, queue)) = link.bottleneck {
            let waits = (link.busy_until - now).max(0.0);
            if waits * rate / 1e6 + datagram.len() as f64 > queue {
                self.nodes[from].link.dropped += 1;
                return;
            }
            at = link.busy_until.max(now) + datagram.len() as f64 * 1e6 / rate;
            self.nodes[from].link.busy_until = at;
            self.max_queue_delay = self.max_queue_delay.max(Duration::from_micros(waits as u64));
        }
        if self.chance(link.loss) {
            return;
        }
        self.nodes[from].link.passed += 1;
        if self.chance(link.corrupt) {
            let i = self.random.next_u32() as usize % datagram.len();
            datagram[i] ^= 1 << (self.random.next_u32() % 8);
        }
        let ecn = match ecn {
            _ if link.bleach => Ecn::NotEct,
            Ecn::Ect0 if self.chance(link.mark) => Ecn::Ce,
            as_sent => as_sent,
        };
        let copies = 1 + usize::from(self.chance(link.duplicate));
        for _ in 0..copies {
            let jitter = match link.jitter.as_micros() as u64 {
                0 => 0,
                j => self.random.next_u64() % j,
            };
            let at = Instant::from_micros(at as u64 + jitter) + link.delay;
            self.sequence += 1;
            let address = self.nodes[from].address;
            let addresses = (address, Some(to), ecn.bits());
            self.flying.push(Reverse((at, self.sequence, 1 - from, addresses, datagram.clone())));
        }
    }

    /// Lets node `i` say what it has to say.
    fn drive(&mut self, i: usize) {
        if self.is_asleep(i) {
            return;
        }
        let mut buf = Vec::new();
        loop {
            let n = &mut self.nodes[i];
            let Some(t) = n.endpoint.poll_transmit(self.now, self.segments, &mut buf, &mut n.blocks) else {
                break;
            };
            assert_eq!(t.len, buf.len());
            let size = t.segment_size.unwrap_or(t.len);
            let packets: Vec<Vec<u8>> = buf[..t.len].chunks(size).map(<[u8]>::to_vec).collect();
            assert!(packets.len() <= self.segments);
            for p in packets {
                self.launch(i, t.remote, p, t.ecn);
            }
        }
        let n = &mut self.nodes[i];
        while let Some(e) = n.endpoint.poll_event() {
            n.events.push(e);
        }
    }

    /// Runs until `done`, at most for `limit`; returns the time it took.
    #[track_caller]
    pub(super) fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Duration {
        let took = self.run(limit, &done);
        assert!(done(self), "not done after {limit:?}: {:?}", self.nodes.each_ref().map(|n| &n.endpoint));
        took
    }

    pub(super) fn run(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Duration {
        let began = self.now;
        let end = began + limit;
        let mut stuck = 0;
        loop {
            self.drive(0);
            self.drive(1);
            if done(self) {
                break;
            }
            let mut next = self.flying.peek().map(|f| f.0.0);
            for (i, n) in self.nodes.iter_mut().enumerate() {
                let asleep = self.asleep_until[i];
                let timeout = if self.now < asleep { Some(asleep) } else { n.endpoint.poll_timeout() };
                next = match (next, timeout) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
            let Some(next) = next.filter(|n| *n <= end) else {
                self.now = end;
                break;
            };
            stuck = if next > self.now { 0 } else { stuck + 1 };
            assert!(stuck < 10_000, "time stands still at {:?}", self.now);
            let elapsed = next.saturating_since(self.now);
            self.now = self.now.max(next);
            self.maybe_stall(elapsed);
            while self.flying.peek().is_some_and(|f| f.0.0 <= self.now) {
                let Some(Reverse((_, _, to, from, mut datagram))) = self.flying.pop() else { break };
                if from.1.is_some_and(|a| a != self.nodes[to].address) {
                    self.astray.push((from.1.unwrap(), datagram.len()));
                    continue;
                }
                if self.is_asleep(to) {
                    self.waiting[to] += datagram.len();
                    if self.waiting[to] <= SOCKET_BUFFER {
                        self.sequence += 1;
                        self.flying.push(Reverse((self.asleep_until[to], self.sequence, to, from, datagram)));
                    } else {
                        self.nodes[from_node(to)].link.dropped += 1;
                    }
                    continue;
                }
                let n = &mut self.nodes[to];
                let arrival = Arrival { remote: from.0, at: self.now, ecn: Ecn::from_bits(from.2) };
                n.endpoint.handle_datagram(self.now, arrival, &mut datagram, &mut n.blocks);
            }
            for i in 0..2 {
                if !self.is_asleep(i) {
                    self.nodes[i].endpoint.handle_timeout(self.now);
                }
            }
        }
        self.now.saturating_since(began)
    }
}

fn from_node(to: usize) -> usize {
    1 - to
}
