//! Parts of a connection against models too simple to be wrong, for [`crate::fuzzing`]; and a look at whether a
//! session's books agree with each other.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use timebase::Instant;

use super::blocks::{BlockQueue, BlockRef};
use super::messages::{MessageReceiver, MessageSender, PREFIX};
use super::ranges::RangeSet;
use super::received::{Received, Rhythm};
use super::replay::ReplayWindow;
use super::scoreboard::{Chunk, Fate, MAX_CHUNKS, Scoreboard, Sent};
use super::session::Session;
use super::{Connection, Phase};
use crate::Ecn;
use crate::fuzzing::Input;
use crate::wire::Reader;
use crate::wire::ack::Ack;
use crate::wire::frame::ACK;

/// A set of ranges is a set of numbers.
pub fn ranges(data: &[u8]) {
    let mut input = Input::new(data);
    let base = input.number().min(u64::MAX - 300);
    let (mut set, mut plain) = (RangeSet::default(), [false; 256]);
    while !input.is_empty() {
        let op = input.u8();
        let (a, b) = (usize::from(input.u8()), usize::from(input.u8()));
        match op % 8 {
            0..4 => {
                let to = if op % 8 == 3 { b } else { (a + b % 16).min(255) };
                let new = plain.get(a..to).map_or(0, |p| p.iter().filter(|x| !**x).count());
                assert_eq!(set.insert(base + a as u64, base + to as u64), new as u64);
                if let Some(p) = plain.get_mut(a..to) {
                    p.fill(true);
                }
            }
            4 => {
                set.remove_below(base + a as u64);
                plain[..a].fill(false);
            }
            5 => {
                let to = a + b % 16;
                let all = plain.get(a..to.min(256)).is_some_and(|p| p.iter().all(|x| *x)) && to <= 256;
                assert_eq!(set.contains(base + a as u64, base + to as u64), all);
            }
            6 => {
                // Of the first range only, as its users ask: nothing lies below `at` but what reaches it.
                set.remove_below(base + a as u64);
                plain[..a].fill(false);
                let end = (a..256).find(|n| !plain[*n]).unwrap_or(256);
                assert_eq!(set.reach(base + a as u64), base + end as u64);
            }
            _ => {
                let n = a % 4;
                let gone: Vec<_> = set.as_slice().iter().take(n).copied().collect();
                set.drop_first(n);
                for (low, high) in gone {
                    plain[(low - base) as usize..(high - base) as usize].fill(false);
                }
            }
        }
        let slice = set.as_slice();
        assert!(slice.iter().all(|r| r.0 < r.1) && slice.windows(2).all(|w| w[0].1 < w[1].0), "{slice:?}");
        let count: u64 = slice.iter().map(|r| r.1 - r.0).sum();
        assert_eq!(count, plain.iter().filter(|x| **x).count() as u64);
        assert!(slice.iter().all(|r| (r.0..r.1).all(|n| plain[(n - base) as usize])));
    }
}

/// Every number passes once; what is too old to tell does not pass.
pub fn replay(data: &[u8]) {
    let mut input = Input::new(data);
    let size = 64 * (1 + u32::from(input.u8()) % 8);
    let mut window = ReplayWindow::new(size - u32::from(input.u8()) % 64);
    let (mut seen, mut top) = (BTreeSet::new(), None::<u64>);
    while !input.is_empty() {
        let number = match (input.u8() % 4, top) {
            (0, _) | (_, None) => input.number() & crate::wire::VARINT_MAX,
            (1, Some(t)) => t.saturating_sub(u64::from(input.u16()) % 700),
            (2, Some(t)) => t.saturating_add(u64::from(input.u8())).min(crate::wire::VARINT_MAX),
            (_, Some(t)) => t.saturating_add(u64::from(input.u16())).min(crate::wire::VARINT_MAX),
        };
        let old = top.is_some_and(|t| number + u64::from(size) <= t);
        assert_eq!(window.is_replay(number), old || seen.contains(&number), "{number} after {top:?}");
        if !window.is_replay(number) {
            window.insert(number);
            seen.insert(number);
            top = top.max(Some(number));
        }
        assert_eq!(window.largest(), top);
    }
}

/// A packet as the model keeps it.
struct Kept {
    at: Instant,
    size: usize,
    chunks: Vec<Chunk>,
    fate: Fate,
}

