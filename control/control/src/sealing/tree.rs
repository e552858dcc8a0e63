//! The tree of the running service's log: fed in the order of positions, asked for heads and proofs.
//!
//! Everything that touches files runs on blocking threads, one at a time. Nothing is believed of what a former process
//! left: before the ledger is used, the log is read up to the newest checkpoint and has to lead to it.

use std::path::PathBuf;
use std::sync::Arc;

use event_audit::frontier::Frontier;
use event_audit::ledger::{Edge, Ledger, LedgerError};
use event_audit::message::Advance;
use event_audit::{Hash, Head, SignedCheckpoint};
use event_log::file::FileLog;
use event_log::{Entry, EventLog, Position, ReadError, ReadLimit};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::archive::{ArchiveError, BaseNote};
use crate::pki::AuditKeys;

/// Why the tree cannot be kept at the moment, or any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum TreeError {
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record is not where it should be.
    #[error("the log has no record at position {position}")]
    Missing { position: Position },
    /// The folder, or a log that is not the one sealed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// This copy of the log ends before what is to be compared, and others may have more of it.
    #[error("this replica's copy of the log ends at {size}: it may be behind")]
    Behind { size: u64 },
    /// A damaged tile makes it being fed anew.
    #[error("the audit tree is being made anew from the log")]
    Remade,
    /// The log begins later, and what is asked stands before it.
    #[error("the log begins with position {first} here; its beginning is in archives")]
    Archived { first: u64 },
    /// What the log says of its archived part can't be used.
    #[error(transparent)]
    Base(Box<ArchiveError>),
    /// It is not open (yet).
    #[error("the audit tree is not open yet")]
    Closed,
}

/// The ledger, once it is open and the log was shown to lead to it.
pub(super) struct Tree {
    log: Arc<dyn EventLog>,
    /// The same, if it is in a folder: its beginning may be in archives.
    files: Option<Arc<FileLog>>,
    pub(super) keys: Arc<AuditKeys>,
    dir: PathBuf,
    ledger: Arc<Mutex<Option<Ledger>>>,
}

type Slot = OwnedMutexGuard<Option<Ledger>>;

impl Tree {
    pub(super) fn new(
        log: Arc<dyn EventLog>,
        files: Option<Arc<FileLog>>,
        keys: Arc<AuditKeys>,
        dir: PathBuf,
    ) -> Self {
        Self { log, files, keys, dir, ledger: Arc::default() }
    }

    /// The edge of what was archived; none if nothing was.
    fn edge(&self) -> Result<Option<Edge>, TreeError> {
        let base = self.files.as_ref().and_then(|files| files.base());
        let note = base.map(|base| BaseNote::of(&base)).transpose();
        Ok(note.map_err(|error| TreeError::Base(Box::new(error)))?.map(|note| note.edge))
    }

    /// The ledger as it was at its newest checkpoint, for reading beside this one; none if nothing was signed. Touches
    /// files.
    pub(super) fn beside(&self) -> Result<Option<Ledger>, LedgerError> {
        let list = self.keys.list();
        Ledger::open_beside(&self.dir, list.origin(), list.log_keys())
    }

    pub(super) async fn is_open(&self) -> bool {
        self.ledger.lock().await.is_some()
    }

    /// Opens the ledger, and reads the log up to what was signed: it has to amount to that.
    ///
    /// # Errors
    /// [`LedgerError::Rewritten`] or [`LedgerError::CutOff`] if the log, which has `end` records, is another one.
    pub(super) async fn open(&self, end: u64) -> Result<(), TreeError> {
        let slot = self.slot().await;
        let (dir, origin) = (self.dir.clone(), self.keys.list().origin().to_owned());
        let keys = self.keys.list().log_keys().to_vec();
        let (slot, opened) = blocking(slot, move |slot| {
            *slot = None;
            Ledger::open(&dir, &origin, &keys)
        })
        .await;
        let mut ledger = opened?;
        if let Some(signed) = ledger.newest().map(|newest| *newest.head()) {
            let found = self.fold(signed.size.min(end)).await?;
            if found.size < signed.size {
                return Err(LedgerError::CutOff { signed, size: found.size }.into());
            }
            if found != signed {
                return Err(LedgerError::Rewritten { signed, found }.into());
            }
        }
        let edge = self.edge()?;
        // Full tiles are not read on opening; a damaged one is made again before anybody asks for it.
        let (mut slot, ledger) = blocking(slot, move |_| {
            match (ledger.scrub(), &edge) {
                (Err(error @ LedgerError::Tile { .. }), _) => make_anew(&mut ledger, edge.as_ref(), &error),
                // Its unfinished tiles were torn.
                (Ok(()), Some(edge)) if ledger.size() < edge.size() => ledger.start_over_at(edge),
                (scrubbed, _) => scrubbed?,
            }
            Ok::<_, LedgerError>(ledger)
        })
        .await;
        *slot = Some(ledger?);
        Ok(())
    }

    /// Size and root of the log's first `end` records, read one by one; those that were archived are believed to be what
    /// the log's base says, which is to be shown by what comes out.
    pub(super) async fn fold(&self, end: u64) -> Result<Head, TreeError> {
        let mut tree = match self.edge()? {
            Some(edge) if end < edge.size() => return Err(TreeError::Archived { first: edge.size() + 1 }),
            Some(edge) => edge.frontier(),
            None => Frontier::new(),
        };
        let mut next = Position(tree.size() + 1);
        while next.0 <= end {
            let page = self.page(next, end).await?;
            next = Position(next.0 + page.len() as u64);
            let hashing = tokio::task::spawn_blocking(move || {
                page.iter().for_each(|entry| tree.push(Hash::leaf(&entry.bytes)));
                tree
            });
            tree = hashing.await.expect("hashing does not panic");
        }
        Ok(tree.head())
    }

