//! `cargo xtask demo`: the main job from beginning to end, with real processes on loopback.
//!
//! Owns the story (build, start, enrol, distribute, verify, tell the history) and its report. The programs are
//! `fleet` and `children`, what is asked of them `operator`, the data `folder` and `tree`, the independent check
//! `verify`.

mod children;
mod fleet;
mod folder;
mod operator;
mod progress;
mod stop;
mod tree;
mod verify;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use crate::demo::fleet::{Binaries, Fleet, Log, STORAGE};
use crate::demo::folder::Folder;
use crate::demo::operator::Run;
use crate::demo::progress::{Progress, size};
use crate::demo::stop::{Interrupted, Stop};
use crate::demo::verify::Size;
use crate::tools;
use crate::workspace::{Workspace, build_programs};

#[derive(Args)]
#[command(after_help = "Example: cargo xtask demo --agents 4 --path ~/pictures --keep")]
pub(crate) struct Options {
    /// Destinations, each a process with a folder of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    agents: u16,
    /// The folder to distribute (default: a generated tree of 3,000 files and 200 MB)
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Keep everything running afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Keep everyone's data in this new or empty folder
    #[arg(long, value_name = "DIR")]
    keep_data: Option<PathBuf>,
    /// Where temporary data goes (default: `demo` in the target folder)
    #[arg(long, value_name = "DIR", conflicts_with = "keep_data")]
    temp: Option<PathBuf>,
    /// Keep the events in NATS JetStream: at this URL, or without one in a server of our own
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "")]
    nats: Option<String>,
    /// End with one JSON object on stdout; everything else goes to stderr
    #[arg(long)]
    json: bool,
}

/// How long a run may make no progress at all before we give up on it.
const STALLED: Duration = Duration::from_secs(120);
/// After the end, how long the source may take to tell what it sent.
const LAST_REPORT: Duration = Duration::from_secs(15);
/// The name of the agent that has the tree.
const SOURCE: &str = "source";
/// The name of the copies, below each agent's storage folder.
const COPY: &str = "demo";
/// Differences shown for each copy.
const SHOWN: usize = 20;

/// What `--json` tells; filled as the story goes on.
#[derive(Default)]
struct Report {
    agents: u16,
    size: Size,
    seconds: f64,
    source_bytes_sent: u64,
    events: u64,
    rsync: bool,
    source: PathBuf,
    copies: Vec<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let stop = Stop::install()?;
    let mut report = Report { agents: options.agents, ..Report::default() };
    let outcome = Story { options, stop: &stop }.tell(&mut report);
    let error = outcome.as_ref().err().map(|error| format!("{error:#}"));
    if options.json {
        let _ = writeln!(std::io::stdout(), "{}", report.json(error.as_deref()));
    }
    match outcome {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // As a shell tells a program ended by Ctrl-C.
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("interrupted: everything stopped");
            Ok(ExitCode::from(130))
        }
        Err(error) => Err(error),
    }
}

struct Story<'a> {
    options: &'a Options,
    stop: &'a Stop,
}

