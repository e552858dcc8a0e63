//! The real `flotilla audit`: history sealed and exported beside a running service and without one, checked with
//! nothing but the file, and what is said when somebody changed the file or the log.

mod support;

use std::fs;
use std::path::Path;

use event_audit::export::{Expectation, ExportReader};
use event_log::file::{FileLog, FileLogOptions};
use event_log::{EventLog as _, Position, ReadLimit, StreamName};
use event_schema::Record;
use serde_json::Value;
use support::program::{Serve, failure, flotilla, json, text};

#[test]
fn history_is_exported_checked_and_continued() {
    let dir = tempfile::tempdir().expect("a folder");
    let [data, first, second, kept] = ["data", "first", "second", "kept"]
        .map(|name| dir.path().join(name).to_str().expect("text").to_owned());
    let serve = Serve::start(&data);
    for name in ["a", "b", "c"] {
        json(&["groups", "create", name, "--data", &data]);
    }
    // Beside the running service, which keeps taking records.
    let exported = json(&["audit", "export", "--data", &data, "--out", &first]);
    let origin = exported["origin"].as_str().expect("an origin").to_owned();
    let entries = exported["entries"].as_u64().expect("a number");
    let status = json(&["status", "--data", &data]);
    assert_eq!(entries, status["position"].as_u64().expect("a number"));
    json(&["groups", "create", "d", "--data", &data]);
    drop(serve);

    let good = json(&["audit", "verify", &first, "--origin", &origin, "--keep", &kept]);
    assert_eq!((good["good"].as_bool(), good["entries"].as_u64()), (Some(true), Some(entries)));
    assert_eq!(good["root"], exported["root"]);
    assert_eq!(good["origin_expected"], true);
    assert_eq!(json(&["audit", "verify", &first])["origin_expected"], false);

    // What stands in it are the records, and the first one names the root key that the origin is made of.
    let mut founding = Vec::new();
    let bytes = fs::read(&first).expect("the export");
    let mut reader = ExportReader::open(&bytes[..], &Expectation::default()).expect("a good export");
    while let Some(entry) = reader.next_entry().expect("good") {
        let record = Record::decode(entry.bytes).expect("a record");
        founding.extend(record.events.iter().map(|event| format!("{event:?}")));
    }
    assert!(founding[0].contains("FleetFounded"), "{}", founding[0]);

    // Replayed, it leads to the state that the live service had.
    let replay = |line: &[&str]| {
        let output = flotilla(&[&["audit", "replay", &first, "--json"], line].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).expect("text");
        lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).collect::<Vec<_>>()
    };
    let told = replay(&["--origin", &origin]);
    assert_eq!(told.len() as u64, entries + 1);
    assert_eq!(told[0]["events"][0]["kind"], "fleet.founded");
    let end = told.last().expect("an end");
    assert_eq!((&end["position"], &end["state_hash"]), (&status["position"], &status["state_hash"]));
    let earlier = replay(&["--until", &(entries - 1).to_string(), "--from", &(entries - 1).to_string()]);
    assert_eq!((earlier.len(), earlier[1]["position"].as_u64()), (2, Some(entries - 1)));
    assert_ne!(earlier[1]["state_hash"], status["state_hash"]);
    assert_eq!(replay(&["--until", "2001-01-01T00:00:00Z"]).len(), 1);
    assert_eq!(replay(&["--until", "2999-01-01T00:00:00Z"]).last(), Some(end));

    // Without a service: the history has grown, and continues what was seen.
    let longer = json(&["audit", "export", "--data", &data, "--out", &second]);
    assert!(longer["entries"].as_u64() > Some(entries));
    let good = json(&["audit", "verify", &second, "--seen", &kept]);
    assert_eq!((good["checkpoints"].as_u64(), good["origin_expected"].as_bool()), (Some(2), Some(true)));
    json(&["audit", "verify", &second, "--seen", &kept, "--keep", &kept]);
    assert!(
        failure(1, &["audit", "verify", &first, "--seen", &kept])
            .contains("a longer history was seen before")
    );
    let other = "flotilla/00000000000000000000000000000000";
    assert!(failure(1, &["audit", "verify", &second, "--origin", other]).contains(&origin));

    // One byte of the last entry but one.
    let place = fs::read(&second).expect("the export").len() - 24 - 3;
    let mut bytes = fs::read(&second).expect("the export");
    bytes[place] ^= 0x10;
    fs::write(&second, bytes).expect("written");
    let said = failure(1, &["audit", "verify", &second, "--origin", &origin]);
    let last = longer["entries"].as_u64().expect("a number");
    assert!(said.contains("BAD") && said.contains(&format!("entry {last} ")), "{said}");
    let output = flotilla(&["audit", "verify", &second, "--json"]);
    let bad: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (output.status.code(), &bad["good"], &bad["first_bad"]),
        (Some(1), &Value::Bool(false), &last.into())
    );
}

