//! The real `flotilla log archive` and everything that reads archives: by hand and by a running service, killed at any
//! moment, with what is said when an archive is missing or changed.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use event_log::file::{FileLog, FileLogOptions};
use event_schema::*;
use serde_json::Value;
use support::history::{append, record};
use support::program::{FLOTILLA, Serve, error_of, failure, flotilla, json, said};

/// Records of one group each, from the year 2023 on, an hour apart.
const BEGIN: u64 = 1_690_000_000_000;
const HOUR: u64 = 3_600_000;

fn group(n: u64) -> Vec<u8> {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.to_be_bytes());
    let event = GroupCreated { group: GroupId(id), name: format!("group {n:060}") };
    record(Timestamp(BEGIN + n * HOUR), event)
}

/// A data folder whose service founded its fleet and recorded `groups` groups; sealed. Returns its end.
fn make(data: &Path, groups: u64) -> u64 {
    drop(Serve::start(data));
    append(data, (1..=groups).map(group));
    // What is signed is what may be archived: the export seals.
    // The second one without the checkpoint that was there before the first.
    let export = data.join("export");
    json(&["audit", "export", "--data", text(data), "--out", text(&export)]);
    json(&["audit", "export", "--data", text(data), "--out", text(&export)])["entries"]
        .as_u64()
        .expect("a number")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn everything_reads_the_log_with_its_archives() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    let [data, one, two] = ["data", "one", "two"].map(path);
    let [data_text, one_text, two_text] = [&data, &one, &two].map(|path| text(path));
    let end = make(&data, 150);
    let whole = fs::read(data.join("export")).expect("the export");
    let before = json(&["audit", "state", "--data", data_text, "--at", "40"]);
    let told = said(&["audit", "replay", text(&data.join("export")), "--until", "60"]);
    let origin =
        json(&["audit", "verify", text(&data.join("export"))])["origin"].as_str().expect("a name").to_owned();

    // A folder that is not there is not made: it may be a volume that is not mounted.
    let line = ["log", "archive", "--data", data_text, "--before", "90", "--to", one_text];
    let error = failure(1, &line);
    assert!(error.contains("is not there"), "{error}");
    fs::create_dir(&one).expect("made");
    fs::create_dir(&two).expect("made");
    let dry = json(&[&line[..], &["--dry-run"]].concat());
    assert!(dry["segments"].as_array().expect("a list").len() >= 2, "{dry}");
    assert_eq!((dry["log_first"].as_u64(), fs::read_dir(&one).expect("a folder").count()), (Some(1), 0));
    let done = json(&line);
    let archived = done["archived"].as_array().expect("a list");
    assert_eq!(archived.len(), dry["segments"].as_array().expect("a list").len());
    let first = done["log_first"].as_u64().expect("a number");
    assert!(first > 40 && first <= 90, "{done}");
    // Again: nothing more to do. By time, into another folder.
    assert_eq!(json(&line)["archived"].as_array().map(Vec::len), Some(0));
    let time = Timestamp(BEGIN + 120 * HOUR).to_string();
    let done = json(&["log", "archive", "--data", data_text, "--before", &time, "--to", two_text]);
    let second = done["log_first"].as_u64().expect("a number");
    assert!(second > first && second <= 122, "{done}");

    // Each archive by itself, and both.
    for archives in [vec![one_text], vec![two_text], vec![two_text, one_text]] {
        let named: Vec<&str> = archives.iter().flat_map(|path| ["--archive", path]).collect();
        let good = json(&[&["audit", "verify", "--origin", &origin][..], &named].concat());
        assert_eq!(
            (&good["good"], good["archives"].as_array().map(Vec::len)),
            (&true.into(), Some(archives.len()))
        );
        let folded = if archives.contains(&one_text) { first - 1 } else { 0 };
        let folded = if archives.len() == 2 { second - 1 } else { folded };
        assert_eq!(good["states"]["folded"].as_u64(), Some(folded), "{good}");
    }
    let other = "flotilla/00000000000000000000000000000000";
    assert!(failure(1, &["audit", "verify", "--archive", one_text, "--origin", other]).contains("not of"));

    // With both, everything is as it was before.
    let archives = ["--archive", one_text, "--archive", two_text];
    let again = path("again");
    json(&[&["audit", "export", "--data", data_text, "--out", text(&again)][..], &archives].concat());
    assert!(fs::read(&again).expect("the export") == whole, "the same bytes");
    let state = json(&[&["audit", "state", "--data", data_text, "--at", "40"][..], &archives].concat());
    assert_eq!(state, before);
    // Archives alone, where there is no data folder.
    let alone = Command::new(FLOTILLA)
        .args(["audit", "state", "--at", "40", "--json"])
        .args(archives)
        .current_dir(dir.path())
        .output()
        .expect("runs");
    assert!(alone.status.success(), "{}", error_of(&alone));
    assert_eq!(serde_json::from_slice::<Value>(&alone.stdout).expect("JSON"), before);
    let replayed =
        said(&[&["audit", "replay", "--data", data_text, "--until", "60"][..], &archives].concat());
    assert_eq!(replayed, told);
    let diff = json(
        &[&["audit", "diff", "--data", data_text, "--from", "40", "--to", "42"][..], &archives].concat(),
    );
    assert_eq!(diff["changes"].as_array().map(Vec::len), Some(2));
    let proof = path("proof");
    json(&[&["audit", "prove", "40", "--data", data_text, "--out", text(&proof)][..], &archives].concat());
    assert_eq!(json(&["audit", "verify", text(&proof), "--origin", &origin])["position"], 40);
    let copy = path("copy");
    let copied = json(&[&["log", "copy", data_text, text(&copy)][..], &archives].concat());
    assert_eq!((&copied["equal"], copied["records"].as_u64()), (&true.into(), Some(end)));

    // Without, or with one of them, it is said what is missing.
    for (archives, missing) in [
        (vec![], format!("1 to {}", second - 1)),
        (vec!["--archive", one_text], format!("{first} to {}", second - 1)),
        (vec!["--archive", two_text], format!("1 to {}", first - 1)),
    ] {
        for line in [
            vec!["audit", "export", "--data", data_text, "--out", text(&again)],
            vec!["audit", "state", "--data", data_text, "--at", "40"],
            vec!["audit", "replay", "--data", data_text],
            vec!["audit", "diff", "--data", data_text, "--from", "1", "--to", "2"],
            vec!["log", "copy", data_text, text(&path("nowhere"))],
        ] {
            let line = [&line[..], &archives].concat();
            let error = failure(1, &line);
            assert!(error.contains(&missing) && error.contains("--archive"), "{line:?}: {error}");
        }
    }
    let error = failure(1, &["audit", "prove", "40", "--data", data_text]);
    assert!(error.contains("was archived") && error.contains("--archive"), "{error}");

    // A service goes on, and says what it does not have any more.
    let serve = Serve::start(&data);
    let status = serve.json(&["status"]);
    assert_eq!(
        (status["log_first"].as_u64(), status["warnings"].as_array().map(Vec::len)),
        (Some(second), Some(0))
    );
    serve.json(&["groups", "create", "new"]);
    let shown = serve.run(&["log", "show", "--limit", "1"]);
    assert!(String::from_utf8_lossy(&shown.stdout).trim_start().starts_with(&second.to_string()));
    let output = serve.run(&["log", "show", "--from", "3"]);
    let error = error_of(&output);
    assert!(!output.status.success() && error.contains("archived"), "{error}");
    let http = serve.ready["http"].as_str().expect("an address").to_owned();
    let token = fs::read_to_string(data.join("api-token")).expect("a token");
    for (path, status) in [
        ("agents?at=40", 410),
        (&*format!("agents?at={}", second - 1), 200),
        (&*format!("groups?at={}", second - 2), 410),
        ("log?from=1", 410),
        ("log", 200),
        ("events?from=1", 410),
        ("audit/export", 410),
        ("agents?at=2023-07-22T05:00:00Z", 410),
    ] {
        let answer = get(&http, path, &token);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
        if status == 410 && path.contains("at=") {
            assert!(answer.contains("flotilla audit state --archive"), "{answer}");
        }
    }
    let check = serve.json(&["log", "check"]);
    assert_eq!((check["equal"].as_bool(), check["from"].as_u64()), (Some(true), Some(second - 1)));
    let check = serve.json(&[&["log", "check"][..], &archives].concat());
    assert_eq!(
        (check["equal"].as_bool(), check["whole"]["equal"].as_bool()),
        (Some(true), Some(true)),
        "{check}"
    );
    // Beside a running service, its export with the archives; it begins as before.
    json(&[&["audit", "export", "--data", data_text, "--out", text(&again)][..], &archives].concat());
    assert!(json(&["audit", "verify", text(&again), "--origin", &origin])["entries"].as_u64() > Some(end));
    let error = failure(1, &line);
    assert!(error.contains("stop it"), "{error}");
}

