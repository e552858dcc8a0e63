//! Memory of a replica with a million records and ten thousand agents: the real `flotilla serve` on a generated log, as the
//! system sees it. `cargo nextest run -p control --test memory --run-ignored only --no-capture`; docs/operations.md has the
//! figures.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_proto::link::{Hello, ToAgent, ToGateway, frame, frame_len};
use control::pki::Pki;
use control::service::now;
use control_core::State;
use control_core::projection::Views;
use ed25519_dalek::SigningKey;
use event_log::file::{FileLog, FileLogOptions};
use event_log::{EventLog as _, Position, ReadLimit, StreamName};
use event_schema::*;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::program::{Serve, json, text};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const RECORDS: u64 = 1_000_000;
const AGENTS: u64 = 10_000;
const RUNS: u64 = 2_600;
const PARTICIPANTS: u64 = 30;
const PROBLEMS: u64 = 15;

/// What is promised in docs/operations.md, MB of 1,000,000 bytes: at rest, with an export and a moment of the past, and with
/// every agent connected.
const AT_REST_MB: u64 = 220;
const BUSY_MB: u64 = 550;
const CONNECTED_MB: u64 = 450;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// Waits until the tree over the whole log is there, or 60 s: the log is read once for it.
fn settle(serve: &Serve) {
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        let view = serve.get("audit/witnesses?limit=1");
        if view["sealed"]["size"].as_u64() >= Some(RECORDS) {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn key(n: u64) -> SigningKey {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&n.to_le_bytes());
    SigningKey::from_bytes(&seed)
}

fn id16(kind: u8, n: u64) -> [u8; 16] {
    let mut id = [kind; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    id
}

/// Records as a busy fleet makes them, behind what the service founded.
struct History {
    records: Vec<(StreamName, Vec<u8>)>,
    written: u64,
    agents: Vec<AgentId>,
    keys: Vec<[u8; 32]>,
    commands: Vec<u64>,
    reports: Vec<u64>,
    log: FileLog,
}

impl History {
    async fn add(&mut self, stream: String, actor: Actor, events: Vec<Event>) {
        self.written += 1;
        let id = RecordId(id16(1, self.written));
        let time = Timestamp(1_790_000_000_000 + self.written * 50);
        let record = Record { id, stream, time, actor, causation: None, correlation: id, events };
        self.records.push(("fleet".parse().expect("a name"), record.encode()));
        if self.records.len() == 2_000 {
            self.flush().await;
        }
    }

    async fn flush(&mut self) {
        let records = std::mem::take(&mut self.records);
        self.log.append_all(records).await.expect("stored");
    }

    /// Signatures are not asked for when a log is folded.
    fn signed(bytes: Vec<u8>) -> Signed {
        Signed { bytes: bytes[..bytes.len()].to_vec(), signature: Signature([5; 32], [6; 32]) }
    }

    async fn command(&mut self, n: u64, run: RunId, body: CommandBody, signer: &SigningKey) -> CommandId {
        let sequence = self.commands[n as usize] + 1;
        self.commands[n as usize] = sequence;
        let (agent, time) = (self.agents[n as usize], Timestamp(1_790_000_000_000 + self.written * 50));
        let id = CommandId(id16(4, self.written));
        let expires = Timestamp(time.0 + 2_592_000_000);
        let command =
            Command { id, audience: agent, sequence, issued: time, not_before: time, expires, body };
        let joins = command.body.joins();
        let signed = Self::signed(command.sign(signer).bytes);
        let stream = format!("run/{run}");
        let (run, signed, backup) = (Some(run), signed.into(), None);
        let event = CommandIssued { command: id, agent, sequence, run, joins, signed, backup };
        self.add(stream, Actor::Service, vec![event.into()]).await;
        id
    }

    async fn report(&mut self, n: u64, run: RunId, body: ReportBody, signer: &SigningKey, more: Event) {
        let sequence = self.reports[n as usize] + 1;
        self.reports[n as usize] = sequence;
        let agent = self.agents[n as usize];
        let time = Timestamp(1_790_000_000_000 + self.written * 50);
        let problem_in = matches!(body, ReportBody::ProblemReported(_)).then_some(run);
        let signed = Self::signed(Report { agent, sequence, time, body }.sign(signer).bytes);
        let received = ReportReceived { agent, sequence, signed: signed.into(), problem_in };
        self.add(format!("run/{run}"), Actor::Agent(agent), vec![received.into(), more]).await;
    }
}

async fn generate(data: &Path) {
    let log = FileLog::open(data.join("log"), FileLogOptions { sync: false, ..FileLogOptions::default() });
    let log = log.await.expect("opens");
    let before = log.last_position().await.expect("readable");
    assert!(before > Position(0) && before < Position(10), "founded");
    let keys: Vec<[u8; 32]> = (0..AGENTS).map(|n| key(n).verifying_key().to_bytes()).collect();
    let agents = keys.iter().map(AgentId::of_key).collect();
    let (commands, reports) = (vec![0; AGENTS as usize], vec![0; AGENTS as usize]);
    let mut history = History { records: vec![], written: before.0, agents, keys, commands, reports, log };
    let signer = key(u64::MAX);
    for n in 0..AGENTS {
        let (agent, public_key) = (history.agents[n as usize], history.keys[n as usize]);
        let enrolled = AgentEnrolled {
            agent,
            public_key,
            name: format!("agent-{n:05}").into(),
            tags: vec![("SITE".to_owned(), format!("site-{}", n % 40)), ("ROLE".into(), "edge".into())]
                .into(),
            token: None,
            version: "0.1.0".into(),
        };
        let stream = format!("agent/{agent}");
        history.add(stream.clone(), Actor::Agent(agent), vec![enrolled.into()]).await;
        history.add(stream, Actor::Operator("admin".into()), vec![AgentApproved { agent }.into()]).await;
    }
    for group in 0..40 {
        let id = GroupId(id16(6, group));
        let members = (0..AGENTS).filter(|n| n % 40 == group).map(|n| history.agents[n as usize]).collect();
        let events = vec![
            GroupCreated { group: id, name: format!("site-{group}") }.into(),
            GroupMembersAdded { group: id, agents: members }.into(),
        ];
        history.add(format!("group/{id}"), Actor::Operator("admin".into()), events).await;
    }
    for number in 0..RUNS {
        let (job, run) = (JobId(id16(3, number / 2)), RunId(id16(2, number)));
        let who: Vec<u64> = (0..PARTICIPANTS).map(|p| (number * 37 + p * 331) % AGENTS).collect();
        let place = |n: u64| Place {
            party: Party::Agent(history.agents[n as usize]),
            path: format!("/srv/release/{n}").into_bytes().into(),
        };
        if number % 2 == 0 {
            let destinations = who[1..].iter().map(|n| place(*n)).collect();
            let spec =
                JobSpec::Distribution { source: place(who[0]), destinations, options: Private::default() };
            let event = JobCreated { job, name: format!("release-{number}").into(), spec };
            history.add(format!("job/{job}"), Actor::Operator("admin".into()), vec![event.into()]).await;
        }
        let role = |n: u64| if n == who[0] { Role::Source } else { Role::Destination };
        let participants = who
            .iter()
            .enumerate()
            .map(|(path, n)| Participant {
                agent: history.agents[*n as usize],
                role: role(*n),
                path: path as u16,
            })
            .collect();
        let paths: Vec<Vec<u8>> = who.iter().map(|n| format!("/srv/release/{n}").into_bytes()).collect();
        let (paths, options, purpose) = (paths.into(), Private::default(), Purpose::Plain);
        let (batch, after) = (None, Disposal::Keep);
        let started = RunStarted { run, job, paths, participants, batch, after, options, purpose };
        history.add(format!("run/{run}"), Actor::Operator("admin".into()), vec![started.into()]).await;
        let peers: Vec<PeerHint> = who
            .iter()
            .map(|n| PeerHint {
                agent: history.agents[*n as usize],
                public_key: history.keys[*n as usize],
                role: role(*n),
                addresses: vec![format!("10.0.{}.{}:4433", n / 250, n % 250)],
            })
            .collect();
        for n in &who {
            let join = JoinRun {
                run,
                job,
                job_name: format!("release-{}", number / 2 * 2),
                role: role(*n),
                path: format!("/srv/release/{n}").into_bytes(),
                source: history.agents[who[0] as usize],
                peers: peers.clone(),
                trackers: vec!["tracker.example:7702".into()],
                sealed_secret: vec![9; 81],
            };
            let command = history.command(*n, run, join.into(), &signer).await;
            let (agent, sequence) = (history.agents[*n as usize], history.commands[*n as usize]);
            let acknowledged = CommandAcknowledged { command, agent, sequence, refused: None };
            let accepted = CommandAccepted { command, sequence };
            history.report(*n, run, accepted.into(), &signer, acknowledged.into()).await;
            let stats = TransferStats { bytes_from_source: 1 << 20, ..TransferStats::default() };
            for state in [RunAgentState::Transferring, RunAgentState::Finalizing] {
                let progressed = RunAgentProgressed { run, agent, state, stats: None };
                let said = RunStateReported { run, state };
                history.report(*n, run, said.into(), &signer, progressed.into()).await;
            }
            let state = RunAgentState::Done;
            let progressed = RunAgentProgressed { run, agent, state, stats: Some(stats) };
            let said = RunCompleted { run, state, stats };
            history.report(*n, run, said.into(), &signer, progressed.into()).await;
        }
        for p in 0..PROBLEMS {
            let n = who[1 + (p % (PARTICIPANTS - 1)) as usize];
            let problem = Problem {
                class: ProblemClass::PermissionDenied,
                path: format!("data/customer-{p}/archive/file-{number}.bin").into_bytes(),
                detail: "the system does not let this user write here: give the agent's user the folder"
                    .into(),
            };
            let event = RunProblemReported::new(run, history.agents[n as usize], problem.clone());
            history.report(n, run, ProblemReported { run, problem }.into(), &signer, event.into()).await;
        }
        let finished = RunFinished { run, outcome: Outcome::Succeeded };
        history.add(format!("run/{run}"), Actor::Service, vec![finished.into()]).await;
        for n in &who {
            let command = history.command(*n, run, FinishRun { run }.into(), &signer).await;
            let (agent, sequence) = (history.agents[*n as usize], history.commands[*n as usize]);
            let acknowledged = CommandAcknowledged { command, agent, sequence, refused: None };
            let accepted = CommandAccepted { command, sequence };
            history.report(*n, run, accepted.into(), &signer, acknowledged.into()).await;
        }
    }
    let mut n = 0;
    assert!(history.written < RECORDS, "{}", history.written);
    while history.written < RECORDS {
        let agent = history.agents[(n / 2 % AGENTS) as usize];
        let event: Event = if n % 2 == 0 {
            let addresses = vec!["10.0.0.7:4433".to_owned(), "[2001:db8::7]:4433".to_owned()];
            AgentOnline { agent, addresses: addresses.into(), version: "0.1.0".into() }.into()
        } else {
            AgentOffline { agent, reason: "the link broke".into() }.into()
        };
        n += 1;
        history.add(format!("agent/{agent}"), Actor::Agent(agent), vec![event]).await;
    }
    history.flush().await;
    history.log.close().await;
}

/// What the state is made of: bytes that a copy of each part takes.
async fn profile(data: &Path) {
    let options = FileLogOptions { read_only: true, ..FileLogOptions::default() };
    let log = FileLog::open(data.join("log"), options).await.expect("opens");
    let (mut views, mut state) = (Views::default(), State::default());
    loop {
        let page = log.read(Position(views.position() + 1), ReadLimit::default()).await.expect("readable");
        if page.is_empty() {
            break;
        }
        for entry in page {
            let record = Record::decode(&entry.bytes).expect("a record");
            record.events.iter().for_each(|event| state.evolve(event));
            views.apply(entry.position.0, &record);
        }
    }
    fn cost<T>(what: &str, copy: impl FnOnce() -> T) {
        let region = Region::new(ALLOCATOR);
        let copy = copy();
        let change = region.change();
        println!("  {what:<34} {:>6} kB", (change.bytes_allocated - change.bytes_deallocated) / 1000);
        drop(copy);
    }
    let runs = &views.runs.runs;
    cost("all that decisions rest on", || state.clone());
    cost("all projections", || views.clone());
    cost("  agents, groups, tokens", || views.fleet.clone());
    cost("  mailboxes", || views.mailboxes.clone());
    cost("  runs", || views.runs.clone());
    cost("    who takes part", || runs.values().map(|run| run.agents.clone()).collect::<Vec<_>>());
    cost("    problems", || runs.values().map(|run| run.problems.clone()).collect::<Vec<_>>());
    cost("    positions that tell of them", || {
        runs.values().map(|run| run.history.clone()).collect::<Vec<_>>()
    });
}

/// An agent's link and nothing else: it says hello and listens.
async fn connect(gateway: SocketAddr, pki: &Pki, n: u64) -> TlsStream<TcpStream> {
    let key = key(n);
    let public_key = key.verifying_key().to_bytes();
    let enrolled = pki.issue(&public_key, &format!("agent-{n:05}"), now()).expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(pki.ca_certificate().to_vec())).expect("a CA");
    let mut der =
        vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend_from_slice(key.as_bytes());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from(enrolled.certificate.clone())],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der)),
        )
        .expect("they belong together");
    let tcp = TcpStream::connect(gateway).await.expect("connects");
    let name = ServerName::try_from("localhost").expect("a name");
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("TLS");
    assert!(matches!(receive(&mut tls).await, ToAgent::Challenge(_)));
    let hello = Hello {
        version: "0.1.0".into(),
        command_cursor: 0,
        addresses: vec!["0.0.0.0:4000".into()],
        trust_version: 1,
        features: 0,
    };
    tls.write_all(&frame(&ToGateway::from(hello).encode())).await.expect("sent");
    tls.flush().await.expect("sent");
    let answer = receive(&mut tls).await;
    assert!(matches!(answer, ToAgent::Welcome(_)), "{answer:?}");
    tls
}

