//! The one writer of the agent's state, and the outbox of signed reports.
//!
//! A thread takes requests from everybody, puts what has come together into one transaction, syncs
//! it, and answers. So a report costs a share of a sync, and what belongs together (cursor, answer,
//! list of runs) is never torn. If the disk refuses, it tries again and everybody waits: nothing is
//! acted on that is not stored.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_proto::link::Progress;
use ed25519_dalek::SigningKey;
use event_schema::{AgentId, Report, ReportBody, RunId, Signed};
use portable_atomic::AtomicU64;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::clock;
use crate::limits::WRITES_WAITING;
use crate::store::{Cursor, Membership, RunChange, Store, StoreError, is_essential};

/// Pause before the disk is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Requests put into one transaction.
const BATCH_MAX: usize = 256;

/// What is to be written.
#[derive(Default)]
pub(crate) struct Write {
    /// Reports to number, sign and keep.
    pub(crate) reports: Vec<ReportBody>,
    /// The command cursor's new place.
    pub(crate) cursor: Option<Cursor>,
    /// What a command changes in the list of runs.
    pub(crate) run: Option<RunChange>,
    /// A run that is over.
    pub(crate) run_over: Option<RunId>,
    /// What the command with this sequence asked to be thinned is done, or cannot be.
    pub(crate) thinned: Option<u64>,
    /// Reports up to here are home.
    pub(crate) stored: Option<u64>,
    /// A new certificate or credential.
    pub(crate) membership: Option<Box<Membership>>,
    /// A newer trust bundle, checked.
    pub(crate) trust: Option<Signed>,
    /// The fleet removed this agent, or took it back.
    pub(crate) removed: Option<bool>,
    /// Every gateway of the fleet.
    pub(crate) gateways: Option<Vec<String>>,
    /// The µTP2 port.
    pub(crate) port: Option<u16>,
}

type Request = (Write, oneshot::Sender<()>);

/// Everybody's way to the agent's outbox and state.
#[derive(Clone)]
pub(crate) struct Reporter {
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Sequence of the last report in the outbox.
    last: watch::Sender<u64>,
    waiting: AtomicU64,
    dropped: AtomicU64,
    progress: Mutex<BTreeMap<RunId, Progress>>,
    progressed: Notify,
}

impl Reporter {
    /// Starts the thread; it ends with the last `Reporter`.
    pub(crate) fn start(store: Arc<Store>, key: SigningKey, outbox_max: u64) -> Result<Self, StoreError> {
        let last = store.report_sequence()?;
        let waiting = store.outbox_len()?;
        let shared = Arc::new(Shared {
            last: watch::channel(last).0,
            waiting: AtomicU64::new(waiting),
            dropped: AtomicU64::new(0),
            progress: Mutex::default(),
            progressed: Notify::new(),
        });
        let (requests, incoming) = mpsc::channel(WRITES_WAITING);
        let agent = AgentId::of_key(&key.verifying_key().to_bytes());
        let writer = Writer { store, key, agent, last, waiting, outbox_max, shared: shared.clone() };
        std::thread::Builder::new()
            .name("state".into())
            .spawn(move || writer.run(incoming))
            .expect("the system can start a thread");
        Ok(Self { requests, shared })
    }

    /// States a fact: signed, numbered and synced to disk when it returns; sent when the gateway can
    /// be reached. When the outbox is full, states and problems are dropped and counted instead.
    pub(crate) async fn report(&self, body: ReportBody) {
        self.write(Write { reports: vec![body], ..Write::default() }).await;
    }

