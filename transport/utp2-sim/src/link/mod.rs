//! One direction of a link: a bottleneck of a given rate with a queue before it, a propagation delay
//! behind it, and the misfortunes of real paths (loss, jitter, reordering, duplication, corruption,
//! policing, outages).
//!
//! Packets are handed in by [`Link::send`] and come out of [`Link::pop`] when they have arrived. A link
//! does its work when it is asked: all that happened since, in order. Time inside is counted in
//! picoseconds, because at 10 Gbit/s a datagram takes 1.2 µs and rounding each to whole microseconds
//! would change the rate.

mod codel;
mod config;
mod stats;

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use core::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;
use utp2::Ecn;

use codel::CoDel;
pub use config::{Change, Discipline, ETHERNET_OVERHEAD, Jitter, LinkConfig, Loss, Policer, Step};
use stats::Timeline;
pub use stats::{LinkStats, LinkStep, QueueSummary};

const PICOS_PER_MICRO: u64 = 1_000_000;

/// Bits per byte × picoseconds per second: wire bytes × this / rate is a time.
const BYTE_PICOS: u64 = 8_000_000_000_000;

/// Datagram buffers that are free to be used again.
#[derive(Debug, Default)]
pub struct Pool(Vec<Vec<u8>>);

impl Pool {
    /// A buffer with a copy of `data`.
    #[must_use]
    pub fn copy(&mut self, data: &[u8]) -> Vec<u8> {
        let mut buf = self.0.pop().unwrap_or_else(|| Vec::with_capacity(data.len().max(1500)));
        buf.clear();
        buf.extend_from_slice(data);
        buf
    }

    /// Takes back a buffer.
    pub fn recycle(&mut self, data: Vec<u8>) {
        self.0.push(data);
    }
}

/// A datagram on its way. `label` means nothing to a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet<L> {
    /// The UDP payload.
    pub data: Vec<u8>,
    /// Its mark, which the link may change.
    pub ecn: Ecn,
    /// Where it goes, or what else its owner must know.
    pub label: L,
}

struct Queued<L> {
    packet: Packet<L>,
    /// When it came, picoseconds.
    since: u64,
}

struct Arriving<L> {
    at: Instant,
    /// Breaks ties in the order of leaving the queue.
    number: u64,
    packet: Packet<L>,
}

impl<L> PartialEq for Arriving<L> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl<L> Eq for Arriving<L> {}
impl<L> PartialOrd for Arriving<L> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<L> Ord for Arriving<L> {
    /// Reversed: the heap gives the greatest, and the earliest is wanted.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// One direction of a link in motion. Two links with the same configuration, seed and input do the same.
pub struct Link<L> {
    config: LinkConfig,
    rng: ChaCha8Rng,
    /// How many steps of the schedule are done.
    steps_done: usize,
    down: bool,
    /// What the bottleneck is sending.
    serving: Option<Queued<L>>,
    /// When its last bit leaves, picoseconds since [`Instant::ZERO`].
    departs: u64,
    waiting: VecDeque<Queued<L>>,
    /// Bytes on the wire that wait, those being sent not counted.
    waiting_bytes: u64,
    codel: CoDel,
    /// What the policer's bucket holds, bytes, and when that was.
    tokens: (f64, u64),
    bad_before: bool,
    bad_behind: bool,
    /// Under way, in order of arrival.
    in_order: VecDeque<Arriving<L>>,
    /// Those that arrive before one that left earlier.
    overtaking: BinaryHeap<Arriving<L>>,
    number: u64,
    stats: LinkStats,
    timeline: Timeline,
}

impl<L: Clone> Link<L> {
    /// An idle link. `seed` decides its chances.
    #[must_use]
    pub fn new(config: LinkConfig, seed: [u8; 32]) -> Self {
        let tokens = config.policer.map_or(0.0, |p| p.burst_bytes as f64);
        Self {
            config,
            rng: ChaCha8Rng::from_seed(seed),
            steps_done: 0,
            down: false,
            serving: None,
            departs: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            codel: CoDel::default(),
            tokens: (tokens, 0),
            bad_before: false,
            bad_behind: false,
            in_order: VecDeque::new(),
            overtaking: BinaryHeap::new(),
            number: 0,
            stats: LinkStats::default(),
            timeline: Timeline::default(),
        }
    }

