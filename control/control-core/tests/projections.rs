//! Projections: the same from zero as step by step, blind to what they have seen; and rules that hold
//! after any sequence of wishes, sensible or not.

mod support;

use std::collections::BTreeSet;

use control_core::projection::Views;
use control_core::replica::Session;
use control_core::{agent, group, job, plan, report, run, token};
use event_schema::*;
use proptest::prelude::*;
use support::*;

/// A wish or a report, of few ids so that they meet.
#[derive(Clone, Debug)]
enum Step {
    Token { n: u8, uses: u32 },
    Revoke { n: u8 },
    Enrol { n: u8, token: Option<u8>, name: u8 },
    Approve(u8),
    Remove(u8),
    Connect(u8),
    Disconnect(u8),
    Tag(u8, u8),
    Group { n: u8, add: Vec<u8>, remove: Vec<u8> },
    Job { n: u8, source: u8, to: Vec<u8>, group: Option<u8> },
    Delete(u8),
    Start { run: u8, job: u8 },
    Stop(u8),
    Issue(u8),
    Answer { n: u8, accept: bool },
    Reports { n: u8, skip: bool, bodies: Vec<(u8, u8)> },
    Restart,
    Later(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let n = || 1u8..7;
    prop_oneof![
        1 => (n(), 0u32..4).prop_map(|(n, uses)| Step::Token { n, uses }),
        1 => n().prop_map(|n| Step::Revoke { n }),
        4 => (n(), proptest::option::of(n()), 0u8..3).prop_map(|(n, token, name)| Step::Enrol { n, token, name }),
        6 => n().prop_map(Step::Approve),
        1 => n().prop_map(Step::Remove),
        2 => n().prop_map(Step::Connect),
        1 => n().prop_map(Step::Disconnect),
        1 => (n(), any::<u8>()).prop_map(|(n, v)| Step::Tag(n, v)),
        1 => (n(), prop::collection::vec(n(), 0..4), prop::collection::vec(n(), 0..3))
            .prop_map(|(n, add, remove)| Step::Group { n, add, remove }),
        3 => (n(), n(), prop::collection::vec(n(), 0..4), proptest::option::of(n()))
            .prop_map(|(n, source, to, group)| Step::Job { n, source, to, group }),
        1 => n().prop_map(Step::Delete),
        5 => (n(), n()).prop_map(|(run, job)| Step::Start { run, job }),
        1 => n().prop_map(Step::Stop),
        4 => n().prop_map(Step::Issue),
        4 => (n(), any::<bool>()).prop_map(|(n, accept)| Step::Answer { n, accept }),
        6 => (n(), prop::bool::weighted(0.1), prop::collection::vec((n(), 0u8..18), 1..5))
            .prop_map(|(n, skip, bodies)| Step::Reports { n, skip, bodies }),
        1 => Just(Step::Restart),
        1 => any::<u16>().prop_map(Step::Later),
    ]
}

fn body(run_number: u8, what: u8) -> ReportBody {
    let states = [
        RunAgentState::Accepted,
        RunAgentState::Indexing,
        RunAgentState::Serving,
        RunAgentState::Transferring,
        RunAgentState::Stalled,
        RunAgentState::Failed,
    ];
    match what {
        0..=5 => state(run_number, states[what as usize]),
        6 | 7 => manifest(run_number),
        8 | 9 => problem(run_number, "x"),
        10 => completed(run_number, RunAgentState::Failed),
        11 => completed(run_number, RunAgentState::DoneWithErrors),
        12..=15 => completed(run_number, RunAgentState::Done),
        _ => served(run_number),
    }
}

fn take(world: &mut World, step: Step) {
    let now = world.now;
    let decided = match step {
        Step::Token { n, uses } => world.create_token(n, uses, 60_000),
        Step::Revoke { n } => {
            world.decide(|s| token::decide(s, token::Command::Revoke { token: TokenId(id(n)) }, now))
        }
        Step::Enrol { n, token, name } => {
            world.enrol(n, &format!("name-{name}"), token.map(|t| (TokenId(id(t)), [t; 32])));
            Ok(vec![])
        }
        Step::Approve(n) => {
            world.decide(|s| agent::decide(s, agent::Command::Approve { agent: agent_id(n) }))
        }
        Step::Remove(n) => world.decide(|s| agent::decide(s, agent::Command::Remove { agent: agent_id(n) })),
        Step::Connect(n) => {
            let (agent, addresses, version) = (agent_id(n), vec![format!("192.0.2.{n}:1")], "v".into());
            world.decide(|s| {
                agent::decide(
                    s,
                    agent::Command::Connected { agent, session: Session::ALONE, addresses, version },
                )
            })
        }
        Step::Disconnect(n) => {
            let (agent, reason) = (agent_id(n), "gone".into());
            world.decide(|s| {
                agent::decide(s, agent::Command::Disconnected { agent, session: Session::ALONE, reason })
            })
        }
        Step::Tag(n, v) => {
            let (agent, tags) = (agent_id(n), vec![("v".into(), v.to_string())]);
            world.decide(|s| agent::decide(s, agent::Command::Tag { agent, tags }))
        }
        Step::Group { n, add, remove } => {
            let group = GroupId(id(n));
            let agents = |list: Vec<u8>| list.into_iter().map(agent_id).collect::<Vec<_>>();
            let (add, remove) = (agents(add), agents(remove));
            let create = group::Command::Create { group, name: format!("group-{n}") };
            world.must(|s| group::decide(s, create));
            let _ = world.decide(|s| group::decide(s, group::Command::Add { group, agents: add }));
            world.decide(|s| group::decide(s, group::Command::Remove { group, agents: remove }))
        }
        Step::Job { n, source, to, group } => {
            let mut destinations: Vec<Place> = to.iter().map(|n| at(*n, "in")).collect();
            destinations.extend(group.map(|n| place(Party::Group(GroupId(id(n))), "in")));
            world.create_job(n, distribution(at(source, "out"), &destinations))
        }
        Step::Delete(n) => world.decide(|s| job::decide(s, job::Command::Delete { job: JobId(id(n)) })),
        Step::Start { run, job } => world.start(run, job),
        Step::Stop(n) => {
            let stop = run::Command::Stop { run: RunId(id(n)), reason: "r".into() };
            world.decide(|s| run::decide(s, stop))
        }
        Step::Issue(n) => {
            world.issue(n);
            Ok(vec![])
        }
        Step::Answer { n, accept } => match world.views.mailboxes.after(agent_id(n), 0, 1).pop() {
            None => Ok(vec![]),
            Some((sequence, signed)) => {
                let command = Command::decode(&signed.bytes).expect("a command").id;
                let body = if accept {
                    CommandAccepted { command, sequence }.into()
                } else {
                    CommandRefused { command, sequence, reason: RefusalReason::NotAllowed }.into()
                };
                let reports = world.reports(n, vec![body]);
                world.decide(|s| report::decide(s, agent_id(n), &reports))
            }
        },
        Step::Reports { n, skip, bodies } => {
            let mut reports = world.reports(n, bodies.into_iter().map(|(r, w)| body(r, w)).collect());
            if skip {
                reports.remove(0);
            }
            world.decide(|s| report::decide(s, agent_id(n), &reports))
        }
        Step::Restart => world.decide(|s| Ok(agent::service_restarted(s))),
        Step::Later(ms) => {
            world.now = Timestamp(world.now.0 + u64::from(ms));
            Ok(vec![])
        }
    };
    // Refusals are fine here: the wishes are random.
    drop(decided);
}

/// What must hold whatever was asked.
fn check(world: &World) {
    let views = &world.views;
    let mut names = BTreeSet::new();
    for agent in views.fleet.agents.values() {
        let removed = agent.standing == control_core::projection::StandingView::Removed;
        assert!(removed || names.insert(agent.name.as_str()), "the name {} twice", agent.name);
        assert!(!agent.online || !removed, "a removed agent is online");
    }
    for token in views.fleet.tokens.values() {
        assert!(token.used_by.len() <= token.uses as usize, "a token was used too often");
    }
    for run in views.runs.runs.values() {
        let destinations = || run.agents.values().filter(|agent| agent.role == Role::Destination);
        assert_eq!(run.agents.len() - destinations().count(), 1, "one source");
        assert!(destinations().count() > 0);
        assert_eq!(run.outcome.is_some(), run.finished.is_some());
        match run.outcome {
            Some(Outcome::Succeeded) => {
                assert!(destinations().all(|agent| agent.state == RunAgentState::Done));
            }
            None => assert!(destinations().any(|agent| !agent.state.is_terminal()), "a run that never ends"),
            _ => {}
        }
    }
    // On the log: sequences without gaps, terminal states never left, one finish per run.
    let mut reports = std::collections::BTreeMap::new();
    let mut commands = std::collections::BTreeMap::new();
    let mut finished = BTreeSet::new();
    let mut ended = std::collections::BTreeMap::new();
    for event in world.records.iter().flat_map(|record| &record.events) {
        match event {
            Event::ReportReceived(e) => {
                let last: &mut u64 = reports.entry(e.agent).or_default();
                assert_eq!(e.sequence, *last + 1, "a gap in reports");
                *last = e.sequence;
            }
            Event::CommandIssued(e) => {
                let last: &mut u64 = commands.entry(e.agent).or_default();
                assert_eq!(e.sequence, *last + 1, "a gap in commands");
                *last = e.sequence;
            }
            Event::RunFinished(e) => assert!(finished.insert(e.run), "a run ended twice"),
            Event::RunAgentProgressed(e) => {
                let before = ended.entry((e.run, e.agent)).or_insert(e.state);
                assert!(!before.is_terminal() || *before == e.state, "{before:?} became {:?}", e.state);
                *before = e.state;
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn rules_hold_and_projections_rebuild(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::with_agents(3);
        for step in steps {
            take(&mut world, step);
        }
        check(&world);
        let rebuilt = world.rebuilt();
        prop_assert_eq!(&rebuilt, &world.views);
        prop_assert_eq!(rebuilt.hash(), world.views.hash());
        // A state folded from zero decides the same.
        let mut state = control_core::State::default();
        for event in world.records.iter().flat_map(|record| &record.events) {
            state.evolve(event);
        }
        prop_assert_eq!(&state, &world.state);
        for run in state.runs() {
            prop_assert_eq!(plan::orders(&state, run, 9), plan::orders(&world.state, run, 9));
        }
    }
}

#[test]
fn what_was_seen_is_passed_over() {
    let world = World::with_run(3);
    let mut views = Views::default();
    for (i, record) in world.records.iter().enumerate() {
        let position = i as u64 + 1;
        assert!(views.apply(position, record));
        let hash = views.hash();
        for earlier in 0..=position {
            assert!(!views.apply(earlier, record), "position {earlier} again");
        }
        assert_eq!(views.hash(), hash);
    }
    assert_eq!(views, world.views);
    assert_eq!(views.position(), world.records.len() as u64);
}

#[test]
fn every_change_shows_in_the_hash() {
    let mut world = World::with_agents(2);
    let mut seen = BTreeSet::from([world.views.hash()]);
    world.create_group(1, &[1]);
    assert!(seen.insert(world.views.hash()));
    world.create_job(1, distribution(at(1, "a"), &[at(2, "b")])).expect("a job");
    assert!(seen.insert(world.views.hash()));
    world.start(1, 1).expect("a run");
    assert!(seen.insert(world.views.hash()));
    world.issue(1);
    assert!(seen.insert(world.views.hash()));
}

#[test]
fn old_runs_make_room() {
    let mut world = World::with_agents(2);
    world.create_job(1, distribution(at(1, "a"), &[at(2, "b")])).expect("a job");
    let kept = control_core::limits::RUNS_KEPT_MAX;
    for n in 0..kept + 50 {
        let mut run_id = [0; 16];
        run_id[..8].copy_from_slice(&(n as u64).to_be_bytes());
        let run = RunId(run_id);
        let started = run::Command::Start { run, job: JobId(id(1)) };
        world.must(|s| run::decide(s, started));
        for n in [1, 2] {
            let state = RunAgentState::Failed;
            world.happen(vec![RunAgentProgressed { run, agent: agent_id(n), state, stats: None }.into()]);
        }
        world.happen(vec![RunFinished { run, outcome: Outcome::Failed }.into()]);
    }
    assert_eq!(world.views.runs.runs.len(), kept);
    assert_eq!(world.state.runs().count(), kept);
    assert_eq!(world.views.jobs.jobs[&JobId(id(1))].runs.len(), 100);
}
