//! Sealing while the service runs, and what witnesses are told and tell (`events/AUDIT_FORMAT.md`,
//! `edge-agent/PROTOCOL.md` §2.8).
//!
//! One task keeps the Merkle tree of the log as records become durable, and signs a checkpoint now and then. The gateway
//! hands the newest to agents, who say what they hold; what they hold has to be a beginning of this log, or there are
//! two histories, which becomes a fact on the log and an alarm.
//!
//! Two rules keep the log's promise, never to sign two heads of which neither continues the other: the ledger's own
//! checkpoint on disk has to be a beginning of the log before anything is signed, and nothing is signed that is not
//! longer than every checkpoint a witness has shown.

#[cfg(test)]
mod tests;
pub(crate) mod tree;
mod witnesses;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_proto::link::{CheckpointSent, Holds};
use control_core::projection::{StandingView, Views};
use event_audit::ledger::{Ledger, LedgerError};
use event_audit::{Head, SignedCheckpoint};
use event_log::file::FileLog;
use event_schema::{AgentId, AuditConflict, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::pki::AuditKeys;
use crate::service::{Metrics, Origin, Service, now};
use tree::{Tree, TreeError};
use witnesses::Board;
pub use witnesses::{Standing, Witness};

/// Pause between two checkpoints. Each costs a few small files and their syncs, however much has happened meanwhile.
pub const SEAL_EVERY: Duration = Duration::from_secs(5);

/// How long the first checkpoint after a start waits to hear from witnesses, if the fleet has any: the longest pause
/// before an agent connects again, and a little. If this is an old copy of the log, they say so before a second history
/// is signed. A witness that holds no less than this service ends the wait, and so does having heard all agents.
pub const FIRST_SEAL_AFTER: Duration = Duration::from_secs(35);

/// Pause after the tree or the log could not be read or written.
const RETRY: Duration = Duration::from_secs(5);

/// How long an agent's word waits for the tree, or for this replica's copy of the log, to get as far.
const COMPARE_WITHIN: Duration = Duration::from_secs(20);

/// How long the last checkpoint may take when the service stops.
const FINISH_WITHIN: Duration = Duration::from_secs(10);

/// Proofs kept for witnesses that hold the same; most do.
const PROOFS_KEPT: usize = 64;

/// Wishes for a checkpoint that may wait.
const WISHES_MAX: usize = 16;

/// How sealing goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// As it should.
    Good,
    /// It waits: for the tree, for witnesses, for the log to outgrow what they hold, for the disk.
    Waiting(String),
    /// It will not go on by itself: the log is not the one that was signed.
    Stopped(String),
}

impl Progress {
    /// One word for programs, and the reason.
    pub fn parts(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Good => ("good", None),
            Self::Waiting(why) => ("waiting", Some(why)),
            Self::Stopped(why) => ("stopped", Some(why)),
        }
    }
}

/// What a witness's word means for its session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Entries of the checkpoint it holds; 0 if none.
    pub size: u64,
    /// That checkpoint is none of this history.
    pub conflicts: bool,
}

type Wish = oneshot::Sender<Result<Arc<SignedCheckpoint>, String>>;

/// A handle to the task that seals, and to what witnesses said.
#[derive(Clone)]
pub struct Sealing(Arc<Shared>);

struct Shared {
    tree: Tree,
    origin: String,
    position: watch::Receiver<u64>,
    /// Others write to this log too: this service's copy may be behind what a witness holds.
    shared_log: bool,
    newest: watch::Sender<Option<Arc<SignedCheckpoint>>>,
    signed_at: Mutex<Option<Timestamp>>,
    progress: Mutex<Progress>,
    /// No head of this size or less is signed, nor of what conflicts on the log name; and until when none at all.
    held_back: watch::Sender<HeldBack>,
    board: Board,
    proofs: Mutex<(u64, BTreeMap<u64, Arc<str>>)>,
    /// Heads of a log that is not sealed any more, for comparing.
    folded: Mutex<BTreeMap<u64, Head>>,
    wishes: mpsc::Sender<Wish>,
}

/// Why nothing is signed now.
enum Delay {
    /// A rule.
    Held(String),
    /// A failure.
    Tree(TreeError),
}

