//! Synchronizations: who takes part how, what members are told, what they tell, and that they have no end but being
//! stopped.

mod support;

use control_core::plan::{Order, Task};
use control_core::sync::{self, Command as Sync};
use control_core::{Rejection, agent, group, job, run};
use event_schema::*;
use support::*;

const ASIDE: Permission = Permission::ReadOnly { local: LocalChanges::KeepAside };
const REVERT: Permission = Permission::ReadOnly { local: LocalChanges::Revert };
const WRITE: Permission = Permission::ReadWrite;
const RUN: RunId = RunId([1; 16]);

/// Agents 1 to `count` at level 4.
fn world(count: u8) -> World {
    let mut world = World::with_agents(count);
    world.happen(vec![SchemaRaised { level: 4 }.into()]);
    world
}

/// The same with a run of agents 1, 2 (which may write) and 3 (which only receives), all of them at work.
fn at_work(count: u8) -> World {
    let mut w = world(count);
    let shares = [share(1, "/a", WRITE), share(2, "b", WRITE), share(3, "c", ASIDE)];
    w.create_job(1, synchronization(&shares)).expect("a job");
    w.start(1, 1).expect("a run");
    assert_eq!(w.issue(1).len(), 3);
    for n in 1..=3 {
        begin(&mut w, n);
    }
    w
}

/// Agent `n` takes its command and is at work.
fn begin(w: &mut World, n: u8) {
    let accepted = w.accepts(n);
    w.says(n, vec![accepted, state(1, RunAgentState::Indexing), state(1, RunAgentState::Synchronizing)]);
}

fn members(w: &mut World, add: &[Share], remove: &[Party]) -> Result<Vec<Event>, Rejection> {
    let (add, remove) = (add.to_vec(), remove.to_vec());
    w.decide(|s| sync::decide(s, Sync::Members { run: RUN, add, remove }))
}

fn party(n: u8) -> Party {
    Party::Agent(agent_id(n))
}

fn told(order: &Order) -> &control_core::plan::Synchronization {
    let Task::Synchronize(told) = &order.task else { panic!("{order:?}") };
    told
}

fn state_of(w: &World, n: u8) -> Option<RunAgentState> {
    w.views.runs.runs[&RUN].agents.get(&agent_id(n)).map(|part| part.state)
}

fn refused(result: Result<Vec<Event>, Rejection>, word: &str) {
    let message = result.expect_err(word).to_string();
    assert!(message.contains(word), "{message:?} does not say {word:?}");
}

#[test]
fn everybody_is_told_of_everybody() {
    let mut w = world(4);
    w.create_group(1, &[3, 4]);
    w.happen(vec![AgentRemoved { agent: agent_id(4) }.into()]);
    let wanted = Selection { ignore: vec!["*.tmp".into()], wanted: vec!["/docs".into()] };
    let shop = Share {
        party: Party::Group(GroupId(id(1))),
        path: "c".into(),
        permission: REVERT,
        selection: wanted.clone().into(),
    };
    let shares = [share(1, "/a", WRITE), share(2, "b", ASIDE), shop];
    w.create_job(1, synchronization(&shares)).expect("a job");
    let events = w.start(1, 1).expect("a run");
    assert_eq!(kinds(&events), ["run.started", "run.members_set"]);
    let orders = w.issue(1);
    let all: Vec<_> = orders.iter().map(|order| (order.agent, told(order).path.clone())).collect();
    let mut expected: Vec<_> =
        [(1, "/a"), (2, "b"), (3, "c")].map(|(n, path)| (agent_id(n), path.into())).to_vec();
    expected.sort();
    assert_eq!(all, expected);
    for order in &orders {
        let told = told(order);
        assert_eq!((told.revision, told.policy, told.job_name.as_str()), (1, SyncPolicy::default(), "job-1"));
        let permissions: Vec<_> = told.members.iter().map(|peer| (peer.agent, peer.permission)).collect();
        let mut expected = vec![(agent_id(1), WRITE), (agent_id(2), ASIDE), (agent_id(3), REVERT)];
        expected.sort();
        assert_eq!(permissions, expected);
        assert!(told.members.iter().all(|peer| !peer.addresses.is_empty()));
        let own = if order.agent == agent_id(3) { wanted.clone() } else { Selection::default() };
        assert_eq!(told.selection, own);
    }
    // Asked once.
    assert!(w.issue(1).is_empty());
    assert_eq!(w.start(1, 1), Ok(vec![]));
    refused(w.start(2, 1), "is active");
    assert_eq!(w.rebuilt().hash(), w.views.hash());
}

