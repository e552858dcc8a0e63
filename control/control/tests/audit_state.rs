//! The real `flotilla audit state`, `diff`, `prove`, and what `verify` says of attested states: on an export, on a data
//! folder, beside a running service, and with histories that somebody tampered with.

mod support;

use std::fs;
use std::path::Path;

use event_schema::*;
use serde_json::Value;
use support::history::{append, record};
use support::program::{Serve, failure, flotilla, json, said};

#[test]
fn the_fleet_as_it_was() {
    let dir = tempfile::tempdir().expect("a folder");
    let [data, export, proof] =
        ["data", "export", "proof"].map(|name| dir.path().join(name).to_str().expect("text").to_owned());
    let serve = Serve::start(&data);
    let mut moments = Vec::new();
    for name in ["north", "south", "west"] {
        json(&["groups", "create", name, "--data", &data]);
        let (status, groups) =
            (json(&["status", "--data", &data]), json(&["groups", "list", "--data", &data]));
        moments.push((status["position"].as_u64().expect("a number"), status["state_hash"].clone(), groups));
    }
    // Of the log beside its service, and of an export, at every place: the same as the live service was.
    let exported = json(&["audit", "export", "--data", &data, "--out", &export]);
    let origin = exported["origin"].as_str().expect("a name").to_owned();
    for (position, hash, groups) in &moments {
        let at = position.to_string();
        for place in [vec!["--data", &data], vec![&export, "--origin", &origin], vec![&data]] {
            let state = json(&[&["audit", "state", "--at", &at][..], &place].concat());
            assert_eq!(
                (&state["position"], &state["state_hash"]),
                (&Value::from(*position), hash),
                "{place:?}"
            );
            let groups = groups.as_array().or(groups["groups"].as_array()).expect("a list");
            assert_eq!(state["groups"].as_array(), Some(groups), "{place:?}");
            assert_eq!(state["attested"]["first_differing"], Value::Null);
        }
    }
    // A time stands for the last record before the first later one; a later time for the end.
    let first = json(&["audit", "state", &export, "--at", "1"])["time"].as_str().expect("a time").to_owned();
    assert_eq!(json(&["audit", "state", &export, "--at", &first])["position"], 1);
    let (last, ..) = moments.last().expect("three");
    assert_eq!(json(&["audit", "state", &export, "--at", "2999-01-01T00:00:00Z"])["position"], *last);
    assert_eq!(
        json(&["audit", "state", &export, "--at", "0"])["state_hash"].as_str().expect("a hash")[..8],
        *"9ee402db"
    );
    let text = said(&["audit", "state", &export]);
    assert!(text.contains("3 groups") && text.contains("north"), "{text}");
    let beyond = (last + 1).to_string();
    assert!(failure(1, &["audit", "state", &export, "--at", &beyond]).contains("ends with entry"));
    assert!(failure(1, &["audit", "state", &export, "--at", "2001-01-01T00:00:00Z"]).contains(&first));
    assert!(failure(2, &["audit", "state", &export, "--at", "yesterday"]).contains("yesterday"));
    assert!(failure(1, &["audit", "state", &export, "--origin", "flotilla/00"]).contains("BAD"));

    // What changed between the first group and the last.
    let [from, to] = [moments[0].0.to_string(), moments[2].0.to_string()];
    let diff = json(&["audit", "diff", &export, "--from", &from, "--to", &to]);
    assert_eq!((&diff["from"]["state_hash"], &diff["to"]["state_hash"]), (&moments[0].1, &moments[2].1));
    let changes = diff["changes"].as_array().expect("a list");
    let names: Vec<_> =
        changes.iter().map(|change| (change["change"].as_str(), change["name"].as_str())).collect();
    assert_eq!(names, [(Some("added"), Some("south")), (Some("added"), Some("west"))]);
    let text = said(&["audit", "diff", "--data", &data, "--from", &from]);
    assert!(text.contains("  + south") && text.contains("2 things changed"), "{text}");
    assert!(failure(2, &["audit", "diff", &export, "--from", &to, "--to", &from]).contains("exchange"));
    assert!(failure(2, &["audit", "diff", &export, "--from", &to, "--to", &first]).contains("exchange"));

    // One entry, of the export and of the folder.
    for place in [vec![export.as_str()], vec!["--data", &data]] {
        json(&[&["audit", "prove", &from, "--out", &proof][..], &place].concat());
        let good = json(&["audit", "verify", &proof, "--origin", &origin]);
        assert_eq!((&good["good"], &good["position"].to_string()), (&Value::Bool(true), &from), "{place:?}");
        assert_eq!(good["record"]["events"][0]["data"]["name"], "north");
        assert_eq!(good["root"], exported["root"]);
    }
    assert!(failure(1, &["audit", "prove", &beyond, &export]).contains(&format!("1 to {last}")));
    // What the running service has not sealed yet is sealed for the proof.
    json(&["groups", "create", "later", "--data", &data]);
    let newest = json(&["status", "--data", &data])["position"].to_string();
    let new_proof = format!("{proof}-new");
    json(&["audit", "prove", &newest, "--data", &data, "--out", &new_proof]);
    assert_eq!(json(&["audit", "verify", &new_proof, "--origin", &origin])["position"].to_string(), newest);
    // Not what lies here instead of what was named.
    for line in [vec!["state"], vec!["diff", "--from", "1"], vec!["prove", "1"]] {
        let line = [&["audit"][..], &line, &["--server", "http://127.0.0.1:1", "--token", "t"]].concat();
        assert!(failure(2, &line).contains("not a server"), "{line:?}");
    }
    assert!(failure(2, &["audit", "prove", "0", &export]).contains('0'));
    // Edited by hand, anywhere: not a proof any more, or not of that.
    let text = fs::read_to_string(&proof).expect("the proof");
    let edits = [
        ("\"position\": ", "\"position\": 1"),
        ("\"entry\": \"", "\"entry\": \"AAAA"),
        ("index ", "index 1"),
        ("flotilla audit proof v1", "flotilla audit proof v2"),
        ("flotilla audit keys v1", "flotilla audit keys v2"),
        ("{", "["),
        ("{", "{ \"more\": 1,"),
    ];
    for (old, new) in edits {
        fs::write(&proof, text.replacen(old, new, 1)).expect("written");
        assert!(failure(1, &["audit", "verify", &proof]).contains("BAD"), "{new}");
    }
    fs::write(&proof, &text[..text.len() / 2]).expect("written");
    assert!(failure(1, &["audit", "verify", &proof]).contains("BAD"));
    fs::write(&proof, &text).expect("written");
    assert!(failure(1, &["audit", "verify", &proof, "--origin", "flotilla/00"]).contains("BAD"));
    assert!(failure(2, &["audit", "verify", &proof, "--seen", &proof]).contains("exports"));
    drop(serve);
}

