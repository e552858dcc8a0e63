//! What a run and a synchronization do alike to reach agents that plain calls do not find: probed addresses, meetings at
//! relays, and when a connection has left its relay (`edge-agent/PATHS.md` §1, §4). `task/reaching.rs` and
//! `sync/reaching.rs` carry it out, each with its own peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::relay::Meeting as MeetingId;
use event_schema::AgentId;
use tokio::sync::mpsc;
use tokio::time::Instant;
use utp2::ContextId;
use utp2_tokio::{Connection, Endpoint};

use super::dial::call;
use super::event::Wakeup;
use super::reach::Reach;
use super::relays::{KnownRelays, choose};
use crate::relay::{Met, NotMet, Relays};

/// Addresses of one peer that are kept for probes.
const ADDRESSES_KEPT: usize = 12;

/// How long the larger id waits before it calls a peer that answers a probe, and how long nobody calls it again there.
const CROSSING_WAIT: Duration = Duration::from_secs(1);
const CALL_AGAIN: Duration = Duration::from_secs(3);

/// How long a meeting is kept without a connection by it, and after the connection has found a direct way.
const MET_UNUSED: Duration = Duration::from_secs(40);
const MET_LEFT: Duration = Duration::from_secs(5);

/// A meeting that did not come about: the relay that did not answer, if that was why, and what to tell.
pub(super) type NoMeeting = (Option<SocketAddr>, String);

/// Where a peer is for certain. An address on trial is none yet: what seems to be there may be a copied packet, or
/// somebody's claim.
pub(super) fn place(conn: &Connection) -> SocketAddr {
    conn.proven_remote().unwrap_or_else(|| conn.remote())
}

/// Where a peer is for certain, if that is no relay.
pub(super) fn direct_place(conn: &Connection) -> Option<SocketAddr> {
    conn.proven_remote().filter(|at| !Endpoint::is_detour(*at))
}

/// How long a meeting has been of use.
struct Use {
    /// A connection went by it last.
    used: Instant,
    direct_since: Option<Instant>,
}

impl Use {
    fn new(now: Instant) -> Self {
        Self { used: now, direct_since: None }
    }

    fn seen(&mut self, now: Instant, relayed: bool) {
        if relayed {
            (self.used, self.direct_since) = (now, None);
        } else {
            self.direct_since.get_or_insert(now);
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.direct_since.is_some_and(|at| now - at >= MET_LEFT) || now - self.used >= MET_UNUSED
    }
}

/// What is tried to reach the peers of one run.
#[derive(Default)]
pub(super) struct Search {
    pub(super) reach: Reach,
    pub(super) relays: KnownRelays,
    meetings: BTreeMap<AgentId, (Met, Use)>,
    /// Addresses of each peer, to be probed when it is called; what was heard last comes first.
    addresses: BTreeMap<AgentId, Vec<SocketAddr>>,
    /// When peers were called where they answered.
    called: BTreeMap<AgentId, Instant>,
}

impl Search {
    pub(super) fn keep_address(&mut self, agent: AgentId, addr: SocketAddr) {
        let kept = self.addresses.entry(agent).or_default();
        kept.retain(|a| *a != addr);
        kept.truncate(ADDRESSES_KEPT - 1);
        kept.insert(0, addr);
    }

    pub(super) fn addresses(&self, agent: AgentId) -> Vec<SocketAddr> {
        self.addresses.get(&agent).cloned().unwrap_or_default()
    }

    /// A peer that nobody is connected to answers a probe: how long from now it is to be called there, and counts as called
    /// then. A plain call that is under way may wait for addresses that never answer. To avoid crossings the smaller id
    /// calls first (`first`: that is us), and the other one only if it wanted to.
    pub(super) fn call_answering(&mut self, now: Instant, agent: AgentId, first: bool) -> Option<Duration> {
        let wanted = first || self.reach.is_called(agent);
        let lately = self.called.get(&agent).is_some_and(|at| now - *at < CALL_AGAIN);
        if !wanted || lately {
            return None;
        }
        self.called.insert(agent, now);
        Some(if first { Duration::ZERO } else { CROSSING_WAIT })
    }

    /// Whether a connection is to be tried at an address that answers, in its relay's place. One of both sides moves it, the
    /// other one follows.
    pub(super) fn may_seek(&mut self, now: Instant, agent: AgentId, conn: &Connection) -> bool {
        Endpoint::is_detour(place(conn)) && conn.is_initiator() && self.reach.may_seek(now, agent)
    }

    /// A connection stands, by a relay or directly.
    pub(super) fn connected(&mut self, now: Instant, agent: AgentId, relayed: bool) {
        self.called.remove(&agent);
        self.reach.connected(now, agent, relayed);
        if let Some((_, held)) = self.meetings.get_mut(&agent) {
            held.seen(now, relayed);
        }
    }

    /// A connection is gone.
    pub(super) fn lost(&mut self, agent: AgentId) {
        self.meetings.remove(&agent);
        self.reach.lost(agent);
    }

    /// Who forwards for a connection, and where that is.
    pub(super) fn relay_of(&self, agent: AgentId) -> Option<(AgentId, SocketAddr)> {
        self.meetings.get(&agent).map(|(met, _)| (met.relay, met.via))
    }

    /// A meeting came about: where the peer is to be called, if it is ours to call.
    pub(super) fn met(&mut self, now: Instant, agent: AgentId, met: Met, first: bool) -> Option<SocketAddr> {
        let place = first.then_some(met.place);
        self.meetings.insert(agent, (met, Use::new(now)));
        place
    }

