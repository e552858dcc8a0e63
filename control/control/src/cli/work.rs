//! `flotilla jobs`, `runs`, `log`, `status`.

use std::ffi::OsString;

use clap::{Args, Subcommand, value_parser};
use serde_json::json;

use super::client::{Client, segment};
use super::{Done, Failure, archive, audit, backups, output, place, sync, watch};
use crate::api::view::{
    BatchView, BatchesView, DisposalView, HistoriesView, HistoryView, JobStarted, JobView, JobWish, JobsView,
    ProblemView, RunSummary, RunView, RunsView, StatusView, StopWish,
};
use crate::api::{ExplainAgentView, ExplainView, TelemetryView, bootstrap_place};

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "one is read in a run of the program")]
pub(super) enum Jobs {
    /// Make a job and start it
    #[command(subcommand)]
    Create(Create),
    /// Show all jobs
    #[command(after_help = "Example: flotilla jobs list")]
    List,
    /// Show one job
    #[command(after_help = "Example: flotilla jobs show release-7")]
    Show {
        /// Name, id or beginning of the id
        job: String,
    },
    /// Start another run of a job
    #[command(after_help = "Example: flotilla jobs start release-7")]
    Start {
        /// Name, id or beginning of the id
        job: String,
    },
    /// Delete a job; its runs stay
    #[command(after_help = "Example: flotilla jobs delete release-7")]
    Delete {
        /// Name, id or beginning of the id
        job: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Create {
    /// One source's folder to many destinations
    #[command(
        after_help = "Example: flotilla jobs create distribution --name release-7 --source base:/srv/release-7 \
        --destination nas-1:releases/7 --destination group:harbour:releases/7\n\n\
        A PATH is absolute, or below the agent's storage path (`token create --storage-path`; without it \
        `folders` in the agent's data folder). Where an agent and a group have the same name, \
        agent:NAME:PATH and group:NAME:PATH tell them apart."
    )]
    Distribution(Distribution),
    /// Many sources' folders to storage, a folder for each
    #[command(
        after_help = "Example: flotilla jobs create consolidation --name footage --source group:cars:footage \
        --destination base:/srv/footage --after archive:30d\n\n\
        Each source has a run of its own, so one that is away delays nobody. SUBFOLDER names its folder below the \
        destination's path: %SRC:TAG% stands for a tag of the source (AGENT_NAME and AGENT_ID are every agent's), %% for a \
        percent sign. With --after archive:30d or delete the source's files go once every destination has confirmed that \
        it has them all; a file that changed since stays, and the source's owner can forbid it (allow_disposal)."
    )]
    Consolidation(Consolidation),
    /// One folder, the same at all members until it is stopped
    #[command(
        after_help = "Example: flotilla jobs create synchronization --name plans --member base:/srv/plans --member nas-1:plans \
        --read-only group:shops:plans --ignore '*.tmp'\n\n\
        Where two change a file at once, both versions stay: one under a name such as plan.conflict-1f2e3d4c-ab127.txt, and \
        `flotilla conflicts` lists it. What is replaced or deleted stays in each member's archive for a while. Before much of \
        a member's folder is deleted everywhere, a person is asked (`flotilla sync confirm`). Rules and patterns here are of \
        all members named here; `flotilla sync add` gives one of them others."
    )]
    Synchronization(sync::Create),
    /// Versions of sources' folders at storage, kept as long as they should be
    #[command(
        after_help = "Example: flotilla jobs create backup --name offices --source group:desks:/home --destination nas-1:backups \
        --every 6h --keep-last 7 --keep-daily 14 --keep-monthly 12\n         \
        flotilla jobs create backup --name plans --source base:/srv/plans --destination nas-1:backups --calendar \"30 2 * * mon-fri\"\n\n\
        Each source has a run of its own, and a shelf of its own below the destination's path; each start keeps a version \
        there, a plain folder of the time's name. What did not change is there once. Without a time it is started by hand \
        (`flotilla jobs start`); a start that was missed is made up once. A version stays while any --keep rule keeps it; \
        without a rule the last 7, and one of each of 14 days, 8 weeks and 12 months. The newest complete one always stays, \
        and nothing goes because of a version that is incomplete or suspiciously small. `flotilla backups` shows versions and \
        gives them back. Deleting the job removes none of them."
    )]
    Backup(backups::Create),
}

