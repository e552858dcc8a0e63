//! The log, read by itself at the end, against what agents and clients were told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context as _, Result, ensure};
use event_log::{EventLog as _, Position, ReadLimit};
use event_log_nats::{NatsLog, NatsLogOptions};
use event_schema::{AgentId, Command, CommandBody, Event, Record, RecordId, RunId};

use crate::agent::Agent;
use crate::work::Told;

/// What the log says, and what is wrong.
#[derive(Debug, Default)]
pub struct Findings {
    /// Records read.
    pub records: u64,
    /// Events in them.
    pub events: u64,
    /// Reports that agents were told are stored.
    pub reports: u64,
    /// Runs that clients were told have started.
    pub runs: u64,
    /// Commands issued.
    pub commands: u64,
    /// Holders of the lease.
    pub terms: u64,
    /// Lives of replicas.
    pub lives: u64,
    /// Everything that must not be; the first of them.
    pub wrong: Vec<String>,
}

/// A command on the log: its sequence, the run it is about, and what it asks for.
type Issued = (u64, Option<RunId>, &'static str);

/// Things that are wrong and are named.
const WRONG_MAX: usize = 50;

impl Findings {
    fn wrong(&mut self, what: String) {
        if self.wrong.len() < WRONG_MAX {
            self.wrong.push(what);
        }
    }
}

impl Findings {
    fn wrong_if(&mut self, is: bool, what: impl FnOnce() -> String) {
        if is {
            self.wrong(what());
        }
    }
}

/// Reads the whole log from the servers.
async fn read(urls: &str) -> Result<Vec<(Position, Record)>> {
    let log = NatsLog::open(NatsLogOptions::new(urls)).await?;
    let last = log.last_position().await?;
    let mut records = Vec::new();
    while (records.len() as u64) < last.0 {
        let page = log.read(Position(records.len() as u64 + 1), ReadLimit::default()).await?;
        ensure!(!page.is_empty(), "the log ends at {}", records.len());
        for entry in page {
            ensure!(
                entry.position.0 == records.len() as u64 + 1,
                "position {} is missing",
                records.len() + 1
            );
            let record = Record::decode(&entry.bytes)
                .map_err(|error| anyhow::anyhow!("{}: {error}", entry.position))?;
            records.push((entry.position, record));
        }
    }
    let scrub = log.scrub().await?;
    ensure!(scrub.differences.is_empty(), "the servers hold other bytes: {:?}", scrub.differences);
    log.close().await;
    Ok(records)
}

/// Holds everything against everything.
///
/// # Errors
/// If the log cannot be read.
pub async fn check(urls: &str, agents: &[std::sync::Arc<Agent>], told: &Told) -> Result<Findings> {
    let records = read(urls).await.context("reading the log")?;
    let mut found = Findings { records: records.len() as u64, ..Findings::default() };
    let mut ids: BTreeSet<RecordId> = BTreeSet::new();
    // None: sealed, so that only its place can be held against what the agent was told.
    let mut reports: HashMap<(AgentId, u64), Option<Vec<u8>>> = HashMap::new();
    let mut runs: BTreeMap<String, u64> = BTreeMap::new();
    let mut issued: BTreeMap<AgentId, Vec<Issued>> = BTreeMap::new();
    let mut acknowledged: BTreeSet<(AgentId, u64)> = BTreeSet::new();
    let mut term = 0;
    for (position, record) in &records {
        if !ids.insert(record.id) {
            found.wrong(format!("{position}: the record {} stands on the log twice", record.id));
        }
        for event in &record.events {
            found.events += 1;
            match event {
                Event::ReportReceived(e) => {
                    let bytes = e.signed.legible().map(|signed| signed.bytes.clone());
                    let twice = reports.insert((e.agent, e.sequence), bytes).is_some();
                    found.wrong_if(twice, || {
                        format!("{position}: report {} of {} twice", e.sequence, e.agent)
                    });
                }
                Event::RunStarted(e) => *runs.entry(e.run.to_string()).or_default() += 1,
                Event::CommandIssued(e) => {
                    let name = match Command::decode(&e.signed.bytes).map(|command| command.body) {
                        Ok(
                            CommandBody::JoinRun(_)
                            | CommandBody::JoinKeeping(_)
                            | CommandBody::TakePart(_)
                            | CommandBody::Synchronize(_),
                        ) => "join",
                        Ok(CommandBody::FinishRun(_) | CommandBody::FinishAndDispose(_)) => "finish",
                        Ok(CommandBody::StopRun(_)) => "stop",
                        Ok(CommandBody::AnswerGuard(_)) => "answer",
                        Ok(CommandBody::ThinBackup(_) | CommandBody::WatchBackup(_)) => "backup",
                        Err(_) if e.joins => "join",
                        Err(_) => "?",
                    };
                    issued.entry(e.agent).or_default().push((e.sequence, e.run, name));
                }
                Event::CommandAcknowledged(e) => {
                    let twice = !acknowledged.insert((e.agent, e.sequence));
                    found.wrong_if(twice, || {
                        format!("{position}: command {} of {} answered twice", e.sequence, e.agent)
                    });
                }
                Event::LeaseTaken(e) => {
                    let out_of_turn = e.term != term + 1;
                    found.wrong_if(out_of_turn, || format!("{position}: term {} follows {term}", e.term));
                    term = e.term;
                }
                Event::ReplicaStarted(_) => found.lives += 1,
                _ => {}
            }
        }
    }
    found.terms = term;
    for (run, times) in runs.iter().filter(|(_, times)| **times > 1) {
        found.wrong(format!("run {run} was started {times} times"));
    }
    for (job, run) in &told.runs {
        found.runs += 1;
        if !runs.contains_key(run) {
            found.wrong(format!("LOST: run {run} of {job} was acknowledged and is not on the log"));
        }
    }
    for what in &told.wrong {
        found.wrong(what.clone());
    }
    for agent in agents {
        let (id, kept) = (agent.id(), agent.kept());
        for what in &kept.wrong {
            found.wrong(format!("{}: {what}", agent.name()));
        }
        for (sequence, signed) in (1..).zip(&kept.reports).take(kept.acknowledged as usize) {
            found.reports += 1;
            let stored = reports.get(&(id, sequence));
            if stored.is_none_or(|stored| stored.as_ref().is_some_and(|bytes| *bytes != signed.bytes)) {
                found.wrong(format!("LOST: report {sequence} of {} was acknowledged", agent.name()));
            }
        }
        if kept.acknowledged != kept.reports.len() as u64 {
            let (stored, made) = (kept.acknowledged, kept.reports.len());
            found.wrong(format!("{} made {made} reports, {stored} are stored", agent.name()));
        }
        let commands = issued.remove(&id).unwrap_or_default();
        found.commands += commands.len() as u64;
        let mut once = BTreeSet::new();
        for (n, (sequence, run, name)) in (1..).zip(&commands) {
            if *sequence != n {
                found.wrong(format!("{}: command {sequence} was issued in place of {n}", agent.name()));
            }
            if !once.insert((*run, *name)) {
                found.wrong(format!("{}: {name} of run {run:?} was issued twice", agent.name()));
            }
        }
        let mut obeyed = BTreeSet::new();
        for (sequence, run, name) in &kept.obeyed {
            if !obeyed.insert((*run, *name)) {
                found.wrong(format!(
                    "{}: {name} of run {run} was obeyed twice (command {sequence})",
                    agent.name()
                ));
            }
        }
        if kept.obeyed.len() != commands.len() {
            let (obeyed, issued) = (kept.obeyed.len(), commands.len());
            found.wrong(format!("{} obeyed {obeyed} of {issued} commands", agent.name()));
        }
    }
    Ok(found)
}
