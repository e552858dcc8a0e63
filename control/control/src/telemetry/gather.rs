//! Samples are added up: three buckets of different width are open for each agent in each run.

use std::collections::{BTreeMap, HashMap, HashSet};

use agent_proto::link::Progress;
use event_schema::{AgentId, RunId, Timestamp};

use super::row::{Row, Width};

/// Pairs of run and agent at once; samples of further ones are dropped.
const SERIES_MAX: usize = 50_000;

/// Runs of one agent at once: no agent takes the room of the others.
const AGENT_SERIES_MAX: usize = 64;

/// Beyond that, a run that was silent for so long gives way to another of the same agent.
const GIVES_WAY_SECONDS: u64 = 60;

/// Complete rows that wait to be written: some minutes of the largest fleet.
const READY_MAX: usize = 1_000_000;

/// Without a sample for so long a pair is forgotten: the widest buckets are complete by then.
const IDLE_SECONDS: u64 = 1_800;

/// A bucket that belongs to somebody.
pub(super) type Owned = (RunId, AgentId, Row);

/// A row that is in its file: whose, how wide, and when it begins.
pub(super) type Written = (RunId, AgentId, Width, u64);

/// Complete rows by their width.
pub(super) type Ready = BTreeMap<Width, Vec<Owned>>;

#[derive(Debug, Default)]
pub(super) struct Gatherer {
    series: HashMap<(RunId, AgentId), Series>,
    /// The runs of each agent in `series`.
    runs: HashMap<AgentId, Vec<RunId>>,
    ready: Ready,
    taken: u64,
    dropped: u64,
}

/// One agent in one run.
#[derive(Clone, Copy, Debug)]
struct Series {
    bytes_done: u64,
    bytes_sent: u64,
    /// Since when (ms) and how much was verified, for the highest rate.
    window: (u64, u64),
    /// Seconds, at the last sample.
    seen: u64,
    open: [Option<Row>; 3],
}

impl Gatherer {
    pub(super) fn take(&mut self, agent: AgentId, progress: &Progress, now: Timestamp) {
        let key = (progress.run, agent);
        let seconds = now.0 / 1000;
        if !self.has_room(key, seconds) {
            self.dropped += 1;
            return;
        }
        // What it had before is not of this time.
        let known = self.series.entry(key).or_insert(Series {
            bytes_done: progress.bytes_done,
            bytes_sent: progress.bytes_sent,
            window: (now.0, 0),
            seen: 0,
            open: [None; 3],
        });
        self.taken += 1;
        // An agent that was restarted may count anew.
        let verified = progress.bytes_done.saturating_sub(known.bytes_done);
        let sent = progress.bytes_sent.saturating_sub(known.bytes_sent);
        (known.bytes_done, known.bytes_sent) = (progress.bytes_done, progress.bytes_sent);
        known.seen = seconds;
        known.window.1 = known.window.1.saturating_add(verified);
        let elapsed = now.0.saturating_sub(known.window.0);
        let mut peak = 0;
        if elapsed >= 1000 || now.0 < known.window.0 {
            if elapsed > 0 {
                let rate = u128::from(known.window.1) * 1000 / u128::from(elapsed);
                peak = u64::try_from(rate).unwrap_or(u64::MAX);
            }
            known.window = (now.0, 0);
        }
        let row = Row {
            start: seconds,
            state: progress.state,
            samples: 1,
            peers: progress.peers,
            bytes_done: progress.bytes_done,
            bytes_sent: progress.bytes_sent,
            verified,
            sent,
            peak,
        };
        for (width, open) in Width::ALL.into_iter().zip(&mut known.open) {
            let start = seconds / width.seconds() * width.seconds();
            match open {
                Some(open) if open.start == start => open.add(&row),
                open => {
                    // Also when the clock went back: rows need not be in order.
                    if let Some(complete) = open.replace(Row { start, ..row }) {
                        push(&mut self.ready, &mut self.dropped, width, (key.0, key.1, complete));
                    }
                }
            }
        }
    }

