//! The agent's program against a gateway that the test plays: enrolment, commands, reports, trouble.
//! The gateway's own tests are with the gateway; here it may also lie.

mod agent;
mod gateway;

use std::collections::BTreeMap;
use std::time::Duration;

use agent_proto::TrustBundle;
use agent_proto::link::{Enrolled, Hello, Pending, Refused, Welcome};
use ed25519_dalek::SigningKey;
use event_schema::{
    AgentId, Command, CommandBody, CommandId, FinishRun, JobId, JoinRun, NotThinned, Purpose, RefusalReason,
    ReportBody, Role, RunId, RunOptions, THINNED_MAX, TakePart, ThinBackup, ThinObstacle, Timestamp,
    WatchBackup, WatchedFolder,
};

use agent::{Home, Running, TOKEN};
use gateway::{Fleet, Gateway, Link, NONCE, now, soon};

/// A gateway and an agent that is a member.
struct World {
    fleet: Fleet,
    gateway: Gateway,
    home: Home,
    public_key: [u8; 32],
}

impl World {
    async fn new() -> (Self, Running) {
        let fleet = Fleet::new(1);
        let gateway = Gateway::start(&fleet).await;
        let mut home = Home::new();
        home.invite(&gateway.address.to_string(), &fleet.fingerprint(), Some(TOKEN));
        let agent = home.start(&[]);
        let mut link = gateway.accept().await;
        let enrol = link.enrol().await;
        assert!(enrol.proof_holds(&NONCE));
        assert_eq!((enrol.name.as_str(), enrol.token.as_deref()), ("camera", Some(TOKEN)));
        assert_eq!(enrol.tags, [("SITE".to_owned(), "north".to_owned())]);
        let public_key = enrol.public_key;
        link.send(fleet.admit(&public_key, 4000)).await;
        (Self { fleet, gateway, home, public_key }, agent)
    }

    fn agent(&self) -> AgentId {
        AgentId::of_key(&self.public_key)
    }

    /// A command that does nothing: the run is not known.
    fn command(&self, sequence: u64) -> Command {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&sequence.to_be_bytes());
        Command {
            id: CommandId(id),
            audience: self.agent(),
            sequence,
            issued: now(),
            not_before: now(),
            expires: Timestamp(now().0 + 3_600_000),
            body: FinishRun { run: RunId([9; 16]) }.into(),
        }
    }

    fn join(&self, sequence: u64, path: &[u8]) -> Command {
        let join = JoinRun {
            run: RunId([7; 16]),
            job: JobId([1; 16]),
            job_name: "nightly".into(),
            role: Role::Destination,
            path: path.to_vec(),
            source: self.agent(),
            peers: Vec::new(),
            trackers: Vec::new(),
            sealed_secret: Vec::new(),
        };
        Command { body: join.into(), ..self.command(sequence) }
    }

    async fn send(&self, link: &mut Link, command: &Command) {
        link.command(command.sign(&self.fleet.command)).await;
    }

    /// The next answer to a command: report sequence, command sequence, reason of a refusal.
    async fn answer(&self, link: &mut Link) -> Option<(u64, u64, Option<RefusalReason>)> {
        loop {
            match link.report(&self.public_key).await? {
                (n, ReportBody::CommandAccepted(accepted)) => return Some((n, accepted.sequence, None)),
                (n, ReportBody::CommandRefused(r)) => return Some((n, r.sequence, Some(r.reason))),
                // Reports of runs are no matter here.
                _ => {}
            }
        }
    }
}

fn refused(reason: RefusalReason) -> Refused {
    Refused { reason, detail: format!("because of {reason:?}") }
}

#[tokio::test]
async fn a_wrong_fingerprint_ends_it_before_anything_is_sent() {
    let (expected, real) = (Fleet::new(1), Fleet::new(2));
    let gateway = Gateway::start(&real).await;
    let mut home = Home::new();
    home.invite(&gateway.address.to_string(), &expected.fingerprint(), Some(TOKEN));
    let agent = home.start(&[]);
    // The agent breaks off inside the handshake, so no byte of ours or theirs went inside TLS.
    assert!(gateway.try_accept().await.is_err());
    let (code, log) = agent.end().await;
    assert_eq!(code, Some(1));
    assert!(log.contains("fingerprint") && log.contains("Nothing was sent"), "{log}");
    assert!(!log.contains(&TOKEN[33..]), "the token's secret is never shown");
    assert!(!gateway.somebody_comes(Duration::from_millis(200)).await);
}