impl Story<'_> {
    /// Everything this makes is taken back by destructors, programs before data.
    fn tell(&self, report: &mut Report) -> Result<()> {
        // What can be wrong at once is told before the minutes of building.
        if let Some(path) = &self.options.path {
            report.source = path.canonicalize().with_context(|| format!("no folder {}", path.display()))?;
            ensure!(report.source.is_dir(), "{} is not a folder", path.display());
        }
        let workspace = Workspace::load()?;
        let binaries = self.build(&workspace)?;
        let log = match self.options.nats.as_deref() {
            None => Log::Embedded,
            Some("") => Log::OwnNats(tools::nats_server()?),
            Some(url) => Log::Nats(url.to_owned()),
        };
        let folder = match &self.options.keep_data {
            Some(path) => Folder::kept(path)?,
            None => {
                let parent = self.options.temp.clone().unwrap_or_else(|| workspace.target.join("demo"));
                Folder::temporary(&parent)?
            }
        };
        self.source(&folder, report)?;
        let mut fleet = Fleet::start(&binaries, &log, &folder, self.stop)?;
        let outcome = self.main_job(&mut fleet, &binaries, &folder, report);
        if outcome.as_ref().is_err_and(|error| !error.is::<Interrupted>()) {
            // The logs go with the data: what they say last is told now.
            self.say(&fleet.last_words());
        }
        outcome?;
        self.say(&report.told());
        self.leave(&fleet, &folder)
    }

    fn main_job(
        &self,
        fleet: &mut Fleet,
        binaries: &Binaries,
        folder: &Folder,
        report: &mut Report,
    ) -> Result<()> {
        self.gather(fleet, binaries, folder)?;
        let run = self.distribute(fleet, folder, report)?;
        let wrong = self.verify(report)?;
        let (history, events) = fleet.operator.history(&run)?;
        report.events = events;
        self.say(&format!("\nthe run:\n{}\n", history.trim_end()));
        ensure!(wrong == 0, "{wrong} of {} copies differ from the source, see above", report.copies.len());
        Ok(())
    }

    /// What a person reads: stdout, unless that is kept for the JSON object.
    fn say(&self, text: &str) {
        // If nobody reads any more the story goes on to its end all the same.
        let _ = if self.options.json {
            writeln!(std::io::stderr(), "{text}")
        } else {
            writeln!(std::io::stdout(), "{text}")
        };
    }

    fn build(&self, workspace: &Workspace) -> Result<Binaries> {
        self.say("building flotilla, flotilla-agent, flotilla-tracker (the first time takes minutes)");
        let mut child = build_programs().stdin(Stdio::null()).spawn().context("running cargo build")?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if let Err(error) = self.stop.pause(Duration::from_millis(50)) {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        self.stop.check()?;
        ensure!(status.success(), "building failed");
        let binary = |name| workspace.target.join("debug").join(name);
        Ok(Binaries {
            flotilla: binary("flotilla"),
            agent: binary("flotilla-agent"),
            tracker: binary("flotilla-tracker"),
        })
    }

    /// The tree to distribute, measured.
    fn source(&self, folder: &Folder, report: &mut Report) -> Result<()> {
        if self.options.path.is_none() {
            report.source = folder.make(&format!("{SOURCE}/{STORAGE}"))?;
            self.say("making a tree");
            tree::make(&report.source, tree::USUAL, self.stop)?;
        }
        report.size = verify::measure(&report.source, self.stop)?;
        let Size { files, bytes } = report.size;
        self.say(&format!("{}: {files} files, {}", report.source.display(), size(bytes as f64)));
        folder.has_room(bytes.saturating_mul(u64::from(self.options.agents)))
    }

    /// Starts and enrols the agents.
    fn gather(&self, fleet: &mut Fleet, binaries: &Binaries, folder: &Folder) -> Result<()> {
        self.say(&format!("tracker and control service are ready, console at {}", fleet.operator.url()));
        let mut names = self.destinations();
        names.push(SOURCE.to_owned());
        for name in &names {
            self.stop.check()?;
            fleet.add_agent(binaries, name, folder)?;
        }
        fleet.online(&names, self.stop)?;
        self.say(&format!("enrolled and online: {}", names.join(", ")));
        Ok(())
    }

    fn destinations(&self) -> Vec<String> {
        (1..=self.options.agents).map(|n| format!("agent-{n}")).collect()
    }

    /// Creates the job and watches its run to the end; the run's id.
    fn distribute(&self, fleet: &mut Fleet, folder: &Folder, report: &mut Report) -> Result<String> {
        let names = self.destinations();
        report.copies = names.iter().map(|name| folder.path().join(name).join(STORAGE).join(COPY)).collect();
        fleet.operator.create_group("destinations", &names)?;
        let mut from = OsString::from(format!("{SOURCE}:"));
        from.push(&report.source);
        let started = Instant::now();
        let id = fleet.operator.distribute(&from, &format!("destinations:{COPY}"))?;
        let run = self.watch(fleet, &id, report)?;
        report.seconds = started.elapsed().as_secs_f64();
        // Told here, judged by the comparison.
        run.problems.iter().for_each(|problem| self.say(&format!("problem at {problem}")));
        if let Err(error) = run.finished() {
            let history = fleet.operator.history(&id).map_or_else(|e| e.to_string(), |(text, _)| text);
            self.say(&history);
            return Err(error);
        }
        report.source_bytes_sent = self.sent(fleet, &id)?;
        Ok(id)
    }

    fn watch(&self, fleet: &mut Fleet, id: &str, report: &Report) -> Result<Run> {
        let total = report.size.bytes.saturating_mul(u64::from(report.agents));
        let mut progress = Progress::new(total);
        let mut last = (String::new(), 0);
        let mut moved = Instant::now();
        loop {
            fleet.alive()?;
            let run = fleet.operator.run(id)?;
            let now = Instant::now();
            progress.show(&run, now);
            if run.ended() {
                return Ok(run);
            }
            let seen = (run.state.clone(), run.destinations().map(|agent| agent.bytes_done).sum::<u64>());
            if seen != last {
                (last, moved) = (seen, now);
            }
            if now.duration_since(moved) > STALLED {
                bail!("no progress for {} s while {}", STALLED.as_secs(), run.state);
            }
            self.stop.pause(Duration::from_millis(200))?;
        }
    }

    /// What the source says it sent. Its last report may come after the run's end.
    fn sent(&self, fleet: &mut Fleet, id: &str) -> Result<u64> {
        self.stop.until("the source's last report", LAST_REPORT, || {
            Ok(fleet.operator.run(id)?.source_bytes_sent())
        })
    }

    /// How many copies differ from the source; each difference is told.
    fn verify(&self, report: &mut Report) -> Result<usize> {
        self.say("comparing every copy with the source: content, modes, times, links");
        let source = verify::read(&report.source, self.stop)?;
        report.rsync = tools::has_rsync();
        let (source, by_rsync) = (&source, report.rsync);
        let compare = |copy: &Path| -> Result<Vec<String>> {
            let mut found = verify::differences(source, &verify::read(copy, self.stop)?);
            if by_rsync {
                let lines = verify::rsync(&report.source, copy)?;
                found.extend(lines.into_iter().map(|line| format!("rsync says {line}")));
            }
            Ok(found)
        };
        // One thread each is plenty: the disk is the limit, not the threads.
        let results: Vec<(PathBuf, Result<Vec<String>>)> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                report.copies.iter().map(|copy| (copy, scope.spawn(move || compare(copy)))).collect();
            threads
                .into_iter()
                .map(|(copy, thread)| (copy.clone(), thread.join().expect("no panics")))
                .collect()
        });
        let mut wrong = 0;
        for (copy, result) in results {
            let found = result?;
            wrong += usize::from(!found.is_empty());
            for line in found.iter().take(SHOWN) {
                self.say(&format!("{}: {line}", copy.display()));
            }
            if found.len() > SHOWN {
                self.say(&format!("{}: and {} more", copy.display(), found.len() - SHOWN));
            }
        }
        Ok(wrong)
    }

    /// What stays, and for how long.
    fn leave(&self, fleet: &Fleet, folder: &Folder) -> Result<()> {
        if self.options.keep {
            let data = folder.path().join("control");
            self.say(&format!(
                "still running: console at {}\ncommand line: {} --data {} agents list\nCtrl-C ends it",
                fleet.operator.console(),
                fleet.operator.program().display(),
                data.display()
            ));
            self.stop.wait();
        }
        if self.options.keep_data.is_some() {
            self.say(&format!("everyone's data is in {}", folder.path().display()));
        }
        Ok(())
    }
}

