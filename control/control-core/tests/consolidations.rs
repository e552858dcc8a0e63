//! Consolidations: one run per source, their folders, and what becomes of the sources' files.

mod support;

use control_core::batch::{self, Skipped};
use control_core::plan::Task;
use control_core::{Rejection, agent, run};
use event_schema::*;
use support::*;

/// Agents 1 to `count` at level 3; 2 and those behind it have tags.
fn world(count: u8) -> World {
    let mut world = World::with_agents(count);
    world.happen(vec![SchemaRaised { level: 3 }.into()]);
    world
}

fn tag(world: &mut World, n: u8, name: &str, value: &str) {
    let tags = vec![(name.to_owned(), value.to_owned())];
    world.must(|s| agent::decide(s, agent::Command::Tag { agent: agent_id(n), tags }));
}

fn run_of(batch: u8, n: u8) -> RunId {
    batch::run_of(BatchId(id(batch)), agent_id(n))
}

/// The folders of a `run.started`, source first.
fn folders(event: &Event) -> Vec<(AgentId, Role, String)> {
    let Event::RunStarted(e) = event else { panic!("{event:?}") };
    let told = |p: &Participant| (p.agent, p.role, String::from_utf8_lossy(e.path(p)).into_owned());
    e.participants.iter().map(told).collect()
}

/// Everything but the last word of the source.
fn brought_home(world: &mut World, run: RunId, source: u8, destination: u8, state: RunAgentState) {
    world.issue_of(run);
    let manifest = ManifestSigned { run, root: [7; 32], entries: 3, bytes: 300, blocks: 4 };
    world.says(source, vec![manifest.into()]);
    let stats = TransferStats::default();
    world.says(destination, vec![RunCompleted { run, state, stats }.into()]);
}

#[test]
fn every_source_has_a_run_and_a_folder_of_its_own() {
    let mut w = world(4);
    w.create_group(1, &[2, 3]);
    let sources = [place(Party::Group(GroupId(id(1))), "footage"), at(4, "cam")];
    w.create_job(1, consolidation(&sources, &[at(1, "/srv/in/")], "/%SRC:AGENT_NAME%", Disposal::Keep))
        .expect("a job");
    let started = w.start_batch(9, 1).expect("started");
    assert_eq!((started.events.len(), started.skipped.len()), (3, 0));
    for (n, path) in [(2, "footage"), (3, "footage"), (4, "cam")] {
        let event = started.events.iter().find(|event| folders(event)[0].0 == agent_id(n)).expect("a run");
        let own = format!("/srv/in/agent-{n}");
        let expected = [(agent_id(n), Role::Source, path.to_owned()), (agent_id(1), Role::Destination, own)];
        assert_eq!(folders(event), expected);
        let Event::RunStarted(e) = event else { unreachable!("looked at") };
        assert_eq!((e.run, e.batch, e.after), (run_of(9, n), Some(BatchId(id(9))), Disposal::Keep));
        // An ordinary run: both are asked to join, with nobody else among the peers.
        let orders = w.issue_of(e.run);
        assert_eq!(orders.len(), 2);
        let Task::Join { source, peers, .. } = &orders[0].task else { panic!("{orders:?}") };
        assert_eq!((*source, peers.len()), (agent_id(n), 2));
    }
    // Asked twice it is one fact.
    assert_eq!(w.start_batch(9, 1).expect("known"), batch::Started::default());
    assert_eq!(w.views, w.rebuilt());
    assert!(w.views.runs.runs.values().all(|run| run.batch == Some(BatchId(id(9)))));
}

#[test]
fn who_is_away_delays_nobody_and_is_not_started_twice() {
    let mut w = world(3);
    let spec = consolidation(&[at(2, "a"), at(3, "a")], &[at(1, "in")], "%SRC:AGENT_NAME%", Disposal::Keep);
    w.create_job(1, spec).expect("a job");
    w.start_batch(9, 1).expect("started");
    brought_home(&mut w, run_of(9, 2), 2, 1, RunAgentState::Done);
    assert_eq!(w.views.runs.runs[&run_of(9, 2)].outcome, Some(Outcome::Succeeded));
    assert_eq!(w.views.runs.runs[&run_of(9, 3)].outcome, None, "it waits for its source");
    let again = w.start_batch(10, 1).expect("started");
    assert_eq!(again.skipped, [Skipped { agent: agent_id(3), run: run_of(9, 3) }]);
    assert_eq!(again.events.len(), 1);
    let refused = w.start_batch(11, 1).expect_err("both are busy");
    assert!(refused.to_string().contains("busy"), "{refused}");
    // Stopped, it begins anew.
    let stop = run::Command::Stop { run: run_of(9, 3), reason: "enough".into() };
    w.must(|s| run::decide(s, stop));
    assert_eq!(w.start_batch(12, 1).expect("started").events.len(), 1);
}

