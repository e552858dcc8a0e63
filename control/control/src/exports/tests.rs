//! Both forms over everything that is pinned: the lines are those in `tests/golden/`, nothing is left out, and every
//! CloudEvent keeps the rules of the specification, written down here once more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use ed25519_dalek::SigningKey;
use event_audit::frontier::Frontier;
use event_schema::{
    Actor, AgentId, Command, CommandBody, CommandId, CommandIssued, Event, Record, RecordId, Report,
    ReportBody, ReportReceived, Timestamp,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Converter, Filter, Format, Wanted};

const LOG: &str = "flotilla/0f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// The files that pin the schema, by name.
fn pinned(prefix: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/event-schema/tests/golden");
    let versions = fs::read_dir(folder).expect("the folder").map(|version| version.expect("a folder").path());
    let mut files: Vec<PathBuf> = versions
        .flat_map(|version| fs::read_dir(version).expect("a folder"))
        .map(|file| file.expect("a file").path())
        .filter(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            name.starts_with(prefix) && name.ends_with(".bin")
        })
        .collect();
    files.sort();
    files.iter().map(|path| fs::read(path).expect("readable")).collect()
}

/// Every record, event, command and report that is pinned, and an entry of a newer program.
fn entries() -> Vec<Vec<u8>> {
    let agent = AgentId([0x22; 16]);
    let key = SigningKey::from_bytes(&[9; 32]);
    let mut events: Vec<Event> =
        pinned("event-").iter().map(|bytes| Event::decode(bytes).expect("an event")).collect();
    events.extend(pinned("command-").iter().map(|bytes| {
        let body = CommandBody::decode(bytes).expect("a command");
        let (id, time) = (CommandId([0x43; 16]), Timestamp(1_795_000_000_000));
        let command =
            Command { id, audience: agent, sequence: 3, issued: time, not_before: time, expires: time, body };
        let (joins, backup) = (command.body.joins(), command.body.backup());
        let signed = command.sign(&key).into();
        CommandIssued { command: id, agent, sequence: 3, run: None, joins, signed, backup }.into()
    }));
    events.extend(pinned("report-").iter().map(|bytes| {
        let body = ReportBody::decode(bytes).expect("a report");
        let report = Report { agent, sequence: 4, time: Timestamp(1_795_000_001_000), body };
        let problem_in = match &report.body {
            ReportBody::ProblemReported(problem) => Some(problem.run),
            _ => None,
        };
        ReportReceived { agent, sequence: 4, problem_in, signed: report.sign(&key).into() }.into()
    }));
    let record = |(n, event): (usize, Event)| {
        let id = RecordId([n as u8 + 0x60; 16]);
        let (causation, actor) = match n % 3 {
            0 => (None, Actor::Service),
            1 => (Some(RecordId([0x60; 16])), Actor::Operator("Jo \"J\" Müller".into())),
            _ => (Some(RecordId([0x61; 16])), Actor::Agent(agent)),
        };
        let (stream, time) = ("fleet".into(), Timestamp(1_795_000_000_000 + n as u64));
        Record { id, stream, time, actor, causation, correlation: RecordId([0x60; 16]), events: vec![event] }
            .encode()
    };
    let mut entries: Vec<Vec<u8>> = events.into_iter().enumerate().map(record).collect();
    entries.extend(pinned("record-"));
    entries.push(vec![3, 1, 2, 3]);
    entries
}

fn converted(entries: &[Vec<u8>], format: Format, filter: &mut Filter) -> Vec<u8> {
    let mut converter = Converter::new(Vec::new(), format, LOG);
    for (position, bytes) in (1..).zip(entries) {
        let record = Record::decode(bytes);
        if record.as_ref().is_ok_and(|record| !filter.takes(record)) {
            continue;
        }
        converter.entry(position, bytes, record.as_ref()).expect("written");
    }
    converter.finish().expect("written").0
}

fn values(lines: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(lines).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}"))
}

