//! What the writer does with its state now and then: it attests it on the log (`state.attested`,
//! `events/AUDIT_FORMAT.md` §10) and writes it down as a snapshot, from which it goes on at the next start.
//!
//! An attestation tells the state after the record before it, and is appended with the fence that every record has, so
//! that it says so of exactly that place of the log, however many services write to it. Whoever folds the log holds
//! his state against it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use control_core::form;
use control_core::snapshot::SnapshotRef;
use control_core::{Rejection, State};
use event_log::ReadLimit;
use event_schema::{Event, Record, StateAttested, Timestamp};

use super::snapshots::Snapshots;
use super::wish::Wish;
use super::writer::Writer;
use super::{Origin, Shared, SubmitError};

/// Records after which the state is attested again, if nothing else is said.
pub const ATTEST_EVERY: u64 = 1_000;

/// Records after which another snapshot is written, if nothing else is said.
pub const SNAPSHOT_EVERY: u64 = 20_000;

/// Records that are worth a snapshot when the service stops: fewer are folded in a moment.
const SNAPSHOT_AT_STOP: u64 = 1_000;

/// Attesting and writing snapshots each take at most this part of the writer's time: a fleet of many thousand agents takes milliseconds to hash.
const OWN_SHARE: u32 = 50;

/// Checking what was attested takes at most this part of the time to read a log.
const CHECK_SHARE: u32 = 10;

/// What is known about attestations.
#[derive(Debug, Default)]
pub(super) struct Attested {
    /// Position of the newest attestation; 0 if there is none.
    pub(super) position: AtomicU64,
    /// Microseconds that the last hash took.
    took: AtomicU64,
}

/// When the writer attests and checks next.
pub(super) struct Pace {
    every: u64,
    snapshot_every: u64,
    attest_from: Instant,
    snapshot_from: Instant,
    check_from: Instant,
}

impl Pace {
    pub(super) fn new(every: u64, snapshot_every: u64) -> Self {
        let now = Instant::now();
        Self {
            every: every.max(1),
            snapshot_every: snapshot_every.max(1),
            attest_from: now,
            snapshot_from: now,
            check_from: now,
        }
    }
}

/// Wants the state attested if enough was recorded since it last was.
struct Attest {
    shared: Arc<Shared>,
    origin: Origin,
    least: u64,
}

impl Wish for Attest {
    fn decide(&mut self, _: &State, _: Timestamp) -> Result<Vec<Event>, Rejection> {
        // The writer folds into the projections before it decides alone: they are at the position that the record
        // will be fenced with.
        let views = self.shared.views();
        let newest = self.shared.attested.position.load(Ordering::Relaxed);
        if views.position().saturating_sub(newest) < self.least {
            return Ok(vec![]);
        }
        let start = Instant::now();
        let hash = views.hash();
        let took = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.shared.attested.took.store(took, Ordering::Relaxed);
        Ok(vec![StateAttested { at: views.position(), form: form::newest(&views), hash }.into()])
    }

    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn is_alone(&self) -> bool {
        true
    }

    fn answer(self: Box<Self>, result: Result<(), SubmitError>) {
        if let Err(error) = result {
            tracing::warn!(%error, "the state is attested later");
        }
    }
}

impl Writer {
    /// Attests the state if it is time to.
    pub(super) async fn attest_when_due(&mut self) {
        let newest = self.shared.attested.position.load(Ordering::Relaxed);
        if self.is_sound()
            && self.shared.healthy.load(Ordering::Relaxed)
            && self.last.0.saturating_sub(newest) >= self.pace.every
            && Instant::now() >= self.pace.attest_from
        {
            self.attest(self.pace.every).await;
            let took = Duration::from_micros(self.shared.attested.took.load(Ordering::Relaxed));
            self.pace.attest_from = Instant::now() + took * OWN_SHARE;
        }
    }

    /// Attests the state if anything was recorded since it last was: before the service stops.
    pub(super) async fn attest_at_stop(&mut self) {
        if self.shared.healthy.load(Ordering::Relaxed) {
            self.attest(1).await;
        }
    }

    async fn attest(&mut self, least: u64) {
        let (shared, origin) = (Arc::clone(&self.shared), Origin::service("fleet".into()));
        self.commit(VecDeque::from([Box::new(Attest { shared, origin, least }) as Box<dyn Wish>])).await;
    }

    /// Writes a snapshot if enough was folded since the newest one.
    pub(super) async fn snapshot_when_due(&mut self) {
        if Instant::now() >= self.pace.snapshot_from {
            self.snapshot(self.pace.snapshot_every).await;
        }
    }

    /// Writes a snapshot if folding again what came since the newest one would be felt.
    pub(super) async fn snapshot_at_stop(&mut self) {
        self.snapshot(SNAPSHOT_AT_STOP.min(self.pace.snapshot_every)).await;
    }

    async fn snapshot(&mut self, least: u64) {
        let shared = Arc::clone(&self.shared);
        let Some(snapshots) = &shared.snapshots else { return };
        if !self.is_sound() || self.last.0.saturating_sub(snapshots.newest()) < least {
            return;
        }
        let page = self.log.read(self.last, ReadLimit::entries(1)).await;
        let Some(record) =
            page.ok().and_then(|page| page.into_iter().find(|entry| entry.position == self.last))
        else {
            return;
        };
        let start = Instant::now();
        let encoded = {
            // Under the lock for reading: nobody but this task writes, and readers go on.
            let views = shared.views();
            // Behind what was published, when the log is folded anew after a failure.
            if views.position() != self.last.0 {
                return;
            }
            let attested = shared.attested.position.load(Ordering::Relaxed);
            let (state, correlations) = (self.state(), self.correlations());
            let snapshot = SnapshotRef { state, views: &views, correlations, attested };
            Snapshots::encode(snapshot, &record.bytes)
        };
        // Tens of megabytes to hash and sync: pings and reports are answered on this thread meanwhile.
        let writing = Arc::clone(&shared);
        let written = tokio::task::spawn_blocking(move || match &writing.snapshots {
            Some(snapshots) => snapshots.write(encoded),
            None => Ok(()),
        });
        if let Err(error) = written.await.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            tracing::warn!(%error, "no snapshot could be written; the next start takes longer");
        }
        self.pace.snapshot_from = Instant::now() + start.elapsed() * OWN_SHARE;
    }

    /// Holds what a record that was read attests against the state folded so far, unless that would take too long.
    pub(super) fn check_attested(&mut self, position: u64, record: &Record) {
        if !record.events.iter().any(|event| matches!(event, Event::StateAttested(_))) {
            return;
        }
        let start = Instant::now();
        if start < self.pace.check_from {
            return;
        }
        let views = self.shared.views();
        // Read again after a failed append, or attested before: known already.
        if views.position() + 1 != position {
            return;
        }
        match form::check(&views, position, record) {
            Some(Ok(())) => self.shared.metrics.attestations_checked.add(1),
            Some(Err(differs)) => {
                self.shared.metrics.attestations_differing.add(1);
                tracing::error!(
                    %differs,
                    "this service folds the log into another state than the one that wrote it: find out which of \
                     the two is wrong before you trust either"
                );
            }
            None => {}
        }
        drop(views);
        self.pace.check_from = Instant::now() + start.elapsed() * CHECK_SHARE;
    }
}
