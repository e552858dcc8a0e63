//! `flotilla backups`, and what `flotilla jobs create` takes for backups and for options of runs.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Subcommand, value_parser};
use serde_json::json;

use super::client::{Client, segment};
use super::{Done, Failure, output, place};
use crate::api::backup_view::{
    BackupSourceView, BackupView, KeepShape, OptionsShape, RestoreStarted, RestoreWish, VersionView,
    VersionsView, WhenShape,
};
use crate::api::bootstrap_place;
use crate::api::view::{JobView, JobWish, JobsView};

/// What is asked of the runs of a job.
#[derive(Debug, Args)]
pub(super) struct OptionsLine {
    /// Leave out what this line of a .flotillaignore names, besides what the source's own file says (repeatable)
    #[arg(long, value_name = "RULE", allow_hyphen_values = true)]
    ignore: Vec<String>,
    /// Fetch what this pattern names before the rest, in the order of the patterns (repeatable)
    #[arg(long, value_name = "PATTERN")]
    first: Vec<String>,
    /// Call this hook of each destination's own configuration before files get their names
    #[arg(long, value_name = "NAME")]
    hook: Option<String>,
    /// How long the hook may take, such as 30s or 10min [default: as the agent's configuration says]
    #[arg(long, value_name = "TIME", requires = "hook", value_parser = place::time)]
    hook_timeout: Option<Duration>,
}

impl OptionsLine {
    /// None if nothing is asked.
    pub(super) fn wish(self) -> Result<Option<OptionsShape>, Failure> {
        let Self { ignore, first, hook, hook_timeout } = self;
        let seconds = hook_timeout.map(|time| whole(time, 1, "--hook-timeout", "seconds")).transpose()?;
        let asked = OptionsShape { ignore, first, hook, hook_timeout_s: seconds };
        let none = OptionsShape { ignore: vec![], first: vec![], hook: None, hook_timeout_s: None };
        Ok((asked != none).then_some(asked))
    }
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its name
    #[arg(long)]
    name: String,
    /// Whose folder (repeatable)
    #[arg(long, value_name = "AGENT|GROUP:PATH", required = true, value_parser = value_parser!(OsString))]
    source: Vec<OsString>,
    /// Where versions are kept (repeatable)
    #[arg(long, value_name = "AGENT|GROUP:PATH", required = true, value_parser = value_parser!(OsString))]
    destination: Vec<OsString>,
    /// How the shelf of each source is named [default: /%SRC:AGENT_NAME%]
    #[arg(long)]
    subfolder: Option<String>,
    /// Start it again and again, every so long, such as 30min, 6h or 1d
    #[arg(long, value_name = "TIME", value_parser = place::time, conflicts_with_all = ["calendar", "continuous"])]
    every: Option<Duration>,
    /// Start it by the calendar, in UTC: minute, hour, day of the month, month, day of the week
    #[arg(long, value_name = "\"M H D M W\"", conflicts_with = "continuous")]
    calendar: Option<String>,
    /// Start a source when its folder has changed, and then not again for so long, such as 15min
    #[arg(long, value_name = "TIME", value_parser = place::time)]
    continuous: Option<Duration>,
    /// With --continuous: how long the folder has to be quiet first [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = place::time, requires = "continuous")]
    quiet: Option<Duration>,
    /// Keep so many of the newest versions
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// Keep one of each of so many hours
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    /// Keep one of each of so many days
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    /// Keep one of each of so many weeks
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,
    /// Keep one of each of so many months
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,
    /// Keep one of each of so many years
    #[arg(long, value_name = "N")]
    keep_yearly: Option<u32>,
    /// Keep all that are at most so many days older than the newest one
    #[arg(long, value_name = "DAYS")]
    keep_within: Option<u32>,
    #[command(flatten)]
    options: OptionsLine,
    /// Start it now too, though it has a schedule
    #[arg(long, conflicts_with = "no_start")]
    start: bool,
    /// Only make the job
    #[arg(long)]
    no_start: bool,
}

