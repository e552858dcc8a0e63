//! Watching the folders of continuous backups (`edge-agent/BACKUP.md` §7): what the folder's index finds is told once it
//! has come to rest, and not too often.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use event_schema::{JobId, Timestamp, decode_exact, encode};
use folder_index::{Catalog, GuardConfig, Index, Keeper, KeeperConfig, Phase};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::clock;

/// Watches of an agent: each has a thread, and as many of the system's watches as the folder has folders.
const WATCHES_MAX: usize = 256;

/// A folder that never comes to rest is told of after so many times as long as it should rest.
const RESTLESS: u32 = 10;

/// How often it is looked whether the folder's index is still kept, and kept anew if not.
const LOOK: Duration = Duration::from_secs(60);

/// Version of the file in which it is noted what was told, its first byte.
const VERSION: u8 = 1;

/// A folder to be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watch {
    /// For which job; another one of the same job takes its place.
    pub(crate) job: JobId,
    /// The folder.
    pub(crate) path: PathBuf,
    /// How long nothing is to have changed.
    pub(crate) quiet: Duration,
    /// The shortest time between two reports.
    pub(crate) pause: Duration,
}

/// A job whose folder has changed. To be answered when that is stored.
pub(crate) type Changed = (JobId, oneshot::Sender<()>);

/// What was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    /// Sequence of the folder's index.
    sequence: u64,
    /// When, by this machine's clock.
    at: Timestamp,
}

/// All watches of the agent.
pub(crate) struct Watches {
    folder: PathBuf,
    catalog: Option<Catalog>,
    changed: mpsc::Sender<Changed>,
    running: Mutex<BTreeMap<JobId, (Watch, JoinHandle<()>)>>,
}

impl Watches {
    /// None yet. What was told is noted in the agent's data folder.
    pub(crate) fn new(data: &Path, catalog: Option<Catalog>, changed: mpsc::Sender<Changed>) -> Self {
        Self { folder: data.join("watches"), catalog, changed, running: Mutex::default() }
    }

    /// Watches from now on, until it is told otherwise. Told the same again, nothing happens.
    pub(crate) fn watch(&self, watch: Watch) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.get(&watch.job).is_some_and(|(before, task)| *before == watch && !task.is_finished()) {
            return;
        }
        if let Some((_, task)) = running.remove(&watch.job) {
            task.abort();
        }
        if running.len() >= WATCHES_MAX {
            tracing::warn!(path = %watch.path.display(), "too many folders are watched; this one is not");
            return;
        }
        let Some(catalog) = self.catalog.clone() else {
            tracing::warn!(path = %watch.path.display(), "not watched: indexes of folders cannot be kept");
            return;
        };
        let note = self.folder.join(watch.job.to_string());
        let task = tokio::spawn(run(watch.clone(), catalog, note, self.changed.clone()));
        running.insert(watch.job, (watch, task));
    }

    /// Watches a job's folder no more.
    pub(crate) fn unwatch(&self, job: JobId) {
        let removed = self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&job);
        if let Some((_, task)) = removed {
            task.abort();
        }
        let _ = std::fs::remove_file(self.folder.join(job.to_string()));
    }

    /// Watches nothing any more; what was told is remembered.
    pub(crate) fn stop(&self) {
        let running = std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        running.into_values().for_each(|(_, task)| task.abort());
    }

    /// How many folders are watched.
    pub(crate) fn count(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.stop();
    }
}

/// When a folder is told of. Pure.
#[derive(Debug)]
struct Rest {
    quiet: Duration,
    pause: Duration,
    /// Since when it changes, and when it did last.
    changing: Option<(Instant, Instant)>,
    /// Not to be told of before.
    not_before: Instant,
}

impl Rest {
    /// It changed.
    fn change(&mut self, now: Instant) {
        let since = self.changing.map_or(now, |(since, _)| since);
        self.changing = Some((since, now));
    }

    /// When it is to be told, if nothing changes until then.
    fn due(&self) -> Option<Instant> {
        let (since, last) = self.changing?;
        Some((last + self.quiet).min(since + self.quiet * RESTLESS).max(self.not_before))
    }

    /// It was told.
    fn told(&mut self, now: Instant) {
        self.changing = None;
        self.not_before = now + self.pause;
    }
}

