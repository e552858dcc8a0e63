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
    /// Requests to a replica that could not be reached at all.
    pub unreached: u64,
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

/// Jobs that one client makes; then it starts those it has.
const JOBS: usize = 500;

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
    let mut jobs: Vec<String> = Vec::new();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let (path, body) = if jobs.len() < JOBS {
            let Some(wish) = wish(&format!("job-{nth}-{count}"), agents, &mut dice) else { continue };
            ("jobs".to_owned(), wish)
        } else {
            (format!("jobs/{}/start", jobs[dice.below(jobs.len())]), json!({}))
        };
        let (writes, reads) = (dice.below(client.apis.len()), dice.below(client.apis.len()));
        let outcome = one(client, writes, reads, &path, &body);
        let pause = Duration::from_millis(if matches!(outcome, Outcome::Started { .. }) { 50 } else { 150 });
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Outcome::Started { job, run, read } => {
                if jobs.len() < JOBS {
                    jobs.push(job.clone());
                }
                told.runs.push((job, run));
                match read {
                    Read::Seen => told.seen += 1,
                    Read::Late => told.late += 1,
                    Read::Unreached => told.unreached += 1,
                    Read::Wrong(what) => told.wrong.push(what),
                }
            }
            // Its last run goes on.
            Outcome::Busy => {}
            Outcome::Unreached => told.unreached += 1,
            Outcome::Unknown => told.unknown += 1,
            Outcome::Wrong(what) => told.wrong.push(what),
        }
        drop(told);
        std::thread::sleep(pause);
    }
}

/// A job of up to five agents that is started at once; none if the dice chose one agent alone.
fn wish(name: &str, agents: &[String], dice: &mut Dice) -> Option<Value> {
    let source = dice.below(agents.len());
    let mut destinations = Vec::new();
    for _ in 0..1 + dice.below(4) {
        let to = dice.below(agents.len());
        if to != source && !destinations.contains(&to) {
            destinations.push(to);
        }
    }
    let place = |nth: usize, path: &str| json!({"party": agents[nth], "path": path});
    (!destinations.is_empty()).then(|| {
        json!({
            "name": name,
            "kind": "distribution",
            "source": place(source, "/out"),
            "destinations": destinations.iter().map(|to| place(*to, "/in")).collect::<Vec<_>>(),
        })
    })
}

enum Outcome {
    Started { job: String, run: String, read: Read },
    Busy,
    Unreached,
    Unknown,
    Wrong(String),
}

enum Read {
    Seen,
    Late,
    Unreached,
    Wrong(String),
}

fn one(client: &Client, writes: usize, reads: usize, path: &str, body: &Value) -> Outcome {
    let (status, position, started) = match client.post(writes, path, body) {
        Ok(answer) => answer,
        Err(error) if never_left(&error) => return Outcome::Unreached,
        Err(_) => return Outcome::Unknown,
    };
    let (job, run) = match (status, started["job"].as_str(), started["run"].as_str()) {
        (201, Some(job), Some(run)) => (job.to_owned(), run.to_owned()),
        (503, ..) => return Outcome::Unknown,
        (409, ..) if started["error"]["code"] == "conflict" => return Outcome::Busy,
        _ => return Outcome::Wrong(format!("{path}: {status} {started}")),
    };
    let read = match client.get(reads, &format!("runs/{run}"), position) {
        Ok((200, shown, _)) if shown >= position => Read::Seen,
        Ok((503, ..)) => Read::Late,
        Err(error) if never_left(&error) => Read::Unreached,
        Err(_) => Read::Late,
        Ok((status, shown, answer)) => Read::Wrong(format!(
            "replica {writes} started run {run} at {position}, replica {reads} at {shown} says {status} {answer}"
        )),
    };
    Outcome::Started { job, run, read }
}

/// Whether the request cannot have reached anybody: there was no connection to send it on.
fn never_left(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<ureq::Error>() {
        Some(ureq::Error::ConnectionFailed | ureq::Error::Timeout(ureq::Timeout::Connect)) => true,
        Some(ureq::Error::Io(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}

/// Shared by the threads of clients.
pub type Shared = Arc<Mutex<Told>>;
