//! Services over logs that misbehave on demand, and agents that speak through [`Fleet`] alone.

#![allow(dead_code, reason = "each test uses its own part")]

pub(crate) mod history;
pub(crate) mod program;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use agent_proto::RunSecret;
use agent_proto::link::Hello;
use control::gateway::{EnrolDecision, EnrolRequest, Fleet, ReportError, Session};
use control::privacy::{FileKeys, SubjectKeys, Wrapper};
use control::service::{Ids, Keys, Options, Origin, Service, now};
use control_core::projection::Views;
use control_core::{agent, job, run, token};
use ed25519_dalek::SigningKey;
use event_log::{AppendError, BoxFuture, Entry, EventLog, Position, ReadError, ReadLimit, StreamName};
use event_schema::*;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) const MASTER: [u8; 32] = [7; 32];

pub(crate) fn keys() -> Keys {
    Keys {
        root_key: [1; 32],
        ca_fingerprint: [2; 32],
        command: SigningKey::from_bytes(&[3; 32]),
        secret_of: Box::new(|run| RunSecret::derive(&MASTER, run)),
    }
}

pub(crate) fn command_key() -> [u8; 32] {
    SigningKey::from_bytes(&[3; 32]).verifying_key().to_bytes()
}

/// Keys of private texts in a folder.
pub(crate) fn sealed_in(folder: &std::path::Path) -> SubjectKeys {
    let store = Arc::new(FileKeys::open(&folder.join(FileKeys::NAME)).expect("opens"));
    SubjectKeys { store, wrapper: Arc::new(Wrapper::new(&MASTER)) }
}

pub(crate) async fn open(log: Arc<dyn EventLog>) -> (Service, JoinHandle<()>) {
    let options = Options { trackers: vec!["127.0.0.1:9".into()], ..Options::default() };
    Service::open(log, keys(), options).await.expect("the service opens")
}

/// Lets the service go and waits until its writer has closed the log.
pub(crate) async fn close(service: Service, writer: JoinHandle<()>) {
    drop(service);
    writer.await.expect("the writer ends well");
}

/// Holds the service's projections against a fold of its log from zero to the same position.
pub(crate) async fn agrees_with_its_log(service: &Service) {
    let (position, hash) = {
        let views = service.views();
        (views.position(), views.hash())
    };
    let mut views = Views::default();
    while views.position() < position {
        let next = Position(views.position() + 1);
        let page = service.log().read(next, ReadLimit::default()).await.expect("readable");
        assert!(!page.is_empty(), "the log ends at {}, the service is at {position}", views.position());
        for entry in page.into_iter().filter(|entry| entry.position.0 <= position) {
            let record = Record::decode(&entry.bytes).expect("a record");
            assert_eq!(entry.position.0, views.position() + 1, "no gaps");
            views.apply(entry.position.0, &record);
        }
    }
    assert_eq!(views.hash(), hash, "at {position}");
}

/// Every event on the log, by name.
pub(crate) async fn events(log: &dyn EventLog) -> Vec<Event> {
    let mut all = Vec::new();
    let mut from = Position(1);
    loop {
        let page = log.read(from, ReadLimit::default()).await.expect("readable");
        let Some(last) = page.last() else { return all };
        from = last.position.next();
        for entry in page {
            all.extend(Record::decode(&entry.bytes).expect("a record").events);
        }
    }
}

pub(crate) fn count(events: &[Event], name: &str) -> usize {
    events.iter().filter(|event| event.name() == name).count()
}

/// What a log does with an append instead of storing and saying so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// Nothing unusual.
    None,
    /// Stores it and cannot say so.
    StoredUnknown,
    /// Does not store it and cannot say so.
    LostUnknown,
    /// Has no room.
    NoSpace,
    /// Somebody else was first.
    Conflict,
    /// Says nothing until [`FaultyLog::release`], and stores it then.
    Hang,
}

/// A log that does what a list of faults says, one an append, and then behaves.
pub(crate) struct FaultyLog {
    inner: Arc<dyn EventLog>,
    faults: Mutex<VecDeque<Fault>>,
    /// How often those that hang were let go.
    released: watch::Sender<u64>,
    /// Reads give garbage from this position on.
    garbled: Mutex<Option<Position>>,
    /// Reads fail.
    deaf: AtomicBool,
}

