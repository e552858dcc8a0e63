//! Backups as a client of the API meets them: made, started by hand and by a change, versions listed, thinned and given
//! back; the agents speak through the gateway's side of the service.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use control::config::Settings;
use control::gateway::Fleet as _;
use control::serve::{self, Running};
use event_schema::*;
use serde_json::{Value, json};
use support::FakeAgent;

const PATIENCE: Duration = Duration::from_secs(30);

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
            "DELETE" => agent.delete(&url).header("Authorization", &token).call(),
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

async fn refused(running: &Running, path: &str, body: Value, status: u16, word: &str) {
    let (got, answer) = ask(running, "POST", path, body).await;
    assert_eq!(got, status, "{answer}");
    assert!(answer["error"]["message"].as_str().is_some_and(|why| why.contains(word)), "{answer}");
}

/// The next command of an agent, taken.
async fn obey(running: &Running, agent: &mut FakeAgent) -> CommandBody {
    let mut watch = running.service.command_watch(agent.id);
    let cursor = agent.cursor;
    let waiting = watch.wait_for(|sequence| *sequence > cursor);
    tokio::time::timeout(PATIENCE, waiting).await.expect("a command in time").expect("the service lives");
    let (sequence, signed) =
        running.service.commands_after(agent.id, cursor, 1).await.pop().expect("a command");
    let command = Command::decode(&signed.bytes).expect("a command");
    agent.cursor = sequence;
    agent.report(&running.service, CommandAccepted { command: command.id, sequence }).await.expect("taken");
    command.body
}

async fn take_part(running: &Running, agent: &mut FakeAgent) -> TakePart {
    match obey(running, agent).await {
        CommandBody::TakePart(told) => told,
        other => panic!("{other:?}"),
    }
}

async fn finish(running: &Running, agents: &mut [FakeAgent]) {
    for agent in agents {
        let CommandBody::FinishRun(end) = obey(running, agent).await else { panic!("not the end") };
        let served = RunServed { run: end.run, stats: TransferStats::default() };
        agent.report(&running.service, served).await.expect("taken");
    }
}

/// Agents 0 (a source) and 1 (storage) do a run that was started; the version's name, and what storage was told.
async fn keep(
    running: &Running,
    agents: &mut [FakeAgent],
    entries: u64,
    unchanged: Option<&str>,
) -> (String, TakePart) {
    let source = take_part(running, &mut agents[0]).await;
    let run = source.join.run;
    let signed = ManifestSigned { run, root: [7; 32], entries, bytes: entries, blocks: entries };
    agents[0].report(&running.service, signed).await.expect("taken");
    let storage = take_part(running, &mut agents[1]).await;
    assert_eq!(storage.purpose, source.purpose);
    let Purpose::Version { name } = storage.purpose.clone() else { panic!("{storage:?}") };
    let version = unchanged.map_or(name, ToOwned::to_owned);
    let unchanged = unchanged.is_some();
    let kept =
        VersionKept { run, version: version.clone(), complete: true, unchanged, entries, bytes: entries };
    agents[1].report(&running.service, kept).await.expect("taken");
    let done = RunCompleted { run, state: RunAgentState::Done, stats: TransferStats::default() };
    agents[1].report(&running.service, done).await.expect("taken");
    finish(running, &mut agents[..2]).await;
    (version, storage)
}

async fn versions(running: &Running, query: &str) -> Vec<(String, String)> {
    let shown = get(running, &format!("backups/offices/versions{query}")).await;
    let text = |v: &Value| v.as_str().expect("a text").to_owned();
    let versions = shown["versions"].as_array().expect("versions");
    versions.iter().map(|v| (text(&v["version"]), text(&v["state"]))).collect()
}

