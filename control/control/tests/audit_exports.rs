//! The real `flotilla`: history fetched from a running service, verified while it arrives, and turned into lines of JSON
//! and CloudEvents; and what happens when the connection breaks off.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use data_encoding::BASE64;
use event_schema::{AgentId, AgentOffline, Timestamp};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use support::history::{append, record};
use support::program::{Serve, flotilla, json};

fn lines(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("readable");
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn address(serve: &Serve) -> &str {
    serve.place().trim_start_matches("http://")
}

/// Size 2^k trees and what is over, by the definition of RFC 9162 §2.1.1: nothing of `event-audit`.
fn root(leaves: &[[u8; 32]]) -> [u8; 32] {
    match leaves {
        [] => Sha256::digest([]).into(),
        [leaf] => *leaf,
        leaves => {
            let split = leaves.len().next_power_of_two() / 2;
            let (left, right) = (root(&leaves[..split]), root(&leaves[split..]));
            Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
        }
    }
}

#[test]
fn a_service_gives_the_same_export_and_both_forms() {
    let dir = tempfile::tempdir().expect("a folder");
    let [data, beside, fetched, jsonl, events] = ["data", "beside", "fetched", "jsonl", "events"]
        .map(|name| dir.path().join(name).to_str().expect("text").to_owned());
    let serve = Serve::start(&data);
    for name in ["a", "b", "c"] {
        json(&["groups", "create", name, "--data", &data]);
    }
    let place = ["--server", serve.place(), "--token", &serve.token()];
    let [keys, far_keys] =
        ["keys", "far-keys"].map(|name| dir.path().join(name).to_str().expect("text").to_owned());
    let near = json(&["audit", "export", "--data", &data, "--out", &beside, "--keys", &keys]);
    let far =
        [&place[..], &["audit", "export", "--out", &fetched, "--jsonl", &jsonl, "--cloudevents", &events]];
    let far = json(&far.concat());
    assert_eq!(fs::read(&beside).expect("there"), fs::read(&fetched).expect("there"), "byte for byte");
    for name in ["origin", "entries", "root", "checkpoint", "bytes"] {
        assert_eq!(near[name], far[name], "{name}");
    }
    // The same keys from the folder and over the API, in a file of their own that only its owner reads.
    let line = [&place[..], &["audit", "export", "--out", &fetched, "--keys", &far_keys]].concat();
    assert_eq!(json(&line)["keys"], near["keys"]);
    assert_eq!(fs::read(&keys).expect("there"), fs::read(&far_keys).expect("there"));
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(&keys).expect("there")) & 0o777, 0o600);
    let origin = near["origin"].as_str().expect("text");
    let entries = near["entries"].as_u64().expect("a number");

    // The lines alone lead to the signed root.
    let told = lines(&jsonl);
    assert_eq!(told.len() as u64, entries);
    let leaves: Vec<[u8; 32]> = told
        .iter()
        .map(|line| {
            let entry = BASE64.decode(line["entry"].as_str().expect("text").as_bytes()).expect("base64");
            let leaf: [u8; 32] = Sha256::new().chain_update([0]).chain_update(&entry).finalize().into();
            assert_eq!(line["leaf"], BASE64.encode(&leaf));
            leaf
        })
        .collect();
    assert_eq!(near["root"], BASE64.encode(&root(&leaves)));
    let told_events = lines(&events);
    let count: usize = told.iter().map(|line| line["events"].as_array().expect("events").len()).sum();
    assert_eq!(told_events.len(), count);
    assert!(told_events.iter().any(|event| event["type"] == "flotilla.group.created"));

    // Another log's is not taken, and what was there stays.
    let other = "flotilla/00000000000000000000000000000000";
    let line = [&place[..], &["audit", "export", "--out", &fetched, "--origin", other]].concat();
    let refused = flotilla(&line);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains(origin), "{said}");
    json(&["audit", "verify", &fetched, "--origin", origin]);
    let wrong =
        flotilla(&["--server", serve.place(), "--token", "wrong", "audit", "export", "--out", &fetched]);
    assert_eq!(wrong.status.code(), Some(1));
    drop(serve);

    // Offline, from the file alone, with the filters of replay.
    let line = ["audit", "convert", &fetched, "--to", "jsonl", "--origin", origin, "--actor", "admin"];
    assert_eq!(flotilla(&line).stdout, b"", "who it was can be read with the keys alone");
    let line = ["audit", "convert", &fetched, "--to", "jsonl"];
    let all = String::from_utf8(flotilla(&line).stdout).expect("text");
    assert!(all.contains("[sealed]") && !all.contains("admin"), "{all}");
    let line = [
        "audit", "convert", &fetched, "--to", "jsonl", "--actor", "admin", "--keys", &keys, "--origin",
        origin,
    ];
    let some = flotilla(&line);
    let some = String::from_utf8(some.stdout).expect("text");
    assert_eq!(some.lines().count(), 3, "{some}");
    let replayed = json_lines(&["audit", "replay", &fetched, "--actor", "admin", "--keys", &keys, "--json"]);
    assert_eq!(replayed.len(), 4, "three records and the state");
    let batch = dir.path().join("batch.json");
    let batch_path = batch.to_str().expect("text");
    let line =
        ["audit", "convert", &fetched, "--to", "cloudevents-batch", "--out", batch_path, "--from", "2"];
    let written = json(&line);
    assert_eq!(written["entries"].as_u64(), Some(entries - 1));
    let batch: Vec<Value> = serde_json::from_slice(&fs::read(&batch).expect("there")).expect("an array");
    assert_eq!(batch[..], told_events[told_events.len() - batch.len()..]);
    // A changed export is not converted to its end.
    let mut bytes = fs::read(&fetched).expect("there");
    let at = bytes.len() - 60;
    bytes[at] ^= 1;
    fs::write(&fetched, bytes).expect("written");
    let gone = dir.path().join("gone");
    let line = ["audit", "convert", &fetched, "--to", "jsonl", "--out", gone.to_str().expect("text")];
    let bad = flotilla(&line);
    assert!(bad.status.code() == Some(1) && String::from_utf8_lossy(&bad.stderr).contains("BAD"));
    assert!(!gone.exists() && !gone.with_added_extension("new").exists());
}

