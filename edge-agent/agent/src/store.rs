//! What the agent must not forget, in `state.redb`: its place in the fleet, the command cursor, the
//! runs it is in, the reports that are not home yet.
//!
//! Everything here blocks. One thread writes (`report.rs`), so each change that belongs together is
//! one transaction, synced before anything acts on it (`edge-agent/PROTOCOL.md` §2.3).

use std::path::Path;

use agent_proto::TrustBundle;
use event_schema::{
    AnswerGuard, CommandId, DecodeError, Disposal, JoinRun, Purpose, ReportBody, RunId, RunOptions, Signed,
    Synchronize, TakePart, ThinBackup, Timestamp, WatchBackup, decode_exact, encode,
};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::limits::STORE_CACHE;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const RUNS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("runs");
/// Runs in which what is replaced is kept.
const KEEPING: TableDefinition<'_, &[u8], ()> = TableDefinition::new("keeping");
/// Synchronizations: the last command, what is wished, the last answer to the guard.
const SYNCS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("synchronizations");
/// Runs of which more is asked than of any, with what is wished: a release that did not know them must not take them for
/// others.
const PARTS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("parts");
/// Folders that are watched, by their jobs.
const WATCHES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("watches");
/// Versions to be removed, by the sequence of the command.
const THINNINGS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("thinnings");
const OUTBOX: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("outbox");

/// Version of the file's content.
const VERSION: u32 = 1;

/// Why the state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the agent's state file: {0}")]
    Database(Box<redb::Error>),
    #[error("the agent's state file is damaged at {key:?}: {source}")]
    Damaged { key: &'static str, source: DecodeError },
    #[error("the agent's state file has version {0}; this program knows version {VERSION}")]
    Version(u32),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// The agent's place in a fleet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// `HOST:PORT` of the gateway.
    pub(crate) gateway: String,
    /// The pinned root key.
    pub(crate) root_key: [u8; 32],
    /// Client certificate, DER.
    pub(crate) certificate: Vec<u8>,
    /// Credential for other agents.
    pub(crate) credential: Vec<u8>,
    /// Name in the fleet.
    pub(crate) name: String,
    /// Where relative paths of jobs lie.
    pub(crate) folders_storage_path: String,
}

/// The last command that was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Its sequence; 0 before the first.
    pub(crate) sequence: u64,
    /// Its id.
    pub(crate) command: Option<CommandId>,
}

/// What is to be done about a run the agent is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wish {
    /// Take part.
    Join,
    /// It is over: stop serving.
    Finish,
    /// Stop working on it.
    Stop,
    /// It is over, and every destination has everything: dispose of the files, then stop serving.
    Dispose {
        /// Root of the manifest that they confirmed.
        root: [u8; 32],
        /// What to do with the files.
        disposal: Disposal,
        /// When it was told, by the fleet's clock.
        told: Timestamp,
    },
}

/// A change to the list of runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RunChange {
    /// A new run, or the same again.
    Join(Box<TakePart>),
    /// Another wish about a known one.
    Wish(RunId, Wish),
    /// A new synchronization, or what is different about one.
    Synchronize(Box<Synchronize>),
    /// A person's answer to the guard of one.
    Answer(AnswerGuard),
    /// A folder to be watched, or no more.
    Watch(WatchBackup),
    /// Versions to be removed, by the command with this sequence.
    Thin(u64, Box<ThinBackup>),
}

/// A synchronization that the agent takes part in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Followed {
    /// What was ordered last.
    pub(crate) order: Synchronize,
    /// It is to be stopped.
    pub(crate) stop: bool,
    /// The last answer to the guard: its number tells whether it is to an open question.
    pub(crate) answer: Option<AnswerGuard>,
}

/// One transaction being put together.
pub(crate) struct Change {
    transaction: redb::WriteTransaction,
}

pub(crate) struct Store {
    database: Database,
}

