//! The gateway over real TLS on loopback, before a fleet in memory.

mod client;
mod fleet;
mod outage;

use agent_proto::link::{Ping, Progress, Refused, ReportSent, ToAgent, Welcome};
use ed25519_dalek::SigningKey;
use event_schema::{
    Command, CommandAccepted, CommandId, RefusalReason, Report, RunAgentState, RunId, Signed,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::*;
use client::{Agent, Client, soon};
use fleet::{MemoryFleet, Told};

struct World {
    gateway: Option<Gateway>,
    address: SocketAddr,
    fleet: Arc<MemoryFleet>,
    told: mpsc::UnboundedReceiver<Told>,
    pki: Arc<Pki>,
    _data: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let pki = Arc::new(Pki::open(data.path(), &names, now()).expect("keys"));
        let (fleet, told) = MemoryFleet::new(pki.clone());
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let gateway = Gateway::start(loopback, limits, pki.clone(), fleet.clone()).await.expect("started");
        let address = gateway.local_addr();
        Self { gateway: Some(gateway), address, fleet, told, pki, _data: data }
    }

    async fn stranger(&self) -> Client {
        Client::connect(self.address, self.pki.ca_certificate(), None).await.expect("a challenge")
    }

    async fn ask(&self, key: &SigningKey, token: Option<String>) -> ToAgent {
        let mut client = self.stranger().await;
        let enrol = client.enrol(key, token);
        client.send(enrol).await;
        client.receive().await.expect("an answer")
    }

    /// An agent that enrolled with a token.
    async fn agent(&mut self, n: u8) -> Agent {
        let key = SigningKey::from_bytes(&[n; 32]);
        let token = self.fleet.token(n, 1, false);
        let ToAgent::Enrolled(enrolled) = self.ask(&key, Some(token)).await else { panic!("not let in") };
        let agent = Agent { key, enrolled };
        assert_eq!(self.told().await, Told::Enrol(agent.id()));
        agent
    }

    async fn session(&mut self, agent: &Agent, cursor: u64) -> (Client, Welcome) {
        let mut client = agent.connect(self.address, self.pki.ca_certificate()).await.expect("a challenge");
        client.send(Agent::hello(cursor)).await;
        match client.receive().await.expect("an answer") {
            ToAgent::Welcome(welcome) => (client, welcome),
            other => panic!("{other:?} instead of a welcome"),
        }
    }

    async fn told(&mut self) -> Told {
        soon("a call of the fleet", self.told.recv()).await.expect("the gateway runs")
    }
}

fn connected(agent: &Agent) -> Told {
    Told::Connected(agent.id(), vec!["127.0.0.1:4000".into()])
}

async fn still_lives(client: &mut Client) {
    client.send(Ping {}).await;
    assert!(matches!(client.receive().await, Ok(ToAgent::Pong(_))));
}

async fn is_closed(client: &mut Client) {
    let answer = client.receive().await;
    assert!(answer.is_err(), "{answer:?} instead of a closed connection");
}

fn report(agent: &Agent, sequence: u64) -> Signed {
    let body = CommandAccepted { command: CommandId([9; 16]), sequence }.into();
    Report { agent: agent.id(), sequence, time: now(), body }.sign(&agent.key)
}