#[test]
fn what_was_attested_is_held_against_the_fold() {
    let dir = tempfile::tempdir().expect("a folder");
    let [data, export] =
        ["data", "export"].map(|name| dir.path().join(name).to_str().expect("text").to_owned());
    let folder = Path::new(&data);
    drop(Serve::start(&data));
    let state = json(&["audit", "state", "--data", &data]);
    let at = state["position"].as_u64().expect("a number");
    let mut hash = [0; 32];
    let hex = state["state_hash"].as_str().expect("hex").as_bytes();
    for (byte, digits) in hash.iter_mut().zip(hex.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).expect("ASCII"), 16).expect("hex");
    }
    let now = || Timestamp(1_795_000_000_000);
    append(folder, vec![record(now(), StateAttested { at, form: control_core::form::NEWEST, hash })]);
    append(folder, vec![record(now(), StateAttested { at: at + 1, form: 99, hash })]);
    json(&["audit", "export", "--data", &data, "--out", &export]);
    let good = json(&["audit", "verify", &export]);
    assert_eq!((&good["states"]["checked"], &good["states"]["unknown"]), (&1.into(), &1.into()));
    let text = said(&["audit", "verify", &export]);
    assert!(text.contains("1 attested") && text.contains("1 NOT CHECKED"), "{text}");

    // A service that lies about its state, or a program that folds otherwise.
    let bad = append(
        folder,
        vec![record(now(), StateAttested { at: at + 2, form: control_core::form::NEWEST, hash })],
    );
    json(&["audit", "export", "--data", &data, "--out", &export]);
    let said = failure(1, &["audit", "verify", &export]);
    assert!(said.contains("BAD") && said.contains(&format!("entry {bad} attests")), "{said}");
    let output = flotilla(&["audit", "verify", &export, "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (output.status.code(), &told["good"], &told["first_bad"]),
        (Some(1), &false.into(), &bad.into())
    );
    let state = json(&["audit", "state", &export]);
    assert_eq!(state["attested"]["first_differing"], bad);

    // What a newer program wrote: the entries are proved, their meaning is not known from there on.
    let mut newer = record(now(), FleetFounded { root_key: [9; 32], ca_fingerprint: [9; 32] });
    let kind = newer.windows(3).rposition(|w| w == [1, 1, 64]).expect("kind 1, version 1, 64 bytes");
    newer.splice(kind..=kind, [0x8f, 0x4e]);
    let newer = append(folder, vec![newer]);
    json(&["audit", "export", "--data", &data, "--out", &export]);
    let said = failure(1, &["audit", "state", &export]);
    assert!(said.contains(&format!("entry {newer} ")) && said.contains("newer flotilla"), "{said}");
    assert_eq!(json(&["audit", "state", &export, "--at", &at.to_string()])["position"], at);
}

/// The service's clock goes back by a day: a later time never names an earlier position.
#[test]
fn a_clock_that_goes_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data").to_str().expect("text").to_owned();
    drop(Serve::start(&data));
    let group = |n: u8| GroupCreated { group: GroupId([n; 16]), name: format!("group {n}") };
    // Far in the future, then a day earlier, then later again.
    let day = 86_400_000;
    let late = Timestamp(4_000_000_000_000);
    let times = [late, Timestamp(late.0 - day), Timestamp(late.0 - day + 1), Timestamp(late.0 + day)];
    let end = append(Path::new(&data), (1..).zip(times).map(|(n, time)| record(time, group(n))));
    let mut last = 0;
    for ms in (0..).map(|n| late.0 - 2 * day + n * day / 2).take_while(|ms| *ms <= late.0 + 2 * day) {
        let output =
            flotilla(&["audit", "state", "--data", &data, "--at", &Timestamp(ms).to_string(), "--json"]);
        let state: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let position = state["position"].as_u64().expect("a number");
        assert!(position >= last, "{ms}");
        last = position;
        let expected = match ms {
            ms if ms < late.0 => end - 4,
            ms if ms < late.0 + day => end - 1,
            _ => end,
        };
        assert_eq!(position, expected, "{ms}");
        let warned = String::from_utf8_lossy(&output.stderr).contains("clock went back");
        assert_eq!(warned, position >= end - 1);
    }
}