/// The job to be made.
pub(super) fn wish(line: Create) -> Result<JobWish, Failure> {
    let places = |texts: Vec<OsString>| -> Result<Vec<_>, _> {
        texts.into_iter().map(|text| place::parse(text).map_err(Failure::Usage)).collect()
    };
    let manual = WhenShape { kind: "manual".into(), minutes: None, expression: None, quiet_seconds: None };
    let when = if let Some(time) = line.every {
        WhenShape { kind: "every".into(), minutes: Some(whole(time, 60, "--every", "minutes")?), ..manual }
    } else if let Some(expression) = line.calendar {
        WhenShape { kind: "calendar".into(), expression: Some(expression), ..manual }
    } else if let Some(time) = line.continuous {
        let quiet = line.quiet.unwrap_or(Duration::from_secs(30));
        WhenShape {
            kind: "continuous".into(),
            minutes: Some(whole(time, 60, "--continuous", "minutes")?),
            quiet_seconds: Some(whole(quiet, 1, "--quiet", "seconds")?),
            ..manual
        }
    } else {
        manual
    };
    let rules = [
        line.keep_last,
        line.keep_hourly,
        line.keep_daily,
        line.keep_weekly,
        line.keep_monthly,
        line.keep_yearly,
        line.keep_within,
    ];
    let keep = rules.iter().any(Option::is_some).then(|| {
        let [last, hourly, daily, weekly, monthly, yearly, within_days] =
            rules.map(|rule| rule.unwrap_or_default());
        KeepShape { last, hourly, daily, weekly, monthly, yearly, within_days }
    });
    let start = match (line.start, line.no_start) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    Ok(JobWish {
        sources: places(line.source)?,
        destinations: places(line.destination)?,
        subfolder: line.subfolder,
        when: Some(when),
        keep,
        options: line.options.wish()?,
        start,
        ..JobWish::new("backup", line.name)
    })
}

/// A time in whole units of so many seconds.
fn whole(time: Duration, seconds: u64, flag: &str, units: &str) -> Result<u32, Failure> {
    let fits = time.subsec_nanos() == 0 && time.as_secs().is_multiple_of(seconds);
    let count = u32::try_from(time.as_secs() / seconds).ok().filter(|count| fits && *count > 0);
    count.ok_or_else(|| Failure::Usage(format!("{flag} is in whole {units}")))
}

/// When a job is started, for people.
pub(super) fn when_line(when: &WhenShape) -> String {
    let minutes = when.minutes.unwrap_or_default();
    match when.kind.as_str() {
        "every" => format!("every {}", span(minutes)),
        "calendar" => format!("at {} (UTC)", when.expression.clone().unwrap_or_default()),
        "continuous" => format!(
            "when it has changed and been quiet for {} s, {} apart",
            when.quiet_seconds.unwrap_or_default(),
            span(minutes)
        ),
        _ => "by hand".into(),
    }
}

fn span(minutes: u32) -> String {
    humantime::format_duration(Duration::from_secs(u64::from(minutes) * 60)).to_string()
}

pub(super) fn keep_line(keep: &KeepShape) -> String {
    let KeepShape { last, hourly, daily, weekly, monthly, yearly, within_days } = *keep;
    let rules = [
        ("last", last),
        ("hourly", hourly),
        ("daily", daily),
        ("weekly", weekly),
        ("monthly", monthly),
        ("yearly", yearly),
        ("within days", within_days),
    ];
    let rules = rules.into_iter().filter(|(_, count)| *count > 0);
    rules.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

/// What is asked of runs, a line each.
pub(super) fn options_lines(options: &OptionsShape) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    lines.extend(options.ignore.iter().map(|rule| format!("ignore   {rule}")));
    lines.extend(options.first.iter().map(|pattern| format!("first    {pattern}")));
    if let Some(hook) = &options.hook {
        let time =
            options.hook_timeout_s.map_or_else(String::new, |seconds| format!(" (at most {seconds} s)"));
        lines.push(format!("hook     {hook}{time}"));
    }
    lines
}

