//! Backups: what starts when, what stands where, what is to go, and what is given back.

mod support;

use std::collections::BTreeSet;

use control_core::backup::plan::{self, Due};
use control_core::backup::restore::{self, Restore, Which};
use control_core::plan::Task;
use control_core::{Rejection, agent, batch, group, job, report};
use event_schema::*;
use support::*;

const JOB: u8 = 1;

/// Agents 1 to `count` at level 5.
fn world(count: u8) -> World {
    let mut world = World::with_agents(count);
    world.happen(vec![SchemaRaised { level: 5 }.into()]);
    world
}

fn last(count: u32) -> Keep {
    Keep { last: count, ..Keep::NOTHING }
}

/// Agents 1 to 4: 1 and 2 are backed up to 3 and 4.
fn at_work(when: When, keep: Keep) -> World {
    let mut w = world(4);
    let spec =
        backup(&[at(1, "/srv/data"), at(2, "/srv/data")], &[at(3, "kept"), at(4, "/vault")], when, keep);
    w.create_job(JOB, spec).expect("a job");
    w
}

fn start(w: &mut World, n: u8) -> Vec<RunId> {
    let started = w.start_batch(n, JOB).expect("started");
    let runs = started.events.iter().filter_map(|event| match event {
        Event::RunStarted(e) => Some(e.run),
        _ => None,
    });
    runs.collect()
}

fn run_of(n: u8, source: u8) -> RunId {
    batch::run_of(BatchId(id(n)), agent_id(source))
}

/// What the run's version is to be called.
fn wanted(w: &World, run: RunId) -> String {
    let Purpose::Version { name } = &w.views.runs.runs[&run].purpose else { panic!("no version") };
    name.clone()
}

/// A run goes to its end: each of `storage` keeps its version, of so many entries.
fn finish(
    w: &mut World,
    run: RunId,
    source: u8,
    storage: &[u8],
    state: RunAgentState,
    entries: u64,
) -> String {
    w.issue_of(run);
    let signed = ManifestSigned { run, root: [7; 32], entries, bytes: entries * 10, blocks: entries };
    w.says(source, vec![signed.into()]);
    let version = wanted(w, run);
    for n in storage {
        let complete = state == RunAgentState::Done;
        let (version, bytes) = (version.clone(), entries * 10);
        let kept = VersionKept { run, version, complete, unchanged: false, entries, bytes };
        let stats = TransferStats::default();
        w.says(*n, vec![kept.into(), RunCompleted { run, state, stats }.into()]);
    }
    w.issue_of(run);
    w.says(source, vec![RunServed { run, stats: TransferStats::default() }.into()]);
    version
}

/// A whole start of source 1 alone at agent 3, an hour after the one before.
fn hour(w: &mut World, n: u8, entries: u64) -> String {
    w.now = Timestamp(w.now.0 + 3_600_000);
    start(w, n);
    finish(w, run_of(n, 1), 1, &[3], RunAgentState::Done, entries)
}

fn alone(keep: Keep) -> World {
    let mut w = world(3);
    w.create_job(JOB, backup(&[at(1, "/srv/data")], &[at(3, "kept")], When::Manual, keep)).expect("a job");
    w
}

/// Names of versions of source 1 at agent 3.
fn standing(w: &World) -> Vec<String> {
    let backup = &w.views.backups.jobs[&JobId(id(JOB))];
    backup.shelves[&(agent_id(3), agent_id(1))].versions.keys().map(ToString::to_string).collect()
}

/// What agent 3 is told to remove, if anything, and how it does so.
fn thin(w: &mut World, failed: &[(&str, ThinObstacle)]) -> Vec<String> {
    let orders = w.issue_backup(JOB);
    let Some(order) = orders.first() else { return vec![] };
    let CommandBody::ThinBackup(told) = &order.body else { panic!("{order:?}") };
    assert_eq!((order.agent, told.source, &told.path[..]), (agent_id(3), agent_id(1), &b"kept/agent-1"[..]));
    let stay = |name: &&String| !failed.iter().any(|(kept, _)| kept == name);
    let removed = told.versions.iter().filter(stay).cloned().collect();
    let failed = failed.iter().map(|(version, why)| NotThinned { version: (*version).into(), why: *why });
    let (job, source) = (told.job, told.source);
    w.says(3, vec![Thinned { job, source, removed, failed: failed.collect() }.into()]);
    told.versions.clone()
}