impl FaultyLog {
    pub(crate) fn new(inner: Arc<dyn EventLog>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            faults: Mutex::default(),
            released: watch::Sender::new(0),
            garbled: Mutex::default(),
            deaf: AtomicBool::new(false),
        })
    }

    /// Lets every append go on that hangs.
    pub(crate) fn release(&self) {
        self.released.send_modify(|times| *times += 1);
    }

    /// From this position on nothing can be understood; none: all is well again.
    pub(crate) fn garble(&self, from: Option<Position>) {
        *self.garbled.lock().expect("no panics") = from;
    }

    /// Whether reads fail from now on.
    pub(crate) fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::Relaxed);
    }

    pub(crate) fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        *self.faults.lock().expect("no panics") = faults.into_iter().collect();
    }
}

impl EventLog for FaultyLog {
    fn append_batch<'a>(
        &'a self,
        stream: &'a StreamName,
        expected_last: Option<Position>,
        records: Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<Position, AppendError>> {
        let fault = self.faults.lock().expect("no panics").pop_front().unwrap_or(Fault::None);
        Box::pin(async move {
            let reason = || "as the test wants it".to_string();
            match fault {
                Fault::None => self.inner.append_batch(stream, expected_last, records).await,
                Fault::StoredUnknown => {
                    self.inner.append_batch(stream, expected_last, records).await?;
                    Err(AppendError::Unknown { reason: reason() })
                }
                Fault::LostUnknown => Err(AppendError::Unknown { reason: reason() }),
                Fault::NoSpace => Err(AppendError::NoSpace { reason: reason() }),
                Fault::Conflict => Err(AppendError::Conflict { expected: expected_last, actual: None }),
                Fault::Hang => {
                    let mut released = self.released.subscribe();
                    released.changed().await.expect("the log holds the sender");
                    self.inner.append_batch(stream, expected_last, records).await
                }
            }
        })
    }

    fn read(&self, from: Position, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>> {
        if self.deaf.load(Ordering::Relaxed) {
            let reason = "as the test wants it".to_string();
            return Box::pin(async { Err(ReadError::Unavailable { reason }) });
        }
        let garbled = *self.garbled.lock().expect("no panics");
        Box::pin(async move {
            let mut page = self.inner.read(from, limit).await?;
            for entry in page.iter_mut().filter(|entry| garbled.is_some_and(|from| entry.position >= from)) {
                entry.bytes = vec![1, 2, 3];
            }
            Ok(page)
        })
    }

    fn first(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        self.inner.first()
    }

    fn last_position(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        self.inner.last_position()
    }

    fn last_of_stream<'a>(
        &'a self,
        stream: &'a StreamName,
    ) -> BoxFuture<'a, Result<Option<Position>, ReadError>> {
        self.inner.last_of_stream(stream)
    }

    fn wait_beyond(&self, position: Position) -> BoxFuture<'_, Result<Position, ReadError>> {
        self.inner.wait_beyond(position)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        // The inner log outlives this handle: tests open it again.
        Box::pin(async {})
    }
}

/// An operator's wishes, by the service's own functions.
pub(crate) async fn create_token(service: &Service, uses: u32) -> String {
    let id = Ids(now()).token();
    let text = format!("{id}.{}", "5".repeat(64));
    let hash = Sha256::digest(text.as_bytes()).into();
    let expires = now().after(std::time::Duration::from_secs(60));
    let origin = Origin::operator("test", format!("token/{id}"));
    let decided = service.decide(origin, move |state, now| {
        token::decide(state, token::Command::Create { token: id, hash, tags: vec![], uses, expires }, now)
    });
    decided.await.expect("a token");
    text
}

pub(crate) async fn create_job(service: &Service, source: AgentId, destinations: &[AgentId]) -> JobId {
    let id = Ids(now()).job();
    let place = |agent: AgentId, path: &str| Place { party: Party::Agent(agent), path: path.into() };
    let destinations = destinations.iter().map(|agent| place(*agent, "in")).collect();
    let spec =
        JobSpec::Distribution { source: place(source, "out"), destinations, options: Private::default() };
    let origin = Origin::operator("test", format!("job/{id}"));
    let decided = service.decide_new(origin, Subject::Job(id), move |state, _| {
        let (name, spec) = (id.to_string()[..30].to_string(), spec.clone());
        job::decide(state, job::Command::Create { job: id, name, spec })
    });
    decided.await.expect("a job");
    id
}

