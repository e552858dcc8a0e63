//! Decisions about agents, tokens, groups and jobs, as rows of given, when, then.

mod support;

use control_core::agent::{self, Answer, Command};
use control_core::replica::Session;
use control_core::{Rejection, audit, group, job, token};
use event_schema::*;
use support::*;

fn approved(name: &str) -> Answer {
    Answer::Approved { name: name.into() }
}

#[test]
fn a_token_lets_in_whom_it_is_meant_for() {
    let good = |n: u8| Some((TokenId(id(n)), [n; 32]));
    type Given = fn(&mut World);
    type Shown = Option<(TokenId, [u8; 32])>;
    let none: Given = |_| ();
    let cases: Vec<(&str, Given, Shown, Answer)> = vec![
        ("no token", none, None, Answer::Pending),
        ("unknown", none, good(9), Answer::Refused(RefusalReason::UnknownToken)),
        ("good", none, good(1), approved("named-1")),
        ("wrong secret", none, Some((TokenId(id(1)), [2; 32])), Answer::Refused(RefusalReason::UnknownToken)),
        (
            "spent",
            |w| assert_eq!(w.enrol(8, "other", Some((TokenId(id(1)), [1; 32]))), approved("named-1")),
            good(1),
            Answer::Refused(RefusalReason::TokenSpent),
        ),
        (
            "expired",
            |w| w.now = Timestamp(NOW.0 + 1001),
            good(1),
            Answer::Refused(RefusalReason::TokenExpired),
        ),
        ("just not expired", |w| w.now = Timestamp(NOW.0 + 1000), good(1), approved("named-1")),
        (
            "revoked",
            |w| {
                let command = token::Command::Revoke { token: TokenId(id(1)) };
                w.must(|s| token::decide(s, command, NOW));
            },
            good(1),
            Answer::Refused(RefusalReason::TokenExpired),
        ),
        (
            "approved before: one fact",
            |w| assert_eq!(w.enrol(5, "x", Some((TokenId(id(1)), [1; 32]))), approved("named-1")),
            None,
            approved("named-1"),
        ),
        (
            "waiting, then with a token",
            |w| assert_eq!(w.enrol(5, "x", None), Answer::Pending),
            good(1),
            approved("named-1"),
        ),
        (
            "removed",
            |w| {
                w.enrol(5, "x", None);
                w.must(|s| agent::decide(s, Command::Remove { agent: agent_id(5) }));
            },
            good(1),
            Answer::Refused(RefusalReason::Removed),
        ),
    ];
    for (what, given, shown, expected) in cases {
        let mut world = World::new();
        world.create_token(1, 1, 1000).expect("a token");
        given(&mut world);
        assert_eq!(world.enrol(5, "five", shown), expected, "{what}");
        let records = world.records.len();
        assert_eq!(world.enrol(5, "five", shown), expected, "{what}, asked again");
        assert_eq!(world.records.len(), records, "{what}: asking twice is one fact");
    }
}

#[test]
fn counted_tokens_and_their_tags() {
    let mut world = World::new();
    world.create_token(1, 3, 1000).expect("a token");
    let token = Some((TokenId(id(1)), [1; 32]));
    let names: Vec<Answer> = (1..=4).map(|n| world.enrol(n, "own name", token)).collect();
    assert_eq!(names[..3], [approved("named-1"), approved("named-1-2"), approved("named-1-3")]);
    assert_eq!(names[3], Answer::Refused(RefusalReason::TokenSpent));
    // The token's tags win over the agent's own.
    let mut wish = enrolment(7, "x", None);
    wish.tags = vec![("agent_name".into(), "mine".into()), ("site".into(), "b".into())];
    let (events, _) = agent::enrol(&world.state, &wish, world.now);
    let Event::AgentEnrolled(e) = &events[0] else { panic!("{events:?}") };
    assert_eq!(*e.tags, [("AGENT_NAME".into(), "mine".into()), ("SITE".into(), "b".into())]);
    for (uses, lives) in [(0, 1000), (100_001, 1000), (1, 0)] {
        assert!(matches!(world.create_token(2, uses, lives), Err(Rejection::Invalid(_))));
    }
    assert_eq!(world.create_token(1, 3, 1000), Ok(vec![]), "the same token again");
}

#[test]
fn names_are_unique_and_tame() {
    let mut world = World::new();
    for (n, wish) in [(1, "nas"), (2, "nas"), (3, "nas:\n/"), (4, ""), (5, "nas")] {
        world.enrol(n, wish, None);
    }
    let name = |n: u8| world.state.agent_name(agent_id(n)).expect("enrolled").to_string();
    assert_eq!([1, 2, 3, 4, 5].map(name), ["nas", "nas-2", "nas---", "agent", "nas-3"]);
    world.must(|s| agent::decide(s, Command::Remove { agent: agent_id(1) }));
    world.enrol(6, "nas", None);
    assert_eq!(world.state.agent_name(agent_id(6)), Some("nas"), "a removed agent's name is free");
}