#[tokio::test]
async fn tokens_let_in_as_often_and_as_long_as_they_may() {
    let mut world = World::new().await;
    let good = world.fleet.token(1, 1, false);
    let expired = world.fleet.token(2, 1, true);
    let wrong = good.replace("ab", "cd");
    let refusal = async |n: u8, token: &str| match world
        .ask(&SigningKey::from_bytes(&[n; 32]), Some(token.to_owned()))
        .await
    {
        ToAgent::Refused(Refused { reason, .. }) => Some(reason),
        ToAgent::Enrolled(_) => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(refusal(1, &wrong).await, Some(RefusalReason::UnknownToken));
    assert_eq!(refusal(1, &expired).await, Some(RefusalReason::TokenExpired));
    assert_eq!(refusal(1, &good).await, None);
    assert_eq!(refusal(2, &good).await, Some(RefusalReason::TokenSpent));
    assert_eq!(refusal(1, &good).await, None, "the same agent may ask again");
    while world.told.try_recv().is_ok() {}
    let agent = world.agent(3).await;
    let (_, welcome) = world.session(&agent, 0).await;
    assert_eq!((welcome.reports_stored, welcome.trust), (0, None));
    assert_eq!(world.told().await, connected(&agent));
}

#[tokio::test]
async fn without_a_token_an_agent_waits_for_approval() {
    let world = World::new().await;
    let key = SigningKey::from_bytes(&[1; 32]);
    let id = AgentId::of_key(&key.verifying_key().to_bytes());
    for _ in 0..2 {
        assert!(matches!(world.ask(&key, None).await, ToAgent::Pending(p) if p.retry_after_s == 1));
    }
    // Not approved: not even with a certificate, which only the fleet could have made.
    let enrolled = world.pki.issue(&key.verifying_key().to_bytes(), "early", now()).expect("a certificate");
    let early = Agent { key: key.clone(), enrolled };
    let mut client = early.connect(world.address, world.pki.ca_certificate()).await.expect("TLS");
    client.send(Agent::hello(0)).await;
    assert!(matches!(client.receive().await, Ok(ToAgent::Refused(_))));
    is_closed(&mut client).await;
    world.fleet.with(id, |member| member.approved = true);
    assert!(matches!(world.ask(&key, None).await, ToAgent::Enrolled(_)));
}

#[tokio::test]
async fn commands_come_in_order_once_and_from_the_cursor_on() {
    let mut world = World::new().await;
    let agent = world.agent(1).await;
    for _ in 0..40 {
        world.fleet.command(agent.id(), 0);
    }
    let sequence = |message: io::Result<ToAgent>| match message.expect("a command") {
        ToAgent::CommandSent(command) => Command::decode(&command.signed.bytes).expect("a command").sequence,
        other => panic!("{other:?}"),
    };
    let (mut client, _) = world.session(&agent, 0).await;
    for n in 1..=40 {
        assert_eq!(sequence(client.receive().await), n);
    }
    world.fleet.command(agent.id(), 0);
    assert_eq!(sequence(client.receive().await), 41);
    still_lives(&mut client).await;
    drop(client);
    let (mut client, _) = world.session(&agent, 38).await;
    world.fleet.command(agent.id(), 0);
    for n in 39..=42 {
        assert_eq!(sequence(client.receive().await), n);
    }
    still_lives(&mut client).await;
}

#[tokio::test]
async fn reports_are_stored_once_and_answered_each_time() {
    let mut world = World::new().await;
    let agent = world.agent(1).await;
    let (mut client, _) = world.session(&agent, 0).await;
    let mut up_to = 0;
    for sequence in (1..=100).chain(90..=100) {
        client.send(ReportSent { signed: report(&agent, sequence) }).await;
    }
    while up_to < 100 {
        match client.receive().await.expect("an answer") {
            ToAgent::ReportsStored(stored) => up_to = stored.up_to,
            other => panic!("{other:?}"),
        }
    }
    client.send(ReportSent { signed: report(&agent, 100) }).await;
    loop {
        match client.receive().await.expect("an answer") {
            ToAgent::ReportsStored(stored) => assert_eq!(stored.up_to, 100),
            other => panic!("{other:?}"),
        }
        if world.fleet.with(agent.id(), |member| member.reports.len()) == 100 {
            break;
        }
    }
    drop(client);
    let (mut client, welcome) = world.session(&agent, 0).await;
    assert_eq!(welcome.reports_stored, 100);
    // Somebody else's report ends the session with the reason.
    let other = Agent { key: SigningKey::from_bytes(&[9; 32]), enrolled: agent.enrolled.clone() };
    client.send(ReportSent { signed: report(&other, 101) }).await;
    let answer = client.receive().await;
    assert!(
        matches!(&answer, Ok(ToAgent::Refused(r)) if r.reason == RefusalReason::BadSignature),
        "{answer:?}"
    );
    is_closed(&mut client).await;
}

#[tokio::test]
async fn a_removed_agent_is_shown_out_and_stays_out() {
    let mut world = World::new().await;
    let (agent, other) = (world.agent(1).await, world.agent(2).await);
    let (mut client, _) = world.session(&agent, 0).await;
    let (mut bystander, _) = world.session(&other, 0).await;
    world.fleet.remove(agent.id());
    let removed = |answer: &io::Result<ToAgent>| matches!(answer, Ok(ToAgent::Refused(r)) if r.reason == RefusalReason::Removed);
    let answer = client.receive().await;
    assert!(removed(&answer), "{answer:?}");
    is_closed(&mut client).await;
    let mut client = agent.connect(world.address, world.pki.ca_certificate()).await.expect("TLS");
    client.send(Agent::hello(0)).await;
    let answer = client.receive().await;
    assert!(removed(&answer), "{answer:?}");
    is_closed(&mut client).await;
    still_lives(&mut bystander).await;
}

#[tokio::test]
async fn a_newer_session_replaces_the_older() {
    let mut world = World::new().await;
    let agent = world.agent(1).await;
    let (mut older, _) = world.session(&agent, 0).await;
    assert_eq!(world.told().await, connected(&agent));
    let (mut newer, _) = world.session(&agent, 0).await;
    assert_eq!(world.told().await, connected(&agent));
    is_closed(&mut older).await;
    still_lives(&mut newer).await;
    drop(newer);
    assert!(matches!(world.told().await, Told::Disconnected(id, _) if id == agent.id()));
    assert!(world.told.try_recv().is_err(), "the older one said nothing");
}

#[tokio::test]
async fn who_breaks_the_protocol_harms_only_himself() {
    let mut world = World::new().await;
    let agent = world.agent(1).await;
    let bystander = world.agent(2).await;
    let (mut bystander, _) = world.session(&bystander, 0).await;

    let oversize = [&(64 * 1024 + 1u32).to_le_bytes()[..], &[0; 100]].concat();
    let garbage = [&8u32.to_le_bytes()[..], &[0xff; 8]].concat();
    let hello = agent_proto::link::frame(&agent_proto::link::ToGateway::from(Agent::hello(0)).encode());
    for bytes in [&oversize, &garbage, &hello] {
        let mut client = world.stranger().await;
        client.tls.write_all(bytes).await.expect("sent");
        is_closed(&mut client).await;
    }
    // A proof for another challenge.
    let mut client = world.stranger().await;
    let mut enrol = client.enrol(&agent.key, None);
    enrol.proof = agent_proto::link::Enrol::proof(&[0; 32], &agent.key);
    client.send(enrol).await;
    is_closed(&mut client).await;
    // A name beyond its limit.
    let mut client = world.stranger().await;
    let mut enrol = client.enrol(&agent.key, None);
    enrol.name = "n".repeat(256);
    client.send(enrol).await;
    is_closed(&mut client).await;
    // After the welcome: oversize, garbage, a second hello.
    let oversize = [&(2 * 1024 * 1024 + 1u32).to_le_bytes()[..], &[0; 100]].concat();
    for bytes in [&oversize, &garbage, &hello] {
        let (mut client, _) = world.session(&agent, 0).await;
        client.tls.write_all(bytes).await.expect("sent");
        is_closed(&mut client).await;
    }
    // No TLS at all.
    let mut tcp = TcpStream::connect(world.address).await.expect("connected");
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    // An alert and the end, or a reset.
    let _ = soon("the end", tcp.read_to_end(&mut answer)).await;
    assert!(answer.len() < 16, "{answer:?}");
    still_lives(&mut bystander).await;
    assert_eq!(world.gateway.as_ref().expect("running").sessions(), 1);
}

#[tokio::test]
async fn a_certificate_of_another_fleet_is_worth_nothing() {
    let world = World::new().await;
    let foreign = World::new().await;
    let key = SigningKey::from_bytes(&[1; 32]);
    let enrolled = foreign.pki.issue(&key.verifying_key().to_bytes(), "spy", now()).expect("issued");
    let spy = Agent { key, enrolled };
    // In TLS 1.3 the client learns it with its first read.
    assert!(spy.connect(world.address, world.pki.ca_certificate()).await.is_err());
    assert!(Client::connect(world.address, foreign.pki.ca_certificate(), None).await.is_err());
}

#[tokio::test]
async fn a_reader_that_takes_nothing_holds_up_nobody() {
    let limits = Limits { dead_after: Duration::from_secs(1), ..Limits::default() };
    let mut world = World::with(limits).await;
    let (slow, quick) = (world.agent(1).await, world.agent(2).await);
    for _ in 0..64 {
        world.fleet.command(slow.id(), 1024 * 1024);
    }
    let (mut lazy, _) = world.session(&slow, 0).await;
    assert_eq!(world.told().await, connected(&slow));
    let (mut client, _) = world.session(&quick, 0).await;
    assert_eq!(world.told().await, connected(&quick));
    // The lazy one goes on writing, so it is not silence that ends it.
    let end = loop {
        lazy.send(Ping {}).await;
        still_lives(&mut client).await;
        if let Ok(told) = world.told.try_recv() {
            break told;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(end, Told::Disconnected(slow.id(), "nothing came in time".into()));
}

#[tokio::test]
async fn half_open_connections_are_few_and_short() {
    let limits =
        Limits { half_open_per_ip: 4, handshake_timeout: Duration::from_millis(300), ..Limits::default() };
    let mut world = World::with(limits).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(world.address).await.expect("connected"));
    }
    // The fifth is closed at once, the four when their time is over.
    let mut fifth = TcpStream::connect(world.address).await.expect("connected");
    assert_eq!(soon("the fifth's end", fifth.read(&mut [0; 1])).await.unwrap_or(0), 0);
    for tcp in &mut silent {
        assert_eq!(soon("the end", tcp.read(&mut [0; 1])).await.unwrap_or(0), 0);
    }
    // Handshake done, but no first message.
    let mut client = world.stranger().await;
    is_closed(&mut client).await;
    // A silent session ends as well, but not so soon, and its place is free again.
    let agent = world.agent(1).await;
    for _ in 0..8 {
        world.session(&agent, 0).await;
    }
}

#[tokio::test]
async fn stopping_ends_sessions_in_order() {
    let mut world = World::new().await;
    let agent = world.agent(1).await;
    let (mut client, _) = world.session(&agent, 0).await;
    assert_eq!(world.told().await, connected(&agent));
    let progress = Progress {
        run: RunId([1; 16]),
        state: RunAgentState::Transferring,
        blocks_done: 1,
        blocks_total: 2,
        bytes_done: 3,
        bytes_total: 4,
        bytes_sent: 5,
        peers: 6,
        entries: 7,
        connections: None,
        sync: None,
        standing: None,
    };
    client.send(progress).await;
    assert_eq!(world.told().await, Told::Progress(agent.id()));
    let _half_open = world.stranger().await;
    soon("the stop", world.gateway.take().expect("running").shutdown()).await;
    assert_eq!(world.told().await, Told::Disconnected(agent.id(), "the service stops".into()));
    is_closed(&mut client).await;
    assert!(TcpStream::connect(world.address).await.is_err());
}

#[tokio::test]
async fn old_certificates_and_trust_are_renewed_on_the_way() {
    let mut world = World::new().await;
    let mut agent = world.agent(1).await;
    let public = agent.key.verifying_key().to_bytes();
    let long_ago = Timestamp(now().0 - 300 * 86_400_000);
    agent.enrolled = world.pki.issue(&public, "agent", long_ago).expect("issued");
    let mut client = agent.connect(world.address, world.pki.ca_certificate()).await.expect("still valid");
    client.send(agent_proto::link::Hello { trust_version: 0, ..Agent::hello(0) }).await;
    let Ok(ToAgent::Welcome(welcome)) = client.receive().await else { panic!("not welcome") };
    assert_eq!(welcome.trust.as_ref(), Some(world.pki.trust()));
    let Ok(ToAgent::Enrolled(renewed)) = client.receive().await else { panic!("not renewed") };
    agent.enrolled = renewed;
    let (mut client, _) = world.session(&agent, 0).await;
    still_lives(&mut client).await;
    // Too long away: no session any more, but it can enrol again with its key.
    let expired = Timestamp(now().0 - 400 * 86_400_000);
    agent.enrolled = world.pki.issue(&public, "agent", expired).expect("issued");
    assert!(agent.connect(world.address, world.pki.ca_certificate()).await.is_err());
    assert!(matches!(world.ask(&agent.key, None).await, ToAgent::Enrolled(_)));
}

/// Agents that hold a connection each in the test below.
const IDLE: usize = 1000;
/// What tells the other process where to connect.
const HOLD: &str = "FLOTILLA_TEST_HOLD";

/// Memory of the gateway per idle agent, the agents being in another process.
#[tokio::test]
async fn an_idle_connection_costs_little() {
    if let Some(folder) = std::env::var_os(HOLD) {
        return hold(std::path::Path::new(&folder)).await;
    }
    let limits = Limits { half_open_per_ip: IDLE, ..Limits::default() };
    let mut world = World::with(limits).await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut agents = Vec::new();
    for n in 0..IDLE {
        let key = SigningKey::from_bytes(&seed(n));
        let public_key = key.verifying_key().to_bytes();
        let enrolled = world.pki.issue(&public_key, "agent", now()).expect("issued");
        world.fleet.admit(public_key);
        agents.push(enrolled.certificate);
    }
    std::fs::write(folder.path().join("certificates"), event_schema::encode(&agents)).expect("written");
    std::fs::write(folder.path().join("ca"), world.pki.ca_certificate()).expect("written");
    std::fs::write(folder.path().join("address"), world.address.to_string()).expect("written");
    drop(agents);
    let before = resident_kib();
    let mut other = tokio::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "gateway::tests::an_idle_connection_costs_little"])
        .env(HOLD, folder.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("started");
    for _ in 0..IDLE {
        assert!(matches!(world.told().await, Told::Connected(..)));
    }
    let each = resident_kib().saturating_sub(before) as f64 / IDLE as f64;
    println!("{each:.1} KiB per idle connection");
    // This also counts what the allocator keeps after the handshakes, and the fleet in memory.
    assert!(each < 18.0, "{each} KiB");
    drop(other.stdin.take());
    soon("the agents' end", other.wait()).await.expect("waited");
}

