//! What there is of each backup, folded from the log: versions at storage agents, what is on its way there, who watches.
//!
//! State and views have one each, and neither depends on a time or on what can be read: an auditor without keys comes to
//! the same.

use std::collections::BTreeMap;

use event_schema::{
    AgentId, BackupOrder, BackupVersionKept, CommandId, Errand, Event, Field, JobId, JobSpec, Owner, Private,
    ProblemClass, Purpose, RefusalReason, Role, RunId, RunStarted, Subject, Visit,
};
use serde::{Deserialize, Serialize};

use super::version::VersionName;
use crate::limits::{SHRUNK_DAYS, SHRUNK_ENTRIES_MIN};

/// All backups that are jobs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Backups {
    /// By job; one that was deleted stays until nobody watches for it any more.
    pub jobs: BTreeMap<JobId, Backup>,
}

/// One backup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// Its job is deleted: what is kept stays where it is, and is not known of any more.
    pub deleted: bool,
    /// Whose folders were kept, or are watched.
    pub sources: BTreeMap<AgentId, Source>,
    /// What stands where: by storage agent and source.
    pub shelves: BTreeMap<(AgentId, AgentId), Shelf>,
    /// What storage agents were told to remove, and did not answer yet.
    pub thinning: BTreeMap<AgentId, Thinning>,
}

/// A source of a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The version that its last start was to make: when that was, to the second.
    pub started: Option<VersionName>,
    /// Its folder changed since then.
    pub changed: bool,
    /// It was told to watch its folder.
    pub watch: Option<Watch>,
}

/// A watch that was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// With which command.
    pub command: CommandId,
    /// The agent refused it.
    pub refused: Option<RefusalReason>,
}

/// One source's versions at one storage agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shelf {
    /// By name, which sorts by time.
    pub versions: BTreeMap<VersionName, Version>,
    /// Something came since it was last seen to whether versions are to go.
    pub unthinned: bool,
}

/// A version that stands at a storage agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Which run made it.
    pub run: RunId,
    /// It has everything of the run's manifest, and that has everything that was at the source.
    pub complete: bool,
    /// See [`BackupVersionKept::shrunk`].
    pub shrunk: bool,
    /// Entries of its manifest.
    pub entries: u64,
    /// Bytes of all its files.
    pub bytes: u64,
    /// The folder that it stands in.
    pub shelf: Private<Vec<u8>>,
}

/// Versions that were ordered to go.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thinning {
    /// With which command.
    pub command: CommandId,
    /// Whose versions.
    pub source: AgentId,
}

impl Version {
    /// Whether it can stand for the folder: others may go because it is there.
    pub fn is_good(&self) -> bool {
        self.complete && !self.shrunk
    }
}

impl Shelf {
    /// Whether a version of so much has so much less than the newest good one before it that something may be missing at
    /// the source. After [`SHRUNK_DAYS`] in which nobody was worried it is what the folder is.
    pub(crate) fn is_shrunk(&self, name: VersionName, entries: u64, bytes: u64) -> bool {
        let good = self.versions.iter().rev().find(|(other, version)| **other < name && version.is_good());
        let Some((before, version)) = good else { return false };
        if name.time() - before.time() > time::Duration::days(SHRUNK_DAYS) {
            return false;
        }
        let gone = version.entries.saturating_sub(entries);
        let most = gone >= SHRUNK_ENTRIES_MIN && gone >= version.entries.div_ceil(2);
        most || bytes == 0 && version.bytes > 0
    }
}

impl Backup {
    /// Whose folders are watched, as far as is known.
    pub(crate) fn is_watched(&self, source: AgentId) -> bool {
        self.sources.get(&source).is_some_and(|source| source.watch.is_some())
    }

    /// The version that any start of it was to make last.
    pub(crate) fn last_start(&self) -> Option<VersionName> {
        self.sources.values().filter_map(|source| source.started).max()
    }

    /// Every version of a source that stands somewhere, with where: the newest first, good ones before others of the same
    /// name.
    pub fn versions_of(&self, source: AgentId) -> Vec<(VersionName, AgentId, &Version)> {
        let shelves = self.shelves.iter().filter(|((_, of), _)| *of == source);
        let mut all: Vec<_> = shelves
            .flat_map(|((storage, _), shelf)| {
                shelf.versions.iter().map(move |(name, v)| (*name, *storage, v))
            })
            .collect();
        all.sort_by_key(|(name, storage, version)| (std::cmp::Reverse(*name), !version.is_good(), *storage));
        all
    }

    fn kept(&mut self, e: &BackupVersionKept) {
        let Ok(name) = e.version.parse::<VersionName>() else { return };
        let shelf = self.shelves.entry((e.agent, e.source)).or_default();
        shelf.unthinned = true;
        if e.unchanged && shelf.versions.contains_key(&name) {
            return;
        }
        let (complete, shrunk, entries, bytes) = (e.complete, e.shrunk, e.entries, e.bytes);
        let version = Version { run: e.run, complete, shrunk, entries, bytes, shelf: e.shelf.clone() };
        shelf.versions.insert(name, version);
    }

    fn began(&mut self, e: &RunStarted) {
        let Purpose::Version { name } = &e.purpose else { return };
        for source in e.participants.iter().filter(|part| part.role == Role::Source) {
            let source = self.sources.entry(source.agent).or_default();
            source.started = name.parse().ok();
            source.changed = false;
        }
    }

