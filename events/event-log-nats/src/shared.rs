//! What the parts of the log have in common: the servers, the copy with its applier, the end that is known, and how a
//! reader sees to it that the copy is not behind.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_log::file::FileLog;
use event_log::{Damage, Position, ReadError};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::{Instant, timeout_at};

use crate::applier::Applier;
use crate::connection::rest;
use crate::copy::Folder;
use crate::servers::{Servers, unavailable};

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) servers: Servers,
    /// Reads are served from here.
    pub(crate) copy: Arc<FileLog>,
    /// Held by whoever applies messages, and by the committer while a frame is on its way: nobody needs to fetch what
    /// was just sent.
    pub(crate) applier: AsyncMutex<Applier>,
    /// The sequence of the last message in the copy, for those who do not hold the applier.
    applied: AtomicU64,
    /// The last position in the copy, `None` once the log is closed.
    pub(crate) last: watch::Sender<Option<Position>>,
    pub(crate) closed: AtomicBool,
    /// Why appends are not getting on, for those who give up.
    trouble: Mutex<String>,
    /// The damage that was last reported, so that it is reported once.
    damage: Mutex<Option<Damage>>,
    /// Removed with the log if it is a temporary one. After `copy`, so that its files are closed first.
    _folder: Folder,
}

impl Shared {
    pub(crate) fn new(servers: Servers, applier: Applier, folder: Folder) -> Shared {
        let copy = Arc::clone(applier.copy());
        Shared {
            servers,
            applied: AtomicU64::new(applier.applied()),
            last: watch::Sender::new(Some(copy.last_stored())),
            copy,
            applier: AsyncMutex::new(applier),
            closed: AtomicBool::new(false),
            trouble: Mutex::default(),
            damage: Mutex::default(),
            _folder: folder,
        }
    }

    pub(crate) fn check_open(&self) -> Result<(), ReadError> {
        if self.closed.load(Ordering::Acquire) { Err(ReadError::Closed) } else { Ok(()) }
    }

    pub(crate) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Applies everything up to the message `last`; for those who hold the applier, and are never dropped meanwhile.
    pub(crate) async fn catch_up_with(&self, applier: &mut Applier, last: u64) -> Result<(), ReadError> {
        let caught_up = self.servers.catch_up(applier, last).await;
        self.announce(applier);
        if let Err(ReadError::Damaged(damage)) = &caught_up {
            self.report(damage);
        }
        caught_up
    }

    /// Applies everything that the leader has by now; for the same.
    pub(crate) async fn catch_up_with_leader(&self, applier: &mut Applier) -> Result<(), ReadError> {
        let last = self.servers.last_sequence().await?;
        self.catch_up_with(applier, last).await
    }

    /// Tells everyone how far the copy reaches now.
    pub(crate) fn announce(&self, applier: &Applier) {
        self.applied.store(applier.applied(), Ordering::Release);
        let reached = self.copy.last_stored();
        self.last.send_if_modified(|last| match last {
            Some(last) if *last < reached => {
                *last = reached;
                true
            }
            _ => false,
        });
    }

    /// Applies everything up to the message `last`, or whatever the leader says is the last one. Goes on in a task of
    /// its own when it is dropped: half a frame must not be left behind.
    pub(crate) async fn catch_up(self: &Arc<Self>, last: Option<u64>) -> Result<(), ReadError> {
        let shared = Arc::clone(self);
        let task = tokio::spawn(async move {
            let before = shared.applied();
            let last = match last {
                Some(last) => last,
                None => shared.servers.last_sequence().await?,
            };
            if last == shared.applied() {
                return Ok(());
            }
            let mut applier = shared.applier.lock().await;
            // More may have been applied since the leader was asked. Less than there was before is another matter.
            if (before..=applier.applied()).contains(&last) {
                return Ok(());
            }
            shared.catch_up_with(&mut applier, last).await
        });
        task.await.unwrap_or_else(|error| Err(unavailable(format!("catching up failed: {error}"))))
    }

    /// Sees to it that what anybody has acknowledged by now is in the copy. Asks until there is an answer, at most for
    /// `read_timeout`: a server that restarts or a cluster that elects is not the caller's concern.
    pub(crate) async fn freshen(self: &Arc<Self>) -> Result<(), ReadError> {
        let deadline = Instant::now() + self.servers.options.read_timeout;
        let mut attempt = 0;
        let mut last_reason = "no answer in time".to_owned();
        loop {
            self.check_open()?;
            let answer = timeout_at(deadline, self.catch_up(None)).await;
            match answer.unwrap_or_else(|_| Err(unavailable(last_reason.clone()))) {
                Err(ReadError::Unavailable { reason }) if Instant::now() < deadline => {
                    tracing::debug!(reason, "NATS did not answer a read, trying again");
                    last_reason = reason;
                    rest(&mut attempt, deadline).await;
                }
                // The copy is closed before whoever reads learns that the log is.
                Err(_) if self.check_open().is_err() => return Err(ReadError::Closed),
                answer => return answer,
            }
        }
    }

    /// Remembers why appends do not get on.
    pub(crate) fn note_trouble(&self, reason: String) {
        tracing::debug!(reason, "a frame is not stored so far");
        *lock(&self.trouble) = reason;
    }

    pub(crate) fn trouble(&self) -> String {
        let reason = lock(&self.trouble).clone();
        if reason.is_empty() { "no answer in time".to_owned() } else { reason }
    }

    fn report(&self, damage: &Damage) {
        let mut reported = lock(&self.damage);
        if reported.as_ref() != Some(damage) {
            tracing::error!(%damage, "the event log at the servers is damaged; nothing behind this place is read");
            *reported = Some(damage.clone());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Both hold one value that is replaced at once.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
