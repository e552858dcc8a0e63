//! How a run begins, stalls and completes: at the source and at a destination.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_schema::{
    ManifestSigned, Problem, ProblemClass, Role, RunAgentState, RunCompleted, RunStateReported, VersionKept,
};
use sync_core::config::OriginConfig;
use sync_core::manifest::{HeadError, ManifestHead, Source};
use sync_core::merkle::Hash;
use sync_core::{Destination, Origin, Phase, RunInfo};
use tokio::time::{Duration, Instant};

use super::{Machine, Task};
use crate::backup::restore::locate;
use crate::backup::{Held, Purpose, Shelf, VersionName};
use crate::disk::{FileHashes, ReadError, Staging, file_block_hashes};
use crate::hook::Hook;
use crate::run::blocks::Content;
use crate::run::event::{Finalized, Indexed, Made, Prepared, Settled, Wakeup};
use crate::run::limits::{DISK_RETRY, LOOK_AGAIN, LOOK_AGAIN_MAX};
use crate::run::neighbourhood::site_label;
use crate::run::work::{self, Served, Workers, problem};

/// How long a source that was restarted listens to what its peers have before it chooses what to send.
const SETTLE: Duration = Duration::from_secs(1);

/// What a run at a destination could not do for want of room.
enum Again {
    Prepare,
    Fetch,
    Finalize,
}

impl Task {
    /// Begins the run, or takes it up after a restart.
    pub(super) fn begin(&mut self) {
        if self.record.ended == Some(RunAgentState::Failed) {
            self.state = RunAgentState::Failed;
            self.board.lock().state = "failed";
            return;
        }
        if let Some(ended) = self.record.ended {
            self.state = ended;
            self.board.lock().state = ended.name();
        }
        match self.join.role {
            Role::Source => self.index(),
            Role::Member => {
                self.fail(work::problem(ProblemClass::Internal, "a member was asked to join as another"))
            }
            Role::Destination => {
                if let Err(why) = self.expect_hook() {
                    return self.fail(why);
                }
                let info = RunInfo {
                    run: self.join.run,
                    source_key: self.source_key,
                    version: crate::VERSION.into(),
                };
                // Without randomness ties are broken alike everywhere, which only costs some speed.
                let seed = getrandom::u64().unwrap_or(0);
                let source_key = self.source_key;
                let site = self.host.site.as_deref().map(|tag| site_label(self.join.run, tag));
                let mut destination = Destination::new(info, Self::fetching(), Self::uploads(), seed)
                    .at_site(self.host.me, site);
                if self.place().is_some_and(|place| self.host.held.any(&place)) {
                    destination = destination.with_manifests_held();
                }
                self.set_state(RunAgentState::FindingPeers);
                if let Some((signed, file)) = self.folder.manifest() {
                    if let Err(HeadError::Version(version)) =
                        ManifestHead::open(&signed, self.join.run, &source_key)
                    {
                        return match self.record.ended {
                            // What is in place stays; it is not served any more.
                            Some(_) => {
                                tracing::warn!(run = %self.join.run, version, "kept by another release")
                            }
                            None => self.fail(work::other_release(version)),
                        };
                    }
                    // Seconds for a manifest of gigabytes, in which other runs go on.
                    let hashes = tokio::task::block_in_place(|| file_block_hashes(&file));
                    if let (Ok(hashes), Ok(meta)) = (hashes, file.metadata())
                        && destination.restore_manifest(self.now(), signed, hashes.strong)
                    {
                        destination.restore_weak(hashes.weak);
                        self.blocks.set_manifest(meta.len(), Arc::new(file));
                    }
                }
                self.machine = Machine::Destination(Box::new(destination));
            }
        }
    }

    /// Sees to it that nothing gets its name before the hook that is asked for, if there is one to call.
    fn expect_hook(&self) -> Result<(), Problem> {
        let Some(name) = self.options.hook.as_ref().filter(|_| self.record.ended.is_none()) else {
            return Ok(());
        };
        if !self.host.hooks.contains_key(name) {
            let detail = format_args!("the hook {name:?} is not in this agent's configuration");
            return Err(problem(ProblemClass::NotFound, detail));
        }
        // A version has its own time to be seen: before it gets its name.
        if self.makes_version().is_none() {
            let noted = self.folder.set_holds();
            noted.map_err(|e| problem(work::disk_class(&e), format_args!("noting the hook: {e}")))?;
        }
        Ok(())
    }