impl Store {
    /// Opens the file or makes it; repairs it after a crash.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::builder().set_cache_size(STORE_CACHE).create(path)?;
        let store = Self { database };
        match store.meta::<u32>("version")? {
            None => {
                let change = store.change()?;
                change.put("version", &VERSION)?;
                change.commit()?;
            }
            Some(VERSION) => {}
            Some(other) => return Err(StoreError::Version(other)),
        }
        Ok(store)
    }

    /// Begins a transaction.
    pub(crate) fn change(&self) -> Result<Change, StoreError> {
        let transaction = self.database.begin_write()?;
        // Reading a table that was never opened for writing is an error, so all come into being here.
        transaction.open_table(META)?;
        transaction.open_table(RUNS)?;
        transaction.open_table(KEEPING)?;
        transaction.open_table(SYNCS)?;
        transaction.open_table(PARTS)?;
        transaction.open_table(WATCHES)?;
        transaction.open_table(THINNINGS)?;
        transaction.open_table(OUTBOX)?;
        Ok(Change { transaction })
    }

    fn meta<T: for<'de> Deserialize<'de>>(&self, key: &'static str) -> Result<Option<T>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        let Some(bytes) = table.get(key)? else { return Ok(None) };
        decode_exact(key, bytes.value()).map(Some).map_err(|source| StoreError::Damaged { key, source })
    }

    pub(crate) fn membership(&self) -> Result<Option<Membership>, StoreError> {
        self.meta("membership")
    }

    /// The signed trust bundle.
    pub(crate) fn trust(&self) -> Result<Option<Signed>, StoreError> {
        self.meta("trust")
    }

    pub(crate) fn cursor(&self) -> Result<Cursor, StoreError> {
        Ok(self.meta("cursor")?.unwrap_or_default())
    }

    /// Gateways that the fleet told.
    pub(crate) fn gateways(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.meta("gateways")?.unwrap_or_default())
    }

    /// Whether the fleet said that it removed this agent.
    pub(crate) fn removed(&self) -> Result<bool, StoreError> {
        Ok(self.meta("removed")?.unwrap_or_default())
    }

    /// Port of the µTP2 socket last time: peers know it.
    pub(crate) fn port(&self) -> Result<Option<u16>, StoreError> {
        self.meta("port")
    }

    /// Sequence of the last report ever made.
    pub(crate) fn report_sequence(&self) -> Result<u64, StoreError> {
        Ok(self.meta("report_sequence")?.unwrap_or_default())
    }

    /// Every run, and what is to be done about it.
    pub(crate) fn runs(&self) -> Result<Vec<(TakePart, Wish)>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(RUNS)?;
        // An agent of an older release did not make it.
        let keeping = match transaction.open_table(KEEPING) {
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            table => Some(table?),
        };
        let mut runs = Vec::new();
        for row in table.iter()? {
            let row = row?;
            let (wish, join): (Wish, JoinRun) = decode_exact("runs", row.1.value())
                .map_err(|source| StoreError::Damaged { key: "runs", source })?;
            let keeping = keeping.as_ref().map(|t| t.get(&join.run.0[..])).transpose()?.flatten().is_some();
            let (options, purpose) = (RunOptions::default(), Purpose::Plain);
            runs.push((TakePart { join, keeping, options, purpose }, wish));
        }
        let parts: Vec<(Wish, TakePart)> = self.rows(PARTS, "parts")?;
        runs.extend(parts.into_iter().map(|(wish, part)| (part, wish)));
        Ok(runs)
    }

    /// The folders that are watched.
    pub(crate) fn watches(&self) -> Result<Vec<WatchBackup>, StoreError> {
        self.rows(WATCHES, "watches")
    }

    /// What is to be thinned, with the sequences of the commands.
    pub(crate) fn thinnings(&self) -> Result<Vec<(u64, ThinBackup)>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(THINNINGS) {
            // Kept by a release that knew none.
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            table => table?,
        };
        let mut thinnings = Vec::new();
        for row in table.iter()? {
            let row = row?;
            let thin = decode_exact("thinnings", row.1.value());
            let thin = thin.map_err(|source| StoreError::Damaged { key: "thinnings", source })?;
            thinnings.push((row.0.value(), thin));
        }
        Ok(thinnings)
    }

    /// Everything in a table by ids; nothing if a release made this file that knew none.
    fn rows<T: for<'de> Deserialize<'de>>(
        &self,
        table: TableDefinition<'_, &'static [u8], &'static [u8]>,
        key: &'static str,
    ) -> Result<Vec<T>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(table) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            table => table?,
        };
        let mut rows = Vec::new();
        for row in table.iter()? {
            let value = decode_exact(key, row?.1.value());
            rows.push(value.map_err(|source| StoreError::Damaged { key, source })?);
        }
        Ok(rows)
    }

    /// The synchronizations that the agent takes part in.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub(crate) fn syncs(&self) -> Result<Vec<Followed>, StoreError> {
        self.rows(SYNCS, "synchronizations")
    }

    /// Waiting reports beyond `after`, the first at most `count` that fit into `bytes` (one always does).
    pub(crate) fn outbox(
        &self,
        after: u64,
        count: usize,
        bytes: usize,
    ) -> Result<Vec<(u64, Signed)>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(OUTBOX)?;
        let mut reports = Vec::new();
        let mut room = bytes;
        for row in table.range(after.saturating_add(1)..)?.take(count) {
            let row = row?;
            let encoded = row.1.value();
            if encoded.len() > room && !reports.is_empty() {
                break;
            }
            room = room.saturating_sub(encoded.len());
            reports.push((row.0.value(), signed(encoded)?));
        }
        Ok(reports)
    }

    pub(crate) fn outbox_len(&self) -> Result<u64, StoreError> {
        let transaction = self.database.begin_read()?;
        Ok(transaction.open_table(OUTBOX)?.len()?)
    }
}

