//! When to call, and when to take a relay, for peers that plain calls do not reach (`edge-agent/PATHS.md` §1). Knows
//! nothing of sockets; what it decides is carried out by `task/reaching.rs` and `sync/reaching.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use event_schema::AgentId;
use tokio::time::Instant;

/// How long a peer is tried again after each call, the last one for ever (`tracker/PROTOCOL.md` §6.1).
fn call_pause(calls: u32) -> Duration {
    Duration::from_secs(3 << calls.min(5)).min(Duration::from_secs(60))
}

/// Peers of one run that may be in trouble at a time; others are tried directly.
const TROUBLES: usize = 32;

/// How long a plain call may take before the peer is called through the trackers.
pub(super) const CALL_AFTER: Duration = Duration::from_millis(1500);

/// How long everything direct may take before a relay is asked.
pub(super) const RELAY_AFTER: Duration = Duration::from_secs(10);

/// Pause between two tries of a relay.
const RELAY_AGAIN: Duration = Duration::from_secs(20);

/// First and longest pause between looks for a direct way while a relay is in use.
const RELAYED_CALL: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(60));

/// First and longest pause between two tries to take a relayed connection to an address that answers: where it leads to
/// nobody, everything waits for a second or more, and whoever is of the run can name addresses.
const SEEK_AGAIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// Nobody has wanted the peer for so long.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Call the peer through trackers and probe it.
    Call(AgentId),
    /// Meet the peer at a relay: of those that suit, the one of this round. [`Reach::relay_ended`] must follow.
    Relay(AgentId, usize),
}

#[derive(Debug)]
struct Trouble {
    wanted: Instant,
    calls: u32,
    next_call: Instant,
    next_relay: Instant,
    rounds: usize,
    relaying: bool,
    relayed: bool,
    seeks: u32,
    next_seek: Instant,
}

/// The peers of one run that are in trouble.
#[derive(Debug, Default)]
pub(super) struct Reach {
    troubles: BTreeMap<AgentId, Trouble>,
}

impl Reach {
    /// A plain call begins.
    pub(super) fn wanted(&mut self, now: Instant, agent: AgentId) {
        if let Some(trouble) = self.troubles.get_mut(&agent) {
            trouble.wanted = now;
        } else if self.troubles.len() < TROUBLES {
            let fresh = Trouble {
                wanted: now,
                calls: 0,
                next_call: now + CALL_AFTER,
                next_relay: now + RELAY_AFTER,
                rounds: 0,
                relaying: false,
                relayed: false,
                seeks: 0,
                next_seek: now,
            };
            self.troubles.insert(agent, fresh);
        }
    }

    /// The peer is connected, or its connection has come to another way.
    pub(super) fn connected(&mut self, now: Instant, agent: AgentId, relayed: bool) {
        if !relayed {
            self.troubles.remove(&agent);
            return;
        }
        // Also one that called us by the relay.
        self.wanted(now, agent);
        if let Some(trouble) = self.troubles.get_mut(&agent).filter(|t| !t.relayed) {
            (trouble.relayed, trouble.calls) = (true, 0);
            trouble.next_call = now + RELAYED_CALL.0;
        }
    }

    /// Whether the relayed connection may be tried at an address that answers; counts as tried then. Once it has gone over
    /// to one, everything begins anew.
    pub(super) fn may_seek(&mut self, now: Instant, agent: AgentId) -> bool {
        let trouble = self.troubles.get_mut(&agent).filter(|t| t.relayed && t.next_seek <= now);
        let Some(trouble) = trouble else { return false };
        trouble.next_seek = now + (SEEK_AGAIN.0 * (1 << trouble.seeks.min(5))).min(SEEK_AGAIN.1);
        trouble.seeks += 1;
        true
    }

    /// The connection is gone: from the beginning, if it is wanted again.
    pub(super) fn lost(&mut self, agent: AgentId) {
        self.troubles.remove(&agent);
    }

    /// A meeting did not come about, or is over.
    pub(super) fn relay_ended(&mut self, now: Instant, agent: AgentId) {
        if let Some(trouble) = self.troubles.get_mut(&agent) {
            (trouble.relaying, trouble.rounds) = (false, trouble.rounds + 1);
            trouble.next_relay = now + RELAY_AGAIN;
        }
    }

