//! `flotilla log`: records shown, the log checked and copied.

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use control_core::form::Checked;
use event_log::{EventLog as _, Position, ReadLimit};
use event_schema::Record;
use serde_json::json;

use super::audit::{self, Archives, Opened};
use super::client::{Client, segment};
use super::work::Log;
use super::{Done, Failure, Global, archive, output};
use crate::api::view::{LogCheckView, LogView, StatusView};
use crate::config::NatsAccess;
use crate::log_copy;

/// How often it is told how far a check has come.
const TOLD_EVERY: Duration = Duration::from_secs(2);

pub(super) fn run(global: Global, command: Log) -> Done {
    let json = global.json;
    match command {
        Log::Copy { from, to, nats_access, archives } => {
            copy(&global, &from, &to, &nats_access.into(), &archives.archive)
        }
        Log::Archive(line) => archive::run(&global, &line),
        Log::Check { archives } => check(&global, &archives),
        Log::Show { from, stream, limit } => {
            show(&Client::new(global)?, json, from, stream.as_deref(), limit)
        }
    }
}

fn show(client: &Client, json: bool, from: Option<u64>, stream: Option<&str>, limit: u64) -> Done {
    let stream = stream.map(|stream| format!("&stream={}", segment(stream))).unwrap_or_default();
    let (mut from, mut left) = (from, limit);
    loop {
        let begin = from.map(|from| format!("&from={from}")).unwrap_or_default();
        let page: LogView = client.get(&format!("log?limit={}{begin}{stream}", left.min(1000)))?;
        for record in &page.records {
            left -= 1;
            output::say_record(record, json)?;
        }
        if left == 0 || from.is_some_and(|from| page.next <= from) {
            return Ok(());
        }
        from = Some(page.next);
    }
}

fn copy(global: &Global, from: &str, to: &str, access: &NatsAccess, archives: &[PathBuf]) -> Done {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::of)?;
    let (from_place, to_place) = (log_copy::Place::parse(from), log_copy::Place::parse(to));
    let copying = log_copy::copy(&from_place, &to_place, access, archives, global.data.as_deref());
    let copied = runtime.block_on(copying).map_err(Failure::of)?;
    if global.json {
        output::say_json(&json!({
            "equal": copied.is_equal(),
            "had": copied.had,
            "records": copied.target.size,
            "subject_keys": copied.keys,
            "damaged_subject_keys": copied.other_keys,
            "doubtful_subject_keys": copied.doubtful_keys.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "source_root": copied.source.root.to_string(),
            "target_root": copied.target.root.to_string(),
        }))?;
    } else {
        output::say(&format!(
            "{} records, {} of them were there before\n  from  {} {}\n  to    {} {}\n{}",
            copied.target.size,
            copied.had,
            copied.source.size,
            copied.source.root,
            copied.target.size,
            copied.target.root,
            if copied.is_equal() { "the two logs are the same" } else { "THE TWO LOGS DIFFER" },
        ))?;
    }
    if copied.other_keys > 0 {
        output::complain(&format!(
            "WARNING: {} entries of the source's file of keys are damaged, or of a newer program, and are not copied",
            copied.other_keys
        ));
    }
    if let Some(first) = copied.doubtful_keys.first() {
        output::complain(&format!(
            "WARNING: of {} subjects, the first is {first}, the target may keep keys that were erased: which they are cannot \
             be told without the fleet's secret. Copy once more with --data DIR, the data folder of a service of the fleet",
            copied.doubtful_keys.len()
        ));
    }
    if copied.is_equal() { Ok(()) } else { Err(Failure::Quiet) }
}

fn told(position: u64, end: u64) {
    output::complain(&format!("checked {position} of {end} records"));
}

fn check(global: &Global, archives: &Archives) -> Done {
    let client = Client::new(global.clone())?;
    let whole =
        if archives.archive.is_empty() { None } else { Some(check_whole(global, archives, &client)?) };
    let check = ask(&client)?;
    let differences = check.servers.as_ref().map_or(0, |found| found.differences.len() as u64 + found.more);
    let all_seen = check.servers.as_ref().is_none_or(|found| found.unseen.is_empty());
    let good = check.equal
        && all_seen
        && differences == 0
        && check.attested_differing == 0
        && whole.as_ref().is_none_or(|whole| whole.equal && whole.differing.is_none());
    if global.json {
        let mut value = serde_json::to_value(&check).map_err(Failure::of)?;
        if let Some(whole) = &whole {
            value["whole"] = json!({
                "position": whole.position, "equal": whole.equal, "attested": whole.attested,
                "attested_unknown": whole.unknown, "detail": whole.differing,
            });
        }
        output::say_json(&value)?;
    } else {
        say(&check, whole.as_ref(), differences)?;
    }
    if good { Ok(()) } else { Err(Failure::Quiet) }
}