    /// The same, counting in steps of time as well; see [`Link::timeline`].
    #[must_use]
    pub fn with_timeline(mut self, step: Duration) -> Self {
        self.timeline = Timeline::new(step);
        self
    }

    /// What the link is like at present.
    #[must_use]
    pub fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// What the link has done so far.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        self.stats
    }

    /// What it did in each step of time; empty unless asked for by [`Link::with_timeline`].
    #[must_use]
    pub fn timeline(&self) -> &[LinkStep] {
        self.timeline.steps()
    }

    /// Its queue over a span of the timeline.
    #[must_use]
    pub fn queue_summary(&self, from: Instant, until: Instant) -> QueueSummary {
        self.timeline.summary(from, until)
    }

    /// Bytes on the wire that wait at present or are being sent.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.waiting_bytes + self.serving.as_ref().map_or(0, |q| self.wire(q.packet.data.len()))
    }

    /// Hands a packet to the link at `now`, which must not go backwards.
    pub fn send(&mut self, now: Instant, packet: Packet<L>, pool: &mut Pool) {
        let now_ps = now.as_micros().saturating_mul(PICOS_PER_MICRO);
        self.advance(now_ps, pool);
        let len = packet.data.len();
        self.stats.datagrams += 1;
        self.stats.bytes += len as u64;
        if let Some(step) = self.timeline.at(now.as_micros()) {
            step.datagrams += 1;
        }
        let wire = self.wire(len);
        if self.down {
            self.stats.down_drops += 1;
        } else if len > self.config.max_datagram {
            self.stats.too_big += 1;
        } else if self.is_lost_before() {
            self.stats.lost += 1;
        } else if self.is_policed(now_ps, wire) {
            self.stats.policed += 1;
            self.count_congestion(now_ps);
        } else if self.config.rate_bps == 0 {
            self.emit(now_ps, packet, pool);
            return;
        } else if self.serving.is_none() {
            self.serve(now_ps, Queued { packet, since: now_ps });
            return;
        } else if self.has_room(now_ps, wire) {
            self.waiting_bytes += wire;
            self.waiting.push_back(Queued { packet, since: now_ps });
            return;
        } else {
            self.stats.queue_drops += 1;
            self.count_congestion(now_ps);
        }
        pool.recycle(packet.data);
    }

    /// When [`Link::pop`] may have something, or the schedule has a step; `None` if nothing is under way.
    #[must_use]
    pub fn next_event(&self) -> Option<Instant> {
        let arriving = [self.in_order.front(), self.overtaking.peek()].into_iter().flatten().map(|a| a.at);
        // What is being sent arrives no earlier than this; until then there is no need to look.
        let serving =
            self.serving.as_ref().map(|_| micros_up(self.departs.saturating_add(picos(self.config.delay))));
        // A step may make it leave earlier than it seems now.
        let step = self.serving.as_ref().and(self.config.schedule.get(self.steps_done));
        let step = step.map(|s| micros_up(picos(s.at)));
        arriving.chain(serving).chain(step).min()
    }

    /// The next packet that has arrived by `now`.
    pub fn pop(&mut self, now: Instant, pool: &mut Pool) -> Option<Packet<L>> {
        self.advance(now.as_micros().saturating_mul(PICOS_PER_MICRO), pool);
        let first = match (self.in_order.front(), self.overtaking.peek()) {
            // The heap's order is reversed: the greater is the earlier.
            (Some(a), Some(b)) if a > b => self.in_order.front(),
            (Some(_), None) => self.in_order.front(),
            (_, b) => b,
        };
        let (at, number) = first.map(|a| (a.at, a.number))?;
        if at > now {
            return None;
        }
        let is_front = self.in_order.front().is_some_and(|a| a.number == number);
        let arrived = if is_front { self.in_order.pop_front() } else { self.overtaking.pop() };
        arrived.map(|a| a.packet)
    }

    /// Does what was due by `now`, in order of time.
    fn advance(&mut self, now: u64, pool: &mut Pool) {
        loop {
            let step = self.config.schedule.get(self.steps_done).map(|s| picos(s.at));
            let due = step.filter(|&at| at <= now);
            if self.serving.is_some() && self.departs <= due.unwrap_or(now) {
                self.depart(pool);
            } else if let Some(at) = due {
                let change = self.config.schedule[self.steps_done].change;
                self.steps_done += 1;
                self.apply(at, change, pool);
            } else {
                return;
            }
        }
    }

    fn apply(&mut self, at: u64, change: Change, pool: &mut Pool) {
        match change {
            Change::Rate(bps) => {
                let left = u128::from(self.departs.saturating_sub(at)) * u128::from(self.config.rate_bps);
                self.config.rate_bps = bps;
                if self.serving.is_some() {
                    self.departs = at + u64::try_from(left / u128::from(bps.max(1))).unwrap_or(u64::MAX / 2);
                }
            }
            Change::Delay(delay) => self.config.delay = delay,
            Change::Down => {
                self.down = true;
                for lost in self.serving.take().into_iter().chain(self.waiting.drain(..)) {
                    self.stats.down_drops += 1;
                    pool.recycle(lost.packet.data);
                }
                self.waiting_bytes = 0;
            }
            Change::Up => self.down = false,
        }
    }

    /// The last bit of what is being sent has left; the next one's turn.
    fn depart(&mut self, pool: &mut Pool) {
        let departed = self.departs;
        if let Some(served) = self.serving.take() {
            self.emit(departed, served.packet, pool);
        }
        while let Some(mut next) = self.waiting.pop_front() {
            let wire = self.wire(next.packet.data.len());
            self.waiting_bytes -= wire;
            if let Discipline::CoDel { target, interval, ecn } = self.config.discipline {
                let (target, interval) = (picos(target), picos(interval));
                let wait = departed - next.since;
                // With no more than a datagram behind this one there is no queue that could stand.
                let datagram_max = self.wire(self.config.max_datagram);
                let stands = wait >= target && self.waiting_bytes > datagram_max;
                if self.codel.should_drop(departed, stands, interval) {
                    if ecn && next.packet.ecn != Ecn::NotEct {
                        next.packet.ecn = Ecn::Ce;
                        self.stats.marked += 1;
                    } else {
                        self.stats.aqm_drops += 1;
                        self.count_congestion(departed);
                        pool.recycle(next.packet.data);
                        continue;
                    }
                }
            }
            return self.serve(departed, next);
        }
    }

    fn serve(&mut self, now: u64, queued: Queued<L>) {
        let wait = (now - queued.since) / PICOS_PER_MICRO;
        self.stats.queue_max_us = self.stats.queue_max_us.max(wait);
        if let Some(step) = self.timeline.at(now / PICOS_PER_MICRO) {
            step.wait_min_us = if step.departed == 0 { wait } else { step.wait_min_us.min(wait) };
            step.wait_max_us = step.wait_max_us.max(wait);
            step.wait_sum_us += wait;
            step.departed += 1;
        }
        self.departs = now + self.wire(queued.packet.data.len()) * BYTE_PICOS / self.config.rate_bps.max(1);
        self.serving = Some(queued);
    }

    /// A packet leaves the bottleneck at `departs` for what lies behind it.
    fn emit(&mut self, departs: u64, mut packet: Packet<L>, pool: &mut Pool) {
        if self.is_lost_behind() {
            self.stats.lost += 1;
            return pool.recycle(packet.data);
        }
        self.stats.delivered += 1;
        let jitter = self.jitter();
        let mut arrives = departs.saturating_add(picos(self.config.delay)).saturating_add(jitter);
        if !self.config.jitter_reorders && self.config.jitter != Jitter::None {
            let last = self.in_order.back().map_or(0, |a| a.at.as_micros() * PICOS_PER_MICRO);
            arrives = arrives.max(last);
        }
        let held_back = self.chance(self.config.reorder);
        if held_back {
            self.stats.reordered += 1;
            arrives = arrives.saturating_add((picos(self.config.reorder_by) as f64 * self.uniform()) as u64);
        }
        if self.chance(self.config.corrupt) {
            self.stats.corrupted += 1;
            self.flip_a_bit(&mut packet.data);
        }
        let at = micros_up(arrives);
        if self.chance(self.config.duplicate) {
            self.stats.duplicated += 1;
            let twin = Packet { data: pool.copy(&packet.data), ..packet.clone_label() };
            self.number += 1;
            self.overtaking.push(Arriving {
                at: at + Duration::from_micros(1),
                number: self.number,
                packet: twin,
            });
        }
        self.number += 1;
        let arriving = Arriving { at, number: self.number, packet };
        // One that was held back would make all that follow it look early.
        if held_back || self.in_order.back().is_some_and(|last| last.at > at) {
            self.overtaking.push(arriving);
        } else {
            self.in_order.push_back(arriving);
        }
    }

    fn flip_a_bit(&mut self, data: &mut [u8]) {
        if data.is_empty() {
            return;
        }
        let r = self.rng.next_u64();
        let at = (r >> 3) as usize % data.len();
        data[at] ^= 1 << (r & 7);
    }

    fn wire(&self, len: usize) -> u64 {
        len as u64 + u64::from(self.config.overhead)
    }

    /// Whether `wire` bytes fit behind what waits and what is left of the one being sent.
    fn has_room(&self, now: u64, wire: u64) -> bool {
        let left = u128::from(self.departs.saturating_sub(now)) * u128::from(self.config.rate_bps);
        let queued = u128::from(self.waiting_bytes) + left / u128::from(BYTE_PICOS);
        queued + u128::from(wire) <= u128::from(self.config.queue_bytes)
    }

    fn is_policed(&mut self, now: u64, wire: u64) -> bool {
        let Some(policer) = self.config.policer else { return false };
        let (held, since) = self.tokens;
        let came = (now - since) as f64 * policer.rate_bps as f64 / BYTE_PICOS as f64;
        let held = (held + came).min(policer.burst_bytes as f64);
        let passes = held >= wire as f64;
        self.tokens = (if passes { held - wire as f64 } else { held }, now);
        !passes
    }

    fn count_congestion(&mut self, at: u64) {
        if let Some(step) = self.timeline.at(at / PICOS_PER_MICRO) {
            step.congestion_drops += 1;
        }
    }

    fn jitter(&mut self) -> u64 {
        match self.config.jitter {
            Jitter::None => 0,
            Jitter::Uniform(max) => (picos(max) as f64 * self.uniform()) as u64,
        }
    }

    fn is_lost_before(&mut self) -> bool {
        let (lost, bad) = self.is_lost(self.config.loss_before, self.bad_before);
        self.bad_before = bad;
        lost
    }

    fn is_lost_behind(&mut self) -> bool {
        let (lost, bad) = self.is_lost(self.config.loss, self.bad_behind);
        self.bad_behind = bad;
        lost
    }

    /// Whether one more is lost, and whether the state is bad now.
    fn is_lost(&mut self, loss: Loss, bad_state: bool) -> (bool, bool) {
        match loss {
            Loss::None => (false, bad_state),
            Loss::Bernoulli(p) => (self.chance(p), bad_state),
            Loss::GilbertElliott { to_bad, to_good, good, bad } => {
                let bad_state = bad_state ^ self.chance(if bad_state { to_good } else { to_bad });
                (self.chance(if bad_state { bad } else { good }), bad_state)
            }
        }
    }

    /// True with probability `p`. Draws no number when there is nothing to decide.
    fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.uniform() < p
    }

    /// From 0 to below 1.
    fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

impl<L: Clone> Packet<L> {
    /// The same without its data.
    fn clone_label(&self) -> Self {
        Self { data: Vec::new(), ecn: self.ecn, label: self.label.clone() }
    }
}

fn picos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos().saturating_mul(1000)).unwrap_or(u64::MAX / 4)
}

fn micros_up(picos: u64) -> Instant {
    Instant::from_micros(picos.div_ceil(PICOS_PER_MICRO))
}

#[cfg(test)]
mod tests;