async fn run(watch: Watch, catalog: Catalog, note: PathBuf, changed: mpsc::Sender<Changed>) {
    let mut told = read(&note);
    // A clock that was set back must not silence it for long.
    let since =
        told.map_or(Duration::MAX, |told| Duration::from_millis(clock::now().0.saturating_sub(told.at.0)));
    let now = Instant::now();
    let not_before = now + watch.pause.saturating_sub(since);
    let mut rest = Rest { quiet: watch.quiet, pause: watch.pause, changing: None, not_before };
    let mut seen = told.map(|told| told.sequence);
    let woken = Arc::new(Notify::new());
    let mut keeping: Option<Keeping> = None;
    loop {
        let (opened, sequence) = keep(keeping.take(), &watch.path, &catalog, &woken).await;
        keeping = opened;
        if let Some(sequence) = sequence.filter(|sequence| seen != Some(*sequence)) {
            seen = Some(sequence);
            rest.change(Instant::now());
        }
        let look = Instant::now() + LOOK;
        match rest.due() {
            Some(due) if due <= Instant::now() => {
                let (stored, answer) = oneshot::channel();
                if changed.send((watch.job, stored)).await.is_err() || answer.await.is_err() {
                    // The agent ends; it is told by the next life.
                    return;
                }
                rest.told(Instant::now());
                told = seen.map(|sequence| Told { sequence, at: clock::now() });
                if let Some(told) = told
                    && let Err(error) = write(&note, &told)
                {
                    tracing::warn!(%error, "cannot note what was told of a folder; it is told again");
                }
            }
            due => {
                tokio::select! {
                    () = woken.notified() => {}
                    () = sleep_until(due.map_or(look, |due| due.min(look))) => {}
                }
            }
        }
    }
}

/// The keeper of a folder's index. It is let go on a thread of its own: that waits for its work to end.
struct Keeping(Option<Keeper>);

impl Drop for Keeping {
    fn drop(&mut self) {
        if let Some(keeper) = self.0.take() {
            std::thread::spawn(move || drop(keeper));
        }
    }
}

/// Sees to it that the index of a folder is kept, and reads its sequence; none before the first scan has come to its end.
async fn keep(
    keeping: Option<Keeping>,
    path: &Path,
    catalog: &Catalog,
    woken: &Arc<Notify>,
) -> (Option<Keeping>, Option<u64>) {
    let (path, catalog, woken) = (path.to_owned(), catalog.clone(), woken.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let failed = |k: &Keeping| k.0.as_ref().is_none_or(|k| k.status().phase == Phase::Failed);
        let keeping = keeping.filter(|keeping| !failed(keeping)).or_else(|| {
            let index = catalog.index(&path);
            let index =
                index.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "not watched yet"));
            let told = move |_| woken.notify_one();
            let mut config = KeeperConfig::default();
            // Whoever deletes much has his versions; a folder or a mount that is missing stays no change.
            config.scan.guard = GuardConfig { least: u64::MAX, ..GuardConfig::default() };
            Some(Keeping(Some(Keeper::start(index.ok()?, config, told))))
        });
        // What was missing may be back: nothing else would tell.
        let keeper = keeping.as_ref().and_then(|keeping| keeping.0.as_ref());
        if let Some(keeper) = keeper.filter(|keeper| keeper.status().suspicion.is_some()) {
            keeper.rescan();
        }
        let sequence =
            |index: &Arc<Index>| index.is_complete().ok()?.then_some(index.counters().ok()?.sequence);
        let sequence = keeping.as_ref().and_then(|keeping| sequence(keeping.0.as_ref()?.index()));
        (keeping, sequence)
    });
    looked.await.unwrap_or_default()
}

fn read(note: &Path) -> Option<Told> {
    let bytes = std::fs::read(note).ok()?;
    match bytes.split_first() {
        Some((&VERSION, told)) => decode_exact("Told", told).ok(),
        _ => None,
    }
}