#[derive(Debug, Args)]
pub(super) struct Distribution {
    /// Its name
    #[arg(long)]
    name: String,
    /// From where
    #[arg(long, value_name = "AGENT:PATH", value_parser = value_parser!(OsString))]
    source: OsString,
    /// To where (repeatable)
    #[arg(long, value_name = "AGENT|GROUP:PATH", required = true, value_parser = value_parser!(OsString))]
    destination: Vec<OsString>,
    #[command(flatten)]
    options: backups::OptionsLine,
    /// Only make the job
    #[arg(long)]
    no_start: bool,
}

#[derive(Debug, Args)]
pub(super) struct Consolidation {
    /// Its name
    #[arg(long)]
    name: String,
    /// From where (repeatable)
    #[arg(long, value_name = "AGENT|GROUP:PATH", required = true, value_parser = value_parser!(OsString))]
    source: Vec<OsString>,
    /// To where (repeatable)
    #[arg(long, value_name = "AGENT|GROUP:PATH", required = true, value_parser = value_parser!(OsString))]
    destination: Vec<OsString>,
    /// How the folder of each source is named [default: /%SRC:AGENT_NAME%]
    #[arg(long)]
    subfolder: Option<String>,
    /// What becomes of the sources' files when every destination has them: keep, archive:DAYSd or delete
    #[arg(long, default_value = "keep")]
    after: String,
    #[command(flatten)]
    options: backups::OptionsLine,
    /// Only make the job
    #[arg(long)]
    no_start: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Runs {
    /// Show runs, newest first
    #[command(after_help = "Example: flotilla runs list --batch latest")]
    List {
        /// Only those of one start of a job with many sources: its id, the name of the job, or "latest"
        #[arg(long)]
        batch: Option<String>,
        /// Only those of this job
        #[arg(long)]
        job: Option<String>,
    },
    /// Show the starts of jobs with many sources, newest first
    #[command(after_help = "Example: flotilla runs batches")]
    Batches,
    /// Show one start of a job with many sources: totals and its runs
    #[command(after_help = "Example: flotilla runs batch footage")]
    Batch {
        /// Id, beginning of the id, name of the job, or "latest"
        #[arg(default_value = "latest")]
        batch: String,
    },
    /// Show one run
    #[command(after_help = "Example: flotilla runs show latest --history")]
    Show {
        /// Id, beginning of the id, name of the job, or "latest"
        run: String,
        /// Also everything that the log tells of it
        #[arg(long)]
        history: bool,
    },
    /// Why a run is not over: what each agent waits for, who has what it lacks, when it will be done
    #[command(after_help = "Example: flotilla runs explain latest\n\n\
        What agents told in the last minute, and what the log knows. With --json also the reasons' codes, missing blocks \
        and who has them.")]
    Explain {
        /// Id, beginning of the id, name of the job, or "latest"
        #[arg(default_value = "latest")]
        run: String,
    },
    /// Follow a run to its end; 0 if it succeeded, 1 otherwise. A synchronization ends when it is stopped
    #[command(after_help = "Example: flotilla runs watch latest")]
    Watch {
        /// Id, beginning of the id, name of the job, or "latest"
        #[arg(default_value = "latest")]
        run: String,
    },
    /// How a run went: who gave and got how much, how fast, and with --json its course over time
    #[command(after_help = "Example: flotilla runs telemetry latest --json --step 60\n\n\
        The figures come from the log. The course is what agents told; it is kept for 90 days unless set otherwise.")]
    Telemetry(Course),
    /// End a run
    #[command(after_help = "Example: flotilla runs stop latest --reason \"wrong folder\"")]
    Stop {
        /// Id, beginning of the id, name of the job, or "latest"
        run: String,
        /// Why, for the log
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Course {
    /// Id, beginning of the id, name of the job, or "latest"
    run: String,
    /// From this time on (RFC 3339, UTC) [default: the run's start]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Up to before this time [default: the run's end]
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Seconds of one point [default: so that there are some hundred]
    #[arg(long, value_name = "SECONDS")]
    step: Option<u64>,
    /// Only this agent
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// The run as it was known at this position or time, for one that is long over
    #[arg(long, value_name = "POSITION|TIME")]
    at: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Log {
    /// Print records of the log, one event a line
    #[command(after_help = "Example: flotilla log show --from 100 --stream run/")]
    Show {
        /// First position; without it, the first one that is in the log
        #[arg(long)]
        from: Option<u64>,
        /// Only streams that begin so
        #[arg(long)]
        stream: Option<String>,
        /// Records at most
        #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
        limit: u64,
    },
    /// Fold the whole log anew and compare with the live state and every attested one, servers' log with the copy here;
    /// 1 if anything differs
    #[command(after_help = "Example: flotilla log check\n\n\
        A log whose beginning was archived is folded from the state that is kept of it; with --archive, on the service's \
        machine, from its first record on.")]
    Check {
        #[command(flatten)]
        archives: audit::Archives,
    },
    /// Move old segments of the embedded log to an archive that proves itself, while no service uses the log
    #[command(
        after_help = "Example: flotilla log archive --data ./flotilla-data --before 2026-01-01T00:00:00Z --to /mnt/archive\n\n\
        Whole segments go, and only what is signed. Their copies are read back before the log gives them up; a command \
        that was broken off is simply run again. A running service does the same by itself: [retention] in its \
        configuration."
    )]
    Archive(archive::Archive),
    /// Copy a log between a data folder and NATS, in either direction, and prove that both are the same
    #[command(
        after_help = "Example: flotilla log copy ./flotilla-data nats://10.0.0.1:4222,nats://10.0.0.2:4222 --nats-replicas 3\n\n\
        Stop the services on both logs first. A copy that was broken off goes on where it stopped. Both Merkle tree heads \
        are printed; exit code 1 if they differ. Keys of private texts go along, as they are wrapped; the fleet's own keys are not copied: they stay in the data folder."
    )]
    Copy {
        /// From where: a data folder, or nats://…
        from: String,
        /// To where: a data folder, or nats://…
        to: String,
        #[command(flatten)]
        nats_access: super::server::Nats,
        #[command(flatten)]
        archives: audit::Archives,
    },
}

