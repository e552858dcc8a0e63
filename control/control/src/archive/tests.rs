//! Archiving stopped between any two steps, archives changed by others, and what is read from archives and log together.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_proto::RunSecret;
use control_core::form::Checked as Fold;
use control_core::group;
use ed25519_dalek::SigningKey;
use event_audit::keys::KeyList;
use event_audit::ledger::Ledger;
use event_audit::note::NoteSigner;
use event_log::file::{FileLog, FileLogOptions};
use event_log::{Entry, EventLog, Position, ReadError, ReadLimit};
use event_schema::{GroupId, Record, StateAttested};

use super::write::Step;
use super::{ArchiveError, Archived, Archiver, BaseNote, History, Kept, check, plan};
use crate::at::At;
use crate::retention;
use crate::service::{Keys, Options, Origin, PastError, Service, Snapshots, now};

const SMALL: FileLogOptions = FileLogOptions { segment_bytes: 4096, read_only: false, sync: true };

/// A data folder whose log has many small segments, the keys that sealed it, and room for archives.
struct Data {
    dir: tempfile::TempDir,
    keys: KeyList,
    signer: SigningKey,
}

fn service_keys() -> Keys {
    Keys {
        root_key: [0xa1; 32],
        ca_fingerprint: [0xb2; 32],
        command: SigningKey::from_bytes(&[3; 32]),
        secret_of: Box::new(|run| RunSecret::derive(&[7; 32], run)),
    }
}