#[test]
fn strangers_are_limited() {
    let mut world = World::new();
    for n in 0..1_100u32 {
        let mut seed = [0; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        let public_key = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key().to_bytes();
        let wish = agent::Enrolment {
            agent: AgentId::of_key(&public_key),
            public_key,
            ..enrolment(1, "stranger", None)
        };
        let (events, answer) = agent::enrol(&world.state, &wish, world.now);
        let expected = if n < 1_000 { Answer::Pending } else { Answer::Refused(RefusalReason::NotAllowed) };
        assert_eq!(answer, expected, "{n}");
        world.happen(events);
    }
}

#[test]
fn presence() {
    let mut world = World::with_agents(1);
    let connected = |addresses: &[&str], version: &str| Command::Connected {
        agent: agent_id(1),
        session: Session::ALONE,
        addresses: addresses.iter().map(ToString::to_string).collect(),
        version: version.into(),
    };
    let gone =
        || Command::Disconnected { agent: agent_id(1), session: Session::ALONE, reason: "a\nb".into() };
    let cases = [
        (connected(&["192.0.2.1:5000"], "0.1.0"), vec![]),
        (connected(&["192.0.2.9:5000"], "0.1.0"), vec!["agent.online"]),
        (connected(&["192.0.2.9:5000"], "0.2.0"), vec!["agent.online"]),
        (gone(), vec!["agent.offline"]),
        (gone(), vec![]),
        (connected(&["192.0.2.9:5000"], "0.2.0"), vec!["agent.online"]),
    ];
    for (command, expected) in cases {
        let events = world.must(|s| agent::decide(s, command.clone()));
        assert_eq!(kinds(&events), expected, "{command:?}");
    }
    assert_eq!(kinds(&agent::service_restarted(&world.state)), ["agent.offline"]);
    world.enrol(2, "waiting", None);
    world.must(|s| agent::decide(s, Command::Remove { agent: agent_id(1) }));
    for (n, reason) in
        [(1, RefusalReason::Removed), (2, RefusalReason::NotAllowed), (3, RefusalReason::NotAllowed)]
    {
        let command = Command::Connected {
            agent: agent_id(n),
            session: Session::ALONE,
            addresses: vec![],
            version: String::new(),
        };
        let refused = agent::decide(&world.state, command).expect_err("refused");
        assert!(matches!(refused, Rejection::Refused { reason: r, .. } if r == reason), "{n}");
    }
    assert!(agent::service_restarted(&world.state).is_empty());
}

#[test]
fn removal_is_for_good_and_reaches_groups_and_runs() {
    let mut world = World::with_run(3);
    world.create_group(1, &[2, 3]);
    let remove = || Command::Remove { agent: agent_id(2) };
    let events = world.must(|s| agent::decide(s, remove()));
    assert_eq!(
        kinds(&events),
        ["agent.removed", "group.members_removed", "run.problem_reported", "run.agent_progressed"]
    );
    assert_eq!(progressed(&events, 2), Some(RunAgentState::Failed));
    assert_eq!(world.must(|s| agent::decide(s, remove())), []);
    assert!(matches!(
        agent::decide(&world.state, Command::Approve { agent: agent_id(2) }),
        Err(Rejection::Conflict(_))
    ));
    assert!(matches!(
        agent::decide(&world.state, Command::Remove { agent: agent_id(9) }),
        Err(Rejection::Unknown { .. })
    ));
    // The last destination ends: the run has failed for the removed one.
    let events = world.says(3, vec![completed(1, RunAgentState::Done)]);
    assert_eq!(outcome(&events), Some(Outcome::Failed));
    assert!(world.views.mailboxes.after(agent_id(2), 0, 9).is_empty());
}

#[test]
fn tags_are_replaced_as_a_whole() {
    let mut world = World::with_agents(1);
    let tag = |tags: &[(&str, &str)]| Command::Tag {
        agent: agent_id(1),
        tags: tags.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
    };
    assert_eq!(kinds(&world.must(|s| agent::decide(s, tag(&[("site", "a")])))), ["agent.tagged"]);
    assert_eq!(world.must(|s| agent::decide(s, tag(&[("SITE", "a")]))), []);
    assert!(agent::decide(&world.state, tag(&[("", "a")])).is_err());
}

#[test]
fn groups() {
    let mut world = World::with_agents(3);
    world.create_group(1, &[1, 2]);
    let group = GroupId(id(1));
    let add =
        |agents: &[u8]| group::Command::Add { group, agents: agents.iter().map(|n| agent_id(*n)).collect() };
    let remove = |agents: &[u8]| group::Command::Remove {
        group,
        agents: agents.iter().map(|n| agent_id(*n)).collect(),
    };
    assert_eq!(world.must(|s| group::decide(s, add(&[1, 2]))), []);
    let events = world.must(|s| group::decide(s, add(&[3, 1, 3])));
    assert_eq!(events, [GroupMembersAdded { group, agents: vec![agent_id(3)] }.into()]);
    assert_eq!(world.must(|s| group::decide(s, remove(&[9]))), []);
    assert_eq!(kinds(&world.must(|s| group::decide(s, remove(&[1])))), ["group.members_removed"]);
    assert!(matches!(group::decide(&world.state, add(&[9])), Err(Rejection::Unknown { .. })));
    let create = |n: u8, name: &str| group::Command::Create { group: GroupId(id(n)), name: name.into() };
    assert_eq!(group::decide(&world.state, create(1, "group-1")), Ok(vec![]));
    assert!(matches!(group::decide(&world.state, create(2, "group-1")), Err(Rejection::Conflict(_))));
    assert!(matches!(group::decide(&world.state, create(2, "a:b")), Err(Rejection::Invalid(_))));
}

#[test]
fn jobs_name_places_that_exist_once() {
    let mut world = World::with_agents(3);
    world.create_group(1, &[2, 3]);
    world.enrol(4, "gone", None);
    world.must(|s| agent::decide(s, Command::Remove { agent: agent_id(4) }));
    let group = |n: u8| Party::Group(GroupId(id(n)));
    let bad = [
        ("a group as source", distribution(place(group(1), "a"), &[at(2, "b")])),
        ("no destination", distribution(at(1, "a"), &[])),
        ("the source as destination", distribution(at(1, "a"), &[at(1, "b")])),
        ("twice", distribution(at(1, "a"), &[at(2, "b"), at(2, "b")])),
        ("a group twice", distribution(at(1, "a"), &[place(group(1), "b"), place(group(1), "c")])),
        ("unknown agent", distribution(at(9, "a"), &[at(2, "b")])),
        ("unknown group", distribution(at(1, "a"), &[place(group(9), "b")])),
        ("removed agent", distribution(at(1, "a"), &[at(4, "b")])),
        ("empty path", distribution(at(1, ""), &[at(2, "b")])),
        ("NUL in a path", distribution(at(1, "a"), &[at(2, "b\0")])),
        ("too many", distribution(at(1, "a"), &vec![at(2, "b"); 1_001])),
    ];
    for (what, spec) in bad {
        assert!(world.create_job(1, spec).is_err(), "{what}");
    }
    let good = distribution(at(1, "a"), &[at(2, "b"), place(group(1), "b")]);
    assert_eq!(kinds(&world.create_job(1, good.clone()).expect("a job")), ["job.created"]);
    assert_eq!(world.create_job(1, good.clone()), Ok(vec![]), "the same job again");
    let other = distribution(at(1, "x"), &[at(2, "b")]);
    assert!(matches!(world.create_job(1, other), Err(Rejection::Conflict(_))));
    let create = job::Command::Create { job: JobId(id(2)), name: "job-1".into(), spec: good };
    assert!(matches!(job::decide(&world.state, create), Err(Rejection::Conflict(_))));
}

#[test]
fn jobs_are_deleted_when_nothing_runs() {
    let mut world = World::with_run(2);
    let delete = || job::Command::Delete { job: JobId(id(1)) };
    assert!(matches!(job::decide(&world.state, delete()), Err(Rejection::Conflict(_))));
    world.stop(1);
    assert_eq!(kinds(&world.must(|s| job::decide(s, delete()))), ["job.deleted"]);
    assert!(matches!(job::decide(&world.state, delete()), Err(Rejection::Unknown { .. })));
    assert_eq!(world.views.runs.runs[&RunId(id(1))].job_name.as_str(), "job-1", "its runs stay");
}

#[test]
fn a_conflict_of_history_is_recorded_once_per_witness_and_head() {
    let mut world = World::with_agents(2);
    let found = |witness: Option<u8>, n: u8| AuditConflict {
        witness: witness.map(agent_id),
        held_size: u64::from(n),
        held_root: [n; 32],
        held_note: "a signed note".into(),
        log_size: 3,
        log_root: [9; 32],
    };
    let mut recorded = 0;
    let mut tell = |world: &mut World, what: AuditConflict, new: bool| {
        let before = world.records.len();
        world.must(|s| audit::conflict(s, &what));
        assert_eq!(world.records.len() > before, new, "{what:?}");
        recorded += usize::from(new);
        assert_eq!(world.views.conflicts.conflicts.len(), recorded);
    };
    tell(&mut world, found(Some(1), 7), true);
    tell(&mut world, found(Some(1), 7), false);
    // The log has grown meanwhile, the conflict is the same.
    tell(&mut world, AuditConflict { log_size: 4, ..found(Some(1), 7) }, false);
    tell(&mut world, found(Some(2), 7), true);
    tell(&mut world, found(None, 7), true);
    for n in 8..15 {
        tell(&mut world, found(Some(1), n), true);
    }
    tell(&mut world, found(Some(1), 15), false);
    let stranger = audit::conflict(&world.state, &found(Some(9), 7));
    assert!(matches!(stranger, Err(Rejection::Unknown { .. })), "{stranger:?}");
    assert_eq!(world.views.conflicts.conflicts[0].held, (7, [7; 32]));
}
