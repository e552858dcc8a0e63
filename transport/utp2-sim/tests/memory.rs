//! What a sender on a very fast, very long path and a receiver on a small device allocate, call by call, and what the
//! sender's part takes with a million packets in flight. A binary of its own: every allocation is counted.
//!
//! The network keeps nothing: a datagram is handed to the receiver at once, under the time at which it would arrive.
//! The receiver's clock runs ahead of the sender's by the way between them; what it answers waits until it is there.

use std::alloc::System;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use timebase::Instant;
use utp2::{
    Arrival, Authorizer, BlockSink, BlockSource, Config, ContextId, Ecn, Endpoint, Event, Handle, Identity,
    PeerIdentity, SourceError,
};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test at a time, as there is one allocator. Run by `cargo test`, its own threads are counted along; `cargo nextest`
/// gives each test a process.
static ALONE: Mutex<()> = Mutex::new(());

const CONTEXT: ContextId = ContextId(*b"memory is finite");
const BLOCK: u32 = 32 * 1024;

struct Anybody;

impl Authorizer for Anybody {
    fn authorize(&self, _: ContextId, _: &PeerIdentity) -> bool {
        true
    }
}

/// Blocks of nothing, and where they go.
#[derive(Default)]
struct Blocks {
    received: u64,
}

impl BlockSource for Blocks {
    fn read(&mut self, _: Handle, _: u64, _: u32, _: &mut [u8]) -> Result<(), SourceError> {
        Ok(())
    }
}

impl BlockSink for Blocks {
    fn write(&mut self, _: Handle, _: u64, _: u32, _: bool, data: &[u8]) {
        self.received += data.len() as u64;
    }
}

/// What one side's calls allocated and did not free.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    bytes: isize,
    /// The most between two calls.
    peak: isize,
    /// The most within calls, as if they freed nothing before they end.
    bound: isize,
    allocations: usize,
    took: Duration,
}

impl Account {
    fn count<T>(&mut self, f: impl FnOnce() -> T) -> T {
        let before = GLOBAL.stats();
        let began = std::time::Instant::now();
        let value = f();
        self.took += began.elapsed();
        let after = GLOBAL.stats();
        self.bytes += (after.bytes_allocated - before.bytes_allocated) as isize;
        self.bound = self.bound.max(self.bytes);
        self.bytes -= (after.bytes_deallocated - before.bytes_deallocated) as isize;
        self.peak = self.peak.max(self.bytes);
        self.allocations +=
            after.allocations + after.reallocations - before.allocations - before.reallocations;
        value
    }
}

struct Side {
    endpoint: Endpoint,
    address: SocketAddr,
    blocks: Blocks,
    conn: Option<Handle>,
    buf: Vec<u8>,
    account: Account,
}

impl Side {
    fn new(config: &Config, n: u8) -> Self {
        let mut account = Account::default();
        let endpoint = account.count(|| {
            let identity = Identity::new([n; 32], Vec::new());
            let mut endpoint = Endpoint::new(config.clone(), identity, Box::new(Anybody), [n + 10; 32]);
            endpoint.add_context(CONTEXT, &[9; 32]);
            endpoint
        });
        let address = SocketAddr::from(([10, 0, 0, n], 1));
        Self { endpoint, address, blocks: Blocks::default(), conn: None, buf: Vec::new(), account }
    }

    fn receive(&mut self, now: Instant, remote: SocketAddr, data: &mut [u8]) {
        let arrival = Arrival { remote, at: now, ecn: Ecn::NotEct };
        self.account.count(|| self.endpoint.handle_datagram(now, arrival, data, &mut self.blocks));
    }

    /// Acts on what is due, takes events, and gives the datagrams to send.
    fn drive(&mut self, now: Instant, mut send: impl FnMut(&mut [u8])) {
        self.account.count(|| {
            if self.endpoint.poll_timeout().is_some_and(|t| t <= now) {
                self.endpoint.handle_timeout(now);
            }
            while let Some((handle, event)) = self.endpoint.poll_event() {
                match event {
                    Event::Connected => self.conn = Some(handle),
                    Event::Closed(why) => panic!("closed: {why:?}"),
                    _ => {}
                }
            }
        });
        loop {
            let buf = &mut self.buf;
            let transmit = self.account.count(|| self.endpoint.poll_transmit(now, 64, buf, &mut self.blocks));
            let Some(t) = transmit else { break };
            self.buf[..t.len].chunks_mut(t.segment_size.unwrap_or(t.len)).for_each(&mut send);
        }
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.endpoint.poll_timeout()
    }
}

struct World {
    a: Side,
    b: Side,
    /// The sender's clock and the receiver's, which is ahead.
    now: Instant,
    ahead: Instant,
    rate: f64,
    delay: Duration,
    queue: f64,
    loss: f64,
    /// When the bottleneck is free, µs.
    free: f64,
    back: VecDeque<(Instant, Vec<u8>)>,
    random: ChaCha8Rng,
    next_tag: u64,
    most_queued: u64,
    feeding: bool,
}

