//! The whole trial, from an empty log to the report.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::Dice;
use crate::agent::{Agent, Link};
use crate::checker::{self, Findings};
use crate::faults::{self, Fault, LIMIT};
use crate::work::{self, Client, Told};
use crate::world::{EACH, World};

/// Clients at work at the same time.
const CLIENTS: u64 = 4;

/// How long everything may take to come to rest at the end.
const REST: Duration = Duration::from_secs(90);

/// Time without a fault, before one and after it: servers that were away copy what they missed, replicas beat.
const BEFORE: Duration = Duration::from_secs(2);
/// See [`BEFORE`].
const AFTER: Duration = Duration::from_secs(3);

/// Runs that clients have to be told of in a second, on average over all faults, and reports of agents for each: a fleet
/// that is refused everything has lost nothing, and is of no use.
const RUNS_PER_S_MIN: f64 = 1.0;
/// See [`RUNS_PER_S_MIN`].
const REPORTS_PER_RUN_MIN: f64 = 2.0;

/// What is to be tried.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long faults go on.
    pub time: Duration,
    /// Agents.
    pub agents: usize,
    /// For all choices.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    plan: Plan,
    faults: Vec<Fault>,
    found: Findings,
    told: Told,
    repeated: u64,
    /// How long clients were at work.
    worked: Duration,
    states: Vec<(u64, String)>,
    online: usize,
    /// What did not come to rest.
    restless: Option<String>,
}

impl Report {
    /// Whether everything held.
    pub fn is_good(&self) -> bool {
        let in_time = |fault: &Fault| fault.back().is_some_and(|back| back <= LIMIT);
        self.found.wrong.is_empty()
            && self.restless.is_none()
            && self.faults.iter().all(in_time)
            && self.states.windows(2).all(|pair| pair[0] == pair[1])
            && self.online == self.plan.agents
            && self.did_enough()
    }

    fn runs_per_s(&self) -> f64 {
        self.found.runs as f64 / self.worked.as_secs_f64().max(1.0)
    }

    fn did_enough(&self) -> bool {
        let reports = self.found.reports as f64 / self.found.runs.max(1) as f64;
        self.runs_per_s() >= RUNS_PER_S_MIN && reports >= REPORTS_PER_RUN_MIN
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, faults, found, told, .. } = self;
        writeln!(
            f,
            "{EACH} servers, {EACH} replicas, {} agents, {CLIENTS} clients; {} faults in {:.0} s, seed {}",
            plan.agents,
            faults.len(),
            plan.time.as_secs_f64(),
            plan.seed
        )?;
        for fault in faults {
            writeln!(f, "  {fault}")?;
        }
        let back: Option<Vec<Duration>> = faults.iter().map(Fault::back).collect();
        match back.map(|all| all.into_iter().max().unwrap_or_default()) {
            Some(back) => {
                let back = back.as_secs_f64();
                writeln!(f, "reconnected      every agent within {back:.1} s (at most {LIMIT:?})")?
            }
            None => writeln!(f, "reconnected      NOT every agent within the time")?,
        }
        writeln!(
            f,
            "log              {} records, {} events, read from the servers",
            found.records, found.events
        )?;
        writeln!(
            f,
            "acknowledged     {} reports of agents, {} runs of clients: all on the log once",
            found.reports, found.runs
        )?;
        writeln!(
            f,
            "work             {:.1} runs acknowledged a second, {:.1} reports for each (at least {RUNS_PER_S_MIN} and \
             {REPORTS_PER_RUN_MIN}){}",
            self.runs_per_s(),
            found.reports as f64 / found.runs.max(1) as f64,
            if self.did_enough() { "" } else { ": NOT ENOUGH" }
        )?;
        writeln!(
            f,
            "commands         {} issued and obeyed once; {} came again and were not obeyed",
            found.commands, self.repeated
        )?;
        writeln!(
            f,
            "own writes       {} seen at another replica, {} not answered in time",
            told.seen, told.late
        )?;
        writeln!(
            f,
            "requests         {} with unknown outcome, {} to replicas that were away",
            told.unknown, told.unreached
        )?;
        writeln!(f, "lease            {} holders, {} lives of replicas", found.terms, found.lives)?;
        for (position, hash) in &self.states {
            writeln!(f, "state            {hash} at {position}")?;
        }
        writeln!(f, "online           {} of {} agents as the log has it", self.online, plan.agents)?;
        if let Some(restless) = &self.restless {
            writeln!(f, "RESTLESS         {restless}")?;
        }
        for wrong in &found.wrong {
            writeln!(f, "WRONG            {wrong}")?;
        }
        write!(f, "{}", if self.is_good() { "GOOD" } else { "BAD" })
    }
}

/// Holds the trial. To be called inside of namespaces ([`crate::world::go_inside`]).
///
/// # Errors
/// If it cannot be held: something does not start or does not come back.
pub fn run(plan: &Plan) -> Result<Report> {
    ensure!(plan.agents >= 2, "at least two agents");
    let mut world = World::new()?;
    let result = hold(plan, &mut world);
    if !result.as_ref().is_ok_and(Report::is_good) {
        eprintln!("what everybody logged is in {}", world.keep().display());
    }
    result
}