    /// The hook to call, if one is asked for.
    fn hook(&self, place: &Path) -> Option<Calling> {
        let name = self.options.hook.as_ref()?;
        let hook = self.host.hooks.get(name)?.clone();
        let asked = self.options.hook_timeout_s.map(|s| Duration::from_secs(s.into()));
        let timeout = asked.map_or(hook.timeout, |asked| asked.min(hook.timeout));
        let mut environment: Vec<(&'static str, OsString)> = vec![
            ("FLOTILLA_HOOK", name.into()),
            ("FLOTILLA_RUN", self.join.run.to_string().into()),
            ("FLOTILLA_JOB", self.join.job.to_string().into()),
            ("FLOTILLA_JOB_NAME", self.join.job_name.as_str().into()),
            ("FLOTILLA_SOURCE", self.join.source.to_string().into()),
            ("FLOTILLA_DESTINATION", place.into()),
        ];
        if let Some(version) = self.makes_version() {
            environment.push(("FLOTILLA_VERSION", version.to_string().into()));
        }
        Some(Calling { hook, name: name.clone(), timeout, environment, stop: self.indexing.stop.clone() })
    }

    pub(super) fn place(&self) -> Option<PathBuf> {
        super::place(&self.host.storage, &self.join.path)
    }

    /// The name of the version that this destination is to make.
    pub(super) fn makes_version(&self) -> Option<&VersionName> {
        match &self.purpose {
            Purpose::Version(name) if self.join.role == Role::Destination => Some(name),
            _ => None,
        }
    }

    /// Does work that blocks and tells its outcome.
    fn work(&mut self, work: impl FnOnce() -> Wakeup + Send + 'static) {
        self.busy = true;
        let wakeups = self.wakeups.clone();
        tokio::spawn(async move {
            let outcome = match tokio::task::spawn_blocking(work).await {
                Ok(outcome) => outcome,
                Err(panic) => Wakeup::Prepared(Err(problem(
                    ProblemClass::Internal,
                    format_args!("work failed: {panic}"),
                ))),
            };
            // The run may have ended meanwhile.
            let _ = wakeups.send(outcome).await;
        });
    }

    // --- source ---

    fn index(&mut self) {
        let Some(path) = self.place() else { return self.fail(bad_path()) };
        self.set_state(RunAgentState::Indexing);
        let (folder, run, key, progress) =
            (self.folder.clone(), self.join.run, self.host.key.clone(), self.indexing.clone());
        let (known, catalog) = (self.host.known.clone(), self.host.catalog.clone());
        let signed = self.record.manifest_reported;
        let (rules, first) = (self.options.rules.clone(), self.options.first.clone());
        let is_kept = matches!(self.purpose, Purpose::Version(_));
        let version = match &self.purpose {
            Purpose::Restore(version) => {
                // Before any order behind this one is obeyed.
                self.held =
                    locate(&path, version).and_then(|(shelf, _)| Held::at(&shelf.join(version.to_string())));
                Some(version.clone())
            }
            _ => None,
        };
        self.work(move || {
            // Versions come and go, and are many.
            if version.is_none() {
                known.note(&path);
            }
            let served = Served { path, version, is_kept, rules, first };
            let indexed = work::index(&served, &folder, run, &key, catalog.as_ref(), signed, &progress);
            Wakeup::Indexed(indexed.map(Box::new))
        });
    }

