//! What blocks: indexing, looking at the disk, checking and writing blocks, reading those to be sent.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use ed25519_dalek::SigningKey;
use event_schema::{AgentId, Problem, ProblemClass, RunId, Signed};
use folder_index::scan::{Effort, Progress, ScanOptions, Scope, Unobserved, scan};
use folder_index::{Catalog, GuardConfig, IndexError, Known, Suspicion};
use portable_atomic::AtomicU64;
use rustix::io::Errno;
use sync_core::BlockMap;
use sync_core::manifest::{HeadError, MANIFEST_VERSION, ManifestHead};

use super::blocks::{Blocks, Content};
use super::event::{Indexed, Looked, Made, Prepared, ReadJob, Stored, Wakeup, WriteJob};
use super::limits::{JOBS, WRITERS};
use super::queue::Queue;
use super::record::RunFolder;
use crate::backup::{Held, Kept, Note, Shelf, VersionName, restore};
use crate::disk::{
    Before, BlockReader, IndexProgress, ManifestFile, Opened, Restorer, Staging, file_block_hashes,
    index_known, rules_usable, urgent,
};

/// A problem of the run as a whole.
pub(super) fn problem(class: ProblemClass, detail: impl std::fmt::Display) -> Problem {
    Problem { class, path: Vec::new(), detail: detail.to_string() }
}

/// How far a source has come with reading; shared with the run's task.
#[derive(Default)]
pub(super) struct Indexing {
    pub(super) stop: Arc<AtomicBool>,
    /// Of the scan that brings the folder's index up to date, before the manifest is made.
    pub(super) scan: Arc<Progress>,
    pub(super) entries: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// A manifest kept by an agent of another release, for a run that was under way when it was replaced.
pub(super) fn other_release(version: u8) -> Problem {
    let detail = format_args!(
        "the run's manifest has version {version}, this release reads {MANIFEST_VERSION}: start the job again"
    );
    problem(ProblemClass::BadManifest, detail)
}

impl Indexing {
    /// Entries seen.
    pub(super) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed).max(self.scan.entries.load(Ordering::Relaxed))
    }

    /// Bytes read, by whichever read them.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed) + self.scan.bytes.load(Ordering::Relaxed)
    }
}

/// What a run is to have of this agent.
#[derive(Clone, Debug)]
pub(super) struct Served {
    /// The folder or file.
    pub(super) path: PathBuf,
    /// The version that the path leads into, which is read by the manifest that was kept of it.
    pub(super) version: Option<VersionName>,
    /// A version is made of it, for which older ones go: what is missing is told.
    pub(super) is_kept: bool,
    /// What the job leaves out.
    pub(super) rules: Vec<String>,
    /// What the job has fetched before the rest.
    pub(super) first: Vec<String>,
}

impl Served {
    /// All of a folder.
    #[cfg(test)]
    pub(super) fn whole(path: &Path) -> Self {
        Self { path: path.to_owned(), version: None, is_kept: false, rules: Vec::new(), first: Vec::new() }
    }
}

/// The blocks that come before the rest. Patterns that are none are told, and nothing comes first.
fn classes(manifest: &ManifestFile, first: &[String], problems: &mut Vec<Problem>) -> Vec<BlockMap> {
    let what = "what is to come first";
    let found = match urgent(manifest, first) {
        Ok(Ok(classes)) => return classes,
        Ok(Err(error)) => problem(ProblemClass::UnsupportedKind, format_args!("{what}: {error}")),
        Err(error) => problem(ProblemClass::Io, format_args!("{what}: reading the manifest: {error}")),
    };
    problems.push(found);
    Vec::new()
}