    /// What is due. `relays`: some are known.
    pub(super) fn due(&mut self, now: Instant, relays: bool) -> Vec<Step> {
        self.troubles.retain(|_, t| t.relayed || t.relaying || now - t.wanted < FORGOTTEN);
        let mut due = Vec::new();
        for (&agent, t) in &mut self.troubles {
            if t.next_call <= now {
                let relayed = (RELAYED_CALL.0 * (t.calls + 1)).min(RELAYED_CALL.1);
                t.next_call = now + if t.relayed { relayed } else { call_pause(t.calls) };
                t.calls = t.calls.saturating_add(1).min(1000);
                due.push(Step::Call(agent));
            }
            if relays && !t.relayed && !t.relaying && t.next_relay <= now {
                t.relaying = true;
                due.push(Step::Relay(agent, t.rounds));
            }
        }
        due
    }

    /// Whether the peer was called.
    pub(super) fn is_called(&self, agent: AgentId) -> bool {
        self.troubles.get(&agent).is_some_and(|t| t.calls > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: AgentId = AgentId([2; 16]);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_call_then_a_relay_then_looks_for_a_direct_way() {
        let start = Instant::now();
        let mut reach = Reach::default();
        reach.wanted(start, PEER);
        assert_eq!(reach.due(start + ms(1400), true), []);
        assert!(!reach.is_called(PEER));
        assert_eq!(reach.due(start + ms(1500), true), [Step::Call(PEER)]);
        assert!(reach.is_called(PEER));
        assert_eq!(reach.due(start + ms(4500), true), [Step::Call(PEER)]);
        assert_eq!(reach.due(start + ms(10_000), false), [], "no relay known");
        assert_eq!(reach.due(start + ms(10_000), true), [Step::Relay(PEER, 0)]);
        assert_eq!(reach.due(start + ms(10_100), true), [], "one at a time");
        reach.relay_ended(start + ms(11_000), PEER);
        let later = reach.due(start + ms(31_000), true);
        assert!(later.contains(&Step::Relay(PEER, 1)), "the next one: {later:?}");
        let relayed = start + ms(32_000);
        reach.connected(relayed, PEER, true);
        assert_eq!(reach.due(relayed + ms(19_000), true), []);
        reach.connected(relayed + ms(19_000), PEER, true);
        assert_eq!(reach.due(relayed + ms(20_000), true), [Step::Call(PEER)], "told again changes nothing");
        assert_eq!(reach.due(relayed + ms(39_000), true), []);
        reach.connected(relayed + ms(39_500), PEER, false);
        assert_eq!(reach.due(relayed + ms(300_000), true), [], "direct: no trouble any more");
    }

    #[test]
    fn addresses_that_answer_and_lead_nowhere_are_tried_ever_less() {
        let start = Instant::now();
        let mut reach = Reach::default();
        assert!(!reach.may_seek(start, PEER));
        reach.connected(start, PEER, true);
        let tried = (0..3600).filter(|s| reach.may_seek(start + Duration::from_secs(*s), PEER)).count();
        assert!((12..=18).contains(&tried), "{tried} in an hour, of which each may hold it up for a second");
        reach.connected(start, PEER, false);
        assert!(!reach.may_seek(start + ms(3_600_000), PEER), "it has no relay to leave");
        reach.connected(start, PEER, true);
        assert!(reach.may_seek(start, PEER), "one that found a way and lost it begins anew");
    }

    #[test]
    fn troubles_are_few_and_forgotten() {
        let start = Instant::now();
        let mut reach = Reach::default();
        for i in 0..100 {
            reach.wanted(start, AgentId([i; 16]));
        }
        assert_eq!(reach.due(start + ms(2000), true).len(), TROUBLES);
        reach.wanted(start + ms(100_000), AgentId([0; 16]));
        reach.due(start + FORGOTTEN, true);
        assert_eq!(reach.troubles.len(), 1, "nobody wants the others any more");
    }

    #[test]
    fn months_of_absence_stay_a_call_a_minute() {
        let start = Instant::now();
        let mut reach = Reach::default();
        let mut calls = 0;
        for s in 0..100_000 {
            let now = start + Duration::from_secs(s);
            reach.wanted(now, PEER);
            calls += reach.due(now, false).len();
        }
        assert!((1_600..1_700).contains(&calls), "{calls}");
    }
}