fn signed(bytes: &[u8]) -> Result<Signed, StoreError> {
    decode_exact("outbox", bytes).map_err(|source| StoreError::Damaged { key: "outbox", source })
}

impl Change {
    /// Makes it last: on return it is synced.
    pub(crate) fn commit(self) -> Result<(), StoreError> {
        Ok(self.transaction.commit()?)
    }

    fn put<T: Serialize>(&self, key: &str, value: &T) -> Result<(), StoreError> {
        self.transaction.open_table(META)?.insert(key, encode(value).as_slice())?;
        Ok(())
    }

    pub(crate) fn set_membership(&self, membership: &Membership) -> Result<(), StoreError> {
        self.put("membership", membership)
    }

    /// Keeps a bundle that was checked and is not older than the one kept.
    pub(crate) fn set_trust(&self, trust: &Signed) -> Result<(), StoreError> {
        self.put("trust", trust)
    }

    pub(crate) fn set_removed(&self, removed: bool) -> Result<(), StoreError> {
        self.put("removed", &removed)
    }

    pub(crate) fn set_cursor(&self, cursor: Cursor) -> Result<(), StoreError> {
        self.put("cursor", &cursor)
    }

    pub(crate) fn set_gateways(&self, gateways: &[String]) -> Result<(), StoreError> {
        self.put("gateways", &gateways)
    }

    pub(crate) fn set_port(&self, port: u16) -> Result<(), StoreError> {
        self.put("port", &port)
    }