impl Data {
    async fn new(seed: u8, groups: u64) -> Self {
        let (root, signer) =
            (SigningKey::from_bytes(&[seed; 32]), SigningKey::from_bytes(&[seed ^ 0xff; 32]));
        let keys = KeyList::sign(&root, &[signer.verifying_key().to_bytes()]).expect("usable keys");
        let data = Self { dir: tempfile::tempdir().expect("a folder"), keys, signer };
        let (service, writer) = data.serve().await;
        for n in 0..groups {
            make_group(&service, n).await;
        }
        drop(service);
        writer.await.expect("ends well");
        data.seal().await;
        data
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A folder for an archive.
    fn archive(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("made");
        path
    }

    async fn log(&self) -> Arc<FileLog> {
        Arc::new(FileLog::open(self.path("log"), SMALL).await.expect("opens"))
    }

    async fn serve(&self) -> (Service, tokio::task::JoinHandle<()>) {
        self.try_serve().await.expect("opens")
    }

    async fn try_serve(&self) -> Result<(Service, tokio::task::JoinHandle<()>), crate::service::OpenError> {
        let log = self.log().await;
        let base = log.base().map(|base| BaseNote::of(&base).expect("a note"));
        let options = Options {
            attest_every: 20,
            snapshots: Some(self.path("snapshots")),
            snapshot_every: 25,
            base,
            ..Options::default()
        };
        Service::open(log, service_keys(), options).await
    }

    /// Signs all that the log has.
    async fn seal(&self) {
        let log = self.log().await;
        let edge = log.base().map(|base| BaseNote::of(&base).expect("a note").edge);
        let mut ledger = self.ledger();
        if let Some(edge) = edge.filter(|edge| ledger.size() < edge.size()) {
            ledger.start_over_at(&edge);
        }
        let mut next = Position(ledger.size() + 1);
        loop {
            let page = log.read(next, ReadLimit::default()).await.expect("readable");
            let Some(last) = page.last() else { break };
            next = last.position.next();
            page.iter().for_each(|entry| ledger.append(&entry.bytes).expect("appended"));
        }
        let signer = NoteSigner::new(self.keys.origin(), self.signer.clone()).expect("a name");
        ledger.checkpoint(&signer).expect("signed");
        log.close().await;
    }

    fn ledger(&self) -> Ledger {
        Ledger::open(&self.path("audit"), self.keys.origin(), self.keys.log_keys()).expect("opens")
    }

    /// As `flotilla log archive` does.
    async fn archive_before(&self, before: u64, to: &Path) -> Result<retention::Report, ArchiveError> {
        let log = self.log().await;
        let before = At::Position(before);
        let report = retention::archive(self.dir.path(), &log, &self.keys, before, to, false, |_| ()).await;
        log.close().await;
        report
    }

    /// One segment, stopped at a step as if the process had been killed there.
    async fn archive_one(&self, to: &Path, stop: Step) -> Result<(), ArchiveError> {
        let log = self.log().await;
        let done = async {
            let mut archiver = Archiver::open(&log, &self.path("audit"), &self.keys, to)?;
            archiver.stop_at = Some(stop);
            let segment = log.closed_segments().remove(0);
            let copied = archiver.copy(&log, &segment)?;
            let snapshots = Snapshots::open(&self.path("snapshots")).expect("opens");
            if let Some(base) = log.base() {
                snapshots.begin_behind(&BaseNote::of(&base)?);
            }
            snapshots.keep_state_at(&*log, copied.note.position).await.expect("kept");
            archiver.finish(&log, &copied)
        };
        let done = done.await;
        log.close().await;
        done
    }

    /// The whole history from archives and log.
    async fn history(&self, archives: &[PathBuf]) -> Vec<Entry> {
        let log: Arc<dyn EventLog> = self.log().await;
        let history = History::open(archives, Some(log), Some(self.keys.origin())).await.expect("opens");
        assert_eq!(history.missing(), None);
        let all = read_all(&history, 1).await;
        history.close().await;
        all
    }

    /// A copy of everything, to be spoiled.
    fn copied(&self) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        copy_tree(self.dir.path(), dir.path());
        Self { dir, keys: self.keys.clone(), signer: self.signer.clone() }
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&target).expect("made");
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

async fn make_group(service: &Service, n: u64) {
    let mut id = [0x60; 16];
    id[..8].copy_from_slice(&n.to_be_bytes());
    let decided = service.decide(Origin::operator("test", "group".into()), move |state, _| {
        group::decide(state, group::Command::Create { group: GroupId(id), name: format!("group {n:050}") })
    });
    decided.await.expect("made");
}

async fn read_all(log: &dyn EventLog, first: u64) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    loop {
        let from = Position(first + all.len() as u64);
        let page = log.read(from, ReadLimit::entries(17)).await.expect("readable");
        if page.is_empty() {
            return all;
        }
        assert_eq!(page[0].position, from);
        all.extend(page);
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

const STEPS: [Step; 7] =
    [Step::Tree, Step::Keys, Step::Written, Step::Renamed, Step::Listed, Step::State, Step::BaseCopied];

#[tokio::test(flavor = "multi_thread")]
async fn stopped_at_any_step_nothing_is_lost_and_the_next_run_ends_it() {
    let fresh = Data::new(1, 260).await;
    let whole = fresh.history(&[]).await;
    let end = whole.len() as u64;
    assert!(fresh.log().await.closed_segments().len() > 6);
    let second = fresh.copied();
    second.archive_before(end / 2, &second.archive("archive")).await.expect("archived");
    for (begun, from) in [(&fresh, 1), (&second, 2)] {
        for step in STEPS {
            let data = begun.copied();
            let to = data.archive("archive");
            let before = data.log().await.first_stored();
            let stopped = data.archive_one(&to, step).await;
            assert!(matches!(stopped, Err(ArchiveError::Stopped)), "{step:?}: {stopped:?}");
            // The log is as it was, and what the archive has proves itself.
            assert_eq!(data.log().await.first_stored(), before, "{step:?}");
            assert_eq!(read_all(&*data.log().await, before.0).await, whole[before.0 as usize - 1..]);
            let listed = check(&to, Some(data.keys.origin()), &[], |_, _| ());
            match listed {
                Ok(found) => assert!(found.manifest.last().is_some()),
                Err(ArchiveError::NoArchive(_)) => assert!(from == 1 && step < Step::Listed, "{step:?}"),
                Err(error) => panic!("{step:?}: {error}"),
            }
            // A service starts on it, and the next run goes on.
            let (service, writer) = data.serve().await;
            assert_eq!(service.views().position(), end, "{step:?}");
            writer.abort();
            drop(service);
            let _ = writer.await;
            data.archive_before(end, &to).await.unwrap_or_else(|error| panic!("{step:?}: {error}"));
            let found = check(&to, Some(data.keys.origin()), &[], |_, _| ()).expect("good");
            let first = data.log().await.first_stored().0;
            assert_eq!((found.manifest.first(), found.manifest.last()), (Some(1), Some(first - 1)));
            assert_eq!(data.history(std::slice::from_ref(&to)).await, whole, "{step:?}");
            assert!(files(&to).iter().all(|file| file.extension().is_none_or(|e| e != "new")), "{step:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_goes_on_behind_an_archive() {
    let data = Data::new(1, 260).await;
    let whole = data.history(&[]).await;
    let end = whole.len() as u64;
    let states: Vec<[u8; 32]> = {
        let mut fold = Fold::default();
        let states = whole.iter().map(|entry| {
            fold.apply(entry.position.0, &Record::decode(&entry.bytes).expect("a record")).expect("right");
            fold.views().hash()
        });
        states.collect()
    };
    let (first_archive, second_archive) = (data.archive("first"), data.archive("second"));
    let report = data.archive_before(end / 3, &first_archive).await.expect("archived");
    assert!(report.archived.len() > 1);
    // The same again: nothing to do, and the reason.
    let again = data.archive_before(end / 3, &first_archive).await.expect("nothing to do");
    assert!(again.archived.is_empty() && matches!(again.plan.kept, Kept::Young { .. }));
    // In another folder, which proves its own part.
    data.archive_before(end * 2 / 3, &second_archive).await.expect("archived");
    let base = data.log().await.first_stored().0 - 1;
    let parts = [first_archive.clone(), second_archive.clone()];
    assert_eq!(data.history(&parts).await, whole);
    for part in &parts {
        check(part, Some(data.keys.origin()), &[data.ledger().head()], |position, bytes| {
            assert_eq!(bytes, whole[position as usize - 1].bytes);
        })
        .expect("good");
    }
    // A part is missing, and it is said which.
    let log: Arc<dyn EventLog> = data.log().await;
    let history = History::open(&parts[1..], Some(log), None).await.expect("opens");
    let gap = *report.plan.segments.last().map(|segment| &segment.last).expect("some");
    assert_eq!(history.missing(), Some(1..=gap.0));
    assert_eq!(history.first().await.expect("known"), gap.next());
    let error = history.read(Position(1), ReadLimit::default()).await.expect_err("missing");
    assert!(matches!(error, ReadError::Archived { first } if first == gap.next()), "{error}");
    history.close().await;
    drop(history);
    let log: Arc<dyn EventLog> = data.log().await;
    let history = History::open(&parts[..1], Some(log), None).await.expect("opens");
    assert_eq!(history.missing(), Some(gap.0 + 1..=base));
    history.close().await;
    drop(history);

    // With the snapshot at the base alone a service starts, and any later moment is as it was.
    for file in files(&data.path("snapshots")) {
        if !file.to_string_lossy().contains(&format!("{base:020}")) {
            fs::remove_file(file).expect("removed");
        }
    }
    let (service, writer) = data.serve().await;
    assert_eq!((service.views().position(), service.views().hash()), (end, states[end as usize - 1]));
    for position in [base, base + 1, (base + end) / 2, end - 1] {
        let past = service.past(At::Position(position)).await.expect("a past").expect("not the present");
        assert_eq!(past.hash(), states[position as usize - 1], "at {position}");
    }
    let time = Record::decode(&whole[0].bytes).expect("a record").time;
    for at in [At::Position(base - 1), At::Position(1), At::Time(time)] {
        let error = service.past(at).await.expect_err("archived");
        assert!(matches!(error, PastError::Archived { first, .. } if first == base + 1), "{error}");
    }
    for n in 1_000..1_050 {
        make_group(&service, n).await;
    }
    drop(service);
    writer.await.expect("ends well");
    // Sealed on from the edge, even when the unfinished tiles were torn.
    for file in files(&data.path("audit")).iter().filter(|file| file.to_string_lossy().contains(".p/")) {
        fs::write(file, b"torn").expect("written");
    }
    data.seal().await;
    data.ledger().scrub().expect("whole");
    let new_end = data.log().await.last_stored().0;
    assert!(new_end > end + 50);
    data.archive_before(new_end, &second_archive).await.expect("archived");
    assert_eq!(data.history(&parts).await[..whole.len()], whole);

    // Without a state nothing starts, and it is said what to do: put the segments back.
    fs::remove_dir_all(data.path("snapshots")).expect("removed");
    let Err(error) = data.try_serve().await else { panic!("it has no state") };
    assert!(error.to_string().contains("copy the archives' segments back"), "{error}");
    for part in &parts {
        for segment in files(&part.join("segments")) {
            fs::copy(&segment, data.path("log").join(segment.file_name().expect("a name"))).expect("copied");
        }
    }
    fs::remove_file(data.path("log").join("base")).expect("removed");
    let (service, writer) = data.serve().await;
    assert_eq!(service.views().position(), new_end);
    drop(service);
    writer.await.expect("ends well");
}

/// Who looks for a state between a segment's removal and the note of it does not make the state behind it be forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_while_a_segment_leaves_harms_nothing() {
    let data = Data::new(1, 260).await;
    let log = data.log().await;
    let mut archiver =
        Archiver::open(&log, &data.path("audit"), &data.keys, &data.archive("one")).expect("opens");
    let segment = log.closed_segments().remove(0);
    let copied = archiver.copy(&log, &segment).expect("copied");
    let position = copied.note.position;
    let snapshots = Snapshots::open(&data.path("snapshots")).expect("opens");
    snapshots.keep_state_at(&*log, position).await.expect("kept");
    archiver.finish(&log, &copied).expect("removed");
    let here = Some(At::Position(position));
    assert!(snapshots.find(&*log, here, 0).await.is_none(), "nothing to hold it against");
    snapshots.begin_behind(&copied.note);
    let found = snapshots.find(&*log, here, 0).await.expect("it is still known");
    assert_eq!(found.views.position(), position);
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_leave_stays_and_is_told() {
    let data = Data::new(1, 150).await;
    let to = data.archive("archive");
    let signed = data.ledger().size();
    let (service, writer) = data.serve().await;
    for n in 1_000..1_080 {
        make_group(&service, n).await;
    }
    drop(service);
    writer.await.expect("ends well");
    // Only up to what is signed.
    let report = data.archive_before(u64::MAX, &to).await.expect("archived");
    assert!(
        matches!(report.plan.kept, Kept::Unsigned { signed: s, .. } if s == signed),
        "{:?}",
        report.plan.kept
    );
    assert!(data.log().await.first_stored().0 <= signed + 1);
    let again = data.archive_before(u64::MAX, &to).await.expect("nothing");
    assert!(again.archived.is_empty() && again.plan.kept.is_refusal());
    data.seal().await;
    // Only what is older.
    let log = data.log().await;
    let none = plan(&log, At::Time(event_schema::Timestamp(1)), u64::MAX, 9).expect("planned");
    assert!(none.segments.is_empty() && matches!(none.kept, Kept::Young { .. }));
    let all = plan(&log, At::Time(now()), u64::MAX, usize::MAX).expect("planned");
    assert_eq!(all.segments, log.closed_segments());
    assert!(matches!(all.kept, Kept::Open { .. }));
    // Never without a folder, in that of somebody else, or leaving a gap.
    let open = |to: &Path| Archiver::open(&log, &data.path("audit"), &data.keys, to);
    assert!(matches!(open(&data.path("nowhere")), Err(ArchiveError::NoFolder(_))));
    let held = open(&to).expect("opens");
    assert!(matches!(open(&to), Err(ArchiveError::InUse(_))));
    drop(held);
    log.close().await;
    drop(log);
    let other = Data::new(2, 150).await;
    let theirs = other.archive("archive");
    other.archive_before(u64::MAX, &theirs).await.expect("archived");
    let refused = data.archive_before(u64::MAX, &theirs).await.expect_err("another log");
    assert!(matches!(refused, ArchiveError::Other { .. }), "{refused}");
    let next = data.archive("next");
    data.archive_before(signed + 30, &next).await.expect("archived");
    let refused = data.archive_before(u64::MAX, &to).await.expect_err("a gap");
    assert!(refused.to_string().contains("in another archive"), "{refused}");
    // A history that was rewritten is not archived.
    let (log, forked) = (data.log().await, other.path("audit"));
    let segment = log.closed_segments().remove(0);
    let mut archiver = Archiver::open(&log, &forked, &other.keys, &theirs).err();
    assert!(matches!(archiver.take(), Some(ArchiveError::Other { .. })));
    let empty = data.archive("empty");
    let mut archiver = Archiver::open(&log, &forked, &other.keys, &empty).expect("opens");
    let refused = archiver.copy(&log, &segment).expect_err("not what was signed");
    let what = refused.to_string();
    assert!(what.contains("was signed") || what.contains("signed, and position"), "{what}");
    assert!(!files(&empty).iter().any(|file| file.to_string_lossy().contains(".seg")));
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_was_attested_otherwise_is_not_kept() {
    let data = Data::new(1, 150).await;
    let log = data.log().await;
    // Everything from the middle on, behind an attestation that is wrong, in a log of its own.
    let all = read_all(&*log, 1).await;
    log.close().await;
    fs::remove_dir_all(data.path("log")).expect("removed");
    fs::remove_dir_all(data.path("audit")).expect("removed");
    fs::remove_dir_all(data.path("snapshots")).expect("removed");
    let log = data.log().await;
    let mut last = None;
    for (n, entry) in all.iter().enumerate() {
        let mut record = Record::decode(&entry.bytes).expect("a record");
        record.events.retain(|event| !matches!(event, event_schema::Event::StateAttested(_)));
        if n == 10 {
            record.events =
                vec![StateAttested { at: 10, form: control_core::form::NEWEST, hash: [0x66; 32] }.into()];
        }
        let stream = crate::service::log_stream();
        last = Some(log.append(&stream, last, record.encode()).await.expect("stored"));
    }
    log.close().await;
    drop(log);
    data.seal().await;
    let to = data.archive("archive");
    let refused = data.archive_before(u64::MAX, &to).await.expect_err("wrong");
    assert!(matches!(&refused, ArchiveError::State { what, .. } if what.contains("entry 11")), "{refused}");
    assert_eq!(data.log().await.first_stored(), Position(1));
}

/// Flipped bytes, cuts, exchanged and missing files, links: found out, and the entry named where it is about one.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_archive_is_found_out() {
    let data = Data::new(1, 200).await;
    let to = data.archive("archive");
    let end = data.log().await.last_stored().0;
    data.archive_before(end, &to).await.expect("archived");
    let good = check(&to, Some(data.keys.origin()), &[], |_, _| ()).expect("good");
    let manifest = good.manifest;
    assert!(manifest.segments.len() > 3);
    let mut numbers: u64 = 7;
    let mut below = |end: usize| {
        numbers = numbers.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((numbers >> 33) % end as u64) as usize
    };
    let opened = |what: &str| {
        let error = check(&to, Some(data.keys.origin()), &[], |_, _| ()).map(|_| ());
        error.expect_err(what)
    };
    let proving: Vec<PathBuf> = files(&to)
        .into_iter()
        .filter(|file| !matches!(file.file_name().and_then(|n| n.to_str()), Some("base" | "lock")))
        .collect();
    for file in &proving {
        let original = fs::read(file).expect("readable");
        // Read-only, as archived segments are.
        let put = |bytes: &[u8]| {
            let _ = fs::remove_file(file);
            fs::write(file, bytes).expect("written");
        };
        for nth in 0..12 {
            let mut bytes = original.clone();
            let at = below(bytes.len());
            bytes[at] ^= 1 << below(8);
            put(&bytes);
            let error = opened(&format!("{} byte {at}", file.display()));
            let name = file.file_name().and_then(|name| name.to_str()).expect("text");
            if let Some(segment) =
                manifest.segments.iter().find(|s| name.starts_with(&format!("{:020}", s.first)))
                && at > 48
            {
                let position = error.position().unwrap_or_else(|| panic!("{error}"));
                assert!((segment.first..=segment.last).contains(&position), "{nth}: {error}");
            }
        }
        for cut in [0, 1, original.len() / 2, original.len() - 2] {
            put(&original[..cut]);
            opened(&format!("{} cut at {cut}", file.display()));
        }
        put(&[&original[..], b"x"].concat());
        opened(&format!("{} made longer", file.display()));
        fs::remove_file(file).expect("removed");
        opened(&format!("{} removed", file.display()));
        #[cfg(unix)]
        if !file.to_string_lossy().contains("audit") {
            // The same bytes, somewhere else.
            let elsewhere = data.path("elsewhere");
            fs::write(&elsewhere, &original).expect("written");
            std::os::unix::fs::symlink(&elsewhere, file).expect("linked");
            opened(&format!("{} a link", file.display()));
            assert!(Archived::open(&to).is_err(), "{} a link", file.display());
            fs::remove_file(file).expect("removed");
        }
        put(&original);
    }
    check(&to, Some(data.keys.origin()), &[], |_, _| ()).expect("as it was");
    // One segment in another's place, under its name.
    let segment = |n: usize| to.join("segments").join(format!("{:020}.seg", manifest.segments[n].first));
    let (one, two) = (fs::read(segment(1)).expect("readable"), fs::read(segment(2)).expect("readable"));
    for (place, bytes) in [(1, &two), (2, &one), (1, &one), (2, &two)] {
        fs::remove_file(segment(place)).expect("removed");
        fs::write(segment(place), bytes).expect("written");
        if place == 2 && bytes == &one {
            let error = opened("exchanged");
            assert_eq!(error.position(), Some(manifest.segments[1].first), "{error}");
            assert!(Archived::open(&to).is_err());
        }
    }
    // Another log's manifest, keys and all, with these segments; and a folder that is one link.
    let other = Data::new(2, 200).await;
    let theirs = other.archive("archive");
    other.archive_before(end, &theirs).await.expect("archived");
    let error =
        check(&theirs, Some(data.keys.origin()), &[], |_, _| ()).map(|_| ()).expect_err("another log");
    assert!(error.to_string().contains("not of"), "{error}");
    let original = fs::read(to.join("manifest.json")).expect("readable");
    fs::copy(theirs.join("manifest.json"), to.join("manifest.json")).expect("copied");
    assert!(check(&to, None, &[], |_, _| ()).is_err());
    fs::write(to.join("manifest.json"), &original).expect("written");
    let text = String::from_utf8(original.clone()).expect("text");
    for (from, into) in [
        ("flotilla log archive v1", "flotilla log archive v2"),
        ("\"first\": 1,", "\"first\": 0,"),
        ("\"segments\"", "\"more\": 1, \"segments\""),
        ("\"first\": 1,", "\"first\": 18446744073709551615,"),
    ] {
        assert!(text.contains(from));
        fs::write(to.join("manifest.json"), text.replacen(from, into, 1)).expect("written");
        assert!(matches!(opened(into), ArchiveError::Manifest { .. }), "{into}");
    }
    fs::write(to.join("manifest.json"), &original).expect("written");
    #[cfg(unix)]
    {
        fs::rename(to.join("segments"), data.path("moved")).expect("moved");
        std::os::unix::fs::symlink(data.path("moved"), to.join("segments")).expect("linked");
        opened("a link in place of the folder");
    }
    // A head that was seen before, of another history.
    let seen = other.ledger().head();
    let copied = data.copied();
    let moved = copied.path("archive").join("segments");
    let _ = fs::remove_file(&moved);
    let _ = fs::remove_dir_all(&moved);
    copy_tree_into(&data.path("moved"), &moved);
    let error =
        check(&copied.path("archive"), None, &[seen], |_, _| ()).map(|_| ()).expect_err("two histories");
    assert!(matches!(error, ArchiveError::Forked { .. }), "{error}");
}

fn copy_tree_into(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    copy_tree(from, to);
}

/// What archiving costs with a million records, and what a start costs before and after:
/// `cargo nextest run -p control --lib --run-ignored only a_million_archived --no-capture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn a_million_archived() {
    use std::time::Instant;
    let data = Data::new(1, 0).await;
    let _ = fs::remove_dir_all(data.path("snapshots"));
    fs::remove_dir_all(data.path("log")).expect("removed");
    fs::remove_dir_all(data.path("audit")).expect("removed");
    let options = FileLogOptions { segment_bytes: 8 << 20, sync: false, ..FileLogOptions::default() };
    let log = FileLog::open(data.path("log"), options).await.expect("opens");
    crate::million::fill(&log).await;
    log.close().await;
    drop(log);
    data.seal().await;
    let opened = async |what: &str| {
        let start = Instant::now();
        let log = data.log().await;
        println!("{what}: log of {} records opened in {:?}", log.recovery().records, start.elapsed());
        log.close().await;
    };
    opened("whole").await;
    opened("whole").await;
    let to = data.archive("archive");
    let start = Instant::now();
    let report = data.archive_before(crate::million::RECORDS * 9 / 10, &to).await.expect("archived");
    let took = start.elapsed();
    let manifest = report.manifest.expect("an archive");
    println!(
        "{} records in {} segments archived in {took:?}: {} bytes, with tiles and the rest {}",
        manifest.last().expect("some"),
        manifest.segments.len(),
        manifest.bytes(),
        files(&to).iter().map(|file| fs::metadata(file).expect("a file").len()).sum::<u64>(),
    );
    opened("archived").await;
    opened("archived").await;
    let start = Instant::now();
    check(&to, Some(data.keys.origin()), &[], |_, _| ()).expect("good");
    println!("the archive checked in {:?}", start.elapsed());
    let start = Instant::now();
    let (service, writer) = data.serve().await;
    println!("a service on it opened in {:?}", start.elapsed());
    drop(service);
    writer.await.expect("ends well");
}
