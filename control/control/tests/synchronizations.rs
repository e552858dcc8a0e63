//! Synchronizations as a client of the API meets them: made, changed while they run, guards answered, conflicts listed,
//! stopped, erased; the agents speak through the gateway's side of the service.

mod support;

use std::net::SocketAddr;
use std::path::Path;

use agent_proto::link::{Progress, SyncPhase, SyncProgress};
use control::config::Settings;
use control::gateway::Fleet as _;
use control::serve::{self, Running};
use event_schema::*;
use serde_json::{Value, json};
use support::FakeAgent;

async fn start(data: &Path) -> Running {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let settings =
        Settings { data: Some(data.into()), http: Some(any), gateway: Some(any), ..Settings::default() };
    serve::start(&settings.complete().expect("good")).await.expect("starts")
}

async fn ask(running: &Running, method: &str, path: &str, body: Value) -> (u16, Value) {
    let url = format!("http://{}/api/v1/{path}", running.http);
    let token = format!("Bearer {}", running.token);
    let method = method.to_owned();
    let asking = tokio::task::spawn_blocking(move || {
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let agent: ureq::Agent = config.into();
        let mut answer = match method.as_str() {
            "GET" => agent.get(&url).header("Authorization", &token).call(),
            "PUT" => agent.put(&url).header("Authorization", &token).send_json(body),
            _ => agent.post(&url).header("Authorization", &token).send_json(body),
        }
        .expect("an answer");
        (answer.status().as_u16(), answer.body_mut().read_json::<Value>().expect("JSON"))
    });
    asking.await.expect("no panic")
}

async fn good(running: &Running, method: &str, path: &str, body: Value) -> Value {
    let (status, answer) = ask(running, method, path, body).await;
    assert!(status == 200 || status == 201, "{method} {path}: {status} {answer}");
    answer
}

async fn get(running: &Running, path: &str) -> Value {
    good(running, "GET", path, Value::Null).await
}

/// The next command of an agent, taken.
async fn obey(running: &Running, agent: &mut FakeAgent) -> CommandBody {
    let mut watch = running.service.command_watch(agent.id);
    let cursor = agent.cursor;
    let waiting = watch.wait_for(|sequence| *sequence > cursor);
    tokio::time::timeout(std::time::Duration::from_secs(20), waiting)
        .await
        .expect("a command in time")
        .expect("the service lives");
    let (sequence, signed) =
        running.service.commands_after(agent.id, cursor, 1).await.pop().expect("a command");
    let command = Command::decode(&signed.bytes).expect("a command");
    agent.cursor = sequence;
    agent.report(&running.service, CommandAccepted { command: command.id, sequence }).await.expect("taken");
    command.body
}

async fn synchronize(running: &Running, agent: &mut FakeAgent) -> Synchronize {
    match obey(running, agent).await {
        CommandBody::Synchronize(told) => told,
        other => panic!("{other:?}"),
    }
}

fn tell(running: &Running, agent: &FakeAgent, run: RunId, sync: SyncProgress) {
    let progress = Progress {
        run,
        state: RunAgentState::Synchronizing,
        blocks_done: 0,
        blocks_total: 0,
        bytes_done: 0,
        bytes_total: 0,
        bytes_sent: 0,
        peers: 2,
        entries: sync.entries,
        connections: None,
        sync: Some(sync),
        standing: None,
    };
    running.service.progress(agent.id, progress);
}

fn at(phase: SyncPhase, left: u64) -> SyncProgress {
    SyncProgress { phase, entries: 40, left, bytes_left: left * 1_000, conflicts: 0, blocked: 0 }
}

fn member<'v>(view: &'v Value, agent: &FakeAgent) -> &'v Value {
    let agents = view["agents"].as_array().expect("agents");
    let id = agent.id.to_string();
    &agents.iter().find(|shown| shown["id"] == id.as_str()).expect("it takes part")["member"]
}