pub(super) fn jobs(client: &Client, json: bool, command: Jobs) -> Done {
    let path = |job: &str| format!("jobs/{}", segment(job));
    match command {
        Jobs::Create(Create::Distribution(line)) => {
            let place = |text| place::parse(text).map_err(Failure::Usage);
            let destinations: Result<_, _> = line.destination.into_iter().map(place).collect();
            let wish = JobWish {
                source: Some(place(line.source)?),
                destinations: destinations?,
                options: line.options.wish()?,
                start: Some(!line.no_start),
                ..JobWish::new("distribution", line.name)
            };
            started(json, &client.post("jobs", &wish)?)
        }
        Jobs::Create(Create::Consolidation(line)) => {
            let places = |texts: Vec<OsString>| -> Result<Vec<_>, _> {
                texts.into_iter().map(|text| place::parse(text).map_err(Failure::Usage)).collect()
            };
            let wish = JobWish {
                sources: places(line.source)?,
                destinations: places(line.destination)?,
                subfolder: line.subfolder,
                after: Some(line.after),
                options: line.options.wish()?,
                start: Some(!line.no_start),
                ..JobWish::new("consolidation", line.name)
            };
            started(json, &client.post("jobs", &wish)?)
        }
        Jobs::Create(Create::Synchronization(line)) => {
            started(json, &client.post("jobs", &sync::wish(line)?)?)
        }
        Jobs::Create(Create::Backup(line)) => started(json, &client.post("jobs", &backups::wish(line)?)?),
        Jobs::Start { job } => started(json, &client.post(&format!("{}/start", path(&job)), &json!({}))?),
        Jobs::List => {
            let jobs = client.list("jobs", |page: JobsView| (page.jobs, page.next))?;
            if json {
                return output::say_json(&json!({"jobs": jobs}));
            }
            let row = |j: JobView| {
                let to = j.destinations.iter().map(bootstrap_place).collect::<Vec<_>>().join(" ");
                let mut from = j.sources.iter().map(bootstrap_place).collect::<Vec<_>>().join(" ");
                if !j.members.is_empty() {
                    from = j.members.iter().map(sync::share_line).collect::<Vec<_>>().join(" ");
                }
                vec![j.name, j.kind, from, to, j.runs.len().to_string(), j.id]
            };
            output::table(
                &["NAME", "KIND", "SOURCES", "DESTINATIONS", "RUNS", "ID"],
                jobs.into_iter().map(row),
            )
        }
        Jobs::Show { job } => {
            let job: JobView = client.get(&path(&job))?;
            if json {
                return output::say_json(&job);
            }
            let mut text =
                format!("{} ({})\n  id       {}\n  created  {}", job.name, job.kind, job.id, job.created);
            for share in &job.members {
                text.push_str(&format!("\n  member   {}", sync::share_line(share)));
            }
            if let Some(policy) = &job.policy {
                text.push_str(&format!("\n  archive  {}", policy.archive));
                let (percent, least) = (policy.guard_percent, policy.guard_min);
                text.push_str(&format!("\n  guard    {percent} %, from {least} entries on"));
            }
            for source in &job.sources {
                text.push_str(&format!("\n  from     {}", bootstrap_place(source)));
            }
            for destination in &job.destinations {
                text.push_str(&format!("\n  to       {}", bootstrap_place(destination)));
            }
            if let Some(subfolder) = &job.subfolder {
                text.push_str(&format!("\n  folders  {subfolder}"));
            }
            if let Some(after) = &job.after {
                text.push_str(&format!("\n  after    {after}"));
            }
            if let Some(when) = &job.when {
                text.push_str(&format!("\n  started  {}", backups::when_line(when)));
            }
            if let Some(keep) = &job.keep {
                text.push_str(&format!("\n  kept     {}", backups::keep_line(keep)));
            }
            for line in job.options.iter().flat_map(backups::options_lines) {
                text.push_str(&format!("\n  {line}"));
            }
            for run in &job.runs {
                text.push_str(&format!("\n  run      {run}"));
            }
            output::say(&text)
        }
        Jobs::Delete { job } => {
            let job: JobView = client.delete(&path(&job))?;
            if json { output::say_json(&job) } else { output::say(&format!("deleted {}", job.name)) }
        }
    }
}

