//! Private texts from their first record to their erasure: sealed wherever they are kept, read by whoever has the keys,
//! gone for good when those are destroyed, with every hash and state as attested before.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use control::gateway::Fleet as _;
use control::privacy::{FileKeys, KeyStore, KeyStoreError, SubjectKeys, Wrapped, Wrapper};
use control::service::{Ids, Options, Origin, Service, SubmitError, now};
use control_core::form::Checked;
use control_core::{Rejection, agent, job, run, subject};
use event_log::file::{FileLog, FileLogOptions};
use event_log::memory::MemoryLog;
use event_log::{BoxFuture, Position, ReadLimit};
use event_schema::*;
use support::*;
use tokio::task::JoinHandle;

/// A word that stands nowhere else.
const WORD: &str = "quagga";

async fn open_in(folder: &Path, keys_of: SubjectKeys) -> (Service, JoinHandle<()>) {
    let log = FileLog::open(folder.join("log"), FileLogOptions::default()).await.expect("opens");
    let options = Options {
        attest_every: 5,
        snapshots: Some(folder.join("snapshots")),
        snapshot_every: 7,
        subject_keys: Some(keys_of),
        ..Options::default()
    };
    Service::open(Arc::new(log), keys(), options).await.expect("opens")
}

/// Files under a folder that hold the word.
fn holding(folder: &Path, word: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(holding(&path, word));
        } else if std::fs::read(&path)
            .expect("readable")
            .windows(word.len())
            .any(|bytes| bytes == word.as_bytes())
        {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Folds the log anew, with no keys; how many states were attested, all of them as folded.
async fn check(service: &Service) -> u64 {
    let mut fold = Checked::default();
    while fold.views().position() < service.views().position() {
        let from = Position(fold.views().position() + 1);
        for entry in service.log().read(from, ReadLimit::default()).await.expect("readable") {
            let record = Record::decode(&entry.bytes).expect("a record");
            fold.apply(entry.position.0, &record).unwrap_or_else(|differs| panic!("{differs}"));
        }
    }
    assert_eq!((fold.views().hash(), fold.unknown), (service.views().hash(), 0));
    fold.checked
}

async fn named_job(service: &Service, source: AgentId, destination: AgentId) -> JobId {
    let id = Ids(now()).job();
    let place = |agent, path: &str| Place { party: Party::Agent(agent), path: path.into() };
    let spec = JobSpec::Distribution {
        source: place(source, "/srv/quagga-out"),
        destinations: vec![place(destination, "quagga-in")],
        options: Private::default(),
    };
    let decided = service.decide(Origin::operator("anna quagga", format!("job/{id}")), move |state, _| {
        job::decide(state, job::Command::Create { job: id, name: "quagga".into(), spec: spec.clone() })
    });
    decided.await.expect("a job");
    id
}

/// Wants the private name for another job.
async fn take_the_name(service: &Service) -> Result<(), SubmitError> {
    let decided = service.decide(Origin::operator("x", "job/x".into()), move |state, _| {
        let source = Place { party: Party::Agent(AgentId([0; 16])), path: "x".into() };
        let spec = JobSpec::Distribution { source, destinations: vec![], options: Private::default() };
        job::decide(state, job::Command::Create { job: JobId([9; 16]), name: WORD.into(), spec })
    });
    decided.await
}

async fn erase(service: &Service, subject: Subject) -> Result<(), SubmitError> {
    let decided = service.decide(Origin::operator("officer", subject.to_string()), move |state, _| {
        subject::erase(state, subject, "asked for")
    });
    decided.await
}

fn refusal(result: Result<(), SubmitError>) -> String {
    match result.expect_err("refused") {
        SubmitError::Rejected(Rejection::Conflict(why)) => why,
        other => panic!("{other}"),
    }
}

async fn make_group(service: &Service, user: &str, n: u8) -> Result<(), SubmitError> {
    let group = GroupId([n; 16]);
    let decided = service.decide(Origin::operator(user, format!("group/{group}")), move |state, _| {
        let name = format!("group {n}");
        control_core::group::decide(state, control_core::group::Command::Create { group, name })
    });
    decided.await
}

fn keys_in(folder: &Path) -> Vec<(Subject, Wrapped)> {
    FileKeys::read(&folder.join(FileKeys::NAME)).expect("readable").expect("there").keys
}

fn kept(folder: &Path) -> Vec<Subject> {
    keys_in(folder).into_iter().map(|(subject, _)| subject).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_erased_and_its_history_stays_provable() {
    let dir = tempfile::tempdir().expect("a folder");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    let mut fleet = agents(&service, 2).await;
    let job = named_job(&service, fleet[0].id, fleet[1].id).await;
    let subject = Subject::Job(job);
    let run = start(&service, job).await;
    assert!(refusal(erase(&service, subject).await).contains("is active"));
    for agent in &mut fleet {
        agent.obey(&service).await;
    }
    let problem = Problem {
        class: ProblemClass::Io,
        path: b"letters/quagga.pdf".to_vec(),
        detail: "quagga: cannot be read".into(),
    };
    fleet[1].report(&service, ProblemReported { run, problem }).await.expect("taken");
    let stats = TransferStats::default();
    let done = RunCompleted { run, state: RunAgentState::DoneWithErrors, stats };
    fleet[1].report(&service, done).await.expect("taken");
    assert!(refusal(erase(&service, subject).await).contains("still wait for"));
    {
        let views = service.views();
        let run = &views.runs.runs[&run];
        assert_eq!(
            (run.job_name.as_str(), run.problems[0].text.detail.as_str()),
            (WORD, "quagga: cannot be read")
        );
        assert_eq!(run.path(&run.agents[&fleet[1].id]), b"quagga-in");
    }
    for agent in &mut fleet {
        agent.obey(&service).await;
    }
    assert_eq!(holding(dir.path(), WORD), [] as [String; 0], "nothing ever stood in the clear");
    let before = service.views().hash();
    let attested = check(&service).await;
    assert!(attested >= 3 && kept(dir.path()).contains(&subject));

    // Opened again, from a snapshot and what follows: all of it is read.
    close(service, writer).await;
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    assert!(service.metrics().records.value() < service.views().position(), "from a snapshot");
    assert_eq!(service.views().jobs.jobs[&job].name.as_str(), WORD);
    assert!(
        refusal(take_the_name(&service).await).contains("already"),
        "the name is taken, though it is sealed"
    );

    erase(&service, subject).await.expect("erased");
    erase(&service, subject).await.expect("once more is nothing");
    let receiver = fleet[1].id;
    let gone = |service: &Service| {
        let views = service.views();
        let run = &views.runs.runs[&run];
        assert!(!views.jobs.jobs.contains_key(&job), "the job is deleted with its texts");
        assert_eq!((run.job_name.as_str(), run.problems[0].text.detail.as_str()), (ERASED, ERASED));
        assert_eq!(run.path(&run.agents[&receiver]), ERASED.as_bytes());
        assert_eq!((run.problems[0].class, run.agents[&receiver].problems), (ProblemClass::Io, 1));
    };
    gone(&service);
    assert!(!kept(dir.path()).contains(&subject), "its key is destroyed");
    assert!(check(&service).await >= attested);
    assert_ne!(service.views().hash(), before);
    // What still comes about it is a fact without its text.
    let late = Problem { class: ProblemClass::DiskFull, path: b"quagga.late".to_vec(), detail: WORD.into() };
    fleet[0].report(&service, ProblemReported { run, problem: late }).await.expect("taken");
    assert_eq!(service.views().runs.runs[&run].problems[1].class, ProblemClass::DiskFull);
    assert_eq!(service.views().runs.runs[&run].problems[1].text.detail, ERASED);
    // The name is free again.
    let again = named_job(&service, fleet[0].id, fleet[1].id).await;
    assert_eq!(service.views().jobs.jobs[&again].name.as_str(), WORD);
    close(service, writer).await;

    // For good: also from zero, and from the snapshots of before.
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    gone(&service);
    check(&service).await;
    close(service, writer).await;
    std::fs::remove_dir_all(dir.path().join("snapshots")).expect("removed");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    gone(&service);
    assert_eq!(service.views().jobs.jobs[&again].name.as_str(), WORD);
    close(service, writer).await;
    assert_eq!(holding(dir.path(), WORD), [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_and_users_are_erased_each_in_their_way() {
    let dir = tempfile::tempdir().expect("a folder");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    let fleet = agents(&service, 2).await;
    let (id, subject) = (fleet[0].id, Subject::Agent(fleet[0].id));
    assert!(refusal(erase(&service, subject).await).contains("remove it first"));
    let by = |name: &str| Origin::operator(name, format!("agent/{id}"));
    let removed = service
        .decide(by("anna"), move |state, _| agent::decide(state, agent::Command::Remove { agent: id }));
    removed.await.expect("removed");
    erase(&service, subject).await.expect("erased");
    {
        let views = service.views();
        let agent = &views.fleet.agents[&id];
        assert_eq!((agent.name.as_str(), agent.addresses.len()), (ERASED, 0));
        assert_eq!(views.fleet.agents[&fleet[1].id].addresses.len(), 1, "nobody else's");
    }
    // It shows itself once more, and is turned away: from where is not recorded.
    fleet[0].enrol(&service, None).await;
    let names: Vec<Event> = events(&**service.log()).await;
    let refused = names.iter().find_map(|event| match event {
        Event::EnrolmentRefused(e) => Some(e.address.clone()),
        _ => None,
    });
    assert_eq!(refused.expect("recorded").as_str(), ERASED);

    // A user's name goes from what was decided; what is decided later is told of the user again.
    let anna = Wrapper::new(&MASTER).user("anna");
    erase(&service, anna).await.expect("erased");
    assert!(refusal(erase(&service, Wrapper::new(&MASTER).user("nobody")).await).contains("level 2"));
    let add = service.decide(by("anna"), move |state, _| {
        control_core::group::decide(
            state,
            control_core::group::Command::Create { group: GroupId([7; 16]), name: "again".into() },
        )
    });
    add.await.expect("made");
    assert!(kept(dir.path()).contains(&anna), "another key");
    assert_eq!(count(&events(&**service.log()).await, "subject.opened"), 5 + 1);
    check(&service).await;
    close(service, writer).await;
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    check(&service).await;
    close(service, writer).await;
}

/// A store that does not destroy, or does not answer, while it is told so.
struct Stubborn {
    inner: FileKeys,
    holds: AtomicBool,
    silent: AtomicBool,
}

impl Stubborn {
    fn says(&self) -> Result<(), KeyStoreError> {
        let silent = self.silent.load(Ordering::Relaxed);
        if silent { Err(KeyStoreError::Unavailable("as the test wants it".into())) } else { Ok(()) }
    }
}

impl KeyStore for Stubborn {
    fn list(&self) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>> {
        self.inner.list()
    }

    fn get(&self, subject: Subject) -> BoxFuture<'_, Result<Vec<Wrapped>, KeyStoreError>> {
        Box::pin(async move {
            self.says()?;
            self.inner.get(subject).await
        })
    }

    fn create(
        &self,
        keys: Vec<(Subject, Wrapped)>,
    ) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>> {
        Box::pin(async move {
            self.says()?;
            self.inner.create(keys).await
        })
    }

    fn add(&self, keys: Vec<(Subject, Wrapped)>) -> BoxFuture<'_, Result<(), KeyStoreError>> {
        self.inner.add(keys)
    }

    fn destroy(&self, subject: Subject, wrapped: Wrapped) -> BoxFuture<'_, Result<(), KeyStoreError>> {
        if self.holds.load(Ordering::Relaxed) {
            return Box::pin(async { Err(KeyStoreError::Unavailable("as the test wants it".into())) });
        }
        self.inner.destroy(subject, wrapped)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_was_interrupted_is_finished_by_the_next_start() {
    let dir = tempfile::tempdir().expect("a folder");
    let inner = FileKeys::open(&dir.path().join(FileKeys::NAME)).expect("opens");
    let store = Arc::new(Stubborn { inner, holds: AtomicBool::new(true), silent: AtomicBool::new(false) });
    let keys_of = SubjectKeys { store: store.clone(), wrapper: Arc::new(Wrapper::new(&MASTER)) };
    let (service, writer) = open_in(dir.path(), keys_of).await;
    let fleet = agents(&service, 2).await;
    let job = named_job(&service, fleet[0].id, fleet[1].id).await;
    let subject = Subject::Job(job);
    erase(&service, subject).await.expect("recorded");
    assert!(kept(dir.path()).contains(&subject), "the store would not let it go");
    assert!(service.views().jobs.jobs.is_empty());
    drop(service);
    writer.await.expect("ends well");
    // As after a crash: the log says erased, the key is there.
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    assert!(!kept(dir.path()).contains(&subject), "finished");
    close(service, writer).await;
    drop(store);
}

/// The key is still there, or again, and the service goes on from a snapshot behind the erasure.
#[tokio::test(flavor = "multi_thread")]
async fn an_erased_text_stays_so_though_its_key_came_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    let mut fleet = agents(&service, 2).await;
    let job = named_job(&service, fleet[0].id, fleet[1].id).await;
    let subject = Subject::Job(job);
    let run = start(&service, job).await;
    for agent in &mut fleet {
        agent.obey(&service).await;
    }
    let done = RunCompleted { run, state: RunAgentState::Done, stats: TransferStats::default() };
    fleet[1].report(&service, done).await.expect("taken");
    for agent in &mut fleet {
        agent.obey(&service).await;
    }
    let backup = std::fs::read(dir.path().join(FileKeys::NAME)).expect("there");
    erase(&service, subject).await.expect("erased");
    let erased_at = service.views().position();
    for n in 0..30 {
        fleet[0].connect(&service).await;
        make_group(&service, "officer", n).await.expect("made");
    }
    close(service, writer).await;
    std::fs::write(dir.path().join(FileKeys::NAME), backup).expect("restored");
    assert!(kept(dir.path()).contains(&subject), "it is back");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    let read = service.metrics().records.value();
    assert!(read < service.views().position() - erased_at, "from a snapshot behind the erasure");
    assert_eq!(service.views().runs.runs[&run].job_name.as_str(), ERASED);
    assert!(!kept(dir.path()).contains(&subject), "and gone again");
    close(service, writer).await;
}

/// Both stand in the writer's queue, and would make one commit: what is decided behind the erasure is under another key.
#[tokio::test]
async fn a_user_who_is_erased_while_deciding_gets_another_key() {
    let dir = tempfile::tempdir().expect("a folder");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    make_group(&service, "officer", 1).await.expect("made");
    make_group(&service, "anna", 2).await.expect("made");
    let anna = Wrapper::new(&MASTER).user("anna");
    let before = keys_in(dir.path());
    let (erased, made, more) =
        tokio::join!(erase(&service, anna), make_group(&service, "anna", 3), make_group(&service, "anna", 4));
    erased.expect("erased");
    made.expect("made");
    more.expect("made");
    let told: Vec<Event> = events(&**service.log()).await;
    let mut keys: Vec<[u8; 32]> = told
        .iter()
        .filter_map(|event| match event {
            Event::SubjectOpened(e) if e.subject == anna => Some(e.commitment),
            _ => None,
        })
        .collect();
    assert_eq!(keys.len(), 2, "one of before, one of after");
    keys.dedup();
    assert_eq!(keys.len(), 2, "and not the same");
    let after = keys_in(dir.path());
    let of_anna = |keys: &[(Subject, Wrapped)]| keys.iter().find(|(subject, _)| *subject == anna).copied();
    assert!(of_anna(&after).is_some() && of_anna(&after) != of_anna(&before));
    make_group(&service, "anna", 5).await.expect("made");
    let told = events(&**service.log()).await;
    let opened = |event: &&Event| matches!(event, Event::SubjectOpened(e) if e.subject == anna);
    assert_eq!(told.iter().filter(opened).count(), 2, "it is there, and used");
    check(&service).await;
    close(service, writer).await;
}

/// A report about a run that nobody knows any more could be about a job that was erased: it is a fact without its text,
/// and not under the agent's key, where an erasure of the job would not reach it.
#[tokio::test(flavor = "multi_thread")]
async fn a_problem_of_a_forgotten_run_is_recorded_without_its_text() {
    let dir = tempfile::tempdir().expect("a folder");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    let mut fleet = agents(&service, 1).await;
    let problem =
        Problem { class: ProblemClass::Io, path: b"quagga.pdf".to_vec(), detail: "cannot be read".into() };
    fleet[0].report(&service, ProblemReported { run: RunId([5; 16]), problem }).await.expect("taken");
    let told = events(&**service.log()).await;
    let received = told.iter().find_map(|event| match event {
        Event::ReportReceived(e) => Some(e.signed.clone()),
        _ => None,
    });
    let received = received.expect("it is recorded");
    assert!(received.sealed().is_none() && !received.is_legible());
    close(service, writer).await;
}

/// Appends that fail leave keys that no record tells of: they are used by the next record, and no key is made twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_a_record_is_used_by_the_next() {
    let dir = tempfile::tempdir().expect("a folder");
    let inner = Arc::new(MemoryLog::new());
    let log = FaultyLog::new(inner.clone());
    let options = || Options { subject_keys: Some(sealed_in(dir.path())), ..Options::default() };
    let (service, writer) = Service::open(log.clone(), keys(), options()).await.expect("opens");
    let fleet = agents(&service, 2).await;
    for fault in [Fault::LostUnknown, Fault::StoredUnknown, Fault::Conflict, Fault::NoSpace] {
        log.next([fault]);
        let id = Ids(now()).job();
        let spec = JobSpec::Distribution {
            source: Place { party: Party::Agent(fleet[0].id), path: "a".into() },
            destinations: vec![Place { party: Party::Agent(fleet[1].id), path: "b".into() }],
            options: Private::default(),
        };
        let decide = move |state: &control_core::State, _: Timestamp| {
            let name = format!("job {fault:?}");
            job::decide(state, job::Command::Create { job: id, name, spec: spec.clone() })
        };
        let origin = Origin::operator("anna", format!("job/{id}"));
        let first = service.decide(origin.clone(), decide.clone()).await;
        assert_eq!(first.is_err(), fault == Fault::NoSpace, "{fault:?}");
        service.decide(origin, decide).await.expect("made, or there already");
        assert_eq!(*service.views().jobs.jobs[&id].name, format!("job {fault:?}"));
    }
    let mut opened: BTreeMap<Subject, u32> = BTreeMap::new();
    for event in events(&*inner).await {
        if let Event::SubjectOpened(e) = event {
            *opened.entry(e.subject).or_default() += 1;
        }
    }
    assert!(opened.values().all(|times| *times == 1), "{opened:?}");
    assert_eq!(opened.into_keys().collect::<Vec<_>>(), kept(dir.path()));
    close(service, writer).await;
    let (service, writer) = Service::open(log, keys(), options()).await.expect("opens");
    assert!(service.views().jobs.jobs.values().all(|job| job.name.is_legible()));
    close(service, writer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_missing_is_no_erasure() {
    let dir = tempfile::tempdir().expect("a folder");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    let mut fleet = agents(&service, 2).await;
    let job = named_job(&service, fleet[0].id, fleet[1].id).await;
    let run = start(&service, job).await;
    let other = create_job(&service, fleet[0].id, &[fleet[1].id]).await;
    close(service, writer).await;
    let path = dir.path().join(FileKeys::NAME);
    let backup = std::fs::read(&path).expect("there");
    std::fs::remove_file(&path).expect("removed");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    {
        let views = service.views();
        assert_eq!((views.jobs.jobs[&job].name.as_str(), views.runs.runs.len()), (SEALED, 1));
        let after = views.mailboxes.after(fleet[1].id, 0, 9);
        assert!(after.is_empty(), "a command that cannot be read is not passed over");
    }
    // Its folders are not known here, so no run of it is started, in which agents would be told of others.
    let again = Ids(now()).run();
    let started = service.decide(Origin::operator("x", format!("run/{again}")), move |state, _| {
        run::decide(state, run::Command::Start { run: again, job: other })
    });
    assert!(refusal(started.await).contains("is missing"));
    // What comes gets another key, and is read.
    fleet[0].connect(&service).await;
    assert_eq!(service.views().fleet.agents[&fleet[0].id].addresses.len(), 1);
    check(&service).await;
    close(service, writer).await;
    // The backup, restored: everything that was under the old keys is read again.
    std::fs::write(&path, backup).expect("restored");
    std::fs::remove_dir_all(dir.path().join("snapshots")).expect("removed");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    assert_eq!(service.views().jobs.jobs[&job].name.as_str(), WORD);
    assert!(matches!(fleet[1].obey(&service).await.body, CommandBody::JoinRun(join) if join.run == run));
    close(service, writer).await;
}

/// Two services with one store, as replicas have it: each reads what the other sealed, and what one erases is gone at
/// both.
#[tokio::test(flavor = "multi_thread")]
async fn two_services_share_keys_and_erasures() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = FaultyLog::new(Arc::new(MemoryLog::new()));
    let keys_of = sealed_in(dir.path());
    let mut services = Vec::new();
    for _ in 0..2 {
        let options = Options { shared_log: true, subject_keys: Some(keys_of.clone()), ..Options::default() };
        services.push(Service::open(log.clone(), keys(), options).await.expect("opens"));
    }
    let [(a, _), (b, _)] = &services[..] else { unreachable!("two") };
    let fleet = agents(a, 2).await;
    let caught_up = async || {
        let position = a.views().position().max(b.views().position());
        for service in [a, b] {
            service.position().wait_for(|at| *at >= position).await.expect("it lives");
        }
    };
    // Both begin with the same user at once.
    let wishes = (0..40u8).map(|n| {
        let service = if n % 2 == 0 { a.clone() } else { b.clone() };
        let group = GroupId([n; 16]);
        tokio::spawn(async move {
            let origin = Origin::operator("carla", format!("group/{group}"));
            let decided = service.decide(origin, move |state, _| {
                let name = format!("group {n}");
                control_core::group::decide(state, control_core::group::Command::Create { group, name })
            });
            decided.await
        })
    });
    for wish in wishes.collect::<Vec<_>>() {
        wish.await.expect("no panic").expect("made");
    }
    let job = named_job(b, fleet[0].id, fleet[1].id).await;
    caught_up().await;
    assert_eq!(a.views().jobs.jobs[&job].name.as_str(), WORD);
    let carla = Wrapper::new(&MASTER).user("carla");
    let opened = events(&**a.log()).await;
    let of_carla = |event: &&Event| matches!(event, Event::SubjectOpened(e) if e.subject == carla);
    assert_eq!(opened.iter().filter(of_carla).count(), 1);
    erase(a, Subject::Job(job)).await.expect("erased");
    caught_up().await;
    assert!(b.views().jobs.jobs.is_empty() && !kept(dir.path()).contains(&Subject::Job(job)));
    assert_eq!(a.views().hash(), b.views().hash());
    // An agent that was turned away, and erased, is let in at one: its name is read at the other.
    let stranger = FakeAgent::new(9);
    let spent = create_token(a, 1).await;
    FakeAgent::new(8).enrol(a, Some(spent.clone())).await;
    stranger.enrol(a, Some(spent)).await;
    erase(a, Subject::Agent(stranger.id)).await.expect("erased");
    caught_up().await;
    let token = create_token(a, 1).await;
    stranger.enrol(a, Some(token)).await;
    caught_up().await;
    let named = |service: &Service| service.views().fleet.agents[&stranger.id].name.to_string();
    assert!(![SEALED, ERASED].contains(&named(a).as_str()));
    assert_eq!(named(b), named(a));
    for (service, writer) in services {
        close(service, writer).await;
    }
}

/// The servers of the keys have no leader for a while, those of the log do: only what needs a new key has to wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_answer_stops_nobody() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = FaultyLog::new(Arc::new(MemoryLog::new()));
    let inner = FileKeys::open(&dir.path().join(FileKeys::NAME)).expect("opens");
    let (holds, silent) = (AtomicBool::new(false), AtomicBool::new(false));
    let stubborn = Arc::new(Stubborn { inner: inner.clone(), holds, silent });
    let open = async |store: Arc<dyn KeyStore>| {
        let keys_of = SubjectKeys { store, wrapper: Arc::new(Wrapper::new(&MASTER)) };
        let options = Options { shared_log: true, subject_keys: Some(keys_of), ..Options::default() };
        Service::open(log.clone(), keys(), options).await.expect("opens")
    };
    let (a, writer_a) = open(Arc::new(inner)).await;
    let (b, writer_b) = open(stubborn.clone()).await;
    let mut fleet = agents(&a, 2).await;
    let follow = async |service: &Service| {
        let end = a.views().position();
        service.position().wait_for(|at| *at >= end).await.expect("it lives");
    };
    follow(&b).await;
    stubborn.silent.store(true, Ordering::Relaxed);
    let job = named_job(&a, fleet[0].id, fleet[1].id).await;
    let run = start(&a, job).await;
    fleet[0].obey(&a).await;
    follow(&b).await;
    assert_eq!(b.views().jobs.jobs[&job].name.as_str(), SEALED);
    assert_eq!(a.views().hash(), b.views().hash(), "the state is the same");
    // What is under keys that it has goes on; what needs another one is refused, soon.
    fleet[1].connect(&b).await;
    let began = std::time::Instant::now();
    let group = async |service: &Service, user: &str, n: u8| {
        let decided = service.decide(Origin::operator(user, "group".into()), move |state, _| {
            let (group, name) = (GroupId([n; 16]), format!("group {n}"));
            control_core::group::decide(state, control_core::group::Command::Create { group, name })
        });
        decided.await
    };
    group(&b, "test", 1).await.expect("made");
    let refused = group(&b, "stranger", 2).await.expect_err("there is no key for it");
    assert!(matches!(refused, SubmitError::Unavailable(_)), "{refused}");
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    group(&b, "test", 3).await.expect("made");
    assert!(b.is_healthy() && b.views().mailboxes.after(fleet[1].id, 0, 9).is_empty());
    // The agent waits for its command at this service, and is told once it can be read.
    let mut watch = b.command_watch(fleet[1].id);
    watch.mark_unchanged();
    stubborn.silent.store(false, Ordering::Relaxed);
    let told = tokio::time::timeout(std::time::Duration::from_secs(20), watch.changed());
    told.await.expect("in time").expect("it lives");
    assert!(matches!(fleet[1].obey(&b).await.body, CommandBody::JoinRun(join) if join.run == run));
    assert_eq!(b.views().jobs.jobs[&job].name.as_str(), WORD);
    assert!(refusal(take_the_name(&b).await).contains("already"), "the name counts again");
    group(&b, "stranger", 2).await.expect("made");
    for (service, writer) in [(a, writer_a), (b, writer_b)] {
        close(service, writer).await;
    }
}

/// An old run's stop reason and the like are facts, not private texts: what is documented as clear is clear.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_never_sealed_is_told_to_everybody() {
    let dir = tempfile::tempdir().expect("a folder");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    let fleet = agents(&service, 2).await;
    let job = named_job(&service, fleet[0].id, fleet[1].id).await;
    let run = start(&service, job).await;
    let stopped = service.decide(Origin::operator("bert", format!("run/{run}")), move |state, _| {
        run::decide(state, run::Command::Stop { run, reason: "wrong zebra".into() })
    });
    stopped.await.expect("stopped");
    close(service, writer).await;
    assert!(!holding(&dir.path().join("log"), "wrong zebra").is_empty());
    assert_eq!(holding(dir.path(), "bert"), [] as [String; 0]);
}

/// What was opened for a subject on the log, in order.
async fn commitments(service: &Service, of: Subject) -> Vec<[u8; 32]> {
    let told = events(&**service.log()).await;
    let opened = |event| match event {
        Event::SubjectOpened(e) if e.subject == of => Some(e.commitment),
        _ => None,
    };
    told.into_iter().filter_map(opened).collect()
}

/// Erased, begun anew, and only then the old store comes back; the service goes on from a snapshot that has the newer key.
#[tokio::test]
async fn an_erased_key_stays_erased_though_a_newer_one_followed() {
    let dir = tempfile::tempdir().expect("a folder");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    let anna = Wrapper::new(&MASTER).user("anna");
    make_group(&service, "anna", 1).await.expect("made");
    let backup = std::fs::read(dir.path().join(FileKeys::NAME)).expect("there");
    erase(&service, anna).await.expect("erased");
    for n in 2..20 {
        make_group(&service, "anna", n).await.expect("made");
    }
    close(service, writer).await;
    std::fs::write(dir.path().join(FileKeys::NAME), backup).expect("restored");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    assert!(service.metrics().records.value() < 5, "from a snapshot");
    assert!(!kept(dir.path()).contains(&anna), "destroyed again");
    make_group(&service, "anna", 30).await.expect("made");
    let mut keys = commitments(&service, anna).await;
    assert_eq!(keys.len(), 3);
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 3, "the erased one was not taken again");
    close(service, writer).await;
}