    pub(super) fn indexed(&mut self, result: Result<Box<Indexed>, Problem>) {
        self.busy = false;
        let Indexed { manifest, signed, root, hashes, reader, first, problems, again } = match result {
            Ok(indexed) => *indexed,
            Err(problem) => return self.fail(problem),
        };
        problems.into_iter().for_each(|problem| self.reports.problem(problem));
        let encoded = manifest.known().source();
        self.blocks.set_manifest(encoded.len(), encoded.shared_file());
        let (run, entries) = (self.join.run, manifest.entries());
        let (bytes, blocks) = (manifest.bytes(), manifest.blocks());
        self.blocks.set_content(Content::Placed { manifest, reader: Box::new(reader) });
        if !self.start_workers() {
            return;
        }
        self.set_totals(entries, bytes, blocks);
        {
            let mut board = self.board.lock();
            (board.blocks_done, board.bytes_done) = (blocks, bytes);
        }
        if !self.record.manifest_reported {
            self.reports.report(ManifestSigned { run, root, entries, bytes, blocks });
            self.record.manifest_reported = true;
            let (folder, record) = (self.folder.clone(), self.record.clone());
            self.reports.then(move || {
                if let Err(error) = folder.set_record(&record, true) {
                    tracing::warn!(%run, %error, "cannot keep that the manifest was reported");
                }
            });
        }
        let config =
            OriginConfig { settle: if again { SETTLE } else { Duration::ZERO }, ..OriginConfig::default() };
        let uploads = Self::uploads().for_blocks(bytes, blocks);
        let FileHashes { strong, weak } = hashes;
        let origin = Origin::new(crate::VERSION.into(), signed, strong, blocks, config, uploads);
        let mut origin = origin.with_weak(weak).preferring(&first);
        let now = self.now();
        for (agent, peer) in &mut self.peers {
            origin.handle_connected(now, *agent);
            peer.link.activate(*agent, &self.wakeups);
        }
        self.machine = Machine::Origin(Box::new(origin));
        self.set_state(RunAgentState::Serving);
    }

    /// A block of the source cannot be sent as it was indexed.
    pub(super) fn source_unreadable(&mut self, block: u64, error: ReadError) {
        let class = match error {
            ReadError::Changed => ProblemClass::SourceChanged,
            ReadError::NotHere => ProblemClass::NotFound,
            ReadError::Io(_) => ProblemClass::Io,
        };
        let detail = format!("{error}; what destinations lack of it is not delivered: start the job again");
        self.entry_problem(block, class, detail);
    }

    fn entry_problem(&mut self, block: u64, class: ProblemClass, detail: String) {
        let Some(manifest) = self.blocks.content().map(|c| c.manifest().clone()) else { return };
        let Ok(Some(place)) = manifest.place(block) else { return };
        let Ok(path) = manifest.entry(place.entry).map(|e| e.path.clone()) else { return };
        self.reports.problem(Problem { class, path, detail });
    }

    // --- destination ---

    /// Shows where the machine stands.
    pub(super) fn follow_phase(&mut self) {
        if let Machine::Destination(d) = &self.machine {
            if !self.blocks.expects_manifest()
                && let Some((head, _)) = d.head()
            {
                match self.folder.manifest_part() {
                    Ok(file) => self.blocks.expect_manifest(head.len, file),
                    Err(error) => return self.manifest_not_kept(&error),
                }
            }
            if d.phase() == Phase::FetchingManifest {
                self.set_state(RunAgentState::FetchingManifest);
            }
        }
    }

    /// The agent's own folder does not take the manifest: without it nothing can go on.
    pub(super) fn manifest_not_kept(&mut self, error: &std::io::Error) {
        self.fail(problem(work::disk_class(error), format_args!("keeping the manifest: {error}")));
    }

    /// Looks for what the manifest has in common with those that are held.
    pub(super) fn seek_manifest(&mut self, strong: Vec<Hash>, weak: Vec<u32>) {
        let Machine::Destination(d) = &mut self.machine else { return };
        let (Some((head, _)), Some(place)) = (d.head(), super::place(&self.host.storage, &self.join.path))
        else {
            return;
        };
        let (len, held) = (head.len, self.host.held.clone());
        let (blocks, indexing) = (self.blocks.clone(), self.indexing.clone());
        self.work(move || {
            let go_on = || !indexing.stop.load(Ordering::Relaxed);
            let keep = &mut |block, bytes: &[u8]| blocks.keep_manifest_block(block, bytes);
            Wakeup::Sought(held.seek(&place, len, &strong, &weak, &go_on, keep))
        });
    }

