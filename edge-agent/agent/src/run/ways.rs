//! How the peers of a run are connected, for whoever asks (`edge-agent/PATHS.md` §5).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;

use agent_proto::limits::{TRIES_TOLD, TRY_LEN_MAX};
use agent_proto::link::{PeerConnection, Way};
use event_schema::{AgentId, Timestamp};
use serde::Serialize;
use tokio::time::Instant;
use utp2_tokio::{Connection, Endpoint};

use super::reaching::place;
use crate::clock;
use crate::discovery::{Via, local_ip};

/// Peers that are shown.
const SHOWN: usize = 64;

/// Peers of which tries are remembered.
const REMEMBERED: usize = 256;

/// Tries that are remembered of one peer.
const TRIES: usize = 8;

/// Addresses of which it is remembered how they were found.
const FOUND: usize = 1024;

/// One peer as it is shown.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ConnectionStatus {
    /// Who.
    pub(crate) agent: AgentId,
    /// How.
    #[serde(serialize_with = "way_name")]
    pub(crate) way: Way,
    /// Who forwards, if somebody does.
    pub(crate) relay: Option<AgentId>,
    /// Our address on the way there; `None` where the system does not tell.
    pub(crate) local: Option<String>,
    /// The peer's; the relay's, if it is relayed.
    pub(crate) remote: Option<String>,
    /// We called.
    pub(crate) initiator: bool,
    /// Smoothed round trip time, ms.
    pub(crate) rtt_ms: f64,
    /// Bytes a second sent to it, over the last second.
    pub(crate) sent_per_s: u64,
    /// Bytes a second received from it.
    pub(crate) received_per_s: u64,
    /// Since when it is connected this way, or not.
    pub(crate) since: Timestamp,
    /// What was tried since it was connected last, newest last.
    pub(crate) tried: Vec<String>,
    /// Why the last try failed, or the last connection ended.
    pub(crate) last_error: Option<String>,
}

fn way_name<S: serde::Serializer>(way: &Way, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(way.name())
}

impl ConnectionStatus {
    /// As the control service is told of it.
    pub(super) fn told(&self) -> PeerConnection {
        let cut = |text: &str| text.chars().take(TRY_LEN_MAX / 4).collect::<String>();
        PeerConnection {
            peer: self.agent,
            way: self.way,
            relay: self.relay,
            local: self.local.clone().unwrap_or_default(),
            remote: self.remote.clone().unwrap_or_default(),
            initiator: self.initiator,
            rtt_us: (self.rtt_ms * 1000.0) as u32,
            sent_per_s: self.sent_per_s,
            received_per_s: self.received_per_s,
            since: self.since,
            tried: self.tried.iter().rev().take(TRIES_TOLD).rev().map(|t| cut(t)).collect(),
            last_error: self.last_error.as_deref().map(cut).unwrap_or_default(),
        }
    }
}

#[derive(Default)]
struct Peer {
    tried: VecDeque<String>,
    last_error: Option<String>,
    since: Option<Timestamp>,
    now: Option<Current>,
}

struct Current {
    way: Way,
    relay: Option<(AgentId, SocketAddr)>,
    remote: SocketAddr,
    local: Option<SocketAddr>,
    initiator: bool,
    bytes: (u64, u64),
    at: Instant,
    rates: (u64, u64),
    rtt_ms: f64,
}

/// What is known of the ways to the peers of one run.
#[derive(Default)]
pub(super) struct Ways {
    peers: BTreeMap<AgentId, Peer>,
    found: HashMap<SocketAddr, (Via, bool)>,
    order: VecDeque<SocketAddr>,
}

impl Ways {
    /// An address was found. `called`: by probes after a call, on either side.
    pub(super) fn found(&mut self, addr: SocketAddr, via: Via, called: bool) {
        match self.found.get_mut(&addr) {
            // The local network is known to be that, and what a call has opened stays opened by a call.
            Some((Via::Lan, _)) => {}
            Some((_, true)) if via != Via::Lan => {}
            Some(there) => *there = (via, called),
            None => {
                if self.order.len() == FOUND
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.found.remove(&oldest);
                }
                self.order.push_back(addr);
                self.found.insert(addr, (via, called));
            }
        }
    }

    /// Something is tried to reach a peer.
    pub(super) fn tried(&mut self, agent: AgentId, what: String) {
        let Some(peer) = self.peer(agent) else { return };
        if peer.tried.back() == Some(&what) {
            return;
        }
        if peer.tried.len() == TRIES {
            peer.tried.pop_front();
        }
        peer.tried.push_back(what);
    }

    /// A try failed, or the connection ended.
    pub(super) fn failed(&mut self, agent: AgentId, why: String) {
        if let Some(peer) = self.peer(agent) {
            peer.last_error = Some(why);
        }
    }

    /// The connection is gone.
    pub(super) fn lost(&mut self, agent: AgentId) {
        if let Some(peer) = self.peers.get_mut(&agent) {
            (peer.now, peer.since) = (None, Some(clock::now()));
        }
    }

    /// Looks at a connection; `relay`: who forwards, and where that is, should its address be a detour. Returns its way.
    pub(super) fn look(
        &mut self,
        now: Instant,
        agent: AgentId,
        conn: &Connection,
        port: u16,
        relay: Option<(AgentId, SocketAddr)>,
    ) -> Way {
        let remote = place(conn);
        let stats = conn.stats();
        let way = self.way(remote);
        let bytes = (stats.sent_bytes, stats.received_bytes);
        let Some(peer) = self.peer(agent) else { return way };
        let same = peer.now.take().filter(|c| c.remote == remote && c.way == way);
        let rates = same.as_ref().map_or((0, 0), |c| rates(c, bytes, now));
        if same.is_none() {
            peer.since = Some(clock::now());
            peer.tried.clear();
        }
        let local = match &same {
            Some(c) => c.local,
            None => {
                let to = relay.map_or(remote, |(_, via)| via);
                local_ip(to).map(|ip| SocketAddr::new(ip, port))
            }
        };
        peer.now = Some(Current {
            way,
            relay: relay.filter(|_| way == Way::Relayed),
            remote,
            local,
            initiator: conn.is_initiator(),
            bytes,
            at: now,
            rates,
            rtt_ms: (stats.rtt.as_secs_f64() * 1e6).round() / 1e3,
        });
        way
    }

    fn way(&self, remote: SocketAddr) -> Way {
        if Endpoint::is_detour(remote) {
            return Way::Relayed;
        }
        match self.found.get(&remote) {
            Some((Via::Lan, _)) => Way::Lan,
            _ if remote.ip().is_loopback() => Way::Lan,
            Some((Via::Probe, true)) => Way::Punched,
            _ => Way::Direct,
        }
    }

    fn peer(&mut self, agent: AgentId) -> Option<&mut Peer> {
        if self.peers.len() >= REMEMBERED && !self.peers.contains_key(&agent) {
            let away = self.peers.iter().find(|(_, p)| p.now.is_none()).map(|(a, _)| *a)?;
            self.peers.remove(&away);
        }
        let since = || Peer { since: Some(clock::now()), ..Peer::default() };
        Some(self.peers.entry(agent).or_insert_with(since))
    }

    /// What is shown: those that are connected first.
    pub(super) fn shown(&self) -> Vec<ConnectionStatus> {
        let (connected, others): (Vec<_>, Vec<_>) = self.peers.iter().partition(|(_, p)| p.now.is_some());
        connected.into_iter().chain(others).take(SHOWN).map(|(agent, peer)| status(*agent, peer)).collect()
    }
}

