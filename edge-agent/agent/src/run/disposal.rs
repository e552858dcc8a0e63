//! A run's end with a disposal: what the run keeps of its manifest, given to `crate::disposal`
//! (`edge-agent/PROTOCOL.md` §2.9).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_schema::{Disposal, Disposed, ProblemClass, ProblemReported, RunId, Timestamp};
use sync_core::manifest::ManifestHead;

use super::record::RunFolder;
use super::work::problem;
use super::{RunManager, Shared};
use crate::disk::{ManifestFile, file_block_hashes};
use crate::disposal::{self, Outcome};

impl RunManager {
    /// Disposes of the files of a run at its source, as long as they are those of the manifest with this root. What cannot
    /// be begun is reported as a problem and disposes of nothing. None if the agent stops: it goes on after the restart.
    pub(crate) async fn dispose(
        &self,
        run: RunId,
        root: [u8; 32],
        disposal: Disposal,
        now: Timestamp,
    ) -> Option<Disposed> {
        let reporter = self.shared.host.reporter.clone();
        // What is archived is kept from when it goes, by the fleet's time: a clock that is wrong must not shorten that.
        self.shared.host.clock.known().await;
        let place = self.shared.runs().get(&run).and_then(|active| active.place.clone());
        let shared = self.shared.clone();
        let worked = tokio::task::spawn_blocking(move || {
            let place = place.ok_or_else(|| problem(ProblemClass::Internal, "the run is not known here"))?;
            shared.dispose(run, &place, root, disposal, now)
        });
        let outcome = worked.await.unwrap_or_else(|panic| {
            Err(problem(ProblemClass::Internal, format_args!("disposing failed: {panic}")))
        });
        match outcome {
            Ok(Some(Outcome { disposed, problems })) => {
                for problem in problems {
                    reporter.report(ProblemReported { run, problem }.into()).await;
                }
                tracing::info!(%run, ?disposed, "the source's files");
                Some(disposed)
            }
            Ok(None) => None,
            Err(problem) => {
                tracing::warn!(%run, "nothing is disposed of: {}", problem.detail);
                reporter.report(ProblemReported { run, problem }.into()).await;
                Some(Disposed::default())
            }
        }
    }
}

impl Shared {
    fn dispose(
        &self,
        run: RunId,
        place: &Path,
        root: [u8; 32],
        disposal: Disposal,
        now: Timestamp,
    ) -> Result<Option<Outcome>, event_schema::Problem> {
        let bad = |why: &str| problem(ProblemClass::BadManifest, why);
        let folder = RunFolder::open(&self.host.data, run)
            .map_err(|e| problem(ProblemClass::Io, format_args!("the run's folder: {e}")))?;
        let (signed, file) =
            folder.manifest().ok_or_else(|| bad("the run's manifest is not here any more"))?;
        let key = self.host.key.verifying_key().to_bytes();
        let head = ManifestHead::open(&signed, run, &key).map_err(|e| bad(&e.to_string()))?;
        if head.root != root {
            return Err(bad("the destinations confirmed another manifest than this agent signed"));
        }
        // Nobody has touched the file, but a disk may rot: it is looked at once more before anything goes.
        let hashes = file_block_hashes(&file)
            .map_err(|e| problem(ProblemClass::Io, format_args!("reading the manifest: {e}")))?;
        let manifest = ManifestFile::open(Arc::new(file)).map_err(|e| bad(&e.to_string()))?;
        if ManifestHead::of(run, head.source, manifest.known(), &hashes.strong) != head {
            return Err(bad("the run's manifest is damaged here"));
        }
        let whole = manifest.entry(0).is_ok_and(|entry| entry.path.is_empty());
        let top =
            if whole { place.to_owned() } else { place.parent().map_or_else(PathBuf::new, Path::to_owned) };
        if disposal != Disposal::Keep {
            crate::archive::register(&self.host.data, &top)
                .map_err(|e| problem(ProblemClass::Io, format_args!("noting the archive: {e}")))?;
        }
        let note = folder.path().join("disposal");
        let clock = || now.max(self.host.clock.now());
        disposal::dispose(&top, run, &manifest, disposal, &clock, &note, &self.stopping)
    }

    /// Ends disposals that are under way; they go on after a restart.
    pub(super) fn stop_disposals(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}
