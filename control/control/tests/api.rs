//! The HTTP API as a client meets it: the whole service on loopback, real requests.

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use control::config::{Config, Settings};
use control::gateway::Fleet as _;
use control::privacy::FileKeys;
use control::serve::{self, Running};
use event_schema::{Command, CommandAccepted};
use serde_json::{Value, json};
use support::FakeAgent;

fn config(data: &Path) -> Config {
    let any = |_| SocketAddr::from(([127, 0, 0, 1], 0));
    let settings = Settings {
        data: Some(data.into()),
        http: Some(any(0)),
        gateway: Some(any(1)),
        ..Settings::default()
    };
    settings.complete().expect("good settings")
}

/// One request with its own connection; status and body.
async fn raw(address: SocketAddr, request: Vec<u8>) -> (u16, String) {
    tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        // A server that has seen enough may close while we still write.
        let _ = stream.write_all(&request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_string());
        (status, body)
    })
    .await
    .expect("no panic")
}

struct Client {
    address: SocketAddr,
    token: String,
}

impl Client {
    fn of(running: &Running) -> Self {
        Self { address: running.http, token: running.token.clone() }
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let body = body.map_or(String::new(), |body| body.to_string());
        let request = format!(
            "{method} /api/v1/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        let (status, body) = raw(self.address, request.into_bytes()).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }
}

async fn with_service<F: Future<Output = ()>>(test: impl FnOnce(std::sync::Arc<Running>) -> F) {
    let dir = tempfile::tempdir().expect("a folder");
    let running = std::sync::Arc::new(serve::start(&config(dir.path())).await.expect("starts"));
    test(std::sync::Arc::clone(&running)).await;
    std::sync::Arc::into_inner(running).expect("the test is over").stop().await;
    assert!(!dir.path().join("api.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_bearer_of_the_token_is_answered() {
    with_service(|running| async move {
        let token = &running.token;
        let other = format!("Authorization: Bearer {}0\r\n", &token[1..]);
        let cases = [
            (String::new(), 401),
            ("Authorization: Bearer\r\n".into(), 401),
            ("Authorization: Bearer \r\n".into(), 401),
            (format!("Authorization: Basic {token}\r\n"), 401),
            (other, 401),
            (format!("Authorization: Bearer {token}x\r\n"), 401),
            (format!("Authorization: Bearer {token}\r\n"), 200),
            (format!("authorization: bearer {token}\r\n"), 200),
        ];
        for (header, expected) in cases {
            for path in ["agents", "status", "events?from=1&x", "runs/latest/history"] {
                if expected == 200 && path != "status" {
                    continue;
                }
                let request =
                    format!("GET /api/v1/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n");
                let (status, body) = raw(running.http, request.into_bytes()).await;
                assert_eq!(status, expected, "{path} with {header:?}: {body}");
                if expected == 401 {
                    let body: Value = serde_json::from_str(&body).expect("JSON");
                    assert_eq!(body["error"]["code"], "unauthorized");
                }
            }
        }
        // What needs no token.
        for path in ["/", "/healthz", "/readyz", "/metrics", "/api/v1/openapi.json"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let (status, body) = raw(running.http, request.into_bytes()).await;
            assert_eq!(status, 200, "{path}");
            assert!(!body.contains(token.as_str()), "{path} tells the token");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_input_is_answered_not_obeyed() {
    with_service(|running| async move {
        let client = Client::of(&running);
        let before = client.get("status").await;
        let long = "x".repeat(3_000);
        let place = |party: &str, path: &str| json!({"party": party, "path": path});
        let job = |source: Value, destinations: Value| {
            json!({"kind": "distribution", "name": "j", "source": source, "destinations": destinations})
        };
        let cases: Vec<(&str, &str, Value, u16)> = vec![
            ("POST", "groups", json!({}), 422),
            ("POST", "groups", json!({"name": 7}), 422),
            ("POST", "groups", json!({"name": ""}), 400),
            ("POST", "groups", json!({"name": "a\nb"}), 400),
            ("POST", "groups", json!({"name": "a:b"}), 400),
            ("POST", "groups", json!({"name": long}), 400),
            ("POST", "groups/nope/add", json!({"agents": []}), 404),
            ("POST", "tokens", json!({"uses": 0}), 400),
            ("POST", "tokens", json!({"uses": -1}), 422),
            ("POST", "tokens", json!({"expires_s": 0}), 400),
            ("POST", "tokens", json!({"expires_s": u64::MAX}), 400),
            ("POST", "tokens", json!({"tags": {"": "x"}}), 400),
            ("DELETE", "tokens/nope", Value::Null, 404),
            ("GET", "agents/%00", Value::Null, 404),
            ("GET", "agents/..%2f..%2fetc", Value::Null, 404),
            ("GET", "runs/latest", Value::Null, 404),
            ("GET", "agents?limit=x", Value::Null, 400),
            ("GET", "agents?after=zz", Value::Null, 400),
            ("GET", "events?from=-1", Value::Null, 400),
            ("POST", "jobs", json!({"kind": "backup", "name": "j", "source": place("a", "b"), "destinations": []}), 400),
            ("POST", "jobs", job(place("nobody", "a"), json!([place("no", "b")])), 404),
            ("POST", "jobs", job(json!({"party": "a"}), json!([])), 400),
            ("POST", "jobs", job(json!({"party": "a", "path_hex": "zz"}), json!([])), 400),
            ("POST", "jobs/nope/start", json!({}), 404),
            ("POST", "runs/nope/stop", json!({}), 404),
            ("PATCH", "agents", json!({}), 405),
            ("GET", "nothing/here", Value::Null, 404),
        ];
        for (method, path, body, expected) in cases {
            let (status, answer) = client.ask(method, path, (!body.is_null()).then_some(body.clone())).await;
            assert_eq!(status, expected, "{method} {path} {body}: {answer}");
            assert!(answer["error"]["message"].is_string(), "{method} {path}: {answer}");
        }
        let send = |body: Vec<u8>, length: usize| {
            let head = format!(
                "POST /api/v1/groups HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
                 Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n",
                running.token
            );
            raw(running.http, [head.into_bytes(), body].concat())
        };
        let huge = vec![b' '; 2 * 1024 * 1024];
        assert_eq!(send(huge.clone(), huge.len()).await.0, 413);
        let deep = "[".repeat(100_000).into_bytes();
        assert!((400..500).contains(&send(deep.clone(), deep.len()).await.0));
        for bad in [&b"{"[..], b"\xff\xfe", b"{\"name\":\"x\"} trailing", b"null"] {
            let (status, answer) = send(bad.to_vec(), bad.len()).await;
            assert!((400..500).contains(&status), "{bad:?}: {status} {answer}");
        }
        for garbage in [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET / HTTP/9.9\r\n\r\n", &[0; 512]] {
            raw(running.http, garbage.to_vec()).await;
        }
        let after = client.get("status").await;
        assert_eq!(after["position"], before["position"], "nothing of it was recorded");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_day() {
    with_service(|running| async move {
        let client = Client::of(&running);
        let (status, token) =
            client.ask("POST", "tokens", Some(json!({"uses": 3, "tags": {"agent_name": "nas"}}))).await;
        assert_eq!(status, 201, "{token}");
        let bootstrap = &token["bootstrap"]["management_server"];
        assert_eq!(bootstrap["host"], running.gateway.to_string());
        let text = bootstrap["bootstrap_token"].as_str().expect("a token").to_string();
        assert!(agent_proto::link::is_token_text(&text));
        let mut agents: Vec<FakeAgent> = (1..=3).map(FakeAgent::new).collect();
        for agent in &agents {
            agent.enrol(&running.service, Some(text.clone())).await;
            agent.connect(&running.service).await;
        }
        let listed = client.get("agents").await;
        let names: Vec<&str> =
            listed["agents"].as_array().expect("a list").iter().filter_map(|a| a["name"].as_str()).collect();
        assert_eq!(names.len(), 3);
        assert!(["nas", "nas-2", "nas-3"].iter().all(|name| names.contains(name)));
        assert!(listed["agents"].as_array().expect("a list").iter().all(|a| a["state"] == "online"));
        // Pages.
        let first = client.get("agents?limit=2").await;
        let next = first["next"].as_str().expect("more");
        let rest = client.get(&format!("agents?limit=2&after={next}")).await;
        assert_eq!((rest["agents"].as_array().map(Vec::len), &rest["next"]), (Some(1), &Value::Null));
        // By name, id, beginning of the id.
        let id = agents[0].id.to_string();
        for name in ["nas", &id, &id[..8], "agent:nas"] {
            assert_eq!(client.get(&format!("agents/{name}")).await["id"], id.as_str(), "{name}");
        }
        let (status, tagged) = client
            .ask("PUT", "agents/nas/tags", Some(json!({"set": {"site": "x"}, "remove": ["AGENT_NAME"]})))
            .await;
        assert_eq!((status, &tagged["tags"]), (200, &json!({"SITE": "x"})));
        // A group called as an agent has to be told apart.
        assert_eq!(client.ask("POST", "groups", Some(json!({"name": "nas-2"}))).await.0, 201);
        assert_eq!(client.ask("POST", "groups", Some(json!({"name": "nas-2"}))).await.0, 409);
        let members = json!({"agents": ["nas-2", "nas-3"]});
        assert_eq!(client.ask("POST", "groups/nas-2/add", Some(members)).await.0, 200);
        let job = |party: &str| {
            json!({"kind": "distribution", "name": "release", "source": {"party": "nas", "path": "out"},
                   "destinations": [{"party": party, "path_hex": "2fff"}]})
        };
        let (status, ambiguous) = client.ask("POST", "jobs", Some(job("nas-2"))).await;
        assert_eq!(status, 400, "{ambiguous}");
        let (status, started) = client.ask("POST", "jobs", Some(job("group:nas-2"))).await;
        assert_eq!(status, 201, "{started}");
        let run = started["run"].as_str().expect("a run").to_string();
        assert_eq!(client.ask("POST", "jobs/release/start", Some(json!({}))).await.0, 409, "it runs already");
        assert_eq!(client.ask("DELETE", "jobs/release", None).await.0, 409);

        play(&running, &mut agents, &run).await;
        // The commands that end it follow its end.
        for agent in &agents {
            let mut watch = control::gateway::Fleet::command_watch(&running.service, agent.id);
            let second = tokio::time::timeout(Duration::from_secs(20), watch.wait_for(|last| *last == 2));
            second.await.expect("in time").expect("the service lives");
        }
        let shown = client.get("runs/latest").await;
        assert_eq!(
            (shown["state"].as_str(), shown["outcome"].as_str()),
            (Some("finished"), Some("succeeded_with_errors"))
        );
        assert_eq!(
            (&shown["entries"], &shown["bytes"], &shown["blocks"]),
            (&json!(2), &json!(100), &json!(3))
        );
        assert_eq!(shown["problems"][0]["path"], "a\n\u{fffd}");
        assert_eq!(shown["problems"][0]["path_hex"], "610aff");
        assert_eq!(shown["problems"][0]["class"], "disk_full");
        let parts = shown["agents"].as_array().expect("a list");
        assert_eq!((parts.len(), parts[0]["role"].as_str()), (3, Some("source")));
        assert_eq!(parts[1]["path_hex"], "2fff");
        let done: Vec<_> = parts.iter().map(|part| &part["state"]).collect();
        assert_eq!(done.iter().filter(|state| ***state == "done_with_errors").count(), 1, "{done:?}");
        let history = client.get(&format!("runs/{run}/history?limit=5")).await;
        let mut told = history["history"].as_array().expect("a list").clone();
        let next = history["next"].as_str().expect("more").to_string();
        let rest = client.get(&format!("runs/{run}/history?after={next}&limit=1000")).await;
        told.extend(rest["history"].as_array().expect("a list").clone());
        assert_eq!(told[0]["kind"], "run.started");
        let kinds: Vec<&str> = told.iter().filter_map(|event| event["kind"].as_str()).collect();
        for (kind, times) in
            [("run.started", 1), ("run.finished", 1), ("command.issued", 6), ("run.manifest_ready", 1)]
        {
            assert_eq!(kinds.iter().filter(|k| **k == kind).count(), times, "{kind} in {kinds:?}");
        }
        assert_eq!(client.get("runs").await["runs"][0]["id"], run.as_str());
        assert_eq!(client.ask("DELETE", "jobs/release", None).await.0, 200);
        assert_eq!(client.ask("DELETE", "agents/nas-3", None).await.0, 200);
        assert_eq!(client.get("agents/nas-3").await["state"], "removed");
        assert_eq!(client.get("tokens").await["tokens"][0]["state"], "spent");
        let log = client.get("log?stream=job/&limit=10").await;
        assert_eq!(log["records"].as_array().map(Vec::len), Some(2));
        let status = client.get("status").await;
        assert_eq!(status["agents"]["removed"], 1);
    })
    .await;
}

/// A consolidation from its making to what became of its sources' files, as a client meets it.
#[tokio::test(flavor = "multi_thread")]
async fn a_consolidation_is_one_start_with_a_run_for_each_source() {
    use event_schema::*;
    with_service(|running| async move {
        let (client, service) = (Client::of(&running), &running.service);
        let mut agents = support::agents(service, 4).await;
        assert_eq!(client.ask("POST", "groups", Some(json!({"name": "cars"}))).await.0, 201);
        let cars: Vec<String> = agents[1..].iter().map(|agent| agent.id.to_string()).collect();
        assert_eq!(client.ask("POST", "groups/cars/add", Some(json!({"agents": cars}))).await.0, 200);
        let base = agents[0].id.to_string();
        let wish = |more: Value| {
            let mut wish = json!({
                "kind": "consolidation", "name": "footage", "sources": [{"party": "group:cars", "path": "cam"}],
                "destinations": [{"party": base, "path": "/srv/in"}],
            });
            let (Value::Object(wish_), Value::Object(more)) = (&mut wish, more) else { unreachable!() };
            wish_.extend(more);
            wish
        };
        for (bad, says) in [
            (json!({"after": "burn"}), "after is"),
            (json!({"after": "archive:0d"}), "days"),
            (json!({"subfolder": "../x"}), "no name"),
            (json!({"subfolder": "%DST:X%"}), "%SRC:TAG%"),
            (json!({"source": {"party": "x", "path": "y"}}), "sources"),
            (json!({"kind": "distribution"}), "not a group"),
            (json!({"kind": "sync"}), "consolidation"),
            (json!({"subfolder": "all"}), "the same folder"),
            (json!({"subfolder": "%SRC:PLATE%"}), "no tag PLATE"),
        ] {
            let (status, answer) = client.ask("POST", "jobs", Some(wish(bad.clone()))).await;
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            assert!((400..500).contains(&status) && message.contains(says), "{bad}: {answer}");
        }
        assert_eq!(client.get("jobs").await["jobs"], json!([]), "what could not start is taken back");
        let (status, started) = client.ask("POST", "jobs", Some(wish(json!({"after": "archive:30d"})))).await;
        assert_eq!((status, started["runs"].as_array().map(Vec::len)), (201, Some(3)), "{started}");
        let batch = started["batch"].as_str().expect("a batch").to_owned();
        let job = client.get("jobs/footage").await;
        assert_eq!((&job["kind"], &job["after"]), (&json!("consolidation"), &json!("archive:30d")));
        assert_eq!((&job["subfolder"], &job["source"]), (&json!("/%SRC:AGENT_NAME%"), &Value::Null));

        // One source brings everything home, the others are away.
        let listed = client.get(&format!("runs?batch={batch}")).await;
        let runs = listed["runs"].as_array().expect("a list");
        assert_eq!(runs.len(), 3);
        let name = client.get(&format!("agents/{}", cars[0])).await["name"].clone();
        let own = runs.iter().find(|run| run["source"] == name).expect("its run");
        let run: RunId = own["id"].as_str().expect("an id").parse().expect("an id");
        let shown = client.get(&format!("runs/{run}")).await;
        let folder = format!("/srv/in/{}", name.as_str().expect("a name"));
        assert_eq!((&shown["agents"][0]["path"], &shown["agents"][1]["path"]), (&json!("cam"), &json!(folder)));
        let manifest = ManifestSigned { run, root: [9; 32], entries: 2, bytes: 100, blocks: 3 };
        agents[1].report(service, manifest).await.expect("taken");
        let done = RunCompleted { run, state: RunAgentState::Done, stats: TransferStats::default() };
        agents[0].report(service, done).await.expect("taken");
        let mut issued = service.command_watch(agents[1].id);
        let waited = tokio::time::timeout(Duration::from_secs(20), issued.wait_for(|last| *last == 2)).await;
        drop(waited.expect("in time").expect("alive"));
        let (_, signed) = service.commands_after(agents[1].id, 1, 1).await.pop().expect("a command");
        let order = Command::decode(&signed.bytes).expect("a command").body;
        let disposal = Disposal::Archive { days: 30 };
        assert_eq!(order, FinishAndDispose { run, root: [9; 32], disposal }.into());
        let disposed = Disposed { files: 2, bytes: 100, changed: 1, gone: 0, failed: 0 };
        agents[1].report(service, DisposalReported { run, disposed }).await.expect("taken");
        agents[1].report(service, RunServed { run, stats: TransferStats::default() }).await.expect("taken");

        let shown = client.get("batches/footage").await;
        assert_eq!((&shown["id"], &shown["runs_total"], &shown["runs_active"]), (&json!(batch), &json!(3), &json!(2)));
        assert_eq!(shown["states"], json!({"succeeded": 1, "preparing": 2}));
        assert_eq!((&shown["bytes_due"], &shown["bytes_done"]), (&json!(100), &json!(100)));
        assert_eq!((&shown["disposals"], &shown["disposed"]["files"]), (&json!(1), &json!(2)));
        let shown = client.get(&format!("runs/{run}")).await;
        assert_eq!((&shown["disposal"]["changed"], &shown["after"]), (&json!(1), &json!("archive:30d")));
        assert_eq!(shown["batch"], json!(batch));
        let history = client.get(&format!("runs/{run}/history")).await.to_string();
        assert!(history.contains("disposed of 2 files, 100 bytes; 1 changed"), "{history}");

        // Started again, those who are away are not started twice.
        let (status, again) = client.ask("POST", "jobs/footage/start", Some(json!({}))).await;
        assert_eq!((status, again["runs"].as_array().map(Vec::len)), (201, Some(1)), "{again}");
        let skipped = again["skipped"].as_array().expect("a list");
        assert_eq!(skipped.len(), 2);
        assert!(skipped.iter().all(|s| runs.iter().any(|run| run["id"] == s["run"] && run["source"] == s["name"])));
        let newest = client.get("batches/latest").await;
        assert_eq!(newest["id"], again["batch"]);
        let list = client.get("batches?limit=1").await;
        assert_eq!((&list["batches"][0]["id"], &list["next"]), (&again["batch"], &again["batch"]));
        let next = client.get(&format!("batches?after={}", again["batch"].as_str().expect("a cursor"))).await;
        assert_eq!((&next["batches"][0]["id"], next["batches"].as_array().map(Vec::len)), (&json!(batch), Some(1)));
        assert_eq!(client.get("runs?job=footage").await["runs"].as_array().map(Vec::len), Some(4));
        assert_eq!(client.ask("GET", "batches/ffffff", None).await.0, 404);
        assert_eq!(client.ask("GET", "runs?bach=x", None).await.0, 400);
        assert_eq!(client.ask("DELETE", "jobs/footage", None).await.0, 409, "runs are active");
        // A check of the whole log comes to the same state, all of this in it.
        assert_eq!(client.get("log/check").await["equal"], json!(true));
    })
    .await;
}

/// The agents' side of a run, one destination of which has a problem.
async fn play(running: &Running, agents: &mut [FakeAgent], run: &str) {
    use event_schema::*;
    let run: RunId = run.parse().expect("an id");
    let service = &running.service;
    let signed = |agent: &mut FakeAgent, body: ReportBody| agent.sign(body);
    for agent in agents.iter_mut() {
        let waiting = service.views().mailboxes.after(agent.id, 0, 1);
        let (sequence, command) =
            waiting.first().cloned().unwrap_or_else(|| panic!("no command for {}", agent.id));
        let command = Command::decode(&command.bytes).expect("a command").id;
        let mut reports = vec![signed(agent, CommandAccepted { command, sequence }.into())];
        if agent.id == FakeAgent::new(1).id {
            let manifest = ManifestSigned { run, root: [9; 32], entries: 2, bytes: 100, blocks: 3 };
            reports.push(signed(agent, manifest.into()));
        }
        control::gateway::Fleet::reports(service, agent.id, reports).await.expect("taken");
    }
    for (n, agent) in agents.iter_mut().enumerate().skip(1) {
        let mut reports = Vec::new();
        let mut state = RunAgentState::Done;
        if n == 1 {
            let problem = Problem {
                class: ProblemClass::DiskFull,
                path: b"a\n\xff".to_vec(),
                detail: "no room".into(),
            };
            reports.push(signed(agent, ProblemReported { run, problem }.into()));
            state = RunAgentState::DoneWithErrors;
        }
        reports.push(signed(agent, RunCompleted { run, state, stats: TransferStats::default() }.into()));
        control::gateway::Fleet::reports(service, agent.id, reports).await.expect("taken");
    }
}

/// `?at=` at every list and object: what a client was told then is what it is told now of then.
#[tokio::test(flavor = "multi_thread")]
async fn every_list_and_object_is_told_as_it_was() {
    with_service(|running| async move {
        let client = Client::of(&running);
        let service = &running.service;
        let mut moments: Vec<(u64, Vec<(String, Value)>)> = Vec::new();
        let position = async || client.get("status").await["position"].as_u64().expect("a number");
        // Agents do nothing of their own here; what the service issues comes a moment after what was decided.
        let remember = async |paths: &[String]| loop {
            let before = position().await;
            let mut told = Vec::new();
            for path in paths {
                let mut answer = client.get(path).await;
                forget_what_runs(&mut answer);
                told.push((path.clone(), answer));
            }
            if position().await == before {
                break (before, told);
            }
        };
        let lists = ["agents", "tokens", "groups", "jobs", "runs"].map(String::from);
        moments.push(remember(&lists).await);
        let mut agents = support::agents(service, 3).await;
        moments.push(remember(&lists).await);
        assert_eq!(client.ask("POST", "groups", Some(json!({"name": "g"}))).await.0, 201);
        let ids: Vec<_> = agents.iter().map(|agent| agent.id).collect();
        let job = support::create_job(service, ids[0], &ids[1..]).await;
        let run = support::start(service, job).await;
        let objects = [
            format!("agents/{}", ids[0]),
            "groups/g".into(),
            format!("jobs/{job}"),
            format!("runs/{run}"),
            format!("runs/{run}/history"),
        ];
        let all = [&lists[..], &objects[..]].concat();
        for agent in &mut agents {
            let mut issued = service.command_watch(agent.id);
            let waited = tokio::time::timeout(Duration::from_secs(20), issued.wait_for(|last| *last > 0));
            drop(waited.await.expect("in time").expect("alive"));
            let (sequence, signed) = service.commands_after(agent.id, 0, 1).await.remove(0);
            let command = Command::decode(&signed.bytes).expect("a command").id;
            agent.report(service, CommandAccepted { command, sequence }).await.expect("taken");
            moments.push(remember(&all).await);
        }
        let body = json!({"agents": [ids[1].to_string()]});
        assert_eq!(client.ask("POST", "groups/g/add", Some(body)).await.0, 200);
        let body = json!({"set": {"a": "b"}, "remove": []});
        assert_eq!(client.ask("PUT", &format!("agents/{}/tags", ids[0]), Some(body)).await.0, 200);
        moments.push(remember(&all).await);
        assert_eq!(client.ask("POST", &format!("runs/{run}/stop"), Some(json!({}))).await.0, 200);
        moments.push(remember(&all).await);
        assert_eq!(client.ask("DELETE", &format!("agents/{}", ids[2]), None).await.0, 200);

        for (position, told) in &moments {
            let status = client.get(&format!("status?at={position}")).await;
            assert_eq!(status["position"], *position);
            for (path, then) in told {
                let mut now = client.get(&format!("{path}?at={position}")).await;
                forget_what_runs(&mut now);
                assert_eq!(&now, then, "{path} at {position}");
            }
            let log = client.get(&format!("log?limit=1000&at={position}")).await;
            assert_eq!(log["records"].as_array().map(Vec::len), Some(*position as usize));
        }
        // What was not there yet, or is not there any more.
        let (early, ..) = moments[1];
        assert_eq!(client.ask("GET", &format!("groups/g?at={early}"), None).await.0, 404);
        let first =
            client.get("log?limit=1").await["records"][0]["time"].as_str().expect("a time").to_owned();
        assert_eq!(client.get(&format!("agents?at={first}")).await["as_of"], 1);
        assert_eq!(client.get("agents?at=0").await["agents"], json!([]));
        let wrong = [
            ("9999999", 404, "not_found"),
            ("2001-01-01T00:00:00Z", 404, "not_found"),
            ("2999-01-01T00:00:00Z", 400, "invalid"),
            ("yesterday", 400, "invalid"),
            ("-1", 400, "invalid"),
        ];
        for (at, status, code) in wrong {
            let (got, body) = client.ask("GET", &format!("runs?at={at}"), None).await;
            assert_eq!((got, &body["error"]["code"]), (status, &code.into()), "{at}: {body}");
        }
    })
    .await;
}

/// Takes out what is told of the present alone.
fn forget_what_runs(answer: &mut Value) {
    if let Some(object) = answer.as_object_mut() {
        object.remove("as_of");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_stream_from_any_position() {
    with_service(|running| async move {
        let client = Client::of(&running);
        for name in ["a", "b"] {
            assert_eq!(client.ask("POST", "groups", Some(json!({"name": name}))).await.0, 201);
        }
        let open = |path: &str, header: &str| {
            let mut stream = TcpStream::connect(running.http).expect("connects");
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
            let request = format!(
                "GET /api/v1/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n{header}\r\n",
                running.token
            );
            stream.write_all(request.as_bytes()).expect("sent");
            BufReader::new(stream)
        };
        let next = |mut reader: BufReader<TcpStream>| {
            tokio::task::spawn_blocking(move || {
                let mut line = String::new();
                loop {
                    line.clear();
                    assert!(reader.read_line(&mut line).expect("in time") > 0, "the stream ended");
                    if let Some(data) = line.strip_prefix("data:") {
                        let record: Value = serde_json::from_str(data.trim()).expect("JSON");
                        return (reader, record);
                    }
                }
            })
        };
        let (reader, record) = next(open("events?from=1", "")).await.expect("no panic");
        assert_eq!((&record["position"], &record["events"][0]["kind"]), (&json!(1), &json!("fleet.founded")));
        let (reader, record) = next(reader).await.expect("no panic");
        assert_eq!(record["events"][0]["data"]["name"], "a");
        drop(reader);
        let (reader, record) = next(open("events?from=1", "Last-Event-ID: 2\r\n")).await.expect("no panic");
        assert_eq!(record["events"][0]["data"]["name"], "b", "the header wins");
        // What happens while one listens.
        let waiting = next(reader);
        assert_eq!(client.ask("POST", "groups", Some(json!({"name": "c"}))).await.0, 201);
        let (_reader, record) = waiting.await.expect("no panic");
        assert_eq!(record["events"][0]["data"]["name"], "c");
        // An open stream does not keep the service from stopping: the end of this test.
        let _open = open("events", "");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_has_one_service_and_keeps_its_fleet() {
    let dir = tempfile::tempdir().expect("a folder");
    let first = serve::start(&config(dir.path())).await.expect("starts");
    let refused = serve::start(&config(dir.path())).await.map(|_| ()).expect_err("in use");
    assert!(refused.to_string().contains("another `flotilla serve`"), "{refused}");
    let (token, authority) = (first.token.clone(), first.ca_fingerprint.clone());
    let client = Client::of(&first);
    assert_eq!(client.ask("POST", "groups", Some(json!({"name": "kept"}))).await.0, 201);
    let position = client.get("status").await["position"].as_u64().expect("a number");
    first.stop().await;
    let second = serve::start(&config(dir.path())).await.expect("starts again");
    assert_eq!((&second.token, &second.ca_fingerprint), (&token, &authority));
    let client = Client::of(&second);
    assert_eq!(client.get("groups").await["groups"][0]["name"], "kept");
    // One more record: the state, attested when the service stopped.
    assert_eq!(client.get("status").await["position"], position + 1);
    second.stop().await;
    // Another fleet's keys with this log.
    std::fs::remove_dir_all(dir.path().join("keys")).expect("removed");
    let refused = serve::start(&config(dir.path())).await.map(|_| ()).expect_err("another fleet");
    assert!(refused.to_string().contains("root key"), "{refused}");
}

/// A job that cannot be made leaves no key; keys that were put beside the file come to the others.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_for_what_is_made_and_come_back_from_a_backup() {
    let dir = tempfile::tempdir().expect("a folder");
    let (path, restored) = (dir.path().join(FileKeys::NAME), dir.path().join(FileKeys::RESTORED));
    let kept = || FileKeys::read(&path).expect("readable").expect("there").keys;
    let running = serve::start(&config(dir.path())).await.expect("starts");
    let client = Client::of(&running);
    let token = support::create_token(&running.service, 2).await;
    for n in 1..=2 {
        FakeAgent::new(n).enrol(&running.service, Some(token.clone())).await;
    }
    let place = |n: u8| json!({"party": FakeAgent::new(n).id.to_string(), "path": "x"});
    let job = |name: &str| json!({"kind": "distribution", "name": name, "source": place(1), "destinations": [place(2)], "start": false});
    assert_eq!(client.ask("POST", "jobs", Some(job("first"))).await.0, 201);
    let before = kept();
    for _ in 0..3 {
        assert_eq!(client.ask("POST", "jobs", Some(job("first"))).await.0, 409);
    }
    assert_eq!(kept(), before, "no key for what was not made");
    running.stop().await;

    // The file is lost, and something goes on under new keys before the backup is there.
    std::fs::rename(&path, &restored).expect("moved away");
    let aside = dir.path().join("aside");
    std::fs::rename(&restored, &aside).expect("moved away");
    let running = serve::start(&config(dir.path())).await.expect("starts");
    let client = Client::of(&running);
    assert_eq!(client.get("jobs").await["jobs"][0]["name"], "[sealed]");
    assert_eq!(client.ask("POST", "jobs", Some(job("second"))).await.0, 201);
    let alarms = client.get("status").await["alarms"].to_string();
    assert!(alarms.contains("subject-keys.restored"), "{alarms}");
    running.stop().await;
    let since = kept();
    std::fs::rename(&aside, &restored).expect("put back");
    let running = serve::start(&config(dir.path())).await.expect("starts");
    let client = Client::of(&running);
    let listed = client.get("jobs").await;
    let mut names: Vec<_> = [0, 1].map(|n| listed["jobs"][n]["name"].clone().to_string()).into();
    names.sort();
    assert_eq!(names, ["\"first\"", "\"second\""]);
    assert_eq!(client.get("status").await["alarms"], json!([]));
    assert!(!restored.exists() && before.iter().chain(&since).all(|key| kept().contains(key)));
    running.stop().await;
}

#[test]
fn the_committed_document_is_the_one_that_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    if std::env::var_os("OPENAPI_WRITE").is_some() {
        std::fs::write(&path, control::api::document()).expect("written");
    }
    let committed = std::fs::read_to_string(&path).expect("openapi.json");
    assert!(
        committed == control::api::document(),
        "the API changed: OPENAPI_WRITE=1 cargo test -p control --test api the_committed_document"
    );
    let document: Value = serde_json::from_str(&committed).expect("JSON");
    for path in ["/api/v1/agents", "/api/v1/runs/{run}", "/api/v1/events", "/api/v1/jobs"] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_present_is_not_shown_for_a_place_that_it_has_left() {
    with_service(|running| async move {
        let client = Client::of(&running);
        let service = running.service.clone();
        let busy = tokio::spawn(async move {
            for n in 0..400_u32 {
                let mut id = [0; 16];
                id[..4].copy_from_slice(&n.to_be_bytes());
                let (group, name) = (event_schema::GroupId(id), format!("group-{n}"));
                let decide = move |state: &control_core::State, _| {
                    let name = name.clone();
                    control_core::group::decide(state, control_core::group::Command::Create { group, name })
                };
                service
                    .decide(control::service::Origin::service("fleet".into()), decide)
                    .await
                    .expect("made");
            }
        });
        let position = running.service.position();
        while !busy.is_finished() {
            let end = *position.borrow();
            let groups = client.get(&format!("groups?at={end}&limit=1")).await;
            assert_eq!(groups["as_of"], end);
        }
        busy.await.expect("no panic");
    })
    .await;
}

/// Why a run is not over, as the log and what agents told have it.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_explained() {
    use agent_proto::link::{Holder, PeerConnection, Progress, Standing, Way};
    use event_schema::*;
    with_service(|running| async move {
        let (client, service) = (Client::of(&running), &running.service);
        let mut agents = support::agents(service, 4).await;
        let ids: Vec<AgentId> = agents.iter().map(|agent| agent.id).collect();
        let job = support::create_job(service, ids[0], &ids[1..]).await;
        let run = support::start(service, job).await;
        let why = async |agent: AgentId| {
            let answer = client.get(&format!("runs/{run}/explain")).await;
            let all = answer["agents"].as_array().expect("a list").clone();
            assert_eq!(all.len(), 4);
            all.into_iter().find(|a| a["agent"] == agent.to_string()).expect("in the run")
        };
        assert_eq!(why(ids[1]).await["reason"], "command_under_way");
        for agent in &mut agents {
            let mut watch = service.command_watch(agent.id);
            watch.wait_for(|sequence| *sequence > 0).await.expect("the service lives");
            let (sequence, command) = service.views().mailboxes.after(agent.id, 0, 1).remove(0);
            let command = Command::decode(&command.bytes).expect("a command").id;
            agent.report(service, CommandAccepted { command, sequence }).await.expect("taken");
        }
        assert_eq!(why(ids[1]).await["reason"], "starting");
        agents[0]
            .report(service, RunStateReported { run, state: RunAgentState::Indexing })
            .await
            .expect("taken");
        agents[1]
            .report(service, RunStateReported { run, state: RunAgentState::FindingPeers })
            .await
            .expect("taken");
        let lonely = why(ids[1]).await;
        assert_eq!(lonely["reason"], "no_peers");
        assert!(lonely["text"].as_str().expect("text").contains("reading its folder"), "{lonely}");
        let manifest = ManifestSigned { run, root: [9; 32], entries: 2, bytes: 3 << 20, blocks: 96 };
        agents[0].report(service, manifest).await.expect("taken");
        agents[0]
            .report(service, RunStateReported { run, state: RunAgentState::Serving })
            .await
            .expect("taken");
        for agent in &mut agents[1..3] {
            let state = RunStateReported { run, state: RunAgentState::Transferring };
            agent.report(service, state).await.expect("taken");
        }
        let stats = TransferStats::default();
        agents[3]
            .report(service, RunCompleted { run, state: RunAgentState::Done, stats })
            .await
            .expect("taken");
        assert_eq!(why(ids[1]).await["reason"], "comparing");

        let progress = |peers, standing| Progress {
            run,
            state: RunAgentState::Transferring,
            blocks_done: 32,
            blocks_total: 96,
            bytes_done: 1 << 20,
            bytes_total: 3 << 20,
            bytes_sent: 0,
            peers,
            entries: 2,
            connections: Some(vec![PeerConnection {
                peer: ids[3],
                way: Way::None,
                relay: None,
                local: String::new(),
                remote: String::new(),
                initiator: true,
                rtt_us: 0,
                sent_per_s: 0,
                received_per_s: 0,
                since: Timestamp(0),
                tried: vec![],
                last_error: "nobody\u{1b} answered".into(),
            }]),
            sync: None,
            standing,
        };
        let holder = |peer, has, asked, silent_s, avoided| Holder { peer, has, asked, silent_s, avoided };
        let standing = |nowhere, writing, limited, holders| {
            Some(Standing { missing: 64, nowhere, writing, limited, holders })
        };
        let tell = |agent: AgentId, peers, standing| service.progress(agent, progress(peers, standing));
        let stranger = AgentId([7; 16]);
        for (told, reason, says) in [
            (standing(64, 0, false, vec![]), "nobody_has", "64 of 64"),
            (standing(0, 0, false, vec![holder(ids[2], 64, 0, 0, true)]), "no_honest_peer", "not genuine"),
            (standing(0, 300, false, vec![holder(ids[2], 64, 9, 0, false)]), "disk", "300 blocks"),
            (standing(0, 0, false, vec![holder(ids[2], 64, 9, 12, false)]), "silent_peers", "12 s"),
            (standing(0, 0, false, vec![holder(ids[2], 64, 9, 1, false)]), "transferring", "64 blocks"),
            // Who is not in the run has nothing to give.
            (standing(0, 0, false, vec![holder(stranger, 64, 9, 99, false)]), "transferring", "64 blocks"),
        ] {
            tell(ids[1], 1, told);
            let answer = why(ids[1]).await;
            assert_eq!(answer["reason"], reason, "{answer}");
            assert!(answer["text"].as_str().expect("text").contains(says), "{answer}");
            assert_eq!((&answer["bytes_left"], &answer["missing_blocks"]), (&json!(2 << 20), &json!(64)));
            let holders = answer["holders"].as_array().expect("a list");
            assert!(holders.iter().all(|h| h["agent"] != stranger.to_string()), "{answer}");
            // Who has everything by the log is named too, with why they are not connected.
            let whole = holders.iter().find(|h| h["agent"] == ids[3].to_string()).expect("is done");
            assert_eq!((&whole["connected"], &whole["has_blocks"]), (&json!(false), &Value::Null));
            assert_eq!(whole["last_error"], "nobody answered");
        }
        // A giver that says that its own limit holds it back.
        tell(ids[2], 1, standing(0, 0, true, vec![]));
        tell(ids[1], 1, standing(0, 0, false, vec![holder(ids[2], 64, 9, 1, false)]));
        assert_eq!(why(ids[1]).await["reason"], "peers_limited");
        let problem =
            Problem { class: ProblemClass::DiskFull, path: vec![], detail: "12 bytes are missing".into() };
        agents[1].report(service, ProblemReported { run, problem }).await.expect("taken");
        agents[1]
            .report(service, RunStateReported { run, state: RunAgentState::Stalled })
            .await
            .expect("taken");
        let full = why(ids[1]).await;
        assert_eq!(full["reason"], "disk_full");
        assert!(full["text"].as_str().expect("text").contains("12 bytes"));
        assert_eq!(why(ids[3]).await["reason"], "done");
        assert_eq!(why(ids[0]).await["reason"], "serving");
        assert_eq!(client.ask("GET", "runs/ffffffff/explain", None).await.0, 404);
    })
    .await;
}
