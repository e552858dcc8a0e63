//! Two honest endpoints and a network that does what the fuzzer says to each datagram: whatever it does, what arrives
//! is what was sent, and once it behaves everything arrives.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use timebase::Instant;

use super::Input;
use super::world::{self, CIDS, CONTEXT, End};
use crate::{Arrival, Config, Ecn};

/// How long the two may take once the network behaves: probes were doubled up to 2^10 times before.
const PATIENCE: Duration = Duration::from_secs(12 * 3600);
/// Turns of the loop. A turn moves a datagram or the clock.
const TURNS: usize = 400_000;
/// Datagrams of a connection that are changed on the way; the decisions for the rest are shared.
const DECISIONS: usize = 4096;

type Flying = BTreeMap<(Instant, u64), (usize, SocketAddr, Ecn, Vec<u8>)>;

struct World {
    ends: [End; 2],
    now: Instant,
    flying: Flying,
    sequence: u64,
    /// What each end told the other.
    messages: [VecDeque<Vec<u8>>; 2],
    blocks: [Vec<(u64, u32)>; 2],
    /// Where each end's datagrams come from at present.
    from: [u8; 2],
    corrupting: bool,
    decided: usize,
}

impl World {
    /// Sends a datagram through the network.
    fn send(&mut self, input: &mut Input<'_>, from: usize, ecn: Ecn, mut datagram: Vec<u8>) {
        let mut delay = Duration::from_millis(10);
        let mut ecn = ecn;
        let mut copies = 1;
        self.decided += 1;
        if self.decided < DECISIONS {
            let fate = input.u8();
            match fate % 16 {
                0 | 9..16 => {}
                1..4 => copies = 0,
                4 => copies = 2 + usize::from(fate / 64),
                5 | 6 => delay = input.time(),
                7 if self.corrupting => {
                    let at = usize::from(input.u16()) % datagram.len();
                    datagram[at] ^= 1 << (fate / 16 % 8);
                }
                7 => {}
                _ => match fate / 16 % 4 {
                    0 => ecn = Ecn::Ce,
                    1 => ecn = Ecn::from_bits(fate / 64),
                    _ => {
                        self.from[from] =
                            if fate & 0x80 == 0 { input.u8() & 0xfc | from as u8 } else { input.u8() }
                    }
                },
            }
        }
        for copy in 0..copies {
            self.sequence += 1;
            let at = self.now + delay * (copy as u32 + 1);
            let source = world::address(self.from[from]);
            self.flying.insert((at, self.sequence), (1 - from, source, ecn, datagram.clone()));
        }
    }

    fn send_all(&mut self, input: &mut Input<'_>) {
        for i in 0..2 {
            for (_, ecn, datagram) in self.ends[i].drain(self.now) {
                self.send(input, i, ecn, datagram);
            }
        }
    }

