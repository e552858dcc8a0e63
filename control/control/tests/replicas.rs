//! Two services on one log that hear each other: the lease, sessions that move, a replica that dies or is cut off.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use control::gateway::Fleet;
use control::service::{Bus, Ids, Keeper, OpenError, Options, Origin, Ousted, Service, SubmitError};
use control_core::group;
use control_core::replica::Session;
use event_log::memory::MemoryLog;
use event_log::{BoxFuture, EventLog, Position, ReadLimit};
use event_schema::*;
use support::*;
use tokio::sync::{broadcast, mpsc, watch};

/// Where the replicas of a test hear each other; each has its own end, which can be cut.
struct TestBus {
    all: broadcast::Sender<Vec<u8>>,
    connected: watch::Sender<bool>,
    renewed: std::sync::atomic::AtomicUsize,
}

impl TestBus {
    fn new(all: &broadcast::Sender<Vec<u8>>) -> Arc<Self> {
        Arc::new(Self { all: all.clone(), connected: watch::Sender::new(true), renewed: 0.into() })
    }
}

impl Bus for TestBus {
    fn send(&self, message: Vec<u8>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if *self.connected.borrow() {
                let _ = self.all.send(message);
            }
        })
    }

    fn renew(&self) -> BoxFuture<'_, ()> {
        self.renewed.fetch_add(1, Ordering::Relaxed);
        Box::pin(async {})
    }

    fn listen(&self) -> BoxFuture<'_, mpsc::Receiver<Vec<u8>>> {
        let (mut from, connected) = (self.all.subscribe(), self.connected.subscribe());
        let (heard, listener) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Ok(message) = from.recv().await {
                if *connected.borrow() && heard.send(message).await.is_err() {
                    break;
                }
            }
        });
        Box::pin(async { listener })
    }
}

struct Replica {
    service: Service,
    keeper: Keeper,
    bus: Arc<TestBus>,
    session: Session,
}

async fn replica(log: &Arc<FaultyLog>, all: &broadcast::Sender<Vec<u8>>, n: u8) -> Replica {
    replica_of(log, all, n, Options::default()).await.expect("opens")
}

async fn replica_of(
    log: &Arc<FaultyLog>,
    all: &broadcast::Sender<Vec<u8>>,
    n: u8,
    options: Options,
) -> Result<Replica, OpenError> {
    let log: Arc<dyn EventLog> = log.clone();
    let options = Options { shared_log: true, replica: Some(ReplicaId([n; 16])), ..options };
    let (service, _) = Service::open(log, keys(), options).await?;
    let bus = TestBus::new(all);
    let keeper = Keeper::start(service.clone(), bus.clone(), vec![format!("10.0.0.{n}:7701")]).await;
    let session = service.session();
    Ok(Replica { service, keeper, bus, session })
}

/// Waits until it is so, a minute of the test's own time at most.
async fn until(what: &str, is: impl Fn() -> bool) {
    for _ in 0..600 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what} does not come about");
}

fn online(service: &Service) -> Vec<AgentId> {
    let views = service.views();
    let online = views.fleet.agents.iter().filter(|(_, agent)| agent.online);
    online.map(|(id, _)| *id).collect()
}

fn holder(service: &Service) -> Option<Session> {
    service.views().replicas.lease().map(|lease| lease.holder)
}

async fn try_connect(service: &Service, agent: &FakeAgent) -> Result<(), RefusalReason> {
    let hello = agent_proto::link::Hello {
        version: "0.1.0".into(),
        command_cursor: agent.cursor,
        addresses: vec![],
        trust_version: 1,
        features: 0,
    };
    let address = "127.0.0.1:4000".parse().expect("an address");
    service.connected(agent.id, hello, address).await.map(drop).map_err(|refused| refused.reason)
}