/// Brings the index of a source's folder up to date. Without one, every file is read. Says why something may be missing
/// that was there, where versions are made of it.
fn refresh(
    catalog: &Catalog,
    served: &Served,
    progress: &Indexing,
    missing: &mut Option<Suspicion>,
) -> Option<Known> {
    let path = &served.path;
    // Where the rules cannot be used the run ends when the manifest is made: nothing is indexed in vain.
    if !path.is_dir() || !rules_usable(path, &served.rules) {
        return None;
    }
    let options = ScanOptions {
        effort: Effort::urgent(),
        // What is not there is not sent; nothing is deleted anywhere for that, but for older versions.
        accept: !served.is_kept,
        // Whoever deletes much has his versions.
        guard: GuardConfig { least: u64::MAX, ..GuardConfig::default() },
        ..ScanOptions::default()
    };
    let mut known = || -> Result<Option<Known>, IndexError> {
        let index = catalog.index(path)?;
        let scanned = scan(&index, &options, &Scope::All, &mut Unobserved, &progress.scan, &progress.stop)?;
        *missing = scanned.suspicion;
        Known::open(&index)
    };
    known().unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "a source is read without its index");
        None
    })
}

/// Why a version may lack what was there, as a problem of the entry that is missing. Of a class by which the version is not
/// whole (control-core, `makes_incomplete`): nothing older goes for it.
fn told_missing(why: &Suspicion) -> Problem {
    let path = match why {
        Suspicion::MountGone { path } => path.clone(),
        _ => b".".to_vec(),
    };
    let detail = format!(
        "{why}: the version has what is there now, and may lack much; if that is right, remove this folder's index from the agent's data folder"
    );
    Problem { class: ProblemClass::Io, path, detail }
}

/// Indexes a source, or takes up what was indexed before. `signed`: a manifest of this run was told of before, and no
/// other one may be.
pub(super) fn index(
    served: &Served,
    folder: &RunFolder,
    run: RunId,
    key: &SigningKey,
    catalog: Option<&Catalog>,
    signed: bool,
    progress: &Indexing,
) -> Result<Indexed, Problem> {
    let was_signed = signed;
    let (path, version) = (&served.path, served.version.as_ref());
    let public = key.verifying_key().to_bytes();
    let source = AgentId::of_key(&public);
    let open = |manifest: &Arc<ManifestFile>| {
        match version {
            Some(version) => BlockReader::below(&restore::root(path, version), manifest.clone()),
            None => BlockReader::for_source(path, manifest.clone()),
        }
        .map_err(|e| crate::disk::problem(e, b"", "opening the source"))
    };
    let unreadable = |e: std::io::Error| problem(disk_class(&e), format_args!("reading the manifest: {e}"));
    if let Some((signed, file)) = folder.manifest() {
        match ManifestHead::open(&signed, run, &public) {
            Ok(head) => {
                let hashes = file_block_hashes(&file).map_err(unreadable)?;
                if let Ok(manifest) = ManifestFile::open(Arc::new(file))
                    && ManifestHead::of(run, source, manifest.known(), &hashes.strong) == head
                {
                    let manifest = Arc::new(manifest);
                    let (reader, root, mut problems) = (open(&manifest)?, head.root, Vec::new());
                    let first = classes(&manifest, &served.first, &mut problems);
                    return Ok(Indexed {
                        reader,
                        manifest,
                        signed,
                        root,
                        hashes,
                        first,
                        problems,
                        again: true,
                    });
                }
            }
            // Another one for the same run would contradict what others hold.
            Err(HeadError::Version(version)) => return Err(other_release(version)),
            Err(HeadError::Bad) => {}
        }
    }
    if was_signed {
        // Another one would contradict what destinations may have confirmed already.
        let detail =
            "the manifest that this agent signed for the run is damaged or gone: start the job again";
        return Err(problem(ProblemClass::BadManifest, detail));
    }
    let mut tell = |at: IndexProgress| {
        progress.entries.store(at.entries, Ordering::Relaxed);
        progress.bytes.store(at.bytes, Ordering::Relaxed);
        !progress.stop.load(Ordering::Relaxed)
    };
    let (manifest, mut problems) = match version {
        Some(version) => restore::index(path, version, &public, folder.path(), &mut tell)?,
        None => {
            let mut missing = None;
            let known = catalog.and_then(|catalog| refresh(catalog, served, progress, &mut missing));
            let (manifest, mut problems) = index_known(path, folder.path(), known, &served.rules, &mut tell)?;
            problems.extend(missing.as_ref().map(told_missing));
            (manifest, problems)
        }
    };
    let hashes = file_block_hashes(manifest.known().source().file()).map_err(unreadable)?;
    let head = ManifestHead::of(run, source, manifest.known(), &hashes.strong);
    let signed = head.sign(key);
    folder
        .keep_manifest(&signed)
        .map_err(|e| problem(disk_class(&e), format_args!("keeping the manifest: {e}")))?;
    let manifest = Arc::new(manifest);
    let (reader, root) = (open(&manifest)?, head.root);
    let first = classes(&manifest, &served.first, &mut problems);
    Ok(Indexed { reader, manifest, signed, root, hashes, first, problems, again: false })
}