    /// Whether there is room for a pair, which counts from then on; makes some among the agent's own.
    fn has_room(&mut self, key: (RunId, AgentId), seconds: u64) -> bool {
        if self.series.contains_key(&key) {
            return true;
        }
        if self.series.len() >= SERIES_MAX {
            return false;
        }
        let (run, agent) = key;
        let runs = self.runs.entry(agent).or_default();
        if runs.len() >= AGENT_SERIES_MAX {
            let silent = |run: &RunId| {
                self.series.get(&(*run, agent)).map_or(u64::MAX, |known| seconds.abs_diff(known.seen))
            };
            let Some(longest) = (0..runs.len()).max_by_key(|at| silent(&runs[*at])) else { return false };
            if silent(&runs[longest]) < GIVES_WAY_SECONDS {
                return false;
            }
            let gone = (runs.swap_remove(longest), agent);
            if let Some(known) = self.series.remove(&gone) {
                for (width, row) in Width::ALL.into_iter().zip(known.open) {
                    if let Some(row) = row {
                        push(&mut self.ready, &mut self.dropped, width, (gone.0, gone.1, row));
                    }
                }
            }
        }
        runs.push(run);
        true
    }

    /// Takes what is complete at a time, and forgets who is silent.
    pub(super) fn complete(&mut self, now: u64) -> Ready {
        let Self { series, runs, ready, dropped, .. } = self;
        series.retain(|(run, agent), known| {
            // Also one that was heard much later, before the clock went back.
            let is_idle = now.abs_diff(known.seen) >= IDLE_SECONDS;
            for (width, open) in Width::ALL.into_iter().zip(&mut known.open) {
                let is_over = |open: &mut Row| is_idle || open.start + width.seconds() <= now;
                if let Some(complete) = open.take_if(is_over) {
                    push(ready, dropped, width, (*run, *agent, complete));
                }
            }
            if is_idle && let Some(own) = runs.get_mut(agent) {
                own.retain(|of| of != run);
                if own.is_empty() {
                    runs.remove(agent);
                }
            }
            !is_idle
        });
        std::mem::take(&mut self.ready)
    }

    /// The narrowest buckets, complete or not.
    pub(super) fn narrow(&mut self) -> Vec<Owned> {
        let series = self.series.iter_mut();
        series.filter_map(|((run, agent), known)| Some((*run, *agent, known.open[0].take()?))).collect()
    }

    /// A run's rows of one width that are in no file yet.
    pub(super) fn recent(&self, width: Width, run: RunId) -> Vec<(AgentId, Row)> {
        let index = Width::ALL.iter().position(|known| *known == width).unwrap_or_default();
        let waiting = self.ready.get(&width).into_iter().flatten();
        let waiting = waiting.filter(|(of, ..)| *of == run).map(|(_, agent, row)| (*agent, *row));
        let open = self.series.iter().filter(|((of, _), _)| *of == run);
        let open = open.filter_map(|((_, agent), known)| Some((*agent, known.open[index]?)));
        waiting.chain(open).collect()
    }

    /// Goes on where the last process stopped: `rows` are narrow ones of the last buckets, in order, `written` the wider
    /// ones among them that are in their files.
    pub(super) fn resume(&mut self, rows: &[Owned], written: &HashSet<Written>, now: u64) {
        for (run, agent, row) in rows {
            if !self.has_room((*run, *agent), row.start) {
                continue;
            }
            let known = self.series.entry((*run, *agent)).or_insert(Series {
                bytes_done: row.bytes_done,
                bytes_sent: row.bytes_sent,
                window: (now.saturating_mul(1000), 0),
                seen: row.start,
                open: [None; 3],
            });
            (known.bytes_done, known.bytes_sent) = (row.bytes_done, row.bytes_sent);
            known.seen = row.start;
            for (width, open) in Width::ALL.into_iter().zip(&mut known.open).skip(1) {
                let start = row.start / width.seconds() * width.seconds();
                if written.contains(&(*run, *agent, width, start)) {
                    continue;
                }
                match open {
                    Some(open) if open.start == start => open.add(row),
                    open => {
                        if let Some(complete) = open.replace(Row { start, ..*row }) {
                            push(&mut self.ready, &mut self.dropped, width, (*run, *agent, complete));
                        }
                    }
                }
            }
        }
    }

    /// Samples taken and dropped.
    pub(super) fn figures(&self) -> (u64, u64) {
        (self.taken, self.dropped)
    }
}

fn push(ready: &mut Ready, dropped: &mut u64, width: Width, row: Owned) {
    let rows = ready.entry(width).or_default();
    if rows.len() < READY_MAX {
        rows.push(row);
    } else {
        *dropped += 1;
    }
}
