//! Old segments of the embedded log are moved to an archive: by the running service now and then, or by
//! `flotilla log archive` on a folder that no service uses (`events/AUDIT_FORMAT.md` §11.3).
//!
//! Nothing is decided for it, and no event tells of it: it changes where records are, not what they say. A failure stops
//! archiving until the next try, never the service.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use event_audit::keys::KeyList;
use event_log::EventLog as _;
use event_log::file::{ClosedSegment, FileLog};
use event_schema::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::archive::{ArchiveError, Archiver, BaseNote, Copied, Manifest, Plan, Segment, plan};
use crate::at::At;
use crate::service::{Service, Snapshots, now};

/// How often it is looked for segments that are old enough, if nothing else is said.
pub const EVERY: Duration = Duration::from_secs(3_600);

/// Which segments leave, and where they go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Segments all of whose records are older than this.
    pub after: Duration,
    /// The archive: a folder that is there.
    pub to: PathBuf,
    /// How often it is looked.
    pub every: Duration,
}

/// How it goes. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Retention(Arc<Mutex<Option<String>>>);

impl Retention {
    /// Why it does not go on, if it does not.
    pub fn failing(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, failing: Option<String>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*state, &failing) {
            (was, Some(why)) if was.as_deref() != Some(why) => {
                tracing::warn!(%why, "old segments of the log are not archived; the service goes on");
            }
            (Some(_), None) => tracing::info!("old segments of the log are archived again"),
            _ => {}
        }
        *state = failing;
    }

    /// Begins to archive the service's log by the rule, until `stop`.
    pub(crate) fn start(
        service: Service,
        log: Arc<FileLog>,
        audit: PathBuf,
        keys: KeyList,
        rule: Rule,
        mut stop: watch::Receiver<bool>,
    ) -> (Self, JoinHandle<()>) {
        let retention = Self::default();
        let state = retention.clone();
        let task = tokio::spawn(async move {
            let job = Arc::new(Job { log, audit, keys, to: rule.to.clone() });
            loop {
                let before = At::Time(Timestamp(now().0.saturating_sub(millis(rule.after))));
                tokio::select! {
                    () = async { drop(stop.wait_for(|stop| *stop).await) } => return,
                    swept = job.sweep(&service, before) => state.set(swept.err().map(|error| error.to_string())),
                }
                tokio::select! {
                    () = async { drop(stop.wait_for(|stop| *stop).await) } => return,
                    () = sleep(rule.every) => {}
                }
            }
        });
        (retention, task)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A log and where its segments go.
struct Job {
    log: Arc<FileLog>,
    audit: PathBuf,
    keys: KeyList,
    to: PathBuf,
}

impl Job {
    /// Archives what is old enough, one segment after the other. Dropping it between two steps is what a crash would be.
    async fn sweep(self: &Arc<Self>, service: &Service, before: At) -> Result<(), ArchiveError> {
        loop {
            let signed = service.sealing().map_or(0, |sealing| sealing.sealed());
            let planned = self.blocking(move |job| {
                // Told at once, not on the day when the first segment is old enough.
                if !job.to.is_dir() {
                    return Err(ArchiveError::NoFolder(job.to.clone()));
                }
                plan(&job.log, before, signed, 1)
            });
            let Some(segment) = planned.await?.segments.pop() else { return Ok(()) };
            let copying = segment.clone();
            let copied = self.blocking(move |job| {
                let mut archiver = Archiver::open(&job.log, &job.audit, &job.keys, &job.to)?;
                let copied = archiver.copy(&job.log, &copying)?;
                Ok((archiver, copied))
            });
            let (archiver, copied) = copied.await?;
            let position = copied.note.position;
            let kept = service.keep_state_at(position).await;
            kept.map_err(|what| ArchiveError::State { position, what })?;
            let note = copied.note.clone();
            self.blocking(move |job| archiver.finish(&job.log, &copied)).await?;
            service.begins_behind(&note);
            service.metrics().segments_archived.add(1);
            service.metrics().records_archived.add(segment.last.0 + 1 - segment.first.0);
            tracing::info!(
                first = %segment.first, last = %segment.last, bytes = segment.bytes, to = %self.to.display(),
                "a segment of the log was archived"
            );
        }
    }

    /// Files are waited for beside the others.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Job) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<T, ArchiveError> {
        let job = Arc::clone(self);
        let working = tokio::task::spawn_blocking(move || work(&job));
        working.await.expect("archiving does not panic")
    }
}

/// What `archive` did, or would do.
#[derive(Clone, Debug)]
pub struct Report {
    /// Segments that were archived.
    pub archived: Vec<Segment>,
    /// What was to be archived, and why not more.
    pub plan: Plan,
    /// What is in the archive; none if nothing is.
    pub manifest: Option<Manifest>,
}

/// Archives everything before a place of the log in the folder `data`, which no service uses; `told` hears of each
/// segment.
///
/// # Errors
/// [`ArchiveError`]: what was archived until then is, and the next try goes on from there.
pub(crate) async fn archive(
    data: &Path,
    log: &FileLog,
    keys: &KeyList,
    before: At,
    to: &Path,
    dry_run: bool,
    mut told: impl FnMut(&ClosedSegment),
) -> Result<Report, ArchiveError> {
    let audit = data.join("audit");
    let ledger = event_audit::ledger::Ledger::open_beside(&audit, keys.origin(), keys.log_keys())?;
    let plan = plan(log, before, ledger.map_or(0, |ledger| ledger.size()), usize::MAX)?;
    if dry_run || plan.segments.is_empty() {
        return Ok(Report { archived: Vec::new(), plan, manifest: None });
    }
    let folder = data.join("snapshots");
    let failed = |source| ArchiveError::Io { doing: "open", path: folder.clone(), source };
    let snapshots = Snapshots::open(&folder).map_err(failed)?;
    if let Some(base) = log.base() {
        snapshots.begin_behind(&BaseNote::of(&base)?);
    }
    let mut archiver = Archiver::open(log, &audit, keys, to)?;
    let mut archived = Vec::new();
    for segment in &plan.segments {
        let copied: Copied = archiver.copy(log, segment)?;
        let position = copied.note.position;
        let kept = snapshots.keep_state_at(log, position).await;
        kept.map_err(|what| ArchiveError::State { position, what })?;
        archiver.finish(log, &copied)?;
        snapshots.begin_behind(&copied.note);
        archived.push(copied.segment);
        told(segment);
    }
    debug_assert!(log.first().await.is_ok_and(|first| first.0 > 1), "something was archived");
    Ok(Report { archived, plan, manifest: Some(archiver.manifest().clone()) })
}