/// Checks a verified manifest, keeps it, and finds what is on the disk already.
pub(super) fn prepare(
    path: &Path,
    folder: &RunFolder,
    head: &ManifestHead,
    signed: &Signed,
    file: Arc<File>,
    (others, first): (&[PathBuf], &[String]),
    stop: &AtomicBool,
) -> Result<Prepared, Problem> {
    let manifest = take_manifest(folder, head, signed, file)?;
    let go_on = || !stop.load(Ordering::Relaxed);
    let opened = Staging::open(path, folder.path(), head.run, manifest.clone(), others, &go_on)?;
    Ok(staged(manifest, opened, first))
}

fn take_manifest(
    folder: &RunFolder,
    head: &ManifestHead,
    signed: &Signed,
    file: Arc<File>,
) -> Result<Arc<ManifestFile>, Problem> {
    let manifest = ManifestFile::open(file).map_err(|e| problem(ProblemClass::BadManifest, e))?;
    if !head.counts(manifest.known()) {
        return Err(problem(ProblemClass::BadManifest, "the manifest is not what its head says"));
    }
    if folder.manifest().is_none_or(|(kept, _)| kept != *signed) {
        folder
            .keep_manifest(signed)
            .map_err(|e| problem(disk_class(&e), format_args!("keeping the manifest: {e}")))?;
    }
    Ok(Arc::new(manifest))
}

fn staged(manifest: Arc<ManifestFile>, opened: Opened, first: &[String]) -> Prepared {
    let mut problems = opened.problems;
    Prepared {
        first: classes(&manifest, first, &mut problems),
        content: Content::Staged { manifest, staging: Arc::new(opened.staging) },
        have: opened.verified,
        bytes: opened.bytes,
        reused: opened.reused,
        problems,
        unwanted: opened.unwanted,
        made: None,
    }
}

/// The same for a run that makes a version on the shelf at `path` (`edge-agent/BACKUP.md` §2): in a folder of its own,
/// with the version before beside it. If that has the very content there is nothing to do.
pub(super) fn prepare_version(
    path: &Path,
    folder: &RunFolder,
    head: &ManifestHead,
    signed: &Signed,
    file: Arc<File>,
    (others, first): (&[PathBuf], &[String]),
    key: &SigningKey,
    stop: &AtomicBool,
) -> Result<Prepared, Problem> {
    let shown = path.as_os_str().as_encoded_bytes();
    let unusable = |e| crate::disk::problem(e, shown, "opening the folder of the versions");
    let manifest = take_manifest(folder, head, signed, file)?;
    let shelf = Shelf::make(path).map_err(unusable)?;
    let all = shelf.all().map_err(unusable)?;
    // Others' versions are nobody's before this one.
    let all: Vec<Kept> = all.into_iter().filter(|kept| kept.note.is_of(head.source)).collect();
    if let Some((kept, unchanged)) = has_version(&all, head, Some(key))
        && (!unchanged || is_whole(&shelf, kept, head, stop))
    {
        return standing(&shelf, manifest, kept, unchanged);
    }
    let of_agent = |run: RunId| run == head.run || folder.has_beside(run);
    shelf.clean(of_agent).map_err(unusable)?;
    // What somebody laid there may give nothing, or very little.
    let own = all.iter().rev().find(|kept| kept.is_by(&key.verifying_key().to_bytes()));
    let before = own.or(all.last()).and_then(|newest| {
        let before = shelf.manifest(newest).and_then(|manifest| {
            let folder = shelf.version(&newest.name).map_err(|e| e.to_string())?;
            let held = rustix::fs::fstat(folder.root()).map(|stat| Held::new(&stat));
            Before::new(folder, manifest, head.run, held).map_err(|e| e.to_string())
        });
        // Without it everything is fetched.
        before.inspect_err(|why| tracing::warn!(version = %newest.name, why, "nothing is taken from it")).ok()
    });
    let forming = shelf.forming(head.run).map_err(unusable)?;
    let go_on = || !stop.load(Ordering::Relaxed);
    let others = (others, before);
    let opened = Staging::open_in(
        forming,
        folder.path(),
        head.run,
        manifest.clone(),
        others,
        Restorer::of_versions(),
        &go_on,
    )?;
    Ok(staged(manifest, opened, first))
}