/// The log is replaced by one in which one record says something else, with checksums that fit.
#[test]
fn a_rewritten_log_is_not_exported() {
    let dir = tempfile::tempdir().expect("a folder");
    let [data, out] = ["data", "out"].map(|name| dir.path().join(name).to_str().expect("text").to_owned());
    let data_path = Path::new(&data);
    drop({
        let serve = Serve::start(&data);
        json(&["groups", "create", "honest", "--data", &data]);
        json(&["groups", "create", "more", "--data", &data]);
        serve
    });
    // The first one holds the service's own checkpoint as well, the second only the newest.
    json(&["audit", "export", "--data", &data, "--out", &out]);
    json(&["audit", "export", "--data", &data, "--out", &out]);
    let before = fs::read(&out).expect("the export");

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let rewritten =
        runtime.block_on(rewrite(&data_path.join("log"), &data_path.join("forged"), b"honest", b"forged"));
    fs::rename(data_path.join("log"), data_path.join("honest")).expect("renamed");
    fs::rename(data_path.join("forged"), data_path.join("log")).expect("renamed");
    let said = failure(1, &["audit", "export", "--data", &data, "--out", &out]);
    assert!(
        said.contains(&format!("entry {} of the log is not the one that was sealed", rewritten.0)),
        "{said}"
    );

    // With its audit tree lost but for the checkpoint, both heads are named.
    fs::remove_dir_all(data_path.join("audit/tile")).expect("removed");
    let said = failure(1, &["audit", "export", "--data", &data, "--out", &out]);
    assert!(
        said.contains("the log was rewritten: signed was (size") && said.matches("root").count() == 2,
        "{said}"
    );
    // The honest log makes the tree again, and the same history as before.
    fs::rename(data_path.join("log"), data_path.join("forged")).expect("renamed");
    fs::rename(data_path.join("honest"), data_path.join("log")).expect("renamed");
    json(&["audit", "export", "--data", &data, "--out", &out]);
    assert_eq!(fs::read(&out).expect("the export"), before);
    assert!(!Path::new(&format!("{out}.new")).exists());

    let nowhere = dir.path().join("nowhere");
    assert!(
        failure(1, &["audit", "export", "--data", text(&nowhere), "--out", &out]).contains("no event log")
    );
    assert!(failure(1, &["audit", "verify", text(&nowhere)]).contains("cannot read"));
}

/// Copies a log with `old` replaced by `new` in the first record that has it, and returns where that is.
async fn rewrite(from: &Path, to: &Path, old: &[u8], new: &[u8]) -> Position {
    let source = FileLog::open(from, FileLogOptions { read_only: true, ..FileLogOptions::default() })
        .await
        .expect("opens");
    let copy = FileLog::open(to, FileLogOptions::default()).await.expect("opens");
    let mut changed = None;
    let mut last = None;
    for mut entry in source.read(Position(1), ReadLimit::default()).await.expect("readable") {
        let place = entry.bytes.windows(old.len()).position(|window| window == old);
        if let (None, Some(place)) = (changed, place) {
            entry.bytes[place..place + new.len()].copy_from_slice(new);
            changed = Some(entry.position);
        }
        let stream = StreamName::new("fleet").expect("a name");
        last = Some(copy.append(&stream, last, entry.bytes).await.expect("appended"));
    }
    copy.close().await;
    changed.expect("a record has it")
}