    /// The newest signed checkpoint on disk, whatever the log says.
    pub(super) async fn promised_note(&self) -> Option<String> {
        let path = self.dir.join("checkpoint");
        let _slot = self.slot().await;
        tokio::fs::read_to_string(path).await.ok()
    }

    /// Gives the folder back, to be opened anew after an error.
    pub(super) async fn close(&self) {
        *self.slot().await = None;
    }

    /// Takes in what the log has up to `end`; returns what the tree amounts to then.
    pub(super) async fn feed(&self, end: u64) -> Result<Head, TreeError> {
        let mut slot = self.slot().await;
        loop {
            let ledger = slot.as_ref().ok_or(TreeError::Closed)?;
            let size = ledger.size();
            if size >= end {
                return Ok(ledger.head());
            }
            let page = self.page(Position(size + 1), end).await?;
            let (back, fed) = blocking(slot, move |slot| {
                let ledger = slot.as_mut().ok_or(TreeError::Closed)?;
                page.iter().try_for_each(|entry| Ok::<_, TreeError>(ledger.append(&entry.bytes)?))
            })
            .await;
            slot = back;
            fed?;
        }
    }

    /// Where the log ends, as its servers know it.
    pub(super) async fn end_of_log(&self) -> Result<u64, TreeError> {
        Ok(self.log.last_position().await?.0)
    }

    /// The records from `first` on, at most to `end`; at least one.
    async fn page(&self, first: Position, end: u64) -> Result<Vec<Entry>, TreeError> {
        let mut page = self.log.read(first, ReadLimit::default()).await?;
        page.retain(|entry| entry.position.0 <= end);
        if page.is_empty() {
            return Err(TreeError::Missing { position: first });
        }
        for (entry, expected) in page.iter().zip(first.0..) {
            if entry.position.0 != expected {
                return Err(TreeError::Missing { position: Position(expected) });
            }
        }
        Ok(page)
    }

    /// The newest checkpoint.
    pub(super) async fn newest(&self) -> Option<SignedCheckpoint> {
        self.slot().await.as_ref().and_then(|ledger| ledger.newest().cloned())
    }

    /// Signs the head that feeding came to.
    ///
    /// # Errors
    /// [`TreeError::Remade`] if the tree was begun anew since: its shortness says nothing about the log then.
    pub(super) async fn sign(&self, fed: Head) -> Result<SignedCheckpoint, TreeError> {
        let keys = Arc::clone(&self.keys);
        let signed = self.ask(move |ledger| {
            if ledger.head() == fed { ledger.checkpoint(keys.signer()).map(Some) } else { Ok(None) }
        });
        signed.await?.ok_or(TreeError::Remade)
    }

    /// Size and root that the log had with `size` entries.
    pub(super) async fn head_at(&self, size: u64) -> Result<Head, TreeError> {
        self.ask(move |ledger| ledger.head_at(size)).await
    }

    /// The checkpoint for somebody who holds `old_size` entries of this history.
    pub(super) async fn advance(
        &self,
        old_size: u64,
        newest: Arc<SignedCheckpoint>,
    ) -> Result<Advance, TreeError> {
        self.ask(move |ledger| ledger.advance(old_size, &newest)).await
    }

    /// Asks the ledger; a tile that turns out to be damaged is made again by feeding it anew, which is up to the caller.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Ledger) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, TreeError> {
        let edge = self.edge()?;
        let (_slot, answer) = blocking(self.slot().await, move |slot| {
            let ledger = slot.as_mut().ok_or(TreeError::Closed)?;
            let answer = question(ledger);
            if let Err(error @ LedgerError::Tile { .. }) = &answer {
                make_anew(ledger, edge.as_ref(), error);
            }
            Ok(answer?)
        })
        .await;
        answer
    }

    async fn slot(&self) -> Slot {
        Arc::clone(&self.ledger).lock_owned().await
    }
}

/// Has the tree made anew from the log, as far as that reaches back, when a tile of it is damaged.
pub(crate) fn make_anew(ledger: &mut Ledger, edge: Option<&Edge>, error: &LedgerError) {
    match (edge, error) {
        (Some(edge), LedgerError::Tile { last, .. }) if *last <= edge.size() => tracing::error!(
            %error,
            "it is over entries that were archived: copy the file from the folder `audit` of the archive. Until then \
             nothing can be proved with it; sealing goes on"
        ),
        (edge, _) => {
            tracing::warn!(%error, "the audit tree is made anew from the log");
            match edge {
                Some(edge) => ledger.start_over_at(edge),
                None => ledger.start_over(),
            }
        }
    }
}

/// Runs what touches files beside the others.
async fn blocking<T: Send + 'static>(
    mut slot: Slot,
    work: impl FnOnce(&mut Option<Ledger>) -> T + Send + 'static,
) -> (Slot, T) {
    let working = tokio::task::spawn_blocking(move || {
        let done = work(&mut slot);
        (slot, done)
    });
    working.await.expect("the audit tree does not panic")
}