/// The version that a run has made already, or the newest one if nothing has changed since; and whether it is that. Given its
/// key, this agent believes what it signed: anybody may have laid the rest there.
fn has_version<'a>(
    all: &'a [Kept],
    head: &ManifestHead,
    key: Option<&SigningKey>,
) -> Option<(&'a Kept, bool)> {
    let key = key.map(|key| key.verifying_key().to_bytes());
    let is_believed = |kept: &&Kept| key.is_none_or(|key| kept.is_by(&key));
    if let Some(ours) = all.iter().find(|kept| kept.note.run == head.run && is_believed(kept)) {
        return Some((ours, false));
    }
    let newest = all.iter().rev().find(is_believed).filter(|kept| kept.note.complete)?;
    newest.note.opened().is_some_and(|known| known.root == head.root).then_some((newest, true))
}

/// Whether a version is as it was made, as far as looking at everything and reading some of it tells.
fn is_whole(shelf: &Shelf, kept: &Kept, head: &ManifestHead, stop: &AtomicBool) -> bool {
    let go_on = || !stop.load(Ordering::Relaxed);
    let whole = shelf.manifest(kept).and_then(|manifest| {
        let folder = shelf.version(&kept.name).map_err(|e| e.to_string())?;
        let before = Before::new(folder, manifest, head.run, ()).map_err(|e| e.to_string())?;
        before.is_as_made(&go_on).map_err(|e| e.to_string())
    });
    let whole = whole.unwrap_or_else(|why| {
        tracing::warn!(version = %kept.name, why, "it cannot be looked at");
        false
    });
    if !whole {
        tracing::warn!(version = %kept.name, "it is not what was backed up any more; another one is made");
    }
    whole
}

/// A version that stands, as what a run has.
fn standing(
    shelf: &Shelf,
    manifest: Arc<ManifestFile>,
    kept: &Kept,
    unchanged: bool,
) -> Result<Prepared, Problem> {
    let unusable = |e| crate::disk::problem(e, b"", "opening the version");
    let made = Made { name: kept.name.clone(), complete: kept.note.complete, unchanged };
    let folder = shelf.version(&made.name).map_err(unusable)?;
    let held = rustix::fs::fstat(folder.root()).map(|stat| Held::new(&stat)).ok();
    let reader = Box::new(BlockReader::new(folder, manifest.clone()));
    Ok(Prepared { made: Some((made, held)), ..placed(manifest, reader) })
}

