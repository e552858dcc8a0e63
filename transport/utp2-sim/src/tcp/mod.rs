//! A TCP with CUBIC, small and fast, as a competitor for flows of other protocols.
//!
//! It is TCP in what matters for sharing a path: window and recovery (RFC 9438, 5681, 6675, RACK's test for
//! lost retransmissions), delayed and selective acknowledgements, retransmission timer (RFC 6298), ECN
//! (RFC 3168), sizes on the wire (1448 bytes of data in a packet of 1500). Bytes are not carried, only
//! segment numbers; receive windows never limit; there is neither HyStart nor pacing nor a tail loss probe.

mod cubic;
mod scoreboard;

use core::time::Duration;
use std::collections::VecDeque;
use std::net::SocketAddr;

use timebase::Instant;
use utp2::{Arrival, Ecn};

use crate::network::{Node, Transmission};
use crate::pattern::ENDLESS;
use crate::progress::{Counters, Load, Progress};
use cubic::Cubic;
use scoreboard::Scoreboard;

/// TCP's header with timestamps is so much longer than UDP's.
const HEADER: usize = 24;
/// The datagrams of a burst handed over at once.
const BURST_MAX: u64 = 16;
/// Linux's smallest retransmission timeout and delayed acknowledgement.
const RTO_MIN: Duration = Duration::from_millis(200);
const DELAYED_ACK: Duration = Duration::from_millis(40);
/// RFC 6298: before there is a round trip time.
const RTO_FIRST: Duration = Duration::from_secs(1);
const RTO_MAX: Duration = Duration::from_secs(60);
/// Segments acknowledged one by one at first, as Linux does.
const QUICK_ACKS: u64 = 16;
/// Blocks in an acknowledgement, beside timestamps.
const SACK_BLOCKS: usize = 3;

const SYN: u8 = 1;
const SYN_ACK: u8 = 2;
const DATA: u8 = 3;
const ACK: u8 = 4;

/// Settings of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// UDP payload that takes as much room on the wire as a full segment: 1472 for an MTU of 1500.
    pub max_datagram: u16,
    /// Let the path mark instead of drop.
    pub ecn: bool,
}

/// One end of a flow.
pub enum TcpNode {
    /// The one that connects and sends.
    Sender(Box<Sender>),
    /// The one that receives.
    Receiver(Box<Receiver>),
}

impl TcpNode {
    /// The end that connects to `to` and sends.
    #[must_use]
    pub fn sender(config: TcpConfig, to: SocketAddr, load: Load) -> Self {
        let segment = u64::from(config.max_datagram) - HEADER as u64;
        Self::Sender(Box::new(Sender {
            config,
            to,
            start: load.start,
            segment,
            segments: if load.bytes == ENDLESS { u64::MAX } else { load.bytes.div_ceil(segment) },
            connected: None,
            syn_due: Some(load.start),
            board: Scoreboard::default(),
            cubic: Cubic::new(),
            recovery: None,
            reduced_at: 0,
            rto_at: None,
            backoff: 0,
            rtt: None,
            rtt_min: Duration::MAX,
            counters: Counters::default(),
        }))
    }

    /// The end that receives from `from`.
    #[must_use]
    pub fn receiver(config: TcpConfig, from: SocketAddr, load: Load) -> Self {
        Self::Receiver(Box::new(Receiver {
            to: from,
            segment: u64::from(config.max_datagram) - HEADER as u64,
            bytes: load.bytes,
            next: 0,
            early: Vec::new(),
            recent: VecDeque::new(),
            received: 0,
            duplicate: 0,
            unacknowledged: 0,
            ack_due: None,
            ack_now: false,
            syn_ack: false,
            marked: false,
            progress: Progress::new(load),
        }))
    }

    /// How the data arrived; `None` for a sender.
    #[must_use]
    pub fn progress(&self) -> Option<&Progress> {
        match self {
            Self::Sender(_) => None,
            Self::Receiver(r) => Some(&r.progress),
        }
    }

    /// Bytes that arrived again; 0 for a sender.
    #[must_use]
    pub fn duplicate(&self) -> u64 {
        match self {
            Self::Sender(_) => 0,
            Self::Receiver(r) => r.duplicate * r.segment,
        }
    }

    /// When the handshake was done; `None` for a receiver.
    #[must_use]
    pub fn connected_at(&self) -> Option<Instant> {
        match self {
            Self::Sender(s) => s.connected,
            Self::Receiver(_) => None,
        }
    }