    pub(crate) fn apply(&self, change: &RunChange) -> Result<(), StoreError> {
        let mut table = self.transaction.open_table(RUNS)?;
        match change {
            RunChange::Join(part) => {
                let TakePart { join, keeping, options, purpose } = &**part;
                if !options.is_none() || *purpose != Purpose::Plain {
                    let mut parts = self.transaction.open_table(PARTS)?;
                    parts.insert(&join.run.0[..], encode(&(Wish::Join, part)).as_slice())?;
                    return Ok(());
                }
                table.insert(&join.run.0[..], encode(&(Wish::Join, join)).as_slice())?;
                if *keeping {
                    self.transaction.open_table(KEEPING)?.insert(&join.run.0[..], ())?;
                }
            }
            RunChange::Watch(watch) => {
                let mut watches = self.transaction.open_table(WATCHES)?;
                match watch.folder {
                    Some(_) => watches.insert(&watch.job.0[..], encode(watch).as_slice())?,
                    None => watches.remove(&watch.job.0[..])?,
                };
            }
            RunChange::Thin(sequence, thin) => {
                self.transaction.open_table(THINNINGS)?.insert(sequence, encode(thin).as_slice())?;
            }
            RunChange::Synchronize(order) => {
                let followed = Followed { order: Synchronize::clone(order), stop: false, answer: None };
                let mut syncs = self.transaction.open_table(SYNCS)?;
                syncs.insert(&order.run.0[..], encode(&followed).as_slice())?;
            }
            RunChange::Answer(answer) => {
                self.follow(answer.run, |followed| followed.answer = Some(answer.clone()))?;
            }
            RunChange::Wish(run, wish) => {
                if matches!(wish, Wish::Finish | Wish::Stop) {
                    self.follow(*run, |followed| followed.stop = true)?;
                }
                let row = table.get(&run.0[..])?.map(|row| row.value().to_vec());
                if let Some(row) = row {
                    let (_, join): (Wish, JoinRun) = decode_exact("runs", &row)
                        .map_err(|source| StoreError::Damaged { key: "runs", source })?;
                    table.insert(&run.0[..], encode(&(wish, join)).as_slice())?;
                }
                let mut parts = self.transaction.open_table(PARTS)?;
                let row = parts.get(&run.0[..])?.map(|row| row.value().to_vec());
                if let Some(row) = row {
                    let (_, part): (Wish, TakePart) = decode_exact("parts", &row)
                        .map_err(|source| StoreError::Damaged { key: "parts", source })?;
                    parts.insert(&run.0[..], encode(&(wish, part)).as_slice())?;
                }
            }
        }
        Ok(())
    }

    /// Changes what is kept of a synchronization, if it is known.
    fn follow(&self, run: RunId, change: impl FnOnce(&mut Followed)) -> Result<(), StoreError> {
        let mut syncs = self.transaction.open_table(SYNCS)?;
        let Some(row) = syncs.get(&run.0[..])?.map(|row| row.value().to_vec()) else { return Ok(()) };
        let mut followed: Followed = decode_exact("synchronizations", &row)
            .map_err(|source| StoreError::Damaged { key: "synchronizations", source })?;
        change(&mut followed);
        syncs.insert(&run.0[..], encode(&followed).as_slice())?;
        Ok(())
    }

    pub(crate) fn forget_run(&self, run: RunId) -> Result<(), StoreError> {
        self.transaction.open_table(SYNCS)?.remove(&run.0[..])?;
        self.transaction.open_table(RUNS)?.remove(&run.0[..])?;
        self.transaction.open_table(PARTS)?.remove(&run.0[..])?;
        self.transaction.open_table(KEEPING)?.remove(&run.0[..])?;
        Ok(())
    }

    /// What a command asked to be thinned is told of.
    pub(crate) fn forget_thinning(&self, sequence: u64) -> Result<(), StoreError> {
        self.transaction.open_table(THINNINGS)?.remove(sequence)?;
        Ok(())
    }

    /// Puts a signed report in; `sequence` is the last one made from now on.
    pub(crate) fn add_report(&self, sequence: u64, report: &Signed) -> Result<(), StoreError> {
        self.transaction.open_table(OUTBOX)?.insert(sequence, encode(report).as_slice())?;
        self.put("report_sequence", &sequence)
    }

    pub(crate) fn set_report_sequence(&self, sequence: u64) -> Result<(), StoreError> {
        self.put("report_sequence", &sequence)
    }

    /// Forgets the reports up to a sequence.
    pub(crate) fn forget_reports(&self, up_to: u64) -> Result<(), StoreError> {
        self.transaction.open_table(OUTBOX)?.retain_in(..=up_to, |_, _| false)?;
        Ok(())
    }

