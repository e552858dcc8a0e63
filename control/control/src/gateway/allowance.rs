//! How much of the log one agent may fill: whoever belongs to the fleet may report, but what is on the log stays for
//! ever and its room is everybody's (`edge-agent/PROTOCOL.md` §2.6). Kept over reconnects.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use event_schema::{AgentId, Signed};
use tokio::time::Instant;

use super::Limits;

/// When what an agent did will be paid for, at its rates.
#[derive(Clone, Copy)]
struct Paid {
    reports: Instant,
    sessions: Instant,
}

/// What every agent has left.
#[derive(Default)]
pub(super) struct Allowances(Mutex<HashMap<AgentId, Paid>>);

impl Allowances {
    /// Takes what these reports cost; returns how long to wait before they are passed on: never longer than they cost or
    /// the burst, whichever is more. So an agent whose link broke while it waited, and who sends the same once more, does
    /// not wait for what never came through.
    pub(super) fn reports(
        &self,
        limits: &Limits,
        agent: AgentId,
        reports: &[Signed],
        now: Instant,
    ) -> Duration {
        let bytes: usize = reports.iter().map(|signed| signed.bytes.len()).sum();
        let bytes = bytes as f64 / f64::from(limits.report_bytes_per_s.max(1));
        let count = reports.len() as f64 / f64::from(limits.reports_per_s.max(1));
        let cost = Duration::from_secs_f64(bytes.max(count));
        self.of(limits, agent, now, |paid| {
            let most = now + limits.report_burst + limits.report_burst.max(cost);
            paid.reports = (paid.reports.max(now) + cost).min(most);
            (paid.reports - now).saturating_sub(limits.report_burst)
        })
    }

    /// Takes a session, if the agent has one left.
    pub(super) fn session(&self, limits: &Limits, agent: AgentId, now: Instant) -> bool {
        self.of(limits, agent, now, |paid| {
            let then = paid.sessions.max(now) + limits.session_every;
            let may = then - now <= limits.session_every * limits.session_burst;
            if may {
                paid.sessions = then;
            }
            may
        })
    }

    fn of<T>(&self, limits: &Limits, agent: AgentId, now: Instant, take: impl FnOnce(&mut Paid) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= limits.connections && !all.contains_key(&agent) {
            // Only who owes something has to be remembered.
            all.retain(|_, paid| paid.reports > now || paid.sessions > now);
        }
        take(all.entry(agent).or_insert(Paid { reports: now, sessions: now }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::Signature;

    fn signed(bytes: usize) -> Signed {
        Signed { bytes: vec![0; bytes], signature: Signature([0; 32], [0; 32]) }
    }

    #[test]
    fn bursts_are_free_and_the_rest_is_slowed_to_the_rate() {
        let (limits, all, start) = (Limits::default(), Allowances::default(), Instant::now());
        let (one, other) = (AgentId([1; 16]), AgentId([2; 16]));
        let megabyte = [signed(1 << 20)];
        let waits: Vec<u64> = (0..6).map(|_| all.reports(&limits, one, &megabyte, start).as_secs()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 16, 32]);
        assert_eq!(all.reports(&limits, other, &megabyte, start), Duration::ZERO, "each has its own");
        let later = start + Duration::from_secs(96);
        assert_eq!(all.reports(&limits, one, &megabyte, later).as_secs(), 0, "it is all paid for by then");
        // Tiny ones cost as many.
        let tiny: Vec<Signed> = (0..64).map(|_| signed(1)).collect();
        let waited: Duration =
            (0..400).map(|_| all.reports(&limits, AgentId([3; 16]), &tiny, start)).max().unwrap();
        assert_eq!(
            waited.as_secs(),
            400 * 64 / u64::from(limits.reports_per_s) - limits.report_burst.as_secs()
        );
    }

    #[test]
    fn tries_that_came_to_nothing_do_not_add_up() {
        let (limits, all, start) = (Limits::default(), Allowances::default(), Instant::now());
        let agent = AgentId([1; 16]);
        let megabyte = [signed(1 << 20)];
        for _ in 0..100 {
            all.reports(&limits, agent, &megabyte, start);
        }
        let mut now = start;
        let mut waited = all.reports(&limits, agent, &megabyte, now);
        assert!(waited <= limits.report_burst, "{waited:?}");
        // Whoever waits is still held to the rate, also with more than a burst at once.
        for (bytes, expected) in [(1 << 20, 16), (1 << 20, 16), (8 << 20, 128), (8 << 20, 128), (1 << 16, 1)]
        {
            now += waited;
            waited = all.reports(&limits, agent, &[signed(bytes)], now);
            assert_eq!(waited.as_secs(), expected);
        }
    }

    #[test]
    fn sessions_come_back_one_by_one_and_nobody_is_remembered_for_ever() {
        let limits = Limits { connections: 10, ..Limits::default() };
        let (all, start) = (Allowances::default(), Instant::now());
        let agent = AgentId([1; 16]);
        let many = (0..200).filter(|_| all.session(&limits, agent, start)).count();
        assert_eq!(many as u32, limits.session_burst);
        let later = start + limits.session_every * 3;
        assert_eq!((0..200).filter(|_| all.session(&limits, agent, later)).count(), 3);
        for n in 2..=255 {
            all.session(&limits, AgentId([n; 16]), later + limits.session_every * u32::from(n));
        }
        assert!(all.0.lock().unwrap().len() <= 12);
    }
}