/// The backup of the keys was put back after an erasure, and no service started since.
#[test]
fn keys_of_the_erased_are_not_given_away() {
    let dir = tempfile::tempdir().expect("a folder");
    let [data, out, keys] =
        ["data", "out", "keys"].map(|name| dir.path().join(name).to_str().expect("text").to_owned());
    let serve = Serve::start(&data);
    json(&["groups", "create", "a", "--data", &data]);
    let export = ["audit", "export", "--data", &data, "--out", &out, "--keys", &keys];
    json(&export);
    let before = fs::read_to_string(&keys).expect("there");
    assert!(before.lines().any(|line| line.contains("user/")), "{before}");
    let file = Path::new(&data).join("subject-keys");
    let backup = fs::read(&file).expect("there");
    json(&["erase", "user", "admin", "--reason", "asked for", "--yes", "--data", &data]);
    drop(serve);
    fs::write(&file, backup).expect("put back");
    json(&export);
    let after = fs::read_to_string(&keys).expect("there");
    for line in before.lines().filter(|line| line.contains("user/")) {
        assert!(!after.contains(line), "{after}");
    }
}

fn json_lines(line: &[&str]) -> Vec<Value> {
    let output = flotilla(line);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Records of nearly the largest size, beyond what sockets hold.
fn large_log(data: &Path, records: u64) {
    let time = Timestamp(1_795_000_000_000);
    append(
        data,
        (0..records)
            .map(|_| record(time, AgentOffline { agent: AgentId([1; 16]), reason: "x".repeat(900_000) })),
    );
}

#[test]
fn a_connection_that_breaks_off_and_too_many_readers() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    fs::create_dir_all(&data).expect("made");
    large_log(&data, 40);
    let serve = Serve::start(data.to_str().expect("text"));
    let out = dir.path().join("history");
    let export = |place: &str| {
        let out = out.to_str().expect("text");
        flotilla(&["--server", place, "--token", &serve.token(), "audit", "export", "--out", out, "--json"])
    };
    // Cut off twice after some megabytes, then whole.
    let (place, cut) = cutting(address(&serve).to_owned(), 2);
    let got = export(&place);
    let said = String::from_utf8_lossy(&got.stderr).into_owned();
    assert!(got.status.success(), "{said}");
    assert_eq!((said.matches("begins anew").count(), cut.load(Ordering::Relaxed)), (2, 3), "{said}");
    json(&["audit", "verify", out.to_str().expect("text")]);
    let before = fs::read(&out).expect("there");
    // Cut off every time: nothing is left, and the former one stays.
    let (place, _) = cutting(address(&serve).to_owned(), usize::MAX);
    let got = export(&place);
    let said = String::from_utf8_lossy(&got.stderr).into_owned();
    assert!(got.status.code() == Some(1) && said.contains("broke off"), "{said}");
    assert_eq!(fs::read(&out).expect("there"), before);
    assert!(!out.with_added_extension("new").exists());

    // Two that read nothing: the third is told to come again, and may once one of them is gone.
    let ask = || {
        let mut stream = TcpStream::connect(address(&serve)).expect("connects");
        let head = format!(
            "GET /api/v1/audit/export HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n",
            serve.token()
        );
        stream.write_all(head.as_bytes()).expect("asked");
        let mut first = [0; 12];
        stream.read_exact(&mut first).expect("an answer");
        assert_eq!(&first, b"HTTP/1.1 200");
        stream
    };
    let (one, two) = (ask(), ask());
    let third = export(serve.place());
    let said = String::from_utf8_lossy(&third.stderr).into_owned();
    assert!(third.status.code() == Some(1) && said.contains("two exports"), "{said}");
    drop((one, two));
    // That they are gone is noticed at the next write to them.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !export(serve.place()).status.success() {
        assert!(std::time::Instant::now() < until, "the places are free again");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Passes connections on, and cuts the first `cuts` of them off in the middle of the answer.
fn cutting(to: String, cuts: usize) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = format!("http://{}", listener.local_addr().expect("an address"));
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let Ok(mut near) = near else { return };
            let number = seen.fetch_add(1, Ordering::Relaxed);
            let mut far = TcpStream::connect(&to).expect("the service");
            let (mut from, mut back) =
                (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut back);
                let _ = back.shutdown(Shutdown::Write);
            });
            let limit = if number < cuts { 5_000_000 } else { u64::MAX };
            let _ = std::io::copy(&mut (&mut far).take(limit), &mut near);
            let _ = near.shutdown(Shutdown::Both);
            let _ = far.shutdown(Shutdown::Both);
        }
    });
    (place, count)
}