#[test]
fn it_has_no_end_until_it_is_stopped() {
    let mut w = at_work(3);
    for n in 1..=3 {
        assert_eq!(state_of(&w, n), Some(RunAgentState::Synchronizing));
    }
    // Nothing that a member says ends it: neither an end of its own nor a failure.
    for body in [
        completed(1, RunAgentState::Done),
        state(1, RunAgentState::Stopped),
        completed(1, RunAgentState::DoneWithErrors),
    ] {
        w.says(1, vec![body]);
        assert_eq!(state_of(&w, 1), Some(RunAgentState::Synchronizing));
    }
    let said = w.says(2, vec![state(1, RunAgentState::Failed)]);
    assert_eq!((progressed(&said, 2), outcome(&said)), (Some(RunAgentState::Failed), None));
    assert!(w.issue(1).is_empty(), "whoever failed is not asked again by itself");
    refused(w.decide(|s| job::decide(s, job::Command::Delete { job: JobId(id(1)) })), "is active");

    let said = w.stop(1);
    assert_eq!(outcome(&said), Some(Outcome::Stopped));
    let orders = w.issue(1);
    assert_eq!(orders.len(), 3);
    assert!(orders.iter().all(|order| order.task == Task::Stop));
    w.says(1, vec![served(1)]);
    assert_eq!(state_of(&w, 1), Some(RunAgentState::Stopped));
    refused(members(&mut w, &[share(3, "c", WRITE)], &[]), "was stopped");
    // What a member tells of it later is of no interest.
    let late = GuardRaised { run: RUN, guard: 1, missing: 30, total: 40 };
    assert_eq!(kinds(&w.says(3, vec![late.into()])), Vec::<&str>::new());
    // And it can begin again.
    assert_eq!(kinds(&w.start(2, 1).expect("a run")), ["run.started", "run.members_set"]);
}

#[test]
fn members_come_and_go_while_it_runs() {
    let mut w = at_work(4);
    // One more: everybody is told, with the next revision.
    let events = members(&mut w, &[share(4, "d", REVERT)], &[]).expect("set");
    assert_eq!(kinds(&events), ["run.members_set"]);
    let orders = w.issue(1);
    assert_eq!(orders.len(), 4);
    assert!(orders.iter().all(|order| told(order).revision == 2 && told(order).members.len() == 4));
    begin(&mut w, 4);
    // The same again is nothing.
    assert_eq!(members(&mut w, &[share(4, "d", REVERT)], &[]), Ok(vec![]));
    // Other rights keep the folder, and the state.
    members(&mut w, &[share(4, "d", WRITE)], &[]).expect("set");
    let orders = w.issue(1);
    assert!(orders.iter().all(|order| told(order).revision == 3));
    assert_eq!(state_of(&w, 4), Some(RunAgentState::Synchronizing));
    refused(members(&mut w, &[share(4, "e", WRITE)], &[]), "remove it first");

    // One less: it is told to stop, the others that it is gone.
    members(&mut w, &[], &[party(2)]).expect("set");
    refused(members(&mut w, &[share(2, "z", WRITE)], &[]), "try again in a moment");
    let orders = w.issue(1);
    assert_eq!(orders.len(), 4);
    for order in &orders {
        if order.agent == agent_id(2) {
            assert_eq!(order.task, Task::Stop);
        } else {
            assert!(told(order).members.iter().all(|peer| peer.agent != agent_id(2)));
        }
    }
    refused(members(&mut w, &[], &[party(2)]), "no member");
    // It comes back with another folder before it said that it has stopped: what it says of before does not count.
    members(&mut w, &[share(2, "z", WRITE)], &[]).expect("set");
    let orders = w.issue(1);
    let back = orders.iter().find(|order| order.agent == agent_id(2)).expect("asked again");
    assert_eq!((told(back).path.as_slice(), told(back).revision), (&b"z"[..], 5));
    w.says(2, vec![served(1), state(1, RunAgentState::Stopped)]);
    assert_eq!(state_of(&w, 2), Some(RunAgentState::Synchronizing));
    // At the end it is told to stop like the others.
    w.stop(1);
    assert_eq!(w.issue(1).len(), 4);
    assert_eq!(w.rebuilt().hash(), w.views.hash());
}

#[test]
fn who_left_and_stopped_is_forgotten() {
    let mut w = at_work(3);
    members(&mut w, &[], &[party(3)]).expect("set");
    w.issue(1);
    w.says(3, vec![served(1)]);
    assert_eq!(state_of(&w, 3), Some(RunAgentState::Stopped));
    // Nothing that it tells counts any more.
    let late = RolledBack { run: RUN };
    assert_eq!(kinds(&w.says(3, vec![late.into()])), Vec::<&str>::new());
    members(&mut w, &[share(1, "/a", WRITE), share(2, "b", ASIDE)], &[]).expect("set");
    assert_eq!(state_of(&w, 3), None);
    assert!(w.issue(1).iter().all(|order| order.agent != agent_id(3)));
}