#[test]
fn folders_that_would_be_one_are_refused_with_both_names() {
    let mut w = world(3);
    tag(&mut w, 2, "SITE", "North");
    tag(&mut w, 3, "SITE", "north");
    let sources = [at(2, "a"), at(3, "a")];
    for (n, template) in [(1, "%SRC:SITE%"), (2, ""), (3, "all/of/them")] {
        w.create_job(n, consolidation(&sources, &[at(1, "in")], template, Disposal::Keep)).expect("a job");
        let refused = w.start_batch(20 + n, n).expect_err("one folder").to_string();
        assert!(
            refused.contains("agent-2") && refused.contains("agent-3") && refused.contains("in"),
            "{refused}"
        );
    }
    // Also with the folder of a run that is still under way.
    tag(&mut w, 3, "SITE", "south");
    let spec = consolidation(&sources, &[at(1, "in")], "%SRC:SITE%", Disposal::Keep);
    w.create_job(4, spec).expect("a job");
    w.start_batch(9, 4).expect("started");
    brought_home(&mut w, run_of(9, 3), 3, 1, RunAgentState::Done);
    tag(&mut w, 3, "SITE", "NORTH");
    let refused = w.start_batch(10, 4).expect_err("taken").to_string();
    assert!(refused.contains("agent-2") && refused.contains("agent-3"), "{refused}");
    // One source needs no folder of its own.
    let spec = consolidation(&[at(2, "a")], &[at(1, "in")], "/", Disposal::Keep);
    w.create_job(5, spec).expect("a job");
    let started = w.start_batch(30, 5).expect("started");
    assert_eq!(folders(&started.events[0])[1].2, "in");
}

#[test]
fn hostile_tags_and_senseless_jobs_are_refused() {
    let mut w = world(3);
    w.create_group(1, &[1]);
    w.create_group(2, &[]);
    let keep = Disposal::Keep;
    let (from, to) = ([at(2, "a")], [at(1, "in")]);
    let refuse = |w: &mut World, spec: JobSpec, why: &str| {
        let refused = w.create_job(1, spec).expect_err(why).to_string();
        assert!(refused.contains(why), "{why}: {refused}");
    };
    refuse(&mut w, consolidation(&[], &to, "", keep), "sources");
    refuse(&mut w, consolidation(&from, &[], "", keep), "destinations");
    refuse(&mut w, consolidation(&from, &from, "", keep), "among the destinations");
    refuse(&mut w, consolidation(&[at(2, "a"), at(2, "b")], &to, "", keep), "twice");
    refuse(&mut w, consolidation(&from, &[at(1, "a"), at(1, "b")], "", keep), "twice");
    refuse(&mut w, consolidation(&from, &to, "../x", keep), "no name");
    refuse(&mut w, consolidation(&from, &to, "%DST:X%", keep), "%DST:X%");
    refuse(&mut w, consolidation(&from, &to, "", Disposal::Archive { days: 0 }), "days");
    refuse(&mut w, consolidation(&from, &to, "", Disposal::Archive { days: 99_999 }), "days");
    refuse(&mut w, distribution(place(Party::Group(GroupId(id(1))), "a"), &from), "not a group");
    // What comes from an agent.
    let spec = consolidation(&from, &to, "cars/%SRC:PLATE%", keep);
    w.create_job(1, spec).expect("a job");
    for (value, why) in [("..", "\"..\""), ("a/b", "no name"), ("", "empty"), (".flotilla", ".flotilla")] {
        tag(&mut w, 2, "PLATE", value);
        let refused = w.start_batch(9, 1).expect_err(why).to_string();
        assert!(refused.contains("agent-2") && refused.contains(why), "{value:?}: {refused}");
    }
    // Groups that come to nobody, and a source that would only send to itself.
    let empty = place(Party::Group(GroupId(id(2))), "a");
    w.create_job(2, consolidation(std::slice::from_ref(&empty), &to, "", keep)).expect("a job");
    assert!(w.start_batch(9, 2).is_err());
    w.create_job(3, consolidation(&from, &[empty], "", keep)).expect("a job");
    assert!(w.start_batch(9, 3).is_err());
    w.create_job(4, consolidation(&[place(Party::Group(GroupId(id(1))), "a")], &to, "", keep))
        .expect("a job");
    assert!(w.start_batch(9, 4).is_err());
    // The two kinds of starts are not mixed up.
    assert!(matches!(w.start(1, 1), Err(Rejection::Invalid(_))));
    w.create_job(6, distribution(at(2, "out"), &to)).expect("a job");
    assert!(matches!(w.start_batch(9, 6), Err(Rejection::Invalid(_))));
}