/// Gives the version that a run has made its name.
pub(super) fn name_version(
    path: &Path,
    name: &VersionName,
    folder: &RunFolder,
    run: RunId,
    source_key: [u8; 32],
    complete: bool,
    key: &SigningKey,
    stop: &AtomicBool,
) -> Result<Made, Problem> {
    let shown = path.as_os_str().as_encoded_bytes();
    let (head, manifest) = folder
        .manifest()
        .ok_or_else(|| problem(ProblemClass::Internal, "the run's manifest is not here any more"))?;
    let note = Note { run, source_key, head, complete };
    if stop.load(Ordering::Relaxed) {
        return Err(problem(ProblemClass::Internal, "the run was stopped before its version had a name"));
    }
    let named = Shelf::make(path).and_then(|shelf| shelf.give_name(name, &note, &manifest, key));
    let name = named.map_err(|e| crate::disk::problem(e, shown, "giving the version its name"))?;
    Ok(Made { name, complete, unchanged: false })
}

/// Removes what a run has made of its version, if that has no name yet.
pub(super) fn discard_version(path: &Path, run: RunId) {
    let discarded = Shelf::open(path).and_then(|shelf| shelf.discard(run).map(|()| shelf.tidy()));
    match discarded {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => tracing::warn!(%run, %error, "what was made of a version cannot be removed"),
    }
}

/// Takes up a run that was completed before: what is in place is served, and left as it is.
pub(super) fn reopen(path: &Path, file: Arc<File>) -> Result<Prepared, Problem> {
    let manifest = ManifestFile::open(file).map_err(|e| problem(ProblemClass::BadManifest, e))?;
    let manifest = Arc::new(manifest);
    let reader = BlockReader::below(path, manifest.clone())
        .map_err(|e| crate::disk::problem(e, b"", "opening the destination folder"))?;
    Ok(placed(manifest, Box::new(reader)))
}

/// The same for a run that made a version, or found that there is one.
pub(super) fn reopen_version(
    path: &Path,
    head: &ManifestHead,
    file: Arc<File>,
    key: &SigningKey,
) -> Result<Prepared, Problem> {
    let manifest = ManifestFile::open(file).map_err(|e| problem(ProblemClass::BadManifest, e))?;
    let unusable = |e| crate::disk::problem(e, b"", "opening the folder of the versions");
    let shelf = Shelf::open(path).map_err(unusable)?;
    let all = shelf.all().map_err(unusable)?;
    let all: Vec<Kept> = all.into_iter().filter(|kept| kept.note.is_of(head.source)).collect();
    // One of an earlier release has no signature.
    let (kept, unchanged) = has_version(&all, head, Some(key))
        .or_else(|| has_version(&all, head, None))
        .ok_or_else(|| problem(ProblemClass::NotFound, "the version that was made is not there any more"))?;
    standing(&shelf, Arc::new(manifest), kept, unchanged)
}

/// All of it is in place, and left as it is.
fn placed(manifest: Arc<ManifestFile>, reader: Box<BlockReader>) -> Prepared {
    let blocks = manifest.blocks();
    Prepared {
        have: BlockMap::full(blocks),
        bytes: manifest.bytes(),
        unwanted: BlockMap::new(blocks),
        first: Vec::new(),
        content: Content::Placed { manifest, reader },
        reused: blocks,
        problems: Vec::new(),
        made: None,
    }
}

pub(super) fn disk_class(error: &std::io::Error) -> ProblemClass {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ProblemClass::DiskFull,
        std::io::ErrorKind::PermissionDenied => ProblemClass::PermissionDenied,
        _ => ProblemClass::Io,
    }
}

/// The threads of one run that touch its content; they end when their queues are closed.
pub(super) struct Workers {
    reads: Arc<Queue<ReadJob>>,
    writes: Option<Arc<Queue<WriteJob>>>,
    /// Where files wait for their names.
    staging: Option<Arc<Staging>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts the threads; those that write only where there is something to write to.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub(super) fn start(
        blocks: &Arc<Blocks>,
        staging: Option<&Arc<Staging>>,
        wakeups: &tokio::sync::mpsc::Sender<Wakeup>,
    ) -> std::io::Result<Self> {
        let mut workers = Self { reads: Queue::new(1), writes: None, staging: None, threads: Vec::new() };
        let (content, jobs, told) = (blocks.clone(), workers.reads.clone(), wakeups.clone());
        workers.threads.push(spawn("run read", move || read(&content, &jobs, &told))?);
        if let Some(staging) = staging {
            let writes = Queue::new(WRITERS);
            for _ in 0..WRITERS {
                let (staging, jobs, told) = (staging.clone(), writes.clone(), wakeups.clone());
                workers.threads.push(spawn("run write", move || write(&staging, &jobs, &told))?);
            }
            workers.writes = Some(writes);
            let names = staging.clone();
            workers.threads.push(spawn("run name", move || names.name_as_they_come())?);
            workers.staging = Some(staging.clone());
        }
        Ok(workers)
    }