    /// A sender's counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        match self {
            Self::Sender(s) => s.counters(),
            Self::Receiver(_) => Counters::default(),
        }
    }
}

impl Node for TcpNode {
    fn handle_datagram(&mut self, now: Instant, arrival: Arrival, datagram: &mut [u8]) {
        match self {
            Self::Sender(s) => s.handle_datagram(now, datagram),
            Self::Receiver(r) => r.handle_datagram(now, arrival, datagram),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match self {
            Self::Sender(s) => s.handle_timeout(now),
            Self::Receiver(r) => r.ack_now |= r.ack_due.is_some_and(|t| t <= now),
        }
    }

    fn poll_timeout(&mut self) -> Option<Instant> {
        match self {
            Self::Sender(s) => s.syn_due.into_iter().chain(s.rto_at).min(),
            Self::Receiver(r) => r.ack_due,
        }
    }

    fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmission> {
        match self {
            Self::Sender(s) => s.poll_transmit(now, buf),
            Self::Receiver(r) => r.poll_transmit(buf),
        }
    }
}

/// The sending end.
pub struct Sender {
    config: TcpConfig,
    to: SocketAddr,
    start: Instant,
    /// Bytes of data in a segment.
    segment: u64,
    /// Segments there are to send.
    segments: u64,
    connected: Option<Instant>,
    syn_due: Option<Instant>,
    board: Scoreboard,
    cubic: Cubic,
    /// The first segment that was not sent when the last loss was found; what is below is being recovered.
    recovery: Option<u64>,
    /// The window is not reduced again for segments below this one.
    reduced_at: u64,
    rto_at: Option<Instant>,
    backoff: u32,
    /// Smoothed round trip and its deviation.
    rtt: Option<(Duration, Duration)>,
    rtt_min: Duration,
    counters: Counters,
}

impl Sender {
    fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) {
        match datagram.first() {
            Some(&SYN_ACK) if self.connected.is_none() => {
                self.connected = Some(now);
                self.syn_due = None;
                self.on_rtt(now - self.start);
            }
            Some(&ACK) if self.connected.is_some() => self.on_ack(now, datagram),
            _ => {}
        }
    }

    fn on_ack(&mut self, now: Instant, datagram: &[u8]) {
        let Some(ack) = Ack::parse(datagram) else { return };
        let full = self.board.in_flight() as f64 + 1.0 >= self.cubic.window().floor();
        let reordering = if self.rtt_min == Duration::MAX { Duration::ZERO } else { self.rtt_min / 4 };
        let news = self.board.on_ack(now, ack.cumulative, &ack.blocks[..ack.count], reordering);
        if let Some(rtt) = news.rtt {
            self.on_rtt(rtt);
        }
        self.counters.lost_packets += news.lost;
        let una = self.board.una();
        if self.recovery.is_some_and(|end| una >= end) {
            self.recovery = None;
        }
        let may_reduce = una >= self.reduced_at;
        if news.lost > 0 && self.recovery.is_none() {
            self.recovery = Some(self.board.next());
            if may_reduce {
                self.reduce();
            }
        } else if ack.marked && self.recovery.is_none() && may_reduce {
            self.reduce();
        }
        if news.arrived > 0 {
            self.backoff = 0;
            if self.recovery.is_none() && full {
                let rtt = self.rtt.map_or(RTO_FIRST, |r| r.0);
                self.cubic.on_ack(now, news.arrived as f64, rtt);
            }
            self.arm(now);
        }
    }

    fn reduce(&mut self) {
        self.cubic.on_congestion();
        self.reduced_at = self.board.next();
    }

    fn on_rtt(&mut self, rtt: Duration) {
        self.rtt_min = self.rtt_min.min(rtt);
        self.rtt = Some(match self.rtt {
            None => (rtt, rtt / 2),
            Some((mean, deviation)) => ((mean * 7 + rtt) / 8, (deviation * 3 + rtt.abs_diff(mean)) / 4),
        });
    }

    fn arm(&mut self, now: Instant) {
        let rto = self.rtt.map_or(RTO_FIRST, |(mean, deviation)| mean + (deviation * 4).max(RTO_MIN));
        let rto = rto.saturating_mul(1 << self.backoff.min(10)).min(RTO_MAX);
        let waiting = self.board.una() < self.board.next();
        self.rto_at = waiting.then(|| now + rto);
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.rto_at.is_some_and(|t| t <= now) {
            self.counters.probe_timeouts += 1;
            self.counters.lost_packets += self.board.on_timeout();
            if self.backoff == 0 {
                self.cubic.on_timeout();
            }
            self.reduced_at = self.board.next();
            self.recovery = None;
            self.backoff += 1;
            self.arm(now);
        }
    }

    fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmission> {
        let none = Transmission { to: self.to, len: 0, segment_size: None, ecn: Ecn::NotEct };
        if self.syn_due.is_some_and(|t| t <= now) {
            self.syn_due = Some(now + RTO_FIRST);
            buf.resize(HEADER, 0);
            buf[0] = SYN;
            return Some(Transmission { len: HEADER, ..none });
        }
        self.connected?;
        let size = usize::from(self.config.max_datagram);
        let mut count = 0;
        let window = self.cubic.window() as u64;
        while count < BURST_MAX && self.board.in_flight() < window.max(1) {
            let number = match self.board.send_again(now) {
                Some(number) => {
                    self.counters.retransmitted_bytes += self.segment;
                    number
                }
                None if self.board.next() < self.segments => self.board.send_new(now),
                None => break,
            };
            self.counters.sent_packets += 1;
            self.counters.data_bytes_sent += self.segment;
            let at = buf.len();
            buf.resize(at + size, 0);
            buf[at] = DATA;
            buf[at + 1..at + 9].copy_from_slice(&number.to_be_bytes());
            count += 1;
        }
        if count == 0 {
            return None;
        }
        if self.rto_at.is_none() {
            self.arm(now);
        }
        let ecn = if self.config.ecn { Ecn::Ect0 } else { Ecn::NotEct };
        Some(Transmission { len: buf.len(), segment_size: Some(size), ecn, ..none })
    }

    fn counters(&self) -> Counters {
        let rtt = self.rtt.map_or(Duration::ZERO, |r| r.0);
        let window = self.cubic.window() * self.segment as f64;
        let state = match (self.recovery, self.cubic.in_slow_start()) {
            (Some(_), _) => "Recovery",
            (None, true) => "SlowStart",
            (None, false) => "Avoid",
        };
        Counters {
            state: state.into(),
            rtt,
            rtt_min: if self.rtt_min == Duration::MAX { Duration::ZERO } else { self.rtt_min },
            rate: (window / rtt.as_secs_f64().max(1e-6)) as u64,
            bytes_in_flight: self.board.in_flight() * self.segment,
            ..self.counters.clone()
        }
    }
}

/// The receiving end.
pub struct Receiver {
    to: SocketAddr,
    segment: u64,
    bytes: u64,
    /// The first segment that is missing.
    next: u64,
    /// Ranges received above, sorted and disjoint.
    early: Vec<(u64, u64)>,
    /// Segments received lately, the latest first: their ranges are told first.
    recent: VecDeque<u64>,
    received: u64,
    duplicate: u64,
    /// Segments since the last acknowledgement.
    unacknowledged: u64,
    ack_due: Option<Instant>,
    ack_now: bool,
    syn_ack: bool,
    marked: bool,
    progress: Progress,
}

impl Receiver {
    fn handle_datagram(&mut self, now: Instant, arrival: Arrival, datagram: &[u8]) {
        match datagram.first() {
            Some(&SYN) => self.syn_ack = true,
            Some(&DATA) if datagram.len() >= 9 => {
                let number = u64::from_be_bytes(datagram[1..9].try_into().expect("eight bytes"));
                self.marked |= arrival.ecn == Ecn::Ce;
                self.on_segment(now, number);
            }
            _ => {}
        }
    }

    fn on_segment(&mut self, now: Instant, number: u64) {
        self.unacknowledged += 1;
        let in_order = number == self.next && self.early.is_empty();
        let is_new = if number == self.next {
            self.next += 1;
            if self.early.first().is_some_and(|r| r.0 == self.next) {
                self.next = self.early.remove(0).1;
            }
            true
        } else {
            number > self.next && self.insert(number)
        };
        if is_new {
            self.received += 1;
            self.progress.reached(now, (self.received * self.segment).min(self.bytes));
        } else {
            self.duplicate += 1;
        }
        let quick = self.received <= QUICK_ACKS || self.unacknowledged >= 2 || self.marked;
        if !in_order || quick {
            self.ack_now = true;
        } else if self.ack_due.is_none() {
            self.ack_due = Some(now + DELAYED_ACK);
        }
    }