fn started(json: bool, started: &JobStarted) -> Done {
    if json {
        return output::say_json(started);
    }
    if let Some(batch) = &started.batch {
        let count = started.runs.len();
        let mut text = format!(
            "job {}\nbatch {batch}: {count} {}",
            started.job,
            if count == 1 { "run" } else { "runs" }
        );
        for skipped in &started.skipped {
            text.push_str(&format!("\nskipped {}: its run {} is still active", skipped.name, skipped.run));
        }
        return output::say(&format!("{text}\nNext: flotilla runs batch {batch}"));
    }
    match &started.run {
        Some(run) => output::say(&format!("job {}\nrun {run}\nNext: flotilla runs watch {run}", started.job)),
        None => output::say(&format!("job {}\nNext: flotilla jobs start {}", started.job, started.job)),
    }
}

pub(super) fn runs(client: &Client, json: bool, command: Runs) -> Done {
    let path = |run: &str| format!("runs/{}", segment(run));
    match command {
        Runs::List { batch, job } => {
            let wishes = [("batch", batch), ("job", job)];
            let wishes = wishes.into_iter().filter_map(|(name, value)| Some((name, value?)));
            let query: Vec<String> =
                wishes.map(|(name, value)| format!("{name}={}", segment(&value))).collect();
            let path = if query.is_empty() { "runs".into() } else { format!("runs?{}", query.join("&")) };
            let runs = client.list(&path, |page: RunsView| (page.runs, page.next))?;
            if json {
                return output::say_json(&json!({"runs": runs}));
            }
            runs_table(runs)
        }
        Runs::Batches => {
            let batches = client.list("batches", |page: BatchesView| (page.batches, page.next))?;
            if json {
                return output::say_json(&json!({"batches": batches}));
            }
            let row = |b: BatchView| {
                let ended = format!("{} of {}", b.runs_total - b.runs_active.min(b.runs_total), b.runs_total);
                let here = format!("{} of {}", output::bytes(b.bytes_done), output::bytes(b.bytes_due));
                vec![b.id, b.job_name, ended, here, b.problems.to_string(), b.started]
            };
            output::table(
                &["ID", "JOB", "ENDED", "HERE", "PROBLEMS", "STARTED"],
                batches.into_iter().map(row),
            )
        }
        Runs::Batch { batch } => {
            let batch: BatchView = client.get(&format!("batches/{}", segment(&batch)))?;
            if json { output::say_json(&batch) } else { show_batch(batch) }
        }
        Runs::Show { run, history } => {
            let mut run: RunView = client.get(&path(&run))?;
            if history {
                let entries = |page: HistoriesView| (page.history, page.next);
                run.history = Some(client.list(&format!("{}/history", path(&run.id)), entries)?);
            }
            if json {
                return output::say_json(&run);
            }
            show(&run)?;
            run.history.as_deref().map_or(Ok(()), say_history)
        }
        Runs::Explain { run } => {
            let view: ExplainView = client.get(&format!("{}/explain", path(&run)))?;
            if json { output::say_json(&view) } else { explain(view) }
        }
        Runs::Watch { run } => watch::watch(client, json, &run),
        Runs::Telemetry(line) => telemetry(client, json, &line),
        Runs::Stop { run, reason } => {
            let run: RunView = client.post(&format!("{}/stop", path(&run)), &StopWish { reason })?;
            if json { output::say_json(&run) } else { output::say(&format!("{} is {}", run.id, run.state)) }
        }
    }
}

