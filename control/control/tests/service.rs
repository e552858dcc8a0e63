//! The service over real and misbehaving logs: runs by reports alone, crashes, faults, rivals.

mod support;

use std::sync::Arc;
use std::time::Duration;

use agent_proto::RunSecret;
use agent_proto::link::{Progress, seal_context};
use control::gateway::{EnrolDecision, Fleet, ReportError};
use control::service::{OpenError, Options, Origin, Ousted, Service, SubmitError};
use control_core::projection::StandingView;
use control_core::{Rejection, agent, group, job, run};
use event_log::file::{FileLog, FileLogOptions};
use event_log::memory::MemoryLog;
use event_log::{EventLog, Position, StreamName};
use event_schema::*;
use support::*;

fn stats(blocks: u64) -> TransferStats {
    TransferStats { blocks_fetched: blocks, blocks_total: blocks, ..TransferStats::default() }
}

/// Plays a whole distribution and returns the run.
async fn distribute(service: &Service, agents: &mut [FakeAgent]) -> RunId {
    let ids: Vec<AgentId> = agents.iter().map(|agent| agent.id).collect();
    let job = create_job(service, ids[0], &ids[1..]).await;
    let run = start(service, job).await;
    for agent in agents.iter_mut() {
        let command = agent.obey(service).await;
        let CommandBody::JoinRun(join) = command.body else { panic!("{command:?}") };
        assert_eq!((join.run, join.peers.len(), join.trackers.len()), (run, ids.len(), 1));
        let secret = agent_proto::open(&agent.key, &seal_context(run), &join.sealed_secret).expect("for us");
        assert_eq!(secret.as_slice(), RunSecret::derive(&MASTER, run).as_bytes());
        let hint = join.peers.iter().find(|peer| peer.agent == ids[0]).expect("a hint");
        assert_eq!(hint.addresses, ["127.0.0.1:5000"]);
    }
    let (source, destinations) = agents.split_first_mut().expect("a source");
    source.report(service, RunStateReported { run, state: RunAgentState::Indexing }).await.expect("taken");
    let manifest = ManifestSigned { run, root: [9; 32], entries: 2, bytes: 100, blocks: 3 };
    source.report(service, manifest).await.expect("taken");
    for destination in destinations.iter_mut() {
        let completed = RunCompleted { run, state: RunAgentState::Done, stats: stats(3) };
        destination.report(service, completed).await.expect("taken");
    }
    for agent in agents.iter_mut() {
        let command = agent.obey(service).await;
        assert_eq!(command.body, FinishRun { run }.into());
        agent.report(service, RunServed { run, stats: stats(3) }).await.expect("taken");
    }
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn a_distribution_by_reports_survives_a_crash_of_the_service() {
    let dir = tempfile::tempdir().expect("a folder");
    let open_log = || async {
        let log = FileLog::open(dir.path(), FileLogOptions::default()).await.expect("opens");
        Arc::new(log) as Arc<dyn EventLog>
    };
    let (service, writer) = open(open_log().await).await;
    let mut agents = agents(&service, 4).await;
    let run = distribute(&service, &mut agents).await;
    {
        let views = service.views();
        let view = &views.runs.runs[&run];
        assert_eq!(view.outcome, Some(Outcome::Succeeded));
        assert!(view.agents.values().all(|agent| agent.state == RunAgentState::Done));
        assert!(views.mailboxes.agents.values().all(|mailbox| mailbox.waiting.is_empty()));
    }
    agrees_with_its_log(&service).await;
    // No farewell: the task is cut, as by a kill; only the lock has to be free again.
    writer.abort();
    let _ = writer.await;
    drop(service);

    let (service, writer) = open(open_log().await).await;
    {
        let views = service.views();
        let view = &views.runs.runs[&run];
        assert_eq!(view.outcome, Some(Outcome::Succeeded));
        assert!(views.fleet.agents.values().all(|agent| !agent.online), "no link survives a crash");
    }
    agrees_with_its_log(&service).await;
    let told = events(&**service.log()).await;
    assert_eq!(count(&told, "agent.offline"), 4);
    assert_eq!(count(&told, "run.finished"), 1);
    // The agents come back and say again what they are not sure of: nothing new.
    let position = service.views().position();
    for agent in &mut agents {
        let session = agent.connect(&service).await;
        assert_eq!(session.reports_stored, agent.sequence);
        agent.sequence -= 1;
        let repeated = agent.report(&service, RunServed { run, stats: stats(3) }).await;
        assert_eq!(repeated, Ok(agent.sequence));
    }
    assert_eq!(service.views().position(), position + 4, "four times online, no report");
    close(service, writer).await;
}

#[tokio::test]
async fn commands_held_back_by_a_crash_are_issued_at_the_next_start() {
    let memory: Arc<dyn EventLog> = Arc::new(MemoryLog::new());
    let log = FaultyLog::new(memory);
    let (service, writer) = open(log.clone()).await;
    let mut agents = agents(&service, 2).await;
    let job = create_job(&service, agents[0].id, &[agents[1].id]).await;
    // The run is stored, its commands are not.
    log.next([Fault::None, Fault::NoSpace]);
    let run = start(&service, job).await;
    // A decision after it, so that the failed one is over.
    let refused = service.decide(Origin::service("x".into()), |_, _| Err(Rejection::Invalid("no".into())));
    assert!(refused.await.is_err());
    assert!(service.commands_after(agents[0].id, 0, 9).await.is_empty());
    assert!(!service.is_healthy());
    close(service, writer).await;

    let (service, writer) = open(log.clone()).await;
    for agent in &mut agents {
        let command = agent.command(&service).await;
        assert!(matches!(command.body, CommandBody::JoinRun(join) if join.run == run));
    }
    assert!(service.is_healthy());
    let told = events(&*log).await;
    assert_eq!((count(&told, "run.started"), count(&told, "command.issued")), (1, 2));
    close(service, writer).await;
}

async fn create_group(service: &Service, name: &'static str) -> Result<(), SubmitError> {
    let group = GroupId([name.len() as u8; 16]);
    let origin = Origin::operator("test", "group/x".into());
    let created = service.decide(origin, move |state, _| {
        group::decide(state, group::Command::Create { group, name: name.into() })
    });
    created.await
}

#[tokio::test(start_paused = true)]
async fn commands_held_back_by_a_full_log_are_issued_when_it_has_room_again() {
    // With another decision that finds the log well again, and without.
    for another in [true, false] {
        let log = FaultyLog::new(Arc::new(MemoryLog::new()));
        let (service, writer) = open(log.clone()).await;
        let mut agents = agents(&service, 2).await;
        let job = create_job(&service, agents[0].id, &[agents[1].id]).await;
        log.next([Fault::None, Fault::NoSpace]);
        let run = start(&service, job).await;
        // A decision after it, so that the failed one is over.
        let refused =
            service.decide(Origin::service("x".into()), |_, _| Err(Rejection::Invalid("no".into())));
        assert!(refused.await.is_err());
        assert!(service.commands_after(agents[0].id, 0, 9).await.is_empty());
        if another {
            create_group(&service, "g").await.expect("there is room again");
        }
        for agent in &mut agents {
            let command = agent.obey(&service).await;
            assert!(matches!(command.body, CommandBody::JoinRun(join) if join.run == run));
        }
        // The same when it is to be stopped, and more than one try is needed.
        log.next([Fault::None, Fault::NoSpace, Fault::NoSpace, Fault::NoSpace]);
        let origin = Origin::operator("test", format!("run/{run}"));
        let stopped = service.decide(origin, move |state, _| {
            run::decide(state, run::Command::Stop { run, reason: "enough".into() })
        });
        stopped.await.expect("recorded");
        for agent in &mut agents {
            assert_eq!(agent.obey(&service).await.body, StopRun { run }.into());
        }
        agrees_with_its_log(&service).await;
        close(service, writer).await;
        let told = events(&*log).await;
        assert_eq!(count(&told, "command.issued"), 4, "none twice");
    }
}

#[tokio::test]
async fn a_deletion_whose_answer_was_lost_is_no_refusal() {
    let cases = [
        vec![Fault::StoredUnknown],
        vec![Fault::LostUnknown],
        vec![Fault::LostUnknown, Fault::StoredUnknown],
    ];
    for faults in cases {
        let log = FaultyLog::new(Arc::new(MemoryLog::new()));
        let (service, writer) = open(log.clone()).await;
        let agents = agents(&service, 2).await;
        let job = create_job(&service, agents[0].id, &[agents[1].id]).await;
        log.next(faults.clone());
        let delete = || {
            let origin = Origin::operator("test", format!("job/{job}"));
            service.decide(origin, move |state, _| job::decide(state, job::Command::Delete { job }))
        };
        assert_eq!(delete().await, Ok(()), "{faults:?}");
        assert!(matches!(delete().await, Err(SubmitError::Rejected(Rejection::Unknown { .. }))));
        assert_eq!(count(&events(&*log).await, "job.deleted"), 1, "{faults:?}");
        close(service, writer).await;
    }
}

#[tokio::test]
async fn what_nobody_can_know_is_not_told_as_a_failure() {
    for (fault, stored) in [(Fault::StoredUnknown, 1), (Fault::LostUnknown, 0)] {
        let log = FaultyLog::new(Arc::new(MemoryLog::new()));
        let (service, writer) = open(log.clone()).await;
        log.set_deaf(true);
        log.next([fault]);
        let told = create_group(&service, "g").await;
        assert!(matches!(told, Err(SubmitError::Unknown(_))), "{told:?}");
        // Nothing of this one was given to the log.
        let told = create_group(&service, "another").await;
        assert!(matches!(told, Err(SubmitError::Unavailable(_))), "{told:?}");
        log.set_deaf(false);
        create_group(&service, "a third").await.expect("the log works again");
        assert_eq!(count(&events(&*log).await, "group.created"), 1 + stored);
        agrees_with_its_log(&service).await;
        close(service, writer).await;
    }
}

#[tokio::test]
async fn whatever_the_log_answers_a_fact_is_told_once() {
    let cases = [
        (vec![Fault::StoredUnknown], true),
        (vec![Fault::LostUnknown], true),
        (vec![Fault::Conflict, Fault::LostUnknown, Fault::StoredUnknown], true),
        (vec![Fault::NoSpace], false),
        (vec![Fault::Conflict; 20], false),
    ];
    for (faults, stored) in cases {
        let log = FaultyLog::new(Arc::new(MemoryLog::new()));
        let (service, writer) = open(log.clone()).await;
        log.next(faults.clone());
        let result = create_group(&service, "g").await;
        assert_eq!(result.is_ok(), stored, "{faults:?}: {result:?}");
        assert!(stored || matches!(result, Err(SubmitError::Unavailable(_))));
        assert_eq!(service.is_healthy(), !faults.contains(&Fault::NoSpace));
        log.next([]);
        create_group(&service, "another").await.expect("the log works again");
        assert!(service.is_healthy());
        let told = events(&*log).await;
        assert_eq!(count(&told, "group.created"), 1 + usize::from(stored), "{faults:?}");
        agrees_with_its_log(&service).await;
        close(service, writer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_lose_nothing_even_when_a_chain_breaks() {
    for faults in
        [vec![], [vec![Fault::None; 70], vec![Fault::Conflict], vec![Fault::StoredUnknown]].concat()]
    {
        let log = FaultyLog::new(Arc::new(MemoryLog::new()));
        let (service, writer) = open(log.clone()).await;
        let agents = agents(&service, 20).await;
        let ids: Vec<AgentId> = agents.iter().map(|agent| agent.id).collect();
        let job = create_job(&service, ids[0], &ids[1..]).await;
        let run = start(&service, job).await;
        log.next(faults);
        let tasks: Vec<_> = agents
            .into_iter()
            .map(|mut agent| {
                let service = service.clone();
                tokio::spawn(async move {
                    agent.obey(&service).await;
                    for n in 0..50u32 {
                        let state = [RunAgentState::Transferring, RunAgentState::Stalled][n as usize % 2];
                        let report = RunStateReported { run, state };
                        assert_eq!(agent.report(&service, report).await, Ok(agent.sequence));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("every agent gets through");
        }
        let told = events(&*log).await;
        assert_eq!(count(&told, "report.received"), 20 * 51);
        assert_eq!(count(&told, "run.agent_progressed"), 20 * 51);
        agrees_with_its_log(&service).await;
        close(service, writer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_on_one_log_agree() {
    two_services(Arc::new(MemoryLog::new()), Arc::new(MemoryLog::new()), true).await;
}

/// Two services that write as fast as they can. With `same`, both use the first log.
async fn two_services(first: Arc<dyn EventLog>, second: Arc<dyn EventLog>, same: bool) {
    let second = if same { Arc::clone(&first) } else { second };
    let options = || Options { shared_log: true, ..Options::default() };
    let (one, _one) = Service::open(first, keys(), options()).await.expect("opens");
    let (two, _two) = Service::open(second, keys(), options()).await.expect("opens");
    let mut tasks = Vec::new();
    for n in 0..60u8 {
        let service = if n % 2 == 0 { one.clone() } else { two.clone() };
        tasks.push(tokio::spawn(async move {
            let group = GroupId([n; 16]);
            // Names clash in pairs: one of each must be refused, by whichever service.
            let name = format!("group {}", n / 2);
            let decided = service
                .decide(Origin::operator("test", format!("group/{group}")), move |state, _| {
                    group::decide(state, group::Command::Create { group, name: name.clone() })
                });
            decided.await
        }));
    }
    let mut stored = 0;
    for task in tasks {
        match task.await.expect("no panic") {
            Ok(()) => stored += 1,
            Err(SubmitError::Rejected(Rejection::Conflict(_))) => {}
            Err(SubmitError::Unavailable(reason)) => panic!("{reason}"),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(stored, 30, "one of each pair");
    // Each service has folded what it wrote itself; the later one has the end.
    let last = one.views().position().max(two.views().position());
    for service in [&one, &two] {
        let mut position = service.position();
        let waited = tokio::time::timeout(Duration::from_secs(20), position.wait_for(|p| *p >= last));
        waited.await.expect("in time").expect("alive");
    }
    assert_eq!(one.views().hash(), two.views().hash());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_real_nats_server() {
    let Some(program) = event_log_nats::testing::server_or_skip("over_a_real_nats_server") else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let mut server = event_log_nats::testing::NatsServer::start(program, dir.path()).expect("starts");
    let log = || async {
        let options = event_log_nats::NatsLogOptions::new(&server.url());
        Arc::new(event_log_nats::NatsLog::open(options).await.expect("opens")) as Arc<dyn EventLog>
    };
    let options = || Options { shared_log: true, ..Options::default() };
    let (first, second) = (log().await, log().await);
    two_services(first, second, false).await;
    let (service, writer) = Service::open(log().await, keys(), options()).await.expect("opens");
    let groups = service.views().fleet.groups.len();
    assert_eq!(groups, 30);
    let mut agents = agents(&service, 3).await;
    agents.iter_mut().for_each(|agent| agent.sequence = 0);
    let ids: Vec<AgentId> = agents.iter().map(|agent| agent.id).collect();
    let job = create_job(&service, ids[0], &ids[1..]).await;
    let run = start(&service, job).await;
    for agent in &mut agents {
        agent.obey(&service).await;
    }
    // The server dies and comes back: what is said meanwhile is on the log in the end.
    server.kill();
    let late = {
        let (service, mut agent) = (service.clone(), agents[1].clone());
        tokio::spawn(async move {
            let completed = RunCompleted { run, state: RunAgentState::Done, stats: stats(3) };
            agent.report(&service, completed).await
        })
    };
    server.restart().expect("starts again");
    assert_eq!(late.await.expect("no panic"), Ok(2));
    let completed = RunCompleted { run, state: RunAgentState::Done, stats: stats(3) };
    agents[2].report(&service, completed).await.expect("taken");
    assert_eq!(service.views().runs.runs[&run].outcome, Some(Outcome::Succeeded));
    agrees_with_its_log(&service).await;
    close(service, writer).await;
}

#[tokio::test]
async fn logs_that_are_not_ours_stop_the_start() {
    let append = |log: Arc<MemoryLog>, stream: &'static str, bytes: Vec<u8>| async move {
        let stream = StreamName::new(stream).expect("a name");
        let last = log.last_of_stream(&stream).await.expect("readable");
        log.append(&stream, last, bytes).await.expect("stored")
    };
    let record = |events: Vec<Event>| Record {
        id: RecordId([1; 16]),
        stream: "fleet".into(),
        time: Timestamp(1),
        actor: Actor::Service,
        causation: None,
        correlation: RecordId([1; 16]),
        events,
    };
    let founded: Event = FleetFounded { root_key: [9; 32], ca_fingerprint: [9; 32] }.into();
    // An event of kind 9999: what a newer version may have written.
    let mut newer = record(vec![founded.clone()]).encode();
    let kind = newer.windows(3).rposition(|w| w == [1, 1, 64]).expect("kind 1, version 1, 64 bytes");
    newer.splice(kind..=kind, [0x8f, 0x4e]);
    let garbled = ReportReceived {
        agent: AgentId([1; 16]),
        sequence: 1,
        problem_in: None,
        signed: Signed { bytes: vec![1, 2, 3], signature: Signature([0; 32], [0; 32]) }.into(),
    };
    let cases: Vec<(&str, &'static str, Vec<u8>, &str)> = vec![
        ("a newer event", "fleet", newer, "unknown kind 9999"),
        ("no record", "fleet", vec![1, 2, 3], "position 1"),
        ("nothing", "fleet", vec![], "position 1"),
        ("another program's stream", "orders", record(vec![founded.clone()]).encode(), "orders"),
        ("a report that cannot be read", "fleet", record(vec![garbled.into()]).encode(), "position 1"),
        ("another fleet's", "fleet", record(vec![founded]).encode(), "root key"),
    ];
    for (what, stream, bytes, says) in cases {
        let log = Arc::new(MemoryLog::new());
        append(Arc::clone(&log), stream, bytes).await;
        let opened = Service::open(log.clone(), keys(), Options::default()).await;
        let error: OpenError = opened.map(drop).expect_err(what);
        assert!(error.to_string().contains(says), "{what}: {error}");
        assert_eq!(log.last_position().await.expect("readable"), Position(1), "{what}: nothing was added");
    }
}

#[tokio::test]
async fn enrolments_and_what_becomes_of_them() {
    let (service, writer) = open(Arc::new(MemoryLog::new())).await;
    let token = create_token(&service, 1).await;
    let (one, two) = (FakeAgent::new(1), FakeAgent::new(2));
    assert!(matches!(one.enrol(&service, None).await, EnrolDecision::Pending { .. }));
    assert!(service.connected(one.id, hello(), "127.0.0.1:1".parse().unwrap()).await.is_err());
    approve(&service, one.id).await;
    assert_eq!(one.enrol(&service, None).await, EnrolDecision::Approved { name: "fake".into() });
    assert_eq!(
        two.enrol(&service, Some(token.clone())).await,
        EnrolDecision::Approved { name: "fake-2".into() }
    );
    for text in [token, "nonsense".into(), format!("{}.{}", "0".repeat(32), "0".repeat(64))] {
        let refused = FakeAgent::new(3).enrol(&service, Some(text)).await;
        assert!(matches!(refused, EnrolDecision::Refused(_)), "{refused:?}");
    }
    // Removed in the middle of a session: the gateway hears of it, everything is refused.
    let mut ousted = service.ousted();
    let gone = two.id;
    let origin = Origin::operator("test", "agent/x".into());
    let removed =
        service.decide(origin, move |state, _| agent::decide(state, agent::Command::Remove { agent: gone }));
    removed.await.expect("removed");
    assert_eq!(ousted.try_recv(), Ok(Ousted::Removed(two.id)));
    assert!(service.is_removed(two.id) && !service.is_removed(one.id));
    assert!(service.connected(two.id, hello(), "127.0.0.1:1".parse().unwrap()).await.is_err());
    let run = RunId([1; 16]);
    let report =
        FakeAgent::new(2).report(&service, RunStateReported { run, state: RunAgentState::Done }).await;
    assert!(matches!(report, Err(ReportError::Refused(r)) if r.reason == RefusalReason::Removed));
    assert!(matches!(two.enrol(&service, None).await, EnrolDecision::Refused(_)));
    let standing = service.views().fleet.agents[&two.id].standing;
    assert_eq!(standing, StandingView::Removed);
    close(service, writer).await;
}

fn hello() -> agent_proto::link::Hello {
    agent_proto::link::Hello {
        version: "x".into(),
        command_cursor: 0,
        addresses: vec!["nonsense".into(), "10.0.0.1:5".into()],
        trust_version: 0,
        features: 0,
    }
}

#[tokio::test]
async fn refused_strangers_cannot_fill_the_log() {
    let (service, writer) = open(Arc::new(MemoryLog::new())).await;
    let before = service.views().position();
    for n in 0..200u8 {
        let text = format!("{}.{}", "0".repeat(32), "0".repeat(64));
        let refused = FakeAgent::new(n).enrol(&service, Some(text)).await;
        assert!(matches!(refused, EnrolDecision::Refused(_)));
    }
    let recorded = service.views().position() - before;
    assert!((50..=55).contains(&recorded), "{recorded}");
    assert_eq!(service.metrics().enrolments_refused.value(), 200);
    close(service, writer).await;
}

#[tokio::test]
async fn reports_of_others_and_forgeries_are_refused() {
    let (service, writer) = open(Arc::new(MemoryLog::new())).await;
    let mut agents = agents(&service, 2).await;
    let run = RunId([1; 16]);
    let body = || RunStateReported { run, state: RunAgentState::Done };
    let position = service.views().position();
    let foreign = agents[1].sign(body());
    let mut tampered = agents[0].sign(body());
    tampered.bytes[20] ^= 1;
    let ahead = Report { agent: agents[0].id, sequence: 5, time: Timestamp(1), body: body().into() };
    let lying = Report { agent: agents[1].id, sequence: 1, time: Timestamp(1), body: body().into() };
    let garbage = Signed::sign(Domain::Report, vec![9; 40], &agents[0].key);
    let cases = [
        ("another's key", foreign, RefusalReason::BadSignature),
        ("tampered with", tampered, RefusalReason::BadSignature),
        ("in another's name", lying.sign(&agents[0].key), RefusalReason::WrongAudience),
        ("not a report", garbage, RefusalReason::NotUnderstood),
        ("a gap", ahead.sign(&agents[0].key), RefusalReason::NotAllowed),
    ];
    for (what, signed, reason) in cases {
        let answer = service.reports(agents[0].id, vec![signed]).await;
        let Err(ReportError::Refused(refused)) = answer else { panic!("{what}: {answer:?}") };
        assert_eq!(refused.reason, reason, "{what}");
    }
    assert_eq!(service.views().position(), position, "nothing of it is on the log");
    let stranger = FakeAgent::new(99).report(&service, body()).await;
    assert!(matches!(stranger, Err(ReportError::Refused(_))));
    close(service, writer).await;
}

#[tokio::test]
async fn telemetry_is_for_those_who_take_part() {
    let (service, writer) = open(Arc::new(MemoryLog::new())).await;
    let agents = agents(&service, 3).await;
    let job = create_job(&service, agents[0].id, &[agents[1].id]).await;
    let run = start(&service, job).await;
    let progress = |run| Progress {
        run,
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
    let position = service.views().position();
    service.progress(agents[1].id, progress(run));
    service.progress(agents[2].id, progress(run));
    service.progress(agents[1].id, progress(RunId([9; 16])));
    let of = |agent: AgentId, run| service.telemetry().of(run, agent, std::time::Instant::now());
    assert_eq!(of(agents[1].id, run).expect("told").progress, progress(run));
    assert!(of(agents[2].id, run).is_none() && of(agents[1].id, RunId([9; 16])).is_none());
    assert_eq!(service.views().position(), position, "telemetry is no fact");
    close(service, writer).await;
}