/// Lets time pass, of which there is as much as one wants: it has to be paused, or this panics.
async fn pass(time: Duration) {
    tokio::time::advance(Duration::ZERO).await;
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_replica_is_given_up_and_its_agents_with_it() {
    let log = FaultyLog::new(Arc::new(MemoryLog::new()));
    let all = broadcast::Sender::new(64);
    let (a, b) = (replica(&log, &all, 1).await, replica(&log, &all, 2).await);
    until("a holder of the lease", || holder(&a.service).is_some() && holder(&b.service).is_some()).await;
    assert_eq!(holder(&a.service), holder(&b.service));
    until("both gateways", || a.service.gateways().borrow().len() == 2).await;
    assert_eq!(a.service.gateways().borrow().to_vec(), ["10.0.0.1:7701", "10.0.0.2:7701"]);

    let mut fleet = agents(&a.service, 3).await;
    let ids: Vec<AgentId> = fleet.iter().map(|agent| agent.id).collect();
    let mut ousted = a.service.ousted();
    fleet[0].connect(&b.service).await;
    until("the news at the other replica", || a.service.views().position() == b.service.views().position())
        .await;
    assert_eq!(ousted.try_recv(), Ok(Ousted::Moved(ids[0])));
    // What the old session says when it ends is no news.
    a.service.disconnected(ids[0], "replaced".into()).await;
    assert_eq!(online(&a.service).len(), 3);

    // A command that is decided at one replica reaches an agent at the other.
    let job = create_job(&a.service, ids[1], &ids[..1]).await;
    let run = start(&a.service, job).await;
    assert!(matches!(fleet[0].obey(&b.service).await.body, CommandBody::JoinRun(join) if join.run == run));

    // It dies without a word: its agents are offline, the one that moved is not.
    drop(a.keeper);
    until("its end", || !b.service.views().replicas.is_live(a.session)).await;
    until("its agents' end", || online(&b.service) == [ids[0]]).await;
    assert_eq!(holder(&b.service), Some(b.session));
    // Were it only slow, it finds out: it takes nobody, and has no lease.
    assert_eq!(try_connect(&a.service, &fleet[1]).await, Err(RefusalReason::TooEarly));
    fleet[1].connect(&b.service).await;
    assert_eq!(online(&b.service).len(), 2);
    agrees_with_its_log(&b.service).await;
    let told = events(&**b.service.log()).await;
    assert_eq!(count(&told, "replica.started"), 2);
    assert_eq!(count(&told, "replica.stopped"), 1);
    b.keeper.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_cut_off_sends_its_agents_away_and_begins_anew() {
    let log = FaultyLog::new(Arc::new(MemoryLog::new()));
    let all = broadcast::Sender::new(64);
    let (a, b) = (replica(&log, &all, 1).await, replica(&log, &all, 2).await);
    until("a holder of the lease", || holder(&b.service).is_some()).await;
    until("both gateways", || b.service.gateways().borrow().len() == 2).await;
    let fleet = agents(&a.service, 2).await;
    let mut ousted = a.service.ousted();
    a.bus.connected.send_replace(false);
    until("it notices", || !a.service.is_serving()).await;
    assert_eq!(ousted.try_recv(), Ok(Ousted::All));
    assert_eq!(try_connect(&a.service, &fleet[0]).await, Err(RefusalReason::TooEarly));
    until("the other gives it up", || !b.service.views().replicas.is_live(a.session)).await;
    until("its agents are offline", || online(&b.service).is_empty()).await;
    a.bus.connected.send_replace(true);
    until("it serves again, in a new life", || a.service.is_serving() && a.service.session() != a.session)
        .await;
    assert_eq!(a.service.session().epoch, a.session.epoch + 1);
    fleet[0].connect(&a.service).await;
    until("the others know", || online(&b.service) == [fleet[0].id]).await;
    // One that stops in order is gone at once, and the lease with it.
    let (stays, goes) = if holder(&b.service) == Some(b.session) { (a, b) } else { (b, a) };
    let gone = goes.service.session();
    goes.keeper.stop().await;
    goes.service.end_life().await.expect("told");
    until("the other holds the lease", || holder(&stays.service) == Some(stays.service.session())).await;
    assert!(!stays.service.views().replicas.is_live(gone));
    stays.keeper.stop().await;
}

/// A wish that goes on the log, whatever becomes of it.
fn wish(service: &Service, n: u8) -> tokio::task::JoinHandle<Result<(), SubmitError>> {
    let service = service.clone();
    tokio::spawn(async move {
        let group = GroupId([n; 16]);
        let decided = service.decide(Origin::operator("test", format!("group/{group}")), move |state, _| {
            group::decide(state, group::Command::Create { group, name: format!("group {n}") })
        });
        decided.await
    })
}

/// Two replicas whose ways to the one log can fail apart from each other; the first holds the lease.
async fn pair() -> (Replica, Arc<FaultyLog>, Replica, Arc<FaultyLog>) {
    let memory: Arc<dyn EventLog> = Arc::new(MemoryLog::new());
    let (log_a, log_b) = (FaultyLog::new(memory.clone()), FaultyLog::new(memory));
    let all = broadcast::Sender::new(64);
    let a = replica(&log_a, &all, 1).await;
    until("a holder of the lease", || holder(&a.service) == Some(a.session)).await;
    let b = replica(&log_b, &all, 2).await;
    until("both gateways", || a.service.gateways().borrow().len() == 2).await;
    until("both gateways", || b.service.gateways().borrow().len() == 2).await;
    (a, log_a, b, log_b)
}

#[tokio::test(start_paused = true)]
async fn commands_that_the_holder_of_the_lease_could_not_issue_are_issued_later() {
    let (a, log, b, _) = pair().await;
    let mut fleet = agents(&a.service, 2).await;
    let job = create_job(&a.service, fleet[0].id, &[fleet[1].id]).await;
    log.next([Fault::None, Fault::NoSpace]);
    let run = start(&a.service, job).await;
    for agent in &mut fleet {
        assert!(
            matches!(agent.command(&a.service).await.body, CommandBody::JoinRun(join) if join.run == run)
        );
    }
    assert_eq!(count(&events(&**b.service.log()).await, "command.issued"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_loses_its_log_in_the_middle_of_an_append_sends_its_agents_away_in_time() {
    let (a, log, b, _) = pair().await;
    let fleet = agents(&a.service, 2).await;
    let mut ousted = a.service.ousted();
    log.next([Fault::Hang]);
    a.bus.connected.send_replace(false);
    let hangs = wish(&a.service, 1);
    let began = tokio::time::Instant::now();
    until("it notices", || !a.service.is_serving()).await;
    assert!(began.elapsed() <= Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(ousted.try_recv(), Ok(Ousted::All));
    until("the other gives it up", || !b.service.views().replicas.is_live(a.session)).await;
    until("its agents are offline", || online(&b.service).is_empty()).await;
    fleet[0].connect(&b.service).await;
    // What it had begun when it lost its log comes behind what the other did, so it is decided again.
    a.bus.connected.send_replace(true);
    log.release();
    hangs.await.expect("no panic").expect("recorded after all");
    until("it begins anew", || a.service.is_serving() && a.service.session() != a.session).await;
    assert_eq!(online(&b.service), [fleet[0].id]);
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_nobody_waits_for_any_more_is_not_carried_out() {
    let (a, log, b, _) = pair().await;
    let fleet = agents(&b.service, 1).await;
    until("the first replica knows", || online(&a.service).len() == 1).await;
    let opened = || async { count(&events(&**b.service.log()).await, "agent.session_opened") };
    let before = opened().await;
    log.next([Fault::Hang]);
    let hangs = wish(&a.service, 1);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let hello = {
        let (service, agent) = (a.service.clone(), fleet[0].clone());
        tokio::spawn(async move { try_connect(&service, &agent).await })
    };
    pass(Duration::from_secs(1)).await;
    // The agent gives up, and is well where it was.
    hello.abort();
    let mut ousted = b.service.ousted();
    pass(Duration::from_secs(1)).await;
    log.release();
    hangs.await.expect("no panic").expect("recorded after all");
    pass(Duration::from_secs(5)).await;
    assert_eq!(opened().await, before);
    assert!(ousted.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_understand_its_log_leaves_the_work_to_the_others() {
    let (a, log, b, _) = pair().await;
    let fleet = agents(&a.service, 1).await;
    let mut ousted = a.service.ousted();
    log.garble(Some(Position(b.service.views().position() + 1)));
    wish(&b.service, 1).await.expect("no panic").expect("recorded");
    let began = tokio::time::Instant::now();
    until("it notices", || !a.service.is_serving() && !a.service.is_healthy()).await;
    assert_eq!(ousted.try_recv(), Ok(Ousted::All));
    until("the lease passes on", || holder(&b.service) == Some(b.session)).await;
    until("its agents are offline", || online(&b.service).is_empty()).await;
    assert!(began.elapsed() <= Duration::from_secs(10), "{:?}", began.elapsed());
    let trouble = a.service.trouble().expect("it says so");
    assert!(trouble.contains("cannot be read"), "{trouble}");
    assert_eq!(try_connect(&a.service, &fleet[0]).await, Err(RefusalReason::TooEarly));
    // Once it can be read (the copy was mended), it works on.
    log.garble(None);
    until("it serves again", || a.service.is_serving() && a.service.session() != a.session).await;
    assert_eq!(a.service.trouble(), None);
    fleet[0].connect(&a.service).await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_a_replica_does_not_fight_with_it() {
    let memory: Arc<dyn EventLog> = Arc::new(MemoryLog::new());
    let all = broadcast::Sender::new(64);
    let log = FaultyLog::new(memory);
    let other = replica(&log, &all, 2).await;
    let first = replica(&log, &all, 1).await;
    let copy = replica(&log, &all, 1).await;
    pass(Duration::from_secs(60)).await;
    let told = events(&**other.service.log()).await;
    let lives =
        told.iter().filter(|e| matches!(e, Event::ReplicaStarted(e) if e.replica == ReplicaId([1; 16])));
    assert!(lives.count() <= 3);
    assert_ne!(first.service.is_serving(), copy.service.is_serving(), "one of them");
    let troubled = if first.service.is_serving() { &copy } else { &first };
    let trouble = troubled.service.trouble().expect("it says so");
    assert!(trouble.contains("replica-id"), "{trouble}");
    // When the one that works is gone, the other may have the name.
    let (gone, stays) = if first.service.is_serving() { (first, copy) } else { (copy, first) };
    gone.keeper.stop().await;
    until("it works on", || stays.service.is_serving() && stays.service.trouble().is_none()).await;
}

/// Programs of two levels on one log, replaced one by one under work: nothing of the newer level is written before the
/// last older one is gone, and none of those can come back.
#[tokio::test(start_paused = true)]
async fn replicas_are_upgraded_one_by_one() {
    upgraded(1, 2).await;
}

/// The same from the release that has sealed texts to the one that has consolidations.
#[tokio::test(start_paused = true)]
async fn replicas_are_upgraded_one_by_one_again() {
    upgraded(2, 3).await;
}

/// And to the one that has synchronizations.
#[tokio::test(start_paused = true)]
async fn replicas_are_upgraded_one_by_one_to_synchronizations() {
    upgraded(3, 4).await;
}

/// Whether a consolidation can be made here.
async fn consolidates(at: &Replica, agents: &[FakeAgent]) -> bool {
    let place = |n: usize| Place { party: Party::Agent(agents[n].id), path: "x".into() };
    let (source, destination) = (place(0), place(1));
    makes(
        at,
        JobSpec::Consolidation {
            sources: vec![source],
            destinations: vec![destination],
            subfolder: "/%SRC:AGENT_NAME%".into(),
            after: Disposal::Delete,
            options: Private::default(),
        },
    )
    .await
}

/// Whether a synchronization can be made here.
async fn synchronizes(at: &Replica, agents: &[FakeAgent]) -> bool {
    let share = |agent: &FakeAgent| Share {
        party: Party::Agent(agent.id),
        path: "x".into(),
        permission: Permission::ReadWrite,
        selection: Selection::default().into(),
    };
    let (members, policy) = (agents.iter().map(share).collect(), SyncPolicy::default());
    makes(at, JobSpec::Synchronization { members, policy }).await
}

/// Whether a job can be made.
async fn makes(at: &Replica, spec: JobSpec) -> bool {
    let job = Ids(Timestamp(1)).job();
    let name = format!("job {job}");
    let made = at.service.decide(Origin::operator("anna", format!("job/{job}")), move |state, _| {
        control_core::job::decide(
            state,
            control_core::job::Command::Create { job, name: name.clone(), spec: spec.clone() },
        )
    });
    made.await.is_ok()
}

async fn upgraded(older: u8, newer: u8) {
    let dir = tempfile::tempdir().expect("a folder");
    let log = FaultyLog::new(Arc::new(MemoryLog::new()));
    let all = broadcast::Sender::new(64);
    let keys_of = sealed_in(dir.path());
    let options = |schema| Options {
        schema,
        attest_every: 3,
        subject_keys: Some(keys_of.clone()),
        ..Options::default()
    };
    let level = |replica: &Replica| replica.service.views().level();
    let work = async |at: &Replica, agents: &mut Vec<FakeAgent>| {
        let job = create_job(&at.service, agents[0].id, &[agents[1].id]).await;
        let run = start(&at.service, job).await;
        for agent in agents.iter_mut() {
            assert!(
                matches!(agent.obey(&at.service).await.body, CommandBody::JoinRun(join) if join.run == run)
            );
        }
        let problem = Problem { class: ProblemClass::Io, path: b"x".to_vec(), detail: "y".into() };
        agents[1].report(&at.service, ProblemReported { run, problem }).await.expect("taken");
        let (state, stats) = (RunAgentState::Done, TransferStats::default());
        agents[1].report(&at.service, RunCompleted { run, state, stats }).await.expect("taken");
        for agent in agents.iter_mut() {
            agent.obey(&at.service).await;
        }
        run
    };
    let (old_a, old_b) = (
        replica_of(&log, &all, 1, options(older)).await.expect("opens"),
        replica_of(&log, &all, 2, options(older)).await.expect("opens"),
    );
    until("a holder of the lease", || holder(&old_a.service).is_some() && holder(&old_b.service).is_some())
        .await;
    let mut fleet = agents(&old_a.service, 2).await;
    work(&old_a, &mut fleet).await;

    // The first one is replaced. Both go on, in what the older one reads.
    old_a.keeper.stop().await;
    old_a.service.end_life().await.expect("told");
    drop(old_a.service);
    let new_a = replica_of(&log, &all, 1, options(newer)).await.expect("opens");
    for agent in &fleet {
        agent.connect(&new_a.service).await;
    }
    let run = work(&new_a, &mut fleet).await;
    until("a holder of the lease", || holder(&new_a.service).is_some()).await;
    until("the news at the older one", || old_b.service.views().runs.runs.contains_key(&run)).await;
    for agent in &fleet {
        agent.connect(&old_b.service).await;
    }
    work(&old_b, &mut fleet).await;
    pass(Duration::from_secs(30)).await;
    assert_eq!((level(&new_a), level(&old_b)), (older, older));
    assert_eq!(old_b.service.metrics().attestations_differing.value(), 0);
    assert_eq!(consolidates(&new_a, &fleet).await, older >= 3, "the other could not read it");
    assert!(!synchronizes(&new_a, &fleet).await, "the other could not read it");

    // Then the second one. Nobody reads less than the newer level any more: the lease's holder says so.
    old_b.keeper.stop().await;
    old_b.service.end_life().await.expect("told");
    drop(old_b.service);
    until("the new level", || level(&new_a) == newer).await;
    let new_b = replica_of(&log, &all, 2, options(newer)).await.expect("opens");
    for agent in &fleet {
        agent.connect(&new_b.service).await;
    }
    let run = work(&new_b, &mut fleet).await;
    until("the news", || {
        let views = new_a.service.views();
        views.runs.runs.get(&run).is_some_and(|run| run.outcome.is_some())
    })
    .await;
    assert_eq!(new_a.service.views().runs.runs[&run].problems[0].text.detail, "y", "read by the other");
    assert_eq!(consolidates(&new_a, &fleet).await, newer >= 3);
    assert_eq!(synchronizes(&new_a, &fleet).await, newer >= 4);
    let late = replica_of(&log, &all, 3, options(older)).await.err().expect("too old").to_string();
    assert!(late.contains("newer"), "{late}");
    agrees_with_its_log(&new_a.service).await;
    for service in [&new_a.service, &new_b.service] {
        assert_eq!(service.metrics().attestations_differing.value(), 0);
    }

    // Everything before the raise is what an old program reads, everything after it is sealed.
    let (mut position, mut raised, mut unread) = (0, None, 0);
    loop {
        let page = log.read(Position(position + 1), ReadLimit::default()).await.expect("readable");
        if page.is_empty() {
            break;
        }
        for entry in page {
            position = entry.position.0;
            let record = Record::decode(&entry.bytes).expect("readable");
            let raises = |event: &Event| matches!(event, Event::SchemaRaised(e) if e.level == newer);
            raised = raised.or(record.events.iter().any(raises).then_some(position));
            let read = Record::decode_up_to(older, &entry.bytes).is_ok();
            assert!(read || raised.is_some(), "at {position}");
            unread += u32::from(!read);
            let mut clear = 0;
            let mut record = record;
            record.private(&mut |_, _, text| clear += u32::from(text.is_clear()));
            assert!(raised.is_none() || clear == 0, "at {position}");
            assert!(older > 1 || read == raised.is_none(), "at {position}");
        }
    }
    assert!(raised.is_some_and(|raised| raised < position) && unread > 2);
    // And what was attested on both sides is what anybody folds.
    let mut fold = control_core::form::Checked::default();
    for at in 1..=position {
        let page = log.read(Position(at), ReadLimit::entries(1)).await.expect("readable");
        let record = Record::decode(&page[0].bytes).expect("readable");
        fold.apply(at, &record).unwrap_or_else(|differs| panic!("{differs}"));
    }
    assert!(fold.checked > 8 && fold.unknown == 0, "{} {}", fold.checked, fold.unknown);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_hears_only_itself_looks_for_another_way() {
    let (a, _, b, _) = pair().await;
    pass(Duration::from_secs(30)).await;
    assert_eq!(a.bus.renewed.load(Ordering::Relaxed), 0, "both are heard");
    // Before the other is given up, which needs the log: perhaps this one's server is the one that is cut off.
    b.bus.connected.send_replace(false);
    let began = tokio::time::Instant::now();
    until("it looks", || a.bus.renewed.load(Ordering::Relaxed) == 1).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    until("the other is given up", || !a.service.views().replicas.is_live(b.session)).await;
    pass(Duration::from_secs(30)).await;
    assert!(a.bus.renewed.load(Ordering::Relaxed) <= 2, "who is dead is not waited for");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_has_the_log_to_itself_sends_nobody_to_replicas_that_were() {
    let (a, log, b, _) = pair().await;
    let fleet = agents(&a.service, 1).await;
    assert_eq!(a.service.must_leave(fleet[0].id), None);
    fleet[0].connect(&b.service).await;
    until("it has moved", || a.service.must_leave(fleet[0].id) == Some(Ousted::Moved(fleet[0].id))).await;
    for replica in [a, b] {
        replica.keeper.stop().await;
        replica.service.end_life().await.expect("told");
    }
    let (service, writer) = open(log).await;
    fleet[0].connect(&service).await;
    assert_eq!(service.must_leave(fleet[0].id), None);
    close(service, writer).await;
}

/// An older program that dies is not shut out by the newer one that goes on: it may be back in a moment.
#[tokio::test(start_paused = true)]
async fn the_level_waits_for_an_older_replica_that_only_died() {
    let log = FaultyLog::new(Arc::new(MemoryLog::new()));
    let all = broadcast::Sender::new(64);
    let options = |schema| Options { schema, ..Options::default() };
    let old = replica_of(&log, &all, 1, options(1)).await.expect("opens");
    let new = replica_of(&log, &all, 2, options(2)).await.expect("opens");
    until("a holder of the lease", || holder(&old.service).is_some() && holder(&new.service).is_some()).await;
    old.keeper.stop().await;
    drop(old.service);
    until("it is given up", || new.service.views().replicas.live().count() == 1).await;
    until("the lease", || holder(&new.service) == Some(new.service.session())).await;
    pass(Duration::from_secs(60)).await;
    assert_eq!(new.service.views().level(), 1);
    // So it can come back, and stop in order.
    let old = replica_of(&log, &all, 1, options(1)).await.expect("opens");
    until("its news", || new.service.views().replicas.live().count() == 2).await;
    old.keeper.stop().await;
    old.service.end_life().await.expect("told");
    until("the new level", || new.service.views().level() == 2).await;
}
