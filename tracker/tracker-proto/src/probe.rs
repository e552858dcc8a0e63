//! Which addresses of a member work, and opening the way through NATs to it: small questions and answers between the
//! µTP2 sockets (`PROTOCOL.md` §6.1).
//!
//! Left out: sockets and clocks; who is to be probed and when (the agent). Driven like [`Client`](crate::Client).

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::net::SocketAddr;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use subtle::ConstantTimeEq;
use timebase::Instant;

use crate::bucket::TokenBucket;
use crate::entry::dialable;
use crate::key::{AgentId, PeerId, SwarmId, SwarmKey, hmac};
use crate::limits::{
    ADDRESSES_ASKED, ANSWER_PERIOD, ANSWERED, ANSWERS, EVENTS, PROBE_PATIENCE, PROBE_PAUSE, PROBED,
    PROBED_PER_PEER, PROBED_PER_SWARM, PROBES_AT, QUESTIONS, QUESTIONS_PER_ADDRESS, QUESTIONS_PER_SWARM,
    SWARMS,
};
use crate::message::Probe;

/// A question.
const NOTHING: [u8; 8] = [0; 8];

/// The way to a member is open, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The swarm of both.
    pub swarm: SwarmId,
    /// Who answers there.
    pub peer: PeerId,
    /// Where.
    pub addr: SocketAddr,
}

/// What a [`Prober`] counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeStats {
    /// Questions sent.
    pub questions: u64,
    /// Answers sent.
    pub answers: u64,
    /// Addresses found to work, each time.
    pub reached: u64,
    /// Probes that no member made for us, or that answer nothing.
    pub ignored: u64,
    /// Questions and answers not sent because there were too many.
    pub limited: u64,
    /// Addresses not asked because as many are being asked as may be.
    pub passed_over: u64,
}

/// Probes addresses of members. See the module's documentation.
#[derive(Debug)]
pub struct Prober {
    rng: ChaCha8Rng,
    /// Makes our side of answers, so that nothing is kept about who asked.
    local: [u8; 32],
    swarms: BTreeMap<SwarmId, Swarm>,
    series: BTreeMap<(SocketAddr, SwarmId, PeerId), Series>,
    out: VecDeque<(SocketAddr, Vec<u8>)>,
    reached: VecDeque<Reached>,
    /// What may be asked still, by address.
    asked: BTreeMap<SocketAddr, TokenBucket>,
    /// Our side of answers that were answered, and when.
    answered: BTreeMap<[u8; 8], Instant>,
    questions: TokenBucket,
    answers: TokenBucket,
    stats: ProbeStats,
}

#[derive(Debug)]
struct Swarm {
    key: SwarmKey,
    me: PeerId,
    questions: TokenBucket,
}

/// The questions to one address.
#[derive(Debug)]
struct Series {
    began: Instant,
    mine: [u8; 8],
    sent: usize,
    /// It was answered; kept so that it is not begun anew at once.
    done: bool,
}

impl Series {
    fn due(&self) -> Option<Instant> {
        PROBES_AT.get(self.sent).filter(|_| !self.done).map(|after| self.began + *after)
    }

    fn ends(&self) -> Instant {
        let last = if self.done { PROBE_PAUSE } else { PROBES_AT[PROBES_AT.len() - 1] + PROBE_PATIENCE };
        self.began + last
    }
}

impl Prober {
    /// A prober in no swarm. `seed`: 32 unpredictable bytes, or a fixed value in simulations.
    pub fn new(seed: [u8; 32]) -> Self {
        let mut rng = ChaCha8Rng::from_seed(seed);
        let mut local = [0; 32];
        rng.fill_bytes(&mut local);
        Self {
            rng,
            local,
            swarms: BTreeMap::new(),
            series: BTreeMap::new(),
            out: VecDeque::new(),
            reached: VecDeque::new(),
            asked: BTreeMap::new(),
            answered: BTreeMap::new(),
            questions: TokenBucket::full(QUESTIONS),
            answers: TokenBucket::full(ANSWERS),
            stats: ProbeStats::default(),
        }
    }

