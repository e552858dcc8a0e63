//! Coming back with a ticket: stored resumptions, tickets and RESUMEs of any bytes; and a resumption over a network
//! that does what the fuzzer says, from a peer that may say anything of itself.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use timebase::Instant;

use super::Input;
use super::world::{self, Blocks, CONTEXT};
use crate::crypto::kdf::Secret;
use crate::handshake::ticket::Tickets;
use crate::wire::handshake::{Resume, Resumed, emit_reset, parse_reset};
use crate::wire::header::{self, Kind};
use crate::{Arrival, Config, Ecn, Endpoint, Event, PathMemory, PeerIdentity, Resumption};

/// Any bytes as what is stored or sent of a resumption; then one that is under way.
pub fn resume(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 4 {
        0 => stored(&data[1.min(data.len())..]),
        1 => tickets(&mut input),
        _ => under_way(&mut input),
    }
}

/// What is stored comes back as it was; what is sent parses as it was emitted.
fn stored(data: &[u8]) {
    if let Some(resumption) = Resumption::from_bytes(data) {
        let again = resumption.to_bytes();
        assert!(Resumption::from_bytes(&again).as_ref() == Some(&resumption));
        assert_eq!(again.len(), data.len());
    }
    if let Ok(resume) = Resume::parse(data) {
        let mut out = vec![];
        resume.head.emit(resume.cookie, resume.ticket, &mut out);
        out.extend_from_slice(&(resume.sealed.len() as u16).to_be_bytes());
        out.extend_from_slice(resume.sealed);
        out.resize(out.len().max(Resume::SIZE), 0);
        assert_eq!(format!("{resume:?}"), format!("{:?}", Resume::parse(&out).expect("what was emitted")));
        out.clear();
        resume.head.emit_answer(&[7; 8], &mut out);
        let resumed = Resumed::parse(&out).expect("what was emitted");
        assert_eq!((resumed.source, resumed.share), (resume.head.source, resume.head.share));
    }
    if let Ok(token) = parse_reset(data) {
        let mut out = vec![];
        emit_reset(&[7; 8], &token, &mut out);
        assert_eq!(parse_reset(&out), Ok(token));
    }
}

/// Tickets of any content, sealed by the right key or another.
fn tickets(input: &mut Input<'_>) {
    let start = Instant::from_micros(input.number());
    let mut tickets =
        Tickets::new(Secret([9; 32]), (start, input.number()), input.array(), usize::from(input.u8() % 4));
    let mut kept = vec![];
    while !input.is_empty() {
        let now = start + input.time() * (1 << (input.u8() % 20));
        let peer =
            PeerIdentity { public_key: input.array(), credential: vec![7; usize::from(input.u16()) % 600] };
        let nonce = [input.u8(); 16];
        let memory = memory(input);
        let issued = tickets.issue(now, nonce, CONTEXT, &peer, &Secret([4; 32]), input.number(), memory);
        if let Some((ticket, lifetime)) = issued {
            assert!(ticket.len() <= crate::handshake::ticket::MAX_TICKET && lifetime > 0);
            kept.push((ticket, peer));
        }
        if kept.is_empty() {
            continue;
        }
        let (ticket, peer) = &kept[usize::from(input.u8()) % kept.len()];
        let mut ticket = ticket.clone();
        let flip = input.u16();
        if flip != 0 {
            let at = usize::from(flip) % ticket.len();
            ticket[at] ^= (flip >> 8) as u8;
        }
        ticket.truncate(ticket.len() - usize::from(input.u8() % 2));
        let Some(opened) = tickets.open(now, &ticket) else { continue };
        assert!(opened.peer == *peer, "only what was issued opens");
        if tickets.strike(now, &opened) {
            assert!(!tickets.strike(now, &opened), "once");
        }
    }
}

fn memory(input: &mut Input<'_>) -> Option<PathMemory> {
    input.flag().then(|| {
        let rtt_min = Duration::from_micros(u64::from(input.u32()));
        PathMemory { rate: input.number(), rtt_min, base_loss_ppm: input.u32() }
    })
}

type Flying = BTreeMap<(Instant, u64), (usize, SocketAddr, Vec<u8>)>;

struct Network {
    ends: [Endpoint; 2],
    blocks: Blocks,
    now: Instant,
    flying: Flying,
    sequence: u64,
    /// Whether a datagram was changed or made up: then the two may part.
    tampered: bool,
    connected: [usize; 2],
    closed: [usize; 2],
    early: Vec<Vec<u8>>,
    messages: Vec<Vec<u8>>,
}

impl Network {
    fn push(&mut self, after: Duration, to: usize, from: SocketAddr, datagram: Vec<u8>) {
        self.sequence += 1;
        self.flying.insert((self.now + after, self.sequence), (to, from, datagram));
    }