/// Packets and their chunks, in and out of flight; and lost ones that outlive their turn.
pub fn scoreboard(data: &[u8]) {
    let mut input = Input::new(data);
    let mut board = Scoreboard::default();
    let (mut model, mut ghosts) = (VecDeque::<Kept>::new(), BTreeMap::<u64, Kept>::new());
    let (mut base, mut now) = (0u64, Instant::from_micros(input.number() >> 8));
    let chunks_of = |board: &Scoreboard, sent: &Sent| {
        (0..=MAX_CHUNKS).map_while(|c| board.chunk(sent, c)).collect::<Vec<_>>()
    };
    while !input.is_empty() {
        // No packet is looked at an hour after it was sent.
        now += input.time() / 64;
        match input.u8() % 8 {
            0..3 => {
                let fates = [Fate::Outstanding, Fate::Quiet, Fate::Outstanding, Fate::Skipped];
                let fate = fates[usize::from(input.u8() % 4)];
                let count = if fate == Fate::Outstanding { input.u8() % (MAX_CHUNKS + 1) } else { 0 };
                let number = base + model.len() as u64;
                let chunk = |i| Chunk::Message { offset: number * 32 + u64::from(i), len: 1 };
                let chunks: Vec<_> = (0..count).map(chunk).collect();
                chunks.iter().for_each(|c| board.push_chunk(*c));
                let size = usize::from(input.u16());
                board.push(now, size, count, fate, 0);
                model.push_back(Kept { at: now, size, chunks, fate });
            }
            3..5 => {
                let i = usize::from(input.u16());
                let near = base.saturating_sub(3) + i as u64 % (model.len() as u64 + 6);
                let number = if i < 600 { near } else { input.number() };
                let fate = [Fate::Acked, Fate::Lost][usize::from(input.u8() % 2)];
                let known = number.checked_sub(base).and_then(|i| model.get_mut(usize::try_from(i).ok()?));
                assert_eq!(board.get(number).map(|b| b.fate), known.as_ref().map(|k| k.fate));
                board.settle(number, fate);
                if let Some(k) = known {
                    k.fate = fate;
                }
            }
            5 => {
                let low = base.saturating_sub(u64::from(input.u8()));
                let high = low.saturating_add(u64::from(input.u8()));
                let first = ghosts.range(low..=high).map(|g| *g.0).next();
                let taken = board.take_ghost(low, high);
                assert_eq!(taken.is_some(), first.is_some());
                if let (Some((number, sent)), Some(ghost)) = (taken, first.and_then(|n| ghosts.remove(&n))) {
                    assert_eq!(Some(number), first);
                    assert_eq!(
                        (sent.at, usize::from(sent.size), sent.fate),
                        (ghost.at, ghost.size, Fate::Lost)
                    );
                    assert_eq!(chunks_of(&board, &sent), ghost.chunks);
                }
            }
            _ => {
                let limit = now - input.time() / 64;
                board.trim(limit);
                while model.front().is_some_and(|f| f.fate != Fate::Outstanding) {
                    let kept = model.pop_front().expect("the front");
                    if kept.fate == Fate::Lost && kept.at >= limit {
                        ghosts.insert(base, kept);
                    }
                    base += 1;
                }
                ghosts.retain(|_, g| g.at >= limit);
            }
        }
        assert_eq!((board.base(), board.len()), (base, model.len()));
        assert_eq!(board.next_number(), base + model.len() as u64);
        let flying = model.iter().filter(|m| m.fate == Fate::Outstanding);
        assert_eq!(board.in_flight_packets(), flying.clone().count());
        assert_eq!(board.in_flight_bytes(), flying.map(|m| m.size as u64).sum::<u64>());
    }
    for (i, kept) in model.iter().enumerate() {
        let sent = board.get(base + i as u64).expect("kept");
        assert_eq!((sent.at, usize::from(sent.size), sent.fate), (kept.at, kept.size, kept.fate));
        assert_eq!(chunks_of(&board, &sent), kept.chunks);
    }
}

/// What is acknowledged is what came, whatever the peer acknowledges in turn.
pub fn received(data: &[u8]) {
    let mut input = Input::new(data);
    let max = 16 + usize::from(input.u8()) % 64;
    let mut received = Received::new(max);
    let (mut came, mut now, mut number) = (BTreeSet::new(), Instant::ZERO, 0);
    while !input.is_empty() {
        now += input.time();
        match input.u8() % 4 {
            0 | 1 => {
                let n = if input.flag() {
                    input.number() & crate::wire::VARINT_MAX
                } else {
                    u64::from(input.u8())
                };
                // The replay window lets each pass once.
                if came.insert(n) {
                    received.insert(n, now, Ecn::from_bits(input.u8()));
                    let bytes = usize::from(input.u16());
                    let rhythm = Rhythm::clamped(input.number(), u64::from(input.u8()));
                    let (window, room) = (u64::from(input.u32()), usize::from(input.u16()));
                    let urgent = input.flag().then_some(now);
                    received.elicit(now, bytes, rhythm, window, room, urgent);
                    assert!(received.due().is_some());
                }
            }
            2 => {
                let mut out = Vec::new();
                let room = usize::from(input.u16()) % 1500;
                if received.emit(&mut out, room, number, now) {
                    number += 1;
                    assert!(out.len() <= room && out[0] & !3 == ACK && received.due().is_none());
                    let mut r = Reader::new(&out[1..]);
                    let ack = Ack::parse(out[0], &mut r).expect("what was emitted");
                    assert!(r.is_empty());
                    assert_eq!(Some(&ack.largest), came.last());
                    for (low, high) in ack.ranges() {
                        assert_eq!(came.range(low..=high).count() as u64, high - low + 1, "{low}..={high}");
                    }
                    // One may be cut in two where bits end.
                    assert!(ack.ranges().count() <= max + 1);
                } else {
                    assert!(out.is_empty());
                }
            }
            _ => {
                let (a, b) = (u64::from(input.u8()), u64::from(input.u8()));
                if let Some(n) = received.pending_within(a.min(b), a.max(b)) {
                    assert!((a.min(b)..=a.max(b)).contains(&n));
                    received.on_ack_of(n);
                }
            }
        }
    }
}