#[tokio::test]
async fn a_refused_token_ends_it_with_the_reason() {
    for reason in [RefusalReason::UnknownToken, RefusalReason::TokenSpent, RefusalReason::TokenExpired] {
        let fleet = Fleet::new(1);
        let gateway = Gateway::start(&fleet).await;
        let mut home = Home::new();
        home.invite(&gateway.address.to_string(), &fleet.fingerprint(), Some(TOKEN));
        let agent = home.start(&[]);
        let mut link = gateway.accept().await;
        link.enrol().await;
        link.send(refused(reason)).await;
        let (code, log) = agent.end().await;
        assert_eq!(code, Some(1));
        assert!(log.contains(&format!("enrolment refused: because of {reason:?}")), "{log}");
        assert!(!log.contains(&TOKEN[33..]), "the token's secret is never shown");
    }
}

#[tokio::test]
async fn without_a_token_the_agent_waits_and_asks_again() {
    let fleet = Fleet::new(1);
    let gateway = Gateway::start(&fleet).await;
    let mut home = Home::new();
    home.invite(&gateway.address.to_string(), &fleet.fingerprint(), None);
    let agent = home.start(&[]);
    let mut key = None;
    for _ in 0..2 {
        let mut link = gateway.accept().await;
        let enrol = link.enrol().await;
        assert_eq!(enrol.token, None);
        assert_eq!(*key.get_or_insert(enrol.public_key), enrol.public_key);
        link.send(Pending { retry_after_s: 1 }).await;
    }
    let status = home.status_json().await;
    assert_eq!((&status["enrolled"], &status["last_error"]), (&false.into(), &"waiting for approval".into()));
    // A network that breaks in between is no answer.
    drop(gateway.accept().await);
    let mut link = gateway.accept().await;
    let enrol = link.enrol().await;
    link.send(fleet.admit(&enrol.public_key, 4000)).await;
    let (_link, hello) = gateway.session(0).await;
    assert_eq!(hello.command_cursor, 0);
    assert_eq!(agent.terminate().await.0, Some(0));
}

#[tokio::test]
async fn a_code_enrols_and_is_deleted_when_it_has() {
    let fleet = Fleet::new(1);
    let gateway = Gateway::start(&fleet).await;
    let mut home = Home::new();
    let (config, bootstrap) = (home.path().join("agent.toml"), home.path().join("bootstrap.json"));
    std::fs::write(&config, "consume_bootstrap = true\n").expect("written");
    let more = ["--config", config.to_str().expect("UTF-8")];
    home.invite_by_code(&gateway.address.to_string(), &fleet.fingerprint(), TOKEN);
    let whole = std::fs::read_to_string(&bootstrap).expect("a code");
    std::fs::write(&bootstrap, &whole[..whole.len() - 9]).expect("written");
    let (code, log) = home.start(&more).end().await;
    assert_ne!(code, Some(0));
    assert!(log.contains("was it cut when it was copied?") && bootstrap.exists(), "{log}");
    std::fs::write(&bootstrap, whole).expect("written");

    let agent = home.start(&more);
    let mut link = gateway.accept().await;
    let enrol = link.enrol().await;
    assert_eq!(enrol.token.as_deref(), Some(TOKEN));
    assert!(bootstrap.exists(), "it may have to enrol again");
    link.send(fleet.admit(&enrol.public_key, 4000)).await;
    let (_link, _) = gateway.session(0).await;
    assert!(!bootstrap.exists());
    let (code, log) = agent.terminate().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains(&TOKEN[33..]), "the token's secret is never shown");

    // A member needs no code: none that is gone, none that is damaged, none that leads elsewhere for good.
    let again = async |gateway: &Gateway, home: &mut Home| {
        let agent = home.start(&more);
        let (_link, _) = gateway.session(0).await;
        let (code, log) = agent.terminate().await;
        assert_eq!(code, Some(0), "{log}");
        log
    };
    let log = again(&gateway, &mut home).await;
    assert!(!log.contains("by hand"), "what is gone needs nobody's hand: {log}");
    std::fs::write(&bootstrap, format!("flotilla-{}", "A".repeat(60))).expect("written");
    assert!(again(&gateway, &mut home).await.contains("damaged"));
    assert!(!bootstrap.exists());
    home.invite("127.0.0.1:9", &fleet.fingerprint(), None);
    assert!(again(&gateway, &mut home).await.contains("the gateway has moved"));
    again(&gateway, &mut home).await;
}

