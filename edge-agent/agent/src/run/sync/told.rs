//! What the control service is told of a synchronization job: conflicts, what cannot be here, the guard's questions and
//! how they ended. Numbers that must not be given twice are kept in the run's folder.

use std::collections::BTreeMap;

use agent_proto::link::{SyncPhase, SyncProgress};
use event_schema::{
    AgentId, BLOCKED_TOLD_MAX, ConflictFound, ConflictKey, ConflictSettled, GuardAnswer, GuardLifted,
    GuardRaised, Obstacle as Told, PathBlocked, PathUnblocked, RolledBack, RunAgentState, RunId, RunServed,
    RunStateReported, TransferStats, decode_exact, encode,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sync_core::sync::{Confirm, Obstacle};
use tokio::time::{Duration, Instant};

use crate::run::board::Reports;
use crate::run::record::RunFolder;

/// Name of the file with what was told, in the run's folder.
const FILE: &str = "told";

/// Version of that file.
const VERSION: u8 = 1;

/// How often a question may be told again because the counts have grown.
const GUARD_AGAIN: Duration = Duration::from_secs(60);

/// After a start it is known by then what is blocked still; what was told before and is not, is told to be no more.
pub(super) const BLOCKED_KNOWN: Duration = Duration::from_secs(60);

/// What survives a restart.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// Number of the last question of the guard.
    guard: u64,
    /// It is open.
    open: bool,
    /// Numbers of blocked paths that were told of.
    blocked: Vec<u64>,
}

/// See the module.
pub(super) struct Teller {
    run: RunId,
    folder: RunFolder,
    reports: Reports,
    kept: Kept,
    guard_told: Option<(Instant, u64)>,
    /// What is blocked since this start, by number.
    blocked: BTreeMap<u64, ()>,
    synchronizing: bool,
}

impl Teller {
    /// Goes on from what earlier lives told.
    pub(super) fn new(run: RunId, folder: RunFolder, reports: Reports) -> Self {
        let read = std::fs::read(folder.path().join(FILE)).ok();
        let kept = read.and_then(|bytes| decode_exact::<(u8, Kept)>("told", &bytes).ok());
        let kept = kept.filter(|(version, _)| *version == VERSION).map(|(_, kept)| kept).unwrap_or_default();
        let (blocked, guard_told) = (BTreeMap::new(), None);
        Self { run, folder, reports, kept, guard_told, blocked, synchronizing: false }
    }

    fn keep(&self) {
        if let Err(error) = self.folder.replace(FILE, &encode(&(VERSION, &self.kept)), true) {
            tracing::warn!(run = %self.run, %error, "cannot keep what the control service was told");
        }
    }

    /// The job is under way.
    pub(super) fn synchronizing(&mut self) {
        if !std::mem::replace(&mut self.synchronizing, true) {
            let state = RunAgentState::Synchronizing;
            self.reports.report(RunStateReported { run: self.run, state });
        }
    }

    /// Something does not work.
    pub(super) fn problem(&mut self, problem: event_schema::Problem) {
        self.reports.problem(problem);
    }

    /// Both versions of a file are kept.
    pub(super) fn conflict(&mut self, path: &[u8], copy: &[u8], loser: AgentId, winner: AgentId) {
        if let Some(conflict) = ConflictKey::of_copy(copy) {
            let (run, path, copy) = (self.run, path.to_vec(), copy.to_vec());
            self.reports.report(ConflictFound { run, conflict, path, copy, loser, winner });
        }
    }

    /// A file is gone here; perhaps it was a conflict's copy.
    pub(super) fn gone(&mut self, path: &[u8]) {
        if let Some(conflict) = ConflictKey::of_copy(path) {
            self.reports.report(ConflictSettled { run: self.run, conflict });
        }
    }

    /// Something cannot be at its path.
    pub(super) fn blocked(&mut self, path: &[u8], why: &Obstacle) {
        let number = number(path);
        self.blocked.insert(number, ());
        if self.kept.blocked.contains(&number) || self.kept.blocked.len() >= BLOCKED_TOLD_MAX {
            return;
        }
        self.kept.blocked.push(number);
        self.keep();
        let (obstacle, by) = obstacle(why);
        self.reports.report(PathBlocked { run: self.run, number, path: path.to_vec(), obstacle, by });
    }