#[test]
fn an_older_log_has_no_consolidations() {
    let mut w = World::with_agents(2);
    let spec = consolidation(&[at(2, "a")], &[at(1, "in")], "", Disposal::Keep);
    let refused = w.create_job(1, spec.clone()).expect_err("level 1").to_string();
    assert!(refused.contains("level 1") && refused.contains("need 3"), "{refused}");
    w.happen(vec![SchemaRaised { level: 2 }.into()]);
    assert!(w.create_job(1, spec.clone()).is_err());
    w.happen(vec![SchemaRaised { level: 3 }.into()]);
    w.create_job(1, spec).expect("a job");
}

#[test]
fn files_are_disposed_of_once_every_destination_is_done() {
    let mut w = world(3);
    let after = Disposal::Archive { days: 30 };
    let spec = consolidation(&[at(2, "a")], &[at(1, "in"), at(3, "in")], "", after);
    w.create_job(1, spec).expect("a job");
    w.start_batch(9, 1).expect("started");
    let run = run_of(9, 2);
    w.issue_of(run);
    // Unasked, a word about files counts for nothing.
    assert!(kinds(&w.says(2, vec![disposed(run)])).is_empty());
    let stats = TransferStats::default();
    let done = |state| RunCompleted { run, state, stats }.into();
    w.says(1, vec![done(RunAgentState::Done)]);
    assert!(w.issue_of(run).is_empty(), "one is missing");
    w.says(3, vec![done(RunAgentState::Done)]);
    // Destinations are told; the source only when it is known which manifest they have.
    let orders = w.issue_of(run);
    assert!(
        orders.iter().all(|order| order.task == Task::Finish && order.agent != agent_id(2)),
        "{orders:?}"
    );
    w.says(2, vec![ManifestSigned { run, root: [7; 32], entries: 3, bytes: 300, blocks: 4 }.into()]);
    let orders = w.issue_of(run);
    assert_eq!(orders.len(), 1);
    assert_eq!(
        (orders[0].agent, &orders[0].task),
        (agent_id(2), &Task::Dispose { root: [7; 32], disposal: after })
    );
    assert!(w.issue_of(run).is_empty());
    assert!(kinds(&w.says(3, vec![disposed(run)])).is_empty(), "not its files");
    let events = w.says(2, vec![disposed(run), disposed(run), RunServed { run, stats }.into()]);
    assert_eq!(kinds(&events), ["run.disposed", "run.agent_progressed"]);
    let view = &w.views.runs.runs[&run];
    let told = view.disposal.expect("told");
    assert_eq!((told.disposed.files, told.disposed.bytes, told.refused), (3, 300, None));
    assert!(w.issue_of(run).is_empty());
    assert_eq!(w.views, w.rebuilt());
}