#[tokio::test]
async fn what_is_given_at_enrolment_must_belong_together() {
    let (fleet, other) = (Fleet::new(1), Fleet::new(2));
    type Wrong = fn(&Fleet, &Fleet, [u8; 32]) -> Enrolled;
    let wrong: [Wrong; 3] = [
        |fleet, other, key| Enrolled { trust: other.admit(&key, 4000).trust, ..fleet.admit(&key, 4000) },
        |fleet, other, key| Enrolled {
            credential: other.admit(&key, 4000).credential,
            ..fleet.admit(&key, 4000)
        },
        |fleet, _, key| {
            let stranger = SigningKey::from_bytes(&[3; 32]).verifying_key().to_bytes();
            Enrolled { certificate: fleet.admit(&stranger, 4000).certificate, ..fleet.admit(&key, 4000) }
        },
    ];
    for wrong in wrong {
        let gateway = Gateway::start(&fleet).await;
        let mut home = Home::new();
        home.invite(&gateway.address.to_string(), &fleet.fingerprint(), Some(TOKEN));
        let agent = home.start(&[]);
        let mut link = gateway.accept().await;
        let enrol = link.enrol().await;
        link.send(wrong(&fleet, &other, enrol.public_key)).await;
        let (code, log) = agent.end().await;
        assert_eq!(code, Some(1));
        assert!(log.contains("does not belong together"), "{log}");
    }
}

#[tokio::test]
async fn commands_are_taken_once_and_in_order_whatever_is_killed() {
    let (mut world, mut agent) = World::new().await;
    let mut answered: BTreeMap<u64, u64> = BTreeMap::new();
    let mut stored = 0;
    let total = 60;
    let mut kills = 0;
    while answered.len() < total {
        let (mut link, Hello { command_cursor, .. }) = world.gateway.session(stored).await;
        assert!(
            command_cursor >= answered.keys().max().copied().unwrap_or(0),
            "a taken command is not forgotten"
        );
        for sequence in command_cursor + 1..=total as u64 {
            world.send(&mut link, &world.command(sequence)).await;
        }
        let goal = answered.len() + 10;
        while answered.len() < goal.min(total) {
            let Some((report, command, refusal)) = world.answer(&mut link).await else { break };
            assert_eq!(refusal, None);
            if report > stored {
                assert_eq!(report, stored + 1, "no gap");
                assert_eq!(answered.insert(command, report), None, "answered once");
                stored = report;
            }
        }
        kills += 1;
        match kills % 3 {
            // The agent dies, the link breaks, or the gateway goes away with its port.
            0 => {
                agent.kill().await;
                agent = world.home.start(&[]);
            }
            1 => drop(link),
            _ => {
                let address = world.gateway.address;
                drop((link, world.gateway));
                world.gateway = Gateway::start_at(&world.fleet, address).await;
            }
        }
    }
    assert!(kills >= 6);
    assert!(answered.keys().copied().eq(1..=total as u64));
    // Nothing is left to say.
    let (mut link, hello) = world.gateway.session(stored).await;
    assert_eq!(hello.command_cursor, total as u64);
    world.send(&mut link, &world.command(total as u64 + 1)).await;
    assert_eq!(world.answer(&mut link).await, Some((stored + 1, total as u64 + 1, None)));
}