fn rates(before: &Current, bytes: (u64, u64), now: Instant) -> (u64, u64) {
    let seconds = (now - before.at).as_secs_f64();
    if seconds <= 0.0 {
        return before.rates;
    }
    let rate = |new: u64, old: u64| (new.saturating_sub(old) as f64 / seconds) as u64;
    (rate(bytes.0, before.bytes.0), rate(bytes.1, before.bytes.1))
}

fn status(agent: AgentId, peer: &Peer) -> ConnectionStatus {
    let now = peer.now.as_ref();
    let remote = now.map(|c| c.relay.map_or(c.remote, |(_, via)| via));
    ConnectionStatus {
        agent,
        way: now.map_or(Way::None, |c| c.way),
        relay: now.and_then(|c| c.relay).map(|(relay, _)| relay),
        local: now.and_then(|c| c.local).map(|a| a.to_string()),
        remote: remote.map(|a| a.to_string()),
        initiator: now.is_some_and(|c| c.initiator),
        rtt_ms: now.map_or(0.0, |c| c.rtt_ms),
        sent_per_s: now.map_or(0, |c| c.rates.0),
        received_per_s: now.map_or(0, |c| c.rates.1),
        since: peer.since.unwrap_or_else(clock::now),
        tried: peer.tried.iter().cloned().collect(),
        last_error: peer.last_error.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(s: &str) -> SocketAddr {
        s.parse().expect("an address")
    }

    #[test]
    fn an_address_tells_the_way() {
        let mut ways = Ways::default();
        ways.found(addr("10.0.0.1:1"), Via::Lan, false);
        ways.found(addr("10.0.0.1:1"), Via::Probe, true);
        ways.found(addr("192.0.2.1:1"), Via::Tracker, false);
        ways.found(addr("192.0.2.2:1"), Via::Tracker, false);
        ways.found(addr("192.0.2.2:1"), Via::Probe, true);
        ways.found(addr("192.0.2.2:1"), Via::Tracker, false);
        ways.found(addr("192.0.2.3:1"), Via::Probe, false);
        let expected = [
            ("10.0.0.1:1", Way::Lan),
            ("127.0.0.1:5", Way::Lan),
            ("192.0.2.1:1", Way::Direct),
            ("192.0.2.2:1", Way::Punched),
            ("192.0.2.3:1", Way::Direct),
            ("192.0.2.9:1", Way::Direct),
            ("[100::7]:1", Way::Relayed),
        ];
        for (text, way) in expected {
            assert_eq!(ways.way(addr(text)), way, "{text}");
        }
    }

    #[test]
    fn memory_is_bounded_and_tries_are_told() {
        let mut ways = Ways::default();
        for i in 0..2000u16 {
            ways.found(SocketAddr::from(([10, 0, 0, 1], i)), Via::Tracker, false);
            let mut id = [0; 16];
            id[..2].copy_from_slice(&i.to_be_bytes());
            ways.tried(AgentId(id), "direct".into());
        }
        assert_eq!((ways.found.len(), ways.order.len(), ways.peers.len()), (FOUND, FOUND, REMEMBERED));
        assert_eq!(ways.shown().len(), SHOWN);
        let peer = *ways.peers.keys().next().expect("some");
        (0..100).for_each(|i| ways.tried(peer, format!("{}", i / 2)));
        ways.failed(peer, "no answer".into());
        let shown = ways.shown().into_iter().find(|c| c.agent == peer).expect("shown");
        assert_eq!(
            (shown.way, shown.tried.len(), shown.last_error.as_deref()),
            (Way::None, TRIES, Some("no answer"))
        );
    }
}