    /// Moves the clock to whatever is next. False when nobody waits for anything.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        let due = self.ends.iter_mut().filter_map(|e| e.endpoint.poll_timeout()).min();
        let first = self.flying.first_key_value().map(|(k, _)| k.0);
        // So far away lies nothing but the idle timeout.
        let next = due.into_iter().chain(first).min().filter(|t| *t < self.now + PATIENCE);
        let Some(next) = next else { return false };
        self.now = self.now.max(next);
        while let Some(entry) = self.flying.first_entry()
            && entry.key().0 <= self.now
        {
            let ((at, _), (to, remote, ecn, mut datagram)) = entry.remove_entry();
            let end = &mut self.ends[to];
            end.endpoint.handle_datagram(
                self.now,
                Arrival { remote, at, ecn },
                &mut datagram,
                &mut end.blocks,
            );
            // One at a time or several before the answers, as sockets give them.
            if input.u8() & 7 == 0 {
                self.send_all(input);
            }
        }
        for i in 0..2 {
            for (_, ecn, datagram) in self.ends[i].timeout(self.now) {
                self.send(input, i, ecn, datagram);
            }
        }
        self.send_all(input);
        true
    }

    /// What the applications do.
    fn act(&mut self, input: &mut Input<'_>) {
        let op = input.u8();
        let i = usize::from(op >> 7);
        let Some(handle) = self.ends[i].handle else { return };
        let Some(c) = self.ends[i].endpoint.connection_mut(handle) else { return };
        if !c.is_established() {
            return;
        }
        match op % 8 {
            0..3 => {
                let message = vec![op; usize::from(input.u16()) % 5100];
                if c.send_message(&message).is_ok() {
                    self.messages[i].push_back(message);
                }
            }
            3 | 4 => {
                let tag = self.blocks[i].len() as u64;
                // Tags of both kinds on the wire.
                let tag = if op & 0x40 == 0 { tag } else { u64::MAX - 16 * tag };
                let len = 1 + u32::from(input.u16());
                if c.send_block(tag, len, op / 16 % 4).is_ok() {
                    self.blocks[i].push((tag, len));
                }
            }
            5 => c.set_receive_window(4000 + u32::from(input.u16())),
            6 => c.hold_messages(op & 0x40 == 0),
            _ => c.set_rate_limit((op & 0x40 == 0).then_some(2000 + input.number() % (1 << 32))),
        }
    }

    fn is_done(&self) -> bool {
        (0..2).all(|i| {
            let (here, there) = (&self.ends[i], &self.ends[1 - i]);
            here.sent.len() + here.failed.len() >= self.blocks[i].len()
                && there.messages.len() >= self.messages[i].len()
        })
    }

    /// Where things stand, for a finding.
    fn tell(&mut self) -> String {
        let mut out = format!("{:?}, {} under way", self.now, self.flying.len());
        for i in 0..2 {
            let connection = self.ends[i].endpoint.tell();
            let (here, there) = (&self.ends[i], &self.ends[1 - i]);
            out += &format!(
                "\nend {i}: {} of {} messages and {:?} of {:?} blocks arrived, closed {:?}, {connection}",
                there.messages.len(),
                self.messages[i].len(),
                here.sent,
                self.blocks[i],
                here.closed,
            );
        }
        out
    }

    fn check(&self) {
        for i in 0..2 {
            let (here, there) = (&self.ends[i], &self.ends[1 - i]);
            for (n, (a, b)) in there.messages.iter().zip(&self.messages[i]).enumerate() {
                assert!(
                    a == b,
                    "message {n} of end {i}: {} bytes {:?}, sent {} {:?}",
                    a.len(),
                    a.first(),
                    b.len(),
                    b.first()
                );
            }
            assert!(there.messages.len() <= self.messages[i].len());
            for tag in &here.sent {
                let len = self.blocks[i].iter().find(|b| b.0 == *tag).expect("ours").1;
                assert!(there.blocks.is_whole(*tag, len), "block {tag:x} told as arrived");
            }
            for tag in &here.failed {
                assert!(tag % 16 == 15, "block {tag:x} could be read");
            }
        }
    }
}

/// Two endpoints over a network of the fuzzer's.
pub fn link(data: &[u8]) {
    let mut input = Input::new(data);
    let patient =
        Config { idle_timeout: Duration::from_secs(24 * 3600), keep_alive: None, ..Config::default() };
    let mut config = || {
        let small = world::config(&mut input);
        Config { idle_timeout: patient.idle_timeout, keep_alive: None, ..small }
    };
    let configs = [config(), config()];
    let now = Instant::from_micros(1_000_000);
    let flags = input.u8();
    let end = |i: usize, segments: u8| {
        let mut end = End::new(world::endpoint(&configs[i], i as u8), usize::from(segments));
        end.blocks.honest = true;
        end
    };
    let mut world = World {
        ends: [end(0, 1 + flags % 16), end(1, 1 + flags / 16)],
        now,
        flying: BTreeMap::new(),
        sequence: 0,
        messages: Default::default(),
        blocks: Default::default(),
        from: [0, 1],
        corrupting: true,
        decided: 0,
    };
    for i in 0..2 {
        let e = world::established(&configs[1 - i], i, input.time());
        let handle = world.ends[i].endpoint.adopt(now, CONTEXT, e, CIDS[i], i == 0);
        world.ends[i].handle = Some(handle);
    }
    while !input.is_empty() {
        for _ in 0..input.u8() % 4 {
            world.act(&mut input);
        }
        world.send_all(&mut input);
        for _ in 0..1 + input.u8() % 16 {
            if !world.step(&mut input) {
                break;
            }
        }
        world.check();
    }
    // From here on the network behaves, and nobody holds anything back.
    let mut rest = Input::new(&[]);
    for end in &mut world.ends {
        if let Some(c) = end.handle.and_then(|h| end.endpoint.connection_mut(h)) {
            c.hold_messages(false);
            c.set_receive_window(1 << 20);
            c.set_rate_limit(None);
        }
    }
    world.send_all(&mut rest);
    let until = world.now + PATIENCE;
    for _ in 0..TURNS {
        if world.is_done() || world.now >= until {
            break;
        }
        if !world.step(&mut rest) {
            panic!("stuck: {}", world.tell());
        }
    }
    world.check();
    if !world.is_done() || world.ends.iter().any(|e| e.closed.is_some()) {
        panic!("not done: {}", world.tell());
    }
}