    pub(super) fn manifest_sought(&mut self, found: std::io::Result<Vec<u64>>) {
        self.busy = false;
        let found = match found {
            Ok(found) => found,
            Err(error) => return self.manifest_not_kept(&error),
        };
        self.board.lock().manifest_reused = found.len() as u64;
        let now = self.now();
        if let Machine::Destination(d) = &mut self.machine {
            d.manifest_sought(now, found);
        }
    }

    /// The manifest is here: looks at the disk.
    pub(super) fn prepare(&mut self) {
        let Machine::Destination(d) = &self.machine else { return };
        let (Some((head, signed)), Some(file)) = (d.head(), self.blocks.manifest_file()) else { return };
        let (head, signed) = (head.clone(), signed.clone());
        let Some(path) = self.place() else { return self.fail(bad_path()) };
        let (folder, indexing) = (self.folder.clone(), self.indexing.clone());
        self.full = None;
        let makes_version = self.makes_version().is_some();
        let key = self.host.key.clone();
        if self.record.ended.is_some() {
            return self.work(move || {
                let reopened = match makes_version {
                    true => work::reopen_version(&path, &head, file, &key),
                    false => work::reopen(&path, file),
                };
                Wakeup::Prepared(reopened.map(Box::new))
            });
        }
        self.set_state(RunAgentState::Transferring);
        self.looking_since = Instant::now();
        let (known, first) = (self.host.known.clone(), self.options.first.clone());
        self.work(move || {
            let others = known.besides(&path);
            let (others, stop) = ((&others[..], &first[..]), &indexing.stop);
            if makes_version {
                let prepared =
                    work::prepare_version(&path, &folder, &head, &signed, file, others, &key, stop);
                return Wakeup::Prepared(prepared.map(Box::new));
            }
            let prepared = work::prepare(&path, &folder, &head, &signed, file, others, stop);
            known.note(&path);
            Wakeup::Prepared(prepared.map(Box::new))
        });
    }

    pub(super) fn prepared(&mut self, result: Result<Box<Prepared>, Problem>) {
        self.busy = false;
        let prepared = match result {
            Ok(prepared) => *prepared,
            Err(problem) if problem.class == ProblemClass::DiskFull => {
                // Everything is read again then: not all the time.
                let pause = self.looking_since.elapsed().saturating_mul(LOOK_AGAIN);
                self.disk_full(problem);
                self.full = Some(Instant::now() + pause.clamp(DISK_RETRY, LOOK_AGAIN_MAX));
                return;
            }
            Err(problem) if self.record.ended.is_some() => {
                tracing::warn!(run = %self.join.run, "what was completed cannot be served: {}", problem.detail);
                self.machine = Machine::None;
                return;
            }
            Err(problem) => return self.fail(problem),
        };
        let Prepared { content, have, bytes, reused, problems, unwanted, first, made } = prepared;
        if let Some((made, held)) = made {
            (self.made, self.held) = (Some(made), held);
        }
        let manifest = content.manifest().clone();
        self.blocks.set_content(content);
        if !self.start_workers() {
            return;
        }
        self.set_totals(manifest.entries(), manifest.bytes(), manifest.blocks());
        self.board.lock().bytes_done = bytes;
        if self.record.ended.is_none() {
            self.record.stats.blocks_reused = reused;
        }
        self.incomplete |= !problems.is_empty();
        problems.into_iter().for_each(|problem| self.reports.problem(problem));
        let now = self.now();
        if let Machine::Destination(d) = &mut self.machine {
            d.set_uploads(Self::uploads().for_blocks(manifest.bytes(), manifest.blocks()));
            d.prefer(&first);
            d.begin_content(now, have);
            d.forgo(unwanted.ranges().flatten());
        }
        if let Some(short) = self.shortfall() {
            self.disk_full(short);
        }
    }

    fn start_workers(&mut self) -> bool {
        let staging = self.blocks.content().and_then(|c| c.staging());
        match Workers::start(&self.blocks, staging, &self.wakeups) {
            Ok(workers) => self.workers = Some(workers),
            Err(error) => self.fail(problem(ProblemClass::Io, format_args!("starting threads: {error}"))),
        }
        self.workers.is_some()
    }

