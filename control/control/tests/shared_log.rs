//! Several services on one log in NATS: what a commit of many decisions is worth, and that none is lost or doubled.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use control::gateway::EnrolDecision;
use control::service::{Options, Service};
use event_log::EventLog;
use event_log_nats::testing::{NatsServer, server_or_skip};
use event_log_nats::{NatsLog, NatsLogOptions};
use event_schema::*;
use support::*;

/// A fake agent of a large fleet.
fn fake(n: u32) -> FakeAgent {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&n.to_le_bytes());
    let key = ed25519_dalek::SigningKey::from_bytes(&seed);
    let id = AgentId::of_key(&key.verifying_key().to_bytes());
    FakeAgent { key, id, sequence: 0, cursor: 0 }
}

/// Enrols and connects so many agents at the same time, spread over the services; gives the time from the first hello.
async fn connect_all(services: &[Service], agents: &[FakeAgent]) -> Duration {
    let token = create_token(&services[0], agents.len() as u32).await;
    let enrolled = agents.iter().enumerate().map(|(n, agent)| {
        let (service, agent, token) = (services[n % services.len()].clone(), agent.clone(), token.clone());
        tokio::spawn(async move {
            let decision = agent.enrol(&service, Some(token)).await;
            assert!(matches!(decision, EnrolDecision::Approved { .. }), "{decision:?}");
        })
    });
    for task in enrolled.collect::<Vec<_>>() {
        task.await.expect("enrolled");
    }
    let began = Instant::now();
    let connected = agents.iter().enumerate().map(|(n, agent)| {
        // Another replica than the one that enrolled it.
        let (service, agent) = (services[(n + 1) % services.len()].clone(), agent.clone());
        tokio::spawn(async move { agent.connect(&service).await })
    });
    for task in connected.collect::<Vec<_>>() {
        task.await.expect("connected");
    }
    began.elapsed()
}

/// `cargo test -p control --test shared_log -- --nocapture` prints records per second on three servers that sync every
/// commit, with one and with three services writing.
#[tokio::test(flavor = "multi_thread")]
async fn many_services_write_much_at_once_and_nothing_is_lost() {
    let Some(program) = server_or_skip("many_services_write_much_at_once_and_nothing_is_lost") else {
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let servers = NatsServer::start_cluster(&program, dir.path(), 3).expect("a cluster");
    let urls = servers.iter().map(NatsServer::url).collect::<Vec<_>>().join(",");
    for (count, stream) in [(1, "RATE_1"), (3, "RATE_3")] {
        let mut services = Vec::new();
        let mut writers = Vec::new();
        for _ in 0..count {
            let options = NatsLogOptions {
                stream: stream.into(),
                subject_prefix: stream.to_lowercase(),
                replicas: 3,
                ..NatsLogOptions::new(&urls)
            };
            let log: Arc<dyn EventLog> = Arc::new(NatsLog::open(options).await.expect("the log"));
            let opened = Service::open(log, keys(), Options { shared_log: true, ..Options::default() });
            let opened = opened.await.expect("opens");
            services.push(opened.0);
            writers.push(opened.1);
        }
        let mut agents: Vec<FakeAgent> = (0..500).map(fake).collect();
        let connecting = connect_all(&services, &agents).await;
        println!(
            "{count} services, 500 agents connecting: {connecting:.2?}, {:.0} records/s",
            500.0 / connecting.as_secs_f64()
        );
        // Reports: 20 of each agent, one record each.
        let began = Instant::now();
        let run = RunId([9; 16]);
        let reporting = agents.drain(..).enumerate().map(|(n, mut agent)| {
            let service = services[n % services.len()].clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    let state = RunStateReported { run, state: RunAgentState::Indexing };
                    agent.report(&service, state).await.expect("taken");
                }
            })
        });
        for task in reporting.collect::<Vec<_>>() {
            task.await.expect("reported");
        }
        let took = began.elapsed();
        let metrics: Vec<_> = services
            .iter()
            .map(|s| (s.metrics().appends.value(), s.metrics().append_conflicts.value()))
            .collect();
        println!(
            "{count} services, 10,000 reports: {took:.2?}, {:.0} records/s; appends, lost races: {metrics:?}",
            10_000.0 / took.as_secs_f64()
        );
        let told = events(&**services[0].log()).await;
        let received = || told.iter().filter(|event| matches!(event, Event::ReportReceived(_)));
        assert_eq!(received().count(), 10_000);
        assert_eq!(support::count(&told, "agent.online"), 500);
        for (service, writer) in services.into_iter().zip(writers) {
            close(service, writer).await;
        }
    }
}
