//! What the service attests about its state: right at every place of the log, with faults, rivals and restarts; and
//! what is wrong is noticed.

mod support;

use std::sync::Arc;

use control::service::{Options, Origin, Service};
use control_core::form::{self, Checked};
use control_core::{Rejection, group};
use event_log::memory::MemoryLog;
use event_log::{EventLog, Position, ReadLimit};
use event_schema::*;
use support::*;

fn options(attest_every: u64) -> Options {
    Options { attest_every, ..Options::default() }
}

async fn make_group(service: &Service, n: u8) -> Result<(), control::service::SubmitError> {
    let group = GroupId([n; 16]);
    let decided = service.decide(Origin::operator("test", format!("group/{group}")), move |state, _| {
        group::decide(state, group::Command::Create { group, name: format!("group {n}") })
    });
    decided.await
}

/// Folds a log from zero and holds what was attested against it; positions of attestations, and the fold.
async fn fold(log: &dyn EventLog) -> (Vec<u64>, Checked) {
    let (mut fold, mut attested) = (Checked::default(), Vec::new());
    loop {
        let next = Position(fold.views().position() + 1);
        let page = log.read(next, ReadLimit::default()).await.expect("readable");
        if page.is_empty() {
            return (attested, fold);
        }
        for entry in page {
            let record = Record::decode(&entry.bytes).expect("a record");
            if record.events.iter().any(|event| matches!(event, Event::StateAttested(_))) {
                attested.push(entry.position.0);
            }
            fold.apply(entry.position.0, &record).unwrap_or_else(|differs| panic!("{differs}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_is_attested_every_so_often_and_at_a_clean_stop() {
    let inner = Arc::new(MemoryLog::new());
    let log = FaultyLog::new(inner.clone());
    let (service, writer) = Service::open(log.clone(), keys(), options(4)).await.expect("opens");
    let mut agents = agents(&service, 3).await;
    let ids: Vec<AgentId> = agents.iter().map(|agent| agent.id).collect();
    let job = create_job(&service, ids[0], &ids[1..]).await;
    let run = start(&service, job).await;
    for agent in &mut agents {
        agent.obey(&service).await;
    }
    // Attestations meet the same faults as everything else.
    for (n, fault) in [Fault::StoredUnknown, Fault::LostUnknown, Fault::Conflict].into_iter().enumerate() {
        for before in 0..6u8 {
            log.next([vec![Fault::None; usize::from(before)], vec![fault]].concat());
            make_group(&service, n as u8 * 6 + before).await.expect("made");
        }
    }
    agents[1]
        .report(&service, RunStateReported { run, state: RunAgentState::Transferring })
        .await
        .expect("taken");
    agrees_with_its_log(&service).await;
    log.next([]);
    close(service, writer).await;
    let (attested, folded) = fold(&*inner).await;
    assert_eq!(folded.checked, attested.len() as u64);
    assert!(attested.len() >= 2, "{attested:?} of {}", folded.views().position());
    assert_eq!(attested.last(), Some(&folded.views().position()), "{attested:?}");
    let (_, before_stop) = attested.split_last().expect("some");
    assert!(before_stop.windows(2).all(|pair| pair[1] - pair[0] > 4), "{attested:?}");

    // Opened again: agents go offline, which is attested when it stops; then nothing is added any more.
    for restart in 0..3 {
        let end = inner.last_position().await.expect("readable").0;
        let (service, writer) = Service::open(log.clone(), keys(), options(4)).await.expect("opens");
        assert_eq!(service.metrics().attestations_differing.value(), 0);
        assert!(service.metrics().attestations_checked.value() > 0);
        close(service, writer).await;
        let added = inner.last_position().await.expect("readable").0 - end;
        assert_eq!(added, if restart == 0 { 2 } else { 0 });
    }
    fold(&*inner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_on_one_log_attest_what_both_fold() {
    let inner = Arc::new(MemoryLog::new());
    let log = FaultyLog::new(inner.clone());
    let options = || Options { shared_log: true, ..options(3) };
    let mut services = Vec::new();
    for _ in 0..2 {
        services.push(Service::open(log.clone(), keys(), options()).await.expect("opens"));
    }
    let tasks: Vec<_> = (0..80u8)
        .map(|n| {
            let service = services[usize::from(n % 2)].0.clone();
            tokio::spawn(async move { make_group(&service, n).await })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic").expect("made");
    }
    for (service, _) in &services {
        assert_eq!(service.metrics().attestations_differing.value(), 0);
    }
    for (service, writer) in services {
        close(service, writer).await;
    }
    let (attested, folded) = fold(&*inner).await;
    assert_eq!(folded.views().fleet.groups.len(), 80);
    assert!(attested.len() >= 2 && folded.checked == attested.len() as u64, "{attested:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_was_attested_wrongly_is_noticed() {
    let log = FaultyLog::new(Arc::new(MemoryLog::new()));
    let (service, writer) = Service::open(log.clone(), keys(), options(1_000)).await.expect("opens");
    // Another program, or somebody, claims what is not so.
    let decided = service.decide(Origin::service("fleet".into()), |_, _| -> Result<_, Rejection> {
        Ok(vec![StateAttested { at: 1, form: form::NEWEST, hash: [9; 32] }.into()])
    });
    decided.await.expect("stored");
    close(service, writer).await;
    let (service, writer) = Service::open(log, keys(), options(1_000)).await.expect("opens all the same");
    assert_eq!(service.metrics().attestations_differing.value(), 1);
    close(service, writer).await;
}
