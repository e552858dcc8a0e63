//! Runs from start to outcome: participants, commands, reports.

mod support;

use control_core::plan::{self, Task};
use control_core::{Rejection, agent, report, run};
use event_schema::*;
use support::*;

use RunAgentState::{
    Accepted, Done, DoneWithErrors, Failed, Finalizing, Indexing, Serving, Stalled, Stopped, Transferring,
    Waiting,
};

const RUN: RunId = RunId([1; 16]);

#[test]
fn participants_are_resolved_at_the_start() {
    let mut world = World::with_agents(4);
    world.enrol(5, "waiting", None);
    world.create_group(1, &[1, 2, 3]);
    world.create_group(2, &[3, 4, 5]);
    world.create_group(3, &[1]);
    let group = |n: u8, path: &str| place(Party::Group(GroupId(id(n))), path);
    type Expected = Result<Vec<u8>, ()>;
    let cases: Vec<(&str, Vec<Place>, Expected)> = vec![
        ("agents", vec![at(2, "b"), at(4, "c")], Ok(vec![2, 4])),
        ("a group without its source", vec![group(1, "b")], Ok(vec![2, 3])),
        ("overlapping groups, same path; one waits", vec![group(1, "b"), group(2, "b")], Ok(vec![2, 3, 4])),
        ("overlapping groups, two paths", vec![group(1, "b"), group(2, "c")], Err(())),
        ("agent and group, same path", vec![at(2, "b"), group(1, "b")], Ok(vec![2, 3])),
        ("agent and group, two paths", vec![at(2, "x"), group(1, "b")], Err(())),
        ("nobody left", vec![group(3, "b")], Err(())),
        ("not approved", vec![at(5, "b")], Err(())),
    ];
    for (n, (what, destinations, expected)) in (1..).zip(cases) {
        world.create_job(n, distribution(at(1, "a"), &destinations)).expect(what);
        let started = world.start(n, n);
        let found = started.map_err(drop).map(|events| {
            let [Event::RunStarted(e)] = &events[..] else { panic!("{what}: {events:?}") };
            assert_eq!((e.participants[0].agent, e.participants[0].role), (agent_id(1), Role::Source));
            let mut found: Vec<AgentId> = e.participants[1..].iter().map(|p| p.agent).collect();
            found.sort();
            found
        });
        let expected = expected.map(|list| {
            let mut list: Vec<AgentId> = list.into_iter().map(agent_id).collect();
            list.sort();
            list
        });
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn a_job_runs_once_at_a_time() {
    let mut world = World::with_run(2);
    assert_eq!(world.start(1, 1), Ok(vec![]), "the same run again");
    assert!(matches!(world.start(2, 1), Err(Rejection::Conflict(_))));
    assert!(matches!(world.start(2, 9), Err(Rejection::Unknown { .. })));
    world.stop(1);
    assert_eq!(kinds(&world.start(2, 1).expect("a run")), ["run.started"]);
    world.must(|s| agent::decide(s, agent::Command::Remove { agent: agent_id(2) }));
    world.stop(2);
    assert!(matches!(world.start(3, 1), Err(Rejection::Conflict(_))), "its destination was removed");
}

#[test]
fn everybody_is_told_once_who_takes_part() {
    let mut world = World::with_run(3);
    let orders: Vec<Command> = (1..=3)
        .map(|n| {
            let mail = world.views.mailboxes.after(agent_id(n), 0, 9);
            assert_eq!(mail.len(), 1);
            Command::decode(&mail[0].1.bytes).expect("a command")
        })
        .collect();
    for (n, command) in (1..).zip(&orders) {
        assert_eq!((command.audience, command.sequence), (agent_id(n), 1));
        let CommandBody::JoinRun(join) = &command.body else { panic!("{command:?}") };
        assert_eq!(join.role, if n == 1 { Role::Source } else { Role::Destination });
        assert_eq!(
            (join.source, join.path.as_slice()),
            (agent_id(1), if n == 1 { &b"out"[..] } else { b"in" })
        );
        assert_eq!(join.peers.len(), 3);
        let hint = join.peers.iter().find(|peer| peer.agent == agent_id(2)).expect("a hint");
        assert_eq!(hint.public_key, key(2).verifying_key().to_bytes());
        assert_eq!(hint.addresses, ["192.0.2.2:5000"]);
    }
    assert!(world.issue(1).is_empty(), "nothing is outstanding any more");
    assert!(plan::orders(&world.state, RunId(id(9)), 9).is_empty());
}

#[test]
fn a_distribution_from_start_to_success() {
    let mut world = World::with_run(3);
    for n in 1..=3 {
        let accepted = world.accepts(n);
        let events = world.says(n, vec![accepted]);
        assert_eq!(kinds(&events), ["command.acknowledged", "run.agent_progressed"]);
        assert_eq!(progressed(&events, n), Some(Accepted));
    }
    let events = world.says(1, vec![state(1, Indexing), manifest(1), state(1, Serving)]);
    assert_eq!(kinds(&events), ["run.agent_progressed", "run.manifest_ready", "run.agent_progressed"]);
    for n in [2, 3] {
        let events =
            world.says(n, vec![state(1, Transferring), state(1, Transferring), state(1, Finalizing)]);
        assert_eq!(kinds(&events).len(), 2, "the same state twice is one fact");
    }
    assert_eq!(outcome(&world.says(2, vec![completed(1, Done)])), None);
    assert!(world.issue(1).is_empty(), "a destination that is done serves on");
    let events = world.says(3, vec![completed(1, Done)]);
    assert_eq!(kinds(&events), ["run.agent_progressed", "run.finished"]);
    assert_eq!(outcome(&events), Some(Outcome::Succeeded));
    let orders = world.issue(1);
    assert_eq!(orders.len(), 3);
    assert!(orders.iter().all(|order| order.task == Task::Finish && order.sequence == 2));
    // The last words: the source is done now, destinations only add numbers.
    let finish = world.accepts(1);
    let events = world.says(1, vec![finish, served(1)]);
    assert_eq!(kinds(&events), ["command.acknowledged", "run.agent_progressed"]);
    assert_eq!(progressed(&events, 1), Some(Done));
    let finish = world.accepts(2);
    assert_eq!(progressed(&world.says(2, vec![finish, served(1)]), 2), Some(Done));
    let view = &world.views.runs.runs[&RUN];
    assert_eq!(view.outcome, Some(Outcome::Succeeded));
    assert_eq!(view.agents[&agent_id(2)].stats.expect("stats").bytes_sent, 99);
    assert_eq!(view.manifest.expect("a manifest").bytes, 300);
    assert!(world.issue(1).is_empty());
}

#[test]
fn the_source_may_tell_of_its_manifest_after_the_end() {
    let mut world = World::with_run(2);
    assert_eq!(outcome(&world.says(2, vec![completed(1, Done)])), Some(Outcome::Succeeded));
    assert_eq!(kinds(&world.says(1, vec![manifest(1)])), ["run.manifest_ready"]);
    assert!(kinds(&world.says(1, vec![manifest(1)])).is_empty(), "once is enough");
    assert_eq!(world.views.runs.runs[&RUN].manifest.expect("a manifest").bytes, 300);
}

#[test]
fn outcomes() {
    type Said = Vec<(u8, ReportBody)>;
    let cases: Vec<(&str, Said, Option<Outcome>)> = vec![
        ("one is missing", vec![(2, completed(1, Done))], None),
        ("a failure waits for the others", vec![(2, completed(1, Failed))], None),
        ("one failed", vec![(2, completed(1, Failed)), (3, completed(1, Done))], Some(Outcome::Failed)),
        (
            "one stopped by itself",
            vec![(2, completed(1, Stopped)), (3, completed(1, Done))],
            Some(Outcome::Failed),
        ),
        (
            "entries missing at one",
            vec![(2, completed(1, DoneWithErrors)), (3, completed(1, Done))],
            Some(Outcome::SucceededWithErrors),
        ),
        (
            "entries missing at the source",
            vec![(1, problem(1, "secret")), (2, completed(1, Done)), (3, completed(1, Done))],
            Some(Outcome::SucceededWithErrors),
        ),
        (
            "a problem that was overcome",
            vec![(2, problem(1, "x")), (2, completed(1, Done)), (3, completed(1, Done))],
            Some(Outcome::Succeeded),
        ),
        ("the source failed", vec![(1, state(1, Failed))], Some(Outcome::Failed)),
        (
            "the source failed when all was delivered",
            vec![(2, completed(1, Done)), (3, completed(1, Done)), (1, state(1, Failed))],
            Some(Outcome::Succeeded),
        ),
        (
            "an end that is none",
            vec![(2, completed(1, Stalled)), (3, completed(1, Done))],
            Some(Outcome::Failed),
        ),
        (
            "ends are final",
            vec![(2, completed(1, Failed)), (2, completed(1, Done)), (3, completed(1, Done))],
            Some(Outcome::Failed),
        ),
    ];
    for (what, reports, expected) in cases {
        let mut world = World::with_run(3);
        let mut found = None;
        for (n, body) in reports {
            let events = world.says(n, vec![body]);
            found = found.or(outcome(&events));
        }
        assert_eq!(found, expected, "{what}");
        assert_eq!(world.views.runs.runs[&RUN].outcome, expected, "{what}");
    }
}

#[test]
fn when_the_source_fails_the_others_are_stopped() {
    let mut world = World::with_run(3);
    world.says(2, vec![completed(1, Done)]);
    world.says(1, vec![state(1, Failed)]);
    let mut tasks: Vec<(AgentId, Task)> =
        world.issue(1).into_iter().map(|order| (order.agent, order.task)).collect();
    let mut expected =
        vec![(agent_id(1), Task::Finish), (agent_id(2), Task::Finish), (agent_id(3), Task::Stop)];
    tasks.sort_by_key(|(agent, _)| *agent);
    expected.sort_by_key(|(agent, _)| *agent);
    assert_eq!(tasks, expected);
    // What it says when it stops is recorded, the outcome stays.
    let events = world.says(3, vec![completed(1, Stopped)]);
    assert_eq!(progressed(&events, 3), Some(Stopped));
    assert_eq!(outcome(&events), None);
}

#[test]
fn a_stopped_run_is_over_and_its_agents_are_told() {
    let mut world = World::with_run(3);
    assert_eq!(kinds(&world.stop(1)), ["run.stop_requested", "run.finished"]);
    assert_eq!(world.stop(1), [], "asking twice is one fact");
    let orders = world.issue(1);
    assert!(orders.len() == 3 && orders.iter().all(|order| order.task == Task::Stop));
    let events = world.says(2, vec![completed(1, Done)]);
    assert_eq!((progressed(&events, 2), outcome(&events)), (Some(Done), None));
    assert_eq!(progressed(&world.says(1, vec![served(1)]), 1), Some(Stopped));
    let view = &world.views.runs.runs[&RUN];
    assert_eq!((view.outcome, view.stop_reason.as_deref()), (Some(Outcome::Stopped), Some("enough")));
    let unknown = run::Command::Stop { run: RunId(id(9)), reason: String::new() };
    assert!(matches!(run::decide(&world.state, unknown), Err(Rejection::Unknown { .. })));
}

#[test]
fn a_run_stopped_before_its_commands_needs_none() {
    let mut world = World::with_agents(2);
    world.create_job(1, distribution(at(1, "a"), &[at(2, "b")])).expect("a job");
    world.start(1, 1).expect("a run");
    assert!(plan::is_outstanding(&world.state, RUN));
    world.stop(1);
    assert!(world.issue(1).is_empty());
}

#[test]
fn a_refused_command_fails_its_agent_with_a_reason() {
    let mut world = World::with_run(3);
    let (sequence, command) = world.waiting(2);
    let refused: ReportBody = CommandRefused { command, sequence, reason: RefusalReason::NotAllowed }.into();
    let events = world.says(2, vec![refused.clone(), refused]);
    assert_eq!(kinds(&events), ["command.acknowledged", "run.problem_reported", "run.agent_progressed"]);
    assert_eq!(progressed(&events, 2), Some(Failed));
    let view = &world.views.runs.runs[&RUN];
    assert!(view.problems[0].text.detail.contains("does not allow"), "{:?}", view.problems);
    // The source's refusal ends everything.
    let (sequence, command) = world.waiting(1);
    let refused = CommandRefused { command, sequence, reason: RefusalReason::Expired }.into();
    assert_eq!(outcome(&world.says(1, vec![refused])), Some(Outcome::Failed));
}

#[test]
fn answers_to_commands_that_were_not_given_change_nothing() {
    let mut world = World::with_run(2);
    let (sequence, command) = world.waiting(2);
    let cases: Vec<ReportBody> = vec![
        CommandAccepted { command: CommandId(id(99)), sequence }.into(),
        CommandAccepted { command, sequence: 77 }.into(),
        CommandRefused { command: CommandId(id(99)), sequence, reason: RefusalReason::Expired }.into(),
    ];
    for body in cases {
        assert!(kinds(&world.says(2, vec![body.clone()])).is_empty(), "{body:?}");
    }
    let accepted: ReportBody = CommandAccepted { command, sequence }.into();
    assert_eq!(kinds(&world.says(2, vec![accepted.clone()])).len(), 2);
    assert!(kinds(&world.says(2, vec![accepted])).is_empty(), "answered before");
    // A refusal after the acceptance does not fail it any more.
    let late = CommandRefused { command, sequence, reason: RefusalReason::Replayed }.into();
    assert!(kinds(&world.says(2, vec![late])).is_empty());
}

#[test]
fn reports_come_once_and_in_order() {
    let mut world = World::with_run(2);
    let reports = world.reports(2, vec![state(1, Transferring), state(1, Finalizing), completed(1, Done)]);
    let decide =
        |world: &World, reports: &[(Report, Signed)]| report::decide(&world.state, agent_id(2), reports);
    assert_eq!(
        decide(&world, &reports[1..]),
        Err(Rejection::ReportGap { expected: 1, got: 2 }),
        "a gap at the beginning is refused"
    );
    let holes = [reports[0].clone(), reports[2].clone()];
    let events = decide(&world, &holes).expect("what comes before the gap is taken");
    assert_eq!(events.iter().filter(|e| e.name() == "report.received").count(), 1);
    world.happen(decide(&world, &reports[..2]).expect("taken"));
    assert_eq!(decide(&world, &reports[..2]), Ok(vec![]), "again: nothing new");
    let events = decide(&world, &reports).expect("the last one is new");
    assert_eq!(kinds(&events), ["run.agent_progressed", "run.finished"]);
    world.enrol(7, "waiting", None);
    for n in [7, 8] {
        assert!(matches!(report::decide(&world.state, agent_id(n), &[]), Err(Rejection::Refused { .. })));
    }
}

#[test]
fn reports_about_the_runs_of_others_are_kept_and_change_nothing() {
    let mut world = World::with_run(2);
    world.enrol(5, "outsider", None);
    world.must(|s| agent::decide(s, agent::Command::Approve { agent: agent_id(5) }));
    let before = world.views.runs.clone();
    let bodies =
        [completed(1, Done), state(1, Failed), manifest(1), problem(1, "x"), served(1), completed(9, Done)];
    for body in bodies {
        assert!(kinds(&world.says(5, vec![body])).is_empty());
    }
    assert_eq!(world.views.runs, before);
    assert_eq!(world.state.reports_stored(agent_id(5)), 6);
    // A destination signs no manifest.
    assert!(kinds(&world.says(2, vec![manifest(1)])).is_empty());
}

#[test]
fn problems_are_limited() {
    let mut world = World::with_run(2);
    let mut recorded = 0;
    for _ in 0..11 {
        let events = world.says(2, (0..100).map(|n| problem(1, &format!("file {n}"))).collect());
        recorded += kinds(&events).len();
    }
    assert_eq!(recorded, 1_000);
    let view = &world.views.runs.runs[&RUN];
    assert_eq!((view.problems.len(), view.agents[&agent_id(2)].problems), (100, 1_000));
    assert_eq!(view.problems[0].text.detail, "two lines");
    assert_eq!(view.agents[&agent_id(2)].state, Waiting);
}

#[test]
fn nobody_is_sent_to_folders_that_cannot_be_read() {
    let mut world = World::with_agents(2);
    world.create_job(1, distribution(at(1, "out"), &[at(2, "in")])).expect("a job");
    world.start(1, 1).expect("a run");
    assert!(plan::is_outstanding(&world.state, RUN));
    let shut = |state: &mut control_core::State| {
        let (subject, key) = (Subject::Job(JobId(id(1))), SubjectKey::new([7; 32]));
        state.private(&mut |field, owner, text| {
            if owner == Owner::Subject(subject) {
                text.seal(subject, &key, field, [1; 12]);
                text.shut(false);
            }
        });
    };
    shut(&mut world.state);
    assert!(!plan::is_outstanding(&world.state, RUN) && plan::orders(&world.state, RUN, 9).is_empty());
    world.stop(1);
    let Err(Rejection::Conflict(why)) = world.start(2, 1) else { panic!("started") };
    assert!(why.contains("missing"), "{why}");
}

#[test]
fn a_name_is_free_when_the_last_job_of_that_name_is_deleted() {
    let mut world = World::with_agents(2);
    let spec = || distribution(at(1, "out"), &[at(2, "in")]);
    let created =
        |n: u8, name: &str| JobCreated { job: JobId(id(n)), name: name.into(), spec: spec() }.into();
    // The second where the first one's name could not be read.
    world.happen(vec![created(1, "job-9"), created(2, "job-9")]);
    world.happen(vec![JobDeleted { job: JobId(id(1)) }.into()]);
    assert!(world.create_job(9, spec()).is_err(), "one has it yet");
    world.happen(vec![JobDeleted { job: JobId(id(2)) }.into()]);
    world.create_job(9, spec()).expect("it is free");
}