fn wish(run: u8) -> Restore {
    Restore {
        run: RunId(id(run)),
        job: JobId(id(JOB)),
        source: agent_id(1),
        which: Which::Latest,
        path: vec![],
        to: None,
        folder: None,
        from: None,
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, Rejection>, word: &str) {
    let why = result.expect_err("refused").to_string();
    assert!(why.contains(word), "{why}");
}

#[test]
fn a_start_makes_a_version_of_each_source_everywhere() {
    let mut w = at_work(When::Manual, last(2));
    assert_eq!(start(&mut w, 1).len(), 2);
    let run = run_of(1, 1);
    let version = wanted(&w, run);
    assert_eq!(version, "2026-11-18T110640Z", "the time of the start");
    let orders = w.issue_of(run);
    let purposes: Vec<_> = orders
        .iter()
        .map(|order| match &order.task {
            Task::Join { purpose, keeps, path, .. } => {
                (purpose.clone(), *keeps, String::from_utf8_lossy(path))
            }
            task => panic!("{task:?}"),
        })
        .collect();
    let version_of = || Purpose::Version { name: version.clone() };
    assert_eq!(
        purposes,
        [
            (version_of(), false, "/srv/data".into()),
            (version_of(), false, "kept/agent-1".into()),
            (version_of(), false, "/vault/agent-1".into()),
        ]
    );
    // Started again in the same second, while the first is under way: it is passed over; the other time has another name.
    w.stop_run(run_of(1, 2));
    let again = w.start_batch(2, JOB).expect("source 2 is free");
    assert_eq!(again.skipped.iter().map(|s| s.agent).collect::<Vec<_>>(), [agent_id(1)]);
    assert_eq!(wanted(&w, run_of(2, 2)), "2026-11-18T110641Z", "a second after its last one");
    // Every destination says once what it keeps, and nobody else does.
    let kept = |version: &str| -> ReportBody {
        VersionKept { run, version: version.into(), complete: true, unchanged: false, entries: 1, bytes: 1 }
            .into()
    };
    assert!(kinds(&w.says(1, vec![kept(&version)])).is_empty(), "the source keeps none");
    assert!(kinds(&w.says(3, vec![kept("../etc")])).is_empty());
    assert_eq!(kinds(&w.says(3, vec![kept(&format!("{version}-3"))])), ["backup.version_kept"]);
    assert!(kinds(&w.says(3, vec![kept(&version)])).is_empty(), "told before");
    assert_eq!(standing(&w), [format!("{version}-3")]);
    assert_eq!(w.rebuilt(), w.views);
}

#[test]
fn what_no_rule_keeps_is_ordered_away_when_its_run_is_over() {
    let mut w = alone(last(2));
    let names: Vec<String> = (1..=2).map(|n| hour(&mut w, n, 100)).collect();
    assert!(w.issue_backup(JOB).is_empty(), "both are kept");
    w.now = Timestamp(w.now.0 + 3_600_000);
    start(&mut w, 3);
    let run = run_of(3, 1);
    let third = wanted(&w, run);
    w.issue_of(run);
    let kept =
        VersionKept { run, version: third.clone(), complete: true, unchanged: false, entries: 100, bytes: 9 };
    w.says(3, vec![kept.into()]);
    assert!(w.issue_backup(JOB).is_empty(), "the run goes on there");
    w.says(3, vec![RunCompleted { run, state: RunAgentState::Done, stats: TransferStats::default() }.into()]);
    // It is in use there: it stays, and is not ordered again and again.
    assert_eq!(thin(&mut w, &[(&names[0], ThinObstacle::InUse)]), [names[0].clone()]);
    assert_eq!(standing(&w), [names[0].clone(), names[1].clone(), third.clone()]);
    assert!(w.issue_backup(JOB).is_empty());
    // With the next version it goes, and what that one took the place of.
    let fourth = hour(&mut w, 4, 100);
    assert_eq!(thin(&mut w, &[]), names);
    assert_eq!(standing(&w), [third, fourth]);
    assert!(w.issue_backup(JOB).is_empty());
    assert_eq!(w.rebuilt(), w.views);
}

#[test]
fn who_does_not_thin_as_told_is_not_asked_for_ever() {
    let mut w = alone(last(1));
    let (first, second) = (hour(&mut w, 1, 100), hour(&mut w, 2, 100));
    // Unasked it says nothing that counts.
    let gone = |names: &[&String]| -> ReportBody {
        let removed = names.iter().map(|name| (*name).clone()).collect();
        Thinned { job: JobId(id(JOB)), source: agent_id(1), removed, failed: vec![] }.into()
    };
    assert!(kinds(&w.says(3, vec![gone(&[&second])])).is_empty());
    let order = w.issue_backup(JOB).pop().expect("one order");
    let (sequence, command) = {
        let (sequence, signed) = w.views.mailboxes.after(agent_id(3), 0, 99).pop().expect("it waits");
        (sequence, Command::decode(&signed.bytes).expect("a command"))
    };
    assert_eq!((sequence, &command.body), (order.sequence, &order.body));
    let refused = CommandRefused { command: command.id, sequence, reason: RefusalReason::NotAllowed };
    w.says(3, vec![refused.into()]);
    assert!(w.issue_backup(JOB).is_empty());
    let third = hour(&mut w, 3, 100);
    assert_eq!(thin(&mut w, &[]), [first, second]);
    assert_eq!(standing(&w), [third]);
}

#[test]
fn a_folder_that_is_suddenly_empty_takes_no_good_versions_place() {
    let mut w = alone(last(1));
    let good = hour(&mut w, 1, 1000);
    // A disk is missing: what is below it is the little that was there before it was mounted.
    let empty = hour(&mut w, 2, 3);
    assert!(w.issue_backup(JOB).is_empty());
    let less = hour(&mut w, 3, 2);
    assert_eq!(thin(&mut w, &[]), [empty], "of what is suspicious the rules keep as many");
    assert_eq!(standing(&w), [good.clone(), less.clone()]);
    // What is given back unless told otherwise is the good one.
    let started = w.must(|s| restore::decide(s, &wish(9)));
    let Some(Event::RunStarted(e)) = started.first() else { panic!("{started:?}") };
    assert_eq!(e.purpose, Purpose::Restore { of: agent_id(1), version: good.clone() });
    w.stop(9);
    // It is back: what it is now takes their places.
    let back = hour(&mut w, 4, 990);
    assert_eq!(thin(&mut w, &[]), [good, less]);
    assert_eq!(standing(&w), std::slice::from_ref(&back));
    // One that stays small for a month is what it is.
    hour(&mut w, 5, 400);
    assert!(w.issue_backup(JOB).is_empty());
    w.now = Timestamp(w.now.0 + 31 * 24 * 3_600_000);
    let small = hour(&mut w, 6, 390);
    assert_eq!(thin(&mut w, &[]).len(), 2);
    assert_eq!(standing(&w), std::slice::from_ref(&small));
    // A few files less are nothing to worry about.
    let fewer = hour(&mut w, 7, 200);
    assert_eq!(thin(&mut w, &[]), [small]);
    let none = hour(&mut w, 8, 0);
    assert_eq!(standing(&w), [fewer, none]);
}

#[test]
fn a_version_with_errors_never_counts_as_the_one_that_is_kept() {
    let mut w = alone(last(1));
    let good = hour(&mut w, 1, 100);
    w.now = Timestamp(w.now.0 + 3_600_000);
    start(&mut w, 2);
    let torn = finish(&mut w, run_of(2, 1), 1, &[3], RunAgentState::DoneWithErrors, 100);
    assert!(w.issue_backup(JOB).is_empty());
    assert_eq!(standing(&w), [good.clone(), torn.clone()]);
    hour(&mut w, 3, 100);
    assert_eq!(thin(&mut w, &[]), [good, torn]);
}

#[test]
fn what_the_source_could_not_read_makes_its_version_incomplete_whenever_it_is_told() {
    let told = |run, class| -> ReportBody {
        ProblemReported { run, problem: Problem { class, path: b"a/b".to_vec(), detail: "x".into() } }.into()
    };
    let mut w = alone(last(1));
    let good = hour(&mut w, 1, 100);
    let backup = |w: &World| w.views.backups.jobs[&JobId(id(JOB))].clone();
    let is_complete = |w: &World, name: &str| {
        let shelf = &backup(w).shelves[&(agent_id(3), agent_id(1))];
        shelf.versions[&name.parse().expect("a name")].complete
    };
    for (n, class, complete) in [
        (2, ProblemClass::PermissionDenied, false),
        (3, ProblemClass::Io, false),
        (4, ProblemClass::UnsupportedKind, true),
    ] {
        w.now = Timestamp(w.now.0 + 3_600_000);
        start(&mut w, n);
        let run = run_of(n, 1);
        w.says(1, vec![told(run, class)]);
        let name = finish(&mut w, run, 1, &[3], RunAgentState::Done, 100);
        assert_eq!(is_complete(&w, &name), complete, "{class:?}");
        if complete {
            // Storage was faster than the source's word.
            assert!(!standing(&w).is_empty());
            w.says(1, vec![told(run, ProblemClass::PermissionDenied)]);
            assert!(!is_complete(&w, &name));
        } else {
            thin(&mut w, &[]);
            assert_eq!(standing(&w), [good.clone(), name], "the good one stays, and of others the newest");
        }
    }
    assert_eq!(w.rebuilt(), w.views);
}

#[test]
fn a_clock_that_was_wrong_once_costs_nothing_that_came_after_it() {
    let mut w = alone(last(1));
    let right = w.now;
    hour(&mut w, 1, 100);
    w.now = Timestamp(right.0 + 10 * 365 * 24 * 3_600_000);
    let ahead = hour(&mut w, 2, 100);
    thin(&mut w, &[]);
    w.now = right;
    for n in 3..6 {
        let made = hour(&mut w, n, 100);
        assert!(made > ahead, "{made} after {ahead}");
        thin(&mut w, &[]);
        assert_eq!(standing(&w), [made], "what was made last");
    }
    // Nor does a schedule run wild by names that are ahead.
    let mut w = at_work(When::Every { minutes: 60 }, last(1));
    w.now = Timestamp(right.0 + 10 * 365 * 24 * 3_600_000);
    start(&mut w, 1);
    w.stop_run(run_of(1, 1));
    w.stop_run(run_of(1, 2));
    w.now = Timestamp(right.0 + 61 * 60_000);
    assert_eq!(plan::due(&w.views, w.now).len(), 1, "that start counts as one of before");
    start(&mut w, 2);
    w.stop_run(run_of(2, 1));
    w.stop_run(run_of(2, 2));
    assert_eq!(plan::due(&w.views, Timestamp(w.now.0 + 1_000)), []);
    assert_eq!(plan::due(&w.views, Timestamp(w.now.0 + 60 * 60_000)).len(), 1);
}

#[test]
fn schedules_start_what_is_due_once() {
    let mut w = at_work(When::Every { minutes: 60 }, last(2));
    let due = |w: &World, minutes: u64| plan::due(&w.views, Timestamp(NOW.0 + minutes * 60_000));
    let all = |last: Option<&str>| {
        let last = last.map(|name| name.parse().expect("a name"));
        [Due { job: JobId(id(JOB)), last, sources: None }]
    };
    assert_eq!(due(&w, 59), []);
    assert_eq!(due(&w, 60), all(None));
    assert_eq!(due(&w, 600), all(None), "once for all that was missed");
    let next = |w: &World| plan::next_start(&w.views, JobId(id(JOB)), w.now);
    assert_eq!(next(&w), Some(Timestamp(NOW.0 + 60 * 60_000)));
    let seen = due(&w, 600).remove(0);
    assert!(plan::still_stands(&w.state, &seen));
    w.now = Timestamp(NOW.0 + 600 * 60_000 + 999);
    start(&mut w, 1);
    assert_eq!(due(&w, 600), []);
    assert_eq!(due(&w, 659), []);
    assert!(!plan::still_stands(&w.state, &seen), "somebody was faster");
    let name = wanted(&w, run_of(1, 1));
    assert_eq!(due(&w, 660), all(Some(&name)));
    assert_eq!(next(&w), Some(Timestamp(NOW.0 + 660 * 60_000)));
    w.stop_run(run_of(1, 1));
    w.stop_run(run_of(1, 2));
    w.must(|s| job::decide(s, job::Command::Delete { job: JobId(id(JOB)) }));
    assert_eq!(due(&w, 999_999), []);
    // By hand alone, none is ever due.
    let w = at_work(When::Manual, last(2));
    assert_eq!(due(&w, 999_999), []);
}

#[test]
fn sources_of_a_continuous_backup_are_watched_and_started_each_for_itself() {
    let mut w = at_work(When::Continuous { quiet_seconds: 5, minutes: 10 }, last(2));
    let folder = |order: &plan::Order| match &order.body {
        CommandBody::WatchBackup(told) => told.folder.clone(),
        body => panic!("{body:?}"),
    };
    let orders = w.issue_backup(JOB);
    let told: Vec<_> = orders.iter().map(|order| (order.agent, folder(order))).collect();
    let watched = WatchedFolder { path: b"/srv/data".to_vec(), quiet_seconds: 5, pause_minutes: 10 };
    assert_eq!(told, [(agent_id(1), Some(watched.clone())), (agent_id(2), Some(watched))]);
    assert!(w.issue_backup(JOB).is_empty());
    let changed = || -> ReportBody { SourceChanged { job: JobId(id(JOB)) }.into() };
    let due = |w: &World, minutes: u64| plan::due(&w.views, Timestamp(w.now.0 + minutes * 60_000));
    assert_eq!(due(&w, 60), []);
    assert!(kinds(&w.says(3, vec![changed()])).is_empty(), "it is no source");
    assert_eq!(kinds(&w.says(1, vec![changed(), changed()])), ["backup.source_changed"], "told once");
    let only = BTreeSet::from([agent_id(1)]);
    let first = due(&w, 0).remove(0);
    assert_eq!(first.sources.as_ref().map(|s| s.keys().copied().collect()), Some(only.clone()));
    assert!(plan::still_stands(&w.state, &first));
    let started =
        batch::start(&w.state, BatchId(id(1)), JobId(id(JOB)), Some(&only), w.now).expect("started");
    assert_eq!(started.events.len(), 1);
    w.happen(started.events);
    assert!(!plan::still_stands(&w.state, &first));
    assert_eq!(due(&w, 60), [], "nothing changed since");
    assert_eq!(kinds(&w.says(1, vec![changed()])), ["backup.source_changed"]);
    assert_eq!(due(&w, 60), [], "it is still at work");
    finish(&mut w, run_of(1, 1), 1, &[3, 4], RunAgentState::Done, 10);
    assert_eq!(due(&w, 9), [], "not so soon");
    let again = due(&w, 10).remove(0);
    assert_eq!(again.sources.map(|s| s.keys().copied().collect()), Some(only));
    // One that refuses is not asked again; one that leaves, or whose job is deleted, is told.
    let (sequence, command) = w.waiting(2);
    w.says(2, vec![CommandRefused { command, sequence, reason: RefusalReason::NotUnderstood }.into()]);
    assert!(w.issue_backup(JOB).is_empty());
    w.must(|s| job::decide(s, job::Command::Delete { job: JobId(id(JOB)) }));
    let orders = w.issue_backup(JOB);
    assert_eq!(
        orders.iter().map(|order| (order.agent, folder(order))).collect::<Vec<_>>(),
        [(agent_id(1), None), (agent_id(2), None)]
    );
    assert!(w.views.backups.jobs.is_empty(), "nothing is known of it any more");
    assert_eq!(w.rebuilt(), w.views);
}

#[test]
fn groups_of_sources_are_watched_as_they_change() {
    let mut w = world(4);
    w.create_group(1, &[1, 2]);
    let group = GroupId(id(1));
    let place = Place { party: Party::Group(group), path: "data".into() };
    let when = When::Continuous { quiet_seconds: 1, minutes: 1 };
    w.create_job(JOB, backup(&[place], &[at(4, "kept")], when, last(1))).expect("a job");
    let agents = |w: &mut World| w.issue_backup(JOB).iter().map(|order| order.agent).collect::<Vec<_>>();
    assert_eq!(agents(&mut w), [agent_id(1), agent_id(2)]);
    w.must(|s| group::decide(s, group::Command::Add { group, agents: vec![agent_id(3)] }));
    assert_eq!(agents(&mut w), [agent_id(3)]);
    w.must(|s| group::decide(s, group::Command::Remove { group, agents: vec![agent_id(1)] }));
    assert_eq!(agents(&mut w), [agent_id(1)], "no more");
    w.must(|s| agent::decide(s, agent::Command::Remove { agent: agent_id(2) }));
    assert!(agents(&mut w).is_empty());
    assert!(!w.views.backups.jobs[&JobId(id(JOB))].sources.contains_key(&agent_id(2)));
}

#[test]
fn who_was_removed_stops_no_backup_of_the_others() {
    let mut w = at_work(When::Manual, last(1));
    w.must(|s| agent::decide(s, agent::Command::Remove { agent: agent_id(1) }));
    w.must(|s| agent::decide(s, agent::Command::Remove { agent: agent_id(4) }));
    assert_eq!(start(&mut w, 1), [run_of(1, 2)]);
    let agents: Vec<_> = w.views.runs.runs[&run_of(1, 2)].agents.keys().copied().collect();
    assert_eq!(agents, BTreeSet::from([agent_id(2), agent_id(3)]).into_iter().collect::<Vec<_>>());
    w.must(|s| agent::decide(s, agent::Command::Remove { agent: agent_id(3) }));
    refused(w.start_batch(2, JOB), "removed");
}

#[test]
fn a_restore_is_a_run_from_storage_that_loses_nothing() {
    let mut w = at_work(When::Manual, last(3));
    start(&mut w, 1);
    let old = finish(&mut w, run_of(1, 1), 1, &[3, 4], RunAgentState::Done, 50);
    w.stop_run(run_of(1, 2));
    w.now = Timestamp(w.now.0 + 3_600_000);
    start(&mut w, 2);
    let new = finish(&mut w, run_of(2, 1), 1, &[4], RunAgentState::Done, 50);
    // Agent 3 has not ended yet; it is not asked for the new one.
    let whole = w.must(|s| restore::decide(s, &wish(10)));
    let Some(Event::RunStarted(e)) = whole.first() else { panic!("{whole:?}") };
    assert_eq!(e.purpose, Purpose::Restore { of: agent_id(1), version: new.clone() });
    let parts: Vec<_> = e
        .participants
        .iter()
        .map(|p| (p.agent, p.role, String::from_utf8_lossy(e.path(p)).into_owned()))
        .collect();
    assert_eq!(
        parts,
        [
            (agent_id(4), Role::Source, format!("/vault/agent-1/{new}")),
            (agent_id(1), Role::Destination, "/srv/data".into())
        ]
    );
    assert!(w.must(|s| restore::decide(s, &wish(10))).is_empty(), "asked twice");
    refused(restore::decide(&w.state, &wish(11)), "already");
    let orders = w.issue(10);
    let keeps: Vec<bool> = orders.iter().map(|o| matches!(o.task, Task::Join { keeps: true, .. })).collect();
    assert_eq!(keeps, [true, false], "the destination keeps what it replaces");
    // What storage finds damaged is the run's problem, told before the manifest; nobody says before that all is well.
    let run = RunId(id(10));
    let ended = RunCompleted { run, state: RunAgentState::Done, stats: TransferStats::default() };
    assert_eq!(outcome(&w.says(1, vec![ended.into()])), None);
    let problem =
        Problem { class: ProblemClass::Damaged, path: b"docs/a".to_vec(), detail: "differs".into() };
    let signed = ManifestSigned { run, root: [1; 32], entries: 49, bytes: 1, blocks: 1 };
    let events = w.says(4, vec![ProblemReported { run, problem }.into(), signed.into()]);
    assert_eq!(outcome(&events), Some(Outcome::SucceededWithErrors));
    // A file of the older version, to another agent.
    let some = Restore {
        which: Which::At(Timestamp(w.now.0 - 1)),
        path: b"docs//plans/a.txt".to_vec(),
        to: Some(agent_id(2)),
        from: Some(agent_id(3)),
        ..wish(12)
    };
    let events = w.must(|s| restore::decide(s, &some));
    let Some(Event::RunStarted(e)) = events.first() else { panic!("{events:?}") };
    let paths: Vec<_> = e.paths.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
    assert_eq!(paths, [format!("kept/agent-1/{old}/docs/plans/a.txt"), "/srv/data/docs/plans".into()]);
    let elsewhere =
        Restore { run: RunId(id(13)), folder: Some(b"/tmp/x".to_vec()), to: Some(agent_id(1)), ..some };
    let events = w.must(|s| restore::decide(s, &elsewhere));
    let Some(Event::RunStarted(e)) = events.first() else { panic!("{events:?}") };
    assert_eq!(String::from_utf8_lossy(&e.paths[1]), "/tmp/x");
    // A source that gets something back can be backed up.
    w.stop_run(run_of(2, 1));
    w.stop_run(run_of(2, 2));
    w.now = Timestamp(w.now.0 + 3_600_000);
    assert_eq!(start(&mut w, 4).len(), 2);
    assert_eq!(w.rebuilt(), w.views);
}

#[test]
fn what_cannot_be_restored_is_refused_with_the_reason() {
    let mut w = at_work(When::Manual, last(3));
    let ask = |w: &World, change: &dyn Fn(&mut Restore)| {
        let mut wish = wish(10);
        change(&mut wish);
        restore::decide(&w.state, &wish)
    };
    refused(ask(&w, &|_| ()), "no version");
    start(&mut w, 1);
    let version = finish(&mut w, run_of(1, 1), 1, &[3], RunAgentState::Done, 50);
    let name = version.parse().expect("a name");
    assert!(ask(&w, &|wish| wish.which = Which::Named(name)).is_ok());
    let other = "2020-01-01T000000Z".parse().expect("a name");
    refused(ask(&w, &|wish| wish.which = Which::Named(other)), "2020-01-01T000000Z");
    refused(ask(&w, &|wish| wish.which = Which::At(Timestamp(NOW.0 - 1000))), "or before");
    refused(ask(&w, &|wish| wish.from = Some(agent_id(4))), "no version");
    refused(ask(&w, &|wish| wish.source = agent_id(2)), "no version");
    refused(ask(&w, &|wish| wish.to = Some(agent_id(3))), "copy it");
    refused(ask(&w, &|wish| wish.to = Some(agent_id(9))), "no agent");
    refused(ask(&w, &|wish| wish.job = JobId(id(7))), "no job");
    for path in [&b"/etc"[..], b"../x", b"a/../b", b".", b"a/./b", b".flotilla/versions", b"a\0b"] {
        refused(ask(&w, &|wish| wish.path = path.to_vec()), "path");
    }
    refused(ask(&w, &|wish| wish.path = vec![b'x'; 5000]), "at most");
    refused(ask(&w, &|wish| wish.folder = Some(vec![])), "path");
    // The source is gone, and its folder with it: what was kept is not.
    w.must(|s| agent::decide(s, agent::Command::Remove { agent: agent_id(1) }));
    refused(ask(&w, &|_| ()), "removed");
    assert!(ask(&w, &|wish| wish.to = Some(agent_id(2))).is_ok(), "the job knows its folder");
    // So is the storage: nothing is to be had.
    w.must(|s| agent::decide(s, agent::Command::Remove { agent: agent_id(3) }));
    refused(ask(&w, &|wish| wish.to = Some(agent_id(2))), "no version");
    w.create_job(2, distribution(at(2, "a"), &[at(4, "b")])).expect("a job");
    refused(ask(&w, &|wish| wish.job = JobId(id(2))), "no backup");
}

#[test]
fn what_makes_no_sense_as_a_backup_is_refused() {
    let mut w = world(3);
    let (from, to) = ([at(1, "a")], [at(3, "b")]);
    refused(w.create_job(1, backup(&[], &to, When::Manual, last(1))), "sources");
    refused(w.create_job(1, backup(&from, &[], When::Manual, last(1))), "destinations");
    refused(w.create_job(1, backup(&from, &[at(1, "b")], When::Manual, last(1))), "among the destinations");
    refused(w.create_job(1, backup(&from, &to, When::Manual, Keep::NOTHING)), "keeps something");
    refused(w.create_job(1, backup(&from, &to, When::Every { minutes: 0 }, last(1))), "minute");
    let calendar = When::Calendar { expression: "0 0 30 2 *".into() };
    refused(w.create_job(1, backup(&from, &to, calendar, last(1))), "calendar");
    let hook = Some("rm -rf /".into());
    let options: Private<RunOptions> = RunOptions { hook, ..RunOptions::default() }.into();
    let (source, destinations) = (at(1, "a"), to.to_vec());
    let spec = |options| JobSpec::Distribution {
        source: source.clone(),
        destinations: destinations.clone(),
        options,
    };
    refused(w.create_job(1, spec(options)), "hook");
    // Below level 5 neither is taken, nor what agents tell of them.
    let mut w = World::with_run(3);
    w.happen(vec![SchemaRaised { level: 4 }.into()]);
    refused(w.create_job(2, backup(&from, &to, When::Manual, last(1))), "level 4");
    let options = RunOptions { rules: vec!["*.tmp".into()], ..RunOptions::default() };
    refused(w.create_job(2, spec(options.into())), "level 4");
    let problem = Problem { class: ProblemClass::Damaged, path: vec![], detail: "x".into() };
    for body in [
        SourceChanged { job: JobId(id(1)) }.into(),
        ReportBody::from(ProblemReported { run: RunId(id(1)), problem }),
    ] {
        let reports = w.reports(1, vec![body]);
        let told = report::decide(&w.state, agent_id(1), &reports);
        assert!(matches!(&told, Err(Rejection::Refused { reason: RefusalReason::TooEarly, .. })), "{told:?}");
    }
}

#[test]
fn options_of_a_job_reach_every_agent_of_its_runs() {
    let mut w = world(3);
    let options = RunOptions {
        rules: vec!["*.tmp".into()],
        first: vec!["/boot".into()],
        hook: Some("stop-web".into()),
        hook_timeout_s: Some(7),
    };
    let (source, destinations) = (at(1, "a"), vec![at(2, "b"), at(3, "b")]);
    let spec = JobSpec::Distribution { source, destinations, options: options.clone().into() };
    w.create_job(1, spec).expect("a job");
    w.start(1, 1).expect("a run");
    for order in w.issue(1) {
        let body = order.task.into_body(order.run, vec![], vec![]);
        let CommandBody::TakePart(told) = body else { panic!("{body:?}") };
        assert_eq!((told.options, told.purpose, told.keeping), (options.clone(), Purpose::Plain, false));
    }
}

#[test]
fn a_backup_is_erased_when_nothing_of_it_waits() {
    let mut w = at_work(When::Continuous { quiet_seconds: 5, minutes: 10 }, last(2));
    let subject = Subject::Job(JobId(id(JOB)));
    w.happen(vec![SubjectOpened { subject, commitment: [7; 32] }.into()]);
    let erase = |w: &mut World| w.decide(|s| control_core::subject::erase(s, subject, "asked for"));
    refused(erase(&mut w), "about to be given");
    w.issue_backup(JOB);
    refused(erase(&mut w), "wait for agent-1, agent-2");
    for n in [1, 2] {
        let accepted = w.accepts(n);
        w.says(n, vec![accepted]);
    }
    assert_eq!(erase(&mut w).expect("erased").len(), 2);
    // The agents are told to watch no more, in the clear: nobody could read it else.
    let orders = w.issue_backup(JOB);
    assert_eq!(orders.len(), 2);
    let waiting = &w.views.mailboxes.agents[&agent_id(1)].waiting;
    assert!(waiting.values().all(Private::is_clear));
}