impl From<TreeError> for Delay {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

#[derive(Clone, Copy, Default)]
struct HeldBack {
    floor: u64,
    until: Option<Instant>,
}

/// Agents that belong to the fleet.
fn members(service: &Service) -> usize {
    let views = service.views();
    views.fleet.agents.values().filter(|agent| agent.standing == StandingView::Approved).count()
}

/// The most that was held of another history, as far as that is on the log, whichever service recorded it.
pub(crate) fn floor_of(views: &Views) -> u64 {
    views.conflicts.conflicts.iter().map(|conflict| conflict.held.0).max().unwrap_or_default()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sealing {
    /// Begins to seal the service's log, `files` if it is in a folder, into the tree in `dir`, until `stop`.
    pub fn start(
        service: Service,
        dir: PathBuf,
        keys: AuditKeys,
        shared_log: bool,
        files: Option<Arc<FileLog>>,
        stop: watch::Receiver<bool>,
    ) -> (Self, JoinHandle<()>) {
        let (wishes, wished) = mpsc::channel(WISHES_MAX);
        let until = (members(&service) > 0).then(|| Instant::now() + FIRST_SEAL_AFTER);
        let origin = keys.list().origin().to_owned();
        let shared = Arc::new(Shared {
            tree: Tree::new(Arc::clone(service.log()), files, Arc::new(keys), dir),
            origin,
            position: service.position(),
            shared_log,
            newest: watch::Sender::new(None),
            signed_at: Mutex::default(),
            progress: Mutex::new(Progress::Waiting("the log is being compared with what was signed".into())),
            held_back: watch::Sender::new(HeldBack { floor: 0, until }),
            board: Board::default(),
            proofs: Mutex::default(),
            folded: Mutex::default(),
            wishes,
        });
        let sealing = Self(shared);
        let task = tokio::spawn(sealing.clone().run(service, wished, stop));
        (sealing, task)
    }

    async fn run(self, service: Service, mut wished: mpsc::Receiver<Wish>, mut stop: watch::Receiver<bool>) {
        let mut position = self.0.position.clone();
        let mut held_back = self.0.held_back.subscribe();
        let mut due = Instant::now();
        loop {
            let behind = *position.borrow_and_update() > self.sealed();
            let mut wishes = Vec::new();
            tokio::select! {
                // Also when whoever would say so is gone. The last checkpoint is made by `finish`.
                () = async { drop(stop.wait_for(|stop| *stop).await) } => return,
                Some(wish) = wished.recv() => wishes.push(wish),
                _ = held_back.changed() => {}
                _ = position.changed(), if !behind => {}
                () = sleep_until(due), if behind => {}
            }
            while let Ok(wish) = wished.try_recv() {
                wishes.push(wish);
            }
            if wishes.is_empty() && Instant::now() < due {
                continue;
            }
            let sealed = self.seal(&service).await;
            due = Instant::now() + if sealed.is_err() { RETRY } else { SEAL_EVERY };
            // A wait that ends in between is not overslept.
            if let Some(until) = self.0.held_back.borrow().until {
                due = due.min(until);
            }
            for wish in wishes {
                // Whoever does not wait any more does not need it.
                let _ = wish.send(sealed.clone());
            }
        }
    }

    /// Feeds the tree and signs it if that is due; the newest checkpoint, or why there is none over the whole log.
    async fn seal(&self, service: &Service) -> Result<Arc<SignedCheckpoint>, String> {
        let sealed = self.try_seal(service).await;
        let progress = match &sealed {
            Ok(_) => Progress::Good,
            Err(progress) => progress.clone(),
        };
        let before = std::mem::replace(&mut *locked(&self.0.progress), progress.clone());
        if before != progress {
            match &progress {
                Progress::Good => {}
                Progress::Waiting(why) => tracing::info!(%why, "history is not sealed yet"),
                Progress::Stopped(why) => tracing::error!(%why, "ALARM: history is not sealed any more"),
            }
        }
        sealed.map_err(|progress| progress.parts().1.unwrap_or_default().to_owned())
    }

    async fn try_seal(&self, service: &Service) -> Result<Arc<SignedCheckpoint>, Progress> {
        if let stopped @ Progress::Stopped(_) = &*locked(&self.0.progress) {
            return Err(stopped.clone());
        }
        let tree = &self.0.tree;
        if !tree.is_open().await {
            let end = *self.0.position.borrow();
            if let Err(error) = tree.open(end).await {
                return Err(self.failed(service, error).await);
            }
            if let Some(newest) = tree.newest().await {
                self.0.newest.send_replace(Some(Arc::new(newest)));
            }
            self.hear_again(service, u64::MAX).await;
        }
        let floor = floor_of(&service.views());
        match self.feed_and_sign(service.metrics(), floor).await {
            Ok(newest) => {
                // What this copy of the log was too short for may be there now.
                self.hear_again(service, newest.head().size).await;
                Ok(newest)
            }
            Err(Delay::Held(why)) => Err(Progress::Waiting(why)),
            Err(Delay::Tree(error)) => Err(self.failed(service, error).await),
        }
    }

    /// Signs what is durable, if that may be. `floor` is what conflicts on the log forbid ([`floor_of`]).
    async fn feed_and_sign(&self, metrics: &Metrics, floor: u64) -> Result<Arc<SignedCheckpoint>, Delay> {
        let end = *self.0.position.borrow();
        let fed = self.0.tree.feed(end).await?;
        let size = fed.size;
        let newest = self.0.newest.borrow().clone();
        if let Some(newest) = newest.filter(|newest| newest.head().size == size) {
            return Ok(newest);
        }
        let HeldBack { floor: heard, until } = *self.0.held_back.borrow();
        let floor = floor.max(heard);
        if size <= floor {
            return Err(Delay::Held(format!(
                "a witness holds a checkpoint over {floor} entries of another history; this log has {size}, and no \
                 second head of that size or less is signed"
            )));
        }
        if until.is_some_and(|until| Instant::now() < until) {
            return Err(Delay::Held(
                "after a start the agents' checkpoints are waited for, for 35 s at most".into(),
            ));
        }
        self.0.held_back.send_if_modified(|held| held.until.take().is_some());
        let signed = Arc::new(self.0.tree.sign(fed).await?);
        tracing::debug!(head = %signed.head(), "history sealed");
        metrics.checkpoints.add(1);
        *locked(&self.0.signed_at) = Some(now());
        self.0.newest.send_replace(Some(Arc::clone(&signed)));
        Ok(signed)
    }

    /// The last checkpoint, when nothing more is decided and the log is not closed yet; unless it is not allowed now.
    pub(crate) async fn finish(&self, metrics: &Metrics, floor: u64) {
        // The tree may be in use for long, by whoever folds a whole log to open it; the log is not to wait for that.
        let last = timeout(FINISH_WITHIN, async {
            if self.0.tree.is_open().await
                && let Err(Delay::Tree(error)) = self.feed_and_sign(metrics, floor).await
            {
                tracing::warn!(%error, "the last records are sealed after the next start");
            }
            self.0.tree.close().await;
        });
        if last.await.is_err() {
            tracing::warn!("the last records are sealed after the next start: the audit tree is busy");
        }
    }

    /// What an error of the tree means. That the log is not the one signed is recorded.
    async fn failed(&self, service: &Service, error: TreeError) -> Progress {
        let why = error.to_string();
        let (signed, found) = match error {
            TreeError::Ledger(LedgerError::Rewritten { signed, found }) => (signed, found),
            TreeError::Ledger(LedgerError::CutOff { signed, size })
                if self.0.shared_log && !self.has_settled() =>
            {
                return Progress::Waiting(format!(
                    "this copy of the log has {size} entries, {} were signed already: it may still be behind",
                    signed.size
                ));
            }
            TreeError::Ledger(LedgerError::CutOff { signed, .. }) => match self.whole_log().await {
                Ok(found) => (signed, found),
                Err(error) => return Progress::Waiting(error.to_string()),
            },
            TreeError::Remade => return Progress::Waiting(why),
            _ => {
                self.0.tree.close().await;
                return Progress::Waiting(why);
            }
        };
        let held_note = self.0.tree.promised_note().await.unwrap_or_default();
        self.record(service, None, signed, held_note, found).await;
        Progress::Stopped(format!(
            "{why}. Nothing is signed any more; docs/operations.md says what to do when history conflicts"
        ))
    }

    /// Size and root of the log as it is, without the tree.
    async fn whole_log(&self) -> Result<Head, TreeError> {
        let end = *self.0.position.borrow();
        self.0.tree.fold(end).await
    }

    /// Whether the first wait after the start is over.
    fn has_settled(&self) -> bool {
        self.0.held_back.borrow().until.is_none_or(|until| Instant::now() >= until)
    }

    /// Puts a conflict on the log, once, and says it aloud.
    async fn record(&self, service: &Service, witness: Option<AgentId>, held: Head, note: String, log: Head) {
        let holder =
            witness.map_or_else(|| "this service's own folder".to_owned(), |agent| agent.to_string());
        tracing::error!(
            %holder, %held, %log,
            "ALARM: two histories: a signed checkpoint is held that this log does not continue"
        );
        let conflict = AuditConflict {
            witness,
            held_size: held.size,
            held_root: held.root.0,
            held_note: note,
            log_size: log.size,
            log_root: log.root.0,
        };
        let position = self.0.position.clone();
        let decided = service.decide(Origin::service("fleet".into()), move |state, _| {
            // A log that was too short when it was compared, and has what is missing by now: to be compared again.
            let outgrown = conflict.log_size < conflict.held_size && *position.borrow() >= conflict.held_size;
            if outgrown { Ok(vec![]) } else { control_core::audit::conflict(state, &conflict) }
        });
        if let Err(error) = decided.await {
            tracing::error!(%error, "the conflict of histories could not be recorded");
        }
    }

    /// Compares anew what could not be compared of checkpoints up to this size.
    async fn hear_again(&self, service: &Service, size: u64) {
        for (agent, note) in self.0.board.uncompared(size) {
            let holds = Holds { checkpoint: Some(note), refused: None };
            self.hear(service, agent, &holds).await;
        }
    }

    /// Takes an agent's word, compares it with the log, and records a conflict.
    pub(crate) async fn hear(&self, service: &Service, agent: AgentId, holds: &Holds) -> Heard {
        let told = now();
        let put = |held, standing| {
            let (note, refused) = (holds.checkpoint.clone(), holds.refused.clone());
            self.0.board.put(agent, Witness { held, note, told, standing, refused });
        };
        if let Some(refused) = &holds.refused {
            tracing::warn!(%agent, refused, "an agent did not take the checkpoint that it was shown");
        }
        let Some(note) = &holds.checkpoint else {
            put(None, Standing::Nothing);
            self.hear_enough(service, false);
            return Heard::default();
        };
        let (head, mut standing) = match self.0.board.known(agent, note) {
            Some(known) => known,
            None => {
                let keys = self.0.tree.keys.list().log_keys();
                let head = match SignedCheckpoint::open(note.as_bytes(), &self.0.origin, keys) {
                    Ok(checkpoint) => *checkpoint.head(),
                    Err(error) => {
                        tracing::warn!(%agent, %error, "an agent holds a checkpoint that none of the log's keys has signed");
                        put(None, Standing::Unverified(error.to_string()));
                        return Heard::default();
                    }
                };
                (head, self.standing_of(head).await)
            }
        };
        if let Standing::Conflict(found) = standing {
            self.record(service, Some(agent), head, note.clone(), found).await;
            if found.size < head.size && *self.0.position.borrow() >= head.size {
                standing = self.standing_of(head).await;
            }
        }
        put(Some(head), standing.clone());
        let conflicts = matches!(standing, Standing::Conflict(_));
        if conflicts {
            self.0.held_back.send_if_modified(|held| {
                let higher = held.floor < head.size;
                held.floor = held.floor.max(head.size);
                higher
            });
        }
        self.hear_enough(service, standing == Standing::Agrees && head.size >= self.sealed());
        Heard { size: head.size, conflicts }
    }

    /// What the log says of a head that a witness holds.
    async fn standing_of(&self, held: Head) -> Standing {
        match timeout(COMPARE_WITHIN, self.compare(held)).await {
            Ok(Ok(found)) if found == held => Standing::Agrees,
            Ok(Ok(found)) => Standing::Conflict(found),
            Ok(Err(error)) => Standing::Uncompared(error.to_string()),
            Err(_) => Standing::Uncompared("the audit tree is not up to date yet".into()),
        }
    }

    /// Ends the first wait, if this one saw the newest promise or there is nobody else to ask.
    fn hear_enough(&self, service: &Service, has_seen_all: bool) {
        let waits = self.0.held_back.borrow().until.is_some();
        if waits && (has_seen_all || self.0.board.len() >= members(service)) {
            self.0.held_back.send_if_modified(|held| held.until.take().is_some());
        }
    }

    /// As many entries of the log as a witness holds, or all of them if there are fewer.
    async fn compare(&self, held: Head) -> Result<Head, TreeError> {
        let mut position = self.0.position.clone();
        if self.0.shared_log {
            // An error: the service ends; then what it has is what it has.
            let beyond = position.wait_for(|position| *position >= held.size);
            let _ = timeout(COMPARE_WITHIN / 2, beyond).await;
            let size = *position.borrow();
            // Only the log itself can say that it is shorter than what is held, not a copy of it.
            if size < held.size && self.0.tree.end_of_log().await? > size {
                return Err(TreeError::Behind { size });
            }
        }
        if matches!(self.progress(), Progress::Stopped(_)) {
            let size = held.size.min(*position.borrow());
            if let Some(head) = locked(&self.0.folded).get(&size) {
                return Ok(*head);
            }
            let head = self.0.tree.fold(size).await?;
            let mut folded = locked(&self.0.folded);
            if folded.len() < PROOFS_KEPT {
                folded.insert(size, head);
            }
            return Ok(head);
        }
        let mut again = true;
        loop {
            let end = *position.borrow();
            let fed = self.0.tree.feed(end).await?;
            if fed.size < held.size {
                return Ok(fed);
            }
            match self.0.tree.head_at(held.size).await {
                Err(TreeError::Ledger(LedgerError::Tile { .. })) if again => again = false,
                found => return found,
            }
        }
    }

    /// The newest checkpoint for an agent that holds what it said last; none if there is nothing to show.
    pub(crate) async fn show(&self, heard: Heard, with_keys: bool) -> Option<(u64, CheckpointSent)> {
        let newest = self.0.newest.borrow().clone()?;
        let size = newest.head().size;
        let keys = with_keys.then(|| self.0.tree.keys.list().note().to_owned());
        if heard.conflicts {
            // There is no proof; the two notes speak for themselves.
            let advance = format!("old {}\n\n{}", heard.size, newest.note());
            return Some((size, CheckpointSent { keys, advance }));
        }
        if heard.size > size {
            return None;
        }
        let kept = {
            let proofs = locked(&self.0.proofs);
            (proofs.0 == size).then(|| proofs.1.get(&heard.size).cloned()).flatten()
        };
        let advance = match kept {
            Some(advance) => advance,
            None => {
                let advance = self.0.tree.advance(heard.size, newest).await;
                let text: Arc<str> = match advance {
                    Ok(advance) => advance.to_text().into(),
                    Err(error) => {
                        tracing::warn!(%error, "no proof for a witness");
                        return None;
                    }
                };
                let mut proofs = locked(&self.0.proofs);
                if proofs.0 != size {
                    *proofs = (size, BTreeMap::new());
                }
                if proofs.1.len() < PROOFS_KEPT {
                    proofs.1.insert(heard.size, Arc::clone(&text));
                }
                text
            }
        };
        Some((size, CheckpointSent { keys, advance: advance.to_string() }))
    }

    /// The newest checkpoint over everything that is durable now, for somebody who asks.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub async fn seal_now(&self) -> Result<Arc<SignedCheckpoint>, String> {
        let (wish, answer) = oneshot::channel();
        let stopping = |_| "the service is stopping".to_owned();
        self.0.wishes.send(wish).await.map_err(|_| "the service is stopping".to_owned())?;
        answer.await.map_err(stopping)?
    }

    /// The tree at its newest checkpoint, for an export beside the sealing; none if nothing was signed. Touches files.
    pub(crate) fn ledger_beside(&self) -> Result<Option<Ledger>, LedgerError> {
        self.0.tree.beside()
    }

    /// The keys that exports carry.
    pub(crate) fn keys(&self) -> Arc<AuditKeys> {
        Arc::clone(&self.0.tree.keys)
    }

    /// Changes with every checkpoint.
    pub fn checkpoints(&self) -> watch::Receiver<Option<Arc<SignedCheckpoint>>> {
        self.0.newest.subscribe()
    }

    /// Entries of the newest checkpoint; 0 if there is none.
    pub fn sealed(&self) -> u64 {
        self.0.newest.borrow().as_ref().map_or(0, |newest| newest.head().size)
    }

    /// When this process last signed.
    pub fn signed_at(&self) -> Option<Timestamp> {
        *locked(&self.0.signed_at)
    }

    /// How it goes.
    pub fn progress(&self) -> Progress {
        locked(&self.0.progress).clone()
    }

    /// The log's name.
    pub fn origin(&self) -> &str {
        &self.0.origin
    }

    /// What an agent said last, since the service was started.
    pub fn witness(&self, agent: AgentId) -> Option<Witness> {
        self.0.board.get(agent)
    }

    /// How many agents stand how.
    pub fn witness_counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.board.counts()
    }
}