    fn set_totals(&mut self, entries: u64, bytes: u64, blocks: u64) {
        let stats = &mut self.record.stats;
        (stats.entries, stats.bytes_total, stats.blocks_total) = (entries, bytes, blocks);
        let mut board = self.board.lock();
        (board.entries, board.bytes_total, board.blocks_total) = (entries, bytes, blocks);
    }

    /// Nobody can give a block.
    pub(super) fn lost(&mut self, block: u64, reason: agent_proto::peer::UnavailableReason) {
        use agent_proto::peer::UnavailableReason;
        self.incomplete = true;
        let (class, why) = match reason {
            UnavailableReason::Changed | UnavailableReason::NotHere => {
                (ProblemClass::SourceChanged, "the source's file is not what it was when the run began")
            }
            UnavailableReason::ReadError => (ProblemClass::Io, "the source cannot read its file"),
        };
        self.entry_problem(block, class, format!("{why}; not delivered: start the job again"));
    }

    /// An entry was given up: none of its blocks is wanted.
    pub(super) fn forgo_entry_of(&mut self, block: u64) {
        self.incomplete = true;
        let Some(manifest) = self.blocks.content().map(|c| c.manifest().clone()) else { return };
        let Ok(Some(place)) = manifest.place(block) else { return };
        let Ok(entry) = manifest.entry(place.entry) else { return };
        if let Machine::Destination(d) = &mut self.machine {
            d.handle_not_kept(block);
            d.forgo(entry.blocks());
        }
    }

    fn shortfall(&self) -> Option<Problem> {
        let short = self.blocks.content()?.staging()?.shortfall()?;
        let detail =
            format!("{short} bytes are missing on the file system; free some room, it goes on by itself");
        Some(problem(ProblemClass::DiskFull, detail))
    }

    /// Stops fetching until there is room.
    pub(super) fn disk_full(&mut self, problem: Problem) {
        if let Machine::Destination(d) = &mut self.machine {
            d.pause();
        }
        if self.full.is_none() && self.state != RunAgentState::Stalled {
            self.reports.forget(ProblemClass::DiskFull);
            self.reports.problem(problem);
        }
        self.set_state(RunAgentState::Stalled);
        self.full = Some(Instant::now() + DISK_RETRY);
    }

    fn what_again(&self) -> Again {
        match (&self.machine, self.blocks.content()) {
            (_, None) => Again::Prepare,
            (Machine::Destination(d), _) if d.phase() == Phase::Settled => Again::Finalize,
            _ => Again::Fetch,
        }
    }

    /// Looks whether a full disk has room again.
    pub(super) fn try_again(&mut self, now: Instant) {
        if self.busy || self.full.is_none_or(|at| now < at) {
            return;
        }
        match self.what_again() {
            Again::Prepare => self.prepare(),
            Again::Finalize => self.finalize(),
            Again::Fetch if self.shortfall().is_some() => self.full = Some(now + DISK_RETRY),
            Again::Fetch => {
                self.full = None;
                let now = self.now();
                if let Machine::Destination(d) = &mut self.machine {
                    d.resume(now);
                }
            }
        }
    }

    pub(super) fn content_complete(&mut self) {
        if self.record.ended.is_none() {
            self.finalize();
        }
    }

    fn finalize(&mut self) {
        let Some(staging) = self.blocks.content().and_then(|c| c.staging()).cloned() else {
            // It stands already.
            if let Some(made) = self.made.clone() {
                self.finalized(Finalized { made: Some(made), ..Finalized::default() });
            }
            return;
        };
        let Some(place) = self.place() else { return self.fail(bad_path()) };
        self.full = None;
        self.set_state(RunAgentState::Finalizing);
        let version = self.makes_version().cloned();
        let hook = self.hook(&place);
        let (folder, incomplete) = (self.folder.clone(), self.incomplete);
        let (run, source_key, key) = (self.join.run, self.source_key, self.host.key.clone());
        let stop = self.indexing.stop.clone();
        self.work(move || {
            let Some(name) = version else {
                return Wakeup::Finalized(put_in_place(&staging, &place, hook));
            };
            let (problems, remarks) = staging.finish();
            let mut done = Finalized { problems, remarks, ..Finalized::default() };
            if done.problems.iter().any(|problem| problem.class == ProblemClass::DiskFull) {
                return Wakeup::Finalized(done);
            }
            let forming = Shelf::forming_path(&place, run);
            let refused = hook.and_then(|hook| hook.call(&forming).err());
            if refused.is_some() {
                return Wakeup::Finalized(Finalized { obstacle: refused, ..done });
            }
            done.problems.extend(staging.changed());
            let complete = !incomplete && done.problems.is_empty();
            match work::name_version(&place, &name, &folder, run, source_key, complete, &key, &stop) {
                Ok(made) => done.made = Some(made),
                Err(problem) => done.obstacle = Some(problem),
            }
            Wakeup::Finalized(done)
        });
    }