impl World {
    fn new(sender: &Config, receiver: &Config, mbit: f64, rtt: Duration, bdp: f64, loss: f64) -> Self {
        Self::with(sender, receiver, mbit, rtt, bdp, loss, false)
    }

    fn with(
        sender: &Config,
        receiver: &Config,
        mbit: f64,
        rtt: Duration,
        bdp: f64,
        loss: f64,
        receiver_connects: bool,
    ) -> Self {
        let rate = mbit / 8.0;
        let now = Instant::from_micros(1_000_000);
        let (mut a, mut b) = (Side::new(sender, 1), Side::new(receiver, 2));
        let (first, to) = if receiver_connects { (&mut b, a.address) } else { (&mut a, b.address) };
        first.account.count(|| first.endpoint.connect(now, to, CONTEXT)).expect("it can try");
        let mut this = Self {
            a,
            b,
            now,
            ahead: now,
            rate,
            delay: rtt / 2,
            queue: rate * rtt.as_micros() as f64 * bdp,
            loss,
            free: 0.0,
            back: VecDeque::new(),
            random: ChaCha8Rng::seed_from_u64(1),
            next_tag: 0,
            most_queued: 0,
            feeding: true,
        };
        this.drive_receiver(now);
        this
    }

    fn feed(&mut self) {
        let Some(conn) = self.a.conn.filter(|_| self.feeding) else { return };
        let (a, tag, most) = (&mut self.a, &mut self.next_tag, &mut self.most_queued);
        a.account.count(|| {
            let conn = a.endpoint.connection_mut(conn).expect("it is open");
            // Those with a lost piece wait for it; the others go on.
            let stats = conn.stats();
            *most = (*most).max(stats.bytes_in_flight.max(stats.rate / 2) * 2 / u64::from(BLOCK) + 64);
            while (conn.queued_blocks() as u64) < *most && conn.send_block(*tag, BLOCK, 0).is_ok() {
                *tag += 1;
            }
        });
    }

    /// Lets the receiver act at `at`, the later of that and what it has seen.
    fn drive_receiver(&mut self, at: Instant) {
        self.ahead = self.ahead.max(at);
        let (arrives, back) = (self.ahead + self.delay, &mut self.back);
        self.b.drive(self.ahead, |datagram| back.push_back((arrives, datagram.to_vec())));
    }

    fn drive_sender(&mut self) {
        self.feed();
        let (now, delay) = (self.now, self.delay);
        let Self { a, b, rate, queue, free, random, loss, back, ahead, .. } = self;
        a.drive(now, |datagram| {
            let wire = (datagram.len() + 66) as f64;
            let waits = (*free - now.as_micros() as f64).max(0.0);
            if waits * *rate + wire > *queue {
                return;
            }
            *free = free.max(now.as_micros() as f64) + wire / *rate;
            if f64::from(random.next_u32()) < *loss * 4_294_967_296.0 {
                return;
            }
            let at = (Instant::from_micros(*free as u64) + delay).max(*ahead);
            // What the receiver has to do before.
            while let Some(due) = b.deadline().filter(|d| *d <= at) {
                *ahead = due.max(*ahead);
                let arrives = *ahead + delay;
                b.drive(*ahead, |d| back.push_back((arrives, d.to_vec())));
            }
            *ahead = at;
            b.receive(at, a_address(), datagram);
            let arrives = at + delay;
            b.drive(at, |d| back.push_back((arrives, d.to_vec())));
        });
    }

    /// Runs until `done`, at most to `end`.
    fn run(&mut self, end: Duration, done: impl Fn(&Self) -> bool) {
        let end = Instant::from_micros(1_000_000) + end;
        self.drive_sender();
        while self.now < end && !done(self) {
            let own = self.a.deadline();
            let answer = self.back.front().map(|b| b.0);
            let theirs = self.b.deadline().map(|d| d + self.delay);
            let Some(next) = [own, answer, theirs].into_iter().flatten().min() else { break };
            if theirs == Some(next) && answer != Some(next) {
                self.drive_receiver(next - self.delay);
                continue;
            }
            self.now = self.now.max(next);
            while let Some((_, mut datagram)) = self.back.pop_front_if(|b| b.0 <= self.now) {
                let from = self.b.address;
                self.a.receive(self.now, from, &mut datagram);
            }
            self.drive_sender();
        }
    }

    fn in_flight(&self) -> u64 {
        let conn = self.a.conn.and_then(|c| self.a.endpoint.connection(c));
        conn.map_or(0, |c| c.stats().bytes_in_flight)
    }

    fn sent(&self) -> u64 {
        let conn = self.a.conn.and_then(|c| self.a.endpoint.connection(c));
        conn.map_or(0, |c| c.stats().sent_packets)
    }
}

fn a_address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 1))
}

fn fast_config() -> Config {
    Config {
        max_datagram: 1472,
        receive_window: u32::MAX,
        max_queued_blocks: 1 << 16,
        max_in_flight_packets: 1 << 21,
        ..Config::default()
    }
}

/// Time this thread was on a CPU, if the system tells: what others do on the machine does not count.
fn cpu_ns() -> Option<u64> {
    std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse().ok()
}