#[derive(Debug, Subcommand)]
pub(super) enum Backups {
    /// Show all backups, or one of them with its sources
    #[command(after_help = "Example: flotilla backups list\n         flotilla backups list offices")]
    List {
        /// Name, id or beginning of the id
        job: Option<String>,
    },
    /// Show the versions that are kept of a backup, the newest first
    #[command(after_help = "Example: flotilla backups versions offices --source desk-7\n\n\
        A version is complete, incomplete (its run ended with errors there) or shrunk: so much less than the one before that \
        a disk may have been missing at the source. The last two take no other version's place. Each is a plain folder of \
        its name at PATH; what it has in common with others is there once.")]
    Versions {
        /// Name, id or beginning of the id
        job: String,
        /// Only those of this source
        #[arg(long, value_name = "AGENT")]
        source: Option<String>,
        /// The fleet as it was then
        #[arg(long, value_name = "POSITION|TIME")]
        at: Option<String>,
    },
    /// Give a version back: all of it, or a file or folder of it
    #[command(
        after_help = "Example: flotilla backups restore offices --source desk-7 --path docs/plan.txt\n         \
        flotilla backups restore offices --source desk-7 --at 2026-11-23T01:30:00Z --to desk-8:/home\n\n\
        Without --to it goes back to the source, into its folder; with --to AGENT to that agent, into the same folder there; \
        with --to AGENT:PATH into that one. What is there and differs is kept in the folder's archive \
        (`flotilla-agent archive list`); what the version does not have stays. Storage proves what it gives: a file that is \
        not any more what was backed up is not given, and the run ends with errors that name it. Without --version or --at \
        it is the newest version that is complete and not suspicious. A source that is a single file is restored with \
        --to AGENT:FOLDER."
    )]
    Restore(RestoreLine),
}

#[derive(Debug, Args)]
pub(super) struct RestoreLine {
    /// Name, id or beginning of the id of the backup
    job: String,
    /// Whose folder was kept [default: the backup's only source]
    #[arg(long, value_name = "AGENT")]
    source: Option<String>,
    /// Which version: its name, or "latest" [default: latest]
    #[arg(long, value_name = "NAME", conflicts_with = "at")]
    version: Option<String>,
    /// The newest version that is not newer than this time (RFC 3339, UTC)
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Only this file or folder of it, such as docs/plan.txt
    #[arg(long, value_name = "SUB", value_parser = value_parser!(OsString))]
    path: Option<OsString>,
    /// Who gets it, and into which folder [default: the source, into its own]
    #[arg(long, value_name = "AGENT[:PATH]", value_parser = value_parser!(OsString))]
    to: Option<OsString>,
    /// Which storage agent gives it [default: one that is connected]
    #[arg(long, value_name = "AGENT")]
    from: Option<String>,
}

fn restore_wish(line: RestoreLine, source: String) -> Result<RestoreWish, Failure> {
    let RestoreLine { version, at, path, to, from, .. } = line;
    let (path, path_hex) = path.map_or((None, None), place::path);
    let (mut folder, mut folder_hex) = (None, None);
    let to = match to {
        None => None,
        Some(to) => match place::parse(to.clone()) {
            Ok(place) => {
                (folder, folder_hex) = (place.path, place.path_hex);
                Some(place.party)
            }
            Err(_) => match to.into_string() {
                Ok(agent) if !agent.is_empty() && !agent.contains(':') => Some(agent),
                _ => return Err(Failure::Usage("--to is AGENT or AGENT:PATH".into())),
            },
        },
    };
    Ok(RestoreWish { source, version, at, path, path_hex, to, folder, folder_hex, from })
}

fn only_source(backup: BackupView) -> Result<String, Failure> {
    match backup.sources.as_slice() {
        [source] => Ok(source.id.clone()),
        all => {
            let names: Vec<&str> = all.iter().map(|source| source.name.as_str()).collect();
            Err(Failure::Usage(format!("say with --source whose folder: {}", names.join(", "))))
        }
    }
}