    pub(super) fn finalized(&mut self, done: Finalized) {
        self.busy = false;
        let Settled { told, wrong, made, obstacle } = done.settled();
        self.incomplete |= wrong;
        told.into_iter().for_each(|problem| self.reports.problem(problem));
        match obstacle {
            Some(full) if full.class == ProblemClass::DiskFull => return self.disk_full(full),
            Some(problem) => return self.fail(problem),
            None => {}
        }
        self.made = made;
        let staging = self.blocks.content().and_then(|c| c.staging());
        let remarks = staging.map(|staging| [staging.kept(), staging.spared()]);
        remarks.into_iter().flatten().flatten().for_each(|remark| self.reports.problem(remark));
        let state = if self.incomplete { RunAgentState::DoneWithErrors } else { RunAgentState::Done };
        self.record.stats = self.stats();
        // A kill right after the report must not make the next life tell of fewer.
        self.keep_record(true);
        let (run, stats) = (self.join.run, self.record.stats);
        if let Some(Made { name, complete, unchanged }) = &self.made {
            let (version, entries, bytes) = (name.to_string(), stats.entries, stats.bytes_total);
            let (complete, unchanged) = (*complete, *unchanged);
            self.reports.report(VersionKept { run, version, complete, unchanged, entries, bytes });
        }
        self.reports.report(RunCompleted { run, state, stats });
        self.ended(state);
    }

    /// Gives the run up.
    pub(super) fn fail(&mut self, problem: Problem) {
        self.reports.problem(problem);
        let (run, state, stats) = (self.join.run, RunAgentState::Failed, self.stats());
        match self.join.role {
            Role::Source | Role::Member => self.reports.report(RunStateReported { run, state }),
            Role::Destination => self.reports.report(RunCompleted { run, state, stats }),
        }
        self.machine = Machine::None;
        for peer in self.peers.values() {
            peer.link.close(super::code::GOING, "the run failed here");
        }
        self.ended(state);
    }
}

/// A hook that is to be called.
struct Calling {
    hook: Hook,
    name: String,
    timeout: Duration,
    environment: Vec<(&'static str, OsString)>,
    stop: Arc<AtomicBool>,
}

impl Calling {
    /// Calls it in a folder.
    fn call(mut self, folder: &Path) -> Result<(), Problem> {
        tracing::info!(hook = self.name, folder = %folder.display(), "calling the hook");
        self.environment.push(("FLOTILLA_FILES", folder.into()));
        self.hook.call(folder, &self.environment, self.timeout, &self.stop).map_err(|why| {
            let detail = format_args!("the hook {:?} did not agree: {why}; see this agent's log", self.name);
            problem(ProblemClass::Internal, detail)
        })
    }
}

/// Gives all that a run brought its names, once the hook has seen it.
fn put_in_place(staging: &Staging, place: &Path, hook: Option<Calling>) -> Finalized {
    let mut done = Finalized::default();
    if let Some(hook) = hook.filter(|_| staging.is_held_back()) {
        if let Err(problem) = staging.show().and_then(|shown| hook.call(&place.join(shown))) {
            return Finalized { obstacle: Some(problem), ..done };
        }
        done.problems = staging.release();
    }
    done.problems.extend(staging.finalize());
    done
}

fn bad_path() -> Problem {
    problem(ProblemClass::UnsafeName, "the folder's path holds a zero byte")
}