    /// Answers and asks in a swarm from now on, as `agent`. False if there are [`SWARMS`] already.
    pub fn join(&mut self, key: SwarmKey, agent: &AgentId) -> bool {
        let id = key.swarm();
        if self.swarms.len() >= SWARMS && !self.swarms.contains_key(&id) {
            return false;
        }
        let me = key.peer_id(agent);
        self.swarms.insert(id, Swarm { key, me, questions: TokenBucket::full(QUESTIONS_PER_SWARM) });
        true
    }

    /// Is silent in a swarm from now on.
    pub fn leave(&mut self, swarm: SwarmId) {
        self.swarms.remove(&swarm);
        self.series.retain(|(_, id, _), _| *id != swarm);
    }

    /// Asks at addresses of a member whether it is there. Those that were asked lately, and those beyond the limits,
    /// are passed over.
    pub fn probe(&mut self, now: Instant, swarm: SwarmId, peer: PeerId, addrs: &[SocketAddr]) {
        self.forget_ended(now);
        if self.swarms.get(&swarm).is_none_or(|s| s.me == peer) {
            return;
        }
        let of_swarm = || self.series.keys().filter(|(_, s, _)| *s == swarm);
        let of_peer = of_swarm().filter(|(_, _, p)| *p == peer);
        let room = PROBED_PER_PEER.saturating_sub(of_peer.count());
        let mut room = room
            .min(PROBED_PER_SWARM.saturating_sub(of_swarm().count()))
            .min(PROBED.saturating_sub(self.series.len()));
        for addr in addrs.iter().copied().filter_map(dialable) {
            let again = self.series.get(&(addr, swarm, peer)).is_some_and(|s| now - s.began >= PROBE_PAUSE);
            let new = !self.series.contains_key(&(addr, swarm, peer));
            if new && room == 0 {
                self.stats.passed_over += 1;
                continue;
            }
            if !new && !again {
                continue;
            }
            room = room.saturating_sub(usize::from(new));
            let mut mine = [0; 8];
            self.rng.fill_bytes(&mut mine);
            let fresh = Series { began: now, mine, sent: 0, done: false };
            self.series.insert((addr, swarm, peer), fresh);
        }
    }

    /// Asks a member no more.
    pub fn stop(&mut self, swarm: SwarmId, peer: PeerId) {
        self.series.retain(|(_, s, p), _| (*s, *p) != (swarm, peer));
    }