fn wish(agents: &[FakeAgent], more: Value) -> Value {
    let mut wish = json!({
        "kind": "backup", "name": "offices",
        "sources": [{"party": agents[0].id.to_string(), "path": "/srv/data"}],
        "destinations": [{"party": agents[1].id.to_string(), "path": "kept"}],
    });
    let (Value::Object(wish), Value::Object(more)) = (&mut wish, more) else { panic!("objects") };
    wish.extend(more);
    Value::Object(wish.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_thinned_and_given_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let running = start(dir.path()).await;
    let mut agents = support::agents(&running.service, 3).await;
    let options = json!({"ignore": ["*.tmp"], "first": ["/boot"], "hook": "stop-web", "hook_timeout_s": 7});
    let made = wish(&agents, json!({"keep": {"last": 2}, "options": options}));
    let started = good(&running, "POST", "jobs", made).await;
    assert_eq!(started["runs"].as_array().map(Vec::len), Some(1), "{started}");
    let job = get(&running, "jobs/offices").await;
    assert_eq!((&job["kind"], &job["when"]["kind"]), (&"backup".into(), &"manual".into()));
    assert_eq!((&job["options"], &job["keep"]["last"]), (&options, &2.into()));
    refused(&running, "jobs/offices/start", json!({}), 409, "busy").await;

    // What is asked of runs reaches the agents; where it is kept follows from the source's name.
    let (first, told) = keep(&running, &mut agents, 100, None).await;
    assert_eq!(told.options.hook.as_deref(), Some("stop-web"));
    assert!(told.join.path.starts_with(b"kept/") && !told.keeping);
    let run = get(&running, "runs/latest").await;
    assert_eq!(run["purpose"], json!({"kind": "version", "version": first}));
    assert_eq!(run["options"], options);

    // Nothing changed; then it did, twice: the first one goes.
    good(&running, "POST", "jobs/offices/start", json!({})).await;
    keep(&running, &mut agents, 100, Some(&first)).await;
    assert_eq!(versions(&running, "").await, [(first.clone(), "complete".to_owned())]);
    for _ in 0..2 {
        good(&running, "POST", "jobs/offices/start", json!({})).await;
        keep(&running, &mut agents, 100, None).await;
    }
    let CommandBody::ThinBackup(thin) = obey(&running, &mut agents[1]).await else { panic!("not thinned") };
    assert_eq!((thin.versions.as_slice(), thin.source), (&[first.clone()][..], agents[0].id));
    assert_eq!(versions(&running, "").await.len(), 3, "it has not said so yet");
    let (job, source) = (thin.job, thin.source);
    let thinned = Thinned { job, source, removed: thin.versions, failed: vec![] };
    agents[1].report(&running.service, thinned).await.expect("taken");
    let standing = versions(&running, "").await;
    assert_eq!((standing.len(), standing.iter().any(|(name, _)| *name == first)), (2, false));
    assert_eq!(versions(&running, &format!("?source={}&limit=1", agents[0].id)).await, standing[..1]);
    assert!(versions(&running, &format!("?source={}", agents[2].id)).await.is_empty());
    let page = get(&running, "backups/offices/versions?limit=1").await;
    let next = page["next"].as_str().expect("another page");
    assert_eq!(versions(&running, &format!("?limit=1&after={next}")).await, standing[1..]);
    let shown = get(&running, "backups/offices").await;
    assert_eq!(
        (&shown["sources"][0]["newest"], &shown["sources"][0]["versions"]),
        (&json!(standing[0].0), &2.into())
    );

    // A folder of the older one to the third agent.
    let older = &standing[1].0;
    let source = agents[0].id.to_string();
    let mut back =
        json!({"source": source, "version": older, "path": "docs/plans", "to": agents[2].id.to_string()});
    let restored = good(&running, "POST", "backups/offices/restore", back.clone()).await;
    assert_eq!((&restored["version"], &restored["to"]["path"]), (&json!(older), &"/srv/data/docs".into()));
    let storage = take_part(&running, &mut agents[1]).await;
    assert_eq!(storage.purpose, Purpose::Restore { of: agents[0].id, version: older.clone() });
    assert!(storage.join.path.ends_with(format!("/{older}/docs/plans").as_bytes()));
    let run = storage.join.run;
    let problem =
        Problem { class: ProblemClass::Damaged, path: b"plans/a".to_vec(), detail: "differs".into() };
    agents[1].report(&running.service, ProblemReported { run, problem }).await.expect("taken");
    let signed = ManifestSigned { run, root: [8; 32], entries: 9, bytes: 9, blocks: 9 };
    agents[1].report(&running.service, signed).await.expect("taken");
    let receives = take_part(&running, &mut agents[2]).await;
    assert!(receives.keeping && receives.options.is_none());
    let done = RunCompleted { run, state: RunAgentState::Done, stats: TransferStats::default() };
    agents[2].report(&running.service, done).await.expect("taken");
    let shown = get(&running, &format!("runs/{run}")).await;
    assert_eq!(shown["outcome"], "succeeded_with_errors");
    assert_eq!(
        (&shown["problems"][0]["class"], &shown["purpose"]["kind"]),
        (&"damaged".into(), &"restore".into())
    );

    // What makes no sense is told.
    let path = "backups/offices/restore";
    refused(&running, path, json!({"source": "nobody"}), 404, "nobody").await;
    refused(&running, path, json!({"source": source, "version": "yesterday"}), 400, "name of a version")
        .await;
    refused(&running, path, json!({"source": source, "at": "17"}), 400, "time").await;
    refused(&running, path, json!({"source": source, "at": "2020-01-01T00:00:00Z"}), 409, "or before").await;
    back["path"] = "../etc".into();
    refused(&running, path, back.clone(), 400, "path").await;
    back["path_hex"] = "ff".into();
    refused(&running, path, back, 400, "not both").await;
    let to = json!({"source": source, "to": agents[1].id.to_string()});
    refused(&running, path, to, 409, "itself").await;

    support::agrees_with_its_log(&running.service).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_starts_a_continuous_backup_by_itself() {
    let dir = tempfile::tempdir().expect("a folder");
    let running = start(dir.path()).await;
    let mut agents = support::agents(&running.service, 2).await;
    let when = json!({"kind": "continuous", "quiet_seconds": 1, "minutes": 1});
    let made = good(&running, "POST", "jobs", wish(&agents, json!({"when": when}))).await;
    assert_eq!(made["runs"], json!([]), "it waits for a change");
    let CommandBody::WatchBackup(watch) = obey(&running, &mut agents[0]).await else { panic!("no watch") };
    let folder = watch.folder.expect("a folder");
    assert_eq!((&folder.path[..], folder.quiet_seconds, folder.pause_minutes), (&b"/srv/data"[..], 1, 1));
    let shown = get(&running, "backups/offices").await;
    assert_eq!((&shown["sources"][0]["watch"], &shown["next_start"]), (&"watched".into(), &Value::Null));
    agents[0].report(&running.service, SourceChanged { job: watch.job }).await.expect("taken");
    let (version, _) = keep(&running, &mut agents, 5, None).await;
    assert_eq!(versions(&running, "").await, [(version, "complete".to_owned())]);
    // A further change waits for its time; meanwhile nothing is started.
    agents[0].report(&running.service, SourceChanged { job: watch.job }).await.expect("taken");
    let shown = get(&running, "backups/offices").await;
    assert_eq!(shown["sources"][0]["changed"], true);
    assert!(shown["next_start"].is_string(), "{shown}");
    assert_eq!(get(&running, "runs").await["runs"].as_array().map(Vec::len), Some(1));
    let (status, deleted) = ask(&running, "DELETE", "jobs/offices", Value::Null).await;
    assert_eq!(status, 200, "{deleted}");
    let CommandBody::WatchBackup(end) = obey(&running, &mut agents[0]).await else { panic!("no watch") };
    assert_eq!(end.folder, None);
    support::agrees_with_its_log(&running.service).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let running = start(dir.path()).await;
    let agents = support::agents(&running.service, 2).await;
    for (more, status, word) in [
        (json!({"when": {"kind": "hourly"}}), 400, "manual, every"),
        (json!({"when": {"kind": "every"}}), 400, "manual, every"),
        (json!({"when": {"kind": "every", "minutes": 0}}), 400, "minute"),
        (json!({"when": {"kind": "every", "minutes": 5, "quiet_seconds": 1}}), 400, "manual, every"),
        (json!({"when": {"kind": "calendar", "expression": "@daily"}}), 400, "calendar"),
        (json!({"keep": {}}), 400, "keeps something"),
        (json!({"after": "delete"}), 400, "keep their files"),
        (json!({"options": {"hook": "rm -rf /"}}), 400, "hook"),
        (json!({"options": {"hook_timeout_s": 5}}), 400, "hook"),
        (json!({"kind": "consolidation", "when": {"kind": "manual"}}), 400, "of backups"),
        (json!({"kind": "tape"}), 400, "synchronization or backup"),
    ] {
        refused(&running, "jobs", wish(&agents, more), status, word).await;
    }
    good(&running, "POST", "jobs", wish(&agents, json!({"kind": "consolidation", "start": false}))).await;
    let (status, answer) = ask(&running, "GET", "backups/offices/versions", Value::Null).await;
    assert_eq!(status, 400, "{answer}");
    running.stop().await;
}