fn write(note: &Path, told: &Told) -> std::io::Result<()> {
    std::fs::create_dir_all(note.parent().unwrap_or(Path::new(".")))?;
    crate::folder::write_private(note, &[&[VERSION][..], &encode(told)].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tokio::time::timeout;

    const PATIENCE: Duration = Duration::from_secs(30);
    const JOB: JobId = JobId([3; 16]);

    #[test]
    fn it_is_told_when_it_rests_and_not_too_often() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let (quiet, pause) = (Duration::from_secs(10), Duration::from_secs(300));
        let mut rest = Rest { quiet, pause, changing: None, not_before: start };
        assert_eq!(rest.due(), None);
        rest.change(at(1));
        rest.change(at(5));
        assert_eq!(rest.due(), Some(at(15)));
        rest.told(at(15));
        assert_eq!(rest.due(), None);
        rest.change(at(20));
        assert_eq!(rest.due(), Some(at(315)), "not more often than allowed");
        rest.told(at(315));
        (1000..1200).for_each(|s| rest.change(at(s)));
        assert_eq!(rest.due(), Some(at(1100)), "it never rests");
    }

    struct Bed {
        data: tempfile::TempDir,
        tree: tempfile::TempDir,
        catalog: Catalog,
        watches: Option<Watches>,
        told: mpsc::Receiver<Changed>,
    }

    impl Bed {
        fn new() -> Self {
            let room = || tempfile::tempdir().expect("room");
            let (data, tree) = (room(), room());
            let catalog = Catalog::open(&data.path().join("indexes")).expect("opened");
            Self { data, tree, catalog, watches: None, told: mpsc::channel(1).1 }
        }

        fn start(&mut self) {
            let (changed, told) = mpsc::channel(8);
            self.told = told;
            let watches = Watches::new(self.data.path(), Some(self.catalog.clone()), changed);
            let (quiet, pause) = (Duration::from_millis(100), Duration::from_millis(100));
            let watch = Watch { job: JOB, path: self.tree.path().into(), quiet, pause };
            watches.watch(watch.clone());
            watches.watch(watch);
            assert_eq!(watches.count(), 1);
            self.watches = Some(watches);
        }

        async fn is_told(&mut self) {
            let (job, stored) = timeout(PATIENCE, self.told.recv()).await.expect("in time").expect("alive");
            assert_eq!(job, JOB);
            stored.send(()).expect("it waits");
        }

        /// Everything that is there is in the index.
        async fn settled(&self) {
            let index = self.catalog.index(self.tree.path()).expect("opened");
            timeout(PATIENCE, async {
                while index.activity().is_some() || !index.is_complete().expect("read") {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await
            .expect("scanned");
        }

        async fn noted(&self) -> u64 {
            let note = self.data.path().join("watches").join(JOB.to_string());
            let index = self.catalog.index(self.tree.path()).expect("opened");
            timeout(PATIENCE, async {
                loop {
                    let now = index.counters().expect("read").sequence;
                    if read(&note).is_some_and(|told| told.sequence == now) {
                        return now;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await
            .expect("noted")
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn changes_are_told_over_restarts_and_a_folder_that_is_gone_is_none() {
        let mut bed = Bed::new();
        fs::write(bed.tree.path().join("a"), "1").expect("room");
        bed.start();
        bed.is_told().await;
        let first = bed.noted().await;
        fs::write(bed.tree.path().join("b"), "2").expect("room");
        bed.is_told().await;
        assert!(bed.noted().await > first);
        // While nobody looks.
        bed.watches = None;
        fs::remove_file(bed.tree.path().join("a")).expect("there");
        bed.start();
        bed.is_told().await;
        let second = bed.noted().await;
        // Nothing changed since: what is told next is of what comes next.
        bed.watches = None;
        bed.start();
        bed.settled().await;
        let away = bed.tree.path().with_extension("away");
        fs::rename(bed.tree.path(), &away).expect("moved");
        bed.watches = None;
        bed.start();
        bed.settled().await;
        let index = bed.catalog.index(bed.tree.path()).expect("opened");
        assert_eq!(index.counters().expect("read").sequence, second, "it is not taken for deleted");
        assert!(bed.told.try_recv().is_err());
        fs::rename(&away, bed.tree.path()).expect("moved");
        fs::write(bed.tree.path().join("c"), "3").expect("room");
        bed.watches = None;
        bed.start();
        bed.is_told().await;
        bed.watches.as_ref().expect("there").unwatch(JOB);
        assert_eq!(bed.watches.as_ref().expect("there").count(), 0);
    }
}