fn say(check: &LogCheckView, whole: Option<&Whole>, differences: u64) -> Done {
    let word = |equal: bool| if equal { "equals" } else { "DIFFERS FROM" };
    let from = match check.from {
        0 => "a rebuild from the first record".to_owned(),
        base => format!("a rebuild from the state kept at position {base}; what was before is archived"),
    };
    output::say(&format!(
        "at position {} the live state {} {from}\n  live     {}\n  rebuilt  {}",
        check.position,
        word(check.equal),
        check.state_hash,
        check.rebuilt_hash
    ))?;
    let attested = |good: u64, bad: u64, unknown: u64, detail: Option<&str>| {
        let mut text = format!("  attested {good} states, all as folded");
        if let Some(detail) = detail {
            text = format!("  attested {good} states as folded, {bad} ARE NOT: {detail}");
        }
        if unknown > 0 {
            text += &format!("\n           {unknown} NOT CHECKED: in a form of a newer flotilla");
        }
        output::say(&text)
    };
    attested(check.attested, check.attested_differing, check.attested_unknown, check.detail.as_deref())?;
    if let Some(whole) = whole {
        output::say(&format!(
            "with its archives, at position {} the live state {} a rebuild from the first record",
            whole.position,
            word(whole.equal)
        ))?;
        let bad = whole.differing.iter().count() as u64;
        attested(whole.attested, bad, whole.unknown, whole.differing.as_deref())?;
    }
    let Some(servers) = &check.servers else { return Ok(()) };
    let (records, messages) = (servers.records, servers.messages);
    let found = if differences == 0 {
        "as in the copy here".to_owned()
    } else {
        format!("{differences} DIFFERENCES")
    };
    output::say(&format!("the servers hold {records} records in {messages} messages: {found}"))?;
    servers.differences.iter().try_for_each(|difference| output::say(&format!("  {difference}")))?;
    servers.unseen.iter().try_for_each(|server| {
        output::say(&format!("  NOT COMPARED: {server}, which is away or did not answer"))
    })
}

/// Has the service check its log, and tells on stderr how far it has come.
fn ask(client: &Client) -> Result<LogCheckView, Failure> {
    std::thread::scope(|scope| {
        let (done, waiting) = channel::<()>();
        scope.spawn(move || {
            while waiting.recv_timeout(TOLD_EVERY) == Err(RecvTimeoutError::Timeout) {
                // What cannot be told now is told the next time.
                if let Ok(status) = client.get::<StatusView>("status")
                    && let Some(position) = status.checking
                {
                    told(position, status.position);
                }
            }
        });
        let check = client.get_slowly("log/check");
        drop(done);
        Ok(check?)
    })
}

/// A whole history, folded here from its first record.
struct Whole {
    position: u64,
    /// Whether the service says the same of that position.
    equal: bool,
    attested: u64,
    unknown: u64,
    /// The first attested state that is not the one folded.
    differing: Option<String>,
}

fn check_whole(global: &Global, archives: &Archives, client: &Client) -> Result<Whole, Failure> {
    if global.server.is_some() {
        return Err(Failure::Usage(
            "--archive reads the data folder: run it on the service's machine".into(),
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::of)?;
    let (fold, differing) = runtime.block_on(async {
        let Opened { log, end, .. } = audit::open_log(global.clone(), archives).await?;
        audit::is_whole(&log)?;
        let (mut fold, mut differing) = (Checked::default(), None);
        let mut last_told = std::time::Instant::now();
        while fold.views().position() < end.0 {
            let next = Position(fold.views().position() + 1);
            let page = log.read(next, ReadLimit::default()).await.map_err(Failure::of)?;
            if page.first().is_none_or(|entry| entry.position != next) {
                return Err(Failure::Failed(format!("the log has no record {next}")));
            }
            for entry in page.into_iter().take_while(|entry| entry.position <= end) {
                let record = Record::decode(&entry.bytes).map_err(|error| {
                    Failure::Failed(format!("record {} cannot be read: {error}", entry.position))
                })?;
                if let Err(differs) = fold.apply(entry.position.0, &record) {
                    differing.get_or_insert(differs.to_string());
                }
            }
            if last_told.elapsed() >= TOLD_EVERY {
                told(fold.views().position(), end.0);
                last_told = std::time::Instant::now();
            }
        }
        Ok((fold, differing))
    })?;
    let position = fold.views().position();
    let status: StatusView = client.get(&format!("status?at={position}"))?;
    let hash = data_encoding::HEXLOWER.encode(&fold.views().hash());
    Ok(Whole {
        position,
        equal: status.state_hash == hash,
        attested: fold.checked,
        unknown: fold.unknown,
        differing,
    })
}