/// Runs a sender at `mbit`, `rtt` with 1 % loss for so long, then tells of a second of it.
fn sender(mbit: f64, rtt: Duration, run_in: Duration) -> (u64, Account, f64) {
    let config = fast_config();
    let mut world = World::new(&config, &config, mbit, rtt, 0.5, 0.01);
    let mut most = 0;
    let step = rtt / 5;
    for i in 0..(run_in.as_micros() / step.as_micros()) as u32 {
        world.run(step * i, |_| false);
        most = most.max(world.in_flight());
    }
    let (before_a, before_b, sent) = (world.a.account, world.b.account, world.sent());
    let now = world.now - Instant::from_micros(1_000_000);
    let cpu = cpu_ns();
    world.run(now + rtt, |_| false);
    let cpu = cpu_ns().zip(cpu).map(|(after, before)| after - before);
    let packets = (world.sent() - sent) as f64;
    let (a, b) = (world.a.account, world.b.account);
    let allocations = (a.allocations - before_a.allocations) as f64 / packets;
    println!(
        "{mbit} Mbit/s, {rtt:?}: at most {:.1} MB in flight, {sent} packets sent, the sender's heap at most {:.1} MB; then a round trip of {packets} packets: {:.0} ns of CPU each for both sides and the simulation (by the clock {:.0} ns for the sender, {:.0} for the receiver), allocations {allocations:.4} and {:.4} each",
        most as f64 / 1e6,
        a.peak as f64 / 1e6,
        cpu.unwrap_or(0) as f64 / packets,
        (a.took - before_a.took).as_nanos() as f64 / packets,
        (b.took - before_b.took).as_nanos() as f64 / packets,
        (b.allocations - before_b.allocations) as f64 / packets,
    );
    assert!(b.allocations - before_b.allocations < packets as usize / 50);
    // What is still counted here belongs to blocks, of which there is one in 23 packets.
    assert!(allocations < 0.04, "{allocations}");
    // All is acknowledged, and what the peak took is given back.
    world.most_queued = 0;
    world.feeding = false;
    let now = world.now - Instant::from_micros(1_000_000);
    world.run(now + rtt * 6 + Duration::from_secs(1), |w| w.in_flight() == 0);
    println!("and after it {:.1} MB", world.a.account.bytes as f64 / 1e6);
    (most, world.a.account, allocations)
}

#[test]
fn a_sender_with_ten_gigabits_over_half_a_second_in_flight() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (most, account, _) = sender(10_000.0, Duration::from_millis(500), Duration::from_millis(6200));
    assert!(most > 625_000_000, "the path was not filled: {most}");
    assert!(account.peak < 64_000_000, "{}", account.peak);
    assert!(account.bytes < account.peak / 2, "{}", account.bytes);
}

#[test]
#[ignore = "measures; for people, a minute"]
fn what_a_packet_costs_with_few_and_with_a_million_in_flight() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    sender(100.0, Duration::from_millis(50), Duration::from_secs(20));
    sender(1000.0, Duration::from_millis(200), Duration::from_secs(6));
    sender(10_000.0, Duration::from_millis(900), Duration::from_secs(10));
}

/// A device that receives 200 KB with [`Config::small`]; its heap at the most, with and without the handshake.
fn small(receiver_connects: bool, loss: f64) -> (isize, isize) {
    let receiver = Config::small();
    let sender = Config { max_queued_blocks: 16, ..Config::default() };
    let rtt = Duration::from_millis(40);
    let mut world = World::with(&sender, &receiver, 10.0, rtt, 4.0, loss, receiver_connects);
    world.run(Duration::from_secs(20), |w| w.a.conn.is_some() && w.b.conn.is_some());
    assert!(world.b.conn.is_some(), "not connected");
    let (handshake, most) = (world.b.account.peak, world.b.account.bound);
    world.b.account.bound = world.b.account.bytes;
    world.run(Duration::from_secs(60), |w| w.b.blocks.received > 200_000);
    assert!(world.b.blocks.received > 200_000, "{}", world.b.blocks.received);
    let took = (world.now - Instant::from_micros(1_000_000)).as_secs_f64();
    println!(
        "small receiver, connects: {receiver_connects}, loss {loss}: heap at most {handshake} bytes between the calls of the handshake and {most} within them, {} in the transfer of {took:.1} s, {} at its end",
        world.b.account.bound, world.b.account.bytes
    );
    (handshake, world.b.account.bound)
}

/// Stack that does for the handshake and the transfer, bytes.
const STACK: usize = 64 * 1024;

#[test]
fn a_small_receiver_lives_in_32_kib() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for receiver_connects in [false, true] {
        for loss in [0.0, 0.05] {
            // Both sides and this test's own frames lie on that stack.
            let run = move || small(receiver_connects, loss);
            let thread = std::thread::Builder::new().stack_size(STACK).spawn(run).expect("a thread");
            let (handshake, transfer) = thread.join().expect("no panic");
            assert!(transfer < 32 * 1024, "{transfer}");
            assert!(handshake < 32 * 1024, "{handshake}");
        }
    }
}