/// One GET over HTTP/1.1; the answer as far as its first bytes go.
fn get(http: &str, path: &str, token: &str) -> String {
    use std::io::{Read as _, Write as _};
    let address = http.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).expect("connects");
    let path = path.strip_prefix("../..").map_or_else(|| format!("/api/v1/{path}"), str::to_owned);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
        token.trim()
    );
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    // Everything that was said, also where it is cut off.
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn killed_at_any_moment_nothing_is_lost() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, to) = (dir.path().join("data"), dir.path().join("archive"));
    make(&data, 400);
    fs::create_dir(&to).expect("made");
    let whole = fs::read(data.join("export")).expect("the export");
    let line = ["log", "archive", "--data", text(&data), "--before", "380", "--to", text(&to)];
    let mut killed = 0;
    for round in 0_u64.. {
        let child = Command::new(FLOTILLA).args(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.expect("starts");
        // The moments of kill -9 are what this test is about.
        std::thread::sleep(Duration::from_millis(12 + round * 7 % 61));
        let ended = child.try_wait().expect("a child");
        let _ = child.kill();
        let _ = child.wait();
        if ended.is_some_and(|status| status.success()) || round == 60 {
            break;
        }
        killed += 1;
        let first = FileLog::open_blocking(
            &data.join("log"),
            FileLogOptions { read_only: true, ..FileLogOptions::default() },
        )
        .expect("opens")
        .first_stored()
        .0;
        if first > 1 {
            let good = json(&["audit", "verify", "--archive", text(&to)]);
            assert_eq!(good["good"], true);
        }
    }
    json(&line);
    assert!(killed > 2, "{killed}");
    let again = dir.path().join("again");
    json(&["audit", "export", "--data", text(&data), "--archive", text(&to), "--out", text(&again)]);
    assert!(fs::read(&again).expect("the export") == whole, "the same bytes");
}

