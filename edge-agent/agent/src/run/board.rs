//! What a run shows of itself, and how it reports.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_proto::limits::CONNECTIONS_TOLD;
use agent_proto::link::{Progress, Standing};
use event_schema::{
    Problem, ProblemClass, ProblemReported, ReportBody, Role, RunAgentState, RunId, TransferStats,
};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::limits::PROBLEMS_REPORTED;
use super::sync::SyncStatus;
use super::ways::ConnectionStatus;
use crate::report::Reporter;

/// A run as `flotilla-agent status` shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RunStatus {
    /// Which.
    pub(crate) run: RunId,
    /// The job's name.
    pub(crate) job: String,
    /// `source` or `destination`.
    pub(crate) role: &'static str,
    /// Where it stands, as `transferring`.
    pub(crate) state: &'static str,
    /// Entries seen while indexing, then those of the manifest.
    pub(crate) entries: u64,
    /// Content blocks that are here and verified.
    pub(crate) blocks_done: u64,
    /// Content blocks in all; 0 while unknown.
    pub(crate) blocks_total: u64,
    /// Content bytes that are here and verified.
    pub(crate) bytes_done: u64,
    /// Content bytes in all; 0 while unknown.
    pub(crate) bytes_total: u64,
    /// Blocks of the manifest that were found in others that are held here.
    pub(crate) manifest_reused: u64,
    /// Connected peers.
    pub(crate) peers: u32,
    /// What was moved, over all restarts.
    pub(crate) stats: TransferStats,
    /// Problems met since the start.
    pub(crate) problems: u64,
    /// The last of them.
    pub(crate) last_problem: Option<String>,
    /// How the peers are connected, or what was tried.
    pub(crate) connections: Vec<ConnectionStatus>,
    /// Of a synchronization job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sync: Option<SyncStatus>,
}

/// A run's status, written by its task and read by whoever asks.
#[derive(Clone)]
pub(super) struct Board(Arc<Mutex<RunStatus>>);

impl Board {
    pub(super) fn new(run: RunId, job: String, role: Role) -> Self {
        let role = match role {
            Role::Source => "source",
            Role::Destination => "destination",
            Role::Member => "member",
        };
        Self(Arc::new(Mutex::new(RunStatus {
            run,
            job,
            role,
            state: RunAgentState::Accepted.name(),
            entries: 0,
            blocks_done: 0,
            blocks_total: 0,
            bytes_done: 0,
            bytes_total: 0,
            manifest_reused: 0,
            peers: 0,
            stats: TransferStats::default(),
            problems: 0,
            last_problem: None,
            connections: Vec::new(),
            sync: None,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, RunStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn progress(&self, state: RunAgentState) -> Progress {
        let status = self.lock();
        Progress {
            run: status.run,
            state,
            blocks_done: status.blocks_done,
            blocks_total: status.blocks_total,
            bytes_done: status.bytes_done,
            bytes_total: status.bytes_total,
            bytes_sent: status.stats.bytes_sent,
            peers: status.peers,
            entries: status.entries,
            connections: None,
            sync: None,
            standing: None,
        }
    }

    /// The same with how the peers are connected and what is missing.
    pub(super) fn whole_progress(&self, state: RunAgentState, standing: Option<Standing>) -> Progress {
        let told =
            self.lock().connections.iter().take(CONNECTIONS_TOLD).map(ConnectionStatus::told).collect();
        Progress { connections: Some(told), standing, ..self.progress(state) }
    }
}

enum Item {
    Report(ReportBody),
    /// To be done when all before it is durable.
    Then(Box<dyn FnOnce() + Send>),
}

/// Reports of one run, made durable in order without holding its task up.
pub(super) struct Reports {
    run: RunId,
    items: mpsc::UnboundedSender<Item>,
    task: JoinHandle<()>,
    told: HashSet<(ProblemClass, Vec<u8>, String)>,
    board: Board,
}

impl Reports {
    pub(super) fn start(run: RunId, reporter: Reporter, board: Board) -> Self {
        let (items, mut queue) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Some(item) = queue.recv().await {
                match item {
                    Item::Report(body) => reporter.report(body).await,
                    Item::Then(act) => act(),
                }
            }
        });
        Self { run, items, task, told: HashSet::new(), board }
    }

    pub(super) fn report(&self, body: impl Into<ReportBody>) {
        // The task ends with this sender.
        let _ = self.items.send(Item::Report(body.into()));
    }

    /// Does something when everything reported so far is durable.
    pub(super) fn then(&self, act: impl FnOnce() + Send + 'static) {
        let _ = self.items.send(Item::Then(Box::new(act)));
    }

    /// Reports a problem once.
    pub(super) fn problem(&mut self, problem: Problem) {
        tracing::warn!(
            run = %self.run,
            class = ?problem.class,
            path = %problem.path.escape_ascii(),
            "{}",
            problem.detail
        );
        {
            let mut status = self.board.lock();
            status.problems += 1;
            status.last_problem = Some(problem.detail.clone());
        }
        if self.told.len() < PROBLEMS_REPORTED
            && self.told.insert((problem.class, problem.path.clone(), problem.detail.clone()))
        {
            self.report(ProblemReported { run: self.run, problem });
        }
    }

    /// A problem that may come again after it went away.
    pub(super) fn forget(&mut self, class: ProblemClass) {
        self.told.retain(|(told, _, _)| *told != class);
    }

    /// Waits until everything is durable.
    pub(super) async fn flush(self) {
        drop(self.items);
        if self.task.await.is_err() {
            tracing::error!("reporting panicked");
        }
    }
}