fn hold(plan: &Plan, world: &mut World) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let client = Client::new(&world.token, (0..EACH).map(|nth| world.api(nth)).collect());
    let (status, _, token) = client.post(0, "tokens", &json!({"uses": plan.agents}))?;
    ensure!(status == 201, "{token}");
    let token =
        token["bootstrap"]["management_server"]["bootstrap_token"].as_str().context("a token")?.to_owned();
    let ca = Arc::new(authority(world)?);
    let gateways: Vec<String> = (0..EACH).map(|nth| world.gateway(nth)).collect();
    let agents = (0..plan.agents).map(|nth| Agent::new(nth, &gateways)).collect::<Result<Vec<_>>>()?;
    for agent in &agents {
        runtime.spawn(Arc::clone(agent).live(Arc::clone(&ca), token.clone()));
    }
    faults::all_connected(&agents)?;
    let names: Arc<Vec<String>> = Arc::new(agents.iter().map(|agent| agent.name()).collect());
    eprintln!("{} agents are connected; faults begin", agents.len());

    let (stop, told) = (Arc::new(AtomicBool::new(false)), work::Shared::default());
    let workers: Vec<_> = (0..CLIENTS)
        .map(|nth| {
            let (client, names, stop, told) =
                (client.clone(), Arc::clone(&names), Arc::clone(&stop), Arc::clone(&told));
            let seed = plan.seed;
            std::thread::spawn(move || work::work(&client, nth, &names, &stop, &told, seed))
        })
        .collect();
    let (began, mut dice) = (Instant::now(), Dice::new(plan.seed));
    let mut done = Vec::new();
    let mut trouble = Ok(());
    while began.elapsed() < plan.time {
        std::thread::sleep(BEFORE);
        match faults::inflict(world, &agents, &mut dice, began) {
            Ok(fault) => {
                eprintln!("{fault}");
                done.push(fault);
            }
            Err(error) => {
                trouble = Err(error);
                break;
            }
        }
        // Servers that were away copy what they missed.
        std::thread::sleep(AFTER);
    }
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        if worker.join().is_err() {
            bail!("a client panicked");
        }
    }
    let worked = began.elapsed();
    trouble?;
    let restless = rest(&client, &agents).err().map(|error| format!("{error:#}"));
    let (states, online) = compare(&client, &agents)?;
    let told = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
    let found = runtime.block_on(checker::check(&world.nats_urls(), &agents, &told))?;
    let repeated = agents.iter().map(|agent| agent.kept().repeated).sum();
    // The agents go with it.
    runtime.shutdown_background();
    Ok(Report { plan: *plan, faults: done, found, told, repeated, worked, states, online, restless })
}

/// The CA certificate, as every replica has it.
fn authority(world: &World) -> Result<Vec<u8>> {
    use rustls::pki_types::pem::PemObject as _;
    let path = world.replicas[0].folder().join("data/keys/ca.pem");
    Ok(rustls::pki_types::CertificateDer::from_pem_file(path)
        .map_err(|error| anyhow::anyhow!("{error}"))?
        .to_vec())
}

/// Waits until every run has ended and every report is stored.
fn rest(client: &Client, agents: &[Arc<Agent>]) -> Result<()> {
    let end = Instant::now() + REST;
    loop {
        let waiting = agents.iter().filter(|agent| {
            let kept = agent.kept();
            kept.acknowledged < kept.reports.len() as u64 || matches!(kept.link, Link::Down(_))
        });
        let waiting = waiting.count();
        let running = client.get(0, "status", 0).map(|(_, _, status)| {
            let of = |state: &str| status["runs"][state].as_u64().unwrap_or(0);
            of("preparing") + of("transferring")
        });
        let running = running.unwrap_or(u64::MAX);
        if waiting == 0 && running == 0 {
            // The last commands of runs that ended just now.
            std::thread::sleep(AFTER);
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "{waiting} agents have reports that are not stored, {running} runs go on"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The state at every replica, at one position, and how many agents it has online.
fn compare(client: &Client, agents: &[Arc<Agent>]) -> Result<(Vec<(u64, String)>, usize)> {
    let end = Instant::now() + REST;
    loop {
        let statuses = (0..EACH).map(|nth| client.get(nth, "status", 0)).collect::<Result<Vec<_>>>();
        let statuses: Vec<Value> =
            statuses.unwrap_or_default().into_iter().map(|(_, _, status)| status).collect();
        let states: Vec<(u64, String)> = statuses
            .iter()
            .map(|s| {
                (s["position"].as_u64().unwrap_or(0), s["state_hash"].as_str().unwrap_or("?").to_owned())
            })
            .collect();
        let online = statuses.first().and_then(|s| s["agents"]["online"].as_u64()).unwrap_or(0) as usize;
        let same = states.len() == EACH && states.windows(2).all(|pair| pair[0] == pair[1]);
        if (same && online == agents.len()) || Instant::now() > end {
            return Ok((states, online));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