    /// Takes a datagram that came to the µTP2 socket.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let taken = Probe::parse(bytes).ok().and_then(|probe| {
            let Swarm { key, me, .. } = self.swarms.get(&probe.swarm)?;
            let for_us = probe.to == *me && probe.from != *me && probe.verify(key);
            let from = dialable(from).filter(|_| for_us)?;
            self.take(now, from, &probe)
        });
        self.stats.ignored += u64::from(taken.is_none());
    }

    /// The next datagram, and where it goes.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(SocketAddr, Vec<u8>)> {
        if let Some(answer) = self.out.pop_front() {
            return Some(answer);
        }
        loop {
            let due = |s: &Series| s.due().is_some_and(|at| at <= now);
            let (&(addr, swarm, peer), series) = self.series.iter_mut().find(|(_, s)| due(s))?;
            series.sent += 1;
            let mine = series.mine;
            let may = self.may_ask(now, addr);
            let Some(Swarm { key, me, questions }) = self.swarms.get_mut(&swarm) else { continue };
            if !may || !questions.take(now, QUESTIONS_PER_SWARM) || !self.questions.take(now, QUESTIONS) {
                self.stats.limited += 1;
                continue;
            }
            self.stats.questions += 1;
            return Some((addr, emit(&Probe::sign(key, *me, peer, mine, NOTHING))));
        }
    }

    /// When to call [`Prober::poll_transmit`] again; `None`: only after other input.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.series.values().filter_map(Series::due).min()
    }

    /// The next address found to work. Addresses repeat.
    pub fn poll_event(&mut self) -> Option<Reached> {
        self.reached.pop_front()
    }

    /// Counters since the start.
    pub fn stats(&self) -> ProbeStats {
        self.stats
    }

    /// Whether one more question may go there, in whoever's name.
    fn may_ask(&mut self, now: Instant, addr: SocketAddr) -> bool {
        if self.asked.len() >= ADDRESSES_ASKED && !self.asked.contains_key(&addr) {
            self.asked.retain(|_, bucket| !bucket.is_full(now, QUESTIONS_PER_ADDRESS));
            if self.asked.len() >= ADDRESSES_ASKED {
                return false;
            }
        }
        let bucket = self.asked.entry(addr).or_insert_with(|| TokenBucket::full(QUESTIONS_PER_ADDRESS));
        bucket.take(now, QUESTIONS_PER_ADDRESS)
    }

    /// Whether an answered answer of ours proves a way: it was made lately, and has not proved one yet.
    fn proves(&mut self, now: Instant, from: SocketAddr, probe: &Probe) -> bool {
        let made = |ago: u64| {
            let period = period(now).wrapping_sub(ago);
            self.answer_value(period, from, probe).ct_eq(&probe.yours)
        };
        if !bool::from(made(0) | made(1)) {
            return false;
        }
        if self.answered.len() >= ANSWERED {
            self.answered.retain(|_, at| now - *at < 2 * ANSWER_PERIOD);
        }
        self.answered.len() < ANSWERED && self.answered.insert(probe.yours, now).is_none()
    }

    /// `None`: it answers nothing.
    fn take(&mut self, now: Instant, from: SocketAddr, probe: &Probe) -> Option<()> {
        if probe.yours != NOTHING {
            let place = (from, probe.swarm, probe.from);
            let asked = self.series.get_mut(&place).filter(|s| !s.done && s.mine == probe.yours);
            let is_answer = asked.is_some();
            asked.into_iter().for_each(|s| s.done = true);
            // Or it is what makes our answer an answered one.
            if !is_answer && !self.proves(now, from, probe) {
                return None;
            }
            self.stats.reached += 1;
            if self.reached.len() < EVENTS {
                self.reached.push_back(Reached { swarm: probe.swarm, peer: probe.from, addr: from });
            }
            if !is_answer {
                return Some(());
            }
        }
        if !self.answers.take(now, ANSWERS) {
            self.stats.limited += 1;
            return Some(());
        }
        // To an answer goes what we asked with, to a question what we can recognise without keeping it.
        let ours = || self.answer_value(period(now), from, probe);
        let mine = if probe.yours == NOTHING { ours() } else { probe.yours };
        let Swarm { key, me, .. } = self.swarms.get(&probe.swarm)?;
        let answer = emit(&Probe::sign(key, *me, probe.from, mine, probe.mine));
        self.stats.answers += 1;
        self.out.push_back((from, answer));
        Some(())
    }

    /// Our value in the answer, in this period, to a question with `probe.mine` from there.
    fn answer_value(&self, period: u64, from: SocketAddr, probe: &Probe) -> [u8; 8] {
        let ip = match from.ip() {
            core::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            core::net::IpAddr::V6(ip) => ip,
        };
        let port = from.port().to_be_bytes();
        let (period, ip) = (period.to_be_bytes(), ip.octets());
        let full = hmac(&self.local, &[&period, &ip, &port, &probe.swarm.0, &probe.from.0, &probe.mine]);
        let mut value = [0; 8];
        value.copy_from_slice(&full[..8]);
        value
    }

    fn forget_ended(&mut self, now: Instant) {
        self.series.retain(|_, s| s.ends() > now);
    }
}

fn period(now: Instant) -> u64 {
    now.as_micros() / ANSWER_PERIOD.as_micros() as u64
}

fn emit(probe: &Probe) -> Vec<u8> {
    let mut bytes = Vec::new();
    probe.emit(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