    /// A meeting did not come about, as some relay did not answer or for another reason.
    pub(super) fn not_met(&mut self, now: Instant, agent: AgentId, unanswered: Option<SocketAddr>) {
        if let Some(addr) = unanswered {
            self.relays.did_not_answer(now, addr);
        }
        self.reach.relay_ended(now, agent);
    }

    /// Gives up meetings that are over; returns those by which a connection may still go, which is dead without them, and
    /// whether the relay ended it.
    pub(super) fn end_meetings(&mut self, now: Instant) -> Vec<(AgentId, Met, bool)> {
        let over = |met: &Met, held: &Use| met.is_over() || held.is_over(now);
        let ended = self.meetings.extract_if(.., |_, (met, held)| over(met, held));
        let in_use = ended.filter(|(_, (_, held))| held.direct_since.is_none());
        let in_use: Vec<_> = in_use
            .map(|(agent, (met, _))| {
                let by_relay = met.is_over();
                (agent, met, by_relay)
            })
            .collect();
        in_use.iter().for_each(|(agent, ..)| self.reach.relay_ended(now, *agent));
        in_use
    }
}

/// Who calls, and who is told.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) endpoint: Endpoint,
    pub(super) context: ContextId,
    pub(super) wakeups: mpsc::Sender<Wakeup>,
}

impl Caller {
    /// Calls a peer at one address after `wait`; [`Wakeup::Called`] tells what came of it. A run that ended meanwhile drops,
    /// and so closes, the connection.
    pub(super) fn call_at(self, agent: AgentId, addr: SocketAddr, wait: Duration) {
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let conn = call(self.endpoint, self.context, agent, vec![addr]).await;
            let _ = self.wakeups.send(Wakeup::Called(agent, conn)).await;
        });
    }
}

/// Where a meeting may be.
pub(super) struct Places {
    /// Of members that are relays.
    pub(super) known: Vec<SocketAddr>,
    /// Relays that the owner named, `HOST:PORT`.
    pub(super) named: Arc<Vec<String>>,
    /// Those that did not answer lately.
    pub(super) silent: BTreeSet<SocketAddr>,
}

/// Meets a peer at the relay of this round; [`Wakeup::Met`] tells what came of it.
pub(super) fn meet(
    relays: Arc<Relays>,
    wakeups: mpsc::Sender<Wakeup>,
    agent: AgentId,
    meeting: MeetingId,
    mut places: Places,
    round: usize,
) {
    tokio::spawn(async move {
        for name in places.named.iter() {
            // Both sides have to know it by where it is: owners may call it by different names.
            match tokio::net::lookup_host(name.as_str()).await {
                Ok(mut found) => places.known.extend(found.next()),
                Err(error) => tracing::debug!(%error, name, "the name of a relay"),
            }
        }
        let met = match choose(&meeting, &places.known, &places.silent, round) {
            Some(addr) => relays.meet(addr, meeting, agent).await.map_err(|why| {
                let unanswered = matches!(why, NotMet::NoRelay(_)).then_some(addr);
                (unanswered, format!("the relay at {addr}: {why}"))
            }),
            None => Err((None, "no relay has an address".into())),
        };
        let _ = wakeups.send(Wakeup::Met(agent, met)).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::RelayLimits;
    use crate::relay::tests::{MEETING, RELAY, connected, endpoint, id, relay};

    #[tokio::test]
    async fn an_address_on_trial_ends_no_meeting() {
        let (relay, _forwarder) = relay(RelayLimits::default());
        let ((a, _ia), (b, mut incoming)) = (endpoint(1), endpoint(2));
        let (of_a, of_b) = (Relays::new(a.clone(), RELAY), Relays::new(b.clone(), RELAY));
        let at = relay.local_addr();
        let (at_a, at_b) = tokio::join!(of_a.meet(at, MEETING, id(2)), of_b.meet(at, MEETING, id(1)));
        let (met, _held) = (at_a.expect("met"), at_b.expect("met"));
        let (near, far) = connected((&a, &mut incoming), &met).await;
        let (relayed, now) = (met.place, Instant::now());

        let mut search = Search::default();
        assert_eq!(search.met(now, id(2), met, true), Some(relayed), "the smaller id calls");
        search.connected(now, id(2), true);
        assert!(search.may_seek(now, id(2), &near) && !search.may_seek(now, id(2), &far));
        // Nobody answers there, as where a forged probe leads.
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        assert!(near.seek(silent.local_addr().expect("an address")));
        assert!(!Endpoint::is_detour(near.remote()), "it is tried");
        assert_eq!((place(&near), direct_place(&near)), (relayed, None));
        search.connected(now, id(2), Endpoint::is_detour(place(&near)));
        let later = now + MET_LEFT;
        assert!(search.end_meetings(later).is_empty(), "the connection still goes by the relay");
        assert!(search.relay_of(id(2)).is_some());
    }

    #[test]
    fn a_meeting_is_over_when_unused_or_left() {
        let now = Instant::now();
        let mut held = Use::new(now);
        assert!(!held.is_over(now + MET_UNUSED / 2) && held.is_over(now + MET_UNUSED));
        held.seen(now + MET_UNUSED / 2, true);
        assert!(!held.is_over(now + MET_UNUSED));
        let left = now + MET_UNUSED;
        held.seen(left, false);
        held.seen(left + MET_LEFT / 2, false);
        assert!(!held.is_over(left + MET_LEFT / 2) && held.is_over(left + MET_LEFT));
        held.seen(left + MET_LEFT, true);
        assert!(!held.is_over(left + MET_LEFT), "it is needed again");
    }
}