#[test]
fn a_running_service_archives_by_itself() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, to, config) = (dir.path().join("data"), dir.path().join("archive"), dir.path().join("config"));
    make(&data, 150);
    let whole = fs::read(data.join("export")).expect("the export");
    let rule = format!(
        "[retention]\narchive_after = \"1s\"\narchive_to = {:?}\narchive_every = \"1s\"\n",
        text(&to)
    );
    fs::write(&config, rule).expect("written");
    let serve = Serve::start_with(&data, &["--config", text(&config)]);
    let http = serve.ready["http"].as_str().expect("an address").to_owned();
    let until = |what: &str, holds: &dyn Fn(&Value) -> bool| {
        let since = Instant::now();
        loop {
            let status = serve.json(&["status"]);
            if holds(&status) {
                return status;
            }
            assert!(since.elapsed() < Duration::from_secs(40), "{what}: {status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    // The volume is not mounted: told, and nothing else.
    let status = until("a warning", &|status| !status["warnings"].as_array().expect("a list").is_empty());
    assert!(status["warnings"][0].as_str().is_some_and(|why| why.contains("is not there")), "{status}");
    assert_eq!((status["healthy"].as_bool(), status["log_first"].as_u64()), (Some(true), Some(1)));
    serve.json(&["groups", "create", "meanwhile"]);
    let metrics = raw(&http, "/metrics");
    assert!(metrics.contains("flotilla_archiving_failing 1") && metrics.contains("flotilla_log_first 1"));
    assert!(raw(&http, "/readyz").contains("WARNING: old segments"));
    // It is there now.
    fs::create_dir(&to).expect("made");
    until("archived", &|status| status["log_first"].as_u64() > Some(100));
    // One segment after the other; the warning goes when all that were due are there.
    let status = until("no warning", &|status| status["warnings"].as_array().expect("a list").is_empty());
    let first = status["log_first"].as_u64().expect("a number");
    let metrics = raw(&http, "/metrics");
    assert!(metrics.contains(&format!("flotilla_log_first {first}")), "{metrics}");
    assert!(!metrics.contains("flotilla_segments_archived_total 0"), "{metrics}");
    serve.json(&["groups", "create", "afterwards"]);
    assert_eq!(serve.terminate(), 0);
    assert_eq!(json(&["audit", "verify", "--archive", text(&to)])["good"], true);
    let again = dir.path().join("again");
    json(&["audit", "export", "--data", text(&data), "--archive", text(&to), "--out", text(&again)]);
    json(&["audit", "verify", text(&again)]);
    // What was exported before is the beginning of it.
    let [old, new] = [&whole, &fs::read(&again).expect("the export")].map(|bytes| {
        event_audit::export::ExportReader::open(std::io::Cursor::new(bytes.clone()), &Default::default())
            .expect("good")
    });
    let (mut old, mut new) = (old, new);
    let relation = event_audit::export::compare(&mut old, &mut new).expect("comparable");
    assert_eq!(relation, event_audit::export::Relation::LeftBegins);
}

fn raw(http: &str, path: &str) -> String {
    get(http, &format!("../..{path}"), "none")
}

/// What was attested on the log and is not so is found by `log check`, not only by an auditor.
#[test]
fn a_log_check_holds_every_attested_state() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let end = make(&data, 30);
    let serve = Serve::start(&data);
    let check = serve.json(&["log", "check"]);
    assert!(
        check["attested"].as_u64() > Some(0) || check["attested_differing"].as_u64() == Some(0),
        "{check}"
    );
    drop(serve);
    let end = end.max(append(&data, []));
    let wrong = StateAttested { at: end, form: control_core::form::NEWEST, hash: [0x66; 32] };
    let bad = append(&data, [record(Timestamp(BEGIN + 31 * HOUR), wrong)]);
    append(&data, [group(31)]);
    let serve = Serve::start(&data);
    let output = serve.run(&["log", "check", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(1), "{told}");
    // The states are alike: this program has folded both. What another one attested is not.
    assert_eq!((told["equal"].as_bool(), told["first_differing"].as_u64()), (Some(true), Some(bad)));
    assert!(
        told["detail"].as_str().is_some_and(|detail| detail.contains(&format!("entry {bad} "))),
        "{told}"
    );
    let output = flotilla(&["log", "check", "--data", text(&data)]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && told.contains("ARE NOT"), "{told}");
}
