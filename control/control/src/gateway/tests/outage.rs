//! The gateway while the log does not answer, and when the service has much to say at once.

use super::*;

/// Waits until the gateway has so many sessions.
async fn sessions(world: &World, count: usize) {
    let gateway = world.gateway.as_ref().expect("running");
    let few = async {
        while gateway.sessions() != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("the number of sessions", few).await;
}

#[tokio::test]
async fn pings_are_answered_while_reports_wait_for_the_log() {
    let mut world = World::new().await;
    let agent = world.agent(1).await;
    let (mut client, _) = world.session(&agent, 0).await;
    world.fleet.log_hangs.send_replace(true);
    client.send(ReportSent { signed: report(&agent, 1) }).await;
    // An agent of several gateways leaves after 5 s of silence.
    for _ in 0..2 {
        client.send(Ping {}).await;
        let answer = tokio::time::timeout(Duration::from_secs(4), client.receive()).await;
        assert!(matches!(answer, Ok(Ok(ToAgent::Pong(_)))), "{answer:?}");
    }
    world.fleet.log_hangs.send_replace(false);
    loop {
        match client.receive().await.expect("an answer") {
            ToAgent::Pong(_) => {}
            ToAgent::ReportsStored(stored) => break assert_eq!(stored.up_to, 1),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_hello_that_the_log_does_not_take_is_refused_in_time() {
    let limits =
        Limits { half_open_per_ip: 2, welcome_timeout: Duration::from_millis(300), ..Limits::default() };
    let mut world = World::with(limits).await;
    let agent = world.agent(1).await;
    world.fleet.log_hangs.send_replace(true);
    for _ in 0..4 {
        let mut client = agent.connect(world.address, world.pki.ca_certificate()).await.expect("TLS");
        client.send(Agent::hello(0)).await;
        let answer = client.receive().await;
        assert!(
            matches!(&answer, Ok(ToAgent::Refused(r)) if r.reason == RefusalReason::TooEarly),
            "{answer:?}"
        );
        is_closed(&mut client).await;
    }
    world.fleet.log_hangs.send_replace(false);
    // It may have been recorded: then it is taken back, before anything else is said of this agent.
    assert!(matches!(world.told().await, Told::Disconnected(id, _) if id == agent.id()));
    sessions(&world, 0).await;
    let (mut client, _) = world.session(&agent, 0).await;
    assert_eq!(world.told().await, connected(&agent));
    still_lives(&mut client).await;
}

#[tokio::test]
async fn who_has_to_leave_is_not_forgotten_when_there_are_many() {
    let mut world = World::new().await;
    let (stays, moves) = (world.agent(1).await, world.agent(2).await);
    let (mut stays, (mut moved, _)) = (world.session(&stays, 0).await.0, world.session(&moves, 0).await);
    // More at once than the gateway is told one by one; the first are lost.
    world.fleet.elsewhere.lock().expect("sound").insert(moves.id());
    let mut all = vec![Ousted::Moved(moves.id())];
    all.extend((10..30).map(|n| Ousted::Moved(AgentId([n; 16]))));
    for ousted in all {
        world.fleet.ousted.send(ousted).expect("the gateway listens");
    }
    is_closed(&mut moved).await;
    still_lives(&mut stays).await;
}

#[tokio::test]
async fn an_agent_that_comes_back_is_not_sent_away_for_having_been_elsewhere() {
    let mut world = World::new().await;
    let agent = world.agent(1).await;
    let mut client = agent.connect(world.address, world.pki.ca_certificate()).await.expect("TLS");
    world.fleet.log_hangs.send_replace(true);
    client.send(Agent::hello(0)).await;
    sessions(&world, 1).await;
    // Only now the gateway hears of the time between.
    world.fleet.ousted.send(Ousted::Moved(agent.id())).expect("the gateway listens");
    while !world.fleet.ousted.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.fleet.log_hangs.send_replace(false);
    assert!(matches!(client.receive().await, Ok(ToAgent::Welcome(_))));
    still_lives(&mut client).await;
    // While it is being taken in, it goes elsewhere again: that is asked for when it is in.
    world.fleet.log_hangs.send_replace(true);
    let mut again = agent.connect(world.address, world.pki.ca_certificate()).await.expect("TLS");
    again.send(Agent::hello(0)).await;
    is_closed(&mut client).await;
    world.fleet.elsewhere.lock().expect("sound").insert(agent.id());
    world.fleet.log_hangs.send_replace(false);
    while again.receive().await.is_ok() {}
}

#[tokio::test]
async fn who_reports_more_than_its_share_waits_and_nobody_else_does() {
    let limits =
        Limits { report_bytes_per_s: 100, report_burst: Duration::from_secs(10), ..Limits::default() };
    let mut world = World::with(limits).await;
    let (loud, quiet) = (world.agent(1).await, world.agent(2).await);
    let (mut shouting, _) = world.session(&loud, 0).await;
    let (mut speaking, _) = world.session(&quiet, 0).await;
    for sequence in 1..=60 {
        shouting.send(ReportSent { signed: report(&loud, sequence) }).await;
    }
    let began = std::time::Instant::now();
    speaking.send(ReportSent { signed: report(&quiet, 1) }).await;
    assert!(matches!(speaking.receive().await, Ok(ToAgent::ReportsStored(stored)) if stored.up_to == 1));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // It is held up, not thrown out.
    loop {
        match shouting.receive().await.expect("an answer") {
            ToAgent::Pong(_) => break,
            ToAgent::ReportsStored(stored) => assert!(stored.up_to < 60),
            other => panic!("{other:?}"),
        }
    }
    assert!(world.fleet.with(loud.id(), |member| member.reports.len()) < 60);
}

#[tokio::test]
async fn who_connects_again_and_again_is_told_to_wait() {
    let limits = Limits { session_burst: 3, ..Limits::default() };
    let mut world = World::with(limits).await;
    let (agent, other) = (world.agent(1).await, world.agent(2).await);
    for _ in 0..3 {
        world.session(&agent, 0).await;
    }
    let mut client = agent.connect(world.address, world.pki.ca_certificate()).await.expect("TLS");
    client.send(Agent::hello(0)).await;
    let answer = client.receive().await;
    assert!(matches!(&answer, Ok(ToAgent::Refused(r)) if r.reason == RefusalReason::TooEarly), "{answer:?}");
    world.session(&other, 0).await;
}
