//! Whom to connect to, where and when.
//!
//! Addresses come from the command, trackers and the local network; all are hints. A peer that is not
//! connected is tried again for as long as the run is active, with growing pauses; a fresh hint shortens
//! them. To avoid crossings the agent with the smaller id calls first.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use event_schema::AgentId;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use utp2::ContextId;
use utp2_tokio::{Connection, Endpoint};

use super::limits::{ADDRESSES, REDIAL, STAGGER};

/// Hints about an address that was tried so lately change nothing.
const TRIED_LATELY: Duration = Duration::from_secs(5);

struct Target {
    addresses: Vec<SocketAddr>,
    next: Instant,
    pause: Duration,
    tried: Option<Instant>,
    busy: bool,
}

/// The peers of one run.
pub(super) struct Dialer {
    targets: BTreeMap<AgentId, Target>,
}

impl Dialer {
    pub(super) fn new(
        now: Instant,
        me: AgentId,
        peers: impl IntoIterator<Item = (AgentId, Vec<SocketAddr>)>,
    ) -> Self {
        let target = |(agent, mut addresses): (AgentId, Vec<SocketAddr>)| {
            addresses.retain(is_usable);
            addresses.truncate(ADDRESSES);
            let wait = if me < agent { Duration::ZERO } else { jitter(Duration::from_secs(1)) };
            (agent, Target { addresses, next: now + wait, pause: REDIAL.0, tried: None, busy: false })
        };
        Self { targets: peers.into_iter().filter(|(agent, _)| *agent != me).map(target).collect() }
    }

    /// Somebody says that a peer can be reached there.
    pub(super) fn hint(&mut self, now: Instant, agent: AgentId, address: SocketAddr) {
        let Some(target) = self.targets.get_mut(&agent).filter(|_| is_usable(&address)) else { return };
        let known = target.addresses.iter().position(|a| *a == address);
        match known {
            Some(at) => drop(target.addresses.remove(at)),
            None if target.addresses.len() == ADDRESSES => drop(target.addresses.pop()),
            None => {}
        }
        // Fresh hints first.
        target.addresses.insert(0, address);
        if known.is_none() || target.tried.is_none_or(|at| now - at > TRIED_LATELY) {
            target.next = target.next.min(now + jitter(Duration::from_millis(100)));
        }
    }

    /// Peers to call now and where, at most `room` and none that is `not_now` to be called, such as who is connected;
    /// they count as being called until [`Self::ended`].
    pub(super) fn due(
        &mut self,
        now: Instant,
        room: usize,
        not_now: impl Fn(AgentId) -> bool,
    ) -> Vec<(AgentId, Vec<SocketAddr>)> {
        let calling = self.targets.values().filter(|t| t.busy).count();
        let mut due = Vec::new();
        for (&agent, target) in &mut self.targets {
            if calling + due.len() >= room {
                break;
            }
            if target.busy || target.next > now || target.addresses.is_empty() || not_now(agent) {
                continue;
            }
            (target.busy, target.tried) = (true, Some(now));
            due.push((agent, target.addresses.clone()));
        }
        due
    }

    /// Calls a peer with the next [`Self::due`], whatever pause it is in; false if nobody knows where it is.
    pub(super) fn call_now(&mut self, now: Instant, agent: AgentId) -> bool {
        let Some(target) = self.targets.get_mut(&agent).filter(|t| !t.addresses.is_empty()) else {
            return false;
        };
        target.next = target.next.min(now);
        true
    }

    /// We are in another network: what could not be reached from the last one may be near.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        for target in self.targets.values_mut() {
            target.pause = REDIAL.0;
            target.next = target.next.min(now + jitter(REDIAL.0));
        }
    }

    /// A call ended.
    pub(super) fn ended(&mut self, now: Instant, agent: AgentId, connected: bool) {
        let Some(target) = self.targets.get_mut(&agent) else { return };
        target.busy = false;
        if connected {
            target.pause = REDIAL.0;
        } else {
            target.next = now + jitter(target.pause);
            target.pause = (2 * target.pause).min(REDIAL.1);
        }
    }

    /// A connection was lost, or given up for another one.
    pub(super) fn lost(&mut self, now: Instant, agent: AgentId) {
        if let Some(target) = self.targets.get_mut(&agent) {
            target.next = now + jitter(target.pause);
        }
    }
}