    /// Notes a segment that came early; false if it had come before.
    fn insert(&mut self, number: u64) -> bool {
        self.recent.truncate(3 * SACK_BLOCKS);
        self.recent.push_front(number);
        let i = self.early.partition_point(|r| r.1 < number);
        match self.early.get_mut(i) {
            Some(r) if r.0 <= number && number < r.1 => return false,
            Some(r) if r.1 == number => {
                r.1 += 1;
                if self.early.get(i + 1).is_some_and(|n| n.0 == number + 1) {
                    self.early[i].1 = self.early.remove(i + 1).1;
                }
            }
            Some(r) if r.0 == number + 1 => r.0 = number,
            _ => self.early.insert(i, (number, number + 1)),
        }
        true
    }

    fn poll_transmit(&mut self, buf: &mut Vec<u8>) -> Option<Transmission> {
        if core::mem::take(&mut self.syn_ack) {
            buf.resize(HEADER, 0);
            buf[0] = SYN_ACK;
        } else if core::mem::take(&mut self.ack_now) {
            self.unacknowledged = 0;
            self.ack_due = None;
            let mut ack = Ack { cumulative: self.next, marked: self.marked, ..Ack::default() };
            self.marked = false;
            for &number in &self.recent {
                let i = self.early.partition_point(|r| r.1 <= number);
                let Some(&range) = self.early.get(i).filter(|r| r.0 <= number) else { continue };
                if ack.count < SACK_BLOCKS && !ack.blocks[..ack.count].contains(&range) {
                    ack.blocks[ack.count] = range;
                    ack.count += 1;
                }
            }
            ack.emit(buf);
        } else {
            return None;
        }
        Some(Transmission { to: self.to, len: buf.len(), segment_size: None, ecn: Ecn::NotEct })
    }
}

/// An acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ack {
    cumulative: u64,
    blocks: [(u64, u64); SACK_BLOCKS],
    count: usize,
    marked: bool,
}

impl Ack {
    /// As long as TCP's would be, less UDP's header.
    fn emit(&self, buf: &mut Vec<u8>) {
        buf.push(ACK);
        buf.extend_from_slice(&self.cumulative.to_be_bytes());
        buf.push(u8::from(self.marked));
        buf.push(self.count as u8);
        for &(start, end) in &self.blocks[..self.count] {
            // Windows are far below 2^32 segments.
            buf.extend_from_slice(&((start - self.cumulative) as u32).to_be_bytes());
            buf.extend_from_slice(&((end - self.cumulative) as u32).to_be_bytes());
        }
        let options = if self.count > 0 { 4 + 8 * self.count } else { 0 };
        buf.resize(buf.len().max(HEADER + options), 0);
    }

    fn parse(data: &[u8]) -> Option<Self> {
        let cumulative = u64::from_be_bytes(data.get(1..9)?.try_into().ok()?);
        let mut ack = Self { cumulative, marked: *data.get(9)? == 1, ..Self::default() };
        ack.count = usize::from(*data.get(10)?).min(SACK_BLOCKS);
        for (i, block) in ack.blocks[..ack.count].iter_mut().enumerate() {
            let at = 11 + 8 * i;
            let number =
                |from: usize| Some(u64::from(u32::from_be_bytes(data.get(from..from + 4)?.try_into().ok()?)));
            *block = (cumulative + number(at)?, cumulative + number(at + 4)?);
        }
        Some(ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_survive_the_wire() {
        let ack = Ack { cumulative: 7, blocks: [(9, 12), (20, 21), (0, 0)], count: 2, marked: true };
        let mut buf = Vec::new();
        ack.emit(&mut buf);
        assert_eq!((Ack::parse(&buf), buf.len()), (Some(ack), 44));
        (0..27).for_each(|n| assert!(Ack::parse(&buf[..n]).is_none_or(|a| a != ack)));
    }

    #[test]
    fn a_receiver_tells_the_latest_range_first() {
        let load =
            Load { bytes: ENDLESS, block_len: 1, start: Instant::ZERO, step: Duration::from_millis(10) };
        let config = TcpConfig { max_datagram: 1472, ecn: false };
        let TcpNode::Receiver(mut r) = TcpNode::receiver(config, crate::address_of(0), load) else {
            unreachable!("asked for a receiver");
        };
        for n in [0, 1, 3, 4, 10, 12, 7, 11, 3] {
            r.on_segment(Instant::ZERO, n);
        }
        let mut buf = Vec::new();
        r.poll_transmit(&mut buf).unwrap();
        let ack = Ack::parse(&buf).unwrap();
        assert_eq!((ack.cumulative, ack.count), (2, 3));
        assert_eq!(ack.blocks, [(3, 5), (10, 13), (7, 8)]);
        r.on_segment(Instant::ZERO, 2);
        assert_eq!((r.next, r.received, r.duplicate), (5, 9, 1));
    }
}