fn explain(view: ExplainView) -> Done {
    let eta =
        view.eta_seconds.map_or_else(String::new, |eta| format!(", done in about {}", output::seconds(eta)));
    output::say(&format!("run {} of {}: {}{eta}", view.run, view.job_name, view.state.replace('_', " ")))?;
    let row = |a: ExplainAgentView| {
        let moves = a.rate_bytes_s > 0;
        let rate = if moves { format!("{}/s", output::bytes(a.rate_bytes_s)) } else { "–".into() };
        let left = a.bytes_left.map_or_else(|| "–".into(), output::bytes);
        let eta = a.eta_seconds.map_or_else(|| "–".into(), output::seconds);
        vec![a.name, a.state.replace('_', " "), left, rate, eta, a.text]
    };
    output::table(&["AGENT", "STATE", "LEFT", "RATE", "DONE IN", "WHY"], view.agents.into_iter().map(row))
}

fn runs_table(runs: Vec<RunSummary>) -> Done {
    let row = |r: RunSummary| {
        let size = r.bytes.map_or_else(|| "–".into(), output::bytes);
        let ended = match r.members {
            0 => format!("{} of {}", r.destinations_ended, r.destinations),
            members => format!("{members} members"),
        };
        let state = r.outcome.unwrap_or(r.state).replace('_', " ");
        vec![r.id, r.job_name, r.source, state, ended, size, r.problems.to_string(), r.started]
    };
    let heads = ["ID", "JOB", "SOURCE", "STATE", "ENDED", "SIZE", "PROBLEMS", "STARTED"];
    output::table(&heads, runs.into_iter().map(row))
}

fn show_batch(batch: BatchView) -> Done {
    let states: Vec<String> =
        batch.states.iter().map(|(state, count)| format!("{count} {}", state.replace('_', " "))).collect();
    let mut text = format!(
        "{} of {}\n  started   {}\n  runs      {} ({})\n  here      {} of {}\n  problems  {}",
        batch.id,
        batch.job_name,
        batch.started,
        batch.runs_total,
        states.join(", "),
        output::bytes(batch.bytes_done),
        output::bytes(batch.bytes_due),
        batch.problems,
    );
    if batch.after != "keep" {
        text.push_str(&format!(
            "\n  after     {}: {} sources did, {} refused",
            batch.after, batch.disposals, batch.disposals_refused
        ));
        text.push_str(&format!("\n  disposed  {}", disposed(&batch.disposed)));
    }
    output::say(&text)?;
    runs_table(batch.runs.unwrap_or_default())
}