pub(crate) async fn start(service: &Service, job: JobId) -> RunId {
    let run = Ids(now()).run();
    let origin = Origin::operator("test", format!("run/{run}"));
    let decided =
        service.decide(origin, move |state, _| run::decide(state, run::Command::Start { run, job }));
    decided.await.expect("a run");
    run
}

pub(crate) async fn approve(service: &Service, agent: AgentId) {
    let decided = service.decide(Origin::operator("test", format!("agent/{agent}")), move |state, _| {
        agent::decide(state, agent::Command::Approve { agent })
    });
    decided.await.expect("approved");
}

/// An agent without a socket.
#[derive(Clone)]
pub(crate) struct FakeAgent {
    pub(crate) key: SigningKey,
    pub(crate) id: AgentId,
    pub(crate) sequence: u64,
    pub(crate) cursor: u64,
}

impl FakeAgent {
    pub(crate) fn new(n: u8) -> Self {
        let key = SigningKey::from_bytes(&[n; 32]);
        let id = AgentId::of_key(&key.verifying_key().to_bytes());
        Self { key, id, sequence: 0, cursor: 0 }
    }

    pub(crate) async fn enrol(&self, service: &Service, token: Option<String>) -> EnrolDecision {
        let request = EnrolRequest {
            agent: self.id,
            public_key: self.key.verifying_key().to_bytes(),
            name: "fake".into(),
            tags: vec![],
            token,
            version: "0.1.0".into(),
            address: "127.0.0.1:4000".parse().expect("an address"),
        };
        service.enrol(request).await
    }

    pub(crate) async fn connect(&self, service: &Service) -> Session {
        let hello = Hello {
            version: "0.1.0".into(),
            command_cursor: self.cursor,
            addresses: vec!["0.0.0.0:5000".into()],
            trust_version: 1,
            features: 0,
        };
        let address = "127.0.0.1:4000".parse().expect("an address");
        service.connected(self.id, hello, address).await.expect("welcome")
    }

    pub(crate) fn sign(&mut self, body: impl Into<ReportBody>) -> Signed {
        self.sequence += 1;
        Report { agent: self.id, sequence: self.sequence, time: now(), body: body.into() }.sign(&self.key)
    }

    pub(crate) async fn report(
        &mut self,
        service: &Service,
        body: impl Into<ReportBody>,
    ) -> Result<u64, ReportError> {
        let signed = self.sign(body);
        service.reports(self.id, vec![signed]).await
    }

    /// Waits for the next command and opens it as a real agent would.
    pub(crate) async fn command(&mut self, service: &Service) -> Command {
        let mut watch = service.command_watch(self.id);
        let cursor = self.cursor;
        let waited = tokio::time::timeout(
            std::time::Duration::from_secs(20),
            watch.wait_for(|sequence| *sequence > cursor),
        );
        waited.await.expect("a command in time").expect("the service lives");
        let (sequence, signed) =
            service.commands_after(self.id, self.cursor, 1).await.pop().expect("a command");
        let command =
            Command::open(&signed, &[command_key()], self.id, self.cursor, now()).expect("for us, in order");
        assert_eq!(command.sequence, sequence);
        self.cursor = sequence;
        command
    }

    /// Takes the next command, says so, and returns it.
    pub(crate) async fn obey(&mut self, service: &Service) -> Command {
        let command = self.command(service).await;
        let (id, sequence) = (command.id, command.sequence);
        self.report(service, CommandAccepted { command: id, sequence }).await.expect("taken");
        command
    }
}

/// Agents 1 to `count`, enrolled with one token and connected.
pub(crate) async fn agents(service: &Service, count: u8) -> Vec<FakeAgent> {
    let token = create_token(service, u32::from(count)).await;
    let mut agents = Vec::new();
    for n in 1..=count {
        let agent = FakeAgent::new(n);
        let decision = agent.enrol(service, Some(token.clone())).await;
        assert!(matches!(decision, EnrolDecision::Approved { .. }), "{decision:?}");
        agent.connect(service).await;
        agents.push(agent);
    }
    agents
}
