//! Snapshots: what is read back decides and answers as before, and a type that changes is noticed.

mod support;

use std::collections::BTreeMap;

use control_core::plan;
use control_core::snapshot::{Snapshot, SnapshotRef, VERSION};
use event_schema::*;
use sha2::{Digest, Sha256};
use support::*;

fn encode(world: &World) -> Vec<u8> {
    let correlations = BTreeMap::from([(RunId([1; 16]), RecordId([2; 16]))]);
    let (state, views) = (&world.state, &world.views);
    SnapshotRef { state, views, correlations: &correlations, attested: 7 }.encode()
}

/// A world with something of everything.
fn world() -> World {
    let mut world = World::with_run(4);
    let token = |token| TokenId(id(token));
    let tags = vec![("A".to_owned(), "b".to_owned())];
    world.happen(vec![
        TokenCreated { token: token(1), hash: [1; 32], tags: tags.clone(), uses: 3, expires: Timestamp(9) }
            .into(),
        TokenUsed { token: token(1), agent: agent_id(1) }.into(),
        TokenRevoked { token: token(1) }.into(),
        AgentTagged { agent: agent_id(2), tags: tags.into() }.into(),
        GroupCreated { group: GroupId(id(1)), name: "g".into() }.into(),
        GroupMembersAdded { group: GroupId(id(1)), agents: vec![agent_id(1), agent_id(2)] }.into(),
        EnrolmentRefused {
            reason: RefusalReason::TokenSpent,
            token: None,
            agent: agent_id(9),
            address: "192.0.2.9:1".into(),
        }
        .into(),
        RunManifestReady {
            run: RunId(id(1)),
            agent: agent_id(1),
            root: [3; 32],
            entries: 1,
            bytes: 2,
            blocks: 3,
        }
        .into(),
        RunAgentProgressed {
            run: RunId(id(1)),
            agent: agent_id(2),
            state: RunAgentState::Done,
            stats: Some(TransferStats::default()),
        }
        .into(),
        RunProblemReported::new(
            RunId(id(1)),
            agent_id(3),
            Problem { class: ProblemClass::Io, path: b"\xff".to_vec(), detail: "x".into() },
        )
        .into(),
        RunStopRequested { run: RunId(id(1)), reason: "why".into() }.into(),
        RunFinished { run: RunId(id(1)), outcome: Outcome::Stopped }.into(),
        SubjectOpened { subject: Subject::Agent(agent_id(7)), commitment: [4; 32] }.into(),
        SubjectErased { subject: Subject::Agent(agent_id(7)), reason: "asked for".into() }.into(),
        SubjectOpened { subject: Subject::Agent(agent_id(7)), commitment: [5; 32] }.into(),
        SubjectOpened { subject: Subject::Agent(agent_id(7)), commitment: [6; 32] }.into(),
        SchemaRaised { level: 5 }.into(),
    ]);
    let read_only = Permission::ReadOnly { local: LocalChanges::KeepAside };
    let shares = [share(1, "a", Permission::ReadWrite), share(2, "b", read_only)];
    world.create_job(2, synchronization(&shares)).expect("a job");
    world.start(2, 2).expect("a run");
    world.issue(2);
    let run = RunId(id(2));
    let conflict = ConflictKey { agent: [1; 4], replica: [2; 2], change: 3 };
    let text = ConflictText { path: b"x".to_vec(), copy: b"y".to_vec() };
    let (agent, loser, winner) = (agent_id(2), agent_id(2), agent_id(1));
    world.happen(vec![
        RunConflictFound { run, agent, conflict, loser, winner, text: text.into() }.into(),
        RunGuardRaised { run, agent, guard: 7, missing: 30, total: 40 }.into(),
        RunGuardAnswered { run, agent, guard: 7, answer: GuardAnswer::Delete }.into(),
        RunPathBlocked {
            run,
            agent,
            number: 1,
            obstacle: Obstacle::NotEmpty,
            text: BlockedText::default().into(),
        }
        .into(),
    ]);
    let keep = Keep { last: 1, ..Keep::NOTHING };
    let when = When::Continuous { quiet_seconds: 1, minutes: 1 };
    world.create_job(3, backup(&[at(1, "a")], &[at(4, "b")], when, keep)).expect("a job");
    world.issue_backup(3);
    world.start_batch(3, 3).expect("a start");
    let run = control_core::batch::run_of(BatchId(id(3)), agent_id(1));
    let version = |version: &str, bytes| {
        BackupVersionKept {
            run,
            job: JobId(id(3)),
            agent: agent_id(4),
            source: agent_id(1),
            version: version.into(),
            complete: true,
            shrunk: false,
            unchanged: false,
            entries: 3,
            bytes,
            shelf: "b/agent-1".into(),
        }
        .into()
    };
    world.happen(vec![
        version("2026-11-23T013000Z", 7),
        version("2026-11-23T013000Z-2", 8),
        BackupSourceChanged { job: JobId(id(3)), agent: agent_id(1) }.into(),
        RunFinished { run, outcome: Outcome::Succeeded }.into(),
    ]);
    world.issue_backup(3);
    world
}

#[test]
fn what_is_read_back_is_the_same() {
    let world = world();
    let bytes = encode(&world);
    let read = Snapshot::decode(&bytes).expect("what was written");
    assert_eq!((&read.state, &read.views, read.attested), (&world.state, &world.views, 7));
    assert_eq!(read.views.hash(), world.views.hash());
    for run in read.state.runs() {
        assert_eq!(plan::orders(&read.state, run, 9), plan::orders(&world.state, run, 9));
    }
    for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        assert!(Snapshot::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert!(Snapshot::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
}

/// If this fails, a type in the snapshot has changed: raise `VERSION` and put the new hash here.
#[test]
fn a_type_that_changes_raises_the_version() {
    let hash: [u8; 32] = Sha256::digest(encode(&world())).into();
    let hash: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((VERSION, hash.as_str()), (7, "39fc40e88d8a1cc7"));
}
