//! Which relays a run knows, and which of them is asked (`edge-agent/PATHS.md` §4.1). Knows nothing of sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agent_proto::relay::Meeting;
use event_schema::AgentId;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// Relays that are considered for one meeting.
const CONSIDERED: usize = 8;

/// Members of which it is remembered that they are relays.
const HEARD: usize = 64;

/// How long a member counts as a relay after it was announced as one: trackers name only some of many members at a time.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// How long a relay that did not answer is passed over, and how many are.
const SILENT: Duration = Duration::from_secs(300);
const SILENT_KEPT: usize = 64;

/// The relays that were heard of in one run.
#[derive(Debug, Default)]
pub(super) struct KnownRelays {
    heard: BTreeMap<AgentId, (SocketAddr, Instant)>,
    silent: BTreeMap<SocketAddr, Instant>,
}

impl KnownRelays {
    /// A member is announced as a relay there.
    pub(super) fn hear(&mut self, now: Instant, agent: AgentId, addr: SocketAddr) {
        self.forget(now);
        if self.heard.len() < HEARD || self.heard.contains_key(&agent) {
            self.heard.insert(agent, (addr, now));
        }
    }

    /// Whether a member is one.
    pub(super) fn is_relay(&self, agent: AgentId) -> bool {
        self.heard.contains_key(&agent)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heard.is_empty()
    }

    /// Nobody answered there.
    pub(super) fn did_not_answer(&mut self, now: Instant, addr: SocketAddr) {
        self.forget(now);
        if self.silent.len() >= SILENT_KEPT
            && let Some(oldest) = self.silent.iter().min_by_key(|(_, at)| **at).map(|(addr, _)| *addr)
        {
            self.silent.remove(&oldest);
        }
        self.silent.insert(addr, now);
    }

    /// Those that did not answer lately.
    pub(super) fn silent(&mut self, now: Instant) -> BTreeSet<SocketAddr> {
        self.forget(now);
        self.silent.keys().copied().collect()
    }

    /// Where members are that may be asked for a meeting with `peer`: where they are `connected`, else where they were
    /// announced.
    pub(super) fn places(
        &mut self,
        now: Instant,
        peer: AgentId,
        connected: impl Fn(AgentId) -> Option<SocketAddr>,
    ) -> Vec<SocketAddr> {
        self.forget(now);
        let others = self.heard.iter().filter(|(relay, _)| **relay != peer);
        others.map(|(relay, (addr, _))| connected(*relay).unwrap_or(*addr)).collect()
    }

    fn forget(&mut self, now: Instant) {
        self.heard.retain(|_, (_, at)| now - *at < FORGOTTEN);
        self.silent.retain(|_, at| now - *at < SILENT);
    }
}

/// The relay of this round. Both sides come to the same one, whatever they call it: the order is made of the meeting and of
/// where each relay is. Who did not answer lately is passed over, as long as there are others.
pub(super) fn choose(
    meeting: &Meeting,
    places: &[SocketAddr],
    silent: &BTreeSet<SocketAddr>,
    round: usize,
) -> Option<SocketAddr> {
    let canonical = |addr: &SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
    let all: BTreeSet<SocketAddr> = places.iter().map(canonical).collect();
    let mut choice: Vec<SocketAddr> = all.iter().filter(|addr| !silent.contains(addr)).copied().collect();
    if choice.is_empty() {
        choice = all.into_iter().collect();
    }
    choice.sort_by_cached_key(|addr| rank(meeting, *addr));
    choice.truncate(CONSIDERED);
    choice.get(round % choice.len().max(1)).copied()
}

fn rank(meeting: &Meeting, addr: SocketAddr) -> [u8; 32] {
    let hash = Sha256::new().chain_update(meeting);
    let hash = match addr.ip() {
        IpAddr::V4(ip) => hash.chain_update(ip.octets()),
        IpAddr::V6(ip) => hash.chain_update(ip.octets()),
    };
    hash.chain_update(addr.port().to_be_bytes()).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: u8) -> SocketAddr {
        ([192, 0, 2, n], 4433).into()
    }

    fn agent(n: u8) -> AgentId {
        AgentId([n; 16])
    }

    #[test]
    fn both_sides_come_to_the_same_relay_whatever_they_call_it() {
        let silent = BTreeSet::new();
        let here: Vec<SocketAddr> = (1..6).map(addr).collect();
        let mut there = here.clone();
        there.reverse();
        // One that listens on both IP versions sees IPv4 addresses as IPv6 ones.
        there[0] = "[::ffff:192.0.2.5]:4433".parse().expect("an address");
        there.push(there[1]);
        for round in 0..7 {
            let chosen = choose(&[1; 16], &here, &silent, round);
            assert_eq!(chosen, choose(&[1; 16], &there, &silent, round));
            assert!(chosen.is_some());
        }
        let firsts: BTreeSet<_> = (0..50).filter_map(|n| choose(&[n; 16], &here, &silent, 0)).collect();
        assert_eq!(firsts.len(), 5, "meetings are spread over relays");
        assert_eq!(choose(&[1; 16], &[], &silent, 3), None);
    }

    #[test]
    fn what_does_not_answer_makes_room_and_is_asked_again_if_nothing_else_is_there() {
        let now = Instant::now();
        let mut relays = KnownRelays::default();
        // Forged announcements of twenty members, and one that is true.
        (1..=21).for_each(|n| relays.hear(now, agent(n), addr(n)));
        let mut asked = 0;
        loop {
            let places = relays.places(now, agent(99), |_| None);
            let chosen = choose(&[7; 16], &places, &relays.silent(now), 0).expect("some");
            asked += 1;
            if chosen == addr(21) {
                break;
            }
            relays.did_not_answer(now, chosen);
        }
        assert!(asked <= 21, "{asked}");
        let all: BTreeSet<SocketAddr> = (1..=21).map(addr).collect();
        assert!(choose(&[7; 16], &[addr(1)], &all, 0).is_some(), "the only one");
        assert!(relays.silent(now + SILENT).is_empty());
    }

    #[test]
    fn relays_are_forgotten_and_few() {
        let now = Instant::now();
        let mut relays = KnownRelays::default();
        (0..=255).for_each(|n| relays.hear(now, agent(n), addr(n)));
        assert_eq!(relays.heard.len(), HEARD);
        relays.hear(now + FORGOTTEN / 2, agent(1), addr(9));
        assert!(relays.is_relay(agent(2)));
        assert_eq!(relays.places(now + FORGOTTEN, agent(99), |_| None), [addr(9)]);
        assert!(!relays.is_relay(agent(2)));
        assert_eq!(relays.places(now + FORGOTTEN, agent(1), |_| None), [], "it is no relay to itself");
        assert_eq!(relays.places(now + FORGOTTEN, agent(2), |_| Some(addr(3))), [addr(3)]);
        for n in 0..200 {
            relays.did_not_answer(now, addr(n));
        }
        assert_eq!(relays.silent.len(), SILENT_KEPT);
        assert!(relays.places(now + 2 * FORGOTTEN, agent(2), |_| None).is_empty() && relays.is_empty());
    }
}