/// What became of sources' files, in words.
fn disposed(disposal: &DisposalView) -> String {
    if let Some(why) = &disposal.refused {
        return format!("nothing, the source refused: {why}");
    }
    format!(
        "{} files, {}; {} changed and stay, {} were gone, {} failed",
        disposal.files,
        output::bytes(disposal.bytes),
        disposal.changed,
        disposal.gone,
        disposal.failed
    )
}

fn show(run: &RunView) -> Done {
    if run.sync.is_some() {
        sync::show(run)?;
        return show_problems(run);
    }
    let mut text = format!("{} of {}: {}", run.id, run.job_name, run.state);
    if let Some(outcome) = run.outcome.as_ref().filter(|outcome| **outcome != run.state) {
        text.push_str(&format!(" ({})", outcome.replace('_', " ")));
    }
    if let Some(reason) = &run.stop_reason {
        text.push_str(&format!(": {reason}"));
    }
    text.push_str(&format!("\n  started   {}", run.started));
    if let Some(finished) = &run.finished {
        text.push_str(&format!("\n  finished  {finished}"));
    }
    if let (Some(entries), Some(bytes), Some(blocks)) = (run.entries, run.bytes, run.blocks) {
        text.push_str(&format!("\n  content   {entries} entries, {}, {blocks} blocks", output::bytes(bytes)));
    }
    if let Some(batch) = &run.batch {
        text.push_str(&format!("\n  batch     {batch}"));
    }
    if run.after != "keep" {
        text.push_str(&format!("\n  after     {}", run.after));
    }
    if let Some(disposal) = &run.disposal {
        text.push_str(&format!("\n  disposed  {}", disposed(disposal)));
    }
    if let Some(eta) = run.eta_seconds {
        let rate = output::bytes(run.rate_bytes_s);
        text.push_str(&format!("\n  ready in  {} at {rate}/s", output::seconds(eta)));
    }
    output::say(&text)?;
    let row = |a: &crate::api::view::RunAgentView| {
        let stats = a.stats.as_ref();
        let number = |of: fn(&crate::api::view::StatsView) -> u64| {
            stats.map_or_else(String::new, |stats| output::bytes(of(stats)))
        };
        vec![
            a.name.clone(),
            a.role.clone(),
            a.state.replace('_', " "),
            format!("{} of {}", a.blocks_done, a.blocks_total),
            number(|stats| stats.bytes_from_source),
            number(|stats| stats.bytes_from_peers),
            output::bytes(a.bytes_sent),
            a.problems_total.to_string(),
        ]
    };
    let heads = ["AGENT", "ROLE", "STATE", "BLOCKS", "FROM SOURCE", "FROM PEERS", "SENT", "PROBLEMS"];
    output::table(&heads, run.agents.iter().map(row))?;
    show_problems(run)
}

fn show_problems(run: &RunView) -> Done {
    for problem in &run.problems {
        output::say(&problem_line(problem))?;
    }
    let hidden = run.problems_total.saturating_sub(run.problems.len() as u64);
    if hidden > 0 {
        output::say(&more(hidden, &format!("flotilla runs show {} --history", run.id)))
    } else {
        Ok(())
    }
}