impl Report {
    /// How many times the source sent the tree; 0 for an empty one.
    fn copies_sent(&self) -> f64 {
        if self.size.bytes == 0 { 0.0 } else { self.source_bytes_sent as f64 / self.size.bytes as f64 }
    }

    fn told(&self) -> String {
        let by = if self.rsync {
            "by our own walk and by rsync"
        } else {
            "by our own walk; rsync is not installed"
        };
        let all = self.size.bytes as f64 * f64::from(self.agents);
        format!(
            "{} copies of {} files ({}) in {:.1} s, {}/s in all, identical {by}\n\
             the source sent {}: {:.2} copies for {} destinations; {} events in the run's history",
            self.agents,
            self.size.files,
            size(self.size.bytes as f64),
            self.seconds,
            size(all / self.seconds.max(0.001)),
            size(self.source_bytes_sent as f64),
            self.copies_sent(),
            self.agents,
            self.events,
        )
    }

    /// The contract with scripts: these seven keys are always there, further ones may be added.
    fn json(&self, error: Option<&str>) -> serde_json::Value {
        let mut object = json!({
            "ok": error.is_none(),
            "agents": self.agents,
            "files": self.size.files,
            "bytes": self.size.bytes,
            "seconds": (self.seconds * 1000.0).round() / 1000.0,
            "source_bytes_sent": self.source_bytes_sent,
            "events": self.events,
            "copies": (self.copies_sent() * 1000.0).round() / 1000.0,
            "rsync": self.rsync,
            "source": self.source.to_string_lossy(),
            "destinations": self.copies.iter().map(|copy| copy.to_string_lossy()).collect::<Vec<_>>(),
        });
        if let Some(error) = error {
            object["error"] = error.into();
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn nats_may_have_an_address() {
        let nats = |line: &[&str]| Line::try_parse_from(line).unwrap().options.nats;
        assert_eq!(nats(&["demo"]), None);
        assert_eq!(nats(&["demo", "--nats", "--json"]), Some(String::new()));
        assert_eq!(nats(&["demo", "--nats", "nats://127.0.0.1:4222"]).unwrap(), "nats://127.0.0.1:4222");
        assert!(Line::try_parse_from(["demo", "--agents", "0"]).is_err());
    }

    #[test]
    fn the_report_has_its_seven_keys_in_good_and_bad_times() {
        let report = Report {
            agents: 4,
            size: Size { files: 2, bytes: 1000 },
            seconds: 2.0,
            source_bytes_sent: 1100,
            ..Report::default()
        };
        let keys = ["ok", "agents", "files", "bytes", "seconds", "source_bytes_sent", "events"];
        for (error, ok) in [(None, true), (Some("disk full"), false)] {
            let object = report.json(error);
            assert!(keys.iter().all(|key| object.get(key).is_some()));
            assert_eq!((&object["ok"], &object["copies"]), (&json!(ok), &json!(1.1)));
            assert_eq!(object.get("error").is_some(), !ok);
        }
        assert_eq!(Report::default().json(None)["copies"], json!(0.0));
        assert!(report.told().contains("2.0 kB/s in all") && report.told().contains("1.10 copies"));
    }
}
