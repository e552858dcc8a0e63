//! `flotilla runs watch`: a run, live, to its end.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::client::{Client, RequestError, segment};
use super::work::{more, problem_line};
use super::{Done, Failure, output};
use crate::api::total;
use crate::api::view::{RunAgentView, RunView};

/// How often the service is asked.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long a service may be away (restarted, say) before the watcher gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Problems told while watching: more would push everything else off the screen.
const PROBLEMS_TOLD_MAX: usize = 10;

/// How often a line is printed where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

pub(super) fn watch(client: &Client, json: bool, wanted: &str) -> Done {
    let mut run: RunView = client.get(&format!("runs/{}", segment(wanted)))?;
    // "latest" is the latest at this moment.
    let path = format!("runs/{}", run.id);
    let mut screen = if json {
        Screen::Json { last: None }
    } else if std::io::stdout().is_terminal() && std::io::stderr().is_terminal() {
        Screen::Bars(Box::new(Bars::new()))
    } else {
        Screen::Lines { last: String::new(), at: None }
    };
    let mut problems_told = 0;
    loop {
        for problem in run.problems.iter().take(PROBLEMS_TOLD_MAX).skip(problems_told) {
            if !json {
                screen.line(&problem_line(problem))?;
            }
        }
        problems_told = problems_told.max(run.problems.len().min(PROBLEMS_TOLD_MAX));
        screen.show(&run)?;
        if let Some(outcome) = run.outcome.clone() {
            screen.end();
            if !json {
                let hidden = run.problems_total.saturating_sub(problems_told as u64);
                if hidden > 0 {
                    output::say(&more(hidden, &format!("flotilla runs show {}", run.id)))?;
                }
                output::say(&conclusion(&run, &outcome))?;
            }
            // A synchronization has no other end than to be stopped.
            let is_well = outcome == "succeeded" || run.sync.is_some();
            return if is_well { Ok(()) } else { Err(Failure::Quiet) };
        }
        std::thread::sleep(INTERVAL);
        run = ask_patiently(client, &path)?;
    }
}