/// A job's key is damaged: what agents tell is taken without the texts that would be under it, and everything behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_key_cuts_no_agent_off() {
    let dir = tempfile::tempdir().expect("a folder");
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    let mut fleet = agents(&service, 2).await;
    let job = named_job(&service, fleet[0].id, fleet[1].id).await;
    let run = start(&service, job).await;
    for agent in &mut fleet {
        agent.obey(&service).await;
    }
    close(service, writer).await;
    let damaged = {
        let store = FileKeys::open(&dir.path().join(FileKeys::NAME)).expect("opens");
        for subject in [Subject::Job(job), Subject::Agent(fleet[1].id)] {
            let all = keys_in(dir.path());
            let (_, key) = all.into_iter().find(|(of, _)| *of == subject).expect("kept");
            store.destroy(subject, key).await.expect("destroyed");
            assert!(store.create(vec![(subject, [7; 60])]).await.expect("kept").is_empty());
        }
        std::fs::read(dir.path().join(FileKeys::NAME)).expect("there")
    };
    let (service, writer) = open_in(dir.path(), sealed_in(dir.path())).await;
    fleet[1].connect(&service).await;
    let problem =
        Problem { class: ProblemClass::DiskFull, path: b"quagga.pdf".to_vec(), detail: WORD.into() };
    fleet[1].report(&service, ProblemReported { run, problem }).await.expect("taken");
    let stats = TransferStats::default();
    let done = RunCompleted { run, state: RunAgentState::DoneWithErrors, stats };
    fleet[1].report(&service, done).await.expect("and what follows");
    {
        let views = service.views();
        let problem = &views.runs.runs[&run].problems[0];
        assert_eq!((problem.class, problem.text.is_legible()), (ProblemClass::DiskFull, false));
    }
    // An operator who wants something recorded under it is told.
    let again = Ids(now()).run();
    let started = service.decide(Origin::operator("x", format!("run/{again}")), move |state, _| {
        run::decide(state, run::Command::Start { run: again, job })
    });
    started.await.expect_err("its folders cannot be read, or written down");
    assert_eq!(
        std::fs::read(dir.path().join(FileKeys::NAME)).expect("there").get(..damaged.len()),
        Some(&damaged[..])
    );
    check(&service).await;
    close(service, writer).await;
}