    /// Telemetry: the latest of each run is sent while there is a link, a few times a second.
    pub(crate) fn progress(&self, mut progress: Progress) {
        let mut latest = self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unsent) = latest.remove(&progress.run) {
            // Connections are told now and then only.
            progress.connections = progress.connections.or(unsent.connections);
        }
        latest.insert(progress.run, progress);
        drop(latest);
        self.shared.progressed.notify_one();
    }

    /// Writes everything in one transaction, synced when it returns.
    pub(crate) async fn write(&self, write: Write) {
        let (done, answer) = oneshot::channel();
        // The thread goes only after the last `Reporter`, unless it panicked: then acting on would be
        // acting on what is not stored.
        self.requests.send((write, done)).await.expect("the state's thread lives");
        answer.await.expect("the state's thread lives");
    }

    /// Changes when a report enters the outbox; the value is its sequence.
    pub(crate) fn outbox_watch(&self) -> watch::Receiver<u64> {
        self.shared.last.subscribe()
    }

    /// Takes the latest telemetry of one run, the next after `last`, so that all have their turn.
    pub(crate) fn take_progress(&self, last: Option<RunId>) -> Option<Progress> {
        let mut latest = self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        let run = *latest.range((after, Bound::Unbounded)).chain(latest.iter()).next()?.0;
        latest.remove(&run)
    }

    /// Returns when there may be telemetry.
    pub(crate) async fn progressed(&self) {
        self.shared.progressed.notified().await;
    }

    /// Reports that wait.
    pub(crate) fn outbox_len(&self) -> u64 {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Reports dropped because the outbox was full, since the start.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

struct Writer {
    store: Arc<Store>,
    key: SigningKey,
    agent: AgentId,
    last: u64,
    waiting: u64,
    outbox_max: u64,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(mut self, mut incoming: mpsc::Receiver<Request>) {
        while let Some(first) = incoming.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX {
                match incoming.try_recv() {
                    Ok(request) => batch.push(request),
                    Err(_) => break,
                }
            }
            let (last, waiting, dropped) = loop {
                match self.apply(&batch) {
                    Ok(outcome) => break outcome,
                    Err(error) => {
                        tracing::error!(%error, "the agent's state cannot be stored; trying again");
                        std::thread::sleep(RETRY);
                    }
                }
            };
            (self.last, self.waiting) = (last, waiting);
            self.shared.waiting.store(waiting, Ordering::Relaxed);
            if dropped > 0 {
                let before = self.shared.dropped.fetch_add(dropped, Ordering::Relaxed);
                if before == 0 {
                    tracing::warn!(
                        "the outbox is full; states and problems are dropped until the gateway is back"
                    );
                }
            }
            self.shared.last.send_if_modified(|sequence| std::mem::replace(sequence, last) != last);
            for (_, done) in batch {
                // Whoever does not wait any more does not need to know.
                let _ = done.send(());
            }
        }
    }

    /// One transaction. Returns last sequence, waiting reports and dropped ones, to be taken over when
    /// it is stored.
    fn apply(&self, batch: &[Request]) -> Result<(u64, u64, u64), StoreError> {
        let change = self.store.change()?;
        let (mut last, mut waiting, mut dropped) = (self.last, self.waiting, 0);
        let mut home = None;
        for (write, _) in batch {
            if let Some(membership) = &write.membership {
                change.set_membership(membership)?;
            }
            if let Some(trust) = &write.trust {
                change.set_trust(trust)?;
            }
            if let Some(removed) = write.removed {
                change.set_removed(removed)?;
            }
            if let Some(gateways) = &write.gateways {
                change.set_gateways(gateways)?;
            }
            if let Some(port) = write.port {
                change.set_port(port)?;
            }
            if let Some(cursor) = write.cursor {
                change.set_cursor(cursor)?;
            }
            if let Some(run) = &write.run {
                change.apply(run)?;
            }
            if let Some(run) = write.run_over {
                change.forget_run(run)?;
            }
            if let Some(sequence) = write.thinned {
                change.forget_thinning(sequence)?;
            }
            home = home.max(write.stored);
            for body in &write.reports {
                if waiting >= self.outbox_max && !is_essential(body) {
                    dropped += 1;
                    continue;
                }
                last += 1;
                waiting += 1;
                change.add_report(last, &self.sign(last, body.clone(), None))?;
            }
        }
        if let Some(up_to) = home {
            if up_to > last {
                last = self.number_anew(&change, up_to)?;
            } else {
                change.forget_reports(up_to)?;
            }
        }
        change.commit()?;
        if home.is_some() {
            waiting = self.store.outbox_len()?;
        }
        Ok((last, waiting, dropped))
    }

    fn sign(&self, sequence: u64, body: ReportBody, time: Option<event_schema::Timestamp>) -> Signed {
        let time = time.unwrap_or_else(clock::now);
        Report { agent: self.agent, sequence, time, body }.sign(&self.key)
    }

    /// The service has reports that we never made: this state is an old copy. What waits gets numbers
    /// above theirs, or it would be taken for a repeat (`edge-agent/PROTOCOL.md` §2.4).
    fn number_anew(&self, change: &crate::store::Change, above: u64) -> Result<u64, StoreError> {
        tracing::warn!(above, "this data folder was restored from an older copy; numbering reports anew");
        let mut last = above;
        for signed in change.take_reports()? {
            let report = Report::decode(&signed.bytes)
                .map_err(|source| StoreError::Damaged { key: "outbox", source })?;
            last += 1;
            change.add_report(last, &self.sign(last, report.body, Some(report.time)))?;
        }
        change.set_report_sequence(last)?;
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::{CommandAccepted, CommandId, RunAgentState, RunStateReported};

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[5; 32])
    }

    fn state() -> ReportBody {
        RunStateReported { run: RunId([1; 16]), state: RunAgentState::Serving }.into()
    }

    fn accepted(sequence: u64) -> ReportBody {
        CommandAccepted { command: CommandId([2; 16]), sequence }.into()
    }

    fn sequences(store: &Store) -> Vec<u64> {
        let rows = store.outbox(0, usize::MAX, usize::MAX).expect("read");
        let public = key().verifying_key().to_bytes();
        let numbered = rows.into_iter().map(|(sequence, signed)| {
            let report = Report::open(&signed, &public).expect("our signature");
            assert_eq!(report.sequence, sequence);
            sequence
        });
        numbered.collect()
    }

    #[tokio::test]
    async fn reports_are_numbered_without_gaps_by_many_at_once() {
        let data = tempfile::tempdir().expect("a folder");
        let store = Arc::new(Store::open(&data.path().join("state.redb")).expect("opened"));
        let reporter = Reporter::start(store.clone(), key(), 1000).expect("started");
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let reporter = reporter.clone();
                tokio::spawn(async move { reporter.report(state()).await })
            })
            .collect();
        for task in tasks {
            task.await.expect("reported");
        }
        assert_eq!(sequences(&store), (1..=50).collect::<Vec<_>>());
        assert_eq!((reporter.outbox_len(), *reporter.outbox_watch().borrow()), (50, 50));
        reporter.write(Write { stored: Some(48), ..Write::default() }).await;
        assert_eq!(sequences(&store), [49, 50]);
        assert_eq!(reporter.outbox_len(), 2);
        drop(reporter);
        let reporter = Reporter::start(store.clone(), key(), 1000).expect("started");
        reporter.report(state()).await;
        assert_eq!(sequences(&store), [49, 50, 51]);
    }

    #[tokio::test]
    async fn after_a_restored_copy_reports_are_numbered_above_what_is_known() {
        let data = tempfile::tempdir().expect("a folder");
        let store = Arc::new(Store::open(&data.path().join("state.redb")).expect("opened"));
        let reporter = Reporter::start(store.clone(), key(), 1000).expect("started");
        reporter.report(state()).await;
        reporter.report(accepted(1)).await;
        reporter.write(Write { stored: Some(40), ..Write::default() }).await;
        assert_eq!(sequences(&store), [41, 42]);
        reporter.report(state()).await;
        assert_eq!(sequences(&store), [41, 42, 43]);
        // With nothing waiting, the next one is above as well.
        reporter.write(Write { stored: Some(60), ..Write::default() }).await;
        reporter.write(Write { stored: Some(70), ..Write::default() }).await;
        reporter.write(Write { stored: Some(71), reports: vec![state()], ..Write::default() }).await;
        assert!(sequences(&store).iter().all(|n| *n > 60));
    }

    #[tokio::test]
    async fn a_full_outbox_still_takes_what_matters() {
        let data = tempfile::tempdir().expect("a folder");
        let store = Arc::new(Store::open(&data.path().join("state.redb")).expect("opened"));
        let reporter = Reporter::start(store.clone(), key(), 3).expect("started");
        for _ in 0..5 {
            reporter.report(state()).await;
        }
        reporter.report(accepted(1)).await;
        assert_eq!((reporter.outbox_len(), reporter.dropped()), (4, 2));
        assert_eq!(sequences(&store), [1, 2, 3, 4], "no gap");
    }

    #[tokio::test]
    async fn the_latest_telemetry_of_each_run_wins() {
        let data = tempfile::tempdir().expect("a folder");
        let store = Arc::new(Store::open(&data.path().join("state.redb")).expect("opened"));
        let reporter = Reporter::start(store, key(), 1000).expect("started");
        let progress = |run, blocks_done| Progress {
            run: RunId([run; 16]),
            state: RunAgentState::Transferring,
            blocks_done,
            blocks_total: 0,
            bytes_done: 0,
            bytes_total: 0,
            bytes_sent: 0,
            peers: 0,
            entries: 0,
            connections: None,
            sync: None,
            standing: None,
        };
        for blocks in 0..10 {
            reporter.progress(progress(1, blocks));
            reporter.progress(progress(2, blocks + 100));
        }
        reporter.progressed().await;
        assert_eq!(reporter.take_progress(Some(RunId([1; 16]))), Some(progress(2, 109)));
        assert_eq!(reporter.take_progress(Some(RunId([2; 16]))), Some(progress(1, 9)));
        assert_eq!(reporter.take_progress(None), None);
    }
}