#[test]
fn nothing_is_disposed_of_unless_all_is_well() {
    let check = |state: RunAgentState, outcome: Outcome| {
        let mut w = world(2);
        let spec = consolidation(&[at(2, "a")], &[at(1, "in")], "", Disposal::Delete);
        w.create_job(1, spec).expect("a job");
        w.start_batch(9, 1).expect("started");
        let run = run_of(9, 2);
        brought_home(&mut w, run, 2, 1, state);
        assert_eq!(w.views.runs.runs[&run].outcome, Some(outcome));
        let orders = w.issue_of(run);
        assert_eq!(
            orders.iter().find(|o| o.agent == agent_id(2)).map(|o| &o.task),
            Some(&Task::Finish),
            "{state:?}"
        );
    };
    check(RunAgentState::DoneWithErrors, Outcome::SucceededWithErrors);
    check(RunAgentState::Failed, Outcome::Failed);
    check(RunAgentState::Stopped, Outcome::Failed);
    // What could not be read at the source is not in the manifest, and the rest can go.
    let mut w = world(2);
    let spec = consolidation(&[at(2, "a")], &[at(1, "in")], "", Disposal::Delete);
    w.create_job(1, spec).expect("a job");
    w.start_batch(9, 1).expect("started");
    let run = run_of(9, 2);
    w.issue_of(run);
    let problem = Problem { class: ProblemClass::SourceChanged, path: b"x".to_vec(), detail: "x".into() };
    w.says(2, vec![ProblemReported { run, problem }.into()]);
    brought_home(&mut w, run, 2, 1, RunAgentState::Done);
    assert_eq!(w.views.runs.runs[&run].outcome, Some(Outcome::SucceededWithErrors));
    assert!(w.issue_of(run).iter().any(|order| matches!(order.task, Task::Dispose { .. })));
}

#[test]
fn a_source_that_refuses_keeps_its_files_and_is_told_the_end_all_the_same() {
    for (reason, says) in [(RefusalReason::NotAllowed, "owner"), (RefusalReason::NotUnderstood, "too old")] {
        let mut w = world(2);
        let spec = consolidation(&[at(2, "a")], &[at(1, "in")], "", Disposal::Delete);
        w.create_job(1, spec).expect("a job");
        w.start_batch(9, 1).expect("started");
        let run = run_of(9, 2);
        w.issue_of(run);
        let join = w.accepts(2);
        w.says(2, vec![join]);
        brought_home(&mut w, run, 2, 1, RunAgentState::Done);
        w.issue_of(run);
        let (sequence, command) = w.waiting(2);
        let events = w.says(2, vec![CommandRefused { command, sequence, reason }.into()]);
        assert_eq!(kinds(&events), ["command.acknowledged", "run.problem_reported", "run.disposed"]);
        let view = &w.views.runs.runs[&run];
        assert!(view.problems[0].text.detail.contains(says), "{:?}", view.problems);
        assert_eq!(view.disposal.expect("told").refused, Some(reason));
        let orders = w.issue_of(run);
        assert_eq!((orders.len(), &orders[0].task), (1, &Task::Finish));
        // That one refused as well, nothing more comes.
        let (sequence, command) = w.waiting(2);
        w.says(2, vec![CommandRefused { command, sequence, reason }.into()]);
        assert!(w.issue_of(run).is_empty());
    }
}

#[test]
fn destinations_keep_what_they_replace_if_the_source_disposes() {
    for (n, after) in [(1, Disposal::Keep), (2, Disposal::Archive { days: 3 }), (3, Disposal::Delete)] {
        let mut w = world(2);
        let spec = consolidation(&[at(2, "a")], &[at(1, "in")], "", after);
        w.create_job(n, spec).expect("a job");
        w.start_batch(9, n).expect("started");
        let orders = w.issue_of(run_of(9, 2));
        assert_eq!(orders.len(), 2);
        for order in orders {
            let body = order.task.into_body(order.run, vec![], vec![]);
            let keeps = order.agent == agent_id(1) && after != Disposal::Keep;
            assert_eq!(matches!(body, CommandBody::JoinKeeping(_)), keeps, "{after:?}");
            assert_eq!(body.join().map(|join| join.run), Some(order.run));
        }
        // One that is too old for it loses nothing either.
        w.says(1, vec![]);
        let (sequence, command) = w.waiting(1);
        let refused = CommandRefused { command, sequence, reason: RefusalReason::NotUnderstood };
        assert_eq!(outcome(&w.says(1, vec![refused.into()])), Some(Outcome::Failed));
    }
}

#[test]
fn nobody_is_passed_over_whose_word_counts_for_the_disposal() {
    let mut w = world(3);
    w.enrol(4, "agent-4", None);
    w.create_group(1, &[1, 4]);
    let group = place(Party::Group(GroupId(id(1))), "in");
    let keeps = consolidation(&[at(2, "a")], std::slice::from_ref(&group), "", Disposal::Keep);
    w.create_job(1, keeps).expect("a job");
    w.start_batch(9, 1).expect("who is not approved gets it later");
    let deletes = consolidation(&[at(3, "a")], &[group], "", Disposal::Delete);
    w.create_job(2, deletes).expect("a job");
    let refused = w.start_batch(10, 2).expect_err("one is missing").to_string();
    assert!(refused.contains("agent-4") && refused.contains("group-1"), "{refused}");
    w.must(|s| agent::decide(s, agent::Command::Approve { agent: agent_id(4) }));
    assert_eq!(folders(&w.start_batch(10, 2).expect("started").events[0]).len(), 3);
}

