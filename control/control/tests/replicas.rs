//! Two services on one log that hear each other: the lease, sessions that move, a replica that dies or is cut off.

mod support;

use std::sync::Arc;
use std::time::Duration;

use control::gateway::Fleet;
use control::service::{Bus, Keeper, Options, Ousted, Service};
use control_core::replica::Session;
use event_log::memory::MemoryLog;
use event_log::{BoxFuture, EventLog};
use event_schema::*;
use support::*;
use tokio::sync::{broadcast, mpsc, watch};

/// Where the replicas of a test hear each other; each has its own end, which can be cut.
struct TestBus {
    all: broadcast::Sender<Vec<u8>>,
    connected: watch::Sender<bool>,
}

impl TestBus {
    fn new(all: &broadcast::Sender<Vec<u8>>) -> Arc<Self> {
        Arc::new(Self { all: all.clone(), connected: watch::Sender::new(true) })
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
    let log: Arc<dyn EventLog> = log.clone();
    let options = Options { shared_log: true, replica: Some(ReplicaId([n; 16])), ..Options::default() };
    let (service, _) = Service::open(log, keys(), options).await.expect("opens");
    let bus = TestBus::new(all);
    let keeper = Keeper::start(service.clone(), bus.clone(), vec![format!("10.0.0.{n}:7701")]).await;
    let session = service.session();
    Replica { service, keeper, bus, session }
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
