//! The latest of what agents tell of their progress a few times a second: not facts, not on the log, gone with the
//! process. `crate::telemetry` keeps what they told over time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_proto::limits::{CONNECTIONS_TOLD, HOLDERS_TOLD};
use agent_proto::link::{PeerConnection, Progress, Standing};
use event_schema::{AgentId, RunId};

/// Pairs of run and agent; the largest runs together. Beyond that, those of ended runs are dropped.
const ENTRIES_MAX: usize = 50_000;

/// A rate follows changes with this time constant.
const RATE_WINDOW: Duration = Duration::from_secs(3);

/// Without news for so long nobody knows how an agent is connected.
const CONNECTIONS_STALE: Duration = Duration::from_secs(60);

/// Without news for so long a rate counts as 0.
const RATE_STALE: Duration = Duration::from_secs(10);

/// The latest of one agent in one run.
#[derive(Clone, Debug)]
pub struct Live {
    /// What it told.
    pub progress: Progress,
    /// Bytes verified per second, smoothed over some seconds.
    pub rate_bytes_s: f64,
    at: Instant,
    connections_at: Instant,
    ended: bool,
}

impl Live {
    /// How its peers are connected as it told last, unless that is too long ago.
    pub fn connections(&self, now: Instant) -> &[PeerConnection] {
        let fresh = !self.ended && now.saturating_duration_since(self.connections_at) < CONNECTIONS_STALE;
        self.progress.connections.as_deref().filter(|_| fresh).unwrap_or_default()
    }

    /// What keeps it from being done as it told last, unless that is too long ago.
    pub fn standing(&self, now: Instant) -> Option<&Standing> {
        let fresh = !self.ended && now.saturating_duration_since(self.connections_at) < CONNECTIONS_STALE;
        self.progress.standing.as_ref().filter(|_| fresh)
    }

    /// How long ago it told anything.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at)
    }
}

/// The latest of everybody.
#[derive(Debug, Default)]
pub struct Telemetry {
    live: Mutex<HashMap<(RunId, AgentId), Live>>,
}

impl Telemetry {
    fn live(&self) -> MutexGuard<'_, HashMap<(RunId, AgentId), Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what an agent told. That it is in the run was checked.
    pub fn take(&self, agent: AgentId, progress: Progress, at: Instant) {
        let mut live = self.live();
        let key = (progress.run, agent);
        if let Some(known) = live.get_mut(&key) {
            let seconds = at.saturating_duration_since(known.at).as_secs_f64();
            let bytes = progress.bytes_done.saturating_sub(known.progress.bytes_done);
            if seconds > 0.0 {
                let now = bytes as f64 / seconds;
                let weight = 1.0 - (-seconds / RATE_WINDOW.as_secs_f64()).exp();
                // The first rate is taken as it is: there is nothing to smooth it with.
                let first = known.rate_bytes_s == 0.0;
                known.rate_bytes_s =
                    if first { now } else { known.rate_bytes_s + weight * (now - known.rate_bytes_s) };
                known.at = at;
            }
            let (connections, standing) = (known.progress.connections.take(), known.progress.standing.take());
            known.progress = bounded(progress);
            if known.progress.connections.is_some() {
                known.connections_at = at;
            } else {
                // Told now and then only.
                (known.progress.connections, known.progress.standing) = (connections, standing);
            }
            return;
        }
        if live.len() >= ENTRIES_MAX {
            live.retain(|_, known| !known.ended);
            if live.len() >= ENTRIES_MAX {
                return;
            }
        }
        let progress = bounded(progress);
        live.insert(key, Live { progress, rate_bytes_s: 0.0, at, connections_at: at, ended: false });
    }

    /// What an agent told last about a run, with the rate as it counts at `now`.
    pub fn of(&self, run: RunId, agent: AgentId, now: Instant) -> Option<Live> {
        let mut live = self.live().get(&(run, agent)).cloned()?;
        if live.ended || now.saturating_duration_since(live.at) > RATE_STALE {
            live.rate_bytes_s = 0.0;
        }
        Some(live)
    }

    /// A run is over: its numbers stay as they are, as long as there is room.
    pub fn run_ended(&self, run: RunId) {
        for ((of, _), known) in self.live().iter_mut() {
            known.ended |= *of == run;
        }
    }
}

/// No more of it than an agent should tell.
fn bounded(mut progress: Progress) -> Progress {
    progress.connections.iter_mut().for_each(|told| told.truncate(CONNECTIONS_TOLD));
    progress.standing.iter_mut().for_each(|told| told.holders.truncate(HOLDERS_TOLD));
    progress
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::RunAgentState;

    fn progress(bytes_done: u64) -> Progress {
        Progress {
            run: RunId([1; 16]),
            state: RunAgentState::Transferring,
            blocks_done: 0,
            blocks_total: 0,
            bytes_done,
            bytes_total: 1_000_000,
            bytes_sent: 0,
            peers: 1,
            entries: 0,
            connections: None,
            sync: None,
            standing: None,
        }
    }

    #[test]
    fn connections_are_kept_for_a_while_and_bounded() {
        let (telemetry, start, agent) = (Telemetry::default(), Instant::now(), AgentId([2; 16]));
        let one = PeerConnection {
            peer: AgentId([3; 16]),
            way: agent_proto::link::Way::Relayed,
            relay: None,
            local: String::new(),
            remote: String::new(),
            initiator: true,
            rtt_us: 1,
            sent_per_s: 2,
            received_per_s: 3,
            since: event_schema::Timestamp(4),
            tried: Vec::new(),
            last_error: String::new(),
        };
        let told = |at: u64| {
            let now = start + Duration::from_secs(at);
            telemetry.of(RunId([1; 16]), agent, now).map(|live| live.connections(now).len())
        };
        let many = Some(vec![one; 2 * CONNECTIONS_TOLD]);
        telemetry.take(agent, Progress { connections: many, ..progress(0) }, start);
        telemetry.take(agent, progress(5), start + Duration::from_secs(50));
        assert_eq!((told(50), told(61)), (Some(CONNECTIONS_TOLD), Some(0)));
    }

    #[test]
    fn rates_follow_and_go_stale() {
        let (telemetry, start, agent) = (Telemetry::default(), Instant::now(), AgentId([2; 16]));
        let rate = |at: u64| {
            telemetry.of(RunId([1; 16]), agent, start + Duration::from_secs(at)).map(|live| live.rate_bytes_s)
        };
        assert_eq!(rate(0), None);
        for second in 0..=10 {
            telemetry.take(agent, progress(second * 1000), start + Duration::from_secs(second));
        }
        assert!((rate(10).unwrap() - 1000.0).abs() < 1.0);
        assert_eq!(rate(30), Some(0.0));
        // A restarted agent counts from the beginning: no negative rates.
        telemetry.take(agent, progress(0), start + Duration::from_secs(11));
        assert!(rate(11).unwrap() >= 0.0);
        telemetry.run_ended(RunId([1; 16]));
        assert_eq!(rate(11), Some(0.0));
    }
}