/// The other process: connects all, and holds on until its input ends.
async fn hold(folder: &std::path::Path) {
    let read = |name: &str| std::fs::read(folder.join(name)).expect("there");
    let certificates: Vec<Vec<u8>> =
        event_schema::decode_exact("certificates", &read("certificates")).expect("whole");
    let address = String::from_utf8(read("address")).expect("text").parse().expect("an address");
    let ca = read("ca");
    let mut clients = Vec::new();
    for (n, certificate) in certificates.iter().enumerate() {
        let key = SigningKey::from_bytes(&seed(n));
        let mut client = Client::connect(address, &ca, Some((&key, certificate))).await.expect("connected");
        client.send(Agent::hello(0)).await;
        client.receive().await.expect("welcome");
        clients.push(client);
    }
    let mut end = Vec::new();
    tokio::io::stdin().read_to_end(&mut end).await.expect("waited");
}

fn seed(n: usize) -> [u8; 32] {
    let mut seed = [1; 32];
    seed[..8].copy_from_slice(&(n as u64).to_le_bytes());
    seed
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("there");
    line.split_ascii_whitespace().nth(1).expect("a number").parse().expect("a number")
}

#[tokio::test]
async fn agents_that_ask_are_told_every_gateway_and_others_are_not() {
    let mut world = World::new().await;
    let (old, new) = (world.agent(1).await, world.agent(2).await);
    let told = |gateways: &[&str]| gateways.iter().map(|g| (*g).to_owned()).collect::<Vec<String>>();
    world.fleet.gateways.send_replace(told(&["one:1", "two:2"]).into());
    let (mut plain, _) = world.session(&old, 0).await;
    let mut client = new.connect(world.address, world.pki.ca_certificate()).await.expect("TLS");
    client
        .send(agent_proto::link::Hello { features: agent_proto::link::FEATURE_GATEWAYS, ..Agent::hello(0) })
        .await;
    let Ok(ToAgent::Welcome(_)) = client.receive().await else { panic!("not welcome") };
    for gateways in [told(&["one:1", "two:2"]), told(&["one:1", "two:2", "three:3"])] {
        world.fleet.gateways.send_if_modified(|known| {
            let news = known.to_vec() != gateways;
            *known = gateways.clone().into();
            news
        });
        let Ok(ToAgent::Gateways(message)) = client.receive().await else { panic!("no gateways") };
        assert_eq!(message.gateways, gateways);
        assert!(message.keep_alive_s > 0);
    }
    // The other one hears nothing but the answer to its ping.
    plain.send(Ping {}).await;
    assert!(matches!(plain.receive().await, Ok(ToAgent::Pong(_))));
}