    /// Sends what the two have to say, each datagram as the input decides.
    fn send(&mut self, input: &mut Input<'_>) {
        let mut buf = vec![];
        for i in 0..2 {
            loop {
                while self.ends[i].poll_transmit(self.now, 1, &mut buf, &mut self.blocks).is_some() {
                    let mut datagram = buf.clone();
                    let fate = input.u8();
                    let mut after = Duration::from_millis(10);
                    match fate % 8 {
                        1 => continue,
                        2 => after = input.time().min(Duration::from_secs(3)),
                        3 => self.push(after * 2, 1 - i, world::address(i as u8), datagram.clone()),
                        4 => {
                            let at = usize::from(input.u16()) % datagram.len();
                            datagram[at] ^= input.u8();
                            self.tampered = true;
                        }
                        5 => {
                            self.tampered = true;
                            let forged = forge(input, &datagram);
                            self.push(after / 2, 1 - i, world::address(input.u8()), forged);
                        }
                        _ => {}
                    }
                    self.push(after, 1 - i, world::address(i as u8), datagram);
                }
                let Some((_, event)) = self.ends[i].poll_event() else { break };
                match event {
                    Event::Connected => self.connected[i] += 1,
                    Event::Closed(_) => self.closed[i] += 1,
                    Event::EarlyMessage(m) if i == 1 => self.early.push(m),
                    Event::Message(m) if i == 1 => self.messages.push(m),
                    _ => {}
                }
            }
            self.ends[i].check();
        }
    }

    fn step(&mut self, input: &mut Input<'_>) -> bool {
        let due = self.ends.iter_mut().filter_map(Endpoint::poll_timeout).min();
        let first = self.flying.first_key_value().map(|(k, _)| k.0);
        let Some(next) = due.into_iter().chain(first).min() else { return false };
        self.now = self.now.max(next);
        while let Some(entry) = self.flying.first_entry()
            && entry.key().0 <= self.now
        {
            let (to, remote, mut datagram) = entry.remove();
            let arrival = Arrival { remote, at: self.now, ecn: Ecn::NotEct };
            self.ends[to].handle_datagram(self.now, arrival, &mut datagram, &mut self.blocks);
        }
        self.ends.iter_mut().for_each(|e| e.handle_timeout(self.now));
        self.send(input);
        true
    }
}

/// A handshake packet that claims to be of the same connection.
fn forge(input: &mut Input<'_>, like: &[u8]) -> Vec<u8> {
    let mut cid = [0; 8];
    if let Some(c) = like.get(5..13) {
        cid.copy_from_slice(c);
    }
    if like.first().is_some_and(|b| b & 0x80 == 0) {
        cid.copy_from_slice(&like[1..9]);
    }
    let kinds = [Kind::Retry, Kind::Reply, Kind::Prove, Kind::Alert, Kind::Resumed, Kind::Reset];
    let mut out = vec![];
    header::emit_handshake(&mut out, kinds[usize::from(input.u8()) % kinds.len()], &cid);
    let len = usize::from(input.u8()) * 2;
    out.extend_from_slice(input.bytes(len));
    out
}

/// A resumption, with early messages, by a peer that tells anything of itself.
fn under_way(input: &mut Input<'_>) {
    let flags = input.u8();
    let base = world::config(input);
    let responder = Config {
        accept_early: flags & 1 == 0,
        max_early_tickets: usize::from(flags / 2 % 3),
        retry_threshold: usize::from(flags / 8 % 3),
        ..base
    };
    let initiator = world::config(input);
    let now = Instant::from_micros(1_000_000);
    let ends = [world::endpoint(&initiator, 0), world::endpoint(&responder, 1)];
    let peer = PeerIdentity { public_key: input.array(), credential: vec![1; usize::from(input.u8()) * 3] };
    let secret = Secret([input.u8(); 32]);
    let Some(ticket) = ends[1].ticket(now, CONTEXT, &peer, &secret, memory(input)) else { return };
    let mut resumption =
        Resumption { context: CONTEXT, peer, secret, ticket, lifetime: 1000, memory: memory(input) };
    let good = flags & 0x80 == 0;
    if !good {
        resumption.secret = Secret([input.u8(); 32]);
    }
    let count = usize::from(input.u8() % 4);
    let early: Vec<_> = (0..count).map(|n| vec![n as u8; usize::from(input.u8()) % 100]).collect();
    let mut network = Network {
        ends,
        blocks: Blocks::default(),
        now,
        flying: BTreeMap::new(),
        sequence: 0,
        tampered: false,
        connected: [0; 2],
        closed: [0; 2],
        early: vec![],
        messages: vec![],
    };
    let offered: Vec<&[u8]> = early.iter().map(Vec::as_slice).collect();
    if network.ends[0].connect_resumed(now, world::address(1), resumption, &offered).is_err() {
        return;
    }
    network.send(input);
    for _ in 0..200 {
        if input.is_empty() || !network.step(input) {
            break;
        }
    }
    let until = network.now + Duration::from_secs(8);
    let mut rest = Input::new(&[]);
    while network.now < until && network.step(&mut rest) {}
    // Each early message reaches an application once as such, whatever is repeated and however often.
    for m in &early {
        let same = early.iter().filter(|e| *e == m).count();
        assert!(network.early.iter().filter(|e| *e == m).count() <= same, "taken twice");
    }
    let told = network.early.len() + network.messages.len();
    // Eight good seconds are enough for all handshakes there are, unless the ten were over before.
    if !network.tampered && network.closed == [0; 2] {
        assert_eq!(network.connected[0], 1);
        assert!(told >= early.len(), "{told} of {} early messages", early.len());
        assert!(network.messages.iter().chain(&network.early).all(|m| early.contains(m)));
    }
}