#[tokio::test]
async fn bad_commands_are_refused_and_change_nothing() {
    let (world, _agent) = World::new().await;
    let (mut link, _) = world.gateway.session(0).await;
    world.send(&mut link, &world.command(1)).await;
    assert_eq!(world.answer(&mut link).await, Some((1, 1, None)));
    // Replayed: its place is taken.
    world.send(&mut link, &world.command(1)).await;
    assert_eq!(world.answer(&mut link).await, Some((2, 1, Some(RefusalReason::Replayed))));
    // For somebody else: our place 2 stays free.
    let foreign = Command { audience: AgentId([3; 16]), ..world.command(2) };
    world.send(&mut link, &foreign).await;
    assert_eq!(world.answer(&mut link).await, Some((3, 2, Some(RefusalReason::WrongAudience))));
    // Expired, and too early: they take their places.
    world.send(&mut link, &Command { expires: Timestamp(now().0 - 1), ..world.command(2) }).await;
    assert_eq!(world.answer(&mut link).await, Some((4, 2, Some(RefusalReason::Expired))));
    let later = Timestamp(now().0 + 600_000);
    let early = Command { not_before: later, expires: Timestamp(later.0 + 1), ..world.command(3) };
    world.send(&mut link, &early).await;
    assert_eq!(world.answer(&mut link).await, Some((5, 3, Some(RefusalReason::TooEarly))));
    // A clock that is a little behind does no harm.
    let soon = Timestamp(now().0 + 20_000);
    world.send(&mut link, &Command { not_before: soon, ..world.command(4) }).await;
    assert_eq!(world.answer(&mut link).await, Some((6, 4, None)));
    // A gap: the agent asks again.
    world.send(&mut link, &world.command(6)).await;
    assert_eq!(link.receive().await, None);
    let (mut link, hello) = world.gateway.session(6).await;
    assert_eq!(hello.command_cursor, 4);
    // Forged, with a good-looking body: no answer, the link is closed.
    link.command(world.command(5).sign(&SigningKey::from_bytes(&[77; 32]))).await;
    assert_eq!(link.receive().await, None);
    let (mut link, hello) = world.gateway.session(6).await;
    assert_eq!(hello.command_cursor, 4);
    let status = world.home.status_json().await;
    assert_eq!((&status["commands_forged"], &status["commands_refused"]), (&1.into(), &4.into()));
    // A flood of replays ends the connection; each was answered, none obeyed.
    for _ in 0..20 {
        world.send(&mut link, &world.command(4)).await;
    }
    let mut answers = 0;
    while world.answer(&mut link).await.is_some() {
        answers += 1;
    }
    assert!(answers <= 16, "{answers}");
    let (mut link, hello) = world.gateway.session(6).await;
    assert_eq!(hello.command_cursor, 4);
    // The sequence of reports goes on without a gap.
    for n in 7..=22 {
        assert_eq!(world.answer(&mut link).await, Some((n, 4, Some(RefusalReason::Replayed))));
    }
}

