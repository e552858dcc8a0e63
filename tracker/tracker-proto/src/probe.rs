//! Which addresses of a member work, and opening the way through NATs to it: small questions and answers between the
//! µTP2 sockets (`PROTOCOL.md` §6.1).
//!
//! Left out: sockets and clocks; who is to be probed and when (the agent). Driven like [`Client`](crate::Client).

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use subtle::ConstantTimeEq;
use timebase::Instant;

use crate::entry::dialable;
use crate::key::{AgentId, PeerId, SwarmId, SwarmKey, hmac};
use crate::limits::{
    ANSWERS, EVENTS, PROBE_PATIENCE, PROBE_PAUSE, PROBED, PROBED_PER_PEER, PROBES_AT, QUESTIONS, SWARMS,
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
}

/// Probes addresses of members. See the module's documentation.
#[derive(Debug)]
pub struct Prober {
    rng: ChaCha8Rng,
    /// Makes our side of answers, so that nothing is kept about who asked.
    local: [u8; 32],
    swarms: BTreeMap<SwarmId, (SwarmKey, PeerId)>,
    series: BTreeMap<(SocketAddr, SwarmId, PeerId), Series>,
    out: VecDeque<(SocketAddr, Vec<u8>)>,
    reached: VecDeque<Reached>,
    questions: Bucket,
    answers: Bucket,
    stats: ProbeStats,
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

/// So many a second, so many at once.
#[derive(Debug)]
struct Bucket {
    rate: u64,
    burst: u64,
    /// Millionths.
    tokens: u64,
    at: Instant,
}

impl Bucket {
    fn new((rate, burst): (u32, u32)) -> Self {
        let burst = u64::from(burst) * 1_000_000;
        Self { rate: rate.into(), burst, tokens: burst, at: Instant::ZERO }
    }

    fn take(&mut self, now: Instant) -> bool {
        let gained = u64::try_from((now - self.at).as_micros()).unwrap_or(u64::MAX).saturating_mul(self.rate);
        self.tokens = self.tokens.saturating_add(gained).min(self.burst);
        self.at = self.at.max(now);
        let enough = self.tokens.checked_sub(1_000_000);
        self.tokens = enough.unwrap_or(self.tokens);
        enough.is_some()
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
            questions: Bucket::new(QUESTIONS),
            answers: Bucket::new(ANSWERS),
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
        self.swarms.insert(id, (key, me));
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
        let Some(&(_, me)) = self.swarms.get(&swarm) else { return };
        if me == peer {
            return;
        }
        let of_peer = self.series.range(..).filter(|((_, s, p), _)| *s == swarm && *p == peer);
        let mut room = PROBED_PER_PEER.saturating_sub(of_peer.count());
        for addr in addrs.iter().copied().filter_map(dialable) {
            let again = self.series.get(&(addr, swarm, peer)).is_some_and(|s| now - s.began >= PROBE_PAUSE);
            let new = !self.series.contains_key(&(addr, swarm, peer));
            if (new && (room == 0 || self.series.len() >= PROBED)) || (!new && !again) {
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
            let (key, me) = self.swarms.get(&probe.swarm)?;
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
            let Some((key, me)) = self.swarms.get(&swarm) else { continue };
            if !self.questions.take(now) {
                self.stats.limited += 1;
                continue;
            }
            self.stats.questions += 1;
            return Some((addr, emit(&Probe::sign(key, *me, peer, series.mine, NOTHING))));
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

    /// `None`: it answers nothing.
    fn take(&mut self, now: Instant, from: SocketAddr, probe: &Probe) -> Option<()> {
        let (key, me) = self.swarms.get(&probe.swarm)?;
        let ours = self.answer_value(from, probe);
        if probe.yours != NOTHING {
            let place = (from, probe.swarm, probe.from);
            let asked = self.series.get_mut(&place).filter(|s| !s.done && s.mine == probe.yours);
            let is_answer = asked.is_some();
            asked.into_iter().for_each(|s| s.done = true);
            // Or it is what makes our answer an answered one.
            if !is_answer && !bool::from(ours.ct_eq(&probe.yours)) {
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
        if !self.answers.take(now) {
            self.stats.limited += 1;
            return Some(());
        }
        // To an answer goes what we asked with, to a question what we can recognise without keeping it.
        let mine = if probe.yours == NOTHING { ours } else { probe.yours };
        let answer = emit(&Probe::sign(key, *me, probe.from, mine, probe.mine));
        self.stats.answers += 1;
        self.out.push_back((from, answer));
        Some(())
    }

    /// Our value in the answer to a question with `probe.mine` from there.
    fn answer_value(&self, from: SocketAddr, probe: &Probe) -> [u8; 8] {
        let ip = match from.ip() {
            core::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            core::net::IpAddr::V6(ip) => ip,
        };
        let port = from.port().to_be_bytes();
        let full = hmac(&self.local, &[&ip.octets(), &port, &probe.swarm.0, &probe.from.0, &probe.mine]);
        let mut value = [0; 8];
        value.copy_from_slice(&full[..8]);
        value
    }

    fn forget_ended(&mut self, now: Instant) {
        self.series.retain(|_, s| s.ends() > now);
    }
}

fn emit(probe: &Probe) -> Vec<u8> {
    let mut bytes = Vec::new();
    probe.emit(&mut bytes);
    bytes
}

/// How long a peer is tried again after each call, the last one for ever (`PROTOCOL.md` §6.1).
pub fn call_pause(calls: u32) -> Duration {
    Duration::from_secs(3 << calls.min(5)).min(Duration::from_secs(60))
}

#[cfg(test)]
mod tests;