    pub(super) fn read(&self, job: ReadJob) {
        self.reads.push(job);
    }

    pub(super) fn write(&self, job: WriteJob) {
        if let Some(writes) = &self.writes {
            writes.push(job);
        }
    }

    /// Waits until what is queued is done. Blocks; nothing must wait for a full channel of wake-ups.
    pub(super) fn finish(mut self) {
        self.close();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a run's thread panicked");
            }
        }
    }

    fn close(&self) {
        self.reads.close();
        self.writes.iter().for_each(|writes| writes.close());
        self.staging.iter().for_each(|staging| staging.close());
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.close();
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(body)
}

/// Reads blocks before they are sent, so that the transport finds them in memory.
fn read(blocks: &Blocks, queue: &Queue<ReadJob>, told: &tokio::sync::mpsc::Sender<Wakeup>) {
    while let Some(jobs) = queue.take(JOBS) {
        let Some(content) = blocks.content() else { continue };
        let look = |job: ReadJob| Looked { job, len: content.read(job.block).map(|data| data.len() as u32) };
        if told.blocking_send(Wakeup::Looked(jobs.into_iter().map(look).collect())).is_err() {
            return;
        }
    }
}

fn write(staging: &Staging, queue: &Queue<WriteJob>, told: &tokio::sync::mpsc::Sender<Wakeup>) {
    while let Some(jobs) = queue.take(JOBS) {
        let data = jobs.iter().map(|job| (job.arrived.address.index(), job.arrived.data.clone()));
        let results = staging.write_all(data);
        let stored = |(WriteJob { agent, arrived }, result): (WriteJob, _)| Stored {
            agent,
            handle: arrived.handle,
            block: arrived.address.index(),
            len: arrived.data.len() as u32,
            result,
        };
        let stored = jobs.into_iter().zip(results).map(stored).collect();
        if told.blocking_send(Wakeup::Stored(stored)).is_err() {
            return;
        }
    }
}

/// The folder that a command names.
pub(super) fn place(storage: &Path, path: &[u8]) -> Option<PathBuf> {
    Some(storage.join(crate::restrict::to_path(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second manifest of the same run contradicts the first one, which destinations may have confirmed.
    #[test]
    fn a_source_signs_one_manifest_of_a_run() {
        let (src, data) = (tempfile::tempdir().expect("room"), tempfile::tempdir().expect("room"));
        std::fs::write(src.path().join("a"), "first").expect("room");
        let (run, key) = (RunId([5; 16]), SigningKey::from_bytes(&[3; 32]));
        let folder = RunFolder::open(data.path(), run).expect("made");
        let index = |signed| {
            super::index(&Served::whole(src.path()), &folder, run, &key, None, signed, &Indexing::default())
        };
        let first = index(false).map_err(|problem| problem.detail).expect("a source").root;
        std::fs::write(src.path().join("a"), "second").expect("room");
        assert!(index(true).is_ok_and(|again| again.again && again.root == first));
        let manifest = folder.path().join("manifest");
        let mut bytes = std::fs::read(&manifest).expect("kept");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&manifest, bytes).expect("room");
        let class = |signed| index(signed).err().map(|problem| problem.class);
        assert_eq!(class(true), Some(ProblemClass::BadManifest));
        std::fs::remove_file(&manifest).expect("there");
        assert_eq!(class(true), Some(ProblemClass::BadManifest));
        // Nobody was told of it yet.
        assert_eq!(class(false), None);
    }
}