pub(super) fn run(client: &Client, json: bool, command: Backups) -> Done {
    match command {
        Backups::List { job: None } => {
            let jobs = client.list("jobs", |page: JobsView| (page.jobs, page.next))?;
            let backups: Vec<JobView> = jobs.into_iter().filter(|job| job.kind == "backup").collect();
            if json {
                return output::say_json(&json!({"jobs": backups}));
            }
            let row = |job: JobView| {
                let places = |places: &[_]| places.iter().map(bootstrap_place).collect::<Vec<_>>().join(" ");
                let (from, to) = (places(&job.sources), places(&job.destinations));
                let when = job.when.as_ref().map(when_line).unwrap_or_default();
                let keep = job.keep.as_ref().map(keep_line).unwrap_or_default();
                vec![job.name, from, to, when, keep]
            };
            output::table(&["NAME", "SOURCES", "STORAGE", "STARTED", "KEPT"], backups.into_iter().map(row))
        }
        Backups::List { job: Some(job) } => {
            let backup: BackupView = client.get(&format!("backups/{}", segment(&job)))?;
            if json { output::say_json(&backup) } else { show(backup) }
        }
        Backups::Versions { job, source, at } => {
            let wishes = [("source", source), ("at", at)];
            let wishes = wishes.into_iter().filter_map(|(name, value)| Some((name, value?)));
            let query: Vec<String> =
                wishes.map(|(name, value)| format!("{name}={}", segment(&value))).collect();
            let mut path = format!("backups/{}/versions", segment(&job));
            if !query.is_empty() {
                path = format!("{path}?{}", query.join("&"));
            }
            let versions = client.list(&path, |page: VersionsView| (page.versions, page.next))?;
            if json {
                return output::say_json(&json!({"versions": versions}));
            }
            let row = |v: VersionView| {
                let (entries, bytes) = (v.entries.to_string(), output::bytes(v.bytes));
                vec![v.version, v.source, v.storage, v.state, entries, bytes, v.path]
            };
            output::table(
                &["VERSION", "SOURCE", "STORAGE", "STATE", "ENTRIES", "SIZE", "PATH"],
                versions.into_iter().map(row),
            )
        }
        Backups::Restore(line) => {
            let backup = format!("backups/{}", segment(&line.job));
            let source = match line.source.clone() {
                Some(source) => source,
                None => only_source(client.get(&backup)?)?,
            };
            let started: RestoreStarted =
                client.post(&format!("{backup}/restore"), &restore_wish(line, source)?)?;
            if json {
                return output::say_json(&started);
            }
            output::say(&format!(
                "version {} from {} to {}\nrun {}\nNext: flotilla runs watch {}",
                started.version,
                started.storage,
                bootstrap_place(&started.to),
                started.run,
                started.run
            ))
        }
    }
}

fn show(backup: BackupView) -> Done {
    let next = backup.next_start.unwrap_or_else(|| "-".into());
    output::say(&format!(
        "{}\n  started  {}\n  next     {next}\n  kept     {}",
        backup.job_name,
        when_line(&backup.when),
        keep_line(&backup.keep)
    ))?;
    let row = |s: BackupSourceView| {
        let none = || "-".to_owned();
        let watch = match (s.watch, s.changed) {
            (Some(watch), true) => format!("{watch}, changed"),
            (watch, _) => watch.unwrap_or_else(none),
        };
        let (started, newest) = (s.started.unwrap_or_else(none), s.newest.unwrap_or_else(none));
        vec![s.name, started, newest, s.versions.to_string(), watch]
    };
    let heads = ["SOURCE", "LAST START", "NEWEST GOOD VERSION", "VERSIONS", "WATCH"];
    output::table(&heads, backup.sources.into_iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_whole() {
        let minutes = |text: &str| whole(place::time(text).expect("a time"), 60, "--every", "minutes").ok();
        assert_eq!([minutes("1min"), minutes("6h"), minutes("1d")], [Some(1), Some(360), Some(1440)]);
        for bad in ["30s", "90s", "0s", "1500ms", "99999999d"] {
            assert_eq!(minutes(bad), None, "{bad}");
        }
    }

    #[test]
    fn who_gets_what_is_restored() {
        let to = |text: &str| {
            let line = RestoreLine {
                job: "j".into(),
                source: None,
                version: None,
                at: None,
                path: None,
                to: Some(text.into()),
                from: None,
            };
            restore_wish(line, "s".into()).map(|wish| (wish.to.unwrap_or_default(), wish.folder)).ok()
        };
        assert_eq!(to("nas"), Some(("nas".into(), None)));
        assert_eq!(to("nas:/a:b"), Some(("nas".into(), Some("/a:b".into()))));
        assert_eq!(to("agent:nas:x"), Some(("agent:nas".into(), Some("x".into()))));
        assert_eq!([to(""), to("nas:"), to(":/x")], [None, None, None]);
    }
}