fn telemetry(client: &Client, json: bool, line: &Course) -> Done {
    let step = line.step.map(|step| step.to_string());
    let wishes =
        [("from", &line.from), ("to", &line.to), ("step", &step), ("agent", &line.agent), ("at", &line.at)];
    let wishes = wishes.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let query: Vec<String> = wishes.map(|(name, value)| format!("{name}={}", segment(value))).collect();
    let path = format!("runs/{}/telemetry?{}", segment(&line.run), query.join("&"));
    let view: TelemetryView = client.get(&path)?;
    if json {
        return output::say_json(&view);
    }
    let figures = &view.figures;
    let ended = figures.outcome.as_deref().unwrap_or("goes on").replace('_', " ");
    let mut text = format!("{} of {}: {ended}", view.run, view.job_name);
    text.push_str(&format!("\n  took      {}", output::seconds(figures.duration_s)));
    let (got, rate) = (output::bytes(figures.bytes_received), output::bytes(figures.rate_bytes_s));
    text.push_str(&format!("\n  moved     {got}, {rate}/s"));
    if let Some(peak) = figures.peak_rate_bytes_s {
        text.push_str(&format!(", at most {}/s", output::bytes(peak)));
    }
    let points: usize = view.agents.iter().map(|agent| agent.points.len()).sum();
    let seconds = output::seconds(view.step_s);
    text.push_str(&format!("\n  course    {points} points of {seconds}; --json shows them"));
    output::say(&text)?;
    let row = |a: &crate::api::AgentFiguresView| {
        let rate =
            |rate: Option<u64>| rate.map_or_else(|| "–".into(), |rate| format!("{}/s", output::bytes(rate)));
        vec![
            a.name.clone(),
            a.role.clone(),
            a.state.replace('_', " "),
            a.duration_s.map_or_else(|| "–".into(), output::seconds),
            output::bytes(a.bytes_from_source),
            output::bytes(a.bytes_from_peers),
            output::bytes(a.bytes_sent),
            format!("{:.0} %", a.share_of_sent * 100.0),
            rate(a.rate_bytes_s),
            rate(a.peak_rate_bytes_s),
        ]
    };
    let heads =
        ["AGENT", "ROLE", "STATE", "TOOK", "FROM SOURCE", "FROM PEERS", "SENT", "SHARE", "RATE", "PEAK"];
    output::table(&heads, figures.agents.iter().map(row))
}

/// That there are problems beyond those shown, and what shows them.
pub(super) fn more(hidden: u64, command: &str) -> String {
    format!("… and {hidden} more {}; {command} lists them", if hidden == 1 { "problem" } else { "problems" })
}

/// A problem on one line, whatever its path contains.
pub(super) fn problem_line(problem: &ProblemView) -> String {
    let bytes = problem.path_hex.as_ref().and_then(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).ok());
    let path = crate::api::escape_bytes(bytes.as_deref().unwrap_or(problem.path.as_bytes()));
    let path = if path.is_empty() { path } else { format!(" {path}") };
    format!("problem: {}: {}{path}: {}", problem.agent, problem.class.replace('_', " "), problem.detail)
}

fn say_history(history: &[HistoryView]) -> Done {
    output::say("history, from the log:")?;
    for event in history {
        output::say(&format!(
            "{:>8}  {}  {:<22}  {:<18}  {}",
            event.position, event.time, event.kind, event.actor, event.summary
        ))?;
    }
    Ok(())
}

pub(super) fn status(client: &Client, json: bool) -> Done {
    let status: StatusView = client.get("status")?;
    if json {
        return output::say_json(&status);
    }
    let count = |map: &std::collections::BTreeMap<String, u64>| {
        map.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
    };
    output::say(&format!(
        "version   {}\nfleet     {}\ngateway   {}\nposition  {}\nstate     {}\nagents    {}\nruns      {}\nlog       {}",
        status.version,
        status.fleet,
        status.gateway,
        status.position,
        status.state_hash,
        count(&status.agents),
        count(&status.runs),
        if status.healthy { "takes records" } else { "DOES NOT TAKE RECORDS" },
    ))?;
    if let Some(sealed) = status.sealed {
        output::say(&format!("sealed    {sealed} entries"))?;
    }
    if status.log_first > 1 {
        output::say(&format!("log begins with {}; what was before is archived", status.log_first))?;
    }
    status.warnings.iter().try_for_each(|warning| output::say(&format!("WARNING   {warning}")))?;
    status.alarms.iter().try_for_each(|alarm| output::say(&format!("ALARM     {alarm}")))
}