#[test]
fn another_manifest_does_not_count_once_a_destination_has_the_first() {
    let signed =
        |run, root| -> ReportBody { ManifestSigned { run, root, entries: 3, bytes: 300, blocks: 4 }.into() };
    let mut w = world(3);
    let spec = consolidation(&[at(2, "a")], &[at(1, "in"), at(3, "in")], "", Disposal::Delete);
    w.create_job(1, spec).expect("a job");
    w.start_batch(9, 1).expect("started");
    let run = run_of(9, 2);
    w.issue_of(run);
    w.says(2, vec![signed(run, [6; 32])]);
    assert_eq!(kinds(&w.says(2, vec![signed(run, [7; 32])])), ["run.manifest_ready"], "nobody has it yet");
    let stats = TransferStats::default();
    let done = || RunCompleted { run, state: RunAgentState::Done, stats }.into();
    w.says(1, vec![done()]);
    assert!(kinds(&w.says(2, vec![signed(run, [8; 32])])).is_empty());
    w.says(3, vec![done()]);
    let orders = w.issue_of(run);
    let disposal = orders.iter().find(|order| order.agent == agent_id(2)).map(|order| &order.task);
    assert_eq!(disposal, Some(&Task::Dispose { root: [7; 32], disposal: Disposal::Delete }));
}

#[test]
fn what_older_replicas_do_not_read_is_not_recorded_before_the_level_is_raised() {
    let replaced = |run| -> ReportBody {
        let problem = Problem { class: ProblemClass::Replaced, path: vec![], detail: "x".into() };
        ProblemReported { run, problem }.into()
    };
    for level in [1, 2] {
        let mut w = World::with_run(2);
        if level > 1 {
            w.happen(vec![SchemaRaised { level }.into()]);
        }
        let run = RunId(id(1));
        for body in [disposed(run), replaced(run)] {
            // What came before it is taken, it and what follows is not.
            let before = w.state.reports_stored(agent_id(1));
            let reports = w.reports(1, vec![manifest(1), body.clone(), served(1)]);
            let events = w.must(|s| control_core::report::decide(s, agent_id(1), &reports));
            assert_eq!(events.iter().filter(|e| matches!(e, Event::ReportReceived(_))).count(), 1);
            assert_eq!(w.state.reports_stored(agent_id(1)), before + 1);
            let reports = w.reports(1, vec![body]);
            let refused = control_core::report::decide(&w.state, agent_id(1), &reports);
            assert!(
                matches!(&refused, Err(Rejection::Refused { reason: RefusalReason::TooEarly, .. })),
                "{refused:?}"
            );
        }
    }
    let mut w = World::with_run(2);
    w.happen(vec![SchemaRaised { level: 3 }.into()]);
    w.says(1, vec![disposed(RunId(id(1))), replaced(RunId(id(1)))]);
    assert_eq!(w.state.reports_stored(agent_id(1)), 2);
}

#[test]
fn who_erases_an_agent_can_be_told_under_which_jobs_something_of_it_stays() {
    let mut w = world(3);
    for (n, source) in [(1, 2), (2, 3)] {
        let spec = consolidation(&[at(source, "a")], &[at(1, "in")], "/%SRC:AGENT_NAME%", Disposal::Keep);
        w.create_job(n, spec).expect("a job");
        w.start_batch(10 + n, n).expect("started");
    }
    let (one, two) = (JobId(id(1)), JobId(id(2)));
    assert_eq!(w.views.jobs_that_name(agent_id(2)), [one].into());
    assert_eq!(w.views.jobs_that_name(agent_id(1)), [one, two].into());
    let erased = |job| SubjectErased { subject: Subject::Job(job), reason: "asked for".into() };
    let opened = SubjectOpened { subject: Subject::Job(one), commitment: [7; 32] };
    w.happen(vec![opened.into(), erased(one).into()]);
    assert_eq!(w.views.jobs_that_name(agent_id(2)), [].into());
    assert_eq!(w.views.jobs_that_name(agent_id(1)), [two].into());
}