#[test]
fn groups_are_resolved_when_they_are_named() {
    let mut w = at_work(5);
    w.create_group(1, &[3, 4, 5]);
    let group = Party::Group(GroupId(id(1)));
    let shop = |path: &str, permission| {
        let selection = Selection::default().into();
        Share { party: group, path: path.into(), permission, selection }
    };
    // Agent 3 has a folder already.
    refused(members(&mut w, &[shop("d", WRITE)], &[]), "remove it first");
    // Named itself as well, it is what it is named as.
    members(&mut w, &[share(3, "c", ASIDE), shop("d", WRITE)], &[]).expect("set");
    assert_eq!(w.issue(1).len(), 5);
    // Who joins the group later is not in it; who is taken out by it, is.
    w.must(|s| {
        let (group, agents) = (GroupId(id(1)), vec![agent_id(4)]);
        group::decide(s, group::Command::Remove { group, agents })
    });
    members(&mut w, &[], &[group]).expect("set");
    let left: Vec<_> = w.issue(1).into_iter().filter(|o| o.task == Task::Stop).map(|o| o.agent).collect();
    let mut expected = vec![agent_id(3), agent_id(5)];
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn who_failed_is_asked_again_when_something_is_set() {
    let mut w = world(3);
    let shares = [share(1, "/a", WRITE), share(2, "b", WRITE)];
    w.create_job(1, synchronization(&shares)).expect("a job");
    w.start(1, 1).expect("a run");
    w.issue(1);
    let (sequence, command) = w.waiting(2);
    let said =
        w.says(2, vec![CommandRefused { command, sequence, reason: RefusalReason::NotAllowed }.into()]);
    assert_eq!((progressed(&said, 2), outcome(&said)), (Some(RunAgentState::Failed), None));
    assert!(w.issue(1).is_empty());
    // Its owner allowed the folder meanwhile: it is named once more.
    let events = members(&mut w, &[share(2, "b", WRITE)], &[]).expect("set");
    assert_eq!(kinds(&events), ["run.members_set"]);
    assert_eq!(state_of(&w, 2), Some(RunAgentState::Waiting));
    assert_eq!(w.issue(1).len(), 2);
    begin(&mut w, 2);
    assert_eq!(state_of(&w, 2), Some(RunAgentState::Synchronizing));
}

#[test]
fn an_agent_that_is_removed_from_the_fleet_leaves() {
    let mut w = at_work(3);
    let agent = agent_id(2);
    let events = w.must(|s| agent::decide(s, agent::Command::Remove { agent }));
    assert!(kinds(&events).contains(&"run.members_set"));
    let orders = w.issue(1);
    assert_eq!(orders.len(), 2);
    assert!(orders.iter().all(|order| told(order).members.len() == 2));
    assert_eq!(state_of(&w, 2), None);
}

#[test]
fn a_guard_is_answered_once_for_the_question_that_was_asked() {
    let mut w = at_work(3);
    let answer = |w: &mut World, n: u8, answer| {
        w.decide(|s| sync::decide(s, Sync::AnswerGuard { run: RUN, agent: agent_id(n), answer }))
    };
    refused(answer(&mut w, 1, GuardAnswer::Delete), "asks nothing");
    let raised = |guard, missing| GuardRaised { run: RUN, guard, missing, total: 40 }.into();
    assert_eq!(kinds(&w.says(1, vec![raised(7, 30)])), ["run.guard_raised"]);
    // The same again is nothing, other counts are.
    assert!(kinds(&w.says(1, vec![raised(7, 30)])).is_empty());
    assert_eq!(kinds(&w.says(1, vec![raised(7, 35)])), ["run.guard_raised"]);
    refused(answer(&mut w, 2, GuardAnswer::Delete), "asks nothing");
    refused(answer(&mut w, 9, GuardAnswer::Delete), "no member");
    assert!(w.issue(1).is_empty());

    assert_eq!(kinds(&answer(&mut w, 1, GuardAnswer::Restore).expect("answered")), ["run.guard_answered"]);
    assert_eq!(answer(&mut w, 1, GuardAnswer::Restore), Ok(vec![]), "not sent yet: one answer");
    let orders = w.issue(1);
    assert_eq!(orders.len(), 1);
    assert_eq!(orders[0].task, Task::AnswerGuard { guard: 7, answer: GuardAnswer::Restore });
    assert_eq!(orders[0].agent, agent_id(1));
    // It may be said again, for an answer can be lost (refused as too late, say).
    assert_eq!(answer(&mut w, 1, GuardAnswer::Restore).expect("answered").len(), 1);
    assert_eq!(w.issue(1).len(), 1);
    // More is gone meanwhile; the answer stands.
    w.says(1, vec![raised(7, 36)]);
    let view = |w: &World| w.views.runs.runs[&RUN].agents[&agent_id(1)].member.clone().expect("one").guard;
    assert_eq!(view(&w).map(|guard| (guard.missing, guard.answer)), Some((36, Some(GuardAnswer::Restore))));
    assert!(w.issue(1).is_empty());
    // Another question is not answered by it, and lifting an older one lifts nothing.
    w.says(1, vec![raised(8, 36)]);
    assert_eq!(view(&w).map(|guard| guard.answer), Some(None));
    let lifted = |guard| GuardLifted { run: RUN, guard, answer: None }.into();
    assert!(kinds(&w.says(1, vec![lifted(7)])).is_empty());
    assert_eq!(kinds(&w.says(1, vec![lifted(8)])), ["run.guard_lifted"]);
    assert_eq!(view(&w), None);
    // An answered guard does not hide the end.
    w.says(1, vec![raised(9, 36)]);
    answer(&mut w, 1, GuardAnswer::Delete).expect("answered");
    w.stop(1);
    assert!(w.issue(1).iter().all(|order| order.task == Task::Stop));
    refused(answer(&mut w, 1, GuardAnswer::Delete), "was stopped");
}

fn conflict(change: u64) -> ConflictKey {
    ConflictKey { agent: [1, 2, 3, 4], replica: [5, 6], change }
}

fn found(change: u64) -> ReportBody {
    let (path, copy) = (b"a.txt".to_vec(), format!("a.conflict-01020304-0506{change}.txt").into_bytes());
    let (loser, winner) = (agent_id(1), agent_id(2));
    ConflictFound { run: RUN, conflict: conflict(change), path, copy, loser, winner }.into()
}

#[test]
fn conflicts_are_told_once_and_bounded() {
    let mut w = at_work(3);
    assert_eq!(kinds(&w.says(1, vec![found(1), found(1), found(2)])), ["run.conflict_found"; 2]);
    // Another member has the same copy.
    assert!(kinds(&w.says(2, vec![found(1)])).is_empty());
    let open = |w: &World| w.views.runs.runs[&RUN].sync.as_ref().expect("it synchronizes").conflicts.len();
    assert_eq!(open(&w), 2);
    let settled = |change| ConflictSettled { run: RUN, conflict: conflict(change) }.into();
    assert_eq!(kinds(&w.says(3, vec![settled(1), settled(1), settled(9)])), ["run.conflict_settled"]);
    assert_eq!(open(&w), 1);
    // A report that names a file is a private text, others are not.
    let events = w.says(1, vec![found(3), settled(3)]);
    let named: Vec<bool> = events
        .iter()
        .filter_map(|event| match event {
            Event::ReportReceived(e) => Some(e.problem_in == Some(RUN)),
            _ => None,
        })
        .collect();
    assert_eq!(named, [true, false]);
    let many = (100..).take(1_100).map(found).collect();
    w.says(1, many);
    assert_eq!(open(&w), 1_000);
    // Who is in no synchronization, or not in this one, tells of none.
    let mut w = at_level_3();
    let early = control_core::report::decide(&w.state, agent_id(2), &w.reports(2, vec![found(1)]));
    let too_early = matches!(&early, Err(Rejection::Refused { reason: RefusalReason::TooEarly, .. }));
    assert!(too_early, "{early:?}");
    w.happen(vec![SchemaRaised { level: 4 }.into()]);
    assert!(kinds(&w.says(2, vec![found(1)])).is_empty());
}

#[test]
fn blocked_paths_are_bounded_and_go_with_the_member() {
    let mut w = at_work(3);
    let blocked = |number| {
        let (path, by) = (format!("p{number}").into_bytes(), Vec::new());
        PathBlocked { run: RUN, number, path, obstacle: Obstacle::BadName, by }.into()
    };
    let unblocked = |number| PathUnblocked { run: RUN, number }.into();
    assert_eq!(kinds(&w.says(1, (0..150).map(blocked).collect())).len(), 100);
    assert_eq!(kinds(&w.says(1, vec![blocked(3), unblocked(3), unblocked(3)])), ["run.path_unblocked"]);
    assert_eq!(kinds(&w.says(1, vec![blocked(3), RolledBack { run: RUN }.into()])).len(), 2);
    let view = |w: &World| w.views.runs.runs[&RUN].agents[&agent_id(1)].member.clone().expect("a member");
    assert_eq!((view(&w).blocked.len(), view(&w).rolled_back), (100, 1));
    members(&mut w, &[], &[party(1)]).expect("set");
    assert!(view(&w).left && view(&w).blocked.is_empty());
}

/// A run of the usual kind at a level that has no synchronizations.
fn at_level_3() -> World {
    let mut w = World::with_run(3);
    w.happen(vec![SchemaRaised { level: 3 }.into()]);
    w
}

#[test]
fn nothing_of_level_4_is_recorded_below_it() {
    let mut w = at_level_3();
    refused(w.create_job(2, synchronization(&[share(1, "a", WRITE)])), "schema level 3");
    // Whatever an agent says: older programs read this log.
    let accepted = w.accepts(2);
    let events = w.says(
        2,
        vec![
            accepted,
            state(1, RunAgentState::Synchronizing),
            found(1),
            GuardRaised { run: RUN, guard: 1, missing: 1, total: 2 }.into(),
        ],
    );
    for event in &events {
        assert!(level::of(&upcast::event_at(event, 3)) <= 3, "{event:?}");
        assert!(!matches!(event, Event::RunAgentProgressed(e) if e.state == RunAgentState::Synchronizing));
    }
    // And a run of the usual kind has no members to be set.
    refused(members(&mut w, &[share(3, "x", WRITE)], &[]), "does not synchronize");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut w = world(3);
    let mut make = |members: &[Share], policy: SyncPolicy, word: &str| {
        refused(w.create_job(9, JobSpec::Synchronization { members: members.to_vec(), policy }), word);
    };
    let usual = SyncPolicy::default();
    make(&[], usual, "1 to 256");
    make(&[share(1, "a", ASIDE), share(2, "b", REVERT)], usual, "nobody could change anything");
    make(&[share(1, "a", WRITE), share(1, "b", WRITE)], usual, "named twice");
    make(&[share(1, "", WRITE)], usual, "a path has");
    make(&[share(9, "a", WRITE)], usual, "no agent");
    make(&[share(1, "a", WRITE)], SyncPolicy { guard_percent: 0, ..usual }, "1 to 100");
    make(&[share(1, "a", WRITE)], SyncPolicy { guard_percent: 101, ..usual }, "1 to 100");
    let archive = |max_age_days, max_bytes| SyncPolicy {
        archive: Some(ArchiveLimits { max_age_days, max_bytes }),
        ..usual
    };
    make(&[share(1, "a", WRITE)], archive(Some(0), None), "an archive keeps");
    make(&[share(1, "a", WRITE)], archive(None, Some(0)), "is none");
    for (ignore, wanted, word) in [
        (vec![" "], vec![], "one line"),
        (vec!["a\nb"], vec![], "one line"),
        (vec![], vec!["!a"], "'!'"),
        (vec!["a"; 257], vec![], "at most 256"),
    ] {
        let selection = Selection {
            ignore: ignore.into_iter().map(Into::into).collect(),
            wanted: wanted.into_iter().map(Into::into).collect(),
        };
        make(&[Share { selection: selection.into(), ..share(1, "a", WRITE) }], usual, word);
    }
    // A run cannot come to what a job could not be.
    let mut w = at_work(3);
    refused(members(&mut w, &[], &[party(1), party(2)]), "nobody could change anything");
    refused(members(&mut w, &[], &[party(1), party(2), party(3)]), "stop the run instead");
    refused(members(&mut w, &[share(2, "b", WRITE), share(2, "b", ASIDE)], &[]), "named twice");
    let policy = SyncPolicy { guard_percent: 0, ..usual };
    refused(w.decide(|s| sync::decide(s, Sync::Policy { run: RUN, policy })), "1 to 100");
    let policy = SyncPolicy { archive: None, guard_percent: 100, guard_min: 0 };
    assert_eq!(w.must(|s| sync::decide(s, Sync::Policy { run: RUN, policy })).len(), 1);
    assert!(w.must(|s| sync::decide(s, Sync::Policy { run: RUN, policy })).is_empty());
    assert!(w.issue(1).iter().all(|order| told(order).policy == policy));
    let unknown = Sync::Policy { run: RunId([8; 16]), policy };
    refused(w.decide(|s| sync::decide(s, unknown)), "no run");
    let reason = "x".to_string();
    assert!(run::decide(&w.state, run::Command::Stop { run: RunId([8; 16]), reason }).is_err());
}
