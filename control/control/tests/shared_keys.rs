//! Keys of private texts in NATS, as replicas share them: on three servers, with one of them gone.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::gateway::EnrolDecision;
use control::privacy::{KeyStore, NatsKeys, SubjectKeys, Wrapper};
use control::service::{Options, Origin, Service};
use control_core::{agent, subject};
use event_log_nats::testing::{NatsServer, server_or_skip};
use event_log_nats::{NatsLog, NatsLogOptions};
use event_schema::*;
use support::*;
use tokio::task::JoinHandle;

const AGENTS: u8 = 60;

async fn open_on(urls: &str, copy: &Path) -> (Service, JoinHandle<()>, NatsKeys) {
    let options = NatsLogOptions { replicas: 3, copy: Some(copy.into()), ..NatsLogOptions::new(urls) };
    let log = NatsLog::open(options).await.expect("the log");
    let store = NatsKeys::new(log.vault().await.expect("the bucket"));
    let keys_of = SubjectKeys { store: Arc::new(store.clone()), wrapper: Arc::new(Wrapper::new(&MASTER)) };
    let options = Options { shared_log: true, subject_keys: Some(keys_of), ..Options::default() };
    let (service, writer) = Service::open(Arc::new(log), keys(), options).await.expect("opens");
    (service, writer, store)
}

async fn caught_up(services: [&Service; 2]) {
    let end = services.iter().map(|service| service.views().position()).max().unwrap_or(0);
    for service in services {
        service.position().wait_for(|at| *at >= end).await.expect("it lives");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_keys_in_nats_and_their_end() {
    let Some(program) = server_or_skip("replicas_share_keys_in_nats_and_their_end") else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let mut servers = NatsServer::start_cluster(&program, dir.path(), 3).expect("a cluster");
    let urls = servers.iter().map(NatsServer::url).collect::<Vec<_>>().join(",");
    let (copy_a, copy_b) = (dir.path().join("copy-a"), dir.path().join("copy-b"));
    let (a, writer_a, store) = open_on(&urls, &copy_a).await;
    let (b, writer_b, _) = open_on(&urls, &copy_b).await;

    // All at once, at both: every agent has one key, whoever made it.
    let token = create_token(&a, AGENTS.into()).await;
    let began = Instant::now();
    let enrolling = (1..=AGENTS).map(|n| {
        let (service, other, token) = if n % 2 == 0 { (&a, &b, &token) } else { (&b, &a, &token) };
        let (service, other, token) = (service.clone(), other.clone(), token.clone());
        tokio::spawn(async move {
            let agent = FakeAgent::new(n);
            let decision = agent.enrol(&service, Some(token)).await;
            assert!(matches!(decision, EnrolDecision::Approved { .. }), "{decision:?}");
            agent.connect(&other).await;
            agent
        })
    });
    let mut fleet = Vec::new();
    for task in enrolling.collect::<Vec<_>>() {
        fleet.push(task.await.expect("enrolled"));
    }
    println!("{AGENTS} agents enrolled and connected, each with a key of its own: {:.2?}", began.elapsed());
    caught_up([&a, &b]).await;
    assert_eq!(a.views().hash(), b.views().hash());
    for service in [&a, &b] {
        let views = service.views();
        assert!(
            views.fleet.agents.values().all(|agent| agent.name.is_legible() && agent.addresses.len() == 1)
        );
    }
    let told = events(&**a.log()).await;
    let mut opened: Vec<Subject> = told
        .iter()
        .filter_map(|event| match event {
            Event::SubjectOpened(e) => Some(e.subject),
            _ => None,
        })
        .collect();
    let count = opened.len();
    opened.sort_unstable();
    opened.dedup();
    assert_eq!(
        (opened.len(), count),
        (usize::from(AGENTS) + 1, usize::from(AGENTS) + 1),
        "one key each, and the user's"
    );

    // One server is gone: a run goes on, sealed at one service and read at the other, and an agent is erased.
    servers[0].kill();
    let job = create_job(&a, fleet[0].id, &[fleet[1].id]).await;
    let run = start(&a, job).await;
    caught_up([&a, &b]).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while b.views().mailboxes.last(fleet[1].id) == 0 {
        assert!(Instant::now() < deadline, "the command");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        matches!(fleet[1].obey(&b).await.body, CommandBody::JoinRun(join) if join.run == run && join.path == b"in")
    );
    let (gone, gone_too) = (fleet[5].id, Subject::Agent(fleet[5].id));
    let origin = Origin::operator("officer", format!("agent/{gone}"));
    let removed = b
        .decide(origin.clone(), move |state, _| agent::decide(state, agent::Command::Remove { agent: gone }));
    removed.await.expect("removed");
    let erased = b.decide(origin, move |state, _| subject::erase(state, gone_too, "asked for"));
    erased.await.expect("erased");
    caught_up([&a, &b]).await;
    assert_eq!(a.views().fleet.agents[&gone].name.as_str(), ERASED);
    assert!(store.get(gone_too).await.expect("answered").is_empty(), "its key is destroyed");
    assert_eq!(
        store.list().await.expect("answered").len(),
        usize::from(AGENTS) + 1 + 2 - 1,
        "job and officer are new"
    );
    close(a, writer_a).await;
    close(b, writer_b).await;

    // A start later, with all servers again: everything else is read, from the servers' keys.
    servers[0].restart().expect("starts");
    let (a, writer_a, _) = open_on(&urls, &copy_a).await;
    assert_eq!(a.views().fleet.agents[&gone].name.as_str(), ERASED);
    let legible = a.views().fleet.agents.values().filter(|agent| agent.name.is_legible()).count();
    assert_eq!(legible, usize::from(AGENTS) - 1);
    agrees_with_its_log(&a).await;
    close(a, writer_a).await;
}
