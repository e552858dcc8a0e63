//! Telemetry as a client meets it: what agents tell through the gateway's side of the service, asked of the API, over a
//! restart and after it is gone.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use agent_proto::link::{PeerConnection, Progress, Way};
use control::config::{Settings, TelemetrySettings};
use control::gateway::Fleet as _;
use control::serve::{self, Running};
use event_schema::{RunAgentState, RunCompleted, RunId, TransferStats};
use serde_json::Value;

async fn start(data: &Path, keep: Option<&str>) -> Running {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let settings = Settings {
        data: Some(data.into()),
        http: Some(any),
        gateway: Some(any),
        telemetry: TelemetrySettings { keep: keep.map(str::to_owned), max_size: None },
        ..Settings::default()
    };
    serve::start(&settings.complete().expect("good")).await.expect("starts")
}

async fn get(running: &Running, path: &str) -> (u16, Value) {
    let url = format!("http://{}/api/v1/{path}", running.http);
    let token = format!("Bearer {}", running.token);
    let asking = tokio::task::spawn_blocking(move || {
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let agent: ureq::Agent = config.into();
        let mut answer = agent.get(&url).header("Authorization", &token).call().expect("an answer");
        (answer.status().as_u16(), answer.body_mut().read_json::<Value>().expect("JSON"))
    });
    asking.await.expect("no panic")
}

fn progress(run: RunId, bytes_done: u64) -> Progress {
    Progress {
        run,
        state: RunAgentState::Transferring,
        blocks_done: 0,
        blocks_total: 0,
        bytes_done,
        bytes_total: 100_000,
        bytes_sent: bytes_done / 2,
        peers: 2,
        entries: 0,
        connections: None,
        sync: None,
        standing: None,
    }
}

fn sum(view: &Value, name: &str) -> u64 {
    let points =
        view["agents"].as_array().expect("agents").iter().flat_map(|agent| agent["points"].as_array());
    points.flatten().map(|point| point[name].as_u64().expect("a number")).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runs_course_outlives_the_process_and_its_figures_outlive_the_course() {
    let dir = tempfile::tempdir().expect("a folder");
    let running = start(dir.path(), None).await;
    let service = &running.service;
    let mut agents = support::agents(service, 3).await;
    let (source, one, two) = (agents[0].id, agents[1].id, agents[2].id);
    let job = support::create_job(service, source, &[one, two]).await;
    let run = support::start(service, job).await;
    for n in 0..=10 {
        service.progress(one, progress(run, n * 10_000));
        service.progress(two, progress(run, n * 5_000));
        // Not of the run, or of none: not kept.
        service.progress(one, progress(RunId([9; 16]), n));
    }
    let path = format!("runs/{run}/telemetry");
    let (status, view) = get(&running, &path).await;
    assert_eq!((status, &view["figures"]["source"]), (200, &"log_and_telemetry".into()), "{view}");
    assert_eq!((sum(&view, "verified"), sum(&view, "sent"), sum(&view, "samples")), (150_000, 75_000, 22));
    let (_, part) = get(&running, &format!("{path}?agent={one}&step=60")).await;
    assert_eq!((sum(&part, "verified"), part["step_s"].as_u64()), (100_000, Some(60)));
    let point = &part["agents"][0]["points"][0];
    assert_eq!((&point["state"], point["peers"].as_u64()), (&"transferring".into(), Some(2)), "{part}");
    let (_, early) = get(&running, &format!("{path}?to=2001-01-01T00:00:00Z")).await;
    assert_eq!(early["agents"].as_array().map(Vec::len), Some(0));
    for bad in ["step=0", "step=1&from=1990-01-01T00:00:00Z", "from=soon", "agent=nobody"] {
        let (status, _) = get(&running, &format!("{path}?{bad}")).await;
        assert!(status == 400 || status == 404, "{bad}: {status}");
    }
    assert_eq!(get(&running, "runs/nothing/telemetry").await.0, 404);

    // How they are connected, as one of them tells it; who is not in the run is not shown.
    let connection = |peer| PeerConnection {
        peer,
        way: Way::Punched,
        relay: None,
        local: "192.168.1.2:4000".into(),
        remote: "203.0.113.7:4000".into(),
        initiator: true,
        rtt_us: 20_000,
        sent_per_s: 1,
        received_per_s: 2,
        since: event_schema::Timestamp(0),
        tried: vec!["called through 1 tracker(s)".into()],
        last_error: String::new(),
    };
    let told = vec![connection(two), connection(event_schema::AgentId([9; 16]))];
    service.progress(one, Progress { connections: Some(told), ..progress(run, 100_000) });
    service.progress(one, progress(run, 100_000));
    let (status, view) = get(&running, &format!("runs/{run}/connections")).await;
    assert_eq!((status, view["connections"].as_array().map(Vec::len)), (200, Some(1)), "{view}");
    let shown = &view["connections"][0];
    assert_eq!((&shown["agent"], &shown["peer"]), (&one.to_string().into(), &two.to_string().into()));
    assert_eq!((&shown["way"], &shown["remote"]), (&"punched".into(), &"203.0.113.7:4000".into()), "{view}");
    assert_eq!(get(&running, "runs/nothing/connections").await.0, 404);

    // The run's end is on the log, with who gave how much.
    for (n, from_source, from_peers, sent) in [(1, 70_000, 30_000, 30_000), (2, 40_000, 60_000, 0)] {
        let agent = &mut agents[n];
        let stats = TransferStats {
            bytes_from_source: from_source,
            bytes_from_peers: from_peers,
            bytes_sent: sent,
            ..TransferStats::default()
        };
        let body = RunCompleted { run, state: RunAgentState::Done, stats };
        agent.report(service, body).await.expect("taken");
    }
    let (_, before) = get(&running, &path).await;
    assert_eq!(before["figures"]["bytes_received"], 200_000);
    let shares: Vec<f64> = before["figures"]["agents"]
        .as_array()
        .expect("agents")
        .iter()
        .filter_map(|agent| agent["share_of_sent"].as_f64())
        .collect();
    assert!(shares.iter().any(|share| (share - 1.0).abs() < 1e-9) && shares.len() == 3, "{before}");
    running.stop().await;

    // Another process: the same course.
    let running = start(dir.path(), None).await;
    let (_, after) = get(&running, &path).await;
    for name in ["verified", "sent", "samples"] {
        assert_eq!(sum(&after, name), sum(&before, name), "{name}");
    }
    let figures = |view: &Value| {
        let figures = &view["figures"];
        [&figures["bytes_received"], &figures["outcome"], &figures["finished"], &figures["peak_rate_bytes_s"]]
            .map(Clone::clone)
    };
    assert_eq!(figures(&after), figures(&before));
    running.stop().await;

    // Nothing is kept, or it cannot be: the figures are still there.
    let kept = dir.path().join("telemetry");
    std::fs::remove_dir_all(&kept).expect("removed");
    for keep in [Some("0s"), None] {
        let running =
            tokio::time::timeout(Duration::from_secs(20), start(dir.path(), keep)).await.expect("in time");
        let (status, view) = get(&running, &path).await;
        assert_eq!(
            (status, &view["figures"]["source"], &view["kept_since"]),
            (200, &"log".into(), &Value::Null)
        );
        assert_eq!(figures(&view)[..3], figures(&before)[..3]);
        assert_eq!(view["figures"]["peak_rate_bytes_s"], Value::Null);
        running.stop().await;
        // A file where the folder should be stops nothing either.
        drop(std::fs::remove_dir_all(&kept));
        std::fs::write(&kept, b"not a folder").expect("written");
    }
}