#[test]
fn the_lines_are_those_that_are_pinned() {
    let entries = entries();
    for (format, name) in
        [(Format::Jsonl, "exports.jsonl"), (Format::Cloudevents, "exports.cloudevents.jsonl")]
    {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let lines = converted(&entries, format, &mut Filter::default());
        if std::env::var_os("GOLDEN_WRITE").is_some() {
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(&path, &lines).expect("written");
        }
        let known = fs::read(&path).expect("tests/golden, made with GOLDEN_WRITE=1");
        let (known, lines) = (values(&known), values(&lines));
        for (line, known) in lines.iter().zip(&known) {
            assert_eq!(line, known, "{name}: another form needs another version in events/EXPORTS.md");
        }
        assert_eq!(lines.len(), known.len(), "{name}: run with GOLDEN_WRITE=1 and look at the difference");
    }
}

#[test]
fn a_line_holds_the_whole_entry_and_ties_it_to_the_tree() {
    let entries = entries();
    let lines = values(&converted(&entries, Format::Jsonl, &mut Filter::default()));
    assert_eq!(lines.len(), entries.len());
    let mut tree = Frontier::new();
    for ((position, bytes), line) in (1u64..).zip(&entries).zip(&lines) {
        assert_eq!((line["position"].as_u64(), text(line, "log")), (Some(position), LOG));
        let entry = BASE64.decode(text(line, "entry").as_bytes()).expect("base64");
        assert_eq!(entry, *bytes);
        // RFC 9162 §2.1: made here from the line alone.
        let leaf: [u8; 32] = Sha256::new().chain_update([0]).chain_update(&entry).finalize().into();
        assert_eq!(text(line, "leaf"), BASE64.encode(&leaf));
        tree.push(event_audit::Hash(leaf));
        match Record::decode(bytes) {
            Err(_) => assert!(line["unread"].is_string()),
            Ok(record) => {
                assert_eq!(text(line, "id"), record.id.to_string());
                let kinds = line["events"].as_array().expect("events").iter().map(|e| text(e, "kind"));
                assert!(kinds.eq(record.events.iter().map(Event::name)));
            }
        }
    }
    let mut whole = Frontier::new();
    entries.iter().for_each(|bytes| whole.push(event_audit::Hash::leaf(bytes)));
    assert_eq!(tree.head(), whole.head());
}

#[test]
fn every_cloud_event_keeps_the_rules() {
    let entries = entries();
    let lines = values(&converted(&entries, Format::Cloudevents, &mut Filter::default()));
    let whole = values(&converted(&entries, Format::Jsonl, &mut Filter::default()));
    let (mut ids, mut counts, mut last) = (BTreeSet::new(), BTreeMap::<u64, u64>::new(), String::new());
    for event in &lines {
        keeps_the_rules(event);
        // The pinned records are three forms of one.
        let id = (text(event, "source").to_owned(), text(event, "id").to_owned());
        assert!(ids.insert(id) || text(event, "recordid").starts_with("0101"), "{event}");
        assert!(text(event, "sequence") > last.as_str(), "sequences sort as history does");
        last = text(event, "sequence").into();
        let position: u64 = text(event, "logposition").parse().expect("a number");
        *counts.entry(position).or_default() += 1;
        let line = &whole[usize::try_from(position).expect("small") - 1];
        assert_eq!(event["leafhash"], line["leaf"]);
        if let Some(number) = event["eventnumber"].as_u64() {
            let told = &line["events"][usize::try_from(number).expect("small") - 1];
            assert_eq!(told["data"], event["data"]);
            assert_eq!(format!("flotilla.{}", text(told, "kind")), text(event, "type"));
            assert_eq!(
                line["events"].as_array().map(Vec::len),
                event["eventcount"].as_u64().map(|n| n as usize)
            );
        }
    }
    assert_eq!(counts.len(), entries.len(), "every entry is there");

    let batch = converted(&entries, Format::CloudeventsBatch, &mut Filter::default());
    assert_eq!(serde_json::from_slice::<Vec<Value>>(&batch).expect("one array"), lines);
    let nothing = converted(&[], Format::CloudeventsBatch, &mut Filter::default());
    assert_eq!(serde_json::from_slice::<Vec<Value>>(&nothing).expect("an array"), Vec::<Value>::new());
}