/// Calls a peer at its addresses, one after the other, and takes the first connection.
pub(super) async fn call(
    endpoint: Endpoint,
    context: ContextId,
    agent: AgentId,
    addresses: Vec<SocketAddr>,
) -> Option<Connection> {
    let mut calls = JoinSet::new();
    for (i, address) in addresses.into_iter().enumerate() {
        let endpoint = endpoint.clone();
        calls.spawn(async move {
            sleep(STAGGER * u32::try_from(i).unwrap_or(u32::MAX)).await;
            (address, endpoint.connect(address, context).await)
        });
    }
    while let Some(ended) = calls.join_next().await {
        match ended {
            Ok((_, Ok(conn))) if AgentId::of_key(&conn.peer().public_key) == agent => return Some(conn),
            // An old address that somebody else of the run has now.
            Ok((address, Ok(_))) => tracing::debug!(%agent, %address, "another agent answered"),
            Ok((address, Err(error))) => tracing::debug!(%agent, %address, %error, "no connection"),
            Err(_) => {}
        }
    }
    None
}

/// Between half and one and a half times `around`.
fn jitter(around: Duration) -> Duration {
    // Without randomness the pauses are merely even.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    around.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX))
}

fn is_usable(address: &SocketAddr) -> bool {
    !address.ip().is_unspecified() && !address.ip().is_multicast() && address.port() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn calls_again_with_growing_pauses_and_at_once_on_a_new_hint() {
        let (me, peer) = (AgentId([1; 16]), AgentId([2; 16]));
        let mut now = Instant::now();
        let unusable = ["0.0.0.0:5".parse().expect("an address"), address(0)];
        let mut dialer = Dialer::new(now, me, [(me, vec![address(1)]), (peer, unusable.to_vec())]);
        assert!(dialer.due(now, 9, |_| false).is_empty(), "nowhere to call");
        dialer.hint(now, peer, address(2));
        now += ms(200);
        assert!(dialer.due(now, 0, |_| false).is_empty() && dialer.due(now, 9, |_| true).is_empty());
        assert_eq!(dialer.due(now, 9, |_| false), [(peer, vec![address(2)])]);
        assert!(dialer.due(now, 9, |_| false).is_empty(), "one call at a time");
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            dialer.ended(now, peer, false);
            let began = now;
            while dialer.due(now, 9, |_| false).is_empty() {
                now += ms(50);
            }
            last = now - began;
            assert!(last <= 2 * REDIAL.1);
        }
        assert!(last >= REDIAL.1 / 2);
        dialer.ended(now, peer, false);
        dialer.hint(now, peer, address(2));
        now += ms(200);
        assert!(dialer.due(now, 9, |_| false).is_empty(), "tried lately");
        dialer.hint(now, peer, address(3));
        now += ms(200);
        assert_eq!(dialer.due(now, 9, |_| false), [(peer, vec![address(3), address(2)])]);
        dialer.ended(now, peer, true);
        dialer.lost(now, peer);
        assert_eq!(dialer.due(now + 2 * REDIAL.0, 9, |_| false).len(), 1, "back to short pauses");
    }

    #[test]
    fn the_smaller_id_calls_first() {
        let (small, large) = (AgentId([1; 16]), AgentId([2; 16]));
        let now = Instant::now();
        let mut first = Dialer::new(now, small, [(large, vec![address(1)])]);
        let mut second = Dialer::new(now, large, [(small, vec![address(1)])]);
        assert_eq!(first.due(now, 9, |_| false).len(), 1);
        assert!(second.due(now, 9, |_| false).is_empty());
        assert_eq!(second.due(now + ms(1600), 9, |_| false).len(), 1);
    }
}