    fn ordered(&mut self, agent: AgentId, command: CommandId, errand: Errand) {
        match errand {
            Errand::Thin { source } => {
                if let Some(shelf) = self.shelves.get_mut(&(agent, source)) {
                    shelf.unthinned = false;
                }
                self.thinning.insert(agent, Thinning { command, source });
            }
            Errand::Watch => {
                self.sources.entry(agent).or_default().watch = Some(Watch { command, refused: None });
            }
            Errand::Unwatch => {
                if let Some(source) = self.sources.get_mut(&agent) {
                    source.watch = None;
                }
            }
        }
    }
}

impl Backups {
    pub(crate) fn evolve(&mut self, event: &Event) {
        match event {
            Event::JobCreated(e) if matches!(e.spec, JobSpec::Backup { .. }) => {
                self.jobs.insert(e.job, Backup::default());
            }
            Event::JobDeleted(e) => {
                if let Some(backup) = self.jobs.get_mut(&e.job) {
                    backup.deleted = true;
                    backup.shelves.clear();
                    backup.thinning.clear();
                    self.forget(e.job);
                }
            }
            Event::RunStarted(e) => {
                if let Some(backup) = self.jobs.get_mut(&e.job) {
                    backup.began(e);
                }
            }
            Event::BackupVersionKept(e) => {
                if let Some(backup) = self.alive(e.job) {
                    backup.kept(e);
                }
            }
            Event::RunProblemReported(e) if makes_incomplete(e.class) && e.concerns_entry => {
                // The source may be heard after storage has told what it keeps.
                let shelves = self.jobs.values_mut().flat_map(|backup| &mut backup.shelves);
                let of_source = shelves.filter(|((_, source), _)| *source == e.agent);
                let versions = of_source.flat_map(|(_, shelf)| shelf.versions.values_mut());
                versions.filter(|version| version.run == e.run).for_each(|version| version.complete = false);
            }
            Event::BackupThinned(e) => {
                if let Some(backup) = self.alive(e.job) {
                    backup.thinning.remove(&e.agent);
                    let Some(shelf) = backup.shelves.get_mut(&(e.agent, e.source)) else { return };
                    for name in e.removed.iter().filter_map(|name| name.parse().ok()) {
                        // What did not fit into one command follows; what failed waits for the next version.
                        shelf.unthinned |= shelf.versions.remove(&name).is_some();
                    }
                }
            }
            Event::BackupSourceChanged(e) => {
                if let Some(backup) = self.alive(e.job) {
                    backup.sources.entry(e.agent).or_default().changed = true;
                }
            }
            Event::CommandIssued(e) => {
                let Some(BackupOrder { job, errand }) = e.backup else { return };
                if let Some(backup) = self.jobs.get_mut(&job) {
                    backup.ordered(e.agent, e.command, errand);
                    self.forget(job);
                }
            }
            Event::CommandAcknowledged(e) if e.refused.is_some() => {
                for backup in self.jobs.values_mut() {
                    let of_agent = backup.sources.get_mut(&e.agent).and_then(|source| source.watch.as_mut());
                    if let Some(watch) = of_agent.filter(|watch| watch.command == e.command) {
                        watch.refused = e.refused;
                    }
                    if backup.thinning.get(&e.agent).is_some_and(|thinning| thinning.command == e.command) {
                        backup.thinning.remove(&e.agent);
                    }
                }
            }
            Event::AgentRemoved(e) => {
                for backup in self.jobs.values_mut() {
                    // What it kept is out of reach; what was kept of it is not.
                    backup.sources.remove(&e.agent);
                    backup.shelves.retain(|(storage, _), _| *storage != e.agent);
                    backup.thinning.remove(&e.agent);
                }
                let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
                jobs.into_iter().for_each(|job| self.forget(job));
            }
            _ => {}
        }
    }

    /// A backup whose job is not deleted.
    pub(crate) fn alive(&mut self, job: JobId) -> Option<&mut Backup> {
        self.jobs.get_mut(&job).filter(|backup| !backup.deleted)
    }

    fn forget(&mut self, job: JobId) {
        let done = |backup: &Backup| backup.deleted && backup.sources.values().all(|s| s.watch.is_none());
        if self.jobs.get(&job).is_some_and(done) {
            self.jobs.remove(&job);
        }
    }

    pub(crate) fn private(&mut self, visit: &mut Visit<'_>) {
        for (job, backup) in &mut self.jobs {
            let owner = Owner::Subject(Subject::Job(*job));
            for shelf in backup.shelves.values_mut() {
                shelf
                    .versions
                    .values_mut()
                    .for_each(|version| visit(Field::Shelf, owner, &mut version.shelf));
            }
        }
    }
}

/// Whether a problem that a source has with an entry says that the version lacks what is there. What is gone is not, and
/// what no run carries anywhere (sockets, links that lead out) is not missed.
pub(crate) fn makes_incomplete(class: ProblemClass) -> bool {
    match class {
        ProblemClass::DiskFull
        | ProblemClass::PermissionDenied
        | ProblemClass::SourceChanged
        | ProblemClass::LimitExceeded
        | ProblemClass::Io
        | ProblemClass::Internal
        | ProblemClass::CorruptBlock
        | ProblemClass::BadManifest
        | ProblemClass::Damaged => true,
        ProblemClass::NotFound
        | ProblemClass::UnsafeLink
        | ProblemClass::UnsafeName
        | ProblemClass::UnsupportedKind
        | ProblemClass::Replaced => false,
    }
}

/// In bytes and for people: its text.
impl Serialize for VersionName {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VersionName {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <String as Deserialize>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