#[tokio::test(flavor = "multi_thread")]
async fn made_changed_answered_and_stopped() {
    let dir = tempfile::tempdir().expect("a folder");
    let running = start(dir.path()).await;
    let mut agents = support::agents(&running.service, 4).await;
    let name = |n: usize| agents[n].id.to_string();
    let names: Vec<String> = (0..4).map(name).collect();
    let wish = json!({
        "kind": "synchronization", "name": "plans",
        "members": [
            {"party": names[0], "path": "/srv/plans"},
            {"party": names[1], "path": "plans", "ignore": ["*.tmp"], "wanted": ["/docs"]},
            {"party": names[2], "path_hex": "ff", "permission": "read_only"},
        ],
        "policy": {"archive": "30d,10GB", "guard_percent": 50},
    });
    let started = good(&running, "POST", "jobs", wish.clone()).await;
    let run: RunId = started["run"].as_str().expect("a run").parse().expect("an id");
    let job = get(&running, "jobs/plans").await;
    assert_eq!((&job["kind"], job["members"].as_array().map(Vec::len)), (&"synchronization".into(), Some(3)));
    assert_eq!(job["policy"], json!({"archive": "30d,10GB", "guard_percent": 50, "guard_min": 20}), "{job}");
    assert_eq!(job["members"][2]["path_hex"], "ff");

    for agent in &mut agents[..3] {
        let told = synchronize(&running, agent).await;
        assert_eq!((told.run, told.revision, told.members.len()), (run, 1, 3));
        assert!(!told.sealed_secret.is_empty(), "the run's secret goes with it");
        let body = RunStateReported { run, state: RunAgentState::Synchronizing };
        agent.report(&running.service, body).await.expect("taken");
    }
    // It has no end; how it stands is what its members tell.
    let path = format!("runs/{run}");
    let shown = get(&running, &path).await;
    assert_eq!((&shown["state"], &shown["outcome"]), (&"synchronizing".into(), &Value::Null));
    assert_eq!((&shown["sync"]["status"], &shown["eta_seconds"]), (&"3 of 3 behind".into(), &Value::Null));
    tell(&running, &agents[0], run, at(SyncPhase::InSync, 0));
    tell(&running, &agents[1], run, at(SyncPhase::Syncing, 7));
    tell(&running, &agents[2], run, at(SyncPhase::InSync, 0));
    let shown = get(&running, &path).await;
    assert_eq!(shown["sync"]["status"], "1 of 3 behind");
    let behind = member(&shown, &agents[1]);
    assert_eq!(
        (&behind["standing"], &behind["left_entries"], &behind["left_bytes"], &behind["ignore"]),
        (&"syncing".into(), &7.into(), &7_000.into(), &json!(["*.tmp"]))
    );
    tell(&running, &agents[1], run, at(SyncPhase::InSync, 0));
    assert_eq!(get(&running, &path).await["sync"]["status"], "in sync");
    assert_eq!(get(&running, "status").await["runs"]["synchronizing"], 1);
    let before = get(&running, "status").await["position"].clone();

    let explained = async |running: &_, n: usize| {
        let all = get(running, &format!("{path}/explain")).await;
        let of = all["agents"]
            .as_array()
            .expect("agents")
            .iter()
            .find(|a| a["agent"] == names[n].as_str())
            .cloned();
        let of = of.expect("a member");
        (of["reason"].as_str().expect("a code").to_owned(), of["text"].as_str().expect("words").to_owned())
    };
    tell(&running, &agents[2], run, at(SyncPhase::Syncing, 3));
    let (reason, text) = explained(&running, 2).await;
    assert_eq!((reason.as_str(), text.contains("3 entries")), ("syncing", true), "{text}");
    tell(&running, &agents[2], run, at(SyncPhase::Scanning, 0));
    assert_eq!(explained(&running, 2).await.0, "scanning");
    tell(&running, &agents[2], run, at(SyncPhase::InSync, 0));

    // A guard asks; a person answers that member and no other.
    let raised = GuardRaised { run, guard: 77, missing: 30, total: 40 };
    agents[1].report(&running.service, raised).await.expect("taken");
    let shown = get(&running, &path).await;
    let status = shown["sync"]["status"].as_str().expect("a status").to_owned();
    assert!(status.starts_with("guard asks at fake"), "{status}");
    assert_eq!(member(&shown, &agents[1])["guard"]["missing"], 30);
    let (reason, text) = explained(&running, 1).await;
    assert_eq!(reason, "guarded");
    assert!(text.starts_with("30 of 40 entries") && text.contains("flotilla sync confirm"), "{text}");
    let guard = format!("{path}/guard");
    for (wish, code) in [
        (json!({"agent": names[1], "answer": "perhaps"}), 400),
        (json!({"agent": names[0], "answer": "delete"}), 409),
        (json!({"agent": "nobody", "answer": "delete"}), 404),
    ] {
        let (status, answer) = ask(&running, "POST", &guard, wish.clone()).await;
        assert_eq!(status, code, "{wish}: {answer}");
    }
    let answered = good(&running, "POST", &guard, json!({"agent": names[1], "answer": "restore"})).await;
    assert_eq!(member(&answered, &agents[1])["guard"]["answer"], "restore");
    match obey(&running, &mut agents[1]).await {
        CommandBody::AnswerGuard(told) => {
            assert_eq!((told.run, told.guard, told.answer), (run, 77, GuardAnswer::Restore));
        }
        other => panic!("{other:?}"),
    }
    let lifted = GuardLifted { run, guard: 77, answer: Some(GuardAnswer::Restore) };
    agents[1].report(&running.service, lifted).await.expect("taken");
    assert_eq!(get(&running, &path).await["sync"]["status"], "in sync");

    // Conflicts, blocked paths, an index that was rolled back.
    let conflict = ConflictKey { agent: [0xab; 4], replica: [1, 2], change: 9 };
    let found = ConflictFound {
        run,
        conflict,
        path: b"a/\xff".to_vec(),
        copy: b"a/x.conflict-abababab-01029".to_vec(),
        loser: agents[0].id,
        winner: agents[1].id,
    };
    agents[0].report(&running.service, found.clone()).await.expect("taken");
    agents[2].report(&running.service, found).await.expect("taken");
    let (path_bytes, by) = (b"A".to_vec(), b"a".to_vec());
    let blocked = PathBlocked { run, number: 1, path: path_bytes, obstacle: Obstacle::NameTaken, by };
    agents[2].report(&running.service, blocked).await.expect("taken");
    agents[2].report(&running.service, RolledBack { run }).await.expect("taken");
    let shown = get(&running, &path).await;
    assert_eq!(shown["sync"]["status"], "in sync, 1 conflict, 1 path blocked");
    let third = member(&shown, &agents[2]);
    assert_eq!((&third["blocked"][0]["by"], &third["rolled_back"]), (&"a".into(), &1.into()));
    let listed = get(&running, &format!("{path}/conflicts")).await;
    assert_eq!(listed["conflicts"].as_array().map(Vec::len), Some(1), "{listed}");
    let first = &listed["conflicts"][0];
    assert_eq!(
        (&first["path_hex"], &first["copy"]),
        (&"612fff".into(), &"a/x.conflict-abababab-01029".into())
    );
    agents[1].report(&running.service, ConflictSettled { run, conflict }).await.expect("taken");
    let listed = get(&running, &format!("{path}/conflicts")).await;
    assert_eq!((listed["conflicts"].as_array().map(Vec::len), &listed["settled"]), (Some(0), &1.into()));

    // One more, one less, another policy: all that stays are told.
    let change = json!({
        "add": [{"party": names[3], "path": "p", "permission": "read_only_revert"}], "remove": [names[2]],
    });
    let changed = good(&running, "POST", &format!("{path}/members"), change).await;
    assert_eq!((&changed["sync"]["members"], &changed["sync"]["revision"]), (&3.into(), &2.into()));
    assert!(matches!(obey(&running, &mut agents[2]).await, CommandBody::StopRun(stop) if stop.run == run));
    for n in [0, 1, 3] {
        let told = synchronize(&running, &mut agents[n]).await;
        assert!(told.revision == 2 && told.members.iter().all(|peer| peer.agent != agents[2].id));
    }
    let served = RunServed { run, stats: TransferStats::default() };
    agents[2].report(&running.service, served).await.expect("taken");
    let policy = good(&running, "PUT", &format!("{path}/policy"), json!({"archive": "none"})).await;
    let expected = json!({"archive": "none", "guard_percent": 50, "guard_min": 20});
    assert_eq!(policy["sync"]["policy"], expected, "what is not named stays");
    for n in [0, 1, 3] {
        assert_eq!(synchronize(&running, &mut agents[n]).await.policy.archive, None);
    }
    for (what, wish, code) in [
        ("members", json!({}), 400),
        ("members", json!({"add": [{"party": names[0], "path": "other"}]}), 409),
        ("members", json!({"add": [{"party": names[0], "path": "/srv/plans", "permission": "rw"}]}), 400),
        ("members", json!({"remove": ["nobody"]}), 404),
        ("members", json!({"remove": [names[2]]}), 409),
    ] {
        let (status, answer) = ask(&running, "POST", &format!("{path}/{what}"), wish.clone()).await;
        assert_eq!(status, code, "{wish}: {answer}");
    }
    let (status, _) = ask(&running, "PUT", &format!("{path}/policy"), json!({"archive": "long"})).await;
    assert_eq!(status, 400);

    // As it was, before all that: facts alone, as nobody records how far members were.
    let past = get(&running, &format!("{path}?at={before}")).await;
    assert_eq!((&past["sync"]["revision"], &past["sync"]["members"]), (&1.into(), &3.into()));
    assert_eq!(past["sync"]["policy"]["archive"], "30d,10GB");
    let history = get(&running, &format!("{path}/history")).await;
    let kinds: Vec<&str> = history["history"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|event| event["kind"].as_str())
        .collect();
    for kind in ["run.members_set", "run.guard_answered", "run.conflict_found", "run.path_blocked"] {
        assert!(kinds.contains(&kind), "{kind} is not among {kinds:?}");
    }

    // Stopped, and only then deleted.
    let stopped = good(&running, "POST", &format!("{path}/stop"), json!({})).await;
    assert_eq!((&stopped["state"], &stopped["sync"]["status"]), (&"stopped".into(), &"stopped".into()));
    for n in [0, 1, 3] {
        assert!(matches!(obey(&running, &mut agents[n]).await, CommandBody::StopRun(_)));
        let served = RunServed { run, stats: TransferStats::default() };
        agents[n].report(&running.service, served).await.expect("taken");
    }
    let (status, _) = ask(&running, "POST", &format!("{path}/members"), json!({"remove": [names[0]]})).await;
    assert_eq!(status, 409);
    assert_eq!(get(&running, "log/check").await["equal"], true);

    // What was private is, and goes with the job's key.
    let erased =
        good(&running, "POST", "erase", json!({"kind": "job", "name": "plans", "reason": "duty"})).await;
    assert_eq!(erased["subject"], format!("job/{}", started["job"].as_str().expect("an id")), "{erased}");
    let shown = get(&running, &path).await;
    assert_eq!(
        (&shown["job_name"], &member(&shown, &agents[1])["ignore"]),
        (&"[erased]".into(), &Value::Null)
    );
    running.stop().await;

    // Once more from the log alone.
    let running = start(dir.path()).await;
    let again = get(&running, &path).await;
    assert_eq!((&again["state"], &again["sync"]["conflicts_settled"]), (&"stopped".into(), &1.into()));
    assert_eq!(get(&running, "log/check").await["equal"], true);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let running = start(dir.path()).await;
    let agents = support::agents(&running.service, 2).await;
    let (one, two) = (agents[0].id.to_string(), agents[1].id.to_string());
    let member = json!({"party": one, "path": "a"});
    let cases = [
        (json!({"kind": "synchronization", "name": "x"}), "1 to 256 members"),
        (json!({"kind": "sync", "name": "x", "members": [member]}), "members and policy are of"),
        (
            json!({"kind": "synchronization", "name": "x", "members": [member], "destinations": [member]}),
            "members and a policy",
        ),
        (
            json!({"kind": "distribution", "name": "x", "source": member, "members": [member]}),
            "are of synchronizations",
        ),
        (
            json!({"kind": "synchronization", "name": "x", "members": [member], "policy": {"archive": "ever"}}),
            "an archive is kept for",
        ),
        (
            json!({"kind": "synchronization", "name": "x", "members": [member], "policy": {"guard_percent": 0}}),
            "1 to 100",
        ),
        (
            json!({"kind": "synchronization", "name": "x",
                "members": [{"party": two, "path": "a", "permission": "read_only"}]}),
            "nobody could change anything",
        ),
    ];
    for (wish, word) in cases {
        let (status, answer) = ask(&running, "POST", "jobs", wish.clone()).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 400 && message.contains(word), "{wish}: {status} {answer}");
    }
    // A run of another kind has neither members nor conflicts.
    let wish = json!({"kind": "distribution", "name": "d", "source": {"party": one, "path": "a"},
        "destinations": [{"party": two, "path": "b"}]});
    let run = good(&running, "POST", "jobs", wish).await["run"].as_str().expect("a run").to_owned();
    let (status, answer) = ask(&running, "GET", &format!("runs/{run}/conflicts"), Value::Null).await;
    assert_eq!(status, 409, "{answer}");
    let add = json!({"add": [{"party": two, "path": "b"}]});
    let (status, answer) = ask(&running, "POST", &format!("runs/{run}/members"), add).await;
    assert_eq!(status, 409, "{answer}");
    running.stop().await;
}