async fn receive(tls: &mut TlsStream<TcpStream>) -> ToAgent {
    let mut header = [0; 4];
    tls.read_exact(&mut header).await.expect("a frame");
    let mut body = vec![0; frame_len(header).expect("below the limit")];
    tls.read_exact(&mut body).await.expect("a frame");
    ToAgent::decode(&body).expect("a message")
}

#[test]
#[ignore = "measures; some minutes"]
fn a_million_records_and_ten_thousand_agents() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let empty = Serve::start(&data);
    println!("an empty fleet: {} MB", empty.memory().0);
    empty.terminate();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let start = Instant::now();
    runtime.block_on(generate(&data));
    // Folded anew, all of it.
    fs::remove_dir_all(data.join("snapshots")).expect("removed");
    let log: u64 = fs::read_dir(data.join("log"))
        .expect("the log")
        .map(|file| file.expect("a file").metadata().expect("there").len())
        .sum();
    println!("{RECORDS} records, {} MB, written in {:.0?}", log / 1_000_000, start.elapsed());
    runtime.block_on(profile(&data));
    for what in ["from zero", "from a snapshot"] {
        let start = Instant::now();
        let serve = Serve::start(&data);
        let ready = start.elapsed();
        let first = serve.memory();
        settle(&serve);
        let (rest, most) = serve.memory();
        println!(
            "{what}: ready in {ready:.1?} with {} MB; {rest} MB once the tree is there, at most {most} MB",
            first.0
        );
        assert!(rest <= AT_REST_MB, "{what}: {rest} MB at rest");
        assert!(most <= BUSY_MB, "{what}: {most} MB at most");
        for at in (1..=4).map(|n| RECORDS / 5 * n) {
            serve.get(&format!("agents?at={at}&limit=1"));
        }
        let out = dir.path().join("history");
        json(&["--server", serve.place(), "--token", &serve.token(), "audit", "export", "--out", text(&out)]);
        let (rest, most) = serve.memory();
        println!("  after four moments of the past and an export over the API: {rest} MB, at most {most} MB");
        assert!(most <= BUSY_MB, "{what}: {most} MB");
        serve.terminate();
    }

    let count = std::env::var("AGENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(AGENTS);
    let serve = Serve::start(&data);
    settle(&serve);
    let before = serve.memory().0;
    let gateway: SocketAddr = serve.ready["gateway"].as_str().expect("text").parse().expect("an address");
    let pki = Arc::new(Pki::open(&data, &["localhost".into()], now()).expect("the keys"));
    let start = Instant::now();
    let links = runtime.block_on(async {
        let mut links = Vec::new();
        for first in (0..count).step_by(64) {
            let batch = (first..count.min(first + 64)).map(|n| {
                let pki = Arc::clone(&pki);
                tokio::spawn(async move { connect(gateway, &pki, n).await })
            });
            for link in futures::future::join_all(batch).await {
                links.push(link.expect("no panic"));
            }
        }
        links
    });
    let took = start.elapsed();
    settle(&serve);
    let (with, most) = serve.memory();
    let each = (with.saturating_sub(before)) * 1_000_000 / count;
    println!(
        "{} agents connected in {took:.0?}: {before} MB before, {with} MB with them, at most {most}: {each} bytes each",
        links.len()
    );
    assert!(with <= CONNECTED_MB, "{with} MB with {count} agents");
}
