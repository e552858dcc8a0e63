//! Clients: they make jobs at one replica, look for them at another, and note what they were told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::Dice;

/// What clients were told.
#[derive(Debug, Default)]
pub struct Told {
    /// Jobs and the runs that were started of them, each acknowledged.
    pub runs: Vec<(String, String)>,
    /// Requests that were not answered, or with `unavailable`: what became of them is not known.
    pub unknown: u64,
    /// Reads at another replica that showed what was written before.
    pub seen: u64,
    /// Such reads that were not answered in time.
    pub late: u64,
    /// What must not be.
    pub wrong: Vec<String>,
}

/// One client's way to the replicas.
#[derive(Clone, Debug)]
pub struct Client {
    http: ureq::Agent,
    token: String,
    apis: Vec<String>,
}

/// An answer: status, position, body.
pub type Answer = (u16, u64, Value);

impl Client {
    /// To these APIs, all with one token.
    pub fn new(token: &str, apis: Vec<String>) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(20)))
            .timeout_connect(Some(Duration::from_secs(2)))
            .http_status_as_error(false)
            .proxy(None)
            .build();
        Self { http: config.into(), token: token.to_owned(), apis }
    }

    /// Asks one replica; `at_least` is the position that the answer has to show.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn get(&self, nth: usize, path: &str, at_least: u64) -> Result<Answer> {
        let request = self.http.get(format!("{}/api/v1/{path}", self.apis[nth]));
        let request = request.header("Authorization", format!("Bearer {}", self.token));
        Self::answer(request.header("flotilla-min-position", at_least.to_string()).call()?)
    }

    /// Asks one replica to do something.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn post(&self, nth: usize, path: &str, body: &Value) -> Result<Answer> {
        let request = self.http.post(format!("{}/api/v1/{path}", self.apis[nth]));
        let request = request.header("Authorization", format!("Bearer {}", self.token));
        Self::answer(request.send_json(body)?)
    }

    fn answer(mut response: ureq::http::Response<ureq::Body>) -> Result<Answer> {
        let position = response.headers().get("flotilla-position");
        let position = position.and_then(|p| p.to_str().ok()).and_then(|p| p.parse().ok()).unwrap_or(0);
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(64 << 20).read_to_string()?;
        Ok((status, position, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }
}

/// Works until told to stop: a job of few agents, its run, and a look at it somewhere else.
pub fn work(client: &Client, nth: u64, agents: &[String], stop: &AtomicBool, told: &Mutex<Told>, seed: u64) {
    let mut dice = Dice::new(seed ^ (nth << 32));
    let mut count = 0;
    let note = |change: &dyn Fn(&mut Told)| change(&mut told.lock().unwrap_or_else(PoisonError::into_inner));
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let name = format!("job-{nth}-{count}");
        let source = dice.below(agents.len());
        let mut destinations = Vec::new();
        for _ in 0..1 + dice.below(4) {
            let to = dice.below(agents.len());
            if to != source && !destinations.contains(&to) {
                destinations.push(to);
            }
        }
        if destinations.is_empty() {
            continue;
        }
        let place = |nth: usize, path: &str| json!({"party": agents[nth], "path": path});
        let wish = json!({
            "name": name,
            "kind": "distribution",
            "source": place(source, "/out"),
            "destinations": destinations.iter().map(|to| place(*to, "/in")).collect::<Vec<_>>(),
        });
        let (writes, reads) = (dice.below(client.apis.len()), dice.below(client.apis.len()));
        match one(client, writes, reads, &wish) {
            Ok(Outcome::Seen(job, run)) => note(&|told| {
                told.runs.push((job.clone(), run.clone()));
                told.seen += 1;
            }),
            Ok(Outcome::Late(job, run)) => note(&|told| {
                told.runs.push((job.clone(), run.clone()));
                told.late += 1;
            }),
            Ok(Outcome::Wrong(what)) => note(&|told| told.wrong.push(what.clone())),
            Ok(Outcome::Unknown) | Err(_) => {
                note(&|told| told.unknown += 1);
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

enum Outcome {
    Seen(String, String),
    Late(String, String),
    Unknown,
    Wrong(String),
}

fn one(client: &Client, writes: usize, reads: usize, wish: &Value) -> Result<Outcome> {
    let (status, position, started) = client.post(writes, "jobs", wish)?;
    if status == 503 {
        return Ok(Outcome::Unknown);
    }
    let (201, Some(job), Some(run)) = (status, started["job"].as_str(), started["run"].as_str()) else {
        return Ok(Outcome::Wrong(format!("a job: {status} {started}")));
    };
    let (job, run) = (job.to_owned(), run.to_owned());
    Ok(match client.get(reads, &format!("runs/{run}"), position) {
        Ok((200, shown, _)) if shown >= position => Outcome::Seen(job, run),
        Ok((503, ..)) | Err(_) => Outcome::Late(job, run),
        Ok((status, shown, answer)) => Outcome::Wrong(format!(
            "replica {writes} started run {run} at {position}, replica {reads} at {shown} says {status} {answer}"
        )),
    })
}

/// Shared by the threads of clients.
pub type Shared = Arc<Mutex<Told>>;