/// A stream of messages over pieces that come in any order, again, and never come; then the same from a peer that
/// does not play by the rules.
pub fn messages(data: &[u8]) {
    let mut input = Input::new(data);
    let hostile = input.flag();
    let capacity = 64 + usize::from(input.u16()) % 2048;
    let max_message = 1 + usize::from(input.u16()) % (capacity - PREFIX);
    let mut receiver = MessageReceiver::new(capacity, max_message);
    if hostile {
        while !input.is_empty() {
            let offset = input.number() & crate::wire::VARINT_MAX;
            let len = usize::from(input.u8());
            let bytes = input.bytes(len).to_vec();
            if receiver.write(offset, &bytes).is_err() {
                return;
            }
            loop {
                match receiver.read() {
                    Ok(Some(m)) => {
                        assert!(m.len() <= max_message);
                        if receiver.on_taken(m.len()) {
                            receiver.tell_limit();
                        }
                    }
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
        }
        return;
    }
    let mut sender = MessageSender::new(capacity, capacity as u64);
    let (mut sent, mut got) = (VecDeque::new(), 0usize);
    let mut flying: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut step = |input: &mut Input<'_>, drain: bool| {
        let op = if drain { 2 + input.u8() % 2 } else { input.u8() % 6 };
        match op {
            0 | 1 => {
                let message = vec![sent.len() as u8; usize::from(input.u16()) % (max_message + 1)];
                if sender.push(&message) {
                    sent.push_back(message);
                }
            }
            2 => {
                if let Some((offset, len)) = sender.peek() {
                    // Not so short that an honest sender would leave more holes than are allowed.
                    let mut piece = vec![0; len.min(64 + usize::from(input.u8()) * 5)];
                    sender.copy(offset, &mut piece);
                    sender.advance(piece.len());
                    flying.push((offset, piece));
                }
            }
            _ if !flying.is_empty() => {
                let i = usize::from(input.u8()) % flying.len();
                let (offset, piece) = flying[i].clone();
                if op == 4 && !drain {
                    // Lost, and read again for sending it anew, in two pieces where it was one.
                    if let Some((offset, len)) = sender.wanted(offset, piece.len()) {
                        let mut again = vec![0; len];
                        sender.copy(offset, &mut again);
                        let cut = 64.max(usize::from(input.u8()) * 5);
                        if cut < len {
                            flying.push((offset + cut as u64, again.split_off(cut)));
                        }
                        // The first sending may yet arrive, too.
                        flying.push((offset, again));
                    }
                    return flying.len();
                }
                receiver.write(offset, &piece).expect("within the limit");
                if op == 3 {
                    sender.on_acked(offset, piece.len());
                    flying.swap_remove(i);
                }
                while let Some(m) = receiver.read().expect("honest") {
                    assert_eq!(Some(&m), sent.get(got), "message {got}");
                    got += 1;
                    if receiver.on_taken(m.len()) {
                        sender.raise_limit(receiver.tell_limit());
                    }
                }
            }
            _ => {}
        }
        assert!(sender.buffered() <= capacity);
        flying.len()
    };
    let mut left = 0;
    while !input.is_empty() {
        left = step(&mut input, false);
    }
    // Every other step delivers a piece, those between send one; a message is at least its length.
    for i in 0..4 * left + 4 * capacity {
        step(&mut Input::new(&[i as u8 & 1, 255]), true);
    }
    assert_eq!((got, sender.buffered()), (sent.len(), 0), "everything arrives in the end");
}

/// Blocks of a sender: every byte sent, and acknowledged once.
pub fn blocks(data: &[u8]) {
    let mut input = Input::new(data);
    let mut queue = BlockQueue::default();
    let mut model: BTreeMap<u64, (u32, u32, Vec<bool>)> = BTreeMap::new();
    let mut pieces: Vec<(u64, BlockRef, u32, u32, bool)> = Vec::new();
    while !input.is_empty() {
        match input.u8() % 8 {
            0 | 1 => {
                let tag = u64::from(input.u8() % 16);
                if !queue.contains(tag) {
                    let len = 1 + u32::from(input.u8());
                    queue.push(tag, len, input.u8());
                    model.insert(tag, (len, 0, vec![false; len as usize]));
                    // The same tag may have been there before: its old pieces are nobody's.
                    pieces.iter_mut().filter(|p| p.0 == tag).for_each(|p| p.4 = false);
                }
            }
            2 | 3 => {
                if let Some(piece) = queue.peek() {
                    let m = model.get_mut(&piece.tag).expect("queued");
                    assert_eq!((piece.offset, piece.left), (m.1, m.0 - m.1));
                    let len = (1 + u32::from(input.u8() % 64)).min(piece.left);
                    queue.advance(&piece, len);
                    m.1 += len;
                    pieces.push((piece.tag, piece.block, piece.offset, len, true));
                } else {
                    assert!(model.values().all(|m| m.1 == m.0));
                }
            }
            4 => {
                let tag = u64::from(input.u8() % 16);
                assert_eq!(queue.remove(tag), model.remove(&tag).is_some());
                pieces.iter_mut().filter(|p| p.0 == tag).for_each(|p| p.4 = false);
            }
            _ if !pieces.is_empty() => {
                let (tag, block, offset, len, live) = pieces[usize::from(input.u8()) % pieces.len()];
                let wanted = live
                    && model
                        .get(&tag)
                        .is_some_and(|m| !m.2[offset as usize..(offset + len) as usize].iter().all(|x| *x));
                assert_eq!(queue.wanted(block, offset, len).is_some(), wanted);
                queue.on_acked(block, offset, len);
                if live && let Some(m) = model.get_mut(&tag) {
                    m.2[offset as usize..(offset + len) as usize].fill(true);
                    if m.2.iter().all(|x| *x) {
                        model.remove(&tag);
                        assert_eq!(queue.pop_done(), Some(tag));
                    }
                }
            }
            _ => {}
        }
        assert_eq!(queue.pop_done(), None);
        assert_eq!(queue.len(), model.len());
        assert_eq!(queue.has_unsent(), model.values().any(|m| m.1 < m.0));
    }
}

impl Connection {
    /// A connection as after a handshake.
    pub(crate) fn adopted(
        handle: crate::Handle,
        context: crate::ContextId,
        initiator: bool,
        session: alloc::boxed::Box<Session>,
    ) -> Self {
        let remote = session.path.remote();
        let mut this = Self::new(handle, context, remote, Phase::Dead, initiator);
        this.establish(session);
        this
    }

    /// How it stands, for a finding.
    pub(crate) fn tell(&self) -> String {
        match &self.phase {
            Phase::Established(s) | Phase::Confirming { session: s, .. } => {
                let control = (s.tell_window, s.ping, s.response, s.probes, s.pacing);
                let lost = s.lost_chunks.len();
                let more = (s.blocks.has_unsent(), s.messages_out.peek(), s.peer_window, s.path.allowance());
                format!("waits: {}; control {control:?}, lost {lost}, to send {more:?}, {s:?}", s.waits())
            }
            other => format!("{other:?}"),
        }
    }

    /// What must hold of a connection at any time.
    pub(crate) fn check(&self) {
        match &self.phase {
            Phase::Established(s) | Phase::Confirming { session: s, .. } => s.check(),
            _ => {}
        }
    }
}

impl Session {
    /// Whether the books agree, and stay within the limits.
    fn check(&self) {
        let numbers = self.sent.base()..self.sent.next_number();
        assert!(numbers.clone().count() == self.sent.len());
        let all = numbers.filter_map(|n| self.sent.get(n));
        let flying = all.filter(|s| s.fate == Fate::Outstanding);
        assert_eq!(self.sent.in_flight_packets(), flying.clone().count());
        assert_eq!(self.sent.in_flight_bytes(), flying.map(|s| u64::from(s.size)).sum::<u64>());
        let records = self.max_in_flight + self.max_in_flight / 2;
        assert!(
            self.sent.len() <= records + super::send::SETTLED_ALLOWANCE + 2,
            "{} records",
            self.sent.len()
        );
        assert!(self.blocks.len() <= self.max_blocks);
        let pieces = self.lost_chunks.len() + self.lost_messages.len();
        assert!(pieces <= (records + 64) * usize::from(MAX_CHUNKS), "{pieces} pieces");
    }
}