fn ask_patiently(client: &Client, path: &str) -> Result<RunView, Failure> {
    let since = Instant::now();
    loop {
        match client.get(path) {
            Ok(run) => return Ok(run),
            Err(RequestError::Unreachable(message)) if since.elapsed() > PATIENCE => {
                return Err(Failure::Failed(message));
            }
            Err(RequestError::Unreachable(_)) => std::thread::sleep(INTERVAL),
            Err(RequestError::Refused { code, .. })
                if code == "unavailable" && since.elapsed() < PATIENCE =>
            {
                std::thread::sleep(INTERVAL);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn conclusion(run: &RunView, outcome: &str) -> String {
    if let Some(sync) = &run.sync {
        return format!("{}: {}", run.job_name, sync.status);
    }
    let done = run.agents.iter().filter(|agent| agent.role == "destination" && agent.state == "done").count();
    let all = run.agents.iter().filter(|agent| agent.role == "destination").count();
    let size = run.bytes.map_or_else(|| "it".into(), |bytes| format!("all of {}", output::bytes(bytes)));
    let problems = match run.problems_total {
        0 => String::new(),
        1 => ", 1 problem".into(),
        n => format!(", {n} problems"),
    };
    format!(
        "{}: {} ({done} of {all} destinations have {size}{problems})",
        run.job_name,
        outcome.replace('_', " ")
    )
}

enum Screen {
    Json { last: Option<String> },
    Lines { last: String, at: Option<Instant> },
    Bars(Box<Bars>),
}

impl Screen {
    fn show(&mut self, run: &RunView) -> Done {
        match self {
            Self::Json { last } => {
                let mut shown = run.clone();
                // Nothing but this changed: no news.
                shown.as_of = 0;
                let text = serde_json::to_string(&shown).map_err(Failure::of)?;
                if last.as_ref() != Some(&text) {
                    output::say_json(run)?;
                    *last = Some(text);
                }
                Ok(())
            }
            Self::Lines { last, at } => {
                let line = overview(run);
                let mut states: String = run.agents.iter().map(|agent| agent.state.as_str()).collect();
                if let Some(sync) = &run.sync {
                    states.push_str(&sync.status);
                }
                let due = at.is_none_or(|at| at.elapsed() >= LINE_INTERVAL);
                if states != *last || due {
                    output::say(&line)?;
                    *last = states;
                    *at = Some(Instant::now());
                }
                Ok(())
            }
            Self::Bars(bars) => {
                bars.show(run);
                Ok(())
            }
        }
    }

    fn line(&mut self, line: &str) -> Done {
        match self {
            Self::Bars(bars) => bars.multi.println(line).map_err(Failure::of),
            _ => output::say(line),
        }
    }

    fn end(&mut self) {
        if let Self::Bars(bars) = self {
            for bar in bars.of.values() {
                bar.abandon();
            }
            bars.total.finish_and_clear();
        }
    }
}

/// The run on one line.
fn overview(run: &RunView) -> String {
    if let Some(sync) = &run.sync {
        let left = total(run.agents.iter().filter_map(|agent| agent.member.as_ref()).map(|m| m.left_bytes));
        let rate = total(run.agents.iter().map(|agent| agent.rate_bytes_s));
        let mut line = format!(
            "{}: {} of {} members in sync; {}",
            run.job_name, sync.in_sync, sync.members, sync.status
        );
        if left > 0 {
            line.push_str(&format!("; {} to fetch, {}/s", output::bytes(left), output::bytes(rate)));
        }
        return line;
    }
    let destinations = || run.agents.iter().filter(|agent| agent.role == "destination");
    let done = total(destinations().map(|agent| agent.bytes_done));
    let all = total(destinations().map(|agent| agent.bytes_total));
    let ended = destinations().filter(|agent| agent.state.starts_with("done")).count();
    let mut line = format!("{}: {}", run.job_name, run.state);
    if run.state == "preparing"
        && let Some(source) = run.agents.iter().find(|agent| agent.role == "source")
    {
        line.push_str(&format!(", source {}", source.state));
        if source.entries_indexed > 0 {
            line.push_str(&format!(", {} entries read", source.entries_indexed));
        }
    } else {
        line.push_str(&format!(
            ", {} of {}, {}/s, {ended} of {} destinations done",
            output::bytes(done),
            output::bytes(all),
            output::bytes(run.rate_bytes_s),
            destinations().count()
        ));
        if let Some(eta) = run.eta_seconds {
            line.push_str(&format!(", ready in {}", output::seconds(eta)));
        }
    }
    line
}

/// Bars on a terminal: one an agent, and a line for all.
struct Bars {
    multi: MultiProgress,
    total: ProgressBar,
    of: HashMap<String, ProgressBar>,
}

impl Bars {
    fn new() -> Self {
        let multi = MultiProgress::new();
        let total = multi.add(ProgressBar::new_spinner());
        total.set_style(style("{spinner} {msg}"));
        Self { multi, total, of: HashMap::new() }
    }

    fn show(&mut self, run: &RunView) {
        for agent in &run.agents {
            let bar = self.of.entry(agent.id.clone()).or_insert_with(|| {
                let bar = self.multi.insert_before(&self.total, ProgressBar::new(1));
                bar.set_style(style("{prefix:20!} {bar:30} {msg}"));
                bar.set_prefix(agent.name.clone());
                bar
            });
            let (done, all) = match &agent.member {
                Some(member) => (member.entries, member.entries.saturating_add(member.left_entries)),
                None => (agent.blocks_done, agent.blocks_total),
            };
            bar.set_length(all.max(1));
            bar.set_position(done);
            bar.set_message(progress(agent));
        }
        self.total.set_message(overview(run));
        self.total.tick();
    }
}

fn progress(agent: &RunAgentView) -> String {
    let mut text = agent.state.replace('_', " ");
    if let Some(member) = &agent.member {
        text = member.standing.replace('_', " ");
        text.push_str(&format!(", {} entries", member.entries));
        if member.left_entries > 0 {
            let bytes = output::bytes(member.left_bytes);
            text.push_str(&format!(", {} left ({bytes})", member.left_entries));
        }
    } else if agent.role == "source" {
        if agent.state == "indexing" {
            text.push_str(&format!(", {} entries read", agent.entries_indexed));
        } else {
            text.push_str(&format!(", {} sent", output::bytes(agent.bytes_sent)));
        }
    } else {
        let (done, all) = (output::bytes(agent.bytes_done), output::bytes(agent.bytes_total));
        text.push_str(&format!(", {done} of {all}"));
    }
    if agent.rate_bytes_s > 0 {
        text.push_str(&format!(", {}/s", output::bytes(agent.rate_bytes_s)));
    }
    if agent.peers > 0 {
        text.push_str(&format!(", {} peers", agent.peers));
    }
    if !agent.online {
        text.push_str(", offline");
    }
    text
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a constant template")
}