#[tokio::test]
async fn what_is_ordered_for_backups_is_checked_stored_and_done() {
    const JOB: JobId = JobId([1; 16]);
    let (mut world, agent) = World::new().await;
    let tree = world.home.path().join("tree");
    std::fs::create_dir(&tree).expect("room");
    std::fs::write(tree.join("file"), "content").expect("room");
    let path = |path: &std::path::Path| path.as_os_str().as_encoded_bytes().to_vec();
    let (mut link, _) = world.gateway.session(0).await;
    let watched = WatchedFolder { path: path(&tree), quiet_seconds: 1, pause_minutes: 1 };
    let watch = |sequence, folder| Command {
        body: WatchBackup { job: JOB, folder }.into(),
        ..world.command(sequence)
    };
    let first = watch(1, Some(watched));
    let last = watch(6, None);
    let shelf = world.home.path().join("no shelf");
    let thin = |sequence, versions: usize| {
        let versions = (0..versions).map(|_| "2026-11-23T013000Z".to_owned()).collect();
        let thin = ThinBackup { job: JOB, source: world.agent(), path: path(&shelf), versions };
        Command { body: thin.into(), ..world.command(sequence) }
    };
    let (few, many) = (thin(2, 1), thin(3, THINNED_MAX + 1));
    let CommandBody::JoinRun(join) = world.join(4, b"in").body else { panic!("it is one") };
    let ask = |sequence, options, purpose| {
        let part = TakePart { join: join.clone(), keeping: false, options, purpose };
        Command { body: part.into(), ..world.command(sequence) }
    };
    let rules = vec![String::new(); event_schema::OPTION_RULES_MAX + 1];
    let rules = ask(4, RunOptions { rules, ..RunOptions::default() }, Purpose::Plain);
    let no_version = ask(5, RunOptions::default(), Purpose::Version { name: "../../etc".into() });

    world.send(&mut link, &first).await;
    world.send(&mut link, &few).await;
    let (mut accepted, mut changed, mut thinned) = (0, 0, None);
    while changed == 0 || thinned.is_none() {
        match link.report(&world.public_key).await.expect("a report").1 {
            ReportBody::CommandAccepted(command) => accepted = command.sequence,
            ReportBody::SourceChanged(report) => {
                assert_eq!(report.job, JOB);
                changed += 1;
            }
            ReportBody::Thinned(report) => thinned = Some(report),
            other => panic!("{other:?}"),
        }
    }
    let failed = NotThinned { version: "2026-11-23T013000Z".into(), why: ThinObstacle::NoShelf };
    let thinned = thinned.expect("told");
    assert_eq!((accepted, thinned.removed, thinned.failed), (2, vec![], vec![failed]));
    // Nothing of it was stored by the service, and the agent is killed: all comes again, and what is watched is.
    agent.kill().await;
    let agent = world.home.start(&[]);
    let (mut link, _) = world.gateway.session(0).await;
    for sequence in 1..=4 {
        assert_eq!(link.report(&world.public_key).await.expect("kept").0, sequence);
    }
    link.stored(4).await;
    assert_eq!(world.home.status_json().await["watched_folders"], 1);
    for (command, sequence) in [(&many, 3), (&rules, 4), (&no_version, 5)] {
        world.send(&mut link, command).await;
        let answer = world.answer(&mut link).await.expect("an answer");
        assert_eq!((answer.1, answer.2), (sequence, Some(RefusalReason::NotAllowed)));
    }
    world.send(&mut link, &last).await;
    assert_eq!(world.answer(&mut link).await.map(|answer| answer.2), Some(None));
    soon("no watch", async {
        while world.home.status_json().await["watched_folders"] != 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    agent.kill().await;
    let _agent = world.home.start(&[]);
    world.gateway.session(0).await;
    assert_eq!(world.home.status_json().await["watched_folders"], 0);
}

#[tokio::test]
async fn reports_wait_until_they_are_stored() {
    let (mut world, agent) = World::new().await;
    let (mut link, _) = world.gateway.session(0).await;
    for sequence in 1..=3 {
        world.send(&mut link, &world.command(sequence)).await;
        assert_eq!(world.answer(&mut link).await, Some((sequence, sequence, None)));
    }
    assert_eq!(world.home.status_json().await["outbox"], 3);
    // Not answered: they come again, over a link and over a restart.
    drop(link);
    let (mut link, _) = world.gateway.session(0).await;
    for sequence in 1..=3 {
        assert_eq!(world.answer(&mut link).await, Some((sequence, sequence, None)));
    }
    agent.kill().await;
    let _agent = world.home.start(&[]);
    let (mut link, _) = world.gateway.session(1).await;
    for sequence in 2..=3 {
        assert_eq!(world.answer(&mut link).await, Some((sequence, sequence, None)));
    }
    link.stored(3).await;
    world.send(&mut link, &world.command(4)).await;
    assert_eq!(world.answer(&mut link).await, Some((4, 4, None)));
    link.stored(4).await;
    soon("an empty outbox", async {
        while world.home.status_json().await["outbox"] != 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // A service that lost its log's end gets what comes next, and one that knows more than we ever
    // said gets numbers above.
    drop(link);
    let (mut link, _) = world.gateway.session(2).await;
    world.send(&mut link, &world.command(5)).await;
    assert_eq!(world.answer(&mut link).await, Some((5, 5, None)));
    drop(link);
    let (mut link, _) = world.gateway.session(90).await;
    assert_eq!(world.answer(&mut link).await, Some((91, 5, None)));
}

#[tokio::test]
async fn an_enrolled_agent_needs_no_bootstrap_file() {
    let (mut world, agent) = World::new().await;
    let (link, _) = world.gateway.session(0).await;
    let (code, log) = agent.terminate().await;
    assert_eq!(code, Some(0), "{log}");
    drop(link);
    // Another fleet's invitation does not lead it astray.
    world.home.invite("127.0.0.1:9", &Fleet::new(2).fingerprint(), Some(TOKEN));
    let agent = world.home.start(&[]);
    let (_link, hello) = world.gateway.session(0).await;
    assert!(hello.addresses.iter().any(|a| a.starts_with("127.0.0.1:") && !a.ends_with(":0")), "{hello:?}");
    assert!(agent.log().contains("bootstrap file is ignored"));
    // One process per folder.
    let (code, log) = world.home.start(&[]).end().await;
    assert_eq!(code, Some(1));
    assert!(log.contains("another flotilla-agent runs on"), "{log}");
    // The link counts as up once what the welcome told is on disk, which may take a while.
    let mut status = world.home.status_json().await;
    for _ in 0..200 {
        if status["connected"] == true {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
        status = world.home.status_json().await;
    }
    assert_eq!((&status["connected"], &status["name"]), (&true.into(), &"camera 7".into()));
    assert_eq!(status["agent"], world.agent().to_string());
    let shown = String::from_utf8(world.home.status(false).await.stdout).expect("text");
    assert!(shown.contains("connected to"), "{shown}");
    assert_eq!(agent.terminate().await.0, Some(0));
    let gone = world.home.status(true).await;
    assert_eq!(gone.status.code(), Some(1));
    // A new invitation of its own fleet tells where the gateway is now.
    drop(world.gateway);
    let moved = Gateway::start(&world.fleet).await;
    world.home.invite(&moved.address.to_string(), &world.fleet.fingerprint(), Some(TOKEN));
    let agent = world.home.start(&[]);
    let (link, _) = moved.session(0).await;
    assert_eq!(agent.terminate().await.0, Some(0));
    drop(link);
    world.home.invite("127.0.0.1:9", &Fleet::new(2).fingerprint(), None);
    let _agent = world.home.start(&[]);
    moved.session(0).await;
}

#[tokio::test]
async fn a_removed_agent_stops_and_says_so() {
    let (mut world, agent) = World::new().await;
    let (mut link, _) = world.gateway.session(0).await;
    link.send(refused(RefusalReason::Removed)).await;
    let (code, log) = agent.end().await;
    assert_eq!(code, Some(1));
    assert!(log.contains("was removed from its fleet"), "{log}");
    // Started again it asks, and hears the same.
    let agent = world.home.start(&[]);
    let mut link = world.gateway.accept().await;
    link.hello().await;
    link.send(refused(RefusalReason::Removed)).await;
    assert_eq!(agent.end().await.0, Some(1));
}

#[tokio::test]
async fn a_gateway_out_of_its_mind_is_left_and_tried_again() {
    let (world, agent) = World::new().await;
    let (mut link, _) = world.gateway.session(0).await;
    link.send_bytes(&[255; 64]).await;
    assert_eq!(link.receive().await, None);
    let (mut link, _) = world.gateway.session(0).await;
    link.send_bytes(&[8, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9]).await;
    assert_eq!(link.receive().await, None);
    // A second welcome is out of place.
    let (mut link, _) = world.gateway.session(0).await;
    link.send(Welcome { time: now(), reports_stored: 0, trust: None }).await;
    assert_eq!(link.receive().await, None);
    // Another fleet on the same address does not get a certificate, let alone a report.
    let address = world.gateway.address;
    drop(world.gateway);
    let imposter = Gateway::start_at(&Fleet::new(2), address).await;
    assert!(imposter.try_accept().await.is_err());
    drop(imposter);
    let gateway = Gateway::start_at(&world.fleet, address).await;
    gateway.session(0).await;
    assert!(agent.log().contains("does not lead to the pinned certificate authority"));
}

#[tokio::test]
async fn new_keys_are_taken_and_old_ones_never_again() {
    let (mut world, agent) = World::new().await;
    let successor = SigningKey::from_bytes(&[50; 32]);
    let newer = TrustBundle {
        version: 2,
        command_keys: vec![successor.verifying_key().to_bytes()],
        ..world.fleet.trust.clone()
    };
    let welcome = |trust| Welcome { time: now(), reports_stored: 0, trust: Some(trust) };
    let mut link = world.gateway.accept().await;
    assert_eq!(link.hello().await.trust_version, 1);
    // Signed by somebody else: as if it had not been sent.
    let foreign = Fleet::new(2);
    link.send(welcome(
        foreign.signed_trust(&TrustBundle { root_key: foreign.trust.root_key, ..newer.clone() }),
    ))
    .await;
    world.send(&mut link, &world.command(1)).await;
    assert_eq!(world.answer(&mut link).await, Some((1, 1, None)));
    drop(link);
    let mut link = world.gateway.accept().await;
    assert_eq!(link.hello().await.trust_version, 1);
    link.send(welcome(world.fleet.signed_trust(&newer))).await;
    link.command(world.command(2).sign(&successor)).await;
    while let Some((_, sequence, refusal)) = world.answer(&mut link).await {
        assert_eq!(refusal, None);
        if sequence == 2 {
            break;
        }
    }
    agent.kill().await;
    let _agent = world.home.start(&[]);
    let mut link = world.gateway.accept().await;
    assert_eq!(link.hello().await.trust_version, 2);
    link.send(welcome(world.fleet.signed_trust(&world.fleet.trust.clone()))).await;
    // The old key, once good, is not any more.
    world.send(&mut link, &world.command(3)).await;
    while world.answer(&mut link).await.is_some() {}
    let (_link, hello) = world.gateway.session(0).await;
    assert_eq!((hello.command_cursor, hello.trust_version), (2, 2));
}

#[tokio::test]
async fn an_expired_certificate_is_replaced_without_an_operator() {
    let (mut world, agent) = World::new().await;
    let (mut link, _) = world.gateway.session(0).await;
    // Renewal in time, over the link; this one ended a month ago.
    link.send(world.fleet.admit(&world.public_key, 335)).await;
    world.send(&mut link, &world.command(1)).await;
    assert_eq!(world.answer(&mut link).await, Some((1, 1, None)));
    agent.kill().await;
    let _agent = world.home.start(&[]);
    assert!(world.gateway.try_accept().await.is_err(), "TLS refuses it");
    let mut link = world.gateway.accept().await;
    let enrol = link.enrol().await;
    assert_eq!((enrol.public_key, enrol.token.as_deref()), (world.public_key, None));
    assert!(enrol.proof_holds(&NONCE));
    link.send(world.fleet.admit(&world.public_key, 4000)).await;
    let (_link, hello) = world.gateway.session(0).await;
    assert_eq!(hello.command_cursor, 1);
}

#[tokio::test]
async fn the_owner_decides_what_jobs_may_touch() {
    let fleet = Fleet::new(1);
    let gateway = Gateway::start(&fleet).await;
    let mut home = Home::new();
    home.invite(&gateway.address.to_string(), &fleet.fingerprint(), Some(TOKEN));
    let allowed = home.path().join("allowed");
    std::fs::create_dir(&allowed).expect("made");
    let config = home.path().join("agent.toml");
    std::fs::write(&config, format!("allowed_paths = [{allowed:?}]\nlan = false\n")).expect("written");
    let _agent = home.start(&["--config", config.to_str().expect("UTF-8")]);
    let mut link = gateway.accept().await;
    let public_key = link.enrol().await.public_key;
    link.send(fleet.admit(&public_key, 4000)).await;
    let world = World { fleet, gateway, home, public_key };
    let (mut link, _) = world.gateway.session(0).await;
    let outside =
        [b"/etc".to_vec(), b"in".to_vec(), [allowed.as_os_str().as_encoded_bytes(), b"/../x"].concat()];
    for (sequence, path) in (1..).zip(outside) {
        world.send(&mut link, &world.join(sequence, &path)).await;
        let answer = world.answer(&mut link).await.expect("an answer");
        assert_eq!((answer.1, answer.2), (sequence, Some(RefusalReason::NotAllowed)), "{path:?}");
    }
    let inside = allowed.join("media");
    world.send(&mut link, &world.join(4, inside.as_os_str().as_encoded_bytes())).await;
    let answer = world.answer(&mut link).await.expect("an answer");
    assert_eq!((answer.1, answer.2), (4, None));
}