    /// It can be now.
    pub(super) fn unblocked(&mut self, path: &[u8]) {
        self.blocked.remove(&number(path));
        self.unblock(&[number(path)]);
    }

    fn unblock(&mut self, numbers: &[u64]) {
        let before = self.kept.blocked.len();
        self.kept.blocked.retain(|number| !numbers.contains(number));
        if self.kept.blocked.len() != before {
            for &number in numbers {
                self.reports.report(PathUnblocked { run: self.run, number });
            }
            self.keep();
        }
    }

    /// Everything that is blocked still was told of since the start.
    pub(super) fn blocked_known(&mut self) {
        let over: Vec<u64> =
            self.kept.blocked.iter().copied().filter(|n| !self.blocked.contains_key(n)).collect();
        for number in over {
            self.unblock(&[number]);
        }
    }

    /// The guard asks.
    pub(super) fn guard(&mut self, missing: u64, total: u64) {
        let now = Instant::now();
        if !self.kept.open {
            // Never one twice, even if the file was lost.
            self.kept.guard = (self.kept.guard + 1).max(crate::clock::now().0);
            self.kept.open = true;
            self.guard_told = None;
            self.keep();
        }
        let grown = self.guard_told.is_none_or(|(at, told)| now - at >= GUARD_AGAIN && missing > told);
        if grown {
            self.guard_told = Some((now, missing));
            self.reports.report(GuardRaised { run: self.run, guard: self.kept.guard, missing, total });
        }
    }

    /// The question that is open.
    pub(super) fn question(&self) -> Option<u64> {
        self.kept.open.then_some(self.kept.guard)
    }

    /// The guard asks no more.
    pub(super) fn guard_lifted(&mut self, answer: Option<Confirm>) {
        if std::mem::take(&mut self.kept.open) {
            self.keep();
            let answer = answer.map(|answer| match answer {
                Confirm::Delete => GuardAnswer::Delete,
                Confirm::Restore => GuardAnswer::Restore,
            });
            self.reports.report(GuardLifted { run: self.run, guard: self.kept.guard, answer });
        }
    }

    /// The index is an older copy of itself.
    pub(super) fn rolled_back(&mut self) {
        self.reports.report(RolledBack { run: self.run });
    }

    /// The job ends here.
    pub(super) fn served(&mut self, stats: TransferStats) {
        self.reports.report(RunServed { run: self.run, stats });
    }

    /// Waits until all of it is durable.
    pub(super) async fn flush(self) {
        self.reports.flush().await;
    }
}

/// The same for a path after every restart.
fn number(path: &[u8]) -> u64 {
    let hash = Sha256::digest(path);
    hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn obstacle(why: &Obstacle) -> (Told, Vec<u8>) {
    match why {
        Obstacle::NameTaken { by } => (Told::NameTaken, by.clone()),
        Obstacle::BadName => (Told::BadName, Vec::new()),
        Obstacle::TooLarge => (Told::TooLarge, Vec::new()),
        Obstacle::NobodyHas => (Told::NobodyHas, Vec::new()),
        Obstacle::UnsafeLink => (Told::UnsafeLink, Vec::new()),
        Obstacle::NoFolder => (Told::NoFolder, Vec::new()),
        Obstacle::NotEmpty => (Told::NotEmpty, Vec::new()),
    }
}

/// How far a member is, as telemetry says it.
pub(super) fn progress(state: &str, status: &super::SyncStatus) -> SyncProgress {
    SyncProgress {
        phase: match state {
            "in sync" => SyncPhase::InSync,
            "guarded" => SyncPhase::Guarded,
            "indexing" => SyncPhase::Scanning,
            "synchronizing" => SyncPhase::Syncing,
            _ => SyncPhase::NoFolder,
        },
        entries: status.entries,
        left: status.to_bring + status.to_remove,
        bytes_left: status.bytes_left,
        conflicts: status.conflicts,
        blocked: status.blocked,
    }
}