    /// Takes all waiting reports out, to be numbered anew.
    pub(crate) fn take_reports(&self) -> Result<Vec<Signed>, StoreError> {
        let mut table = self.transaction.open_table(OUTBOX)?;
        let reports = table.iter()?.map(|row| signed(row?.1.value())).collect::<Result<_, _>>()?;
        table.retain(|_, _| false)?;
        Ok(reports)
    }
}

/// Whether losing the report would leave the service wrong for ever: answers to commands it waits for,
/// manifests, ends. States and problems are superseded or are one of many.
pub(crate) fn is_essential(body: &ReportBody) -> bool {
    use event_schema::RefusalReason::{Replayed, WrongAudience};
    match body {
        ReportBody::RunStateReported(_) | ReportBody::ProblemReported(_) => false,
        ReportBody::CommandRefused(refused) => !matches!(refused.reason, Replayed | WrongAudience),
        _ => true,
    }
}

/// Opens a bundle that is to replace `kept`: signed by the pinned root, and not older.
pub(crate) fn newer_trust(signed: &Signed, root_key: &[u8; 32], kept: u64) -> Option<TrustBundle> {
    TrustBundle::open(signed, root_key).ok().filter(|bundle| bundle.version >= kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;
    use event_schema::{AgentId, Domain, JobId, Role};

    fn join(n: u8) -> JoinRun {
        JoinRun {
            run: RunId([n; 16]),
            job: JobId([1; 16]),
            job_name: "nightly".into(),
            role: Role::Destination,
            path: b"in".to_vec(),
            source: AgentId([2; 16]),
            peers: Vec::new(),
            trackers: Vec::new(),
            sealed_secret: vec![1, 2, 3],
        }
    }

    fn part(n: u8) -> TakePart {
        TakePart { join: join(n), keeping: true, options: RunOptions::default(), purpose: Purpose::Plain }
    }

    fn report(n: u64, len: usize) -> Signed {
        Signed::sign(Domain::Report, vec![n as u8; len], &SigningKey::from_bytes(&[1; 32]))
    }

    #[test]
    fn a_transaction_is_all_or_nothing_and_survives_a_restart() {
        let data = tempfile::tempdir().expect("a folder");
        let path = data.path().join("state.redb");
        let store = Store::open(&path).expect("opened");
        assert_eq!(store.cursor().expect("read"), Cursor::default());
        assert!(store.runs().expect("read").is_empty());
        let change = store.change().expect("begun");
        let cursor = Cursor { sequence: 7, command: Some(CommandId([7; 16])) };
        change.set_cursor(cursor).expect("set");
        change.apply(&RunChange::Join(Box::new(part(1)))).expect("joined");
        change.add_report(1, &report(1, 10)).expect("added");
        drop(change);
        assert_eq!(store.cursor().expect("read"), Cursor::default());
        assert_eq!(store.outbox_len().expect("read"), 0);
        let change = store.change().expect("begun");
        change.set_cursor(cursor).expect("set");
        change.apply(&RunChange::Join(Box::new(part(1)))).expect("joined");
        change.apply(&RunChange::Wish(RunId([1; 16]), Wish::Finish)).expect("wished");
        change.apply(&RunChange::Wish(RunId([9; 16]), Wish::Stop)).expect("an unknown run is no error");
        change.add_report(1, &report(1, 10)).expect("added");
        change.commit().expect("stored");
        drop(store);
        let store = Store::open(&path).expect("opened");
        assert_eq!(store.cursor().expect("read"), cursor);
        assert_eq!(store.runs().expect("read"), [(part(1), Wish::Finish)]);
        assert_eq!(store.report_sequence().expect("read"), 1);
        let change = store.change().expect("begun");
        change.forget_run(RunId([1; 16])).expect("forgotten");
        change.commit().expect("stored");
        assert!(store.runs().expect("read").is_empty());
    }

    #[test]
    fn what_is_asked_for_backups_survives_a_restart_until_it_is_done() {
        let data = tempfile::tempdir().expect("a folder");
        let path = data.path().join("state.redb");
        let store = Store::open(&path).expect("opened");
        let asked = TakePart {
            options: RunOptions { first: vec!["/boot/".into()], ..RunOptions::default() },
            purpose: Purpose::Version { name: "2026-11-23T013000Z".into() },
            ..part(1)
        };
        let watch = |job, folder| WatchBackup { job: JobId([job; 16]), folder };
        let folder =
            Some(event_schema::WatchedFolder { path: b"in".to_vec(), quiet_seconds: 1, pause_minutes: 2 });
        let thin = ThinBackup {
            job: JobId([1; 16]),
            source: AgentId([2; 16]),
            path: b"in".to_vec(),
            versions: vec!["2026-11-23T013000Z".into()],
        };
        let change = store.change().expect("begun");
        for one in [
            RunChange::Join(Box::new(asked.clone())),
            RunChange::Join(Box::new(part(2))),
            RunChange::Wish(RunId([1; 16]), Wish::Stop),
            RunChange::Watch(watch(1, folder.clone())),
            RunChange::Watch(watch(2, folder.clone())),
            RunChange::Watch(watch(1, None)),
            RunChange::Thin(7, Box::new(thin.clone())),
            RunChange::Thin(9, Box::new(thin.clone())),
        ] {
            change.apply(&one).expect("applied");
        }
        change.forget_thinning(7).expect("forgotten");
        change.commit().expect("stored");
        drop(store);
        let store = Store::open(&path).expect("opened");
        assert_eq!(store.runs().expect("read"), [(part(2), Wish::Join), (asked, Wish::Stop)]);
        assert_eq!(store.watches().expect("read"), [watch(2, folder)]);
        assert_eq!(store.thinnings().expect("read"), [(9, thin)]);
        let change = store.change().expect("begun");
        change.forget_run(RunId([1; 16])).expect("forgotten");
        change.commit().expect("stored");
        assert_eq!(store.runs().expect("read"), [(part(2), Wish::Join)]);
    }

    #[test]
    fn reports_wait_in_order_until_they_are_home() {
        let data = tempfile::tempdir().expect("a folder");
        let store = Store::open(&data.path().join("state.redb")).expect("opened");
        let change = store.change().expect("begun");
        for n in 1..=10 {
            change.add_report(n, &report(n, 100)).expect("added");
        }
        change.commit().expect("stored");
        let sequences = |after, count, bytes| {
            let rows = store.outbox(after, count, bytes).expect("read");
            rows.into_iter().map(|(sequence, _)| sequence).collect::<Vec<_>>()
        };
        assert_eq!(sequences(0, 3, usize::MAX), [1, 2, 3]);
        assert_eq!(sequences(8, 64, usize::MAX), [9, 10]);
        assert_eq!(sequences(0, 64, 1), [1], "one always goes");
        assert_eq!(sequences(0, 64, 400), [1, 2]);
        assert_eq!(sequences(u64::MAX, 64, 400), [0; 0]);
        let change = store.change().expect("begun");
        change.forget_reports(9).expect("forgotten");
        change.commit().expect("stored");
        assert_eq!(sequences(0, 64, usize::MAX), [10]);
        assert_eq!(store.report_sequence().expect("read"), 10);
    }

    #[test]
    fn trust_never_goes_back() {
        let root = SigningKey::from_bytes(&[1; 32]);
        let root_key = root.verifying_key().to_bytes();
        let bundle = TrustBundle {
            version: 3,
            root_key,
            command_keys: Vec::new(),
            credential_keys: Vec::new(),
            ca_certificate: Vec::new(),
        };
        let signed = bundle.sign(&root);
        assert!(newer_trust(&signed, &root_key, 2).is_some());
        assert!(newer_trust(&signed, &root_key, 3).is_some());
        assert!(newer_trust(&signed, &root_key, 4).is_none());
        assert!(newer_trust(&signed, &[2; 32], 1).is_none());
    }
}