/// CloudEvents 1.0.2, sections *Context Attributes* and *Type System*, and its JSON format, as rules.
fn keeps_the_rules(event: &Value) {
    let fields = event.as_object().expect("an object");
    for (name, value) in fields {
        let is_data = name == "data" || name == "data_base64";
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        assert!(is_data || (!name.is_empty() && name.len() <= 20 && name.chars().all(plain)), "{name}");
        if is_data {
            continue;
        }
        // Attributes are strings, booleans, or integers of 32 bits; null means that there is none.
        match value {
            Value::String(text) => {
                assert!(!text.is_empty(), "{name} is empty");
                let control = |c: char| c.is_control() || ('\u{fdd0}'..='\u{fdef}').contains(&c);
                assert!(!text.chars().any(control), "{name}: {text:?}");
            }
            Value::Bool(_) => {}
            Value::Number(number) => assert!(
                number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
                "{name}: {number}"
            ),
            other => panic!("{name}: {other}"),
        }
    }
    assert_eq!(text(event, "specversion"), "1.0");
    for name in ["id", "source", "type"] {
        assert!(!text(event, name).is_empty());
    }
    for name in ["source", "dataschema"] {
        let Some(uri) = event.get(name).and_then(Value::as_str) else { continue };
        let (scheme, rest) = uri.split_once(':').expect("absolute");
        assert!(scheme.chars().next().is_some_and(|c| c.is_ascii_alphabetic()) && !rest.is_empty());
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~:/?#[]@!$&'()*+,;=%".contains(c);
        assert!(uri.chars().all(allowed), "{uri}");
    }
    if let Some(time) = event.get("time") {
        let time = time.as_str().expect("text");
        assert!(time.contains('T') && humantime::parse_rfc3339(time).is_ok(), "{time}");
    }
    assert!(!(fields.contains_key("data") && fields.contains_key("data_base64")));
    let kind = text(event, "datacontenttype");
    assert!(kind.split_once('/').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty()));
    if let Some(bytes) = event.get("data_base64") {
        BASE64.decode(bytes.as_str().expect("text").as_bytes()).expect("base64");
    } else {
        assert!(kind == "application/json" && event["data"].is_object());
    }
    BASE64.decode(text(event, "leafhash").as_bytes()).expect("base64");
}

#[test]
fn a_filter_knows_names_ids_and_runs_of_a_job() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        wanted: Wanted,
    }
    let all = entries();
    let taken = |line: &[&str]| -> Vec<u64> {
        let line = <Line as clap::Parser>::parse_from([&["x"], line].concat());
        let lines = values(&converted(&all[..all.len() - 1], Format::Jsonl, &mut line.wanted.into()));
        lines.iter().map(|line| line["position"].as_u64().expect("a number")).collect()
    };
    let everything = taken(&[]);
    assert_eq!(everything.len(), all.len() - 1);
    // Agent 1 is nas-1; its name is known from its enrolment on.
    let (by_name, by_id) = (taken(&["--agent", "nas-1"]), taken(&["--agent", "01010101"]));
    assert!(by_name.len() > 5 && by_name.len() < everything.len());
    assert!(by_name.iter().all(|position| by_id.contains(position)), "{by_name:?} {by_id:?}");
    // The job's name stands for its runs as well: the pinned run is of the pinned job.
    let job = taken(&["--job", "release 7"]);
    assert!(
        job.len() > 5
            && job.iter().all(|position| taken(&["--job", "4a4a", "--job", "5252"]).contains(position))
    );
    let actors = ["service", "Jo \"J\" Müller", "22222222"].map(|actor| taken(&["--actor", actor]));
    assert!(actors.iter().all(|list| !list.is_empty()));
    let by: BTreeSet<u64> = actors.iter().flatten().copied().collect();
    assert!(by.len() + 6 >= everything.len(), "the pinned records have actors of their own");
    assert_eq!(taken(&["--agent", "nobody"]), Vec::<u64>::new());
    let both = taken(&["--agent", "nas-1", "--actor", "service"]);
    assert!(both.iter().all(|position| by_name.contains(position) && actors[0].contains(position)));
}