/// The store would not let a key go when it was erased, and does some time later: nothing has to be recorded for that.
#[tokio::test(flavor = "multi_thread")]
async fn destroying_is_tried_again_by_itself() {
    let dir = tempfile::tempdir().expect("a folder");
    let inner = FileKeys::open(&dir.path().join(FileKeys::NAME)).expect("opens");
    let store = Arc::new(Stubborn { inner, holds: AtomicBool::new(true), silent: AtomicBool::new(false) });
    let keys_of = SubjectKeys { store: store.clone(), wrapper: Arc::new(Wrapper::new(&MASTER)) };
    let (service, writer) = open_in(dir.path(), keys_of).await;
    let fleet = agents(&service, 2).await;
    let job = named_job(&service, fleet[0].id, fleet[1].id).await;
    erase(&service, Subject::Job(job)).await.expect("recorded");
    assert!(kept(dir.path()).contains(&Subject::Job(job)), "the store would not let it go");
    let position = service.views().position();
    store.holds.store(false, Ordering::Relaxed);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while kept(dir.path()).contains(&Subject::Job(job)) {
        assert!(std::time::Instant::now() < deadline, "it was not tried again");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(service.views().position(), position, "nothing was recorded");
    close(service, writer).await;
}

/// The servers of the keys have no leader when a replica starts: it serves, and erases when they answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_does_not_wait_for_what_can_be_erased_later() {
    let dir = tempfile::tempdir().expect("a folder");
    let inner = FileKeys::open(&dir.path().join(FileKeys::NAME)).expect("opens");
    let (holds, silent) = (AtomicBool::new(true), AtomicBool::new(false));
    let store = Arc::new(Stubborn { inner, holds, silent });
    let keys_of = || SubjectKeys { store: store.clone(), wrapper: Arc::new(Wrapper::new(&MASTER)) };
    let (service, writer) = open_in(dir.path(), keys_of()).await;
    let fleet = agents(&service, 2).await;
    let job = named_job(&service, fleet[0].id, fleet[1].id).await;
    make_group(&service, "officer", 1).await.expect("made");
    erase(&service, Subject::Job(job)).await.expect("recorded");
    close(service, writer).await;
    store.silent.store(true, Ordering::Relaxed);
    store.holds.store(false, Ordering::Relaxed);
    let (service, writer) = open_in(dir.path(), keys_of()).await;
    make_group(&service, "officer", 2).await.expect("it serves");
    assert!(kept(dir.path()).contains(&Subject::Job(job)));
    store.silent.store(false, Ordering::Relaxed);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while kept(dir.path()).contains(&Subject::Job(job)) {
        assert!(std::time::Instant::now() < deadline, "it was not tried again");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    close(service, writer).await;
}
